"""Random views of a batch of pictures, drawn for each sample, in plain torch on any device.

The usual set of instance discrimination and contrastive learning: random resized crop, colour
jitter, greyscale, mirroring, normalisation, with torchvision's parameters and meaning, but on a
whole batch ``(B, C, H, W)`` at a time and with an explicit ``torch.Generator``. Every sample has
its own crop, factors and order of the colour changes.

A crop that is resized is a linear map along each axis: with one row of weights per output pixel,

    y = A_rows x A_columns^T,    A[i, j] = max(0, 1 - |j + 1/2 - centre_i| / support),  sum_j A = 1

over the pixels j of the crop, ``centre_i = start + (i + 1/2) scale``, ``scale = crop / output`` and
``support = max(scale, 1)``: bilinear when enlarging, antialiased when shrinking. Two batched matrix
products do the crops of all samples.

Pictures are floats in [0, 1] with 1 or 3 channels until they are normalised. A grey picture has no
hue and no saturation: those changes leave it as it is.

>>> augment = Compose((RandomResizedCrop(32), ColorJitter(), RandomGrayscale(), RandomFlip()))
>>> views = augment(pictures, torch.Generator().manual_seed(0))  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from foveate.errors import FoveateError

__all__ = [
    "Augmentation",
    "ColorJitter",
    "Compose",
    "Normalize",
    "RandomFlip",
    "RandomGrayscale",
    "RandomResizedCrop",
    "adjust_hue",
    "crop_resize",
    "grayscale",
]

Augmentation = Callable[[Tensor, Generator | None], Tensor]

_TRIES = 10  # at a crop that fits, as torchvision


def _check(x: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise FoveateError(
            "an augmentation expects float pictures (B, C, H, W) in [0, 1] with 1 or 3 channels, "
            f"got {x.dtype} {tuple(x.shape)}"
        )


def _uniform(
    shape: tuple[int, ...], low: float, high: float, x: Tensor, generator: Generator | None
) -> Tensor:
    """Uniform numbers on the device of x, drawn on the device of the generator."""
    where = x.device if generator is None else generator.device
    drawn = torch.rand(shape, generator=generator, device=where, dtype=torch.float32)
    return (low + (high - low) * drawn).to(x.device)


def _axis(start: Tensor, length: Tensor, size: int, output: int) -> Tensor:
    """Weights ``(B, output, size)`` that resize ``[start, start + length)`` to `output` pixels."""
    scale = (length / output)[:, None, None]
    at = torch.arange(output, device=start.device, dtype=torch.float32)[None, :, None]
    centre = start[:, None, None] + (at + 0.5) * scale
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp_min(1)).clamp_min(0)
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(2, keepdim=True)


def crop_resize(x: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut one box out of every sample and resize it, antialiased bilinear.

    Parameters
    ----------
    x
        ``(B, C, H, W)`` float.
    boxes
        ``(B, 4)`` whole numbers: top, left, height, width in pixels, inside the picture.
    size
        Height and width of the result.

    Returns
    -------
    Tensor
        ``(B, C, *size)``, of the type of `x`.

    Raises
    ------
    FoveateError
        A shape does not fit or a box is empty or leaves the picture.
    """
    _check(x)
    height, width = x.shape[2:]
    if boxes.shape != (len(x), 4) or min(size) < 1:
        raise FoveateError(
            f"crop_resize expects boxes ({len(x)}, 4) and a size of at least 1, got "
            f"{tuple(boxes.shape)} and {size}"
        )
    top, left, high, wide = boxes.to(x.device, torch.float32).T
    ends = torch.stack((top + high - height, left + wide - width, -top, -left, 1 - high, 1 - wide))
    if not bool((ends <= 0).all()):
        raise FoveateError(
            f"crop_resize expects boxes (top, left, height, width) inside {height} x {width} "
            "pixels; one of them is empty or leaves the picture"
        )
    rows = _axis(top, high, height, size[0]).to(x.dtype)
    columns = _axis(left, wide, width, size[1]).to(x.dtype)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of every picture, resized.

    Attributes
    ----------
    size
        Height and width of the result, or both.
    scale
        Range of the crop's share of the picture's area, in (0, 1]; instance discrimination on CIFAR
        takes 0.2 to 1.
    ratio
        Range of width / height, log-uniform.

    Notes
    -----
    A crop that does not fit is drawn again, ten times; then the middle of the picture is taken, as
    large as `ratio` allows.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if (
            not 0 < self.scale[0] <= self.scale[1] <= 1
            or not 0 < self.ratio[0] <= self.ratio[1] < math.inf
            or min(self._size) < 1
        ):
            raise FoveateError(
                "RandomResizedCrop expects a size of at least 1, 0 < scale[0] <= scale[1] <= 1 and "
                f"0 < ratio[0] <= ratio[1], got {self.size}, {self.scale} and {self.ratio}"
            )

    @property
    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def boxes(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, 4)`` int64: top, left, height and width of a crop of every sample."""
        (height, width), size = x.shape[2:], (len(x), _TRIES)
        area = height * width * _uniform(size, *self.scale, x, generator)
        low, high = (math.log(r) for r in self.ratio)
        ratio = _uniform(size, low, high, x, generator).exp()
        wide, high_ = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide >= 1) & (wide <= width) & (high_ >= 1) & (high_ <= height)
        first = fits.int().argmax(1, keepdim=True)  # the first that fits
        h, w = high_.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
        # None fits: the middle, with the nearest allowed shape.
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        any_fits = fits.any(1)
        h = torch.where(any_fits, h, float(max(1, min(height, round(width / shape)))))
        w = torch.where(any_fits, w, float(max(1, min(width, round(height * shape)))))
        room = torch.stack((height - h, width - w))
        place = _uniform((2, len(x)), 0, 1, x, generator)
        place = torch.where(any_fits, (place * (room + 1)).floor().minimum(room), room // 2)
        return torch.stack((*place, h, w), 1).long()

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] -> ``(B, C, *size)``."""
        _check(x)
        return crop_resize(x, self.boxes(x, generator), self._size)


