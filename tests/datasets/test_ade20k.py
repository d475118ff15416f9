"""ADE20K against a miniature in the layout of the scene parsing challenge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.datasets.ade20k import ADE20K
from foveate.errors import FoveateError
from make_miniatures import scenes as mini


def write_ade(folder: Path, table: bool = True) -> Path:
    folder = folder / "ADEChallengeData2016"
    for place, short, count in (("training", "train", 3), ("validation", "val", 1)):
        for k in range(count):
            name = f"ADE_{short}_{k + 1:08d}"
            mini.save(folder / "images" / place / f"{name}.jpg", mini.photo(k, 20 + k, 30))
            mini.save(folder / "annotations" / place / f"{name}.png", labels(k))
    if table:
        rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
        rows += [
            f"{k}\t{0.1 / k:.4f}\t{100 + k}\t{10 + k}\t{k % 2}\tthing {k}, other name; third"
            for k in range(1, 151)
        ]
        (folder / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return folder


def labels(k: int) -> np.ndarray:
    return ((np.arange((20 + k) * 30) * 7) % 151).reshape(20 + k, 30).astype(np.uint8)


@pytest.mark.parametrize("below", ["", "ADEChallengeData2016"])
def test_pictures_and_labels(tmp_path, below):
    write_ade(tmp_path)
    dataset = ADE20K(tmp_path / below)
    assert dataset.names == tuple(f"ADE_train_{k:08d}" for k in (1, 2, 3))
    assert len(ADE20K(tmp_path / below, "val")) == 1
    for k in range(3):
        picture, found = dataset[k]
        assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, 20 + k, 30))
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found.numpy(), labels(k))
    assert len(dataset.classes) == 151
    assert (dataset.classes[0], dataset.classes[1], dataset.classes[150]) == (
        "other", "thing 1", "thing 150",
    )  # fmt: skip


def test_without_the_table_classes_have_numbers(tmp_path):
    write_ade(tmp_path, table=False)
    assert ADE20K(tmp_path).classes[150] == "class 150"


def test_card_counts_the_miniature(tmp_path):
    assert not ADE20K.card.find(tmp_path).present
    write_ade(tmp_path)
    found = ADE20K.card.find(tmp_path)
    assert found.present
    assert dict(found.counts) == {"pictures": 4, "labels": 4}


def test_what_is_missing_or_damaged_is_one_sentence(tmp_path):
    with pytest.raises(FoveateError, match="no picture of the split 'train' of ADE20K"):
        ADE20K(tmp_path)
    with pytest.raises(FoveateError, match="no split 'test'"):
        ADE20K(tmp_path, "test")
    folder = write_ade(tmp_path)
    path = folder / "annotations" / "training" / "ADE_train_00000001.png"
    dataset = ADE20K(tmp_path)
    mini.save(path, np.full((20, 30), 151, np.uint8))
    with pytest.raises(FoveateError, match="has the class 151 where 0 to 150"):
        dataset[0]
    Image.new("L", (5, 5)).save(path)
    with pytest.raises(FoveateError, match=r"has \(5, 5\) pixels where its picture has \(20, 30\)"):
        dataset[0]
    path.write_bytes(b"x")
    with pytest.raises(FoveateError, match="cannot read the picture"):
        dataset[0]
    path.unlink()
    with pytest.raises(FoveateError, match="has no label map"):
        ADE20K(tmp_path)


@pytest.mark.parametrize("text", ["", "1\t0\t0\t0\t0\twall\n", "\x00"])
def test_damaged_tables_are_one_sentence(tmp_path, text):
    folder = write_ade(tmp_path)
    (folder / "objectInfo150.txt").write_text(text)
    with pytest.raises(FoveateError, match="cannot read the 150 class names"):
        ADE20K(tmp_path)
