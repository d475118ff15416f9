"""Multi-branch binary networks: from 8 bits down to 1, each width from the last, all of them 1-bit.

Papers: Sun, Shang, Yang, Wang, "Multi-Precision Quantized Neural Networks via Encoding
Decomposition of {-1,+1}", AAAI 2019 (arXiv 1905.13389), and its journal extension "Quantized Neural
Networks via {-1,+1} Encoding Decomposition and Acceleration", 2021 (arXiv 2106.09886).

An M-bit code without a zero is a sum of digits -1 and +1 with powers of two, so a layer of M-bit
activations and K-bit weights *is* M K binary layers, exactly:

    x . w = 1 / ((2^M - 1)(2^K - 1))  sum_m sum_k 2^(m-1) 2^(k-1) (c_m . d_k)

What is asked here is what accuracy is left at each width, whether coming down bit by bit helps, and
whether the branches, and the packed engine, compute the very same numbers as the quantised net.

    fp-start    full precision, ReLU
    fp          fp-start, trained on for as many epochs as the first width of the chain
    chain-8     fp-start -> 8 bits     (weights and activations alike)
    chain-4     chain-8  -> 4 bits
    ...
    chain-1     chain-2  -> 1 bit
    direct-2    fp-start -> 2 bits     <- the ablation of the chain
    direct-1    fp-start -> 1 bit
    exactness, segmentation, speed     no training: integers, label maps, milliseconds

Every stage starts its learning rate anew and sees the pictures in the order of its width, so
``chain-2`` and ``direct-2`` differ in their first weights only. The range of an activation is that
of the paper: HReLU = clip(x, 0, 1), at 1 bit HTanh = clip(x, -1, 1) (a sign behind HReLU would
always be +1). The first convolution and the last linear layer stay real unless `quantize_all`.
Nothing is chosen by the test pictures: there is no early stop and no best epoch.

The smoke and desk scales are Fashion-MNIST, fixed 10,000 of its training pictures. The paper scale
is ImageNet with ResNet-18, or ``--set data=CIFAR-10`` with the VGG of BNN. Detectors (SSD on
ResNet-18, VOC and COCO) and segmentation nets are trained by ``multi-branch-binary-detection``;
here a segmentation net is checked for exactness only, on street scenes (CamVid) where they are at
hand, else on noise.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from foveate.datasets import catalogue
from foveate.datasets.camvid import CamVid
from foveate.datasets.images import (
    CIFAR10,
    FashionMNIST,
    ImageNet,
    LabelledImages,
    balanced_subset,
)
from foveate.engine import PackedModel
from foveate.engine import compile as compile_packed
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.nn.conv_factory import ConvFactory, plain_conv, plain_linear
from foveate.nn.resnet import resnet18
from foveate.nn.segmentation import EncoderDecoder
from foveate.nn.small_cnn import BNNVGG, MBNMini
from foveate.quantization.layers import clip_latent_weights
from foveate.quantization.multi_branch import (
    MBNConv2d,
    MBNConvTranspose2d,
    MBNLinear,
    MBNRange,
    chain_optimizer,
    decomposed,
)
from foveate.quantization.quantizers import UniformBipolar, UniformBipolarWeight
from foveate.quantization.surgery import quantize
from foveate.report.evidence import (
    Claim,
    Evidence,
    Finding,
    Items,
    Ledger,
    Metrics,
    Result,
    Verdict,
    mean,
    paired_verdict,
)

__all__ = ["CLAIM", "PRESETS", "Config", "run"]

LOSS_AT_8 = 0.7  # points that 8 bits may lose against full precision
LOSS_AT_4 = 1.5  # points that 4 bits may lose against 8

CLAIM = Claim(
    text=(
        "Coming down bit by bit, a network of {-1,+1} branches keeps the accuracy of full "
        "precision at 8 bits and nearly that of 8 bits at 4, and pays most at 1 bit"
    ),
    metric="accuracy",
    direction="higher",
    method="chain-8",
    ablation="fp",
    rule=(
        f"in the mean over seeds, top-1 accuracy at 8 bits is at most {LOSS_AT_8} points below "
        f"full precision, that at 4 bits at most {LOSS_AT_4} points below 8 bits, and that at 1 "
        "bit is the lowest of all widths"
    ),
    published=(
        "ImageNet, ResNet-18, top-1: full precision 68.60 %, 8 bits 68.63, 4 bits 59.57, 1 bit "
        "47.10; CIFAR-10: 91.40, 90.43, 91.15, 90.39"
    ),
    certainty="P",
)

CHECKS = {
    "exactness": "no training: one layer, all widths, strides, paddings; branches and engine",
    "segmentation": "no training: a quantised encoder-decoder and its branches on the same frames",
    "speed": "no training: one layer on one thread, engine and torch",
}

SIDE_BITS = (1, 2, 4)  # widths of the segmentation check
RATES = ((1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (3, 4), (4, 4), (4, 8), (8, 8))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data
        Decides the network too: MBN-mini, the VGG of BNN, ResNet-18.
    data_root
        Folder of data sets (default: foveate's data folder); CamVid is looked for there as well.
        Fashion-MNIST is also found where Debian's package puts it.
    stand_in
        Where the data set is absent, take a few drawn stripes instead (marked simulated).
    per_class
        Training pictures of each class, the same draw always; 0: all.
    test_pictures
        Take the first of the test pictures only; None: all.
    widths
        Bits of the chain, falling.
    direct
        Widths that are also trained straight from ``fp-start``.
    fp_epochs, stage_epochs
        Epochs of ``fp-start``; of ``fp`` and of every width.
    optimizer
        ``adam`` with `lr` throughout, or the paper's: SGD (0.1) from 3 bits on, Adam below.
    weight_norm
        ``clip`` is the paper's, ``tanh_max`` lets ordinary small weights use all levels.
    quantize_all
        Quantise first and last layer too (the weights of the first only: a picture is not coded).
    long
        The larger form of MBN-mini (14.7 M multiply-adds).
    engine_pictures, branch_pictures
        Test pictures on which engine and branches are compared with every trained width.
    exact_bits
        Widths of the check of single layers, all pairs of them.
    speed_rounds
        Rounds of the timing, the median counts; 0: none.
    workers
        Processes that read pictures from disk; None: one per core.
    """

    scale: str
    data: Literal["Fashion-MNIST", "CIFAR-10", "ImageNet"] = "Fashion-MNIST"
    data_root: Path | None = None
    stand_in: bool = False
    per_class: int = 1000
    test_pictures: int | None = None
    widths: tuple[int, ...] = (8, 4, 3, 2, 1)
    direct: tuple[int, ...] = (2, 1)
    fp_epochs: int = 4
    stage_epochs: int = 1
    batch: int = 128
    optimizer: Literal["adam", "paper"] = "adam"
    lr: float = 1e-3
    weight_norm: Literal["clip", "tanh_max"] = "tanh_max"
    quantize_all: bool = False
    long: bool = False
    engine_pictures: int = 10_000
    branch_pictures: int = 1000
    exact_bits: tuple[int, ...] = (1, 2, 3, 4, 8)
    speed_rounds: int = 15
    workers: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in itertools.pairwise(self.widths))
        if not self.widths or not falls or not set(self.widths) <= set(range(1, 9)):
            raise FoveateError(f"widths are bits from 8 to 1 that fall, got {self.widths}")
        if not set(self.direct) <= set(self.widths):
            raise FoveateError(
                f"direct names widths of the chain {self.widths} only, got {self.direct}"
            )
        if min(self.fp_epochs, self.stage_epochs, self.batch) < 1:
            raise FoveateError("fp_epochs, stage_epochs and batch are at least 1")


