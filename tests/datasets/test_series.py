"""Own labelled rows: the layouts, the division, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.physionet2012 import fill_gaps
from foveate.datasets.series import divide, own_rows, read_own_rows
from foveate.errors import FoveateError
from make_miniatures import health as mini

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5, 3)).astype(np.float32)
Y = np.arange(60) % 2


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "rows.npz", **arrays)
    return folder / "rows.npz"


def test_one_array_is_divided_class_by_class_and_nothing_is_lost(tmp_path):
    rows = read_own_rows(saved(tmp_path, x=X, y=Y))
    assert rows.kind == "series"
    assert rows.shape == (5, 3)
    # of 30 rows of a class 6 are test, of the other 24 a fifth (4.8, rounded 5) are validation
    assert rows.counts() == {"train": [19, 19], "val": [5, 5], "test": [6, 6]}
    together = np.concatenate([x for x, _ in rows.parts.values()])
    labels = np.concatenate([y for _, y in rows.parts.values()])
    found = {row.tobytes(): label for row, label in zip(together, labels, strict=True)}
    assert found == {row.tobytes(): label for row, label in zip(X, Y, strict=True)}
    assert rows.source == "rows.npz"  # and not the folder


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(4, 60), min_size=2, max_size=5), seed=st.integers(0, 2**31 - 1))
def test_a_division_is_a_partition_with_every_class_in_every_part(counts, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    parts = divide(y, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))
    for part in parts:
        assert np.unique(y[part]).tolist() == list(range(len(counts)))
        assert (np.diff(part) > 0).all()
    again = divide(y, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("with_val", [True, False])
def test_parts_that_are_there_are_taken_as_they_are(tmp_path, with_val):
    arrays = {"x_train": X[:40], "y_train": Y[:40], "x_test": X[50:], "y_test": Y[50:]}
    if with_val:
        arrays |= {"x_val": X[40:50], "y_val": Y[40:50]}
    rows = read_own_rows(saved(tmp_path, **arrays))
    np.testing.assert_array_equal(rows.test[0], X[50:])
    if with_val:
        np.testing.assert_array_equal(rows.train[0], X[:40])
        np.testing.assert_array_equal(rows.val[0], X[40:50])
    else:  # a fifth of 20 rows of each class
        assert rows.counts()["val"] == [4, 4]
        assert rows.counts()["train"] == [16, 16]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.where(Y == 1, "sick", "healthy"), ("healthy", "sick")),
        (np.where(Y == 1, 1, -1), ("-1", "1")),
        (Y.astype(bool), ("False", "True")),
        (Y.astype(float), ("0", "1")),
        (Y[:, None], ("0", "1")),
    ],
)
def test_labels_of_many_kinds(tmp_path, labels, names):
    rows = read_own_rows(saved(tmp_path, x=X, y=labels))
    assert rows.classes == names
    for x, y in rows.parts.values():
        for row, label in zip(x, y, strict=True):
            at = int(np.flatnonzero((row == X).all((1, 2)))[0])
            assert label == Y[at]


def test_names_of_classes_and_features_come_along(tmp_path):
    rows = read_own_rows(
        saved(tmp_path, x=X, y=Y, classes=np.array(["a", "b"]), features=np.array(["p", "q", "r"]))
    )
    assert (rows.classes, rows.features) == (("a", "b"), ("p", "q", "r"))


def test_a_training_row_that_is_tested_on_is_left_out(tmp_path):
    arrays = {"x_train": X[:40], "y_train": Y[:40], "x_test": X[30:], "y_test": Y[30:]}
    rows = read_own_rows(saved(tmp_path, **arrays))
    held = {row.tobytes() for part in (rows.val, rows.test) for row in part[0]}
    assert not held & {row.tobytes() for row in rows.train[0]}
    assert any("left out of training" in note for note in rows.notes)


def test_the_digest_sees_every_number_label_and_name():
    first = own_rows(X, Y)
    assert first.digest() == own_rows(X.copy(), Y).digest()
    changed = X.copy()
    changed[3, 2, 1] += 1e-3
    others = [own_rows(changed, Y), own_rows(X, 1 - Y), own_rows(X, Y, classes=("a", "b")),
              own_rows(X, Y, seed=1)]  # fmt: skip
    assert len({first.digest(), *(other.digest() for other in others)}) == 5


def with_nan(row: int) -> np.ndarray:
    x = X.copy()
    x[row, 1, 2] = np.nan
    x[row + 9, 0, 0] = np.inf
    return x


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": with_nan(4), "y": Y}, "2 of the 60 rows .* row 4, step 1, feature 2"),
        ({"x": X, "y": Y * 0}, "a single class"),
        ({"x": X, "y": Y[:-1]}, r"\(59,\) and there are 60 rows"),
        ({"x": X[:, 0], "y": Y}, r"\(60, 3\); expected \(N, T, F\).*x\[:, None\]"),
        ({"x": X[..., None], "y": Y}, r"\(60, 5, 3, 1\).*pictures are uint8"),
        ({"x": X}, "the labels y are missing"),
        ({"z": X}, "x and y are missing"),
        ({"x": X, "y": Y + 0.5}, "fractions"),
        ({"x": X.astype("U8"), "y": Y}, "expected numbers"),
        ({"x": X, "y": np.r_[np.zeros(57, int), 1, 1, 1]}, "class '1' .* has 3 rows; at least 4"),
        ({"x": X, "y": Y, "classes": np.array(["a"])}, "names 1 classes and has labels of 2"),
        ({"x": X, "y": Y, "features": np.array(["a"])}, "names 1 features and has 3"),
        ({"x": X[:0], "y": Y[:0]}, "at least one of each"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "expected one size"),
        ({"x_train": X, "y_train": Y, "x_test": X[:5], "y_test": 0 * Y[:5]}, "'1' has no row"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}, "every part needs every class"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "x_val": X}, "both or neither"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path, arrays, words):
    with pytest.raises(FoveateError, match=words) as caught:
        read_own_rows(saved(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_what_is_no_data_at_all(tmp_path):
    with pytest.raises(FoveateError, match="no such file or folder"):
        read_own_rows(tmp_path / "nothing.npz")
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(FoveateError, match=r"is no \.npz file; expected"):
        read_own_rows(tmp_path / "rows.csv")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(FoveateError, match=r"cannot read .*broken\.npz"):
        read_own_rows(tmp_path / "broken.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], object), y=Y[:2])
    with pytest.raises(FoveateError, match="not of plain numbers"):
        read_own_rows(tmp_path / "objects.npz")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FoveateError, match="neither series nor pictures"):
        read_own_rows(empty)


def test_pictures_are_read_as_numbers_from_0_to_1(tmp_path):
    pixels = RNG.integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
    rows = read_own_rows(saved(tmp_path, x=pixels, y=np.arange(40) % 2))
    assert rows.kind == "pictures"
    assert rows.shape == (3, 6, 5)
    every = np.concatenate([x for x, _ in rows.parts.values()])
    wanted = {(p.transpose(2, 0, 1) / np.float32(255)).astype(np.float32).tobytes() for p in pixels}
    assert {np.ascontiguousarray(row).tobytes() for row in every} == wanted
    names = {"x": pixels, "y": np.arange(40) % 2, "classes": np.array(["cat", "dog"])}
    assert read_own_rows(saved(tmp_path, **names)).classes == ("cat", "dog")
    with pytest.raises(FoveateError, match="names 3 classes and has labels of 2"):
        read_own_rows(saved(tmp_path, **(names | {"classes": np.array(["a", "b", "c"])})))
    with pytest.raises(FoveateError, match="expected uint8 pictures"):
        read_own_rows(saved(tmp_path, x=X, y=Y), image=True)
    as_series = read_own_rows(saved(tmp_path, x=pixels[..., 0], y=np.arange(40) % 2), image=False)
    assert as_series.shape == (6, 5)


def test_physionet_in_both_forms_is_the_same(tmp_path):
    # as many of each outcome as a division needs
    stays = [s._replace(record=2000 + i, died=i % 2) for i, s in enumerate(mini.some_stays(16))]
    mini.write_set(tmp_path / "texts", "a", stays)
    mini.write_event_list(tmp_path / "lists" / "physionet2012_set_a.npz", stays)
    texts, lists = read_own_rows(tmp_path / "texts"), read_own_rows(tmp_path / "lists")
    named = read_own_rows(tmp_path / "lists" / "physionet2012_set_a.npz")
    assert texts.digest() == lists.digest() == named.digest()
    assert texts.classes == ("survived", "died in hospital")
    assert texts.shape == (48, 44)
    assert texts.features[-1] == "ICUType=4"
    assert texts.source == "PhysioNet 2012, set a"


def test_gaps_filled_as_the_message_advises_can_be_read(tmp_path):
    x = fill_gaps(np.where(np.isfinite(with_nan(4)), with_nan(4), np.nan), np.arange(30))
    assert read_own_rows(saved(tmp_path, x=x, y=Y)).shape == (5, 3)
