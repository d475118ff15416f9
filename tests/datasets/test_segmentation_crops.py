"""Random crops are cuts of their pictures, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from foveate.datasets.segmentation_crops import (
    VOID,
    PicturesInMemory,
    RandomCrops,
    Renumbered,
)
from foveate.errors import FoveateError


def numbered(count: int, height: int, width: int) -> PicturesInMemory:
    """Every pixel has a value of its own within its picture; the label is its last bits."""
    value = np.arange(height * width).reshape(height, width) % 250
    pictures = np.stack([np.stack([value, np.full_like(value, k)]) for k in range(count)])
    return PicturesInMemory(
        pictures.astype(np.uint8), np.stack([value % 7] * count).astype(np.uint8)
    )


def crops(source, side, count=12, seed=0, **settings_) -> RandomCrops:
    return RandomCrops(source, side, count, seed, torch.zeros(2), torch.ones(2), **settings_)


@given(
    height=st.integers(4, 12), width=st.integers(4, 12), side=st.integers(1, 14),
    seed=st.integers(0, 99), mirror=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_a_crop_is_a_cut_of_its_picture_with_its_labels(height, width, side, seed, mirror):
    source = numbered(3, height, width)
    for x, labels in map(crops(source, side, 6, seed, mirror=mirror).__getitem__, range(6)):
        assert x.shape == (2, side, side)
        assert labels.shape == (side, side)
        known = labels != VOID
        assert torch.equal(labels[known], x[0][known].long() % 7)
        assert (x[:, ~known] == 0).all()
        assert int(known.sum()) == min(side, height) * min(side, width)
        assert (x[1][known] == x[1][known][0]).all()  # one picture
        inside = x[0][: min(side, height)]
        columns = known.any(0).nonzero().flatten()
        steps = inside[:, columns].diff(dim=1) % 250
        assert ((steps == 1) | (steps == 249)).all()
        if not mirror:
            assert (steps == 1).all()


def test_every_picture_comes_once_before_any_comes_again():
    found = [int(crops(numbered(4, 6, 6), 4, 12)[k][0][1, 0, 0]) for k in range(12)]
    for k in range(0, 12, 4):
        assert sorted(found[k : k + 4]) == [0, 1, 2, 3]


def test_seed_and_number_alone_decide():
    source = numbered(4, 9, 9)
    one, two, other = crops(source, 5), crops(source, 5), crops(source, 5, seed=1)
    backwards = [two[k] for k in reversed(range(12))][::-1]
    assert all(torch.equal(one[k][0], backwards[k][0]) for k in range(12))
    assert not all(torch.equal(one[k][0], other[k][0]) for k in range(12))
    loaded = torch.cat([x for x, _ in DataLoader(one, 4, num_workers=1)])
    assert torch.equal(loaded, torch.stack([one[k][0] for k in range(12)]))
    corners = {tuple(crops(source, 5, 60)[k][0][0, 0, :1].tolist()) for k in range(60)}
    assert len(corners) > 15
    with pytest.raises(IndexError):
        one[12]


def test_crops_are_normalised_and_enlarged():
    source = PicturesInMemory(np.full((1, 2, 8, 8), 10, np.uint8), np.full((1, 8, 8), 3, np.uint8))
    enlarged = RandomCrops(
        source, 16, 40, 0, torch.tensor([4.0, 10.0]), torch.tensor([2.0, 1.0]), (0.5, 2.0)
    )
    sides = set()
    for k in range(40):
        x, labels = enlarged[k]
        known = labels == 3
        assert set(labels.flatten().tolist()) <= {3, VOID}
        torch.testing.assert_close(x[0][known], torch.full_like(x[0][known], 3))
        torch.testing.assert_close(x[1], torch.zeros_like(x[1]))
        sides.add(int(known.sum()) ** 0.5)
    assert sides == {4, 6, 8, 10, 12, 14, 16}


def test_labels_are_renumbered():
    source = PicturesInMemory(
        np.zeros((2, 1, 1, 4), np.uint8), np.array([[[0, 1, 150, 255]]] * 2, np.uint8)
    )
    found = Renumbered(source, 1, 1)
    assert len(found) == 1
    assert found[0][1].tolist() == [[255, 0, 149, 255]]
    assert Renumbered(source, 0, 2)[1][1].tolist() == [[0, 1, 150, 255]]


def test_arrays_that_do_not_fit_are_one_sentence():
    good = np.zeros((1, 8, 8), np.uint8)
    for pictures, labels in (
        (np.zeros((0, 3, 8, 8)), good[:0]),
        (np.zeros((2, 3, 8, 8)), good),
        (np.zeros((1, 8, 8)), good),
        (np.zeros((1, 3, 8, 8)), good.astype(int)),
    ):
        with pytest.raises(FoveateError, match="labelled pictures are"):
            PicturesInMemory(pictures, labels)
    with pytest.raises(FoveateError, match="RandomCrops expects"):
        crops(numbered(1, 4, 4), 4, 0)
    with pytest.raises(FoveateError, match="scales that rise"):
        crops(numbered(1, 4, 4), 4, scales=(2.0, 1.0))
