"""Figures of ``foveate shrink``: accuracy against time, and where the time of a network goes.

Plain plotly JSON with colour tokens, as in :mod:`foveate.report.plots`, but over axes of their own.
What computed a layer has one colour everywhere: bits, int8 or float.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.report.page import number

__all__ = ["OwnPanel", "milliseconds", "pareto_panel", "profile_panel"]

Figure = dict[str, Any]

PATH_COLOURS = {"bits": "@accent", "int8": "@p2", "f32": "@muted", "": "@hatch"}
"""Colour token of each way to compute a layer; the last is for what is no layer."""

_ROWS = 40  # bars of one figure
_ROW_PX = 17
_NAME = 24  # characters of a module path
_PEERS = {"float": "PyTorch", "ort-fp32": "ORT fp32", "ort-int8": "ORT int8"}


@dataclass(frozen=True, slots=True)
class OwnPanel:
    """One figure with what stands around it.

    Attributes
    ----------
    title, note
        Heading, and one line below the figure.
    description
        What the figure shows, in words: the text alternative.
    figure
        plotly JSON with colour tokens.
    height
        Pixels.
    size
        ``wide`` or ``small``.
    """

    title: str
    note: str
    description: str
    figure: Figure
    height: int
    size: str = "wide"
    own_axes: bool = True


def milliseconds(value: float | None) -> str:
    """Milliseconds with three significant digits."""
    if value is None or not math.isfinite(value) or value <= 0:
        return "–"
    return number(value, max(0, 2 - math.floor(math.log10(value))))


def _shown(path: str) -> str:
    """A module path that fits beside a bar; its end says more than its beginning."""
    return html.escape(path if len(path) <= _NAME else "…" + path[1 - _NAME :])


def pareto_panel(rows: Sequence[Mapping[str, Any]], tolerance: float) -> OwnPanel:
    """Accuracy over the time of one picture on one thread; better is up and to the left.

    Parameters
    ----------
    rows
        ``name``, ``what``, ``accuracy`` (0..1), ``ms`` (``{"1": ...}``), ``pareto``, ``file``; the
        first is the float network.
    tolerance
        Points below the float network that are tolerated: drawn as a line.
    """
    places = _label_places(rows)
    traces: list[Figure] = []
    front = sorted((row for row in rows if row["pareto"]), key=_time)
    if len(front) > 1:
        x, y = _stairs(front)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x,
                "y": y,
                "line": {"color": "@accent/0.45", "width": 1.6, "dash": "dot"},
                "hoverinfo": "skip",
            }
        )
    groups = (
        ([row for row in rows if not row["file"]], "@muted", "square", 9),
        ([row for row in rows if row["file"]], "@accent", "circle", 12),
    )
    for members, colour, symbol, size in groups:
        if not members:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [_time(row) for row in members],
                "y": [round(100 * row["accuracy"], 3) for row in members],
                "text": [f"<b>{_name(row)}</b>" if row["file"] else _name(row) for row in members],
                "textposition": [places[row["name"]] for row in members],
                "textfont": {"size": 12, "color": "@ink" if size > 9 else "@muted"},
                "marker": {"color": colour, "symbol": symbol, "size": size},
                "customdata": [row["what"] for row in members],
                "hovertemplate": "%{customdata}<br>%{x:.3g} ms, %{y:.1f} %<extra></extra>",
                "cliponaxis": False,
            }
        )
    times = [_time(row) for row in rows]
    levels = [100 * row["accuracy"] for row in rows]
    low, high = min(*levels, levels[0] - tolerance), max(levels)
    air = max(0.14 * (high - low), 0.6)
    left, right = math.log10(min(times)), math.log10(max(times))
    wide = max(0.16 * (right - left), 0.12)
    traces.insert(
        0,
        {
            "type": "scatter",
            "mode": "lines",
            "x": [10 ** (left - wide), 10 ** (right + wide)],
            "y": [round(levels[0] - tolerance, 3)] * 2,
            "line": {"color": "@hatch", "width": 1, "dash": "dash"},
            "hoverinfo": "skip",
        },
    )
    layout = {
        "margin": {"l": 46, "r": 16, "t": 10, "b": 42},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {
            "type": "log",
            "range": [round(left - wide, 4), round(right + wide, 4)],
            "title": {
                "text": "milliseconds for one picture, one thread",
                "standoff": 8,
                "font": {"size": 12, "color": "@muted"},
            },
            "tickvals": _decades(10 ** (left - wide), 10 ** (right + wide)),
            "showgrid": True,
            "zeroline": False,
            "showline": True,
            "fixedrange": True,
        },
        "yaxis": {
            "range": [round(low - air, 3), round(high + air, 3)],
            "ticksuffix": " %",
            "zeroline": False,
            "nticks": 6,
            "fixedrange": True,
        },
    }
    said = "; ".join(
        f"{_name(row)}: {number(100 * row['accuracy'])} % in {milliseconds(_time(row))} ms"
        for row in rows
    )
    return OwnPanel(
        title="Accuracy against time",
        note=f"Up and left is better. Below the dashed line more than {tolerance:g} points are "
        "lost; nobody beats what lies on the dotted line in both.",
        description=f"{said}.",
        figure={"data": traces, "layout": layout},
        height=380,
    )


def _time(row: Mapping[str, Any]) -> float:
    return float(row["ms"]["1"])


def _name(row: Mapping[str, Any]) -> str:
    """Short name of a contender."""
    bits = row["bits"]
    if isinstance(bits, list):
        return f"{bits[0]}-bit" if bits[0] == bits[1] else f"{bits[0]}x{bits[1]}-bit"
    return _PEERS.get(row["name"], str(row["what"]))


def _stairs(front: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """The front as steps: what is reached at a time stays reached."""
    x: list[float] = []
    y: list[float] = []
    for row in front:
        level = round(100 * row["accuracy"], 3)
        if y:
            x.append(_time(row))
            y.append(y[-1])
        x.append(_time(row))
        y.append(level)
    return x, y


def _decades(low: float, high: float) -> list[float]:
    """Round values 1, 2, 5 times powers of ten inside a span."""
    found = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        found += [float(f"{m * 10.0**power:.6g}") for m in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) <= 9 else [v for v in inside if f"{v:e}"[0] == "1"]


def _label_places(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where the name of each point goes, so that names of neighbours do not lie on each other."""
    times = [math.log10(_time(row)) for row in rows]
    levels = [row["accuracy"] for row in rows]
    wide = max(max(times) - min(times), 1e-6)
    high = max(max(levels) - min(levels), 1e-6)
    # Sides in order of preference, and where a name of about 60 x 16 pixels then has its middle.
    sides = (
        ("top center", 0.0, 0.055),
        ("bottom center", 0.0, -0.055),
        ("middle right", 0.075, 0.0),
        ("middle left", -0.075, 0.0),
        ("top right", 0.065, 0.05),
        ("bottom right", 0.065, -0.05),
        ("top left", -0.065, 0.05),
        ("bottom left", -0.065, -0.05),
    )
    points = [
        (0.75 * (t - min(times)) / wide, 0.7 * (a - min(levels)) / high)
        for t, a in zip(times, levels, strict=True)
    ]
    taken = [(x, y, 0.012, 0.02) for x, y in points]  # the markers themselves
    places = {}
    for row, (x, y) in sorted(zip(rows, points, strict=True), key=lambda one: one[1]):
        best = min(
            sides,
            key=lambda side: (
                sum(
                    abs(x + side[1] - u) < 0.055 + du and abs(y + side[2] - v) < 0.025 + dv
                    for u, v, du, dv in taken
                ),
                sides.index(side),
            ),
        )
        places[row["name"]] = best[0]
        taken.append((x + best[1], y + best[2], 0.055, 0.025))
    return places


