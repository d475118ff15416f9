"""How a backbone asks for its layers, so that the same net can have 32 bits or one.

The nets of this room know where a layer stands, not how many bits it has. Whoever builds a net
passes a *factory*: a callable that is given the sizes and returns the layer. A factory of
`foveate.quantization` returns a convolution that quantises its own input and weights and applies
its own output scale; the plain one below returns the usual real convolution.

>>> from foveate.nn.binary_resnet import BinResNetS
>>> net = BinResNetS(conv=plain_conv)
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

__all__ = ["ConvFactory", "LinearFactory", "plain_conv", "plain_linear"]


class ConvFactory(Protocol):
    """``(in_channels, out_channels, kernel, stride, padding) -> module`` on ``(B, C, H, W)``."""

    def __call__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, /
    ) -> nn.Module:
        """Make the layer; the kernel is square, padding is the same on all sides."""
        ...


class LinearFactory(Protocol):
    """``(in_features, out_features) -> module`` on ``(B, N)``."""

    def __call__(self, in_features: int, out_features: int, /) -> nn.Module:
        """Make the layer."""
        ...


def plain_conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, padding: int
) -> nn.Conv2d:
    """Real convolution without bias: a batch normalisation stands beside it."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)


def plain_linear(in_features: int, out_features: int) -> nn.Linear:
    """Real linear layer with bias."""
    return nn.Linear(in_features, out_features)
