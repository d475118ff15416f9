"""Classic pulse methods against literal loops, closed forms and traces of known rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.faces.pulse import (
    METHODS,
    SYSTOLE_SIGN,
    bandpass,
    chrom,
    detrend,
    green,
    ica,
    lgi,
    pbv,
    pos,
    resample_uniform,
)

MEAN = np.array([160.0, 115.0, 85.0])


def random_trace(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.standard_normal((n, 3)), axis=0) * 0.05
    return MEAN * (1 + 0.01 * drift + 0.003 * rng.standard_normal((n, 3)))


def pulse_trace(bpm: float, fs: float, seconds: float, seed: int = 0, noise: float = 1e-4):
    """A pulse of 1 % in green over skin that a light of 3 % sways over; and the blood volume."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * fs)) / fs
    blood = np.sin(2 * np.pi * bpm / 60 * t) + 0.3 * np.sin(4 * np.pi * bpm / 60 * t - 1)
    light = 0.03 * np.sin(2 * np.pi * 0.2 * t + 1)
    relative = light[:, None] - 0.005 * blood[:, None] * np.array([0.33, 0.77, 0.53]) / 0.77
    return MEAN * (1 + relative + noise * rng.standard_normal((len(t), 3))), blood


def peak_bpm(x: np.ndarray, fs: float) -> float:
    f, p = scipy.signal.periodogram(detrend(x), fs, window="hann", nfft=2**15)
    inside = (f > 0.6) & (f < 3.3)
    return 60 * f[inside][np.argmax(p[inside])]


# ------------------------------------------------------------------------------------- equations


@pytest.mark.parametrize(("fs", "n"), [(30.0, 120), (25.0, 40), (20.0, 77), (30.0, 48)])
def test_pos_is_the_published_loop(fs: float, n: int) -> None:
    c = random_trace(n)
    length = math.ceil(1.6 * fs)
    h = np.zeros(n)
    for end in range(length, n + 1):
        window = c[end - length : end]
        r, g, b = (window / window.mean(axis=0)).T
        s1 = g - b
        s2 = -2 * r + g + b
        p = s1 + s1.std() / s2.std() * s2
        h[end - length : end] += p - p.mean()
    np.testing.assert_allclose(pos(c, fs, band=None), h, rtol=1e-9, atol=1e-12)


