"""What every stream promises, on a source made of arrays."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from foveate.streams.camera import CameraStream
from foveate.streams.frame import Frame
from foveate.streams.images import ImageStream
from foveate.streams.stream import FrameStream, ReadAheadStream, StreamInfo
from foveate.streams.video import VideoStream


class Numbers:
    """Pictures of one colour: their number."""

    def __init__(self, count: int, width: int = 4, height: int = 2) -> None:
        self.info = StreamInfo(width, height, 10.0, count / 10, count, "numbers")
        self.damaged = 0
        self.made = 0
        self.closed = 0
        self.thread: threading.Thread | None = None

    def frames(self) -> Iterator[Frame]:
        self.thread = threading.current_thread()
        for index in range(self.info.frames or 0):
            self.made += 1
            self.damaged += index % 2
            yield Frame(np.full((2, 4, 3), index % 256, np.uint8), index / 10, index)

    def close(self) -> None:
        assert self.thread is None or not self.thread.is_alive()  # nobody uses the source any more
        self.closed += 1


def test_all_sources_are_streams() -> None:
    assert issubclass(VideoStream, ReadAheadStream)
    assert issubclass(ImageStream, ReadAheadStream)
    assert issubclass(CameraStream, FrameStream)
    with pytest.raises(TypeError, match="abstract"):
        FrameStream()  # type: ignore[abstract]


def test_frames_come_once_in_order_and_the_block_closes() -> None:
    source = Numbers(20)
    with ReadAheadStream(source) as stream:
        assert stream.info is source.info
        first = [next(stream) for _ in range(3)]
        rest = list(stream)  # goes on where it stopped
        assert list(stream) == []
        assert stream.damaged == 10
    assert [frame.index for frame in first + rest] == list(range(20))
    assert source.thread is not threading.main_thread()
    assert source.closed == 1
    stream.close()
    assert source.closed == 1


def test_a_closed_stream_is_over_and_one_never_read_starts_no_thread() -> None:
    source = Numbers(1000)
    stream = ReadAheadStream(source)
    next(stream)
    stream.close()
    assert next(stream, None) is None
    unread = Numbers(5)
    with ReadAheadStream(unread):
        pass
    assert unread.thread is None
    assert unread.closed == 1


@pytest.mark.parametrize(("side", "waiting"), [(4, 8), (2400, 3), (6000, 1)])
def test_at_most_eight_frames_or_64_mib_wait(side: int, waiting: int) -> None:
    """64 MiB hold 3 frames of 2400 x 2400 RGB (16.5 MiB) and not one of 6000 x 6000."""
    source = Numbers(100, side, side)
    with ReadAheadStream(source) as stream:
        next(stream)
        deadline = time.monotonic() + 10
        while source.made < 1 + waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert source.made == 1 + waiting


def test_a_stream_that_nobody_holds_ends_its_thread() -> None:
    source = Numbers(1000)
    stream = ReadAheadStream(source)
    next(stream)
    thread = source.thread
    assert thread is not None
    assert thread.is_alive()
    del stream
    gc.collect()
    assert not thread.is_alive()
    assert source.closed == 1


def test_an_exception_in_the_block_closes_too() -> None:
    source = Numbers(10)

    def fail_half_way() -> None:
        with ReadAheadStream(source) as stream:
            next(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert source.closed == 1