PRESETS = {
    "smoke": Config(
        scale="smoke",
        stand_in=True,
        per_class=8,
        test_pictures=40,
        fp_epochs=1,
        batch=16,
        branch_pictures=10,
        exact_bits=(1, 3),
        speed_rounds=1,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "long": Config(scale="long", per_class=0, long=True, fp_epochs=10, stage_epochs=3),
    "paper": Config(
        scale="paper",
        data="ImageNet",
        per_class=0,
        widths=(8, 7, 6, 5, 4, 3, 2, 1),
        fp_epochs=90,
        stage_epochs=20,
        batch=256,
        optimizer="paper",
        weight_norm="clip",
        engine_pictures=500,
        branch_pictures=20,
        accelerator="auto",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train every stage under every seed and check what needs no training.

    Finished work is reused, weights of finished stages included. Returns None in all processes of
    a multi-process run but the first.

    Raises
    ------
    FoveateError
        The data set is not there, or is damaged.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        precision=config.precision,
    )
    fabric.launch()
    ledger = Ledger("multi-branch-binary", config, __file__, writer=fabric.is_global_zero)
    data = load_data(config)
    stages = stages_of(config)

    results = []
    jobs = [(arm, seed) for seed in config.seeds for arm in stages]
    jobs += [(arm, config.seeds[0]) for arm in CHECKS]  # nothing is random in these
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def say(what: str, done: int = done) -> None:
            tell(what, done, len(jobs))

        def compute(arm: str = arm, seed: int = seed, say: Tell = say) -> Metrics | Measured:
            if arm == "exactness":
                return exactness(config)
            if arm == "segmentation":
                return segmentation(data.frames)
            if arm == "speed":
                return speed(config.speed_rounds)
            net = trained(arm, seed, data, config, fabric, ledger.folder, say)
            return evaluate(net, stages[arm].bits, data, config, fabric)

        results.append(ledger.result(arm, seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    return Evidence(
        recipe="multi-branch-binary",
        claim=CLAIM,
        verdict=verdict(results),
        arms={**{arm: stage.what for arm, stage in stages.items()}, **CHECKS},
        results=results,
        data=data.what,
        simulated=data.simulated,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, data.frames_are),
        notes=remarks(results),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ stages


@dataclass(frozen=True)
class Stage:
    """One arm that is trained.

    Attributes
    ----------
    what
        In words.
    parent
        Arm whose weights it starts from; None: random ones.
    bits
        Of weights and activations; None: full precision.
    epochs
        How long.
    order
        Stages of equal number see the pictures in the same order.
    """

    what: str
    parent: str | None
    bits: int | None
    epochs: int
    order: int


def stages_of(config: Config) -> dict[str, Stage]:
    """All trained arms, parents before children."""
    first, epochs = config.widths[0], config.stage_epochs
    stages = {
        "fp-start": Stage("full precision; all others start here", None, None, config.fp_epochs, 0),
        "fp": Stage(
            f"fp-start, trained on as long as chain-{first}", "fp-start", None, epochs, first
        ),
    }
    parent = "fp-start"
    for bits in config.widths:
        stages[f"chain-{bits}"] = Stage(f"{parent} at {bits} bits", parent, bits, epochs, bits)
        parent = f"chain-{bits}"
    for bits in config.direct:
        what = f"fp-start at {bits} bits, without the widths between"
        stages[f"direct-{bits}"] = Stage(what, "fp-start", bits, epochs, bits)
    return stages


def limits(bits: int | None, range: MBNRange) -> Callable[[], nn.Module]:
    """Makes the activation behind every BN: ReLU, HReLU or HTanh."""
    if bits == 1 or range == "htanh":
        return nn.Hardtanh
    return nn.ReLU if bits is None else lambda: nn.Hardtanh(0.0, 1.0)


def conv_factory(bits: int, range: MBNRange, norm: Literal["clip", "tanh_max"]) -> ConvFactory:
    """Makes convolutions with `bits` for weights and activations alike."""

    def make(
        in_channels: int, out_channels: int, kernel: int, stride: int, padding: int
    ) -> nn.Module:
        return MBNConv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            w_bits=bits,
            a_bits=bits,
            range=range,
            weight_norm=norm,
        )

    return make


def network(config: Config, bits: int | None) -> nn.Module:
    """The network of a data set at some width; parameters have the same names at every width."""
    norm = config.weight_norm
    range: MBNRange = "htanh" if config.data == "CIFAR-10" else "hrelu"
    act = limits(bits, range)
    conv = plain_conv if bits is None else conv_factory(bits, range, norm)

    def first(i: int, o: int, kernel: int, stride: int, padding: int) -> nn.Module:
        if bits is None or not config.quantize_all:
            return plain_conv(i, o, kernel, stride, padding)
        return MBNConv2d(i, o, kernel, stride, padding, w_bits=bits, a_bits=None, weight_norm=norm)

    def linear(i: int, o: int, bias: bool = True) -> nn.Module:
        if bits is None:
            return plain_linear(i, o)
        return MBNLinear(i, o, bias, w_bits=bits, a_bits=bits, range=range, weight_norm=norm)

    net: nn.Module
    if config.data == "CIFAR-10":
        last = linear if config.quantize_all else plain_linear
        return BNNVGG(conv, linear, first=first, last=last, activation=act)
    if config.data == "Fashion-MNIST":
        net = MBNMini(conv, act, long=config.long)
        if config.quantize_all:
            net.add_module("conv1", first(1, 32, 3, 1 if config.long else 2, 1))
            net.add_module("fc", linear(128, 10))
        return net
    net = resnet18()
    if bits is None:
        return net
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, act())
    width = bits
    quantize(
        net,
        lambda channels: UniformBipolarWeight(width, norm),
        lambda: UniformBipolar(width, range),
        keep=("downsample",) if config.quantize_all else ("first", "last", "downsample"),
        by_name={"conv1": (lambda channels: UniformBipolarWeight(width, norm), None)}
        if config.quantize_all
        else None,
    )
    return net


# ------------------------------------------------------------------------------ training


def trained(
    arm: str, seed: int, data: Data, config: Config, fabric: Fabric, folder: Path, tell: Tell
) -> nn.Module:
    """The network of an arm: read from `folder` if it was trained before, else trained now."""
    stage = stages_of(config)[arm]
    kept = folder / f"{arm}-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(config, stage.bits)
    if kept.is_file():
        net.load_state_dict(load_file(kept))
        return cast(nn.Module, fabric.to_device(net)).eval()
    if stage.parent is not None:
        parent = trained(stage.parent, seed, data, config, fabric, folder, tell)
        net.load_state_dict(parent.state_dict())
    train(net, arm, stage, seed, data, config, fabric, tell)
    if fabric.is_global_zero:
        state = {name: value.detach().cpu() for name, value in net.state_dict().items()}
        with write_whole(kept) as temporary:
            save_file(state, temporary)
    fabric.barrier()
    return net


def train(
    net: nn.Module,
    arm: str,
    stage: Stage,
    seed: int,
    data: Data,
    config: Config,
    fabric: Fabric,
    tell: Tell,
) -> None:
    """Train one stage in place; its seed and `Stage.order` fix the order of the pictures."""
    optimizer: torch.optim.Optimizer
    if config.optimizer == "paper":
        optimizer = chain_optimizer(net, stage.bits or 32)
    else:
        optimizer = torch.optim.Adam(net.parameters(), config.lr)
    model, optimizer = fabric.setup(net, optimizer)
    share = config.batch * fabric.world_size  # every process takes its part of each step
    steps = len(data.train) // share
    if not steps:
        raise FoveateError(
            f"{len(data.train)} training pictures do not fill one step of {share}; give more "
            "pictures per class, a smaller --set batch or fewer devices"
        )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.epochs * steps)
    order = torch.Generator().manual_seed(1000 * seed + stage.order)
    model.train()
    for epoch in range(stage.epochs):
        shuffled = torch.randperm(len(data.train), generator=order)[: steps * share]
        mine = shuffled.view(steps, fabric.world_size, -1)[:, fabric.global_rank].flatten()
        losses = []
        # Another variation of every picture in every epoch and process.
        vary = (1000 * int(order.initial_seed()) + epoch) * fabric.world_size + fabric.global_rank
        for pictures, labels in batches(data.train, mine, config, vary):
            loss = F.cross_entropy(
                model(data.prepare(fabric.to_device(pictures))), fabric.to_device(labels)
            )
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            clip_latent_weights(net)
            losses.append(loss.item())
        average = sum(losses) / len(losses)
        tell(f"{arm}, seed {seed}, epoch {epoch + 1} of {stage.epochs}: loss {average:.2f}")
    net.eval()


# ------------------------------------------------------------------------------ testing

Measured = tuple[Metrics, Items]


@torch.no_grad()
def evaluate(
    net: nn.Module, bits: int | None, data: Data, config: Config, fabric: Fabric
) -> Metrics:
    """Accuracy in percent; of quantised nets, whether engine and branches say the same.

    ``engine_differs`` counts test pictures that the compiled network calls something else,
    ``branches_differ`` numbers among the logits of the decomposed network that are not *equal*.
    ``weight_bytes`` is what a quantised weight takes up in the packed file, in bytes.
    """
    count, right, right_5 = len(data.test), 0, 0
    everything = torch.arange(count)
    said = []
    for pictures, labels in batches(data.test, everything, config, 0):
        logits = net(data.prepare(fabric.to_device(pictures))).cpu()
        best = logits.topk(5, 1).indices == labels[:, None]
        right, right_5 = right + int(best[:, 0].sum()), right_5 + int(best.sum())
        said.append(logits.argmax(1))
    metrics = {"accuracy": 100 * right / count}
    if config.data == "ImageNet":
        metrics["accuracy_top5"] = 100 * right_5 / count
    if bits is None:
        return metrics

    alone = copy.deepcopy(net).cpu()
    branches = decomposed(alone)
    packed: PackedModel | None = None
    differs = differ = seen = 0
    called = torch.cat(said)
    for pictures, _ in batches(data.test, everything[: config.engine_pictures], config, 0):
        x = data.prepare(pictures)
        packed = compile_packed(alone, x[:1]) if packed is None else packed
        answers = cast(Tensor, packed.run(x)).argmax(1)
        differs += int((answers != called[seen : seen + len(x)]).sum())
        rest = max(0, min(len(x), config.branch_pictures - seen))
        if rest:
            differ += int((branches(x[:rest]) != alone(x[:rest])).sum())
        seen += len(x)
    metrics |= {"engine_differs": differs, "branches_differ": differ}
    if packed is not None:
        rows = [row for row in packed.bits_report() if row.weight_bits < 32]
        metrics["weight_bytes"] = sum(r.bytes for r in rows) / sum(r.weights for r in rows)
    return metrics


# ------------------------------------------------------------------------------ exactness


@torch.no_grad()
def exactness(config: Config) -> Metrics:
    """One layer at all pairs of widths: integers of branches and engine against plain sums.

    The oracle is a convolution of the integer codes in float64, which is exact here (sums stay
    below 2^53) and shares nothing with branches or engine.
    """
    draw = torch.Generator().manual_seed(0)
    worst: Metrics = {"cases": 0, "branches_off": 0, "engine_off": 0}
    for a_bits, w_bits in itertools.product(config.exact_bits, repeat=2):
        for stride, padding, channels in itertools.product((1, 2), (0, 1), (13, 70)):
            layer = MBNConv2d(channels, 6, 3, stride, padding, w_bits=w_bits, a_bits=a_bits).eval()
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw))
            x = torch.rand(2, channels, 9, 9, generator=draw) * 2.4 - 1.2
            x[:, ::3, ::2] = 0.0  # a tie at every width
            codes = [
                torch.floor((v.clamp(-1, 1) + 1) / 2 * (2**bits - 1) + 0.5).double()
                for v, bits in ((x, a_bits), (normalised(layer.weight), w_bits))
            ]
            a, w = (
                2 * code - (2**bits - 1) for code, bits in zip(codes, (a_bits, w_bits), strict=True)
            )
            sums = F.conv2d(a, w, None, stride, padding)
            worst["cases"] += 1
            gap = float((layer.decompose().sums(x) - sums).abs().max())
            worst["branches_off"] = max(worst["branches_off"], gap)
            # The engine gives S * scale; one float32 product leaves |S| < 2^22 to be read back.
            scale = float(layer.alpha()[0])
            for path in ("bits", "int8"):
                y = cast(Tensor, compile_packed(nn.Sequential(layer), x, path=path).run(x))
                expected = sums.float() * torch.tensor(scale)
                off = float((y.double() / scale - expected.double() / scale).abs().max())
                worst["engine_off"] = max(worst["engine_off"], off)
    return worst


