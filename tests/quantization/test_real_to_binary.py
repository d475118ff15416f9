"""Real-to-binary: the layer, the chain as data, the ablations, and block features by hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.quantization.layers import quant_layers
from foveate.quantization.real_to_binary import (
    ABLATIONS,
    RealToBinaryConfig,
    RealToBinaryConv2d,
    block_features,
    real_to_binary_stages,
)
from foveate.quantization.stages import run_stages


def test_the_layer_is_a_gated_scaled_binary_convolution():
    layer = RealToBinaryConv2d(64, 128, 3, 2, 1)
    assert layer.bits == (1, 1)
    assert layer.bias is None
    assert layer.channel_scale.shape == (128,)
    assert layer.gate.reduce.weight.shape == (8, 64)
    assert layer(torch.randn(2, 64, 7, 7)).shape == (2, 128, 4, 4)
    assert RealToBinaryConv2d(16, 16, 3, r=4).gate.reduce.out_features == 4


def test_chain_of_the_full_method():
    real, soft, half, full = real_to_binary_stages(RealToBinaryConfig())
    assert (real.network, real.teacher, real.init_from) == ("real", None, None)
    assert [(s.weights, s.activations) for s in (soft, half, full)] == [
        (False, "soft"),
        (False, True),
        (True, True),
    ]
    assert [s.teacher for s in (soft, half, full)] == ["real", "soft", "w32a1"]
    assert [s.init_from for s in (soft, half, full)] == [None, "soft", "w32a1"]
    assert [s.lr for s in (soft, half, full)] == [1e-3, 1e-3, 2e-4]
    assert [s.weight_decay for s in (real, soft, half, full)] == [1e-5, 1e-5, 1e-5, 0]
    assert [s.clip_latent for s in (soft, half, full)] == [False, False, True]
    for stage in (soft, half):
        assert dict(stage.losses) == {"ce": 1.0, "attention": 1000.0, "logits": 3.0}
    assert dict(full.losses) == {"ce": 1.0, "logits": 0.8}, "no attention in the last step"
    assert [s.epochs for s in (real, soft, half, full)] == [100, 75, 75, 75]


def test_uncertain_details_are_settings():
    config = RealToBinaryConfig(attention_weight_final=5.0, soft_init="fresh", epochs=(1, 2, 3, 4))
    *_, half, full = real_to_binary_stages(config)
    assert half.init_from is None
    assert full.losses["attention"] == 5
    assert [s.epochs for s in real_to_binary_stages(config)] == [1, 2, 3, 4]
    for wrong in ({"soft_init": "real"}, {"epochs": (1, 2)}, {"epochs": (1, 1, 1, -1)}):
        with pytest.raises(FoveateError):
            RealToBinaryConfig(**wrong)


def test_ablations():
    assert set(ABLATIONS) == {"sb", "sb+attention", "sb+gate", "sb+progressive", "full"}
    stages = {name: real_to_binary_stages(config) for name, config in ABLATIONS.items()}
    names = {name: [stage.name for stage in chain] for name, chain in stages.items()}
    assert names["sb"] == names["sb+gate"] == ["w32a1", "w1a1"]
    assert names["sb+attention"] == ["real", "w32a1", "w1a1"]
    assert names["sb+progressive"] == names["full"] == ["real", "soft", "w32a1", "w1a1"]
    for name in ("sb", "sb+gate"):
        assert all(dict(s.losses) == {"ce": 1.0} and s.teacher is None for s in stages[name])
    assert {s.teacher for s in stages["sb+attention"][1:]} == {"real"}, "one teacher"
    assert "attention" not in stages["sb+progressive"][2].losses
    assert "logits" in stages["sb+progressive"][2].losses
    gates = {name: config.layers.scale for name, config in ABLATIONS.items()}
    assert [name for name, scale in gates.items() if scale == "se"] == ["sb+gate", "full"]
    assert gates["sb"] == "channel"


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block_names = ("one", "two")
        self.one = nn.Sequential(nn.BatchNorm2d(3), RealToBinaryConv2d(3, 4, 3, padding=1))
        self.two = RealToBinaryConv2d(4, 4, 3, padding=1)
        self.unused = nn.Identity()
        self.pair = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.one(x)
        y = x + self.two(x)
        self.pair((x, y))
        return self.head(y.mean((2, 3)))


def test_block_features_are_the_outputs_and_the_model_stays_as_it_was():
    net = Net().eval()
    x = torch.randn(2, 3, 5, 5)
    logits, (one, two) = block_features(net, x)
    assert torch.equal(logits, net(x))
    assert torch.equal(one, net.one(x))
    assert torch.equal(two, net.two(net.one(x)))
    assert one.requires_grad, "the gradient flows into the student"
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(block_features(net, x, ["two", "one.0"])[1][0], two)


def test_block_features_say_what_is_wrong():
    net = Net().eval()
    x = torch.randn(2, 3, 5, 5)
    for blocks, word in ((["three"], "three"), (["unused"], "unused"), (["pair"], "tuple")):
        with pytest.raises(FoveateError, match=word):
            block_features(net, x, blocks)
        assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(FoveateError, match="blocks="):
        block_features(nn.Linear(3, 3), torch.ones(1, 3))


def test_the_chain_runs_end_to_end():
    bits = {}

    def train_one(model, stage, teacher):
        bits[stage.name] = ([layer.bits for _, layer in quant_layers(model)], teacher is not None)
        model(torch.randn(2, 3, 5, 5)).sum().backward()

    def build(stage):
        return nn.Sequential(nn.Conv2d(3, 2, 1)) if stage.network == "real" else Net()

    run_stages(build, real_to_binary_stages(RealToBinaryConfig()), train_one)
    assert bits == {
        "real": ([], False),
        "soft": ([(32, 32)] * 2, True),
        "w32a1": ([(32, 1)] * 2, True),
        "w1a1": ([(1, 1)] * 2, True),
    }
