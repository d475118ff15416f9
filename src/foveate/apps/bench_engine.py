"""``foveate bench engine``: the packed-bit engine beside the float and int8 runtimes in use.

Four questions, one run:

* 3x3 convolutions of 64 to 512 channels, the four shapes of a ResNet-18, **in a row**: what one of
  them takes inside a network. Between ours lie codes (batch norm and the next quantiser are part of
  the convolution), between the int8 peers int8 codes, between the float peers floats;
* one such convolution **alone**, from float to float: what somebody pays who replaces one layer;
* a **whole** ResNet-18 on a picture of 224x224: its binary twin here, the int8 and float net
  elsewhere;
* **switching** between bit widths that were compiled into one file.

What the clock sees is one call of the contender's own, from a picture in memory to an answer in
memory; in a row it is divided by the number of convolutions:

* *inside*: the call from Python; conversion of layout, quantising and packing of the picture;
  batch norm (ours) or bias (peers) and conversion to what the next layer reads; the answer as
  float32 of the first layout;
* *outside*: reading and compiling the network, choosing kernels, packing weights, and the first
  call. Three peers have less to do: torch is given pictures in channels_last; OpenVINO and LiteRT
  find the picture in place and leave the answer in place, and LiteRT reads and writes NHWC, its
  int8 row even codes instead of floats.

All contenders have the same number of threads. ONNX Runtime and this engine wait without spinning;
the pools of the others have no switch for it. The picture is one, weights are random, and time does
not depend on them. Who has his turn when, and which clock it is: :mod:`foveate.engine.turns`.
Compare the ratios of one run, never the milliseconds of two.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.apps.bench_peers import (
    Contender,
    float_convolutions,
    litert_peers,
    onnx_peers,
    openvino_binary,
    torch_compiled,
    torch_eager,
    write_onnx,
)
from foveate.engine.compile import compile, compile_modes
from foveate.engine.packed_model import PackedModel
from foveate.engine.turns import take_turns
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

# Channels, side, convolutions in a row. Codes and weights of 1 bit stay small everywhere; float
# weights of 2048 / channels convolutions grow from 5 MB to 38 MB, as those of a ResNet-18 do.
SHAPES = ((64, 56, 32), (128, 28, 16), (256, 14, 8), (512, 7, 4))
PICTURE = 224  # the network's


@dataclass(frozen=True)
class EngineRow:
    """One contender on one workload.

    Attributes
    ----------
    table
        Which of the four questions it answers.
    workload
        ``3x3, 64 channels, 56x56`` and so on, or the network.
    what, kind
        Who, and ``1x1 bits``, ``2x2 bits``, ``int8`` or ``fp32``; ``own`` tells this engine's rows.
    threads, milliseconds
        Low percentile of the rounds: CPU time of one thread, wall time of several.
    gmacs
        Nominal multiply-adds per second in 1e9, padded taps counted; 0 where nothing is multiplied.
    """

    table: str
    workload: str
    what: str
    kind: str
    own: bool
    threads: int
    milliseconds: float
    gmacs: float


@dataclass(frozen=True)
class Job:
    """Contenders on one workload; `call_macs` and `parts` are those of one call."""

    table: str
    workload: str
    contenders: Callable[[Path, int], list[Contender]]
    threads: int
    call_macs: int
    parts: int = 1


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
    todo = jobs(threads)
    try:
        for done, job in enumerate(todo):
            torch.set_num_threads(job.threads)
            many = "s" * (job.threads > 1)
            tell(f"{job.workload}, {job.threads} thread{many}", done, len(todo))
            with tempfile.TemporaryDirectory(prefix="foveate-bench-") as scratch:
                contenders = job.contenders(Path(scratch), job.threads)
                calls = {contender.what: contender.call for contender in contenders}
                seconds = take_turns(calls, rounds, job.threads)
            rows += [row(job, contender, seconds[contender.what]) for contender in contenders]
    finally:
        torch.set_num_threads(before)
        native.force_isa("")
    if out is not None:
        with write_whole(out) as temporary:
            text = json.dumps([asdict(row) for row in rows], indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return rows


def jobs(threads: Sequence[int]) -> list[Job]:
    """Everything to be timed, in order."""
    found = []
    for number in threads:
        for channels, side, depth in SHAPES:
            name = f"3x3, {channels} channels, {side}x{side}"
            macs = 9 * channels**2 * side**2
            for table, workload, count in (
                ("Convolutions in a row, each", name, depth),
                ("One convolution alone, float to float", f"{name}, alone", 1),
            ):

                def contenders(
                    folder: Path, number: int, c: int = channels, s: int = side, n: int = count
                ) -> list[Contender]:
                    return convolutions(c, s, n, folder, number)

                found.append(Job(table, workload, contenders, number, count * macs, count))
        network = f"ResNet-18, {PICTURE}x{PICTURE}"
        macs = round(1_814_073_344 * (PICTURE / 224) ** 2)
        found.append(Job("Whole network", network, networks, number, macs))
    found.append(Job("Switching bit widths", "16 layers, 3 widths", switches, 1, 0))
    return found


def row(job: Job, contender: Contender, seconds: float) -> EngineRow:
    """`seconds` of one call as a row."""
    return EngineRow(
        job.table,
        job.workload,
        contender.what,
        contender.kind,
        contender.own,
        job.threads,
        float(f"{1e3 * seconds / job.parts:.4g}"),
        round(1e-9 * job.call_macs / seconds, 1),
    )


# ------------------------------------------------------------------------------ convolutions


def few_bit_convolutions(channels: int, bits: int, depth: int) -> nn.Sequential:
    """What stands in a network: quantise, convolve, normalise, and again."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        act = SignSTE() if bits == 1 else UniformBipolar(bits)
        weight = SignWeight() if bits == 1 else UniformBipolarWeight(bits)
        layers += [
            QuantConv2d(
                channels, channels, 3, padding=1, bias=False, act=act, weight_quantizer=weight
            ),
            nn.BatchNorm2d(channels),
        ]
    return nn.Sequential(*layers).eval()