def profile_panel(title: str, nodes: Sequence[Mapping[str, Any]], longest_us: float) -> OwnPanel:
    """Time of every layer of one network, in the order in which they run.

    Parameters
    ----------
    nodes
        ``name``, ``op``, ``path`` (``bits``, ``int8``, ``f32`` or empty), ``us``.
    longest_us
        End of the axis: the same in all figures that stand beside each other.
    """
    kept = sorted(range(len(nodes)), key=lambda i: -float(nodes[i]["us"]))[:_ROWS]
    shown = [nodes[i] for i in sorted(kept)]
    rest = len(nodes) - len(shown)
    total = sum(float(node["us"]) for node in nodes)
    traces = []
    for path, colour in PATH_COLOURS.items():
        rows = [i for i, node in enumerate(shown) if _path(node) == path]
        if not rows:
            continue
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "y": rows,
                "x": [round(float(shown[i]["us"]), 2) for i in rows],
                "width": 0.68,
                "marker": {"color": f"{colour}/0.9", "line": {"width": 0}},
                "text": [milliseconds(float(shown[i]["us"])) for i in rows],
                "textposition": "outside",
                "textfont": {"size": 10, "color": "@muted"},
                "cliponaxis": False,
                "customdata": [html.escape(f"{shown[i]['name']} ({shown[i]['op']})") for i in rows],
                "hovertemplate": "%{customdata}<br>%{x:.1f} µs<extra></extra>",
            }
        )
    names = [_shown(str(node["name"])) for node in shown]
    longest = min(_NAME, max((len(str(node["name"])) for node in shown), default=4))
    layout = {
        "margin": {
            "l": 14 + round(6.1 * longest),
            "r": 34,
            "t": 4,
            "b": 24,
        },
        "showlegend": False,
        "hovermode": "closest",
        "barmode": "overlay",
        "xaxis": {
            "range": [0, round(1.08 * longest_us, 2)],
            "ticksuffix": " µs",
            "nticks": 4,
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {
            "range": [len(shown) - 0.4, -0.6],
            "tickvals": list(range(len(shown))),
            "ticktext": names,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }
    shares = _shares(nodes, total)
    return OwnPanel(
        title=title,
        note=", ".join(f"{name} {number(100 * share, 0)} %" for name, share in shares)
        + (f"; {rest} shorter ones are not drawn" if rest else ""),
        description=f"{title}: {number(total, 0)} microseconds in {len(nodes)} layers.",
        figure={"data": traces, "layout": layout},
        height=34 + _ROW_PX * len(shown),
        size="small",
    )


def _path(node: Mapping[str, Any]) -> str:
    path = str(node["path"])
    return path if path in PATH_COLOURS else ""


def _shares(nodes: Sequence[Mapping[str, Any]], total: float) -> list[tuple[str, float]]:
    """Share of the time by the way of computing."""
    words = {"bits": "bits", "int8": "int8", "f32": "float", "": "other"}
    found = []
    for path, word in words.items():
        spent = sum(float(node["us"]) for node in nodes if _path(node) == path)
        if total and spent / total >= 0.005:
            found.append((word, spent / total))
    return found
