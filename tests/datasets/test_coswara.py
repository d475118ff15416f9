"""Coswara's six arrays, and files that promise more than they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.coswara import Coswara, load
from foveate.errors import FoveateError
from make_miniatures import health as mini


@pytest.mark.parametrize("inside", ["", "covid/breath"])
def test_arrays_are_squeezed(tmp_path, inside):
    mini.write_coswara(tmp_path / "coswara")
    parts = load(tmp_path if not inside else tmp_path / "coswara" / inside)
    assert {name: x.shape for name, (x, _) in parts.items()} == {
        "train": (8, 96, 64), "val": (6, 96, 64), "test": (6, 96, 64),
    }  # fmt: skip
    x, y = parts["val"]
    assert x[5, 7, 9] == pytest.approx(5 + 7 / 100 + 9 / 10_000)
    assert (x.dtype, y.dtype, y.tolist()) == (np.float32, np.int64, [0, 1, 0, 1, 0, 1])
    assert len(Coswara(tmp_path, "test")) == 6
    assert Coswara.card.find(tmp_path).present


def test_one_row_keeps_its_axis(tmp_path):
    np.save(tmp_path / "X_train.npy", np.zeros((1, 1, 96, 64), np.float32))
    np.save(tmp_path / "y_train.npy", np.ones((1, 1)))
    assert Coswara(tmp_path).x.shape == (1, 96, 64)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.zeros((2, 64, 96), np.float32), np.zeros(2), r"floats \(N, 96, 64\)"),
        (np.zeros((2, 96, 64), np.int32), np.zeros(2), r"floats \(N, 96, 64\)"),
        (np.zeros((2, 96, 64)), np.zeros(3), "2 labels of 0 or 1"),
        (np.zeros((2, 96, 64)), np.array([0, 3]), "2 labels of 0 or 1"),
        (np.full((2, 96, 64), np.inf), np.zeros(2), "no finite numbers"),
    ],
)
def test_bad_arrays_are_one_sentence(tmp_path, x, y, sentence):
    np.save(tmp_path / "X_train.npy", x)
    np.save(tmp_path / "y_train.npy", y)
    with pytest.raises(FoveateError, match=sentence):
        Coswara(tmp_path)


def test_objects_and_promises_are_refused(tmp_path):
    np.save(tmp_path / "y_train.npy", np.zeros(2))
    np.save(tmp_path / "X_train.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(FoveateError, match=r"cannot read .*X_train.npy"):
        Coswara(tmp_path)
    np.save(tmp_path / "X_train.npy", np.zeros((2, 96, 64), np.float32))
    whole = (tmp_path / "X_train.npy").read_bytes()
    (tmp_path / "X_train.npy").write_bytes(whole.replace(b"(2, 96,", b"(9, 96,"))
    with pytest.raises(FoveateError, match=r"cannot read .*X_train.npy"):
        Coswara(tmp_path)
    with pytest.raises(FoveateError, match="no split 'all'"):
        Coswara(tmp_path, "all")
    with pytest.raises(FoveateError, match=r"is not below .* see https://github.com/iiscleap"):
        Coswara(tmp_path / "nowhere")


@settings(deadline=None, max_examples=30)
@given(at=st.integers(0, 200), byte=st.integers(0, 255), keep=st.integers(0, 49_300))
def test_any_damage_gives_data_or_one_sentence(tmp_path_factory, at, byte, keep):
    folder = tmp_path_factory.mktemp("x")
    np.save(folder / "X_train.npy", np.zeros((2, 96, 64), np.float32))
    np.save(folder / "y_train.npy", np.zeros(2))
    content = bytearray((folder / "X_train.npy").read_bytes())
    content[at] = byte
    (folder / "X_train.npy").write_bytes(content[:keep])
    try:
        assert Coswara(folder).x.shape == (2, 96, 64)
    except FoveateError as error:
        assert "copy it again" in str(error)  # noqa: PT017
