"""Heart-rate variability and respiration: what the single beats of a trusted pulse tell.

Beats are found on the waveform put on a 250 Hz grid (Elgendi et al., 2013, by neurokit2). Their
intervals NN_i give the variability in the time domain,

    SDNN = std(NN_i),  RMSSD = sqrt(mean (NN_{i+1} - NN_i)^2),
    pNN50 = share of |NN_{i+1} - NN_i| > 50 ms,

and breathing shows in them twice: the heart beats faster while breathing in, and the beats grow
and shrink. Both need half a minute of trusted pulse in a row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

from foveate.errors import FoveateError
from foveate.faces.heart_rate import Spectrum, checked_waveform, highest_peak, next_power_of_2
from foveate.faces.pulse import Band, resample_uniform

__all__ = ["HRV_S", "Respiration", "hrv", "respiration"]

FloatArray = npt.NDArray[np.float64]

HRV_S = 30.0
"""Seconds of accepted signal in a row that heart rate variability and respiration need."""


@dataclass(frozen=True, slots=True)
class Respiration:
    """Breaths per minute, or None and the reason why not; `confidence` in 0 .. 1."""

    rate_bpm: float | None
    confidence: float
    reason: str


_FINE_HZ = 250.0  # beats are placed on this grid: at 30 Hz a beat would be 17 ms off
_BREATH_BAND: Band = (0.13, 0.5)  # Hz, 8-30 per minute; the heart's Mayer waves lie at 0.1 Hz
_BREATHS_AGREE = 2.0  # per minute


def _beats(bvp: FloatArray, fs: float) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """The waveform on a fine grid and the samples of its systolic peaks (Elgendi, 2013)."""
    import neurokit2 as nk

    n = len(bvp)
    fine_times = np.arange(0, (n - 1) / fs, 1 / _FINE_HZ)
    fine = CubicSpline(np.arange(n) / fs, bvp)(fine_times)
    found = nk.ppg_findpeaks(fine, sampling_rate=int(_FINE_HZ), method="elgendi")
    return fine, np.asarray(found["PPG_Peaks"], dtype=np.intp)


def hrv(bvp: npt.ArrayLike, fs: float) -> dict[str, float]:
    """Heart rate variability in the time domain, by neurokit2.

    Parameters
    ----------
    bvp
        ``(T,)`` pulse waveform, systole up, at least 30 s of it, all of it accepted.

    Returns
    -------
    ``beats`` (count), ``mean_nn_ms``, ``sdnn_ms``, ``rmssd_ms`` (milliseconds), ``pnn50_percent``.
    A camera places a beat some 10 ms off and the band pass smooths: in simulations with 20-45 ms
    of RMSSD the mean is right within 1 ms, RMSSD within 10 ms. Compare within one set-up, not with
    an ECG.

    Raises
    ------
    FoveateError
        Fewer than 30 s, or fewer than 10 beats found, or neurokit2 is not installed.
    """
    x = checked_waveform(bvp, fs)
    if len(x) / fs < HRV_S:
        raise FoveateError(
            f"heart rate variability needs {HRV_S:g} s of pulse, here are {len(x) / fs:.1f} s"
        )
    nk = _neurokit()
    _, peaks = _beats(x, fs)
    if len(peaks) < 10:
        raise FoveateError(f"heart rate variability needs 10 beats, {len(peaks)} were found")
    table = nk.hrv_time(peaks, sampling_rate=int(_FINE_HZ))
    return {
        "beats": float(len(peaks)),
        "mean_nn_ms": float(table["HRV_MeanNN"].iloc[0]),
        "sdnn_ms": float(table["HRV_SDNN"].iloc[0]),
        "rmssd_ms": float(table["HRV_RMSSD"].iloc[0]),
        "pnn50_percent": float(table["HRV_pNN50"].iloc[0]),
    }


def _neurokit() -> Any:
    try:
        import neurokit2
    except ImportError as error:
        raise FoveateError(
            "heart rate variability needs neurokit2: pip install 'foveate[faces]'"
        ) from error
    return neurokit2


def respiration(bvp: npt.ArrayLike, fs: float) -> Respiration:
    """Breaths per minute carried by the pulse: breathing modulates rate and height of the beats.

    Both series (interval to the next beat, height over the foot before) are put on a 4 Hz grid
    and the highest peak within 0.13-0.5 Hz (above the Mayer waves) is read off their spectra. The
    mean is reported when the two agree within 2 breaths per minute (the fusion of Karlen et al.,
    IEEE TBME 2013, with two of its three modulations); the confidence is the smaller share of
    spectral power in the line.

    Raises
    ------
    FoveateError
        neurokit2 is not installed.
    """
    x = checked_waveform(bvp, fs)
    if len(x) / fs < HRV_S:
        return Respiration(
            None, 0.0, f"respiration needs {HRV_S:g} s of pulse, here are {len(x) / fs:.1f} s"
        )
    _neurokit()
    fine, peaks = _beats(x, fs)
    if len(peaks) < 10:
        return Respiration(None, 0.0, f"respiration needs 10 beats, {len(peaks)} were found")
    at = peaks / _FINE_HZ
    feet = [float(fine[a:b].min()) for a, b in itertools.pairwise(peaks)]
    series = (np.diff(at), fine[peaks[1:]] - np.array(feet))
    found: list[tuple[float, float]] = []
    for values in series:
        grid, uniform = resample_uniform(at[1:], values, 4.0)
        y = uniform - np.poly1d(np.polyfit(grid, uniform, 1))(grid)
        taper = np.hanning(len(y) + 2)[1:-1]
        nfft = 8 * next_power_of_2(len(y))
        power = np.abs(np.fft.rfft(y * taper, nfft)) ** 2
        s = Spectrum(np.fft.rfftfreq(nfft, 0.25).astype(np.float64), power)
        f0 = highest_peak(s, _BREATH_BAND)
        if f0 is None:
            return Respiration(None, 0.0, "no rhythm of breathing in the pulse")
        inside = (s.f >= _BREATH_BAND[0]) & (s.f <= _BREATH_BAND[1])
        line = inside & (np.abs(s.f - f0) <= 2 / (grid[-1] - grid[0]))
        found.append((60 * f0, float(s.power[line].sum() / s.power[inside].sum())))
    (by_rate, share_rate), (by_height, share_height) = found
    confidence = min(share_rate, share_height)
    if abs(by_rate - by_height) > _BREATHS_AGREE:
        return Respiration(
            None,
            confidence,
            f"rate and height of the beats disagree ({by_rate:.0f} and {by_height:.0f} breaths "
            "per minute)",
        )
    if confidence < 0.5:
        return Respiration(None, confidence, "no clear rhythm of breathing in the pulse")
    return Respiration((by_rate + by_height) / 2, confidence, "")
