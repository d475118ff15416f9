"""MIMIC-III's mortality benchmark from npz: columns, checks, and the way there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from foveate.datasets import mimic3_ihm
from foveate.datasets.mimic3_ihm import COLUMNS, MIMIC3IHM, load
from foveate.errors import FoveateError
from make_miniatures import health as mini


def test_columns_are_the_sixty_of_the_specification():
    text = "0-8, 12-14, 16, 17, 19, 24-37, 39, 44, 40, 41, 49-75"
    wanted: list[int] = []
    for part in text.split(", "):
        first, _, last = part.partition("-")
        wanted += range(int(first), int(last or first) + 1)
    assert list(COLUMNS) == wanted
    assert len(set(COLUMNS)) == 60


def test_values_come_from_their_columns(tmp_path):
    mini.write_mimic(tmp_path / "mimic3-ihm")
    parts = load(tmp_path)
    assert {name: x.shape for name, (x, _) in parts.items()} == {
        "train": (12, 48, 60), "val": (6, 48, 60), "test": (6, 48, 60),
    }  # fmt: skip
    x, y = parts["train"]
    assert (x.dtype, y.dtype, y[:4].tolist()) == (np.float32, np.int64, [0, 1, 0, 1])
    for row, hour, place in ((0, 0, 9), (11, 47, 59), (3, 5, 30)):
        assert x[row, hour, place] == pytest.approx(1000 * row + COLUMNS[place] + hour / 100)
    assert len(MIMIC3IHM(tmp_path / "mimic3-ihm", "val")) == 6
    assert MIMIC3IHM.card.gated


def test_pickle_is_not_read_but_the_way_is_told(tmp_path):
    (tmp_path / "train_raw.p").write_bytes(b"cos\nsystem\n(S'echo no'\ntR.")
    with pytest.raises(FoveateError, match=r"train_raw.npz is not there; .*pickle files are not"):
        MIMIC3IHM(tmp_path)
    assert "savez_compressed" in mimic3_ihm.__doc__


def test_the_snippet_makes_what_is_read(tmp_path, monkeypatch):
    """The lines of the docstring, with a reader in place of the one that foveate does not use."""

    def read(file):
        content = (np.full((4, 48, 76), 2.0), [0, 1, 0, 1])
        is_test = Path(file.name).name == "test_raw.p"
        return {"data": content, "names": ["a"]} if is_test else content

    for part in ("train", "val", "test"):
        (tmp_path / f"{part}_raw.p").touch()
    lines = mimic3_ihm.__doc__.split(".. code-block:: text\n\n")[1].split("\n\nThe values")[0]
    code = "\n".join(line[4:] for line in lines.splitlines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pickle", SimpleNamespace(load=read))
    exec(compile(code, "docstring", "exec"), {})  # noqa: S102 - our own documentation
    parts = load(tmp_path)
    assert all((x == 2).all() and y.tolist() == [0, 1, 0, 1] for x, y in parts.values())


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.zeros((2, 48, 60)), np.zeros(2), "floats .N, 48, 76"),
        (np.zeros((2, 48, 76)), np.zeros(3), "floats .N, 48, 76"),
        (np.zeros((2, 48, 76)), np.array([0, 2]), "labels 0 or 1"),
        (np.zeros((0, 48, 76)), np.zeros(0), "floats .N, 48, 76"),
        (np.full((1, 48, 76), np.nan), np.zeros(1), "no finite numbers"),
        (np.zeros((2, 48, 76)), np.array(["a", "b"]), "labels 0 or 1"),
    ],
)
def test_bad_arrays_are_one_sentence(tmp_path, x, y, sentence):
    np.savez(tmp_path / "train_raw.npz", x=x, y=y)
    with pytest.raises(FoveateError, match=sentence):
        MIMIC3IHM(tmp_path)
    with pytest.raises(FoveateError, match="no split 'dev'"):
        MIMIC3IHM(tmp_path, "dev")
