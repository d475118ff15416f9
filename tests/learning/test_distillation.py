"""Distillation losses against numpy, scipy and the forms of the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.distillation import (
    AttentionMatchingLoss,
    Connector,
    FitNetLoss,
    FrozenTeacher,
    LogitKD,
    StatLoss,
    attention_map,
    channel_stats,
)


def features(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_hand(student, teacher, norm: str, reduce: str, eps: float) -> float:
    """Sample by sample and block by block, in float64."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        per_sample = []
        for a, b in zip(ours.double().numpy(), theirs.double().numpy(), strict=True):
            maps = []
            for x in (a, b):
                q = (x**2).sum(0).ravel()
                size = np.sqrt((q**2).sum() + eps) if norm == "l2" else q.max() + eps
                maps.append(q / size)
            difference = maps[0] - maps[1]
            if reduce == "mean":
                per_sample.append((difference**2).mean())
            else:
                per_sample.append(np.sqrt((difference**2).sum() + eps))
        total += np.mean(per_sample)
    return total


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 4),
    blocks=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
        min_size=1,
        max_size=4,
    ),
    norm=st.sampled_from(["l2", "max"]),
    reduce=st.sampled_from(["mean", "sum"]),
)
def test_attention_loss_by_hand(seed, batch, blocks, norm, reduce):
    """Channels may differ; maps are compared sample by sample, block by block."""
    student = features(seed, *[(batch, c, h, w) for c, _, h, w in blocks])
    teacher = features(seed + 1, *[(batch, c, h, w) for _, c, h, w in blocks])
    loss = AttentionMatchingLoss(norm, reduce)(student, teacher)
    assert loss.ndim == 0
    expected = by_hand(student, teacher, norm, reduce, 1e-6)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_map_is_normalised_per_sample_and_ignores_scale_and_sign():
    (x,) = features(0, (3, 4, 5, 6))
    for norm, size in (("l2", lambda q: q.square().sum(1)), ("max", lambda q: q.amax(1))):
        q = attention_map(x, norm)
        assert q.shape == (3, 30)
        assert (q >= 0).all()
        assert torch.allclose(size(q), torch.ones(3), atol=1e-4)
        louder = -x * torch.tensor([1.0, 5.0, 40.0]).reshape(3, 1, 1, 1)
        assert torch.allclose(attention_map(louder, norm), q, atol=1e-4)
        # sums and means over channels are the same after normalisation
        assert torch.allclose(attention_map(x / 2, norm), q, atol=1e-4)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_equal_maps_cost_nothing_and_dead_maps_give_finite_gradients(reduce):
    (x,) = features(1, (2, 3, 4, 4))
    loss = AttentionMatchingLoss(reduce=reduce)
    least = 0 if reduce == "mean" else 1e-3  # eps under the root
    assert loss([x], [x]).item() == pytest.approx(least, abs=1e-6)
    for student in (torch.zeros(2, 3, 4, 4), x.clone()):
        student.requires_grad_()
        loss([student], [x]).backward()
        assert student.grad.isfinite().all()


def test_gradient_reaches_the_student_only():
    student, teacher = features(2, (2, 3, 4, 4), (2, 3, 4, 4))
    student.requires_grad_()
    teacher.requires_grad_()
    (AttentionMatchingLoss()([student], [teacher])).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    z_s, z_t = features(3, (4, 5), (4, 5))
    z_s.requires_grad_()
    z_t.requires_grad_()
    LogitKD(2.0)(z_s, z_t).backward()
    assert z_s.grad.abs().sum() > 0
    assert z_t.grad is None


def test_indicator_chooses_the_pairs():
    student = features(4, (2, 3, 8, 8), (2, 3, 4, 4), (2, 3, 2, 2))
    teacher = features(5, (2, 3, 8, 8), (2, 3, 4, 4), (2, 3, 2, 2))
    chosen = AttentionMatchingLoss(indicator=(False, True, True))(student, teacher)
    assert chosen.item() == pytest.approx(
        AttentionMatchingLoss()(student[1:], teacher[1:]).item(), rel=1e-6
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 6),
    classes=st.integers(2, 7),
    temperature=st.floats(0.25, 20),
)
def test_logit_matching_is_scipys_divergence(seed, batch, classes, temperature):
    student, teacher = features(seed, (batch, classes), (batch, classes))
    p = scipy.special.softmax(teacher.double().numpy() / temperature, 1)
    q = scipy.special.softmax(student.double().numpy() / temperature, 1)
    expected = temperature**2 * scipy.stats.entropy(p, q, axis=1).mean()  # batch mean, not B * K
    loss = LogitKD(temperature)(student, teacher)
    # float32: what nearly cancels in the logarithms is multiplied by T^2
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-6 * (1 + temperature**2))
    assert LogitKD(temperature)(teacher, teacher).item() == pytest.approx(0, abs=1e-5)


