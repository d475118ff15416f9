"""Condensation against loops and closed forms written here; names say the checklist's line."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from foveate.errors import FoveateError
from foveate.learning import condensation
from foveate.learning.condensation import (
    CondensedSet,
    DistributionMatching,
    Normalizer,
    auc,
    evaluate,
    image_pool,
    kmeans_rows,
    random_rows,
    train_network,
)
from foveate.learning.privacy import GaussianRelease
from foveate.nn.timeseries import MultiBranchTCN, series_pool

SHAPE = (5, 3)


class Probe(nn.Module):
    """Linear on the flat row, K logits; keeps what it was given."""

    made: list[Probe]

    def __init__(self, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(SHAPE), outputs)
        self.dropout = nn.Dropout(dropout)
        self.calls: list[torch.Tensor] = []
        self.modes: list[bool] = []
        self.masks: list[torch.Tensor] = []
        self.frozen: list[bool] = []
        self.before = self.linear.weight.detach().clone()
        type(self).made.append(self)

    def embed(self, x):
        return 3 * x.flatten(1)

    def forward(self, x):
        self.calls.append(x.detach().clone())
        self.modes.append(self.training)
        self.frozen.append(not any(p.requires_grad for p in self.parameters()))
        self.masks.append(self.dropout(torch.ones(1, 64)))
        return self.linear(x.flatten(1))


class Other(Probe):
    """The second architecture of a pool."""


def some_rows(counts=(6, 4), seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(counts), *SHAPE, generator=generator)
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return x, y


def method(nets=(Probe,), **other) -> DistributionMatching:
    settings = {"ipc": 2, "shape": SHAPE, "lr": 0.1, "iterations": 4, "seed": 7, **other}
    return DistributionMatching(nets, **settings)


def start_of(m: DistributionMatching, x, y) -> torch.Tensor:
    """S before the first step, by a step of no length."""
    return dataclasses.replace(m, lr=1e-30, iterations=1).fit(x, y).x


@pytest.fixture(autouse=True)
def no_probes():
    Probe.made = Other.made = []


def fixed(outputs: int = 1):
    """A network whose weights are the same in every iteration: what a closed form can follow."""

    def make() -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), outputs))
        with torch.no_grad():
            weight = torch.linspace(-1, 1, net[1].weight.numel())
            net[1].weight.copy_(weight.sin().view_as(net[1].weight))
            net[1].bias.fill_(0.2)
        return net

    return make


# --- the loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3])
def test_checklist_3_4_6_steps_are_adam_on_squared_gaps_of_mean_scores(outputs):
    """Per class, mean before square, summed over classes, sigmoid scores; Adam by its formula."""
    x, y = some_rows((6, 4, 3))
    x.requires_grad_()
    m = method((fixed(outputs),), iterations=5)
    s = start_of(m, x, y).double().numpy().reshape(6, -1)
    linear = fixed(outputs)()[1]
    w = linear.weight.detach().double().numpy()
    rows = x.detach().double().numpy().reshape(len(x), -1)

    def score(r):
        return 1 / (1 + np.exp(-(r @ w.T + 0.2)))

    first, second = np.zeros_like(s), np.zeros_like(s)
    for step in range(1, 6):
        gradient = np.zeros_like(s)
        for c in range(3):
            ours = score(s[2 * c : 2 * c + 2])
            gap = ours.mean(0) - score(rows[y.numpy() == c]).mean(0)
            gradient[2 * c : 2 * c + 2] = (2 * gap * ours * (1 - ours) / 2) @ w
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        s = s - 0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    found = m.fit(x, y).x
    np.testing.assert_allclose(found.numpy().reshape(6, -1), s, rtol=1e-4, atol=1e-4)
    assert x.grad is None  # the real branch is detached


def test_match_embedding_takes_what_embed_gives():
    x, y = some_rows()
    m = method((Probe,), match="embedding", iterations=100)
    few = m.fit(x, y)
    for c in (0, 1):  # identity times three: the means themselves must meet
        torch.testing.assert_close(few.x[few.y == c].mean(0), x[y == c].mean(0), atol=0.02, rtol=0)
    assert all(not net.calls for net in Probe.made)
    with pytest.raises(FoveateError, match="needs a method embed, which Sequential lacks"):
        method((fixed(),), match="embedding").fit(x, y)


# --- networks ------------------------------------------------------------------------------


def test_checklist_1_a_new_untrained_network_of_a_random_kind_every_iteration():
    x, y = some_rows((20, 20))
    m = method((Probe, Other), iterations=60, real_batch=4)
    m.fit(x, y)
    used = [net for net in Probe.made if net.calls]
    assert len(used) == 60
    assert len({net.before.numpy().tobytes() for net in used}) == 60
    assert all(torch.equal(net.before, net.linear.weight) for net in used)  # no training of f
    assert all(all(net.frozen) for net in used)
    others = sum(isinstance(net, Other) for net in used)
    assert 14 <= others <= 46  # binomial of 60 and 1/2: mean 30, deviation 3.9
    # Drawn before the real batch: changing how that is drawn leaves all networks as they are.
    Probe.made.clear()
    dataclasses.replace(m, real_batch=9).fit(x, y)
    again = [net for net in Probe.made if net.calls]
    assert [type(net) for net in again] == [type(net) for net in used]
    assert all(torch.equal(a.before, b.before) for a, b in zip(again, used, strict=True))


def test_checklist_2_train_mode_own_dropout_and_separate_batches():
    x, y = some_rows((9, 5))
    method((lambda: Probe(dropout=0.5),), iterations=3, real_batch=6).fit(x, y)
    for net in (net for net in Probe.made if net.calls):
        assert net.modes == [True] * 4
        assert [len(call) for call in net.calls] == [6, 2, 5, 2]  # real, synthetic of each class
        assert len({mask.numpy().tobytes() for mask in net.masks}) == 4


def test_checklist_2_batch_statistics_are_each_batchs_own():
    """BN alone: standardised real and synthetic means are both zero, so nothing moves."""

    class OnlyNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, affine=False)

        def forward(self, x):
            return self.norm(x.transpose(1, 2)).mean(2)

        def embed(self, x):
            return self(x)

    x, y = some_rows((20, 20))
    x[y == 1] += 5
    m = method((OnlyNorm,), match="embedding", real_batch=30)
    loss = m._loss(start_of(m, x, y).requires_grad_(), x, m._members(x, y)[1], 7, 0, None)
    assert float(loss.detach()) < 1e-10  # joint or running statistics would see the shift of 5


def test_real_batches_are_random_rows_of_the_class_without_repetition():
    x, y = some_rows((30, 4))
    method(iterations=40, real_batch=8).fit(x, y)
    nets = [net for net in Probe.made if net.calls]
    counts = np.zeros(30)
    for net in nets:
        for label, batch in ((0, net.calls[0]), (1, net.calls[2])):
            found = [int((x == row).flatten(1).all(1).nonzero()) for row in batch]
            assert len(set(found)) == len(found) == (8 if label == 0 else 4)
            assert all(int(y[row]) == label for row in found)
            if label == 0:
                counts[found] += 1
    assert counts.sum() == 40 * 8
    assert counts.min() > 0
    assert counts.max() < 24  # mean 10.7, deviation 2.8
    assert all(len(net.calls[1]) == len(net.calls[3]) == 2 for net in nets)  # all of S_c


# --- what S is -----------------------------------------------------------------------------


def test_checklist_5_and_7_s_starts_as_noise_of_the_full_shape():
    x, y = some_rows((400, 400))
    x = x * 10 + 50  # nothing of the data's scale is in the start
    s = start_of(method(ipc=300), x, y)
    assert s.shape == (600, *SHAPE)
    assert float(s.mean()) == pytest.approx(0, abs=5 / math.sqrt(s.numel()))
    assert float(s.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * s.numel()))


def test_checklist_5_real_start_warns_and_copies():
    x, y = some_rows()
    with pytest.warns(UserWarning, match="not for sharing"):
        s = start_of(method(init="real", ipc=4), x, y)
    for label in (0, 1):
        rows = s[4 * label : 4 * label + 4]
        found = {int((x == row).flatten(1).all(1).nonzero()) for row in rows}
        assert len(found) == 4
        assert all(int(y[row]) == label for row in found)


def test_checklist_6_defaults_are_the_published_ones():
    defaults = {f.name: f.default for f in dataclasses.fields(DistributionMatching)}
    assert (defaults["lr"], defaults["iterations"], defaults["real_batch"]) == (1e-3, 24_000, 256)
    assert (defaults["match"], defaults["init"], defaults["release"]) == ("output", "noise", None)
    wanted = inspect.signature(evaluate).parameters
    assert wanted["n_init"].default == 5  # checklist 8
    assert wanted["selection"].default == "best_val"


def test_labels_are_balanced_and_seeds_decide():
    x, y = some_rows()
    one, same = (method((lambda: Probe(dropout=0.5),)).fit(x, y) for _ in range(2))
    assert one.y.tolist() == [0, 0, 1, 1]
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, method(seed=8).fit(x, y).x)
    drawn = [method(seed=None).fit(x, y) for _ in range(2)]
    assert not torch.equal(drawn[0].x, drawn[1].x)
    again = method(seed=drawn[0].meta["seed"]).fit(x, y)
    assert torch.equal(again.x, drawn[0].x)
    assert one.meta["rows"] == 10
    assert one.meta["pool"] == ["Probe"]
    assert one.meta["privacy"] is None


def test_nobody_elses_generator_is_touched():
    x, y = some_rows()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, theirs = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    few = method().fit(x, y)
    evaluate(few, [fixed()], (x, y), (x, y), epochs=1, n_init=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (theirs == np.random.get_state()[1]).all()  # noqa: NPY002


# --- stop and go on ------------------------------------------------------------------------


class StopHereError(Exception):
    pass


def real_pool():
    return list(series_pool(("TCN-desk", "LSTM-desk", "ViT-desk"), SHAPE[1]).values())


@pytest.mark.parametrize("at", [1, 4])
def test_stopped_and_resumed_is_equal_to_never_stopped(tmp_path, at):
    """All three kinds of networks, with live dropout and batch statistics."""
    x, y = some_rows((12, 9))
    m = method(real_pool(), iterations=9, real_batch=6)
    whole = m.fit(x, y)
    path = tmp_path / "run.safetensors"

    def stop(what, done, total):
        assert (what, total) == ("condensing", 9)
        if done == at:
            raise StopHereError

    with pytest.raises(StopHereError):
        m.fit(x, y, stop, path, checkpoint_every=0)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]  # nothing half-written
    torch.manual_seed(99)
    seen = []
    resumed = m.fit(x, y, lambda what, done, total: seen.append(done), path)
    assert seen == list(range(at + 1, 10))
    assert torch.equal(resumed.x, whole.x)
    assert resumed.meta == whole.meta
    assert torch.equal(m.fit(x, y, None, path).x, whole.x)  # finished: nothing is left to do
    longer = dataclasses.replace(m, iterations=11)
    assert torch.equal(longer.fit(x, y, None, path).x, longer.fit(x, y).x)


def test_an_unseeded_run_goes_on_with_its_own_seed(tmp_path):
    x, y = some_rows()
    path = tmp_path / "run.safetensors"
    half = method(seed=None, iterations=2).fit(x, y, None, path)
    rest = method(seed=None, iterations=5).fit(x, y, None, path)
    assert rest.meta["seed"] == half.meta["seed"]
    assert torch.equal(rest.x, method(seed=half.meta["seed"], iterations=5).fit(x, y).x)


def test_checkpoints_of_another_run_are_refused(tmp_path):
    x, y = some_rows()
    path = tmp_path / "run.safetensors"
    method().fit(x, y, None, path)
    for other, rows in (
        ({"seed": 8}, x), ({"lr": 0.2}, x), ({"ipc": 3}, x), ({"real_batch": 3}, x), ({}, x + 1e-6),
        ({"iterations": 3}, x), ({"nets": (fixed(),)}, x), ({"nets": (Probe, Probe)}, x),
    ):  # fmt: skip
        with pytest.raises(FoveateError, match="belongs to a run with other data, settings"):
            method(**other).fit(rows, y, None, path)
    with pytest.raises(FoveateError, match="belongs to a run"):
        method().fit(x, y, None, path, leave_out=0)
    moved = torch.cat([torch.zeros(5), torch.ones(5)]).long()  # one row has changed its class
    with pytest.raises(FoveateError, match="belongs to a run"):
        method().fit(x, moved, None, path)
    method().fit(x, y).save(tmp_path / "set.safetensors")
    with pytest.raises(FoveateError, match="not a checkpoint of this version"):
        method().fit(x, y, None, tmp_path / "set.safetensors")


# --- one row less --------------------------------------------------------------------------


def batches_of(m, x, y, leave_out):
    Probe.made.clear()
    few = m.fit(x, y, leave_out=leave_out)
    return few, [net.calls for net in Probe.made if net.calls]


def test_leaving_a_row_out_changes_nothing_but_its_place():
    x, y = some_rows((30, 4))
    m = method(iterations=20, real_batch=8)
    _, whole = batches_of(m, x, y, None)
    _, less = batches_of(m, x, y, 3)
    touched = 0
    for one, other in zip(whole, less, strict=True):
        differs = [int((a != b).flatten(1).any(1).sum()) for a, b in ((one[0], other[0]),)]
        had = bool((one[0] == x[3]).flatten(1).all(1).any())
        assert differs == [int(had)]
        assert not (other[0] == x[3]).flatten(1).all(1).any()
        assert torch.equal(one[2], other[2])
        touched += had
    assert touched > 0
    # A class that is smaller than the batch has nobody to take the place.
    few, less = batches_of(m, x, y, 32)
    assert all(len(calls[2]) == 3 for calls in less)
    assert not any((calls[2] == x[32]).flatten(1).all(1).any() for calls in less)
    assert few.meta["rows"] == 33


def test_leaving_a_row_out_keeps_the_other_rows_of_a_real_start():
    x, y = some_rows((9, 4))
    m = method((fixed(),), iterations=1, lr=1e-30, init="real", ipc=3)
    with pytest.warns(UserWarning, match="not for sharing"):
        whole = m.fit(x, y).x
    used = [int((x == row).flatten(1).all(1).nonzero()) for row in whole]
    for row in range(13):
        with pytest.warns(UserWarning, match="not for sharing"):
            less = m.fit(x, y, leave_out=row).x
        assert not (less == x[row]).flatten(1).all(1).any()
        kept = [x[other] for other in used if other != row]
        assert all((less == other).flatten(1).all(1).any() for other in kept)
        assert torch.equal(less, whole) == (row not in used)
    with pytest.raises(FoveateError, match="a class has 3 rows to start from, fewer than 4"):
        method(init="real", ipc=4).fit(x, y, leave_out=12)


# --- a release with noise ------------------------------------------------------------------


def release(z: float = 1.0) -> GaussianRelease:
    return GaussianRelease(z, 1e-5, public_statistics=True)


class Half(nn.Module):
    """Always the score 0.5, K times."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return self.zero + 0 * x.flatten(1).sum(1, keepdim=True)


