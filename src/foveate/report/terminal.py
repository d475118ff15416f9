"""What the command line shows: progress bars and tables (rich)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from foveate.report import engine_bench
from foveate.report.evidence import STYLE, Evidence, evidence_table, markdown_table

__all__ = [
    "many_scenes",
    "many_videos",
    "one_video",
    "print_accuracy",
    "print_bench",
    "print_card",
    "print_data",
    "print_doctor",
    "print_evidence",
    "print_models",
    "print_outcomes",
    "print_ratios",
    "print_recipes",
    "print_shrink_result",
    "print_watch_result",
    "recipe",
    "stages",
]

_out = Console()
_err = Console(stderr=True)  # progress goes here, so that results can be piped


@contextlib.contextmanager
def one_video(name: str) -> Iterator[Callable[[float, float | None, str], None]]:
    """A bar over the seconds of one video, with the heart rates seen so far."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[clock]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[word]}"),
        console=_err,
        transient=True,
    )
    with bar:
        task = bar.add_task(escape(Path(name).name), total=None, clock="", word="")

        def tell(done_s: float, total_s: float | None, word: str) -> None:
            clock = f"{done_s:.0f} s" + (f" of {total_s:.0f} s" if total_s else "")
            bar.update(task, completed=done_s, total=total_s, clock=clock, word=escape(word))

        yield tell


@contextlib.contextmanager
def many_videos(total: int) -> Iterator[Callable[[int, int, Any], None]]:
    """A bar over many videos; each finished one leaves a line."""
    with _many("watching", total, _outcome_line) as tell:
        yield tell


@contextlib.contextmanager
def many_scenes(total: int) -> Iterator[Callable[[int, int, Any], None]]:
    """A bar over many scenes; each finished one leaves a line."""
    with _many("mapping", total, _scene_line) as tell:
        yield tell


def _scene_line(outcome: Any) -> str:
    name = f"[bold]{escape(outcome.job.source.name)}[/]"
    if outcome.result is None:
        return f"{name}  [red]{escape(outcome.error)}[/]"
    summary = outcome.result.summary
    text = "mapped"
    if (found := summary["estimate"]) is not None:
        text = f"OA {100 * found['disjoint']['oa']:.1f} % on blocks apart"
    return f"{name}  {summary['method']}  {text}"


@contextlib.contextmanager
def _many(
    verb: str, total: int, line: Callable[[Any], str]
) -> Iterator[Callable[[int, int, Any], None]]:
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_err,
        transient=True,
    )
    with bar:
        task = bar.add_task(verb, total=total)

        def tell(done: int, _total: int, outcome: Any) -> None:
            bar.update(task, completed=done)
            bar.console.print(f"  {line(outcome)}", highlight=False, soft_wrap=True)

        yield tell


def _rate(rate: Mapping[str, Any]) -> str:
    if rate.get("bpm") is None:
        return f"[yellow]no heart rate[/]: {escape(str(rate.get('reason')))}"
    text = f"[bold]{rate['bpm']:.1f} bpm[/]"
    if rate.get("low") is not None and rate.get("high") is not None:
        text += f" ({rate['low']:.1f} to {rate['high']:.1f})"
    if rate.get("confidence") is not None:
        text += f", confidence {rate['confidence']:.2f}"
    if rate.get("windows_total") and rate["windows_accepted"] < rate["windows_total"]:
        text += f", in {rate['windows_accepted']} of {rate['windows_total']} windows"
    return text


def _nobody(summary: Mapping[str, Any]) -> str:
    return "no face" if summary["verdict"] == "no face" else "faces only at a glimpse"


def _outcome_line(outcome: Any) -> str:
    name = escape(outcome.video.name)
    if outcome.result is None:
        return f"{name}  [red]{escape(outcome.error)}[/]"
    people = outcome.result.summary["people"]
    again = "  [dim](already done)[/]" if outcome.result.reused else ""
    if not people:
        return f"{name}  {_nobody(outcome.result.summary)}{again}"
    return f"{name}  " + "; ".join(_rate(p["heart_rate"]) for p in people) + again


