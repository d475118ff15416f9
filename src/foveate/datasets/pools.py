"""A pool: the items among which somebody chooses what to label next.

Three layouts are read:

- a folder of JPEG or PNG files, also in folders below it; the id of an item is its path from the
  folder on (``birds/0012.png``);
- a table (``.csv``, ``.tsv``, ``.parquet``): one row per item, a column of ids, and numbers. Every
  column of numbers is a feature (in parquet also a column of lists, an embedding); texts are shown
  to the person and otherwise left alone;
- an ``.npz`` file with ``x``, numbers ``(N, D)`` or pictures uint8 ``(N, H, W)``, ``(N, C, H, W)``
  or ``(N, H, W, C)``, and perhaps ``ids``; without them an item's id is its row, from 0 on.

Embeddings made elsewhere come as an ``.npz`` file with ``x`` ``(N, D)`` and perhaps ``ids``, for
any of the three. Every id is unique, and a pool has a fingerprint, so that a session of labels is
never continued on other items. Labels are read from a table with the columns ``id`` and ``label``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image, ImageOps

from foveate.datasets.npz import read_npz
from foveate.datasets.tables import TABLES, numbers_of, read_table, some, texts_of
from foveate.errors import FoveateError

__all__ = ["Pool", "read_labels", "read_pool"]

MAX_BYTES = 2 << 30  # of one array, and of one picture's file
MAX_ITEMS = 2_000_000
MAX_PIXELS = 1 << 26
MAX_WORD = 500  # characters of an id or a label
PICTURES = (".jpg", ".jpeg", ".png")
OTHER_PICTURES = (".bmp", ".gif", ".heic", ".tif", ".tiff", ".webp")
LABEL_COLUMN = "label"

Numbers = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pool:
    """N items with ids, and what is known of each.

    Attributes
    ----------
    source
        Name of the file or folder.
    ids
        N different texts.
    fingerprint
        Hexadecimal hash of the ids and of what the items are (of a folder: of the sizes of its
        files); not of features that came from elsewhere.
    numbers
        ``(N, D)`` float64, finite; None where the items are pictures and nobody gave features.
    groups
        How many neighbouring numbers are measured in one unit, summing to D: 1 for a column of a
        table, D for an embedding.
    notes
        What a person should know: columns that are not used, files that were left out.
    """

    source: str
    ids: tuple[str, ...]
    fingerprint: str
    numbers: Numbers | None = None
    groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    _files: tuple[Path, ...] = field(default=(), repr=False)
    _pixels: Pixels | None = field(default=None, repr=False)  # (N, C, H, W)
    _rows: pl.DataFrame | None = field(default=None, repr=False)
    _places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {name: i for i, name in enumerate(self.ids)})

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def place(self, name: str) -> int:
        """Row of an id; KeyError when the pool has no such item."""
        return self._places[name]

    @property
    def has_pictures(self) -> bool:
        """Whether an item can be looked at."""
        return bool(self._files) or self._pixels is not None

    def path(self, index: int) -> Path | None:
        """File of a picture; None where items are not files."""
        return self._files[index] if self._files else None

    def picture(self, index: int, longest: int) -> Pixels | None:
        """One picture as it is to be seen, not larger than a limit.

        Parameters
        ----------
        longest
            Larger pictures are brought to this many pixels on the longer side.

        Returns
        -------
        ndarray
            ``(H, W, 3)`` uint8 RGB, turned upright; None where items are no pictures.

        Raises
        ------
        FoveateError
            The file cannot be decoded.
        """
        if self._pixels is not None:
            planes = self._pixels[index]
            planes = np.repeat(planes, 3, 0) if planes.shape[0] == 1 else planes
            return _at_most(Image.fromarray(planes.transpose(1, 2, 0)), longest)
        return _decoded(self._files[index], longest) if self._files else None

    def values(self, index: int) -> list[tuple[str, str]]:
        """What the table says of an item, ``(column, text)``; of unnamed numbers, the first 24."""
        if self._rows is not None:
            row = self._rows.row(index, named=True)
            return [(name, "" if value is None else str(value)) for name, value in row.items()]
        if self.has_pictures or self.numbers is None:
            return []
        return [(str(k), f"{value:.4g}") for k, value in enumerate(self.numbers[index, :24])]


def read_pool(
    path: Path | str,
    *,
    id_column: str | None = None,
    columns: Sequence[str] = (),
    features: Path | str | None = None,
) -> Pool:
    """Read a pool in any of the layouts of this module.

    Parameters
    ----------
    path
        A folder, a table or an ``.npz`` file.
    id_column
        Of a table; default ``id``. ``row`` numbers the rows where the table has no such column.
    columns
        Columns of a table that are features; default: all of numbers but the ids and ``label``.
    features
        An ``.npz`` file with embeddings to choose by, instead of what the pool itself brings.

    Raises
    ------
    FoveateError
        Nothing there, no or a single item, an id that is missing or there twice, a missing column,
        a number that is none (NaN, infinite), a picture that cannot be read, a damaged file.
    """
    where = Path(path)
    if not where.exists():
        raise FoveateError(f"there is no pool at {where}: no such file or folder")
    kind = where.suffix.lower()
    if (id_column is not None or columns) and (where.is_dir() or kind not in TABLES):
        raise FoveateError(f"--id and --columns are for tables; {where} is none, leave them out")
    if where.is_dir():
        pool = _from_folder(where)
    elif kind == ".npz":
        pool = _from_npz(where)
    elif kind in TABLES:
        pool = _from_table(where, id_column, tuple(columns), needed=features is None)
    else:
        raise FoveateError(
            f"{where} is no pool: expected a folder of .jpg or .png files, a table (.csv, .tsv, "
            ".parquet) or an .npz file with x"
        )
    if len(pool) < 2:
        raise FoveateError(
            f"{where} has {len(pool)} item(s); a pool of at least 2 is needed to choose from"
        )
    return pool if features is None else _with_features(pool, Path(features))


def read_labels(path: Path | str, pool: Pool | None = None) -> dict[str, str]:
    """Labels of items from a table with the columns ``id`` and ``label``, in the table's order.

    Rows without a label are skipped: they wait for one. Other columns are not looked at.

    Parameters
    ----------
    pool
        Where given, an id that it does not have is an error.

    Raises
    ------
    FoveateError
        No such file or column, an unknown id, an item with two different labels, no label at all.
    """
    where = Path(path)
    if not where.is_file():
        raise FoveateError(f"there are no labels at {where}: no such file")
    table = read_table(where)
    for name in ("id", LABEL_COLUMN):
        if name not in table.columns:
            raise FoveateError(
                f"{where} has no column {name!r} (it has {some(table.columns)}); expected a table "
                "with the columns id and label"
            )
    labels: dict[str, str] = {}
    for row, (name, label) in enumerate(
        zip(texts_of(table["id"]), texts_of(table[LABEL_COLUMN]), strict=True), 1
    ):
        if not label:
            continue
        if not name:
            raise FoveateError(f"row {row} of {where} has a label and no id; fill the id in")
        if len(label) > MAX_WORD or not label.isprintable():
            raise FoveateError(
                f"the label of {some([name])} in {where} is too long or has characters that "
                "cannot be printed; expected a word"
            )
        if labels.setdefault(name, label) != label:
            raise FoveateError(
                f"{where} says that {some([name])} is {labels[name]!r} and that it is {label!r}; "
                "keep one"
            )
    if pool is not None and (unknown := [name for name in labels if name not in pool]):
        raise FoveateError(
            f"{where} has labels for {some(unknown)}, which {pool.source} does not hold; ids must "
            "be written as in the pool"
        )
    return labels


# ------------------------------------------------------------------------------------ folders


def _from_folder(root: Path) -> Pool:
    files: list[Path] = []
    others: dict[str, int] = {}
    for folder, below, names in os.walk(root, onerror=_not_listed):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in PICTURES:
                files.append(Path(folder, name))
            elif suffix in OTHER_PICTURES:
                others[suffix] = others.get(suffix, 0) + 1
        if len(files) > MAX_ITEMS:
            raise FoveateError(f"{root} has more than {MAX_ITEMS} pictures; label a part of them")
    if not files:
        kinds = f" (there are {', '.join(sorted(others))})" if others else ""
        raise FoveateError(f"there is no .jpg or .png picture below {root}{kinds}")
    ids = [file.relative_to(root).as_posix() for file in files]
    _check_ids(ids, str(root), "rename the file")
    digest = hashlib.sha256()
    bad = []
    for name, file in zip(ids, files, strict=True):
        try:
            # The header only; the pixels are looked at when features are made of them.
            with _opened(file):
                pass
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        except FoveateError:
            bad.append(name)
    if bad:
        raise _unreadable(root.name, bad, len(ids))
    told = [f"{count} {suffix} files were left out: .jpg and .png are read"
            for suffix, count in sorted(others.items())]  # fmt: skip
    return Pool(
        root.resolve().name, tuple(ids), digest.hexdigest(), notes=tuple(told), _files=tuple(files)
    )


def _not_listed(error: OSError) -> None:
    raise FoveateError(
        f"cannot look into {error.filename}: {error.strerror}; its pictures would be missing from "
        "the pool without a word"
    ) from error


def _unreadable(source: str, bad: Sequence[str], count: int) -> FoveateError:
    return FoveateError(
        f"{len(bad)} of the {count} pictures of {source} cannot be read: {some(bad)}; repair them "
        "or take them out of the folder"
    )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            raise ValueError("it is no file")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("the file is too large")
        # Formats by name: Pillow's other readers include ones that start programs.
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            if not 0 < image.width * image.height <= MAX_PIXELS:
                raise ValueError(f"it claims {image.width}x{image.height} pixels")
            yield image
    except FoveateError:
        raise
    except Exception as error:  # Pillow raises nearly everything on damaged bytes
        raise FoveateError(f"cannot read the picture {file} ({error})") from error


def _decoded(file: Path, longest: int) -> Pixels:
    with _opened(file) as image:
        image.draft("RGB", (longest, longest))  # JPEG: decoded no finer than needed
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):  # 16 bits and more: the range that is there
            values = np.asarray(upright, np.float64)
            span = max(float(values.max() - values.min()), 1e-9)
            upright = Image.fromarray(np.uint8(255 * (values - values.min()) / span))
        if upright.has_transparency_data:
            backed = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(backed, upright.convert("RGBA"))
        return _at_most(upright.convert("RGB"), longest)


def _at_most(image: Image.Image, longest: int) -> Pixels:
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8)


# ------------------------------------------------------------------------------------ arrays


def _from_npz(path: Path) -> Pool:
    x, ids, names = _x_and_ids(path)
    digest = hashlib.sha256(repr((x.shape, x.dtype.str)).encode())
    digest.update("\0".join(ids).encode())
    digest.update(np.ascontiguousarray(x).data)
    told = ("y is not looked at: labels come from you",) if "y" in names else ()
    if x.ndim == 2:
        numbers = _finite(x.astype(np.float64), ids, str(path))
        return Pool(path.name, ids, digest.hexdigest(), numbers, numbers.shape[1:], told)
    return Pool(path.name, ids, digest.hexdigest(), notes=told, _pixels=_planes(x, path))


def _x_and_ids(path: Path) -> tuple[npt.NDArray[Any], tuple[str, ...], set[str]]:
    """Array x, checked but for its values, an id for each row, and the names of all arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise FoveateError(
            f"cannot read {path} as an .npz file ({error}); copy the file again"
        ) from error
    if "x" not in names:
        raise FoveateError(f"{path} holds {some(sorted(names))} where x was expected")
    arrays = read_npz(path, ("x", "ids") if "ids" in names else ("x",), MAX_BYTES)
    x = arrays["x"]
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf" or 0 in x.shape[1:]:
        raise FoveateError(
            f"x of {path} is {x.dtype} {x.shape} where numbers (N, D) or uint8 pictures (N, H, W), "
            "(N, C, H, W) or (N, H, W, C) were expected"
        )
    if "ids" not in names:
        return x, tuple(map(str, range(len(x)))), names
    if arrays["ids"].shape != x.shape[:1] or arrays["ids"].dtype.kind not in "iuU":
        raise FoveateError(
            f"ids of {path} are {arrays['ids'].dtype} {arrays['ids'].shape} where a text or an "
            f"integer for each of the {len(x)} rows of x was expected"
        )
    ids = tuple(map(str, arrays["ids"].tolist()))
    _check_ids(ids, str(path), "give every row its own")
    return x, ids, names


