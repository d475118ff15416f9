"""Pools, criteria and hand-played sessions that the tests of active learning share."""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.linear_model import LogisticRegression

from foveate.learning.active import pool_task

LOGISTIC = LogisticRegression(solver="newton-cholesky")


def blobs(n: int = 80, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centre = 1.2 * np.stack([np.cos(y * 2 * np.pi / classes), np.sin(y * 2 * np.pi / classes)], 1)
    return centre + rng.normal(size=(n, 2)), y


TASK = pool_task(*blobs(), seed=0)
NOISY = dataclasses.replace(  # nobody is right on all of these
    TASK, y_pool=np.random.default_rng(9).integers(0, 2, len(TASK.y_pool))
)
CHEAP = {  # two opposite criteria that need no library
    "left": lambda classifier, x, y, pool: -pool[:, 0],
    "right": lambda classifier, x, y, pool: pool[:, 0],
}


def sessions(strategy, task, rounds: int):
    """Play by hand: yields query, pool before it, labels after it, reward."""
    left, x, y = np.arange(len(task.y_pool)), task.x_start, task.y_start
    for _ in range(rounds):
        pool = task.x_pool[left]
        query = strategy.query(pool, x, y)
        row, left = left[query.index], np.delete(left, query.index)
        x = np.concatenate([x, task.x_pool[row : row + 1]])
        y = np.append(y, task.y_pool[row])
        reward = strategy.feedback(query, x[-1], y[-1], x, y, task.x_pool[left])
        yield query, pool, (x, y), reward