def losses(m: DistributionMatching, x, y, count: int) -> np.ndarray:
    members = m._members(x, y)[1]
    s = torch.zeros(2 * len(members), *SHAPE, requires_grad=True)
    return np.array([float(m._loss(s, x, members, 5, k, None).detach()) for k in range(count)])


@pytest.mark.parametrize("outputs", [1, 4])
def test_noise_has_the_multiplier_times_the_sensitivity(outputs):
    """All rows taken (q = 1), constant scores: the loss is the noise, z sqrt(K) / B per output."""
    x, y = some_rows((50,) * 8)
    found = losses(method((lambda: Half(outputs),), release=release(2.0)), x, y, 50)
    expected = 8 * outputs * (2.0 * math.sqrt(outputs) / 50) ** 2
    # A sum of 8 K squares of normals: relative deviation sqrt(2 / (8 K)) in each of 50 iterations.
    assert found.mean() == pytest.approx(expected, rel=5 * math.sqrt(2 / (8 * outputs) / 50))


def test_poisson_sampling_divides_by_the_expected_number_not_the_drawn():
    """Binomial counts n over a fixed B: the loss is sum_c (0.5 (n / B - 1))^2."""
    x, y = some_rows((40,) * 8)
    found = losses(method((Half,), release=release(1e-9), real_batch=10), x, y, 50)
    expected = 8 * 0.25 * (1 - 10 / 40) / 10
    assert found.mean() == pytest.approx(expected, rel=5 * math.sqrt(2 / 8 / 50))
    exact = losses(method((Half,), real_batch=10), x, y, 5)
    assert exact == pytest.approx(0, abs=1e-12)  # without release: exactly 10 rows


