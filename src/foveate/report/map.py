"""The page of ``foveate map``: the scene, its map, where it is unsure, and how far to trust it.

:func:`write_map_page` turns a run's summary (the content of ``summary.json``) and its rasters into
one file. The figure in the headline is the accuracy on blocks that lie apart from the training
labels; the figure of the random split stands beside it and is called optimistic.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from foveate.datasets.polarimetry import pauli_rgb
from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.report.page import image_data_uri, number, write_page

__all__ = ["MapReport", "Rasters", "false_colour", "result_lines", "write_map_page"]

Picture = npt.NDArray[np.uint8]
LONGEST = 1000  # pixels of the longer side of a picture on the page

_KINDS = {"rgb": "colour picture", "hyperspectral": "hyperspectral", "polsar": "PolSAR"}
_SPLITS = {
    "disjoint": ("blocks apart", "what a new place has"),
    "baseline": ("blocks apart", "a classical baseline on the same labels"),
    "random": ("random pixels", "optimistic: test pixels lie beside training pixels"),
}


class Rasters(Protocol):
    """What the page reads of a finished map."""

    shape: tuple[int, int]

    def thinned(self, what: Any, longest: int = ...) -> Picture:
        """Every n-th pixel of ``codes`` or ``confidence``."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the accuracy table."""

    key: str
    title: str
    split: str
    remark: str
    train: str
    test: str
    figures: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One line of the table of classes; texts."""

    name: str
    colour: str
    labels: str
    share: str
    recall: str
    precision: str
    confidence: str
    why: str


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows are the truth, in percent of the row; a cell is ``(text, tint 0..1, on diagonal)``."""

    names: list[str]
    rows: list[tuple[str, str, list[tuple[str, float, bool]]]]


@dataclass(frozen=True, slots=True)
class MapReport:
    """What the template shows; all strings are plain text."""

    name: str
    headline: str
    lead: str
    facts: list[str]
    tiles: list[tuple[str, str, str, str]]
    pictures: list[tuple[str, str, str, str]]
    legend: list[tuple[str, str]]
    rows: list[Row]
    classes: list[ClassRow]
    confusion: Confusion | None
    leakage: list[str]
    files: list[tuple[str, str]]
    how: list[tuple[str, str]]
    notes: list[str]
    python: str
    settings_rows: list[tuple[str, str]]
    machine_rows: list[tuple[str, str]]
    version: str

    @classmethod
    def of(
        cls, summary: Mapping[str, Any], pictures: Sequence[tuple[str, str, str, str]]
    ) -> MapReport:
        """Read a run's summary."""
        scene, found = summary["scene"], summary["estimate"]
        headline, lead = _sentences(summary)
        names = {str(one["code"]): str(one["name"]) for one in summary["classes"]}
        return cls(
            name=str(scene["name"]),
            headline=headline,
            lead=lead,
            facts=[
                f"{number(scene['height'], 0)} × {number(scene['width'], 0)} pixels",
                f"{len(scene['bands'])} channels, {_KINDS[scene['kind']]}",
                f"{len(summary['classes'])} classes",
                f"{number(summary['labels']['used'], 0)} of "
                f"{number(summary['labels']['pixels'], 0)} labels used",
                f"{summary['title']}",
            ],
            tiles=_tiles(summary),
            pictures=list(pictures),
            legend=[(str(one["name"]), str(one["colour"])) for one in summary["classes"]],
            rows=_rows(found),
            classes=_classes(summary),
            confusion=_confusion(found, names),
            leakage=_leakage(summary),
            files=_files(summary),
            how=_how(summary),
            notes=[str(note) for note in summary["notes"]],
            python=python_snippet(summary),
            settings_rows=[(str(k), _shown(v)) for k, v in summary["settings"].items()],
            machine_rows=[
                (str(k), _shown(v))
                for k, v in {
                    **summary["machine"], "seconds since the last start": summary["seconds"]
                }.items()
            ],
            version=str(summary["foveate"]),
        )  # fmt: skip


