"""Miniatures of PhysioNet 2012, MIMIC-III (mortality benchmark) and Coswara in their layouts.

A second implementation of the layouts, on purpose: it shares no code with ``foveate.datasets``.
Nothing here is real data.

    python tests/make_miniatures/health.py FOLDER    makes one of each
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Stay(NamedTuple):
    """RecordID, whether it ended in death, and (minute, parameter, value) in order of time."""

    record: int
    died: int
    events: list[tuple[int, str, float]]


def some_stays(count: int = 6, first: int = 132539, seed: int = 0) -> list[Stay]:
    """Random stays; the first has gaps, unknowns, several values in an hour and one at 48:00."""
    rng = np.random.default_rng(seed)
    stays = []
    for number in range(count):
        events = [
            (0, "Age", float(rng.integers(20, 90))),
            (0, "Gender", float(rng.integers(0, 2))),
            (0, "Height", 170.2),
            (0, "ICUType", float(1 + number % 4)),
            (0, "Weight", 80.5),
        ]
        for minute in sorted(rng.integers(0, 2881, 25).tolist()):
            name = str(rng.choice(["HR", "pH", "Temp", "Urine", "GCS"]))
            events.append((minute, name, round(float(rng.uniform(0, 100)), 2)))
        stays.append(Stay(first + number, int(rng.random() < 0.3), events))
    known = [
        (0, "Age", 54.0),
        (0, "Gender", -1.0),
        (0, "Height", -1.0),
        (0, "ICUType", 4.0),
        (0, "Weight", -1.0),
        (61, "HR", 70.0),
        (119, "HR", 80.0),
        (120, "HR", -5.0),
        (300, "Temp", -17.8),
        (2820, "HR", 100.0),
        (2880, "HR", 104.0),
    ]
    return [Stay(first, 1, known), *stays[1:]]


def write_set(folder: Path, letter: str, stays: list[Stay]) -> None:
    """The official text files of one set."""
    (folder / f"set-{letter}").mkdir(parents=True, exist_ok=True)
    table = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    for stay in stays:
        lines = ["Time,Parameter,Value", f"00:00,RecordID,{stay.record}"]
        lines += [
            f"{minute // 60:02d}:{minute % 60:02d},{name},{value:g}"
            for minute, name, value in stay.events
        ]
        path = folder / f"set-{letter}" / f"{stay.record}.txt"
        path.write_bytes(("\n".join(lines) + "\n").encode("ascii"))
        table.append(f"{stay.record},6,1,5,-1,{stay.died}")
    (folder / f"Outcomes-{letter}.txt").write_text("\n".join(table) + "\n", "ascii")


def write_event_list(path: Path, stays: list[Stay]) -> None:
    """The same content as arrays."""
    rows = [(stay.record, *event) for stay in stays for event in stay.events]
    params = sorted({name for _, _, name, _ in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        record=np.array([row[0] for row in rows], np.int32),
        minute=np.array([row[1] for row in rows], np.uint16),
        param=np.array([params.index(row[2]) for row in rows], np.uint8),
        value=np.array([row[3] for row in rows], np.float32),
        params=np.array(params),
        outcomes=np.array([[s.record, 6, 1, 5, -1, s.died] for s in stays], np.int32),
        outcome_cols=np.array(
            ["RecordID", "SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death"]
        ),
    )


def write_mimic(folder: Path, counts: tuple[int, int, int] = (12, 6, 6)) -> None:
    """``(N, 48, 76)`` whose value is 1000 * row + column, plus the hour in hundredths."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        row, hour, column = np.mgrid[0:count, 0:48, 0:76]
        x = (1000 * row + column + hour / 100).astype(np.float64)
        np.savez_compressed(folder / f"{part}_raw.npz", x=x, y=np.arange(count) % 2)


def write_coswara(folder: Path, counts: tuple[int, int, int] = (8, 6, 6)) -> None:
    """``(N, 96, 64, 1)`` float32, as a network for pictures takes them."""
    (folder / "covid" / "breath").mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        row, frame, band = np.mgrid[0:count, 0:96, 0:64]
        x = (row + frame / 100 + band / 10_000).astype(np.float32)[..., None]
        np.save(folder / "covid" / "breath" / f"X_{part}.npy", x)
        np.save(folder / "covid" / "breath" / f"y_{part}.npy", np.arange(count)[:, None] % 2)


def main(folder: Path) -> None:
    """One of each."""
    for letter, first in (("a", 132539), ("b", 142675)):
        write_set(folder / "physionet2012", letter, some_stays(6, first))
    write_mimic(folder / "mimic3-ihm")
    write_coswara(folder / "coswara")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
