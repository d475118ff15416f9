"""Simulated shapes: labels that are exact, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.errors import FoveateError
from foveate.simulate.shapes import KINDS, SIDE, Shapes


def test_boxes_hold_their_shapes_and_nothing_else():
    shapes = Shapes(60, seed=5)
    assert len(shapes) == 60
    kinds = set()
    for index in range(60):
        picture, objects = shapes[index]
        assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, SIDE, SIDE))
        assert 1 <= len(objects) <= 4
        labels, seen = shapes.maps[index].numpy(), np.zeros((SIDE, SIDE), dtype=int)
        for box, kind in zip(objects.boxes.astype(int), objects.labels, strict=True):
            left, top, right, bottom = box
            assert right - left == bottom - top
            assert 10 <= right - left <= 36
            part = labels[top:bottom, left:right]
            assert set(np.unique(part)) <= {0, kind + 1}
            rows, columns = np.nonzero(part)
            assert rows.max() - rows.min() >= bottom - top - 2  # drawn to the box's edges
            assert columns.max() - columns.min() >= right - left - 3
            # Areas: the whole box, pi / 4 of it, half of it.
            share = {"square": 1.0, "disc": np.pi / 4, "triangle": 0.5}[KINDS[kind]]
            assert (part > 0).mean() == pytest.approx(share, abs=0.09)
            seen[top:bottom, left:right] += 1
            kinds.add(int(kind))
        assert seen.max() == 1
        assert not labels[seen == 0].any()
    assert kinds == {0, 1, 2}


def test_objects_can_be_seen():
    shapes = Shapes(30, seed=6)
    for index in range(30):
        picture, labels = shapes.pictures[index].float(), shapes.maps[index]
        for box in shapes.objects(index).boxes.astype(int):
            left, top, right, bottom = box
            part, mask = picture[:, top:bottom, left:right], labels[top:bottom, left:right] > 0
            if (~mask).sum() > 20:
                gap = part[:, mask].mean(1) - part[:, ~mask].mean(1)
                assert float(gap.abs().max()) > 15


def test_pictures_depend_on_seed_and_place_only():
    few, many, other = Shapes(3, 1), Shapes(5, 1), Shapes(3, 2)
    assert torch.equal(few.pictures, many.pictures[:3])
    assert not torch.equal(few.pictures, other.pictures)


def test_label_maps_on_demand_and_limits():
    picture, labels = Shapes(1, maps=True)[0]
    assert labels.dtype == torch.int64
    assert labels.shape == picture.shape[1:]
    with pytest.raises(FoveateError, match="asked for 0"):
        Shapes(0)
