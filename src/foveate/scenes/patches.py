"""Patches around labelled pixels: what a net sees that decides on one pixel.

The patch of pixel (r, c) is ``n x n`` with that pixel in the middle, n odd; near the scene's edge
the missing part is mirrored (`foveate.datasets.scene`). Where a method needs an even side, its
pixel sits at row and column ``n // 2`` and has to be asked for with ``even=True``.

Unlabelled pixels are legitimate context; they are never targets.

>>> data = PatchDataset(scene, labels.coordinates[train], labels.codes[train], 9)  # doctest: +SKIP
>>> patch, code, flat = data[0]  # (C, 9, 9) float32  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveate.datasets.scene import Scene, Window
from foveate.errors import FoveateError

__all__ = ["PatchDataset", "read_patches"]

_TILE = 128  # pixels read at once when many patches are cut
_MOST_BYTES = 1 << 34


def read_patches(
    scene: Scene | npt.NDArray[Any], coordinates: npt.ArrayLike, size: int, *, even: bool = False
) -> npt.NDArray[np.float32]:
    """Patches (N, C, n, n) float32 around pixels.

    Parameters
    ----------
    scene
        A scene, or a cube (H, W, C).
    coordinates
        Rows and columns (N, 2), in any order; patches come in this order.
    size
        Side n, odd.
    even
        Allows an even side; the pixel then lies at row and column n // 2.

    Raises
    ------
    FoveateError
        An even side not asked for, a pixel outside the scene, or more than 16 GiB of patches.
    """
    scene = _as_scene(scene)
    at = _checked(scene, coordinates, size, even)
    needed = 4 * len(at) * scene.channels * size * size
    if needed > _MOST_BYTES:
        raise FoveateError(
            f"{len(at)} patches of {size} x {size} with {scene.channels} channels take "
            f"{needed / 2**30:.0f} GiB; read fewer at a time, or use PatchDataset"
        )
    patches = np.empty((len(at), scene.channels, size, size), np.float32)
    # tile by tile: neighbouring patches share nearly all their pixels
    tile = at // _TILE
    key = tile[:, 0] * (scene.width // _TILE + 1) + tile[:, 1]
    order = np.argsort(key, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        if not group.size:
            continue
        first, last = at[group].min(0), at[group].max(0)
        height, width = (last - first + size).tolist()
        top, left = (first - size // 2).tolist()
        block = scene.read_padded(Window(top, left, height, width))
        windows = np.lib.stride_tricks.sliding_window_view(block, (size, size), axis=(0, 1))
        rows, columns = (at[group] - first).T
        patches[group] = windows[rows, columns]
    return patches


class PatchDataset(Dataset[tuple[Tensor, int, int]]):
    """Patches with their labels, cut when asked for.

    Parameters
    ----------
    scene
        A scene, or a cube (H, W, C).
    coordinates
        Rows and columns (N, 2) of the labelled pixels.
    codes
        Their class codes (N,).
    size
        Side n, odd; `even` allows an even one.
    transform
        Applied to every patch (C, n, n).
    classes
        When given, the label of an item is the position of its code in it, as losses want it;
        otherwise it is the code.

    Raises
    ------
    FoveateError
        As `read_patches`, or codes that do not fit the pixels or are not in `classes`.

    Notes
    -----
    An item is ``(patch, label, flat)``: (C, n, n) float32, the label, and the pixel's number
    ``row * W + column`` in the scene.
    """

    def __init__(
        self,
        scene: Scene | npt.NDArray[Any],
        coordinates: npt.ArrayLike,
        codes: npt.ArrayLike,
        size: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        *,
        classes: Sequence[int] | None = None,
        even: bool = False,
    ) -> None:
        self.scene = _as_scene(scene)
        self.coordinates = _checked(self.scene, coordinates, size, even)
        labels = np.asarray(codes)
        if labels.shape != (len(self.coordinates),):
            raise FoveateError(
                f"PatchDataset expects one class code per pixel, got {labels.shape} codes for "
                f"{len(self.coordinates)} pixels"
            )
        if classes is not None:
            position = {int(code): index for index, code in enumerate(classes)}
            unknown = sorted(set(labels.tolist()) - set(position))
            if unknown:
                raise FoveateError(
                    f"PatchDataset got class codes {unknown} that are not in classes"
                )
            labels = np.array([position[code] for code in labels.tolist()], np.int64)
        self.labels = labels
        self.size, self.transform = size, transform

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        row, column = self.coordinates[index].tolist()
        before = self.size // 2
        block = self.scene.read_padded(Window(row - before, column - before, self.size, self.size))
        patch = torch.from_numpy(np.ascontiguousarray(block.transpose(2, 0, 1)))
        if self.transform is not None:
            patch = self.transform(patch)
        return patch, int(self.labels[index]), row * self.scene.width + column


def _as_scene(scene: Scene | npt.NDArray[Any]) -> Scene:
    return scene if isinstance(scene, Scene) else Scene.from_array(scene, "hyperspectral")


def _checked(
    scene: Scene, coordinates: npt.ArrayLike, size: int, even: bool
) -> npt.NDArray[np.int64]:
    if size < 1 or (size % 2 == 0 and not even):
        raise FoveateError(
            f"a patch expects an odd side, so that its pixel is in the middle, got {size}; an even "
            "side is allowed with even=True, the pixel then lies at n // 2"
        )
    at = np.asarray(coordinates)
    if at.ndim != 2 or at.shape[1] != 2 or not np.issubdtype(at.dtype, np.integer):
        raise FoveateError(
            f"patches expect whole rows and columns (N, 2), got {at.dtype} of shape {at.shape}"
        )
    outside = (at < 0).any(1) | (at >= (scene.height, scene.width)).any(1)
    if outside.any():
        row, column = at[outside][0].tolist()
        raise FoveateError(
            f"row {row}, column {column} lies outside the scene of {scene.height} x "
            f"{scene.width} pixels"
        )
    return at.astype(np.int64)
