"""ResNets against torchvision's and transformers' names, published counts and a second forward."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn import resnet
from foveate.nn.resnet import BasicBlock, Bottleneck, ResNet, load_state

# SHA-256 of the lines "name shape" of torchvision 0.28's state dicts, in order.
TORCHVISION = {
    "resnet18": "84fb10d9c6905a1cbb020b284537dc97c4f4ec55fb2a780a41152a23a2dd0e9d",
    "resnet34": "28f9096d5130749948981c6900083e57b19456b8b835829b8bdfe415bddc3f32",
    "resnet50": "d7e4f8bb0a5363446a59c81c3887ccf66900a11651a0ae2dec96d1bb1eb6ea81",
}


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and scales that are neither 0 nor 1, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.ndim == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            value.uniform_(low, low + 1, generator=generator)
    return net.eval()


def tiny(block: type[BasicBlock | Bottleneck] = BasicBlock, **changes) -> ResNet:
    settings_ = {"blocks": (1, 2, 1), "widths": (4, 6, 8), "classes": 5, "stem": "cifar"} | changes
    return lively(ResNet(block, **settings_))


def macs(net: nn.Module, *shape: int) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.to("meta")(torch.empty(shape))
    return counter.get_total_flops() / 2


# --- published counts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)],
)
def test_parameter_counts_and_names_are_torchvisions(name, count):
    with torch.device("meta"):
        net = getattr(resnet, name)()
    assert sum(p.numel() for p in net.parameters()) == count
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in net.state_dict().items())
    assert hashlib.sha256(lines.encode()).hexdigest() == TORCHVISION[name]


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 1.814), ("resnet50", 4.089)])
def test_multiply_adds_at_224(name, giga):
    with torch.device("meta"):
        net = getattr(resnet, name)()
    assert macs(net, 1, 3, 224, 224) == pytest.approx(giga * 1e9, rel=1e-3)


@pytest.mark.parametrize(("name", "n"), [("resnet20", 3), ("resnet32", 5), ("resnet56", 9)])
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_cifar_counts_by_closed_form(name, n, shortcut):
    """Stem, 2n 3x3 convolutions per stage, BN of each, classifier; and two 1x1 shortcuts."""
    stage = [2 * n * 9 * c * c + 2 * n * 2 * c for c in (16, 32, 64)]
    narrower_first = 9 * 32 * (32 - 16) + 9 * 64 * (64 - 32)
    expected = 27 * 16 + 32 + sum(stage) - narrower_first + 64 * 10 + 10
    if shortcut == "conv":
        expected += 16 * 32 + 64 + 32 * 64 + 128
    net = getattr(resnet, name)(shortcut=shortcut)
    assert sum(p.numel() for p in net.parameters()) == expected
    if shortcut == "pad":  # the counts of the paper's table 6, in millions
        assert round(expected / 1e6, 2) == {3: 0.27, 5: 0.46, 9: 0.85}[n]


def test_cifar_multiply_adds():
    assert macs(resnet.resnet20(), 1, 3, 32, 32) == pytest.approx(40.8e6, rel=1e-3)
    by_hand = 1024 * 27 * 16 + 1024 * 6 * 9 * 256 + 256 * 9 * (16 * 32 + 5 * 32 * 32)
    by_hand += 64 * 9 * (32 * 64 + 5 * 64 * 64) + 640
    assert macs(resnet.resnet20(shortcut="pad"), 1, 3, 32, 32) == by_hand


def test_resnet18_with_cifar_stem_is_the_customary_one():
    net = resnet.resnet18(10, "cifar")
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    assert macs(net, 1, 3, 32, 32) == pytest.approx(0.5559e9, rel=1e-3)


# --- the forward, written a second time ------------------------------------------------------


def second_forward(state: dict[str, Tensor], x: Tensor, net: ResNet, deep: bool) -> Tensor:
    """Straight from the formula and the state dict; knows no module of foveate."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var")]
        return F.batch_norm(x, *parts, state[f"{name}.weight"], state[f"{name}.bias"])

    large = state["conv1.weight"].shape[-1] == 7
    x = F.conv2d(x, state["conv1.weight"], None, 2 if large else 1, 3 if large else 1)
    x = norm(x, "bn1").relu()
    if large:
        x = F.max_pool2d(x, 3, 2, 1)
    for block in net.block_names:
        stride = 2 if block.endswith(".0") and not block.startswith("layer1") else 1
        y = x
        strides = (1, stride, 1) if deep else (stride, 1)
        for number, step in enumerate(strides, 1):
            weight = state[f"{block}.conv{number}.weight"]
            y = norm(F.conv2d(y, weight, None, step, weight.shape[-1] // 2), f"{block}.bn{number}")
            y = y.relu() if number < len(strides) else y
        key = f"{block}.downsample.0.weight"
        if key in state:
            x = norm(F.conv2d(x, state[key], None, stride), f"{block}.downsample.1")
        elif x.shape != y.shape:
            padded = torch.zeros_like(y)
            padded[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            x = padded
        x = (x + y).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_forward_is_the_formula(block, stem, shortcut):
    net = tiny(block, stem=stem, shortcut=shortcut)
    x = torch.randn(2, 3, 21, 18, generator=torch.Generator().manual_seed(1))
    expected = second_forward(net.state_dict(), x, net, block is Bottleneck)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    channels=st.integers(1, 4),
    shortcut=st.sampled_from(["conv", "pad"]),
)
def test_shapes(batch, height, width, channels, shortcut):
    net = tiny(in_channels=channels, shortcut=shortcut)
    seen = []
    for name in net.stage_names:
        net.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(o.shape))
    assert net(torch.randn(batch, channels, height, width)).shape == (batch, 5)
    halved = [(-(-height // 2**i), -(-width // 2**i)) for i in range(3)]
    assert seen == [(batch, w, *size) for w, size in zip((4, 6, 8), halved, strict=True)]


def test_block_names_are_the_blocks_in_order():
    net = tiny()
    assert net.block_names == ("layer1.0", "layer2.0", "layer2.1", "layer3.0")
    assert all(isinstance(net.get_submodule(name), BasicBlock) for name in net.block_names)


def test_net_can_be_traced():
    net = tiny()
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks": (1, 1)}, "one width and at least one block"),
        ({"blocks": (), "widths": ()}, "one width and at least one block"),
        ({"blocks": (1, 0, 1)}, "one width and at least one block"),
        ({"classes": 0}, "classes=0"),
        ({"stem": "mnist"}, "stem 'imagenet' or 'cifar'"),
        ({"shortcut": "none"}, "shortcut 'conv' or 'pad'"),
        ({"shortcut": "pad", "widths": (8, 4, 2)}, "can only add channels"),
    ],
)
def test_bad_sizes_are_one_sentence(changes, sentence):
    with pytest.raises(FoveateError, match=sentence):
        tiny(**changes)


# --- weights ---------------------------------------------------------------------------------


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == m and torch.equal(v, w) for (k, v), (m, w) in pairs)


@pytest.mark.parametrize("kind", ["dict", "safetensors", "torch"])
def test_weights_load_from_every_source(tmp_path: Path, kind):
    source, target = tiny(), ResNet(BasicBlock, (1, 2, 1), (4, 6, 8), 5, stem="cifar")
    state = source.state_dict()
    given_: object = state
    if kind == "safetensors":
        given_ = tmp_path / "net.safetensors"
        safetensors.torch.save_file(state, given_)
    elif kind == "torch":
        given_ = str(tmp_path / "net.pth")
        torch.save(state, given_)
    load_state(target, given_)  # type: ignore[arg-type]
    assert same(source, target)


def test_half_precision_is_widened_and_counters_may_be_missing():
    source, target = tiny(), tiny()
    state = {
        key: value.half() for key, value in source.state_dict().items() if "num_batches" not in key
    }
    load_state(target, state)
    for key, value in state.items():
        assert torch.equal(target.state_dict()[key], value.float())


def hugging_face_name(name: str) -> str:
    """Torchvision's name -> transformers', as read off the names of a model of that package."""
    part = {"conv": "convolution", "bn": "normalization"}
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"resnet.embedder.embedder.{part[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"fc\.(\w+)", name):
        return f"classifier.1.{match[1]}"
    match = re.fullmatch(r"layer(\d)\.(\d)\.(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)", name)
    assert match is not None
    prefix = f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}"
    if match[5]:
        return f"{prefix}.shortcut.{list(part.values())[int(match[5])]}.{match[6]}"
    return f"{prefix}.layer.{int(match[4]) - 1}.{part[match[3]]}.{match[6]}"


