"""ENVI rasters: a text header beside a file of plain numbers, read through a memory map.

The header (``.hdr``) says how many lines (rows), samples (columns) and bands there are, the type
of a number, its byte order, and in which order the numbers follow each other:

    bsq   band after band:           (bands, lines, samples)
    bil   line by line, all bands:   (lines, bands, samples)
    bip   pixel by pixel:            (lines, samples, bands)

All three become one array ``(lines, samples, bands)`` that is only a view of the file, so that a
scene larger than memory costs no more than the window that is read. The header's claims are
compared with the file's size before anything is mapped.

A wrong byte order cannot be proven for whole numbers (it is only warned about where neighbouring
pixels would agree far better the other way round), but it can for floats: a swapped exponent makes
many numbers NaN, infinite, astronomically large or denormal, which the right order removes.

Format: ENVI Header Files, L3Harris Geospatial documentation.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.envi_header import DATA_TYPES, EnviHeader, Interleave, read_envi_header
from foveate.datasets.scene import Georeference, Scene, Window
from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = ["envi_pair", "map_envi", "open_envi", "write_envi"]

_DATA_SUFFIXES = ("", ".img", ".dat", ".raw", ".bin", ".bsq", ".bil", ".bip")
_TRIAL_VALUES = 1 << 16  # numbers looked at to judge the byte order

# Axes of the stored array -> (lines, samples, bands), and back
_TO_CUBE: dict[str, tuple[int, int, int]] = {"bsq": (1, 2, 0), "bil": (0, 2, 1), "bip": (0, 1, 2)}
_FROM_CUBE: dict[str, tuple[int, int, int]] = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}


def envi_pair(path: Path | str) -> tuple[Path, Path]:
    """Header and data file, when `path` is either of them.

    Raises
    ------
    FoveateError
        The other one is not there.
    """
    path = Path(path)
    if path.suffix.lower() == ".hdr":
        stem = path.with_suffix("")
        for suffix in _DATA_SUFFIXES:
            for name in (stem.name + suffix, stem.name + suffix.upper()):
                data = stem.with_name(name)
                if data.is_file():
                    return path, data
        raise FoveateError(
            f"the ENVI header {path} has no data file beside it; expected {stem.name} with one of "
            f"the suffixes {' '.join(_DATA_SUFFIXES[1:])} or none"
        )
    for beside in (path.with_name(path.name + ".hdr"), path.with_suffix(".hdr")):
        for header in (beside, beside.with_suffix(".HDR")):
            if header.is_file():
                return header, path
    raise FoveateError(
        f"{path} has no ENVI header beside it; expected {path.stem}.hdr or {path.name}.hdr"
    )


def map_envi(path: Path | str, header: EnviHeader) -> npt.NDArray[Any]:
    """The data file as an array ``(lines, samples, bands)`` that is a view of it, read-only.

    Raises
    ------
    FoveateError
        The file's size is not what the header says, or the byte order is clearly the other one.
    """
    path = Path(path)
    numbers = _stored(path, header)
    _check_byte_order(numbers, header, path)
    cube: npt.NDArray[Any] = numbers.transpose(_TO_CUBE[header.interleave])
    return cube


def _stored(path: Path, header: EnviHeader) -> npt.NDArray[Any]:
    """The file as it lies there, its size compared with the header's."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FoveateError(f"cannot read {path}: {error.strerror or error}") from error
    if size != header.file_bytes:
        raise FoveateError(
            f"{path} has {size} bytes, but its header says {header.lines} lines x "
            f"{header.samples} samples x {header.bands} bands of {header.dtype.itemsize} bytes "
            f"from byte {header.offset} on, which is {header.file_bytes}; correct the header or "
            "copy the file again"
        )
    extent = (header.lines, header.samples, header.bands)
    stored = tuple(extent[axis] for axis in _FROM_CUBE[header.interleave])
    try:
        numbers: npt.NDArray[Any] = np.memmap(path, header.dtype, "r", header.offset, stored)
    except (OSError, ValueError) as error:
        raise FoveateError(f"cannot map {path} ({error}); copy the file again") from error
    return numbers


def _absurd(values: npt.NDArray[Any]) -> float:
    """Share of values that no sensor gives: NaN, infinite, above 1e30, or below 1e-30 but not 0."""
    with np.errstate(invalid="ignore"):
        size = np.abs(values.astype(np.float64))
        return float(np.mean(~(size <= 1e30) | ((size > 0) & (size < 1e-30))))


