"""What every query strategy of pool-based active learning has, and the simplest of them.

A *strategy* is asked for an item (`Strategy.query`), a person labels it, and it is told
(`Strategy.feedback`). It holds the query criteria, refits the classifier, and remembers which items
it asked about: by a fingerprint of their features, so that labels may come late, be corrected or be
withdrawn, and nothing of the data is kept. `SingleExpert` follows one criterion alone.
`foveate.learning.active` and `foveate.learning.albl` learn whom of several to follow.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from foveate.errors import FoveateError
from foveate.learning.query_criteria import DEFAULT_EXPERTS, EXPERTS, Expert

__all__ = ["Query", "SingleExpert", "Strategy"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Query:
    """One item to label, and why.

    Attributes
    ----------
    index
        Row of the pool that the query was made on.
    probability
        p of this item when it was drawn.
    advice
        ``(N, K)``, one distribution over the pool for each expert.
    weights
        ``(N,)``, sum 1: how much each expert was trusted.
    expert
        Name of the expert that contributed most to this item's probability.
    """

    index: int
    probability: float
    advice: Array
    weights: Array
    expert: str


class Strategy(ABC):
    """What all strategies have: experts, a classifier that is refitted, a memory of the queries."""

    def __init__(
        self,
        experts: Mapping[str, Expert] | Sequence[str] | None,
        estimator: Any,
        budget: int,
        random_state: int | np.random.Generator | None,
    ) -> None:
        if not isinstance(experts, Mapping):
            wanted = DEFAULT_EXPERTS if experts is None else tuple(experts)
            if unknown := [name for name in wanted if name not in EXPERTS]:
                raise FoveateError(
                    f"there is no expert {unknown[0]!r}; choose from {', '.join(EXPERTS)}, or give "
                    "a mapping of names to functions"
                )
            experts = {name: EXPERTS[name] for name in wanted}
        if not experts or not isinstance(budget, (int, np.integer)) or budget < 1:
            raise FoveateError(
                "expected at least one expert and a budget of at least 1, a whole number, got "
                f"{len(experts)} and {budget}"
            )
        self.experts = dict(experts)
        self.estimator = LogisticRegression(max_iter=1000) if estimator is None else estimator
        self.budget = budget
        try:
            self.random = np.random.default_rng(random_state)
        except (TypeError, ValueError) as error:
            raise FoveateError(
                f"random_state is {random_state!r}; expected a whole number of at least 0, a numpy "
                "Generator or None"
            ) from error
        self.history: list[dict[str, Any]] = []
        self._asked: list[str] = []  # fingerprints of the items asked about
        self._fitted: tuple[Array, npt.NDArray[Any], Any] | None = None

    @abstractmethod
    def query(self, x_pool: Any, x_labelled: Any, y_labelled: Any) -> Query:
        """Choose the next item; arguments as in `DEAL.query`."""

    @abstractmethod
    def feedback(
        self, query: Query, x_item: Any, label: Any, x_labelled: Any, y_labelled: Any, x_pool: Any
    ) -> float:
        """Refit, reward and learn, once the label is in; arguments as in `DEAL.feedback`."""

    def fit(self, x_labelled: npt.ArrayLike, y_labelled: npt.ArrayLike) -> Any:
        """The estimator, fitted afresh on these labels; kept until other labels come.

        Never a warm start: a session that was killed must go on with the same classifier.
        """
        x, y = feature_matrix(x_labelled, "x_labelled"), np.asarray(y_labelled)
        if self._fitted is not None:
            x_old, y_old, classifier = self._fitted
            if np.array_equal(x, x_old) and np.array_equal(y, y_old):
                return classifier
        if y.shape != (len(x),):
            raise FoveateError(f"x_labelled {x.shape} needs y_labelled ({len(x)},), got {y.shape}")
        if y.dtype.kind in "fO" and any(map(_missing, y.tolist())):
            raise FoveateError("y_labelled has a missing label; leave that item in the pool")
        if y.dtype.kind == "f" and (y != np.floor(y)).any():
            raise FoveateError(
                "y_labelled has numbers with a fraction; expected classes: whole numbers or texts"
            )
        try:
            count = len(np.unique(y))
        except TypeError as error:
            raise FoveateError(
                f"y_labelled mixes types ({error}); expected classes of one type"
            ) from error
        if count < 2:
            raise FoveateError(
                f"the {len(y)} labels given are of fewer than two classes; label one item of a "
                "second class first"
            )
        classifier = clone(self.estimator).fit(x, y)
        self._fitted = x.copy(), y.copy(), classifier
        return classifier

    def _scores(self, x_pool: npt.ArrayLike, x_labelled: Any, y_labelled: Any) -> list[Array]:
        """Every expert's scores ``(K,)``."""
        pool = feature_matrix(x_pool, "x_pool")
        labelled, y = feature_matrix(x_labelled, "x_labelled"), np.asarray(y_labelled)
        if pool.shape[1] != labelled.shape[1]:
            raise FoveateError(
                f"x_pool {pool.shape} and x_labelled {labelled.shape} have different features"
            )
        classifier = self.fit(labelled, y)
        found = []
        for name, expert in self.experts.items():
            scores = np.asarray(expert(classifier, labelled, y, pool), dtype=np.float64)
            if scores.shape != (len(pool),) or np.isnan(scores).any():
                raise FoveateError(
                    f"the expert {name} gave scores {scores.shape} with {np.isnan(scores).sum()} "
                    f"NaN for a pool of {len(pool)}; expected ({len(pool)},) without NaN"
                )
            found.append(scores)
        return found

    def _take(self, x_item: Any, label: Any, x_labelled: Any, y_labelled: Any) -> None:
        """Refit, and remember the item; its label must be among the labels."""
        self.fit(x_labelled, y_labelled)
        (key,) = _keys(np.asarray(x_item, np.float64).reshape(1, -1))
        keys = _keys(feature_matrix(x_labelled, "x_labelled"))
        labels = np.asarray(y_labelled).tolist()
        if (key, label) not in zip(keys, labels, strict=True):
            raise FoveateError(
                "feedback expects x_labelled and y_labelled with the new item and its label in "
                f"them, and there is no such row with the label {label!r}; append them first"
            )
        self._asked.append(key)

    def _log(self, query: Query, reward: float, restarted: bool) -> None:
        self.history.append(
            {
                "weights": query.weights.tolist(),
                "expert": query.expert,
                "probability": query.probability,
                "reward": reward,
                "restarted": restarted,
            }
        )

    def _correct(self, x_labelled: Any, y_labelled: Any) -> Array:
        """``(t,)`` for all items asked about: 1 right today, 0 wrong, NaN label withdrawn."""
        x = feature_matrix(x_labelled, "x_labelled")
        right = self.fit(x, y_labelled).predict(x) == np.asarray(y_labelled)
        rows = defaultdict(list)
        for row, key in enumerate(_keys(x)):
            rows[key].append(row)
        found = np.full(len(self._asked), np.nan)
        for s in range(len(self._asked) - 1, -1, -1):  # equal items: the last asked is the last row
            if rows[self._asked[s]]:
                found[s] = right[rows[self._asked[s]].pop()]
        return found


