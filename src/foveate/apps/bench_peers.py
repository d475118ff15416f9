"""What ``foveate bench engine`` compares with: torch, ONNX Runtime, OpenVINO, LiteRT.

Every function returns the contenders it can make; those whose package is not installed are left
out. A peer is given what its own documentation recommends for speed, and the same number of
threads as everybody. LiteRT reads only its own file format and its converter wants TensorFlow, so
:func:`tflite` writes the few records that a row of convolutions needs.

A quantised convolution of LiteRT computes, with a step s_w per output channel,

``y_code = clip(round((b_code + sum x_code * w_code) * s_x * s_w / s_y), -128, 127)``

(https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.engine.onnx_runtime import OnnxNetwork, onnx_runtime_version, write_int8

__all__ = [
    "ACT_STEP",
    "Contender",
    "float_convolutions",
    "litert_peers",
    "onnx_peers",
    "openvino_binary",
    "tflite",
    "torch_compiled",
    "torch_eager",
    "write_onnx",
]

ACT_STEP = np.float32(4 / 127)
"""Step of LiteRT's int8 activations: codes reach from -4 to 4, activations have deviation 1."""


@dataclass(frozen=True)
class Contender:
    """Something that can be run again and again.

    Attributes
    ----------
    what, kind
        Who, and ``1x1 bits``, ``2x2 bits``, ``int8`` or ``fp32``.
    call
        Runs it once.
    own
        Whether it is this project's engine.
    """

    what: str
    kind: str
    call: Callable[[], object]
    own: bool = False


def float_convolutions(channels: int, depth: int, seed: int = 0) -> list[nn.Conv2d]:
    """3x3 convolutions with bias that follow one another and keep the deviation at about 1."""
    generator = torch.Generator().manual_seed(seed)
    convs = []
    for _ in range(depth):
        conv = nn.Conv2d(channels, channels, 3, padding=1).eval().requires_grad_(False)
        conv.weight.normal_(0, (9 * channels) ** -0.5, generator=generator)
        conv.bias.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
        convs.append(conv)
    return convs


# ------------------------------------------------------------------------------ torch


def torch_eager(net: nn.Module, x: Tensor) -> list[Contender]:
    """Torch as it is, channels_last; as many threads as it is set to."""
    fast, picture = _channels_last(net, x)

    def call() -> Tensor:
        with torch.inference_mode():
            out: Tensor = fast(picture)
            return out

    return [Contender("torch fp32, channels_last", "fp32", call)]


def torch_compiled(net: nn.Module, x: Tensor) -> list[Contender]:
    """``torch.compile`` with freezing; nothing where torch cannot compile."""
    inductor = importlib.import_module("torch._inductor.config")
    torch._dynamo.reset()  # or it gives up, silently, after eight modules of one class
    fast, picture = _channels_last(net, x)
    compiled = torch.compile(fast)

    def call() -> Tensor:
        with torch.no_grad():  # nothing is frozen in inference mode
            out: Tensor = compiled(picture)
            return out

    try:
        with inductor.patch(freezing=True):
            call()
    except RuntimeError:
        return []
    return [Contender("torch fp32, compiled with freezing", "fp32", call)]


def _channels_last(net: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    fast: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fast, x.contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------ ONNX files


def write_onnx(convs: Sequence[nn.Conv2d], side: int, path: Path) -> bool:
    """Convolutions in a row as an ONNX file; False where ``onnx`` is not installed."""
    if not importlib.util.find_spec("onnx"):
        return False
    onnx = importlib.import_module("onnx")
    helper = importlib.import_module("onnx.helper")
    from_array = importlib.import_module("onnx.numpy_helper").from_array
    shape = [1, convs[0].in_channels, side, side]
    nodes, weights = [], []
    for i, conv in enumerate(convs):
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"w{i}", f"b{i}"], [f"x{i + 1}"], pads=[1, 1, 1, 1])
        )
        weight, bias = _arrays(conv)
        weights += [from_array(weight, f"w{i}"), from_array(bias, f"b{i}")]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{len(convs)}", onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return True


def onnx_peers(path: Path, image: NDArray[np.float32], threads: int) -> list[Contender]:
    """ONNX Runtime and OpenVINO on a float file and on the int8 one (static QDQ) made of it."""
    contenders = []
    files = {"fp32": path}
    if onnx_runtime_version() is not None:
        files["int8"] = path.with_name(f"{path.stem}-int8.onnx")
        write_int8(path, files["int8"], [image])
        for kind, file in files.items():
            network = OnnxNetwork(file, threads)
            contenders.append(
                Contender(f"ONNX Runtime {kind}", kind, lambda n=network: n.run(image))  # type: ignore[misc]
            )
    if importlib.util.find_spec("openvino"):
        openvino = importlib.import_module("openvino")
        for kind, file in files.items():
            request = _request(openvino, openvino.Core().read_model(str(file)), image, threads)
            contenders.append(Contender(f"OpenVINO {kind}", kind, request.infer))
    return contenders


def _request(openvino: Any, model: Any, image: NDArray[np.float32], threads: int) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # its own choice would be bfloat16
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer({0: image})  # later calls find the picture in place
    return request


# ------------------------------------------------------------------------------ OpenVINO, 1 bit


