"""ADE20K: scenes of every kind, 150 classes, in the form of the scene parsing challenge of 2016.

Official layout of ``ADEChallengeData2016``::

    images/{training,validation}/ADE_{train,val}_NNNNNNNN.jpg
    annotations/{training,validation}/ADE_{train,val}_NNNNNNNN.png   0 other, 1..150 the classes
    objectInfo150.txt                                     a table with tabs; last column: names

Label 0 is all that is none of the 150 classes. The challenge does not count it; with it, a network
has 151 outputs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from foveate.datasets.card import DataCard
from foveate.datasets.pictures import read_label_map, read_picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ADE20K"]

_FOLDERS = {"train": "training", "val": "validation"}
_MAX_TABLE_BYTES = 1 << 20


class ADE20K:
    """Scenes with 150 classes; 0 is "other".

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train`` (20,210 pictures) or ``val`` (2,000).

    Attributes
    ----------
    names
        Names of the pictures, in order.
    classes
        ``other`` and the 150 classes, by ``objectInfo150.txt`` (the first of several names), or
        ``class 1`` ... where that file is missing.

    Raises
    ------
    FoveateError
        Nothing of the split is there, a label map is missing, or, on access, a file is damaged.

    Notes
    -----
    An item is ``(picture uint8 (3, H, W), labels int64 (H, W))``, both torch tensors; pictures have
    sizes of their own.
    """

    OTHER: ClassVar[int] = 0
    card: ClassVar[DataCard] = DataCard(
        name="ADE20K",
        title="ADE20K, scene parsing challenge (2016)",
        task="scene segmentation",
        licence="annotations BSD-3-Clause, pictures for research and education (as remembered)",
        size="20,210 / 2,000 pictures, 150 classes; 1 GB",
        url="http://sceneparsing.csail.mit.edu/",
        citation="B. Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017",
        layout=(
            "ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_*.{jpg,png}, "
            "objectInfo150.txt"
        ),
        kinds={
            "pictures": ("images/training/ADE_*.jpg", "images/validation/ADE_*.jpg"),
            "labels": ("annotations/training/ADE_*.png", "annotations/validation/ADE_*.png"),
        },
        folders=("ADEChallengeData2016", "ADE20K"),
        splits={"train": "20,210 pictures", "val": "2,000 pictures"},
        loader="foveate.datasets.ade20k.ADE20K",
        notes="the challenge's form of 150 classes, not the full annotation",
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        if split not in _FOLDERS:
            raise FoveateError(f"ADE20K has no split {split!r}; choose one of train, val")
        self.folder = self.card.find(root).path or Path(root)
        self.split = split
        place = _FOLDERS[split]
        pictures = sorted((self.folder / "images" / place).glob("ADE_*.jpg"))
        if not pictures:
            raise FoveateError(
                f"no picture of the split {split!r} of ADE20K is below {root}; expected "
                f"{self.card.layout}; see {self.card.url}"
            )
        labels = self.folder / "annotations" / place
        for path in pictures:
            if not (labels / f"{path.stem}.png").is_file():
                raise FoveateError(
                    f"the picture {path} has no label map {labels / path.stem}.png; unpack it again"
                )
        self.names: tuple[str, ...] = tuple(path.stem for path in pictures)
        self.classes: tuple[str, ...] = ("other", *_class_names(self.folder / "objectInfo150.txt"))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import torch

        name, place = self.names[index], _FOLDERS[self.split]
        picture = read_picture(self.folder / "images" / place / f"{name}.jpg")
        path = self.folder / "annotations" / place / f"{name}.png"
        labels = read_label_map(path)
        if labels.shape != picture.shape[1:]:
            raise FoveateError(
                f"{path} has {labels.shape} pixels where its picture has {picture.shape[1:]}; "
                "unpack both again"
            )
        if labels.size and int(labels.max()) >= len(self.classes):
            raise FoveateError(
                f"{path} has the class {labels.max()} where 0 to 150 was expected; unpack it again"
            )
        return torch.from_numpy(picture), torch.from_numpy(labels.astype(np.int64))


def _class_names(path: Path) -> list[str]:
    """The 150 names of the table, whose columns are Idx, Ratio, Train, Val, Stuff, Name."""
    if not path.is_file():
        return [f"class {number}" for number in range(1, 151)]
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        rows = path.read_text(encoding="utf-8").splitlines()
        names = {}
        for row in rows:
            cells = row.split("\t")
            if len(cells) > 1 and re.fullmatch("[0-9]{1,3}", cells[0].strip()):  # not the head
                names[int(cells[0])] = re.split("[,;]", cells[-1])[0].strip()
        if sorted(names) != list(range(1, 151)):
            raise ValueError(f"it names {len(names)} classes")
    except (OSError, ValueError) as error:
        raise FoveateError(
            f"cannot read the 150 class names of {path} ({error}); unpack it again"
        ) from error
    return [names[number] for number in range(1, 151)]
