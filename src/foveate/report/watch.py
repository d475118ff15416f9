"""The page of ``foveate watch``: who was there, what their bodies said, and what was refused.

:class:`WatchReport` turns the run's summary (a JSON-like dictionary, read tolerantly: a missing or
odd entry is an empty place on the page, never an error) and its :class:`Timeline` into what the
template shows; :func:`write_watch_page` writes the file.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.report.page import (
    PERSON_COLOURS,
    clock,
    image_data_uri,
    number,
    page_video,
    person_name,
    write_page,
)
from foveate.report.plots import (
    Panel,
    Refusal,
    Section,
    in_view,
    panel_sections,
    presence_panel,
)
from foveate.streams.timeline import Timeline

__all__ = ["Person", "Reading", "WatchReport", "write_watch_page"]

_REFUSALS_SHOWN = 200
_LANES_BESIDE_VIDEO = 8

_HRV_NAMES = {
    "rmssd_ms": ("RMSSD", "ms"),
    "sdnn_ms": ("SDNN", "ms"),
    "mean_nn_ms": ("Mean NN", "ms"),
    "mean_rr_ms": ("Mean RR", "ms"),
    "mean_ibi_ms": ("Mean IBI", "ms"),
    "sdsd_ms": ("SDSD", "ms"),
    "pnn50": ("pNN50", ""),
    "pnn50_percent": ("pNN50", "%"),
    "pnn20": ("pNN20", ""),
    "pnn20_percent": ("pNN20", "%"),
    "sd1_ms": ("SD1", "ms"),
    "sd2_ms": ("SD2", "ms"),
    "lf_hf": ("LF/HF", ""),
    "beats": ("Beats", ""),
}
_UNIT_ENDINGS = {"ms": "ms", "s": "s", "hz": "Hz", "bpm": "bpm", "percent": "%", "ms2": "ms²"}


@dataclass(frozen=True, slots=True)
class Reading:
    """One number about a person, or why there is none.

    Attributes
    ----------
    value, low, high
        Estimate and confidence interval; None when refused or unknown.
    confidence
        0 .. 1, or None.
    words
        The confidence in words.
    reason
        Why there is no value; empty when there is one.
    facts
        Further ``(name, text)`` pairs.
    """

    value: float | None
    low: float | None
    high: float | None
    confidence: float | None
    words: str
    reason: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Person:
    """Everything the page says about one track."""

    track: int
    colour: int
    name: str
    seen: str
    heart_rate: Reading
    respiration: Reading | None
    hrv: list[tuple[str, str, str]]
    hrv_reason: str


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What the template of the page shows; all strings are plain text."""

    title: str
    facts: list[str]
    simulated: bool
    simulation_note: str
    duration_s: float
    people: list[Person]
    presence: Panel | None
    sections: list[Section]
    refusals: list[tuple[Refusal, str]]
    refusals_hidden: int
    compute_tiles: list[tuple[str, str, str]]
    frame_shares: list[tuple[str, int, float]]
    policy: str
    source_rows: list[tuple[str, str]]
    settings_rows: list[tuple[str, str]]
    notes: list[str]
    version: str
    medical: str

    @classmethod
    def of(cls, summary: Mapping[str, Any], timeline: Timeline) -> WatchReport:
        """Read a run's summary and timeline."""
        source = _map(summary.get("source"))
        last = timeline.frame["time_s"].max() if len(timeline) else 0.0
        # a cursor must be able to reach every sample, whatever the container said
        duration_s = max(_float(source.get("duration_s")) or 0.0, _float(last) or 0.0, 0.1)
        listed = [_map(entry) for entry in _list(summary.get("people"))]
        by_track = {int(t): p for p in listed if (t := _float(p.get("track"))) is not None}
        tracks = sorted({*by_track, *timeline.tracks})
        spans = {}
        for track in tracks:
            time_s, value, _ = timeline.select("face.visible", track)
            entry = by_track.get(track, {})
            seen_from, seen_to = _float(entry.get("seen_from_s")), _float(entry.get("seen_to_s"))
            if len(time_s):
                spans[track] = in_view(time_s, value)
            elif seen_from is not None and seen_to is not None:
                spans[track] = [(seen_from, seen_to)]
            else:
                spans[track] = []
        refusals = _refusals(summary)
        shown = refusals[:_REFUSALS_SHOWN]
        tiles, shares = _compute(_map(summary.get("compute")), _float(source.get("frames")))
        return cls(
            title=_text(source.get("name")) or "Untitled video",
            facts=_source_facts(source),
            simulated=bool(summary.get("simulated")),
            simulation_note=_text(summary.get("simulation_note")),
            duration_s=duration_s,
            people=[_person(t, by_track.get(t, {}), spans[t], duration_s) for t in tracks],
            presence=presence_panel(spans, duration_s) if any(spans.values()) else None,
            sections=panel_sections(timeline, duration_s, refusals),
            refusals=[(r, person_name(r.track)) for r in shown],
            refusals_hidden=len(refusals) - len(shown),
            compute_tiles=tiles,
            frame_shares=shares,
            policy=_text(_map(summary.get("compute")).get("policy")),
            source_rows=[(_words(k), _value(v)) for k, v in source.items()],
            settings_rows=[(_words(k), _value(v)) for k, v in _settings(summary)],
            notes=[text for note in _list(summary.get("notes")) if (text := _text(note))],
            version=_text(summary.get("foveate")),
            medical=_text(summary.get("medical")) or "not a medical device",
        )


