"""How far must a point move before its nearest neighbours call it something else?

Neighbours are near under a linear map L ``(d, D)``, ``d_M^2(a, b) = ||L (a - b)||^2`` with
``M = L^T L``; the point moves in the *input* space. For one row j of its class and one row l of
another, all points that are nearer to l form a half-space: with ``u = x_l - x_j`` and
``g = d_M^2(x, x_l) - d_M^2(x, x_j)``, which changes linearly with x (slope ``-2 M u``),

    support point          x* = x + g / (2 u^T M A0^-1 M u)  A0^-1 M u
    adversarial margin     r(x; j, l) = g / (2 sqrt(u^T M A0^-1 M u)),   negative if l is nearer

A0 is what measures the movement, the identity by default. Neither changes when L is scaled.

To make the nearest neighbour of x one of another class, x must enter, for some l, the half-spaces
of *all* j. It is then at least as far as the farthest of them:

    1-NN            rho(x) = min_l max_j r(x; j, l)             at most the true distance
    k-NN, k odd     rho(x) = m-th smallest over l of the m-th largest over j,  m = (k + 1) / 2

Within rho at most m - 1 foreign rows are not beaten by m rows of the class, so fewer than m of the
k nearest rows are foreign and the class keeps its majority, however many classes there are. For
1-NN the true distance is the smallest of a few projections onto polyhedra (`exact_radius`).

A certificate holds for this L, these training rows and movements of the very vectors given here.
Where a pipeline scales its features by 1 / s first, ``L / s`` with the unscaled rows certifies
movements in raw units; where it divides every row by its length, nothing is said of raw rows.

Derived for "Towards certified robustness of (distance) metric learning" (arXiv 2006.05945), whose
margin r is; this module knows no loss and takes any L.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from scipy.spatial.distance import cdist
from torch import Tensor

from foveate.errors import FoveateError

__all__ = [
    "adversarial_margin",
    "certified_accuracy",
    "exact_radius",
    "gap_and_normal",
    "nn_radius",
    "support_point",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 1 << 22  # margins held at a time
_ROUNDING = 1e-13  # share of the distances by which a gap may be wrong


# ------------------------------------------------------------------------------ one triplet


def gap_and_normal(L: Tensor, x_i: Tensor, x_j: Tensor, x_l: Tensor) -> tuple[Tensor, Tensor]:
    """The gap g ``(...)`` and ``M u`` ``(..., D)`` of triplets ``(..., D)`` under L ``(d, D)``.

    Raises
    ------
    FoveateError
        Shapes that do not agree.
    """
    if L.ndim != 2 or not x_i.ndim or not x_i.shape == x_j.shape == x_l.shape:
        raise FoveateError(
            "expected L (d, D) and x_i, x_j, x_l of one shape (..., D), got "
            f"{tuple(L.shape)}, {tuple(x_i.shape)}, {tuple(x_j.shape)} and {tuple(x_l.shape)}"
        )
    if L.shape[1] != x_i.shape[-1]:
        raise FoveateError(
            f"L has {L.shape[1]} columns and the points have {x_i.shape[-1]} features; expected "
            "as many"
        )
    to_j, to_l = (x_i - x_j) @ L.T, (x_i - x_l) @ L.T
    return to_l.square().sum(-1) - to_j.square().sum(-1), ((x_l - x_j) @ L.T) @ L


def _against(base: Tensor | None, normal: Tensor) -> Tensor:
    """``A0^-1 n`` for rows n ``(..., D)``."""
    if base is None:
        return normal
    width = normal.shape[-1]
    if base.shape != (width, width):
        raise FoveateError(
            f"A0 has the shape {tuple(base.shape)} where {(width, width)} was expected"
        )
    factor, failed = torch.linalg.cholesky_ex(base)
    if bool(failed) or not torch.allclose(base, base.T):
        raise FoveateError("A0 is not symmetric and positive definite; give a metric of the input")
    return torch.cholesky_solve(normal.reshape(-1, width).T, factor).T.reshape(normal.shape)


def support_point(
    L: Tensor, x_i: Tensor, x_j: Tensor, x_l: Tensor, A0: Tensor | None = None
) -> Tensor:
    """The nearest point to x_i that is as near to x_j as to x_l under L.

    Parameters
    ----------
    L
        ``(d, D)``.
    x_i, x_j, x_l
        ``(..., D)``.
    A0
        ``(D, D)`` symmetric positive definite: what "nearest" means. None: Euclidean.

    Returns
    -------
    Tensor
        ``(..., D)``; x_i itself where x_j and x_l coincide under L.

    Raises
    ------
    FoveateError
        Shapes that do not agree, or A0 that is no metric.
    """
    gap, normal = gap_and_normal(L, x_i, x_j, x_l)
    direction = _against(A0, normal)
    size = (normal * direction).sum(-1)
    step = torch.where(size > 0, gap / (2 * torch.where(size > 0, size, 1.0)), 0.0)
    return x_i + step[..., None] * direction


def adversarial_margin(
    L: Tensor, x_i: Tensor, x_j: Tensor, x_l: Tensor, A0: Tensor | None = None
) -> Tensor:
    """Signed distance r from x_i to its support point, in units of the input (of A0).

    Arguments and errors are those of `support_point`. Returns ``(...)``, differentiable; negative
    where x_l is nearer already, 0 where x_j and x_l coincide under L.
    """
    gap, normal = gap_and_normal(L, x_i, x_j, x_l)
    size = (normal * _against(A0, normal)).sum(-1)
    return torch.where(size > 0, gap / (2 * torch.where(size > 0, size, 1.0).sqrt()), 0.0)


# ------------------------------------------------------------------------------ certificates


def class_numbers(y: npt.ArrayLike) -> tuple[npt.NDArray[np.generic], Ints]:
    """The different labels of ``(N,)`` in their order, and for every row the number of its own.

    Raises
    ------
    FoveateError
        A label is missing (NaN, None), or labels are of types that have no order.
    """
    labels = np.asarray(y)
    try:
        missing = bool((labels != labels).any())  # noqa: PLR0124 - only NaN differs from itself
        classes, numbers = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise FoveateError(
            f"labels are missing or of several types ({error}); expected one label of one type for "
            "every row"
        ) from error
    if missing:
        raise FoveateError("a label is NaN; remove the row or label it")
    return classes, numbers.astype(np.int64)


def _checked(
    L: npt.ArrayLike, X_train: npt.ArrayLike, y_train: npt.ArrayLike, X: npt.ArrayLike
) -> tuple[Floats, Floats, npt.NDArray[np.int64], Floats, npt.NDArray[np.generic]]:
    """L, training rows, class numbers, rows to certify and the classes."""
    linear, rows, points = (np.asarray(array, np.float64) for array in (L, X_train, X))
    labels = np.asarray(y_train)
    if (
        not linear.ndim == rows.ndim == points.ndim == 2
        or not linear.shape[1] == rows.shape[1] == points.shape[1]
        or labels.shape != rows.shape[:1]
        or not rows.size
    ):
        raise FoveateError(
            "expected L (d, D), training rows (N, D), labels (N,) and rows (Q, D), got "
            f"{linear.shape}, {rows.shape}, {labels.shape} and {points.shape}"
        )
    if not all(np.isfinite(array).all() for array in (linear, rows, points)):
        raise FoveateError(
            "L or a row has a NaN or an infinite number; there is no radius for it, leave it out"
        )
    classes, numbers = class_numbers(labels)
    return linear, rows, numbers, points, classes


def _predicted(z_train: Floats, labels: Ints, z: Floats, k: int) -> Ints:
    """Majority of the k nearest rows; equal distances: first row, equal votes: first class."""
    called = np.empty(len(z), np.int64)
    classes = np.arange(labels.max() + 1)
    height = max(1, _BLOCK // max(len(z_train), k * len(classes)))
    for start in range(0, len(z), height):
        squared = cdist(z[start : start + height], z_train, "sqeuclidean")
        nearest = labels[np.argsort(squared, axis=1, kind="stable")[:, :k]]
        votes = (nearest[:, :, None] == classes).sum(1)
        called[start : start + height] = votes.argmax(1)
    return called


def _margins(z: Floats, z_own: Floats, z_other: Floats, normals: Floats) -> Floats:
    """``r(x; j, l)`` of one point ``(J, Lambda)``, never too large for rounding."""
    to_own = np.square(z_own - z).sum(1)[:, None]
    to_other = np.square(z_other - z).sum(1)[None]
    gap = to_other - to_own - _ROUNDING * (to_other + to_own)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        margins: Floats = np.where(normals > 0, gap / (2 * normals), -np.inf)
    return margins


def _mapped(linear: Floats, rows: Floats, points: Floats) -> tuple[Floats, Floats, Floats]:
    """Rows and points under L, and ``M x`` of the rows, all from the middle of the rows on.

    Only differences count, and far from the origin these would be lost in rounding.
    """
    middle = rows.mean(0)
    z_train, z = (rows - middle) @ linear.T, (points - middle) @ linear.T
    return z_train, z, z_train @ linear


def _bounds(
    linear: Floats, rows: Floats, labels: Ints, points: Floats, called: Ints, rank: int
) -> Iterator[tuple[Ints, Floats]]:
    """For every point the foreign rows l and the rank-th largest ``r(x; j, l)`` over j."""
    mapped = _mapped(linear, rows, points)
    height = max(1, _BLOCK // len(rows))
    for start in range(0, len(points), height):
        block = slice(start, start + height)
        yield from _block_bounds(
            mapped[0], mapped[1][block], mapped[2], labels, called[block], rank
        )


def _block_bounds(
    z_train: Floats, z: Floats, slopes: Floats, labels: Ints, called: Ints, rank: int
) -> list[tuple[Ints, Floats]]:
    """`_bounds` of some points; differences of `slopes` are the normals M u."""
    found: list[tuple[Ints, Floats]] = [(np.empty(0, np.int64), np.empty(0))] * len(z)
    for label in np.unique(called):
        own, foreign = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
        queries = np.flatnonzero(called == label)
        bounds = np.full((len(queries), len(foreign)), -np.inf)
        width = max(1, _BLOCK // len(own))
        for start in range(0, len(foreign) if len(own) >= rank else 0, width):
            block = foreign[start : start + width]
            normals = cdist(slopes[own], slopes[block])
            for at, query in enumerate(queries):
                margins = _margins(z[query], z_train[own], z_train[block], normals)
                bounds[at, start : start + width] = np.partition(margins, -rank, axis=0)[-rank]
        for at, query in enumerate(queries):
            found[query] = foreign, bounds[at]
    return found


def nn_radius(
    L: npt.ArrayLike, X_train: npt.ArrayLike, y_train: npt.ArrayLike, X: npt.ArrayLike, k: int = 1
) -> tuple[npt.NDArray[np.generic], Floats]:
    """Prediction of the k-NN rule and a radius within which no movement of the input changes it.

    Parameters
    ----------
    L
        ``(d, D)``: the identity for the Euclidean rule, ``components_`` of a learned one.
    X_train, y_train
        ``(N, D)``, ``(N,)``: the rows that vote.
    X
        ``(Q, D)``.
    k
        Odd, at most N.

    Returns
    -------
    predictions
        ``(Q,)`` of `y_train`'s type. Of equal distances the first row counts, of equal votes the
        first class.
    radius
        ``(Q,)`` of at least 0, in units of the rows, a lower bound of the distance to the nearest
        point that is called otherwise; 0 says nothing, infinity that there are not (k + 1) / 2
        rows of other classes.

    Raises
    ------
    FoveateError
        Shapes, NaN, or k even or out of range.
    """
    linear, rows, labels, points, classes = _checked(L, X_train, y_train, X)
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= len(rows) or k % 2 == 0:
        raise FoveateError(f"k is {k}; expected an odd number from 1 to {len(rows)}")
    rank = (k + 1) // 2
    called = _predicted(rows @ linear.T, labels, points @ linear.T, k)
    radius = np.full(len(points), np.inf)
    for query, (foreign, bounds) in enumerate(_bounds(linear, rows, labels, points, called, rank)):
        if len(foreign) >= rank:
            radius[query] = max(0.0, np.partition(bounds, rank - 1)[rank - 1])
    return classes[called], radius


def _projected(normals: Floats, offsets: Floats) -> Floats:
    """The shortest delta with ``normals @ delta >= offsets`` (Lawson & Hanson's LDP).

    It is read off the residual of a nonnegative least-squares problem, whose last entry is
    ``-1 / (1 + |delta|^2)``: hence the scale.
    """
    scale = float(offsets.max(initial=0.0))
    if scale == 0:  # no constraint is violated (and scipy's nnls aborts on an empty system)
        return np.zeros(normals.shape[1])
    system = np.concatenate([normals.T, offsets[None] / scale])
    wanted = np.zeros(len(system))
    wanted[-1] = 1.0
    weights, _ = nnls(system, wanted)
    rest = system @ weights - wanted
    delta: Floats = -scale * rest[:-1] / rest[-1]
    return delta


def exact_radius(
    L: npt.ArrayLike, X_train: npt.ArrayLike, y_train: npt.ArrayLike, X: npt.ArrayLike
) -> tuple[npt.NDArray[np.generic], Floats, Floats]:
    """Prediction of the 1-NN rule and the distance to the nearest point that is called otherwise.

    For a foreign row l, the points that are nearer to it than to every row of the class form a
    polyhedron; the distance to it is a least-distance problem. Rows whose lower bound is not below
    the best distance found so far need none.

    Parameters
    ----------
    L, X_train, y_train, X
        As in `nn_radius`.

    Returns
    -------
    predictions
        ``(Q,)``.
    distance
        ``(Q,)``, exact to the solver's tolerance (about 1e-9 of the scale of the rows); infinity
        where no other class exists.
    adversary
        ``(Q, D)``: the nearest such point, on the border of the two; NaN at infinity.

    Raises
    ------
    FoveateError
        Shapes or NaN.
    """
    linear, rows, labels, points, classes = _checked(L, X_train, y_train, X)
    called = _predicted(rows @ linear.T, labels, points @ linear.T, 1)
    distance = np.full(len(points), np.inf)
    adversary = np.full(points.shape, np.nan)
    z_train, z, slopes = _mapped(linear, rows, points)
    for query, (foreign, bounds) in enumerate(_bounds(linear, rows, labels, points, called, 1)):
        own = np.flatnonzero(labels == called[query])
        to_own = np.square(z_train[own] - z[query]).sum(1)
        for at in np.argsort(bounds, kind="stable"):
            if bounds[at] >= distance[query]:
                break
            other = foreign[at]
            normals = slopes[other] - slopes[own]
            sizes = np.linalg.norm(normals, axis=1)
            gaps = np.square(z_train[other] - z[query]).sum() - to_own
            bites = sizes > 0  # where it is 0 the two rows are always equally near
            move = _projected(normals[bites] / sizes[bites, None], gaps[bites] / 2 / sizes[bites])
            length = float(np.linalg.norm(move))
            if length < distance[query]:
                distance[query], adversary[query] = length, points[query] + move
    return classes[called], distance, adversary


def certified_accuracy(
    radii: npt.ArrayLike, correct: npt.ArrayLike, eps_grid: npt.ArrayLike
) -> Floats:
    """Share of points that are called correctly and stay so however they are moved by eps.

    Parameters
    ----------
    radii
        ``(Q,)`` of `nn_radius`.
    correct
        ``(Q,)`` of bool: whether the prediction is right.
    eps_grid
        ``(E,)`` of at least 0, in units of the rows.

    Returns
    -------
    ndarray
        ``(E,)``, 0 to 1, falling with eps: radius above eps and correct.

    Raises
    ------
    FoveateError
        Shapes, NaN, no point, or a negative eps.
    """
    radius, right = np.asarray(radii, np.float64), np.asarray(correct)
    grid = np.asarray(eps_grid, np.float64)
    if radius.ndim != 1 or not radius.size or right.shape != radius.shape or grid.ndim != 1:
        raise FoveateError(
            "expected radii (Q,), correct (Q,) and eps_grid (E,), got "
            f"{radius.shape}, {right.shape} and {grid.shape}"
        )
    if right.dtype != np.bool_ or np.isnan(radius).any() or not (grid >= 0).all():
        raise FoveateError("expected radii without NaN, correct of bool, and eps of at least 0")
    share: Floats = ((radius[None] > grid[:, None]) & right[None]).mean(1)
    return share
