"""Who is in view, frame by frame, without looking for faces in every frame.

The landmarker costs several times more than everything else that is done with a frame, and a
head moves little in 33 ms. `FaceTracker.follow` therefore runs the landmarker on *key frames*
only and interpolates the landmarks linearly in time between two of them (the frames in between
wait in a short buffer, so nothing is extrapolated). An `AdaptiveStride` chooses the key frames:
the displacement d of the landmarks between two key frames, in face widths, doubles or halves the
stride, so a still face is looked at every 0.2 s and a fast one in every frame.

Faces of consecutive key frames are joined by minimum-cost assignment (Hungarian algorithm) over
position, size and the shape of the face; a person who disappears keeps their number for
`max_gap_s`, so a hand before the face does not make a new person.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.faces.landmarks import DetectedFace, Landmarker
from foveate.faces.track import Track
from foveate.streams.frame import Frame

__all__ = ["AdaptiveStride", "FaceTracker", "FixedRegion", "TrackerCount"]

Array = npt.NDArray[np.float32]

# Rigid points (eye corners, nose bridge and wings, forehead, chin): their layout tells people
# apart better than the moving mouth does.
_SHAPE = [33, 133, 362, 263, 168, 6, 197, 4, 98, 327, 10, 151, 234, 454, 152, 61, 291]


@dataclass
class TrackerCount:
    """What was computed and what was saved.

    Attributes
    ----------
    frames, detected, interpolated
        Frames seen, frames given to the landmarker, and frames filled in between.
    """

    frames: int = 0
    detected: int = 0
    interpolated: int = 0


class AdaptiveStride:
    """Chooses how many frames may pass until faces are looked for again.

    Parameters
    ----------
    max_interval_s
        The longest time between two key frames.
    still, fast
        Landmark displacement between key frames, in face widths: below `still` the stride grows
        by one frame, above `fast` it is halved.
    """

    def __init__(
        self, max_interval_s: float = 0.2, still: float = 0.02, fast: float = 0.06
    ) -> None:
        self.max_interval_s = max_interval_s
        self.still = still
        self.fast = fast
        self.stride = 1

    def due(self, waiting: int, waited_s: float, frame_s: float) -> bool:
        """Whether the next frame is a key frame: `waiting` frames since the last, in seconds."""
        return waiting + 1 >= self.stride or waited_s + frame_s > self.max_interval_s

    def learn(self, displacement: float, changed: bool) -> None:
        """Adapt to the displacement just seen; `changed`: somebody came or went."""
        if changed:
            self.stride = 1
        elif displacement > self.fast:
            self.stride = max(1, self.stride // 2)
        elif displacement < self.still:
            self.stride += 1

    def settle(self, waited: int) -> None:
        """Forget growth that the time limit never let happen."""
        self.stride = min(self.stride, waited + 2)

    def __str__(self) -> str:
        return f"adaptive stride, at most {self.max_interval_s:g} s between key frames"


@dataclass
class _Person:
    id: int
    mesh: Array
    shape: Array
    box: tuple[float, float, float, float]
    seen_s: float
    velocity: Array = field(default_factory=lambda: np.zeros(2, np.float32))
    blendshapes: Array | None = None


def _box(mesh: Array) -> tuple[float, float, float, float]:
    low, high = mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _shape(mesh: Array) -> Array:
    """Distances between rigid points over their mean: the same under translation, scale, turn."""
    points = mesh[_SHAPE]
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(_SHAPE), 1)]
    normal: Array = (gaps / max(float(gaps.mean()), 1e-6)).astype(np.float32)
    return normal


class FaceTracker:
    """Follows several people through a stream.

    Parameters
    ----------
    landmarker
        Anything with the `Landmarker` methods, normally a `FaceLandmarker`.
    policy
        Chooses the key frames; None makes every frame a key frame.
    max_gap_s
        How long a person may be out of sight and keep their number.
    min_face_px
        Smaller faces (width in pixels) are ignored.

    Notes
    -----
    `count` tells afterwards how many frames were detected and how many interpolated.
    """

    def __init__(
        self,
        landmarker: Landmarker,
        policy: AdaptiveStride | None = None,
        *,
        max_gap_s: float = 2.0,
        min_face_px: float = 24.0,
    ) -> None:
        self.landmarker = landmarker
        self.policy = policy
        self.max_gap_s = max_gap_s
        self.min_face_px = min_face_px
        self.count = TrackerCount()
        self._people: list[_Person] = []
        self._next_id = 0

    def follow(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[Track]]]:
        """Every frame once, in order, with the people in view; a few frames behind the input."""
        waiting: list[Frame] = []
        before: list[_Person] = []
        key_s = 0.0
        previous_s: float | None = None
        for frame in frames:
            self.count.frames += 1
            frame_s = 0.0 if previous_s is None else frame.time_s - previous_s
            previous_s = frame.time_s
            waited_s = frame.time_s - key_s
            if self.policy is None or self.policy.due(len(waiting), waited_s, frame_s):
                now = self._look(frame, before, len(waiting))
                yield from self._between(waiting, before, now, key_s, frame.time_s)
                yield frame, [self._track(person) for person in now]
                waiting, before, key_s = [], now, frame.time_s
            else:
                waiting.append(frame)
        if waiting:  # the stream ended between key frames: look at its last frame
            last = waiting.pop()
            now = self._look(last, before, len(waiting))
            yield from self._between(waiting, before, now, key_s, last.time_s)
            yield last, [self._track(person) for person in now]

    def _look(self, frame: Frame, before: list[_Person], waited: int) -> list[_Person]:
        self.count.detected += 1
        found = [
            face
            for face in self.landmarker.detect(frame.image, frame.time_s)
            if _box(face.landmarks)[2] >= self.min_face_px
        ]
        now = self._assign(found, frame.time_s)
        if self.policy is not None:
            old = {person.id: person for person in before}
            moved = [
                float(np.abs(p.mesh[:, :2] - old[p.id].mesh[:, :2]).mean()) / max(p.box[2], 1.0)
                for p in now
                if p.id in old
            ]
            changed = {p.id for p in now} != set(old)
            self.policy.learn(max(moved, default=0.0), changed)
            self.policy.settle(waited)
        return now

    def _assign(self, found: list[DetectedFace], time_s: float) -> list[_Person]:
        """Join faces to known people; unknown faces become new people."""
        self._people = [p for p in self._people if time_s - p.seen_s <= self.max_gap_s]
        fresh = [
            _Person(-1, f.landmarks, _shape(f.landmarks), _box(f.landmarks), time_s) for f in found
        ]
        for person, face in zip(fresh, found, strict=True):
            person.blendshapes = face.blendshapes
        taken: set[int] = set()
        if fresh and self._people:
            from scipy.optimize import linear_sum_assignment

            cost = np.array([[self._cost(old, new) for new in fresh] for old in self._people])
            for row, column in zip(*linear_sum_assignment(np.minimum(cost, 1e3)), strict=True):
                if np.isfinite(cost[row, column]):
                    self._renew(self._people[row], fresh[column])
                    taken.add(int(column))
        for column, person in enumerate(fresh):
            if column not in taken:
                person.id = self._next_id
                self._next_id += 1
                self._people.append(person)
        # A copy: the stored person moves on while its frames wait for interpolation.
        return [replace(p) for p in self._people if p.seen_s == time_s]

    def _cost(self, old: _Person, new: _Person) -> float:
        """Distance in face widths plus difference of shape; infinite when it cannot be the same."""
        gap = new.seen_s - old.seen_s
        width = max(old.box[2], new.box[2], 1.0)
        # Extrapolate the motion only over short gaps; nobody walks straight on behind a pillar.
        ahead = old.velocity * min(gap, 0.3)
        step = new.mesh[:, :2].mean(axis=0) - (old.mesh[:, :2].mean(axis=0) + ahead)
        distance = float(np.hypot(*step)) / width
        size = max(old.box[2], new.box[2]) / max(min(old.box[2], new.box[2]), 1e-3)
        reach = 0.6 + 1.0 * min(gap, self.max_gap_s)
        if distance > reach or size > 2.0:
            return float("inf")
        likeness = float(np.abs(old.shape - new.shape).mean())
        return distance + 2.0 * likeness + 0.5 * float(np.log(size))

    @staticmethod
    def _renew(old: _Person, new: _Person) -> None:
        gap = new.seen_s - old.seen_s
        if gap > 0:
            step = new.mesh[:, :2].mean(axis=0) - old.mesh[:, :2].mean(axis=0)
            old.velocity = (0.5 * old.velocity + 0.5 * step / gap).astype(np.float32)
        old.shape = (0.9 * old.shape + 0.1 * new.shape).astype(np.float32)
        old.mesh, old.box, old.seen_s = new.mesh, new.box, new.seen_s
        old.blendshapes = new.blendshapes

    def _between(
        self,
        waiting: list[Frame],
        before: list[_Person],
        now: list[_Person],
        from_s: float,
        to_s: float,
    ) -> Iterator[tuple[Frame, list[Track]]]:
        later = {person.id: person for person in now}
        pairs = [(old, later[old.id]) for old in before if old.id in later]
        for frame in waiting:
            self.count.interpolated += 1
            w = (frame.time_s - from_s) / (to_s - from_s) if to_s > from_s else 1.0
            tracks = []
            for old, new in pairs:
                mesh = ((1 - w) * old.mesh + w * new.mesh).astype(np.float32)
                scores = None
                if old.blendshapes is not None and new.blendshapes is not None:
                    scores = ((1 - w) * old.blendshapes + w * new.blendshapes).astype(np.float32)
                tracks.append(Track(old.id, _box(mesh), mesh, scores, "interpolated"))
            yield frame, tracks

    @staticmethod
    def _track(person: _Person) -> Track:
        return Track(person.id, person.box, person.mesh, person.blendshapes, "detected")


class FixedRegion:
    """A face box given by the user, the same in every frame; stands where `FaceTracker` stands.

    Parameters
    ----------
    box
        ``(x, y, width, height)`` in pixels.

    Raises
    ------
    FoveateError
        From `follow`: the box does not overlap the picture by at least 4 x 4 pixels.
    """

    def __init__(self, box: tuple[float, float, float, float]) -> None:
        self.box = box
        self.count = TrackerCount()

    def follow(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[Track]]]:
        """Every frame with the one given track."""
        x, y, width, height = self.box
        for frame in frames:
            inside_x = min(x + width, frame.width) - max(x, 0.0)
            inside_y = min(y + height, frame.height) - max(y, 0.0)
            if inside_x < 4 or inside_y < 4:
                raise FoveateError(
                    f"the region {x:g},{y:g},{width:g},{height:g} lies outside the picture of "
                    f"{frame.width}x{frame.height} pixels; give --roi x,y,w,h inside it"
                )
            self.count.frames += 1
            yield frame, [Track(0, self.box, source="given")]
