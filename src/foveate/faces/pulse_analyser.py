"""The pulse of everybody in view, while the video runs.

Frames come one by one, each face gives the mean colour of its skin, and only the last 20 s of it
are kept. Every second of video the last 10 s go onto a uniform grid, through one of the methods of
:mod:`foveate.faces.pulse` and through :func:`foveate.faces.heart_rate.heart_rate`. Windows overlap
by nine tenths; their waveforms are joined by overlap-add under a Hann taper.

Signals written (times of windows are their centres):

========================= ====================================================================
``pulse.skin_r|g|b``      mean skin colour at each frame, 0-255
``pulse.bvp``             pulse waveform, unit variance, systole up, on the uniform grid;
                          quality: mean confidence of the windows over it
``pulse.hr_bpm``          heart rate of a window; NaN where refused; quality: confidence
``pulse.hr_low_bpm``      lower and upper end of its 95 % interval, NaN where refused
``pulse.hr_high_bpm``
``pulse.hr_candidate_bpm``  the strongest rhythm, also where refused
``pulse.snr_db``          its signal-to-noise ratio
``respiration.rate_bpm``  breaths per minute over the best stretch, when the pulse carries it
========================= ====================================================================

:class:`PulseWindows` is the half that knows nothing of colour: whoever has another way to a
waveform (a network) feeds it and gets the same signals, summary and refusals.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.faces.heart_rate import (
    BANDS,
    GAP_S,
    HOP_S,
    SHORTEST_S,
    SLOWEST_HZ,
    WHOLE_S,
    WINDOW_S,
    HeartRate,
    HRResult,
    WindowEstimate,
    combine_windows,
    common_rate,
    heart_rate,
    waveform,
    whole_clip,
)
from foveate.faces.pulse import Band, PulseMethod, bandpass, detrend
from foveate.faces.skin import mean_skin_rgb
from foveate.faces.track import Track
from foveate.faces.variability import HRV_S, Respiration, hrv, respiration
from foveate.streams.frame import Frame
from foveate.streams.timeline import Timeline

__all__ = ["PulseAnalyser", "PulseSummary", "PulseWindows", "RefusedStretch"]

FloatArray = npt.NDArray[np.float64]

_LONGEST_HRV_S = 300.0  # the usual length of a short-term recording (Task Force, 1996)


@dataclass(frozen=True, slots=True)
class RefusedStretch:
    """Consecutive windows without a heart rate: their centres, and the reason of the first."""

    from_s: float
    to_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class PulseSummary:
    """What the whole clip says about one person.

    Attributes
    ----------
    result
        Heart rate or refusal.
    hrv
        Heart rate variability (names with units, see :func:`foveate.faces.variability.hrv`) over
        the longest accepted stretch, or None and `hrv_reason`.
    respiration
        Breaths per minute, or None and the reason.
    duration_s
        Seconds between the first and the last frame with skin in view.
    waveform_seconds
        Length of the stretch that `hrv` and `respiration` were read from.
    refused
        Stretches of windows in which no heart rate was reported.
    """

    result: HRResult
    hrv: dict[str, float] | None
    hrv_reason: str
    respiration: Respiration
    duration_s: float
    waveform_seconds: float
    refused: tuple[RefusedStretch, ...] = ()

    @property
    def reason(self) -> str:
        """Why there is no heart rate; empty when there is one."""
        return self.result.reason


class _Rows:
    """Timeline rows of one track, waiting to be fetched."""

    def __init__(self, track: int) -> None:
        self._track = track
        self._rows: dict[str, list[tuple[float, float, float]]] = {}

    def add(self, signal: str, time_s: float, value: float, quality: float = math.nan) -> None:
        self._rows.setdefault(signal, []).append((time_s, value, quality))

    def take(self) -> list[Timeline]:
        parts = []
        for signal, rows in self._rows.items():
            table = np.array(rows, dtype=np.float64)
            parts.append(Timeline.of(signal, self._track, table[:, 0], table[:, 1], table[:, 2]))
        self._rows = {}
        return parts


class PulseWindows:
    """Joins overlapping windows of waveform into signals and one summary.

    Parameters
    ----------
    track
        Number of the person.
    method
        Name for the result.
    band
        Search band in Hz.

    Notes
    -----
    Feed windows in order of time with :meth:`add`; call :meth:`end_stretch` where the signal
    breaks off; fetch rows with :meth:`take` at any time. Kept in memory: one window of waveform,
    at most 2 x 5 minutes of accepted waveform for the variability, and one record per window.
    """

    def __init__(self, track: int, method: str, band: Band = BANDS["default"]) -> None:
        self._method = method
        self._band = band
        self._rows = _Rows(track)
        self._windows: list[WindowEstimate] = []
        self._longest_s = 0.0
        # Overlap-add: sums of weight, weight x (waveform, confidence, accepted), from _start_s on.
        self._start_s = 0.0
        self._fs = 0.0
        self._sums = np.zeros((4, 0))
        # Accepted waveform: the stretch that still grows, and the longest so far.
        self._growing: list[FloatArray] = []
        self._growing_start_s = 0.0
        self._best = np.zeros(0)
        self._best_start_s = 0.0
        self._best_fs = 0.0

    def add(
        self, start_s: float, bvp: npt.ArrayLike, fs: float, rgb: npt.ArrayLike | None = None
    ) -> WindowEstimate:
        """Take one window and write its heart rate.

        Parameters
        ----------
        start_s
            Time of its first sample, not before that of the window before.
        bvp
            ``(N,)`` waveform at `fs` Hz, systole up; windows of one stretch share the grid.
        rgb
            ``(N, 3)`` mean skin colour of the same samples, for the evidence.

        Raises
        ------
        FoveateError
            The window is not finite or starts before the one before.
        """
        x = np.asarray(bvp, dtype=np.float64)
        rate = heart_rate(x, fs, self._band, rgb=rgb)
        window = WindowEstimate(start_s, start_s + len(x) / fs, rate)
        self._windows.append(window)
        self._write(window)
        self._overlap_add(start_s, x, fs, rate)
        return window

    def _write(self, window: WindowEstimate) -> None:
        rate, centre = window.rate, (window.start_s + window.end_s) / 2
        quality = rate.confidence
        for signal, value in (
            ("pulse.hr_bpm", rate.bpm),
            ("pulse.hr_low_bpm", rate.low_bpm),
            ("pulse.hr_high_bpm", rate.high_bpm),
        ):
            self._rows.add(signal, centre, value if rate.accepted else math.nan, quality)
        self._rows.add("pulse.hr_candidate_bpm", centre, rate.bpm, quality)
        self._rows.add("pulse.snr_db", centre, rate.snr_db, quality)

    def _overlap_add(self, start_s: float, x: FloatArray, fs: float, rate: HeartRate) -> None:
        if self._sums.shape[1] == 0:
            self._start_s, self._fs = start_s, fs
        offset = round((start_s - self._start_s) * fs)
        if offset < 0 or fs != self._fs:
            raise FoveateError(
                f"pulse: a window at {start_s:.2f} s and {fs:g} Hz does not continue the stretch "
                f"from {self._start_s:.2f} s at {self._fs:g} Hz"
            )
        self._emit(offset)  # no later window reaches these samples
        y = bandpass(detrend(x, 100.0 * (fs / 30.0) ** 2), fs, self._band)
        spread = float(y.std())
        y = y / spread if spread > 0 else y
        weight = np.hanning(len(y) + 2)[1:-1]
        missing = len(y) - self._sums.shape[1]
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, missing)))
        facts = np.stack(
            [np.ones(len(y)), y, np.full(len(y), rate.confidence), np.full(len(y), rate.accepted)]
        )
        self._sums[:, : len(y)] += weight * facts

    def _emit(self, count: int) -> None:
        """Write the first `count` samples of the overlap-add and forget them."""
        count = min(count, self._sums.shape[1])
        if count == 0:
            return
        weight = self._sums[0, :count]
        bvp, confidence, accepted = self._sums[1:, :count] / np.maximum(weight, 1e-12)
        times = self._start_s + np.arange(count) / self._fs
        for t, value, quality in zip(times, bvp, confidence, strict=True):
            self._rows.add("pulse.bvp", float(t), float(value), float(quality))
        self._collect(times, bvp, accepted > 0.5)
        self._sums = self._sums[:, count:]
        self._start_s += count / self._fs

    def _collect(self, times: FloatArray, bvp: FloatArray, good: npt.NDArray[np.bool_]) -> None:
        edges = [0, *(np.flatnonzero(np.diff(good)) + 1).tolist(), len(good)]
        for a, b in itertools.pairwise(edges):
            if not good[a]:
                self._close_growing()
                continue
            if not self._growing:
                self._growing_start_s = float(times[a])
            if sum(map(len, self._growing)) < _LONGEST_HRV_S * self._fs:
                self._growing.append(bvp[a:b].copy())

    def _close_growing(self) -> None:
        length = sum(map(len, self._growing))
        if length > len(self._best):
            self._best = np.concatenate(self._growing)
            self._best_start_s, self._best_fs = self._growing_start_s, self._fs
        self._growing = []

    def end_stretch(self, seconds: float) -> None:
        """The signal breaks off after a stretch of `seconds`; the next window starts a new one."""
        self._longest_s = max(self._longest_s, seconds)
        self._emit(self._sums.shape[1])
        self._close_growing()
        self._sums = np.zeros((4, 0))

    def take(self) -> list[Timeline]:
        """Rows that are final; each is returned once."""
        return self._rows.take()

    def summary(self, duration_s: float, whole: HeartRate | None = None) -> PulseSummary:
        """Sum up, after the last :meth:`end_stretch`; may add respiration rows.

        Parameters
        ----------
        duration_s
            Seconds in view.
        whole
            Estimate over the clip in one piece, for clips short enough to be judged so.
        """
        result = (
            whole_clip(whole, self._method, self._windows)
            if whole is not None
            else combine_windows(self._windows, self._method, self._longest_s)
        )
        seconds = len(self._best) / self._best_fs if self._best_fs else 0.0
        if not result.accepted:
            return self._without_beats(result, "no trustworthy heart rate", duration_s, seconds)
        if seconds < HRV_S:
            reason = (
                f"needs {HRV_S:g} s of trustworthy pulse in a row, "
                f"the longest stretch is {seconds:.0f} s"
            )
            return self._without_beats(result, reason, duration_s, seconds)
        variability: dict[str, float] | None = None
        reason = ""
        try:
            variability = hrv(self._best, self._best_fs)
        except FoveateError as error:
            return self._without_beats(result, str(error), duration_s, seconds)
        breath = respiration(self._best, self._best_fs)
        if breath.rate_bpm is not None:
            centre = self._best_start_s + seconds / 2
            self._rows.add("respiration.rate_bpm", centre, breath.rate_bpm, breath.confidence)
        return PulseSummary(
            result, variability, reason, breath, duration_s, seconds, self._refused()
        )

    def _refused(self) -> tuple[RefusedStretch, ...]:
        """Runs of refused windows, each widened by half a step to both sides."""
        found: list[RefusedStretch] = []
        for accepted, run in itertools.groupby(self._windows, lambda w: w.rate.accepted):
            windows = list(run)
            if not accepted:
                centres = [(w.start_s + w.end_s) / 2 for w in (windows[0], windows[-1])]
                found.append(
                    RefusedStretch(
                        centres[0] - HOP_S / 2, centres[1] + HOP_S / 2, windows[0].rate.reason
                    )
                )
        return tuple(found)

    def _without_beats(
        self, result: HRResult, reason: str, duration_s: float, seconds: float
    ) -> PulseSummary:
        return PulseSummary(
            result,
            None,
            reason,
            Respiration(None, 0.0, reason),
            duration_s,
            seconds,
            self._refused(),
        )


@dataclass(slots=True)
class _Person:
    """What was read off one track since the last gap (colour first), and its windows."""

    windows: PulseWindows
    rows: _Rows
    times: list[float] = field(default_factory=list)
    samples: list[npt.NDArray[np.floating]] = field(default_factory=list)
    fs: float = 0.0
    origin_s: float = 0.0  # of the uniform grid: first frame of the stretch
    next_sample: int = 0  # of the grid, where the next window starts
    covered_until: int = 0  # of the grid, end of the last window
    stretches: int = 0
    first_s: float = math.nan
    last_s: float = math.nan
    whole: HeartRate | None = None  # of the first stretch, when it has ended and was short


class PulseAnalyser:
    """Heart rate of every tracked face, by a method that needs no training.

    Parameters
    ----------
    method
        ``pos``, ``chrom``, ``green``, ``pbv``, ``lgi``, ``ica`` or a callable
        ``(rgb (T, 3), fs) -> (T,)``.
    band
        Search band in Hz.
    fs
        Rate of the uniform grid in Hz; by default the track's median frame rate, within 15-60 Hz.

    Raises
    ------
    FoveateError
        No method has this name, or `fs` is below 15 Hz.

    Notes
    -----
    An :class:`~foveate.faces.track.Analyser`. Memory per person: 20 s of colour, see
    :class:`PulseWindows` for the rest. After :meth:`finish`, :meth:`summaries` tells the result.
    """

    def __init__(
        self,
        method: str | PulseMethod = "pos",
        band: Band = BANDS["default"],
        fs: float | None = None,
    ) -> None:
        if fs is not None and not SLOWEST_HZ <= fs < math.inf:
            raise FoveateError(f"pulse: a rate of {fs} Hz was asked for, expected at least 15 Hz")
        self._name, self._extract = waveform(method)
        self._band = band
        self._fs = fs
        self._people: dict[int, _Person] = {}
        self._summaries: dict[int, PulseSummary] = {}
        self._now_s = -math.inf

    def update(self, frame: Frame, track: Track) -> None:
        """Read the skin colour of one face in one frame."""
        self.add(track.id, frame.time_s, mean_skin_rgb(frame.image, track))

    def add(self, track: int, time_s: float, sample: npt.NDArray[np.floating]) -> None:
        """Take what was measured of a face at a moment.

        Parameters
        ----------
        sample
            ``(3,)`` mean skin colour, 0-255; NaN: no skin in view. An analyser that derives its
            waveform from more appends that to the three.
        """
        rgb = sample[:3]
        self._now_s = max(self._now_s, time_s)
        person = self._people.get(track)
        if person is None:
            person = _Person(PulseWindows(track, self._name, self._band), _Rows(track))
            self._people[track] = person
        for channel, value in zip("rgb", rgb, strict=True):
            person.rows.add(f"pulse.skin_{channel}", time_s, float(value))
        if not (np.isfinite(rgb).all() and rgb.min() > 0):
            return  # no skin, or no light in one of the colours
        if person.times:
            if time_s <= person.times[-1]:
                return  # a repeated time stamp carries no new moment
            if time_s - person.times[-1] > GAP_S:
                self._end_stretch(person)
        if not person.times:
            person.origin_s = time_s
        if math.isnan(person.first_s):
            person.first_s = time_s
        person.last_s = time_s
        person.times.append(time_s)
        person.samples.append(np.asarray(sample))
        self._make_windows(person)

    def _make_windows(self, person: _Person) -> None:
        elapsed = person.times[-1] - person.origin_s
        if elapsed < WINDOW_S - 1 / 15:
            return
        fs = self._rate(person)
        length = round(WINDOW_S * fs)
        while person.next_sample + length - 1 <= elapsed * fs + 1e-6:
            self._window(person, person.next_sample, length)
            person.next_sample += round(HOP_S * fs)
        # Up to 20 s everything is kept, for the estimate in one piece; then what windows need.
        keep_s = person.times[-1] - WHOLE_S - HOP_S
        drop = 0
        while person.times[drop + 1] < keep_s:
            drop += 1
        if drop:
            del person.times[:drop], person.samples[:drop]

    def _rate(self, person: _Person) -> float:
        if person.fs == 0:
            person.fs = self._fs or common_rate(np.array(person.times))
        return person.fs

    def _uniform(self, person: _Person, start: int, length: int) -> FloatArray:
        """``(length, C)`` samples on the grid of the stretch, from grid point `start` on."""
        times = np.array(person.times)
        grid = person.origin_s + np.arange(start, start + length) / person.fs
        after = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
        step = (grid - times[after - 1]) / (times[after] - times[after - 1])
        step = np.clip(step, 0, 1)[:, None]
        samples = np.array(person.samples)
        even: FloatArray = samples[after - 1] * (1 - step) + samples[after] * step
        return even

    def waveform(self, samples: FloatArray, fs: float) -> FloatArray:
        """Pulse ``(T,)``, systole up, out of samples ``(T, C)``: here, of their colour."""
        return self._extract(samples[:, :3], fs)

    def _window(self, person: _Person, start: int, length: int) -> None:
        samples = self._uniform(person, start, length)
        wave = self.waveform(samples, person.fs)
        person.windows.add(
            person.origin_s + start / person.fs, wave, person.fs, samples[:, :3].copy()
        )
        person.covered_until = start + length

    def _end_stretch(self, person: _Person) -> None:
        """Cover the tail by a last window and start anew."""
        seconds = person.times[-1] - person.origin_s
        if seconds >= SHORTEST_S - 1 / 15:
            fs = self._rate(person)
            samples = math.floor(seconds * fs + 1e-6) + 1
            if samples > person.covered_until:
                length = min(samples, round(WINDOW_S * fs))
                self._window(person, samples - length, length)
        person.windows.end_stretch(seconds)
        person.stretches += 1
        person.times, person.samples = [], []
        person.next_sample = person.covered_until = 0

    def drain(self) -> Timeline:
        """Rows that are final; each is returned once."""
        parts = []
        for person in self._people.values():
            if person.times and self._now_s - person.times[-1] > 2 * GAP_S:
                person.whole = self._whole(person)  # left: what was kept of them can go
                self._end_stretch(person)
            parts += person.rows.take() + person.windows.take()
        return Timeline.concat(parts)

    def finish(self) -> Timeline:
        """The remaining rows; the summaries are ready afterwards."""
        for number, person in self._people.items():
            whole = person.whole if person.stretches == 1 else None
            if person.times:
                whole = self._whole(person)
                self._end_stretch(person)
            duration = 0.0 if math.isnan(person.first_s) else person.last_s - person.first_s
            self._summaries[number] = person.windows.summary(duration, whole)
        rest = self.drain()
        self._people = {}
        return rest

    def _whole(self, person: _Person) -> HeartRate | None:
        """Estimate over a clip without a gap that is short enough to be judged in one piece."""
        seconds = person.times[-1] - person.origin_s
        if person.stretches or not SHORTEST_S - 1 / 15 <= seconds <= WHOLE_S:
            return None
        fs = self._rate(person)
        samples = self._uniform(person, 0, math.floor(seconds * fs + 1e-6) + 1)
        rgb = samples[:, :3].copy()
        return heart_rate(self.waveform(samples, fs), fs, self._band, rgb=rgb)

    def summaries(self) -> dict[int, PulseSummary]:
        """Result of every person by track number, after :meth:`finish`."""
        return dict(self._summaries)
