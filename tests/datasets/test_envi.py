"""ENVI rasters against tofile(), the spectral package and GDAL, and headers that lie."""

from __future__ import annotations

import itertools
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.envi import envi_pair, map_envi, open_envi, write_envi
from foveate.datasets.envi_header import read_envi_header
from foveate.datasets.scene import Georeference, Window
from foveate.datasets.scene_files import open_scene
from foveate.errors import FoveateError

CODES = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12, "u4": 13, "i8": 14, "u8": 15}


def cube(dtype="u2", shape=(7, 6, 5)):
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(0, 120, shape).astype(dtype)


def raw(folder: Path, array, interleave="bsq", order="<", offset=0, **entries) -> Path:
    """A second writer: one number after the other, in the order of the format's definition."""
    lines, samples, bands = array.shape
    axes = {
        "bsq": ((b, r, c) for b in range(bands) for r in range(lines) for c in range(samples)),
        "bil": ((b, r, c) for r in range(lines) for b in range(bands) for c in range(samples)),
        "bip": ((b, r, c) for r in range(lines) for c in range(samples) for b in range(bands)),
    }[interleave]
    numbers = np.array([array[r, c, b] for b, r, c in axes], array.dtype.newbyteorder(order))
    (folder / "scene.img").write_bytes(b"\xff" * offset + numbers.tobytes())
    content = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "header offset": offset,
        "data type": CODES[array.dtype.str[1:]],
        "interleave": interleave,
        "byte order": int(order == ">"),
        **entries,
    }
    text = "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in content.items() if value != "")
    (folder / "scene.hdr").write_text(text)
    return folder / "scene.hdr"


@pytest.mark.parametrize(
    ("interleave", "dtype", "order"),
    list(itertools.product(["bsq", "bil", "bip"], ["u2", "f4"], ["<", ">"])),
)
def test_interleaves_types_and_byte_orders_give_the_same_cube(
    tmp_path: Path, interleave, dtype, order
):
    """ENVI miniature in bsq, bil and bip gives the same cube; uint16 and float32; big-endian."""
    array = cube(dtype)
    scene = open_envi(raw(tmp_path, array, interleave, order, offset=13))
    assert (scene.kind, scene.shape, scene.name) == ("hyperspectral", (7, 6, 5), "scene")
    np.testing.assert_array_equal(scene.read(), array)
    np.testing.assert_array_equal(scene.read(Window(2, 1, 3, 4)), array[2:5, 1:5])


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_written_files_as_the_spectral_package_reads_them(tmp_path: Path, dtype, interleave):
    envi = pytest.importorskip("spectral.io.envi")
    array = cube(dtype)
    waves = [400.5, 500, 600, 700, 2500]
    header, data = write_envi(
        tmp_path / "a.img",
        array,
        interleave=interleave,
        big_endian=dtype in ("u2", "f8"),
        wavelengths_nm=waves,
        band_names=["one", "two", "three", "four", "five"],
    )
    theirs = envi.open(str(header), str(data))
    np.testing.assert_array_equal(np.asarray(theirs.open_memmap()), array)
    assert theirs.bands.centers == waves
    assert theirs.metadata["band names"] == ["one", "two", "three", "four", "five"]
    scene = open_envi(data)
    np.testing.assert_array_equal(scene.read(), array.astype(np.float32))
    assert scene.wavelengths_nm == tuple(waves)
    assert scene.band_names[1] == "two"


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_files_of_the_spectral_package(tmp_path: Path, interleave):
    envi = pytest.importorskip("spectral.io.envi")
    array = cube("i2")
    facts = {"wavelength": [0.4, 0.5, 0.6, 0.7, 2.5], "wavelength units": "Micrometers"}
    envi.save_image(
        str(tmp_path / "b.hdr"), array, interleave=interleave, byteorder=1, metadata=facts
    )
    scene = open_envi(tmp_path / "b.hdr")
    np.testing.assert_array_equal(scene.read(), array)
    assert scene.wavelengths_nm == (400, 500, 600, 700, 2500)


def test_wavelengths_over_several_lines_and_without_a_unit(tmp_path: Path):
    path = raw(tmp_path, cube(), wavelength="{\n 0.4, 0.5,\n 0.6 , 0.7\n, 0.8 }")
    assert open_envi(path).wavelengths_nm == (400, 500, 600, 700, 800)
    path = raw(tmp_path, cube(), **{"wavelength": "{400, 500, 600, 700, 800}", ";note": "a = b"})
    assert open_envi(path).wavelengths_nm == (400, 500, 600, 700, 800)


