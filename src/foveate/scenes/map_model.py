"""From a classifier of pixels to a map: tiles, each read with the context that a decision sees.

A method that labels scenes is a `MapModel`: it learns from labelled pixels and gives, for a block
of the scene, the class probabilities of every pixel. A decision on one pixel sees at most `margin`
pixels to every side, so a tile is read with that margin around it and the map does not depend on
where the seams lie. A net with poolings also cares where its cells begin: tiles then start at
multiples of `stride`, and blocks are whole cells. Beyond the scene's edge pixels are mirrored.

>>> model = SvmMap().fit(scene, labels.subset(split.train), seed=0)  # doctest: +SKIP
>>> codes, confidence = predict_map(model, scene)  # (H, W), (H, W)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = [
    "MapModel",
    "check_labels",
    "label_window",
    "predict_map",
    "predict_points",
    "tile_windows",
]

Model = TypeVar("Model", bound="MapModel")
Codes = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]


class MapModel(Protocol):
    """What every method gives that labels scenes."""

    @property
    def margin(self) -> int:
        """Pixels of context to every side that one decision sees."""

    @property
    def stride(self) -> int:
        """Tiles start at multiples of it and blocks are multiples of it; 1 for most."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Class codes, in the order of the last axis of `probabilities`."""

    def fit(
        self: Model,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int,
        hidden: Callable[[Window], npt.NDArray[np.bool_]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Learn from labelled pixels.

        `hidden` is True where inputs must not be used in training, `progress` is told steps done
        and steps in all. The same seed and number of threads give the same numbers.
        """

    def probabilities(self, block: Floats) -> Floats:
        """(h + 2 margin, w + 2 margin, C) -> (h, w, K), not negative, sums of 1."""

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What was learned: arrays, and facts that JSON can hold."""

    @classmethod
    def restore(
        cls: type[Model], arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]
    ) -> Model:
        """The inverse of `state`."""


def check_labels(scene: Scene, labels: SceneLabels) -> None:
    """Say what is wrong with labels to learn from.

    Raises
    ------
    FoveateError
        They are for a scene of another size, or have fewer than two classes.
    """
    if labels.shape != (scene.height, scene.width):
        raise FoveateError(
            f"the labels are for {labels.shape[0]} x {labels.shape[1]} pixels, but the scene "
            f"{scene.name} has {scene.height} x {scene.width}"
        )
    if len(labels.classes) < 2:
        raise FoveateError(
            f"a map expects training labels of at least two classes, got {len(labels.classes)}"
        )


def tile_windows(height: int, width: int, tile: int, stride: int = 1) -> Iterator[Window]:
    """Windows that cover a scene, row by row: squares of `tile` rounded up to the stride."""
    if min(height, width, tile, stride) < 1:
        raise FoveateError(f"a tile has at least one pixel, got {tile}")
    side = -(-tile // stride) * stride
    for row in range(0, height, side):
        for column in range(0, width, side):
            yield Window(row, column, min(side, height - row), min(side, width - column))


def predict_map(
    model: MapModel,
    scene: Scene,
    tile: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Codes, Floats]:
    """Label every pixel of a scene.

    Parameters
    ----------
    model
        Fitted.
    scene
        Of the channels that the model was fitted on; it is read tile by tile.
    tile
        Side of a tile in pixels; the map does not depend on it.
    progress
        Told the tiles done and the tiles in all.

    Returns
    -------
    codes
        (H, W) int16 class codes; 0 where the file has no data.
    confidence
        (H, W) float32 probability of that class; 0 where there is no data.

    Raises
    ------
    FoveateError
        A pixel of the scene or a probability is not finite, or the model breaks its form.
    """
    windows = list(tile_windows(scene.height, scene.width, tile, model.stride))
    codes = np.zeros((scene.height, scene.width), np.int16)
    confidence = np.zeros((scene.height, scene.width), np.float32)
    for done, window in enumerate(windows, 1):
        row, column, height, width = window
        place = np.s_[row : row + height, column : column + width]
        valid = scene.read_valid(window)
        if valid.any():
            found, sure = label_window(model, scene, window)
            codes[place] = np.where(valid, found, 0)
            confidence[place] = np.where(valid, sure, 0)
        if progress is not None:
            progress(done, len(windows))
    return codes, confidence


def predict_points(
    model: MapModel,
    scene: Scene,
    coordinates: npt.ArrayLike,
    tile: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Codes, Floats]:
    """Label some pixels, given as rows and columns (N, 2): what `predict_map` says there.

    Only the surroundings of these pixels are read. Returns codes (N,) and confidence (N,); the
    pixels should have data.
    """
    at = np.asarray(coordinates)
    if at.ndim != 2 or at.shape[1] != 2 or not np.issubdtype(at.dtype, np.integer):
        raise FoveateError(
            f"predict_points expects whole rows and columns (N, 2), got {at.dtype} of {at.shape}"
        )
    if at.size and ((at < 0).any() or (at >= (scene.height, scene.width)).any()):
        raise FoveateError(
            f"predict_points got pixels outside the scene of {scene.height} x {scene.width}"
        )
    at = at.astype(np.int64)
    codes, confidence = np.zeros(len(at), np.int16), np.zeros(len(at), np.float32)
    step = model.stride
    side = -(-tile // step) * step
    if side < 1:
        raise FoveateError(f"a tile has at least one pixel, got {tile}")
    number = at[:, 0] // side * (scene.width // side + 1) + at[:, 1] // side
    order = np.argsort(number, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(at) else []
    for done, group in enumerate(groups, 1):
        first = at[group].min(0) // step * step
        (row, column), (bottom, right) = first.tolist(), at[group].max(0).tolist()
        window = Window(row, column, bottom - row + 1, right - column + 1)
        found, sure = label_window(model, scene, window)
        rows, columns = (at[group] - first).T
        codes[group], confidence[group] = found[rows, columns], sure[rows, columns]
        if progress is not None:
            progress(done, len(groups))
    return codes, confidence


def label_window(model: MapModel, scene: Scene, window: Window) -> tuple[Codes, Floats]:
    """Codes and confidence (h, w) of a window whose corner is a multiple of the stride.

    The scene is read with the margin around it; nothing outside the window is labelled.
    """
    margin, step = model.margin, model.stride
    # whole cells: what reaches over the edge is mirrored and cut off again
    height, width = (-(-side // step) * step for side in (window.height, window.width))
    block = scene.read_padded(
        Window(window.row - margin, window.column - margin, height + 2 * margin, width + 2 * margin)
    )
    shares = model.probabilities(block)
    expected = (height, width, len(model.classes))
    if shares.shape != expected:
        raise FoveateError(
            f"{type(model).__name__} gave probabilities of shape {shares.shape} where {expected} "
            "was expected"
        )
    shares = shares[: window.height, : window.width]
    if not np.isfinite(shares).all():
        raise FoveateError(
            f"{type(model).__name__} gave probabilities that are not finite near row "
            f"{window.row}, column {window.column}; train it again with a smaller learning rate"
        )
    codes = np.asarray(model.classes, np.int16)[shares.argmax(2)]
    return codes, shares.max(2).astype(np.float32)
