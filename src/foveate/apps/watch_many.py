"""``foveate watch DIR``: many videos, in parallel, on this machine or on a Ray cluster.

Every video has its own result folder, finished or absent (see `foveate.apps.watch`), so the work
can be killed at any moment and started again: finished videos are not computed twice. How videos
are shared out, and what becomes of one that fails, is `foveate.apps.many`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.apps.many import Job, folders_for, many
from foveate.apps.watch import WatchResult, WatchSettings, watch
from foveate.errors import FoveateError
from foveate.files import writable_dir, write_whole
from foveate.streams.video import IMAGE_SUFFIXES, list_videos

__all__ = ["Outcome", "videos_in", "watch_many"]

Progress = Callable[[int, int, "Outcome"], None]
"""Called with (videos finished, videos in all, the one just finished)."""


@dataclass(frozen=True)
class Outcome:
    """What became of one video: a result, or the sentence that says why there is none."""

    video: Path
    folder: Path
    result: WatchResult | None
    error: str | None = None


def watch_many(
    videos: Sequence[Path],
    out: Path,
    *,
    settings: WatchSettings,
    force: bool = False,
    jobs: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Watch several videos.

    Parameters
    ----------
    out
        One folder for each video is made in it, and ``index.html`` and ``heart_rates.csv``.
    jobs
        Processes at once; default: the number of cores, at most one for each video.
    ray
        Address of a Ray cluster (``local`` starts one here); videos and `out` must lie on a file
        system that every machine of the cluster sees under the same path.
    progress
        Told about every finished video.

    Returns
    -------
    list of Outcome
        In the order of `videos`.

    Raises
    ------
    FoveateError
        The folder cannot be written, `jobs` is below 1, or Ray is not installed or reachable.
    """
    if jobs is not None and jobs < 1:
        raise FoveateError(f"--jobs is {jobs}; expected a number of at least 1")
    settings.check()
    writable_dir(out)
    work = [
        Job(video, folder, (settings, force))
        for video, folder in zip(videos, _folders(videos, out), strict=True)
    ]
    outcomes: dict[Path, Outcome] = {}
    for done in many(work, _watch, verb="watched", jobs=jobs, ray=ray):
        outcome = Outcome(done.job.source, done.job.folder, done.result, done.error)
        outcomes[outcome.video] = outcome
        if progress is not None:
            progress(len(outcomes), len(work), outcome)
    ordered = [outcomes[video] for video in videos]
    _write_table(out / "heart_rates.csv", ordered)
    from foveate.report.watch_index import write_watch_index

    write_watch_index(
        out / "index.html",
        [
            {
                "video": o.video.name,
                "folder": o.folder.name,
                "summary": o.result.summary if o.result else None,
                "error": o.error,
            }
            for o in ordered
        ],
    )
    return ordered


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder; empty when it is a folder of pictures, which is one stream.

    Raises
    ------
    FoveateError
        It holds neither videos nor pictures.
    """
    try:
        return list_videos(folder)
    except FoveateError:
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()):
            return []
        raise


def _folders(videos: Sequence[Path], out: Path) -> list[Path]:
    return folders_for(videos, out, {"index.html", "heart_rates.csv"})


def _watch(job: Job) -> WatchResult:
    settings, force = job.options
    return watch(job.source, job.folder, settings=settings, force=force)


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    """One line for each person of each video, for a spreadsheet."""
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ("video", "person", "heart_rate_bpm", "low_bpm", "high_bpm", "confidence", "reason")
        )
        for outcome in outcomes:
            if outcome.result is None:
                table.writerow((outcome.video.name, "", "", "", "", "", outcome.error))
                continue
            people = outcome.result.summary["people"]
            if not people:
                table.writerow((outcome.video.name, "", "", "", "", "", "no face"))
            for person in people:
                rate = person["heart_rate"]
                table.writerow(
                    (
                        outcome.video.name,
                        person["track"] + 1,
                        rate["bpm"],
                        rate.get("low"),
                        rate.get("high"),
                        rate.get("confidence"),
                        rate.get("reason"),
                    )
                )
