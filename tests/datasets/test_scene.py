"""Scenes: windows against slices, padding against numpy.pad, formats by their first bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.datasets.scene import POLSAR_BANDS, Georeference, Scene, Window, reflect_index
from foveate.datasets.scene_files import open_scene
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError


def cube(height=5, width=4, bands=3, seed=0):
    return np.random.default_rng(seed).normal(size=(height, width, bands)).astype(np.float32)


def test_windows_are_slices():
    array = cube(6, 7, 2)
    scene = Scene.from_array(array, "hyperspectral", "small")
    assert scene.shape == (6, 7, 2)
    assert (scene.channels, scene.path, scene.band_names) == (2, None, ("band 1", "band 2"))
    np.testing.assert_array_equal(scene.read(), array)
    piece = scene.read(Window(1, 2, 3, 4))
    np.testing.assert_array_equal(piece, array[1:4, 2:6])
    piece[:] = 0  # a copy
    np.testing.assert_array_equal(scene.read(), array)
    assert scene.read_valid().all()
    assert scene.read_valid(Window(0, 0, 2, 3)).shape == (2, 3)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    before=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    after=st.tuples(st.integers(0, 15), st.integers(0, 15)),
)
def test_padding_is_numpy_reflect(size, before, after):
    array = cube(*size, 2)
    scene = Scene.from_array(array, "hyperspectral")
    window = Window(
        -before[0], -before[1], size[0] + before[0] + after[0], size[1] + before[1] + after[1]
    )
    padded = np.pad(array, ((before[0], after[0]), (before[1], after[1]), (0, 0)), "reflect")
    np.testing.assert_array_equal(scene.read_padded(window), padded)


def test_padding_of_a_corner_reads_only_what_it_needs():
    array = cube(50, 60, 1)
    seen = []

    def reader(window):
        seen.append(window)
        return array[
            window.row : window.row + window.height, window.column : window.column + window.width
        ]

    scene = Scene("big", None, "hyperspectral", 50, 60, ("one",), reader)
    corner = scene.read_padded(Window(46, -3, 8, 6))
    expected = np.pad(array, ((8, 8), (8, 8), (0, 0)), "reflect")[54:62, 5:11]
    np.testing.assert_array_equal(corner, expected)
    assert seen == [Window(45, 0, 5, 4)]


def test_reflect_index_of_one_row():
    assert reflect_index(-3, 7, 1).tolist() == [0] * 7


@pytest.mark.parametrize(
    "window", [(-1, 0, 2, 2), (0, 3, 2, 2), (0, 0, 0, 1), (5, 0, 1, 1), (0, 0, 6, 1)]
)
def test_a_window_outside_is_refused(window):
    with pytest.raises(FoveateError, match=r"outside the scene array of 5 x 4"):
        Scene.from_array(cube(), "hyperspectral").read(Window(*window))


def test_a_padded_window_must_touch_the_scene():
    scene = Scene.from_array(cube(), "hyperspectral")
    with pytest.raises(FoveateError, match="outside the scene"):
        scene.read_padded(Window(5, 0, 2, 2))
    with pytest.raises(FoveateError, match="outside the scene"):
        scene.read_padded(Window(0, -2, 2, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_the_cube_is_placed(value):
    array = cube()
    array[3, 2, 1] = value
    scene = Scene.from_array(array, "hyperspectral", "bad")
    with pytest.raises(
        FoveateError, match=r"bad has the value .* at row 3, column 2, band 'band 2'"
    ):
        scene.read(Window(1, 1, 3, 3))
    assert scene.read(Window(0, 0, 3, 4)).shape == (3, 4, 3)  # elsewhere it reads


def test_opposite_infinities_do_not_cancel_and_large_numbers_do_not_alarm():
    array = np.full((2, 2, 2), 3e38, np.float32)
    Scene.from_array(array, "hyperspectral").read()
    array[0, 0], array[1, 1] = np.inf, -np.inf
    with pytest.raises(FoveateError, match="row 0, column 0"):
        Scene.from_array(array, "hyperspectral").read()


def test_polsar_scenes_have_nine_channels():
    assert Scene.from_array(cube(3, 3, 9), "polsar").band_names == POLSAR_BANDS
    with pytest.raises(FoveateError, match="8 channels where the 9"):
        Scene.from_array(cube(3, 3, 8), "polsar")


@pytest.mark.parametrize(
    ("given", "kept"), [("a\x1b[31m\nb", "a [31m b"), ("n\udcff", "n"), ("..", "scene")]
)
def test_names_of_scenes_are_plain(given, kept):
    """They become names of folders and go to terminals and pages."""
    assert Scene.from_array(cube(), "hyperspectral", name=given).name == kept


def test_wrong_arrays_and_facts_are_refused():
    with pytest.raises(FoveateError, match=r"shape \(5, 4\)"):
        Scene.from_array(np.zeros((5, 4)), "hyperspectral")
    with pytest.raises(FoveateError, match="complex"):
        Scene.from_array(np.zeros((5, 4, 1), complex), "hyperspectral")
    with pytest.raises(FoveateError, match="shape"):
        Scene.from_array(np.zeros((0, 4, 1)), "hyperspectral")
    with pytest.raises(FoveateError, match="3 channels and 1 band names"):
        Scene.from_array(cube(), "hyperspectral", band_names=("one",))
    scene = Scene.from_array(cube(), "hyperspectral")
    with pytest.raises(FoveateError, match="3 bands and 2 wavelengths"):
        dataclasses.replace(scene, wavelengths_nm=(1.0, 2.0))
    with pytest.raises(FoveateError, match="kind"):
        dataclasses.replace(scene, kind="radar")
    with pytest.raises(FoveateError, match="labels of the scene array are for 2 x 2"):
        dataclasses.replace(scene, labels=SceneLabels.from_map(np.eye(2, dtype=int)))
    wrong = dataclasses.replace(scene, reader=lambda window: np.zeros((1, 1, 3), np.float32))
    with pytest.raises(FoveateError, match="reader of the scene array gave"):
        wrong.read()


@pytest.mark.parametrize(
    "numbers", [(30.0, 0.0, 5e5, 0.0, -30.0, 4e6), (2.0, 1.0, 10.0, 0.5, -3.0, 20.0)]
)
def test_georeference_there_and_back(numbers):
    a, b, c, d, e, f = numbers
    known = Georeference("", numbers)
    rows, columns = np.array([0.0, 7.5, 3.25]), np.array([0.0, 2.5, 9.75])
    x, y = known.to_xy(rows, columns)
    matrix = np.array([[a, b, c], [d, e, f], [0, 0, 1]])
    expected = matrix @ np.stack([columns, rows, np.ones(3)])
    np.testing.assert_allclose([x, y], expected[:2])
    inverse = np.linalg.inv(matrix) @ expected
    np.testing.assert_allclose(known.to_pixel(x, y), inverse[[1, 0]], atol=1e-6)


def test_georeference_that_cannot_be():
    with pytest.raises(FoveateError, match="one line"):
        Georeference("", (1, 2, 0, 2, 4, 0))
    with pytest.raises(FoveateError, match="six finite"):
        Georeference("", (1, 0, float("nan"), 0, 1, 0))


# open_scene


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".dat"])
def test_pictures(tmp_path: Path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)
    path = tmp_path / f"photo{suffix}"
    kind = {".jpg": "JPEG", ".bmp": "BMP"}.get(suffix, "PNG")  # .dat: the first bytes decide
    Image.fromarray(pixels).save(path, kind, quality=95, subsampling=0)
    scene = open_scene(path)
    assert (scene.kind, scene.shape, scene.name) == ("rgb", (6, 9, 3), "photo")
    assert scene.band_names == ("red", "green", "blue")
    assert scene.path == path
    slack = 40 if suffix == ".jpg" else 0
    assert np.abs(scene.read() - pixels).max() <= slack


def test_a_turned_camera_is_honoured(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_scene(tmp_path / "a.png").read(), np.rot90(pixels, -1))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_pixel_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side):
    path = tmp_path / "bomb.bmp"
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = side.to_bytes(4, "little") * 2  # width and height of the header
    path.write_bytes(content)
    with pytest.raises(FoveateError, match=r"bomb\.bmp .*(claims 12000 x 12000|exceeds limit)"):
        open_scene(path)


def test_16_bit_pictures_are_not_clipped(tmp_path: Path):
    Image.fromarray(np.full((3, 3), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(FoveateError, match="save it as GeoTIFF"):
        open_scene(tmp_path / "deep.png")


def test_what_cannot_be_opened(tmp_path: Path):
    with pytest.raises(FoveateError, match=r"cannot open the scene .*nowhere\.tif"):
        open_scene(tmp_path / "nowhere.tif")
    (tmp_path / "notes.xyz").write_text("hello")
    with pytest.raises(FoveateError, match="of no format that foveate reads"):
        open_scene(tmp_path / "notes.xyz")
    (tmp_path / "raw.img").write_bytes(bytes(64))
    with pytest.raises(FoveateError, match="no ENVI header beside it"):
        open_scene(tmp_path / "raw.img")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(FoveateError, match="cannot read the picture"):
        open_scene(tmp_path / "torn.png")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04" + bytes(20))
    with pytest.raises(FoveateError, match=r"torn\.npz"):
        open_scene(tmp_path / "torn.npz")


def test_cubes_open_by_content(tmp_path: Path):
    array = np.arange(5 * 4 * 3, dtype=np.uint16).reshape(5, 4, 3)
    truth = np.tile(np.arange(4, dtype=np.uint8), (5, 1))
    scipy.io.savemat(tmp_path / "a.mat", {"anything": array, "classes": truth})
    np.savez_compressed(tmp_path / "b.npz", x=array, gt=truth)
    for name in ("a.mat", "b.npz"):
        scene = open_scene(tmp_path / name)
        assert scene.kind == "hyperspectral"
        np.testing.assert_array_equal(scene.read(), array)
        assert scene.labels is not None
        np.testing.assert_array_equal(scene.labels.to_map(), truth)


def test_an_empty_folder_is_no_scene(tmp_path: Path):
    pytest.importorskip("foveate.datasets.polsar")
    with pytest.raises(FoveateError):
        open_scene(tmp_path)
