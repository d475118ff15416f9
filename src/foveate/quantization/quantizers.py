"""Quantisers of activations and of weights: which integers stand for a real tensor.

Every quantiser has a `CodeFormat`, a *step* and a method ``integers(x)``; what it stands for is
``integers(x) * step``, and that is what its ``forward`` returns. Rounding is always
``floor(v + 0.5)`` and ``sign(0) = +1``, so that the native engine finds the same codes:

    bipolar    u = clip(floor((x / range + 1) n/2 + 0.5), 0, n),  s = 2u - n,  step = range / n
               with n = 2^b - 1; 1 bit: u = [x >= 0]
    unipolar   s = clip(floor(x / step + 0.5), 0, n)
    twos       s = clip(floor(x / step + 0.5), -2^(b-1), 2^(b-1) - 1)

Gradients. To x: the rounding is skipped (1 inside the range, 0 outside); the sign has its
estimators (`foveate.quantization.straight_through`). To a learned step: that of LSQ (Esser et al.,
ICLR 2020), ``s - x/step`` inside and ``s`` outside, times ``1 / sqrt(count * n)``.

A quantiser is switched by its `stage`: ``codes`` (quantise), ``real`` (the real function it stands
for) and, for the sign, ``soft`` (tanh). Nothing of the state dict depends on it.

Everything computes in float32, whatever the dtype of the input, and returns the input's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat
from foveate.quantization.straight_through import (
    Estimator,
    check_estimator,
    sign,
    sign_ste,
    slope,
    stochastic_sign,
    straight_through,
)

__all__ = [
    "BipolarRange",
    "QuantAct",
    "QuantizerStage",
    "SignSTE",
    "SignWeight",
    "SoftSign",
    "TwosWeight",
    "UniformBipolar",
    "UniformBipolarWeight",
    "UniformUnipolar",
    "WeightNorm",
    "WeightQuantizer",
    "XnorScale",
    "per_channel",
]

QuantizerStage = Literal["codes", "real", "soft"]
BipolarRange = Literal["htanh", "hrelu", "relu_rescaled", "learned"]
WeightNorm = Literal["clip", "tanh_max", "lsq"]
XnorScale = Literal["none", "stopped", "flowing"]

_SMALLEST_STEP = 1e-8  # a learned step may cross 0 on its way; dividing by it must stay finite


# --- what all of them share ----------------------------------------------------------------


def _bipolar(x: Tensor, limit: Tensor, bits: int) -> Tensor:
    """Odd integers of `x` on 2^bits levels in [-limit, limit], with the clipped gradient."""
    top = (1 << bits) - 1
    inside = x / limit
    v = inside.detach()
    if bits == 1:  # the formula below would send tiny negative numbers up
        hard = sign(x.detach())
    else:
        # The order of these float32 operations is fixed: the native engine repeats it.
        codes = torch.floor((v + 1) * (top / 2) + 0.5).clamp(0, top)
        hard = 2 * torch.nan_to_num(codes, nan=0.0) - top
    return straight_through(hard, inside.clamp(-1, 1) * top)


def _rounded(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Integers ``floor(x / step + 0.5)`` in low..high (NaN: 0), with the clipped gradient."""
    v = x / step
    hard = torch.nan_to_num(torch.floor(v.detach() + 0.5).clamp(low, high), nan=0.0)
    return straight_through(hard, v.clamp(low, high))


def _positive(step: Tensor, gain: float) -> Tensor:
    """A learned step as it is used: float32, above 0, its gradient multiplied by `gain`."""
    step = step.float().abs().clamp_min(_SMALLEST_STEP)
    return straight_through(step, step, torch.full_like(step, gain))


