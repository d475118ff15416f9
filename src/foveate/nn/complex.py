"""Complex-valued layers: weights W = W_r + i W_i on complex pictures.

A complex convolution is a complex product, and the complex product is four real ones::

    out_r = op(in_r, W_r) - op(in_i, W_i)
    out_i = op(in_r, W_i) + op(in_i, W_r)

for every linear ``op``: convolution, transposed convolution, matrix product (Sun et al., IGARSS
2019, arXiv 1906.03605; its eq. 1 prints ``ad + bd`` for the second line, ``ad + bc`` is meant).
Real and imaginary part share their weights, which is what sets such a layer apart from two
independent real ones. The four products are computed as *one* real ``op`` on stacked channels,

    [out_r]   [W_r  -W_i] [in_r]
    [out_i] = [W_i   W_r] [in_i]

the same sums in one call, which is faster than four calls on a CPU for small nets.

`ComplexBatchNorm2d` removes the mean and whitens the 2 x 2 covariance of real and imaginary part
(Trabelsi et al., "Deep Complex Networks", ICLR 2018), with statistics averaged over the last few
batches (Sun et al., eqs. 3-9), in training as well. Marks in the docstrings: P stated by Sun et
al., R secondary source, D decided here.

All layers take and give ``torch.complex64`` tensors; their parameters are real pairs
(``weight_real``, ``weight_imag``), so that every optimiser and file format can hold them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = [
    "CLeakyReLU",
    "CReLU",
    "CTanh",
    "ComplexBatchNorm2d",
    "ComplexConv2d",
    "ComplexConvTranspose2d",
    "ComplexLinear",
    "ctanh",
    "init_complex_",
    "inverse_square_root",
]


# ------------------------------------------------------------------------------ linear layers


def init_complex_(
    real: Tensor,
    imag: Tensor,
    fan_in: int,
    fan_out: int,
    generator: torch.Generator | None = None,
) -> None:
    """Fill a pair of weights in place: Rayleigh amplitude, uniform phase.

    The amplitude has sigma = 1 / sqrt(fan_in + fan_out), fans counted in complex units, so that
    E|W|^2 = 2 / (fan_in + fan_out), the rule of Glorot and Bengio (R: Trabelsi et al., sec. 3.6;
    D that it is used here, Sun et al. do not say).
    """
    if real.shape != imag.shape:
        raise FoveateError(
            f"real and imaginary weights have the shapes {tuple(real.shape)} and "
            f"{tuple(imag.shape)}; expected equal ones"
        )
    if min(fan_in, fan_out) < 1:
        raise FoveateError(f"fan_in and fan_out are {fan_in} and {fan_out}; expected at least 1")
    with torch.no_grad():
        uniform = torch.rand(real.shape, generator=generator, device=real.device)
        phase = torch.rand(real.shape, generator=generator, device=real.device)
        sigma = 1 / math.sqrt(fan_in + fan_out)
        amplitude = sigma * torch.sqrt(-2 * torch.log1p(-uniform))  # 1 - u is never 0
        phase = math.pi * (2 * phase - 1)
        real.copy_(amplitude * torch.cos(phase))
        imag.copy_(amplitude * torch.sin(phase))


def _checked(x: Tensor, layer: nn.Module, axes: int, channels: int, axis: int) -> Tensor:
    if not x.is_complex():
        raise FoveateError(
            f"{type(layer).__name__} expects a complex tensor, got {x.dtype} of shape "
            f"{tuple(x.shape)}; make one with torch.complex(real, imag)"
        )
    if (axes and x.dim() != axes) or x.dim() < 1 or x.shape[axis] != channels:
        wanted = f"(..., {channels})" if not axes else f"(B, {channels}, H, W)"
        raise FoveateError(
            f"{type(layer).__name__} expects input of shape {wanted}, got {tuple(x.shape)}"
        )
    return x


def _stacked(real: Tensor, imag: Tensor, out_axis: int, in_axis: int) -> Tensor:
    """``[[W_r, -W_i], [W_i, W_r]]``: rows along `out_axis`, columns along `in_axis`."""
    upper = torch.cat([real, -imag], in_axis)
    lower = torch.cat([imag, real], in_axis)
    return torch.cat([upper, lower], out_axis)


def _split(y: Tensor, axis: int) -> Tensor:
    real, imag = y.chunk(2, axis)
    return torch.complex(real, imag)


class _ComplexWeights(nn.Module):
    """The parameters that all linear layers have."""

    def __init__(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, outputs: int, bias: bool
    ) -> None:
        super().__init__()
        if min(shape) < 1:
            raise FoveateError(f"{type(self).__name__}: sizes are at least 1, got {shape}")
        self.weight_real = nn.Parameter(torch.empty(shape))
        self.weight_imag = nn.Parameter(torch.empty(shape))
        self.bias_real: nn.Parameter | None
        self.bias_imag: nn.Parameter | None
        if bias:
            self.bias_real = nn.Parameter(torch.zeros(outputs))
            self.bias_imag = nn.Parameter(torch.zeros(outputs))
        else:
            self.register_parameter("bias_real", None)
            self.register_parameter("bias_imag", None)
        init_complex_(self.weight_real, self.weight_imag, fan_in, fan_out)

    @property
    def weight(self) -> Tensor:
        """The complex weight, a copy."""
        return torch.complex(self.weight_real, self.weight_imag)

    @property
    def bias(self) -> Tensor | None:
        """The complex bias, a copy; None where the layer has none."""
        if self.bias_real is None or self.bias_imag is None:
            return None
        return torch.complex(self.bias_real, self.bias_imag)

    def _stacked_bias(self) -> Tensor | None:
        if self.bias_real is None or self.bias_imag is None:
            return None
        return torch.cat([self.bias_real, self.bias_imag])


class ComplexLinear(_ComplexWeights):
    """Complex fully connected layer (CFC of Sun et al.), complex bias.

    Notes
    -----
    ``forward``: ``(..., in_features)`` complex64 -> ``(..., out_features)`` complex64. Input that
    is real or of another width raises `FoveateError`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__((out_features, in_features), in_features, out_features, out_features, bias)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Complex product with the weights, plus the bias."""
        x = _checked(x, self, 0, self.in_features, -1)
        weight = _stacked(self.weight_real, self.weight_imag, 0, 1)
        return _split(F.linear(torch.cat([x.real, x.imag], -1), weight, self._stacked_bias()), -1)


class ComplexConv2d(_ComplexWeights):
    """Complex convolution (CConv of Sun et al.), square kernel, complex bias.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` complex64 -> ``(B, out_channels, H', W')`` with the
    sizes of `torch.nn.Conv2d`. Equals ``torch.nn.functional.conv2d`` on complex64 with
    :attr:`weight` and :attr:`bias`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        area = kernel_size**2
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, in_channels * area, out_channels * area, out_channels, bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Complex convolution of `x`."""
        x = _checked(x, self, 4, self.in_channels, 1)
        weight = _stacked(self.weight_real, self.weight_imag, 0, 1)
        both = torch.cat([x.real, x.imag], 1)
        y = F.conv2d(both, weight, self._stacked_bias(), self.stride, self.padding)
        return _split(y, 1)


class ComplexConvTranspose2d(_ComplexWeights):
    """Complex transposed convolution (CDeConv of Sun et al.), square kernel, complex bias.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` complex64 -> ``(B, out_channels, H', W')`` with the
    sizes of `torch.nn.ConvTranspose2d`; like there, no weight is conjugated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        area = kernel_size**2
        shape = (in_channels, out_channels, kernel_size, kernel_size)
        super().__init__(shape, in_channels * area, out_channels * area, out_channels, bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Complex transposed convolution of `x`."""
        x = _checked(x, self, 4, self.in_channels, 1)
        weight = _stacked(self.weight_real, self.weight_imag, 1, 0)
        both = torch.cat([x.real, x.imag], 1)
        y = F.conv_transpose2d(both, weight, self._stacked_bias(), self.stride, self.padding)
        return _split(y, 1)


# ------------------------------------------------------------------------------ activations


class CReLU(nn.Module):
    """ReLU of the real and of the imaginary part, apart from each other (D; R: Trabelsi et al.).

    Works on complex tensors of any shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of both parts."""
        return torch.view_as_complex(F.relu(torch.view_as_real(x)))


class CLeakyReLU(nn.Module):
    """Leaky ReLU of the real and of the imaginary part (D: slope 0.2)."""

    def __init__(self, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Leaky ReLU of both parts."""
        return torch.view_as_complex(F.leaky_relu(torch.view_as_real(x), self.negative_slope))


def ctanh(x: Tensor) -> Tensor:
    """``tanh(x_r) + i tanh(x_i)`` (D), both parts in (-1, 1).

    Not the holomorphic tanh, which has poles.
    """
    return torch.view_as_complex(torch.tanh(torch.view_as_real(x)))


class CTanh(nn.Module):
    """`ctanh` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Tanh of both parts."""
        return ctanh(x)


# ------------------------------------------------------------------------------ normalisation


class ComplexBatchNorm2d(nn.Module):
    """Whiten real and imaginary part per channel, by statistics of the last `window` batches.

    With mean ``mu_t`` and covariance ``V_t = [[Vrr, Vri], [Vri, Vii]]`` (over batch and pixels,
    1/N) of batch t, and their averages over the last m = `window` batches, t included (P)::

        mubar = 1/m sum mu      Vbar = 1/m sum V + eps I
        S = sqrt(Vrr Vii - Vri^2)      T = sqrt(Vrr + Vii + 2 S)
        Vbar^(-1/2) = 1 / (S T) [[Vii + S, -Vri], [-Vri, Vrr + S]]
        y = gamma Vbar^(-1/2) (x - mubar) + beta

    The averages are used *while training* too; that is what keeps tiny batches stable (P). Only
    batch t carries a gradient, older ones are constants. Before m batches have been seen, what is
    there is averaged. The paper's sums run from t-m to t with a factor 1/m, which is m+1 terms;
    here are m. In eval mode the window stands still and its average is used; before the first
    batch that is mean 0 and covariance I (all D).

    Parameters
    ----------
    channels
        Complex channels C.
    window
        m; 1 is the ordinary batch normalisation in training (D: 10).
    eps
        Added to ``Vrr`` and ``Vii``: V is singular where a channel is purely real.

    Attributes
    ----------
    weight
        ``(3, C)``: rr, ri, ii of the symmetric gamma; starts at I / sqrt(2) (R).
    bias
        ``(2, C)``: real and imaginary part of beta; starts at 0.
    means, covariances, seen
        Buffers: ``(m, 2, C)``, ``(m, 3, C)`` (rr, ri, ii) as a ring, and the batches ever seen.

    Notes
    -----
    ``forward``: ``(B, C, H, W)`` complex64 -> the same shape. Raises `FoveateError` for real
    input, another number of channels, or a training batch of a single value per channel.
    """

    means: Tensor
    covariances: Tensor
    seen: Tensor

    def __init__(self, channels: int, window: int = 10, eps: float = 1e-5) -> None:
        super().__init__()
        if channels < 1 or window < 1 or not eps > 0:
            raise FoveateError(
                f"ComplexBatchNorm2d: channels and window are at least 1 and eps is positive, got "
                f"{channels}, {window} and {eps}"
            )
        self.channels, self.window, self.eps = channels, window, eps
        diagonal = torch.full((channels,), 1 / math.sqrt(2))
        self.weight = nn.Parameter(torch.stack([diagonal, torch.zeros(channels), diagonal]))
        self.bias = nn.Parameter(torch.zeros(2, channels))
        self.register_buffer("means", torch.zeros(window, 2, channels))
        self.register_buffer("covariances", torch.zeros(window, 3, channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Averages over the window as it stands: mean ``(2, C)`` and covariance ``(3, C)``."""
        known = min(int(self.seen), self.window)
        if not known:
            identity = self.covariances.new_tensor([1.0, 0.0, 1.0])
            return self.means[0] * 0, identity[:, None].expand(3, self.channels)
        return self.means[:known].mean(0), self.covariances[:known].mean(0)

    def _take_in(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Averages over the window with batch `x` in it; only `x` carries a gradient."""
        if x.numel() <= self.channels:
            raise FoveateError(
                f"ComplexBatchNorm2d needs more than one value per channel to train, got shape "
                f"{tuple(x.shape)}; use larger batches or eval()"
            )
        real, imag = x.real, x.imag
        axes = (0, 2, 3)
        mean = torch.stack([real.mean(axes), imag.mean(axes)])
        a = real - mean[0, :, None, None]
        b = imag - mean[1, :, None, None]
        covariance = torch.stack([a.square().mean(axes), (a * b).mean(axes), b.square().mean(axes)])
        slot = int(self.seen) % self.window
        known = min(int(self.seen) + 1, self.window)
        with torch.no_grad():
            # The oldest batch leaves; the sums of the others are constants.
            self.means[slot].zero_()
            self.covariances[slot].zero_()
            older = self.means[:known].sum(0), self.covariances[:known].sum(0)
            self.means[slot] = mean
            self.covariances[slot] = covariance
            self.seen += 1
        return (older[0] + mean) / known, (older[1] + covariance) / known

    def forward(self, x: Tensor) -> Tensor:
        """Whitened, scaled and shifted `x`."""
        x = _checked(x, self, 4, self.channels, 1)
        mean, covariance = self._take_in(x) if self.training else self.statistics()
        w_rr, w_ri, w_ii = inverse_square_root(covariance, self.eps)
        g_rr, g_ri, g_ii = self.weight[0], self.weight[1], self.weight[2]
        # gamma Vbar^(-1/2) as one matrix, so that each pixel is multiplied once
        a_rr, a_ri = g_rr * w_rr + g_ri * w_ri, g_rr * w_ri + g_ri * w_ii
        a_ir, a_ii = g_ri * w_rr + g_ii * w_ri, g_ri * w_ri + g_ii * w_ii
        b_r = self.bias[0] - a_rr * mean[0] - a_ri * mean[1]
        b_i = self.bias[1] - a_ir * mean[0] - a_ii * mean[1]

        def per_channel(value: Tensor) -> Tensor:
            return value[:, None, None]

        real, imag = x.real, x.imag
        return torch.complex(
            real * per_channel(a_rr) + imag * per_channel(a_ri) + per_channel(b_r),
            real * per_channel(a_ir) + imag * per_channel(a_ii) + per_channel(b_i),
        )

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.channels}, window={self.window}, eps={self.eps}"


def inverse_square_root(covariance: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """``(V + eps I)^(-1/2)`` of symmetric 2 x 2 matrices, in closed form (Sun et al., eq. 7).

    Parameters
    ----------
    covariance
        ``(3, ...)``: rr, ri, ii.

    Returns
    -------
    rr, ri, ii of the inverse square root, each of shape ``(...)``.
    """
    rr, ri, ii = covariance[0] + eps, covariance[1], covariance[2] + eps
    # V + eps I has a determinant of at least eps^2; rounding may take it away.
    s = torch.sqrt((rr * ii - ri.square()).clamp_min(eps**2))
    t = torch.sqrt(rr + ii + 2 * s)
    scale = 1 / (s * t)
    return (ii + s) * scale, -ri * scale, (rr + s) * scale
