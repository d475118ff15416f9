"""Curves over time as plotly figures: plain JSON, small whatever the length of the video.

A figure is the dictionary that plotly.js draws (``{"data": [...], "layout": {...}}``); colours are
tokens of :mod:`foveate.report.page`. The x axis of every figure is the time of the video in
seconds, with the same margins, so that one cursor fits all of them.

A curve of many samples is thinned for the page by keeping, in each of equal buckets, the smallest
and the largest sample: what the eye sees at screen width, the envelope, stays exactly as it was,
and no spike is lost (averages would lose them). Refused samples (NaN) stay gaps.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.report.page import PERSON_COLOURS, clock, number, person_name
from foveate.streams.timeline import Timeline

__all__ = [
    "POINTS_PER_CURVE",
    "Panel",
    "Refusal",
    "Section",
    "in_view",
    "panel_sections",
    "presence_panel",
    "rate_panel",
    "signal_panel",
    "thin",
    "wave_panel",
]

Floats = npt.NDArray[np.float64]
Figure = dict[str, Any]

POINTS_PER_CURVE = 4000
"""Upper bound of the samples that one curve puts into the page."""

_MARGIN = {"l": 44, "r": 18, "t": 8, "b": 26}
_REFUSAL_TRACES = 120
_RATE = "pulse.hr_bpm"
_BREATHS = "respiration.rate_bpm"
_WAVE = "pulse.bvp"
_VISIBLE = "face.visible"
_RATE_PARTS = {_RATE, "pulse.hr_low_bpm", "pulse.hr_high_bpm", "pulse.hr_candidate_bpm"}

_TITLES = {
    "pulse.snr_db": "Signal-to-noise",
    "pulse.skin_r": "Skin colour, red",
    "pulse.skin_g": "Skin colour, green",
    "pulse.skin_b": "Skin colour, blue",
}
_GROUPS = {
    "pulse": "Behind the pulse",
    "respiration": "Behind the breathing",
    "face": "Face",
    "au": "Action units",
    "expression": "Expression",
    "attention": "Attention",
}
_UNITS = {"bpm": "bpm", "db": "dB", "ms": "ms", "s": "s", "hz": "Hz", "px": "px", "deg": "°"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was looked for and not reported.

    Attributes
    ----------
    what
        Name of the reading, such as ``heart rate``.
    track
        Person; -1 for the whole stream.
    from_s, to_s
        Time span in seconds; None where it is not known.
    reason
        Why, in words.
    """

    what: str
    track: int
    from_s: float | None
    to_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure with what stands around it.

    Attributes
    ----------
    title, unit
        Heading; the unit is empty where there is none.
    description
        What the figure shows, in words: the text alternative.
    figure
        plotly JSON with colour tokens.
    height
        Pixels.
    readouts
        Curves whose value at the cursor the page shows:
        ``{"trace", "name", "color", "digits", "unit", "reach_s"}``.
    size
        ``wide`` or ``small`` (two beside each other where there is room).
    note
        One line below the heading.
    thinned
        True when samples were left out of a curve.
    """

    title: str
    unit: str
    description: str
    figure: Figure
    height: int
    readouts: list[dict[str, Any]] = field(default_factory=list)
    size: str = "wide"
    note: str = ""
    thinned: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: list[Panel]


def thin(values: Floats, limit: int = POINTS_PER_CURVE) -> npt.NDArray[np.intp]:
    """Indices of the samples to draw: smallest, largest and first gap of each bucket, both ends.

    Parameters
    ----------
    values
        ``(N,)`` one curve, or ``(K, N)`` curves that share their times (a line and its band).
    limit
        Bound of the number of indices; at least ``3 K + 2``.

    Returns
    -------
    indices
        Ascending, unique, at most `limit`; all of them when ``N <= limit``.
    """
    rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
    count = rows.shape[1]
    if count <= limit:
        return np.arange(count)
    # minimum, maximum and perhaps a gap per row and bucket, and the two ends
    per_bucket = (3 if np.isnan(rows).any() else 2) * len(rows)
    buckets = max(1, (limit - 2) // per_bucket)
    size = math.ceil(count / buckets)
    padding = np.full((len(rows), buckets * size - count), np.nan)
    grid = np.concatenate([rows, padding], axis=1).reshape(len(rows), buckets, size)
    gap = np.isnan(grid)
    start = np.arange(buckets) * size
    lowest = start + np.where(gap, np.inf, grid).argmin(axis=2)
    highest = start + np.where(gap, -np.inf, grid).argmax(axis=2)
    first_gap = np.where(gap.any(axis=2), start + gap.argmax(axis=2), 0)
    kept = np.unique(np.concatenate([lowest, highest, first_gap], axis=None))
    return np.union1d(kept[kept < count], [0, count - 1]).astype(np.intp)


def in_view(time_s: Floats, value: Floats) -> list[tuple[float, float]]:
    """Spans in which ``face.visible`` is set: a missing, zero or NaN sample ends a span.

    A hole of up to three sample periods (a damaged frame) does not. Each span lasts until the
    end of its last frame.
    """
    seen = time_s[value >= 0.5]
    if not len(seen):
        return []
    steps = np.diff(seen)
    period = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.04
    hidden = time_s[~(value >= 0.5)]
    said_hidden = np.searchsorted(hidden, seen[1:]) > np.searchsorted(hidden, seen[:-1])
    cuts = np.flatnonzero((steps > 3 * period + 1e-9) | said_hidden)
    starts = np.concatenate([[0], cuts + 1]).astype(int)
    ends = np.concatenate([cuts, [len(seen) - 1]]).astype(int)
    return [(float(seen[a]), float(seen[b]) + period) for a, b in zip(starts, ends, strict=True)]


def _broken(time_s: Floats, *curves: Floats) -> tuple[Floats, ...]:
    """Put a NaN into every hole of the time stamps, or a line would bridge what was not seen.

    A hole is a step of more than half a second and more than five usual steps.
    """
    holes = np.flatnonzero(np.diff(time_s) > max(0.5, 5 * _period(time_s))) + 1
    middle = (time_s[holes - 1] + time_s[holes]) / 2
    return (
        np.insert(time_s, holes, middle),
        *(np.insert(curve, holes, np.nan) for curve in curves),
    )


def _list(values: Iterable[float], digits: int) -> list[float | None]:
    return [round(v, digits) if math.isfinite(v) else None for v in map(float, values)]


def _samples(values: Floats) -> list[float | None]:
    """Values with six significant digits; NaN becomes None, which plotly draws as a gap."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def _label(text: str, width: int = 46) -> str:
    """Foreign text for a plotly label: plotly reads a little HTML, so it is escaped and wrapped."""
    lines = textwrap.wrap(text, width, break_long_words=True)[:8] or [""]
    return "<br>".join(html.escape(line) for line in lines)


