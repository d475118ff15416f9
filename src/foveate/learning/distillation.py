"""Learning from another network: what it looks at, what it says, how its channels are.

*Attention matching* (real-to-binary, ICLR 2020; after Zagoruyko & Komodakis, ICLR 2017): at the
output A ``(B, C, h, w)`` of every block, student and teacher compare where their energy is,

    Q = sum_c A_c^2,   q = vec(Q) / || vec(Q) ||_2      per sample
    paper   sum over blocks of || q_S - q_T ||_2, mean over the batch
    mean    sum over blocks of the mean over batch and positions of (q_S - q_T)^2

*Logit matching* (Hinton et al., 2015): ``T^2 KL( softmax(z_T / T) || softmax(z_S / T) )``, mean
over the batch.

The gradient reaches the student only: what comes from the teacher is detached here, and
`FrozenTeacher` keeps the teacher itself as it is, its batch statistics too.

>>> teacher = FrozenTeacher(real_net)  # doctest: +SKIP
>>> loss = ce + 1000 * AttentionMatchingLoss()(student_maps, teacher_maps)  # doctest: +SKIP
>>> loss = loss + 3 * LogitKD()(student_logits, teacher_logits)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = [
    "AttentionMatchingLoss",
    "Connector",
    "FitNetLoss",
    "FrozenTeacher",
    "LogitKD",
    "StatLoss",
    "attention_map",
    "channel_stats",
]


def attention_map(features: Tensor, norm: Literal["l2", "max"] = "l2", eps: float = 1e-6) -> Tensor:
    """Normalised energy of every position of ``(B, C, h, w)``: ``(B, h * w)``, not negative.

    ``l2``: divided by its length; ``max``: by its largest value (the larq port). A map of zeros
    stays zero.
    """
    if features.ndim != 4:
        raise FoveateError(f"attention_map expects (B, C, h, w), got {tuple(features.shape)}")
    energy = features.float().square().sum(1).flatten(1)
    if norm == "max":
        return energy / (energy.amax(1, keepdim=True) + eps)
    # eps under the root: the length has no gradient at 0
    return energy / (energy.square().sum(1, keepdim=True) + eps).sqrt()


class AttentionMatchingLoss(nn.Module):
    """Distance of the attention maps of student and teacher, block by block.

    Parameters
    ----------
    norm
        ``l2`` or ``max``, as in `attention_map`.
    reduce
        ``mean``: sum over blocks of the mean squared difference (the released code of EB-Net; its
        weight is 1000). ``sum``: sum over blocks of the length of the difference (the paper's
        form, mean over the batch).
    eps
        Added under the roots and to the largest value.
    indicator
        Which pairs count; None: all. EB-Net leaves out the first of four stages.
    """

    def __init__(
        self,
        norm: Literal["l2", "max"] = "l2",
        reduce: Literal["mean", "sum"] = "mean",
        eps: float = 1e-6,
        indicator: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("l2", "max") or reduce not in ("mean", "sum") or not 0 < eps < math.inf:
            raise FoveateError(
                "AttentionMatchingLoss expects norm 'l2' or 'max', reduce 'mean' or 'sum' and a "
                f"finite eps > 0, got {norm!r}, {reduce!r} and {eps}"
            )
        self.norm, self.reduce, self.eps = norm, reduce, eps
        self.indicator = None if indicator is None else tuple(indicator)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Scalar loss of block outputs ``(B, C, h, w)``; the channels of a pair may differ."""
        used = (True,) * len(student) if self.indicator is None else self.indicator
        if not len(student) == len(teacher) == len(used) or not any(used):
            raise FoveateError(
                "AttentionMatchingLoss expects as many maps of the student as of the teacher and "
                f"in the indicator, at least one of them used, got {len(student)}, {len(teacher)} "
                f"and {len(used)}"
            )
        total = student[0].new_zeros((), dtype=torch.float32)
        for index, (ours, theirs, use) in enumerate(zip(student, teacher, used, strict=True)):
            if not use:
                continue
            if (ours.shape[0], *ours.shape[2:]) != (theirs.shape[0], *theirs.shape[2:]):
                raise FoveateError(
                    f"block {index}: student {tuple(ours.shape)} and teacher "
                    f"{tuple(theirs.shape)} must have the same batch, height and width"
                )
            difference = attention_map(ours, self.norm, self.eps) - attention_map(
                theirs.detach(), self.norm, self.eps
            )
            if self.reduce == "mean":
                total = total + difference.square().mean()
            else:
                total = total + (difference.square().sum(1) + self.eps).sqrt().mean()
        return total


