"""The bank against scalar references; "line N" is a line of the method's list of faithfulness."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate.errors import FoveateError
from foveate.learning import memory_bank
from foveate.learning.memory_bank import InstanceDiscriminationLoss, MemoryBank

TAU = 0.1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


def a_bank(n: int = 20, dim: int = 6, seed: int = 0, **settings_) -> MemoryBank:
    return MemoryBank(n, dim, tau=TAU, generator=seeded(seed), **settings_)


def set_rows(bank: MemoryBank, rows: torch.Tensor) -> MemoryBank:
    bank.memory.copy_(F.normalize(rows, dim=1))
    return bank


def lengths(bank: MemoryBank) -> torch.Tensor:
    return bank.rows.double().norm(dim=1)


def unit_np(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


# --- the vanilla bank ----------------------------------------------------------------------


def test_first_rows_are_random_unit_vectors_of_the_generator():
    bank = MemoryBank(5000, 16, generator=seeded(3))
    assert torch.allclose(lengths(bank), torch.ones(5000, dtype=torch.double), atol=1e-6)
    assert float(bank.rows.mean(0).abs().max()) < 0.02
    assert torch.allclose(bank.rows.T @ bank.rows / 5000, torch.eye(16) / 16, atol=5e-3)
    assert torch.equal(bank.memory, MemoryBank(5000, 16, generator=seeded(3)).memory)
    assert bank.assign.tolist() == list(range(5000))
    assert bank.sizes.tolist() == [1] * 5000


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999),
    n=st.integers(2, 12),
    dim=st.integers(1, 5),
    views=st.integers(1, 4),
    batch=st.integers(1, 5),
)
def test_loss_is_minus_log_softmax_over_all_slots(seed, n, dim, views, batch):
    """Line 2, and line 3: the views of an image have one target."""
    bank = a_bank(n, dim, seed)
    v = unit(seed + 1, batch, views, dim)
    idx = torch.randint(n, (batch,), generator=seeded(seed))
    loss = InstanceDiscriminationLoss(bank, consistency=None)(v, idx)
    memory = bank.memory.double().numpy()
    expected = [
        -scipy.special.log_softmax(memory @ v[b, k].double().numpy() / TAU)[int(idx[b])]
        for b in range(batch)
        for k in range(views)
    ]
    assert loss.inst.item() == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-5)
    assert loss.total is loss.inst
    assert loss.cons == 0


def test_gradient_is_the_closed_form_and_none_reaches_the_bank():
    """Line 1: dL/dv = M^T (p - e_i) / tau, and the bank is a constant."""
    bank = a_bank()
    v = unit(1, 1, 1, 6).requires_grad_()
    InstanceDiscriminationLoss(bank)(v, torch.tensor([7])).total.backward()
    p = torch.softmax(bank.memory @ v.detach()[0, 0] / TAU, 0)
    p[7] -= 1
    assert torch.allclose(v.grad[0, 0], bank.memory.T @ p / TAU, atol=1e-4)
    assert list(bank.parameters()) == []
    assert not bank.memory.requires_grad
    assert bank.memory.grad is None


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    idx=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    views=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    merged=st.booleans(),
)
def test_update_image_by_image(seed, idx, views, momentum, merged):
    """Lines 1 and 7: mean of the views, then of the images of a slot, one step per slot."""
    bank = a_bank(8, 5, seed, momentum=momentum)
    if merged:
        bank.merge(max_fraction=1, theta=0)
    before, assign = bank.memory.double().numpy().copy(), bank.assign.tolist()
    v = unit(seed + 1, len(idx), views, 5)
    bank.update(torch.tensor(idx), v)
    expected = before.copy()
    of_slot: dict[int, list[np.ndarray]] = {}
    for b, image in enumerate(idx):
        mean = unit_np(v[b].double().numpy().mean(0))
        of_slot.setdefault(assign[image], []).append(mean)
    for slot, means in of_slot.items():
        moved = momentum * before[slot] + (1 - momentum) * unit_np(np.mean(means, axis=0))
        expected[slot] = unit_np(moved)
    assert np.allclose(bank.memory.double().numpy(), expected, atol=1e-5)
    assert torch.allclose(lengths(bank), torch.ones(bank.slots, dtype=torch.double), atol=1e-5)


def test_shared_slots_are_bitwise_the_same_every_time():
    """Line 7: no order of addition is left to chance; the order of the batch decides."""
    banks = [a_bank(4, 64) for _ in range(3)]
    idx = torch.tensor([1, 3, 1, 1, 3, 0, 1])
    v = unit(5, 7, 2, 64)
    for bank in banks:
        bank.update(idx, v)
    assert all(torch.equal(bank.memory, banks[0].memory) for bank in banks)
    turned = a_bank(4, 64)
    turned.update(idx.flip(0), v.flip(0))
    assert torch.allclose(turned.memory, banks[0].memory, atol=1e-6)


def test_update_comes_after_backward():
    """Line 1: autograd itself refuses a bank that was changed before the gradient."""
    bank = a_bank()
    v = unit(1, 2, 2, 6).requires_grad_()
    idx = torch.tensor([0, 1])
    loss = InstanceDiscriminationLoss(bank)(v, idx)
    bank.update(idx, v)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.total.backward()


def test_one_view_is_the_vanilla_method_bit_for_bit():
    """Line 3: the textbook loop and ours end in the same bits, whatever `consistency` is."""

    def network() -> nn.Module:
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def descend(net: nn.Module, loss: torch.Tensor) -> None:
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(0.1 * parameter.grad)

    x = torch.randn(40, 10, generator=seeded(0))
    orders = [torch.randperm(40, generator=seeded(epoch)).split(8) for epoch in range(3)]

    vanilla, memory = network(), a_bank(40, 16).memory
    for order in orders:
        for i in order:
            v = F.normalize(vanilla(x[i]), dim=1)
            descend(vanilla, F.cross_entropy(v @ memory.T / TAU, i))
            with torch.no_grad():
                memory[i] = F.normalize(0.5 * memory[i] + 0.5 * v, dim=1)

    for kind in ("kl", "l2", "cos", None):
        ours, bank = network(), a_bank(40, 16)
        objective = InstanceDiscriminationLoss(bank, weight=1.0, consistency=kind)
        for order in orders:
            for i in order:
                v = F.normalize(ours(x[i]), dim=1)[:, None]
                descend(ours, objective(v, i).total)
                bank.update(i, v)
        assert torch.equal(bank.memory, memory)
        for a, b in zip(ours.state_dict().values(), vanilla.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_many_views_make_one_update_and_a_steadier_one():
    """Noisy views of one vector: with more of them the bank comes nearer to it."""
    truth, apart = unit(0, 1, 32), []
    for count in (1, 16):
        bank = MemoryBank(1, 32, momentum=0.0, generator=seeded(1))
        noise = torch.randn(1, count, 32, generator=seeded(2))
        bank.update(torch.tensor([0]), F.normalize(truth[:, None] + 0.2 * noise, dim=2))
        apart.append(float((bank.memory - truth).norm()))
    assert apart[1] < apart[0] / 2


# --- sampled softmax -----------------------------------------------------------------------


def test_sampled_softmax_is_right_in_expectation():
    """Line 2, the documented sampling: over all draws the mean of the sum is the full sum."""
    bank, v = a_bank(7, 4), unit(1, 1, 1, 4)
    full = torch.exp(bank.memory.double() @ v[0, 0].double() / TAU)
    target = torch.tensor([2])
    sums = []
    for one in range(7):
        for other in range(7):
            drawn = torch.tensor([one, other])
            s = memory_bank._sampled_logits(bank, v, target, drawn)[0, 0].double().exp()
            assert s[0] == pytest.approx(full[2].item(), rel=1e-4)
            if one == other == 2:
                assert s[1:].sum() == 0  # the target is not its own negative
            else:
                sums.append(float(s[1:].sum()))
    assert np.mean(sums) == pytest.approx(float(full.sum() - full[2]), rel=1e-4)


@pytest.mark.parametrize("kind", ["kl", "l2", "cos"])
def test_many_samples_come_near_the_full_loss(kind):
    bank, v, idx = a_bank(30, 8), unit(1, 4, 3, 8), torch.tensor([3, 9, 9, 20])
    full = InstanceDiscriminationLoss(bank, 1.0, kind)(v, idx)
    some = InstanceDiscriminationLoss(bank, 1.0, kind, n_negatives=40_000, generator=seeded(0))
    sampled = some(v, idx)
    assert sampled.inst.item() == pytest.approx(full.inst.item(), rel=0.02)
    assert sampled.cons.item() == pytest.approx(full.cons.item(), rel=0.05)
    few = InstanceDiscriminationLoss(bank, 1.0, kind, n_negatives=3, generator=seeded(0))
    v.requires_grad_()
    few(v, idx).total.backward()
    assert bool(torch.isfinite(v.grad).all())
    assert not torch.equal(few(v, idx).total, few(v, idx).total)  # drawn anew


# --- consistency ---------------------------------------------------------------------------


def naive(kind: str, memory: np.ndarray, v: np.ndarray) -> float:
    """All ordered pairs of views, with all N logits, in float64."""
    found = []
    for of_image in v:
        s = of_image @ memory.T / TAU
        log_p = scipy.special.log_softmax(s, axis=1)
        for k in range(len(s)):
            for other in range(len(s)):
                if k == other:
                    continue
                p, q = np.exp(log_p[k]), np.exp(log_p[other])
                found.append(
                    {
                        "l2": np.mean((s[k] - s[other]) ** 2),
                        "cos": 1 - of_image[k] @ of_image[other],
                        "kl": scipy.special.rel_entr(p, q).sum()
                        + scipy.special.rel_entr(q, p).sum(),
                    }[kind]
                )
    return float(np.mean(found))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    n=st.integers(2, 30),
    views=st.integers(2, 5),
    batch=st.integers(1, 4),
    kind=st.sampled_from(["kl", "l2", "cos"]),
)
def test_consistency_equals_the_naive_form(seed, n, views, batch, kind):
    """Line 4: the D x D form (and the others) is that of all pairs and all N logits."""
    bank, v = a_bank(n, 7, seed), unit(seed + 1, batch, views, 7)
    loss = InstanceDiscriminationLoss(bank, 0.3, kind)(v, torch.zeros(batch, dtype=torch.long))
    expected = naive(kind, bank.memory.double().numpy(), v.double().numpy())
    assert loss.cons.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert loss.total.item() == pytest.approx(loss.inst.item() + 0.3 * loss.cons.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["kl", "l2", "cos"])
def test_consistency_has_no_negatives(kind):
    """Line 4: the others of the batch do not matter, and it is 0 where views agree."""
    bank, v = a_bank(), unit(1, 4, 3, 6).requires_grad_()
    objective = InstanceDiscriminationLoss(bank, 1.0, kind)
    idx = torch.arange(4)
    together = objective(v, idx).cons
    alone = [objective(v[i : i + 1], idx[i : i + 1]).cons for i in range(4)]
    assert together.item() == pytest.approx(sum(x.item() for x in alone) / 4, rel=1e-5)
    (grad,) = torch.autograd.grad(alone[2], v)
    assert float(grad[2].abs().max()) > 0
    assert float(grad[[0, 1, 3]].abs().max()) == 0
    agreed = unit(2, 4, 1, 6).expand(4, 3, 6)
    assert objective(agreed, idx).cons.item() == pytest.approx(0, abs=1e-5)


def test_stopping_the_gradient_at_one_side_only_halves_it():
    """Why there is no switch for it: all d are symmetric and both orders of a pair count."""
    memory, v = a_bank().memory, unit(1, 1, 3, 6)
    grads = []
    for stop in (False, True):
        x = v.clone().requires_grad_()
        s = torch.log_softmax(x[0] @ memory.T / TAU, 1)
        total = 0.0
        for k in range(3):
            for other in range(3):
                q = s[other].detach() if stop else s[other]
                total = total + ((s[k].exp() - q.exp()) * (s[k] - q)).sum()
        grads.append(torch.autograd.grad(total, x)[0])
    assert torch.allclose(grads[0], 2 * grads[1], rtol=1e-4, atol=1e-4)


def test_a_function_of_your_own_is_a_consistency():
    bank, v = a_bank(), unit(1, 2, 2, 6)
    own = InstanceDiscriminationLoss(bank, 2.0, lambda views, tau: views.sum() * tau)
    loss = own(v, torch.tensor([0, 1]))
    assert loss.cons.item() == pytest.approx(float(v.sum()) * TAU, rel=1e-5)


# --- merging -------------------------------------------------------------------------------


def merged_by_hand(rows, sizes, max_fraction, theta, cap, exclude):
    """Pairs, from the whole matrix of similarities, one slot after the other."""
    s = rows.astype(np.float64) @ rows.astype(np.float64).T
    np.fill_diagonal(s, -np.inf)
    if exclude:
        full = sizes >= cap
        s[full] = s[:, full] = -np.inf
    nearest = s.argmax(1)  # the first of equal ones
    pairs = [
        (i, int(j))
        for i, j in enumerate(nearest)
        if nearest[j] == i and i < j and s[i, j] >= theta and sizes[i] + sizes[j] <= cap
    ]
    pairs.sort(key=lambda pair: -s[pair])
    return pairs[: int(max_fraction * len(rows) + 1e-9)]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 9999),
    n=st.integers(2, 24),
    max_fraction=st.sampled_from([0.1, 0.3, 1.0]),
    theta=st.sampled_from([0.0, 0.5, 0.9]),
    cap=st.sampled_from([2, 3, 8]),
    exclude=st.booleans(),
    rounds=st.integers(1, 3),
)
def test_merge_by_hand(seed, n, max_fraction, theta, cap, exclude, rounds):
    """Line 5: mutual neighbours only, most similar first, few per round; all state follows."""
    bank = set_rows(a_bank(n, 4), torch.randn(n, 4, generator=seeded(seed)))
    for _ in range(rounds):
        rows = bank.rows.double().numpy().copy()
        sizes, assign = bank.sizes[: bank.slots].numpy().copy(), bank.assign.tolist()
        pairs = merged_by_hand(rows, sizes, max_fraction, theta, cap, exclude)
        report = bank.merge(max_fraction, theta, cap, exclude)
        assert report.pairs == len(pairs) <= max_fraction * len(rows) + 1e-9
        assert report.slots_before == len(rows)
        assert bank.slots == len(rows) - len(pairs)
        assert report.joined == sum(sizes[i] * sizes[j] for i, j in pairs)
        if pairs:
            lowest = min(rows[i] @ rows[j] for i, j in pairs)
            assert report.theta == pytest.approx(lowest, abs=1e-5)
        else:
            assert math.isnan(report.theta)
        # Slots as sets of images, each with its vector.
        groups = [
            {image for image in range(n) if assign[image] == slot} for slot in range(len(rows))
        ]
        gone = {j for _, j in pairs}
        partner = dict(pairs)
        expected = []
        for slot in range(len(rows)):
            if slot in gone:
                continue
            members, vector = groups[slot], rows[slot]
            if slot in partner:
                j = partner[slot]
                members = members | groups[j]
                vector = unit_np(sizes[slot] * rows[slot] + sizes[j] * rows[j])
            expected.append((members, vector))
        found = [{i for i in range(n) if int(bank.assign[i]) == slot} for slot in range(bank.slots)]
        assert found == [members for members, _ in expected]
        assert bank.sizes.tolist() == [len(m) for m in found] + [0] * (n - bank.slots)
        assert np.allclose(bank.rows.numpy(), [v for _, v in expected], atol=1e-5)
        assert not bank.memory[bank.slots :].any()
    assert len(bank.history) == rounds


def test_merged_images_attract_where_they_repelled():
    """Line 5: one slot, one target, one logit less."""
    rows = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 1.0, 0], [0, 0, 0.2, 1.0]])
    bank = set_rows(MemoryBank(4, 4, tau=1.0), rows)
    v = F.normalize(rows[:1], dim=1)[None].requires_grad_()
    aside = torch.tensor([0, 1.0, 0, 0])  # from image 0 to image 1, on the sphere
    objective = InstanceDiscriminationLoss(bank, consistency=None)

    def pull() -> float:
        """How much a step would move image 0 towards image 1."""
        (grad,) = torch.autograd.grad(objective(v, torch.tensor([0])).total, v)
        return float(-grad[0, 0] @ aside)

    assert pull() < 0
    report = bank.merge(max_fraction=0.25)
    assert report.pairs == 1
    assert bank.assign.tolist() == [0, 0, 1, 2]
    assert bank.logits(v).shape == (1, 1, 3)
    assert pull() > 0
    bank.update(torch.tensor([1]), F.normalize(rows[1:2], dim=1))  # moves the slot of both
    assert torch.equal(bank.memory[bank.assign[0]], bank.memory[bank.assign[1]])


def test_one_sided_neighbours_and_full_slots_do_not_merge():
    """0 - 1 - 2 on a line: 1 is nearest to both, but its own nearest is 0."""
    angles = torch.tensor([0.0, 0.10, 0.25, 2.0])
    rows = torch.stack((angles.cos(), angles.sin()), 1)
    bank = set_rows(a_bank(4, 2), rows)
    bank.merge(max_fraction=1, theta=0.7, cap=2)
    assert bank.assign.tolist() == [0, 0, 1, 2]
    kept = copy.deepcopy(bank)
    assert bank.merge(max_fraction=1, theta=0.7, cap=2).pairs == 0  # 3 would be too many
    assert kept.merge(max_fraction=1, theta=0.7, cap=3).pairs == 1
    assert bank.merge(max_fraction=1, theta=0.0, cap=2, exclude_large=True).pairs == 0  # cos < 0
    assert bank.merge(max_fraction=0.05, theta=0.0).pairs == 0  # 5 % of 3 slots is none


def test_labels_are_for_the_report_only():
    """Line 9: with labels, other labels or none the bank is the same; purity counts image pairs."""
    rows = torch.randn(40, 3, generator=seeded(0))
    banks = [set_rows(a_bank(40, 3), rows) for _ in range(3)]
    classes = torch.arange(40) % 3
    for labels, bank in zip((None, classes, classes.flip(0)), banks, strict=True):
        for _ in range(3):
            before = bank.assign.tolist()
            report = bank.merge(max_fraction=0.3, theta=0.0, labels=labels)
            new = [
                (i, j)
                for i in range(40)
                for j in range(i)
                if bank.assign[i] == bank.assign[j] and before[i] != before[j]
            ]
            assert report.joined == len(new) > 0
            if labels is None:
                assert math.isnan(report.purity)
            else:
                assert report.same == sum(bool(labels[i] == labels[j]) for i, j in new)
                assert report.purity == report.same / report.joined
    for bank in banks[1:]:
        assert torch.equal(bank.memory, banks[0].memory)
        assert torch.equal(bank.assign, banks[0].assign)


# --- resuming ------------------------------------------------------------------------------


def train(bank: MemoryBank, epochs: range) -> None:
    for epoch in epochs:
        if epoch % 2:
            bank.merge(max_fraction=0.2, theta=0.0)
        bank.update(torch.randperm(20, generator=seeded(epoch))[:8], unit(epoch, 8, 2, 6))


def test_a_run_goes_on_from_its_state_after_merges(tmp_path):
    """Line 8: bank, assignment, sizes and history come back, through safetensors, not pickle."""
    whole, first = a_bank(), a_bank()
    train(whole, range(6))
    train(first, range(4))
    assert first.slots < 20
    save_file(first.state_dict(), tmp_path / "bank.safetensors")
    second = a_bank(seed=9)
    address = second.memory.data_ptr()
    second.load_state_dict(load_file(tmp_path / "bank.safetensors"))
    assert second.memory.data_ptr() == address
    assert second.slots == first.slots
    assert str(second.history) == str(first.history)  # NaN is not equal to itself
    train(second, range(4, 6))
    for name in ("memory", "assign", "sizes"):
        assert torch.equal(getattr(second, name), getattr(whole, name))
    assert str(second.history) == str(whole.history)
    objective = InstanceDiscriminationLoss(second)
    assert set(objective.state_dict()) == {f"bank.{name}" for name in second.state_dict()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("memory", lambda x: 2 * x),
        ("memory", lambda x: x * float("nan")),
        ("memory", lambda x: x[:-1]),
        ("assign", lambda x: x + 1),
        ("assign", lambda x: x * 0),
        ("assign", lambda x: -x),
        ("sizes", lambda x: x.flip(0)),
        ("sizes", lambda x: x.float()),
        ("_extra_state", lambda x: x[:, :2]),
        ("_extra_state", lambda x: x * float("inf")),
        ("_extra_state", lambda x: None),
        ("_extra_state", lambda x: x.tolist()),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name, change):
    source, bank = a_bank(), a_bank(seed=1)
    source.merge(max_fraction=0.2, theta=0.0)
    state = {key: value.clone() for key, value in source.state_dict().items()}
    state[name] = change(state[name])
    before = bank.memory.clone()
    with pytest.raises(FoveateError):
        bank.load_state_dict(state)
    assert torch.equal(bank.memory, before)
    assert bank.slots == 20


# --- no copy -------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Bytes of every storage that an operation brings into being."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            x.untyped_storage().data_ptr()
            for x in tree_leaves((args, kwargs or {}))
            if isinstance(x, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.sizes.append(x.untyped_storage().nbytes())
        return made


def test_the_counter_of_allocations_counts():
    x = torch.zeros(1000)
    with Allocations() as made:
        x.add_(1)
        _ = x[10:]
        assert made.sizes == []
        _ = x + 1
    assert made.sizes == [4000]


def test_an_update_makes_no_copy_of_the_bank():
    """10 MB of bank, 32 x 2 features of 16 KB: all that an update allocates is of the batch."""
    bank, v = a_bank(40_000, 64), unit(0, 32, 2, 64)
    idx = torch.randint(40_000, (32,), generator=seeded(0))
    address, bank_bytes = bank.memory.data_ptr(), bank.memory.nbytes
    with Allocations() as made:
        bank.update(idx, v)
    assert bank.memory.data_ptr() == address
    assert sum(made.sizes) < 20 * v.nbytes < bank_bytes / 20
    with Allocations() as made:
        loss = InstanceDiscriminationLoss(bank, 0.1, "kl", n_negatives=64, generator=seeded(0))
        loss(v.requires_grad_(), idx).total.backward()
    assert sum(made.sizes) < 40 * v.nbytes < bank_bytes / 10
    with Allocations() as made:  # the matrix of l2 is D x D, and the logits are the largest
        InstanceDiscriminationLoss(bank, 0.1, "l2")(v[:1], idx[:1]).total.backward()
    assert max(made.sizes) == 2 * 40_000 * 4


def test_a_merge_makes_neither_a_copy_nor_a_square_matrix(monkeypatch):
    monkeypatch.setattr(memory_bank, "_BLOCK", 512)
    bank = a_bank(4096, 512)
    address = bank.memory.data_ptr()
    with Allocations() as made:
        report = bank.merge(theta=0.0)
    assert report.pairs > 100
    assert bank.memory.data_ptr() == address
    tile = 1024 * 1024 * 4
    assert max(made.sizes) == tile < bank.memory.nbytes / 1.9 < 4096 * 4096 * 4
    with Allocations() as made:
        a_bank(4096, 512)
    assert sorted(made.sizes)[-1] == bank.memory.nbytes
    assert sorted(made.sizes)[-2] <= bank.memory.nbytes / 4  # the bank itself is the only one


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"dim": 0}, {"momentum": 1.0}, {"momentum": -0.1}, {"tau": 0.0},
              {"tau": float("nan")}],
)  # fmt: skip
def test_banks_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError, match="MemoryBank expects"):
        MemoryBank(**{"n": 4, "dim": 2, **wrong})


def test_bad_batches_are_one_sentence_and_leave_the_bank_alone():
    bank, good = a_bank(), unit(0, 2, 3, 6)
    before, idx = bank.memory.clone(), torch.tensor([0, 1])
    for views, numbers, said in (
        (good * 1.2, idx, "unit vectors"),
        (good * float("nan"), idx, "unit vectors"),
        (good[..., :5], idx, "expects image numbers"),
        (good[:0], idx[:0], "expects image numbers"),
        (good, idx[:1], "expects image numbers"),
        (good, idx.float(), "expects image numbers"),
        (good, idx + 19, "images 0 to 19"),
        (good, idx - 1, "images 0 to 19"),
    ):
        with pytest.raises(FoveateError, match=said):
            bank.update(numbers, views)
        if "unit" not in said:
            with pytest.raises(FoveateError, match=said):
                InstanceDiscriminationLoss(bank)(views, numbers)
    assert torch.equal(bank.memory, before)
    opposite = torch.stack((good[:, 0], -good[:, 0]), 1)
    bank.update(idx, opposite)  # no mean direction: nothing to learn, nothing broken
    assert torch.allclose(bank.memory, before, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"max_fraction": 0}, {"max_fraction": 1.1}, {"theta": -0.1}, {"theta": 1.1},
              {"cap": 1}, {"labels": torch.zeros(3)}],
)  # fmt: skip
def test_merges_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError, match="merge expects"):
        a_bank().merge(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"consistency": "js"}, {"weight": -1.0}, {"weight": float("nan")},
              {"n_negatives": 0}],
)  # fmt: skip
def test_losses_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        InstanceDiscriminationLoss(a_bank(), **wrong)


def test_a_bank_of_one_image_has_nothing_to_tell_apart_or_merge():
    bank = a_bank(1, 6)
    loss = InstanceDiscriminationLoss(bank, n_negatives=2, generator=seeded(0))
    assert loss(unit(0, 1, 2, 6), torch.tensor([0])).total.item() == pytest.approx(0, abs=1e-5)
    assert bank.merge().pairs == 0
