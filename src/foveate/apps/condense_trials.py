"""What ``foveate condense`` measures: what the rows are good for, and what they give away.

Arms: the condensed rows; as many random real rows, balanced; as many real rows that k-means chose,
class by class; all training rows. Each trains the networks of the pool and others that took no part
in condensing, from the same first weights in every arm. Then the four items of
`foveate.learning.privacy`, each with a control that shows whether the test could have found
anything. Every measurement is small and named, so that a run which was stopped keeps it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foveate.datasets.series import OwnRows
from foveate.errors import FoveateError
from foveate.learning.condensation import (
    CondensedSet,
    DistributionMatching,
    Normalizer,
    auc,
    image_pool,
    kmeans_rows,
    random_rows,
    train_network,
)
from foveate.learning.privacy import (
    BLIND,
    AttackReport,
    PrivacyReport,
    leave_one_out,
    matched_rows,
    membership_inference,
    nearest_real_report,
)
from foveate.nn.timeseries import (
    DESK_NETS,
    PAPER_NETS,
    LSTMClassifier,
    SeriesTransformer,
    series_net,
    series_pool,
)

__all__ = ["ARMS", "CLIP", "POWER", "Nets", "Plan", "Trials", "choose_nets", "privacy_signs"]

CLIP = 10.0  # standard deviations; a row of another clinic may be far out
POWER = 0.6  # AUC of the attack where it must succeed, else nothing follows from it

Factory = Callable[[], nn.Module]
Rows = tuple[Tensor, Tensor]
Ints = npt.NDArray[np.int64]
Tell = Callable[[str], None]

ARMS = {
    "condensed": "condensed rows",
    "random": "as many random real rows",
    "kmeans": "as many real rows, by k-means",
    "all": "all training rows",
}

_FAMILIES = {"tcn": ("TCN", "TCN-desk"), "lstm": ("LSTM", "LSTM-desk"),
             "vit": ("ViT", "ViT-desk"), "rnn": ("RNN", "RNN-desk")}  # fmt: skip
_SERIES = ("tcn", "lstm", "vit")
_CONVNET_WIDTH = 32


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes
    ----------
    iterations
        Of the condensation.
    inits
        Trainings of every network on few rows, each from other first weights.
    epochs, eval_lr
        Of a training on few rows.
    full_epochs
        Of a training on all rows.
    val_rows
        Validation rows that choose the epoch, at most.
    members
        Rows on either side of the attack and of the proximity test, at most.
    power_rows, power_epochs
        Of the training on which the attack must succeed.
    left_out, left_out_iterations
        Rows left out one by one, and the length of those condensations.
    """

    iterations: int
    inits: int
    epochs: int
    eval_lr: float
    full_epochs: int
    val_rows: int
    members: int
    power_rows: int
    power_epochs: int
    left_out: int
    left_out_iterations: int


class Nets(NamedTuple):
    """Networks that condense, those that only measure, and what to say about the choice."""

    pool: dict[str, Factory]
    unseen: dict[str, Factory]
    notes: list[str]

    @property
    def all(self) -> dict[str, Factory]:
        """Both."""
        return self.pool | self.unseen


def choose_nets(
    words: Sequence[str], rows: OwnRows, norm: Literal["batch", "group"] = "batch"
) -> Nets:
    """Networks by name for the rows at hand.

    Parameters
    ----------
    words
        Of series: ``tcn``, ``lstm``, ``vit``, ``rnn`` (small ones), or names of
        `foveate.nn.timeseries.PAPER_NETS`. Of pictures: ``convnet``, or ``convnet-WIDTHxDEPTH``.
        Empty: the default of the kind.
    norm
        Of a TCN.

    Raises
    ------
    FoveateError
        An unknown name, or none is left that can see the rows.
    """
    outputs = 1 if len(rows.classes) == 2 else len(rows.classes)
    if rows.kind == "pictures":
        return _picture_nets(words, rows, outputs)
    steps, width = rows.shape
    exact = {name.lower(): name for name in (*PAPER_NETS, *DESK_NETS)}
    chosen: dict[str, str] = {}
    for word in words or _SERIES:
        shown, name = _FAMILIES.get(word.lower(), ("", exact.get(word.lower(), "")))
        if not name:
            raise FoveateError(
                f"--nets has {word!r}; there are {', '.join(_FAMILIES)} and "
                f"{', '.join(PAPER_NETS)} for series"
            )
        chosen[shown or name] = name
    kinds = {name.partition("-")[0] for name in chosen.values()}
    others = {
        shown: name for shown, name in _FAMILIES.values() if name.partition("-")[0] not in kinds
    }
    notes = []
    if not words:
        others = {"RNN": "RNN-desk"}
    if width == 1:  # LayerNorm over one number is always 0: it sees nothing
        blind = [shown for shown, name in (chosen | others).items() if _is_transformer(name)]
        chosen = {shown: name for shown, name in chosen.items() if shown not in blind}
        others = {shown: name for shown, name in others.items() if shown not in blind}
        if not chosen:
            raise FoveateError(
                "--nets names transformers only, which see nothing of series with one feature; "
                "add lstm or tcn"
            )
        if blind:
            notes.append(
                f"{', '.join(blind)} left out: with one feature a transformer sees nothing"
            )
    if steps == 1:
        notes.append(
            "the rows have a single step, so networks of time series see no course in time"
        )
    if not others:
        notes.append("every kind of network took part in condensing, so none is an outsider")
    pool, unseen = (
        {shown: series_pool((name,), width, outputs, norm)[name] for shown, name in part.items()}
        for part in (chosen, others)
    )
    return Nets(pool, unseen, notes)


