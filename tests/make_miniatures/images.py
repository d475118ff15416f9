"""Miniatures of CIFAR, MNIST, Fashion-MNIST and ImageNet in the layouts of their owners.

A second implementation of the layouts, on purpose: it shares no code with ``foveate.datasets``.
Every picture can be told from its number. Nothing here is real data.

    python tests/make_miniatures/images.py FOLDER    makes one of each
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def cifar_picture(number: int) -> np.ndarray:
    """``(3, 32, 32)`` uint8: planes, rows and columns all differ, the corner spells `number`."""
    plane, row, column = np.mgrid[0:3, 0:32, 0:32]
    picture = (plane * 71 + row * 5 + column * 3 + number) % 256
    picture[0, 0, 0] = number % 256
    return picture.astype(np.uint8)


def write_cifar10(path: Path, labels: list[int], first: int = 0) -> None:
    """One file of the binary version: label, then red, green and blue planes, row by row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number, label in enumerate(labels, first):
            file.write(bytes([label]))
            for plane in cifar_picture(number):
                for row in plane:
                    file.write(bytes(row.tolist()))


def write_cifar10_npz(path: Path, labels: list[int], first: int = 0) -> None:
    """The same as arrays ``x`` and ``y``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = np.stack([cifar_picture(number) for number in range(first, first + len(labels))])
    np.savez_compressed(path, x=pictures, y=np.array(labels, np.uint8))


def write_cifar100(path: Path, labels: list[tuple[int, int]]) -> None:
    """One file of the binary version: (coarse, fine) label, then planes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number, (coarse, fine) in enumerate(labels):
            file.write(bytes([coarse, fine]) + cifar_picture(number).tobytes())


def grey_picture(number: int) -> np.ndarray:
    """``(28, 28)`` uint8."""
    row, column = np.mgrid[0:28, 0:28]
    return ((row * 9 + column * 2 + 37 * number) % 256).astype(np.uint8)


def idx_bytes(numbers: np.ndarray) -> bytes:
    """An idx file, straight from its description: two zeros, type, axes, big-endian lengths."""
    head = bytes([0, 0, 8, numbers.ndim])
    for length in numbers.shape:
        head += length.to_bytes(4, "big")
    return head + numbers.astype(np.uint8).tobytes()


def write_idx(path: Path, data: bytes) -> None:
    """Plain, or packed when the name ends in ``.gz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(
    folder: Path, train: list[int], test: list[int], end: str = ".gz", size: int = 28
) -> None:
    """The four files for lists of labels; picture k is ``grey_picture(k)``."""
    for part, labels in (("train", train), ("t10k", test)):
        pictures = np.stack([grey_picture(k)[:size, :size] for k in range(len(labels))])
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", idx_bytes(pictures))
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", idx_bytes(np.array(labels)))


def write_imagenet(folder: Path, split: str, counts: dict[str, int]) -> None:
    """``counts[wnid]`` flat JPEG photos per class; the colour is (10 k, 100, 200) for the k-th."""
    for wnid, count in counts.items():
        (folder / split / wnid).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            photo = Image.new("RGB", (20 + k, 16), (10 * k, 100, 200))
            photo.save(folder / split / wnid / f"{wnid}_{k}.JPEG", "JPEG", quality=95)


def main(folder: Path) -> None:
    """A few samples of every data set below `folder`."""
    cifar10 = folder / "cifar-10-batches-bin"
    for batch in range(1, 6):
        write_cifar10(cifar10 / f"data_batch_{batch}.bin", list(range(10)), 10 * batch)
    write_cifar10(cifar10 / "test_batch.bin", list(range(10)))
    pairs = [(k % 20, k) for k in range(100)]
    write_cifar100(folder / "cifar-100-binary" / "train.bin", pairs)
    write_cifar100(folder / "cifar-100-binary" / "test.bin", pairs[:10])
    write_mnist(folder / "mnist", list(range(10)), [3, 1])
    write_mnist(folder / "fashion-mnist", list(range(10)), [3, 1])
    write_imagenet(folder / "ImageNet", "train", {"n01440764": 2, "n01443537": 3})
    write_imagenet(folder / "ImageNet", "val", {"n01440764": 1, "n01443537": 1})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
