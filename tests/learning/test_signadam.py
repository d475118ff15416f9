"""The optimisers against scalar references in plain Python, torch's Adam, and what must not happen.

"Line n" is the n-th line of the faithfulness checklist of the method's specification.
"""

from __future__ import annotations

import copy
import io
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.signadam import (
    ConfidenceOptimizer,
    SignAdam,
    SignAdamPP,
    SignSGD,
    Signum,
    sign_confidence,
    threshold_confidence,
)

STEPS = 30


def sign(x: float) -> float:
    return (x > 0) - (x < 0)


def code(x: float, alpha: float) -> float:
    return 0.0 if abs(x) <= alpha else sign(x)


def gradients(seed: int = 0, size: int = 7, scale: float = 1e-3) -> list[list[float]]:
    """For every step; some are exactly 0, one coordinate always."""
    draw = torch.Generator().manual_seed(seed)
    g = torch.randn(STEPS, size, generator=draw, dtype=torch.float64) * scale
    g[torch.rand(STEPS, size, generator=draw) < 0.1] = 0
    g[:, -1] = 0
    return g.tolist()


def weights(size: int = 7) -> list[float]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(size, generator=draw, dtype=torch.float64).tolist()


def path(make, grads: list[list[float]], start: list[float]) -> list[list[float]]:
    """Weights after every step, when the gradient of the loss is `grads`."""
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make([p])
    found = []
    for g in grads:
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        found.append(p.tolist())
    return found


def assert_paths(found: list[list[float]], expected: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- scalar references


def sign_sgd(grads, w, lr, wd):
    for g in grads:
        w = [x - lr * sign(a + wd * x) for x, a in zip(w, g, strict=True)]
        yield w


def signum(grads, w, lr, beta, wd):
    m = [0.0] * len(w)
    for g in grads:
        m = [beta * b + (1 - beta) * (a + wd * x) for b, a, x in zip(m, g, w, strict=True)]
        w = [x - lr * sign(b) for x, b in zip(w, m, strict=True)]
        yield w


def sign_adam(grads, w, lr, b1, b2, eps, wd, corrected):
    m, v = [0.0] * len(w), [0.0] * len(w)
    for k, g in enumerate(grads, 1):
        for i in range(len(w)):
            s = sign(g[i] + wd * w[i])
            m[i] = b1 * m[i] + (1 - b1) * s
            v[i] = b2 * v[i] + (1 - b2) * s * s
            m_hat, v_hat = m[i], v[i]
            if corrected:
                m_hat, v_hat = m[i] / (1 - b1**k), v[i] / (1 - b2**k)
            w = [*w[:i], w[i] - lr * m_hat / (math.sqrt(v_hat) + eps), *w[i + 1 :]]
        yield w


def sign_adam_pp(grads, w, lr, beta, alpha, wd=0.0, adapt=None, decoupled=False, release=False):
    m, u = [0.0] * len(w), 0.0
    for t, raw in enumerate(grads, 1):
        g = raw if decoupled else [a + wd * x for a, x in zip(raw, w, strict=True)]
        if adapt is not None:
            c1, c2 = adapt
            u = c1 * u + (1 - c1) * statistics.pstdev(g)
            alpha = c2 * u / (1 - c1**t)
        s = [code(a, alpha) for a in g]
        m = [beta * b + (1 - beta) * c for b, c in zip(m, s, strict=True)]
        if decoupled:
            w = [x - lr * wd * x for x in w]
        w = [x - lr * b for x, b in zip(w, s if release else m, strict=True)]
        yield w


@pytest.mark.parametrize("wd", [0.0, 1e-3])
def test_baselines_follow_their_scalar_references(wd):
    """Line 13: Sign-SGD and SIGNUM are of the same family."""
    grads, w = gradients(), weights()
    found = path(lambda p: SignSGD(p, 0.01, wd), grads, w)
    assert_paths(found, list(sign_sgd(grads, w, 0.01, wd)))
    found = path(lambda p: Signum(p, 0.01, 0.8, wd), grads, w)
    assert_paths(found, list(signum(grads, w, 0.01, 0.8, wd)))
    assert SignSGD.__mro__[1] is Signum.__mro__[1] is SignAdamPP.__mro__[1]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("wd", "eps"), [(0.0, 1e-8), (1e-3, 0.3)])
