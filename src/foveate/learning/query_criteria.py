r"""Query criteria: what makes an unlabelled item worth a label.

Every criterion is a function of the classifier of today, the labels so far and the K items of the
pool, and gives K scores, higher = wanted more:

    US        smallest gap of the two likeliest classes, or smallest decision margin (uncertainty)
    DENS      largest mean similarity exp(-d^2 / (2 sigma^2)) to the pool (representative)
    DFF       farthest from all labels, distance-furthest-first (diversity)
    RAND      all alike
    QUIRE     informative and representative (Huang et al., 2010)
    QBC       entropy of the votes of a bagged committee
    US*DENS   the product of the two

Which of them the paper of `foveate.learning.active` used is not known: the families are named
there, the choice and the forms are ours. US, QUIRE and QBC are scikit-activeml's.

>>> import numpy as np
>>> EXPERTS["DFF"](None, np.zeros((1, 2)), np.array([0]), np.array([[3.0, 4.0], [0.0, 1.0]]))
array([5., 1.])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import rbf_kernel

from foveate.errors import FoveateError

__all__ = ["DEFAULT_EXPERTS", "EXPERTS", "Expert"]

Array = npt.NDArray[np.float64]
Expert = Callable[[Any, Array, npt.NDArray[Any], Array], npt.NDArray[Any]]
"""(fitted classifier, x_labelled (L, D), y_labelled (L,), x_pool (K, D)) -> (K,), higher = wanted.
A pure function: the same arguments give the same scores, or a resumed session would differ."""

COMMITTEE = 5
ANCHORS, BANDWIDTH_ITEMS, BLOCK = 1000, 128, 4096  # density of large pools: bounded work and memory


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
    apart = pdist(few)
    if len(apart) and np.median(apart) == 0:  # most items are equal: of those that are not
        apart = apart[apart > 0]
    sigma = float(np.median(apart)) if len(apart) else 0.0
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
