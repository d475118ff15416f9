"""Modular adaptive training: back-propagate only through the modules that learn something now.

Paper: Shi et al., "Train Faster, Perform Better: Modular Adaptive Training in Over-Parameterized
Models", NeurIPS 2023 (arXiv 2405.07527).

Every epoch, the largest eigenvalue lambda of each module's own tangent kernel is measured on a
fixed probe of training pictures; modules (heads, groups of hidden units or filters) below a
threshold are left out of back-propagation until the next measurement. Forward, all work. The claim
is that this takes about half the computation, and ends a little better.

    full       all modules, always
    mat        those of the largest lambda
    random     as many, drawn anew every epoch       <- does it have to be *these*?
    smallest   as many, those of the smallest lambda <- and not the opposite ones?
    freeze-one no arm: at some epochs, each head in turn is frozen for ten steps from one and the
               same state, and the loss that is missed compared with its lambda

All arms share the network, its first weights, the order of pictures, and a first epoch in which all
modules learn. The bill of an arm counts what was executed: forward passes, backward passes as far
as they went, and, of `mat` and `smallest`, the measurements. Validation is nobody's.

The desk scale is a tiny vision transformer on Fashion-MNIST, 5000 training and 2000 validation
pictures out of the training file. The paper scale is VGG16 on CIFAR-10; its BERT on WikiText-2 and
Switch Transformer on WikiText-103 are not built. Its threshold is not known to us, see
`foveate.learning.modular_policies`: the desk takes a quantile, so that the cost is set beforehand.
Nothing is chosen by the test pictures, which are looked at once, at the end.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from foveate.datasets import catalogue
from foveate.datasets.images import CIFAR10, FashionMNIST, LabelledImages, balanced_subset
from foveate.errors import FoveateError
from foveate.learning.modular import (
    AllOf,
    MATController,
    ModulePartition,
    ModuleSpec,
    Policy,
    QuantileThreshold,
    RandomSelection,
    RatioThreshold,
    TemporalStop,
    module_lambda,
)
from foveate.nn.vision_transformer import VisionTransformer
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

BELOW = 1.0  # points of validation accuracy below the end of full training: the target
COST = 0.7  # share of full training's FLOPs that may be spent to get there
RANK = 0.43  # one-sided 5 % bound of Spearman's coefficient of 16 pairs

CLAIM = Claim(
    text=(
        "Back-propagating only through the modules whose own tangent kernel has a large "
        "eigenvalue reaches the accuracy of full training with far less computation"
    ),
    metric="tflops_to_target",
    direction="lower",
    method="mat",
    ablation="full",
    rule=(
        "in the mean over seeds, MAT reaches full training's final validation accuracy minus "
        f"{BELOW:g} point with at most {COST} of the FLOPs that full training needs for it, "
        "measurements included (a run that never reaches it fails); its area under accuracy over "
        "FLOPs is larger than that of the smallest eigenvalues under every seed, and not smaller "
        "than that of a random choice in the mean"
    ),
    published=(
        "PFLOPs to convergence: BERT on WikiText-2 16.50 instead of 28.70, VGG16 on CIFAR-10 9.03 "
        "instead of 17.14; modules active in about 34 % of the epochs"
    ),
    certainty="R",
)

ARMS = {
    "full": "ordinary training, all modules",
    "mat": "modules of the largest eigenvalues",
    "random": "as many modules, drawn anew every epoch",
    "smallest": "as many modules, those of the smallest eigenvalues",
    "freeze-one": "no arm: each head frozen in turn for some steps, loss missed against eigenvalue",
}
TRAINED = ("full", "mat", "random", "smallest")
VGG_MINI = (32, 32, 0, 64, 64, 0, 128, 128, 0)  # 0: max-pooling
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Measured = tuple[Metrics, Items]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data
        ``auto``: Fashion-MNIST, else CIFAR-10.
    data_root
        Folder of data sets (default: foveate's data folder). Fashion-MNIST is also found where
        Debian's package puts it.
    stand_in
        Where no data set is found, take drawn stripes instead (marked simulated).
    per_class, validation_per_class
        Pictures of each class out of the training file, the same draw always; 0 training pictures:
        all that are not for validation.
    test_pictures
        Take the first of the test pictures only; None: all.
    network
        ``vit`` (its sizes: `width`, `depth`, `heads`, `hidden`), ``vgg-mini`` or ``vgg16``.
    groups
        Groups of hidden units of an MLP, or of filters of a convolution.
    policy
        Of ``mat``: ``quantile`` (`active` of the modules), or ``ratio`` with `alpha`, AND'ed with a
        stop of modules whose eigenvalue rests (`beta`) where that is not 0.
    mode
        What frozen modules skip, see `foveate.learning.modular_layers`.
    probe, signs
        Pictures and sign vectors of the measurement.
    interval, warmup
        Epochs between measurements; measurements at first that freeze nothing.
    augment
        Mirror and shift training pictures.
    trial_epochs, trial_steps
        When and how long ``freeze-one`` freezes; no epochs: it is left out.
    accelerator
        ``auto``: a GPU where there is one.
    """

    scale: str
    data: Literal["auto", "Fashion-MNIST", "CIFAR-10"] = "auto"
    data_root: Path | None = None
    stand_in: bool = False
    per_class: int = 500
    validation_per_class: int = 200
    test_pictures: int | None = None
    network: Literal["vit", "vgg-mini", "vgg16"] = "vit"
    width: int = 64
    depth: int = 4
    heads: int = 4
    hidden: int = 256
    groups: int = 4
    epochs: int = 10
    batch: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    policy: Literal["quantile", "ratio"] = "quantile"
    active: float = 0.4
    alpha: float = 0.1
    beta: float = 0.0
    mode: Literal["cut", "exact"] = "cut"
    probe: int = 64
    signs: int = 4
    interval: int = 1
    warmup: int = 1
    augment: bool = False
    trial_epochs: tuple[int, ...] = (1, 3, 6)
    trial_steps: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: Literal["cpu", "auto"] = "cpu"

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, self.probe, self.groups, self.validation_per_class)
        if min(counts) < 1 or not 0 < self.active <= 1 or self.per_class < 0:
            raise FoveateError(
                "epochs, batch, probe, groups and validation_per_class are at least 1, active is "
                "in (0, 1] and per_class at least 0"
            )
        if any(not 0 <= epoch <= self.epochs for epoch in self.trial_epochs):
            raise FoveateError(
                f"trial_epochs lie between 0 and epochs ({self.epochs}), got {self.trial_epochs}"
            )


