"""Views against the pixels themselves: an object's white pixels must lie where its box says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets import scene_views as views
from foveate.datasets.pictures import Objects
from foveate.errors import FoveateError


def marked(rng: np.random.Generator, count: int = 1) -> tuple[np.ndarray, Objects]:
    """A black picture with white rectangles, which do not touch."""
    height, width = (int(v) for v in rng.integers(40, 90, 2))
    picture = np.zeros((3, height, width), np.uint8)
    boxes = []
    for k in range(count):
        part = width // count
        left = k * part + int(rng.integers(1, part // 4))
        right = left + int(rng.integers(part // 4, part // 2))
        top = int(rng.integers(0, height - 12))
        bottom = top + int(rng.integers(8, height - top + 1))
        picture[:, top:bottom, left:right] = 255
        boxes.append((left, top, right, bottom))
    return picture, Objects(
        np.array(boxes, np.float32), np.arange(count), np.zeros(count, dtype=bool)
    )


def white(picture: np.ndarray) -> list[float]:
    """Bounding box of what is brighter than half, exclusive ends."""
    rows, columns = np.nonzero(picture[0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_boxes_follow_their_pixels(seed):
    rng = np.random.default_rng(seed)
    picture, objects = marked(rng)
    np.testing.assert_array_equal(white(picture), objects.boxes[0])
    mirrored, moved = views.mirror(picture, objects)
    np.testing.assert_array_equal(white(mirrored), moved.boxes[0])
    again, back = views.mirror(mirrored, moved)
    np.testing.assert_array_equal(again, picture)
    np.testing.assert_array_equal(back.boxes, objects.boxes)
    small, moved = views.zoom_out(picture, objects, rng)
    np.testing.assert_array_equal(white(small), moved.boxes[0])
    assert 1 <= small.shape[1] / picture.shape[1] <= 4.05
    part, moved = views.crop(picture, objects, rng)
    np.testing.assert_array_equal(white(part), moved.boxes[0])
    square, moved = views.squeeze(picture, objects, 200)
    assert square.shape == (3, 200, 200)
    np.testing.assert_allclose(white(square), moved.boxes[0], atol=1.01)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_parts_are_as_published(seed):
    """0.3 to 1 of the sides, ratio 1/2 to 2, objects whose centre is inside, at least one."""
    rng = np.random.default_rng(seed)
    picture, objects = marked(rng, 3)
    picture[0] = np.arange(picture.shape[2], dtype=np.uint8)  # every column and row has a number
    picture[1] = np.arange(picture.shape[1], dtype=np.uint8)[:, None]
    part, kept = views.crop(picture, objects, rng)
    left, top = int(part[0, 0, 0]), int(part[1, 0, 0])
    _, height, width = part.shape
    if part.shape != picture.shape:
        assert height / picture.shape[1] >= 0.29
        assert width / picture.shape[2] >= 0.29
        assert 0.5 <= height / width <= 2
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 - (left, top)
    inside = ((centres > 0) & (centres < (width, height))).all(1)
    assert kept.labels.tolist() == objects.labels[inside].tolist()
    assert len(kept) >= 1
    expected = objects.boxes[inside] - np.array([left, top, left, top])
    expected = np.clip(expected, 0, [width, height, width, height])
    np.testing.assert_array_equal(kept.boxes, expected)


def test_all_kinds_of_parts_occur():
    rng = np.random.default_rng(0)
    picture, objects = marked(rng)
    best = []
    for _ in range(200):
        part, _ = views.crop(picture, objects, rng)
        best.append(part.shape[1] * part.shape[2] / (picture.shape[1] * picture.shape[2]))
    whole = sum(share == 1 for share in best) / len(best)
    assert 0.05 < whole < 0.6
    assert min(best) < 0.3


@given(seed=st.integers(0, 10**6), grey=st.integers(0, 255))
@settings(deadline=None, max_examples=15)
def test_grey_stays_grey_whatever_hue_and_saturation_do(seed, grey):
    picture = np.full((3, 4, 5), grey, np.uint8)
    view = views.distort(picture, np.random.default_rng(seed))
    assert view.shape == picture.shape
    assert view.dtype == np.uint8
    assert (view == view[0, 0, 0]).all()
    low, high = ((grey - 32) * 0.5, (grey + 32) * 1.5)
    assert low - 1 <= int(view[0, 0, 0]) <= high + 1


def test_colours_change_and_come_again_with_their_seed():
    picture = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    views_of = [views.distort(picture, np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    np.testing.assert_array_equal(views_of[0], views_of[1])
    assert any((view != views_of[0]).any() for view in views_of[2:])


@given(seed=st.integers(0, 10**6), side=st.sampled_from([32, 300]))
@settings(deadline=None, max_examples=20)
def test_training_views_are_squares_with_boxes_inside(seed, side):
    rng = np.random.default_rng(seed)
    picture, objects = marked(rng, 2)
    view, kept = views.training_view(picture, objects, side, rng)
    assert view.shape == (3, side, side)
    assert view.dtype == np.uint8
    assert (kept.boxes[:, 2:] > kept.boxes[:, :2]).all()
    assert kept.boxes.min(initial=0) >= 0
    assert kept.boxes.max(initial=0) <= side * 1.0001
    assert set(kept.labels.tolist()) <= {0, 1}


def test_pictures_without_objects_stay_whole():
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    picture = np.zeros((3, 20, 30), np.uint8)
    part, kept = views.crop(picture, nothing, np.random.default_rng(0))
    assert part is picture
    assert len(kept) == 0
    view, kept = views.training_view(picture, nothing, 16, np.random.default_rng(0))
    assert view.shape == (3, 16, 16)
    assert len(kept) == 0


def test_zooming_out_has_a_limit(monkeypatch):
    monkeypatch.setattr(views, "MAX_PIXELS", 1000)
    picture, objects = marked(np.random.default_rng(0))
    canvas, _ = views.zoom_out(picture, objects, np.random.default_rng(0))
    assert canvas.shape == picture.shape


# --- label maps ----------------------------------------------------------------------------


def two_halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Left half 40 and class 1, right half 200 and class 5."""
    labels = torch.ones(30, 40, dtype=torch.int64)
    labels[:, 20:] = 5
    return (labels * 40).to(torch.uint8).expand(3, 30, 40).clone(), labels


