"""PolSARpro folders: the form in which most polarimetric SAR data is handed on.

One real number per pixel and file, raw, row by row, without a header of its own:

    T3/  T11.bin T22.bin T33.bin T12_real.bin T12_imag.bin ... T23_imag.bin    float32
    C3/  the same with C;    T6/  T11 ... T66, of which the upper left 3x3 is the master's T3
    S2/  s11.bin s12.bin s21.bin s22.bin (HH HV VH VV)         complex64, real part first
    config.txt (Nrow, Ncol);  T11.bin.hdr or T11.hdr (ENVI);  mask_valid_pixels.bin

The size is taken from ``config.txt``, else from the header; the header alone says whether the
numbers are big-endian. Both must agree with each other and with every file's size before anything
is mapped. Matrices come back as ``(..., 3, 3)`` complex64, scenes as the nine real channels of T3
(`foveate.datasets.polarimetry`), whatever they are stored as.

Format: PolSARpro's own files, checked against a real folder of it.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.envi_header import read_envi_header
from foveate.datasets.polarimetry import (
    CHANNELS,
    c3_to_t3,
    eigenvalues_reach,
    s2_to_k,
    t3_channels,
    t3_from_k,
    t3_matrix,
)
from foveate.datasets.scene import Georeference, Scene, Window
from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = [
    "PolsarproConfig",
    "open_polsar",
    "read_c3",
    "read_polsarpro_config",
    "read_s2",
    "read_t3",
    "warn_if_indefinite",
    "write_t3",
]

Channels = npt.NDArray[np.float32]
Matrices = npt.NDArray[np.complex64]

_MAX_TEXT_BYTES = 1 << 16
_MAX_BYTES = 1 << 34  # of matrices in memory
_MAX_SIDE = 1 << 24
_KINDS = {
    "T3": CHANNELS,
    "C3": tuple(f"C{name[1:]}" for name in CHANNELS),
    "S2": ("s11", "s12", "s21", "s22"),
}


@dataclass(frozen=True)
class PolsarproConfig:
    """``config.txt`` of a PolSARpro folder: extent and kind of acquisition."""

    rows: int
    columns: int
    polar_case: str = ""
    polar_type: str = ""


def read_polsarpro_config(folder: Path | str) -> PolsarproConfig:
    """Read ``config.txt``: a key per line, its value on the next, dashes between (or not).

    Raises
    ------
    FoveateError
        It is absent or damaged, or has no Nrow and Ncol of at least 1.
    """
    path = Path(folder) / "config.txt"
    words = [line.strip() for line in _text(path).splitlines()]
    words = [word for word in words if word.strip("-")]
    found = dict(zip(words[::2], words[1::2], strict=False))
    sizes: list[int] = []
    for key in ("Nrow", "Ncol"):
        text = found.get(key, "")
        if not re.fullmatch(r"\d{1,8}", text) or not 1 <= int(text) <= _MAX_SIDE:
            raise FoveateError(
                f"{path} has {key} = {text[:40]!r} where a whole number from 1 to {_MAX_SIDE} was "
                "expected on the line after it; correct the file"
            )
        sizes.append(int(text))
    rows, columns = sizes
    return PolsarproConfig(rows, columns, found.get("PolarCase", ""), found.get("PolarType", ""))


@dataclass(frozen=True)
class _Raster:
    """One file of plain numbers ``(rows, columns)``, mapped anew for every window."""

    path: Path
    dtype: str
    offset: int
    rows: int
    columns: int

    def check(self) -> None:
        expected = self.offset + self.rows * self.columns * np.dtype(self.dtype).itemsize
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise FoveateError(
                f"{self.path} cannot be read ({error.strerror}); a fully polarimetric folder needs "
                "all of its files, copy it again"
            ) from error
        if size != expected:
            raise FoveateError(
                f"{self.path} has {size} bytes where {self.rows} rows of {self.columns} numbers "
                f"need {expected}; correct config.txt or the header, or copy the file again"
            )

    def read(self, window: Window, step: int) -> npt.NDArray[Any]:
        self.check()  # a file cut short since would end the process when touched
        stored = np.memmap(self.path, self.dtype, "r", self.offset, (self.rows, self.columns))
        rows = slice(window.row, window.row + window.height, step)
        return np.array(stored[rows, window.column : window.column + window.width : step])


@dataclass(frozen=True)
class _Folder:
    """A PolSARpro folder whose files were checked; calling it reads a window as T3 channels."""

    path: Path
    kind: str
    rasters: tuple[_Raster, ...]
    mask: _Raster | None

    @property
    def extent(self) -> tuple[int, int]:
        return self.rasters[0].rows, self.rasters[0].columns

    def planes(self, window: Window, step: int = 1) -> npt.NDArray[Any]:
        """``(h, w, files)`` of a window, finite, 0 where the mask says that nothing is valid."""
        planes = np.stack([raster.read(window, step) for raster in self.rasters], -1)
        if self.mask is not None:
            planes[self.mask.read(window, step) == 0] = 0
        bad = ~np.isfinite(planes)
        if bad.any():
            row, column, band = np.argwhere(bad)[0].tolist()
            raise FoveateError(
                f"{self.rasters[band].path} holds {planes[row, column, band]} at row "
                f"{window.row + row * step}, column {window.column + column * step} "
                f"({int(bad.sum())} such numbers in all files of this window); mask these pixels "
                "in mask_valid_pixels.bin"
            )
        return planes

    def __call__(self, window: Window) -> Channels:
        planes = self.planes(window)
        if self.kind == "S2":
            return t3_channels(t3_from_k(s2_to_k(planes.reshape(*planes.shape[:2], 2, 2))))
        planes = planes.astype(np.float32)
        return planes if self.kind == "T3" else t3_channels(c3_to_t3(t3_matrix(planes)))

    def valid(self, window: Window) -> npt.NDArray[np.bool_]:
        if self.mask is None:
            return np.ones((window.height, window.width), np.bool_)
        return np.asarray(self.mask.read(window, 1) != 0)


def _open_folder(folder: Path | str, kind: str) -> _Folder:
    folder = Path(folder)
    names = _KINDS[kind]
    if not folder.is_dir() or not any((folder / f"{name}.bin").is_file() for name in names):
        raise FoveateError(
            f"{folder} is no PolSARpro folder {kind}; expected the files "
            f"{names[0]}.bin to {names[-1]}.bin in it"
        )
    config = read_polsarpro_config(folder) if (folder / "config.txt").is_file() else None
    number = "c8" if kind == "S2" else "f4"
    rasters = tuple(_raster(folder / f"{name}.bin", config, number) for name in names)
    extents = {(raster.rows, raster.columns) for raster in rasters}
    if len(extents) > 1:
        raise FoveateError(
            f"the headers in {folder} disagree on the size: {sorted(extents)}; copy it again"
        )
    for raster in rasters:
        raster.check()
    _check_byte_order(rasters[0])
    mask = None
    if (path := folder / "mask_valid_pixels.bin").is_file():
        rows, columns = extents.pop()
        mask = _raster(path, PolsarproConfig(rows, columns), "f4")
        mask.check()
    return _Folder(folder, kind, rasters, mask)


def _check_byte_order(raster: _Raster) -> None:
    """Refuse numbers that no radar gives as they stand, and that swapping their bytes mends."""
    step = max(1, raster.rows // 64)
    numbers = raster.read(Window(0, 0, raster.rows, min(raster.columns, 256)), step)
    floats = np.unique(numbers.view(raster.dtype[0] + "f4"))

    def absurd(values: npt.NDArray[Any]) -> float:
        size = np.abs(values.astype(np.float64))
        return float(np.mean(~(size <= 1e30) | ((size > 0) & (size < 1e-30))))

    with np.errstate(invalid="ignore"):
        now, swapped = absurd(floats), absurd(floats.view(floats.dtype.newbyteorder()))
    if now >= 0.1 and swapped <= now / 5:
        order = int(raster.dtype[0] == ">")
        raise FoveateError(
            f"{raster.path} is of the other byte order: {now:.0%} of its distinct numbers are NaN, "
            "infinite or of absurd size as they stand, and not so when swapped; set 'byte order = "
            f"{1 - order}' in the headers of this folder (it is {order} now)"
        )


def _raster(path: Path, config: PolsarproConfig | None, number: str) -> _Raster:
    """A file's layout from ``config.txt`` and its header, which must not contradict each other."""
    headers = (path.with_name(path.name + ".hdr"), path.with_suffix(".hdr"))
    header = next((header for header in headers if header.is_file()), None)
    if header is None:
        if config is None:
            raise FoveateError(
                f"the size of {path} is unknown: there is neither config.txt nor "
                f"{headers[0].name} nor {headers[1].name}; add one of them"
            )
        return _Raster(path, "<" + number, 0, config.rows, config.columns)
    # foveate.datasets.envi reads pictures and refuses complex numbers, so S2 needs these few keys.
    text = _text(header)
    rows, columns = _entry(text, "lines", header), _entry(text, "samples", header)
    if config is not None and (config.rows, config.columns) != (rows, columns):
        raise FoveateError(
            f"{header} says {rows} lines of {columns} samples where config.txt says "
            f"{config.rows} of {config.columns}; correct the wrong one"
        )
    stored, expected = _entry(text, "data type", header), 6 if number == "c8" else 4
    if stored != expected or _entry(text, "bands", header, 1) != 1:
        raise FoveateError(
            f"{header} says data type {stored} and {_entry(text, 'bands', header, 1)} bands where "
            f"{expected} ({'complex' if expected == 6 else 'float'}, single precision) and 1 were "
            "expected; convert the file"
        )
    order = ">" if _entry(text, "byte order", header, 0) == 1 else "<"
    offset = _entry(text, "header offset", header, 0)
    return _Raster(path, order + number, offset, rows, columns)