def _least_squares_limit(x: Tensor, quantized: Callable[[Tensor], Tensor]) -> Tensor:
    """Range limit of each row of `x` ``(C, N)`` with the least mean squared error, ``(C,)``.

    ``quantized(limit)`` gives `x` quantised with limits ``(C, 1)``. Limits from 1 % of the largest
    magnitude to all of it are tried on a logarithmic scale, then finer ones around the best.
    """
    best = x.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_STEP)
    least = torch.full_like(best, math.inf)
    coarse = torch.logspace(-2, 0, 33)
    fine = torch.logspace(-2 / 32, 2 / 32, 17)
    for ratios in (coarse, fine):
        centre = best
        for ratio in ratios.tolist():
            limit = centre * ratio
            error = (quantized(limit) - x).square().mean(1, keepdim=True)
            best = torch.where(error < least, limit, best)
            least = torch.minimum(error, least)
    return best[:, 0]


def _check_name(what: str, value: str, allowed: object) -> None:
    names = get_args(allowed)
    if value not in names:
        raise FoveateError(f"{what} is one of {', '.join(names)}, got {value!r}")


# --- activations ---------------------------------------------------------------------------


class QuantAct(nn.Module):
    """An activation quantiser; may stand inside a layer (``layer.act``) or in a net by itself.

    Attributes
    ----------
    format
        What its codes mean.
    stage
        ``codes``, ``real`` or (`SignSTE` only) ``soft``.
    learned
        Whether its step is a parameter, which ``calibrate`` can set from data.
    """

    learned = False

    def __init__(self, format: CodeFormat) -> None:
        super().__init__()
        self.format = format
        self.stage: QuantizerStage = "codes"
        # Carries the device, nothing else: no entry in the state dict.
        self.register_buffer("_device", torch.empty(0), persistent=False)

    def switch(self, stage: QuantizerStage) -> None:
        """Set the stage; an error for ``soft`` where there is no soft form."""
        if stage == "soft":
            raise FoveateError(
                f"{type(self).__name__} has no soft (tanh) stage: only SignSTE has, "
                "use activations=True or False"
            )
        self.stage = stage

    def _constant(self, value: float) -> Tensor:
        device = cast(Tensor, self._device).device
        return torch.full((), value, dtype=torch.float32, device=device)

    def step(self) -> Tensor:
        """Real value of the integer 1: 0-dim float32."""
        raise NotImplementedError

    def integers(self, x: Tensor) -> Tensor:
        """Signed integers of real `x`, float32, same shape; with the straight-through gradient."""
        raise NotImplementedError

    def real(self, x: Tensor) -> Tensor:
        """The real function that is quantised: same shape and dtype."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``integers(x) * step()`` in the dtype of `x`, or its real or soft stand-in."""
        if self.stage != "codes":
            return self.real(x)
        return (self.integers(x) * self.step()).to(x.dtype)

    def fit(self, values: Tensor, percentile: float | None = None) -> None:
        """Set the learned step from a sample of inputs (any shape).

        The step has the least squared error, or its range ends at `percentile` (0..100) of the
        magnitudes. A sample with nothing inside the range leaves the step as it is.
        """
        raise FoveateError(f"{type(self).__name__} has no learned step to fit")


class SoftSign(nn.Module):
    """``tanh(sharpness * x)``: the soft stage before the sign. It cannot be compiled."""

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        if not sharpness > 0:
            raise FoveateError(f"SoftSign expects sharpness > 0, got {sharpness}")
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        """Values in (-1, 1), same shape."""
        return torch.tanh(self.sharpness * x)


