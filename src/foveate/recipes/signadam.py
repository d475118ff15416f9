"""signADAM++: does a step of thresholded signs beat SIGN-SGD, SIGNUM and Adam?

Paper: Wang et al., "signADAM: Learning Confidences for Deep Neural Networks", ICDM Workshops 2019
(arXiv 1907.09008). Its optimizers are in :mod:`foveate.learning.signadam`; the one in question:

    s = sign(g) where |g| > alpha, else 0;   m <- 0.9 m + 0.1 s;   theta <- theta - lr m

Two tasks, and on each the same optimizers:

    lenet    Fashion-MNIST, first 12,000 training pictures, LeNet, 12 epochs
    cifar    CIFAR-10, first 8000 of batch 1, three convolutions with BN, 8 epochs
    tune-TASK-OPTIMIZER    6 trials, a third of the epochs, one seed that is used for nothing else
    TASK-sign-sgd, -signum, -adam, -signadam, -signadam-pp (fixed alpha), -signadam-pp-aw (adaptive)
    TASK-signadam-pp-aw-decay    the last with decoupled weight decay; all others have none

Every optimizer chooses among six settings by the error on the 2000 pictures that follow: six
learning rates, or three with two alphas for signADAM++. Runs of one seed start from the same
weights and see the pictures in the same order; the rate falls to a tenth after three quarters of
the epochs. How fast is counted in epochs until the *validation* error is at a tolerance, the worst
final one of the four that are compared, of that seed, plus one point: so each of them gets there.
The test pictures are looked at once, after the last epoch, and choose nothing.

Three panels of the first task are kept beside the curves: how much of a layer's gradient outlives a
threshold, of rightly and of wrongly classified pictures (section 3.1); the alpha that 60 % of the
coordinates are below; the loss along a random direction. The paper scale is VGG-19 and ResNet-18 on
CIFAR and LeNet on MNIST, as published, untuned; GoogLeNet, SENet-18 and the LSTM are not built.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from foveate.datasets import catalogue
from foveate.datasets.images import CIFAR10, CIFAR100, MNIST, FashionMNIST
from foveate.errors import FoveateError
from foveate.learning.signadam import SignAdam, SignAdamPP, SignSGD, Signum
from foveate.nn.plain_cnn import VGG, LeNet, vgg19
from foveate.nn.resnet import resnet18
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

RIVALS = ("sign-sgd", "signum", "adam")
OURS, ADAPTIVE, DECAYED = "signadam-pp", "signadam-pp-aw", "signadam-pp-aw-decay"
OPTIMIZERS = {
    "sign-sgd": "SIGN-SGD",
    "signum": "SIGNUM, beta 0.9",
    "adam": "Adam",
    "signadam": "signADAM",
    OURS: "signADAM++, fixed alpha",
    ADAPTIVE: "signADAM++-AW: adaptive alpha (c1 0.9, c2 0.5)",
    DECAYED: "signADAM++-AW with decoupled weight decay 5e-4, rate of -aw",
    "adamw": "AdamW with decoupled weight decay 5e-4",
}
DECAY = 5e-4  # of the last two
ALPHA = 5e-4  # published; of runs without tuning
TUNING_SEED = 1000  # of the trials, and of nothing else
TOLERANCE = 1.0  # points above the worst final validation error
BAND = 0.1  # how far the adaptive sparsity may go from its mean

CLAIM = Claim(
    text="signADAM++ trains faster and ends better than SIGN-SGD, SIGNUM and Adam",
    metric="test_error",
    direction="lower",
    method=f"lenet-{OURS}",
    ablation="lenet-adam",
    rule=(
        "in the mean over seeds, signADAM++ needs fewer epochs to the tolerance (worst final "
        "validation error of the four + 1 point) than each of SIGN-SGD, SIGNUM and Adam, and has a "
        "lower final test error than each"
    ),
    published=(
        "epochs to a test error of 1 % (MNIST), 10 % (CIFAR-10), 40 % (CIFAR-100): signADAM++ "
        "first in 5 of 7 columns, once beside Adam; CIFAR-100, VGG-19, best accuracy: SIGN-SGD "
        "63.96 %, SIGNUM 67.12, Adam 68.62, signADAM++ 65.38, adaptive 72.31; single runs"
    ),
    certainty="P",
)

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
REMAINING = tuple(10 ** (k / 2) for k in range(-12, -1))  # alphas of the first panel
ALONG, NEAR = tuple(k / 10 for k in range(-10, 11)), 0.25  # the third; where its rise is read

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Measured = tuple[Metrics, Items]
Setting = tuple[float, float]  # learning rate, and alpha where there is one


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Attributes
    ----------
    loader, network
        Of the data set; what makes the network.
    train, validation
        The first `train` of the training pictures (0: all but the validation); those after them.
    epochs, drops
        How long; after which epochs the learning rate falls to a tenth.
    rates
        Published learning rates of signADAM++ and of all others, for runs without tuning.
    vary
        As published for CIFAR: shifts by up to 4 pixels, mirroring, normalisation by constants.
    """

    loader: type[FashionMNIST | MNIST | CIFAR10 | CIFAR100]
    network: Callable[[], nn.Module]
    train: int
    validation: int
    epochs: int
    drops: tuple[int, ...]
    rates: tuple[float, float] | None = None
    vary: bool = False