def normalised(w: Tensor) -> Tensor:
    """``tanh(w) / max |tanh(w)|``."""
    bounded = torch.tanh(w)
    return bounded / bounded.abs().max()


class SegmentationNet(nn.Module):
    """An encoder-decoder, and a transposed convolution beside it that doubles its answer."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        conv, act = conv_factory(bits, "hrelu", "tanh_max"), limits(bits, "hrelu")
        self.body = EncoderDecoder(conv, activation=act)
        self.norm = nn.BatchNorm2d(11)
        self.deconv = MBNConvTranspose2d(11, 11, 4, 2, 1, w_bits=bits, a_bits=bits, range="hrelu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        labels = self.body(x)
        return labels, self.deconv(self.norm(labels))


@torch.no_grad()
def segmentation(frames: Tensor) -> Metrics:
    """Quantised nets of random weights and their branches on the same frames.

    Counts numbers that are not equal (``branches_differ``), and pixels that the engine labels
    otherwise (``engine_differs``; of the part without the transposed convolution, which the engine
    does not have).
    """
    found: Metrics = {"branches_differ": 0, "engine_differs": 0, "pixels": 0}
    for bits in SIDE_BITS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(bits)
            net = SegmentationNet(bits)
        height, width = (-(-side // net.body.multiple) * net.body.multiple for side in
                         frames.shape[-2:])  # fmt: skip
        x = F.pad(
            frames.float() / 127.5 - 1,
            (0, width - frames.shape[-1], 0, height - frames.shape[-2]),
        )
        net.train()(x)  # running averages of the normalisations
        net.eval()
        twin = decomposed(net)
        for ours, theirs in zip(net(x), twin(x), strict=True):
            found["branches_differ"] += int((ours != theirs).sum())
        packed = compile_packed(net.body, x[:1])
        called = cast(Tensor, packed.run(x)).argmax(1)
        found["engine_differs"] += int((called != net.body(x).argmax(1)).sum())
        found["pixels"] += called.numel()
    return found


# ------------------------------------------------------------------------------ speed


@torch.no_grad()
def speed(rounds: int) -> Measured:
    """Time of one 64 -> 64 convolution, 3 x 3, on 56 x 56 pixels and one thread, in milliseconds.

    ``ms_engine`` is the whole layer at 1 x 1 bits (quantise and pack a float input, convolve, BN),
    ``ms_torch`` the convolution alone in float32, channels last. The items are the convolution
    alone on the forced bit path for rising M K; `growth` is the slope of log time over log M K.
    """
    x = torch.rand(1, 64, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if not rounds:
        return {}, {}
    packed = {
        pair: compile_packed(
            nn.Sequential(
                MBNConv2d(64, 64, 3, padding=1, a_bits=pair[0], w_bits=pair[1]), nn.BatchNorm2d(64)
            ).eval(),
            x,
            path="bits",
        )
        for pair in RATES
    }
    try:
        packed[1, 1].run(x, executor="native")
    except FoveateError:
        return {}, {}  # this build has no native engine: nothing to time
    real = nn.Conv2d(64, 64, 3, padding=1, bias=False).eval()
    real = real.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = x.contiguous(memory_format=torch.channels_last)
    whole: list[float] = []
    theirs: list[float] = []
    single: dict[tuple[int, int], list[float]] = {pair: [] for pair in RATES}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):  # in turns: whatever disturbs the machine disturbs all
            times = []
            for _ in range(5):
                start = time.perf_counter()
                real(pictures)
                times.append(time.perf_counter() - start)
            theirs.append(min(times))
            for pair, model in packed.items():
                nodes = model.profile(x, threads=1, repeats=5)
                if pair == (1, 1):
                    whole.append(sum(node.seconds for node in nodes))
                single[pair].append(sum(node.seconds for node in nodes if node.op == "conv"))
    finally:
        torch.set_num_threads(threads)
    products = [float(m * k) for m, k in RATES]
    ms = [1000 * median(single[pair]) for pair in RATES]
    ours, float32 = 1000 * median(whole), 1000 * median(theirs)
    metrics = {
        "ms_engine": ours,
        "ms_torch": float32,
        "ratio": float32 / ours,
        "growth": slope([math.log(p) for p in products], [math.log(t) for t in ms]),
    }
    return metrics, {"products": products, "ms_bits": ms}


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def slope(x: list[float], y: list[float]) -> float:
    """Of the straight line with least squares."""
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return rise / sum((a - x_mean) ** 2 for a in x)


# ------------------------------------------------------------------------------ verdicts


def ladder(results: list[Result]) -> list[str]:
    """``fp`` and the widths of the chain, as far as there are results."""
    arms = dict.fromkeys(result.arm for result in results)
    return [arm for arm in arms if arm == "fp" or arm.startswith("chain-")]


def verdict(results: list[Result]) -> Verdict:
    """The rule of the specification (`CLAIM.rule`)."""
    steps = ladder(results)
    seeds = [{r.seed for r in results if r.arm == arm} for arm in steps]
    top = {arm: mean(results, arm, "accuracy") for arm in steps}
    if (
        not {"fp", "chain-8", "chain-4", "chain-1"} <= set(steps)
        or any(of_arm != seeds[0] for of_arm in seeds)
        or len(seeds[0]) < 3
        or any(math.isnan(accuracy) for accuracy in top.values())
    ):
        return "inconclusive"
    rounding = 1e-9
    kept = (
        top["chain-8"] >= top["fp"] - LOSS_AT_8 - rounding
        and top["chain-4"] >= top["chain-8"] - LOSS_AT_4 - rounding
        and all(top["chain-1"] < top[arm] for arm in steps if arm != "chain-1")
    )
    return "reproduced" if kept else "not reproduced"


def zero(values: list[float]) -> Verdict:
    """Exactness needs no seeds: one difference refutes it."""
    if not values or any(math.isnan(value) for value in values):
        return "inconclusive"
    return "reproduced" if not any(values) else "not reproduced"


def findings(results: list[Result], frames_are: str) -> list[Finding]:
    """The chain, exactness and speed, each with a verdict of its own."""

    def metric(arm: str, name: str) -> float:
        return mean(results, arm, name)

    def values(*names: str) -> list[float]:
        trained_arms = [r for r in results if r.arm not in CHECKS]
        return [r.metrics[name] for r in trained_arms for name in names if name in r.metrics]

    found = [
        Finding(
            "At 2 bits, coming from the next higher width beats coming from full precision, in "
            f"the mean and under every seed: {metric('chain-2', 'accuracy'):.2f} against "
            f"{metric('direct-2', 'accuracy'):.2f} %.",
            paired_verdict(results, "accuracy", "chain-2", "direct-2", "higher", seed_share=1.0),
        ),
        Finding(
            "A layer's branches and the engine give its integers, in "
            f"{metric('exactness', 'cases'):g} cases of widths, strides, paddings and channels: "
            f"largest differences {metric('exactness', 'branches_off'):g} and "
            f"{metric('exactness', 'engine_off'):g}.",
            zero([metric("exactness", "branches_off"), metric("exactness", "engine_off")]),
        ),
        Finding(
            "Every trained network, compiled, calls every test picture what it did in torch, and "
            f"its branches give the same logits: {sum(values('engine_differs')):g} pictures and "
            f"{sum(values('branches_differ')):g} numbers differ.",
            zero(values("engine_differs", "branches_differ")),
        ),
        Finding(
            f"A segmentation net and its branches agree on {frames_are}: "
            f"{metric('segmentation', 'branches_differ'):g} numbers differ, and "
            f"{metric('segmentation', 'engine_differs'):g} of "
            f"{metric('segmentation', 'pixels'):g} pixels in the engine.",
            zero([metric("segmentation", n) for n in ("branches_differ", "engine_differs")]),
        ),
    ]
    ratio, growth = metric("speed", "ratio"), metric("speed", "growth")
    found += [
        Finding(
            f"A whole layer of 1 x 1 bits in the engine is faster than torch's float32 convolution "
            f"on one thread: {ratio:.1f} times.",
            "inconclusive" if math.isnan(ratio) else _said(ratio > 1),
        ),
        Finding(
            "On the forced bit path time grows about with the number M K of branches: with its "
            f"{growth:.2f}th power (about: 0.7 to 1.3).",
            "inconclusive" if math.isnan(growth) else _said(0.7 <= growth <= 1.3),
        ),
    ]
    return found


def _said(true: bool) -> Verdict:
    return "reproduced" if true else "not reproduced"


def remarks(results: list[Result]) -> list[str]:
    """Gaps of the ladder, and what has no verdict."""
    steps = ladder(results)
    top = {arm: mean(results, arm, "accuracy") for arm in steps}
    said = [
        "Points below full precision: "
        + ", ".join(f"{arm} {top['fp'] - top[arm]:.2f}" for arm in steps if arm != "fp")
        + "."
    ]
    one, other = mean(results, "chain-1", "accuracy"), mean(results, "direct-1", "accuracy")
    if not math.isnan(one - other):
        said.append(f"At 1 bit the chain gives {one:.2f} %, the direct way {other:.2f} %.")
    timed = next((r for r in results if r.arm == "speed" and r.items), None)
    if timed is not None:
        pairs = zip(RATES, timed.items["ms_bits"], strict=True)
        said.append(
            "Milliseconds of one convolution on the bit path, M x K: "
            + ", ".join(f"{m} x {k} {ms:.2f}" for (m, k), ms in pairs)
            + "."
        )
    return said


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size in memory: ``(N, C, H, W)`` uint8, labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """All that is trained and tested on; `mean` and `std` come from the training pictures."""

    what: str
    train: Pictures | ImageNet
    test: Pictures | ImageNet
    mean: Tensor
    std: Tensor
    simulated: bool
    frames: Tensor
    frames_are: str

    def prepare(self, pictures: Tensor) -> Tensor:
        """Pictures, uint8, as the network takes them."""
        mean, std = self.mean.to(pictures.device), self.std.to(pictures.device)
        return (pictures.float() / 255 - mean) / std


def batches(
    source: Pictures | ImageNet, order: Tensor, config: Config, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and labels in the order given, `Config.batch` at a time."""
    if isinstance(source, Pictures):
        for chosen in torch.split(order, config.batch):
            yield source.images[chosen], source.labels[chosen]
        return
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    yield from DataLoader(
        source,  # type: ignore[arg-type]  # it has a length and items, which is all that is asked
        config.batch,
        sampler=order.tolist(),
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),  # seeds the workers' variations
    )


