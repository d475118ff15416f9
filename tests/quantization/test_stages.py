"""Stages as data: order, initialisation, switching, teachers; misuse is found before training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.quantization.layers import BinaryConv2d, quant_layers
from foveate.quantization.stages import Stage, run_stages, two_stages


def build(stage: Stage) -> nn.Module:
    if stage.network == "real":
        return nn.Sequential(nn.Conv2d(2, 2, 1))
    return nn.Sequential(BinaryConv2d(2, 2, 1), nn.BatchNorm2d(2))


def test_two_stages_are_the_published_recipe():
    first, second = two_stages(75)
    assert (first.weights, first.activations) == (False, True)
    assert (second.weights, second.activations) == (True, True)
    assert (first.lr, second.lr) == (1e-3, 2e-4)
    assert (first.weight_decay, second.weight_decay) == (1e-5, 0)
    assert (first.init_from, second.init_from) == (None, "w32a1")
    assert second.clip_latent
    assert not first.clip_latent
    assert first.teacher is second.teacher is None


def test_each_stage_starts_from_the_one_it_names():
    log = []

    def train_one(model, stage, teacher):
        log.append((stage.name, [layer.bits for _, layer in quant_layers(model)], teacher))
        assert not hasattr(model, "optimizer")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        model[1].running_mean.add_(3) if len(model) > 1 else None

    stages = [
        Stage("teacher", False, False, 1, 0.1, 0.0, network="real"),
        Stage("w32a1", False, True, 1, 0.1, 0.0, teacher="teacher"),
        Stage("w1a1", True, True, 1, 0.1, 0.0, init_from="w32a1", teacher="w32a1"),
    ]
    done = run_stages(build, stages, train_one)
    assert list(done) == ["teacher", "w32a1", "w1a1"]
    assert [(name, bits) for name, bits, _ in log] == [
        ("teacher", []),
        ("w32a1", [(32, 1)]),
        ("w1a1", [(1, 1)]),
    ]
    assert [teacher for _, _, teacher in log] == [None, done["teacher"], done["w32a1"]]
    assert done["w1a1"] is not done["w32a1"]
    assert torch.equal(done["w1a1"][0].weight, done["w32a1"][0].weight + 1)
    assert torch.equal(done["w1a1"][1].running_mean, done["w32a1"][1].running_mean + 3)


@pytest.mark.parametrize(
    ("stages", "word"),
    [
        ([Stage("a", True, True, 1, 0.1, 0.0, init_from="b")], "init_from='b'"),
        ([Stage("a", True, True, 1, 0.1, 0.0, teacher="a")], "teacher='a'"),
        ([Stage("a", True, True, 1, 0.1, 0.0)] * 2, "two stages"),
    ],
)
def test_names_are_checked_before_training(stages, word):
    def never(*_):
        raise AssertionError("trained")

    with pytest.raises(FoveateError, match=word):
        run_stages(build, stages, never)


def test_weights_that_do_not_fit_are_named():
    stages = [
        Stage("real", False, False, 1, 0.1, 0.0, network="real"),
        Stage("binary", True, True, 1, 0.1, 0.0, init_from="real"),
    ]
    with pytest.raises(FoveateError, match="'binary' cannot start from 'real'"):
        run_stages(build, stages, lambda *_: None)
