"""A person in view over time, and the contract of everything that reads a signal off a face.

`Track` is what a tracker says about one face in one frame. An *analyser* is any object with the
three methods of :class:`Analyser`; it never sees more than one frame at a time, so its memory
does not grow with the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from foveate.streams.frame import Frame
from foveate.streams.timeline import Timeline

__all__ = ["Analyser", "Track", "TrackSource"]

TrackSource = Literal["detected", "interpolated", "given"]


@dataclass(frozen=True, slots=True)
class Track:
    """One face in one frame.

    Attributes
    ----------
    id
        Stable number of the person in view, counting from 0.
    box
        ``(x, y, width, height)`` in pixels of the frame, may reach beyond its edges.
    landmarks
        ``(478, 3)`` float32 MediaPipe mesh, x and y in pixels, z in pixels relative to the head's
        centre; None when only a box is known.
    blendshapes
        ``(52,)`` float32 MediaPipe blendshape scores in [0, 1]; None when not computed.
    source
        ``detected`` by the landmarker in this frame, ``interpolated`` between two detections,
        or ``given`` by the user (``--roi``).
    """

    id: int
    box: tuple[float, float, float, float]
    landmarks: npt.NDArray[np.float32] | None = None
    blendshapes: npt.NDArray[np.float32] | None = None
    source: TrackSource = "detected"


@runtime_checkable
class Analyser(Protocol):
    """Reads one family of signals off tracked faces.

    Frames arrive in order; `update` is called once for each face in view. `drain` returns the
    rows that later frames cannot change any more and forgets them (called every few seconds of
    video, so that memory stays bounded); `finish` returns the rest.
    """

    def update(self, frame: Frame, track: Track) -> None:
        """Look at one face in one frame."""
        ...

    def drain(self) -> Timeline:
        """Rows that are final; each is returned once."""
        ...

    def finish(self) -> Timeline:
        """The remaining rows, after the last frame."""
        ...