# Names that transformers 5.17 printed for a model of basic layers.
HF_SAMPLE = (
    "resnet.embedder.embedder.normalization.running_var",
    "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
    "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_mean",
    "resnet.encoder.stages.1.layers.1.layer.0.convolution.weight",
    "resnet.encoder.stages.0.layers.0.layer.1.normalization.num_batches_tracked",
    "classifier.1.bias",
)


HF_LAYER = "encoder.stages.0.layers.0.layer.0"


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("prefix", ["resnet.", ""])
def test_transformers_names_are_translated(block, prefix):
    source, target = tiny(block), tiny(block)
    state = {hugging_face_name(key): value for key, value in source.state_dict().items()}
    assert set(HF_SAMPLE) <= set(state)
    for value in target.state_dict().values():
        value.zero_()
    load_state(
        target, {key.removeprefix("resnet.") if not prefix else key: v for key, v in state.items()}
    )
    assert same(source, target)


def test_real_transformers_models_give_the_same_logits():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for layer, block in (("basic", BasicBlock), ("bottleneck", Bottleneck)):
        factor = block.expansion
        config = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8 * factor, 12 * factor, 16 * factor, 20 * factor],
            depths=[1, 2, 1, 1],
            layer_type=layer,
            num_labels=5,
        )
        theirs = lively(transformers.ResNetForImageClassification(config))
        mine = ResNet(block, (1, 2, 1, 1), (8, 12, 16, 20), classes=5).eval()
        load_state(mine, theirs.state_dict())
        x = torch.randn(2, 3, 40, 33)
        with torch.no_grad():
            torch.testing.assert_close(mine(x), theirs(x).logits, rtol=1e-5, atol=1e-5)


