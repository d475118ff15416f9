"""Networks that label every pixel, with and without lateral inhibition.

LI-Conv is a part, not a network: here it is put where its authors put it (Wang et al. 2020, arXiv
2006.03708, and their TensorFlow code), in front of the dilated convolutions of DeepLab's
*atrous spatial pyramid pooling* and of some late blocks of a backbone::

    F  = backbone(x)                       some blocks inhibited by their options
    y  = [ pool(F), conv1(F), S_6(LI(F)), S_12(LI(F)), S_18(LI(F)) ]
    z  = conv1(y)
    logits = decoder(z, low)               DeepLabv3+: joined with an early map, or a 1x1 conv

``S_r`` is a separable convolution with rate r. Plain and inhibited networks are made of the same
parts under the same names: what the plain one does not have are the keys that end in
``li_weight``. So either loads the other's weights, and two arms of an experiment can start equal.

Where the backbone ends with a linear bottleneck (MobileNetV2), F has negative values, which the
ReLU of the inhibited branches drops; there w = 0 is a ReLU and not the identity.

:class:`TinyDilated` is our own small network of these parts, for experiments on one CPU core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import add_lateral_inhibition
from foveate.nn.mobilenet import InvertedResidual, MobileNetV2
from foveate.nn.resnet import Bottleneck, ResNet
from foveate.scenes.deeplab import ASPP, LIASPP, DeepLabDecoder, conv_bn_relu, resized

__all__ = [
    "MOBILENET_OPTIONS",
    "RESNET_OPTIONS",
    "DeepLabV3Plus",
    "MobileNetV2Features",
    "ResNetFeatures",
    "TinyDilated",
    "inhibit_mobilenet",
    "inhibit_resnet",
]

# Option -> which of the 17 blocks, counted from 0, are inhibited (P). There is no option i.
MOBILENET_OPTIONS: dict[str, tuple[int, ...]] = {
    "a": (2, 4, 5, 7, 10, 14),
    "b": (2, 5, 9, 12, 15),
    "c": (16,),
    "d": (15,),
    "e": (12, 15),  # ADE20K
    "f": (9, 12, 15),  # VOC 2012, CelebAMask-HQ
    "g": tuple(range(17)),
    "h": tuple(range(6)),
    "j": (9, 12, 15, 16),
    "k": (13, 14, 15),
    "l": (13, 14, 15, 16),
    "m": (15, 16),
}

# Option -> (stage, "last" or "all" of its bottlenecks) (P); d was released.
RESNET_OPTIONS: dict[str, tuple[tuple[int, Literal["last", "all"]], ...]] = {
    "a": ((3, "last"), (4, "all")),
    "b": ((4, "all"),),
    "c": ((3, "last"), (4, "last")),
    "d": ((4, "last"),),
    "e": ((2, "last"), (3, "last"), (4, "last")),
    "f": ((3, "last"),),
}

_BLOCKS = 17


# ------------------------------------------------------------------------------ backbones


def inhibit_mobilenet(
    net: MobileNetV2,
    option: str | Iterable[int] = "f",
    position: Literal["after_expansion", "after_input"] = "after_expansion",
    init: tuple[float, float] = (0.0, 0.0),
    zone: int = 3,
) -> list[str]:
    """Inhibit blocks of a MobileNetV2, in place; names of the convolutions behind the inhibition.

    Parameters
    ----------
    option
        A key of `MOBILENET_OPTIONS`, or numbers of blocks from 0 to 16.
    position
        ``after_expansion`` (P: default): in front of the depthwise convolution, whose input is
        ReLU6's. ``after_input``: in front of the 1x1 that widens; that input is signed and its
        negative part is dropped. Block 0 does not widen: its only place is the depthwise one.

    Raises
    ------
    FoveateError
        Unknown option, block or position.
    """
    if isinstance(option, str) and option not in MOBILENET_OPTIONS:
        raise FoveateError(
            f"no option {option!r} of inhibited MobileNetV2 blocks; there are "
            f"{', '.join(MOBILENET_OPTIONS)}"
        )
    blocks = MOBILENET_OPTIONS[option] if isinstance(option, str) else tuple(option)
    if not blocks or not set(blocks) <= set(range(_BLOCKS)):
        raise FoveateError(f"blocks of MobileNetV2 are numbered 0 to 16, got {blocks}")
    if position not in ("after_expansion", "after_input"):
        raise FoveateError(f"position is 'after_expansion' or 'after_input', got {position!r}")
    names = []
    for block in blocks:
        layers = cast(InvertedResidual, net.features[block + 1]).conv  # 0 is the stem
        depthwise = len(layers) - 3  # then 1x1 and BN
        place = depthwise if position == "after_expansion" else 0
        names.append(f"features.{block + 1}.conv.{place}.0")
    return add_lateral_inhibition(net, names, zone, init=init, rectify_input=True)


class MobileNetV2Features(nn.Module):
    """MobileNetV2 up to its last bottleneck: ``(B, 3, H, W)`` -> (low at stride 4, last map).

    Attributes
    ----------
    low_channels, channels
        Of the two maps: 24 and 320 at width 1.
    """

    def __init__(
        self,
        width: float = 1.0,
        output_stride: Literal[8, 16, 32] = 16,
        option: str | None = None,
        init: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        net = MobileNetV2(1, width, output_stride)
        if option is not None:
            inhibit_mobilenet(net, option, init=init)
        self.features = cast(nn.Sequential, net.features[:-1])  # names stay those of MobileNetV2
        last = [m.out_channels for m in self.features.modules() if isinstance(m, nn.Conv2d)]
        self.channels: int = last[-1]
        low = [m.out_channels for m in self.features[:4].modules() if isinstance(m, nn.Conv2d)]
        self.low_channels: int = low[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        low = self.features[:4](x)
        return low, self.features[4:](low)


def inhibit_resnet(
    net: ResNet,
    option: str = "d",
    init: tuple[float, float] = (0.0, 0.0),
    zone: int = 3,
) -> list[str]:
    """Inhibit the 3x3 convolutions of bottlenecks, in place; their names.

    Raises
    ------
    FoveateError
        Unknown option, or a network without four stages of bottlenecks.
    """
    if option not in RESNET_OPTIONS:
        raise FoveateError(
            f"no option {option!r} of inhibited ResNet blocks; there are "
            f"{', '.join(RESNET_OPTIONS)}"
        )
    stages = [getattr(net, name) for name in net.stage_names]
    if len(stages) != 4 or not all(isinstance(b, Bottleneck) for stage in stages for b in stage):
        raise FoveateError("inhibit_resnet expects four stages of bottlenecks, as in ResNet-50")
    names = [
        f"layer{stage}.{block}.conv2"
        for stage, which in RESNET_OPTIONS[option]
        for block in range(len(stages[stage - 1]))[0 if which == "all" else -1 :]
    ]
    return add_lateral_inhibition(net, names, zone, init=init)


class ResNetFeatures(nn.Module):
    """ResNet-50 or -101 with DeepLab's stem, at output stride 16: (low at stride 4, last map).

    The stem is three 3x3 convolutions, 64, 64 and 128 wide ("beta"), and a max-pooling. The last
    stage keeps its size; its three 3x3 convolutions have twice the rates of `multi_grid`.

    Attributes
    ----------
    low_channels, channels
        Of the two maps: 256 and 2048.
    """

    def __init__(
        self,
        layers: Literal[50, 101] = 50,
        option: str | None = None,
        multi_grid: tuple[int, int, int] = (1, 2, 4),
        init: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        if layers not in (50, 101):
            raise FoveateError(f"ResNetFeatures has 50 or 101 layers, got {layers}")
        net = ResNet(Bottleneck, (3, 4, 6 if layers == 50 else 23, 3), classes=1)
        self.stem = nn.Sequential(
            conv_bn_relu(3, 64, 3, 2),
            conv_bn_relu(64, 64, 3),
            conv_bn_relu(64, 128, 3),
            nn.MaxPool2d(3, 2, 1),
        )
        net.get_submodule("layer1")[0] = Bottleneck(128, 64)  # type: ignore[operator]
        last = net.get_submodule("layer4")
        for block, grid in zip(last.children(), multi_grid, strict=True):
            conv = cast(nn.Conv2d, block.get_submodule("conv2"))
            conv.stride, conv.dilation, conv.padding = (1, 1), (2 * grid,) * 2, (2 * grid,) * 2
        cast(nn.Conv2d, last.get_submodule("0.downsample.0")).stride = (1, 1)
        if option is not None:
            inhibit_resnet(net, option, init)
        for name in net.stage_names:
            self.add_module(name, net.get_submodule(name))
        self.low_channels, self.channels = 256, 2048

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        low = self.get_submodule("layer1")(self.stem(x))
        x = low
        for name in ("layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
        return low, x


class DeepLabV3Plus(nn.Module):
    """Backbone, pyramid, decoder: ``(B, 3, H, W)`` float -> logits ``(B, classes, H, W)``.

    Parameters
    ----------
    backbone
        Gives an early and the last map, and their numbers of channels.
    inhibited
        :class:`LIASPP` in place of :class:`ASPP`. The backbone has its own option.
    decoder
        False: a 1x1 convolution on the pyramid, as without ``decoder_output_stride`` (P).
    init
        Of w in the pyramid.
    """

    def __init__(
        self,
        backbone: MobileNetV2Features | ResNetFeatures,
        classes: int,
        inhibited: bool = True,
        decoder: bool = True,
        depth: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        init: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = (
            LIASPP(backbone.channels, depth, rates, init=init)
            if inhibited
            else ASPP(backbone.channels, depth, rates)
        )
        self.head: nn.Module = (
            DeepLabDecoder(backbone.low_channels, depth, classes, depth=depth)
            if decoder
            else nn.Conv2d(depth, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        low, high = self.backbone(x)
        high = self.aspp(high)
        y = self.head(low, high) if isinstance(self.head, DeepLabDecoder) else self.head(high)
        return resized(y, x.shape[2:])


# ------------------------------------------------------------------------------ small


class TinyDilated(nn.Module):
    """DeepLab in small: stride 4, about 43,000 parameters, 13 M multiply-adds at 64x64 (D).

    Two 3x3 convolutions of stride 2 to 16 and 32 channels, three inverted residuals (expansion 3,
    rates 1, 2, 2; the last inhibited behind its expansion), a pyramid of depth 32 with rates 2, 4,
    6, and the decoder on the map of stride 2, reduced to 8 channels.

    Parameters
    ----------
    inhibited
        Lateral inhibition in the last block and in the pyramid.
    image_pooling
        See :class:`ASPP`. Without it a decision depends on `radius` pixels around it only.
    zone, init
        Of `LateralInhibition2d`.

    Attributes
    ----------
    multiple
        Height and width must be multiples of it.
    radius
        No pixel farther away than this, along rows or columns, has a part in a decision (but
        for the pooled branch).

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float -> logits ``(B, classes, H, W)``.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int = 3,
        inhibited: bool = True,
        image_pooling: bool = True,
        zone: int = 3,
        init: tuple[float, float] = (0.0, 0.0),
        rates: Sequence[int] = (2, 4, 6),
    ) -> None:
        super().__init__()
        if min(classes, in_channels) < 1:
            raise FoveateError(
                f"TinyDilated expects classes and channels, got {classes=}, {in_channels=}"
            )
        self.multiple = 4
        dilations = (1, 2, 2)
        self.stem = conv_bn_relu(in_channels, 16, 3, 2)
        self.down = conv_bn_relu(16, 32, 3, 2)
        self.blocks = nn.Sequential(*(InvertedResidual(32, 32, 1, 3, d) for d in dilations))
        self.aspp: ASPP
        if inhibited:
            self.aspp = LIASPP(32, 32, rates, image_pooling, zone=zone, init=init)
            add_lateral_inhibition(self.blocks, ["2.conv.1.0"], zone, init=init, rectify_input=True)
        else:
            self.aspp = ASPP(32, 32, rates, image_pooling)
        self.decoder = DeepLabDecoder(16, 32, classes, reduced=8, depth=32)
        inhibition = 2 * (zone // 2) if inhibited else 0  # of the block and of the pyramid
        # Pixels of the map at stride 4, 2 and 1; each enlargement looks at one neighbour.
        self.radius: int = 4 * (sum(dilations) + max(rates) + inhibition + 1) + 2 * (2 + 1 + 1) + 1

    def forward(self, x: Tensor) -> Tensor:
        """Label every pixel.

        Raises
        ------
        FoveateError
            Height or width is no multiple of 4.
        """
        if isinstance(x, Tensor) and (x.shape[-1] % self.multiple or x.shape[-2] % self.multiple):
            raise FoveateError(
                f"TinyDilated expects height and width in multiples of {self.multiple}, got "
                f"{tuple(x.shape)}; pad the picture"
            )
        low = self.stem(x)
        high = self.aspp(self.blocks(self.down(low)))
        return resized(self.decoder(low, high), x.shape[2:])
