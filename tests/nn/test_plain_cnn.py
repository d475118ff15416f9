"""LeNet and VGG: layers and sizes by closed form and by published counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.plain_cnn import VGG, LeNet, vgg19


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_lenet_is_the_one_of_the_table():
    net = LeNet()
    by_hand = (25 + 1) * 6 + (25 * 6 + 1) * 16 + 257 * 120 + 121 * 84 + 85 * 10
    assert count(net) == by_hand == 44_426
    x = torch.zeros(2, 1, 28, 28)
    assert net.features[:3](x).shape == (2, 6, 12, 12)
    assert net.features(x).shape == (2, 16, 4, 4)
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(256, 120), (120, 84), (84, 10)]
    two = [m for m in LeNet(hidden=(120,)).modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in two] == [(256, 120), (120, 10)]


def test_lenet_by_hand():
    torch.manual_seed(0)
    net, x = LeNet(), torch.randn(2, 1, 28, 28)
    y = x
    for conv in (net.features[0], net.features[3]):
        y = torch.nn.functional.conv2d(y, conv.weight, conv.bias).clamp(min=0)
        y = y.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    y = y.reshape(2, 256)
    first, second, last = (m for m in net.classifier if isinstance(m, nn.Linear))
    y = (y @ first.weight.T + first.bias).clamp(min=0)
    y = (y @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(net(x), y @ last.weight.T + last.bias)


def test_vgg19_has_the_published_size_and_layers():
    with torch.device("meta"):
        net = vgg19()
        hundred = vgg19(100)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) for m in convs)
    weights = 9 * sum(m.in_channels * m.out_channels for m in convs)
    channels = sum(m.out_channels for m in convs)
    assert weights + 3 * channels + 513 * 10 == count(net) == 20_040_522
    assert count(hundred) - count(net) == 513 * 90
    assert net.features(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 512, 1, 1)


def test_small_vgg_is_the_desks():
    net = VGG()
    names = [type(m).__name__ for m in net.features]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 3
    assert count(net) == 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 65 * 10
    torch.manual_seed(0)
    net.eval()
    x = torch.randn(2, 3, 32, 32)
    y = x
    for conv, bn in zip(net.features[::4], net.features[1::4], strict=True):
        y = torch.nn.functional.conv2d(y, conv.weight, padding=1) / (1 + bn.eps) ** 0.5
        y = y.clamp(min=0).unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    y = y.mean((2, 3)) @ net.fc.weight.T + net.fc.bias
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(
    size=st.integers(16, 40),
    channels=st.integers(1, 3),
    classes=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 9), max_size=3),
    n=st.integers(1, 3),
)
def test_lenet_shapes(size, channels, classes, hidden, n):
    net = LeNet(hidden, classes, channels, size)
    assert net(torch.randn(n, channels, size, size)).shape == (n, classes)


@settings(deadline=None, max_examples=15)
@given(
    stages=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=3),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
)
def test_vgg_shapes(stages, height, width):
    widths, depths = zip(*stages, strict=True)
    net = VGG(widths, depths, classes=3, in_channels=2).eval()
    assert net(torch.randn(2, 2, height, width)).shape == (2, 3)


@pytest.mark.parametrize("net", [LeNet(), VGG(in_channels=1)])
def test_nets_can_be_traced(net):
    x = torch.randn(2, 1, 28, 28)
    net.eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


def test_bad_sizes_are_one_sentence():
    for wrong in ({"hidden": (0,)}, {"classes": 0}, {"in_channels": 0}, {"size": 15}):
        with pytest.raises(FoveateError, match="LeNet expects"):
            LeNet(**wrong)
    for wrong in (
        {"widths": ()},
        {"widths": (), "depths": ()},
        {"widths": (8, 0, 8)},
        {"depths": (1, 1)},
        {"depths": (1, 0, 1)},
        {"classes": 0},
    ):
        with pytest.raises(FoveateError, match="VGG expects"):
            VGG(**wrong)
