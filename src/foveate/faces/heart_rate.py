"""From a pulse waveform to a heart rate that can be trusted, or to an honest refusal.

**Estimate.** Detrend (Tarvainen), Hann window, zero-padded spectrum; the highest peak between 36
and 198 beats per minute; a parabola through its logarithm for the place between the bins.

**Evidence.** Noise has a highest peak, too. Three facts are weighed, in decibels:

``line``
    the signal-to-noise ratio (:func:`snr_db`) at the estimate, above what the highest peak of
    white noise shows in a window of this length (:func:`white_noise_snr_db`; it falls with the
    number of independent spectral bins). With colour at hand, the smallest over three
    *witnesses*: the chosen method, CHROM and PBV. They cancel motion in different ways, so that a
    rhythm that is not blood rarely convinces all three. CHROM as a witness filters to the search
    band: its published 0.7-2.5 Hz would not hear a heart above 165 beats per minute.
``steady``
    the smaller signal-to-noise ratio of the two halves of the window, at the same rate: a pulse
    lasts, a gesture does not.
``colour``
    how far the line changes red beyond what blood does, against the part of it that looks like
    blood: blood is mostly green (R:G:B = .43:1:.69), light and motion change all alike. 0 at best,
    more negative the more the line looks like a moving head.

**Confidence** is the product of two logistic functions, "a rhythm" (of `line` and `steady`) and "of
blood" (of `colour`): it grows in each of the three, and none makes up for a missing one. The
estimate is accepted from :data:`ACCEPT` on.

Calibration (**simulated**, not measured on people). Colour traces of 7-20 s at 25 or 30 frames/s,
half of them without any pulse, the others 42-185 bpm with a peak AC/DC of .0013-.02 in green,
beats with respiratory, Mayer and white variability; light drift, sensor noise, head motion,
walking (1.5-2.2 Hz), talking (3-5 Hz), blinks, flicker, coloured codec noise with key-frame
periods. "Right" is within 5 bpm of the mean rate. The weights were fitted on 6 000 such traces and,
with half their weight, on 280 windows of 64-pixel videos of the face simulator, when CHROM was a
witness with its published band; they were kept, and the threshold was chosen anew on 6 000 others.
On a third set it lets 5 of 2 992 windows without pulse pass, 3 wrong rates among 1 375 with one,
and 55 % of the right ones. What passes are rhythmic steps: of 12 000 windows without pulse 1.1 % at
1.5-2.2 Hz, the tempo of walking, and 0.5 % at 2.2-3.3 Hz, which was no part of the fit; of 12 000
others 4 in all. Of 350 rendered clips (10 s, 64 pixels, calm to walking) it accepts none without
pulse and 123 with one, at an MAE of 1.0 bpm; taking all would give 7 bpm. All of these were looked
at when the threshold was confirmed. On people the confidence orders estimates; it is not a
probability. Without colour there is one witness, which counts 4 dB less, and no ``colour``: a
rhythmic movement can pass. Not a medical device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.signal import find_peaks, periodogram

from foveate.errors import FoveateError
from foveate.faces.pulse import (
    METHODS,
    SYSTOLE_SIGN,
    Band,
    PulseMethod,
    bandpass,
    chrom,
    detrend,
    pbv,
    resample_uniform,
)

__all__ = [
    "ACCEPT",
    "BANDS",
    "GAP_S",
    "HOP_S",
    "SHORTEST_S",
    "SLOWEST_HZ",
    "WHOLE_S",
    "WINDOW_S",
    "Evidence",
    "HRResult",
    "HeartRate",
    "Metrics",
    "WindowEstimate",
    "benchmark_metrics",
    "combine_windows",
    "common_rate",
    "estimate",
    "evidence",
    "heart_rate",
    "macc",
    "snr_db",
    "split_at_gaps",
    "waveform",
    "white_noise_snr_db",
    "whole_clip",
]

FloatArray = npt.NDArray[np.float64]

BANDS: Mapping[str, Band] = {"default": (0.6, 3.3), "benchmark": (0.75, 2.5)}
"""Search bands in Hz: 36-198 bpm, and the 45-150 bpm of the NeurIPS-2023 benchmark figures."""

SHORTEST_S = 7.0
"""Shortest signal in seconds that gives an estimate: below, one spectral line spans 17 bpm."""
WINDOW_S, HOP_S = 10.0, 1.0
"""Length and step of the sliding windows in seconds."""
WHOLE_S = 20.0
"""Up to this many seconds a clip is judged as a whole, beyond by its windows."""
GAP_S = 0.5
"""A hole in the time stamps longer than this many seconds splits a trace."""
SLOWEST_HZ, FASTEST_HZ = 15.0, 60.0
"""Rates a trace is put on: below, CHROM's filter has no room in its window; above is no gain."""

