"""Mining of triplets: a row, neighbours of its class (targets), near rows of others (impostors).

For every row i the ``k_target`` nearest rows j of its class and the ``k_impostor`` nearest rows l
of all other classes, joined to all (i, j, l): what LMNN, SCML and every triplet loss learn from.
All distances are looked at, a block of rows at a time.

>>> triplets([[0.0], [1.0], [3.0]], ["a", "a", "b"], k_target=1, k_impostor=1)
array([[0, 1, 2],
       [1, 0, 2]])
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from foveate.errors import FoveateError
from foveate.learning.certificate import class_numbers

__all__ = ["triplets"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 1 << 22  # distances held at a time while mining
_MOST = 1 << 26  # triplets
_LARGEST = 1e150  # number whose square is still finite


def checked_rows(
    x: npt.ArrayLike, y: npt.ArrayLike, L: npt.ArrayLike | None
) -> tuple[Floats, Ints]:
    """Rows under L ``(N, d)`` and class numbers ``(N,)``."""
    rows, labels = np.asarray(x, np.float64), np.asarray(y)
    if rows.ndim != 2 or labels.shape != rows.shape[:1] or not rows.size:
        raise FoveateError(
            f"expected rows (N, D) and labels (N,), got {rows.shape} and {labels.shape}"
        )
    if not np.isfinite(rows).all():
        raise FoveateError("a row has a NaN or an infinite number; remove the row or fill it in")
    if L is not None:
        linear = np.asarray(L, np.float64)
        if linear.ndim != 2 or linear.shape[1] != rows.shape[1]:
            raise FoveateError(f"expected L (d, {rows.shape[1]}), got {linear.shape}")
        if not np.isfinite(linear).all():
            raise FoveateError("L has a NaN or an infinite number; it is no metric")
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows @ linear.T
    if not (np.abs(rows) < _LARGEST).all():
        raise FoveateError(
            f"a row has a number of {_LARGEST:g} or more, too large for distances; scale the rows"
        )
    classes, numbers = class_numbers(labels)
    if len(classes) < 2:
        raise FoveateError("all rows are of one class; a triplet needs a second one")
    return rows, numbers


def nearest_rows(rows: Floats, labels: Ints, k: int, same: bool) -> Ints:
    """The k nearest rows of the same class, or of all others, nearest first; -1 where too few."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise FoveateError(f"the number of neighbours is {k}; expected at least 1")
    k = min(k, len(rows))
    found = np.full((len(rows), k), -1, np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        others = members if same else np.flatnonzero(labels != label)
        count = min(k, len(others) - same)
        if count < 1:
            continue
        height = max(1, _BLOCK // len(others))
        for start in range(0, len(members), height):
            block = members[start : start + height]
            squared = cdist(rows[block], rows[others], "sqeuclidean")
            if same:  # a row is not its own neighbour, its duplicate is
                squared[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
            near = np.sort(np.argpartition(squared, count - 1, axis=1)[:, :count], axis=1)
            order = np.argsort(np.take_along_axis(squared, near, 1), axis=1, kind="stable")
            found[block, :count] = others[np.take_along_axis(near, order, 1)]
    return found


def joined(targets: Ints, others: Ints) -> Ints:
    """All (i, j, l) ``(T, 3)`` of targets ``(N, k)`` and impostors ``(N, m)``, ordered by i."""
    shape = (len(targets), targets.shape[1], others.shape[1])
    if (count := shape[0] * shape[1] * shape[2]) > _MOST:
        raise FoveateError(
            f"{count} triplets are more than {_MOST}; lower k_target or k_impostor, or give fewer "
            "rows"
        )
    columns = (np.arange(shape[0])[:, None, None], targets[:, :, None], others[:, None, :])
    found = np.stack([np.broadcast_to(column, shape) for column in columns], -1).reshape(-1, 3)
    return found[(found >= 0).all(1)]


def triplets(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    k_target: int = 3,
    k_impostor: int = 10,
    L: npt.ArrayLike | None = None,
) -> Ints:
    """Every row with each of its target neighbours and each of its impostors.

    Parameters
    ----------
    x, y
        ``(N, D)`` and ``(N,)``.
    k_target, k_impostor
        Of each row, at most.
    L
        ``(d, D)``, the metric that says what is near; None: Euclidean.

    Returns
    -------
    ndarray
        ``(T, 3)`` int64 of indices (i, j, l), ``y_i = y_j != y_l``, T at most
        ``N k_target k_impostor``; ordered by i, then j, then l from near to far.

    Raises
    ------
    FoveateError
        Shapes, NaN, a single class, or a number of neighbours below 1.
    """
    rows, labels = checked_rows(x, y, L)
    return joined(
        nearest_rows(rows, labels, k_target, same=True),
        nearest_rows(rows, labels, k_impostor, same=False),
    )
