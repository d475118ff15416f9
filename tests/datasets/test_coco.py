"""COCO against miniatures of a second writer, brute-force masks and hostile annotations."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets import catalogue, coco
from foveate.datasets.coco import COCO
from foveate.errors import FoveateError
from make_miniatures import scenes as mini


def opened(root: Path, content: object = None) -> COCO:
    mini.write_coco(root / "COCO", mini.coco_annotations(), "val")
    if content is not None:
        path = root / "COCO" / "annotations" / "instances_val2017.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return COCO(root, "val")


def test_pictures_boxes_and_classes(tmp_path: Path):
    dataset = opened(tmp_path)
    assert dataset.image_ids == (100, 200, 300)  # in order of number, not of the file
    assert dataset.names == ("000000000100.jpg", "000000000200.jpg", "000000000300.jpg")
    assert dataset.class_ids == (1, 18)
    assert dataset.classes == ("person", "dog")
    picture, objects = dataset[2]
    assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, mini.HEIGHT, mini.WIDTH))
    assert abs(int(picture[2].float().mean()) - 0) <= 3  # written first: photo(0)
    assert objects.boxes.tolist() == [[2, 3, 10, 8], [2, 3, 20, 17]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.ignore.tolist() == [False, False]
    assert dataset.objects(0).ignore.tolist() == [True]
    assert len(dataset.objects(1)) == 0
    assert dataset.masks(1).shape == (0, mini.HEIGHT, mini.WIDTH)


def test_masks(tmp_path: Path):
    dataset = opened(tmp_path)
    first, second = dataset.masks(2)
    square = np.zeros((mini.HEIGHT, mini.WIDTH), bool)
    square[3:8, 2:10] = True
    np.testing.assert_array_equal(first, square)
    assert second[3:8, 2:10].all()
    assert second[10, 12]
    assert not second[16, 19]
    assert second.sum() == pytest.approx(40 + 8 * 7 / 2, abs=8)
    (crowd,) = dataset.masks(0)  # runs go down the columns
    expected = np.zeros_like(square)
    expected[2:7, 4:6] = True
    np.testing.assert_array_equal(crowd, expected)


def winding(points: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule by a ray to the left, point by point; no array code."""
    inside = False
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > y) != (y1 > y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            inside = not inside
    return inside


@settings(deadline=None, max_examples=60)
@given(
    # Quarter pixels off the centres' lines: no vertex is level with a centre.
    points=st.lists(
        st.tuples(st.integers(-12, 60), st.integers(-12, 60)).map(
            lambda p: (p[0] / 4 + 1 / 8, p[1] / 4 + 1 / 8)
        ),
        min_size=3,
        max_size=9,
    )
)
def test_polygons_hold_the_pixels_whose_centres_they_hold(points):
    mask = coco._inside(np.array(points), 12, 14)
    for row in range(12):
        for column in range(14):
            crossings = [
                x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True)
                if (y0 > row + 0.5) != (y1 > row + 0.5)
            ]
            if min((abs(c - column - 0.5) for c in crossings), default=1) < 1e-9:
                continue  # the centre lies on the outline
            assert mask[row, column] == winding(points, column + 0.5, row + 0.5)


def test_polygons_beyond_the_picture_are_cut():
    everything = coco._inside(np.array([(-1e6, -1e6), (1e6, -1e6), (1e6, 1e6), (-1e6, 1e6)]), 5, 7)
    assert everything.all()
    nothing = coco._inside(np.array([(8.0, 0.0), (20.0, 0.0), (20.0, 9.0)]), 5, 7)
    assert not nothing.any()


def test_masks_are_the_official_tools_but_for_the_border():
    tool = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    generator = np.random.default_rng(0)
    for _ in range(20):
        angle = np.sort(generator.uniform(0, 2 * math.pi, 9))
        radius = generator.uniform(8, 20, 9)
        points = np.stack([30 + radius * np.cos(angle), 25 + radius * np.sin(angle)], 1)
        runs = tool.frPyObjects([points.reshape(-1).tolist()], 50, 60)
        theirs = tool.decode(tool.merge(runs)).astype(bool)
        mine = coco._inside(points, 50, 60)
        assert (mine & theirs).sum() / (mine | theirs).sum() > 0.95


