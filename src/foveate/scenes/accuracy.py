"""How right a map is: overall and average accuracy, kappa, and how sure one can be of them.

From the confusion matrix N_ij (truth i, predicted j, N pixels in all):

    OA    = sum_i N_ii / N
    AA    = mean_i N_ii / N_i.              mean recall, over the classes that occur in the truth
    kappa = (OA - p_e) / (1 - p_e),  p_e = sum_i N_i. N_.i / N^2

kappa is never above OA. Classes without a test pixel are left out of AA and named in `absent`.

Pixels of one field are right or wrong together, so an interval that counts pixels as independent
is far too narrow. `block_bootstrap` draws whole blocks of the scene with replacement, and the
spread of the accuracies of such draws gives the interval.

>>> accuracy = oa_aa_kappa(truth, predicted)  # doctest: +SKIP
>>> spread = block_bootstrap(truth, predicted, coordinates, block=18, seed=0)  # doctest: +SKIP
>>> f"{accuracy.oa:.3f} ({spread.oa.low:.3f} to {spread.oa.high:.3f})"  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from foveate.errors import FoveateError

__all__ = ["Accuracy", "Interval", "Intervals", "block_bootstrap", "confusion", "oa_aa_kappa"]

_DRAWS_AT_ONCE = 64
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """Accuracies as shares between 0 and 1; kappa lies between -1 and 1.

    Attributes
    ----------
    oa, aa, kappa
        Overall accuracy, mean recall, Cohen's kappa (0 where truth and prediction are one and the
        same class throughout: nothing beyond chance is shown).
    recall
        Class code -> share of its true pixels that were found.
    precision
        Class code -> share of the pixels given to it that are right; a class that was never
        predicted has no entry.
    absent
        Classes asked for, or predicted, that no true pixel has; not in `aa` and `recall`.
    support
        Class code -> true pixels.
    """

    oa: float
    aa: float
    kappa: float
    recall: Mapping[int, float]
    precision: Mapping[int, float] = field(default_factory=dict)
    absent: tuple[int, ...] = ()
    support: Mapping[int, int] = field(default_factory=dict)


class Interval(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """Bootstrap intervals of the accuracies.

    Attributes
    ----------
    oa, aa, kappa
        Lower and upper end.
    recall
        Class code -> interval, over the draws in which the class occurs.
    blocks
        Blocks that were drawn from. Below some ten, the intervals are too narrow.
    level
        Share of the draws inside.
    """

    oa: Interval
    aa: Interval
    kappa: Interval
    recall: Mapping[int, Interval]
    blocks: int
    level: float


def confusion(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: Sequence[int] | None = None
) -> Counts:
    """Confusion matrix (K, K): row i truth, column j predicted, in the order of `classes`.

    Parameters
    ----------
    truth, predicted
        Class codes (N,).
    classes
        Codes; by default all that occur in either, ascending.

    Raises
    ------
    FoveateError
        Nothing to count, lists of different length, or a code that is not among `classes`.
    """
    true, guess, codes = _checked(truth, predicted, classes)
    side = len(codes)
    return np.bincount(true * side + guess, minlength=side * side).reshape(side, side)


def oa_aa_kappa(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: Sequence[int] | None = None
) -> Accuracy:
    """Overall accuracy, mean recall and kappa of predicted class codes (N,).

    `classes` are the codes that could have been predicted; those without a true pixel are named
    as absent.

    Raises
    ------
    FoveateError
        As `confusion`.
    """
    codes = _checked(truth, predicted, classes)[2]
    table = confusion(truth, predicted, codes)
    oa, aa, kappa, recall = (part[0] for part in _accuracies(table[None].astype(np.float64)))
    support, given = table.sum(1), table.sum(0)
    return Accuracy(
        oa=float(oa),
        aa=float(aa),
        kappa=float(kappa),
        recall={c: float(recall[i]) for i, c in enumerate(codes) if support[i]},
        precision={c: float(table[i, i] / given[i]) for i, c in enumerate(codes) if given[i]},
        absent=tuple(c for i, c in enumerate(codes) if not support[i]),
        support={c: int(support[i]) for i, c in enumerate(codes)},
    )


def block_bootstrap(
    truth: npt.ArrayLike,
    predicted: npt.ArrayLike,
    coordinates: npt.ArrayLike,
    block: int | tuple[int, int],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Percentile intervals from drawing whole blocks of the scene with replacement.

    Parameters
    ----------
    truth, predicted
        Class codes (N,).
    coordinates
        Rows and columns (N, 2) of these pixels.
    block
        Side of a block, or its rows and columns; as large as pixels are alike, for a split by
        blocks its own blocks. Only blocks with a pixel count.
    draws
        Number of draws, at least 100.
    level
        Share of the draws inside the interval.
    seed
        Draws the blocks.

    Raises
    ------
    FoveateError
        Numbers out of their range, or all pixels lie in one block.
    """
    true, guess, codes = _checked(truth, predicted, None)
    at = np.asarray(coordinates)
    rows, columns = block if isinstance(block, tuple) else (block, block)
    if at.shape != (true.size, 2) or min(rows, columns) < 1 or draws < 100 or not 0 < level < 1:
        raise FoveateError(
            "block_bootstrap expects one row and column per pixel, blocks of at least 1 x 1, at "
            f"least 100 draws and a level between 0 and 1, got coordinates {at.shape} for "
            f"{true.size} pixels, {rows} x {columns}, {draws} and {level}"
        )
    place = at.astype(np.int64) // (rows, columns)
    number = place[:, 0] * (place[:, 1].max() + 1) + place[:, 1]
    where = np.unique(number, return_inverse=True)[1]
    blocks, side = int(where.max()) + 1, len(codes)
    if blocks < 2:
        raise FoveateError(
            "block_bootstrap expects test pixels in at least two blocks, got one; use smaller "
            "blocks"
        )
    cells = csr_array(
        (np.ones(true.size), (where, true * side + guess)), shape=(blocks, side * side)
    )
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        times = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=count)
        # (draws, blocks) @ (blocks, K * K): every draw's confusion matrix
        tables = (cells.T @ times.T.astype(np.float64)).T.reshape(count, side, side)
        parts.append(_accuracies(tables))
    oa, aa, kappa, recall = (np.concatenate(each) for each in zip(*parts, strict=True))
    ends = [50 * (1 - level), 50 * (1 + level)]

    def interval(values: npt.NDArray[np.float64]) -> Interval:
        low, high = np.percentile(values[np.isfinite(values)], ends)
        return Interval(float(low), float(high))

    present = np.flatnonzero(np.isfinite(recall).any(0))
    return Intervals(
        oa=interval(oa),
        aa=interval(aa),
        kappa=interval(kappa),
        recall={codes[i]: interval(recall[:, i]) for i in present.tolist()},
        blocks=blocks,
        level=level,
    )


