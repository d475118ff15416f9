"""Priors and box arithmetic against the published numbers and plain loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from box_oracles import iou, some_boxes, suppressed
from foveate.errors import FoveateError
from foveate.nn.prior_boxes import (
    SSD300_COCO,
    SSD300_VOC,
    PriorGrid,
    decode,
    encode,
    jaccard,
    nms,
    prior_boxes,
    to_centres,
    to_corners,
)


@pytest.mark.parametrize("grid", [SSD300_VOC, SSD300_COCO])
def test_ssd300_has_8732_priors_as_published(grid):
    assert grid.per_cell == (4, 6, 6, 6, 4, 4)
    assert len(grid) == len(prior_boxes(grid)) == 8732
    assert grid.cells == (38, 19, 10, 5, 3, 1)


def test_first_and_last_priors_by_hand():
    """VOC: 30 and sqrt(30 * 60) at the centre (4, 4) of the first of 38 x 38 cells."""
    priors = prior_boxes(SSD300_VOC).double() * 300
    root = math.sqrt(2)
    large = math.sqrt(30 * 60)
    expected = [[4, 4, 30, 30], [4, 4, large, large], [4, 4, 30 * root, 30 / root],
                [4, 4, 30 / root, 30 * root], [12, 4, 30, 30]]  # fmt: skip
    np.testing.assert_allclose(priors[:5], expected, rtol=1e-6)
    np.testing.assert_allclose(priors[4 * 38], [4, 12, 30, 30], rtol=1e-6)  # the next row
    np.testing.assert_allclose(priors[-4], [150, 150, 264, 264], rtol=1e-6)
    np.testing.assert_allclose(priors[-3, 2:], [math.sqrt(264 * 315)] * 2, rtol=1e-6)
    # 19 x 19, ratio 3, after the squares and ratio 2
    np.testing.assert_allclose(
        priors[4 * 38 * 38 + 4], [8, 8, 60 * math.sqrt(3), 60 / math.sqrt(3)], rtol=1e-6
    )


def test_scales_of_voc_and_coco_are_the_published_ones():
    """VOC: 0.1, then 0.2 to 0.88 evenly; COCO: 0.07, then 0.15 to 0.87 evenly (in whole %)."""
    voc, coco = (np.array(grid.sizes[:6]) / 300 for grid in (SSD300_VOC, SSD300_COCO))
    np.testing.assert_allclose(voc, [0.1, 0.2, 0.37, 0.54, 0.71, 0.88])
    np.testing.assert_allclose(coco, [0.07, 0.15, 0.33, 0.51, 0.69, 0.87])


def test_centres_of_the_coarse_maps_and_the_last_size_by_hand():
    """Distances 64, 100 and 300 pixels on the maps of 5, 3 and 1 cells; the last s' is 315."""
    for grid in (SSD300_VOC, SSD300_COCO):
        priors = prior_boxes(grid).double() * 300
        three = 8732 - 4 - 3 * 3 * 4  # where the priors of 3 x 3 cells begin
        np.testing.assert_allclose(priors[three:-4:4, 0], [50, 150, 250] * 3, rtol=1e-6)
        np.testing.assert_allclose(priors[three:-4:12, 1], [50, 150, 250], rtol=1e-6)
        np.testing.assert_allclose(
            priors[three - 5 * 5 * 6 : three : 30, 1], [32, 96, 160, 224, 288], rtol=1e-6
        )
        last = math.sqrt(grid.sizes[5] * 315)
        np.testing.assert_allclose(priors[-3], [150, 150, last, last], rtol=1e-6)


def test_clipping_keeps_priors_in_the_picture():
    corners = to_corners(prior_boxes(dataclasses.replace(SSD300_VOC, clip=True)))
    assert float(corners.min()) >= -1e-6
    assert float(corners.max()) <= 1 + 1e-6
    free = to_corners(prior_boxes(SSD300_VOC))
    torch.testing.assert_close(corners, free.clamp(0, 1), rtol=0, atol=1e-6)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_jaccard_is_that_of_plain_numbers(seed):
    rng = np.random.default_rng(seed)
    a, b = some_boxes(rng, 5, 8), some_boxes(rng, 4, 8)
    a[0, 2:] = a[0, :2]  # no area
    found = jaccard(torch.from_numpy(a), torch.from_numpy(b))
    expected = [[iou(one, other) for other in b] for one in a]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert jaccard(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_decoding_undoes_encoding(seed):
    rng = np.random.default_rng(seed)
    boxes, priors = (torch.from_numpy(some_boxes(rng, 7)) for _ in range(2))
    priors = to_centres(priors)
    said = encode(boxes, priors)
    torch.testing.assert_close(decode(said, priors), boxes)
    torch.testing.assert_close(decode(said[None], priors)[0], boxes)


def test_encoding_by_hand():
    """A box 0.1 right of a prior 0.5 wide: 0.1 / 0.5 / 0.1 = 2; e times as high: 1 / 0.2 = 5."""
    prior = torch.tensor([[0.4, 0.5, 0.5, 0.2]])
    box = to_corners(torch.tensor([[0.5, 0.5, 0.5, 0.2 * math.e]]))
    torch.testing.assert_close(encode(box, prior), torch.tensor([[2.0, 0.0, 0.0, 5.0]]))


@given(seed=st.integers(0, 10**6), overlap=st.sampled_from([0.0, 0.3, 0.45, 1.0]),
       equal=st.booleans())  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_suppression_is_greedy(seed, overlap, equal):
    rng = np.random.default_rng(seed)
    boxes, scores = some_boxes(rng, 12), rng.uniform(size=12)
    if equal:
        scores = np.round(scores * 3) / 3
    found = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
    assert found.tolist() == suppressed(boxes.tolist(), scores.tolist(), overlap)


def test_suppression_of_nothing():
    assert nms(torch.zeros(0, 4), torch.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"steps": (8.0,)}, "as many steps and ratios and one size more, got 1 steps"),
        ({"cells": ()}, "PriorGrid of 0 maps"),
        ({"sizes": (30, 60, 111, 162, 213, 264, float("nan"))}, "positive"),
        ({"side": 0}, "positive"),
    ],
)
def test_grids_that_make_no_sense(wrong, sentence):
    with pytest.raises(FoveateError, match=sentence):
        dataclasses.replace(SSD300_VOC, **wrong)


def test_a_grid_of_ones_own():
    grid = PriorGrid(100, (2,), (50.0,), (20, 80), ((),))
    np.testing.assert_allclose(
        prior_boxes(grid),
        [[x, y, s, s] for y in (0.25, 0.75) for x in (0.25, 0.75) for s in (0.2, 0.4)],
        rtol=1e-6,
    )