PAPER = (0, 2000, 300, (150, 250), (3e-4, 1e-4), True)  # but for the 2000 that are held out
TASKS = {
    "lenet": Task(FashionMNIST, LeNet, 12_000, 2000, 12, (9,)),
    "cifar": Task(CIFAR10, VGG, 8000, 2000, 8, (6,)),
    "cifar100-vgg19": Task(CIFAR100, lambda: vgg19(100), *PAPER),
    "cifar10-vgg19": Task(CIFAR10, vgg19, *PAPER),
    "cifar10-resnet18": Task(CIFAR10, lambda: resnet18(10, "cifar"), *PAPER),
    "mnist-lenet": Task(MNIST, lambda: LeNet((120,)), 0, 2000, 100, (50, 83), (1e-3, 1e-3)),
}


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data_root
        Folder of data sets (default: foveate's); Fashion-MNIST is also found where Debian puts it.
    stand_in
        Where a data set is absent, draw spots instead (marked simulated).
    tasks
        Names in `TASKS`; the first decides the claim.
    tune
        Six trials for each optimizer; else the published learning rates.
    lrs, pp_lrs, pp_alphas
        What is tried: `lrs`, and for fixed alpha all pairs of the other two.
    weight_decay
        L2 of all optimizers whose decay is not decoupled. AdamW joins where it is above 0.
    train, validation, test, epochs
        Fewer pictures and epochs than the task's; None: the task's.
    """

    scale: str
    data_root: Path | None = None
    stand_in: bool = False
    tasks: tuple[str, ...] = ("lenet", "cifar")
    tune: bool = True
    lrs: tuple[float, ...] = (3e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2)
    pp_lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    pp_alphas: tuple[float, ...] = (1e-4, 1e-3)
    weight_decay: float = 0.0
    batch: int = 128
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        tasks = set(self.tasks)
        if not tasks or len(tasks) < len(self.tasks) or not tasks <= set(TASKS):
            raise FoveateError(f"tasks are each once of {', '.join(TASKS)}, got {self.tasks}")
        if len(self.lrs) != len(self.pp_lrs) * len(self.pp_alphas) or not self.lrs:
            raise FoveateError(
                "all optimizers get the same number of trials: as many lrs as pairs of pp_lrs and "
                f"pp_alphas, got {len(self.lrs)} and {len(self.pp_lrs)} x {len(self.pp_alphas)}"
            )
        counts = (self.batch, self.train, self.validation, self.test, self.epochs)
        if any(count is not None and count < 1 for count in counts) or TUNING_SEED in self.seeds:
            raise FoveateError(
                "batch, train, validation, test and epochs are at least 1, and the seed "
                f"{TUNING_SEED} is kept for tuning"
            )
        if not self.tune and any(TASKS[task].rates is None for task in tasks):
            raise FoveateError("lenet and cifar have no published learning rate; leave tune on")


PRESETS = {
    "smoke": Config(
        "smoke", stand_in=True, batch=24, train=48, validation=32, test=40, epochs=3, seeds=(0,)
    ),
    "desk": Config("desk"),
    "paper": Config(
        "paper", tasks=tuple(TASKS)[2:], tune=False, weight_decay=5e-4, accelerator="auto"
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence:
    """Tune every optimizer, then run it under every seed; finished work is reused.

    Raises
    ------
    FoveateError
        A data set is not there, or is damaged.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    device = Fabric(accelerator=config.accelerator, devices=1).device
    ledger = Ledger("signadam", config, __file__)
    data = {task: load_data(task, config, device) for task in config.tasks}
    names = [name for name in OPTIMIZERS if name != "adamw" or config.weight_decay]
    tried = [name for name in names if name != DECAYED] if config.tune else []
    jobs = [(task, name, TUNING_SEED) for task in config.tasks for name in tried]
    jobs += [(task, name, seed) for seed in config.seeds for task in config.tasks for name in names]

    results: list[Result] = []
    arms: dict[str, str] = {}
    for done, (task, name, seed) in enumerate(jobs):
        arm = f"{'tune-' if seed == TUNING_SEED else ''}{task}-{name}"
        arms[arm] = f"{'trials of ' if seed == TUNING_SEED else ''}{OPTIMIZERS[name]}, {task}"
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def say(what: str, start: str = f"{arm}, seed {seed}", done: int = done) -> None:
            tell(f"{start}, {what}", done, len(jobs))

        def compute(
            name: str = name, seed: int = seed, data: Data = data[task], say: Tell = say
        ) -> Measured:
            if seed == TUNING_SEED:
                return tune(name, data, config, say)
            setting = setting_of(data.name, name, results, config)
            return measure(name, setting, seed, data, config, say)

        results.append(ledger.result(arm, seed, compute))
    results = with_epochs_to_tolerance(results, config.tasks)
    first = config.tasks[0]
    return Evidence(
        recipe="signadam",
        claim=dataclasses.replace(CLAIM, method=f"{first}-{OURS}", ablation=f"{first}-adam"),
        verdict=headline(results, first),
        arms=arms,
        results=results,
        data="; ".join(each.what for each in data.values()),
        simulated=any(each.simulated for each in data.values()),
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, config.tasks),
        notes=remarks(results, config.tasks),
        seconds=round(time.perf_counter() - started, 1),
    )


