"""IoU and trimap against counting by hand, distances by scipy and, where it is, torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.scenes.segmentation_accuracy import SegmentationScore, trimap


def maps(seed: int, shape: tuple[int, ...], classes: int, void: bool = True):
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(0, classes, (2, *shape))
    if void:
        truth[rng.random(shape) < 0.2] = 255
    return truth, said


def test_by_hand():
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 255]])
    said = np.array([[0, 1, 1, 1], [0, 0, 2, 0]])
    result = SegmentationScore(4, width=0).add(truth, said).result()
    assert result.iou[:3].tolist() == [3 / 4, 2 / 4, 0] or math.isnan(result.iou[2])
    assert math.isnan(result.iou[2])  # predicted, but in no true label
    assert result.miou == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert result.accuracy == pytest.approx(5 / 7)
    assert result.pixels == 7
    assert math.isnan(result.trimap_miou)


@given(seed=st.integers(0, 999), classes=st.integers(1, 5), height=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_is_the_formula_over_the_whole_split(seed, classes, height):
    truth, said = maps(seed, (3, height, 7), classes)
    truth[0, 0, 0] = 0
    score = SegmentationScore(classes)
    for t, s in zip(truth, said, strict=True):
        score.add(t, s)
    result, ious = score.result(), []
    for k in range(classes):
        if not (truth == k).any():
            assert math.isnan(result.iou[k])
            continue
        known = truth != 255
        both = ((truth == k) & (said == k)).sum()
        ious.append(both / (((truth == k) | (said == k)) & known).sum())
        assert result.iou[k] == pytest.approx(ious[-1])
    assert result.miou == pytest.approx(np.mean(ious))
    assert np.array_equal(SegmentationScore(classes).add(truth, said).confusion, score.confusion)


@given(
    seed=st.integers(0, 999), width=st.integers(0, 5), height=st.integers(1, 12),
    wide=st.integers(1, 12),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_trimap_is_the_distance_to_another_class(seed, width, height, wide):
    truth, _ = maps(seed, (height, wide), 3)
    band = np.zeros(truth.shape, bool)
    for k in set(truth.flat) - {255}:
        others = (truth != k) & (truth != 255)
        if others.any():
            far = scipy.ndimage.distance_transform_edt(~others)
            band |= (truth == k) & (far <= width)
    np.testing.assert_array_equal(trimap(truth, width), band)


def test_trimap_of_a_straight_boundary_and_of_stacks():
    truth = np.repeat(np.arange(20) >= 10, 4).reshape(20, 4).astype(int)
    assert np.flatnonzero(trimap(truth, 3)[:, 0]).tolist() == [7, 8, 9, 10, 11, 12]
    both = np.stack([truth, np.zeros_like(truth)])
    assert trimap(both)[0].sum() == 24
    assert trimap(both)[1].sum() == 0


def test_trimap_counts_near_pixels_only():
    truth = np.repeat(np.arange(20) >= 10, 4).reshape(20, 4).astype(int)
    said = truth.copy()
    said[9] = 1  # wrong beside the boundary: the same pixels weigh more in the band
    result = SegmentationScore(2).add(truth, said).result()
    assert result.iou.tolist() == pytest.approx([36 / 40, 40 / 44])
    assert result.trimap_iou.tolist() == pytest.approx([8 / 12, 12 / 16])
    assert result.trimap_accuracy == pytest.approx(20 / 24)
    assert result.trimap_pixels == 24
    assert SegmentationScore(2).add(truth, said, trimap(truth)).result().trimap_miou == (
        result.trimap_miou
    )


def test_torchmetrics_agrees():
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    truth, said = maps(0, (4, 20, 20), 5)
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=5, ignore_index=255)
    ours = SegmentationScore(5).add(truth, said).result().miou
    assert float(theirs(torch.from_numpy(said), torch.from_numpy(truth))) == pytest.approx(ours)


def test_bad_maps_are_one_sentence():
    zeros = np.zeros((2, 3), int)
    score = SegmentationScore(2)
    for truth, said, match in (
        (zeros, zeros[:1], "two label maps of one shape"),
        (zeros, zeros + 0.5, "whole numbers"),
        (zeros + 2, zeros, "true labels are 0 to 1 or 255"),
        (zeros, zeros - 1, "predicted labels are 0 to 1"),
    ):
        with pytest.raises(FoveateError, match=match):
            score.add(truth, said)
    with pytest.raises(FoveateError, match="no pixel was counted"):
        score.result()
    with pytest.raises(FoveateError, match="a void that is no class"):
        SegmentationScore(2, void=1)
    with pytest.raises(FoveateError, match="trimap expects"):
        trimap(np.zeros(3, int))
    all_void = SegmentationScore(2).add(zeros + 255, zeros + 1)
    with pytest.raises(FoveateError, match="not all void"):
        all_void.result()
