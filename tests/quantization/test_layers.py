"""Quantised layers against integer convolutions by brute force, torch's own, and stage rules."""

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
    BinarizeConfig,
    BinaryConv2d,
    BinaryLinear,
    ChannelGate,
    QuantConv2d,
    QuantLinear,
    SpatialScale,
    clip_latent_weights,
    pack_weights,
    parameter_groups,
    quant_layers,
    set_stage,
)
from foveate.quantization.quantizers import (
    SignSTE,
    SignWeight,
    TwosWeight,
    UniformBipolar,
    UniformBipolarWeight,
    UniformUnipolar,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def act_of(kind: str, bits: int):
    if kind == "sign":
        return SignSTE()
    if kind == "unipolar":
        return UniformUnipolar(bits)
    return UniformBipolar(bits, "learned" if kind == "learned" else "htanh")


def weight_of(kind: str, bits: int, channels: int):
    if kind == "sign":
        return SignWeight(xnor="stopped")
    if kind == "twos":
        return TwosWeight(max(bits, 2), channels)
    return UniformBipolarWeight(bits, "lsq", channels)


def windows(a: np.ndarray, kernel, stride, padding, dilation, fill: int) -> np.ndarray:
    """``(B, C, H', W', kh, kw)`` by loops over the kernel; the border holds `fill`."""
    b, c, h, w = a.shape
    padded = np.full((b, c, h + 2 * padding, w + 2 * padding), fill, np.int64)
    padded[:, :, padding : padding + h, padding : padding + w] = a
    high = (padded.shape[2] - dilation * (kernel - 1) - 1) // stride + 1
    wide = (padded.shape[3] - dilation * (kernel - 1) - 1) // stride + 1
    out = np.zeros((b, c, high, wide, kernel, kernel), np.int64)
    for i, j in itertools.product(range(kernel), repeat=2):
        rows = slice(i * dilation, i * dilation + stride * (high - 1) + 1, stride)
        columns = slice(j * dilation, j * dilation + stride * (wide - 1) + 1, stride)
        out[..., i, j] = padded[:, :, rows, columns]
    return out


def integer_conv(a, w, stride=1, padding=0, dilation=1, groups=1, fill=0) -> np.ndarray:
    seen = windows(a, w.shape[2], stride, padding, dilation, fill)
    ins, outs = a.shape[1] // groups, w.shape[0] // groups
    parts = [
        np.einsum(
            "bchwij,ocij->bohw",
            seen[:, g * ins : (g + 1) * ins],
            w[g * outs : (g + 1) * outs],
        )
        for g in range(groups)
    ]
    return np.concatenate(parts, 1)


def int64(x: torch.Tensor) -> np.ndarray:
    y = x.detach().double().numpy()
    assert (y == np.round(y)).all()
    return y.astype(np.int64)


CASES = st.fixed_dictionaries(
    {
        "act": st.sampled_from(["sign", "htanh", "learned", "unipolar"]),
        "weight": st.sampled_from(["sign", "lsq", "twos"]),
        "a_bits": st.integers(1, 8),
        "w_bits": st.integers(1, 8),
        "kernel": st.sampled_from([1, 2, 3]),
        "stride": st.integers(1, 3),
        "padding": st.integers(0, 2),
        "dilation": st.integers(1, 2),
        "groups": st.sampled_from([1, 1, 3]),
        "width": st.sampled_from([1, 2, 5]),
        "bias": st.booleans(),
        "scale": st.booleans(),
        "gate": st.booleans(),
        "pad_value": st.sampled_from([0, 0, -1, 1]),
        "seed": st.integers(0, 999),
    }
)


def build(case) -> tuple[QuantConv2d, torch.Tensor]:
    torch.manual_seed(case["seed"])
    c_in, c_out = case["groups"] * case["width"], case["groups"] * 2
    layer = QuantConv2d(
        c_in,
        c_out,
        case["kernel"],
        case["stride"],
        case["padding"],
        case["dilation"],
        case["groups"],
        case["bias"],
        act=act_of(case["act"], case["a_bits"]),
        weight_quantizer=weight_of(case["weight"], case["w_bits"], c_out),
        channel_scale=case["scale"],
        gate=ChannelGate(c_in, c_out) if case["gate"] else None,
        pad_value=case["pad_value"],
    ).eval()
    if layer.channel_scale is not None:
        nn.init.normal_(layer.channel_scale)
    return layer, torch.randn(2, c_in, 7, 6)


@settings(deadline=None, max_examples=80)
@given(case=CASES)
def test_eval_is_the_contract_bit_for_bit(case):
    """Integer sums by brute force in int64, then float32 operations in the engine's order."""
    layer, x = build(case)
    with torch.no_grad():
        y = layer(x)
        a, w = int64(layer.act.integers(x)), int64(layer.weight_quantizer.integers(layer.weight))
        format = layer.act.format
        fill = {0: 0, -1: format.low, 1: format.high}[case["pad_value"]]
        geometry = {key: case[key] for key in ("stride", "padding", "dilation", "groups")}
        sums = integer_conv(a, w, **geometry, fill=fill)
        assert np.array_equal(int64(layer.integer_sums(x)), sums)
        expected = sums.astype(np.float32)
        step_w = layer.weight_quantizer.step(layer.weight).numpy()
        alpha = layer.act.step().numpy() * step_w
        if layer.channel_scale is not None:
            alpha = alpha * layer.channel_scale.numpy()
        expected = expected * alpha.reshape(1, -1, 1, 1)
        if layer.gate is not None:
            expected = expected * layer.gate(x).numpy()
        if layer.bias is not None:
            expected = expected + layer.bias.numpy().reshape(1, -1, 1, 1)
    assert expected.dtype == np.float32
    assert np.array_equal(y.numpy(), expected)


@settings(deadline=None, max_examples=40)
@given(case=CASES)
def test_training_form_is_the_same_up_to_rounding(case):
    layer, x = build(case)
    with torch.no_grad():
        exact = layer(x)
        trained = layer.train()(x)
        assert torch.allclose(trained, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())
        # ... and the plain convolution of what the operands stand for
        if case["pad_value"] == 0:
            real = F.conv2d(
                layer.act(x).double(),
                layer.weight_quantizer(layer.weight).double(),
                None,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
            if layer.channel_scale is not None:
                real = real * layer.channel_scale.reshape(1, -1, 1, 1)
            if layer.gate is not None:
                real = real * layer.gate(x)
            if layer.bias is not None:
                real = real + layer.bias.reshape(1, -1, 1, 1)
            assert torch.allclose(real.float(), exact, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(case=CASES)
def test_folded_layer_says_all_that_is_constant(case):
    layer, x = build(case)
    folded = layer.folded()
    with torch.no_grad():
        assert folded.weight_codes.dtype == torch.uint8
        assert folded.weight_codes.shape == layer.weight.shape
        w = folded.weight_format.integers(folded.weight_codes.numpy().astype(np.int64))
        a = int64(layer.act.integers(x))
        fill = {0: 0, -1: folded.act_format.low, 1: folded.act_format.high}[case["pad_value"]]
        geometry = {key: case[key] for key in ("stride", "padding", "dilation", "groups")}
        y = integer_conv(a, w, **geometry, fill=fill).astype(np.float32)
        y = y * folded.alpha.numpy().reshape(1, -1, 1, 1)
        if layer.gate is not None:
            y = y * layer.gate(x).numpy()
        if folded.bias is not None:
            y = y + folded.bias.numpy().reshape(1, -1, 1, 1)
        assert np.array_equal(layer(x).numpy(), y)
    assert folded.alpha.shape == (layer.out_channels,)
    assert folded.act_step == layer.act.step().item()


@settings(deadline=None, max_examples=40)
@given(
    a_bits=st.integers(1, 8),
    w_bits=st.integers(1, 8),
    features=st.integers(1, 40),
    seed=st.integers(0, 99),
    bias=st.booleans(),
)
def test_linear(a_bits, w_bits, features, seed, bias):
    torch.manual_seed(seed)
    layer = QuantLinear(
        features,
        5,
        bias,
        act=UniformBipolar(a_bits),
        weight_quantizer=UniformBipolarWeight(w_bits, "lsq", 5),
        channel_scale=True,
    ).eval()
    x = torch.randn(3, 4, features)
    with torch.no_grad():
        sums = int64(layer.act.integers(x)) @ int64(layer.weight_quantizer.integers(layer.weight)).T
        expected = sums.astype(np.float32) * layer.alpha().numpy()
        if bias:
            expected = expected + layer.bias.numpy()
        assert np.array_equal(layer(x).numpy(), expected)
        assert torch.allclose(layer.train()(x), layer.eval()(x), atol=1e-4)
        assert layer.folded().weight_codes.shape == (5, features, 1, 1)


def test_sums_beyond_2_to_24_are_exact():
    """8 x 8 bits and 40,001 addends: added up in float32 the sums come out wrong."""
    layer = QuantLinear(
        40_001, 2, False, act=UniformBipolar(8), weight_quantizer=UniformBipolarWeight(8, "clip")
    ).eval()
    torch.manual_seed(0)
    nn.init.uniform_(layer.weight, 0.2, 1)
    x = torch.rand(3, 40_001)
    a, w = int64(layer.act.integers(x)), int64(layer.weight_quantizer.integers(layer.weight))
    exact = a @ w.T
    assert exact.min() > 2**24
    assert np.array_equal(layer.integer_sums(x).detach().numpy(), exact.astype(np.float32))
    in_float32 = F.linear(torch.from_numpy(a).float(), torch.from_numpy(w).float())
    assert not np.array_equal(in_float32.numpy(), exact.astype(np.float32))


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes_pad_the_codes(padding_mode):
    layer = QuantConv2d(
        3,
        4,
        3,
        padding=1,
        padding_mode=padding_mode,
        act=UniformUnipolar(3),
        weight_quantizer=TwosWeight(3, 4),
    ).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        a = F.pad(layer.act.integers(x), (1, 1, 1, 1), mode=padding_mode)
        sums = F.conv2d(a, layer.weight_quantizer.integers(layer.weight))
        assert torch.equal(layer.integer_sums(x), sums)
    same = QuantConv2d(
        3, 4, 2, padding="same", act=SignSTE(), weight_quantizer=SignWeight(), pad_value=-1
    ).eval()
    assert same(x).shape == (2, 4, 6, 6)


def test_the_border_is_torchs_zero_padding():
    """0 is no level of a sign, yet the border must be exactly what F.conv2d makes of it."""
    layer = BinaryConv2d(5, 4, 3, padding=1, config=BinarizeConfig(scale="none")).eval()
    x = torch.randn(2, 5, 6, 6)
    with torch.no_grad():
        signs = torch.where(x >= 0, 1.0, -1.0)
        w = torch.where(layer.weight >= 0, 1.0, -1.0)
        assert torch.equal(layer(x), F.conv2d(signs, w, padding=1))
        ones = F.conv2d(F.pad(signs, (1, 1, 1, 1), value=1.0), w)
        level = QuantConv2d.from_float(
            layer, act=SignSTE(), weight_quantizer=SignWeight(), pad_value=1
        ).eval()
        assert torch.equal(level(x), ones)


# --- one bit -------------------------------------------------------------------------------


def test_operands_of_a_binary_convolution_are_plus_and_minus_one(monkeypatch):
    """Looked at where torch multiplies them, in training and in eval, zeros among the inputs."""
    seen = []
    original = F.conv2d

    def spy(a, w, *rest):
        seen.append((a, w))
        return original(a, w, *rest)

    monkeypatch.setattr(F, "conv2d", spy)
    layer = BinaryConv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        layer.weight[0] = 0
    x = torch.randn(2, 4, 5, 5)
    x[0] = 0
    for training in (True, False):
        layer.train(training)(x)
    assert len(seen) == 2
    for a, w in seen:
        assert set(a.unique().tolist()) == set(w.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("scale", ["none", "xnor", "channel", "chw", "se"])
def test_binary_convolution_is_a_scaled_convolution_of_signs(scale):
    config = BinarizeConfig(scale=scale, output_size=(6, 6) if scale == "chw" else None)
    layer = BinaryConv2d(4, 8, 3, padding=1, config=config).eval()
    for name, parameter in layer.named_parameters():
        if name != "weight":
            nn.init.uniform_(parameter, 0.2, 1.5)
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        plain = F.conv2d(
            torch.where(x >= 0, 1.0, -1.0), torch.where(layer.weight >= 0, 1.0, -1.0), padding=1
        )
        expected = plain
        if scale == "xnor":
            expected = plain * layer.weight.abs().mean((1, 2, 3)).reshape(-1, 1, 1)
        elif scale != "none":
            expected = plain * layer.channel_scale.reshape(-1, 1, 1)
        if scale == "chw":
            gamma = torch.einsum(
                "h,w->hw", layer.spatial_scale.rows[:, 0], layer.spatial_scale.columns[0]
            )
            expected = expected * gamma
        if scale == "se":
            z = x.mean((2, 3))
            hidden = (z @ layer.gate.reduce.weight.T).relu()
            gate = 1 / (1 + torch.exp(-hidden @ layer.gate.expand.weight.T))
            expected = expected * gate[:, :, None, None]
        for training in (False, True):
            assert torch.allclose(layer.train(training)(x), expected, atol=1e-5)


def test_the_gate_reads_the_real_input():
    """Not its sign, and not the output: the same signs with other magnitudes open it otherwise."""
    layer = BinaryConv2d(4, 4, 3, padding=1, config=BinarizeConfig(scale="se")).eval()
    x = torch.rand(1, 4, 5, 5) + 0.1
    louder = x * torch.tensor([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)
    assert torch.equal(layer.act.integers(x), layer.act.integers(louder))
    assert not torch.allclose(layer(x), layer(louder))
    assert torch.allclose(layer(louder) * layer.gate(x), layer(x) * layer.gate(louder), atol=1e-5)
    # the gradient through the gate is dense: also where no sign passes one
    loud = (x * 50).requires_grad_()
    layer.train()(loud).sum().backward()
    assert (loud.grad != 0).all()


def test_gate_sizes():
    gate = ChannelGate(64, 128)
    assert gate.reduce.weight.shape == (8, 64)
    assert gate.expand.weight.shape == (128, 8)
    assert gate.reduce.bias is gate.expand.bias is None
    assert ChannelGate(8, 8).reduce.out_features == 4, "min_hidden"
    assert ChannelGate(8, 8, hidden=3).reduce.out_features == 3
    s = gate(torch.randn(3, 64, 4, 4))
    assert s.shape == (3, 128, 1, 1)
    assert ((s > 0) & (s < 1)).all()


def test_gradients_of_a_binary_convolution_by_hand():
    """Through both signs and the scale, against autograd on the smooth stand-ins."""
    layer = BinaryConv2d(3, 4, 3, padding=1)
    nn.init.normal_(layer.weight)
    nn.init.uniform_(layer.channel_scale, 0.5, 2)
    x = torch.randn(2, 3, 5, 5, generator=seeded(1))
    up = torch.randn(2, 4, 5, 5, generator=seeded(2))
    for training in (True, False):
        layer.zero_grad()
        layer.train(training)
        leaf = x.clone().requires_grad_()
        (layer(leaf) * up).sum().backward()
        a = torch.where(x >= 0, 1.0, -1.0).requires_grad_()
        w = torch.where(layer.weight >= 0, 1.0, -1.0).detach().requires_grad_()
        plain = F.conv2d(a, w, padding=1)
        (plain * layer.channel_scale.detach().reshape(-1, 1, 1) * up).sum().backward()
        assert torch.allclose(leaf.grad, a.grad * (x.abs() < 1), atol=1e-4)
        assert torch.allclose(layer.weight.grad, w.grad * (layer.weight.abs() < 1), atol=1e-4)
        assert torch.allclose(
            layer.channel_scale.grad, (plain.detach() * up).sum((0, 2, 3)), atol=1e-3
        )


def test_linear_forms_of_the_scales():
    layer = BinaryLinear(7, 3, config=BinarizeConfig(scale="xnor")).eval()
    x = torch.randn(4, 7)
    alpha = layer.weight.abs().mean(1)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0)
    assert torch.allclose(layer(x), torch.where(x >= 0, 1.0, -1.0) @ signs.T * alpha, atol=1e-5)
    for scale in ("se", "chw"):
        config = BinarizeConfig(scale=scale, output_size=(1, 1) if scale == "chw" else None)
        with pytest.raises(FoveateError, match="convolutions"):
            BinaryLinear(7, 3, config=config)


# --- stages --------------------------------------------------------------------------------


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        BinaryConv2d(4, 6, 3, padding=1, config=BinarizeConfig(scale="se")),
        nn.PReLU(6),
        nn.BatchNorm2d(6),
        BinaryConv2d(6, 6, 3, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 25, 2),
    )


def test_stage_1_loads_strictly_in_stage_2():
    first, second = small_net(), small_net()
    set_stage(first, weights=False, activations=True)
    set_stage(second, weights=True, activations=True)
    assert [layer.bits for _, layer in quant_layers(first)] == [(32, 1)] * 2
    assert [layer.bits for _, layer in quant_layers(second)] == [(1, 1)] * 2
    before = {name: value.clone() for name, value in first.state_dict().items()}
    second.load_state_dict(first.state_dict(), strict=True)
    for name, value in second.state_dict().items():
        assert torch.equal(value, before[name]), "the latent weight is the real weight of stage 1"
    soft = small_net()
    set_stage(soft, weights=False, activations="soft")
    first.load_state_dict(soft.state_dict(), strict=True)


def test_every_stage_computes_what_it_says():
    layer = BinaryConv2d(3, 4, 3, padding=1, config=BinarizeConfig(scale="none"))
    x = torch.randn(2, 3, 5, 5)
    a, w = torch.where(x >= 0, 1.0, -1.0), torch.where(layer.weight >= 0, 1.0, -1.0).detach()
    real = layer.weight.detach()
    cases = [
        ((False, False), x, real),
        ((False, "soft"), torch.tanh(x), real),
        ((False, True), a, real),
        ((True, True), a, w),
        ((True, False), x, w),
    ]
    for (weights, activations), left, right in cases:
        set_stage(layer, weights=weights, activations=activations)
        for training in (True, False):
            y = layer.train(training)(x)
            assert torch.allclose(y, F.conv2d(left, right, padding=1), atol=1e-5)


def test_stages_that_cannot_be_are_refused_and_change_nothing():
    net = nn.Sequential(BinaryConv2d(3, 3, 1), QuantConv2d(3, 3, 1, act=UniformUnipolar(4)))
    with pytest.raises(FoveateError, match=r"1.act.*UniformUnipolar.*soft"):
        set_stage(net, weights=False, activations="soft")
    assert net[0].bits == (1, 1)
    with pytest.raises(FoveateError, match="True, False or 'soft', got 'hard'"):
        set_stage(net, weights=False, activations="hard")
    packed = pack_weights(net)
    with pytest.raises(FoveateError, match="no real weights"):
        set_stage(packed, weights=False, activations=False)
    assert net[0].bits == packed[0].bits == (1, 1)
    with pytest.raises(FoveateError, match="no quantised layer"):
        set_stage(nn.Linear(2, 2), weights=True, activations=True)
    set_stage(net, weights=False, activations=True)
    with pytest.raises(FoveateError, match="32-bit weights"):
        net[0].folded()
    sized = BinaryConv2d(3, 3, 1, config=BinarizeConfig(scale="chw", output_size=(2, 2)))
    with pytest.raises(FoveateError, match="chw"):
        sized.folded()


def test_weight_decay_spares_everything_as_soon_as_weights_are_binary():
    net = small_net()
    every = {id(p) for p in net.parameters()}
    set_stage(net, weights=False, activations=True)
    decayed, spared = parameter_groups(net, 1e-5)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-5, 0.0)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "0.weight",
        "2.weight",
        "2.gate.reduce.weight",
        "2.gate.expand.weight",
        "5.weight",
        "7.weight",
    }
    assert {id(p) for p in decayed["params"] + spared["params"]} == every
    set_stage(net, weights=True, activations=True)
    decayed, spared = parameter_groups(net, 1e-5)
    assert not decayed["params"]
    assert {id(p) for p in spared["params"]} == every
    torch.optim.Adam(parameter_groups(net, 0.1)[1:])
    with pytest.raises(FoveateError):
        parameter_groups(net, -1)


def test_few_bit_weights_are_still_decayed_and_frozen_ones_left_out():
    layer = QuantConv2d(3, 4, 3, weight_quantizer=TwosWeight(4, 4))
    layer.bias.requires_grad_(False)
    decayed, spared = parameter_groups(layer, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(layer.weight)]
    assert [id(p) for p in spared["params"]] == [id(layer.weight_quantizer.step_size)]


def test_latent_weights_are_clipped_where_the_sign_is_in_use():
    net = small_net()
    for _, layer in quant_layers(net):
        nn.init.uniform_(layer.weight, -3, 3)
    real = net[0].weight.clone()
    before = net[2].weight.clone()
    set_stage(net, weights=False, activations=True)
    clip_latent_weights(net)
    assert torch.equal(net[2].weight, before), "real weights are not clipped"
    set_stage(net, weights=True, activations=True)
    clip_latent_weights(net)
    assert torch.equal(net[0].weight, real)
    for _, layer in quant_layers(net):
        assert layer.weight.abs().max() <= 1
    assert torch.equal(net[2].weight >= 0, before >= 0)
    assert torch.allclose(net[2].weight, before.clamp(-1, 1))


def test_a_clipped_weight_is_not_stuck():
    """The clip estimator has no gradient at exactly 1: a clipped weight must stay inside."""
    layer = BinaryLinear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[5.0, -5.0]]))
    clip_latent_weights(layer)
    layer(torch.ones(1, 2)).sum().backward()
    assert (layer.weight.grad != 0).all()


