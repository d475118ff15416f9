"""Losses, mining and the two estimators against scalar references written here."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from foveate.errors import FoveateError
from foveate.learning import metric
from foveate.learning.metric import (
    LMNNPL,
    SCMLPL,
    DeepPerturbationLoss,
    PerturbationLoss,
    adversarial_margin,
    discriminative_basis,
    first_order_margin,
    triplets,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def table(seed: int = 0, n: int = 60, features: int = 4, classes: int = 3):
    x, y = make_blobs(n, features, centers=classes, cluster_std=3.0, random_state=seed)
    return (x - x.mean(0)) / x.std(0), y


def corners(x, found):
    return [torch.from_numpy(x[column]) for column in found.T]


# ------------------------------------------------------------------------------ the loss


def loss_by_hand(M, x_i, x_j, x_l, tau, eps):
    """J_P in plain loops, in the two cases of the paper."""
    total, width = 0.0, len(M)
    for i, j, f in zip(x_i, x_j, x_l, strict=True):
        g = normal = 0.0
        for a, b in itertools.product(range(width), repeat=2):
            g += (i[a] - f[a]) * M[a][b] * (i[b] - f[b]) - (i[a] - j[a]) * M[a][b] * (i[b] - j[b])
        for a in range(width):
            normal += sum(M[a][b] * (f[b] - j[b]) for b in range(width)) ** 2
        square = g**2 / (4 * (normal + eps))
        total += max(tau**2 - square, 0) if g > 0 else tau**2 + square
    return total / len(x_i)


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


# ------------------------------------------------------------------------------ mining


def mined_by_hand(x, y, k_target, k_impostor):
    found = []
    for i in range(len(x)):

        def near(others, i=i):
            return sorted(others, key=lambda o: (float(((x[i] - x[o]) ** 2).sum()), o))

        mates = near([j for j in range(len(x)) if y[j] == y[i] and j != i])[:k_target]
        foes = near([j for j in range(len(x)) if y[j] != y[i]])[:k_impostor]
        found += [(i, j, f) for j in mates for f in foes]
    return found


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 2)), min_size=2,
        max_size=14,
    ),
    k_target=st.integers(1, 4),
    k_impostor=st.integers(1, 6),
    block=st.sampled_from([1, 20, 1 << 22]),
)  # fmt: skip
def test_triplets_by_brute_force(rows, k_target, k_impostor, block):
    """Small integers: duplicates and ties, classes of one row, fewer rows than neighbours."""
    x, y = np.array([r[:2] for r in rows], float), np.array([r[2] for r in rows])
    if len(set(y.tolist())) < 2:
        with pytest.raises(FoveateError, match="one class"):
            triplets(x, y)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric, "_BLOCK", block)
        found = triplets(x, y, k_target, k_impostor)
    assert found.dtype == np.int64
    assert found.shape[1:] == (3,)
    expected = mined_by_hand(x, y, k_target, k_impostor)
    assert [row[0] for row in found.tolist()] == [row[0] for row in expected]
    # rows at equal distances may stand for each other: compare distances, not names
    D = cdist(x, x, "sqeuclidean")
    for ours, theirs in zip(found.tolist(), expected, strict=True):
        i, j, f = ours
        assert y[i] == y[j] != y[f]
        assert i != j
        assert (D[i, j], D[i, f]) == (D[theirs[0], theirs[1]], D[theirs[0], theirs[2]])
    assert len({tuple(row) for row in found.tolist()}) == len(found)


def test_triplets_under_a_metric_and_of_any_labels():
    x, y = table(3)
    L = draw(1, (2, 4))[0].numpy()
    assert np.array_equal(triplets(x, y, 2, 4, L), triplets(x @ L.T, y, 2, 4))
    assert np.array_equal(triplets(x, np.array(["a", "b", "c"])[y], 2, 4), triplets(x, y, 2, 4))


@pytest.mark.parametrize(
    ("x", "y", "other"),
    [
        (np.ones(3), [0, 1, 1], {}),
        (np.ones((3, 2)), [0, 1], {}),
        (np.empty((0, 2)), [], {}),
        (np.array([[0, np.nan], [1, 2], [1, 2]]), [0, 1, 1], {}),
        (np.ones((3, 2)), [1, 1, 1], {}),
        (np.ones((3, 2)), [0, 1, 1], {"k_target": 0}),
        (np.ones((3, 2)), [0, 1, 1], {"k_impostor": 0}),
        (np.ones((3, 2)), [0, 1, 1], {"L": np.ones((2, 3))}),
    ],
)
def test_bad_tables_are_refused(x, y, other):
    with pytest.raises(FoveateError) as error:
        triplets(x, y, **other)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ estimators


@parametrize_with_checks([LMNNPL(max_iter=3, remine=2), SCMLPL(max_iter=3)])
def test_line_12_scikit_learns_own_checks(estimator, check):
    """Checklist 12: all of them, without exception."""
    check(estimator)


def lmnn_by_hand(x, y, steps, remine, k_target, k_impostor, mu, lr):
    """Plain LMNN: its gradient in closed form, Adam and mining written out."""
    L = np.eye(x.shape[1])
    first, second = np.zeros_like(L), np.zeros_like(L)
    start = mined_by_hand(x, y, k_target, k_impostor)
    pulled = sorted({(i, j) for i, j, _ in start})
    curve = []
    for step in range(steps):
        if step % remine == 0:
            near = mined_by_hand(x @ L.T, y, 1, k_impostor)
            foes = {i: [f for a, _, f in near if a == i] for i in range(len(x))}
        M, slope, loss = L.T @ L, np.zeros_like(L), 0.0
        for i, j in pulled:
            u = x[i] - x[j]
            loss += (1 - mu) * (u @ M @ u) / len(pulled)
            slope += (1 - mu) * np.outer(u, u) / len(pulled)
        count = sum(len(foes[i]) for i, _ in pulled)
        for i, j in pulled:
            for f in foes[i]:
                u, v = x[i] - x[j], x[i] - x[f]
                violation = 1 + u @ M @ u - v @ M @ v
                if violation > 0:
                    loss += mu * violation / count
                    slope += mu * (np.outer(u, u) - np.outer(v, v)) / count
        curve.append(loss)
        gradient = 2 * L @ slope
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        t = step + 1
        L = L - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return L, curve


def test_line_6_lambda_0_is_plain_lmnn():
    """Checklist 6: LMNN written out in this test, impostors mined anew included."""
    x, y = table(4, n=24, features=3)
    given = {"k_target": 2, "k_impostor": 4, "mu": 0.4}
    model = LMNNPL(lam=0, max_iter=12, remine=5, learning_rate=0.1, **given).fit(x, y)
    L, curve = lmnn_by_hand(x, y, 12, 5, lr=0.1, **given)
    assert model.loss_curve_ == pytest.approx(curve, rel=1e-9)
    np.testing.assert_allclose(model.components_, L, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("Model", [LMNNPL, SCMLPL])
def test_line_6_lambda_0_never_meets_the_loss(Model, monkeypatch):
    """Checklist 6: bit for bit the same whatever tau and eps are, and without the loss at all."""
    x, y = table(5)
    plain = Model(lam=0, max_iter=15, random_state=0).fit(x, y)
    for changed in ({"tau": 3.0}, {"eps": 9.0}, {"tau_quantile": 0.1}):
        again = Model(lam=0, max_iter=15, random_state=0, **changed).fit(x, y)
        assert np.array_equal(again.components_, plain.components_)
        assert again.loss_curve_ == plain.loss_curve_

    def no_loss(*arguments):
        raise AssertionError("the loss was evaluated")

    assert not np.array_equal(
        Model(max_iter=15, random_state=0).fit(x, y).components_, plain.components_
    )
    monkeypatch.setattr(metric, "perturbation_hinge", no_loss)
    assert np.array_equal(
        Model(lam=0, max_iter=15, random_state=0).fit(x, y).components_, plain.components_
    )
    with pytest.raises(AssertionError, match="was evaluated"):
        Model(max_iter=15, random_state=0).fit(x, y)


@pytest.mark.parametrize("Model", [LMNNPL, SCMLPL])
def test_line_5_loss_is_added(Model):
    """Checklist 5: at the start, loss with lambda = loss without + lambda J_P."""
    x, y = table(6)
    given = {"max_iter": 1, "random_state": 0, "k_target": 2, "k_impostor": 5}
    plain = Model(lam=0, **given).fit(x, y)
    found = triplets(x, y, 2, 5)
    start = np.eye(4)
    if Model is SCMLPL:
        basis = plain.basis_
        start = np.sqrt(1 / len(basis)) * basis
    for tau, lam, eps in ((0.4, 10.0, 1.0), (1.5, 0.3, 0.2)):
        model = Model(lam=lam, tau=tau, eps=eps, **given).fit(x, y)
        term = PerturbationLoss(tau, eps)(torch.from_numpy(start), *corners(x, found)).item()
        assert model.loss_curve_[0] == pytest.approx(plain.loss_curve_[0] + lam * term, rel=1e-9)
        assert model.tau_ == tau


@pytest.mark.parametrize("Model", [LMNNPL, SCMLPL])
def test_line_8_arms_mine_alike(Model, monkeypatch):
    """Checklist 8: with and without the loss, mining is asked the same and starts the same."""
    x, y = table(7)
    real, calls = metric._nearest, []

    def spy(rows, labels, k, same):
        found = real(rows, labels, k, same)
        calls.append((k, same, rows.shape, labels.tobytes(), found))
        return found

    monkeypatch.setattr(metric, "_nearest", spy)
    runs = []
    for lam in (0.0, 10.0):
        Model(lam=lam, max_iter=12, random_state=0, k_impostor=6).fit(x, y)
        runs.append(list(calls))
        calls.clear()
    assert len(runs[0]) == len(runs[1]) == (4 if Model is LMNNPL else 2)  # at steps 0, 5, 10
    for one, other in zip(*runs, strict=True):
        assert one[:4] == other[:4]
    for one, other in zip(*(run[:2] for run in runs), strict=True):
        assert np.array_equal(one[4], other[4])
    mates, foes = runs[0][0][4], runs[0][1][4]
    together = [(i, j, f) for i in range(60) for j in mates[i] for f in foes[i]]
    assert together == mined_by_hand(x, y, 3, 6)


def test_auto_tau_is_the_quantile_of_euclidean_margins():
    x, y = table(8)
    sizes = []
    for i, j, f in mined_by_hand(x, y, 3, 10):
        u = x[f] - x[j]
        g = ((x[i] - x[f]) ** 2).sum() - ((x[i] - x[j]) ** 2).sum()
        sizes.append(abs(g) / (2 * np.sqrt(u @ u)))
    for quantile in (0.3, 0.7):
        for Model in (LMNNPL, SCMLPL):
            model = Model(max_iter=1, tau_quantile=quantile).fit(x, y)
            assert model.tau_ == pytest.approx(np.quantile(sizes, quantile))


@pytest.mark.parametrize("Model", [LMNNPL, SCMLPL])
def test_learned_distance_and_what_it_is_good_for(Model):
    """Noise features are turned down; with the loss, triplets miss less of tau."""
    rng = np.random.default_rng(0)
    y = np.arange(480) % 2
    x = rng.normal(size=(480, 6)) * [1, 2, 2, 2, 2, 2]
    x[:, 0] += 3 * y
    train, test = slice(0, 80), slice(80, None)
    missing = {}
    for lam in (0.0, 10.0):
        model = Model(lam=lam, max_iter=80, random_state=0).fit(x[train], y[train])
        M = model.get_mahalanobis_matrix()
        z = model.transform(x[test])
        a, b = x[80] - x[81], z[0] - z[1]
        assert b @ b == pytest.approx(a @ M @ a)
        assert np.allclose(M, M.T)
        assert np.linalg.eigvalsh(M).min() > -1e-9
        assert M[0, 0] > 2 * np.diag(M)[1:].max()
        found = corners(x, triplets(x[train], y[train]))
        loss = PerturbationLoss(model.tau_)
        missing[lam] = float(loss(torch.from_numpy(model.components_), *found))
        assert model.n_iter_ == len(model.loss_curve_) == 80
        assert model.loss_curve_[-1] < model.loss_curve_[0]
        euclid = KNeighborsClassifier(3).fit(x[train], y[train]).score(x[test], y[test])
        learned = make_pipeline(clone(model), KNeighborsClassifier(3)).fit(x[train], y[train])
        assert learned.score(x[test], y[test]) >= euclid
    assert missing[10.0] < 0.98 * missing[0.0]


def test_components_start_as_identity_or_principal_axes():
    x, y = table(9, features=5)
    x = x * [1, 5, 1, 3, 1]
    full = LMNNPL(learning_rate=0, max_iter=1).fit(x, y)
    assert np.array_equal(full.components_, np.eye(5))
    part = LMNNPL(n_components=2, learning_rate=0, max_iter=1).fit(x, y)
    _, axes = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(np.abs(part.components_ @ axes[:, :2:-1]), np.eye(2), atol=1e-9)
    assert part.transform(x).shape == (60, 2)
    assert part.get_feature_names_out().tolist() == ["lmnnpl0", "lmnnpl1"]


def test_shrinkage_pulls_towards_the_start():
    """The control: lambda_F ||L - I||_F^2 / D, to be read off the loss and off the result."""
    x, y = table(10)
    far = {}
    for weight in (0.0, 1.0, 100.0):
        model = LMNNPL(lam=0, shrinkage=weight, max_iter=100).fit(x, y)
        far[weight] = np.linalg.norm(model.components_ - np.eye(4))
    assert far[0.0] > 1.5 * far[1.0] > 3 * far[100.0]
    two = [LMNNPL(lam=0, shrinkage=w, max_iter=2, remine=0).fit(x, y) for w in (0.0, 3.0)]
    one = LMNNPL(lam=0, max_iter=1).fit(x, y).components_  # L of the second step: no pull yet
    added = 3.0 * np.square(one - np.eye(4)).sum() / 4
    assert two[1].loss_curve_[1] == pytest.approx(two[0].loss_curve_[1] + added, rel=1e-9)


def test_more_triplets_than_allowed_are_drawn_by_the_seed():
    x, y = table(11)
    kept = []
    for seed in (0, 0, 1):
        model = LMNNPL(max_triplets=50, max_iter=4, random_state=seed).fit(x, y)
        kept.append(model.components_)
    assert np.array_equal(kept[0], kept[1])
    assert not np.array_equal(kept[0], kept[2])
    every = len(triplets(x, y))
    whole = LMNNPL(max_iter=4).fit(x, y).components_
    assert np.array_equal(LMNNPL(max_triplets=every, max_iter=4).fit(x, y).components_, whole)


# ------------------------------------------------------------------------------ SCML


def test_basis_is_fishers_direction():
    """Two classes of at most 10 rows: every region is the whole table, the direction is known."""
    x, y = table(12, n=16, features=3, classes=2)
    a, b = x[y == 0], x[y == 1]
    within = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in (a, b)) + 1e-3 * np.eye(3)
    fisher = np.linalg.solve(within, a.mean(0) - b.mean(0))
    fisher /= np.linalg.norm(fisher)
    basis = discriminative_basis(x, y, 0)
    assert basis.shape == (2 * 16, 3)  # no more centres than rows
    np.testing.assert_allclose(np.abs(basis @ fisher), 1, atol=1e-8)


def test_basis_is_local_and_of_unit_length():
    x, y = table(13, n=200, features=5, classes=3)
    basis = discriminative_basis(x, y, 0)
    assert basis.shape == (30 * 2 * 2, 5)  # 10 C centres, 10 and 20 rows, C - 1 directions
    assert np.allclose(np.linalg.norm(basis, axis=1), 1)
    assert np.array_equal(discriminative_basis(x, y, 0), basis)
    assert np.linalg.matrix_rank(basis, tol=1e-3) == 5


def test_scml_takes_adams_step_and_then_the_proximal_one():
    """The first step of Adam is lr times the sign of the gradient, here by finite differences."""
    x, y = table(14)
    basis = draw(2, (6, 4))[0].numpy()
    found, tau, lam, lr, eta = triplets(x, y), 0.5, 4.0, 0.01, 0.3

    def objective(w):
        M = (basis.T * w) @ basis
        total = 0.0
        for i, j, f in found:
            u, v = x[i] - x[j], x[i] - x[f]
            total += max(0.0, 1 + u @ M @ u - v @ M @ v)
        points = [x[column].tolist() for column in found.T]
        return total / len(found) + lam * loss_by_hand(M.tolist(), *points, tau, 1.0)

    w = np.full(6, 1 / 6)
    model = SCMLPL(basis, max_iter=1, lam=lam, tau=tau, learning_rate=lr, eta=eta).fit(x, y)
    assert model.loss_curve_[0] == pytest.approx(objective(w))
    h = 1e-5
    slope = [(objective(w + h * e) - objective(w - h * e)) / (2 * h) for e in np.eye(6)]
    assert min(map(abs, slope)) > 1e-3
    assert model.weights_ == pytest.approx(w - lr * np.sign(slope) - lr * eta, abs=1e-6)


def test_scml_reaches_the_optimum():
    """lambda = eta = 0 is a linear programme in w and the slacks; a solver of those agrees."""
    x, y = table(15, n=40)
    basis = draw(3, (8, 4))[0].numpy()
    found = triplets(x, y)
    P = x @ basis.T
    phi = (P[found[:, 0]] - P[found[:, 2]]) ** 2 - (P[found[:, 0]] - P[found[:, 1]]) ** 2
    count = len(phi)
    program = scipy.optimize.linprog(
        np.concatenate([np.zeros(8), np.full(count, 1 / count)]),
        A_ub=np.concatenate([-phi, -np.eye(count)], 1),
        b_ub=-np.ones(count),
        bounds=(0, None),
    )
    assert program.fun > 0.01
    model = SCMLPL(basis, lam=0, eta=0, max_iter=1200, learning_rate=0.03).fit(x, y)
    value = np.maximum(1 - phi @ model.weights_, 0).mean()
    assert program.fun * (1 - 1e-9) <= value <= 1.02 * program.fun
    L = model.components_
    np.testing.assert_allclose(L.T @ L, (basis.T * model.weights_) @ basis, atol=1e-9)
    assert (np.diff(np.linalg.norm(L, axis=1)) <= 1e-12).all()
    sparse = SCMLPL(basis, lam=0, eta=0.5, max_iter=400).fit(x, y)
    assert sparse.weights_.sum() < 0.8 * model.weights_.sum()
    assert sparse.weights_.min() == 0


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("Model", "given", "word"),
    [
        (LMNNPL, {"k_target": 0}, "neighbours"),
        (LMNNPL, {"k_impostor": 0}, "neighbours"),
        (LMNNPL, {"mu": 1.5}, "mu"),
        (LMNNPL, {"lam": -1.0}, "lam"),
        (LMNNPL, {"lam": math.nan}, "lam"),
        (LMNNPL, {"tau": 0.0}, "tau"),
        (LMNNPL, {"eps": 0.0}, "eps"),
        (LMNNPL, {"tau_quantile": 2.0}, "tau_quantile"),
        (LMNNPL, {"shrinkage": -1.0}, "shrinkage"),
        (LMNNPL, {"n_components": 5}, "n_components"),
        (LMNNPL, {"n_components": 0}, "n_components"),
        (LMNNPL, {"max_iter": 0}, "max_iter"),
        (LMNNPL, {"remine": -1}, "remine"),
        (LMNNPL, {"max_triplets": 0}, "max_triplets"),
        (LMNNPL, {"learning_rate": 1e200}, "loss is"),
        (SCMLPL, {"eta": -1.0}, "eta"),
        (SCMLPL, {"eta": 1e6, "max_iter": 5}, "lower eta"),
        (SCMLPL, {"basis": np.ones((2, 3))}, "basis"),
        (SCMLPL, {"basis": np.full((2, 4), np.nan)}, "basis"),
    ],
)
def test_parameters_out_of_range(Model, given, word):
    x, y = table(16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FoveateError, match=word) as error:
            Model(**given).fit(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("Model", [LMNNPL, SCMLPL])
def test_tables_that_teach_nothing(Model):
    x, y = table(17, n=12)
    with pytest.raises(FoveateError, match="one class"):
        Model().fit(x, np.zeros(12))
    with pytest.raises(FoveateError, match="single row"):
        Model().fit(x, np.arange(12))
    with pytest.raises(ValueError, match="NaN"):
        Model().fit(np.where(x > 0, np.nan, x), y)
    # rows of two classes coincide: no margin to take tau from, and still a metric
    same = np.zeros((12, 3))
    assert Model(max_iter=2, random_state=0).fit(same, y).tau_ == 1.0


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


def test_raw_features_go_through_a_scaler():
    """What the docs show: a pipeline with names, one call to fit and predict."""
    x, y = table(18)
    raw = x * [1, 100, 1e-3, 5] + 7
    knn = make_pipeline(StandardScaler(), LMNNPL(max_iter=20), KNeighborsClassifier(3)).fit(raw, y)
    direct = LMNNPL(max_iter=20).fit(StandardScaler().fit_transform(raw), y)
    np.testing.assert_allclose(knn[1].components_, direct.components_)
