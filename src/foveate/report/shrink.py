"""The page of ``foveate shrink``: what few bits cost and gain, and which file to take.

:class:`ShrinkReport` turns the run's summary (the content of ``summary.json``) into what the
template shows; :func:`write_shrink_page` writes the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.report.page import number, write_page
from foveate.report.shrink_plots import OwnPanel, milliseconds, pareto_panel, profile_panel

__all__ = ["ShrinkReport", "cpp_snippet", "python_snippet", "write_shrink_page"]

MINUS = "\u2212"


@dataclass(frozen=True, slots=True)
class Row:
    """One contender as the table shows it; all texts are plain."""

    what: str
    own: bool
    chosen: bool
    pareto: bool
    accuracy: str
    points: str
    lost: bool
    one: str
    many: str
    times_float: str
    times_int8: str
    size: str
    least: str
    energy: str
    file: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer and its bits in every width."""

    path: str
    was: str
    bits: list[str]
    kept: bool
    note: str


@dataclass(frozen=True, slots=True)
class ShrinkReport:
    """What the template of the page shows; all strings are plain text."""

    name: str
    headline: str
    lead: str
    facts: list[str]
    tiles: list[tuple[str, str, str, str]]
    file: str
    reason: str
    rows: list[Row]
    threads: int
    has_int8: bool
    pareto: OwnPanel
    profiles: list[OwnPanel]
    widths: list[str]
    layers: list[Layer]
    python: str
    cpp: str
    method: list[tuple[str, str]]
    energy: str
    notes: list[str]
    settings_rows: list[tuple[str, str]]
    machine_rows: list[tuple[str, str]]
    files: list[tuple[str, str]]
    version: str

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> ShrinkReport:
        """Read a run's summary."""
        rows, verdict = summary["rows"], summary["verdict"]
        network, data, machine = summary["network"], summary["data"], summary["machine"]
        base = rows[0]
        int8 = next((row for row in rows if row["name"] == "ort-int8"), None)
        chosen = next((row for row in rows if row["name"] == verdict["row"]), None)
        nearest = next(row for row in rows if row["name"] == verdict["nearest"])
        threads = int(machine["threads"])
        file = str(nearest["file"])
        headline, lead = _sentences(str(network["name"]), base, int8, chosen, nearest, verdict)
        return cls(
            name=str(network["name"]),
            headline=headline,
            lead=lead,
            facts=[
                f"{number(network['parameters'] / 1e6, 2)} M parameters",
                f"{_count(network['macs'])} multiply-adds",
                f"{data['source']}, {number(data['held_out'], 0)} held-out pictures",
                f"{machine['processor']}",
            ],
            tiles=_tiles(base, int8, nearest),
            file=file,
            reason=str(verdict["reason"]),
            rows=[_row(row, base, verdict["row"], threads) for row in rows],
            threads=threads,
            has_int8=int8 is not None,
            pareto=pareto_panel(rows, float(verdict["tolerance"])),
            profiles=_profiles(summary["profiles"]),
            widths=list(summary["layers"]),
            layers=_layers(summary["layers"]),
            python=python_snippet(file, network, threads),
            cpp=cpp_snippet(file, network),
            method=_method(summary),
            energy=str(summary["energy"]),
            notes=[str(note) for note in summary["notes"]],
            settings_rows=_table(summary["settings"]),
            machine_rows=_table(machine),
            files=[
                (str(row["file"]), f"{row['what'].removeprefix('foveate ')}, for the engine")
                for row in rows
                if row["file"]
            ],
            version=str(summary["foveate"]),
        )


def write_shrink_page(path: Path, summary: Mapping[str, Any]) -> Path:
    """Write the report of one run as a single HTML file.

    Parameters
    ----------
    path
        The page; written whole or not at all.
    summary
        Content of ``summary.json``.
    """
    report = ShrinkReport.of(summary)
    panels = [report.pareto, *report.profiles]
    return write_page(
        Path(path),
        "shrink.html.j2",
        {
            "page_title": f"{report.name} · foveate shrink",
            "command": "shrink",
            "version": report.version,
            "medical": "",
            "report": report,
            "panel_number": {id(panel): i for i, panel in enumerate(panels)},
            "identity": id,
        },
        styles=["shrink.css"],
        scripts=["shrink.js"],
        data={
            "panels": [
                {key: value for key, value in asdict(panel).items() if key in _DRAWN}
                for panel in panels
            ]
        },
    )


_DRAWN = {"figure", "height", "own_axes"}


def python_snippet(file: str, network: Mapping[str, Any], threads: int) -> str:
    """Python that loads a file and classifies pictures."""
    channels, height, width = network["input"]
    mean, std = (_constants(network[key], channels) for key in ("mean", "std"))
    return f"""import numpy as np
from foveate.engine import PackedModel

model = PackedModel.load({file!r})
mean = np.array({mean}, np.float32).reshape(-1, 1, 1)
std = np.array({std}, np.float32).reshape(-1, 1, 1)

# pictures: uint8 (N, {channels}, {height}, {width})
x = (pictures.astype(np.float32) / 255 - mean) / std
labels = model.run(x, threads={threads}).argmax(1)"""


