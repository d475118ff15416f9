"""Margins against half-spaces found by search, certificates against attacks on another k-NN."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from foveate.errors import FoveateError
from foveate.learning import certificate
from foveate.learning.certificate import (
    adversarial_margin,
    certified_accuracy,
    exact_radius,
    nn_radius,
    support_point,
)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def scene(seed: int, n: int = 40, q: int = 12, features: int = 3, width: int = 3, classes: int = 3):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(width, features)),
        rng.normal(size=(n, features)),
        np.arange(n) % classes,
        rng.normal(size=(q, features)),
    )


# ------------------------------------------------------------------------------ one triplet


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 4),
    width=st.integers(1, 4),
    count=st.integers(1, 5),
    weighted=st.booleans(),
)
def test_line_2_support_point_is_equidistant_and_r_away(seed, d, width, count, weighted):
    """Checklist 2: equidistant to 1e-9 under M, ||x* - x|| = |r|; with a base metric A0 too."""
    L, x_i, x_j, x_l, root = draw(
        seed, (d, width), (count, width), (count, width), (count, width), (width, width)
    )
    base = root @ root.T + torch.eye(width, dtype=torch.float64) if weighted else None
    A0 = torch.eye(width, dtype=torch.float64) if base is None else base
    x = support_point(L, x_i, x_j, x_l, base)
    r = adversarial_margin(L, x_i, x_j, x_l, base)
    assert x.shape == x_i.shape
    assert r.shape == (count,)
    for n in range(count):
        M = L.T @ L
        to_j, to_l = (float((x[n] - row) @ M @ (x[n] - row)) for row in (x_j[n], x_l[n]))
        assert to_j == pytest.approx(to_l, abs=1e-9 * (1 + to_j + float(r[n]) ** 2))
        move = x[n] - x_i[n]
        assert float(move @ A0 @ move) ** 0.5 == pytest.approx(abs(float(r[n])), rel=1e-7, abs=1e-9)
        before = [float((x_i[n] - row) @ M @ (x_i[n] - row)) for row in (x_j[n], x_l[n])]
        assert (float(r[n]) > 0) == (before[1] > before[0])


@pytest.mark.parametrize("seed", range(6))
def test_line_2_no_nearer_point_loses(seed):
    """Checklist 2: a solver that knows only the distances finds the same nearest point."""
    L, x_i, x_j, x_l, root = (
        t.numpy() for t in draw(seed, (2, 3), (3,), (3,), (3,), (3, 3))
    )  # fmt: skip
    A0 = root @ root.T + np.eye(3)

    def gap(x):
        return np.square(L @ (x - x_l)).sum() - np.square(L @ (x - x_j)).sum()

    if gap(x_i) < 0:
        x_j, x_l = x_l, x_j
    found = scipy.optimize.minimize(
        lambda x: (x - x_i) @ A0 @ (x - x_i),
        x_l,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: -gap(x)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    tensors = [torch.from_numpy(a) for a in (L, x_i, x_j, x_l, A0)]
    assert support_point(*tensors).numpy() == pytest.approx(found.x, abs=1e-5)
    assert float(adversarial_margin(*tensors)) == pytest.approx(found.fun**0.5, abs=1e-6)


def test_line_1_margin_is_measured_in_the_input_space():
    """Checklist 1: scaling L changes d_il - d_ij by its square and r not at all."""
    L, x_i, x_j, x_l = draw(0, (3, 3), (20, 3), (20, 3), (20, 3))
    r = adversarial_margin(L, x_i, x_j, x_l)
    assert torch.allclose(adversarial_margin(100 * L, x_i, x_j, x_l), r, rtol=1e-10)
    # Euclid by hand: along the line from j to l the border is at the middle.
    line = torch.tensor([[0.25], [0.9]], dtype=torch.float64)
    zero, one = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    eye = torch.eye(1, dtype=torch.float64)
    assert adversarial_margin(eye, line, zero, one).tolist() == pytest.approx([0.25, -0.4])
    # A direction that L stretches tenfold does not move a border at right angles to it.
    L = torch.diag(torch.tensor([10.0, 1.0], dtype=torch.float64))
    points = torch.tensor([[0.0, 0.0], [0.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    assert float(adversarial_margin(L, *points)) == pytest.approx(0.5)


def test_rows_that_coincide_give_zero_and_finite_gradients():
    L, x_i, x_j = draw(1, (2, 3), (4, 3), (4, 3))
    L.requires_grad_()
    r = adversarial_margin(L, x_i, x_j, x_j)
    assert r.tolist() == [0] * 4
    assert torch.equal(support_point(L, x_i, x_j, x_j), x_i)
    r.sum().backward()
    assert bool(L.grad.isfinite().all())


def test_margins_of_any_shape_and_wrong_shapes():
    L, x = draw(2, (2, 3), (4, 5, 3))
    assert adversarial_margin(L, x, x + 1, x - 1).shape == (4, 5)
    for bad in ((L, x, x, x[0]), (L[0], x, x, x), (L[:, :2], x, x, x)):
        with pytest.raises(FoveateError, match="expected"):
            adversarial_margin(*bad)
    with pytest.raises(FoveateError, match="A0 has the shape"):
        support_point(L, x, x + 1, x - 1, torch.eye(2, dtype=torch.float64))
    for wrong in (-torch.eye(3), torch.eye(3) + torch.tensor([[0, 0.5, 0], [0] * 3, [0] * 3])):
        with pytest.raises(FoveateError, match="positive definite"):
            support_point(L, x, x + 1, x - 1, wrong.double())


# ------------------------------------------------------------------------------ certificates


def by_the_formula(L, rows, y, point, called, k):
    """rho in plain loops."""
    M, rank = L.T @ L, (k + 1) // 2
    outer = []
    for f in np.flatnonzero(y != called):
        inner = []
        for j in np.flatnonzero(y == called):
            a, b, u = point - rows[f], point - rows[j], rows[f] - rows[j]
            inner.append((a @ M @ a - b @ M @ b) / (2 * np.sqrt(u @ M @ M @ u)))
        inner.sort(reverse=True)
        outer.append(inner[rank - 1])
    return max(0.0, sorted(outer)[rank - 1])


@pytest.mark.parametrize("block", [1, 1 << 22])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_radius_is_the_formulas(k, block, monkeypatch):
    monkeypatch.setattr(certificate, "_BLOCK", block)
    L, rows, y, points = scene(k)
    called, radius = nn_radius(L, rows, y, points, k)
    assert called.tolist() == KNeighborsClassifier(k).fit(rows @ L.T, y).predict(
        points @ L.T
    ).tolist()  # fmt: skip
    expected = [by_the_formula(L, rows, y, p, c, k) for p, c in zip(points, called, strict=True)]
    assert radius == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (radius > 0).any()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_line_9_no_attack_inside_the_radius_changes_the_prediction(k, classes):
    """Checklist 9: random movements and movements towards every foreign row, on scikit-learn."""
    certified = 0
    for seed in range(4):
        L, rows, y, points = scene(100 * seed + k, classes=classes, width=2 + seed % 2)
        rows[:, 0] += y  # something to be sure of
        called, radius = nn_radius(L, rows, y, points, k)
        vote = KNeighborsClassifier(k).fit(rows @ L.T, y)
        rng = np.random.default_rng(seed)
        for point, said, length in zip(points, called, radius, strict=True):
            if length <= 0:
                continue
            certified += 1
            aims = np.concatenate([rng.normal(size=(150, 3)), rows[y != said] - point])
            aims /= np.linalg.norm(aims, axis=1, keepdims=True)
            # the way into each half-space: the normals of all pairs
            normals = (rows[y != said][:, None] - rows[y == said][None]).reshape(-1, 3) @ L.T @ L
            aims = np.concatenate([aims, normals / np.linalg.norm(normals, axis=1)[:, None]])
            moved = point + (1 - 1e-6) * length * aims
            assert (vote.predict(moved @ L.T) == said).all()
    assert certified >= 10


def test_line_9_slack_against_search_in_the_plane(record_property):
    """Checklist 9: the bound is below the distance found by brute force, and near it."""
    L, rows, y, points = scene(7, n=30, q=15, features=2, width=2)
    called, radius = nn_radius(L, rows, y, points)
    _, exact, adversary = exact_radius(L, rows, y, points)
    vote = KNeighborsClassifier(1).fit(rows @ L.T, y)
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    compass = np.stack([np.cos(angles), np.sin(angles)], 1)
    slack = []
    for n, point in enumerate(points):
        step = 1e-2 * exact[n]
        circles = np.arange(1, 103)[:, None, None] * step * compass
        flips = (vote.predict((point + circles).reshape(-1, 2) @ L.T) != called[n]).reshape(102, -1)
        first = np.flatnonzero(flips.any(1))
        assert len(first), "the prediction changes within 102 % of the exact distance"
        assert first[0] + 1 >= 99.9, "and not below it"
        slack.append(radius[n] / exact[n])
        assert np.linalg.norm(adversary[n] - point) == pytest.approx(exact[n])
        beyond = point + (1 + 1e-6) * (adversary[n] - point)
        assert vote.predict(beyond[None] @ L.T)[0] != called[n]
    assert max(slack) <= 1 + 1e-9
    assert np.mean(slack) > 0.8
    record_property("mean radius / true distance in the plane", round(float(np.mean(slack)), 3))


@pytest.mark.parametrize("seed", range(4))
def test_exact_distance_is_a_general_solvers(seed):
    """For every foreign row a quadratic programme by SLSQP; the smallest counts."""
    L, rows, y, points = scene(seed, n=14, q=3, features=4, width=4 if seed % 2 else 3)
    called, exact, _ = exact_radius(L, rows, y, points)
    _, lower = nn_radius(L, rows, y, points)
    M = L.T @ L
    for point, said, distance, bound in zip(points, called, exact, lower, strict=True):
        best = np.inf
        own = rows[y == said]
        for other in rows[y != said]:
            A = 2 * (other - own) @ M
            b = np.square((point - other) @ L.T).sum() - np.square((point - own) @ L.T).sum(1)
            found = scipy.optimize.minimize(
                lambda move: move @ move,
                other - point,
                jac=lambda move: 2 * move,
                method="SLSQP",
                constraints={"type": "ineq", "fun": lambda m, A=A, b=b: A @ m - b,
                             "jac": lambda m, A=A: A},
                options={"ftol": 1e-14, "maxiter": 300},
            )  # fmt: skip
            # It may stop without success where it cannot improve any more; what counts is that
            # the point is allowed.
            if (A @ found.x - b).min() >= -1e-9:
                best = min(best, found.fun**0.5)
        assert distance == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert bound <= distance * (1 + 1e-9)


def test_line_9_certificates_know_no_loss():
    """Checklist 9: the module imports nothing of the package but the error."""
    tree = ast.parse(Path(certificate.__file__).read_text("utf-8"))
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    } | {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    assert {name for name in imported if name.startswith("foveate")} == {"foveate.errors"}


def test_scale_of_the_input_and_of_L():
    """Radii follow the input's unit, not the scale of L; L / s certifies unscaled rows."""
    L, rows, y, points = scene(3)
    _, radius = nn_radius(L, rows, y, points, 3)
    assert nn_radius(7 * L, rows, y, points, 3)[1] == pytest.approx(radius)
    assert nn_radius(L, 5 * rows, y, 5 * points, 3)[1] == pytest.approx(5 * radius)
    # A pipeline that standardises: the certificate in raw units survives raw attacks.
    s, shift = np.array([0.1, 1.0, 20.0]), np.array([3.0, -1.0, 50.0])
    raw, raw_points = rows * s + shift, points * s + shift
    called, radius = nn_radius(L / s, raw, y, raw_points)
    assert called.tolist() == nn_radius(L, rows, y, points)[0].tolist()
    vote = KNeighborsClassifier(1).fit(rows @ L.T, y)
    aims = np.random.default_rng(0).normal(size=(300, 3))
    aims /= np.linalg.norm(aims, axis=1, keepdims=True)
    for point, said, length in zip(raw_points, called, radius, strict=True):
        moved = point + (1 - 1e-6) * length * aims
        assert (vote.predict((moved - shift) / s @ L.T) == said).all()
    _, exact, _ = exact_radius(L / s, raw, y, raw_points)
    assert (radius <= exact * (1 + 1e-9)).all()


