"""Write a simulated clip in the layout of a public data set, so that its loader can be tested.

Only the *layout* is theirs; every picture and label is simulated. A file ``SIMULATED.txt`` in the
root says so, and so do video metadata and label files where the format has room.

Layouts: ``UBFC-rPPG`` (lossless AVI, three lines of ground truth), ``PURE`` (PNG per frame, 60 Hz
JSON), ``MMPD`` (one ``.mat`` per clip), ``DISFA`` (AVI, one text file per action unit, landmarks),
``300VW`` (AVI, one ``.pts`` per frame, counted from 1), ``tracks`` (a folder of crops per person
and take).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import scipy.io

from foveate.errors import FoveateError
from foveate.files import writable_dir, write_whole
from foveate.simulate.codecs import Codec, encode
from foveate.simulate.face_geometry import ACTION_UNITS
from foveate.simulate.face_renderer import PARTS
from foveate.simulate.faces import SimClip

__all__ = ["LAYOUTS", "export"]

NOTE = (
    "Simulated by foveate (procedural face video). No person was recorded. Only the folder layout\n"
    "is that of the public data set; never report a figure measured here as one of that set.\n"
)


def _video(clip: SimClip, path: Path) -> None:
    with write_whole(path) as temporary:
        # AVI knows a fixed list of keys, so the mark travels as one JSON comment, as `VideoWriter`
        # writes and `VideoStream` reads it.
        marks = {"simulated_pulse": "true", "made_by": "simulated by foveate"}
        metadata = {"comment": json.dumps(marks), "title": "simulated"}
        encode(clip.frames, clip.fps, Codec("ffv1"), str(temporary), "avi", metadata)


def _text(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _picture(path: Path, image: np.ndarray) -> None:
    with write_whole(path) as temporary:
        data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        temporary.write_bytes(data.tobytes())


def _ubfc(clip: SimClip, root: Path, subject: int, take: int) -> Path:
    folder = root / f"subject{subject}"
    _video(clip, folder / "vid.avi")
    rows = (clip.labels["bvp"], clip.labels["hr_bpm"], clip.times)
    lines = ["  ".join(f"{value: .7e}" for value in row) for row in rows]
    _text(folder / "ground_truth.txt", "\n".join(lines) + "\n")
    return folder


def _pure(clip: SimClip, root: Path, subject: int, take: int) -> Path:
    name = f"{subject:02d}-{take:02d}"
    folder = root / name
    start = 1_392_643_993_642_815_000  # a plausible clock of nanoseconds
    stamps = [start + round(t * 1e9) for t in clip.times]
    for stamp, frame in zip(stamps, clip.frames, strict=True):
        _picture(folder / name / f"Image{stamp}.png", frame)
    rate = np.interp(clip.labels["times_60hz"], clip.times, clip.labels["hr_bpm"])

    def value(wave: float, bpm: float) -> dict[str, int]:
        return {"waveform": round(60 + 20 * wave), "pulseRate": round(bpm), "o2saturation": 98}

    package = [
        {"Timestamp": start + round(t * 1e9), "Value": value(wave, bpm)}
        for t, wave, bpm in zip(
            clip.labels["times_60hz"], clip.labels["bvp_60hz"], rate, strict=True
        )
    ]
    images = [
        {"Timestamp": stamp, "Value": value(wave, bpm)}
        for stamp, wave, bpm in zip(stamps, clip.labels["bvp"], clip.labels["hr_bpm"], strict=True)
    ]
    record = {"/FullPackage": package, "/Image": images, "simulated": True}
    _text(folder / f"{name}.json", json.dumps(record))
    return folder


def _mmpd(clip: SimClip, root: Path, subject: int, take: int) -> Path:
    path = root / f"subject{subject}" / f"p{subject}_{take}.mat"
    melanin = clip.config["melanin"]
    moving = clip.config["motion"] not in ("still", "steady")
    record = {
        "video": clip.frames.astype(np.float64) / 255,
        "GT_ppg": clip.labels["bvp"][None].astype(np.float64),
        "light": "LED-low" if clip.config["light"]["ambient"] < 0.3 else "LED-high",
        "motion": "Talking"
        if clip.labels["speaking"].any()
        else "Rotation"
        if moving
        else "Stationary",
        "exercise": "False",
        "skin_color": int(np.clip(round(3 + 3 * melanin / 0.85), 3, 6)),
        # A drawn head has no sex, but the layout asks for one.
        "gender": ("female", "male")[clip.labels["identity"] % 2],
        "glasser": str(bool((clip.labels["parts"] == PARTS.index("glasses")).any())),
        "hair_cover": "False",
        "makeup": "False",
        "simulated": "True",
    }
    with write_whole(path) as temporary:
        scipy.io.savemat(temporary, record, do_compression=True)
    return path


def _disfa(clip: SimClip, root: Path, subject: int, take: int) -> Path:
    name = f"SN{subject:03d}"
    for column, unit in enumerate(ACTION_UNITS):
        if unit == 45:
            continue
        levels = np.rint(clip.labels["au"][:, column]).astype(int)
        lines = [f"{frame},{level}" for frame, level in enumerate(levels, start=1)]
        path = root / "ActionUnit_Labels" / name / f"{name}_au{unit}.txt"
        _text(path, "\n".join(lines) + "\n")
    # DISFA's 66 points are the 68 without the inner mouth corners.
    kept = np.delete(np.arange(68), [60, 64])
    points = root / "Landmark_Points" / name / "tmp_frame_lm"
    for frame, landmarks in enumerate(clip.labels["landmarks"]):
        with write_whole(points / f"{name}_{frame:04d}_lm.mat") as temporary:
            scipy.io.savemat(temporary, {"pts": landmarks[kept].astype(np.float64)})
    video = root / "Videos_LeftCamera" / f"LeftVideo{name}_comp.avi"
    _video(clip, video)
    return video


def _300vw(clip: SimClip, root: Path, subject: int, take: int) -> Path:
    folder = root / f"{subject:03d}"
    for number, landmarks in enumerate(clip.labels["landmarks"], start=1):
        lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in landmarks]  # pixels count from 1
        body = "\n".join(["version: 1", "n_points: 68", "{", *lines, "}", ""])
        _text(folder / "annot" / f"{number:06d}.pts", body)
    _video(clip, folder / "vid.avi")
    return folder


def _tracks(clip: SimClip, root: Path, subject: int, take: int) -> Path:
    folder = root / f"person{subject:05d}" / f"track{take:03d}"
    for number, frame in enumerate(clip.frames, start=1):
        _picture(folder / f"{number:06d}.png", frame)
    return folder


LAYOUTS: dict[str, Callable[[SimClip, Path, int, int], Path]] = {
    "UBFC-rPPG": _ubfc,
    "PURE": _pure,
    "MMPD": _mmpd,
    "DISFA": _disfa,
    "300VW": _300vw,
    "tracks": _tracks,
}
"""Writers by the name of the data set whose layout they follow."""


def export(clip: SimClip, layout: str, root: Path | str, subject: int = 1, take: int = 1) -> Path:
    """Write `clip` below `root` as subject `subject` (and recording `take`) of a data set.

    Returns
    -------
    Folder or file of the clip.

    Raises
    ------
    FoveateError
        The layout is not known, the numbers do not fit it, or `root` cannot be written.
    """
    if layout not in LAYOUTS:
        raise FoveateError(f"layout {layout!r} is not known; choose one of {', '.join(LAYOUTS)}")
    if not 1 <= subject <= 99 or not 0 <= take <= 99:
        raise FoveateError(f"subject {subject} and take {take} must be 1-99 and 0-99")
    root = writable_dir(Path(root), "export folder")
    _text(root / "SIMULATED.txt", NOTE)
    return LAYOUTS[layout](clip, root, subject, take)
