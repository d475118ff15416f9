"""The built-in example: a public-domain photograph with small head motion and a simulated pulse.

The photograph is scikit-image's astronaut (Eileen Collins, NASA, public domain). Without
scikit-image a wholly synthetic face takes its place. Either way the pulse is simulated, at
72 bpm, and the file says so in its metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foveate.files import data_dir
from foveate.streams.writer import VideoWriter

__all__ = ["DEMO_BPM", "DEMO_CRF", "demo_video"]

DEMO_BPM = 72.0
_SECONDS = 20.0
_FPS = 30.0
_VERSION = 2
DEMO_CRF = 8  # an ordinary rate factor removes a pulse from a still photograph


def demo_video(progress: Callable[[float, float | None, str], None]) -> Path:
    """Path of the example clip, made on first use (20 s, 512x512, 30 frames/s)."""
    path = data_dir() / "cache" / f"demo-{_VERSION}" / "demo.mp4"
    if path.exists():
        return path
    frames = _frames()
    first = next(frames)
    total = round(_SECONDS * _FPS)
    marked = {"simulated_pulse": "true"}
    with VideoWriter(
        path, first.shape[1], first.shape[0], _FPS, crf=DEMO_CRF, metadata=marked
    ) as writer:
        writer.write(first)
        for image in frames:
            writer.write(image)
            if writer.frames % 15 == 0:
                progress(writer.frames / _FPS, total / _FPS, "")
    return path


def _frames() -> Iterator[npt.NDArray[np.uint8]]:
    try:
        from skimage import data

        from foveate.faces.landmarks import FaceLandmarker, ibug68
        from foveate.nn import model_files

        photo: npt.NDArray[np.uint8] = data.astronaut()
    except ImportError:
        from foveate.simulate.faces import FaceSim

        clip = FaceSim(size=256, fps=_FPS, seed=0).clip(0, _SECONDS, hr=DEMO_BPM)
        yield from clip.frames
        return
    from foveate.simulate.pulse import pulsed_frames

    with FaceLandmarker(model_files.fetch("face_landmarker"), mode="image") as landmarker:
        faces = landmarker.detect(photo)
    yield from pulsed_frames(
        photo,
        DEMO_BPM,
        fps=_FPS,
        seconds=_SECONDS,
        landmarks=ibug68(faces[0].landmarks),
        gain=0.02,
        micro_motion=True,
        sway=3.0,
        seed=0,
    )