def test_sign_adam_follows_its_scalar_reference(corrected, wd, eps):
    """Lines 1, 2 and 7; an eps of 0.3 shows that it is outside the root."""
    grads, w = gradients(), weights()
    found = path(lambda p: SignAdam(p, 0.01, (0.8, 0.95), eps, wd, corrected), grads, w)
    assert_paths(found, list(sign_adam(grads, w, 0.01, 0.8, 0.95, eps, wd, corrected)))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 5e-4},
        {"alpha": 0.0},
        {"alpha": 5e-4, "weight_decay": 1e-3},
        {"alpha": 5e-4, "weight_decay": 0.1, "decoupled": True},
        {"adaptive": True},
        {"adaptive": True, "adapt_betas": (0.7, 1.5), "weight_decay": 1e-3},
        {"adaptive": True, "weight_decay": 0.1, "decoupled": True},
        {"variant": "release", "weight_decay": 1e-3},
    ],
)
def test_sign_adam_pp_follows_its_scalar_reference(options, foreach):
    """Lines 1, 2, 4, 8 and 9, in all forms of the optimiser."""
    grads, w = gradients(), weights()
    found = path(lambda p: SignAdamPP(p, 0.01, 0.8, foreach=foreach, **options), grads, w)
    expected = sign_adam_pp(
        grads,
        w,
        0.01,
        0.8,
        options.get("alpha", 5e-4),
        options.get("weight_decay", 0.0),
        options.get("adapt_betas", (0.9, 0.5)) if options.get("adaptive") else None,
        options.get("decoupled", False),
        options.get("variant") == "release",
    )
    assert_paths(found, list(expected))


def test_sign_adam_corrected_is_torchs_adam_on_signs():
    grads, w = gradients(), weights()
    signs = [[sign(x) for x in g] for g in grads]
    theirs = path(lambda p: torch.optim.Adam(p, 0.01), signs, w)
    assert_paths(path(lambda p: SignAdam(p, 0.01, bias_correction=True), grads, w), theirs)


def test_decoupled_decay_is_adamws():
    """Line 9: without a gradient only the decay is left, as of torch's AdamW."""
    still, w = [[0.0] * 7] * STEPS, weights()
    theirs = path(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1), still, w)
    for options in ({}, {"adaptive": True}):
        ours = path(
            lambda p, o=options: SignAdamPP(p, 0.01, weight_decay=0.1, decoupled=True, **o),
            still,
            w,
        )
        assert_paths(ours, theirs)


# ---------------------------------------------------------------------- single lines


def test_the_average_is_of_signs_and_not_the_other_way_round():
    """Line 1: one large gradient against many small ones."""
    grads = [[10.0]] + [[-0.1]] * 9
    ours = path(lambda p: SignAdamPP(p, 1.0, 0.9, 0.05), grads, [0.0])
    theirs = path(lambda p: Signum(p, 1.0, 0.9), grads, [0.0])
    assert ours[-1][0] - ours[-2][0] == pytest.approx(-(0.1 * 0.9**9 - (1 - 0.9**9)))
    assert theirs[-1][0] - theirs[-2][0] == -1


def test_first_step_is_one_minus_beta():
    """Line 2: m_0 = 0 and the code enters with 1 - beta, not with 1."""
    assert path(lambda p: SignAdamPP(p, 1.0, 0.75, 0.0), [[3.0]], [0.0]) == [[-0.25]]
    (first,) = path(lambda p: SignAdam(p, 1.0), [[3.0]], [0.0])
    assert first[0] == pytest.approx(-0.1 / math.sqrt(0.001), rel=1e-6)  # 3.2 times the rate