def convolutions(
    channels: int, side: int, depth: int, folder: Path, threads: int
) -> list[Contender]:
    """Contenders for `depth` convolutions of one shape in a row."""
    x = torch.randn(1, channels, side, side)
    image = x.numpy()
    contenders = [
        own(what, kind, compile(few_bit_convolutions(channels, bits, depth), x), x, threads)
        for what, kind, bits in (
            ("foveate 1x1 bits", "1x1 bits", 1),
            ("foveate 2x2 bits, path chosen by itself", "2x2 bits", 2),
            ("foveate 8x8 bits (int8 path)", "int8", 8),
        )
    ]
    convs = float_convolutions(channels, depth)
    onnx_file = folder / "convolutions.onnx"
    if write_onnx(convs, side, onnx_file):
        contenders += onnx_peers(onnx_file, image, threads)
    contenders += litert_peers(convs, image, threads)
    contenders += openvino_binary(depth, image, threads)
    floats = nn.Sequential(*convs)
    return contenders + torch_eager(floats, x) + torch_compiled(floats, x)


def own(what: str, kind: str, packed: PackedModel, x: Tensor, threads: int) -> Contender:
    """A whole run of this engine."""
    image = x.numpy()
    return Contender(what, kind, lambda: packed.run(image, threads=threads), own=True)


# ------------------------------------------------------------------------------ whole networks


def binary_twin(x: Tensor, int8_rest: bool) -> PackedModel:
    """ResNet-18 in the real-to-binary shape; its real layers in float, or in 8 bits."""

    def conv(
        inside: int, outside: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> RealToBinaryConv2d:
        return RealToBinaryConv2d(inside, outside, kernel, stride=stride, padding=padding)

    net = binary_resnet18(conv).eval()
    if int8_rest:
        quantize(net, weights=8, activations=8, keep=("layer?.?.conv?",), example=x)
        calibrate(net, [x])
    return compile(net.eval(), x)


def networks(folder: Path, threads: int) -> list[Contender]:
    """Contenders for the ResNet-18."""
    x = torch.randn(1, 3, PICTURE, PICTURE)
    contenders = [
        own(f"foveate, binary, the real layers in {rest}", "1x1 bits", packed, x, threads)
        for rest, packed in (("8 bits", binary_twin(x, True)), ("float", binary_twin(x, False)))
    ]
    net = resnet18().eval()
    onnx_file = folder / "resnet.onnx"
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
        torch.onnx.export(net, (x,), onnx_file, dynamo=True, verbose=False)
        contenders += onnx_peers(onnx_file, x.numpy(), threads)
    return contenders + torch_eager(net, x)  # to compile it takes half a minute


# ------------------------------------------------------------------------------ switching


def switches(folder: Path, threads: int) -> list[Contender]:
    """One call of ``set_bits``; every call chooses another width than the one before."""
    del folder, threads
    x = torch.randn(1, 64, 8, 8)
    packed = compile_modes({f"w{b}a{b}": few_bit_convolutions(64, b, 16) for b in (1, 2, 4)}, x)
    packed.run(x)
    names = itertools.cycle(packed.modes)
    lists = itertools.cycle([[bits] * 16 for bits in (1, 2, 4)])
    return [
        Contender(
            "foveate set_bits, by name", "1x1 bits", lambda: packed.set_bits(next(names)), own=True
        ),
        Contender(
            "foveate set_bits, by list", "1x1 bits", lambda: packed.set_bits(next(lists)), own=True
        ),
    ]
