"""Simulated sessions: splits, first labels, curves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from active_pools import CHEAP, LOGISTIC, TASK, blobs
from foveate.errors import FoveateError
from foveate.learning.active import DEAL, UniformMixture, pool_task, simulate


def test_same_seed_same_split_and_first_labels():
    """Line 10."""
    x, y = blobs(50, 3)
    one, other = pool_task(x, y, seed=4), pool_task(x, y, seed=4)
    for field in dataclasses.fields(one):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name))
    assert one.seed == 4
    assert sorted(one.y_start.tolist()) == [0, 1, 2]
    assert len(one.y_pool) + 3 == len(one.y_test) == 25
    assert not np.array_equal(pool_task(x, y, seed=5).x_test, one.x_test)
    train = np.concatenate([one.x_pool, one.x_start])
    assert train.mean(0) == pytest.approx([0, 0], abs=1e-12)
    assert train.std(0) == pytest.approx([1, 1])
    together = np.concatenate([train, one.x_test])  # every row once, none in both halves
    assert len(np.unique(together.round(9), axis=0)) == 50


def test_curve_of_a_simulated_session():
    curve = simulate(DEAL(None, None, 12, random_state=0), TASK, 12)
    assert curve.accuracy.shape == (13,)
    assert curve.alc == pytest.approx(np.mean(curve.accuracy[1:]))
    assert len(set(curve.queried.tolist())) == 12
    last = LogisticRegression().fit(
        np.concatenate([TASK.x_start, TASK.x_pool[curve.queried]]),
        np.concatenate([TASK.y_start, TASK.y_pool[curve.queried]]),
    )
    assert curve.accuracy[-1] == last.score(TASK.x_test, TASK.y_test)
    whole = simulate(UniformMixture(CHEAP, LOGISTIC, 9, reward="cem"), TASK, len(TASK.y_pool))
    assert sorted(whole.queried.tolist()) == list(range(len(TASK.y_pool)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: pool_task(np.zeros((9, 2)), np.zeros(8), 0), "needs y"),
        (lambda: pool_task(np.zeros((9, 2)), np.zeros(9), 0), "two classes"),
        (lambda: pool_task(np.zeros((3, 2)), [0, 1, 2], 0), "cannot split"),
        (lambda: simulate(DEAL(CHEAP, LOGISTIC, 9), TASK, 1000), "budget of 1 to"),
    ],
)
def test_bad_input_is_one_sentence(what, message):
    with pytest.raises(FoveateError, match=message) as error:
        what()
    assert "\n" not in str(error.value)


def test_a_feature_that_is_constant_in_training_stays_small_in_the_test():
    """0.1 has no exact mean: the deviation of 20 of them is 1e-17, and 0.3 became 1e16."""
    x, y = blobs(40)
    split = pool_task(np.column_stack([x, np.arange(40)]), y, seed=0)
    test = np.isin(np.arange(40), _rows(split.x_test[:, 2]))
    x = np.column_stack([x, np.where(test, 0.3, 0.1)])
    task = pool_task(x, y, seed=0)
    assert np.abs(task.x_pool[:, 2]).max() < 1e-9
    assert np.abs(task.x_test[:, 2]).max() < 1


def _rows(z):
    """Numbers 0 to 39 whose z-scores are `z`: the half with the same order and spacing."""
    x, y = blobs(40)
    train, test = train_test_split(np.arange(40), test_size=0.5, stratify=y, random_state=0)
    mean, deviation = train.mean(), train.std()
    assert np.allclose((test - mean) / deviation, z)
    return test
