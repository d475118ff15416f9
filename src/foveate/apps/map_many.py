"""``foveate map SCENES.csv``: many scenes, in processes of this machine or on a Ray cluster.

The table has the columns ``scene`` and ``labels`` (empty: the labels inside the scene's file);
paths are relative to the table's folder. Every scene has its own result folder, finished or absent
(see `foveate.apps.map`), so the work can be killed and started again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.apps.many import Job, Outcome, folders_for, many
from foveate.apps.map import MapResult, MapSettings, map_scene
from foveate.errors import FoveateError
from foveate.files import writable_dir, write_whole

__all__ = ["Pair", "map_many", "scenes_in"]

INDEX = "maps.csv"
_MAX_ROWS = 100_000

Progress = Callable[[int, int, Outcome[MapResult]], None]
"""Called with (scenes finished, scenes in all, the one just finished)."""


@dataclass(frozen=True)
class Pair:
    """One line of the table."""

    scene: Path
    labels: Path | None


def scenes_in(table: Path) -> list[Pair]:
    """The scenes of a table with the columns ``scene`` and ``labels``.

    Raises
    ------
    FoveateError
        The table cannot be read, has no column ``scene``, or no line.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "scene" not in (rows.fieldnames or ()):
                found = ", ".join(rows.fieldnames or ()) or "nothing"
                raise FoveateError(
                    f"{table} has the columns {found}; a table of scenes has scene and labels"
                )
            pairs: list[Pair] = []
            for row in rows:
                scene, labels = (row.get("scene") or "").strip(), (row.get("labels") or "").strip()
                if not scene:
                    raise FoveateError(f"{table}, line {rows.line_num}: no scene is named")
                if len(pairs) == _MAX_ROWS:
                    raise FoveateError(f"{table} has more than {_MAX_ROWS:,} lines; split it")
                pairs.append(Pair(table.parent / scene, table.parent / labels if labels else None))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FoveateError(
            f"cannot read the table of scenes {table}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not pairs:
        raise FoveateError(f"{table} names no scene; write a line scene,labels for each")
    return pairs


def map_many(
    pairs: Sequence[Pair],
    out: Path,
    *,
    settings: MapSettings,
    force: bool = False,
    jobs: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> list[Outcome[MapResult]]:
    """Map several scenes; outcomes in their order, and ``maps.csv`` in `out`.

    Parameters
    ----------
    out
        One folder for each scene is made in it.
    jobs, ray
        As in `foveate.apps.many.many`. With more than one process each uses one thread unless the
        settings say otherwise.
    progress
        Told about every finished scene.
    """
    settings.check()
    writable_dir(out)
    folders = folders_for([pair.scene for pair in pairs], out, {INDEX})
    work = [
        Job(pair.scene, folder, (pair.labels, settings, force))
        for pair, folder in zip(pairs, folders, strict=True)
    ]
    outcomes: dict[Path, Outcome[MapResult]] = {}
    for done in many(work, _map, verb="mapped", jobs=jobs, ray=ray):
        outcomes[done.job.folder] = done
        if progress is not None:
            progress(len(outcomes), len(work), done)
    ordered = [outcomes[folder] for folder in folders]
    _write_index(out / INDEX, ordered)
    return ordered


def _map(job: Job) -> MapResult:
    labels, settings, force = job.options
    return map_scene(job.source, labels, job.folder, settings=settings, force=force)


def _write_index(path: Path, outcomes: Sequence[Outcome[MapResult]]) -> None:
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("scene", "folder", "method", "oa", "aa", "kappa", "error"))
        for one in outcomes:
            names = (one.job.source.name, one.job.folder.name)
            if one.result is None:
                table.writerow((*names, "", "", "", "", one.error))
                continue
            summary = one.result.summary
            found = (summary["estimate"] or {}).get("disjoint", {})
            figures = (found.get(key) for key in ("oa", "aa", "kappa"))
            table.writerow((*names, summary["method"], *figures, ""))
