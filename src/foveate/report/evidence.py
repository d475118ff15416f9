"""Evidence: what was claimed, what was measured here, and what follows.

A recipe reruns a published claim side by side with its ablation: *arms* x *seeds*, the raw
metrics of each, and a verdict that the rule of the method's specification decides, never a
person. One JSON file per recipe lies in ``evidence/``; the tables of the documentation and of
``foveate evidence`` are made from those files.

Three verdicts exist: ``reproduced``, ``not reproduced``, and ``inconclusive`` (fewer than three
seeds, or arms missing). A claim that fails stays in the table as failed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from foveate.errors import FoveateError
from foveate.files import data_dir, write_whole

__all__ = [
    "Claim",
    "Evidence",
    "Finding",
    "Ledger",
    "Result",
    "Verdict",
    "evidence_table",
    "markdown_table",
    "mean",
    "paired_verdict",
    "read_all",
]

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]
Certainty = Literal["P", "R", "M", "D"]
Metrics = dict[str, float]
Items = dict[str, list[float]]

_VERDICTS = ("reproduced", "not reproduced", "inconclusive")
_MIN_SEEDS = 3


@dataclass(frozen=True)
class Claim:
    """What a paper (or its specification) says will happen.

    Attributes
    ----------
    text
        The claim in one sentence.
    metric, direction
        Key of the deciding metric and whether ``lower`` or ``higher`` is better.
    method, ablation
        Names of the two arms that are compared.
    rule
        The specification's "reproduced if", in words.
    published, certainty
        The published figure with its conditions, and how sure it is: P published or official
        code, R secondary source, M remembered, D decided by us (no published figure).
    """

    text: str
    metric: str
    direction: Literal["lower", "higher"]
    method: str
    ablation: str
    rule: str
    published: str | None = None
    certainty: Certainty = "D"


@dataclass(frozen=True)
class Result:
    """The raw metrics of one arm under one seed, and where kept the value of every test item."""

    arm: str
    seed: int
    metrics: Metrics
    seconds: float = math.nan
    items: Items = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A secondary question with its own verdict."""

    text: str
    verdict: Verdict


def mean(results: Iterable[Result], arm: str, metric: str) -> float:
    """Mean of a metric over the seeds of an arm; NaN when the arm has no such metric."""
    values = [r.metrics[metric] for r in results if r.arm == arm and metric in r.metrics]
    return sum(values) / len(values) if values else math.nan


def paired_verdict(
    results: Sequence[Result],
    metric: str,
    method: str,
    ablation: str,
    direction: Literal["lower", "higher"],
    seed_share: float = 2 / 3,
    margin: float = 0.0,
) -> Verdict:
    """The commonest rule: better in the mean and in at least `seed_share` of the paired seeds.

    Parameters
    ----------
    margin
        By how much the mean must be better, in units of the metric (0: any strict difference).
    """
    sign = 1.0 if direction == "higher" else -1.0
    by_seed = {
        arm: {r.seed: r.metrics[metric] for r in results if r.arm == arm and metric in r.metrics}
        for arm in (method, ablation)
    }
    seeds = sorted(set(by_seed[method]) & set(by_seed[ablation]))
    if len(seeds) < _MIN_SEEDS:
        return "inconclusive"
    gains = [sign * (by_seed[method][s] - by_seed[ablation][s]) for s in seeds]
    if any(math.isnan(gain) for gain in gains):
        return "inconclusive"
    wins = sum(gain > 0 for gain in gains)
    better = sum(gains) / len(gains) > margin and wins >= seed_share * len(seeds) - 1e-9
    return "reproduced" if better else "not reproduced"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("foveate", "torch", "numpy", "mediapipe", "opencv-python-headless", "av"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, object]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    machine: dict[str, object] = {
        "system": platform.system(),
        "cpu": model,
        "cores": os.cpu_count() or 0,
    }
    import torch

    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name(0)
    return machine


