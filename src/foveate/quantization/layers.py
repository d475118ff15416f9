"""Convolutions and linear layers whose operands have few bits.

One class serves every number of bits: the quantisers are parts of the layer. `QuantConv2d` is a
``nn.Conv2d`` with

    act                quantiser of its input (None: real input)
    weight_quantizer   quantiser of its weight (None: real weight)
    channel_scale      learned scale of each output channel, or None
    spatial_scale      learned scale of each row and column of the output (XNOR-Net++), or None
    gate               scale of each output channel that depends on the input, or None
    bias               real, or None

In training the operands are the fake-quantised reals ``integers * step``. In ``eval()`` the
integers themselves are convolved, so that the sums are exact, and scaled afterwards, in float32 and
in this order (the native engine repeats it):

    S = conv(pad(integers(x)), integers(w))     float64 where 2^24 may be reached
    y = S * ((step_a * step_w) * channel_scale)
    y = y * spatial_scale;  y = y * gate(x);  y = y + bias

Zero padding puts the real number 0 around the *quantised* input, as ``F.conv2d`` does, although 0
is no level of bipolar codes; ``pad_value=-1`` or ``+1`` pads with the lowest or highest level.

The latent real weight stays a parameter called ``weight``, so a ``state_dict`` of a real or half
binary network loads into the binary one: a training stage is a switch, `set_stage`, not another
network. Sources: XNOR-Net (Rastegari et al., 2016), Bi-Real Net (Liu et al., 2018), real-to-binary
convolutions (Martinez et al., ICLR 2020), XNOR-Net++ (Bulat & Tzimiropoulos, 2019).

>>> layer = BinaryConv2d(64, 64, 3, padding=1)
>>> layer.bits  # weights, activations
(1, 1)
>>> set_stage(layer, weights=False, activations=True)
>>> layer.bits
(32, 1)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat
from foveate.quantization.quantizers import (
    QuantAct,
    SignSTE,
    SignWeight,
    WeightQuantizer,
    XnorScale,
    per_channel,
)
from foveate.quantization.straight_through import Estimator, straight_through

__all__ = [
    "BinarizeConfig",
    "BinaryConv2d",
    "BinaryLinear",
    "ChannelGate",
    "ConvGeometry",
    "FoldedLayer",
    "LatentLayer",
    "PaddingMode",
    "ParameterGroup",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "Scale",
    "Size",
    "SpatialScale",
    "StoredCodes",
    "clip_latent_weights",
    "pack_weights",
    "parameter_groups",
    "quant_layers",
    "set_stage",
]

Scale = Literal["none", "xnor", "channel", "chw", "se"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Size = int | tuple[int, int]

_EXACT_FLOAT32 = 1 << 24
# Just inside: the clip estimator gives no gradient at 1 itself, where a weight would be stuck.
_INSIDE = 1 - 2.0**-24


# --- parts of a layer ----------------------------------------------------------------------


class ChannelGate(nn.Module):
    """Data-driven scale of the output channels: ``sigmoid(W2 relu(W1 mean_hw(x)))``.

    The extra layer of real-to-binary convolutions; ``reduce`` is W1, ``expand`` is W2, no biases.

    Parameters
    ----------
    c_in, c_out
        Channels of the convolution's input and output.
    r
        The hidden width is ``max(min_hidden, c_in // r)``.
    min_hidden
        Least hidden width.
    hidden
        The hidden width itself, in place of `r` and `min_hidden`.
    """

    def __init__(
        self, c_in: int, c_out: int, r: int = 8, min_hidden: int = 4, hidden: int | None = None
    ) -> None:
        super().__init__()
        if r < 1:
            raise FoveateError(f"ChannelGate divides its width by r, at least 1, got {r}")
        width = max(min_hidden, c_in // r) if hidden is None else hidden
        if min(c_in, c_out, width) < 1:
            raise FoveateError(
                f"ChannelGate expects positive widths, got {c_in=}, {c_out=} and hidden {width}"
            )
        self.reduce = nn.Linear(c_in, width, bias=False)
        self.expand = nn.Linear(width, c_out, bias=False)
        nn.init.kaiming_normal_(self.reduce.weight)
        nn.init.kaiming_normal_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``(B, c_out, 1, 1)`` in (0, 1) for the *real* input ``(B, c_in, H, W)``."""
        hidden = F.relu(self.reduce(x.mean((2, 3))))
        return torch.sigmoid(self.expand(hidden))[:, :, None, None]


class SpatialScale(nn.Module):
    """``beta_h * gamma_w`` of XNOR-Net++, for outputs of one size; both start at 1.

    Together with the layer's channel scale this is ``Gamma = alpha_c (x) beta_h (x) gamma_w``.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < 1:
            raise FoveateError(f"SpatialScale expects a positive size, got {height} x {width}")
        self.rows = nn.Parameter(torch.ones(height, 1))
        self.columns = nn.Parameter(torch.ones(1, width))

    def forward(self, y: Tensor) -> Tensor:
        """Scaled ``y (B, C, H, W)``; an error for another height or width."""
        size = (self.rows.shape[0], self.columns.shape[1])
        if tuple(y.shape[-2:]) != size:
            raise FoveateError(
                f"this layer's chw scale was made for outputs of {size[0]} x {size[1]}, got "
                f"{y.shape[-2]} x {y.shape[-1]}: use scale='channel' for inputs of any size"
            )
        return y * (self.rows * self.columns)


class StoredCodes(WeightQuantizer):
    """The weight *is* its codes (uint8); only the steps are real. See `pack_weights`."""

    def __init__(self, format: CodeFormat, step: Tensor) -> None:
        super().__init__(format)
        self.register_buffer("steps", step)

    def switch(self, stage: Literal["codes", "real", "soft"]) -> None:
        """Refuses everything but ``codes``: the real weights are gone."""
        if stage != "codes":
            raise FoveateError("a packed layer has no real weights left to switch back to")

    def step(self, w: Tensor) -> Tensor:
        """The stored steps."""
        return cast(Tensor, self.steps)

    def integers(self, w: Tensor) -> Tensor:
        """Integers of the stored codes."""
        return self.format.integers(w).float()

    def forward(self, w: Tensor) -> Tensor:
        """As every weight quantiser, but float32: the dtype of the codes holds no real numbers."""
        return self.integers(w) * per_channel(self.step(w), w)


@dataclass(frozen=True)
class FoldedLayer:
    """All that is constant in a quantised layer, as the engine takes it.

    ``y[co] = alpha[co] * sum(integers(weight_codes[co]) * integers(a)) + bias[co]``; a gate
    multiplies between the two and is not part of this.

    Attributes
    ----------
    weight_codes
        uint8 ``(Co, Ci / groups, kh, kw)``; ``(Co, Ci, 1, 1)`` for a linear layer.
    weight_format, act_format
        What the codes mean.
    act_step
        Real value of the activation integer 1.
    alpha
        float32 ``(Co,)``: ``(act_step * weight_step) * channel_scale``.
    bias
        float32 ``(Co,)`` or None.
    """

    weight_codes: Tensor
    weight_format: CodeFormat
    act_format: CodeFormat
    act_step: float
    alpha: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ConvGeometry:
    """Where a convolution's windows lie: all of a ``nn.Conv2d`` but its channels and weights."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    border: tuple[int, ...]

    @classmethod
    def of(cls, conv: nn.Conv2d) -> ConvGeometry:
        """That of `conv`."""
        return cls(
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.padding_mode,
            tuple(conv._reversed_padding_repeated_twice),
        )

    def sums(self, a: Tensor, w: Tensor, level: float | None = None) -> Tensor:
        """Convolution of `a` by `w`; `level` fills a zero-padded border in place of 0."""
        padding = self.padding
        if self.padding_mode != "zeros":
            a, padding = F.pad(a, self.border, mode=self.padding_mode), (0, 0)
        elif level is not None:
            a, padding = F.pad(a, self.border, value=level), (0, 0)
        return F.conv2d(a, w, None, self.stride, padding, self.dilation, self.groups)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


# --- layers --------------------------------------------------------------------------------


class LatentLayer(nn.Module):
    """A layer with real weights behind its quantised ones."""

    def clip_latent(self) -> None:
        """Bring the real weights back to [-1, 1] where the quantiser ignores what lies outside."""
        raise NotImplementedError


class QuantLayer(LatentLayer):
    """What `QuantConv2d`, `QuantLinear` and the transposed convolution have in common."""

    weight: Tensor
    bias: Tensor | None
    act: QuantAct | None
    weight_quantizer: WeightQuantizer | None
    channel_scale: nn.Parameter | None
    spatial_scale: SpatialScale | None
    gate: ChannelGate | None
    pad_value: int

    def _equip(
        self,
        outputs: int,
        act: QuantAct | None,
        weight_quantizer: WeightQuantizer | None,
        channel_scale: bool,
        spatial_scale: SpatialScale | None = None,
        gate: ChannelGate | None = None,
        pad_value: int = 0,
    ) -> None:
        if pad_value not in (-1, 0, 1):
            raise FoveateError(f"pad_value is 0, -1 or +1 (lowest, highest level), got {pad_value}")
        if pad_value and act is None:
            raise FoveateError("pad_value -1 or +1 pads with a level of `act`, which is None")
        self.act, self.weight_quantizer = act, weight_quantizer
        self.channel_scale = None
        if channel_scale:
            self.channel_scale = nn.Parameter(self.weight.new_ones(outputs))
        self.spatial_scale, self.gate, self.pad_value = spatial_scale, gate, pad_value
        if weight_quantizer is not None:
            weight_quantizer.fit(self.weight)

    def _sums(self, a: Tensor, w: Tensor, level: float | None) -> Tensor:
        """The linear map itself, without scale or bias; `level` is what level padding puts in."""
        raise NotImplementedError

    def broadcast(self, scale: Tensor) -> Tensor:
        """``(Co,)`` in a shape that multiplies the output."""
        raise NotImplementedError

    @property
    def coded_act(self) -> QuantAct | None:
        """`act` if it gives codes in the present stage, else None."""
        return self.act if self.act is not None and self.act.stage == "codes" else None

    @property
    def coded_weight(self) -> WeightQuantizer | None:
        """`weight_quantizer` if it gives codes in the present stage, else None."""
        quantizer = self.weight_quantizer
        return quantizer if quantizer is not None and quantizer.stage == "codes" else None

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of (weights, activations) in the present stage; 32 is real."""
        act, quantizer = self.coded_act, self.coded_weight
        return (
            32 if quantizer is None else quantizer.format.bits,
            32 if act is None else act.format.bits,
        )

    def alpha(self) -> Tensor:
        """``(step_a * step_w) * channel_scale``, float32 ``(Co,)``; steps of reals are 1."""
        act, quantizer = self.coded_act, self.coded_weight
        scale = torch.ones(self._outputs(), dtype=torch.float32, device=self.weight.device)
        if act is not None:
            scale = scale * act.step()
        if quantizer is not None:
            scale = scale * quantizer.step(self.weight)
        return scale if self.channel_scale is None else scale * self.channel_scale.float()

    def _outputs(self) -> int:
        return self.weight.shape[0]

    def _addends(self) -> int:
        """Products in one sum."""
        return self.weight[0].numel()

    def _level(self, act: QuantAct | None) -> float | None:
        if self.pad_value == 0 or self.act is None:
            return None
        level = self.act.format.low if self.pad_value < 0 else self.act.format.high
        return float(level) if act is not None else level * float(self.act.step().detach())

    def forward(self, x: Tensor) -> Tensor:
        """The quantised layer; float32 and exact sums in ``eval()``. Same dtype as `x`."""
        return self._training_form(x) if self.training else self._exact_form(x)

    def _training_form(self, x: Tensor) -> Tensor:
        w = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        act = self.coded_act
        if act is not None and self.pad_value:  # pad the integers: a learned step may be in use
            y = self._sums(act.integers(x), w, self._level(act)) * act.step()
        else:
            a = x if self.act is None else self.act(x)
            y = self._sums(a, w, self._level(None))
        if self.channel_scale is not None:
            y = y * self.broadcast(self.channel_scale)
        return self._finish(x, y)

    def _exact_form(self, x: Tensor) -> Tensor:
        with _without_autocast(x.device.type):
            real = x.float()
            if self.coded_act is not None and self.coded_weight is not None:
                y = self.integer_sums(real)
            else:
                y = self._real_sums(real)
            y = self._finish(real, y * self.broadcast(self.alpha()))
            return y.to(x.dtype)

    def integer_sums(self, x: Tensor) -> Tensor:
        """S of this module's formula: the exact integers (float32) before any scale.

        Where 2^24 may be reached they are summed in float64 and rounded to float32 at the end.
        Both operands must be quantised in the present stage.
        """
        act, quantizer = self.coded_operands()
        a, w = act.integers(x), quantizer.integers(self.weight)
        of_a, of_w, level = act.format, quantizer.format, self._level(act)
        largest = max(-of_a.low, of_a.high) * max(-of_w.low, of_w.high) * self._addends()
        if largest >= _EXACT_FLOAT32:
            sums = self._sums(a.double(), w.double(), level)
        else:
            sums = self._sums(a, w, level)
        # Some accelerators choose convolution algorithms (Winograd) that are a little off.
        return straight_through(sums.detach().round(), sums).float()

    def _real_sums(self, x: Tensor) -> Tensor:
        """The same with one or both operands real."""
        act, quantizer = self.coded_act, self.coded_weight
        a = x
        if self.act is not None:
            a = self.act.real(x) if act is None else act.integers(x)
        w = self.weight.float() if quantizer is None else quantizer.integers(self.weight)
        return self._sums(a, w, self._level(act))

    def coded_operands(self) -> tuple[QuantAct, WeightQuantizer]:
        """Both quantisers; an error if one operand is real in the present stage."""
        act, quantizer = self.coded_act, self.coded_weight
        if act is None or quantizer is None:
            raise FoveateError(
                "only a layer with quantised weights and activations has integer sums and can be "
                f"folded, this one has {self.bits[0]}-bit weights and {self.bits[1]}-bit "
                "activations: call set_stage(model, weights=True, activations=True) first"
            )
        return act, quantizer

    @torch.no_grad()
    def clip_latent(self) -> None:
        """Clip the latent weight to [-1, 1] if `clips_latent` says so in the present stage."""
        quantizer = self.coded_weight
        if quantizer is not None and quantizer.clips_latent:
            self.weight.clamp_(-_INSIDE, _INSIDE)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        if self.spatial_scale is not None:
            y = self.spatial_scale(y)
        if self.gate is not None:
            y = y * self.gate(x)
        return y if self.bias is None else y + self.broadcast(self.bias)

    @torch.no_grad()
    def folded(self) -> FoldedLayer:
        """Codes of the weights and everything else that is constant, for the engine.

        Raises
        ------
        FoveateError
            One operand is real in the present stage, or the scale is not one number per channel.
        """
        act, quantizer = self.coded_operands()
        if self.spatial_scale is not None:
            raise FoveateError(
                "a chw scale is not one number per channel and cannot be folded: "
                "train with scale='channel' what is to be compiled"
            )
        codes = quantizer.format.codes(quantizer.integers(self.weight)).to(torch.uint8)
        return FoldedLayer(
            weight_codes=codes if codes.ndim == 4 else codes[:, :, None, None],
            weight_format=quantizer.format,
            act_format=act.format,
            act_step=float(act.step()),
            alpha=self.alpha(),
            bias=None if self.bias is None else self.bias.detach().float(),
        )


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` with quantised operands.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in ``nn.Conv2d``.
    act, weight_quantizer
        Quantisers, owned by this layer (do not share one between layers); None leaves real.
    channel_scale
        Whether a learned scale per output channel follows, 1 at first.
    spatial_size
        Height and width of the output, for the learned scale of rows and columns (XNOR-Net++).
    gate
        `ChannelGate` of the same channels; it reads the real input, before `act`.
    pad_value
        0: zeros around the quantised input. -1, +1: its lowest, highest level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        act: QuantAct | None = None,
        weight_quantizer: WeightQuantizer | None = None,
        channel_scale: bool = False,
        spatial_size: tuple[int, int] | None = None,
        gate: ChannelGate | None = None,
        pad_value: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
        )
        spatial = None if spatial_size is None else SpatialScale(*spatial_size)
        self._equip(out_channels, act, weight_quantizer, channel_scale, spatial, gate, pad_value)

    @staticmethod
    def from_float(
        conv: nn.Conv2d,
        *,
        act: QuantAct | None = None,
        weight_quantizer: WeightQuantizer | None = None,
        channel_scale: bool = False,
        spatial_size: tuple[int, int] | None = None,
        gate: ChannelGate | None = None,
        pad_value: int = 0,
    ) -> QuantConv2d:
        """The quantised twin of `conv`; weight and bias are the same parameters, not copies."""
        layer = QuantConv2d(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            cast(tuple[int, int], conv.stride),
            cast("tuple[int, int] | str", conv.padding),
            cast(tuple[int, int], conv.dilation),
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
        )
        spatial = None if spatial_size is None else SpatialScale(*spatial_size)
        layer.weight, layer.bias = conv.weight, conv.bias
        layer._equip(
            conv.out_channels, act, weight_quantizer, channel_scale, spatial, gate, pad_value
        )
        return layer.to(conv.weight.device).train(conv.training)

    def _equip(
        self,
        outputs: int,
        act: QuantAct | None,
        weight_quantizer: WeightQuantizer | None,
        channel_scale: bool,
        spatial_scale: SpatialScale | None = None,
        gate: ChannelGate | None = None,
        pad_value: int = 0,
    ) -> None:
        if pad_value and self.padding_mode != "zeros":
            raise FoveateError(
                f"pad_value {pad_value} has no meaning with padding_mode={self.padding_mode!r}"
            )
        mine = (self.in_channels, self.out_channels)
        if gate is not None and (gate.reduce.in_features, gate.expand.out_features) != mine:
            raise FoveateError(
                f"the gate of a convolution {mine[0]} -> {mine[1]} must have these channels, got "
                f"{gate.reduce.in_features} -> {gate.expand.out_features}"
            )
        super()._equip(
            outputs, act, weight_quantizer, channel_scale, spatial_scale, gate, pad_value
        )

    def _sums(self, a: Tensor, w: Tensor, level: float | None) -> Tensor:
        return ConvGeometry.of(self).sums(a, w, level)

    def broadcast(self, scale: Tensor) -> Tensor:
        """``(Co,)`` in a shape that multiplies the output."""
        return scale.reshape(-1, 1, 1)


class QuantLinear(QuantLayer, nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` with quantised operands; parameters as in `QuantConv2d`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        act: QuantAct | None = None,
        weight_quantizer: WeightQuantizer | None = None,
        channel_scale: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._equip(out_features, act, weight_quantizer, channel_scale)

    @staticmethod
    def from_float(
        linear: nn.Linear,
        *,
        act: QuantAct | None = None,
        weight_quantizer: WeightQuantizer | None = None,
        channel_scale: bool = False,
    ) -> QuantLinear:
        """The quantised twin of `linear`; weight and bias are the same parameters, not copies."""
        layer = QuantLinear(linear.in_features, linear.out_features, linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer._equip(linear.out_features, act, weight_quantizer, channel_scale)
        return layer.to(linear.weight.device).train(linear.training)

    def _sums(self, a: Tensor, w: Tensor, level: float | None) -> Tensor:
        return F.linear(a, w)

    def broadcast(self, scale: Tensor) -> Tensor:
        """``(Co,)`` in a shape that multiplies the output."""
        return scale


# --- one bit -------------------------------------------------------------------------------


class LinearParts(TypedDict):
    """What `QuantLinear` takes beside its sizes."""

    act: QuantAct | None
    weight_quantizer: WeightQuantizer | None
    channel_scale: bool


class ConvParts(LinearParts):
    """What `QuantConv2d` takes beside its geometry."""

    spatial_size: tuple[int, int] | None
    gate: ChannelGate | None
    pad_value: int


@dataclass(frozen=True)
class BinarizeConfig:
    """How a layer becomes binary.

    Attributes
    ----------
    activation, weight
        Straight-through estimator of each operand; None leaves it real for good (a stage that
        comes and goes is set with `set_stage` instead).
    scale
        ``none``; ``xnor``: mean |w| per channel, analytic; ``channel``: learned per channel;
        ``chw``: learned per channel, row and column, needs `output_size`; ``se``: learned per
        channel and a `ChannelGate`.
    xnor_gradient
        Whether the gradient flows through the mean of ``xnor``.
    center_weights
        Subtract the mean over the input channels before the sign.
    pad_value
        0, -1 or +1, as in `QuantConv2d`.
    output_size
        Height and width of the output, for ``chw``.
    gate_reduction, gate_min_hidden
        Widths of the gate, for ``se``.
    """

    activation: Estimator | None = "clip"
    weight: Estimator | None = "clip"
    scale: Scale = "channel"
    xnor_gradient: bool = False
    center_weights: bool = False
    pad_value: int = 0
    output_size: tuple[int, int] | None = None
    gate_reduction: int = 8
    gate_min_hidden: int = 4

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise FoveateError(f"scale is one of {', '.join(get_args(Scale))}, got {self.scale!r}")
        if (self.scale == "chw") != (self.output_size is not None):
            raise FoveateError(
                "output_size=(height, width) goes with scale='chw' and only with it, got "
                f"scale={self.scale!r} and output_size={self.output_size}"
            )

    def linear_parts(self) -> LinearParts:
        """New quantisers for one linear layer."""
        if self.scale in ("chw", "se"):
            raise FoveateError(f"scale={self.scale!r} is for convolutions, not for linear layers")
        return self._parts()

    def conv_parts(self, c_in: int, c_out: int) -> ConvParts:
        """New quantisers and gate for one convolution of `c_in` to `c_out` channels."""
        gate = None
        if self.scale == "se":
            gate = ChannelGate(c_in, c_out, self.gate_reduction, self.gate_min_hidden)
        return {
            **self._parts(),
            "spatial_size": self.output_size,
            "gate": gate,
            "pad_value": self.pad_value,
        }

    def _parts(self) -> LinearParts:
        xnor: XnorScale = "flowing" if self.xnor_gradient else "stopped"
        return {
            "act": None if self.activation is None else SignSTE(self.activation),
            "weight_quantizer": None
            if self.weight is None
            else SignWeight(
                self.weight,
                xnor=xnor if self.scale == "xnor" else "none",
                center=self.center_weights,
            ),
            "channel_scale": self.scale in ("channel", "chw", "se"),
        }


class BinaryConv2d(QuantConv2d):
    """1-bit convolution: ``alpha (sign(x) conv sign(W))``; parameters as ``nn.Conv2d`` and config.

    No bias unless asked for: batch norm follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        config: BinarizeConfig | None = None,
    ) -> None:
        parts = (config or BinarizeConfig()).conv_parts(in_channels, out_channels)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            **parts,
        )