def _check_byte_order(numbers: npt.NDArray[Any], header: EnviHeader, path: Path) -> None:
    if header.dtype.itemsize == 1:
        return
    # Runs of neighbours along the last axis, spread over the file.
    flat = numbers.reshape(-1, numbers.shape[-1])
    step = max(1, len(flat) // max(1, _TRIAL_VALUES // min(flat.shape[1], 256)))
    trial = np.array(flat[::step, :256])
    swapped = trial.view(header.dtype.newbyteorder())
    now = 1 if header.dtype.str[0] == ">" else 0
    mend = f"set 'byte order = {1 - now}' in its header (it says {now})"
    if header.dtype.kind == "f":
        # Each pattern of bits once: a filling value, NaN too, must not outweigh the rest.
        patterns = np.unique(trial.view(f"u{header.dtype.itemsize}"))
        trial = patterns.view(trial.dtype)
        swapped = patterns.view(swapped.dtype)
        absurd = _absurd(trial)
        if absurd >= 0.1 and _absurd(swapped) <= absurd / 5:
            raise FoveateError(
                f"{path} is of the other byte order: {absurd:.0%} of its distinct numbers are "
                f"NaN, infinite or of absurd size as they stand, and not so when swapped; {mend}"
            )
        return
    rough, smooth = (
        float(np.abs(np.diff(part.astype(np.float64), axis=1)).sum()) for part in (trial, swapped)
    )
    # Only a warning: 8-bit data that were multiplied by 256 look just the same.
    if rough > 8 * smooth > 0:
        warnings.warn(
            f"{path} may be of the other byte order, neighbouring pixels agree {rough / smooth:.0f}"
            f" times better when its bytes are swapped; if so, {mend}",
            stacklevel=4,
        )


def open_envi(path: Path | str) -> Scene:
    """Open an ENVI raster as a scene; `path` is the header or the data file.

    Numbers equal to the header's ``data ignore value`` are read as 0, and a pixel of which all
    numbers are is not `valid`.

    Raises
    ------
    FoveateError
        As `envi_pair`, `read_envi_header` and `map_envi`.
    """
    header_path, data_path = envi_pair(path)
    header = read_envi_header(header_path)
    map_envi(data_path, header)  # its checks
    no_data = header.no_data

    def piece_of(window: Window) -> npt.NDArray[Any]:
        # Mapped anew each time: a map that stays would keep every page that was ever read. A file
        # cut short since would end the process when touched, so its size is looked at again.
        cube = _stored(data_path, header).transpose(_TO_CUBE[header.interleave])
        row, column, height, width = window
        return np.array(cube[row : row + height, column : column + width])

    def empty(piece: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if no_data is None:
            return np.zeros(piece.shape, dtype=np.bool_)
        same = np.isnan(piece) if math.isnan(no_data) else piece == no_data
        return np.asarray(same, dtype=np.bool_)

    def reader(window: Window) -> npt.NDArray[np.float32]:
        piece = piece_of(window)
        numbers = piece.astype(np.float32)
        if no_data is not None:
            numbers[empty(piece)] = 0
        return numbers

    def valid(window: Window) -> npt.NDArray[np.bool_]:
        return np.logical_not(empty(piece_of(window)).all(axis=2))

    bands = header.bands
    picture = bands == 3 and header.dtype == np.uint8 and header.wavelengths_nm is None
    return Scene(
        name=header_path.stem,
        path=data_path,
        kind="rgb" if picture else "hyperspectral",
        height=header.lines,
        width=header.samples,
        band_names=header.band_names or tuple(f"band {number}" for number in range(1, bands + 1)),
        reader=reader,
        wavelengths_nm=header.wavelengths_nm,
        georeference=header.georeference,
        valid=None if no_data is None else valid,
    )


def write_envi(
    path: Path | str,
    cube: npt.NDArray[Any],
    *,
    interleave: Interleave = "bsq",
    big_endian: bool = False,
    band_names: Sequence[str] = (),
    wavelengths_nm: Sequence[float] | None = None,
    georeference: Georeference | None = None,
    no_data: float | None = None,
    class_names: Mapping[int, str] | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> tuple[Path, Path]:
    """Write an array ``(H, W, C)``, or a class map ``(H, W)``, with its header.

    Parameters
    ----------
    path
        The data file; the header is called the same with ``.hdr`` for its suffix.
    class_names, colours
        For a class map; class 0 is written as ``Unclassified``, black.

    Returns
    -------
    tuple of Path
        Header and data file.

    Raises
    ------
    FoveateError
        The array is of another form or of a type that ENVI has no code for; the georeference is
        rotated; the files cannot be written.
    """
    path = Path(path)
    cube = np.asarray(cube)
    if cube.ndim == 2:
        cube = cube[:, :, None]
    codes = {np.dtype(word): code for code, word in DATA_TYPES.items()}
    code = codes.get(cube.dtype.newbyteorder("="))
    if cube.ndim != 3 or cube.size == 0 or code is None:
        raise FoveateError(
            f"cannot write {cube.dtype} of shape {cube.shape} as ENVI; expected (rows, columns) or "
            "(rows, columns, bands) of integers, float32 or float64"
        )
    if path.suffix.lower() == ".hdr":
        raise FoveateError(f"{path} is the name of a header; name the data file, such as scene.img")
    if interleave not in _FROM_CUBE:
        raise FoveateError(f"interleave {interleave!r} is not one of bsq, bil and bip")
    lines, samples, bands = cube.shape
    entries = [
        *("ENVI", f"samples = {samples}", f"lines = {lines}", f"bands = {bands}"),
        *("header offset = 0", f"data type = {code}", f"interleave = {interleave}"),
        f"byte order = {int(big_endian)}",
    ]
    for key, words in (("band names", band_names), ("wavelength", wavelengths_nm or ())):
        if len(words):
            if len(words) != bands:
                raise FoveateError(f"{len(words)} entries of {key} were given for {bands} bands")
            entries.append(f"{key} = {{{', '.join(_word(word) for word in words)}}}")
    if wavelengths_nm:
        entries.append("wavelength units = Nanometers")
    if no_data is not None:
        entries.append(f"data ignore value = {no_data!r}")
    entries += _class_entries(class_names or {}, colours or {})
    entries += _map_entries(georeference)
    dtype = cube.dtype.newbyteorder(">" if big_endian else "<")
    header = path.with_suffix(".hdr")
    with write_whole(path) as data, write_whole(header) as text:
        text.write_text("\n".join(entries) + "\n", "utf-8")
        stored = cube.transpose(_FROM_CUBE[interleave])
        with data.open("wb") as file:
            for part in stored:  # one line or band at a time: `cube` may be a memory map
                file.write(np.ascontiguousarray(part, dtype=dtype).tobytes())
    return header, path


def _word(value: object) -> str:
    """Text without the characters that separate entries."""
    return re.sub(r"[{},=\s]+", " ", str(value)).strip()


def _class_entries(
    names: Mapping[int, str], colours: Mapping[int, tuple[int, int, int]]
) -> list[str]:
    if not names and not colours:
        return []
    last = max((*names, *colours))
    words = ["Unclassified"] + [
        _word(names.get(code, f"class {code}")) for code in range(1, last + 1)
    ]
    entries = [
        *("file type = ENVI Classification", f"classes = {last + 1}"),
        f"class names = {{{', '.join(words)}}}",
    ]
    if colours:
        numbers = [part for code in range(last + 1) for part in colours.get(code, (0, 0, 0))]
        entries.append(f"class lookup = {{{', '.join(map(str, numbers))}}}")
    return entries


def _map_entries(georeference: Georeference | None) -> list[str]:
    if georeference is None:
        return []
    a, b, c, d, e, f = georeference.transform
    if b or d or a < 0 or e > 0:
        raise FoveateError(
            f"cannot write the georeference {georeference.transform} to an ENVI header: only "
            "pictures with north up; write a GeoTIFF"
        )
    place = f"1, 1, {c!r}, {f!r}, {a!r}, {-e!r}"
    if match := re.fullmatch(r"EPSG:32([67])(\d\d)", georeference.crs):
        side = "North" if match[1] == "6" else "South"
        return [f"map info = {{UTM, {place}, {int(match[2])}, {side}, WGS-84, units=Meters}}"]
    if georeference.crs == "EPSG:4326":
        return [f"map info = {{Geographic Lat/Lon, {place}, WGS-84, units=Degrees}}"]
    entries = [f"map info = {{Arbitrary, {place}}}"]
    if georeference.crs and "}" not in georeference.crs:
        entries.append(f"coordinate system string = {{{' '.join(georeference.crs.split())}}}")
    return entries
