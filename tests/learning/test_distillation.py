"""Distillation losses against numpy, scipy and the forms of the specification."""

from __future__ import annotations

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
    FrozenTeacher,
    LogitKD,
    attention_map,
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
