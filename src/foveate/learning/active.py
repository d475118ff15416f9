r"""Which item to label next, when nobody knows which criterion suits: an ensemble that adapts.

Pool-based active learning has a criterion for every taste: the items that the classifier doubts
(US), those amid the crowd (DENS), those far from all labels (DFF), any (RAND). Which is best
depends on the data, and may change within a session. DEAL (Dynamic Ensemble Active Learning, ICPR
2018) makes the criteria *experts* of a bandit whose arms are the unlabelled items. With K left:

    advice   rank the items by the criterion, 1 = most wanted; s = -exp(-a rank);
             xi(rank) = exp(-b s) / sum = exp(b exp(-a rank)) / sum,    a = 0.1, b = 10
    query    p = (1 - gamma) sum_m w_m xi_m / sum_m w_m + gamma / K;   the item is *drawn* from p
    reward   IWA_t = 1/Z sum_{s<=t} [ f_t(x_s) = y_s ] / (K_s p_s),    f_t: trained on all labels
    learn    w_m <- w_m exp(gamma xi_m(drawn) r_t / (p(drawn) K_eff)); all weights 1 every Delta

Only ranks count, so criteria need no common scale. K_s and p_s are those of the moment of the
query (`foveate.learning.bandits` has the bandit). No label is spent on the reward: accuracy is
measured on the labels that were bought, with the odds of their drawing taken out again; it is
optimistic because f_t has seen them. Z is ``self``: sum 1 / (K_s p_s) (default), ``t`` or
``budget`` (grows with t).

Advice, reward and restart come from a public re-implementation of DEAL; the paper's own experts,
restart length and reward scale are not known, and the default experts are our choice. Ties share
their mean rank; where a single item must be named, one of the best is drawn.

The criteria are in `foveate.learning.query_criteria`, what DEAL shares with other strategies in
`query_strategy`, ALBL in `albl`, pools and curves in `active_simulation`; all can be had from here.

>>> from sklearn.datasets import load_wine
>>> from sklearn.linear_model import LogisticRegression
>>> task = pool_task(*load_wine(return_X_y=True), seed=0)
>>> deal = DEAL(None, LogisticRegression(), budget=20, random_state=0)
>>> curve = simulate(deal, task, budget=20)
>>> bool(curve.accuracy[-1] > curve.accuracy[0])
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from foveate.errors import FoveateError
from foveate.learning.active_simulation import LearningCurve, Task, pool_task, simulate
from foveate.learning.albl import ALBL
from foveate.learning.bandits import REXP4, KEff
from foveate.learning.query_criteria import DEFAULT_EXPERTS, EXPERTS, Expert
from foveate.learning.query_strategy import Query, SingleExpert, Strategy, feature_matrix

__all__ = [
    "ALBL",
    "COMB",
    "DEAL",
    "DEFAULT_EXPERTS",
    "EXPERTS",
    "Expert",
    "LearningCurve",
    "Query",
    "SingleExpert",
    "Strategy",
    "Task",
    "UniformMixture",
    "class_entropy",
    "importance_weighted_accuracy",
    "pool_task",
    "rank_advice",
    "simulate",
]

Array = npt.NDArray[np.float64]
Normaliser = Literal["self", "t", "budget"]
Reward = Literal["iwa", "iwa_gain", "cem"]

GAIN_SCALE = 10.0  # of the reward iwa_gain

# ------------------------------------------------------------------------------ advice, rewards


def rank_advice(scores: npt.ArrayLike, alpha: float = 0.1, beta: float = 10.0) -> Array:
    """Advice xi ``(K,)`` of scores ``(K,)``, higher = more wanted; only their order counts.

    exp(beta exp(-alpha rank)) / sum; ties share their mean rank, so that equal scores give the
    uniform distribution.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or np.isnan(values).any():
        raise FoveateError(
            f"rank_advice expects scores (K,) with K >= 1 and no NaN, got {values.shape}"
        )
    if not (alpha > 0 and 0 <= beta <= 500):
        raise FoveateError(f"expected rank_alpha > 0, gibbs_beta in [0, 500], got {alpha}, {beta}")
    wanted = np.exp(beta * np.exp(-alpha * rankdata(-values)))
    advice: Array = wanted / wanted.sum()
    return advice


