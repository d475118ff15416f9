"""Average precision against plain loops, worked examples and the official tool."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_oracles import iou, some_boxes
from foveate.datasets.detection import (
    COCO_THRESHOLDS,
    Detections,
    average_precision,
    coco_precision,
    overlaps,
    voc_precision,
)
from foveate.datasets.pictures import Objects
from foveate.errors import FoveateError


def a_scene(seed: int, pictures: int = 4, classes: int = 3, ignored: float = 0.25):
    """Objects, and detections that are partly near them; scores without ties."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(pictures):
        count, extra = int(rng.integers(0, 5)), int(rng.integers(0, 6))
        boxes = 100 * some_boxes(rng, count)
        labels = rng.integers(0, classes, count)
        truth.append(Objects(boxes.astype(np.float32), labels, rng.random(count) < ignored))
        repeat = rng.integers(0, 3, count)
        near = np.repeat(truth[-1].boxes, repeat, axis=0).astype(np.float64)
        near += rng.normal(0, 4, near.shape)
        other = 100 * some_boxes(rng, extra)
        kinds = np.concatenate([np.repeat(labels, repeat), rng.integers(0, classes, extra)])
        everything = np.concatenate([near, other])
        everything[:, 2:] = np.maximum(everything[:, 2:], everything[:, :2] + 1)
        found.append(Detections(everything, kinds, rng.random(len(kinds))))
    return found, truth


def area_by_hand(states: list[bool], objects: int) -> float:
    """Each object found adds 1 / objects times the best precision from there on."""
    total = 0.0
    for place, state in enumerate(states):
        if state:
            best = max(sum(states[: k + 1]) / (k + 1) for k in range(place, len(states)))
            total += best / objects
    return total


def points_by_hand(states: list[bool], objects: int, steps: int) -> float:
    """Mean over recalls k / steps of the best precision at that recall or beyond."""
    total = 0.0
    for k in range(steps + 1):
        reached = [
            sum(states[: n + 1]) / (n + 1)
            for n in range(len(states))
            if sum(states[: n + 1]) * steps >= k * objects
        ]
        total += max(reached, default=0.0)
    return total / (steps + 1)


def voc_by_hand(found, truth, label: int, threshold: float, ap) -> float:
    """VOC's loop: the object of largest overlap decides."""
    ranked = sorted(
        ((float(d.scores[k]), p, k) for p, d in enumerate(found) for k in range(len(d))
         if d.labels[k] == label), reverse=True
    )  # fmt: skip
    taken, states = set(), []
    objects = sum(int(((t.labels == label) & ~t.ignore).sum()) for t in truth)
    for _, p, k in ranked:
        pairs = [
            (iou(found[p].boxes[k], truth[p].boxes[j]), j)
            for j in range(len(truth[p]))
            if truth[p].labels[j] == label
        ]
        best, j = max(pairs, default=(0.0, -1))
        if best >= threshold and truth[p].ignore[j]:
            continue
        states.append(best >= threshold and (p, j) not in taken)
        taken.add((p, j)) if states[-1] else None
    return ap(states, objects) if objects else math.nan


def coco_by_hand(found, truth, label: int, threshold: float) -> float:
    """COCO's loop: the best object that is free, crowds last."""
    states = []
    objects = sum(int(((t.labels == label) & ~t.ignore).sum()) for t in truth)
    for d, t in zip(found, truth, strict=True):
        taken = set()
        order = sorted((k for k in range(len(d)) if d.labels[k] == label),
                       key=lambda k: -d.scores[k])  # fmt: skip
        for k in order[:100]:
            free, crowds = [], []
            for j in range(len(t)):
                if t.labels[j] != label:
                    continue
                if t.ignore[j]:
                    a, b = d.boxes[k], t.boxes[j]
                    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
                    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
                    crowds.append(width * height / ((a[2] - a[0]) * (a[3] - a[1])))
                elif j not in taken:
                    free.append((iou(d.boxes[k], t.boxes[j]), j))
            best, j = max(free, default=(0.0, -1))
            if best >= threshold:
                taken.add(j)
                states.append((float(d.scores[k]), True))
            elif max(crowds, default=0.0) < threshold:
                states.append((float(d.scores[k]), False))
    ranked = [state for _, state in sorted(states, reverse=True)]
    return points_by_hand(ranked, objects, 100) if objects else math.nan