# --- packed --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(case=CASES)
def test_packed_weights_give_identical_outputs(case):
    layer, x = build(case)
    net = nn.Sequential(nn.Conv2d(layer.in_channels, layer.in_channels, 1), layer).eval()
    packed = pack_weights(net)
    with torch.no_grad():
        assert torch.equal(packed(x), net(x))
    assert packed[1].weight.dtype == torch.uint8, "no latent copy"
    assert packed[1].weight.max().item() < 2**layer.weight_quantizer.format.bits
    assert packed[1].bits == layer.bits
    assert torch.equal(packed[0].weight, net[0].weight)
    assert torch.equal(packed[1].folded().weight_codes, layer.folded().weight_codes)
    assert torch.equal(packed[1].folded().alpha, layer.folded().alpha)
    with pytest.raises(FoveateError, match="no real weights"):
        set_stage(packed, weights=False, activations=True)


def test_a_packed_layer_left_in_train_mode_still_computes_with_its_weights():
    layer = QuantConv2d(4, 4, 3, act=SignSTE(), weight_quantizer=TwosWeight(3, 4))
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        expected = F.conv2d(torch.where(x >= 0, 1.0, -1.0), layer.weight_quantizer(layer.weight))
        expected = expected + layer.bias[:, None, None]
        assert torch.allclose(pack_weights(layer).train()(x), expected, atol=1e-5)


