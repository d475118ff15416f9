"""What a set that is to be shared says of the rows it was made from: numbers, and one formal route.

Four items, each *evidence* and none a guarantee but the last:

1. **Proximity.** Are synthetic rows nearer to some training row than to any held-out row? Distances
   d(s, train) and d(s, held out), one pair per synthetic row, from equally many rows of either side
   (the more rows, the nearer the nearest), compared by the Mann-Whitney statistic, one-sided. Its
   textbook p-value takes the synthetic rows for independent. They are not: often one and the same
   central real row is nearest to all of them, and then pure noise is "significant" too. So the
   p-value here comes from drawing anew which rows are called training rows.
2. **Membership inference.** Whoever holds a network trained on the set guesses which rows were
   condensed: by the loss (Yeom et al., 2018: members have the lower one), or by the ratio of
   likelihoods of its confidence with and without the row (LiRA, Carlini et al., 2022, with shadow
   runs). AUC 0.5 is blind. An attack that never succeeds proves nothing: run it also where it must.
3. **Leaving one row out.** ``|| S - S' ||_F / || S ||_F`` of two condensations that differ in one
   row and in no random number, beside that of two that differ in the seed only.
   In distribution matching a row enters through a class mean of f in (0, 1) over B rows, so
   replacing it moves that mean by at most 1/B. *This holds only if f scores each row alone*, not
   with batch statistics, which couple the rows of a batch.
4. **Differential privacy**, off by default: `GaussianRelease` adds Gaussian noise to every class
   mean. Rows are drawn by Poisson sampling, each with q = B / n_c, and summed over a *fixed* B;
   adding or removing a row changes the vector of K outputs by at most sqrt(K) / B. The noise has
   z sqrt(K) / B, and the accountant (dp-accounting, extra ``privacy``) composes one subsampled
   Gaussian step per iteration. It presumes nets that do not couple rows, and class counts and a
   normaliser that are public. It is a research implementation: floating-point noise and a seeded
   generator are not proof against an adversary who attacks those.

The theorem of the medical-records condensation paper (arXiv 2305.03711) is not known here and not
reproduced.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.learning.condensation import CondensedSet, DistributionMatching

__all__ = [
    "AttackReport",
    "GaussianRelease",
    "LeaveOneOutReport",
    "PrivacyReport",
    "ProximityReport",
    "attack_report",
    "leave_one_out",
    "likelihood_ratio",
    "matched_rows",
    "membership_inference",
    "nearest_real_report",
    "shadow_masks",
]

ALPHA = 0.05  # level of the proximity test
BLIND = 0.03  # an attack whose AUC is this near to 0.5 is called blind
_GLOBAL_VARIANCE_BELOW = 64  # shadow runs; with fewer, one variance for all rows (Carlini et al.)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def _rows(x: Tensor | npt.ArrayLike, what: str) -> Tensor:
    """As float ``(N, D)``."""
    rows = torch.as_tensor(x, dtype=torch.float32)
    if rows.ndim < 2 or not rows.numel() or not rows.isfinite().all():
        raise FoveateError(
            f"{what} expects finite rows (N, ...), at least one, got {tuple(rows.shape)}"
        )
    return rows.flatten(1)


# ---------------------------------------------------------------------------- 1 proximity


@dataclass(frozen=True)
class ProximityReport:
    """Item 1.

    Attributes
    ----------
    to_train, to_holdout
        Euclidean distance of each synthetic row to the nearest row of either side.
    p_value
        How often the Mann-Whitney statistic comes out this small or smaller when training and
        held-out rows are relabelled at random.
    p_textbook
        The p-value that takes synthetic rows for independent, for comparison only.
    rows
        Rows compared with on either side.
    """

    to_train: Floats
    to_holdout: Floats
    p_value: float
    p_textbook: float
    rows: int

    @property
    def passed(self) -> bool:
        """No significant preference for training rows."""
        return self.p_value > ALPHA

    @property
    def nearer_to_train(self) -> float:
        """Share of synthetic rows that are nearer to a training row; 0.5 is no preference."""
        ties = 0.5 * float(np.mean(self.to_train == self.to_holdout))
        return float(np.mean(self.to_train < self.to_holdout)) + ties


def nearest_real_report(
    synthetic: Tensor | npt.ArrayLike,
    train: Tensor | npt.ArrayLike,
    holdout: Tensor | npt.ArrayLike,
    seed: int = 0,
    relabellings: int = 999,
) -> ProximityReport:
    """Compare the distances of synthetic rows to training and to held-out rows.

    All are ``(N, ...)`` in the same, normalised space. Of the larger side as many rows are drawn
    as the other has. The smallest p-value is 1 / (relabellings + 1).

    Raises
    ------
    FoveateError
        An empty side, numbers that are not finite, or rows of different sizes.
    """
    from scipy.stats import mannwhitneyu, rankdata

    s, t, h = (
        _rows(x, f"nearest_real_report ({what})")
        for x, what in ((synthetic, "synthetic"), (train, "train"), (holdout, "holdout"))
    )
    if not s.shape[1] == t.shape[1] == h.shape[1]:
        raise FoveateError(
            "nearest_real_report expects rows of one size, got "
            f"{s.shape[1]}, {t.shape[1]} and {h.shape[1]} numbers per row"
        )
    count = min(len(t), len(h))
    rng = np.random.default_rng(seed)
    real = torch.cat(
        [side[torch.from_numpy(rng.permutation(len(side))[:count])] for side in (t, h)]
    )
    # Differences and not the |a|^2 + |b|^2 - 2ab form: a copied row must come out as 0.
    distance = torch.cdist(s, real, compute_mode="donot_use_mm_for_euclid_dist").double().numpy()

    def statistic(order: Ints) -> tuple[float, Floats, Floats]:
        near = distance[:, order[:count]].min(1), distance[:, order[count:]].min(1)
        return float(rankdata(np.concatenate(near))[: len(s)].sum()), *near

    found, to_train, to_holdout = statistic(np.arange(2 * count))
    smaller = sum(
        statistic(rng.permutation(2 * count))[0] <= found + 1e-9 for _ in range(relabellings)
    )
    textbook = mannwhitneyu(to_train, to_holdout, alternative="less").pvalue
    return ProximityReport(
        to_train,
        to_holdout,
        (1 + smaller) / (1 + relabellings),
        1.0 if np.array_equal(to_train, to_holdout) else float(textbook),
        count,
    )


# ---------------------------------------------------------------------------- 2 membership


@dataclass(frozen=True)
class AttackReport:
    """Item 2: how well members are told from others.

    Attributes
    ----------
    auc
        Chance that a member has the higher score than a non-member, 0 to 1.
    auc_error
        Standard deviation of `auc` for a blind attack and these numbers of rows.
    balanced_accuracy
        At the threshold that is best in hindsight, so above 0.5 even for a blind attack.
    tpr_at_1_fpr
        Share of members found while at most 1 % of the others are taken for members.
    """

    auc: float
    auc_error: float
    balanced_accuracy: float
    tpr_at_1_fpr: float
    members: int
    nonmembers: int

    @property
    def blind(self) -> bool:
        """Whether the AUC is within 0.03 of 0.5."""
        return abs(self.auc - 0.5) <= BLIND


def attack_report(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> AttackReport:
    """Summarise an attack by its scores, ``(M,)`` and ``(N,)``; higher: rather a member.

    Raises
    ------
    FoveateError
        An empty side or a score that is NaN.
    """
    from scipy.stats import rankdata

    inside, outside = (np.asarray(s, np.float64) for s in (members, nonmembers))
    if inside.ndim != 1 or outside.ndim != 1 or not inside.size or not outside.size:
        raise FoveateError(
            "attack_report expects scores (M,) of members and (N,) of others, at least one of "
            f"each, got {inside.shape} and {outside.shape}"
        )
    if np.isnan(inside).any() or np.isnan(outside).any():
        raise FoveateError("attack_report got scores that are NaN; has the training diverged?")
    m, n = inside.size, outside.size
    ranks = rankdata(np.concatenate([inside, outside]))
    auc = (float(ranks[:m].sum()) - m * (m + 1) / 2) / (m * n)
    inside, outside = np.sort(inside), np.sort(outside)
    cuts = np.concatenate([inside, outside])  # "member" from this score on
    tpr = (m - np.searchsorted(inside, cuts, "left")) / m
    fpr = (n - np.searchsorted(outside, cuts, "left")) / n
    return AttackReport(
        auc=auc,
        auc_error=math.sqrt((m + n + 1) / (12 * m * n)),
        balanced_accuracy=0.5 + 0.5 * max(0.0, float((tpr - fpr).max())),
        tpr_at_1_fpr=float(tpr[fpr <= 0.01].max(initial=0.0)),
        members=m,
        nonmembers=n,
    )


@torch.no_grad()
def _logits(net: nn.Module, x: Tensor, batch: int = 512) -> Tensor:
    was, device = net.training, next(net.parameters()).device
    net.eval()
    try:
        return torch.cat([net(part.to(device)).cpu() for part in torch.split(x, batch)]).float()
    finally:
        net.train(was)


def row_losses(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every row, ``(N,)``; one logit means a yes-no label."""
    z = _logits(net, torch.as_tensor(x, dtype=torch.float32))
    y = torch.as_tensor(y)
    if z.ndim == 1 or z.shape[1] == 1:
        z = z.flatten()
        return F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")
    return F.cross_entropy(z, y.long(), reduction="none")


