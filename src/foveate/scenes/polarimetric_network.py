"""The polarimetric convolutional network (PCN): two views of a PolSAR scene, one class map.

Paper: Liu, Jiao, Tang, Sun, Zhang, "Polarimetric Convolutional Network for PolSAR Image
Classification", IEEE TGRS 57(5), 2019 (arXiv 1807.02975), algorithm 2 and flow chart.

Two fully convolutional networks of equal design and separate weights read the same matrices m
``(H, W, k, k)``: one their scattering code, one their plain real numbers. Both end with M maps,
which are stacked and mixed by a 1 x 1 convolution into logits of K classes:

    logits = head([ FCN_a(stem(psc(m))), FCN_b(real(m)) ])

``stem`` brings the code, 2k H x 2k W, back to H x W with two strided convolutions: 4x4 stride 2,
twice, for S (k = 2: 4s -> 2s -> s); 4x4 stride 2 and 5x5 stride 3 for T3 (k = 3: 6s -> 3s -> s).

``FCN`` goes down to a quarter of the size and back. What comes back up is put where the maxima
were (max-unpooling with the stored indices), and meets what was there on the way down:

    n1 = norm(relu(conv1(x)))          p1, i1 = pool(n1)          s   -> s/2
    n2 = norm(relu(conv2(p1)))         p2, i2 = pool(n2)          s/2 -> s/4
    x5 = relu(conv5(relu(conv4(relu(conv3(p2))))))                s/4
    x6 = relu(conv6(x5)) + p2                                     s/4
    x7 = relu(conv7b(relu(conv7a(unpool(x6, i2) + n2))))          s/4 -> s/2
    x8 = relu(conv8(unpool(x7, i1) + n1))                         s/2 -> s
    maps = conv9(x8)                                              s

Published (P): stem kernels 32 and 64, widths 64-128-256-256-128, 5x5 kernels, two poolings with
indices, four decoder layers, skips at layers 6 to 8, late fusion. Not published, decided here (D):
both stem strides (the text says 1 and 2, the flow chart shows 2 and 2), a ReLU behind both stem
convolutions, the decoder's channels, skips as sums, M = 64, batch or group norm, and the stem for
k = 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.scenes.scattering_coding import psc_encode

__all__ = [
    "DESK_STEM",
    "DESK_WIDTHS",
    "PAPER_STEM",
    "PAPER_WIDTHS",
    "UNIT",
    "CodingStem",
    "Norm",
    "Paths",
    "PolarimetricConvNet",
    "SegNetLikeFCN",
    "amplitudes",
    "context",
    "real_channels",
]

Norm = Literal["batch", "group", "none"]
Paths = Literal["both", "coded", "echo", "amplitude"]

PAPER_WIDTHS, PAPER_STEM = (64, 128, 256, 256, 128), (32, 64)
DESK_WIDTHS, DESK_STEM = (16, 32, 64, 64, 32), (8, 16)
UNIT = 4  # two poolings: a picture's sides are multiples of it


def context(kernel: int = 5, paths: Paths = "both") -> int:
    """Pixels on every side that a decision may depend on, in whole cells of 4 x 4.

    With kernels of radius r: layers 1, 8 and 9 at full size, 2, 7a and 7b at half, 3 to 6 at a
    quarter, together (3 + 3 * 2 + 4 * 4) r; 3 more because a pixel may lie anywhere in its cell,
    and 1 for the stem. That is 56 in the paper (kernel 5) and 32 at desk scale (kernel 3).
    """
    reach = 25 * (kernel // 2) + 3 + (paths in ("both", "coded"))
    return math.ceil(reach / UNIT) * UNIT


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return nn.Identity()


def _xavier(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SegNetLikeFCN(nn.Module):
    """One path: convolutions down to a quarter, max-unpooling and sums of skips back up.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input; the M maps of the output.
    widths
        Channels of layers 1 to 5.
    kernel
        Side of every kernel, odd; 5 in the paper, 3 at desk scale.
    norm
        Behind layers 1 and 2: ``batch`` for training on tiles, ``group`` (8 groups) where the batch
        is one whole scene, ``none``.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` -> ``(B, out_channels, H, W)``; H and W are multiples
    of 4. Weights start by Xavier's uniform rule, biases at 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = PAPER_WIDTHS,
        kernel: int = 5,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(*widths, in_channels, out_channels) < 1:
            raise FoveateError(
                "SegNetLikeFCN expects five positive widths and at least one channel in and out, "
                f"got widths={tuple(widths)}, {in_channels=}, {out_channels=}"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise FoveateError(f"SegNetLikeFCN expects an odd kernel, got {kernel}")
        if norm not in get_args(Norm):
            raise FoveateError(f"SegNetLikeFCN: norm is batch, group or none, got {norm!r}")
        self.kernel = kernel
        w1, w2, w3, w4, w5 = widths

        def conv(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, kernel, padding=kernel // 2)

        self.conv1, self.norm1 = conv(in_channels, w1), _norm(norm, w1)
        self.conv2, self.norm2 = conv(w1, w2), _norm(norm, w2)
        self.conv3, self.conv4, self.conv5 = conv(w2, w3), conv(w3, w4), conv(w4, w5)
        self.conv6 = conv(w5, w2)  # as many channels as the pool's indices have
        self.conv7a, self.conv7b = conv(w2, w2), conv(w2, w1)
        self.conv8, self.conv9 = conv(w1, w1), conv(w1, out_channels)
        _xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of every pixel.

        Raises
        ------
        FoveateError
            Not ``(B, C, H, W)``, or H or W is no multiple of 4.
        """
        if x.ndim != 4 or x.shape[-1] % UNIT or x.shape[-2] % UNIT or x.numel() == 0:
            raise FoveateError(
                "SegNetLikeFCN expects (B, C, H, W) with height and width in multiples of "
                f"{UNIT}, got {tuple(x.shape)}; pad the scene"
            )
        n1 = self.norm1(F.relu(self.conv1(x)))
        p1, at1 = F.max_pool2d(n1, 2, return_indices=True)
        n2 = self.norm2(F.relu(self.conv2(p1)))
        p2, at2 = F.max_pool2d(n2, 2, return_indices=True)
        x = F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(p2))))))
        x = F.relu(self.conv6(x)) + p2
        x = F.relu(self.conv7a(F.max_unpool2d(x, at2, [2, 2]) + n2))
        x = F.max_unpool2d(F.relu(self.conv7b(x)), at1, [2, 2]) + n1
        maps: Tensor = self.conv9(F.relu(self.conv8(x)))
        return maps


class CodingStem(nn.Module):
    """Two strided convolutions from the code's size to the scene's.

    Parameters
    ----------
    k
        Rows of the coded matrices: 2 (S, as published) or 3 (T3, decided here).
    widths
        Kernels of the two layers.

    Notes
    -----
    ``forward``: ``(B, 1, 2k H, 2k W)`` -> ``(B, widths[1], H, W)``. A pixel sees its 8 neighbours.
    """

    def __init__(self, k: int = 2, widths: tuple[int, int] = PAPER_STEM) -> None:
        super().__init__()
        if k not in (2, 3):
            raise FoveateError(f"CodingStem reads codes of 2 x 2 or 3 x 3 matrices, got k={k}")
        if len(widths) != 2 or min(widths) < 1:
            raise FoveateError(f"CodingStem expects two positive widths, got {widths}")
        self.k = k
        self.conv1 = nn.Conv2d(1, widths[0], 4, stride=2, padding=1)
        kernel, stride = (4, 2) if k == 2 else (5, 3)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel, stride=stride, padding=1)
        _xavier(self)

    def forward(self, code: Tensor) -> Tensor:
        """Features of every pixel of the scene."""
        if code.ndim != 4 or code.shape[1] != 1 or any(n % (2 * self.k) for n in code.shape[2:]):
            raise FoveateError(
                f"CodingStem with k={self.k} expects (B, 1, {2 * self.k} H, {2 * self.k} W), got "
                f"{tuple(code.shape)}"
            )
        return F.relu(self.conv2(F.relu(self.conv1(code))))


def _matrices(m: Tensor, what: str) -> int:
    if not m.is_complex() or m.ndim < 4 or m.shape[-1] != m.shape[-2] or m.shape[-1] not in (2, 3):
        raise FoveateError(
            f"{what} expects complex (..., H, W, k, k) with k = 2 (S) or 3 (T3), got "
            f"{tuple(m.shape)} of {m.dtype}"
        )
    return int(m.shape[-1])


def real_channels(m: Tensor) -> Tensor:
    """The matrices as plain real numbers: the input of the echo path.

    Parameters
    ----------
    m
        Complex ``(..., H, W, k, k)``: k = 2, any; k = 3, Hermitian (its lower triangle is not
        read).

    Returns
    -------
    Tensor
        k = 2: ``(..., 8, H, W)``, real and imaginary part of HH, HV, VH, VV. k = 3: ``(..., 9, H,
        W)``, T11 T22 T33, then real and imaginary part of T12, T13, T23.
    """
    if _matrices(m, "real_channels") == 2:
        entries = [m[..., i, j] for i in (0, 1) for j in (0, 1)]
        return torch.stack([part for z in entries for part in (z.real, z.imag)], -3)
    upper = [m[..., i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    diagonal = [m[..., i, i].real for i in range(3)]
    return torch.stack([*diagonal, *(part for z in upper for part in (z.real, z.imag))], -3)


def amplitudes(m: Tensor) -> Tensor:
    """What is left without phases: the input of the ablation.

    Returns
    -------
    Tensor
        k = 2: ``(..., 4, H, W)``, absolute values of HH, HV, VH, VV. k = 3: ``(..., 3, H, W)``, the
        diagonal.
    """
    if _matrices(m, "amplitudes") == 2:
        return torch.stack([m[..., i, j].abs() for i in (0, 1) for j in (0, 1)], -3)
    return torch.stack([m[..., i, i].real for i in range(3)], -3)


class PolarimetricConvNet(nn.Module):
    """PCN, or one of its paths alone.

    Parameters
    ----------
    num_classes
        K.
    k
        2: the matrices are S, as published. 3: they are T3, for scenes of which S is not available.
    widths, stem, fuse_channels, kernel
        Sizes of both paths; ``PAPER_WIDTHS``, ``PAPER_STEM``, 64 and 5, or at desk scale
        ``DESK_WIDTHS``, ``DESK_STEM``, 16 and 3.
    norm
        As in `SegNetLikeFCN`.
    paths
        ``both``: PCN. ``coded``: code, stem and FCN. ``echo``: FCN on `real_channels`.
        ``amplitude``: FCN on `amplitudes`. A path alone has the same head, on M maps.

    Notes
    -----
    ``forward``: complex ``(B, H, W, k, k)`` -> logits ``(B, K, H, W)``; H and W are multiples of 4.
    Train with ``cross_entropy(logits, labels, ignore_index=-1)``, -1 where there is no label.
    """

    def __init__(
        self,
        num_classes: int,
        k: int = 2,
        widths: Sequence[int] = PAPER_WIDTHS,
        fuse_channels: int = 64,
        *,
        stem: tuple[int, int] = PAPER_STEM,
        kernel: int = 5,
        norm: Norm = "batch",
        paths: Paths = "both",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise FoveateError(f"a class map needs at least two classes, got {num_classes}")
        if k not in (2, 3):
            raise FoveateError(f"PolarimetricConvNet reads 2 x 2 or 3 x 3 matrices, got k={k}")
        if paths not in get_args(Paths):
            raise FoveateError(f"paths is one of {', '.join(get_args(Paths))}, got {paths!r}")
        self.k, self.paths = k, paths

        def fcn(channels: int) -> SegNetLikeFCN:
            return SegNetLikeFCN(channels, fuse_channels, widths, kernel, norm)

        self.stem = CodingStem(k, stem) if paths in ("both", "coded") else None
        self.coded = fcn(stem[1]) if paths in ("both", "coded") else None
        plain = {2: (8, 4), 3: (9, 3)}[k]
        self.echo = None if paths == "coded" else fcn(plain[paths == "amplitude"])
        self.head = nn.Conv2d(fuse_channels * (2 if paths == "both" else 1), num_classes, 1)
        _xavier(self.head)

    def forward(self, m: Tensor) -> Tensor:
        """Logits of every pixel; FoveateError on matrices of another shape."""
        if _matrices(m, "PolarimetricConvNet") != self.k or m.ndim != 5:
            raise FoveateError(
                f"PolarimetricConvNet with k={self.k} expects (B, H, W, {self.k}, {self.k}), got "
                f"{tuple(m.shape)}"
            )
        maps = []
        if self.stem is not None and self.coded is not None:
            maps.append(self.coded(self.stem(psc_encode(m)[:, None])))
        if self.echo is not None:
            plain = amplitudes(m) if self.paths == "amplitude" else real_channels(m)
            maps.append(self.echo(plain))
        logits: Tensor = self.head(torch.cat(maps, 1))
        return logits
