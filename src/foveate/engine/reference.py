"""What a packed graph computes, said in numpy: the oracle of the native engine.

Every executor must give these numbers. Sums of codes are exact integers; every float operation is
one rounding to float32, in the order written here; nothing is fused, split or reordered. It is
slow and needs no compiler, which also makes it the fallback where the native module is missing.

Values are held as ``(N, H, W, C)``, float32 or codes (uint8). What the order of float operations
leaves open elsewhere is settled here:

* ``conv`` over float32: y = 0, then for every ky, kx and channel of the group, in that order,
  y = fma(x, w, y), the correctly rounded x*w + y. float64 gives x*w exactly; the sum is rounded
  to odd there, after which rounding to float32 is right (Boldo and Melquiond, 2008). The plain
  float64 sum would be rounded twice and now and then be off by one unit.
* ``pool`` avg: float32 sum over the window row by row, divided by the number of pixels.
* ``global_avg``: float32 sum in row-major order, times float32(1 / (H*W)); over codes the integer
  sum as float32, times ``scale``.
* ``upsample`` bilinear: position p = max((i + 0.5) / scale - 0.5, 0), r = float32(p - floor(p)),
  weights 1 - r and r; along the row first, ``a*(1-r) + b*r``, each operation rounded.
* ``sigmoid``: e = float32(exp(-y)), then 1 / (1 + e); ``silu``: y / (1 + e); ``hswish``:
  y * min(max(y + 3, 0), 6) / 6. ``softmax``: float64, rounded once. Their exp may differ from a C
  library's in the last bit.
* NaN becomes code 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from foveate.engine.graph import Blobs, Graph, Node, Step, Tensor, format_from_json
from foveate.engine.planes import unpack_codes
from foveate.engine.validation import pooled_length
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat

__all__ = [
    "fused_multiply_add",
    "quantized",
    "reference_dump",
    "reference_nodes",
    "reference_run",
]

F32: TypeAlias = NDArray[np.float32]
I64: TypeAlias = NDArray[np.int64]
Value: TypeAlias = NDArray[np.generic]  # float32, or codes as uint8
Number = TypeVar("Number", np.float32, np.int64)

ONE = np.float32(1)


def reference_run(graph: Graph, blobs: Blobs, x: F32) -> list[F32]:
    """Run a graph that passed validation.

    Parameters
    ----------
    x
        ``(N, C, H, W)`` float32.

    Returns
    -------
    list of NDArray
        One ``(N, C, H, W)`` float32 array for every output.

    Raises
    ------
    FoveateError
        `x` has another shape than the graph's input.
    """
    values = _last(graph, blobs, x)
    return [cast(F32, _channels_first(values[number])) for number in graph.outputs]


def reference_dump(graph: Graph, blobs: Blobs, x: F32) -> dict[int, Value]:
    """Every tensor of a run by id, ``(N, C, H, W)``: float32, or codes as uint8."""
    return {number: _channels_first(value) for number, value in _last(graph, blobs, x).items()}


def reference_nodes(
    graph: Graph, blobs: Blobs, x: F32
) -> Iterator[tuple[Node | None, dict[int, Value]]]:
    """Run node by node: yields None before the first node, then each node that was run.

    The second item holds all values so far, ``(N, H, W, C)``.
    """
    tensors = {tensor.id: tensor for tensor in graph.tensors}
    wanted = tensors[graph.inputs[0]].shape
    if x.ndim != 4 or x.shape[1:] != wanted:
        raise FoveateError(f"the model takes images of shape (N, *{wanted}), got {x.shape}")
    values: dict[int, Value] = {
        graph.inputs[0]: np.ascontiguousarray(np.moveaxis(x, 1, 3), dtype=np.float32)
    }
    yield None, values
    for node in graph.nodes:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            _run(node, tensors, values, blobs)
        yield node, values


def _last(graph: Graph, blobs: Blobs, x: F32) -> dict[int, Value]:
    values: dict[int, Value] = {}
    for _, values in reference_nodes(graph, blobs, x):  # noqa: B007
        pass
    return values


def _channels_first(value: Value) -> Value:
    return np.ascontiguousarray(np.moveaxis(value, 3, 1))


def _run(node: Node, tensors: dict[int, Tensor], values: dict[int, Value], blobs: Blobs) -> None:
    x = values[node.inputs[0]]
    source = tensors[node.inputs[0]].format
    if node.op == "conv":
        y = _conv(node, x, source, blobs)
    elif node.op == "pointwise":
        y = _real(x) if source is None else _integers(source, x)
    else:
        values[node.outputs[0]] = _plain(node, x, source, values)
        return
    _steps(node.steps, y, tensors, values, blobs)


def _real(value: Value) -> F32:
    return cast(F32, value)


def _integers(code_format: CodeFormat, codes: Value) -> I64:
    return code_format.integers(codes.astype(np.int64)).astype(np.int64)


def _pair(node: Node, name: str) -> tuple[int, int]:
    first, second = cast("list[int]", node.attrs[name])
    return first, second


# ---------------------------------------------------------------------------- convolution


def fused_multiply_add(a: F32, b: F32, c: F32) -> F32:
    """a*b + c with one rounding to float32, elementwise with broadcasting."""
    product = a.astype(np.float64) * b  # 24 + 24 bits: exact in float64
    wide = c.astype(np.float64)
    total = product + wide
    back = total - product
    error = (product - (total - back)) + (wide - back)  # of that addition, exactly
    bits = total.view(np.int64)
    # Round to odd: where the sum was not exact and its last bit is even, take the neighbour on
    # the other side of the exact value.
    wrong = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    outwards = (error > 0) == (total > 0)
    bits += np.where(wrong, np.where(outwards, 1, -1), 0)
    return total.astype(np.float32)


def _conv(node: Node, x: Value, source: CodeFormat | None, blobs: Blobs) -> F32 | I64:
    """Accumulators ``(N, H, W, Co)``: float32, or exact integers over codes."""
    padding = _pair(node, "padding")
    border = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))
    blob = blobs[node.blobs["weight"]]
    groups = cast(int, node.attrs["groups"])
    if source is None:
        inputs = np.pad(_real(x), border)
        y = np.zeros((), np.float32)
        for seen, tap in _taps(node, inputs, _real(blob), groups):
            for c in range(seen.shape[2]):
                y = fused_multiply_add(seen[:, :, c, None], tap[:, None, c], y)
        return _outputs(node, inputs, y)
    fill = {"zero": 0, "low": source.low, "high": source.high}[cast(str, node.attrs["pad"])]
    integers = np.pad(_integers(source, x), border, constant_values=fill)
    weight_format = cast(CodeFormat, format_from_json(node.attrs["weight_format"], node.name))
    words = cast("NDArray[np.uint64]", blob)
    codes = unpack_codes(words, x.shape[3] // groups, weight_format.bits)
    # Products and sums of integers below 2^53 are exact in float64, in any order; validation
    # bounds them by 2^31.
    total = np.zeros(())
    for window, weights in _taps(node, integers, _integers(weight_format, codes), groups):
        total = total + window.astype(float) @ weights.astype(float)
    return _outputs(node, integers, total.astype(np.int64))


def _output_size(node: Node, padded: NDArray[Number]) -> tuple[int, int]:
    kernel, stride, dilation = (_pair(node, name) for name in ("kernel", "stride", "dilation"))
    rows, columns = (
        (padded.shape[1 + side] - dilation[side] * (kernel[side] - 1) - 1) // stride[side] + 1
        for side in range(2)
    )
    return rows, columns


def _taps(
    node: Node, padded: NDArray[Number], weight: NDArray[Number], groups: int
) -> Iterator[tuple[NDArray[Number], NDArray[Number]]]:
    """For every ky, kx: what the tap sees ``(groups, pixels, depth)``, and its weights.

    The pixels are those of the whole batch; the weights ``(groups, depth, outputs of a group)``.
    """
    kernel, stride, dilation = (_pair(node, name) for name in ("kernel", "stride", "dilation"))
    height, width = _output_size(node, padded)
    depth = weight.shape[1]
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            top, left = ky * dilation[0], kx * dilation[1]
            seen = padded[
                :,
                top : top + stride[0] * (height - 1) + 1 : stride[0],
                left : left + stride[1] * (width - 1) + 1 : stride[1],
            ].reshape(-1, groups, depth)
            tap = weight[:, :, ky, kx].reshape(groups, -1, depth)
            yield seen.transpose(1, 0, 2), tap.transpose(0, 2, 1)


def _outputs(node: Node, padded: NDArray[Number], y: NDArray[Number]) -> NDArray[Number]:
    """``(groups, pixels, outputs of a group)`` as ``(N, H, W, Co)``."""
    shape = (padded.shape[0], *_output_size(node, padded), y.shape[0] * y.shape[2])
    return cast("NDArray[Number]", y.transpose(1, 0, 2).reshape(shape))


# ---------------------------------------------------------------------------------- steps


def _steps(
    steps: list[Step],
    start: F32 | I64,
    tensors: dict[int, Tensor],
    values: dict[int, Value],
    blobs: Blobs,
) -> None:
    y = start.astype(np.float32)  # of an integer: rounded to nearest
    integer = start.dtype != np.float32
    for step in steps:
        if step.op == "thresholds":
            table = blobs[step.blobs["table"]]
            flip = blobs[step.blobs["flip"]].astype(bool)
            value = start if integer else y
            value = np.where(flip, -value, value)
            codes = np.zeros(value.shape, np.uint8)
            for level in table:
                codes += value >= level
            values[cast(int, step.output)] = codes
            continue
        integer = False
        if step.op == "store":
            values[cast(int, step.output)] = y.copy()
        elif step.op == "quantize":
            target = tensors[cast(int, step.output)].format
            values[cast(int, step.output)] = quantized(
                y,
                cast(CodeFormat, target),
                cast(float, step.attrs["step"]),
                cast(str, step.attrs["round"]),
            )
        else:
            y = _step(step, y, values, blobs)


def _step(step: Step, y: F32, values: dict[int, Value], blobs: Blobs) -> F32:
    def row(role: str) -> F32:
        return cast(F32, blobs[step.blobs[role]])

    if step.op == "affine":
        y = y * row("alpha") if "alpha" in step.blobs else y
        return y + row("beta") if "beta" in step.blobs else y
    if step.op == "gate":
        return y * _real(values[cast(int, step.input)])
    if step.op == "add":
        return y + _real(values[cast(int, step.input)])
    if step.op == "relu":
        return np.where(y < 0, np.float32(0), y)
    if step.op == "clip":
        low, high = (np.float32(cast(float, step.attrs[end])) for end in ("low", "high"))
        y = np.where(y < low, low, y)
        return np.where(y > high, high, y)
    if step.op == "prelu":
        return np.where(y > 0, y, y * row("slope"))
    if step.op == "hswish":
        inside = np.clip(y + np.float32(3), np.float32(0), np.float32(6))
        return _real(y * inside / np.float32(6))
    e = np.exp(-y.astype(np.float64)).astype(np.float32)
    return _real(ONE / (ONE + e) if step.op == "sigmoid" else y / (ONE + e))


def quantized(y: F32, target: CodeFormat, step: float, rounding: str) -> NDArray[np.uint8]:
    """Codes of the step ``quantize``.

    Parameters
    ----------
    y
        float32, any shape.
    step
        Real value of the integer 1, a float32.
    rounding
        ``half_up``, ``half_even`` or ``floor``.
    """
    top = np.float32(target.top)
    if target.kind == "bipolar":
        if target.bits == 1:
            return np.greater_equal(y, 0).astype(np.uint8)
        t = y / (np.float32(step) * top)
        t = t + ONE
        t = t * (top / np.float32(2))
    else:
        t = y / np.float32(step)
    if rounding == "half_up":
        t = np.floor(t + np.float32(0.5))
    else:
        t = np.floor(t) if rounding == "floor" else np.rint(t)
    t = np.where(t > 0, t, np.float32(0))  # also for NaN
    codes: NDArray[np.uint8] = np.minimum(t, top).astype(np.uint8)
    return codes


# ------------------------------------------------------------------------------ other nodes


def _plain(node: Node, x: Value, source: CodeFormat | None, values: dict[int, Value]) -> Value:
    batch, height, width, channels = x.shape
    y: Value
    if node.op == "concat":
        y = np.concatenate([values[number] for number in node.inputs], axis=3)
    elif node.op == "flatten":
        y = np.moveaxis(x, 3, 1).reshape(batch, 1, 1, -1)
    elif node.op == "slice":
        y = x[..., cast(int, node.attrs["start"]) : cast(int, node.attrs["stop"])]
    elif node.op == "shuffle":
        groups = cast(int, node.attrs["groups"])
        split = x.reshape(batch, height, width, groups, channels // groups)
        y = split.swapaxes(3, 4).reshape(x.shape)
    elif node.op == "global_avg" and source is not None:
        total = _integers(source, x).sum((1, 2), keepdims=True).astype(np.float32)
        y = total * np.float32(cast(float, node.attrs["scale"]))
    elif node.op == "global_avg":
        y = _sequential_sum(_real(x).reshape(batch, height * width, channels))[:, None, None]
        y = y * np.float32(1 / (height * width))
    elif node.op == "pool":
        y = _pool(node, x)
    elif node.op == "upsample":
        y = _upsample(node, x)
    else:
        wide = x.astype(np.float64)  # softmax
        e = np.exp(wide - wide.max(3, keepdims=True))
        y = (e / e.sum(3, keepdims=True)).astype(np.float32)
    return y


def _sequential_sum(pixels: F32) -> F32:
    """Sum over the pixels of ``(N, pixels, C)``, one after the other."""
    total = np.zeros((pixels.shape[0], pixels.shape[2]), np.float32)
    for pixel in range(pixels.shape[1]):
        total = total + pixels[:, pixel]
    return total


def _pool(node: Node, x: Value) -> Value:
    kernel, stride, padding = (_pair(node, name) for name in ("kernel", "stride", "padding"))
    batch, height, width, channels = x.shape
    ceil_mode = cast(bool, node.attrs["ceil_mode"])
    rows = pooled_length(height, kernel[0], stride[0], padding[0], ceil_mode)
    columns = pooled_length(width, kernel[1], stride[1], padding[1], ceil_mode)
    y = np.empty((batch, rows, columns, channels), x.dtype)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride[0] - padding[0], column * stride[1] - padding[1]
            # Windows of ceil_mode may end beyond the padding.
            bottom = min(top + kernel[0], height + padding[0])
            right = min(left + kernel[1], width + padding[1])
            window = x[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            pixels = window.reshape(batch, window.shape[1] * window.shape[2], channels)
            if node.attrs["kind"] == "max":
                y[:, row, column] = pixels.max(1)
                continue
            count = pixels.shape[1]
            if node.attrs["count_include_pad"]:
                count = (bottom - top) * (right - left)
            y[:, row, column] = _sequential_sum(_real(pixels)) / np.float32(count)
    return y


def _upsample(node: Node, x: Value) -> Value:
    scale = cast(int, node.attrs["scale"])
    if node.attrs["mode"] == "nearest":
        return x.repeat(scale, axis=1).repeat(scale, axis=2)
    y = _real(x)
    for axis in (2, 1):  # along the row, then along the column
        length = y.shape[axis]
        place = np.maximum((np.arange(length * scale) + 0.5) / scale - 0.5, 0)
        first = np.floor(place).astype(int)
        second = np.minimum(first + 1, length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        share = (place - first).astype(np.float32).reshape(shape)
        y = y.take(first, axis) * (ONE - share) + y.take(second, axis) * share
    return y
