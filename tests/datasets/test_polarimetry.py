"""Polarimetric algebra against the definitions written out, other libraries and forward models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from scipy import ndimage

from foveate.datasets import polarimetry as pol
from foveate.errors import FoveateError

ROOT2 = math.sqrt(2)
finite = st.floats(-100, 100, width=32)
shapes = stn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def psd(rng: np.random.Generator, *shape: int, looks: int = 4) -> np.ndarray:
    """Random Hermitian positive semidefinite matrices (..., 3, 3), complex64."""
    k = rng.normal(size=(*shape, looks, 3)) + 1j * rng.normal(size=(*shape, looks, 3))
    return np.einsum("...li,...lj->...ij", k, k.conj()).astype(np.complex64) / looks


def complex_arrays(last: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return shapes.flatmap(
        lambda shape: stn.arrays(np.float32, (*shape, *last, 2), elements=finite)
    ).map(lambda parts: np.ascontiguousarray(parts).view(np.complex64)[..., 0])


@settings(max_examples=50, deadline=None)
@given(complex_arrays((2, 2)))
def test_k_to_s2_of_s2_to_k_is_s(s2):
    """Checklist: k_to_s2(s2_to_k(S)) = S, of a reciprocal S; else HV and VH are averaged."""
    cross = (s2[..., 0, 1] + s2[..., 1, 0]) / 2
    reciprocal = s2.copy()
    reciprocal[..., 0, 1] = reciprocal[..., 1, 0] = cross
    for given_s2 in (s2, reciprocal):
        back = pol.k_to_s2(pol.s2_to_k(given_s2))
        assert back.dtype == np.complex64
        np.testing.assert_allclose(back, reciprocal, atol=1e-4)


def test_pauli_and_lexicographic_vectors_by_hand():
    s2 = np.array([[1 + 2j, 3j], [3j, -1 + 1j]], np.complex64)
    k = pol.s2_to_k(s2)
    np.testing.assert_allclose(k, np.array([3j, 2 + 1j, 6j]) / ROOT2, rtol=1e-6)
    span = 5 + 2 * 9 + 2  # |HH|^2 + 2 |HV|^2 + |VV|^2
    assert pol.span(pol.t3_channels(pol.t3_from_k(k))) == pytest.approx(span, rel=1e-6)


def test_a_is_unitary_and_joins_both_vectors():
    """Checklist: A unitary. Its columns are read off: T of C = e_i e_j^T is a_i a_j^H."""
    basis = np.zeros((3, 3, 3, 3), np.complex64)
    for i in range(3):
        for j in range(3):
            basis[i, j, i, j] = 1
    outer = pol.c3_to_t3(basis)  # [i, j] = a_i a_j^H
    gram = np.einsum("ijkk->ij", outer)  # trace(a_i a_j^H) = a_j^H a_i
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-6)
    rng = np.random.default_rng(0)
    s2 = rng.normal(size=(7, 2, 2)) + 1j * rng.normal(size=(7, 2, 2))
    s2[:, 1, 0] = s2[:, 0, 1]
    lexicographic = np.stack([s2[:, 0, 0], ROOT2 * s2[:, 0, 1], s2[:, 1, 1]], -1)
    c3 = lexicographic[:, :, None] * lexicographic[:, None].conj()
    expected = pol.t3_from_k(pol.s2_to_k(s2))
    np.testing.assert_allclose(pol.c3_to_t3(c3), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pol.t3_to_c3(expected), c3, rtol=1e-5, atol=1e-5)


def test_c3_to_t3_keeps_trace_and_eigenvalues():
    """Checklist: c3_to_t3 keeps trace and eigenvalues."""
    c3 = psd(np.random.default_rng(1), 5, 6)
    t3 = pol.c3_to_t3(c3)
    assert t3.dtype == np.complex64
    assert t3.shape == c3.shape
    np.testing.assert_allclose(
        np.trace(t3, axis1=-2, axis2=-1), np.trace(c3, axis1=-2, axis2=-1), rtol=1e-5
    )
    found, expected = np.linalg.eigvalsh(t3), np.linalg.eigvalsh(c3)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(pol.t3_to_c3(t3), c3, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(shapes.flatmap(lambda s: stn.arrays(np.float32, (*s, 9), elements=finite)))
def test_channels_and_matrices_are_exact_inverses(channels):
    t3 = pol.t3_matrix(channels)
    assert t3.dtype == np.complex64
    assert t3.shape == (*channels.shape[:-1], 3, 3)
    np.testing.assert_array_equal(t3, t3.conj().swapaxes(-1, -2))
    np.testing.assert_array_equal(t3[..., 0, 2].imag, channels[..., 6])
    back = pol.t3_channels(t3)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, channels)


def test_multilook_against_loops():
    rng = np.random.default_rng(2)
    k = (rng.normal(size=(7, 5, 3)) + 1j * rng.normal(size=(7, 5, 3))).astype(np.complex64)
    found = pol.t3_from_k(k, (3, 2))
    assert found.shape == (2, 2, 3, 3)
    for row in range(2):
        for column in range(2):
            block = k[3 * row : 3 * row + 3, 2 * column : 2 * column + 2].reshape(-1, 3)
            expected = sum(np.outer(v, v.conj()) for v in block) / 6
            np.testing.assert_allclose(found[row, column], expected, rtol=1e-5, atol=1e-6)
    assert pol.t3_from_k(k, 7).shape == (1, 5, 3, 3)
    for looks in (8, 0, (1, 6)):
        with pytest.raises(FoveateError, match="take fewer looks"):
            pol.t3_from_k(k, looks)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 5, 7]), st.integers(0, 99))
def test_boxcar_is_scipys_uniform_filter(height, width, size, seed):
    x = np.random.default_rng(seed).random((height, width, 9), np.float32)
    found = pol.boxcar(x, size)
    assert found.dtype == np.float32
    expected = ndimage.uniform_filter(x.astype(float), (size, size, 1), mode="mirror")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if min(height, width) >= size:
        margin = size // 2
        inner = found[margin : height - margin, margin : width - margin]
        np.testing.assert_array_equal(pol.boxcar(x, size, "valid"), inner)


def test_boxcar_of_a_part_has_the_bits_of_the_whole():
    x = np.random.default_rng(3).random((40, 33, 9), np.float32)
    whole = pol.boxcar(x, 5, "valid")
    np.testing.assert_array_equal(pol.boxcar(x[7:20, 11:30], 5, "valid"), whole[7:16, 11:26])
    for shape, size in (((4, 4, 9), 4), ((4, 9), 3), ((4, 4, 9), 0), ((0, 4, 9), 3)):
        with pytest.raises(FoveateError, match="boxcar expects a picture"):
            pol.boxcar(np.ones(shape), size)
    with pytest.raises(FoveateError, match="has no room"):
        pol.boxcar(np.ones((4, 9, 9)), 5, "valid")


@pytest.mark.parametrize("floor", [-1e-6, 1e-3, 0.1])
def test_eigenvalues_reach_is_numpys_least_eigenvalue(floor):
    rng = np.random.default_rng(4)
    t3 = psd(rng, 4000, looks=3)
    t3[::2] -= rng.uniform(0, 0.2, (2000, 1, 1)) * np.eye(3, dtype=np.complex64)
    values = np.linalg.eigvalsh(t3.astype(np.complex128))
    least = values[:, 0] / values.sum(-1)
    clear = (np.abs(least - floor) > 1e-7) & (values.sum(-1) > 0)
    found = pol.eigenvalues_reach(pol.t3_channels(t3), floor)
    assert clear.sum() > 3800
    assert 100 < found.sum() < 3900
    np.testing.assert_array_equal(found[clear], (least > floor)[clear])


def test_clip_eigenvalues():
    rng = np.random.default_rng(5)
    good, single = pol.t3_channels(psd(rng, 50, looks=9)), pol.t3_channels(psd(rng, 50, looks=1))
    empty = np.zeros((1, 9), np.float32)
    clipped = pol.clip_eigenvalues(np.concatenate([good, single, empty]), 1e-3)
    np.testing.assert_array_equal(clipped[:50], good)
    values = np.linalg.eigvalsh(pol.t3_matrix(clipped[50:100]).astype(np.complex128))
    trace = single[:, :3].sum(-1)
    np.testing.assert_allclose(values[:, 2], trace, rtol=1e-5)
    np.testing.assert_allclose(values[:, 0], 1e-3 * trace, rtol=1e-2)
    assert (clipped[100, :3] > 0).all()
    assert not pol.eigenvalues_reach(empty, 1e-3)[0]
    assert pol.eigenvalues_reach(empty, -1e-6)[0]


def test_pauli_picture():
    """R = T22, G = T33, B = T11, square root or decibel, clipped at percentiles."""
    channels = np.zeros((2, 50, 9), np.float32)
    channels[..., 0] = np.linspace(0, 1, 100).reshape(2, 50) ** 2  # amplitude grows evenly
    channels[0, :, 1] = 4
    channels[1, :, 2] = 9
    picture = pol.pauli_rgb(channels, percentiles=(0, 100))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[..., 0], np.repeat([[255], [0]], 50, 1))
    np.testing.assert_array_equal(picture[..., 1], np.repeat([[0], [255]], 50, 1))
    blue = np.round(255 * np.linspace(0, 1, 100)).reshape(2, 50)
    assert np.abs(picture[..., 2].astype(int) - blue).max() <= 1
    cut = pol.pauli_rgb(channels, percentiles=(10, 90))[..., 2].ravel()
    assert (cut[:10] == 0).all()
    assert (cut[90:] == 255).all()
    decades = np.zeros((1, 3, 9), np.float32)
    decades[0, :, :3] = np.array([[1e-3], [1e-2], [1e-1]])
    grey = pol.pauli_rgb(decades, "decibel", (0, 100))[0].astype(int)
    assert np.abs(grey - [[0], [127.5], [255]]).max() < 1
    with pytest.raises(FoveateError, match="no scale 'log'"):
        pol.pauli_rgb(channels, "log")
    with pytest.raises(FoveateError, match="percentiles"):
        pol.pauli_rgb(channels, percentiles=(99, 1))
    with pytest.raises(FoveateError, match=r"\(H, W, 9\)"):
        pol.pauli_rgb(channels[0])


def test_features_are_log_powers_and_correlations():
    channels = pol.t3_channels(psd(np.random.default_rng(6), 100))
    features = pol.t3_features(channels)
    t3 = pol.t3_matrix(channels)
    np.testing.assert_allclose(features[:, :3], np.log(channels[:, :3]), rtol=1e-6)
    expected = t3[:, 0, 2] / np.sqrt(t3[:, 0, 0].real * t3[:, 2, 2].real)
    np.testing.assert_allclose(features[:, 5] + 1j * features[:, 6], expected, rtol=1e-5)
    assert (np.hypot(features[:, 3::2], features[:, 4::2]) <= 1 + 1e-6).all()
    louder = pol.t3_features(100 * channels)
    np.testing.assert_allclose(louder[:, :3], features[:, :3] + math.log(100), atol=1e-5)
    np.testing.assert_allclose(louder[:, 3:], features[:, 3:], atol=1e-6)
    assert np.isfinite(pol.t3_features(np.zeros((2, 9)))).all()


def freeman_of_1998(c3: np.ndarray) -> tuple[float, float, float] | None:
    """Scalar reference in the paper's terms; None where its model does not hold."""
    fv = 3 * c3[1, 1].real / 2  # C22 = 2 <|HV|^2>
    hh, vv, hhvv = c3[0, 0].real - fv, c3[2, 2].real - fv, c3[0, 2] - fv / 3
    if min(hh, vv) <= 0 or hh * vv <= abs(hhvv) ** 2:
        return None
    if hhvv.real >= 0:  # alpha = -1
        fd = (hh * vv - abs(hhvv) ** 2) / (hh + vv + 2 * hhvv.real)
        fs = vv - fd
        beta = (hhvv + fd) / fs
        return fs * (1 + abs(beta) ** 2), 2 * fd, 8 * fv / 3
    fs = (hh * vv - abs(hhvv) ** 2) / (hh + vv - 2 * hhvv.real)  # beta = 1
    fd = vv - fs
    alpha = (fs - hhvv) / fd * -1
    return 2 * fs, fd * (1 + abs(alpha) ** 2), 8 * fv / 3