def test_ties_duplicates_and_too_few_rows():
    eye, y = np.eye(2), np.array(["a", "b", "a"])
    rows = np.array([[0.0, 0], [0, 0], [5, 0]])  # the first two coincide and disagree
    called, radius = nn_radius(eye, rows, y, [[0.0, 0], [5, 0], [0.1, 0]])
    assert called.tolist() == ["a", "a", "a"]
    assert radius.tolist() == pytest.approx([0, 2.5, 0], abs=1e-9)
    _, exact, _ = exact_radius(eye, rows, y, [[0.0, 0], [5, 0], [0.1, 0]])
    assert exact.tolist() == pytest.approx([0, 2.5, 0], abs=1e-9)
    # One foreign row: the 3-NN rule can never be outvoted; no foreign row: nor the 1-NN rule.
    rows = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    _, radius = nn_radius(eye, rows, [0, 0, 0, 1], [[0.0, 0]], 3)
    assert radius[0] == np.inf
    _, exact, adversary = exact_radius(eye, rows, [0] * 4, [[0.0, 0]])
    assert exact[0] == np.inf
    assert np.isnan(adversary).all()
    # Three classes at a tie are no majority.
    called, radius = nn_radius(eye, rows, [2, 1, 0, 0], [[0.0, 0]], 3)
    assert (called[0], radius[0]) == (0, 0)
    # A rule that sees nothing (L = 0) certifies nothing.
    assert nn_radius(0 * eye, rows, [0, 0, 1, 1], [[0.0, 0]])[1].tolist() == [0]
    assert exact_radius(0 * eye, rows, [0, 0, 1, 1], [[0.0, 0]])[1].tolist() == [0]
    assert nn_radius(eye, rows, [0, 0, 1, 1], np.empty((0, 2)))[1].shape == (0,)


