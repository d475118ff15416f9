"""Tables, ratios and a plot of ``foveate bench engine``.

A row is ``dataclasses.asdict`` of `foveate.apps.bench_engine.EngineRow`, or what JSON made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from foveate.files import write_whole

__all__ = ["Line", "Ratio", "TimeTable", "ratios", "tables", "write_plot"]

Row = Mapping[str, Any]


class Line(NamedTuple):
    """One contender: its cells are in the order of the workloads, "" where it did not run."""

    what: str
    own: bool
    cells: list[str]


class TimeTable(NamedTuple):
    """Times of all contenders that answer one question with one number of threads."""

    title: str
    workloads: list[str]
    lines: list[Line]


class Ratio(NamedTuple):
    """How many times faster this engine is (`own`: with which bits) than `against`."""

    workload: str
    threads: int
    own: str
    against: str
    times: float


def tables(rows: Sequence[Row]) -> list[TimeTable]:
    """Milliseconds, and multiply-adds where there are any, table by table."""
    found = []
    for title, threads in dict.fromkeys((row["table"], row["threads"]) for row in rows):
        here = [row for row in rows if (row["table"], row["threads"]) == (title, threads)]
        workloads = list(dict.fromkeys(row["workload"] for row in here))
        lines = []
        for what in dict.fromkeys(row["what"] for row in here):
            mine = {row["workload"]: row for row in here if row["what"] == what}
            cells = [_cell(mine[name]) if name in mine else "" for name in workloads]
            lines.append(Line(what, any(row["own"] for row in mine.values()), cells))
        clock = "CPU" if threads == 1 else "wall"
        unit = " (GMAC/s)" if any(row["gmacs"] for row in here) else ""
        heading = f"{title}, {_threads(threads)}: {clock} milliseconds{unit}"
        found.append(TimeTable(heading, workloads, lines))
    return found


def _cell(row: Row) -> str:
    if not row["gmacs"]:
        return f"{row['milliseconds']:.4f}"
    return f"{row['milliseconds']:.3f} ({row['gmacs']:.0f})"


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """The ratios that count, all of them from one run; above 1 this engine is faster.

    * its best 1-bit row against the best peer of every kind;
    * its 2-bit row against the best int8 peer, which computes with more bits in the same time;
    * its best 1-bit row with several threads against the same with the fewest.

    Workloads on which no peer ran, and which have one number of threads, have none.
    """
    found = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        everybody = [row for row in rows if row["workload"] == workload]
        fewest = min(row["threads"] for row in everybody)
        start = _best(everybody, fewest, "1x1 bits", own=True)
        for threads in dict.fromkeys(row["threads"] for row in everybody):
            for bits, kind in (
                ("1x1 bits", "fp32"),
                ("1x1 bits", "int8"),
                ("1x1 bits", "1x1 bits"),
                ("2x2 bits", "int8"),
            ):
                mine = _best(everybody, threads, bits, own=True)
                peer = _best(everybody, threads, kind, own=False)
                if mine and peer:
                    against = f"best {kind}: {peer['what']}"
                    times = float(peer["milliseconds"]) / float(mine["milliseconds"])
                    found.append(Ratio(workload, threads, bits, against, times))
            mine = _best(everybody, threads, "1x1 bits", own=True)
            if threads > fewest and mine and start:
                against = f"itself, {_threads(fewest)}"
                times = float(start["milliseconds"]) / float(mine["milliseconds"])
                found.append(Ratio(workload, threads, "1x1 bits", against, times))
    return found


def _best(rows: Sequence[Row], threads: int, kind: str, *, own: bool) -> Row | None:
    """The fastest row of a kind."""
    fit = [
        row
        for row in rows
        if row["threads"] == threads and row["kind"] == kind and row["own"] == own
    ]
    return min(fit, key=lambda row: float(row["milliseconds"]), default=None)


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of every contender and workload, smallest thread count, as one HTML file."""
    threads = min(row["threads"] for row in rows)
    shown = [row for row in rows if row["threads"] == threads and row["gmacs"]]
    figure = go.Figure()
    for what in dict.fromkeys(row["what"] for row in shown):
        mine = [row for row in shown if row["what"] == what]
        figure.add_bar(
            name=what,
            x=[row["workload"] for row in mine],
            y=[row["gmacs"] for row in mine],
            hovertemplate="%{x}<br>%{y:.0f} GMAC/s<extra>" + what + "</extra>",
        )
    figure.update_layout(
        barmode="group",
        template="plotly_white",
        title=f"Multiply-adds per second, {_threads(threads)}, one run (higher is better)",
        yaxis={"type": "log", "title": "GMAC/s"},
        legend={"orientation": "h", "y": -0.2},
        height=640,
    )
    with write_whole(path) as temporary:
        temporary.write_text(figure.to_html(include_plotlyjs=True, full_html=True), "utf-8")
