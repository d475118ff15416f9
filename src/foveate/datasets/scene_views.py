"""Photographs as detectors and segmentation nets see them: varied in training, squared in testing.

The variations of SSD (Liu et al., ECCV 2016, sections 2.2 and 3.6): every time a picture is seen,
its colours are distorted, half the time it shrinks on a grey canvas of up to four times its side
("zoom out", which makes small objects), a part of it is cut out, half the time it is mirrored, and
the result is squeezed into a square, whatever its shape. The part is one of

- the whole picture,
- a random part whose largest jaccard index with an object is at least 0.1, 0.3, 0.5, 0.7 or 0.9,
- any random part,

with sides from 0.3 to 1 of the picture's (the text says 0.1, the authors' configuration 0.3: R) and
an aspect ratio from 1/2 to 2. Objects whose centre is outside are dropped, the others cut. Amounts
of the colours are those of the authors' configuration (R).

:func:`label_view` is for label maps. Everything takes a ``numpy.random.Generator``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foveate.datasets.detection import overlaps
from foveate.datasets.pictures import MAX_PIXELS, Objects, Picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["crop", "distort", "label_view", "mirror", "squeeze", "training_view", "zoom_out"]

GREY = (123, 117, 104)  # mean colour of ImageNet
LEAST_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
TRIES = 50


def _kept(objects: Objects, boxes: npt.NDArray[np.float32], keep: npt.NDArray[np.bool_]) -> Objects:
    return Objects(
        boxes[keep].astype(np.float32).reshape(-1, 4), objects.labels[keep], objects.ignore[keep]
    )


def distort(picture: Picture, generator: np.random.Generator) -> Picture:
    """Brightness by +-32, contrast and saturation by 0.5 to 1.5, hue by +-18 degrees.

    Each with a chance of one half; contrast comes first or last. ``(3, H, W)`` uint8, RGB.
    """
    import cv2

    def half() -> bool:
        return bool(generator.random() < 0.5)

    image = picture.transpose(1, 2, 0).astype(np.float32)
    if half():
        image += np.float32(generator.uniform(-32, 32))
    contrast_first = half()
    if contrast_first and half():
        image *= np.float32(generator.uniform(0.5, 1.5))
    # Hue and saturation are defined for colours that exist.
    hsv = cv2.cvtColor(np.clip(image, 0, 255) / np.float32(255), cv2.COLOR_RGB2HSV)
    if half():
        hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(generator.uniform(0.5, 1.5)), 0, 1)
    if half():
        hsv[..., 0] = (hsv[..., 0] + np.float32(generator.uniform(-18, 18))) % 360
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)
    if not contrast_first and half():
        image *= np.float32(generator.uniform(0.5, 1.5))
    rounded = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(2, 0, 1))


def zoom_out(
    picture: Picture, objects: Objects, generator: np.random.Generator, largest: float = 4.0
) -> tuple[Picture, Objects]:
    """The picture at a random place of a grey canvas of 1 to `largest` times its sides."""
    if largest < 1:
        raise FoveateError(f"zoom_out enlarges: expected `largest` of at least 1, got {largest}")
    _, height, width = picture.shape
    limit = math.sqrt(MAX_PIXELS / (height * width))  # of memory
    ratio = generator.uniform(1, max(1.0, min(largest, limit)))
    tall, wide = round(height * ratio), round(width * ratio)
    top, left = (int(generator.integers(room + 1)) for room in (tall - height, wide - width))
    canvas = np.empty((3, tall, wide), np.uint8)
    canvas[:] = np.array(GREY, np.uint8)[:, None, None]
    canvas[:, top : top + height, left : left + width] = picture
    boxes = objects.boxes + np.array([left, top, left, top], np.float32)
    return canvas, Objects(boxes, objects.labels, objects.ignore)


def crop(
    picture: Picture, objects: Objects, generator: np.random.Generator
) -> tuple[Picture, Objects]:
    """A part with at least one object, or the whole picture where no part fits."""
    _, height, width = picture.shape
    while len(objects):
        choice = int(generator.integers(len(LEAST_OVERLAPS) + 2))
        if choice == 0:
            break
        least = (*LEAST_OVERLAPS, 0.0)[choice - 1]
        for _ in range(TRIES):
            tall, wide = (
                max(1, round(side * generator.uniform(0.3, 1))) for side in (height, width)
            )
            if not 0.5 <= tall / wide <= 2:
                continue
            top, left = (int(generator.integers(r + 1)) for r in (height - tall, width - wide))
            part = np.array([left, top, left + wide, top + tall], np.float32)
            if overlaps(part[None], objects.boxes).max() < least:
                continue
            centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2
            inside = np.asarray(((centres > part[:2]) & (centres < part[2:])).all(1), np.bool_)
            if inside.any():
                boxes = np.clip(objects.boxes, np.tile(part[:2], 2), np.tile(part[2:], 2))
                view = picture[:, top : top + tall, left : left + wide]
                return view, _kept(objects, boxes - np.tile(part[:2], 2), inside)
    return picture, objects


def mirror(picture: Picture, objects: Objects) -> tuple[Picture, Objects]:
    """Left for right."""
    boxes = objects.boxes.copy()
    boxes[:, [0, 2]] = picture.shape[2] - objects.boxes[:, [2, 0]]
    return np.ascontiguousarray(picture[:, :, ::-1]), Objects(boxes, objects.labels, objects.ignore)


def squeeze(picture: Picture, objects: Objects, side: int) -> tuple[Picture, Objects]:
    """Everything in a square of `side` pixels, boxes too; the shape is not kept."""
    import cv2

    if side < 1:
        raise FoveateError(f"squeeze expects a side of at least 1 pixel, got {side}")
    _, height, width = picture.shape
    small = side < min(height, width)
    image = cv2.resize(
        np.ascontiguousarray(picture.transpose(1, 2, 0)),
        (side, side),
        interpolation=cv2.INTER_AREA if small else cv2.INTER_LINEAR,
    )
    scale = np.array([side / width, side / height] * 2, np.float32)
    moved = Objects(objects.boxes * scale, objects.labels, objects.ignore)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), moved


def training_view(
    picture: Picture, objects: Objects, side: int, generator: np.random.Generator
) -> tuple[Picture, Objects]:
    """All of the above in SSD's order.

    Parameters
    ----------
    picture
        ``(3, H, W)`` uint8, RGB.
    objects
        Boxes in pixels.
    side
        Of the result.
    generator
        All that is random.

    Returns
    -------
    ndarray, Objects
        ``(3, side, side)`` uint8 and what is left of the objects, with areas above 0.
    """
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != np.uint8:
        raise FoveateError(
            f"training_view expects a picture (3, H, W) uint8, got {picture.dtype} {picture.shape}"
        )
    picture = distort(picture, generator)
    if generator.random() < 0.5:
        picture, objects = zoom_out(picture, objects, generator)
    picture, objects = crop(picture, objects, generator)
    if generator.random() < 0.5:
        picture, objects = mirror(picture, objects)
    picture, objects = squeeze(picture, objects, side)
    area = np.asarray((objects.boxes[:, 2:] > objects.boxes[:, :2]).all(1), np.bool_)
    return picture, _kept(objects, objects.boxes, area)


def label_view(
    picture: Tensor, labels: Tensor, side: int, draw: np.random.Generator | None, void: int = 255
) -> tuple[Tensor, Tensor]:
    """A square of a photograph and of its label map, for segmentation nets.

    In training: scaled by 0.5 to 2, mirrored half the time, a random part cut out (D, the habit of
    the field). In testing: the whole picture. What is missing to a square is padded, right and
    below, with black and `void`.

    Parameters
    ----------
    picture, labels
        ``(3, H, W)`` uint8 and ``(H, W)`` int64.
    side
        Of the result; in testing no picture may be larger.
    draw
        All that is random; None for testing.
    """
    import torch
    import torch.nn.functional as F

    corner = (0, 0)
    if draw is not None:
        scale = draw.uniform(0.5, 2)
        size = [max(1, round(length * scale)) for length in picture.shape[1:]]
        picture = F.interpolate(
            picture[None].float(), size, mode="bilinear", antialias=True, align_corners=False
        )[0]
        picture = picture.round().clamp(0, 255).to(torch.uint8)
        labels = F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].long()
        if draw.random() < 0.5:
            picture, labels = picture.flip(-1), labels.flip(-1)
        room = [max(0, length - side) for length in size]
        corner = (int(draw.integers(room[0] + 1)), int(draw.integers(room[1] + 1)))
    elif max(picture.shape[1:]) > side:
        raise FoveateError(
            f"a test picture has {tuple(picture.shape[1:])} pixels where at most {side} a side "
            "were expected; take a larger side"
        )
    top, left = corner
    picture = picture[:, top : top + side, left : left + side]
    labels = labels[top : top + side, left : left + side]
    below, right = side - picture.shape[1], side - picture.shape[2]
    return F.pad(picture, (0, right, 0, below)), F.pad(labels, (0, right, 0, below), value=void)
