"""Few real rows in place of many: what a condensed set has to beat.

A coreset is a choice of rows that exist. Here balanced ones, `ipc` of every class: at random, or
those nearest to the class's k-means centroids. They are real rows: nothing about them is private.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from foveate.errors import FoveateError

__all__ = ["kmeans_rows", "random_rows"]

Array = Tensor | npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def _per_class(y: Array, ipc: int) -> list[Ints]:
    labels = np.asarray(y)
    members = [np.flatnonzero(labels == c).astype(np.int64) for c in np.unique(labels)]
    if ipc < 1 or not members or min(map(len, members)) < ipc:
        raise FoveateError(
            f"expected at least {max(ipc, 1)} rows of every class, got "
            f"{[len(m) for m in members]}; give more rows or a smaller ipc"
        )
    return members


def random_rows(y: Array, ipc: int, seed: int = 0) -> Ints:
    """Indices of `ipc` random rows of every class, class by class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(m)[:ipc] for m in _per_class(y, ipc)])


def kmeans_rows(X: Array, y: Array, ipc: int, seed: int = 0) -> Ints:
    """Indices of the real rows nearest to the `ipc` k-means centroids of every class.

    A row that two centroids ask for goes to the first; the other gets the next nearest.
    """
    from sklearn.cluster import KMeans

    flat = np.asarray(X, np.float32).reshape(len(X), -1)
    chosen: list[int] = []
    for members in _per_class(y, ipc):
        found = KMeans(ipc, n_init=1, random_state=seed).fit(flat[members])
        for distance in found.transform(flat[members]).T:
            free = (int(m) for m in members[np.argsort(distance)] if m not in chosen)
            chosen.append(next(free))
    return np.array(chosen, np.int64)
