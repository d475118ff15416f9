"""The encoder-decoder: wiring against the formula, cost by closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn.segmentation import EncoderDecoder


class Conv(nn.Conv2d):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, bias=False)


def test_forward_is_the_formula():
    torch.manual_seed(0)
    net = EncoderDecoder(widths=(4, 6, 8), classes=3).eval()
    x = torch.randn(2, 3, 16, 24)

    def f(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
        y = F.conv2d(x, conv.weight, None, conv.stride, 1)
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias).relu()

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    (a, b, _), (c, d, _, e, g, _), (h, i, _, j, k, _) = net.encoder
    e1 = f(x, a, b)
    e2 = f(f(e1, c, d), e, g)
    e3 = f(f(e2, h, i), j, k)
    d2 = f(torch.cat((up(e3), e2), 1), *net.decoder[1][:2])
    d1 = f(torch.cat((up(d2), e1), 1), *net.decoder[0][:2])
    head = net.classifier
    torch.testing.assert_close(net(x), up(F.conv2d(d1, head.weight, head.bias)))


def test_first_and_last_convolution_are_real():
    net = EncoderDecoder(Conv)
    real = [name for name, m in net.named_modules() if type(m) is nn.Conv2d]
    assert real == ["encoder.0.0", "classifier"]
    assert sum(isinstance(m, Conv) for m in net.modules()) == 6


def test_only_parts_that_the_engine_has():
    parts = {type(m) for m in EncoderDecoder().modules() if not list(m.children())}
    assert parts == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Upsample}


def test_cost_by_closed_form():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        EncoderDecoder()(torch.empty(1, 3, 176, 240))
    half, quarter, eighth = 88 * 120, 44 * 60, 22 * 30
    by_hand = 9 * half * 3 * 16
    by_hand += 9 * quarter * (16 * 32 + 32 * 32) + 9 * eighth * (32 * 64 + 64 * 64)
    by_hand += 9 * quarter * (64 + 32) * 32 + 9 * half * (32 + 16) * 16 + half * 16 * 11
    assert counter.get_total_flops() / 2 == by_hand


@settings(deadline=None, max_examples=20)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    classes=st.integers(1, 12),
)
def test_shapes(widths, rows, columns, classes):
    net = EncoderDecoder(widths=widths, classes=classes).eval()
    size = rows * net.multiple, columns * net.multiple
    assert net.multiple == 2 ** len(widths)
    assert net(torch.randn(2, 3, *size)).shape == (2, classes, *size)


def test_net_can_be_traced():
    net = EncoderDecoder(widths=(2, 3)).eval()
    x = torch.randn(1, 3, 8, 12)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize("size", [(180, 240), (176, 236)])
def test_size_that_does_not_fit_is_one_sentence(size):
    with pytest.raises(FoveateError, match=r"multiples of 8, got \(1, 3, 1[78].* pad the picture"):
        EncoderDecoder()(torch.empty(1, 3, *size))


@pytest.mark.parametrize("changes", [{"widths": (8,)}, {"widths": (1,) * 7}, {"classes": 0}])
def test_bad_sizes_are_one_sentence(changes):
    with pytest.raises(FoveateError, match="two to six positive widths"):
        EncoderDecoder(**changes)
