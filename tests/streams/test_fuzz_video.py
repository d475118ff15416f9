"""Whatever the bytes: frames or one sentence, soon, in little memory.

The corruptions run in a child process, in which a watchdog ends (and fails) a file that takes
longer than ten seconds and a limit on address space fails a huge allocation; hypothesis draws the
corruptions, the child only reads.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

CHILD = """
import faulthandler, resource, sys
from foveate.errors import FoveateError
from foveate.streams.video import VideoStream

limit = 3 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.stdin:
    faulthandler.dump_traceback_later(10, exit=True)
    try:
        with VideoStream(line.strip()) as stream:
            last = -1.0
            for frame in stream:
                assert frame.time_s > last, (frame.time_s, last)
                last = frame.time_s
                assert frame.image.shape == (stream.info.height, stream.info.width, 3)
            answer = f"frames {stream.damaged}"
    except FoveateError as error:
        assert len(str(error).splitlines()) == 1
        answer = "refused"
    faulthandler.cancel_dump_traceback_later()
    print(answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""

CORRUPTIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "drop", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=6,
)


def corrupted(data: bytes, changes: list[tuple[str, float, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, where, value, length in changes:
        if not out:
            break
        at = int(where * len(out))
        if kind == "flip":
            out[at] ^= value
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = bytes([value]) * length
        elif kind == "zero":
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif kind == "drop":
            del out[at : at + length]
        else:
            out[at : at + length] = out[:length]
    return bytes(out)


def tiny(path: Path, codec: str, pix_fmt: str, **container_options: str) -> bytes:
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pix_fmt
        stream.codec_context.time_base = Fraction(1, 30)
        for i in range(12):
            image = np.full((32, 32, 3), i * 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


class Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.peak = 0

    def read(self, path: Path) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if not answer:
            assert self.process.stderr
            pytest.fail(f"the reader died: {self.process.stderr.read()[-3000:]}")
        self.peak = int(answer[-1]) * (1 if sys.platform == "darwin" else 1024)
        return answer[0]

    def close(self) -> str:
        _, errors = self.process.communicate(timeout=30)
        return errors


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    assert child.close() == ""
    assert child.process.returncode == 0


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.mp4", "libx264", "yuv420p", {"movflags": "faststart"}),
        ("a.avi", "mjpeg", "yuvj420p", {}),
        ("a.mkv", "ffv1", "bgr0", {}),
    ],
)
def test_corrupted(
    tmp_path: Path, child: Child, name: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    good = tiny(tmp_path / name, codec, pix_fmt, **options)
    assert child.read(tmp_path / name) == "frames"
    before, answers = child.peak, []
    bad = tmp_path / f"bad-{name}"

    @settings(
        deadline=None,
        max_examples=300 if name == "a.mp4" else 50,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=CORRUPTIONS)
    def run(changes: list[tuple[str, float, int, int]]) -> None:
        bad.write_bytes(corrupted(good, changes))
        answers.append(child.read(bad))

    run()
    assert set(answers) == {"frames", "refused"}  # both ways out were taken
    assert child.peak - before < 400 << 20


@settings(
    deadline=None,
    max_examples=60,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.binary(max_size=300), head=st.sampled_from(["", "ftyp", "RIFF", "ebml", "mpg"]))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: str) -> None:
    """In this process: short files are refused or read, nothing else."""
    from foveate.errors import FoveateError
    from foveate.streams.video import VideoStream

    heads = {
        "": b"",
        "ftyp": b"\0\0\0\x18ftypisom\0\0\0\0isomavc1",
        "RIFF": b"RIFF\x10\0\0\0AVI LIST",
        "ebml": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01",
        "mpg": b"\0\0\x01\xba\x44\0\x04\0\x04\x01",
    }
    path = tmp_path_factory.getbasetemp() / "random.mp4"
    path.write_bytes(heads[head] + data)
    try:
        with VideoStream(path) as stream:
            list(stream)
    except FoveateError:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 4 << 30
    assert os.path.exists(path)
