"""Quantisers against nearest-level search, the engine's float32 formula in numpy, LSQ by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.quantization.quantizers import (
    QuantAct,
    SignSTE,
    SignWeight,
    SoftSign,
    TwosWeight,
    UniformBipolar,
    UniformBipolarWeight,
    UniformUnipolar,
)

BITS = range(1, 9)
F32 = np.float32


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(bits: int) -> torch.Tensor:
    """Dense numbers around [-1, 1], all exact ties of the rounding, and what lies outside."""
    n = 2**bits - 1
    ties = torch.tensor([(2 * k + 1) / n - 1 for k in range(n)])
    return torch.cat((torch.linspace(-1.5, 1.5, 3001), ties, torch.tensor([0.0, -0.0, 9, -9])))


def engine_bipolar(y: np.ndarray, step: np.float32, bits: int) -> np.ndarray:
    """Codes as the engine's page has them, one float32 operation after the other."""
    n = 2**bits - 1
    if bits == 1:
        return (y >= 0).astype(int)
    t = y / F32(float(step) * n)
    t = t + F32(1)
    t = t * F32(n / 2)
    u = np.floor(t + F32(0.5))
    return np.where(np.isnan(u), 0, np.clip(u, 0, n)).astype(int)


def engine_unipolar(y: np.ndarray, step: np.float32, bits: int) -> np.ndarray:
    u = np.floor(y / step + F32(0.5))
    return np.where(np.isnan(u), 0, np.clip(u, 0, 2**bits - 1)).astype(int)


# --- activations ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_bipolar_levels_are_the_nearest_with_ties_up(bits):
    act = UniformBipolar(bits)
    x = grid(bits)
    levels = np.linspace(-1, 1, 2**bits)
    q = act(x).numpy()
    nearest = np.abs(x.double().numpy().clip(-1, 1)[:, None] - levels).min(1)
    assert np.allclose(np.abs(q - x.numpy().clip(-1, 1)), nearest, atol=3e-7)
    assert sorted(set(act.integers(x).tolist())) == list(range(-(2**bits) + 1, 2**bits, 2))
    assert act(torch.tensor([1.0, -1.0])).tolist() == [1, -1], "both ends are levels"
    assert act.step().dtype == torch.float32
    assert act.step().ndim == 0
    assert act.step().item() == pytest.approx(1 / (2**bits - 1))
    # x = 0 is a tie for every width: up, to the real value +1 / (2^k - 1)
    for zero in (0.0, -0.0):
        assert act.integers(torch.tensor(zero)).item() == 1
        assert act(torch.tensor(zero)).item() == pytest.approx(1 / (2**bits - 1))


@pytest.mark.parametrize("bits", BITS)
def test_bipolar_is_equation_15_off_ties(bits):
    x = torch.rand(4000, generator=seeded()) * 2 - 1
    n = 2**bits - 1
    expected = 2 * (np.round(n * (x.double().numpy() + 1) / 2) / n - 0.5)
    assert np.allclose(UniformBipolar(bits)(x).numpy(), expected, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 8),
    values=st.lists(st.floats(width=32), min_size=1, max_size=30),
    limit=st.floats(0.015625, 64, width=32),
)
def test_codes_are_the_engines_bit_for_bit(bits, values, limit):
    y = np.array(values, F32)
    x = torch.from_numpy(y)
    learned = UniformBipolar(bits, "learned")
    unipolar = UniformUnipolar(bits)
    with torch.no_grad(), np.errstate(all="ignore"):
        learned.limit.fill_(limit)
        unipolar.step_size.fill_(limit)
        for act in (UniformBipolar(bits), learned):
            codes = act.format.codes(act.integers(x))
            expected = engine_bipolar(y, F32(act.step().item()), bits)
            assert codes.tolist() == expected.tolist()
        rescaled = UniformBipolar(bits, "relu_rescaled")
        for act in (unipolar, rescaled):
            codes = act.format.codes(act.integers(x))
            assert codes.tolist() == engine_unipolar(y, F32(act.step().item()), bits).tolist()
        assert SignSTE().integers(x).tolist() == [1.0 if v >= 0 else -1.0 for v in values]


