"""Compiled networks against PyTorch eval mode: identical codes, equal floats, named refusals.

Every test runs on the numpy reference and, where it is built, on the native engine. The codes that
a quantised layer's quantiser gives in PyTorch are recorded and compared with what the packed
layer of the same path reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foveate.engine import PackedModel, compile, compile_modes
from foveate.engine.packed_model import Executor
from foveate.errors import FoveateError
from foveate.nn.binary_resnet import BinResNetS
from foveate.nn.small_cnn import MBNMini
from foveate.quantization.codes import CodeFormat
from foveate.quantization.layers import (
    ChannelGate,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    set_stage,
)
from foveate.quantization.multi_branch import MBNConv2d
from foveate.quantization.quantizers import (
    QuantAct,
    SignSTE,
    SignWeight,
    TwosWeight,
    UniformBipolar,
    UniformBipolarWeight,
    UniformUnipolar,
    WeightQuantizer,
)
from foveate.quantization.real_to_binary import RealToBinaryConv2d

HAS_NATIVE = hasattr(importlib.import_module("foveate._native"), "Model")
EXECUTORS: list[Executor] = ["reference", "native"] if HAS_NATIVE else ["reference"]


def settle(net: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, slopes and scales as after training, batch norms of both signs; eval mode.

    Float convolutions get multiples of 1/16, so that their sums are exact in any order and what
    torch quantises behind them is what we quantise.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, scale: float = 1.0) -> Tensor:
        return torch.randn(like.shape, generator=generator) * scale

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(draw(module.running_mean))
                module.running_var.copy_(draw(module.running_var).abs() + 0.3)
                if module.affine:
                    module.weight.copy_(draw(module.weight))
                    module.bias.copy_(draw(module.bias, 0.3))
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(draw(module.weight, 0.3).abs())
            elif isinstance(module, QuantLayer):
                if module.channel_scale is not None:
                    module.channel_scale.copy_(draw(module.channel_scale, 0.2))
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_((draw(module.weight) * 8).round() / 16)
    return net.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    """Multiples of 1/8."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 8).round() / 8


def recorded_codes(net: nn.Module, x: Tensor) -> tuple[Tensor | tuple[Tensor, ...], dict]:
    """Output of a network, and the codes that every quantiser made on the way, by layer path."""
    seen: dict[str, np.ndarray] = {}
    undo = []
    for name, layer in net.named_modules():
        if isinstance(layer, QuantLayer) and layer.coded_act is not None:
            act, plain = layer.coded_act, layer.coded_act.integers

            def keep(v: Tensor, name=name, act=act, plain=plain) -> Tensor:
                s = plain(v)
                seen[name] = act.format.codes(s.detach()).numpy().astype(int)
                return s

            act.integers = keep
            undo.append(act)
    try:
        with torch.no_grad():
            y = net(x)
    finally:
        for act in undo:
            del act.integers
    return y, seen


def agree(
    net: nn.Module, x: Tensor, codes: bool = True, packed: PackedModel | None = None
) -> PackedModel:
    """Compile, run on every executor, compare codes and outputs with PyTorch."""
    packed = compile(net, x[:1]) if packed is None else packed
    expected, seen = recorded_codes(net, x)
    for executor in EXECUTORS:
        got = packed.run(x, executor=executor)
        for a, b in zip(
            [expected] if isinstance(expected, Tensor) else expected,
            [got] if isinstance(got, Tensor) else got,
            strict=True,
        ):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max())), executor
        if not codes:
            continue
        compared = set()
        for place in range(len(x)):
            dump = packed.dump(x[place : place + 1], executor=executor)
            for node in packed.graph.nodes:
                if node.op == "conv" and node.name in seen and "path" in node.attrs:
                    theirs = seen[node.name][place]
                    ours = dump[node.inputs[0]].reshape(theirs.shape)
                    assert np.array_equal(ours, theirs), (executor, node.name)
                    compared.add(node.name)
        assert compared == set(seen)
    return packed


def steps_of(packed: PackedModel, name: str) -> list[str]:
    (node,) = [one for one in packed.graph.nodes if one.name == name and one.op == "conv"]
    return [step.op for step in node.steps]


