"""The tiler: the map does not depend on where the seams lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.map_model import check_labels, predict_map, predict_points, tile_windows


class Cells:
    """Looks `margin` pixels far and in cells of `stride` pixels, on whole numbers: exact."""

    classes = (3, 7, 4)

    def __init__(self, margin: int, stride: int) -> None:
        self.margin, self.stride = margin, stride

    def sums(self, block: np.ndarray) -> np.ndarray:
        """Sum of the square of 2 margin + 1 pixels, then of the cell of stride x stride."""
        m, s = self.margin, self.stride
        windows = np.lib.stride_tricks.sliding_window_view(block[..., 0], (2 * m + 1,) * 2)
        near = windows.sum((2, 3))
        h, w = near.shape
        cells = near.reshape(h // s, s, w // s, s).sum((1, 3))
        return np.repeat(np.repeat(cells, s, 0), s, 1)

    def probabilities(self, block: np.ndarray) -> np.ndarray:
        found = self.sums(block).astype(int) % 3
        assert found.shape[0] % self.stride == found.shape[1] % self.stride == 0
        return (0.25 + 0.25 * np.eye(3)[found]).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    margin=st.integers(0, 5),
    stride=st.integers(1, 4),
    tiles=st.tuples(st.integers(1, 25), st.integers(1, 25)),
)
def test_the_map_does_not_depend_on_the_tile(seed, height, width, margin, stride, tiles):
    rng = np.random.default_rng(seed)
    cube = rng.integers(0, 9, (height, width, 1)).astype(np.float32)
    scene, model = Scene.from_array(cube, "hyperspectral"), Cells(margin, stride)
    first, second = (predict_map(model, scene, tile) for tile in tiles)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])

    # against the whole scene, padded by numpy and taken in one piece
    high, wide = -height % stride, -width % stride
    around = ((margin, margin + high), (margin, margin + wide), (0, 0))
    whole = model.probabilities(np.pad(cube, around, mode="reflect"))[:height, :width]
    assert np.array_equal(first[0], np.array(model.classes)[whole.argmax(2)])
    assert np.array_equal(first[1], whole.max(2))
    assert first[0].dtype == np.int16
    assert first[1].dtype == np.float32

    at = np.stack([rng.integers(0, height, 15), rng.integers(0, width, 15)], 1)
    codes, confidence = predict_points(model, scene, at, tiles[0])
    assert np.array_equal(codes, first[0][tuple(at.T)])
    assert np.array_equal(confidence, first[1][tuple(at.T)])


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    tile=st.integers(1, 12),
    stride=st.integers(1, 5),
)
def test_tiles_cover_every_pixel_once_and_start_at_the_stride(height, width, tile, stride):
    times = np.zeros((height, width), int)
    for row, column, h, w in tile_windows(height, width, tile, stride):
        assert row % stride == column % stride == 0
        times[row : row + h, column : column + w] += 1
    assert (times == 1).all()


def test_tiles_far_from_each_other_read_only_their_surroundings():
    read = []

    def reader(window: Window) -> np.ndarray:
        read.append(window)
        return np.ones((window.height, window.width, 1), np.float32)

    scene = Scene("far", None, "hyperspectral", 10_000, 10_000, ("one",), reader)
    predict_points(Cells(1, 1), scene, [[10, 10], [12, 13], [9_000, 9_000]])
    assert read == [Window(9, 9, 5, 6), Window(8_999, 8_999, 3, 3)]
    codes, confidence = predict_points(Cells(1, 1), scene, np.zeros((0, 2), int))
    assert codes.shape == confidence.shape == (0,)


def test_pixels_without_data_are_zero():
    cube = np.ones((6, 8, 1), np.float32)
    full = Scene.from_array(cube, "hyperspectral")

    def valid(window: Window) -> np.ndarray:
        columns = np.arange(window.column, window.column + window.width)
        return np.broadcast_to(columns < 5, (window.height, window.width))

    scene = Scene("half", None, full.kind, 6, 8, full.band_names, full.reader, valid=valid)
    codes, confidence = predict_map(Cells(0, 1), scene, 4)
    assert ((codes > 0) == (np.arange(8) < 5)).all()
    assert ((confidence > 0) == (np.arange(8) < 5)).all()


def test_progress_counts_tiles():
    scene = Scene.from_array(np.zeros((9, 9, 1), np.float32), "hyperspectral")
    told = []
    predict_map(Cells(0, 1), scene, 4, lambda done, total: told.append((done, total)))
    assert told == [(i, 9) for i in range(1, 10)]


def test_bad_input_is_said_in_one_sentence():
    scene = Scene.from_array(np.zeros((9, 9, 1), np.float32), "hyperspectral")
    labels = np.ones((9, 9), int)

    class Wrong(Cells):
        def probabilities(self, block: np.ndarray) -> np.ndarray:
            return super().probabilities(block)[..., :2]

    class Lost(Cells):
        def probabilities(self, block: np.ndarray) -> np.ndarray:
            return super().probabilities(block) * np.nan

    for wrong in (
        lambda: predict_map(Wrong(1, 1), scene),
        lambda: predict_map(Lost(1, 1), scene),
        lambda: predict_map(Cells(1, 1), scene, 0),
        lambda: predict_points(Cells(1, 1), scene, [[0, 0]], 0),
        lambda: predict_points(Cells(1, 1), scene, [[0, 9]]),
        lambda: predict_points(Cells(1, 1), scene, [[0.5, 1.0]]),
        lambda: check_labels(scene, SceneLabels.from_map(labels)),
        lambda: check_labels(scene, SceneLabels.from_map(labels[:8] + np.eye(8, 9, dtype=int))),
    ):
        with pytest.raises(FoveateError):
            wrong()
