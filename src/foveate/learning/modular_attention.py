"""Attention that can be trained head by head: the units of `modular_layers` are heads.

A head h of multi-head attention has maps of its own, ``W_q, W_k, W_v (d_h, d)`` and
``W_o (d, d_h)``, and the output is a sum over heads:

    y = b + sum_h W_o^h softmax( (W_q^h x)(W_k^h x)^T / sqrt(d_h) ) (W_v^h x)

so that heads can be frozen one by one. All that learn are computed together, and so are all that
do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.modular_layers import Dense, ModularLayer, Unit, UnitFlops, added

__all__ = ["MATMultiheadAttention", "MATSelfAttention", "dense_attention"]


class _HeadwiseAttention(ModularLayer):
    """Attention whose heads have parameters of their own: query, key, value and output maps.

    Of each head: ``query (d_h, d)``, ``key (d_h, d_key)``, ``value (d_h, d_value)``, their biases
    ``(d_h,)``, ``out (d, d_h)``. Shared: ``out_bias (d,)``.
    """

    unit_list = "heads"
    _IN = ("query", "key", "value", "query_bias", "key_bias", "value_bias")

    def __init__(
        self, num_heads: int, dropout: float, residual: bool, scale: float | None = None
    ) -> None:
        super().__init__(residual)
        self.num_heads, self.dropout, self.scale = num_heads, dropout, scale
        self.heads = nn.ModuleList(Unit() for _ in range(num_heads))
        self.out_bias: nn.Parameter | None

    def take(self, dense: Dense) -> None:
        """Copy dense weights: ``query, key, value (H d_h, .)``, ``out (d, H d_h)`` and biases."""
        for name in self._IN:
            self._split(dense, name)
        self._split(dense, "out", 1)
        bias = dense["out_bias"]
        shared = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.register_parameter("out_bias", shared)

    def to_plain(self) -> Dense:
        """Dense weights, as `take` has them."""
        everything = range(self.num_heads)
        dense: Dense = {name: self._joined(everything, name) for name in self._IN}
        return {**dense, "out": self._joined(everything, "out", 1), "out_bias": self.out_bias}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, T, d)``, ``(B, S, .)``, ``(B, S, .)`` -> ``(B, T, d)``, weights ``(B, H, T, S)``.

        `mask` is added to the scores and has a shape that expands to ``(B, H, T, S)``.
        """
        seen: dict[int, Tensor] = {}

        def part(chosen: list[int]) -> Tensor:
            h = len(chosen)
            w = {name: self._joined(chosen, name) for name in self._IN}
            if query is key is value:
                bias = None if w["query_bias"] is None else torch.cat([w[n] for n in self._IN[3:]])
                joint = F.linear(query, torch.cat([w[n] for n in self._IN[:3]]), bias)
                maps = joint.chunk(3, -1)
            else:
                maps = tuple(
                    F.linear(x, w[name], w[f"{name}_bias"])
                    for x, name in ((query, "query"), (key, "key"), (value, "value"))
                )
            q, k, v = (m.reshape(*m.shape[:2], h, -1).transpose(1, 2) for m in maps)
            ours = mask if mask is None or mask.shape[1] == 1 else mask[:, chosen]
            p = self.dropout if self.training else 0.0
            if weights:
                scale = 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
                scores = q @ k.transpose(-1, -2) * scale
                probabilities = (scores if ours is None else scores + ours).softmax(-1)
                seen.update(zip(chosen, probabilities.unbind(1), strict=True))
                y = F.dropout(probabilities, p) @ v
            else:
                y = F.scaled_dot_product_attention(q, k, v, ours, p, scale=self.scale)
            return F.linear(y.transpose(1, 2).flatten(2), self._joined(chosen, "out", 1))

        if self.calls is not None:
            self.calls.append(self._flops(query, key, value))
        total = added(self.pieces(part))
        if self.out_bias is not None:
            total = total + self.out_bias
        return total, torch.stack([seen[i] for i in sorted(seen)], 1) if weights else None

    def _flops(self, query: Tensor, key: Tensor, value: Tensor) -> UnitFlops:
        d, d_head = self.weight_of("out").shape
        inputs = (query, key, value)
        first = [2.0 * math.prod(x.shape) * d_head for x in inputs]
        to_input = sum(f for f, x in zip(first, inputs, strict=True) if x.requires_grad)
        pairs = query.shape[0] * query.shape[1]
        inner = 4.0 * pairs * key.shape[1] * d_head  # scores, and values weighted by them
        last = 2.0 * pairs * d_head * d
        return UnitFlops(
            sum(first) + inner + last,
            sum(first) + to_input + 2 * inner + 2 * last,
            to_input + 2 * inner + last if to_input else 0.0,
        )