def setting_of(task: str, name: str, results: list[Result], config: Config) -> Setting:
    """The best of the trials, else what was published."""
    rates = TASKS[task].rates
    if not config.tune and rates is not None:
        return rates[not name.startswith(OURS)], ALPHA
    arm = f"tune-{task}-{ADAPTIVE if name == DECAYED else name}"
    (best,) = (result for result in results if result.arm == arm)
    return best.metrics["lr"], best.metrics.get("alpha", math.nan)


def make_optimizer(name: str, net: nn.Module, setting: Setting, l2: float) -> Optimizer:
    """An optimizer by its name in `OPTIMIZERS`."""
    params, (lr, alpha) = list(net.named_parameters()), setting
    if name == "sign-sgd":
        return SignSGD(params, lr, l2)
    if name == "signum":
        return Signum(params, lr, 0.9, l2)
    if name == "signadam":
        return SignAdam(params, lr, weight_decay=l2)
    if name == OURS:
        return SignAdamPP(params, lr, 0.9, alpha, weight_decay=l2)
    if name in (ADAPTIVE, DECAYED):
        decay = DECAY if name == DECAYED else 0.0
        return SignAdamPP(params, lr, 0.9, adaptive=True, weight_decay=decay, decoupled=True)
    if name == "adamw":
        return torch.optim.AdamW(net.parameters(), lr, weight_decay=DECAY)
    return torch.optim.Adam(net.parameters(), lr, weight_decay=l2)


