"""Masked attention regularisation against brute force, and every claim of its specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.masked_attention import (
    MaskedAttentionRegularizer,
    attention_consistency,
    erase_clip,
    flip,
    standardise,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).pow(2).mean()


class Camera(nn.Module):
    """The smallest network with a prediction and a map: one 3x3 filter over every frame."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)
        self.calls: list[Tensor] = []

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(clip)
        grey = clip.mean(1)
        frames = grey.reshape(-1, 1, *grey.shape[-2:])
        seen = torch.conv2d(frames, self.kernel[None, None], padding=1).view(grey.shape)
        return seen.mean((-2, -1)), seen


SYMMETRIC = torch.tensor([[1.0, 2.0, 1.0], [0.5, -3.0, 0.5], [0.0, 1.0, 0.0]])
LEANING = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.5, -1.0]])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    frames=st.integers(1, 4),
    height=st.integers(12, 40),
    width=st.integers(12, 40),
)
def test_erased_region_is_one_rectangle_the_same_in_every_frame(seed, batch, frames, height, width):
    clip = torch.rand(batch, 3, frames, height, width, generator=seeded(seed)) + 1.0
    before = clip.clone()
    erased = erase_clip(clip, p=1.0, generator=seeded(seed))
    assert torch.equal(clip, before)
    for sample, original in zip(erased, clip, strict=True):
        hit = (sample != original).numpy()
        assert (hit == hit[0, 0]).all(), "the rectangle must not change with channel or frame"
        rows, columns = np.nonzero(hit[0, 0])
        if not len(rows):
            continue  # no drawn rectangle fitted
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert hit[0, 0].sum() == h * w, "not a filled rectangle"
        assert (sample[:, :, hit[0, 0]] == 0).all()
        # Rounding moves each side by at most half a pixel.
        assert (h - 0.5) * (w - 0.5) <= 0.25 * height * width
        assert (h + 0.5) * (w + 0.5) >= 0.02 * height * width
        assert (h + 0.5) / (w - 0.5) >= 0.3
        assert (h - 0.5) / (w + 0.5) <= 3.3


def test_erased_area_and_probability_follow_their_laws():
    clip = torch.ones(1, 1, 1, 100, 100)
    generator = seeded(3)
    areas = np.array([1 - erase_clip(clip, generator=generator).mean().item() for _ in range(1500)])
    assert abs((areas > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(1500)
    erased = areas[areas > 0]
    # U(.02, .25): mean .135, standard deviation .0664
    assert abs(erased.mean() - 0.135) < 4 * 0.0664 / math.sqrt(len(erased))
    assert abs(erased.std() - 0.0664) < 0.006


def test_erase_uses_the_given_generator_only():
    clip = torch.rand(4, 3, 2, 24, 24)
    torch.manual_seed(1)
    first = erase_clip(clip, generator=seeded(5))
    torch.manual_seed(2)
    assert torch.equal(first, erase_clip(clip, generator=seeded(5)))


def test_erase_names_the_shape_it_cannot_take():
    with pytest.raises(FoveateError, match=r"\(3, 8, 8\)"):
        erase_clip(torch.zeros(3, 8, 8))


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.05, 20), offset=st.floats(-5, 5), seed=st.integers(0, 10_000))
def test_consistency_does_not_see_scale_or_offset(scale, offset, seed):
    """A network that shrinks its features gains nothing (scale 0.1 is the specified test)."""
    a, b = torch.randn(2, 3, 5, 6, 6, generator=seeded(seed), dtype=torch.float64)
    reference = attention_consistency(a, b)
    assert attention_consistency(scale * a + offset, scale * b + offset).item() == pytest.approx(
        reference.item(), rel=1e-3
    )
    assert attention_consistency(0.1 * a, 0.1 * b).item() == pytest.approx(
        reference.item(), rel=1e-4
    )


def test_consistency_equals_its_definition_by_brute_force():
    a, b = torch.randn(2, 2, 3, 4, 5, generator=seeded(1), dtype=torch.float64)
    total = 0.0
    for n in range(2):
        one, two = a[n].numpy(), b[n].numpy()
        one, two = ((m - m.mean()) / (m.std() + 1e-6) for m in (one, two))
        for t in range(3):
            for i in range(4):
                for j in range(5):
                    total += (one[t, i, j] - two[t, i, 4 - j]) ** 2
    assert attention_consistency(a, b).item() == pytest.approx(total / (2 * 3 * 4 * 5), rel=1e-12)


def test_flip_is_undone_before_comparing():
    a = torch.randn(2, 4, 6, 6, generator=seeded(2))
    assert attention_consistency(a, flip(a)).item() == pytest.approx(0, abs=1e-10)
    assert attention_consistency(a, a).item() > 0.1  # the same map unmirrored is *wrong*