def _entry(text: str, key: str, path: Path, default: int | None = None) -> int:
    match = re.search(rf"^\s*{key}\s*=\s*(\S*)\s*$", text, re.MULTILINE | re.IGNORECASE)
    if match is None and default is not None:
        return default
    word = "" if match is None else match[1]
    if not re.fullmatch(r"\d{1,8}", word):
        raise FoveateError(
            f"{path} has {key} = {word[:40]!r} where a whole number was expected; correct it"
        )
    return int(word)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise FoveateError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _MAX_TEXT_BYTES:
        raise FoveateError(f"{path} has more than {_MAX_TEXT_BYTES} bytes, it is no text header")
    return data.decode("latin-1")


def _part(folder: _Folder, window: tuple[int, int, int, int] | None, step: int) -> Window:
    rows, columns = folder.extent
    part = Window(0, 0, rows, columns) if window is None else Window(*window)
    inside = 0 <= part.row <= part.row + part.height <= rows
    inside &= 0 <= part.column <= part.column + part.width <= columns
    if not inside or part.height < 1 or part.width < 1 or step < 1:
        raise FoveateError(
            f"the window {tuple(part)} with step {step} is empty or outside the {rows} rows and "
            f"{columns} columns of {folder.path}"
        )
    pixels = -(-part.height // step) * -(-part.width // step)
    if pixels * 72 > _MAX_BYTES:
        raise FoveateError(
            f"{pixels} matrices of {folder.path} would take {pixels * 72 / 2**30:.0f} GiB; read a "
            "window, or take open_polsar"
        )
    return part


def _read_matrices(
    kind: str, path: Path | str, window: tuple[int, int, int, int] | None, step: int
) -> Matrices:
    folder = _open_folder(path, kind)
    planes = folder.planes(_part(folder, window, step), step)
    if kind == "S2":
        return planes.astype(np.complex64).reshape(*planes.shape[:2], 2, 2)
    planes = planes.astype(np.float32)
    warn_if_indefinite(planes, str(path), 0.0)
    return t3_matrix(planes)


def warn_if_indefinite(channels: Channels, name: str, share: float) -> None:
    """Warn when more than `share` of the matrices ``(..., 9)`` are not positive semidefinite."""
    negative = ~eigenvalues_reach(channels, -1e-6)
    if (count := int(negative.sum())) > share * negative.size:
        warnings.warn(
            f"{name}: {count} of {negative.size} matrices have a negative eigenvalue (below -1e-6 "
            "of the trace); a file may be damaged, or averaged elementwise with too few digits",
            stacklevel=3,
        )


def read_t3(
    folder: Path | str, window: tuple[int, int, int, int] | None = None, step: int = 1
) -> Matrices:
    """Coherency matrices of a folder ``T3`` (or the master's of a folder ``T6``).

    Parameters
    ----------
    folder
        Holds ``T11.bin`` and its eight neighbours.
    window
        Row, column, height, width; everything when None. Only this part of the files is read.
    step
        Every `step`-th row and column of the window.

    Returns
    -------
    ndarray
        ``(h, w, 3, 3)`` complex64, Hermitian; 0 where ``mask_valid_pixels.bin`` is 0.

    Raises
    ------
    FoveateError
        A file is absent or of another size than ``config.txt`` or the header say, a number is
        NaN or infinite, or the window is not inside. A warning says when matrices have negative
        eigenvalues.
    """
    return _read_matrices("T3", folder, window, step)


def read_c3(
    folder: Path | str, window: tuple[int, int, int, int] | None = None, step: int = 1
) -> Matrices:
    """Covariance matrices ``(h, w, 3, 3)`` of a folder ``C3``; as :func:`read_t3`."""
    return _read_matrices("C3", folder, window, step)


def read_s2(
    folder: Path | str, window: tuple[int, int, int, int] | None = None, step: int = 1
) -> Matrices:
    """Scattering matrices ``(h, w, 2, 2)`` (HH, HV; VH, VV) of a folder ``S2``."""
    return _read_matrices("S2", folder, window, step)


def write_t3(folder: Path | str, t3: npt.NDArray[Any]) -> None:
    """Write a folder ``T3`` that PolSARpro and :func:`read_t3` read: data, headers, config.txt.

    Parameters
    ----------
    t3
        Matrices ``(H, W, 3, 3)`` or channels ``(H, W, 9)``.

    Raises
    ------
    FoveateError
        Another shape, NaN, or a folder that cannot be written to.
    """
    folder, t3 = Path(folder), np.asarray(t3)
    channels = t3_channels(t3) if t3.ndim == 4 else t3_channels(t3_matrix(t3))
    if channels.ndim != 3 or channels.size == 0:
        raise FoveateError(
            f"write_t3 expects matrices (H, W, 3, 3) or channels (H, W, 9), got {t3.shape}"
        )
    rows, columns = channels.shape[:2]
    for old in folder.glob("mask_valid_pixels.bin*"):  # of other data: it would blank these
        old.unlink()
    for band, name in enumerate(CHANNELS):
        header = (
            f"ENVI\ndescription = {{{name}}}\nsamples = {columns}\nlines = {rows}\nbands = 1\n"
            "header offset = 0\nfile type = ENVI Standard\ndata type = 4\ninterleave = bsq\n"
            f"byte order = 0\nband names = {{ {name}.bin }}\n"
        )
        with write_whole(folder / f"{name}.bin") as temporary:
            channels[..., band].astype("<f4").tofile(temporary)
        with write_whole(folder / f"{name}.bin.hdr") as temporary:
            temporary.write_text(header, "utf-8")
    entries = {"Nrow": rows, "Ncol": columns, "PolarCase": "monostatic", "PolarType": "full"}
    text = "---------\n".join(f"{key}\n{value}\n" for key, value in entries.items())
    with write_whole(folder / "config.txt") as temporary:
        temporary.write_text(text, "utf-8")


def open_polsar(folder: Path | str) -> Scene:
    """Open a PolSARpro folder as a scene that is read window by window.

    Parameters
    ----------
    folder
        A folder ``T3``, ``C3``, ``S2`` or ``T6`` of whatever name, or one that holds such a
        folder (the first of these that is there is taken).

    Returns
    -------
    Scene
        Nine channels of T3. Of ``S2`` these are single looks of rank 1; average before use.

    Raises
    ------
    FoveateError
        There is no such folder, it is not fully polarimetric, or as :func:`read_t3`.
    """
    folder = Path(folder)
    for place in (folder, *(folder / name for name in ("T3", "C3", "S2", "T6"))):
        for kind, names in _KINDS.items():
            if (place / f"{names[0]}.bin").is_file():
                return _scene(_open_folder(place, kind))
    raise FoveateError(
        f"{folder} is no PolSARpro folder: neither T11.bin, C11.bin nor s11.bin is in it or in a "
        "folder T3, C3, S2 or T6 below it; give the folder that holds these files"
    )


def _scene(source: _Folder) -> Scene:
    rows, columns = source.extent
    if source.kind != "S2":  # a sample from the middle tells whether the files are sound
        height, width = min(rows, 256), min(columns, 256)
        middle = Window((rows - height) // 2, (columns - width) // 2, height, width)
        warn_if_indefinite(source(middle), str(source.path), 0.01)
    named = source.path.resolve()
    name = named.parent.name if named.name.upper() in ("T3", "C3", "S2", "T6") else named.name
    return Scene(
        name or source.kind,
        source.path,
        "polsar",
        rows,
        columns,
        CHANNELS,
        source,
        georeference=_georeference(source.rasters[0].path, source.kind),
        valid=None if source.mask is None else source.valid,
    )


def _georeference(path: Path, kind: str) -> Georeference | None:
    header = next(
        (h for h in (path.with_name(path.name + ".hdr"), path.with_suffix(".hdr")) if h.is_file()),
        None,
    )
    return None if header is None or kind == "S2" else read_envi_header(header).georeference