@pytest.mark.parametrize("bits", BITS)
def test_ties_go_up_as_in_the_engine(bits):
    """Ties that float32 really meets: half-even rounding would take other codes."""
    y = grid(bits).numpy()
    act = UniformBipolar(bits)
    codes = act.format.codes(act.integers(torch.from_numpy(y))).numpy()
    assert np.array_equal(codes, engine_bipolar(y, F32(act.step().item()), bits))
    top = 2**bits - 1
    v = (y + F32(1)) * F32(top / 2)
    ties = (v % 1 == 0.5) & (np.abs(y) < 1)
    assert ties.any()
    if bits > 1:
        assert (codes[ties] == np.ceil(v[ties])).all()
        assert (np.round(v[ties]) != codes[ties]).any()
    unipolar = UniformUnipolar(bits)
    with torch.no_grad():
        unipolar.step_size.fill_(0.25)
    halves = torch.arange(-2, 2**bits + 2) * 0.25 + 0.125
    expected = np.arange(-1, 2**bits + 3).clip(0, top)
    assert unipolar.integers(halves).tolist() == expected.tolist()


def test_one_bit_is_the_sign_however_small_the_number():
    x = torch.tensor([-1e-45, -1e-38, 1e-45, -0.0, math.nan, -math.inf])
    learned = UniformBipolar(1, "learned")
    with torch.no_grad():
        learned.limit.fill_(1e4)
    for act in (UniformBipolar(1), learned, SignSTE()):
        assert act.integers(x).tolist() == [-1, -1, 1, 1, -1, -1]


