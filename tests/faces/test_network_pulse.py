"""A network's windows: the right crops reach it, at its rate, and its pulse is read as any is."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.faces import erea
from foveate.faces.network_pulse import NetworkPulse
from foveate.faces.pulse import METHODS
from foveate.faces.track import Track
from foveate.simulate.faces import PRESETS, FaceSim
from foveate.streams.frame import Frame

BOX = (8.0, 8.0, 48.0, 48.0)


@pytest.fixture(scope="module")
def clip():
    return FaceSim(size=64, fps=25, seed=0).clip(3, 14, hr=84, pulse_gain=0.02, **PRESETS["sim-A"])


def feed(analyser, clip, times):
    track = Track(0, BOX, source="given")
    for i, (image, time_s) in enumerate(zip(clip.frames, times, strict=True)):
        analyser.update(Frame(image, float(time_s), i), track)
    return analyser.finish()


def test_crops_arrive_at_the_networks_rate_and_size_and_carry_the_pulse(clip, monkeypatch):
    seen = []

    def colour_of_crops(net, crops):
        """In the network's place: POS on the mean colour of what it was given."""
        seen.append(crops.shape)
        wave = -METHODS["pos"](crops[0].mean((1, 2), dtype=np.float64), net.config.fps)
        return erea.Reading(wave[None], np.zeros((1, 1, 1, 1)), [0])

    monkeypatch.setattr(erea, "waveform", colour_of_crops)
    analyser = NetworkPulse(erea.EREA())
    timeline = feed(analyser, clip, np.arange(350) / 25)  # 25 frames/s in, the network wants 30
    assert {shape[0] for shape in seen} == {1}
    assert {shape[2:] for shape in seen} == {(36, 36, 3)}
    assert max(shape[1] for shape in seen) in (419, 420)  # the whole clip of 14 s at 30 Hz
    summary = analyser.summaries()[0]
    assert summary.result.method == "mar"
    assert summary.result.candidate_bpm == pytest.approx(clip.labels["hr_mean_bpm"], abs=1.5)
    _, candidates, _ = timeline.select("pulse.hr_candidate_bpm", 0)
    assert np.median(candidates) == pytest.approx(84, abs=3)


def test_the_crop_is_the_square_around_the_box(clip, monkeypatch):
    caught = []
    monkeypatch.setattr(
        erea,
        "waveform",
        lambda net, crops: (
            caught.append(crops) or erea.Reading(crops.mean((2, 3, 4)), np.zeros((1, 1, 1, 1)), [0])
        ),
    )
    still = type(clip)(clip.frames[:1].repeat(350, 0), clip.times, clip.labels, clip.config)
    feed(NetworkPulse(erea.EREA()), still, np.arange(350) / 25)
    expected = erea.crop_faces([clip.frames[0]], np.array([[32.0, 32.0, 48.0]]), 36)[0]
    np.testing.assert_allclose(caught[0][0, 100], expected, atol=1e-3)


def test_a_tracked_face_is_cropped_like_face_boxes_does():
    mesh = np.random.default_rng(0).uniform(20, 60, (478, 3)).astype(np.float32)
    low, high = mesh[:, :2].min(0), mesh[:, :2].max(0)
    track = Track(0, (*low, *(high - low)), mesh)
    expected = erea.face_boxes(mesh[None, :, :2])[0]
    np.testing.assert_allclose(NetworkPulse(erea.EREA())._box(track)[0], expected, atol=1e-4)


def test_a_jump_of_the_box_in_one_frame_does_not_move_the_crop():
    analyser = NetworkPulse(erea.EREA())
    boxes = [analyser._box(Track(0, BOX)) for _ in range(10)]
    jumped = analyser._box(Track(0, (30.0, 8.0, 48.0, 48.0)))
    np.testing.assert_allclose(jumped, boxes[-1])


def test_memory_holds_no_more_than_the_last_seconds(clip, monkeypatch):
    monkeypatch.setattr(
        erea,
        "waveform",
        lambda net, crops: erea.Reading(crops.mean((2, 3, 4)), np.zeros((1, 1, 1, 1)), [0]),
    )
    analyser = NetworkPulse(erea.EREA())
    track = Track(0, BOX, source="given")
    for i in range(40 * 25):
        analyser.update(Frame(clip.frames[i % 350], i / 25, i), track)
        analyser.drain()
    (person,) = analyser._people.values()
    assert len(person.samples) <= 22 * 25
    assert person.samples[0].dtype == np.float32
