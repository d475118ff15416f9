"""Multi-branch binary detectors: SSD from 8 bits down, each width from the last, all of them 1-bit.

Papers: Sun, Shang, Yang, Wang, "Multi-Precision Quantized Neural Networks via Encoding
Decomposition of {-1,+1}", AAAI 2019 (arXiv 1905.13389), whose detector is SSD on ResNet-18, started
from ImageNet's weights, trained on VOC2007+2012 and tested on VOC2007; and the journal extension
(2021, arXiv 2106.09886), which adds semantic segmentation. The method is that of the recipe
``multi-branch-binary``: a layer of M-bit activations and K-bit weights is M K binary layers

    x . w = 1 / ((2^M - 1)(2^K - 1))  sum_m sum_k 2^(m-1) 2^(k-1) (c_m . d_k)

exactly, and the network comes down bit by bit. What is asked here is what is left of a *detector*,
whose boxes are real numbers that few bits could spoil, and whether branches and packed engine find
the very same objects.

    fp-start    full precision, ReLU
    fp          fp-start, trained on for as many epochs as the first width of the chain
    chain-8     fp-start -> 8 bits     (weights and activations alike)
    chain-6     chain-8  -> 6 bits     ... and so on down

1x1 shortcuts stay real, and so do the first convolution and the heads unless `quantize_all`; all
other convolutions, the extra layers of SSD among them, have few bits. Every stage starts its
learning rate anew. Nothing is chosen by the test pictures: no early stop, no best epoch.

Settings (`data` and `task`):

- ``shapes``: squares, discs and triangles on noise, *simulated*; a small SSD (or FCN) at 64x64.
- ``VOC``, detection: SSD on ResNet-18, VOC07+12 trainval, VOC07 test (P). Its 300x300 pixels and
  its schedule are those of SSD, its mAP is that of 11 points, usual for VOC07 (D: not stated).
- ``COCO``, detection: the same net with SSD's priors for COCO, train2017 and val2017. The
  conference paper has no such figures: for comparison with others (D).
- ``VOC``, segmentation: VOC2012 train and val, mean IoU. Which net the journal used is not known
  here; ResNet-18 with the heads of FCN-8s stands in (D).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from foveate.datasets import catalogue
from foveate.datasets.coco import COCO
from foveate.datasets.detection import Detections, coco_precision, voc_precision
from foveate.datasets.pictures import Objects
from foveate.datasets.scene_views import label_view, mirror, squeeze, training_view
from foveate.datasets.voc import VOCDetection, VOCSegmentation
from foveate.engine import PackedModel
from foveate.engine import compile as compile_packed
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.nn.fcn import FCN
from foveate.nn.prior_boxes import SSD300_COCO, SSD300_VOC, PriorGrid, prior_boxes
from foveate.nn.resnet import BasicBlock, ResNet, load_state, resnet18
from foveate.nn.ssd import SSD, FeatureMaps, MultiBoxLoss, detect
from foveate.quantization.layers import clip_latent_weights
from foveate.quantization.multi_branch import chain_optimizer, decomposed
from foveate.quantization.quantizers import UniformBipolar, UniformBipolarWeight
from foveate.quantization.surgery import quantize
from foveate.report.evidence import (
    Claim,
    Evidence,
    Finding,
    Ledger,
    Metrics,
    Result,
    Verdict,
    mean,
    paired_verdict,
)
from foveate.scenes.segmentation_accuracy import SegmentationScore
from foveate.simulate.shapes import KINDS, SIDE, Shapes

__all__ = ["CLAIM", "PRESETS", "Config", "run"]

LOSS_AT_8 = 1.5  # points that 8 bits may lose against full precision; published: 0.41
LOSS_AT_5 = 10.0  # points that 5 bits may lose against full precision; published: 9.69

CLAIM = Claim(
    text=(
        "Coming down bit by bit, an SSD detector of {-1,+1} branches keeps the average precision "
        "of full precision at 8 bits and most of it at 5"
    ),
    metric="mAP",
    direction="higher",
    method="chain-8",
    ablation="fp",
    rule=(
        f"in the mean over seeds, mAP at 8 bits is at most {LOSS_AT_8} points below full "
        f"precision, and that at 5 bits at most {LOSS_AT_5:g} points below it"
    ),
    published=(
        "SSD on ResNet-18, VOC07+12 to VOC07 test, mAP: full precision 63.92 %, 8 bits 63.51, 6 "
        "bits 61.31, 5 bits 54.23"
    ),
    certainty="P",
)
SEGMENTATION_CLAIM = dataclasses.replace(
    CLAIM,
    text=(
        "Coming down bit by bit, a segmentation net of {-1,+1} branches keeps the mean IoU of full "
        "precision at 8 bits and most of it at 5"
    ),
    metric="mIoU",
    rule=CLAIM.rule.replace("mAP", "mean IoU"),
    published=None,
    certainty="D",
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = 255
# Simulated pictures of 64 x 64: objects of 10 to 36 pixels.
SHAPES_GRID = PriorGrid(
    SIDE, (16, 8, 4, 2), (4.0, 8.0, 16.0, 32.0), (8, 14, 22, 32, 44), ((2.0,),) * 4
)

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Task = Literal["detection", "segmentation"]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    task, data
        What is learned from what; see the module. COCO has detection only.
    data_root
        Folder of data sets (default: foveate's data folder).
    weights
        ImageNet's weights of ResNet-18 (safetensors or a torch file), for VOC and COCO.
    random_start
        Start VOC or COCO from random weights instead, which is not the published setting.
    pictures, test_pictures
        Drawn pictures to train on; test pictures, the first ones (None: all; of drawn ones 500).
    side
        Of the pictures that a segmentation net sees; detectors have that of their priors.
    widths
        Bits of the chain, falling.
    fp_epochs, stage_epochs
        Epochs of ``fp-start``; of ``fp`` and of every width.
    optimizer
        ``adam`` with `lr` throughout, or ``sgd`` with `lr`, momentum 0.9 and, in full precision,
        weight decay 5e-4 (SSD's), and Adam with 1e-3 at 1 and 2 bits.
    schedule
        ``cosine``, or ``steps``: a tenth after 2/3 and again after 5/6 of a stage (SSD's).
    augment
        The variations of SSD; else a detector's pictures are mirrored only. A segmentation net's
        are scaled, mirrored and cut in any case.
    weight_norm
        ``clip`` is the paper's, ``tanh_max`` lets ordinary small weights use all levels.
    quantize_all
        Quantise the first convolution (its weights) and the heads too.
    engine_pictures, branch_pictures
        Test pictures on which engine and branches are compared with every trained width.
    workers
        Processes that read pictures from disk; None: one per core.
    """

    scale: str
    task: Task = "detection"
    data: Literal["shapes", "VOC", "COCO"] = "shapes"
    data_root: Path | None = None
    weights: Path | None = None
    random_start: bool = False
    pictures: int = 2000
    test_pictures: int | None = None
    side: int = 64
    widths: tuple[int, ...] = (8, 6, 5, 2)
    fp_epochs: int = 14
    stage_epochs: int = 7
    batch: int = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3
    schedule: Literal["cosine", "steps"] = "cosine"
    augment: bool = False
    weight_norm: Literal["clip", "tanh_max"] = "tanh_max"
    quantize_all: bool = False
    engine_pictures: int = 200
    branch_pictures: int = 20
    workers: int | None = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in itertools.pairwise(self.widths))
        if not self.widths or not falls or not set(self.widths) <= set(range(1, 9)):
            raise FoveateError(f"widths are bits from 8 to 1 that fall, got {self.widths}")
        if min(self.fp_epochs, self.stage_epochs, self.batch, self.pictures) < 1:
            raise FoveateError("fp_epochs, stage_epochs, batch and pictures are at least 1")
        if self.test_pictures is not None and self.test_pictures < 1:
            raise FoveateError(f"test_pictures is at least 1, got {self.test_pictures}")
        if self.task == "segmentation" and (self.data == "COCO" or self.side % 32):
            raise FoveateError(
                "segmentation has data 'shapes' or 'VOC' and a side in multiples of 32, got "
                f"{self.data!r} and {self.side}"
            )


