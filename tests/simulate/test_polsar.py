"""Simulated PolSAR scenes against the moments of the laws that they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets import polarimetry
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.simulate import polsar
from foveate.simulate.polsar import CLASS_COVARIANCES, semi_simulate, simulate_wishart_scene

ONE_CLASS = np.ones((250, 400), np.uint8)  # 1e5 pixels


def one_class(name: str = "urban", **settings_: object) -> polsar.SimulatedPolsar:
    return simulate_wishart_scene(classes=(name,), label_map=ONE_CLASS, **settings_)  # type: ignore[arg-type]


def enl(power: np.ndarray) -> float:
    power = power.astype(np.float64)
    return float(power.mean() ** 2 / power.var())


@pytest.mark.parametrize("name", CLASS_COVARIANCES)
def test_mean_of_t_is_sigma(name):
    """Checklist: mean over 1e5 pixels of T -> Sigma, relative Frobenius < 2 %, and 3 sigma."""
    t3 = one_class(name, looks=4, texture=math.inf).t3.reshape(-1, 9).astype(np.float64)
    sigma = polarimetry.t3_matrix(CLASS_COVARIANCES[name]).astype(np.complex128)
    mean = polarimetry.t3_matrix(t3.mean(0))
    assert np.linalg.norm(mean - sigma) < 0.02 * np.linalg.norm(sigma)
    error = t3.std(0) / math.sqrt(len(t3))
    # 3 sigma for one channel; 4 for the worst of nine
    assert (np.abs(t3.mean(0) - CLASS_COVARIANCES[name]) < 4 * error).all()


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_equivalent_number_of_looks(looks):
    """Checklist: ENL(T11) = L within 5 % at nu = inf."""
    assert enl(one_class(looks=looks, texture=math.inf).t3[..., 0]) == pytest.approx(
        looks, rel=0.05
    )


@pytest.mark.parametrize(("looks", "texture"), [(1, 4.0), (4, 4.0), (4, 1.0), (16, 2.0)])
def test_texture_lowers_the_looks(looks, texture):
    """Checklist: texture lowers ENL to about 1 / (1/L + 1/nu + 1/(L nu))."""
    expected = 1 / (1 / looks + 1 / texture + 1 / (looks * texture))
    found = one_class(looks=looks, texture=texture, seed=1).t3
    assert enl(found[..., 0]) == pytest.approx(expected, rel=0.05)
    assert found[..., 0].mean() == pytest.approx(CLASS_COVARIANCES["urban"][0], rel=0.03)


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
def test_hermitian_semidefinite_of_rank_looks(looks):
    """Checklist (simulation section): Hermitian PSD; rank = min(L, 3)."""
    scene = simulate_wishart_scene(20, 20, looks=looks, seed=2)
    t3 = polarimetry.t3_matrix(scene.t3).astype(np.complex128)
    values = np.linalg.eigvalsh(t3) / np.trace(t3, axis1=-2, axis2=-1).real[..., None]
    assert values.min() > -1e-6
    rank = (values > 1e-6).sum(-1)
    assert np.median(rank) == min(looks, 3)
    assert rank.max() == min(looks, 3)


def test_a_fixed_seed_is_reproducible():
    """Checklist: fixed seed reproducible."""
    for settings_ in ({}, {"psf": True}, {"looks": 1, "texture": math.inf, "gradient": 1e-3}):
        first, second = (simulate_wishart_scene(33, 21, seed=5, **settings_) for _ in range(2))
        np.testing.assert_array_equal(first.t3, second.t3)
        np.testing.assert_array_equal(first.labels.to_map(), second.labels.to_map())
        other = simulate_wishart_scene(33, 21, seed=6, **settings_)
        assert not np.array_equal(first.t3, other.t3)
        assert not np.array_equal(first.labels.to_map(), other.labels.to_map())


def test_it_says_that_it_is_a_simulation():
    made = simulate_wishart_scene(16, 12, seed=3)
    assert made.name.startswith("SIMULATION")
    assert made.labels is not None
    assert made.labels.source.startswith("SIMULATION")
    scene = made.scene()
    assert scene.name.startswith("SIMULATION")
    assert (scene.kind, scene.shape) == ("polsar", (16, 12, 9))
    assert scene.labels is made.labels
    np.testing.assert_array_equal(scene.read(), made.t3)
    half = semi_simulate(scene)
    assert half.name.startswith("SEMI-SIMULATION of SIMULATION")
    assert "semi-simulated" in half.labels.source
    np.testing.assert_array_equal(half.labels.to_map(), made.labels.to_map())
    assert half.labels.names == dict(enumerate(CLASS_COVARIANCES, 1))


def test_one_look_has_its_scattering_matrix():
    made = simulate_wishart_scene(30, 20, looks=1, gradient=0.01, psf=True, seed=4)
    assert made.s2.shape == (30, 20, 2, 2)
    np.testing.assert_array_equal(made.s2[..., 0, 1], made.s2[..., 1, 0])
    again = polarimetry.t3_channels(polarimetry.t3_from_k(polarimetry.s2_to_k(made.s2)))
    np.testing.assert_allclose(again, made.t3, rtol=1e-4, atol=1e-6)
    assert simulate_wishart_scene(8, 8, looks=2).s2 is None


def test_gradient_is_an_exponential_along_columns():
    flat, sloped = (simulate_wishart_scene(20, 400, gradient=a, seed=7).t3 for a in (0.0, 0.004))
    expected = flat * np.exp(-0.004 * np.arange(400))[:, None]
    np.testing.assert_allclose(sloped, expected, rtol=1e-4, atol=1e-6)


def test_psf_correlates_neighbours_and_keeps_power_and_looks():
    t3 = one_class(looks=4, texture=math.inf, psf=True, seed=8).t3
    power = t3[..., 0].astype(np.float64)
    sigma = float(CLASS_COVARIANCES["urban"][0])
    assert power.mean() == pytest.approx(sigma, rel=0.02)
    edge = np.concatenate([power[0], power[-1], power[:, 0], power[:, -1]])
    assert edge.mean() == pytest.approx(sigma, rel=0.1)
    assert enl(power) == pytest.approx(4, rel=0.05)
    # A 3x3 boxcar on k: neighbours share 6 of 9, 3 of 9, 0 of 9 terms; intensities, its square.
    for lag, shared in ((1, 2 / 3), (2, 1 / 3), (3, 0.0)):
        found = np.corrcoef(power[:, :-lag].ravel(), power[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(shared**2, abs=0.03)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 5), st.integers(0, 9), st.floats(0, 3)
)
def test_label_maps_have_known_codes(height, width, classes, seed, jitter):
    found = polsar.voronoi_labels(height, width, classes, seeds=8, jitter=jitter, seed=seed)
    assert found.shape == (height, width)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) <= set(range(1, classes + 1))


def test_voronoi_is_the_nearest_seed():
    """Without jitter every pixel has the class of the nearest point, by brute force."""
    rng = np.random.default_rng(11)
    points = (rng.random((6, 2)) * (25, 31)).astype(np.float32)
    owner = [1, 2, 3, *(rng.integers(0, 3, 3) + 1)]
    expected = [
        [
            owner[int(np.argmin([(p[0] - r) ** 2 + (p[1] - c) ** 2 for p in points]))]
            for c in range(31)
        ]
        for r in range(25)
    ]
    found = polsar.voronoi_labels(25, 31, 3, seeds=6, jitter=0, seed=11)
    np.testing.assert_array_equal(found, expected)
    ragged = polsar.voronoi_labels(25, 31, 3, seeds=6, jitter=1.5, seed=11)
    assert 0 < (ragged != found).mean() < 0.25


def test_unlabelled_pixels_stay_unlabelled():
    label_map = np.zeros((10, 10), np.int64)
    label_map[:5] = 2
    made = simulate_wishart_scene(classes=("water", "urban"), label_map=label_map)
    np.testing.assert_array_equal(made.labels.to_map(), label_map)
    assert np.isfinite(made.t3).all()


def test_semi_simulation_has_the_field_as_its_mean():
    """Every pixel's Sigma is the real T3 of that pixel."""
    rng = np.random.default_rng(9)
    names = list(CLASS_COVARIANCES)
    field = np.stack([CLASS_COVARIANCES[names[n]] for n in rng.integers(0, 5, 12)]).reshape(3, 4, 9)
    big = np.broadcast_to(field[None], (2000, 3, 4, 9)).reshape(6000, 4, 9)
    made = semi_simulate(big, looks=4, seed=1)
    mean = made.t3.reshape(2000, 3, 4, 9).mean(0)
    assert np.linalg.norm(mean - field) < 0.04 * np.linalg.norm(field)
    assert made.s2 is None
    assert made.labels is None
    single = semi_simulate(big, seed=1)
    assert single.s2.shape == (6000, 4, 2, 2)
    labels = SceneLabels.from_points([(0, 0)], [1], (6000, 4), source="mine")
    assert semi_simulate(big, labels=labels).labels.source.startswith("mine")


