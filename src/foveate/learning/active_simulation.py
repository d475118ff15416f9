"""Active learning where the labels are known already: the pool, the session, its curve.

`pool_task` makes a pool of one half of a labelled set and a test set of the other; `simulate` lets
a strategy buy the pool's labels one by one. The test set gives the curve and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from foveate.errors import FoveateError
from foveate.learning.query_strategy import Strategy, feature_matrix

__all__ = ["LearningCurve", "Task", "pool_task", "simulate"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Task:
    """A pool whose labels are known to the simulation, and a test set that no strategy sees."""

    x_pool: Array
    y_pool: npt.NDArray[Any]
    x_test: Array
    y_test: npt.NDArray[Any]
    x_start: Array
    y_start: npt.NDArray[Any]
    seed: int


def pool_task(x: npt.ArrayLike, y: npt.ArrayLike, seed: int, test_share: float = 0.5) -> Task:
    """Split a labelled set: stratified test share, one label per class, the rest is the pool.

    Features are z-scored with mean and deviation of the training part, whose features are known
    before any label is. Equal seeds give equal splits and equal first labels.
    """
    features, labels = feature_matrix(x, "x"), np.asarray(y)
    if labels.shape != (len(features),):
        raise FoveateError(f"x {features.shape} needs y ({len(features)},), got {labels.shape}")
    try:
        train, test = train_test_split(
            np.arange(len(labels)), test_size=test_share, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise FoveateError(f"cannot split the set for active learning: {error}") from error
    draw = np.random.default_rng([seed, 1])
    classes = np.unique(labels[train])
    start = np.array([draw.choice(train[labels[train] == c]) for c in classes])
    pool = np.setdiff1d(train, start)
    if len(classes) < 2 or len(pool) == 0:
        raise FoveateError(
            f"a pool needs two classes and more items than classes, got {len(classes)} classes and "
            f"{len(train)} training items"
        )
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
    # a constant feature may have a deviation that is mere rounding
    varies = deviation > 1e-12 * np.abs(features[train]).max(axis=0)
    z = (features - mean) / np.where(varies, deviation, 1.0)
    return Task(z[pool], labels[pool], z[test], labels[test], z[start], labels[start], seed)


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """One simulated session of T labels.

    Attributes
    ----------
    accuracy
        ``(T + 1,)`` on the test set, the first before any query.
    queried
        ``(T,)`` rows of the task's pool in the order of their labels.
    history
        The strategy's: one dict per label.
    experts
        Names behind the history's weights.
    """

    accuracy: Array
    queried: npt.NDArray[np.int64]
    history: list[dict[str, Any]]
    experts: tuple[str, ...]

    @property
    def alc(self) -> float:
        """Area under the learning curve: mean accuracy after each of the T queries."""
        return float(self.accuracy[1:].mean())

    @property
    def weights(self) -> Array:
        """``(T, N)``, the trust in every expert at each draw."""
        return np.array([step["weights"] for step in self.history])

    @property
    def restarts(self) -> list[int]:
        """Rounds, from 0, before which all weights were set to one."""
        return [t for t, step in enumerate(self.history) if step["restarted"]]


def simulate(strategy: Strategy, task: Task, budget: int) -> LearningCurve:
    """Let a strategy buy `budget` labels one by one; the test set gives the curve, nothing else."""
    if not 1 <= budget <= len(task.y_pool):
        raise FoveateError(
            f"simulate expects a budget of 1 to {len(task.y_pool)}, the pool's size, got {budget}"
        )
    left = np.arange(len(task.y_pool))
    x, y = task.x_start, task.y_start

    def score() -> float:
        return float((strategy.fit(x, y).predict(task.x_test) == task.y_test).mean())

    accuracy, queried = [score()], []
    for _ in range(budget):
        query = strategy.query(task.x_pool[left], x, y)
        row = int(left[query.index])
        left = np.delete(left, query.index)
        x = np.concatenate([x, task.x_pool[row : row + 1]])
        y = np.concatenate([y, task.y_pool[row : row + 1]])
        label = task.y_pool[row]
        strategy.feedback(query, task.x_pool[row], label, x, y, task.x_pool[left])
        accuracy.append(score())
        queried.append(row)
    names = tuple(strategy.experts)
    return LearningCurve(np.array(accuracy), np.array(queried), strategy.history, names)