def test_a_poisson_draw_may_be_empty():
    x, y = some_rows((40, 40))
    m = method((lambda: Probe(outputs=2),), release=release(), real_batch=1, iterations=30)
    few = m.fit(x, y)
    assert few.x.isfinite().all()
    assert any(len(net.calls[0]) == 2 for net in Probe.made if net.calls)  # zeros stand in


def test_a_release_tells_epsilon_and_hides_its_seed(tmp_path):
    pytest.importorskip("dp_accounting")
    x, y = some_rows((40, 20))
    m = method((Probe,), release=release(1.5), real_batch=10, iterations=3)
    few = m.fit(x, y)
    formal = few.meta["privacy"]
    assert few.meta["seed"] is None
    assert formal["sampling_rate"] == 0.5  # of the smaller class
    assert formal["steps"] == 3  # one accountant step per iteration
    assert formal["epsilon"] == release(1.5).epsilon(0.5, 3)
    m.fit(x, y, None, tmp_path / "c.safetensors")
    assert torch.equal(m.fit(x, y, None, tmp_path / "c.safetensors").x, few.x)


def test_nobody_else_reads_the_seed_of_a_checkpoint(tmp_path):
    path = tmp_path / "run.safetensors"
    x, y = some_rows()
    method((fixed(),), iterations=1).fit(x, y, None, path)
    if os.name == "posix":
        assert path.stat().st_mode & 0o077 == 0