def _token(track: int) -> str:
    return "@muted" if track < 0 else f"@p{track % len(PERSON_COLOURS)}"


def _lane_name(track: int) -> str:
    return "all" if track < 0 else f"P{track + 1}"


def _axis_layout(duration_s: float) -> Figure:
    return {
        "margin": dict(_MARGIN),
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {
            "range": [0, round(duration_s, 3)],
            "minallowed": 0,
            "maxallowed": round(duration_s, 3),
            "showgrid": False,
            "zeroline": False,
            "ticks": "outside",
            "ticklen": 4,
            "ticklabeloverflow": "allow",
        },
        "yaxis": {"fixedrange": True, "zeroline": False, "nticks": 5, "ticks": ""},
    }


def _line(
    time_s: Floats, value: Floats, track: int, digits: int, unit: str, width: float = 1.8
) -> Figure:
    few = len(time_s) <= 90
    suffix = f" {unit}" if unit else ""
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "x": _list(time_s, 3),
        "y": _samples(value),
        "connectgaps": False,
        "line": {"color": _token(track), "width": width, "simplify": False},
        "marker": {"color": _token(track), "size": 4.5},
        "hovertemplate": f"%{{y:.{digits}f}}{suffix} at %{{x:.1f}} s"
        f"<extra>{person_name(track)}</extra>",
    }


def _lone(time_s: Floats, value: Floats, track: int) -> list[Figure]:
    """Markers for samples between two gaps, which a line cannot show."""
    finite = np.isfinite(value)
    neighbours = np.pad(finite, 1)
    alone = finite & ~neighbours[:-2] & ~neighbours[2:]
    if len(value) <= 90 or not alone.any():
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": _list(time_s[alone], 3),
            "y": _samples(value[alone]),
            "marker": {"color": _token(track), "size": 4.5},
            "hoverinfo": "skip",
        }
    ]