def load_data(config: Config) -> Data:
    """Read the data set that `config` names."""
    root = config.data_root or catalogue.data_root()
    frames, frames_are = street_frames(root)
    if config.data == "ImageNet":
        shape = (3, 1, 1)
        return Data(
            "ImageNet, 224 x 224, tested on its validation pictures",
            ImageNet(root, "train", transform=training_view),
            ImageNet(root, "val", transform=test_view),
            torch.tensor(IMAGENET_MEAN).view(shape),
            torch.tensor(IMAGENET_STD).view(shape),
            False,
            frames,
            frames_are,
        )
    loader: type[FashionMNIST | CIFAR10]
    loader = FashionMNIST if config.data == "Fashion-MNIST" else CIFAR10
    place = loader.card.locate(root)
    simulated = place is None
    if place is not None:
        train, test = (pictures_of(loader(place, split)) for split in ("train", "test"))
    elif config.stand_in:
        train, test = (stripes(seed, config) for seed in (1, 2))
    else:
        debian = (
            "install Debian's package dataset-fashion-mnist, or " if loader.card.elsewhere else ""
        )
        raise FoveateError(
            f"{loader.card.title} is not below {root}: {debian}get it from {loader.card.url}, lay "
            f"it out as {loader.card.layout}, and name the folder with --set data_root=FOLDER"
        )
    if config.per_class:
        chosen = torch.from_numpy(balanced_subset(train.labels.numpy(), config.per_class, seed=0))
        train = Pictures(train.images[chosen], train.labels[chosen])
    if config.test_pictures is not None:
        test = Pictures(test.images[: config.test_pictures], test.labels[: config.test_pictures])
    values = train.images.float() / 255
    return Data(
        f"{'drawn stripes' if simulated else config.data}, {len(train)} training and "
        f"{len(test)} test pictures",
        train,
        test,
        values.mean((0, 2, 3)).view(-1, 1, 1),
        values.std((0, 2, 3)).view(-1, 1, 1),
        simulated,
        frames,
        frames_are,
    )