class BinaryLinear(QuantLinear):
    """1-bit linear layer, ``alpha (sign(x) . sign(W))``; no bias unless asked for."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        config: BinarizeConfig | None = None,
    ) -> None:
        parts = (config or BinarizeConfig()).linear_parts()
        super().__init__(in_features, out_features, bias, **parts)


# --- whole models --------------------------------------------------------------------------


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """``(path, layer)`` of every quantised layer of a model, in the order of registration."""
    for path, module in model.named_modules():
        if isinstance(module, QuantLayer):
            yield path, module


def set_stage(model: nn.Module, *, weights: bool, activations: bool | Literal["soft"]) -> None:
    """Switch every quantiser of a model; parameters and their names stay as they are.

    Parameters
    ----------
    weights
        Quantised or real.
    activations
        Quantised, real, or ``"soft"``: tanh in place of the sign.

    Raises
    ------
    FoveateError
        No quantiser in the model, one that has no soft stage, or weights that are packed and
        cannot become real. The model is then unchanged.
    """
    if activations not in (True, False, "soft"):
        raise FoveateError(f"activations is True, False or 'soft', got {activations!r}")
    quantizers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (QuantAct, WeightQuantizer))
    }
    if not quantizers:
        raise FoveateError(
            f"{type(model).__name__} has no quantised layer: build it from QuantConv2d and "
            "QuantLinear, or call foveate.quantization.surgery.quantize(model, ...) first"
        )
    for path, module in quantizers.items():  # all of them or none
        if isinstance(module, StoredCodes) and not weights:
            module.switch("real")
        if (
            activations == "soft"
            and isinstance(module, QuantAct)
            and not isinstance(module, SignSTE)
        ):
            raise FoveateError(
                f"{path or 'the model'} is a {type(module).__name__}, which has no soft (tanh) "
                "stage: only SignSTE has; use activations=True or False"
            )
    for module in quantizers.values():
        if isinstance(module, WeightQuantizer):
            module.switch("codes" if weights else "real")
        elif activations == "soft":
            module.switch("soft")
        else:
            module.switch("codes" if activations else "real")


def clip_latent_weights(model: nn.Module) -> None:
    """Clip latent weights to [-1, 1]; call it after every optimiser step.

    Only where weights are quantised in the present stage by a rule that ignores what lies outside
    (the sign, and MBN's ``clip``): there a larger weight would get no gradient and never return.
    """
    for module in model.modules():
        if isinstance(module, LatentLayer):
            module.clip_latent()


class ParameterGroup(TypedDict):
    """One group of an optimiser."""

    params: list[nn.Parameter]
    weight_decay: float


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Parameters for an optimiser, split by what weight decay would do to them.

    Decayed: the weights of convolutions and linear layers. Not decayed: batch norm, PReLU, biases,
    scales, steps, everything with one axis. As soon as one layer has 1-bit weights in the present
    stage nothing is decayed: only the sign of a latent weight matters, so decay would not make it
    smaller but make it flip. Call it again when the stage changes.

    Returns
    -------
    list of two groups, decayed (may be empty) and not decayed; together every parameter that
    requires a gradient, once.
    """
    if weight_decay < 0:
        raise FoveateError(f"weight_decay must not be negative, got {weight_decay}")
    binary = any(layer.bits[0] == 1 for _, layer in quant_layers(model))
    kernels = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            kernel = id(parameter) in kernels and not binary
            (decayed if kernel else spared).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


@torch.no_grad()
def pack_weights(model: nn.Module) -> nn.Module:
    """Copy of a model for inference whose quantised weights are codes (uint8) and nothing else.

    The latent real weights are gone; in ``eval()`` its outputs are bit-identical to those of
    `model`. Layers with real weights in the present stage stay as they are. The copy is in eval
    mode and compiles like the model itself.
    """
    packed = copy.deepcopy(model).eval()
    for _, layer in quant_layers(packed):
        quantizer = layer.coded_weight
        if quantizer is None:
            continue
        codes = quantizer.format.codes(quantizer.integers(layer.weight)).to(torch.uint8)
        step = quantizer.step(layer.weight).clone()
        layer.weight = nn.Parameter(codes, requires_grad=False)
        layer.weight_quantizer = StoredCodes(quantizer.format, step)
    return packed