def _accuracies(tables: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """OA, AA, kappa (D,) and recall (D, K) of confusion matrices (D, K, K); no truth: NaN."""
    total = tables.sum((1, 2))
    right = tables.diagonal(axis1=1, axis2=2)
    support, given = tables.sum(2), tables.sum(1)
    recall = np.where(support > 0, right / np.maximum(support, 1), np.nan)
    oa = right.sum(1) / total
    chance = (support * given).sum(1) / total**2
    # all pixels of one class and predicted so: 0 / 0, and no agreement beyond chance
    kappa = np.where(chance < 1, (oa - chance) / np.where(chance < 1, 1 - chance, 1), 0.0)
    return oa, np.nanmean(recall, 1), kappa, recall


def _checked(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: Sequence[int] | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[int, ...]]:
    """Positions of the codes in `classes`, and the codes."""
    true, guess = np.asarray(truth), np.asarray(predicted)
    if true.ndim != 1 or true.shape != guess.shape or not true.size:
        raise FoveateError(
            "accuracy expects as many true as predicted class codes (N,), at least one, got "
            f"{true.shape} and {guess.shape}"
        )
    if not all(np.issubdtype(codes.dtype, np.integer) for codes in (true, guess)):
        raise FoveateError(
            f"accuracy expects whole class codes, got {true.dtype} and {guess.dtype}"
        )
    found = np.union1d(true, guess)
    codes = found if classes is None else np.asarray(classes)
    if np.unique(codes).size != codes.size or not np.isin(found, codes).all():
        raise FoveateError(
            f"class codes {found[~np.isin(found, codes)].tolist()} are not among the classes "
            f"{codes.tolist()}, which must be distinct"
        )
    order = np.argsort(codes)
    true, guess = (order[np.searchsorted(codes, part, sorter=order)] for part in (true, guess))
    return true, guess, tuple(codes.tolist())
