"""The perturbation loss, for linear maps and networks, against scalar references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.certificate import adversarial_margin
from foveate.learning.perturbation_loss import (
    DeepPerturbationLoss,
    PerturbationLoss,
    first_order_margin,
)
from foveate.learning.triplets import triplets
from metric_oracles import corners, draw, loss_by_hand, table


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 3),
    width=st.integers(1, 4),
    count=st.integers(1, 6),
    tau=st.floats(0.01, 3),
    eps=st.floats(0.01, 10),
)
def test_line_4_loss_by_hand(seed, d, width, count, tau, eps):
    """Checklist 1, 3, 4: normal of the input space, both signs, hinge at tau, constant eps."""
    L, *points = draw(seed, (d, width), *[(count, width)] * 3)
    loss = PerturbationLoss(tau, eps)(L, *points)
    assert loss.ndim == 0
    expected = loss_by_hand((L.T @ L).tolist(), *[p.tolist() for p in points], tau, eps)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_line_3_violated_triplets_pay_more_the_worse_they_are():
    """Checklist 3: tau^2 + dt^2, not 0 and not tau^2 - dt^2; at the border tau^2."""
    eye = torch.eye(2, dtype=torch.float64)
    j, f = torch.zeros(1, 2).double(), torch.tensor([[2.0, 0]]).double()
    dt2 = {}
    for position in (-1.0, 0.9, 1.0, 1.1, 3.0):
        x = torch.tensor([[position, 5.0]], dtype=torch.float64)
        dt2[position] = PerturbationLoss(0.5)(eye, x, j, f).item()
    # u = (2, 0), q = 4, g = 4 - 4 position, dt^2 = g^2 / 20
    assert dt2 == pytest.approx(
        {-1.0: 0, 0.9: 0.25 - 0.16 / 20, 1.0: 0.25, 1.1: 0.25 + 0.16 / 20, 3.0: 0.25 + 64 / 20}
    )


def test_line_4_tau_and_eps():
    """Checklist 4: a margin of tau costs nothing; eps is 1 unless given; with eps -> 0, dt is r."""
    L, *points = draw(3, (3, 3), *[(50, 3)] * 3)
    L = 1e4 * L  # u^T M^2 u >> 1
    r = adversarial_margin(L, *points)
    expected = torch.relu(0.3**2 - r.sign() * r.square())
    for eps in (1.0, 1e-9):
        loss = PerturbationLoss(0.3, eps)
        assert loss(L, *points).item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert PerturbationLoss(1.0).eps == 1.0
    good = r > 0.3
    assert good.any()
    assert PerturbationLoss(0.3)(L, *[p[good] for p in points]).item() == pytest.approx(0, abs=1e-6)
    L = L / 1e4
    assert PerturbationLoss(0.3, 1.0)(L, *points) != PerturbationLoss(0.3, 2.0)(L, *points)
    # the +1 lets the loss see the scale of L, which r does not
    assert PerturbationLoss(0.3)(L, *points) != PerturbationLoss(0.3)(2 * L, *points)


@pytest.mark.parametrize("seed", range(5))
def test_line_7_analytic_gradient(seed):
    """Checklist 7: the formula for dJ/dM, and dJ/dL = 2 L sym(dJ/dM)."""
    tau, eps = 0.7, 1.0
    L, *points = draw(seed, (3, 4), *[(30, 4)] * 3)
    L.requires_grad_()
    PerturbationLoss(tau, eps)(L, *points).backward()
    A = L.detach().numpy()
    M = A.T @ A
    total, kinds = np.zeros((4, 4)), set()
    for i, j, f in zip(*[p.numpy() for p in points], strict=True):
        u = f - j
        q, g = u @ M @ M @ u, (i - f) @ M @ (i - f) - (i - j) @ M @ (i - j)
        if tau**2 - np.sign(g) * g**2 / (4 * (q + eps)) <= 0:
            kinds.add("inactive")
            continue
        kinds.add(np.sign(g))
        outer = np.outer(i - f, i - f) - np.outer(i - j, i - j)
        crossed = np.outer(M @ u, u) + np.outer(u, M @ u)
        slope = g / (2 * (q + eps)) * outer - g**2 / (4 * (q + eps) ** 2) * crossed
        total -= np.sign(g) * slope / 30
    assert kinds == {1.0, -1.0, "inactive"}
    np.testing.assert_allclose(L.grad.numpy(), A @ (total + total.T), rtol=1e-9, atol=1e-12)


def test_line_5_loss_stands_alone():
    """Checklist 5: added to somebody else's triplet loss, it trains their linear layer."""
    x, y = table(1)
    layer = nn.Linear(4, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(draw(0, (2, 4))[0])
    points = corners(x, triplets(x, y, 2, 5))
    loss = PerturbationLoss(0.5)
    before = loss(layer.weight, *points).item()
    optimizer = torch.optim.SGD(layer.parameters(), 0.2)
    for _ in range(40):
        total = nn.TripletMarginLoss()(*[layer(p) for p in points]) + loss(layer.weight, *points)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert loss(layer.weight, *points).item() < 0.9 * before


# ------------------------------------------------------------------------------ networks


def test_deep_form_is_the_linear_one_when_the_network_is_linear():
    L, *points = draw(5, (3, 4), *[(20, 4)] * 3)
    layer = nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(L)
    torch.testing.assert_close(first_order_margin(layer, *points), adversarial_margin(L, *points))
    L.requires_grad_()
    deep, plain = (
        DeepPerturbationLoss(0.4, 2.0)(layer, *points),
        PerturbationLoss(0.4, 2.0)(L, *points),
    )
    assert deep.item() == pytest.approx(plain.item(), rel=1e-12)
    deep.backward()
    plain.backward()
    torch.testing.assert_close(layer.weight.grad, L.grad)


def test_deep_form_by_finite_differences():
    """Value from numeric slopes of the gap, gradient from numeric changes of the weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(draw(k, tuple(p.shape))[0])
    points = draw(9, *[(3, 2, 2)] * 3)
    loss = DeepPerturbationLoss(0.6)

    def gap(x):
        return ((net(x) - net(points[2])) ** 2 - (net(x) - net(points[1])) ** 2).sum(1)

    h = 1e-6
    with torch.no_grad():
        slope = torch.zeros(3, dtype=torch.float64)
        for a, b in itertools.product(range(2), repeat=2):
            step = torch.zeros(2, 2, dtype=torch.float64)
            step[a, b] = h
            slope += ((gap(points[0] + step) - gap(points[0] - step)) / (2 * h)) ** 2
        g = gap(points[0])
        expected = torch.relu(0.36 - g.sign() * g**2 / (slope + 4)).mean().item()
        margins = (g / slope.sqrt()).tolist()
        assert first_order_margin(net, *points).tolist() == pytest.approx(margins, rel=1e-5)
    value = loss(net, *points)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()
    weight = net[1].weight
    with torch.no_grad():
        for at in ((0, 0), (3, 2)):
            weight[at] += h
            up = loss(net, *points).item()
            weight[at] -= 2 * h
            down = loss(net, *points).item()
            weight[at] += h
            assert weight.grad[at].item() == pytest.approx((up - down) / (2 * h), abs=1e-5)
    assert points[0].grad is None
    assert not points[0].requires_grad


def test_deep_form_trains_and_a_dead_network_gives_zero():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(draw(k + 20, tuple(p.shape))[0])
    x, y = table(2)
    points = corners(x, triplets(x, y, 1, 2))
    loss, optimizer = DeepPerturbationLoss(0.5), torch.optim.Adam(net.parameters(), 0.01)
    values = []
    for _ in range(25):
        value = loss(net, *points)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]
    dead = nn.Linear(4, 2, dtype=torch.float64)
    nn.init.zeros_(dead.weight)
    assert first_order_margin(dead, *points).unique().tolist() == [0]
    assert loss(dead, *points).item() == pytest.approx(0.25)
    with torch.no_grad():
        assert not loss(net, *points).requires_grad


def test_losses_refuse_what_makes_no_sense():
    L, *points = draw(0, (3, 3), *[(4, 3)] * 3)
    for bad in ((0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, math.inf)):
        for Loss in (PerturbationLoss, DeepPerturbationLoss):
            with pytest.raises(FoveateError, match="tau"):
                Loss(*bad)
    none = [p[:0] for p in points]
    with pytest.raises(FoveateError, match="no triplet"):
        PerturbationLoss(1.0)(L, *none)
    layer = nn.Linear(3, 2, dtype=torch.float64)
    with pytest.raises(FoveateError, match="at least 1"):
        DeepPerturbationLoss(1.0)(layer, *none)
    with pytest.raises(FoveateError, match="one shape"):
        first_order_margin(layer, points[0], points[1], points[2][:2])
    with pytest.raises(FoveateError, match=r"\(B, d\)"):
        first_order_margin(lambda x: x.sum(), *points)


def test_points_that_are_no_floats_are_named():
    layer = nn.Linear(3, 2)
    whole = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(FoveateError, match="floating"):
        first_order_margin(layer, whole, torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(FoveateError, match="does not depend on its input"):
        first_order_margin(lambda x: torch.ones(len(x), 2), *[torch.rand(2, 3)] * 3)
