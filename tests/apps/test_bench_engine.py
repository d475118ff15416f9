"""Who is timed on what, and what becomes of the seconds; no time itself is asserted."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json

import numpy as np
import pytest
import torch

from foveate.apps import bench_engine, bench_peers
from foveate.apps.bench_engine import EngineRow, Job, jobs, time_engine
from foveate.apps.bench_peers import Contender
from foveate.engine.packed_model import PackedModel
from foveate.errors import FoveateError

OWN = [
    "foveate 1x1 bits",
    "foveate 2x2 bits, path chosen by itself",
    "foveate 8x8 bits (int8 path)",
]


def installed(*names):
    return all(importlib.util.find_spec(name) for name in names)


@pytest.fixture
def tiny(monkeypatch):
    """One narrow shape and a network of one layer."""

    def network(folder, threads):
        return [Contender("a network", "fp32", lambda: None)]

    monkeypatch.setattr(bench_engine, "SHAPES", ((64, 5, 2),))
    monkeypatch.setattr(bench_engine, "networks", network)


def test_all_four_questions_are_answered_by_all_who_are_installed(tiny, tmp_path):
    told = []
    rows = time_engine(
        5, (1,), tmp_path / "engine.json", progress=lambda what, done, total: told.append(what)
    )
    assert list(dict.fromkeys(row.workload for row in rows)) == [
        "3x3, 64 channels, 5x5",
        "3x3, 64 channels, 5x5, alone",
        "ResNet-18, 224x224",
        "16 layers, 3 widths",
    ]
    assert len(told) == 4
    peers = {"torch fp32, channels_last", "torch fp32, compiled with freezing"}
    if installed("onnx", "onnxruntime"):
        peers |= {"ONNX Runtime fp32", "ONNX Runtime int8"}
    if installed("openvino"):
        peers |= {"OpenVINO BinaryConvolution, with reorders"}
    if installed("openvino", "onnx", "onnxruntime"):
        peers |= {"OpenVINO fp32", "OpenVINO int8"}
    if installed("ai_edge_litert", "flatbuffers"):
        peers |= {"LiteRT (XNNPACK) fp32", "LiteRT (XNNPACK) int8"}
    for workload in ("3x3, 64 channels, 5x5", "3x3, 64 channels, 5x5, alone"):
        here = [row for row in rows if row.workload == workload]
        assert [row.what for row in here if row.own] == OWN
        assert {row.what for row in here if not row.own} >= peers
        assert {row.kind for row in here} >= {"1x1 bits", "2x2 bits", "int8", "fp32"}
        assert all(row.milliseconds > 0 for row in here)
    switch = [row for row in rows if row.table == "Switching bit widths"]
    assert [row.what for row in switch] == [
        "foveate set_bits, by name",
        "foveate set_bits, by list",
    ]
    assert {row.threads for row in rows} == {1}
    written = json.loads((tmp_path / "engine.json").read_text("utf-8"))
    assert [EngineRow(**item) for item in written] == rows


def test_settings_are_put_back(tiny, monkeypatch):
    from foveate import _native

    monkeypatch.setattr(bench_engine, "SHAPES", ())
    before, isa = torch.get_num_threads(), _native.cpu_features()
    time_engine(5, (before + 1,), isa="portable")
    assert torch.get_num_threads() == before
    assert _native.cpu_features() == isa


def test_a_call_of_n_convolutions_counts_as_one_of_them():
    job = Job("t", "w", lambda folder, threads: [], 1, 8 * 9 * 64**2 * 56**2, 8)
    made = bench_engine.row(job, Contender("me", "int8", lambda: None, own=True), 2e-3)
    assert made.milliseconds == 0.25  # 2 ms are 8 convolutions
    assert made.gmacs == round(9 * 64 * 64 * 56 * 56 / 0.25e-3 / 1e9, 1)
    assert (made.what, made.kind, made.own, made.threads) == ("me", "int8", True, 1)


def test_the_four_shapes_of_a_resnet18_have_equal_work_and_2048_channels_in_all():
    assert [(c, side) for c, side, _ in bench_engine.SHAPES] == [
        (64, 56), (128, 28), (256, 14), (512, 7)
    ]  # fmt: skip
    assert {c * side for c, side, _ in bench_engine.SHAPES} == {3584}
    assert {c * depth for c, _, depth in bench_engine.SHAPES} == {2048}
    todo = jobs((1, 2))
    assert [job.threads for job in todo] == [1] * 9 + [2] * 9 + [1]
    rows = [job for job in todo if job.threads == 1 and job.workload.startswith("3x3, 128")]
    assert [(job.call_macs, job.parts) for job in rows] == [
        (16 * 9 * 128 * 128 * 28 * 28, 16),
        (9 * 128 * 128 * 28 * 28, 1),
    ]


def test_between_convolutions_in_a_row_lie_codes():
    net = bench_engine.few_bit_convolutions(64, 1, 3)
    packed = bench_engine.compile(net, torch.zeros(1, 64, 5, 5))
    conv = [node for node in packed.graph.nodes if node.op == "conv"]
    assert len(conv) == 3
    made = [packed.graph.tensor(node.outputs[0]).format for node in conv]
    assert [None if fmt is None else fmt.bits for fmt in made] == [1, 1, None]


def test_every_switch_changes_the_width(tmp_path, monkeypatch):
    seen = []
    plain = PackedModel.set_bits

    def watched(self, choice):
        plain(self, choice)
        seen.append(self.mode)

    monkeypatch.setattr(PackedModel, "set_bits", watched)
    for contender in bench_engine.switches(tmp_path, 1):
        seen.clear()
        for _ in range(6):
            contender.call()
        assert set(seen) == {"w1a1", "w2a2", "w4a4"}
        assert all(a != b for a, b in itertools.pairwise(seen))


def test_networks_are_the_binary_twin_and_the_float_net(tmp_path, monkeypatch):
    given = {}

    def peers(path, image, threads):
        given.update(path=path, shape=image.shape, threads=threads)
        return []

    monkeypatch.setattr(bench_engine, "PICTURE", 32)
    monkeypatch.setattr(bench_engine, "onnx_peers", peers)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: None)
    contenders = bench_engine.networks(tmp_path, 2)
    assert [(c.kind, c.own) for c in contenders] == [
        ("1x1 bits", True), ("1x1 bits", True), ("fp32", False)
    ]  # fmt: skip
    for contender in contenders:
        assert tuple(contender.call().shape) == (1, 1000)
    if installed("onnx", "onnxscript"):
        assert (given["shape"], given["threads"]) == ((1, 3, 32, 32), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 4}, "5 to 10000 rounds"),
        ({"rounds": 10001}, "5 to 10000 rounds"),
        ({"threads": ()}, "1 or more threads"),
        ({"threads": (0, 1)}, "1 or more threads"),
        ({"isa": "abacus"}, "bench engine cannot run"),
    ],
)
def test_senseless_numbers_are_refused(options, message):
    with pytest.raises(FoveateError, match=message):
        time_engine(**options)


def test_a_row_is_what_json_keeps():
    row = EngineRow("t", "w", "me", "int8", True, 2, 0.1234, 5.0)
    assert EngineRow(**json.loads(json.dumps(dataclasses.asdict(row)))) == row


def test_peers_without_their_package_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    convs = bench_peers.float_convolutions(8, 1)
    image = np.zeros((1, 8, 4, 4), np.float32)
    assert not bench_peers.write_onnx(convs, 4, tmp_path / "a.onnx")
    assert bench_peers.onnx_peers(tmp_path / "a.onnx", image, 1) == []
    assert bench_peers.litert_peers(convs, image, 1) == []
    assert bench_peers.openvino_binary(1, image, 1) == []
    assert list(tmp_path.iterdir()) == []