def write_map_page(
    path: Path,
    summary: Mapping[str, Any],
    scene: Scene,
    labels: SceneLabels,
    rasters: Rasters,
) -> Path:
    """Write the report of one run as a single HTML file.

    Parameters
    ----------
    path
        The page; written whole or not at all.
    summary
        Content of ``summary.json``.
    scene, labels, rasters
        The scene, its labels, and the finished map.
    """
    colours = {
        int(one["code"]): tuple(int(one["colour"][at : at + 2], 16) for at in (1, 3, 5))
        for one in summary["classes"]
    }
    what = f"{summary['scene']['name']}"
    pictures = [
        (
            "The scene", image_data_uri(_jpeg(false_colour(scene))),
            f"{what} in false colours", _colour_words(scene),
        ),
        (
            "Its map", image_data_uri(_png(_coloured(rasters.thinned("codes", LONGEST), colours))),
            f"class map of {what}", f"{summary['title']}; colours as in the list below",
        ),
        (
            "Where it is unsure",
            image_data_uri(_png(_heat(rasters.thinned("confidence", LONGEST)))),
            f"confidence of the map of {what}",
            "dark: certain of its answer; bright: two or more classes are as likely",
        ),
        (
            "The labels", image_data_uri(_png(_coloured(_label_map(labels), colours))),
            f"the labelled pixels of {what}", "all that were given; grey was never labelled",
        ),
    ]  # fmt: skip
    report = MapReport.of(summary, pictures)
    return write_page(
        Path(path),
        "map.html.j2",
        {
            "page_title": f"{report.name} · foveate map",
            "command": "map",
            "version": report.version,
            "medical": "",
            "report": report,
        },
        styles=["shrink.css", "map.css"],  # the same intro, tiles and tables
        scripts=["map.js"],
        plots=False,
    )


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The result as lines for a terminal."""
    lines = []
    found = summary["estimate"]
    if found is not None:
        for _, split, remark, one in _counted(found):
            low, high = one["intervals"]["oa"]
            lines.append(
                f"{one['title']:<36} {split:<14} OA {100 * one['oa']:5.1f} % "
                f"({100 * low:.1f} to {100 * high:.1f})  AA {100 * one['aa']:5.1f} %  "
                f"kappa {one['kappa']:.3f}   {remark}"
            )
        if summary["blocks"]["left_out"]:
            lines.append(
                "left out of the estimate, too few labels: "
                + ", ".join(summary["blocks"]["left_out"])
            )
    unsure = summary["unsure"]
    doubt = 100 * unsure["below_half"] / max(1, unsure["mapped"])
    lines.append(
        f"{unsure['mapped']:,} pixels mapped, {doubt:.1f} % of them with a confidence below a half"
    )
    return lines


# ------------------------------------------------------------------------------ pictures


def false_colour(scene: Scene, longest: int = LONGEST) -> Picture:
    """A picture of the scene, ``(h, w, 3)`` uint8, thinned to at most `longest` pixels a side.

    PolSAR: Pauli colours. Hyperspectral: bands nearest to 650, 550 and 450 nm where the
    wavelengths are known, else at 1/2, 1/4 and 1/12 of the bands. Each channel is stretched
    between its 2nd and 98th percentile. Rows are read one by one: memory does not grow with the
    scene.
    """
    step = max(1, -(-max(scene.height, scene.width) // longest))
    rows = [
        scene.read(Window(row, 0, 1, scene.width))[:, ::step]
        for row in range(0, scene.height, step)
    ]
    cube = np.concatenate(rows)
    if scene.kind == "polsar":
        return _bytes(pauli_rgb(cube))
    if scene.channels == 1:
        bands = [0, 0, 0]
    elif scene.kind == "rgb" or scene.channels < 5:
        bands = [min(at, scene.channels - 1) for at in range(3)]
    elif scene.wavelengths_nm is not None:
        known = np.asarray(scene.wavelengths_nm)
        bands = [int(np.abs(known - wanted).argmin()) for wanted in (650, 550, 450)]
    else:
        bands = [scene.channels // part for part in (2, 4, 12)]
    picture = cube[..., bands]
    low, high = np.percentile(picture.reshape(-1, 3), (2, 98), axis=0)
    return _bytes((picture - low) / np.maximum(high - low, 1e-9))


def _bytes(picture: npt.NDArray[Any]) -> Picture:
    if picture.dtype == np.uint8:
        return picture
    values = np.clip(np.nan_to_num(picture), 0, 1)
    whole: Picture = np.rint(255 * values).astype(np.uint8)
    return whole


def _coloured(codes: npt.NDArray[Any], colours: Mapping[int, tuple[int, ...]]) -> Picture:
    table = np.full((256, 3), 128, dtype=np.uint8)
    for code, colour in colours.items():
        table[code] = colour
    picture: Picture = table[codes]
    return picture


def _heat(percent: npt.NDArray[Any]) -> Picture:
    """Doubt from dark blue (100 %) over violet and orange to light yellow (at most 30 %)."""
    stops = np.array([100, 85, 65, 45, 30])[::-1]
    tints = np.array(
        [(12, 16, 48), (70, 30, 120), (190, 55, 95), (245, 140, 40), (252, 250, 170)], dtype=float
    )[::-1]
    table = np.stack([np.interp(np.arange(256), stops, tints[:, c]) for c in range(3)], axis=-1)
    table[0] = 128  # no data
    picture: Picture = np.rint(table).astype(np.uint8)[percent]
    return picture


def _label_map(labels: SceneLabels, longest: int = LONGEST) -> npt.NDArray[np.int16]:
    """The labels on a thinned grid; a label stays visible when others around it are dropped."""
    height, width = labels.shape
    step = max(1, -(-max(height, width) // longest))
    picture = np.zeros((-(-height // step), -(-width // step)), dtype=np.int16)
    rows, columns = labels.coordinates.T // step
    picture[rows, columns] = labels.codes
    return picture


def _png(picture: Picture) -> bytes:
    return _encoded(picture, "PNG")


def _jpeg(picture: Picture) -> bytes:
    return _encoded(picture, "JPEG")


def _encoded(picture: Picture, kind: str) -> bytes:
    from PIL import Image

    store = io.BytesIO()
    Image.fromarray(picture).save(store, format=kind, quality=88)
    return store.getvalue()


def _colour_words(scene: Scene) -> str:
    if scene.kind == "polsar":
        return "Pauli colours: red double bounce, green volume, blue surface"
    if scene.kind == "hyperspectral":
        return "three of its bands, stretched"
    return "stretched between the 2nd and the 98th percentile"


# ------------------------------------------------------------------------------ words


def python_snippet(summary: Mapping[str, Any]) -> str:
    """Python that does the same again."""
    one = summary["settings"]
    extra = "".join(f", {key}={one[key]!r}" for key in ("train", "block") if one[key] is not None)
    if not one["estimate"]:
        extra += ", estimate=False"
    last = '["estimate"]["disjoint"]["oa"]' if one["estimate"] else '["unsure"]["mapped"]'
    return f"""from foveate.apps.map import MapSettings, map_scene

