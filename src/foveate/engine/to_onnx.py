"""A compiled network as an ONNX model of standard operators: the portable fallback.

Any ONNX runtime computes the same codes from it; none of them computes on bits. The graph is the
one of :func:`foveate.engine.compile`, node by node. Codes are written as floats that hold their
signed integers s, so a convolution over codes is a ``Conv`` of whole numbers: exact, whatever the
order of its sum, up to 2^24. Thresholds are comparisons and a sum::

    u = sum_j [ v * sign >= T_j ]        s = 2u - (2^M - 1)  or  u

Batches are free. Needs the package ``onnx`` (``pip install 'foveate[onnx]'``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.engine.compile import compile
from foveate.engine.graph import Node, Step, format_from_json
from foveate.engine.packed_model import PackedModel
from foveate.engine.planes import unpack_codes
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.quantization.codes import CodeFormat

__all__ = ["export_onnx"]

OPSET = 17
IR_VERSION = 8
EXACT = 1 << 24


def export_onnx(model: nn.Module, example: Tensor, path: str | Path) -> None:
    """Write a network as ONNX, with one input ``input`` and outputs ``output0`` and so on.

    Parameters
    ----------
    model, example
        As for :func:`foveate.engine.compile`.
    path
        Where to; whole or not at all.

    Raises
    ------
    FoveateError
        The network cannot be compiled, ``onnx`` is not installed, or the file cannot be written.
    """
    try:
        onnx = importlib.import_module("onnx")
        importlib.import_module("onnx.helper")
    except ImportError as error:
        raise FoveateError(
            "exporting to ONNX needs the package onnx: pip install 'foveate[onnx]'"
        ) from error
    content = _Export(onnx, compile(model, example)).content()
    try:
        with write_whole(Path(path)) as whole:
            whole.write_bytes(content)
    except OSError as error:
        raise FoveateError(f"cannot write {path}: {error.strerror or error}") from error


class _Export:
    """Writes the running mode of a packed model; values are named by their tensor ids."""

    def __init__(self, onnx: ModuleType, packed: PackedModel) -> None:
        self.onnx, self.graph, self.blobs = onnx, packed.graph, packed.blobs
        self.tensors = {tensor.id: tensor for tensor in self.graph.tensors}
        self.nodes: list[object] = []
        self.constants: list[object] = []
        self.count = 0

    def content(self) -> bytes:
        """Bytes of the file."""
        helper, graph = self.onnx.helper, self.graph
        kind = self.onnx.TensorProto.FLOAT
        source = self.tensors[graph.inputs[0]]
        rank = cast(int, graph.meta["input_rank"])
        shape: list[str | int] = ["batch", *source.shape[: rank - 1]]
        inputs = [helper.make_tensor_value_info("input", kind, shape)]
        self.reshape("input", [0, *source.shape], self.name(source.id))
        for node in graph.nodes:
            self.node(node)
        outputs = []
        ranks = cast("list[int]", graph.meta["output_ranks"])
        for place, (number, rank) in enumerate(zip(graph.outputs, ranks, strict=True)):
            sides = list(self.tensors[number].shape[: rank - 1])
            self.reshape(self.name(number), [0, *sides], f"output{place}")
            outputs.append(helper.make_tensor_value_info(f"output{place}", kind, ["batch", *sides]))
        made = helper.make_graph(self.nodes, "foveate", inputs, outputs, self.constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="foveate"
        )
        return cast(bytes, model.SerializeToString())

    # -- pieces

    def name(self, number: int) -> str:
        return f"t{number}"

    def fresh(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def constant(self, array: NDArray[np.float32] | NDArray[np.int64]) -> str:
        name = self.fresh()
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def scalar(self, value: float | np.float32) -> str:
        return self.constant(np.array(value, np.float32))

    def op(
        self,
        kind: str,
        *inputs: str,
        output: str | None = None,
        **attributes: int | str | list[int],
    ) -> str:
        output = self.fresh() if output is None else output
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def reshape(self, x: str, shape: list[int], output: str | None = None) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)), output=output)

    def row(self, array: NDArray[np.generic]) -> str:
        """Numbers per channel, in a shape that broadcasts over ``(N, C, H, W)``."""
        return self.constant(array.astype(np.float32)[:, None, None])

    # -- nodes

    def node(self, node: Node) -> None:
        x = self.name(node.inputs[0])
        source = self.tensors[node.inputs[0]]
        if node.op == "conv":
            self.steps(node.steps, self.conv(node, x, source.format))
            return
        if node.op == "pointwise":
            self.steps(node.steps, x)
            return
        output = self.name(node.outputs[0])
        target = self.tensors[node.outputs[0]]
        channels, height, width = source.shape
        if node.op == "pool":
            self.pool(node, x, output)
        elif node.op == "global_avg":
            if source.format is None:
                self.op("GlobalAveragePool", x, output=output)
            else:
                scale = np.float32(cast(float, node.attrs["scale"]))
                axes = self.constant(np.array([2, 3], np.int64))
                self.op("Mul", self.op("ReduceSum", x, axes), self.scalar(scale), output=output)
        elif node.op == "concat":
            self.op("Concat", *map(self.name, node.inputs), output=output, axis=1)
        elif node.op == "flatten":
            self.reshape(x, [0, *target.shape], output)
        elif node.op == "softmax":
            self.op("Softmax", x, output=output, axis=1)
        elif node.op == "upsample":
            self.upsample(node, x, output)
        elif node.op == "shuffle":
            groups = cast(int, node.attrs["groups"])
            split = self.reshape(x, [0, groups, channels // groups, height * width])
            swapped = self.op("Transpose", split, perm=[0, 2, 1, 3])
            self.reshape(swapped, [0, channels, height, width], output)
        else:
            ends = [
                self.constant(np.array([node.attrs[end]], np.int64)) for end in ("start", "stop")
            ]
            self.op("Slice", x, *ends, self.constant(np.array([1], np.int64)), output=output)

    def conv(self, node: Node, x: str, source: CodeFormat | None) -> str:
        padding = cast("list[int]", node.attrs["padding"])
        weight = self.blobs[node.blobs["weight"]]
        pads = [*padding, *padding]
        if source is not None:
            weight_format = cast(
                CodeFormat, format_from_json(node.attrs["weight_format"], node.name)
            )
            depth = self.tensors[node.inputs[0]].shape[0] // cast(int, node.attrs["groups"])
            words = cast("NDArray[np.uint64]", weight)
            codes = unpack_codes(words, depth, weight_format.bits).astype(np.int64)
            integers = weight_format.integers(codes)
            largest = max(-source.low, source.high) * int(np.abs(integers).sum((1, 2, 3)).max())
            if largest >= EXACT:
                raise FoveateError(
                    f"cannot export {node.name!r}: its sums reach {largest}, which float32 does "
                    "not hold exactly; use fewer bits or channels"
                )
            weight = integers
            if node.attrs["pad"] != "zero" and any(pads):
                fill = source.low if node.attrs["pad"] == "low" else source.high
                widths = np.array([0, 0, *padding, 0, 0, *padding], np.int64)
                x = self.op("Pad", x, self.constant(widths), self.scalar(fill), mode="constant")
                pads = [0, 0, 0, 0]
        return self.op(
            "Conv",
            x,
            self.constant(weight.astype(np.float32)),
            kernel_shape=cast("list[int]", node.attrs["kernel"]),
            strides=cast("list[int]", node.attrs["stride"]),
            dilations=cast("list[int]", node.attrs["dilation"]),
            group=cast(int, node.attrs["groups"]),
            pads=pads,
        )

    def pool(self, node: Node, x: str, output: str) -> None:
        kernel, stride, padding = (
            cast("list[int]", node.attrs[name]) for name in ("kernel", "stride", "padding")
        )
        sides = self.tensors[node.inputs[0]].shape[1:]
        sizes = self.tensors[node.outputs[0]].shape[1:]
        # Runtimes disagree about ceil_mode, so its last windows are padded explicitly.
        extra = [
            max((sizes[i] - 1) * stride[i] + kernel[i] - sides[i] - 2 * padding[i], 0)
            for i in range(2)
        ]
        pads = [*padding, padding[0] + extra[0], padding[1] + extra[1]]
        if node.attrs["kind"] == "max":
            self.op("MaxPool", x, output=output, kernel_shape=kernel, strides=stride, pads=pads)
            return
        if node.attrs["count_include_pad"]:  # zeros that count, then room that does not
            widths = np.array([0, 0, *padding, 0, 0, *padding], np.int64)
            x = self.op("Pad", x, self.constant(widths), self.scalar(0), mode="constant")
            pads = [0, 0, *extra]
        self.op(
            "AveragePool",
            x,
            output=output,
            kernel_shape=kernel,
            strides=stride,
            pads=pads,
            count_include_pad=0,
        )

    def upsample(self, node: Node, x: str, output: str) -> None:
        factor = cast(int, node.attrs["scale"])
        scales = self.constant(np.array([1, 1, factor, factor], np.float32))
        if node.attrs["mode"] == "nearest":
            self.op(
                "Resize",
                x,
                "",
                scales,
                output=output,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        else:
            self.op(
                "Resize",
                x,
                "",
                scales,
                output=output,
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            )

    # -- steps

    def steps(self, steps: list[Step], y: str) -> None:
        for step in steps:
            if step.op == "store":
                self.op("Identity", y, output=self.name(cast(int, step.output)))
            elif step.op in ("quantize", "thresholds"):
                target = cast(CodeFormat, self.tensors[cast(int, step.output)].format)
                codes = (
                    self.thresholds(step, y)
                    if step.op == "thresholds"
                    else self.quantize(step, y, target)
                )
                if target.kind == "bipolar":
                    codes = self.op("Mul", codes, self.scalar(2))
                self.op(
                    "Sub",
                    codes,
                    self.scalar(target.top if target.kind == "bipolar" else 0),
                    output=self.name(cast(int, step.output)),
                )
            else:
                y = self.step(step, y)

    def step(self, step: Step, y: str) -> str:
        if step.op == "affine":
            if "alpha" in step.blobs:
                y = self.op("Mul", y, self.row(self.blobs[step.blobs["alpha"]]))
            if "beta" in step.blobs:
                y = self.op("Add", y, self.row(self.blobs[step.blobs["beta"]]))
            return y
        if step.op in ("gate", "add"):
            kind = "Mul" if step.op == "gate" else "Add"
            return self.op(kind, y, self.name(cast(int, step.input)))
        if step.op == "relu":
            return self.op("Relu", y)
        if step.op == "clip":
            ends = [self.scalar(cast(float, step.attrs[end])) for end in ("low", "high")]
            return self.op("Clip", y, *ends)
        if step.op == "prelu":
            return self.op("PRelu", y, self.row(self.blobs[step.blobs["slope"]]))
        if step.op == "hswish":
            inside = self.op(
                "Clip", self.op("Add", y, self.scalar(3)), self.scalar(0), self.scalar(6)
            )
            return self.op("Div", self.op("Mul", y, inside), self.scalar(6))
        sigmoid = self.op("Sigmoid", y)
        return sigmoid if step.op == "sigmoid" else self.op("Mul", y, sigmoid)

    def thresholds(self, step: Step, y: str) -> str:
        table = self.blobs[step.blobs["table"]].astype(np.float32)
        flip = self.blobs[step.blobs["flip"]].astype(np.float32)
        if flip.any():
            y = self.op("Mul", y, self.row(1 - 2 * flip))
        # (levels, 1, C, 1, 1) against (N, C, H, W)
        reached = self.op("GreaterOrEqual", y, self.constant(table[:, None, :, None, None]))
        counted = self.op("Cast", reached, to=self.onnx.TensorProto.FLOAT)
        return self.op("ReduceSum", counted, self.constant(np.array([0], np.int64)), keepdims=0)

    def quantize(self, step: Step, y: str, target: CodeFormat) -> str:
        top, size = np.float32(target.top), np.float32(cast(float, step.attrs["step"]))
        if target.kind == "bipolar" and target.bits == 1:
            positive = self.op("GreaterOrEqual", y, self.scalar(0))
            return self.op("Cast", positive, to=self.onnx.TensorProto.FLOAT)
        if target.kind == "bipolar":
            y = self.op("Div", y, self.scalar(size * top))
            y = self.op("Add", y, self.scalar(1))
            y = self.op("Mul", y, self.scalar(top / np.float32(2)))
        else:
            y = self.op("Div", y, self.scalar(size))
        if step.attrs["round"] == "half_even":
            y = self.op("Round", y)
        else:
            if step.attrs["round"] == "half_up":
                y = self.op("Add", y, self.scalar(0.5))
            y = self.op("Floor", y)
        return self.op("Clip", y, self.scalar(0), self.scalar(top))
