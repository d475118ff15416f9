"""Layers that can be trained in parts: heads, groups of hidden units, of filters, experts.

A layer here is a sum (or a stack of channels) over its *units*, and each unit has parameters of its
own. What is frozen gets no gradient, so that an optimiser leaves it bitwise alone, weight decay and
momentum included; masking slices of one large weight would not do that, nor save anything.

With x the input and A the active units, a step in training computes

    cut      y = sum_A u(x) + sum_frozen no_grad u(x)
    exact    y = sum_A u(x) + sum_frozen u(x), the latter with constant weights

``cut`` drops both halves of a frozen unit's backward pass, the gradient of its weights and that of
its input: layers below learn through the skip and the active siblings only. ``exact`` drops the
first half only, and gradients are those of ordinary back-propagation. Forward, all units always
work, and in eval mode nothing is cut.

The shared output bias of a layer belongs to no unit and always learns.

``from_plain`` makes each layer out of PyTorch's own, with equal outputs, and ``to_plain`` gives
dense weights back. To swap the layers of a whole network see `foveate.learning.modular`.

Source: Modular Adaptive Training (arXiv 2405.07527) for skipping the backward pass of modules (P);
the two modes, and what a unit of each layer holds, are our decision (D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError

__all__ = [
    "GroupedConv2d",
    "GroupedMLP",
    "MATExpert",
    "Mode",
    "ModularLayer",
    "Unit",
    "UnitFlops",
]

Mode = Literal["cut", "exact"]
Dense = dict[str, Tensor | None]
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class UnitFlops:
    """What one unit takes for a batch, in FLOPs (2 per multiply-add).

    Attributes
    ----------
    forward
        Always.
    backward
        When it is active: gradients of weights and input.
    input_grad
        When it is frozen and not cut: gradient of the input alone.
    """

    forward: float
    backward: float
    input_grad: float


class Unit(nn.Module):
    """The parameters of one module in the method's sense, and whether it learns now."""

    def __init__(self) -> None:
        super().__init__()
        self.active = True

    def hold(self, name: str, value: Tensor | None, learns: bool) -> None:
        """Make `value` the parameter `name`, a copy; None: there is none."""
        copy = None if value is None else nn.Parameter(value.detach().clone(), learns)
        self.register_parameter(name, copy)


class ModularLayer(nn.Module):
    """What the layers share: which units are active, and how the frozen ones are computed.

    Attributes
    ----------
    mode
        ``cut`` or ``exact``.
    residual
        Whether a skip runs beside the layer. If not, and no unit is active, the layer is computed
        as in ``exact`` even when cut, or nothing below it would learn.
    calls
        A list, to note what every unit takes in each call; None: do not.
    """

    unit_list = ""  # name of the ModuleList that holds the units

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.mode: Mode = "cut"
        self.residual = residual
        self.calls: list[UnitFlops] | None = None

    def units(self) -> list[Unit]:
        """In order."""
        return list(getattr(self, self.unit_list))

    def cuts(self, active: int) -> bool:
        """Whether frozen units get no gradient of their input when `active` units learn."""
        return self.mode == "cut" and (self.residual or active > 0)

    def pieces(self, part: Callable[[list[int]], Tensor]) -> list[tuple[list[int], Tensor]]:
        """`part` of the active and of the frozen units, with their numbers."""
        units = self.units()
        everything = list(range(len(units)))
        if not self.training or not torch.is_grad_enabled():
            return [(everything, part(everything))]
        active = [i for i in everything if units[i].active]
        frozen = [i for i in everything if not units[i].active]
        found = [(active, part(active))] if active else []
        if frozen:
            # Constant weights alone would still send a gradient through to the input.
            with torch.set_grad_enabled(not self.cuts(len(active))):
                found.append((frozen, part(frozen)))
        return found

    def weight_of(self, name: str) -> Tensor:
        """A parameter of the first unit; all others have its shape."""
        return self.units()[0].get_parameter(name)

    def _joined(self, chosen: Sequence[int], name: str, dim: int = 0) -> Any:
        """One parameter of several units as one tensor; None where they have none."""
        units = self.units()
        found = [getattr(units[i], name) for i in chosen]
        if found[0] is None or len(found) == 1:
            return found[0]
        return torch.cat(found, dim)

    def _split(self, dense: Dense, name: str, dim: int = 0) -> None:
        """Give every unit its equal share of a dense weight."""
        value = dense[name]
        units = self.units()
        parts = [None] * len(units) if value is None else value.chunk(len(units), dim)
        for unit, part in zip(units, parts, strict=True):
            unit.hold(name, part, value is not None and value.requires_grad)