def write_watch_page(
    path: Path,
    summary: Mapping[str, Any],
    timeline: Timeline,
    video: Path | None,
    poster: bytes | None,
) -> Path:
    """Write the report of one run as a single HTML file.

    Parameters
    ----------
    path
        The page; written whole or not at all.
    summary
        Facts of the run: ``source``, ``people``, ``refusals``, ``compute``, ``settings``,
        ``notes``, ``simulated``, ``simulation_note``, ``foveate``, ``medical``; all optional.
    timeline
        The signals; time zero is the video's first frame.
    video
        Annotated video (mp4, webm) or None. Up to 24 MB it goes into the page; a larger one
        must stay where it is relative to the page, and the page says so.
    poster
        JPEG, PNG or WebP: shown before the video plays, and instead of it on paper.

    Raises
    ------
    FoveateError
        The video is missing or no browser video; the poster is not an image; the folder is not
        writable.
    """
    path = Path(path)
    report = WatchReport.of(summary, timeline)
    shown = page_video(Path(video), path) if video is not None else None
    panels = [panel for section in report.sections for panel in section.panels]
    beside = report.presence is not None and len(report.people) <= _LANES_BESIDE_VIDEO
    if report.presence is not None:
        panels.append(report.presence)
    files = [
        (name, what, (path.parent / name).exists())
        for name, what in (
            ("signals.parquet", "every sample of every signal, with its quality"),
            ("annotated.mp4", "the video with boxes"),
            ("moments", "clips of the moments that stood out"),
            ("summary.json", "the facts of this page for programs"),
        )
    ]
    return write_page(
        path,
        "watch.html.j2",
        {
            "page_title": f"{report.title} · foveate watch",
            "command": "watch",
            "version": report.version,
            "medical": report.medical,
            "report": report,
            "video": shown,
            "poster": image_data_uri(poster) if poster else None,
            "panel_number": {id(panel): i for i, panel in enumerate(panels)},
            "identity": id,
            "lanes_beside_video": beside,
            "files": [f for f in files if f[2] or f[0] == "signals.parquet"],
            "thinned": any(panel.thinned for panel in panels),
        },
        styles=["watch.css"],
        scripts=["watch.js"],
        data={
            "duration_s": round(report.duration_s, 3),
            "panels": [
                {key: value for key, value in asdict(panel).items() if key in _DRAWN}
                for panel in panels
            ],
        },
        video=shown,
    )


_DRAWN = {"figure", "height", "readouts"}


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else []


def _float(value: object) -> float | None:
    """A finite number (numpy's included), or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _words(key: object) -> str:
    """``frames_per_s`` as ``frames per s``."""
    return str(key).replace("_", " ")


def _value(value: object) -> str:
    """One entry of a details table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)}: {_value(v)}" for k, v in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value) or "–"
    return str(value)


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(str(k), v) for k, v in _map(summary.get("settings")).items()]


def _source_facts(source: Mapping[str, Any]) -> list[str]:
    width, height = _float(source.get("width")), _float(source.get("height"))
    fps, duration = _float(source.get("fps")), _float(source.get("duration_s"))
    damaged = _float(source.get("damaged_frames")) or 0
    facts = []
    if width is not None and height is not None:
        facts.append(f"{width:.0f} × {height:.0f}")
    if fps is not None:
        facts.append(f"{fps:.4g} frames per second")
    if duration is not None:
        facts.append(clock(duration))
    if codec := _text(source.get("codec")):
        facts.append(codec)
    if damaged:
        facts.append(f"{damaged:.0f} damaged frame{'s' if damaged != 1 else ''} left out")
    return facts


def _confidence_words(confidence: float | None) -> str:
    if confidence is None:
        return "confidence unknown"
    for least, words in ((0.85, "high"), (0.6, "good"), (0.35, "moderate")):
        if confidence >= least:
            return f"{words} confidence"
    return "low confidence"