def test_a_release_refuses_what_breaks_its_bound(monkeypatch):
    x, y = some_rows()
    with pytest.raises(FoveateError, match="couples rows"):
        method((lambda: MultiBranchTCN(3),), release=release()).fit(x, y)
    for other in ({"match": "embedding"}, {"init": "real"}):
        with pytest.raises(FoveateError, match="whose scores are bounded"):
            method(release=release(), **other)
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(FoveateError, match="without the accountant"):  # before any work
        method(release=release(), iterations=10**9).fit(x, y)


# --- normaliser and file -------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    axis=st.sampled_from([-1, 1]),
)
def test_checklist_9_normaliser_is_a_z_score_with_an_inverse(seed, shape, axis):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (5, *shape[1:])).astype(np.float32)
    n = Normalizer.fit(x, axis)
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    mean, std = x.mean(others, keepdims=True), x.std(others, keepdims=True)
    z = n(x)
    np.testing.assert_allclose(z, (x - mean) / (std + 1e-9), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(n.inverse(z), x, rtol=1e-4, atol=1e-4)


def test_normaliser_clips_and_survives_constant_features():
    x = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]])
    n = Normalizer.fit(x, clip=10)
    assert n(x).tolist() == [[[-1, 0]], [[1, 0]]]
    assert n(torch.tensor([[[1000.0, 6.0]]])).tolist() == [[[10, 10]]]
    for bad in (torch.zeros(0, 2), torch.full((2, 2), math.nan)):
        with pytest.raises(FoveateError, match="finite rows"):
            Normalizer.fit(bad)
    with pytest.raises(FoveateError, match="axis 0 counts the rows"):
        Normalizer.fit(x, 0)


