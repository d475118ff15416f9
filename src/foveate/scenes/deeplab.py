"""Parts of DeepLab that turn a feature map into labels: pyramid and decoder, plain and inhibited.

*Atrous spatial pyramid pooling* (Chen et al. 2017, arXiv 1706.05587) looks at a map with several
rates at once; :class:`LIASPP` puts lateral inhibition in front of its dilated convolutions (Wang et
al. 2020, arXiv 2006.03708). The decoder of DeepLabv3+ (Chen et al., ECCV 2018) joins the result
with an early, larger map. An inhibited part has the keys of the plain one and, in addition, some
that end in ``li_weight``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import LISeparableConv2d, SeparableConv2d

__all__ = ["ASPP", "LIASPP", "DeepLabDecoder", "DenseASPP", "conv_bn_relu", "resized"]


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, BN, ReLU; the size only changes by the stride."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear ``(B, C, h, w) -> (B, C, *size)``, corners of pixels not aligned."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, ``(B, in_channels, h, w) -> (B, depth, h, w)``.

    Parameters
    ----------
    depth
        Channels of every branch and of the result.
    rates
        One separable 3x3 convolution for each; (6, 12, 18) at output stride 16.
    image_pooling
        A branch with the mean of the whole map. It makes every decision depend on the whole
        picture; leave it out where a scene is labelled tile by tile. With it, a batch of one
        picture cannot be trained on (its BN would see one value per channel).
    dropout
        Probability behind the last convolution, in training.
    """

    def __init__(
        self,
        in_channels: int,
        depth: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        image_pooling: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not rates or min(in_channels, depth, *rates) < 1:
            raise FoveateError(
                "ASPP expects positive channels, depth and rates, got "
                f"{in_channels=}, {depth=}, rates={tuple(rates)}"
            )
        self.pool = conv_bn_relu(in_channels, depth, 1) if image_pooling else None
        self.point = conv_bn_relu(in_channels, depth, 1)
        self.atrous = nn.ModuleList(SeparableConv2d(in_channels, depth, 3, rate) for rate in rates)
        branches = len(rates) + 1 + image_pooling
        self.merge = conv_bn_relu(branches * depth, depth, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        parts = [self.point(x), *(branch(x) for branch in self.atrous)]
        if self.pool is not None:
            mean = self.pool(x.mean((2, 3), keepdim=True))
            parts.append(mean.expand(-1, -1, *x.shape[2:]))  # bilinear from one pixel
        y: Tensor = self.dropout(self.merge(torch.cat(parts, 1)))
        return y


class LIASPP(ASPP):
    """:class:`ASPP` with lateral inhibition in front of every dilated convolution, and only there.

    Parameters
    ----------
    zone, sigma, init, rectify_input
        Of `LateralInhibition2d`; its own dilation is 1 at every rate. The authors' first ReLU is
        in front of the filter (read from their code), which matters for signed maps only.
    """

    def __init__(
        self,
        in_channels: int,
        depth: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        image_pooling: bool = True,
        dropout: float = 0.1,
        *,
        zone: int = 3,
        sigma: float = 1.0,
        init: tuple[float, float] = (0.0, 0.0),
        rectify_input: bool = True,
    ) -> None:
        super().__init__(in_channels, depth, rates, image_pooling, dropout)
        self.atrous = nn.ModuleList(
            LISeparableConv2d(
                in_channels,
                depth,
                3,
                rate,
                zone=zone,
                sigma=sigma,
                init=init,
                rectify_input=rectify_input,
            )
            for rate in rates
        )


class DenseASPP(nn.Module):
    """Dilated layers that each see all maps before them (Yang et al., CVPR 2018), as the authors'.

    A layer: 1x1 to `reduced`, BN, ReLU, then separable 3x3 with its rate to `growth`; its result is
    joined to its input. ``(B, in_channels, h, w) -> (B, depth, h, w)``.

    Parameters
    ----------
    inhibited
        Lateral inhibition in front of the dilated convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        depth: int = 256,
        rates: Sequence[int] = (3, 6, 12, 18, 24),
        reduced: int = 256,
        growth: int = 64,
        inhibited: bool = True,
        init: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels = in_channels
        for rate in rates:
            spread = (
                LISeparableConv2d(reduced, growth, 3, rate, init=init)
                if inhibited
                else SeparableConv2d(reduced, growth, 3, rate)
            )
            self.layers.append(nn.Sequential(conv_bn_relu(channels, reduced, 1), spread))
            channels += growth
        self.merge = conv_bn_relu(channels, depth, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        y: Tensor = self.merge(x)
        return y


class DeepLabDecoder(nn.Module):
    """The decoder of DeepLabv3+ (Chen et al., ECCV 2018).

    ``low`` ``(B, low_channels, H, W)`` is reduced by 1x1, ``high`` ``(B, high_channels, h, w)``
    brought to its size; two separable 3x3 convolutions of width `depth` and a 1x1 follow:
    ``(B, classes, H, W)``.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        classes: int,
        reduced: int = 48,
        depth: int = 256,
    ) -> None:
        super().__init__()
        self.reduce = conv_bn_relu(low_channels, reduced, 1)
        self.refine = nn.Sequential(
            SeparableConv2d(high_channels + reduced, depth), SeparableConv2d(depth, depth)
        )
        self.classifier = nn.Conv2d(depth, classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:  # noqa: D102
        joined = torch.cat((resized(high, low.shape[2:]), self.reduce(low)), 1)
        y: Tensor = self.classifier(self.refine(joined))
        return y
