"""Tangent kernels against closed forms, Jacobians row by row, each other; double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.modular import ModulePartition, ModuleSpec
from foveate.learning.tangent_kernel import (
    evaluating,
    module_lambda,
    module_ntk,
    target_log_likelihood,
)
from foveate.nn.vision_transformer import VisionTransformer


def an_mlp(seed: int, width: int = 5, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs))
    return net.double()


MODULES = {"in": ["0.weight", "0.bias"], "out": ["2.weight", "2.bias"]}


def inputs(seed: int, n: int, *shape: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, *(shape or (4,)), generator=draw, dtype=torch.float64)


def jacobian(net: nn.Module, x: torch.Tensor, names: list[str]) -> np.ndarray:
    """``(n k, p)``: one backward pass for every output of every input."""
    params = [net.get_parameter(name) for name in names]
    rows = []
    for sample in x:
        for value in net(sample[None])[0]:
            slopes = torch.autograd.grad(value, params, retain_graph=True)
            rows.append(torch.cat([s.flatten() for s in slopes]).numpy())
    return np.array(rows)


def top(kernel: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(kernel)[-1])


# --- kernels -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), n=st.integers(1, 6), k=st.integers(1, 4), d=st.integers(1, 5))
def test_linear_network_has_the_kernel_of_its_inputs(seed, n, k, d):
    """f = W x: Theta = X X^T (x) I, and along every sign vector K = X X^T."""
    net = nn.Linear(d, k, bias=False).double()
    x = inputs(seed, n, d)
    gram = (x @ x.T).numpy()
    exact = module_ntk(net, x, ["weight"])
    assert exact.dtype == torch.float64
    assert np.allclose(exact, np.kron(gram, np.eye(k)))
    assert np.allclose(module_ntk(net, x, ["weight"], exact=False, seed=seed), gram)
    for method in ("pntk", "exact", "power"):
        lam = module_lambda(net, x, {"w": ["weight"]}, method, iterations=40, tol=1e-10)
        assert lam["w"] == pytest.approx(top(gram) / n, rel=1e-6)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), n=st.integers(1, 5), k=st.integers(1, 4))
def test_sum_of_modular_kernels_is_the_full_one_and_bounds_hold(seed, n, k):
    """Checklist 2: additivity, max <= lambda_max(Theta) <= sum; all in double precision."""
    net, x = an_mlp(seed, outputs=k), inputs(seed, n)
    full = module_ntk(net, x, [p for params in MODULES.values() for p in params]).numpy()
    parts = [module_ntk(net, x, params).numpy() for params in MODULES.values()]
    assert np.allclose(sum(parts), full, rtol=1e-12, atol=1e-12)
    for params, part in zip(MODULES.values(), parts, strict=True):
        j = jacobian(net, x, params)
        assert np.allclose(part, j @ j.T, rtol=1e-10, atol=1e-12)
    lam = module_lambda(net, x, MODULES, "exact")
    whole = top(full) / n
    assert max(lam.values()) <= whole * (1 + 1e-12)
    assert whole <= sum(lam.values()) * (1 + 1e-12)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 999), n=st.integers(1, 6), chunk=st.integers(1, 7))
def test_power_finds_the_eigenvalue_of_exact(seed, n, chunk):
    net, x = an_mlp(seed), inputs(seed, n)
    exact = module_lambda(net, x, MODULES, "exact")
    power = module_lambda(net, x, MODULES, "power", chunk=chunk, seed=seed)
    loose = module_lambda(net, x, MODULES, "power", chunk=chunk, seed=seed, iterations=1)
    for name, value in exact.items():
        assert power[name] == pytest.approx(value, rel=5e-3)
        assert power[name] <= value * (1 + 1e-9), "a Ritz value never passes the eigenvalue"
        assert loose[name] <= value * (1 + 1e-9)


def test_all_sign_vectors_together_give_the_mean_of_diagonal_blocks():
    net, x, k = an_mlp(0), inputs(0, 4), 3
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=k)))
    j = jacobian(net, x, MODULES["in"]).reshape(4, k, -1)
    blocks = sum(j[:, c] @ j[:, c].T for c in range(k)) / k
    found = module_ntk(net, x, MODULES["in"], exact=False, signs=every)
    assert np.allclose(found, blocks, rtol=1e-10)
    lam = module_lambda(net, x, MODULES, signs=every)
    assert lam["in"] == pytest.approx(top(blocks) / 4, rel=1e-10)


def test_ones_is_the_sum_of_logits_and_one_output_is_exact():
    net, x = an_mlp(1), inputs(1, 4)
    j = jacobian(net, x, MODULES["in"]).reshape(4, 3, -1).sum(1)
    found = module_ntk(net, x, MODULES["in"], exact=False, signs="ones")
    assert np.allclose(found, j @ j.T / 3, rtol=1e-10)
    net = an_mlp(2, outputs=1)
    pntk, exact = (module_lambda(net, x, MODULES, m) for m in ("pntk", "exact"))
    assert pntk == pytest.approx(exact, rel=1e-10)


def test_pntk_orders_modules_as_exact_after_training():
    """Checklist 2: Spearman >= 0.8 over 24 modules of a small transformer after 120 steps."""
    torch.manual_seed(0)
    net = VisionTransformer(8, 4, width=16, depth=3, heads=4, hidden=32)
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert len(partition) == 24
    centres, optimizer = torch.randn(10, 1, 8, 8), torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(120):
        y = torch.randint(10, (32,))
        loss = F.cross_entropy(net(centres[y] + torch.randn(32, 1, 8, 8)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = centres[torch.arange(16) % 10] + torch.randn(16, 1, 8, 8)
    pntk, exact = (module_lambda(net, x, partition, m) for m in ("pntk", "exact"))
    assert spearmanr(list(pntk.values()), list(exact.values())).statistic >= 0.8
    assert list(pntk) == list(partition)


# --- how it is computed --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pntk", "exact", "power"])
def test_chunks_and_memory_limits_change_nothing(method):
    net, x = an_mlp(3), inputs(3, 5)
    whole = module_lambda(net, x, MODULES, method, chunk=5)
    for chunk, room in ((1, 10**8), (2, 10**8), (3, 1), (2, 5 * 70), (2, 5 * 40)):
        lam = module_lambda(net, x, MODULES, method, chunk=chunk, max_floats=room)
        assert lam == pytest.approx(whole, rel=1e-9)


def test_result_is_divided_by_inputs_and_by_parameters_where_asked():
    net, x = an_mlp(4), inputs(4, 3)
    lam = module_lambda(net, x, MODULES)
    assert module_lambda(net, torch.cat([x, x]), MODULES) == pytest.approx(lam, rel=1e-10)
    per = module_lambda(net, x, MODULES, per_param=True)
    assert per == pytest.approx({"in": lam["in"] / 25, "out": lam["out"] / 18}, rel=1e-12)


@pytest.mark.parametrize("method", ["pntk", "exact", "power"])
def test_eval_mode_seeded_and_network_left_alone(method):
    """Checklist 9: no dropout, no batch statistics, equal calls give equal numbers."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    net.double()(inputs(0, 20))
    net[2].eval()
    net.zero_grad()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modules = {"in": ["0.weight"], "out": ["3.weight"]}
    x = inputs(5, 6)
    first, second = (module_lambda(net, x, modules, method) for _ in range(2))
    assert first == second
    assert [m.training for m in net] == [True, True, False, True]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    other = module_lambda(net, x, modules, method, seed=1)
    assert (other == pytest.approx(first, rel=5e-3)) == (method != "pntk")
    # Samples do not see each other: running statistics, not those of the probe.
    one = module_lambda(net, x[:1], modules, "exact")["out"]
    with evaluating(net):
        hidden = net[1](net[0](x[:1])).detach()
    assert one == pytest.approx(float(hidden.square().sum()), rel=1e-9)


