"""Packed models: files, modes, reports, both executors, ONNX, and what users do wrong."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveate.engine import PackedModel, compile, compile_modes, export_onnx
from foveate.engine.file import Mode, ModelFile
from foveate.engine.graph import Graph
from foveate.engine.packed_model import Executor
from foveate.errors import FoveateError
from foveate.quantization.layers import QuantConv2d, QuantLinear
from foveate.quantization.quantizers import (
    SignSTE,
    SignWeight,
    TwosWeight,
    UniformBipolar,
    UniformBipolarWeight,
    UniformUnipolar,
)

HAS_NATIVE = hasattr(importlib.import_module("foveate._native"), "Model")
EXECUTORS: list[Executor] = ["reference", "native"] if HAS_NATIVE else ["reference"]


class Net(nn.Module):
    """Float stem, quantised middle, float head; shared float weights for every seed of bits."""

    def __init__(self, bits: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.middle = QuantConv2d(
            16, 64, 3, 1, 1, bias=False, act=UniformBipolar(bits),
            weight_quantizer=UniformBipolarWeight(bits),
        )  # fmt: skip
        self.head = nn.Linear(64, 5)
        with torch.no_grad():
            self.norm.weight.normal_()
            self.norm.bias.normal_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.norm(self.stem(x)))
        return self.head(y.mean((2, 3)))


X = torch.randn(4, 3, 10, 8, generator=torch.Generator().manual_seed(5))


def close(a: Tensor | np.ndarray, b: Tensor) -> bool:
    return bool(np.allclose(np.asarray(a), b.detach().numpy(), atol=1e-5, rtol=1e-5))


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    return compile_modes({f"w{bits}a{bits}": Net(bits) for bits in (1, 2, 4)}, X[:1])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_modes_are_switched(packed, executor):
    assert packed.modes == ["w1a1", "w2a2", "w4a4"]
    for bits in (4, 1, 2):
        packed.set_bits(f"w{bits}a{bits}")
        assert packed.mode == f"w{bits}a{bits}"
        assert close(packed.run(X, executor=executor), Net(bits)(X))
    packed.set_bits([4])
    assert packed.mode == "w4a4"
    packed.set_bits([1])
    assert packed.mode == "w1a1"
    with pytest.raises(FoveateError, match=r"'w8a8'; the modes are w1a1, w2a2, w4a4"):
        packed.set_bits("w8a8")
    with pytest.raises(FoveateError, match=r"weight bits \[3\]; w1a1 has \[1\]"):
        packed.set_bits([3])
    assert packed.mode == "w1a1"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_file_there_and_back(packed, executor, tmp_path: Path):
    path = tmp_path / "net.fvt"
    packed.save(path)
    assert path.stat().st_size == packed.size_bytes
    back = PackedModel.load(str(path))
    assert back.modes == packed.modes
    for mode in packed.modes:
        packed.set_bits(mode)
        back.set_bits(mode)
        assert torch.equal(back.run(X, executor=executor), packed.run(X, executor=executor))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FoveateError, match=r"net\.fvt is no model file"):
        PackedModel.load(path)


def test_what_modes_share_is_stored_once(packed):
    alone = [compile(Net(bits), X[:1]).size_bytes for bits in (1, 2, 4)]
    floats = 4 * (16 * 27 + 64 * 5)
    assert packed.size_bytes < sum(alone) - 2 * floats


def test_nested_weights_share_their_planes():
    """The 2-bit codes are the top planes of the 4-bit ones: the second mode costs tables only."""

    class Nested(UniformBipolarWeight):
        def integers(self, w: Tensor) -> Tensor:
            codes = ((w.float().clamp(-1, 1) + 1) * 7.5 + 0.5).floor().clamp(0, 15)
            return self.format.integers(torch.div(codes, 2 ** (4 - self.bits)).floor())

    def net(bits: int) -> nn.Module:
        torch.manual_seed(0)
        act, weight = UniformUnipolar(2), Nested(bits, "clip")
        return nn.Sequential(
            QuantConv2d(256, 32, 3, bias=False, act=act, weight_quantizer=weight)
        ).eval()

    x = torch.randn(1, 256, 4, 4)
    models = {"low": net(2), "high": net(4)}
    both = compile_modes(models, x)
    assert both.size_bytes < compile(models["high"], x).size_bytes + 6000
    for name, model in models.items():
        both.set_bits(name)
        for executor in EXECUTORS:
            assert close(both.run(x, executor=executor), model(x))
    assert [row.bytes for row in both.bits_report()] == [256 * 32 * 9 * 4 // 8]
    both.set_bits("low")
    assert [row.bytes for row in both.bits_report()] == [256 * 32 * 9 * 2 // 8]


def test_weights_take_up_their_bits():
    """Size of the file against the count of weights: K bits each, and little besides."""
    for bits in (1, 2, 4):
        torch.manual_seed(0)
        net = nn.Sequential(QuantConv2d(
            256, 256, 3, bias=False, act=SignSTE(), weight_quantizer=UniformBipolarWeight(bits)
        ))  # fmt: skip
        count = 256 * 256 * 9
        size = compile(net, torch.zeros(1, 256, 5, 5)).size_bytes
        assert count * bits / 8 < size < count * bits / 8 + 8192


def test_report_by_hand(packed):
    packed.set_bits("w2a2")
    stem, middle, head = packed.bits_report()
    assert (stem.name, stem.weight_bits, stem.act_bits) == ("stem", 32, 32)
    assert (stem.weights, stem.bytes, stem.macs) == (432, 4 * 432, 432 * 5 * 4)
    assert (middle.name, middle.weight_bits, middle.act_bits) == ("middle", 2, 2)
    # 16 channels fill a quarter of a word: what a narrow layer stores is whole words.
    assert (middle.weights, middle.bytes) == (64 * 16 * 9, 64 * 9 * 2 * 8)
    assert middle.macs == 64 * 16 * 9 * 20
    assert (head.weights, head.macs) == (320, 320)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_profile_names_every_node(packed, executor):
    packed.set_bits("w1a1")
    rows = packed.profile(X, repeats=2, executor=executor)
    assert [row.name for row in rows] == [node.name for node in packed.graph.nodes]
    assert [row.op for row in rows] == [node.op for node in packed.graph.nodes]
    macs = {row.name: row.macs for row in packed.bits_report()}
    for row in rows:
        assert row.macs == (macs[row.name] if row.op == "conv" else 0)
        assert 0 <= row.seconds < 60
        assert row.bytes > 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_sorts_of_input_and_output(packed, executor):
    packed.set_bits("w1a1")
    expected = Net(1)(X)
    got = packed.run(X, executor=executor)
    assert isinstance(got, Tensor)
    assert got.dtype == torch.float32
    assert close(got, expected)
    array = packed.run(X.numpy(), executor=executor)
    assert isinstance(array, np.ndarray)
    assert array.shape == (4, 5)
    assert np.array_equal(array, got.numpy())
    strided = X.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for other in (X.double(), strided, X.clone().requires_grad_()):
        assert torch.equal(packed.run(other, executor=executor), got)
    one = packed.run(X[2:3], executor=executor)
    assert torch.equal(one, got[2:3])
    assert packed.run(X[:0], executor=executor).shape == (0, 5)
    assert packed.input_shape == (3, 10, 8)


def test_several_outputs_and_vectors():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)
            self.b = QuantLinear(4, 3, act=UniformUnipolar(2), weight_quantizer=TwosWeight(3, 3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return y, self.b(y)

    torch.manual_seed(1)
    net, x = Two().eval(), torch.randn(5, 6)
    packed = compile(net, x)
    for executor in EXECUTORS:
        got = packed.run(x, executor=executor)
        assert isinstance(got, list)
        assert [tuple(one.shape) for one in got] == [(5, 4), (5, 3)]
        assert all(close(a, b) for a, b in zip(got, net(x), strict=True))


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not built")
def test_native_and_reference_agree_on_every_tensor(packed):
    for mode in packed.modes:
        packed.set_bits(mode)
        ours, theirs = (packed.dump(X[:1], executor=executor) for executor in EXECUTORS)
        assert ours.keys() == theirs.keys()
        for number, value in ours.items():
            assert value.dtype == theirs[number].dtype
            assert np.array_equal(value, theirs[number])


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not built")
def test_threads_do_not_change_the_result(packed):
    packed.set_bits("w2a2")
    expected = packed.run(X, executor="native")
    for threads in (2, 3):
        assert torch.equal(packed.run(X, threads=threads, executor="native"), expected)


def test_one_model_in_several_threads(packed):
    packed.set_bits("w1a1")
    expected = packed.run(X)
    results: list[Tensor] = []
    workers = [threading.Thread(target=lambda: results.append(packed.run(X))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(one, expected) for one in results)


def test_wrong_inputs_are_named(packed):
    cases = [
        (X[0], r"\(N, 3, 10, 8\), got \(3, 10, 8\)"),
        (X.permute(0, 2, 3, 1), r"got \(4, 10, 8, 3\)"),
        (X.to(torch.uint8), "uint8; scale images first"),
        ([1, 2], "list"),
    ]
    for executor in EXECUTORS:
        for x, words in cases:
            with pytest.raises(FoveateError, match=words):
                packed.run(x, executor=executor)
    with pytest.raises(FoveateError, match="threads"):
        packed.run(X, threads=0)
    with pytest.raises(FoveateError, match="auto, native or reference"):
        packed.run(X, executor="gpu")
    with pytest.raises(FoveateError, match="one image"):
        packed.dump(X)
    with pytest.raises(FoveateError, match="repeats"):
        packed.profile(X, repeats=0)


def test_sorts_of_numbers(packed):
    half = X.to(torch.bfloat16)  # numpy has no such type
    assert torch.equal(packed.run(half), packed.run(half.float()))
    assert torch.equal(packed.run(X, threads=np.int64(2)), packed.run(X))
    for executor in EXECUTORS:
        assert packed.run(X[:0], executor=executor).shape == (0, 5)
        turned = X.flip(2).numpy()[:, :, ::-1]
        assert np.array_equal(packed.run(turned, executor=executor), packed.run(X, 1, executor))


@pytest.mark.parametrize("choice", [3, None, [2.5], ["2"], [None], [2, 2], b"2", "2"])
def test_bits_that_no_mode_has(packed, choice):
    before = packed.mode
    with pytest.raises(FoveateError, match="no mode"):
        packed.set_bits(choice)
    assert packed.mode == before


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", None])
def test_counts_that_are_none(packed, count):
    with pytest.raises(FoveateError, match="threads is a whole number"):
        packed.run(X, threads=count)
    with pytest.raises(FoveateError, match="threads is a whole number"):
        packed.profile(X, threads=count)
    with pytest.raises(FoveateError, match="repeats is a whole number"):
        packed.profile(X, repeats=count)


def test_without_the_native_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("foveate._native.Model", raising=False)
    packed = compile(Net(1), X[:1])
    assert close(packed.run(X), Net(1)(X))
    monkeypatch.setitem(sys.modules, "foveate._native", None)  # not built at all
    assert close(packed.run(X), Net(1)(X))
    with pytest.raises(FoveateError, match="executor='reference'"):
        packed.run(X, executor="native")


def test_a_graph_that_lies_about_its_shapes_is_refused(packed):
    graph = packed.graph
    for meta in (
        {},
        {**graph.meta, "output_ranks": [3, 3]},
        {**graph.meta, "output_ranks": [1]},
        {**graph.meta, "input_rank": 2},
        {**graph.meta, "single": 1},
    ):
        other = Graph(graph.inputs, graph.outputs, graph.tensors, graph.nodes, meta)
        with pytest.raises(FoveateError, match="which shapes"):
            PackedModel(ModelFile([Mode("m", other)], packed.blobs))


# --- ONNX ----------------------------------------------------------------------------------


class Everything(nn.Module):
    """One of every node and step that has an ONNX form of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)

        def conv(act: nn.Module, weight: nn.Module, pad_value: int = 0) -> QuantConv2d:
            return QuantConv2d(
                6, 6, 3, 1, 1, groups=2, act=act, weight_quantizer=weight, pad_value=pad_value
            )

        self.shuffle = nn.ChannelShuffle(3)
        self.norm, self.prelu = nn.BatchNorm2d(6), nn.PReLU(6)
        self.first = conv(SignSTE(), SignWeight(), 1)
        self.second = conv(UniformUnipolar(2), TwosWeight(3, 6))
        self.third = conv(UniformBipolar(5), UniformBipolarWeight(2))
        self.fourth = conv(UniformUnipolar(4), SignWeight())
        with torch.no_grad():
            self.norm.weight.normal_()
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.prelu(self.first(self.norm(x))) + x
        y = nn.functional.avg_pool2d(y, 3, 2, 1, ceil_mode=True)
        y = nn.functional.max_pool2d(self.second(y), 2, 2, ceil_mode=True)
        y = self.fourth(nn.functional.interpolate(self.third(y), scale_factor=2))
        y = nn.functional.hardswish(y) + nn.functional.silu(y).clamp(-1, 1)
        y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        y = nn.functional.interpolate(y, scale_factor=2, mode="bilinear")
        y = nn.functional.avg_pool2d(y, 2, 2, ceil_mode=True, count_include_pad=False)
        y = torch.cat([self.shuffle(y), y[:, 1:3]], 1)
        return y.flatten(1), y.relu().softmax(1)


