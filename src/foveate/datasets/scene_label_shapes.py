"""Labels drawn by hand: a table of points, or the polygons and points of a GIS (GeoJSON).

A polygon labels the pixels whose centre is inside. Each row of pixels has a line through its
centres; where the polygon's edges, holes included, cut that line, inside and outside change places
(the even-odd rule): from the first cut to the second is inside, from the third to the fourth, ...

`foveate.datasets.scene_label_files` tells the forms and calls the two readers.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.scene import Georeference
from foveate.datasets.scene_labels import MAX_CODE, SceneLabels
from foveate.errors import FoveateError

__all__ = ["Place", "read_geojson", "read_table"]

_MAX_TEXT_BYTES = 1 << 28
_MAX_PIXELS = 1 << 28  # of all polygons together
_PROPERTIES = ("class", "label", "name")

Points = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """The scene that labels are for.

    Attributes
    ----------
    path
        File of the labels.
    shape
        ``(H, W)`` of the scene.
    georeference
        Where its pixels lie, or None.
    names
        Names of classes that the scene already has.
    """

    path: Path
    shape: tuple[int, int]
    georeference: Georeference | None
    names: Mapping[int, str]

    def pixel(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Pixel coordinates (row, column), not rounded, of coordinates in the file."""
        return (y, x) if self.georeference is None else self.georeference.to_pixel(x, y)

    @property
    def coordinates(self) -> str:
        """What the coordinates in the file mean, for errors."""
        if self.georeference is None:
            return "pixels (x = column, y = row), since the scene has no georeference"
        crs = self.georeference.crs
        return f"the scene's coordinate system ({crs[:40] or 'unnamed'})"


# Classes by code or name