def membership_inference(
    net: nn.Module, members: tuple[Tensor, Tensor], nonmembers: tuple[Tensor, Tensor]
) -> AttackReport:
    """Loss-threshold attack on a trained network: rows ``(N, ...)`` and labels ``(N,)`` each.

    Take equal class counts on both sides (`matched_rows`): a rare class has the higher loss, and
    a difference in its share would pass for membership.
    """
    inside, outside = (row_losses(net, *side) for side in (members, nonmembers))
    return attack_report(-inside.numpy(), -outside.numpy())


def matched_rows(
    train_labels: npt.ArrayLike, holdout_labels: npt.ArrayLike, count: int, seed: int = 0
) -> tuple[Ints, Ints]:
    """Draw `count` held-out rows and as many training rows with the same class counts.

    Where the training rows of a class do not suffice, both sides have fewer of it. Returns
    ascending indices into either side.
    """
    train, holdout = np.asarray(train_labels), np.asarray(holdout_labels)
    if train.ndim != 1 or holdout.ndim != 1 or not 1 <= count <= holdout.size:
        raise FoveateError(
            f"matched_rows expects labels (N,) and a count from 1 to {holdout.size}, got "
            f"{train.shape}, {holdout.shape} and {count}"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(holdout.size)[:count]
    inside, outside = [], []
    for label in np.unique(holdout[drawn]):
        theirs = drawn[holdout[drawn] == label]
        ours = rng.permutation(np.flatnonzero(train == label))[: theirs.size]
        inside.append(ours)
        outside.append(theirs[: ours.size])
    pair = np.sort(np.concatenate(inside)), np.sort(np.concatenate(outside))
    return pair[0].astype(np.int64), pair[1].astype(np.int64)


def shadow_masks(rows: int, shadows: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """``(shadows, rows)``: which candidate is in which shadow run; each is in exactly half of them.

    Raises
    ------
    FoveateError
        `shadows` is odd or below 4.
    """
    if shadows < 4 or shadows % 2:
        raise FoveateError(f"shadow_masks expects an even number of at least 4 runs, got {shadows}")
    order = np.random.default_rng(seed).random((shadows, rows)).argsort(0)
    return order < shadows // 2


def likelihood_ratio(
    target: npt.ArrayLike, shadows: npt.ArrayLike, inside: npt.ArrayLike
) -> Floats:
    """LiRA: log N(c; in) - log N(c; out) of every candidate, ``(N,)``; higher: rather a member.

    Parameters
    ----------
    target
        ``(N,)`` confidences of the attacked network, log p_y / (1 - p_y): for one logit z and
        label y, (2y - 1) z.
    shadows, inside
        ``(K, N)`` confidences of K shadow networks, and whether the row was in their training.

    Raises
    ------
    FoveateError
        Shapes that do not fit, or a candidate that is in fewer than two shadow runs, or out of
        fewer than two.
    """
    c, theirs = np.asarray(target, np.float64), np.asarray(shadows, np.float64)
    mask = np.asarray(inside, bool)
    if c.ndim != 1 or theirs.ndim != 2 or theirs.shape != mask.shape or theirs.shape[1] != c.size:
        raise FoveateError(
            "likelihood_ratio expects target (N,), shadows (K, N) and inside (K, N), got "
            f"{c.shape}, {theirs.shape} and {mask.shape}"
        )
    if min(mask.sum(0).min(initial=2), (~mask).sum(0).min(initial=2)) < 2:
        raise FoveateError("likelihood_ratio needs every row in two shadow runs and out of two")
    log_density = []
    for chosen in (mask, ~mask):
        count = chosen.sum(0)
        mean = np.where(chosen, theirs, 0).sum(0) / count
        squares = np.where(chosen, (theirs - mean) ** 2, 0).sum(0)
        if len(theirs) < _GLOBAL_VARIANCE_BELOW:
            variance = np.full_like(mean, squares.sum() / (count - 1).sum())
        else:
            variance = squares / (count - 1)
        variance = np.maximum(variance, 1e-12)
        log_density.append(-0.5 * ((c - mean) ** 2 / variance + np.log(variance)))
    return np.asarray(log_density[0] - log_density[1])


# ---------------------------------------------------------------------------- 3 one row less


@dataclass(frozen=True)
class LeaveOneOutReport:
    """Item 3.

    Attributes
    ----------
    rows
        Which rows were left out, one at a time.
    change
        ``|| S - S' ||_F / || S ||_F`` for each.
    other_seed
        The same for two runs on all rows that differ in the seed: what "quite another set" is.
    prediction_change
        Mean ``| p - p' |`` of a network trained on either set, if one was given.
    """

    rows: list[int]
    change: list[float]
    other_seed: float
    prediction_change: list[float] = field(default_factory=list)


def leave_one_out(
    method: DistributionMatching,
    X: Tensor | npt.NDArray[Any],
    y: Tensor | npt.NDArray[Any],
    rows: Sequence[int],
    predict: Callable[[CondensedSet], Tensor] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> LeaveOneOutReport:
    """Condense once with all rows, once without each of `rows`, with the same random numbers.

    Parameters
    ----------
    method
        With a seed; else there are no same random numbers.
    predict
        Trains a network on a set, always from the same seed, and gives its predictions
        (probabilities) on rows of the caller's choice.
    """
    if method.seed is None:
        raise FoveateError("leave_one_out needs a seed in the method: both runs must share it")
    if not rows:
        raise FoveateError("leave_one_out needs at least one row to leave out")
    tell = progress or (lambda what, done, total: None)
    tell("condensing all rows", 0, len(rows) + 2)
    whole = method.fit(X, y)
    size = float(whole.x.double().norm())
    said = None if predict is None else predict(whole).double()
    change, predictions = [], []
    for done, row in enumerate(rows, 1):
        tell(f"condensing without row {row}", done, len(rows) + 2)
        less = method.fit(X, y, leave_out=int(row))
        change.append(float((whole.x - less.x).double().norm()) / size)
        if predict is not None and said is not None:
            predictions.append(float((predict(less).double() - said).abs().mean()))
    tell("condensing with another seed", len(rows) + 1, len(rows) + 2)
    other = dataclasses.replace(method, seed=method.seed + 1).fit(X, y)
    return LeaveOneOutReport(
        [int(row) for row in rows],
        change,
        float((whole.x - other.x).double().norm()) / size,
        predictions,
    )


# ---------------------------------------------------------------------------- 4 formal


@dataclass(frozen=True)
class GaussianRelease:
    """Item 4: noise on every class mean of every iteration.

    Attributes
    ----------
    noise_multiplier
        z: standard deviation of the noise in units of the sensitivity.
    delta
        Of (epsilon, delta); below 1 / rows.
    public_statistics
        You confirm that class counts and normaliser are public. Else they must be released with
        noise of their own, and that is to be counted too; it is not done here.
    """

    noise_multiplier: float
    delta: float
    public_statistics: bool = False

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)) or not (
            0 < self.delta < 1
        ):
            raise FoveateError(
                "GaussianRelease expects a noise_multiplier above 0 and delta between 0 and 1, "
                f"got {self.noise_multiplier} and {self.delta}"
            )
        if not self.public_statistics:
            raise FoveateError(
                "GaussianRelease covers the class means only: class counts and normaliser must be "
                "public; say so with public_statistics=True, or release them with noise first"
            )

    def epsilon(self, sampling_rate: float, steps: int) -> float:
        """Epsilon of `steps` Poisson-subsampled Gaussian steps; one row more or less.

        Parameters
        ----------
        sampling_rate
            q = B / n_c; of several classes the largest, for a row is in one class only.

        Raises
        ------
        FoveateError
            The accountant is not installed, or the arguments are out of range.
        """
        if not 0 < sampling_rate <= 1 or steps < 1:
            raise FoveateError(
                f"epsilon expects a sampling_rate above 0, at most 1, and at least one step, got "
                f"{sampling_rate} and {steps}"
            )
        try:
            import dp_accounting
            from dp_accounting import rdp
        except ImportError as error:
            raise FoveateError(
                "no (epsilon, delta) is stated without the accountant; "
                "install it with pip install 'foveate[privacy]'"
            ) from error
        accountant = rdp.RdpAccountant(
            neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        )
        step: Any = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if sampling_rate < 1:
            step = dp_accounting.PoissonSampledDpEvent(sampling_rate, step)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
        return float(accountant.get_epsilon(self.delta))


# ---------------------------------------------------------------------------- all four


@dataclass(frozen=True)
class PrivacyReport:
    """The four items together; what was not measured is None or empty.

    Attributes
    ----------
    attacks
        What was attacked, in words -> report.
    formal
        ``CondensedSet.meta["privacy"]`` of a set made with `GaussianRelease`.
    """

    proximity: ProximityReport | None = None
    attacks: Mapping[str, AttackReport] = field(default_factory=dict)
    leave_one_out: LeaveOneOutReport | None = None
    formal: Mapping[str, Any] | None = None

    def lines(self) -> list[str]:
        """One sentence per item, for a page or a terminal."""
        said = []
        near = self.proximity
        if near is None:
            said.append("Proximity: not measured.")
        else:
            said.append(
                f"Proximity, evidence: median distance of {len(near.to_train)} synthetic rows "
                f"{np.median(near.to_train):.3g} to training and {np.median(near.to_holdout):.3g} "
                f"to held-out rows; {'no' if near.passed else 'a'} significant preference for "
                f"training rows (p = {near.p_value:.2g})."
            )
        for what, attack in self.attacks.items():
            said.append(
                f"Membership inference, evidence, {what}: AUC {attack.auc:.3f} (blind: 0.5 +- "
                f"{attack.auc_error:.3f}), balanced accuracy {attack.balanced_accuracy:.3f}, "
                f"{100 * attack.tpr_at_1_fpr:.1f} % of members found at 1 % false alarms."
            )
        if not self.attacks:
            said.append("Membership inference: not measured.")
        less = self.leave_one_out
        if less is None:
            said.append("One row less: not measured.")
        else:
            said.append(
                f"One row less, evidence: it changes the set by {100 * max(less.change):.2g} % at "
                f"most ({len(less.rows)} rows tried), another seed changes it by "
                f"{100 * less.other_seed:.2g} %."
            )
        if self.formal is None:
            said.append("Formal: none claimed; no noise was added.")
        else:
            said.append(
                f"Formal: ({self.formal['epsilon']:.3g}, {self.formal['delta']:g})-differential "
                "privacy for one row more or less, by the accountant of dp-accounting, if class "
                "counts and normaliser are public."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        near = self.proximity
        return {
            "proximity": None
            if near is None
            else {
                "to_train": near.to_train.tolist(),
                "to_holdout": near.to_holdout.tolist(),
                "p_value": near.p_value,
                "p_textbook": near.p_textbook,
                "passed": near.passed,
            },
            "attacks": {what: dataclasses.asdict(a) for what, a in self.attacks.items()},
            "leave_one_out": None
            if self.leave_one_out is None
            else dataclasses.asdict(self.leave_one_out),
            "formal": None if self.formal is None else dict(self.formal),
        }