def test_dense_logits_are_a_mean_over_places():
    student, teacher = features(6, (2, 5, 3, 4), (2, 5, 3, 4))
    flat = [z.permute(0, 2, 3, 1).reshape(-1, 5) for z in (student, teacher)]
    assert LogitKD()(student, teacher).item() == pytest.approx(LogitKD()(*flat).item(), rel=1e-5)


def test_temperature_keeps_the_size_of_the_gradient():
    student, teacher = features(7, (8, 10), (8, 10))
    sizes = []
    for temperature in (20.0, 40.0):
        z = student.clone().requires_grad_()
        LogitKD(temperature)(z, teacher).backward()
        sizes.append(z.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


# --- channel statistics, features, connectors ----------------------------------------------

SIZES = st.tuples(*[st.integers(1, 5)] * 4)


def stats_by_hand(x: torch.Tensor, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Sample by sample, channel by channel, sums written out in float64."""
    mu, sigma = np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    for b, sample in enumerate(x.double().numpy()):
        for c, channel in enumerate(sample):
            values = [float(v) for row in channel for v in row]
            mu[b, c] = sum(values) / len(values)
            variance = sum((v - mu[b, c]) ** 2 for v in values) / len(values)
            sigma[b, c] = (variance + eps) ** 0.5
    return mu, sigma


@settings(deadline=None, max_examples=40)
@given(shape=SIZES, seed=st.integers(0, 999), scale=st.floats(0.1, 20))
def test_statistics_are_of_every_sample_and_channel_over_space(shape, seed, scale):
    """Checklist 1 of AdaIN distillation: instance, not batch statistics; 10: eps in the root."""
    (x,) = features(seed, shape)
    x = x * scale + 1
    mu, sigma = channel_stats(x)
    assert mu.shape == sigma.shape == (*shape[:2], 1, 1)
    expected = stats_by_hand(x)
    assert np.allclose(mu[..., 0, 0], expected[0], rtol=1e-4, atol=1e-4)
    assert np.allclose(sigma[..., 0, 0], expected[1], rtol=1e-3, atol=1e-4)
    # Other samples of the batch have no say.
    assert torch.equal(channel_stats(x[:1])[1], sigma[:1])


def test_dead_channels_give_finite_gradients():
    """Checklist 10: a constant channel has sigma = sqrt(eps), and gradient 0 through it."""
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    _, sigma = channel_stats(x, eps=1e-5)
    assert torch.allclose(sigma, torch.full_like(sigma, 1e-5**0.5))
    (gradient,) = torch.autograd.grad(sigma.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    StatLoss()([student], [torch.randn(2, 3, 4, 4)]).backward()
    assert student.grad.isfinite().all()


def test_half_precision_is_averaged_in_single():
    x = torch.full((1, 1, 64, 64), 100.0, dtype=torch.float16)
    x[0, 0, 0, 0] = 101  # the sum of squares leaves float16
    mu, sigma = channel_stats(x)
    assert mu.dtype == torch.float32
    assert mu.item() == pytest.approx(100 + 1 / 4096)
    assert sigma.item() == pytest.approx((1 / 4096 - 1 / 4096**2 + 1e-5) ** 0.5, rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.tuples(SIZES, st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 999),
    deviations=st.booleans(),
)
def test_stat_loss_by_hand_with_other_heights_and_widths(shapes, seed, deviations):
    """Checklist 7: statistics have no height and width, so those of a pair may differ."""
    student = features(seed, *[shape for shape, _, _ in shapes])
    teacher = features(seed + 1, *[(*shape[:2], h, w) for shape, h, w in shapes])
    expected = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = list(zip(stats_by_hand(ours), stats_by_hand(theirs), strict=True))
        expected += sum(((s - t) ** 2).mean() for s, t in pairs[: 1 + deviations])
    loss = StatLoss(sigma=deviations)(student, teacher)
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert StatLoss(sigma=deviations)(teacher, teacher).item() == 0


def test_feature_losses_teach_the_student_only():
    for loss in (StatLoss(), FitNetLoss()):
        student, teacher = features(9, (2, 3, 4, 4), (2, 3, 4, 4))
        student.requires_grad_()
        teacher.requires_grad_()
        loss([student], [teacher]).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None


def test_feature_loss_is_the_sum_of_mean_squares():
    student = features(10, (2, 3, 4, 5), (2, 6, 2, 2))
    teacher = features(11, (2, 3, 4, 5), (2, 6, 2, 2))
    expected = sum(
        float(((s.double().numpy() - t.double().numpy()) ** 2).mean())
        for s, t in zip(student, teacher, strict=True)
    )
    assert FitNetLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_connector_is_a_matrix_per_pixel_then_bn_and_relu():
    torch.manual_seed(0)
    (x,) = features(12, (5, 4, 3, 2))
    for relu in (True, False):
        connector = Connector(4, 6, relu=relu)
        assert [name for name, _ in connector.named_parameters()] == [
            "conv.weight", "bn.weight", "bn.bias",
        ]  # fmt: skip
        matrix = connector.conv.weight.detach()[:, :, 0, 0].numpy()
        y = np.einsum("oc,bchw->bohw", matrix, x.numpy())
        mean = y.mean((0, 2, 3), keepdims=True)
        y = (y - mean) / np.sqrt(y.var((0, 2, 3), keepdims=True) + 1e-5)
        expected = y.clip(0) if relu else y
        assert np.allclose(connector(x).detach(), expected, atol=1e-4)
    wide = Connector(300, 200).conv.weight
    assert wide.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert wide.mean().item() == pytest.approx(0, abs=2e-3)


def test_bad_features_are_named():
    x, y, z = features(13, (2, 3, 4, 4), (2, 5, 4, 4), (2, 3, 2, 2))
    for loss, student, teacher, word in (
        (StatLoss(), [x], [y], r"block 0.*\(2, 3, 4, 4\).*\(2, 5, 4, 4\).*batch and channels"),
        (FitNetLoss(), [x, x], [x, z], "block 1.*height and width"),
        (StatLoss(), [x], [], "1 and 0"),
        (FitNetLoss(), [], [], "at least one"),
        (StatLoss(), [x[0]], [x[0]], r"\(B, C, h, w\)|\(B, C, H, W\)"),
    ):
        with pytest.raises(FoveateError, match=word):
            loss(student, teacher)
    for shape in ((2, 3, 4), (2, 3, 0, 4), (0, 3, 4, 4)):
        with pytest.raises(FoveateError, match="channel_stats"):
            channel_stats(torch.ones(shape))
    with pytest.raises(FoveateError, match="eps > 0"):
        StatLoss(eps=0)
    with pytest.raises(FoveateError, match="0 and 3"):
        Connector(0, 3)


# --- the teacher ---------------------------------------------------------------------------


def test_teacher_stays_frozen_and_in_eval_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    owner = nn.ModuleDict({"student": nn.Conv2d(3, 4, 1), "teacher": FrozenTeacher(network)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    owner.train()
    assert not any(module.training for module in owner["teacher"].modules())
    x = torch.randn(8, 3, 5, 5, requires_grad=True)
    first, second = owner["teacher"](x), owner["teacher"](x)
    assert torch.equal(first, second), "no dropout, no batch statistics"
    first.sum().backward()
    assert x.grad.abs().sum() > 0, "a gradient passes through"
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_bad_input_is_named():
    loss = AttentionMatchingLoss()
    x, y = features(8, (2, 3, 4, 4), (2, 3, 5, 4))
    for student, teacher, word in (
        ([x], [y], r"block 0.*\(2, 3, 4, 4\).*\(2, 3, 5, 4\)"),
        ([x, x], [x], "2, 1"),
        ([], [], "at least one"),
        ([x[0]], [x[0]], r"\(B, C, h, w\)|block 0"),
    ):
        with pytest.raises(FoveateError, match=word):
            loss(student, teacher)
    with pytest.raises(FoveateError, match="indicator"):
        AttentionMatchingLoss(indicator=[True])([x, x], [x, x])
    for make in (
        lambda: AttentionMatchingLoss("l1"),
        lambda: AttentionMatchingLoss(reduce="none"),
        lambda: AttentionMatchingLoss(eps=0),
        lambda: LogitKD(0),
        lambda: LogitKD()(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: LogitKD()(torch.ones(3), torch.ones(3)),
    ):
        with pytest.raises(FoveateError):
            make()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_temperatures_and_eps_are_finite(bad):
    """With an infinite temperature the loss was NaN."""
    for make in (
        lambda: LogitKD(bad),
        lambda: StatLoss(eps=bad),
        lambda: AttentionMatchingLoss(eps=bad),
    ):
        with pytest.raises(FoveateError, match="finite"):
            make()
