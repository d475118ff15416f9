"""What is written is what is read, by PyAV, ffprobe and a browser; or nothing is written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.streams import writer as writer_module
from foveate.streams.video import VideoStream
from foveate.streams.writer import VideoWriter


def noise(count: int, width: int, height: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """By PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [f.time for f in frames]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "ffv1"), ("a.avi", "ffv1"), ("a.avi", "rawvideo")]
)
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (17, 16)])
def test_lossless_is_lossless(tmp_path: Path, name: str, codec: str, size: tuple[int, int]) -> None:
    images = noise(6, *size)
    with VideoWriter(tmp_path / name, *size, 25.0, codec=codec) as writer:  # type: ignore[arg-type]
        for image in images:
            writer.write(image)
    got, times = decode(tmp_path / name)
    assert all(np.array_equal(a, b) for a, b in zip(got, images, strict=True))
    assert np.allclose(times, np.arange(6) / 25, atol=6e-4)
    with VideoStream(tmp_path / name) as stream:
        assert all(np.array_equal(f.image, b) for f, b in zip(stream, images, strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_varying_rate_survives(tmp_path: Path, suffix: str) -> None:
    times = 3.0 + np.cumsum(np.random.default_rng(0).uniform(0.004, 0.3, 40))
    path = tmp_path / f"a{suffix}"
    with VideoWriter(path, 32, 32) as writer:
        for number, time_s in enumerate(times):
            writer.write(np.full((32, 32, 3), number * 6, np.uint8), float(time_s))
    images, got = decode(path)
    assert np.abs(np.array(got) - (times - times[0])).max() < (6e-4 if suffix == ".mkv" else 1e-5)
    assert [round(i.mean() / 6) for i in images] == list(range(40))
    with VideoStream(path) as stream:
        assert len(list(stream)) == 40
        assert stream.damaged == 0


@pytest.mark.parametrize("size", [(63, 47), (64, 47), (63, 48), (1, 1)])
def test_odd_sizes_are_padded(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    with VideoWriter(tmp_path / "a.mp4", *size, 30.0) as writer:
        writer.write(image)
    images, _ = decode(tmp_path / "a.mp4")
    assert images[0].shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    assert np.abs(images[0].astype(int) - 90).max() <= 3  # no black border


def test_colours_are_tagged_and_right(tmp_path: Path) -> None:
    """BT.709 by hand: limited-range luma of pure red, green, blue is 63, 173, 32."""
    image = np.zeros((48, 96, 3), np.uint8)
    for i in range(3):
        image[:, i * 32 : (i + 1) * 32, i] = 255
    with VideoWriter(tmp_path / "a.mp4", 96, 48, 30.0) as writer:
        writer.write(image)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert "High" in stream.codec_context.profile
    assert (frame.colorspace, frame.color_range) == (1, 1)
    luma = frame.to_ndarray()[:48, :96][24, [16, 48, 80]]
    matrix = np.array([0.2126, 0.7152, 0.0722])
    assert np.abs(luma - (16 + 219 * matrix)).max() <= 2
    with VideoStream(tmp_path / "a.mp4") as video:
        got = next(video).image[24, [16, 48, 80]].astype(int)
    assert np.abs(got - 255 * np.eye(3)).max() <= 8


def test_mp4_can_be_streamed(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 48, 30.0) as writer:
        for image in noise(10, 64, 48):
            writer.write(image)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_bit_rate_is_bounded(tmp_path: Path) -> None:
    """Pure noise is the worst case: 0.2 bits per pixel, and the buffer of two seconds."""
    with VideoWriter(tmp_path / "a.mp4", 320, 240, 30.0) as writer:
        for image in noise(12, 320, 240) * 10:
            writer.write(image)
    bound = max(500_000, 0.2 * 320 * 240 * 30)
    assert (tmp_path / "a.mp4").stat().st_size * 8 < bound * (4 + 2) * 1.2


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "h264"), ("a.mov", "h264"), ("a.mkv", "ffv1"), ("a.avi", "rawvideo")],
)
def test_metadata_comes_back(tmp_path: Path, name: str, codec: str) -> None:
    metadata = {"simulated_pulse": "true", "generator": 'é "x" {}; 1=2'}
    with VideoWriter(tmp_path / name, 32, 32, 30.0, codec=codec, metadata=metadata) as writer:  # type: ignore[arg-type]
        writer.write(noise(1, 32, 32)[0])
    with VideoStream(tmp_path / name) as stream:
        assert metadata.items() <= dict(stream.info.metadata).items()


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffmpeg is not installed")
def test_others_see_the_metadata_too(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "h264"), ("a.avi", "rawvideo")):
        path = tmp_path / name
        with VideoWriter(path, 32, 32, 30.0, codec=codec, metadata={"simulated_pulse": "yes"}) as w:  # type: ignore[arg-type]
            w.write(noise(1, 32, 32)[0])
        shown = subprocess.run(
            ["ffprobe", "-v", "error", "-show_format", path], capture_output=True, check=True
        )
        assert b"simulated_pulse" in shown.stdout


