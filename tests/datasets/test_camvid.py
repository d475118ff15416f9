"""CamVid's three layouts against miniatures of a second writer, and against the real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.datasets import camvid, catalogue
from foveate.datasets.camvid import CamVid, split_of
from foveate.errors import FoveateError
from make_miniatures import scenes as mini

NAMES = {
    "train": ["0001TP_006690", "0006R0_f00930"],
    "val": ["0016E5_07959"],
    "test": ["0001TP_008550", "Seq05VD_f00000", "Seq05VD_f00030"],
}


@pytest.mark.parametrize("layout", ["pair", "segnet"])
@pytest.mark.parametrize("split", NAMES)
def test_pictures_and_labels(tmp_path: Path, layout, split):
    if layout == "pair":
        mini.write_camvid_pair(tmp_path / "segmentation", NAMES)
    else:
        mini.write_camvid_segnet(tmp_path / "CamVid", NAMES)
    dataset = CamVid(tmp_path, split)
    assert list(dataset.names) == NAMES[split]
    assert len(dataset) == len(NAMES[split])
    for k in range(len(dataset)):
        picture, labels = dataset[k]
        assert (picture.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert tuple(picture.shape) == (3, mini.HEIGHT, mini.WIDTH)
        np.testing.assert_array_equal(labels.numpy(), mini.label_map(k))
        expected = mini.photo(k).transpose(2, 0, 1)
        slack = 4 if layout == "pair" else 0  # JPEG
        assert np.abs(picture.numpy().astype(int) - expected).max() <= slack
    pictures, maps = dataset.arrays()
    assert pictures.dtype == maps.dtype == np.uint8
    np.testing.assert_array_equal(pictures[-1], picture.numpy())
    np.testing.assert_array_equal(maps[-1], labels.numpy())


def test_official_colours_are_grouped_into_eleven_classes(tmp_path: Path):
    """Every one of the 32 colours, and one that is none of them."""
    colours = [colour for colour, _ in mini.CAMVID_COLOURS.values()]
    numbers = [number for _, number in mini.CAMVID_COLOURS.values()]
    label = np.array([*colours, (1, 2, 3)], np.uint8)[None].repeat(2, 0)
    mini.write_camvid_official(tmp_path / "CamVid", [*NAMES["train"], *NAMES["test"]], label)
    train, test = CamVid(tmp_path), CamVid(tmp_path, "test")
    assert list(train.names) == NAMES["train"]
    assert list(test.names) == NAMES["test"]
    assert len(mini.CAMVID_COLOURS) == 32
    _, labels = train[0]
    assert labels.tolist() == [[*numbers, CamVid.VOID]] * 2
    assert train.classes[:3] == ("sky", "building", "pole")
    with pytest.raises(FoveateError, match="no frame of the split 'val' of CamVid"):
        CamVid(tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001TP_008520", "train"),
        ("0001TP_008550", "test"),
        ("0016E5_07929", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_07960", "train"),
        ("0016E5_08159", "val"),
        ("0016E5_08161", "train"),
        ("0006R0_f03930", "train"),
        ("Seq05VD_f05100", "test"),
        ("0001TP", None),
        ("0001TP_008520_L", None),
        ("../0001TP_008520", None),
    ],
)
def test_split_of(name, split):
    assert split_of(name) == split


def test_frames_without_label_or_of_another_size(tmp_path: Path):
    mini.write_camvid_segnet(tmp_path, NAMES)
    mini.save(tmp_path / "val" / "0016E5_07959.png", mini.photo(0, 10, 12))
    with pytest.raises(FoveateError, match=r"picture of \(10, 12\) and labels of \(18, 24\)"):
        CamVid(tmp_path, "val")[0]
    mini.save(tmp_path / "test" / "Seq05VD_f00000.png", mini.photo(0, 10, 12))
    mini.save(tmp_path / "testannot" / "Seq05VD_f00000.png", mini.label_map(0)[:10, :12])
    with pytest.raises(FoveateError, match=r"has \(10, 12\) pixels after frames of \(18, 24\)"):
        CamVid(tmp_path, "test").arrays()
    mini.save(tmp_path / "trainannot" / "0001TP_006690.png", mini.label_map(0) + 1)
    with pytest.raises(FoveateError, match="has the class 12 where 0 to 11"):
        CamVid(tmp_path)[0]
    mini.save(tmp_path / "trainannot" / "0001TP_006690.png", mini.photo(0))
    with pytest.raises(FoveateError, match=r"class numbers .* expected, mode is RGB"):
        CamVid(tmp_path)[0]
    (tmp_path / "trainannot" / "0001TP_006690.png").unlink()
    with pytest.raises(FoveateError, match=r"the frame '0001TP_006690' .* has no label"):
        CamVid(tmp_path)


def test_pair_that_does_not_agree(tmp_path: Path):
    mini.write_camvid_pair(tmp_path, NAMES)
    path = tmp_path / "camvid_240x180_labels.npz"
    maps, names = np.stack([mini.label_map(0)]), np.array(["0016E5_07959"])
    for changed, sentence in (
        ({"label_val": maps[0], "name_val": names}, "and N names were expected"),
        ({"label_val": maps, "name_val": np.array([1])}, "and N names were expected"),
        ({"label_val": maps.astype(np.int64), "name_val": names}, "and N names were expected"),
        ({"label_val": maps + 200, "name_val": names}, "where 0 to 11"),
        ({"label_val": maps, "name_val": np.array(["../etc"])}, "cannot read the pictures of"),
        ({"name_val": names}, "it has no array 'label_val'"),
    ):
        np.savez(path, **changed)
        with pytest.raises(FoveateError, match=sentence):
            CamVid(tmp_path, "val")
    np.savez(path, label_val=maps, name_val=names)
    (tmp_path / "camvid_240x180_jpg.zip").write_bytes(b"PK nonsense")
    with pytest.raises(FoveateError, match="cannot read the pictures of"):
        CamVid(tmp_path, "val")


def test_limits(tmp_path: Path, monkeypatch):
    mini.write_camvid_pair(tmp_path, NAMES)
    monkeypatch.setattr(camvid, "MAX_BYTES", 2000)
    with pytest.raises(FoveateError, match=r"would take .* GiB as one array"):
        CamVid(tmp_path).arrays()
    monkeypatch.setattr(camvid, "_MAX_JPEG_BYTES", 100)
    with pytest.raises(FoveateError, match=r"train/0001TP_006690\.jpg claims"):
        CamVid(tmp_path)


def test_unknown_split_and_absence(tmp_path: Path):
    with pytest.raises(FoveateError, match="no split 'all'; choose one of train, val, test"):
        CamVid(tmp_path, "all")
    with pytest.raises(FoveateError, match="no frame of the split 'train' of CamVid is below"):
        CamVid(tmp_path)


def test_catalogue_sees_the_miniature(tmp_path: Path):
    mini.main(tmp_path)
    row = next(row for row in catalogue.rows(tmp_path) if row["name"] == "camvid")
    assert row["status"] == "pictures: 3, labels: 3"
    assert row["loader"] == "foveate.datasets.camvid.CamVid"


def test_real_frames_and_their_split(shared_data: Path):
    counts = {}
    for split in ("train", "val", "test"):
        dataset = CamVid(shared_data, split)
        counts[split] = len(dataset)
        assert {split_of(name) for name in dataset.names} == {split}
    assert counts == {"train": 367, "val": 101, "test": 233}
    pictures, maps = CamVid(shared_data, "val").arrays()
    assert pictures.shape == (101, 3, 180, 240)
    assert maps.shape == (101, 180, 240)
    # Sky is above the road, in the mean over all frames.
    rows = np.arange(180)
    sky, road = ((maps == k).sum((0, 2)) for k in (0, 3))
    assert (rows * sky).sum() / sky.sum() < 60 < 110 < (rows * road).sum() / road.sum()
    # Names of consecutive frames: 15 Hz, every second number.
    assert CamVid(shared_data, "val").names[:2] == ("0016E5_07959", "0016E5_07961")
