"""What is timed, what it is divided by, and what goes into the file; no time is asserted."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from foveate.apps.bench_map import MapRow, SmallCnn3d, time_maps
from foveate.errors import FoveateError

TINY = {"side": 5, "rounds": 2, "channels": 13, "classes": 3, "hidden": 4, "patch": 5,
        "naive_pixels": 4}  # fmt: skip


@pytest.mark.parametrize("neighbours", [4, 8])
def test_all_ways_are_timed_and_agree(tmp_path, neighbours):
    """A clock that ticks once a look: every way takes one second for all its pixels."""
    ticks = itertools.count()
    told = []
    threads = torch.get_num_threads()
    rows = time_maps(
        **TINY, neighbours=neighbours, out=tmp_path / "rows.json",
        clock=lambda: float(next(ticks)),
        progress=lambda what, done, total: told.append((done, total)),
    )  # fmt: skip
    of = {row.method: row for row in rows}
    assert list(of) == ["naive", "patches", "whole", "cnn3d-patches", "cnn3d-whole"]
    assert [row.pixels for row in rows] == [4, 25, 25, 25, 25]
    assert of["naive"].microseconds == 250_000
    assert of["whole"].microseconds == 40_000
    assert of["whole"].pixels_per_second == 25
    assert (of["whole"].times_naive, of["whole"].times_patches) == (6.25, 1)
    assert (of["naive"].times_naive, of["naive"].times_patches) == (1, 0.16)
    for row in rows:
        assert row.difference < 1e-5
        assert (row.neighbours, row.hidden, row.patch, row.channels) == (neighbours, 4, 5, 13)
    written = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert [MapRow(**item) for item in written] == rows
    assert told[-1] == (2, 2)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("channels", "patch"), [(13, 5), (30, 9), (200, 13)])
def test_3d_cnn_gives_one_score_a_patch(channels, patch):
    net = SmallCnn3d(channels, 4, patch)
    x = torch.randn(2, channels, patch, patch + 3)
    scores = net(x)
    assert scores.shape == (2, 4, 1, 4)
    torch.testing.assert_close(scores[..., 2:3], net(x[..., 2 : 2 + patch]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"side": 0}, {"rounds": 0}, {"naive_pixels": 0}, {"threads": 0}, {"side": 5000},
              {"patch": 4}, {"channels": 5}, {"neighbours": 5}],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError, match="got"):
        time_maps(**{**TINY, **wrong})
