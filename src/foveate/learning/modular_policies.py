"""Which modules learn until the next decision: thresholds on their eigenvalues, and controls.

A policy is any callable ``(lam, history, step) -> names``; `Policy` says what it is given. The
paper's own rule has two parts and two parameters, as we recall (M): alpha, a threshold over the
modules of an epoch, and beta, one over the change of a module's own eigenvalue in time. Its formula
is not known here; `RatioThreshold` and `TemporalStop` are our reading (D), to be combined by
`AllOf`. `QuantileThreshold` fixes the cost beforehand, and its ``smallest`` form and
`RandomSelection` are what a comparison at equal cost needs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from foveate.errors import FoveateError

__all__ = [
    "AllOf",
    "Lambdas",
    "Policy",
    "QuantileThreshold",
    "RandomSelection",
    "RatioThreshold",
    "TemporalStop",
    "alpha_for",
]

Lambdas = Mapping[str, float]


class Policy(Protocol):
    """Which modules learn until the next decision.

    A policy that has an attribute ``uses_lambda = False`` is given NaN, and nothing is computed for
    it.
    """

    def __call__(self, lam: Lambdas, history: Sequence[Lambdas], step: int) -> set[str]:
        """Names out of `lam`.

        Parameters
        ----------
        lam
            Eigenvalue of every module now.
        history
            Those of all earlier decisions, the latest last.
        step
            Number of this decision, warm-up included, from 0.
        """
        ...


def alpha_for(lam: Lambdas, target_active: float) -> float:
    """Largest alpha with which at least `target_active` of the modules pass `RatioThreshold`."""
    if not lam or not 0 < target_active <= 1:
        raise FoveateError(
            f"alpha_for expects eigenvalues and a share in (0, 1], got {len(lam)} and "
            f"{target_active}"
        )
    top = max(lam.values())
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        share = sum(value >= middle * top for value in lam.values()) / len(lam)
        low, high = (middle, high) if share >= target_active - 1e-9 else (low, middle)
    return low


class RatioThreshold:
    """Active: ``lambda^l >= alpha max_j lambda^j``, anew at every decision.

    Parameters
    ----------
    alpha
        In [0, 1]. 0.1 is what we recall of the paper for BERT, 0.2 for VGG (M, unverified).
    target_active
        Instead of `alpha`: the share of modules that is to pass at the first decision, which then
        fixes alpha (`alpha_for`). The paper's runs had about 0.34 on average (R).
    """

    def __init__(self, alpha: float = 0.1, target_active: float | None = None) -> None:
        if not 0 <= alpha <= 1 or not (target_active is None or 0 < target_active <= 1):
            raise FoveateError(
                "RatioThreshold expects alpha in [0, 1] and target_active in (0, 1], got "
                f"{alpha} and {target_active}"
            )
        self.alpha, self.target_active = alpha, target_active

    def __call__(self, lam: Lambdas, history: Sequence[Lambdas], step: int) -> set[str]:
        """See `Policy`."""
        if self.target_active is not None:
            self.alpha, self.target_active = alpha_for(lam, self.target_active), None
        top = max(lam.values())
        return {name for name, value in lam.items() if value >= self.alpha * top}


def _above(q: float, count: int) -> int:
    """How many of `count` different numbers are at or above their q-quantile; at least 1."""
    return max(1, count - math.ceil(q * (count - 1) - 1e-9))


class QuantileThreshold:
    """Active: ``lambda^l >=`` the q-quantile over modules, so that the cost is known beforehand.

    Parameters
    ----------
    q
        In [0, 1], or a function of the number of the decision.
    smallest
        As many modules, but those of the smallest eigenvalues: a control.
    """

    def __init__(self, q: float | Callable[[int], float] = 0.6, smallest: bool = False) -> None:
        self.q, self.smallest = q, smallest
        if not callable(q):
            _checked_share(q)

    def __call__(self, lam: Lambdas, history: Sequence[Lambdas], step: int) -> set[str]:
        """See `Policy`."""
        q = _checked_share(self.q(step) if callable(self.q) else self.q)
        ordered = sorted(lam.values(), reverse=not self.smallest)
        edge = ordered[_above(q, len(ordered)) - 1]
        if self.smallest:
            return {name for name, value in lam.items() if value <= edge}
        return {name for name, value in lam.items() if value >= edge}


class RandomSelection:
    """As many modules as `QuantileThreshold` of the same q, drawn anew each time: a control.

    With ``q=0`` all modules learn: ordinary training, with the account of a controller.
    """

    uses_lambda = False

    def __init__(self, q: float | Callable[[int], float] = 0.6, seed: int = 0) -> None:
        self.q, self.seed = q, seed
        if not callable(q):
            _checked_share(q)

    def __call__(self, lam: Lambdas, history: Sequence[Lambdas], step: int) -> set[str]:
        """See `Policy`."""
        q = _checked_share(self.q(step) if callable(self.q) else self.q)
        names = list(lam)
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        order = torch.randperm(len(names), generator=draw).tolist()
        return {names[i] for i in order[: _above(q, len(names))]}


class TemporalStop:
    """Frozen: modules whose eigenvalue has stopped changing. To be combined, see `AllOf`.

    With ``d(t) = |lambda(t) - lambda(t-1)| / lambda(t-1)``, a module is frozen while d was below
    beta at this and the last decision, and back as soon as it is not.

    Parameters
    ----------
    beta
        At least 0. 1e-3 is what we recall of the paper for BERT, 1e-6 for VGG (M, unverified).
    patience
        Decisions in a row.
    """

    def __init__(self, beta: float = 1e-3, patience: int = 2) -> None:
        if not beta >= 0 or patience < 1:
            raise FoveateError(
                f"TemporalStop expects beta >= 0 and patience >= 1, got {beta} and {patience}"
            )
        self.beta, self.patience = beta, patience

    def __call__(self, lam: Lambdas, history: Sequence[Lambdas], step: int) -> set[str]:
        """See `Policy`."""
        if len(history) < self.patience:
            return set(lam)
        course = [*history[-self.patience :], lam]
        tiny = 1e-30

        def still(name: str) -> bool:
            values = [of[name] for of in course]
            changes = [abs(b - a) / max(a, tiny) for a, b in itertools.pairwise(values)]
            return all(change < self.beta for change in changes)

        return {name for name in lam if not still(name)}


class AllOf:
    """Active: what every one of several policies lets learn."""

    def __init__(self, *policies: Policy) -> None:
        if not policies:
            raise FoveateError("AllOf expects at least one policy")
        self.policies = policies

    def __call__(self, lam: Lambdas, history: Sequence[Lambdas], step: int) -> set[str]:
        """See `Policy`."""
        return set.intersection(*(set(p(lam, history, step)) for p in self.policies))


def _checked_share(q: float) -> float:
    if not 0 <= q <= 1:
        raise FoveateError(f"expected a quantile in [0, 1], got {q}")
    return q