def test_label_maps_are_padded_with_void_in_testing():
    picture, labels = two_halves()
    view, truth = views.label_view(picture, labels, 64, None)
    assert torch.equal(view[:, :30, :40], picture)
    assert torch.equal(truth[:30, :40], labels)
    assert not view[:, 30:].any()
    assert bool((truth[30:] == 255).all())
    assert bool((truth[:, 40:] == 255).all())
    with pytest.raises(FoveateError, match="at most 32 a side"):
        views.label_view(picture, labels, 32, None)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_labels_follow_their_pixels_in_training(seed):
    picture, labels = two_halves()
    view, truth = views.label_view(picture, labels, 32, np.random.default_rng(seed))
    assert view.shape == (3, 32, 32)
    assert view.dtype == torch.uint8
    assert set(truth.unique().tolist()) <= {1, 5, 255}
    seen = truth != 255
    assert bool(seen.any())
    # The border is blurred over two pixels at most.
    wrong = ((view[0].long() - 40 * truth).abs() > 1) & seen
    assert int(wrong.sum(1).max()) <= 4
    assert not view[:, ~seen].any()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p, o, r: views.zoom_out(p, o, r, 0.5), "at least 1, got 0.5"),
        (lambda p, o, r: views.squeeze(p, o, 0), "a side of at least 1"),
        (lambda p, o, r: views.training_view(p[0], o, 8, r), r"\(3, H, W\) uint8"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, sentence):
    rng = np.random.default_rng(0)
    with pytest.raises(FoveateError, match=sentence):
        make(*marked(rng), rng)
