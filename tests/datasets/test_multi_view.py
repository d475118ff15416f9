"""Views and indices: whatever the order, an index names the picture that its views come from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from foveate.datasets.multi_view import MultiViewBatches, MultiViewDataset
from foveate.errors import FoveateError


class Numbered:
    """Picture k is filled with k; its label must never come out."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 2, 2), float(index)), -7


def noisy(picture: torch.Tensor) -> torch.Tensor:
    return picture + 0.4 * torch.rand(())


def keep(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return x


def noisy_batch(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return x + 1e-3 * torch.rand(len(x), 1, 1, 1, generator=generator)


def numbered(count: int) -> torch.Tensor:
    """``(N, 1, 1, 2)`` uint8: the number in two digits of base 256."""
    n = torch.arange(count)
    return torch.stack((n // 256, n % 256), 1).to(torch.uint8)[:, None, None]


def number_of(x: torch.Tensor) -> torch.Tensor:
    """Back from ``(..., 1, 1, 2)`` in [0, 1]."""
    digits = (255 * x).round().long()[..., 0, 0, :]
    return 256 * digits[..., 0] + digits[..., 1]


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(1, 12),
    views=st.integers(1, 4),
    batch=st.integers(1, 5),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_a_loader_keeps_index_and_picture_together(count, views, batch, shuffle, drop_last):
    """Line 6 of the method's list: shuffled or not, last batch dropped or not."""
    loader = DataLoader(
        MultiViewDataset(Numbered(count), noisy, views), batch, shuffle, drop_last=drop_last
    )
    seen = []
    for x, index in loader:
        assert x.shape == (len(index), views, 1, 2, 2)
        assert index.dtype == torch.long
        assert torch.equal(x.floor().long().amax((2, 3, 4)), index[:, None].expand(-1, views))
        seen += index.tolist()
    whole = count - count % batch if drop_last else count
    assert len(seen) == len(set(seen)) == whole
    if not shuffle:
        assert seen == list(range(whole))


def test_views_differ_and_labels_stay_behind():
    """Line 9: nothing but views and an index comes out."""
    views, index = MultiViewDataset(Numbered(5), noisy, 3)[3]
    assert len(torch.unique(views)) == 3
    assert index == 3
    views, index = MultiViewDataset([torch.zeros(2), torch.ones(2)], noisy, 2)[-1]
    assert index == 1
    assert bool((views >= 1).all())


def test_an_index_outside_ends_the_loop():
    data = MultiViewDataset(Numbered(3), noisy)
    for wrong in (3, -4):
        with pytest.raises(IndexError, match="a data set of 3 samples"):
            data[wrong]
    assert [index for _, index in data] == [0, 1, 2]


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 600),
    views=st.integers(1, 3),
    batch=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batches_keep_index_and_picture_together(count, views, batch, shuffle, drop_last, seed):
    """Line 6, for pictures in memory."""
    if count < batch and drop_last:
        return
    batches = MultiViewBatches(numbered(count), keep, views, batch, seed, shuffle, drop_last)
    seen, steps = [], 0
    for x, index in batches:
        assert x.shape == (len(index), views, 1, 1, 2)
        assert torch.equal(number_of(x), index[:, None].expand(-1, views))
        seen += index.tolist()
        steps += 1
    assert steps == len(batches)
    assert len(seen) == len(set(seen)) == (count - count % batch if drop_last else count)
    if not shuffle:
        assert seen == list(range(len(seen)))


def test_order_is_that_of_seed_and_epoch_whatever_the_number_of_views():
    def orders(views: int, seed: int = 0, epoch: int = 0) -> list[list[int]]:
        batches = MultiViewBatches(numbered(40), noisy_batch, views, 8, seed)
        batches.epoch = epoch
        return [[int(i) for _, index in batches for i in index] for _ in range(2)]

    first, second = orders(1)
    assert orders(4) == [first, second]
    assert first != second
    assert orders(1, seed=1)[0] != first
    assert orders(2, epoch=1)[0] == second


def test_views_differ_and_a_resumed_run_sees_the_same():
    def epochs(batches: MultiViewBatches, count: int) -> list[torch.Tensor]:
        return [torch.cat([x for x, _ in batches]) for _ in range(count)]

    whole = epochs(MultiViewBatches(numbered(40), noisy_batch, 2, 8, 3), 3)
    assert bool((whole[0][:, 0] != whole[0][:, 1]).any())
    ordered = epochs(MultiViewBatches(numbered(40), noisy_batch, 2, 8, 3, shuffle=False), 2)
    assert bool((ordered[0] != ordered[1]).any())  # another variation in every epoch
    resumed = MultiViewBatches(numbered(40), noisy_batch, 2, 8, 3)
    resumed.epoch = 2
    assert torch.equal(epochs(resumed, 1)[0], whole[2])
    state = torch.get_rng_state()
    epochs(resumed, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_share_every_batch():
    whole = [index for _, index in MultiViewBatches(numbered(50), keep, 1, 8, 0)]
    parts = [
        [index for _, index in MultiViewBatches(numbered(50), keep, 1, 8, 0, rank=r, world=2)]
        for r in range(2)
    ]
    assert [torch.cat(pair).tolist() for pair in zip(*parts, strict=True)] == [
        index.tolist() for index in whole
    ]
    one, other = (
        next(iter(MultiViewBatches(numbered(50) * 0, noisy_batch, 1, 8, 0, rank=r, world=2)))[0]
        for r in range(2)
    )
    assert not torch.equal(one, other)  # each draws its own variation


def test_floats_are_taken_as_they_are():
    x = torch.rand(4, 3, 2, 2)
    views, index = next(iter(MultiViewBatches(x, keep, 1, 4)))
    assert torch.equal(views[:, 0], x[index])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MultiViewDataset([], noisy), "at least one sample"),
        (lambda: MultiViewDataset(Numbered(2), noisy, 0), "one view"),
        (lambda: MultiViewBatches(numbered(4)[:, 0], keep, batch=2), r"\(N, C, H, W\)"),
        (lambda: MultiViewBatches(numbered(4).long(), keep, batch=2), "uint8 or floats"),
        (lambda: MultiViewBatches(numbered(4), keep, 0, 2), "views and batch"),
        (lambda: MultiViewBatches(numbered(4), keep, 1, 0), "views and batch"),
        (lambda: MultiViewBatches(numbered(4), keep, 1, 3, world=2), "can share"),
        (lambda: MultiViewBatches(numbered(4), keep, 1, 2, rank=2, world=2), "can share"),
        (lambda: MultiViewBatches(numbered(4), keep, 1, 5), "do not fill one batch of 5"),
        (lambda: MultiViewBatches(numbered(0), keep, 1, 5, drop_last=False), "do not fill"),
        (lambda: MultiViewBatches(numbered(4), keep, 1, 2, drop_last=False, world=2), "single"),
    ],
)
def test_bad_input_is_one_sentence(make, said):
    with pytest.raises(FoveateError, match=said):
        make()


def test_a_transform_that_gives_something_else_is_named():
    with pytest.raises(FoveateError, match="sample 1 is of type list"):
        MultiViewDataset(Numbered(3), lambda x: x.tolist())[1]
    with pytest.raises(FoveateError, match=r"made \(3, 1, 1, 2\) of 4 pictures"):
        next(iter(MultiViewBatches(numbered(4), lambda x, generator: x[1:], 2, 2)))


def test_views_of_different_sizes_are_named():
    sizes = iter((2, 3))
    data = MultiViewDataset(Numbered(2), lambda picture: torch.zeros(next(sizes)))
    with pytest.raises(FoveateError, match="views of sample 1 have the shapes"):
        data[1]