def test_onnx_gives_the_same(tmp_path: Path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    nets: list[tuple[nn.Module, Tensor]] = [
        (Net(1), X),
        (Net(4), X),
        (Everything(), torch.randn(3, 6, 9, 7)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU6()), torch.randn(2, 3, 2, 2)),
    ]
    for place, (net, x) in enumerate(nets):
        path = tmp_path / f"{place}.onnx"
        export_onnx(net, x[:1], path)
        onnx.checker.check_model(str(path), full_check=True)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = net.eval()(x)
        got = session.run(None, {"input": x.numpy()})
        for a, b in zip(got, [expected] if isinstance(expected, Tensor) else expected, strict=True):
            assert close(a, b)


def test_onnx_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("foveate.engine.to_onnx.importlib.import_module", missing)
    with pytest.raises(FoveateError, match=r"foveate\[onnx\]"):
        export_onnx(Net(1), X[:1], tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [3, 32, 70])
def test_eight_bit_codes_are_pooled_as_torch_pools_their_values(channels):
    """On every instruction set, with fewer, as many and more channels than a register holds."""
    native = pytest.importorskip("foveate._native")
    net = nn.Sequential(nn.MaxPool2d(3, 2, 1), UniformBipolar(8)).eval()
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(1, channels, 9, 11, generator=generator)
    packed = compile(net, x)
    pool = next(node for node in packed.graph.nodes if node.op == "pool")
    assert packed.graph.tensor(pool.inputs[0]).format is not None  # codes are what is pooled
    for isa in native.available_isas():
        native.force_isa(isa)
        try:
            assert torch.allclose(packed.run(x), net(x), rtol=1e-6, atol=0)
        finally:
            native.force_isa("")


@pytest.mark.parametrize("step", [0.25, 1.0, 0.3, 3.0])
def test_steps_that_are_powers_of_two_divide_as_others_do(step):
    """The engine multiplies by their reciprocals; the codes are those of the division."""
    native = pytest.importorskip("foveate._native")
    act = UniformUnipolar(8)
    with torch.no_grad():
        act.step_size.fill_(step)
    net = nn.Sequential(act, nn.Identity()).eval()
    edges = step * (torch.arange(-4, 2048) / 8)  # all ties among them
    x = torch.cat([edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges - 1)])
    x = x.reshape(1, 1, -1, 36)
    packed = compile(net, x)
    for isa in native.available_isas():
        native.force_isa(isa)
        try:
            assert torch.equal(packed.run(x), net(x))
        finally:
            native.force_isa("")