result = map_scene(
    SCENE, LABELS, "out",
    settings=MapSettings(method={summary["method"]!r}{extra}, seed={one["seed"]}),
)
print(result.summary{last})"""


def _percent(share: float | None, digits: int = 1) -> str:
    return number(None if share is None else 100 * share, digits)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "default" if value is None else str(value)


def _sentences(summary: Mapping[str, Any]) -> tuple[str, str]:
    scene, found = summary["scene"], summary["estimate"]
    classes = len(summary["classes"])
    if found is None:
        return (
            f"{scene['name']}: {classes} classes mapped, accuracy not estimated",
            "The estimate was switched off: nothing on this page says how right the map is.",
        )
    apart = found["disjoint"]
    base = max(found["baselines"], key=lambda one: one["oa"])
    headline = (
        f"{_percent(apart['oa'], 0 if apart['oa'] < 0.99 else 1)} % of the pixels of "
        f"{scene['name']} are named right in places that were not learned from"
    )
    ahead = 100 * (apart["oa"] - base["oa"])
    lead = (
        f"{apart['title']}, {number(apart['train'], 0)} labels to learn from, counted on "
        f"{number(apart['test'], 0)} labels in other blocks; {base['title']} on the same labels "
        f"reaches {_percent(base['oa'])} %, {abs(ahead):.1f} points "
        f"{'less' if ahead >= 0 else 'more'}."
    )
    if ahead < 0:
        lead += " So the simpler method is the better choice for this scene."
    if "random" in found:
        other = found["random"]["oa"]
        lead += f" Counted on random pixels the same method would show {_percent(other)} %"
        lead += ": that figure is optimistic." if other > apart["oa"] else "."
    return headline, lead


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """``(name, number, unit, remark)``."""
    found, unsure = summary["estimate"], summary["unsure"]
    doubt = unsure["below_half"] / max(1, unsure["mapped"])
    tiles = []
    if found is not None:
        apart = found["disjoint"]
        low, high = apart["intervals"]["oa"]
        tiles = [
            (
                "Overall accuracy, blocks apart", _percent(apart["oa"]), "%",
                f"95 of 100 redraws of the blocks: {_percent(low)} to {_percent(high)}",
            ),
            (
                "Mean over classes (AA)", _percent(apart["aa"]), "%",
                f"kappa {number(apart['kappa'], 3)}",
            ),
        ]  # fmt: skip
        if "random" in found:
            gain = 100 * (found["random"]["oa"] - apart["oa"])
            why = "mostly closeness" if gain > 0 else "other test pixels, and no sign of closeness"
            tiles.append(
                (
                    "The same, random pixels", _percent(found["random"]["oa"]), "%",
                    f"{gain:+.1f} points: {why}",
                )
            )  # fmt: skip
    tiles.append(
        ("Unsure pixels", _percent(doubt), "%", "confidence of the chosen class below one half")
    )
    return tiles


def _counted(found: Mapping[str, Any] | None) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """What was counted, in the order of the table: kind, split and remark of a row, figures."""
    if found is None:
        return []
    rows = [("disjoint", *_SPLITS["disjoint"], found["disjoint"])]
    rows += [("baseline", *_SPLITS["baseline"], one) for one in found["baselines"]]
    if "random" in found:
        split, remark = _SPLITS["random"]
        if found["random"]["oa"] <= found["disjoint"]["oa"]:
            remark = "other test pixels; here closeness did not help"
        rows.append(("random", split, remark, found["random"]))
    return rows


def _rows(found: Mapping[str, Any] | None) -> list[Row]:
    rows = []
    for key, split, remark, one in _counted(found):
        figures = []
        for metric in ("oa", "aa", "kappa"):
            low, high = one["intervals"][metric]
            if metric == "kappa":
                figures.append((number(one[metric], 3), f"{number(low, 3)} to {number(high, 3)}"))
            else:
                figures.append((_percent(one[metric]), f"{_percent(low)} to {_percent(high)}"))
        rows.append(
            Row(
                key=key, title=str(one["title"]), split=split, remark=remark,
                train=number(one["train"], 0), test=number(one["test"], 0), figures=figures,
            )
        )  # fmt: skip
    return rows


def _classes(summary: Mapping[str, Any]) -> list[ClassRow]:
    found = summary["estimate"]
    table = None if found is None else np.asarray(found["disjoint"]["confusion"], dtype=float)
    codes = [] if found is None else list(found["disjoint"]["classes"])
    rows = []
    for one in summary["classes"]:
        recall = precision = None
        if table is not None and one["code"] in codes:
            at = codes.index(one["code"])
            truth, named = table[at].sum(), table[:, at].sum()
            recall = table[at, at] / truth if truth else None
            precision = table[at, at] / named if named else None
        sure = one["confidence"]
        rows.append(
            ClassRow(
                name=str(one["name"]),
                colour=str(one["colour"]),
                labels=number(one["labels"], 0),
                share=_percent(one["share"]),
                recall=_percent(recall),
                precision=_percent(precision),
                confidence=number(sure, 0),
                why=str(summary["blocks"]["left_out"].get(one["name"], "")),
            )
        )
    return rows


def _confusion(found: Mapping[str, Any] | None, names: Mapping[str, str]) -> Confusion | None:
    if found is None:
        return None
    table = np.asarray(found["disjoint"]["confusion"], dtype=float)
    totals = table.sum(1)
    rows = []
    titles = [names.get(str(code), f"class {code}") for code in found["disjoint"]["classes"]]
    for at, title in enumerate(titles):
        share = table[at] / max(1.0, totals[at])
        cells = [
            ("" if not table[at, to] else _cell(100 * share[to]), float(share[to]), at == to)
            for to in range(len(titles))
        ]
        rows.append((title, number(totals[at], 0), cells))
    return Confusion(titles, rows)


def _cell(percent: float) -> str:
    return "<1" if percent < 0.95 else f"{percent:.0f}"


def _leakage(summary: Mapping[str, Any]) -> list[str]:
    found = summary["estimate"]
    if found is None:
        return []
    about, sentences = found["leakage"], []
    patch = about["patch"]
    for key, words in (("disjoint", "Blocks apart"), ("random", "Random pixels")):
        one = about[key]
        if one is None:
            continue
        if one["hidden"]:
            sentences.append(
                f"{words}: the method learns from whole tiles in which the test blocks are blank, "
                "so it has seen nothing of them."
            )
            continue
        sentences.append(
            f"{words}: {_percent(one['covered'])} % of the test pixels lie inside a square of "
            f"{patch} × {patch} pixels that was learned from; the nearest is "
            f"{number(one['distance'], 0)} pixel{'s' if one['distance'] != 1 else ''} away."
        )
    return sentences


def _files(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    what = {
        "map": "class codes, one byte a pixel, 0 where the scene has no data",
        "confidence": "probability of the chosen class in percent",
        "classes": "code, name, colour, pixels of each class",
    }
    found = []
    for name in summary["files"]:
        stem, _, suffix = name.partition(".")
        words = "header of the file beside it" if suffix == "hdr" else what[stem]
        if name == "map.png" and summary["format"] != "png":
            words = "the map as a small coloured picture"
        found.append((str(name), words))
    return [*found, ("summary.json", "all figures of this page for programs")]


def _how(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    blocks, chosen = summary["blocks"], summary["chosen"]
    how = []
    if summary["estimate"] is not None:
        how += [
            (
                "Blocks apart",
                f"a checkerboard of {blocks['side']} × {blocks['side']} pixels: one half to learn, "
                f"the other to count; training labels within {blocks['guard']} pixels of a test "
                "label are dropped",
            ),
            (
                "Intervals",
                "whole test blocks are drawn again 1,000 times, because neighbouring pixels are "
                "no independent witnesses",
            ),
            (
                "The map itself",
                f"learned from {number(summary['labels']['used'], 0)} labels anywhere in the "
                "scene, so it may be a little better than the figure of the blocks",
            ),
        ]
    if chosen is not None and chosen["scores"]:
        scores = ", ".join(f"{name} {_percent(oa)} %" for name, oa in chosen["scores"].items())
        how.append(
            ("Choice of the method", f"by validation blocks inside the training half: {scores}")
        )
    how.append(
        (
            "Seams",
            "each tile is read with all the context that a decision sees; where it is cut changes "
            "nothing",
        )
    )
    return how
