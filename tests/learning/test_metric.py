"""The two estimators against scalar references written here."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from foveate.errors import FoveateError
from foveate.learning import metric
from foveate.learning.metric import (
    LMNNPL,
    SCMLPL,
    PerturbationLoss,
    discriminative_basis,
    triplets,
)
from metric_oracles import corners, draw, loss_by_hand, mined_by_hand, table

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
    real, calls = metric.nearest_rows, []

    def spy(rows, labels, k, same):
        found = real(rows, labels, k, same)
        calls.append((k, same, rows.shape, labels.tobytes(), found))
        return found

    monkeypatch.setattr(metric, "nearest_rows", spy)
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


def test_auto_tau_is_never_zero():
    """Where the quantile is 0 because rows of two classes coincide, it is that of the others."""
    x, y = np.array([[0.0], [1.0], [1.0], [3.0]]), np.array([0, 0, 1, 1])
    given = {"max_iter": 1, "k_target": 1, "k_impostor": 1}  # margins 0, -1/2, -1, 0
    assert LMNNPL(tau_quantile=0.7, **given).fit(x, y).tau_ == pytest.approx(0.55)
    assert LMNNPL(tau_quantile=0.3, **given).fit(x, y).tau_ == pytest.approx(0.65)
    assert LMNNPL(tau_quantile=0.0, **given).fit(x, y).tau_ == pytest.approx(0.5)


def test_tau_of_many_triplets_takes_bounded_memory(monkeypatch):
    """Margins for tau are taken block by block, and come out the same."""
    x, y = table(20)
    whole = LMNNPL(max_iter=1).fit(x, y).tau_
    longest = []
    real = metric.adversarial_margin

    def spy(L, *points):
        longest.append(len(points[0]))
        return real(L, *points)

    monkeypatch.setattr(metric, "adversarial_margin", spy)
    monkeypatch.setattr(metric, "_BLOCK", 100)
    assert LMNNPL(max_iter=1).fit(x, y).tau_ == whole
    assert max(longest) * x.shape[1] <= 100
    assert sum(longest) == len(triplets(x, y))


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
        (LMNNPL, {"tau": "big"}, "tau"),
        (SCMLPL, {"tau": None}, "tau"),
        (LMNNPL, {"shrinkage": math.nan}, "shrinkage"),
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
        (SCMLPL, {"basis": np.ones((0, 4))}, "basis"),
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


def test_raw_features_go_through_a_scaler():
    """What the docs show: a pipeline with names, one call to fit and predict."""
    x, y = table(18)
    raw = x * [1, 100, 1e-3, 5] + 7
    knn = make_pipeline(StandardScaler(), LMNNPL(max_iter=20), KNeighborsClassifier(3)).fit(raw, y)
    direct = LMNNPL(max_iter=20).fit(StandardScaler().fit_transform(raw), y)
    np.testing.assert_allclose(knn[1].components_, direct.components_)