def print_watch_result(result: Any) -> None:
    """The answer of one video."""
    summary = result.summary
    source, compute = summary["source"], summary["compute"]
    again = "  (already done; --force computes it again)" if result.reused else ""
    _out.print(
        f"[bold]{escape(source['name'])}[/]  {source['duration_s']:.1f} s, "
        f"{source['width']}x{source['height']}{again}",
        highlight=False,
    )
    if summary["simulated"]:
        _out.print(
            f"[magenta]simulated[/]: {escape(summary['simulation_note'])}",
            highlight=False,
            soft_wrap=True,
        )
    if not summary["people"]:
        _out.print(_nobody(summary), highlight=False)
    for person in summary["people"]:
        _out.print(
            f"  person {person['track'] + 1}, in view {person['visible_s']:.1f} s: "
            + _rate(person["heart_rate"]),
            highlight=False,
            soft_wrap=True,
        )
    for note in summary["notes"]:
        _out.print(f"  {escape(note)}", highlight=False)
    _out.print(
        f"  {compute['realtime_factor']:.1f}x real time; faces looked for in "
        f"{compute['frames_detected']} of {compute['frames_decoded']} frames",
        style="dim",
        highlight=False,
    )
    _out.print(f"  report: {result.folder / 'report.html'}", highlight=False, soft_wrap=True)


