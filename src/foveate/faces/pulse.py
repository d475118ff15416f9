"""From the colour of skin to a pulse waveform: the classic untrained methods.

Each heart beat sends blood into the skin, which then absorbs a little more light, most of all in
green. Averaged over a face the colour ``C(t) = (R, G, B)`` carries a wave of some 0.5 % of its
mean; light and motion carry ten times more. The methods differ in how they tell the two apart:

========  ====================================================================================
green     ``x = C_G`` (Verkruysse et al., 2008)
pos       projects the normalised colour onto the plane orthogonal to the skin tone, in
          sliding windows (Wang et al., IEEE TBME 2017): ``h = S1 + std(S1)/std(S2) S2`` with
          ``S1 = G - B``, ``S2 = -2R + G + B``
chrom     two chrominance signals that white light does not move (de Haan & Jeanne, IEEE TBME
          2013): ``S = Xf - std(Xf)/std(Yf) Yf`` with ``X = 3R - 2G``, ``Y = 1.5R + G - 1.5B``
pbv       the projection that looks for the known colour signature of blood volume
          ``p = (.33, .77, .53)`` (de Haan & van Leest, 2014)
lgi       removes the strongest singular direction of the colour (Pilz et al., 2018)
ica       independent components, the one with the clearest spectral line (Poh et al., 2010)
========  ====================================================================================

Every method takes ``rgb (T, 3)`` (mean linear or sRGB values, order R, G, B, all above zero) at a
uniform rate ``fs`` in Hz and returns ``(T,)`` float64 in arbitrary units. Camera time stamps are
not uniform: :func:`resample_uniform` comes first.

Polarity. More blood is *darker* skin, so green, pos, pbv, lgi and ica come out upside down with
respect to a finger sensor, and chrom upright. The equations are kept as published;
:data:`SYSTOLE_SIGN` turns each of them systole up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy.linalg import solveh_banded
from scipy.signal import butter, filtfilt, periodogram

from foveate.errors import FoveateError

__all__ = [
    "METHODS",
    "SYSTOLE_SIGN",
    "Band",
    "PulseMethod",
    "bandpass",
    "chrom",
    "detrend",
    "green",
    "ica",
    "lgi",
    "pbv",
    "pos",
    "resample_uniform",
]

FloatArray = npt.NDArray[np.float64]
PulseMethod = Callable[[FloatArray, float], FloatArray]
"""``(rgb (T, 3), fs) -> waveform (T,)``."""
Band = tuple[float, float]
"""Lower and upper frequency in Hz."""

_WINDOW_S = 1.6  # POS and CHROM: at least one beat down to 40 bpm lies inside
_TINY = 1e-12
_BLOOD_VOLUME = np.array([0.33, 0.77, 0.53])
_ICA_BAND: Band = (0.75, 2.5)


def _checked(rgb: npt.ArrayLike, fs: float, method: str, shortest: int = 3) -> FloatArray:
    """`rgb` as float64 ``(T, 3)``, finite, positive and at least `shortest` samples long."""
    trace = np.asarray(rgb, dtype=np.float64)
    if trace.ndim != 2 or trace.shape[1] != 3:
        raise FoveateError(f"{method}: the colour trace has shape {trace.shape}, expected (T, 3)")
    _check_rate(fs, method)
    if len(trace) < shortest:
        raise FoveateError(
            f"{method}: the colour trace has {len(trace)} samples at {fs:g} Hz "
            f"({len(trace) / fs:.1f} s), at least {shortest} are needed; use a longer clip"
        )
    if not np.isfinite(trace).all():
        raise FoveateError(f"{method}: the colour trace holds values that are not finite numbers")
    if (trace.mean(axis=0) <= 0).any():
        raise FoveateError(f"{method}: a colour channel has no light (mean <= 0)")
    return trace


def _check_rate(fs: float, what: str) -> None:
    if not (math.isfinite(fs) and fs > 0):
        raise FoveateError(f"{what}: the sampling rate is {fs} Hz, expected a positive number")


def detrend(x: npt.ArrayLike, lam: float = 100.0) -> FloatArray:
    """Remove slow drift by smoothness priors (Tarvainen et al., IEEE TBME 2002).

    ``x - (I + lam^2 D2^T D2)^{-1} x`` with ``D2`` the second difference; the pentadiagonal system
    is solved, nothing is inverted. It is a zero-phase high pass: half the amplitude passes at
    ``fs / (2 pi sqrt(lam))`` Hz, 0.48 Hz for ``lam = 100`` at 30 Hz.

    Parameters
    ----------
    x
        ``(T,)`` or ``(T, C)``, at least 3 samples.
    lam
        Smoothness in samples squared, above 0.

    Raises
    ------
    FoveateError
        Fewer than 3 samples, or values that are not finite.
    """
    values = np.asarray(x, dtype=np.float64)
    n = len(values) if values.ndim else 0
    if n < 3:
        raise FoveateError(f"detrend: the signal has {n} samples, at least 3 are needed")
    if not np.isfinite(values).all():
        raise FoveateError("detrend: the signal holds values that are not finite numbers")
    # D2^T D2 in upper banded form: each row (1, -2, 1) of D2 adds its outer product.
    bands = np.zeros((3, n))
    bands[2, : n - 2] += 1.0
    bands[2, 1 : n - 1] += 4.0
    bands[2, 2:] += 1.0
    bands[1, 1 : n - 1] -= 2.0
    bands[1, 2:] -= 2.0
    bands[0, 2:] += 1.0
    bands *= lam**2
    bands[2] += 1.0
    trend: FloatArray = solveh_banded(bands, values)
    return values - trend


def bandpass(x: npt.ArrayLike, fs: float, band: Band, order: int = 1) -> FloatArray:
    """Zero-phase Butterworth band pass along the first axis (``filtfilt``, R: rPPG-Toolbox).

    Raises
    ------
    FoveateError
        The band does not lie inside (0, fs/2), or the signal is not longer than the padding of
        ``filtfilt``, ``3 (2 order + 1)`` samples.
    """
    values = np.asarray(x, dtype=np.float64)
    _check_rate(fs, "band pass")
    low, high = band
    if not 0 < low < high < fs / 2:
        raise FoveateError(
            f"band pass: {low:g}-{high:g} Hz does not fit a sampling rate of {fs:g} Hz; "
            f"expected 0 < low < high < {fs / 2:g} Hz"
        )
    padding = 3 * (2 * order + 1)
    if len(values) <= padding:
        raise FoveateError(
            f"band pass: the signal has {len(values)} samples, "
            f"a filter of order {order} needs more than {padding}; use a longer clip"
        )
    b, a = butter(order, [2 * low / fs, 2 * high / fs], btype="bandpass")
    filtered: FloatArray = filtfilt(b, a, values, axis=0)
    return filtered


def resample_uniform(
    times: npt.ArrayLike, values: npt.ArrayLike, fs: float
) -> tuple[FloatArray, FloatArray]:
    """Put samples of a variable frame rate on a uniform grid by linear interpolation.

    Parameters
    ----------
    times
        ``(T,)`` seconds, strictly increasing (container time stamps).
    values
        ``(T,)`` or ``(T, C)``.
    fs
        Rate of the grid in Hz.

    Returns
    -------
    grid, resampled
        ``(N,)`` seconds from the first time stamp on, and ``(N,)`` or ``(N, C)``.

    Raises
    ------
    FoveateError
        Fewer than 2 samples, shapes that do not fit, time stamps that do not increase.
    """
    t = np.asarray(times, dtype=np.float64)
    v = np.asarray(values, dtype=np.float64)
    _check_rate(fs, "resample")
    if t.ndim != 1 or v.ndim not in (1, 2) or len(v) != len(t) or len(t) < 2:
        raise FoveateError(
            f"resample: times have shape {t.shape}, values {v.shape}; "
            "expected (T,) and (T,) or (T, C) with T >= 2"
        )
    if not np.isfinite(t).all() or (np.diff(t) <= 0).any():
        raise FoveateError("resample: the time stamps must be finite and strictly increasing")
    # The allowance keeps the last sample when (t[-1] - t[0]) fs is whole but for rounding.
    grid: FloatArray = t[0] + np.arange(math.floor((t[-1] - t[0]) * fs + 1e-6) + 1) / fs
    if v.ndim == 1:
        resampled: FloatArray = np.interp(grid, t, v)
        return grid, resampled
    columns: FloatArray = np.stack([np.interp(grid, t, column) for column in v.T], axis=1)
    return grid, columns


def green(rgb: npt.ArrayLike, fs: float) -> FloatArray:
    """The green channel as it is, ``x = C_G``."""
    pulse: FloatArray = _checked(rgb, fs, "green")[:, 1].copy()
    return pulse


def pos(rgb: npt.ArrayLike, fs: float, band: Band | None = (0.75, 3.0)) -> FloatArray:
    """Plane orthogonal to skin (Wang et al., IEEE TBME 2017, algorithm 1).

    For every window of ``l = ceil(1.6 fs)`` samples: divide each channel by its mean,
    ``S1 = G - B``, ``S2 = -2R + G + B``, ``h = S1 + std(S1)/std(S2) S2``, and add ``h - mean(h)``
    in place. Then ``detrend(100)`` and a Butterworth band pass of order 1 (R: rPPG-Toolbox).

    Parameters
    ----------
    rgb, fs
        ``(T, 3)`` at ``fs`` Hz.
    band
        The closing band pass in Hz; None leaves out detrending and band pass.

    Raises
    ------
    FoveateError
        The clip is shorter than one window.
    """
    length = math.ceil(_WINDOW_S * fs) if math.isfinite(fs) and fs > 0 else 1
    trace = _checked(rgb, fs, "pos", shortest=length)
    windows = np.lib.stride_tricks.sliding_window_view(trace, length, axis=0)  # (W, 3, l)
    cn = windows / np.maximum(windows.mean(axis=2, keepdims=True), _TINY)
    s1 = cn[:, 1] - cn[:, 2]
    s2 = cn[:, 1] + cn[:, 2] - 2 * cn[:, 0]
    alpha = s1.std(axis=1, keepdims=True) / np.maximum(s2.std(axis=1, keepdims=True), _TINY)
    h = s1 + alpha * s2
    h -= h.mean(axis=1, keepdims=True)
    total = np.zeros(len(trace))
    count = len(h)
    for offset in range(length):  # overlap-add: all windows at once, one offset at a time
        total[offset : offset + count] += h[:, offset]
    if band is None:
        return total
    return bandpass(detrend(total), fs, band)


def chrom(rgb: npt.ArrayLike, fs: float, band: Band = (0.7, 2.5)) -> FloatArray:
    """Chrominance (de Haan & Jeanne, IEEE TBME 2013), windowed as in rPPG-Toolbox (R).

    Windows of ``L = ceil(1.6 fs)`` samples, made even, half overlapping: normalise each channel by
    its mean, ``X = 3R - 2G``, ``Y = 1.5R + G - 1.5B``, both through a Butterworth band pass of
    order 3, ``S = (Xf - std(Xf)/std(Yf) Yf) hann(L)``, overlap-add. The outer half windows and a
    rest shorter than a hop are tapered or empty, as in the original.

    Raises
    ------
    FoveateError
        The clip is shorter than one window, or the window shorter than the filter's padding
        (21 samples: below about 14 Hz resample first).
    """
    length = math.ceil(_WINDOW_S * fs) if math.isfinite(fs) and fs > 0 else 2
    length += length % 2
    trace = _checked(rgb, fs, "chrom", shortest=length)
    hop = length // 2
    windows = np.lib.stride_tricks.sliding_window_view(trace, length, axis=0)[::hop]  # (W, 3, L)
    cn = windows / np.maximum(windows.mean(axis=2, keepdims=True), _TINY)
    r, g, b = cn[:, 0].T, cn[:, 1].T, cn[:, 2].T  # each (L, W)
    xf = bandpass(3 * r - 2 * g, fs, band, order=3)
    yf = bandpass(1.5 * r + g - 1.5 * b, fs, band, order=3)
    alpha = xf.std(axis=0) / np.maximum(yf.std(axis=0), _TINY)
    taper = np.hanning(length)[:, None]
    s = (xf - alpha * yf) * taper
    total = np.zeros(len(trace))
    for index in range(s.shape[1]):
        total[index * hop : index * hop + length] += s[:, index]
    return total


def pbv(rgb: npt.ArrayLike, fs: float) -> FloatArray:
    """Blood volume signature (de Haan & van Leest, Physiol. Meas. 2014).

    With ``C`` the channels divided by their means, minus 1, ``Q = C C^T``: the weights
    ``W ~ Q^{-1} p``, ``p = (.33, .77, .53)``, scaled to ``W . p = 1``, give ``x = W C``: of all
    projections that pass the signature with gain 1, the one with the least power.
    """
    trace = _checked(rgb, fs, "pbv")
    cn = trace / trace.mean(axis=0) - 1.0
    q = cn.T @ cn
    # A constant or grey trace makes Q singular; the ridge keeps the answer finite (then ~0).
    q += np.eye(3) * (1e-9 * np.trace(q) + _TINY)
    weights: FloatArray = np.linalg.solve(q, _BLOOD_VOLUME)
    weights /= weights @ _BLOOD_VOLUME
    pulse: FloatArray = cn @ weights
    return pulse


def lgi(rgb: npt.ArrayLike, fs: float) -> FloatArray:
    """Local group invariance (Pilz et al., CVPR Workshops 2018).

    ``S = (I - u u^T) C`` with ``u`` the first left singular vector of ``C (3, T)``; the second
    row is the pulse. ``u`` is almost the mean skin colour, so this removes changes of brightness.
    """
    c = _checked(rgb, fs, "lgi").T
    u = np.linalg.svd(c, full_matrices=False)[0][:, 0]
    pulse: FloatArray = c[1] - u[1] * (u @ c)  # 2nd row of (I - u u^T) C
    return pulse


def ica(rgb: npt.ArrayLike, fs: float, seed: int = 0) -> FloatArray:
    """Independent components (Poh et al., Optics Express 2010) by FastICA.

    Detrended, z-scored channels; of the three components the one with the highest share of its
    power in one line within 0.75-2.5 Hz; turned so that it correlates positively with green.

    Raises
    ------
    FoveateError
        The clip is shorter than 3 s (too little to whiten three channels on), or scikit-learn is
        not installed.
    """
    length = math.ceil(3 * fs) if math.isfinite(fs) and fs > 0 else 3
    trace = _checked(rgb, fs, "ica", shortest=length)
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise FoveateError(
            "ica needs scikit-learn: pip install 'foveate[faces]', or choose --method pos"
        ) from error
    import warnings

    drift_free = detrend(trace, 100.0 * (fs / 30.0) ** 2)
    spread = drift_free.std(axis=0)
    # A constant channel (but for rounding) has no components to separate.
    if (spread < 1e-7 * trace.mean(axis=0)).any():
        return drift_free[:, 1]
    z = (drift_free - drift_free.mean(axis=0)) / spread
    with warnings.catch_warnings():
        # On pure noise no rotation is better than another; the best so far is still an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        sources = FastICA(3, whiten="unit-variance", random_state=seed).fit_transform(z)
    nfft = 4 * 2 ** math.ceil(math.log2(len(trace)))
    frequencies, power = periodogram(sources, fs, window="hann", nfft=nfft, axis=0)
    inside = (frequencies >= _ICA_BAND[0]) & (frequencies <= _ICA_BAND[1])
    relative = power[inside].max(axis=0) / np.maximum(power.sum(axis=0), _TINY)
    best: FloatArray = sources[:, int(np.argmax(relative))]
    return best if best @ z[:, 1] >= 0 else -best


def _pos_unfiltered(rgb: FloatArray, fs: float) -> FloatArray:
    return pos(rgb, fs, band=None)


METHODS: Mapping[str, PulseMethod] = {
    "pos": _pos_unfiltered,
    "chrom": chrom,
    "green": green,
    "pbv": pbv,
    "lgi": lgi,
    "ica": ica,
}
"""Methods by name, for :func:`foveate.faces.heart_rate.heart_rate`, which detrends and filters to
its own search band; ``pos`` is therefore here without its closing band pass."""

SYSTOLE_SIGN: Mapping[str, int] = {
    "pos": -1,
    "chrom": 1,
    "green": -1,
    "pbv": -1,
    "lgi": -1,
    "ica": -1,
}
"""Factor that turns the output of a method systole up."""
