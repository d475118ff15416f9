"""Memory bank with many views, consistency and merging: what each adds to instance discrimination.

Paper: "Improving Memory Banks for Unsupervised Learning with Large Mini-Batch, Consistency and Hard
Negative Mining", ICASSP 2021 (arXiv 2102.04442). No code of it was found: the three changes are
built from its abstract, on the vanilla bank of Wu et al., CVPR 2018.

An encoder learns from pictures without labels to tell every picture from all others,

    L = -log softmax(M v / tau)_i + weight L_cons
    M_i <- normalise( m M_i + (1 - m) mean_k v^k )

and is judged by the classes that it was never told: a weighted vote of the nearest training
features, computed anew with the plain test transform. The arms:

    untrained        the random encoder
    bank         V1  one view per picture and step: the vanilla bank
    bank-long    V1L V1 for K times as many epochs: as many pictures forwarded as V2 to V4
    views        V2  K views share one target and one update of the bank
    consistency  V3  V2, and the views' logits are pulled together
    merging      V4  V3, and mutual nearest neighbours share a slot, from 40 % of the training on
    in-batch     C1  V2, and in place of consistency a softmax over the batch, with negatives
    bank-unseen, merging-unseen    V1, V4 trained on five classes and searched on the other five

All arms of a seed start from the same weights and bank and see the pictures in the same order.
Settings were fixed before the test pictures were read; to choose others, ``--set held_out=tuning``
judges by training pictures that are not trained on, with the test set closed. No best epoch.

Smoke, desk and long are CIFAR-10's first training batch (desk: 5,000 of it, 16 x 16 pixels), paper
is all of it with ResNet-18. The paper's retrieval sets (CUB, Cars, SOP, with a pretrained
Inception) are not built; *unseen* asks the same question on classes of CIFAR-10.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from foveate.datasets import catalogue
from foveate.datasets.images import CIFAR10, mean_pool
from foveate.datasets.multi_view import MultiViewBatches
from foveate.errors import FoveateError
from foveate.learning import augmentation
from foveate.learning.memory_bank import InstanceDiscriminationLoss, MemoryBank
from foveate.learning.neighbours import knn_classify, nmi, recall_at_k
from foveate.nn.resnet import BasicBlock, ResNet
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

__all__ = ["CLAIM", "PRESETS", "Config", "run"]

CLASSES = 10
CHANCE = 1 / CLASSES  # share of random pairs of pictures that are of one class
SEEN = 5  # classes 0 to 4 train the unseen arms

CLAIM = Claim(
    text=(
        "Several views per picture, consistent logits and merging of near duplicates make a "
        "memory bank learn better features in as many epochs"
    ),
    metric="accuracy",
    direction="higher",
    method="merging",
    ablation="bank",
    rule=(
        "in the mean over seeds, at equal epochs, kNN accuracy of merging is above that of bank by "
        "more than one pooled standard deviation and not below that of views by more than one, and "
        "more than twice as many of the merged pairs as of random ones are of one class (20 %)"
    ),
    published=(
        "no figure known (the abstract claims best results on seen and unseen classes); CIFAR-10 "
        "kNN of the baselines, as remembered: bank 80.8 %, Ye et al. 83.6 %"
    ),
    certainty="D",
)


@dataclass(frozen=True)
class Arm:
    """What an arm is made of; K views unless `single`."""

    what: str
    trained: bool = True
    single: bool = False
    longer: bool = False
    consistency: Literal["own", "in-batch"] | None = None
    merging: bool = False
    unseen: bool = False


ARMS = {
    "untrained": Arm("the encoder with its first weights", trained=False),
    "bank": Arm("V1: vanilla bank, one view per picture and step", single=True),
    "bank-long": Arm("V1L: bank for K times the epochs", single=True, longer=True),
    "views": Arm("V2: K views per picture, their mean into the bank"),
    "consistency": Arm("V3: views, with consistent logits", consistency="own"),
    "merging": Arm("V4: consistency, and merging", consistency="own", merging=True),
    "in-batch": Arm("C1: views, and a softmax over the batch", consistency="in-batch"),
    "bank-unseen": Arm("bank on five classes only", single=True, unseen=True),
    "merging-unseen": Arm(
        "merging on five classes only", consistency="own", merging=True, unseen=True
    ),
}
REQUIRED = ("untrained", "bank", "bank-long", "views", "merging")

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    arms
        Names of `ARMS`.
    once
        Arms that run under the first seed only.
    data_root
        Folder of data sets; None is foveate's own.
    stand_in
        Where CIFAR-10 is absent, take drawn patterns instead (marked simulated).
    batches
        Training batches of CIFAR-10 to read, of 1 to 5.
    train_pictures, test_pictures
        The first so many, in official order: the choice knows no labels.
    held_out
        ``test``, or ``tuning``: the training pictures behind `train_pictures`.
    shrink
        Pictures are shrunk by the mean over squares of this edge.
    widths, blocks, dim
        Of the ResNet: width and blocks of each stage, length of the feature.
    views
        K of all arms but `bank` and `bank-long`.
    epochs, batch, lr, weight_decay
        SGD with momentum 0.9; `batch` counts pictures, not views.
    schedule
        ``cosine`` to 0, or ``steps``: a tenth at 40, 60 and 80 % (80, 120 and 160 of 200 epochs).
    tau, bank_momentum, n_negatives
        Of the bank; `n_negatives` slots are drawn for each batch, None takes all.
    consistency, weight
        ``kl``, ``l2`` or ``cos``, and its weight, reached after the first fifth of the steps. It
        should be 10 to 50 % of the instance loss after the first epoch (``cons_share``).
    merge_at
        When to merge, as shares of the training.
    merge_fraction, theta, cap
        Of `MemoryBank.merge`.
    k, knn_tau
        Of the kNN vote.
    """

    scale: str
    arms: tuple[str, ...] = REQUIRED
    once: tuple[str, ...] = ("bank-long",)
    data_root: Path | None = None
    stand_in: bool = False
    batches: tuple[int, ...] = (1,)
    train_pictures: int = 5000
    test_pictures: int = 5000
    held_out: Literal["test", "tuning"] = "test"
    shrink: int = 2
    widths: tuple[int, ...] = (8, 16, 32)
    blocks: tuple[int, ...] = (1, 1, 1)
    dim: int = 64
    views: int = 2
    epochs: int = 30
    batch: int = 64
    lr: float = 0.03
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "steps"] = "cosine"
    tau: float = 0.1
    bank_momentum: float = 0.5
    n_negatives: int | None = None
    consistency: Literal["kl", "l2", "cos"] = "kl"
    weight: float = 0.1
    merge_at: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85)
    merge_fraction: float = 0.05
    theta: float = 0.7
    cap: int = 8
    k: int = 50
    knn_tau: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        unknown = [arm for arm in (*self.arms, *self.once) if arm not in ARMS]
        if unknown:
            raise FoveateError(f"there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
        if self.views < 2 or min(self.epochs, self.batch, self.shrink) < 1:
            raise FoveateError(
                "views is at least 2, epochs, batch and shrink at least 1, got "
                f"{self.views}, {self.epochs}, {self.batch} and {self.shrink}"
            )
        if not 1 <= self.k <= self.train_pictures:
            raise FoveateError(
                f"k is from 1 to the {self.train_pictures} training pictures, got {self.k}"
            )
        if not all(0 < share < 1 for share in self.merge_at):
            raise FoveateError(f"merge_at holds shares between 0 and 1, got {self.merge_at}")


PRESETS = {
    "smoke": Config(
        scale="smoke", arms=tuple(ARMS), stand_in=True, train_pictures=80, test_pictures=40,
        widths=(4, 8), blocks=(1, 1), dim=16, epochs=4, batch=16, theta=0.3, k=5, seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "long": Config(
        scale="long", arms=tuple(ARMS), once=(), train_pictures=10_000, test_pictures=10_000,
        shrink=1, widths=(16, 32, 64), views=4, epochs=60, accelerator="auto",
    ),
    "paper": Config(
        scale="paper", arms=tuple(ARMS), once=(), batches=(1, 2, 3, 4, 5), train_pictures=50_000,
        test_pictures=10_000, shrink=1, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), dim=128,
        views=4, epochs=200, batch=128, schedule="steps", weight=1.0, k=200, accelerator="auto",
    ),
}  # fmt: skip


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train and judge every arm under every seed; finished ones are reused.

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
        "memory-bank-instance-discrimination",
        dataclasses.replace(config, arms=REQUIRED, once=()),
        __file__,
        writer=fabric.is_global_zero,
    )
    data = load_data(config)

    results = []
    jobs = [
        (arm, seed)
        for seed in config.seeds
        for arm in config.arms
        if seed == config.seeds[0] or arm not in config.once
    ]
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def compute(arm: str = arm, seed: int = seed, done: int = done) -> Metrics:
            def say(what: str) -> None:
                tell(f"{arm}, seed {seed}, {what}", done, len(jobs))

            return train_arm(ARMS[arm], seed, data, config, fabric, say)

        results.append(ledger.result(arm, seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    return Evidence(
        recipe="memory-bank-instance-discrimination",
        # K views cost K times as much: what that buys otherwise belongs into the same sentence.
        claim=dataclasses.replace(CLAIM, text=f"{CLAIM.text} ({equal_compute(results)})"),
        verdict=verdict(results),
        arms={arm: ARMS[arm].what for arm in config.arms},
        results=results,
        data=data.what,
        simulated=data.simulated,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results),
        notes=remarks(results, config),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ training


class Encoder(nn.Module):
    """ResNet with a linear last layer, then unit length: ``(B, 3, H, W) -> (B, dim)`` float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.net = ResNet(BasicBlock, config.blocks, config.widths, config.dim, stem="cifar")

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x).float(), dim=1)


def in_batch(views: Tensor, tau: float) -> Tensor:
    """The loss of Ye et al., CVPR 2019, as remembered: the others of the batch are negatives.

    With P(i | x) the softmax over i of v_i . x / tau and i' another view of i, the mean over images
    and ordered pairs of views of ``-log P(i | i') - sum over j != i of log(1 - P(i | j))``.
    """
    size, count = views.shape[:2]
    itself = torch.eye(size, dtype=torch.bool, device=views.device)
    total = views.new_zeros(())
    for k, other in itertools.permutations(range(count), 2):
        found = F.log_softmax(views[:, other] @ views[:, k].T / tau, dim=1)
        among = F.log_softmax(views[:, k] @ views[:, k].T / tau, dim=1)
        wrong = among.masked_fill(itself, -1e4).exp().clamp_max(1 - 1e-6)
        total = total - found.diagonal().sum() - torch.log1p(-wrong).sum()
    return total / (size * count * (count - 1))


def train_arm(
    arm: Arm, seed: int, data: Data, config: Config, fabric: Fabric, tell: Tell
) -> Metrics:
    """Train the encoder of an arm from the seed's first weights, and judge it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Encoder(config)
    if arm.unseen:
        seen, others = data.train.labels < SEEN, data.held.labels >= SEEN
        data = dataclasses.replace(data, train=data.train.of(seen), held=data.held.of(others))
    found: Metrics = {}
    if arm.trained:
        found = fit(net, arm, seed, data, config, fabric, tell)
        if math.isnan(found["loss"]):
            return {**found, ("recall_at_1" if arm.unseen else "accuracy"): math.nan}
    net = cast(Encoder, fabric.to_device(net)).eval()
    return found | judge(net, arm.unseen, data, config, fabric)


def fit(
    net: Encoder, arm: Arm, seed: int, data: Data, config: Config, fabric: Fabric, tell: Tell
) -> Metrics:
    """Train in place; labels reach the report of `MemoryBank.merge` only.

    Returns the mean instance loss of the last epoch (NaN: it diverged and training stopped), the
    share of the consistency after the first epoch, pictures forwarded, and what was merged.
    """
    train, views = data.train, 1 if arm.single else config.views
    epochs = config.epochs * (config.views if arm.longer else 1)
    draw = torch.Generator().manual_seed(seed)
    bank = MemoryBank(len(train), config.dim, config.bank_momentum, config.tau, generator=draw)
    bank = cast(MemoryBank, fabric.to_device(bank))
    kinds = {None: None, "own": config.consistency, "in-batch": in_batch}
    objective = InstanceDiscriminationLoss(
        bank,
        consistency=kinds[arm.consistency],  # type: ignore[arg-type]
        n_negatives=config.n_negatives,
        generator=draw,
    )
    batches = MultiViewBatches(
        fabric.to_device(train.images),
        variation(train.images.shape[-1], data.normalize),
        views,
        config.batch,
        seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    sgd = torch.optim.SGD(net.parameters(), config.lr, 0.9, weight_decay=config.weight_decay)
    model, optimizer = fabric.setup(net, sgd)
    steps, step = epochs * len(batches), 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config.schedule, steps))
    metrics: Metrics = {"loss": math.nan, "images": float(steps * config.batch * views)}
    rounds = {int(share * epochs) for share in config.merge_at} if arm.merging else set()
    model.train()
    for epoch in range(epochs):
        if epoch in rounds:
            bank.merge(config.merge_fraction, config.theta, config.cap, labels=train.labels)
        inst = cons = 0.0
        for x, idx in batches:
            v = model(x.flatten(0, 1)).view(*x.shape[:2], -1)
            objective.weight = config.weight * min(1.0, step / (0.2 * steps))
            loss = objective(v, idx)
            both = torch.stack((loss.inst, loss.cons)).detach()
            both = cast(Tensor, fabric.all_reduce(both))  # no process stops alone
            inst, cons = inst + both[0].item(), cons + both[1].item()
            if not math.isfinite(inst + cons):
                tell("the loss is not finite any more; stopped")
                return {**metrics, "loss": math.nan}
            optimizer.zero_grad()
            fabric.backward(loss.total)
            optimizer.step()
            schedule.step()
            parts = [idx, v.detach()]
            if fabric.world_size > 1:  # every process has the whole bank, so it needs all features
                parts = [cast(Tensor, fabric.all_gather(part)).flatten(0, 1) for part in parts]
            bank.update(*parts)
            step += 1
        metrics["loss"] = inst / len(batches)
        if epoch == min(1, epochs - 1) and arm.consistency is not None:
            metrics["cons_share"] = config.weight * cons / inst
        now = f"loss {metrics['loss']:.2f}, consistency {cons / len(batches):.2f}"
        tell(f"epoch {epoch + 1} of {epochs}: {now}, {bank.slots} slots")
    if arm.merging:
        joined, same = (sum(getattr(r, name) for r in bank.history) for name in ("joined", "same"))
        thetas = [report.theta for report in bank.history if report.pairs]
        metrics |= {
            "slots": float(bank.slots),
            "purity": 100 * same / joined if joined else math.nan,
            "least_similarity": min(thetas, default=math.nan),
        }
    return metrics


def variation(size: int, normalize: augmentation.Normalize) -> augmentation.Compose:
    """That of the baselines: a part of 20 to 100 % of the area, colours, grey, mirrored."""
    crop = augmentation.RandomResizedCrop(size, scale=(0.2, 1.0))
    jitter = augmentation.ColorJitter(0.4, 0.4, 0.4, 0.4)
    grey, flip = augmentation.RandomGrayscale(0.2), augmentation.RandomFlip(0.5)
    return augmentation.Compose((crop, jitter, grey, flip, normalize))


def lr_factor(schedule: str, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at each step."""
    if schedule == "steps":
        return lambda step: 0.1 ** sum(step >= share * steps for share in (0.4, 0.6, 0.8))
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


# ------------------------------------------------------------------------------ judging


@torch.no_grad()
def judge(net: nn.Module, unseen: bool, data: Data, config: Config, fabric: Fabric) -> Metrics:
    """Accuracy of the kNN vote; of unseen classes Recall@1, 2, 4, 8 and NMI; all in percent."""

    def features(pictures: Pictures) -> Tensor:
        """Of whole pictures, without variation."""
        parts = (fabric.to_device(part) for part in torch.split(pictures.images, 4 * config.batch))
        return torch.cat([net(data.normalize(part.float() / 255)) for part in parts])

    theirs, labels = features(data.held), fabric.to_device(data.held.labels)
    if unseen:
        found = {f"recall_at_{k}": 100 * r for k, r in recall_at_k(theirs, labels).items()}
        return found | {"nmi": 100 * nmi(theirs, labels)}
    classes = fabric.to_device(data.train.labels)
    called = knn_classify(features(data.train), classes, theirs, config.k, config.knn_tau, CLASSES)
    return {"accuracy": 100 * int((called == labels).sum()) / len(labels)}


# ------------------------------------------------------------------------------ verdicts


def of_seeds(results: list[Result], arm: str, metric: str = "accuracy") -> dict[int, float]:
    """Seed -> value."""
    return {r.seed: r.metrics[metric] for r in results if r.arm == arm and metric in r.metrics}


def gain(results: list[Result], method: str, ablation: str) -> tuple[float, float] | None:
    """Difference of the means over seeds, and pooled deviation; None: too few seeds, or NaN."""
    one, other = of_seeds(results, method), of_seeds(results, ablation)
    values = list(one.values()), list(other.values())
    if len(one) < 3 or set(one) != set(other) or any(map(math.isnan, itertools.chain(*values))):
        return None
    difference = statistics.mean(values[0]) - statistics.mean(values[1])
    return difference, math.sqrt(sum(map(statistics.variance, values)) / 2)


def not_below(results: list[Result], method: str, ablation: str) -> Verdict:
    """At least equal in the mean, where one pooled deviation is forgiven."""
    found = gain(results, method, ablation)
    return "inconclusive" if found is None else _said(found[0] >= -found[1])


def purity(results: list[Result]) -> Verdict:
    """More than twice as many merged pairs of one class as among random pairs."""
    values = list(of_seeds(results, "merging", "purity").values())
    if len(values) < 3 or any(math.isnan(value) for value in values):
        return "inconclusive"
    return _said(statistics.mean(values) > 200 * CHANCE)


def verdict(results: list[Result]) -> Verdict:
    """The rule of the specification (`CLAIM.rule`)."""
    better = gain(results, "merging", "bank")
    others = not_below(results, "merging", "views"), purity(results)
    if better is None or "inconclusive" in others:
        return "inconclusive"
    return _said(better[0] > max(better[1], 0) and set(others) == {"reproduced"})


def _said(true: bool) -> Verdict:
    return "reproduced" if true else "not reproduced"


def equal_compute(results: list[Result]) -> str:
    """Merging against the vanilla bank that saw as many pictures, under the seeds they share."""
    ours, theirs = of_seeds(results, "merging"), of_seeds(results, "bank-long")
    seeds = sorted(set(ours) & set(theirs))
    a, b = (sum(arm[s] for s in seeds) / max(len(seeds), 1) for arm in (ours, theirs))
    if not seeds or math.isnan(a - b):
        return "not compared at equal compute"
    meaning = "per operation, too" if a > b else "per epoch, not per operation"
    return (
        f"at equal compute, seeds {', '.join(map(str, seeds))}: {a:.2f} against {b:.2f} % of the "
        f"vanilla bank trained for longer; the gain is one {meaning}"
    )


def chain(results: list[Result]) -> Verdict:
    """``merging >= consistency >= views > bank``; one may be broken by less than a deviation."""
    order = ("bank", "views", "consistency", "merging")
    steps = [gain(results, method, ablation) for ablation, method in itertools.pairwise(order)]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return "inconclusive"
    held = [known[0][0] > 0] + [difference >= 0 for difference, _ in known[1:]]
    small = all(ok or -step[0] < step[1] for ok, step in zip(held, known, strict=True))
    return _said(small and held.count(False) <= 1)


def findings(results: list[Result]) -> list[Finding]:
    """What is asked beside the claim, as far as its arms were run."""
    arms = dict.fromkeys(r.arm for r in results)
    top = {arm: f"{mean(results, arm, 'accuracy'):.2f}" for arm in ARMS}
    found = []

    def ask(needed: str, text: str, said: Verdict) -> None:
        if set(needed.split()) <= set(arms):
            found.append(Finding(text, said))

    def beats(method: str, ablation: str, metric: str = "accuracy") -> Verdict:
        return paired_verdict(results, metric, method, ablation, "higher")

    ask(
        "merging bank-long",
        f"Merging beats the vanilla bank for as much compute: {equal_compute(results)}.",
        beats("merging", "bank-long"),
    )
    deviation = gain(results, "merging", "views")
    forgiven = "" if deviation is None else f", {deviation[1]:.2f},"
    ask(
        "merging views",
        f"Consistency and merging do no harm to the views: {top['merging']} against "
        f"{top['views']} % (one pooled deviation{forgiven} is forgiven).",
        not_below(results, "merging", "views"),
    )
    ask(
        "merging",
        f"Merging finds pictures of one class: {mean(results, 'merging', 'purity'):.1f} % of the "
        f"pairs; of random ones {100 * CHANCE:.0f} %.",
        purity(results),
    )
    ask(
        "bank views consistency merging",
        f"Every step adds: bank {top['bank']}, views {top['views']}, consistency "
        f"{top['consistency']}, merging {top['merging']} % (one step may fall, by less than its "
        "pooled deviation).",
        chain(results),
    )
    ask(
        "consistency in-batch",
        "Consistency without negatives beats a softmax over the batch: "
        f"{top['consistency']} against {top['in-batch']} %.",
        beats("consistency", "in-batch"),
    )
    one, other = (mean(results, f"{arm}-unseen", "recall_at_1") for arm in ("merging", "bank"))
    ask(
        "merging-unseen bank-unseen",
        "On classes that were not trained on, merging beats the vanilla bank: Recall@1 "
        f"{one:.2f} against {other:.2f} %.",
        beats("merging-unseen", "bank-unseen", "recall_at_1"),
    )
    return found


def remarks(results: list[Result], config: Config) -> list[str]:
    """What has no verdict."""
    images = {r.arm: f"{r.metrics['images']:.0f}" for r in results if "images" in r.metrics}
    said = [
        f"kNN: k = {config.k}, weights exp(similarity / {config.knn_tau:g}), features computed "
        "anew with the test transform.",
        f"Pictures forwarded in training: {', '.join(map(' '.join, images.items()))}.",
    ]
    share = 100 * mean(results, "merging", "cons_share")
    if not math.isnan(share):
        said.append(
            f"At its full weight the consistency is {share:.0f} % of the instance loss after the "
            "first epoch (meant: 10 to 50 %)."
        )
    return said


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size in memory: ``(N, 3, H, W)`` uint8, labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, chosen: Tensor | slice) -> Pictures:
        """Those that are chosen."""
        return Pictures(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Data:
    """What is trained and judged on; the normalisation comes from the training pictures."""

    what: str
    train: Pictures
    held: Pictures
    normalize: augmentation.Normalize
    simulated: bool


def load_data(config: Config) -> Data:
    """Read CIFAR-10, or draw its stand-in."""
    root = config.data_root or catalogue.data_root()
    count, tuning = config.train_pictures, config.held_out == "tuning"
    simulated = not CIFAR10.card.find(root).present
    if simulated and not config.stand_in:
        raise FoveateError(
            f"{CIFAR10.card.title} is not below {root}: get it from {CIFAR10.card.url}, lay it out "
            f"as {CIFAR10.card.layout}, and name the folder with --set data_root=FOLDER"
        )
    if simulated:
        whole = patterns(1, count + config.test_pictures)
    else:
        whole = Pictures(*map(torch.from_numpy, CIFAR10(root, "train", config.batches).arrays()))
    if tuning:  # the test set stays closed
        held = whole.of(slice(count, None))
    elif simulated:
        held = patterns(2, config.test_pictures)
    else:
        held = Pictures(*map(torch.from_numpy, CIFAR10(root, "test").arrays()))
    if len(whole) < count or not len(held):
        raise FoveateError(
            f"{len(whole)} pictures in the training batches {config.batches} are too few for "
            f"{count} training pictures{' and some for tuning' if tuning else ''}; read more "
            "batches or --set train_pictures to fewer"
        )
    train = shrunk(whole.of(slice(count)), config.shrink)
    held = shrunk(held.of(slice(config.test_pictures)), config.shrink)
    values = train.images.double() / 255
    average, spread = values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3)).tolist()
    return Data(
        f"{'drawn patterns' if simulated else 'CIFAR-10'}, {len(train)} training pictures without "
        f"labels and {len(held)} {config.held_out} pictures, {train.images.shape[3]} x "
        f"{train.images.shape[2]} pixels",
        train,
        held,
        augmentation.Normalize(tuple(average), tuple(spread)),
        simulated,
    )


def shrunk(pictures: Pictures, factor: int) -> Pictures:
    """Mean over squares of pixels."""
    images = mean_pool(pictures.images.numpy(), factor)
    return Pictures(torch.from_numpy(images), pictures.labels)


def patterns(seed: int, count: int) -> Pictures:
    """Noisy stripes ``(N, 3, 32, 32)``: the class is their direction; colour and phase are not."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    angle = labels * (math.pi / CLASSES)
    at = torch.arange(32.0)
    across = angle.cos()[:, None, None] * at[:, None] + angle.sin()[:, None, None] * at
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=draw)
    colour = 0.5 + 0.5 * torch.rand(count, 3, 1, 1, generator=draw)
    noise = torch.randn(count, 3, 32, 32, generator=draw)
    picture = 128 + 80 * colour * (0.7 * across + phase).sin()[:, None] + 15 * noise
    return Pictures(picture.clamp(0, 255).to(torch.uint8), labels)