def _is_transformer(name: str) -> bool:
    with torch.device("meta"):
        return isinstance(series_net(name, 2), SeriesTransformer)


def _picture_nets(words: Sequence[str], rows: OwnRows, outputs: int) -> Nets:
    channels, height, width = rows.shape
    deepest = int(math.log2(min(height, width)))
    if deepest < 1:
        raise FoveateError(f"pictures of {width}x{height} are too small; expected 2x2 or more")
    pool: dict[str, Factory] = {}
    for word in words or ("convnet",):
        name, _, size = word.lower().partition("-")
        wide, _, deep = size.partition("x")
        if name != "convnet" or (size and not (wide.isdigit() and deep.isdigit())):
            raise FoveateError(
                f"--nets has {word!r}; there are convnet and convnet-WIDTHxDEPTH, for instance "
                "convnet-64x3, for pictures"
            )
        sizes = (int(wide), int(deep)) if size else (_CONVNET_WIDTH, min(3, deepest))
        pool |= image_pool((channels, height, width), len(rows.classes), sizes[:1], sizes[1:])
    unseen: dict[str, Factory] = {
        "MLP": functools.partial(_mlp, channels * height * width, outputs),
        "LSTM over lines": functools.partial(_lines, width, outputs),
    }
    return Nets(pool, unseen, [])


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, outputs))


def _lines(width: int, outputs: int) -> nn.Module:
    """Reads a picture line by line, plane after plane."""
    return nn.Sequential(nn.Flatten(1, 2), LSTMClassifier(width, 64, outputs))


# ------------------------------------------------------------------------------ trials


