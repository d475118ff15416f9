"""A small encoder-decoder that labels every pixel, of parts that any engine has.

The encoder halves the picture once per level; the decoder doubles it again, and at each level
takes in what the encoder had there (U-Net, Ronneberger et al., MICCAI 2015)::

    e_1 = f(x);  e_i = f(f(e_{i-1}))       halved each time
    d_n = e_n;   d_i = f([up(d_{i+1}), e_i])
    logits = up(conv1(d_1))

``f`` is 3x3 convolution, BN, activation; ``up`` is bilinear by 2 (pixel corners not aligned), and
``[.,.]`` joins channels. Nothing else occurs: no transposed convolution, no unpooling, no
attention. First and last convolution are real, all others come from the factory. The net is our
own; it stands in for the segmentation nets of papers that name none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.conv_factory import ConvFactory, plain_conv

__all__ = ["EncoderDecoder"]


class EncoderDecoder(nn.Module):
    """Pixel labels for street scenes (CamVid) and the like.

    Parameters
    ----------
    conv
        Makes all convolutions but the first and the last.
    classes
        Number of classes; CamVid has 11.
    widths
        One per level, at least two; the picture's height and width must be multiples of `multiple`
        ``= 2 ** len(widths)`` (pad it, and its labels with "void").
    in_channels
        Channels of the input.
    activation
        Makes the activation after every BN; see `foveate.nn.small_cnn`.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float -> logits ``(B, classes, H, W)``.
    """

    def __init__(
        self,
        conv: ConvFactory = plain_conv,
        classes: int = 11,
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if not 2 <= len(widths) <= 6 or min(*widths, classes, in_channels) < 1:
            raise FoveateError(
                "EncoderDecoder expects two to six positive widths, one per level, and at least "
                f"one class and channel, got widths={tuple(widths)}, {classes=}, {in_channels=}"
            )
        self.multiple: int = 2 ** len(widths)

        def f(make: ConvFactory, before: int, after: int, stride: int = 1) -> list[nn.Module]:
            return [make(before, after, 3, stride, 1), nn.BatchNorm2d(after), activation()]

        self.encoder = nn.ModuleList([nn.Sequential(*f(plain_conv, in_channels, widths[0], 2))])
        self.decoder = nn.ModuleList()
        for before, after in itertools.pairwise(widths):
            self.encoder.append(nn.Sequential(*f(conv, before, after, 2), *f(conv, after, after)))
            self.decoder.append(nn.Sequential(*f(conv, after + before, before)))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.classifier = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Label every pixel.

        Raises
        ------
        FoveateError
            Height or width is no multiple of `multiple`.
        """
        # A tracer's stand-in has no numbers to check.
        if isinstance(x, Tensor) and (x.shape[-1] % self.multiple or x.shape[-2] % self.multiple):
            raise FoveateError(
                f"EncoderDecoder expects height and width in multiples of {self.multiple}, got "
                f"{tuple(x.shape)}; pad the picture"
            )
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for index in range(len(self.decoder) - 1, -1, -1):
            x = self.decoder[index](torch.cat((self.up(x), skips[index]), 1))
        x = self.up(self.classifier(x))
        return x
