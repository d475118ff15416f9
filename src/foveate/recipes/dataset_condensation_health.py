"""Medical-records condensation: 20 synthetic stays in place of 5,120 real ones.

Paper: "Medical records condensation: a roadmap towards healthcare data democratisation"
(arXiv 2305.03711, v1 2023). A data holder learns a few synthetic time series per class by
distribution matching and shares them; whoever trains on them comes near to the AUC of the
originals, sooner, and, says the paper, without learning who was in there. Asked here:

    condensed       20 synthetic rows (10 per class)
    random          20 real rows at random, balanced     <- the ablation
    kmeans          the 20 real rows nearest to class-wise k-means centroids
    all             all training rows, unbalanced as they are
    power           a net on 200 real rows, long: the membership attack must succeed here
    leave-one-out   condensing again without one row
    lira            the stronger attack, with shadow condensations (paper scale only)

All nets are trained the same way and start from the same weights in the arms of one seed; the real
validation rows choose the epoch (P), test rows choose nothing. RNN is in no condensation pool.
`all` does not depend on the condensation and is trained once per net and initialisation.

Privacy has a verdict of its own. Every number of it is evidence about these attacks on these rows,
no guarantee; the paper's theorem is not known here and not reproduced. Members and non-members
have equal class counts, for a rare class has the higher loss and would pass for membership.

The desk scale is PhysioNet 2012 with small nets and 1,500 of the 24,000 iterations. The paper scale
is the published setting with all eleven nets, on PhysioNet 2012 or with ``--set data=mimic3-ihm``
or ``coswara``; ``data=simulated`` checks the plumbing only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveate.datasets import catalogue, coswara, mimic3_ihm, physionet2012
from foveate.errors import FoveateError
from foveate.learning.condensation import (
    CondensedSet,
    DistributionMatching,
    Normalizer,
    Training,
    auc,
    kmeans_rows,
    random_rows,
    train_network,
)
from foveate.learning.privacy import (
    BLIND,
    AttackReport,
    attack_report,
    leave_one_out,
    likelihood_ratio,
    matched_rows,
    membership_inference,
    nearest_real_report,
    shadow_masks,
)
from foveate.nn.timeseries import PAPER_NETS, series_pool
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

AHEAD = 3.0  # points of AUC that condensed rows must be above random ones, under every seed
NEAR = 0.9  # share of the AUC of all rows that condensed ones must reach
UNSEEN = 4.0  # points that unseen nets may be below those of the pool
SOONER = 0.1  # share of the rows that all rows need to come to 95 % of their best
POINTS = 8.0  # points below all rows that are still "near" (the abstract's are 5.5)
POWER = 0.6  # AUC of the attack where it must succeed
LEVEL = 0.75  # AUC whose first time is noted too

CLAIM = Claim(
    text=(
        "A network trained on 20 condensed intensive-care stays comes near to one trained on all "
        "5,120, sooner, and far above one trained on 20 real stays, also for kinds of network "
        "that took no part in condensing"
    ),
    metric="auc",
    direction="higher",
    method="condensed",
    ablation="random",
    rule=(
        f"mean test AUC over the nets: at least {AHEAD:g} points above random rows under every "
        f"seed; at least {100 * NEAR:g} % of the same net's AUC with all rows; unseen nets at most "
        f"{UNSEEN:g} points below the pool's; and at most {100 * SOONER:g} % of the rows that all "
        "rows need until 95 % of the own best validation AUC"
    ),
    published="PhysioNet 2012, test AUC: 80.3 % with 20 condensed rows, 85.8 % with all 5,120",
    certainty="P",
)

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Rows = tuple[Tensor, Tensor]
Measured = tuple[Metrics, Items]

# Rows per class, rate and epochs of the evaluation, of each data set (P).
PUBLISHED = {
    "physionet2012": (40, 5e-4, 30),
    "mimic3-ihm": (400, 5e-5, 20),
    "coswara": (40, 1e-4, 30),
    "simulated": (10, 5e-4, 30),
}


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data_root
        Folder of data sets (default: foveate's data folder).
    ipc, eval_lr, epochs
        Rows per class; Adam's rate and epochs of training on few rows. None: as published for
        the data set.
    pool, nets
        Names of the networks that condense, and of those that are trained and tested.
    iterations, lr, real_batch
        Of the condensation.
    inits
        Initialisations of every net.
    full_epochs
        Epochs of training on all rows.
    members
        Rows on either side of the attack.
    power_rows, power_epochs
        Of the training on which the attack must succeed.
    left_out, left_out_iterations
        Rows left out one by one, and the length of those condensations.
    shadows
        Condensations for the likelihood-ratio attack, even; 0: none.
    """

    scale: str
    data: Literal["physionet2012", "mimic3-ihm", "coswara", "simulated"] = "physionet2012"
    data_root: Path | None = None
    ipc: int | None = 10
    pool: tuple[str, ...] = ("TCN-desk", "LSTM-desk", "ViT-desk")
    nets: tuple[str, ...] = ("TCN-desk", "LSTM-desk", "RNN-desk")
    iterations: int = 1500
    lr: float = 1e-2
    real_batch: int = 128
    inits: int = 3
    epochs: int | None = 30
    full_epochs: int = 6
    eval_lr: float | None = 5e-4
    batch: int = 64
    members: int = 1280
    power_rows: int = 200
    power_epochs: int = 100
    left_out: int = 5
    left_out_iterations: int = 300
    shadows: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: Literal["cpu", "cuda", "auto"] = "cpu"

    def __post_init__(self) -> None:
        if not self.nets or not set(self.nets) & set(self.pool):
            raise FoveateError("nets names at least one network that is in pool too")
        if self.shadows and (self.shadows < 4 or self.shadows % 2):
            raise FoveateError(f"shadows is 0 or an even number from 4 on, got {self.shadows}")
        least = min(self.inits, self.full_epochs, self.members, self.power_rows, self.left_out)
        if least < 1 or self.power_rows > self.members:
            raise FoveateError(
                "inits, full_epochs, members, power_rows and left_out are at least 1, and "
                f"power_rows at most members ({self.members})"
            )

    @property
    def few(self) -> tuple[int, float, int]:
        """Rows per class, rate and epochs of the arms with few rows."""
        ipc, lr, epochs = PUBLISHED[self.data]
        return self.ipc or ipc, self.eval_lr or lr, self.epochs or epochs

    @property
    def device(self) -> str:
        """Where to compute."""
        if self.accelerator == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.accelerator


