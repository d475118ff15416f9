"""DEAL: advice, rewards and whole sessions against what is written out here."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from active_pools import CHEAP, LOGISTIC, NOISY, TASK, sessions
from foveate.errors import FoveateError
from foveate.learning import active
from foveate.learning.active import (
    ALBL,
    COMB,
    DEAL,
    DEFAULT_EXPERTS,
    EXPERTS,
    SingleExpert,
    UniformMixture,
    class_entropy,
    importance_weighted_accuracy,
    pool_task,
    rank_advice,
    simulate,
)

# --- advice --------------------------------------------------------------------------------


def test_advice_by_its_formula():
    """Line 2: exp(b exp(-a rank)) / sum with a = 0.1, b = 10; the top gets 52 %, the next 22 %."""
    scores = np.random.default_rng(0).permutation(500)
    weight = [math.exp(10 * math.exp(-0.1 * (500 - s))) for s in scores.tolist()]
    assert rank_advice(scores) == pytest.approx(np.array(weight) / sum(weight))
    top = np.sort(rank_advice(scores))[::-1]
    assert top[0] == pytest.approx(0.52, abs=0.01)
    assert top[1] == pytest.approx(0.22, abs=0.01)
    assert top[60] < 1.03 * top[-1]  # flat beyond 60


@settings(deadline=None, max_examples=50)
@given(scores=st.lists(st.integers(-30, 30), min_size=1, max_size=40), scale=st.floats(0.1, 5))
def test_advice_sees_the_order_only(scores, scale):
    """Line 2: no strictly increasing transform changes it; ties share; it is a distribution."""
    advice = rank_advice(scores, scale / 10, 2 * scale)
    values = np.array(scores, float)
    for other in (7 * values - 100, values**3, np.arctan(values), np.exp(values / 10)):
        assert np.array_equal(rank_advice(other, scale / 10, 2 * scale), advice)
    assert advice.sum() == pytest.approx(1)
    assert (advice > 0).all()
    for i, a in enumerate(scores):
        for j, b in enumerate(scores):
            assert (advice[i] == advice[j]) if a == b else ((advice[i] >= advice[j]) == (a > b))


def test_indifference_is_uniform_and_infinite_scores_have_a_rank():
    assert rank_advice(np.zeros(7)) == pytest.approx(np.full(7, 1 / 7))
    assert np.argsort(rank_advice([0.0, math.inf, -math.inf])).tolist() == [2, 0, 1]


# --- rewards -------------------------------------------------------------------------------


def test_iwa_by_its_formula_and_unbiased():
    """Z = t: over draws from p, the expectation is the accuracy on the pool, whatever p."""
    rng = np.random.default_rng(0)
    right, p = rng.integers(0, 2, 9).astype(float), rng.dirichlet(np.ones(9))
    mean = sum(p[i] * importance_weighted_accuracy([right[i]], [1 / (9 * p[i])], "t")
               for i in range(9))  # fmt: skip
    assert mean == pytest.approx(right.mean())
    odds = [2.0, 0.5, 1.0]
    assert importance_weighted_accuracy([1, 0, 1], odds) == pytest.approx(3 / 3.5)
    assert importance_weighted_accuracy([1, 0, 1], odds, "t") == pytest.approx(1.0)
    assert importance_weighted_accuracy([1, 0, 1], odds, "budget", 30) == pytest.approx(0.1)
    assert importance_weighted_accuracy([], []) == 0.0


def test_class_entropy_by_hand():
    assert class_entropy([0, 1, 2] * 4, 3) == pytest.approx(1)
    assert class_entropy(["a"] * 4, 3) == 0
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert class_entropy([0, 1, 1, 1], 2) == pytest.approx(math.exp(h) - 1)
    assert class_entropy([], 2) == 0


@pytest.mark.parametrize("normaliser", ["self", "t", "budget"])
def test_reward_uses_odds_and_pool_size_of_the_day_of_the_query(normaliser):
    """Line 8: IWA recomputed here from what each query said when it was made."""
    deal = DEAL(CHEAP, LOGISTIC, 40, random_state=1, iwa_normaliser=normaliser)
    asked = []
    for query, pool, (x, y), reward in sessions(deal, NOISY, 14):
        weights = query.weights @ query.advice  # line 3, in the session
        p = 0.9 * weights + 0.1 / len(pool)
        assert query.probability == pytest.approx(p[query.index])
        assert query.probability >= 0.1 / len(pool)
        asked.append((x[-1], y[-1], 1 / (len(pool) * query.probability)))
        classifier = LogisticRegression(solver="newton-cholesky").fit(x, y)
        right = [w for item, label, w in asked if classifier.predict(item[None])[0] == label]
        z = {"self": sum(w for *_, w in asked), "t": len(asked), "budget": 40}[normaliser]
        assert reward == pytest.approx(min(1.0, sum(right) / z))
        assert deal.history[-1]["reward"] == reward
    assert len(right) < len(asked)


def test_gain_reward_is_the_scaled_difference():
    gains, plain = ([r for *_, r in sessions(DEAL(CHEAP, LOGISTIC, 9, restart=1, reward=reward,
                    random_state=2), NOISY, 9)] for reward in ("iwa_gain", "iwa"))  # fmt: skip
    steps = np.diff(plain)
    assert gains[0] == 0.5
    assert gains[1:] == pytest.approx(np.clip(0.5 + 10 * steps, 0, 1))
    assert len(set(gains)) > 2


def test_comb_is_exp4_with_class_entropy():
    comb = COMB(CHEAP, LOGISTIC, 9, random_state=0)
    for _, pool, (x, y), reward in sessions(comb, TASK, 5):
        left = pool[~(pool == x[-1]).all(1)]
        expected = class_entropy(LogisticRegression().fit(x, y).predict(left), 2)
        assert reward == pytest.approx(expected, abs=0.05)
    assert comb.bandit.restart is None
    assert comb.reward == "cem"


def test_equal_items_keep_their_own_labels():
    """Two items with the same features and different labels: one of them is always wrong."""
    task = dataclasses.replace(TASK, x_pool=np.ones((4, 2)), y_pool=np.array([0, 1, 0, 1]))
    deal = DEAL(CHEAP, LOGISTIC, 9, random_state=0, iwa_normaliser="self")
    *_, (_, _, _, reward) = sessions(deal, task, 4)
    assert reward == pytest.approx(0.5)  # uniform odds: all K p = 1
    # the first label of these features was given, not asked for: it is no part of the reward
    task = dataclasses.replace(
        task, y_pool=np.ones(4, int), x_start=np.array([[1.0, 1], [0, 0]]), y_start=np.array([0, 1])
    )
    for _, _, (x, y), reward in sessions(DEAL(CHEAP, LOGISTIC, 9, random_state=0), task, 4):
        assert reward == (LogisticRegression().fit(x, y).predict([[1, 1]])[0] == 1)


def test_a_label_may_be_corrected_or_withdrawn():
    deal = DEAL(CHEAP, LOGISTIC, 9, random_state=0)
    steps = list(sessions(deal, NOISY, 3))
    pool = NOISY.x_pool
    query = deal.query(pool, *steps[-1][2])
    x, y = steps[-1][2]
    x, y = np.delete(x, 2, axis=0), np.delete(y, 2)  # the first one that was asked about
    x, y = np.concatenate([x, pool[query.index : query.index + 1]]), np.append(y, 1)
    reward = deal.feedback(query, x[-1], 1, x, y, pool)
    right = LogisticRegression(solver="newton-cholesky").fit(x, y).predict(x[2:]) == y[2:]
    odds = [1 / (q.advice.shape[1] * q.probability) for q in (steps[1][0], steps[2][0], query)]
    assert reward == pytest.approx(np.dot(right, odds) / sum(odds))


# --- strategies ----------------------------------------------------------------------------


def test_arms_are_items_and_advice_is_a_whole_distribution():
    """Line 1: every expert spreads its advice over all that is left; ALBL's proposes one item."""
    deal = DEAL(None, LOGISTIC, 9, random_state=0)
    assert tuple(deal.experts) == DEFAULT_EXPERTS == ("US", "DENS", "DFF", "RAND")
    for query, pool, (x, y), _ in sessions(deal, TASK, 3):
        assert query.advice.shape == (4, len(pool))
        assert (query.advice > 0).all()
        assert query.advice.sum(1) == pytest.approx(np.ones(4))
        before = x[:-1], y[:-1]
        scores = EXPERTS["DFF"](None, *before, pool)
        assert query.advice[2] == pytest.approx(rank_advice(scores))
        assert query.advice[3] == pytest.approx(np.full(len(pool), 1 / len(pool)))
        most = np.argmax(query.weights * query.advice[:, query.index])
        assert query.expert == list(deal.experts)[most]
    albl = ALBL(None, LOGISTIC, 9, random_state=0)
    query = albl.query(TASK.x_pool, TASK.x_start, TASK.y_start)
    assert ((query.advice == 0) | (query.advice == 1))[:3].all()


