"""A fully convolutional net: label every pixel from the feature maps of a classifier.

Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015
(arXiv 1411.4038), the form with skips ("FCN-8s" for maps at 1/8, 1/16 and 1/32 of the picture)::

    s_n = conv1(f_n);   s_i = conv1(f_i) + up(s_{i+1});   logits = up(up(up(s_1)))

with one 1x1 convolution for each map f_i and ``up`` bilinear by 2 (pixel corners not aligned). The
original learns its upsampling from a bilinear start; here it stays bilinear (D), which any engine
has.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["FCN"]


class FCN(nn.Module):
    """Pixel labels on any trunk whose maps halve each other.

    Parameters
    ----------
    trunk
        Gives a tuple of maps, fine to coarse, each half as high and wide as the last, and has
        `channels`, as :class:`foveate.nn.ssd.FeatureMaps`.
    classes
        Number of classes, the background included: 21 for VOC.
    doublings
        How often the finest map is doubled to give the picture's size: 3 for a map at 1/8.

    Attributes
    ----------
    classifiers
        The 1x1 convolutions, one per map.
    multiple
        Height and width of pictures must be multiples of it (pad them, and labels with "void").

    Notes
    -----
    ``forward``: ``(B, C, H, W)`` float -> logits ``(B, classes, H, W)``.
    """

    def __init__(self, trunk: nn.Module, classes: int = 21, doublings: int = 3) -> None:
        super().__init__()
        channels = [int(width) for width in getattr(trunk, "channels", ())]
        if not channels or classes < 1 or not 0 <= doublings <= 6:
            raise FoveateError(
                "FCN expects a trunk with `channels`, a class and up to 6 doublings, got "
                f"channels={channels}, {classes=}, {doublings=}"
            )
        self.trunk, self.doublings = trunk, doublings
        self.multiple: int = 2 ** (doublings + len(channels) - 1)
        heads = [nn.Conv2d(width, classes, 1) for width in channels]
        for head in heads:
            nn.init.xavier_uniform_(head.weight)
            nn.init.zeros_(cast(Tensor, head.bias))
        self.classifiers = nn.ModuleList(heads)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

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
                f"FCN expects height and width in multiples of {self.multiple}, got "
                f"{tuple(x.shape)}; pad the picture"
            )
        maps = self.trunk(x)
        last = len(self.classifiers) - 1
        y: Tensor = self.classifiers[last](maps[last])
        for index in range(last - 1, -1, -1):
            y = self.classifiers[index](maps[index]) + self.up(y)
        for _ in range(self.doublings):
            y = self.up(y)
        return y
