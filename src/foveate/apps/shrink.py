"""``foveate shrink``: a float network becomes files of few bits, and a page that compares them.

Composition only: network and pictures -> a student per width, trained -> compiled -> checked
against PyTorch picture by picture -> timed beside PyTorch and ONNX Runtime in one run -> page.
Every width is written whole as soon as it is done, with a card that says what it was made from: an
interrupted or extended run goes on from there. ``summary.json`` comes last and marks a finished
run.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import importlib
import json
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import foveate
from foveate.apps.shrink_contest import (
    Contest,
    run_packed,
    share_right,
    verdict,
)
from foveate.apps.shrink_training import (
    METHODS,
    Augment,
    Course,
    Feed,
    Method,
    Student,
    Width,
    make_student,
    train,
)
from foveate.apps.torch_threads import torch_threads
from foveate.datasets.own_pictures import OwnPictures, read_own_pictures
from foveate.engine import NodeTime, PackedModel, compile
from foveate.engine.energy import ENERGY_FORMULA
from foveate.engine.onnx_runtime import onnx_runtime_version
from foveate.errors import FoveateError
from foveate.files import (
    made_folder,
    read_json,
    sha256_of,
    write_json,
    write_whole,
)
from foveate.nn.network_source import NamedNetwork, load_network, state_digest
from foveate.quantization.op_count import OpCount, count_ops
from foveate.quantization.surgery import DEFAULT_KEEP

__all__ = ["ShrinkResult", "ShrinkSettings", "parse_widths", "shrink"]

CHECKED = 1000  # pictures whose predictions are compared with PyTorch's
_BATCH = 250
_UNITS = 100  # of the progress bar, for every width
_PROFILED = 60  # repetitions, of which the least counts

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""


@dataclass(frozen=True)
class ShrinkSettings:
    """What a person can choose.

    Attributes
    ----------
    bits
        Widths to make, as `parse_widths` reads them; None: 8, 4, 2 and 1 bits, or 1 bit where the
        method knows no other.
    method
        ``qat``, ``mbn``, ``real-to-binary`` or ``post-training``, see
        `foveate.apps.shrink_training`.
    epochs
        Passes over the training pictures for every width.
    keep
        Layers that stay float: ``first``, ``last``, ``downsample``, ``depthwise``, and patterns of
        module paths.
    mean, std
        What the network's inputs were normalised by, per channel, pixels being 0 to 1. None: what
        a checkpoint says, else 0 and 1.
    size
        Side in pixels that the pictures of class folders are brought to.
    augment
        Variation of training pictures: ``none``, ``shift``, or ``mirror`` (shift as well).
    batch, lr, seed
        Of the training; `lr` None: 1e-3 for 1 and 2 bits, 3e-4 for more.
    threads
        Threads to train with, and the second column of times; None: all cores.
    tolerance
        Points of accuracy that the advised file may lose.
    device
        ``auto``, ``cpu``, ``cuda``: where to train.
    rounds
        Turns of every contender when times are taken.
    """

    bits: str | Sequence[int | str | tuple[int, int]] | None = None
    method: Method = "qat"
    epochs: int = 5
    keep: tuple[str, ...] = DEFAULT_KEEP
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    augment: Augment = "shift"
    batch: int = 64
    lr: float | None = None
    seed: int = 0
    threads: int | None = None
    tolerance: float = 3.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rounds: int = 40

    @property
    def widths(self) -> tuple[Width, ...]:
        """Widths to make, from wide to narrow."""
        if self.bits is None:
            return parse_widths("1" if self.method == "real-to-binary" else "8,4,2,1")
        return parse_widths(self.bits)

    def check(self) -> None:
        """Raise FoveateError when a value makes no sense."""
        if self.method not in METHODS:
            raise FoveateError(f"unknown method {self.method!r}; there are: {', '.join(METHODS)}")
        if self.augment not in ("none", "shift", "mirror"):
            raise FoveateError(
                f"unknown variation {self.augment!r}; there are: none, shift, mirror"
            )
        limits: dict[str, tuple[float, float]] = {
            "epochs": (0, 10_000),
            "batch": (2, 1 << 16),
            "tolerance": (0, 100),
            "rounds": (1, 10_000),
            "size": (1, 1 << 14),
            "threads": (1, 1024),
            "lr": (1e-9, 10),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise FoveateError(f"--{name} is {value}; expected {low:g} to {high:g}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and not all(map(math.isfinite, values)):
                raise FoveateError(f"--{name} is {values}; expected one number per channel")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise FoveateError(
                f"--std is {self.std}; expected numbers above 0, pixels being 0 to 1"
            )
        if self.method == "real-to-binary" and self.widths != (Width(1, 1),):
            raise FoveateError("--method real-to-binary makes 1-bit networks; use --bits 1")


def parse_widths(bits: str | Sequence[int | str | tuple[int, int]]) -> tuple[Width, ...]:
    """Widths from ``"8,4,1x2"``: bits of weights and activations, or ``weights x activations``.

    Also a sequence of numbers, such words, or pairs. Without doubles, from wide to narrow.

    Raises
    ------
    FoveateError
        A word that is no width, or bits outside 1..8.
    """
    words = bits.split(",") if isinstance(bits, str) else list(bits)
    found = []
    for word in words:
        pair: tuple[int, ...] | None = None
        if isinstance(word, tuple) and len(word) == 2:
            pair = word
        elif match := re.fullmatch(r"\s*w?([0-9])(?:[xa]([0-9]))?\s*", str(word)):
            pair = (int(match[1]), int(match[2] or match[1]))
        if pair is None or not all(1 <= number <= 8 for number in pair):
            raise FoveateError(
                f"--bits has {word!r}; expected numbers from 1 to 8 such as 8,4,2,1, or weights x "
                "activations such as 1x2"
            )
        found.append(Width(*pair))
    if not found:
        raise FoveateError("--bits is empty; expected for instance 8,4,2,1")
    return tuple(sorted(set(found), key=lambda w: (w[0] * w[1], w), reverse=True))


@dataclass(frozen=True)
class ShrinkResult:
    """Where the results lie, and the summary (the content of ``summary.json``)."""

    folder: Path
    summary: dict[str, Any]
    reused: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: one dictionary per contender."""
        return list(self.summary["rows"])

    @property
    def files(self) -> dict[str, Path]:
        """Packed file of every width, ``{"w2a2": ...}``."""
        return {row["name"]: self.folder / row["file"] for row in self.rows if row["file"]}

    @property
    def best(self) -> Path | None:
        """The advised file; None when every width loses more than the tolerance."""
        name = self.summary["verdict"]["file"]
        return None if name is None else self.folder / name