def test_freeman_durden_is_the_published_solution():
    rng = np.random.default_rng(7)
    t3 = psd(rng, 400) * np.array([1, 1, 0.1])[:, None] * np.array([1, 1, 0.1])
    channels = pol.t3_channels(t3)
    found = pol.freeman_durden(channels)
    checked = 0
    for powers, c3 in zip(found, pol.t3_to_c3(t3).astype(np.complex128), strict=True):
        expected = freeman_of_1998(c3)
        if expected is not None:
            np.testing.assert_allclose(powers, expected, rtol=2e-3, atol=1e-4)
            checked += 1
    assert checked > 300


def ground(rng: np.random.Generator, double: bool) -> tuple[np.ndarray, float, float]:
    """T of a dominant rank-1 ground mechanism plus the pure other one, and both powers."""
    strong, weak = rng.uniform(1, 2), rng.uniform(0.01, 0.2)
    b = rng.uniform(0, 0.6) * np.exp(2j * math.pi * rng.random())
    v = np.array([b, 1, 0] if double else [1, b, 0])
    other = np.diag([1.0, 0, 0] if double else [0, 1.0, 0])
    return strong * np.outer(v, v.conj()) + weak * other, strong * (1 + abs(b) ** 2), weak


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("lean", [0, 1, -1])
def test_decompositions_recover_their_own_models(double, lean):
    rng = np.random.default_rng(8)
    seen = 0
    for _ in range(300):
        t3, strong, weak = ground(rng, double)
        volume, helix = rng.uniform(0, 0.5, 2)
        ground_powers = (weak, strong) if double else (strong, weak)
        if lean == 0:
            crown = np.diag([2, 1, 1]) / 4
            found = pol.freeman_durden(pol.t3_channels(t3 + volume * crown))
            np.testing.assert_allclose(found, (*ground_powers, volume), rtol=1e-4, atol=1e-5)
        else:
            crown = np.array([[15, 5 * lean, 0], [5 * lean, 7, 0], [0, 0, 8]]) / 30
        turn = 1j * rng.choice([-1, 1])
        twist = np.array([[0, 0, 0], [0, 1, turn], [0, -turn, 1]]) / 2
        whole = t3 + volume * crown + helix * twist
        c3 = pol.t3_to_c3(whole)
        ratio = 10 * math.log10(c3[2, 2].real / c3[0, 0].real)
        first, second = (1, 0) if double else (0, 1)
        dominant = t3[first, first].real > t3[second, second].real
        if (0 if abs(ratio) <= 2 else -math.copysign(1, ratio)) == lean and dominant:
            found = pol.yamaguchi4(pol.t3_channels(whole))
            expected = (*ground_powers, volume, helix)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            seen += 1
    assert seen > 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(1e-6, 1e6))
