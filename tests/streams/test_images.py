"""A folder of images is a video: order, times, colours, and what happens to bad files."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from foveate.errors import FoveateError
from foveate.streams import images as images_module
from foveate.streams.images import ImageStream


def grey(value: int, width: int = 32, height: int = 24) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def save(path: Path, rgb: np.ndarray) -> None:
    """By OpenCV: the code under test reads with Pillow."""
    assert cv2.imwrite(str(path), rgb[..., ::-1])


def test_natural_order_and_rate(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9, 100):
        save(tmp_path / f"f{number}.png", grey(number))
    (tmp_path / "notes.txt").write_text("not looked at")
    save(tmp_path / ".hidden.png", grey(255))
    with ImageStream(tmp_path, fps=20.0) as stream:
        frames = list(stream)
    assert [int(f.image[0, 0, 0]) for f in frames] == [1, 2, 9, 10, 100]
    assert np.allclose([f.time_s for f in frames], np.arange(5) / 20)
    assert [f.index for f in frames] == list(range(5))
    assert stream.info.frames == 5
    assert stream.info.fps == 20.0
    assert stream.info.duration_s == pytest.approx(0.25)
    assert stream.info.codec == "png"


def test_times_in_names_as_pure_writes_them(tmp_path: Path) -> None:
    start = 1392643993642815000  # as a double this is off by up to 128 ns
    offsets = [0, 33_000_001, 70_500_000, 100_000_000]
    for value, offset in enumerate(offsets):
        save(tmp_path / f"Image{start + offset}.png", grey(value))
    with ImageStream(tmp_path, fps=5.0) as stream:
        frames = list(stream)
    assert [int(f.image[0, 0, 0]) for f in frames] == [0, 1, 2, 3]
    assert np.abs([f.time_s * 1e9 for f in frames] - np.array(offsets)).max() < 0.01
    assert stream.info.fps == pytest.approx(30.0)


def test_one_name_without_time_falls_back_to_the_rate(tmp_path: Path) -> None:
    save(tmp_path / "Image1392643993642815000.png", grey(1))
    save(tmp_path / "extra.png", grey(2))
    with ImageStream(tmp_path, fps=4.0) as stream:
        assert [f.time_s for f in stream] == [0.0, 0.25]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".jpg", ".webp", ".ppm", ".PNG"])
def test_formats_against_opencv(tmp_path: Path, suffix: str) -> None:
    rgb = np.zeros((24, 32, 3), np.uint8)
    rgb[:, :16], rgb[:, 16:] = (200, 30, 60), (10, 180, 90)
    save(tmp_path / f"a{suffix}", rgb)
    want = cv2.imread(str(tmp_path / f"a{suffix}"))[..., ::-1].astype(int)
    with ImageStream(tmp_path) as stream:
        image = next(stream).image
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.abs(image - want).max() <= 4


def test_other_pixel_formats_become_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "1.png"), ramp)
    cv2.imwrite(str(tmp_path / "2.png"), (ramp >> 8).astype(np.uint8))
    rgba = np.dstack([grey(70), np.full((24, 32), 9, np.uint8)])
    Image.fromarray(rgba, "RGBA").save(tmp_path / "3.png")
    Image.fromarray(grey(70)).quantize(2).save(tmp_path / "4.png")
    with ImageStream(tmp_path) as stream:
        images = [f.image.astype(int) for f in stream]
    want = np.repeat((ramp >> 8)[:, :, None], 3, axis=2)
    assert np.abs(images[0] - want).max() <= 1
    assert np.array_equal(images[1], want)
    assert np.array_equal(images[2], grey(70))
    assert np.array_equal(images[3], grey(70))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_against_opencv(tmp_path: Path, orientation: int) -> None:
    rgb = np.zeros((24, 32, 3), np.uint8)
    rgb[:12, :16], rgb[:12, 16:], rgb[12:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    want = cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1].astype(int)
    with ImageStream(tmp_path) as stream:
        image = next(stream).image
    assert image.shape == want.shape
    assert np.abs(image - want).max() <= 6


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        save(tmp_path / f"{number}.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    (tmp_path / "5.png").write_bytes(b"")
    with ImageStream(tmp_path, fps=10.0) as stream:
        frames = list(stream)
    assert [f.index for f in frames] == [1, 2, 4, 6, 7]
    assert np.allclose([f.time_s for f in frames], [0, 0.1, 0.3, 0.5, 0.6])
    assert stream.damaged == 3


def test_sizes_follow_the_first(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    save(tmp_path / "1.png", grey(5, 8, 6))
    save(tmp_path / "2.png", blocks.repeat(4, axis=0).repeat(4, axis=1))
    with ImageStream(tmp_path) as stream:
        frames = list(stream)
    assert np.array_equal(frames[1].image, blocks)
    (tmp_path / "1.png").unlink()
    with ImageStream(tmp_path, max_side=8) as stream:
        assert (stream.info.width, stream.info.height) == (8, 6)
        assert np.array_equal(next(stream).image, blocks)


def test_huge_images_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "1.png", grey(1))
    save(tmp_path / "2.png", grey(2, 64, 48))
    monkeypatch.setattr(images_module, "MAX_PIXELS", 32 * 24)
    monkeypatch.setattr(Image.Image, "load", Image.Image.load)
    with ImageStream(tmp_path) as stream:
        assert len(list(stream)) == 1
        assert stream.damaged == 1


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A PNG header that claims 60000 x 60000 pixels."""
    save(tmp_path / "1.png", grey(1))
    data = bytearray((tmp_path / "1.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "1.png").write_bytes(data)
    with pytest.raises(FoveateError, match="none of the 1 images"):
        ImageStream(tmp_path)


def test_stopping_early_ends_the_thread(tmp_path: Path) -> None:
    for number in range(30):
        save(tmp_path / f"{number}.png", grey(number))
    with ImageStream(tmp_path) as stream:
        next(stream)
    assert not [t for t in threading.enumerate() if t.name == "foveate-read-ahead"]
    assert list(stream) == []


def test_what_is_no_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="cannot list"):
        ImageStream(tmp_path / "missing")
    with pytest.raises(FoveateError, match="no image in the folder"):
        ImageStream(tmp_path)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(FoveateError, match="it holds 1 videos"):
        ImageStream(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(FoveateError, match="none of the 1 images"):
        ImageStream(tmp_path)
    save(tmp_path / "a.png", grey(1))
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(FoveateError, match="fps"):
            ImageStream(tmp_path, fps=fps)
