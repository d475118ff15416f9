"""MobileNetV2: published counts, torchvision's names, dense maps that hold the sparse one."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn.mobilenet import InvertedResidual, MobileNetV2
from foveate.nn.resnet import load_state

# Parameters, and SHA-256 of the lines "name shape" of torchvision 0.28's state dict, in order.
TORCHVISION = {
    0.35: (1_677_128, "b270bf404dce82bd7233342be86eac933d50f0fa60bc19b81b20902c0abb82c1"),
    0.75: (2_636_424, "ae172f118a960aee2ff36b04ecff19da121ba0258e3bb4d805fe3992d9c43f82"),
    1.0: (3_504_872, "37bbbce8932fd0c49fe8e941719a7aa7b25b60c17b428749b72562f754135844"),
    1.4: (6_108_776, "f56d711aee51a589d9a8b34fbfc997be5ee9ef2ec662290efdfa97512be173ed"),
}


def lively(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.ndim == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            value.uniform_(low, low + 1, generator=generator)
    return net.eval()


@pytest.mark.parametrize("width", TORCHVISION)
@pytest.mark.parametrize("stride", [8, 32])
def test_counts_and_names_are_torchvisions(width, stride):
    count, digest = TORCHVISION[width]
    with torch.device("meta"):
        net = MobileNetV2(width=width, output_stride=stride)
    assert sum(p.numel() for p in net.parameters()) == count
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in net.state_dict().items())
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


def test_multiply_adds_are_the_papers():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MobileNetV2()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(300e6, rel=5e-3)


@settings(deadline=None, max_examples=8)
@given(height=st.integers(1, 90), width=st.integers(1, 90), stride=st.sampled_from([8, 16]))
def test_dense_map_at_every_nth_pixel_is_the_sparse_map(height, width, stride):
    torch.manual_seed(0)
    sparse = lively(MobileNetV2(width=0.25))
    dense = MobileNetV2(width=0.25, output_stride=stride).eval()
    load_state(dense, sparse.state_dict())
    x = torch.randn(1, 3, height, width)
    with torch.no_grad():
        wide, narrow = dense.features(x), sparse.features(x)
    assert wide.shape[-2:] == (-(-height // stride), -(-width // stride))
    step = 32 // stride
    torch.testing.assert_close(wide[..., ::step, ::step], narrow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stride", "dilations"),
    [(32, [1] * 17), (16, [1] * 14 + [2] * 3), (8, [1] * 7 + [2] * 7 + [4] * 3)],
)
def test_dilation_starts_after_the_block_that_lost_its_stride(stride, dilations):
    net = MobileNetV2(output_stride=stride)
    depthwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.dilation[0] for m in depthwise] == dilations
    product = 1
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            product *= m.stride[0]
    assert product == stride


def test_block_is_the_formula_and_its_end_is_linear():
    torch.manual_seed(0)
    block = lively(InvertedResidual(4, 4, 1, 3))
    x = torch.randn(2, 4, 6, 5)
    conv = block.conv
    y = conv[0][1](conv[0][0](x)).clamp(0, 6)
    y = conv[1][1](conv[1][0](y)).clamp(0, 6)
    y = conv[3](conv[2](y))
    torch.testing.assert_close(block(x), x + y)
    assert (y < 0).any()
    assert not InvertedResidual(4, 4, 2, 3).residual
    assert not InvertedResidual(4, 6, 1, 3).residual
    assert len(InvertedResidual(4, 6, 1, 1).conv) == 3  # t = 1 does not widen


def test_classes_and_tracing():
    net = lively(MobileNetV2(7, width=0.25))
    x = torch.randn(2, 3, 33, 32)
    assert net(x).shape == (2, 7)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize("changes", [{"output_stride": 4}, {"width": 0}, {"classes": 0}])
def test_bad_sizes_are_one_sentence(changes):
    with pytest.raises(FoveateError, match="output_stride 8, 16 or 32"):
        MobileNetV2(**changes)
