"""Splits against the published counts of two scenes and against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.scene import Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes import splits
from foveate.scenes.splits import (
    BlockGrid,
    Split,
    checkerboard_split,
    draw_per_class,
    leakage_report,
    random_per_class_split,
    spatial_block_split,
)

# counts per class of the two specifications, measured on the staged scenes
INDIAN_PINES = {
    0: [33, 659, 401, 163, 356, 373, 28, 193, 20, 473, 1184, 346, 88, 631, 290, 31],
    3: [15, 319, 222, 94, 244, 202, 22, 57, 18, 212, 588, 166, 48, 260, 189, 8],
    4: [10, 219, 183, 71, 204, 143, 16, 30, 16, 138, 437, 126, 35, 180, 153, 3],
    6: [3, 76, 127, 30, 136, 63, 4, 0, 0, 56, 182, 54, 15, 66, 86, 0],
}
INDIAN_PINES_TEST = [13, 769, 429, 74, 127, 357, 0, 285, 0, 499, 1271, 247, 117, 634, 96, 62]
TWELVE = {2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15}
SAN_FRANCISCO = ([6360, 32318, 166895, 172456, 25691], [7341, 30413, 162671, 170339, 27818])
FLEVOLAND = (
    "4017 5633 8666 4637 8086 4801 9713 2823 4065 7327 3960 5431 11301 4213 345",
    "3558 4686 10708 6053 8444 6176 7995 2763 3581 8061 3830 5765 10920 5055 498",
)


def staged(folder: Path, name: str, key: str) -> SceneLabels:
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{name} is not below {folder}")
    with np.load(path, allow_pickle=False) as file:
        return SceneLabels.from_map(file[key])


def blobs(seed: int, shape: tuple[int, int], classes: int, share: float = 0.8) -> SceneLabels:
    """Fields of a few pixels: nearest of some random seeds, part of them labelled."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(0, shape, (3 * classes, 2))
    at = np.stack(np.indices(shape), -1).reshape(-1, 2)
    nearest = np.abs(at[:, None] - middles).max(-1).argmin(1)
    codes = nearest % classes + 1
    codes[rng.random(codes.size) > share] = 0
    return SceneLabels.from_map(codes.reshape(shape))


def per_class(labels: SceneLabels, index: np.ndarray) -> list[int]:
    return np.bincount(labels.codes[index], minlength=max(labels.classes) + 1)[1:].tolist()


