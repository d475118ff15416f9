"""Learning a distance under which neighbours stay neighbours when the *input* moves.

A Mahalanobis metric is a linear map L ``(d, D)``: ``d_M^2(a, b) = ||L (a - b)||^2`` with
``M = L^T L``. A *triplet* (i, j, l) is a row, a neighbour of its class and a row of another class.
LMNN and SCML ask for a margin in the feature space, ``g = d_M^2(x_i, x_l) - d_M^2(x_i, x_j) >= 1``,
which says little about how far x_i must be moved until j loses to l. That distance has a closed
form, because g changes linearly with x_i (slope ``-2 M u``, ``u = x_l - x_j``):

    support point          x_i* = x_i + g / (2 u^T M A0^-1 M u)  A0^-1 M u
    adversarial margin     r = g / (2 sqrt(u^T M A0^-1 M u)),   negative where j has lost already

A0 measures the movement, the identity by default. r does not change when L is scaled. The
*perturbation loss* asks the triplets of R for a margin tau, in units of the input:

    dt^2 = g^2 / (4 (u^T M^2 u + eps)),  eps = 1
    J_P  = 1/|R| sum_R [ tau^2 - sign(g) dt^2 ]_+

and is added to an existing objective (S: pairs of a row and a neighbour of its class):

    LMNN-PL   min_L  (1 - mu) mean_S d_M^2 + mu mean_R [1 - g]_+ + lambda J_P
    SCML-PL   min_w  mean_R [1 - g]_+ + eta ||w||_1 + lambda J_P,  M = sum_b w_b v_b v_b^T, w >= 0

With ``lam=0`` the two estimators are LMNN and SCML. For a network phi the margin is taken to first
order, ``g(x) / ||grad_x g(x)||``, which for a linear phi is r itself.

Paper: "Towards certified robustness of (distance) metric learning", arXiv 2006.05945. Published:
margin in the input space, its use as an added loss for LMNN, SCML and triplet losses. Remembered:
the stabilised square, the two signs, mu = 0.5. Ours: mining, Adam, defaults of lambda and tau, and
the form for networks.

>>> knn = make_pipeline(LMNNPL(), KNeighborsClassifier(3)).fit(x, y)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from foveate.errors import FoveateError
from foveate.learning.certificate import adversarial_margin, support_point
from foveate.learning.perturbation_loss import (
    DeepPerturbationLoss,
    PerturbationLoss,
    check_tau,
    first_order_margin,
    perturbation_hinge,
)
from foveate.learning.triplets import checked_rows, joined, nearest_rows, triplets

__all__ = [
    "LMNNPL",
    "SCMLPL",
    "DeepPerturbationLoss",
    "PerturbationLoss",
    "adversarial_margin",
    "discriminative_basis",
    "first_order_margin",
    "perturbation_hinge",
    "support_point",
    "triplets",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 1 << 22  # numbers of a corner of triplets held at a time for tau
_BASIS_REGIONS = (10, 20)  # nearest rows of each class around a centre
_WITHIN = 1e-3  # added to the within-class scatter


# ------------------------------------------------------------------------------ objectives


class _Terms:
    """What the objectives need of a metric M: constants of one set of triplets.

    Many triplets share a pair, so every distance is computed once per pair.
    """

    def __init__(self, x: Tensor, pulled: Tensor, found: Tensor) -> None:
        self.pulled = x[pulled[:, 0]] - x[pulled[:, 1]]
        self.differences, self.places = [], []
        for a, b in ((0, 1), (0, 2), (1, 2)):
            codes, place = torch.unique(found[:, a] * len(x) + found[:, b], return_inverse=True)
            self.differences.append(x[codes // len(x)] - x[codes % len(x)])
            self.places.append(place)

    def pull(self, M: Tensor) -> Tensor:
        """Mean squared distance to the target neighbours."""
        return ((self.pulled @ M) * self.pulled).sum(1).mean()

    def gap(self, M: Tensor) -> Tensor:
        """Gap g ``(T,)``."""
        to_j, to_l = (
            ((u @ M) * u).sum(1)[place]
            for u, place in zip(self.differences[:2], self.places[:2], strict=True)
        )
        return to_l - to_j

    def normal_squared(self, M: Tensor) -> Tensor:
        """``||M u||^2`` ``(T,)``."""
        return (self.differences[2] @ M).square().sum(1)[self.places[2]]


class _MahalanobisTransformer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """What the two estimators share: input, triplets, tau, transform."""

    components_: Floats

    def _start(self, X: Any, y: Any) -> tuple[Tensor, Ints, Ints, Ints]:
        """Checked rows, class numbers, target neighbours, first triplets; sets `tau_`."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        positive = {"max_iter": self.max_iter, "max_triplets": self.max_triplets}
        for name, value in positive.items():
            if value < 1:
                raise FoveateError(f"{name} is {value}; expected at least 1")
        for name, value in {"lam": self.lam, "learning_rate": self.learning_rate}.items():
            if not (math.isfinite(value) and value >= 0):
                raise FoveateError(f"{name} is {value}; expected a finite number of at least 0")
        if not 0 <= self.tau_quantile <= 1:
            raise FoveateError(f"tau_quantile is {self.tau_quantile}; expected 0 to 1")
        rows, labels = checked_rows(X, y, None)
        targets = nearest_rows(rows, labels, self.k_target, same=True)
        found = joined(targets, nearest_rows(rows, labels, self.k_impostor, same=False))
        if not len(found):
            raise FoveateError("every class has a single row; a triplet needs two rows of a class")
        x = torch.from_numpy(np.array(rows))
        if self.tau == "auto":
            self.tau_ = self._euclidean_tau(x, found)
        elif isinstance(self.tau, Real):
            self.tau_ = float(self.tau)
        else:
            raise FoveateError(f"tau is {self.tau!r}; expected 'auto' or a number above 0")
        check_tau(self.tau_, self.eps)
        return x, labels, targets, found

    def _euclidean_tau(self, x: Tensor, found: Ints) -> float:
        """The quantile of the sizes of the margins; of those above 0 where it would be 0."""
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        height = max(1, _BLOCK // x.shape[1])
        blocks = (found[start : start + height] for start in range(0, len(found), height))
        corners = ([x[column] for column in torch.from_numpy(block).T] for block in blocks)
        sizes = np.concatenate([adversarial_margin(eye, *three).abs().numpy() for three in corners])
        for used in (sizes, sizes[sizes > 0]):
            if used.size and (tau := float(np.quantile(used, self.tau_quantile))) > 0:
                return tau
        return 1.0  # all rows of two classes coincide: any tau is as good

    def _drawn(self, found: Ints, random: np.random.RandomState) -> Tensor:
        """At most `max_triplets` of the triplets."""
        if len(found) > self.max_triplets:
            found = found[np.sort(random.choice(len(found), self.max_triplets, replace=False))]
        return torch.from_numpy(found)

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FoveateError(
                f"the loss is {value} after {len(self.loss_curve_)} steps; standardise the "
                "features or lower learning_rate"
            )
        self.loss_curve_.append(value)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def transform(self, X: npt.ArrayLike) -> Floats:
        """``X L^T`` ``(N, d)``: Euclidean distance there is the learned distance."""
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        moved: Floats = rows @ self.components_.T
        return moved

    def get_mahalanobis_matrix(self) -> Floats:
        """``M = L^T L`` ``(D, D)``, symmetric and positive semidefinite."""
        check_is_fitted(self)
        matrix: Floats = self.components_.T @ self.components_
        return matrix

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


class LMNNPL(_MahalanobisTransformer):
    """Large margin nearest neighbours (Weinberger & Saul) with the perturbation loss.

    A scikit-learn transformer. Adam on L with all triplets in every step; target neighbours stay
    those of the Euclidean distance, impostors are mined anew every `remine` steps under the
    current L. Rows should be standardised: Adam's steps do not know their scale.

    Parameters
    ----------
    n_components
        d; None: D. L starts as the identity, or as the leading principal axes when d < D.
    k_target, k_impostor
        Neighbours of a row that make its triplets.
    mu
        Weight of the hinge against the pull, 0 to 1.
    lam
        Weight lambda of the perturbation loss; 0: plain LMNN.
    tau
        Wanted adversarial margin in units of the input; ``auto``: the quantile `tau_quantile` of
        its size over the first triplets under the Euclidean metric.
    tau_quantile
        0 to 1.
    eps
        Constant of the perturbation loss.
    shrinkage
        Weight of ``||L - L_0||_F^2 / D``, L_0 being the start: plain shrinkage, as a control.
    max_iter, learning_rate
        Steps of Adam and their size.
    remine
        Steps between two minings of impostors; 0: mine once. Directions that no mined triplet
        needs shrink between two minings: at 50 instead of 5, plain LMNN lost 8 points of held-out
        accuracy in our trials. Raise it where mining ten thousand rows and more takes too long.
    max_triplets
        Of more triplets as many are drawn at every mining.
    random_state
        For that draw; nothing else is random.

    Attributes
    ----------
    components_
        L ``(d, D)``.
    tau_
        The margin that was asked for.
    loss_curve_
        Loss before every step.
    n_iter_
        Steps taken.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Raises
    ------
    FoveateError
        In `fit`: one class, no class with two rows, a parameter out of range, or a loss that is
        not finite. What scikit-learn itself refuses (NaN, shapes) stays its ValueError.
    """

    def __init__(
        self,
        n_components: int | None = None,
        k_target: int = 3,
        k_impostor: int = 10,
        mu: float = 0.5,
        lam: float = 10.0,
        tau: float | Literal["auto"] = "auto",
        max_iter: int = 300,
        random_state: Any = None,
        *,
        tau_quantile: float = 0.7,
        eps: float = 1.0,
        shrinkage: float = 0.0,
        learning_rate: float = 0.02,
        remine: int = 5,
        max_triplets: int = 200_000,
    ) -> None:
        self.n_components = n_components
        self.k_target = k_target
        self.k_impostor = k_impostor
        self.mu = mu
        self.lam = lam
        self.tau = tau
        self.max_iter = max_iter
        self.random_state = random_state
        self.tau_quantile = tau_quantile
        self.eps = eps
        self.shrinkage = shrinkage
        self.learning_rate = learning_rate
        self.remine = remine
        self.max_triplets = max_triplets

    @torch.enable_grad()  # type: ignore[untyped-decorator]
    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> LMNNPL:
        """Learn L from rows ``(N, D)`` and labels ``(N,)``."""
        x, labels, targets, found = self._start(X, y)
        width = x.shape[1]
        size = width if self.n_components is None else self.n_components
        if not 1 <= size <= width:
            raise FoveateError(f"n_components is {size}; expected 1 to {width}")
        if not 0 <= self.mu <= 1 or not 0 <= self.shrinkage < math.inf or self.remine < 0:
            raise FoveateError(
                "LMNNPL expects mu from 0 to 1, and finite shrinkage and remine of at least 0, got "
                f"{self.mu}, {self.shrinkage} and {self.remine}"
            )
        start = torch.eye(width, dtype=torch.float64)
        if size < width:
            start = torch.linalg.svd(x - x.mean(0), full_matrices=True)[2][:size]
        L = start.clone().requires_grad_()
        random = check_random_state(self.random_state)
        pulled = torch.from_numpy(joined(targets, np.zeros((len(x), 1), np.int64))[:, :2])
        optimizer = torch.optim.Adam([L], self.learning_rate)
        self.loss_curve_: list[float] = []
        for step in range(self.max_iter):
            if step and self.remine and step % self.remine == 0:
                moved = (x @ L.detach().T).numpy()
                found = joined(targets, nearest_rows(moved, labels, self.k_impostor, same=False))
            if step == 0 or (self.remine and step % self.remine == 0):
                terms = _Terms(x, pulled, self._drawn(found, random))
            M = L.T @ L
            gap = terms.gap(M)
            loss = (1 - self.mu) * terms.pull(M) + self.mu * torch.relu(1 - gap).mean()
            if self.lam:
                hinge = perturbation_hinge(gap, terms.normal_squared(M), self.tau_, self.eps)
                loss = loss + self.lam * hinge.mean()
            if self.shrinkage:
                loss = loss + self.shrinkage * (L - start).square().sum() / width
            self._step(loss, optimizer)
        self.components_ = L.detach().numpy().copy()
        self.n_iter_ = self.max_iter
        return self


def discriminative_basis(x: npt.ArrayLike, y: npt.ArrayLike, random_state: Any = None) -> Floats:
    """Locally discriminative directions, the basis of SCML.

    ``max(2, 10 C)`` centres by k-means (C classes); around each, Fisher's discriminant of the 10
    and of the 20 nearest rows of every class, its leading C - 1 directions.

    Parameters
    ----------
    x, y
        ``(N, D)`` and ``(N,)``.
    random_state
        Of k-means.

    Returns
    -------
    ndarray
        ``(B, D)``, rows of length 1, B at most ``20 C (C - 1)``.

    Raises
    ------
    FoveateError
        Shapes, NaN, or a single class.
    """
    rows, labels = checked_rows(x, y, None)
    count, width = int(labels.max()) + 1, rows.shape[1]
    centres = min(max(2, 10 * count), len(np.unique(rows, axis=0)))
    means = KMeans(centres, n_init=1, random_state=random_state).fit(rows).cluster_centers_
    squared = cdist(means, rows, "sqeuclidean")
    basis = []
    for distances in squared:
        order = np.argsort(distances, kind="stable")
        ranked = [order[labels[order] == label] for label in range(count)]
        for nearest in _BASIS_REGIONS:
            groups = [rows[members[:nearest]] for members in ranked]
            middle = np.concatenate(groups).mean(0)
            within = _WITHIN * np.eye(width)
            between = np.zeros((width, width))
            for group in groups:
                inner, outer = group - group.mean(0), group.mean(0) - middle
                within += inner.T @ inner
                between += len(group) * np.outer(outer, outer)
            _, vectors = scipy.linalg.eigh(between, within)
            basis.append(vectors[:, ::-1][:, : min(count - 1, width)].T)
    found = np.concatenate(basis)
    directions: Floats = found / np.linalg.norm(found, axis=1, keepdims=True)
    return directions


class SCMLPL(_MahalanobisTransformer):
    """Sparse compositional metric learning (Shi, Bellet & Sha) with the perturbation loss.

    A scikit-learn transformer. The metric is a sum of given directions with weights w >= 0, most
    of which become 0. Adam on w with all triplets (those of the Euclidean distance) in every step;
    after it ``w <- max(w - learning_rate eta, 0)``.

    Parameters
    ----------
    basis
        ``(B, D)`` directions; None: `discriminative_basis`.
    eta
        Weight of ``||w||_1``; nominal, since Adam scales the other gradients and not this one.
    k_target, k_impostor, lam, tau, tau_quantile, eps, max_iter, learning_rate, max_triplets
        As in `LMNNPL`; ``lam=0``: plain SCML.
    random_state
        Of k-means and of the draw of triplets.

    Attributes
    ----------
    weights_
        w ``(B,)``.
    basis_
        ``(B, D)``.
    components_
        L ``(D, D)`` with ``L^T L = sum_b w_b v_b v_b^T``; rows from long to short, those of no
        weight are 0.
    tau_, loss_curve_, n_iter_, n_features_in_, feature_names_in_
        As in `LMNNPL`.

    Raises
    ------
    FoveateError
        In `fit`: as `LMNNPL`, a basis of another width, or an eta that leaves no weight.
    """

    def __init__(
        self,
        basis: npt.ArrayLike | None = None,
        k_target: int = 3,
        k_impostor: int = 10,
        eta: float = 1e-4,
        lam: float = 10.0,
        tau: float | Literal["auto"] = "auto",
        max_iter: int = 300,
        random_state: Any = None,
        *,
        tau_quantile: float = 0.7,
        eps: float = 1.0,
        learning_rate: float = 0.01,
        max_triplets: int = 200_000,
    ) -> None:
        self.basis = basis
        self.k_target = k_target
        self.k_impostor = k_impostor
        self.eta = eta
        self.lam = lam
        self.tau = tau
        self.max_iter = max_iter
        self.random_state = random_state
        self.tau_quantile = tau_quantile
        self.eps = eps
        self.learning_rate = learning_rate
        self.max_triplets = max_triplets

    @torch.enable_grad()  # type: ignore[untyped-decorator]
    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> SCMLPL:
        """Learn w from rows ``(N, D)`` and labels ``(N,)``."""
        x, labels, targets, found = self._start(X, y)
        if not self.eta >= 0:
            raise FoveateError(f"eta is {self.eta}; expected at least 0")
        random = check_random_state(self.random_state)
        if self.basis is None:
            self.basis_ = discriminative_basis(x.numpy(), labels, random)
        else:
            self.basis_ = np.array(self.basis, np.float64)
            shape = self.basis_.shape
            fits = len(shape) == 2 and shape[0] > 0 and shape[1] == x.shape[1]
            if not fits or not np.isfinite(self.basis_).all():
                raise FoveateError(
                    f"basis has the shape {shape}; expected finite numbers (B, {x.shape[1]}), B > 0"
                )
        V = torch.from_numpy(self.basis_)
        w = torch.full((len(V),), 1 / len(V), dtype=torch.float64, requires_grad=True)
        pulled = torch.from_numpy(joined(targets, np.zeros((len(x), 1), np.int64))[:, :2])
        terms = _Terms(x, pulled, self._drawn(found, random))
        optimizer = torch.optim.Adam([w], self.learning_rate)
        self.loss_curve_: list[float] = []
        for _ in range(self.max_iter):
            M = (V.T * w) @ V
            gap = terms.gap(M)
            loss = torch.relu(1 - gap).mean()
            if self.lam:
                hinge = perturbation_hinge(gap, terms.normal_squared(M), self.tau_, self.eps)
                loss = loss + self.lam * hinge.mean()
            self._step(loss, optimizer)
            with torch.no_grad():  # proximal step of eta ||w||_1 on w >= 0
                w.sub_(self.learning_rate * self.eta).clamp_(min=0)
        self.weights_ = w.detach().numpy().copy()
        if not self.weights_.any():
            raise FoveateError(f"no direction kept a weight; lower eta ({self.eta}) or max_iter")
        sizes, axes = np.linalg.eigh((self.basis_.T * self.weights_) @ self.basis_)
        self.components_ = (axes * np.sqrt(np.maximum(sizes, 0))).T[::-1].copy()
        self.n_iter_ = self.max_iter
        return self