@pytest.mark.parametrize(
    ("make", "tensors"),
    [
        (SignAdamPP, 1),
        (lambda p: SignAdamPP(p, adaptive=True), 1),
        (lambda p: SignAdamPP(p, foreach=True), 1),
        (SignAdam, 2),
        (Signum, 1),
        (SignSGD, 0),
    ],
)
def test_state_is_as_small_as_promised(make, tensors):
    """Line 3."""
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = make([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    held = [v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    assert [v.shape for v in held] == [p.shape] * tensors


def test_release_steps_with_the_code_and_beta_does_nothing():
    """Line 4."""
    grads, w = gradients(), weights()
    paths = [
        path(lambda p, b=beta: SignAdamPP(p, 0.01, b, variant="release"), grads, w)
        for beta in (0.0, 0.9)
    ]
    assert paths[0] == paths[1]
    assert paths[0] == path(lambda p: SignAdamPP(p, 0.01, 0.0), grads, w)
    assert paths[0] != path(lambda p: SignAdamPP(p, 0.01, 0.9), grads, w)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=25),
    beta=st.floats(0, 0.999),
    alpha=st.floats(0, 10),
    adaptive=st.booleans(),
    foreach=st.booleans(),
)
def test_no_coordinate_moves_by_more_than_the_rate(values, beta, alpha, adaptive, foreach):
    """Line 5, for any gradients, infinite ones and NaN among them."""
    lr = 2.0**-7
    p = nn.Parameter(torch.zeros(3))
    optimizer = SignAdamPP([p], lr, beta, alpha, adaptive=adaptive, foreach=foreach)
    for row in values:
        before = p.detach().clone()
        p.grad = torch.tensor(row)
        optimizer.step()
        assert float(optimizer.state[p]["momentum_buffer"].abs().max()) <= 1
        # What is left is the rounding of the subtraction: weights stay below 2^-7 * 25.
        assert float((p.detach() - before).abs().max()) <= lr * (1 + 1e-5)


def test_limits_of_alpha():
    """Line 6."""
    grads, w = gradients(), weights()
    plain = path(lambda p: SignAdamPP(p, 0.01, beta=0.0, alpha=0.0), grads, w)
    assert plain == path(lambda p: SignSGD(p, 0.01), grads, w)
    assert path(lambda p: SignAdamPP(p, 0.01, alpha=math.inf), grads, w) == [w] * STEPS
    p, q = (nn.Parameter(torch.tensor(w)) for _ in range(2))
    ours, adam = SignAdamPP([p], 0.01, alpha=0.0), SignAdam([q], 0.01)
    for g in grads:
        p.grad = q.grad = torch.tensor(g)
        before = p.detach().clone()
        ours.step()
        adam.step()
        average = adam.state[q]["exp_avg"]
        assert torch.equal(ours.state[p]["momentum_buffer"], average)
        torch.testing.assert_close(p.detach(), before - 0.01 * average, rtol=0, atol=1e-7)


def test_second_moment_of_dense_gradients():
    """Line 7: v = 1 - b2^k, whatever the size of the gradient."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SignAdam([p], betas=(0.9, 0.99))
    for k in range(1, STEPS):
        p.grad = torch.tensor([1e-9, -1e9], dtype=torch.float64)
        optimizer.step()
        v = optimizer.state[p]["exp_avg_sq"]
        torch.testing.assert_close(v, torch.full_like(v, 1 - 0.99**k), rtol=1e-12, atol=0)


def test_adaptive_alpha_follows_each_tensor():
    """Line 8: one scalar for each tensor, so that scale plays no part."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(50, 40, generator=draw)
    p, q = (nn.Parameter(torch.zeros(50, 40)) for _ in range(2))
    optimizer = SignAdamPP([p, q], adaptive=True)
    for _ in range(5):
        p.grad, q.grad = base.clone(), base * 2**-20
        optimizer.step()
    assert torch.equal(p, q)
    shares = optimizer.sparsity()
    assert shares[0] == shares[1]
    # alpha is half a standard deviation of a normal distribution
    assert shares[0] == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.03)
    held = optimizer.state[p]
    assert held["spread"] / (1 - 0.9**5) == pytest.approx(float(base.std(correction=0)), rel=1e-6)


def test_adaptive_threshold_of_a_single_number_is_zero():
    p = nn.Parameter(torch.zeros(1))
    optimizer = SignAdamPP([p], 1.0, 0.0, adaptive=True)
    p.grad = torch.tensor([1e-20])
    optimizer.step()
    assert p.item() == -1


def test_adaptive_alpha_survives_one_bad_gradient():
    p, q = (nn.Parameter(torch.zeros(64)) for _ in range(2))
    ours, other = (SignAdamPP([x], adaptive=True) for x in (p, q))
    draw = torch.Generator().manual_seed(0)
    for step in range(6):
        g = torch.randn(64, generator=draw)
        p.grad = torch.full_like(g, math.nan) if step in (0, 3) else g
        q.grad = g
        ours.step()
        if step not in (0, 3):
            other.step()
    assert p.isfinite().all()
    assert 0.2 < ours.total_sparsity() < 0.7