def importance_weighted_accuracy(
    correct: npt.ArrayLike,
    importance: npt.ArrayLike,
    normaliser: Normaliser = "self",
    budget: int = 1,
) -> float:
    """IWA of t queries: 1/Z sum correct_s importance_s, with importance_s = 1 / (K_s p_s).

    Parameters
    ----------
    correct, importance
        ``(t,)``: whether the classifier is right today, and the odds of the day of the query.
    normaliser
        Z: ``self`` sum of importance, in [0, 1]; ``t``: unbiased for the mean over the pools;
        ``budget``: T, so that it grows with t. No label: 0.

    Raises
    ------
    FoveateError
        Shapes, NaN, importance that is not above 0, an unknown normaliser, or a budget below 1.
    """
    right, odds = np.asarray(correct, np.float64), np.asarray(importance, np.float64)
    if right.shape != odds.shape or right.ndim != 1 or normaliser not in ("self", "t", "budget"):
        raise FoveateError(
            "importance_weighted_accuracy expects correct (t,), importance (t,) and a normaliser "
            f"'self', 't' or 'budget', got {right.shape}, {odds.shape} and {normaliser!r}"
        )
    if not (np.isfinite(right).all() and ((odds > 0) & (odds < math.inf)).all()):
        raise FoveateError("expected correct of 0 or 1 and finite importance above 0, without NaN")
    if not budget >= 1:
        raise FoveateError(f"expected a budget of at least 1, got {budget}")
    if not len(odds):
        return 0.0
    z = {"self": float(odds.sum()), "t": float(len(odds)), "budget": float(budget)}[normaliser]
    return float(right @ odds) / z


def class_entropy(predicted: npt.ArrayLike, n_classes: int) -> float:
    """COMB's reward (exp(H) - 1) / (C - 1), H the entropy of the predicted classes; in [0, 1]."""
    _, counts = np.unique(np.asarray(predicted), return_counts=True)
    if n_classes < 2 or len(counts) > n_classes:
        raise FoveateError(
            f"class_entropy expects n_classes of at least 2 and of at least the {len(counts)} that "
            f"are predicted, got {n_classes}"
        )
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(np.expm1(-(shares * np.log(shares)).sum()) / (n_classes - 1))


# ------------------------------------------------------------------------------ strategies


