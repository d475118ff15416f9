r"""Bandits with expert advice that survive a change of mind: EXP4, EXP4.P and REXP4.

In round t, each of N experts gives *advice*, a probability distribution xi_m over K arms. The
player draws one arm, sees the reward of that arm only, in [0, 1], and must find out whom to trust.
EXP4 (Auer et al., 2002) keeps a weight w_m for every expert:

    p_i    = (1 - gamma) sum_m w_m xi_m,i / sum_m w_m  +  gamma / K       mixture, and a floor
    rhat_i = r / p_i for the arm that was drawn, 0 for all others         E[rhat_i] = r_i
    yhat_m = sum_i xi_m,i rhat_i = xi_m(drawn) r / p(drawn)               every expert learns
    w_m   <- w_m exp(gamma yhat_m / K_eff)

EXP4's regret is bounded against the best *fixed* expert. When the best expert changes, REXP4
(Besbes et al., 2014, for bandits without experts; DEAL, ICPR 2018, with them) forgets: every Delta
rounds all weights are one again. When sum_t sup_i |mu_i(t+1) - mu_i(t)| <= V over T rounds,

    Delta = ceil( (K ln N)^(1/3) (T / V)^(2/3) ),   gamma = min(1, sqrt(K ln N / ((e - 1) Delta)))

keeps the regret against the best expert of every *single* round within
C (K ln N V)^(1/3) T^(2/3) (remembered for K arms, derived for N experts).

*K_eff.* The textbook divides by K. In pool-based active learning K is the size of the pool, and
gamma / K then moves a weight by thousandths in a window of ten rounds: the mixture stays uniform.
The default divides by the number of *different recommendations* plus one (our decision). The
exponent, at most 1 with K, is then clipped at 1; `clipped` counts how often. The bound above is for
``k_eff="pool"`` only.

EXP4.P (Beygelzimer et al., 2011) adds a bonus for what an expert was rarely asked about, and holds
with high probability:

    p_i  = (1 - K p_min) sum_m w_m xi_m,i / sum_m w_m + p_min,   p_min = sqrt(ln N / (K T))
    w_m <- w_m exp( p_min / 2 (yhat_m + vhat_m sqrt(ln(N / delta) / (K T))) )
           with vhat_m = sum_i xi_m,i / p_i

>>> import numpy as np
>>> bandit = REXP4(n_experts=2, gamma=0.2, restart=50)
>>> p = bandit.probabilities([[0.9, 0.1, 0.0], [0.0, 0.1, 0.9]])
>>> arm = int(np.random.default_rng(0).choice(3, p=p))
>>> bandit.update(arm, reward=1.0)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["EXP4", "EXP4P", "REXP4", "effective_arms", "restart_schedule", "static_gamma"]

Array = npt.NDArray[np.float64]
KEff = Literal["advised", "pool"]


def static_gamma(n_arms: int, n_experts: int, horizon: int) -> float:
    """EXP4's exploration for `horizon` rounds: min(1, sqrt(K ln N / ((e - 1) T)))."""
    if min(n_arms, n_experts, horizon) < 1:
        raise FoveateError(
            "static_gamma expects at least one arm, one expert and one round, got "
            f"{n_arms}, {n_experts} and {horizon}"
        )
    return min(1.0, math.sqrt(n_arms * math.log(n_experts) / ((math.e - 1) * horizon)))


def restart_schedule(
    n_arms: int, n_experts: int, horizon: int, variation: float
) -> tuple[int, float]:
    """Restart length and exploration of REXP4 for a known amount of change.

    Parameters
    ----------
    variation
        V > 0: bound of the sum over rounds of the largest change of any arm's mean reward. One
        switch of an arm from 0.2 to 0.8 is 0.6.

    Returns
    -------
    restart, gamma
        Delta, at least 1 and at most `horizon`, and gamma in [0, 1].
    """
    if not (math.isfinite(variation) and variation > 0):
        raise FoveateError(
            f"restart_schedule expects a variation above 0, got {variation}; without any change "
            "use EXP4"
        )
    static_gamma(n_arms, n_experts, horizon)  # checks the counts
    length = (n_arms * math.log(n_experts)) ** (1 / 3) * (horizon / variation) ** (2 / 3)
    restart = min(horizon, max(1, math.ceil(length)))
    return restart, static_gamma(n_arms, n_experts, restart)


def effective_arms(advice: npt.ArrayLike) -> int:
    """Number of different top recommendations plus one; at most N + 1 and at most K.

    What an expert recommends is the *set* of arms that share its largest probability, so that the
    number does not depend on how ties are broken; an indifferent expert recommends all.

    Parameters
    ----------
    advice
        ``(N, K)``.
    """
    xi = np.asarray(advice)
    top = xi == xi.max(axis=1, keepdims=True)
    return min(len({row.tobytes() for row in top}) + 1, int(xi.shape[1]))