def test_three_bands_of_bytes_are_a_picture(tmp_path: Path):
    assert open_scene(raw(tmp_path, cube("u1", (4, 5, 3)))).kind == "rgb"
    waves = "{450, 550, 650}"
    assert open_scene(raw(tmp_path, cube("u1", (4, 5, 3)), wavelength=waves)).kind != "rgb"


@pytest.mark.parametrize(
    ("header", "data"),
    [("a.hdr", "a"), ("a.HDR", "a.dat"), ("a.img.hdr", "a.img"), ("a.hdr", "a.BSQ")],
)
def test_names_of_the_pair(tmp_path: Path, header, data):
    source = raw(tmp_path, cube())
    source.rename(tmp_path / header)
    (tmp_path / "scene.img").rename(tmp_path / data)
    for name in (header, data):
        assert envi_pair(tmp_path / name) == (tmp_path / header, tmp_path / data)
        assert open_scene(tmp_path / name).shape == (7, 6, 5)


def test_half_a_pair(tmp_path: Path):
    path = raw(tmp_path, cube())
    (tmp_path / "scene.img").rename(tmp_path / "other.img")
    with pytest.raises(FoveateError, match="has no data file beside it"):
        open_envi(path)
    with pytest.raises(FoveateError, match="has no ENVI header beside it"):
        open_envi(tmp_path / "other.img")


# Where on Earth


@pytest.mark.parametrize(
    ("entry", "crs"),
    [
        ("{UTM, 1, 1, 500000.0, 4000000.0, 20.0, 20.0, 32, North, WGS-84, units=Meters}", 32632),
        ("{UTM, 1, 1, 500000.0, 4000000.0, 20, 30, 17, South, WGS-84, rotation=30}", 32717),
        ("{Geographic Lat/Lon, 1, 1, 9.5, 47.25, 0.001, 0.002, WGS-84}", 4326),
        ("{Arbitrary, 1, 1, 10, 20, 2, 3}", None),
    ],
)
def test_map_info_as_gdal_reads_it(tmp_path: Path, entry, crs):
    rasterio = pytest.importorskip("rasterio")
    path = raw(tmp_path, cube(), **{"map info": entry})
    known = open_envi(path).georeference
    with rasterio.open(tmp_path / "scene.img", driver="ENVI") as source:
        np.testing.assert_allclose(known.transform, source.transform[:6], rtol=1e-9, atol=1e-6)
        assert known.crs == (f"EPSG:{crs}" if crs else "")
        if crs:
            assert source.crs.to_epsg() == crs


@pytest.mark.parametrize("rotation", [0, 30, -75])
def test_map_info_ties_its_pixel_to_its_place(tmp_path: Path, rotation):
    entry = f"{{Arbitrary, 3.5, 2, 1000, 2000, 20, 30, rotation={rotation}}}"
    known = open_envi(raw(tmp_path, cube(), **{"map info": entry})).georeference
    np.testing.assert_allclose(known.to_xy(2 - 1, 3.5 - 1), (1000, 2000))


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32733", "EPSG:4326", "", "wkt"])
def test_georeference_written_and_read(tmp_path: Path, crs):
    if crs == "wkt":
        rasterio = pytest.importorskip("rasterio")
        crs = rasterio.CRS.from_epsg(25832).to_wkt()
    place = Georeference(crs, (20.0, 0.0, 5.1e5, 0.0, -30.0, 4e6))
    _, data = write_envi(tmp_path / "a.img", cube(), georeference=place)
    assert open_envi(data).georeference == place
    with pytest.raises(FoveateError, match="north up"):
        write_envi(tmp_path / "b.img", cube(), georeference=Georeference("", (1, 1, 0, 1, -1, 0)))


# No data


@pytest.mark.parametrize("empty", [-9999.0, float("nan")])
def test_no_data_is_zero_and_not_valid(tmp_path: Path, empty):
    array = cube("f4")
    array[2, 3] = empty
    array[4, 1, 2] = empty
    path = raw(tmp_path, array, **{"data ignore value": empty})
    scene = open_envi(path)
    expected = array.copy()
    expected[2, 3] = expected[4, 1, 2] = 0
    np.testing.assert_array_equal(scene.read(), expected)
    assert np.argwhere(~scene.read_valid()).tolist() == [[2, 3]]
    assert not scene.read_valid(Window(2, 3, 1, 1)).any()