class DEAL(Strategy):
    """Dynamic ensemble active learning: REXP4 over the pool, one expert for each criterion.

    ``query``, ask a person, append the item to the labels and take it out of the pool,
    ``feedback``; then again. `state` before a query and `from_state` give the same query again, and
    the same ones after it, in another process.

    Parameters
    ----------
    experts
        Name -> function, or names out of `EXPERTS`, or None for US, DENS, DFF, RAND.
    estimator
        Any scikit-learn classifier; None: LogisticRegression. Cloned, never fitted itself. One that
        draws random numbers needs a seed as its own random_state, or no session can be repeated.
    budget
        T, the labels that are planned; a scale of the reward ``budget`` and no limit.
    gamma, restart, k_eff
        As in `foveate.learning.bandits.REXP4`. Advised: gamma 0.1 (0.3 from five experts on),
        restart 10 up to T = 60, else T / 5.
    reward
        ``iwa``; ``iwa_gain``: clip(1/2 + 10 (IWA_t - IWA_{t-1}), 0, 1), the first 1/2; ``cem``: the
        entropy of the classes predicted on the pool (COMB). All clipped to [0, 1].
    rank_alpha, gibbs_beta
        a and b of the advice.
    random_state
        Seed or generator of the draws.
    iwa_normaliser
        Z of `importance_weighted_accuracy`.

    Attributes
    ----------
    history
        One dict per label: weights (of the draw), expert, probability, reward, restarted
        (whether the weights were set to one just before that round).
    """

    def __init__(
        self,
        experts: Mapping[str, Expert] | Sequence[str] | None,
        estimator: Any,
        budget: int,
        gamma: float = 0.1,
        restart: int | None = 10,
        reward: Reward = "iwa",
        rank_alpha: float = 0.1,
        gibbs_beta: float = 10.0,
        random_state: int | np.random.Generator | None = None,
        *,
        k_eff: KEff = "advised",
        iwa_normaliser: Normaliser = "self",
    ) -> None:
        super().__init__(experts, estimator, budget, random_state)
        if reward not in ("iwa", "iwa_gain", "cem"):
            raise FoveateError(f"expected the reward 'iwa', 'iwa_gain' or 'cem', got {reward!r}")
        importance_weighted_accuracy([], [], iwa_normaliser)  # checks the name
        rank_advice([0.0], rank_alpha, gibbs_beta)
        self.bandit = REXP4(len(self.experts), gamma, restart, k_eff)
        self.reward, self.iwa_normaliser = reward, iwa_normaliser
        self.rank_alpha, self.gibbs_beta = rank_alpha, gibbs_beta
        self._importance: list[float] = []
        self._iwa = math.nan

    def query(self, x_pool: Any, x_labelled: Any, y_labelled: Any) -> Query:
        """Draw the next item.

        Parameters
        ----------
        x_pool
            ``(K, D)``, the unlabelled items.
        x_labelled, y_labelled
            ``(L, D)`` and ``(L,)``, all labels so far, of two classes or more.
        """
        return self.query_batch(x_pool, x_labelled, y_labelled, 1)[0]

    def query_batch(self, x_pool: Any, x_labelled: Any, y_labelled: Any, size: int) -> list[Query]:
        """Draw several items at once, without replacement, all with the same advice and weights.

        Every query carries the p that it had before the others were drawn (our decision: the paper
        asks for one label at a time). Give `feedback` for each, in any order.
        """
        scores = self._scores(x_pool, x_labelled, y_labelled)
        advice = np.stack([rank_advice(s, self.rank_alpha, self.gibbs_beta) for s in scores])
        if not 1 <= size <= advice.shape[1]:
            raise FoveateError(
                f"query_batch expects a size of 1 to {advice.shape[1]}, the pool's, got {size}"
            )
        weights, p = self.bandit.weights, self.bandit.probabilities(advice)
        left, found = p.copy(), []
        for _ in range(size):
            index = int(self.random.choice(len(p), p=left / left.sum()))
            left[index] = 0
            name = list(self.experts)[int(np.argmax(weights * advice[:, index]))]
            found.append(Query(index, float(p[index]), advice, weights, name))
        return found

    def feedback(
        self,
        query: Query,
        x_item: npt.ArrayLike,
        label: Any,
        x_labelled: Any,
        y_labelled: Any,
        x_pool: Any,
    ) -> float:
        """Refit, reward and learn, once the label is in.

        Parameters
        ----------
        x_item, label
            ``(D,)``, the item of `query`, and what it was called.
        x_labelled, y_labelled
            All labels, *this one included*. The same label may be corrected later: what counts is
            what it is today.
        x_pool
            ``(K', D)``, what is left; only ``cem`` looks at it.

        Returns
        -------
        float
            The reward, in [0, 1].
        """
        self._take(x_item, label, x_labelled, y_labelled)
        self._importance.append(1 / (query.advice.shape[1] * query.probability))
        reward = min(max(self._reward(x_labelled, y_labelled, x_pool), 0.0), 1.0)
        restart = self.bandit.restart
        self._log(query, reward, restart is not None and self.bandit.rounds % restart == 0)
        self.bandit.learn(query.advice, query.index, query.probability, reward)
        return reward

    def _reward(self, x_labelled: Any, y_labelled: Any, x_pool: Any) -> float:
        if self.reward == "cem":
            classifier = self.fit(x_labelled, y_labelled)
            predicted = classifier.predict(feature_matrix(x_pool, "x_pool")) if len(x_pool) else []
            return class_entropy(predicted, len(classifier.classes_))
        correct = self._correct(x_labelled, y_labelled)
        there = ~np.isnan(correct)
        importance = np.array(self._importance)[there]
        last, self._iwa = (
            self._iwa,
            importance_weighted_accuracy(
                correct[there], importance, self.iwa_normaliser, self.budget
            ),
        )
        if self.reward == "iwa":
            return self._iwa
        return 0.5 if math.isnan(last) else 0.5 + GAIN_SCALE * (self._iwa - last)

    def state(self) -> dict[str, Any]:
        """Everything but data, experts and estimator, as plain JSON.

        The generator's 128-bit numbers are texts, so that no JSON tool rounds them.
        """
        generator = self.random.bit_generator.state
        if generator["bit_generator"] != "PCG64":
            raise FoveateError(
                f"only the state of numpy's default generator (PCG64) is kept, not that of "
                f"{generator['bit_generator']}; give a seed as random_state"
            )
        return {
            "version": 1,
            "experts": list(self.experts),
            "settings": {
                "budget": self.budget,
                "gamma": self.bandit.gamma,
                "restart": self.bandit.restart,
                "reward": self.reward,
                "rank_alpha": self.rank_alpha,
                "gibbs_beta": self.gibbs_beta,
                "k_eff": self.bandit.k_eff,
                "iwa_normaliser": self.iwa_normaliser,
            },
            "bandit": self.bandit.state(),
            "random": {k: str(v) for k, v in generator["state"].items()}
            | {k: generator[k] for k in ("has_uint32", "uinteger")},
            "asked": list(self._asked),
            "importance": list(self._importance),
            "iwa": None if math.isnan(self._iwa) else self._iwa,
            "history": [dict(step) for step in self.history],
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        experts: Mapping[str, Expert] | Sequence[str] | None,
        estimator: Any,
    ) -> DEAL:
        """Go on where `state` was taken, with the same experts and estimator.

        Raises
        ------
        FoveateError
            It is no such state, or was taken with experts of other names.
        """
        deal = cls.__new__(cls)
        try:
            if state["version"] != 1:
                raise ValueError(f"version {state['version']}")
            DEAL.__init__(deal, experts, estimator, **state["settings"])
            if list(deal.experts) != list(state["experts"]):
                raise FoveateError(
                    f"this session was begun with the experts {', '.join(state['experts'])}, not "
                    f"with {', '.join(deal.experts)}; give the same ones in the same order"
                )
            deal.bandit.set_state(state["bandit"])
            kept = state["random"]
            deal.random.bit_generator.state = {
                "bit_generator": "PCG64",
                "state": {name: int(kept[name]) for name in ("state", "inc")},
                **{name: int(kept[name]) for name in ("has_uint32", "uinteger")},
            }
            deal._asked = [str(key) for key in state["asked"]]
            deal._importance = [float(value) for value in state["importance"]]
            if len(deal._asked) != len(deal._importance):
                raise ValueError(f"{len(deal._asked)} items, {len(deal._importance)} odds")
            deal._iwa = math.nan if state["iwa"] is None else float(state["iwa"])
            deal.history = [dict(step) for step in state["history"]]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FoveateError(
                f"this is not the state of an active-learning session ({error!r}); start a new one"
            ) from error
        return deal


class UniformMixture(DEAL):
    """The mixture with all weights one for ever: DEAL that restarts in every round."""

    def __init__(self, experts: Any, estimator: Any, budget: int, **settings: Any) -> None:
        _own("UniformMixture", settings, "restart")
        super().__init__(experts, estimator, budget, **settings, restart=1)


class COMB(DEAL):
    """EXP4 with the reward of COMB (Baram et al., 2004; as remembered): no restart, ``cem``."""

    def __init__(self, experts: Any, estimator: Any, budget: int, **settings: Any) -> None:
        _own("COMB", settings, "restart", "reward")
        super().__init__(experts, estimator, budget, **settings, restart=None, reward="cem")


def _own(strategy: str, settings: Mapping[str, Any], *fixed: str) -> None:
    if given := [name for name in fixed if name in settings]:
        raise FoveateError(f"{strategy} fixes {given[0]} itself; leave it out, or use DEAL")