def test_decompositions_make_no_power_and_lose_none(seed, looks, gain):
    channels = pol.t3_channels(gain * psd(np.random.default_rng(seed), 30, looks=looks))
    for powers in (pol.freeman_durden(channels), pol.yamaguchi4(channels)):
        assert (powers >= 0).all()
        np.testing.assert_allclose(powers.sum(-1), pol.span(channels), rtol=1e-5)


def test_pf22():
    """|T| (6), |C| (6), Pauli (3), Freeman (3), Yamaguchi (4)."""
    channels = pol.t3_channels(psd(np.random.default_rng(9), 4, 5))
    features = pol.pf22(channels)
    assert features.shape == (4, 5, 22)
    assert features.dtype == np.float32
    assert len(pol.PF22_NAMES) == len(set(pol.PF22_NAMES)) == 22
    t3 = pol.t3_matrix(channels)
    named = dict(zip(pol.PF22_NAMES, np.moveaxis(features, -1, 0), strict=True))
    np.testing.assert_allclose(named["|T13|"], np.abs(t3[..., 0, 2]))
    np.testing.assert_allclose(named["|C23|"], np.abs(pol.t3_to_c3(t3)[..., 1, 2]))
    np.testing.assert_allclose(named["pauli volume"], np.sqrt(channels[..., 2]))
    np.testing.assert_allclose(features[..., 15:18], pol.freeman_durden(channels))
    np.testing.assert_allclose(features[..., 18:], pol.yamaguchi4(channels))
    assert np.isfinite(pol.pf22(np.zeros((3, 9), np.float32))).all()


@pytest.mark.parametrize(
    ("call", "good"),
    [
        (pol.s2_to_k, (2, 2)),
        (pol.k_to_s2, (3,)),
        (pol.t3_from_k, (3,)),
        (pol.c3_to_t3, (3, 3)),
        (pol.t3_to_c3, (3, 3)),
        (pol.t3_channels, (3, 3)),
        (pol.t3_matrix, (9,)),
        (pol.t3_features, (9,)),
        (pol.freeman_durden, (9,)),
        (pol.yamaguchi4, (9,)),
        (pol.pf22, (9,)),
        (pol.span, (9,)),
    ],
)
def test_bad_input_is_one_sentence(call, good):
    array = np.ones((2, *good))
    call(array)
    with pytest.raises(FoveateError, match="expected, got"):
        call(np.ones((2, *good[:-1], 4)))
    with pytest.raises(FoveateError, match="expected, got"):
        call(np.ones((2, *good), np.int64))
    array[0] = np.nan
    with pytest.raises(FoveateError, match="NaN or infinity"):
        call(array)
