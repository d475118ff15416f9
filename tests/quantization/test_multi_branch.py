"""Multi-branch binary networks: digits, sines, branches against integers by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.quantization.layers import (
    BinaryConv2d,
    QuantConv2d,
    clip_latent_weights,
    quant_layers,
    set_stage,
)
from foveate.quantization.multi_branch import (
    MBitEncoder,
    MBNConv2d,
    MBNConvTranspose2d,
    MBNLinear,
    MultiBranchConv2d,
    bit_chain,
    chain_optimizer,
    decode_planes,
    decompose,
    decomposed,
    encode_planes,
    encoding_sines,
    set_mbn_bits,
)
from foveate.quantization.quantizers import (
    TwosWeight,
    UniformBipolar,
    UniformBipolarWeight,
    UniformUnipolar,
)

BITS = range(1, 9)
WIDTHS = (1, 2, 3, 4, 8)


def away_from_ties(bits: int, count: int = 20_001) -> torch.Tensor:
    """Dense on [-1, 1], except where the quantiser or a sine is undecided."""
    x = torch.linspace(-1, 1, count, dtype=torch.float64)
    v = (2**bits - 1) * (x + 1) / 2 + 0.5
    return x[(v - v.round()).abs() > 1e-4]


def bits_of(u: np.ndarray, bits: int) -> np.ndarray:
    return np.stack([(u >> m) & 1 for m in range(bits)])


# --- digits --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_signs_of_the_sines_are_the_bits_of_the_quantiser(bits):
    x = away_from_ties(bits)
    n = 2**bits - 1
    u = np.floor(n * (x.numpy() + 1) / 2 + 0.5).astype(int)
    digits = np.where(encoding_sines(x, bits).numpy() > 0, 1, 0)
    assert np.array_equal(digits, bits_of(u, bits))
    encoder = MBitEncoder(bits)
    planes = encoder(x.float())
    assert set(planes.unique().tolist()) == {-1.0, 1.0}
    assert np.array_equal((planes > 0).numpy().astype(int), bits_of(u, bits))


def test_two_bits_are_equations_11_to_13():
    x = torch.linspace(-1.2, 1.2, 999, requires_grad=True)
    high, low = torch.sin(3 * math.pi * x / 4), -torch.sin(3 * math.pi * x / 2)
    sines = encoding_sines(x, 2)
    assert torch.allclose(sines[1], high)
    assert torch.allclose(sines[0], low)
    up = torch.randn(2, 999)
    (MBitEncoder(2)(x) * up).sum().backward()
    point = x.detach()
    inside = (point >= -1) & (point <= 1)
    by_hand = up[1] * (3 * math.pi / 4) * torch.cos(3 * math.pi * point / 4)
    by_hand = by_hand - up[0] * (3 * math.pi / 2) * torch.cos(3 * math.pi * point / 2)
    assert torch.allclose(x.grad, by_hand * inside, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_cosine_gradient_of_every_digit(bits):
    n = 2**bits - 1
    for m in range(1, bits + 1):
        x = torch.linspace(-1.5, 1.5, 601, requires_grad=True)
        MBitEncoder(bits)(x)[m - 1].sum().backward()
        factor, point = math.pi * n / 2**m, x.detach().double()
        expected = factor * torch.cos(factor * point) * (1 if m == bits else -1)
        expected = expected * (point.abs() <= 1)
        assert torch.allclose(x.grad.double(), expected, atol=1e-3 * factor)


@pytest.mark.parametrize("bits", BITS)
def test_encoder_says_what_the_quantiser_says_at_ties_too(bits):
    n = 2**bits - 1
    ties = torch.tensor([(2 * k + 1) / n - 1 for k in range(n)] + [0.0, -0.0, 1.0, -1.0, 5.0, -5.0])
    act = UniformBipolar(bits)
    s = sum(2.0**m * plane for m, plane in enumerate(MBitEncoder(bits)(ties)))
    assert torch.equal(s, act.integers(ties))
    zero = MBitEncoder(bits)(torch.zeros(1))[:, 0]
    assert sum(2.0**m * digit.item() for m, digit in enumerate(zero)) == 1, "s(0) = +1"


def test_hrelu_encoder():
    x = torch.tensor([-0.5, 0.0, 0.4, 1.0, 2.0], requires_grad=True)
    planes = MBitEncoder(3, "hrelu")(x)
    assert torch.equal(planes.detach(), MBitEncoder(3)(x.detach().clamp(0, 1)))
    assert (planes[2] == 1).all(), "the top plane is constant"
    planes.sum().backward()
    assert (x.grad == 0).tolist() == [True, False, False, False, True]
    assert MBitEncoder(1, "hrelu").act.range == "htanh"


@pytest.mark.parametrize("bits", BITS)
def test_planes_there_and_back(bits):
    levels = torch.linspace(-1, 1, 2**bits)
    planes = encode_planes(levels, bits)
    assert planes.dtype == torch.uint8
    assert np.array_equal(planes.numpy(), bits_of(np.arange(2**bits), bits))
    assert torch.allclose(decode_planes(planes), levels, atol=1e-6)
    if bits == 2:  # the paper's table: -1, -1/3, 1/3, 1 are (-,-), (-,+), (+,-), (+,+)
        digits = 2 * planes.int() - 1
        assert digits[1].tolist() == [-1, -1, 1, 1]
        assert digits[0].tolist() == [-1, 1, -1, 1]


def test_figure_1_two_by_two():
    """Multipliers 1, 2, 2, 4 and the scale 1/9."""
    x, w = torch.tensor([1.0, -1 / 3, 1 / 3]), torch.tensor([-1.0, 1 / 3, 1 / 3])
    c, d = 2.0 * encode_planes(x, 2) - 1, 2.0 * encode_planes(w, 2) - 1
    total = c[0] @ d[0] + 2 * (c[1] @ d[0]) + 2 * (c[0] @ d[1]) + 4 * (c[1] @ d[1])
    assert total.item() / 9 == pytest.approx((x @ w).item(), abs=1e-6)


def test_the_grids_are_not_nested():
    """Dropping planes is not a switch of width: about 9 % of uniform inputs would be wrong."""
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    top = encode_planes(UniformBipolar(3)(x), 3)[1:]
    share = (top != encode_planes(UniformBipolar(2)(x), 2)).any(0).float().mean().item()
    assert share == pytest.approx(0.09, abs=0.02)


# --- decomposed = quantised ----------------------------------------------------------------


def randomised(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1.3, 1.3)
    return layer.eval()


@pytest.mark.parametrize(("m", "k"), list(itertools.product(WIDTHS, WIDTHS)))
def test_decomposed_is_quantised_exactly(m, k):
    """All widths, stride 1 and 2, padding 0 and 1, odd numbers of channels: difference 0."""
    torch.manual_seed(10 * m + k)
    for stride, padding, channels in ((1, 0, 3), (1, 1, 5), (2, 0, 65), (2, 1, 7)):
        layer = randomised(
            MBNConv2d(
                channels, 3, 3, stride, padding, bias=True, w_bits=k, a_bits=m, weight_norm="clip"
            )
        )
        x = torch.randn(2, channels, 7, 6)
        branches = layer.decompose()
        with torch.no_grad():
            integers = layer.integer_sums(x)
            assert torch.equal(branches.sums(x), integers.double())
            assert torch.equal(branches(x), layer(x))
            # ... both of them the plain float64 convolution of the codes
            codes_a = UniformBipolar(m).integers(x).double()
            codes_w = UniformBipolarWeight(k, "clip").integers(layer.weight).double()
            plain = F.conv2d(codes_a, codes_w, stride=stride, padding=padding)
            assert torch.equal(integers.double(), plain)
            # and, up to rounding, that of the quantised reals: one scale 1/((2^M-1)(2^K-1))
            real = F.conv2d(
                UniformBipolar(m)(x).double(),
                UniformBipolarWeight(k, "clip")(layer.weight).double(),
                layer.bias.double(),
                stride,
                padding,
            )
            assert torch.allclose(layer(x).double(), real, atol=1e-4)
        assert branches.weight.shape[0] == k
        assert set(branches.weight.unique().tolist()) == {-1.0, 1.0}
        assert torch.allclose(branches.alpha, torch.tensor(1 / ((2**m - 1) * (2**k - 1))))
        assert not [p for p in branches.parameters() if p.requires_grad], "no learned alpha"


def test_m_k_products_of_plus_and_minus_one_and_no_scale_that_learns(monkeypatch):
    """Checklist 2 and 12: looked at where torch multiplies; each pair of digits once."""
    torch.manual_seed(0)
    layer = randomised(MBNConv2d(5, 3, 3, padding=1, w_bits=2, a_bits=3, weight_norm="clip"))
    x = torch.randn(2, 5, 6, 6)
    branches, expected = layer.decompose(), layer(x)
    seen, original = [], F.conv2d

    def spy(a, w, *rest):
        seen.append((a, w, original(a, w, *rest).double()))
        return original(a, w, *rest)

    monkeypatch.setattr(F, "conv2d", spy)
    assert torch.equal(branches(x), expected)
    assert len(seen) == 3 * 2
    for a, w, _ in seen:
        assert set(a.unique().tolist()) == set(w.unique().tolist()) == {-1.0, 1.0}
    # Digits of the codes by hand, floor((2^b - 1)(v + 1) / 2 + 1 / 2), and their multipliers.
    u = np.floor(7 * (x.clamp(-1, 1).numpy() + 1) / 2 + 0.5).astype(int)
    v = np.floor(3 * (layer.weight.detach().clamp(-1, 1).numpy() + 1) / 2 + 0.5).astype(int)
    digits, weights = 2 * bits_of(u, 3) - 1, 2 * bits_of(v, 2) - 1
    total = torch.zeros(())
    for m, k in itertools.product(range(3), range(2)):
        (product,) = [
            y for a, w, y in seen
            if np.array_equal(a, digits[m]) and np.array_equal(w, weights[k])
        ]  # fmt: skip
        total = total + 2 ** (m + k) * product
    assert torch.allclose(total.float() / 21, expected, atol=1e-6)
    for trained in (MultiBranchConv2d(2, 3, 1), MBNConv2d(2, 3, 1), MBNConvTranspose2d(2, 3, 1)):
        assert [name for name, _ in trained.named_parameters()] == ["weight"]


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 8),
    k=st.integers(1, 8),
    range_=st.sampled_from(["htanh", "hrelu", "relu_rescaled"]),
    norm=st.sampled_from(["clip", "tanh_max", "lsq"]),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    pad_value=st.sampled_from([-1, 0, 1]),
    seed=st.integers(0, 99),
)
def test_every_configuration_decomposes(
    m, k, range_, norm, kernel, stride, padding, dilation, groups, pad_value, seed
):
    torch.manual_seed(seed)
    layer = MBNConv2d(
        3 * groups,
        2 * groups,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        w_bits=k,
        a_bits=m,
        range=range_,
        weight_norm=norm,
        pad_value=pad_value,
    ).eval()
    x = torch.randn(2, 3 * groups, 6, 7)
    with torch.no_grad():
        branches = layer.decompose()
        assert torch.equal(branches.sums(x).float(), layer.integer_sums(x))
        assert torch.equal(branches(x), layer(x))


@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 1), (2, 3), (8, 8)])
@pytest.mark.parametrize("range_", ["htanh", "relu_rescaled"])
def test_transposed_and_linear_layers(m, k, range_):
    torch.manual_seed(m)
    for stride, padding, extra, groups in ((1, 0, 0, 1), (2, 1, 1, 2), (3, 1, 2, 1)):
        layer = MBNConvTranspose2d(
            4, 6, 3, stride, padding, extra, groups, w_bits=k, a_bits=m, range=range_
        ).eval()
        x = torch.randn(2, 4, 5, 4)
        with torch.no_grad():
            plain = F.conv_transpose2d(
                layer.act.integers(x).double(),
                layer.weight_quantizer.integers(layer.weight).double(),
                None,
                stride,
                padding,
                extra,
                groups,
            )
            assert torch.equal(layer.integer_sums(x).double(), plain)
            assert torch.equal(layer.decompose().sums(x), plain)
            assert torch.equal(layer.decompose()(x), layer(x))
            assert torch.allclose(layer.train()(x), layer.eval()(x), atol=1e-5)
            assert layer(x).shape == nn.ConvTranspose2d(4, 6, 3, stride, padding, extra)(x).shape
        with pytest.raises(FoveateError, match="transposed"):
            layer.folded()
    layer = MBNLinear(37, 5, True, w_bits=k, a_bits=m, range=range_).eval()
    x = torch.randn(3, 2, 37)
    with torch.no_grad():
        assert torch.equal(layer.decompose()(x), layer(x))


def test_the_scale_and_gate_of_other_layers_come_along():
    from foveate.quantization.real_to_binary import RealToBinaryConv2d

    for layer in (RealToBinaryConv2d(5, 8, 3, padding=1), BinaryConv2d(5, 8, 3, padding=1)):
        randomised(layer)
        x = torch.randn(2, 5, 6, 6)
        assert torch.equal(decompose(layer)(x), layer(x))


def test_what_is_no_sum_of_branches_is_refused():
    layer = QuantConv2d(3, 3, 1, act=UniformUnipolar(2), weight_quantizer=TwosWeight(2, 3))
    with pytest.raises(FoveateError, match="twos"):
        decompose(layer)
    real = MBNConv2d(3, 3, 1)
    set_stage(real, weights=False, activations=True)
    with pytest.raises(FoveateError, match="32-bit"):
        real.decompose()
    with pytest.raises(FoveateError, match="lsq"):
        MBNConvTranspose2d(3, 3, 1, weight_norm="lsq")
    with pytest.raises(FoveateError, match="gelu"):
        MBitEncoder(2, "gelu")


# --- training ------------------------------------------------------------------------------


def test_path_b_gradients_reach_the_real_weights_clipped():
    layer = MBNConv2d(2, 3, 1, w_bits=3, a_bits=2, weight_norm="clip")
    nn.init.uniform_(layer.weight, -1.5, 1.5)
    x = torch.randn(2, 2, 4, 4) * 1.2
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    a = UniformBipolar(2)(x).requires_grad_()
    w = UniformBipolarWeight(3, "clip")(layer.weight.detach()).requires_grad_()
    F.conv2d(a, w).sum().backward()
    assert torch.allclose(leaf.grad, a.grad * (x.abs() <= 1), atol=1e-5)
    assert torch.allclose(layer.weight.grad, w.grad * (layer.weight.abs() <= 1), atol=1e-5)


def test_path_a_trains_its_branches():
    torch.manual_seed(0)
    target_layer = MultiBranchConv2d(3, 4, 3, padding=1, w_bits=2, a_bits=2)
    layer = MultiBranchConv2d(3, 4, 3, padding=1, w_bits=2, a_bits=2)
    assert layer.weight.shape == (2, 4, 3, 3, 3)
    x = torch.rand(16, 3, 6, 6) * 2 - 1
    target = target_layer(x).detach()
    # forward: 1 / (3 * 3) * sum of 2^(m+k) binary convolutions
    c, d = MBitEncoder(2)(x), torch.where(layer.weight >= 0, 1.0, -1.0)
    by_hand = sum(
        2 ** (m + k) * F.conv2d(c[m], d[k], padding=1)
        for m, k in itertools.product(range(2), repeat=2)
    )
    assert torch.allclose(layer(x), by_hand / 9, atol=1e-5)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip_latent_weights(layer)
        losses.append(loss.item())
    assert layer.weight.abs().max() <= 1
    assert losses[-1] < 0.5 * losses[0]
    # a weight at the very edge of the clip still gets a gradient (|w| <= 1 passes)
    with torch.no_grad():
        layer.weight.fill_(1)
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert (layer.weight.grad != 0).any()
    # gradients pass to the input by the cosines
    leaf = x[:1].clone().requires_grad_()
    layer(leaf).sum().backward()
    assert (leaf.grad != 0).any()


def mbn_net(**settings) -> nn.Sequential:
    return nn.Sequential(
        MBNConv2d(2, 4, 3, **settings),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        MBNLinear(4 * 9, 3, w_bits=settings["w_bits"], a_bits=settings["a_bits"]),
    )


def test_latent_weights_of_the_papers_norm_are_clipped():
    net = mbn_net(w_bits=2, a_bits=2, weight_norm="clip")
    for _, layer in quant_layers(net):
        nn.init.uniform_(layer.weight, -4, 4)
    free = net[3].weight.clone()
    clip_latent_weights(net)
    assert net[0].weight.abs().max() <= 1
    assert torch.equal(net[3].weight, free), "tanh_max limits by itself"


def test_chain_goes_from_high_to_low_and_starts_from_the_last():
    net = mbn_net(w_bits=8, a_bits=8, range="hrelu", weight_norm="lsq")
    with torch.no_grad():
        net[0].weight_quantizer.limit.fill_(0.7)
    seen = []

    def fit(model, bits):
        seen.append((bits, [layer.bits for _, layer in quant_layers(model)]))
        start = net[0].weight.mean().item()
        assert net[0].weight_quantizer.limit.mean().item() == pytest.approx(0.7)
        with torch.no_grad():
            net[0].weight += 1
        return start

    results = bit_chain(net, fit)
    assert [bits for bits, _ in seen] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert all(widths == [(bits, bits)] * 2 for bits, widths in seen)
    for high, low in itertools.pairwise(range(8, 0, -1)):
        assert results[low] == pytest.approx(results[high] + 1, abs=1e-4), "from its result"
    assert net[0].act.range == "htanh", "1 bit"
    for wrong in ((1, 2), (4, 4), ()):
        with pytest.raises(FoveateError, match="fall"):
            bit_chain(net, fit, wrong)


def test_widths_of_weights_and_activations_are_independent():
    net = mbn_net(w_bits=8, a_bits=8, weight_norm="clip")
    set_mbn_bits(net, 1, 2)
    assert [layer.bits for _, layer in quant_layers(net)] == [(1, 2)] * 2
    assert MBNConv2d(3, 3, 1, w_bits=4, a_bits=None).bits == (4, 32)
    with pytest.raises(FoveateError, match="MBNConv2d"):
        set_mbn_bits(nn.Sequential(nn.Linear(2, 2)), 1, 1)


def test_optimiser_changes_at_two_bits():
    net = mbn_net(w_bits=8, a_bits=8)
    for bits in BITS:
        optimizer = chain_optimizer(net, bits)
        if bits <= 2:
            assert isinstance(optimizer, torch.optim.Adam)
        else:
            assert isinstance(optimizer, torch.optim.SGD)
            assert optimizer.param_groups[0]["lr"] == 0.1
    assert chain_optimizer(net, 8, lr=0.02).param_groups[0]["lr"] == 0.02


def test_full_precision_stage_of_hrelu_is_a_relu_network():
    """The chain starts from a full-precision ReLU network: the same layers, switched off."""
    layer = MBNConv2d(2, 3, 3, w_bits=8, a_bits=8, range="hrelu").eval()
    set_stage(layer, weights=False, activations=False)
    x = torch.randn(1, 2, 5, 5) * 3
    assert torch.allclose(layer(x), F.conv2d(x.relu(), layer.weight), atol=1e-5)


def test_a_network_is_taken_apart_in_a_copy_and_layers_on_real_inputs_stay():
    torch.manual_seed(0)
    first = QuantConv2d(3, 4, 3, weight_quantizer=UniformBipolarWeight(2))
    net = nn.Sequential(first, MBNConv2d(4, 5, 3, w_bits=2, a_bits=3))
    x = torch.randn(2, 3, 8, 8)
    twin = decomposed(net)
    assert not twin.training
    assert net.training  # the original is as it was
    assert isinstance(net[1], MBNConv2d)
    assert type(twin[0]) is QuantConv2d
    assert isinstance(twin[1], MultiBranchConv2d)
    assert torch.equal(twin(x), net.eval()(x))
