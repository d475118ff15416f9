"""AdaIN distillation: does it pay to let the teacher judge the student's channel statistics?

Paper: Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge distillation via adaptive instance
normalization", 2020 (arXiv 2003.04289). Of the paper only the abstract is known here, and no code
of it was found; what it leaves open follows the authors' successor SRRL (ICLR 2021) or is decided
here (see the method's page). A small student learns from labels and from one frozen teacher:

    ce           labels only
    l-stat       + squared distance of the channels' means and deviations     <- the ablation
    adain        + the teacher's answer to its own features restyled by them  <- the method
    adain-mu     as adain, means only
    adain-last   as adain, at the last stage only (where sigma has no effect)
    kd, at, fitnet, adain+kd    what others do, with their published weights
    mechanism    no training: which channels does L_ada protect, and which does the teacher need?

All arms share the teacher, the student's first weights, the pictures in their order and variation,
and the schedule; ``l-stat`` and ``adain`` also share places, connectors (with their first weights)
and tuning budget: the same grid of weights, tried for two epochs under seed 0 and judged on
validation pictures, which no arm trains on. The test pictures choose nothing.

The desk scale is the first training batch of CIFAR-10, shrunk to 16x16 by the mean of 2x2 pixels:
1,000 pictures for validation, the others for the teacher, 5,000 of these for the students. ``long``
is all of CIFAR-10 with a larger teacher, and the other *axes* of the abstract: another kind of
student, a wider one, a binary one, another data set, another domain (faces), few labels.
``paper`` is CIFAR-100 with ResNet-56 and ResNet-20 as in the common benchmark of distillation: the
paper's own settings are not known. The smoke scale draws its own pictures.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foveate.datasets import catalogue
from foveate.datasets.images import CIFAR10, CIFAR100, FashionMNIST, mean_pool
from foveate.datasets.npz import read_npz
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.learning.adain import AdaINDistiller, Judge, channel_sensitivity
from foveate.learning.distillation import (
    AttentionMatchingLoss,
    Connector,
    FitNetLoss,
    FrozenTeacher,
    LogitKD,
)
from foveate.nn.binary_resnet import BinaryResNet
from foveate.nn.resnet import BasicBlock, ResNet
from foveate.nn.staged import SmallVGG, StagedModel, layer_outputs
from foveate.quantization.layers import BinaryConv2d, clip_latent_weights
from foveate.report import evidence
from foveate.report.evidence import Claim, Evidence, Finding, Ledger, Result, Verdict, mean

__all__ = ["ARMS", "AXES", "CLAIM", "PRESETS", "Config", "run"]

CLAIM = Claim(
    text=(
        "A student learns more when its channel statistics are written into the teacher's features "
        "and the teacher judges the result than when they are matched by a squared loss"
    ),
    metric="accuracy",
    direction="higher",
    method="adain",
    ablation="l-stat",
    rule=(
        "over paired seeds, AdaIN is above labels only in the mean, and under every seed or by "
        "more than two standard errors; and it is above the squared loss on the statistics by more "
        "than one standard error (within one: inconclusive)"
    ),
    published="no figure is known; the abstract claims it over architectures, sizes, data, domains",
    certainty="P",
)

ARMS = {
    "ce": "labels only",
    "l-stat": "labels and squared distance of channel statistics",
    "adain": "labels and the teacher's answer to its features with the student's statistics",
    "adain-mu": "as adain, but the deviations stay the teacher's",
    "adain-last": "as adain, at the last stage only",
    "kd": "0.1 of labels and 0.9 of the teacher's logits at temperature 4",
    "at": "labels and 1000 times the squared distance of attention maps",
    "fitnet": "labels and 100 times the squared distance of features",
    "adain+kd": "kd and the loss of adain",
}
REQUIRED = ("ce", "l-stat", "adain")
GRIDS = {"tune-l-stat": "l-stat", "tune-adain": "adain"}
OTHERS = {
    "teacher": "the teacher, trained once",
    "tune-l-stat": "weights of l-stat on validation pictures, a short training each",
    "tune-adain": "weights of adain on validation pictures, a short training each",
    "mechanism": "no training: the mean of every channel of the teacher shifted, one at a time",
}

KD_WEIGHT, KD_TEMPERATURE, AT_WEIGHT, FITNET_WEIGHT = 0.9, 4.0, 1000.0, 100.0
DROPS = (150 / 240, 180 / 240, 210 / 240)  # of a training, where the learning rate falls
MEAN, STD = 0.45, 0.25  # of pixels in [0, 1], roughly those of photographs
PROBED = 1000  # validation pictures of the mechanism check

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
T = TypeVar("T")
Measured = tuple[evidence.Metrics, evidence.Items]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    arms, axes
        Names of `ARMS` beside the required ones and of `AXES` beside ``base``; axes run the
        required arms only.
    data, data_root
        ``patterns`` are drawn; the others lie below `data_root` (foveate's own folder when None)
        in their official layout; CIFAR-10 also as ``images/cifar10_*.npz``, FER2013 as
        ``faces/fer2013_subset.npz``, Fashion-MNIST also where Debian's package puts it.
    batches
        Training batches of CIFAR-10 to read, of 1 to 5.
    size
        Edge of the pictures as the networks see them, pixels.
    validation
        Share of the training pictures on which weights are chosen; nothing trains on them.
    student_pictures
        Students train on so many of the teacher's training pictures; 0: all.
    pictures
        Of ``patterns``: number of training and of test pictures.
    student
        ``resnet``; ``vgg``: plain convolutions of the same three widths; ``binary``: 1-bit
        weights and activations in the blocks.
    layers
        Numbers of the stages (from 1) after which statistics are taken.
    judge
        As in `AdaINDistiller`.
    grid, tuning_epochs
        Weights tried for ``l-stat`` and for ``adain``, each divided by the number of `layers`, and
        for how long each is tried.
    lr, weight_decay, binary_lr
        Of SGD with momentum 0.9; the ``binary`` student has Adam without decay.
    """

    scale: str
    arms: tuple[str, ...] = tuple(ARMS)
    axes: tuple[str, ...] = ()
    data: Literal["patterns", "cifar10", "cifar100", "fashion-mnist", "fer2013"] = "cifar10"
    data_root: Path | None = None
    batches: tuple[int, ...] = (1,)
    size: int = 16
    validation: float = 0.1
    student_pictures: int = 5000
    pictures: int = 1000
    teacher_widths: tuple[int, ...] = (16, 32, 64)
    teacher_blocks: tuple[int, ...] = (1, 1, 1)
    student: Literal["resnet", "vgg", "binary"] = "resnet"
    student_widths: tuple[int, ...] = (4, 8, 16)
    student_blocks: tuple[int, ...] = (1, 1, 1)
    layers: tuple[int, ...] = (1, 2)
    judge: Judge = "logits_mse"
    grid: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    tuning_epochs: int = 2
    teacher_epochs: int = 20
    epochs: int = 15
    batch: int = 64
    lr: float = 0.05
    binary_lr: float = 1e-3
    weight_decay: float = 5e-4
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        for what, asked, known in (("arm", self.arms, ARMS), ("axis", self.axes, AXES)):
            if unknown := [name for name in asked if name not in known]:
                raise FoveateError(f"no {what} is called {unknown[0]!r}; use {', '.join(known)}")
        shapes = (
            self.teacher_widths,
            self.teacher_blocks,
            self.student_widths,
            self.student_blocks,
        )
        if len(set(map(len, shapes))) > 1 or not set(self.layers) <= set(range(1, self.stages + 1)):
            raise FoveateError(
                "widths and blocks of teacher and student have one number per stage and layers are "
                f"numbers of stages, got {shapes} and {self.layers}"
            )
        if min(self.epochs, self.teacher_epochs, self.tuning_epochs, self.batch) < 1:
            raise FoveateError("epochs, teacher_epochs, tuning_epochs and batch are at least 1")
        good = self.layers and self.grid and min(self.grid) > 0 and 0 < self.validation < 1
        if not good or list(self.grid) != sorted(self.grid):
            raise FoveateError(
                "layers and grid are not empty, grid holds rising weights above 0 and validation "
                f"is a share between 0 and 1, got {self.layers}, {self.grid}, {self.validation}"
            )

    @property
    def stages(self) -> int:
        """Number of stages of both networks."""
        return len(self.teacher_widths)