def _planes(x: npt.NDArray[Any], path: Path) -> Pixels:
    """Pictures as ``(N, C, H, W)``."""
    if x.dtype == np.uint8 and 0 not in x.shape:
        pictures = x.astype(np.uint8, copy=False)
        if x.ndim == 3:
            return pictures[:, None]
        if x.shape[1] in (1, 3):
            return pictures
        if x.shape[3] in (1, 3):
            return np.moveaxis(pictures, 3, 1)
    raise FoveateError(
        f"x of {path} is {x.dtype} {x.shape} where uint8 pictures of 1 or 3 channels, (N, H, W), "
        "(N, C, H, W) or (N, H, W, C), were expected"
    )


def _with_features(pool: Pool, path: Path) -> Pool:
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise FoveateError(f"there are no features at {path}: expected an .npz file with x (N, D)")
    x, ids, names = _x_and_ids(path)
    if x.ndim != 2:
        raise FoveateError(f"x of {path} is {x.shape} where one row of numbers (N, D) was expected")
    numbers = x.astype(np.float64)
    if "ids" in names:
        rows = {name: row for row, name in enumerate(ids)}
        if missing := [name for name in pool.ids if name not in rows]:
            raise FoveateError(
                f"{path} has no features for {some(missing)} of {pool.source}; ids must be "
                "written as in the pool"
            )
        numbers = numbers[[rows[name] for name in pool.ids]]
    elif len(x) != len(pool):
        raise FoveateError(
            f"x of {path} has {len(x)} rows and {pool.source} {len(pool)} items; expected a row "
            "for each, in order of the ids, or ids beside x"
        )
    return replace(pool, numbers=_finite(numbers, pool.ids, str(path)), groups=numbers.shape[1:])


