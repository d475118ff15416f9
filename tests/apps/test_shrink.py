"""`foveate shrink` from end to end on a tiny network and miniature data."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import foveate
from foveate.apps import shrink as app
from foveate.apps import shrink_contest as contest
from foveate.apps import shrink_training as training
from foveate.apps.shrink import ShrinkSettings, parse_widths, shrink
from foveate.cli import main
from foveate.datasets.own_pictures import OwnPictures
from foveate.engine import PackedModel, compile
from foveate.errors import FoveateError
from foveate.nn.network_source import state_digest
from foveate.quantization.layers import QuantLayer, quant_layers
from foveate.quantization.multi_branch import decompose
from foveate.quantization.surgery import quantize

MEAN, STD = (0.5,), (0.25,)
TINY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes=3, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        return self.fc(torch.flatten(self.pool(x), 1))

def tiny():
    return Tiny()

def five():
    return Tiny(classes=5)

def wants(classes):
    return Tiny(classes)

class Odd(Tiny):
    def __init__(self):
        super().__init__()
        self.relu2 = nn.Softplus(3.0)

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 8)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(8, 8)
        self.fc3 = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))))

def number():
    return 3
"""


def stripes(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pictures 8x8 whose class is the direction of their stripes; noisy, none twice."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    row, column = np.mgrid[:8, :8]
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    along = np.stack([row, column, row + column])[labels]
    waves = 128 + 60 * np.sin(along * np.pi / 2 + phase) + rng.normal(0, 75, (count, 8, 8))
    return np.clip(waves, 0, 255).astype(np.uint8)[:, None], labels.astype(np.int64)


class World:
    """A folder with a network, its weights and pictures; commands run inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tinynets.py").write_text(TINY)
        self.train, self.test = stripes(240, 0), stripes(120, 1)
        np.savez(
            folder / "few.npz",
            x_train=self.train[0], y_train=self.train[1], x_test=self.test[0], y_test=self.test[1],
        )  # fmt: skip
        sys.path.insert(0, str(folder))
        import tinynets

        torch.manual_seed(0)
        self.net: nn.Module = tinynets.tiny()
        optimizer = torch.optim.Adam(self.net.parameters(), 3e-3)
        x, y = self.input(self.train[0]), torch.from_numpy(self.train[1])
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            optimizer.step()
        self.net.eval()
        safetensors.torch.save_file(self.net.state_dict(), folder / "tiny.safetensors")

    def input(self, pictures: np.ndarray[Any, Any]) -> Tensor:
        return (torch.from_numpy(pictures).float() / 255 - MEAN[0]) / STD[0]

    def right(self, answers: Any) -> float:
        """Accuracy on the held-out pictures."""
        return float((np.asarray(answers).argmax(1) == self.test[1]).mean())

    def pictures(self) -> OwnPictures:
        return OwnPictures(*self.train, *self.test, ("a", "b", "c"), True, "stripes")

    def shrink(self, out: Path, **options: Any) -> app.ShrinkResult:
        given = {"mean": MEAN, "std": STD, "rounds": 2, "epochs": 1, "threads": 1, "batch": 32}
        return shrink(self.net, out, data=self.pictures(), **(given | options))


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out ONNX Runtime."""
    monkeypatch.setattr(contest, "onnx_runtime_version", lambda: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    sys.path.remove(str(made.folder))
    sys.modules.pop("tinynets")


@pytest.fixture(scope="module")
def command(world: World) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The command as a person types it, in a folder that holds the network's module."""
    words = (
        "tinynets:tiny --weights tiny.safetensors --data few.npz --mean 0.5 --std 0.25 --bits 4,2 "
        "--epochs 2 --threads 1 --batch 32 --out result"
    )
    done = subprocess.run(
        [sys.executable, "-m", "foveate", "shrink", *words.split()],
        capture_output=True, text=True, timeout=300, check=False, cwd=world.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done, world.folder / "result"


@pytest.fixture(scope="module")
def summary(command: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    done, out = command
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return loaded


def test_the_command_leaves_exactly_these_files(command, summary):
    done, out = command
    assert sorted(p.name for p in out.iterdir()) == [
        "report.html", "summary.json",
        "tiny-w2a2.fvt", "tiny-w2a2.json", "tiny-w2a2.safetensors",
        "tiny-w4a4.fvt", "tiny-w4a4.json", "tiny-w4a4.safetensors",
    ]  # fmt: skip
    assert "report.html" in done.stdout
    assert "foveate 2-bit" in done.stdout
    assert summary["verdict"]["file"] is None or summary["verdict"]["file"] in done.stdout


def test_every_accuracy_is_that_of_the_file_on_the_held_out_pictures(world, command, summary):
    out = command[1]
    by_name = {row["name"]: row for row in summary["rows"]}
    x = world.input(world.test[0])
    with torch.no_grad():
        assert by_name["float"]["accuracy"] == pytest.approx(world.right(world.net(x)), abs=1e-6)
    for name in ("w4a4", "w2a2"):
        row = by_name[name]
        packed = PackedModel.load(out / row["file"])
        assert row["accuracy"] == pytest.approx(world.right(packed.run(x)), abs=1e-6)
        assert row["points"] == pytest.approx(
            100 * (row["accuracy"] - by_name["float"]["accuracy"]), abs=1e-3
        )
        assert row["bytes"] == (out / row["file"]).stat().st_size
        assert row["checked"] == {
            "pictures": 120, "same": 120,
            "largest_difference": row["checked"]["largest_difference"],
        }  # fmt: skip
    # what is left at 4 bits is worth having: a network that learned nothing has 1/3
    assert by_name["float"]["accuracy"] > 0.85
    assert by_name["w4a4"]["accuracy"] > 0.75


def test_the_saved_weights_are_those_of_the_packed_file(world, command):
    import tinynets

    out = command[1]
    for bits in (4, 2):
        net = tinynets.tiny()
        quantize(net, bits, bits, example=torch.zeros(1, 1, 8, 8))
        net.load_state_dict(safetensors.torch.load_file(out / f"tiny-w{bits}a{bits}.safetensors"))
        packed = PackedModel.load(out / f"tiny-w{bits}a{bits}.fvt")
        x = world.input(world.test[0])
        with torch.no_grad():
            assert (net.eval()(x).argmax(1) == packed.run(x).argmax(1)).all()
        assert compile(net, x[:1]).size_bytes == packed.size_bytes


def test_sizes_against_a_count_by_hand(summary):
    by_name = {row["name"]: row for row in summary["rows"]}
    conv1, conv2, conv3, fc = 8 * 9, 16 * 8 * 9, 16 * 16 * 9, 16 * 3 + 3
    norms = 2 * (8 + 16 + 16)
    assert by_name["float"]["bytes"] == 4 * (conv1 + conv2 + conv3 + norms + fc)
    for bits in (4, 2):
        coded = (conv2 + conv3) * bits // 8
        real = conv1 + fc + norms + 16 + 16 + 2  # a step per output channel and per activation
        assert by_name[f"w{bits}a{bits}"]["packed_bytes"] == coded + 4 * real


def test_all_contenders_are_timed_in_one_run_and_compared(summary):
    rows = summary["rows"]
    names = [row["name"] for row in rows]
    assert names[0] == "float"
    assert names[-2:] == ["w4a4", "w2a2"]
    for row in rows:
        assert set(row["ms"]) == {"1"}
        assert row["ms"]["1"] > 0
        assert row["times_float"] == pytest.approx(rows[0]["ms"]["1"] / row["ms"]["1"], rel=0.05)
        beaten = any(
            other["ms"]["1"] <= row["ms"]["1"]
            and other["accuracy"] >= row["accuracy"]
            and (other["ms"]["1"], other["accuracy"]) != (row["ms"]["1"], row["accuracy"])
            for other in rows
        )
        assert row["pareto"] == (not beaten)
    for width in ("w4a4", "w2a2"):
        nodes = summary["profiles"][width]
        assert {node["name"] for node in nodes} >= {"conv1", "conv2", "conv3", "fc"}
        assert sum(node["macs"] for node in nodes) == summary["network"]["macs"]
    assert summary["network"]["macs"] == 64 * 72 + 16 * (8 * 16 * 9 + 16 * 16 * 9) + 48


def test_a_second_column_for_several_threads(world, tmp_path, monkeypatch):
    quick(monkeypatch)
    result = world.shrink(tmp_path / "out", bits=[4], epochs=0, threads=2)
    assert [set(row["ms"]) for row in result.rows] == [{"1", "2"}] * 2
    assert all(row["ms"]["2"] > 0 for row in result.rows)
    assert "2 threads" in (tmp_path / "out" / "report.html").read_text()


def test_onnx_runtime_stands_beside_it(world, summary):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    by_name = {row["name"]: row for row in summary["rows"]}
    assert by_name["ort-fp32"]["accuracy"] == pytest.approx(by_name["float"]["accuracy"], abs=0.01)
    assert by_name["ort-int8"]["accuracy"] == pytest.approx(by_name["float"]["accuracy"], abs=0.05)
    assert by_name["ort-int8"]["bytes"] < by_name["ort-fp32"]["bytes"]
    assert by_name["ort-int8"]["times_int8"] == 1


def test_without_onnx_runtime_its_rows_are_missing_and_said_to_be(world, tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "onnx_runtime_version", lambda: None)
    result = world.shrink(tmp_path / "out", bits=[4], epochs=0)
    assert [row["name"] for row in result.rows] == ["float", "w4a4"]
    assert all(row["times_int8"] is None for row in result.rows)
    assert any("ONNX Runtime is not installed" in note for note in result.summary["notes"])


def test_what_was_kept_is_said_with_its_reason(summary):
    layers = {layer["path"]: layer for layer in summary["layers"]["w2a2"]}
    assert layers["conv1"]["note"] == "kept: first layer"
    assert layers["fc"]["note"] == "kept: last layer"
    assert layers["conv2"] == {
        "path": "conv2", "was": "Conv2d", "now": "QuantConv2d", "bits": [2, 2], "note": "",
    }  # fmt: skip
    assert layers["relu1"]["now"] == "Identity"


# ------------------------------------------------------------------------------ going on


def test_finished_widths_are_kept_and_new_ones_added(world, tmp_path, monkeypatch):
    quick(monkeypatch)
    out = tmp_path / "out"
    first = world.shrink(out, bits="4")
    stamp = (out / "tiny-w4a4.fvt").stat().st_mtime_ns
    assert not first.reused
    more = world.shrink(out, bits="4,2")
    assert not more.reused
    assert [row["name"] for row in more.rows] == ["float", "w4a4", "w2a2"]
    assert (out / "tiny-w4a4.fvt").stat().st_mtime_ns == stamp
    again = world.shrink(out, bits=[2, 4, 4])
    assert again.reused
    assert again.summary == more.summary
    assert set(again.files) == {"w4a4", "w2a2"}
    # whatever a number depends on makes it anew
    assert not world.shrink(out, bits="4", seed=1).reused
    other = (out / "tiny-w4a4.fvt").stat().st_mtime_ns
    assert other != stamp
    assert not world.shrink(out, bits="4", seed=1, force=True).reused
    assert (out / "tiny-w4a4.fvt").stat().st_mtime_ns != other
    # a file that is no longer what was written is made again
    damaged = bytearray((out / "tiny-w4a4.fvt").read_bytes())
    damaged[-1] ^= 1
    (out / "tiny-w4a4.fvt").write_bytes(damaged)
    world.shrink(out, bits="4", seed=1)
    assert (out / "tiny-w4a4.fvt").read_bytes() != bytes(damaged)


def test_an_interruption_leaves_nothing_half_written_and_nothing_is_lost(
    world, tmp_path, monkeypatch
):
    quick(monkeypatch)
    out = tmp_path / "out"

    def stop(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if what.startswith("w2a2: checking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.shrink(out, bits="4,2", progress=stop)
    assert sorted(p.name for p in out.iterdir()) == [
        "tiny-w4a4.fvt", "tiny-w4a4.json", "tiny-w4a4.safetensors",
    ]  # fmt: skip
    stamp = (out / "tiny-w4a4.fvt").stat().st_mtime_ns
    assert len(world.shrink(out, bits="4,2").rows) == 3
    assert (out / "tiny-w4a4.fvt").stat().st_mtime_ns == stamp
    # interrupted before anything was done: not even the folder is left
    with pytest.raises(KeyboardInterrupt):
        world.shrink(
            tmp_path / "a" / "b", bits="2", progress=lambda *_: stop("w2a2: checking", 0, 1)
        )
    assert not (tmp_path / "a").exists()


def test_a_network_given_as_a_module_is_left_as_it_is(world, tmp_path, monkeypatch):
    quick(monkeypatch)
    before, kept = state_digest(world.net), torch.get_num_threads()
    world.net.train()
    torch.set_num_threads(3)
    try:
        world.shrink(tmp_path / "out", bits="1x2", threads=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(kept)
    assert state_digest(world.net) == before
    assert world.net.training
    world.net.eval()
    assert not any(isinstance(module, QuantLayer) for module in world.net.modules())


def test_it_is_a_plain_call_of_the_package():
    assert foveate.shrink is shrink
    assert "shrink" in dir(foveate)


# ------------------------------------------------------------------------------ methods


def course(world: World, **changes: Any) -> training.Course:
    given = {"epochs": 1, "batch": 32, "lr": None, "seed": 0, "augment": "shift"} | changes
    return training.Course(world.pictures(), training.Feed(MEAN, STD), **given)


def student(world: World, method: str, bits: int, **changes: Any) -> training.Student:
    width, lessons = training.Width(bits, bits), course(world, **changes)
    made = training.make_student(world.net, method, width, ("first", "last"), lessons)
    return training.train(made, world.net, method, width, lessons, lambda what, share: None)


def test_post_training_changes_no_weight(world):
    made = student(world, "post-training", 4)
    for path, layer in quant_layers(made.model):
        assert torch.equal(layer.weight, world.net.get_submodule(path).weight)
    with torch.no_grad():
        assert world.right(made.model(world.input(world.test[0]))) > 0.6
    assert not made.model.training


def test_training_beats_calibration_alone_at_two_bits(world):
    x = world.input(world.test[0])
    width, lessons = training.Width(2, 2), course(world)
    raw = training.make_student(world.net, "qat", width, ("first", "last"), lessons)
    trained = student(world, "qat", 2, epochs=6)
    with torch.no_grad():
        before = world.right(raw.model.eval()(x))
        after = world.right(trained.model(x))
    assert after > max(before, 0.6)


def test_mbn_layers_are_sums_of_binary_branches_and_go_from_high_to_low(
    world, tmp_path, monkeypatch
):
    quick(monkeypatch)
    made = student(world, "mbn", 2)
    x = world.input(world.test[0])
    inputs: dict[str, Tensor] = {}
    layers = dict(quant_layers(made.model))
    assert set(layers) == {"conv2", "conv3"}
    for path, layer in layers.items():
        layer.register_forward_pre_hook(lambda m, given, p=path: inputs.__setitem__(p, given[0]))
    with torch.no_grad():
        made.model(x)
        for path, layer in layers.items():
            assert torch.equal(decompose(layer)(inputs[path]), layer(inputs[path]))
    # the narrower one starts from the wider one: with no training it has its latent weights
    seen = []
    real = training.make_student

    def watched(*arguments: Any) -> training.Student:
        seen.append(arguments[5])
        return real(*arguments)

    monkeypatch.setattr(app, "make_student", watched)
    world.shrink(tmp_path / "out", bits="4,2", method="mbn")
    wide = safetensors.torch.load_file(tmp_path / "out" / "tiny-w4a4.safetensors")
    assert seen[0] is None
    assert torch.equal(seen[1]["conv2.weight"], wide["conv2.weight"])
    assert not torch.equal(wide["conv2.weight"], world.net.conv2.weight)


def test_real_to_binary_has_gates_one_bit_and_all_its_stages(world, tmp_path, monkeypatch):
    quick(monkeypatch)
    told: list[str] = []
    result = world.shrink(
        tmp_path / "out", method="real-to-binary", epochs=3,
        progress=lambda what, done, total: told.append(what),
    )  # fmt: skip
    assert [row["bits"] for row in result.rows] == [None, [1, 1]]
    assert result.rows[1]["checked"]["same"] == 120
    state = safetensors.torch.load_file(tmp_path / "out" / "tiny-w1a1.safetensors")
    assert {"conv2.gate.reduce.weight", "conv3.channel_scale"} <= set(state)
    stages = [name for name in ("soft", "w32a1", "w1a1,") if any(name in what for what in told)]
    assert stages == ["soft", "w32a1", "w1a1,"]
    assert any("no attention maps" in note for note in result.summary["notes"])


def test_named_blocks_are_matched_by_attention(world):
    class Blocks(nn.Module):
        block_names = ("conv2", "conv3")

        def __init__(self) -> None:
            super().__init__()
            for name, module in world.net.named_children():
                self.add_module(name, module)

        forward = type(world.net).forward

    width, lessons = training.Width(1, 1), course(world, epochs=3)
    net = Blocks().eval()
    made = training.make_student(net, "real-to-binary", width, ("first", "last"), lessons)
    done = training.train(made, net, "real-to-binary", width, lessons, lambda what, share: None)
    assert not any("attention" in note for note in done.notes)
    assert {layer.bits for _, layer in quant_layers(done.model)} == {(1, 1)}


def test_numbers_that_are_none_are_an_error(world, tmp_path):
    net = copy.deepcopy(world.net)
    net.fc.bias.data[0] = torch.nan
    lessons, width = course(world), training.Width(4, 4)
    made = training.make_student(net, "qat", width, ("first", "last"), lessons)
    with pytest.raises(FoveateError, match=r"training went wrong in epoch 1.*--lr"):
        training.train(made, net, "qat", width, lessons, lambda what, share: None)
    with pytest.raises(FoveateError, match="gives numbers that are not finite"):
        shrink(net, tmp_path / "out", data=world.pictures(), mean=MEAN, std=STD)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(3, 20), st.integers(3, 20), st.sampled_from(["shift", "mirror"])
)
def test_variations_move_and_mirror_and_invent_nothing(count, height, width, kind):
    x = torch.arange(count * height * width).float().reshape(count, 1, height, width)
    draw = torch.Generator().manual_seed(height * width)
    varied = training._varied(x, kind, draw)
    assert varied.shape == x.shape
    reach = max(1, min(height, width) // 8)
    for before, after in zip(x[:, 0], varied[:, 0], strict=True):
        rows = [int(v) for v in (after[:, 0] - before.min()) // width]
        shifts = np.array(rows) - np.arange(height)
        inside = shifts[reach : height - reach]
        assert inside.size == 0 or (np.ptp(inside) == 0 and abs(inside[0]) <= reach)
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
        steps = set(np.sign(np.diff(after[0].numpy())).tolist())
        assert steps <= {0.0, 1.0} or (kind == "mirror" and steps <= {0.0, -1.0})


# ------------------------------------------------------------------------------ words


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=6))
def test_widths_in_all_spellings(pairs):
    wanted = sorted(set(pairs), key=lambda p: (p[0] * p[1], p), reverse=True)
    for spell in ("{}x{}", "w{}a{}", " {}x{} "):
        assert list(parse_widths(",".join(spell.format(*p) for p in pairs))) == wanted
    assert list(parse_widths(pairs)) == wanted
    same = sorted({p[0] for p in pairs}, reverse=True)
    assert [w.weights for w in parse_widths([p[0] for p in pairs])] == same
    assert all(w.weights == w.activations for w in parse_widths([p[0] for p in pairs]))


@pytest.mark.parametrize("bits", ["9", "0", "2x", "x2", "2,,4", "", "two", "1x2x3", "-1", "3.5"])
def test_no_widths(bits):
    with pytest.raises(FoveateError, match="--bits"):
        parse_widths(bits)


def test_the_verdict_takes_the_fastest_that_is_near_enough():
    def row(name, points, ms, size, same=100):
        return {
            "name": name, "file": f"{name}.fvt", "points": points, "ms": {"1": ms}, "bytes": size,
            "accuracy": 0.9 + points / 100, "checked": {"pictures": 100, "same": same},
        }  # fmt: skip

    rows = [
        {"name": "float", "file": None, "points": 0, "ms": {"1": 9.0}, "bytes": 9, "accuracy": 0.9},
        row("w8a8", -0.1, 2.0, 80), row("w4a4", -1.0, 1.0, 40), row("w2a2", -2.9, 1.02, 20),
        row("w1a1", -9.0, 0.5, 10),
    ]  # fmt: skip
    assert contest.verdict(rows, 3.0)["file"] == "w2a2.fvt"  # as fast as w4a4, and smaller
    assert contest.verdict(rows, 1.5)["file"] == "w4a4.fvt"
    assert contest.verdict(rows, 50.0)["file"] == "w1a1.fvt"
    none = contest.verdict(rows, 0.05)
    assert none["file"] is None
    assert none["nearest"] == "w8a8"
    rows[3]["checked"]["same"] = 90  # another answer than PyTorch's in 10 %: not advised
    left = contest.verdict(rows, 3.0)
    assert left["file"] == "w4a4.fvt"
    assert "w2a2 left out" in left["reason"]


# ------------------------------------------------------------------------------ bad input


def folder_of(path: Path, **classes: list[tuple[int, int]]) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, sizes in classes.items():
        (path / name).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            pixels = rng.integers(0, 256, (height, width), np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def test_bad_input_is_one_sentence_and_exit_code_2(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world.folder)
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    folder_of(tmp_path / "single", only=[(8, 8)] * 4)
    folder_of(tmp_path / "mixed", a=[(8, 8), (9, 8)], b=[(8, 8)] * 2)
    folder_of(tmp_path / "twelve", a=[(12, 12)] * 3, b=[(12, 12)] * 3, c=[(12, 12)] * 3)
    (tmp_path / "file").write_text("x")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "report.html").write_text("mine")
    small = ["--weights", "tiny.safetensors"]
    few = ["--data", "few.npz"]
    cases = [
        (["nowhere.nets:tiny", *few], "there is no module 'nowhere' for nowhere.nets:tiny"),
        (["tinynets:tony", *few], "tinynets has no 'tony'.*did you mean tiny"),
        (["tinynets:wants", *few], "tinynets:wants cannot be called without arguments.*classes"),
        (["tinynets:number", *few], "tinynets:number returned a int"),
        (["tinynets", *few], "'tinynets' names no network"),
        (["tinynets:tiny", *few, "--weights", "missing.pt"], "no weights at missing.pt"),
        (["tinynets:tiny", *few, "--weights", str(tmp_path / "other.pt")], "has 'nothing', which"),
        (["tinynets:five", *few, *small], "'fc.bias' in tiny.safetensors has the shape"),
        (["tinynets:tiny", *few, "--weights", str(tmp_path / "junk.safetensors")], "cannot read"),
        (["tinynets:tiny", *small, "--data", str(tmp_path / "nothing")], "no pictures at"),
        (["tinynets:tiny", *small, "--data", str(tmp_path / "empty")], "no picture below"),
        (["tinynets:tiny", *small, "--data", str(tmp_path / "single")], "pictures .* one class"),
        (["tinynets:tiny", *small, "--data", str(tmp_path / "mixed")], r"is 9x8.*is 8x8.*--size"),
        (["tinynets:Flat", "--data", str(tmp_path / "twelve")], "does not run on pictures of 3x12"),
        (["tinynets:Odd", *few], "relu2"),
        (["tinynets:tiny", *few, *small, "--out", str(tmp_path / "file" / "in")], "cannot write"),
        (["tinynets:tiny", *few, *small, "--out", str(theirs)], "would be overwritten"),
        (["tinynets:tiny", *few, *small, "--bits", "9"], "--bits has '9'"),
        (["tinynets:tiny", *few, *small, "--keep", "conv9"], "'conv9' names no convolution"),
        (["tinynets:tiny", *few, *small, "--keep", "conv?,fc"], "nothing of Tiny would be"),
        (["tinynets:tiny", *few, *small, "--mean", "a"], "--mean a is no list of numbers"),
        (["tinynets:tiny", *few, *small, "--mean", "1,2,3"], "--mean has 3 numbers"),
        (["tinynets:tiny", *few, *small, "--std", "0"], "--std is"),
        (["tinynets:tiny", *few, *small, "--epochs", "-1"], "--epochs is -1"),
        (["tinynets:tiny", *few, *small, "--method", "real-to-binary", "--bits", "4"], "1-bit"),
        (["tinynets:tiny", *few, *small, "--method", "magic"], "magic"),
        (["tinynets:tiny", *small], "--data"),
        (["tinynets:tiny", *few, *small, "--threads", "0"], "--threads is 0"),
    ]  # fmt: skip
    before = sorted(world.folder.rglob("*"))
    for arguments, sentence in cases:
        words = ["shrink", *arguments]
        if "--out" not in words:
            words += ["--out", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as left:
            main(words)
        said = capsys.readouterr().err
        assert left.value.code == 2, (arguments, said)
        assert re.search(sentence, said.replace("\n", " ")), (arguments, said)
        assert "Traceback" not in said
        assert not (tmp_path / "out").exists(), arguments
    assert (theirs / "report.html").read_text() == "mine"
    left_behind = {p for p in world.folder.rglob("*") if "__pycache__" not in p.parts}
    assert left_behind <= set(before) | {world.folder / "result"} | set(
        (world.folder / "result").rglob("*")
    )


def test_classes_and_outputs_must_agree_where_the_data_names_its_classes(
    world, tmp_path, monkeypatch
):
    import tinynets

    with pytest.raises(FoveateError, match=r"gives 5 numbers and stripes has 3 classes"):
        shrink(tinynets.five(), tmp_path / "out", data=world.pictures(), mean=MEAN, std=STD)
    with pytest.raises(FoveateError, match="unknown option for shrink"):
        shrink(world.net, tmp_path / "out", data=world.pictures(), epoch=3)
    with pytest.raises(FoveateError, match="a module brings its own"):
        shrink(world.net, tmp_path / "out", data=world.pictures(), weights="x.pt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FoveateError, match="--device cuda"):
        shrink(world.net, tmp_path / "out", data=world.pictures(), device="cuda")
    assert not (tmp_path / "out").exists()


def test_a_network_that_knows_nothing_is_told_so(world, tmp_path, monkeypatch):
    import tinynets

    quick(monkeypatch)
    torch.manual_seed(3)
    net = tinynets.tiny()
    nn.init.zeros_(net.fc.weight)
    result = shrink(
        net, tmp_path / "out", data=world.pictures(), bits=[8], method="post-training", rounds=1,
        threads=1,
    )  # fmt: skip
    notes = " ".join(result.summary["notes"])
    assert "hardly more than by chance" in notes
    assert "--mean and --std" in notes


def test_settings_are_what_the_command_offers():
    assert ShrinkSettings().widths == ((8, 8), (4, 4), (2, 2), (1, 1))
    assert ShrinkSettings(method="real-to-binary").widths == ((1, 1),)
