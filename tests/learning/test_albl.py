"""ALBL against its formula, step by step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from active_pools import CHEAP, LOGISTIC, TASK, sessions
from foveate.learning.active import ALBL, EXPERTS


def test_albl_by_hand():
    """Its weights out of its queries, with criteria that never propose a labelled item."""
    albl = ALBL(CHEAP, LOGISTIC, 8, delta=0.1, random_state=0)
    n, t_all = len(TASK.y_pool), 8
    p_min = math.sqrt(math.log(2) / (2 * t_all))
    w, bought = np.ones(2), []
    for query, _, (x, y), reward in sessions(albl, TASK, 8):
        p = (1 - 2 * p_min) * w / w.sum() + p_min
        q = p @ query.advice
        assert query.probability == pytest.approx(q[query.index])
        bought.append(1 / q[query.index])
        right = LogisticRegression(solver="newton-cholesky").fit(x, y).predict(x[2:]) == y[2:]
        assert reward == pytest.approx(np.dot(right, bought) / (n * t_all))
        for m in range(2):
            gain = reward * query.advice[m, query.index] / q[query.index]
            bonus = math.sqrt(math.log(2 / 0.1) / (2 * t_all)) / p[m]
            w[m] *= math.exp(p_min / 2 * (gain + bonus))
        assert albl.bandit.weights == pytest.approx(w / w.sum())
    assert albl.redrawn == 0


def test_albl_redraws_cost_no_label_and_teach():
    """Two far classes, so that all are right: the reward is the sum of 1 / q of *all* draws."""
    x = np.arange(12.0)[:, None] % 2 * 20 + np.arange(12.0)[:, None] / 10
    task = dataclasses.replace(TASK, x_pool=x, y_pool=np.arange(12) % 2, x_test=x,
                               y_test=np.arange(12) % 2, x_start=np.array([[0.0], [20.0]]),
                               y_start=np.array([0, 1]))  # fmt: skip
    experts = {"RAND": EXPERTS["RAND"], "right": CHEAP["right"]}
    albl = ALBL(experts, LOGISTIC, 11, random_state=1)
    updates = []
    learn = albl.bandit.learn
    albl.bandit.learn = lambda *a: (updates.append(a), learn(*a))
    queried, total, sizes = [], 0.0, []
    for query, pool, (labelled, _), reward in sessions(albl, task, 11):
        for gains, over_p in updates[:-1]:  # before the query: items that had their label
            total += 12 * over_p[0]  # RAND alone proposed it: q = p_RAND / 12
            assert gains == pytest.approx([total / (12 * 11) * over_p[0], 0])
        total += 1 / query.probability
        assert reward == pytest.approx(total / (12 * 11))
        updates.clear()
        queried.append(labelled[-1, 0])
        sizes.append(len(pool))
    assert sizes == list(range(12, 1, -1))  # each label takes one item, redraws take none
    assert len(set(queried)) == 11
    assert albl.redrawn > 0
