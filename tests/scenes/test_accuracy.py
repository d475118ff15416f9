"""Accuracies against scikit-learn, the bootstrap against a plain loop and known spreads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from foveate.errors import FoveateError
from foveate.scenes.accuracy import block_bootstrap, confusion, oa_aa_kappa


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label was found")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 9999),
    size=st.integers(2, 60),
    truth=st.sets(st.integers(1, 9), min_size=2, max_size=6),
    guesses=st.sets(st.integers(1, 9), min_size=1, max_size=6),
)
def test_accuracies_are_those_of_scikit_learn_absent_classes_included(seed, size, truth, guesses):
    """A class may be absent from the truth, from the prediction, or from both."""
    rng = np.random.default_rng(seed)
    true = rng.choice(sorted(truth), size)
    guess = np.where(rng.random(size) < 0.5, true, rng.choice(sorted(guesses), size))
    ours = oa_aa_kappa(true, guess)
    assert ours.oa == pytest.approx(metrics.accuracy_score(true, guess))
    assert ours.aa == pytest.approx(metrics.balanced_accuracy_score(true, guess))
    kappa = metrics.cohen_kappa_score(true, guess)
    assert ours.kappa == pytest.approx(0.0 if math.isnan(kappa) else kappa)
    assert ours.kappa <= ours.oa + 1e-12

    codes = sorted(set(true.tolist()) | set(guess.tolist()))
    assert (
        confusion(true, guess).tolist()
        == metrics.confusion_matrix(true, guess, labels=codes).tolist()
    )
    recall = metrics.recall_score(true, guess, labels=codes, average=None, zero_division=np.nan)
    precision = metrics.precision_score(
        true, guess, labels=codes, average=None, zero_division=np.nan
    )
    for i, code in enumerate(codes):
        assert ours.recall.get(code, np.nan) == pytest.approx(recall[i], nan_ok=True)
        assert ours.precision.get(code, np.nan) == pytest.approx(precision[i], nan_ok=True)
        assert ours.support[code] == (true == code).sum()
    assert set(ours.absent) == set(codes) - set(true.tolist())


def test_classes_without_a_test_pixel_are_named_not_averaged():
    accuracy = oa_aa_kappa([1, 1, 3, 3], [1, 3, 3, 3], classes=[3, 1, 7])
    assert accuracy.absent == (7,)
    assert accuracy.aa == pytest.approx((0.5 + 1) / 2)
    assert accuracy.oa == 0.75
    # rows and columns follow the order asked for
    assert confusion([1, 1, 3, 3], [1, 3, 3, 3], [3, 1, 7]).tolist() == [
        [2, 0, 0],
        [1, 1, 0],
        [0, 0, 0],
    ]


def test_one_class_throughout_has_kappa_zero():
    assert oa_aa_kappa([4, 4], [4, 4]).kappa == 0
    assert oa_aa_kappa([4, 4], [4, 4]).oa == 1


def test_bootstrap_draws_whole_blocks():
    """The same draws, blocks copied one by one and scored by scikit-learn."""
    rng = np.random.default_rng(0)
    at = np.stack(np.indices((12, 15)), -1).reshape(-1, 2)
    true = rng.integers(1, 4, len(at))
    guess = np.where(rng.random(len(at)) < 0.6, true, rng.integers(1, 4, len(at)))
    ours = block_bootstrap(true, guess, at, (4, 5), draws=200, level=0.9, seed=7)
    assert ours.blocks == 9

    where = at[:, 0] // 4 * 3 + at[:, 1] // 5
    again = np.random.default_rng(7)
    scores = []
    for count in (64, 64, 64, 8):
        for times in again.multinomial(9, np.full(9, 1 / 9), size=count):
            drawn = np.concatenate([np.flatnonzero(where == b) for b in np.repeat(range(9), times)])
            t, g = true[drawn], guess[drawn]
            scores.append(
                (
                    metrics.accuracy_score(t, g),
                    metrics.balanced_accuracy_score(t, g),
                    metrics.cohen_kappa_score(t, g),
                    metrics.recall_score(t, g, labels=[2], average=None)[0],
                )
            )
    low, high = np.percentile(scores, [5, 95], axis=0)
    for k, interval in enumerate((ours.oa, ours.aa, ours.kappa, ours.recall[2])):
        assert interval == pytest.approx((low[k], high[k]))


def test_interval_has_the_width_of_the_blocks_not_of_the_pixels():
    """Blocks all right or all wrong: the OA spreads as sqrt(p (1 - p) / blocks)."""
    at = np.stack(np.indices((60, 60)), -1).reshape(-1, 2)
    rng = np.random.default_rng(1)
    right = rng.permutation(np.arange(100) < 70)[at[:, 0] // 6 * 10 + at[:, 1] // 6]
    true = 1 + (at[:, 1] % 2)
    guess = np.where(right, true, 3 - true)
    by_block = block_bootstrap(true, guess, at, 6, draws=2000, seed=0).oa
    expected = 2 * 1.96 * math.sqrt(0.7 * 0.3 / 100)
    assert by_block.high - by_block.low == pytest.approx(expected, rel=0.1)
    by_pixel = block_bootstrap(true, guess, at, 1, draws=500, seed=0).oa
    assert by_pixel.high - by_pixel.low < expected / 4


def test_a_class_that_some_draws_miss_keeps_a_finite_interval():
    at = np.array([[0, 0], [0, 1], [0, 2], [0, 3]])
    spread = block_bootstrap([1, 2, 2, 2], [1, 2, 1, 2], at, 1, draws=300, seed=2)
    assert all(np.isfinite(spread.recall[1]))
    assert spread.recall[1] == (1, 1)
    assert 0 <= spread.aa.low <= spread.aa.high <= 1


def test_bad_input_is_said_in_one_sentence():
    for wrong in (
        lambda: oa_aa_kappa([], []),
        lambda: oa_aa_kappa([1, 2], [1]),
        lambda: oa_aa_kappa([1.0, 2.0], [1, 2]),
        lambda: oa_aa_kappa([1, 2], [1, 2], classes=[1]),
        lambda: oa_aa_kappa([1, 2], [1, 2], classes=[1, 2, 2]),
        lambda: block_bootstrap([1, 2], [1, 2], [[0, 0], [0, 1]], 5),
        lambda: block_bootstrap([1, 2], [1, 2], [[0, 0]], 1),
        lambda: block_bootstrap([1, 2], [1, 2], [[0, 0], [0, 1]], 1, draws=5),
    ):
        with pytest.raises(FoveateError):
            wrong()