def cpp_snippet(file: str, network: Mapping[str, Any]) -> str:
    """C++ that does the same for one picture, with the headers of ``native/``."""
    channels, height, width = network["input"]
    mean, std = (", ".join(map(_float, network[key])) for key in ("mean", "std"))
    quoted = file.replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?")
    return f"""#include <algorithm>
#include <cstdint>
#include <vector>

#include "model.hpp"
#include "model_file.hpp"

// pixels: {channels} planes of {height} x {width}
std::ptrdiff_t classify(const std::uint8_t* pixels) {{
    static foveate::Model model(foveate::ModelFile::open("{quoted}"));
    const float mean[] = {{{mean}}};
    const float deviation[] = {{{std}}};
    std::vector<float> x({channels} * {height} * {width});
    for (std::size_t i = 0; i < x.size(); ++i) {{
        const std::size_t plane = i / ({height} * {width});
        x[i] = (static_cast<float>(pixels[i]) / 255.0F - mean[plane]) / deviation[plane];
    }}
    const auto outputs = model.run(x.data(), 1, {{{channels}, {height}, {width}}}, 1);
    const float* scores = outputs[0].values.get();
    return std::max_element(scores, scores + outputs[0].shape.channels) - scores;
}}"""


def _constants(values: Sequence[float], channels: int) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values[:channels]) + "]"


def _float(value: float) -> str:
    """A number as C++ reads a float."""
    text = f"{value:g}"
    return (text if "." in text or "e" in text else text + ".0") + "F"


# ------------------------------------------------------------------------------ words


def _sentences(
    name: str,
    base: Mapping[str, Any],
    int8: Mapping[str, Any] | None,
    chosen: Mapping[str, Any] | None,
    nearest: Mapping[str, Any],
    verdict: Mapping[str, Any],
) -> tuple[str, str]:
    """The headline, and the sentence below it."""
    row = chosen or nearest
    points = _points_words(float(row["points"]))
    bits = str(row["what"]).removeprefix("foveate ")
    if chosen is None:
        headline = (
            f"No width of {name} stays within {verdict['tolerance']:g} points: "
            f"{bits} comes nearest, {points}"
        )
    else:
        smaller = float(base["bytes"]) / float(row["bytes"])
        headline = (
            f"{name} in {bits} form: {number(row['times_float'])} times as fast as PyTorch, "
            f"{number(smaller)} times smaller, {points}"
        )
    if int8 is None:
        return headline, "ONNX Runtime is not installed, so its int8 form was not measured."
    ratio = float(row["times_int8"])
    other = f"ONNX Runtime int8 ({number(100 * int8['accuracy'])} %) on the same thread"
    if ratio >= 1:
        return headline, f"It takes {number(1 / ratio, 2)} of the time of {other}, same run."
    return headline, f"It takes {number(1 / ratio, 2)} times as long as {other}, same run."


def _points_words(points: float) -> str:
    if abs(points) < 0.05:
        return "as accurate"
    word = "more" if points > 0 else "less"
    return f"{number(abs(points))} points {word} accurate"


def _tiles(
    base: Mapping[str, Any], int8: Mapping[str, Any] | None, row: Mapping[str, Any]
) -> list[tuple[str, str, str, str]]:
    """``(name, number, unit, remark)``."""
    tiles = [
        (
            "Accuracy",
            number(100 * row["accuracy"]),
            "%",
            f"{_signed(row['points'])} points against {number(100 * base['accuracy'])} % in float",
        ),
        (
            "One picture, one thread",
            milliseconds(row["ms"]["1"]),
            "ms",
            f"PyTorch {milliseconds(base['ms']['1'])} ms"
            + (f", int8 elsewhere {milliseconds(int8['ms']['1'])} ms" if int8 else ""),
        ),
        ("File", *_bytes(row["bytes"]), f"{' '.join(_bytes(base['bytes']))} as float weights"),
        ("Energy", *_joules(row["energy_uj"]), "an estimate; float "
         + " ".join(_joules(base["energy_uj"]))),
    ]  # fmt: skip
    return tiles


def _row(row: Mapping[str, Any], base: Mapping[str, Any], chosen: str | None, threads: int) -> Row:
    first = row is base
    int8 = row["times_int8"]
    return Row(
        what=str(row["what"]),
        own=bool(row["file"]),
        chosen=row["name"] == chosen,
        pareto=bool(row["pareto"]),
        accuracy=number(100 * row["accuracy"]),
        points="" if first else _signed(row["points"]),
        lost=row["points"] < -0.05,
        one=milliseconds(row["ms"]["1"]),
        many=milliseconds(row["ms"].get(str(threads))),
        times_float="" if first else number(row["times_float"]),
        times_int8="" if int8 is None or row["name"] == "ort-int8" else number(int8, 2),
        size=" ".join(_bytes(row["bytes"])),
        least=" ".join(_bytes(row["packed_bytes"])) if row["packed_bytes"] else "",
        energy=" ".join(_joules(row["energy_uj"])),
        file=str(row["file"] or ""),
    )


