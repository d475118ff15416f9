"""Random crops of labelled pictures: the same ones for everybody who asks with the same seed.

The k-th crop depends on the seed and on k alone, so arms of an experiment see equal crops in equal
order, whatever the number of processes that read them. Every picture comes once before any comes
again. A crop may be enlarged or mirrored before it is taken; where a picture is too small, its mean
lies beyond its edge, and void in the labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from foveate.errors import FoveateError

__all__ = ["VOID", "LabelledPictures", "PicturesInMemory", "RandomCrops", "Renumbered"]

VOID = 255

Pair = tuple[Tensor, Tensor]


class LabelledPictures(Protocol):
    """Items are a picture ``(C, H, W)``, uint8 or float, and labels int64 ``(H, W)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


@dataclass(frozen=True)
class PicturesInMemory:
    """Pictures of one size.

    Attributes
    ----------
    pictures
        ``(N, C, H, W)`` uint8 or float32.
    labels
        ``(N, H, W)`` uint8; `VOID` does not count.

    Raises
    ------
    FoveateError
        The arrays do not belong together, or there is none.
    """

    pictures: npt.NDArray[np.generic]
    labels: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        fits = self.pictures.ndim == 4 and len(self.pictures) and self.labels.ndim == 3
        same = (len(self.pictures), *self.pictures.shape[2:]) == self.labels.shape
        if not fits or not same or self.labels.dtype != np.uint8:
            raise FoveateError(
                "labelled pictures are (N, C, H, W) with labels uint8 (N, H, W), got "
                f"{self.pictures.shape} and {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Pair:
        return torch.from_numpy(self.pictures[index]), torch.from_numpy(self.labels[index]).long()


@dataclass(frozen=True)
class Renumbered:
    """The first `count` of `source`, with `shift` taken off its labels; below 0 is void."""

    source: LabelledPictures
    shift: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        picture, labels = self.source[index]
        labels = labels - self.shift * (labels != VOID)
        return picture, torch.where(labels < 0, VOID, labels)


class RandomCrops(Dataset[Pair]):
    """Normalised crops ``(C, side, side)`` float32 with labels int64 ``(side, side)``.

    Parameters
    ----------
    source
        Labelled pictures.
    side
        Of the square crops.
    count
        How many crops there are.
    seed
        Decides all of them.
    average, spread
        ``(C,)``: taken off every channel, and what it is divided by then.
    scales
        Least and greatest enlargement, drawn in steps of 0.25.
    mirror
        Whether half of the crops are mirrored left to right.
    """

    def __init__(
        self,
        source: LabelledPictures,
        side: int,
        count: int,
        seed: int,
        average: Tensor,
        spread: Tensor,
        scales: tuple[float, float] = (1.0, 1.0),
        mirror: bool = True,
    ) -> None:
        if min(side, count, len(source)) < 1 or not 0 < scales[0] <= scales[1] <= 64:
            raise FoveateError(
                "RandomCrops expects pictures, a positive side and count, and scales that rise, "
                f"got {len(source)} pictures, {side=}, {count=}, {scales=}"
            )
        self.source, self.side, self.count, self.seed = source, side, count, seed
        self.average, self.spread = average[:, None, None], spread[:, None, None]
        self.scales, self.mirror = scales, mirror
        rng = np.random.default_rng((seed, 0))
        passes = math.ceil(count / len(source))
        self.order = np.concatenate([rng.permutation(len(source)) for _ in range(passes)])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.count:
            raise IndexError(index)
        side = self.side
        rng = np.random.default_rng((self.seed, 1, index))
        picture, labels = self.source[int(self.order[index])]
        x = (picture.float() - self.average) / self.spread
        low, high = self.scales
        if low < high:
            factor = low + 0.25 * int(rng.integers(int((high - low) / 0.25) + 1))
            size = [max(1, round(factor * s)) for s in labels.shape]
            x = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]
            labels = F.interpolate(labels[None, None].float(), size=size)[0, 0].long()
        below, right = (max(0, side - s) for s in labels.shape)
        if below or right:
            x = F.pad(x, (0, right, 0, below))
            labels = F.pad(labels, (0, right, 0, below), value=VOID)
        top, left = (int(rng.integers(s - side + 1)) for s in labels.shape)
        x = x[:, top : top + side, left : left + side]
        labels = labels[top : top + side, left : left + side]
        if self.mirror and rng.random() < 0.5:
            x, labels = x.flip(-1), labels.flip(-1)
        return x.contiguous(), labels.contiguous()
