"""CelebAMask-HQ: 30,000 faces, 19 classes of their parts, painted by hand.

Official layout (Lee, Liu, Wu and Luo, CVPR 2020)::

    CelebA-HQ-img/{0..29999}.jpg                            1024 x 1024
    CelebAMask-HQ-mask-anno/{0..14}/{index:05d}_{part}.png  512 x 512, 0 or 255; index // 2000
    CelebA-HQ-to-CelebA-mapping.txt                         columns idx, orig_idx, orig_file

A part that is not in the picture has no file. Parts are laid over each other in the order of the
authors' list, later ones on top. The split is that of CelebA, through the mapping, by its file
``list_eval_partition.txt`` (``000001.jpg 0``: 0 train, 1 validation, 2 test), which belongs to
CelebA and must be put beside the mapping: 24,183, 2,993 and 2,824 pictures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np

from foveate.datasets.card import DataCard
from foveate.datasets.pictures import read_picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CelebAMaskHQ"]

_MAX_TEXT_BYTES = 64 << 20
_MAX_INDEX = 10**6
_SPLITS = {"train": "0", "val": "1", "test": "2"}
_MAPPING, _PARTITION = "CelebA-HQ-to-CelebA-mapping.txt", "list_eval_partition.txt"

_PARTS = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)


class CelebAMaskHQ:
    """Faces with their parts: 0 background, 1 skin, ..., 18 cloth.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train``, ``val`` or ``test``.

    Attributes
    ----------
    indices
        Numbers of the pictures in CelebA-HQ, rising.
    classes
        ``background`` and the 18 parts.

    Raises
    ------
    FoveateError
        A list is missing or damaged; on access, a picture or a mask is.

    Notes
    -----
    An item is ``(picture uint8 (3, 512, 512), labels int64 (512, 512))``, both torch tensors; the
    picture is halved to the size of the masks.
    """

    SIZE: ClassVar[int] = 512
    card: ClassVar[DataCard] = DataCard(
        name="CelebAMask-HQ",
        title="CelebAMask-HQ (2020)",
        task="face part segmentation",
        licence="non-commercial research and education only (as remembered)",
        size="30,000 faces 1024x1024, 19 classes at 512x512; 3 GB",
        url="https://github.com/switchablenorms/CelebAMask-HQ",
        citation="C.-H. Lee, Z. Liu, L. Wu, P. Luo, MaskGAN, CVPR 2020",
        layout=(
            "CelebAMask-HQ/{CelebA-HQ-img/*.jpg, CelebAMask-HQ-mask-anno/*/*.png, "
            "CelebA-HQ-to-CelebA-mapping.txt, list_eval_partition.txt (of CelebA)}"
        ),
        kinds={
            "pictures": ("CelebA-HQ-img/[0-9]*.jpg",),
            "masks": ("CelebAMask-HQ-mask-anno/*/*_skin.png",),
            "lists": (_MAPPING, _PARTITION),
        },
        folders=("CelebAMask-HQ",),
        classes=("background", *_PARTS),
        splits={"train": "24,183 pictures", "val": "2,993", "test": "2,824"},
        loader="foveate.datasets.celebamask_hq.CelebAMaskHQ",
        notes="the split needs list_eval_partition.txt of CelebA",
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        if split not in _SPLITS:
            raise FoveateError(
                f"CelebAMask-HQ has no split {split!r}; choose one of {', '.join(_SPLITS)}"
            )
        self.folder = self.card.find(root).path or Path(root)
        self.split, self.classes = split, self.card.classes
        partition: dict[str, str] = {}
        for number, words in self._rows(_PARTITION):
            if len(words) != 2 or words[1] not in _SPLITS.values():
                raise self._damaged(_PARTITION, number, "NAME.jpg and 0, 1 or 2")
            partition[words[0]] = words[1]
        found: list[int] = []
        for number, words in self._rows(_MAPPING):
            if number == 1 and words[:1] == ["idx"]:
                continue
            if len(words) != 3 or not re.fullmatch("[0-9]{1,6}", words[0]):
                raise self._damaged(_MAPPING, number, "idx, orig_idx and orig_file")
            if words[2] not in partition:
                raise FoveateError(
                    f"{self.folder / _MAPPING}, line {number}, names {words[2][:40]!r}, which "
                    f"{_PARTITION} does not list; take both from their official archives"
                )
            if partition[words[2]] == _SPLITS[split]:
                found.append(int(words[0]))
        self.indices: tuple[int, ...] = tuple(sorted(set(found)))
        if not self.indices:
            raise FoveateError(f"{self.folder / _MAPPING} gives no picture of the split {split!r}")

    def _rows(self, name: str) -> list[tuple[int, list[str]]]:
        """Number from 1 and words of every line that is not empty."""
        path = self.folder / name
        try:
            if path.stat().st_size > _MAX_TEXT_BYTES:
                raise ValueError(f"it has {path.stat().st_size} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FoveateError(
                f"cannot read {path} ({reason}); expected {self.card.layout}; see {self.card.url}"
            ) from error
        rows = enumerate((line.split() for line in text.splitlines()), 1)
        return [(number, words) for number, words in rows if words]

    def _damaged(self, name: str, number: int, expected: str) -> FoveateError:
        return FoveateError(
            f"{self.folder / name}, line {number}: expected {expected}; unpack the file again"
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        import torch

        index = self.indices[item]
        picture = read_picture(self.folder / "CelebA-HQ-img" / f"{index}.jpg")
        side = self.SIZE
        if picture.shape[1:] != (side, side):
            pixels = np.ascontiguousarray(picture.transpose(1, 2, 0))
            small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
            picture = np.ascontiguousarray(small.transpose(2, 0, 1))
        labels = np.zeros((side, side), np.int64)
        masks = self.folder / "CelebAMask-HQ-mask-anno" / str(index // 2000)
        some = False
        for number, part in enumerate(_PARTS, 1):
            path = masks / f"{index:05d}_{part}.png"
            if not path.is_file():
                continue
            mask = read_picture(path)[0] > 0  # some are grey, some RGB
            if mask.shape != labels.shape:
                raise FoveateError(
                    f"{path} has {mask.shape} pixels where {labels.shape} were expected; "
                    "unpack it again"
                )
            labels[mask] = number
            some = True
        if not some:
            raise FoveateError(
                f"{masks} holds no mask of the picture {index}; unpack the masks again"
            )
        return torch.from_numpy(picture), torch.from_numpy(labels)