def openvino_binary(
    depth: int, image: NDArray[np.float32], threads: int, seed: int = 0
) -> list[Contender]:
    """OpenVINO's 1-bit 3x3 convolution with the conversions from and to float that it needs.

    In a row, bits lie between the convolutions, as in this engine. `image` is ``(1, C, H, W)``;
    every convolution keeps that shape.
    """
    if not importlib.util.find_spec("openvino"):
        return []
    openvino = importlib.import_module("openvino")
    ops = importlib.import_module("openvino.opset1")
    rng = np.random.default_rng(seed)
    channels = image.shape[1]
    # Codes are 0 and 1: OpenVINO then makes bits, and within the convolution before. Of -1 and 1 it
    # makes floats, reads both as bit 1, and takes up to four times as long.
    zero, one = (ops.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (0, 1))
    x = y = ops.parameter(list(image.shape), np.float32)
    for _ in range(depth):
        bits = rng.integers(0, 2, channels * channels * 9).tolist()
        shape = openvino.Shape([channels, channels, 3, 3])
        weight = openvino.op.Constant(openvino.Type.u1, shape, bits)
        codes = ops.fake_quantize(y, zero, zero, zero, one, 2)
        y = ops.binary_convolution(
            codes, weight, [1, 1], [1, 1], [1, 1], [1, 1], "xnor-popcount", 0.0
        )
    request = _request(openvino, openvino.Model(y.outputs(), [x]), image, threads)
    return [Contender("OpenVINO BinaryConvolution, with reorders", "1x1 bits", request.infer)]


# ------------------------------------------------------------------------------ LiteRT


def litert_peers(
    convs: Sequence[nn.Conv2d], image: NDArray[np.float32], threads: int
) -> list[Contender]:
    """LiteRT with XNNPACK, its default, in fp32 and int8; `image` is ``(1, C, H, W)``.

    The int8 row is given codes and hands out codes: no conversion from or to float is in its time.
    """
    if not all(importlib.util.find_spec(name) for name in ("ai_edge_litert", "flatbuffers")):
        return []
    interpreters = importlib.import_module("ai_edge_litert.interpreter")
    contenders = []
    for kind in ("fp32", "int8"):
        interpreter = interpreters.Interpreter(
            model_content=tflite(convs, image.shape[2], int8=kind == "int8"), num_threads=threads
        )
        interpreter.allocate_tensors()
        x = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        if kind == "int8":
            x = np.clip(np.rint(x / ACT_STEP), -128, 127).astype(np.int8)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        contenders.append(Contender(f"LiteRT (XNNPACK) {kind}", kind, interpreter.invoke))
    return contenders


def tflite(convs: Sequence[nn.Conv2d], side: int, *, int8: bool) -> bytes:
    """A TFLite file of 3x3 convolutions in a row: ``(1, side, side, C)`` to the same shape.

    Parameters
    ----------
    convs
        Stride 1, padding 1, with bias.
    int8
        Input, output and everything between are int8 codes of step `ACT_STEP`, weights have a step
        per output channel. Otherwise all is float32.
    """
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers = importlib.import_module("flatbuffers")
    types = schema.TensorType
    graph = _record(schema.SubGraphT, tensors=[], operators=[])
    buffers = [schema.BufferT()]  # the first stands for "no data"

    def add(
        name: str,
        shape: Sequence[int],
        data: NDArray[np.generic] | None = None,
        step: NDArray[np.float32] | None = None,
    ) -> int:
        kind = types.INT8 if int8 else types.FLOAT32
        if data is not None:
            kind = {"f": types.FLOAT32, "b": types.INT8, "i": types.INT32}[data.dtype.char]
            buffers.append(
                _record(schema.BufferT, data=np.frombuffer(data.tobytes(), dtype=np.uint8))
            )
        tensor = _record(schema.TensorT, name=name, shape=list(shape), type=kind)
        tensor.buffer = 0 if data is None else len(buffers) - 1
        if step is not None:
            zero = np.zeros(len(step), np.int64)
            tensor.quantization = _record(
                schema.QuantizationParametersT, scale=step, zeroPoint=zero, quantizedDimension=0
            )
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    pixels = (1, side, side, convs[0].in_channels)
    act_step = np.array([ACT_STEP]) if int8 else None
    value = add("x", pixels, step=act_step)
    graph.inputs = [value]
    for i, conv in enumerate(convs):
        weight, bias = _arrays(conv)
        weight = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))  # (out, height, width, in)
        if int8:
            step = np.abs(weight).max((1, 2, 3)) / np.float32(127)
            codes = np.rint(weight / step[:, None, None, None]).astype(np.int8)
            sums = np.rint(bias / (step * ACT_STEP)).astype(np.int32)
            constants = [
                add(f"w{i}", weight.shape, codes, step),
                add(f"b{i}", bias.shape, sums, step * ACT_STEP),
            ]
        else:
            constants = [add(f"w{i}", weight.shape, weight), add(f"b{i}", bias.shape, bias)]
        after = add(f"y{i}", pixels, step=act_step)
        options = _record(
            schema.Conv2DOptionsT,
            padding=schema.Padding.SAME,
            strideH=1,
            strideW=1,
            dilationHFactor=1,
            dilationWFactor=1,
        )
        graph.operators.append(
            _record(
                schema.OperatorT,
                opcodeIndex=0,
                inputs=[value, *constants],
                outputs=[after],
                builtinOptionsType=schema.BuiltinOptions.Conv2DOptions,
                builtinOptions=options,
            )
        )
        value = after
    graph.outputs = [value]
    conv_2d = schema.BuiltinOperator.CONV_2D
    code = _record(
        schema.OperatorCodeT,
        builtinCode=conv_2d,
        deprecatedBuiltinCode=conv_2d,
        version=3 if int8 else 1,
    )
    model = _record(
        schema.ModelT, version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _record(make: Callable[[], Any], **fields: object) -> Any:
    """An object of the schema with some of its fields set."""
    record = make()
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def _arrays(conv: nn.Conv2d) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight ``(out, in, 3, 3)`` and bias; zeros where there is none."""
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    return conv.weight.detach().contiguous().numpy(), bias.detach().numpy()