def binary(c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> QuantConv2d:
    return QuantConv2d(
        c_in, c_out, 3, stride, 1, groups=groups, bias=False, act=SignSTE(),
        weight_quantizer=SignWeight(), channel_scale=True,
    )  # fmt: skip


# --- one operation at a time ---------------------------------------------------------------


class Calls(nn.Module):
    """A network that is one function."""

    def __init__(self, function: Callable[..., Tensor], *tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for place, tensor in enumerate(tensors):
            self.register_buffer(f"t{place}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.buffers())


ROW = torch.tensor([0.5, -1.0, 2.0, 0.25, 0.0, 1.5])
LAYERS = {
    "conv": nn.Conv2d(6, 5, 3, 2, 1),
    "conv without bias": nn.Conv2d(6, 4, (1, 3), padding=(0, 1), bias=False),
    "conv same": nn.Conv2d(6, 4, 3, padding="same", dilation=2),
    "conv valid": nn.Conv2d(6, 4, 3, padding="valid"),
    "grouped": nn.Conv2d(6, 9, 3, groups=3, padding=1),
    "depthwise": nn.Conv2d(6, 6, 3, groups=6, padding=1),
    "batch norm": nn.BatchNorm2d(6),
    "plain batch norm": nn.BatchNorm2d(6, affine=False),
    "relu": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 2),
    "prelu": nn.PReLU(),
    "prelu per channel": nn.PReLU(6),
    "leaky relu": nn.LeakyReLU(0.2),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "max pool ceil": nn.MaxPool2d(2, ceil_mode=True),
    "avg pool": nn.AvgPool2d(3, 2, 1),
    "avg pool ceil": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "global avg": nn.AdaptiveAvgPool2d(1),
    "global avg by axis": nn.AdaptiveAvgPool2d((1, None)),
    "adaptive avg": nn.AdaptiveAvgPool2d((7, 3)),
    "global max": nn.AdaptiveMaxPool2d(1),
    "flatten": nn.Flatten(),
    "softmax": nn.Softmax(dim=1),
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=3, mode="bilinear"),
    "nearest 2d": nn.UpsamplingNearest2d(scale_factor=2),
    "shuffle": nn.ChannelShuffle(3),
    "identity": nn.Identity(),
    "dropout": nn.Sequential(nn.Dropout(), nn.Dropout2d()),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "torch relu": torch.relu,
    "relu method": lambda x: x.relu(),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.25, 0.75),
    "clamp": lambda x: x.clamp(-1, 0.5),
    "clamp from below": lambda x: torch.clamp(x, min=0.25),
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "sigmoid": lambda x: x.sigmoid(),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "max pool": lambda x: F.max_pool2d(x, 2),
    "avg pool": lambda x: F.avg_pool2d(x, (2, 3), stride=1, padding=(1, 0)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean, axes kept": lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
    "mean of flat": lambda x: x.flatten(2).mean(-1),
    "flatten": lambda x: torch.flatten(x, 1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], 6 * 7 * 9),
    "squeezed": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "unsqueezed": lambda x: x.mean((2, 3))[:, :, None, None],
    "softmax": lambda x: F.softmax(x, 1),
    "vector softmax": lambda x: x.mean((2, 3)).softmax(-1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "interpolate to a size": lambda x: F.interpolate(x, size=(14, 18), mode="bilinear"),
    "dropout": lambda x: F.dropout(x, training=False),
    "cat": lambda x: torch.cat([x, F.relu(x), x], dim=1),
    "chunk": lambda x: torch.cat(x.chunk(3, dim=1)[::-1], 1),
    "split": lambda x: torch.split(x, [1, 5], 1)[1],
    "slice": lambda x: x[:, 2:5],
    "every second pixel": lambda x: x[:, :, ::2, ::3],
    "every second row": lambda x: x[:, :, ::2],
    "pad": lambda x: F.pad(x, (1, 1, 2, 2)),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "slice of everything": lambda x: x[:, :],
    "add": lambda x: x + F.relu(x),
    "add itself": lambda x: x + x,
    "in place add": lambda x: torch.add(F.relu(x), x),
    "constant": lambda x: 1 - (x + 2) * 3,
    "division": lambda x: (x - 1) / 4,
    "negation": lambda x: -x,
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "gate first": lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x,
    "product of vectors": lambda x: x.mean((2, 3)) * x.mean((2, 3)).relu(),
    "input": lambda x: x,
    "twice": lambda x: (x.relu(), x.relu() + 1),  # type: ignore[dict-item,return-value]
}
ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add a row": lambda x, t: x + t[:, None, None],
    "subtract a row": lambda x, t: t.view(1, -1, 1, 1) - x,
    "multiply by a row": lambda x, t: x * t.reshape(1, 6, 1, 1),
    "prelu": F.prelu,
    "conv2d": lambda x, t: F.conv2d(x, t.view(1, 6, 1, 1) * t.view(6, 1, 1, 1), t, 1, 0),
    "linear": lambda x, t: F.linear(x.mean((2, 3)), t[None] * t[:, None], t),
    "two rows": lambda x, t: F.prelu(x + t[:, None, None], t) - t[:, None, None],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    agree(settle(nn.Sequential(LAYERS[name])), images(2, 6, 7, 9))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    agree(Calls(FUNCTIONS[name]).eval(), images(2, 6, 7, 9))


@pytest.mark.parametrize("name", ROWS)
def test_function_of_a_constant(name):
    agree(Calls(ROWS[name], ROW).eval(), images(2, 6, 7, 9))


def test_vectors():
    net = nn.Sequential(
        nn.Linear(7, 12), nn.BatchNorm1d(12), nn.ReLU(), QuantLinear(12, 4, act=UniformBipolar(2)),
        nn.PReLU(4), nn.Softmax(dim=1),
    )  # fmt: skip
    agree(settle(net), images(3, 7), codes=False)


class Shuffle(nn.Module):
    def __init__(self, groups: int, ordinary: bool) -> None:
        super().__init__()
        self.groups, self.ordinary = groups, ordinary

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w)
        if self.ordinary:
            return x.transpose(1, 2).contiguous().view(n, c, h, w)
        return x.permute(0, 2, 1, 3, 4).flatten(1, 2)


