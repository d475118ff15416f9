"""The sign function and the slopes that stand in for its own when training.

The derivative of ``sign`` is 0 almost everywhere, so nothing could be learnt through it. A
*straight-through estimator* keeps the hard sign in the forward pass and, in the backward pass,
multiplies the gradient by the slope g(x) of some smoother function:

    identity   1
    clip       1 if |x| < threshold else 0                      (slope of hardtanh)
    poly       2 - 2|x| if |x| < 1 else 0                       (Bi-Real Net, ReActNet)
    tanh       t (1 - tanh^2(t x))
    reste      1/o |x|^((1-o)/o) for m < |x| <= threshold, the chord m^(1/o) / m for |x| <= m,
               0 beyond; o = 1 is the clipped identity           (ReSTE, ICCV 2023)

``sign(0) = +1`` here, always: a third state would not fit in one bit. For NaN it is -1, the code 0.

>>> x = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
>>> sign_ste(x, "poly").sum().backward()
>>> x.grad
tensor([1., 2., 0.])
"""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from foveate.errors import FoveateError

__all__ = [
    "Estimator",
    "check_estimator",
    "reste_power",
    "sign",
    "sign_ste",
    "slope",
    "stochastic_sign",
    "straight_through",
    "window",
]

Estimator = Literal["clip", "poly", "tanh", "reste", "identity"]

_RESTE_CHORD = 0.1  # m: below it the root of ReSTE is too steep, the chord is taken (official code)


class _StraightThrough(torch.autograd.Function):
    """Forward `value`; the gradient goes to `x`, multiplied by `slopes` (None: by 1)."""

    generate_vmap_rule = True  # per-sample gradients with torch.func work through it

    @staticmethod
    def forward(value: Tensor, x: Tensor, slopes: Tensor | None) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        output: Tensor,
    ) -> None:
        if inputs[2] is not None:
            ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.BackwardCFunction, grad: Tensor
    ) -> tuple[None, Tensor, None]:
        return (None, grad * ctx.saved_tensors[0] if ctx.saved_tensors else grad, None)


def straight_through(value: Tensor, x: Tensor, slopes: Tensor | None = None) -> Tensor:
    """`value` when going forward, ``slopes * gradient`` to `x` when going back.

    Parameters
    ----------
    value
        What the hard function gives; no gradient flows into it.
    x
        Same shape: whose gradient it becomes. Often a smooth version of `value`.
    slopes
        Same shape: g(x). None stands for 1 everywhere.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    return cast(Tensor, _StraightThrough.apply(value.detach(), x, slopes))  # type: ignore[no-untyped-call]


def check_estimator(estimator: str) -> Estimator:
    """`estimator` itself if it is one of the five names; else an error that lists them."""
    if estimator not in get_args(Estimator):
        raise FoveateError(
            f"the estimator of a sign is one of {', '.join(get_args(Estimator))}, got {estimator!r}"
        )
    return cast(Estimator, estimator)


def sign(x: Tensor) -> Tensor:
    """-1 or +1, never 0: +1 where ``x >= 0``. Same shape and dtype, no gradient."""
    return (x >= 0).to(x.dtype) * 2 - 1


def window(estimator: Estimator, threshold: float | None = None) -> float:
    """Half-width of the window of an estimator: `threshold`, else 1.5 for ``reste`` and 1."""
    if threshold is not None:
        return threshold
    return 1.5 if estimator == "reste" else 1.0


def slope(
    estimator: Estimator,
    x: Tensor,
    threshold: float | None = None,
    sharpness: float = 5.0,
    power: float = 1.0,
) -> Tensor:
    """g(x) of one of the estimators of this module, same shape as `x`.

    Parameters
    ----------
    threshold
        Half-width of the window of ``clip`` (default 1) and ``reste`` (default 1.5).
    sharpness
        t of ``tanh``.
    power
        o >= 1 of ``reste``.
    """
    size = x.abs()
    if estimator == "clip":
        return (size < window(estimator, threshold)).to(x.dtype)
    if estimator == "poly":
        return (2 - 2 * size).clamp_min(0)
    if estimator == "tanh":
        return sharpness * (1 - torch.tanh(sharpness * x).square())
    if estimator == "reste":
        inside = size <= window(estimator, threshold)
        root = size.clamp_min(_RESTE_CHORD) ** ((1 - power) / power) / power
        chord = _RESTE_CHORD ** (1 / power) / _RESTE_CHORD
        return torch.where(size > _RESTE_CHORD, root, chord) * inside
    return torch.ones_like(x)


def sign_ste(
    x: Tensor,
    estimator: Estimator = "clip",
    threshold: float | None = None,
    sharpness: float = 5.0,
    power: float = 1.0,
) -> Tensor:
    """Hard sign of `x` whose gradient is that of an estimator; parameters as in `slope`."""
    value = sign(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    with torch.no_grad():
        slopes = slope(estimator, x, threshold, sharpness, power)
    return straight_through(value, x, slopes)


def stochastic_sign(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """+1 with probability ``clip((x + 1) / 2, 0, 1)``, else -1. No gradient.

    ``generator`` must be on the device of `x`; the global one when None.
    """
    chance = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    return (chance < (x.float() + 1) / 2).to(x.dtype) * 2 - 1


def reste_power(epoch: float, epochs: float, end: float = 3.0) -> float:
    """Power o of ReSTE at an epoch: ``1 + (1 - cos(pi e / 2E)) (end - 1)``, from 1 up to `end`."""
    if epochs <= 0 or not 0 <= epoch <= epochs or end < 1:
        raise FoveateError(
            "reste_power expects 0 <= epoch <= epochs, epochs > 0 and end >= 1, "
            f"got {epoch=}, {epochs=}, {end=}"
        )
    return 1 + (1 - math.cos(math.pi * epoch / (2 * epochs))) * (end - 1)
