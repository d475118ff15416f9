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

>>> from sklearn.datasets import load_wine
>>> from sklearn.linear_model import LogisticRegression
>>> task = pool_task(*load_wine(return_X_y=True), seed=0)
>>> deal = DEAL(None, LogisticRegression(), budget=20, random_state=0)
>>> curve = simulate(deal, task, budget=20)
>>> bool(curve.accuracy[-1] > curve.accuracy[0])
True
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import train_test_split

from foveate.errors import FoveateError
from foveate.learning.bandits import EXP4P, REXP4, KEff

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
Expert = Callable[[Any, Array, npt.NDArray[Any], Array], npt.NDArray[Any]]
"""(fitted classifier, x_labelled (L, D), y_labelled (L,), x_pool (K, D)) -> (K,), higher = wanted.
A pure function: the same arguments give the same scores, or a resumed session would differ."""

GAIN_SCALE = 10.0  # of the reward iwa_gain
COMMITTEE = 5
ANCHORS, BANDWIDTH_ITEMS, BLOCK = 1000, 128, 4096  # density of large pools: bounded work and memory

# ------------------------------------------------------------------------------ experts


def _library() -> ModuleType:
    try:
        import skactiveml.pool
    except ImportError as error:
        raise FoveateError(
            "this query criterion needs scikit-activeml: pip install 'foveate[active]'"
        ) from error
    pool: ModuleType = skactiveml.pool
    return pool


