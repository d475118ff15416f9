"""Flip rate and STE window counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.quantization.layers import BinaryConv2d, BinaryLinear, QuantLinear, set_stage
from foveate.quantization.quantizers import SignSTE, UniformUnipolar
from foveate.quantization.sign_statistics import FlipRate, SteWindow


def test_flip_rate_is_the_share_of_changed_signs():
    net = nn.Sequential(BinaryLinear(4, 2), nn.Linear(2, 2), BinaryLinear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.1, -0.1, 0.2, -0.2], [0.0, 1.0, -1.0, 0.5]]))
    flips = FlipRate(net)
    assert flips.update() == {"0": 0, "2": 0}
    with torch.no_grad():
        net[0].weight[0, :3] *= -1
        net[0].weight[1, 0] = -0.0  # still +1
        net[2].weight *= -1
    assert flips.update() == {"0": 3 / 8, "2": 1}
    assert flips.update() == {"0": 0, "2": 0}, "since the last look"
    set_stage(net, weights=False, activations=True)
    with torch.no_grad():
        net[0].weight *= -1
    assert FlipRate(net).update()["0"] == 0
    assert flips.update()["0"] == 7 / 8, "0 has no other sign"
    with pytest.raises(FoveateError):
        FlipRate(nn.Linear(2, 2))


def test_window_counts_inputs_below_the_threshold():
    net = nn.Sequential(
        BinaryConv2d(1, 1, 1),
        SignSTE("reste"),
        QuantLinear(4, 2, act=UniformUnipolar(2)),
    ).eval()
    x = torch.tensor([[[[0.5, -0.9, 1.0, 3.0]]], [[[0.0, -1.0, 0.1, 0.2]]]])
    with SteWindow(net) as window:
        assert window.shares() == {}
        net(x)
        net(x[:1])
    share_of_scaled = window.shares()["1"]
    assert window.shares()["0"] == pytest.approx((2 + 3 + 2) / 12)
    y = torch.cat((net[0](x), net[0](x[:1])))
    assert share_of_scaled == pytest.approx((y.abs() < 1.5).float().mean().item())
    assert set(window.shares()) == {"0", "1"}, "unsigned codes have no sign"
    assert not any(module._forward_pre_hooks for module in net.modules())
    before = window.shares()
    net(x)
    assert window.shares() == before
    with pytest.raises(FoveateError):
        SteWindow(nn.Linear(2, 2))