class SignSTE(QuantAct):
    """Hard sign with a straight-through estimator: 1 bit, values -1 and +1, step 1.

    Parameters
    ----------
    estimator
        ``clip``, ``poly``, ``tanh``, ``reste`` or ``identity``.
    threshold
        Half-width of the window of ``clip`` (default 1) and ``reste`` (default 1.5).
    sharpness
        t of the ``tanh`` estimator. That of the soft stage is ``.soft.sharpness``, 1 at first.
    power
        o of ``reste``; raise it during training by ``reste_power(epoch, epochs)``.
    stochastic
        In training draw +1 with probability ``clip((x + 1) / 2, 0, 1)``; eval stays the hard sign.

    Attributes
    ----------
    generator
        Source of randomness of `stochastic`; the global one when None.
    replaces_relu
        Whether the real stage is a ReLU instead of nothing: that of a ReLU which had to go.
    """

    def __init__(
        self,
        estimator: Estimator = "clip",
        threshold: float | None = None,
        sharpness: float = 5.0,
        power: float = 1.0,
        stochastic: bool = False,
    ) -> None:
        super().__init__(CodeFormat("bipolar", 1))
        self.estimator = check_estimator(estimator)
        self.threshold, self.sharpness, self.power = threshold, sharpness, power
        self.stochastic = stochastic
        self.generator: torch.Generator | None = None
        self.replaces_relu = False
        self.soft = SoftSign()

    def switch(self, stage: QuantizerStage) -> None:
        """Set the stage: ``codes`` (sign), ``soft`` (tanh) or ``real`` (nothing)."""
        self.stage = stage

    def step(self) -> Tensor:
        """1."""
        return self._constant(1.0)

    def slope(self, x: Tensor) -> Tensor:
        """g(x): what the gradient is multiplied by."""
        return slope(self.estimator, x, self.threshold, self.sharpness, self.power)

    def integers(self, x: Tensor) -> Tensor:
        """-1 or +1; drawn at random only when `stochastic` and training."""
        x = x.float()
        if self.stochastic and self.training:
            drawn = stochastic_sign(x.detach(), self.generator)
            return straight_through(drawn, x, self.slope(x.detach()))
        return sign_ste(x, self.estimator, self.threshold, self.sharpness, self.power)

    def forward(self, x: Tensor) -> Tensor:
        """As every activation quantiser; spares the multiplication by 1."""
        return self.integers(x).to(x.dtype) if self.stage == "codes" else self.real(x)

    def real(self, x: Tensor) -> Tensor:
        """Tanh in the soft stage; in the real one `x` itself, or its ReLU."""
        if self.stage == "soft":
            return cast(Tensor, self.soft(x))
        return x.relu() if self.replaces_relu else x

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.estimator}, stage={self.stage}"


class UniformBipolar(QuantAct):
    """2^b evenly spaced levels in [-1, 1], both ends included (q_k of MBN, eq. 15), no zero.

    Parameters
    ----------
    bits
        1 to 8.
    range
        ``htanh``: clip to [-1, 1]. ``hrelu``: clip to [0, 1], so that only the upper half of the
        levels is used, as in the paper; at 1 bit it would leave nothing but +1, therefore 1 bit
        takes ``htanh``. ``relu_rescaled``: ``2 clip(x, 0, 1) - 1`` is encoded, so that all levels
        are used; read back as ``(x' + 1) / 2`` these are the unipolar codes with step 1/(2^b - 1),
        and that is its `format` (zero padding stays exact). Not in the paper. ``learned``: clip to
        [-limit, limit] with a learned `limit`, for signed inputs of any size. Not in the paper.
    """

    def __init__(self, bits: int, range: BipolarRange = "htanh") -> None:
        _check_name("the range of UniformBipolar", range, BipolarRange)
        kind: Literal["bipolar", "unipolar"] = "unipolar" if range == "relu_rescaled" else "bipolar"
        super().__init__(CodeFormat(kind, bits))
        self.range: BipolarRange = "htanh" if bits == 1 and range == "hrelu" else range
        self._asked_range = range
        self.learned = range == "learned"
        # 2.5 deviations of a normalised input; calibrate() does better.
        self.limit = nn.Parameter(torch.tensor(2.5)) if self.learned else None
        self._gain = 1.0

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.format.bits

    def with_bits(self, bits: int) -> UniformBipolar:
        """The same range at another number of bits (a new module; a learned limit is copied)."""
        other = UniformBipolar(bits, self._asked_range)
        if self.limit is not None and other.limit is not None:
            other.limit = nn.Parameter(self.limit.detach().clone())
        other.stage = self.stage
        return other.to(cast(Tensor, self._device).device)

    def step(self) -> Tensor:
        """``1 / (2^b - 1)`` of the range's limit (1 unless learned)."""
        if self.limit is None:
            return self._constant(1 / self.format.top)
        return _positive(self.limit, self._gain) / self.format.top

    def integers(self, x: Tensor) -> Tensor:
        """Odd integers (``relu_rescaled``: 0 to 2^b - 1)."""
        top = self.format.top
        if self.limit is not None:
            self._gain = 1 / math.sqrt(top * _features(x))
        x = x.float()
        if self.range == "relu_rescaled":
            return _rounded(x, self.step(), 0, top)
        if self.range == "hrelu":
            x = x.clamp(0, 1)
        return _bipolar(x, self.step() * top, self.bits)

    def real(self, x: Tensor) -> Tensor:
        """The range function without its quantisation; for the ReLU ranges the plain ReLU.

        That is what the paper's chain starts from: a full-precision ReLU network.
        """
        if self.range == "htanh":
            return x.clamp(-1, 1)
        return x if self.range == "learned" else x.relu()

    @torch.no_grad()
    def fit(self, values: Tensor, percentile: float | None = None) -> None:
        """Set a learned limit; an error where the range is fixed."""
        if self.limit is None:
            super().fit(values, percentile)
            return
        x = values.detach().float().reshape(1, -1)
        if not (x != 0).any():
            return
        if percentile is not None:
            limit = torch.quantile(x.abs(), percentile / 100)
        else:
            top = self.format.top
            limit = _least_squares_limit(
                x, lambda limit: _bipolar(x, limit, self.bits) * (limit / top)
            )
        self.limit.copy_(limit.reshape(()))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.bits} bits, {self.range}, stage={self.stage}"


