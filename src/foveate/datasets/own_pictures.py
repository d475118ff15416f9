"""Somebody's own labelled pictures, in whatever usual layout they lie, split in two.

- an ``.npz`` file with ``x`` and ``y``, or with ``x_train``, ``y_train``, ``x_test``, ``y_test``:
  pictures uint8 ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``, labels integers from 0 on;
- a folder with CIFAR-10, CIFAR-100, MNIST or Fashion-MNIST in the official layout;
- a folder with one folder of JPEG or PNG files per class, or with ``train/`` and ``val/`` (also
  ``valid``, ``validation``, ``test``) that each hold such folders. Label k is the k-th class in
  order of the names.

Where a data set brings no second split, a fifth of every class is held out, drawn with a seed. What
is held out is for measuring only: a training picture that is held out as well, byte for byte (many
collections have such doubles), is left out of the training part.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from foveate.datasets.images import CIFAR10, CIFAR100, MNIST, FashionMNIST, LabelledImages
from foveate.datasets.npz import read_npz
from foveate.datasets.pictures import read_picture
from foveate.errors import FoveateError

__all__ = ["OwnPictures", "read_own_pictures"]

MAX_BYTES = 2 << 30  # of one split's pixels; more are not held in memory but thinned
HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OwnPictures:
    """Labelled pictures of one size, in two parts that share no picture.

    Attributes
    ----------
    train, held_out
        ``(N, C, H, W)`` uint8.
    train_labels, held_out_labels
        ``(N,)`` int64.
    classes
        Label values in words; the least number of them that is consistent with the labels where
        the data names none.
    named
        Whether `classes` are the data's own, so that there can be no further one.
    source
        What was read, in words.
    notes
        What a reader of a result should know: pictures left out, the way of the split.
    """

    train: Images
    train_labels: Labels
    held_out: Images
    held_out_labels: Labels
    classes: tuple[str, ...]
    named: bool
    source: str
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one picture."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def digest(self) -> str:
        """Hexadecimal hash of all pixels and labels: equal for equal data, wherever it lies."""
        total = hashlib.sha256()
        for part in (self.train, self.train_labels, self.held_out, self.held_out_labels):
            total.update(repr((part.shape, part.dtype.str)).encode())
            total.update(np.ascontiguousarray(part).data)
        return total.hexdigest()


def read_own_pictures(
    path: Path | str,
    *,
    channels: int | None = None,
    size: int | None = None,
    share: float = 0.2,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> OwnPictures:
    """Read pictures in any of the layouts of this module.

    Parameters
    ----------
    path
        A ``.npz`` file or a folder.
    channels
        1 turns the colour pictures of class folders grey; None or 3 leaves them.
    size
        Pictures of class folders are brought to `size` x `size` pixels: the shorter side is
        resized, the middle is cut out. None: all of them must have one size.
    share
        Part of every class that is held out where the data has only one split.
    seed
        Of that draw.
    max_bytes
        The most that the pixels of one split may take; of more, the same share of every class is
        kept and a note says so.

    Raises
    ------
    FoveateError
        Nothing there, no picture, fewer than two classes, pictures of several sizes, a class with
        too few pictures, or a damaged file.
    """
    where = Path(path)
    if not where.exists():
        raise FoveateError(f"there are no pictures at {where}: no such file or folder")
    if where.is_file():
        if where.suffix.lower() != ".npz":
            raise FoveateError(
                f"{where} is neither a folder nor an .npz file; give a folder of pictures or an "
                ".npz file with x and y"
            )
        found = _from_npz(where, share, seed)
    else:
        known = _known(where)
        if known is not None:
            found = known
        else:
            found = _from_folders(where, channels, size, share, seed, max_bytes)
    return _checked(found, where, max_bytes, seed)


# ------------------------------------------------------------------------------------ layouts


def _from_npz(path: Path, share: float, seed: int) -> OwnPictures:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise FoveateError(
            f"cannot read {path} as an .npz file ({error}); copy the file again"
        ) from error
    split = ("x_train", "y_train", "x_test", "y_test")
    pair = ("x", "y")
    wanted = split if set(split) <= names else pair
    if not set(wanted) <= names:
        raise FoveateError(
            f"{path} holds {', '.join(sorted(names)[:8]) or 'nothing'} where x and y, or "
            f"{', '.join(split)}, were expected"
        )
    arrays = read_npz(path, wanted, MAX_BYTES)
    parts = [
        (_planes(arrays[x], f"{x} of {path}"), _numbers(arrays[y], arrays[x], f"{y} of {path}"))
        for x, y in zip(wanted[::2], wanted[1::2], strict=True)
    ]
    count = 1 + max((int(labels.max(initial=0)) for _, labels in parts), default=0)
    classes = tuple(map(str, range(count)))
    if wanted is split:
        (train, train_labels), (rest, rest_labels) = parts
        return OwnPictures(train, train_labels, rest, rest_labels, classes, False, path.name)
    return _drawn(*parts[0], classes, False, path.name, share, seed)


def _planes(x: npt.NDArray[np.generic], name: str) -> Images:
    """Pictures as ``(N, C, H, W)``."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or min(x.shape, default=0) < 1:
        raise FoveateError(
            f"{name} is {x.dtype} {x.shape} where uint8 pictures (N, H, W), (N, C, H, W) or "
            "(N, H, W, C) were expected"
        )
    pictures = x.astype(np.uint8, copy=False)
    if x.ndim == 3:
        return pictures[:, None]
    if x.shape[1] in (1, 3):
        return pictures
    if x.shape[3] in (1, 3):
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    raise FoveateError(f"{name} is {x.shape} where 1 or 3 channels were expected")


