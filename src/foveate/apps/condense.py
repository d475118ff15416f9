"""``foveate condense``: thousands of labelled rows become a handful of synthetic ones, and a page.

Composition only: rows -> train, validation, test -> z-score of the training rows -> distribution
matching -> trainings on the condensed rows beside real ones -> the privacy report -> page. The
condensation keeps a checkpoint and every training is noted as soon as it is done, both in
``unfinished/``: a run that was stopped, even killed, goes on from there to the same bits.
``summary.json`` comes last and marks a finished run.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import foveate
from foveate.apps.condense_trials import (
    ARMS,
    Plan,
    Trials,
    choose_nets,
    mean_attack,
    privacy_lines,
    privacy_signs,
)
from foveate.apps.torch_threads import torch_threads
from foveate.datasets.series import OwnRows, read_own_rows
from foveate.errors import FoveateError
from foveate.files import (
    made_folder,
    read_json,
    sha256_of,
    write_json,
)
from foveate.learning.condensation import CondensedSet, DistributionMatching
from foveate.learning.privacy import GaussianRelease

__all__ = ["CondenseResult", "CondenseSettings", "condense"]

FILE = "condensed.safetensors"
_MAKER = "foveate condense"
_UNFINISHED = "unfinished"
_CURVES = 6  # features whose course is drawn
_POINTS = 200  # of a curve
_CLASSES = 4  # drawn
_SHOWN = 6  # synthetic rows of a class that are drawn
# What a piece of work costs, in iterations of the condensation, for the progress bar.
_COST = {"few": 15, "all": 60, "power": 20, "proximity": 5}

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""


@dataclass(frozen=True)
class CondenseSettings:
    """What a person can choose.

    Attributes
    ----------
    per_class
        Synthetic rows of every class.
    iterations
        Steps of the condensation; None: 1,500 for series, 400 for pictures, a twelfth if `quick`.
    nets
        Networks that condense, see `foveate.apps.condense_trials.choose_nets`; a text with commas
        or a sequence. None: tcn, lstm and vit for series, convnet for pictures.
    seed
        Of everything that is random.
    privacy
        Make the privacy report.
    init
        ``noise``, or ``real``: copies of real rows, never for a set that is to be shared.
    image
        True: pictures, False: series, None: what is there decides.
    quick
        A first look: short condensation, fewer and shorter trainings.
    lr, real_batch
        Adam's rate, None: 0.01, or 0.05 if `quick`; real rows per class and step.
    selection
        ``best_val``: real validation rows choose the epoch of every training. ``last``: nothing
        but the rows of the arm is used.
    noise
        Noise multiplier for a formal guarantee (`foveate.learning.privacy.GaussianRelease`); None:
        none. It needs `public_statistics`.
    delta
        Of (epsilon, delta); None: a tenth of 1 / training rows.
    public_statistics
        You confirm that class counts and normaliser may be public.
    threads
        Of PyTorch. More than one helps large networks only, and may change the last bits.
    device
        ``cpu`` or ``cuda``. Equal bits are promised on the CPU.
    checkpoint_seconds
        Between checkpoints.
    """

    per_class: int = 10
    iterations: int | None = None
    nets: str | Sequence[str] | None = None
    seed: int = 0
    privacy: bool = True
    init: Literal["noise", "real"] = "noise"
    image: bool | None = None
    quick: bool = False
    lr: float | None = None
    real_batch: int = 128
    selection: Literal["best_val", "last"] = "best_val"
    noise: float | None = None
    delta: float | None = None
    public_statistics: bool = False
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    checkpoint_seconds: float = 2.0

    @property
    def names(self) -> tuple[str, ...]:
        """Networks by name; empty for the default."""
        words = self.nets.split(",") if isinstance(self.nets, str) else self.nets or ()
        return tuple(word.strip() for word in words)

    @property
    def rate(self) -> float:
        """Adam's rate."""
        return self.lr or (0.05 if self.quick else 0.01)

    def check(self) -> None:
        """Raise FoveateError when a value makes no sense."""
        limits: dict[str, tuple[float, float]] = {
            "per_class": (1, 100_000),
            "iterations": (1, 10_000_000),
            "seed": (0, 1 << 31),
            "lr": (1e-9, 10),
            "real_batch": (1, 1 << 20),
            "noise": (1e-3, 1e6),
            "delta": (1e-30, 0.5),
            "threads": (1, 1024),
            "checkpoint_seconds": (0, 86_400),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                option = name.replace("_", "-")
                raise FoveateError(f"--{option} is {value}; expected {low:g} to {high:g}")
        for name, known in (
            ("init", ("noise", "real")),
            ("selection", ("best_val", "last")),
            ("device", ("cpu", "cuda")),
        ):
            if getattr(self, name) not in known:
                raise FoveateError(
                    f"--{name} is {getattr(self, name)!r}; there are: {', '.join(known)}"
                )
        if self.nets is not None and not all(self.names or ("",)):
            raise FoveateError("--nets has an empty name; expected for instance tcn,lstm,vit")
        if self.noise is not None and not self.public_statistics:
            raise FoveateError(
                "--noise protects the class means only; confirm with --public-statistics that "
                "class counts and normaliser may be public"
            )
        if self.noise is not None and self.init == "real":
            raise FoveateError("--noise and --init real exclude each other: copies are no secret")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("--device cuda: PyTorch sees no such device here; use cpu")

    def plan(self, rows: OwnRows) -> Plan:
        """How much is done on rows like these."""
        series, count = rows.kind == "series", len(rows.train[1])
        usual = 1500 if series else 400
        iterations = self.iterations or (usual // 12 if self.quick else usual)
        passes = math.ceil((5_000 if self.quick else 30_000) / count)
        return Plan(
            iterations=iterations,
            inits=1 if self.quick else 3 if series else 2,
            epochs=30 if series else 40,
            eval_lr=5e-4 if series else 1e-3,
            full_epochs=min(30, max(1 if self.quick else 2, passes)),
            val_rows=320 if self.quick else 1280 if series else 640,
            members=640 if self.quick else 1280,
            power_rows=200,
            power_epochs=100,
            left_out=1 if self.quick else 3,
            left_out_iterations=max(1, min(iterations, usual // 15) // (4 if self.quick else 1)),
        )


@dataclass(frozen=True)
class CondenseResult:
    """Where the results lie, and the summary (the content of ``summary.json``)."""

    folder: Path
    summary: dict[str, Any]
    reused: bool = False

    @property
    def file(self) -> Path:
        """The condensed set: the one file that is made to be shared."""
        return self.folder / FILE

    @property
    def condensed(self) -> CondensedSet:
        """The condensed set, read from its file."""
        return CondensedSet.load(self.file)

    def score(self, arm: str) -> float | None:
        """Mean score of an arm over all networks, 0 to 1."""
        found: float | None = next(
            row["mean"] for row in self.summary["arms"] if row["name"] == arm
        )
        return found


def condense(
    data: str | Path | OwnRows,
    out: str | Path | None = None,
    *,
    settings: CondenseSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> CondenseResult:
    """Make a few synthetic rows of many real ones, and measure what they are good for.

    Parameters
    ----------
    data
        A file or folder that `foveate.datasets.series.read_own_rows` reads, or what that function
        or `foveate.datasets.series.own_rows` (of arrays) returned.
    out
        Folder for the results; default ``foveate-out/<name of the data>``.
    settings
        All choices at once; or give fields of `CondenseSettings` as keyword arguments.
    force
        Replace a result that is there, whatever it was made from, and begin anew.
    progress
        Told what is being done.

    Returns
    -------
    CondenseResult
        ``condensed.safetensors``, ``summary.json`` and ``report.html`` in `folder`.

    Raises
    ------
    FoveateError
        The data cannot be used, a class has fewer rows than needed, an option makes no sense, or
        `out` holds something else.
    """
    try:
        settings = dataclasses.replace(settings or CondenseSettings(), **options)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(CondenseSettings))
        raise FoveateError(f"unknown option for condense ({error}); there are: {known}") from None
    settings.check()
    tell = progress or (lambda what, done, total: None)
    if isinstance(data, OwnRows):
        rows, name = data, "rows"
    else:
        where = Path(data)
        tell("reading", 0, 1)
        rows = read_own_rows(where, image=settings.image, seed=settings.seed)
        name = where.resolve().name if where.is_dir() else where.stem
    folder = Path(out) if out is not None else Path("foveate-out") / name
    with torch_threads(settings.threads):
        run = _Run(rows, settings, folder, tell)
        kept = None if force else run.finished()
        if kept is not None:
            return CondenseResult(folder, kept, reused=True)
        run.check_folder(force)
        with made_folder(folder):
            return CondenseResult(folder, run.go(force))


# ------------------------------------------------------------------------------ small things


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean, or None where one is missing: a diverged training is not to be hidden."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


# ------------------------------------------------------------------------------ the run


class _Run:
    """One condensation, its trials and its page."""

    def __init__(
        self, rows: OwnRows, settings: CondenseSettings, folder: Path, progress: Progress
    ) -> None:
        self.rows, self.settings, self.folder, self.progress = rows, settings, folder, progress
        self.started = time.perf_counter()
        self.notes = list(rows.notes)
        self.plan = settings.plan(rows)
        self.check_rows()
        norm: Literal["batch", "group"] = "batch" if settings.noise is None else "group"
        self.nets = choose_nets(settings.names, rows, norm)
        self.notes += self.nets.notes
        if settings.noise is not None and settings.delta is None:
            settings = dataclasses.replace(settings, delta=0.1 / len(rows.train[1]))
            self.settings = settings
        made_by = (
            *(settings.per_class, self.plan.iterations, tuple(self.nets.pool), settings.seed),
            *(settings.init, settings.rate, settings.real_batch, settings.noise, settings.delta),
            settings.device,
        )
        self.key = _hash(foveate.__version__, rows.digest(), made_by)
        self.mark = _hash(
            self.key, self.plan, tuple(self.nets.unseen), settings.selection, settings.privacy,
            rows.source, torch.__version__,
        )  # fmt: skip
        self.work = folder / _UNFINISHED
        self.checkpoint = self.work / f"condensing-{self.key[:12]}.safetensors"
        self.card = self.work / f"condensed-{self.key[:12]}.json"
        self.ledger = self.work / f"trials-{self.mark[:12]}.json"
        self.pieces: dict[str, Any] = {}
        self.done, self.units = 0, self.count_units()

    def check_rows(self) -> None:
        """Every class must have the rows that stand beside the synthetic ones."""
        counts = self.rows.counts()
        for label, count in enumerate(counts["train"]):
            if count < self.settings.per_class:
                held = counts["val"][label] + counts["test"][label]
                raise FoveateError(
                    f"class {self.rows.classes[label]!r} has {count} training rows (and {held} "
                    f"held out), fewer than --per-class {self.settings.per_class}; give more rows "
                    "or a smaller --per-class"
                )
        rarest = min(range(len(self.rows.classes)), key=lambda c: counts["test"][c])
        if counts["test"][rarest] < 20:
            self.notes.append(
                f"class {self.rows.classes[rarest]!r} has only {counts['test'][rarest]} test rows, "
                "so every score is rough"
            )

    def count_units(self) -> int:
        few = len(self.nets.all) * self.plan.inits * (len(ARMS) - 1)
        units = self.plan.iterations + few * _COST["few"] + len(self.nets.all) * _COST["all"]
        if self.settings.privacy:
            units += _COST["power"] * self.plan.inits + _COST["proximity"] + self.left_out_units()
        return units

    def left_out_units(self) -> int:
        return (2 + self.plan.left_out) * self.plan.left_out_iterations

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run of exactly this, if its files are there."""
        summary = read_json(self.folder / "summary.json")
        if summary.get("fingerprint") != self.mark or self.set_there() != "this":
            return None
        return summary if (self.folder / "report.html").is_file() else None

    def set_there(self) -> Literal["none", "foreign", "other", "this"]:
        """What the set in the folder is.

        What it was made from is noted beside it and never in it: a hash of the rows would tell
        whoever knows all rows but one whether he guesses that one right.
        """
        file = self.folder / FILE
        if not file.exists():
            return "none"
        try:
            maker = str(CondensedSet.load(file).meta.get("made_by", ""))
        except FoveateError:
            maker = ""
        if not maker.startswith(_MAKER):
            return "foreign"
        summary = read_json(self.folder / "summary.json")
        known = {read_json(self.card).get("sha256")}
        if summary.get("made_from") == self.key:
            known.add(summary["set"]["sha256"])
        return "this" if sha256_of(file) in known else "other"

    def check_folder(self, force: bool) -> None:
        """Refuse to overwrite what is not ours, and hours of work that are."""
        there = self.set_there()
        if there == "foreign":
            raise FoveateError(
                f"{self.folder / FILE} would be overwritten and is not a result of foveate "
                "condense; choose another folder with --out"
            )
        # A run that was stopped just after writing its set still has its checkpoint.
        if there == "other" and not force and not self.checkpoint.is_file():
            raise FoveateError(
                f"{self.folder / FILE} was made from other data or with other settings; choose "
                "another folder with --out, or replace it with --force"
            )
        ours = read_json(self.folder / "summary.json").get("command") == "condense"
        for path in (self.folder / "report.html", self.folder / "summary.json"):
            if path.exists() and not ours:
                raise FoveateError(
                    f"{path} would be overwritten and is not a result of foveate condense; choose "
                    "another folder with --out"
                )

    # -- the way through

    def tell(self, what: str, more: int = 0) -> None:
        self.progress(what, min(self.done + more, self.units), self.units)

    def go(self, force: bool) -> dict[str, Any]:
        if force:
            for path in (self.checkpoint, self.card, self.ledger, self.folder / FILE):
                path.unlink(missing_ok=True)
        self.tell("normalising")
        one = self.settings
        trials = Trials(
            self.rows, self.nets, self.plan, one.per_class, one.seed, one.selection, one.device
        )
        method = self.method()
        few = self.condensed(method, trials)
        self.done = self.plan.iterations
        kept = read_json(self.ledger)
        self.pieces = kept if kept.get("mark") == self.mark else {"mark": self.mark}
        arms = self.arms(trials, few)
        privacy = self.privacy(trials, few, method) if one.privacy else None
        summary: dict[str, Any] = json.loads(
            json.dumps(self.summary(trials, few, arms, privacy), allow_nan=False)
        )
        write_json(self.folder / "summary.json", {**summary, "fingerprint": None})
        from foveate.report.condense import write_condense_page

        write_condense_page(self.folder / "report.html", summary)
        write_json(self.folder / "summary.json", summary)
        self.clear()
        return summary

    def clear(self) -> None:
        """Remove what was needed to go on; work on other settings stays."""
        for path in (self.checkpoint, self.card, self.ledger, *self.work.glob(".partial-*")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.work.rmdir()

    def method(self) -> DistributionMatching:
        one, release = self.settings, None
        if one.noise is not None and one.delta is not None:
            release = GaussianRelease(one.noise, one.delta, one.public_statistics)
        # The embedding carries far more than ten scores; noise needs the scores' bound.
        by_embedding = self.rows.kind == "pictures" and release is None
        return DistributionMatching(
            list(self.nets.pool.values()),
            one.per_class,
            self.rows.shape,
            lr=one.rate,
            iterations=self.plan.iterations,
            real_batch=one.real_batch,
            match="embedding" if by_embedding else "output",
            init=one.init,
            seed=one.seed if release is None else None,  # noise is as secret as its seed
            release=release,
            device=one.device,
        )

    def condensed(self, method: DistributionMatching, trials: Trials) -> CondensedSet:
        """The set that is there, or condensed now, from the checkpoint on."""
        file = self.folder / FILE
        if self.set_there() == "this":
            return CondensedSet.load(file)
        meta = {
            "made_by": f"{_MAKER} {foveate.__version__}",
            "data": self.rows.source,
            "kind": self.rows.kind,
            "class_names": list(self.rows.classes),
            "features": list(self.rows.features),
            "nets": list(self.nets.pool),
            "normalised": "(x - mean) / (std + eps) per feature over the training rows, clipped",
            "what": "synthetic rows; none of them is a person or a record",
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page says what init='real' means
            few = method.fit(
                *trials.train,
                progress=lambda what, done, total: self.tell(f"iteration {done:,}", done),
                checkpoint=self.checkpoint,
                normalizer=trials.normalizer,
                meta=meta,
                checkpoint_every=self.settings.checkpoint_seconds,
            )
        few.save(file)
        write_json(self.card, {"sha256": sha256_of(file)})
        return few

    def piece(self, name: str, cost: int, what: str, measure: Callable[[], Any]) -> Any:
        """One measurement, from the ledger where it is there already."""
        self.tell(what)
        if name not in self.pieces:
            self.pieces[name] = json.loads(json.dumps(measure(), allow_nan=False))
            write_json(self.ledger, self.pieces)
        self.done += cost
        return self.pieces[name]

    # -- what is measured

    @property
    def metric(self) -> Literal["auc", "accuracy"]:
        return "auc" if len(self.rows.classes) == 2 else "accuracy"

    def arms(self, trials: Trials, few: CondensedSet) -> list[dict[str, Any]]:
        found = []
        attacked = self.settings.privacy
        for arm, what in ARMS.items():
            nets: dict[str, list[Any]] = {}
            for init in range(trials.inits(arm)):
                for net in self.nets.all:
                    trial = self.piece(
                        f"{arm}/{net}/{init}",
                        _COST["all" if arm == "all" else "few"],
                        f"training {net} on {what}",
                        lambda arm=arm, net=net, init=init: trials.trial(  # type: ignore[misc]
                            arm, net, few, init, attacked
                        ),
                    )
                    nets.setdefault(net, []).append(trial)
            scores = {net: [t[self.metric] for t in made] for net, made in nets.items()}
            rows = len(trials.rows_of(arm, few, 0)[0])
            found.append(
                {
                    "name": arm,
                    "what": what,
                    "rows": rows,
                    "bytes": 4 * rows * few.x[0].numel(),
                    "nets": {
                        net: {
                            "mean": _mean(values),
                            "std": None if None in values else statistics.pstdev(values),
                            "scores": values,
                            "trials": nets[net],
                        }
                        for net, values in scores.items()
                    },
                    "mean": _mean([_mean(values) for values in scores.values()]),
                }
            )
        return found

    def privacy(
        self, trials: Trials, few: CondensedSet, method: DistributionMatching
    ) -> dict[str, Any]:
        proximity = self.piece(
            "proximity", _COST["proximity"], "nearest real rows", lambda: trials.proximity(few)
        )
        power = [
            self.piece(
                f"power/{init}", _COST["power"], "attack where it must succeed",
                lambda init=init: trials.power(init),  # type: ignore[misc]
            )
            for init in range(self.plan.inits)
        ]  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            less = self.piece(
                "one row less", self.left_out_units(), "condensing again with one row less",
                lambda: trials.one_row_less(method, self.tell),
            )  # fmt: skip
        attacks = {
            arm: mean_attack(
                [trial["attack"] for name, trial in self.pieces.items()
                 if name.startswith(f"{arm}/")]
            )
            for arm in ("condensed", "random", "all")
        }  # fmt: skip
        found: dict[str, Any] = {
            "proximity": proximity,
            "attacks": {**attacks, "power": mean_attack(power)},
            "one_row_less": less,
            "formal": few.meta["privacy"],
            "attacker": trials.attacker,
        }
        return {**found, "signs": privacy_signs(found), "lines": privacy_lines(found)}

    # -- what is said about it

    def summary(
        self,
        trials: Trials,
        few: CondensedSet,
        arms: list[dict[str, Any]],
        privacy: dict[str, Any] | None,
    ) -> dict[str, Any]:
        rows, one = self.rows, self.settings
        file = self.folder / FILE
        if one.init == "real":
            self.notes.append("the synthetic rows began as copies of real rows: not for sharing")
        settings = dataclasses.asdict(one)
        settings |= {
            "nets": list(self.nets.pool),
            "iterations": self.plan.iterations,
            "lr": one.rate,
        }
        return {
            "foveate": foveate.__version__,
            "command": "condense",
            "data": {
                "source": rows.source,
                "kind": rows.kind,
                "shape": list(rows.shape),
                "classes": list(rows.classes),
                "features": list(rows.features),
                "counts": rows.counts(),
            },
            "settings": settings,
            "plan": dataclasses.asdict(self.plan),
            "set": {
                "file": FILE,
                "rows": len(few),
                "bytes": file.stat().st_size,
                "sha256": sha256_of(file),
                "real_bytes": 4 * trials.train[0].numel(),
            },
            "metric": self.metric,
            "nets": [{"name": name, "pool": name in self.nets.pool} for name in self.nets.all],
            "validated_on": len(trials.val[1]) if one.selection == "best_val" else 0,
            "arms": arms,
            "privacy": privacy,
            "curves": _curves(rows, few) if rows.kind == "series" else [],
            "pictures": _pictures(rows, few) if rows.kind == "pictures" else [],
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "notes": self.notes,
            "seconds": round(time.perf_counter() - self.started, 1),
            "made_from": self.key,
            "fingerprint": self.mark,
        }


# ------------------------------------------------------------------------------ to look at


def _curves(rows: OwnRows, few: CondensedSet) -> list[dict[str, Any]]:
    """Real class means and synthetic rows of the features in which the classes differ most."""
    x, y = rows.train
    labels = _drawn_classes(rows)
    steps = np.unique(np.linspace(0, x.shape[1] - 1, min(_POINTS, x.shape[1])).round().astype(int))
    means = np.stack([x[y == c].mean(0, dtype=np.float64) for c in labels])
    deviations = np.stack([x[y == c].std(0, dtype=np.float64) for c in labels])
    spread = x.std((0, 1), dtype=np.float64) + 1e-12
    apart = np.ptp(means, axis=0).max(0) / spread
    # What never changes within a row (age, sex) has no course to draw, if there is anything else.
    still = np.ptp(means, axis=1).max(0) <= 1e-6 * spread
    order = np.lexsort((-apart, still))
    moving = [int(k) for k in order if not still[k]] or [int(k) for k in order]
    synthetic = few.denormalize().double().numpy()

    def listed(values: np.ndarray) -> list[float]:
        return [float(f"{value:.5g}") for value in values[steps]]

    return [
        {
            "feature": rows.features[k],
            "steps": steps.tolist(),
            "classes": [
                {
                    "name": rows.classes[c],
                    "mean": listed(means[i, :, k]),
                    "std": listed(deviations[i, :, k]),
                    "synthetic": [
                        listed(row[:, k]) for row in synthetic[few.y.numpy() == c][:_SHOWN]
                    ],
                }
                for i, c in enumerate(labels)
            ],
        }
        for k in moving[:_CURVES]
    ]


def _drawn_classes(rows: OwnRows) -> list[int]:
    """The largest classes, in order of their labels."""
    counts = rows.counts()["train"]
    return sorted(sorted(range(len(counts)), key=lambda c: -counts[c])[:_CLASSES])


def _pictures(rows: OwnRows, few: CondensedSet) -> list[dict[str, Any]]:
    """Class means of real pictures beside synthetic ones, as PNG in base64."""
    x, y = rows.train
    synthetic = few.denormalize().numpy()
    return [
        {
            "name": rows.classes[c],
            "mean": _png(x[y == c].mean(0)),
            "synthetic": [_png(row) for row in synthetic[few.y.numpy() == c][:_SHOWN]],
        }
        for c in range(min(len(rows.classes), 20))
    ]


def _png(picture: np.ndarray) -> str:
    """``(C, H, W)`` from 0 to 1, as PNG in base64; of other than three channels the first."""
    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(
        np.ascontiguousarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else pixels[0]
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
