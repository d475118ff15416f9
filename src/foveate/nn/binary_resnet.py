"""The residual net that binary convolutions want: normalise before, skip over every one.

A 1-bit convolution sees only the signs of its input, so a batch normalisation stands directly
before it (its shift is the learnt threshold), the non-linearity stands after it, and an identity
runs past *every* convolution so that real values survive (Bi-Real Net, Liu et al., ECCV 2018)::

    x1 = skip(x) + PReLU( conv3( BN(x) ) )
    x2 = x1      + PReLU( conv3( BN(x1) ) )

``conv3`` comes from the caller's factory and does all that few bits need: it quantises its input
and weights and applies its own output scale. The stream ``x`` is real. Stem, classifier and the
skip ``AvgPool2x2 -> 1x1 conv -> BN`` of a block that changes the shape stay real.

Three stems: ``basic`` (7x7/2, max-pooling), ``dabnn`` (cheap, of the daBNN authors) and ``cifar``
(3x3/1). Source: methods/binary-training-basics.md, section 4 and "Architecture used for the desk".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.conv_factory import ConvFactory, plain_conv
from foveate.nn.resnet import BasicBlock, ResNet

__all__ = [
    "BinResNetS",
    "BinaryResNet",
    "DaBNNStem",
    "DoubleSkipBlock",
    "binary_resnet18",
    "real_twin",
]

BinaryStem = Literal["basic", "dabnn", "cifar"]
Activation = Literal["prelu", "relu"]


class DoubleSkipBlock(nn.Module):
    """Two convolutions, each with a skip of its own.

    ``(B, in_channels, H, W) -> (B, out_channels, ceil(H/stride), ceil(W/stride))``.

    Parameters
    ----------
    conv
        Makes both 3x3 convolutions; the first has the stride.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, conv: ConvFactory = plain_conv
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride, 1)
        self.prelu1 = nn.PReLU(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            # ceil_mode and the true divisor: odd sizes halve as in the convolution beside it,
            # and a window that hangs over the edge is the mean of what is there.
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(
                pool if stride != 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, 1, 1)
        self.prelu2 = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.downsample(x) + self.prelu1(self.conv1(self.bn1(x)))
        x = x + self.prelu2(self.conv2(self.bn2(x)))
        return x


class DaBNNStem(nn.Module):
    """Stem of a quarter of the size at about a third of the cost of a 7x7 convolution.

    3x3/2 to C/2, then two branches {1x1 to C/4, 3x3/2 to C/2} and {3x3/2 max-pooling}, joined by a
    1x1 to C; every convolution with BN and ReLU. ``(B, in, H, W) -> (B, C, H/4, W/4)``, rounded
    up. Source: the daBNN authors' net as in the official EB-Net code (methods, section 4).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.first = _conv_bn_relu(in_channels, half, 3, 2)
        self.squeeze = _conv_bn_relu(half, quarter, 1, 1)
        self.halve = _conv_bn_relu(quarter, half, 3, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.join = _conv_bn_relu(2 * half, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.first(x)
        x = self.join(torch.cat((self.halve(self.squeeze(x)), self.pool(x)), 1))
        return x


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _stem(kind: BinaryStem, in_channels: int, width: int, activation: Activation) -> nn.Module:
    if kind == "dabnn":
        return DaBNNStem(in_channels, width)
    sizes = (7, 2, 3) if kind == "basic" else (3, 1, 1)
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(in_channels, width, *sizes, bias=False)),
        ("bn", nn.BatchNorm2d(width)),
        ("act", nn.PReLU(width) if activation == "prelu" else nn.ReLU()),
    ]
    if kind == "basic":
        layers.append(("pool", nn.MaxPool2d(3, 2, 1)))
    return nn.Sequential(OrderedDict(layers))


class BinaryResNet(nn.Module):
    """Real stem, stages ``layer1 ... layerN`` of double-skip blocks, global average, real ``fc``.

    Parameters
    ----------
    conv
        Makes the 3x3 convolutions of the blocks and nothing else.
    widths, blocks
        Width and number of blocks of each stage; every stage but the first halves the picture.
    classes, in_channels
        Number of outputs and of input channels.
    stem
        ``basic``, ``dabnn`` (needs a first width divisible by 4) or ``cifar``.
    stem_activation
        After the stem's BN: ``prelu`` as in the strong baseline, ``relu`` as in the final net of
        real-to-binary. The ``dabnn`` stem has ReLU always.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float -> logits ``(B, classes)``. `stage_names`
    and `block_names` name stages and blocks in order, as in :class:`foveate.nn.resnet.ResNet`, so
    that attention maps of a student and of its :func:`real_twin` pair one to one.
    """

    def __init__(
        self,
        conv: ConvFactory = plain_conv,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        classes: int = 1000,
        in_channels: int = 3,
        stem: BinaryStem = "basic",
        stem_activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) or not blocks or min(*blocks, *widths, classes) < 1:
            raise FoveateError(
                "BinaryResNet expects one width and at least one block for each stage and at "
                f"least one class, got blocks={tuple(blocks)}, widths={tuple(widths)}, {classes=}"
            )
        if stem not in ("basic", "dabnn", "cifar") or stem_activation not in ("prelu", "relu"):
            raise FoveateError(
                "BinaryResNet expects stem 'basic', 'dabnn' or 'cifar' and stem_activation "
                f"'prelu' or 'relu', got {stem!r} and {stem_activation!r}"
            )
        if stem == "dabnn" and widths[0] % 4:
            raise FoveateError(
                f"the stem 'dabnn' needs a first width divisible by 4, got {widths[0]}"
            )
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        self.classes, self.in_channels, self.stem_kind = classes, in_channels, stem
        self.stem = _stem(stem, in_channels, widths[0], stem_activation)
        self.stage_names: tuple[str, ...] = tuple(f"layer{i + 1}" for i in range(len(blocks)))
        self.block_names: tuple[str, ...] = tuple(
            f"{stage}.{index}"
            for stage, count in zip(self.stage_names, blocks, strict=True)
            for index in range(count)
        )
        channels = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(DoubleSkipBlock(channels, width, stride, conv))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.stem(x)
        for stage in self.stage_names:
            x = self.get_submodule(stage)(x)
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


def binary_resnet18(
    conv: ConvFactory = plain_conv,
    classes: int = 1000,
    stem: BinaryStem = "basic",
    stem_activation: Activation = "prelu",
) -> BinaryResNet:
    """ResNet-18's grid: 16 convolutions of the factory, 3 real skips.

    At 224x224 the factory's convolutions take 1,676,279,808 multiply-adds, the real ones of the
    ``basic`` stem, the skips and the classifier 137,793,536.
    """
    return BinaryResNet(conv, classes=classes, stem=stem, stem_activation=stem_activation)


class BinResNetS(BinaryResNet):
    """The desk's net for 16x16 to 32x32 pictures: ``cifar`` stem, three stages.

    Parameters
    ----------
    conv
        Makes the ``6 * blocks`` binary convolutions.
    widths
        (8, 16, 32) at the desk, (16, 32, 64) for long runs.
    blocks
        Blocks per stage.
    """

    def __init__(
        self,
        conv: ConvFactory = plain_conv,
        widths: Sequence[int] = (8, 16, 32),
        blocks: int = 2,
        classes: int = 10,
        in_channels: int = 3,
        stem_activation: Activation = "prelu",
    ) -> None:
        super().__init__(
            conv, widths, (blocks,) * len(widths), classes, in_channels, "cifar", stem_activation
        )


def real_twin(net: BinaryResNet) -> ResNet:
    """The usual ReLU net on the same grid: the first teacher, and the reference of accuracy.

    Its blocks have the names and the output shapes of those of `net`.
    """
    return ResNet(
        BasicBlock,
        net.blocks,
        net.widths,
        net.classes,
        net.in_channels,
        stem="cifar" if net.stem_kind == "cifar" else "imagenet",
    )
