"""The network against a slow reference of its layers, and what each pixel can see.

Lines of the specification's checklist: "stem", "two paths", "max-unpooling and skips".
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveate.errors import FoveateError
from foveate.scenes.polarimetric_network import (
    DESK_STEM,
    DESK_WIDTHS,
    PAPER_STEM,
    PAPER_WIDTHS,
    CodingStem,
    PolarimetricConvNet,
    SegNetLikeFCN,
    amplitudes,
    context,
    real_channels,
)
from foveate.scenes.scattering_coding import psc_encode

TINY = {"widths": (4, 6, 8, 8, 6), "fuse_channels": 5, "stem": (2, 3), "kernel": 3}


def scene(k: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random complex matrices (..., k, k); Hermitian for k = 3."""
    m = torch.randn(*shape, k, k, dtype=torch.complex64, generator=torch.manual_seed(seed))
    return m if k == 2 else m @ m.mH


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def unpooled(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Max-unpooling, pixel by pixel: `values` go where `before` had the maximum of its cell."""
    out = np.zeros((*values.shape[:2], *before.shape[2:]), np.float32)
    for b, c, r, s in np.ndindex(*values.shape):
        cell = before[b, c, 2 * r : 2 * r + 2, 2 * s : 2 * s + 2]
        i, j = np.unravel_index(cell.argmax(), (2, 2))
        out[b, c, 2 * r + i, 2 * s + j] = values[b, c, r, s]
    return out


def by_hand(fcn: SegNetLikeFCN, x: torch.Tensor) -> torch.Tensor:
    """The formula of the module's docstring with pooling and unpooling in numpy."""

    def relu(layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return layer(y).clamp(min=0)

    def pooled(y: torch.Tensor) -> torch.Tensor:
        b, c, h, w = y.shape
        return y.reshape(b, c, h // 2, 2, w // 2, 2).amax((3, 5))

    def up(y: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(unpooled(y.numpy(), before.numpy()))

    n1 = fcn.norm1(relu(fcn.conv1, x))
    n2 = fcn.norm2(relu(fcn.conv2, pooled(n1)))
    y = relu(fcn.conv5, relu(fcn.conv4, relu(fcn.conv3, pooled(n2))))
    y = relu(fcn.conv6, y) + pooled(n2)
    y = relu(fcn.conv7b, relu(fcn.conv7a, up(y, n2) + n2))
    return fcn.conv9(relu(fcn.conv8, up(y, n1) + n1))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_fcn_is_its_formula(norm):
    """Checklist: max-unpooling with indices + skips in the decoder."""
    torch.manual_seed(0)
    fcn = SegNetLikeFCN(3, 5, TINY["widths"], 3, norm).eval()
    for layer in fcn.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.3, 0.3)
                layer.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 12, 16)
    with torch.no_grad():
        assert torch.allclose(fcn(x), by_hand(fcn, x), atol=1e-5)


def test_skips_carry_what_the_deep_layers_cannot():
    """Checklist: skips. With layers 6 to 7b silenced, the skips alone still reach the output."""
    torch.manual_seed(0)
    fcn = SegNetLikeFCN(3, 5, TINY["widths"], 3, "none").eval()
    for layer in (fcn.conv6, fcn.conv7a, fcn.conv7b):
        nn.init.zeros_(layer.weight)
    one, other = torch.randn(2, 1, 3, 8, 8)
    assert not torch.allclose(fcn(one), fcn(other), atol=1e-3)


@pytest.mark.parametrize("k", [2, 3])
def test_stem_brings_the_code_to_the_size_of_the_scene(k):
    """Checklist: two-conv stem brings 4H x 4W (6H x 6W) to H x W, and sees a pixel's neighbours."""
    stem = CodingStem(k, (3, 4))
    m = scene(k, 1, 9, 7)
    assert stem(psc_encode(m)[:, None]).shape == (1, 4, 9, 7)
    first = F.conv2d(psc_encode(m)[:, None], stem.conv1.weight, stem.conv1.bias, 2, 1)
    assert first.shape[2:] == ((18, 14) if k == 2 else (27, 21))
    code = psc_encode(m)[:, None].requires_grad_()
    smooth = nn.Sequential(stem.conv1, stem.conv2)  # without ReLU: nothing is cut off by chance
    smooth(code)[0, :, 4, 3].sum().backward()
    seen = code.grad[0, 0].reshape(9, 2 * k, 7, 2 * k).abs().amax((1, 3)).nonzero()
    assert seen[:, 0].min() == 3
    assert seen[:, 0].max() == 5
    assert seen[:, 1].min() == 2
    assert seen[:, 1].max() == 4


@pytest.mark.parametrize("k", [2, 3])
def test_plain_inputs_entry_by_entry(k):
    m = scene(k, 2, 3, 4)
    plain, moduli = real_channels(m), amplitudes(m)
    assert plain.shape == (2, 8 if k == 2 else 9, 3, 4)
    assert moduli.shape == (2, 4 if k == 2 else 3, 3, 4)
    for b, h, w in np.ndindex(2, 3, 4):
        z = m[b, h, w].numpy()
        if k == 2:
            expected = [part for e in z.reshape(-1) for part in (e.real, e.imag)]
            moduli_expected = np.abs(z.reshape(-1))
        else:
            upper = (z[0, 1], z[0, 2], z[1, 2])
            expected = [*np.diag(z).real, *(part for e in upper for part in (e.real, e.imag))]
            moduli_expected = np.diag(z).real
        assert np.allclose(plain[b, :, h, w], expected)
        assert np.allclose(moduli[b, :, h, w], moduli_expected)


def test_two_paths_have_weights_of_their_own_and_are_fused_by_a_1x1_convolution():
    """Checklist: two FCN paths, separate weights; late fusion by concatenation and 1x1 conv."""
    torch.manual_seed(0)
    net = PolarimetricConvNet(4, 2, **TINY).eval()
    m = scene(2, 1, 8, 8)
    ours, theirs = set(map(id, net.coded.parameters())), set(map(id, net.echo.parameters()))
    assert ours
    assert not ours & theirs
    assert [tuple(p.shape) for p in net.coded.parameters()][1:] == [
        tuple(p.shape) for p in net.echo.parameters()
    ][1:], "equal design: only the input differs"
    assert net.head.weight.shape == (4, 2 * 5, 1, 1)
    with torch.no_grad():
        maps = torch.cat(
            [net.coded(net.stem(psc_encode(m)[:, None])), net.echo(real_channels(m))], 1
        )
        expected = torch.einsum("kc,bchw->bkhw", net.head.weight[..., 0, 0], maps)
        expected += net.head.bias[:, None, None]
        assert torch.allclose(net(m), expected, atol=1e-5)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("paths", ["both", "coded", "echo", "amplitude"])
def test_every_path_labels_every_pixel_and_learns(k, paths):
    torch.manual_seed(0)
    net = PolarimetricConvNet(3, k, **TINY, paths=paths)
    m = scene(k, 2, 8, 12)
    logits = net(m)
    assert logits.shape == (2, 3, 8, 12)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


def test_amplitude_path_is_blind_to_phases_and_the_others_are_not():
    torch.manual_seed(0)
    m = scene(2, 1, 8, 8)
    turned = torch.polar(m.abs(), torch.rand(m.shape) * 6)
    for paths in ("amplitude", "echo", "coded"):
        net = PolarimetricConvNet(3, 2, **TINY, paths=paths).eval()
        assert torch.allclose(net(m), net(turned), atol=1e-4) == (paths == "amplitude")


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("at", [(48, 48), (49, 50), (51, 51)])
def test_no_decision_sees_beyond_the_context(k, at):
    torch.manual_seed(1)
    net = PolarimetricConvNet(3, k, (3, 4, 4, 4, 3), 3, stem=(2, 3), kernel=3).eval()
    reach = context(3, "both")
    m = scene(k, 1, 100, 100)
    changed = scene(k, 1, 100, 100, seed=5) * 3
    r, c = at
    inside = (slice(None), slice(r - reach, r + reach + 1), slice(c - reach, c + reach + 1))
    changed[inside] = m[inside]
    with torch.no_grad():
        assert torch.allclose(net(m)[..., r, c], net(changed)[..., r, c], atol=1e-5)


def test_the_context_is_not_far_too_large():
    torch.manual_seed(0)
    fcn = SegNetLikeFCN(1, 1, (2, 2, 2, 2, 2), 3, "none")
    for layer in fcn.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.1)  # positive: no ReLU stops a gradient
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    fcn(x)[0, 0, 48, 48].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()[:, 0]
    reach = max(48 - int(rows.min()), int(rows.max()) - 48)
    assert 20 < reach <= context(3, "echo")
    assert context(5) == 56
    assert context(3) == 32


def test_sizes_of_paper_and_desk():
    with torch.device("meta"):
        paper = PolarimetricConvNet(5)
        desk = PolarimetricConvNet(5, 3, DESK_WIDTHS, 16, stem=DESK_STEM, kernel=3)
    assert [n * 4 for n in DESK_WIDTHS] == list(PAPER_WIDTHS)
    assert [n * 4 for n in DESK_STEM] == list(PAPER_STEM)
    # The specification: about 0.2 to 0.3 M parameters at desk scale, both paths.
    assert 0.2e6 < count(desk) < 0.3e6

    def conv(kernel: int, before: int, after: int) -> int:
        return (kernel * kernel * before + 1) * after

    def fcn(channels: int) -> int:
        pairs = [(channels, 64), (64, 128), (128, 256), (256, 256), (256, 128)]
        pairs += [(128, 128), (128, 128), (128, 64), (64, 64), (64, 64)]
        return sum(conv(5, *pair) for pair in pairs) + 2 * (64 + 128)

    stem = conv(4, 1, 32) + conv(4, 32, 64)
    assert count(paper) == stem + fcn(64) + fcn(8) + conv(1, 128, 5)


def test_weights_start_by_xavier():
    torch.manual_seed(0)
    net = PolarimetricConvNet(5, 2)
    weight = net.echo.conv4.weight
    bound = (6 / (25 * (256 + 256))) ** 0.5
    assert float(weight.detach().abs().max()) <= bound
    assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert float(net.echo.conv4.bias.detach().abs().max()) == 0


def test_bad_input_is_named():
    net = PolarimetricConvNet(3, 2, **TINY)
    for call, word in (
        (lambda: net(scene(3, 1, 8, 8)), "k=2"),
        (lambda: net(scene(2, 8, 8)), "B, H, W"),
        (lambda: net(scene(2, 1, 8, 8).real), "complex"),
        (lambda: net(scene(2, 1, 8, 9)), "multiples of 4"),
        (lambda: PolarimetricConvNet(1, 2), "two classes"),
        (lambda: PolarimetricConvNet(3, 4), "k=4"),
        (lambda: PolarimetricConvNet(3, 2, paths="none"), "paths is one of"),
        (lambda: SegNetLikeFCN(3, 4, (1, 2, 3)), "five"),
        (lambda: SegNetLikeFCN(0, 4), "channel"),
        (lambda: SegNetLikeFCN(3, 4, kernel=4), "odd"),
        (lambda: SegNetLikeFCN(3, 4, norm="layer"), "batch, group or none"),
        (lambda: CodingStem(4), "k=4"),
        (lambda: CodingStem(2, (1, 2, 3)), "two positive"),
        (lambda: CodingStem(2)(torch.zeros(1, 1, 6, 8)), "4 H"),
        (lambda: real_channels(torch.zeros(2, 2)), "complex"),
    ):
        with pytest.raises(FoveateError, match=word):
            call()
