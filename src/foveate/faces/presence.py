"""Who is in view when, and where in the picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from foveate.faces.track import Track
from foveate.streams.frame import Frame
from foveate.streams.timeline import Timeline

__all__ = ["Presence", "Sighting"]


_SIDES = ("x", "y", "width", "height")


@dataclass
class Sighting:
    """When one person was in view: first and last moment and the total, in seconds."""

    first_s: float
    last_s: float
    visible_s: float = 0.0
    frames: int = 0


@dataclass
class _Rows:
    time_s: list[float] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)


class Presence:
    """Analyser: ``face.visible`` (1 in every frame with the person) and the face box in pixels.

    Signals: ``face.visible``, ``face.x_px``, ``face.y_px``, ``face.width_px``, ``face.height_px``.

    Parameters
    ----------
    frame_s
        Nominal time between frames: what a single frame counts for. Frames of a person further
        apart than 0.5 s and 2.5 frames do not count as time in view.
    """

    def __init__(self, frame_s: float = 1 / 30) -> None:
        self.frame_s = frame_s
        self.max_gap_s = max(0.5, 2.5 * frame_s)
        self.sightings: dict[int, Sighting] = {}
        self._rows: dict[int, _Rows] = {}

    def update(self, frame: Frame, track: Track) -> None:
        """Note that `track` is in view."""
        seen = self.sightings.setdefault(
            track.id, Sighting(frame.time_s, frame.time_s, self.frame_s)
        )
        gap = frame.time_s - seen.last_s
        if gap <= self.max_gap_s:
            seen.visible_s += gap
        seen.last_s = frame.time_s
        seen.frames += 1
        rows = self._rows.setdefault(track.id, _Rows())
        rows.time_s.append(frame.time_s)
        rows.boxes.append(track.box)

    def drain(self) -> Timeline:
        """All rows so far: presence is final at once."""
        parts = []
        for track, rows in self._rows.items():
            parts.append(Timeline.of("face.visible", track, rows.time_s, [1.0] * len(rows.time_s)))
            for name, column in zip(_SIDES, zip(*rows.boxes, strict=True), strict=True):
                parts.append(Timeline.of(f"face.{name}_px", track, rows.time_s, column))
        self._rows.clear()
        return Timeline.concat(parts)

    def finish(self) -> Timeline:
        """The rest."""
        return self.drain()
