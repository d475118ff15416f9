"""What is trained and what the rows say; no time is asserted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from foveate.apps import bench_shrink
from foveate.apps.bench_shrink import normalised, shrink_resnet8, varied
from foveate.errors import FoveateError


def pictures(folder, count=60, channels=3):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 2
    x = rng.integers(0, 200, (count, channels, 16, 16)) + 55 * y[:, None, None, None]
    path = folder / "p.npz"
    np.savez(path, x_train=x.astype(np.uint8), y_train=y, x_test=x[:20].astype(np.uint8),
             y_test=y[:20])  # fmt: skip
    return path


def test_rows_are_those_of_shrink_and_a_second_run_trains_nothing(tmp_path, monkeypatch):
    path = pictures(tmp_path)
    options = {"epochs": 1, "shrink_epochs": 1, "bits": "8", "rounds": 2}
    rows = shrink_resnet8(path, tmp_path / "w", **options, out=tmp_path / "rows.json")
    summary = json.loads((tmp_path / "w" / "shrink" / "summary.json").read_text("utf-8"))
    assert [(row.name, row.accuracy) for row in rows] == [
        (row["name"], row["accuracy"]) for row in summary["rows"]
    ]
    times = {row["name"]: row["ms"]["1"] for row in summary["rows"]}
    for row in rows:
        assert row.ms == times[row.name]
        if row.speed is not None:
            assert row.speed == pytest.approx(times["ort-int8"] / row.ms)
    written = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert written == [dataclasses.asdict(row) for row in rows]

    def never(*arguments, **named):
        raise AssertionError("trained again")

    monkeypatch.setattr(bench_shrink, "train_resnet8", never)
    again = shrink_resnet8(path, tmp_path / "w", **options)
    assert [row.accuracy for row in again] == [row.accuracy for row in rows]


def test_variation_shifts_by_at_most_four_and_mirrors_half():
    """A picture with a single bright pixel in the middle: where it can be afterwards."""
    x = torch.zeros(400, 3, 17, 17, dtype=torch.uint8)
    x[:, :, 8, 6] = 255
    found = varied(x, torch.Generator().manual_seed(0))
    assert found.shape == x.shape
    places = found[:, 0].flatten(1).argmax(1)
    rows, columns = places // 17, places % 17
    assert set(rows.tolist()) == set(range(4, 13))
    # column 6 shifted: 2..10; mirrored 16 - those: 6..14
    assert set(columns.tolist()) == set(range(2, 15))
    assert torch.equal(found[:, 0], found[:, 2])


def test_pixels_are_brought_to_cifars_mean_and_deviation():
    x = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    wanted = [(1 - 0.4914) / 0.2470, (1 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616]
    assert normalised(x).flatten().tolist() == pytest.approx(wanted)


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(FoveateError, match="at least 1, got 0"):
        shrink_resnet8(pictures(tmp_path), tmp_path / "w", epochs=0)
    with pytest.raises(FoveateError, match=r"have 1 channel\(s\); give CIFAR-10"):
        shrink_resnet8(pictures(tmp_path, channels=1), tmp_path / "w")