def test_an_exception_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"

    def fail() -> None:
        with VideoWriter(path, 32, 32, 30.0) as writer:
            for image in noise(50, 32, 32):
                writer.write(image)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_without_images_is_none(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 32, 32, 30.0)
    with pytest.raises(FoveateError, match="no image"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.txt", {}, "must end in"),
        ("a.avi", {"codec": "h264"}, "must end in"),
        ("a.mp4", {"codec": "ffv1"}, "must end in"),
        ("a.mp4", {"codec": "x"}, "no codec"),
        ("a.mp4", {"width": 0}, "0x32"),
        ("a.mp4", {"width": 10**5, "height": 10**5}, "100000x100000"),
        ("a.mp4", {"fps": 0.0}, "fps"),
        ("a.mp4", {"fps": float("nan")}, "fps"),
        ("a.avi", {"codec": "rawvideo"}, "without fps"),
        ("file/a.mp4", {}, "cannot write"),
        ("folder.mp4", {}, "folder"),
    ],
)
def test_wrong_requests(tmp_path: Path, name: str, options: dict, says: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FoveateError, match=says) as caught:
        VideoWriter(tmp_path / name, **{"width": 32, "height": 32, **options})
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("image", "time_s", "says"),
    [
        (np.zeros((32, 31, 3), np.uint8), 1.0, "expected uint8"),
        (np.zeros((32, 32), np.uint8), 1.0, "expected uint8"),
        (np.zeros((32, 32, 3)), 1.0, "float64"),
        (np.zeros((32, 32, 3), np.uint8), 0.0, "must increase"),
        (np.zeros((32, 32, 3), np.uint8), -1.0, "must increase"),
        (np.zeros((32, 32, 3), np.uint8), float("nan"), "nan"),
        (np.zeros((32, 32, 3), np.uint8), None, "has no time"),
    ],
)
def test_wrong_images(tmp_path: Path, image: np.ndarray, time_s: float | None, says: str) -> None:
    with VideoWriter(tmp_path / "a.mp4", 32, 32) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8), 0.0)
        with pytest.raises(FoveateError, match=says):
            writer.write(image, time_s)
        writer.write(np.zeros((32, 32, 3), np.uint8), 2.0)
    assert decode(tmp_path / "a.mp4")[1] == [0.0, 2.0]


def test_avi_takes_no_varying_rate(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    with VideoWriter(tmp_path / "a.avi", 32, 32, 30.0, codec="rawvideo") as writer:
        writer.write(image, 10.0)
        with pytest.raises(FoveateError, match="AVI"):
            writer.write(image, 10.2)
        writer.write(image, 10.0 + 1 / 30)


def test_without_h264_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_available", lambda encoder: False)
    images = [np.full((48, 64, 3), 8 * i, np.uint8) for i in range(20)]
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 20))
    with VideoWriter(tmp_path / "a.mp4", 64, 48) as writer:
        assert writer.encoder == "mpeg4"
        assert "MPEG-4" in str(writer.note)
        for image, time_s in zip(images, times, strict=True):
            writer.write(image, float(time_s))
    got, stamps = decode(tmp_path / "a.mp4")
    assert np.abs(np.array(stamps) - (times - times[0])).max() < 1e-4
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(got, images, strict=True)) <= 6


def test_with_h264_there_is_no_note(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 32, 32, 30.0) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    if writer.encoder == "libx264":
        assert writer.note is None


@pytest.mark.browser
def test_chromium_plays_it(tmp_path: Path) -> None:
    """A browser with H.264 loads the file, seeks, and shows the picture that was written."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs a Chromium with H.264 (playwright's own has none)")
    with VideoWriter(tmp_path / "a.mp4", 63, 47, metadata={"simulated_pulse": "true"}) as writer:
        for i in range(30):
            image = np.zeros((47, 63, 3), np.uint8)
            image[..., 0] = 250 if i >= 15 else 0
            writer.write(image, i * 0.05 + (0.3 if i > 20 else 0))
    (tmp_path / "a.html").write_text('<video id="v" src="a.mp4" muted preload="auto"></video>')
    draw = """() => {
        const v = document.getElementById('v'), c = document.createElement('canvas');
        c.width = v.videoWidth; c.height = v.videoHeight;
        const context = c.getContext('2d');
        context.drawImage(v, 0, 0);
        let pixel = null;
        try { pixel = Array.from(context.getImageData(9, 9, 1, 1).data); } catch {}
        return [v.videoWidth, v.videoHeight, v.duration, pixel];
    }"""
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--allow-file-access-from-files"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.goto((tmp_path / "a.html").as_uri())
        page.wait_for_function("document.getElementById('v').readyState >= 2", timeout=15_000)
        page.evaluate("document.getElementById('v').currentTime = 1.0")
        page.wait_for_function("!document.getElementById('v').seeking", timeout=15_000)
        width, height, duration, pixel = page.evaluate(draw)
        browser.close()
    assert (width, height) == (64, 48)
    assert duration == pytest.approx(1.8, abs=0.06)
    if pixel is not None:
        assert np.abs(np.array(pixel[:3]) - (250, 0, 0)).max() <= 12