def _revision() -> str:
    """Revision of the source tree that this package was imported from, ``-dirty`` if edited."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        edited = bool(git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent)))
    except (OSError, subprocess.SubprocessError):
        return "not from a git checkout"
    return f"{revision}-dirty" if edited else revision


@dataclass
class Evidence:
    """Everything that a reader needs to believe, doubt or repeat a result.

    Attributes
    ----------
    recipe
        Name of the recipe, e.g. ``mar-rppg``; the file is ``<recipe>.json``.
    claim, verdict, findings
        The main claim, what the rule says of it, and secondary questions.
    arms
        Name of each arm -> what it is, in words; in the order to be shown.
    results
        Raw metrics of every arm and seed.
    data, simulated
        What was measured on, and whether it came out of a simulator.
    scale, config
        Name of the preset and every setting.
    """

    recipe: str
    claim: Claim
    verdict: Verdict
    arms: dict[str, str]
    results: list[Result]
    data: str
    simulated: bool
    scale: str
    config: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = math.nan
    created: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        )
    )
    machine: dict[str, object] = field(default_factory=_machine)
    versions: dict[str, str] = field(default_factory=_versions)
    revision: str = field(default_factory=_revision)

    def __post_init__(self) -> None:
        for verdict in (self.verdict, *(finding.verdict for finding in self.findings)):
            if verdict not in _VERDICTS:
                raise FoveateError(
                    f"evidence of {self.recipe}: unknown verdict {verdict!r}, "
                    f"expected one of {', '.join(_VERDICTS)}"
                )
        unknown = {result.arm for result in self.results} - set(self.arms)
        if unknown:
            raise FoveateError(
                f"evidence of {self.recipe}: results of arms that are not described: "
                f"{', '.join(sorted(unknown))}"
            )

    @property
    def seeds(self) -> list[int]:
        """Seeds that the claim's two arms share."""
        sets = [
            {r.seed for r in self.results if r.arm == arm}
            for arm in (self.claim.method, self.claim.ablation)
        ]
        return sorted(sets[0] & sets[1])

    def to_json(self) -> str:
        """JSON text with sorted, stable content; NaN becomes null."""
        text = json.dumps(_jsonable(dataclasses.asdict(self)), indent=1)
        return _NUMBERS.sub(lambda found: re.sub(r"\s+", "", found[0]), text) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write ``<folder>/<recipe>.json``, whole or not at all."""
        path = Path(folder) / f"{self.recipe}.json"
        with write_whole(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | Path) -> Evidence:
        """Read what :meth:`write` wrote.

        Raises
        ------
        FoveateError
            The file is missing, not JSON, or lacks a field.
        """
        path = Path(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw["claim"] = Claim(**raw["claim"])
            raw["results"] = [
                Result(
                    r["arm"],
                    int(r["seed"]),
                    {k: math.nan if v is None else float(v) for k, v in r["metrics"].items()},
                    math.nan if r["seconds"] is None else float(r["seconds"]),
                    {
                        k: [math.nan if v is None else float(v) for v in values]
                        for k, values in r.get("items", {}).items()
                    },
                )
                for r in raw["results"]
            ]
            raw["findings"] = [Finding(**f) for f in raw["findings"]]
            return cls(**raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FoveateError(
                f"{path} is not readable evidence ({error}); make it anew with "
                f"`foveate run {path.stem} --scale desk`"
            ) from error


_NUMBERS = re.compile(r"\[\s+[-+.,\de\s]+\]")  # a list of numbers goes on one line


def _jsonable(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, Path):
        return value.name
    return value


_SHOWING = frozenset({"apps", "recipes", "report"})  # rooms that cannot change a number


def _sources() -> list[Path]:
    """The package's modules that a recipe's numbers can depend on."""
    package = Path(__file__).resolve().parent.parent
    rooms = (d for d in package.iterdir() if d.is_dir() and d.name not in _SHOWING)
    return sorted(path for room in rooms for path in room.rglob("*.py"))


class Ledger:
    """Keeps the result of every finished (arm, seed), so that an interrupted run goes on.

    Results live under ``FOVEATE_DATA/runs/<recipe>/<key>/``. The key is a hash of the settings
    that influence a number (seeds to run, devices and nodes do not), of the recipe's source, and of
    the source of every room it may have used: whoever edits one of them starts afresh.

    In a run of several processes every process reads the ledger when it is made and only the
    first one writes (`writer`), so that all agree on what is left to do.
    """

    _NEUTRAL = frozenset({"seeds", "devices", "nodes", "accelerator"})

    def __init__(
        self,
        recipe: str,
        config: Any,
        source: str | Path,
        root: Path | None = None,
        writer: bool = True,
    ) -> None:
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in self._NEUTRAL}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for path in (Path(source), *_sources()):
            digest.update(path.read_bytes())
        key = digest.hexdigest()[:16]
        self.folder = (root or data_dir() / "runs") / recipe / key
        self.reused = 0
        self._writer = writer
        self._kept: dict[tuple[str, int], Result] = {}
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []:
            try:
                raw = json.loads(path.read_text("utf-8"))
                result = Result(**raw)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a damaged entry is simply computed again
            self._kept[result.arm, result.seed] = result

    def result(
        self, arm: str, seed: int, compute: Callable[[], Metrics | tuple[Metrics, Items]]
    ) -> Result:
        """The kept result of this arm and seed, else `compute` it and keep it.

        `compute` gives the metrics, or metrics and the values of single test items behind them.
        """
        if (arm, seed) in self._kept:
            self.reused += 1
            return self._kept[arm, seed]
        start = time.perf_counter()
        computed = compute()
        metrics, items = computed if isinstance(computed, tuple) else (computed, {})
        result = Result(
            arm,
            seed,
            {name: float(value) for name, value in metrics.items()},
            round(time.perf_counter() - start, 3),
            {name: [float(value) for value in values] for name, values in items.items()},
        )
        self._kept[arm, seed] = result
        if self._writer:
            with write_whole(self.folder / f"{arm}-{seed}.json") as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
        return result


def read_all(folder: str | Path) -> list[Evidence]:
    """All evidence of a folder, in order of the recipes' names.

    Raises
    ------
    FoveateError
        The folder does not exist or a file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FoveateError(
            f"no evidence folder at {folder}; run a recipe first (`foveate recipes` lists them)"
        )
    return [Evidence.read(path) for path in sorted(folder.glob("*.json"))]


