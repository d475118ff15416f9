"""A memory bank with many views per image, consistent logits, and merging of near duplicates.

*Instance discrimination* (Wu et al., CVPR 2018): every image is a class of its own. The bank M
holds one unit vector per image, and for a feature v = f(x_i), |v| = 1,

    s = M v / tau,    L_inst = -log softmax(s)_i,    dL/dv = M^T (softmax(s) - e_i) / tau
    after the step:   M_i <- normalise( m M_i + (1 - m) v )          M itself has no gradient

The three changes of "Improving Memory Banks for Unsupervised Learning with Large Mini-Batch,
Consistency and Hard Negative Mining" (ICASSP 2021, arXiv 2102.04442):

*Large mini-batch.* An image enters K times with independent augmentations; all K features have the
one target, and the bank takes their mean, once per step: a steadier estimate of the image. K = 1 is
the method above, bit for bit.

*Consistency.* The logits of the views of an image are pulled together, with no negatives in it:

    L_cons = mean over images and pairs k != l of d(s^k, s^l),      L = L_inst + weight L_cons
    kl     KL(p^k || p^l) + KL(p^l || p^k) of the softmaxes
    l2     mean over slots of (s^k - s^l)^2 = (v^k - v^l)^T (M^T M / S) (v^k - v^l) / tau^2
    cos    1 - v^k . v^l

l2 needs no logits, only a D x D matrix. Sums over pairs are computed as sums over views, with the
means a and b: sum_{k,l} (a_k - a_l)(b_k - b_l) = 2 K sum_k (a_k - a)(b_k - b). Every d is symmetric
and every ordered pair counts, so stopping the gradient at one side of a pair would halve it and do
nothing else: halve `weight` instead.

*Hard negative mining.* Now and then, slots that are each other's nearest neighbour and extremely
similar become one slot, `MemoryBank.merge`: their images then attract where they repelled.

The vanilla bank and its settings are from the code of the baselines, the three changes from the
abstract; their formulas are our decision (no code of the paper was found).

>>> bank = MemoryBank(50_000, 128)
>>> objective = InstanceDiscriminationLoss(bank, weight=0.1)
>>> loss = objective(views, idx)  # (B, K, D) unit vectors, (B,)  # doctest: +SKIP
>>> loss.total.backward(); optimizer.step(); bank.update(idx, views)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.neighbours import mutual_neighbours

__all__ = ["BankLoss", "InstanceDiscriminationLoss", "MemoryBank", "MergeReport"]

Consistency = Literal["kl", "l2", "cos"] | Callable[[Tensor, float], Tensor]

_BLOCK = 1 << 15  # rows that are moved or initialised at a time
_TOLERANCE = 1e-2  # of a unit vector's length: bfloat16 has 3 digits


@dataclass(frozen=True)
class MergeReport:
    """What one round of merging did.

    Attributes
    ----------
    slots_before, pairs
        Slots before the round, and how many pairs of them were merged: as many fewer are left.
    theta
        Smallest similarity of a merged pair; NaN when there was none.
    joined
        Pairs of *images* that came to share a slot.
    same
        How many of these are of one class; NaN when no labels were given.
    """

    slots_before: int
    pairs: int
    theta: float
    joined: int
    same: float

    @property
    def purity(self) -> float:
        """``same / joined``; NaN when not known."""
        return self.same / self.joined if self.joined else math.nan


class MemoryBank(nn.Module):
    """One unit vector for every image or, after merging, for every group of images.

    All state is in buffers of fixed size, so that ``load_state_dict`` works on a new bank whatever
    was merged before, and in tensors only, so that safetensors can hold it. The bank is allocated
    once and changed in place: an update touches the rows of its batch, a merge moves rows block by
    block.

    Parameters
    ----------
    n
        Number of images.
    dim
        D, length of a feature.
    momentum
        m in [0, 1): how much of the old vector stays in an update.
    tau
        Temperature of the logits, above 0: 0.1 on CIFAR, 0.07 on larger sets.
    generator
        Of the first vectors, uniform in every coordinate and then normalised.

    Attributes
    ----------
    memory
        ``(n, dim)`` float32: the slots, then zeros.
    assign
        ``(n,)`` int64: slot of every image.
    sizes
        ``(n,)`` int64: images of every slot, then zeros.
    history
        One `MergeReport` for each round.

    Raises
    ------
    FoveateError
        A size is below 1 or a setting out of range.
    """

    memory: Tensor
    assign: Tensor
    sizes: Tensor

    def __init__(
        self,
        n: int,
        dim: int,
        momentum: float = 0.5,
        tau: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(n, dim) < 1 or not 0 <= momentum < 1 or not 0 < tau < math.inf:
            raise FoveateError(
                "MemoryBank expects n and dim of at least 1, momentum in [0, 1) and tau above 0, "
                f"got {n=}, {dim=}, {momentum=}, {tau=}"
            )
        self.momentum, self.tau = momentum, tau
        self.register_buffer("memory", torch.empty(n, dim))
        self.register_buffer("assign", torch.arange(n))
        self.register_buffer("sizes", torch.ones(n, dtype=torch.long))
        bound = 1 / math.sqrt(dim / 3)
        for rows in torch.split(self.memory, _BLOCK):  # views: no second bank beside it
            rows.uniform_(-bound, bound, generator=generator)
            rows.copy_(F.normalize(rows, dim=1))
        self._slots = n
        self.history: list[MergeReport] = []

    @property
    def slots(self) -> int:
        """S, the number of slots: n before merging."""
        return self._slots

    @property
    def rows(self) -> Tensor:
        """``(S, D)``, a view of the slots in `memory`."""
        return self.memory[: self._slots]

    def logits(self, v: Tensor) -> Tensor:
        """``M v / tau``: ``(..., D) -> (..., S)``; the gradient reaches v only."""
        return (v.float() @ self.rows.T).div_(self.tau)

    @torch.no_grad()
    def update(self, idx: Tensor, views: Tensor) -> None:
        """Move the slots of a batch towards its features, once, after the optimiser's step.

        Views of an image are averaged first, then images that share a slot (also an image that
        occurs twice), in the order of the batch: the same on every device.

        Parameters
        ----------
        idx
            ``(B,)`` numbers of images.
        views
            ``(B, K, D)`` or ``(B, D)``, unit vectors.

        Raises
        ------
        FoveateError
            As in the loss, or a feature is no finite unit vector. The bank stays as it was.
        """
        views = views.detach().float()
        views = views[:, None] if views.ndim == 2 else views
        self._check(idx, views)
        lengths = torch.linalg.vector_norm(views, dim=2)
        if not bool(((lengths - 1).abs() < _TOLERANCE).all()):  # false for NaN, too
            raise FoveateError(
                "MemoryBank.update expects finite unit vectors, got features of length "
                f"{float(lengths.min()):g} to {float(lengths.max()):g}; normalise the encoder's "
                "output, and look for divergence if there are NaN"
            )
        # A mean of one is left alone, to the last bit: normalising again would round again.
        v = views[:, 0] if views.shape[1] == 1 else F.normalize(views.mean(1), dim=1)
        slots, place, counts = torch.unique(
            self.assign[idx], return_inverse=True, return_counts=True
        )
        v = _sums(v, place, counts)
        v = torch.where((counts > 1)[:, None], F.normalize(v, dim=1), v)
        moved = self.momentum * self.memory[slots] + (1 - self.momentum) * v
        gone = torch.linalg.vector_norm(moved, dim=1, keepdim=True) < 1e-6  # opposites cancel
        moved = torch.where(gone, self.memory[slots], F.normalize(moved, dim=1))
        self.memory.index_copy_(0, slots, moved)

    def _check(self, idx: Tensor, views: Tensor) -> None:
        n, dim = self.memory.shape
        fits = views.ndim == 3 and 0 not in views.shape and views.shape[2] == dim
        if not fits or idx.shape != views.shape[:1] or idx.dtype != torch.long:
            raise FoveateError(
                f"a bank of {n} x {dim} expects image numbers (B,) int64 and features "
                f"(B, K, {dim}), got {idx.dtype} {tuple(idx.shape)} and {tuple(views.shape)}"
            )
        low, high = (int(x) for x in idx.aminmax())
        if low < 0 or high >= n:
            raise FoveateError(
                f"the bank has images 0 to {n - 1}, got numbers from {low} to {high}; let the data "
                "set give the index of every image"
            )

    # -------------------------------------------------------------------------- merging

    @torch.no_grad()
    def merge(
        self,
        max_fraction: float = 0.05,
        theta: float = 0.7,
        cap: int = 8,
        exclude_large: bool = False,
        labels: Tensor | None = None,
    ) -> MergeReport:
        """Merge mutual nearest neighbours, the most similar pairs first.

        The new slot, the normalised sum of both vectors weighted by their sizes, takes the lower of
        both numbers, and the slots above move down: in place, without a second bank.

        Parameters
        ----------
        max_fraction
            At most this share of the slots disappears in the round.
        theta
            Least cosine similarity of a pair.
        cap
            Largest number of images in a slot; a pair beyond it is not merged.
        exclude_large
            Leave slots that have `cap` images out of the search, so that their neighbours can
            pair with others; otherwise a full slot blocks whom it is nearest to.
        labels
            ``(n,)`` class of every image, *for the report only*.

        Raises
        ------
        FoveateError
            A setting is out of range or the labels do not fit.
        """
        if not 0 < max_fraction <= 1 or not 0 <= theta <= 1 or cap < 2:
            raise FoveateError(
                "merge expects max_fraction in (0, 1], theta in [0, 1] and a cap of at least 2, "
                f"got {max_fraction=}, {theta=}, {cap=}"
            )
        if labels is not None and labels.shape != self.assign.shape:
            raise FoveateError(
                f"merge expects a label for each of {len(self.assign)} images, got "
                f"{tuple(labels.shape)}"
            )
        before, sizes = self._slots, self.sizes[: self._slots]
        full = sizes >= cap if exclude_large else None
        first, second, similarity = mutual_neighbours(self.rows, skip=full)
        good = (similarity >= theta) & (sizes[first] + sizes[second] <= cap)
        best = good.nonzero()[:, 0][: math.floor(max_fraction * before + 1e-9)]
        first, second = first[best], second[best]
        least = float(similarity[best[-1]]) if len(best) else math.nan
        joined = int((sizes[first] * sizes[second]).sum())
        same = math.nan if labels is None else self._same(first, second, labels)
        self._join(first, second)
        self.history.append(MergeReport(before, len(first), least, joined, same))
        return self.history[-1]

    def _same(self, first: Tensor, second: Tensor, labels: Tensor) -> float:
        """How many pairs of images that will share a slot are of one class."""
        members: dict[int, list[int]] = {}
        touched = torch.zeros_like(self.sizes, dtype=torch.bool)
        touched[first] = touched[second] = True
        images = touched[self.assign].nonzero()[:, 0].cpu()
        slots = self.assign.cpu()[images].tolist()
        for slot, label in zip(slots, labels.cpu()[images].tolist(), strict=True):
            members.setdefault(slot, []).append(label)
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        return float(sum(members[a].count(label) for a, b in pairs for label in members[b]))

    def _join(self, first: Tensor, second: Tensor) -> None:
        """Put `second` into `first` (lower numbers) and close the gaps, in place."""
        for a, b in zip(torch.split(first, _BLOCK), torch.split(second, _BLOCK), strict=True):
            summed = self.sizes[a, None] * self.memory[a] + self.sizes[b, None] * self.memory[b]
            self.memory[a] = F.normalize(summed, dim=1)
        self.sizes[first] += self.sizes[second]
        keep = torch.ones(self._slots, dtype=torch.bool, device=self.memory.device)
        keep[second] = False
        place = keep.cumsum(0) - 1  # where a slot that stays goes to
        place[second] = place[first]
        self.assign.copy_(place[self.assign])
        kept = keep.nonzero()[:, 0]
        for start in range(0, len(kept), _BLOCK):  # forwards: a row never moves up
            source = kept[start : start + _BLOCK]
            self.memory[start : start + len(source)] = self.memory[source]
            self.sizes[start : start + len(source)] = self.sizes[source]
        self.memory[len(kept) :] = 0
        self.sizes[len(kept) :] = 0
        self._slots = len(kept)

    # -------------------------------------------------------------------------- state

    def get_extra_state(self) -> Tensor:
        """`history` as ``(rounds, 5)`` float64."""
        fields = [[r.slots_before, r.pairs, r.theta, r.joined, r.same] for r in self.history]
        return torch.tensor(fields, dtype=torch.float64).reshape(-1, 5)

    def set_extra_state(self, state: Any) -> None:
        """Take the history back."""
        self.history = [
            MergeReport(int(slots), int(pairs), theta, int(joined), same)
            for slots, pairs, theta, joined, same in state.tolist()
        ]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse, before anything is changed, a state that no bank of this size can have."""
        parts = [state_dict.get(prefix + name) for name in ("memory", "assign", "sizes")]
        past = state_dict.get(prefix + "_extra_state", torch.empty(0, 5))
        tensors, slots = [part for part in parts if isinstance(part, Tensor)], self._slots
        if len(tensors) == len(parts):
            slots = self._slots_of(*tensors)
        fits = isinstance(past, Tensor) and past.shape[1:] == (5,)
        if not fits or not past[:, [0, 1, 3]].isfinite().all():
            raise FoveateError("the saved history of merges is damaged; save the bank again")
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]
        self._slots = slots

    def _slots_of(self, memory: Tensor, assign: Tensor, sizes: Tensor) -> int:
        n, dim = self.memory.shape
        if memory.shape != (n, dim) or assign.shape != (n,) or sizes.shape != (n,):
            raise FoveateError(
                f"the saved bank is of {tuple(memory.shape)} where {(n, dim)} was expected; make "
                "the bank for the data set and the encoder that it was saved with"
            )
        slots = int((sizes > 0).sum())
        sound = (
            assign.dtype == sizes.dtype == torch.long
            and int(assign.min()) >= 0
            and int(assign.max()) < slots
            and torch.equal(assign.bincount(minlength=n), sizes)
            and all(
                bool(((torch.linalg.vector_norm(x, dim=1) - 1).abs() < _TOLERANCE).all())
                for x in torch.split(memory[:slots], _BLOCK)
            )
        )
        if not sound:
            raise FoveateError("the saved bank is damaged: its parts do not agree; save it again")
        return slots