def chebyshev(labels: SceneLabels, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All distances, by brute force."""
    at = labels.coordinates.astype(int)
    return np.abs(at[a][:, None] - at[b][None]).max(-1)


@pytest.mark.parametrize("guard", [0, 3, 4, 6])
def test_indian_pines_counts_of_the_18x18_checkerboard(shared_data, guard):
    labels = staged(shared_data, "hsi/indian_pines.npz", "gt")
    every = checkerboard_split(labels, 18, guard, least=0)
    assert per_class(labels, every.train) == INDIAN_PINES[guard]
    assert per_class(labels, every.test) == INDIAN_PINES_TEST
    assert every.train.size == {0: 5269, 3: 2664, 4: 1964, 6: 898}[guard]
    assert every.test.size == 4980

    split = checkerboard_split(labels, 18, guard)
    kept = {0: TWELVE | {16}, 3: TWELVE, 4: TWELVE, 6: TWELVE - {8, 13}}[guard]
    assert set(labels.codes[split.train].tolist()) == kept == set(labels.codes[split.test].tolist())
    assert set(split.left_out) == set(range(1, 17)) - kept
    if guard == 4:
        assert split.train.size == 1919


def test_san_francisco_counts_of_blocks_of_100x128(shared_data):
    labels = staged(shared_data, "polsar/sanfrancisco_airsar_t3_f16.npz", "label")
    split = checkerboard_split(labels, (100, 128))
    assert (per_class(labels, split.train), per_class(labels, split.test)) == SAN_FRANCISCO
    assert not split.left_out
    guarded = checkerboard_split(labels, (100, 128), 6)  # 802,302 pixels: must not take long
    assert leakage_report(labels, guarded, 13).covered == 0
    assert leakage_report(labels, split, 13).covered > 0


def test_flevoland_counts_of_blocks_of_48x48_keep_all_15_classes(shared_data):
    labels = staged(shared_data, "polsar/flevoland_airsar_t3_f16.npz", "label_png")
    split = checkerboard_split(labels, 48)
    for index, counts in zip((split.train, split.test), FLEVOLAND, strict=True):
        assert per_class(labels, index) == [int(count) for count in counts.split()]
    coarse = checkerboard_split(labels, (92, 128), least=0)  # large blocks lose class 15
    assert (per_class(labels, coarse.train)[14], per_class(labels, coarse.test)[14]) == (843, 0)
    assert 15 in checkerboard_split(labels, (92, 128)).left_out


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    height=st.integers(12, 30),
    width=st.integers(12, 30),
    block=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    guard=st.integers(0, 3),
    swap=st.booleans(),
    shift=st.booleans(),
)
def test_checkerboard_is_what_brute_force_says(seed, height, width, block, guard, swap, shift):
    labels = blobs(seed, (height, width), 3)
    offset = (block[0] // 2, block[1] - 1) if shift else (0, 0)
    try:
        split = checkerboard_split(
            labels, block, guard, even_is_train=not swap, offset=offset, least=0
        )
    except FoveateError:
        return  # the guard took everything
    rows, columns = labels.coordinates.astype(int).T
    even = ((rows + offset[0]) // block[0] + (columns + offset[1]) // block[1]) % 2 == 0
    trains = even != swap
    assert split.test.tolist() == np.flatnonzero(~trains).tolist()
    nearest = chebyshev(labels, np.arange(len(labels)), np.flatnonzero(~trains)).min(1)
    assert split.train.tolist() == np.flatnonzero(trains & (nearest > guard)).tolist()

    hidden = splits.test_blocks(labels.shape, block, even_is_train=not swap, offset=offset)
    window = Window(3, 2, 5, 7)
    shown = [
        [((r + offset[0]) // block[0] + (c + offset[1]) // block[1]) % 2 == (not swap) for c in w]
        for r, w in ((r, range(2, 9)) for r in range(3, 8))
    ]
    assert hidden(window).tolist() == shown
    assert split.hidden is not None
    assert split.hidden(window).tolist() == shown


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), guard=st.integers(0, 3), validation=st.sampled_from([0.0, 0.15]))
def test_every_pair_of_a_block_split_is_farther_apart_than_the_guard(seed, guard, validation):
    labels = blobs(seed, (40, 36), 4)
    split = spatial_block_split(
        labels, 6, guard, fractions=(0.5 - validation, validation, 0.5), seed=seed, least=1
    )
    assert chebyshev(labels, split.train, split.test).min() > guard
    if split.validation.size:
        assert chebyshev(labels, split.train, split.validation).min() > guard
        assert chebyshev(labels, split.validation, split.test).min() > guard
    assert split.blocks is not None
    for role, index in enumerate((split.train, split.validation, split.test)):
        assert set(split.blocks.role_of(labels.coordinates[index]).tolist()) <= {role}
    again = spatial_block_split(
        labels, 6, guard, fractions=(0.5 - validation, validation, 0.5), seed=seed, least=1
    )
    assert np.array_equal(again.train, split.train)
    assert np.array_equal(again.test, split.test)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_with_enough_pixels_is_present_on_both_sides_of_a_block_split(seed):
    """30 % of every class on each side before the guard; another seed gives another split."""
    labels = blobs(seed, (80, 80), 5)
    split = spatial_block_split(labels, 8, 0, seed=seed)
    assert not split.left_out
    for code, total in labels.counts().items():
        train, validation, test = split.counts(labels)[code]
        assert min(train, test) >= 0.3 * total
        assert train + validation + test == total
    other = spatial_block_split(labels, 8, 0, seed=seed + 100)
    assert not np.array_equal(other.test, split.test)


def test_a_class_in_one_block_is_left_out_and_named():
    grid = np.add.outer(np.arange(24) // 12, np.arange(24) // 12) % 2 + 1
    grid[1:4, 1:4] = 3
    labels = SceneLabels.from_map(grid)
    split = spatial_block_split(labels, 6, 1, seed=0)
    assert set(split.left_out) == {3}
    assert "at least 30" in split.left_out[3]
    assert 3 not in labels.codes[np.concatenate([split.train, split.test])]


def test_guard_counts_test_pixels_of_left_out_classes_too():
    """Their pixels are test ground all the same."""
    row = np.zeros((1, 12), int)
    row[0] = [1, 2, 1, 2, 1, 2, 3, 1, 2, 1, 2, 1]
    split = checkerboard_split(SceneLabels.from_map(row), (1, 6), 1, least=1)
    assert 3 in split.left_out
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.test.tolist() == [7, 8, 9, 10, 11]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), patch=st.integers(1, 8))
def test_leakage_is_what_the_patches_themselves_say(seed, patch):
    labels = blobs(seed, (14, 15), 3)
    split = random_per_class_split(labels, 3, seed=seed)
    before = patch // 2
    seen = np.zeros((14, 15), bool)
    padded = np.zeros((14 + 2 * patch, 15 + 2 * patch), bool)
    for row, column in labels.coordinates[split.train]:
        top, left = row - before + patch, column - before + patch
        padded[top : top + patch, left : left + patch] = True
    seen = padded[patch:-patch, patch:-patch]
    inside = seen[tuple(labels.coordinates[split.test].T)]
    report = leakage_report(labels, split, patch)
    assert report.test_in_training_patches == inside.sum()
    assert report.covered == pytest.approx(inside.mean())
    distance = chebyshev(labels, split.test, split.train).min(1)
    assert report.distance == distance.min()
    assert report.overlapping == pytest.approx((distance <= patch - 1).mean())


def test_random_pixels_leak_and_the_guarded_split_does_not():
    """10 % random pixels with patches of 13 cover nearly every test pixel."""
    labels = blobs(1, (120, 120), 6)
    leaking = leakage_report(labels, random_per_class_split(labels, 0.1, seed=0), 13)
    assert leaking.covered > 0.99
    assert "inside a training patch of 13 x 13" in str(leaking)
    guarded = checkerboard_split(labels, 30, guard=6)
    report = leakage_report(labels, (guarded.train, guarded.test), 13)
    assert (report.covered, report.test_in_training_patches) == (0, 0)
    assert report.distance > 6


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), guard=st.integers(0, 5))
def test_clear_of_blocks_is_what_brute_force_says(seed, guard):
    rng = np.random.default_rng(seed)
    grid = BlockGrid((17, 19), (4, 5), (1, 2), rng.integers(0, 3, (5, 5)).astype(np.int8))
    at = np.stack(np.indices((17, 19)), -1).reshape(-1, 2)
    role = grid.role_of(at)
    tests = at[role == 2]
    far = (np.abs(at[:, None] - tests[None]).max(-1) > guard).all(1)
    assert grid.clear_of(at, guard).tolist() == far.tolist()


def test_random_split_counts():
    """15 % per class, at least 10, at most half; the rest tests; nothing twice."""
    grid = np.repeat([1, 2, 3, 4], [400, 21, 12, 1]).reshape(1, -1)
    labels = SceneLabels.from_map(grid)
    split = random_per_class_split(labels, 0.15, minimum=10, seed=3)
    assert split.counts(labels) == {1: (60, 0, 340), 2: (10, 0, 11), 3: (6, 0, 6), 4: (0, 0, 0)}
    assert set(split.left_out) == {4}
    assert split.hidden is None
    half_up = SceneLabels.from_map(np.repeat([1, 2], 10).reshape(1, -1))  # 2.5 are 3
    assert random_per_class_split(half_up, 0.25, seed=0).counts(half_up)[1] == (3, 0, 7)
    fixed = random_per_class_split(labels, 8, seed=3)
    assert [fixed.counts(labels)[code][0] for code in (1, 2, 3)] == [8, 8, 6]
    assert np.array_equal(fixed.train, random_per_class_split(labels, 8, seed=3).train)
    assert not np.array_equal(fixed.train, random_per_class_split(labels, 8, seed=4).train)


def test_draw_per_class_takes_from_the_index_only():
    labels = blobs(0, (30, 30), 4)
    index = np.arange(0, len(labels), 2)
    drawn = draw_per_class(labels, index, 7, seed=1)
    assert set(drawn.tolist()) <= set(index.tolist())
    assert per_class(labels, drawn) == [7, 7, 7, 7]
    assert np.array_equal(drawn, draw_per_class(labels, index, 7, seed=1))
    every = draw_per_class(labels, index, 10_000, seed=1)
    assert every.tolist() == index.tolist()


def test_bad_input_is_said_in_one_sentence():
    labels = blobs(0, (20, 20), 3)
    one = SceneLabels.from_map(np.ones((4, 4), int))
    for wrong in (
        lambda: random_per_class_split(one, 2, seed=0),
        lambda: random_per_class_split(labels, 0, seed=0),
        lambda: random_per_class_split(labels, 1.5, seed=0),
        lambda: checkerboard_split(labels, 0),
        lambda: checkerboard_split(labels, 5, -1),
        lambda: checkerboard_split(labels, 5, offset=(5, 0)),
        lambda: checkerboard_split(labels, 10, 9),
        lambda: spatial_block_split(labels, 5, 0, fractions=(0.5, 0.1, 0.5), seed=0),
        lambda: draw_per_class(labels, [], 3, 0),
        lambda: leakage_report(labels, ([], [1]), 3),
        lambda: splits.test_blocks((20, 20), 5)(Window(0, 0, 21, 4)),
        lambda: Split(np.array([1]), np.array([2]), np.array([1]), "random"),
    ):
        with pytest.raises(FoveateError):
            wrong()