def _runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open index spans in which `mask` holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _period(time_s: Floats) -> float:
    steps = np.diff(time_s)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 1.0


def _band(time_s: Floats, low: Floats, high: Floats, track: int, half: float) -> Figure:
    """Area between two curves, one closed polygon per run of finite samples."""
    x: list[float | None] = []
    y: list[float | None] = []
    for a, b in _runs(np.isfinite(low) & np.isfinite(high)):
        t, lo, hi = time_s[a:b], low[a:b], high[a:b]
        if b - a == 1:  # a lone sample would have no width
            t, lo, hi = np.array([t[0] - half, t[0] + half]), np.repeat(lo, 2), np.repeat(hi, 2)
        x += [*_list(t, 3), *_list(t[::-1], 3), round(float(t[0]), 3), None]
        y += [*_samples(hi), *_samples(lo[::-1]), float(f"{hi[0]:.6g}"), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x[:-1],
        "y": y[:-1],
        "fill": "toself",
        "fillcolor": f"{_token(track)}/0.16",
        "line": {"width": 0, "color": f"{_token(track)}/0"},
        "hoverinfo": "skip",
    }


def _refused_spans(
    refusals: Sequence[Refusal], track: int, time_s: Floats, value: Floats, duration_s: float
) -> list[tuple[float, float, str]]:
    """Listed refusals of a track, and runs of NaN that no listed refusal explains."""
    spans = []
    for refusal in refusals:
        if refusal.track == track:
            start = refusal.from_s if refusal.from_s is not None else 0.0
            stop = refusal.to_s if refusal.to_s is not None else duration_s
            spans.append((max(0.0, start), min(duration_s, stop), refusal.reason))
    half = _period(time_s) / 2
    for a, b in _runs(~np.isfinite(value)):
        start, stop = max(0.0, time_s[a] - half), min(duration_s, time_s[b - 1] + half)
        if not any(s <= time_s[b - 1] and time_s[a] <= e for s, e, _ in spans):
            spans.append((float(start), float(stop), "refused, no reason recorded"))
    return sorted(span for span in spans if span[1] > span[0])


def _hatching(
    spans: Sequence[tuple[float, float, str]], track: int, bottom: float, top: float, axis: str
) -> list[Figure]:
    """Hatched rectangles with the reason on hover, one trace per reason."""
    by_reason: dict[str, list[tuple[float, float]]] = {}
    for start, stop, reason in spans:
        known = reason in by_reason or len(by_reason) < _REFUSAL_TRACES
        key = reason if known else "several reasons: see the list below the curves"
        by_reason.setdefault(key, []).append((start, stop))
    traces = []
    for reason, pieces in by_reason.items():
        x: list[float | None] = []
        y: list[float | None] = []
        for start, stop in pieces:
            a, b = round(start, 3), round(stop, 3)
            x += [a, b, b, a, a, None]
            y += [bottom, bottom, top, top, bottom, None]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x[:-1],
                "y": y[:-1],
                "yaxis": axis,
                "fill": "toself",
                "fillpattern": {
                    "shape": "/",
                    "size": 8,
                    "solidity": 0.1,
                    "fgcolor": "@hatch",
                    "bgcolor": "@hatch/0.08",
                },
                "line": {"width": 0, "color": "@hatch/0"},
                "hoveron": "fills",
                "hoverinfo": "text",
                "text": f"<b>{person_name(track)}: refused</b><br>{_label(reason)}",
            }
        )
    return traces


def _refused_dots(time_s: Floats, candidate: Floats, track: int, unit: str) -> list[Figure]:
    """Hollow dots at values that were computed and then refused."""
    keep = thin(candidate)
    keep = keep[np.isfinite(candidate[keep])]
    if not len(keep):
        return []
    few = len(keep) <= 60
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": _list(time_s[keep], 3),
            "y": _samples(candidate[keep]),
            "marker": {
                "symbol": "circle-open",
                "size": 5.5 if few else 3.5,
                "color": f"{_token(track)}/{0.75 if few else 0.4}",
                "line": {"width": 1.2 if few else 0.8},
            },
            "hovertemplate": f"%{{y:.1f}} {unit} at %{{x:.1f}} s, refused"
            f"<extra>{person_name(track)}</extra>",
        }
    ]


