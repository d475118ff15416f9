"""Threshold tables against the modules they stand for, on every value that can occur."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foveate.engine.thresholds import Thresholds, float_thresholds, integer_thresholds
from foveate.quantization.quantizers import QuantAct, SignSTE, UniformBipolar, UniformUnipolar

CHANNELS = 7


def epilogue(act: QuantAct, seed: int, dyadic: bool) -> Callable[[Tensor], Tensor]:
    """Scale, batch norm, activation and quantiser; gamma has both signs and a zero.

    With `dyadic` every number is a multiple of 1/8, so that values fall exactly on the places
    where codes change.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        row = torch.randn(CHANNELS, generator=generator)
        return (row * 8).round() / 8 if dyadic else row

    norm = nn.BatchNorm2d(CHANNELS).eval()
    with torch.no_grad():
        norm.weight.copy_(draw())
        norm.weight[0] = 0
        norm.weight[1] = -norm.weight[1].abs() - 0.125
        norm.bias.copy_(draw())
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(draw() * 4)
        if dyadic:
            norm.eps = 0.0
            norm.running_var.fill_(4.0)
        else:
            norm.running_var.copy_(draw().abs() + 0.1)
    alpha = draw() / 4
    inner = [nn.Identity(), nn.ReLU(), nn.Hardtanh(-0.5, 1.5), nn.Tanh()][seed % 4]

    def code_of(v: Tensor) -> Tensor:
        y = inner(norm(v[:, :, None, None] * alpha[:, None, None]))
        return act.format.codes(act.integers(y))[..., 0, 0]

    return code_of


def quantiser(kind: str, bits: int) -> QuantAct:
    if kind == "sign":
        return SignSTE()
    if kind == "unipolar":
        act = UniformUnipolar(bits)
        with torch.no_grad():
            act.step_size.fill_(0.25)
        return act
    return UniformBipolar(bits, "learned" if kind == "learned" else "htanh")


def count(found: Thresholds, v: np.ndarray) -> np.ndarray:
    """Codes by comparisons alone: `v` (L, C)."""
    turned = np.where(found.flip.astype(bool), -v, v)
    return (turned[:, None] >= found.table[None]).sum(1)


KINDS = st.sampled_from(["sign", "unipolar", "bipolar", "learned"])


@settings(deadline=None, max_examples=60)
@given(kind=KINDS, bits=st.integers(1, 3), seed=st.integers(0, 999), dyadic=st.booleans())
def test_every_reachable_sum_gets_its_code(kind, bits, seed, dyadic):
    act, reach = quantiser(kind, bits), 400
    code_of = epilogue(act, seed, dyadic)
    found = integer_thresholds(code_of, CHANNELS, act.format.top, reach)
    assert found is not None
    assert found.table.dtype == np.int32
    assert found.table.shape == (act.format.top, CHANNELS)
    assert (found.table[:-1] <= found.table[1:]).all()
    sums = np.arange(-reach, reach + 1)[:, None].repeat(CHANNELS, 1)
    with torch.no_grad():
        expected = code_of(torch.from_numpy(sums).float()).long().numpy()
    assert np.array_equal(count(found, sums), expected)


@settings(deadline=None, max_examples=60)
@given(kind=KINDS, bits=st.integers(1, 3), seed=st.integers(0, 999), dyadic=st.booleans())
def test_floats_around_every_threshold_get_their_code(kind, bits, seed, dyadic):
    act = quantiser(kind, bits)
    code_of = epilogue(act, seed, dyadic)
    found = float_thresholds(code_of, CHANNELS, act.format.top)
    assert found is not None
    assert found.table.dtype == np.float32
    near = np.where(np.isfinite(found.table), found.table, np.float32(0))
    near = np.where(found.flip.astype(bool), -near, near)
    rows = [near]
    for end in (np.float32(-np.inf), np.float32(np.inf)):
        place = near
        for _ in range(3):
            place = np.nextafter(place, end)
            rows.append(place)
    rng = np.random.default_rng(seed)
    rows.append(rng.normal(size=(300, CHANNELS)).astype(np.float32) * 8)
    rows.append((rng.integers(-80, 80, (300, CHANNELS)) / 8).astype(np.float32))
    extremes = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38]
    rows.append(np.repeat(np.array(extremes, np.float32)[:, None], CHANNELS, 1))
    values = np.concatenate(rows)
    with torch.no_grad():
        expected = code_of(torch.from_numpy(values)).long().numpy()
    assert np.array_equal(count(found, values), expected)


