"""The optimiser benchmark: its rows and its network, never its times."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.apps import bench_optimizers
from foveate.apps.bench_optimizers import ADAM, CONTENDERS, layers, time_steps
from foveate.errors import FoveateError


def test_rows_of_all_contenders(tmp_path):
    threads = torch.get_num_threads()
    rows = time_steps(parameters=3000, rounds=2, out=tmp_path / "optimizers.json")
    assert torch.get_num_threads() == threads
    assert [row["name"] for row in rows] == list(CONTENDERS)
    assert {"SignAdamPP, foreach", "SignAdam", "Signum", "SignSGD"} <= set(CONTENDERS)
    adam = rows[0]
    assert (adam["name"], adam["ratio"]) == (ADAM, 1.0)
    for row in rows:
        assert row["ms"] > 0
        assert row["ratio"] == pytest.approx(row["ms"] / adam["ms"], rel=0.01)
    assert json.loads((tmp_path / "optimizers.json").read_text()) == rows


def test_every_contender_moves_the_parameters(monkeypatch):
    """Nobody is fast because there was nothing to do."""
    moved = {}

    def one_call_each(contenders, rounds, threads):
        for name, step in contenders.items():
            (group,) = step.__self__.param_groups
            before = [p.detach().clone() for p in group["params"]]
            step()
            moved[name] = all(
                bool((p != old).any()) for p, old in zip(group["params"], before, strict=True)
            )
        return dict.fromkeys(contenders, 1.0)

    monkeypatch.setattr(bench_optimizers, "take_turns", one_call_each)
    time_steps(parameters=700_000)
    assert moved == dict.fromkeys(CONTENDERS, True)


@given(parameters=st.integers(1, 2_000_000))
def test_the_number_of_parameters_is_exact(parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in layers(parameters)) == parameters


@pytest.mark.parametrize("wrong", [{"parameters": 0}, {"rounds": 0}, {"threads": 0},
                                   {"parameters": 10**12}])  # fmt: skip
def test_numbers_that_make_no_sense_are_one_sentence(wrong):
    with pytest.raises(FoveateError, match="bench optimizers takes"):
        time_steps(**wrong)
