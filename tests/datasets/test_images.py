"""Readers of labelled pictures against miniatures of a second writer, and against hostile files."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.datasets import catalogue, images
from foveate.datasets.images import (
    CIFAR10,
    CIFAR100,
    MNIST,
    FashionMNIST,
    ImageNet,
    balanced_subset,
    mean_pool,
)
from foveate.errors import FoveateError
from make_miniatures import images as mini

# --- subsets and pooling ---------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_balanced_subset_takes_the_same_number_of_each_class(labels, seed, data):
    smallest = min(labels.count(label) for label in set(labels))
    per_class = data.draw(st.integers(1, smallest))
    kept = balanced_subset(labels, per_class, seed)
    assert kept.tolist() == sorted(set(kept.tolist()))
    chosen = [labels[index] for index in kept]
    assert all(chosen.count(label) == per_class for label in set(labels))
    assert np.array_equal(kept, balanced_subset(np.array(labels, np.uint8), per_class, seed))
    larger = balanced_subset(labels, smallest, seed)
    assert set(kept) <= set(larger)  # a smaller subset of the same seed lies inside a larger one


def test_balanced_subset_is_random_and_uniform():
    labels = np.repeat(np.arange(2), 50)
    draws = [balanced_subset(labels, 10, seed) for seed in range(300)]
    assert len({tuple(draw) for draw in draws}) == 300
    counts = np.bincount(np.concatenate(draws), minlength=100)
    # Each index is drawn by a hypergeometric of mean 60 and deviation 6.9.
    assert np.abs(counts - 60).max() < 5 * 6.9


@pytest.mark.parametrize(
    ("labels", "per_class", "sentence"),
    [
        ([0, 0, 1], 2, "class 1 has 1 samples where 2"),
        ([], 1, r"labels \(N,\) of integers"),
        ([[1]], 1, r"labels \(N,\) of integers"),
        ([0.5], 1, r"labels \(N,\) of integers"),
        ([0], 0, "per_class of at least 1"),
    ],
)
def test_balanced_subset_bad_input(labels, per_class, sentence):
    with pytest.raises(FoveateError, match=sentence):
        balanced_subset(labels, per_class, 0)


@settings(deadline=None, max_examples=30)
@given(
    factor=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    front=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 2**32),
)
def test_mean_pool_is_the_rounded_mean(factor, rows, columns, front, seed):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 256, (*front, rows * factor, columns * factor), dtype=np.uint8)
    pooled = mean_pool(x, factor)
    real = torch.nn.functional.avg_pool2d(
        torch.from_numpy(x).double().reshape(-1, 1, *x.shape[-2:]), factor
    ).reshape(*front, rows, columns)
    assert pooled.dtype == np.uint8
    np.testing.assert_array_equal(pooled, torch.floor(real + 0.5 + 1e-9).numpy())


def test_mean_pool_of_white_stays_white():
    assert mean_pool(np.full((64, 64), 255, np.uint8), 64).tolist() == [[255]]


@pytest.mark.parametrize(
    ("x", "factor"),
    [
        (np.zeros((3, 5, 4), np.uint8), 2),
        (np.zeros((3, 4, 5), np.uint8), 2),
        (np.zeros((4, 4)), 2),
        (np.zeros(4, np.uint8), 2),
        (np.zeros((4, 4), np.uint8), 0),
    ],
)
def test_mean_pool_bad_input(x, factor):
    with pytest.raises(FoveateError, match="mean_pool expects uint8 pictures whose sides"):
        mean_pool(x, factor)


# --- CIFAR -----------------------------------------------------------------------------------


def test_cifar10_planes_rows_and_labels(tmp_path: Path):
    mini.write_cifar10(tmp_path / "data_batch_1.bin", [7, 0, 9])
    mini.write_cifar10(tmp_path / "data_batch_2.bin", [3], first=3)
    mini.write_cifar10(tmp_path / "test_batch.bin", [5], first=40)
    train = CIFAR10(tmp_path)
    assert train.batches == [1, 2]
    assert train.labels.tolist() == [7, 0, 9, 3]
    assert train.labels.dtype == np.int64
    for number in range(4):
        np.testing.assert_array_equal(train.images[number], mini.cifar_picture(number))
    picture, label = train[2]
    assert (picture.dtype, tuple(picture.shape), label) == (torch.uint8, (3, 32, 32), 9)
    assert isinstance(label, int)
    np.testing.assert_array_equal(picture.numpy(), mini.cifar_picture(2))
    test = CIFAR10(tmp_path, "test")
    assert (len(test), test.batches, test[0][1]) == (1, [], 5)
    np.testing.assert_array_equal(test.arrays()[0][0], mini.cifar_picture(40))


def test_an_item_can_be_changed_without_changing_the_set(tmp_path: Path):
    mini.write_cifar10(tmp_path / "data_batch_1.bin", [7])
    train = CIFAR10(tmp_path)
    train[0][0].zero_()
    np.testing.assert_array_equal(train.images[0], mini.cifar_picture(0))


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin", "images", "cifar10"])
def test_cifar10_npz_and_binary_give_the_same(tmp_path: Path, place):
    labels = [1, 2, 3, 9]
    mini.write_cifar10(tmp_path / "a" / place / "data_batch_4.bin", labels)
    mini.write_cifar10_npz(tmp_path / "b" / place / "cifar10_data_batch_4.npz", labels)
    binary, arrays = CIFAR10(tmp_path / "a"), CIFAR10(tmp_path / "b")
    for one, other in zip(binary.arrays(), arrays.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert binary.batches == arrays.batches == [4]


def test_cifar10_batches_that_are_asked_for(tmp_path: Path):
    for n in range(1, 6):
        mini.write_cifar10(tmp_path / f"data_batch_{n}.bin", [n, n])
    assert CIFAR10(tmp_path).labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert CIFAR10(tmp_path, batches=(5, 1)).labels.tolist() == [5, 5, 1, 1]
    (tmp_path / "data_batch_5.bin").unlink()
    assert CIFAR10(tmp_path).batches == [1, 2, 3, 4]
    with pytest.raises(FoveateError, match=r"no data_batch_5\.bin or cifar10_data_batch_5\.npz"):
        CIFAR10(tmp_path, batches=(5, 1))
    for strange in ((6,), (1, 1)):  # twice the same would put one picture on both sides of a split
        with pytest.raises(FoveateError, match="batches 1 to 5, each once, asked for"):
            CIFAR10(tmp_path, batches=strange)
    with pytest.raises(FoveateError, match=r"no test_batch\.bin"):
        CIFAR10(tmp_path, "test")
    with pytest.raises(FoveateError, match="no split 'val'; choose one of train, test"):
        CIFAR10(tmp_path, "val")


def test_cifar10_absent(tmp_path: Path):
    with pytest.raises(FoveateError, match=r"CIFAR-10 \(2009\) is not below .*; expected cifar-10"):
        CIFAR10(tmp_path)
    mini.write_cifar10(tmp_path / "test_batch.bin", [5])
    with pytest.raises(FoveateError, match=r"CIFAR-10 \(2009\) is not below"):
        CIFAR10(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_cifar_size_that_is_no_number_of_records(tmp_path: Path, size):
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    with pytest.raises(FoveateError, match=f"{size} bytes where records of 3073 bytes"):
        CIFAR10(tmp_path)


def test_cifar_label_beyond_the_classes(tmp_path: Path):
    mini.write_cifar10(tmp_path / "data_batch_1.bin", [1, 10])
    with pytest.raises(FoveateError, match=r"sample 1 of .* has the label 10 where 0 to 9"):
        CIFAR10(tmp_path)


def test_cifar_larger_than_any_is_not_read(tmp_path: Path, monkeypatch):
    mini.write_cifar10(tmp_path / "data_batch_1.bin", [1, 1])
    monkeypatch.setattr(images, "MAX_BYTES", 3073)
    with pytest.raises(FoveateError, match="6146 bytes where records"):
        CIFAR10(tmp_path)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(3, np.uint8)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.uint8)),
        (np.zeros((2, 3, 32, 32), np.float32), np.zeros(2, np.uint8)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros((2, 1), np.uint8)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((0, 3, 32, 32), np.uint8), np.zeros(0, np.uint8)),
    ],
)
def test_cifar10_npz_of_other_shapes(tmp_path: Path, x, y):
    np.savez(tmp_path / "cifar10_data_batch_1.npz", x=x, y=y)
    with pytest.raises(FoveateError, match=r"uint8 \(N, 3, 32, 32\) and uint8 \(N,\) were"):
        CIFAR10(tmp_path)


def test_cifar100_fine_and_coarse(tmp_path: Path):
    mini.write_cifar100(tmp_path / "cifar-100-binary" / "train.bin", [(19, 99), (4, 0)])
    fine, coarse = CIFAR100(tmp_path), CIFAR100(tmp_path, labels="coarse")
    assert fine.labels.tolist() == [99, 0]
    assert coarse.labels.tolist() == [19, 4]
    np.testing.assert_array_equal(fine.images[1], mini.cifar_picture(1))
    assert (len(fine.classes), fine.classes[99], fine.classes[0]) == (100, "worm", "apple")
    assert (len(coarse.classes), coarse.classes[4]) == (20, "fruit_and_vegetables")
    for names in (fine.classes, coarse.classes):
        assert list(names) == sorted(set(names))  # the official lists are alphabetical
    with pytest.raises(FoveateError, match=r"cannot read .*test\.bin as CIFAR"):
        CIFAR100(tmp_path, "test")
    with pytest.raises(FoveateError, match="asked for 'rough'"):
        CIFAR100(tmp_path, labels="rough")
    mini.write_cifar100(tmp_path / "cifar-100-binary" / "train.bin", [(20, 99)])
    with pytest.raises(FoveateError, match="has the label 20 where 0 to 19"):
        CIFAR100(tmp_path)


def test_sets_feed_a_data_loader(tmp_path: Path):
    mini.write_cifar10(tmp_path / "data_batch_1.bin", [7, 0, 9, 4, 4])
    loader = torch.utils.data.DataLoader(CIFAR10(tmp_path), batch_size=5)
    (x, y) = next(iter(loader))
    assert (x.dtype, tuple(x.shape)) == (torch.uint8, (5, 3, 32, 32))
    assert y.tolist() == [7, 0, 9, 4, 4]


# --- MNIST and Fashion-MNIST -----------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(("kind", "name"), [(MNIST, "mnist"), (FashionMNIST, "fashion-mnist")])
def test_idx_pictures_and_labels(tmp_path: Path, kind, name, end):
    mini.write_mnist(tmp_path / name, [5, 0, 4], [9, 1], end)
    train, test = kind(tmp_path), kind(tmp_path / name, "test")
    assert train.labels.tolist() == [5, 0, 4]
    assert test.labels.tolist() == [9, 1]
    assert train.images.shape == (3, 1, 28, 28)
    for number in range(3):
        np.testing.assert_array_equal(train.images[number, 0], mini.grey_picture(number))
    picture, label = train[1]
    assert (picture.dtype, tuple(picture.shape), label) == (torch.uint8, (1, 28, 28), 0)
    assert len(train.classes) == 10


def test_mnist_and_fashion_mnist_are_told_apart_by_their_folders(tmp_path: Path):
    mini.write_mnist(tmp_path / "mnist", [1], [1])
    mini.write_mnist(tmp_path / "FashionMNIST" / "raw", [2], [2], "")
    assert MNIST(tmp_path).labels.tolist() == [1]
    assert FashionMNIST(tmp_path).labels.tolist() == [2]


def header(*lengths: int, kind: int = 8, axes: int | None = None) -> bytes:
    count = len(lengths) if axes is None else axes
    return bytes([0, 0, kind, count]) + struct.pack(f">{len(lengths)}I", *lengths)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "does not begin as an idx file of 3 axes"),
        (header(1, 28, 28)[:15], "does not begin as an idx file of 3 axes"),
        (header(1, 28, 28, kind=0x0D) + bytes(784), "does not begin as an idx file"),
        (header(1, 28, 28, axes=1) + bytes(784), "does not begin as an idx file"),
        (b"\x08\x00\x00\x03" + header(1, 28, 28)[4:] + bytes(784), "does not begin"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "claims .* numbers in a file"),
        (header(2**31, 28, 28) + bytes(100), "claims .* numbers in a file"),
        (header(1, 28, 28) + bytes(785), "claims 784 numbers and has more"),
    ],
)
def test_hostile_idx_headers(tmp_path: Path, data, sentence, end):
    mini.write_mnist(tmp_path, [1], [1], end)
    mini.write_idx(tmp_path / f"train-images-idx3-ubyte{end}", data)
    with pytest.raises(FoveateError, match=sentence) as caught:
        MNIST(tmp_path)
    assert "\n" not in str(caught.value)


def test_idx_pictures_without_pixels(tmp_path: Path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 1, 0, 9))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">4BIB", 0, 0, 8, 1, 1, 0))
    with pytest.raises(FoveateError, match="has 1 pictures of 0x9"):
        MNIST(tmp_path, "test")


def test_idx_that_is_cut_short(tmp_path: Path):
    mini.write_mnist(tmp_path, [1], [1], "")
    path = tmp_path / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(FoveateError, match=r"claims .* numbers in a file of 799 bytes"):
        MNIST(tmp_path)
    path.unlink()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(FoveateError, match="claims 784 numbers and has only 783"):
        MNIST(tmp_path)
    packed.write_bytes(gzip.compress(whole)[:-6])
    with pytest.raises(FoveateError, match=r"cannot read .* as an idx file"):
        MNIST(tmp_path)
    packed.write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(FoveateError, match=r"cannot read .* as an idx file"):
        MNIST(tmp_path)


def test_a_small_gzip_file_that_unpacks_to_a_lot_is_not_unpacked(tmp_path: Path, monkeypatch):
    mini.write_mnist(tmp_path, [1], [1])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header(2048, 28, 28) + bytes(2048 * 784)))
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    with pytest.raises(FoveateError, match=r"claims \(2048, 28, 28\) numbers"):
        MNIST(tmp_path)


def test_pictures_and_labels_that_disagree(tmp_path: Path):
    mini.write_mnist(tmp_path, [1, 2], [1])
    label = tmp_path / "train-labels-idx1-ubyte.gz"
    mini.write_idx(label, mini.idx_bytes(np.array([1])))
    with pytest.raises(FoveateError, match=r"has 2 pictures of 28x28 and .* 1 labels"):
        MNIST(tmp_path)
    mini.write_idx(label, mini.idx_bytes(np.array([1, 10])))
    with pytest.raises(FoveateError, match=r"sample 1 of .* has the label 10"):
        MNIST(tmp_path)
    label.unlink()
    with pytest.raises(FoveateError, match=r"cannot read .*train-labels-idx1-ubyte.gz"):
        MNIST(tmp_path)


@settings(deadline=None, max_examples=60)
@given(head=st.binary(min_size=12, max_size=12), body=st.binary(max_size=40), proper=st.booleans())
@example(head=struct.pack(">III", 1, 2, 3), body=bytes(6), proper=True)
@example(head=struct.pack(">III", 0, 28, 28), body=b"", proper=True)
def test_any_bytes_are_an_error_or_the_numbers_they_claim(head, body, proper):
    data = (bytes([0, 0, 8, 3]) if proper else b"\1\2\3\4") + head + body
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "idx"
        path.write_bytes(data)
        try:
            numbers = images._idx(path, 3)
        except FoveateError:
            return
    assert proper
    assert numbers.shape == struct.unpack(">III", head)
    assert numbers.tobytes() == body


# --- ImageNet --------------------------------------------------------------------------------


def test_imagenet_labels_agree_between_splits(tmp_path: Path):
    folder = tmp_path / "ImageNet"
    mini.write_imagenet(folder, "train", {"n00000003": 1, "n00000001": 2, "n00000002": 1})
    mini.write_imagenet(folder, "val", {"n00000003": 2})
    (folder / "train" / "n00000001" / "notes.txt").touch()
    (folder / "train" / "readme").mkdir()
    train, val = ImageNet(tmp_path), ImageNet(tmp_path, "val")
    assert train.classes == val.classes == ("n00000001", "n00000002", "n00000003")
    assert train.labels.tolist() == [0, 0, 1, 2]
    assert val.labels.tolist() == [2, 2]
    picture, label = val[1]
    assert (tuple(picture.shape), picture.dtype, label) == ((3, 16, 21), torch.uint8, 2)
    flat = picture.float().mean((1, 2))
    assert torch.allclose(flat, torch.tensor([10.0, 100.0, 200.0]), atol=3)


def test_imagenet_without_training_folders(tmp_path: Path):
    mini.write_imagenet(tmp_path, "val", {"n00000003": 1, "n00000005": 1})
    assert ImageNet(tmp_path, "val").labels.tolist() == [0, 1]
    with pytest.raises(FoveateError, match="no picture of the split 'train' is below"):
        ImageNet(tmp_path)
    mini.write_imagenet(tmp_path, "train", {"n00000003": 1})
    with pytest.raises(FoveateError, match=r"n00000005 is a class that .*train does not have"):
        ImageNet(tmp_path, "val")
    with pytest.raises(FoveateError, match="choose train or val"):
        ImageNet(tmp_path, "test")


def test_imagenet_oddities_and_transform(tmp_path: Path):
    """Some official files are PNG or CMYK inside."""
    mini.write_imagenet(tmp_path, "train", {"n00000001": 0})
    folder = tmp_path / "train" / "n00000001"
    Image.new("RGB", (4, 6), (1, 2, 3)).save(folder / "a.JPEG", "PNG")
    Image.new("CMYK", (4, 6), (255, 255, 255, 0)).save(folder / "b.JPEG", "JPEG")
    Image.new("L", (4, 6), 90).save(folder / "c.JPEG", "JPEG")
    dataset = ImageNet(tmp_path, transform=lambda x: x[:, :2, :2])
    assert [tuple(dataset[i][0].shape) for i in range(3)] == [(3, 2, 2)] * 3
    assert dataset[0][0][:, 0, 0].tolist() == [1, 2, 3]
    assert dataset[2][0].unique().tolist() == [90]


def test_imagenet_damaged_and_oversized_pictures(tmp_path: Path, monkeypatch):
    from foveate.datasets import pictures

    mini.write_imagenet(tmp_path, "train", {"n00000001": 2})
    path = tmp_path / "train" / "n00000001" / "n00000001_0.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FoveateError, match=r"cannot read the picture .*n00000001_0\.JPEG"):
        ImageNet(tmp_path)[0]
    monkeypatch.setattr(pictures, "MAX_PIXELS", 300)
    with pytest.raises(FoveateError, match="claims 21x16 pixels"):
        ImageNet(tmp_path)[1]
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 10)
    with pytest.raises(FoveateError, match=r"it has .* bytes"):
        ImageNet(tmp_path)[1]


# --- the catalogue and the real files --------------------------------------------------------


def test_catalogue_sees_the_miniatures(tmp_path: Path):
    mini.main(tmp_path)
    rows = {row["name"]: row for row in catalogue.rows(tmp_path)}
    assert rows["cifar10"]["status"] == "training batches: 5, test batch: 1"
    assert rows["cifar100"]["status"] == "training file: 1, test file: 1"
    assert rows["mnist"]["status"] == rows["fashion-mnist"]["status"] == "images: 2, labels: 2"
    assert rows["ImageNet"]["status"] == "training classes: 2, validation classes: 2"
    for kind in (CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageNet):
        assert rows[kind.card.name]["loader"].endswith(kind.__name__)
        assert len(kind(tmp_path)) > 0


def test_real_cifar10(shared_data: Path):
    train, test = CIFAR10(shared_data, batches=(1,)), CIFAR10(shared_data, "test")
    assert train.images.shape == test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    # Published mean of the whole training set; one batch of five lies near it.
    means = train.images.mean((0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.01)
    few = balanced_subset(train.labels, 500, seed=0)
    assert np.bincount(train.labels[few]).tolist() == [500] * 10


def test_real_fashion_mnist():
    """Debian's package dataset-fashion-mnist, wherever it puts its files."""
    dpkg = shutil.which("dpkg")
    listed = dpkg and subprocess.run(
        [dpkg, "-L", "dataset-fashion-mnist"], capture_output=True, text=True, check=False
    ).stdout.split("\n")
    files = [Path(line) for line in listed or () if line.endswith("train-images-idx3-ubyte.gz")]
    if not files:
        pytest.skip("Fashion-MNIST is not here (apt-get install dataset-fashion-mnist)")
    train, test = FashionMNIST(files[0].parent), FashionMNIST(files[0].parent, "test")
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # Published mean and deviation of the training pictures.
    assert train.images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert train.images.std() / 255 == pytest.approx(0.3530, abs=1e-4)
    assert train.classes[train[0][1]] == "Ankle boot"