def _signed(points: float) -> str:
    if abs(points) < 0.05:
        return "±0.0"
    return ("+" if points > 0 else MINUS) + number(abs(points))


def _bytes(size: float) -> tuple[str, str]:
    """Number and unit, decimal."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return number(size / limit, 1 if size < 100 * limit else 0), unit
    return number(size, 0), "B"


def _joules(micro: float) -> tuple[str, str]:
    for limit, unit in ((1e3, "mJ"), (1.0, "µJ")):
        if micro >= limit:
            return number(micro / limit, 1 if micro < 100 * limit else 0), unit
    return number(1e3 * micro, 0), "nJ"


def _count(macs: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if macs >= limit:
            return f"{number(macs / limit)} {unit}"
    return number(macs, 0)


def _profiles(profiles: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[OwnPanel]:
    longest = max((float(node["us"]) for nodes in profiles.values() for node in nodes), default=1.0)
    panels = []
    for name, nodes in profiles.items():
        total = sum(float(node["us"]) for node in nodes)
        title = f"{_width(name)}: {milliseconds(total / 1e3)} ms"
        panels.append(profile_panel(title, nodes, longest))
    return panels


def _width(name: str) -> str:
    """``w2a2`` in words."""
    weights, _, acts = name.removeprefix("w").partition("a")
    return f"{weights}-bit" if weights == acts else f"{weights}-bit weights, {acts}-bit activations"


def _layers(layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Layer]:
    """Every layer once, with its bits in each width."""
    by_path: dict[str, dict[str, Mapping[str, Any]]] = {}
    for width, changes in layers.items():
        for change in changes:
            by_path.setdefault(str(change["path"]), {})[width] = change
    found = []
    for path, changes_of in by_path.items():
        first = next(iter(changes_of.values()))
        gone = first["now"] == "Identity"
        notes = dict.fromkeys(str(c["note"]) for c in changes_of.values() if c["note"])
        found.append(
            Layer(
                path=path,
                was=str(first["was"]),
                bits=[_bits(changes_of.get(width)) for width in layers],
                kept=not gone and first["was"] == first["now"],
                note="; ".join(notes) or ("" if gone else "quantised"),
            )
        )
    return found


def _bits(change: Mapping[str, Any] | None) -> str:
    if change is None or change["now"] == "Identity":
        return ""
    weights, acts = change["bits"]
    return "float" if weights == acts == 32 else "/".join(
        "float" if bits == 32 else str(bits) for bits in (weights, acts)
    )  # fmt: skip


def _method(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How each column came about."""
    rows, data, settings = summary["rows"], summary["data"], summary["settings"]
    machine = summary["machine"]
    count = int(data["held_out"])
    share = float(rows[0]["accuracy"])
    error = 100 * math.sqrt(max(share * (1 - share), 1e-9) / count)
    own = [row for row in rows if row["checked"]]
    same, looked = (sum(row["checked"][key] for row in own) for key in ("same", "pictures"))
    trained = (
        "Steps were set from training pictures; nothing was trained."
        if settings["method"] == "post-training" or not settings["epochs"]
        else f"Each width was trained for {settings['epochs']} epochs on "
        f"{number(data['train'], 0)} pictures ({settings['method']}), taught by the float network."
    )
    several = f", wall time on {machine['threads']}" if machine["threads"] > 1 else ""
    found = [
        (
            "Accuracy",
            f"On {number(count, 0)} held-out pictures that no training saw; standard error about "
            f"{number(error)} points. Few-bit rows are what the engine answered. {trained}",
        ),
        (
            "Same answers",
            f"The engine and PyTorch agreed in {number(same, 0)} of {number(looked, 0)} "
            "predictions compared, over all widths.",
        ),
        (
            "Time",
            f"One picture at a time. All contenders took turns in one run, {settings['rounds']} "
            f"rounds; the 10th percentile is shown: CPU time on one thread{several}. Calls from "
            "Python, which all contenders pay for. PyTorch runs eagerly in channels_last.",
        ),
        (
            "Size",
            "Of the files; for PyTorch, 4 bytes for every parameter. Below it what the weights "
            "take at least: their bits, and 4 bytes for every scale and float weight.",
        ),
    ]
    if any(row["name"] == "ort-int8" for row in rows):
        found.append(
            (
                "ONNX Runtime",
                f"Version {machine['onnxruntime']}; int8 by static quantisation (QDQ) with a step "
                "per channel, calibrated on the same training pictures as the few-bit networks.",
            )
        )
    return found


def _table(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " "), _value(value)) for key, value in values.items()]


def _value(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
