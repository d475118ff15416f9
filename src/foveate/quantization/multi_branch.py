"""Multi-branch binary networks (MBN): few-bit layers as sums of 1-bit layers, exactly.

An M-bit bipolar code is an odd integer built from digits -1 and +1,

    s = sum_m 2^(m-1) c_m,   c_m in {-1, +1},   real value s / (2^M - 1) in [-1, 1],

so a layer with M-bit activations and K-bit weights is M K binary layers with fixed multipliers and
one scale, and computes the *same* numbers:

    x . w = 1 / ((2^M - 1)(2^K - 1))  sum_m sum_k 2^(m-1) 2^(k-1) (c_m . d_k)

There is no zero level and no learned scale per branch. The digits of x in [-1, 1] are signs of
sines, with n = 2^M - 1:

    top digit     sign(  sin(pi n x / 2^M) )
    digits m < M  sign( -sin(pi n x / 2^m) )

Two ways to train. *Quantise, decompose afterwards* (the main one): `MBNConv2d`, `MBNLinear` and
`MBNConvTranspose2d` quantise by q_k with a clipped straight-through gradient, ``.decompose()``
gives the branches. *Train the branches*: `MultiBranchConv2d` has a latent real tensor per weight
digit and an `MBitEncoder` whose gradient is that of the sines; for 1 or 2 bits only, beyond that
the sines change their slope too often.

Source: Sun et al., "Multi-Precision Quantized Neural Networks via Encoding Decomposition of
{-1,+1}", AAAI 2019 (arXiv 1905.13389). The sines for M > 2 and the digits at ties (those of the
quantiser, floor(v + 0.5)) are our decision.

>>> layer = MBNConv2d(16, 32, 3, padding=1, w_bits=2, a_bits=3).eval()
>>> x = torch.rand(1, 16, 8, 8)
>>> torch.equal(layer.decompose()(x), layer(x))
True
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat
from foveate.quantization.layers import (
    ConvGeometry,
    FoldedLayer,
    LatentLayer,
    PaddingMode,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    Size,
    quant_layers,
)
from foveate.quantization.quantizers import (
    BipolarRange,
    QuantAct,
    UniformBipolar,
    UniformBipolarWeight,
    WeightNorm,
)
from foveate.quantization.straight_through import sign, straight_through

__all__ = [
    "CodePlanes",
    "MBNConv2d",
    "MBNConvTranspose2d",
    "MBNLinear",
    "MBNRange",
    "MBitEncoder",
    "MultiBranch",
    "MultiBranchConv2d",
    "MultiBranchConvTranspose2d",
    "MultiBranchLinear",
    "bit_chain",
    "chain_optimizer",
    "decode_planes",
    "decompose",
    "decomposed",
    "encode_planes",
    "encoding_sines",
    "set_mbn_bits",
]

T = TypeVar("T")
MBNRange = Literal["htanh", "hrelu"]


# --- digits --------------------------------------------------------------------------------


def _planes(codes: Tensor, bits: int) -> Tensor:
    """Bits of integer codes ``(...)``, least significant first: ``(bits, ...)`` of 0 and 1."""
    codes = codes.long()
    return torch.stack([(codes >> m) & 1 for m in range(bits)])


def encode_planes(x_q: Tensor, bits: int) -> Tensor:
    """Bit planes of quantised values, least significant first.

    Parameters
    ----------
    x_q
        Levels in [-1, 1], any shape.
    bits
        1 to 8.

    Returns
    -------
    Tensor
        uint8 ``(bits, ...)`` of 0 and 1; read 0 as the digit -1.
    """
    top = CodeFormat("bipolar", bits).top
    return _planes(torch.floor((x_q + 1) * (top / 2) + 0.5).clamp(0, top), bits).to(torch.uint8)


def decode_planes(planes: Tensor) -> Tensor:
    """Real levels, float32, of bit planes ``(bits, ...)``: the inverse of `encode_planes`."""
    top = CodeFormat("bipolar", planes.shape[0]).top
    digits = 2 * planes.to(torch.int32) - 1
    return sum(((1 << m) * d for m, d in enumerate(digits)), torch.zeros(())).float() / top


def encoding_sines(x: Tensor, bits: int) -> Tensor:
    """The functions whose signs are the digits of `x`, lowest digit first: ``(bits, ...)``."""
    top = CodeFormat("bipolar", bits).top
    low = [-torch.sin(math.pi * top / 2**m * x) for m in range(1, bits)]
    return torch.stack([*low, torch.sin(math.pi * top / 2**bits * x)])


class MBitEncoder(nn.Module):
    """Digits of a real tensor with the slope of the sines as gradient.

    Forward: those of ``UniformBipolar(bits, range)``, also at ties, where the signs of the sines
    would be wrong (x = 0 is the commonest value after a ReLU). Backward: the derivative of the
    sines without the sign, 0 outside the range.

    Parameters
    ----------
    bits
        M, 1 to 8; trains well only for 1 and 2.
    range
        ``htanh`` (clip to [-1, 1]) or ``hrelu`` (to [0, 1]; ``htanh`` is taken at 1 bit).
    """

    def __init__(self, bits: int, range: MBNRange = "htanh") -> None:
        super().__init__()
        if range not in ("htanh", "hrelu"):
            raise FoveateError(f"the range of MBitEncoder is 'htanh' or 'hrelu', got {range!r}")
        self.act = UniformBipolar(bits, range)

    @property
    def bits(self) -> int:
        """M."""
        return self.act.bits

    def forward(self, x: Tensor) -> Tensor:
        """``(M, *x.shape)`` of -1 and +1, float32, lowest digit first."""
        with torch.no_grad():
            codes = self.act.format.codes(self.act.integers(x))
            digits = 2 * _planes(codes, self.bits).float() - 1
        x = x.float().clamp(0 if self.act.range == "hrelu" else -1, 1)
        return straight_through(digits, encoding_sines(x, self.bits))


class CodePlanes(nn.Module):
    """Digits of what any activation quantiser says; no gradient."""

    def __init__(self, act: QuantAct) -> None:
        super().__init__()
        self.act = act

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """``(M, *x.shape)`` of -1 and +1, float32, lowest digit first."""
        codes = self.act.format.codes(self.act.integers(x))
        return 2 * _planes(codes, self.act.format.bits).float() - 1


# --- branches ------------------------------------------------------------------------------


class MultiBranch(LatentLayer):
    """M K binary layers in plain torch, summed with powers of two and scaled once.

    What ``decompose()`` returns, and an oracle for the engine: it computes what the quantised layer
    computes in ``eval()``, from digits -1 and +1 only. Made by itself it is the form whose
    branches are trained: ``weight`` holds a latent real tensor per digit, ``(K, ...)``, lowest
    first, whose signs are used; the gradient passes where it lies in [-1, 1].

    Attributes
    ----------
    encoder
        Gives the digits ``(M, B, ...)`` of the input.
    alpha
        The one scale, in a shape that multiplies the output.
    pad_value
        Digit at the border; 0 is no digit but the real zero.
    """

    encoder: MBitEncoder | CodePlanes
    alpha: Tensor
    bias: Tensor | None

    def __init__(
        self, shape: Sequence[int], w_bits: int, a_bits: int, range: MBNRange = "htanh"
    ) -> None:
        super().__init__()
        self.encoder = MBitEncoder(a_bits, range)
        self.weight = nn.Parameter(torch.empty(w_bits, *shape).uniform_(-1, 1))
        largest = self.encoder.act.format.top * CodeFormat("bipolar", w_bits).top
        self.register_buffer("alpha", torch.tensor(1 / largest))
        self.register_buffer("bias", None)
        self.spatial_scale: nn.Module | None = None
        self.gate: nn.Module | None = None
        self.pad_value = 0

    def _branch(self, c: Tensor, d: Tensor, border: int) -> Tensor:
        """One binary layer: digits `c` of the input, `d` of the weight, `border` around `c`."""
        raise NotImplementedError

    @torch.no_grad()
    def clip_latent(self) -> None:
        """Keep the latent branches in [-1, 1]."""
        self.weight.clamp_(-1, 1)

    def sums(self, x: Tensor) -> Tensor:
        """The integer sums before the scale, float64."""
        digits = self.encoder(x)
        weights = straight_through(sign(self.weight.detach()), self.weight.clamp(-1, 1))
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for k, d in enumerate(weights):
            for m, c in enumerate(digits):
                # Sums of +-1 are exact in float32; only their weighted sum may need more.
                total = total + 2.0 ** (m + k) * self._branch(c, d, self.pad_value).double()
        if self.encoder.act.format.kind == "bipolar":
            return total
        # Codes that start at 0 are u = sum_m 2^m (c_m + 1) / 2: the ones take a branch of their
        # own per weight digit, which also has zeros at the border.
        top, ones = self.encoder.act.format.top, torch.ones_like(digits[0])
        for k, d in enumerate(weights):
            total = total + top * 2.0**k * self._branch(ones, d, abs(self.pad_value)).double()
        return total / 2

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, float32."""
        y = self.sums(x).float() * self.alpha
        if self.spatial_scale is not None:
            y = self.spatial_scale(y)
        if self.gate is not None:
            y = y * self.gate(x.float())
        return y if self.bias is None else y + self.bias