ACCEPT = 0.86
"""Confidence from which on an estimate is reported."""

# Logistic weights per decibel, fitted as the module's docstring says.
_RHYTHM, _LINE, _STEADY = 0.35, 0.19, 0.28
_STEADY_CAP = 4.0  # dB: a perfectly steady rhythm must not make up for a missing witness
_BLOODLIKE, _COLOUR = 5.2, 0.305
_LONE_WITNESS = 4.0  # dB: what the weakest of three witnesses usually lies below the first
# Half width of the 95 % interval. First the wandering of the heart itself: a window sees a part of
# its slow waves, relative to the rate and the less the longer it is. Then the spectral line, whose
# place is known to a part of its width 60/T that shrinks with the noise (as in Cramer-Rao).
_WANDER, _PLACE = 0.014, 0.4

_LINE_HALF_WIDTH = 6 / 60  # Hz: the published definition of the SNR
_HALF_WINDOW_LINE = 12 / 60  # Hz: in half a window the line is twice as wide
_BLOOD = np.array([0.33, 0.77, 0.53]) / 0.77  # AC/DC of R, G, B relative to G (PBV signature)
_COLOUR_FLOOR_DB = -30.0
_FEWEST_WINDOWS, _SMALLEST_SHARE = 3, 0.1
_NO_SKIN = "no lit skin was in view"


