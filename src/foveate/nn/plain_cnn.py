"""Nets without skips for small pictures: LeNet, and VGG with batch normalisation.

    LeNet   conv 5x5, ReLU, average-pool 2, twice; then linear layers
    VGG     conv 3x3, BN, ReLU, n times, then max-pool 2, stage after stage; mean, linear layer

Sources: LeCun et al., Proc. IEEE 86(11), 1998, for the LeNet shape (ReLU and no partial
connections, as is usual today); Simonyan & Zisserman, ICLR 2015 (arXiv 1409.1556), for the VGG
shape. Its form for CIFAR has BN and one linear layer, as the widely used PyTorch models have.

>>> sum(p.numel() for p in LeNet().parameters())
44426
>>> sum(p.numel() for p in vgg19().parameters())
20040522
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["VGG", "LeNet", "vgg19"]


class LeNet(nn.Module):
    """Two 5x5 convolutions of 6 and 16 channels without padding, each average-pooled, then linear.

    Parameters
    ----------
    hidden
        Widths of the hidden linear layers; ``(120,)`` has two linear layers in all.
    classes, in_channels
        Number of outputs and of input channels.
    size
        Height and width of the pictures, at least 16.

    Notes
    -----
    ``forward``: ``(B, in_channels, size, size)`` float -> logits ``(B, classes)``.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (120, 84),
        classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
    ) -> None:
        super().__init__()
        if min((*hidden, classes, in_channels)) < 1 or size < 16:
            raise FoveateError(
                "LeNet expects positive widths and pictures of at least 16 pixels, got "
                f"hidden={tuple(hidden)}, {classes=}, {in_channels=}, {size=}"
            )
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        side = ((size - 4) // 2 - 4) // 2
        widths = [16 * side * side, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.classifier = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.classifier(torch.flatten(self.features(x), 1))
        return x


class VGG(nn.Module):
    """Stages of 3x3 convolutions with BN and ReLU, each halved by max-pooling; mean; classifier.

    Parameters
    ----------
    widths
        Channels of each stage.
    depths
        Convolutions of each stage.
    classes, in_channels
        Number of outputs and of input channels.
    bias
        Whether the convolutions have a bias. BN takes it away again, so that its gradient is
        nothing but rounding error: an optimiser that looks at signs moves it all the same.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float -> logits ``(B, classes)``; H and W are at least
    2 to the number of stages.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] = (1, 1, 1),
        classes: int = 10,
        in_channels: int = 3,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = (*widths, *depths, classes, in_channels)
        if not widths or len(widths) != len(depths) or min(sizes) < 1:
            raise FoveateError(
                "VGG expects one width and at least one convolution for each stage and positive "
                f"sizes, got widths={tuple(widths)}, depths={tuple(depths)}, {classes=}, "
                f"{in_channels=}"
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for width, depth in zip(widths, depths, strict=True):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=bias),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
        return x


def vgg19(classes: int = 10) -> VGG:
    """VGG-19 for 32x32 pictures: 16 convolutions with bias and BN, one linear layer, 20.04 M."""
    return VGG((64, 128, 256, 512, 512), (2, 2, 4, 4, 4), classes, bias=True)
