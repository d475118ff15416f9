"""The layer against its formula, the authors' figure and scipy; surgery, training, projection."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import (
    LateralInhibition2d,
    LIConv2d,
    LISeparableConv2d,
    SeparableConv2d,
    add_lateral_inhibition,
    freeze_all_but_li_weights,
    inhibition_report,
    li_layers,
    no_decay_groups,
    project_after_step,
    project_li_weights,
)
from foveate.nn.resnet import resnet50


def with_weights(layer: LateralInhibition2d, *w: float) -> LateralInhibition2d:
    with torch.no_grad():
        layer.li_weight[:, 0, 0, 0] = torch.tensor(w)
    return layer


def by_loops(x: np.ndarray, w: list[float], zone: int, sigma: float, q: int) -> np.ndarray:
    """The formula, pixel by pixel, before the ReLU."""
    out = np.zeros_like(x)
    reach = zone // 2
    for c, r, k in np.ndindex(*x.shape):
        value = x[c, r, k]
        for u in range(-reach, reach + 1):
            for v in range(-reach, reach + 1):
                a, b = r + q * u, k + q * v
                if (u or v) and 0 <= a < x.shape[1] and 0 <= b < x.shape[2]:
                    value -= w[c] * math.exp(-(u * u + v * v) / (2 * sigma**2)) * x[c, a, b]
        out[c, r, k] = value
    return out


# --- the layer -----------------------------------------------------------------------------


@given(
    zone=st.sampled_from([3, 5]),
    sigma=st.floats(0.4, 3),
    q=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    w=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_layer_is_the_formula(zone, sigma, q, height, width, w, seed):
    """Checklist: one scalar per channel, fixed Gaussian, centre +1, depthwise, zeros, stride 1."""
    x = np.random.default_rng(seed).normal(size=(2, height, width))
    layer = with_weights(LateralInhibition2d(2, zone, sigma, q, activation="none"), *w)
    got = layer(torch.from_numpy(x).float()[None])[0].detach().numpy()
    np.testing.assert_allclose(got, by_loops(x, list(w), zone, sigma, q), atol=2e-5)
    rectified = with_weights(LateralInhibition2d(2, zone, sigma, q), *w)
    got = rectified(torch.from_numpy(x).float()[None])[0].detach().numpy()
    np.testing.assert_allclose(got, by_loops(x, list(w), zone, sigma, q).clip(0), atol=2e-5)


def test_layer_equals_scipys_correlation():
    x = np.random.default_rng(0).normal(size=(20, 17))
    kernel = -0.2 * np.exp(-np.add.outer(np.arange(-2, 3) ** 2, np.arange(-2, 3) ** 2) / 2)
    kernel[2, 2] = 1
    layer = with_weights(LateralInhibition2d(1, zone=5, activation="none"), 0.2)
    expected = scipy.ndimage.correlate(x, kernel, mode="constant")
    got = layer(torch.from_numpy(x).float()[None, None])[0, 0].detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_authors_figure():
    """1-D, intensity 0.25 on the two direct neighbours: 12 12 12 8 8 8 -> 6 6 7 3 4 4.

    A sigma so large that the Gaussian is 1, on one row of the picture, is that figure.
    """
    layer = with_weights(LateralInhibition2d(1, sigma=1e6), 0.25)
    row = torch.tensor([12.0] * 4 + [8.0] * 4)
    got = layer(row[None, None, None])[0, 0, 0, 1:-1]  # the ends lack a neighbour
    torch.testing.assert_close(got, torch.tensor([6.0, 6.0, 7.0, 3.0, 4.0, 4.0]))


def test_sums_of_the_gaussian_are_the_published_ones():
    """0.6065 beside, 0.3679 at corners, 3.8976 in all; 5.17 for zone 5."""
    falloff = LateralInhibition2d(1).falloff[0, 0]
    assert float(falloff[0, 1]) == pytest.approx(0.6065, abs=1e-4)
    assert float(falloff[2, 2]) == pytest.approx(0.3679, abs=1e-4)
    assert float(falloff[1, 1]) == 0
    assert float(falloff.sum()) == pytest.approx(4 * math.exp(-0.5) + 4 * math.exp(-1), abs=1e-5)
    assert float(LateralInhibition2d(1, zone=5).falloff.sum()) == pytest.approx(5.17, abs=5e-3)


@pytest.mark.parametrize(("w", "factor"), [(0.1, 0.61025), (0.2565, 0.0003), (0.26, 0.0)])
def test_flat_ground_is_dimmed_and_then_silent(w, factor):
    layer = with_weights(LateralInhibition2d(1), w)
    got = layer(torch.full((1, 1, 5, 5), 2.0))[0, 0, 2, 2].detach()
    assert float(got) == pytest.approx(2 * factor, abs=2e-4)


@pytest.mark.parametrize("zone", [3, 5])
def test_w_0_is_the_identity_on_what_is_not_negative(zone):
    """Checklist: exact identity at w = 0, to the last bit."""
    x = torch.rand(3, 4, 9, 11, generator=torch.Generator().manual_seed(0))
    layer = LateralInhibition2d(4, zone)
    assert torch.equal(layer(x), x)
    assert torch.equal(layer(-x), torch.zeros_like(x))  # there it is a ReLU


def test_parameters_are_one_scalar_per_channel_and_no_bias():
    """Checklist: one learnable scalar per channel; no BN by default, no bias."""
    layer = LateralInhibition2d(7, zone=5)
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [
        ("li_weight", torch.Size([7, 1, 1, 1]))
    ]
    assert list(layer.state_dict()) == ["li_weight"]
    kernel = with_weights(layer, *[0.1] * 7).kernel()
    assert kernel.shape == (7, 1, 5, 5)
    assert (kernel[:, 0, 2, 2] == 1).all()
    # |d|^2 = 5, the same for all eight places
    places = kernel[0, 0][[0, 0, 1, 1, 3, 3, 4, 4], [1, 3, 0, 4, 0, 4, 1, 3]]
    torch.testing.assert_close(places, torch.full((8,), -0.1 * math.exp(-2.5)))


def test_norm_stands_between_filter_and_relu():
    layer = LateralInhibition2d(3, norm=nn.BatchNorm2d)
    seen: list[torch.Tensor] = []
    layer.norm.register_forward_hook(lambda m, args, out: seen.extend((args[0], out)))
    with torch.no_grad():
        y = layer(torch.randn(4, 3, 6, 6))
    assert isinstance(layer.norm, nn.BatchNorm2d)
    assert float(seen[0].min()) < 0
    torch.testing.assert_close(y, seen[1].relu())


def test_negative_inputs_excite_their_neighbours_unless_rectified():
    x = torch.tensor([[[[1.0, -1.0]]]])
    plain = with_weights(LateralInhibition2d(1), 0.5)(x)
    clean = with_weights(LateralInhibition2d(1, rectify_input=True), 0.5)(x)
    assert float(plain[0, 0, 0, 0].detach()) == pytest.approx(1 + 0.5 * math.exp(-0.5))
    assert float(clean[0, 0, 0, 0].detach()) == 1


def test_gradient_of_w_is_the_closed_form_and_not_0_at_the_start():
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64) + 0.1
    layer = LateralInhibition2d(3).double()
    layer(x).sum().backward()
    sums = -(x - 0).new_tensor(
        [
            sum(
                by_loops(x[b, c : c + 1].numpy(), [-1.0], 3, 1.0, 1).sum() - float(x[b, c].sum())
                for b in range(2)
            )
            for c in range(3)
        ]
    )
    torch.testing.assert_close(layer.li_weight.grad[:, 0, 0, 0], sums, rtol=1e-6, atol=1e-6)
    assert (layer.li_weight.grad < 0).all()
    assert torch.autograd.gradcheck(with_weights(layer, 0.05, 0.1, 0.0), (x.requires_grad_(),))


@pytest.mark.parametrize(
    "settings_",
    [
        {"channels": 0},
        {"zone": 4},
        {"zone": 1},
        {"zone": 33},
        {"sigma": 0.0},
        {"sigma": math.nan},
        {"dilation": 0},
        {"init": (0.2, 0.1)},
        {"init": (0.0, 2.0)},
        {"clip": (-1.0, 1.0)},
        {"activation": "gelu"},
    ],
)
def test_bad_settings_are_one_sentence(settings_):
    with pytest.raises(FoveateError, match="LateralInhibition2d expects") as error:
        LateralInhibition2d(**{"channels": 3, **settings_})
    assert "\n" not in str(error.value)


def test_other_channels_are_one_sentence():
    with pytest.raises(FoveateError, match=r"expects \(B, 3, H, W\), got \(1, 4, 5, 5\)"):
        LateralInhibition2d(3)(torch.zeros(1, 4, 5, 5))
    with pytest.raises(FoveateError, match="got"):
        LateralInhibition2d(3)(torch.zeros(3, 5, 5))


# --- convolutions --------------------------------------------------------------------------


def test_inhibition_comes_before_the_dilated_convolution_at_dilation_1():
    """Checklist: in front of the conv, dilation 1 even where the conv has rate 18."""
    conv = LIConv2d(3, 5, 3, padding=18, dilation=18, bias=False)
    assert conv.inhibition.dilation == 1
    with_weights(conv.inhibition, 0.1, 0.05, 0.0)
    x = torch.randn(2, 3, 40, 41)
    before = torch.from_numpy(
        np.stack([by_loops(p.numpy(), [0.1, 0.05, 0.0], 3, 1.0, 1) for p in x]).clip(0)
    )
    expected = nn.functional.conv2d(before, conv.weight, padding=18, dilation=18)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_separable_convolution_is_that_of_the_pyramid():
    torch.manual_seed(0)
    conv = LISeparableConv2d(4, 6, dilation=2).eval()
    assert conv.depthwise.groups == 4
    assert conv.depthwise.dilation == (2, 2)
    assert conv.inhibition.dilation == 1
    x = torch.rand(1, 4, 9, 9)
    y = nn.functional.conv2d(x, conv.depthwise.weight, padding=2, dilation=2, groups=4)
    y = nn.functional.conv2d((y / math.sqrt(1 + 1e-5)).relu(), conv.pointwise.weight)
    torch.testing.assert_close(conv(x), (y / math.sqrt(1 + 1e-5)).relu())
    many = SeparableConv2d(2000, 400)
    for weight, std in ((many.depthwise.weight, 0.33), (many.pointwise.weight, 0.06)):
        assert float(weight.detach().abs().max()) <= 2 * std
        # of a normal deviate cut at two deviations: 0.8796 of its deviation
        assert float(weight.detach().std()) == pytest.approx(0.8796 * std, rel=0.02)


def test_plain_weights_load_and_only_li_weights_are_missing():
    """Checklist: plain weights load, only ``li_weight`` keys are missing; outputs are equal."""
    torch.manual_seed(0)
    for plain, inhibited in (
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2), LIConv2d(3, 4, 3, padding=2, dilation=2)),
        (SeparableConv2d(3, 4, dilation=2), LISeparableConv2d(3, 4, dilation=2)),
    ):
        missing, unexpected = inhibited.load_state_dict(plain.state_dict(), strict=False)
        assert missing == ["inhibition.li_weight"]
        assert not unexpected
        x = torch.rand(2, 3, 8, 8)
        assert torch.equal(inhibited(x), plain(x))


# --- surgery -------------------------------------------------------------------------------


def test_any_backbone_can_be_inhibited():
    torch.manual_seed(0)
    net = resnet50(classes=4).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        before, keys = net(x), set(net.state_dict())
        old = copy.deepcopy(net.state_dict())
        names = add_lateral_inhibition(
            net, lambda name, conv: name.startswith("layer4") and conv.kernel_size == (3, 3)
        )
        assert names == [f"layer4.{k}.conv2" for k in range(3)]
        assert torch.equal(net(x), before)  # behind a ReLU, w = 0: nothing has changed
    added = set(net.state_dict()) - keys
    assert added == {f"{name}.inhibition.li_weight" for name in names}
    missing, unexpected = net.load_state_dict(old, strict=False)
    assert set(missing) == added
    assert not unexpected
    # Checklist: the increase is the sum of channels, below 0.1 % (3 x 512 of 23.5 million)
    report = inhibition_report(net)
    assert report.parameters == 3 * 512
    assert report.share < 1e-3


def test_surgery_keeps_parameters_mode_settings_and_random_numbers():
    conv = nn.Conv2d(4, 8, 3, 2, 1, dilation=2, groups=2, padding_mode="reflect")
    net = nn.Sequential(conv, nn.ReLU()).eval()
    x = torch.rand(1, 4, 12, 12)
    before = net(x)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert add_lateral_inhibition(net, ["0"], zone=5, sigma=2.0) == ["0"]
    assert torch.equal(torch.rand(1), expected)  # an arm with it draws as an arm without
    assert net[0].weight is conv.weight
    assert net[0].bias is conv.bias
    assert not net[0].inhibition.training
    assert (net[0].inhibition.zone, net[0].inhibition.sigma) == (5, 2.0)
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    again = copy.deepcopy(net)
    assert torch.equal(again(x), before)


def test_shared_convolution_stays_one():
    conv = nn.Conv2d(2, 2, 1)
    net = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})
    add_lateral_inhibition(net, ["a"])
    assert net["a"] is net["b"][0]
    assert len(list(li_layers(net))) == 1


def test_surgery_that_cannot_be_is_one_sentence_and_changes_nothing():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    for where, said in (
        (["0", "1"], "'1' is a ReLU"),
        (["0", "x.y"], "'x.y' is not there"),
        ([], "no convolution of Sequential was chosen"),
        (lambda name, conv: False, "it has 1, such as 0"),
    ):
        with pytest.raises(FoveateError, match=said):
            add_lateral_inhibition(net, where)
        assert type(net[0]) is nn.Conv2d
    add_lateral_inhibition(net, ["0"])
    with pytest.raises(FoveateError, match="'0' is a LIConv2d"):
        add_lateral_inhibition(net, ["0"])


# --- training ------------------------------------------------------------------------------


def a_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), LIConv2d(4, 2, 3, init=(0.0, 0.15)))


def test_w_is_projected_after_every_step_and_off_centre_weights_stay_below_0():
    """Checklist: w in [0, 1] by projection after the step, so off-centre weights are <= 0."""
    net = a_net()
    layer = net[2].inhibition
    optimizer = torch.optim.SGD(net.parameters(), lr=50.0)
    handle = project_after_step(optimizer, net)
    sides = set()
    for k in range(6):
        optimizer.zero_grad()
        sign = 1.0 if k % 2 else -1.0
        (sign * net[2].inhibition(torch.rand(2, 4, 6, 6))).sum().backward()
        optimizer.step()
        w = layer.li_weight.detach()
        assert float(w.min()) >= 0
        assert float(w.max()) <= 1
        sides |= set(w.flatten().tolist())
        kernel = layer.kernel().detach().flatten(1)
        assert (kernel[:, [0, 1, 2, 3, 5, 6, 7, 8]] <= 0).all()
        assert (kernel[:, 4] == 1).all()
    assert sides <= {0.0, 1.0}  # steps this large always end at a side: nothing squashes them
    assert len(sides) == 2
    handle.remove()
    with torch.no_grad():
        layer.li_weight.fill_(-3)
    assert project_li_weights(net) == 1
    assert (layer.li_weight == 0).all()


def test_a_negative_step_goes_back_to_0_and_training_goes_on():
    layer = LateralInhibition2d(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    project_after_step(optimizer, layer)
    x = torch.rand(1, 1, 5, 5)
    for sign in (-1.0, 1.0):
        optimizer.zero_grad()
        (sign * layer(x)).sum().backward()
        optimizer.step()
        assert (float(layer.li_weight.detach()) > 0) == (sign > 0)


def test_w_does_not_decay():
    """Checklist: no weight decay on w."""
    net = a_net()
    with torch.no_grad():
        net[2].inhibition.li_weight.fill_(0.1)
    groups = no_decay_groups(net, 0.5)
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    assert [p is net[2].inhibition.li_weight for p in groups[1]["params"]] == [True]
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    before = net[2].weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(net[2].inhibition.li_weight, torch.full((4, 1, 1, 1), 0.1))
    torch.testing.assert_close(net[2].weight.detach(), before * 0.95)
    assert no_decay_groups(net, 0.5, li_lr=0.3)[1]["lr"] == 0.3
    assert len(no_decay_groups(nn.Linear(2, 2), 0.5)) == 1


def test_only_w_can_be_trained():
    net = a_net()
    assert freeze_all_but_li_weights(net) == 4
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["2.inhibition.li_weight"]
    assert len(no_decay_groups(net, 0.5)) == 1
    with pytest.raises(FoveateError, match="has no lateral inhibition"):
        freeze_all_but_li_weights(nn.Linear(2, 2))


def test_start_is_uniform_in_the_interval():
    layer = LateralInhibition2d(4000, init=(0.05, 0.15))
    w = layer.li_weight.detach()
    assert 0.05 <= float(w.min()) < 0.051
    assert 0.149 < float(w.max()) <= 0.15
    assert float(w.mean()) == pytest.approx(0.1, abs=0.002)


def test_report_says_what_was_learned_and_when_nothing_was():
    """Checklist: report w (mean, share of zeros), and say so when all stay 0."""
    net = nn.Sequential(LateralInhibition2d(4), LateralInhibition2d(2, zone=5))
    assert not inhibition_report(net).active
    assert "inactive" in str(inhibition_report(net))
    with_weights(net[0], 0.0, 0.1, 0.25, 0.3)  # 1 / 3.8976 = 0.2566
    with_weights(net[1], 0.0, 0.2)  # 1 / 5.17 = 0.193
    report = inhibition_report(net)
    assert report.active
    assert report.mean == pytest.approx(0.85 / 6)
    assert report.largest == pytest.approx(0.3)
    assert report.zeros == pytest.approx(2 / 6)
    assert report.silent == pytest.approx(2 / 6)
    assert (report.parameters, report.share) == (6, 1.0)
    assert report.layers == pytest.approx({"0": 0.1625, "1": 0.1})
    assert "w mean 0.1417" in str(report)
    with pytest.raises(FoveateError, match="has no lateral inhibition"):
        inhibition_report(nn.ReLU())


def test_layer_survives_autocast_and_export():
    layer = with_weights(LateralInhibition2d(3), 0.1, 0.2, 0.0)
    x = torch.rand(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(traced(x), layer(x))
