"""Patches against numpy's own padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.scene import Scene
from foveate.errors import FoveateError
from foveate.scenes import patches
from foveate.scenes.patches import PatchDataset, read_patches


def cube_of(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)


def by_hand(cube: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """Padded by numpy's "reflect", then sliced."""
    before, after = size // 2, size - 1 - size // 2
    padded = np.pad(cube, ((before, after), (before, after), (0, 0)), mode="reflect")
    cut = [padded[r : r + size, c : c + size] for r, c in at]
    return np.stack(cut).transpose(0, 3, 1, 2)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 4),
    size=st.integers(1, 9),
    tile=st.integers(1, 7),
)
def test_patches_are_slices_of_the_padded_cube(seed, height, width, channels, size, tile):
    """Any order of pixels, any tile, scenes smaller than the patch, even sizes too."""
    cube = cube_of(height, width, channels, seed)
    rng = np.random.default_rng(seed)
    at = np.stack([rng.integers(0, height, 20), rng.integers(0, width, 20)], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "_TILE", tile)
        ours = read_patches(cube, at, size, even=True)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, by_hand(cube, at, size))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_centre_pixel_is_exact_at_corners_edges_and_inside(size):
    cube = cube_of(9, 8, 5)
    at = np.array([[0, 0], [0, 7], [8, 0], [8, 7], [0, 3], [4, 7], [4, 4]])
    data = PatchDataset(Scene.from_array(cube, "hyperspectral"), at, np.arange(1, 8), size)
    for i, (row, column) in enumerate(at):
        patch, code, flat = data[i]
        assert patch.shape == (5, size, size)
        assert patch.dtype == torch.float32
        assert patch[:, size // 2, size // 2].tolist() == cube[row, column].tolist()
        assert (code, flat) == (i + 1, row * 8 + column)


def test_dataset_gives_what_read_patches_gives():
    cube = cube_of(20, 17, 3)
    rng = np.random.default_rng(1)
    at = np.stack([rng.integers(0, 20, 30), rng.integers(0, 17, 30)], 1)
    codes = rng.choice([2, 5, 9], 30)
    data = PatchDataset(cube, at, codes, 5, classes=(5, 2, 9))
    batches = list(torch.utils.data.DataLoader(data, batch_size=8))
    assert np.array_equal(torch.cat([b[0] for b in batches]).numpy(), read_patches(cube, at, 5))
    assert [(5, 2, 9)[i] for i in torch.cat([b[1] for b in batches]).tolist()] == codes.tolist()
    assert len(data) == 30
    negative = PatchDataset(cube, at, codes, 5, transform=lambda patch: -patch)
    assert torch.equal(negative[4][0], -data[4][0])
    assert negative[4][1] == codes[4]


def test_integer_cubes_are_read_as_float32():
    cube = np.arange(60, dtype=np.uint16).reshape(4, 5, 3) + 60_000
    assert read_patches(cube, [[2, 3]], 1)[0, :, 0, 0].tolist() == cube[2, 3].tolist()
    assert read_patches(cube, np.zeros((0, 2), int), 3).shape == (0, 3, 3, 3)


def test_bad_input_is_said_in_one_sentence():
    cube = cube_of(6, 6, 2)
    for wrong in (
        lambda: read_patches(cube, [[0, 0]], 4),  # even sizes rejected
        lambda: read_patches(cube, [[0, 0]], 0),
        lambda: read_patches(cube, [[0, 6]], 3),
        lambda: read_patches(cube, [[-1, 0]], 3),
        lambda: read_patches(cube, [[0.5, 1]], 3),
        lambda: read_patches(cube, [0, 1], 3),
        lambda: read_patches(cube, np.zeros((2_000_000, 2), int), 101),
        lambda: PatchDataset(cube, [[0, 0]], [1, 2], 3),
        lambda: PatchDataset(cube, [[0, 0]], [1], 2),
        lambda: PatchDataset(cube, [[0, 0]], [4], 3, classes=[1, 2]),
    ):
        with pytest.raises(FoveateError):
            wrong()
