"""Costs against hand counts and the totals computed from the published layer tables."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveate.errors import FoveateError
from foveate.quantization.layers import (
    BinarizeConfig,
    BinaryConv2d,
    BinaryLinear,
    ChannelGate,
    QuantConv2d,
    QuantLinear,
    pack_weights,
    set_stage,
)
from foveate.quantization.multi_branch import MBNConvTranspose2d
from foveate.quantization.op_count import count_ops
from foveate.quantization.quantizers import (
    SignSTE,
    SignWeight,
    TwosWeight,
    UniformBipolar,
    UniformUnipolar,
)
from foveate.quantization.real_to_binary import RealToBinaryConv2d


class ResNet18(nn.Module):
    """The published layer table: real stem, 16 binary 3x3, 3 real skips, real classifier."""

    class Half(nn.Module):
        def __init__(self, conv, c_in, c_out, stride):
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(c_in), conv(c_in, c_out, 3, stride, 1)
            self.act = nn.PReLU(c_out)
            self.skip = nn.Identity()
            if c_in != c_out:
                self.skip = nn.Sequential(
                    nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
                    nn.Conv2d(c_in, c_out, 1, bias=False),
                    nn.BatchNorm2d(c_out),
                )

        def forward(self, x):
            return self.act(self.conv(self.bn(x))) + self.skip(x)

    def __init__(self, conv) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.PReLU(64),
            nn.MaxPool2d(3, 2, 1),
        )
        halves = []
        widths = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
        for c_in, c_out in itertools.pairwise(widths):
            halves.append(self.Half(conv, c_in, c_out, 2 if c_in != c_out else 1))
        self.halves = nn.Sequential(*halves)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(self.halves(self.stem(x)).mean((2, 3)))


def test_resnet18_meets_the_published_totals():
    with torch.device("meta"):
        net = ResNet18(BinaryConv2d)
        cost = count_ops(net, torch.empty(1, 3, 224, 224))
    assert cost.bops == 1_676_279_808
    assert cost.conv_flops == 137_793_536
    assert cost.conv_only_ops == pytest.approx(1.640e8, rel=1e-4)
    assert sum(layer.binary for layer in cost.layers) == 16
    assert cost.gate_flops == 0
    # PReLU, scale and skip of 16 half blocks each, and the PReLU of the stem
    maps = 4 * (64 * 56**2 + 128 * 28**2 + 256 * 14**2 + 512 * 7**2)
    assert cost.elementwise_flops == 3 * maps + 64 * 112**2
    assert cost.flops == cost.conv_flops + cost.elementwise_flops


def test_gates_of_real_to_binary_add_the_published_294_400():
    with torch.device("meta"):
        cost = count_ops(ResNet18(RealToBinaryConv2d), torch.empty(1, 3, 224, 224))
    assert cost.gate_flops == 294_400
    assert cost.conv_flops == 137_793_536, "quoted without the gates"
    assert cost.bops == 1_676_279_808
    assert cost.flops == cost.conv_flops + cost.gate_flops + cost.elementwise_flops
    gates = [layer for layer in cost.layers if layer.kind == "ChannelGate"]
    assert len(gates) == 16
    assert "ChannelGate" in str(cost)


def test_two_layers_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        BinaryConv2d(8, 16, 3, stride=2, groups=2, config=BinarizeConfig(scale="none")),
        nn.PReLU(16),
        nn.Flatten(),
        BinaryLinear(16 * 16, 5, config=BinarizeConfig(scale="xnor")),
    ).train()
    cost = count_ops(net, (3, 10, 10))
    assert net.training
    assert [layer.macs for layer in cost.layers] == [100 * 27 * 8, 16 * 16 * 4 * 9, 256 * 5]
    assert [layer.binary for layer in cost.layers] == [False, True, True]
    assert [layer.output for layer in cost.layers] == [(8, 10, 10), (16, 4, 4), (5,)]
    assert cost.conv_flops == 21_600
    assert cost.bops == 9_216 + 1_280
    assert cost.elementwise_flops == 256 + 5, "PReLU; the scale of the last layer"
    assert cost.ops == 21_600 + 261 + 10_496 / 64
    assert cost.coded_params == cost.coded_bits == 16 * 4 * 9 + 256 * 5
    assert cost.real_params == 216 + 16 + 16 + 5, "conv, BN, PReLU, alphas"
    assert cost.size_bits == 32 * cost.real_params + cost.coded_bits
    for lines in (str(cost), cost.__str__()):
        assert "21,600" in lines
        assert "1/1" in lines


def test_a_batch_costs_what_one_costs():
    net = nn.Sequential(BinaryConv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    one, many = count_ops(net, (3, 5, 5)), count_ops(net, torch.randn(7, 3, 5, 5))
    assert one == many


def test_the_stage_decides_what_is_binary():
    net = nn.Sequential(BinaryConv2d(4, 4, 1))
    set_stage(net, weights=False, activations=True)
    cost = count_ops(net, (4, 3, 3))
    assert (cost.bops, cost.conv_flops) == (0, 16 * 9)
    assert cost.real_params == 16 + 4
    assert cost.layers[0].bits == (32, 1)


def test_more_bits_are_more_branches_and_more_storage():
    layer = QuantConv2d(4, 4, 3, act=UniformBipolar(3), weight_quantizer=TwosWeight(2, 4))
    cost = count_ops(nn.Sequential(layer), (4, 3, 3))
    assert cost.bops == 2 * 3 * 144
    assert cost.coded_bits == 2 * 144
    assert cost.coded_params == 144
    assert cost.real_params == 4 + 4, "bias and steps"
    packed = count_ops(pack_weights(nn.Sequential(layer)), (4, 3, 3))
    assert (packed.real_params, packed.coded_bits) == (cost.real_params, cost.coded_bits)
    assert packed.bops == cost.bops


def test_transposed_convolution():
    layer = MBNConvTranspose2d(3, 5, 4, 2, 1, w_bits=1, a_bits=1)
    assert count_ops(nn.Sequential(layer), (3, 6, 6)).bops == 36 * 3 * 5 * 16
    assert count_ops(nn.ConvTranspose2d(3, 5, 4, 2, 1), (3, 6, 6)).conv_flops == 36 * 3 * 5 * 16


class Functional(nn.Module):
    """Everything done by functions, none by modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.act = SignSTE()
        self.gate = ChannelGate(4, 4)

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.w, padding=1))
        y = self.act(y) * self.gate(y)
        y = y + F.hardtanh(y)
        return y.flatten(2) @ y.flatten(2).transpose(1, 2)