def _whole(value: object) -> int | None:
    """A class code, when `value` is one or spells one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,100}(\.0+)?", value):
        value = int(value.partition(".")[0])  # spreadsheets write 1.0
    return value if isinstance(value, int) else None


def _resolve(
    values: Sequence[object], extra: Sequence[object], place: Place
) -> tuple[list[int], dict[int, str]]:
    """Codes of classes given as codes or names, and the names of these codes."""
    codes = [_whole(value) for value in values]
    names: dict[int, str] = {}
    if None not in codes:
        found = [code for code in codes if code is not None]
        for code, given in zip(found, extra, strict=True):
            name = given.strip() if isinstance(given, str) else ""
            if names.setdefault(code, name) != name:  # names of places, not of classes
                names.clear()
                break
        names = {code: name for code, name in names.items() if name}
        wrong = next((code for code in found if not 1 <= code <= MAX_CODE), None)
        if wrong is not None:
            raise FoveateError(
                f"the labels {place.path} have the class code {wrong} where 1 to {MAX_CODE} or a "
                "name was expected"
            )
        return found, names
    words = [value.strip() if isinstance(value, str) else "" for value in values]
    mixed = next((code for code in codes if code is not None), None)
    if mixed is not None or not all(words):
        odd = mixed if mixed is not None else values[words.index("")]
        raise FoveateError(
            f"the labels {place.path} have the class {odd!r} among names; use codes for all "
            "classes or names for all"
        )
    known = {name: code for code, name in place.names.items()}
    if not set(words) <= known.keys():
        known = {name: code for code, name in enumerate(sorted(set(words)), 1)}
    return [known[word] for word in words], {known[word]: word for word in sorted(set(words))}


# Tables of points


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise ValueError(f"it has more than {_MAX_TEXT_BYTES} bytes")
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise FoveateError(
            f"cannot read the labels {path} ({error}); save them as UTF-8 text of at most "
            f"{_MAX_TEXT_BYTES} bytes"
        ) from error


def read_table(place: Place, class_column: str | None) -> SceneLabels:
    """Labels of a CSV file with a header of ``row,column,class`` or ``x,y,class``."""
    path, text = place.path, _text(place.path)
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    header = [word.strip().lower() for word in next(reader, [])]
    wanted = (class_column or "class").lower()
    by_pixel, by_map = {"row", "column"} <= set(header), {"x", "y"} <= set(header)
    if wanted not in header or not (by_pixel or by_map):
        raise FoveateError(
            f"the labels {path} have the columns {', '.join(header)[:80] or 'none'} where "
            f"row,column,{wanted} or x,y,{wanted} were expected; add them as the first line"
        )
    if not by_pixel and place.georeference is None:
        raise FoveateError(
            f"the labels {path} have map coordinates x,y, but the scene has no georeference; give "
            "row,column"
        )
    pair = ("row", "column") if by_pixel else ("x", "y")
    at = [header.index(word) for word in (*pair, wanted)]
    name_at = header.index("name") if "name" in header and wanted != "name" else None
    numbers: list[tuple[float, float]] = []
    values: list[object] = []
    extra: list[object] = []
    try:
        for row in reader:
            if not any(word.strip() for word in row):
                continue
            numbers.append((float(row[at[0]]), float(row[at[1]])))
            if not all(map(math.isfinite, numbers[-1])):
                raise ValueError("a coordinate is not finite")
            values.append(row[at[2]].strip())
            extra.append(row[name_at] if name_at is not None else "")
    except (ValueError, IndexError, csv.Error) as error:
        raise FoveateError(
            f"the labels {path} have no {pair[0]}, {pair[1]} and {wanted} in line "
            f"{reader.line_num} ({error}); correct it"
        ) from error
    codes, names = _resolve(values, extra, place)
    places = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    if not by_pixel:
        places = np.floor(np.stack(place.pixel(places[:, 0], places[:, 1]), axis=1))
    return SceneLabels.from_points(
        places, np.array(codes, dtype=np.int64), place.shape, names=names, source=str(path)
    )


# GeoJSON


def read_geojson(place: Place, class_property: str | None) -> SceneLabels:
    """Labels of the polygons and points of a GeoJSON file."""
    path = place.path
    try:
        content = json.loads(_text(path))
        features = content["features"] if content.get("type") == "FeatureCollection" else [content]
        pairs = [(feature["geometry"], feature.get("properties") or {}) for feature in features]
        if not all(isinstance(part, dict) for pair in pairs for part in pair):
            raise ValueError("a feature has no geometry")
        _check_crs(place, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FoveateError(
            f"cannot read {path} as a GeoJSON FeatureCollection ({error}); export it again"
        ) from error
    properties = [pair[1] for pair in pairs]
    chosen = _chosen_property(place, properties, class_property)
    rest = [key for key in ("name", "label") if key != chosen]
    extra = [next((known[key] for key in rest if key in known), "") for known in properties]
    codes, names = _resolve([known[chosen] for known in properties], extra, place)
    places: list[Points] = []
    empty = budget = 0
    for geometry, _ in pairs:
        found = _pixels(place, geometry)
        empty += not len(found)
        budget += len(found)
        if budget > _MAX_PIXELS:
            raise FoveateError(f"the labels {path} cover more than {_MAX_PIXELS} pixels")
        places.append(found)
    if empty:
        warnings.warn(
            f"{empty} of {len(places)} shapes in {path} contain no pixel's centre and label "
            "nothing",
            stacklevel=3,
        )
    return SceneLabels.from_points(
        np.concatenate([np.zeros((0, 2), np.int64), *places]),
        np.repeat(np.array(codes, dtype=np.int64), [len(found) for found in places]),
        place.shape,
        names=names,
        source=str(path),
    )


def _check_crs(place: Place, content: Mapping[str, Any]) -> None:
    """Compare the coordinate system that older GeoJSON names with the scene's."""
    crs = content.get("crs")
    mine = place.georeference.crs if place.georeference is not None else ""
    if not crs or not mine.startswith("EPSG:"):
        return
    name = str(crs["properties"]["name"])
    match = re.search(r"EPSG:+(\d+)$", name)
    theirs = "EPSG:4326" if name.endswith("CRS84") else f"EPSG:{match[1]}" if match else mine
    if theirs != mine:
        raise FoveateError(
            f"the labels {place.path} are in {theirs}, the scene is in {mine}; export them in the "
            "scene's coordinate system"
        )


def _chosen_property(
    place: Place, properties: Sequence[Mapping[str, Any]], wanted: str | None
) -> str:
    keys = (wanted,) if wanted else _PROPERTIES
    for key in keys:
        if properties and all(known.get(key) is not None for known in properties):
            return key
    raise FoveateError(
        f"the labels {place.path} have no property {' or '.join(keys)} on each of their "
        f"{len(properties)} features; add one, or name yours as the class property"
    )