def _reading(entry: object, missing: str) -> Reading:
    """A reading of the summary; `missing` is the reason when it gives none."""
    fields = _map(entry)
    verdict = fields.get("accepted")
    accepted = verdict is None or bool(verdict)
    value = _float(fields.get("bpm")) if accepted else None
    confidence = _float(fields.get("confidence"))
    if confidence is not None:
        confidence = min(1.0, max(0.0, confidence))
    reason = "" if value is not None else _text(fields.get("reason")) or missing
    facts = []
    taken, total = _float(fields.get("windows_accepted")), _float(fields.get("windows_total"))
    if total:
        facts.append(("windows accepted", f"{taken or 0:.0f} of {total:.0f}"))
    snr = _float(fields.get("snr_db"))
    if snr is not None:
        facts.append(("signal-to-noise", f"{number(snr)} dB"))
    if method := _text(fields.get("method")):
        facts.append(("method", method.upper() if len(method) <= 5 else method))
    return Reading(
        value=value,
        low=_float(fields.get("low")) if value is not None else None,
        high=_float(fields.get("high")) if value is not None else None,
        confidence=confidence,
        words=_confidence_words(confidence),
        reason=reason,
        facts=facts,
    )


def _hrv(entry: object) -> tuple[list[tuple[str, str, str]], str]:
    """``(name, number, unit)`` of each metric, and why there is none."""
    fields = _map(entry)
    rows = []
    for key, value in _map(fields.get("metrics")).items():
        amount = _float(value)
        if amount is None:
            continue
        stem, _, ending = str(key).rpartition("_")
        unit = _UNIT_ENDINGS.get(ending.lower(), "") if stem else ""
        default = (_words(stem if unit else key), unit)
        name, unit = _HRV_NAMES.get(str(key).lower(), default)
        whole = abs(amount) >= 100 or float(amount).is_integer()
        rows.append((name, number(amount, 0 if whole else 1 if abs(amount) >= 1 else 2), unit))
    return rows, "" if rows else _text(fields.get("reason"))


def _person(
    track: int,
    entry: Mapping[str, Any],
    spans: Sequence[tuple[float, float]],
    duration_s: float,
) -> Person:
    visible = _float(entry.get("visible_s"))
    if visible is None and spans:
        visible = sum(b - a for a, b in spans)
    seen = f"in view {number(visible)} of {number(duration_s)} s" if visible is not None else ""
    hrv, hrv_reason = _hrv(entry.get("hrv"))
    return Person(
        track=track,
        colour=track % len(PERSON_COLOURS),
        name=person_name(track),
        seen=seen,
        heart_rate=_reading(entry.get("heart_rate"), "No heart rate was measured."),
        respiration=_reading(entry.get("respiration"), "Not measured.")
        if _map(entry.get("respiration"))
        else None,
        hrv=hrv,
        hrv_reason=hrv_reason,
    )


def _refusals(summary: Mapping[str, Any]) -> list[Refusal]:
    refusals = []
    for entry in map(_map, _list(summary.get("refusals"))):
        track = _float(entry.get("track"))
        refusals.append(
            Refusal(
                what=_text(entry.get("what")) or "reading",
                track=int(track) if track is not None else -1,
                from_s=_float(entry.get("from_s")),
                to_s=_float(entry.get("to_s")),
                reason=_text(entry.get("reason")) or "no reason recorded",
            )
        )
    return sorted(refusals, key=lambda r: (r.from_s is not None, r.from_s or 0.0, r.track))


def _compute(
    compute: Mapping[str, Any], source_frames: float | None
) -> tuple[list[tuple[str, str, str]], list[tuple[str, int, float]]]:
    """Tiles ``(name, number, unit)``, and shares ``(name, frames, percent)`` of the frames."""
    tiles = []
    for key, name, digits, unit in (
        ("wall_s", "time taken", 1, "s"),
        ("frames_per_s", "speed", 0, "frames/s"),
        ("realtime_factor", "against real time", 1, "×"),
    ):
        amount = _float(compute.get(key))
        if amount is not None:
            tiles.append((name, number(amount, digits), unit))
    decoded = _float(compute.get("frames_decoded")) or source_frames or 0.0
    detected = _float(compute.get("frames_detected"))
    interpolated = _float(compute.get("frames_interpolated")) or 0.0
    if not decoded or detected is None:
        return tiles, []
    detected = min(max(detected, 0.0), decoded)
    interpolated = min(max(interpolated, 0.0), decoded - detected)
    parts = (
        ("looked for faces", detected),
        ("position carried over", interpolated),
        ("only decoded", decoded - detected - interpolated),
    )
    return tiles, [(name, round(n), 100 * n / decoded) for name, n in parts if round(n)]
