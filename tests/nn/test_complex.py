"""Complex layers against torch's own complex arithmetic, numpy and loops."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.complex import (
    CLeakyReLU,
    ComplexBatchNorm2d,
    ComplexConv2d,
    ComplexConvTranspose2d,
    ComplexLinear,
    CReLU,
    CTanh,
    ctanh,
    init_complex_,
    inverse_square_root,
)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def with_bias(layer: nn.Module, seed: int) -> nn.Module:
    """Biases start at 0, where a mistake in them would not show."""
    generator = torch.Generator().manual_seed(seed)
    for name in ("bias_real", "bias_imag"):
        bias = getattr(layer, name)
        if bias is not None:
            bias.data.normal_(generator=generator)
    return layer


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ours.dtype == torch.complex64
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).abs().max()) < tolerance * (1 + float(theirs.abs().max()))


# --- checklist: all layers are complex with coupled weights (the four-op rule) ----------------


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    side=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    bias=st.booleans(),
)
def test_convolution_is_torch_s_complex_convolution(
    seed, sizes, side, kernel, stride, padding, bias
):
    batch, i, o = sizes
    layer = with_bias(ComplexConv2d(i, o, kernel, stride, padding, bias), seed)
    x = numbers(seed, batch, i, *side)
    close(layer(x), F.conv2d(x, layer.weight, layer.bias, stride, padding))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    side=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    kernel=st.integers(2, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
)
def test_transposed_convolution_is_torch_s(seed, sizes, side, kernel, stride, padding):
    batch, i, o = sizes
    layer = with_bias(ComplexConvTranspose2d(i, o, kernel, stride, padding), seed)
    x = numbers(seed, batch, i, *side)
    close(layer(x), F.conv_transpose2d(x, layer.weight, layer.bias, stride, padding))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 5)])
def test_linear_is_the_complex_product(shape):
    layer = with_bias(ComplexLinear(5, 3), 1)
    x = numbers(0, *shape)
    close(layer(x), x @ layer.weight.T + layer.bias)


def test_four_real_operations_one_minus_one_plus():
    """The rule as the paper has it, with real convolutions only."""
    layer = ComplexConv2d(2, 3, 3, 1, 1, bias=False)
    x = numbers(3, 2, 2, 5, 5)
    w_r, w_i = layer.weight_real, layer.weight_imag

    def op(a, w):
        return F.conv2d(a, w, None, 1, 1)

    y = layer(x)
    assert torch.allclose(y.real, op(x.real, w_r) - op(x.imag, w_i), atol=1e-5)
    assert torch.allclose(y.imag, op(x.real, w_i) + op(x.imag, w_r), atol=1e-5)


@pytest.mark.parametrize(
    "layer", [ComplexConv2d(2, 3, 3), ComplexConvTranspose2d(2, 3, 3), ComplexLinear(6, 3)]
)
def test_layers_commute_with_a_turn_of_the_phase(layer):
    """Coupled weights: two independent real layers would not."""
    x = numbers(4, 2, 2, 6, 6)
    turn = complex(math.cos(1.1), math.sin(1.1))
    layer.bias_real.data.zero_()
    close(layer(turn * x), turn * layer(x))


def test_gradients_are_those_of_torch_s_complex_layer():
    layer = with_bias(ComplexConv2d(2, 3, 3, 2, 1), 5)
    x = numbers(6, 2, 2, 7, 7).requires_grad_()
    weight = layer.weight.detach().requires_grad_()
    bias = layer.bias.detach().requires_grad_()
    (layer(x).abs() ** 3).sum().backward()
    ours, x.grad = x.grad, None
    (F.conv2d(x, weight, bias, 2, 1).abs() ** 3).sum().backward()
    close(ours, x.grad)
    close(torch.complex(layer.weight_real.grad, layer.weight_imag.grad), weight.grad)
    close(torch.complex(layer.bias_real.grad, layer.bias_imag.grad), bias.grad)


@pytest.mark.parametrize(
    ("layer", "x", "said"),
    [
        (ComplexConv2d(2, 3, 3), torch.zeros(1, 2, 5, 5), "torch.complex"),
        (ComplexConv2d(2, 3, 3), numbers(0, 1, 3, 5, 5), r"\(B, 2, H, W\)"),
        (ComplexConvTranspose2d(2, 3, 3), numbers(0, 2, 5, 5), r"\(B, 2, H, W\)"),
        (ComplexLinear(4, 3), numbers(0, 2, 5), r"\(\.\.\., 4\)"),
        (ComplexBatchNorm2d(2), torch.zeros(1, 2, 5, 5), "torch.complex"),
        (ComplexBatchNorm2d(2), numbers(0, 4, 3, 5, 5), r"\(B, 2, H, W\)"),
        (ComplexBatchNorm2d(2), numbers(0, 1, 2, 1, 1), "more than one value"),
    ],
)
def test_wrong_input_is_told(layer, x, said):
    with pytest.raises(FoveateError, match=said):
        layer(x)


def test_wrong_settings_are_told():
    for make in (
        lambda: ComplexConv2d(0, 3, 3),
        lambda: ComplexLinear(3, 0),
        lambda: ComplexBatchNorm2d(0),
        lambda: ComplexBatchNorm2d(3, window=0),
        lambda: ComplexBatchNorm2d(3, eps=0.0),
        lambda: init_complex_(torch.zeros(2), torch.zeros(3), 1, 1),
        lambda: init_complex_(torch.zeros(2), torch.zeros(2), 0, 1),
    ):
        with pytest.raises(FoveateError):
            make()


# --- initialisation ---------------------------------------------------------------------------


def test_weights_start_with_rayleigh_amplitude_and_uniform_phase():
    real, imag = torch.empty(400, 300), torch.empty(400, 300)
    init_complex_(real, imag, 300, 400, torch.Generator().manual_seed(0))
    sigma = 1 / math.sqrt(700)
    w = torch.complex(real, imag)
    assert float(w.abs().square().mean()) == pytest.approx(2 * sigma**2, rel=0.02)
    assert float(w.abs().mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
    assert float(w.abs().median()) == pytest.approx(sigma * math.sqrt(2 * math.log(2)), rel=0.01)
    quarters = torch.histc(w.angle(), 4, -math.pi, math.pi) / w.numel()
    assert torch.allclose(quarters, torch.full((4,), 0.25), atol=0.01)
    layer = ComplexConv2d(40, 60, 4)  # fans in complex units, kernel included
    power = layer.weight.detach().abs().square().mean()
    assert float(power) == pytest.approx(2 / 1600, rel=0.05)


# --- activations ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.complex_numbers(max_magnitude=50, allow_nan=False, allow_infinity=False, width=64))
def test_activations_act_on_both_parts(z):
    x = torch.tensor([z], dtype=torch.complex64)
    a, b = float(x.real), float(x.imag)
    for module, f in (
        (CReLU(), lambda v: max(v, 0.0)),
        (CLeakyReLU(0.2), lambda v: v if v > 0 else 0.2 * v),
        (CTanh(), math.tanh),
        (ctanh, math.tanh),
    ):
        y = module(x)[0]
        assert float(y.real) == pytest.approx(f(a), rel=1e-5, abs=1e-6)
        assert float(y.imag) == pytest.approx(f(b), rel=1e-5, abs=1e-6)


# --- checklist: CBN whitens the 2 x 2 covariance, closed form, windowed statistics in training --


def correlated(seed: int, batch: int = 6, channels: int = 3, side: int = 7) -> torch.Tensor:
    """Real and imaginary part of other sizes, correlated, with a mean."""
    z = numbers(seed, batch, channels, side, side)
    return torch.complex(2 * z.real + 1, 0.8 * z.real + 0.3 * z.imag - 2) * (1 + seed % 3)


def plane(x: torch.Tensor) -> np.ndarray:
    """``(C, 2, values)`` float64."""
    flat = x.detach().transpose(0, 1).flatten(1).numpy().astype(np.complex128)
    return np.stack([flat.real, flat.imag], 1)


def whitened(x: torch.Tensor, history: list[torch.Tensor], eps: float) -> np.ndarray:
    """By eigenvectors: numpy's own inverse square root of the averaged covariance."""
    means = np.mean([plane(h).mean(2) for h in history], 0)
    covariances = np.mean(
        [[np.cov(channel, bias=True) for channel in plane(h)] for h in history], 0
    )
    out = []
    for values, mean, covariance in zip(plane(x), means, covariances, strict=True):
        size, vectors = np.linalg.eigh(covariance + eps * np.eye(2))
        out.append(vectors @ np.diag(size**-0.5) @ vectors.T @ (values - mean[:, None]))
    return np.array(out)