def test_packing_leaves_real_layers_and_the_model_alone():
    net = small_net()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    set_stage(net, weights=False, activations=True)
    packed = pack_weights(net.train())
    assert net.training
    assert packed[2].weight.dtype == torch.float32
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])


# --- dropping in ---------------------------------------------------------------------------


def test_from_float_shares_the_parameters_and_the_place():
    conv = nn.Conv2d(6, 4, (3, 2), (2, 1), (1, 0), (1, 2), 2, padding_mode="circular").eval()
    layer = QuantConv2d.from_float(conv, act=UniformUnipolar(8), weight_quantizer=TwosWeight(8, 4))
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert not layer.training
    x = torch.rand(2, 6, 9, 9)
    layer.act.fit(x)
    assert torch.allclose(layer(x), conv(x), atol=0.03), "8 bits are nearly the real layer"
    set_stage(layer, weights=False, activations=False)
    assert torch.allclose(layer(x), conv(x), atol=1e-6)
    linear = nn.Linear(5, 3)
    assert QuantLinear.from_float(linear).weight is linear.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_eval_of_other_dtypes_is_exact_too(dtype):
    layer = BinaryConv2d(64, 4, 3, padding=1, config=BinarizeConfig(scale="none")).eval()
    x = torch.randn(1, 64, 6, 6).to(dtype)
    expected = layer(x.float())
    assert layer.to(dtype)(x).dtype == dtype
    assert torch.equal(layer(x), expected.to(dtype))