def test_queries_are_drawn_and_not_the_best():
    """Line 7: 2000 first queries on a pool of six come as often as p says."""
    pool = TASK.x_pool[:6]
    deal = DEAL(CHEAP, LOGISTIC, 9, random_state=0)
    queries = [deal.query(pool, TASK.x_start, TASK.y_start) for _ in range(2000)]
    p = 0.9 * queries[0].advice.mean(0) + 0.1 / 6
    counts = np.bincount([q.index for q in queries], minlength=6)
    assert (np.abs(counts - 2000 * p) < 5 * np.sqrt(2000 * p * (1 - p))).all()
    assert all(q.probability == pytest.approx(p[q.index]) for q in queries[:50])


def test_no_test_label_and_no_unbought_label_is_seen():
    """Line 9: shuffled test labels and flipped labels of items never bought change no query."""
    runs = []
    for change in (None, "test", "pool"):
        task = TASK
        if change == "test":
            task = dataclasses.replace(task, y_test=1 - task.y_test, x_test=-task.x_test)
        if change == "pool":
            kept = np.isin(np.arange(len(task.y_pool)), runs[0].queried)
            task = dataclasses.replace(task, y_pool=np.where(kept, task.y_pool, 1 - task.y_pool))
        runs.append(simulate(DEAL(CHEAP, LOGISTIC, 9, random_state=3), task, 9))
    for run in runs[1:]:
        assert np.array_equal(run.queried, runs[0].queried)
        assert run.history == runs[0].history
    assert not np.array_equal(runs[1].accuracy, runs[0].accuracy)


