"""AdaIN distillation against the closed forms of its specification; its checklist, line by line."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.adain import AdaINDistiller, adain, channel_sensitivity
from foveate.learning.distillation import Connector, channel_stats
from foveate.nn.resnet import BasicBlock, ResNet
from foveate.nn.staged import HookedModel, SmallVGG, StagedModel, layer_outputs

LAYERS = ("layer1", "layer2")
STAGES = [("conv1", "bn1", "relu", "maxpool", "layer1"), ("layer2",), ("layer3",),
          ("avgpool", nn.Flatten(), "fc")]  # fmt: skip


@pytest.fixture(autouse=True)
def no_unexpected_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def a_teacher(widths=(4, 6, 8), seed: int = 0) -> ResNet:
    """Statistics of its normalisations are neither 0 nor 1, as after a training."""
    torch.manual_seed(seed)
    net = ResNet(BasicBlock, (1,) * len(widths), widths, 5, stem="cifar")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def cut(net: nn.Module) -> StagedModel:
    return StagedModel.from_children(net, STAGES, torch.randn(1, 3, 8, 8))


def pictures(count: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=draw), torch.arange(count) % 5


def digest(net: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


# --- adain ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_adain_by_hand(batch, channels, height, width, seed):
    draw = np.random.default_rng(seed)
    content = draw.normal(2, 3, (batch, channels, height, width))
    mu, sigma = draw.normal(size=(batch, channels)), draw.uniform(0.1, 2, (batch, channels))
    expected = np.zeros_like(content)
    for b in range(batch):
        for c in range(channels):
            one = content[b, c]
            spread = np.sqrt(((one - one.mean()) ** 2).mean() + 1e-5)
            expected[b, c] = sigma[b, c] * (one - one.mean()) / spread + mu[b, c]
    found = adain(*(torch.from_numpy(a) for a in (content, mu[..., None, None],
                                                   sigma[..., None, None])))  # fmt: skip
    assert np.allclose(found, expected, atol=1e-10)


def test_content_is_the_teacher_and_style_the_student():
    """Checklist 2: the pattern within a channel is the teacher's, its statistics the student's."""
    net = a_teacher((4, 4, 4))
    distiller = AdaINDistiller(cut(net), a_teacher((4, 4, 4), 1), LAYERS, pictures()[0])
    f_s, f_t = torch.rand(2, 4, 8, 8).double() * 3, torch.randn(2, 4, 8, 8).double()
    assert not distiller.intervention(f_s, f_t.clone().requires_grad_()).requires_grad
    hat = distiller.intervention(f_s, f_t)
    for ours, wanted in zip(channel_stats(hat), channel_stats(f_s), strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-4)
    for b in range(2):
        for c in range(4):
            likeness = np.corrcoef(hat[b, c].flatten(), f_t[b, c].flatten())[0, 1]
            assert likeness == pytest.approx(1)
            assert abs(np.corrcoef(hat[b, c].flatten(), f_s[b, c].flatten())[0, 1]) < 0.9


# --- the gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_is_the_closed_form(layer, staged):
    """Checklist 3: dL/dmu = sum G, dL/dsigma = sum G N, in double precision, to 1e-8."""
    net = a_teacher().double()
    teacher = StagedModel.from_children(net, STAGES, torch.randn(1, 3, 8, 8).double())
    student = a_teacher(seed=3).double()  # equal widths: the connector is the identity
    x, y = pictures()
    x = x.double()
    distiller = AdaINDistiller(teacher if staged else net, student, [layer], x, beta=1.0)
    assert isinstance(distiller.connectors[0], nn.Identity)
    _, (feature,) = layer_outputs(student, x, [layer])
    f_s = feature.detach().requires_grad_()
    with torch.no_grad():
        z, (f_t,) = teacher.outputs(x, [layer])

    hw, eps = f_t[0, 0].numel(), 1e-5
    mu_s, mu_t = (f.sum((2, 3), keepdim=True) / hw for f in (f_s.detach(), f_t))
    sigma_s, sigma_t = (
        (((f - mu) ** 2).sum((2, 3), keepdim=True) / hw + eps).sqrt()
        for f, mu in ((f_s.detach(), mu_s), (f_t, mu_t))
    )
    normal = (f_t - mu_t) / sigma_t
    hat = (sigma_s * normal + mu_s).requires_grad_()
    loss = ((teacher.tail(hat, layer)[0] - z) ** 2).mean()
    (g,) = torch.autograd.grad(loss, hat)
    to_mu, to_sigma = g.sum((2, 3), keepdim=True), (g * normal).sum((2, 3), keepdim=True)
    expected = to_mu / hw + to_sigma * (f_s.detach() - mu_s) / (hw * sigma_s)

    again = distiller._answer(distiller.intervention(f_s, f_t), layer, x)
    (found,) = torch.autograd.grad(((again - z) ** 2).mean(), f_s)
    assert float((found - expected).abs().max()) < 1e-8
    assert float(expected.abs().max()) > 1e-5  # something was compared
    # ... and through the whole of a step, to the student's first weights.
    (reference,) = torch.autograd.grad(feature, student.conv1.weight, expected)
    (step,) = torch.autograd.grad(distiller(x, y)["ada"], student.conv1.weight)
    assert float((step - reference).abs().max()) < 1e-8


def test_the_loss_sees_the_student_through_its_statistics_only():
    """Checklist 3: positions of the student's feature may be shuffled."""
    distiller = AdaINDistiller(cut(a_teacher()), a_teacher(seed=1), ["layer1"], pictures()[0])
    f_s, f_t = torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8)
    shuffled = f_s.flatten(2)[:, :, torch.randperm(64)].view_as(f_s)
    assert torch.allclose(
        distiller.intervention(f_s, f_t), distiller.intervention(shuffled, f_t), atol=1e-5
    )


