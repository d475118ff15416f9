"""Miniatures of UBFC-rPPG, PURE and MMPD in the layouts of their owners.

A second implementation of the layouts, on purpose: it shares no code with ``foveate.datasets``
nor with ``foveate.simulate``. Pictures are 32x24; every one carries its own number, so that a
test can tell which frame it got. Nothing here is real data.

    python tests/make_miniatures/rppg.py FOLDER    makes one of each
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import scipy.io

WIDTH, HEIGHT = 32, 24
PURE_EPOCH_NS = 1_392_643_993_642_815_000  # a moment of 2014; larger than a float64 can count


def picture(number: int) -> np.ndarray:
    """``(24, 32, 3)`` uint8 RGB: a gradient whose top left pixel spells `number`."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([rows * 8, columns * 6, rows + columns], axis=-1).astype(np.uint8)
    image[0, 0] = number % 251, number // 251, 77
    return image


def number_of(image: np.ndarray) -> int:
    """The number that :func:`picture` wrote."""
    return int(image[0, 0, 0]) + 251 * int(image[0, 0, 1])


def pulse(times_s: np.ndarray, bpm: float) -> np.ndarray:
    """A pulse-like wave: the heart's line and half as much of its second harmonic."""
    phase = 2 * np.pi * bpm / 60 * np.asarray(times_s)
    return np.sin(phase) + 0.5 * np.sin(2 * phase + 0.4)


def write_avi(path: Path, count: int, fps: Fraction = Fraction(30)) -> None:
    """Uncompressed BGR video, as UBFC-rPPG's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr24"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr24")))
        container.mux(stream.encode())


def write_ubfc_2(
    folder: Path, ppg: Sequence[float], times_s: Sequence[float], frames: int | None = None
) -> None:
    """``subjectK/`` of DATASET_2: three lines in scientific notation, one value per frame."""
    write_avi(folder / "vid.avi", len(ppg) if frames is None else frames)
    lines = [ppg, [71.0] * len(ppg), times_s]
    text = "\n".join("  " + "  ".join(f"{value: .7e}" for value in line) for line in lines)
    (folder / "ground_truth.txt").write_text(text + "\n", encoding="ascii")


def write_ubfc_1(
    folder: Path,
    ppg: Sequence[float],
    times_ms: Sequence[float],
    frames: int,
    fps: Fraction = Fraction(30),
    video: str = "vid.avi",
) -> None:
    """One folder of DATASET_1: ``gtdump.xmp`` is a CSV file without a heading."""
    write_avi(folder / video, frames, fps)
    rows = [f"{t:g},71,98,{float(value)!r}" for t, value in zip(times_ms, ppg, strict=True)]
    (folder / "gtdump.xmp").write_text("\n".join(rows) + "\n", encoding="ascii")


def write_png(path: Path, image: np.ndarray) -> None:
    """RGB picture, 8 bits, straight from the PNG standard."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + image[row].tobytes() for row in range(height))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_pure(
    root: Path,
    name: str,
    image_ns: Sequence[int],
    label_ns: Sequence[int],
    waveform: Sequence[float],
    json_inside: bool = True,
    pictures_nested: bool = True,
) -> Path:
    """Sequence ``SS-TT``; the JSON inside the folder or beside it. Returns the JSON's path."""
    outer = root / name
    pictures = outer / name if pictures_nested else outer
    pictures.mkdir(parents=True, exist_ok=True)
    for number, stamp in enumerate(sorted(image_ns)):
        write_png(pictures / f"Image{stamp}.png", picture(number))

    def reading(stamp: int, wave: float) -> dict[str, object]:
        value = {"o2saturation": 97, "pulseRate": 71, "signalStrength": 4, "waveform": wave}
        return {"Timestamp": int(stamp), "Value": value}

    content = {
        "/FullPackage": [reading(*pair) for pair in zip(label_ns, waveform, strict=True)],
        "/Image": [{"Timestamp": int(stamp), "Value": {}} for stamp in image_ns],
    }
    path = (outer if json_inside else root) / f"{name}.json"
    path.write_text(json.dumps(content, indent=1), encoding="ascii")
    return path


def write_mmpd(
    root: Path,
    subject: int,
    clip: int,
    ppg: Sequence[float],
    frames: int,
    compressed: bool = True,
    dtype: type = np.float64,
    **fields: object,
) -> Path:
    """``subjectK/pK_N.mat``: video as floats in [0, 1], labels as MATLAB strings."""
    path = root / f"subject{subject}" / f"p{subject}_{clip}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "video": (np.stack([picture(number) for number in range(frames)]) / 255).astype(dtype),
        "GT_ppg": np.asarray(ppg, dtype=float).reshape(1, -1),
        "light": "LED-low",
        "motion": "Stationary",
        "exercise": "False",
        "skin_color": np.array([[3]], dtype=np.uint8),
        "gender": "female",
        "glasser": "False",
        "hair_cover": "False",
        "makeup": "False",
        **fields,
    }
    scipy.io.savemat(path, content, do_compression=compressed)
    return path


def main(folder: Path) -> None:
    """Two subjects of every data set below `folder`."""
    times = np.arange(60) / 30
    fine = np.arange(124) / 62
    for bpm, subject in ((66, 1), (84, 40)):
        write_ubfc_2(
            folder / "UBFC-rPPG" / "DATASET_2" / f"subject{subject}", pulse(times, bpm), times
        )
    write_ubfc_1(folder / "UBFC-rPPG" / "DATASET_1" / "5-gt", pulse(fine, 72), fine * 1000, 60)
    for bpm, name in ((66, "01-01"), (84, "07-04")):
        stamps = [PURE_EPOCH_NS + round(t * 1e9) for t in times]
        label = np.arange(120) / 60
        label_ns = [PURE_EPOCH_NS + round(t * 1e9) for t in label]
        waveform = np.rint(60 + 30 * pulse(label, bpm)).astype(int).tolist()
        write_pure(folder / "PURE", name, stamps, label_ns, waveform)
    for bpm, subject in ((66, 1), (84, 30)):
        write_mmpd(folder / "MMPD", subject, 0, pulse(times, bpm), 60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
