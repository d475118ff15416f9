"""``foveate bench engine``: the packed-bit engine beside the float and int8 runtimes in use.

Two questions, one run:

* a 3x3 convolution of 64 to 512 channels, the four shapes of a ResNet-18;
* a whole ResNet-18 on a picture of 224x224: its binary twin here, the int8 and float net elsewhere.

Contenders take turns, round after round, so that a slow minute of the machine meets all of them;
a figure is a low percentile of all rounds. One thread is measured in CPU seconds, several in wall
seconds. Weights are random: time does not depend on them. Compare the ratios of one run, never the
milliseconds of two.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.engine.compile import compile
from foveate.engine.packed_model import PackedModel
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.nn.binary_resnet import binary_resnet18
from foveate.nn.resnet import resnet18
from foveate.quantization.layers import QuantConv2d
from foveate.quantization.quantizers import (
    SignSTE,
    SignWeight,
    UniformBipolar,
    UniformBipolarWeight,
)
from foveate.quantization.real_to_binary import RealToBinaryConv2d
from foveate.quantization.surgery import calibrate, quantize

__all__ = ["EngineRow", "time_engine"]

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
RESNET = "ResNet-18, 224x224"
LOW = 10  # percentile of the rounds


@dataclass(frozen=True)
class EngineRow:
    """One contender on one workload.

    Attributes
    ----------
    workload
        ``3x3, 64 channels, 56x56`` and so on, or the network.
    what, kind
        Who, and ``bits``, ``int8`` or ``fp32``; ``own`` tells this engine's rows.
    threads, milliseconds
        Low percentile of the rounds: CPU time of one thread, wall time of several.
    gmacs
        Nominal multiply-adds per second in 1e9, padded taps counted.
    """

    workload: str
    what: str
    kind: str
    own: bool
    threads: int
    milliseconds: float
    gmacs: float


@dataclass
class Contender:
    """Something that can be run again and again; `seconds` runs it once and says how long."""

    what: str
    kind: str
    seconds: Callable[[], float]
    own: bool = False


def time_engine(
    rounds: int = 30,
    threads: Sequence[int] = (1, 2),
    out: Path | None = None,
    isa: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[EngineRow]:
    """Time everything; contenders that are not installed are left out.

    Parameters
    ----------
    rounds
        Turns of every contender on every workload.
    threads
        Numbers of threads.
    out
        JSON file for the rows.
    isa
        Instruction set that this engine is held to: ``avx512``, ``avx2``, ``portable``; "" is the
        best one.

    Raises
    ------
    FoveateError
        The native engine is missing, or a number makes no sense.
    """
    if not 5 <= rounds <= 10000 or not threads or min(threads) < 1:
        raise FoveateError("bench engine takes 5 to 10000 rounds and 1 or more threads")
    try:
        native = importlib.import_module("foveate._native")
        native.force_isa(isa)
    except (ImportError, RuntimeError) as error:
        raise FoveateError(f"bench engine cannot run: {error}") from error
    tell = progress or (lambda what, done, total: None)
    rows: list[EngineRow] = []
    before = torch.get_num_threads()
    jobs = list(itertools.product(threads, [*SHAPES, None]))
    try:
        for done, (number, shape) in enumerate(jobs):
            torch.set_num_threads(number)
            with tempfile.TemporaryDirectory(prefix="foveate-bench-") as scratch:
                folder = Path(scratch)
                if shape is None:
                    workload, macs = RESNET, 1_814_073_344
                    contenders = networks(folder, number)
                else:
                    channels, side = shape
                    workload = f"3x3, {channels} channels, {side}x{side}"
                    macs = 9 * channels**2 * side**2
                    contenders = convolutions(channels, side, folder, number)
                tell(f"{workload}, {number} thread{'s' * (number > 1)}", done, len(jobs))
                times: dict[str, list[float]] = {c.what: [] for c in contenders}
                for contender in contenders:  # warm up
                    contender.seconds()
                for _ in range(rounds):
                    for contender in contenders:
                        times[contender.what].append(contender.seconds())
            for contender in contenders:
                best = float(np.percentile(times[contender.what], LOW))
                rows.append(
                    EngineRow(
                        workload,
                        contender.what,
                        contender.kind,
                        contender.own,
                        number,
                        round(1e3 * best, 4),
                        round(1e-9 * macs / best, 1),
                    )
                )
    finally:
        torch.set_num_threads(before)
        native.force_isa("")
    if out is not None:
        with write_whole(out) as temporary:
            text = json.dumps([asdict(row) for row in rows], indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return rows


def clocked(call: Callable[[], object], threads: int, target: float = 4e-3) -> Callable[[], float]:
    """Seconds of one call: CPU time on one thread, else wall time; short calls are repeated."""
    clock = time.process_time if threads == 1 else time.perf_counter
    call()
    started = time.perf_counter()
    call()
    repeats = max(1, round(target / max(time.perf_counter() - started, 1e-7)))

    def seconds() -> float:
        begin = clock()
        for _ in range(repeats):
            call()
        return (clock() - begin) / repeats

    return seconds


# ------------------------------------------------------------------------------ convolutions


class _Layer(nn.Module):
    """What stands around a convolution in a net: quantise, convolve, normalise, quantise."""

    def __init__(self, channels: int, bits: int, *, codes_out: bool) -> None:
        super().__init__()
        act = SignSTE() if bits == 1 else UniformBipolar(bits)
        weight = SignWeight() if bits == 1 else UniformBipolarWeight(bits)
        self.conv = QuantConv2d(
            channels, channels, 3, padding=1, bias=False, act=act, weight_quantizer=weight
        )
        self.bn = nn.BatchNorm2d(channels)
        again = SignSTE() if bits == 1 else UniformBipolar(bits)
        # A second, tiny convolution reads the codes: the first one's epilogue has to make them.
        self.reader = (
            QuantConv2d(channels, 1, 1, bias=False, act=again, weight_quantizer=SignWeight())
            if codes_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reader(self.bn(self.conv(x)))
        return out


def convolutions(channels: int, side: int, folder: Path, threads: int) -> list[Contender]:
    """Contenders for one shape."""
    x = torch.randn(1, channels, side, side)

    def own(bits: int, codes_out: bool) -> Callable[[], float]:
        packed = compile(_Layer(channels, bits, codes_out=codes_out).eval(), x)
        image = x.numpy()

        def seconds() -> float:
            # The nodes up to and including the convolution's epilogue; the reader is not counted.
            nodes = packed.profile(image, threads=threads, repeats=5)
            return sum(node.seconds for node in nodes if not node.name.startswith("reader"))

        return seconds

    contenders = [
        Contender(
            "foveate 1x1 bits: pack, convolve, BN, sign to codes", "bits", own(1, True), True
        ),
        Contender("foveate 1x1 bits: pack, convolve, BN to float", "bits", own(1, False), True),
        Contender("foveate 2x2 bits, path chosen by itself", "bits", own(2, True), True),
        Contender("foveate 8x8 bits (int8 path)", "int8", own(8, True), True),
    ]
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval()
    contenders += _torch(conv, x, threads)
    onnx_file = folder / "conv.onnx"
    if _conv_onnx(channels, side, onnx_file):
        contenders += _runtimes(onnx_file, x.numpy(), threads)
    binary = _openvino_binary(channels, side, threads)
    return contenders + ([binary] if binary is not None else [])


# ------------------------------------------------------------------------------ whole networks


def binary_twin(int8_rest: bool) -> PackedModel:
    """ResNet-18 in the real-to-binary shape; its real layers in float, or in 8 bits."""

    def conv(
        inside: int, outside: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> RealToBinaryConv2d:
        return RealToBinaryConv2d(inside, outside, kernel, stride=stride, padding=padding)

    x = torch.randn(1, 3, 224, 224)
    net = binary_resnet18(conv).eval()
    if int8_rest:
        quantize(net, weights=8, activations=8, keep=("layer?.?.conv?",), example=x)
        calibrate(net, [x])
    return compile(net.eval(), x)


def networks(folder: Path, threads: int) -> list[Contender]:
    """Contenders for the ResNet-18."""
    x = torch.randn(1, 3, 224, 224)
    image = x.numpy()
    contenders = []
    for what, int8_rest in (
        ("foveate, binary, the real layers in 8 bits", True),
        ("foveate, binary, the real layers in float", False),
    ):
        packed = binary_twin(int8_rest)
        call = clocked(lambda packed=packed: packed.run(image, threads=threads), threads)  # type: ignore[misc]
        contenders.append(Contender(what, "bits", call, True))
    net = resnet18().eval()
    contenders += _torch(net, x, threads)
    onnx_file = folder / "resnet.onnx"
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
        torch.onnx.export(net, (x,), onnx_file, dynamo=True, verbose=False)
        contenders += _runtimes(onnx_file, image, threads)
    return contenders


# ------------------------------------------------------------------------------ the peers


def _torch(module: nn.Module, x: Tensor, threads: int) -> list[Contender]:
    fast = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    picture = x.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.inference_mode():
            out: Tensor = fast(picture)
            return out

    return [Contender("torch fp32, channels_last", "fp32", clocked(call, threads))]


def _conv_onnx(channels: int, side: int, path: Path) -> bool:
    if not importlib.util.find_spec("onnx"):
        return False
    onnx = importlib.import_module("onnx")
    helper = importlib.import_module("onnx.helper")
    shape = [1, channels, side, side]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(channels, channels, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return True


def _runtimes(path: Path, image: np.ndarray[Any, Any], threads: int) -> list[Contender]:
    """ONNX Runtime and OpenVINO on the float file and on an int8 one made of it."""
    contenders = []
    files = {"fp32": path}
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        runtime.set_default_logger_severity(3)
        files["int8"] = _int8(path, image)
        for kind, file in files.items():
            options = runtime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = runtime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
            feed = {session.get_inputs()[0].name: image}
            call = clocked(lambda s=session, f=feed: s.run(None, f), threads)  # type: ignore[misc]
            contenders.append(Contender(f"ONNX Runtime {kind}", kind, call))
    if importlib.util.find_spec("openvino"):
        openvino = importlib.import_module("openvino")
        for kind, file in files.items():
            settings = {
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",  # its own choice would be bfloat16
            }
            model = openvino.Core().compile_model(str(file), "CPU", settings)
            request = model.create_infer_request()
            request.infer({0: image})
            contenders.append(Contender(f"OpenVINO {kind}", kind, clocked(request.infer, threads)))
    return contenders


def _int8(path: Path, image: np.ndarray[Any, Any]) -> Path:
    """The float file with 8-bit activations and weights (static QDQ)."""
    quantization = importlib.import_module("onnxruntime.quantization")
    calibrate_ = importlib.import_module("onnxruntime.quantization.calibrate")
    onnx = importlib.import_module("onnx")
    name = onnx.load(str(path), load_external_data=False).graph.input[0].name

    class Reader(calibrate_.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter([{name: image}])

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self.left, None)

    target = path.with_name("int8.onnx")
    quantization.quantize_static(
        str(path),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,  # U8S8: what VNNI multiplies
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    return target


def _openvino_binary(channels: int, side: int, threads: int) -> Contender | None:
    """OpenVINO's 1-bit convolution, with the conversions from and to float that it needs."""
    if not importlib.util.find_spec("openvino"):
        return None
    openvino = importlib.import_module("openvino")
    ops = importlib.import_module("openvino.opset1")

    def scalar(value: float) -> Any:
        return ops.constant(np.full((1, 1, 1, 1), value, np.float32))

    x = ops.parameter([1, channels, side, side], np.float32)
    codes = ops.fake_quantize(x, scalar(0), scalar(0), scalar(-1), scalar(1), 2)
    shape = openvino.Shape([channels, channels, 3, 3])
    bits = np.random.default_rng(0).integers(0, 2, channels * channels * 9).tolist()
    weight = openvino.op.Constant(openvino.Type.u1, shape, bits)
    y = ops.binary_convolution(codes, weight, [1, 1], [1, 1], [1, 1], [1, 1], "xnor-popcount", 0.0)
    model = openvino.Core().compile_model(
        openvino.Model(y.outputs(), [x]),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"},
    )
    request = model.create_infer_request()
    request.infer({0: np.random.default_rng(1).normal(size=x.shape).astype(np.float32)})
    return Contender(
        "OpenVINO BinaryConvolution, with reorders", "bits", clocked(request.infer, threads)
    )