def test_restart_in_a_session_and_its_two_ends():
    """Lines 6 and 12: weights are exported with the rounds of their restarts; a restart longer
    than the session is EXP4, one of every round is the uniform mixture."""
    curve = simulate(DEAL(CHEAP, LOGISTIC, 12, restart=5, random_state=0), TASK, 12)
    assert curve.weights.shape == (12, 2)
    assert curve.restarts == [0, 5, 10]
    even = (curve.weights == 0.5).all(1)
    assert np.flatnonzero(even).tolist() == [0, 5, 10]
    assert curve.experts == ("left", "right")
    assert set(curve.history[0]) == {"weights", "expert", "probability", "reward", "restarted"}
    never, long, every, uniform = (
        simulate(strategy, TASK, 12)
        for strategy in (
            DEAL(CHEAP, LOGISTIC, 12, restart=None, random_state=0),
            DEAL(CHEAP, LOGISTIC, 12, restart=13, random_state=0),
            DEAL(CHEAP, LOGISTIC, 12, restart=1, random_state=0),
            UniformMixture(CHEAP, LOGISTIC, 12, random_state=0),
        )
    )
    assert np.array_equal(never.queried, long.queried)
    assert np.array_equal(never.weights, long.weights)
    assert np.array_equal(every.queried, uniform.queried)
    assert (uniform.weights == 0.5).all()
    assert never.restarts == []


# --- sessions that end and go on -----------------------------------------------------------