def a_set(normalizer: bool = True) -> CondensedSet:
    x, y = some_rows((3, 2))
    n = Normalizer.fit(10 + 4 * x, clip=10) if normalizer else None
    return CondensedSet(x, y, n, {"data": "none", "ipc": 2, "seed": 2**100, "iterations": 4})


@pytest.mark.parametrize("normalizer", [True, False])
def test_checklist_12_one_file_with_all_of_it(tmp_path, normalizer):
    kept = a_set(normalizer)
    path = kept.save(tmp_path / "few.safetensors")
    assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON
    read = CondensedSet.load(path)
    assert torch.equal(read.x, kept.x)
    assert torch.equal(read.y, kept.y)
    assert read.meta == kept.meta
    assert (read.normalizer is None) != normalizer
    torch.testing.assert_close(read.denormalize(), kept.denormalize(), rtol=0, atol=0)
    if normalizer:
        assert read.normalizer.clip == 10
        n = kept.normalizer
        torch.testing.assert_close(read.denormalize(), kept.x * (n.std + 1e-9) + n.mean)
    x, y = read.to_dataset()[4]
    assert torch.equal(x, kept.x[4])
    assert int(y) == 1
    assert len(read) == 5


def test_what_is_saved_can_be_read(tmp_path):
    path = tmp_path / "few.safetensors"
    x, y = some_rows((2, 2))
    one = torch.ones(1).expand(3)  # a view, and mean and std in the same memory
    saved = CondensedSet(x.double().transpose(1, 2), y.int(), Normalizer(one[None].T, one[None].T))
    saved.save(path)
    read = CondensedSet.load(path)
    torch.testing.assert_close(read.x, x.transpose(1, 2))
    assert read.y.tolist() == y.tolist()
    torch.testing.assert_close(read.denormalize(), x.transpose(1, 2) + 1)
    content = path.read_bytes()
    x[0, 0, 0] = math.nan
    with pytest.raises(FoveateError, match="x of a CondensedSet is not finite"):
        CondensedSet(x, y).save(path)
    assert path.read_bytes() == content
    with pytest.raises(FoveateError, match="must be plain JSON"):  # before the work, not after it
        method().fit(*some_rows(), meta={"data": object()})