def test_eval_inside_autocast_is_exact():
    layer = QuantConv2d(
        16, 4, 3, act=UniformUnipolar(8), weight_quantizer=TwosWeight(8, 4), bias=False
    ).eval()
    x = torch.rand(1, 16, 6, 6)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)


def test_sums_that_an_accelerator_gets_a_little_wrong_are_repaired(monkeypatch):
    layer = BinaryConv2d(8, 4, 3, padding=1).eval()
    x = torch.randn(1, 8, 5, 5)
    expected = layer(x)
    original = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: original(*args) + 0.01)
    assert torch.equal(layer(x), expected)


def test_a_net_can_be_copied_saved_and_trained(tmp_path):
    from safetensors.torch import load_file, save_file

    net = small_net()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin = small_net()
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x, target = torch.randn(16, 3, 5, 5), torch.arange(16) % 2
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip_latent_weights(net)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert math.isfinite(losses[-1])


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: QuantConv2d(3, 3, 1, pad_value=2), "pad_value"),
        (lambda: QuantConv2d(3, 3, 1, pad_value=1), "act"),
        (
            lambda: QuantConv2d(3, 3, 1, padding_mode="reflect", act=SignSTE(), pad_value=1),
            "reflect",
        ),
        (lambda: QuantConv2d(3, 3, 1, gate=ChannelGate(3, 4)), "3 -> 4"),
        (lambda: ChannelGate(0, 3), "positive"),
        (lambda: ChannelGate(8, 8, r=0), "at least 1, got 0"),
        (lambda: SpatialScale(0, 3), "positive"),
        (lambda: SpatialScale(2, 3)(torch.ones(1, 1, 3, 2)), "2 x 3"),
        (lambda: BinarizeConfig(scale="big"), "big"),
        (lambda: BinarizeConfig(scale="chw"), "output_size"),
        (lambda: BinarizeConfig(output_size=(2, 2)), "output_size"),
        (lambda: QuantConv2d(3, 3, 1).integer_sums(torch.ones(1, 3, 2, 2)), "32-bit"),
    ],
)
def test_bad_settings_are_named(make, word):
    with pytest.raises(FoveateError, match=word):
        make()