# --- average precision ---------------------------------------------------------------------


def test_average_precision_of_a_worked_example():
    """Right, wrong, right of four objects: precisions 1, 1/2, 2/3 at recalls 1/4, 1/4, 1/2."""
    right = np.array([True, False, True])
    assert average_precision(right, 4) == pytest.approx(1 / 4 + 2 / 3 / 4)
    # 11 points: 1 at 0, 0.1, 0.2; 2/3 at 0.3, 0.4, 0.5.
    assert average_precision(right, 4, "11-point") == pytest.approx((3 + 3 * 2 / 3) / 11)
    # 101 points: 0 to 0.25 are 26, 0.26 to 0.5 are 25.
    assert average_precision(right, 4, "101-point") == pytest.approx((26 + 25 * 2 / 3) / 101)


@given(right=st.lists(st.booleans(), max_size=30), missed=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_three_averages_are_those_of_plain_loops(right, missed):
    objects = sum(right) + missed
    array = np.array(right, dtype=bool)
    if not objects:
        assert math.isnan(average_precision(array, 0))
        return
    assert average_precision(array, objects) == pytest.approx(area_by_hand(right, objects))
    for name, steps in (("11-point", 10), ("101-point", 100)):
        expected = points_by_hand(right, objects, steps)
        assert average_precision(array, objects, name) == pytest.approx(expected)


def test_perfect_and_empty_answers():
    found, truth = a_scene(3, ignored=0)
    perfect = [Detections(t.boxes, t.labels, np.ones(len(t))) for t in truth]
    nothing = [Detections(t.boxes[:0], t.labels[:0], np.ones(0)) for t in truth]
    assert np.nanmean(voc_precision(perfect, truth, 3)) == 1
    assert np.nanmean(coco_precision(perfect, truth, 3)) == 1
    assert np.nanmean(voc_precision(nothing, truth, 3)) == 0
    assert np.nanmean(coco_precision(nothing, truth, 3)) == 0
    assert math.isnan(voc_precision(found, truth, 4)[3])  # no such object: left out of the mean


# --- benchmarks ----------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.3, 0.5, 0.75]))
@settings(deadline=None, max_examples=40)
def test_voc_is_that_of_plain_loops(seed, threshold):
    found, truth = a_scene(seed)
    area = voc_precision(found, truth, 3, threshold)
    points = voc_precision(found, truth, 3, threshold, "11-point")
    for label in range(3):
        expected = voc_by_hand(found, truth, label, threshold, area_by_hand)
        assert area[label] == pytest.approx(expected, nan_ok=True)
        expected = voc_by_hand(
            found, truth, label, threshold, lambda s, n: points_by_hand(s, n, 10)
        )
        assert points[label] == pytest.approx(expected, nan_ok=True)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_coco_is_that_of_plain_loops(seed):
    found, truth = a_scene(seed)
    table = coco_precision(found, truth, 3)
    assert table.shape == (10, 3)
    for row in (0, 5, 9):
        for label in range(3):
            expected = coco_by_hand(found, truth, label, COCO_THRESHOLDS[row])
            assert table[row, label] == pytest.approx(expected, nan_ok=True)


def test_difficult_objects_are_neither_hits_nor_misses():
    box = np.array([[0, 0, 10, 10]], np.float32)
    hard = [Objects(box, np.array([0]), np.array([True]))]
    easy = [Objects(box, np.array([0]), np.array([False]))]
    twice = [Detections(np.repeat(box, 2, 0), np.array([0, 0]), np.array([0.9, 0.8]))]
    assert math.isnan(voc_precision(twice, hard, 1)[0])
    assert voc_precision(twice, easy, 1)[0] == 1  # the second is wrong, and comes last
    both = voc_precision(twice * 2, hard + easy, 1)
    assert both[0] == 1


def test_a_free_object_goes_before_a_crowd_that_covers_more():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 30, 30]], np.float32)
    truth = [Objects(boxes, np.array([0, 0]), np.array([False, True]))]
    near = np.repeat(np.array([[0, 0, 10, 9]], np.float32), 2, 0)
    found = [Detections(near, np.array([0, 0]), np.array([0.9, 0.8]))]
    assert coco_precision(found, truth, 1, [0.5])[0, 0] == 1  # the second is the crowd's
    far = [Detections(near + 20, np.array([0, 0]), np.array([0.9, 0.8]))]
    assert coco_precision(far, truth, 1, [0.5])[0, 0] == 0


