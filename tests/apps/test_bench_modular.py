"""What is timed, what it is divided by, and what goes into the file; no time is asserted."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from foveate.apps.bench_modular import BackwardRow, spread, time_backward
from foveate.errors import FoveateError

TINY = {"width": 8, "rounds": 2, "batch": 2, "probe": 2, "interval": 4}


def test_every_share_is_timed_beside_full_training(tmp_path):
    """A clock that ticks once a look: forward, backward and measuring take one second each."""
    ticks = itertools.count()
    told = []
    threads = torch.get_num_threads()
    rows = time_backward(
        (0.5, 0.25), **TINY, out=tmp_path / "rows.json", clock=lambda: float(next(ticks)),
        progress=lambda what, done, total: told.append((done, total)),
    )  # fmt: skip
    assert [(row.fraction, row.modules) for row in rows] == [(1.0, 64), (0.5, 32), (0.25, 16)]
    full, half, quarter = rows
    for row in rows:
        assert (row.forward_ms, row.backward_ms) == (1000, 1000)
        assert (row.width, row.threads) == (8, 1)
        assert row.backward_ratio == 1
    assert (full.measuring_ms, half.measuring_ms) == (0, 250), "one second over four steps"
    assert (full.bill_ms, half.bill_ms) == (2000, 2250)
    assert (full.bill_ratio, half.bill_ratio) == (1, 1.125)
    assert full.flops_ratio == 1
    assert half.flops_ratio > quarter.flops_ratio
    written = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert [BackwardRow(**item) for item in written] == rows
    assert told[-1] == (1, 2)
    assert torch.get_num_threads() == threads


def test_rare_measurements_leave_the_flops_of_the_steps():
    """With a long interval the ratio is that of forward plus backward of the active share."""
    rows = time_backward((0.5,), **{**TINY, "rounds": 1, "interval": 10**9})
    assert 1 / 3 < rows[1].flops_ratio < 0.75
    exact = time_backward((0.5,), **{**TINY, "rounds": 1, "interval": 10**9}, mode="exact")
    assert rows[1].flops_ratio < exact[1].flops_ratio < 1


def test_shares_are_spread_evenly():
    names = [str(i) for i in range(64)]
    for fraction, step in ((1.0, 1), (0.5, 2), (0.25, 4)):
        assert spread(names, fraction) == names[::step]
    assert spread(names, 1e-9) == ["0"]


@pytest.mark.parametrize(
    "wrong", [{"fractions": ()}, {"fractions": (0.0,)}, {"fractions": (1.5,)}, {"width": 12},
              {"rounds": 0}, {"batch": 0}, {"interval": 0}, {"threads": 0}],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError, match="bench modular takes"):
        time_backward(**wrong)