class MATMultiheadAttention(_HeadwiseAttention):
    """`torch.nn.MultiheadAttention` whose heads are units; it is called in the same way.

    Parameters
    ----------
    embed_dim, num_heads
        Width d, a multiple of the number of heads.
    dropout, bias, kdim, vdim, batch_first
        As of `torch.nn.MultiheadAttention`, but `batch_first` is True unless said otherwise.
    residual
        See `ModularLayer`.

    Notes
    -----
    ``forward`` returns (output, weights), the latter None where not wanted. Weights are asked for
    by default, as in PyTorch; ``need_weights=False`` is the fast way.
    """

    # What PyTorch's transformer layers ask before their fused path, which knows dense weights only.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = True,
        *,
        residual: bool = True,
    ) -> None:
        if min(embed_dim, num_heads) < 1 or embed_dim % num_heads:
            raise FoveateError(
                "MATMultiheadAttention expects a width that is a multiple of the number of heads, "
                f"got {embed_dim} and {num_heads}"
            )
        super().__init__(num_heads, dropout, residual)
        self.embed_dim, self.batch_first = embed_dim, batch_first
        plain = nn.MultiheadAttention(embed_dim, num_heads, 0.0, bias, kdim=kdim, vdim=vdim)
        self.take(dense_attention(plain))

    @classmethod
    def from_plain(
        cls, plain: nn.MultiheadAttention, residual: bool = True
    ) -> MATMultiheadAttention:
        """The same function as `plain`.

        Raises
        ------
        FoveateError
            It has learned keys (``add_bias_kv``) or zeros (``add_zero_attn``) among its keys.
        """
        if plain.bias_k is not None or plain.add_zero_attn:
            raise FoveateError(
                "MATMultiheadAttention has neither add_bias_kv nor add_zero_attn; leave this "
                "attention out"
            )
        made = cls(
            plain.embed_dim,
            plain.num_heads,
            plain.dropout,
            batch_first=plain.batch_first,
            residual=residual,
        )
        made.take(dense_attention(plain))
        return made.train(plain.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise FoveateError("is_causal is a hint beside attn_mask; give attn_mask as well")
        same = query is key is value
        single = query.ndim == 2
        if single:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if same:
            key = value = query
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, query)
            mask = mask.reshape(-1, self.num_heads if mask.ndim == 3 else 1, *mask.shape[-2:])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query)[:, None, None]
            mask = padding if mask is None else mask + padding
        y, weights = self.attend(query, key, value, mask, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights


class MATSelfAttention(_HeadwiseAttention):
    """Self-attention ``(B, T, d) -> (B, T, d)`` whose heads are units, made of dense maps.

    Parameters
    ----------
    dense
        ``query``, ``key``, ``value`` ``(H d_h, d)``, ``out`` ``(d, H d_h)`` and ``*_bias`` or None.
    num_heads
        H.
    dropout, output_dropout
        Of the attention weights and of the output.
    scale
        Of the scores; None: ``d_h ** -0.5``.
    residual
        See `ModularLayer`.

    Notes
    -----
    `attn_mask` of ``forward`` is added to the scores where it is float, or True where a key may be
    seen, as in `torch.nn.functional.scaled_dot_product_attention`.
    """

    def __init__(
        self,
        dense: Dense,
        num_heads: int,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        scale: float | None = None,
        *,
        residual: bool = True,
    ) -> None:
        query, out = dense.get("query"), dense.get("out")
        if query is None or out is None or num_heads < 1 or len(query) % num_heads:
            raise FoveateError(
                "MATSelfAttention expects dense weights query, key, value and out, and rows of "
                f"query that are a multiple of the number of heads, got {sorted(dense)} and "
                f"{num_heads}"
            )
        super().__init__(num_heads, dropout, residual, scale)
        self.output_dropout = output_dropout
        self.take(dense)

    @classmethod
    def from_linears(
        cls,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        num_heads: int,
        **settings: Any,
    ) -> MATSelfAttention:
        """Out of four linear layers; `settings` are those of the class."""
        layers = {"query": query, "key": key, "value": value, "out": out}
        dense: Dense = {name: layer.weight for name, layer in layers.items()}
        dense |= {f"{name}_bias": layer.bias for name, layer in layers.items()}
        return cls(dense, num_heads, **settings)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # noqa: D102
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = _additive(~attn_mask, x)
            attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
        y, _ = self.attend(x, x, x, attn_mask, False)
        return F.dropout(y, self.output_dropout, self.training)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Minus infinity where a bool mask is True; float masks as they are."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def dense_attention(plain: nn.MultiheadAttention) -> Dense:
    """Dense weights of PyTorch's attention, by the names of `MATSelfAttention`."""
    if plain.in_proj_weight is not None:
        maps: Sequence[Tensor] = plain.in_proj_weight.chunk(3)
    else:
        maps = [plain.q_proj_weight, plain.k_proj_weight, plain.v_proj_weight]
    bias = plain.in_proj_bias
    biases = [None] * 3 if bias is None else bias.chunk(3)
    names = ("query", "key", "value")
    return {
        **dict(zip(names, maps, strict=True)),
        **{f"{name}_bias": b for name, b in zip(names, biases, strict=True)},
        "out": plain.out_proj.weight,
        "out_bias": plain.out_proj.bias,
    }
