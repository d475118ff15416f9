"""Augmentations against Pillow's resizing, colorsys and scalar arithmetic, sample by sample."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.errors import FoveateError
from foveate.learning.augmentation import (
    ColorJitter,
    Compose,
    Normalize,
    RandomFlip,
    RandomGrayscale,
    RandomResizedCrop,
    adjust_hue,
    crop_resize,
    grayscale,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(seed: int, count: int = 4, side: int = 9, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side + 2, generator=seeded(seed))


ALL = (
    RandomResizedCrop(8),
    ColorJitter(),
    RandomGrayscale(),
    RandomFlip(),
    Compose((RandomResizedCrop((5, 7)), ColorJitter(), RandomFlip())),
)


# --- crops ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    box=st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_a_crop_is_pillows_resizing(seed, box, size):
    """Larger, smaller, stretched: all are Pillow's bilinear picture of the part that was cut."""
    x = pictures(seed, 2)
    top, left, height, width = box
    height, width = min(height, 9 - top), min(width, 11 - left)
    boxes = torch.tensor([[top, left, height, width], [0, 0, 9, 11]])
    found = crop_resize(x, boxes, size)
    for sample, (y, z, h, w) in enumerate(boxes.tolist()):
        for channel in range(3):
            part = Image.fromarray(x[sample, channel, y : y + h, z : z + w].numpy())
            expected = part.resize(size[::-1], Image.Resampling.BILINEAR)
            assert np.allclose(found[sample, channel], np.asarray(expected), atol=1e-5)


def test_boxes_have_the_asked_area_and_shape():
    x = torch.zeros(4000, 3, 64, 64)
    crop = RandomResizedCrop(8, scale=(0.2, 0.6), ratio=(0.5, 2.0))
    top, left, height, width = crop.boxes(x, seeded(0)).double().T
    assert bool((top >= 0).all() and (left >= 0).all())
    assert bool((top + height <= 64).all() and (left + width <= 64).all())
    area, ratio = height * width / 64**2, width / height
    rounding = 1.05
    assert 0.2 / rounding < area.min() < 0.22
    assert 0.55 < area.max() < 0.6 * rounding
    assert 0.5 / rounding < ratio.min() < 0.55
    assert 1.8 < ratio.max() < 2 * rounding
    assert area.mean().item() == pytest.approx(0.4, abs=0.02)  # uniform; few were refused
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.03)  # log-uniform
    for start, room in ((top, 64 - height), (left, 64 - width)):  # every place is as likely
        share = (start / room)[room > 20]
        assert share.mean().item() == pytest.approx(0.5, abs=0.02)
        assert share.min() < 0.02
        assert share.max() > 0.98


def test_where_no_crop_fits_the_middle_is_taken():
    x = torch.zeros(3, 3, 10, 100)
    boxes = RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(0.5, 2.0)).boxes(x, seeded(0))
    assert boxes.tolist() == [[0, 40, 10, 20]] * 3  # width / height is 2 at most
    boxes = RandomResizedCrop(8, scale=(1.0, 1.0)).boxes(x.transpose(2, 3), seeded(0))
    assert boxes.tolist() == [[43, 0, 13, 10]] * 3  # 3 / 4 at least


def test_a_whole_picture_of_the_same_size_is_itself():
    x = pictures(0, side=9)
    crop = RandomResizedCrop((9, 11), scale=(1.0, 1.0), ratio=(11 / 9, 11 / 9))
    assert torch.allclose(crop(x, seeded(0)), x, atol=1e-6)


# --- colours -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), shift=st.floats(-0.5, 0.5), whole=st.booleans())
def test_hue_is_that_of_colorsys(seed, shift, whole):
    x = pictures(seed, 1, 4)
    if whole:
        x = (x * 2).round() / 2  # greys, primary colours, ties of two channels
    found = adjust_hue(x, torch.tensor([shift]))
    for (r, g, b), said in zip(x[0].flatten(1).T.tolist(), found[0].flatten(1).T, strict=True):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
        assert np.allclose(said, expected, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), channels=st.sampled_from([1, 3]))
def test_jitter_by_hand(seed, channels):
    """Every sample with its own factors, one change after the other in its own order."""
    x = pictures(seed, 5, 4, channels)
    jitter = ColorJitter(0.8, 0.9, 1.5, 0.3)
    factors, order = jitter.draw(x, seeded(seed))
    found = jitter.apply(x, factors, order)
    for sample in range(5):
        y = x[sample].double().numpy()
        for change in order[sample].tolist():
            f = float(factors[change, sample])
            luma = np.tensordot([0.299, 0.587, 0.114], y, 1) if channels == 3 else y[0]
            if change == 0:
                y = np.clip(f * y, 0, 1)
            elif change == 1:
                y = np.clip(f * y + (1 - f) * luma.mean(), 0, 1)
            elif channels == 3 and change == 2:
                y = np.clip(f * y + (1 - f) * luma, 0, 1)
            elif channels == 3:
                flat = [
                    colorsys.hsv_to_rgb((h + f) % 1, s, v)
                    for h, s, v in (colorsys.rgb_to_hsv(*p) for p in y.reshape(3, -1).T)
                ]
                y = np.array(flat).T.reshape(y.shape)
        assert np.allclose(found[sample], y, atol=1e-4)