def _numbers(y: npt.NDArray[np.generic], x: npt.NDArray[np.generic], name: str) -> Labels:
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise FoveateError(
            f"{name} is {y.dtype} {y.shape} where one integer for each of the {len(x)} pictures "
            "was expected"
        )
    labels = y.astype(np.int64)
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 1 << 20:
        raise FoveateError(
            f"{name} holds labels from {labels.min()} to {labels.max()}; expected 0 to K-1"
        )
    return labels


def _known(root: Path) -> OwnPictures | None:
    """One of the data sets that have an official layout of their own, if it is there."""
    found: dict[Path, type[LabelledImages]] = {}
    loaders: tuple[type[LabelledImages], ...] = (CIFAR10, CIFAR100, MNIST, FashionMNIST)
    for loader in loaders:
        presence = loader.card.find(root)
        if presence.present and presence.path is not None:
            # The files of MNIST and Fashion-MNIST have equal names: the folder's name decides.
            if loader is FashionMNIST and "fashion" not in presence.path.name.lower():
                continue
            found[presence.path] = loader
    if len(found) > 1:
        raise FoveateError(
            f"below {root} are several data sets ("
            + ", ".join(sorted(str(path.relative_to(root)) for path in found))
            + "); give the folder of one of them"
        )
    if not found:
        return None
    ((_, loader),) = found.items()
    train, test = loader(root, "train"), loader(root, "test")  # type: ignore[call-arg, arg-type]
    return OwnPictures(
        *train.arrays(), *test.arrays(), train.classes, True, train.card.title.partition(" (")[0]
    )


def _from_folders(
    root: Path,
    channels: int | None,
    size: int | None,
    share: float,
    seed: int,
    max_bytes: int,
) -> OwnPictures:
    second = next((root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()), None)
    split = (root / "train").is_dir() and second is not None
    first = root / "train" if (root / "train").is_dir() else root
    files = _listed(first)
    classes = tuple(files)
    if not any(files.values()):
        raise FoveateError(
            f"there is no picture below {first}; expected one folder of .jpg or .png files for "
            "each class, an .npz file, or CIFAR or MNIST in the official layout"
        )
    notes: list[str] = []
    train, train_labels = _decoded(first, files, classes, channels, size, seed, max_bytes, notes)
    if not split or second is None:
        return _drawn(train, train_labels, classes, True, root.name, share, seed, notes)
    others = _listed(second)
    for name in others:
        if name not in files:
            raise FoveateError(f"{second / name} is a class that {first} does not have")
    if not any(others.values()):
        raise FoveateError(f"there is no picture below {second}; the split to measure on is empty")
    rest, rest_labels = _decoded(second, others, classes, channels, size, seed, max_bytes, notes)
    if rest.shape[1:] != train.shape[1:]:
        raise FoveateError(
            f"pictures below {first} are {_size(train[0])} and below {second} {_size(rest[0])}; "
            "bring them to one size with --size"
        )
    return OwnPictures(
        train, train_labels, rest, rest_labels, classes, True, root.name, tuple(notes)
    )


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Class folders in order of their names, and the pictures in each."""
    return {
        child.name: sorted(
            file
            for file in child.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }


def _decoded(
    folder: Path,
    files: dict[str, list[Path]],
    classes: Sequence[str],
    channels: int | None,
    size: int | None,
    seed: int,
    max_bytes: int,
    notes: list[str],
) -> tuple[Images, Labels]:
    paths = [path for of_class in files.values() for path in of_class]
    labels = np.array(
        [classes.index(name) for name, of_class in files.items() for _ in of_class], np.int64
    )
    first = _picture(paths[0], channels, size)
    keep = _thinned(labels, first.nbytes, max_bytes, seed)
    if len(keep) < len(paths):
        notes.append(
            f"of the {len(paths):,} pictures below {folder.name} a share of every class was read, "
            f"{len(keep):,}: more do not fit in {max_bytes >> 20} MB"
        )
    pictures = np.empty((len(keep), *first.shape), np.uint8)
    for place, index in enumerate(keep):
        picture = _picture(paths[index], channels, size)
        if picture.shape != first.shape:
            raise FoveateError(
                f"{paths[index]} is {_size(picture)} where {paths[0]} is {_size(first)}; bring "
                "all pictures to one size with --size"
            )
        pictures[place] = picture
    return pictures, labels[keep]


def _picture(path: Path, channels: int | None, size: int | None) -> Images:
    """One picture ``(C, H, W)``."""
    picture = read_picture(path)
    if size is None and channels != 1:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    if channels == 1:
        image = image.convert("L")
    if size is not None:
        ratio = size / min(image.size)
        wide, high = (max(size, round(side * ratio)) for side in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _size(picture: Images) -> str:
    channels, height, width = picture.shape
    return f"{width}x{height}" + ("" if channels == 3 else f" with {channels} channel(s)")


# ------------------------------------------------------------------------------------ splits


def _order(count: int, seed: int) -> Labels:
    """A random order; the raw stream of PCG64 is the same in every version of numpy."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)


