"""Features of pictures without a network, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.learning.pool_features import SIDE, describe, picture_features, standardised


def stripes(angle: float, phase: float = 0.0) -> np.ndarray:
    """Grey waves whose gradient points in the direction `angle`."""
    down, across = np.mgrid[:SIDE, :SIDE]
    wave = np.sin((across * np.cos(angle) + down * np.sin(angle)) * 0.5 + phase)
    return np.repeat(np.uint8(127 + 100 * wave)[..., None], 3, 2)


@pytest.mark.parametrize("bin_", range(9))
def test_edges_of_one_direction_fall_into_its_bin_and_the_next(bin_):
    edges = describe(stripes((bin_ + 0.5) * np.pi / 9))[:576].reshape(16, 4, 9)
    share = (edges.sum((0, 1)) / edges.sum()).tolist()
    assert share[bin_] + share[(bin_ + 1) % 9] > 0.85
    # every block has length one, but for the constant that damps noise
    assert np.allclose(np.linalg.norm(edges.reshape(16, -1), axis=1), 1, atol=0.05)


def test_a_flat_picture_has_no_edges_and_its_own_colour():
    found = describe(np.full((30, 50, 3), (255, 0, 0), np.uint8))
    assert np.abs(found[:576]).max() == 0
    colours = found[576:].reshape(2, 16, 3)
    assert np.allclose(colours[0], (53.24, 80.09, 67.20), atol=0.1)  # CIELAB of sRGB red
    assert np.allclose(colours[1], 0, atol=1e-3)


def test_noise_of_one_grey_value_is_damped():
    rng = np.random.default_rng(0)
    noisy = (128 + rng.integers(0, 2, (SIDE, SIDE, 1), np.uint8)).repeat(3, 2)
    assert np.linalg.norm(describe(noisy)[:576].reshape(16, 36), axis=1).max() < 0.5


def test_principal_components_keep_what_distinguishes_and_are_the_same_every_time():
    rng = np.random.default_rng(0)
    pictures = [stripes(k % 3, rng.uniform(0, 6)) for k in range(30)]
    told: list[tuple[int, int]] = []
    first = picture_features(iter(pictures), 30, tell=lambda *pair: told.append(pair))
    assert first.shape[1] <= 29
    assert told[-1] == (30, 30)
    assert np.array_equal(first, picture_features(iter(pictures), 30))
    # distances are those of the described and weighted pictures: nothing but directions is lost
    raw = np.stack([describe(p) for p in pictures]).astype(np.float64)
    raw -= raw.mean(0)
    parts = [raw[:, :576], raw[:, 576:]]
    raw = np.concatenate([p / np.sqrt(p.var(0).sum()) for p in parts], 1)
    wanted = np.linalg.norm(raw[0] - raw[1:], axis=1)
    assert np.allclose(np.linalg.norm(first[0] - first[1:], axis=1), wanted, rtol=1e-4)
    few = picture_features(iter(pictures), 30, components=2)
    # the first components have the most variance, and are uncorrelated
    assert few.shape == (30, 2)
    assert few[:, 0].var() >= few[:, 1].var()
    assert abs(np.corrcoef(few.T)[0, 1]) < 1e-3


def test_equal_pictures_and_bad_input():
    same = [np.zeros((4, 4, 3), np.uint8)] * 3
    assert picture_features(iter(same), 3).shape == (3, 1)
    with pytest.raises(FoveateError, match="expected 4 pictures, got 3"):
        picture_features(iter(same), 4)
    with pytest.raises(FoveateError, match=r"picture uint8 \(H, W, 3\), got float64 \(4, 4, 3\)"):
        describe(np.zeros((4, 4, 3)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 20), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**32)
)
def test_groups_have_mean_0_and_mean_variance_1_and_keep_their_proportions(count, widths, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, sum(widths))) * rng.uniform(1e-3, 1e3, sum(widths)) + 1e6
    z = standardised(x, widths)
    assert np.allclose(z.mean(0), 0, atol=1e-6)
    for start, width in zip(np.cumsum([0, *widths[:-1]]), widths, strict=True):
        group, raw = z[:, start : start + width], x[:, start : start + width]
        assert group.var(0).mean() == pytest.approx(1)
        assert np.allclose(group.std(0) * raw.std(0).max(), raw.std(0) * group.std(0).max(), 1e-4)


def test_constant_columns_become_zero_and_bad_numbers_are_refused():
    x = np.array([[5.0, 1e9], [5, 1e9], [5, 1e9 + 1]])
    assert standardised(x, [1, 1])[:, 0].tolist() == [0, 0, 0]
    assert standardised(x, [1, 1])[:, 1].std() == pytest.approx(1)
    with pytest.raises(FoveateError, match="perhaps with NaN"):
        standardised([[np.nan]])
    with pytest.raises(FoveateError, match="groups of"):
        standardised(x, [3])
