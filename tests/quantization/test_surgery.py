"""Surgery on other people's networks: what is replaced, what is kept, what happens to ReLUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.resnet import ResNet, resnet18
from foveate.quantization.layers import (
    BinarizeConfig,
    BinaryConv2d,
    QuantConv2d,
    QuantLinear,
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
from foveate.quantization.surgery import binarize_model, calibrate, quantize


class Residual(nn.Module):
    """A ReLU that only the next layer reads (inner), one that a skip reads as well (outer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.inner = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.outer = nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.inner(self.bn1(self.conv1(x)))
        return self.outer(self.bn2(self.conv2(y)) + self.downsample(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.signed = nn.Conv2d(8, 8, 1)
        self.hidden = nn.Linear(8, 16)
        self.act = nn.ReLU()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.blocks(self.pool(self.stem(x)))
        x = self.signed(self.depthwise(x))
        x = x.relu().mean((2, 3))
        return self.head(self.act(self.hidden(x)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_default_keeps_first_last_downsample_and_depthwise():
    model = net()
    report = quantize(model, 4, 4)
    assert set(report.kept) == {
        "stem.0",
        "blocks.0.downsample.0",
        "blocks.1.downsample.0",
        "depthwise",
        "head",
    }
    assert set(report.quantized) == {
        *(f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2)),
        "signed",
        "hidden",
    }
    for path in report.kept:
        assert type(model.get_submodule(path)) in (nn.Conv2d, nn.Linear)
    assert {path: layer.bits for path, layer in quant_layers(model)} == dict.fromkeys(
        report.quantized, (4, 4)
    )
    notes = {change.path: change.note for change in report.changes}
    assert notes["stem.0"] == "kept: first layer"
    assert notes["head"] == "kept: last layer"
    assert notes["depthwise"] == "kept: depthwise convolution"
    assert "skip" in notes["blocks.0.downsample.0"]


def test_the_report_is_a_table_of_everything():
    report = quantize(net(), 2, 3)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "was", "is", "W/A", "note"]
    assert len(lines) == 1 + len(report.changes)
    assert any(line.split()[:4] == ["signed", "Conv2d", "QuantConv2d", "2/3"] for line in lines)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_suit_what_a_layer_is_given(bits):
    model = net()
    quantize(model, bits, bits)
    acts = {path: layer.act for path, layer in quant_layers(model)}
    unsigned = UniformUnipolar
    signed = SignSTE if bits == 1 else UniformBipolar
    assert type(acts["signed"]) is signed, "fed by a convolution"
    assert type(acts["hidden"]) is unsigned, "behind a functional ReLU that cannot go"
    assert type(acts["blocks.0.conv1"]) is unsigned, "its ReLU is read by the skip too"
    # behind a ReLU of its own: gone, so a sign sees the batch norm
    assert type(acts["blocks.0.conv2"]) is (SignSTE if bits == 1 else unsigned)
    assert isinstance(model.blocks[0].inner, nn.Identity)
    assert isinstance(model.blocks[0].outer, nn.ReLU)
    assert isinstance(model.stem[2], nn.ReLU), "the first block's skip reads it through the pool"
    assert isinstance(model.act, nn.ReLU), "the kept head reads it"
    for path, act in acts.items():
        weight = dict(quant_layers(model))[path].weight_quantizer
        assert type(weight) is (SignWeight if bits == 1 else TwosWeight)
        assert act.format.bits == weight.format.bits == bits


@pytest.mark.parametrize("bits", [1, 4])
def test_switched_off_it_is_the_network_that_it_was(bits):
    model = net()
    expected = model(X)
    parameters = {id(p) for p in model.parameters()}
    quantize(model, bits, bits)
    assert parameters <= {id(p) for p in model.parameters()}, "the same parameter objects"
    assert not torch.allclose(model(X), expected, atol=1e-3)
    set_stage(model, weights=False, activations=False)
    assert torch.allclose(model(X), expected, atol=1e-5)


def test_eight_bits_after_calibration_are_nearly_the_real_network():
    for percentile in (None, 99.9):
        model = net()
        with torch.no_grad():
            expected = model(X)
            quantize(model, 8, 8)
            before = (model(X) - expected).abs().max()
            steps = calibrate(model, [X[:2], (X[2:], torch.zeros(2))], percentile)
            error = (model(X) - expected).abs().max()
        assert error < 0.02 * expected.abs().max()
        assert error < before
        assert set(steps) == {path for path, _ in quant_layers(model)}
        assert not model.training


def test_calibration_sees_the_inputs_of_the_real_network():
    """Steps from float activations, recorded by the plain network: the same least squares."""
    model = net()
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, x, path=path: seen.update({path: x[0].clone()}))
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    model(X)
    for hook in hooks:
        hook.remove()
    quantize(model, 3, 3)
    steps = calibrate(model.train(), [X], samples=10**6)
    assert model.training, "left as it was"
    assert all(layer.bits == (3, 3) for _, layer in quant_layers(model))
    for path, layer in quant_layers(model):
        x = seen[path].detach()
        bits = layer.act.format.bits
        top = 2**bits - 1

        def error(step, act=layer.act, x=x, top=top):
            low = 0 if act.format.kind == "unipolar" else -top
            if low == 0:
                q = torch.floor(x / step + 0.5).clamp(0, top) * step
                return (q - x.relu())[x > 0].square().mean().item()
            levels = torch.arange(low, top + 1, 2) * step
            return (x[..., None] - levels).abs().amin(-1).square().mean().item()

        fitted = error(steps[path])
        best = min(error(steps[path] * r) for r in torch.logspace(-1, 1, 200).tolist())
        assert fitted <= 1.2 * best, path  # few numbers: the error jumps with every one


def test_calibration_refuses_what_it_cannot_do():
    model = net()
    with pytest.raises(FoveateError, match="no quantiser"):
        calibrate(model, [X])
    quantize(model, 4, 4)
    with pytest.raises(FoveateError, match="no batch"):
        calibrate(model, [])
    with pytest.raises(FoveateError, match="percentile"):
        calibrate(model, [X], percentile=0)
    assert all(layer.bits == (4, 4) for _, layer in quant_layers(model))


def test_rules_patterns_and_exceptions():
    model = net()
    report = quantize(
        model,
        4,
        4,
        keep=("blocks.1", "hid*"),
        by_name={"head": (8, 8), "stem": (8, None), "blocks.0.conv?": (2, 3)},
    )
    bits = {path: layer.bits for path, layer in quant_layers(model)}
    assert bits == {
        "stem.0": (8, 32),
        "blocks.0.conv1": (2, 3),
        "blocks.0.conv2": (2, 3),
        "blocks.0.downsample.0": (4, 4),
        "depthwise": (4, 4),
        "signed": (4, 4),
        "head": (8, 8),
    }
    assert {"blocks.1.conv1", "blocks.1.downsample.0", "hidden"} <= set(report.kept)
    for keep, by_name in ((("frist",), None), ((), {"blocks.7": (4, 4)})):
        untouched = net()
        with pytest.raises(FoveateError, match=r"frist|blocks\.7"):
            quantize(untouched, 4, 4, keep=keep, by_name=by_name)
        assert not list(quant_layers(untouched))


def test_only_weights_or_only_activations():
    model = net()
    quantize(model, 8, None)
    assert {layer.bits for _, layer in quant_layers(model)} == {(8, 32)}
    assert isinstance(model.blocks[0].inner, nn.ReLU), "nothing absorbs it"
    assert model(X).isfinite().all()
    model = net()
    quantize(model, None, 4)
    assert {layer.bits for _, layer in quant_layers(model)} == {(32, 4)}
    report = quantize(net(), None, None)
    assert not report.quantized


def test_factories():
    model = net()
    report = quantize(
        model,
        weights=lambda channels: UniformBipolarWeight(3, "lsq", channels),
        activations=lambda: UniformBipolar(2, "htanh"),
    )
    for _, layer in quant_layers(model):
        assert layer.weight_quantizer.limit.shape == (layer.weight.shape[0],)
        assert layer.act.range == "htanh"
    assert len({id(layer.act) for _, layer in quant_layers(model)}) == len(report.quantized)
    assert isinstance(model.blocks[0].inner, nn.ReLU), "HTanh does not rectify by itself"
    model = net()
    quantize(model, activations=lambda: UniformBipolar(2, "hrelu"))
    assert isinstance(model.blocks[0].inner, nn.Identity)
    for wrong in ({"weights": lambda channels: nn.Identity()}, {"activations": nn.ReLU}):
        with pytest.raises(FoveateError, match="factory"):
            quantize(net(), **wrong)
    for bits in (0, 9):
        untouched = net()
        with pytest.raises(FoveateError, match="bits"):
            quantize(untouched, bits, 4)
        assert not list(quant_layers(untouched))


def test_binarize_model_follows_its_config():
    model = net()
    report = binarize_model(
        model,
        BinarizeConfig(scale="se", activation="poly"),
        by_name={"blocks.1.*": BinarizeConfig(scale="xnor", weight=None)},
    )
    layers = dict(quant_layers(model))
    assert layers["blocks.0.conv1"].gate is not None
    assert layers["blocks.0.conv1"].act.estimator == "poly"
    assert layers["blocks.0.conv1"].bits == (1, 1)
    assert layers["blocks.1.conv1"].bits == (32, 1)
    assert layers["hidden"].channel_scale is not None
    notes = {change.path: change.note for change in report.changes}
    assert notes["blocks.0.conv1"] == "input is never negative: its sign is always +1"
    assert notes["blocks.0.conv2"] == ""
    assert "stem.0" in report.kept
    model(X).sum().backward()


def test_binarize_model_leaves_ends_and_skips_alone_by_default():
    """The very same modules, in the default setting; everything else is 1 bit."""
    model = net()
    real = ["stem.0", "blocks.0.downsample.0", "blocks.1.downsample.0", "depthwise", "head"]
    modules = {path: model.get_submodule(path) for path in real}
    weights = {path: module.weight.clone() for path, module in modules.items()}
    report = binarize_model(model)
    assert set(report.kept) == set(real)
    for path, module in modules.items():
        assert model.get_submodule(path) is module
        assert torch.equal(module.weight, weights[path])
    assert {path: layer.bits for path, layer in quant_layers(model)} == dict.fromkeys(
        [*(f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2)), "signed", "hidden"], (1, 1)
    )


def test_a_sign_never_stands_alone_behind_a_relu():
    """With 1 bit every quantised input of a plain ReLU ResNet takes at least two values."""
    torch.manual_seed(0)
    model: ResNet = resnet18(classes=4, stem="cifar").eval()
    quantize(model, 1, 1)
    calibrate(model, [X])
    seen = {}
    for path, layer in quant_layers(model):
        layer.register_forward_pre_hook(
            lambda m, x, path=path: seen.update({path: m.act.integers(x[0]).unique().numel()})
        )
    model(X)
    assert len(seen) == 16
    assert set(seen.values()) == {2}


class Untraceable(nn.Module):
    """torch.fx cannot follow a decision that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(6, 4)  # registered first, runs last
        self.early = nn.Linear(5, 6)
        self.relu = nn.ReLU()
        self.middle = nn.Linear(6, 6)
        self.signed = nn.Linear(6, 6)

    def forward(self, x, scale=1.0):
        x = self.relu(self.early(x))
        if x.sum() < -1e9:
            return x
        return self.late(self.signed(self.middle(x)) * scale)


def test_untraceable_networks_are_seen_by_example():
    x = torch.randn(64, 5)
    model = Untraceable().eval()
    expected = model(x)
    report = quantize(model, 4, 4, example=(x, 2.0))
    assert report.kept == ("late", "early"), "last and first to run, not to be registered"
    assert isinstance(model.middle.act, UniformUnipolar)
    assert isinstance(model.signed.act, UniformBipolar)
    assert isinstance(model.relu, nn.ReLU)
    set_stage(model, weights=False, activations=False)
    assert torch.allclose(model(x), expected, atol=1e-5)

    blind = Untraceable()
    report = quantize(blind, 4, 4)
    assert report.kept == ("late", "signed"), "in the order of registration"
    assert isinstance(blind.middle.act, UniformBipolar)
    assert any("pass example=" in change.note for change in report.changes)
    assert blind(x).isfinite().all()


def test_what_is_not_plain_is_left_alone():
    class Mine(nn.Conv2d):
        pass

    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        Mine(4, 4, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        BinaryConv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
    )
    binary = model[3]
    report = quantize(model, 4, 4)
    assert report.quantized == ("4",)
    assert model[3] is binary
    notes = {change.path: change.note for change in report.changes}
    assert "class of its own" in notes["1"]
    assert "parametrised" in notes["2"]

    attention = nn.ModuleDict(
        {"a": nn.Linear(8, 8), "t": nn.TransformerEncoderLayer(8, 2, 16), "z": nn.Linear(8, 8)}
    )
    report = quantize(attention, 4, 4, keep=("z",))
    assert report.quantized == ("a",)
    assert all("attention" in c.note for c in report.changes if c.path.startswith("t."))


def test_shared_layers_and_shared_weights_stay_shared():
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.ReLU(), shared, tied, nn.Linear(4, 4))
    report = quantize(model, 4, 4)
    assert model[1] is model[3]
    assert isinstance(model[1], QuantLinear)
    assert model[4].weight is model[1].weight
    assert isinstance(model[1].act, UniformBipolar), "one of its two inputs is signed"
    assert isinstance(model[2], nn.ReLU)
    assert report.quantized == ("1", "3", "4")


def test_a_relu_that_runs_twice_goes_only_if_nobody_misses_it():
    class Twice(nn.Module):
        def __init__(self, skip: bool) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))
            self.relu, self.skip = nn.ReLU(), skip

        def forward(self, x):
            x = self.relu(self.a(x))
            x = self.relu(self.b(x)) + (x if self.skip else 0)
            return self.d(self.c(x))

    for skip, keep in ((True, ("d",)), (False, ("c", "d"))):
        model = Twice(skip)
        quantize(model, 4, 4, keep=keep)
        assert isinstance(model.relu, nn.ReLU)
    simple = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    x = torch.randn(1, 3, 4, 4)
    expected = simple(x)
    quantize(simple, 8, 8, keep=("first",))
    assert isinstance(simple[1], nn.Identity), "through the pooling, which keeps the order"
    set_stage(simple, weights=False, activations=False)
    assert torch.allclose(simple(x), expected, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    weights=st.integers(1, 8),
    activations=st.integers(1, 8),
    training=st.booleans(),
)
def test_random_networks_survive(seed, weights, activations, training):
    """Random chains: switched off they are what they were; quantised they run and learn."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
    menu = (
        lambda: nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU,
        lambda: nn.BatchNorm2d(4),
        lambda: nn.MaxPool2d(2, 1, 1),
        nn.Sigmoid,
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Identity,
    )
    picks = torch.randint(len(menu), (7,), generator=generator).tolist()
    layers.extend(menu[index]() for index in picks)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)).train(training)
    x = torch.randn(2, 3, 6, 6, generator=generator)
    model(x)  # sizes of the lazy layer
    model.eval()
    expected = model(x)
    if not quantize(model, weights, activations).quantized:
        assert torch.equal(model(x), expected)
        return
    set_stage(model, weights=False, activations=False)
    assert torch.allclose(model(x), expected, atol=1e-4)
    set_stage(model, weights=True, activations=True)
    model.train()(x).sum().backward()
    for _, layer in quant_layers(model):
        assert layer.weight.grad.isfinite().all()
    assert model.eval()(x).isfinite().all()