class LogitKD(nn.Module):
    """``T^2 KL(teacher || student)`` of softened predictions, mean over the batch.

    Parameters
    ----------
    temperature
        T > 0. The factor T^2 keeps the size of the gradient.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise FoveateError(f"LogitKD expects a finite temperature above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar loss of logits ``(B, K)``, or ``(B, K, ...)`` with one prediction per place."""
        if student.shape != teacher.shape or student.ndim < 2:
            raise FoveateError(
                "LogitKD expects logits (B, K) of one shape, got "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        t = self.temperature
        ours = F.log_softmax(student.float() / t, 1)
        theirs = F.log_softmax(teacher.detach().float() / t, 1)
        return t * t * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()


def channel_stats(features: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of every sample over its positions.

    Parameters
    ----------
    features
        ``(B, C, H, W)``. Half precision is averaged in float32.
    eps
        Added to the variance, so that sigma of a constant channel is ``sqrt(eps)`` with gradient 0.

    Returns
    -------
    tuple
        mu and sigma, each ``(B, C, 1, 1)``; sigma is that of the population (divided by H W).
    """
    if features.ndim != 4 or 0 in features.shape:
        raise FoveateError(
            f"channel_stats expects (B, C, H, W), none of them 0, got {tuple(features.shape)}"
        )
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    variance, mu = torch.var_mean(features, (2, 3), correction=0, keepdim=True)
    return mu, (variance + eps).sqrt()


def _pairs(
    loss: str, student: Sequence[Tensor], teacher: Sequence[Tensor], axes: int
) -> list[tuple[Tensor, Tensor]]:
    """Features of every block, the teacher's detached; the first `axes` axes must agree."""
    if len(student) != len(teacher) or not student:
        raise FoveateError(
            f"{loss} expects as many features of the student as of the teacher and at least one, "
            f"got {len(student)} and {len(teacher)}"
        )
    for index, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if ours.ndim != 4 or theirs.ndim != 4 or ours.shape[:axes] != theirs.shape[:axes]:
            wanted = "batch and channels" if axes == 2 else "batch, channels, height and width"
            raise FoveateError(
                f"block {index}: student {tuple(ours.shape)} and teacher {tuple(theirs.shape)} "
                f"must be (B, C, H, W) with the same {wanted}; Connector changes channels"
            )
    return [(ours, theirs.detach()) for ours, theirs in zip(student, teacher, strict=True)]


class StatLoss(nn.Module):
    """Squared distance of channel statistics of student and teacher, block by block.

    Parameters
    ----------
    sigma
        Match standard deviations as well as means. Without: what SRRL (ICLR 2021) kept.
    eps
        As in `channel_stats`.
    """

    def __init__(self, sigma: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        if not 0 < eps < math.inf:
            raise FoveateError(f"StatLoss expects a finite eps > 0, got {eps}")
        self.sigma, self.eps = sigma, eps

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Scalar loss of features ``(B, C, h, w)``; heights and widths of a pair may differ."""
        terms = []
        for ours, theirs in _pairs("StatLoss", student, teacher, 2):
            mu_s, sigma_s = channel_stats(ours, self.eps)
            mu_t, sigma_t = channel_stats(theirs, self.eps)
            terms.append((mu_s - mu_t).square().mean())
            if self.sigma:
                terms.append((sigma_s - sigma_t).square().mean())
        return torch.stack(terms).sum()


class FitNetLoss(nn.Module):
    """Sum over blocks of the mean squared difference of the features themselves."""

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Scalar loss of features ``(B, C, h, w)`` of the same shape."""
        pairs = _pairs("FitNetLoss", student, teacher, 4)
        return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).sum()


class Connector(nn.Module):
    """Brings student features to the teacher's channels: 1x1 convolution, BN, ReLU.

    ``(B, c_s, H, W) -> (B, c_t, H, W)``. Trained with the student, dropped afterwards. The form and
    the first weights (normal, deviation sqrt(2 / c_t), no bias) are those of SRRL's official code.

    Parameters
    ----------
    c_s, c_t
        Channels of student and teacher.
    relu
        Leave it out where the teacher's features have both signs.
    """

    def __init__(self, c_s: int, c_t: int, relu: bool = True) -> None:
        super().__init__()
        if min(c_s, c_t) < 1:
            raise FoveateError(f"Connector expects at least one channel each, got {c_s} and {c_t}")
        self.conv = nn.Conv2d(c_s, c_t, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_t)
        self.act: nn.Module = nn.ReLU() if relu else nn.Identity()
        nn.init.normal_(self.conv.weight, 0.0, (2 / c_t) ** 0.5)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        mapped: Tensor = self.act(self.bn(self.conv(features)))
        return mapped


class FrozenTeacher(nn.Module):
    """A network that teaches and does not learn: eval mode for good, no gradient to its weights.

    ``train()`` of a module that holds it does not reach it, so its batch statistics stay. Gradients
    still pass *through* it to its input. The network itself is frozen, not a copy.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode."""
        return self

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """What the network returns."""
        return self.network(*inputs, **settings)
