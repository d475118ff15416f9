"""CelebAMask-HQ against a miniature in its official layout, and against damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.datasets.celebamask_hq import CelebAMaskHQ
from foveate.errors import FoveateError

# The authors' list of parts, typed here a second time.
PARTS = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
# index -> (partition of CelebA, {part: rows of its mask})
FACES = {
    0: (0, {"skin": (0, 400), "hair": (0, 100), "mouth": (300, 320)}),
    7: (1, {"skin": (0, 512)}),
    1999: (0, {"skin": (10, 20), "cloth": (15, 30)}),
    2000: (2, {"hat": (0, 8), "skin": (0, 16)}),
}


def write_faces(folder: Path, side: int = 1024) -> Path:
    folder = folder / "CelebAMask-HQ"
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    mapping, partition = [], []
    for k, (index, (part_of, parts)) in enumerate(FACES.items()):
        picture = np.full((side, side, 3), (index % 200, 100, 50), np.uint8)
        Image.fromarray(picture).save(folder / "CelebA-HQ-img" / f"{index}.jpg", quality=98)
        masks = folder / "CelebAMask-HQ-mask-anno" / str(index // 2000)
        masks.mkdir(parents=True, exist_ok=True)
        for part, (first, last) in parts.items():
            mask = np.zeros((512, 512), np.uint8)
            mask[first:last] = 255
            image = Image.fromarray(mask)
            if k % 2:  # some of the official masks are RGB
                image = image.convert("RGB")
            image.save(masks / f"{index:05d}_{part}.png")
        mapping.append(f"{index:5d}       {90000 + k}      {90001 + k:06d}.jpg")
        partition.append(f"{90001 + k:06d}.jpg {part_of}")
    head = "idx   orig_idx   orig_file"
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join([head, *mapping]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return write_faces(tmp_path_factory.mktemp("celeb"))


@pytest.mark.parametrize("below", [False, True])
def test_split_follows_celebas_partition_through_the_mapping(faces, below):
    root = faces if below else faces.parent
    found = {split: CelebAMaskHQ(root, split).indices for split in ("train", "val", "test")}
    assert found == {"train": (0, 1999), "val": (7,), "test": (2000,)}
    assert len(CelebAMaskHQ(root)) == 2


def test_parts_are_numbered_by_the_authors_list_and_later_ones_lie_on_top(faces):
    dataset = CelebAMaskHQ(faces.parent)
    assert dataset.classes == ("background", *PARTS)
    assert len(dataset.classes) == 19
    picture, labels = dataset[0]
    assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, 512, 512))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (512, 512))
    assert picture.float().mean((1, 2)).tolist() == pytest.approx([0, 100, 50], abs=3)
    rows = labels[:, 5].tolist()
    number = {part: k for k, part in enumerate(PARTS, 1)}
    assert rows[:100] == [number["hair"]] * 100
    assert rows[100:300] == [number["skin"]] * 200
    assert rows[300:320] == [number["mouth"]] * 20
    assert rows[320:400] == [number["skin"]] * 80
    assert set(rows[400:]) == {0}
    assert (labels == labels[:, :1]).all()
    _, labels = dataset[1]  # folder 0 holds up to 1999
    assert labels[10:30, 0].tolist() == [number["skin"]] * 5 + [number["cloth"]] * 15
    _, labels = CelebAMaskHQ(faces.parent, "test")[0]  # folder 1; RGB masks
    assert labels[:17, 0].tolist() == [number["hat"]] * 8 + [number["skin"]] * 8 + [0]


def test_card_counts_the_miniature(faces):
    found = CelebAMaskHQ.card.find(faces.parent)
    assert found.present
    assert dict(found.counts) == {"pictures": 4, "masks": 4, "lists": 2}
    assert "non-commercial" in CelebAMaskHQ.card.licence


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list_eval_partition.txt", None, r"cannot read .*list_eval_partition\.txt"),
        ("list_eval_partition.txt", "090001.jpg 3\n", "line 1: expected NAME.jpg and 0, 1 or 2"),
        ("list_eval_partition.txt", "090001.jpg 0\n", "line 3, names '090002.jpg', which"),
        ("CelebA-HQ-to-CelebA-mapping.txt", None, "cannot read .*mapping"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "0 1\n", "line 1: expected idx, orig_idx"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "-1 1 090001.jpg\n", "line 1: expected idx"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "\n", "gives no picture of the split 'train'"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "\xff", "line 1: expected idx"),
    ],
)
def test_damaged_lists_are_one_sentence(tmp_path, name, text, said):
    folder = write_faces(tmp_path, side=8)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(FoveateError, match=said) as error:
        CelebAMaskHQ(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_pictures_and_masks_are_one_sentence(tmp_path):
    folder = write_faces(tmp_path, side=8)
    with pytest.raises(FoveateError, match="no split 'all'"):
        CelebAMaskHQ(tmp_path, "all")
    mask = folder / "CelebAMask-HQ-mask-anno" / "0" / "00000_skin.png"
    Image.new("L", (10, 10)).save(mask)
    dataset = CelebAMaskHQ(tmp_path)
    with pytest.raises(FoveateError, match=r"has \(10, 10\) pixels where \(512, 512\)"):
        dataset[0]
    mask.write_bytes(b"no picture")
    with pytest.raises(FoveateError, match="cannot read the picture"):
        dataset[0]
    for path in mask.parent.glob("01999_*"):
        path.unlink()
    with pytest.raises(FoveateError, match="holds no mask of the picture 1999"):
        dataset[1]
    (folder / "CelebA-HQ-img" / "1999.jpg").unlink()
    with pytest.raises(FoveateError, match="cannot read the picture"):
        dataset[1]