def test_semi_simulation_of_indefinite_and_empty_pixels():
    field = np.zeros((2, 2, 9), np.float32)
    field[0, 0, :3] = (1, 0.5, -0.2)
    field[0, 1, :3] = (1, 0, 0)  # rank 1
    made = semi_simulate(field)
    assert np.isfinite(made.t3).all()
    assert np.isfinite(made.s2).all()
    assert polarimetry.span(made.t3)[1].max() < 1e-25


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: simulate_wishart_scene(classes=("lava",)), "not distinct names out of bare soil"),
        (lambda: simulate_wishart_scene(classes=("water", "water")), "not distinct names"),
        (lambda: simulate_wishart_scene(classes={}), "1 to 255 names"),
        (lambda: simulate_wishart_scene(classes={"x": np.ones(8)}), "nine channels"),
        (lambda: simulate_wishart_scene(classes={"x": np.ones(9)}), "not positive definite"),
        (lambda: simulate_wishart_scene(classes={"x": np.full(9, np.nan)}), "not positive"),
        (lambda: simulate_wishart_scene(looks=0), "looks from 1"),
        (lambda: simulate_wishart_scene(texture=0), "texture above 0"),
        (lambda: simulate_wishart_scene(texture=math.nan), "texture above 0"),
        (lambda: simulate_wishart_scene(gradient=math.nan), "finite number"),
        (lambda: simulate_wishart_scene(0, 5), "at least one pixel"),
        (lambda: simulate_wishart_scene(seeds=4), "as many seed points"),
        (lambda: simulate_wishart_scene(jitter=-1), "jitter -1"),
        (lambda: simulate_wishart_scene(1 << 14, 1 << 14), "simulate a smaller scene"),
        (lambda: simulate_wishart_scene(label_map=np.ones((2, 2))), r"whole numbers \(H, W\)"),
        (lambda: simulate_wishart_scene(label_map=np.full((2, 2), 6)), "codes 6 to 6 where 0 to 5"),
        (lambda: semi_simulate(np.ones((4, 9))), r"channels \(H, W, 9\)"),
        (lambda: semi_simulate(np.full((4, 4, 9), np.nan)), "NaN or infinity"),
        (lambda: semi_simulate(np.ones((4, 4, 9)), floor=0), "floor expects"),
        (lambda: semi_simulate(np.ones((4, 4, 9)), looks=0), "looks from 1"),
    ],
)
def test_bad_settings_are_one_sentence(call, sentence):
    with pytest.raises(FoveateError, match=sentence):
        call()
