"""PASCAL VOC against miniatures of a second writer, and against hostile annotations."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.datasets import catalogue, voc
from foveate.datasets.voc import VOCDetection, VOCSegmentation
from foveate.errors import FoveateError
from make_miniatures import scenes as mini

OBJECTS = {
    "2008_000002": [("tvmonitor", (3, 4, 10, 12), 0), ("person", (1, 1, 24, 18), 1)],
    "2008_000001": [],
}


def test_boxes_are_0_based_with_exclusive_ends(tmp_path: Path):
    mini.write_voc(tmp_path, OBJECTS)
    dataset = VOCDetection(tmp_path)
    assert dataset.names == tuple(OBJECTS)  # the list's order
    photo, objects = dataset[0]
    assert (photo.dtype, tuple(photo.shape)) == (torch.uint8, (3, mini.HEIGHT, mini.WIDTH))
    assert objects.boxes.tolist() == [[2, 3, 10, 12], [0, 0, 24, 18]]
    assert objects.boxes.dtype == np.float32
    assert [dataset.classes[k] for k in objects.labels] == ["tvmonitor", "person"]
    assert objects.ignore.tolist() == [False, True]
    assert len(objects) == 2
    empty = dataset.objects(1)
    assert empty.boxes.shape == (0, 4)
    assert len(empty) == 0


def test_class_numbers_are_the_official_ones():
    """Alphabetical, 1 aeroplane ... 15 person ... 20 tvmonitor, as in the palette's order."""
    classes = VOCDetection.card.classes
    assert len(classes) == 20
    assert list(classes) == sorted(classes)
    assert (classes[0], classes[14], classes[19]) == ("aeroplane", "person", "tvmonitor")


def test_label_maps_are_palette_indices(tmp_path: Path):
    mini.write_voc(tmp_path, OBJECTS)
    dataset = VOCSegmentation(tmp_path)
    assert dataset.classes[0] == "background"
    assert len(dataset.classes) == 21
    photo, labels = dataset[1]
    expected = (mini.label_map(1).astype(int) + 10) % 21
    expected[0, 0] = 255
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels.numpy(), expected)
    assert tuple(photo.shape[1:]) == labels.shape


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_years_and_places(tmp_path: Path, below):
    mini.write_voc(tmp_path, {"000005": [("dog", (1, 1, 2, 2), 0)]}, "2007", "test")
    assert len(VOCDetection(tmp_path / below, "test", "2007")) == 1
    if not below.endswith("2007"):
        with pytest.raises(FoveateError, match=r"cannot read .*VOC2012.*test\.txt"):
            VOCDetection(tmp_path / below, "test")


@pytest.mark.parametrize(
    ("split", "year"), [("all", "2012"), ("train", "2013"), ("train", "../"), ("train", 2013)]
)
def test_unknown_split_or_year(tmp_path: Path, split, year):
    with pytest.raises(FoveateError, match="VOC has the splits train, val, trainval, test"):
        VOCDetection(tmp_path, split, year)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot read .*xml as an annotation"),
        ("<annotation>", "cannot read .*xml as an annotation"),
        ("<a><object><name>unicorn</name></object></a>", "names the class 'unicorn'"),
        ("<a><object><name>dog</name></object></a>", "has the box nan, nan, nan, nan"),
        (
            "<a><object><name>dog</name><bndbox><xmin>9</xmin><ymin>1</ymin><xmax>3</xmax>"
            "<ymax>4</ymax></bndbox></object></a>",
            "has the box 9.0, 1.0, 3.0, 4.0",
        ),
        (
            "<a><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1e9</xmax>"
            "<ymax>4</ymax></bndbox></object></a>",
            "has the box",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><a>&c;&c;</a>',
            "declares a document type",
        ),
    ],
)
def test_hostile_annotations(tmp_path: Path, text, sentence):
    folder = mini.write_voc(tmp_path, OBJECTS)
    (folder / "Annotations" / "2008_000002.xml").write_text(text)
    with pytest.raises(FoveateError, match=sentence) as caught:
        VOCDetection(tmp_path)[0]
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=40)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_error_or_boxes(data):
    with tempfile.TemporaryDirectory() as scratch:
        folder = mini.write_voc(Path(scratch), {"a": []})
        path = folder / "Annotations" / "a.xml"
        path.write_bytes(data)
        dataset = VOCDetection(scratch)
        with pytest.raises(FoveateError, match=r"a\.xml"):
            dataset.objects(0)


def test_lists_that_name_other_places(tmp_path: Path):
    folder = mini.write_voc(tmp_path, OBJECTS)
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.write_text("../../secret\n")
    with pytest.raises(FoveateError, match=r"lists '\.\./\.\./secret', which is no name"):
        VOCDetection(tmp_path)
    path.write_text("\n")
    with pytest.raises(FoveateError, match="lists no photo"):
        VOCDetection(tmp_path)


def test_label_maps_that_do_not_fit(tmp_path: Path, monkeypatch):
    folder = mini.write_voc(tmp_path, OBJECTS)
    path = folder / "SegmentationClass" / "2008_000002.png"
    Image.new("P", (5, 5)).save(path)
    with pytest.raises(FoveateError, match=r"has \(5, 5\) pixels where its photo has \(18, 24\)"):
        VOCSegmentation(tmp_path)[0]
    mini.save(path, np.full((mini.HEIGHT, mini.WIDTH), 21, np.uint8))
    with pytest.raises(FoveateError, match="has the class 21 where 0 to 20 or 255"):
        VOCSegmentation(tmp_path)[0]
    monkeypatch.setattr(voc, "_MAX_TEXT_BYTES", 10)
    with pytest.raises(FoveateError, match=r"train\.txt \(it has 24 bytes\)"):
        VOCSegmentation(tmp_path)


def test_catalogue_sees_the_miniature(tmp_path: Path):
    mini.main(tmp_path)
    row = next(row for row in catalogue.rows(tmp_path) if row["name"] == "VOC2012")
    assert row["status"] == "splits: 2, folders: 3"