def test_denormalize_undoes_the_normaliser_of_the_training_rows():
    """Checklist 9: clinical units come back."""
    x, y = some_rows((30, 30))
    units = x * torch.tensor([1.0, 20.0, 300.0]) + torch.tensor([0.0, 80.0, -5.0])
    n = Normalizer.fit(units)
    few = method((fixed(),), iterations=1, lr=1e-30).fit(n(units), y, normalizer=n,
                                                         meta={"data": "made up"})  # fmt: skip
    back = few.denormalize()
    torch.testing.assert_close(n(back), few.x, rtol=1e-4, atol=1e-4)
    assert back[..., 1].mean() == pytest.approx(80, abs=20)
    assert few.meta["data"] == "made up"
    assert (few.meta["ipc"], few.meta["seed"], few.meta["iterations"]) == (2, 7, 1)


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 600), byte=st.integers(0, 255), keep=st.integers(0, 700))
def test_any_damage_gives_a_set_or_one_sentence(tmp_path_factory, at, byte, keep):
    path = tmp_path_factory.mktemp("x") / "few.safetensors"
    content = bytearray(a_set().save(path).read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content[:keep] if keep < 500 else content)
    try:
        assert CondensedSet.load(path).x.ndim == 3
    except FoveateError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"foveate": '{"format": "foveate condensed set 1", "meta": {}, "clip": null}'}
    good = {"x": torch.zeros(2, 3), "y": torch.zeros(2, dtype=torch.int64)}
    for tensors, meta in (
        (good, None), (good, {"foveate": "[1]"}), (good, {"foveate": "{"}),
        ({"x": good["x"]}, header), ({**good, "y": torch.zeros(2)}, header),
        ({**good, "x": torch.full((2, 3), math.nan)}, header),
        ({**good, "y": good["y"] - 1}, header), ({**good, "x": torch.zeros(3, 3)}, header),
        ({**good, "mean": torch.zeros(5)}, header),
        ({**good, "mean": torch.zeros(5), "std": torch.zeros(5)}, header),
        ({**good, "mean": torch.full((3,), math.nan), "std": torch.ones(3)},
         {"foveate": header["foveate"].replace("{", '{"eps": 0, ', 1)}),
    ):  # fmt: skip
        save_file(tensors, path, meta)
        with pytest.raises(FoveateError, match=r"x\.safetensors"):
            CondensedSet.load(path)
    save_file(good, path, header)
    assert len(CondensedSet.load(path)) == 2
    with pytest.raises(FoveateError, match="cannot read"):
        CondensedSet.load(tmp_path / "none.safetensors")
    with pytest.raises(FoveateError, match="must be plain JSON"):
        CondensedSet(good["x"], good["y"], None, {"a": object()}).save(path)
    with pytest.raises(FoveateError, match=r"x \(M, ...\) and y \(M,\)"):
        CondensedSet(torch.zeros(2, 3), torch.zeros(3))


# --- evaluation ----------------------------------------------------------------------------


def pairs(y, s) -> float:
    wins = [(a > b) + 0.5 * (a == b) for a, t in zip(s, y, strict=True) if t
            for b, u in zip(s, y, strict=True) if not u]  # fmt: skip
    return sum(wins) / len(wins)


@settings(deadline=None, max_examples=25)
@given(scores=st.lists(st.integers(-3, 3), min_size=2, max_size=12), data=st.data())
def test_auc_counts_pairs(scores, data):
    y = data.draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores)))
    y[0], y[1] = 0, 1
    z = torch.tensor(scores, dtype=torch.float32)
    assert auc(np.array(y), z) == pytest.approx(pairs(y, scores))
    assert auc(np.array(y), z[:, None]) == pytest.approx(pairs(y, scores))


def test_auc_of_three_classes_and_of_nonsense():
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    y = np.arange(30) % 3
    p = z.double().softmax(1).numpy()
    assert auc(y, z) == pytest.approx(np.mean([pairs(y == c, p[:, c]) for c in range(3)]))
    assert math.isnan(auc(np.array([0, 1]), torch.tensor([math.nan, 1.0])))
    for labels, logits in (([1, 1], torch.zeros(2)), ([0, 1], torch.zeros(2, 3))):
        with pytest.raises(FoveateError, match="an AUC needs rows of"):
            auc(np.array(labels), logits)


def test_training_is_bce_on_the_sigmoid_with_adam_in_shuffled_batches():
    x, y = some_rows((7, 6))
    net, twin = fixed()(), fixed()()
    found = train_network(net, x, y, epochs=3, lr=0.01, batch=4, seed=5, selection="last")
    adam, order = torch.optim.Adam(twin.parameters(), 0.01), torch.Generator().manual_seed(5)
    for _ in range(3):
        shuffled = torch.randperm(13, generator=order)
        for k in (0, 4, 8):  # the thirteenth row would be a batch of its own
            part = shuffled[k : k + 4]
            loss = nn.BCELoss()(twin(x[part]).sigmoid().flatten(), y[part].float())
            adam.zero_grad()
            loss.backward()
            adam.step()
    torch.testing.assert_close(net[1].weight, twin[1].weight)
    assert found.epoch == 3
    assert not net.training
    one = train_network(fixed()(), x[:1], y[:1], epochs=2, lr=0.01, val=(x, y))
    assert one.rows == [1, 2]  # a single row is still trained on
    each = train_network(fixed()(), x, y, epochs=1, lr=0.01, val=(x, y), batch=1)
    assert each.rows == [13]