class MultiBranchConv2d(MultiBranch):
    """Branches of a convolution.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        As in ``nn.Conv2d``.
    w_bits, a_bits
        K and M.
    range
        Range of the input, as in `MBitEncoder`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
        *,
        w_bits: int = 2,
        a_bits: int = 2,
        range: MBNRange = "htanh",
    ) -> None:
        like = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
        )
        super().__init__(like.weight.shape, w_bits, a_bits, range)
        self.geometry = ConvGeometry.of(like)

    def _branch(self, c: Tensor, d: Tensor, border: int) -> Tensor:
        return self.geometry.sums(c, d, float(border) if border else None)


def _transposition(like: nn.ConvTranspose2d) -> Callable[[Tensor, Tensor], Tensor]:
    return functools.partial(
        F.conv_transpose2d,
        stride=like.stride,
        padding=cast(tuple[int, ...], like.padding),
        output_padding=like.output_padding,
        groups=like.groups,
        dilation=like.dilation,
    )


class MultiBranchConvTranspose2d(MultiBranch):
    """Branches of a transposed convolution; parameters as in ``nn.ConvTranspose2d``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        *,
        w_bits: int = 2,
        a_bits: int = 2,
        range: MBNRange = "htanh",
    ) -> None:
        like = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            dilation=dilation,
        )
        super().__init__(like.weight.shape, w_bits, a_bits, range)
        self.transpose = _transposition(like)

    def _branch(self, c: Tensor, d: Tensor, border: int) -> Tensor:
        return self.transpose(c, d)