PRESETS = {
    "smoke": Config(
        scale="smoke",
        stand_in=True,
        per_class=8,
        validation_per_class=4,
        test_pictures=40,
        width=16,
        depth=1,
        hidden=32,
        epochs=3,
        batch=16,
        probe=8,
        trial_epochs=(1,),
        trial_steps=2,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "conv": Config(
        scale="conv",
        network="vgg-mini",
        epochs=15,
        optimizer="sgd",
        lr=0.05,
        weight_decay=5e-4,
    ),
    "paper": Config(
        scale="paper",
        data="CIFAR-10",
        per_class=0,
        validation_per_class=500,
        network="vgg16",
        groups=8,
        epochs=200,
        optimizer="sgd",
        lr=0.05,
        weight_decay=5e-4,
        policy="ratio",
        alpha=0.2,
        beta=1e-6,
        augment=True,
        trial_epochs=(),
        accelerator="auto",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence:
    """Train every arm under every seed; finished ones are reused.

    Raises
    ------
    FoveateError
        The data set is not there, or is damaged.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    ledger = Ledger("modular-adaptive-training", config, __file__)
    data = load_data(config)
    results: list[Result] = []
    jobs = [(arm, seed) for seed in config.seeds for arm in TRAINED]
    jobs += [("freeze-one", config.seeds[0])] if config.trial_epochs else []
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def say(what: str, done: int = done) -> None:
            tell(what, done, len(jobs))

        def compute(arm: str = arm, seed: int = seed, say: Tell = say) -> Measured:
            if arm == "freeze-one":
                return freeze_one(seed, data, config, say)
            mat = next((r for r in results if (r.arm, r.seed) == ("mat", seed)), None)
            counts = [] if mat is None else [round(n) for n in mat.items["active"]]
            return train(arm, seed, counts, data, config, say)

        results.append(ledger.result(arm, seed, compute))
    results = compared(results)
    return Evidence(
        recipe="modular-adaptive-training",
        claim=CLAIM,
        verdict=verdict(results),
        arms={arm: what for arm, what in ARMS.items() if arm in {r.arm for r in results}},
        results=results,
        data=data.what,
        simulated=data.simulated,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results),
        notes=remarks(results),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ training


@dataclass
class Training:
    """One network under training."""

    net: nn.Module
    partition: ModulePartition
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def step(self, x: Tensor, y: Tensor) -> float:
        """Take one; returns the loss before it."""
        self.net.train()
        loss = F.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad(set_to_none=True)  # a gradient of zeros would still decay weights
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def state(self) -> list[dict[str, Any]]:
        """Of weights, optimiser and schedule."""
        return [part.state_dict() for part in (self.net, self.optimizer, self.schedule)]

    def go_back(self, state: list[dict[str, Any]]) -> None:
        """To an earlier `state`."""
        self.net.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        self.schedule.load_state_dict(state[2])


def network(config: Config, shape: Sequence[int]) -> nn.Module:
    """The plain network for pictures of `shape` ``(C, H, W)``."""
    if config.network == "vit":
        return VisionTransformer(
            shape[1],
            4,
            shape[0],
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=config.hidden,
        )
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in VGG16 if config.network == "vgg16" else VGG_MINI:
        if width:
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def start(seed: int, data: Data, config: Config) -> Training:
    """Network, partition and optimiser; the first weights are those of the seed, for every arm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(config, data.train.images.shape[1:]).to(data.mean.device)
    filters = 0 if config.network == "vit" else config.groups
    spec = ModuleSpec(ffn_groups=config.groups, filter_groups=filters)
    partition = ModulePartition.from_model(net, spec)
    weights, lr, decay = net.parameters(), config.lr, config.weight_decay
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(weights, lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(weights, lr, momentum=0.9, weight_decay=decay)
    steps = config.epochs * math.ceil(len(data.train) / config.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return Training(net, partition, optimizer, schedule)


def policy_of(arm: str, counts: Sequence[int], modules: int, seed: int, config: Config) -> Policy:
    """Who learns. The controls let as many modules learn as ``mat`` did, decision by decision."""
    if arm == "full":
        return RandomSelection(0.0)
    if arm == "mat" and config.policy == "ratio":
        ratio = RatioThreshold(config.alpha)
        return AllOf(ratio, TemporalStop(config.beta)) if config.beta else ratio
    if arm == "mat":
        return QuantileThreshold(1 - config.active)

    def q(step: int) -> float:
        active = counts[min(step, len(counts) - 1)]  # fewer decisions where ``mat`` diverged
        return (modules - active) / max(modules - 1, 1)

    return RandomSelection(q, seed) if arm == "random" else QuantileThreshold(q, smallest=True)


def train(
    arm: str, seed: int, counts: Sequence[int], data: Data, config: Config, tell: Tell
) -> Measured:
    """Train one arm.

    Metrics: accuracies in percent; ``tflops`` (all that was executed, in 1e12), ``measuring`` (the
    measurements' share of it); ``mean_active``, share of modules and epochs after warm-up;
    ``returned``, modules that froze and came back; ``train_seconds``, wall clock of steps and
    measurements. Items, by epoch: ``tflops`` so far and ``validation`` accuracy (both from before
    the first step), ``loss`` of training, ``active`` modules, and of ``mat`` ``lambda NAME``.
    """
    training = start(seed, data, config)
    mat = MATController(
        training.net,
        training.partition,
        policy_of(arm, counts, len(training.partition), seed, config),
        data.probe(config.probe),
        config.interval,
        config.mode,
        warmup=config.warmup,
        signs=config.signs,
    )
    spent, reached, losses = [0.0], [tested(training.net, data, data.validation)[0]], []
    seconds, sound = 0.0, True
    for epoch in range(config.epochs):
        started = time.perf_counter()
        mat.on_epoch_start()
        total = 0.0
        for x, y in batches(data, seed, epoch, config):
            mat.on_step_start(len(x))
            total += training.step(x, y) * len(x)
        seconds += time.perf_counter() - started
        losses.append(total / len(data.train))
        spent.append(mat.flops / 1e12)
        sound = math.isfinite(losses[-1]) and all(
            bool(p.isfinite().all()) for p in training.net.parameters()
        )
        reached.append(tested(training.net, data, data.validation)[0] if sound else math.nan)
        tell(
            f"{arm}, seed {seed}, epoch {epoch + 1} of {config.epochs}: loss {losses[-1]:.2f}, "
            f"{reached[-1]:.1f} %, {len(mat.active)} of {len(training.partition)} modules"
        )
        if not sound:  # it diverged: its accuracies are NaN, and the verdict inconclusive
            break
    shares = [len(d.active) / len(training.partition) for d in mat.decisions]
    after = shares[config.warmup :] or shares
    items: Items = {"tflops": spent, "validation": reached, "loss": losses}
    items["active"] = [float(len(d.active)) for d in mat.decisions]
    if arm == "mat":
        for name in training.partition:
            items[f"lambda {name}"] = [d.lam[name] for d in mat.decisions]
    metrics: Metrics = {
        "test_accuracy": tested(training.net, data, data.test)[0] if sound else math.nan,
        "validation_accuracy": reached[-1],
        "loss": losses[-1],
        "tflops": spent[-1],
        "measuring": mat.estimation_flops / mat.flops,
        "mean_active": sum(after) / len(after),
        "returned": float(len(mat.returned())),
        "train_seconds": seconds,
    }
    return metrics, items


@torch.no_grad()
def tested(net: nn.Module, data: Data, pictures: Pictures) -> tuple[float, float]:
    """Accuracy in percent and mean loss."""
    net.eval()
    right = loss = 0.0
    for at in range(0, len(pictures), 500):
        logits = net(data.prepare(pictures.images[at : at + 500]))
        labels = pictures.labels[at : at + 500]
        right += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return 100 * right / len(pictures), loss / len(pictures)


def batches(data: Data, seed: int, epoch: int, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch; seed and epoch alone fix what comes, for every arm."""
    draw = torch.Generator().manual_seed(100_003 * seed + epoch)
    order = torch.randperm(len(data.train), generator=draw)
    for chosen in torch.split(order, config.batch):
        x = data.prepare(data.train.images[chosen])
        yield varied(x, draw) if config.augment else x, data.train.labels[chosen]


def varied(x: Tensor, draw: torch.Generator) -> Tensor:
    """Half of the pictures mirrored, all shifted by up to 4 pixels."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
    x = F.pad(torch.where(mirrored.to(x.device), x.flip(-1), x), (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, len(x), 1), generator=draw) + torch.arange(x.shape[-1] - 8)
    number = torch.arange(len(x))[:, None, None]
    return x.movedim(1, -1)[number, rows[:, :, None], columns[:, None]].movedim(-1, 1)


# ------------------------------------------------------------------------------ freeze-one


def freeze_one(seed: int, data: Data, config: Config, tell: Tell) -> Measured:
    """Does lambda say how much a module learns? Freeze one at a time and see what is missed.

    In ordinary training, at the end of some epochs: from the same weights and optimiser state, the
    next `trial_steps` steps are taken with all modules and, once for each head, with that head
    frozen. Missed is by how much the loss of 1000 fixed training pictures is higher then. Metric:
    ``spearman_E``, rank correlation with lambda at epoch E. A net without heads takes all modules.
    """
    training = start(seed, data, config)
    everything = set(training.partition)
    heads = [name for name in training.partition if ".heads." in name] or sorted(everything)
    modules = {name: training.partition[name] for name in heads}
    fixed = data.train[torch.arange(min(1000, len(data.train)))]
    metrics: Metrics = {}
    items: Items = {}
    for epoch in range(max(config.trial_epochs) + 1):
        if epoch in config.trial_epochs:
            probe = data.probe(config.probe)
            lam = module_lambda(training.net, probe, modules, signs=config.signs)
            before = copy.deepcopy(training.state())
            losses: dict[str | None, float] = {}
            for frozen in (None, *heads):
                training.partition.apply(everything - {frozen}, config.mode)
                trial = batches(data, seed, epoch, config)
                for x, y in itertools.islice(trial, config.trial_steps):
                    training.step(x, y)
                losses[frozen] = tested(training.net, data, fixed)[1]
                training.go_back(copy.deepcopy(before))
            training.partition.apply(everything)
            items[f"lambda {epoch}"] = [lam[name] for name in heads]
            items[f"missed {epoch}"] = [losses[name] - losses[None] for name in heads]
            rank = rank_correlation(items[f"lambda {epoch}"], items[f"missed {epoch}"])
            metrics[f"spearman_{epoch}"] = rank
            tell(f"freeze-one, seed {seed}, epoch {epoch}: rank correlation {rank:.2f}")
        if epoch < max(config.trial_epochs):
            for x, y in batches(data, seed, epoch, config):
                training.step(x, y)
    return metrics, items


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; NaN where one of them does not vary."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(spearmanr(a, b).statistic)


# ------------------------------------------------------------------------------ comparison


def first_reached(flops: Sequence[float], accuracy: Sequence[float], target: float) -> float:
    """Where the curve, linear between its points, is first at `target`; infinite if nowhere."""
    for i, value in enumerate(accuracy):
        if value >= target:
            if i == 0:
                return flops[0]
            rise = (target - accuracy[i - 1]) / (value - accuracy[i - 1])
            return flops[i - 1] + rise * (flops[i] - flops[i - 1])
    return math.inf


def area(flops: Sequence[float], accuracy: Sequence[float], limit: float) -> float:
    """Mean of the curve, linear between its points, from 0 to `limit`."""
    inner = [f for f in flops if f < limit]
    x = np.array([*inner, limit])
    y = np.interp(x, flops, accuracy)
    return float(np.trapezoid(y, x) / limit) if limit > 0 else math.nan


def compared(results: Sequence[Result]) -> list[Result]:
    """Add what takes several arms of one seed: ``tflops_to_target``, ``cost``, ``area``.

    ``cost`` is ``tflops_to_target`` over that of ``full``; ``area`` the mean accuracy from 0 to the
    FLOPs of the arm that spent least.
    """
    found = []
    for result in results:
        seed = {r.arm: r for r in results if r.seed == result.seed and r.arm in TRAINED}
        full = seed.get("full")
        if result.arm not in TRAINED or full is None:
            found.append(result)
            continue
        target = full.metrics["validation_accuracy"] - BELOW
        limit = min(r.items["tflops"][-1] for r in seed.values())
        curve = result.items["tflops"], result.items["validation"]
        at = first_reached(*curve, target)
        full_at = first_reached(full.items["tflops"], full.items["validation"], target)
        derived: Metrics = {
            "tflops_to_target": at,
            "cost": at / full_at if full_at > 0 else math.nan,
            "area": area(*curve, limit),
        }
        found.append(dataclasses.replace(result, metrics={**result.metrics, **derived}))
    return found


def of_seeds(results: Sequence[Result], arm: str, metric: str) -> dict[int, float]:
    """Seed -> value."""
    return {r.seed: r.metrics[metric] for r in results if r.arm == arm and metric in r.metrics}


def verdict(results: Sequence[Result]) -> Verdict:
    """The rule of the specification on cost (`CLAIM.rule`)."""
    cost = of_seeds(results, "mat", "cost")
    areas = {arm: of_seeds(results, arm, "area") for arm in TRAINED[1:]}
    values = [*cost.values(), *(v for row in areas.values() for v in row.values())]
    if (
        len(cost) < 3
        or any(set(row) != set(cost) for row in areas.values())
        or any(math.isnan(v) for v in values)
    ):
        return "inconclusive"
    held = (
        sum(cost.values()) / len(cost) <= COST + 1e-9
        and all(areas["mat"][seed] > areas["smallest"][seed] for seed in cost)
        and sum(areas["mat"].values()) >= sum(areas["random"].values())
    )
    return "reproduced" if held else "not reproduced"


def spread(result: Result) -> tuple[float, float]:
    """Of the heads (all modules if there are none) of a ``mat`` result.

    Returns the largest eigenvalue over the smallest, geometric mean over epochs, and the rank
    correlation between the first and the last measurement.
    """
    of = {name: row for name, row in result.items.items() if name.startswith("lambda ")}
    of = {name: row for name, row in of.items() if ".heads." in name} or of
    if not of:
        return math.nan, math.nan
    courses = list(zip(*of.values(), strict=True))
    logs = [math.log(max(now) / max(min(now), 1e-30)) for now in courses]
    return math.exp(sum(logs) / len(logs)), rank_correlation(courses[0], courses[-1])


def said(true: bool, values: Sequence[float], least: int) -> Verdict:
    """Of a rule without arms; there must be `least` values, none of them NaN."""
    if len(values) < least or any(math.isnan(v) for v in values):
        return "inconclusive"
    return "reproduced" if true else "not reproduced"


def findings(results: Sequence[Result]) -> list[Finding]:
    """Accuracy, the random control, what lambda says, and re-entry: each with a verdict."""
    accuracy = {arm: mean(results, arm, "test_accuracy") for arm in ("mat", "full")}
    areas = {arm: mean(results, arm, "area") for arm in ("mat", "random")}
    ranks = [v for r in results if r.arm == "freeze-one" for v in r.metrics.values()]
    spreads = [spread(r) for r in results if r.arm == "mat"] or [(math.nan, math.nan)]
    columns = list(zip(*spreads, strict=True))
    wide, order = (sum(column) / len(column) for column in columns)
    back = list(of_seeds(results, "mat", "returned").values())
    return [
        Finding(
            "MAT ends at least as accurate as full training, in the mean of the seeds: "
            f"{accuracy['mat']:.2f} against {accuracy['full']:.2f} % of the test pictures.",
            paired_verdict(results, "test_accuracy", "mat", "full", "higher", 0.0, -1e-9),
        ),
        Finding(
            "Choosing modules by their eigenvalue beats choosing as many at random, in the mean "
            f"and in two of three seeds: area {areas['mat']:.2f} against {areas['random']:.2f} %. "
            "A tie means that any sparsity would do.",
            paired_verdict(results, "area", "mat", "random", "higher"),
        ),
        Finding(
            "A module's eigenvalue says how much is missed by freezing it (one seed; our bound: a "
            f"rank correlation above {RANK} in the mean): "
            f"{', '.join(f'{rank:.2f}' for rank in ranks)}.",
            said(sum(ranks) > RANK * len(ranks), ranks, 1),  # one seed, by the specification
        ),
        Finding(
            "Eigenvalues of heads differ by orders of magnitude and their order changes in "
            f"training (our bounds: tenfold, rank correlation below 0.9): {wide:.1f} fold, "
            f"{order:.2f} between the first and the last measurement.",
            said(wide >= 10 and order < 0.9, [*columns[0], *columns[1]], 6),
        ),
        Finding(
            f"Frozen modules come back, by seed: {', '.join(f'{n:.0f}' for n in back)} of them.",
            said(all(n > 0 for n in back), back, 3),
        ),
    ]


def remarks(results: Sequence[Result]) -> list[str]:
    """Cost in FLOPs beside cost in time."""

    def share(arm: str, metric: str) -> float:
        full = mean(results, "full", metric)
        return mean(results, arm, metric) / full if full else math.nan

    if math.isnan(share("mat", "tflops")):
        return []
    costs = (f"{arm} {mean(results, arm, 'cost'):.2f}" for arm in TRAINED[1:])
    return [
        f"MAT trains with {share('mat', 'tflops'):.2f} of full training's FLOPs and "
        f"{share('mat', 'train_seconds'):.2f} of its seconds; measuring is "
        f"{100 * mean(results, 'mat', 'measuring'):.1f} % of its FLOPs. FLOPs to the target, over "
        f"those of full training: {', '.join(costs)}."
    ]


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Pictures:
    """In memory: ``(N, C, H, W)`` uint8, labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor) -> Pictures:
        return Pictures(self.images[chosen], self.labels[chosen])

    def to(self, device: str) -> Pictures:
        """On a device."""
        return Pictures(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """All that is trained and tested on; `mean` and `std` come from the training pictures."""

    what: str
    train: Pictures
    validation: Pictures
    test: Pictures
    mean: Tensor
    std: Tensor
    simulated: bool

    def prepare(self, pictures: Tensor) -> Tensor:
        """Pictures, uint8, as the network takes them."""
        return (pictures.float() / 255 - self.mean) / self.std

    def probe(self, count: int) -> Tensor:
        """Training pictures for the measurement, the same for all arms and seeds."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return self.prepare(self.train.images[order[:count]])


def load_data(config: Config) -> Data:
    """Read the data set that `config` names, and split its training file."""
    root = config.data_root or catalogue.data_root()
    loaders: dict[str, type[FashionMNIST | CIFAR10]] = {
        "Fashion-MNIST": FashionMNIST,
        "CIFAR-10": CIFAR10,
    }
    if config.data != "auto":
        loaders = {config.data: loaders[config.data]}
    found = [
        (name, loader, place)
        for name, loader in loaders.items()
        if (place := loader.card.locate(root)) is not None
    ]
    if found:
        name, loader, place = found[0]
        train = pictures_of(loader(place))
        # Few pictures come from the first batch of CIFAR-10: the same whatever else is there.
        if loader is CIFAR10 and 0 < config.per_class <= 900 - config.validation_per_class:
            train = train[torch.arange(10_000)] if len(train) > 10_000 else train
        test = pictures_of(loader(place, "test"))
    elif config.stand_in:
        name = "drawn stripes"
        train, test = (stripes(seed, config) for seed in (1, 2))
    else:
        card = next(iter(loaders.values())).card
        raise FoveateError(
            f"{' and '.join(loaders)} are not below {root}: install Debian's package "
            f"dataset-fashion-mnist, or get {card.title} from {card.url}, lay it out as "
            f"{card.layout}, and name the folder with --set data_root=FOLDER"
        )
    train, validation = split(train, config)
    if config.test_pictures is not None:
        test = test[torch.arange(min(config.test_pictures, len(test)))]
    values = train.images.float() / 255
    centre, width = (f((0, 2, 3)).view(-1, 1, 1) for f in (values.mean, values.std))
    device = "cuda" if config.accelerator == "auto" and torch.cuda.is_available() else "cpu"
    return Data(
        f"{name}, {len(train)} training, {len(validation)} validation and {len(test)} test "
        "pictures",
        train.to(device),
        validation.to(device),
        test.to(device),
        centre.to(device),
        width.to(device),
        not found,
    )


def split(pictures: Pictures, config: Config) -> tuple[Pictures, Pictures]:
    """Training and validation pictures, disjoint, balanced, always the same."""
    labels = pictures.labels.numpy()
    held = balanced_subset(labels, config.validation_per_class, seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), held)
    if config.per_class:
        rest = rest[balanced_subset(labels[rest], config.per_class, seed=1)]
    return pictures[torch.from_numpy(rest)], pictures[torch.from_numpy(held)]


def pictures_of(found: LabelledImages) -> Pictures:
    """As tensors."""
    images, labels = found.arrays()
    return Pictures(torch.from_numpy(images), torch.from_numpy(labels))


def stripes(seed: int, config: Config) -> Pictures:
    """Noisy stripes of ten directions, in the shape of the data set that is absent."""
    channels, side = (3, 32) if config.data == "CIFAR-10" else (1, 28)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat(max(config.per_class, 4) + config.validation_per_class)
    angle = labels * (math.pi / 10)
    phase = 2 * math.pi * torch.rand(len(labels), 1, 1, generator=draw)
    at = torch.arange(side, dtype=torch.float32)
    across = angle.cos()[:, None, None] * at[:, None] + angle.sin()[:, None, None] * at + phase
    noise = torch.randn(len(labels), channels, side, side, generator=draw)
    grey = 128 + 80 * across.sin()[:, None] + 20 * noise
    return Pictures(grey.clamp(0, 255).to(torch.uint8), labels)