class BankLoss(NamedTuple):
    """What one step costs; `total` is the one to call ``backward`` on, the rest are its parts."""

    total: Tensor
    inst: Tensor
    cons: Tensor


class InstanceDiscriminationLoss(nn.Module):
    """``L_inst + weight * L_cons`` of K views per image against a bank.

    Parameters
    ----------
    bank
        Not changed here: call its `update` after the optimiser's step. (Before ``backward``,
        autograd would refuse: the bank is needed for the gradient.)
    weight
        Of the consistency; may be changed from step to step (it should start at 0: l2 is smallest
        for an encoder that has collapsed).
    consistency
        ``kl``, ``l2`` or ``cos`` as above, None for none, or a function of the views
        ``(B, K, D)`` and tau that gives a scalar.
    n_negatives
        None: softmax over all slots, for up to about 10^5. Else that many slots, drawn uniformly
        and anew for each batch and used by all of it, stand for all others: ``log((S - 1) / m)``
        is added to their logits, so that the sum of the softmax is right in expectation; the
        target itself, where it was drawn, is not its own negative.
    generator
        Of the drawn slots.

    Raises
    ------
    FoveateError
        A setting is out of range.
    """

    def __init__(
        self,
        bank: MemoryBank,
        weight: float = 0.1,
        consistency: Consistency | None = "kl",
        n_negatives: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if consistency not in ("kl", "l2", "cos", None) and not callable(consistency):
            raise FoveateError(
                f"consistency is 'kl', 'l2', 'cos', None or a function, got {consistency!r}"
            )
        if not 0 <= weight < math.inf or (n_negatives is not None and n_negatives < 1):
            raise FoveateError(
                "InstanceDiscriminationLoss expects weight >= 0 and n_negatives of at least 1 or "
                f"None, got {weight=} and {n_negatives=}"
            )
        self.bank, self.weight, self.consistency = bank, weight, consistency
        self.n_negatives, self.generator = n_negatives, generator

    def forward(self, views: Tensor, idx: Tensor) -> BankLoss:
        """Loss of one batch.

        Parameters
        ----------
        views
            ``(B, K, D)``, unit vectors with gradient. With K = 1 `total` is `inst`.
        idx
            ``(B,)`` int64, numbers of the images.

        Raises
        ------
        FoveateError
            Shapes do not fit or an image's number is not in the bank.
        """
        self.bank._check(idx, views)
        count, rows, target = views.shape[1], self.bank.rows, self.bank.assign[idx]
        if self.n_negatives is None:
            logits = self.bank.logits(views.flatten(0, 1))
            label = target.repeat_interleave(count)
        else:
            where = idx.device if self.generator is None else self.generator.device
            size = (self.n_negatives,)
            drawn = torch.randint(self.bank.slots, size, generator=self.generator, device=where)
            drawn = drawn.to(idx.device)
            rows = self.bank.memory[drawn]
            logits = _sampled_logits(self.bank, views, target, drawn).flatten(0, 1)
            label = torch.zeros(len(logits), dtype=torch.long, device=idx.device)
        log_p = F.log_softmax(logits, dim=1)
        inst = F.nll_loss(log_p, label)
        if count == 1 or self.consistency is None:
            return BankLoss(inst, inst, inst.new_zeros(()))
        if self.consistency == "kl":
            log_p = log_p.view(len(views), count, -1)
            # KL + KL = sum (p - q)(log p - log q); the means of p drop out of the sum over views
            apart = (log_p.exp() * (log_p - log_p.mean(1, keepdim=True))).sum()
            cons = 2 * apart / (len(views) * (count - 1))
        elif self.consistency == "l2":
            moments = rows.T @ rows / (len(rows) * self.bank.tau**2)
            cons = _covariance(views.float() @ moments, views.float())
        elif self.consistency == "cos":
            cons = _covariance(views.float(), views.float()) / 2  # |a - b|^2 = 2 - 2 cos
        else:
            cons = self.consistency(views.float(), self.bank.tau)
        return BankLoss(inst + self.weight * cons, inst, cons)


def _sums(v: Tensor, place: Tensor, counts: Tensor) -> Tensor:
    """Sum of the rows of v at each place, added in the order of the batch on any device."""
    order = place.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    total = v[order[starts]]
    for turn in range(1, int(counts.max())):
        more = (counts > turn).nonzero()[:, 0]
        total[more] += v[order[starts[more] + turn]]
    return total


def _sampled_logits(bank: MemoryBank, views: Tensor, target: Tensor, drawn: Tensor) -> Tensor:
    """``(B, K, 1 + m)``: the target's logit, then those of the drawn slots, corrected."""
    views = views.float()
    own = (views @ bank.memory[target][:, :, None]) / bank.tau
    others = (views @ bank.memory[drawn].T) / bank.tau
    hit = drawn == target[:, None]
    left = (len(drawn) - hit.sum(1)).clamp_min(1)
    others = others + (max(bank.slots - 1, 1) / left).log()[:, None, None]
    # Not -inf: consistency takes differences. exp(-10^4) is 0 as well.
    others = others.masked_fill(hit[:, None], -1e4)
    return torch.cat((own, others), 2)


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over images and ordered pairs k != l of ``(a_k - a_l) . (b_k - b_l)``; (B, K, N)."""
    size, count = a.shape[:2]
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 2 * (a * b).sum() / (size * (count - 1))