@pytest.mark.parametrize("ordinary", [True, False])
def test_channel_shuffle_by_hand(ordinary):
    packed = agree(Shuffle(2, ordinary).eval(), images(2, 6, 3, 4))
    assert [node.op for node in packed.graph.nodes] == ["shuffle"]


class InPlace(nn.Module):
    """Torch changes x in place; later readers must see that."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = self.relu(y) - 1
        w = z + y
        w += y
        return w.clamp_(max=2) + w


def test_operations_in_place():
    agree(InPlace().eval(), images(2, 3, 4, 4))


class Written(nn.Module):
    """Calls `work` on a tensor that no one else has, and the input."""

    def __init__(self, work: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> object:
        return self.work(x * 2, x)


def first_half(y: Tensor, x: Tensor) -> list[Tensor]:
    first, second = y.chunk(2, 1)
    changed = F.relu(first, True)
    return [first + second, changed + x[:, 2:]]


@pytest.mark.parametrize(
    "work",
    [
        lambda y, x: y.relu_().add_(1) + y,  # three names of one memory
        lambda y, x: F.relu(F.dropout(y, training=False).contiguous(), True) + y,
        lambda y, x: F.relu(x, True) + x,  # the input itself
        first_half,
        lambda y, x: [y, y.mean((2, 3)).relu_()],  # a copy
    ],
)
def test_every_name_of_a_changed_tensor_sees_the_change(work):
    x = images(2, 4, 3, 3)
    before = x.clone()
    packed = compile(Written(work).eval(), x)
    assert torch.equal(x, before)  # the example is the caller's
    wanted = work(x * 2, x.clone())
    found = packed.run(x)
    for a, b in zip(
        found if isinstance(found, list) else [found],
        wanted if isinstance(wanted, list) else [wanted],
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def iadd(y: Tensor, x: Tensor) -> Tensor:
    z = y
    z += 1  # torch.fx writes down a sum, which leaves y as it was
    return y + z


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda y, x: [y.flatten(1).relu_(), y][1] + 1, "changed in place"),
        (lambda y, x: [y[:, :2].relu_(), y][1] + 1, "changed in place"),
        (iadd, r"y = y \+ x"),
        (lambda y, x: F.dropout(y), "training=self.training"),
    ],
)
def test_changes_that_cannot_be_followed_are_refused(work, words):
    with pytest.raises(FoveateError, match=words):
        compile(Written(work).eval(), images(2, 4, 3, 3))


# --- quantised layers ----------------------------------------------------------------------


def act_of(kind: str, bits: int) -> QuantAct:
    if kind == "sign":
        return SignSTE()
    if kind == "unipolar":
        act = UniformUnipolar(bits)
        with torch.no_grad():
            act.step_size.fill_(0.375)
        return act
    return UniformBipolar(bits, kind)


def weight_of(kind: str, bits: int, channels: int) -> WeightQuantizer:
    if kind == "sign":
        return SignWeight(xnor="stopped")
    if kind == "twos":
        return TwosWeight(max(bits, 2), channels)
    return UniformBipolarWeight(bits, kind, channels)


@settings(deadline=None, max_examples=40)
@given(
    act=st.sampled_from(["sign", "unipolar", "htanh", "hrelu", "relu_rescaled", "learned"]),
    weight=st.sampled_from(["sign", "twos", "tanh_max", "lsq"]),
    bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    groups=st.sampled_from([1, 2, 6]),
    stride=st.integers(1, 2),
    pad_value=st.sampled_from([0, -1, 1]),
    channel_scale=st.booleans(),
    bias=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_two_quantised_convolutions(
    act, weight, bits, groups, stride, pad_value, channel_scale, bias, norm, seed
):
    """Any quantiser and format; the second layer's codes come from the first one's sums."""
    torch.manual_seed(seed)

    def conv(c_in: int, c_out: int) -> QuantConv2d:
        return QuantConv2d(
            c_in, c_out, 3, stride, 1, groups=groups, bias=bias, act=act_of(act, bits[0]),
            weight_quantizer=weight_of(weight, bits[1], c_out), channel_scale=channel_scale,
            pad_value=pad_value,
        )  # fmt: skip

    inner = nn.BatchNorm2d(12) if norm else nn.Hardtanh()
    net = settle(nn.Sequential(conv(6, 12), inner, conv(12, 6)), seed)
    # Above 3 bits the codes behind a batch norm are computed: its multiply-add may be fused in
    # torch, so a value on the very border of two codes may fall to the other side.
    few = net[2].coded_act.format.bits <= 3
    packed = agree(net, images(2, 6, 7, 5, seed=seed), codes=few or not norm)
    assert ("thresholds" in steps_of(packed, "0")) == few


def test_epilogue_of_a_plain_binary_network_is_thresholds_alone():
    net = nn.Sequential(
        binary(5, 70), nn.BatchNorm2d(70), nn.Hardtanh(), binary(70, 6, 2), nn.BatchNorm2d(6)
    )
    packed = agree(settle(net), images(2, 5, 6, 6))
    assert steps_of(packed, "0") == ["thresholds"]
    assert steps_of(packed, "3") == ["affine", "affine", "store"]
    (sign,) = [node for node in packed.graph.nodes if node.op == "pointwise"]
    assert [step.op for step in sign.steps] == ["quantize"]


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_codes_are_pooled_and_flattened_instead_of_floats(bits):
    """Conv, norm, range, pool, quantiser: as in MBN; the pool moves behind the quantiser."""
    torch.manual_seed(bits)

    def conv(c_in: int, c_out: int) -> QuantConv2d:
        weights = UniformBipolarWeight(2)
        return QuantConv2d(c_in, c_out, 3, 1, 1, act=UniformBipolar(bits), weight_quantizer=weights)

    net = nn.Sequential(
        conv(4, 8), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Hardtanh(),
        conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
        QuantLinear(6 * 4, 5, act=UniformUnipolar(bits), weight_quantizer=SignWeight()),
    )  # fmt: skip
    packed = agree(settle(net), images(3, 4, 8, 8), codes=bits <= 3)
    formats = {tensor.id: tensor.format for tensor in packed.graph.tensors}
    moved = [node for node in packed.graph.nodes if node.op in ("pool", "flatten")]
    assert len(moved) == 3
    assert all(formats[node.outputs[0]] is not None for node in moved)
    if bits <= 3:
        assert [steps_of(packed, name) for name in ("0", "4")] == [["thresholds"]] * 2


def test_pool_stays_where_a_falling_norm_follows_it():
    net = nn.Sequential(binary(4, 8), nn.MaxPool2d(2), nn.BatchNorm2d(8), binary(8, 3))
    packed = agree(settle(net), images(2, 4, 8, 8))
    pool = next(node for node in packed.graph.nodes if node.op == "pool")
    assert packed.graph.tensor(pool.inputs[0]).format is None


class Block(nn.Module):
    """Half-block of real-to-binary networks: BN, sign, conv, gate, PReLU, shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, gated: bool = False) -> None:
        super().__init__()
        gate = ChannelGate(c_in, c_out) if gated else None
        self.norm = nn.BatchNorm2d(c_in)
        self.conv = QuantConv2d(
            c_in, c_out, 3, stride, 1, bias=gated, act=SignSTE(), weight_quantizer=SignWeight(),
            channel_scale=True, gate=gate,
        )  # fmt: skip
        self.act = nn.PReLU(c_out)
        self.skip = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.skip = nn.Sequential(
                nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(c_in, c_out, 1, bias=False),
                nn.BatchNorm2d(c_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.norm(x))) + self.skip(x)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_residual_binary_network(gated, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        Block(8, 8, 1, gated), Block(8, 16, 2, gated), Block(16, 16, 1, gated),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    packed = agree(settle(net, seed), images(2, 3, 9, 9, seed=seed))
    tail = ["affine", "prelu", "add", "thresholds", "store"]
    if gated:
        tail = ["affine", "gate", "affine", *tail[1:]]
    assert steps_of(packed, "3.conv") == tail


@pytest.mark.parametrize("falling", [False, True])
def test_average_moves_in_front_of_the_norm_that_only_it_reads(falling):
    """mean(a x + b) = a mean(x) + b: the norm of the whole picture is never written."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    if not falling:
        net[1].weight.data.abs_()
    packed = agree(settle(net), images(2, 3, 7, 7))
    average = next(node for node in packed.graph.nodes if node.op == "global_avg")
    maker = next(node for node in packed.graph.nodes if node.outputs == average.inputs)
    assert [step.op for step in maker.steps] == ["store"]  # bias and norm come behind the mean
    assert packed.graph.tensor(average.inputs[0]).shape == (6, 5, 5)


def test_gate_reads_the_real_input_before_the_sign():
    """A gate that saw +-1 would be another number: scaling x must change it, not the codes."""
    torch.manual_seed(0)
    net = settle(nn.Sequential(QuantConv2d(
        4, 6, 3, bias=False, act=SignSTE(), weight_quantizer=SignWeight(), gate=ChannelGate(4, 6)
    )))  # fmt: skip
    packed = compile(net, torch.zeros(1, 4, 5, 5))
    x = images(1, 4, 5, 5)
    small, large = (packed.run(k * x, executor="reference") for k in (1, 3))
    assert not torch.allclose(small, large)
    agree(net, 3 * x, packed=packed)


def test_one_input_of_several_quantised_layers_is_stored_once_per_code():
    class Siblings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = binary(4, 6), binary(4, 6)
            self.third = QuantConv2d(
                4, 6, 3, 1, 1, act=UniformUnipolar(2), weight_quantizer=TwosWeight(3, 6)
            )
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.first(y) + self.second(y) + self.third(y) * 0.5

    torch.manual_seed(0)
    packed = agree(settle(Siblings()), images(2, 4, 5, 5))
    codes = [tensor.format for tensor in packed.graph.tensors if tensor.format is not None]
    assert codes == [CodeFormat("bipolar", 1), CodeFormat("unipolar", 2)]


def test_quantiser_by_itself_is_real():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.BatchNorm2d(4), UniformUnipolar(3), nn.Conv2d(4, 5, 3), UniformBipolar(2),
        nn.MaxPool2d(2), binary(5, 3),
    )  # fmt: skip
    agree(settle(net), images(2, 4, 8, 8), codes=False)


@pytest.mark.parametrize(("weights", "activations"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", ["sign", "unipolar", "htanh"])
def test_half_quantised_layers_are_float_convolutions(weights, activations, kind):
    torch.manual_seed(0)
    net = nn.Sequential(*[
        QuantConv2d(
            6, 6, 3, 1, 1, act=act_of(kind, 4), weight_quantizer=SignWeight(), channel_scale=True
        )
        for _ in range(2)
    ])  # fmt: skip
    settle(net)
    set_stage(net, weights=weights, activations=activations)
    packed = agree(net, images(2, 6, 5, 5), codes=False)
    assert all("path" not in node.attrs for node in packed.graph.nodes)


def desk_net(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network of the desk at full size with the statistics of real data flow."""
    torch.manual_seed(4)
    if name == "real-to-binary":
        return BinResNetS(RealToBinaryConv2d), (3, 16, 16)
    bits = int(name[-1])

    def conv(*sizes: int) -> nn.Module:
        return MBNConv2d(*sizes, w_bits=bits, a_bits=bits, range="htanh" if bits == 1 else "hrelu")

    return MBNMini(conv, nn.Hardtanh if bits == 1 else lambda: nn.Hardtanh(0, 1)), (1, 28, 28)


@pytest.mark.skipif(not HAS_NATIVE, reason="the native engine is not built")
@pytest.mark.parametrize("name", ["real-to-binary", "mbn-1", "mbn-2", "mbn-4"])
def test_networks_of_the_desk_on_a_thousand_pictures(name):
    """The same class for each; codes by integer thresholds without any difference.

    Codes found from floats (a stem in another order of addition, a batch norm that torch fuses)
    may fall to the other side of a border: fewer than one of 10,000, and what follows from such a
    code is not compared.
    """
    net, shape = desk_net(name)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1, 0.5)
                module.bias.normal_(0, 0.3)
        for _ in range(30):
            net(torch.randn(32, *shape))  # running statistics
        net.eval()
        net.fc.bias -= net(torch.randn(100, *shape)).mean(0)  # so that every class is met
        x = torch.randn(1000, *shape)
        packed = compile(net, x[:1])
        wanted, found = net(x), packed.run(x, executor="native")
    assert torch.equal(wanted.argmax(1), found.argmax(1))
    assert len(wanted.argmax(1).unique()) == 10
    _, seen = recorded_codes(net, x[:40])
    by_integers = {
        step.output
        for node in packed.graph.nodes
        if node.op == "conv" and "path" in node.attrs
        for step in node.steps[:1]
        if step.op == "thresholds"
    }
    readers = [n for n in packed.graph.nodes if n.op == "conv" and "path" in n.attrs]
    assert {node.name for node in readers} == set(seen)
    wrong = total = compared = 0
    for place in range(40):
        dump, clean = packed.dump(x[place : place + 1], executor="native"), True
        for node in readers:
            theirs = seen[node.name][place]
            off = int((dump[node.inputs[0]].reshape(theirs.shape) != theirs).sum())
            wrong, total = wrong + off, total + theirs.size
            if clean and node.inputs[0] in by_integers:
                assert off == 0, node.name
                compared += 1
            clean = clean and not off
    assert wrong < 1e-4 * total
    if name in ("mbn-1", "mbn-2"):
        assert compared >= 40


