"""Face masks against geometry that can be worked out by hand, and on real landmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.datasets.face_masks import FACE_CLASSES, face_mask
from foveate.errors import FoveateError

NUMBER = {name: k for k, name in enumerate(FACE_CLASSES)}


def a_face() -> np.ndarray:
    """68 points of a face in 100 x 100 pixels, on circles and lines."""
    points = np.zeros((68, 2))
    angle = np.linspace(np.pi, 0, 17)
    points[:17] = 50 + 40 * np.stack([np.cos(angle), np.sin(angle)], 1)  # lower half circle
    points[17:22] = np.stack([np.linspace(20, 40, 5), np.full(5, 30)], 1)
    points[22:27] = np.stack([np.linspace(60, 80, 5), np.full(5, 30)], 1)
    points[27:31] = np.stack([np.full(4, 50), np.linspace(40, 58, 4)], 1)
    points[31:36] = np.stack([np.linspace(42, 58, 5), np.full(5, 62)], 1)
    ring = np.deg2rad([180, 240, 300, 0, 60, 120])
    for first, centre in ((36, 32), (42, 68)):
        points[first : first + 6] = (centre, 42) + 6 * np.stack([np.cos(ring), np.sin(ring)], 1)
    for first, count, radius in ((48, 12, 12), (60, 8, 5)):
        ring = np.pi + np.arange(count) * 2 * np.pi / count
        points[first : first + count] = (50, 75) + radius * np.stack(
            [np.cos(ring), np.sin(ring)], 1
        )
    return points


def test_parts_are_where_their_points_are():
    mask = face_mask(a_face(), 100, 100)
    assert mask.shape == (100, 100)
    assert mask.dtype == np.uint8
    for name, row, column in (
        ("background", 5, 5), ("background", 95, 5), ("skin", 65, 25), ("skin", 50, 75),
        ("eyes", 42, 32), ("eyes", 42, 68), ("outer mouth", 75, 41), ("inner mouth", 75, 50),
        ("brows", 30, 30), ("brows", 30, 70), ("nose", 58, 50), ("skin", 45, 58),
    ):  # fmt: skip
        assert mask[row, column] == NUMBER[name], name


def test_areas_are_those_of_the_figures():
    """Splines through points of a circle are nearly the circle; brows are 3 px wide.

    Pixels that an outline touches belong to the part, which adds half a pixel to every radius.
    """
    mask = face_mask(a_face(), 100, 100)
    area = np.bincount(mask.ravel(), minlength=7)
    inner, outer = area[NUMBER["inner mouth"]], area[NUMBER["outer mouth"]]
    assert inner == pytest.approx(np.pi * 5.5**2, rel=0.1)
    assert inner + outer == pytest.approx(np.pi * 12.5**2, rel=0.05)
    assert area[NUMBER["eyes"]] == pytest.approx(2 * np.pi * 6.5**2, rel=0.1)
    # triangle 16 wide, 22 high
    assert area[NUMBER["nose"]] == pytest.approx(17 * 23 / 2, rel=0.1)
    assert (mask[:, 30] == NUMBER["brows"]).sum() == 3
    lower = (mask[51:, :] > 0).sum()
    assert lower == pytest.approx(np.pi * 1600 / 2, rel=0.05)


def test_a_shift_moves_the_mask():
    face = a_face()
    one, other = face_mask(face, 100, 120), face_mask(face + np.array([7, 0]), 100, 120)
    np.testing.assert_array_equal(one[:, :113], other[:, 7:])
    far = face_mask(face + 1e9, 50, 50)  # a face that is not in the picture
    assert not far.any()


def test_bad_points_are_one_sentence():
    for points in (np.zeros((67, 2)), np.full((68, 2), np.nan)):
        with pytest.raises(FoveateError, match="68 finite points"):
            face_mask(points, 10, 10)
    with pytest.raises(FoveateError, match="0 x 10"):
        face_mask(a_face(), 0, 10)


def test_real_landmarks_give_every_class(shared_data: Path):
    path = shared_data / "faces" / "helen68_96.npz"
    if not path.is_file():
        pytest.skip(f"Helen is not at {path}")
    with np.load(path) as held:
        points = held["lm_test"][:40]
    masks = np.stack([face_mask(p, 96, 96) for p in points])
    share = np.bincount(masks.ravel(), minlength=7) / masks.size
    assert 0.2 < share[NUMBER["skin"]] < 0.5
    assert (share[2:] > 0.001).all()
    # an eye's middle is eye: mean of the six points of each, unless it is shut
    for eye in (slice(36, 42), slice(42, 48)):
        middle = np.rint(points[:, eye].mean(1)).astype(int)
        hit = masks[np.arange(40), middle[:, 1], middle[:, 0]] == NUMBER["eyes"]
        assert hit.mean() > 0.9
