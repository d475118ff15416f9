"""The bandits against scalar re-computations, enumeration and a switching bandit."""

from __future__ import annotations

import ast
import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.learning import bandits
from foveate.learning.bandits import (
    EXP4,
    EXP4P,
    REXP4,
    effective_arms,
    restart_schedule,
    static_gamma,
)


def some_advice(rng, n: int, k: int, sharp: bool = False) -> np.ndarray:
    raw = rng.random((n, k)) ** (20 if sharp else 1) + 1e-3
    return raw / raw.sum(1, keepdims=True)


class ByHand:
    """REXP4 as the text writes it: weights themselves, one number after the other."""

    def __init__(self, n: int, gamma: float, restart: int | None, k_eff: str) -> None:
        self.w, self.gamma, self.restart, self.k_eff, self.t = [1.0] * n, gamma, restart, k_eff, 0

    def p(self, xi: np.ndarray) -> list[float]:
        if self.restart is not None and self.t % self.restart == 0:
            self.w = [1.0] * len(self.w)
        k = xi.shape[1]
        total = sum(self.w)
        return [
            (1 - self.gamma) * sum(w * row[i] for w, row in zip(self.w, xi, strict=True)) / total
            + self.gamma / k
            for i in range(k)
        ]

    def learn(self, xi: np.ndarray, arm: int, p: float, r: float) -> None:
        k = xi.shape[1]
        if self.k_eff == "advised":
            tops = {frozenset(i for i in range(k) if row[i] == max(row)) for row in xi}
            k = min(len(tops) + 1, len(xi) + 1, k)
        for m, row in enumerate(xi):
            rhat = [r / p if i == arm else 0.0 for i in range(xi.shape[1])]
            yhat = sum(a * b for a, b in zip(row, rhat, strict=True))
            self.w[m] *= math.exp(min(1.0, self.gamma * yhat / k))
        self.t += 1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 6),
    k=st.integers(1, 12),
    gamma=st.floats(0.01, 1.0),
    restart=st.one_of(st.none(), st.integers(1, 9)),
    k_eff=st.sampled_from(["advised", "pool"]),
)
def test_rexp4_by_hand(seed, n, k, gamma, restart, k_eff):
    """Lines 3, 5 and 6: p is a distribution with the floor gamma / K on top of the mixture, every
    expert learns by its own advice, and weights are one again after every restart."""
    rng = np.random.default_rng(seed)
    bandit, reference = REXP4(n, gamma, restart, k_eff), ByHand(n, gamma, restart, k_eff)
    for t in range(20):
        xi = some_advice(rng, n, max(1, k - t % 3), sharp=bool(seed % 2))  # the pool changes
        p, expected = bandit.probabilities(xi), reference.p(xi)
        assert p == pytest.approx(expected, abs=1e-12)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert (p >= gamma / xi.shape[1]).all()
        arm, reward = int(rng.choice(xi.shape[1], p=p)), float(rng.random())
        bandit.update(arm, reward)
        reference.learn(xi, arm, expected[arm], reward)
    reference.p(xi)
    assert bandit.weights == pytest.approx(np.array(reference.w) / sum(reference.w), abs=1e-12)
    assert bandit.rounds == 20


def test_reward_estimate_is_unbiased_for_every_arm():
    """Line 4: only the drawn arm counts, by r / p. Enumerating all draws with their odds gives the
    reward that every expert would have had: sum_i p_i log-gain_i = gamma / K xi . r."""
    rng = np.random.default_rng(0)
    xi, rewards = some_advice(rng, 3, 6), rng.random(6)
    gains = np.zeros(3)
    for arm in range(6):
        bandit = REXP4(3, gamma=0.3, restart=None, k_eff="pool")
        p = bandit.probabilities(xi)
        bandit.update(arm, rewards[arm])
        gains += p[arm] * np.array(bandit.state()["log_weights"])
        mine = 0.3 / 6 * xi[:, arm] * rewards[arm] / p[arm]  # nothing from the arms not drawn
        assert np.diff(bandit.state()["log_weights"]) == pytest.approx(np.diff(mine))
        assert bandit.clipped == 0
    # log weights are kept up to a common constant: differences of experts are what is fixed
    hindsight = 0.3 / 6 * (xi @ rewards)
    assert np.diff(hindsight) != pytest.approx(0)
    assert np.diff(gains) == pytest.approx(np.diff(hindsight))