def margin(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """US: smallest gap of the two likeliest classes, or smallest decision margin; in [0, 1]."""
    if hasattr(classifier, "predict_proba"):
        probabilities = classifier.predict_proba(x_pool)
        scores: Array = _library().uncertainty_scores(probabilities, method="margin_sampling")
        return scores
    if not hasattr(classifier, "decision_function"):
        raise FoveateError(
            "the criterion US needs predict_proba or decision_function, and "
            f"{type(classifier).__name__} has neither: choose another estimator or leave US out"
        )
    values = np.asarray(classifier.decision_function(x_pool), dtype=np.float64)
    if values.ndim == 1:
        gap = np.abs(values)
    else:
        best = np.sort(values, axis=1)[:, -2:]
        gap = best[:, 1] - best[:, 0]
    return 1 / (1 + gap)


def density(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """DENS: mean similarity exp(-d^2 / (2 sigma^2)) to the pool, sigma the median distance.

    Of pools above 1000 items every n-th stands for all, and the median is that of at most 128
    items, so that work grows with K and not with its square (our decision).
    """
    anchors = x_pool[:: math.ceil(len(x_pool) / ANCHORS)]
    few = anchors[:: math.ceil(len(anchors) / BANDWIDTH_ITEMS)]
    sigma = float(np.median(pdist(few))) if len(few) > 1 else 0.0
    gamma = 1 / (2 * sigma**2) if sigma > 0 else 1.0
    blocks = (x_pool[start : start + BLOCK] for start in range(0, len(x_pool), BLOCK))
    return np.concatenate(
        [rbf_kernel(block, anchors, gamma=gamma).mean(axis=1) for block in blocks]
    )


def farthest(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """DFF: distance to the nearest labelled item."""
    distances: Array = pairwise_distances_argmin_min(x_pool, x_labelled)[1]
    return distances


def indifferent(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """RAND: every item alike, so its advice is uniform."""
    return np.zeros(len(x_pool))


def quire(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """QUIRE (Huang et al., 2010): informative and representative; O(K^3), for hundreds of items."""
    classes, codes = np.unique(y_labelled, return_inverse=True)
    y = np.concatenate([codes.astype(np.float64), np.full(len(x_pool), np.nan)])
    strategy = _library().Quire(classes=np.arange(len(classes)), random_state=0)
    found = strategy.query(np.concatenate([x_labelled, x_pool]), y, return_utilities=True)
    scores: Array = found[1][0, len(codes) :]
    return scores


def committee(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """QBC: entropy of the votes of five classifiers, each fitted on a bootstrap of every class."""
    draw = np.random.default_rng(len(y_labelled))
    classes = np.unique(y_labelled)
    votes = []
    for _ in range(COMMITTEE):
        rows = [draw.choice(r, len(r)) for r in (np.flatnonzero(y_labelled == c) for c in classes)]
        drawn = np.concatenate(rows)  # every class is in it, or nothing could be fitted
        member = clone(classifier).fit(x_labelled[drawn], y_labelled[drawn])
        votes.append(np.searchsorted(classes, member.predict(x_pool)))
    scores: Array = _library().vote_entropy(np.stack(votes, axis=1), np.arange(len(classes)))
    return scores


def dense_margin(classifier: Any, x_labelled: Array, y_labelled: Any, x_pool: Array) -> Array:
    """US*DENS: doubtful and amid the crowd."""
    doubt = margin(classifier, x_labelled, y_labelled, x_pool)
    return doubt * density(classifier, x_labelled, y_labelled, x_pool)


EXPERTS: dict[str, Expert] = {
    "US": margin,
    "DENS": density,
    "DFF": farthest,
    "RAND": indifferent,
    "QUIRE": quire,
    "QBC": committee,
    "US*DENS": dense_margin,
}
DEFAULT_EXPERTS = ("US", "DENS", "DFF", "RAND")

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
    """
    right, odds = np.asarray(correct, np.float64), np.asarray(importance, np.float64)
    if right.shape != odds.shape or right.ndim != 1 or normaliser not in ("self", "t", "budget"):
        raise FoveateError(
            "importance_weighted_accuracy expects correct (t,), importance (t,) and a normaliser "
            f"'self', 't' or 'budget', got {right.shape}, {odds.shape} and {normaliser!r}"
        )
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
        if not experts or budget < 1:
            raise FoveateError(
                f"expected at least one expert and a budget of 1, got {len(experts)} and {budget}"
            )
        self.experts = dict(experts)
        self.estimator = LogisticRegression(max_iter=1000) if estimator is None else estimator
        self.budget = budget
        self.random = np.random.default_rng(random_state)
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
        x, y = _matrix(x_labelled, "x_labelled"), np.asarray(y_labelled)
        if self._fitted is not None:
            x_old, y_old, classifier = self._fitted
            if np.array_equal(x, x_old) and np.array_equal(y, y_old):
                return classifier
        if y.shape != (len(x),):
            raise FoveateError(f"x_labelled {x.shape} needs y_labelled ({len(x)},), got {y.shape}")
        if y.dtype.kind in "fO" and any(map(_missing, y.tolist())):
            raise FoveateError("y_labelled has a missing label; leave that item in the pool")
        if len(np.unique(y)) < 2:
            raise FoveateError(
                f"the {len(y)} labels given are of fewer than two classes; label one item of a "
                "second class first"
            )
        classifier = clone(self.estimator).fit(x, y)
        self._fitted = x.copy(), y.copy(), classifier
        return classifier

    def _scores(self, x_pool: npt.ArrayLike, x_labelled: Any, y_labelled: Any) -> list[Array]:
        """Every expert's scores ``(K,)``."""
        pool = _matrix(x_pool, "x_pool")
        labelled, y = _matrix(x_labelled, "x_labelled"), np.asarray(y_labelled)
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
        keys = _keys(_matrix(x_labelled, "x_labelled"))
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
        x = _matrix(x_labelled, "x_labelled")
        right = self.fit(x, y_labelled).predict(x) == np.asarray(y_labelled)
        rows = defaultdict(list)
        for row, key in enumerate(_keys(x)):
            rows[key].append(row)
        found = np.full(len(self._asked), np.nan)
        for s in range(len(self._asked) - 1, -1, -1):  # equal items: the last asked is the last row
            if rows[self._asked[s]]:
                found[s] = right[rows[self._asked[s]].pop()]
        return found


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
        Any scikit-learn classifier; None: LogisticRegression. Cloned, never fitted itself.
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
            predicted = classifier.predict(_matrix(x_pool, "x_pool")) if len(x_pool) else []
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
        super().__init__(experts, estimator, budget, **{**settings, "restart": 1})


class COMB(DEAL):
    """EXP4 with the reward of COMB (Baram et al., 2004; as remembered): no restart, ``cem``."""

    def __init__(self, experts: Any, estimator: Any, budget: int, **settings: Any) -> None:
        fixed = {"restart": None, "reward": "cem"}
        super().__init__(experts, estimator, budget, **{**settings, **fixed})


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


# ------------------------------------------------------------------------------ simulation


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
    features, labels = _matrix(x, "x"), np.asarray(y)
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
    z = (features - mean) / np.where(deviation > 0, deviation, 1.0)
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


def _matrix(x: npt.ArrayLike, name: str) -> Array:
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