@pytest.mark.parametrize("experts", [CHEAP, ("US", "QBC", "RAND")])
def test_a_killed_session_goes_on_exactly(experts):
    """The same queries, rewards and weights as without the kill, through JSON, at every label."""
    task, names = pool_task(*load_iris(return_X_y=True), seed=0), np.array(["set", "ver", "vir"])
    y_pool = np.random.default_rng(0).permutation(task.y_pool)  # or every reward would be 1
    task = dataclasses.replace(task, y_pool=names[y_pool], y_start=names[task.y_start])
    settings = {"restart": 4, "reward": "iwa_gain", "gamma": 0.3}
    whole = DEAL(experts, LOGISTIC, 9, random_state=7, **settings)
    expected = [(q.index, q.probability, r) for q, _, _, r in sessions(whole, task, 7)]

    saved = json.dumps(DEAL(experts, LOGISTIC, 9, random_state=7, **settings).state())
    left, x, y = np.arange(len(task.y_pool)), task.x_start, task.y_start
    for index, probability, reward in expected:
        deal = DEAL.from_state(json.loads(saved), experts, LOGISTIC)
        pool = task.x_pool[left]
        assert deal.query(pool, x, y).index == index  # asked, and killed before the answer
        deal = DEAL.from_state(json.loads(saved), experts, LOGISTIC)
        query = deal.query(pool, x, y)
        assert (query.index, query.probability) == (index, probability)
        row, left = left[query.index], np.delete(left, query.index)
        x = np.concatenate([x, task.x_pool[row : row + 1]])
        y = np.append(y, task.y_pool[row])
        assert deal.feedback(query, x[-1], y[-1], x, y, task.x_pool[left]) == reward
        saved = json.dumps(deal.state())
    assert json.loads(saved) == json.loads(json.dumps(whole.state()))
    assert len({reward for *_, reward in expected}) > 2
    assert deal.history == whole.history


def test_state_is_checked():
    state = DEAL(CHEAP, LOGISTIC, 9).state()
    with pytest.raises(FoveateError, match="experts left, right, not with US"):
        DEAL.from_state(state, ("US",), LOGISTIC)
    for damage in (
        {"version": 2},
        {"settings": {"gamma": "much"}},
        {"settings": {}},
        {"random": {"state": "x"}},
        {"asked": ["0"]},
        {"bandit": {}},
        {"history": [3]},
        {"importance": None},
    ):
        with pytest.raises(FoveateError, match="state of"):
            DEAL.from_state({**state, **damage}, CHEAP, LOGISTIC)
    with pytest.raises(FoveateError, match="state of"):
        DEAL.from_state({}, CHEAP, LOGISTIC)
    with pytest.raises(FoveateError, match="PCG64"):
        DEAL(CHEAP, LOGISTIC, 9, random_state=np.random.Generator(np.random.MT19937(0))).state()


def test_a_batch_is_drawn_without_replacement_from_one_p():
    pool, start = TASK.x_pool[:8], (TASK.x_start, TASK.y_start)
    one = DEAL(CHEAP, LOGISTIC, 9, random_state=5).query(pool, *start)
    assert (
        DEAL(CHEAP, LOGISTIC, 9, random_state=5).query_batch(pool, *start, 3)[0].index == one.index
    )
    deal = DEAL(CHEAP, LOGISTIC, 9, random_state=0)
    batch = deal.query_batch(pool, *start, 8)
    assert sorted(q.index for q in batch) == list(range(8))
    assert sum(q.probability for q in batch) == pytest.approx(1)
    # the second of two: sum_i p_i p_j / (1 - p_i) over the others
    p = np.array([q.probability for q in sorted(batch, key=lambda q: q.index)])
    second = np.array([sum(p[i] * p[j] / (1 - p[i]) for i in range(8) if i != j) for j in range(8)])
    seen = [deal.query_batch(pool, *start, 2)[1].index for _ in range(1000)]
    counts = np.bincount(seen, minlength=8)
    assert (np.abs(counts - 1000 * second) < 5 * np.sqrt(1000 * second)).all()
    # labels of a batch may come in any order
    x, y = start
    for q in reversed(batch[:3]):
        x, y = np.concatenate([x, pool[q.index][None]]), np.append(y, q.index % 2)
        assert 0 <= deal.feedback(q, x[-1], y[-1], x, y, pool) <= 1
    assert deal.bandit.rounds == len(deal.history) == 3
    with pytest.raises(FoveateError, match="size of 1 to 8"):
        deal.query_batch(pool, *start, 9)


def deal_query(**changes):
    given = {"x_pool": TASK.x_pool, "x_labelled": TASK.x_start, "y_labelled": TASK.y_start}
    return DEAL(changes.pop("experts", CHEAP), changes.pop("estimator", LOGISTIC), 9).query(
        **{**given, **changes}
    )


