r"""Numbers to choose and classify by, for items that are only pictures.

A frozen network's embedding is better than anything here, and whoever has one should bring it. For
those who have none, every picture is brought to 64 x 64 pixels and described by

- **edges**: histograms of oriented gradients (Dalal & Triggs, 2005), 9 directions in cells of 8
  pixels, every block of 2 x 2 cells normalised: 576 numbers, where the shapes are;
- **colours**: mean and standard deviation of L, a and b (CIELAB) in a grid of 4 x 4: 96 numbers.

Both parts get equal weight (each divided by the root of its total variance over the pool), and of
their D' = 672 columns the first principal components are kept, z = V^T (x - mean), at most 50 and
fewer than there are pictures. The choice of parts and sizes is ours (D); no label is looked at.

Whatever the numbers, :func:`standardised` brings them to mean 0 and variance 1, which a linear
classifier and distances between items both want: every measured column of a table by itself, the
columns of an embedding by one common factor. An embedding's columns say by their variance how much
they matter; to blow up its last components to the size of the first makes it worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["SIDE", "describe", "picture_features", "standardised"]

SIDE = 64
COMPONENTS = 50
_FITTED = 5000  # pictures that the principal components are made of
_GRID = 4
_CELL, _BINS = 8, 9

Array = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


def describe(picture: Picture) -> npt.NDArray[np.float32]:
    """Edges and colours of one picture.

    Parameters
    ----------
    picture
        ``(H, W, 3)`` uint8 RGB, of any size.

    Returns
    -------
    ndarray
        ``(672,)`` float32: 576 of edges, then 96 of colours.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise FoveateError(
            f"expected a picture uint8 (H, W, 3), got {picture.dtype} {picture.shape}"
        )
    shrinks = max(picture.shape[:2]) > SIDE
    small = cv2.resize(
        np.ascontiguousarray(picture),
        (SIDE, SIDE),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    edges = _edges(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    step = SIDE // _GRID
    cells = lab.reshape(_GRID, step, _GRID, step, 3)
    colours = np.concatenate([cells.mean((1, 3)).ravel(), cells.std((1, 3)).ravel()])
    return np.concatenate([edges, colours]).astype(np.float32)


def _edges(grey: Picture) -> npt.NDArray[np.float32]:
    """Histograms of oriented gradients of a picture ``(64, 64)``: ``(576,)``."""
    down, across = np.gradient(grey.astype(np.float32))
    # Direction without sign, as a place among 9 bins around a circle; shared by the two nearest.
    place = np.arctan2(down, across) / np.pi % 1 * _BINS
    low = np.floor(place)
    shared = np.hypot(down, across) * np.stack([1 - place + low, place - low])
    bins = np.stack([low, low + 1]).astype(np.int64) % _BINS
    row, column = np.indices(grey.shape) // _CELL
    cells = SIDE // _CELL
    flat = (row * cells + column) * _BINS + bins
    sums = np.bincount(flat.ravel(), shared.ravel(), cells * cells * _BINS)
    blocks = sums.reshape(cells // 2, 2, cells // 2, 2, _BINS).transpose(0, 2, 1, 3, 4)
    blocks = blocks.reshape(-1, 4 * _BINS)
    # The constant, about one grey value per pixel, keeps flat blocks from becoming noise.
    blocks /= np.sqrt((blocks**2).sum(1, keepdims=True) + _CELL**4)
    return np.asarray(blocks.ravel(), np.float32)


def picture_features(
    pictures: Iterator[Picture],
    count: int,
    *,
    components: int = COMPONENTS,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Array:
    """Principal components of the edges and colours of all pictures of a pool.

    Parameters
    ----------
    pictures
        `count` of them, each ``(H, W, 3)`` uint8 RGB; looked at one after the other.
    tell
        Called with (pictures done, `count`).

    Returns
    -------
    ndarray
        ``(count, D)`` float64, D at most `components`; the signs of the columns are such that the
        result is the same on every run.
    """
    raw = np.empty((count, 576 + 6 * _GRID**2), np.float32)
    done = 0
    for picture in pictures:
        raw[done] = describe(picture)
        done += 1
        tell(done, count)
    if done != count or count < 2:
        raise FoveateError(f"expected {max(count, 2)} pictures, got {done}")
    raw -= raw.mean(0)
    for columns in (slice(0, 576), slice(576, None)):
        spread = float(np.sqrt(raw[:, columns].var(0).sum()))
        raw[:, columns] /= spread if spread > 1e-6 else 1.0
    taken = raw[:: -(-count // _FITTED)].astype(np.float64)
    _, deviations, axes = np.linalg.svd(taken - taken.mean(0), full_matrices=False)
    rank = int((deviations > 1e-6 * max(float(deviations[0]), 1e-6)).sum())
    axes = axes[: max(1, min(components, rank))]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    return np.asarray(raw @ axes.T, np.float64)


def standardised(numbers: npt.ArrayLike, groups: Sequence[int] | None = None) -> Array:
    """Every group of columns with mean 0 and a mean variance of 1 over the pool.

    Parameters
    ----------
    numbers
        ``(N, D)``, finite.
    groups
        How many neighbouring columns belong together, summing to D; default: all. Constant groups
        become 0.
    """
    x = np.asarray(numbers, np.float64)
    if x.ndim != 2 or 0 in x.shape or not np.isfinite(x).all():
        raise FoveateError(f"expected finite numbers (N, D), got {x.shape}, perhaps with NaN")
    widths = [x.shape[1]] if groups is None else list(groups)
    if sum(widths) != x.shape[1] or min(widths) < 1:
        raise FoveateError(f"groups of {widths} columns do not make up the {x.shape[1]} there are")
    centred = x - x.mean(0)
    centred -= centred.mean(0)  # again, so that a large offset does not drown a small deviation
    starts = np.cumsum([0, *widths[:-1]])
    deviation = np.sqrt(np.add.reduceat(centred.var(0), starts) / widths)
    constant = deviation <= 1e-12 * np.maximum.reduceat(np.abs(x).max(0), starts)
    factor = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
    return np.asarray(centred * np.repeat(factor, widths), np.float64)
