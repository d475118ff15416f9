"""Label maps of a face drawn from 68 landmarks: a cheap stand-in for masks painted by hand.

Any landmark detector or data set of the iBUG 68-point scheme (300-W, Helen, 300-VW) gives such
maps. Points are numbered from 1: 1-17 jaw, 18-22 and 23-27 brows, 28-31 bridge of the nose, 32-36
nostrils, 37-42 and 43-48 eyes, 49-60 outer and 61-68 inner lips. Outlines are natural cubic splines
through the points; later parts lie on top of earlier ones::

    skin           1-17 jaw, closed by the brows 27-23 and 22-18
    nose           hull of 28, 31, 32, 36
    brows          18-22 and 23-27, lines 3 pixels wide
    eyes           37-40, 40-37 and 43-46, 46-43
    outer mouth    49-52, 52-55, 55-49
    inner mouth    61-65, 65-61

Pixels that an outline touches belong to the part. Brows and nose are our addition. Nobody painted
these labels: whoever reports a result on them has to say so.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import scipy.interpolate

from foveate.errors import FoveateError

__all__ = ["FACE_CLASSES", "face_mask"]

FACE_CLASSES = ("background", "skin", "eyes", "outer mouth", "inner mouth", "brows", "nose")

_MAX_SIDE = 1 << 14
_STEP = 0.01  # of the way from one landmark to the next
_FRACTION = 4  # bits of a pixel that OpenCV takes

Line = npt.NDArray[np.float64]


def face_mask(points: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Label map ``(height, width)`` of `FACE_CLASSES`.

    Parameters
    ----------
    points
        ``(68, 2)``: x and y in pixels, (0, 0) the centre of the upper left one; points may lie
        outside the picture.

    Raises
    ------
    FoveateError
        Not 68 finite points, or no size of a picture.
    """
    points = np.asarray(points, np.float64)
    if points.shape != (68, 2) or not np.isfinite(points).all():
        raise FoveateError(f"face_mask expects 68 finite points (68, 2), got {points.shape}")
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise FoveateError(
            f"face_mask draws 1 to {_MAX_SIDE} pixels a side, got {height} x {width}"
        )

    def curve(first: int, last: int, *, close: int | None = None) -> Line:
        """Through the landmarks from first to last, either way, and on to `close`."""
        step = 1 if last >= first else -1
        numbers = [*range(first, last + step, step), *([] if close is None else [close])]
        through = points[np.array(numbers) - 1]
        spline = scipy.interpolate.CubicSpline(np.arange(len(numbers)), through, bc_type="natural")
        return np.asarray(spline(np.arange(0, len(numbers) - 1 + _STEP / 2, _STEP)), np.float64)

    def fixed(*lines: Line) -> npt.NDArray[np.int32]:
        outline: Line = np.concatenate(lines).clip(-2 * _MAX_SIDE, 2 * _MAX_SIDE)
        subpixels: npt.NDArray[np.int32] = np.rint(outline * 2**_FRACTION).astype(np.int32)
        return subpixels

    mask = np.zeros((height, width), np.uint8)

    def fill(name: str, *lines: Line) -> None:
        cv2.fillPoly(mask, [fixed(*lines)], FACE_CLASSES.index(name), shift=_FRACTION)

    fill("skin", curve(1, 17), curve(27, 23), curve(22, 18))
    corners = points[[27, 30, 31, 35]].astype(np.float32)
    fill("nose", cv2.convexHull(corners)[:, 0].astype(np.float64))
    for brow in (curve(18, 22), curve(23, 27)):
        number = FACE_CLASSES.index("brows")
        # OpenCV's thickness 2 draws lines that are 3 pixels wide.
        cv2.polylines(mask, [fixed(brow)], False, number, thickness=2, shift=_FRACTION)
    fill("eyes", curve(37, 40), curve(40, 42, close=37))
    fill("eyes", curve(43, 46), curve(46, 48, close=43))
    fill("outer mouth", curve(49, 52), curve(52, 55), curve(55, 60, close=49))
    fill("inner mouth", curve(61, 65), curve(65, 68, close=61))
    return mask