def pictures_of(found: LabelledImages) -> Pictures:
    """As tensors."""
    images, labels = found.arrays()
    return Pictures(torch.from_numpy(images), torch.from_numpy(labels))


def stripes(seed: int, config: Config) -> Pictures:
    """Noisy stripes of ten directions, in the shape of the data set that is absent."""
    channels, side = (1, 28) if config.data == "Fashion-MNIST" else (3, 32)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat(max(config.per_class, 4))
    angle = labels * (math.pi / 10)
    phase = 2 * math.pi * torch.rand(len(labels), generator=draw)
    at = torch.arange(side, dtype=torch.float32)
    across = (
        angle.cos()[:, None, None] * at[:, None] + angle.sin()[:, None, None] * at[None]
    ) + phase[:, None, None]
    noise = torch.randn(len(labels), channels, side, side, generator=draw)
    grey = 128 + 80 * across.sin()[:, None] + 20 * noise
    return Pictures(grey.clamp(0, 255).to(torch.uint8), labels)


def street_frames(root: Path) -> tuple[Tensor, str]:
    """Two frames of CamVid, uint8 ``(2, 3, H, W)``; noise where there is no CamVid."""
    if CamVid.card.find(root).present:
        scenes = CamVid(root, "test")
        return torch.stack([scenes[index][0] for index in (0, len(scenes) // 2)]), "CamVid frames"
    noise = torch.randint(256, (2, 3, 90, 120), generator=torch.Generator().manual_seed(0))
    return noise.to(torch.uint8), "frames of noise (CamVid is not at hand)"


def training_view(picture: Tensor) -> Tensor:
    """A random part of a photograph, 8 to 100 % of its area, mirrored half the time, 224 x 224."""
    height, width = picture.shape[-2:]
    for _ in range(10):
        area = height * width * torch.empty(()).uniform_(0.08, 1.0).item()
        ratio = math.exp(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h = w = min(height, width)
    top = int(torch.randint(height - h + 1, ()))
    left = int(torch.randint(width - w + 1, ()))
    view = resized(picture[:, top : top + h, left : left + w], 224, 224)
    return view.flip(-1) if torch.rand(()) < 0.5 else view


def test_view(picture: Tensor) -> Tensor:
    """The middle 224 x 224 of a photograph whose shorter side is made 256."""
    height, width = picture.shape[-2:]
    scale = 256 / min(height, width)
    view = resized(picture, max(256, round(height * scale)), max(256, round(width * scale)))
    top, left = (view.shape[-2] - 224) // 2, (view.shape[-1] - 224) // 2
    return view[:, top : top + 224, left : left + 224]


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing; uint8 ``(C, H, W)``."""
    view = F.interpolate(
        picture[None].float(), (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return view[0].round().clamp(0, 255).to(torch.uint8)
