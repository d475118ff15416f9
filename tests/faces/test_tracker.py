"""FaceTracker against scripted faces whose true identity and place are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.faces.landmarks import DetectedFace
from foveate.faces.tracker import AdaptiveStride, FaceTracker, FixedRegion
from foveate.streams.frame import Frame

FPS = 30.0


def mesh(person: int, x: float, y: float, width: float) -> np.ndarray:
    """A rigid cloud of 478 points, different for each person, 1 unit wide."""
    rng = np.random.default_rng(person)
    points = rng.uniform(-0.5, 0.5, (478, 3)).astype(np.float32)
    points[0], points[1] = (-0.5, 0, 0), (0.5, 0, 0)
    return points * width + np.array([x, y, 0], np.float32)


class Script:
    """A landmarker that knows where everybody is; `who(t)` maps a person to (x, y, width)."""

    def __init__(self, who) -> None:
        self.who = who
        self.times: list[float] = []

    def detect(self, image: np.ndarray, time_s: float) -> list[DetectedFace]:
        self.times.append(time_s)
        rng = np.random.default_rng(len(self.times))
        faces = [DetectedFace(mesh(p, *place)) for p, place in self.who(time_s).items()]
        rng.shuffle(faces)  # MediaPipe promises no order
        return faces

    def close(self) -> None:
        pass


def frames(n: int, times: list[float] | None = None) -> Iterator[Frame]:
    image = np.zeros((32, 32, 3), np.uint8)
    for i in range(n):
        yield Frame(image, times[i] if times else i / FPS, i)


def identity(landmarks: np.ndarray) -> int:
    """Which scripted person a mesh belongs to, by its (scale-free) layout."""

    def layout(m: np.ndarray) -> np.ndarray:
        m = m - m.mean(axis=0)
        return m / np.abs(m).mean()

    return int(
        np.argmin([np.abs(layout(mesh(p, 0, 0, 1)) - layout(landmarks)).mean() for p in range(4)])
    )


@pytest.mark.parametrize("policy", [None, AdaptiveStride()])
def test_two_people_keep_their_numbers_when_they_cross(policy):
    def who(t: float):
        return {0: (50 + 60 * t, 100, 60), 1: (350 - 60 * t, 110, 60)}  # meet at t = 2.5

    tracker = FaceTracker(Script(who), policy)
    seen: dict[int, set[int]] = {}
    for _, tracks in tracker.follow(frames(150)):
        for track in tracks:
            seen.setdefault(track.id, set()).add(identity(track.landmarks))
    assert len(seen) == 2
    assert all(len(people) == 1 for people in seen.values())


def test_a_short_occlusion_keeps_the_number_and_a_long_one_does_not():
    def who(t: float):
        hidden = 1.0 < t < 2.2 or 3.0 < t < 6.5
        return {} if hidden else {0: (100 + 5 * t, 100, 60)}

    tracker = FaceTracker(Script(who), AdaptiveStride(), max_gap_s=2.0)
    ids = {}
    for frame, tracks in tracker.follow(frames(240)):
        for track in tracks:
            ids.setdefault(track.id, []).append(frame.time_s)
    assert sorted(ids) == [0, 1]
    assert min(ids[0]) == 0
    assert max(ids[0]) == pytest.approx(3.0, abs=0.21)
    assert min(ids[1]) >= 6.5
    assert not any(1.01 < t < 2.19 for t in ids[0])


def test_frames_between_key_frames_lie_on_the_line_between_them():
    def who(t: float):
        return {0: (100 + 20 * t, 80 + 10 * t, 60)}  # uniform motion: interpolation is exact

    tracker = FaceTracker(Script(who), AdaptiveStride())
    sources = []
    for frame, (track,) in tracker.follow(frames(91)):
        sources.append(track.source)
        np.testing.assert_allclose(
            track.landmarks, mesh(0, *who(frame.time_s)[0]), atol=2e-3, rtol=0
        )
    assert sources.count("interpolated") == tracker.count.interpolated > 45
    assert tracker.count.detected + tracker.count.interpolated == tracker.count.frames == 91
    assert sources[-1] == "detected"  # nothing is extrapolated at the end


def test_a_fast_face_is_looked_at_in_every_frame_and_a_still_one_five_times_a_second():
    still = Script(lambda t: {0: (100, 100, 60)})
    list(FaceTracker(still, AdaptiveStride()).follow(frames(300)))
    assert max(np.diff(still.times)) <= 0.2 + 1e-6
    assert len(still.times) < 70  # 10 s: 5 a second and a few to get going
    fast = Script(lambda t: {0: (100 + 400 * t, 100, 60)})  # 0.22 face widths a frame
    list(FaceTracker(fast, AdaptiveStride()).follow(frames(300)))
    assert len(fast.times) == 300


@settings(deadline=None, max_examples=40)
@given(
    gaps=st.lists(st.floats(0.001, 0.4), min_size=1, max_size=60),
    present=st.lists(st.booleans(), min_size=61, max_size=61),
)
def test_every_frame_comes_out_once_and_in_order_whatever_the_clock_and_the_faces(gaps, present):
    times = [0.0, *np.cumsum(gaps).tolist()]
    script = Script(lambda t: {0: (50, 50, 40)} if present[times.index(t)] else {})
    tracker = FaceTracker(script, AdaptiveStride())
    out = [(f.index, [t.id for t in ts]) for f, ts in tracker.follow(frames(len(times), times))]
    assert [index for index, _ in out] == list(range(len(times)))
    assert all(len(set(ids)) == len(ids) for _, ids in out)
    assert len(script.times) == tracker.count.detected
    assert script.times == sorted(script.times)


def test_tiny_faces_are_ignored():
    tracker = FaceTracker(Script(lambda t: {0: (100, 100, 10)}), None, min_face_px=24)
    assert all(not tracks for _, tracks in tracker.follow(frames(5)))


def test_an_empty_stream_gives_nothing():
    assert list(FaceTracker(Script(lambda t: {}), AdaptiveStride()).follow([])) == []


def test_fixed_region_is_the_same_in_every_frame_and_must_overlap_the_picture():
    region = FixedRegion((4, 5, 20, 21))
    tracks = [t for _, ts in region.follow(frames(4)) for t in ts]
    assert {(t.id, t.box, t.source) for t in tracks} == {(0, (4, 5, 20, 21), "given")}
    assert region.count.frames == 4
    with pytest.raises(FoveateError, match=r"outside the picture of 32x32"):
        list(FixedRegion((40, 0, 10, 10)).follow(frames(1)))