AXES: dict[str, dict[str, Any]] = {
    "base": {},
    "vgg": {"student": "vgg"},
    "binary": {"student": "binary"},
    "wider": {"student_widths": (8, 16, 32)},
    "fashion-mnist": {"data": "fashion-mnist"},
    "fer2013": {"data": "fer2013", "size": 16},
    "few-labels": {"student_pictures": 1000},
}
"""What the abstract claims to hold over: settings that differ from those of the preset."""

PRESETS = {
    "smoke": Config(
        scale="smoke",
        data="patterns",
        pictures=60,
        student_pictures=32,
        teacher_widths=(4, 8, 8),
        student_widths=(2, 4, 4),
        teacher_epochs=1,
        epochs=1,
        tuning_epochs=1,
        grid=(1.0, 3.0),
        batch=16,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "long": Config(
        scale="long",
        axes=tuple(AXES),
        batches=(1, 2, 3, 4, 5),
        size=32,
        student_pictures=0,
        teacher_widths=(32, 64, 128),
        teacher_blocks=(2, 2, 2),
        teacher_epochs=60,
        epochs=60,
        accelerator="auto",
    ),
    "paper": Config(
        scale="paper",
        data="cifar100",
        size=32,
        student_pictures=0,
        teacher_blocks=(9, 9, 9),
        student_widths=(16, 32, 64),
        student_blocks=(3, 3, 3),
        tuning_epochs=20,
        teacher_epochs=240,
        epochs=240,
        accelerator="auto",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence:
    """Train the teacher, choose the weights, train and test every arm; finished work is reused.

    Raises
    ------
    FoveateError
        The data are not there, or too few for one step.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    # An arm does not depend on which others run, so their choice does not make its result another.
    neutral = dataclasses.replace(config, arms=(), axes=())
    ledger = Ledger("adain-distillation", neutral, __file__)
    fabric = Fabric(accelerator=config.accelerator, devices=1)
    jobs = jobs_of(config)
    setup: Setup | None = None
    said: dict[str, None] = {}
    results: list[Result] = []
    for done, (arm, axis, seed) in enumerate(jobs):
        if setup is None or setup.axis != axis:
            here = dataclasses.replace(config, **AXES[axis])
            setup = Setup(axis, here, load_data(here), fabric, ledger.folder)
            said[setup.data.what] = None
        name = named(arm, axis)

        def say(what: str, name: str = name, seed: int = seed, done: int = done) -> None:
            tell(f"{name}, seed {seed}{what}", done, len(jobs))

        say("")
        results.append(ledger.result(name, seed, partial(measure, arm, seed, setup, results, say)))
    words = {**OTHERS, **ARMS}
    return Evidence(
        recipe="adain-distillation",
        claim=CLAIM,
        verdict=verdict(results),
        arms={named(arm, axis): words[arm] for arm, axis, _ in jobs},
        results=results,
        data="; ".join(said),
        simulated=config.data == "patterns",
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results),
        notes=remarks(results),
        seconds=round(time.perf_counter() - started, 1),
    )


def measure(
    arm: str, seed: int, setup: Setup, results: Sequence[Result], tell: Tell
) -> evidence.Metrics | Measured:
    """Do one job; `results` are those of the jobs before it."""
    teacher = trained_teacher(setup, tell)
    if arm == "teacher":
        return evaluate(teacher, setup)
    if arm == "mechanism":
        return mechanism(teacher, setup)
    if arm in GRIDS:
        return tuned(GRIDS[arm], teacher, setup, tell)
    grid = named("tune-l-stat" if arm == "l-stat" else "tune-adain", setup.axis)
    weight = mean(results, grid, "weight")
    return train_arm(arm, seed, weight, setup.config.epochs, teacher, setup, tell)


def named(arm: str, axis: str) -> str:
    """Name of an arm in the results."""
    return arm if axis == "base" else f"{arm}@{axis}"


def jobs_of(config: Config) -> list[tuple[str, str, int]]:
    """Arm, axis and seed of all that is to be done, in an order in which it can be done."""
    jobs = []
    for axis, changes in AXES.items():
        if axis != "base" and axis not in config.axes:
            continue
        base = axis == "base"
        if base or "data" in changes:
            jobs.append(("teacher", axis, 0))
        jobs += [(grid, axis, 0) for grid in GRIDS]
        if base:
            jobs.append(("mechanism", axis, 0))
        arms = [arm for arm in ARMS if arm in REQUIRED or (base and arm in config.arms)]
        jobs += [(arm, axis, seed) for seed in config.seeds for arm in arms]
    return jobs


@dataclass(frozen=True)
class Setup:
    """What all arms of an axis share; `folder` keeps the teachers."""

    axis: str
    config: Config
    data: Data
    fabric: Fabric
    folder: Path


# ------------------------------------------------------------------------------ networks


def teacher_net(setup: Setup) -> ResNet:
    """The untrained teacher: basic blocks, the CIFAR form's shortcuts without parameters."""
    config, data = setup.config, setup.data
    shape = (config.teacher_blocks, config.teacher_widths, data.classes, data.shape[0])
    return seeded(0, lambda: ResNet(BasicBlock, *shape, stem="cifar", shortcut="pad"))


def student_net(seed: int, setup: Setup) -> nn.Module:
    """The untrained student; its first weights depend on the seed alone, not on the arm."""
    config, data = setup.config, setup.data
    widths, blocks = config.student_widths, config.student_blocks
    ends = (data.classes, data.shape[0])
    if config.student == "vgg":
        return seeded(seed, lambda: SmallVGG(widths, *ends))
    if config.student == "binary":

        def conv(c_in: int, c_out: int, kernel: int, stride: int, padding: int) -> nn.Module:
            return BinaryConv2d(c_in, c_out, kernel, stride, padding)

        return seeded(seed, lambda: BinaryResNet(conv, widths, blocks, *ends, stem="cifar"))
    return seeded(
        seed, lambda: ResNet(BasicBlock, blocks, widths, *ends, stem="cifar", shortcut="pad")
    )


def seeded(seed: int, build: Callable[[], T]) -> T:
    """What `build` makes with torch's random numbers at `seed`, which are put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def staged(net: ResNet, example: Tensor) -> StagedModel:
    """The teacher, cut behind its stages; they are called ``layer1 ...``."""
    first, *others = net.stage_names
    head, tail = ("conv1", "bn1", "relu", "maxpool", first), ("avgpool", nn.Flatten(), "fc")
    return StagedModel.from_children(net, [head, *((name,) for name in others), tail], example)


class Lesson(nn.Module):
    """Student, frozen teacher (None: labels only) and the losses of one arm.

    ``forward(x, y)`` gives the loss on labels and logits, the weighted loss on what lies within,
    and the cross-entropy: three scalars.
    """

    def __init__(
        self, arm: str, student: nn.Module, teacher: StagedModel | None, weight: float,
        config: Config, example: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self.arm, self.student = arm, student
        stages = (config.stages,) if arm == "adain-last" else config.layers
        self.names = [f"layer{stage}" for stage in stages]
        self.teacher = None if teacher is None else FrozenTeacher(teacher)
        self.distiller: AdaINDistiller | None = None
        self.connectors = nn.ModuleList()
        self.attention, self.fitnet = AttentionMatchingLoss(), FitNetLoss()
        self.imitation = LogitKD(KD_TEMPERATURE)
        if teacher is not None and arm in ("l-stat", "adain", "adain-mu", "adain-last", "adain+kd"):
            self.distiller = AdaINDistiller(
                teacher,
                student,
                self.names,
                example,
                judge=config.judge,
                beta=0.0 if arm == "l-stat" else weight,
                alpha_stat=weight if arm == "l-stat" else 0.0,
                # behind the last stage sigma has no effect: leaving it out says so
                statistics="mean" if arm in ("adain-mu", "adain-last") else "both",
            )
        if arm == "fitnet":
            channels = list(zip(config.student_widths, config.teacher_widths, strict=True))
            self.connectors.extend(Connector(*channels[stage - 1]) for stage in stages)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.distiller is not None:
            found = self.distiller(x, y)
            ce, within = found["ce"], found["loss"] - found["ce"]
            if self.arm == "adain+kd":
                return self.mixed(ce, found["logits"], found["teacher_logits"]), within, ce
            return ce, within, ce
        logits, ours = layer_outputs(self.student, x, self.names)
        ce = F.cross_entropy(logits, y)
        none = torch.zeros_like(ce)
        if self.teacher is None or self.arm == "ce":
            return ce, none, ce
        with torch.no_grad():
            taught, theirs = cast(StagedModel, self.teacher.network).outputs(x, self.names)
        if self.arm == "kd":
            return self.mixed(ce, logits, taught), none, ce
        if self.arm == "at":
            return ce, AT_WEIGHT * self.attention(ours, theirs), ce
        matched = [connect(f) for connect, f in zip(self.connectors, ours, strict=True)]
        return ce, FITNET_WEIGHT * self.fitnet(matched, theirs), ce

    def mixed(self, ce: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """Labels and the teacher's logits."""
        imitation: Tensor = self.imitation(logits, taught)
        return (1 - KD_WEIGHT) * ce + KD_WEIGHT * imitation


# ------------------------------------------------------------------------------ training


def trained_teacher(setup: Setup, tell: Tell) -> StagedModel:
    """The teacher of a data set, trained once and kept in a file."""
    config, data, net = setup.config, setup.data, teacher_net(setup)
    example = torch.zeros(1, *data.shape)
    kept = setup.folder / f"teacher-{config.data}-{config.size}.safetensors"
    if kept.is_file():
        net.load_state_dict(load_file(kept))
    else:
        lesson = Lesson("ce", net, None, 0.0, config, example)
        fit(lesson, data.train, config.teacher_epochs, 0, setup, tell)
        with write_whole(kept) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in net.state_dict().items()}, temporary)
    return staged(setup.fabric.to_device(net.eval()), setup.fabric.to_device(example))


def train_arm(
    arm: str, seed: int, weight: float, epochs: int, teacher: StagedModel, setup: Setup, tell: Tell
) -> evidence.Metrics:
    """Train a student and test it alone; the teacher and the connectors are dropped.

    ``share`` is the weighted loss on features over the cross-entropy in the first epoch. All
    figures are NaN when the training went out of bounds.
    """
    student = setup.fabric.to_device(student_net(seed, setup))
    chosen = torch.arange(min(8, len(setup.data.student)))
    ((x, _),) = setup.data.student.read([chosen])
    x = setup.fabric.to_device(x)
    # connectors, too, start alike in every arm that has them
    lesson = seeded(seed, lambda: Lesson(arm, student, teacher, weight, setup.config, x))
    share = fit(lesson, setup.data.student, epochs, seed, setup, tell)
    found = evaluate(student, setup)
    if math.isnan(share):
        return dict.fromkeys(found, math.nan)
    return found if arm in ("ce", "kd") else {**found, "share": share}


def fit(
    lesson: Lesson, pictures: Pictures, epochs: int, seed: int, setup: Setup, tell: Tell
) -> float:
    """Train `lesson` in place; gives its share (`train_arm`), NaN if a loss was not finite.

    `seed` fixes the order of the pictures and their variations. Where the weighted loss on
    features is more than ten times the cross-entropy at the first step it is let in over the first
    epoch: deviations are wild while the student's batch normalisations are fresh.
    """
    config, fabric = setup.config, setup.fabric
    steps = len(pictures) // config.batch
    if not steps:
        raise FoveateError(
            f"{len(pictures)} training pictures do not fill one step of {config.batch}; give more "
            "pictures or a smaller --set batch"
        )
    parameters = [p for p in lesson.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if isinstance(lesson.student, BinaryResNet):
        optimizer = torch.optim.Adam(parameters, config.binary_lr)
    else:
        optimizer = torch.optim.SGD(parameters, config.lr, 0.9, weight_decay=config.weight_decay)
    model, optimizer = fabric.setup(lesson, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.1 ** sum(step >= drop * epochs * steps for drop in DROPS)
    )
    order, draw = (torch.Generator().manual_seed(k) for k in (seed, 1000 * (seed + 1)))
    share, gentle, finite = 0.0, False, True
    model.train()
    for epoch in range(epochs):
        shuffled = torch.randperm(len(pictures), generator=order)[: steps * config.batch]
        sums = [0.0, 0.0]
        for step, (x, y) in enumerate(pictures.read(shuffled.view(steps, -1), draw)):
            outer, within, ce = model(fabric.to_device(x), fabric.to_device(y))
            if epoch == step == 0:
                gentle = within.item() > 10 * ce.item()
            ramp = (step + 1) / steps if gentle and epoch == 0 else 1.0
            optimizer.zero_grad()
            fabric.backward(outer + ramp * within)
            optimizer.step()
            schedule.step()
            clip_latent_weights(lesson.student)  # of 1-bit layers; others have none
            sums = [sums[0] + ce.item(), sums[1] + within.item()]
        finite = finite and math.isfinite(sum(sums))
        share = sums[1] / sums[0] if epoch == 0 and sums[0] else share
        said = f"cross-entropy {sums[0] / steps:.3f}, on features {sums[1] / steps:.3f}"
        tell(f", epoch {epoch + 1} of {epochs}: {said}")
    lesson.student.eval()
    return share if finite else math.nan


def tuned(arm: str, teacher: StagedModel, setup: Setup, tell: Tell) -> Measured:
    """Try every weight of the grid under seed 0; the best on validation pictures is ``weight``."""
    config = setup.config
    weights = [weight / len(config.layers) for weight in config.grid]
    found = []
    for weight in weights:

        def say(what: str, weight: float = weight) -> None:
            tell(f", weight {weight:g}{what}")

        found.append(train_arm(arm, 0, weight, config.tuning_epochs, teacher, setup, say))
    accuracy = [metrics["accuracy_val"] for metrics in found]
    best = max(range(len(weights)), key=lambda k: (math.isfinite(accuracy[k]), accuracy[k], -k))
    items = {"weight": weights, "accuracy_val": accuracy}
    items["share"] = [metrics.get("share", math.nan) for metrics in found]
    return {"weight": weights[best], "accuracy_val": accuracy[best]}, items


# ------------------------------------------------------------------------------ testing


@torch.no_grad()
def evaluate(net: nn.Module, setup: Setup) -> evidence.Metrics:
    """Accuracy on test and validation pictures, in percent, and the number of parameters."""
    net.eval()
    found: evidence.Metrics = {}
    for name, pictures in (("accuracy", setup.data.test), ("accuracy_val", setup.data.val)):
        right = 0
        for x, y in pictures.read(torch.split(torch.arange(len(pictures)), 250)):
            right += int((net(setup.fabric.to_device(x)).argmax(1).cpu() == y).sum())
        found[name] = 100 * right / len(pictures)
    return {**found, "parameters": sum(p.numel() for p in net.parameters())}


def mechanism(teacher: StagedModel, setup: Setup) -> Measured:
    """`channel_sensitivity` on validation pictures, all channels of all layers.

    ``rank_ada`` and ``rank_stat`` are Spearman's correlations of the two losses of a shift with
    the accuracy that the teacher loses by it. A larger shift raises all three, so ``rank_beyond``
    is the partial correlation: what L_ada knows of the loss of accuracy beside the squared loss.
    """
    batches = torch.split(torch.arange(min(PROBED, len(setup.data.val))), 250)
    pictures = [setup.fabric.to_device(pair) for pair in setup.data.val.read(batches)]
    items: evidence.Items = {"layer": []}
    for layer in setup.config.layers:
        found = channel_sensitivity(teacher, pictures, f"layer{layer}")
        for name, values in found.items():
            items.setdefault(name, []).extend(values)
        items["layer"] += [layer] * len(found["drop"])
    ada, stat, both = (
        rank(items[a], items[b]) for a, b in (("ada", "drop"), ("stat", "drop"), ("ada", "stat"))
    )
    rest = (1 - stat**2) * (1 - both**2)
    beyond = (ada - stat * both) / math.sqrt(rest) if rest > 0 else math.nan
    return {"rank_ada": ada, "rank_stat": stat, "rank_beyond": beyond}, items


def rank(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's correlation; NaN where one of the two does not vary."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(scipy.stats.spearmanr(a, b).statistic)


# ------------------------------------------------------------------------------ verdicts


def gains(results: Sequence[Result], one: str, other: str) -> list[float]:
    """Points by which `one` is above `other`, seed by seed."""
    top = {(r.arm, r.seed): r.metrics["accuracy"] for r in results if "accuracy" in r.metrics}
    seeds = sorted(seed for arm, seed in top if arm == one and (other, seed) in top)
    return [top[one, seed] - top[other, seed] for seed in seeds]


def summary(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN where there are too few, or one of them is none."""
    if not differences or not all(map(math.isfinite, differences)):
        return math.nan, math.nan
    if len(differences) < 2:
        return differences[0], math.nan
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), error


def beats(differences: Sequence[float]) -> Verdict:
    """First half of the rule: above in the mean, and under every seed or by two standard errors."""
    average, error = summary(differences)
    if len(differences) < 3 or not math.isfinite(average):
        return "inconclusive"
    sure = min(differences) > 0 or average > 2 * error
    return "reproduced" if average > 0 and sure else "not reproduced"


def ahead(differences: Sequence[float]) -> Verdict:
    """Second half: above by more than a standard error; within one nothing is decided."""
    average, error = summary(differences)
    if len(differences) < 3 or not math.isfinite(average) or abs(average) <= error:
        return "inconclusive"
    return "reproduced" if average > 0 else "not reproduced"


def verdict(results: Sequence[Result], axis: str = "base") -> Verdict:
    """The rule of the specification (`CLAIM.rule`)."""
    ce, stat, ours = (named(arm, axis) for arm in REQUIRED)
    halves = {beats(gains(results, ours, ce)), ahead(gains(results, ours, stat))}
    if "not reproduced" in halves:
        return "not reproduced"
    return "inconclusive" if "inconclusive" in halves else "reproduced"


QUESTIONS: list[tuple[str, str, str, Callable[[Sequence[float]], Verdict]]] = [
    ("adain", "ce", "(1) AdaIN beats labels only", beats),
    ("adain", "l-stat", "(2) AdaIN beats the squared loss on the statistics", ahead),
    ("adain", "adain-mu", "Means and deviations beat means only", ahead),
    ("adain", "adain-last", "The chosen stages beat the last stage alone", ahead),
    ("adain", "kd", "AdaIN beats the teacher's logits (no part of the rule)", ahead),
    ("adain", "at", "AdaIN beats attention maps (no part of the rule)", ahead),
    ("adain", "fitnet", "AdaIN beats features (no part of the rule)", ahead),
    ("adain+kd", "kd", "AdaIN adds to the teacher's logits", ahead),
]


def findings(results: Sequence[Result]) -> list[Finding]:
    """Both halves of the rule, what of the method does it, other methods, the other axes."""
    measured = {r.arm for r in results}
    found = []
    for one, other, what, rule in QUESTIONS:
        if {one, other} <= measured:
            points = gains(results, one, other)
            average, error = summary(points)
            text = (
                f"{what}: {mean(results, one, 'accuracy'):.2f} against "
                f"{mean(results, other, 'accuracy'):.2f} %, {average:+.2f} points (standard error "
                f"{error:.2f})."
            )
            found.append(Finding(text, rule(points)))
    if "mechanism" in measured:
        ada, stat, beyond = (
            mean(results, "mechanism", f"rank_{name}") for name in ("ada", "stat", "beyond")
        )
        text = (
            "L_ada holds on to the channels that the teacher needs: over channels shifted one at a "
            f"time, its rank correlation with the loss of accuracy is {ada:.2f} (above 0.5 is "
            f"expected; that of the squared loss is {stat:.2f}, L_ada's beside it {beyond:.2f})."
        )
        holds: Verdict = "reproduced" if ada > 0.5 else "not reproduced"
        found.append(Finding(text, "inconclusive" if math.isnan(ada) else holds))
    for axis in AXES:
        if axis != "base" and named("adain", axis) in measured:
            ce, stat, ours = (mean(results, named(arm, axis), "accuracy") for arm in REQUIRED)
            text = (
                f"The claim holds on the axis {axis}: {ours:.2f} % with AdaIN, {stat:.2f} with the "
                f"squared loss, {ce:.2f} with labels only."
            )
            found.append(Finding(text, verdict(results, axis)))
    return found


def remarks(results: Sequence[Result]) -> list[str]:
    """The teacher, the chosen weights, the sizes of the losses, what was not tuned."""
    top = mean(results, "teacher", "accuracy")
    said = [f"The teacher calls {top:.2f} % of the test pictures by their label."]
    for result in results:
        if result.arm in GRIDS:
            arm, items = GRIDS[result.arm], result.items
            pairs = zip(items["weight"], items["accuracy_val"], strict=True)
            tried = ", ".join(f"{weight:g} ({accuracy:.1f} %)" for weight, accuracy in pairs)
            said.append(
                f"Weight of {arm}: {result.metrics['weight']:g}, of {tried} on validation pictures "
                f"after a short training. Weighted, its loss is {mean(results, arm, 'share'):.2f} "
                "of the cross-entropy in the first epoch (0.5 to 2 was aimed at)."
            )
    if {"kd", "at", "fitnet"} & {r.arm for r in results}:
        said.append("Weights of kd, at and fitnet are those of the common benchmark, not tuned.")
    return said


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Pictures:
    """Small pictures: ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: Tensor) -> Pictures:
        """Some of them."""
        return Pictures(self.images[index], self.labels[index])

    def read(
        self, batches: Sequence[Tensor] | Tensor, draw: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised pictures ``(B, C, H, W)`` and labels ``(B,)`` of each batch of indices.

        With `draw` every picture is shifted by up to an eighth of its edge, half are mirrored.
        """
        for chosen in batches:
            x = (self.images[chosen] / 255 - MEAN) / STD
            yield x if draw is None else shifted(x, draw), self.labels[chosen]


@dataclass(frozen=True)
class Data:
    """The splits, and how to call them; `student` is a part of `train`, `val` of neither."""

    what: str
    classes: int
    train: Pictures
    student: Pictures
    val: Pictures
    test: Pictures

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.test.images.shape[1:])


def shifted(x: Tensor, draw: torch.Generator) -> Tensor:
    """Pad ``(B, C, H, W)`` with zeros by H / 8, crop it anywhere, mirror half of the pictures."""
    count, _, height, width = x.shape
    reach = height // 8
    windows = F.pad(x, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * reach + 1, (2, count), generator=draw)
    crops = windows[torch.arange(count), :, down, right]
    mirror = torch.rand(count, generator=draw) < 0.5
    return torch.where(mirror[:, None, None, None], crops.flip(3), crops)


def load_data(config: Config) -> Data:
    """Read a data set and split it: validation, the teacher's pictures, the students' of these.

    The split is a fixed draw, the same for every seed, student and arm.
    """
    title, classes, arrays = read_arrays(config, config.data_root or catalogue.data_root())
    edge = arrays[0][0].shape[-1]
    if config.size < 1 or edge % config.size:
        raise FoveateError(
            f"size is {config.size}, but pictures of {title} have an edge of {edge} pixels; choose "
            "a divisor of it"
        )
    whole, test = (
        Pictures(torch.from_numpy(mean_pool(x, edge // config.size)), torch.from_numpy(y))
        for x, y in arrays
    )
    # numpy promises to keep the raw stream of PCG64, not its distributions
    order = torch.from_numpy(np.argsort(np.random.PCG64(0).random_raw(len(whole)), kind="stable"))
    held = max(1, round(config.validation * len(whole)))
    val, train = whole.part(order[:held]), whole.part(order[held:])
    if len(train) < config.student_pictures:
        raise FoveateError(
            f"student_pictures is {config.student_pictures}, but without those for validation "
            f"{title} has {len(train)} training pictures; ask for fewer, or for all with 0"
        )
    student = train.part(torch.arange(config.student_pictures or len(train)))
    what = (
        f"{title}, {config.size} x {config.size} pixels: {len(train):,} training pictures of the "
        f"teacher, {len(student):,} of the students, {len(val):,} for validation, {len(test):,} "
        "for the test"
    )
    return Data(what, classes, train, student, val, test)


def read_arrays(config: Config, root: Path) -> tuple[str, int, list[tuple[Any, Any]]]:
    """Title, number of classes, then pictures uint8 and labels int64 of training and test."""
    if config.data == "patterns":
        title = "drawn gratings of 4 directions (simulated)"
        return title, 4, [gratings(config.pictures, config.size, seed) for seed in (0, 1)]
    if config.data == "fer2013":
        names = ("faces/fer2013_subset.npz", "fer2013_subset.npz")
        path = next((root / name for name in names if (root / name).is_file()), root / names[0])
        found = read_npz(path, ("x_train", "y_train", "x_test", "y_test"), 1 << 28)
        pairs = [(found[f"x_{part}"], found[f"y_{part}"]) for part in ("train", "test")]
        if any(x.dtype != np.uint8 or y.dtype != np.uint8 or x.shape != (*y.shape, 48, 48)
               or not y.size or y.max() > 6 for x, y in pairs):  # fmt: skip
            raise FoveateError(
                f"{path} should hold x_train, x_test uint8 (N, 48, 48) and y_train, y_test uint8 "
                "(N,) of 0 to 6; make it again"
            )
        return "FER2013 (subset)", 7, [(x[:, None], y.astype(np.int64)) for x, y in pairs]
    sets: list[CIFAR10 | CIFAR100 | FashionMNIST]
    if config.data == "cifar10":
        sets = [CIFAR10(root, "train", config.batches), CIFAR10(root, "test")]
    elif config.data == "cifar100":
        sets = [CIFAR100(root, "train"), CIFAR100(root, "test")]
    else:
        place = FashionMNIST.card.locate(root) or root
        sets = [FashionMNIST(place, "train"), FashionMNIST(place, "test")]
    arrays = [one.arrays() for one in sets]
    if config.data == "fashion-mnist":  # 28 pixels to 32, a power of two
        arrays = [(np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))), y) for x, y in arrays]
    return sets[0].card.title, len(sets[0].classes), arrays


def gratings(count: int, size: int, seed: int) -> tuple[Any, Any]:
    """Noisy stripes of any phase and colour, ``(count, 3, size, size)``; the class is their way."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    turn, phase = np.pi / 4 * labels, draw.uniform(0, 2 * np.pi, count)
    y, x = np.mgrid[:size, :size]
    along = np.cos(turn)[:, None, None] * x + np.sin(turn)[:, None, None] * y
    wave = np.sin(along + phase[:, None, None])[:, None] * draw.uniform(30, 90, (count, 3, 1, 1))
    noisy = 128 + wave + draw.normal(0, 20, (count, 3, size, size))
    return noisy.clip(0, 255).astype(np.uint8), labels
