"""The mean colour of a person's skin in one frame: all that the classic pulse methods see.

With landmarks, skin is the face oval without eyes, brows and mouth, drawn from the MediaPipe
478-point mesh; with a detected box alone, the ellipse inscribed in it (its corners are hair and
background); with a box given by the user, the whole box. Averaging thousands of pixels is what
lifts a wave of a fraction of one grey level out of the camera's noise; more than about 30 000
pixels add nothing, so large faces are read with a stride.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from foveate.faces.track import Track

__all__ = ["FACE_OVAL", "HOLES", "REGIONS", "mean_skin_rgb", "regions"]

# Polygons over the MediaPipe mesh, in order along the contour; "left" is the person's left.
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
_RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
_LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
_RIGHT_BROW = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
_LEFT_BROW = (276, 283, 282, 295, 285, 336, 296, 334, 293, 300)
_MOUTH = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375),
    *(291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
)
HOLES = (_RIGHT_EYE, _LEFT_EYE, _RIGHT_BROW, _LEFT_BROW, _MOUTH)
REGIONS: Mapping[str, tuple[int, ...]] = {
    "forehead": (103, 67, 109, 10, 338, 297, 332, 334, 296, 336, 9, 107, 66, 105),
    "right_cheek": (117, 118, 119, 100, 142, 203, 206, 216, 207, 187, 123),
    "left_cheek": (346, 347, 348, 329, 371, 423, 426, 436, 427, 411, 352),
}
_MESH_POINTS = 468  # the irises (468-477) are not needed
_FEWEST_PIXELS = 16
_SUBPIXEL_BITS = 4

_OVAL_INDEX = np.array(FACE_OVAL)
_HOLE_INDICES = tuple(np.array(hole) for hole in HOLES)


def mean_skin_rgb(
    image: npt.NDArray[np.uint8], track: Track, max_side: int = 256
) -> npt.NDArray[np.float64]:
    """Mean colour of the skin of `track`.

    Parameters
    ----------
    image
        ``(H, W, 3)`` uint8 RGB.
    track
        The face; its box or mesh may reach beyond the picture: only what is inside counts.
    max_side
        Longest side of the crop that is read; larger faces are sampled every 2nd, 3rd ... pixel.

    Returns
    -------
    ``(3,)`` float64 in 0-255, order R, G, B; NaN where fewer than 16 sampled pixels are skin
    (face outside the picture, empty box, landmarks that are not numbers). Never raises for these.
    """
    nothing = np.full(3, np.nan)
    points = track.landmarks
    if points is not None and len(points) < _MESH_POINTS:
        points = None
    outline: npt.NDArray[np.float64] | None = None
    if points is None:
        x, y, width, height = (float(v) for v in track.box)
        corners = np.array([[x, y], [x + width, y + height]])
    else:
        outline = points[_OVAL_INDEX, :2].astype(np.float64)
        corners = np.stack([outline.min(axis=0), outline.max(axis=0)])
    if not np.isfinite(corners).all():
        return nothing
    bounds = (image.shape[1], image.shape[0])
    x0, y0 = (int(v) for v in np.clip(np.floor(corners[0]), 0, bounds))
    x1, y1 = (int(v) for v in np.clip(np.ceil(corners[1]), 0, bounds))
    if x1 <= x0 or y1 <= y0:
        return nothing
    stride = -(-max(x1 - x0, y1 - y0) // max_side)
    crop = np.ascontiguousarray(image[y0:y1:stride, x0:x1:stride])
    mask: npt.NDArray[np.uint8] | None
    origin = np.array([x0, y0], dtype=np.float64)
    if outline is not None and points is not None:
        mask = np.zeros(crop.shape[:2], dtype=np.uint8)
        _fill(mask, outline, origin, stride, 255)
        for hole in _HOLE_INDICES:
            _fill(mask, points[hole, :2].astype(np.float64), origin, stride, 0)
    elif track.source != "given":
        mask = np.zeros(crop.shape[:2], dtype=np.uint8)
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        ellipse = corners.mean(axis=0) + circle * (corners[1] - corners[0]) / 2
        _fill(mask, ellipse, origin, stride, 255)
    else:
        mask = None
    pixels = crop.shape[0] * crop.shape[1] if mask is None else cv2.countNonZero(mask)
    if pixels < _FEWEST_PIXELS:
        return nothing
    return np.array(cv2.mean(crop, mask)[:3])


def regions(track: Track) -> dict[str, npt.NDArray[np.float32]]:
    """Outlines of forehead and cheeks, ``(K, 2)`` float32 pixels of the frame each.

    Empty when the track has no landmarks.
    """
    points = track.landmarks
    if points is None or len(points) < _MESH_POINTS:
        return {}
    return {
        name: np.asarray(points[list(indices), :2], dtype=np.float32)
        for name, indices in REGIONS.items()
    }


def _fill(
    mask: npt.NDArray[np.uint8],
    polygon: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    stride: int,
    value: int,
) -> None:
    """Fill `polygon` (pixels of the frame) into `mask`, which starts at `origin`."""
    if not np.isfinite(polygon).all():
        return
    local = (polygon - 0.5 - origin) / stride  # OpenCV counts from the middle of a pixel
    # Far-away points would overflow OpenCV's fixed point; inside the mask nothing changes.
    far = 8.0 * max(mask.shape)
    fixed = np.round(np.clip(local, -far, far) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, shift=_SUBPIXEL_BITS)
