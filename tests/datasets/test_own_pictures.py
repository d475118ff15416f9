"""Somebody's own pictures: every layout, the split, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.datasets.own_pictures import read_own_pictures
from foveate.errors import FoveateError

Array = np.ndarray[Any, Any]


def noise(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def write_folder(path: Path, pictures: dict[str, Array], suffix: str = ".png") -> Path:
    """Class folders of pictures ``(N, H, W, 3)`` or ``(N, H, W)``."""
    for name, several in pictures.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(several):
            Image.fromarray(picture).save(path / name / f"{i:03}{suffix}")
    return path


def rows(pictures: Array) -> set[bytes]:
    return {picture.tobytes() for picture in pictures}


def test_npz_with_both_splits_is_taken_as_it_is(tmp_path):
    x, y = noise(20, 3, 6, 5), np.arange(20) % 4
    np.savez(tmp_path / "a.npz", x_train=x[:12], y_train=y[:12], x_test=x[12:], y_test=y[12:])
    found = read_own_pictures(tmp_path / "a.npz")
    assert np.array_equal(found.train, x[:12])
    assert np.array_equal(found.held_out, x[12:])
    assert np.array_equal(found.train_labels, y[:12])
    assert np.array_equal(found.held_out_labels, y[12:])
    assert found.shape == (3, 6, 5)
    assert found.classes == ("0", "1", "2", "3")
    assert not found.named
    assert found.notes == ()


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
def test_npz_of_any_axis_order(tmp_path, layout):
    channels = 1 if layout == "NHW" else 3
    planes = noise(30, channels, 6, 7)
    x = {"NHW": planes[:, 0], "NCHW": planes, "NHWC": planes.transpose(0, 2, 3, 1)}[layout]
    np.savez(tmp_path / "a.npz", x=x, y=(np.arange(30) % 3).astype(np.uint8))
    found = read_own_pictures(tmp_path / "a.npz")
    assert found.shape == (channels, 6, 7)
    assert rows(found.train) | rows(found.held_out) == rows(planes)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(2, 12), min_size=2, max_size=5), st.floats(0.05, 0.6), st.integers(0, 9)
)
def test_a_share_of_every_class_is_held_out_and_never_trained_on(
    tmp_path_factory, counts, share, seed
):
    path = tmp_path_factory.mktemp("d") / "a.npz"
    y = np.repeat(np.arange(len(counts)), counts)
    x = noise(len(y), 3, 4, 4, seed=seed)
    np.savez(path, x=x, y=y)
    found = read_own_pictures(path, share=share, seed=seed)
    assert not rows(found.train) & rows(found.held_out)
    assert rows(found.train) | rows(found.held_out) == rows(x)
    for label, count in enumerate(counts):
        assert (found.held_out_labels == label).sum() == max(1, round(share * count))
    by_picture = {picture.tobytes(): label for picture, label in zip(x, y, strict=True)}
    for part, labels in (
        (found.train, found.train_labels), (found.held_out, found.held_out_labels),
    ):  # fmt: skip
        assert [by_picture[p.tobytes()] for p in part] == labels.tolist()
    again = read_own_pictures(path, share=share, seed=seed)
    assert again.digest() == found.digest()
    if len(y) > 12:
        assert read_own_pictures(path, share=share, seed=seed + 1).digest() != found.digest()
    assert any("held out" in note for note in found.notes)


def test_doubles_of_held_out_pictures_leave_the_training_part(tmp_path):
    x, y = noise(20, 3, 4, 4), np.arange(20) % 2
    train = np.concatenate([x[:12], x[15:17]])
    np.savez(
        tmp_path / "a.npz", x_train=train, y_train=np.r_[y[:12], y[15:17]], x_test=x[12:],
        y_test=y[12:],
    )  # fmt: skip
    found = read_own_pictures(tmp_path / "a.npz")
    assert np.array_equal(found.train, x[:12])
    assert len(found.held_out) == 8
    assert found.notes == ("2 training picture(s) that are held out as well were left out of "
                           "training",)  # fmt: skip


def test_class_folders(tmp_path):
    pictures = {name: noise(10, 8, 9, 3, seed=i) for i, name in enumerate(["cat", "ant", "dog"])}
    root = write_folder(tmp_path / "mine", pictures)
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    found = read_own_pictures(root)
    assert found.classes == ("ant", "cat", "dog")
    assert found.named
    assert found.shape == (3, 8, 9)
    assert (len(found.train), len(found.held_out)) == (24, 6)
    wanted = {
        picture.transpose(2, 0, 1).tobytes(): ("ant", "cat", "dog").index(name)
        for name, several in pictures.items()
        for picture in several
    }
    for part, labels in (
        (found.train, found.train_labels), (found.held_out, found.held_out_labels),
    ):  # fmt: skip
        assert [wanted[p.tobytes()] for p in part] == labels.tolist()


@pytest.mark.parametrize("second", ["val", "test", "validation"])
def test_folders_with_both_splits(tmp_path, second):
    write_folder(tmp_path / "train", {"a": noise(3, 5, 5, 3), "b": noise(4, 5, 5, 3, seed=1)})
    write_folder(tmp_path / second, {"b": noise(2, 5, 5, 3, seed=2)})
    found = read_own_pictures(tmp_path)
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.held_out_labels.tolist() == [1, 1]


def test_grey_pictures_for_a_network_of_one_channel(tmp_path):
    grey = noise(8, 5, 5)
    root = write_folder(tmp_path / "g", {"a": grey[:4], "b": grey[4:]})
    assert read_own_pictures(root).shape == (3, 5, 5)
    found = read_own_pictures(root, channels=1)
    assert found.shape == (1, 5, 5)
    assert rows(found.train) | rows(found.held_out) == rows(grey)


def test_size_resizes_the_shorter_side_and_cuts_the_middle(tmp_path):
    # 24 wide, 12 high: a third red, a third green, a third blue, from left to right
    several = np.zeros((3, 12, 24, 3), np.uint8)
    for number, bright in enumerate((250, 240, 230)):
        for i in range(3):
            several[number, :, 8 * i : 8 * i + 8, i] = bright
    tall = several.transpose(0, 2, 1, 3) // 4 * 3
    root = write_folder(tmp_path / "m", {"a": several, "b": tall})
    found = read_own_pictures(root, size=6)
    assert found.shape == (3, 6, 6)
    for shown in (*found.train, *found.held_out):
        # what is left of the middle: green, with a little of its neighbours at the two ends
        assert shown[1][2:4, 2:4].min() > 100
        assert shown[[0, 2]][:, 2:4, 2:4].max() < 30


def cifar_batch(path: Path, count: int, seed: int) -> tuple[Array, Array]:
    pictures, labels = noise(count, 3, 32, 32, seed=seed), np.arange(count) % 10
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join(bytes([y]) + p.tobytes() for y, p in zip(labels, pictures, strict=True))
    )
    return pictures, labels


def idx(path: Path, array: Array) -> None:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_official_layouts_are_recognised(tmp_path):
    root = tmp_path / "cifar"
    train = cifar_batch(root / "cifar-10-batches-bin" / "data_batch_1.bin", 20, 0)
    test = cifar_batch(root / "cifar-10-batches-bin" / "test_batch.bin", 10, 1)
    for path in (root, root / "cifar-10-batches-bin"):
        found = read_own_pictures(path)
        assert found.source == "CIFAR-10"
        assert found.classes[0] == "airplane"
        assert np.array_equal(found.train, train[0])
        assert np.array_equal(found.held_out_labels, test[1])
    for name, title in (("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST")):
        for part, count in (("train", 12), ("t10k", 6)):
            pictures = noise(count, 28, 28, seed=count)
            idx(tmp_path / name / f"{part}-images-idx3-ubyte.gz", pictures)
            idx(tmp_path / name / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype="u1") % 10)
        found = read_own_pictures(tmp_path / name)
        assert found.source == title
        assert (found.shape, len(found.train), len(found.held_out)) == ((1, 28, 28), 12, 6)
    with pytest.raises(FoveateError, match=r"several data sets.*fashion-mnist.*one of them"):
        read_own_pictures(tmp_path)


def test_more_than_fits_is_thinned_evenly_and_said(tmp_path):
    root = write_folder(
        tmp_path / "many", {"a": noise(30, 4, 4, 3), "b": noise(10, 4, 4, 3, seed=1)}
    )
    found = read_own_pictures(root, max_bytes=20 * 48, share=0.25)
    assert len(found.train) + len(found.held_out) == 20
    counts = np.bincount(np.r_[found.train_labels, found.held_out_labels])
    assert counts.tolist() == [15, 5]
    assert any("share of every class was read, 20" in note for note in found.notes)


def bad(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_is_refused(tmp_path):
    x, y = noise(6, 3, 4, 4), np.arange(6) % 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "a.txt").write_text("x")
    write_folder(tmp_path / "sizes", {"a": noise(2, 4, 4, 3), "b": noise(2, 4, 5, 3)})
    write_folder(tmp_path / "one", {"a": noise(4, 4, 4, 3)})
    write_folder(tmp_path / "lone", {"a": noise(4, 4, 4, 3), "b": noise(1, 4, 4, 3)})
    write_folder(tmp_path / "extra" / "train", {"a": noise(2, 4, 4, 3), "b": noise(2, 4, 4, 3)})
    write_folder(tmp_path / "extra" / "val", {"c": noise(2, 4, 4, 3)})
    write_folder(tmp_path / "other" / "train", {"a": noise(2, 4, 4, 3), "b": noise(2, 4, 4, 3)})
    write_folder(tmp_path / "other" / "val", {"a": noise(2, 5, 5, 3)})
    write_folder(tmp_path / "hollow" / "train", {"a": noise(2, 4, 4, 3), "b": noise(2, 4, 4, 3)})
    (tmp_path / "hollow" / "val" / "a").mkdir(parents=True)
    write_folder(tmp_path / "torn", {"a": noise(2, 4, 4, 3), "b": noise(2, 4, 4, 3)})
    (tmp_path / "torn" / "a" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n junk")
    cases = [
        (tmp_path / "nothing", "no pictures at .*nothing: no such file or folder"),
        (tmp_path / "a.txt", "neither a folder nor an .npz"),
        (tmp_path / "junk.npz", "cannot read .*junk.npz"),
        (tmp_path / "empty", "no picture below .*empty; expected one folder"),
        (tmp_path / "sizes", "is 5x4 where .* is 4x4; .*--size"),
        (tmp_path / "one", "are of one class"),
        (tmp_path / "lone", "class 'b' of lone has one picture"),
        (tmp_path / "extra", "c is a class that .*train does not have"),
        (tmp_path / "other", "are 4x4 and below .*val 5x5"),
        (tmp_path / "hollow", "below .*val; the split to measure on is empty"),
        (tmp_path / "torn", "cannot read the picture .*000.png"),
        (bad(tmp_path / "names.npz", pictures=x), "holds pictures where x and y"),
        (bad(tmp_path / "float.npz", x=x / 255, y=y), "is float64 .* where uint8"),
        (bad(tmp_path / "four.npz", x=noise(6, 4, 5, 5), y=y), "1 or 3 channels"),
        (bad(tmp_path / "labels.npz", x=x, y=y[:5]), "one integer for each of the 6"),
        (bad(tmp_path / "minus.npz", x=x, y=y - 1), "labels from -1 to 0"),
        (bad(tmp_path / "none.npz", x=x[:0], y=y[:0]), "x of"),
        (bad(tmp_path / "same.npz", x_train=x, y_train=y, x_test=x, y_test=y), "both splits"),
        (
            bad(tmp_path / "two.npz", x_train=x, y_train=y, x_test=noise(4, 3, 5, 5), y_test=y[:4]),
            r"\(3, 4, 4\) and those to measure on \(3, 5, 5\)",
        ),
    ]  # fmt: skip
    for path, sentence in cases:
        with pytest.raises(FoveateError, match=sentence):
            read_own_pictures(path)