@settings(deadline=None, max_examples=50)
@given(a=st.floats(0.01, 100), b=st.floats(0.01, 100), share=st.floats(-0.99, 0.99))
def test_closed_form_is_the_inverse_square_root(a, b, share):
    off = share * math.sqrt(a * b)
    rr, ri, ii = inverse_square_root(torch.tensor([a, off, b], dtype=torch.float64))
    root = np.array([[rr, ri], [ri, ii]])
    v = np.array([[a, off], [off, b]])
    assert np.allclose(root @ v @ root, np.eye(2), atol=1e-6)
    assert np.linalg.eigvalsh(root)[0] > 0  # the positive one of its four square roots


def test_one_batch_is_whitened_not_scaled_part_by_part():
    norm = ComplexBatchNorm2d(3)
    x = correlated(1)
    y = plane(norm(x))
    assert np.allclose(y, whitened(x, [x], 1e-5) / math.sqrt(2), atol=1e-3)
    for channel in y:  # gamma = I / sqrt2: uncorrelated, half the variance in each part
        assert np.allclose(np.cov(channel, bias=True), np.eye(2) / 2, atol=1e-3)
        assert np.allclose(channel.mean(1), 0, atol=1e-3)
    assert abs(np.corrcoef(plane(x)[0])[0, 1]) > 0.9