@pytest.mark.parametrize("path", ["auto", "bits", "int8"])
def test_paths_give_the_same(path):
    torch.manual_seed(0)
    net = nn.Sequential(
        binary(6, 6, groups=6), nn.BatchNorm2d(6),
        QuantConv2d(6, 4, 3, act=UniformUnipolar(2), weight_quantizer=TwosWeight(4, 4)),
    )  # fmt: skip
    x = images(2, 6, 7, 7)
    agree(settle(net), x, packed=compile(net, x, path=path))
    with pytest.raises(FoveateError, match="auto, bits or int8"):
        compile(net, x, path="gpu")


def test_model_is_left_as_it_was():
    net = settle(nn.Sequential(binary(3, 4), nn.BatchNorm2d(4), nn.Dropout())).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compile(net, torch.zeros(2, 3, 4, 4))
    assert net.training
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 9999))
def test_random_networks(data, seed):
    """Chains of random layers with random shortcuts."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList()
            self.shortcuts: list[int | None] = []
            for place in range(data.draw(st.integers(2, 6))):
                kind = data.draw(st.integers(0, 7))
                layer: nn.Module = [
                    lambda: binary(6, 6),
                    lambda: nn.BatchNorm2d(6),
                    lambda: nn.PReLU(6),
                    lambda: QuantConv2d(
                        6, 6, 3, 1, 1, act=UniformUnipolar(2), weight_quantizer=TwosWeight(2, 6)
                    ),
                    lambda: nn.MaxPool2d(3, 1, 1),
                    nn.Hardtanh,
                    lambda: nn.Sequential(nn.BatchNorm2d(6), binary(6, 6)),
                    lambda: nn.ChannelShuffle(2),
                ][kind]()
                self.layers.append(layer)
                self.shortcuts.append(
                    data.draw(st.one_of(st.none(), st.integers(0, place))),
                )

        def forward(self, x: Tensor) -> Tensor:
            seen = [x]
            for layer, shortcut in zip(self.layers, self.shortcuts, strict=True):
                y = layer(seen[-1])
                seen.append(y if shortcut is None else y + seen[shortcut])
            return seen[-1]

    # Floats behind a batch norm may differ in the last bit (torch fuses its multiply-add), so a
    # value may rarely fall to the other side of a threshold; the seeds here are none of these.
    agree(settle(Net(), seed), images(2, 6, 5, 4, seed=seed))


# --- refusals ------------------------------------------------------------------------------


class Inner(nn.Module):
    """Puts something under the path ``deep.inner``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.deep = nn.ModuleDict({"inner": inner})

    def forward(self, x: Tensor) -> Tensor:
        return self.deep["inner"](x)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.GELU(), "GELU"),
        (nn.ConvTranspose2d(6, 6, 2), "ConvTranspose2d"),
        (nn.GroupNorm(2, 6), "GroupNorm"),
        (nn.BatchNorm2d(6, track_running_stats=False), "running statistics"),
        (nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        pytest.param(
            nn.Conv2d(6, 6, 2, padding="same"),
            "one side more",
            marks=pytest.mark.filterwarnings("ignore:Using padding='same'"),
        ),
        (nn.MaxPool2d(2, dilation=2), "dilation"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.AdaptiveAvgPool2d(4), "several sizes"),
        (nn.Upsample(size=(10, 10)), "whole factors"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "bicubic"),
        (nn.UpsamplingBilinear2d(scale_factor=2), "UpsamplingBilinear2d"),
        (nn.Softmax(dim=2), "over channels"),
        (nn.Tanh(), "tanh only in front of a quantiser"),
        (nn.Linear(9, 9), "flatten first"),
        (
            nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 7, 9))),
            "Unflatten",
        ),
        (Branches(), "must not branch"),
        (Calls(lambda x: x.permute(0, 2, 3, 1)), "channel shuffle"),
        (Calls(lambda x: x * x), "one factor per channel"),
        (Calls(lambda x: x + x.mean((2, 3), keepdim=True)), "shapes must agree"),
        (Calls(lambda x: x * torch.ones(7, 9)), "one number per channel"),
        (Calls(lambda x: x / x.abs()), "abs"),
        (Calls(lambda x: torch.cat([x, x], 2)), "over channels"),
        (Calls(lambda x: x[:, :, 1:]), "slices of channels"),
        (Calls(lambda x: x[:, ::2]), "slices of channels"),
        (Calls(lambda x: F.pad(x, (0, 1))), "both sides"),
        (Calls(lambda x: F.pad(x, (1, 1), value=2.0)), "anything but zeros"),
        (Calls(lambda x: x.mean(1)), "rows and columns"),
        (Calls(lambda x: {"y": x}), "tensor or a sequence"),  # type: ignore[arg-type,return-value]
        (Calls(lambda x: torch.ones(1)), "does not depend"),
    ],
)
def test_what_the_engine_lacks_is_named(module, words):
    net = Inner(module)
    net.deep["inner"].eval()
    with pytest.raises(FoveateError, match=words) as caught:
        compile(net, images(1, 6, 7, 9))
    if not isinstance(module, Calls):
        assert "deep.inner" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_that_cannot_be_packed_are_named():
    soft = nn.Sequential(binary(6, 6))
    set_stage(soft, weights=True, activations="soft")
    chw = nn.Sequential(
        QuantConv2d(6, 6, 3, act=SignSTE(), weight_quantizer=SignWeight(), spatial_size=(5, 7))
    )

    class Doubled(QuantConv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    doubled = nn.Sequential(Doubled(6, 6, 3, act=SignSTE(), weight_quantizer=SignWeight()))
    for net, words in ((soft, r"'0'.*soft"), (chw, r"'0'.*chw"), (doubled, "Doubled computes")):
        with pytest.raises(FoveateError, match=words):
            compile(net, images(1, 6, 7, 9))


def test_examples_that_do_not_fit():
    net = nn.Conv2d(3, 4, 3)
    with pytest.raises(FoveateError, match=r"\(N, C, H, W\)"):
        compile(net, torch.zeros(3, 8, 8))
    with pytest.raises(FoveateError, match=r"does not run.*\(1, 5, 8, 8\)"):
        compile(net, torch.zeros(1, 5, 8, 8))
    with pytest.raises(FoveateError, match="at least one"):
        compile_modes({}, torch.zeros(1, 3, 8, 8))