def shrink(
    network: str | Path | nn.Module,
    out: str | Path | None = None,
    *,
    data: str | Path | OwnPictures,
    weights: str | Path | None = None,
    settings: ShrinkSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ShrinkResult:
    """Make a trained network small, and measure what that costs and gains.

    Parameters
    ----------
    network
        ``module:factory``, a checkpoint of foveate, or the trained module itself. It takes
        pictures ``(N, C, H, W)`` and gives one number per class.
    out
        Folder for the results; default ``foveate-out/<name of the network>``.
    data
        Labelled pictures: a folder, an ``.npz`` file
        (`foveate.datasets.own_pictures.read_own_pictures`), or what that function returned.
    weights
        File with the weights of ``module:factory``.
    settings
        All choices at once; or give fields of `ShrinkSettings` as keyword arguments.
    force
        Make every width anew.
    progress
        Told what is being done.

    Returns
    -------
    ShrinkResult
        ``<name>-w<k>a<m>.fvt`` for every width with a card (``.json``) and PyTorch weights
        (``.safetensors``) beside it, ``report.html`` and ``summary.json`` in `folder`.

    Raises
    ------
    FoveateError
        The network, its weights or the pictures cannot be used, an operation has no counterpart in
        the engine (with the module's path), an option makes no sense, or the folder cannot be
        written.
    """
    try:
        settings = dataclasses.replace(settings or ShrinkSettings(), **options)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(ShrinkSettings))
        raise FoveateError(f"unknown option for shrink ({error}); there are: {known}") from None
    settings.check()
    if isinstance(network, nn.Module):
        if weights is not None:
            raise FoveateError("weights belong to module:factory; a module brings its own")
        name = type(network).__name__.lower()
        named = NamedNetwork(name, type(network).__name__, "as given", network)
    else:
        named = load_network(network, weights)
    if not isinstance(data, OwnPictures):
        data = read_own_pictures(
            data, channels=_first_channels(named.module), size=settings.size, seed=settings.seed
        )
    folder = Path(out) if out is not None else Path("foveate-out") / named.name
    with torch_threads(settings.threads or _cores()):
        run = _Run(named, data, settings, folder, progress or (lambda what, done, total: None))
        kept = None if force else run.finished()
        if kept is not None:
            return ShrinkResult(folder, kept, reused=True)
        run.check_folder()
        with made_folder(folder):
            return ShrinkResult(folder, run.go(force))