class UniformUnipolar(QuantAct):
    """What a ReLU leaves, on 2^b levels ``0, step, ..., (2^b - 1) step``; the step is learned.

    Rectifies by itself, so a ReLU in front changes nothing. The step at first suits a normalised
    input (LSQ's ``2 E|x| / sqrt(n)`` for the positive half of a unit normal); set it from data
    with ``calibrate`` or `fit`.

    Parameters
    ----------
    bits
        1 to 8.
    """

    learned = True

    def __init__(self, bits: int) -> None:
        super().__init__(CodeFormat("unipolar", bits))
        mean = 1 / math.sqrt(2 * math.pi)
        self.step_size = nn.Parameter(torch.tensor(2 * mean / math.sqrt(self.format.top)))
        self._gain = 1.0

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.format.bits

    def step(self) -> Tensor:
        """The learned step, above 0."""
        return _positive(self.step_size, self._gain)

    def integers(self, x: Tensor) -> Tensor:
        """0 to 2^b - 1."""
        self._gain = 1 / math.sqrt(self.format.top * _features(x))
        return _rounded(x.float(), self.step(), 0, self.format.top)

    def real(self, x: Tensor) -> Tensor:
        """ReLU."""
        return x.relu()

    @torch.no_grad()
    def fit(self, values: Tensor, percentile: float | None = None) -> None:
        """Set the step from the positive values of the sample."""
        x = values.detach().float().reshape(1, -1)
        x = x[:, x[0] > 0]
        if not x.numel():
            return
        top = self.format.top
        if percentile is not None:
            limit = torch.quantile(x, percentile / 100)
        else:
            limit = _least_squares_limit(
                x, lambda limit: _rounded(x, limit / top, 0, top) * (limit / top)
            )
        self.step_size.copy_(limit.reshape(()) / top)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.bits} bits, stage={self.stage}"


