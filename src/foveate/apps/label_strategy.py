"""How a labelling session chooses: its settings, the first items, and an honest accuracy.

Composition of `foveate.learning.active` (which item next) and scikit-learn (k-means for the first
items, cross-validation for the accuracy that the page shows).
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.learning.active import DEAL, DEFAULT_EXPERTS, EXPERTS

__all__ = ["StrategySettings", "cross_validated", "first_items"]

_SAMPLE = 5000  # items among which the first ones are looked for
_FOLDS = 5

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StrategySettings:
    """How items are chosen; fixed when a session begins.

    Attributes
    ----------
    experts
        Names out of `foveate.learning.active.EXPERTS`.
    gamma, restart
        Of DEAL; None: advised for the number of experts and the budget.
    reward
        ``iwa``, ``iwa_gain`` or ``cem``.
    candidates
        The most items that the experts look at for a draw.
    seed
        Of every draw.
    """

    experts: tuple[str, ...] = DEFAULT_EXPERTS
    gamma: float | None = None
    restart: int | None = None
    reward: Literal["iwa", "iwa_gain", "cem"] = "iwa"
    candidates: int = 2000
    seed: int = 0

    def check(self) -> None:
        """Raise FoveateError when a value makes no sense, or an expert's library is missing."""
        if unknown := [name for name in self.experts if name not in EXPERTS]:
            raise FoveateError(
                f"there is no expert {unknown[0]!r}; --experts are some of {', '.join(EXPERTS)}"
            )
        if len(set(self.experts)) != len(self.experts) or not self.experts:
            raise FoveateError("--experts names an expert twice, or none")
        if self.reward not in ("iwa", "iwa_gain", "cem"):
            raise FoveateError(f"--reward is {self.reward!r}; expected iwa, iwa_gain or cem")
        limits = {"gamma": (1e-6, 1), "restart": (1, 1 << 30), "candidates": (2, 1 << 20)}
        for name, (low, high) in (limits | {"seed": (0, 1 << 62)}).items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise FoveateError(f"--{name} is {value}; expected {low:g} to {high:g}")
        needing = [name for name in self.experts if name not in ("DENS", "DFF", "RAND")]
        if needing and importlib.util.find_spec("skactiveml") is None:
            raise FoveateError(
                f"the expert {needing[0]} needs scikit-activeml: pip install 'foveate[active]', or "
                "leave it out with --experts DENS,DFF,RAND"
            )

    def strategy(self, budget: int) -> DEAL:
        """A fresh DEAL."""
        return DEAL(
            self.experts,
            None,
            budget,
            gamma=self.gamma or (0.1 if len(self.experts) < 5 else 0.3),
            restart=self.restart or (10 if budget <= 60 else math.ceil(budget / 5)),
            reward=self.reward,
            random_state=self.seed,
        )


def first_items(x: Array, count: int, seed: int) -> list[int]:
    """Rows of the most typical items of the `count` largest groups, the largest group first."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances_argmin

    random = np.random.default_rng([seed, 0])
    rows = np.sort(random.permutation(len(x))[:_SAMPLE])
    distinct = len(np.unique(x[rows], axis=0))
    groups = KMeans(min(count, distinct), n_init=3, random_state=seed % (1 << 32)).fit(x[rows])
    typical = pairwise_distances_argmin(groups.cluster_centers_, x[rows])
    sizes = np.bincount(groups.labels_, minlength=len(typical))
    order = typical[np.argsort(-sizes, kind="stable")]
    return [int(rows[place]) for place in dict.fromkeys(order.tolist())]


def cross_validated(x: Array, y: npt.NDArray[np.str_], seed: int) -> list[int] | None:
    """``[right, of]``: items whose label a classifier that never saw them predicts.

    Stratified folds, at most 5; classes with a single label stay in the training part. None when
    fewer than two classes have two labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    words, counts = np.unique(y, return_counts=True)
    if (counts > 1).sum() < 2:
        return None
    common = np.isin(y, words[counts > 1])
    x_rest, y_rest = x[~common], y[~common]
    x, y = x[common], y[common]
    folds = min(_FOLDS, int(counts[counts > 1].min()))
    right = 0
    split = StratifiedKFold(folds, shuffle=True, random_state=seed % (1 << 32))
    for train, test in split.split(x, y):
        model = LogisticRegression(max_iter=1000)
        model.fit(np.concatenate([x[train], x_rest]), np.concatenate([y[train], y_rest]))
        right += int((model.predict(x[test]) == y[test]).sum())
    return [right, len(y)]
