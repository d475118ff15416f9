"""`VideoStream`: a video file as a sequence of upright RGB frames with true times.

Three things separate a measurement from a mere playback, and all three are decided here:

*When.* Phones and webcams record at a varying rate, so a frame's time comes from the container,

    time_s = pts * time_base - (the same of the first frame),

never from index / fps: a pulse of 60 bpm read with a clock 3 % wrong is 61.8 bpm. Files lie
about time as well; :class:`StreamClock` says what is believed.

*Which way up.* A phone held upright stores a lying picture and a display matrix. The matrix is
applied, so that a face is always upright.

*What is missing.* Damaged pictures are left out, counted (:attr:`VideoStream.damaged`) and keep
their number; a video cut off in the middle is read as far as it goes. Only a file of which
nothing can be used is an error, and it is one before any work starts.

Decoding runs ahead in a background thread, so it overlaps with whatever the caller computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from foveate.errors import FoveateError
from foveate.streams.frame import Frame
from foveate.streams.stream import FrameStream, ReadAheadStream, StreamInfo

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "VIDEO_SUFFIXES",
    "StreamClock",
    "VideoStream",
    "fitted_size",
    "list_videos",
    "open_stream",
]

MAX_PIXELS = 8192 * 8192
"""Larger pictures are refused before memory is taken for them."""

MIN_SIDE = 16
"""Smallest width and height that :func:`open_stream` passes on, in pixels."""

_VIDEO_ENDINGS = "mp4 m4v mov avi mkv webm mpg mpeg ts mts m2ts wmv asf flv ogv 3gp mxf"
_IMAGE_ENDINGS = "png jpg jpeg bmp tif tiff webp ppm pgm"
VIDEO_SUFFIXES = frozenset(f".{ending}" for ending in _VIDEO_ENDINGS.split())
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _IMAGE_ENDINGS.split())

# Containers that hold pictures. Left out on purpose: playlists (hls, dash, concat), which name
# other files and hosts, and demuxers that make a "video" of any text (tty) or image.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,m4v,h264,hevc,vvc,av1,obu,ivf,"
    "flv,asf,ogg,gif,yuv4mpegpipe,mxf,nut,dv,mjpeg,rm,wtv,vc1,gxf,cavsvideo,dirac,nuv,nsv,swf"
)
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": _CONTAINERS,
    "max_pixels": str(MAX_PIXELS),
}
_MAX_READ_ERRORS = 16  # in a row, before the rest of the file is given up
_FALLBACK_FPS = 30.0
# From PyAV 17 on, conversion starts threads of its own unless told not to: on a machine whose
# cores are busy with the caller's work that halves the rate. Before, there was no such option.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC


class StreamClock:
    """Seconds since the first frame, strictly increasing, from stamps that may be wrong.

    A stamp is believed unless it is

    * missing: the frame is one nominal period after the last (the first frame is at 0);
    * up to a second early, or equal (a duplicate, a reordering mistake): the frame comes a
      thousandth of a period after the last, so that the stamps that follow stay true;
    * more than a second back, or more than a day ahead (a concatenated or broken file): time goes
      on one period after the last, and later stamps are counted from this one.
    """

    _BACK_S = 1.0
    _AHEAD_S = 86400.0

    def __init__(self, fps: float) -> None:
        self._period = 1.0 / fps
        self._last: float | None = None
        self._origin: float | None = None

    def __call__(self, stamp_s: float | None) -> float:
        """Time of the next frame, whose container time stamp is `stamp_s` (None: missing)."""
        expected = 0.0 if self._last is None else self._last + self._period
        if stamp_s is None:
            time_s = expected
        else:
            if self._origin is None:
                self._origin = stamp_s - expected
            time_s = stamp_s - self._origin
            if self._last is not None and not self._last < time_s <= self._last + self._AHEAD_S:
                if self._last - self._BACK_S <= time_s <= self._last:
                    time_s = self._last + 1e-3 * self._period
                else:
                    time_s = expected
                    self._origin = stamp_s - time_s
        self._last = time_s
        return time_s


def fitted_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """``(width, height)`` scaled down, never up, to a longer side of at most `max_side`."""
    if max_side is None or max(width, height) <= max_side:
        return width, height
    if max_side < 1:
        raise FoveateError(f"max_side is {max_side}, expected at least 1 pixel")
    scale = max_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


class _Orientation:
    """The quarter turn and mirroring of a display matrix.

    The matrix (a b u; c d v; x y w) moves a stored point (x, y) to (a x + c y, b x + d y) on the
    screen, y pointing down. All eight orientations are: swap the axes or not, then flip each
    axis or not.
    """

    def __init__(self, matrix: npt.NDArray[np.int32] | None) -> None:
        a, b, c, d = (1, 0, 0, 1) if matrix is None else (int(matrix[i]) for i in (0, 1, 3, 4))
        self.swap = abs(b) + abs(c) > abs(a) + abs(d)
        self.flip_x = (c if self.swap else a) < 0
        self.flip_y = (b if self.swap else d) < 0

    @property
    def rotation(self) -> int:
        """Degrees clockwise, mirroring aside."""
        if self.swap:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn ``(H, W, 3)`` upright."""
        if not (self.swap or self.flip_x or self.flip_y):
            return image
        import cv2  # several times faster than numpy at moving three-byte pixels

        if self.swap:
            image = cv2.transpose(image)
        if self.flip_x or self.flip_y:
            image = cv2.flip(image, -1 if self.flip_x and self.flip_y else int(self.flip_x))
        return image


