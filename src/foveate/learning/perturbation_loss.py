"""The perturbation loss: a margin that is asked for in the space of the input.

A *triplet* (i, j, l) is a row, a row of its class and a row of another. With ``M = L^T L``,
``u = x_l - x_j`` and ``g = d_M^2(x_i, x_l) - d_M^2(x_i, x_j)``, x_i must be moved by
``r = g / (2 ||M u||)`` until j loses to l (`foveate.learning.certificate`). The loss asks the
triplets of R for a margin tau, in units of the input:

    dt^2 = g^2 / (4 (u^T M^2 u + eps)),  eps = 1
    J_P  = 1/|R| sum_R [ tau^2 - sign(g) dt^2 ]_+

For a network phi in place of the linear map L the margin is taken to first order,
``g(x) / ||grad_x g(x)||``, which for a linear phi is r itself; ``||grad_x g||^2 / 4`` takes the
place of ``u^T M^2 u``. Certainty: see `foveate.learning.metric`, whose estimators use the loss.

>>> loss = triplet_loss + 10 * PerturbationLoss(0.5)(L, x_i, x_j, x_l)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.certificate import gap_and_normal

__all__ = [
    "DeepPerturbationLoss",
    "PerturbationLoss",
    "first_order_margin",
    "perturbation_hinge",
]


def perturbation_hinge(gap: Tensor, normal_squared: Tensor, tau: float, eps: float = 1.0) -> Tensor:
    """``[tau^2 - sign(g) g^2 / (4 (q + eps))]_+`` of every triplet.

    Parameters
    ----------
    gap, normal_squared
        g and ``q = ||M u||^2``, of one shape.
    tau
        Wanted margin, in units of the input.
    eps
        Keeps the quotient finite.
    """
    return torch.relu(tau * tau - gap * gap.abs() / (4 * (normal_squared + eps)))


def check_tau(tau: float, eps: float) -> None:
    """Raise FoveateError unless both are finite and above 0."""
    if not (math.isfinite(tau) and tau > 0 and math.isfinite(eps) and eps > 0):
        raise FoveateError(
            f"the perturbation loss expects finite tau > 0 and eps > 0, got {tau} and {eps}"
        )


class PerturbationLoss(nn.Module):
    """J_P of given triplets: a term to add to any loss that learns a linear map.

    Parameters
    ----------
    tau
        Wanted adversarial margin in units of the input; a triplet that has it adds nothing.
    eps
        Constant of the denominator, 1 in the paper (as remembered). It ties the loss to the scale
        of L: without it nothing would hold L away from 0 or infinity.
    """

    def __init__(self, tau: float, eps: float = 1.0) -> None:
        super().__init__()
        check_tau(tau, eps)
        self.tau, self.eps = tau, eps

    def forward(self, L: Tensor, x_i: Tensor, x_j: Tensor, x_l: Tensor) -> Tensor:
        """Scalar, mean over triplets ``(T, D)``; L is ``(d, D)``.

        Raises
        ------
        FoveateError
            Shapes that do not agree, or no triplet.
        """
        gap, normal = gap_and_normal(L, x_i, x_j, x_l)
        if not gap.numel():
            raise FoveateError("PerturbationLoss got no triplet; mine at least one")
        return perturbation_hinge(gap, normal.square().sum(-1), self.tau, self.eps).mean()


# ------------------------------------------------------------------------------ networks

Embedding = Callable[[Tensor], Tensor]


def _gap_and_slope(
    embed: Embedding, x_i: Tensor, x_j: Tensor, x_l: Tensor
) -> tuple[Tensor, Tensor]:
    """Gap g ``(B,)`` of a network and ``||grad_x g||^2`` ``(B,)`` at x_i."""
    if x_i.ndim < 2 or not x_i.shape == x_j.shape == x_l.shape or not len(x_i):
        raise FoveateError(
            "expected x_i, x_j, x_l of one shape (B, ...) with B of at least 1, got "
            f"{tuple(x_i.shape)}, {tuple(x_j.shape)} and {tuple(x_l.shape)}"
        )
    if not x_i.is_floating_point():
        raise FoveateError(f"expected floating points, got {x_i.dtype}: no other type has a slope")
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        # A leaf that shares its history with nothing unless x_i is itself computed from parameters.
        x = x_i if x_i.requires_grad else x_i.detach().requires_grad_()
        z, z_j, z_l = embed(x), embed(x_j), embed(x_l)
        if z.ndim != 2 or len(z) != len(x_i):
            raise FoveateError(f"the network must give (B, d), got {tuple(z.shape)}")
        gap = (z - z_l).square().sum(1) - (z - z_j).square().sum(1)
        slope = None
        if gap.requires_grad:
            slope = torch.autograd.grad(gap.sum(), x, create_graph=keep, allow_unused=True)[0]
        if slope is None:
            raise FoveateError("the network does not depend on its input; there is no margin")
    return (gap if keep else gap.detach()), slope.flatten(1).square().sum(1)


def first_order_margin(embed: Embedding, x_i: Tensor, x_j: Tensor, x_l: Tensor) -> Tensor:
    """``g(x_i) / ||grad_x g(x_i)||``: how far x_i must move, to first order.

    Parameters
    ----------
    embed
        ``(B, ...) -> (B, d)``, each sample by itself: a batch norm must be in eval mode, else the
        gradient of one sample reaches the others.
    x_i, x_j, x_l
        ``(B, ...)``.

    Returns
    -------
    Tensor
        ``(B,)``, the adversarial margin itself when `embed` is linear; 0 where the gradient is 0.

    Raises
    ------
    FoveateError
        Shapes that do not agree.
    """
    gap, slope = _gap_and_slope(embed, x_i, x_j, x_l)
    return torch.where(slope > 0, gap / torch.where(slope > 0, slope, 1.0).sqrt(), 0.0)


class DeepPerturbationLoss(nn.Module):
    """J_P for a network, with the margin to first order; needs a second backward pass.

    For a linear network it equals `PerturbationLoss`. There is no certificate for a network.

    Parameters
    ----------
    tau, eps
        As in `PerturbationLoss`; tau in units of the network's input.
    """

    def __init__(self, tau: float, eps: float = 1.0) -> None:
        super().__init__()
        check_tau(tau, eps)
        self.tau, self.eps = tau, eps

    def forward(self, embed: Embedding, x_i: Tensor, x_j: Tensor, x_l: Tensor) -> Tensor:
        """Scalar, mean over the batch; arguments and errors as in `first_order_margin`."""
        gap, slope = _gap_and_slope(embed, x_i, x_j, x_l)
        # the gradient is 2 M u for a linear map, so a quarter of its square is q
        return perturbation_hinge(gap, slope / 4, self.tau, self.eps).mean()
