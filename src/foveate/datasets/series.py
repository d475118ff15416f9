"""Somebody's own labelled rows, time series or pictures, in three parts that share no row.

- an ``.npz`` file with ``x`` and ``y``, or with ``x_train``, ``y_train``, ``x_test``, ``y_test``
  and perhaps ``x_val``, ``y_val``: series ``(N, T, F)`` of any number type, labels of two or more
  classes (integers, texts or booleans). It may name them: ``classes`` (in order of the sorted
  labels) and ``features``;
- PhysioNet Challenge 2012 as `foveate.datasets.physionet2012` reads it: a folder with the official
  text files or with event lists, or one event list;
- pictures: an ``.npz`` file of uint8, or a folder, as `foveate.datasets.own_pictures` reads them.

What has no parts is divided class by class: a fifth for testing, a fifth of the rest for
validation, drawn with a seed. Rows that belong together (several of one person) no file can tell:
divide them yourself and give all three parts. A training row that is in another part too, number
by number, is left out of training: who measures on what was trained on measures memory.

>>> rows = read_own_rows("stays.npz")  # doctest: +SKIP
>>> x, y = rows.train  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foveate.datasets import physionet2012
from foveate.datasets.npz import read_npz
from foveate.datasets.own_pictures import SUFFIXES, read_own_pictures
from foveate.errors import FoveateError

__all__ = ["OwnRows", "divide", "own_rows", "read_own_rows"]

MAX_BYTES = 4 << 30  # of one array
MAX_PICTURE_BYTES = 512 << 20  # of one split as uint8; four times that as float32
MAX_CLASSES = 1000
_MIN_ROWS = 4  # of a class: two to train on, one to validate, one to test
_PARTS = ("train", "val", "test")
_OFFICIAL = 8000  # stays of sets a and b together, which the authors' division is for
_EXPECTED = (
    "expected an .npz file with x (N, T, F) and y, a folder of PhysioNet 2012 (set-a/ and "
    "Outcomes-a.txt, or physionet2012_set_a.npz), or a folder of pictures with one folder per class"
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Part = tuple[Floats, Ints]
Anything = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class OwnRows:
    """Labelled rows in three parts.

    Attributes
    ----------
    train, val, test
        Rows float32, ``(N, T, F)`` in the data's own units or pictures ``(N, C, H, W)`` from 0 to
        1, and labels ``(N,)`` int64 from 0 on. Every part has every class.
    classes
        Labels in words.
    features
        Names of the F features; empty for pictures.
    kind
        ``series`` or ``pictures``.
    source
        What was read, in words, without the folder it lies in.
    notes
        What a reader of a result should know.
    """

    train: Part
    val: Part
    test: Part
    classes: tuple[str, ...]
    features: tuple[str, ...]
    kind: Literal["series", "pictures"]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: ``(T, F)`` or ``(C, H, W)``."""
        return self.train[0].shape[1:]

    @property
    def parts(self) -> dict[str, Part]:
        """``{"train": ..., "val": ..., "test": ...}``."""
        return dict(zip(_PARTS, (self.train, self.val, self.test), strict=True))

    def counts(self) -> dict[str, list[int]]:
        """Rows of every class in every part."""
        return {
            name: np.bincount(y, minlength=len(self.classes)).tolist()
            for name, (_, y) in self.parts.items()
        }

    def digest(self) -> str:
        """Hexadecimal hash of all numbers, labels and names: equal for equal data anywhere."""
        total = hashlib.sha256(repr((self.classes, self.features, self.kind)).encode())
        for array in (*self.train, *self.val, *self.test):
            total.update(repr(array.shape).encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def read_own_rows(path: Path | str, *, image: bool | None = None, seed: int = 0) -> OwnRows:
    """Read rows in any of the layouts of this module.

    Parameters
    ----------
    image
        True: pictures; False: series. None: what is there decides (uint8 arrays and folders with
        picture files are pictures).
    seed
        Of the division, where the data brings none.

    Raises
    ------
    FoveateError
        Nothing there, another format or rank, numbers that are missing, labels that do not fit, a
        single class, or a class with too few rows.
    """
    where = Path(path)
    if not where.exists():
        raise FoveateError(f"there is no data at {where}: no such file or folder; {_EXPECTED}")
    if where.is_file():
        if where.suffix.lower() != ".npz":
            raise FoveateError(f"{where} is no .npz file; {_EXPECTED}")
        names = _names(where)
        if {"record", "minute", "param", "outcomes"} <= names and not image:
            letter = where.stem[-1:]
            if where.name != f"physionet2012_set_{letter}.npz":
                raise FoveateError(
                    f"{where} is an event list of PhysioNet 2012 under another name; call it "
                    "physionet2012_set_a.npz (or b, or c)"
                )
            return _stays(where.parent, [letter], seed)
        return _from_npz(where, names, image, seed)
    if not image:
        folder, letters = _sets(where)
        if letters:
            return _stays(folder, letters, seed)
        if image is False:
            raise FoveateError(f"{where} is a folder without series; {_EXPECTED}")
    return _pictures(where, seed)


def own_rows(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    classes: Sequence[str] = (),
    features: Sequence[str] = (),
    seed: int = 0,
    source: str = "rows as given",
) -> OwnRows:
    """The same from arrays: series ``(N, T, F)`` and labels ``(N,)``, divided class by class."""
    return _divided(np.asarray(x), np.asarray(y), classes, features, source, seed, source)


def divide(y: Ints, seed: int = 0) -> tuple[Ints, Ints, Ints]:
    """Indices of train, val and test: of every class a fifth is test, of the rest a fifth is val.

    Each in ascending order. A class of fewer than four rows cannot be divided; a class always has
    at least one row in every part.
    """
    # The raw stream of PCG64 is the same in every version of numpy.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(y)), kind="stable").astype(np.int64)
    parts: tuple[list[Ints], ...] = ([], [], [])
    for label in np.unique(y):
        members = order[y[order] == label]
        tested = max(1, round(0.2 * len(members)))
        validated = max(1, round(0.2 * (len(members) - tested)))
        cuts = np.split(members, [tested, tested + validated])
        for part, rows in zip(parts, (cuts[2], cuts[1], cuts[0]), strict=True):
            part.append(rows)
    train, val, test = (np.sort(np.concatenate(part)) for part in parts)
    return train, val, test


# ------------------------------------------------------------------------------------ layouts


def _names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise FoveateError(
            f"cannot read {path} as an .npz file ({error}); write it again with numpy.savez"
        ) from error


def _from_npz(path: Path, names: set[str], image: bool | None, seed: int) -> OwnRows:
    split = {f"{what}_{part}" for what in "xy" for part in ("train", "test")} <= names
    if not split and not {"x", "y"} <= names:
        missing = "the labels y" if "x" in names else "x and y"
        raise FoveateError(
            f"{path} holds {', '.join(sorted(names)[:8]) or 'nothing'}: {missing} are missing; "
            "expected x and y, or x_train, y_train, x_test, y_test (and x_val, y_val)"
        )
    with_val = split and {"x_val", "y_val"} <= names
    suffixes = ("_train", *(("_val",) if with_val else ()), "_test") if split else ("",)
    if split and not with_val and names & {"x_val", "y_val"}:
        raise FoveateError(f"{path} has one of x_val and y_val; give both or neither")
    named = tuple(name for name in ("classes", "features") if name in names)
    wanted = tuple(f"{what}{suffix}" for suffix in suffixes for what in "xy")
    arrays = read_npz(path, wanted + named, MAX_BYTES)
    first = arrays[wanted[0]]
    if image is None:
        image = first.dtype == np.uint8 and first.ndim in (3, 4)
    words = {name: [str(word) for word in arrays[name].ravel()] for name in named}
    if image:
        if first.dtype != np.uint8:
            raise FoveateError(
                f"--image, and {wanted[0]} of {path} is {first.dtype}; expected uint8 pictures "
                "(N, H, W), (N, C, H, W) or (N, H, W, C)"
            )
        pictures = _pictures(path, seed, unused=with_val)
        if "classes" not in words:
            return pictures
        if len(words["classes"]) != len(pictures.classes):
            raise FoveateError(
                f"{path} names {len(words['classes'])} classes and has labels of "
                f"{len(pictures.classes)}; name every class once, in order of the labels"
            )
        return replace(pictures, classes=tuple(words["classes"]))
    classes, features = words.get("classes", ()), words.get("features", ())
    if not split:
        return _divided(arrays["x"], arrays["y"], classes, features, path.name, seed, str(path))
    pieces = [
        (_series(arrays[f"x{s}"], f"x{s} of {path}"), _labels(arrays, s, path)) for s in suffixes
    ]
    shapes = {x.shape[1:] for x, _ in pieces}
    if len(shapes) > 1:
        raise FoveateError(
            f"the parts of {path} have rows (T, F) of {' and '.join(map(str, sorted(shapes)))}; "
            "expected one size"
        )
    if len({y.dtype.kind in "US" for _, y in pieces}) > 1:
        raise FoveateError(f"the labels of {path} are texts in one part and numbers in another")
    known, numbered = _numbered([y for _, y in pieces], classes, str(path))
    parts = [(x, y) for (x, _), y in zip(pieces, numbered, strict=True)]
    notes = []
    if not with_val:
        (x, y), test = parts
        _, rest = _fifth(y, seed, known, str(path))
        chosen = np.zeros(len(y), bool)
        chosen[rest] = True
        parts = [(x[~chosen], y[~chosen]), (x[chosen], y[chosen]), test]
        notes.append("a fifth of every class of the training rows was taken for validation")
    return _checked(parts, known, features, "series", path.name, notes, str(path))


def _labels(arrays: dict[str, Anything], suffix: str, path: Path) -> Anything:
    x, y = arrays[f"x{suffix}"], arrays[f"y{suffix}"]
    return _one_each(y, len(x), f"y{suffix} of {path}")


def _one_each(y: Anything, count: int, what: str) -> Anything:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (count,):
        raise FoveateError(
            f"{what} has the shape {y.shape} and there are {count} rows; expected one label for "
            f"each, ({count},)"
        )
    return y


def _divided(
    x: Anything,
    y: Anything,
    classes: Sequence[str],
    features: Sequence[str],
    source: str,
    seed: int,
    what: str,
) -> OwnRows:
    rows = _series(x, f"x of {what}")
    known, (labels,) = _numbered([_one_each(y, len(rows), f"y of {what}")], classes, what)
    _enough(labels, known, what)
    parts = [(rows[part], labels[part]) for part in divide(labels, seed)]
    notes = [f"divided class by class into train, validation and test with seed {seed}"]
    return _checked(parts, known, features, "series", source, notes, what)


def _sets(where: Path) -> tuple[Path, list[str]]:
    """The folder of PhysioNet 2012 at or below `where`, and the sets that are in it."""
    card = physionet2012.PhysioNet2012.card
    for folder in (where, *(where / name for name in card.folders)):
        letters = [
            letter
            for letter in "abc"
            if (folder / f"Outcomes-{letter}.txt").is_file()
            or (folder / f"physionet2012_set_{letter}.npz").is_file()
        ]
        if letters:
            return folder, letters
    return where, []


def _stays(folder: Path, letters: list[str], seed: int) -> OwnRows:
    stays = physionet2012.PhysioNet2012(folder, letters)
    classes = physionet2012.PhysioNet2012.card.classes
    _enough(stays.labels, classes, str(folder))
    if letters == ["a", "b"] and len(stays) == _OFFICIAL:
        indices = physionet2012.split(len(stays))
        note = "divided into 5,120, 1,280 and 1,600 stays as by the authors of the method"
    else:
        indices = divide(stays.labels, seed)
        note = f"divided class by class into train, validation and test with seed {seed}"
    x, features = stays.features(indices[0])
    parts = [(x[part], stays.labels[part]) for part in indices]
    notes = [
        note,
        "hourly means of 37 measured parameters, gaps filled forward in time and then by the "
        "training mean; seven columns of what is known on admission",
    ]
    source = f"PhysioNet 2012, set{'s' if len(letters) > 1 else ''} {' and '.join(letters)}"
    return _checked(parts, classes, features, "series", source, notes, str(folder))


def _pictures(path: Path, seed: int, unused: bool = False) -> OwnRows:
    try:
        found = read_own_pictures(path, seed=seed, max_bytes=MAX_PICTURE_BYTES)
    except FoveateError as error:
        if path.is_dir() and not any(f.suffix.lower() in SUFFIXES for f in path.rglob("*.*")):
            raise FoveateError(
                f"there are neither series nor pictures in {path}; {_EXPECTED}"
            ) from (error)
        raise
    kept, rest = _fifth(found.train_labels, seed, found.classes, str(path))

    def scaled(pixels: npt.NDArray[np.uint8]) -> Floats:
        shares: Floats = pixels.astype(np.float32) / np.float32(255)
        return shares

    parts = [
        (scaled(found.train[kept]), found.train_labels[kept]),
        (scaled(found.train[rest]), found.train_labels[rest]),
        (scaled(found.held_out), found.held_out_labels),
    ]
    notes = [
        *found.notes,
        "a fifth of every class of the training pictures was taken for validation",
        *(["x_val and y_val were not read: pictures come in two parts"] if unused else []),
    ]
    return _checked(parts, found.classes, (), "pictures", found.source, notes, str(path))


# ------------------------------------------------------------------------------------ checks


def _series(x: Anything, what: str) -> Floats:
    """As finite float32 ``(N, T, F)``."""
    if x.dtype.kind not in "fiub":
        raise FoveateError(f"{what} is {x.dtype}; expected numbers (N, T, F)")
    if x.ndim == 2:
        raise FoveateError(
            f"{what} has the shape {x.shape}; expected (N, T, F): rows, steps in time, features; "
            "of a table without time make x[:, None], of one feature over time x[:, :, None]"
        )
    if x.ndim != 3 or min(x.shape) < 1:
        more = "; pictures are uint8, or use --image" if x.ndim == 4 else ""
        raise FoveateError(
            f"{what} has the shape {x.shape}; expected (N, T, F) with at least one of each: rows, "
            f"steps in time, features{more}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        rows: Floats = np.ascontiguousarray(x, np.float32)
    bad = ~np.isfinite(rows).all((1, 2))
    if bad.any():
        row = int(bad.argmax())
        step, feature = np.argwhere(~np.isfinite(rows[row]))[0]
        raise FoveateError(
            f"{int(bad.sum())} of the {len(rows)} rows of {what} have numbers that are missing or "
            f"not finite (the first: row {row}, step {step}, feature {feature}); fill the gaps "
            "first, for instance with foveate.datasets.physionet2012.fill_gaps"
        )
    return rows


def _numbered(
    labels: list[Anything], classes: Sequence[str], what: str
) -> tuple[tuple[str, ...], list[Ints]]:
    """Names of the classes in order of the sorted labels, and the labels as 0 .. C-1."""
    for y in labels:
        if y.dtype.kind not in "iubUSf":
            raise FoveateError(f"the labels of {what} are {y.dtype}; expected integers or texts")
        if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.round(y)).all()):
            raise FoveateError(
                f"the labels of {what} are numbers with fractions or missing ones; expected "
                "classes as integers or texts"
            )
    found, where = np.unique(np.concatenate(labels), return_inverse=True)
    count = len(found)
    if count < 2:
        raise FoveateError(
            f"{what} has a single class ({', '.join(map(str, found)) or 'no row'}); condensing "
            "needs two or more to tell apart"
        )
    if count > MAX_CLASSES:
        raise FoveateError(f"{what} has {count} different labels; expected at most {MAX_CLASSES}")
    if classes and len(set(classes)) != count:
        raise FoveateError(
            f"{what} names {len(set(classes))} classes and has labels of {count}; name every class "
            "once, in order of the sorted labels"
        )
    whole = found.astype(np.int64) if found.dtype.kind == "f" else found
    names = tuple(classes) or tuple(
        word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in whole
    )
    ends = np.cumsum([len(y) for y in labels])[:-1]
    return names, [part.astype(np.int64) for part in np.split(where.reshape(-1), ends)]


