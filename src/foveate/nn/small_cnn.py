"""Two plain nets of multi-branch binary networks: the CIFAR VGG of BNN, and a small one.

Neither has skips: convolution -> (max-pooling) -> BN -> activation, again and again. With few bits
the factory's layers limit the range of their own input and quantise it, so the activation here is
what the *full-precision* net has, or what limits the range from below: ``nn.ReLU`` before a
quantiser that clips at 1 is HReLU, ``nn.Identity`` before one that clips at -1 and 1 is HTanh.

Sources: Courbariaux et al., BNN, 2016 (arXiv 1602.02830), whose CIFAR net MBN uses (Sun et al.,
AAAI 2019); methods/multi-branch-binary.md, "Architecture".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.conv_factory import ConvFactory, LinearFactory, plain_conv, plain_linear

__all__ = ["BNNVGG", "MBNMini"]


class MBNMini(nn.Module):
    """The desk's net for 28x28 grey pictures: four 3x3 convolutions, global average, classifier.

    1->32 (stride 2, real), 32->64 (stride 2), 64->64, 64->128 (stride 2), 128->classes (real);
    padding 1, BN and activation after every convolution. 3.9 M multiply-adds.

    Parameters
    ----------
    conv
        Makes the three inner convolutions.
    activation
        Makes the activation after every BN.
    in_channels, classes
        Number of input channels and of outputs.
    long
        The larger form: stem of stride 1, then 2x2 max-pooling before a second convolution of
        stride 1. The specification names the stem, the pooling and the sum of 14.7 M
        multiply-adds; that the pooling stands for the stride is our reading, the one that gives
        the sum.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float -> logits ``(B, classes)``.
    """

    def __init__(
        self,
        conv: ConvFactory = plain_conv,
        activation: Callable[[], nn.Module] = nn.ReLU,
        in_channels: int = 1,
        classes: int = 10,
        long: bool = False,
    ) -> None:
        super().__init__()
        stride = 1 if long else 2
        self.conv1 = plain_conv(in_channels, 32, 3, stride, 1)
        self.pool1 = nn.MaxPool2d(2) if long else nn.Identity()
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = activation()
        self.conv2 = conv(32, 64, 3, stride, 1)
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = activation()
        self.conv3 = conv(64, 64, 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(64)
        self.act3 = activation()
        self.conv4 = conv(64, 128, 3, 2, 1)
        self.bn4 = nn.BatchNorm2d(128)
        self.act4 = activation()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = plain_linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.act1(self.bn1(self.pool1(self.conv1(x))))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.bn4(self.conv4(x)))
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


class BNNVGG(nn.Module):
    """2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-2x1024FC-10 with BN, for 32x32 pictures.

    Parameters
    ----------
    conv, linear
        Make the inner layers.
    first, last
        Make the first convolution and the last linear layer: real unless given. To quantise all
        layers as BNN does, pass a `first` that quantises weights only (the picture is not binary).
    activation
        Makes the activation after every BN.
    widths
        Of the three pairs of convolutions.
    hidden
        Width of the two hidden linear layers.
    size
        Height and width of the pictures, a multiple of 8.
    in_channels, classes
        Number of input channels and of outputs.

    Notes
    -----
    ``forward``: ``(B, in_channels, size, size)`` float -> logits ``(B, classes)``. Max-pooling
    stands before BN, as in BNN: pooling after a sign would lose most of its choice.
    """

    def __init__(
        self,
        conv: ConvFactory = plain_conv,
        linear: LinearFactory = plain_linear,
        *,
        first: ConvFactory = plain_conv,
        last: LinearFactory = plain_linear,
        activation: Callable[[], nn.Module] = nn.ReLU,
        widths: Sequence[int] = (128, 256, 512),
        hidden: int = 1024,
        size: int = 32,
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or min(*widths, hidden, classes) < 1 or size < 8 or size % 8:
            raise FoveateError(
                "BNNVGG expects three widths, positive sizes and pictures of a multiple of 8 "
                f"pixels, got widths={tuple(widths)}, {hidden=}, {classes=}, {size=}"
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            for pool in (False, True):
                make = conv if layers else first
                layers.append(make(channels, width, 3, 1, 1))
                if pool:
                    layers.append(nn.MaxPool2d(2))
                layers += [nn.BatchNorm2d(width), activation()]
                channels = width
        self.features = nn.Sequential(*layers)
        flat = channels * (size // 8) ** 2
        self.classifier = nn.Sequential(
            linear(flat, hidden),
            nn.BatchNorm1d(hidden),
            activation(),
            linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            activation(),
            last(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.classifier(torch.flatten(self.features(x), 1))
        return x
