"""The double-skip net: wiring against the formula, cost against the published figures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn.binary_resnet import (
    BinaryResNet,
    BinResNetS,
    DaBNNStem,
    DoubleSkipBlock,
    binary_resnet18,
    real_twin,
)


class Binary(nn.Conv2d):
    """What a factory of few bits would make: signs of input and weights, an output scale."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, bias=False)
        self.scale = nn.Parameter(torch.rand(sizes[1], 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(())
        signs = torch.where(self.weight >= 0, ones, -ones)
        self.seen = torch.where(x >= 0, ones, -ones)
        return F.conv2d(self.seen, signs, None, self.stride, self.padding) * self.scale


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.ndim == 1:
            low = 0.5 if name.endswith("var") else -0.5
            value.uniform_(low, low + 1, generator=generator)
    return net.eval()


def cost(net: nn.Module, *shape: int) -> tuple[int, int]:
    """Multiply-adds of the factory's convolutions and of everything else."""
    binary = {f"{type(net).__name__}.{n}" for n, m in net.named_modules() if isinstance(m, Tagged)}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.to("meta")(torch.empty(shape))
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    inside = sum(count for name, count in counts.items() if name in binary)
    return inside, counts["Global"] - inside


class Tagged(nn.Conv2d):
    """A convolution that says that the factory made it."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, bias=False)


# --- published counts ------------------------------------------------------------------------


def test_cost_of_the_binary_resnet18_grid():
    bops, flops = cost(binary_resnet18(Tagged), 1, 3, 224, 224)
    assert bops == 1_676_279_808
    assert flops == 137_793_536


def test_parameters_of_the_published_port():
    """11,995,624 = every parameter and BN statistic of the net, and its SE heads (294,400)."""
    net = binary_resnet18(Tagged)
    statistics = sum(b.numel() for name, b in net.named_buffers() if "running" in name)
    assert sum(p.numel() for p in net.parameters()) + statistics + 294_400 == 11_995_624


def test_cost_of_the_dabnn_stem_in_the_released_eb_net():
    """84,115,456 in all, less the decomposed skips of four stages and the classifier."""
    skips = 4 * (64 * 16 + 16 * 128) * 56 * 56
    _, flops = cost(DaBNNStem(3, 64), 1, 3, 224, 224)
    assert flops == 84_115_456 - skips - 1024 * 1000


@pytest.mark.parametrize(
    ("widths", "blocks", "size", "weights", "millions"),
    [
        ((16, 32, 64), 2, 32, 170_496, 26.0),
        ((16, 32, 64), 2, 28, 170_496, 19.9),
        ((16, 32, 64), 2, 16, 170_496, 6.5),
        ((8, 16, 32), 2, 32, 42_624, 6.5),
        ((8, 16, 32), 2, 16, 42_624, 1.6),
        ((8, 16, 32), 1, 16, 18_432, 0.74),
    ],
)
def test_budget_table_of_the_desk_net(widths, blocks, size, weights, millions):
    net = BinResNetS(Tagged, widths, blocks)
    made = [m for m in net.modules() if isinstance(m, Tagged)]
    assert len(made) == 6 * blocks
    assert sum(m.weight.numel() for m in made) == weights
    bops, _ = cost(net, 1, 3, size, size)
    assert round(bops / 1e6, 2 if millions < 1 else 1) == millions


# --- wiring ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "stride"), [(6, 1), (6, 2), (4, 1), (4, 2)])
def test_block_is_the_formula(channels, stride):
    """BN -> conv -> PReLU -> add, one skip per convolution; AvgPool -> 1x1 -> BN on the skip."""
    torch.manual_seed(0)
    block = lively(DoubleSkipBlock(channels, 6, stride, Binary))
    state = block.state_dict()
    x = torch.randn(2, channels, 7, 6)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [
            state[f"{name}.{leaf}"][:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        ]
        return (x - parts[0]) / (parts[1] + 1e-5).sqrt() * parts[2] + parts[3]

    def half(x: Tensor, number: int, step: int) -> Tensor:
        a = norm(x, f"bn{number}").sign()
        w = state[f"conv{number}.weight"].sign()
        y = F.conv2d(a, w, None, step, 1) * state[f"conv{number}.scale"]
        slope = state[f"prelu{number}.weight"][:, None, None]
        return torch.where(y > 0, y, slope * y)

    skip = x
    if stride == 2:  # mean of the pixels that exist, window by window
        skip = torch.stack(
            [
                torch.stack([x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in (0, 2, 4)], -1)
                for i in (0, 2, 4, 6)
            ],
            -2,
        )
    if stride == 2 or channels != 6:
        skip = norm(F.conv2d(skip, state["downsample.1.weight"]), "downsample.2")
    x1 = skip + half(x, 1, stride)
    x2 = x1 + half(x1, 2, 1)
    torch.testing.assert_close(block(x), x2, rtol=1e-4, atol=1e-4)


def test_operands_of_the_factory_are_signs_and_the_stream_is_real():
    torch.manual_seed(0)
    net = lively(BinResNetS(Binary))
    net(torch.randn(2, 3, 16, 16))
    made = [m for m in net.modules() if isinstance(m, Binary)]
    assert len(made) == 12
    for conv in made:
        assert conv.seen.abs().eq(1).all()
        assert 0 < conv.seen.gt(0).float().mean() < 1  # no ReLU stands before a sign


def test_factory_makes_exactly_the_3x3_convolutions():
    asked: list[tuple[int, ...]] = []

    def factory(*sizes: int) -> nn.Module:
        asked.append(sizes)
        return Tagged(*sizes)

    net = BinaryResNet(factory, (4, 8), (1, 2), 3, stem="dabnn")
    assert asked == [
        *((4, 4, 3, 1, 1), (4, 4, 3, 1, 1)),
        *((4, 8, 3, 2, 1), (8, 8, 3, 1, 1)),
        *((8, 8, 3, 1, 1), (8, 8, 3, 1, 1)),
    ]
    real = [n for n, m in net.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert all(n.startswith("stem") or "downsample" in n or n == "fc" for n in real)
    assert [n for n in real if "downsample" in n] == ["layer2.0.downsample.1"]


def test_prelu_has_one_slope_per_channel_and_starts_at_a_quarter():
    net = BinResNetS()
    slopes = [m for m in net.modules() if isinstance(m, nn.PReLU)]
    assert len(slopes) == 13
    assert [m.weight.numel() for m in slopes] == [8] * 5 + [16] * 4 + [32] * 4
    assert all(m.weight.eq(0.25).all() for m in slopes)


def test_dabnn_stem_is_the_formula():
    torch.manual_seed(0)
    stem = lively(DaBNNStem(3, 8))
    x = torch.randn(1, 3, 21, 17)

    def step(module: nn.Sequential, x: Tensor, stride: int) -> Tensor:
        weight, bn = module[0].weight, module[1]
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias).relu()

    first = step(stem.first, x, 2)
    a = step(stem.halve, step(stem.squeeze, first, 1), 2)
    b = F.max_pool2d(first, 3, 2, 1)
    torch.testing.assert_close(stem(x), step(stem.join, torch.cat((a, b), 1), 1))
    assert [m.out_channels for m in stem.modules() if isinstance(m, nn.Conv2d)] == [4, 2, 4, 8]


@pytest.mark.parametrize(("stem", "kind"), [("basic", nn.PReLU), ("cifar", nn.PReLU)])
def test_stem_activation(stem, kind):
    assert isinstance(BinaryResNet(widths=(4,), blocks=(1,), stem=stem).stem.act, kind)
    relu = BinaryResNet(widths=(4,), blocks=(1,), stem=stem, stem_activation="relu")
    assert isinstance(relu.stem.act, nn.ReLU)


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    stem=st.sampled_from(["basic", "dabnn", "cifar"]),
)
def test_twin_and_student_pair_block_by_block_at_any_size(height, width, stem):
    student = BinaryResNet(Tagged, (4, 8, 12), (1, 2, 1), 5, stem=stem).eval()
    teacher = real_twin(student).eval()
    assert student.block_names == teacher.block_names
    shapes: dict[int, list[torch.Size]] = {0: [], 1: []}
    for which, net in enumerate((student, teacher)):
        for name in net.block_names:
            net.get_submodule(name).register_forward_hook(
                lambda m, i, o, seen=shapes[which]: seen.append(o.shape)
            )
    x = torch.randn(1, 3, height, width)
    assert student(x).shape == teacher(x).shape == (1, 5)
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 4


def test_net_can_be_traced():
    net = lively(BinResNetS())
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


def test_net_learns():
    torch.manual_seed(0)
    net = BinResNetS(widths=(4, 8, 8), blocks=1, classes=2, in_channels=1)
    x = torch.randn(16, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks": (1,)}, "one width and at least one block"),
        ({"blocks": (0, 1)}, "one width and at least one block"),
        ({"classes": 0}, "classes=0"),
        ({"stem": "large"}, "stem 'basic', 'dabnn' or 'cifar'"),
        ({"stem_activation": "tanh"}, "'prelu' or 'relu'"),
        ({"stem": "dabnn", "widths": (6, 8)}, "divisible by 4, got 6"),
    ],
)
def test_bad_sizes_are_one_sentence(changes, sentence):
    with pytest.raises(FoveateError, match=sentence):
        BinaryResNet(**({"widths": (4, 8), "blocks": (1, 1)} | changes))