class MultiBranchLinear(MultiBranch):
    """Branches of a linear layer."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        w_bits: int = 2,
        a_bits: int = 2,
        range: MBNRange = "htanh",
    ) -> None:
        super().__init__((out_features, in_features), w_bits, a_bits, range)

    def _branch(self, c: Tensor, d: Tensor, border: int) -> Tensor:
        return F.linear(c, d)


@torch.no_grad()
def decompose(layer: QuantLayer) -> MultiBranch:
    """Branches that compute what `layer` computes in ``eval()``: the same integers, the same bits.

    Parameters
    ----------
    layer
        Bipolar weights on bipolar or unipolar activations, of any number of bits each.

    Raises
    ------
    FoveateError
        An operand is real in the present stage, or its codes are not sums of {-1, +1} digits.
    """
    act, quantizer = layer.coded_operands()
    if quantizer.format.kind != "bipolar" or act.format.kind == "twos":
        raise FoveateError(
            "only bipolar weights on bipolar or unipolar activations are sums of {-1,+1} branches, "
            f"got {quantizer.format.kind} weights on {act.format.kind} activations"
        )
    branches: MultiBranch
    if isinstance(layer, QuantConv2d):
        branches = MultiBranchConv2d(1, 1, 1)
        branches.geometry = ConvGeometry.of(layer)
    elif isinstance(layer, MBNConvTranspose2d):
        branches = MultiBranchConvTranspose2d(1, 1, 1)
        branches.transpose = _transposition(layer)
    elif isinstance(layer, QuantLinear):
        branches = MultiBranchLinear(1, 1)
    else:
        raise FoveateError(f"cannot decompose a {type(layer).__name__} into branches")
    codes = quantizer.format.codes(quantizer.integers(layer.weight))
    digits = 2 * _planes(codes, quantizer.format.bits).float() - 1
    branches.encoder = CodePlanes(copy.deepcopy(act))
    branches.weight = nn.Parameter(digits, requires_grad=False)
    branches.alpha = layer.broadcast(layer.alpha().detach())
    branches.bias = None if layer.bias is None else layer.broadcast(layer.bias.detach().float())
    branches.spatial_scale = copy.deepcopy(layer.spatial_scale)
    branches.gate = copy.deepcopy(layer.gate)
    branches.pad_value = layer.pad_value
    return branches.eval()


def decomposed(net: nn.Module) -> nn.Module:
    """Copy of a quantised network whose layers are sums of binary branches in plain torch.

    The copy is in ``eval()``. Layers on real inputs stay as they are: they have no digits to be
    taken apart.

    Raises
    ------
    FoveateError
        As `decompose`.
    """
    twin = copy.deepcopy(net).eval()
    for name, layer in list(quant_layers(twin)):
        if layer.coded_act is not None:
            parent, _, last = name.rpartition(".")
            setattr(twin.get_submodule(parent), last, decompose(layer))
    return twin


# --- layers whose branches are taken afterwards ---------------------------------------------


class MBNConv2d(QuantConv2d):
    """Convolution on the grids of MBN; a configuration of `QuantConv2d`.

    The range function is part of the layer: put no ReLU in front, also not for ``hrelu`` (at 1 bit
    it would leave nothing but +1).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in ``nn.Conv2d``, without a bias unless asked for.
    w_bits
        K, 1 to 8.
    a_bits
        M, 1 to 8; None leaves the input real (the first layer of a net that quantises all weights).
    range
        ``htanh``, ``hrelu`` (``htanh`` is taken at 1 bit) or ``relu_rescaled``, as in
        `UniformBipolar`.
    weight_norm
        ``clip`` as in the paper, ``tanh_max`` or ``lsq``, as in `UniformBipolarWeight`.
    pad_value
        0 (zeros after quantisation), -1 or +1 (lowest or highest level).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        w_bits: int = 2,
        a_bits: int | None = 2,
        range: BipolarRange = "htanh",
        weight_norm: WeightNorm = "tanh_max",
        pad_value: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            act=None if a_bits is None else UniformBipolar(a_bits, range),
            weight_quantizer=UniformBipolarWeight(w_bits, weight_norm, out_channels),
            pad_value=pad_value,
        )

    def decompose(self) -> MultiBranch:
        """The M K binary branches, see `foveate.quantization.multi_branch.decompose`."""
        return decompose(self)