PRESETS = {
    "smoke": Config(
        scale="smoke",
        pictures=32,
        test_pictures=8,
        fp_epochs=1,
        stage_epochs=1,
        batch=16,
        widths=(8, 5, 2),
        engine_pictures=4,
        branch_pictures=2,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    # 120,000 steps of 32 pictures are 232 epochs of VOC07+12's 16,551; for COCO 65 are 240,000.
    "paper": Config(
        scale="paper",
        data="VOC",
        widths=(8, 7, 6, 5),
        fp_epochs=232,
        stage_epochs=20,
        optimizer="sgd",
        lr=1e-3,
        schedule="steps",
        augment=True,
        weight_norm="clip",
        side=512,
        engine_pictures=100,
        branch_pictures=4,
        workers=None,
        accelerator="auto",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train every stage under every seed.

    Finished work is reused, weights of finished stages included. Returns None in all processes of
    a multi-process run but the first.

    Raises
    ------
    FoveateError
        The data set or the weights are not there, or are damaged.
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
    name = "multi-branch-binary-detection"
    ledger = Ledger(name, config, __file__, writer=fabric.is_global_zero)
    data = load_data(config)
    stages = stages_of(config)

    results = []
    jobs = [(arm, seed) for seed in config.seeds for arm in stages]
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def say(what: str, done: int = done) -> None:
            tell(what, done, len(jobs))

        def compute(arm: str = arm, seed: int = seed, say: Tell = say) -> Metrics:
            net = trained(arm, seed, data, config, fabric, ledger.folder, say)
            return evaluate(net, stages[arm].bits, data, config, fabric)

        results.append(ledger.result(arm, seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    claim = CLAIM if config.task == "detection" else SEGMENTATION_CLAIM
    return Evidence(
        recipe=name,
        claim=claim,
        verdict=verdict(results, claim.metric),
        arms={arm: stage.what for arm, stage in stages.items()},
        results=results,
        data=data.what,
        simulated=config.data == "shapes",
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, claim.metric),
        notes=remarks(results, claim.metric),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ stages


@dataclass(frozen=True)
class Stage:
    """One arm: its weights start from those of `parent`; None: from the net's first ones.

    Stages of equal `order` see the pictures in the same order and varied in the same way.
    """

    what: str
    parent: str | None
    bits: int | None
    epochs: int
    order: int


def stages_of(config: Config) -> dict[str, Stage]:
    """All arms, parents before children."""
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
    return stages


def network(config: Config, bits: int | None, classes: int) -> SSD | FCN:
    """The net of a setting at some width; parameters have the same names at every width."""
    net: SSD | FCN
    if config.data == "shapes":
        small = ResNet(BasicBlock, (1, 1, 1), (32, 64, 128), classes=1)
        trunk = FeatureMaps(small, ("layer1", "layer2", "layer3"))
        grid, extra, doublings = SHAPES_GRID, 64, 2
    else:
        large = resnet18()
        if bits is None and config.weights is not None:
            load_state(large, config.weights)
        trunk = FeatureMaps(large, ("layer2", "layer3", "layer4"))
        grid, extra, doublings = SSD300_COCO if config.data == "COCO" else SSD300_VOC, 256, 3
    if config.task == "detection":
        net = SSD(trunk, classes, grid, extra=extra)
    else:
        net = FCN(trunk, 1 + classes, doublings)
    if bits is None:
        return net
    # The range is HReLU = clip(x, 0, 1); at 1 bit HTanh, as a sign behind it would be +1 always.
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Hardtanh(-1.0 if bits == 1 else 0.0, 1.0))
    norm = config.weight_norm

    def weights(channels: int) -> UniformBipolarWeight:
        return UniformBipolarWeight(bits, norm)

    heads = [] if config.quantize_all else ["first", "classifiers.*"]
    if config.task == "detection" and not config.quantize_all:
        heads.append("locators.*")
    quantize(
        net,
        weights,
        lambda: UniformBipolar(bits, "hrelu"),
        keep=("downsample", *heads),
        by_name={"trunk.conv1": (weights, None)} if config.quantize_all else None,
    )
    return net


# ------------------------------------------------------------------------------ training


def trained(
    arm: str, seed: int, data: Data, config: Config, fabric: Fabric, folder: Path, tell: Tell
) -> SSD | FCN:
    """The network of an arm: read from `folder` if it was trained before, else trained now."""
    stage = stages_of(config)[arm]
    kept = folder / f"{arm}-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(config, stage.bits, data.classes)
    if kept.is_file():
        net.load_state_dict(load_file(kept))
        return cast("SSD | FCN", fabric.to_device(net)).eval()
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
    net: SSD | FCN,
    arm: str,
    stage: Stage,
    seed: int,
    data: Data,
    config: Config,
    fabric: Fabric,
    tell: Tell,
) -> None:
    """Train one stage in place; its seed and `Stage.order` fix order and variations."""
    share = config.batch * fabric.world_size  # every process takes its part of each step
    steps = len(data.train) // share
    if not steps:
        raise FoveateError(
            f"{len(data.train)} training pictures do not fill one step of {share}; give a smaller "
            "--set batch or fewer devices"
        )
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(net.parameters(), config.lr)
    elif stage.bits is None:
        optimizer = torch.optim.SGD(net.parameters(), config.lr, 0.9, weight_decay=5e-4)
    else:
        optimizer = chain_optimizer(net, stage.bits, config.lr if stage.bits > 2 else None)
    model, optimizer = fabric.setup(net, optimizer)
    loss_of = fabric.to_device(task_loss(net))
    total = stage.epochs * steps
    schedule: torch.optim.lr_scheduler.LRScheduler
    if config.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    else:
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [total * 2 // 3, total * 5 // 6])
    order = torch.Generator().manual_seed(1000 * seed + stage.order)
    model.train()
    for epoch in range(stage.epochs):
        shuffled = torch.randperm(len(data.train), generator=order)[: steps * share]
        mine = shuffled.view(steps, fabric.world_size, -1)[:, fabric.global_rank].flatten()
        vary = (1000 * seed + stage.order, epoch)
        losses = []
        for batch in batches(data.train, mine, config, vary):
            loss = loss_of(
                model(prepare(fabric.to_device(batch.pictures))), fabric.to_device(batch.targets)
            )
            if not math.isfinite(loss.item()):
                raise FoveateError(
                    f"{arm}, seed {seed} diverged in epoch {epoch + 1}, its loss is "
                    f"{loss.item()}; take a smaller learning rate: --set lr=..."
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


class DetectionLoss(nn.Module):
    """MultiBox loss of what an SSD said."""

    def __init__(self, net: SSD) -> None:
        super().__init__()
        self.gather, self.loss = net.gather, MultiBoxLoss(prior_boxes(net.grid))

    def forward(self, said: Sequence[Tensor], targets: list[tuple[Tensor, Tensor]]) -> Tensor:
        """A scalar."""
        locations, scores = self.gather([part.float() for part in said])
        loss: Tensor = self.loss(locations, scores, targets)
        return loss


def task_loss(net: SSD | FCN) -> nn.Module:
    """Of what the net said, given targets."""
    return DetectionLoss(net) if isinstance(net, SSD) else nn.CrossEntropyLoss(ignore_index=VOID)


def prepare(pictures: Tensor) -> Tensor:
    """Pictures, uint8, as the network takes them: by ImageNet's mean and deviation."""
    mean_, std = (
        torch.tensor(v, device=pictures.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (pictures.float() / 255 - mean_) / std


# ------------------------------------------------------------------------------ testing


@torch.no_grad()
def evaluate(
    net: SSD | FCN, bits: int | None, data: Data, config: Config, fabric: Fabric
) -> Metrics:
    """Average precision or mean IoU in percent; of quantised nets, the comparison of `compared`."""
    everything = torch.arange(len(data.test))
    found, score = [], SegmentationScore(1 + data.classes, VOID, width=0)
    priors = fabric.to_device(prior_boxes(net.grid)) if isinstance(net, SSD) else torch.empty(0)
    for batch in batches(data.test, everything, config, None):
        said = net(prepare(fabric.to_device(batch.pictures)))
        if isinstance(net, SSD):
            answers = detect(*net.gather(said), priors)
            for answer, (height, width) in zip(answers, batch.sizes, strict=True):
                scale = torch.tensor([width, height, width, height])
                parts = (answer.boxes.cpu() * scale, answer.labels, answer.scores)
                found.append(Detections(*(part.cpu().numpy() for part in parts)))
        else:
            score.add(batch.targets.numpy(), said.argmax(1).cpu().numpy())
    metrics: Metrics = {}
    if isinstance(net, FCN):
        metrics["mIoU"] = 100 * score.result().miou
    elif config.data == "COCO":
        table = coco_precision(found, data.truth(), data.classes)
        metrics |= {
            "mAP": 100 * float(np.nanmean(table)),
            "AP50": 100 * float(np.nanmean(table[0])),
        }
    else:
        kind: Literal["11-point", "area"] = "11-point" if config.data == "VOC" else "area"
        of_class = voc_precision(found, data.truth(), data.classes, interpolation=kind)
        metrics["mAP"] = 100 * float(np.nanmean(of_class))
    return metrics if bits is None else metrics | compared(net, data, config)


@torch.no_grad()
def compared(net: SSD | FCN, data: Data, config: Config) -> Metrics:
    """A quantised net beside its branches and its compiled form, on test pictures.

    ``branches_differ`` counts numbers of the decomposed network's answer that are not *equal*.
    ``engine_differs`` counts pictures in which a detector finds other objects (`Detected.agrees`),
    or pixels that a segmentation net calls something else. ``weight_bytes`` is what a quantised
    weight takes up in the packed file.
    """
    alone = copy.deepcopy(net).cpu().eval()
    branches = decomposed(alone)
    packed: PackedModel | None = None
    differ = differs = seen = 0
    some = torch.arange(min(len(data.test), max(config.engine_pictures, config.branch_pictures)))
    priors = prior_boxes(alone.grid) if isinstance(alone, SSD) else torch.empty(0)
    for batch in batches(data.test, some, config, None):
        x = prepare(batch.pictures)
        ours = alone(x)
        rest = max(0, min(len(x), config.branch_pictures - seen))
        if rest:
            theirs = branches(x[:rest])
            for one, other in zip(as_tuple(ours), as_tuple(theirs), strict=True):
                differ += int((one[:rest] != other).sum())
        rest = max(0, min(len(x), config.engine_pictures - seen))
        if rest:
            packed = compile_packed(alone, x[:1]) if packed is None else packed
            answer = packed.run(x[:rest])
            if isinstance(alone, SSD):
                pairs = [
                    detect(*alone.gather([part[:rest] for part in as_tuple(said)]), priors)
                    for said in (ours, answer)
                ]
                differs += sum(not a.agrees(b) for a, b in zip(*pairs, strict=True))
            else:
                differs += int((as_tuple(answer)[0].argmax(1) != ours[:rest].argmax(1)).sum())
        seen += len(x)
    metrics: Metrics = {"branches_differ": differ, "engine_differs": differs}
    if packed is not None:
        rows = [row for row in packed.bits_report() if row.weight_bits < 32]
        metrics["weight_bytes"] = sum(r.bytes for r in rows) / sum(r.weights for r in rows)
    return metrics


def as_tuple(said: Any) -> tuple[Tensor, ...]:
    """Answers of nets with one output and with several alike."""
    return (said,) if isinstance(said, Tensor) else tuple(said)


# ------------------------------------------------------------------------------ verdicts


def ladder(results: list[Result]) -> list[str]:
    """``fp`` and the widths of the chain, as far as there are results."""
    arms = dict.fromkeys(result.arm for result in results)
    return [arm for arm in arms if arm == "fp" or arm.startswith("chain-")]


def verdict(results: list[Result], metric: str = "mAP") -> Verdict:
    """The rule of `CLAIM`."""
    steps = ladder(results)
    seeds = [{r.seed for r in results if r.arm == arm} for arm in steps]
    top = {arm: mean(results, arm, metric) for arm in steps}
    if (
        not {"fp", "chain-8", "chain-5"} <= set(steps)
        or any(of_arm != seeds[0] for of_arm in seeds)
        or len(seeds[0]) < 3
        or any(math.isnan(value) for value in top.values())
    ):
        return "inconclusive"
    rounding = 1e-9
    kept = (
        top["chain-8"] >= top["fp"] - LOSS_AT_8 - rounding
        and top["chain-5"] >= top["fp"] - LOSS_AT_5 - rounding
    )
    return "reproduced" if kept else "not reproduced"


def findings(results: list[Result], metric: str = "mAP") -> list[Finding]:
    """The cost of the fewest bits; exactness, which needs no seeds: one difference refutes it."""

    def total(name: str) -> tuple[float, Verdict]:
        values = [r.metrics[name] for r in results if name in r.metrics]
        if not values or any(math.isnan(value) for value in values):
            return math.nan, "inconclusive"
        return sum(values), "not reproduced" if any(values) else "reproduced"

    branches, same_branches = total("branches_differ")
    engine, same_engine = total("engine_differs")
    steps = ladder(results)
    last = steps[-1] if len(steps) > 1 else "chain-8"
    return [
        Finding(
            f"The fewest bits cost: {metric} of {last} is below that of full precision, in the "
            f"mean and under most seeds: {mean(results, last, metric):.2f} against "
            f"{mean(results, 'fp', metric):.2f} %.",
            paired_verdict(results, metric, last, "fp", "lower"),
        ),
        Finding(
            "Every trained network, taken apart into binary branches, says the same on test "
            f"pictures, boxes and scores: {branches:g} numbers differ.",
            same_branches,
        ),
        Finding(
            "Every trained network, compiled for the packed engine, finds the same on test "
            f"pictures: {engine:g} answers differ.",
            same_engine,
        ),
    ]


def remarks(results: list[Result], metric: str) -> list[str]:
    """Gaps of the ladder."""
    steps = ladder(results)
    top = {arm: mean(results, arm, metric) for arm in steps}
    gaps = ", ".join(f"{arm} {top['fp'] - top[arm]:.2f}" for arm in steps if arm != "fp")
    return [f"Points of {metric} below full precision: {gaps}."]


# ------------------------------------------------------------------------------ data


class Joined:
    """Data sets one after the other, the first `most` pictures of them.

    An item is a picture ``(3, H, W)`` uint8 with `Objects` or labels ``(H, W)`` int64.
    """

    def __init__(self, parts: Sequence[Any], most: int | None = None) -> None:
        self.index = [(part, k) for part in parts for k in range(len(part))][:most]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        part, k = self.index[index]
        item: tuple[Tensor, Any] = part[k]
        return item

    def objects(self, index: int) -> Objects:
        """Without the picture, where the source can."""
        part, k = self.index[index]
        found: Objects = part.objects(k)
        return found


@dataclass(frozen=True)
class Views:
    """Pictures as a net sees them in training (`vary`) or testing (None).

    An item is a picture uint8 ``(3, S, S)``, its target, and its own height and width. Targets are
    boxes in units of the side with labels, or a label map ``(S, S)``, void where there is nothing.
    """

    source: Joined
    config: Config
    vary: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, tuple[int, int]]:
        picture, truth = self.source[index]
        draw = None if self.vary is None else np.random.default_rng((*self.vary, index))
        size = (int(picture.shape[1]), int(picture.shape[2]))
        if self.config.task == "segmentation":
            return (*label_view(picture, truth, self.config.side, draw), size)
        side = SIDE if self.config.data == "shapes" else SSD300_VOC.side
        image, objects = picture.numpy(), cast(Objects, truth)
        if draw is None:
            image, objects = squeeze(image, objects, side)
        else:
            if self.config.data == "COCO":  # a crowd is no object; VOC's difficult ones are
                one = ~objects.ignore
                objects = Objects(objects.boxes[one], objects.labels[one], objects.ignore[one])
            if self.config.augment:
                image, objects = training_view(image, objects, side, draw)
            else:
                image, objects = mirror(image, objects) if draw.random() < 0.5 else (image, objects)
                image, objects = squeeze(image, objects, side)
        boxes = np.clip(objects.boxes / side, 0, 1)
        real = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(1), np.bool_)
        target = torch.from_numpy(boxes[real]), torch.from_numpy(objects.labels[real])
        return torch.from_numpy(image), target, size


@dataclass(frozen=True)
class Batch:
    """Pictures ``(B, 3, S, S)`` uint8, targets (a list, or maps ``(B, S, S)``), sizes."""

    pictures: Tensor
    targets: Any
    sizes: list[tuple[int, int]]


def collate(items: list[tuple[Tensor, Any, tuple[int, int]]]) -> Batch:
    """Boxes stay a list: pictures have different numbers of them."""
    pictures, targets, sizes = zip(*items, strict=True)
    maps = isinstance(targets[0], Tensor)
    return Batch(
        torch.stack(pictures), torch.stack(targets) if maps else list(targets), list(sizes)
    )


def batches(
    source: Joined, order: Tensor, config: Config, vary: tuple[int, int] | None
) -> Iterator[Batch]:
    """Views in the order given, `Config.batch` at a time; `vary` seeds their variations."""
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    yield from DataLoader(
        Views(source, config, vary),  # type: ignore[arg-type]  # it has a length and items
        config.batch,
        sampler=order.tolist(),
        num_workers=workers,
        collate_fn=collate,
    )


@dataclass(frozen=True)
class Data:
    """What is trained and tested on; `classes` without the background."""

    what: str
    train: Joined
    test: Joined
    classes: int

    def truth(self) -> list[Objects]:
        """Objects of all test pictures."""
        return [self.test.objects(index) for index in range(len(self.test))]


def load_data(config: Config) -> Data:
    """Open the data set that `config` names."""
    root, most = config.data_root or catalogue.data_root(), config.test_pictures
    if config.data == "shapes":
        maps = config.task == "segmentation"
        train = Joined([Shapes(config.pictures, 1, maps)])
        test = Joined([Shapes(most or 500, 2, maps)])
        what = f"simulated shapes, {len(train)} training and {len(test)} test pictures"
        return Data(what, train, test, len(KINDS))
    if config.weights is None and not config.random_start:
        raise FoveateError(
            "the published setting starts from ImageNet's weights of ResNet-18: name the file with "
            "--set weights=FILE, or take --set random_start=true"
        )
    if config.data == "COCO":
        coco = [COCO(root, split) for split in ("train", "val")]
        what, classes = "COCO 2017, tested on val", len(coco[0].classes)
        train, test = Joined(coco[:1]), Joined(coco[1:], most)
    elif config.task == "segmentation":
        train = Joined([VOCSegmentation(root, "train")])
        test = Joined([VOCSegmentation(root, "val")], most)
        what, classes = "VOC2012 segmentation, tested on val", 20
    else:
        train = Joined([VOCDetection(root, "trainval", year) for year in ("2007", "2012")])
        test, classes = Joined([VOCDetection(root, "test", "2007")], most), 20
        what = "VOC2007 and VOC2012 trainval, tested on VOC2007 test"
    return Data(f"{what}, {len(train)} and {len(test)} pictures", train, test, classes)