def test_mirror_symmetric_network_has_no_loss_and_a_leaning_one_has():
    clip = torch.rand(3, 3, 4, 12, 12, generator=seeded(4))
    target = torch.zeros(3, 4)
    for kernel, fits in ((SYMMETRIC, True), (LEANING, False)):
        loss = MaskedAttentionRegularizer()(Camera(kernel), clip, target, mse, seeded(0))
        assert (loss.consistency.item() < 1e-10) == fits


def test_both_views_carry_the_same_rectangle_and_share_one_forward():
    clip = torch.rand(4, 3, 5, 20, 20, generator=seeded(5)) + 1
    net = Camera(SYMMETRIC)
    regularizer = MaskedAttentionRegularizer(p=1.0)
    regularizer(net, clip, torch.zeros(4, 5), mse, seeded(0))
    (seen,) = net.calls
    assert seen.shape == (8, 3, 5, 20, 20)
    assert torch.equal(seen[4:], torch.flip(seen[:4], (-1,)))
    assert (seen[:4] == 0).any()
    assert torch.equal(seen[:4][seen[:4] != 0], clip[seen[:4] != 0])


def test_independent_masks_differ():
    clip = torch.ones(4, 3, 5, 20, 20)
    views = MaskedAttentionRegularizer(p=1.0, masks="independent").views(clip, seeded(0))
    assert not torch.equal(views[4:], flip(views[:4]))
    assert all((view == 0).any() for view in views)


def test_total_is_the_weighted_sum_and_zero_lam_is_plain_augmentation():
    clip = torch.rand(2, 3, 4, 12, 12, generator=seeded(6))
    target = torch.rand(2, 4, generator=seeded(7))
    for lam, temporal in ((0.0, 0.0), (0.5, 0.0), (5.0, 0.3)):
        net = Camera(LEANING)
        loss = MaskedAttentionRegularizer(lam, temporal=temporal)(net, clip, target, mse, seeded(0))
        views = net.calls[0]
        (first, maps1), (second, maps2) = net(views[:2]), net(views[2:])
        fit = (mse(first, target) + mse(second, target)) / 2
        assert loss.supervised.item() == pytest.approx(fit.item(), rel=1e-5)
        maps = standardise(torch.cat((maps1, maps2)))
        steps = (maps[:, 1:] - maps[:, :-1]).pow(2).mean().item()
        expected = fit.item() + lam * loss.consistency.item() + temporal * steps
        assert loss.total.item() == pytest.approx(expected, rel=1e-5)
        gradient = torch.autograd.grad(loss.total, net.kernel, retain_graph=True)[0]
        plain = torch.autograd.grad(fit, net.kernel)[0]
        assert torch.allclose(gradient, plain, rtol=1e-4, atol=1e-6) == (lam == 0)


def test_label_loss_on_the_first_view_only_when_asked():
    clip = torch.rand(2, 3, 4, 12, 12, generator=seeded(8))
    target = torch.rand(2, 4, generator=seeded(9))
    net = Camera(LEANING)
    loss = MaskedAttentionRegularizer(reg_on="first")(net, clip, target, mse, seeded(0))
    first, _ = net(net.calls[0][:2])
    assert loss.supervised.item() == pytest.approx(mse(first, target).item(), rel=1e-6)


def test_training_on_the_consistency_alone_makes_the_network_symmetric():
    """It works as a regulariser: a leaning filter turns into its mirror-symmetric part."""
    torch.manual_seed(0)
    net = Camera(LEANING.clone() + SYMMETRIC)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    regularizer = MaskedAttentionRegularizer(lam=1.0)
    generator = seeded(0)
    for _ in range(150):
        clip = torch.rand(4, 1, 1, 10, 10, generator=generator)
        loss = regularizer(net, clip, torch.zeros(4, 1), lambda y, s: 0 * y.sum(), generator)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    kernel = net.kernel.detach()
    assert (kernel - flip(kernel)).abs().max() < 0.1 * kernel.abs().max()


def test_a_dead_map_gives_finite_gradients():
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_consistency(maps, flip(maps)).backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_works_on_pictures_too():
    class Still(Camera):
        def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
            prediction, maps = super().forward(clip[:, :, None])
            return prediction, maps[:, 0]

    pictures = torch.rand(3, 3, 16, 16, generator=seeded(1))
    loss = MaskedAttentionRegularizer()(Still(SYMMETRIC), pictures, torch.zeros(3, 1), mse)
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize(
    "wrong",
    [{"lam": -1.0}, {"erase": (0.3, 0.2)}, {"erase": (0.0, 0.2)}, {"p": 1.5}, {"masks": "both"}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(FoveateError):
        MaskedAttentionRegularizer(**wrong)


def test_maps_of_different_shape_are_refused():
    with pytest.raises(FoveateError, match=r"\(2, 3, 4, 4\).*\(2, 3, 4, 5\)"):
        attention_consistency(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5))