def test_a_second_detection_of_an_object_is_wrong_by_voc_and_takes_the_next_by_coco():
    near = np.array([[0, 0, 10, 10], [0, 2, 10, 12]], np.float32)
    truth = [Objects(near, np.array([0, 0]), np.zeros(2, bool))]
    found = [Detections(np.repeat(near[:1], 2, 0), np.array([0, 0]), np.array([0.9, 0.8]))]
    assert voc_precision(found, truth, 1)[0] == pytest.approx(0.5)
    assert coco_precision(found, truth, 1, [0.5])[0, 0] == 1


def test_coco_counts_a_hundred_detections_of_a_picture():
    box = np.array([[0, 0, 10, 10]], np.float32)
    far = np.repeat(np.array([[50, 50, 60, 60]], np.float32), 100, 0)
    truth = [Objects(box, np.array([0]), np.zeros(1, bool))]
    scores = np.linspace(0.9, 0.1, 101)
    late = [Detections(np.concatenate([far, box]), np.zeros(101, int), scores)]
    assert coco_precision(late, truth, 1, [0.5])[0, 0] == 0
    assert voc_precision(late, truth, 1)[0] == pytest.approx(1 / 101)
    early = [Detections(np.concatenate([far[1:], box]), np.zeros(100, int), scores[:100])]
    assert coco_precision(early, truth, 1, [0.5])[0, 0] == pytest.approx(0.01)


@pytest.mark.parametrize("rule", [voc_precision, lambda *a: coco_precision(*a, [0.5])[0]])
def test_an_overlap_of_just_the_threshold_is_right(rule):
    """Lower half of an object: overlap 1/2."""
    whole, half = (np.array([[0, 0, 10, y]], np.float32) for y in (10, 5))
    truth = [Objects(whole, np.array([0]), np.zeros(1, bool))]
    assert rule([Detections(half, np.array([0]), np.ones(1))], truth, 1)[0] == 1
    less = np.array([[0, 0, 10, 4.99]])
    assert rule([Detections(less, np.array([0]), np.ones(1))], truth, 1)[0] == 0


@pytest.mark.parametrize("rule", [voc_precision, lambda *a: coco_precision(*a, [0.5])[0]])
def test_equal_scores_stay_in_the_order_of_the_pictures(rule):
    """Of the surer ones 50 wrong, then 50 right: precision 1/2 at the end, no better before.

    Two scores in turn: a sort that is not stable leaves a list of equal numbers as it is.
    """
    box = np.array([[0, 0, 10, 10]], np.float32)
    truth = [Objects(box, np.array([0]), np.zeros(1, bool))] * 200
    found = [
        Detections(box + 20 * (k % 2 or k < 100), np.array([0]), np.array([0.3 if k % 2 else 0.7]))
        for k in range(200)
    ]
    assert rule(found, truth, 1)[0] == pytest.approx(0.5 * 0.25, abs=0.005)
    assert rule(found[::-1], truth, 1)[0] == pytest.approx(0.25, abs=0.01)


def test_of_equal_scores_the_first_hundred_count():
    """Of one picture; the surer half of 300 is in turn with the rest."""
    box = np.array([[0, 0, 10, 10]], np.float32)
    truth = [Objects(box, np.array([0]), np.zeros(1, bool))]
    scores = np.where(np.arange(300) % 2, 0.3, 0.7)
    for place, expected in ((198, 0.01), (200, 0.0)):  # the 100th and the 101st of 150
        boxes = np.repeat(box + 50, 300, 0)
        boxes[place] = box
        found = [Detections(boxes, np.zeros(300, int), scores)]
        assert coco_precision(found, truth, 1, [0.5])[0, 0] == pytest.approx(expected)


