"""Mean average precision: how good a detector's boxes are, by the rules of VOC and of COCO.

Detections of one class are taken in order of their score over all pictures. One is *right* if it
overlaps an object of its class that has not been found yet, by at least a threshold of the jaccard
index; else it is wrong. After k detections::

    precision = right / k          recall = right / objects

and the average precision is the area below precision over recall, precision first made falling,
p(r) = max_{r' >= r} precision(r'). Three ways to take it:

- ``11-point``: mean of p at r = 0, 0.1, ..., 1 (VOC until 2009: the usual figure for VOC2007),
- ``area``: the area itself (VOC since 2010),
- ``101-point``: mean of p at r = 0, 0.01, ..., 1 (COCO).

The two benchmarks also choose the object differently. VOC: the one of largest overlap; if it is
"difficult" the detection counts for nothing, if it was found before the detection is wrong. COCO:
the one of largest overlap among those not yet found; "crowds" come last, take any number of
detections, which count for nothing, and overlap by the share of the *detection* that they cover; at
most 100 detections of a picture and class count, and the result is the mean over thresholds 0.5,
0.55, ..., 0.95. Classes without any object have no average precision and are left out of the mean.

Sources: Everingham et al., IJCV 2010 and its development kit; Lin et al., ECCV 2014 and its
evaluation tool. COCO's figures for small, medium and large objects are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foveate.datasets.pictures import Objects
from foveate.errors import FoveateError

__all__ = [
    "Detections",
    "Interpolation",
    "average_precision",
    "coco_precision",
    "overlaps",
    "voc_precision",
]

Floats = npt.NDArray[np.float64]
Interpolation = Literal["11-point", "area", "101-point"]

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
COCO_MOST = 100  # detections of a picture and class that count


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture.

    Attributes
    ----------
    boxes
        ``(N, 4)`` left, top, right, bottom in pixels, as those of
        :class:`foveate.datasets.pictures.Objects`.
    labels
        ``(N,)`` integers, index into the data set's classes.
    scores
        ``(N,)`` finite, higher is surer.
    """

    boxes: npt.NDArray[np.floating]
    labels: npt.NDArray[np.integer]
    scores: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise FoveateError(
                "Detections expects boxes (N, 4), labels (N,) and scores (N,), got "
                f"{self.boxes.shape}, {self.labels.shape} and {self.scores.shape}"
            )
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise FoveateError("Detections expects finite boxes and scores; drop the others")

    def __len__(self) -> int:
        return len(self.labels)


def overlaps(
    boxes: npt.NDArray[np.floating],
    others: npt.NDArray[np.floating],
    crowd: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """Jaccard index of boxes ``(N, 4)`` and ``(M, 4)``: ``(N, M)``.

    Where `crowd` ``(M,)`` is set: the share of the first box that lies in the second.
    """
    a, b = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (np.clip(box[:, 2:] - box[:, :2], 0, None).prod(-1) for box in (a, b))
    whole = area_a[:, None] + area_b[None] - common
    if crowd is not None:
        whole = np.where(crowd[None], area_a[:, None], whole)
    share: Floats = np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)
    return share


