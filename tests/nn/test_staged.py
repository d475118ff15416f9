"""Cut networks and hooked ones against networks written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.binary_resnet import BinResNetS
from foveate.nn.resnet import resnet20
from foveate.nn.staged import HookedModel, SmallVGG, StagedModel, in_eval_mode, layer_outputs


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.bn = nn.BatchNorm2d(c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)).add_(self.skip(x)))


class TorchvisionLike(nn.Module):
    """Children and forward as in torchvision's ResNet: in-place ReLU, flatten without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 6, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


STAGES = [("conv1", "bn1", "relu", "maxpool", "layer1"), ("layer2",),
          ("avgpool", nn.Flatten(), "fc")]  # fmt: skip


class NoSequence(nn.Module):
    """Something runs past ``middle``: ``last(middle(first(x))) + 3 x``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.first(x)))) + 3 * x


def a_net(seed: int = 0) -> TorchvisionLike:
    torch.manual_seed(seed)
    net = TorchvisionLike().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after a training
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


# --- a sequence of stages ------------------------------------------------------------------


def test_network_of_torchvisions_form_is_cut_by_the_names_of_its_children():
    net, x = a_net(), torch.randn(3, 3, 8, 8)
    model = StagedModel.from_children(net, STAGES, x[:1])
    assert model.names == ("layer1", "layer2", "fc")
    assert torch.equal(model(x), net(x))
    h = net.layer1(net.maxpool(F.relu(net.bn1(net.conv1(x)))))
    assert torch.allclose(model.head(x, "layer1"), h)
    logits, (first, second) = model.outputs(x, ["layer1", "layer2"])
    assert torch.equal(logits, net(x))
    assert torch.allclose(first, h)
    assert torch.allclose(second, net.layer2(h))
    answer, (again,) = model.tail(first, "layer1", names=["layer2"])
    assert torch.equal(answer, logits)
    assert torch.equal(again, second)
    # the very same weights, not copies
    assert {p.data_ptr() for p in model.parameters()} == {p.data_ptr() for p in net.parameters()}


@settings(deadline=None, max_examples=25)
@given(widths=st.lists(st.integers(1, 5), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_tail_of_head_is_the_network_everywhere(widths, seed):
    torch.manual_seed(seed)
    pairs = [
        (f"part{k}", nn.Sequential(nn.Linear(a, b), nn.Tanh()))
        for k, (a, b) in enumerate(zip([3, *widths], widths, strict=False))
    ]
    model, x = StagedModel(pairs), torch.randn(4, 3)
    h = x
    for name, stage in pairs:
        h = stage(h)
        assert torch.equal(model.head(x, name), h)
        assert torch.equal(model.tail(h, name)[0], model(x))


def test_hooks_and_cut_give_the_same_tails_and_gradients():
    net, x = a_net(), torch.randn(2, 3, 8, 8)
    cut, hooked = StagedModel.from_children(net, STAGES, x), HookedModel(net)
    for name, shape in (("layer1", (2, 4, 4, 4)), ("layer2", (2, 6, 2, 2))):
        found = []
        for model in (cut, hooked):
            f = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
            answer, _ = model.tail(f, name, x)
            (gradient,) = torch.autograd.grad(answer.square().sum(), f)
            found.append((answer, gradient))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
        assert found[0][1].abs().sum() > 0
        assert not torch.allclose(found[0][0], net(x), atol=1e-3)  # another feature was put there


@pytest.mark.parametrize("make", [lambda net, x: StagedModel.from_children(net, STAGES, x),
                                  lambda net, x: HookedModel(net)])  # fmt: skip
def test_in_place_operations_behind_a_place_do_not_reach_it(make):
    class InPlace(TorchvisionLike):
        def __init__(self) -> None:
            super().__init__()
            self.layer2 = nn.Sequential(nn.ReLU(inplace=True), self.layer2)

    torch.manual_seed(0)
    net, x = InPlace().eval(), torch.randn(2, 3, 8, 8)
    model = make(net, x)
    feature = torch.randn(2, 4, 4, 4)
    kept = feature.clone()
    model.tail(feature, "layer1", x)
    assert torch.equal(feature, kept)
    net.layer1[1].relu = nn.Identity()  # signed, so that the ReLU in place would show
    _, (seen,) = model.outputs(x, ["layer1"])
    assert (seen < 0).any()


def test_what_is_no_sequence_is_refused_in_one_sentence():
    x = torch.randn(2, 4)
    with pytest.raises(FoveateError, match="HookedModel") as error:
        StagedModel.from_children(NoSequence(), [("first",), ("middle", nn.Tanh(), "last")], x)
    assert "\n" not in str(error.value)
    with pytest.raises(FoveateError, match=r"nn\.Flatten"):  # forgotten
        StagedModel.from_children(a_net(), [*STAGES[:2], ("avgpool", "fc")], torch.ones(1, 3, 8, 8))
    order = [("conv1", "relu", "bn1", "maxpool", "layer1"), *STAGES[1:]]  # another one
    with pytest.raises(FoveateError, match="do not answer"):
        StagedModel.from_children(a_net(), order, torch.randn(1, 3, 8, 8))
    with pytest.raises(FoveateError, match=r"no module 'layer9'.*conv1, bn1"):
        StagedModel.from_children(a_net(), [("layer9",), ("fc",)], torch.ones(1, 3, 8, 8))
    with pytest.raises(FoveateError, match="stage 1 is empty"):
        StagedModel.from_children(a_net(), [("conv1",), ()], torch.ones(1, 3, 8, 8))
    with pytest.raises(FoveateError, match="not finite"):
        StagedModel.from_children(a_net(), STAGES, torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(FoveateError, match="names of their own"):
        StagedModel([("a", nn.Identity()), ("a", nn.Identity())])


def test_unknown_stages_are_named():
    model = StagedModel.from_children(a_net(), STAGES, torch.ones(1, 3, 8, 8))
    x = torch.ones(1, 3, 8, 8)
    with pytest.raises(FoveateError, match=r"'layer3'; there are layer1, layer2, fc"):
        model.head(x, "layer3")
    with pytest.raises(FoveateError, match="'layer3' is not among"):
        model.outputs(x, ["layer3"])
    with pytest.raises(FoveateError, match="'layer1' is not among those that run here: fc"):
        model.tail(torch.ones(1, 6, 2, 2), "layer2", names=["layer1"])


# --- hooks ---------------------------------------------------------------------------------


def test_any_network_is_continued_from_a_feature_of_one_module():
    torch.manual_seed(0)
    net = NoSequence().double()
    x, f = torch.randn(3, 4).double(), torch.randn(3, 6).double().requires_grad_()
    answer, (seen,) = HookedModel(net).tail(f, "middle", x, ["last"])
    by_hand = torch.tanh(f) @ net.last.weight.T + net.last.bias
    assert torch.allclose(seen, by_hand, atol=1e-12)
    assert torch.allclose(answer, by_hand + 3 * x, atol=1e-12)
    (gradient,) = torch.autograd.grad(answer.sum(), f)
    expected = net.last.weight.sum(0) * (1 - torch.tanh(f) ** 2)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_network_is_left_as_it_was_even_when_something_fails():
    net, x = NoSequence(), torch.randn(2, 4)
    layer_outputs(net, x, ["first", "middle"])
    with pytest.raises(FoveateError, match=r"\(2, 6\).*\(2, 5\)"):
        HookedModel(net).tail(torch.ones(2, 5), "middle", x)
    with pytest.raises(FoveateError, match="'unused' was not run"):
        layer_outputs(net, x, ["first", "unused"])
    assert not any(module._forward_hooks for module in net.modules())


def test_outputs_come_in_the_order_asked_and_pass_gradients():
    net, x = a_net(), torch.randn(2, 3, 8, 8)
    logits, (pool, conv) = layer_outputs(net, x, ["avgpool", "layer1.0.conv"])
    assert torch.equal(logits, net(x))
    assert pool.shape == (2, 6, 1, 1)
    assert conv.shape == (2, 4, 4, 4)
    pool.sum().backward()
    assert net.layer2[0].conv.weight.grad.abs().sum() > 0
    assert net.fc.weight.grad is None


def test_places_that_are_no_one_place_are_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.pair = nn.Tanh(), nn.LSTM(4, 4)

        def forward(self, x):
            return self.pair(self.act(self.act(x)))[0]

    with pytest.raises(FoveateError, match="'act' runs more than once"):
        layer_outputs(Twice(), torch.ones(2, 4), ["act"])
    with pytest.raises(FoveateError, match="'pair' gives a tuple"):
        layer_outputs(Twice(), torch.ones(2, 4), ["pair"])
    with pytest.raises(FoveateError, match=r"no module 'nothing'; its children are act, pair"):
        layer_outputs(Twice(), torch.ones(2, 4), ["nothing"])
    with pytest.raises(FoveateError, match="no module ''"):
        layer_outputs(Twice(), torch.ones(2, 4), [""])


def test_modes_are_put_back():
    net = a_net()
    net.train()
    net.layer1.eval()
    before = [module.training for module in net.modules()]
    statistics = copy.deepcopy(net.state_dict())
    with in_eval_mode(net):
        assert not any(module.training for module in net.modules())
        net(torch.randn(2, 3, 8, 8))
    assert [module.training for module in net.modules()] == before
    StagedModel.from_children(net, STAGES, torch.randn(2, 3, 8, 8))
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(value, statistics[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("net", [resnet20(), BinResNetS(), SmallVGG()])
def test_stages_of_foveates_networks_can_be_hooked(net):
    with in_eval_mode(net), torch.no_grad():
        _, features = layer_outputs(net, torch.randn(2, 3, 16, 16), net.stage_names)
    assert [f.shape[2] for f in features] == [16, 8, 4]


# --- the plain net -------------------------------------------------------------------------


def test_small_vgg_is_the_net_that_its_docstring_says():
    torch.manual_seed(0)
    net = SmallVGG((4, 8, 16), classes=10).eval()
    weights = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(w.in_channels, w.out_channels) for w in weights] == [(3, 4), (4, 4), (4, 8), (8, 16)]
    kernels = 9 * (3 * 4 + 4 * 4 + 4 * 8 + 8 * 16)
    assert sum(p.numel() for p in net.parameters()) == kernels + 2 * (4 + 4 + 8 + 16) + 16 * 10 + 10
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    h = x
    for k, (conv, norm) in enumerate(zip(weights, norms, strict=True)):
        if k >= 2:
            h = F.max_pool2d(h, 2)
        h = F.relu(norm(F.conv2d(h, conv.weight, None, 1, 1)))
    expected = h.mean((2, 3)) @ net.fc.weight.T + net.fc.bias
    assert torch.allclose(net(x), expected, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    widths=st.tuples(*[st.integers(1, 6)] * 3),
    classes=st.integers(1, 9),
    channels=st.integers(1, 4),
    height=st.integers(4, 19),
    width=st.integers(4, 19),
)
def test_small_vgg_takes_any_size(widths, classes, channels, height, width):
    net = SmallVGG(widths, classes, channels).eval()
    assert net(torch.zeros(2, channels, height, width)).shape == (2, classes)


@pytest.mark.parametrize("wrong", [{"widths": (4, 8)}, {"widths": (4, 0, 8)}, {"classes": 0},
                                   {"in_channels": 0}])  # fmt: skip
def test_small_vgg_refuses_sizes_that_are_none(wrong):
    with pytest.raises(FoveateError, match="three widths"):
        SmallVGG(**wrong)


def test_a_stage_is_a_tuple_of_names_and_no_name():
    """A text would be read letter by letter."""
    with pytest.raises(FoveateError, match=r"\('conv1',\)"):
        StagedModel.from_children(a_net(), ["conv1", "layer1"], torch.zeros(1, 3, 16, 16))