class MBNLinear(QuantLinear):
    """Linear layer on the grids of MBN; parameters as in `MBNConv2d`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        w_bits: int = 2,
        a_bits: int | None = 2,
        range: BipolarRange = "htanh",
        weight_norm: WeightNorm = "tanh_max",
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            act=None if a_bits is None else UniformBipolar(a_bits, range),
            weight_quantizer=UniformBipolarWeight(w_bits, weight_norm, out_features),
        )

    def decompose(self) -> MultiBranch:
        """The M K binary branches, see `foveate.quantization.multi_branch.decompose`."""
        return decompose(self)


class MBNConvTranspose2d(QuantLayer, nn.ConvTranspose2d):  # type: ignore[misc]
    """Transposed convolution on the grids of MBN; parameters as in `MBNConv2d`.

    Its weight has the input channels first, so a learned step per output channel (``lsq``) is not
    offered. The zeros that a stride puts between the pixels are real zeros. It is decomposed, not
    folded: the engine has no transposed convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: Size = 1,
        *,
        w_bits: int = 2,
        a_bits: int | None = 2,
        range: BipolarRange = "htanh",
        weight_norm: Literal["clip", "tanh_max"] = "tanh_max",
    ) -> None:
        if weight_norm not in ("clip", "tanh_max"):
            raise FoveateError(
                f"MBNConvTranspose2d has weight_norm 'clip' or 'tanh_max', got {weight_norm!r}"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
        )
        self._equip(
            out_channels,
            None if a_bits is None else UniformBipolar(a_bits, range),
            UniformBipolarWeight(w_bits, weight_norm),
            channel_scale=False,
        )

    def _sums(self, a: Tensor, w: Tensor, level: float | None) -> Tensor:
        return _transposition(self)(a, w)

    def _outputs(self) -> int:
        return self.out_channels

    def _addends(self) -> int:
        return self.weight[:, 0].numel() // self.groups

    def broadcast(self, scale: Tensor) -> Tensor:
        """``(Co,)`` in a shape that multiplies the output."""
        return scale.reshape(-1, 1, 1)

    def decompose(self) -> MultiBranch:
        """The M K binary branches, see `foveate.quantization.multi_branch.decompose`."""
        return decompose(self)

    def folded(self) -> FoldedLayer:
        """Refused: the engine has no transposed convolution."""
        raise FoveateError("a transposed convolution cannot be folded: use decompose()")


