"""`VideoWriter`: frames with their own times to a video file, whole or not at all.

Three codecs, for two purposes. To be looked at: ``h264`` (High profile, yuv420p, index in front,
so that every browser plays it). To be measured from, without loss: ``ffv1`` (compressed) and
``rawvideo`` (as it is), both RGB to the last bit.

Time is kept as given: a frame at t seconds gets the stamp round(90000 t), counted from the first
frame, so a varying rate survives. AVI cannot store stamps; it takes equidistant frames only.

``h264`` is YUV by BT.709 in limited range, and tagged so, because players guess when it is not:

    Y = 0.2126 R + 0.7152 G + 0.0722 B.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.streams.video import MAX_PIXELS

__all__ = ["VideoWriter"]

_TICKS = 90_000  # per second: the MPEG clock; 1/24, 1/25, 1/30 s and 1/1000 s are whole numbers
_CONTAINERS: dict[str, tuple[str, ...]] = {
    "h264": (".mp4", ".mov", ".mkv"),
    "ffv1": (".mkv", ".avi"),
    "rawvideo": (".avi",),
}
_EVERYDAY_CRF = 18
_BITS_PER_PIXEL = 0.2  # bound of the h264 rate; a 640x480 clip at 30 Hz stays below 2 Mbit/s
_BT709 = 1  # the same number in AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic


def _available(encoder: str) -> bool:
    try:
        av.Codec(encoder, "w")
    except (av.FFmpegError, ValueError):  # UnknownCodecError is a ValueError
        return False
    return True


class VideoWriter:
    """Writes ``(H, W, 3)`` RGB uint8 images to `path`.

    Use it in a ``with`` block: leaving the block completes the file; an exception in it leaves
    nothing behind and an older file as it was.

    Parameters
    ----------
    path
        ``.mp4``, ``.mov`` or ``.mkv`` for h264, ``.mkv`` or ``.avi`` for ffv1, ``.avi`` for
        rawvideo. Matroska rounds times to milliseconds.
    width, height
        Of the images, in pixels. h264 needs even sizes: an odd one is made even by repeating the
        last column or row.
    fps
        Nominal rate in Hz. None: every :meth:`write` must give a time.
    codec
        ``h264`` (lossy), ``ffv1`` or ``rawvideo`` (lossless RGB).
    crf
        Constant rate factor of h264, 0 (best) to 51. A pulse is a swing of half a code value over
        a minute of video: from about 18 on the encoder takes it for noise and removes it.
    metadata
        Text to store in the container, e.g. ``{"simulated_pulse": "true"}``; read back in
        ``VideoStream.info.metadata`` with keys in lower case. In AVI, which knows a fixed list of
        keys only, it becomes one JSON comment.

    Attributes
    ----------
    encoder
        Name of the libav encoder in use.
    note
        None, or a sentence on what could not be done as asked (no H.264 encoder: MPEG-4 instead).
    frames
        Images written so far.

    Raises
    ------
    FoveateError
        Name, size, rate and codec do not go together, or the place cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float | None = None,
        *,
        codec: Literal["h264", "ffv1", "rawvideo"] = "h264",
        crf: int = _EVERYDAY_CRF,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.width, self.height, self.fps = width, height, fps
        self.frames = 0
        self.note: str | None = None
        self._avi = self.path.suffix.lower() == ".avi"
        self._crf = crf
        self._check(codec)
        self.encoder: str = codec
        if codec == "h264":
            self.encoder = "libx264" if _available("libx264") else "mpeg4"
            if self.encoder == "mpeg4":
                self.note = (
                    "no H.264 encoder here (libx264), wrote MPEG-4 Part 2; browsers do not play it"
                )
        self._first_s: float | None = None
        self._last_pts = -1
        self._scaler = VideoReformatter()
        self._todo = contextlib.ExitStack()
        self._temporary = self._todo.enter_context(write_whole(self.path))
        try:
            self._open({str(k): str(v) for k, v in (metadata or {}).items()})
        except BaseException as error:
            self._todo.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, av.FFmpegError):
                raise FoveateError(f"cannot write the video {self.path}: {error}") from error
            raise

    def _check(self, codec: str) -> None:
        if not 0 <= self._crf <= 51:
            raise FoveateError(f"cannot write {self.path}: crf is {self._crf}, expected 0 to 51")
        if codec not in _CONTAINERS:
            raise FoveateError(f"no codec {codec!r}; expected {', '.join(_CONTAINERS)}")
        if self.path.suffix.lower() not in _CONTAINERS[codec]:
            raise FoveateError(
                f"cannot write {codec} to {self.path}: the name must end in "
                f"{' or '.join(_CONTAINERS[codec])}"
            )
        if min(self.width, self.height) < 1 or self.width * self.height > MAX_PIXELS:
            raise FoveateError(
                f"cannot write a video of {self.width}x{self.height} pixels; expected 1x1 to "
                f"{MAX_PIXELS} pixels in all"
            )
        if self.fps is not None and not 0.0 < self.fps <= 1000.0:
            raise FoveateError(f"fps is {self.fps}, expected a rate above 0 and up to 1000 Hz")
        if self._avi and self.fps is None:
            raise FoveateError(
                f"cannot write {self.path} without fps: AVI stores a rate and no time stamps; "
                "give fps or use .mkv"
            )

    def _open(self, metadata: dict[str, str]) -> None:
        muxing = (
            {}
            if self.path.suffix.lower() in (".mkv", ".avi")
            else {"movflags": "+faststart+use_metadata_tags"}
        )
        self._container: Any = av.open(str(self._temporary), "w", options=muxing)
        self._todo.callback(self._container.close)
        rate = Fraction(self.fps or 30).limit_denominator(1001)
        lossy = self.encoder in ("libx264", "mpeg4")
        options: dict[str, str] = {}
        if lossy:
            # MPEG-4 has 16 bits for ticks per second, so it cannot count in 1/90000.
            self._tick = Fraction(1, _TICKS if self.encoder == "libx264" else 30_000)
            if self._crf >= _EVERYDAY_CRF:
                bound = round(_BITS_PER_PIXEL * self.width * self.height * float(rate))
                bound = max(500_000, bound)
                options = {"maxrate": str(bound), "bufsize": str(2 * bound)}
            elif self.encoder == "libx264":
                # Whoever asks for quality wants the faint changes too, which the encoder's eye
                # for what people notice would smooth away; the size is not bounded then.
                options = {"tune": "grain"}
            if self.encoder == "libx264":
                options |= {"crf": str(self._crf), "preset": "veryfast", "profile": "high"}
            else:
                options |= {"qscale": "3", "flags": "+qscale"}
        elif self._avi:
            self._tick = 1 / rate
        else:
            self._tick = Fraction(1, _TICKS)
        stream = self._container.add_stream(self.encoder, rate=rate, options=options)
        stream.width = self.width + (self.width % 2 if lossy else 0)
        stream.height = self.height + (self.height % 2 if lossy else 0)
        # The four-byte layouts hold RGB unchanged in containers that know no three-byte one.
        stream.pix_fmt = "yuv420p" if lossy else {"ffv1": "bgr0", "rawvideo": "bgr24"}[self.encoder]
        codec = stream.codec_context
        codec.time_base = self._tick
        stream.time_base = self._tick
        if lossy:
            codec.color_range = 1  # AVCOL_RANGE_MPEG
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        self._stream, self._lossy = stream, lossy
        if metadata:
            self._container.metadata.update(
                {"comment": json.dumps(metadata)} if self._avi else metadata
            )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._todo.__exit__(kind, error, trace)

    def write(self, image: npt.NDArray[np.uint8], time_s: float | None = None) -> None:
        """Append one image.

        Parameters
        ----------
        image
            ``(H, W, 3)`` uint8 RGB of the size given at opening.
        time_s
            When it was taken, in seconds, later than the image before; the first may be at any
            time and becomes 0. None: the number of the image / fps.

        Raises
        ------
        FoveateError
            Wrong shape or type, a time that does not increase, or (AVI) is not number / fps.
        """
        shape = (self.height, self.width, 3)
        if image.shape != shape or image.dtype != np.uint8:
            raise FoveateError(
                f"image {self.frames} for {self.path} is {image.dtype} {image.shape}, "
                f"expected uint8 {shape}"
            )
        if time_s is None:
            if self.fps is None:
                raise FoveateError(
                    f"image {self.frames} for {self.path} has no time; give time_s or open with fps"
                )
            time_s = (self._first_s or 0.0) + self.frames / self.fps
        if not math.isfinite(time_s):
            raise FoveateError(f"image {self.frames} for {self.path} has the time {time_s}")
        if self._first_s is None:
            self._first_s = time_s
        pts = round((time_s - self._first_s) / self._tick)
        if pts <= self._last_pts:
            raise FoveateError(
                f"image {self.frames} for {self.path} is at {time_s} s, not later than the image "
                "before; times must increase"
            )
        if self._avi and pts != self.frames:
            raise FoveateError(
                f"image {self.frames} for {self.path} is at {time_s} s; AVI stores no time stamps "
                f"and takes images at exactly {self.fps} Hz only; use .mkv"
            )
        if self._lossy and (self.width % 2 or self.height % 2):
            image = np.pad(image, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if self._lossy:
            picture = self._scaler.reformat(
                picture,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
        else:
            picture = self._scaler.reformat(picture, format=self._stream.pix_fmt)
        picture.pts, picture.time_base = pts, self._tick
        self._last_pts = pts
        self._encode(picture)
        self.frames += 1

    def _encode(self, picture: Any | None) -> None:
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise FoveateError(
                f"cannot write the video {self.path}: {error}; is the disk full?"
            ) from error

    def close(self) -> Path:
        """Complete the file and put it in place; the writer is spent afterwards.

        Raises
        ------
        FoveateError
            Not one image was written; then there is no file.
        """
        try:
            if self.frames == 0:
                raise FoveateError(f"no image was written to {self.path}; a video needs one")
            self._encode(None)
        except BaseException as error:
            self._todo.__exit__(type(error), error, error.__traceback__)
            raise
        self._todo.close()
        return self.path