def test_nothing_to_do_is_an_error():
    for model in (nn.Sequential(nn.ReLU()), nn.Conv2d(3, 3, 1), QuantConv2d(3, 3, 1)):
        with pytest.raises(FoveateError, match="from_float"):
            quantize(model)


def test_functional_relu_with_inplace_keyword_is_seen():
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            return self.c(self.b(F.relu(self.a(x), inplace=True)))

    model = Small()
    quantize(model, 4, 4)
    assert isinstance(model.b.act, UniformUnipolar)


class OneReLU(nn.Module):
    """``relu`` behind ``bn``; ``forward`` is given."""

    def __init__(self, forward, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU(inplace)
        self.how = forward

    def forward(self, x):
        return self.how(self, self.bn(self.a(x)))


def beside_a_skip(net, x):
    return net.c(net.b(net.relu(x)) + x)


def twice_through_one_layer(net, x):
    return net.c(net.b(net.b(net.relu(x))))


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("forward", [beside_a_skip, twice_through_one_layer])
def test_switched_off_it_is_the_real_network_again(forward, inplace, bits):
    model = OneReLU(forward, inplace).eval()
    with torch.no_grad():
        expected = model(X)
        quantize(model, bits, bits, keep=("first",))
        set_stage(model, weights=False, activations=False)
        assert torch.allclose(model(X), expected, atol=1e-5)


@pytest.mark.parametrize(
    "negative",
    [
        lambda x: torch.add(x, x.mean((2, 3), keepdim=True), alpha=-1),
        lambda x: torch.mul(x, other=-1),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        nn.Upsample(scale_factor=2, mode="bicubic"),
    ],
)
def test_what_may_be_negative_behind_a_relu_is_signed(negative):
    class Model(OneReLU):
        def forward(self, x):
            return self.c(self.b(self.negative(self.relu(self.a(x)))))

    model = Model(None)
    model.negative = negative
    quantize(model, 4, 4)
    assert isinstance(model.b.act, UniformBipolar)


def test_reading_a_network_leaves_nothing_in_it():
    def forward(net, x):
        net.seen = x
        net.count += 1
        return net.c(net.b(net.relu(x) * torch.tensor(2.0)))

    model = OneReLU(forward)
    model.count = 0
    before = set(model.__dict__)
    quantize(model)
    assert set(model.__dict__) == before
    assert model.count == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": True}, "weights is 1 to 8 bits.*got True"),
        ({"weights": 4.0}, "weights is 1 to 8 bits.*got 4.0"),
        ({"activations": "4"}, "activations is 1 to 8 bits.*got '4'"),
        ({"keep": "first"}, r"give \('first',\)"),
        ({"by_name": {"conv": 8}}, r"pair \(weights, activations\).*got 8"),
        ({"by_name": {"conv": (8, True)}}, "activations is 1 to 8 bits"),
        ({"example": torch.zeros(1, 7, 4, 4)}, "does not run on the example"),
    ],
)
def test_settings_of_the_wrong_kind(settings, words):
    model = net()
    with pytest.raises(FoveateError, match=words):
        quantize(model, **settings)
    assert not list(quant_layers(model))


@pytest.mark.parametrize("batches", [X, {"x": X}, [{"x": X}], [()]])
def test_calibrate_says_what_a_batch_is(batches):
    model = net()
    quantize(model)
    with pytest.raises(FoveateError, match="batch"):
        calibrate(model, batches)
    assert all(layer.bits == (4, 4) for _, layer in quant_layers(model))