def test_real_torchvision_models_give_the_same_logits():
    try:
        from torchvision import models
    except (ImportError, RuntimeError):
        pytest.skip("torchvision is not installed, or not for this torch")
    theirs, mine = lively(models.resnet18(num_classes=5)), resnet.resnet18(5).eval()
    mine.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 40, 33)
    torch.testing.assert_close(mine(x), theirs(x))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("layer2.0.bn1.weight"), "has no 'layer2.0.bn1.weight', which ResNet"),
        (lambda s: s.update({"head.weight": torch.ones(1)}), "has 'head.weight', which ResNet"),
        (lambda s: s.update({"fc.bias": torch.ones(7)}), r"'fc.bias' .* shape \(7,\) .* \(5,\)"),
        (lambda s: s.update({"fc.bias": torch.ones(5, dtype=torch.int64)}), "of type torch.int64"),
        (lambda s: s.update({"fc.bias": torch.ones(5, dtype=torch.complex64)}), "complex64"),
        (lambda s: s.update({"fc.bias": [1.0]}), "holds 'fc.bias' of type list"),
        (lambda s: s.update({7: torch.ones(1)}), "holds 7 of type Tensor"),
        (
            lambda s: s.update({f"{HF_LAYER}.convolution.weight": s["fc.bias"]}),
            "has 'conv1.weight', which is no name of a ResNet of Hugging Face",
        ),
    ],
)
def test_first_key_that_does_not_fit_is_named_and_nothing_is_loaded(change, sentence):
    source, target = tiny(), tiny()
    untouched = copy.deepcopy(target)
    state = {key: value + 1 for key, value in source.state_dict().items()}
    change(state)
    with pytest.raises(FoveateError, match=sentence):
        load_state(target, state)
    assert same(target, untouched)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("data", [None, b"", b"PK\x03\x04nonsense", b"\xff" * 64])
def test_damaged_weight_files_are_one_sentence(tmp_path: Path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FoveateError, match="cannot read weights from") as caught:
        load_state(tiny(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    torch.save(nn.ReLU(), tmp_path / "net.pth")
    with pytest.raises(FoveateError, match=r"more than tensors and could run code; expected") as no:
        load_state(tiny(), tmp_path / "net.pth")
    assert "weights_only" not in str(no.value)  # torch's advice to run the code all the same
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(FoveateError, match="holds a list where a state dict"):
        load_state(tiny(), tmp_path / "list.pth")