def test_functional_work_is_seen_too():
    cost = count_ops(Functional(), (3, 5, 5))
    assert cost.conv_flops == 25 * 27 * 4 + 4 * 25 * 4
    assert cost.gate_flops == 4 * 4 * 2
    assert cost.elementwise_flops == 4 * 100, "relu, gate, hardtanh, add"


def test_a_shared_layer_is_stored_once_and_run_twice():
    layer = QuantConv2d(4, 4, 1, bias=False, act=UniformUnipolar(1), weight_quantizer=SignWeight())
    cost = count_ops(nn.Sequential(layer, layer), (4, 2, 2))
    assert cost.bops == 2 * 64
    assert cost.coded_params == 16


def test_the_hooks_go_whatever_happens():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(5, 5))
    with pytest.raises(FoveateError, match=r"\(1, 3, 2, 2\) \(mat1 .*without the batch"):
        count_ops(net, (3, 2, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(FoveateError, match="one sample"):
        count_ops(net, torch.empty(0, 3, 2, 2))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (3.0, 8, 8), (-3, 8, 8), (), "abc", 3])
def test_a_shape_that_is_none_is_one_sentence(shape):
    with pytest.raises(FoveateError, match=r"^[^\n]*without the batch, such as \(3, 224, 224\)"):
        count_ops(nn.Sequential(nn.Conv2d(3, 3, 1)), shape)


def test_a_weight_shared_with_an_embedding_is_stored_real_too():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 8)
            self.out = QuantLinear(8, 10, bias=False, weight_quantizer=SignWeight())
            self.out.act = SignSTE()
            self.out.weight = self.words.weight

        def forward(self, i):
            return self.out(self.words(i))

    cost = count_ops(Tied(), torch.zeros(2, dtype=torch.long))
    assert (cost.real_params, cost.coded_params) == (80, 80)