def test_simulated_draws_estimate_the_reward():
    """Line 4 by simulation: the mean of r / p over 20,000 draws is the reward of each arm."""
    rng = np.random.default_rng(1)
    bandit, rewards = REXP4(2, 0.4), np.array([0.2, 0.9, 0.5])
    p = bandit.probabilities(some_advice(rng, 2, 3))
    arms = rng.choice(3, 20_000, p=p)
    estimate = np.array([(arms == i).mean() * rewards[i] / p[i] for i in range(3)])
    error = rewards * np.sqrt((1 - p) / p / 20_000)
    assert (np.abs(estimate - rewards) < 5 * error).all()


def test_experts_that_did_not_win_learn_too():
    """Line 5: an expert with a small share of the drawn item still gains by that share."""
    bandit = REXP4(3, 0.5, None, "pool")
    xi = np.array([[0.8, 0.2, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]])
    p = bandit.probabilities(xi)
    bandit.update(0, 1.0)
    log = np.array(bandit.state()["log_weights"])
    assert log - log[2] == pytest.approx(0.5 / 3 / p[0] * xi[:, 0])


def played(bandit, rounds: int, seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rounds):
        found.append(bandit.weights)
        p = bandit.probabilities(some_advice(rng, 3, 7))
        bandit.update(int(rng.choice(7, p=p)), float(rng.random()))
    return found


def test_restart_is_hard_and_a_long_one_is_exp4():
    """Line 6."""
    forgetting = np.array(played(REXP4(3, 0.3, 8), 24))
    for t in range(24):
        assert (forgetting[t] == 1 / 3).all() == (t % 8 == 0)
    never = played(EXP4(3, 0.3), 24)
    for length in (24, 25, 1000):
        assert np.array_equal(played(REXP4(3, 0.3, length), 24), never)
    assert np.array_equal(played(REXP4(3, 0.3, None), 24), never)
    assert not np.array_equal(forgetting[9:], never[9:])
    assert (np.array(played(REXP4(3, 0.3, 1), 24)) == 1 / 3).all()  # the uniform mixture


def regret(bandit, advice, means, seed: int) -> tuple[float, np.ndarray]:
    draws = np.random.default_rng(seed).random((len(means), 2))
    best, total, weights = (means @ advice.T).max(1), 0.0, []
    for t, mu in enumerate(means):
        p = bandit.probabilities(advice)
        arm = min(int((np.cumsum(p) < draws[t, 0]).sum()), len(p) - 1)
        bandit.update(arm, float(draws[t, 1] < mu[arm]))
        total += best[t] - mu[arm]
        weights.append(bandit.weights)
    return total, np.array(weights)


