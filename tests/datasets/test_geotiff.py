"""GeoTIFF scenes and class maps against rasterio used directly."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from foveate.datasets import geotiff
from foveate.datasets.geotiff import open_geotiff, write_geotiff
from foveate.datasets.scene import Georeference, Window
from foveate.datasets.scene_files import open_scene
from foveate.errors import FoveateError

UTM = Georeference("EPSG:32632", (20.0, 0.0, 5e5, 0.0, -30.0, 4e6))


def write(path: Path, array: np.ndarray, **profile) -> Path:
    """`array` (bands, rows, columns) by rasterio alone."""
    rasterio = pytest.importorskip("rasterio")
    descriptions = profile.pop("descriptions", None)
    alpha = profile.pop("alpha", False)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=array.shape[0],
        height=array.shape[1],
        width=array.shape[2],
        dtype=array.dtype.name,
        **{"transform": rasterio.Affine(*UTM.transform), "crs": "EPSG:32632", **profile},
    ) as sink:
        if alpha:
            kinds = rasterio.enums.ColorInterp
            sink.colorinterp = [kinds.red, kinds.green, kinds.blue, kinds.alpha]
        sink.write(array)
        if descriptions:
            sink.descriptions = descriptions
    return path


def bands(count=4, dtype="uint16", shape=(40, 50)):
    return np.random.default_rng(0).integers(0, 200, (count, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("tiled", [False, True])
def test_windows(tmp_path: Path, dtype, tiled):
    array = bands(dtype=dtype)
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
    path = write(tmp_path / "a.tif", array, compress="deflate", **tiles)
    scene = open_scene(path)
    assert (scene.kind, scene.shape, scene.path) == ("hyperspectral", (40, 50, 4), path)
    np.testing.assert_array_equal(scene.read(), array.transpose(1, 2, 0))
    expected = array[:, 3:20, 7:9].transpose(1, 2, 0)
    np.testing.assert_array_equal(scene.read(Window(3, 7, 17, 2)), expected)
    assert scene.georeference == UTM
    assert scene.read_valid().all()


def test_names_and_pictures(tmp_path: Path):
    path = write(tmp_path / "a.tif", bands(2), descriptions=("near", None))
    assert open_geotiff(path).band_names == ("near", "band 2")
    scene = open_geotiff(write(tmp_path / "b.tif", bands(3, "uint8"), photometric="RGB"))
    assert (scene.kind, scene.band_names) == ("rgb", ("red", "green", "blue"))
    assert open_geotiff(write(tmp_path / "c.tif", bands(3))).kind == "hyperspectral"


def test_a_file_without_a_place_says_nothing(tmp_path: Path, recwarn):
    path = tmp_path / "a.tif"
    write_geotiff(path, np.ones((3, 3), np.uint8))
    scene = open_geotiff(path)
    assert scene.georeference is None
    scene.read()
    assert not recwarn.list


@pytest.mark.parametrize("empty", [0.0, -9999.0, float("nan")])
def test_no_data_is_zero_and_not_valid(tmp_path: Path, empty):
    array = bands(3, "float32") + 1
    array[:, 5, 6] = empty
    array[1, 30, 40] = empty
    scene = open_geotiff(write(tmp_path / "a.tif", array, nodata=empty))
    expected = array.copy()
    expected[:, 5, 6] = expected[1, 30, 40] = 0
    np.testing.assert_array_equal(scene.read(), expected.transpose(1, 2, 0))
    assert np.argwhere(~scene.read_valid()).tolist() == [[5, 6]]
    assert np.argwhere(~scene.read_valid(Window(4, 4, 5, 5))).tolist() == [[1, 2]]


def test_an_alpha_band_is_a_mask(tmp_path: Path):
    array = bands(4, "uint8")
    array[3] = 255
    array[3, 2, 1] = 0
    scene = open_geotiff(write(tmp_path / "a.tif", array, photometric="RGB", alpha=True))
    assert (scene.kind, scene.channels) == ("rgb", 3)
    assert np.argwhere(~scene.read_valid()).tolist() == [[2, 1]]
    expected = array[:3].transpose(1, 2, 0).copy()
    expected[2, 1] = 0
    np.testing.assert_array_equal(scene.read(), expected)


def test_near_infrared_that_is_marked_alpha_stays_a_channel(tmp_path: Path):
    array = bands(4, "uint8")
    path = write(tmp_path / "a.tif", array, photometric="RGB", alpha=True)
    scene = open_geotiff(path)
    assert (scene.kind, scene.channels) == ("hyperspectral", 4)
    np.testing.assert_array_equal(scene.read(), array.transpose(1, 2, 0))
    assert scene.read_valid().all()


def test_nan_in_the_file_is_placed(tmp_path: Path):
    array = bands(2, "float32")
    array[1, 7, 8] = np.nan
    scene = open_geotiff(write(tmp_path / "a.tif", array))
    with pytest.raises(FoveateError, match="value nan at row 7, column 8, band 'band 2'"):
        scene.read()


def test_files_that_cannot_be_read(tmp_path: Path):
    pytest.importorskip("rasterio")
    good = write(tmp_path / "a.tif", bands())
    (tmp_path / "torn.tif").write_bytes(good.read_bytes()[:100])
    with pytest.raises(FoveateError, match=r"cannot read .*torn\.tif as a GeoTIFF"):
        open_scene(tmp_path / "torn.tif")
    short = tmp_path / "short.tif"
    short.write_bytes(good.read_bytes()[:-4000])
    with pytest.raises(FoveateError, match=r"cannot read .*short\.tif as a GeoTIFF"):
        open_scene(short).read()
    with pytest.raises(FoveateError, match=r"holds complex64.*, not real numbers"):
        open_scene(write(tmp_path / "c.tif", bands(1).astype(np.complex64)))
    with pytest.raises(FoveateError, match="there is no file"):
        open_geotiff(tmp_path / "absent.tif")
    # Another of GDAL's formats under this name is not opened.
    (tmp_path / "list.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    with pytest.raises(FoveateError, match="as a GeoTIFF"):
        open_geotiff(tmp_path / "list.tif")


def test_a_file_replaced_after_opening_is_a_sentence(tmp_path: Path):
    scene = open_geotiff(write(tmp_path / "a.tif", bands(4)))
    write(tmp_path / "a.tif", bands(1))
    with pytest.raises(FoveateError, match=r"cannot read .*a.tif as a GeoTIFF \(band index"):
        scene.read()


def test_blocks_too_large_for_memory_are_refused(tmp_path: Path, monkeypatch):
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 16}
    path = write(tmp_path / "a.tif", bands(4, shape=(64, 64)), **tiles)
    open_geotiff(path)
    monkeypatch.setattr(geotiff, "_MAX_BLOCK_BYTES", 32 * 16 * 2 * 4 - 1)
    with pytest.raises(FoveateError, match=r"blocks of 4096 bytes; rewrite it in tiles"):
        open_geotiff(path)


def test_without_rasterio_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "rasterio":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    for act in (open_scene, lambda path: write_geotiff(path, np.ones((2, 2), np.uint8))):
        with pytest.raises(FoveateError, match=r"pip install 'foveate\[remote\]'"):
            act(tmp_path / "a.tif")


# Class maps


def test_class_map_with_colours_and_confidence(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    codes = np.random.default_rng(0).integers(0, 4, (300, 270)).astype(np.int16)
    sure = np.random.default_rng(1).random((300, 270))
    colours = {1: (255, 0, 0), 3: (0, 0, 255)}
    written = write_geotiff(
        *(tmp_path / "map.tif", codes, sure),
        georeference=UTM,
        names={1: "rye", 3: "water"},
        colours=colours,
    )
    assert written == (tmp_path / "map.tif", tmp_path / "map_confidence.tif")
    assert sorted(tmp_path.iterdir()) == sorted(written)
    with rasterio.open(written[0]) as source:
        assert (source.dtypes, source.nodata) == (("uint8",), 0)
        np.testing.assert_array_equal(source.read(1), codes)
        assert source.colormap(1)[1] == (255, 0, 0, 255)
        assert source.colormap(1)[3] == (0, 0, 255, 255)
        assert source.colormap(1)[0][3] == 0
        assert source.tags(1)["CLASS_3"] == "water"
        assert (source.crs.to_epsg(), tuple(source.transform[:6])) == (32632, UTM.transform)
    with rasterio.open(written[1]) as source:
        np.testing.assert_array_equal(source.read(1), sure.astype(np.float32))
        assert tuple(source.transform[:6]) == UTM.transform


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_codes_above_255(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    codes = np.array([[0, 256], [65535, 1]])
    (path,) = write_geotiff(tmp_path / "map.tif", codes, colours={256: (1, 2, 3)})
    with rasterio.open(path) as source:
        assert source.dtypes == ("uint16",)
        np.testing.assert_array_equal(source.read(1), codes)
        assert source.colormap(1)[256] == (1, 2, 3, 255)


def test_both_files_or_none(tmp_path: Path, monkeypatch):
    pytest.importorskip("rasterio")
    codes = np.ones((2, 2), np.uint8)
    (tmp_path / "map.tif").write_text("older")
    (tmp_path / "map_confidence.tif").mkdir()  # the second file cannot be written
    with pytest.raises(FoveateError, match="it is a folder"):
        write_geotiff(tmp_path / "map.tif", codes, np.ones((2, 2)))
    assert (tmp_path / "map.tif").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 2
    wrong = Georeference("no such system", UTM.transform)
    with pytest.raises(FoveateError, match="cannot write the class map"):
        write_geotiff(tmp_path / "b.tif", codes, georeference=wrong)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("codes", "confidence", "sentence"),
    [
        (np.zeros((2, 2)), None, "float64"),
        (np.zeros((2, 2, 2), int), None, "shape"),
        (np.full((2, 2), -1), None, "codes from -1"),
        (np.full((2, 2), 65536), None, "to 65536"),
        (np.ones((2, 2), int), np.ones((2, 3)), r"confidence of shape \(2, 3\)"),
    ],
)
def test_maps_that_cannot_be(tmp_path: Path, codes, confidence, sentence):
    pytest.importorskip("rasterio")
    with pytest.raises(FoveateError, match=sentence):
        write_geotiff(tmp_path / "map.tif", codes, confidence)
    assert list(tmp_path.iterdir()) == []