def _features(x: Tensor) -> int:
    """Numbers of one sample: LSQ divides the gradient of the step by their root."""
    return max(x.numel() // max(x.shape[0], 1), 1) if x.ndim else 1


# --- weights -------------------------------------------------------------------------------


class WeightQuantizer(nn.Module):
    """A weight quantiser: ``integers(w) * step(w)`` stands for w.

    Output channels are the first axis of w.

    Attributes
    ----------
    format
        What its codes mean.
    stage
        ``codes`` or ``real``.
    learned
        Whether its step is a parameter; `fit` sets it.
    clips_latent
        Whether the real weights are kept in [-1, 1] during training (``clip_latent_weights``).
    """

    learned = False
    clips_latent = False

    def __init__(self, format: CodeFormat) -> None:
        super().__init__()
        self.format = format
        self.stage: QuantizerStage = "codes"

    def switch(self, stage: QuantizerStage) -> None:
        """Set the stage, ``codes`` or ``real``."""
        if stage == "soft":
            raise FoveateError("weights have no soft stage")
        self.stage = stage

    def step(self, w: Tensor) -> Tensor:
        """Real value of the integer 1: float32, 0-dim or (Co,)."""
        raise NotImplementedError

    def integers(self, w: Tensor) -> Tensor:
        """Signed integers of w, float32, same shape; with the straight-through gradient."""
        raise NotImplementedError

    def fit(self, w: Tensor) -> None:
        """Set a learned step to the least squared error for w; nothing where none is learned."""

    def forward(self, w: Tensor) -> Tensor:
        """``integers(w) * step(w)`` in the dtype of w; w itself in the ``real`` stage."""
        if self.stage != "codes":
            return w
        return (self.integers(w) * per_channel(self.step(w), w)).to(w.dtype)


def per_channel(step: Tensor, w: Tensor) -> Tensor:
    """A step ``()`` or ``(Co,)`` in a shape that multiplies ``w (Co, ...)``."""
    return step if step.ndim == 0 else step.reshape(-1, *[1] * (w.ndim - 1))


def _rows(w: Tensor) -> Tensor:
    return w.detach().float().reshape(w.shape[0], -1)


class SignWeight(WeightQuantizer):
    """The sign of the latent weight, 1 bit.

    Parameters
    ----------
    estimator, threshold, power
        Straight-through estimator, as in `SignSTE`.
    xnor
        ``none``: step 1 (a learned scale or batch norm follows). ``stopped`` and ``flowing``: the
        step of channel c is ``mean |w_c|`` (XNOR-Net); the gradient of the step itself is stopped,
        as in Bi-Real Net, or flows into w.
    center
        Subtract the mean over the input channels first (XNOR-Net's option).
    """

    clips_latent = True

    def __init__(
        self,
        estimator: Estimator = "clip",
        threshold: float | None = None,
        power: float = 1.0,
        xnor: XnorScale = "none",
        center: bool = False,
    ) -> None:
        super().__init__(CodeFormat("bipolar", 1))
        _check_name("xnor", xnor, XnorScale)
        self.estimator = check_estimator(estimator)
        self.threshold, self.power = threshold, power
        self.xnor: XnorScale = xnor
        self.center = center

    def _latent(self, w: Tensor) -> Tensor:
        w = w.float()
        return w - w.mean(1, keepdim=True) if self.center else w

    def step(self, w: Tensor) -> Tensor:
        """1, or ``mean |w_c|`` per output channel."""
        if self.xnor == "none":
            return torch.ones((), dtype=torch.float32, device=w.device)
        size = self._latent(w).abs().flatten(1).mean(1)
        return size.detach() if self.xnor == "stopped" else size

    def integers(self, w: Tensor) -> Tensor:
        """-1 or +1."""
        return sign_ste(self._latent(w), self.estimator, self.threshold, power=self.power)

    def forward(self, w: Tensor) -> Tensor:
        """As every weight quantiser; spares the multiplication by 1."""
        if self.stage == "codes" and self.xnor == "none":
            return self.integers(w).to(w.dtype)
        return super().forward(w)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.estimator}, xnor={self.xnor}, stage={self.stage}"


