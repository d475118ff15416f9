"""Tables from strangers (``.csv``, ``.tsv``, ``.parquet``), checked before they are trusted.

Of a text file every cell stays as it is written, so that the id ``007`` does not become a 7; which
columns are numbers is asked afterwards, column by column, and a number that is missing is a NaN
rather than a column that silently turns into text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from foveate.errors import FoveateError

__all__ = ["TABLES", "numbers_of", "read_table", "some", "texts_of"]

TABLES = (".csv", ".tsv", ".parquet")
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
MAX_BYTES = 2 << 30  # of the file
MAX_ROWS = 2_000_000
MAX_CELLS = MAX_BYTES // 8

Numbers = npt.NDArray[np.float64]


def read_table(path: Path) -> pl.DataFrame:
    """Read a table whole; of a text file every cell is a text, None where nothing is written.

    Raises
    ------
    FoveateError
        It is of another kind, damaged, not UTF-8, or larger than 2 GB or two million rows.
    """
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise FoveateError(f"{path} is no table; expected .csv, .tsv or .parquet")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        if kind == ".parquet":
            # Its own word for how large it is, before anything is unpacked.
            scan = pl.scan_parquet(path, glob=False)
            rows = scan.select(pl.len()).collect().item()
            _check_size(rows, len(scan.collect_schema()))
            return scan.collect()
        with path.open("rb") as file:
            for line in file:
                line.decode()  # polars would replace what is no UTF-8
        separator = "\t" if kind == ".tsv" else ","
        table = pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
        _check_size(len(table), table.width)
    # Damaged parquet can make polars panic, which is no Exception.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise FoveateError(
            f"cannot read {path} as a table ({why}); expected {kind} in UTF-8 with a line of "
            "column names"
        ) from error
    return table


def _check_size(rows: int, columns: int) -> None:
    if rows > MAX_ROWS or rows * columns > MAX_CELLS:
        raise ValueError(f"it has {rows} rows of {columns} columns, which is too much")


def texts_of(column: pl.Series) -> list[str]:
    """Cells without the blanks around them; empty where nothing is written.

    Raises
    ------
    FoveateError
        The cells are no words: lists, bytes, spans of time.
    """
    kind = column.dtype
    if kind.is_nested() or kind in (pl.Binary, pl.Duration, pl.Object):
        raise FoveateError(
            f"column {column.name!r} holds {kind}; ids and labels are texts or integers"
        )
    words: list[str | None] = column.cast(pl.String).str.strip_chars().to_list()
    return [word or "" for word in words]


def numbers_of(column: pl.Series) -> Numbers | None:
    """A column as numbers, or None where it holds texts.

    Returns
    -------
    ndarray
        ``(N, 1)`` float64, or ``(N, D)`` of a column of lists; NaN where a number is missing.

    Raises
    ------
    FoveateError
        Lists of different lengths.
    """
    kind = column.dtype
    if isinstance(kind, (pl.List, pl.Array)):
        if not kind.inner.is_numeric():
            return None
        widths = column.list.len() if isinstance(kind, pl.List) else column.arr.len()
        width = widths.max()
        if not isinstance(width, int) or width < 1 or len(column) * width > MAX_CELLS:
            return None
        least = 0 if widths.null_count() else int(str(widths.min()))
        if least != width:
            raise FoveateError(
                f"the lists of column {column.name!r} have {least} to {width} numbers; "
                "expected as many in every row"
            )
        flat = column.explode().cast(pl.Float64).to_numpy().reshape(len(column), width)
        return np.asarray(flat, np.float64)
    if kind.is_numeric() or kind == pl.Boolean:
        values = column.cast(pl.Float64)
    elif kind == pl.String:
        stripped = column.str.strip_chars()
        there = pl.select(pl.when(~stripped.is_in(MISSING)).then(stripped)).to_series()
        values = there.cast(pl.Float64, strict=False)
        if values.null_count() > there.null_count() or there.null_count() == len(there):
            return None
    else:
        return None
    return np.asarray(values.fill_null(np.nan).to_numpy(), np.float64).reshape(-1, 1)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, for a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    clean = (name if name.isprintable() else ascii(name) for name in names[:most])
    return (", ".join(name[:80] for name in clean) or "nothing") + more