# ------------------------------------------------------------------------------------ tables


def _from_table(path: Path, id_column: str | None, columns: tuple[str, ...], needed: bool) -> Pool:
    table = read_table(path)
    name = id_column or "id"
    if name in table.columns:
        if table[name].dtype.is_nested():
            raise FoveateError(f"column {name!r} of {path} holds lists; ids are texts or integers")
        ids = texts_of(table[name])
        _check_ids(ids, f"column {name!r} of {path}", "give every row its own")
    elif name == "row":
        ids = [str(row) for row in range(len(table))]
    else:
        raise FoveateError(
            f"{path} has no column {name!r} (it has {some(table.columns)}); say with --id which "
            "column names the items, or --id row to number them"
        )
    if missing := [column for column in columns if column not in table.columns]:
        raise FoveateError(
            f"{path} has no column {some(missing)} (it has {some(table.columns)}); see --columns"
        )
    digest = hashlib.sha256("\0".join(ids).encode())
    parts: list[Numbers] = []
    unused: list[str] = []
    for column in columns or table.columns:
        if not columns and column in (name, LABEL_COLUMN):
            continue
        values = numbers_of(table[column])
        if values is None:
            if columns:
                raise FoveateError(
                    f"column {column!r} of {path} has no numbers; give --columns of numbers"
                )
            unused.append(column)
            continue
        digest.update(f"\0{column}\0".encode())
        digest.update(np.ascontiguousarray(values).data)
        parts.append(values)
    if not parts and needed:
        raise FoveateError(
            f"{path} has no column of numbers to choose by; add some, or give --features FILE.npz"
        )
    told = []
    if unused:
        told.append(f"shown, but not used to choose by (no numbers): {some(unused)}")
    if LABEL_COLUMN in table.columns and not columns:
        told.append("the column label is neither shown nor used; --labels reads labels")
    shown = [
        column
        for column in table.columns
        if column in (name, *columns) or column != LABEL_COLUMN
        if not table[column].dtype.is_nested()
    ]
    numbers = _finite(np.concatenate(parts, 1), ids, str(path)) if parts else None
    groups = tuple(part.shape[1] for part in parts)
    return Pool(
        path.name, tuple(ids), digest.hexdigest(), numbers, groups, tuple(told),
        _rows=table.select(shown),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ checks


def _check_ids(ids: Sequence[str], where: str, mend: str) -> None:
    if "" in ids:
        raise FoveateError(f"{where} has no id in row {list(ids).index('') + 1}; {mend}")
    if doubles := [name for name, count in Counter(ids).items() if count > 1]:
        raise FoveateError(f"{where} has an id more than once: {some(doubles)}; {mend}")
    for name in ids:
        if len(name) > MAX_WORD or not name.isprintable():
            raise FoveateError(
                f"{where} has the id {name[:60]!a}, which is longer than {MAX_WORD} "
                f"characters or cannot be printed; {mend}"
            )


def _finite(numbers: Numbers, ids: Sequence[str], where: str) -> Numbers:
    bad = np.flatnonzero(~np.isfinite(numbers).all(1))
    if len(bad):
        raise FoveateError(
            f"{len(bad)} of the {len(ids)} items of {where} have a number that is missing, NaN or "
            f"infinite: {some([ids[i] for i in bad[:9]])}; fill it in or take them out"
        )
    if np.abs(numbers).max(initial=0) > 1e150:  # its square still has to be a number
        raise FoveateError(f"{where} holds numbers beyond 1e150; scale them")
    return numbers
