"""The sign and its five estimators on a grid, against the closed forms of the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.quantization.straight_through import (
    check_estimator,
    reste_power,
    sign,
    sign_ste,
    slope,
    stochastic_sign,
    straight_through,
)

GRID = np.concatenate(
    [np.linspace(-2.5, 2.5, 2001), [0.0, 1.0, -1.0, 0.1, -0.1, 1.25, 1.5, -1.5]]
).astype(np.float32)


def gradient(estimator: str, **settings) -> np.ndarray:
    x = torch.tensor(GRID, requires_grad=True)
    y = sign_ste(x, estimator, **settings)
    assert y.unique().tolist() == [-1, 1]
    (y * 3).sum().backward()  # any upstream gradient is multiplied
    return x.grad.numpy() / 3


def reste(x: float, o: float, t: float = 1.5, m: float = 0.1) -> float:
    if abs(x) > t:
        return 0.0
    return m ** (1 / o) / m if abs(x) <= m else abs(x) ** ((1 - o) / o) / o


@pytest.mark.parametrize(
    ("estimator", "settings", "expected"),
    [
        ("identity", {}, lambda x: 1.0),
        ("clip", {}, lambda x: float(abs(x) < 1)),
        ("clip", {"threshold": 1.25}, lambda x: float(abs(x) < 1.25)),
        (
            "poly",
            {},
            lambda x: 2 + 2 * x if -1 <= x < 0 else 2 - 2 * x if 0 <= x < 1 else 0.0,
        ),
        ("tanh", {}, lambda x: 5 * (1 - math.tanh(5 * x) ** 2)),
        ("tanh", {"sharpness": 1.0}, lambda x: 1 - math.tanh(x) ** 2),
        ("reste", {}, lambda x: float(abs(x) <= 1.5)),
        ("reste", {"power": 3.0}, lambda x: reste(x, 3.0)),
        ("reste", {"power": 1.7, "threshold": 1.0}, lambda x: reste(x, 1.7, 1.0)),
    ],
)
def test_gradient_on_a_grid(estimator, settings, expected):
    by_hand = np.array([expected(float(x)) for x in GRID])
    # float32 carries 0.1 a little beyond m = 0.1: leave out the jump itself
    inside = np.abs(np.abs(GRID) - 0.1) > 1e-6 if estimator == "reste" else slice(None)
    assert np.allclose(gradient(estimator, **settings)[inside], by_hand[inside], atol=2e-5)


def test_poly_is_the_slope_of_its_published_function():
    """F(x) = -1, 2x + x^2, 2x - x^2, +1 (Bi-Real Net's code), differentiated by autograd."""
    x = torch.tensor(GRID, dtype=torch.float64, requires_grad=True)
    f = torch.where(x < 0, 2 * x + x**2, 2 * x - x**2)
    f = torch.where(x < -1, -1.0, torch.where(x >= 1, 1.0, f))
    (expected,) = torch.autograd.grad(f.sum(), x)
    assert np.allclose(gradient("poly"), expected.numpy(), atol=1e-5)


def test_reste_jumps_by_its_power_at_the_chord():
    below, above = slope("reste", torch.tensor([0.0999, 0.1001]), power=3.0).tolist()
    assert below / above == pytest.approx(3, rel=5e-3)
    assert reste_power(0, 100) == 1
    assert reste_power(100, 100) == pytest.approx(3)
    assert reste_power(50, 100) == pytest.approx(1 + (1 - math.sqrt(0.5)) * 2)
    powers = [reste_power(e, 60, 2.0) for e in range(61)]
    assert powers == sorted(powers)
    with pytest.raises(FoveateError):
        reste_power(3, 2)


def test_sign_has_two_states_also_at_zero_minus_zero_and_nan():
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, math.inf, -math.inf, math.nan])
    assert sign(x).tolist() == [1, 1, 1, -1, 1, -1, -1]
    assert sign(x.double()).dtype == torch.float64
    assert sign(torch.tensor([0.0, -0.0, -1e-20]).bfloat16()).tolist() == [1, 1, -1]


def test_value_and_gradient_come_from_where_they_should():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = straight_through(torch.tensor([7.0, 8.0]), x * 3)
    assert y.tolist() == [7, 8]
    y.sum().backward()
    assert x.grad.tolist() == [3, 3]
    with torch.no_grad():
        assert not sign_ste(x).requires_grad


def test_per_sample_gradients_work_through_it():
    def loss(w, x):
        return (sign_ste(x * w, "poly")).sum()

    w, x = torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)
    for row, sample in zip(per_sample, x, strict=True):
        v = w.clone().requires_grad_()
        loss(v, sample).backward()
        assert torch.allclose(row, v.grad)


@settings(deadline=None, max_examples=20)
@given(x=st.floats(-1.5, 1.5), seed=st.integers(0, 1000))
def test_stochastic_sign_is_the_hard_sigmoid(x, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = stochastic_sign(torch.full((20_000,), x), generator)
    assert set(drawn.unique().tolist()) <= {-1.0, 1.0}
    p = min(max((x + 1) / 2, 0), 1)
    deviation = math.sqrt(p * (1 - p) / 20_000)
    assert abs((drawn > 0).float().mean().item() - p) <= 6 * deviation + 1e-6
    again = stochastic_sign(torch.full((20_000,), x), torch.Generator().manual_seed(seed))
    assert torch.equal(drawn, again)


def test_unknown_estimators_are_named():
    with pytest.raises(FoveateError, match=r"clip, poly, tanh, reste, identity.*'swish'"):
        check_estimator("swish")