def test_l2_is_added_before_the_threshold():
    """Line 9: decay alone makes a code where |w| > alpha / weight_decay."""
    start = [3.0, 1.5, -3.0, -1.5]
    options = {"beta": 0.0, "alpha": 1e-3, "weight_decay": 5e-4}
    for variant in ("paper", "release"):
        ((*moved,),) = path(
            lambda p, v=variant: SignAdamPP(p, 0.1, variant=v, **options), [[0.0] * 4], start
        )
        assert moved == pytest.approx([2.9, 1.5, -2.9, -1.5])
    ((*moved,),) = path(lambda p: SignAdamPP(p, 0.1, decoupled=True, **options), [[0.0] * 4], start)
    assert moved == pytest.approx([w * (1 - 0.1 * 5e-4) for w in start])


def test_without_a_gradient_only_momentum_is_left():
    """Line 10."""
    grads = [[1.0, 0.0]] + [[0.0, 0.0]] * 5
    for foreach in (False, True):
        found = path(lambda p, f=foreach: SignAdamPP(p, 1.0, 0.5, 0.1, foreach=f), grads, [0.0] * 2)
        steps = [round(a[0] - b[0], 12) for a, b in zip(found, [[0.0], *found], strict=False)]
        assert steps == [-0.5, -0.25, -0.125, -0.0625, -0.03125, -0.015625]
        assert all(w[1] == 0 for w in found)
    for make in (SignSGD, SignAdam, Signum):
        assert all(w[1] == 0 for w in path(make, grads, [0.0] * 2))


def test_threshold_is_closed():
    """|g| = alpha is no confidence; the next number is."""
    alpha = 2.0**-10
    above = math.nextafter(alpha, 1)
    grads = [[alpha, -alpha, above, -above]]
    for foreach in (False, True):
        (w,) = path(
            lambda p, f=foreach: SignAdamPP(p, 1.0, 0.0, alpha, foreach=f), grads, [0.0] * 4
        )
        assert w == [0, 0, -1, 1]


# ---------------------------------------------------------------------- line 11: citizenship


FAMILY = {
    "sign-sgd": lambda p: SignSGD(p, 0.01),
    "signum": lambda p: Signum(p, 0.01),
    "signadam": lambda p: SignAdam(p, 0.01),
    "signadam, corrected": lambda p: SignAdam(p, 0.01, bias_correction=True),
    "signadam++": lambda p: SignAdamPP(p, 0.01, alpha=1e-3),
    "signadam++, adaptive": lambda p: SignAdamPP(p, 0.01, adaptive=True),
    "signadam++, lists": lambda p: SignAdamPP(p, 0.01, adaptive=True, foreach=True),
    "release": lambda p: SignAdamPP(p, 0.01, variant="release"),
    "confidence": lambda p: ConfidenceOptimizer(p, 0.01, sign_confidence),
}


@pytest.fixture(params=FAMILY, name="make")
def _make(request):
    return FAMILY[request.param]


def regression(dtype: torch.dtype = torch.float32):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=draw)
    y = x @ torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.25]]).T
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(5, 1).to(dtype)

    def loss() -> torch.Tensor:
        return (net(x.to(dtype)).float() - y).square().mean()

    return net, loss


def train(net: nn.Module, loss, optimizer, steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return loss().item()


def test_learns_with_a_scheduler(make):
    net, loss = regression()
    optimizer = make(net.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 80], 0.1)
    before = loss().item()
    for _ in range(100):
        train(net, loss, optimizer, 1)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert loss().item() < before / 50


def test_closure_is_called_once_with_gradients(make):
    net, loss = regression()
    optimizer, calls = make(net.parameters()), []

    def closure() -> float:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        value = loss()
        value.backward()
        calls.append(value.item())
        return calls[-1]

    first = loss().item()
    assert optimizer.step(closure) == pytest.approx(first)
    assert len(calls) == 1
    assert loss().item() < first


def test_groups_have_settings_of_their_own():
    grads = gradients()
    whole = nn.Parameter(torch.zeros(2, 7, dtype=torch.float64)[0].clone())
    other = nn.Parameter(torch.zeros(7, dtype=torch.float64))
    optimizer = SignAdamPP([{"params": [whole]}, {"params": other, "lr": 0.1, "alpha": 0.0}], 0.01)
    for g in grads:
        whole.grad = other.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    assert_paths([whole.tolist()], list(sign_adam_pp(grads, [0.0] * 7, 0.01, 0.9, 5e-4))[-1:])
    assert_paths([other.tolist()], list(sign_adam_pp(grads, [0.0] * 7, 0.1, 0.9, 0.0))[-1:])


