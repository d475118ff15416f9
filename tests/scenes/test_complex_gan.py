"""The complex GAN's nets, losses and training, against numpy and what the paper states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
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
)
from foveate.scenes.complex_gan import (
    ComplexDiscriminator,
    ComplexGenerator,
    RealDiscriminator,
    RealGenerator,
    SemiSupervisedGANLoss,
    feature_distance,
    fit_classifier,
    fit_ssgan,
    real_channels,
)
from foveate.scenes.complex_gan_map import class_probabilities

K = 3


def patches(seed: int, count: int, side: int = 8) -> torch.Tensor:
    """Complex patches whose diagonal channels are real, as coherency matrices are."""
    draw = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, 6, side, side, dtype=torch.complex64, generator=draw)
    x[:, :3].imag.zero_()
    return x


def two_kinds(seed: int, count: int, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Class k differs in the *phase* of T12 only."""
    x, y = patches(seed, count), torch.arange(count) % classes
    turn = torch.polar(torch.ones(count), 2 * math.pi * y / classes)
    x[:, 3] = x[:, 3].abs() * turn[:, None, None]
    return x, y


def small(classes: int = K, *, real: bool = False) -> tuple:
    torch.manual_seed(0)
    if real:
        return RealDiscriminator(classes, 8, (4, 6)), RealGenerator(8, 5, (6, 4))
    return ComplexDiscriminator(classes, 8, (4, 6)), ComplexGenerator(8, 5, (6, 4))


# --- nets -------------------------------------------------------------------------------------


def test_every_layer_before_the_last_is_complex():
    """Checklist: all layers of G and D before D's last are complex with coupled weights."""
    net, generator = small()
    linear = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    assert not [m for m in [*net.body.modules(), *generator.modules()] if isinstance(m, linear)]
    assert [type(m) for m in net.body] == [
        *(ComplexConv2d, CLeakyReLU),  # no normalisation of what has purely real channels
        *(ComplexConv2d, ComplexBatchNorm2d, CLeakyReLU),
    ]
    assert isinstance(generator.dense, ComplexLinear)
    assert [type(m) for m in generator.body] == [
        ComplexBatchNorm2d, CReLU, ComplexConvTranspose2d,
    ] * 2  # fmt: skip
    assert [m.negative_slope for m in net.body if isinstance(m, CLeakyReLU)] == [0.2, 0.2]
    assert [type(m) for m in net.head] == [nn.Dropout, nn.Linear]


def test_real_and_imaginary_part_are_joined_only_at_the_end():
    """Checklist: Re/Im concatenated only at D's end, then K+1 logits."""
    net, _ = small()
    net.eval()
    x = patches(0, 5)
    features = net.features(x)
    assert features.dtype == torch.complex64
    assert features.shape == (5, 6, 2, 2)
    flat = np.concatenate([features.real.detach().numpy(), features.imag.detach().numpy()], 1)
    weight, bias = (p.detach().numpy() for p in net.head[1].parameters())
    expected = flat.reshape(5, -1) @ weight.T + bias
    outputs = net(x)
    assert outputs.shape == (5, K + 1)
    assert not outputs.is_complex()
    assert np.allclose(outputs.detach().numpy(), expected, atol=1e-5)
    assert ComplexDiscriminator(K, 8, (4, 6), fake=False)(x).shape == (5, K)


def test_generator_makes_both_parts_of_six_complex_channels():
    """Checklist: complex generator output, 6 complex channels, both parts generated."""
    _, generator = small()
    z = generator.noise(400, torch.Generator().manual_seed(1))
    assert z.shape == (400, 5)
    assert float(z.real.var()) == pytest.approx(0.5, rel=0.1)
    assert float(z.imag.var()) == pytest.approx(0.5, rel=0.1)
    x = generator(z).detach()
    assert x.shape == (400, 6, 8, 8)
    assert x.dtype == torch.complex64
    for part in (x.real, x.imag):
        assert float(part.abs().max()) < 1
        assert (part.std((0, 2, 3)) > 1e-3).all()


