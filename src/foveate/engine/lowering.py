"""Recorded calls of a model, one by one, to operations of the engine.

A :class:`Lowering` walks over what ``torch.fx`` recorded and keeps, for every result, which value
``(C, H, W)`` it is. Which call becomes what stands in two tables of
:mod:`foveate.engine.calls`, ``LAYERS`` and ``METHODS``; this file has what they are made of. A
quantised convolution, for instance, becomes

    x -> quant -> conv -> affine (alpha) [-> gate] [-> affine (bias)]

An element-wise operation also keeps the torch function it stands for: thresholds are searched
with it. The shape of every result is compared with the one that torch gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.engine import calls
from foveate.engine.graph import Attribute
from foveate.engine.operations import (
    Array,
    Direction,
    Entry,
    Operation,
    Pair,
    Ref,
    Shape,
    Trace,
    pair_of,
    row_of,
)
from foveate.engine.validation import pooled_length
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat
from foveate.quantization.layers import ChannelGate, QuantConv2d, QuantLayer, QuantLinear
from foveate.quantization.quantizers import QuantAct, SoftSign, UniformBipolar

__all__ = ["Lowering"]

SHAPE_QUERIES = frozenset(["size", "dim", "numel", "ndimension", "stride", "nelement"])
SHAPE_ATTRIBUTES = frozenset(["shape", "ndim", "device", "dtype", "is_cuda"])


class Lowering:
    """Walks over the recorded calls; `entries` maps each to the value its result is.

    `results`, `memory` and `changed` are those of a forward pass:
    :class:`foveate.engine.trace._Run`.
    """

    def __init__(
        self,
        module: torch.fx.GraphModule,
        results: dict[torch.fx.Node, object],
        memory: dict[torch.fx.Node, tuple[object, ...]],
        changed: dict[torch.fx.Node, list[torch.fx.Node]],
    ) -> None:
        self.module, self.results = module, results
        self.memory, self.changed = memory, changed
        self.stale: set[torch.fx.Node] = set()  # changed through a view of theirs
        self.operations: list[Operation] = []
        self.shapes: dict[int, Shape] = {}
        self.entries: dict[torch.fx.Node, Entry] = {}
        self.name = ""
        self.result: tuple[int, ...] = ()  # shape that the present call returns

    def lower(self) -> Trace:
        """Lower every call; see :class:`foveate.engine.operations.Trace`."""
        inputs: list[tuple[int, int]] = []
        outputs: list[Ref] = []
        single = True
        for node in self.module.graph.nodes:
            self.name = self.path(node)
            if node.op == "placeholder":
                result = self.results[node]
                if isinstance(result, Tensor):
                    inputs.append((self.value(self.shape_of(result)), result.ndim))
                    self.entries[node] = Ref(*inputs[-1])
            elif node.op == "output":
                said = node.args[0]
                single = isinstance(said, torch.fx.Node)
                said = [said] if single else self.sequence(said)
                outputs.extend(self.ref(one) for one in said)
            elif self.static(node):
                continue
            else:
                self.call(node)
        if len(inputs) != 1:
            raise FoveateError(f"a model to compile takes one tensor, this one {len(inputs)}")
        return Trace(
            self.operations,
            self.shapes,
            inputs[0][0],
            [self.plain(ref) for ref in outputs],
            inputs[0][1],
            [ref.rank for ref in outputs],
            single,
        )

    # -- bookkeeping

    def path(self, node: torch.fx.Node) -> str:
        """Path of the module that made a call."""
        if node.op == "call_module":
            return str(node.target)
        stack = node.meta.get("nn_module_stack") or {}
        inner = next(reversed(stack), "")
        function = node.target if isinstance(node.target, str) else node.target.__name__
        return ".".join(part for part in (inner, function) if part)

    def refuse(self, what: str) -> FoveateError:
        """Error that names the module path."""
        return FoveateError(f"cannot compile {self.name!r}: {what}")

    def value(self, shape: Shape) -> int:
        """Id of a new value."""
        number = len(self.shapes)
        self.shapes[number] = shape
        return number

    def shape_of(self, tensor: Tensor) -> Shape:
        """Shape of one image of a tensor `(N, C, H, W)` or `(N, C)`."""
        if tensor.ndim not in (2, 4):
            raise self.refuse(
                f"it makes a tensor of shape {tuple(tensor.shape)}; the engine has images "
                "(N, C, H, W) and vectors (N, C)"
            )
        channels, height, width = (*tensor.shape[1:], 1, 1)[:3]
        return channels, height, width

    def static(self, node: torch.fx.Node) -> bool:
        """Whether the result does not depend on the numbers of the input."""
        if node.op == "get_attr":
            return True
        if not any(source in self.entries for source in node.all_input_nodes):
            return True
        if node.op == "call_method" and node.target in SHAPE_QUERIES:
            return True
        return (
            node.op == "call_function"
            and node.target is getattr
            and node.args[1] in SHAPE_ATTRIBUTES
        )

    def resolved(self, said: object) -> object:
        """An argument: a `Ref`, or the concrete thing it was in the forward pass."""
        if isinstance(said, torch.fx.Node):
            if said in self.stale:
                raise self.refuse(
                    "it reads a tensor of which a part or another view was changed in place; "
                    "write that change without inplace, +=, or a trailing underscore"
                )
            return self.entries.get(said, self.results[said])
        if isinstance(said, (list, tuple)):
            parts = [self.resolved(part) for part in said]
            return tuple(parts) if isinstance(said, tuple) else parts
        if isinstance(said, slice):
            return slice(self.resolved(said.start), self.resolved(said.stop), said.step)
        return said

    def sequence(self, said: object) -> list[object]:
        """Elements of a list or tuple."""
        if not isinstance(said, (list, tuple)):
            raise self.refuse("a model to compile returns a tensor or a sequence of tensors")
        return list(said)

    def ref(self, said: object) -> Ref:
        """Value that an output of the model is."""
        found = self.resolved(said)
        if not isinstance(found, Ref):
            raise self.refuse("an output does not depend on the input")
        return found

    def plain(self, ref: object) -> int:
        """The value of a tensor that is in its own shape."""
        if not isinstance(ref, Ref) or ref.split or ref.flat or ref.rank not in (2, 4):
            raise self.refuse("it works on a tensor that is neither (N, C, H, W) nor (N, C)")
        return ref.value

    def emit(
        self,
        kind: str,
        inputs: list[int],
        shape: Shape,
        *,
        attrs: dict[str, Attribute] | None = None,
        arrays: dict[str, Array] | None = None,
        apply: Callable[[Tensor], Tensor] | None = None,
        rank: int = 4,
        direction: Direction = "other",
        quantizer: QuantAct | None = None,
        weight_format: CodeFormat | None = None,
    ) -> int:
        """Append an operation and return the value it makes."""
        output = self.value(shape)
        self.operations.append(
            Operation(
                kind,
                self.name,
                inputs,
                output,
                attrs or {},
                arrays or {},
                apply,
                rank,
                direction,
                quantizer,
                weight_format,
            )
        )
        return output

    def pointwise(
        self,
        kind: str,
        ref: Ref,
        apply: Callable[[Tensor], Tensor],
        *,
        direction: Direction = "rising",
        attrs: dict[str, Attribute] | None = None,
        arrays: dict[str, Array] | None = None,
    ) -> Ref:
        """Append an element-wise operation of one input."""
        value = self.plain(ref)
        out = self.emit(
            kind,
            [value],
            self.shapes[value],
            attrs=attrs,
            arrays=arrays,
            apply=apply,
            rank=ref.rank,
            direction=direction,
        )
        return Ref(out, ref.rank)

    def affine(
        self,
        ref: Ref,
        apply: Callable[[Tensor], Tensor],
        alpha: NDArray[np.float32] | None = None,
        beta: NDArray[np.float32] | None = None,
    ) -> Ref:
        """Append ``y * alpha + beta`` per channel."""
        arrays: dict[str, Array] = {}
        if alpha is not None:
            arrays["alpha"] = alpha
        if beta is not None:
            arrays["beta"] = beta
        for role, row in arrays.items():
            if not np.isfinite(row).all():
                raise self.refuse(f"its {role} is not finite")
        return self.pointwise(
            "affine",
            ref,
            apply,
            direction="rising" if alpha is None or bool((alpha >= 0).all()) else "monotone",
            arrays=arrays,
        )

    # -- calls

    def call(self, node: torch.fx.Node) -> None:
        """Lower one call."""
        returned = self.results[node]
        self.result = tuple(returned.shape) if isinstance(returned, Tensor) else ()
        args = [self.resolved(part) for part in node.args]
        kwargs = {key: self.resolved(part) for key, part in node.kwargs.items()}
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            if kwargs or len(args) != 1 or not isinstance(args[0], Ref):
                raise self.refuse(f"{type(module).__name__} is called with more than one tensor")
            entry: Entry = self.layer(module, args[0])
        else:
            word = node.target if isinstance(node.target, str) else calls.FUNCTIONS.get(node.target)
            method = calls.METHODS.get(word.removesuffix("_")) if word else None
            if method is None:
                raise self.refuse(f"the engine has no {node.target}")
            entry = method(self, calls.Call(self, node, args, kwargs))
        for source in self.changed[node]:
            self.change(source, entry)
        self.entries[node] = entry
        self.check(node, entry)

    def change(self, source: torch.fx.Node, entry: Entry) -> None:
        """Note that a call changed `source` in place: later readers see `entry`."""
        before, place = self.entries.get(source), self.memory[source]
        for node, known in list(self.entries.items()):
            there = self.memory[node]
            if there[: len(place)] != place[: len(there)]:
                continue
            same = isinstance(known, Ref) and isinstance(before, Ref) and isinstance(entry, Ref)
            if same and cast(Ref, known).value == cast(Ref, before).value:
                self.entries[node] = replace(cast(Ref, known), value=cast(Ref, entry).value)
            else:
                self.stale.add(node)

    def check(self, node: torch.fx.Node, entry: Entry) -> None:
        """Compare the shape that was lowered to with the one the forward pass gave."""
        result = self.results[node]
        if isinstance(entry, tuple) or not isinstance(result, Tensor):
            return
        if entry.split or entry.flat:
            return
        if (self.shapes[entry.value] + (1, 1))[: entry.rank - 1] != tuple(result.shape[1:]):
            raise self.refuse(
                f"lowered to {self.shapes[entry.value]} where torch makes {tuple(result.shape)}"
            )

    # -- layers

    def layer(self, module: nn.Module, x: Ref) -> Ref:
        """Lower the call of a module."""
        if isinstance(module, QuantLayer):
            return self.quantised(module, x)
        if isinstance(module, QuantAct):
            return self.activation(module, x)
        if isinstance(module, ChannelGate):
            return self.channel_gate(module, x)
        # Of this very class: a subclass may compute something else.
        method = calls.LAYERS.get(type(module))
        if method is not None:
            return method(self, module, x)
        if isinstance(module, SoftSign):
            raise self.refuse("the soft (tanh) stage of a sign cannot run on codes")
        raise self.refuse(f"the engine has no {type(module).__name__}")

    def padding(self, module: nn.Conv2d) -> Pair:
        """Padding of a convolution in numbers."""
        if not isinstance(module.padding, str):
            return cast(Pair, tuple(module.padding))
        left, right, top, bottom = module._reversed_padding_repeated_twice
        if left != right or top != bottom:
            raise self.refuse("padding='same' with an even kernel pads one side more")
        return top, left

    def float_linear(self, x: Ref, weight: Tensor, bias: Tensor | None) -> Ref:
        """Lower a linear layer of real weights."""
        if x.rank != 2:
            raise self.refuse("a linear layer wants vectors (N, C): flatten first")
        return self.float_conv(x, weight[:, :, None, None], bias, (1, 1), (0, 0), (1, 1), 1)

    def float_conv(
        self,
        x: Ref,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Ref:
        """Lower a convolution of real weights."""
        y = self.conv(x, stride, padding, dilation, groups, weight, row_of(weight), None, 0)
        if bias is None:
            return y
        return self.affine(y, lambda v: v + like(bias, v), beta=row_of(bias))

    def conv(
        self,
        x: Ref,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        weight: Tensor,
        array: Array,
        weight_format: CodeFormat | None,
        pad_value: int,
    ) -> Ref:
        """Append a convolution; `array` is the weight as the operation keeps it."""
        value = self.plain(x)
        _, height, width = self.shapes[value]
        kernel = (weight.shape[2], weight.shape[3])
        size = [
            (length + 2 * padding[side] - dilation[side] * (kernel[side] - 1) - 1) // stride[side]
            + 1
            for side, length in enumerate((height, width))
        ]
        attrs: dict[str, Attribute] = {
            "kernel": list(kernel),
            "stride": list(stride),
            "padding": list(padding),
            "dilation": list(dilation),
            "groups": groups,
            "pad": {0: "zero", -1: "low", 1: "high"}[pad_value],
        }
        out = self.emit(
            "conv",
            [value],
            (weight.shape[0], size[0], size[1]),
            attrs=attrs,
            arrays={"weight": array},
            weight_format=weight_format,
        )
        return Ref(out, x.rank)

    def slope(self, x: Ref, apply: Callable[[Tensor], Tensor], slope: Tensor) -> Ref:
        """Append a PReLU."""
        row = row_of(slope.expand(self.shapes[x.value][0]))
        return self.pointwise(
            "prelu",
            x,
            apply,
            direction="rising" if bool((row >= 0).all()) else "other",
            arrays={"slope": row},
        )

    def hard_sigmoid(self, x: Ref) -> Ref:
        """``clip(x + 3, 0, 6) / 6``."""
        channels = self.shapes[x.value][0]
        y = self.affine(x, lambda v: v + 3, beta=np.full(channels, 3, np.float32))
        y = self.clip(y, lambda v: v.clamp(0, 6), 0.0, 6.0)
        return self.affine(y, lambda v: v / 6, np.full(channels, 1 / 6, np.float32))

    def clip(self, x: Ref, apply: Callable[[Tensor], Tensor], low: float, high: float) -> Ref:
        """Append a clip to `low` .. `high`."""
        if not math.isfinite(low) or not math.isfinite(high):
            raise self.refuse("a clip wants finite limits")
        return self.pointwise("clip", x, apply, attrs={"low": low, "high": high})

    def pool(
        self,
        x: Ref,
        kind: str,
        kernel: object,
        stride: object,
        padding: object,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Ref:
        """Append a max or average pooling."""
        value = self.plain(x)
        channels, height, width = self.shapes[value]
        sides = pair_of(kernel)
        steps = sides if stride is None or stride == [] else pair_of(stride)
        border = pair_of(padding)
        size = [
            pooled_length(length, sides[i], steps[i], border[i], ceil_mode)
            for i, length in enumerate((height, width))
        ]
        attrs: dict[str, Attribute] = {
            "kind": kind,
            "kernel": list(sides),
            "stride": list(steps),
            "padding": list(border),
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }
        return Ref(self.emit("pool", [value], (channels, size[0], size[1]), attrs=attrs), 4)

    def adaptive_pool(self, x: Ref, kind: str, size: object) -> Ref:
        """Lower adaptive pooling, whose windows must all be of one size."""
        channels, height, width = self.shapes[self.plain(x)]
        wanted = [
            length if said is None else int(cast(int, said))
            for said, length in zip(
                size if isinstance(size, (tuple, list)) else (size, size),
                (height, width),
                strict=True,
            )
        ]
        if height % wanted[0] or width % wanted[1]:
            raise self.refuse(
                f"adaptive pooling of {height} x {width} to {wanted[0]} x {wanted[1]} has windows "
                "of several sizes; the engine wants a divisor"
            )
        if wanted == [1, 1] and kind == "avg":
            return self.global_average(x, 4)
        kernel = (height // wanted[0], width // wanted[1])
        return x if kernel == (1, 1) else self.pool(x, kind, kernel, None, 0)

    def global_average(self, x: Ref, rank: int) -> Ref:
        """Append a mean over rows and columns."""
        value = x.value
        channels, height, width = self.shapes[value]
        if (height, width) == (1, 1):
            return Ref(value, rank)
        return Ref(self.emit("global_avg", [value], (channels, 1, 1)), rank)

    def softmax(self, x: Ref, axis: object) -> Ref:
        """Append a softmax over channels."""
        if axis not in (1, 1 - x.rank):
            raise self.refuse(f"softmax over the axis {axis}; the engine has it over channels")
        value = self.plain(x)
        return Ref(self.emit("softmax", [value], self.shapes[value]), x.rank)

    def upsample(self, x: Ref, mode: str, corners: object) -> Ref:
        """Lower an interpolation by a whole factor."""
        value = self.plain(x)
        channels, height, width = self.shapes[value]
        rows, columns = self.result[2:]
        scale = rows // height
        if mode not in ("nearest", "nearest-exact", "bilinear") or corners:
            raise self.refuse(f"upsampling by {mode}, align_corners={corners}")
        if (rows, columns) != (height * scale, width * scale) or scale < 1:
            raise self.refuse(
                f"upsampling {height} x {width} to {rows} x {columns}; the engine has whole "
                "factors, the same for both sides"
            )
        attrs: dict[str, Attribute] = {
            "scale": scale,
            "mode": "bilinear" if mode == "bilinear" else "nearest",
        }
        shape = (channels, height * scale, width * scale)
        return Ref(self.emit("upsample", [value], shape, attrs=attrs), 4)

    def shuffle(self, x: Ref, groups: int) -> Ref:
        """Append a channel shuffle."""
        value = self.plain(x)
        out = self.emit("shuffle", [value], self.shapes[value], attrs={"groups": groups})
        return Ref(out, x.rank)

    def narrowed(self, x: Ref, start: int, stop: int) -> Ref:
        """Append a slice of channels."""
        value = self.plain(x)
        channels, height, width = self.shapes[value]
        if (start, stop) == (0, channels):
            return x
        attrs: dict[str, Attribute] = {"start": start, "stop": stop}
        return Ref(self.emit("slice", [value], (stop - start, height, width), attrs=attrs), x.rank)

    def reshaped(self, x: Ref, shape: tuple[int, ...]) -> Ref:
        """View, reshape, flatten, squeeze and unsqueeze, told apart by what comes out."""
        channels, height, width = self.shapes[x.value]
        rest = shape[1:]
        if x.split:
            if rest == (channels, height, width):
                ref = Ref(x.value, 4)
                return self.shuffle(ref, x.split) if x.swapped else ref
        elif rest == (channels, height, width):
            return Ref(x.value, 4)
        elif (height, width) == (1, 1) and rest[0] == channels and set(rest[1:]) <= {1}:
            return Ref(x.value, len(shape))
        elif rest == (channels * height * width,):
            return Ref(self.emit("flatten", [x.value], (math.prod(rest), 1, 1)), 2)
        elif rest == (channels, height * width):
            return Ref(x.value, 3, flat=True)
        elif len(rest) == 4 and rest[0] * rest[1] == channels and rest[2:] == (height, width):
            return Ref(x.value, 5, split=rest[0])
        raise self.refuse(f"it reshapes {(channels, height, width)} to {rest}")

    # -- quantisation

    def activation(self, act: QuantAct, x: Ref) -> Ref:
        """An activation quantiser that stands by itself: its result is real."""
        if act.stage != "codes":
            return self.real_activation(act, x)
        step = float(act.step())
        value = self.decoded(self.codes(act, x))
        row = np.full(self.shapes[value][0], step, np.float32)
        return self.affine(Ref(value, x.rank), lambda v: v * step, alpha=row)

    def real_activation(self, act: QuantAct, x: Ref) -> Ref:
        """Lower an activation quantiser in its real stage."""
        if act.stage == "soft":
            raise self.refuse(
                "the soft (tanh) stage of a sign cannot be compiled: "
                "call set_stage(model, weights=True, activations=True)"
            )
        probe = act.real(torch.tensor([-2.0, -0.5, 0.5, 2.0])).tolist()
        if probe == [-2.0, -0.5, 0.5, 2.0]:
            return x
        if probe == [0.0, 0.0, 0.5, 2.0]:
            return self.pointwise("relu", x, act.real)
        if probe == [-1.0, -0.5, 0.5, 1.0]:
            return self.clip(x, act.real, -1.0, 1.0)
        raise self.refuse(f"the real stage of {type(act).__name__}")

    def codes(self, act: QuantAct, x: Ref) -> int:
        """Append the quantiser itself."""
        if act.format.kind == "twos":
            raise self.refuse("activations are bipolar or unipolar")
        if isinstance(act, UniformBipolar) and act.range == "hrelu":
            x = self.clip(x, lambda v: v.clamp(0, 1), 0.0, 1.0)
        value = self.plain(x)
        return self.emit("quant", [value], self.shapes[value], quantizer=act, rank=x.rank)

    def decoded(self, codes: int) -> int:
        """The integers of codes, as floats."""
        return self.emit("decode", [codes], self.shapes[codes])

    def quantised(self, layer: QuantLayer, x: Ref) -> Ref:
        """Lower a quantised layer: both operands codes, one of them, or neither."""
        if isinstance(layer, nn.Conv2d):
            geometry = (
                cast(Pair, layer.stride),
                self.padding(layer),
                cast(Pair, layer.dilation),
                layer.groups,
            )
            if layer.padding_mode != "zeros":
                raise self.refuse(f"padding_mode={layer.padding_mode!r}")
        elif isinstance(layer, nn.Linear):
            geometry = ((1, 1), (0, 0), (1, 1), 1)
            if x.rank != 2:
                raise self.refuse("a linear layer wants vectors (N, C): flatten first")
        else:
            raise self.refuse(
                f"{type(layer).__name__}: the engine has no transposed convolution; "
                "upsample and convolve instead"
            )
        ordinary = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
        for name in ("forward", "_exact_form", "_sums", "_finish"):
            if getattr(type(layer), name) is not getattr(ordinary, name):
                raise self.refuse(
                    f"{type(layer).__name__} computes otherwise than {ordinary.__name__} does"
                )
        if layer.spatial_scale is not None:
            raise self.refuse("a chw scale is not one number per channel: use scale='channel'")
        act, quantizer = layer.coded_act, layer.coded_weight
        gate = None
        if layer.gate is not None:
            outer, self.name = self.name, f"{self.name}.gate"
            gate = self.channel_gate(layer.gate, x)
            self.name = outer
        if act is not None and quantizer is not None:
            folded = layer.folded()
            codes = folded.weight_codes.to(torch.uint8).contiguous()
            y = self.conv(
                Ref(self.codes(act, x), x.rank),
                *geometry,
                codes,
                codes.numpy(),
                folded.weight_format,
                layer.pad_value if any(geometry[1]) else 0,
            )
        else:
            # One operand is real: a convolution over floats, some of which are whole numbers.
            weight = layer.weight if quantizer is None else quantizer.integers(layer.weight)
            weight = weight.float() if weight.ndim == 4 else weight.float()[:, :, None, None]
            if layer.pad_value and any(geometry[1]):
                raise self.refuse("level padding of a layer with one real operand")
            if act is not None:
                x = Ref(self.decoded(self.codes(act, x)), x.rank)
            elif layer.act is not None:
                x = self.real_activation(layer.act, x)
            y = self.conv(x, *geometry, weight, row_of(weight), None, 0)
        alpha = layer.alpha()
        y = self.affine(y, lambda v: v * like(alpha, v), alpha=row_of(alpha))
        if gate is not None:
            y = self.gated(y, gate)
        bias = layer.bias
        if bias is None:
            return y
        return self.affine(y, lambda v: v + like(bias, v), beta=row_of(bias))

    def channel_gate(self, gate: ChannelGate, x: Ref) -> Ref:
        """Lower the gate of real-to-binary convolutions: ``(C, 1, 1)``."""
        y = self.global_average(x, 2)
        y = self.pointwise("relu", self.float_linear(y, gate.reduce.weight, None), F.relu)
        y = self.float_linear(y, gate.expand.weight, None)
        return Ref(self.pointwise("sigmoid", y, torch.sigmoid).value, 4)

    def gated(self, x: Ref, gate: Ref) -> Ref:
        """Append a multiplication by one factor per channel."""
        value = self.plain(x)
        out = self.emit("gate", [value, self.plain(gate)], self.shapes[value])
        return Ref(out, x.rank)


def like(row: Tensor, v: Tensor) -> Tensor:
    """A row ``(C,)`` that broadcasts against ``(L, C)`` or ``(L, C, 1, 1)``."""
    return row.reshape(-1, *[1] * (v.ndim - 2))