def test_state_dict_goes_on_where_it_stopped(make):
    net, loss = regression()
    optimizer = make(net.named_parameters())
    train(net, loss, optimizer, 7)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, twin_loss = regression()
    twin.load_state_dict(saved["net"])
    again = make(twin.named_parameters())
    again.load_state_dict(saved["optimizer"])
    train(net, loss, optimizer, 5)
    train(twin, twin_loss, again, 5)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_adaptive_state_of_half_precision_is_kept_exactly():
    net, loss = regression(torch.bfloat16)
    optimizer = SignAdamPP(net.parameters(), adaptive=True)
    train(net, loss, optimizer, 3)
    again = SignAdamPP(net.parameters(), adaptive=True)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    spreads = [[s["spread"] for s in o.state.values()] for o in (optimizer, again)]
    assert spreads[0] == spreads[1] != []


def test_copies_can_be_made(make):
    net, loss = regression()
    optimizer = make(net.parameters())
    train(net, loss, optimizer, 2)
    twin = copy.deepcopy(optimizer)
    assert twin.sparsity() == {}
    twin.step()


def test_sparse_and_complex_gradients_are_refused_before_anything_moves(make):
    net = nn.ModuleList([nn.Linear(2, 2), nn.Embedding(4, 2, sparse=True)])
    optimizer = make(net.parameters())
    before = [p.detach().clone() for p in net.parameters()]
    (net[0](torch.ones(1, 2)).sum() + net[1](torch.tensor([1])).sum()).backward()
    with pytest.raises(FoveateError, match=r"sparse gradient.*\(4, 2\).*sparse=False"):
        optimizer.step()
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)
    p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(FoveateError, match="complex"):
        make([p]).step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype):
    """5e-4 rounded to the half type would be on the wrong side of its neighbour."""
    near = torch.tensor(5e-4, dtype=dtype)
    p = nn.Parameter(torch.zeros(2, dtype=dtype))
    for alpha in (5e-4, float(near)):
        for foreach in (False, True):
            optimizer = SignAdamPP([p], 1.0, 0.0, alpha, foreach=foreach)
            p.data.zero_()
            p.grad = torch.stack([near, -near])
            optimizer.step()
            expected = -code(float(near), alpha)
            assert p.tolist() == [expected, -expected]
    # one of the two types rounds 5e-4 up, the other down: both sides are seen
    assert code(float(torch.tensor(5e-4, dtype=torch.bfloat16)), 5e-4) != code(
        float(torch.tensor(5e-4, dtype=torch.float16)), 5e-4
    )


def test_half_precision_learns(make):
    net, loss = regression(torch.bfloat16)
    before = loss().item()
    assert train(net, loss, make(net.parameters()), 60) < before / 10
    assert all(p.dtype == torch.bfloat16 for p in net.parameters())


def test_frozen_parameters_stay_whatever_their_momentum(make):
    """A module that is frozen (grad None) is skipped; its average waits for it."""
    net, loss = regression()
    optimizer = make(net.named_parameters())
    train(net, loss, optimizer, 3)
    held = copy.deepcopy(optimizer.state[net.weight])
    net.weight.requires_grad_(False)
    net.weight.grad = None
    before = net.weight.detach().clone()
    bias = net.bias.detach().clone()
    train(net, loss, optimizer, 3)  # odd: a sign that swings does not come back
    assert torch.equal(net.weight, before)
    assert not torch.equal(net.bias, bias)
    assert set(optimizer.sparsity()) == {"bias"}
    for name, value in held.items():
        assert torch.equal(
            torch.as_tensor(optimizer.state[net.weight][name]), torch.as_tensor(value)
        )


def test_nan_rests():
    p = nn.Parameter(torch.zeros(3))
    for foreach in (False, True):
        optimizer = SignAdamPP([p], foreach=foreach)
        p.grad = torch.tensor([math.nan, 1.0, -math.inf])
        p.data.zero_()
        optimizer.step()
        assert p.sign().tolist() == [0, -1, 1]


