"""The text header of an ENVI raster: what it says, checked.

A header is lines of ``key = value`` after a first line ``ENVI``; a value in braces may go on over
several lines. What is understood: the extent, interleave, type, byte order and offset of the
numbers (`foveate.datasets.envi`), names and wavelengths of the bands, where the pixels lie on
Earth, the value that stands for "no data", and the classes of a classification.

Format: ENVI Header Files, L3Harris Geospatial documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foveate.datasets.scene import Georeference
from foveate.errors import FoveateError

__all__ = ["DATA_TYPES", "EnviHeader", "Interleave", "read_envi_header"]

Interleave = Literal["bsq", "bil", "bip"]

_TYPES = ("u1", "i2", "i4", "f4", "f8", "u2", "u4", "i8", "u8")
DATA_TYPES = dict(zip((1, 2, 3, 4, 5, 12, 13, 14, 15), _TYPES, strict=True))
_COMPLEX = {6: "complex64", 9: "complex128"}
_MAX_HEADER_BYTES = 1 << 24
_MAX_SIDE = 1 << 24
_MAX_BANDS = 1 << 16


@dataclass(frozen=True)
class EnviHeader:
    """What an ENVI header says.

    Attributes
    ----------
    lines, samples, bands
        Rows, columns and channels.
    interleave
        ``bsq``, ``bil`` or ``bip``.
    dtype
        Type of a number, byte order included.
    offset
        Bytes before the first number.
    band_names, wavelengths_nm
        Empty and None when the header has none.
    georeference
        From ``map info`` and ``coordinate system string``.
    no_data
        ``data ignore value``.
    class_names, colours
        Of a classification: class code -> name, and -> red, green, blue.
    """

    lines: int
    samples: int
    bands: int
    interleave: Interleave
    dtype: np.dtype[Any]
    offset: int = 0
    band_names: tuple[str, ...] = ()
    wavelengths_nm: tuple[float, ...] | None = None
    georeference: Georeference | None = None
    no_data: float | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def file_bytes(self) -> int:
        """Size that the data file must have."""
        return self.offset + self.lines * self.samples * self.bands * self.dtype.itemsize


def read_envi_header(path: Path | str) -> EnviHeader:
    """Read and check a header.

    Raises
    ------
    FoveateError
        It is no ENVI header, or says something that cannot be.
    """
    path = Path(path)
    entries = _entries(path)

    def integer(key: str, low: int, high: int, default: int | None = None) -> int:
        text = entries.get(key)
        if text is None and default is not None:
            return default
        if text is None or not re.fullmatch(r"[+-]?\d{1,18}", text) or not low <= int(text) <= high:
            raise FoveateError(
                f"the ENVI header {path} has {key} = {text} where a whole number from {low} to "
                f"{high} was expected; correct the header"
            )
        return int(text)

    lines, samples = integer("lines", 1, _MAX_SIDE), integer("samples", 1, _MAX_SIDE)
    bands = integer("bands", 1, _MAX_BANDS)
    code = integer("data type", 1, 99)
    if code in _COMPLEX:
        raise FoveateError(
            f"{path} holds complex numbers (data type {code}, {_COMPLEX[code]}); a scattering "
            "matrix is read from its folder S2 of s11.bin, s12.bin, s21.bin and s22.bin"
        )
    if code not in DATA_TYPES:
        raise FoveateError(
            f"the ENVI header {path} has data type {code} where one of "
            f"{', '.join(map(str, DATA_TYPES))} was expected; correct the header"
        )
    interleave = entries.get("interleave", "bsq").lower()
    if interleave not in ("bsq", "bil", "bip"):
        raise FoveateError(
            f"the ENVI header {path} has interleave {interleave!r} where bsq, bil or bip was "
            "expected; correct the header"
        )
    if integer("file compression", 0, 9, 0):
        raise FoveateError(f"{path} belongs to a compressed file; save it without compression")
    order = ">" if integer("byte order", 0, 1, 0) else "<"
    names, colours = _classes(entries, path)
    no_data = _numbers(entries.get("data ignore value", ""), "data ignore value", path)
    return EnviHeader(
        *(lines, samples, bands, interleave),  # type: ignore[arg-type]
        dtype=np.dtype(order + DATA_TYPES[code]),
        offset=integer("header offset", 0, 1 << 40, 0),
        band_names=_band_names(entries, bands, path),
        wavelengths_nm=_wavelengths(entries, bands, path),
        georeference=_georeference(entries, path),
        no_data=no_data[0] if no_data else None,
        class_names=names,
        colours=colours,
    )


def _entries(path: Path) -> dict[str, str]:
    """Lower-case key -> value, braces removed."""
    try:
        if path.stat().st_size > _MAX_HEADER_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        text = path.read_bytes().decode("utf-8", "replace")
        if text.lstrip("\ufeff \t\r\n")[:4] != "ENVI":
            raise ValueError("its first line is not ENVI")
    except (OSError, ValueError) as error:
        raise FoveateError(f"cannot read {path} as an ENVI header: {error}") from error
    found: dict[str, str] = {}
    lines = iter(text.splitlines()[1:])
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or line.lstrip().startswith(";"):
            continue
        if value.lstrip().startswith("{"):
            pieces = [value]
            while "}" not in pieces[-1]:
                following = next(lines, None)
                if following is None:
                    raise FoveateError(
                        f"the ENVI header {path} has no closing brace after {key.strip()!r}; "
                        "correct the header"
                    )
                pieces.append(following)
            value = "\n".join(pieces).strip()[1:].rpartition("}")[0]
        found[" ".join(key.lower().split())] = value.strip()
    return found


def _numbers(text: str, key: str, path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.replace("\n", " ").split(",") if word.strip())
    except ValueError as error:
        raise FoveateError(
            f"the ENVI header {path} has {key} = {text[:60]!r} where numbers were expected; "
            "correct the header"
        ) from error


def _one_per_band(words: Sequence[Any], bands: int, key: str, path: Path) -> None:
    if len(words) != bands:
        raise FoveateError(
            f"the ENVI header {path} has {len(words)} entries in {key!r} and bands = {bands}; "
            "bands are missing, or the header belongs to another file"
        )


def _band_names(entries: Mapping[str, str], bands: int, path: Path) -> tuple[str, ...]:
    text = entries.get("band names")
    if not text:
        return ()
    names = tuple(" ".join(word.split()) for word in text.split(","))
    _one_per_band(names, bands, "band names", path)
    return names


def _wavelengths(entries: Mapping[str, str], bands: int, path: Path) -> tuple[float, ...] | None:
    text = entries.get("wavelength")
    if not text:
        return None
    numbers = _numbers(text, "wavelength", path)
    _one_per_band(numbers, bands, "wavelength", path)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise FoveateError(f"the ENVI header {path} has a wavelength that is not positive")
    units = entries.get("wavelength units", "").lower()
    # Without a unit: no sensor of this kind sees 100 nm or 100 micrometres.
    micrometres = units.startswith(("micro", "um")) or (
        not units.startswith(("nano", "nm")) and max(numbers) < 100
    )
    return tuple(round(number * 1000, 6) if micrometres else number for number in numbers)


def _classes(
    entries: Mapping[str, str], path: Path
) -> tuple[dict[int, str], dict[int, tuple[int, int, int]]]:
    """Names and colours of the classes from 1; class 0 is "Unclassified"."""
    words = [word.strip() for word in entries.get("class names", "").split(",")]
    names = {code: word for code, word in enumerate(words) if code and word}
    numbers = _numbers(entries.get("class lookup", ""), "class lookup", path)
    if len(numbers) % 3 or not all(0 <= number <= 255 for number in numbers):
        raise FoveateError(
            f"the ENVI header {path} has a class lookup that is not red, green, blue from 0 to "
            "255 for each class; correct the header"
        )
    triples = [tuple(int(n) for n in numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
    return names, {code: (t[0], t[1], t[2]) for code, t in enumerate(triples) if code}


def _georeference(entries: Mapping[str, str], path: Path) -> Georeference | None:
    """From ``map info = {projection, x, y, east, north, width, height, zone, ...}``.

    (x, y) is a pixel position in which (1, 1) is the upper left corner of the first pixel.
    A rotation turns the picture's columns that many degrees counter-clockwise from east.
    """
    text = entries.get("map info")
    if not text:
        return None
    words = [word.strip() for word in text.split(",")]
    if len(words) < 7:
        raise FoveateError(
            f"the ENVI header {path} has a map info of {len(words)} entries where at least 7 were "
            "expected; correct the header"
        )
    place = _numbers(",".join(words[1:7]), "map info", path)
    if len(place) != 6:
        raise FoveateError(
            f"the ENVI header {path} has {len(place)} numbers in the entries 2 to 7 of its map "
            "info where x, y, east, north, width, height were expected; correct the header"
        )
    x, y, east, north, width, height = place
    rotation = 0.0
    for word in words[7:]:
        key, _, value = word.partition("=")
        if key.strip().lower() == "rotation":
            rotation = math.radians(sum(_numbers(value, "map info rotation", path)[:1]))
    cosine, sine = math.cos(rotation), math.sin(rotation)
    a, b, d, e = cosine * width, sine * width, sine * height, -cosine * height
    across, down = x - 1, y - 1
    crs = entries.get("coordinate system string", "")
    if not crs and "WGS-84" in words:
        if words[0].lower() == "utm" and len(words) > 8 and re.fullmatch(r"\d{1,2}", words[7]):
            crs = f"EPSG:{(327 if words[8].lower() == 'south' else 326) * 100 + int(words[7])}"
        elif words[0].lower().startswith("geographic"):
            crs = "EPSG:4326"
    c, f = east - a * across - b * down, north - d * across - e * down
    try:
        return Georeference(crs, (a, b, c, d, e, f))
    except FoveateError as error:
        raise FoveateError(f"the map info of the ENVI header {path} cannot be: {error}") from error