# --- the chain -----------------------------------------------------------------------------


def set_mbn_bits(model: nn.Module, w_bits: int, a_bits: int) -> None:
    """Move every MBN layer of a model to other widths; weights and learned limits stay.

    The grids of different widths are not nested, so this is a start for training, not a switch.
    """
    found = False
    for _, layer in quant_layers(model):
        if isinstance(layer.act, UniformBipolar):
            layer.act, found = layer.act.with_bits(a_bits), True
        if isinstance(layer.weight_quantizer, UniformBipolarWeight):
            layer.weight_quantizer, found = layer.weight_quantizer.with_bits(w_bits), True
    if not found:
        raise FoveateError(
            f"{type(model).__name__} has no layer with UniformBipolar or UniformBipolarWeight: "
            "build it from MBNConv2d and MBNLinear"
        )


def bit_chain(
    model: nn.Module, fit: Callable[[nn.Module, int], T], bits: Iterable[int] = range(8, 0, -1)
) -> dict[int, T]:
    """Train at 8 bits, from there at 7, ... down to 1: each width starts from the last.

    Parameters
    ----------
    model
        Built from MBN layers, trained at full precision.
    fit
        ``fit(model, bits)`` trains one width and returns anything (an accuracy, a state dict).
    bits
        The widths, of weights and activations alike, strictly falling.

    Returns
    -------
    dict
        What `fit` returned, by width. The model is left at the last width.
    """
    widths = list(bits)
    if not widths or any(a <= b for a, b in itertools.pairwise(widths)):
        raise FoveateError(f"bit_chain goes from high to low: bits must fall, got {widths}")
    results = {}
    for width in widths:
        set_mbn_bits(model, width, width)
        results[width] = fit(model, width)
    return results


def chain_optimizer(model: nn.Module, bits: int, lr: float | None = None) -> torch.optim.Optimizer:
    """The paper's optimiser of a width: Adam for 1 and 2 bits, SGD from 3 bits on.

    `lr` is 0.1 for SGD as published and 1e-3 for Adam unless given. That, the momentum 0.9 of SGD
    and the absence of weight decay are our decision: the text does not say.
    """
    if bits <= 2:
        return torch.optim.Adam(model.parameters(), lr=1e-3 if lr is None else lr)
    return torch.optim.SGD(model.parameters(), lr=0.1 if lr is None else lr, momentum=0.9)
