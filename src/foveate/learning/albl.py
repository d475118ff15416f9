r"""Active learning by learning: a bandit whose arms are the query criteria themselves.

ALBL (Hsu and Lin, AAAI 2015) came before `foveate.learning.active` and asks less of its experts:
each proposes one item instead of a distribution over the pool. EXP4.P chooses among the *criteria*,

    p_m = (1 - N p_min) w_m / sum w + p_min,   p_min = sqrt(ln N / (N T))

and the item is drawn from q = sum_m p_m proposal_m. Form and constants are those of
libact's implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.learning.bandits import EXP4P
from foveate.learning.query_criteria import Expert
from foveate.learning.query_strategy import Query, Strategy

__all__ = ["ALBL"]

Array = npt.NDArray[np.float64]


class ALBL(Strategy):
    """Active learning by learning (Hsu and Lin, AAAI 2015): EXP4.P over the *criteria*.

    Each criterion proposes one item (an indifferent one proposes all n of the original pool alike);
    criteria are the arms, and the item is drawn from q = sum_m p_m proposal_m. An item that has its
    label already may be drawn again: it costs no label, and the weights learn from it. With the
    reward r = 1/(n T) sum_s [f(x_s) = y_s] / q_s over all draws s,

        w_m <- w_m exp( p_min / 2 (r proposal_m(i) / q_i + sqrt(ln(N / delta) / (N T)) / p_m) )

    Form and constants are those of libact's implementation.
    """

    def __init__(
        self,
        experts: Mapping[str, Expert] | Sequence[str] | None,
        estimator: Any,
        budget: int,
        delta: float = 0.1,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(experts, estimator, budget, random_state)
        n_experts = len(self.experts)
        self.bandit = EXP4P(n_experts, n_experts, budget, delta)
        self.redrawn = 0
        self._draws: list[tuple[int, float]] = []  # (which item asked about, 1 / q)
        self._trust: Array = np.full(n_experts, 1 / n_experts)
        self._pool = 0

    def query(self, x_pool: Any, x_labelled: Any, y_labelled: Any) -> Query:
        """Draw an item that has no label yet; arguments as in `DEAL.query`."""
        scores = self._scores(x_pool, x_labelled, y_labelled)
        left, old = len(scores[0]), len(self._asked)
        self._pool = left + old
        proposals = np.zeros((len(scores), left + old))  # the last columns: items asked about
        for row, values in zip(proposals, scores, strict=True):
            best = np.flatnonzero(values == values.max())
            if len(best) == left > 1:
                row[:] = 1 / self._pool
            else:
                row[self.random.choice(best)] = 1
        while True:
            self._trust = self.bandit.probabilities(np.eye(len(scores)))
            q = self._trust @ proposals
            index = int(self.random.choice(left + old, p=q / q.sum()))
            if index < left:
                name = list(self.experts)[int(np.argmax(self._trust * proposals[:, index]))]
                advice = proposals[:, :left]
                return Query(index, float(q[index]), advice, self.bandit.weights, name)
            self.redrawn += 1
            self._draws.append((index - left, 1 / q[index]))
            self._learn(proposals[:, index] / q[index], x_labelled, y_labelled)

    def feedback(
        self, query: Query, x_item: Any, label: Any, x_labelled: Any, y_labelled: Any, x_pool: Any
    ) -> float:
        """Refit, reward and learn; arguments as in `DEAL.feedback`."""
        self._take(x_item, label, x_labelled, y_labelled)
        self._draws.append((len(self._asked) - 1, 1 / query.probability))
        odds = query.advice[:, query.index] / query.probability
        reward = self._learn(odds, x_labelled, y_labelled)
        self._log(query, reward, False)
        return reward

    def _learn(self, odds: Array, x_labelled: Any, y_labelled: Any) -> float:
        correct = np.nan_to_num(self._correct(x_labelled, y_labelled))
        bought = sum(weight * correct[item] for item, weight in self._draws)
        reward = float(bought / (self._pool * self.budget))
        self.bandit.learn(odds * reward, 1 / self._trust)
        return reward