def _limits(values: Floats, least: float) -> tuple[float, float]:
    """Axis range around the finite values, at least `least` wide, with 8 % of air."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, max(least, 1.0)
    low, high = float(finite.min()), float(finite.max())
    middle, half = (low + high) / 2, max((high - low) / 2 * 1.16, least / 2)
    return middle - half, middle + half


def rate_panel(
    timeline: Timeline,
    signal: str,
    duration_s: float,
    refusals: Sequence[Refusal],
    *,
    title: str,
    unit: str,
    least: float,
    height: int,
) -> Panel:
    """A rate of everyone in view, with confidence band and refused spans.

    ``x_bpm`` brings its companions ``x_low_bpm``, ``x_high_bpm`` (band) and ``x_candidate_bpm``
    (the value that was refused: shown as hollow dots only where ``x_bpm`` is NaN) when the
    timeline has them. One person: refused spans are hatched over the whole height. Several
    people: each has a lane of their own below the curves.

    Parameters
    ----------
    least
        Smallest height of the y axis in `unit`, so that noise does not look like change.
    height
        Pixels, without the lanes of refused spans.
    """
    stem = signal.removesuffix("_bpm")
    tracks = sorted(
        int(t) for t in timeline.frame.filter(timeline.frame["signal"] == signal)["track"].unique()
    )
    curves: list[Figure] = []
    behind: list[Figure] = []
    dots: list[Figure] = []
    spans: dict[int, list[tuple[float, float, str]]] = {}
    readouts: list[tuple[int, float]] = []
    extremes: list[Floats] = []
    candidates: list[Floats] = []
    sentences = []
    thinned = False
    for track in tracks:
        time_s, value, _ = timeline.select(signal, track)
        sides = []
        for part in ("low", "high"):
            t, v, _ = timeline.select(f"{stem}_{part}_bpm", track)
            sides.append(v if np.array_equal(t, time_s) else np.full_like(value, np.nan))
        low, high = sides
        band = np.isfinite(low) & np.isfinite(high) & np.isfinite(value)
        low, high = np.where(band, low, np.nan), np.where(band, high, np.nan)
        half = _period(time_s) / 2
        spans[track] = _refused_spans(refusals, track, time_s, value, duration_s)
        extremes.append(value)
        if band.any():  # a few very unsure readings must not flatten the curve
            extremes.append(np.nanpercentile(np.concatenate([low, high]), [2, 98]))
        t, candidate, _ = timeline.select(f"{stem}_candidate_bpm", track)
        if np.array_equal(t, time_s):
            candidates.append(np.where(np.isfinite(value), np.nan, candidate))
            dots += _refused_dots(time_s, candidates[-1], track, unit)
        sentences.append(_rate_sentence(value, track, unit))
        time_s, value, low, high = _broken(time_s, value, low, high)
        keep = thin(np.stack([value, low, high]))
        thinned |= len(keep) < len(value)
        if np.isfinite(low).any():
            behind.append(_band(time_s[keep], low[keep], high[keep], track, half))
        curve = _line(time_s[keep], value[keep], track, 1, unit, width=2.4)
        readouts.append((len(curves), 3 * half))
        curves.append(curve)
        dots += _lone(time_s[keep], value[keep], track)
    every = np.concatenate(extremes) if extremes else np.empty(0)
    if candidates:
        refused = np.concatenate(candidates)
        if np.isfinite(every).any():  # wild ones stay outside, or the curve would lie flat
            near = (refused > np.nanmin(every) - least) & (refused < np.nanmax(every) + least)
            refused = refused[near]
        every = np.concatenate([every, refused])
    bottom, top = _limits(every, least)
    layout = _axis_layout(duration_s)
    layout["yaxis"]["range"] = [round(bottom, 2), round(top, 2)]
    hatching: list[Figure] = []
    if len(tracks) == 1:
        hatching = _hatching(spans[tracks[0]], tracks[0], round(bottom, 2), round(top, 2), "y")
    elif any(spans.values()):
        lanes = [track for track in tracks if spans[track]]
        for row, track in enumerate(reversed(lanes)):
            hatching += _hatching(spans[track], track, row + 0.12, row + 0.88, "y2")
        lane_px = min(18, 90 // len(lanes))
        height += lane_px * len(lanes)
        share = lane_px * len(lanes) / (height - _MARGIN["t"] - _MARGIN["b"])
        layout["yaxis"]["domain"] = [round(share + 0.03, 4), 1]
        layout["yaxis2"] = {
            "domain": [0, round(share, 4)],
            "range": [0, len(lanes)],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
            "tickvals": [row + 0.5 for row in range(len(lanes))],
            "ticktext": [_lane_name(track) for track in reversed(lanes)],
            "ticks": "",
            "anchor": "x",
        }
        layout["xaxis"]["anchor"] = "y2"
    front = [*hatching, *behind]
    note = ""
    if any(spans.values()):
        note = "Hatched: nothing is reported there; point at it for the reason."
        if any(np.isfinite(c).any() for c in candidates):
            note = "Hatched: refused, with the reason on hover. Hollow dots: the refused values."
    return Panel(
        title=title,
        unit=unit,
        description=" ".join(sentences),
        figure={"data": [*front, *curves, *dots], "layout": layout},
        height=height,
        readouts=[
            _readout(len(front) + trace, track, 1, unit, reach)
            for (trace, reach), track in zip(readouts, tracks, strict=True)
        ],
        note=note,
        thinned=thinned,
    )


def _rate_sentence(value: Floats, track: int, unit: str) -> str:
    finite = value[np.isfinite(value)]
    if not len(finite):
        return f"{person_name(track)}: nothing was reported."
    share = 100 * (1 - len(finite) / len(value))
    return (
        f"{person_name(track)}: median {number(float(np.median(finite)))} {unit}, "
        f"between {number(float(finite.min()))} and {number(float(finite.max()))}"
        + (f"; {share:.0f} % of the readings were refused." if share >= 0.5 else ".")
    )


def _readout(trace: int, track: int, digits: int, unit: str, reach_s: float) -> dict[str, Any]:
    return {
        "trace": trace,
        "name": person_name(track),
        "color": _token(track),
        "digits": digits,
        "unit": unit,
        "reach_s": round(max(reach_s, 0.05), 3),
    }


def wave_panel(timeline: Timeline, signal: str, track: int, duration_s: float, title: str) -> Panel:
    """A waveform of one person without unit, drawn thin and without labels on its y axis."""
    time_s, value = _broken(*timeline.select(signal, track)[:2])
    keep = thin(value)
    layout = _axis_layout(duration_s)
    layout["yaxis"] |= {"range": list(_limits(value, 1e-9)), "showticklabels": False, "nticks": 3}
    curve = _line(time_s[keep], value[keep], track, 2, "", width=1.4)
    curve["mode"] = "lines"
    return Panel(
        title=title,
        unit="",
        description=f"{person_name(track)}: waveform from {clock(_first(time_s))} "
        f"to {clock(_last(time_s))}.",
        figure={"data": [curve, *_lone(time_s[keep], value[keep], track)], "layout": layout},
        height=140,
        note="So long that only its envelope is drawn; every sample is in signals.parquet."
        if len(keep) < len(value) / 8
        else "",
        thinned=len(keep) < len(value),
    )


def _first(time_s: Floats) -> float | None:
    return float(time_s[0]) if len(time_s) else None


def _last(time_s: Floats) -> float | None:
    return float(time_s[-1]) if len(time_s) else None


def signal_panel(timeline: Timeline, signal: str, duration_s: float) -> Panel:
    """Any signal at all, everyone in one small plot; the unit is read off the name's ending."""
    ending = signal.rpartition("_")[2].lower() if "_" in signal else ""
    unit = _UNITS.get(ending, "")
    title = _TITLES.get(signal)
    if title is None:
        words = signal.partition(".")[2] or signal
        words = words[: -len(ending) - 1] if unit else words
        words = words.replace("_", " ").strip() or signal
        title = words[0].upper() + words[1:]
    curves: list[Figure] = []
    lone: list[Figure] = []
    readouts = []
    sentences = []
    values = []
    thinned = False
    rows = timeline.frame.filter(timeline.frame["signal"] == signal)
    for track in sorted(int(t) for t in rows["track"].unique()):
        time_s, value = _broken(*timeline.select(signal, track)[:2])
        value = np.where(np.isfinite(value), value, np.nan)
        keep = thin(value)
        thinned |= len(keep) < len(value)
        readouts.append(_readout(len(curves), track, 2, unit, 3 * _period(time_s)))
        curves.append(_line(time_s[keep], value[keep], track, 2, unit, width=1.4))
        lone += _lone(time_s[keep], value[keep], track)
        values.append(value)
        finite = value[np.isfinite(value)]
        if len(finite):
            low, high = number(float(finite.min()), 2), number(float(finite.max()), 2)
            sentences.append(f"{person_name(track)}: between {low} and {high}.")
    layout = _axis_layout(duration_s)
    layout["yaxis"] |= {"range": list(_limits(np.concatenate(values), 1e-9)), "nticks": 3}
    return Panel(
        title=title,
        unit=unit,
        description=" ".join(sentences) or "No sample.",
        figure={"data": [*curves, *lone], "layout": layout},
        height=130,
        readouts=readouts,
        size="small",
        thinned=thinned,
    )


