"""Which layer, function or method becomes which operation of the engine.

Three tables: ``LAYERS`` by the class of a ``torch.nn`` module, ``METHODS`` by the name of a tensor
method, and ``FUNCTIONS``, which gives the method that a function of torch is the same as. What is
in none of them is refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.engine.operations import Direction, Entry, Pair, Ref, pair_of, row_of

if TYPE_CHECKING:
    from foveate.engine.lowering import Lowering

__all__ = ["FUNCTIONS", "LAYERS", "METHODS", "Call"]

FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Call:
    """Arguments of a function or method, by place or by name."""

    lowering: Lowering
    node: torch.fx.Node
    args: list[object]
    kwargs: dict[str, object]

    def get(self, place: int, name: str, default: object = None) -> object:
        """Argument at a place, or of a name."""
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default)

    def x(self, place: int = 0, name: str = "input") -> Ref:
        """The tensor of the model at a place."""
        found = self.get(place, name)
        if not isinstance(found, Ref):
            raise self.lowering.refuse("it wants a tensor that depends on the input")
        return found

    def fixed(self, place: int, name: str) -> Tensor | None:
        """A tensor that does not depend on the input, or None."""
        found = self.get(place, name)
        if found is not None and not isinstance(found, Tensor):
            raise self.lowering.refuse(f"its {name} depends on the input")
        return found


# ---------------------------------------------------------------------------------- layers


def _layer_identity(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return x


def _layer_conv2d(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    conv = cast(nn.Conv2d, module)
    if conv.padding_mode != "zeros":
        raise self.refuse(f"padding_mode={conv.padding_mode!r}; the engine pads with zeros")
    return self.float_conv(
        x,
        conv.weight,
        conv.bias,
        cast(Pair, conv.stride),
        self.padding(conv),
        cast(Pair, conv.dilation),
        conv.groups,
    )


def _layer_linear(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    linear = cast(nn.Linear, module)
    return self.float_linear(x, linear.weight, linear.bias)


def _layer_batch_norm(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    norm = cast(nn.BatchNorm2d, module)
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise self.refuse(
            "batch normalisation without running statistics depends on the batch; "
            "train with track_running_stats=True"
        )
    # Not folded into the weights of the layer before: that would round otherwise, and as a step
    # of its epilogue it costs no pass over memory.
    alpha = 1 / torch.sqrt(variance + norm.eps)
    alpha = alpha if norm.weight is None else alpha * norm.weight
    zeros = torch.zeros(1, len(mean), *[1] * (x.rank - 2))
    return self.affine(x, norm, row_of(alpha), row_of(norm(zeros).reshape(-1)))


def _layer_prelu(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return self.slope(x, module, cast(nn.PReLU, module).weight)


def _layer_leaky_relu(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return self.slope(x, module, torch.tensor([cast(nn.LeakyReLU, module).negative_slope]))


def _layer_hardtanh(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    limits = cast(nn.Hardtanh, module)
    return self.clip(x, module, float(limits.min_val), float(limits.max_val))


def _layer_hard_sigmoid(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return self.hard_sigmoid(x)


def _layer_max_pool(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    pool = cast(nn.MaxPool2d, module)
    if pair_of(pool.dilation) != (1, 1) or pool.return_indices:
        raise self.refuse("max pooling with dilation or indices")
    return self.pool(x, "max", pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


def _layer_avg_pool(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    pool = cast(nn.AvgPool2d, module)
    if pool.divisor_override is not None:
        raise self.refuse("average pooling with divisor_override")
    return self.pool(
        x,
        "avg",
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.ceil_mode,
        pool.count_include_pad,
    )


def _layer_adaptive(kind: str) -> _Layer:
    def lower(self: Lowering, module: nn.Module, x: Ref) -> Ref:
        return self.adaptive_pool(x, kind, cast(nn.AdaptiveAvgPool2d, module).output_size)

    return lower


def _layer_reshape(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return self.reshaped(x, self.result)


def _layer_softmax(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return self.softmax(x, cast(nn.Softmax, module).dim)


def _layer_upsample(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    upsample = cast(nn.Upsample, module)
    return self.upsample(x, upsample.mode, upsample.align_corners)


def _layer_shuffle(self: Lowering, module: nn.Module, x: Ref) -> Ref:
    return self.shuffle(x, cast(nn.ChannelShuffle, module).groups)


def _layer_pointwise(kind: str, direction: Direction) -> _Layer:
    def lower(self: Lowering, module: nn.Module, x: Ref) -> Ref:
        return self.pointwise(kind, x, module, direction=direction)

    return lower


_Layer: TypeAlias = "Callable[[Lowering, nn.Module, Ref], Ref]"

LAYERS: dict[type[nn.Module], _Layer] = {
    nn.Identity: _layer_identity,
    nn.Dropout: _layer_identity,
    nn.Dropout2d: _layer_identity,
    nn.Conv2d: _layer_conv2d,
    nn.Linear: _layer_linear,
    nn.BatchNorm1d: _layer_batch_norm,
    nn.BatchNorm2d: _layer_batch_norm,
    nn.ReLU: _layer_pointwise("relu", "rising"),
    nn.Sigmoid: _layer_pointwise("sigmoid", "rising"),
    nn.Tanh: _layer_pointwise("tanh", "rising"),
    nn.SiLU: _layer_pointwise("silu", "other"),
    nn.Hardswish: _layer_pointwise("hswish", "other"),
    nn.ReLU6: _layer_hardtanh,
    nn.Hardtanh: _layer_hardtanh,
    nn.Hardsigmoid: _layer_hard_sigmoid,
    nn.PReLU: _layer_prelu,
    nn.LeakyReLU: _layer_leaky_relu,
    nn.MaxPool2d: _layer_max_pool,
    nn.AvgPool2d: _layer_avg_pool,
    nn.AdaptiveAvgPool2d: _layer_adaptive("avg"),
    nn.AdaptiveMaxPool2d: _layer_adaptive("max"),
    nn.Flatten: _layer_reshape,
    nn.Softmax: _layer_softmax,
    nn.Upsample: _layer_upsample,
    nn.UpsamplingNearest2d: _layer_upsample,
    nn.ChannelShuffle: _layer_shuffle,
}


# ------------------------------------------------------------------------------- functions


def _simple(kind: str, function: Callable[[Tensor], Tensor]) -> _Method:
    def lower(self: Lowering, call: Call) -> Ref:
        direction: Direction = "other" if kind in ("silu", "hswish") else "rising"
        return self.pointwise(kind, call.x(), function, direction=direction)

    return lower


def _relu6(self: Lowering, call: Call) -> Ref:
    return self.clip(call.x(), F.relu6, 0.0, 6.0)


def _hardtanh(self: Lowering, call: Call) -> Ref:
    low = float(cast(float, call.get(1, "min_val", -1.0)))
    high = float(cast(float, call.get(2, "max_val", 1.0)))
    return self.clip(call.x(), lambda v: F.hardtanh(v, low, high), low, high)


def _clamp(self: Lowering, call: Call) -> Ref:
    low, high = call.get(1, "min"), call.get(2, "max")
    if isinstance(low, (Tensor, Ref)) or isinstance(high, (Tensor, Ref)):
        raise self.refuse("limits that are tensors")
    bottom = -FLOAT_MAX if low is None else float(cast(float, low))
    top = FLOAT_MAX if high is None else float(cast(float, high))
    return self.clip(call.x(), lambda v: v.clamp(bottom, top), bottom, top)


def _leaky_relu(self: Lowering, call: Call) -> Ref:
    slope = float(cast(float, call.get(1, "negative_slope", 0.01)))
    return self.slope(call.x(), lambda v: F.leaky_relu(v, slope), torch.tensor([slope]))


def _prelu(self: Lowering, call: Call) -> Ref:
    weight = call.fixed(1, "weight")
    if weight is None:
        raise self.refuse("prelu wants its slopes")
    return self.slope(call.x(), lambda v: F.prelu(v, weight), weight)


def _hardsigmoid(self: Lowering, call: Call) -> Ref:
    return self.hard_sigmoid(call.x())


def _conv2d(self: Lowering, call: Call) -> Ref:
    weight = call.fixed(1, "weight")
    padding = call.get(4, "padding", 0)
    if weight is None or isinstance(padding, str):
        raise self.refuse("conv2d wants a weight and a padding in numbers")
    return self.float_conv(
        call.x(),
        weight,
        call.fixed(2, "bias"),
        pair_of(call.get(3, "stride", 1)),
        pair_of(padding),
        pair_of(call.get(5, "dilation", 1)),
        int(cast(int, call.get(6, "groups", 1))),
    )


def _linear(self: Lowering, call: Call) -> Ref:
    weight = call.fixed(1, "weight")
    if weight is None:
        raise self.refuse("linear wants a weight")
    return self.float_linear(call.x(), weight, call.fixed(2, "bias"))


def _max_pool(self: Lowering, call: Call) -> Ref:
    if pair_of(call.get(4, "dilation", 1)) != (1, 1):
        raise self.refuse("max pooling with dilation")
    return self.pool(
        call.x(),
        "max",
        call.get(1, "kernel_size"),
        call.get(2, "stride"),
        call.get(3, "padding", 0),
        bool(call.get(5, "ceil_mode", False)),
    )


def _avg_pool(self: Lowering, call: Call) -> Ref:
    if call.get(6, "divisor_override") is not None:
        raise self.refuse("average pooling with divisor_override")
    return self.pool(
        call.x(),
        "avg",
        call.get(1, "kernel_size"),
        call.get(2, "stride"),
        call.get(3, "padding", 0),
        bool(call.get(4, "ceil_mode", False)),
        bool(call.get(5, "count_include_pad", True)),
    )


def _adaptive(kind: str) -> _Method:
    def lower(self: Lowering, call: Call) -> Ref:
        return self.adaptive_pool(call.x(), kind, call.get(1, "output_size"))

    return lower


def _mean(self: Lowering, call: Call) -> Ref:
    x = call.x()
    said = call.get(1, "dim")
    axes = said if isinstance(said, (tuple, list)) else (said,)
    wanted = {2} if x.flat else {2, 3}
    if None in axes or {cast(int, axis) % x.rank for axis in axes} != wanted:
        raise self.refuse(f"mean over the axes {said}; the engine has it over rows and columns")
    if x.flat:
        return self.global_average(x, 3 if call.get(2, "keepdim", False) else 2)
    return self.global_average(x, 4 if call.get(2, "keepdim", False) else 2)


def _softmax(self: Lowering, call: Call) -> Ref:
    return self.softmax(call.x(), call.get(1, "dim"))


def _interpolate(self: Lowering, call: Call) -> Ref:
    mode = str(call.get(3, "mode", "nearest"))
    return self.upsample(call.x(), mode, call.get(4, "align_corners"))


def _identity(self: Lowering, call: Call) -> Ref:
    return call.x()


def _reshape(self: Lowering, call: Call) -> Ref:
    return self.reshaped(call.x(), self.result)


def _transpose(self: Lowering, call: Call) -> Ref:
    x = call.x()
    axes = [call.get(1, "dim0"), call.get(2, "dim1")]
    if call.node.target == "permute" or call.node.target is torch.permute:
        said = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
        axes = [1, 2] if list(cast("list[int]", said)) == [0, 2, 1, 3, 4] else []
    if not x.split or sorted(cast("list[int]", axes)) != [1, 2]:
        raise self.refuse("transposing axes other than the two of a channel shuffle")
    channels = self.shapes[x.value][0]
    if x.swapped:
        return Ref(x.value, 5, split=channels // x.split)
    return Ref(x.value, 5, split=x.split, swapped=True)


def _cat(self: Lowering, call: Call) -> Ref:
    parts = self.sequence(call.get(0, "tensors"))
    refs = [part for part in parts if isinstance(part, Ref)]
    axis = call.get(1, "dim", 0)
    if len(refs) != len(parts) or axis not in (1, 1 - refs[0].rank):
        raise self.refuse("the engine concatenates tensors of the model over channels (dim=1)")
    values = [self.plain(ref) for ref in refs]
    shape = self.shapes[values[0]]
    channels = sum(self.shapes[value][0] for value in values)
    return Ref(self.emit("concat", values, (channels, *shape[1:])), refs[0].rank)


def _split(self: Lowering, call: Call) -> tuple[Ref, ...]:
    x = call.x()
    if call.get(2, "dim", 0) not in (1, 1 - x.rank):
        raise self.refuse("the engine splits tensors over channels (dim=1)")
    parts, start = [], 0
    for part in cast("tuple[Tensor, ...]", self.results[call.node]):
        parts.append(self.narrowed(x, start, start + part.shape[1]))
        start += part.shape[1]
    return tuple(parts)


def _getitem(self: Lowering, call: Call) -> Ref:
    source, index = call.args
    if isinstance(source, tuple):
        return cast(Ref, source[cast(int, index)])
    x = call.x()
    places = list(index) if isinstance(index, tuple) else [index]
    everything = slice(None)
    if all(place is None or isinstance(place, slice) for place in places):
        rest = places[1:]
        if places[0] == everything and all(place in (None, everything) for place in rest):
            return self.reshaped(x, self.result)
        first = rest[0] if rest and places[0] == everything else None
        if isinstance(first, slice) and all(place == everything for place in rest[1:]):
            start, stop, step = first.indices(self.shapes[x.value][0])
            if step == 1 and stop > start:
                return self.narrowed(x, start, stop)
        spatial = [place for place in rest[1:] if isinstance(place, slice)]
        strides = [place.step or 1 for place in spatial]
        if (
            x.rank == 4
            and first == everything
            and len(spatial) == len(rest) - 1
            and all(place == slice(None, None, place.step) for place in spatial)
        ):
            # Every second pixel, say: the largest of one pixel is that pixel.
            return self.pool(x, "max", 1, [*strides, 1][:2], 0)
    raise self.refuse(
        f"indexing with {index}; the engine has slices of channels, x[:, a:b], and every n-th "
        "row and column, x[:, :, ::n, ::n]"
    )


def _pad(self: Lowering, call: Call) -> Ref:
    """Zeros around the image or the channels: a convolution with ones, which is exact."""
    x = call.x()
    value = call.get(3, "value")
    if call.get(2, "mode", "constant") != "constant" or value not in (None, 0):
        raise self.refuse("padding with anything but zeros")
    amounts = [*cast("list[int]", call.get(1, "pad")), 0, 0, 0, 0, 0, 0][:6]
    left, right, top, bottom, before, after = amounts
    if x.rank != 4 or left != right or top != bottom or min(amounts) < 0:
        raise self.refuse(f"padding by {amounts}; the engine pads both sides by the same")
    channels = self.shapes[x.value][0]
    if left or top:
        ones = torch.ones(channels, 1, 1, 1)
        x = self.conv(x, (1, 1), (top, left), (1, 1), channels, ones, row_of(ones), None, 0)
    if before or after:
        weight = F.pad(torch.eye(channels), (0, 0, before, after))[:, :, None, None]
        x = self.conv(x, (1, 1), (0, 0), (1, 1), 1, weight, row_of(weight), None, 0)
    return x


def _per_channel(self: Lowering, x: Ref, other: object) -> tuple[NDArray[np.float32], Tensor]:
    """A constant operand as one number per channel, and as a tensor for `apply`."""
    channels = self.shapes[x.value][0]
    constant = other if isinstance(other, Tensor) else torch.tensor(float(cast(float, other)))
    shape = (1,) * (x.rank - constant.ndim) + tuple(constant.shape)
    if len(shape) != x.rank or shape[1] not in (1, channels) or math.prod(shape) != shape[1]:
        raise self.refuse(
            f"a constant of shape {tuple(constant.shape)}; the engine has one number per channel"
        )
    return row_of(constant.float().reshape(-1).expand(channels)), constant.reshape(shape)


def _add(self: Lowering, call: Call) -> Ref:
    a, b = call.get(0, "input"), call.get(1, "other")
    if call.get(2, "alpha", 1) != 1:
        raise self.refuse("add with alpha")
    if isinstance(a, Ref) and isinstance(b, Ref):
        first, second = self.plain(a), self.plain(b)
        if self.shapes[first] != self.shapes[second] or a.rank != b.rank:
            raise self.refuse(
                f"adding {self.shapes[first]} and {self.shapes[second]}; the shapes must agree"
            )
        return Ref(self.emit("add", [first, second], self.shapes[first]), a.rank)
    x, other = (a, b) if isinstance(a, Ref) else (cast(Ref, b), a)
    row, constant = _per_channel(self, x, other)
    return self.affine(x, lambda v: v + constant, beta=row)


def _sub(self: Lowering, call: Call) -> Ref:
    a, b = call.get(0, "input"), call.get(1, "other")
    if call.get(2, "alpha", 1) != 1 or (isinstance(a, Ref) and isinstance(b, Ref)):
        raise self.refuse("the engine subtracts constants only")
    x, other = (a, b) if isinstance(a, Ref) else (cast(Ref, b), a)
    row, constant = _per_channel(self, x, other)
    if isinstance(a, Ref):
        return self.affine(x, lambda v: v - constant, beta=-row)
    return self.affine(x, lambda v: constant - v, np.full_like(row, -1), row)


def _mul(self: Lowering, call: Call) -> Ref:
    a, b = call.get(0, "input"), call.get(1, "other")
    if isinstance(a, Ref) and isinstance(b, Ref):
        first, second = self.shapes[self.plain(a)], self.shapes[self.plain(b)]
        if second == (first[0], 1, 1) and a.rank == b.rank:
            return self.gated(a, b)
        if first == (second[0], 1, 1) and a.rank == b.rank:
            return self.gated(b, a)
        raise self.refuse(
            f"multiplying {first} with {second}; the engine has one factor per channel"
        )
    x, other = (a, b) if isinstance(a, Ref) else (cast(Ref, b), a)
    row, constant = _per_channel(self, x, other)
    return self.affine(x, lambda v: v * constant, alpha=row)


def _div(self: Lowering, call: Call) -> Ref:
    a, b = call.get(0, "input"), call.get(1, "other")
    if not isinstance(a, Ref) or isinstance(b, Ref) or "rounding_mode" in call.kwargs:
        raise self.refuse("the engine divides by constants only")
    row, constant = _per_channel(self, a, b)
    return self.affine(a, lambda v: v / constant, alpha=np.float32(1) / row)


def _neg(self: Lowering, call: Call) -> Ref:
    x = call.x()
    return self.affine(x, torch.neg, np.full(self.shapes[x.value][0], -1, np.float32))


_Method: TypeAlias = "Callable[[Lowering, Call], Entry]"

METHODS: dict[str, _Method] = {
    "relu": _simple("relu", F.relu),
    "sigmoid": _simple("sigmoid", torch.sigmoid),
    "tanh": _simple("tanh", torch.tanh),
    "silu": _simple("silu", F.silu),
    "hardswish": _simple("hswish", F.hardswish),
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "hardsigmoid": _hardsigmoid,
    "conv2d": _conv2d,
    "linear": _linear,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive("avg"),
    "adaptive_max_pool2d": _adaptive("max"),
    "mean": _mean,
    "softmax": _softmax,
    "interpolate": _interpolate,
    "dropout": _identity,
    "contiguous": _identity,
    "detach": _identity,
    "float": _identity,
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "transpose": _transpose,
    "permute": _transpose,
    "cat": _cat,
    "split": _split,
    "chunk": _split,
    "getitem": _getitem,
    "pad": _pad,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
}

FUNCTIONS: dict[object, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.relu6: "relu6",
    F.hardtanh: "hardtanh",
    torch.clamp: "clamp",
    torch.clip: "clamp",
    F.leaky_relu: "leaky_relu",
    F.prelu: "prelu",
    torch.prelu: "prelu",
    F.conv2d: "conv2d",
    F.linear: "linear",
    F.max_pool2d: "max_pool2d",
    F.avg_pool2d: "avg_pool2d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    F.adaptive_max_pool2d: "adaptive_max_pool2d",
    torch.mean: "mean",
    F.softmax: "softmax",
    torch.softmax: "softmax",
    F.interpolate: "interpolate",
    F.pad: "pad",
    F.dropout: "dropout",
    torch.flatten: "flatten",
    torch.reshape: "reshape",
    torch.squeeze: "squeeze",
    torch.unsqueeze: "unsqueeze",
    torch.transpose: "transpose",
    torch.permute: "permute",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.split: "split",
    torch.chunk: "chunk",
    torch.add: "add",
    torch.sub: "sub",
    torch.mul: "mul",
    torch.div: "div",
    torch.neg: "neg",
    operator.getitem: "getitem",
    operator.add: "add",
    operator.iadd: "add",
    operator.sub: "sub",
    operator.isub: "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    operator.truediv: "div",
    operator.neg: "neg",
}
