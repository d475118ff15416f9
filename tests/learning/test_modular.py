"""Partition, FLOPs, policies and the controller; layers and kernels have tests of their own."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.learning import modular_policies
from foveate.learning.modular import (
    AllOf,
    GroupedMLP,
    MATController,
    MATExpert,
    ModulePartition,
    ModuleSpec,
    QuantileThreshold,
    RandomSelection,
    RatioThreshold,
    StepFlops,
    TemporalStop,
    alpha_for,
    module_lambda,
)
from foveate.nn.vision_transformer import VisionTransformer


def a_vit(seed: int = 0, depth: int = 2) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(8, 4, width=16, depth=depth, heads=4, hidden=32)


def a_cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    )  # fmt: skip


NETS = {
    "vit": (a_vit, ModuleSpec()),
    "cnn": (a_cnn, ModuleSpec(filter_groups=4)),
}


def some_batch(seed: int = 0, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=draw), torch.randint(10, (n,), generator=draw)


# --- partition -----------------------------------------------------------------------------


def test_units_are_smaller_than_layers():
    """Checklist 3: heads, groups of hidden units, groups of filters, experts; all disjoint."""
    net = nn.ModuleDict({"vit": a_vit(depth=1), "cnn": a_cnn()})
    net["experts"] = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    everything = [name for name, _ in net.named_parameters()]
    partition = ModulePartition.from_model(
        net, ModuleSpec(filter_groups=4, exclude=("vit.patch*",))
    )
    assert list(partition) == [
        *(f"vit.blocks.0.attn.heads.{i}" for i in range(4)),
        *(f"vit.blocks.0.mlp.groups.{i}" for i in range(4)),
        *(f"cnn.0.filters.{i}" for i in range(4)),
        *(f"cnn.3.filters.{i}" for i in range(4)),
        *(f"experts.{i}" for i in range(2)),
    ]
    sizes = {n: sum(net.get_parameter(p).numel() for p in ps) for n, ps in partition.items()}
    # a head of 4 x 16: three maps with biases, and the output's share without
    assert sizes["vit.blocks.0.attn.heads.0"] == 3 * (4 * 16 + 4) + 4 * 16
    assert sizes["vit.blocks.0.mlp.groups.0"] == 8 * 16 + 8 + 8 * 16
    assert sizes["cnn.3.filters.0"] == 2 * 8 * 9
    inside = list(itertools.chain(*partition.values()))
    assert len(set(inside)) == len(inside)
    assert set(inside) | set(partition.always) == {name for name, _ in net.named_parameters()}
    learning = {"vit.patch_embed.weight", "vit.positions", "vit.norm.weight", "vit.head.bias",
                "vit.blocks.0.attn.out_bias", "vit.blocks.0.mlp.bias2", "cnn.3.bias",
                "cnn.1.weight", "cnn.7.weight"}  # fmt: skip
    assert learning <= set(partition.always)
    partition.restore()
    assert [name for name, _ in net.named_parameters()] == everything


def test_networks_without_modules_and_shared_ones_are_refused():
    with pytest.raises(FoveateError, match=r"filter_groups.*0\.0: its output"):
        ModulePartition.from_model(nn.Sequential(nn.ModuleDict({"0": nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))})), ModuleSpec())  # fmt: skip
    inner = GroupedMLP(4, 8, 2)
    with pytest.raises(FoveateError, match="shares parameters"):
        ModulePartition(nn.Sequential(MATExpert(inner)))
    tied = nn.Sequential(nn.Linear(4, 4), MATExpert(nn.Linear(4, 4)))
    tied[1].module.weight = tied[0].weight  # freezing the expert would freeze the first layer
    with pytest.raises(FoveateError, match="module 1 shares parameters"):
        ModulePartition(tied)
    partition = ModulePartition(nn.Sequential(GroupedMLP(4, 8, 2)))
    for active, mode, word in ((["0.groups.9"], "cut", "0.groups.9"), ([], "both", "'both'")):
        with pytest.raises(FoveateError, match=word):
            partition.apply(active, mode)


# --- freezing ------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mode", ["cut", "exact"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_modules_are_bitwise_unchanged(net, mode, optimizer):
    """Checklist 4: no gradient, no update, no decay, no momentum, though they learned before."""
    make, spec = NETS[net]
    model = make()
    partition = ModulePartition.from_model(model, spec)
    optim = (
        torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.5)
        if optimizer == "adamw"
        else torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9, weight_decay=0.5)
    )

    def steps(count: int) -> None:
        for number in range(count):
            x, y = some_batch(number)
            loss = F.cross_entropy(model(x), y)
            optim.zero_grad()
            loss.backward()
            optim.step()

    steps(3)
    names = list(partition)
    active = set(names[1::3])
    partition.apply(active, mode)
    before = copy.deepcopy(model.state_dict())
    steps(4)
    for name, params in partition.items():
        for p in params:
            changed = not torch.equal(model.get_parameter(p), before[p])
            assert changed == (name in active), p
            assert (model.get_parameter(p).grad is None) == (name not in active)
    for p in partition.always:
        assert not torch.equal(model.get_parameter(p), before[p]), p
    partition.apply(set(names), mode)
    steps(1)
    for params in partition.values():
        assert all(not torch.equal(model.get_parameter(p), before[p]) for p in params)


@pytest.mark.parametrize("net", NETS)
def test_forward_has_all_modules_whatever_is_active(net):
    """Checklist 6: in training and in use."""
    make, spec = NETS[net]
    model, (x, _) = make(), some_batch()
    expected = {mode: copy.deepcopy(model).train(mode)(x) for mode in (True, False)}
    partition = ModulePartition.from_model(model, spec)
    for active in ([], list(partition)[:1], list(partition)[::2], list(partition)):
        for mode in ("cut", "exact"):
            partition.apply(active, mode)
            for training, y in expected.items():
                trial = copy.deepcopy(model).train(training)
                assert torch.allclose(trial(x), y, rtol=1e-5, atol=1e-5)


def test_exact_mode_has_the_gradients_of_full_back_propagation():
    """Checklist 11: of all that learns, to 1e-6; cut mode has not."""
    model, (x, y) = a_vit(), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    F.cross_entropy(model(x), y).backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters()}
    active = set(list(partition)[::3])
    learning = [*partition.always, *itertools.chain(*(partition[name] for name in active))]
    off = {}
    for mode in ("exact", "cut"):
        model.zero_grad()
        partition.apply(active, mode)
        F.cross_entropy(model(x), y).backward()
        gaps = [(model.get_parameter(p).grad - full[p]).abs().max() for p in learning]
        off[mode] = float(max(gaps))
    assert off["exact"] < 1e-6 < 1e-3 < off["cut"]


# --- FLOPs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_analytic_flops_are_those_of_a_real_step_and_fall_with_the_active_share(net):
    """Checklist 5: torch's counter around one forward and backward, for several active sets."""
    make, spec = NETS[net]
    model, (x, y) = make(), some_batch()
    partition = ModulePartition.from_model(model, spec)
    account = StepFlops(model, partition, (x[:2],))
    names = list(partition)
    by_share: dict[str, list[float]] = {"cut": [], "exact": []}
    for mode, row in by_share.items():
        for active in (names, names[::2], names[: len(names) // 2], names[:1], []):
            partition.apply(active, mode)
            model.zero_grad()
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                F.cross_entropy(model(x), y).backward()
            assert account.step(active, mode) == counter.get_total_flops() / len(x)
            row.append(counter.get_total_flops())
        full, half, first_half, _one, none = row
        assert none < half < full
        assert none < first_half < full
        assert account.full == account.step(names, mode) == full / len(x)
    # With nothing active cut saves more, but for a stack without skips, which turns exact then.
    assert (by_share["cut"][-1] < by_share["exact"][-1]) == (net == "vit")


def test_flops_of_a_transformer_by_hand():
    """(1 + 2a) / 3 of a module's cost in cut mode, (2 + a) / 3 at most in exact mode."""
    model = a_vit()
    partition = ModulePartition.from_model(model, ModuleSpec())
    account = StepFlops(model, partition, (some_batch()[0],))
    t, d, d_head, hidden = 4, 16, 4, 8
    head = 2 * (4 * t * d * d_head + 2 * t * t * d_head)
    group = 2 * (2 * t * d * hidden)
    forward = {n: head if "heads" in n else group for n in partition}
    assert {n: u.forward for n, u in account.units.items()} == forward
    modules = sum(forward.values())
    embed, classify = 2 * t * d * 16, 2 * d * 10
    assert account.rest == 2 * embed + 3 * classify  # a picture needs no gradient
    for count in (16, 8, 0):
        active = [n for i, n in enumerate(partition) if i % 4 < count / 4]
        share = count / 16
        relative = (account.step(active, "cut") - account.rest) / (3 * modules)
        assert relative == pytest.approx((1 + 2 * share) / 3)
        exact = (account.step(active, "exact") - account.rest) / (3 * modules)
        assert relative <= exact
    # Scores are products of two activations: their gradients go to the input, not to weights.
    scores = 8 * 2 * 2 * t * t * d_head
    assert exact == pytest.approx((2 + scores / modules) / 3)


class Mixture(nn.Module):
    """Experts beside a skip, the first of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(64, 8), nn.Linear(8, 10)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, h), nn.ReLU(), nn.Linear(h, 8)) for h in (12, 20)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(1))
        for number in (0, 1, 0):
            x = x + self.experts[number](x)
        return self.head(x)


def test_flops_of_experts_and_of_layers_called_twice():
    torch.manual_seed(0)
    net, (x, y) = Mixture(), some_batch()
    partition = ModulePartition.from_model(net, ModuleSpec())
    account = StepFlops(net, partition, (x[:2],))
    forward = [unit.forward for unit in account.units.values()]
    assert forward == [2 * 2 * 2 * 8 * 12, 2 * 2 * 8 * 20]
    for mode in ("cut", "exact"):
        for active in ([], ["experts.0"], ["experts.1"], ["experts.0", "experts.1"]):
            partition.apply(active, mode)
            with FlopCounterMode(display=False) as counter:
                F.cross_entropy(net(x), y).backward()
            assert account.step(active, mode) == counter.get_total_flops() / len(x)


# --- policies ------------------------------------------------------------------------------

lambdas = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 1e6), min_size=1, max_size=12
)


@given(lam=lambdas, alpha=st.floats(0, 1))
def test_ratio_threshold_scales_with_the_largest(lam, alpha):
    chosen = RatioThreshold(alpha)(lam, [], 0)
    assert chosen == {n for n, v in lam.items() if v >= alpha * max(lam.values())}
    assert chosen
    doubled = {n: 2 * v for n, v in lam.items()}
    assert RatioThreshold(alpha)(doubled, [], 0) == chosen


@given(lam=lambdas, target=st.floats(0.01, 1))
def test_alpha_for_a_target_share(lam, target):
    """The largest ratio between a module and the top one that lets enough pass: by brute force."""
    alpha = alpha_for(lam, target)
    chosen = RatioThreshold(alpha)(lam, [], 0)
    assert len(chosen) >= target * len(lam) - 1e-6
    tops = [v / max(lam.values()) if max(lam.values()) else 1.0 for v in lam.values()]
    enough = [r for r in tops if sum(t >= r for t in tops) >= target * len(lam) - 1e-6]
    assert alpha == pytest.approx(max(enough), abs=1e-9)


def test_target_share_is_solved_once_and_the_threshold_stays_dynamic():
    policy = RatioThreshold(target_active=0.34)
    lam = {"a": 10.0, "b": 5.0, "c": 1.0}
    assert policy(lam, [], 1) == {"a", "b"}
    assert policy.alpha == pytest.approx(0.5)
    assert policy({"a": 100.0, "b": 40.0, "c": 60.0}, [lam], 2) == {"a", "c"}


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=40, unique=True),
    percent=st.integers(0, 100),
)
def test_quantile_random_and_inverted_take_equally_many(values, percent):
    """Checklist 10: the two controls have the same number of active modules."""
    lam, q = {str(i): v for i, v in enumerate(values)}, percent / 100
    # The quantile by its definition, in integers: the value at place ceil(q (n - 1)) of n.
    edge = sorted(values)[-(-percent * (len(values) - 1) // 100)]
    chosen = QuantileThreshold(q)(lam, [], 3)
    assert chosen == {n for n, v in lam.items() if v >= edge}
    smallest = QuantileThreshold(q, smallest=True)(lam, [], 3)
    random = RandomSelection(q, seed=1)(lam, [], 3)
    assert len(chosen) == len(smallest) == len(random) >= 1
    assert {lam[n] for n in smallest} == set(sorted(values)[: len(smallest)])
    assert RandomSelection(q, seed=1)(dict.fromkeys(lam, math.nan), [], 3) == random


def test_random_selection_is_drawn_anew_and_a_schedule_is_followed():
    lam = {str(i): float(i) for i in range(32)}
    draws = [frozenset(RandomSelection(0.6, seed=0)(lam, [], step)) for step in range(6)]
    assert {len(draw) for draw in draws} == {13}, "0.4 of 32"
    assert len(set(draws)) == 6
    assert frozenset(RandomSelection(0.6, seed=1)(lam, [], 0)) != draws[0]
    falling = QuantileThreshold(lambda step: step / 31)
    assert [len(falling(lam, [], step)) for step in (0, 1, 31)] == [32, 31, 1]


def test_temporal_stop_waits_for_two_quiet_decisions_and_lets_back_in():
    course = [1.0, 1.0005, 1.0006, 1.0007, 1.2, 1.2, 1.2]
    policy, active = TemporalStop(1e-3), []
    for step in range(len(course)):
        history = [{"a": v, "b": 2.0**i} for i, v in enumerate(course[:step])]
        active.append("a" in policy({"a": course[step], "b": 2.0**step}, history, step))
    assert active == [True, True, False, False, True, True, False]
    assert policy({"a": 0.0}, [{"a": 0.0}] * 2, 2) == set()
    both = AllOf(RatioThreshold(0.5), policy)
    still = [{"a": 1.0, "b": 1.0}] * 2
    assert both({"a": 1.0, "b": 9.0}, still, 2) == {"b"}


def test_parameters_are_exposed_and_not_called_published():
    """Checklist 12: alpha and beta; what is remembered is marked so."""
    assert RatioThreshold(0.3).alpha == 0.3
    assert TemporalStop(1e-6).beta == 1e-6
    for owner in (RatioThreshold, TemporalStop):
        assert "(M, unverified)" in owner.__doc__
    assert "not known here" in modular_policies.__doc__
    for call in (lambda: RatioThreshold(2), lambda: RatioThreshold(target_active=0),
                 lambda: TemporalStop(-1), lambda: QuantileThreshold(1.5), AllOf,
                 lambda: RandomSelection(-0.1), lambda: alpha_for({}, 0.5),
                 lambda: QuantileThreshold(lambda step: 7.0)({"a": 1.0}, [], 0)):  # fmt: skip
        with pytest.raises(FoveateError):
            call()


# --- controller ----------------------------------------------------------------------------


def kernel_top(model: nn.Module, x: torch.Tensor, params: tuple[str, ...]) -> float:
    """Largest eigenvalue over n of the exact kernel, by a backward pass for every output."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    rows = []
    for sample in x:
        for value in model(sample[None])[0]:
            slopes = torch.autograd.grad(value, [model.get_parameter(p) for p in params],
                                         retain_graph=True)  # fmt: skip
            rows.append(torch.cat([s.flatten() for s in slopes]).double())
    j = torch.stack(rows)
    return float(torch.linalg.eigvalsh(j @ j.T)[-1]) / len(x)


def test_decisions_rest_on_each_modules_own_kernel_measured_anew():
    """Checklist 1 and 9: not gradients, not weights; on one probe, for frozen modules too."""
    model, (x, y) = a_vit(depth=1), some_batch(n=4)
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(
        model, partition, QuantileThreshold(0.7), x, warmup=0, method="exact", interval=2
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    for epoch in range(4):
        mat.on_epoch_start()
        if epoch % 2 == 0:
            oracle = {name: kernel_top(model, x, params) for name, params in partition.items()}
            assert mat.decisions[-1].lam == pytest.approx(oracle, rel=1e-4)
            order = sorted(oracle, key=oracle.__getitem__)
            assert mat.active == set(order[-3:])
            seen.append(oracle)
        mat.on_step_start(len(x))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert model.training
    assert len(mat.decisions) == 2
    assert all(seen[0][name] != pytest.approx(seen[1][name], rel=1e-6) for name in partition)


def scripted(sets: list[set[str]]):
    """A policy of somebody else: any callable will do."""

    def policy(lam, history, step):
        assert len(history) == step
        assert set(lam) >= sets[step]
        return sets[step]

    return policy


def test_modules_come_back_and_the_log_shows_it():
    """Checklist 7 and 12: selection is no pruning; policies are pluggable."""
    model, (x, _) = a_vit(depth=1), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    a, b, *rest = partition
    mat = MATController(model, partition, scripted([set(), {a}, {b}, {a}]), x, warmup=1)
    for _ in range(4):
        mat.on_epoch_start()
        assert model.get_parameter(partition[a][0]).requires_grad == (a in mat.active)
    assert [len(d.active) for d in mat.decisions] == [len(partition), 1, 1, 1]
    assert mat.returned() == [b, a]
    log = [(row["epoch"], row["active"]) for row in mat.rows() if row["module"] == a]
    assert log == [(0, True), (1, True), (2, False), (3, True)]
    assert len(mat.rows()) == 4 * len(partition)
    assert all(row["lambda_max"] > 0 for row in mat.rows())


def test_at_least_one_module_is_active():
    model, (x, _) = a_vit(depth=1), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(model, partition, lambda lam, history, step: set(), x, warmup=0)
    decision = mat.decide()
    assert mat.active == {max(decision.lam, key=decision.lam.__getitem__)}


def test_a_policy_that_names_strangers_changes_nothing():
    model, (x, _) = a_vit(depth=1), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(model, partition, lambda lam, history, step: {"stranger"}, x, warmup=0)
    with pytest.raises(FoveateError, match="stranger"):
        mat.decide()
    assert mat.active == set(partition)
    assert not mat.decisions


def test_the_account_has_steps_and_measurements():
    """Checklist 8: estimation is in the FLOPs, and seconds stand beside them."""
    model, (x, _) = a_vit(), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(model, partition, QuantileThreshold(0.6), x, signs=2)
    mat.on_epoch_start()
    measured = mat.flops
    with FlopCounterMode(display=False) as counter:
        module_lambda(model, x, partition, signs=2)
    assert measured == counter.get_total_flops() == mat.estimation_flops
    # One forward and two backward passes through all modules, for every picture, at least.
    assert measured > 6 * (1 + 2 * 2) * sum(u.forward for u in mat.step_flops.units.values())
    mat.on_step_start(6)
    mat.on_step_start(4)
    assert mat.flops == measured + 10 * mat.step_flops.full
    mat.on_epoch_start()
    before = mat.flops
    mat.on_step_start(1)
    assert mat.flops - before == mat.step_flops.step(mat.active, "cut") < mat.step_flops.full
    assert [d.flops for d in mat.decisions] == [measured, before]
    assert all(d.seconds > 0 for d in mat.decisions)
    free = MATController(model, partition, RandomSelection(0.6), x)
    free.on_epoch_start()
    assert free.flops == 0
    assert all(math.isnan(v) for v in free.decisions[0].lam.values())


def test_a_checkpoint_goes_on_where_it_was():
    model, (x, _) = a_vit(depth=1), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(model, partition, TemporalStop(0.1), x, warmup=0)
    for _ in range(3):
        mat.on_epoch_start()
        mat.on_step_start(6)
    state = json.loads(json.dumps(mat.state_dict()))
    active, flops = mat.active, mat.flops
    other = MATController(model, partition, TemporalStop(0.1), x, warmup=0)
    assert other.active == set(partition)
    other.load_state_dict(state)
    assert (other.active, other.flops, other.epoch, other.step) == (active, flops, 3, 3)
    assert other.decisions == mat.decisions
    frozen = [name for name, params in partition.items()
              if not model.get_parameter(params[0]).requires_grad]  # fmt: skip
    assert set(frozen) == set(partition) - active
    assert frozen, "unchanged weights have unchanged eigenvalues"
    mat.on_epoch_start()
    other.on_epoch_start()
    assert other.active == mat.active
    with pytest.raises(FoveateError, match="no state"):
        other.load_state_dict({"epoch": 1})


def test_corpora_that_are_read_once_are_decided_on_by_steps():
    model, (x, _) = a_vit(depth=1), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(model, partition, RandomSelection(0.5), x, 3, every="step")
    mat.on_epoch_start()
    assert not mat.decisions
    for _ in range(7):
        mat.on_step_start(1)
    assert [d.step for d in mat.decisions] == [0, 3, 6]


def test_settings_that_make_no_sense_are_refused():
    model, (x, _) = a_vit(depth=1), some_batch()
    partition = ModulePartition.from_model(model, ModuleSpec())
    for wrong in ({"interval": 0}, {"warmup": -1}, {"every": "hour"}, {"mode": "half"}):
        with pytest.raises(FoveateError):
            MATController(model, partition, RatioThreshold(), x, **wrong)
    with pytest.raises(FoveateError, match="readout"):
        MATController(model.blocks, partition, RatioThreshold(), torch.randn(2, 4, 16))


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 99))
def test_measuring_leaves_gradients_flags_and_weights_alone(seed):
    model, (x, y) = a_vit(seed, depth=1), some_batch(seed)
    partition = ModulePartition.from_model(model, ModuleSpec())
    mat = MATController(model, partition, RatioThreshold(0.9), x, warmup=0)
    mat.decide()
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    grads = {n: p.grad if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    mat.decide()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        if grads[name] is None or p.grad is None:
            assert grads[name] is None
            assert p.grad is None
        else:
            assert torch.equal(p.grad, grads[name])