def _enough(y: Ints, classes: Sequence[str], what: str, least: int = _MIN_ROWS) -> None:
    for label, name in enumerate(classes):
        count = int((y == label).sum())
        if count < least:
            raise FoveateError(
                f"class {name!r} of {what} has {count} row{'' if count == 1 else 's'}; at least "
                f"{least} are needed to train, validate and test; give more or leave the class out"
            )


def _fifth(y: Ints, seed: int, classes: Sequence[str], what: str) -> tuple[Ints, Ints]:
    """Indices of the rows kept, and of a fifth of every class."""
    _enough(y, classes, f"the training rows of {what}", _MIN_ROWS - 1)
    train, val, test = divide(y, seed)
    return np.sort(np.concatenate([train, val])), test


def _checked(
    parts: Sequence[tuple[Floats, Ints]],
    classes: Sequence[str],
    features: Sequence[str],
    kind: Literal["series", "pictures"],
    source: str,
    notes: Sequence[str],
    what: str,
) -> OwnRows:
    (x, y), val, test = parts
    width = x.shape[2] if kind == "series" else 0
    if features and len(features) != width:
        raise FoveateError(
            f"{what} names {len(features)} features and has {width}; name every feature or none"
        )
    held = {_row_digest(row) for part, _ in (val, test) for row in part}
    new = np.array([_row_digest(row) not in held for row in x], bool)
    told = list(notes)
    if not new.all():
        told.append(
            f"{int((~new).sum()):,} training rows that are in validation or test as well, number "
            "by number, were left out of training"
        )
        x, y = x[new], y[new]
    for name, labels in (("training", y), ("validation", val[1]), ("test", test[1])):
        for label, word in enumerate(classes):
            least = 2 if name == "training" else 1
            count = int((labels == label).sum())
            if count < least:
                raise FoveateError(
                    f"class {word!r} has {count or 'no'} row{'' if count == 1 else 's'} among the "
                    f"{name} rows of {what}, where {least} or more are needed; "
                    "every part needs every class"
                )
    names = tuple(features) or tuple(f"feature {k}" for k in range(width))
    return OwnRows((x, y), val, test, tuple(classes), names, kind, source, tuple(told))


def _row_digest(row: Floats) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest()