def schedule(task: str, epochs: int) -> list[int]:
    """The task's drops for another number of epochs, in proportion."""
    return [max(1, round(drop * epochs / TASKS[task].epochs)) for drop in TASKS[task].drops]


def network(data: Data, seed: int) -> nn.Module:
    """Fresh weights of a seed; channels last, which takes half the time on a CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TASKS[data.name].network().to(data.device)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def tune(name: str, data: Data, config: Config, tell: Tell) -> Measured:
    """Try every setting for a third of the epochs; the lowest validation error is best."""
    epochs = max(1, round((config.epochs or TASKS[data.name].epochs) / 3))
    tried = [(lr, math.nan) for lr in config.lrs]
    if name == OURS:
        tried = list(itertools.product(config.pp_lrs, config.pp_alphas))
    errors = []
    for number, setting in enumerate(tried, 1):
        net = network(data, TUNING_SEED)
        optimizer = make_optimizer(name, net, setting, config.weight_decay)
        curves = train(net, optimizer, epochs, TUNING_SEED, data, lambda what: None)
        errors.append(curves["val_error"][-1])
        tell(f"trial {number} of {len(tried)}: {errors[-1]:.1f} % wrong")
    # A trial that diverged has no error; of equals the first, the lower rate, is taken.
    best = min(range(len(tried)), key=lambda k: math.inf if math.isnan(errors[k]) else errors[k])
    metrics = {"lr": tried[best][0], "val_error": errors[best], "trials": len(tried)}
    items = {"lr": [lr for lr, _ in tried], "val_error": errors}
    if name == OURS:
        metrics["alpha"], items["alpha"] = tried[best][1], [alpha for _, alpha in tried]
    return metrics, items


def measure(
    name: str, setting: Setting, seed: int, data: Data, config: Config, tell: Tell
) -> Measured:
    """One full run: its curves, then the test pictures, then the panels."""
    epochs = config.epochs or TASKS[data.name].epochs
    net = network(data, seed)
    optimizer = make_optimizer(name, net, setting, config.weight_decay)
    items = train(net, optimizer, epochs, seed, data, tell)
    metrics = {
        "test_error": evaluate(net, data, data.test),
        "val_error": items["val_error"][-1],
        "train_loss": items["train_loss"][-1],
        "train_loss_before_drop": items["train_loss"][schedule(data.name, epochs)[0] - 1],
        "lr": setting[0],
    }
    if math.isnan(metrics["val_error"]):
        metrics["test_error"] = math.nan  # it diverged: what such weights say means nothing
    for what in ("sparsity", "alpha_60"):
        if what in items:
            metrics[f"{what}_epoch_2"] = items[what][1] if epochs > 1 else math.nan
            metrics[f"{what}_last"] = items[what][-1]
    if name == OURS:
        metrics["alpha"] = setting[1]
    if data.name == config.tasks[0] and name in (OURS, "sign-sgd", "adam"):
        items["landscape"], metrics["rise"] = landscape(net, data, seed)
    if "landscape" in items and name == OURS:
        ratios, metrics["gap"] = remaining_ratios(net, data)
        items |= ratios
    return metrics, items


def train(
    net: nn.Module, optimizer: Optimizer, epochs: int, seed: int, data: Data, tell: Tell
) -> Items:
    """Train in place; curves by epoch, NaN from where the loss was no number any more.

    ``train_loss`` is the mean over the steps of the epoch, ``val_error`` in percent, ``sparsity``
    the mean share of zeros in s, ``alpha_60`` the 60 % quantile of the sizes of the gradient's
    coordinates; ``layer_sparsity`` is the last epoch's, parameter by parameter.
    """
    falls = torch.optim.lr_scheduler.MultiStepLR(optimizer, schedule(data.name, epochs))
    draw = torch.Generator().manual_seed(seed)
    coded = optimizer if isinstance(optimizer, SignAdamPP) else None
    curves: Items = {"train_loss": [], "val_error": []}
    curves |= {"sparsity": [], "alpha_60": []} if coded else {}
    layers: list[list[float]] = []
    for epoch in range(epochs):
        net.train()
        order = torch.split(torch.randperm(len(data.train[1]), generator=draw), data.batch)
        found: Items = {what: [] for what in curves}
        layers = []
        for step, chosen in enumerate(order):
            pictures, labels = (part[chosen] for part in data.train)
            x = data.prepare(varied(pictures, draw) if TASKS[data.name].vary else pictures)
            loss = F.cross_entropy(net(x), labels.to(data.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            found["train_loss"].append(loss.item())
            if coded:
                found["sparsity"].append(coded.total_sparsity())
                layers.append(list(coded.sparsity().values()))
                if step % max(1, len(order) // 8) == 0:
                    found["alpha_60"].append(size_quantile(net, 0.6))
        falls.step()
        if not math.isfinite(sum(found["train_loss"])):
            return {what: [*row, *[math.nan] * (epochs - epoch)] for what, row in curves.items()}
        found["val_error"] = [evaluate(net, data, data.validation)]
        for what, values in found.items():
            curves[what].append(sum(values) / len(values))
        loss_now, error_now = curves["train_loss"][-1], curves["val_error"][-1]
        tell(f"epoch {epoch + 1} of {epochs}: loss {loss_now:.3f}, {error_now:.1f} % wrong")
    if coded:
        curves["layer_sparsity"] = [sum(row) / len(row) for row in zip(*layers, strict=True)]
    return curves


def size_quantile(net: nn.Module, share: float) -> float:
    """The size that `share` of all coordinates of the gradient are not above."""
    sizes = torch.cat([p.grad.abs().flatten() for p in net.parameters() if p.grad is not None])
    return float(sizes.kthvalue(max(1, math.ceil(share * len(sizes)))).values)


@torch.no_grad()
def evaluate(net: nn.Module, data: Data, pictures: Pictures) -> float:
    """Wrongly classified pictures, in percent."""
    net.eval()
    wrong = 0
    for images, labels in zip(*(torch.split(part, 500) for part in pictures), strict=True):
        wrong += int((net(data.prepare(images)).argmax(1).cpu() != labels).sum())
    return 100 * wrong / len(pictures[1])


def remaining_ratios(net: nn.Module, data: Data) -> tuple[Items, float]:
    """What a threshold leaves of the gradient of the widest layer: ||kept|| / ||whole||.

    Of the validation pictures that the net gets wrong, and of as many that it gets right (the mean
    over a larger group would be smoother); and by how much less is left of the latter, at most.
    """
    net.eval()
    x, labels = data.prepare(data.validation[0]), data.validation[1].to(data.device)
    with torch.no_grad():
        wrong = net(x).argmax(1) != labels
    count = min(int(wrong.sum()), int((~wrong).sum()))
    if not count:
        return {}, math.nan
    widest = max(net.parameters(), key=Tensor.numel)
    left = []
    for group in (~wrong, wrong):
        chosen = group.nonzero()[:count, 0]
        (g,) = torch.autograd.grad(F.cross_entropy(net(x[chosen]), labels[chosen]), widest)
        kept = [float((g * (g.abs() > alpha)).norm()) for alpha in REMAINING]
        left.append([size / max(float(g.norm()), 1e-30) for size in kept])
    names = ("remaining_alpha", "remaining_correct", "remaining_incorrect")
    items = dict(zip(names, (list(REMAINING), *left), strict=True))
    return items, max(b - a for a, b in zip(*left, strict=True))


@torch.no_grad()
def landscape(net: nn.Module, data: Data, seed: int) -> tuple[list[float], float]:
    """Loss on 2000 training pictures along a random direction, and its mean rise at +-0.25.

    Every filter (row of a matrix) of the direction is as long as the net's own; biases and
    normalisations stay (Li et al., NeurIPS 2018, arXiv 1712.09913). The direction is that of the
    seed, so that all optimizers are cut in the same.
    """
    net.eval()
    draw = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in net.named_parameters() if p.ndim > 1}
    direction = {}
    for name, p in weights.items():
        d = torch.randn(p.shape, generator=draw).to(data.device)
        ratio = torch.linalg.vector_norm(p.flatten(1), dim=1, keepdim=True)
        ratio = ratio / torch.linalg.vector_norm(d.flatten(1), dim=1, keepdim=True)
        direction[name] = (d.flatten(1) * ratio).view(p.shape)
    x, labels = (part[:2000].to(data.device) for part in data.train)
    x = data.prepare(x)

    def loss_at(distance: float) -> float:
        moved = {name: p + distance * direction[name] for name, p in weights.items()}
        return float(F.cross_entropy(functional_call(net, moved, (x,)), labels))

    rise = (loss_at(NEAR) + loss_at(-NEAR)) / 2 - loss_at(0.0)
    return [loss_at(distance) for distance in ALONG], rise


# ------------------------------------------------------------------------------ verdicts


def with_epochs_to_tolerance(results: list[Result], tasks: tuple[str, ...]) -> list[Result]:
    """Add ``epochs_to_tolerance`` to the four arms that are compared, seed by seed."""
    found = {(r.arm, r.seed): r for r in results}
    for task, seed in itertools.product(tasks, {r.seed for r in results}):
        keys = [(f"{task}-{name}", seed) for name in (*RIVALS, OURS)]
        errors = [found[k].metrics["val_error"] if k in found else math.nan for k in keys]
        if any(map(math.isnan, errors)):
            continue
        bound = max(errors) + TOLERANCE
        for key in keys:
            reached = [error <= bound for error in found[key].items["val_error"]].index(True)
            metrics = {**found[key].metrics, "epochs_to_tolerance": 1.0 + reached}
            found[key] = dataclasses.replace(found[key], metrics=metrics)
    return list(found.values())


def headline(results: list[Result], task: str) -> Verdict:
    """The rule of the specification (`CLAIM.rule`): better than each, in both, in the mean."""
    said = {
        paired_verdict(results, metric, f"{task}-{OURS}", f"{task}-{rival}", "lower", 0.0)
        for rival in RIVALS
        for metric in ("epochs_to_tolerance", "test_error")
    }
    return next(v for v in ("inconclusive", "not reproduced", "reproduced") if v in said)


def decided(true: bool, seeds: int, *means: float) -> Verdict:
    """From three seeds on and where no mean is missing, `true` decides."""
    missing = seeds < 3 or any(map(math.isnan, means))
    return "inconclusive" if missing else "reproduced" if true else "not reproduced"


def drift(results: list[Result], arm: str) -> tuple[float, float]:
    """How far sparsity goes from its mean, from epoch 2 on: the most, and the mean over seeds."""
    curves = [r.items["sparsity"][1:] for r in results if r.arm == arm and "sparsity" in r.items]
    means = [(curve, sum(curve) / len(curve)) for curve in curves if curve]
    far = [max(abs(x - centre) for x in curve) for curve, centre in means] or [math.nan]
    return max(far), sum(far) / len(far)


def findings(results: list[Result], tasks: tuple[str, ...]) -> list[Finding]:
    """(a) to (c) on the first task, the headline on the others, and the first panel."""

    def of(name: str, metric: str, task: str = tasks[0]) -> float:
        return mean(results, f"{task}-{name}", metric)

    ours, adaptive, plain = (f"{tasks[0]}-{name}" for name in (OURS, ADAPTIVE, "sign-sgd"))
    seeds = min(sum(r.arm == arm for r in results) for arm in (ours, adaptive))
    before = "train_loss_before_drop"
    early, late = of(OURS, "sparsity_epoch_2"), of(OURS, "sparsity_last")
    (most, steady), (_, fixed) = drift(results, adaptive), drift(results, ours)
    error, fixed_error = of(ADAPTIVE, "test_error"), of(OURS, "test_error")
    found = [
        Finding(
            "(a) In the last epoch before the rate falls, signADAM++ has a lower training loss "
            f"than SIGN-SGD under every seed: {of(OURS, before):.4f} against "
            f"{of('sign-sgd', before):.4f}.",
            paired_verdict(results, before, ours, plain, "lower", 1.0),
        ),
        Finding(
            "(b) At the tuned alpha at least 0.3 of the code is zero in epoch 2, and more in the "
            f"last, in the mean: {early:.3f} and {late:.3f} at alpha {of(OURS, 'alpha'):.1e}; 0.6 "
            f"of the coordinates are below {of(OURS, 'alpha_60_epoch_2'):.1e} in epoch 2 and below "
            f"{of(OURS, 'alpha_60_last'):.1e} in the last.",
            decided(early >= 0.3 and late > early, seeds, early, late),
        ),
        Finding(
            f"(c) With adaptive alpha, sparsity stays within {BAND:g} of its mean from epoch 2 on "
            "and drifts less than with a fixed one, and test accuracy is at least as high in the "
            f"mean: largest drift {most:.3f}, in the mean {steady:.3f} against {fixed:.3f}; test "
            f"error {error:.2f} against {fixed_error:.2f} %.",
            decided(
                most <= BAND and fixed > steady and error <= fixed_error,
                *(seeds, steady, fixed, error, fixed_error),
            ),
        ),
    ]
    for task in tasks[1:]:
        figures = "; ".join(
            f"{name} {of(name, 'epochs_to_tolerance', task):.1f} epochs, "
            f"{of(name, 'test_error', task):.2f} %"
            for name in (OURS, *RIVALS)
        )
        found.append(Finding(f"(d) The main claim on {task}: {figures}.", headline(results, task)))
    gaps = [r.metrics["gap"] for r in results if "gap" in r.metrics] or [math.nan]
    found.append(
        Finding(
            "At some alpha, less is left of the gradient of rightly classified pictures than of as "
            "many wrongly classified ones, under every seed: the largest difference of the ratios "
            f"is {sum(gaps) / len(gaps):.2f} in the mean.",
            decided(min(gaps) > 0, len(gaps), *gaps),
        )
    )
    return found


def remarks(results: list[Result], tasks: tuple[str, ...]) -> list[str]:
    """What was chosen, and what has no verdict."""
    said = []
    for task in tasks:
        words = []
        for r in (r for r in results if r.arm.startswith(f"tune-{task}-")):
            lr, tried = r.metrics["lr"], r.items["lr"]
            edge = " (edge of the grid)" if lr in (min(tried), max(tried)) else ""
            alpha = f", alpha {r.metrics['alpha']:g}" if "alpha" in r.metrics else ""
            words.append(f"{r.arm.removeprefix(f'tune-{task}-')} {lr:g}{edge}{alpha}")
        said += [f"Learning rates chosen for {task}: {'; '.join(words)}."] if words else []
    arms = {name: f"{tasks[0]}-{name}" for name in (OURS, "sign-sgd", "adam")}
    rises = ", ".join(f"{name} {mean(results, arm, 'rise'):.4f}" for name, arm in arms.items())
    said.append(
        f"Mean rise of the training loss at +-{NEAR:g} along a filter-normalised random direction, "
        f"no verdict: {rises}."
    )
    layers = [r.items.get("layer_sparsity", []) for r in results if r.arm == arms[OURS]]
    if layers and all(layers):
        names = (name for name, _ in TASKS[tasks[0]].network().named_parameters())
        shares = zip(names, *layers, strict=True)
        listed = ", ".join(f"{name} {sum(row) / len(row):.2f}" for name, *row in shares)
        said.append(f"Zeros in the code of signADAM++ in the last epoch, by layer: {listed}.")
    return said


Pictures = tuple[Tensor, Tensor]  # (N, C, H, W) uint8 and labels (N,) int64


@dataclass(frozen=True)
class Data:
    """A task's pictures; `mean` and `std` ``(C, 1, 1)`` in units of 0 to 1."""

    what: str
    name: str
    train: Pictures
    validation: Pictures
    test: Pictures
    mean: Tensor
    std: Tensor
    simulated: bool
    batch: int
    device: torch.device

    def prepare(self, images: Tensor) -> Tensor:
        """Pictures as the network takes them."""
        x = (images.to(self.device).float() / 255 - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)