def test_gradient_is_that_of_finite_differences():
    """Checklist 5: the tail runs on F_hat with autograd on, at all layers at once."""
    torch.manual_seed(0)
    student = SmallVGG((2, 3, 4), 5).double()
    x, y = pictures(3)
    x = x.double()
    distiller = AdaINDistiller(cut(a_teacher()).double(), student, LAYERS, x, connectors="always")
    distiller.eval()
    (gradient,) = torch.autograd.grad(distiller(x, y)["ada"], student.layer1[0].weight)
    where, h = (0, 1, 2, 0), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            student.layer1[0].weight[where] += sign * h
            values.append(distiller(x, y)["ada"].item())
            student.layer1[0].weight[where] -= sign * h
    assert gradient[where].item() != 0
    assert gradient[where].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


# --- the teacher ---------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [cut, HookedModel, lambda net: net])
def test_teacher_is_as_it_was_after_training(wrap):
    """Checklist 4: no gradient, BN in eval, running statistics unchanged."""
    net = a_teacher()
    before = digest(net)
    x, y = pictures(8)
    distiller = AdaINDistiller(wrap(net), SmallVGG((2, 3, 4), 5), LAYERS, x)
    optimizer = torch.optim.SGD(distiller.trained_parameters(), 0.1, 0.9, weight_decay=0.1)
    for _ in range(3):
        distiller.train()
        net.train()  # by somebody who does not know
        optimizer.zero_grad()
        distiller(x, y)["loss"].backward()
        optimizer.step()
        assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert digest(net) == before
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert {id(p) for p in distiller.trained_parameters()} == {
        id(p) for p in distiller.parameters() if p.requires_grad
    }


