"""How well pixels are labelled: mean intersection over union, of all of them and near boundaries.

For a class, over *all* pixels of a split and not picture by picture,

    IoU = TP / (TP + FP + FN),      mIoU = mean of IoU over classes

(PASCAL VOC's measure since 2008). Pixels of the label `void` count nowhere, whatever is predicted
there. The mean is over classes that occur in the true labels; a class that does not has no IoU.

The *trimap* of width r are the pixels that see another class within r pixels (Euclidean); void is
no class. mIoU over the trimap alone says how well boundaries are drawn (Kohli, Ladicky and Torr,
2009); which pixels belong to it depends on the true labels only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["SegmentationAccuracy", "SegmentationScore", "trimap"]

_MAX_CLASSES = 4096
_MAX_WIDTH = 64

Maps = npt.NDArray[np.integer]


@dataclass(frozen=True)
class SegmentationAccuracy:
    """Shares between 0 and 1.

    Attributes
    ----------
    iou
        Of every class, ``(K,)``; NaN where the class is not in the true labels.
    miou
        Mean of those that are there.
    accuracy
        Share of pixels that are right.
    trimap_iou, trimap_miou, trimap_accuracy
        The same, of the trimap alone; NaN when it is empty.
    pixels, trimap_pixels
        How many were counted.
    """

    iou: npt.NDArray[np.float64]
    miou: float
    accuracy: float
    trimap_iou: npt.NDArray[np.float64]
    trimap_miou: float
    trimap_accuracy: float
    pixels: int
    trimap_pixels: int


class SegmentationScore:
    """Counts over a whole split, picture after picture.

    Parameters
    ----------
    classes
        K; labels are 0 to K - 1.
    void
        The label that does not count.
    width
        Of the trimap, in pixels; 0: none is looked at.

    Raises
    ------
    FoveateError
        A setting out of range; on :meth:`add`, shapes that differ or labels that do not exist; on
        :meth:`result`, nothing was counted.
    """

    def __init__(self, classes: int, void: int = 255, width: int = 3) -> None:
        if not 1 <= classes <= _MAX_CLASSES or not 0 <= width <= _MAX_WIDTH or 0 <= void < classes:
            raise FoveateError(
                f"SegmentationScore expects 1 to {_MAX_CLASSES} classes, a width from 0 to "
                f"{_MAX_WIDTH} and a void that is no class, got {classes=}, {width=}, {void=}"
            )
        self.classes, self.void, self.width = classes, void, width
        self.confusion = np.zeros((classes, classes), np.int64)
        """Pixels by true (row) and predicted (column) class."""
        self.trimap_confusion = np.zeros((classes, classes), np.int64)

    def add(
        self, truth: Maps, predicted: Maps, band: npt.NDArray[np.bool_] | None = None
    ) -> SegmentationScore:
        """Count label maps ``(..., H, W)``.

        Parameters
        ----------
        band
            The trimap of `truth`, if it is already known.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.shape != predicted.shape or truth.ndim < 2:
            raise FoveateError(
                f"SegmentationScore expects two label maps of one shape, got {truth.shape} and "
                f"{predicted.shape}"
            )
        if truth.dtype.kind not in "iu" or predicted.dtype.kind not in "iu":
            raise FoveateError(
                f"label maps are of whole numbers, got {truth.dtype} and {predicted.dtype}; take "
                "the argmax over classes first"
            )
        counted = truth != self.void
        for name, labels in (("true", truth[counted]), ("predicted", predicted[counted])):
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                raise FoveateError(
                    f"{name} labels are 0 to {self.classes - 1} or {self.void} (void), got "
                    f"{labels.min()} to {labels.max()}"
                )
        self.confusion += self._pairs(truth, predicted, counted)
        if self.width:
            band = trimap(truth, self.width, self.void) if band is None else band
            self.trimap_confusion += self._pairs(truth, predicted, counted & band)
        return self

    def _pairs(
        self, truth: Maps, predicted: Maps, counted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        k = self.classes
        pairs = truth[counted].astype(np.int64) * k + predicted[counted]
        return np.bincount(pairs, minlength=k * k).reshape(k, k)

    def result(self) -> SegmentationAccuracy:
        """Everything that was counted so far."""
        pixels = int(self.confusion.sum())
        if not pixels:
            raise FoveateError(
                "no pixel was counted; give at least one label map that is not all void"
            )
        iou, miou, accuracy = _measures(self.confusion)
        near = _measures(self.trimap_confusion)
        return SegmentationAccuracy(
            iou, miou, accuracy, *near, pixels, int(self.trimap_confusion.sum())
        )


def _measures(
    confusion: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], float, float]:
    """IoU of every class, their mean, and the share that is right."""
    right, true, said = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
    iou = np.full(len(right), np.nan)
    present = true > 0
    iou[present] = right[present] / (true + said - right)[present]
    if not present.any():
        return iou, float("nan"), float("nan")
    return iou, float(iou[present].mean()), float(right.sum() / true.sum())


def trimap(truth: Maps, width: int = 3, void: int = 255) -> npt.NDArray[np.bool_]:
    """Pixels with another class within `width` pixels; neither is void. ``(..., H, W)`` bool."""
    truth = np.asarray(truth)
    if truth.ndim < 2 or truth.dtype.kind not in "iu" or not 0 <= width <= _MAX_WIDTH:
        raise FoveateError(
            f"trimap expects whole-number label maps (..., H, W) and a width from 0 to "
            f"{_MAX_WIDTH}, got {truth.dtype} {truth.shape} and {width}"
        )
    height, wide = truth.shape[-2:]
    known = truth != void
    band = np.zeros(truth.shape, np.bool_)
    for down in range(min(width, height - 1) + 1):  # half of the disc: the other half mirrors it
        for right in range(-width, width + 1):
            if down**2 + right**2 > width**2 or (down == 0 and right <= 0) or abs(right) >= wide:
                continue
            here = (..., slice(0, height - down), slice(max(0, -right), wide - max(0, right)))
            there = (..., slice(down, height), slice(max(0, right), wide - max(0, -right)))
            differ = (truth[here] != truth[there]) & known[here] & known[there]
            band[here] |= differ
            band[there] |= differ
    return band
