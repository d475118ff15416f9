"""Puts measured figures into the documentation: pages name a recipe, the file says the rest.

``<!-- evidence:NAME -->`` in a page becomes the arms, verdict and conditions of
``evidence/NAME.json``; ``<!-- bench:NAME -->`` the rows of ``docs/bench/NAME.json``, which
``foveate bench NAME --out`` writes; ``<!-- evidence:all -->`` becomes the table of all claims, and
``<!-- changelog -->`` the project's CHANGELOG. No figure is typed twice.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from foveate.report.engine_bench import ratios, tables
from foveate.report.evidence import Evidence, markdown_table, mean, read_all

_HEADS = {
    "what": "",
    "name": "",
    "realtime_factor": "x real time",
    "frames_per_s": "frames/s",
    "cpu_s_per_s": "CPU s per s of video",
    "first_result_s": "first result, s",
    "peak_mb": "peak memory, MB",
    "bpm": "heart rate, bpm",
    "mae_bpm": "MAE of all, bpm",
    "mae_accepted_bpm": "MAE of accepted, bpm",
    "false_accepted": "accepted without a pulse",
    "ms_per_frame": "ms per drawn frame",
    "ms": "ms per step",
    "ratio": "times torch's Adam",
    "fraction": "active",
    "forward_ms": "forward, ms",
    "backward_ms": "backward, ms",
    "measuring_ms": "eigenvalues, ms",
    "bill_ms": "all, ms",
    "backward_ratio": "backward, of full",
    "bill_ratio": "all, of full",
    "flops_ratio": "FLOPs, of full",
    "points": "points",
    "speed": "times ONNX Runtime int8",
    "kilobytes": "kB",
    "method": "way",
    "microseconds": "µs a pixel",
    "pixels_per_second": "pixels/s",
    "times_naive": "times the literal loop",
    "times_patches": "times batches of patches",
}

ROOT = Path(__file__).resolve().parent.parent


def _recipe(name: str) -> str:
    path = ROOT / "evidence" / f"{name}.json"
    if not path.is_file():
        return f"*No evidence yet: run* `foveate run {name} --scale desk`*.*\n"
    item = Evidence.read(path)
    claim = item.claim
    lines = [
        f"**Verdict: {item.verdict}.** {claim.text}",
        "",
        f"Rule: {claim.rule}",
        "",
        f"Data: {'**simulated**, ' if item.simulated else ''}{item.data}. Scale `{item.scale}`, "
        f"{len(item.seeds)} seeds, {item.seconds / 60:.0f} min on {item.machine.get('cpu')} "
        f"({item.machine.get('cores')} cores), {item.created[:10]}, revision `{item.revision}`.",
        "",
        "Mean over seeds (smallest to largest):",
        "",
        markdown_table(item),
        "",
        *(f"- {name}: {text}" for name, text in item.arms.items()),
        "",
    ]
    if item.findings:
        lines += ["Further questions:", ""]
        lines += [f"- {f.text} **{f.verdict}**" for f in item.findings]
    if item.notes:
        lines += ["", *(f"- {note}" for note in item.notes)]
    return "\n".join(lines) + "\n"


def _all() -> str:
    folder = ROOT / "evidence"
    if not list(folder.glob("*.json")):
        return "*No evidence yet.*\n"
    lines = [
        "| recipe | verdict | metric | method | ablation | seeds | data |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for item in read_all(folder):
        claim = item.claim
        data = ("simulated: " if item.simulated else "") + item.data
        lines.append(
            f"| {item.recipe} | **{item.verdict}** | {claim.metric} ({claim.direction} is better) "
            f"| {mean(item.results, claim.method, claim.metric):.3g} "
            f"| {mean(item.results, claim.ablation, claim.metric):.3g} "
            f"| {len(item.seeds)} | {data} |"
        )
    return "\n".join(lines) + "\n"


def _engine(rows: list[dict[str, Any]]) -> str:
    """Contenders against workloads for every question and number of threads, then the ratios."""
    lines = []
    for table in tables(rows):
        lines += [f"**{table.title}**", ""]
        lines += ["| | " + " | ".join(table.workloads) + " |"]
        lines += ["|---|" + "---:|" * len(table.workloads)]
        for line in table.lines:
            bold = "**" if line.own else ""
            lines.append(f"| {bold}{line.what}{bold} | " + " | ".join(line.cells) + " |")
        lines.append("")
    lines += ["| workload | threads | this engine's | against | times faster |"]
    lines += ["|---|---:|---|---|---:|"]
    lines += [f"| {w} | {t} | {own} | {peer} | {r:.2f} |" for w, t, own, peer, r in ratios(rows)]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def _bench(name: str) -> str:
    path = ROOT / "docs" / "bench" / f"{name}.json"
    if not path.is_file():
        return f"*Not measured yet: run* `foveate bench {name} --out docs/bench/{name}.json`*.*\n"
    rows = json.loads(path.read_text("utf-8"))
    if name == "engine":
        return _engine(rows)
    keys = [key for key in rows[0] if key != "simulated"]
    lines = ["| " + " | ".join(_HEADS.get(key, key) for key in keys) + " |"]
    lines.append("|---|" + "---:|" * (len(keys) - 1))
    for row in rows:
        cells = [_cell(row[key]) for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for every page."""

    def fill(match: re.Match[str]) -> str:
        what = match.group(1)
        if what == "changelog":
            return (ROOT / "CHANGELOG.md").read_text("utf-8")
        kind, _, name = what.partition(":")
        if kind == "bench":
            return _bench(name)
        return _all() if name == "all" else _recipe(name)

    return re.sub(r"<!-- (changelog|evidence:[a-z0-9-]+|bench:[a-z]+) -->", fill, markdown)
