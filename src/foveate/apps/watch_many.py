"""``foveate watch DIR``: many videos, in parallel, on this machine or on a Ray cluster.

Every video has its own result folder, finished or absent (see `foveate.apps.watch`), so the work
can be killed at any moment and started again: finished videos are not computed twice. A video
that cannot be read does not stop the others. A worker process that dies (killed, out of memory)
costs its video one attempt; after two it is reported as failed.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from foveate.apps.watch import WatchResult, WatchSettings, watch
from foveate.errors import FoveateError
from foveate.files import writable_dir, write_whole
from foveate.streams.video import IMAGE_SUFFIXES, list_videos

__all__ = ["Outcome", "videos_in", "watch_many"]

_ATTEMPTS = 2

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
    work = list(zip(videos, _folders(videos, out), strict=True))
    finish = _on_ray(work, settings, force, ray) if ray else _in_pool(work, settings, force, jobs)
    outcomes: dict[Path, Outcome] = {}
    for outcome in finish:
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
    """A folder for each video, by its stem; with the suffix where stems collide."""
    stems = [video.stem for video in videos]
    taken = {"index.html", "heart_rates.csv"}
    names = []
    for video, stem in zip(videos, stems, strict=True):
        name = stem if stems.count(stem) == 1 else video.name.replace(".", "-")
        candidate, number = name, 2
        while candidate in taken or (candidate != stem and candidate in stems):
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate)
        names.append(candidate)
    return [out / name for name in names]


def _one(video: Path, folder: Path, settings: WatchSettings, force: bool) -> Outcome:
    """Watch one video; bad input becomes a sentence, so that the others go on."""
    try:
        return Outcome(video, folder, watch(video, folder, settings=settings, force=force))
    except FoveateError as error:
        return Outcome(video, folder, None, str(error))
    except OSError as error:
        return Outcome(video, folder, None, f"{video.name}: {error.strerror or error}")
    except Exception as error:  # one video must not stop the others
        kind = type(error).__name__
        return Outcome(
            video, folder, None, f"{video.name}: an error of foveate itself ({kind}: {error})"
        )


def _leave_with_parent(parent: int) -> None:
    """End this worker when the process that started it is gone (even by kill -9).

    Ctrl-C reaches the whole process group; the parent alone decides what follows.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def guard() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=guard, daemon=True).start()


def _in_pool(
    work: Sequence[tuple[Path, Path]], settings: WatchSettings, force: bool, jobs: int | None
) -> Iterator[Outcome]:
    strikes: dict[Path, int] = {}
    todo = list(work)
    workers = min(jobs or os.cpu_count() or 1, max(len(work), 1))
    while todo:
        # After a crash the culprit is unknown: suspects run alone.
        alone = any(strikes.values())
        batch = [todo.pop(0)] if alone else todo
        todo = todo if alone else []
        pool = ProcessPoolExecutor(
            1 if alone else workers,
            mp_context=get_context("spawn"),
            initializer=_leave_with_parent,
            initargs=(os.getpid(),),
        )
        running: dict[Future[Outcome], tuple[Path, Path]] = {}
        try:
            running = {pool.submit(_one, *item, settings, force): item for item in batch}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    item = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        strikes[item[0]] = strikes.get(item[0], 0) + (1 if alone else 0)
                        if strikes[item[0]] >= _ATTEMPTS:
                            yield Outcome(
                                *item,
                                None,
                                f"the process that watched {item[0].name} died {_ATTEMPTS} times "
                                "(killed, or out of memory); try it alone with --jobs 1",
                            )
                        else:
                            strikes[item[0]] = max(strikes[item[0]], 1)
                            todo.append(item)
        finally:
            workers_left = list((getattr(pool, "_processes", None) or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            if running:  # interrupted: do not wait for videos in flight
                for process in workers_left:
                    process.kill()


def _on_ray(
    work: Sequence[tuple[Path, Path]], settings: WatchSettings, force: bool, address: str
) -> Iterator[Outcome]:
    try:
        import ray
    except ImportError as error:
        raise FoveateError(
            "--ray needs Ray, which is not installed; run `pip install 'foveate[cluster]'`"
        ) from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False,
                 logging_level="ERROR")  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise FoveateError(
            f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, or use --ray local"
        ) from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(_one)
        pending: dict[Any, tuple[Path, Path]] = {
            remote.remote(video.resolve(), folder.resolve(), settings, force): (video, folder)
            for video, folder in work
        }
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            video, folder = pending.pop(ready[0])
            try:
                outcome = ray.get(ready[0])
                yield dataclasses.replace(outcome, video=video, folder=folder)
            except ray.exceptions.RayError as error:
                first = str(error).splitlines()[0]
                yield Outcome(video, folder, None, f"the Ray task of {video.name} failed: {first}")
    finally:
        ray.shutdown()


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