def average_precision(
    right: npt.NDArray[np.bool_], objects: int, interpolation: Interpolation = "area"
) -> float:
    """Average precision, 0 to 1, of detections in order of their score.

    Parameters
    ----------
    right
        ``(K,)``: which of them are right.
    objects
        Number of objects that could be found; NaN is returned for 0.

    Raises
    ------
    FoveateError
        More detections are right than there are objects, or the interpolation is unknown.
    """
    hits = np.cumsum(np.asarray(right, dtype=bool))
    if hits.size and hits[-1] > objects:
        raise FoveateError(f"{hits[-1]} detections are right where {objects} objects are")
    if interpolation not in ("11-point", "area", "101-point"):
        raise FoveateError(
            f"interpolation is '11-point', 'area' or '101-point', got {interpolation!r}"
        )
    if not objects:
        return float("nan")
    recall = hits / objects
    precision = hits / np.arange(1, hits.size + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "area":
        return float((falling * np.diff(recall, prepend=0.0)).sum())
    steps = 10 if interpolation == "11-point" else 100
    # In whole numbers: recall >= k / steps, free of rounding.
    first = np.searchsorted(hits * steps, np.arange(steps + 1) * objects)
    reached = first < hits.size
    return float(falling[first[reached]].sum() / (steps + 1))


_Matcher = Callable[[Floats, npt.NDArray[np.bool_], float], npt.NDArray[np.int8]]


def voc_precision(
    found: Sequence[Detections],
    truth: Sequence[Objects],
    classes: int,
    threshold: float = 0.5,
    interpolation: Interpolation = "area",
) -> Floats:
    """Average precision of every class by VOC's rules.

    Parameters
    ----------
    found, truth
        One of each for every picture.
    classes
        Number of classes.
    threshold
        Least jaccard index.
    interpolation
        ``11-point`` for VOC2007, ``area`` since 2010.

    Returns
    -------
    ndarray
        ``(classes,)`` in [0, 1]; NaN for a class without objects. The mean of the others
        (``np.nanmean``) is *the* figure.

    Raises
    ------
    FoveateError
        Pictures and answers differ in number, there is none, or a label is out of range.
    """
    _check(found, truth, classes)
    return np.array(
        [
            average_precision(
                *_ranked(found, truth, label, threshold, _match_voc, None), interpolation
            )
            for label in range(classes)
        ]
    )


def coco_precision(
    found: Sequence[Detections],
    truth: Sequence[Objects],
    classes: int,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> Floats:
    """Average precision of every class and threshold by COCO's rules.

    Parameters and errors as in :func:`voc_precision`.

    Returns
    -------
    ndarray
        ``(thresholds, classes)`` in [0, 1]; NaN for a class without objects. ``np.nanmean`` of all
        is AP, of the first row AP50, of the sixth AP75.
    """
    _check(found, truth, classes)
    table = np.empty((len(thresholds), classes))
    for row, threshold in enumerate(thresholds):
        for label in range(classes):
            ranked = _ranked(found, truth, label, threshold, _match_coco, COCO_MOST)
            table[row, label] = average_precision(*ranked, "101-point")
    return table


def _check(found: Sequence[Detections], truth: Sequence[Objects], classes: int) -> None:
    if len(found) != len(truth) or not len(truth):
        raise FoveateError(
            "average precision expects the detections of every picture, got those of "
            f"{len(found)} for {len(truth)} pictures"
        )
    for picture, labels in enumerate(one.labels for some in (found, truth) for one in some):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise FoveateError(
                f"labels of picture {picture % len(truth)} go from {labels.min()} to "
                f"{labels.max()} where 0 to {classes - 1} was expected"
            )


def _ranked(
    found: Sequence[Detections],
    truth: Sequence[Objects],
    label: int,
    threshold: float,
    matcher: _Matcher,
    most: int | None,
) -> tuple[npt.NDArray[np.bool_], int]:
    """Of one class: which counted detections are right, best first, and the number of objects."""
    scores, states, objects = [np.empty(0)], [np.empty(0, np.int8)], 0
    for answer, things in zip(found, truth, strict=True):
        mine = answer.labels == label
        order = np.argsort(-answer.scores[mine], kind="stable")[:most]
        theirs = things.labels == label
        ignore = things.ignore[theirs]
        objects += int((~ignore).sum())
        if not order.size:
            continue
        crowd = ignore if matcher is _match_coco else None
        table = overlaps(answer.boxes[mine][order], things.boxes[theirs], crowd)
        scores.append(np.asarray(answer.scores[mine][order], dtype=np.float64))
        states.append(matcher(table, ignore, threshold))
    score, state = np.concatenate(scores), np.concatenate(states)
    state = state[np.argsort(-score, kind="stable")]
    return state[state >= 0] == 1, objects


def _match_voc(
    table: Floats, ignore: npt.NDArray[np.bool_], threshold: float
) -> npt.NDArray[np.int8]:
    """State of each detection, best first: 1 right, 0 wrong, -1 counts for nothing."""
    state = np.zeros(len(table), np.int8)
    taken = np.zeros(len(ignore), dtype=bool)
    for index, row in enumerate(table):
        if not row.size or row.max() < threshold:
            continue
        best = int(row.argmax())
        if ignore[best]:
            state[index] = -1
        elif not taken[best]:
            state[index], taken[best] = 1, True
    return state


def _match_coco(
    table: Floats, ignore: npt.NDArray[np.bool_], threshold: float
) -> npt.NDArray[np.int8]:
    """As :func:`_match_voc`, with crowds in `ignore`."""
    state = np.zeros(len(table), np.int8)
    free = ~ignore
    for index, row in enumerate(table):
        # Of equal overlaps the last wins, as in the official tool.
        for among, outcome in ((free, 1), (ignore, -1)):
            candidates = np.where(among, row, -1.0)[::-1]
            if candidates.size and candidates.max() >= min(threshold, 1 - 1e-10):
                best = len(row) - 1 - int(candidates.argmax())
                state[index] = outcome
                if outcome == 1:
                    free[best] = False
                break
    return state