# ---------------------------------------------------------------------- lists of tensors


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999),
    shapes=st.lists(
        st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5
    ),
    dtypes=st.lists(
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), min_size=5, max_size=5
    ),
    options=st.fixed_dictionaries(
        {
            "beta": st.sampled_from([0.0, 0.5, 0.9]),
            "alpha": st.sampled_from([0.0, 0.5, math.inf]),
            "adaptive": st.booleans(),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "decoupled": st.booleans(),
        }
    ),
    release=st.booleans(),
)
def test_lists_give_the_same_bits(seed, shapes, dtypes, options, release):
    if release:
        options = {**options, "adaptive": False, "decoupled": False, "variant": "release"}
    nets, optimizers = [], []
    for foreach in (False, True):
        draw = torch.Generator().manual_seed(seed)
        net = [
            nn.Parameter(torch.randn(shape, generator=draw).to(dtype))
            for shape, dtype in zip(shapes, dtypes, strict=False)
        ]
        optimizer = SignAdamPP(net, 0.01, foreach=foreach, **options)
        for _ in range(4):
            for p in net:
                g = torch.randn(p.shape, generator=draw).to(p.dtype)
                p.grad = None if float(torch.rand((), generator=draw)) < 0.2 else g
            optimizer.step()
        nets.append(net)
        optimizers.append(optimizer)
    for ours, theirs in zip(*nets, strict=True):
        assert torch.equal(ours, theirs)
    assert optimizers[0].sparsity() == optimizers[1].sparsity()


# ---------------------------------------------------------------------- line 12: sparsity


def test_sparsity_is_that_of_the_code_by_layer_and_overall():
    """Line 12; the average stays dense where the code is zero."""
    net = nn.Linear(3, 2)
    for foreach in (False, True):
        optimizer = SignAdamPP(net.named_parameters(), alpha=0.5, foreach=foreach)
        assert optimizer.sparsity() == {}
        assert math.isnan(optimizer.total_sparsity())
        net.weight.grad = torch.tensor([[1.0, 0.5, -2.0], [0.1, 0.0, -0.5]])
        net.bias.grad = torch.tensor([0.51, -0.51])
        optimizer.step()
        optimizer.zero_grad()  # the numbers stay
        assert optimizer.sparsity() == pytest.approx({"weight": 4 / 6, "bias": 0.0})
        assert optimizer.total_sparsity() == pytest.approx(4 / 8)
        net.weight.grad = torch.zeros(2, 3)
        optimizer.step()
        assert optimizer.sparsity() == {"weight": 1.0}
        assert int(optimizer.state[net.weight]["momentum_buffer"].count_nonzero()) == 2


def test_sparsity_of_unnamed_groups_is_by_position():
    p, q, r = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = SignSGD([{"params": [p, q]}, {"params": [r]}])
    p.grad, r.grad = torch.tensor([0.0, 1.0]), torch.zeros(2)
    optimizer.step()
    assert optimizer.sparsity() == {0: 0.5, 2: 1.0}


# ---------------------------------------------------------------------- algorithm 1


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1), alpha=st.floats(0, 10))
def test_confidences_are_those_of_table_1(values, alpha):
    g = torch.tensor(values)
    smallest = float(torch.finfo(torch.float32).tiny)
    f32 = float(torch.tensor(alpha))
    for found, bound in ((threshold_confidence(g, alpha), f32), (sign_confidence(g), 0.0)):
        expected = [0.0 if abs(x) <= bound or abs(x) < smallest else 1 / abs(x) for x in g.tolist()]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)
        assert bool((found >= 0).all())


def test_numbers_without_a_reciprocal_have_no_confidence():
    g = torch.tensor([1e-40, -1e-40, 1e-38, 0.0])
    assert ((sign_confidence(g) * g).abs() > 0.9).tolist() == [False, False, False, False]
    assert bool((sign_confidence(torch.tensor([1.2e-38])) * 1.2e-38).isclose(torch.ones(1)).all())


def test_confidence_times_gradient_is_the_code_in_half_precision():
    g = torch.tensor([1e-6, -1e-6, 0.0, 2.0], dtype=torch.float16)
    assert (sign_confidence(g) * g).tolist() == pytest.approx([1, -1, 0, 1])
    assert (threshold_confidence(g, 1e-3) * g).tolist() == pytest.approx([0, 0, 0, 1])


