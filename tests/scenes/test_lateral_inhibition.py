"""Networks with and without inhibition: placements, weights that load, what a decision sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import inhibition_report, li_layers
from foveate.nn.mobilenet import MobileNetV2
from foveate.nn.resnet import Bottleneck, ResNet, resnet18
from foveate.scenes.deeplab import ASPP, LIASPP, DeepLabDecoder, DenseASPP
from foveate.scenes.lateral_inhibition import (
    DeepLabV3Plus,
    MobileNetV2Features,
    ResNetFeatures,
    TinyDilated,
    inhibit_mobilenet,
    inhibit_resnet,
)

# The published tables, typed here a second time.
MOBILENET = {
    "a": [2, 4, 5, 7, 10, 14], "b": [2, 5, 9, 12, 15], "c": [16], "d": [15], "e": [12, 15],
    "f": [9, 12, 15], "g": list(range(17)), "h": [0, 1, 2, 3, 4, 5], "j": [9, 12, 15, 16],
    "k": [13, 14, 15], "l": [13, 14, 15, 16], "m": [15, 16],
}  # fmt: skip
CHANNELS = [16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320]


def loads_all_but_w(inhibited: nn.Module, plain: nn.Module) -> None:
    missing, unexpected = inhibited.load_state_dict(plain.state_dict(), strict=False)
    assert missing
    assert all(name.endswith("li_weight") for name in missing)
    assert not unexpected


# --- pyramid -------------------------------------------------------------------------------


def test_pyramid_inhibits_its_three_dilated_branches_only():
    """Checklist: three LI branches with separable convs; 1x1 and pooled branch without."""
    aspp = LIASPP(320)
    assert [name for name, _ in li_layers(aspp)] == [f"atrous.{k}.inhibition" for k in range(3)]
    assert [branch.depthwise.dilation for branch in aspp.atrous] == [(6, 6), (12, 12), (18, 18)]
    assert [branch.inhibition.dilation for branch in aspp.atrous] == [1, 1, 1]
    assert all(b.depthwise.groups == 320 and b.pointwise.out_channels == 256 for b in aspp.atrous)
    assert aspp.merge[0].in_channels == 5 * 256
    assert aspp.dropout.p == pytest.approx(0.1)
    assert not list(li_layers(ASPP(320)))


def test_pyramid_without_w_is_the_plain_one():
    torch.manual_seed(0)
    plain, inhibited = ASPP(6, 8, (1, 2, 3)).eval(), LIASPP(6, 8, (1, 2, 3)).eval()
    loads_all_but_w(inhibited, plain)
    x = torch.rand(2, 6, 9, 7)
    assert torch.equal(inhibited(x), plain(x))
    # A signed map: the point and pooled branches see it whole, the inhibited ones its ReLU.
    signed = x - 0.5
    assert not torch.equal(inhibited(signed), plain(signed))
    parts = [plain.point(signed), *(b(signed.relu()) for b in plain.atrous)]
    parts.append(plain.pool(signed.mean((2, 3), keepdim=True)).expand(-1, -1, 9, 7))
    torch.testing.assert_close(inhibited(signed), plain.merge(torch.cat(parts, 1)))


def test_pooled_branch_can_be_left_out():
    assert ASPP(6, 8, (1, 2), image_pooling=False).merge[0].in_channels == 3 * 8
    with pytest.raises(FoveateError, match="ASPP expects"):
        ASPP(6, 8, ())


def test_dense_pyramid_grows_by_64():
    dense = DenseASPP(320)
    assert [layer[1].depthwise.dilation[0] for layer in dense.layers] == [3, 6, 12, 18, 24]
    assert [layer[0][0].in_channels for layer in dense.layers] == [320, 384, 448, 512, 576]
    assert dense.merge[0].in_channels == 640
    assert len(list(li_layers(dense))) == 5
    loads_all_but_w(dense, DenseASPP(320, inhibited=False))
    assert DenseASPP(4, 8, (1, 2), 6, 5).eval()(torch.rand(1, 4, 5, 6)).shape == (1, 8, 5, 6)


# --- backbones -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", MOBILENET)
def test_mobilenet_options_are_the_published_blocks(option):
    """Checklist: placements by block index; by default behind the expansion."""
    net = MobileNetV2(output_stride=16)
    names = inhibit_mobilenet(net, option)
    inputs = [32, *CHANNELS[:-1]]
    expanded = [c * (6 if k else 1) for k, c in enumerate(inputs)]
    found = {name: layer.channels for name, layer in li_layers(net)}
    assert len(found) == len(names)
    expected = {
        f"features.{k + 1}.conv.{1 if k else 0}.0.inhibition": expanded[k]
        for k in MOBILENET[option]
    }
    assert found == expected
    for name in names:
        assert net.get_submodule(name).groups == net.get_submodule(name).in_channels


def test_mobilenet_can_be_inhibited_at_a_blocks_input():
    net = MobileNetV2()
    assert inhibit_mobilenet(net, [15], "after_input") == ["features.16.conv.0.0"]
    (layer,) = [layer for _, layer in li_layers(net)]
    assert layer.channels == 160
    assert layer.rectify_input


def test_inhibited_mobilenet_with_w_0_is_the_plain_one():
    torch.manual_seed(0)
    plain = MobileNetV2Features(0.5).eval()
    inhibited = MobileNetV2Features(0.5, option="g").eval()
    loads_all_but_w(inhibited, plain)
    x = torch.rand(1, 3, 33, 40)
    for one, other in zip(inhibited(x), plain(x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("option", "convs"),
    [
        ("a", ["3.5", "4.0", "4.1", "4.2"]),
        ("b", ["4.0", "4.1", "4.2"]),
        ("c", ["3.5", "4.2"]),
        ("d", ["4.2"]),
        ("e", ["2.3", "3.5", "4.2"]),
        ("f", ["3.5"]),
    ],
)
def test_resnet_options_are_the_published_bottlenecks(option, convs):
    net = ResNet(Bottleneck, (3, 4, 6, 3), (4, 8, 16, 32), classes=2)
    assert inhibit_resnet(net, option) == [f"layer{name}.conv2" for name in convs]


def test_unknown_placements_are_one_sentence():
    with pytest.raises(FoveateError, match="no option 'i'"):
        inhibit_mobilenet(MobileNetV2(width=0.1), "i")
    with pytest.raises(FoveateError, match="numbered 0 to 16"):
        inhibit_mobilenet(MobileNetV2(width=0.1), [17])
    with pytest.raises(FoveateError, match="'after_input', got 'before'"):
        inhibit_mobilenet(MobileNetV2(width=0.1), "d", "before")
    with pytest.raises(FoveateError, match="no option 'z'"):
        inhibit_resnet(resnet18(), "z")
    with pytest.raises(FoveateError, match="four stages of bottlenecks"):
        inhibit_resnet(resnet18())


def test_resnet_keeps_stride_16_by_rates_of_the_multi_grid():
    net = ResNetFeatures(50, option="d").eval()
    convs = [net.get_submodule(f"layer4.{k}.conv2") for k in range(3)]
    assert [(c.stride, c.dilation, c.padding) for c in convs] == [
        ((1, 1), (r, r), (r, r)) for r in (2, 4, 8)
    ]
    assert [name for name, _ in li_layers(net)] == ["layer4.2.conv2.inhibition"]
    assert [m.out_channels for m in net.stem.modules() if isinstance(m, nn.Conv2d)] == [64, 64, 128]
    with torch.no_grad():
        low, last = net(torch.rand(1, 3, 64, 96))
    assert low.shape == (1, 256, 16, 24)
    assert last.shape == (1, 2048, 4, 6)


# --- whole networks ------------------------------------------------------------------------


def test_deeplab_with_mobilenet_adds_the_sum_of_channels():
    """Checklist: the increase is the sum of C only: 0.106 % here, below 0.1 % with ResNet."""
    net = DeepLabV3Plus(MobileNetV2Features(option="f"), 21).eval()
    # blocks 9, 12, 15 expand 64, 96, 160 by six; the pyramid has three times 320
    report = inhibition_report(net)
    assert report.parameters == 6 * (64 + 96 + 160) + 3 * 320
    assert report.share == pytest.approx(2880 / 2_722_693)
    assert isinstance(net.head, DeepLabDecoder)
    assert net.head.reduce[0].in_channels == 24
    assert net.head.reduce[0].out_channels == 48
    with torch.no_grad():
        assert net(torch.rand(1, 3, 65, 50)).shape == (1, 21, 65, 50)
    without = DeepLabV3Plus(MobileNetV2Features(), 5, inhibited=False, decoder=False).eval()
    assert not list(li_layers(without))
    with torch.no_grad():
        assert without(torch.rand(1, 3, 32, 32)).shape == (1, 5, 32, 32)


def test_tiny_arms_share_everything_but_w():
    torch.manual_seed(0)
    plain, inhibited = TinyDilated(5, inhibited=False).eval(), TinyDilated(5).eval()
    loads_all_but_w(inhibited, plain)
    assert inhibition_report(inhibited).parameters == 96 + 3 * 32
    x = torch.rand(2, 3, 32, 40)
    assert inhibited(x).shape == (2, 5, 32, 40)
    # With w = 0 they differ by the ReLU in front of the pyramid and by nothing else.
    for branch in plain.aspp.atrous:
        branch.register_forward_pre_hook(lambda m, args: (args[0].relu(),))
    assert torch.equal(inhibited(x), plain(x))
    with pytest.raises(FoveateError, match="multiples of 4"):
        plain(torch.zeros(1, 3, 30, 32))


@pytest.mark.parametrize("inhibited", [True, False])
def test_a_decision_depends_on_the_stated_radius_only(inhibited):
    torch.manual_seed(0)
    net = TinyDilated(2, inhibited=inhibited, image_pooling=False, init=(0.05, 0.1)).eval()
    if not inhibited:
        net = TinyDilated(2, inhibited=False, image_pooling=False).eval()
    for p in net.parameters():  # no ReLU and no ReLU6 may hide a path
        p.data.abs_().mul_(0.1)
    size, reach = 192, 0
    for at in range(96, 100):  # all phases of the stride
        x = torch.rand(1, 3, size, size).requires_grad_()
        net(x)[0, 0, at, at].backward()
        touched = x.grad.abs().sum(1)[0].nonzero()
        reach = max(reach, int((touched - at).abs().max()))
    assert reach <= net.radius
    assert net.radius - reach < 8  # and it is not much too large
    pooled = TinyDilated(2, inhibited=inhibited).eval()
    x = torch.rand(1, 3, size, size).requires_grad_()
    pooled(x)[0, :, 96, 96].sum().backward()
    assert float(x.grad[0, :, 0, 0].abs().sum()) > 0  # from corner to centre


def test_zone_and_start_reach_every_layer():
    net = TinyDilated(3, zone=5, init=(0.1, 0.1))
    for _, layer in li_layers(net):
        assert layer.zone == 5
        assert torch.equal(layer.li_weight, torch.full_like(layer.li_weight, 0.1))
    assert net.radius == TinyDilated(3).radius + 8