def presence_panel(spans: dict[int, list[tuple[float, float]]], duration_s: float) -> Panel:
    """Who is in view when: one lane per person, one bar per span of seconds."""
    tracks = sorted(spans, reverse=True)  # plotly counts rows from below
    bars = []
    sentences: list[str] = []
    for row, track in enumerate(tracks):
        pieces = [(a, b) for a, b in spans[track] if b > a]
        total = sum(b - a for a, b in pieces)
        sentences.insert(0, f"{person_name(track)}: {number(total)} s in view.")
        bars.append(
            {
                "type": "bar",
                "orientation": "h",
                "base": [round(a, 3) for a, _ in pieces],
                "x": [round(b - a, 3) for a, b in pieces],
                "y": [row] * len(pieces),
                "width": 0.56,
                "marker": {"color": f"{_token(track)}/0.85", "line": {"width": 0}},
                "text": [f"{clock(a)} to {clock(b)}" for a, b in pieces],
                "textposition": "none",
                "hovertemplate": f"%{{text}}<extra>{person_name(track)}</extra>",
            }
        )
    layout = _axis_layout(duration_s)
    layout["margin"] |= {"t": 2}
    layout["barmode"] = "overlay"
    layout["yaxis"] |= {
        "range": [-0.55, len(tracks) - 0.45],
        "tickvals": list(range(len(tracks))),
        "ticktext": [_lane_name(track) for track in tracks],
        "showgrid": False,
    }
    return Panel(
        title="In view",
        unit="",
        description=" ".join(sentences),
        figure={"data": bars, "layout": layout},
        height=_MARGIN["b"] + 8 + 24 * len(tracks),
    )


