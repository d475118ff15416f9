"""`ImageStream`: a folder of images as a video.

Files are taken in natural order (``frame2.png`` before ``frame10.png``). Their times are
index / fps, unless every name carries its own: the PURE data set and the cameras it stands for
write ``Image<nanoseconds>.png``, and then

    time_s = (nanoseconds - those of the first image) * 1e-9.

Images that cannot be decoded are left out and counted, as in `foveate.streams.video`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from foveate.errors import FoveateError
from foveate.streams.frame import Frame
from foveate.streams.stream import ReadAheadStream, StreamInfo
from foveate.streams.video import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    VIDEO_SUFFIXES,
    StreamClock,
    fitted_size,
)

__all__ = ["ImageStream"]

# Named, so that Pillow never hands a file to a reader that starts other programs (EPS, ...).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
_NANOSECONDS = re.compile(r"Image(\d{15,19})")


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key in which runs of digits compare as numbers."""
    parts = re.findall(r"\d{1,1000}|\D+", path.name)
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts], path.name


def _load(path: Path) -> npt.NDArray[np.uint8]:
    """``(H, W, 3)`` RGB uint8, upright; raises what Pillow raises, ValueError when too large."""
    with Image.open(path, formats=_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:  # known from the header, before decoding
            raise ValueError(f"{image.width}x{image.height} pixels, expected at most {MAX_PIXELS}")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
            grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.array(upright.convert("RGB"), dtype=np.uint8)


class _Reader:
    """The loop over the files; apart from `ImageStream` so that the thread does not hold that."""

    def __init__(
        self, paths: list[Path], stamps_s: list[float], fps: float, max_side: int | None
    ) -> None:
        self.damaged = 0
        self._clock = StreamClock(fps)
        self._good = self._decode(paths, stamps_s)
        self._first = next(self._good, None)
        if self._first is None:
            raise FoveateError(
                f"none of the {len(paths)} images in {paths[0].parent} can be decoded; "
                "expected PNG, JPEG, BMP, TIFF, WebP or PPM pictures of at most 8192x8192 pixels"
            )
        height, width = self._first[2].shape[:2]
        self._size = fitted_size(width, height, max_side)
        self.info = StreamInfo(
            width=self._size[0],
            height=self._size[1],
            fps=fps,
            duration_s=stamps_s[-1] + 1.0 / fps,
            frames=len(paths),
            codec=paths[0].suffix.lower().lstrip("."),
        )

    def _decode(
        self, paths: list[Path], stamps_s: list[float]
    ) -> Iterator[tuple[int, float, npt.NDArray[np.uint8]]]:
        for index, (path, stamp_s) in enumerate(zip(paths, stamps_s, strict=True)):
            try:
                image = _load(path)
            except Exception:  # Pillow's plugins raise nearly everything on damaged bytes
                self.damaged += 1
            else:
                yield index, stamp_s, image

    def frames(self) -> Iterator[Frame]:
        """Every good image, scaled and timed."""
        first, self._first = self._first, None
        if first is not None:
            yield self._finish(*first)
        for index, stamp_s, image in self._good:
            yield self._finish(index, stamp_s, image)

    def _finish(self, index: int, stamp_s: float, image: npt.NDArray[np.uint8]) -> Frame:
        if image.shape[1::-1] != self._size:
            resized = Image.fromarray(image).resize(self._size, Image.Resampling.BOX)
            image = np.array(resized, dtype=np.uint8)
        return Frame(image=image, time_s=self._clock(stamp_s), index=index)

    def close(self) -> None:
        """Nothing to release: every file is open only while it is read."""


class ImageStream(ReadAheadStream):
    """The images of a folder as frames, once, in order; its own iterator.

    Parameters
    ----------
    directory
        Holds PNG, JPEG, BMP, TIFF, WebP or PPM files; anything else in it is not looked at.
    fps
        Rate in Hz for names that carry no time.
    max_side
        Scale frames down (area averaging) to this longer side.

    Raises
    ------
    FoveateError
        On opening only: no folder, no image in it, none that can be decoded, or a bad `fps`.

    Notes
    -----
    Every frame has the size of the first; others are scaled to it.
    """

    def __init__(
        self, directory: str | Path, fps: float = 30.0, max_side: int | None = None
    ) -> None:
        self.path = Path(directory)
        if not 0.0 < fps <= 1e6:
            raise FoveateError(f"fps is {fps}, expected a rate in Hz above 0")
        try:
            entries = [p for p in self.path.iterdir() if p.is_file() and p.name[0] != "."]
        except OSError as error:
            raise FoveateError(
                f"cannot list the folder {self.path}: {error.strerror}; give a folder of images"
            ) from error
        paths = sorted((p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
        if not paths:
            videos = sum(p.suffix.lower() in VIDEO_SUFFIXES for p in entries)
            hint = f"it holds {videos} videos: give one of them" if videos else "give another"
            raise FoveateError(
                f"no image in the folder {self.path}, expected files ending in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}; {hint}"
            )
        named = [_NANOSECONDS.fullmatch(p.stem) for p in paths]
        if all(named):
            # Differences first: a nanosecond of this century does not fit a double.
            stamps_ns = [int(match[1]) for match in named if match]
            stamps_s = [(stamp - stamps_ns[0]) * 1e-9 for stamp in stamps_ns]
            if stamps_s[-1] > 0:
                fps = (len(paths) - 1) / stamps_s[-1]
        else:
            stamps_s = [index / fps for index in range(len(paths))]
        super().__init__(_Reader(paths, stamps_s, fps, max_side))