# Lies


@pytest.mark.parametrize("change", [-1, 1, 60])
def test_header_and_file_size_disagree(tmp_path: Path, change):
    path = raw(tmp_path, cube())
    data = tmp_path / "scene.img"
    content = data.read_bytes()
    data.write_bytes(content[:change] if change < 0 else content + bytes(change))
    size = 7 * 6 * 5 * 2
    with pytest.raises(FoveateError, match=rf"has {size + change} bytes, .* which is {size};"):
        open_envi(path)


def test_missing_bands(tmp_path: Path):
    waves = "{400, 500, 600, 700, 800}"
    array = cube()[:, :, :4]
    with pytest.raises(FoveateError, match=r"5 entries in 'wavelength' and bands = 4; bands are"):
        open_envi(raw(tmp_path, array, wavelength=waves))
    with pytest.raises(FoveateError, match=r"has 336 bytes, .* 5 bands .* which is 420"):
        open_envi(raw(tmp_path, array, bands=5))
    with pytest.raises(FoveateError, match="3 entries in 'band names'"):
        open_envi(raw(tmp_path, array, **{"band names": "{a, b, c}"}))


def test_an_absurd_extent_takes_no_memory(tmp_path: Path):
    big = {"lines": 1 << 24, "samples": 1 << 24, "bands": 1 << 16}
    with pytest.raises(FoveateError, match=f"which is {2**64 * 2}"):
        open_envi(raw(tmp_path, cube(), **big))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"lines": 0}, "lines = 0 where"),
        ({"samples": "six"}, "samples = six where"),
        ({"bands": ""}, "bands = None where"),
        ({"data type": 6}, "complex numbers .* s11.bin"),
        ({"data type": 7}, "data type 7 where one of 1, 2"),
        ({"interleave": "bsp"}, "interleave 'bsp'"),
        ({"byte order": 2}, "byte order = 2"),
        ({"header offset": -1}, "header offset = -1"),
        ({"file compression": 1}, "compressed"),
        ({"wavelength": "{1, two, 3, 4, 5}"}, "wavelength = '1, two, 3, 4, 5'"),
        ({"wavelength": "{1, 0, 3, 4, 5}"}, "not positive"),
        ({"wavelength": "{1, 2"}, "no closing brace after 'wavelength'"),
        ({"map info": "{UTM, 1, 1}"}, "map info of 3 entries"),
        ({"map info": "{UTM, 1, 1, 5, 5, 0, 0}"}, "one line"),
        ({"map info": "{UTM, 1, , 1, 5, 5, , }"}, "4 numbers in the entries 2 to 7 of its map"),
        ({"class lookup": "{1, 2}"}, "class lookup"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, entry, sentence):
    path = raw(tmp_path, cube())
    text = path.read_text()
    for key, value in entry.items():
        text = "".join(line for line in text.splitlines(True) if not line.startswith(f"{key} ="))
        text += f"{key} = {value}\n" if value != "" else ""
    path.write_text(text)
    with pytest.raises(FoveateError, match=sentence):
        open_envi(path)


def test_entries_without_a_value_are_as_if_absent(tmp_path: Path):
    path = raw(tmp_path, cube(), **{"map info": "{UTM, 1, 1, 5, 5, 2, 2, rotation=}"})
    path.write_text(path.read_text() + "data ignore value =\n")
    header = read_envi_header(path)
    assert header.no_data is None
    assert header.georeference.transform == (2, 0, 5, 0, -2, 5)


def test_no_header_at_all(tmp_path: Path):
    (tmp_path / "a.hdr").write_text("samples = 3\n")
    with pytest.raises(FoveateError, match="first line is not ENVI"):
        read_envi_header(tmp_path / "a.hdr")
    with pytest.raises(FoveateError, match=r"absent\.hdr"):
        read_envi_header(tmp_path / "absent.hdr")


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="latin-1"), max_size=200))
def test_any_header_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "a.hdr"
    path.write_bytes(b"ENVI\nlines = 2\nsamples = 2\n" + text.encode("latin-1"))
    try:
        found = read_envi_header(path)
    except FoveateError as error:
        sentence = str(error)
    else:
        sentence = f"{path} {found.lines}"
    assert str(path) in sentence