def test_switching_bandit_without_any_active_learning():
    """Line 11: the core knows no active learning; on a simulated bandit whose good expert changes
    every 250 rounds forgetting pays, without a change it costs, and weights move in a window."""
    source = ast.parse(Path(bandits.__file__).read_text("utf-8"))
    imported = {
        name
        for node in ast.walk(source)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name])
    }
    assert imported <= {"__future__", "math", "typing", "numpy", "numpy.typing", "foveate.errors"}

    advice = np.full((4, 8), 0.1 / 7)
    np.fill_diagonal(advice, 0.9)
    restart, gamma = restart_schedule(8, 4, 2000, 7 * 0.6)
    switching, still = np.full((2000, 8), 0.2), np.full((2000, 8), 0.2)
    switching[np.arange(2000), np.arange(2000) // 250 % 4] = still[:, 1] = 0.8
    of = {"rexp4": [], "own": [], "same": [], "rexp4 still": [], "exp4 still": []}
    for seed in range(3):
        total, weights = regret(REXP4(4, gamma, restart), advice, switching, seed)
        of["rexp4"].append(total)
        windows = weights[: 2000 // restart * restart].reshape(-1, restart, 4)
        spread = windows[:, -2].max(1) / windows[:, -2].min(1)  # just before the next restart
        assert (spread > 1.05).all()
        own = EXP4(4, static_gamma(8, 4, 2000))
        of["own"].append(regret(own, advice, switching, seed)[0])
        of["same"].append(regret(EXP4(4, gamma), advice, switching, seed)[0])
        of["rexp4 still"].append(regret(REXP4(4, gamma, restart), advice, still, seed)[0])
        own = EXP4(4, static_gamma(8, 4, 2000))
        of["exp4 still"].append(regret(own, advice, still, seed)[0])
    mean = {name: np.mean(values) for name, values in of.items()}
    assert mean["rexp4"] < 0.95 * min(mean["own"], mean["same"])
    assert mean["exp4 still"] < mean["rexp4 still"]


def test_schedule_by_its_formula():
    restart, gamma = restart_schedule(8, 4, 2000, 7 * 0.6)
    assert restart == 136  # (8 ln 4)^(1/3) (2000 / 4.2)^(2/3) = 135.97
    assert gamma == pytest.approx(math.sqrt(8 * math.log(4) / ((math.e - 1) * 136)))
    assert gamma == pytest.approx(0.218, abs=5e-4)
    assert static_gamma(8, 4, 2000) == pytest.approx(0.057, abs=5e-4)
    assert static_gamma(1000, 9, 3) == 1.0
    assert restart_schedule(8, 4, 50, 1e-9) == (50, static_gamma(8, 4, 50))
    assert restart_schedule(1, 2, 50, 1e9)[0] == 1


def test_effective_arms_counts_recommendations():
    one, two = [0.6, 0.4, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0]
    anyone, either = [0.25] * 4, [0.4, 0.4, 0.2, 0.0]
    assert effective_arms([one, one, one]) == 2
    assert effective_arms([one, two]) == 3
    assert effective_arms([one, two, anyone]) == 4
    assert effective_arms([one, either]) == 3
    assert effective_arms([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5]]) == 2  # never above K


def test_exponent_is_clipped_with_few_effective_arms_only():
    """A draw at the floor by an expert that wanted it: 0.1 x 0.5 / (0.1 / 500) / 3 = 83."""
    xi = np.full((2, 500), 0.5 / 499)
    xi[0, 0] = xi[1, 1] = 0.5
    for k_eff, clipped in (("advised", 1), ("pool", 0)):
        bandit = REXP4(2, 0.1, None, k_eff)
        bandit.learn(xi, 0, 0.1 / 500, 1.0)
        assert bandit.clipped == clipped
        assert bandit.weights[0] / bandit.weights[1] <= math.e
    assert bandit.weights[0] > bandit.weights[1]


def test_weights_survive_many_rounds():
    """Log space: 50,000 steps of one expert being right overflow no exponential."""
    bandit = EXP4(2, 1.0)
    for _ in range(50_000 // 25):
        bandit.learn([[1.0, 0.0], [0.0, 1.0]], 0, 0.5, 1.0)
    assert bandit.weights == pytest.approx([1.0, 0.0])
    assert np.isfinite(bandit.probabilities([[1.0, 0.0], [0.0, 1.0]])).all()


def test_state_goes_on_exactly():
    bandit, other = REXP4(3, 0.3, 8), REXP4(3, 0.3, 8)
    played(bandit, 13)
    other.set_state(json.loads(json.dumps(bandit.state())))
    assert np.array_equal(played(bandit, 9, seed=4), played(other, 9, seed=4))
    assert bandit.state() == other.state()
    for damaged in ({}, {"rounds": 1, "clipped": 0, "log_weights": [0.0]},
                    {"rounds": 1, "clipped": 0, "log_weights": [0.0, math.nan, 0.0]},
                    {"rounds": "x", "clipped": 0, "log_weights": [0.0] * 3}):  # fmt: skip
        with pytest.raises(FoveateError, match="state of a bandit"):
            other.set_state(damaged)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(2, 6), k=st.integers(1, 7), t=st.integers(1, 300))
def test_exp4p_by_hand(seed, n, k, t):
    rng = np.random.default_rng(seed)
    bandit, w = EXP4P(n, k, t, delta=0.05), np.ones(n)
    p_min = min(1 / k, math.sqrt(math.log(n) / (k * t)))
    for _ in range(10):
        xi = some_advice(rng, n, k)
        p = (1 - k * p_min) * (w @ xi) / w.sum() + p_min
        found = bandit.probabilities(xi)
        assert found == pytest.approx(p)
        assert found.sum() == pytest.approx(1)
        assert (found >= p_min - 1e-12).all()
        arm, r = int(rng.integers(k)), float(rng.random())
        bandit.update(arm, r)
        for m in range(n):
            yhat = xi[m, arm] * r / p[arm]
            vhat = sum(xi[m, i] / p[i] for i in range(k))
            w[m] *= math.exp(p_min / 2 * (yhat + vhat * math.sqrt(math.log(n / 0.05) / (k * t))))
        assert bandit.weights == pytest.approx(w / w.sum())


def test_a_float32_softmax_is_good_enough_to_draw_from():
    raw = np.random.default_rng(0).random((3, 4001)).astype(np.float32)
    p = REXP4(3).probabilities(raw / raw.sum(1, keepdims=True))
    np.random.default_rng(0).choice(4001, p=p)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: REXP4(0), "n_experts"),
        (lambda: REXP4(2, gamma=0), "gamma"),
        (lambda: REXP4(2, gamma=math.nan), "gamma"),
        (lambda: REXP4(2, restart=0), "restart"),
        (lambda: REXP4(2, k_eff="all"), "k_eff"),
        (lambda: REXP4(2).update(0, 1.0), "call probabilities"),
        (lambda: REXP4(2).probabilities([[1.0, 0.0]]), r"advice \(2, K\)"),
        (lambda: REXP4(1).probabilities(np.zeros((1, 0))), "K >= 1"),
        (lambda: REXP4(1).probabilities([[0.5, 0.4]]), "sum to 1"),
        (lambda: REXP4(1).probabilities([[1.5, -0.5]]), "at least 0"),
        (lambda: REXP4(1).probabilities([[math.nan, 1.0]]), "distribution"),
        (lambda: REXP4(1).learn([[1.0]], 0, 1.0, 1.5), r"reward in \[0, 1\]"),
        (lambda: REXP4(1).learn([[1.0]], 0, 1.0, math.nan), "reward"),
        (lambda: REXP4(1).learn([[1.0]], 0, 0.0, 1.0), "probability"),
        (lambda: REXP4(1).learn([[1.0]], 1, 1.0, 1.0), "arm"),
        (lambda: EXP4P(1, 2, 3), "two experts"),
        (lambda: EXP4P(2, 2, 3, delta=1.0), "delta"),
        (lambda: EXP4P(2, 2, 3).probabilities([[1.0], [1.0]]), "2 arms"),
        (lambda: EXP4P(2, 2, 3).update(0, 0.5), "call probabilities"),
        (lambda: restart_schedule(2, 2, 10, 0.0), "variation"),
        (lambda: static_gamma(0, 2, 10), "at least one arm"),
    ],
)
def test_bad_input_is_one_sentence(what, message):
    with pytest.raises(FoveateError, match=message) as error:
        what()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "what",
    [
        lambda: REXP4(2.5),
        lambda: REXP4(2, restart=2.5),
        lambda: REXP4(True),
        lambda: EXP4P(2.5, 2, 9),
        lambda: EXP4P(2, 2, math.nan),
        lambda: EXP4P(2, 2, 9).learn(np.array([math.nan, 1.0]), np.ones(2)),
        lambda: EXP4P(2, 2, 9).learn(np.ones(3), np.ones(3)),
        lambda: REXP4(2).learn([[0.5, 0.5]] * 2, 0.5, 0.5, 1.0),
    ],
)
def test_counts_are_whole_numbers_and_gains_finite(what):
    """A restart of 2.5 came at every fifth round, a NaN gain made all weights NaN."""
    with pytest.raises(FoveateError) as error:
        what()
    assert "\n" not in str(error.value)


def test_update_checks_its_arm():
    for bandit in (REXP4(2), EXP4P(2, 2, 9)):
        bandit.probabilities([[1.0, 0.0], [0.0, 1.0]])
        with pytest.raises(FoveateError, match="0 to 1"):
            bandit.update(2, 1.0)


def test_the_example_runs():
    assert doctest.testmod(bandits).failed == 0