def added(pieces: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Sum of what `ModularLayer.pieces` gives."""
    total = pieces[0][1]
    for _, piece in pieces[1:]:
        total = total + piece
    return total


# ------------------------------------------------------------------------------ MLP


class GroupedMLP(ModularLayer):
    """Linear, activation, linear; groups of hidden units are units. ``(..., d) -> (..., d_out)``.

    Parameters
    ----------
    width, hidden
        d, and the hidden units, a multiple of `groups`.
    groups
        1: the whole MLP is one unit.
    activation
        Works on every number by itself; groups would not add up otherwise.
    dropout, output_dropout
        Behind the activation, and of the output.
    out
        d_out; None: as `width`.
    residual
        See `ModularLayer`.
    """

    unit_list = "groups"

    def __init__(
        self,
        width: int,
        hidden: int,
        groups: int = 4,
        activation: Activation | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        *,
        bias: bool = True,
        out: int | None = None,
        residual: bool = True,
    ) -> None:
        if min(width, hidden, groups) < 1 or hidden % groups:
            raise FoveateError(
                "GroupedMLP expects hidden units that are a multiple of the number of groups, got "
                f"{hidden} and {groups}"
            )
        super().__init__(residual)
        self.activation = nn.GELU() if activation is None else activation
        self.dropout, self.output_dropout = dropout, output_dropout
        self.groups = nn.ModuleList(Unit() for _ in range(groups))
        self.bias2: nn.Parameter | None
        self.take(nn.Linear(width, hidden, bias), nn.Linear(hidden, out or width, bias))

    @classmethod
    def from_plain(
        cls, first: nn.Linear, second: nn.Linear, groups: int = 4, **settings: Any
    ) -> GroupedMLP:
        """Out of two linear layers; `settings` are those of the class."""
        made = cls(first.in_features, first.out_features, groups, **settings)
        made.take(first, second)
        return made

    def take(self, first: nn.Linear, second: nn.Linear) -> None:
        """Copy the weights of two linear layers."""
        dense: Dense = {"weight1": first.weight, "bias1": first.bias, "weight2": second.weight}
        self._split(dense, "weight1")
        self._split(dense, "bias1")
        self._split(dense, "weight2", 1)
        bias = second.bias
        shared = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.register_parameter("bias2", shared)

    def to_plain(self) -> Dense:
        """``weight1 (hidden, d)``, ``bias1``, ``weight2 (d_out, hidden)``, ``bias2``."""
        everything = range(len(self.groups))
        dense: Dense = {name: self._joined(everything, name) for name in ("weight1", "bias1")}
        return {**dense, "weight2": self._joined(everything, "weight2", 1), "bias2": self.bias2}

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        def part(chosen: list[int]) -> Tensor:
            y = F.linear(x, self._joined(chosen, "weight1"), self._joined(chosen, "bias1"))
            y = F.dropout(self.activation(y), self.dropout, self.training)
            return F.linear(y, self._joined(chosen, "weight2", 1))

        if self.calls is not None:
            weight2 = self.weight_of("weight2")
            first = 2.0 * math.prod(x.shape) * weight2.shape[1]
            second = first / x.shape[-1] * weight2.shape[0]
            to_input = first if x.requires_grad else 0.0
            self.calls.append(
                UnitFlops(
                    first + second,
                    first + to_input + 2 * second,
                    to_input + second if to_input else 0.0,
                )
            )
        total = added(self.pieces(part))
        if self.bias2 is not None:
            total = total + self.bias2
        return F.dropout(total, self.output_dropout, self.training)


# ------------------------------------------------------------------------------ convolution


class GroupedConv2d(ModularLayer):
    """Convolution whose units are groups of neighbouring output filters.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, bias
        As of `torch.nn.Conv2d`, with zero padding.
    groups_of_filters
        Divides `out_channels`.
    residual
        See `ModularLayer`; False unless said otherwise: a plain stack has no skips.
    """

    unit_list = "filters"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        groups_of_filters: int = 4,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        residual: bool = False,
    ) -> None:
        if groups_of_filters < 1 or out_channels % groups_of_filters:
            raise FoveateError(
                "GroupedConv2d expects output channels that are a multiple of the groups of "
                f"filters, got {out_channels} and {groups_of_filters}"
            )
        super().__init__(residual)
        self.filters = nn.ModuleList(Unit() for _ in range(groups_of_filters))
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.bias: nn.Parameter | None
        self.take(nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias))

    @classmethod
    def from_plain(
        cls, plain: nn.Conv2d, groups_of_filters: int = 4, residual: bool = False
    ) -> GroupedConv2d:
        """The same function as `plain`.

        Raises
        ------
        FoveateError
            It is grouped itself or does not pad with zeros.
        """
        if plain.groups != 1 or plain.padding_mode != "zeros":
            raise FoveateError(
                "GroupedConv2d expects a convolution of one group, padded with zeros, got "
                f"groups={plain.groups} and padding_mode={plain.padding_mode!r}"
            )
        made = cls(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            groups_of_filters,
            stride=plain.stride,  # type: ignore[arg-type]
            padding=plain.padding,  # type: ignore[arg-type]
            dilation=plain.dilation,  # type: ignore[arg-type]
            residual=residual,
        )
        made.take(plain)
        return made.train(plain.training)

    def take(self, plain: nn.Conv2d) -> None:
        """Copy the weights of a convolution."""
        self._split({"weight": plain.weight}, "weight")
        bias = plain.bias
        shared = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.register_parameter("bias", shared)

    def to_plain(self) -> Dense:
        """``weight`` and ``bias`` of `torch.nn.Conv2d`."""
        return {"weight": self._joined(range(len(self.filters)), "weight"), "bias": self.bias}

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        def part(chosen: list[int]) -> Tensor:
            weight = self._joined(chosen, "weight")
            return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)

        pieces = self.pieces(part)
        if len(pieces) == 1:
            y = pieces[0][1]
        else:  # every group of channels back to its place
            channels: dict[int, Tensor] = {}
            for chosen, piece in pieces:
                channels.update(zip(chosen, piece.chunk(len(chosen), 1), strict=True))
            y = torch.cat([channels[i] for i in sorted(channels)], 1)
        if self.calls is not None:
            weight = self.weight_of("weight")
            flops = 2.0 * y.shape[0] * math.prod(y.shape[2:]) * weight.numel()
            to_input = flops if x.requires_grad else 0.0
            self.calls.append(UnitFlops(flops, flops + to_input, to_input))
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


# ------------------------------------------------------------------------------ experts


class MATExpert(ModularLayer, Unit):
    """Any module as one unit: an expert of a mixture, or a whole block.

    Parameters
    ----------
    module
        Takes tensors; its first result may be one tensor only.
    residual
        See `ModularLayer`. True unless said otherwise: mixtures stand beside a skip.
    """

    def __init__(self, module: nn.Module, residual: bool = True) -> None:
        super().__init__(residual)
        self.active = True
        self.module = module

    def units(self) -> list[Unit]:
        """Itself."""
        return [self]

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """What the module returns."""
        if self.calls is not None:
            self.calls.append(self._flops(inputs, settings))
        (_, y), *_ = self.pieces(lambda chosen: self.module(*inputs, **settings))
        return y

    def _flops(self, inputs: tuple[Any, ...], settings: dict[str, Any]) -> UnitFlops:
        """Counted, not derived: what is inside is not known."""
        copies = [
            x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in inputs
        ]
        leaves = [x for x in copies if isinstance(x, Tensor) and x.requires_grad]
        weights = [p for p in self.module.parameters() if p.requires_grad]

        def backward(wanted: list[Any]) -> float:
            with FlopCounterMode(display=False) as counter:
                if wanted:
                    torch.autograd.grad(y.sum(), wanted, retain_graph=True, allow_unused=True)
            return float(counter.get_total_flops())

        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            y = self.module(*copies, **settings)
        forward = float(counter.get_total_flops())
        return UnitFlops(forward, backward(leaves + weights), backward(leaves))