def panel_sections(
    timeline: Timeline, duration_s: float, refusals: Sequence[Refusal]
) -> list[Section]:
    """Everything that the timeline holds, the readings people come for first.

    Heart rate, pulse wave and breathing have figures of their own; any other signal gets a small
    one, grouped by the first part of its name, so that a new analyser shows up by itself.
    """
    signals = timeline.signals
    sections = []
    if _RATE in signals:
        mine = [r for r in refusals if "heart" in r.what.lower() and "variab" not in r.what.lower()]
        panel = rate_panel(
            timeline, _RATE, duration_s, mine, title="Heart rate", unit="bpm", least=16, height=250
        )
        sections.append(Section("Heart rate", [panel]))
    if _WAVE in signals:
        rows = timeline.frame.filter(timeline.frame["signal"] == _WAVE)
        tracks = sorted(int(t) for t in rows["track"].unique())
        titles = ["Pulse wave"] if len(tracks) == 1 else [person_name(t) for t in tracks]
        panels = [
            wave_panel(timeline, _WAVE, track, duration_s, title)
            for track, title in zip(tracks, titles, strict=True)
        ]
        sections.append(Section("Pulse wave", panels))
    if _BREATHS in signals:
        mine = [r for r in refusals if "resp" in r.what.lower() or "breath" in r.what.lower()]
        panel = rate_panel(
            timeline,
            _BREATHS,
            duration_s,
            mine,
            title="Breathing",
            unit="per minute",
            least=8,
            height=170,
        )
        sections.append(Section("Breathing", [panel]))
    own = _RATE_PARTS | {_WAVE, _BREATHS, _VISIBLE}
    own |= {f"respiration.rate_{part}_bpm" for part in ("low", "high", "candidate")}
    groups: dict[str, list[Panel]] = {}
    for signal in (s for s in signals if s not in own):
        group = signal.partition(".")[0]
        groups.setdefault(group, []).append(signal_panel(timeline, signal, duration_s))
    for group, panels in groups.items():
        title = _GROUPS.get(group) or group.replace("_", " ").capitalize() or "Other signals"
        sections.append(Section(title, panels))
    return sections
