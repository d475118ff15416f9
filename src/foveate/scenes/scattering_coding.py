"""Polarimetric scattering coding: complex matrices as sparse, non-negative real pictures.

Paper: Liu, Jiao, Tang, Sun, Zhang, "Polarimetric Convolutional Network for PolSAR Image
Classification", IEEE TGRS 57(5), 2019 (arXiv 1807.02975); the authors' MATLAB code is size-generic.

A PolSAR pixel is a complex matrix: the 2 x 2 scattering matrix S, or after multilooking the 3 x 3
coherency matrix T3. Every complex entry z = x + i y becomes a 2 x 2 block of real numbers,

    phi(z) = [[ x+ , y+ ],       t+ = max(t, 0)
              [ x- , y- ]]       t- = max(-t, 0)

real part in column 1, imaginary part in column 2, positive values in row 1, magnitudes of negative
values in row 2. The blocks stay where their entries are, so a k x k matrix becomes 2k x 2k:

    [ phi(HH)  phi(HV) ]
    [ phi(VH)  phi(VV) ]                       4 x 4 for S, 6 x 6 for T3

and a scene of H x W matrices becomes *one* picture of 2k H x 2k W, with blocks in place of pixels.
At most one entry of each column of a block is not zero: at least half of the picture is zero. The
code is exactly invertible, ``x = phi[0,0] - phi[1,0]``, ``y = phi[0,1] - phi[1,1]``, has no
parameter, and passes a gradient like the ReLUs that it is made of.

>>> phi = psc_encode(torch.tensor([[-1.933 + 0.3112j]]))
>>> phi
tensor([[0.0000, 0.3112],
        [1.9330, 0.0000]])
>>> bool(psc_decode(phi, k=1)[0, 0] == torch.tensor([[-1.933 + 0.3112j]]))
True
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["Layout", "PolarimetricScatteringCoding", "psc_decode", "psc_encode"]

Layout = Literal["image", "channels"]


def _checked(layout: str) -> None:
    if layout not in get_args(Layout):
        raise FoveateError(f"the layout of a scattering code is image or channels, got {layout!r}")


def psc_encode(m: Tensor, layout: Layout = "image") -> Tensor:
    """Code complex square matrices.

    Parameters
    ----------
    m
        Complex ``(..., H, W, k, k)``, any k >= 1 (S: 2, T3: 3), or one matrix ``(k, k)``; finite.
    layout
        ``image``: the published one, a single picture. ``channels``: the 4 k^2 numbers of a pixel
        as channels, row by row of its 2k x 2k block; an ablation, not the paper.

    Returns
    -------
    Tensor
        Real, >= 0. ``image``: ``(..., 2k H, 2k W)``; ``channels``: ``(..., 4 k^2, H, W)``. One
        matrix gives ``(2k, 2k)`` and ``(4 k^2,)``.

    Raises
    ------
    FoveateError
        `m` is real, empty, not finite, or not of square matrices.
    """
    _checked(layout)
    if not m.is_complex():
        raise FoveateError(
            f"psc_encode expects complex matrices, got {m.dtype}; make them with torch.complex"
        )
    if m.ndim < 2 or m.ndim == 3 or m.shape[-1] != m.shape[-2] or m.numel() == 0:
        raise FoveateError(
            "psc_encode expects matrices (..., H, W, k, k), or one (k, k), that are square and not "
            f"empty; got {tuple(m.shape)}"
        )
    if not bool(torch.isfinite(torch.view_as_real(m)).all()):
        raise FoveateError("psc_encode: the matrices hold NaN or infinity; mask such pixels first")
    if m.ndim == 2:
        coded = psc_encode(m[None, None], layout)
        return coded if layout == "image" else coded[:, 0, 0]
    *front, height, width, k, _ = m.shape
    parts = torch.stack((m.real, m.imag), -1)  # (..., H, W, k, k, part)
    signs = torch.stack((parts.relu(), (-parts).relu()), -2)  # (..., H, W, i, j, sign, part)
    n = len(front)
    h, w, i, j, sign, part = range(n, n + 6)
    if layout == "image":
        order = (*range(n), h, i, sign, w, j, part)
        return signs.permute(order).reshape(*front, 2 * k * height, 2 * k * width)
    order = (*range(n), i, sign, j, part, h, w)
    return signs.permute(order).reshape(*front, 4 * k * k, height, width)


def psc_decode(coded: Tensor, k: int = 2, layout: Layout = "image") -> Tensor:
    """The complex matrices of a code, exactly.

    Parameters
    ----------
    coded
        Real ``(..., 2k H, 2k W)``, or ``(..., 4 k^2, H, W)`` for ``layout="channels"``.
    k
        Rows of a matrix.

    Returns
    -------
    Tensor
        Complex ``(..., H, W, k, k)``. The inverse holds for everything that `psc_encode` gives; a
        picture that is no code (both rows of a column positive) gives the difference of its rows.

    Raises
    ------
    FoveateError
        `k` < 1, a complex or integer code, or a size that is not that of such a code.
    """
    _checked(layout)
    if not coded.is_floating_point():
        raise FoveateError(f"psc_decode expects real floating-point numbers, got {coded.dtype}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise FoveateError(f"psc_decode: k, the rows of a matrix, is at least 1, got {k!r}")
    if layout == "image":
        fits = coded.ndim >= 2 and not any(side % (2 * k) for side in coded.shape[-2:])
        wanted = f"(..., {2 * k} H, {2 * k} W)"
    else:
        fits = coded.ndim >= 3 and coded.shape[-3] == 4 * k * k
        wanted = f"(..., {4 * k * k}, H, W)"
    if not fits or coded.numel() == 0:
        raise FoveateError(
            f"psc_decode with k={k} and layout={layout!r} expects {wanted}, not empty; got "
            f"{tuple(coded.shape)}"
        )
    if layout == "image":
        *front, rows, columns = coded.shape
        n = len(front)
        split = coded.reshape(*front, rows // (2 * k), k, 2, columns // (2 * k), k, 2)
        h, i, sign, w, j, part = range(n, n + 6)
    else:
        *front, _, height, width = coded.shape
        n = len(front)
        split = coded.reshape(*front, k, 2, k, 2, height, width)
        i, sign, j, part, h, w = range(n, n + 6)
    signs = split.permute(*range(n), h, w, i, j, sign, part)
    return torch.view_as_complex((signs[..., 0, :] - signs[..., 1, :]).contiguous())


class PolarimetricScatteringCoding(nn.Module):
    """`psc_encode` as a layer with a channel axis, to stand before a convolution.

    Parameters
    ----------
    layout
        As in `psc_encode`.

    Notes
    -----
    ``forward``: complex ``(B, H, W, k, k)`` -> ``(B, 1, 2k H, 2k W)`` for ``image``, ``(B, 4 k^2,
    H, W)`` for ``channels``.
    """

    def __init__(self, layout: Layout = "image") -> None:
        super().__init__()
        _checked(layout)
        self.layout: Layout = layout

    def forward(self, m: Tensor) -> Tensor:
        """Code a batch of scenes; errors as in `psc_encode`."""
        if m.ndim != 5:
            raise FoveateError(
                f"PolarimetricScatteringCoding expects (B, H, W, k, k), got {tuple(m.shape)}"
            )
        coded = psc_encode(m, self.layout)
        return coded[:, None] if self.layout == "image" else coded

    def extra_repr(self) -> str:
        """For ``print(module)``."""
        return f"layout={self.layout!r}"