@dataclass(frozen=True, slots=True)
class HeartRate:
    """One estimate over one stretch of signal.

    Attributes
    ----------
    bpm
        Position of the highest peak, in beats per minute, *also when refused* (then a candidate,
        not a heart rate); NaN when there is no peak at all.
    snr_db
        Signal-to-noise ratio at `bpm`.
    confidence
        0 .. 1, see the module.
    accepted
        Whether `bpm` may be shown as a heart rate.
    reason
        Why not; empty when accepted.
    low_bpm, high_bpm
        Interval that holds the mean heart rate of the window in 95 % of accepted simulated clips.
    """

    bpm: float
    snr_db: float
    confidence: float
    accepted: bool
    reason: str
    low_bpm: float = math.nan
    high_bpm: float = math.nan


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a rate, in decibels; each one more is better (see the module)."""

    line: float
    steady: float
    colour: float

    @property
    def confidence(self) -> float:
        """A rhythm (logistic in `line` and `steady`) times of blood (logistic in `colour`)."""
        steady = min(self.steady, _STEADY_CAP)
        rhythm = _logistic(_RHYTHM + _LINE * self.line + _STEADY * steady)
        return rhythm * _logistic(_BLOODLIKE + _COLOUR * self.colour)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-min(max(x, -60.0), 60.0)))


@dataclass(frozen=True, slots=True)
class Spectrum:
    f: FloatArray  # Hz
    power: FloatArray


def _drift_free(x: FloatArray, fs: float) -> FloatArray:
    """Detrended with the cut-off that ``lam = 100`` has at 30 Hz (0.48 Hz), at any rate."""
    return detrend(x, 100.0 * (fs / 30.0) ** 2)


def _spectrum(x: FloatArray, fs: float, nfft: int | None = None) -> Spectrum:
    """Hann periodogram. No band pass: it would only tilt the noise that the peak is compared to."""
    y = _drift_free(x, fs)
    n = len(y)
    nfft = max(nfft or 4 * next_power_of_2(n), n)
    power = np.abs(np.fft.rfft(y * np.hanning(n + 2)[1:-1], nfft)) ** 2
    return Spectrum(np.fft.rfftfreq(nfft, 1 / fs).astype(np.float64), power)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def highest_peak(s: Spectrum, band: Band) -> float | None:
    """Highest local maximum inside the band in Hz, refined by a parabola; None without one.

    The edge of the band is no maximum: there the flank of a slow movement is highest.
    """
    k = np.flatnonzero((s.f >= band[0]) & (s.f <= band[1]))
    k = k[(k > 0) & (k < len(s.f) - 1)]
    k = k[(s.power[k] > s.power[k - 1]) & (s.power[k] >= s.power[k + 1])]
    if len(k) == 0:
        return None
    top = int(k[np.argmax(s.power[k])])
    left, centre, right = np.log(s.power[top - 1 : top + 2] + 1e-300)
    bend = left - 2 * centre + right
    shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float((top + shift) * (s.f[1] - s.f[0]))


def _snr(s: Spectrum, f0: float, band: Band, half_width: float = _LINE_HALF_WIDTH) -> float:
    inside = (s.f >= band[0]) & (s.f <= band[1])
    line = (np.abs(s.f - f0) <= half_width) | (np.abs(s.f - 2 * f0) <= half_width)
    signal = s.power[inside & line].sum()
    rest = s.power[inside & ~line].sum()
    return float(10 * np.log10((signal + 1e-300) / (rest + 1e-300)))


def snr_db(bvp: npt.ArrayLike, fs: float, hr_bpm: float, band: Band = BANDS["default"]) -> float:
    """Signal-to-noise ratio of a waveform at a heart rate (de Haan & Jeanne, 2013).

    ``10 log10``(power within 6 bpm of ``f`` and of ``2f`` / power in the rest of the band), all
    inside `band`, on the Hann periodogram. `hr_bpm` is the label's rate for a benchmark, the
    estimate itself for a confidence.

    Raises
    ------
    FoveateError
        The waveform is not ``(T,)``, not finite, or shorter than 3 samples.
    """
    return _snr(_spectrum(checked_waveform(bvp, fs), fs), hr_bpm / 60, band)


def white_noise_snr_db(seconds: float, band: Band = BANDS["default"]) -> float:
    """Median :func:`snr_db` of white noise at its own highest peak (fitted to simulations, 7-30 s).

    It falls as the window grows (more bins share the noise) and as the band widens.
    """
    return 1.58 - 2.9 * math.log10(seconds) - 9.0 * math.log10(band[1] - band[0])


def evidence(
    bvp: npt.ArrayLike,
    fs: float,
    bpm: float,
    band: Band = BANDS["default"],
    rgb: npt.ArrayLike | None = None,
) -> Evidence:
    """Weigh what speaks for a heart rate of `bpm` in a waveform, and in its colour if given.

    Parameters
    ----------
    bvp
        ``(T,)`` waveform.
    rgb
        ``(T, 3)`` mean skin colour of the same samples.
    """
    x = checked_waveform(bvp, fs)
    f0 = bpm / 60
    n = len(x)
    lines = [_snr(_spectrum(x, fs), f0, band)]
    steady = min(
        _snr(_spectrum(part, fs), f0, band, _HALF_WINDOW_LINE)
        for part in (x[: n // 2], x[n - n // 2 :])
    )
    colour = 0.0
    if rgb is None:
        lines[0] -= _LONE_WITNESS
    else:
        trace = np.asarray(rgb, dtype=np.float64)
        witnesses = chrom(trace, fs, band), pbv(trace, fs)
        lines += [_snr(_spectrum(witness, fs), f0, band) for witness in witnesses]
        colour = _colour_of_line(trace, fs, f0)
    return Evidence(min(lines) - white_noise_snr_db(n / fs, band), steady, colour)


def _colour_of_line(rgb: FloatArray, fs: float, f0: float) -> float:
    """``-max(0, 20 log10(|red beyond blood| / |chroma of blood|))`` of the line at `f0`, in dB."""
    relative = _drift_free(rgb / rgb.mean(axis=0) - 1, fs)
    n = len(relative)
    probe = np.hanning(n + 2)[1:-1] * np.exp(-2j * np.pi * f0 * np.arange(n) / fs)
    r, g, b = probe @ relative
    # Blood has no part in R - .43 G; grey light has no part in the centred signature.
    foreign = abs(r - _BLOOD[0] * g)
    chroma = _BLOOD - _BLOOD.mean()
    like_blood = abs(chroma @ np.array([r, g, b])) / np.linalg.norm(chroma)
    ratio = 20 * math.log10((foreign + 1e-300) / (like_blood + 1e-300))
    return max(_COLOUR_FLOOR_DB, -max(0.0, ratio))


def heart_rate(
    bvp: npt.ArrayLike,
    fs: float,
    band: Band | None = None,
    nfft: int | None = None,
    method: Literal["fft", "peak", "toolbox"] = "fft",
    rgb: npt.ArrayLike | None = None,
) -> HeartRate:
    """Estimate the heart rate of one stretch of waveform and say how far to trust it.

    Parameters
    ----------
    bvp
        ``(T,)`` waveform at `fs` Hz, any unit and polarity.
    band
        Search band in Hz; by default 0.6-3.3, for ``toolbox`` 0.75-2.5.
    nfft
        Length of the transform; by default 4 x the next power of 2 (``fft``) or that power itself
        (``toolbox``).
    method
        ``fft``: the module's estimate, unbiased. ``peak``: mean distance of the systolic peaks of
        the band-passed waveform. ``toolbox``: the benchmark's estimate (R: rPPG-Toolbox): detrend,
        Butterworth band pass of order 1, periodogram, highest bin; its grid is 1.76 bpm wide for
        30 s at 30 Hz. The evidence is the same for all three.
    rgb
        ``(T, 3)`` mean skin colour of the same samples: two more witnesses.

    Raises
    ------
    FoveateError
        The waveform is not ``(T,)``, not finite, or the rate too low for the band. Too little
        signal is no error: it is a refusal with ``accepted=False`` and a reason.
    """
    x = checked_waveform(bvp, fs)
    if band is None:
        band = BANDS["benchmark" if method == "toolbox" else "default"]
    if not 0 < band[0] < band[1] < fs / 2:
        raise FoveateError(
            f"heart rate: the band {band[0]:g}-{band[1]:g} Hz does not fit {fs:g} samples per "
            f"second; expected 0 < low < high < {fs / 2:g} Hz"
        )
    seconds = len(x) / fs
    if seconds < SHORTEST_S - 0.5 / fs:
        return _refused(_too_short(seconds))
    if np.ptp(x) <= 1e-12 * np.abs(x).max():
        return _refused("no signal: the waveform is constant")
    f0 = {"fft": _by_fft, "peak": _by_peaks, "toolbox": _by_toolbox}[method](x, fs, band, nfft)
    if f0 is None:
        return _refused("no rhythm: the spectrum has no peak inside the search band")
    found = evidence(x, fs, 60 * f0, band, rgb)
    snr = _snr(_spectrum(x, fs), f0, band)
    width = math.hypot(_WANDER * 60 * f0 * 10 / seconds, _PLACE * 60 / seconds * 10 ** (-snr / 20))
    confidence = found.confidence
    accepted = confidence >= ACCEPT
    return HeartRate(
        bpm=60 * f0,
        snr_db=snr,
        confidence=confidence,
        accepted=accepted,
        reason="" if accepted else _why(found, 60 * f0),
        low_bpm=60 * f0 - width,
        high_bpm=60 * f0 + width,
    )


def _by_fft(x: FloatArray, fs: float, band: Band, nfft: int | None) -> float | None:
    return highest_peak(_spectrum(x, fs, nfft), band)


def _by_toolbox(x: FloatArray, fs: float, band: Band, nfft: int | None) -> float | None:
    filtered = bandpass(detrend(x, 100.0), fs, band)
    f, power = periodogram(filtered, fs, nfft=nfft or next_power_of_2(len(x)), detrend=False)
    k = np.flatnonzero((f >= band[0]) & (f <= band[1]))
    return float(f[k[np.argmax(power[k])]])


def _by_peaks(x: FloatArray, fs: float, band: Band, nfft: int | None) -> float | None:
    filtered = bandpass(_drift_free(x, fs), fs, band)
    peaks, _ = find_peaks(filtered, distance=max(1, math.floor(fs / band[1])))
    if len(peaks) < 3:
        return None
    f0 = fs / float(np.diff(peaks).mean())
    return f0 if band[0] <= f0 <= band[1] else None


def checked_waveform(bvp: npt.ArrayLike, fs: float) -> FloatArray:
    x = np.asarray(bvp, dtype=np.float64)
    if x.ndim != 1 or len(x) < 3:
        raise FoveateError(f"heart rate: the waveform has shape {x.shape}, expected (T,), T >= 3")
    if not (math.isfinite(fs) and fs > 0):
        raise FoveateError(f"heart rate: the sampling rate is {fs} Hz, expected a positive number")
    if not np.isfinite(x).all():
        raise FoveateError("heart rate: the waveform holds values that are not finite numbers")
    return x


def _refused(reason: str) -> HeartRate:
    return HeartRate(math.nan, math.nan, 0.0, accepted=False, reason=reason)


def _too_short(seconds: float) -> str:
    return f"too short: {seconds:.1f} s, a heart rate needs at least {SHORTEST_S:g} s"


def _why(found: Evidence, bpm: float) -> str:
    """The weakest of the three facts, in words."""
    if found.colour < -3:
        return f"the rhythm at {bpm:.0f} bpm has the colour of light or motion, not of blood"
    if found.line > 2 and found.steady < 0:
        return f"the rhythm at {bpm:.0f} bpm does not last through the window"
    return f"no clear pulse: the strongest rhythm, at {bpm:.0f} bpm, does not stand out from noise"


# ------------------------------------------------------------------ one estimate for a whole clip


@dataclass(frozen=True, slots=True)
class WindowEstimate:
    """A :class:`HeartRate` and the stretch of time in seconds it was read from."""

    start_s: float
    end_s: float
    rate: HeartRate


@dataclass(frozen=True, slots=True)
class HRResult:
    """The heart rate of a whole clip.

    Attributes
    ----------
    bpm
        Heart rate, or None when refused.
    lo, hi
        95 % interval of the mean rate in bpm (see :class:`HeartRate`), None when refused.
    snr_db, confidence
        Of the clip; over windows the median of the accepted ones (of all, when refused).
    reason
        Why there is no heart rate; empty otherwise.
    method
        Name of the waveform's method.
    candidate_bpm
        What would have been said, also when refused; NaN when there is nothing.
    """

    bpm: float | None
    lo: float | None
    hi: float | None
    snr_db: float
    confidence: float
    accepted: bool
    reason: str
    method: str
    windows_accepted: int
    windows_total: int
    candidate_bpm: float = math.nan


def combine_windows(
    windows: Sequence[WindowEstimate], method: str, longest_s: float | None = None
) -> HRResult:
    """One heart rate from the windows of a clip: the weighted median of the accepted ones.

    Accepted when at least 3 windows are (or all, if there are fewer) and at least a tenth of them:
    in hours of video a few windows of noise look like a pulse. The interval joins the windows' own
    uncertainty and their scatter, divided by the number of windows that do not overlap.

    Parameters
    ----------
    longest_s
        Longest unbroken stretch in seconds, for the reason when there is no window at all.
    """
    total = len(windows)
    if total == 0:
        return _no_result(_too_short(longest_s) if longest_s else _NO_SKIN, method)
    good = [w for w in windows if w.rate.accepted]
    best = max(windows, key=lambda w: w.rate.confidence).rate
    if len(good) < max(min(_FEWEST_WINDOWS, total), math.ceil(_SMALLEST_SHARE * total)):
        reason = (
            best.reason
            if not good
            else f"only {len(good)} of {total} windows show a trustworthy pulse"
        )
        snr = float(np.nanmedian([w.rate.snr_db for w in windows])) if total else math.nan
        confidence = float(np.median([w.rate.confidence for w in windows]))
        return HRResult(
            *(None, None, None, snr, confidence, False, reason, method, len(good), total, best.bpm)
        )
    rates = np.array([w.rate.bpm for w in good])
    weights = np.array([w.rate.confidence for w in good])
    sigma = np.array([(w.rate.high_bpm - w.rate.low_bpm) / 2 for w in good]) / 1.96
    order = np.argsort(rates)
    cumulated = np.cumsum(weights[order])
    bpm = float(rates[order][np.searchsorted(cumulated, cumulated[-1] / 2)])
    variance = np.average((rates - bpm) ** 2 + sigma**2, weights=weights)
    length = float(np.mean([w.end_s - w.start_s for w in good]))
    separate = max(1.0, _covered_s(good) / length)
    half = 1.96 * math.sqrt(variance / separate)
    return HRResult(
        bpm=bpm,
        lo=bpm - half,
        hi=bpm + half,
        snr_db=float(np.median([w.rate.snr_db for w in good])),
        confidence=float(np.median(weights)),
        accepted=True,
        reason="",
        method=method,
        windows_accepted=len(good),
        windows_total=total,
        candidate_bpm=bpm,
    )


def _covered_s(windows: Sequence[WindowEstimate]) -> float:
    """Seconds covered by at least one of `windows`, which are in order of time."""
    covered, until = 0.0, -math.inf
    for w in windows:
        covered += max(0.0, w.end_s - max(w.start_s, until))
        until = max(until, w.end_s)
    return covered


def _no_result(reason: str, method: str) -> HRResult:
    return HRResult(None, None, None, math.nan, 0.0, False, reason, method, 0, 0)


def whole_clip(rate: HeartRate, method: str, windows: Sequence[WindowEstimate] = ()) -> HRResult:
    """The result of a clip that is judged in one piece; `windows` only for their count."""
    accepted = sum(w.rate.accepted for w in windows) if windows else int(rate.accepted)
    return HRResult(
        bpm=rate.bpm if rate.accepted else None,
        lo=rate.low_bpm if rate.accepted else None,
        hi=rate.high_bpm if rate.accepted else None,
        snr_db=rate.snr_db,
        confidence=rate.confidence,
        accepted=rate.accepted,
        reason=rate.reason,
        method=method,
        windows_accepted=accepted,
        windows_total=len(windows) or 1,
        candidate_bpm=rate.bpm,
    )


def split_at_gaps(times: FloatArray, gap_s: float = GAP_S) -> list[slice]:
    """Stretches of `times` without a hole longer than `gap_s` seconds."""
    if len(times) == 0:
        return []
    edges = [0, *(np.flatnonzero(np.diff(times) > gap_s) + 1).tolist(), len(times)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def common_rate(times: FloatArray) -> float:
    """The uniform rate for a trace: its median frame rate, within 15 and 60 Hz."""
    return float(np.clip(1 / np.median(np.diff(times)), SLOWEST_HZ, FASTEST_HZ))


def waveform(method: str | PulseMethod) -> tuple[str, PulseMethod]:
    """Name and function of a method; the function gives the waveform systole up.

    A callable of one's own ``(rgb (T, 3), fs) -> (T,)`` is taken as it is.

    Raises
    ------
    FoveateError
        No method has this name.
    """
    if callable(method):
        return getattr(method, "__name__", "custom"), method
    if method not in METHODS:
        raise FoveateError(f"unknown pulse method {method!r}: choose one of {', '.join(METHODS)}")
    function, sign = METHODS[method], SYSTOLE_SIGN[method]
    return method, lambda rgb, fs: sign * function(rgb, fs)


def estimate(
    rgb: npt.ArrayLike,
    times: npt.ArrayLike,
    method: str | PulseMethod = "pos",
    band: Band = BANDS["default"],
) -> HRResult:
    """The heart rate of one trace of skin colour, or a refusal.

    Up to 20 s without a hole are judged in one piece, longer traces by windows of 10 s every
    second. Variable frame rates are resampled; frames with NaN or a black channel are left out;
    holes longer than 0.5 s split the trace, and no window reaches across.

    Parameters
    ----------
    rgb
        ``(T, 3)`` mean skin colour.
    times
        ``(T,)`` seconds, strictly increasing.

    Raises
    ------
    FoveateError
        Shapes that do not fit or time stamps that do not increase. Too little or too poor a
        signal is no error but a refusal.
    """
    colour = np.asarray(rgb, dtype=np.float64)
    t = np.asarray(times, dtype=np.float64)
    if colour.ndim != 2 or colour.shape[1] != 3 or t.shape != colour.shape[:1]:
        raise FoveateError(
            f"pulse: colours have shape {colour.shape}, times {t.shape}; expected (T, 3) and (T,)"
        )
    if not np.isfinite(t).all() or (np.diff(t) <= 0).any():
        raise FoveateError("pulse: the time stamps must be finite and strictly increasing")
    name, extract = waveform(method)
    seen = np.isfinite(colour).all(axis=1) & (colour > 0).all(axis=1)
    colour, t = colour[seen], t[seen]
    parts = [s for s in split_at_gaps(t) if s.stop - s.start > 1]
    if not parts:
        return _no_result(_NO_SKIN, name)
    durations = [float(t[s][-1] - t[s][0]) for s in parts]
    windows: list[WindowEstimate] = []
    for part, duration in zip(parts, durations, strict=True):
        if duration < SHORTEST_S - 1 / 15:
            continue
        fs = common_rate(t[part])
        grid, uniform = resample_uniform(t[part], colour[part], fs)
        if len(parts) == 1 and duration <= WHOLE_S:
            return whole_clip(heart_rate(extract(uniform, fs), fs, band, rgb=uniform), name)
        length = min(round(WINDOW_S * fs), len(grid))
        for start in range(0, len(grid) - length + 1, round(HOP_S * fs)):
            cut = slice(start, start + length)
            rate = heart_rate(extract(uniform[cut], fs), fs, band, rgb=uniform[cut])
            windows.append(WindowEstimate(grid[start], grid[start] + length / fs, rate))
    return combine_windows(windows, name, max(durations))


# -------------------------------------------------------------------------------------- benchmark


@dataclass(frozen=True, slots=True)
class Metrics:
    """Errors of `n` heart rates against their labels, each with its standard error.

    MAE and RMSE in bpm, MAPE in percent. Standard errors: ``std / sqrt(n)`` of the absolute and
    the relative errors; of the RMSE ``std(e^2) / sqrt(n) / (2 RMSE)`` (delta method); of Pearson's
    r ``sqrt((1 - r^2) / (n - 2))``. NaN where undefined.
    """

    n: int
    mae: float
    mae_se: float
    rmse: float
    rmse_se: float
    mape: float
    mape_se: float
    pearson: float
    pearson_se: float


def benchmark_metrics(estimated_bpm: npt.ArrayLike, label_bpm: npt.ArrayLike) -> Metrics:
    """The metrics of the field over windows or videos.

    Raises
    ------
    FoveateError
        The two are not vectors of equal length above 0, not finite, or a label is not positive.
    """
    e = np.asarray(estimated_bpm, dtype=np.float64)
    y = np.asarray(label_bpm, dtype=np.float64)
    if e.ndim != 1 or e.shape != y.shape or len(e) == 0:
        raise FoveateError(
            f"metrics: estimates have shape {e.shape}, labels {y.shape}; "
            "expected two vectors of equal length"
        )
    if not (np.isfinite(e).all() and np.isfinite(y).all() and (y > 0).all()):
        raise FoveateError("metrics: heart rates must be finite, and the labels above 0")
    n = len(e)
    error = np.abs(e - y)
    rmse = float(np.sqrt(np.mean(error**2)))
    r = r_se = math.nan
    if n > 2 and e.std() > 0 and y.std() > 0:
        r = float(np.corrcoef(e, y)[0, 1])
        r_se = math.sqrt(max(0.0, 1 - r * r) / (n - 2))
    root = math.sqrt(n)
    return Metrics(
        n=n,
        mae=float(error.mean()),
        mae_se=float(error.std()) / root,
        rmse=rmse,
        rmse_se=float((error**2).std()) / root / (2 * rmse) if rmse > 0 else 0.0,
        mape=float((error / y).mean() * 100),
        mape_se=float((error / y).std() * 100) / root,
        pearson=r,
        pearson_se=r_se,
    )


def macc(bvp: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Maximum absolute Pearson correlation over all circular lags, in [0, 1].

    Raises
    ------
    FoveateError
        The two waveforms differ in length.
    """
    x, y = np.asarray(bvp, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise FoveateError(
            f"MACC: the waveforms have shapes {x.shape} and {y.shape}; expected two of equal length"
        )
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    if scale == 0:
        return 0.0
    correlation = np.fft.irfft(np.fft.rfft(x) * np.conj(np.fft.rfft(y)), len(x)) / scale
    return float(np.abs(correlation).max())
