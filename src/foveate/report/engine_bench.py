"""Tables and a plot of ``foveate bench engine``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from foveate.files import write_whole

__all__ = ["ratios", "write_plot"]

Row = Mapping[str, Any]


def ratios(rows: Sequence[Row]) -> list[tuple[str, int, str, float]]:
    """How many times faster this engine's best row is, in one run.

    Parameters
    ----------
    rows
        ``dataclasses.asdict`` of `foveate.apps.bench_engine.EngineRow`.

    Returns
    -------
    list of tuple
        (workload, threads, compared with, ratio): above 1 this engine is faster. Compared with the
        best peer of every kind; its own rows compete as 1-bit rows.
    """
    found = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        for threads in dict.fromkeys(row["threads"] for row in rows):
            here = [r for r in rows if r["workload"] == workload and r["threads"] == threads]
            own = [r["milliseconds"] for r in here if r["own"] and r["kind"] == "bits"]
            if not own:
                continue
            for kind in ("fp32", "int8", "bits"):
                peers = [r for r in here if not r["own"] and r["kind"] == kind]
                if peers:
                    best = min(peers, key=lambda r: float(r["milliseconds"]))
                    ratio = float(best["milliseconds"]) / min(own)
                    found.append((workload, threads, f"best {kind}: {best['what']}", ratio))
    return found


def write_plot(rows: Sequence[Any], path: Path) -> None:
    """Bars of every contender and workload, smallest thread count, as one HTML file."""
    from dataclasses import asdict

    plain = [row if isinstance(row, Mapping) else asdict(row) for row in rows]
    threads = min(row["threads"] for row in plain)
    figure = go.Figure()
    for what in dict.fromkeys(row["what"] for row in plain):
        mine = [row for row in plain if row["what"] == what and row["threads"] == threads]
        figure.add_bar(
            name=what,
            x=[row["workload"] for row in mine],
            y=[row["gmacs"] for row in mine],
            hovertemplate="%{x}<br>%{y:.0f} GMAC/s<extra>" + what + "</extra>",
        )
    figure.update_layout(
        barmode="group",
        template="plotly_white",
        title=f"Multiply-adds per second, {threads} thread, one run (higher is better)",
        yaxis={"type": "log", "title": "GMAC/s"},
        legend={"orientation": "h", "y": -0.2},
        height=640,
    )
    with write_whole(path) as temporary:
        temporary.write_text(figure.to_html(include_plotlyjs=True, full_html=True), "utf-8")
