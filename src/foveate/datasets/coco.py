"""COCO 2017: 80 classes of everyday things, boxes and instance masks.

Official layout::

    train2017/*.jpg   val2017/*.jpg
    annotations/instances_train2017.json   annotations/instances_val2017.json

Classes carry numbers 1 to 90 with gaps; here label k is the k-th class in order of number, and
`class_ids` keeps the official ones for submissions. Boxes are written as left, top, width and
height, and given as left, top, right, bottom.

A mask is written as polygons, or, for crowds, as runs: numbers of pixels column by column,
alternately outside and inside. A pixel belongs to a polygon when its centre lies inside by the
even-odd rule; the official tool traces the outline at five times the resolution, which can differ
by pixels on the border. The run-length *strings* of submitted results are not read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.pictures import Objects, read_picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["COCO"]

_MAX_JSON_BYTES = 1 << 30  # the training annotations have 470 MB
_MAX_SIDE = 1 << 13
_MAX_MASK_BYTES = 1 << 30

Masks = npt.NDArray[np.bool_]


class COCO:
    """COCO 2017 instances (Lin et al. 2014).

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train`` or ``val``.

    Attributes
    ----------
    names
        File names of the pictures, in order of their official number; pictures without any
        object included.
    image_ids
        Official numbers of the pictures.
    classes, class_ids
        Names and official numbers of the classes, in order of number.

    Raises
    ------
    FoveateError
        The annotations are missing or damaged, or, on access, a picture is.

    Notes
    -----
    An item is ``(picture uint8 (3, H, W) tensor, Objects)``; pictures have sizes of their own.
    """

    card: ClassVar[DataCard] = DataCard(
        name="COCO",
        title="COCO 2017: Common Objects in Context",
        task="object detection and segmentation",
        licence="CC BY 4.0 annotations, Flickr terms for the photos (as remembered)",
        size="118,287 + 5,000 photos with 80 classes of objects; 20 GB",
        url="https://cocodataset.org/#download",
        citation="T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
        layout="train2017/*.jpg, val2017/*.jpg, annotations/instances_{train,val}2017.json",
        kinds={
            "picture folders": ("train2017", "val2017"),
            "annotations": ("annotations/instances_*2017.json",),
        },
        folders=("COCO", "coco"),
        splits={"train": "118,287 photos", "val": "5,000 photos"},
        loader="foveate.datasets.coco.COCO",
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        if split not in self.card.splits:
            raise FoveateError(f"COCO has no split {split!r}; choose train or val")
        folder = self.card.find(root).path or Path(root)
        self._pictures = folder / f"{split}2017"
        self._path = folder / "annotations" / f"instances_{split}2017.json"
        content = _json(self._path, self.card)
        try:
            named = {_whole(c, "id"): _text(c, "name") for c in _list(content, "categories")}
            self.class_ids: tuple[int, ...] = tuple(sorted(named))
            self.classes: tuple[str, ...] = tuple(named[number] for number in self.class_ids)
            pictures = {_whole(p, "id"): p for p in _list(content, "images")}
            self.image_ids: tuple[int, ...] = tuple(sorted(pictures))
            ordered = [pictures[number] for number in self.image_ids]
            self.names: tuple[str, ...] = tuple(_text(p, "file_name") for p in ordered)
            for name in self.names:
                if Path(name).name != name or "\\" in name or name.startswith("."):
                    raise ValueError(f"the file name {name[:60]!r} leaves the folder of pictures")
            self._sizes = [(_whole(p, "height"), _whole(p, "width")) for p in ordered]
            if not ordered or not all(1 <= side <= _MAX_SIDE for s in self._sizes for side in s):
                raise ValueError(f"no picture, or one with a side beyond 1 to {_MAX_SIDE}")
            place = {number: index for index, number in enumerate(self.image_ids)}
            label = {number: index for index, number in enumerate(self.class_ids)}
            self._things: list[list[_Thing]] = [[] for _ in ordered]
            for annotation in _list(content, "annotations"):
                thing = _Thing(annotation, label)
                index = place.get(_whole(annotation, "image_id"))
                if index is None:
                    raise ValueError(f"object {annotation.get('id')} belongs to no picture")
                self._things[index].append(thing)
        except ValueError as error:
            raise FoveateError(
                f"cannot use {self._path} as instances of COCO ({error}); unpack it again"
            ) from error

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Objects]:
        import torch

        picture = read_picture(self._pictures / self.names[index])
        if picture.shape[1:] != self._sizes[index]:
            raise FoveateError(
                f"{self._pictures / self.names[index]} has {picture.shape[1:]} pixels where "
                f"{self._sizes[index]} was expected; unpack it again"
            )
        return torch.from_numpy(picture), self.objects(index)

    def objects(self, index: int) -> Objects:
        """Boxes of picture `index`, without decoding it."""
        things = self._things[index]
        return Objects(
            np.array([thing.box for thing in things], dtype=np.float32).reshape(-1, 4),
            np.array([thing.label for thing in things], dtype=np.int64),
            np.array([thing.crowd for thing in things], dtype=np.bool_),
        )

    def masks(self, index: int) -> Masks:
        """Instance masks of picture `index`.

        Returns
        -------
        ndarray
            ``(N, H, W)`` bool, in the order of :meth:`objects`.

        Raises
        ------
        FoveateError
            A polygon or a list of runs is damaged, or the masks would take more than 1 GiB.
        """
        things, (height, width) = self._things[index], self._sizes[index]
        try:
            if len(things) * height * width > _MAX_MASK_BYTES:
                raise ValueError(f"{len(things)} masks of {height}x{width} pixels")
            masks = np.zeros((len(things), height, width), dtype=np.bool_)
            for mask, thing in zip(masks, things, strict=True):
                _draw(mask, thing.shape)
        except ValueError as error:
            raise FoveateError(
                f"cannot draw the masks of picture {self.image_ids[index]} of {self._path} "
                f"({error}); unpack it again"
            ) from error
        return masks


class _Thing:
    """One annotated object, its mask not yet drawn."""

    __slots__ = ("box", "crowd", "label", "shape")

    def __init__(self, annotation: dict[str, Any], label: dict[int, int]) -> None:
        category = _whole(annotation, "category_id")
        if category not in label:
            raise ValueError(f"object {annotation.get('id')} has the unknown class {category}")
        left, top, width, height = _numbers(annotation.get("bbox"), 4)
        if min(width, height) < 0:
            raise ValueError(f"object {annotation.get('id')} has the box {annotation['bbox']}")
        self.box = (left, top, left + width, top + height)
        self.label = label[category]
        self.crowd = annotation.get("iscrowd") == 1
        self.shape: object = annotation.get("segmentation")


def _draw(mask: Masks, shape: object) -> None:
    """Set the pixels of `mask` ``(H, W)`` that belong to the object."""
    height, width = mask.shape
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if not isinstance(counts, list) or shape.get("size") != [height, width]:
            raise ValueError(f"runs of a picture of {height}x{width} pixels expected")
        runs = np.array(_numbers(counts, len(counts)))
        if (runs < 0).any() or (runs != np.floor(runs)).any() or runs.sum() != mask.size:
            raise ValueError(f"runs that add up to {mask.size} pixels expected")
        inside = np.arange(runs.size) % 2 == 1
        mask[:] = np.repeat(inside, runs.astype(np.int64)).reshape(width, height).T
    elif isinstance(shape, list):
        for polygon in shape:
            size = len(polygon) if isinstance(polygon, list) else 0
            if size < 6 or size % 2:
                raise ValueError("a polygon of at least three points expected")
            mask |= _inside(np.array(_numbers(polygon, size)).reshape(-1, 2), height, width)
    else:
        raise ValueError("polygons or runs expected")


def _inside(points: npt.NDArray[np.float64], height: int, width: int) -> Masks:
    """Pixels whose centres lie inside a polygon ``(K, 2)`` of x and y, by the even-odd rule.

    Every edge crosses the centre line of some rows; to the right of each crossing, inside and
    outside change places.
    """
    changes = np.zeros((height, width + 1), dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        rows = np.arange(low, high)
        if rows.size:
            crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
            changes[rows, columns] ^= True
    return np.logical_xor.accumulate(changes[:, :width], axis=1)


def _json(path: Path, card: DataCard) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {size} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FoveateError(
            f"cannot read {path} ({reason}); expected {card.layout}; see {card.url}"
        ) from error
    return content


def _list(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"it has no list of objects {key!r}")
    return value


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"{key!r} is {str(value)[:40]!r} where a whole number was expected")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError(f"{key!r} is {str(value)[:40]!r} where a short text was expected")
    return value


def _numbers(value: object, count: int) -> list[float]:
    """`count` finite numbers of a size that fits a picture."""
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{count} numbers expected, found {str(value)[:40]!r}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"{str(number)[:40]!r} is no number")
        if not abs(number) < 1 << 30:  # catches NaN too
            raise ValueError(f"{str(number)[:40]} is no number of pixels")
    return [float(number) for number in value]