class REXP4:
    """EXP4 that sets all weights back to one after every `restart` rounds.

    Parameters
    ----------
    n_experts
        N >= 1.
    gamma
        Share of uniform exploration, in (0, 1]; also the learning rate.
    restart
        Rounds between two restarts; None: never, which is EXP4; 1: the uniform mixture.
    k_eff
        What the exponent is divided by: ``advised`` (`effective_arms`) or ``pool`` (K, the
        textbook's).

    Attributes
    ----------
    rounds
        Rounds learned from.
    clipped
        Rounds in which the exponent of an expert was clipped at 1.
    """

    def __init__(
        self,
        n_experts: int,
        gamma: float = 0.1,
        restart: int | None = 10,
        k_eff: KEff = "advised",
    ) -> None:
        known = k_eff in ("advised", "pool")
        if not _whole(n_experts) or n_experts < 1 or not 0 < gamma <= 1 or not known:
            raise FoveateError(
                "REXP4 expects n_experts of at least 1, gamma in (0, 1] and k_eff 'advised' or "
                f"'pool', got {n_experts}, {gamma} and {k_eff!r}"
            )
        if restart is not None and (not _whole(restart) or restart < 1):
            raise FoveateError(
                f"REXP4 expects a restart of at least 1, a whole number, or None, got {restart}"
            )
        self.n_experts, self.gamma, self.restart, self.k_eff = n_experts, gamma, restart, k_eff
        self.rounds = self.clipped = 0
        self._log_weights: Array = np.zeros(n_experts)
        self._last: tuple[Array, Array] | None = None

    @property
    def weights(self) -> Array:
        """``(N,)``, sum 1: the weights that the next round uses."""
        return _normalised(self._log_weights)

    def probabilities(self, advice: npt.ArrayLike) -> Array:
        """Odds p ``(K,)`` of drawing each arm: sum 1, every p_i >= gamma / K.

        Parameters
        ----------
        advice
            ``(N, K)``, each row a probability distribution. K may differ from round to round.
        """
        xi = _checked(advice, self.n_experts)
        p: Array = (1 - self.gamma) * (self.weights @ xi) + self.gamma / xi.shape[1]
        self._last = xi, p
        return p

    def update(self, arm: int, reward: float) -> None:
        """Learn from the arm drawn out of the last `probabilities`; reward in [0, 1]."""
        if self._last is None:
            raise FoveateError("call probabilities before every update: there is nothing drawn yet")
        xi, p = self._last
        if not _whole(arm) or not 0 <= arm < len(p):
            raise FoveateError(f"there are arms 0 to {len(p) - 1}, got {arm}")
        self._learn(xi, arm, float(p[arm]), reward)

    def learn(self, advice: npt.ArrayLike, arm: int, probability: float, reward: float) -> None:
        """Learn from an arm that was drawn with `probability` out of that `advice`, any time ago.

        For labels that come late or several at once; `update` does it for the last round.
        """
        self._learn(_checked(advice, self.n_experts), arm, probability, reward)

    def _learn(self, xi: Array, arm: int, probability: float, reward: float) -> None:
        drawn = _whole(arm) and 0 <= arm < xi.shape[1] and 0 < probability <= 1 + 1e-9
        if not drawn or not 0 <= reward <= 1:
            raise FoveateError(
                f"expected an arm of 0 to {xi.shape[1] - 1}, its probability in (0, 1] and a "
                f"reward in [0, 1], got {arm}, {probability} and {reward}"
            )
        k_eff = effective_arms(xi) if self.k_eff == "advised" else xi.shape[1]
        exponent = self.gamma * xi[:, arm] * reward / probability / k_eff
        self.clipped += bool((exponent > 1 + 1e-9).any())  # with K_eff = K it is 1 at most
        self._log_weights += np.minimum(exponent, 1.0)
        self._log_weights -= self._log_weights.max()
        self.rounds += 1
        self._last = None
        if self.restart is not None and self.rounds % self.restart == 0:
            self._log_weights[:] = 0

    def state(self) -> dict[str, Any]:
        """What was learned, as plain JSON numbers and lists."""
        return {
            "rounds": self.rounds,
            "clipped": self.clipped,
            "log_weights": self._log_weights.tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the settings are those of this object."""
        try:
            log_weights = np.array(state["log_weights"], dtype=np.float64)
            rounds, clipped = int(state["rounds"]), int(state["clipped"])
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(f"this is not the state of a bandit ({error!r})") from error
        if log_weights.shape != (self.n_experts,) or not np.isfinite(log_weights).all():
            raise FoveateError(
                f"the state of a bandit with {self.n_experts} experts has as many finite "
                f"log_weights, got {state['log_weights']}"
            )
        self.rounds, self.clipped, self._log_weights = rounds, clipped, log_weights
        self._last = None


class EXP4(REXP4):
    """EXP4: REXP4 that never forgets."""

    def __init__(self, n_experts: int, gamma: float = 0.1, k_eff: KEff = "advised") -> None:
        super().__init__(n_experts, gamma, None, k_eff)


class EXP4P:
    """EXP4.P for a fixed number of arms and a known number of rounds.

    Parameters
    ----------
    n_experts
        N >= 2.
    n_arms, horizon
        K and T; p_min = sqrt(ln N / (K T)), at most 1 / K.
    delta
        Its bound holds with probability 1 - delta.
    """

    def __init__(self, n_experts: int, n_arms: int, horizon: int, delta: float = 0.1) -> None:
        counted = all(map(_whole, (n_experts, n_arms, horizon)))
        if not counted or n_experts < 2 or min(n_arms, horizon) < 1 or not 0 < delta < 1:
            raise FoveateError(
                "EXP4P expects at least two experts, one arm and one round, and delta in (0, 1), "
                f"got {n_experts}, {n_arms}, {horizon} and {delta}"
            )
        self.n_experts, self.n_arms = n_experts, n_arms
        self.p_min = min(1 / n_arms, math.sqrt(math.log(n_experts) / (n_arms * horizon)))
        self.bonus = math.sqrt(math.log(n_experts / delta) / (n_arms * horizon))
        self._log_weights: Array = np.zeros(n_experts)
        self._last: tuple[Array, Array] | None = None

    @property
    def weights(self) -> Array:
        """``(N,)``, sum 1."""
        return _normalised(self._log_weights)

    def probabilities(self, advice: npt.ArrayLike) -> Array:
        """Odds p ``(K,)`` out of advice ``(N, K)``: sum 1, every p_i >= p_min."""
        xi = _checked(advice, self.n_experts)
        if xi.shape[1] != self.n_arms:
            raise FoveateError(f"this EXP4P has {self.n_arms} arms, got advice {xi.shape}")
        p: Array = (1 - self.n_arms * self.p_min) * (self.weights @ xi) + self.p_min
        self._last = xi, p
        return p

    def update(self, arm: int, reward: float) -> None:
        """Learn from the arm drawn out of the last `probabilities`; reward in [0, 1]."""
        if self._last is None:
            raise FoveateError("call probabilities before every update: there is nothing drawn yet")
        xi, p = self._last
        if not _whole(arm) or not 0 <= arm < len(p) or not 0 <= reward <= 1:
            raise FoveateError(
                f"expected an arm of 0 to {len(p) - 1} and a reward in [0, 1], got {arm}, {reward}"
            )
        self.learn(xi[:, arm] * reward / p[arm], (xi / p).sum(axis=1))

    def learn(self, gains: Array, variances: Array) -> None:
        """The last step of the formula: yhat ``(N,)`` and vhat ``(N,)``, finite."""
        for given in (gains, variances):
            if np.shape(given) != (self.n_experts,) or not np.isfinite(given).all():
                raise FoveateError(
                    f"EXP4P expects finite gains and variances ({self.n_experts},), got {given}"
                )
        self._log_weights += self.p_min / 2 * (gains + variances * self.bonus)
        self._log_weights -= self._log_weights.max()
        self._last = None


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _normalised(log_weights: Array) -> Array:
    weights = np.exp(log_weights - log_weights.max())
    shares: Array = weights / weights.sum()
    return shares


def _checked(advice: npt.ArrayLike, n_experts: int) -> Array:
    xi = np.asarray(advice, dtype=np.float64)
    if xi.ndim != 2 or xi.shape[0] != n_experts or xi.shape[1] == 0:
        raise FoveateError(f"expected advice ({n_experts}, K) with K >= 1, got {xi.shape}")
    # NaN fails both comparisons
    sums = xi.sum(axis=1, keepdims=True)
    if not ((xi >= 0).all() and (np.abs(sums - 1) <= 1e-6).all()):
        raise FoveateError(
            "every expert's advice is a probability distribution: numbers of at least 0 that sum "
            f"to 1, got sums {sums.ravel().tolist()}"
        )
    checked: Array = xi / sums  # a float32 softmax is off by 1e-7, which numpy's choice refuses
    return checked