class UniformBipolarWeight(WeightQuantizer):
    """2^b evenly spaced levels without zero (q_k of MBN) for weights.

    Parameters
    ----------
    bits
        1 to 8.
    weight_norm
        ``clip``: to [-1, 1], the paper's rule, no scale. ``tanh_max``: ``tanh(w) / max |tanh(w)|``
        first (DoReFa's), so that ordinary small weights use all levels. ``lsq``: learned limit per
        output channel.
    channels
        Output channels, needed by ``lsq``.
    """

    def __init__(
        self, bits: int, weight_norm: WeightNorm = "tanh_max", channels: int | None = None
    ) -> None:
        super().__init__(CodeFormat("bipolar", bits))
        _check_name("weight_norm", weight_norm, WeightNorm)
        self.weight_norm: WeightNorm = weight_norm
        self.learned = weight_norm == "lsq"
        self.clips_latent = weight_norm == "clip"
        self.limit: nn.Parameter | None = None
        if self.learned:
            self.limit = nn.Parameter(torch.ones(_channels(self, channels)))

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.format.bits

    def with_bits(self, bits: int) -> UniformBipolarWeight:
        """The same at another number of bits (a new module; learned limits are copied)."""
        channels = None if self.limit is None else self.limit.shape[0]
        other = UniformBipolarWeight(bits, self.weight_norm, channels)
        if self.limit is not None:
            other.limit = nn.Parameter(self.limit.detach().clone())
        other.stage = self.stage
        return other

    def step(self, w: Tensor) -> Tensor:
        """``1 / (2^b - 1)``, times the learned limit with ``lsq``."""
        top = self.format.top
        if self.limit is None:
            return torch.full((), 1 / top, dtype=torch.float32, device=w.device)
        gain = 1 / math.sqrt(top * max(w[0].numel(), 1))
        return _positive(self.limit, gain) / top

    def integers(self, w: Tensor) -> Tensor:
        """Odd integers, -(2^b - 1) to 2^b - 1."""
        w = w.float()
        if self.weight_norm == "tanh_max":
            w = torch.tanh(w)
            w = w / w.abs().amax().clamp_min(_SMALLEST_STEP)
        return _bipolar(w, per_channel(self.step(w) * self.format.top, w), self.bits)

    @torch.no_grad()
    def fit(self, w: Tensor) -> None:
        """Set the learned limits (``lsq``) to the least squared error."""
        if self.limit is None:
            return
        x, top = _rows(w), self.format.top
        self.limit.copy_(
            _least_squares_limit(x, lambda limit: _bipolar(x, limit, self.bits) * (limit / top))
        )

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.bits} bits, {self.weight_norm}, stage={self.stage}"


class TwosWeight(WeightQuantizer):
    """Signed integers -2^(b-1) .. 2^(b-1) - 1 with a learned step per output channel (LSQ).

    Parameters
    ----------
    bits
        2 to 8 (at 1 bit two's complement has only 0 and -1: use `SignWeight`).
    channels
        Output channels.
    """

    learned = True

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__(CodeFormat("twos", bits))
        if bits == 1:
            raise FoveateError("TwosWeight has 2 to 8 bits; use SignWeight for 1 bit")
        self.step_size = nn.Parameter(torch.ones(_channels(self, channels)))

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.format.bits

    def step(self, w: Tensor) -> Tensor:
        """The learned steps, above 0."""
        gain = 1 / math.sqrt(self.format.high * max(w[0].numel(), 1))
        return _positive(self.step_size, gain)

    def integers(self, w: Tensor) -> Tensor:
        """-2^(b-1) to 2^(b-1) - 1."""
        w = w.float()
        return _rounded(w, per_channel(self.step(w), w), self.format.low, self.format.high)

    @torch.no_grad()
    def fit(self, w: Tensor) -> None:
        """Set the steps to the least squared error, channel by channel."""
        x, low, high = _rows(w), self.format.low, self.format.high
        best = _least_squares_limit(
            x, lambda limit: _rounded(x, limit / -low, low, high) * (limit / -low)
        )
        self.step_size.copy_(best / -low)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.bits} bits, stage={self.stage}"


def _channels(quantizer: WeightQuantizer, channels: int | None) -> int:
    if channels is None or channels < 1:
        raise FoveateError(
            f"{type(quantizer).__name__} learns a step per output channel: "
            f"give channels >= 1, got {channels}"
        )
    return channels
