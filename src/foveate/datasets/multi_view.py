"""Several views of every picture, and its index: what learning without labels is fed with.

Instance discrimination, and every method that compares views of one picture, needs K random views
of a sample together, and methods with a memory per sample need to know *which* sample it is,
however the loader shuffles. Labels are left behind here: they cannot enter the training.

`MultiViewDataset` wraps any data set for a ``torch.utils.data.DataLoader``. `MultiViewBatches` is
for pictures that lie in memory: it cuts whole batches and varies them in one go, on the device of
the pictures, which is many times faster for small pictures.

>>> for views, index in MultiViewBatches(pictures, augment, views=4, batch=128, seed=0):
...     views.shape  # (128, 4, 3, 32, 32)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from foveate.errors import FoveateError

__all__ = ["MultiViewBatches", "MultiViewDataset"]


class _Sized(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class MultiViewDataset(Dataset[tuple[Tensor, int]]):
    """``(K views, index)`` of any data set.

    Parameters
    ----------
    dataset
        Has a length; an item is a picture, or a tuple or list whose first part is one.
    transform
        A random view of the picture as a tensor; called K times. All views have one shape.
    views
        K, at least 1.

    Raises
    ------
    FoveateError
        There are no samples or fewer than one view is asked for, or, on access, the views of a
        picture differ in shape.
    """

    def __init__(self, dataset: _Sized, transform: Callable[[Any], Tensor], views: int = 2) -> None:
        if len(dataset) < 1 or views < 1:
            raise FoveateError(
                "MultiViewDataset expects at least one sample and one view, got "
                f"{len(dataset)} and {views}"
            )
        self.dataset, self.transform, self.views = dataset, transform, views

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """``(K, ...)`` and the index, 0 to N - 1 also when counted from the end."""
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} samples")
        item = self.dataset[place]
        picture = item[0] if isinstance(item, (tuple, list)) else item
        views = [self.transform(picture) for _ in range(self.views)]
        if not all(isinstance(view, Tensor) for view in views):
            raise FoveateError(
                f"a view of sample {place} is of type {type(views[0]).__name__}; a transform must "
                "end in a tensor"
            )
        if any(view.shape != views[0].shape for view in views):
            raise FoveateError(
                f"views of sample {place} have the shapes {[tuple(v.shape) for v in views]}; "
                "a transform must end in one size"
            )
        return torch.stack(views), place


class MultiViewBatches:
    """Shuffled batches of views of pictures in memory; one pass is one epoch.

    Order and variation come from `seed` and the number of the epoch alone, each from a generator of
    its own: runs with other K see the pictures in the same order, and a run that is resumed at
    `epoch` goes on as if it had not stopped.

    Parameters
    ----------
    pictures
        ``(N, C, H, W)`` uint8, or floats in [0, 1].
    transform
        ``(pictures (B * K, C, H, W) in [0, 1], generator) -> views``, with its own draw for every
        sample, as those of `foveate.learning.augmentation`.
    views
        K, at least 1.
    batch
        Pictures of a batch (of all processes together).
    seed
        Of order and variation.
    shuffle
        False: pictures in their order.
    drop_last
        Leave out the pictures that fill no batch.
    rank, world
        Number of this process and of all: each takes its part of every batch (`drop_last` only).

    Attributes
    ----------
    epoch
        Number of the next epoch, 0 at first; each pass adds one when it starts.

    Raises
    ------
    FoveateError
        Pictures or settings are not as above.
    """

    def __init__(
        self,
        pictures: Tensor,
        transform: Callable[[Tensor, Generator | None], Tensor],
        views: int = 2,
        batch: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if pictures.ndim != 4 or not (
            pictures.dtype == torch.uint8 or pictures.is_floating_point()
        ):
            raise FoveateError(
                "MultiViewBatches expects pictures (N, C, H, W), uint8 or floats, got "
                f"{pictures.dtype} {tuple(pictures.shape)}"
            )
        if min(views, batch) < 1 or seed < 0 or not 0 <= rank < world or batch % world:
            raise FoveateError(
                "MultiViewBatches expects views and batch of at least 1, seed of at least 0, and a "
                f"batch that the processes can share, got {views=}, {batch=}, {seed=}, {rank=}, "
                f"{world=}"
            )
        if len(pictures) < (batch if drop_last else 1) or (world > 1 and not drop_last):
            raise FoveateError(
                f"{len(pictures)} pictures do not fill one batch of {batch}; give more pictures, "
                "a smaller batch or, in a single process, drop_last=False"
            )
        self.pictures, self.transform, self.views = pictures, transform, views
        self.batch, self.seed, self.shuffle, self.drop_last = batch, seed, shuffle, drop_last
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.pictures), self.batch)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Views ``(B, K, C, H, W)`` float and indices ``(B,)`` int64."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        count, device = len(self.pictures), self.pictures.device
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=_generator(self.seed, epoch, 0))
        vary = _generator(self.seed, epoch, 1 + self.rank)
        share = self.batch // self.world
        for number in range(len(self)):
            start = number * self.batch + self.rank * share
            index = order[start : start + share].to(device)
            x = self.pictures[index]
            x = x.float() / 255 if x.dtype == torch.uint8 else x
            views = self.transform(x.repeat_interleave(self.views, 0), vary)
            if views.ndim < 1 or len(views) != len(x) * self.views:
                raise FoveateError(
                    f"the transform made {tuple(views.shape)} of {len(x) * self.views} pictures; "
                    "it must give one view of each"
                )
            yield views.view(len(index), self.views, *views.shape[1:]), index


def _generator(*key: int) -> Generator:
    """A generator of its own for every key; numpy promises to keep what SeedSequence makes."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