def test_of_equal_overlaps_coco_takes_the_last_object_and_voc_the_first():
    """The second detection fits the first object only: free by COCO, taken by VOC."""
    things = np.array([[0, 0, 10, 10], [10, 0, 20, 10]], np.float32)
    truth = [Objects(things, np.array([0, 0]), np.zeros(2, bool))]
    between = np.array([[0, 0, 20, 10], [0, 0, 10, 10]], np.float32)
    found = [Detections(between, np.array([0, 0]), np.array([0.9, 0.8]))]
    assert coco_precision(found, truth, 1, [0.5])[0, 0] == 1
    assert voc_precision(found, truth, 1)[0] == pytest.approx(0.5)


def test_coco_is_the_official_tools():
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    tool = pytest.importorskip("pycocotools.cocoeval")
    for seed in range(5):
        found, truth = a_scene(seed, pictures=8)
        marked, said = [], []
        for picture, (d, t) in enumerate(zip(found, truth, strict=True), 1):
            for box, label, crowd in zip(t.boxes, t.labels, t.ignore, strict=True):
                left, top, right, bottom = (float(v) for v in box)
                marked.append({
                    "id": len(marked) + 1, "image_id": picture, "category_id": int(label) + 1,
                    "bbox": [left, top, right - left, bottom - top], "iscrowd": int(crowd),
                    "area": (right - left) * (bottom - top),
                })  # fmt: skip
            for box, label, score in zip(d.boxes, d.labels, d.scores, strict=True):
                left, top, right, bottom = (float(v) for v in box)
                said.append({
                    "image_id": picture, "category_id": int(label) + 1, "score": float(score),
                    "bbox": [left, top, right - left, bottom - top],
                })  # fmt: skip
        official = coco.COCO()
        official.dataset = {
            "images": [{"id": k + 1} for k in range(8)],
            "categories": [{"id": k + 1} for k in range(3)],
            "annotations": marked,
        }
        official.createIndex()
        run = tool.COCOeval(official, official.loadRes(said), "bbox")
        run.evaluate()
        run.accumulate()
        theirs = run.eval["precision"][:, :, :, 0, -1].mean(1)  # thresholds, classes
        ours = coco_precision(found, truth, 3)
        seen = theirs > -1
        np.testing.assert_array_equal(seen, ~np.isnan(ours))
        np.testing.assert_allclose(ours[seen], theirs[seen], atol=1e-6)


# --- overlaps ---------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_overlaps_are_those_of_plain_numbers(seed):
    rng = np.random.default_rng(seed)
    a, b = some_boxes(rng, 4, 8), some_boxes(rng, 3, 8)
    expected = [[iou(one, other) for other in b] for one in a]
    np.testing.assert_allclose(overlaps(a, b), expected, atol=1e-12)
    crowd = overlaps(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 1, 8], [0, 0, 1, 8]]),
                     np.array([True, False]))  # fmt: skip
    np.testing.assert_allclose(crowd, [[2 / 4, 2 / 10]])


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Detections(np.zeros((2, 4)), np.zeros(1, int), np.zeros(1)), r"got \(2, 4\)"),
        (lambda: Detections(np.full((1, 4), np.nan), np.zeros(1, int), np.zeros(1)), "finite"),
        (lambda: voc_precision([], [], 3), "those of 0 for 0 pictures"),
        (lambda: voc_precision(*a_scene(0), 1), "where 0 to 0 was expected"),
        (lambda: coco_precision(a_scene(0)[0][:1], a_scene(0)[1], 3), "of 1 for 4 pictures"),
        (lambda: average_precision(np.ones(3, bool), 2), "3 detections are right where 2"),
        (lambda: average_precision(np.ones(1, bool), 2, "12-point"), "interpolation is"),
    ],
)
def test_what_does_not_fit_is_one_sentence(make, sentence):
    with pytest.raises(FoveateError, match=sentence):
        make()