class Trials:
    """The rows, normalised, and everything that is trained on them.

    Parameters
    ----------
    rows, nets, plan
        What to measure on, with, and how long.
    per_class, seed, selection, device
        As in `foveate.apps.condense.CondenseSettings`.
    """

    def __init__(
        self,
        rows: OwnRows,
        nets: Nets,
        plan: Plan,
        per_class: int,
        seed: int,
        selection: Literal["best_val", "last"],
        device: str,
    ) -> None:
        self.nets, self.plan, self.per_class, self.seed = nets, plan, per_class, seed
        self.selection, self.device = selection, device
        series = rows.kind == "series"
        self.normalizer = Normalizer.fit(rows.train[0], -1 if series else 1, clip=CLIP)
        self.train, val, self.test = (
            (self.normalizer(x), torch.from_numpy(y)) for x, y in rows.parts.values()
        )
        self.val = _share(val, plan.val_rows, seed)
        self.two = len(rows.classes) == 2
        count = min(plan.members, len(self.test[1]))
        self.inside, self.outside = matched_rows(self.train[1], self.test[1], count, seed)
        # The attack has equally many rows of every class on both sides: rare rows are the ones
        # that are easily recognised, and a share as in the data would hide them among the others.
        labels = self.train[1].numpy(), self.test[1].numpy()
        least = min(int(np.bincount(side).min()) for side in labels)
        least = max(1, min(least, plan.members // len(rows.classes)))
        self.members, self.strangers = (random_rows(side, least, seed) for side in labels)

    @functools.cached_property
    def by_kmeans(self) -> Ints:
        """Training rows nearest to class-wise k-means centroids."""
        return kmeans_rows(self.train[0].numpy(), self.train[1].numpy(), self.per_class, self.seed)

    def drawn(self, init: int) -> Ints:
        """Random training rows, others for every `init`."""
        return random_rows(self.train[1].numpy(), self.per_class, 1000 * self.seed + init)

    def inits(self, arm: str) -> int:
        """Trainings of every network; on all rows one."""
        return 1 if arm == "all" else self.plan.inits

    def rows_of(self, arm: str, few: CondensedSet, init: int) -> Rows:
        """Rows and labels that an arm trains on."""
        if arm == "condensed":
            return few.x, few.y
        if arm == "all":
            return self.train
        chosen = self.drawn(init) if arm == "random" else self.by_kmeans
        return self.train[0][chosen], self.train[1][chosen]

    def trained(
        self, name: str, rows: Rows, init: int, epochs: int,
        selection: Literal["best_val", "last"] | None = None,
    ) -> tuple[nn.Module, int]:  # fmt: skip
        """A new network, trained on `rows`, and the epoch it was taken from."""
        number = 1_000_000 * self.seed + 1000 * init + list(self.nets.all).index(name)
        selection = selection or self.selection
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            net = self.nets.all[name]()
        training = train_network(
            net, *rows, epochs=epochs, lr=self.plan.eval_lr, seed=number, selection=selection,
            val=self.val if selection == "best_val" else None, device=self.device,
        )  # fmt: skip
        return net, training.epoch

    def logits(self, net: nn.Module, x: Tensor) -> Tensor:
        """``(N, K)``."""
        with torch.no_grad():
            parts = [net(part.to(self.device)).cpu() for part in torch.split(x, 512)]
        return torch.cat(parts).reshape(len(x), -1)

    def trial(self, arm: str, name: str, few: CondensedSet, init: int, attacked: bool) -> Any:
        """Train one network in one arm; scores from 0 to 1, None where the training diverged."""
        rows = self.rows_of(arm, few, init)
        epochs = self.plan.full_epochs if arm == "all" else self.plan.epochs
        net, epoch = self.trained(name, rows, init, epochs)
        z = self.logits(net, self.test[0])
        said = (z[:, 0] > 0).long() if self.two else z.argmax(1)
        area = auc(self.test[1], z)
        found: dict[str, Any] = {
            "auc": None if math.isnan(area) else area,
            "accuracy": float((said == self.test[1]).float().mean()),
            "epoch": epoch,
            "attack": None,
        }
        if attacked and arm != "kmeans":
            found["attack"] = self.attack(net, *self.sides(arm, rows))
        return found

    def sides(self, arm: str, rows: Rows) -> tuple[Rows, Rows]:
        """Members and strangers, equally many of every class."""
        strangers = self.test[0][self.strangers], self.test[1][self.strangers]
        if arm == "random":  # the few rows themselves
            return rows, strangers
        return (self.train[0][self.members], self.train[1][self.members]), strangers

    def attack(self, net: nn.Module, members: Rows, strangers: Rows) -> dict[str, Any] | None:
        """Loss-threshold attack; None where a loss is not finite."""
        try:
            return dataclasses.asdict(membership_inference(net, members, strangers))
        except FoveateError:
            return None

    @property
    def attacker(self) -> str:
        """The network on which the attack must succeed: an LSTM if there is one."""
        return next(
            (name for name in self.nets.all if name.startswith("LSTM")), next(iter(self.nets.all))
        )

    def power(self, init: int) -> dict[str, Any] | None:
        """The attack on a network that saw few real rows for long."""
        labels = self.train[1][self.members].numpy()
        each = max(1, min(self.plan.power_rows, len(labels)) // len(np.unique(labels)))
        chosen = self.members[random_rows(labels, each, 1000 * self.seed + init)]
        rows = self.train[0][chosen], self.train[1][chosen]
        net, _ = self.trained(self.attacker, rows, init, self.plan.power_epochs, "last")
        return self.attack(net, rows, self.sides("power", rows)[1])

    # -- privacy

    def proximity(self, few: CondensedSet) -> dict[str, Any]:
        """Item 1, and the same test on rows that *are* training rows."""
        test = self.test[0][self.outside]
        near = nearest_real_report(few.x, self.train[0][self.inside], test, self.seed)
        own = self.drawn(0)[: len(self.inside)]
        side = np.concatenate([own, np.setdiff1d(self.inside, own)])[: len(self.inside)]
        control = nearest_real_report(self.train[0][own], self.train[0][side], test, self.seed)
        return {
            "to_train": near.to_train.tolist(),
            "to_holdout": near.to_holdout.tolist(),
            "nearer_to_train": near.nearer_to_train,
            "p_value": near.p_value,
            "p_textbook": near.p_textbook,
            "passed": near.passed,
            "rows": near.rows,
            "control_p": control.p_value,
        }

    def one_row_less(self, method: DistributionMatching, tell: Tell) -> dict[str, Any] | None:
        """Item 3: rows of the smallest class first, whose influence is the largest."""
        labels = self.train[1].numpy()
        rng = np.random.default_rng([self.seed, 3])
        counts = np.bincount(labels)
        least = self.per_class + 1 if method.init == "real" else 3
        order = rng.permutation(np.flatnonzero(counts[labels] >= least))
        rare = order[counts[labels[order]] == counts[labels[order]].min()] if len(order) else order
        half = rare[: (self.plan.left_out + 1) // 2]
        rows = [*half, *np.setdiff1d(order, half, assume_unique=True)][: self.plan.left_out]
        if not rows:
            return None

        def predict(few: CondensedSet) -> Tensor:
            net, _ = self.trained(self.attacker, (few.x, few.y), 0, self.plan.epochs, "last")
            z = self.logits(net, self.test[0][self.outside])
            return z.sigmoid() if self.two else z.softmax(1)

        short = dataclasses.replace(
            method, seed=self.seed, iterations=self.plan.left_out_iterations, release=None
        )
        found = leave_one_out(
            short, *self.train, [int(row) for row in rows], predict,
            lambda what, done, total: tell(f"one row less, {done + 1} of {total}"),
        )  # fmt: skip
        return {
            "rows": len(found.rows),
            "change": found.change,
            "other_seed": found.other_seed,
            "prediction_change": found.prediction_change,
            "iterations": self.plan.left_out_iterations,
        }


def _share(rows: Rows, most: int, seed: int) -> Rows:
    """At most so many rows, the same share of every class, at least one of each."""
    x, y = rows
    if len(y) <= most:
        return rows
    rng = np.random.default_rng([seed, 7])
    labels = y.numpy()
    kept = [
        rng.permutation(np.flatnonzero(labels == label))[: max(1, round(most * count / len(y)))]
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True)
    ]
    chosen = np.sort(np.concatenate(kept))
    return x[chosen], y[chosen]


# ------------------------------------------------------------------------------ what follows


def mean_attack(attacks: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Mean of the numbers of several attacks on the same rows; None of none."""
    known = [attack for attack in attacks if attack is not None]
    if not known:
        return None
    mean = {key: statistics.fmean(attack[key] for attack in known) for key in known[0]}
    return {**mean, "members": int(mean["members"]), "nonmembers": int(mean["nonmembers"])}


def privacy_signs(privacy: Mapping[str, Any]) -> dict[str, str]:
    """What each item says: ``none`` (no sign of the rows), ``sign``, ``unclear`` or ``number``.

    An item whose control found nothing where there was something to find is ``unclear``.
    """
    signs = {"one_row_less": "number", "formal": "formal" if privacy["formal"] else "none claimed"}
    near = privacy["proximity"]
    able = near["control_p"] <= 0.05
    signs["proximity"] = ("none" if able else "unclear") if near["passed"] else "sign"
    attack, power = privacy["attacks"].get("condensed"), privacy["attacks"].get("power")
    if attack is None:
        signs["attack"] = "unclear"
        return signs
    off = abs(attack["auc"] - 0.5)
    if off > max(BLIND, 2 * attack["auc_error"]):
        signs["attack"] = "sign"
    elif power is None or power["auc"] <= POWER or attack["auc_error"] > BLIND:
        signs["attack"] = "unclear"
    else:
        signs["attack"] = "none"
    return signs


def privacy_lines(privacy: Mapping[str, Any]) -> list[str]:
    """One sentence per item, as `foveate.learning.privacy.PrivacyReport` words them."""
    from foveate.learning.privacy import LeaveOneOutReport, ProximityReport

    near, less = privacy["proximity"], privacy["one_row_less"]
    words = {"condensed": "nets trained on the condensed rows", "all": "on all training rows",
             "random": "on as many random real rows",
             "power": "on few real rows for long, where it must succeed"}  # fmt: skip
    return PrivacyReport(
        ProximityReport(
            np.array(near["to_train"]),
            np.array(near["to_holdout"]),
            near["p_value"],
            near["p_textbook"],
            near["rows"],
        ),
        {
            words[arm]: AttackReport(**attack)
            for arm, attack in privacy["attacks"].items()
            if attack
        },
        less
        and LeaveOneOutReport(
            list(range(less["rows"])), less["change"], less["other_seed"], less["prediction_change"]
        ),
        privacy["formal"],
    ).lines()