def grayscale(x: Tensor) -> Tensor:
    """Luma of ITU-R BT.601: ``(B, C, H, W) -> (B, 1, H, W)``."""
    if x.shape[1] == 1:
        return x
    weights = x.new_tensor((0.299, 0.587, 0.114))
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV; saturation and value stay.

    Parameters
    ----------
    x
        ``(B, 3, H, W)`` in [0, 1].
    shift
        ``(B,)``, in turns: 0.5 is the opposite hue.

    Raises
    ------
    FoveateError
        These are no float pictures, or not of 3 channels.
    """
    _check(x)
    if x.shape[1] != 3:
        raise FoveateError(f"adjust_hue expects 3 channels, got {tuple(x.shape)}; grey has no hue")
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    red, green, blue = x.unbind(1)
    span = torch.where(chroma > 0, chroma, torch.ones_like(chroma))  # grey: any hue will do
    hue = torch.where(
        value == red,
        (green - blue) / span,
        torch.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    hue = hue + 6 * shift[:, None, None]
    # channel n of (5, 3, 1): value - chroma * max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6
    k = (hue[:, None] + x.new_tensor((5.0, 3.0, 1.0))[:, None, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in a random order for every sample.

    Attributes
    ----------
    brightness, contrast, saturation
        A factor is drawn from ``[max(0, 1 - a), 1 + a]``: it multiplies the picture, its distance
        to its mean luma, its distance to its greyscale picture. The result is cut to [0, 1].
    hue
        A shift is drawn from ``[-hue, hue]`` turns; at most 0.5.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4

    def __post_init__(self) -> None:
        factors = (self.brightness, self.contrast, self.saturation)
        if not all(0 <= a < math.inf for a in factors) or not 0 <= self.hue <= 0.5:
            raise FoveateError(
                "ColorJitter expects brightness, contrast and saturation of at least 0 and hue in "
                f"[0, 0.5], got {self}"
            )

    def draw(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Factors ``(4, B)`` (the last is the shift of hue) and order ``(B, 4)`` of the changes."""
        ranges = [(max(0.0, 1 - a), 1 + a) for a in (self.brightness, self.contrast)]
        ranges += [(max(0.0, 1 - self.saturation), 1 + self.saturation), (-self.hue, self.hue)]
        factors = torch.stack([_uniform((len(x),), *r, x, generator) for r in ranges])
        order = _uniform((len(x), 4), 0, 1, x, generator).argsort(1)
        return factors, order

    def apply(self, x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
        """Change every sample by its factors in its order."""
        x = x.clone()
        changes = (0, 1) if x.shape[1] == 1 else (0, 1, 2, 3)
        for turn in range(4):
            for change in changes:
                chosen = (order[:, turn] == change).nonzero()[:, 0]
                if len(chosen):
                    x[chosen] = _change(change, x[chosen], factors[change, chosen])
        return x

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, C, H, W)`` in [0, 1], same shape."""
        _check(x)
        return self.apply(x, *self.draw(x, generator))


def _change(change: int, x: Tensor, factor: Tensor) -> Tensor:
    if change == 3:
        return adjust_hue(x, factor.to(x.dtype))
    f = factor.to(x.dtype)[:, None, None, None]
    if change == 0:
        return (f * x).clamp(0, 1)
    other = grayscale(x)
    if change == 1:
        other = other.mean((1, 2, 3), keepdim=True)
    return (f * x + (1 - f) * other).clamp(0, 1)


def _probability(p: float, name: str) -> None:
    if not 0 <= p <= 1:
        raise FoveateError(f"{name} expects a probability in [0, 1], got {p}")


@dataclass(frozen=True)
class RandomGrayscale:
    """Replaces all channels by the luma, in a share `p` of the samples."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _probability(self.p, "RandomGrayscale")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, C, H, W)``, same shape."""
        _check(x)
        chosen = _uniform((len(x), 1, 1, 1), 0, 1, x, generator) < self.p
        return torch.where(chosen, grayscale(x), x)


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors left and right, in a share `p` of the samples."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _probability(self.p, "RandomFlip")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, C, H, W)``, same shape."""
        _check(x)
        chosen = _uniform((len(x), 1, 1, 1), 0, 1, x, generator) < self.p
        return torch.where(chosen, x.flip(3), x)


@dataclass(frozen=True)
class Normalize:
    """``(x - mean) / std``, channel by channel; draws nothing."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            len(self.mean) != len(self.std)
            or not all(map(math.isfinite, self.mean))
            or not all(0 < s < math.inf for s in self.std)
        ):
            raise FoveateError(
                "Normalize expects a finite mean and std above 0 for each channel, got "
                f"{self.mean} and {self.std}"
            )

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, C, H, W)``, same shape."""
        _check(x)
        if x.shape[1] != len(self.mean):
            raise FoveateError(f"Normalize has {len(self.mean)} means for {x.shape[1]} channels")
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        return (x - mean[:, None, None]) / std[:, None, None]


@dataclass(frozen=True)
class Compose:
    """One after the other, all from one generator."""

    steps: tuple[Augmentation, ...]

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Pictures through all steps."""
        for step in self.steps:
            x = step(x, generator)
        return x