# ------------------------------------------------------------------------------ small things


def _first_channels(network: nn.Module) -> int | None:
    """Channels that the first convolution takes."""
    convs = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convs, None)
    return None if first is None else first.in_channels


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name, as far as the system says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """Instruction set that the engine takes here."""
    try:
        return str(importlib.import_module("foveate._native").isa())
    except (ImportError, AttributeError):
        return "none: the native engine is not built"


def _hash(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


# ------------------------------------------------------------------------------ the run


class _Run:
    """One network on one data set."""

    def __init__(
        self,
        named: NamedNetwork,
        pictures: OwnPictures,
        settings: ShrinkSettings,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.named, self.pictures, self.settings = named, pictures, settings
        self.folder, self.progress = folder, progress
        self.started = time.perf_counter()
        self.threads = settings.threads or _cores()
        self.network = copy.deepcopy(named.module).cpu().float().eval()
        self.notes: list[str] = list(pictures.notes)
        self.feed = Feed(*self.normalisation(), device=self.device())
        self.on_cpu = dataclasses.replace(self.feed, device="cpu")
        self.course = Course(
            pictures,
            self.feed,
            settings.epochs,
            settings.batch,
            settings.lr,
            settings.seed,
            settings.augment,
        )
        self.widths = settings.widths
        self.done, self.units = 0, 2 + _UNITS * len(self.widths) + 2
        self.keys = self.row_keys()

    # -- what it is made from

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        channels = self.pictures.shape[0]
        mean, std = self.settings.mean or self.named.mean, self.settings.std or self.named.std
        if mean is None and std is None:
            self.notes.append(
                "nobody said how inputs are normalised, so pixels were given as 0 to 1; a network "
                "trained otherwise needs --mean and --std"
            )
        pair = []
        for name, values in (("mean", mean or (0.0,)), ("std", std or (1.0,))):
            if len(values) not in (1, channels):
                raise FoveateError(
                    f"--{name} has {len(values)} numbers and the pictures {channels} channel(s)"
                )
            pair.append(values * (channels // len(values)))
        return pair[0], pair[1]

    def device(self) -> str:
        """Where to train."""
        if self.settings.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.settings.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("--device cuda: PyTorch sees no such device here; use cpu")
        return self.settings.device

    def row_keys(self) -> dict[Width, str]:
        """What stands for all that the result of a width depends on."""
        one, chained = self.settings, ""
        course = (
            foveate.__version__,
            state_digest(self.network),
            str(self.network),
            self.pictures.digest(),
            self.feed.mean,
            self.feed.std,
            *(one.method, one.epochs, one.keep, one.augment, one.batch, one.lr, one.seed),
        )
        keys = {}
        for width in self.widths:
            keys[width] = _hash(course, width, chained)
            if one.method == "mbn":
                chained = keys[width]  # each width starts from the one before
        return keys

    def mark(self) -> str:
        """What stands for a whole finished run."""
        return _hash(
            list(self.keys.values()),
            self.threads,
            self.settings.tolerance,
            self.settings.rounds,
            _processor(),
            torch.__version__,
            onnx_runtime_version(),
        )

    def path(self, width: Width, ending: str) -> Path:
        """``<name>-w2a2.fvt`` and its companions."""
        return self.folder / f"{self.named.name}-{width.name}.{ending}"

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run of exactly this, if its files are there."""
        summary = read_json(self.folder / "summary.json")
        if summary.get("fingerprint") != self.mark():
            return None
        there = (self.folder / "report.html").is_file() and all(map(self.whole, self.widths))
        return summary if there else None

    def whole(self, width: Width) -> bool:
        """Whether the files of a width are there, made from the same, and as they were written."""
        card, file = read_json(self.path(width, "json")), self.path(width, "fvt")
        there = file.is_file() and self.path(width, "safetensors").is_file()
        made = there and card.get("key") == self.keys[width]
        return made and sha256_of(file) == card.get("sha256")

    def check_folder(self) -> None:
        """Refuse to overwrite what this command did not write."""
        theirs = [self.folder / name for name in ("report.html", "summary.json")]
        if read_json(self.folder / "summary.json").get("command") == "shrink":
            theirs = []
        for width in self.widths:
            if "key" not in read_json(self.path(width, "json")):
                theirs += [self.path(width, ending) for ending in ("fvt", "json", "safetensors")]
        for path in theirs:
            if path.exists():
                raise FoveateError(
                    f"{path} would be overwritten and is not a result of foveate shrink; choose "
                    "another folder with --out"
                )

    # -- the way through

    def tell(self, what: str, share: float = 0.0) -> None:
        self.progress(what, self.done + round(share * _UNITS), self.units)

    def go(self, force: bool) -> dict[str, Any]:
        self.tell("float network")
        packed_float = self.check_network()
        accuracy = share_right(
            (self.float_answer(x).numpy() for x in self.held_out()), self.pictures.held_out_labels
        )
        chance = 1 / max(2, len(self.pictures.classes))
        if accuracy < 1.5 * chance:
            self.notes.append(
                f"the float network is right in {accuracy:.1%} of the pictures, hardly more than "
                "by chance: do mean, std and the order of the classes fit its weights?"
            )
        self.done += 2
        cards: dict[Width, dict[str, Any]] = {}
        packed: dict[Width, PackedModel] = {}
        before: Path | None = None
        for width in self.widths:
            kept = None if force else self.kept(width)
            card, packed[width] = kept or self.make(width, before)
            cards[width] = card
            if self.settings.method == "mbn":
                before = self.path(width, "safetensors")
            self.done += _UNITS
        self.tell("ONNX Runtime")
        contest = Contest(
            self.network,
            self.pictures,
            self.on_cpu,
            self.course.calibration(),
            self.threads,
            self.settings.rounds,
        )
        with tempfile.TemporaryDirectory(prefix="foveate-shrink-") as scratch:
            peers = contest.peers(Path(scratch), self.notes)
            self.done += 1
            self.tell("taking turns")
            times = contest.times(packed, peers)
            rows = contest.rows(accuracy, packed_float, cards, packed, peers, times)
        summary: dict[str, Any] = json.loads(
            json.dumps(self.summary(rows, cards, packed), allow_nan=False)
        )
        write_json(self.folder / "summary.json", {**summary, "fingerprint": None})
        self.page(summary)
        write_json(self.folder / "summary.json", summary)
        return summary

    def held_out(self) -> Iterator[Tensor]:
        return self.on_cpu.batches(self.pictures.held_out, _BATCH)

    def float_answer(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            answer: Tensor = self.network(x)
            return answer

    def check_network(self) -> PackedModel:
        """Try the network on a picture, and see that the engine has all it does."""
        shape, count = self.pictures.shape, len(self.pictures.classes)
        example = self.on_cpu(self.pictures.train[:2])
        size = "x".join(map(str, shape))
        try:
            answer = self.float_answer(example)
        except Exception as error:  # whatever a user's forward raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FoveateError(
                f"{self.named.name} does not run on pictures of {size} (channels, height, width): "
                f"{reason}; give pictures of its size, or bring them to it with --size"
            ) from error
        if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2:
            said = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise FoveateError(
                f"{self.named.name} gives {said} for two pictures; expected (2, classes)"
            )
        if not bool(torch.isfinite(answer).all()):
            raise FoveateError(
                f"{self.named.name} gives numbers that are not finite: its weights are damaged, or "
                "mean and std do not fit"
            )
        outputs = answer.shape[1]
        if outputs < count or (self.pictures.named and outputs != count):
            raise FoveateError(
                f"{self.named.name} gives {outputs} numbers and {self.pictures.source} has {count} "
                "classes; they must agree"
            )
        return compile(self.network, example[:1])

    # -- one width

    def kept(self, width: Width) -> tuple[dict[str, Any], PackedModel] | None:
        """A width that was finished before, unless something about it has changed."""
        if not self.whole(width):
            return None
        return read_json(self.path(width, "json")), PackedModel.load(self.path(width, "fvt"))

    def make(self, width: Width, before: Path | None) -> tuple[dict[str, Any], PackedModel]:
        """Train, compile, check and write one width."""
        started = time.perf_counter()
        self.tell(f"{width.name}: calibration")
        method = self.settings.method
        start = None if before is None else safetensors.torch.load_file(before)
        student = make_student(self.network, method, width, self.settings.keep, self.course, start)
        example = self.on_cpu(self.pictures.train[:1])
        compile(student.model, example)  # before an hour of training, not after it
        student = train(
            student, self.network, method, width, self.course,
            lambda what, share: self.tell(f"{width.name}: {what}", 0.95 * share),
        )  # fmt: skip
        self.tell(f"{width.name}: compiling", 0.96)
        model = student.model.cpu().eval()
        packed = compile(model, example)
        self.tell(f"{width.name}: checking", 0.98)
        pictures, same, apart = self.compare(model, packed)
        answers = (run_packed(packed, x, self.threads) for x in self.held_out())
        accuracy = share_right(answers, self.pictures.held_out_labels)
        file = self.path(width, "fvt")
        packed.save(file)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        with write_whole(self.path(width, "safetensors")) as temporary:
            safetensors.torch.save_file(state, temporary)
        card = {
            "key": self.keys[width],
            "file": file.name,
            "sha256": sha256_of(file),
            "bits": list(width),
            "method": method,
            "accuracy": accuracy,
            "checked": {"pictures": pictures, "same": same, "largest_difference": apart},
            "bytes": file.stat().st_size,
            "packed_bytes": _packed_bytes(count_ops(model, self.pictures.shape)),
            "layers": _layers(student),
            "notes": list(student.notes),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_json(self.path(width, "json"), card)
        return card, packed

    def compare(self, model: nn.Module, packed: PackedModel) -> tuple[int, int, float]:
        """Pictures compared, how many have the same prediction, and the largest difference."""
        count, same, apart = 0, 0, 0.0
        for x in self.on_cpu.batches(self.pictures.held_out[:CHECKED], _BATCH):
            with torch.no_grad():
                wanted = model(x).numpy()
            answer = run_packed(packed, x, self.threads)
            count += len(x)
            same += int((answer.argmax(1) == wanted.argmax(1)).sum())
            apart = max(apart, float(np.abs(answer - wanted).max()))
        return count, same, apart

    # -- what is said about it

    def summary(
        self,
        rows: list[dict[str, Any]],
        cards: Mapping[Width, Mapping[str, Any]],
        packed: Mapping[Width, PackedModel],
    ) -> dict[str, Any]:
        picture = self.on_cpu(self.pictures.held_out[:1]).numpy()
        cost = count_ops(self.network, self.pictures.shape)
        for width, card in cards.items():
            self.notes += [f"{width.name}: {note}" for note in card["notes"]]
            checked = card["checked"]
            if checked["same"] != checked["pictures"]:
                self.notes.append(
                    f"{width.name}: the engine and PyTorch differ in "
                    f"{checked['pictures'] - checked['same']} of {checked['pictures']} predictions"
                )
        return {
            "foveate": foveate.__version__,
            "command": "shrink",
            "network": {
                "name": self.named.name,
                "source": self.named.source,
                "weights": self.named.weights,
                "input": list(self.pictures.shape),
                "classes": len(self.pictures.classes),
                "parameters": sum(p.numel() for p in self.network.parameters()),
                "macs": sum(layer.macs for layer in cost.layers),
                "mean": list(self.feed.mean),
                "std": list(self.feed.std),
            },
            "data": {
                "source": self.pictures.source,
                "train": len(self.pictures.train),
                "held_out": len(self.pictures.held_out),
            },
            "machine": {
                "processor": _processor(),
                "instructions": _instructions(),
                "threads": self.threads,
                "torch": torch.__version__,
                "onnxruntime": onnx_runtime_version(),
                "trained_on": self.feed.device,
            },
            "settings": {
                **dataclasses.asdict(self.settings),
                "bits": [width.name for width in self.widths],
            },
            "rows": rows,
            "layers": {width.name: card["layers"] for width, card in cards.items()},
            "profiles": {
                width.name: [_node(node) for node in model.profile(picture, 1, _PROFILED)]
                for width, model in packed.items()
            },
            "verdict": verdict(rows, self.settings.tolerance),
            "energy": ENERGY_FORMULA,
            "notes": self.notes,
            "seconds": round(time.perf_counter() - self.started, 1),
            "fingerprint": self.mark(),
        }

    def page(self, summary: Mapping[str, Any]) -> None:
        from foveate.report.shrink import write_shrink_page

        write_shrink_page(self.folder / "report.html", summary)


def _packed_bytes(cost: OpCount) -> int:
    """What weights and scales take at least: their bits, and 32 for every real number."""
    return math.ceil(cost.size_bits / 8)


def _layers(student: Student) -> list[dict[str, Any]]:
    return [
        {
            "path": change.path,
            "was": change.before,
            "now": change.after,
            "bits": [change.weights, change.activations],
            "note": change.note,
        }
        for change in student.report.changes
    ]


def _node(node: NodeTime) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "path": node.path,
        "us": round(1e6 * node.seconds, 3),
        "macs": node.macs,
        "bytes": node.bytes,
    }
