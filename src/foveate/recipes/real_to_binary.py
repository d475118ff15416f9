"""Real-to-binary: how much of a real network's accuracy does a 1-bit one keep, and why?

Paper: Martinez, Yang, Bulat, Tzimiropoulos, "Training binary neural networks with real-to-binary
convolutions", ICLR 2020 (arXiv 2003.11535). Its code was never released; settings are those of the
public larq re-implementation unless marked otherwise on the method's page. A binary network is
trained in three ways, beside the real network of its own size:

    real                real twin (plain ReLU net on the same grid)     reference, first teacher
    direct              weights and activations 1 bit from scratch
    baseline            W32A1, then W1A1 from its weights               <- the ablation
    baseline+gate       ... with the data-driven scale of the channels
    baseline+matching   ... taught by the real twin: attention maps and logits
    real-to-binary      gate, and the chain  real -> soft -> W32A1 -> W1A1, each net teaching the
                        next                                            <- the method

All arms see the same pictures in the same order, cropped and mirrored alike, for the same number of
*student* epochs, and share the first weights of everything that they have in common. The cost of
the teacher comes on top and is reported. When the weights become 1-bit their size is lost; the
learned scale of each channel takes over the mean |w| in every arm, so that a network starts the
last step with outputs of the size that it was trained with.

The desk scale reads 5,000 + 5,000 CIFAR-10 pictures, shrunk to 16x16 by the mean of 2x2 pixels;
settings are to be chosen on the other 5,000 pictures of the training batch (``accuracy_val``). The
smoke scale draws its own pictures. ``long`` is CIFAR-10 in full with all arms (``--set
data=cifar100`` for CIFAR-100), ``paper`` is ResNet-18 on ImageNet by the published schedule.

After training, the binary network of the method is compiled for the native engine, and has to say
the same of 1,000 test pictures as in PyTorch.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foveate import engine
from foveate.datasets import catalogue
from foveate.datasets.images import (
    CIFAR10,
    CIFAR100,
    ImageNet,
    LabelledImages,
    balanced_subset,
    mean_pool,
)
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.learning.distillation import AttentionMatchingLoss, FrozenTeacher, LogitKD
from foveate.nn.binary_resnet import BinaryResNet, BinaryStem, real_twin
from foveate.nn.resnet import ResNet
from foveate.quantization.layers import (
    BinarizeConfig,
    BinaryConv2d,
    clip_latent_weights,
    parameter_groups,
    quant_layers,
)
from foveate.quantization.op_count import count_ops
from foveate.quantization.real_to_binary import (
    RealToBinaryConfig,
    block_features,
    real_to_binary_stages,
)
from foveate.quantization.sign_statistics import FlipRate, SteWindow
from foveate.quantization.stages import Stage, run_stages
from foveate.report.evidence import Claim, Evidence, Finding, Ledger, Metrics, Result, Verdict, mean

__all__ = ["ARMS", "CLAIM", "PRESETS", "Config", "run"]

CLAIM = Claim(
    text=(
        "A chain of teachers, matched attention and a data-driven scale bring a 1-bit network "
        "closer to its real twin than two-stage training does"
    ),
    metric="accuracy",
    direction="higher",
    method="real-to-binary",
    ablation="baseline",
    rule=(
        "in the mean over seeds, top-1 of the baseline is above that of direct training, that of "
        "real-to-binary is above the baseline's by at least the pooled standard deviation of the "
        "seeds, and its gap to the real twin is smaller than the baseline's by at least a quarter"
    ),
    published=(
        "ImageNet, ResNet-18, top-1: 65.4 % (secondary source); strong baseline 60.9 %, real 69.3 "
        "% (both remembered)"
    ),
    certainty="R",
)

ARMS = {
    "real": "real twin: ReLU network on the same grid; reference and first teacher",
    "direct": "W1A1 from scratch",
    "baseline": "two stages: W32A1, then W1A1",
    "baseline+gate": "two stages, data-driven scale; no teacher",
    "baseline+matching": "two stages, taught by the real twin: attention maps and logits",
    "real-to-binary": "data-driven scale; chain real -> tanh -> W32A1 -> W1A1 of teachers",
}
REQUIRED = ("real", "direct", "baseline", "real-to-binary")

MEAN, STD = 0.45, 0.25  # of pixels in [0, 1], roughly those of photographs
CHECKED = 1000  # test pictures on which the compiled network is compared

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    arms
        Names of `ARMS` to train; ``real`` is always trained.
    data
        ``patterns`` are drawn; the others lie below `data_root`, in their official layout
        (CIFAR-10 also as ``images/cifar10_*.npz``).
    data_root
        Folder of data sets; None is foveate's own.
    batches
        Training batches of CIFAR-10 to read, of 1 to 5.
    train_per_class, test_per_class
        Pictures of each class, the same draw always; 0: all. What is left of the training
        pictures is for validation.
    shrink
        Pictures are shrunk by the mean over squares of this edge.
    stem, widths, blocks
        Of the networks: stem, width and number of blocks of each stage.
    twin_epochs, epochs, chain
        Epochs of the real twin; student epochs of the other arms, which two-stage training
        halves; those of the chain's steps tanh, W32A1, W1A1.
    lr, final_lr
        Adam, before and in the last step. ``direct`` has only one step and takes `lr`.
    weight_decay
        Before W1A1, where there is none.
    attention_weight, attention_weight_final
        Weight of the attention loss before and in the last step; chosen so that the loss is 10 to
        50 % of the cross-entropy in the first epoch (reported as ``attention_share``).
    logits_weight, logits_weight_final
        Weight of the logit matching, likewise.
    soft_init
        W32A1 of the chain starts from the tanh step (``soft``) or anew (``fresh``).
    scale_init
        When weights become 1-bit, the scale of each channel takes over their mean size (``mean``)
        or stays (``keep``).
    workers
        Processes that read pictures from disk; None: one per core.
    """

    scale: str
    arms: tuple[str, ...] = REQUIRED
    data: Literal["patterns", "cifar10", "cifar100", "imagenet"] = "cifar10"
    data_root: Path | None = None
    batches: tuple[int, ...] = (1,)
    train_per_class: int = 500
    test_per_class: int = 500
    shrink: int = 2
    stem: BinaryStem = "cifar"
    widths: tuple[int, ...] = (8, 16, 32)
    blocks: tuple[int, ...] = (2, 2, 2)
    twin_epochs: int = 18
    epochs: int = 18
    chain: tuple[int, ...] = (5, 5, 8)
    batch: int = 64
    lr: float = 1e-3
    final_lr: float = 2e-4
    weight_decay: float = 1e-5
    attention_weight: float = 15.0
    attention_weight_final: float = 0.0
    logits_weight: float = 3.0
    logits_weight_final: float = 0.8
    soft_init: Literal["soft", "fresh"] = "soft"
    scale_init: Literal["mean", "keep"] = "mean"
    workers: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise FoveateError(f"there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
        if len(self.chain) != 3 or min(*self.chain, self.epochs, self.twin_epochs) < 1:
            raise FoveateError(
                "epochs are numbers of at least 1, three of them in chain (tanh, W32A1, W1A1), got "
                f"{self.twin_epochs}, {self.epochs} and {self.chain}"
            )

    @property
    def classes(self) -> int:
        """Number of classes of the data."""
        return {"patterns": 4, "cifar10": 10, "cifar100": 100, "imagenet": 1000}[self.data]

    @property
    def size(self) -> int:
        """Edge of the pictures as the networks see them, pixels."""
        whole = {"patterns": 32, "cifar10": 32, "cifar100": 32, "imagenet": 224}[self.data]
        return whole // self.shrink


PRESETS = {
    "smoke": Config(
        scale="smoke",
        arms=tuple(ARMS),
        data="patterns",
        train_per_class=16,
        test_per_class=8,
        widths=(4, 8),
        blocks=(1, 1),
        twin_epochs=2,
        epochs=2,
        chain=(1, 1, 1),
        batch=16,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "long": Config(
        scale="long",
        arms=tuple(ARMS),
        batches=(1, 2, 3, 4, 5),
        train_per_class=0,
        test_per_class=0,
        shrink=1,
        widths=(16, 32, 64),
        twin_epochs=75,
        epochs=75,
        chain=(20, 20, 35),
        batch=128,
        accelerator="auto",
    ),
    "paper": Config(
        scale="paper",
        arms=tuple(ARMS),
        data="imagenet",
        train_per_class=0,
        test_per_class=0,
        shrink=1,
        stem="basic",
        widths=(64, 128, 256, 512),
        blocks=(2, 2, 2, 2),
        twin_epochs=100,
        epochs=150,
        chain=(75, 75, 75),
        batch=256,
        attention_weight=1000.0,
        seeds=(0,),
        accelerator="auto",
        precision="bf16-mixed",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train and test every arm under every seed; finished ones are reused.

    Returns None in all processes of a multi-process run but the first.

    Raises
    ------
    FoveateError
        The data are not there, or too few for one step.
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
    # An arm does not depend on which others run, so their choice does not make its result another.
    ledger = Ledger(
        "real-to-binary",
        dataclasses.replace(config, arms=REQUIRED),
        __file__,
        writer=fabric.is_global_zero,
    )
    data = load_data(config)

    results = []
    arms = arms_of(config)
    jobs = [(arm, seed) for seed in config.seeds for arm in arms]
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def compute(arm: str = arm, seed: int = seed, done: int = done) -> Metrics:
            def say(what: str) -> None:
                tell(f"{arm}, seed {seed}, {what}", done, len(jobs))

            return train_arm(arm, seed, data, config, fabric, ledger.folder, say)

        results.append(ledger.result(arm, seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    return Evidence(
        recipe="real-to-binary",
        claim=CLAIM,
        verdict=verdict(results),
        arms={arm: ARMS[arm] for arm in arms},
        results=results,
        data=data.what,
        simulated=config.data == "patterns",
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results),
        notes=remarks(results, config),
        seconds=round(time.perf_counter() - started, 1),
    )


def arms_of(config: Config) -> list[str]:
    """The arms to train, in the order of `ARMS`: teachers come first."""
    return [arm for arm in ARMS if arm == "real" or arm in config.arms]


# ------------------------------------------------------------------------------ networks


def binary_net(config: Config, seed: int, gate: bool, final: bool) -> BinaryResNet:
    """Binary network whose first weights depend on the seed alone, gate or not.

    Parameters
    ----------
    gate
        Data-driven scale in every binary convolution.
    final
        ReLU after the stem, as in the paper's final network; PReLU in the strong baseline.
    """

    def build(layers: BinarizeConfig) -> BinaryResNet:
        def conv(c_in: int, c_out: int, kernel: int, stride: int, padding: int) -> BinaryConv2d:
            return BinaryConv2d(c_in, c_out, kernel, stride, padding, config=layers)

        return BinaryResNet(
            conv,
            config.widths,
            config.blocks,
            config.classes,
            stem=config.stem,
            stem_activation="relu" if final else "prelu",
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(BinarizeConfig(scale="channel"))
        if gate:
            shared = net.state_dict()
            net = build(BinarizeConfig(scale="se"))
            net.load_state_dict(shared, strict=False)  # all but the gates
    return net


def twin_net(config: Config, seed: int) -> ResNet:
    """The real twin, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return real_twin(
            BinaryResNet(
                widths=config.widths,
                blocks=config.blocks,
                classes=config.classes,
                stem=config.stem,
            )
        )


def stages_of(arm: str, config: Config) -> list[Stage]:
    """What an arm does, step by step."""
    if arm == "real":
        lr, decay = config.lr, config.weight_decay
        return [Stage("real", False, False, config.twin_epochs, lr, decay, network="real")]
    if arm == "direct":
        return [Stage("w1a1", True, True, config.epochs, config.lr, 0.0, clip_latent=True)]
    chained = arm == "real-to-binary"
    half = config.epochs // 2
    soft, w32a1, w1a1 = config.chain if chained else (1, half, config.epochs - half)
    return real_to_binary_stages(
        RealToBinaryConfig(
            gate=arm in ("baseline+gate", "real-to-binary"),
            attention=arm in ("baseline+matching", "real-to-binary"),
            progressive=chained,
            attention_weight=config.attention_weight,
            attention_weight_final=config.attention_weight_final,
            logits_weight=config.logits_weight,
            logits_weight_final=config.logits_weight_final,
            soft_init=config.soft_init,
            epochs=(config.twin_epochs, soft, w32a1, w1a1),
            lr=config.lr,
            final_lr=config.final_lr,
            weight_decay=config.weight_decay,
        )
    )


@torch.no_grad()
def take_over_size(net: nn.Module) -> None:
    """Give the mean size of the weights of every output channel to its scale: a sign has size 1."""
    for _, layer in quant_layers(net):
        if layer.channel_scale is not None:
            layer.channel_scale.mul_(layer.weight.abs().flatten(1).mean(1))


# ------------------------------------------------------------------------------ training


def train_arm(
    arm: str, seed: int, data: Data, config: Config, fabric: Fabric, folder: Path, tell: Tell
) -> Metrics:
    """Train one arm through all its steps and measure what came out."""
    if arm == "real":
        return evaluate(trained_twin(seed, data, config, fabric, folder, tell), data, fabric)
    stages = stages_of(arm, config)
    streams = orders(seed, fabric)
    metrics: Metrics = {}

    def build(stage: Stage) -> nn.Module:
        if stage.network == "real":
            return trained_twin(seed, data, config, fabric, folder, tell)
        gate = arm in ("baseline+gate", "real-to-binary")
        return binary_net(config, seed, gate, final=arm == "real-to-binary")

    def train_one(model: nn.Module, stage: Stage, teacher: nn.Module | None) -> None:
        if stage.network == "real":
            return
        found = train(model, stage, teacher, data.train, config, fabric, streams, tell)
        metrics.update(found)
        if stage is not stages[-1]:
            metrics[f"accuracy_{stage.name}"] = top(model, data.test, fabric)[1]

    net = run_stages(build, stages, train_one)[stages[-1].name]
    metrics = {**evaluate(net, data, fabric), **metrics}
    if arm == "real-to-binary":
        metrics |= compiled(net, data.test, folder / f"{arm}-{seed}.fvt", fabric)
    return metrics


def orders(seed: int, fabric: Fabric) -> tuple[torch.Generator, torch.Generator]:
    """Where the order of the pictures and their variations come from.

    One pair runs through all steps of an arm: epoch k is the same in every arm.
    """
    draw = torch.Generator().manual_seed(1000 * (seed + 1) + fabric.global_rank)
    return torch.Generator().manual_seed(seed), draw


def trained_twin(
    seed: int, data: Data, config: Config, fabric: Fabric, folder: Path, tell: Tell
) -> ResNet:
    """The real twin, trained once per seed and kept in `folder` for the arms that it teaches."""
    net = twin_net(config, seed)
    kept = folder / f"real-{seed}.safetensors"
    if kept.is_file():
        net.load_state_dict(load_file(kept))
        return net.eval()
    (stage,) = stages_of("real", config)
    train(net, stage, None, data.train, config, fabric, orders(seed, fabric), tell)
    if fabric.is_global_zero:
        state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
        with write_whole(kept) as temporary:
            save_file(state, temporary)
    fabric.barrier()
    return net


def train(
    net: nn.Module,
    stage: Stage,
    teacher: nn.Module | None,
    pictures: Pictures,
    config: Config,
    fabric: Fabric,
    streams: tuple[torch.Generator, torch.Generator],
    tell: Tell = lambda what: None,
) -> Metrics:
    """Train one step in place; the network ends in eval mode.

    Returns
    -------
    dict
        ``attention_share_<step>``: weighted attention loss over cross-entropy in the first epoch,
        on training pictures; ``flip_rate``: share of the weights that changed their sign in the
        last epoch of a W1A1 step.
    """
    if stage.weights and config.scale_init == "mean":
        take_over_size(net)
    guide = None if teacher is None else fabric.to_device(FrozenTeacher(teacher))
    groups: list[dict[str, Any]] = [
        {**group} for group in parameter_groups(net, stage.weight_decay)
    ]
    optimizer = torch.optim.Adam(groups, stage.lr)
    model, optimizer = fabric.setup(net, optimizer)
    paths = {module: path for path, module in model.named_modules()}
    names: tuple[str, ...] = net.block_names  # type: ignore[assignment]
    blocks = [paths[net.get_submodule(name)] for name in names]
    matching, imitating = AttentionMatchingLoss(), LogitKD()

    share = config.batch * fabric.world_size  # every process takes its part of each step
    steps = len(pictures) // share
    if not steps:
        raise FoveateError(
            f"{len(pictures)} training pictures do not fill one step of {share}; give more "
            "pictures, a smaller --set batch or fewer devices"
        )
    rate = cosine if stage.network == "real" else staircase
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate((step + 1) / (stage.epochs * steps))
    )
    order, draw = streams
    flips = FlipRate(net) if stage.weights else None
    found: Metrics = {}
    for epoch in range(stage.epochs):
        shuffled = torch.randperm(len(pictures), generator=order)[: steps * share]
        mine = shuffled.view(steps, fabric.world_size, config.batch)[:, fabric.global_rank]
        sums = {"ce": 0.0, "attention": 0.0, "logits": 0.0}
        model.train()
        for batch, labels in pictures.read(mine, draw):
            x, y = fabric.to_device(batch), fabric.to_device(labels)
            losses: dict[str, Tensor] = {}
            if "attention" in stage.losses and guide is not None:
                logits, ours = block_features(model, x, blocks)
                with torch.no_grad():
                    taught, theirs = block_features(guide.network, x, names)
                losses["attention"] = matching(ours, theirs)
            else:
                logits = model(x)
                if guide is not None:
                    with torch.no_grad():
                        taught = guide(x)
            losses["ce"] = F.cross_entropy(logits.float(), y)
            if "logits" in stage.losses and guide is not None:
                losses["logits"] = imitating(logits, taught)
            loss = torch.stack([stage.losses[name] * loss for name, loss in losses.items()]).sum()
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            if stage.clip_latent:
                clip_latent_weights(net)
            for name, loss in losses.items():
                sums[name] += stage.losses[name] * loss.item()
        if epoch == 0 and "attention" in stage.losses:
            found[f"attention_share_{stage.name}"] = sums["attention"] / sums["ce"]
        if flips is not None:
            found["flip_rate"] = statistics.mean(flips.update().values())
        said = ", ".join(f"{name} {value / steps:.3f}" for name, value in sums.items() if value)
        tell(f"{stage.name}, epoch {epoch + 1}: {said}")
    net.eval()
    return found


WARM_UP = 5 / 75  # share of a step's epochs


def staircase(done: float) -> float:
    """Learning rate, of its height, after a share `done` of the steps: x 0.3 at 40, 60, 70 of 75.

    It rises during the first 5 of 75 epochs.
    """
    falls = sum(done > at / 75 for at in (40, 60, 70))
    return min(1.0, done / WARM_UP) * 0.3**falls


def cosine(done: float) -> float:
    """Likewise: half a cosine after the rise; for the real twin."""
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


# ------------------------------------------------------------------------------ testing


@torch.no_grad()
def top(net: nn.Module, pictures: Pictures, fabric: Fabric) -> dict[int, float]:
    """Percent of pictures whose class is the first, or among the first five, of the answers."""
    net = fabric.to_device(net.eval())
    hits = {1: 0, 5: 0}
    for batch, labels in pictures.read(torch.split(torch.arange(len(pictures)), 250)):
        best = net(fabric.to_device(batch)).topk(5 if pictures.classes >= 5 else 1).indices.cpu()
        for k in hits:
            hits[k] += int((best[:, :k] == labels[:, None]).any(1).sum())
    return {k: 100 * count / len(pictures) for k, count in hits.items()}


def evaluate(net: nn.Module, data: Data, fabric: Fabric) -> Metrics:
    """Accuracy, cost and, of a binary network, the share of |a| < 1 before its signs."""
    first = top(net, data.test, fabric)
    metrics: Metrics = {"accuracy": first[1]}
    if data.test.classes >= 100:
        metrics["accuracy_top5"] = first[5]
    if data.val is not None:
        metrics["accuracy_val"] = top(net, data.val, fabric)[1]
    cost = count_ops(net, data.shape)
    metrics |= {
        "bops": cost.bops,
        "conv_flops": cost.conv_flops,
        "gate_flops": cost.gate_flops,
        "elementwise_flops": cost.elementwise_flops,
        "bytes": math.ceil(cost.size_bits / 8),
    }
    if cost.bops:
        with torch.no_grad(), SteWindow(net) as window:
            few = torch.arange(min(500, len(data.test)))[None]
            for batch, _ in data.test.read(few):
                net(fabric.to_device(batch))
        metrics["ste_window"] = statistics.mean(window.shares().values())
    return metrics


@torch.no_grad()
def compiled(net: nn.Module, pictures: Pictures, path: Path, fabric: Fabric) -> Metrics:
    """Compile the network, keep it at `path`, and compare its answers with PyTorch's.

    ``packed_agree``: share of `CHECKED` test pictures with the same class; ``packed_bytes``: size
    of the file, of which ``bytes`` are what weights and scales take at least.
    """
    net = copy.deepcopy(net).cpu().eval()
    few = torch.split(torch.arange(min(CHECKED, len(pictures))), 250)
    batches = [batch for batch, _ in pictures.read(few)]
    model = engine.compile(net, batches[0][:1])
    if fabric.is_global_zero:
        with write_whole(path) as temporary:
            model.save(temporary)
    same = [cast(Tensor, model.run(batch)).argmax(1) == net(batch).argmax(1) for batch in batches]
    return {"packed_agree": torch.cat(same).float().mean().item(), "packed_bytes": model.size_bytes}


# ------------------------------------------------------------------------------ verdicts


def accuracies(results: Sequence[Result], arm: str) -> list[float]:
    """Test accuracies of an arm, one per seed."""
    return [r.metrics["accuracy"] for r in sorted(results, key=lambda r: r.seed) if r.arm == arm]


def judged(results: Sequence[Result], arms: Sequence[str], holds: Callable[[], bool]) -> Verdict:
    """What a rule on some arms says; nothing where one of them has fewer than three seeds."""
    if any(len(accuracies(results, arm)) < 3 for arm in arms):
        return "inconclusive"
    return "reproduced" if holds() else "not reproduced"


def pooled_deviation(results: Sequence[Result], arms: Sequence[str]) -> float:
    """Standard deviation of the seeds around the mean of their arm; NaN for single seeds."""
    values = [accuracies(results, arm) for arm in arms]
    freedom = sum(len(of_arm) - 1 for of_arm in values)
    if any(not of_arm for of_arm in values) or freedom < 1:
        return math.nan
    squares = sum(sum((v - statistics.mean(a)) ** 2 for v in a) for a in values)
    return math.sqrt(squares / freedom)


def criteria(results: Sequence[Result]) -> list[Finding]:
    """The three parts of the rule (`CLAIM.rule`), each with a verdict of its own."""
    real, direct, baseline, ours = (mean(results, arm, "accuracy") for arm in REQUIRED)
    deviation = pooled_deviation(results, ("baseline", "real-to-binary"))
    return [
        Finding(
            f"(1) two stages beat direct training: {baseline:.1f} against {direct:.1f} %",
            judged(results, ("direct", "baseline"), lambda: baseline > direct),
        ),
        Finding(
            f"(2) real-to-binary beats the baseline by the pooled deviation of the seeds "
            f"({deviation:.2f}): {ours:.1f} against {baseline:.1f} %",
            judged(
                results,
                ("baseline", "real-to-binary"),
                lambda: ours > baseline and ours - baseline >= deviation,
            ),
        ),
        Finding(
            f"(3) its gap to the real twin ({real:.1f} %) is smaller by at least a quarter: "
            f"{real - ours:.1f} against {real - baseline:.1f} points",
            judged(
                results,
                ("real", "baseline", "real-to-binary"),
                # a quarter of the gap's size: where there is no gap, none can become smaller
                lambda: real > baseline and real - ours <= 0.75 * (real - baseline),
            ),
        ),
    ]


def verdict(results: Sequence[Result]) -> Verdict:
    """Reproduced when all three parts of the rule hold."""
    said = {finding.verdict for finding in criteria(results)}
    if "inconclusive" in said:
        return "inconclusive"
    return "reproduced" if said == {"reproduced"} else "not reproduced"


def findings(results: Sequence[Result]) -> list[Finding]:
    """The parts of the rule, what of the method does it, and whether the engine says the same."""
    found = criteria(results)
    measured = {r.arm for r in results}
    baseline, gate, matching, ours = (
        mean(results, arm, "accuracy")
        for arm in ("baseline", "baseline+gate", "baseline+matching", "real-to-binary")
    )
    if "baseline+matching" in measured:
        arms = ("baseline", "baseline+matching")
        found.append(
            Finding(
                f"(4) attention and logits of one teacher alone help the baseline: {matching:.1f} "
                f"against {baseline:.1f} %",
                judged(results, arms, lambda: matching > baseline),
            )
        )
    if {"baseline+gate", "baseline+matching"} <= measured:
        found.append(
            Finding(
                f"(5) the gate needs the teachers: alone it adds {gate - baseline:.1f} points, "
                f"less than half of the {ours - matching:.1f} that gate and chain add to matching",
                judged(
                    results,
                    ("baseline", "baseline+gate", "baseline+matching", "real-to-binary"),
                    lambda: gate - baseline < (ours - matching) / 2,
                ),
            )
        )
    agreed = [r.metrics["packed_agree"] for r in results if "packed_agree" in r.metrics]
    if agreed:
        found.append(
            Finding(
                f"the compiled network says what PyTorch says, on {100 * min(agreed):.1f} % of the "
                "test pictures at least",
                judged(results, ("real-to-binary",), lambda: min(agreed) == 1.0),
            )
        )
    return found


def remarks(results: Sequence[Result], config: Config) -> list[str]:
    """What a reader must not miss: the size of the attention loss, and what teachers cost."""
    shares = {
        step: mean(results, "real-to-binary", f"attention_share_{step}")
        for step in ("soft", "w32a1")
    }
    said = []
    if not any(math.isnan(value) for value in shares.values()):
        said.append(
            f"Attention loss over cross-entropy in the first epoch, on training pictures, with "
            f"weight {config.attention_weight:g}: {shares['soft']:.2f} (tanh), "
            f"{shares['w32a1']:.2f} (W32A1); .10 to .50 was aimed at."
        )
    seconds = {
        arm: statistics.mean(r.seconds for r in results if r.arm == arm)
        for arm in {r.arm for r in results}
    }
    if {"real", "baseline", "real-to-binary"} <= set(seconds):
        flops = mean(results, "real", "conv_flops")
        said.append(
            f"Cost of teaching: the real twin ({flops / 1e6:.2f} MFLOPs a picture) trains "
            f"{config.twin_epochs} epochs more per seed ({seconds['real']:.0f} s), and the chain "
            f"takes {seconds['real-to-binary']:.0f} s where the baseline takes "
            f"{seconds['baseline']:.0f} s. Arms are compared at equal student epochs, not at equal "
            "total cost."
        )
    return said


# ------------------------------------------------------------------------------ data


class Pictures(Protocol):
    """Labelled pictures that can be read in any order."""

    classes: int

    def __len__(self) -> int: ...

    def read(
        self, batches: Sequence[Tensor] | Tensor, draw: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised pictures ``(B, 3, H, W)`` and labels ``(B,)`` of each batch of indices.

        With `draw` every picture is varied: cropped somewhere, half of them mirrored.
        """
        ...


@dataclass(frozen=True)
class Data:
    """The splits, and how to call them; `val` is None where nothing was left for it."""

    what: str
    shape: tuple[int, int, int]
    train: Pictures
    val: Pictures | None
    test: Pictures


class InMemory:
    """Small pictures: ``(N, 3, H, W)`` uint8 and labels."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, batches: Sequence[Tensor] | Tensor, draw: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order; `draw`: shifted by up to an eighth of the edge, half mirrored."""
        for chosen in batches:
            x = normalised(self.images[chosen])
            yield x if draw is None else shifted(x, draw), self.labels[chosen]


def normalised(pictures: Tensor) -> Tensor:
    """uint8 pixels to floats around 0."""
    return (pictures / 255 - MEAN) / STD


def shifted(x: Tensor, draw: torch.Generator) -> Tensor:
    """Shift every picture of ``(B, C, H, W)`` by up to H / 8 pixels and mirror half of them."""
    count, _, height, width = x.shape
    reach = height // 8
    down, right = torch.randint(2 * reach + 1, (2, count, 1), generator=draw)
    mirror = torch.rand(count, 1, generator=draw) < 0.5
    rows = down + torch.arange(height)
    columns = torch.arange(width).expand(count, -1)
    columns = right + torch.where(mirror, columns.flip(1), columns)
    padded = F.pad(x, (reach,) * 4).permute(0, 2, 3, 1)
    picked = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


class OnDisk:
    """ImageNet: decoded by worker processes, varied by random resized crops and mirroring."""

    classes = 1000

    def __init__(self, root: Path, split: str, size: int, workers: int) -> None:
        self.train = ImageNet(root, split, RandomCrop(size))
        self.test = ImageNet(root, split, CentreCrop(size))
        self.workers = workers

    def __len__(self) -> int:
        return len(self.test)

    def read(
        self, batches: Sequence[Tensor] | Tensor, draw: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order; `draw` seeds the variations of the workers."""
        loader: torch.utils.data.DataLoader[tuple[Tensor, int]] = torch.utils.data.DataLoader(
            self.test if draw is None else self.train,  # type: ignore[arg-type]
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            generator=draw,
        )
        yield from loader


@dataclass(frozen=True)
class CentreCrop:
    """Shorter edge to 8/7 of `size`, then the middle `size` x `size`; normalised."""

    size: int

    def __call__(self, picture: Tensor) -> Tensor:
        height, width = picture.shape[1:]
        factor = self.size * 8 / 7 / min(height, width)
        target = [max(self.size, round(factor * edge)) for edge in (height, width)]
        x = resized(picture, target)
        top_edge, left = ((edge - self.size) // 2 for edge in target)
        return x[:, top_edge : top_edge + self.size, left : left + self.size]


@dataclass(frozen=True)
class RandomCrop:
    """8 to 100 % of the area, aspect ratio 3/4 to 4/3, to `size` x `size`; half mirrored."""

    size: int

    def __call__(self, picture: Tensor) -> Tensor:
        height, width = picture.shape[1:]
        area = height * width * float(torch.empty(()).uniform_(0.08, 1))
        aspect = math.exp(float(torch.empty(()).uniform_(-1, 1)) * math.log(4 / 3))
        h = min(height, max(1, round(math.sqrt(area / aspect))))
        w = min(width, max(1, round(math.sqrt(area * aspect))))
        y, x = (int(torch.randint(room + 1, ())) for room in (height - h, width - w))
        crop = resized(picture[:, y : y + h, x : x + w], [self.size, self.size])
        return crop.flip(2) if float(torch.rand(())) < 0.5 else crop


def resized(picture: Tensor, size: list[int]) -> Tensor:
    """uint8 ``(3, H, W)`` to normalised floats of another size."""
    x = normalised(picture)[None]
    return F.interpolate(x, size, mode="bilinear", antialias=True)[0]


def load_data(config: Config) -> Data:
    """Training, validation and test pictures of a configuration."""
    shape = (3, config.size, config.size)
    if config.data == "patterns":
        train, test = (
            InMemory(*patterns(4 * count, config.size, seed), config.classes)
            for seed, count in enumerate((config.train_per_class, config.test_per_class))
        )
        return Data("drawn gratings of 4 directions", shape, train, None, test)
    root = config.data_root or catalogue.data_root()
    if config.data == "imagenet":
        workers = (os.cpu_count() or 1) if config.workers is None else config.workers
        splits = [OnDisk(root, split, config.size, workers) for split in ("train", "val")]
        return Data("ImageNet, centre crops of the validation split", shape, splits[0], None,
                    splits[1])  # fmt: skip
    sets: tuple[LabelledImages, LabelledImages]
    if config.data == "cifar10":
        sets = CIFAR10(root, "train", config.batches), CIFAR10(root, "test")
    else:
        sets = CIFAR100(root, "train"), CIFAR100(root, "test")
    whole = [
        (torch.from_numpy(mean_pool(one.images, config.shrink)), torch.from_numpy(one.labels))
        for one in sets
    ]
    counts = (config.train_per_class, config.test_per_class)
    chosen = [
        torch.from_numpy(balanced_subset(one.labels, count, seed=0))
        if count
        else torch.arange(len(one))
        for one, count in zip(sets, counts, strict=True)
    ]
    left = torch.ones(len(sets[0]), dtype=torch.bool)
    left[chosen[0]] = False
    train, val, test = (
        InMemory(images[index], labels[index], config.classes)
        for (images, labels), index in (
            (whole[0], chosen[0]),
            (whole[0], left.nonzero()[:, 0]),
            (whole[1], chosen[1]),
        )
    )
    what = (
        f"{sets[0].card.title}, {config.size} x {config.size} pixels, {len(train):,} training and "
        f"{len(test):,} test pictures, classes alike"
    )
    return Data(what, shape, train, val if len(val) else None, test)


def patterns(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gratings in noise, ``(count, 3, size, size)`` uint8; the class is their direction."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    y, x = np.mgrid[:size, :size]
    angle, phase = labels * np.pi / 4, rng.uniform(0, 2 * np.pi, count)
    across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = 128 + 80 * np.sin(across + phase[:, None, None])
    pictures = wave[:, None] + rng.normal(0, 20, (count, 3, size, size))
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)