class SingleExpert(Strategy):
    """One criterion alone: its best item, one of them drawn where several are best."""

    def __init__(
        self,
        expert: str | Mapping[str, Expert],
        estimator: Any,
        budget: int,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        named = [expert] if isinstance(expert, str) else expert
        super().__init__(named, estimator, budget, random_state)
        if len(self.experts) != 1:
            raise FoveateError(f"SingleExpert takes one expert, got {len(self.experts)}")

    def query(self, x_pool: Any, x_labelled: Any, y_labelled: Any) -> Query:
        """The item that the criterion wants most; arguments as in `DEAL.query`."""
        (scores,) = self._scores(x_pool, x_labelled, y_labelled)
        best = scores == scores.max()
        advice = best / best.sum()
        index = int(self.random.choice(np.flatnonzero(best)))
        (name,) = self.experts
        return Query(index, float(advice[index]), advice[None], np.ones(1), name)

    def feedback(
        self, query: Query, x_item: Any, label: Any, x_labelled: Any, y_labelled: Any, x_pool: Any
    ) -> float:
        """Refit; nothing is rewarded (NaN)."""
        self._take(x_item, label, x_labelled, y_labelled)
        self._log(query, math.nan, False)
        return math.nan


def feature_matrix(x: npt.ArrayLike, name: str) -> Array:
    """``(n, D)`` float64, finite."""
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FoveateError(f"{name} holds something that is no number ({error})") from error
    if values.ndim != 2 or 0 in values.shape:
        raise FoveateError(
            f"{name} is expected as (items, features), at least one of each, got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise FoveateError(f"{name} has NaN or infinite features; fill them in or leave them out")
    return values


def _missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))


def _keys(x: Array) -> list[str]:
    """A fingerprint of every row: what is remembered of an item, whose features are not."""
    rows = np.ascontiguousarray(x)
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]