def test_certified_accuracy_by_hand():
    radii, correct = [0.0, 0.1, 0.2, np.inf, 9.0], [True, True, True, True, False]
    share = certified_accuracy(radii, correct, [0, 0.1, 0.15, 100])
    assert share.tolist() == [0.6, 0.4, 0.4, 0.2]
    for bad in (
        ([], [], [0]),
        ([1.0], [1], [0]),
        ([1.0], [True, False], [0]),
        ([np.nan], [True], [0]),
        ([1.0], [True], [-1]),
        ([1.0], [True], 0.1),
    ):
        with pytest.raises(FoveateError):
            certified_accuracy(*bad)


@pytest.mark.parametrize(
    ("L", "rows", "y", "points", "k", "word"),
    [
        (np.eye(2), np.ones((4, 3)), [0, 0, 1, 1], np.ones((1, 3)), 1, "expected L"),
        (np.eye(3), np.ones((4, 3)), [0, 0, 1], np.ones((1, 3)), 1, "expected L"),
        (np.eye(3), np.ones((4, 3)), [0, 0, 1, 1], np.ones(3), 1, "expected L"),
        (np.eye(3), np.empty((0, 3)), [], np.ones((1, 3)), 1, "expected L"),
        (np.eye(3), np.ones((4, 3)), [0, 0, 1, 1], np.full((1, 3), np.nan), 1, "NaN"),
        (np.full((3, 3), np.inf), np.ones((4, 3)), [0, 0, 1, 1], np.ones((1, 3)), 1, "NaN"),
        (np.eye(3), np.ones((4, 3)), [0, 0, 1, 1], np.ones((1, 3)), 2, "odd"),
        (np.eye(3), np.ones((4, 3)), [0, 0, 1, 1], np.ones((1, 3)), 5, "odd"),
    ],
)
def test_bad_input_is_named(L, rows, y, points, k, word):
    with pytest.raises(FoveateError, match=word):
        nn_radius(L, rows, y, points, k)