# Byte order


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("content", ["normal", "whole", "zeros and nan"])
def test_floats_of_the_other_byte_order_are_refused(tmp_path: Path, dtype, order, content):
    """Wrong endianness: the right order is read, the other one is refused with the mend."""
    array = cube(dtype, (20, 20, 3))
    if content == "whole":
        array = np.round(array * 1000)
    elif content == "zeros and nan":
        array[:5] = 0
        array[5:7] = np.nan
    path = raw(tmp_path, array, order=order)
    open_envi(path)
    flag = int(order == ">")
    path = raw(tmp_path, array, order=order, **{"byte order": 1 - flag})
    with pytest.raises(FoveateError, match=f"set 'byte order = {flag}' .*it says {1 - flag}"):
        open_envi(path)


def test_floats_that_are_merely_bad_are_no_matter_of_byte_order(tmp_path: Path):
    array = cube("f4", (20, 20, 3))
    array[:12] = np.nan
    scene = open_envi(raw(tmp_path, array))
    with pytest.raises(FoveateError, match="value nan at row 0"):
        scene.read()


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_whole_numbers_of_the_other_byte_order_are_warned_about(tmp_path: Path, interleave):
    rows, columns, bands = np.indices((20, 30, 40))
    array = (1000 + 9 * rows + 7 * columns + 11 * bands).astype(np.uint16)
    open_envi(raw(tmp_path, array, interleave))
    path = raw(tmp_path, array, interleave, **{"byte order": 1})
    with pytest.warns(UserWarning, match="may be of the other byte order.*'byte order = 0'"):
        open_envi(path)


# Larger than memory


def test_a_scene_larger_than_memory_is_read_by_windows(tmp_path: Path):
    side, bands = 20_000, 4
    data = tmp_path / "huge.dat"
    with data.open("wb") as file:
        file.truncate(side * side * bands)  # 1.6 GB, sparse: no disk is used
        file.seek((2 * side + 12_345) * side + 19_999)
        file.write(b"\x07")
    (tmp_path / "huge.hdr").write_text(
        f"ENVI\nsamples = {side}\nlines = {side}\nbands = {bands}\ndata type = 1\n"
        "interleave = bsq\nbyte order = 0\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scene = open_scene(data)
    assert scene.shape == (side, side, bands)
    window = scene.read_padded(Window(12_300, 19_900, 64, 128))
    assert np.argwhere(window).tolist()[0] == [45, 99, 2]
    assert window.sum() == 7
    with pytest.raises(FoveateError, match="outside"):
        scene.read(Window(0, 0, 20_001, 1))
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert grown < 200 << 20


# Writing


def test_class_maps(tmp_path: Path):
    codes = np.array([[0, 1], [3, 2]], dtype=np.uint8)
    names, colours = {1: "rye, winter", 3: "water"}, {1: (10, 20, 30), 3: (0, 0, 255)}
    header, data = write_envi(tmp_path / "c.img", codes, class_names=names, colours=colours)
    found = read_envi_header(header)
    assert found.class_names == {1: "rye winter", 2: "class 2", 3: "water"}
    assert found.colours == {1: (10, 20, 30), 2: (0, 0, 0), 3: (0, 0, 255)}
    np.testing.assert_array_equal(map_envi(data, found)[:, :, 0], codes)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path):
    for array in (np.zeros((2, 2), complex), np.zeros(3), np.zeros((2, 2), bool), np.zeros((0, 2))):
        with pytest.raises(FoveateError, match="as ENVI; expected"):
            write_envi(tmp_path / "a.img", array)
    with pytest.raises(FoveateError, match="4 entries of wavelength were given for 5 bands"):
        write_envi(tmp_path / "a.img", cube(), wavelengths_nm=[1, 2, 3, 4])
    with pytest.raises(FoveateError, match="interleave"):
        write_envi(tmp_path / "a.img", cube(), interleave="abc")
    with pytest.raises(FoveateError, match="name the data file"):
        write_envi(tmp_path / "a.hdr", cube())
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_after_opening_is_a_sentence(tmp_path):
    write_envi(tmp_path / "a.img", np.ones((20, 30, 2), dtype=np.uint16))
    scene = open_envi(tmp_path / "a.hdr")
    with (tmp_path / "a.img").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(FoveateError, match="has 100 bytes, but its header says 20 lines"):
        scene.read()