def _pixels(place: Place, geometry: Mapping[str, Any]) -> Points:
    """Pixels ``(N, 2)`` that one geometry labels."""
    kind, numbers = geometry.get("type"), geometry.get("coordinates")
    if kind in ("Point", "MultiPoint"):
        places = np.floor(_positions(place, [numbers] if kind == "Point" else numbers))
        _check_inside(place, places, places)
        return places.astype(np.int64)
    if kind not in ("Polygon", "MultiPolygon") or not isinstance(numbers, list):
        raise FoveateError(
            f"the labels {place.path} have a geometry {str(kind)[:40]} where Polygon, "
            "MultiPolygon, Point or MultiPoint was expected"
        )
    polygons = [numbers] if kind == "Polygon" else numbers
    parts = [_fill(place, [_positions(place, ring) for ring in polygon]) for polygon in polygons]
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *parts]), axis=0)


def _positions(place: Place, numbers: Any) -> npt.NDArray[np.float64]:
    """Pixel coordinates ``(N, 2)``, row and column, of GeoJSON positions."""
    try:
        pairs = np.array([(float(p[0]), float(p[1])) for p in numbers]).reshape(-1, 2)
        if not np.isfinite(pairs).all():
            raise ValueError("a coordinate is not finite")
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise FoveateError(
            f"the labels {place.path} have a position that is not two numbers ({error})"
        ) from error
    return np.stack(place.pixel(pairs[:, 0], pairs[:, 1]), axis=1)


def _check_inside(
    place: Place, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> None:
    """`low` and `high`: first and last pixel ``(..., 2)`` that is reached."""
    wrong = ((low < 0) | (high >= np.array(place.shape))).any(axis=-1)
    if wrong.any():
        row, column = np.atleast_2d(low)[int(np.argmax(np.atleast_1d(wrong)))]
        raise FoveateError(
            f"the labels {place.path} reach outside the scene of {place.shape[0]} x "
            f"{place.shape[1]} pixels (row {row:.10g}, column {column:.10g}); coordinates are "
            f"expected in {place.coordinates}"
        )


def _fill(place: Place, rings: Sequence[npt.NDArray[np.float64]]) -> Points:
    """Pixels whose centre is inside `rings` by the even-odd rule.

    Every edge is cut with the lines through the pixels' centres, the cuts of a line are sorted,
    and the pixels between the first and second, third and fourth, ... are inside. An edge owns its
    upper end and not its lower one, so that each line is cut an even number of times.
    """
    if not rings or any(len(ring) < 3 for ring in rings):
        raise FoveateError(f"the labels {place.path} have a polygon of fewer than three corners")
    corners = np.concatenate(rings)
    low, high = np.ceil(corners.min(axis=0) - 0.5), np.ceil(corners.max(axis=0) - 0.5) - 1
    if (low > high).any():
        middle = np.floor((corners.min(axis=0) + corners.max(axis=0)) / 2)
        _check_inside(place, middle, middle)  # degrees in a scene of metres are one point far away
        return np.zeros((0, 2), np.int64)
    _check_inside(place, low, high)
    begin = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])  # closes an open ring
    upper, lower = np.minimum(begin[:, 0], end[:, 0]), np.maximum(begin[:, 0], end[:, 0])
    first = np.ceil(upper - 0.5).astype(np.int64)
    count = np.ceil(lower - 0.5).astype(np.int64) - first  # lines y = row + 0.5 in [upper, lower)
    if int(count.sum()) > _MAX_PIXELS:
        raise FoveateError(f"the labels {place.path} have a polygon of too many corners")
    edge = np.repeat(np.arange(len(count)), count)
    line = _ranges(first, count)
    share = (line + 0.5 - begin[edge, 0]) / (end - begin)[edge, 0]
    cut = begin[edge, 1] + share * (end - begin)[edge, 1]
    order = np.lexsort((cut, line))
    line, cut = line[order], cut[order]
    left = np.ceil(cut[0::2] - 0.5).astype(np.int64)
    right = np.ceil(cut[1::2] - 0.5).astype(np.int64)
    size = right - left
    if int(size.sum()) > _MAX_PIXELS:
        raise FoveateError(f"the labels {place.path} cover more than {_MAX_PIXELS} pixels")
    return np.stack([np.repeat(line[0::2], size), _ranges(left, size)], axis=1)


def _ranges(first: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``first[0], first[0] + 1, ...`` (count[0] of them), ``first[1], ...`` in a row."""
    before = np.array([0, *itertools.accumulate(count.tolist())][:-1], dtype=np.int64)
    return np.arange(int(count.sum()), dtype=np.int64) + np.repeat(first - before, count)