def test_checklist_8_the_first_epoch_of_the_best_validation_auc_is_taken():
    x, y = some_rows((40, 40))
    x[y == 1] += 0.5
    val, rng = some_rows((30, 30), seed=4), torch.Generator().manual_seed(1)
    val = (val[0] + 0.5 * val[1][:, None, None], val[1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(15, 1))
    nn.init.normal_(net[1].weight, generator=rng)
    found = train_network(net, x, y, epochs=8, lr=0.3, val=val, batch=16, validate_every=2)
    ends = [k for k, step in enumerate(found.steps) if step % 5 == 0]
    assert found.steps == [k for k in range(1, 41) if k % 2 == 0 or k % 5 == 0]
    assert [found.rows[k] for k in ends] == [80 * e for e in range(1, 9)]
    of_epochs = [found.val_auc[k] for k in ends]
    assert found.epoch == 1 + of_epochs.index(max(of_epochs))
    with torch.no_grad():  # the network is that of the epoch
        assert pairs(val[1].tolist(), net(val[0]).flatten().tolist()) == max(of_epochs)
    assert found.best == max(found.val_auc)
    assert found.first(found.best) == found.val_auc.index(found.best)
    assert found.first(2.0) is None
    assert found.seconds == sorted(found.seconds)
    ties = train_network(fixed()(), x, y, epochs=3, lr=1e-30, val=val)
    assert ties.epoch == 1


def test_checklist_8_unseen_nets_several_initialisations_real_rows():
    x, y = some_rows((60, 60))
    x[y == 1] += 1
    few = CondensedSet(torch.stack([x[y == c].mean(0) for c in (0, 1)]), torch.tensor([0, 1]))
    nets = series_pool(("RNN-desk", "LSTM-desk"), 3)
    table = evaluate(few, nets, (x, y), (x, y), epochs=4, lr=1e-2, n_init=2)
    assert table.columns == ["net", "init", "auc", "accuracy", "val_auc", "epoch"]
    assert table.rows()[0][:2] == ("RNN-desk", 0)
    assert table.height == 4
    assert table["auc"].min() > 0.8
    assert table["auc"].n_unique() > 2  # initialisations differ
    again = evaluate(few, nets, (x, y), (x, y), epochs=4, lr=1e-2, n_init=2)
    assert table.equals(again)
    last = evaluate(few, list(nets.values()), (x, y), (x, y), epochs=4, n_init=1, selection="last")
    assert last["epoch"].to_list() == [4, 4]
    assert last["net"].to_list() == ["RNNClassifier", "LSTMClassifier"]


def test_a_training_that_diverges_is_nan_and_no_crash():
    x, y = some_rows()

    class Burst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x.flatten(1)[:, :1] * self.w * torch.inf

    table = evaluate(CondensedSet(x, y), [Burst], (x, y), (x, y), epochs=2, n_init=1)
    assert math.isnan(table["auc"][0])


# --- coresets ------------------------------------------------------------------------------


def test_random_rows_are_balanced_and_uniform():
    y = np.repeat([0, 1], [30, 10])
    draws = np.stack([random_rows(y, 5, seed) for seed in range(300)])
    assert (y[draws] == [0] * 5 + [1] * 5).all()
    counts = np.bincount(draws.ravel(), minlength=40)
    assert np.abs(counts[:30] - 50).max() < 5 * 6.5
    assert np.abs(counts[30:] - 150).max() < 5 * 8.7


def test_kmeans_rows_are_the_rows_nearest_to_clear_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 50, (6, 4))
    x = (centres[np.repeat(np.arange(6), 7)] + rng.normal(0, 1, (42, 4))).astype(np.float32)
    y = np.repeat([0, 1], 21)
    found = kmeans_rows(x.reshape(42, 2, 2), y, 3, seed=1)
    expected = []
    for k in range(6):
        rows = np.arange(7 * k, 7 * k + 7)
        distance = np.linalg.norm(x[rows] - x[rows].mean(0), axis=1)
        expected.append(rows[distance.argmin()])
    assert sorted(found.tolist()) == expected
    assert y[found].tolist() == [0] * 3 + [1] * 3
    with pytest.warns(Warning, match="distinct clusters"):  # scikit-learn's own
        same = kmeans_rows(np.zeros((4, 2)), [0, 0, 1, 1], 2)  # two centroids, one place
    assert sorted(same.tolist()) == [0, 1, 2, 3]
    for y_bad, ipc in (([0, 1, 1], 2), ([0, 1], 0), ([], 1)):
        with pytest.raises(FoveateError, match="rows of every class"):
            random_rows(np.array(y_bad, int), ipc)


# --- does it work --------------------------------------------------------------------------