def test_factors_and_orders_are_drawn_as_said():
    x = torch.zeros(6000, 3, 2, 2)
    factors, order = ColorJitter(0.4, 1.5, 0.0, 0.1).draw(x, seeded(0))
    for found, (low, high) in zip(
        factors, ((0.6, 1.4), (0, 2.5), (1, 1), (-0.1, 0.1)), strict=True
    ):
        assert low <= found.min() <= low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) <= found.max() <= high
        assert found.mean().item() == pytest.approx((low + high) / 2, abs=0.03)
    _, counts = torch.unique(order, dim=0, return_counts=True)
    assert len(counts) == math.factorial(4)
    assert counts.min() > 180  # 250 are expected


def test_nothing_changes_without_jitter():
    x = pictures(0)
    assert torch.allclose(ColorJitter(0, 0, 0, 0)(x, seeded(0)), x, atol=1e-6)


def test_grey_is_bt601():
    x = torch.eye(3)[:, :, None, None]
    assert torch.allclose(grayscale(x).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    y = RandomGrayscale(1.0)(pictures(0), seeded(0))
    assert torch.equal(y[:, 0], y[:, 1])
    assert torch.equal(y[:, :1], grayscale(pictures(0)))


# --- chance --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RandomGrayscale, RandomFlip])
def test_a_share_of_the_samples_is_changed(kind):
    x = pictures(0, 1).expand(4000, -1, -1, -1)
    changed = (kind(0.3)(x, seeded(1)) != x).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(kind(0.0)(x, seeded(1)), x)
    assert bool((kind(1.0)(x, seeded(1)) != x).flatten(1).any(1).all())
    assert torch.equal(RandomFlip(1.0)(x), x.flip(3))


@pytest.mark.parametrize("augment", ALL)
def test_samples_vary_and_a_generator_decides_it_all(augment):
    x = pictures(0, 1).expand(32, -1, -1, -1)
    state = torch.get_rng_state()
    first, again, other = (augment(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, pictures(0, 1).expand(32, -1, -1, -1))  # the input is left alone
    assert len(torch.unique(first, dim=0)) > 1
    assert 0 <= first.min() <= first.max() <= 1 + 1e-5
    assert augment(x).shape == first.shape


@pytest.mark.parametrize("augment", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_pictures_and_double_precision(augment, dtype):
    y = augment(pictures(0, 3, channels=1).to(dtype), seeded(0))
    assert y.dtype == dtype
    assert y.shape[:2] == (3, 1)
    assert bool(torch.isfinite(y).all())


def test_normalisation_by_hand():
    x = pictures(0, 2)
    y = Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.5))(x)
    assert torch.allclose(y[:, 1], (x[:, 1] - 0.4) / 0.2, atol=1e-6)
    assert torch.allclose(y[:, 2], (x[:, 2] - 0.3) / 0.5, atol=1e-6)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("augment", [*ALL, Normalize((0.0,) * 3, (1.0,) * 3)])
@pytest.mark.parametrize(
    "x",
    [torch.zeros(3, 8, 8), torch.zeros(2, 2, 8, 8), torch.zeros(0, 3, 8, 8),
     torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
)  # fmt: skip
def test_what_is_no_batch_of_pictures_is_one_sentence(augment, x):
    with pytest.raises(FoveateError, match=r"expects float pictures \(B, C, H, W\)"):
        augment(x, seeded(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop(8, scale=(0.0, 1.0)),
        lambda: RandomResizedCrop(8, scale=(0.5, 1.1)),
        lambda: RandomResizedCrop(8, ratio=(2.0, 1.0)),
        lambda: ColorJitter(brightness=-1),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(contrast=math.nan),
        lambda: adjust_hue(pictures(0, 2, channels=1), torch.zeros(2)),
        lambda: Normalize((math.nan,), (1.0,)),
        lambda: RandomGrayscale(1.1),
        lambda: RandomFlip(-0.1),
        lambda: Normalize((0.0,), (0.0,)),
        lambda: Normalize((0.0, 1.0), (1.0,)),
        lambda: Normalize((0.0,), (1.0,))(pictures(0)),
        lambda: crop_resize(pictures(0), torch.zeros(4, 4), (2, 2)),
        lambda: crop_resize(pictures(0), torch.tensor([[0, 0, 10, 1]] * 4), (2, 2)),
        lambda: crop_resize(pictures(0), torch.tensor([[0, -1, 1, 1]] * 4), (2, 2)),
        lambda: crop_resize(pictures(0), torch.tensor([[0, 0, 1, 1]]), (2, 2)),
        lambda: crop_resize(pictures(0), torch.tensor([[0, 0, 1, 1]] * 4), (0, 2)),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(FoveateError):
        make()