def print_outcomes(folder: Path, outcomes: Sequence[Any]) -> None:
    """The answer of a folder of videos; each has had its line already."""
    failed = [o for o in outcomes if o.result is None]
    _out.print(
        f"{len(outcomes) - len(failed)} of {len(outcomes)} videos done"
        + (f", {len(failed)} could not be read" if failed else ""),
        highlight=False,
    )
    _out.print(f"  overview: {folder / 'index.html'}", highlight=False, soft_wrap=True)
    _out.print(f"  table:    {folder / 'heart_rates.csv'}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def recipe(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for a recipe: (what is being done, done, total)."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
    )
    with bar:
        task = bar.add_task(name, total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{name}: {escape(what)}", completed=done, total=total)

        yield tell


@contextlib.contextmanager
def stages(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work of several stages: (what is being done, done, total)."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
    )
    with bar:
        task = bar.add_task(escape(name), total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=escape(f"{name}: {what}"), completed=done, total=total)

        yield tell


def print_recipes(recipes: Sequence[tuple[str, ModuleType]]) -> None:
    """The recipes with their claims."""
    table = Table(show_lines=True)
    for column in ("recipe", "claim", "scales"):
        table.add_column(column, overflow="fold")
    for name, module in recipes:
        table.add_row(name, escape(module.CLAIM.text), ", ".join(module.PRESETS))
    _out.print(table)
    _out.print("run one with: foveate run NAME --scale smoke", style="dim", highlight=False)


def print_shrink_result(result: Any) -> None:
    """The table of contenders, and which file to take."""
    summary = result.summary
    threads = str(summary["machine"]["threads"])
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    columns = ["acc. %", "points", "ms", f"ms x{threads}", "x torch", "x int8", "kB"]
    if threads == "1":
        columns.remove("ms x1")
    for column in columns:  # narrow enough for 80 characters
        table.add_column(column, justify="right", no_wrap=True)
    for row in summary["rows"]:
        int8 = row["times_int8"]
        cells = [f"{100 * row['accuracy']:.1f}", f"{row['points']:+.1f}", f"{row['ms']['1']:.3g}"]
        cells += [f"{row['ms'][threads]:.3g}"] if threads != "1" else []
        cells += [f"{row['times_float']:.1f}", "" if int8 is None else f"{int8:.2f}"]
        cells += [f"{row['bytes'] / 1e3:.0f}"]
        name = escape(row["what"])
        chosen = row["name"] == summary["verdict"]["row"]
        table.add_row(f"[bold]{name}[/]" if chosen else name, *cells)
    _out.print(table)
    _out.print(
        "ms: one picture on one thread; x torch, x int8: times as fast as PyTorch and as ONNX "
        "Runtime int8",
        style="dim",
        highlight=False,
    )
    for note in summary["notes"]:
        _out.print(f"  {escape(note)}", style="dim", highlight=False, soft_wrap=True)
    best, reason = result.best, escape(summary["verdict"]["reason"])
    word = "  [dim](already done)[/]" if result.reused else ""
    if best is None:
        _out.print(f"  [yellow]{reason}[/]{word}", highlight=False, soft_wrap=True)
    else:
        _out.print(f"  take {escape(str(best))}: {reason}{word}", highlight=False, soft_wrap=True)
    _out.print(f"  report: {result.folder / 'report.html'}", highlight=False, soft_wrap=True)


def print_evidence(evidences: Sequence[Evidence], markdown: bool = False) -> None:
    """The table of claims and verdicts, or Markdown with every arm."""
    if markdown:
        for item in evidences:
            print(f"## {item.recipe}: {item.verdict}\n\n{markdown_table(item)}")
        return
    _out.print(evidence_table(evidences))
    for item in evidences:
        where = ("simulated: " if item.simulated else "") + f"{item.data}, {item.scale}"
        _out.print(f"\n[bold]{escape(item.recipe)}[/], [dim]{escape(where)}[/]", highlight=False)
        for finding in item.findings:
            _out.print(
                f"  [{STYLE[finding.verdict]}]{finding.verdict}[/]: {escape(finding.text)}",
                highlight=False,
            )


def print_data(rows: Sequence[Mapping[str, str]], root: Path) -> None:
    """One line for each data set."""
    table = Table(
        title=f"Data sets, looked for below {escape(str(root))}", title_justify="left", box=None
    )
    for column in ("data set", "for", "access", "here"):
        table.add_column(column, overflow="fold")
    for row in rows:
        style = {"absent": "dim", "incomplete": "yellow"}.get(row["status"].split()[0], "green")
        table.add_row(
            f"[bold]{escape(row['name'])}[/]",
            escape(row["task"]),
            row["access"],
            f"[{style}]{escape(row['status'])}[/]",
        )
    _out.print(table)
    _out.print("more about one: foveate data NAME", style="dim", highlight=False)


def print_card(row: Mapping[str, str]) -> None:
    """Everything about one data set."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in row.items():
        if value:
            table.add_row(key, escape(value))
    _out.print(table)


def print_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """The model files."""
    _print_rows(rows, ("name", "what", "licence", "size", "status"))


def _print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(row.get(column, ""))) for column in columns))
    _out.print(table)


def print_doctor(checks: Sequence[Mapping[str, Any]]) -> bool:
    """The checks; True when nothing essential is missing."""
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}
    table = Table(show_header=False, box=None, padding=(0, 1))
    for check in checks:
        table.add_row(marks[check["state"]], check["what"], escape(check["detail"]))
    _out.print(table)
    return all(check["state"] != "broken" for check in checks)


def print_bench(rows: Sequence[Mapping[str, Any]]) -> None:
    """Timings as ratios in one run."""
    title = "640x480 at 30 frames/s, start-up counted, one run"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for column in ("x real time", "frames/s", "CPU s/s", "first, s", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(str(row["what"])),
            *(
                "" if row.get(key) is None else f"{row[key]:.2f}" if digits else f"{row[key]:.0f}"
                for key, digits in (
                    ("realtime_factor", 1),
                    ("frames_per_s", 0),
                    ("cpu_s_per_s", 1),
                    ("first_result_s", 1),
                    ("peak_mb", 0),
                )
            ),
        )
    _out.print(table)
    _out.print(
        "CPU s/s: CPU seconds per second of video; first: seconds from the start of the process "
        "to the first heart rate; MB: peak memory",
        style="dim",
        highlight=False,
    )


def print_ratios(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Rows of a benchmark as they are: `columns` maps a key to its heading, in order."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(columns.values()):
        table.add_column(heading, overflow="fold", justify="right" if number else "left")
    for row in rows:
        cells = (row[key] for key in columns)
        table.add_row(
            *(f"{cell:.2f}" if isinstance(cell, float) else escape(str(cell)) for cell in cells)
        )
    _out.print(table)


def print_engine(rows: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds of every contender, and the ratios that count."""
    for times in engine_bench.tables(rows):
        table = Table(title=times.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("", overflow="fold", ratio=1)
        for workload in times.workloads:
            table.add_column(workload.replace(", ", "\n"), justify="right", no_wrap=True)
        for line in times.lines:
            table.add_row(escape(line.what), *line.cells)
        _out.print(table)
    table = Table(
        title="How many times faster this engine is",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in ("workload", "threads", "this engine's", "against", "ratio"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for workload, threads, own, against, times_faster in engine_bench.ratios(rows):
        table.add_row(workload, str(threads), own, escape(against), f"{times_faster:.2f}")
    _out.print(table)


def print_accuracy(rows: Sequence[Mapping[str, Any]]) -> None:
    """Heart-rate errors on simulated faces."""
    table = Table(title="Simulated faces, 64x64 pixels", title_justify="left")
    for column in (
        "what",
        "clips",
        "MAE, bpm",
        "accepted",
        "MAE of accepted, bpm",
        "accepted without a pulse",
    ):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        accepted = row["mae_accepted_bpm"]
        table.add_row(
            row["what"],
            str(row["clips"]),
            f"{row['mae_bpm']:.2f}",
            str(row["accepted"]),
            "" if accepted is None else f"{accepted:.2f}",
            str(row["false_accepted"]),
        )
    _out.print(table)
