"""MBN-mini and BNN's VGG: layers, sizes and cost by closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn.small_cnn import BNNVGG, MBNMini


class Conv(nn.Conv2d):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, bias=False)


class Linear(nn.Linear):
    pass


def macs(net: nn.Module, *shape: int) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.to("meta")(torch.empty(shape))
    return counter.get_total_flops() / 2


def test_mbn_mini_layers():
    net = MBNMini(Conv)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0], m.padding[0]) for m in convs] == [
        *((1, 32, 2, 1), (32, 64, 2, 1), (64, 64, 1, 1), (64, 128, 2, 1)),
    ]
    assert [type(m) for m in convs] == [nn.Conv2d, Conv, Conv, Conv]
    assert all(m.bias is None for m in convs)
    assert type(net.fc) is nn.Linear


def test_mbn_mini_cost():
    by_hand = 196 * 9 * 32 + 49 * 9 * 32 * 64 + 49 * 9 * 64 * 64 + 16 * 9 * 64 * 128 + 1280
    assert macs(MBNMini(), 1, 1, 28, 28) == by_hand
    assert by_hand == pytest.approx(4.0e6, rel=0.02)
    assert round(macs(MBNMini(long=True), 1, 1, 28, 28) / 1e6, 1) == 14.7


@pytest.mark.parametrize("long", [False, True])
def test_mbn_mini_is_conv_bn_activation(long):
    torch.manual_seed(0)
    net = MBNMini(activation=nn.Hardtanh, long=long).eval()
    x = torch.randn(2, 1, 28, 28)
    y = net.conv1(x)
    if long:
        y = torch.nn.functional.max_pool2d(y, 2)
    y = net.bn1(y).clamp(-1, 1)
    for n in (2, 3, 4):
        y = getattr(net, f"bn{n}")(getattr(net, f"conv{n}")(y)).clamp(-1, 1)
    torch.testing.assert_close(net(x), net.fc(y.mean((2, 3))))


def test_vgg_is_bnns():
    net = BNNVGG(Conv, Linear)
    layers = [type(m).__name__ for m in net.features]
    pair = ["Conv", "BatchNorm2d", "ReLU", "Conv", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert layers == ["Conv2d", *pair[1:], *pair, *pair]
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [128, 128, 256, 256, 512, 512]
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [
        *((8192, 1024), (1024, 1024), (1024, 10)),
    ]
    assert [type(m) for m in linears] == [Linear, Linear, nn.Linear]
    weights = 9 * (3 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2)
    weights += 8192 * 1024 + 1024**2 + 10240
    assert sum(m.weight.numel() for m in (*convs, *linears)) == weights == 14_022_016


def test_all_layers_can_come_from_the_factories():
    net = BNNVGG(Conv, Linear, first=Conv, last=Linear, widths=(4, 6, 8), hidden=5)
    plain = [m for m in net.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert plain == []


@settings(deadline=None, max_examples=15)
@given(
    eighths=st.integers(1, 5),
    channels=st.integers(1, 4),
    classes=st.integers(1, 6),
    n=st.integers(1, 3),
)
def test_vgg_shapes(eighths, channels, classes, n):
    net = BNNVGG(
        widths=(3, 4, 5), hidden=6, size=8 * eighths, in_channels=channels, classes=classes
    ).eval()
    assert net(torch.randn(n, channels, 8 * eighths, 8 * eighths)).shape == (n, classes)


@settings(deadline=None, max_examples=15)
@given(height=st.integers(2, 40), width=st.integers(2, 40), long=st.booleans())
def test_mini_shapes(height, width, long):
    assert MBNMini(long=long).eval()(torch.randn(2, 1, height, width)).shape == (2, 10)


@pytest.mark.parametrize(
    "net", [MBNMini(), BNNVGG(widths=(2, 3, 4), hidden=5, in_channels=1, size=24)]
)
def test_nets_can_be_traced(net):
    x = torch.randn(1, 1, 24, 24)
    net.eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize(
    "changes", [{"widths": (1, 2)}, {"size": 30}, {"size": 0}, {"hidden": 0}, {"classes": 0}]
)
def test_bad_sizes_are_one_sentence(changes):
    with pytest.raises(FoveateError, match="BNNVGG expects three widths"):
        BNNVGG(**changes)
