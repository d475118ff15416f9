"""Scalers against scikit-learn, and that they see training pixels only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from foveate.errors import FoveateError
from foveate.scenes.scaling import BandScaler, PcaFeatures, SceneFeatures


def pixels_of(seed: int, count: int, bands: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, bands)) @ rng.normal(size=(bands, bands))
    return (1000 + 50 * mixed).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), count=st.integers(8, 40), bands=st.integers(1, 6))
def test_scalers_are_those_of_scikit_learn(seed, count, bands):
    train, other = pixels_of(seed, count, bands), pixels_of(seed + 1, 12, bands)
    ours = BandScaler(1e-12).fit(train).transform(other)
    theirs = StandardScaler().fit(train.astype(float)).transform(other.astype(float))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    wanted = min(bands, 3)
    ours = PcaFeatures(wanted).fit(train).transform(other)
    theirs = PCA(wanted, whiten=True, svd_solver="full").fit(train.astype(float)).transform(other)
    theirs = theirs * np.sign((ours * theirs).sum(0))  # the sign of a direction is free
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("made", [BandScaler, lambda: PcaFeatures(3)])
def test_only_training_pixels_count(made):
    """Test pixels changed -> nothing changes."""
    cube = pixels_of(0, 60, 5).reshape(6, 10, 5)
    train = np.zeros((6, 10), bool)
    train[:, :6] = True
    changed = cube.copy()
    changed[~train] = 1e6
    first, second = made().fit(cube[train]), made().fit(changed[train])
    assert np.array_equal(first.transform(cube), second.transform(cube))
    for name, array in first.to_arrays().items():
        assert np.array_equal(array, second.to_arrays()[name])


def test_whitened_components_are_uncorrelated_with_variance_one():
    train = pixels_of(3, 400, 8)
    components = PcaFeatures(5).fit(train)
    features = components.transform(train)
    np.testing.assert_allclose(np.cov(features, rowvar=False), np.eye(5), atol=1e-4)
    # the sign of a direction: its largest entry is positive
    matrix = components.to_arrays()["matrix"]
    assert (matrix[np.abs(matrix).argmax(0), np.arange(5)] > 0).all()


def test_dead_bands_do_not_blow_up():
    train = pixels_of(4, 50, 5)
    train[:, 2] = 7
    other = train.copy()
    other[:, 2] = 8
    floor = np.median(train.astype(float).std(0)) / 1000
    assert BandScaler().fit(train).transform(other)[:, 2] == pytest.approx(1 / floor, rel=1e-4)
    assert BandScaler(floor=2).fit(train).transform(other)[:, 2] == pytest.approx(0.5)
    dead = np.full((4, 3), 5.0)
    assert BandScaler().fit(dead).transform(dead + 1).tolist() == [[1, 1, 1]] * 4


@pytest.mark.parametrize("made", [BandScaler(), PcaFeatures(2)])
def test_kept_as_arrays_and_back(made):
    train = pixels_of(5, 30, 4)
    made.fit(train)
    back = type(made).from_arrays(made.to_arrays())
    cube = pixels_of(6, 12, 4).reshape(3, 4, 4)
    assert np.array_equal(back.transform(cube), made.transform(cube))
    assert back.transform(cube).shape[:2] == (3, 4)
    assert back.transform(cube).dtype == np.float32


def test_bad_input_is_said_in_one_sentence():
    good = pixels_of(0, 20, 4)
    holes = good.copy()
    holes[3, 2] = np.nan
    arrays = BandScaler().fit(good).to_arrays()
    for wrong in (
        lambda: BandScaler(0),
        lambda: BandScaler().fit(holes),
        lambda: BandScaler().fit(good[:0]),
        lambda: BandScaler().fit(good[0]),
        lambda: BandScaler().transform(good),
        lambda: BandScaler().to_arrays(),
        lambda: BandScaler().fit(good).transform(good[:, :3]),
        lambda: BandScaler.from_arrays({"mean": arrays["mean"]}),
        lambda: BandScaler.from_arrays({**arrays, "scale": 0 * arrays["scale"]}),
        lambda: BandScaler.from_arrays({**arrays, "mean": np.full(4, np.nan)}),
        lambda: PcaFeatures(0),
        lambda: PcaFeatures(5).fit(good),
        lambda: PcaFeatures(3).fit(good[:3]),
        lambda: PcaFeatures(3).fit(np.repeat(good[:, :1], 4, 1)),
        lambda: PcaFeatures(3, fewer=True).fit(np.ones((6, 4))),
        lambda: PcaFeatures(2).transform(good),
        lambda: SceneFeatures("rgb", 0),
        lambda: SceneFeatures("rgb").channels,
        lambda: SceneFeatures.from_arrays({}, "rgb"),
        lambda: PcaFeatures(2).to_arrays(),
        lambda: PcaFeatures.from_arrays({"mean": np.zeros(3), "matrix": np.zeros((2, 2))}),
    ):
        with pytest.raises(FoveateError):
            wrong()


@pytest.mark.parametrize(("kind", "components"), [("hyperspectral", 3), ("rgb", None)])
def test_scene_features_are_the_scalers_one_after_the_other(kind, components):
    train, other = pixels_of(7, 40, 6), pixels_of(8, 9, 6)
    features = SceneFeatures(kind, components).fit(train)
    scaler = BandScaler().fit(train)
    expected = scaler.transform(other)
    if components:
        expected = PcaFeatures(3).fit(scaler.transform(train)).transform(expected)
    assert np.array_equal(features.transform(other), expected)
    assert features.channels == expected.shape[1]
    back = SceneFeatures.from_arrays(features.to_arrays(), kind)
    assert np.array_equal(back.transform(other), expected)


def test_few_pixels_give_as_many_components_as_they_allow():
    assert SceneFeatures("hyperspectral", 30).fit(pixels_of(1, 5, 20)).channels == 4
    grey = np.repeat(pixels_of(2, 30, 1), 3, axis=1)  # three bands, all alike
    assert SceneFeatures("rgb", 2).fit(grey).channels == 1


def test_polsar_features_do_not_see_the_gain():
    """Logarithms: a scene twice as bright gives the same standardised features."""
    rng = np.random.default_rng(0)
    k = rng.normal(size=(60, 4, 3)) + 1j * rng.normal(size=(60, 4, 3))
    t = np.einsum("nli,nlj->nij", k, k.conj()) / 4
    upper = [
        part for i, j in ((0, 1), (0, 2), (1, 2)) for part in (t[:, i, j].real, t[:, i, j].imag)
    ]
    channels = np.stack([*(t[:, i, i].real for i in range(3)), *upper], 1).astype(np.float32)
    first = SceneFeatures("polsar").fit(channels).transform(channels)
    second = SceneFeatures("polsar").fit(channels * 2).transform(channels * 2)
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert first.shape == (60, 9)