def test_published_shapes_and_the_desk_s_sizes():
    with torch.device("meta"):
        net, generator = ComplexDiscriminator(15), ComplexGenerator()
        assert net.head[1].in_features == 4096
        assert generator.shape == (128, 4, 4)
        nets = (
            ComplexDiscriminator(15, 16, (12, 24)),
            ComplexGenerator(16, 32, (24, 12)),
            RealDiscriminator(15, 16, (12, 24)),
            RealGenerator(16, 32, (24, 12)),
        )
        sizes = [sum(p.numel() for p in each.parameters()) for each in nets]
    assert max(sizes) < 60_000
    assert nets[0].head[1].in_features == 768
    # "Similar configurations": as many real parameters in real and complex nets.
    assert sizes[2] == pytest.approx(sizes[0], rel=0.2)
    assert sizes[3] == pytest.approx(sizes[1], rel=0.05)


def test_real_nets_see_nine_channels():
    x = patches(2, 3)
    seen = real_channels(x).numpy()
    z = x.numpy()
    expected = [z[:, k].real for k in range(3)]
    for k in range(3, 6):
        expected += [z[:, k].real, z[:, k].imag]
    assert np.array_equal(seen, np.stack(expected, 1))
    net, generator = small(real=True)
    assert net(real_channels(x)).shape == (3, K + 1)
    fake = generator(generator.noise(4, torch.Generator().manual_seed(0)))
    assert fake.shape == (4, 9, 8, 8)
    assert float(fake.abs().max()) < 1


# --- losses -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), classes=st.integers(2, 6), scale=st.floats(0.1, 8))
def test_losses_are_those_of_the_softmax(seed, classes, scale):
    """Checklist: K+1 logits; the three losses exactly as written; L_lab conditional on real."""
    rng = np.random.default_rng(seed)
    lab, unl, fake = (scale * rng.normal(size=(n, classes + 1)) for n in (4, 5, 3))
    y = rng.integers(0, classes, 4)

    def p(outputs):
        e = np.exp(outputs)
        return e / e.sum(1, keepdims=True)

    conditional = p(lab)[:, :classes] / p(lab)[:, :classes].sum(1, keepdims=True)
    l_lab = -np.log(conditional[np.arange(4), y]).mean()
    l_unl = -np.log(1 - p(np.concatenate([lab, unl]))[:, classes]).mean()
    l_gen = -np.log(p(fake)[:, classes]).mean()
    losses = SemiSupervisedGANLoss(classes)
    a, b, c = (torch.from_numpy(x) for x in (lab, unl, fake))
    target = torch.from_numpy(y)
    assert float(losses.labelled(a, target)) == pytest.approx(l_lab, rel=1e-6)
    assert float(losses.unlabelled(torch.cat([a, b]))) == pytest.approx(l_unl, rel=1e-6)
    assert float(losses.generated(c)) == pytest.approx(l_gen, rel=1e-6)
    total = losses.discriminator(a, target, b, c)
    assert float(total) == pytest.approx(l_lab + l_unl + l_gen, rel=1e-6)
    # G: - log(1 - P(generated))
    assert float(losses.unlabelled(c)) == pytest.approx(-np.log(1 - p(fake)[:, classes]).mean())
    fixed = SemiSupervisedGANLoss(classes, fixed_fake_logit=True)
    unl[:, classes] = 0
    assert float(fixed.unlabelled(b + torch.eye(classes + 1)[classes])) == pytest.approx(
        -np.log(1 - p(unl)[:, classes]).mean(), rel=1e-6
    )


def test_labelled_loss_ignores_the_generated_output():
    outputs = torch.randn(4, K + 1, requires_grad=True)
    SemiSupervisedGANLoss(K).labelled(outputs, torch.tensor([0, 1, 2, 0])).backward()
    assert (outputs.grad[:, K] == 0).all()


@pytest.mark.parametrize("size", [1e3, 3e4])
def test_log_sum_exp_does_not_underflow(size):
    """Checklist: log(1 - softmax) would give infinity; log-sum-exp gives `size`."""
    losses = SemiSupervisedGANLoss(2)
    sure_fake = torch.tensor([[0.0, 0.0, size]], requires_grad=True)
    sure_real = torch.tensor([[size, 0.0, 0.0]], requires_grad=True)
    for loss in (losses.unlabelled(sure_fake), losses.generated(sure_real)):
        assert float(loss.detach()) == pytest.approx(size, rel=1e-3)
        loss.backward()
    for outputs in (sure_fake, sure_real):
        assert torch.isfinite(outputs.grad).all()
        assert float(outputs.grad.abs().max()) == pytest.approx(1)