def test_window_averages_exactly_the_last_m_batches_while_training():
    norm = ComplexBatchNorm2d(3, window=3)
    batches = [correlated(seed) for seed in range(7)]
    for t, x in enumerate(batches):
        y = plane(norm(x))
        history = batches[max(0, t - 2) : t + 1]  # 1, 2, then always 3 of them
        assert np.allclose(y, whitened(x, history, 1e-5) / math.sqrt(2), atol=2e-3), t
    assert int(norm.seen) == 7
    assert norm.window == 3
    assert ComplexBatchNorm2d(1).window == 10


def test_eval_uses_the_last_window_and_leaves_it_alone():
    norm = ComplexBatchNorm2d(3, window=2)
    x = correlated(9)
    untouched = plane(norm.eval()(x))  # before any batch: mean 0, covariance I
    assert np.allclose(untouched, plane(x) / math.sqrt(2), atol=1e-3)
    norm.train()
    batches = [correlated(seed) for seed in range(3)]
    for batch in batches:
        norm(batch)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    y = plane(norm(x))
    assert np.allclose(y, whitened(x, batches[1:], 1e-5) / math.sqrt(2), atol=2e-3)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    one = plane(norm(x[:1]))  # an eval batch of one gives what it gives in company
    assert np.allclose(one, y[..., : one.shape[2]], atol=1e-5)


def test_only_the_newest_batch_carries_a_gradient():
    norm = ComplexBatchNorm2d(2, window=4)
    old = correlated(1, channels=2).requires_grad_()
    norm(old)
    new = correlated(2, channels=2).requires_grad_()
    norm(new).abs().square().sum().backward()
    assert old.grad is None
    assert not norm.means.requires_grad
    # The new batch's own statistics do: against finite differences, in double precision.
    double = ComplexBatchNorm2d(1, window=2).double().requires_grad_(False)
    double(correlated(3, 2, 1, 2).to(torch.complex128))

    def f(x: torch.Tensor) -> torch.Tensor:
        return copy.deepcopy(double)(x).abs() ** 3  # the window must not move on

    x = correlated(4, 2, 1, 2).to(torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(f, (x,), eps=1e-6, atol=1e-4)


def test_window_of_one_with_constant_input_keeps_finite_numbers():
    """Purely real channels (T11) have no imaginary variance; eps stands in."""
    norm = ComplexBatchNorm2d(2, window=1)
    x = torch.complex(torch.randn(4, 2, 3, 3), torch.zeros(4, 2, 3, 3)).requires_grad_()
    y = norm(x)
    y.abs().square().sum().backward()
    assert torch.isfinite(torch.view_as_real(y)).all()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()
    assert float(y.detach().imag.abs().max()) < 1e-4
    flat = norm(torch.ones(4, 2, 3, 3, dtype=torch.complex64))
    assert float(flat.detach().abs().max()) < 1e-2


def test_gamma_and_beta_are_a_symmetric_matrix_and_a_shift():
    norm = ComplexBatchNorm2d(1)
    x = correlated(5, channels=1)
    norm.weight.data = torch.tensor([[2.0], [0.5], [3.0]])
    norm.bias.data = torch.tensor([[1.0], [-1.0]])
    expected = np.array([[2, 0.5], [0.5, 3]]) @ whitened(x, [x], 1e-5)[0] + [[1], [-1]]
    assert np.allclose(plane(norm(x))[0], expected, atol=5e-3)


def test_state_goes_through_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    net = nn.Sequential(ComplexConv2d(2, 3, 3), ComplexBatchNorm2d(3, 2), CReLU())
    net(numbers(0, 4, 2, 6, 6))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin = nn.Sequential(ComplexConv2d(2, 3, 3), ComplexBatchNorm2d(3, 2), CReLU())
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x = numbers(1, 2, 2, 6, 6)
    assert torch.equal(net.eval()(x), twin.eval()(x))