def test_absence_unknown_split_and_wrong_size(tmp_path: Path):
    with pytest.raises(FoveateError, match="choose train or val"):
        COCO(tmp_path, "test")
    with pytest.raises(FoveateError, match=r"cannot read .*instances_train2017\.json"):
        COCO(tmp_path)
    dataset = opened(tmp_path)
    mini.save(tmp_path / "COCO" / "val2017" / dataset.names[0], mini.photo(0, 9, 9))
    with pytest.raises(FoveateError, match=r"has \(9, 9\) pixels where \(18, 24\)"):
        dataset[0]
    (tmp_path / "COCO" / "val2017" / dataset.names[0]).unlink()
    with pytest.raises(FoveateError, match="cannot read the picture"):
        dataset[0]


def changed(**changes: object) -> dict:
    """The miniature's content; ``images__width=7`` sets a field of the first picture."""
    content = copy.deepcopy(mini.coco_annotations())
    for key, value in changes.items():
        part, field = key.split("__")
        content[part][0][field] = value
    return content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "cannot read .*json"),
        ("[1]", "it holds no object"),
        ("[" * 100_000, "cannot read .*json"),
        ('{"categories": 3}', "no list of objects 'categories'"),
        ('{"categories": [3]}', "no list of objects 'categories'"),
        ({**mini.coco_annotations(), "images": [], "annotations": []}, "no picture"),
        (changed(images__file_name="../../secret.jpg"), "leaves the folder of pictures"),
        (changed(images__file_name="..\\secret.jpg"), "leaves the folder of pictures"),
        (changed(images__file_name=".."), "leaves the folder of pictures"),
        (changed(images__file_name=5), "where a short text was expected"),
        (changed(images__file_name="\ud800.jpg"), r"'\\ud800.jpg' where a short text"),
        (changed(images__width=1 << 20), "a side beyond 1 to 8192"),
        (changed(images__height=0), "a side beyond 1 to 8192"),
        (changed(images__id=True), "where a whole number was expected"),
        (changed(images__id=7), "object 501 belongs to no picture"),
        (changed(annotations__category_id=2), "unknown class 2"),
        (changed(annotations__bbox=[1, 2, 3]), "4 numbers expected"),
        (changed(annotations__bbox=[1, 2, 3, "4"]), "'4' is no number"),
        (changed(annotations__bbox=[1, 2, 3, math.nan]), "nan is no number of pixels"),
        (changed(annotations__bbox=[1, 2, 3, 1e300]), "no number of pixels"),
        (changed(annotations__bbox=[1, 2, 3, 10**400]), r"\(10{39} is no number of pixels"),
        (changed(annotations__bbox=[1, 2, -3, 4]), "object 501 has the box"),
    ],
)
def test_hostile_annotations(tmp_path: Path, content, sentence):
    with pytest.raises(FoveateError, match=sentence) as caught:
        opened(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (None, "polygons or runs expected"),
        ("abc", "polygons or runs expected"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([5], "at least three points"),
        ([[1, 2, 3, 4, 5, None]], "'None' is no number"),
        ({"size": [18, 24], "counts": "a1b2"}, "runs of a picture of 18x24"),
        ({"size": [24, 18], "counts": [432]}, "runs of a picture of 18x24"),
        ({"size": [18, 24], "counts": [431]}, "runs that add up to 432"),
        ({"size": [18, 24], "counts": [433, -1]}, "runs that add up to 432"),
        ({"size": [18, 24], "counts": [431.5, 0.5]}, "runs that add up to 432"),
        ({"size": [18, 24], "counts": []}, "runs that add up to 432"),
    ],
)
def test_hostile_masks(tmp_path: Path, shape, sentence):
    dataset = opened(tmp_path, changed(annotations__segmentation=shape))
    with pytest.raises(FoveateError, match=sentence):
        dataset.masks(2)
    assert len(dataset.objects(2)) == 2


def test_masks_have_a_limit(tmp_path: Path, monkeypatch):
    dataset = opened(tmp_path)
    monkeypatch.setattr(coco, "_MAX_MASK_BYTES", 500)
    with pytest.raises(FoveateError, match="2 masks of 18x24 pixels"):
        dataset.masks(2)


@settings(deadline=None, max_examples=40)
@given(data=st.binary(max_size=120))
def test_any_bytes_are_an_error(data):
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "annotations" / "instances_train2017.json"
        path.parent.mkdir()
        path.write_bytes(data)
        with pytest.raises(FoveateError, match="instances_train2017"):
            COCO(scratch)


def test_catalogue_sees_the_miniature(tmp_path: Path):
    mini.main(tmp_path)
    row = next(row for row in catalogue.rows(tmp_path) if row["name"] == "COCO")
    assert row["status"] == "picture folders: 2, annotations: 2"
    assert len(COCO(tmp_path)) == 3