def test_algorithm_1_gives_both_methods():
    grads, w = gradients(), weights()
    beta = 0.9
    plus = path(
        lambda p: ConfidenceOptimizer(
            p, 0.01 * (1 - beta), lambda g: threshold_confidence(g, 5e-4), beta
        ),
        grads,
        w,
    )
    assert_paths(plus, path(lambda p: SignAdamPP(p, 0.01, beta, 5e-4), grads, w))
    signs = path(lambda p: ConfidenceOptimizer(p, 0.01, sign_confidence, 0.0), grads, w)
    assert_paths(signs, path(lambda p: SignSGD(p, 0.01), grads, w))


def test_algorithm_1_takes_any_confidence():
    """F = delta on everything is SGD with momentum; the rate is inside the average."""
    grads, w = gradients(), weights()
    ours = path(lambda p: ConfidenceOptimizer(p, 0.3, torch.ones_like, 0.9), grads, w)
    assert_paths(ours, path(lambda p: torch.optim.SGD(p, 0.3, 0.9), grads, w))


def test_algorithm_1_does_not_move_what_has_no_confidence():
    """0 * nan and 0 * inf are nan and would never leave the average."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = ConfidenceOptimizer([p], 0.1, sign_confidence)
    p.grad = torch.tensor([math.nan, math.inf, 1.0])
    optimizer.step()
    assert p.tolist() == pytest.approx([0, 0, -0.1])
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.tolist() == pytest.approx([-0.1, -0.1, -0.29])


# ---------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("kind", "wrong", "word"),
    [
        (SignSGD, {"lr": -1.0}, "lr is -1.0"),
        (SignSGD, {"lr": math.nan}, "lr is nan"),
        (SignSGD, {"lr": math.inf}, "finite"),
        (SignSGD, {"lr": "0.1"}, "lr is '0.1'"),
        (SignSGD, {"lr": torch.tensor(0.1)}, "lr is tensor"),
        (SignSGD, {"weight_decay": -0.1}, "weight_decay"),
        (Signum, {"beta": 1.0}, "below 1"),
        (SignAdam, {"betas": (0.9, 1.0)}, "betas"),
        (SignAdam, {"betas": 0.9}, "two numbers"),
        (SignAdam, {"eps": 0.0}, "eps"),
        (SignAdam, {"eps": -1e-8}, "eps"),
        (SignAdamPP, {"beta": -0.1}, "beta"),
        (SignAdamPP, {"alpha": -1e-4}, "alpha"),
        (SignAdamPP, {"alpha": math.nan}, "alpha"),
        (SignAdamPP, {"adapt_betas": (1.0, 0.5)}, "first of adapt_betas"),
        (SignAdamPP, {"adapt_betas": (0.9, -0.5)}, "second of adapt_betas"),
        (SignAdamPP, {"adapt_betas": (0.9,)}, "two numbers"),
        (SignAdamPP, {"variant": "published"}, "'paper'"),
        (SignAdamPP, {"variant": "release", "adaptive": True}, "neither adaptive"),
        (SignAdamPP, {"variant": "release", "decoupled": True}, "nor decoupled"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(kind, wrong, word):
    with pytest.raises(FoveateError, match=word) as error:
        kind([nn.Parameter(torch.zeros(1))], **wrong)
    assert "\n" not in str(error.value)
    with pytest.raises(FoveateError, match=word):  # nor in a group of its own
        kind([{"params": [nn.Parameter(torch.zeros(1))], **wrong}])


def test_nothing_to_optimise_is_said():
    for nothing in ([], iter(()), torch.zeros(3)):
        with pytest.raises(FoveateError, match="SignAdamPP got no parameters"):
            SignAdamPP(nothing)
    with pytest.raises(FoveateError, match="alpha is -1"):
        threshold_confidence(torch.zeros(2), -1)
    with pytest.raises(FoveateError, match=r"got torch\.int64"):
        sign_confidence(torch.tensor([1, 2]))
    with pytest.raises(FoveateError, match="confidence_fn is 3"):
        ConfidenceOptimizer([nn.Parameter(torch.zeros(1))], 0.1, 3)
    p = nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.ones(2, 3)
    with pytest.raises(FoveateError, match=r"\(2,\) of a gradient of shape \(2, 3\)"):
        ConfidenceOptimizer([p], 0.1, lambda g: g.sum(1)).step()


def test_parameters_without_elements_are_left_alone(make):
    empty, p = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(2))
    optimizer = make([empty, p])
    empty.grad, p.grad = torch.zeros(0, 3), torch.tensor([1.0, -1.0])
    optimizer.step()
    assert set(optimizer.sparsity()) == {1}