def _figures(evidence: Evidence) -> tuple[str, str]:
    claim = evidence.claim
    return tuple(  # type: ignore[return-value]
        f"{mean(evidence.results, arm, claim.metric):.3g}" for arm in (claim.method, claim.ablation)
    )


STYLE = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}


def evidence_table(evidences: Sequence[Evidence]) -> Table:
    """The table of ``foveate evidence``."""
    table = Table(title="Claims rerun here", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in ("method", "ablation", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in evidences:
        method, ablation = _figures(item)
        table.add_row(
            f"[bold]{escape(item.recipe)}[/]\n"
            f"[dim]{escape(item.claim.metric)}, {item.claim.direction} is better"
            f"{', simulated' if item.simulated else ''}[/]",
            f"[{STYLE[item.verdict]}]{item.verdict}[/]",
            method,
            ablation,
            str(len(item.seeds)),
        )
    return table


def markdown_table(evidence: Evidence) -> str:
    """All arms x metrics of one recipe as a Markdown table (mean over seeds, then range).

    The longer of the two runs down the page.
    """
    metrics = list(dict.fromkeys(name for r in evidence.results for name in r.metrics))
    measured = {r.arm for r in evidence.results if r.metrics}
    arms = [arm for arm in evidence.arms if arm in measured]

    def cell(arm: str, metric: str) -> str:
        values = [
            r.metrics[metric]
            for r in evidence.results
            if r.arm == arm and metric in r.metrics and not math.isnan(r.metrics[metric])
        ]
        if not values:
            return ""
        if len(values) == 1 or min(values) == max(values):
            return f"{values[0]:.3g}"
        average = sum(values) / len(values)
        return f"{average:.3g} ({min(values):.3g} to {max(values):.3g})"

    if len(metrics) > len(arms):
        head, columns, rows = "metric", arms, metrics
        cells = [[cell(arm, metric) for arm in arms] for metric in metrics]
    else:
        head, columns, rows = "arm", metrics, arms
        cells = [[cell(arm, metric) for metric in metrics] for arm in arms]
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {row} | " + " | ".join(line) + " |" for row, line in zip(rows, cells, strict=True)
    ]
    return "\n".join(lines) + "\n"