def test_feature_distance_is_the_squared_norm_of_the_difference_of_means():
    a, b = patches(1, 4)[:, :, 0, 0], patches(2, 7)[:, :, 0, 0]
    expected = (np.abs(a.numpy().mean(0) - b.numpy().mean(0)) ** 2).sum()
    assert float(feature_distance(a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(feature_distance(a.real, b.real)) < expected


# --- training ---------------------------------------------------------------------------------


class Recorder:
    """Stands in for Adam and writes down who stepped, with what."""

    def __init__(self, monkeypatch) -> None:
        self.steps: list[str] = []
        self.settings: list[tuple] = []
        recorder, real = self, torch.optim.Adam

        class Adam(real):
            def __init__(self, params, lr, betas) -> None:
                super().__init__(params, lr, betas)
                recorder.settings.append((lr, betas))
                self.name = "DG"[len(recorder.settings) - 1]

            def step(self, closure=None):
                recorder.steps.append(self.name)
                return super().step(closure)

        monkeypatch.setattr(torch.optim, "Adam", Adam)


def test_updates_alternate_and_d_sees_all_three_kinds_each_step(monkeypatch):
    """Checklist: alternating updates; D sees labelled, unlabelled, fake each step."""
    net, generator = small()
    x, y = patches(0, 9), torch.arange(9) % K
    u = patches(1, 20) + 5  # tells unlabelled patches from labelled ones
    recorder = Recorder(monkeypatch)
    seen = []
    net.register_forward_pre_hook(lambda module, given: seen.append((given[0], module.training)))
    fit_ssgan(net, generator, x, y, u, steps=3, batch=4)
    assert recorder.steps == ["D", "G"] * 3
    assert recorder.settings == [(5e-4, (0.5, 0.999))] * 2  # (P)
    assert len(seen) == 3
    pool, other = ({tuple(p.flatten().tolist()) for p in part} for part in (x, u))
    for batch, training in seen:
        assert training
        assert len(batch) == 12
        rows = [tuple(p.flatten().tolist()) for p in batch]
        assert set(rows[:4]) <= pool
        assert set(rows[4:8]) <= other
        assert not set(rows[8:]) & (pool | other)
        assert not batch.requires_grad  # the generator has no part in D's step


@pytest.mark.parametrize("real", [False, True])
def test_a_step_of_g_leaves_d_as_it_is(real):
    net, generator = small(real=real)
    x, y = patches(0, 9), torch.arange(9) % K
    if real:
        x = real_channels(x)
    kept = []
    logits = net.logits

    def spy(features):
        if not net.training:  # the step of G
            kept.append({n: v.clone() for n, v in net.state_dict().items()})
            assert not any(p.requires_grad for p in net.parameters())
        return logits(features)

    net.logits = spy
    fit_ssgan(net, generator, x, y, x, steps=1, batch=4)
    assert len(kept) == 1
    assert all(torch.equal(value, kept[0][name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert not net.training


def test_baselines_get_the_same_labelled_batches():
    """Checklist: RC and CC use the same body, labels, seeds, steps."""
    x, y = patches(0, 30), torch.arange(30) % K
    seen: list[list[torch.Tensor]] = []
    for arm in ("gan", "alone", "cc"):
        net = ComplexDiscriminator(K, 8, (4, 6), fake=arm != "cc")
        seen.append([])
        net.register_forward_pre_hook(lambda module, given: seen[-1].append(given[0][:4].clone()))
        if arm == "cc":
            fit_classifier(net, x, y, steps=3, batch=4, seed=7)
        else:
            other = patches(3, 5) if arm == "gan" else None
            fit_ssgan(net, small()[1], x, y, other, steps=3, batch=4, seed=7)
    for a, b, c in zip(*seen, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not torch.equal(seen[0][0], seen[0][1])
    bodies = [ComplexDiscriminator(K, 8, (4, 6), fake=fake).body for fake in (True, False)]
    assert str(bodies[0]) == str(bodies[1])


@pytest.mark.parametrize("arm", ["gan", "cc", "rv-gan"])
def test_training_learns_the_phase(arm):
    """Two classes that differ in the phase of T12; 20 labels, other patches tested."""
    x, y = two_kinds(0, 20)
    u, _ = two_kinds(1, 64)
    other, truth = two_kinds(2, 60)
    torch.manual_seed(0)
    if arm == "cc":
        net = ComplexDiscriminator(2, 8, (4, 6), fake=False)
        losses = fit_classifier(net, x, y, steps=60, batch=16, lr=5e-3)
        assert np.mean(losses[-10:]) < np.mean(losses[:10])
    else:
        real = arm == "rv-gan"
        net, generator = small(2, real=real)
        if real:
            x, u, other = (real_channels(part) for part in (x, u, other))
        history = fit_ssgan(net, generator, x, y, u, steps=60, batch=16, lr=5e-3)
        assert set(history) == {"labelled", "unlabelled", "generated", "generator"}
        assert all(len(v) == 60 and np.isfinite(v).all() for v in history.values())
    shares = class_probabilities(net, other, 2, batch=7)
    assert shares.shape == (60, 2)
    assert torch.allclose(shares.sum(1), torch.ones(60), atol=1e-5)
    assert float((shares.argmax(1) == truth).float().mean()) > 0.9


def test_a_seed_fixes_everything_and_the_caller_s_random_numbers_stay():
    x, y = patches(0, 9), torch.arange(9) % K

    def trained(seed):
        net, generator = small()
        fit_ssgan(net, generator, x, y, x, steps=2, batch=4, seed=seed)
        return net.head[1].weight.detach()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = trained(1)
    torch.manual_seed(99)
    assert torch.equal(first, trained(1))
    assert not torch.equal(first, trained(2))
    torch.set_rng_state(before)
    net, generator = small()
    state = torch.get_rng_state()
    fit_ssgan(net, generator, x, y, x, steps=1, batch=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_told():
    net, generator = small()
    x, y = patches(0, 9), torch.arange(9) % K
    told = []
    fit_ssgan(net, generator, x, y, None, steps=2, batch=4, progress=lambda *a: told.append(a))
    assert told == [(1, 2), (2, 2)]


def test_what_cannot_be_trained_on_is_told():
    net, generator = small()
    x, y = patches(0, 6), torch.arange(6) % K
    bad = torch.full_like(x, complex(math.nan, 0))
    for labelled, target, unlabelled, said in (
        (x, y[:5], x, "N labels"),
        (x[:0], y[:0], x, "at least 1"),
        (x, y + 1, x, "from 0 to 2"),
        (x, y * 0, x, "one class"),
        (x, y.float(), x, "integers"),
        (x, y, x[:0], "give None"),
        (x, y, patches(0, 6, 16), "unlabelled patches"),
        (bad, y, x, "nan at step 0"),
    ):
        with pytest.raises(FoveateError, match=said):
            fit_ssgan(net, generator, labelled, target, unlabelled, steps=1, batch=4)
    with pytest.raises(FoveateError, match="generated patches"):
        fit_ssgan(ComplexDiscriminator(K, 8, (4, 6), fake=False), generator, x, y, x, steps=1)
    with pytest.raises(FoveateError, match="halved 2 times"):
        ComplexDiscriminator(K, 10, (4, 6))
    with pytest.raises(FoveateError, match="halved 3 times"):
        ComplexGenerator(12)
    with pytest.raises(FoveateError, match="2 classes"):
        ComplexDiscriminator(1)
    with pytest.raises(FoveateError, match="2 classes"):
        SemiSupervisedGANLoss(1)
    with pytest.raises(FoveateError, match=r"\(B, 4\)"):
        SemiSupervisedGANLoss(K).unlabelled(torch.zeros(2, K))
    with pytest.raises(FoveateError, match="complex patches"):
        real_channels(torch.zeros(2, 6, 4, 4))