def test_pos_closes_with_detrending_and_a_first_order_band_pass() -> None:
    c = random_trace(300)
    b, a = scipy.signal.butter(1, [0.75 / 15, 3.0 / 15], btype="bandpass")
    expected = scipy.signal.filtfilt(b, a, detrend(pos(c, 30.0, band=None), 100.0))
    np.testing.assert_allclose(pos(c, 30.0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("fs", "n"), [(30.0, 300), (25.0, 97), (30.0, 48), (15.0, 60)])
def test_chrom_is_the_published_loop(fs: float, n: int) -> None:
    c = random_trace(n, 1)
    length = math.ceil(1.6 * fs)
    length += length % 2
    b, a = scipy.signal.butter(3, [0.7 / (fs / 2), 2.5 / (fs / 2)], btype="bandpass")
    total = np.zeros(n)
    start = 0
    while start + length <= n:
        window = c[start : start + length]
        r, g, bl = (window / window.mean(axis=0)).T
        xf = scipy.signal.filtfilt(b, a, 3 * r - 2 * g)
        yf = scipy.signal.filtfilt(b, a, 1.5 * r + g - 1.5 * bl)
        s = xf - xf.std() / yf.std() * yf
        for k in range(length):
            total[start + k] += s[k] * 0.5 * (1 - math.cos(2 * math.pi * k / (length - 1)))
        start += length // 2
    np.testing.assert_allclose(chrom(c, fs), total, rtol=1e-8, atol=1e-12)


def test_green_is_the_green_channel() -> None:
    c = random_trace(50)
    np.testing.assert_array_equal(green(c, 30.0), c[:, 1])


def test_pbv_passes_its_signature_with_gain_one_and_the_least_power() -> None:
    c = random_trace(400, 2)
    cn = c / c.mean(axis=0) - 1
    x = pbv(c, 30.0)
    w, *_ = np.linalg.lstsq(cn, x, rcond=None)
    signature = np.array([0.33, 0.77, 0.53])
    assert w @ signature == pytest.approx(1, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(50):  # every other weight with the same gain lets more power through
        other = w + 0.1 * rng.standard_normal(3)
        other /= other @ signature
        assert np.sum((cn @ other) ** 2) >= np.sum(x**2)


def test_lgi_is_the_second_row_off_the_strongest_direction() -> None:
    c = random_trace(200, 3).T
    eigenvectors = np.linalg.eigh(c @ c.T)[1]
    u = eigenvectors[:, -1]
    expected = ((np.eye(3) - np.outer(u, u)) @ c)[1]
    np.testing.assert_allclose(lgi(c.T, 30.0), expected, atol=1e-9)


def test_ica_finds_a_rhythm_mixed_into_three_channels() -> None:
    fs, n = 30.0, 900
    rng = np.random.default_rng(4)
    t = np.arange(n) / fs
    rhythm = np.sin(2 * np.pi * 1.3 * t)
    sources = np.stack([rhythm, rng.laplace(size=n), rng.uniform(-1, 1, n)], axis=1)
    mixed = sources @ np.array([[0.4, 1.0, 0.6], [1.0, 0.5, -0.7], [0.3, -0.9, 1.0]])
    found = ica(MEAN + mixed, fs)
    assert np.corrcoef(found, rhythm)[0, 1] > 0.98  # and turned the way green has it


def test_ica_of_constant_channels_is_silent() -> None:
    assert np.abs(ica(np.tile(MEAN, (120, 1)), 30.0)).max() < 1e-6


# -------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("name", ["pos", "chrom", "pbv"])
@given(gains=st.tuples(*[st.floats(0.2, 5)] * 3))
@settings(deadline=None, max_examples=15)
def test_white_balance_does_not_matter(name: str, gains: tuple[float, float, float]) -> None:
    c, _ = pulse_trace(72, 30.0, 8)
    method = METHODS[name]
    np.testing.assert_allclose(
        method(c * np.array(gains), 30.0), method(c, 30.0), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", ["pos", "chrom"])
def test_light_that_changes_all_channels_alike_is_cancelled(name: str) -> None:
    t = np.arange(300) / 30
    light = 1 + 0.05 * np.sin(2 * np.pi * 1.2 * t)
    grey = MEAN * light[:, None]
    with_pulse, _ = pulse_trace(72, 30.0, 10)
    method = METHODS[name]
    # A pulse of .5 % gives a hundred times more than a light of 5 % at the same rate.
    assert method(grey, 30.0).std() < 0.01 * method(with_pulse, 30.0).std()
    assert green(grey, 30.0).std() > green(with_pulse, 30.0).std()


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("bpm", [48, 75, 120])
def test_every_method_finds_a_clean_pulse(name: str, bpm: float) -> None:
    c, blood = pulse_trace(bpm, 30.0, 20, seed=int(bpm))
    x = METHODS[name](c, 30.0)
    assert x.shape == (600,)
    assert peak_bpm(x, 30.0) == pytest.approx(bpm, abs=1)
    upright = SYSTOLE_SIGN[name] * bandpass(detrend(x), 30.0, (0.6, 3.3))
    assert np.corrcoef(upright[60:-60], blood[60:-60])[0, 1] > 0.8  # systole up


def test_every_method_has_a_polarity() -> None:
    assert set(METHODS) == set(SYSTOLE_SIGN)
    assert set(SYSTOLE_SIGN.values()) <= {-1, 1}


# ------------------------------------------------------------------------------- detrend, filter


@given(n=st.integers(3, 60), lam=st.floats(0.1, 300), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_detrend_is_the_dense_inverse(n: int, lam: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, 2)).cumsum(axis=0)
    d2 = np.zeros((n - 2, n))
    for i in range(n - 2):
        d2[i, i : i + 3] = 1, -2, 1
    expected = x - np.linalg.inv(np.eye(n) + lam**2 * d2.T @ d2) @ x
    np.testing.assert_allclose(detrend(x, lam), expected, atol=1e-7)
    np.testing.assert_allclose(detrend(x[:, 0], lam), expected[:, 0], atol=1e-7)


def test_detrend_removes_a_straight_line() -> None:
    np.testing.assert_allclose(detrend(3 + 0.7 * np.arange(500)), 0, atol=1e-6)


def test_detrend_passes_half_at_the_documented_frequency() -> None:
    fs, lam = 30.0, 100.0
    t = np.arange(3000) / fs
    x = np.sin(fs / math.sqrt(lam) * t)  # 2 pi f = fs / sqrt(lam)
    assert detrend(x, lam)[600:-600].std() / x.std() == pytest.approx(0.5, abs=0.01)


def test_band_pass_is_zero_phase_and_keeps_the_middle() -> None:
    t = np.arange(900) / 30
    x = np.sin(2 * np.pi * 1.4 * t)
    y = bandpass(x + np.sin(2 * np.pi * 12 * t), 30.0, (0.6, 3.3))
    np.testing.assert_allclose(y[150:-150], x[150:-150], atol=0.06)


# --------------------------------------------------------------------------------------- resample


@given(seed=st.integers(0, 999), fs=st.floats(5, 60))
@settings(deadline=None, max_examples=30)
def test_resampling_is_exact_on_straight_lines(seed: int, fs: float) -> None:
    rng = np.random.default_rng(seed)
    times = 5 + np.cumsum(rng.uniform(0.01, 0.2, 40))
    values = np.outer(times, [1.0, -2.0, 0.5]) + 3
    grid, out = resample_uniform(times, values, fs)
    np.testing.assert_allclose(out, np.outer(grid, [1.0, -2.0, 0.5]) + 3, atol=1e-9)
    np.testing.assert_allclose(np.diff(grid), 1 / fs, atol=1e-9)
    assert grid[0] == times[0]
    assert times[-1] - 1 / fs < grid[-1] <= times[-1] + 1e-6
    np.testing.assert_allclose(resample_uniform(times, values[:, 1], fs)[1], out[:, 1])


def test_resampling_keeps_uniform_samples_as_they_are() -> None:
    times = np.arange(301) / 30
    values = np.random.default_rng(0).standard_normal(301)
    grid, out = resample_uniform(times, values, 30.0)
    assert len(grid) == 301
    np.testing.assert_allclose(out, values, atol=1e-9)


def test_a_variable_frame_rate_does_not_bend_the_rate() -> None:
    c, _ = pulse_trace(80, 300.0, 20)
    rng = np.random.default_rng(0)
    # A webcam that slows from 30 to 12 frames a second half way through.
    steps = np.concatenate([np.full(300, 10), np.full(110, 25)]) + rng.integers(-3, 4, 410)
    index = np.minimum(np.cumsum(steps), len(c) - 1)
    index = np.unique(index)
    times = index / 300
    mean_rate = (len(times) - 1) / (times[-1] - times[0])
    assert abs(peak_bpm(pos(c[index], mean_rate, band=None), mean_rate) - 80) > 5  # if uniform
    _, uniform = resample_uniform(times, c[index], 30.0)
    assert peak_bpm(pos(uniform, 30.0, band=None), 30.0) == pytest.approx(80, abs=1)


# ----------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(("name", "n"), [("pos", 47), ("chrom", 47), ("ica", 89)])
def test_too_short_a_clip_is_an_error_and_not_a_number(name: str, n: int) -> None:
    with pytest.raises(FoveateError, match=rf"{name}: .* {n} samples .* at least {n + 1}"):
        METHODS[name](random_trace(n), 30.0)
    assert METHODS[name](random_trace(n + 1), 30.0).shape == (n + 1,)


def test_the_padding_of_the_filters_is_respected() -> None:
    with pytest.raises(FoveateError, match=r"needs more than 21"):
        chrom(random_trace(200), 12.0)  # windows of 20 samples
    with pytest.raises(FoveateError, match=r"9 samples, .* more than 9"):
        bandpass(np.zeros(9), 30.0, (0.75, 2.5))
    assert bandpass(np.zeros(10), 30.0, (0.75, 2.5)).shape == (10,)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((200, 4)),
        np.zeros(200),
        np.zeros((0, 3)),
        np.full((200, 3), np.nan),
        np.zeros((200, 3)),
    ],
)
def test_what_is_no_colour_trace_is_an_error(name: str, bad: np.ndarray) -> None:
    with pytest.raises(FoveateError, match=name):
        METHODS[name](bad, 30.0)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("fs", [0.0, -30.0, math.nan, math.inf])
def test_an_impossible_rate_is_an_error(name: str, fs: float) -> None:
    with pytest.raises(FoveateError, match="sampling rate"):
        METHODS[name](random_trace(200), fs)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_constant_trace_gives_silence_and_no_warning(name: str) -> None:
    x = METHODS[name](np.tile(MEAN, (120, 1)), 30.0)
    assert np.isfinite(x).all()
    assert np.ptp(x) < 1e-6


def test_other_bad_input() -> None:
    with pytest.raises(FoveateError, match="at least 3"):
        detrend([1.0, 2.0])
    with pytest.raises(FoveateError, match="not finite"):
        detrend([1.0, np.nan, 2.0])
    with pytest.raises(FoveateError, match="does not fit"):
        bandpass(np.zeros(100), 5.0, (0.75, 2.5))
    with pytest.raises(FoveateError, match="strictly increasing"):
        resample_uniform([0, 1, 1], [1, 2, 3], 30.0)
    with pytest.raises(FoveateError, match=r"\(T,\) and"):
        resample_uniform([0, 1, 2], [1, 2], 30.0)