PRESETS = {
    "smoke": Config(
        scale="smoke",
        data="simulated",
        ipc=2,
        iterations=6,
        real_batch=16,
        inits=1,
        epochs=3,
        full_epochs=1,
        members=40,
        power_rows=20,
        power_epochs=5,
        left_out=1,
        left_out_iterations=2,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "paper": Config(
        scale="paper",
        ipc=None,
        pool=("TCN-a", "LSTM-a", "ViT-a"),
        nets=PAPER_NETS,
        iterations=24_000,
        lr=1e-3,
        real_batch=256,
        inits=5,
        epochs=None,
        full_epochs=30,
        eval_lr=None,
        shadows=16,
        accelerator="auto",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence:
    """Condense under every seed, train and attack; finished work, condensed sets too, is reused.

    Raises
    ------
    FoveateError
        The data set is not there, or is damaged.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    ledger = Ledger("dataset-condensation-health", config, __file__)
    data = load_data(config)
    first = config.seeds[0]
    jobs = [(arm, seed) for seed in config.seeds for arm in ("condensed", "random", "kmeans")]
    jobs += [("power", seed) for seed in config.seeds]
    jobs += [("all", first), ("leave-one-out", first)]
    jobs += [("lira", first)] if config.shadows else []
    results = []
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def say(what: str, done: int = done, arm: str = arm, seed: int = seed) -> None:
            tell(f"{arm}, seed {seed}: {what}", done, len(jobs))

        work = functools.partial(ARMS[arm].measure, seed, data, config, ledger.folder, say)
        results.append(ledger.result(arm, seed, work))
    return Evidence(
        recipe="dataset-condensation-health",
        claim=CLAIM,
        verdict=verdict(results, config),
        arms={arm: ARMS[arm].what for arm in dict.fromkeys(arm for arm, _ in jobs)},
        results=results,
        data=data.what,
        simulated=data.simulated,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, config),
        notes=remarks(results, config),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ condensing


def matching(seed: int, data: Data, config: Config, iterations: int) -> DistributionMatching:
    """The method with the settings of `config`."""
    shape = data.train[0].shape[1:]
    return DistributionMatching(
        list(series_pool(config.pool, shape[1]).values()),
        config.few[0],
        tuple(shape),
        lr=config.lr,
        iterations=iterations,
        real_batch=config.real_batch,
        seed=seed,
        device=config.device,
    )


def condensed_set(seed: int, data: Data, config: Config, folder: Path, say: Tell) -> CondensedSet:
    """Read from `folder`, or condensed now; an interrupted condensation goes on."""
    kept = folder / f"condensed-{seed}.safetensors"
    if kept.is_file():
        return CondensedSet.load(kept)
    few = matching(seed, data, config, config.iterations).fit(
        *data.train,
        progress=lambda what, done, total: say(f"iteration {done} of {total}"),
        checkpoint=folder / f"condensing-{seed}.safetensors",
        normalizer=data.normalizer,
        meta={"data": data.what, "features": list(data.features)},
    )
    few.save(kept)
    return few


# ------------------------------------------------------------------------------ training


def init_seed(seed: int, init: int, net: int) -> int:
    """Equal for all arms of one seed: the same first weights, dropout and order."""
    return 1_000_000 * seed + 1000 * init + net


def trained(
    name: str, rows: Rows, seed: int, data: Data, config: Config, epochs: int, lr: float,
    validate_every: int | None = None, selection: Literal["best_val", "last"] = "best_val",
) -> tuple[nn.Module, Training]:  # fmt: skip
    """One new network, trained on `rows`."""
    make = series_pool((name,), rows[0].shape[2])[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
    training = train_network(
        net, *rows, epochs=epochs, lr=lr, val=data.val if selection == "best_val" else None,
        batch=config.batch, seed=seed, validate_every=validate_every, selection=selection,
        device=config.device,
    )  # fmt: skip
    return net, training


@torch.no_grad()
def logits(net: nn.Module, x: Tensor, config: Config) -> Tensor:
    """One logit per row, ``(N,)``."""
    parts = [net(part.to(config.device)).cpu() for part in torch.split(x, 512)]
    return torch.cat(parts).flatten()


def assess(
    draws: Callable[[int], Rows],
    seed: int,
    data: Data,
    config: Config,
    say: Tell,
    sides: Callable[[int], tuple[Rows, Rows]],
    all_rows: bool = False,
) -> Measured:
    """Train every net on the rows of every initialisation: AUC, time to come there, attack.

    ``rows_95``, ``steps_95``, ``seconds_95``: until 95 % of the own best validation AUC; ``_75``:
    until 0.75, where that was reached at all (``reached_75``, a share). Validated after every step,
    on all rows after every tenth.
    """
    _, lr, epochs = config.few
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(float(value))

    items: Items = {}
    for init in range(config.inits):
        rows = draws(init)
        inside, outside = sides(init)
        for index, name in enumerate(config.nets):
            say(f"{name}, initialisation {init + 1} of {config.inits}")
            net, training = trained(
                name, rows, init_seed(seed, init, index), data, config,
                config.full_epochs if all_rows else epochs, lr, 10 if all_rows else 1,
            )  # fmt: skip
            score = 100 * auc(data.test[1], logits(net, data.test[0], config))
            note("auc", score)
            note(f"auc_{name}", score)
            items.setdefault(name, []).append(score)
            note(f"epoch_{name}", training.epoch)
            for suffix, level in (("95", 0.95 * training.best), ("75", LEVEL)):
                at = training.first(level)
                if suffix == "75":
                    note("reached_75", at is not None)
                if at is not None:
                    note(f"rows_{suffix}", training.rows[at])
                    note(f"steps_{suffix}", training.steps[at])
                    note(f"seconds_{suffix}", training.seconds[at])
            attack = membership_inference(net, inside, outside)
            note("attack_auc", attack.auc)
            note("attack_accuracy", attack.balanced_accuracy)
            note("attack_tpr_at_1_fpr", attack.tpr_at_1_fpr)
    metrics = {name: statistics.fmean(values) for name, values in found.items()}
    metrics["auc_std"] = statistics.fmean(statistics.pstdev(values) for values in items.values())
    metrics |= {"rows": len(draws(0)[0]), "bytes": 4 * draws(0)[0].numel()}
    return metrics, items


def proximity(rows: Tensor, data: Data, seed: int, own: np.ndarray | None) -> Metrics:
    """Item 1 for `rows`; `own` are their places when they *are* training rows: the control."""
    inside, outside = data.sides[seed]
    if own is not None:
        inside = np.concatenate([own, np.setdiff1d(inside, own)])[: len(inside)]
    near = nearest_real_report(rows, data.train[0][inside], data.test[0][outside], seed)
    return {
        "nearest_train": float(np.median(near.to_train)),
        "nearest_test": float(np.median(near.to_holdout)),
        "proximity_p": near.p_value,
        "proximity_p_textbook": near.p_textbook,
    }


def condensed(seed: int, data: Data, config: Config, folder: Path, say: Tell) -> Measured:
    """The method."""
    few = condensed_set(seed, data, config, folder, say)
    sides = data.attack_rows(seed)
    metrics, items = assess(lambda _: (few.x, few.y), seed, data, config, say, lambda _: sides)
    # a control that cannot prefer anything: noise that has seen no row
    noise = torch.randn(few.x.shape, generator=torch.Generator().manual_seed(seed))
    of_noise = {f"noise_{k}": v for k, v in proximity(noise, data, seed, None).items()}
    return metrics | proximity(few.x, data, seed, None) | of_noise, items


def real_rows(
    seed: int, data: Data, config: Config, folder: Path, say: Tell, kind: str
) -> Measured:
    """Few real rows: random ones, another draw for every initialisation, or those of k-means."""
    ipc = config.few[0]

    @functools.cache
    def chosen(init: int) -> np.ndarray:
        if kind == "random":
            return random_rows(data.train[1], ipc, init_seed(seed, init, 0))
        return kmeans_rows(data.train[0].numpy(), data.train[1], ipc, seed)

    def rows(init: int) -> Rows:
        return data.train[0][chosen(init)], data.train[1][chosen(init)]

    positives = min(int(torch.bincount(data.test[1]).min()), config.members)
    outside = random_rows(data.test[1], positives, seed)  # balanced, as the members are
    strangers = data.test[0][outside], data.test[1][outside]
    metrics, items = assess(rows, seed, data, config, say, lambda init: (rows(init), strangers))
    return metrics | proximity(rows(0)[0], data, seed, chosen(0)), items


def all_rows(seed: int, data: Data, config: Config, folder: Path, say: Tell) -> Measured:
    """Every training row; the initialisations are those of the first seed."""
    sides = data.attack_rows(seed)
    return assess(lambda _: data.train, seed, data, config, say, lambda _: sides, all_rows=True)


# ------------------------------------------------------------------------------ privacy


def attack_net(config: Config) -> str:
    """The LSTM among the nets, else the first of them."""
    return next((name for name in config.nets if name.startswith("LSTM")), config.nets[0])


def power(seed: int, data: Data, config: Config, folder: Path, say: Tell) -> Measured:
    """The attack on a network that has seen few real rows for long."""
    inside, outside = data.sides[seed]
    labels = data.train[1][inside].numpy()
    rng = np.random.default_rng(seed)
    reports = []
    for init in range(config.inits):
        share = config.power_rows / len(inside)
        rows = np.concatenate(  # the class shares of the non-members
            [
                rng.permutation(inside[labels == c])[: max(1, round(share * (labels == c).sum()))]
                for c in np.unique(labels)
            ]
        )
        members = data.train[0][rows], data.train[1][rows]
        say(f"{len(rows)} real rows, initialisation {init + 1} of {config.inits}")
        net, _ = trained(
            attack_net(config), members, init_seed(seed, init, 0), data, config,
            config.power_epochs, config.few[1], selection="last",
        )  # fmt: skip
        strangers = data.test[0][outside], data.test[1][outside]
        reports.append(membership_inference(net, members, strangers))
    return attack_metrics(reports), {"attack_auc": [report.auc for report in reports]}


def attack_metrics(reports: list[AttackReport]) -> Metrics:
    """Means of the three numbers of an attack."""
    return {
        "attack_auc": statistics.fmean(r.auc for r in reports),
        "attack_accuracy": statistics.fmean(r.balanced_accuracy for r in reports),
        "attack_tpr_at_1_fpr": statistics.fmean(r.tpr_at_1_fpr for r in reports),
    }


def one_row_less(seed: int, data: Data, config: Config, folder: Path, say: Tell) -> Measured:
    """Item 3: short condensations with and without a row, all random numbers being equal."""
    _, lr, epochs = config.few

    def predict(few: CondensedSet) -> Tensor:
        net, _ = trained(
            attack_net(config), (few.x, few.y), init_seed(seed, 0, 0), data, config, epochs, lr,
            selection="last",
        )  # fmt: skip
        return logits(net, data.test[0], config).sigmoid()

    rows = np.random.default_rng(seed).permutation(len(data.train[0]))[: config.left_out].tolist()
    method = matching(seed, data, config, config.left_out_iterations)
    found = leave_one_out(
        method, *data.train, rows, predict, lambda what, done, total: say(what)
    )  # fmt: skip
    metrics = {
        "change": statistics.fmean(found.change),
        "change_worst": max(found.change),
        "change_other_seed": found.other_seed,
        "prediction_change": statistics.fmean(found.prediction_change),
    }
    return metrics, {"change": found.change, "prediction_change": found.prediction_change}


def lira(seed: int, data: Data, config: Config, folder: Path, say: Tell) -> Measured:
    """LiRA: shadow condensations on all rows but the candidates, and half of those each time."""
    inside, outside = data.sides[seed]
    candidates = torch.cat([data.train[0][inside], data.test[0][outside]])
    labels = torch.cat([data.train[1][inside], data.test[1][outside]])
    rest = torch.from_numpy(np.setdiff1d(np.arange(len(data.train[0])), inside))
    masks = shadow_masks(len(candidates), config.shadows, seed)
    sign = 2.0 * labels - 1

    def confidence(few: CondensedSet, number: int) -> np.ndarray:
        net, _ = trained(
            attack_net(config), (few.x, few.y), init_seed(seed, number, 0), data, config,
            config.few[2], config.few[1], selection="last",
        )  # fmt: skip
        return np.asarray((sign * logits(net, candidates, config)).numpy())

    theirs = []
    for number, mask in enumerate(masks, 1):
        chosen = torch.from_numpy(mask)
        rows = torch.cat([data.train[0][rest], candidates[chosen]])
        few = matching(seed + 1000 * number, data, config, config.iterations).fit(
            rows,
            torch.cat([data.train[1][rest], labels[chosen]]),
            lambda what, done, total, number=number: say(  # type: ignore[misc]
                f"shadow {number} of {config.shadows}, iteration {done} of {total}"
            ),
            folder / f"shadow-{seed}-{number}.safetensors",
        )
        theirs.append(confidence(few, number))
    target = confidence(condensed_set(seed, data, config, folder, say), 0)
    score = likelihood_ratio(target, np.stack(theirs), masks)
    return attack_metrics([attack_report(score[: len(inside)], score[len(inside) :])]), {}


class Arm(NamedTuple):
    """What an arm is, and how it is measured."""

    what: str
    measure: Callable[[int, Data, Config, Path, Tell], Measured]


ARMS = {
    "condensed": Arm("synthetic rows by distribution matching", condensed),
    "random": Arm(
        "as many real rows, balanced, another draw for every initialisation",
        functools.partial(real_rows, kind="random"),
    ),
    "kmeans": Arm(
        "as many real rows, each the nearest to a class-wise k-means centroid",
        functools.partial(real_rows, kind="kmeans"),
    ),
    "power": Arm("attack on a net that saw few real rows for long", power),
    "all": Arm("all training rows, once for all seeds", all_rows),
    "leave-one-out": Arm("short condensations that differ in one real row", one_row_less),
    "lira": Arm("likelihood-ratio attack with shadow condensations", lira),
}


# ------------------------------------------------------------------------------ verdicts

ROUNDING = 1e-9
TEXTBOOK = "proximity_p_textbook"  # the specification's test decides


class Part(NamedTuple):
    """One part of the claim: a sentence, its number (NaN: not measured), whether it holds."""

    text: str
    value: float
    holds: bool
    decides: bool = True


def parts(results: list[Result], config: Config) -> list[Part]:
    """Those of the specification's rule decide; AUC in percent."""

    def net(arm: str, name: str) -> float:
        return mean(results, arm, f"auc_{name}")

    ours, theirs = (
        {r.seed: r.metrics.get("auc", math.nan) for r in results if r.arm == arm}
        for arm in ("condensed", "random")
    )
    gains = [ours[seed] - theirs[seed] for seed in set(ours) & set(theirs)]
    ahead = math.nan if any(map(math.isnan, gains)) else min(gains, default=math.nan)
    share = statistics.fmean(net("condensed", n) / net("all", n) for n in config.nets)
    seen, unseen = (
        [net("condensed", n) for n in config.nets if (n in config.pool) == inside]
        for inside in (True, False)
    )
    gap = statistics.fmean(unseen) - statistics.fmean(seen) if unseen else math.nan
    rows = mean(results, "condensed", "rows_95") / mean(results, "all", "rows_95")
    mine, full = mean(results, "condensed", "auc"), mean(results, "all", "auc")
    return [
        Part(
            f"Condensed rows are at least {AHEAD:g} points above as many random rows, under every "
            f"seed: {ahead:.1f} in the worst.",
            ahead,
            ahead >= AHEAD - ROUNDING,
        ),
        Part(
            f"They reach {100 * NEAR:g} % of the same net's AUC with all rows: {100 * share:.1f} % "
            "in the mean.",
            share,
            share >= NEAR - ROUNDING,
        ),
        Part(
            f"Nets that took no part in condensing are at most {UNSEEN:g} points below those that "
            f"did: {gap:+.1f} points.",
            gap,
            gap >= -UNSEEN - ROUNDING,
        ),
        Part(
            f"Training comes to 95 % of its own best AUC with at most {100 * SOONER:g} % of the "
            f"rows that it takes with all: {100 * rows:.1f} %.",
            rows,
            rows <= SOONER + ROUNDING,
        ),
        Part(
            f"They are within {POINTS:g} points of all rows, in the mean over the nets: "
            f"{mine:.1f} against {full:.1f} %.",
            full - mine,
            full - mine <= POINTS + ROUNDING,
            decides=False,
        ),
    ]


def verdict(results: list[Result], config: Config) -> Verdict:
    """The rule of the specification (`CLAIM.rule`)."""
    deciding = [part for part in parts(results, config) if part.decides]
    if not _enough(results) or any(math.isnan(part.value) for part in deciding):
        return "inconclusive"
    return _said(all(part.holds for part in deciding))


def _enough(results: list[Result]) -> bool:
    """Three seeds that both arms of the claim have."""
    seeds = ({r.seed for r in results if r.arm == arm} for arm in ("condensed", "random"))
    return len(set.intersection(*seeds)) >= 3


def privacy_verdict(results: list[Result]) -> Verdict:
    """Blind attack and no preference for training rows under every seed, by an able attack."""
    ours = [r.metrics for r in results if r.arm == "condensed"]
    values = [m.get(name, math.nan) for m in ours for name in ("attack_auc", TEXTBOOK)]
    strength = mean(results, "power", "attack_auc")
    if len(ours) < 3 or any(map(math.isnan, (*values, strength))) or strength <= POWER:
        return "inconclusive"
    return _said(
        all(abs(m["attack_auc"] - 0.5) <= BLIND + ROUNDING and m[TEXTBOOK] > 0.05 for m in ours)
    )


def _said(true: bool) -> Verdict:
    return "reproduced" if true else "not reproduced"


def findings(results: list[Result], config: Config) -> list[Finding]:
    """The parts of the claim one by one, another baseline, and privacy."""
    ours = [r.metrics for r in results if r.arm == "condensed"]
    judged = [
        Finding(
            part.text,
            _said(part.holds)
            if _enough(results) and not math.isnan(part.value)
            else "inconclusive",
        )
        for part in parts(results, config)
    ]
    return [
        *judged,
        Finding(
            "They beat as many real rows chosen by k-means, in the mean and in two of three seeds: "
            f"{mean(results, 'condensed', 'auc'):.1f} against "
            f"{mean(results, 'kmeans', 'auc'):.1f} %.",
            paired_verdict(results, "auc", "condensed", "kmeans", "higher"),
        ),
        Finding(
            "Privacy, evidence: under every seed the loss attack has an AUC of 0.5 +- "
            f"{BLIND:g} (found {_listed(ours, 'attack_auc', 3)}) and synthetic rows have no "
            f"preference for training rows (Mann-Whitney p {_listed(ours, TEXTBOOK, 3)}); the "
            f"attack's AUC where it must succeed is {mean(results, 'power', 'attack_auc'):.3f} "
            f"(above {POWER:g} or nothing follows).",
            privacy_verdict(results),
        ),
        Finding(
            "The same preference against random relabellings of the real rows, which allow for "
            "synthetic rows that share a nearest neighbour: p "
            f"{_listed(ours, 'proximity_p', 2)} (above 0.05 under every seed); noise that has seen "
            f"no row has p {_listed(ours, 'noise_proximity_p', 2)} so, and "
            f"{_listed(ours, 'noise_' + TEXTBOOK, 4)} by Mann-Whitney.",
            _said(all(m["proximity_p"] > 0.05 for m in ours))
            if len(ours) >= 3 and not any(math.isnan(m.get("proximity_p", math.nan)) for m in ours)
            else "inconclusive",
        ),
    ]


def _listed(metrics: list[Metrics], name: str, digits: int) -> str:
    return ", ".join(f"{m.get(name, math.nan):.{digits}f}" for m in metrics)


def remarks(results: list[Result], config: Config) -> list[str]:
    """What has no verdict."""

    def number(arm: str, name: str) -> float:
        return mean(results, arm, name)

    said = [
        f"Volume: {number('condensed', 'bytes') / 1e3:.0f} kB in place of "
        f"{number('all', 'bytes') / 1e6:.1f} MB as float32.",
        f"Epoch of the best validation AUC on all rows, of {config.full_epochs}: "
        + ", ".join(f"{name} {number('all', f'epoch_{name}'):.1f}" for name in config.nets)
        + ". An epoch near the last says that the training was not finished.",
        "Attack's AUC on nets trained on all rows "
        f"{number('all', 'attack_auc'):.3f}, on random real rows "
        f"{number('random', 'attack_auc'):.3f}.",
        "Proximity, control: random real rows, which are training rows, come out with p = "
        f"{number('random', 'proximity_p'):.3f} by relabelling. The second reading was added after "
        "a trial in which Mann-Whitney, which takes rows for independent that share their nearest "
        "neighbour, rejected noise; it decides nothing.",
        "One row less changes the set by "
        f"{100 * number('leave-one-out', 'change'):.2g} % of its norm in the mean, another seed by "
        f"{100 * number('leave-one-out', 'change_other_seed'):.0f} %; predictions move by "
        f"{number('leave-one-out', 'prediction_change'):.1g}.",
        "No noise was added, so nothing formal is claimed; the paper's theorem is not known here.",
    ]
    strong = number("lira", "attack_auc")
    if not math.isnan(strong):
        said.append(f"The likelihood-ratio attack has an AUC of {strong:.3f}.")
    return said


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Data:
    """Normalised series ``(N, T, F)`` and labels; `sides`: seed -> rows for the attack."""

    what: str
    train: Rows
    val: Rows
    test: Rows
    normalizer: Normalizer | None
    features: tuple[str, ...]
    simulated: bool
    sides: dict[int, tuple[np.ndarray, np.ndarray]]

    def attack_rows(self, seed: int) -> tuple[Rows, Rows]:
        """Members, which are training rows, and as many test rows of the same classes."""
        inside, outside = self.sides[seed]
        return (
            (self.train[0][inside], self.train[1][inside]),
            (self.test[0][outside], self.test[1][outside]),
        )


def load_data(config: Config) -> Data:
    """Read, divide and normalise what `config` names; statistics are those of training rows."""
    root = config.data_root or catalogue.data_root()
    features: tuple[str, ...] = ()
    splits: list[tuple[np.ndarray, np.ndarray]]
    if config.data in ("physionet2012", "simulated"):
        if config.data == "simulated":
            x, y = simulated_stays()
            what = "AR(1) series with a drift"
        else:
            if not physionet2012.PhysioNet2012.card.find(root).present:
                card = physionet2012.PhysioNet2012.card
                raise FoveateError(
                    f"{card.title} is not below {root}: get it from {card.url} (no registration), "
                    f"lay it out as {card.layout}, and name the folder with --set data_root=FOLDER"
                )
            x, y, features = physionet2012.load(root)
            what = "PhysioNet 2012"
        splits = [(x[part], y[part]) for part in physionet2012.split(len(y))]
    else:
        load = mimic3_ihm.load if config.data == "mimic3-ihm" else coswara.load
        splits = list(load(root).values())
        what = "MIMIC-III" if config.data == "mimic3-ihm" else "Coswara, breathing"
    clip = None if config.data == "coswara" else 10.0
    normalizer = None if config.data == "mimic3-ihm" else Normalizer.fit(splits[0][0], clip=clip)
    rows = [
        (torch.from_numpy(x) if normalizer is None else normalizer(x), torch.from_numpy(y))
        for x, y in splits
    ]
    train, val, test = rows
    count = min(config.members, len(test[1]))
    return Data(
        f"{what}, {len(train[1])} training, {len(val[1])} validation and {len(test[1])} test rows",
        train,
        val,
        test,
        normalizer,
        features,
        config.data == "simulated",
        {seed: matched_rows(train[1], test[1], count, seed) for seed in config.seeds},
    )


def simulated_stays(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """AR(1) series with phi 0.8; in 14 % of them 5 of 20 channels drift; 80 % of cells are lost.

    Returns X ``(N, 48, 20)`` with gaps filled, and y ``(N,)``.
    """
    rng = np.random.default_rng(0)
    y = (np.arange(count) % 50 < 7).astype(np.int64)
    x = np.empty((count, 48, 20))
    state = rng.normal(size=(count, 20))
    for hour in range(48):
        x[:, hour] = state
        state = 0.8 * state + 0.6 * rng.normal(size=state.shape)  # variance stays 1
    x[:, :, :5] += (y[:, None] * np.linspace(0, 3, 48))[:, :, None]
    x[rng.random(x.shape) < 0.8] = np.nan
    return physionet2012.fill_gaps(x.astype(np.float32), physionet2012.split(count)[0]), y