def _orientation(picture: Any) -> _Orientation:
    """Orientation that a decoded `av.VideoFrame` asks for."""
    for part in picture.side_data:
        if part.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(part), dtype=np.int32)
            return _Orientation(matrix if len(matrix) == 9 else None)
    return _Orientation(None)


def _is_cover(stream: Any) -> bool:
    """Whether a picture stream is only the cover of a sound file."""
    return bool(int(stream.disposition) & _ATTACHED_PICTURE)


def _check_file(path: Path) -> None:
    """Say what is wrong with `path` as a file, before libav sees it."""
    try:
        if not path.exists():
            raise FoveateError(f"no video at {path}; check the name")
        if path.is_dir():
            raise FoveateError(
                f"{path} is a folder, expected one video file; name a file inside it"
            )
        if not path.is_file():
            raise FoveateError(f"{path} is not a regular file, expected a video file")
        with path.open("rb") as file:
            if not file.read(1):
                raise FoveateError(
                    f"{path} is empty (0 bytes), expected a video; copy or record it again"
                )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FoveateError(
            f"cannot read the video {path}: {reason}; check its name and permissions"
        ) from error


def _why_not_a_video(path: Path) -> str:
    """The sentence for a file that libav does not recognise."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return f"{path} is a single image, expected a video; give the folder of images instead"
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return (
            f"{path} has no index (moov) or a damaged one, so nothing of it can be read: the "
            "recording was probably cut off; copy it again or repair it from its source"
        )
    return (
        f"{path} is not a video that can be read; expected a file such as .mp4, .mov, .avi, "
        ".mkv, .webm or .mpg"
    )


def _metadata(container: Any) -> dict[str, str]:
    """Key/value text of a container; see `VideoWriter` for the comment that AVI needs."""
    metadata = {str(key).lower(): str(value) for key, value in container.metadata.items()}
    comment = metadata.get("comment", "")
    if comment.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            metadata.update({str(key).lower(): str(v) for key, v in json.loads(comment).items()})
    return metadata


class _Decoder:
    """The container and the loop over its pictures; owned by the background thread while it runs.

    Kept apart from :class:`VideoStream` so that the thread holds no reference to that: a stream
    that nobody holds any more is collected, and its thread ends.
    """

    def __init__(self, path: Path, max_side: int | None) -> None:
        _check_file(path)
        self.damaged = 0
        self._index = 0
        self._scaler = VideoReformatter()  # one for all frames: setting it up costs more than a use
        try:
            # "file:" keeps a name such as "http:..." or "concat:..." from being a protocol.
            self._container: Any = av.open(
                f"file:{os.path.abspath(path)}", options=_OPEN_OPTIONS, metadata_errors="replace"
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise FoveateError(_why_not_a_video(path)) from error
        try:
            self._start(path, max_side)
        except BaseException:
            self.close()
            raise

    def _start(self, path: Path, max_side: int | None) -> None:
        streams = [s for s in self._container.streams.video if not _is_cover(s)]
        has_audio = len(self._container.streams.audio) > 0
        if not streams:
            if not has_audio:
                raise FoveateError(_why_not_a_video(path))
            raise FoveateError(f"{path} holds only sound, expected a video with pictures")
        self._stream = stream = streams[0]
        codec = stream.codec_context
        if codec is None:
            raise FoveateError(
                f"{path} is compressed in a way that no decoder here knows, or its header is "
                "damaged; copy it again or convert it to H.264"
            )
        if codec.width * codec.height > MAX_PIXELS:
            raise FoveateError(
                f"{path} has {codec.width}x{codec.height} pixels, expected at most "
                f"{MAX_PIXELS} in all (8192x8192); scale it down first"
            )
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        # Not "FRAME": there an error surfaces several packets late and takes good pictures with
        # it; it would be a fifth faster, but this thread runs beside the caller's work anyway.
        stream.thread_type = "SLICE"
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        fps = rate if 0.0 < rate <= 1000.0 else _FALLBACK_FPS
        self._clock = StreamClock(fps)
        self._pictures = self._decode()
        self._first = next(self._pictures, None)
        if self._first is None:
            if codec.width == 0:  # so libav leaves it when a header claims more than max_pixels
                raise FoveateError(
                    f"{path} gives no picture size or one above 8192x8192 pixels, the most that "
                    "is read; scale it down, or copy it again if it is damaged"
                )
            raise FoveateError(
                f"{path} holds no picture that can be decoded ({codec.name}, {self.damaged} "
                "damaged); copy or record it again"
            )
        self._orientation = _orientation(self._first[1])
        self._size = fitted_size(self._first[1].width, self._first[1].height, max_side)
        width, height = self._size[::-1] if self._orientation.swap else self._size
        duration = (
            float(stream.duration * stream.time_base)
            if stream.duration
            else (self._container.duration or 0) / 1e6
        )
        self.info = StreamInfo(
            width=width,
            height=height,
            fps=fps,
            duration_s=duration if duration > 0 else None,
            frames=stream.frames or None,
            codec=codec.name,
            rotation=self._orientation.rotation,
            has_audio=has_audio,
            metadata=_metadata(self._container),
        )

    def _lose(self) -> None:
        """One picture is damaged: count it, and let it keep its number."""
        self.damaged += 1
        self._index += 1

    def _decode(self) -> Iterator[tuple[int, Any]]:
        """``(index, av.VideoFrame)`` of every good picture; never raises for bad data."""
        packets = self._container.demux(self._stream)
        read_errors = 0
        missing = self._stream.frames  # 0 where the container does not declare a number
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                if read_errors == 0:
                    self._lose()
                    missing -= 1
                read_errors += 1
                if read_errors < _MAX_READ_ERRORS:
                    packets = self._container.demux(self._stream)
                    continue
                packet = None
            else:
                if packet is None:  # the demuxer's own last packet has emptied the decoder
                    break
                read_errors = 0
                missing -= packet.size > 0
            try:
                pictures = self._stream.codec_context.decode(packet)
            except EOFError:  # only after a decoder's end; nothing is lost
                pictures = []
            except av.FFmpegError:
                self._lose()
                pictures = []
            for picture in pictures:
                if picture.is_corrupt:
                    self._lose()
                else:
                    yield self._index, picture
                    self._index += 1
            if packet is None:
                break
        self.damaged += max(0, missing)  # declared and not there: the file was cut off

    def frames(self) -> Iterator[Frame]:
        """Every good picture, converted, turned and timed."""
        first, self._first = self._first, None
        if first is not None:
            yield from self._finish(*first)
        for index, picture in self._pictures:
            yield from self._finish(index, picture)

    def _finish(self, index: int, picture: Any) -> Iterator[Frame]:
        width, height = self._size
        scaled = (picture.width, picture.height) != self._size
        try:
            rgb = self._scaler.reformat(
                picture,
                width=width,
                height=height,
                format="rgb24",
                interpolation=Interpolation.AREA if scaled else Interpolation.BILINEAR,
                **_ONE_THREAD,
            ).to_ndarray()
        except (av.FFmpegError, ValueError):  # a pixel format that nothing can convert
            self.damaged += 1
            return
        # Formats without presentation stamps (AVI) have decoding stamps in the same order.
        stamp = picture.pts if picture.pts is not None else picture.dts
        time_base = picture.time_base or self._stream.time_base
        known = stamp is not None and time_base is not None
        yield Frame(
            image=self._orientation.apply(np.ascontiguousarray(rgb)),
            time_s=self._clock(float(stamp * time_base) if known else None),
            index=index,
        )

    def close(self) -> None:
        self._container.close()


class VideoStream(ReadAheadStream):
    """The frames of a video file, once, in order; its own iterator, like an open file.

    Parameters
    ----------
    path
        Any container and codec that libav reads (mp4, mov, avi, mkv, webm, mpg, ...).
    max_side
        Scale frames down (area averaging) to this longer side; None keeps every pixel. A 4K
        recording costs eight times a 720p one in conversion alone and measures no better.

    Raises
    ------
    FoveateError
        On opening only: the file is missing, unreadable, no video, without pictures, larger than
        8192 x 8192 pixels in all, or not one of its pictures can be decoded.

    Notes
    -----
    Every frame has the size in :attr:`info`; one that changes size in mid-stream is scaled to it.
    """

    def __init__(self, path: str | Path, max_side: int | None = None) -> None:
        self.path = Path(path)
        super().__init__(_Decoder(self.path, max_side))


def list_videos(directory: str | Path) -> list[Path]:
    """Video files directly inside `directory`, by name ending, sorted by name.

    Raises
    ------
    FoveateError
        It is no folder, cannot be read, or holds none.
    """
    directory = Path(directory)
    try:
        videos = sorted(
            path
            for path in directory.iterdir()
            if path.suffix.lower() in VIDEO_SUFFIXES
            and path.is_file()
            and not path.name.startswith(".")
        )
    except OSError as error:
        raise FoveateError(
            f"cannot list the folder {directory}: {error.strerror}; give a folder of videos"
        ) from error
    if not videos:
        raise FoveateError(
            f"no video in {directory}; expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return videos


def open_stream(
    source: str | Path | int, fps: float = 30.0, max_side: int | None = None
) -> FrameStream:
    """Open whatever `source` is as a stream of frames.

    Parameters
    ----------
    source
        A video file, a folder of images, or a camera: its number or ``"camera:<number>"``.
    fps
        Rate in Hz of a folder of images whose names carry no time; not used otherwise.
    max_side
        Scale frames down to this longer side.

    Raises
    ------
    FoveateError
        Nothing usable there, or frames smaller than 16 x 16 pixels.
    """
    stream: FrameStream
    camera = re.fullmatch(r"camera:(\d{1,4})", str(source))
    if camera:
        source = int(camera[1])
    if isinstance(source, int):
        from foveate.streams.camera import CameraStream

        stream = CameraStream(source, max_side)
    elif str(source).startswith("camera:"):
        raise FoveateError(f"{source} names no camera; expected camera:0, camera:1, ...")
    elif os.path.isdir(source):
        from foveate.streams.images import ImageStream

        stream = ImageStream(source, fps, max_side)
    else:
        stream = VideoStream(source, max_side)
    if min(stream.info.width, stream.info.height) < MIN_SIDE:
        size = f"{stream.info.width}x{stream.info.height}"
        stream.close()
        raise FoveateError(
            f"{source} has {size} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}; "
            "record or export it larger"
        )
    return stream