@pytest.mark.parametrize("method", ["pntk", "exact", "power"])
def test_pytorchs_own_transformer_and_its_fused_attention_are_taken(method):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)).double()
    modules = {"attention": ["0.self_attn.in_proj_weight"], "ffn": ["0.linear1.weight"]}
    x = inputs(6, 3, 3, 8)
    net.eval()
    oracle = {}
    for name, params in modules.items():
        j = jacobian(net, x, params)
        oracle[name] = top(j @ j.T) / 3
    lam = module_lambda(net, x, modules, method, signs=64)
    assert lam == pytest.approx(oracle, rel={"pntk": 0.8, "exact": 1e-8, "power": 5e-3}[method])
    assert torch.backends.mha.get_fastpath_enabled()


class Mixture(nn.Module):
    """Each input goes to one of three experts, the third of which is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.new_zeros(len(x), 2)
        chosen = (x[:, 0] > 0).long()
        for number, expert in enumerate(self.experts):
            at = (chosen == number).nonzero()[:, 0]
            y = y.index_add(0, at, expert(x[at]))
        return y


def test_routers_are_taken_one_by_one():
    net, x = Mixture().double(), inputs(7, 6)
    modules = {f"expert {i}": [f"experts.{i}.weight"] for i in range(3)}
    with pytest.raises(FoveateError, match="chunk=1"):
        module_lambda(net, x, modules)
    lam = module_lambda(net, x, modules, "exact", chunk=1)
    for number, rows in enumerate((x[x[:, 0] <= 0], x[x[:, 0] > 0])):
        expected = top((rows @ rows.T).numpy()) / 6
        assert lam[f"expert {number}"] == pytest.approx(expected, rel=1e-9)
    assert lam["expert 2"] == 0
    assert module_lambda(net, x, modules, "power", chunk=6) == pytest.approx(lam, rel=5e-3)


def test_language_models_are_read_out_by_their_targets():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11)).double()
    words, targets = torch.randint(11, (4, 5)), torch.randint(11, (4, 5))
    targets[0, 1:], targets[1] = -100, -100
    read = target_log_likelihood(net(words), targets)
    logp = np.log(torch.softmax(net(words), -1).detach().numpy())
    by_hand = [
        np.mean([logp[b, t, targets[b, t]] for t in range(5) if targets[b, t] >= 0] or [0.0])
        for b in range(4)
    ]
    assert np.allclose(read.detach()[:, 0], by_hand)
    rows = []
    for value in read[:, 0]:
        slope = torch.autograd.grad(value, net[1].weight, retain_graph=True)[0]
        rows.append(slope.flatten().numpy())
    expected = top(np.array(rows) @ np.array(rows).T) / 4
    for method in ("pntk", "exact", "power"):
        lam = module_lambda(
            net, (words, targets), {"map": ["1.weight"]}, method, readout=target_log_likelihood
        )
        assert lam["map"] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(FoveateError, match=r"\(1, 5, 11\); pass a readout"):
        module_lambda(net, words, {"map": ["1.weight"]})
    with pytest.raises(FoveateError, match="logits"):
        target_log_likelihood(net(words), targets[:, :3])


@pytest.mark.parametrize("exact", [True, False])
def test_sums_of_half_precision_do_not_overflow(exact):
    """Squares of float16 leave its range at 256; the kernel of x -> W x is X X^T."""
    net, x = nn.Linear(4, 1, bias=False).half(), torch.full((2, 4), 300.0).half()
    found = module_ntk(net, x, ["weight"], exact)
    assert found.tolist() == [[360_000.0] * 2] * 2


def test_a_parameter_that_is_named_twice_counts_once():
    net, x = nn.Linear(4, 1, bias=False), torch.ones(2, 4)
    assert module_lambda(net, x, {"a": ["weight", "weight"]})["a"] == pytest.approx(4.0)


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pntk", "exact", "power"])
def test_values_that_are_not_finite_are_named(method):
    net = an_mlp(0)
    with torch.no_grad():
        net[2].weight[0, 0] = math.nan
    with pytest.raises(FoveateError, match=r"of in .*finite"):
        module_lambda(net, inputs(0, 3), MODULES, method)


def test_bad_input_is_one_sentence():
    net, x = an_mlp(0), inputs(0, 3)
    for call, word in (
        (lambda: module_lambda(net, x, {"a": ["9.weight"]}), "'a'.*9.weight"),
        (lambda: module_lambda(net, x, {"a": []}), "'a'"),
        (lambda: module_lambda(net, x, {"a": "0.weight"}), "0.weight"),
        (lambda: module_lambda(net, x, {}), "no module"),
        (lambda: module_lambda(net, x[:0], MODULES), r"\(0, 4\)"),
        (lambda: module_lambda(net, (x, x[:2]), MODULES), r"\(3, 4\), \(2, 4\)"),
        (lambda: module_lambda(net, x, MODULES, "gradient"), "'gradient'"),
        (lambda: module_lambda(net, x, MODULES, chunk=0), "chunk"),
        (lambda: module_lambda(net, x, MODULES, signs=0), "got 0"),
        (lambda: module_lambda(net, x, MODULES, signs=torch.ones(2, 4)), r"\(R, 3\).*\(2, 4\)"),
        (lambda: module_ntk(net, x, MODULES["in"], chunk=0), "chunk"),
    ):
        with pytest.raises(FoveateError, match=word) as error:
            call()
        assert "\n" not in str(error.value)
