"""PASCAL VOC: 20 classes, boxes for detection and label maps for segmentation.

Official layout of every year, ``VOCdevkit/VOC2012/``::

    JPEGImages/NAME.jpg
    Annotations/NAME.xml                objects: class, box, "difficult"
    SegmentationClass/NAME.png          palette index 0 background, 1..20 classes, 255 void
    ImageSets/Main/SPLIT.txt            names, one a line, for detection
    ImageSets/Segmentation/SPLIT.txt    likewise, for segmentation

Boxes are written with the first pixel numbered 1 and with the last one included; here they are
0-based with right and bottom exclusive: ``(xmin - 1, ymin - 1, xmax, ymax)``, never below 0.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from foveate.datasets.card import DataCard
from foveate.datasets.pictures import Objects, read_label_map, read_picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VOCDetection", "VOCSegmentation"]

_MAX_TEXT_BYTES = 16 << 20

_CARD = DataCard(
    name="VOC2012",
    title="PASCAL VOC 2012",
    task="object detection and segmentation",
    licence="Flickr terms for the photos, citation asked (as remembered)",
    size="11,540 photos with boxes, 2,913 with label maps, 20 classes; 2 GB",
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    citation="M. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2015",
    layout=(
        "VOCdevkit/VOC2012/{JPEGImages/*.jpg, Annotations/*.xml, SegmentationClass/*.png, "
        "ImageSets/{Main,Segmentation}/*.txt}"
    ),
    kinds={
        "splits": ("ImageSets/Main/*.txt", "ImageSets/Segmentation/*.txt"),
        "folders": ("JPEGImages", "Annotations", "SegmentationClass"),
    },
    folders=("VOCdevkit/VOC2012", "VOC2012"),
    classes=(
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
        *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
        *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    splits={
        "train": "5,717 photos (segmentation: 1,464)",
        "val": "5,823 photos (segmentation: 1,449)",
        "trainval": "both",
        "test": "labels published for VOC2007 only",
    },
    loader="foveate.datasets.voc.VOCDetection",
    notes="VOC2007 has the same layout: year='2007'",
)


class _VOC:
    """What detection and segmentation share: the names of a split and their photos."""

    card: ClassVar[DataCard] = _CARD

    def __init__(self, root: Path | str, split: str, year: str, lists: str) -> None:
        if split not in self.card.splits or not re.fullmatch(r"20(0[7-9]|1[0-2])", str(year)):
            raise FoveateError(
                f"VOC has the splits {', '.join(self.card.splits)} and the years 2007 to 2012, "
                f"asked for {split!r} of {year!r}"
            )
        root = Path(root)
        places = [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root]
        relative = Path("ImageSets", lists, f"{split}.txt")
        self.folder = next((p for p in places if (p / relative).is_file()), places[0])
        path = self.folder / relative
        names = _text(path).split()
        for name in names:
            if not re.fullmatch(r"[0-9A-Za-z_]{1,64}", name):
                raise FoveateError(f"{path} lists {name[:64]!r}, which is no name of a photo")
        if not names:
            raise FoveateError(f"{path} lists no photo; unpack it again")
        self.names: tuple[str, ...] = tuple(names)
        self.classes: tuple[str, ...] = self.card.classes

    def __len__(self) -> int:
        return len(self.names)

    def _photo(self, index: int) -> Tensor:
        import torch

        path = self.folder / "JPEGImages" / f"{self.names[index]}.jpg"
        return torch.from_numpy(read_picture(path))


class VOCDetection(_VOC):
    """Boxes of PASCAL VOC.

    Parameters
    ----------
    root
        Folder of data sets, the devkit's folder or that of the year.
    split
        ``train``, ``val``, ``trainval`` or ``test``.
    year
        ``2007`` to ``2012``.

    Attributes
    ----------
    names
        Names of the photos in official order.
    classes
        The 20 classes.

    Raises
    ------
    FoveateError
        The split's list is missing, or, on access, a photo or its annotation is damaged.

    Notes
    -----
    An item is ``(photo uint8 (3, H, W) tensor, Objects)``; the photos have sizes of their own.
    """

    def __init__(self, root: Path | str, split: str = "train", year: str = "2012") -> None:
        super().__init__(root, split, year, "Main")

    def __getitem__(self, index: int) -> tuple[Tensor, Objects]:
        return self._photo(index), self.objects(index)

    def objects(self, index: int) -> Objects:
        """Boxes of photo `index`, without decoding it."""
        path = self.folder / "Annotations" / f"{self.names[index]}.xml"
        text = _text(path)
        try:
            # No official annotation declares a document type; without one, no entity can be
            # declared, and so none can expand.
            if "<!DOCTYPE" in text:
                raise ValueError("it declares a document type")
            tree = ET.fromstring(text)  # noqa: S314 (see above)
            boxes, labels, ignore = [], [], []
            for thing in tree.findall("object"):
                name = (thing.findtext("name") or "").strip()
                if name not in self.classes:
                    raise ValueError(f"it names the class {name[:40]!r}")
                left, top, right, bottom = (
                    float(thing.findtext(f"bndbox/{side}") or "nan")
                    for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if not (0 <= left <= right < 65536 and 0 <= top <= bottom < 65536):
                    raise ValueError(f"it has the box {left}, {top}, {right}, {bottom}")
                boxes.append((max(left - 1, 0.0), max(top - 1, 0.0), right, bottom))
                labels.append(self.classes.index(name))
                ignore.append((thing.findtext("difficult") or "0").strip() == "1")
        except (ET.ParseError, ValueError) as error:
            raise FoveateError(
                f"cannot read {path} as an annotation of VOC ({error}); unpack it again"
            ) from error
        return Objects(
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.array(ignore, dtype=np.bool_),
        )


class VOCSegmentation(_VOC):
    """Label maps of PASCAL VOC: 0 background, 1 to 20 the classes, 255 void.

    Parameters and errors are those of :class:`VOCDetection`.

    Attributes
    ----------
    names
        Names of the photos in official order.
    classes
        ``background`` and the 20 classes.

    Notes
    -----
    An item is ``(photo uint8 (3, H, W), labels int64 (H, W))``, both torch tensors.
    """

    VOID: ClassVar[int] = 255

    def __init__(self, root: Path | str, split: str = "train", year: str = "2012") -> None:
        super().__init__(root, split, year, "Segmentation")
        self.classes = ("background", *self.card.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import torch

        photo = self._photo(index)
        path = self.folder / "SegmentationClass" / f"{self.names[index]}.png"
        labels = read_label_map(path)
        if labels.shape != tuple(photo.shape[1:]):
            raise FoveateError(
                f"{path} has {labels.shape} pixels where its photo has {tuple(photo.shape[1:])}; "
                "unpack both again"
            )
        strange = labels[(labels >= len(self.classes)) & (labels != self.VOID)]
        if strange.size:
            raise FoveateError(
                f"{path} has the class {strange[0]} where 0 to 20 or 255 was expected; "
                "unpack it again"
            )
        return photo, torch.from_numpy(labels.astype(np.int64))


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MAX_TEXT_BYTES:
            raise ValueError(f"it has {size} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FoveateError(
            f"cannot read {path} ({reason}); expected {_CARD.layout}; see {_CARD.url}"
        ) from error