def deal_feedback(x_item, label):
    deal = DEAL(CHEAP, LOGISTIC, 9)
    query = deal.query(TASK.x_pool, TASK.x_start, TASK.y_start)
    deal.feedback(query, x_item, label, TASK.x_start, TASK.y_start, TASK.x_pool)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: deal_query(x_pool=np.zeros((0, 2))), "x_pool"),
        (lambda: deal_query(x_pool=np.zeros(3)), r"\(items, features\)"),
        (lambda: deal_query(x_pool=[["a"]]), "no number"),
        (lambda: deal_query(x_pool=np.full((3, 2), np.nan)), "x_pool has NaN"),
        (lambda: deal_query(x_pool=np.zeros((3, 5))), "different features"),
        (lambda: deal_query(y_labelled=[1, 1]), "two classes"),
        (lambda: deal_query(y_labelled=[1]), r"y_labelled \(2,\)"),
        (lambda: deal_query(y_labelled=[1.0, math.nan]), "missing label"),
        (lambda: deal_query(y_labelled=np.array(["a", None], object)), "missing label"),
        (lambda: deal_query(y_labelled=TASK.x_start[:, 0]), "classes"),
        (lambda: deal_query(y_labelled=np.array([1, "a"], object)), "one type"),
        (lambda: DEAL(CHEAP, LOGISTIC, math.nan), "budget"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9.5), "budget"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9, random_state=-1), "random_state"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9, random_state="seven"), "random_state"),
        (lambda: importance_weighted_accuracy([1, 0], [math.nan, 1]), "above 0"),
        (lambda: importance_weighted_accuracy([1, 0], [0, 0]), "above 0"),
        (lambda: importance_weighted_accuracy([math.nan, 0], [1, 1]), "above 0"),
        (lambda: importance_weighted_accuracy([1], [1], "budget", 0), "budget"),
        (lambda: deal_query(experts=("US", "UX")), "no expert 'UX'"),
        (lambda: deal_query(experts={}), "at least one expert"),
        (lambda: deal_query(experts={"bad": lambda c, x, y, p: p}), r"expert bad gave scores"),
        (lambda: deal_query(experts={"bad": lambda c, x, y, p: p[:, 0] * np.nan}), "NaN"),
        (
            lambda: deal_query(experts=("US",), estimator=_Silent()),
            "predict_proba or decision_function",
        ),
        (lambda: deal_feedback(TASK.x_pool[0], 0), "append them first"),
        (lambda: deal_feedback(TASK.x_start[0], 1 - TASK.y_start[0]), "append them first"),
        (lambda: DEAL(CHEAP, LOGISTIC, 0), "budget"),
        (lambda: UniformMixture(CHEAP, LOGISTIC, 9, restart=5), "fixes restart itself"),
        (lambda: COMB(CHEAP, LOGISTIC, 9, reward="iwa"), "fixes reward itself"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9, reward="luck"), "iwa_gain"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9, iwa_normaliser="z"), "normaliser"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9, rank_alpha=0), "rank_alpha"),
        (lambda: DEAL(CHEAP, LOGISTIC, 9, gibbs_beta=1e4), "gibbs_beta"),
        (lambda: SingleExpert(CHEAP, LOGISTIC, 9), "one expert"),
        (lambda: ALBL(("US",), LOGISTIC, 9), "two experts"),
        (lambda: rank_advice([[1.0]]), r"scores \(K,\)"),
        (lambda: rank_advice([math.nan]), "NaN"),
        (lambda: importance_weighted_accuracy([1], [1, 2]), "importance"),
        (lambda: class_entropy([0, 1, 2], 2), "n_classes"),
    ],
)
def test_bad_input_is_one_sentence(what, message):
    with pytest.raises(FoveateError, match=message) as error:
        what()
    assert "\n" not in str(error.value)


class _Silent(ClassifierMixin, BaseEstimator):
    """Nearest class mean: it can only say a class."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        self.means_ = np.stack([x[y == c].mean(0) for c in self.classes_])
        return self

    def predict(self, x):
        return self.classes_[np.argmin(((x[:, None] - self.means_) ** 2).sum(2), axis=1)]


def test_a_classifier_that_only_predicts_serves_the_other_criteria():
    curve = simulate(DEAL(CHEAP, _Silent(), 5, random_state=0), TASK, 5)
    assert curve.accuracy.shape == (6,)


def test_the_example_runs():
    assert doctest.testmod(active).failed == 0