@pytest.mark.parametrize("bits", BITS)
def test_clipped_gradient_of_path_b(bits):
    for range, low in (("htanh", -1), ("hrelu", 0 if bits > 1 else -1), ("relu_rescaled", 0)):
        x = grid(bits).requires_grad_()
        UniformBipolar(bits, range)(x).sum().backward()
        inside = (x.detach() >= low) & (x.detach() <= 1)
        # ReLU ranges: their gradient at exactly 0 may be 0 or 1
        at_edge = (x.detach() == 0) & (low == 0)
        assert torch.allclose(x.grad[~at_edge], inside[~at_edge].float(), atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_hrelu_uses_the_upper_half_of_the_levels(bits):
    act = UniformBipolar(bits, "hrelu")
    s = act.integers(grid(bits))
    assert sorted(set(s.tolist())) == list(range(1, 2**bits, 2))
    top_plane = act.format.codes(s).long() >> (bits - 1)
    assert (top_plane == 1).all()
    top = act.format.top
    assert act.integers(torch.tensor([-3.0, 0.0, 1.0, 3.0])).tolist() == [1, 1, top, top]


def test_one_bit_takes_htanh():
    """HReLU followed by one bit would make every activation +1."""
    act = UniformBipolar(1, "hrelu")
    assert act.range == "htanh"
    assert act(torch.tensor([-0.5, 0.5])).tolist() == [-1, 1]
    assert UniformBipolar(4, "hrelu").with_bits(1).range == "htanh"
    assert UniformBipolar(4, "hrelu").with_bits(1).with_bits(4).range == "hrelu"


@pytest.mark.parametrize("bits", BITS)
def test_relu_rescaled_encodes_2x_minus_1_on_all_levels(bits):
    act = UniformBipolar(bits, "relu_rescaled")
    x = torch.rand(3000, generator=seeded()) * 1.4 - 0.2
    n = 2**bits - 1
    inner = 2 * x.double().clamp(0, 1) - 1
    encoded = 2 * torch.floor(n * (inner + 1) / 2 + 0.5) - n  # the odd integers of x'
    folded = (encoded / n + 1) / 2  # x = (x' + 1) / 2
    assert np.allclose(act(x).numpy(), folded.numpy(), atol=1e-6)
    assert act.format.kind == "unipolar"
    assert act.integers(x).unique().numel() == 2**bits
    assert act(torch.tensor(0.0)).item() == 0, "zero padding stays exact"


@pytest.mark.parametrize("make", [UniformUnipolar, lambda bits: UniformBipolar(bits, "learned")])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_learned_steps_have_lsq_gradients(make, bits):
    act = make(bits)
    parameter = next(act.parameters())
    with torch.no_grad():
        parameter.mul_(0.6)
    step = act.step().item()
    x = torch.randn(5, 7, 3, generator=seeded(bits))
    x.requires_grad_()
    weight = torch.randn(x.shape, generator=seeded(9))
    (act(x) * weight).sum().backward()
    n = 2**bits - 1
    low = 0 if act.format.kind == "unipolar" else -n
    v = x.detach().double().numpy() / step
    s = act.integers(x.detach()).detach().double().numpy()
    inside = (v >= low) & (v <= n)
    by_step = np.where(inside, s - v, s)  # Esser et al., eq. 3
    gain = 1 / math.sqrt(n * 21)  # eq. 8, 21 features of one sample
    per_parameter = (weight.numpy() * by_step).sum() * gain
    if parameter is getattr(act, "limit", None):
        per_parameter /= n  # the step is limit / n
    assert parameter.grad.item() == pytest.approx(per_parameter, rel=1e-4, abs=1e-6)
    assert np.allclose(x.grad.numpy(), weight.numpy() * inside, atol=1e-6)


def test_learned_step_stays_positive_and_finite():
    act = UniformUnipolar(3)
    for value in (-0.25, 0.0):
        with torch.no_grad():
            act.step_size.fill_(value)
        assert act.step().item() > 0
        assert act(torch.randn(20)).isfinite().all()
    with torch.no_grad():
        act.step_size.fill_(-0.25)
    assert act(torch.tensor([0.3])).item() == pytest.approx(0.25)


def test_default_step_is_lsqs_start_for_a_rectified_normal_input():
    x = torch.randn(400_000, generator=seeded()).relu()
    for bits in (2, 4, 8):
        expected = 2 * x.mean().item() / math.sqrt(2**bits - 1)
        assert UniformUnipolar(bits).step().item() == pytest.approx(expected, rel=0.01)


def test_stages_stand_for_the_real_functions():
    x = torch.linspace(-2, 2, 41)
    cases = [
        (SignSTE(), x),
        (UniformBipolar(3), x.clamp(-1, 1)),
        (UniformBipolar(3, "hrelu"), x.relu()),
        (UniformBipolar(3, "relu_rescaled"), x.relu()),
        (UniformBipolar(3, "learned"), x),
        (UniformUnipolar(3), x.relu()),
    ]
    for act, expected in cases:
        quantised = act(x)
        act.switch("real")
        assert torch.equal(act(x), expected)
        act.switch("codes")
        assert torch.equal(act(x), quantised)
        if not isinstance(act, SignSTE):
            with pytest.raises(FoveateError, match="soft"):
                act.switch("soft")


def test_soft_stage_is_tanh_with_its_true_gradient():
    act = SignSTE()
    act.switch("soft")
    act.soft.sharpness = 2.0
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    y = act(x)
    assert torch.equal(y, torch.tanh(2 * x))
    y.sum().backward()
    assert torch.allclose(x.grad, 2 * (1 - torch.tanh(2 * x.detach()) ** 2), atol=1e-6)
    with pytest.raises(FoveateError):
        SoftSign(0)


def test_stochastic_only_in_training():
    act = SignSTE(stochastic=True)
    act.generator = seeded(3)
    x = torch.full((4000,), 0.5)
    assert (act(x) > 0).float().mean().item() == pytest.approx(0.75, abs=0.04)
    copy.deepcopy(act)  # a net that holds it can be copied
    assert (act.eval()(x) == 1).all()


def test_state_dicts_hold_learned_numbers_only():
    for act in (SignSTE(), UniformBipolar(4), UniformBipolar(4, "hrelu"), SignWeight()):
        assert not act.state_dict()
    assert set(UniformUnipolar(4).state_dict()) == {"step_size"}
    assert set(UniformBipolar(4, "learned").state_dict()) == {"limit"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_come_back_but_codes_are_found_in_float32(dtype):
    x = torch.randn(200, generator=seeded()).to(dtype)
    for act in (SignSTE(), UniformBipolar(4), UniformUnipolar(4)):
        y = act.to(dtype)(x)
        assert y.dtype == dtype
        assert act.step().dtype == torch.float32
        assert torch.equal(act.integers(x), copy.deepcopy(act).float().integers(x.float()))


@pytest.mark.parametrize("make", [UniformUnipolar, lambda bits: UniformBipolar(bits, "learned")])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_fit_finds_the_least_squares_step(make, bits):
    x = torch.randn(6000, generator=seeded(bits)) * 3
    act = make(bits)
    seen = x if act.format.kind == "bipolar" else x.relu()

    def error() -> float:
        return (act(seen) - seen).square().mean().item()

    act.fit(x)
    fitted, parameter = error(), next(act.parameters())
    best = math.inf
    start = parameter.item()
    for ratio in np.geomspace(0.2, 5, 400):
        with torch.no_grad():
            parameter.fill_(start * float(ratio))
        best = min(best, error())
    assert fitted <= 1.05 * best
    act.fit(x, percentile=99.0)
    sample = x[x > 0] if act.format.kind == "unipolar" else x.abs()
    limit = act.step().item() * act.format.top
    assert limit == pytest.approx(np.percentile(sample.numpy(), 99), rel=1e-3)


def test_fit_with_nothing_to_see_leaves_the_step():
    for act in (UniformUnipolar(4), UniformBipolar(4, "learned")):
        before = act.step().item()
        act.fit(torch.zeros(10))
        assert act.step().item() == before
    with pytest.raises(FoveateError, match="no learned step"):
        UniformBipolar(4).fit(torch.ones(3))


# --- weights -------------------------------------------------------------------------------


def weights(seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(6, 5, 3, 3, generator=seeded(seed)) * scale


def test_sign_weight_has_two_values_and_the_clip_gradient():
    w = torch.tensor([[0.0, -0.5, 1.0, -1.0, 1.2]], requires_grad=True)
    y = SignWeight()(w)
    assert y.tolist() == [[1, -1, 1, -1, 1]]
    y.sum().backward()
    assert w.grad.tolist() == [[1, 1, 0, 0, 0]]


def test_xnor_alpha_is_the_mean_magnitude():
    w = weights()
    for xnor in ("stopped", "flowing"):
        step = SignWeight(xnor=xnor).step(w)
        assert step.shape == (6,)
        assert np.allclose(step.numpy(), np.abs(w.numpy()).reshape(6, -1).mean(1), rtol=1e-6)
    centred = w.numpy() - w.numpy().mean(1, keepdims=True)
    quantizer = SignWeight(xnor="stopped", center=True)
    assert np.allclose(quantizer.step(w).numpy(), np.abs(centred).reshape(6, -1).mean(1), atol=1e-7)
    assert np.array_equal(quantizer.integers(w).numpy(), np.where(centred >= 0, 1, -1))


def test_xnor_gradient_is_stopped_or_flows():
    up = torch.randn(6, 5, 3, 3, generator=seeded(5))
    gradients = {}
    for xnor in ("stopped", "flowing"):
        w = weights(scale=0.7).requires_grad_()
        (SignWeight(xnor=xnor)(w) * up).sum().backward()
        gradients[xnor] = w.grad.numpy()
    w = weights(scale=0.7).numpy()
    signs = np.where(w >= 0, 1, -1)
    alpha = np.abs(w).reshape(6, -1).mean(1).reshape(6, 1, 1, 1)
    through_sign = alpha * up.numpy() * (np.abs(w) < 1)
    through_alpha = (up.numpy() * signs).reshape(6, -1).sum(1).reshape(6, 1, 1, 1) * signs / 45
    assert np.allclose(gradients["stopped"], through_sign, atol=1e-5)
    assert np.allclose(gradients["flowing"], through_sign + through_alpha, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_bipolar_weights(bits):
    n = 2**bits - 1
    w = weights(bits, 0.4)
    clip = UniformBipolarWeight(bits, "clip")
    assert torch.equal(clip(w), UniformBipolar(bits)(w)), "the paper: q_k of the clipped weight"
    assert clip.clips_latent
    assert clip.step(w).ndim == 0
    squashed = np.tanh(w.double().numpy())
    squashed /= np.abs(squashed).max()
    integers = 2 * np.floor(n * (squashed + 1) / 2 + 0.5) - n
    doubtful = np.abs((n * (squashed + 1) / 2 + 0.5) % 1) < 1e-4
    ours = UniformBipolarWeight(bits, "tanh_max").integers(w).numpy()
    if bits > 1:
        assert (ours == integers)[~doubtful].all()
    assert np.abs(ours).max() == n, "the largest weight takes the last level"
    lsq = UniformBipolarWeight(bits, "lsq", 6)
    lsq.fit(w)
    assert lsq.step(w).shape == (6,)
    assert (lsq.integers(w) % 2 == 1).all()
    assert torch.allclose(lsq(w), lsq.integers(w) * lsq.step(w).reshape(6, 1, 1, 1))


@pytest.mark.parametrize("bits", range(2, 9))
def test_twos_weights(bits):
    quantizer = TwosWeight(bits, 6)
    w = weights(bits)
    quantizer.fit(w)
    s = quantizer.integers(w)
    assert quantizer.format.kind == "twos"
    assert s.min() >= -(2 ** (bits - 1))
    assert s.max() <= 2 ** (bits - 1) - 1
    step = quantizer.step(w).detach().numpy().reshape(6, 1, 1, 1)
    expected = np.floor(w.numpy() / step + F32(0.5)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert np.array_equal(s.detach().numpy(), expected)
    assert np.allclose(quantizer(w).detach().numpy(), expected * step)
    # a step of its own per channel: scaling one channel scales its step only
    scaled = w.clone()
    scaled[2] *= 10
    quantizer.fit(scaled)
    again = quantizer.step(scaled).detach().numpy().reshape(6, 1, 1, 1)
    assert np.allclose(again[2], 10 * step[2], rtol=1e-4)
    assert np.allclose(np.delete(again, 2), np.delete(step, 2))


@pytest.mark.parametrize(
    "make", [lambda: TwosWeight(3, 6), lambda: UniformBipolarWeight(3, "lsq", 6)]
)
def test_weight_steps_have_lsq_gradients_per_channel(make):
    quantizer = make()
    parameter = next(quantizer.parameters())
    w, up = weights(1), torch.randn(6, 5, 3, 3, generator=seeded(2))
    quantizer.fit(w)
    with torch.no_grad():
        parameter.mul_(0.7)  # so that some weights lie outside
    (quantizer(w) * up).sum().backward()
    low, high = quantizer.format.low, quantizer.format.high
    step = quantizer.step(w).detach().double().numpy().reshape(6, 1, 1, 1)
    v = w.double().numpy() / step
    s = quantizer.integers(w).detach().double().numpy()
    per_step = np.where((v >= low) & (v <= high), s - v, s) * up.double().numpy()
    expected = per_step.reshape(6, -1).sum(1) / math.sqrt(45 * high)
    if isinstance(quantizer, UniformBipolarWeight):
        expected /= 7
    assert np.allclose(parameter.grad.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_weight_fit_is_near_the_best_step(bits):
    w = weights(7)
    for quantizer in (TwosWeight(bits, 6), UniformBipolarWeight(bits, "lsq", 6)):
        parameter = next(quantizer.parameters())
        quantizer.fit(w)

        def errors(quantizer=quantizer) -> np.ndarray:
            return (quantizer(w) - w).detach().square().flatten(1).mean(1).numpy()

        fitted, start = errors(), parameter.detach().clone()
        best = np.full(6, np.inf)
        for ratio in np.geomspace(0.2, 5, 300):
            with torch.no_grad():
                parameter.copy_(start * float(ratio))
            best = np.minimum(best, errors())
        assert (fitted <= 1.25 * best).all()  # 45 weights: the error jumps with every one


def test_real_stage_of_weights_is_the_weight():
    w = weights()
    for quantizer in (SignWeight(), UniformBipolarWeight(4), TwosWeight(4, 6)):
        quantizer.switch("real")
        assert quantizer(w) is w
        with pytest.raises(FoveateError):
            quantizer.switch("soft")


def test_other_widths_keep_what_was_learned():
    act = UniformBipolar(8, "learned")
    quantizer = UniformBipolarWeight(8, "lsq", 6)
    with torch.no_grad():
        act.limit.fill_(3.5)
        quantizer.limit.copy_(torch.arange(1.0, 7.0))
    act.switch("real")
    assert act.with_bits(3).limit.item() == 3.5
    assert act.with_bits(3).stage == "real"
    assert act.with_bits(3).limit is not act.limit
    assert quantizer.with_bits(2).limit.tolist() == [1, 2, 3, 4, 5, 6]
    assert quantizer.with_bits(2).format.bits == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformBipolar(0),
        lambda: UniformBipolar(9),
        lambda: UniformUnipolar(0),
        lambda: UniformBipolar(2, "gelu"),
        lambda: UniformBipolarWeight(2, "softmax"),
        lambda: UniformBipolarWeight(2, "lsq"),
        lambda: TwosWeight(1, 4),
        lambda: TwosWeight(4, 0),
        lambda: SignWeight(xnor="maybe"),
        lambda: SignSTE("swish"),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(FoveateError):
        make()


def test_the_base_is_abstract():
    from foveate.quantization.codes import CodeFormat

    act = QuantAct(CodeFormat("bipolar", 1))
    for call in (act.step, lambda: act.integers(torch.ones(1)), lambda: act.real(torch.ones(1))):
        with pytest.raises(NotImplementedError):
            call()
