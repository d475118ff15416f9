"""MediaPipe Face Landmarker as foveate uses it: 478 points in pixels, and the classic 68 of them.

The landmarker gives a dense mesh of 478 vertices (468 of the face, 10 of the irises) and, when
asked, 52 blendshape scores. The iBUG 68-point scheme of the literature (300-W) is read off the
mesh by an index table. The table was found by us: for each of the 68 points the vertex with the
smallest median distance to the annotation on HELEN training crops, made left-right symmetric;
on the 330 HELEN test crops the mean error is 4.5 % of the outer eye distance (most of it along
the jaw, where annotators slide freely).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["IBUG68", "DetectedFace", "FaceLandmarker", "Landmarker", "ibug68"]

IBUG68: tuple[int, ...] = (
    # jaw, from the subject's right ear (left in the picture) over the chin
    *(34, 227, 177, 215, 172, 136, 149, 148, 152, 377, 378, 365, 397, 435, 401, 447, 264),
    *(70, 63, 105, 66, 107),
    *(336, 296, 334, 293, 300),
    *(168, 197, 5, 4),
    *(98, 97, 2, 326, 327),
    *(33, 160, 158, 133, 153, 144),
    *(362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
"""Mesh vertex of each of the 68 iBUG points, in iBUG order."""

_LONGEST_SIDE = 960  # larger pictures are reduced: the detector itself works on a few hundred px


@dataclass(frozen=True, slots=True)
class DetectedFace:
    """One face of one picture: ``(478, 3)`` float32 landmarks in pixels, blendshapes or None."""

    landmarks: npt.NDArray[np.float32]
    blendshapes: npt.NDArray[np.float32] | None = None


class Landmarker(Protocol):
    """Finds faces; what `FaceTracker` needs of MediaPipe (or of a stand-in)."""

    def detect(self, image: npt.NDArray[np.uint8], time_s: float) -> list[DetectedFace]:
        """Faces in an RGB picture ``(H, W, 3)``; calls come in order of time."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def ibug68(landmarks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The 68 iBUG points ``(68, 2)`` in pixels out of a mesh ``(478, 3)``.

    Raises
    ------
    FoveateError
        The mesh does not have 468 or 478 points.
    """
    if landmarks.ndim != 2 or landmarks.shape[0] < 468 or landmarks.shape[1] < 2:
        raise FoveateError(f"landmarks have shape {landmarks.shape}, expected a mesh of (478, 3)")
    return np.ascontiguousarray(landmarks[list(IBUG68), :2])


_quiet_lock = threading.Lock()


@contextlib.contextmanager
def _quiet_native_log() -> Iterator[None]:
    """Keep the start-up chatter of MediaPipe's C++ logger off the user's terminal.

    It writes to file descriptor 2 before any log level can be set, so the descriptor itself is
    pointed elsewhere for the moment of loading.
    """
    with _quiet_lock:
        sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # no stderr at all: nothing to silence
            yield
            return
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(sink)


class FaceLandmarker:
    """MediaPipe's Face Landmarker (tasks API).

    Parameters
    ----------
    model
        Path of ``face_landmarker.task`` (see ``foveate models``).
    max_people
        The most faces looked for in a picture.
    blendshapes
        Whether the 52 expression scores are computed as well.
    mode
        ``video`` follows faces from call to call (times must rise), ``image`` looks at each
        picture afresh.

    Raises
    ------
    FoveateError
        mediapipe is not installed or cannot load, or the model file is not usable.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        max_people: int = 4,
        blendshapes: bool = False,
        mode: Literal["video", "image"] = "video",
    ) -> None:
        try:
            with _quiet_native_log():
                import mediapipe
                from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise FoveateError(
                f"faces cannot be found because mediapipe does not load ({error}); install it "
                "with `pip install 'foveate[faces]'`, or give the face yourself with --roi x,y,w,h"
            ) from error
        self._mp = mediapipe
        self._video = mode == "video"
        self._last_ms = -1
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model)),
            running_mode=vision.RunningMode.VIDEO if self._video else vision.RunningMode.IMAGE,
            num_faces=max_people,
            output_face_blendshapes=blendshapes,
        )
        try:
            with _quiet_native_log():
                self._landmarker: Any = vision.FaceLandmarker.create_from_options(options)
                # The first call loads more of the model and logs again.
                self._run(np.zeros((64, 64, 3), np.uint8), 0.0)
        except OSError as error:
            raise FoveateError(
                f"mediapipe cannot load its native library ({error}); on Debian and Ubuntu run "
                "`apt-get install libgles2 libegl1`, or give the face yourself with --roi x,y,w,h"
            ) from error
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            raise FoveateError(
                f"{model} is not a usable face landmarker model ({str(error).splitlines()[0]}); "
                "run `foveate models fetch face_landmarker --force`"
            ) from error

    def _run(self, image: npt.NDArray[np.uint8], time_s: float) -> Any:
        picture = self._mp.Image(image_format=self._mp.ImageFormat.SRGB, data=image)
        if not self._video:
            return self._landmarker.detect(picture)
        self._last_ms = max(self._last_ms + 1, round(time_s * 1000))
        return self._landmarker.detect_for_video(picture, self._last_ms)

    def detect(self, image: npt.NDArray[np.uint8], time_s: float = 0.0) -> list[DetectedFace]:
        """Faces of an RGB picture ``(H, W, 3)`` uint8; landmarks in its own pixels."""
        height, width = image.shape[:2]
        small = image
        if max(height, width) > _LONGEST_SIDE:
            import cv2

            scale = _LONGEST_SIDE / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        answer = self._run(np.ascontiguousarray(small), time_s)
        stretch = np.array([width, height, width], dtype=np.float32)
        faces = []
        for number, points in enumerate(answer.face_landmarks):
            mesh = np.array([(p.x, p.y, p.z) for p in points], dtype=np.float32) * stretch
            scores = None
            if answer.face_blendshapes:
                scores = np.array([c.score for c in answer.face_blendshapes[number]], np.float32)
            faces.append(DetectedFace(mesh, scores))
        return faces

    def close(self) -> None:
        """Free the native landmarker; without it the interpreter complains at exit."""
        if self._landmarker is not None:
            self._landmarker.close()
            self._landmarker = None

    def __enter__(self) -> FaceLandmarker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
