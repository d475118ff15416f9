"""MobileNetV2: inverted residuals with linear bottlenecks, dense where a map is wanted.

A block widens, filters each channel by itself and narrows again without a non-linearity (Sandler
et al., CVPR 2018, arXiv 1801.04381)::

    x -> 1x1 to t*C, BN, ReLU6 -> 3x3 depthwise, BN, ReLU6 -> 1x1 to C', BN  (+ x if it fits)

Widths are multiplied by `width` and rounded to multiples of 8, never losing more than a tenth.

*Output stride* is by how much the feature map is smaller than the picture. For segmentation it is
lowered from 32 to 16 or 8: a stride that would go too far becomes 1, and every later depthwise
convolution is dilated by it (DeepLab, Chen et al. 2017, arXiv 1706.05587). The weights do not
change, and the dense map taken at every second (or fourth) pixel *is* the map of stride 32.

Parameter names are torchvision's; :func:`foveate.nn.resnet.load_state` fills them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["InvertedResidual", "MobileNetV2"]

# Expansion t, width C, repeats n, stride s of the first: table 2 of the paper.
_TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _rounded(channels: float) -> int:
    """Nearest multiple of 8, at least 8, at least nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int, stride: int, dilation: int, groups: int
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """One block, ``(B, in_channels, H, W) -> (B, out_channels, ceil(H/stride), ceil(W/stride))``.

    Parameters
    ----------
    expansion
        t; 1 leaves the widening out.
    dilation
        Of the depthwise convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, dilation: int = 1
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        widen = [_conv_bn_relu6(in_channels, hidden, 1, 1, 1, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_bn_relu6(hidden, hidden, 3, stride, dilation, hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2; 3,504,872 parameters at width 1 for 1000 classes.

    Parameters
    ----------
    classes
        Number of outputs.
    width
        Width multiplier.
    output_stride
        8, 16 or 32.
    dropout
        Probability before the classifier, in training.

    Notes
    -----
    ``forward``: ``(B, 3, H, W)`` float -> logits ``(B, classes)``. ``features``: the map ``(B,
    C, H/output_stride, W/output_stride)``, rounded up; ``features[:-1]`` ends with the linear
    bottleneck of 320 channels (at width 1).
    """

    def __init__(
        self,
        classes: int = 1000,
        width: float = 1.0,
        output_stride: Literal[8, 16, 32] = 32,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32) or not 0 < width <= 16 or classes < 1:
            raise FoveateError(
                "MobileNetV2 expects output_stride 8, 16 or 32, 0 < width <= 16 and at least one "
                f"class, got {output_stride=}, {width=}, {classes=}"
            )
        channels = _rounded(32 * width)
        layers: list[nn.Module] = [_conv_bn_relu6(3, channels, 3, 2, 1, 1)]
        reached, dilation = 2, 1
        for expansion, base, repeats, first_stride in _TABLE:
            out_channels = _rounded(base * width)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                lost = 1
                if reached * stride > output_stride:
                    stride, lost = 1, stride
                layers.append(InvertedResidual(channels, out_channels, stride, expansion, dilation))
                reached *= stride
                dilation *= lost  # from the next block on: this one sees pixels not yet spread
                channels = out_channels
        last = _rounded(1280 * max(1.0, width))
        layers.append(_conv_bn_relu6(channels, last, 1, 1, 1, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return x
