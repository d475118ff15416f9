"""What all sources of frames have in common: facts known beforehand, one pass, an end.

A stream is its own iterator, like an open file: ``for frame in stream`` goes on where it stopped,
a ``with`` block closes it, and after that it is over. A file decodes ahead in a background thread
(`ReadAheadStream`), a camera waits for its next picture.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeVar

from foveate.streams.ahead import ReadAhead
from foveate.streams.frame import Frame

__all__ = ["FrameStream", "ReadAheadStream", "Source", "StreamInfo"]

_QUEUE_BYTES = 64 << 20  # decoded frames that may wait

Self = TypeVar("Self", bound="FrameStream")  # typing.Self from Python 3.11 on


@dataclass(frozen=True)
class StreamInfo:
    """What is known about a stream before reading it.

    Attributes
    ----------
    width, height
        Of every frame that will come, in pixels: upright, after `max_side`.
    fps
        Nominal (mean) rate in Hz, for display and for filling gaps in time; 30 when the source
        does not say. Use ``Frame.time_s`` for measuring.
    duration_s, frames
        As the source declares them, hence a hint; None when it does not (a camera never does).
    codec
        Name of the compression, e.g. ``h264``.
    rotation
        Degrees clockwise that were needed to turn the stored picture upright: 0, 90, 180, 270.
    has_audio
        Whether sound is there too (never decoded).
    metadata
        The container's own key/value text, keys in lower case; ``simulated_pulse`` among them
        says that the video is synthetic.
    """

    width: int
    height: int
    fps: float
    duration_s: float | None
    frames: int | None
    codec: str
    rotation: int = 0
    has_audio: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


class FrameStream(ABC):
    """Frames, once, in order; its own iterator."""

    @property
    @abstractmethod
    def info(self) -> StreamInfo:
        """Size, rate, length and origin, as the source declares them."""

    @property
    @abstractmethod
    def damaged(self) -> int:
        """Pictures left out so far, because there was nothing in them to use."""

    @abstractmethod
    def __next__(self) -> Frame:
        """The next frame; StopIteration at the end and after :meth:`close`."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the stream holds; may be repeated."""

    def __iter__(self: Self) -> Self:
        return self

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Source(Protocol):
    """What decodes the frames of a `ReadAheadStream`; owned by the background thread."""

    info: StreamInfo
    damaged: int

    def frames(self) -> Iterator[Frame]:
        """Every good picture."""

    def close(self) -> None:
        """Release the file; no thread runs any more."""


class ReadAheadStream(FrameStream):
    """A stream whose frames a background thread decodes while the caller works.

    The thread starts with the first frame that is asked for, and holds `source` but never this
    object: a stream that nobody holds any more is collected, and its thread ends. At most eight
    frames or about 64 MiB wait, whatever the length.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._running: list[ReadAhead[Frame]] = []
        self._finalizer = weakref.finalize(self, _shut, source, self._running)

    @property
    def info(self) -> StreamInfo:
        """Size, rate, length and origin, as the source declares them."""
        return self._source.info

    @property
    def damaged(self) -> int:
        """Pictures left out so far, the missing end of a cut-off file included.

        The background thread counts ahead of the caller; complete once the iteration has ended.
        """
        return self._source.damaged

    def __next__(self) -> Frame:
        """The next frame; StopIteration at the end and after :meth:`close`."""
        if not self._finalizer.alive:
            raise StopIteration
        if not self._running:
            waiting = _QUEUE_BYTES // max(1, self.info.width * self.info.height * 3)
            self._running.append(ReadAhead(self._source.frames(), max(1, min(8, waiting))))
        return next(self._running[0])

    def close(self) -> None:
        """End the background thread and release the file; may be repeated."""
        self._finalizer()


def _shut(source: Source, running: list[ReadAhead[Frame]]) -> None:
    """Stop the thread first: it is the one that uses the source."""
    for ahead in running:
        ahead.stop()
    source.close()
