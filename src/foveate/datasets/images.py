"""One picture, one label: CIFAR-10 and -100, MNIST, Fashion-MNIST and ImageNet.

Each is read in its official layout; what a file claims is compared with its size before memory is
taken for it.

- CIFAR: the *binary version* (records of 1 or 2 label bytes and 3072 pixel bytes, planes red,
  green, blue). The python version is not read because it is pickle, which can run code.
  CIFAR-10 also as ``.npz`` files with ``x`` and ``y``.
- MNIST and Fashion-MNIST: the four idx files, packed with gzip or not. An idx file is big-endian:
  the bytes ``0 0 8 n`` (8: unsigned bytes, n axes), n 32-bit lengths, then the numbers.
- ImageNet: one folder of JPEG files per class.

A data set has a length, and an item is ``(picture uint8 (C, H, W), label int)`` with the picture
as a torch tensor, which is what a ``torch.utils.data.DataLoader`` wants. The small ones lie whole
in memory: ``images``, ``labels``, or both by ``arrays()``.

>>> train = CIFAR10(root)  # doctest: +SKIP
>>> few = balanced_subset(train.labels, per_class=500, seed=0)  # doctest: +SKIP
>>> x = mean_pool(train.images[few], 2)  # (5000, 3, 16, 16)  # doctest: +SKIP
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.npz import read_npz
from foveate.datasets.pictures import read_picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "FashionMNIST",
    "ImageNet",
    "LabelledImages",
    "balanced_subset",
    "mean_pool",
]

MAX_BYTES = 1 << 30  # of one file's numbers; CIFAR's largest has 154 MB
_DEFLATE_RATIO = 1032  # no deflate stream expands by more

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def balanced_subset(labels: npt.ArrayLike, per_class: int, seed: int) -> Labels:
    """Draw the same number of samples of every class; equal arguments give an equal draw.

    The order of draw comes from the raw stream of PCG64, which numpy promises to keep, and not
    from a distribution, which it does not.

    Parameters
    ----------
    labels
        ``(N,)`` integers.
    per_class
        Samples of each class that occurs.

    Returns
    -------
    ndarray
        Indices into `labels`, ascending.

    Raises
    ------
    FoveateError
        A class has fewer than `per_class` samples.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.size == 0 or per_class < 1:
        raise FoveateError(
            "balanced_subset expects labels (N,) of integers and per_class of at least 1, got "
            f"{array.shape} of {array.dtype} and {per_class}"
        )
    order = np.argsort(np.random.PCG64(seed).random_raw(array.size), kind="stable")
    kept = []
    for label in np.unique(array):
        members = order[array[order] == label]
        if members.size < per_class:
            raise FoveateError(
                f"class {label} has {members.size} samples where {per_class} were asked for; "
                "ask for fewer"
            )
        kept.append(members[:per_class])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def mean_pool(images: Images, factor: int) -> Images:
    """Shrink pictures by the mean over squares of `factor` by `factor` pixels, halves rounded up.

    Parameters
    ----------
    images
        ``(..., H, W)`` uint8, H and W divisible by `factor`.

    Returns
    -------
    ndarray
        ``(..., H / factor, W / factor)`` uint8.

    Raises
    ------
    FoveateError
        Not uint8, or a size that is not divisible.
    """
    if (
        images.dtype != np.uint8
        or images.ndim < 2
        or not 1 <= factor <= 4096
        or images.shape[-1] % factor
        or images.shape[-2] % factor
    ):
        raise FoveateError(
            f"mean_pool expects uint8 pictures whose sides are multiples of {factor}, got "
            f"{images.dtype} {images.shape}"
        )
    *front, height, width = images.shape
    squares = images.reshape(*front, height // factor, factor, width // factor, factor)
    total: npt.NDArray[np.uint64] = squares.sum(axis=(-3, -1), dtype=np.uint64)
    area = factor * factor
    return ((2 * total + area) // (2 * area)).astype(np.uint8)


class LabelledImages:
    """Pictures of one size, whole in memory.

    Attributes
    ----------
    images
        ``(N, C, H, W)`` uint8.
    labels
        ``(N,)`` int64.
    classes
        Label values in words.
    """

    card: ClassVar[DataCard]

    def __init__(self, images: Images, labels: Labels, classes: tuple[str, ...]) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import torch

        return torch.from_numpy(self.images[index].copy()), int(self.labels[index])

    def arrays(self) -> tuple[Images, Labels]:
        """All pictures ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64; not copies."""
        return self.images, self.labels

    @classmethod
    def _folder(cls, root: Path | str, split: str) -> Path:
        """Folder below `root` that holds the data set; says what is missing."""
        if split not in cls.card.splits:
            raise FoveateError(
                f"{cls.card.name} has no split {split!r}; choose one of "
                f"{', '.join(cls.card.splits)}"
            )
        folder = cls.card.find(root).path
        if folder is None:
            raise cls._missing(root)
        return folder

    @classmethod
    def _missing(cls, where: Path | str) -> FoveateError:
        return FoveateError(
            f"{cls.card.title} is not below {where}; expected {cls.card.layout}; see {cls.card.url}"
        )


def _check_labels(labels: npt.NDArray[np.uint8], classes: int, path: Path) -> Labels:
    if labels.size and int(labels.max()) >= classes:
        at = int(np.flatnonzero(labels >= classes)[0])
        raise FoveateError(
            f"sample {at} of {path} has the label {labels[at]} where 0 to {classes - 1} was "
            "expected; copy the file again"
        )
    return labels.astype(np.int64)


# ------------------------------------------------------------------------------------ CIFAR


_CIFAR_SHAPE = (3, 32, 32)


def _cifar_records(path: Path, label_bytes: int) -> tuple[Images, Images]:
    """Pictures ``(N, 3, 32, 32)`` and label bytes ``(N, label_bytes)`` of a binary version."""
    record = label_bytes + math.prod(_CIFAR_SHAPE)
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES or size % record:
            raise ValueError(f"{size} bytes where records of {record} bytes were expected")
        with path.open("rb") as file:
            data = np.fromfile(file, np.uint8, size)
        if data.size != size:
            raise ValueError(f"it ends after {data.size} of {size} bytes")
    except (OSError, ValueError) as error:
        raise FoveateError(
            f"cannot read {path} as CIFAR's binary version ({error}); copy the file again"
        ) from error
    rows = data.reshape(-1, record)
    pictures = np.ascontiguousarray(rows[:, label_bytes:]).reshape(-1, *_CIFAR_SHAPE)
    return pictures, rows[:, :label_bytes]


class CIFAR10(LabelledImages):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour pictures 32x32 of 10 classes.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train`` or ``test``.
    batches
        Which of the training batches 1 to 5 to read, in this order; all that are present when
        None. Official order is kept within a batch, so that a subset of batch 1 is the same
        whatever else is there.

    Attributes
    ----------
    batches
        Training batches that were read; empty for ``test``.

    Raises
    ------
    FoveateError
        A wanted file is missing, or its size or content is wrong.
    """

    card = DataCard(
        name="cifar10",
        title="CIFAR-10 (2009)",
        task="image classification",
        licence="no formal licence, cite (as remembered); the npm copy states ISC",
        size="50,000 + 10,000 images 32x32, 10 classes (npz copy: batch 1 and the test set)",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        layout=(
            "cifar-10-batches-bin/data_batch_{1..5}.bin, test_batch.bin (binary version), or "
            "images/cifar10_data_batch_N.npz, cifar10_test_batch.npz (x, y)"
        ),
        kinds={
            "training batches": ("data_batch_[1-5].bin", "cifar10_data_batch_[1-5].npz"),
            "test batch": ("test_batch.bin", "cifar10_test_batch.npz"),
        },
        folders=("cifar-10-batches-bin", "cifar10", "images"),
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        splits={"train": "data_batch_1 to data_batch_5", "test": "test_batch"},
        loader="foveate.datasets.images.CIFAR10",
        notes="the python version is not read: it is pickle",
    )

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        batches: Iterable[int] | None = None,
    ) -> None:
        folder = self._folder(root, split)
        wanted = tuple(range(1, 6)) if batches is None else tuple(batches)
        if not wanted or not set(wanted) <= set(range(1, 6)) or len(set(wanted)) < len(wanted):
            raise FoveateError(
                f"CIFAR-10 has the training batches 1 to 5, each once, asked for {wanted}"
            )
        names = ["test_batch"] if split == "test" else [f"data_batch_{n}" for n in wanted]
        parts, self.batches = [], []
        for name in names:
            path = next(
                (
                    path
                    for path in (folder / f"{name}.bin", folder / f"cifar10_{name}.npz")
                    if path.is_file()
                ),
                None,
            )
            if path is not None:
                parts.append(self._read(path))
                if split == "train":
                    self.batches.append(int(name[-1]))
            elif split == "test" or batches is not None:
                raise FoveateError(
                    f"there is no {name}.bin or cifar10_{name}.npz in {folder}; "
                    f"get it from {self.card.url}"
                )
        if not parts:
            raise self._missing(folder)
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        super().__init__(images, labels, self.card.classes)

    def _read(self, path: Path) -> tuple[Images, Labels]:
        if path.suffix == ".bin":
            images, labels = _cifar_records(path, 1)
            return images, _check_labels(labels[:, 0], 10, path)
        content = read_npz(path, ("x", "y"), MAX_BYTES)
        x, y = content["x"], content["y"]
        if (
            x.dtype != np.uint8
            or y.dtype != np.uint8
            or y.size == 0
            or x.shape != (y.size, *_CIFAR_SHAPE)
            or y.shape != (y.size,)
        ):
            raise FoveateError(
                f"{path} holds x {x.dtype} {x.shape} and y {y.dtype} {y.shape} where uint8 "
                "(N, 3, 32, 32) and uint8 (N,) were expected; copy the file again"
            )
        return x, _check_labels(y, 10, path)


_CIFAR100_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR100_COARSE = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture insects large_carnivores "
    "large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores "
    "medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 "
    "vehicles_2"
)


class CIFAR100(LabelledImages):
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour pictures 32x32 of 100 classes.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train`` or ``test``.
    labels
        ``fine``: 100 classes; ``coarse``: the 20 groups they belong to.

    Raises
    ------
    FoveateError
        The file is missing, or its size or content is wrong.
    """

    card = DataCard(
        name="cifar100",
        title="CIFAR-100 (2009)",
        task="image classification",
        licence="no formal licence, cite (as remembered)",
        size="50,000 + 10,000 images 32x32, 100 classes in 20 groups",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        layout="cifar-100-binary/train.bin, test.bin (binary version)",
        kinds={"training file": ("train.bin",), "test file": ("test.bin",)},
        folders=("cifar-100-binary", "cifar100"),
        classes=tuple(_CIFAR100_FINE.split()),
        splits={"train": "train.bin", "test": "test.bin"},
        loader="foveate.datasets.images.CIFAR100",
        notes="the python version is not read: it is pickle",
    )
    GROUPS: ClassVar[tuple[str, ...]] = tuple(_CIFAR100_COARSE.split())

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        labels: Literal["fine", "coarse"] = "fine",
    ) -> None:
        folder = self._folder(root, split)
        if labels not in ("fine", "coarse"):
            raise FoveateError(f"CIFAR-100 has 'fine' and 'coarse' labels, asked for {labels!r}")
        path = folder / f"{split}.bin"
        images, both = _cifar_records(path, 2)
        groups = _check_labels(both[:, 0], 20, path)
        fine = _check_labels(both[:, 1], 100, path)
        if labels == "fine":
            super().__init__(images, fine, self.card.classes)
        else:
            super().__init__(images, groups, self.GROUPS)


# ------------------------------------------------------------------------------ MNIST family


def _idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Numbers of an idx file of unsigned bytes with `axes` axes, packed with gzip or not."""
    head_size = 4 + 4 * axes
    try:
        packed = path.suffix == ".gz"
        size = path.stat().st_size
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            head = file.read(head_size)
            if len(head) < head_size or head[:4] != bytes((0, 0, 8, axes)):
                raise ValueError(f"it does not begin as an idx file of {axes} axes does")
            shape = struct.unpack(f">{axes}I", head[4:])
            count = math.prod(shape)
            room = size * _DEFLATE_RATIO if packed else size - head_size
            if count > min(room, MAX_BYTES):
                raise ValueError(f"it claims {shape} numbers in a file of {size} bytes")
            data = file.read(count + 1)  # one more: there must be nothing behind the numbers
        if len(data) != count:
            amount = "more" if len(data) > count else f"only {len(data)}"
            raise ValueError(f"it claims {count} numbers and has {amount}")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise FoveateError(
            f"cannot read {path} as an idx file ({error}); copy the file again"
        ) from error
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)


class MNIST(LabelledImages):
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 grey pictures 28x28 of handwritten digits.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder. MNIST and Fashion-MNIST have equal file
        names: keep them in folders of their own.
    split
        ``train`` or ``test``.

    Raises
    ------
    FoveateError
        A file is missing, its header claims what it does not hold, or the two disagree.
    """

    card = DataCard(
        name="mnist",
        title="MNIST (1998)",
        task="image classification",
        licence="CC BY-SA 3.0 (as remembered)",
        size="60,000 + 10,000 images 28x28, 10 classes",
        url="http://yann.lecun.com/exdb/mnist/",
        citation="Y. LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998",
        layout="mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]",
        kinds={
            "images": tuple(
                f"{part}-images-idx3-ubyte{end}"
                for part in ("train", "t10k")
                for end in ("", ".gz")
            ),
            "labels": tuple(
                f"{part}-labels-idx1-ubyte{end}"
                for part in ("train", "t10k")
                for end in ("", ".gz")
            ),
        },
        folders=("mnist", "MNIST/raw", "MNIST"),
        classes=tuple("0123456789"),
        splits={"train": "60,000", "test": "10,000"},
        loader="foveate.datasets.images.MNIST",
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        folder = self._folder(root, split)
        part = "train" if split == "train" else "t10k"
        paths = []
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            found = [folder / f"{name}{end}" for end in ("", ".gz")]
            paths.append(next((path for path in found if path.is_file()), found[-1]))
        images, labels = _idx(paths[0], 3), _idx(paths[1], 1)
        if len(images) != len(labels) or images.size == 0:
            raise FoveateError(
                f"{paths[0]} has {len(images)} pictures of {images.shape[1]}x{images.shape[2]} and "
                f"{paths[1]} {len(labels)} labels; copy both again"
            )
        super().__init__(images[:, None], _check_labels(labels, 10, paths[1]), self.card.classes)


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey pictures 28x28 of clothing.

    Parameters, layout and errors are those of :class:`MNIST`.
    """

    card = DataCard(
        name="fashion-mnist",
        title="Fashion-MNIST (2017)",
        task="image classification",
        licence="MIT",
        size="60,000 + 10,000 images 28x28, 10 classes",
        url="https://github.com/zalandoresearch/fashion-mnist",
        citation="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017",
        layout=(
            "fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz] "
            "(Debian: dataset-fashion-mnist)"
        ),
        kinds=MNIST.card.kinds,
        folders=("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        splits={"train": "60,000", "test": "10,000"},
        loader="foveate.datasets.images.FashionMNIST",
        elsewhere=(Path("/usr/share/datasets"),),  # Debian's dataset-fashion-mnist
    )


# ---------------------------------------------------------------------------------- ImageNet


class ImageNet:
    """ImageNet ILSVRC 2012 (Russakovsky et al. 2015): 1.28 million photos of 1000 classes.

    Both splits lie in one folder per class, named by its WordNet number; label k is the k-th
    number in order, over the training folders when they are there, so that both splits agree.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train`` or ``val``.
    transform
        Applied to each picture, ``(3, H, W)`` uint8 tensor of its own size -> tensor.

    Attributes
    ----------
    classes
        WordNet numbers ``nNNNNNNNN`` in order.
    labels
        ``(N,)`` int64.

    Raises
    ------
    FoveateError
        There is no picture of the split, or, on access, a picture cannot be decoded.
    """

    card = DataCard(
        name="ImageNet",
        title="ImageNet ILSVRC 2012",
        task="image classification",
        licence="on registration, non-commercial research (as remembered)",
        size="1.28 M training and 50,000 validation images, 1000 classes",
        url="https://www.image-net.org/download.php",
        citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015",
        layout="train/nNNNNNNNN/*.JPEG and val/nNNNNNNNN/*.JPEG",
        kinds={"training classes": ("train/n*",), "validation classes": ("val/n*",)},
        folders=("ImageNet", "imagenet", "ILSVRC2012"),
        splits={"train": "1,281,167 images", "val": "50,000 images"},
        gated=True,
        loader="foveate.datasets.images.ImageNet",
    )

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if split not in self.card.splits:
            raise FoveateError(f"ImageNet has no split {split!r}; choose train or val")
        self.transform = transform
        folder = self.card.find(root).path or Path(root)
        of_split = _class_folders(folder / split)
        self.classes = tuple(_class_folders(folder / "train") or of_split)
        index = {name: label for label, name in enumerate(self.classes)}
        labels: list[int] = []
        self._paths: list[str] = []
        self._folder = folder / split
        for name in of_split:
            if name not in index:
                raise FoveateError(
                    f"{self._folder / name} is a class that {folder / 'train'} does not have; "
                    "unpack both splits again"
                )
            files = sorted(
                path.name
                for path in (self._folder / name).iterdir()
                if path.suffix.lower() in (".jpeg", ".jpg") and not path.name.startswith(".")
            )
            self._paths += [f"{name}/{file}" for file in files]
            labels += [index[name]] * len(files)
        if not labels:
            raise FoveateError(
                f"no picture of the split {split!r} is below {folder}; expected "
                f"{self.card.layout}; see {self.card.url}"
            )
        self.labels: Labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import torch

        picture = torch.from_numpy(read_picture(self._folder / self._paths[index]))
        if self.transform is not None:
            picture = self.transform(picture)
        return picture, int(self.labels[index])


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if re.fullmatch(r"n[0-9]{8}", path.name) and path.is_dir()
    )
