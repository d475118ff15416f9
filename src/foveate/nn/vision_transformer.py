"""A small plain vision transformer (ViT), with factories for its attention and its MLP.

A picture is cut into square patches; each becomes a token by one linear map, and a learned position
is added. Then, `depth` times, with normalisation in front ("pre-norm"):

    x <- x + Attention(LayerNorm(x)),      x <- x + MLP(LayerNorm(x))

and the mean of the normalised tokens goes to a linear classifier.

The two factories decide what stands at the place of attention and MLP, so that another room can
bring its own (quantised ones, ones that are trained in parts). Their defaults `SelfAttention` and
`MLP` name their layers ``qkv``, ``proj``, ``fc1``, ``fc2``, as most libraries do, so that what is
written for those finds its way here too.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv 2010.11929). Mean
pooling instead of a class token, and the sizes of the desk, are our decision.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["MLP", "AttentionFactory", "MLPFactory", "SelfAttention", "VisionTransformer"]

MAX_TOKENS = 1 << 16  # attention takes the square of it


class AttentionFactory(Protocol):
    """``(width, heads) -> module`` on ``(B, T, width)``."""

    def __call__(self, width: int, heads: int, /) -> nn.Module:
        """Make the layer."""
        ...


class MLPFactory(Protocol):
    """``(width, hidden) -> module`` on ``(B, T, width)``."""

    def __call__(self, width: int, hidden: int, /) -> nn.Module:
        """Make the layer."""
        ...


class SelfAttention(nn.Module):
    """Multi-head self-attention: ``(B, T, width)`` -> ``(B, T, width)``.

    Raises
    ------
    FoveateError
        `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if min(width, heads) < 1 or width % heads:
            raise FoveateError(
                f"SelfAttention expects a width that is a multiple of heads, got {width} and "
                f"{heads}"
            )
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch, tokens, width = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Linear, GELU, linear: ``(..., width)`` -> ``(..., width)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a normalisation and beside a skip."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class VisionTransformer(nn.Module):
    """Plain ViT; the defaults are the desk's for 28x28 grey pictures (10.9 M multiply-adds).

    Parameters
    ----------
    size, patch
        Side of the square pictures and of a patch, in pixels; `size` is a multiple of `patch`.
    in_channels, classes
        Number of input channels and of outputs.
    width, depth, heads, hidden
        Length of a token, number of blocks, heads in each, hidden units of each MLP.
    attention, mlp
        Make the two parts of every block.

    Raises
    ------
    FoveateError
        Sizes that are not positive, do not divide, or give more than 65,536 tokens.

    Notes
    -----
    ``forward``: ``(B, in_channels, size, size)`` float -> logits ``(B, classes)``. Linear layers
    start uniform as of Glorot and Bengio with biases of zero, positions normal with a deviation of
    0.02. Unlike in the original the classifier does not start at zero: with zeros there, no weight
    below it has a gradient at first.

    >>> VisionTransformer(depth=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        size: int = 28,
        patch: int = 4,
        in_channels: int = 1,
        classes: int = 10,
        *,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 256,
        attention: AttentionFactory = SelfAttention,
        mlp: MLPFactory = MLP,
    ) -> None:
        super().__init__()
        sizes = (size, patch, in_channels, classes, width, depth, heads, hidden)
        if min(sizes) < 1 or size % patch or (size // patch) ** 2 > MAX_TOKENS:
            raise FoveateError(
                "VisionTransformer expects positive sizes and pictures of a multiple of the patch, "
                f"at most {MAX_TOKENS} patches, got {size=}, {patch=}, {in_channels=}, {classes=}, "
                f"{width=}, {depth=}, {heads=}, {hidden=}"
            )
        self.shape = (in_channels, size, size)
        self.patch_embed = nn.Conv2d(in_channels, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(Block(width, attention(width, heads), mlp(width, hidden)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if type(module) is nn.Linear:  # what a factory brings may start otherwise
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise FoveateError(
                f"VisionTransformer expects pictures (B, {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape)}"
            )
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.positions
        x = self.norm(self.blocks(x)).mean(1)
        return self.head(x)  # type: ignore[no-any-return]
