"""Labels: sparse against dense maps, files of every form against what was drawn, and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from foveate.datasets import scene_label_files
from foveate.datasets.envi import write_envi
from foveate.datasets.geotiff import write_geotiff
from foveate.datasets.scene import Georeference, Scene, Window
from foveate.datasets.scene_labels import SceneLabels, read_labels
from foveate.errors import FoveateError

SHAPE = (6, 9)
UTM = Georeference("EPSG:32632", (10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0))


def drawn() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:3, 2:5] = 3
    labels[4, :] = 7
    labels[5, 8] = 1
    return labels


# The class itself


@settings(max_examples=60, deadline=None)
@given(
    labels=hnp.arrays(
        np.int16, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 4)
    ),
    data=st.data(),
)
def test_map_and_points_agree(labels, data):
    found = SceneLabels.from_map(labels)
    np.testing.assert_array_equal(found.to_map(), labels)
    height, width = labels.shape
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, column, height - row, data.draw(st.integers(1, width - column)))
    slices = np.s_[row:, column : column + window.width]
    np.testing.assert_array_equal(found.to_map(window), labels[slices])
    assert found.counts() == {
        code: int((labels == code).sum()) for code in range(1, 5) if (labels == code).any()
    }
    assert found.classes == tuple(found.counts())
    assert len(found) == np.count_nonzero(labels)
    order = data.draw(st.permutations(range(len(found))))
    again = SceneLabels.from_points(
        found.coordinates[list(order)], found.codes[list(order)], labels.shape
    )
    np.testing.assert_array_equal(again.coordinates, found.coordinates)
    np.testing.assert_array_equal(again.codes, found.codes)


def test_subset_names_and_types():
    labels = SceneLabels.from_map(drawn(), names={3: "water"}, colours={3: (0, 0, 255)}, source="a")
    assert (labels.name(3), labels.name(7)) == ("water", "class 7")
    assert (labels.coordinates.dtype, labels.codes.dtype) == (np.int32, np.int16)
    part = labels.subset(np.array([5, 0, 5]))
    np.testing.assert_array_equal(part.coordinates, labels.coordinates[[0, 5]])
    assert (part.names, part.shape, part.source) == (labels.names, SHAPE, "a")
    masked = labels.subset(labels.codes == 7)
    assert masked.counts() == {7: 9}
    assert len(labels.subset(np.array([], dtype=np.int64))) == 0


def test_windows_may_stick_out():
    labels = SceneLabels.from_map(drawn())
    padded = np.pad(drawn(), 2)
    np.testing.assert_array_equal(labels.to_map(Window(-2, -2, 10, 13)), padded)


@pytest.mark.parametrize(
    ("places", "codes", "sentence"),
    [
        ([[0, 9]], [1], r"row 0, column 9, outside the scene of 6 x 9"),
        ([[-1, 0]], [1], r"row -1, column 0, outside"),
        ([[1e300, 0]], [1], "outside the scene"),
        ([[0, 0], [2, 3], [2, 3]], [1, 1, 2], r"row 2, column 3 two classes, 1 and 2"),
        ([[0, 0]], [0], "class code 0"),
        ([[0, 0]], [-3], "class code -3"),
        ([[0, 0]], [40000], "class code 40000"),
        ([[0, 0]], [1.5], "class code 1.5"),
        ([[0, 0]], [float("nan")], "class code nan"),
        ([[0, 0]], ["a"], "whole numbers"),
        ([[0.5, 0]], [1], "not a whole number"),
        ([[0, 0, 0]], [1], r"shape \(1, 3\)"),
        ([[0, 0]], [1, 2], r"\(2,\)"),
    ],
)
def test_points_that_cannot_be(places, codes, sentence):
    with pytest.raises(FoveateError, match=sentence):
        SceneLabels.from_points(np.array(places), np.array(codes), SHAPE)


def test_a_point_repeated_with_the_same_class_counts_once():
    labels = SceneLabels.from_points([[2, 3], [0, 1], [2, 3]], [4, 5, 4], SHAPE)
    assert labels.coordinates.tolist() == [[0, 1], [2, 3]]
    assert labels.codes.tolist() == [5, 4]
    assert len(SceneLabels.from_points([], [], SHAPE)) == 0


def test_arrays_are_checked_on_construction():
    good = SceneLabels.from_map(drawn())
    with pytest.raises(FoveateError, match="not sorted"):
        SceneLabels(good.coordinates[::-1].copy(), good.codes, SHAPE)
    with pytest.raises(FoveateError, match="outside the scene of 3 x 3"):
        SceneLabels(good.coordinates, good.codes, (3, 3))
    with pytest.raises(FoveateError, match="codes start at 1"):
        SceneLabels(good.coordinates, np.zeros_like(good.codes), SHAPE)
    with pytest.raises(FoveateError, match="int64"):
        SceneLabels(good.coordinates.astype(np.int64), good.codes, SHAPE)
    with pytest.raises(FoveateError, match="shape"):
        SceneLabels.from_map(np.zeros((2, 2, 2), int))


# Rasters


def write_raster(folder: Path, form: str, labels: np.ndarray) -> Path:
    path = folder / f"labels.{form.partition('-')[0]}"
    if form == "png-palette":
        image = Image.fromarray(labels.astype(np.uint8)).convert("P")
        image.putdata(labels.ravel().tolist())
        image.putpalette([value for code in range(256) for value in (code, 255 - code, 9)])
        image.save(path)
    elif form == "png-16":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    elif form in ("png", "bmp"):
        Image.fromarray(labels.astype(np.uint8)).save(path)
    elif form == "tif":
        write_geotiff(path, labels, names={3: "water"}, colours={3: (1, 2, 3)})
    elif form == "npy":
        np.save(path, labels.astype(np.int64))
    elif form == "npy-f4":
        np.save(path, np.asfortranarray(labels.astype(np.float32)))
    elif form == "npz":
        np.savez_compressed(path, gt=labels, cube=np.zeros((*labels.shape, 2)))
    elif form == "mat":
        scipy.io.savemat(path, {"truth": labels.astype(float), "n": 3})
    else:
        path = folder / "labels.img"
        write_envi(path, labels.astype(np.int16), class_names={3: "water"}, colours={3: (1, 2, 3)})
        return path.with_suffix(".hdr") if form == "hdr" else path
    return path


FORMS = ["png", "png-palette", "png-16", "bmp", "tif", "npy", "npy-f4", "npz", "mat", "hdr", "img"]


@pytest.mark.parametrize("form", FORMS)
def test_rasters(tmp_path: Path, form, monkeypatch):
    if form == "tif":
        pytest.importorskip("rasterio")
    monkeypatch.setattr(scene_label_files, "_BLOCK", 20)  # two rows at a time
    path = write_raster(tmp_path, form, drawn())
    labels = read_labels(path, SHAPE)
    np.testing.assert_array_equal(labels.to_map(), drawn())
    assert str(tmp_path) in labels.source
    if form in ("tif", "hdr", "img"):
        assert labels.names[3] == "water"
        assert labels.colours[3] == (1, 2, 3)
    if form == "png-palette":
        assert labels.colours == {code: (code, 255 - code, 9) for code in (1, 3, 7)}


@pytest.mark.parametrize("form", FORMS)
def test_the_extent_must_be_the_scene_s(tmp_path: Path, form):
    if form == "tif":
        pytest.importorskip("rasterio")
    path = write_raster(tmp_path, form, drawn())
    with pytest.raises(FoveateError, match=r"have 6 x 9 pixels, but the scene has 7 x 9"):
        read_labels(path, (7, 9))


@pytest.mark.parametrize("form", ["png", "npy", "hdr"])
def test_one_class_is_too_few(tmp_path: Path, form):
    path = write_raster(tmp_path, form, np.where(drawn() == 3, 3, 0))
    with pytest.raises(FoveateError, match=r"have 1 class .* at least two"):
        read_labels(path, SHAPE)
    path = write_raster(tmp_path, form, np.zeros_like(drawn()))
    with pytest.raises(FoveateError, match="have 0 class"):
        read_labels(path, SHAPE)


def test_rasters_that_are_no_labels(tmp_path: Path):
    Image.new("RGB", (9, 6)).save(tmp_path / "colour.png")
    with pytest.raises(FoveateError, match="mode RGB where class numbers"):
        read_labels(tmp_path / "colour.png", SHAPE)
    Image.new("L", (9, 6)).save(tmp_path / "lossy.jpg")
    with pytest.raises(FoveateError, match="JPEG, which changes class numbers"):
        read_labels(tmp_path / "lossy.jpg", SHAPE)
    np.save(tmp_path / "minus.npy", drawn().astype(int) - 1)
    with pytest.raises(FoveateError, match="class code -1"):
        read_labels(tmp_path / "minus.npy", SHAPE)
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FoveateError, match="cannot read the labels"):
        read_labels(tmp_path / "pickled.npy", SHAPE)
    with (tmp_path / "huge.npy").open("wb") as file:  # claims 8 TB, has none of it
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
        )
    with pytest.raises(FoveateError, match="cannot read the labels"):
        read_labels(tmp_path / "huge.npy", SHAPE)
    np.savez(tmp_path / "two.npz", a=drawn(), b=drawn())
    with pytest.raises(FoveateError, match="2 arrays that may be the label map"):
        read_labels(tmp_path / "two.npz", SHAPE)
    np.testing.assert_array_equal(
        read_labels(tmp_path / "two.npz", SHAPE, key="b").to_map(), drawn()
    )
    np.savez(tmp_path / "none.npz", a=np.zeros(3))
    with pytest.raises(FoveateError, match="has no label map"):
        read_labels(tmp_path / "none.npz", SHAPE)
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(FoveateError, match="of no format that is read"):
        read_labels(tmp_path / "a.xyz", SHAPE)
    with pytest.raises(FoveateError, match="cannot read the labels"):
        read_labels(tmp_path / "absent.png", SHAPE)


def test_a_geotiff_of_another_place_is_refused(tmp_path: Path):
    pytest.importorskip("rasterio")
    path = tmp_path / "labels.tif"
    a, b, c, d, e, f = UTM.transform
    write_geotiff(path, drawn(), georeference=UTM)
    np.testing.assert_array_equal(read_labels(path, SHAPE, UTM).to_map(), drawn())
    shifted = Georeference(UTM.crs, (a, b, c + 3 * a, d, e, f))
    with pytest.raises(FoveateError, match=r"lie 3\.0 pixels away"):
        read_labels(path, SHAPE, shifted)
    with pytest.raises(FoveateError, match="another coordinate system"):
        read_labels(path, SHAPE, Georeference("EPSG:32633", UTM.transform))


# Tables


def table(path: Path, rows: list[list], separator: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_of_pixels(tmp_path: Path, separator):
    rows = [["id", "Column", "Row", "class"], [0, 8, 5, 2], [1, 0, 1, 1], [], [2, 4, 5, 2]]
    labels = read_labels(table(tmp_path / "a.csv", rows, separator), SHAPE)
    assert labels.coordinates.tolist() == [[1, 0], [5, 4], [5, 8]]
    assert labels.codes.tolist() == [1, 2, 2]
    assert labels.names == {}


def test_table_of_names_in_map_coordinates(tmp_path: Path):
    rows = [["x", "y", "class"], [500005, 3999995, "water"], [500089.9, 3999940.1, "fields"]]
    labels = read_labels(table(tmp_path / "a.csv", rows), SHAPE, UTM)
    assert labels.coordinates.tolist() == [[0, 0], [5, 8]]
    assert [labels.name(int(code)) for code in labels.codes] == ["water", "fields"]
    assert labels.names == {1: "fields", 2: "water"}  # alphabetical, whatever the rows' order
    with pytest.raises(FoveateError, match="x,y, but the scene has no georeference"):
        read_labels(tmp_path / "a.csv", SHAPE)


def test_table_with_codes_and_names_and_another_column(tmp_path: Path):
    rows = [["row", "column", "cover", "name"], [0, 0, 5, "rye"], [1, 1, 2, "oats"]]
    labels = read_labels(table(tmp_path / "a.csv", rows), SHAPE, class_property="cover")
    assert labels.names == {5: "rye", 2: "oats"}
    rows += [[2, 2, 5, "field 12"]]  # names of places: not of classes
    labels = read_labels(table(tmp_path / "a.csv", rows), SHAPE, class_property="cover")
    assert (labels.names, labels.counts()) == ({}, {2: 1, 5: 2})


def test_names_take_the_codes_that_the_scene_has(tmp_path: Path):
    known = SceneLabels.from_map(drawn(), names={3: "water", 7: "rye", 1: "oats"})
    scene = Scene.from_array(np.zeros((*SHAPE, 1)), "hyperspectral", labels=known)
    rows = [["row", "column", "class"], [0, 0, "rye"], [1, 1, "water"]]
    labels = read_labels(table(tmp_path / "a.csv", rows), scene)
    assert labels.codes.tolist() == [7, 3]
    numbered = read_labels(write_raster(tmp_path, "npy", drawn()), scene)
    assert numbered.names == known.names


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([["row", "class"], [1, 2]], "columns row, class where row,column,class"),
        ([["row", "column", "label"], [1, 2, 3]], "row,column,class"),
        ([[]], "columns none"),
        ([["row", "column", "class"], [1, "two", 3]], "in line 2"),
        ([["row", "column", "class"], [1, 2, 3], [1]], "in line 3"),
        ([["row", "column", "class"], ["nan", 2, 3]], "not finite"),
        ([["row", "column", "class"], [1, 2, 3], [1, 3, "water"]], "class 3 among names"),
        ([["row", "column", "class"], [1, 2, "a"], [1, 3, ""]], "class '' among names"),
        ([["row", "column", "class"], [6, 0, 1], [0, 0, 2]], "row 6, column 0, outside"),
        (
            [["row", "column", "class"], [0, 0, 1], [0, 0, 2]],
            "row 0, column 0 two classes, 1 and 2",
        ),
        ([["row", "column", "class"], [0, 0, 1], [0, 1, 0]], "class code 0"),
        ([["row", "column", "class"], [0, 0, -1], [0, 1, 2]], "class code -1 where 1 to 32767"),
        ([["row", "column", "class"], [0, 0, 10**20], [0, 1, 2]], f"class code {10**20} where"),
        ([["row", "column", "class"], [0, 0, 1], [0, 1, 1]], "have 1 class"),
        ([["row", "column", "class"]], "have 0 class"),
        ([["row", "column", "class"], [0, 0.5, 1], [0, 1, 2]], "not a whole number"),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, rows, sentence):
    with pytest.raises(FoveateError, match=sentence):
        read_labels(table(tmp_path / "a.csv", rows), SHAPE)


def test_codes_as_spreadsheets_write_them(tmp_path: Path):
    rows = [["row", "column", "class"], [0, 0, "10.0"], [0, 1, "2.0"]]
    labels = read_labels(table(tmp_path / "a.csv", rows), SHAPE)
    assert labels.to_map()[0, :2].tolist() == [10, 2]
    assert labels.names == {}


def test_a_table_that_is_no_text(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"row,column,class\n1,2,\xff\n")
    with pytest.raises(FoveateError, match="; save them as UTF-8 text"):
        read_labels(tmp_path / "a.csv", SHAPE)


def test_names_are_one_plain_line():
    """Control characters, halves of characters and marks that turn text round do not get in."""
    labels = SceneLabels.from_points(
        [[0, 0], [0, 1], [1, 0], [1, 1]], [1, 2, 3, 4], SHAPE,
        names={1: "r\x1b[31med\r\n\x07", 2: "a\u202eb\ud800\u2028", 3: "\0\n", 4: "x" * 999},
    )  # fmt: skip
    assert labels.names == {1: "r [31med", 2: "a b", 4: "x" * 200}
    assert labels.name(3) == "class 3"
    labels.names[2].encode("utf-8")


# GeoJSON


def collection(path: Path, *shapes: tuple, **content) -> Path:
    features = [
        {
            "type": "Feature",
            "properties": properties if isinstance(properties, dict) else {"class": properties},
            "geometry": {"type": kind, "coordinates": numbers},
        }
        for properties, kind, numbers in shapes
    ]
    path.write_text(
        json.dumps({"type": "FeatureCollection", "features": features, **content}), "utf-8"
    )
    return path


def square(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def test_polygons_with_holes_and_points(tmp_path: Path):
    path = collection(
        tmp_path / "a.geojson",
        ("field", "Polygon", [square(1, 0, 6, 5), square(2, 1, 5, 4)]),
        ("water", "MultiPolygon", [[square(7, 0, 9, 1)], [square(7, 2, 8, 6)]]),
        ("road", "Point", [0.5, 5.99]),
        ("road", "MultiPoint", [[3.2, 2.7], [0, 0]]),
    )
    expected = np.zeros(SHAPE, dtype=int)
    expected[0:5, 1:6] = 1
    expected[1:4, 2:5] = 0
    expected[0, 7:9] = expected[2:6, 7] = 3
    expected[5, 0] = expected[2, 3] = expected[0, 0] = 2
    labels = read_labels(path, SHAPE)
    np.testing.assert_array_equal(labels.to_map(), expected)
    assert labels.names == {1: "field", 2: "road", 3: "water"}


def inside(rings, x, y):
    """Even-odd rule, one point at a time: count the edges to the right of it."""
    odd = False
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                odd = not odd
    return odd


corner = st.tuples(st.floats(0, 9, width=16), st.floats(0, 6, width=16))
ring_of_corners = st.lists(corner, min_size=3, max_size=7)


@settings(max_examples=80, deadline=None)
@given(rings=st.lists(ring_of_corners, min_size=1, max_size=3))
def test_any_polygon_labels_the_pixels_whose_centre_is_inside(rings):
    from foveate.datasets.scene_label_shapes import Place, _pixels

    place = Place(Path("a"), SHAPE, None, {})
    found = _pixels(
        place, {"type": "Polygon", "coordinates": [[list(p) for p in r] for r in rings]}
    )
    expected = [
        [row, column]
        for row in range(SHAPE[0])
        for column in range(SHAPE[1])
        if inside(rings, column + 0.5, row + 0.5)
    ]
    assert found.tolist() == expected


def test_georeferenced_polygons_agree_with_gdal(tmp_path: Path):
    pytest.importorskip("rasterio")
    import rasterio.features

    generator = np.random.default_rng(3)
    angles = np.sort(generator.uniform(0, 2 * np.pi, (2, 9)), axis=1)
    radii = generator.uniform(8, 19, (2, 9))
    shape, georeference = (40, 90), Georeference("EPSG:32632", (2.0, 0.3, 5e5, 0.1, -3.0, 4e6))
    shapes = []
    for centre, angle, radius in zip(((20, 20), (20, 65)), angles, radii, strict=True):
        rows, columns = centre[0] + radius * np.sin(angle), centre[1] + radius * np.cos(angle)
        x, y = georeference.to_xy(rows, columns)
        corners = np.stack([x, y], axis=1).tolist()
        shapes.append({"type": "Polygon", "coordinates": [[*corners, corners[0]]]})
    expected = rasterio.features.rasterize(
        [(shapes[0], 4), (shapes[1], 5)],
        out_shape=shape,
        transform=rasterio.Affine(*georeference.transform),
    )
    path = collection(
        tmp_path / "a.json",
        *((code, s["type"], s["coordinates"]) for code, s in zip((4, 5), shapes, strict=True)),
    )
    labels = read_labels(path, shape, georeference)
    assert min(labels.counts().values()) > 200
    np.testing.assert_array_equal(labels.to_map(), expected)


def test_the_property_is_chosen(tmp_path: Path):
    path = collection(
        tmp_path / "a.geojson",
        ({"label": 4, "name": "rye", "crop": "b"}, "Point", [0, 0]),
        ({"label": 2.0, "name": "oats", "crop": "a"}, "Point", [1, 0]),
    )
    labels = read_labels(path, SHAPE)
    assert (labels.codes.tolist(), labels.names) == ([4, 2], {4: "rye", 2: "oats"})
    labels = read_labels(path, SHAPE, class_property="crop")
    assert (labels.codes.tolist(), labels.names) == ([2, 1], {1: "a", 2: "b"})
    with pytest.raises(FoveateError, match="no property depth on each of their 2 features"):
        read_labels(path, SHAPE, class_property="depth")


def test_overlapping_polygons_of_two_classes_are_refused(tmp_path: Path):
    overlapping = ((1, "Polygon", [square(0, 0, 4, 4)]), (2, "Polygon", [square(3, 3, 5, 5)]))
    with pytest.raises(FoveateError, match="row 3, column 3 two classes, 1 and 2"):
        read_labels(collection(tmp_path / "a.geojson", *overlapping), SHAPE)
    same = ((1, *overlapping[0][1:]), (1, *overlapping[1][1:]), (2, "Point", [8, 0]))
    labels = read_labels(collection(tmp_path / "b.geojson", *same), SHAPE)
    assert labels.counts() == {1: 16 + 4 - 1, 2: 1}


def test_a_shape_without_a_pixel_s_centre_is_told(tmp_path: Path):
    shapes = (
        (1, "Polygon", [square(0.6, 0.6, 1.4, 1.4)]),
        *((code, "Point", [code, 0]) for code in (1, 2)),
    )
    with pytest.warns(UserWarning, match="1 of 3 shapes .* contain no pixel's centre"):
        labels = read_labels(collection(tmp_path / "a.geojson", *shapes), SHAPE)
    assert labels.counts() == {1: 1, 2: 1}


@pytest.mark.parametrize(
    ("kind", "numbers", "sentence"),
    [
        ("Polygon", [square(0, 0, 4, 7)], "outside the scene of 6 x 9 pixels .* pixels"),
        ("Polygon", [square(-1, 0, 4, 4)], "outside the scene"),
        ("Polygon", [square(1e30, 1e30, 2e30, 2e30)], r"column 1e\+30\); coordinates"),
        ("Polygon", [square(40.1, 3.1, 40.2, 3.2)], "row 3, column 40"),  # smaller than a pixel
        ("Point", [9, 0], "row 0, column 9"),
        ("Point", [1], "not two numbers"),
        ("Point", ["a", "b"], "not two numbers"),
        ("Point", [float("nan"), 1], "not finite"),
        ("Polygon", [[[0, 0], [1, 1]]], "fewer than three corners"),
        ("Polygon", [], "fewer than three corners"),
        ("LineString", [[0, 0], [1, 1]], "geometry LineString"),
    ],
)
def test_shapes_that_cannot_be(tmp_path: Path, kind, numbers, sentence):
    path = collection(tmp_path / "a.geojson", (1, kind, numbers), (2, "Point", [0, 0]))
    with pytest.raises(FoveateError, match=sentence):
        read_labels(path, SHAPE)


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100000, '{"type": "FeatureCollection", "features": [3]}', '"a"', "{}"]
)
def test_files_that_are_no_geojson(tmp_path: Path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(FoveateError, match="as a GeoJSON FeatureCollection"):
        read_labels(tmp_path / "a.geojson", SHAPE)


def test_another_coordinate_system_is_refused(tmp_path: Path):
    shapes = ((1, "Point", [500005, 3999995]), (2, "Point", [500015, 3999995]))
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    labels = read_labels(collection(tmp_path / "a.geojson", *shapes, crs=crs), SHAPE, UTM)
    assert labels.coordinates.tolist() == [[0, 0], [0, 1]]
    crs["properties"]["name"] = "urn:ogc:def:crs:OGC:1.3:CRS84"
    with pytest.raises(FoveateError, match="are in EPSG:4326, the scene is in EPSG:32632"):
        read_labels(collection(tmp_path / "a.geojson", *shapes, crs=crs), SHAPE, UTM)
    degrees = ((1, "Point", [9.0, 36.1]), (2, "Point", [9.1, 36.1]))
    with pytest.raises(FoveateError, match=r"coordinate system \(EPSG:32632\)"):
        read_labels(collection(tmp_path / "b.geojson", *degrees), SHAPE, UTM)