def test_loss_falls_where_the_student_learns():
    x, y = pictures(16)
    torch.manual_seed(0)
    distiller = AdaINDistiller(cut(a_teacher()), SmallVGG((3, 4, 5), 5), LAYERS, x, beta=10.0)
    distiller.train()
    optimizer = torch.optim.Adam(distiller.trained_parameters(), 1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        found = distiller(x, y)
        found["loss"].backward()
        optimizer.step()
        losses.append(found["ada"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_student_that_equals_its_teacher_pays_nothing():
    """Checklist 6: L_ada = 0 where the statistics are equal; likewise L_stat."""
    net = a_teacher()
    student = copy.deepcopy(net)
    x, y = pictures()
    distiller = AdaINDistiller(cut(net), student, LAYERS, x, alpha_stat=1.0).eval()
    found = distiller(x, y)
    assert found["ada"].item() == pytest.approx(0, abs=1e-9)
    assert found["stat"].item() == pytest.approx(0, abs=1e-9)
    assert torch.allclose(found["logits"], found["teacher_logits"], atol=1e-5)


# --- any pair of models --------------------------------------------------------------------


class Grown(nn.Module):
    """No sequence of stages: a branch runs past ``body``; half its size, other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(3, 7, 3, 1, 1), nn.ReLU(inplace=True))
        self.past = nn.Conv2d(3, 7, 1)
        self.mix = nn.Sequential(nn.Conv2d(7, 5, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(5, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.mix(self.body(x) + self.past(x)).amax((2, 3)))


@pytest.mark.parametrize("staged", [True, False])
def test_channels_heights_and_widths_may_differ(staged):
    """Checklist 7; and any student is read by hooks."""
    torch.manual_seed(0)
    net, student = a_teacher(), Grown()
    x, y = pictures()
    teacher = cut(net) if staged else net
    distiller = AdaINDistiller(teacher, student, {"layer1": "body", "layer2": "mix"}, x)
    assert [type(c) for c in distiller.connectors] == [Connector] * 2
    assert [c.conv.weight.shape[:2] for c in distiller.connectors] == [(4, 7), (6, 5)]
    distiller.train()(x, y)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in distiller.trained_parameters())
    assert student.stem.weight.grad.abs().sum() > 0


def test_any_network_can_be_the_teacher_by_hooks():
    """What runs past the place of insertion is the teacher's own."""
    torch.manual_seed(0)
    net, x = Grown(), pictures()[0]
    distiller = AdaINDistiller(net, SmallVGG((7, 3, 3), 5), {"body": "layer1"}, x)
    with torch.no_grad():
        h = net.stem(x)
        f_t = net.body(h)
        _, (f_s,) = layer_outputs(distiller.student.eval(), x, ["layer1"])
        hat = adain(f_t, *channel_stats(f_s))
        z_hat = net.head(net.mix(hat + net.past(h)).amax((2, 3)))
        expected = ((z_hat - net(x)) ** 2).mean()
        found = distiller.eval()(x, pictures()[1])["ada"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_connectors_follow_the_channels_and_the_signs():
    x = pictures()[0]
    same = AdaINDistiller(cut(a_teacher()), a_teacher(seed=1), LAYERS, x)
    assert [type(c) for c in same.connectors] == [nn.Identity] * 2
    always = AdaINDistiller(cut(a_teacher()), a_teacher(seed=1), LAYERS, x, connectors="always")
    assert [type(c.act) for c in always.connectors] == [nn.ReLU] * 2
    net = a_teacher()
    net.layer1[0].relu2 = nn.Identity()
    signed = AdaINDistiller(cut(net), SmallVGG((2, 3, 4), 5), LAYERS, x)
    assert [type(c.act) for c in signed.connectors] == [nn.Identity, nn.ReLU]


def test_the_student_is_exported_alone():
    """Checklist 9: connectors are no part of it, and it is the very network that was given."""
    student = SmallVGG((2, 3, 4), 5)
    names = list(student.state_dict())
    x, y = pictures()
    distiller = AdaINDistiller(cut(a_teacher()), student, LAYERS, x)
    distiller.train()(x, y)["loss"].backward()
    assert distiller.student is student
    assert list(student.state_dict()) == names
    assert not any(module._forward_hooks for module in distiller.modules())
    twin = SmallVGG((2, 3, 4), 5)
    twin.load_state_dict(student.state_dict())
    assert torch.equal(twin.eval()(x), student.eval()(x))


def test_dead_channels_of_the_student_do_not_break_a_step():
    """Checklist 10."""
    student = a_teacher(seed=1)
    nn.init.constant_(student.layer1[0].bn2.bias, -100.0)  # behind the ReLU nothing is left
    x, y = pictures()
    distiller = AdaINDistiller(cut(a_teacher()), student, LAYERS, x, alpha_stat=1.0)
    _, (feature,) = layer_outputs(student, x, ["layer1"])
    assert (feature == 0).all()
    distiller.train()(x, y)["loss"].backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)


# --- the last stage ------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [cut, HookedModel])
def test_behind_the_last_stage_sigma_has_no_effect_and_a_warning_says_so(wrap):
    """Checklist 11: GAP(F_hat) = mu, so only means are transferred."""
    x, y = pictures()
    with pytest.warns(UserWarning, match="'layer3'.*only means"):
        both = AdaINDistiller(wrap(a_teacher()), a_teacher(seed=1), ["layer3"], x)
    means = AdaINDistiller(wrap(a_teacher()), a_teacher(seed=1), ["layer3"], x, statistics="mean")
    assert both.eval()(x, y)["ada"].item() == pytest.approx(
        means.eval()(x, y)["ada"].item(), rel=1e-4
    )
    f_s, f_t = torch.rand(2, 8, 2, 2), torch.rand(2, 8, 2, 2)
    f_s.requires_grad_()
    answer = both._answer(both.intervention(f_s, f_t), "layer3", x[:2])
    (gradient,) = torch.autograd.grad(answer.square().sum(), f_s)
    assert torch.allclose(gradient, gradient.mean((2, 3), keepdim=True).expand_as(gradient),
                          atol=1e-6)  # fmt: skip


def test_in_front_of_a_stage_sigma_has_an_effect_and_nothing_is_said():
    x, y = pictures()
    found = [
        AdaINDistiller(cut(a_teacher()), a_teacher(seed=1), LAYERS, x, statistics=which)
        .eval()(x, y)["ada"]
        .item()
        for which in ("both", "mean")
    ]
    assert abs(found[0] - found[1]) > 1e-3 * found[0]


def test_means_only_leave_the_deviations_to_the_teacher():
    distiller = AdaINDistiller(
        cut(a_teacher()), a_teacher(seed=1), LAYERS, pictures()[0], statistics="mean"
    )
    f_s, f_t = torch.rand(2, 4, 3, 3), torch.rand(2, 4, 3, 3)
    expected = f_t - f_t.mean((2, 3), keepdim=True) + f_s.mean((2, 3), keepdim=True)
    assert torch.allclose(distiller.intervention(f_s, f_t), expected, atol=1e-6)


# --- judges and sums -----------------------------------------------------------------------


@pytest.mark.parametrize("judge", ["logits_mse", "logits_kl", "feature_l2", "ce"])
def test_judges_by_hand(judge):
    net, student = a_teacher(), a_teacher(seed=1)
    x, y = pictures()
    extra = {"judge_layer": "layer3"} if judge == "feature_l2" else {}
    distiller = AdaINDistiller(
        cut(net),
        student,
        LAYERS,
        x,
        judge=judge,
        beta=2.0,
        alpha_stat=0.5,
        temperature=3.0,
        **extra,
    )
    found = distiller.eval()(x, y)
    expected = stat = 0.0
    with torch.no_grad():
        f_s = net_features(student, x)
        f_t = net_features(net, x)
        for k in range(2):
            (mu_s, sigma_s), (mu_t, sigma_t) = channel_stats(f_s[k]), channel_stats(f_t[k])
            stat += float(((mu_s - mu_t) ** 2).mean() + ((sigma_s - sigma_t) ** 2).mean())
            hat = adain(f_t[k], mu_s, sigma_s)  # no layer sees what was put into another
            last = net.layer3(hat if k else net.layer2(hat))
            z_hat, z = (net.fc(f.mean((2, 3))).double().numpy() for f in (last, f_t[2]))
            if judge == "logits_mse":
                expected += ((z_hat - z) ** 2).mean()
            elif judge == "logits_kl":
                p, q = (scipy.special.softmax(v / 3.0, 1) for v in (z, z_hat))
                expected += 9.0 * scipy.special.rel_entr(p, q).sum(1).mean()
            elif judge == "feature_l2":
                expected += float(((last - f_t[2]) ** 2).mean())
            else:
                p = scipy.special.log_softmax(z_hat, 1)
                expected += -p[np.arange(len(y)), y].mean()
        ce = F.cross_entropy(net_logits(student, x), y).item()
    assert found["ada"].item() == pytest.approx(expected, rel=1e-3)
    assert found["stat"].item() == pytest.approx(stat, rel=1e-3)
    assert found["ce"].item() == pytest.approx(ce, rel=1e-4)
    assert found["loss"].item() == pytest.approx(ce + 2 * expected + 0.5 * stat, rel=1e-3)
    assert found["logits"].shape == (6, 5)


def net_features(net: ResNet, x: torch.Tensor) -> list[torch.Tensor]:
    h, found = F.relu(net.bn1(net.conv1(x))), []
    for stage in (net.layer1, net.layer2, net.layer3):
        h = stage(h)
        found.append(h)
    return found


def net_logits(net: ResNet, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net_features(net, x)[2].mean((2, 3)))


def test_plain_statistics_use_the_same_layers_and_connectors():
    """Checklist 8: with equal weights of the networks both losses see equal features."""
    x, y = pictures()
    values = []
    for weights in ({"beta": 0.0, "alpha_stat": 1.0}, {"beta": 1.0, "alpha_stat": 1.0}):
        torch.manual_seed(7)
        distiller = AdaINDistiller(
            cut(a_teacher()), SmallVGG((2, 3, 4), 5), LAYERS, x, **weights
        ).train()
        values.append(distiller(x, y))
    assert values[0]["stat"].item() == pytest.approx(values[1]["stat"].item(), rel=1e-5)
    assert values[0]["ada"].item() == 0
    assert values[1]["ada"].item() > 0


# --- which channels matter -----------------------------------------------------------------


def test_channels_that_the_teacher_ignores_cost_nothing():
    """An ignored channel costs L_ada nothing and L_stat as much as any other of its shift."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    net.add_module("mix", nn.Conv2d(3, 2, 3, padding=1))
    net.add_module("act", nn.ReLU())
    net.add_module("end", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.mix.weight.data[:, 1] = 0
    x = torch.randn(12, 3, 6, 6)
    with torch.no_grad():
        y = net(x).argmax(1)
    found = channel_sensitivity(HookedModel(net), [(x[:5], y[:5]), (x[5:], y[5:])], "body")
    assert found["ada"][1] == pytest.approx(0, abs=1e-10)
    assert found["drop"][1] == 0
    with torch.no_grad():
        f = net.body(x)
        shifts = f.mean((2, 3)).std(0)
        assert found["shift"] == pytest.approx(shifts.tolist(), rel=1e-4)
        assert found["stat"] == pytest.approx((shifts**2 / 3).tolist(), rel=1e-4)
        for c in (0, 2):
            moved = f.clone()
            moved[:, c] += shifts[c]
            z = net.end(net.act(net.mix(moved)))
            assert found["ada"][c] == pytest.approx(F.mse_loss(z, net(x)).item(), rel=1e-2)
            right = (z.argmax(1) == y).float().mean().item()
            assert found["drop"][c] == pytest.approx(100 - 100 * right, abs=1e-4)
            assert found["ada"][c] > 0
    with pytest.raises(FoveateError, match="at least two samples, got 1"):
        channel_sensitivity(HookedModel(net), [(x[:1], y[:1])], "body")


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"layers": "layer1"}, "at least one layer"),
        ({"layers": ["layer9"]}, "layer9"),
        ({"layers": {"layer1": "layer9"}}, "layer9"),
        ({"layers": ["fc"]}, r"\(B, C, H, W\).*'fc'"),
        ({"judge": "mse"}, "judge.*'mse'"),
        ({"judge": "feature_l2"}, "judge_layer"),
        ({"judge_layer": "layer3"}, "judge_layer"),
        ({"judge": "feature_l2", "judge_layer": "layer2"}, "later stage"),
        ({"statistics": "sigma"}, "statistics.*'sigma'"),
        ({"connectors": "never"}, "connectors.*'never'"),
        ({"beta": -1.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"alpha_stat": float("inf")}, "alpha_stat"),
        ({"eps": 0.0}, "eps"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, word):
    net = a_teacher()
    settings_ = {"layers": LAYERS, **changes}
    with pytest.raises(FoveateError, match=word) as error:
        AdaINDistiller(net, a_teacher(seed=1), settings_.pop("layers"), pictures()[0], **settings_)
    assert "\n" not in str(error.value)


def test_bad_batches_are_refused():
    x, y = pictures()
    distiller = AdaINDistiller(cut(a_teacher()), SmallVGG((2, 3, 4), 5), LAYERS, x)
    for inputs, labels in ((x, y[:3]), (x[:0], y[:0])):
        with pytest.raises(FoveateError, match="as many labels as inputs"):
            distiller(inputs, labels)
    f = torch.rand(2, 3, 4, 4)
    mu, sigma = channel_stats(f)
    for style in ((mu[:1, :2], sigma), (mu, sigma.flatten()), (mu, sigma.expand(2, 3, 4, 4))):
        with pytest.raises(FoveateError, match="adain expects"):
            adain(f, *style)


def test_a_teacher_in_training_mode_is_not_changed_by_the_probe():
    """Line 4: batch statistics as before, modes put back."""
    net = a_teacher()
    x, y = pictures()
    expected = channel_sensitivity(HookedModel(net.eval()), [(x, y)], "layer1")
    before = digest(net)
    net.train()
    assert channel_sensitivity(HookedModel(net), [(x, y)], "layer1") == expected
    assert digest(net) == before
    assert net.training
    assert net.bn1.training


def test_student_and_teacher_may_not_share_weights():
    """A shared stage would be frozen in silence."""
    net = a_teacher()
    x, _ = pictures()
    with pytest.raises(FoveateError, match="copy"):
        AdaINDistiller(net, net, ("layer1",), x)
    student = a_teacher(seed=3)
    student.conv1 = net.conv1
    with pytest.raises(FoveateError, match="copy"):
        AdaINDistiller(cut(net), student, ("layer1",), x)
    assert all(p.requires_grad for p in student.parameters())  # nothing was frozen by the attempt


def test_an_example_without_finite_features_is_refused():
    x, _ = pictures()
    with pytest.raises(FoveateError, match="not finite"):
        AdaINDistiller(a_teacher(), a_teacher(seed=1), ("layer1",), x * math.nan)


@pytest.mark.parametrize("wrap", [cut, HookedModel])
def test_a_feature_to_judge_by_lies_behind_the_layers(wrap):
    """In front of the layer L_ada was 0 for ever, and only hooks let it pass."""
    x, _ = pictures()
    with pytest.raises(FoveateError, match="layer1"):
        AdaINDistiller(
            wrap(a_teacher()), a_teacher(seed=1), ("layer2",), x,
            judge="feature_l2", judge_layer="layer1", statistics="mean",
        )  # fmt: skip