def test_a_tie_goes_up_exactly_as_in_torch():
    """S/4 at step 1/2: the code changes at S = 1, 3, 5, where S/4 is half way between levels."""
    act = UniformUnipolar(2)
    with torch.no_grad():
        act.step_size.fill_(0.5)
    found = integer_thresholds(lambda v: act.integers(v * 0.25), 1, 3, 1000)
    assert found is not None
    assert found.table[:, 0].tolist() == [1, 3, 5]
    falling = integer_thresholds(lambda v: act.integers(v * -0.25), 1, 3, 1000)
    assert falling is not None
    assert falling.flip.tolist() == [1]
    assert falling.table[:, 0].tolist() == [1, 3, 5]
    floats = float_thresholds(act.integers, 1, 3)
    assert floats is not None
    # Of floats the one below 0.25 already rounds up: 0.49999997 + 0.5 is 1 in float32.
    assert floats.table[:, 0].tolist() == [np.nextafter(np.float32(0.25), 0), 0.75, 1.25]


def test_sign_has_its_threshold_at_zero():
    act = SignSTE()
    found = float_thresholds(lambda v: act.format.codes(act.integers(v)), 2, 1)
    assert found is not None
    assert found.table.tolist() == [[0.0, 0.0]]
    whole = integer_thresholds(lambda v: act.format.codes(act.integers(v)), 2, 1, 9)
    assert whole is not None
    assert whole.table.tolist() == [[0, 0]]


@pytest.mark.parametrize(("value", "code"), [(-5.0, 0), (0.26, 1), (9.0, 3)])
def test_zero_slope_is_a_constant(value, code):
    act = UniformUnipolar(2)
    with torch.no_grad():
        act.step_size.fill_(0.25)

    def code_of(v: Tensor) -> Tensor:
        return act.integers(v * 0 + value)

    lowest, highest = -(2**31), 2**31 - 1
    expected = [lowest] * code + [highest] * (3 - code)
    whole = integer_thresholds(code_of, 3, 3, 10**6)
    assert whole is not None
    assert whole.table[:, 1].tolist() == expected
    real = float_thresholds(code_of, 3, 3)
    assert real is not None
    assert real.table[:, 2].tolist() == [-np.inf] * code + [np.inf] * (3 - code)


def test_large_sums_round_as_float32_does():
    """Beyond 2^24 neighbouring sums become one float: the jump is where the float jumps."""
    act = SignSTE()
    reach = 2**30
    border = 2**26 + 5  # no float32; sums from 2^26 + 4 on round to 2^26 + 8 or stay below

    def code_of(v: Tensor) -> Tensor:
        return act.format.codes(act.integers(v - (2**26 + 8)))

    found = integer_thresholds(code_of, 1, 1, reach)
    assert found is not None
    sums = np.arange(border - 40, border + 40)[:, None]
    expected = (sums.astype(np.float32) >= 2**26 + 8).astype(int)
    assert np.array_equal(count(found, sums), expected)


@pytest.mark.parametrize(
    "bump",
    [lambda v: v.abs(), lambda v: torch.where(v > 0, v, -0.5 * v), lambda v: torch.sin(v / 9)],
)
def test_what_is_not_monotone_has_no_table(bump):
    act = UniformUnipolar(2)
    with torch.no_grad():
        act.step_size.fill_(0.5)
    assert integer_thresholds(lambda v: act.integers(bump(v)), 2, 3, 50) is None
    assert float_thresholds(lambda v: act.integers(bump(v)), 2, 3) is None
