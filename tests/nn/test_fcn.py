"""Label maps from feature maps: sizes, and the sum that the paper writes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.engine import compile as compile_packed
from foveate.errors import FoveateError
from foveate.nn.fcn import FCN
from foveate.nn.resnet import BasicBlock, ResNet
from foveate.nn.ssd import FeatureMaps


def small() -> FCN:
    torch.manual_seed(0)
    net = ResNet(BasicBlock, (1, 1), (8, 16), classes=1)
    return FCN(FeatureMaps(net, ("layer1", "layer2")), 5, doublings=2)


def test_fcn_labels_every_pixel():
    net = small()
    assert net.multiple == 8
    assert net(torch.zeros(2, 3, 24, 40)).shape == (2, 5, 24, 40)
    with pytest.raises(FoveateError, match="multiples of 8"):
        net(torch.zeros(1, 3, 20, 24))
    with pytest.raises(FoveateError, match="expects a trunk with `channels`"):
        FCN(nn.Identity(), 5)


@torch.no_grad()
def test_fcn_adds_the_maps_scores():
    """s_1 = conv1(f_1) + up(s_2), and twice up; the compiled net says the same."""
    net = small().eval()
    x = torch.randn(1, 3, 16, 16)
    fine, coarse = net.trunk(x)
    up = nn.functional.interpolate
    coarse = up(net.classifiers[1](coarse), scale_factor=2, mode="bilinear")
    expected = net.classifiers[0](fine) + coarse
    for _ in range(2):
        expected = up(expected, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(net(x), expected)
    compiled = compile_packed(net, x).run(x)
    torch.testing.assert_close(compiled, net(x), rtol=1e-4, atol=1e-4)
