"""`CameraStream`: a live camera as a stream of frames.

A camera has no container and no end: a frame's time is the monotonic clock at the moment it
arrived, and a camera that stops answering ends the stream.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.streams.frame import Frame
from foveate.streams.stream import FrameStream, StreamInfo
from foveate.streams.video import MAX_PIXELS, StreamClock, fitted_size

__all__ = ["CameraStream", "Capture"]

_MAX_MISSES = 30  # reads without a picture, in a row, before the camera counts as gone


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`; anything alike can stand in for it."""

    def isOpened(self) -> bool:  # noqa: N802
        """Whether the device could be opened."""

    def read(self) -> tuple[bool, Any]:
        """Wait for a picture: whether there is one, and the BGR array."""

    def get(self, prop: int) -> float:
        """One property of the device."""

    def release(self) -> None:
        """Give the device back."""


def _open_capture(device: int) -> Capture:
    """Open a camera by OpenCV, without its chatter on the terminal."""
    if sys.platform == "linux" and not Path(f"/dev/video{device}").exists():
        raise FoveateError(_missing(device))
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture: Capture = cv2.VideoCapture(device)
    finally:
        cv2.utils.logging.setLogLevel(level)
    return capture


def _missing(device: int) -> str:
    return (
        f"no camera {device} on this machine; plug one in, close the programs that use it, "
        "or give a video file instead"
    )


class CameraStream(FrameStream):
    """Frames of a camera as they arrive; its own iterator, endless until the camera goes.

    Parameters
    ----------
    device
        Number of the camera, from 0.
    max_side
        Scale frames down (area averaging) to this longer side.
    capture
        An open capture to use in place of the device.
    clock
        Seconds, never going back.

    Raises
    ------
    FoveateError
        On opening only: there is no such camera, or it gives no picture.
    """

    def __init__(
        self,
        device: int = 0,
        max_side: int | None = None,
        *,
        capture: Capture | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if device < 0:
            raise FoveateError(f"camera {device} cannot be; cameras are counted from 0")
        self._capture = _open_capture(device) if capture is None else capture
        self._now = clock
        self._index = 0
        self._damaged = 0
        self._closed = False
        try:
            if not self._capture.isOpened():
                raise FoveateError(_missing(device))
            self._first = self._read()
            if self._first is None:
                raise FoveateError(
                    f"camera {device} opens but gives no picture; close the programs that use it "
                    "or plug it in again"
                )
        except BaseException:
            self.close()
            raise
        height, width = self._first[0].shape[:2]
        self._size = fitted_size(width, height, max_side)
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        fps = rate if 0.0 < rate <= 1000.0 else 30.0
        self._clock = StreamClock(fps)
        self._info = StreamInfo(
            width=self._size[0],
            height=self._size[1],
            fps=fps,
            duration_s=None,
            frames=None,
            codec="camera",
        )

    @property
    def info(self) -> StreamInfo:
        """Size and nominal rate; a camera has no length."""
        return self._info

    @property
    def damaged(self) -> int:
        """Reads that gave no usable picture so far."""
        return self._damaged

    def _read(self) -> tuple[npt.NDArray[np.uint8], float, int] | None:
        """The next BGR picture, when it came and its number; None when the camera is gone."""
        for _ in range(_MAX_MISSES):
            good, image = self._capture.read()
            now, index = self._now(), self._index
            self._index += 1
            if (
                good
                and isinstance(image, np.ndarray)
                and image.dtype == np.uint8
                and image.ndim == 3
                and image.shape[2] == 3
                and 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS
            ):
                return image, now, index
            self._damaged += 1
        return None

    def __next__(self) -> Frame:
        """Wait for the next frame; StopIteration when the camera is gone or closed."""
        if self._closed:
            raise StopIteration
        taken, self._first = self._first or self._read(), None
        if taken is None:
            raise StopIteration
        image, now, index = taken
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        return Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), self._clock(now), index)

    def close(self) -> None:
        """Give the camera back; may be repeated."""
        if not self._closed:
            self._closed = True
            self._capture.release()
