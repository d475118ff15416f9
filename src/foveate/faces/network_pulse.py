"""A network in the place of a classic method: windows of face crops become the pulse wave.

`NetworkPulse` is a :class:`~foveate.faces.pulse_analyser.PulseAnalyser` that keeps, beside the
skin colour, the face crop of the last 20 s, and asks an `EREA` network for the waveform of each
window. Windows, heart rate, intervals, refusal and variability are the same as for the classic
methods; the colour goes on to testify against rhythms of light and motion.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from foveate.faces import erea
from foveate.faces.heart_rate import BANDS
from foveate.faces.pulse import Band
from foveate.faces.pulse_analyser import PulseAnalyser
from foveate.faces.skin import mean_skin_rgb
from foveate.faces.track import Track
from foveate.streams.frame import Frame

__all__ = ["NetworkPulse"]

_ENLARGE = 1.2  # square over landmark hull, as for every real face (`erea.face_boxes`)
_MEDIAN_FRAMES = 15  # of the box: one that trembles would write its own rhythm into the crop


class NetworkPulse(PulseAnalyser):
    """Heart rate of every tracked face, by a trained network.

    Parameters
    ----------
    net
        Trained network; its config says crop size and frame rate.
    name
        Of the method, for the results.
    band
        Search band in Hz.

    Notes
    -----
    Memory per person: 20 s of crops, 10 MB at 36 x 36 and 30 Hz. Each second of video costs one
    run of the network over 10 s.
    """

    def __init__(self, net: erea.EREA, name: str = "mar", band: Band = BANDS["default"]) -> None:
        super().__init__("pos", band, fs=net.config.fps)
        self._name = name
        self._net = net.eval()
        self._boxes: dict[int, deque[tuple[float, float, float]]] = {}

    def update(self, frame: Frame, track: Track) -> None:
        """Read skin colour and crop of one face in one frame."""
        rgb = mean_skin_rgb(frame.image, track)
        crop = erea.crop_faces([frame.image], self._box(track), self._net.config.size)
        self.add(track.id, frame.time_s, np.concatenate([rgb, crop.ravel()], dtype=np.float32))

    def _box(self, track: Track) -> npt.NDArray[np.float64]:
        x, y, width, height = track.box
        recent = self._boxes.setdefault(track.id, deque(maxlen=_MEDIAN_FRAMES))
        enlarge = _ENLARGE if track.landmarks is not None else 1.0  # a given box is what it is
        recent.append((x + width / 2, y + height / 2, enlarge * max(width, height)))
        return np.asarray(np.median(np.array(recent), axis=0), np.float64)[None]

    def waveform(self, samples: npt.NDArray[np.float64], fs: float) -> npt.NDArray[np.float64]:
        """Pulse ``(T,)`` out of samples ``(T, 3 + size * size * 3)``; `fs` is the network's."""
        size = self._net.config.size
        crops = samples[:, 3:].astype(np.float32).reshape(1, len(samples), size, size, 3)
        return np.asarray(erea.waveform(self._net, crops).bvp[0], np.float64)
