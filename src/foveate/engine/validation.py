"""What an executor may rely on: a graph that passed :func:`validate` makes sense.

A model file comes from anywhere. Nothing behind this check looks again at an id, an order, a
shape, a format, an attribute or a blob; so everything is looked at here, and the first thing that
is wrong is named. The limits are those of the native engine: a graph that passes runs on both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from foveate.engine.graph import (
    Attribute,
    Blobs,
    Graph,
    Node,
    Step,
    Tensor,
    format_from_json,
    format_to_json,
    shown,
)
from foveate.engine.planes import WORD, unused_bits
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat

__all__ = ["keeps_format", "pooled_length", "validate"]

MAX_NODES = 1 << 14
MAX_STEPS = 64  # of one node
MAX_CHANNELS = 1 << 16
MAX_SIDE = 1 << 14  # height and width
MAX_ELEMENTS = 1 << 28  # of one tensor
MAX_WINDOW = 64  # kernel, stride and dilation

NODE_ATTRS: Mapping[str, tuple[str, ...]] = {
    "conv": ("kernel", "stride", "padding", "dilation", "groups", "pad"),
    "pointwise": (),
    "pool": ("kind", "kernel", "stride", "padding", "ceil_mode", "count_include_pad"),
    "global_avg": (),
    "concat": (),
    "flatten": (),
    "softmax": (),
    "upsample": ("scale", "mode"),
    "shuffle": ("groups",),
    "slice": ("start", "stop"),
}
CODE_CONV_ATTRS = ("weight_format", "path")
STEP_ATTRS: Mapping[str, tuple[str, ...]] = {
    "affine": (),
    "gate": (),
    "add": (),
    "relu": (),
    "clip": ("low", "high"),
    "prelu": (),
    "sigmoid": (),
    "hswish": (),
    "silu": (),
    "store": (),
    "quantize": ("step", "round"),
    "thresholds": (),
}
WRITING_STEPS = ("store", "quantize", "thresholds")
READING_STEPS = ("gate", "add")
STEPPED = ("conv", "pointwise")


def keeps_format(op: str, attrs: Mapping[str, Attribute]) -> bool:
    """Whether a node may pass codes through unchanged."""
    return (
        op in ("flatten", "concat", "slice", "shuffle")
        or (op == "pool" and attrs.get("kind") == "max")
        or (op == "upsample" and attrs.get("mode") == "nearest")
    )


def validate(graph: Graph, blobs: Blobs) -> None:
    """Check that a graph makes sense: ids, order, shapes, formats, attributes and blobs.

    Raises
    ------
    FoveateError
        Names the first node (and step) that does not.
    """
    if len(graph.nodes) > MAX_NODES:
        raise FoveateError(f"the graph has {len(graph.nodes)} nodes, at most {MAX_NODES} are read")
    tensors: dict[int, Tensor] = {}
    for tensor in graph.tensors:
        if tensor.id in tensors or tensor.id < 0:
            raise FoveateError(f"tensor {tensor.id} stands twice in the graph or is negative")
        channels, height, width = tensor.shape
        if min(tensor.shape) < 1 or channels > MAX_CHANNELS or max(height, width) > MAX_SIDE:
            raise FoveateError(
                f"tensor {tensor.id} has the shape {tensor.shape}; the engine takes 1 to "
                f"{MAX_CHANNELS} channels and 1 to {MAX_SIDE} rows and columns"
            )
        if math.prod(tensor.shape) > MAX_ELEMENTS:
            raise FoveateError(
                f"tensor {tensor.id} of shape {tensor.shape} has more than {MAX_ELEMENTS} values"
            )
        if tensor.format is not None and tensor.format.kind == "twos":
            raise FoveateError(f"tensor {tensor.id}: two's complement is a format of weights only")
        tensors[tensor.id] = tensor
    if len(graph.inputs) != 1:
        raise FoveateError(f"a graph has exactly one input, got {graph.inputs}")
    if not graph.outputs:
        raise FoveateError("the graph has no output")
    ready: set[int] = set()
    for number in graph.inputs:
        if number not in tensors or tensors[number].format is not None:
            raise FoveateError(f"input {number} is no float32 tensor of the graph")
        ready.add(number)
    for place, node in enumerate(graph.nodes):
        where = f"node {place} ({node.op} {node.name!r})"
        _Check(node, where, tensors, ready, blobs).run()
        ready.update(node.outputs)
    for number in graph.outputs:
        if number not in ready or tensors[number].format is not None:
            raise FoveateError(f"output {number} is no float32 tensor that a node makes")


class _Check:
    """Validation of one node."""

    def __init__(
        self, node: Node, where: str, tensors: dict[int, Tensor], ready: set[int], blobs: Blobs
    ) -> None:
        self.node, self.where, self.tensors = node, where, tensors
        self.ready, self.blobs = ready, blobs

    def fail(self, what: str) -> FoveateError:
        return FoveateError(f"{self.where}: {what}")

    def run(self) -> None:
        node = self.node
        if node.op not in NODE_ATTRS:
            raise self.fail(f"unknown operation; the known ones are {', '.join(NODE_ATTRS)}")
        inputs = [self.available(number) for number in node.inputs]
        if node.op == "concat":
            if not inputs:
                raise self.fail("concat wants at least one input")
        elif len(inputs) != 1:
            raise self.fail(f"wants one input, got {len(inputs)}")
        if not node.outputs or len(set(node.outputs)) != len(node.outputs):
            raise self.fail(f"wants outputs, each once, got {node.outputs}")
        for number in node.outputs:
            if number not in self.tensors:
                raise self.fail(f"output {number} is no tensor of the graph")
            if number in self.ready:
                raise self.fail(f"output {number} is made twice")
        wanted = set(NODE_ATTRS[node.op])
        source = inputs[0].format
        if node.op == "conv" and source is not None:
            wanted |= set(CODE_CONV_ATTRS)
        if node.op == "global_avg" and source is not None:
            wanted.add("scale")
        if set(node.attrs) != wanted:
            raise self.fail(
                f"wants the attributes {sorted(wanted) or 'none'}, got {sorted(node.attrs)}"
            )
        self.only_blobs(node.blobs, ("weight",) if node.op == "conv" else ())
        takes_codes = node.op in (*STEPPED, "global_avg") or keeps_format(node.op, node.attrs)
        if source is not None and not takes_codes:
            raise self.fail("wants float32, its input is codes")
        if any(tensor.format != source for tensor in inputs):
            raise self.fail("its inputs have different formats")
        shape = self.shape(inputs)
        if node.op in STEPPED:
            self.steps(shape, integer=source is not None)
            return
        if node.steps or len(node.outputs) != 1:
            raise self.fail("has one output and no steps")
        result = None if node.op == "global_avg" else source
        self.result(node.outputs[0], shape, result)

    def available(self, number: int) -> Tensor:
        if number not in self.tensors or number not in self.ready:
            raise self.fail(f"input {number} is not made by an earlier node")
        return self.tensors[number]

    def result(
        self, number: int, shape: tuple[int, int, int], code_format: CodeFormat | None
    ) -> None:
        tensor = self.tensors[number]
        if tensor.shape != shape:
            raise self.fail(f"makes the shape {shape}, output {number} has {tensor.shape}")
        if tensor.format != code_format:
            raise self.fail(
                f"makes {format_to_json(code_format)}, output {number} is "
                f"{format_to_json(tensor.format)}"
            )

    # -- attributes

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.node.attrs[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(f"{name} is a whole number in {low}..{high}, got {shown(value)}")
        return value

    def pair(self, name: str, low: int, high: int = MAX_WINDOW) -> tuple[int, int]:
        value = self.node.attrs[name]
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(low <= side <= high for side in value)
        ):
            raise self.fail(f"{name} is a pair in {low}..{high}, got {shown(value)}")
        return value[0], value[1]

    def choice(self, name: str, *options: str) -> str:
        value = self.node.attrs[name]
        if value not in options:
            raise self.fail(f"{name} is one of {', '.join(options)}, got {shown(value)}")
        return str(value)

    def truth(self, name: str) -> bool:
        value = self.node.attrs[name]
        if not isinstance(value, bool):
            raise self.fail(f"{name} is true or false, got {shown(value)}")
        return value

    def only_blobs(self, blobs: dict[str, int], roles: tuple[str, ...]) -> None:
        if set(blobs) != set(roles):
            raise self.fail(f"wants the blobs {list(roles) or 'none'}, got {sorted(blobs)}")
        self.in_range(blobs)

    def in_range(self, blobs: dict[str, int]) -> None:
        for role, index in blobs.items():
            if not 0 < index < len(self.blobs):
                raise self.fail(f"blob {role!r} has the index {index} of {len(self.blobs)}")

    def blob(
        self, index: int, role: str, dtype: str, shape: tuple[int, ...]
    ) -> NDArray[np.generic]:
        array = self.blobs[index]
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise self.fail(
                f"blob {role!r} is {dtype} of shape {shape}, got {array.dtype} of {array.shape}"
            )
        return array

    # -- shapes

    def shape(self, inputs: list[Tensor]) -> tuple[int, int, int]:
        op, node = self.node.op, self.node
        channels, height, width = inputs[0].shape
        if op == "conv":
            return self.conv(inputs[0])
        if op == "pool":
            return self.pool(inputs[0].shape)
        if op == "global_avg":
            if inputs[0].format is not None:
                scale = node.attrs["scale"]
                if not isinstance(scale, float) or not 0 < scale < 1e30:
                    raise self.fail(f"scale is a positive number, got {shown(scale)}")
            return channels, 1, 1
        if op == "concat":
            if any(tensor.shape[1:] != (height, width) for tensor in inputs):
                raise self.fail(f"inputs differ in size: {[tensor.shape for tensor in inputs]}")
            return sum(tensor.shape[0] for tensor in inputs), height, width
        if op == "flatten":
            return channels * height * width, 1, 1
        if op == "upsample":
            scale = self.integer("scale", 1, 64)
            self.choice("mode", "nearest", "bilinear")
            return channels, height * scale, width * scale
        if op == "shuffle":
            groups = self.integer("groups", 1, channels)
            if channels % groups:
                raise self.fail(f"{channels} channels do not divide into {groups} groups")
        if op == "slice":
            stop = self.integer("stop", 1, channels)
            return stop - self.integer("start", 0, stop - 1), height, width
        return channels, height, width

    def conv(self, source: Tensor) -> tuple[int, int, int]:
        node = self.node
        channels, height, width = source.shape
        kernel, stride = self.pair("kernel", 1), self.pair("stride", 1)
        padding, dilation = self.pair("padding", 0, 1 << 12), self.pair("dilation", 1)
        groups = self.integer("groups", 1, channels)
        # The output's channels are what the weight has.
        weight = self.blobs[node.blobs["weight"]]
        out_channels = weight.shape[0] if weight.ndim else 0
        if not out_channels or channels % groups or out_channels % groups:
            raise self.fail(
                f"{channels} input channels and a weight of shape {weight.shape} do not divide "
                f"into {groups} groups"
            )
        shape = (out_channels, channels // groups, *kernel)
        if source.format is None:
            self.choice("pad", "zero")
            if not np.isfinite(self.blob(node.blobs["weight"], "weight", "float32", shape)).all():
                raise self.fail("a weight is not finite")
        else:
            self.choice("pad", "zero", "low", "high")
            self.choice("path", "auto", "bits", "int8")
            self.codes(weight, source.format, shape)
        size = []
        for side in range(2):
            reach = dilation[side] * (kernel[side] - 1) + 1
            padded = (height, width)[side] + 2 * padding[side]
            if padded < reach:
                raise self.fail(f"the kernel reaches over {reach} pixels, the input has {padded}")
            size.append((padded - reach) // stride[side] + 1)
        return out_channels, size[0], size[1]

    def codes(
        self, words: NDArray[np.generic], source: CodeFormat, shape: tuple[int, int, int, int]
    ) -> None:
        """Check packed weight codes of the logical `shape`, multiplied with codes of `source`."""
        code_format = format_from_json(self.node.attrs["weight_format"], self.where)
        if code_format is None:
            raise self.fail("codes are convolved with codes, weight_format is f32")
        packed = (shape[0], *shape[2:], -(-shape[1] // WORD))
        planes = words.shape[1] if words.ndim == 5 else 0
        if (
            words.dtype != np.dtype("<u8")
            or (words.shape[0], *words.shape[2:]) != packed
            or not code_format.bits <= planes <= 8
        ):
            raise self.fail(
                f"packed codes of {code_format.bits} bits and shape {shape} are uint64 of shape "
                f"({shape[0]}, {code_format.bits} or more, {packed[1]}, {packed[2]}, {packed[3]}), "
                f"got {words.dtype} {words.shape}"
            )
        if unused_bits(cast("NDArray[np.uint64]", words), shape[1]):
            raise self.fail("packed codes have bits beyond the last channel")
        # All terms of the popcount identities stay inside 32 bits, whatever the codes.
        terms = math.prod(shape[1:])
        if source.top * code_format.top * terms >= 1 << 31:
            raise self.fail(
                f"{terms} products of {source.bits} x {code_format.bits} bits may exceed 32 bits; "
                "use fewer bits or groups"
            )

    def pool(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        self.choice("kind", "max", "avg")
        kernel, stride = self.pair("kernel", 1, 255), self.pair("stride", 1, 255)
        padding = self.pair("padding", 0, 255)
        ceil_mode = self.truth("ceil_mode")
        self.truth("count_include_pad")
        size = []
        for side in range(2):
            if 2 * padding[side] > kernel[side]:
                raise self.fail(f"padding {padding} exceeds half of the kernel {kernel}")
            length = pooled_length(
                shape[1 + side], kernel[side], stride[side], padding[side], ceil_mode
            )
            if length < 1:
                raise self.fail(f"the kernel {kernel} does not fit into {shape}")
            size.append(length)
        return shape[0], size[0], size[1]

    # -- steps

    def steps(self, shape: tuple[int, int, int], integer: bool) -> None:
        """Check the programme on the running value, which is the integer S while `integer`."""
        if len(self.node.steps) > MAX_STEPS:
            raise self.fail(f"has {len(self.node.steps)} steps, at most {MAX_STEPS} are run")
        written: list[int] = []
        for place, step in enumerate(self.node.steps):
            here = f"{self.where}, step {place} ({step.op})"
            check = _Check(self.node, here, self.tensors, self.ready, self.blobs)
            if step.op not in STEP_ATTRS:
                raise check.fail(f"unknown step; the known ones are {', '.join(STEP_ATTRS)}")
            if set(step.attrs) != set(STEP_ATTRS[step.op]):
                raise check.fail(
                    f"wants the attributes {list(STEP_ATTRS[step.op]) or 'none'}, "
                    f"got {sorted(step.attrs)}"
                )
            if (step.input is None) == (step.op in READING_STEPS):
                raise check.fail("an input belongs to gate and add, and to them only")
            if (step.output is None) == (step.op in WRITING_STEPS):
                raise check.fail("an output belongs to store, quantize and thresholds only")
            if step.output is not None:
                if step.output not in self.node.outputs or step.output in written:
                    raise check.fail(f"output {step.output} is not the node's or is written twice")
                written.append(step.output)
            check.step(step, shape, integer)
            integer = integer and step.op == "thresholds"
        if set(written) != set(self.node.outputs):
            raise self.fail(f"its steps write {written}, its outputs are {self.node.outputs}")

    def step(self, step: Step, shape: tuple[int, int, int], integer: bool) -> None:
        channels = shape[0]
        roles = {"prelu": ("slope",), "thresholds": ("table", "flip")}.get(step.op, ())
        if step.op == "affine":
            roles = tuple(role for role in ("alpha", "beta") if role in step.blobs)
            if not roles:
                raise self.fail("wants the blob alpha, beta or both")
        self.only_blobs(step.blobs, roles)
        if step.op in ("affine", "prelu"):
            for role, index in step.blobs.items():
                if not np.isfinite(self.blob(index, role, "float32", (channels,))).all():
                    raise self.fail(f"blob {role!r} is not finite")
        if step.op in READING_STEPS and step.input is not None:
            source = self.available(step.input)
            wanted = (channels, 1, 1) if step.op == "gate" else shape
            if source.format is not None or source.shape != wanted:
                raise self.fail(
                    f"wants a float32 input of shape {wanted}, input {step.input} is "
                    f"{format_to_json(source.format)} of {source.shape}"
                )
        if step.op == "clip":
            low, high = step.attrs["low"], step.attrs["high"]
            if not (_is_number(low) and _is_number(high) and low <= high):
                raise self.fail(f"low and high are numbers in order, got {low!r} and {high!r}")
        if step.output is None:
            return
        target = self.tensors[step.output].format
        if step.op == "store":
            self.result(step.output, shape, None)
            return
        if target is None:
            raise self.fail(f"writes codes, output {step.output} is float32")
        self.result(step.output, shape, target)
        if step.op == "quantize":
            size, rounding = step.attrs["step"], step.attrs["round"]
            if not (_is_number(size) and 1e-30 < size < 1e30):
                raise self.fail(f"step is a positive number, got {shown(size)}")
            if rounding not in ("half_up", "half_even", "floor"):
                raise self.fail(f"round is half_up, half_even or floor, got {shown(rounding)}")
            return
        levels = (1 << target.bits) - 1
        dtype = "int32" if integer else "float32"
        table = self.blob(step.blobs["table"], "table", dtype, (levels, channels))
        flip = self.blob(step.blobs["flip"], "flip", "uint8", (channels,))
        wide = table.astype(np.float64)  # holds both sorts of thresholds exactly
        if np.isnan(wide).any() or not (wide[:-1] <= wide[1:]).all():
            raise self.fail("thresholds ascend from level to level")
        if flip.astype(np.int64).max() > 1:
            raise self.fail("flip is 0 or 1")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pooled_length(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Outputs of a pooling window along one axis; every window begins inside or before the image.

    With `ceil_mode` a last window that would begin in the padding after the image is left out.
    """
    reach = length + 2 * padding - kernel
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    if (count - 1) * stride >= length + padding:
        count -= 1
    return count