def test_condensed_series_teach_an_unseen_network():
    """From noise to more than noise: two rows per class, a network that was not in the pool."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.randn(400, 8, 3, generator=generator)
    x[:, :, 0] += (2 * y[:, None] - 1) * torch.linspace(0, 1, 8)
    pool = series_pool(("LSTM-desk",), 3)
    m = DistributionMatching(
        list(pool.values()), 2, (8, 3), lr=0.05, iterations=60, real_batch=64, seed=0
    )
    few = m.fit(x[:200], y[:200])
    noise = CondensedSet(start_of(m, x[:200], y[:200]), few.y)
    unseen, test = series_pool(("RNN-desk",), 3), (x[200:], y[200:])
    ours, theirs = (
        evaluate(s, unseen, test, test, epochs=20, lr=1e-3, n_init=3, selection="last")["auc"]
        for s in (few, noise)
    )
    assert ours.mean() > 0.8
    assert (ours > theirs + 0.05).all()


def test_condensed_pictures_teach_a_network_of_another_shape():
    """Any (N, C, H, W): a bright square at one of three places, one synthetic picture each."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = torch.randn(240, 2, 8, 8, generator=generator)
    for k in range(3):
        x[y == k, 0, 2 * k : 2 * k + 3, 2 * k : 2 * k + 3] += 2
    pool = image_pool((2, 8, 8), 3, widths=(8, 12), depths=(2,))
    assert list(pool) == ["ConvNet-8x2", "ConvNet-12x2"]
    m = DistributionMatching(
        list(pool.values()), 1, (2, 8, 8), lr=0.1, iterations=60, real_batch=32, seed=0,
        match="embedding",
    )  # fmt: skip
    few = m.fit(x[:120], y[:120])
    assert few.x.shape == (3, 2, 8, 8)
    unseen, test = image_pool((2, 8, 8), 3, widths=(16,), depths=(1,)), (x[120:], y[120:])
    table = evaluate(few, unseen, test, test, epochs=30, lr=1e-2, n_init=2, selection="last")
    assert table["auc"].min() > 0.95
    assert table["accuracy"].min() > 0.6
    with pytest.raises(FoveateError, match="at least 16 pixels a side"):
        image_pool((1, 8, 8), 3, depths=(4,))
    assert image_pool((1, 8, 8), 2, (4,), (1,))["ConvNet-4x1"]().head.out_features == 1


class Nowhere(nn.Flatten):
    """Scores that are no numbers."""

    def forward(self, x):
        return super().forward(x)[:, :1] * math.nan


# --- bad input -----------------------------------------------------------------------------


def test_bad_input_is_one_sentence():
    x, y = some_rows()
    nan = x.clone()
    nan[3, 0, 0] = math.nan
    for rows, labels, sentence in (
        (x[:, :2], y, r"rows \(N, 5, 3\).* got \(10, 2, 3\)"),
        (x, y[:3], r"labels \(N,\)"),
        (x, y.float(), "labels are integers"),
        (nan, y, "row 3 has numbers that are not finite"),
        (x, y * 0, r"at least two classes, found \[0\]"),
        (x, y + 1, r"labels 0 .. C-1"),
        (x[:0], y[:0], "at least two classes"),
        (x[:7], y[:7], "a class has 1 rows, fewer than 2"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            method().fit(rows, labels)
    with pytest.raises(FoveateError, match="fewer than 5"):
        method(init="real", ipc=5).fit(x, y)
    with pytest.raises(FoveateError, match="leave_out is a row from 0 to 9"):
        method().fit(x, y, leave_out=10)
    with pytest.raises(FoveateError, match="no longer finite after iteration 4"):
        method((Nowhere,)).fit(x, y)
    for other in (
        {"ipc": 0},
        {"lr": 0},
        {"nets": ()},
        {"iterations": 0},
        {"shape": ()},
        {"seed": -1},
        {"match": "logits"},
        {"init": "zeros"},
        {"nets": {"a": Probe}},
    ):
        with pytest.raises(FoveateError):
            method(**other)
    few = CondensedSet(x, y)
    for call in (
        lambda: evaluate(few, [], (x, y), (x, y)),
        lambda: evaluate(few, [Probe], (x, y), (x, y), n_init=0),
        lambda: evaluate(few, [Probe], (x, y[:2]), (x, y)),
        lambda: evaluate(few, [Probe], (x, y), (nan, y)),
        lambda: evaluate(few, [Probe], (nan, y), (x, y)),
        lambda: train_network(Probe(), x, y, epochs=1, lr=1),
        lambda: train_network(Probe(), x, y, epochs=0, lr=1, selection="last"),
        lambda: train_network(Probe(), x, y[:2], epochs=1, lr=1, selection="last"),
        lambda: train_network(Probe(), x, y, epochs=1, lr=1, selection="best"),
    ):
        with pytest.raises(FoveateError):
            call()


def test_numpy_rows_do_as_well():
    x, y = some_rows()
    assert torch.equal(method(shape=list(SHAPE)).fit(x, y).x, method().fit(x, y).x)
    few = method().fit(x.double().numpy(), y.to(torch.int32).numpy())
    assert torch.equal(few.x, method().fit(x, y).x)
    assert condensation.__doc__
