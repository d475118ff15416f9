"""Classifiers of multivariate time series: convolution, recurrence, attention.

All take ``(B, T, F)`` float32, any number T of steps of F features, and give logits ``(B, K)``.
Each is a body that ends in one vector per series, ``embed``, and one linear layer on it, ``head``.
No sigmoid: a loss on logits is the safer form of the same thing.

- `MultiBranchTCN`: in every block, branches of different kernel sizes side by side,

      branch k:  Conv1d(k, dilation d, padding (k-1)d) -> BN -> crop (k-1)d/2 at either end -> PReLU
      block:     dropout(concat_k) twice, plus a 1x1 convolution of the input, then PReLU

  which is "same" padding, but for BN: its statistics see the uncropped length.
- `LSTMClassifier`, `RNNClassifier`: one recurrent layer, last hidden state.
- `SeriesTransformer`: self-attention over the T steps *without* position encoding. A class token
  that is read at the end (ViT) or the mean over time (TRSF).

`series_net` makes the eleven of the medical-records condensation paper (arXiv 2305.03711 and the
authors' code) by name, and four small ones for a desk; `series_pool` several at once.

>>> pool = series_pool(("TCN-a", "LSTM-a", "ViT-a"), features=44)  # doctest: +SKIP
>>> logits = pool["LSTM-a"]()(x)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = [
    "DESK_NETS",
    "PAPER_NETS",
    "LSTMClassifier",
    "MultiBranchTCN",
    "RNNClassifier",
    "SeriesTransformer",
    "series_net",
    "series_pool",
]

Norm = Literal["batch", "group"]


def _check_input(x: Tensor, features: int, who: str) -> None:
    if x.ndim != 3 or x.shape[2] != features or x.shape[1] < 1:
        raise FoveateError(
            f"{who} expects series (B, T, F) of {features} features, got {tuple(x.shape)}"
        )


def _check_sizes(who: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise FoveateError(f"{who} expects {name} of at least 1, got {size}")


# ---------------------------------------------------------------------------- convolution


class _Branch(nn.Module):
    """Convolution, normalisation, crop, PReLU: ``(B, C, T)`` -> ``(B, channels, T)``."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, dilation: int, norm: Norm
    ) -> None:
        super().__init__()
        self.crop = (kernel - 1) * dilation // 2
        self.conv = nn.Conv1d(
            in_channels, channels, kernel, padding=2 * self.crop, dilation=dilation
        )
        self.norm: nn.Module
        if norm == "batch":
            self.norm = nn.BatchNorm1d(channels)
        else:  # statistics of one series only, of channels in groups of about 16
            groups = max(g for g in range(1, max(1, channels // 16) + 1) if channels % g == 0)
            self.norm = nn.GroupNorm(groups, channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        y = y[..., self.crop : y.shape[-1] - self.crop]
        return self.act(y)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Twice all branches side by side, and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernels: Sequence[int],
        dilation: int,
        dropout: float,
        norm: Norm,
    ) -> None:
        super().__init__()
        width = channels * len(kernels)
        self.first = nn.ModuleList(
            _Branch(in_channels, channels, k, dilation, norm) for k in kernels
        )
        self.second = nn.ModuleList(_Branch(width, channels, k, dilation, norm) for k in kernels)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv1d(in_channels, width, 1)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for branches in (self.first, self.second):
            y = self.dropout(torch.cat([branch(y) for branch in branches], 1))
        return self.act(y + self.shortcut(x))  # type: ignore[no-any-return]


class MultiBranchTCN(nn.Module):
    """Temporal convolutional network with branches of several kernel sizes, mean over time.

    Parameters
    ----------
    features, classes
        F and K.
    channels
        Of each branch.
    kernels
        Odd sizes, one branch each.
    blocks
        Block b (from 0) has the dilation 2^b.
    norm
        ``group`` normalises every series by itself; ``batch``, the paper's, couples the series of
        a batch, which no privacy bound per row survives.
    """

    def __init__(
        self,
        features: int,
        channels: int = 64,
        kernels: Sequence[int] = (3, 5, 7),
        blocks: int = 2,
        dropout: float = 0.5,
        norm: Norm = "batch",
        classes: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes("MultiBranchTCN", features=features, channels=channels, blocks=blocks,
                     classes=classes)  # fmt: skip
        if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
            raise FoveateError(f"MultiBranchTCN expects odd kernel sizes, got {tuple(kernels)}")
        if norm not in ("batch", "group"):
            raise FoveateError(f"MultiBranchTCN expects norm 'batch' or 'group', got {norm!r}")
        self.features = features
        width = channels * len(kernels)
        self.body = nn.Sequential(
            *(
                _Block(width if b else features, channels, kernels, 2**b, dropout, norm)
                for b in range(blocks)
            )
        )
        self.head = nn.Linear(width, classes)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> ``(B, channels * len(kernels))``."""
        _check_input(x, self.features, "MultiBranchTCN")
        return self.body(x.transpose(1, 2)).mean(2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> logits ``(B, K)``."""
        return self.head(self.embed(x))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------- recurrence


class LSTMClassifier(nn.Module):
    """One LSTM layer, its last hidden state, one linear layer.

    ``nn.LSTM`` is an ``LSTMCell`` unrolled over time, with the same weights and initial values,
    without the loop in Python.
    """

    def __init__(self, features: int, hidden: int = 256, classes: int = 1) -> None:
        super().__init__()
        _check_sizes("LSTMClassifier", features=features, hidden=hidden, classes=classes)
        self.features = features
        self.body = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> ``(B, hidden)``."""
        _check_input(x, self.features, "LSTMClassifier")
        return self.body(x)[0][:, -1]  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> logits ``(B, K)``."""
        return self.head(self.embed(x))  # type: ignore[no-any-return]


class RNNClassifier(nn.Module):
    """One layer of tanh units fed back on themselves, its last output, one linear layer."""

    def __init__(self, features: int, hidden: int = 256, classes: int = 1) -> None:
        super().__init__()
        _check_sizes("RNNClassifier", features=features, hidden=hidden, classes=classes)
        self.features = features
        self.body = nn.RNN(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> ``(B, hidden)``."""
        _check_input(x, self.features, "RNNClassifier")
        return self.body(x)[0][:, -1]  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> logits ``(B, K)``."""
        return self.head(self.embed(x))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------- attention


class _Attention(nn.Module):
    """``x + attention(LayerNorm(x))``, with projections F -> heads * dim -> F of its own.

    F need not be a multiple of the heads, which ``nn.MultiheadAttention`` would ask for. Dropout
    falls on the attention weights and on the result.
    """

    def __init__(self, features: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(features)
        self.to_qkv = nn.Linear(features, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, features)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        qkv = self.to_qkv(self.norm(x)).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], dropout_p=p)
        y: Tensor = self.drop(self.out(mixed.transpose(1, 2).reshape(batch, steps, -1)))
        return x + y

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dropout={self.dropout}"


class _FeedForward(nn.Module):
    """``x + MLP(LayerNorm(x))``, F -> width -> F with GELU."""

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, features),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class SeriesTransformer(nn.Module):
    """Transformer on ``(B, T, F)`` directly: a token is a time step, its width is F.

    Pre-norm, GELU, no input projection and no position encoding, so the order of the steps does
    not matter to it (P). What is read at the end passes LayerNorm -> Linear -> GELU -> dropout
    before the last linear layer.

    Parameters
    ----------
    features, classes
        F and K.
    depth, heads, head_dim, feed_forward
        Number of layers; heads and width of each; width of the two-layer perceptron.
    pool
        ``token``: a learned class token, drawn from N(0, 1); ``mean``: the mean over time.
    head_hidden
        Width before the last linear layer.
    """

    def __init__(
        self,
        features: int,
        depth: int = 4,
        heads: int = 16,
        head_dim: int = 64,
        feed_forward: int = 16,
        pool: Literal["token", "mean"] = "token",
        head_hidden: int = 128,
        dropout: float = 0.5,
        classes: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes("SeriesTransformer", features=features, depth=depth, heads=heads,
                     head_dim=head_dim, feed_forward=feed_forward, head_hidden=head_hidden,
                     classes=classes)  # fmt: skip
        if pool not in ("token", "mean"):
            raise FoveateError(f"SeriesTransformer expects pool 'token' or 'mean', got {pool!r}")
        self.features = features
        self.token = nn.Parameter(torch.randn(1, 1, features)) if pool == "token" else None
        self.body = nn.Sequential(
            *(
                layer
                for _ in range(depth)
                for layer in (
                    _Attention(features, heads, head_dim, dropout),
                    _FeedForward(features, feed_forward, dropout),
                )
            )
        )
        self.neck = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, head_hidden),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(head_hidden, classes)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> ``(B, head_hidden)``."""
        _check_input(x, self.features, "SeriesTransformer")
        if self.token is None:
            return self.neck(self.body(x).mean(1))  # type: ignore[no-any-return]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.neck(self.body(x)[:, 0])  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` -> logits ``(B, K)``."""
        return self.head(self.embed(x))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------- by name

_Recipe = tuple[Callable[..., nn.Module], dict[str, Any]]

_PAPER: dict[str, _Recipe] = {
    "TCN-a": (MultiBranchTCN, {"channels": 64, "kernels": (3, 5, 7)}),
    "TCN-b": (MultiBranchTCN, {"channels": 64, "kernels": (3,)}),
    "TCN-c": (MultiBranchTCN, {"channels": 128, "kernels": (3, 5)}),
    "LSTM-a": (LSTMClassifier, {"hidden": 256}),
    "LSTM-b": (LSTMClassifier, {"hidden": 128}),
    "RNN-a": (RNNClassifier, {"hidden": 256}),
    "RNN-b": (RNNClassifier, {"hidden": 128}),
    "ViT-a": (SeriesTransformer, {"depth": 4, "heads": 16, "head_dim": 64}),
    "ViT-b": (SeriesTransformer, {"depth": 4, "heads": 4, "head_dim": 256}),
    "TRSF-a": (
        SeriesTransformer,
        {"depth": 2, "heads": 16, "head_dim": 64, "pool": "mean", "head_hidden": 64},
    ),
    "TRSF-b": (
        SeriesTransformer,
        {"depth": 2, "heads": 4, "head_dim": 256, "pool": "mean", "head_hidden": 128},
    ),
}
_DESK: dict[str, _Recipe] = {
    "TCN-desk": (MultiBranchTCN, {"channels": 16, "kernels": (3, 5, 7)}),
    "LSTM-desk": (LSTMClassifier, {"hidden": 64}),
    "RNN-desk": (RNNClassifier, {"hidden": 64}),
    "ViT-desk": (
        SeriesTransformer,
        {"depth": 2, "heads": 4, "head_dim": 16, "feed_forward": 32},
    ),
}

PAPER_NETS = tuple(_PAPER)
"""The eleven of the paper (P); what ViT-b leaves open is as in ViT-a (D)."""
DESK_NETS = tuple(_DESK)
"""Small ones for one CPU core (D)."""


def series_net(name: str, features: int, classes: int = 1, norm: Norm = "batch") -> nn.Module:
    """Make a network of `PAPER_NETS` or `DESK_NETS` with new random weights.

    Parameters
    ----------
    features, classes
        F and K; K = 1 for a yes-no label.
    norm
        Of a TCN; the others know no batch.

    Raises
    ------
    FoveateError
        There is no network of that name, or a size is below 1.
    """
    known = {**_PAPER, **_DESK}
    if name not in known:
        raise FoveateError(f"no network is named {name!r}; there are: {', '.join(known)}")
    make, settings = known[name]
    if make is MultiBranchTCN:
        settings = {**settings, "norm": norm}
    return make(features, classes=classes, **settings)


def series_pool(
    names: Iterable[str], features: int, classes: int = 1, norm: Norm = "batch"
) -> dict[str, Callable[[], nn.Module]]:
    """Name -> function that makes a network with new weights at every call."""
    pool: dict[str, Callable[[], nn.Module]] = {}
    for name in names:
        with torch.device("meta"):  # complain now, not in the middle of a run; draws no number
            series_net(name, features, classes, norm)
        pool[name] = functools.partial(series_net, name, features, classes, norm)
    return pool