def _per_class(labels: Labels, seed: int) -> Iterable[tuple[int, Labels]]:
    """Every class and its samples in random order."""
    order = _order(len(labels), seed)
    for label in np.unique(labels):
        yield int(label), order[labels[order] == label]


def _thinned(labels: Labels, bytes_each: int, max_bytes: int, seed: int) -> Labels:
    """Indices of so many samples that they fit, the same share of every class, in order."""
    room = max(1, max_bytes // bytes_each)
    if len(labels) <= room:
        return np.arange(len(labels))
    kept = [
        members[: max(1, len(members) * room // len(labels))]
        for _, members in _per_class(labels, seed)
    ]
    return np.sort(np.concatenate(kept))[:room]


def _drawn(
    x: Images,
    y: Labels,
    classes: tuple[str, ...],
    named: bool,
    source: str,
    share: float,
    seed: int,
    notes: Sequence[str] = (),
) -> OwnPictures:
    """Hold out a share of every class."""
    held = []
    for label, members in _per_class(y, seed):
        if len(members) < 2:
            raise FoveateError(
                f"class {classes[label]!r} of {source} has one picture; at least two are needed, "
                "one to train with and one to measure on"
            )
        held.append(members[: max(1, round(share * len(members)))])
    chosen = np.zeros(len(y), bool)
    chosen[np.concatenate(held)] = True
    told = (
        f"{source} has one split: {share:.0%} of every class was held out, drawn with seed {seed}"
    )
    return OwnPictures(
        x[~chosen], y[~chosen], x[chosen], y[chosen], classes, named, source, (*notes, told)
    )


def _checked(found: OwnPictures, where: Path, max_bytes: int, seed: int) -> OwnPictures:
    if len(found.train) == 0 or len(found.held_out) == 0:
        raise FoveateError(f"{where} has no pictures to train with or none to measure on")
    if found.train.shape[1:] != found.held_out.shape[1:]:
        raise FoveateError(
            f"the pictures of {where} to train with are {found.train.shape[1:]} and those to "
            f"measure on {found.held_out.shape[1:]} (channels, height, width)"
        )
    if len(np.unique(found.train_labels)) < 2:
        (label,) = np.unique(found.train_labels)
        raise FoveateError(
            f"all pictures of {where} are of one class ({found.classes[label]}); expected at "
            "least two classes"
        )
    notes = list(found.notes)
    measured = {_digest(picture) for picture in found.held_out}
    new = np.array([_digest(picture) not in measured for picture in found.train])
    doubles = int((~new).sum())
    if doubles:
        found = replace(found, train=found.train[new], train_labels=found.train_labels[new])
        notes.append(
            f"{doubles:,} training picture(s) that are held out as well were left out of training"
        )
    if len(np.unique(found.train_labels)) < 2:
        raise FoveateError(
            f"hardly a picture of {where} is only in the training part: both splits hold the same"
        )
    for part in ("train", "held_out"):
        pictures, labels = getattr(found, part), getattr(found, f"{part}_labels")
        keep = _thinned(labels, pictures[0].nbytes, max_bytes, seed)
        if len(keep) < len(labels):
            notes.append(f"{len(keep):,} of {len(labels):,} pictures were taken: more are too many")
            found = replace(found, **{part: pictures[keep], f"{part}_labels": labels[keep]})
    return replace(found, notes=tuple(notes))


def _digest(picture: Images) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