@pytest.mark.parametrize("k", [1, 3])
def test_line_9_radii_do_not_change_when_everything_is_shifted(k):
    """Checklist 9: far from the origin, beside rows of two classes that nearly coincide, rounding
    made radii too large by a thousandth. All numbers are dyadic, so that shifts are exact."""
    rng = np.random.default_rng(0)
    rows, points = (np.round(rng.normal(size=(n, 3)) * 1024) / 1024 for n in (20, 12))
    L = rng.normal(size=(3, 3))
    rows = np.concatenate([rows, rows[:4] + 2.0**-20])
    y = np.concatenate([np.arange(20) % 2, 1 - np.arange(4) % 2])
    called, radius = nn_radius(L, rows, y, points, k)
    shift = 2.0**22
    again, shifted = nn_radius(L, rows + shift, y, points + shift, k)
    assert np.array_equal(called, again)
    assert shifted == pytest.approx(radius, rel=1e-9)
    exact, far = (exact_radius(L, rows + s, y, points + s)[1] for s in (0.0, shift))
    assert far == pytest.approx(exact, rel=1e-9)


def test_radii_of_many_points_take_bounded_memory(monkeypatch):
    L, rows, y, points = scene(5, n=60, q=50)
    expected, exact = nn_radius(L, rows, y, points, 3), exact_radius(L, rows, y, points)
    real, heights = certificate.cdist, []

    def spy(a, b, *rest):
        heights.append(len(a) * len(b))
        return real(a, b, *rest)

    monkeypatch.setattr(certificate, "cdist", spy)
    monkeypatch.setattr(certificate, "_BLOCK", 200)
    kept = []
    bounds = certificate._bounds

    def watch(*arguments):
        for foreign, found in bounds(*arguments):
            kept.append(found.base.size if found.base is not None else found.size)
            yield foreign, found

    monkeypatch.setattr(certificate, "_bounds", watch)
    for one, other in zip(nn_radius(L, rows, y, points, 3), expected, strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(exact_radius(L, rows, y, points), exact, strict=True):
        assert np.array_equal(one, other)
    assert max(heights) <= 200
    assert max(kept) <= 200


def test_labels_that_are_none_are_refused():
    eye, rows = np.eye(2), np.arange(8.0).reshape(4, 2)
    for y in ([0.0, math.nan, 1.0, 1.0], np.array([None, "a", "a", "b"], object)):
        for radius in (nn_radius, exact_radius):
            with pytest.raises(FoveateError, match="label"):
                radius(eye, rows, y, rows)
    with pytest.raises(FoveateError, match=r"k is 1\.5"):
        nn_radius(eye, rows, [0, 1, 0, 1], rows, 1.5)