def load_data(name: str, config: Config, device: torch.device) -> Data:
    """Read what a task needs."""
    task = TASKS[name]
    loader, root = task.loader, config.data_root or catalogue.data_root()
    place = loader.card.locate(root)
    if place is not None:
        found = [loader(place, split).arrays() for split in ("train", "test")]
        whole, test = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in found)
    elif config.stand_in:
        shape = (3, 32) if loader in (CIFAR10, CIFAR100) else (1, 28)
        whole, test = (spots(seed, 200, *shape) for seed in (1, 2))
    else:
        debian = (
            "install Debian's package dataset-fashion-mnist, or " if loader.card.elsewhere else ""
        )
        raise FoveateError(
            f"{loader.card.title} is not below {root}: {debian}get it from {loader.card.url}, lay "
            f"it out as {loader.card.layout}, and name the folder with --set data_root=FOLDER, or "
            f"leave out the task {name} with --set tasks=TASK,..."
        )
    held = config.validation or task.validation
    count = config.train or task.train or len(whole[1]) - held
    if not 0 < count <= len(whole[1]) - held:
        raise FoveateError(
            f"{name} wants {count} training and {held} validation pictures where there are "
            f"{len(whole[1])} in {place or 'the stand-in'}; use --set train=N --set validation=N"
        )
    cuts = (slice(count), slice(count, count + held))
    train, validation = ((whole[0][cut], whole[1][cut]) for cut in cuts)
    test = (test[0][: config.test], test[1][: config.test])
    values = train[0].float() / 255
    centre, spread = values.mean((0, 2, 3)), values.std((0, 2, 3))
    if task.vary:
        centre, spread = torch.tensor(CIFAR_MEAN), torch.tensor(CIFAR_STD)
    centre, spread = (each.view(-1, 1, 1).to(device) for each in (centre, spread))
    what = (
        f"{'' if place else 'drawn spots in place of '}{loader.card.title}, {count} training, "
        f"{held} validation and {len(test[1])} test pictures"
    )
    fixed = (centre, spread, not place, config.batch, device)
    return Data(what, name, train, validation, test, *fixed)


def spots(seed: int, count: int, channels: int, side: int) -> Pictures:
    """A bright spot at one of ten places on a circle, on noise: a stand-in, not a data set."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draw)
    angle = labels * (2 * math.pi / 10)
    at = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    down, across = (side / 3 * f(angle)[:, None] for f in (torch.sin, torch.cos))
    spot = torch.exp(-((at - down)[:, :, None] ** 2 + (at - across)[:, None] ** 2) / 8)
    noise = torch.rand(count, channels, side, side, generator=draw)
    return (90 * noise + 160 * spot[:, None]).to(torch.uint8), labels


def varied(images: Tensor, draw: torch.Generator) -> Tensor:
    """Every picture shifted by up to 4 pixels (black comes in) and mirrored half the time."""
    count, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(9, (2, count, 1), generator=draw)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=draw) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None]].movedim(3, 1)
