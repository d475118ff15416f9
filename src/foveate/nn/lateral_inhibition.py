"""Lateral inhibition: one number per channel that lets every pixel damp its neighbours.

In a retina an excited cell quietens the cells around it: flat areas become dim and edges stand out.
LI-Conv (Wang, Dong, Shen, Lin, Pantic, "Dilated Convolutions with Lateral Inhibitions for Semantic
Image Segmentation", 2020, arXiv 2006.03708) puts such a filter in front of a dilated convolution,
which otherwise sees only nine pixels of a wide field::

    y_c(p) = ReLU( x_c(p) - w_c sum_{d != 0} exp(-|d|^2 / (2 sigma^2)) x_c(p + q d) )
    o(p)   = sum_{i,j} W[i,j] y(p + r (i,j))

``w_c`` is the only parameter of channel c, the Gaussian is fixed, the centre weighs +1, and d runs
over a *zone* of z x z pixels; q, the filter's own dilation, is 1 even where r is 18. After every
step of the optimiser ``w_c`` is put back into [0, 1], by projection and not through a sigmoid:
:func:`project_after_step` sees to it. (P: paper and the authors' TensorFlow code.)

With w = 0 and an input that is nowhere negative, the layer is the identity, so weights of a plain
network load and compute what they did; all keys that are missing end in ``li_weight``. The
gradient of w is not 0 there, so training starts. On flat ground of height x the layer gives
(1 - w s) x, where s is the sum of the Gaussian off its centre: 3.8976 for z = 3 and sigma = 1. From
w = 0.2566 on, flat ground falls silent, so useful w are small.

Zeros are taken from beyond the picture's edge, as in the authors' code: inhibition is weaker there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.errors import FoveateError

__all__ = [
    "InhibitionReport",
    "LIConv2d",
    "LISeparableConv2d",
    "LateralInhibition2d",
    "SeparableConv2d",
    "add_lateral_inhibition",
    "freeze_all_but_li_weights",
    "inhibition_report",
    "li_layers",
    "no_decay_groups",
    "project_after_step",
    "project_li_weights",
]

_MAX_ZONE = 31

Norm = Callable[[int], nn.Module]
Where = Callable[[str, nn.Conv2d], bool] | Iterable[str]


class LateralInhibition2d(nn.Module):
    """Inhibition by the neighbours, ``(B, C, H, W) -> (B, C, H, W)``.

    Parameters
    ----------
    channels
        C.
    zone
        z, odd: side of the square of neighbours.
    sigma
        How far inhibition reaches, in (dilated) pixels.
    dilation
        q, of this filter alone; the convolution behind it has its own.
    init
        w starts uniform in this interval; where it is a point no random number is drawn. Released
        models: (0, 0), and (0, 0.15) in the LI-ASPP of ADE20K with MobileNetV2 (P).
    clip
        Interval that :meth:`project_` puts w back into.
    activation
        Behind the filter.
    norm
        Makes a layer between filter and activation, such as ``nn.BatchNorm2d``; the default is
        none (P).
    rectify_input
        ReLU before the filter too, so that negative inputs do not excite their neighbours.

    Attributes
    ----------
    li_weight
        w, ``(C, 1, 1, 1)``.
    falloff
        The Gaussian ``(1, 1, z, z)`` with 0 at its centre; not part of the state dict.

    Raises
    ------
    FoveateError
        A setting out of range, or, on call, another number of channels.
    """

    falloff: Tensor

    def __init__(
        self,
        channels: int,
        zone: int = 3,
        sigma: float = 1.0,
        dilation: int = 1,
        init: tuple[float, float] = (0.0, 0.0),
        clip: tuple[float, float] = (0.0, 1.0),
        activation: Literal["relu", "none"] = "relu",
        norm: Norm | None = None,
        rectify_input: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1 or dilation < 1 or zone % 2 == 0 or not 3 <= zone <= _MAX_ZONE:
            raise FoveateError(
                f"LateralInhibition2d expects at least one channel, an odd zone from 3 to "
                f"{_MAX_ZONE} and a dilation of at least 1, got {channels=}, {zone=}, {dilation=}"
            )
        if not (math.isfinite(sigma) and sigma > 0) or activation not in ("relu", "none"):
            raise FoveateError(
                "LateralInhibition2d expects sigma above 0 and activation 'relu' or 'none', got "
                f"{sigma=}, {activation=}"
            )
        if not 0 <= clip[0] <= init[0] <= init[1] <= clip[1] < math.inf:
            raise FoveateError(
                "LateralInhibition2d expects an interval init within clip, and clip at or above "
                f"0, got {init=}, {clip=}"
            )
        self.channels, self.zone, self.sigma, self.dilation = channels, zone, sigma, dilation
        self.init, self.clip = init, clip
        self.activation, self.rectify_input = activation, rectify_input
        offset = torch.arange(zone, dtype=torch.float64) - zone // 2
        falloff = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * sigma**2))
        falloff[zone // 2, zone // 2] = 0
        self.register_buffer("falloff", falloff.float()[None, None], persistent=False)
        self.li_weight = nn.Parameter(torch.empty(channels, 1, 1, 1))
        self.norm = nn.Identity() if norm is None else norm(channels)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw w anew."""
        low, high = self.init
        with torch.no_grad():
            if low == high:
                self.li_weight.fill_(low)
            else:
                self.li_weight.uniform_(low, high, generator=generator)

    @torch.no_grad()
    def project_(self) -> LateralInhibition2d:
        """Put w back into `clip`; to be called after every step of the optimiser."""
        self.li_weight.clamp_(*self.clip)
        return self

    def kernel(self) -> Tensor:
        """``(C, 1, z, z)``: 1 at the centre, ``-w_c`` times the Gaussian around it."""
        surround = -self.li_weight * self.falloff
        middle = self.zone // 2
        return surround + F.pad(torch.ones_like(self.li_weight), (middle,) * 4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        # A tracer's stand-in has no shape to check.
        if isinstance(x, Tensor) and (x.ndim != 4 or x.shape[1] != self.channels):
            raise FoveateError(
                f"LateralInhibition2d expects (B, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        if self.rectify_input:
            x = F.relu(x)
        pad = self.dilation * (self.zone // 2)
        x = F.conv2d(x, self.kernel(), padding=pad, dilation=self.dilation, groups=self.channels)
        x = self.norm(x)
        return F.relu(x) if self.activation == "relu" else x


class LIConv2d(nn.Conv2d):
    """A convolution with lateral inhibition of its input; else exactly ``nn.Conv2d``.

    ``(B, in_channels, H, W)`` -> as ``nn.Conv2d``. The state dict is that of ``nn.Conv2d`` and
    ``inhibition.li_weight``.

    Parameters
    ----------
    zone, sigma, li_dilation, init, norm, rectify_input
        Of :class:`LateralInhibition2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        zone: int = 3,
        sigma: float = 1.0,
        li_dilation: int = 1,
        init: tuple[float, float] = (0.0, 0.0),
        norm: Norm | None = None,
        rectify_input: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.inhibition = LateralInhibition2d(
            in_channels, zone, sigma, li_dilation, init, norm=norm, rectify_input=rectify_input
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        return super().forward(self.inhibition(input))


class SeparableConv2d(nn.Module):
    """Depthwise kxk with a rate, BN, ReLU, then pointwise 1x1, BN, ReLU; the size stays.

    ``(B, in_channels, H, W) -> (B, out_channels, H, W)``. Both start from normal deviates within
    two deviations of 0.33 and 0.06 (P: the authors' code).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, dilation: int = 1
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or min(in_channels, out_channels, kernel_size, dilation) < 1:
            raise FoveateError(
                "SeparableConv2d expects positive sizes and an odd kernel, got "
                f"{in_channels=}, {out_channels=}, {kernel_size=}, {dilation=}"
            )
        self.inhibition: nn.Module = nn.Identity()
        pad = dilation * (kernel_size // 2)
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, 1, pad, dilation, in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        for conv, std in ((self.depthwise, 0.33), (self.pointwise, 0.06)):
            nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = F.relu(self.bn1(self.depthwise(self.inhibition(x))))
        return F.relu(self.bn2(self.pointwise(x)))


class LISeparableConv2d(SeparableConv2d):
    """:class:`SeparableConv2d` with lateral inhibition in front.

    Parameters
    ----------
    zone, sigma, li_dilation, init, norm, rectify_input
        Of :class:`LateralInhibition2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        dilation: int = 1,
        *,
        zone: int = 3,
        sigma: float = 1.0,
        li_dilation: int = 1,
        init: tuple[float, float] = (0.0, 0.0),
        norm: Norm | None = None,
        rectify_input: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, dilation)
        self.inhibition = LateralInhibition2d(
            in_channels, zone, sigma, li_dilation, init, norm=norm, rectify_input=rectify_input
        )


# ------------------------------------------------------------------------------ surgery


def add_lateral_inhibition(
    model: nn.Module,
    where: Where,
    zone: int = 3,
    sigma: float = 1.0,
    init: tuple[float, float] = (0.0, 0.0),
    norm: Norm | None = None,
    rectify_input: bool = False,
) -> list[str]:
    """Put lateral inhibition in front of convolutions of any network, in place.

    Weights stay the very same parameters under the same names, so published weights still load.

    Parameters
    ----------
    where
        Names of convolutions (as in ``model.named_modules()``), or a function of name and
        convolution. In the authors' nets they are the dilated (or depthwise) 3x3 ones.
    zone, sigma, init, norm, rectify_input
        Of :class:`LateralInhibition2d`.

    Returns
    -------
    list of str
        Names of the convolutions that were changed. One that is used under several names stays
        one.

    Raises
    ------
    FoveateError
        A name is no plain ``nn.Conv2d``, or nothing was chosen. The model is then unchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    plain = {name: m for name, m in modules.items() if type(m) is nn.Conv2d and name}
    chosen: list[str]
    if callable(where):
        chosen = [name for name, conv in plain.items() if where(name, conv)]
    else:
        chosen = list(dict.fromkeys(where))
        for name in chosen:
            if name not in plain:
                kind = f"a {type(modules[name]).__name__}" if name in modules else "not there"
                raise FoveateError(
                    f"lateral inhibition goes in front of a plain nn.Conv2d inside the model, but "
                    f"{name!r} is {kind}; name convolutions as model.named_modules() does"
                )
    if not chosen:
        raise FoveateError(
            f"no convolution of {type(model).__name__} was chosen for lateral inhibition; it has "
            f"{len(plain)}, such as {', '.join(list(plain)[:3]) or 'none'}"
        )
    made: dict[int, LIConv2d] = {}
    for conv in (plain[name] for name in chosen):
        if id(conv) not in made:
            inhibition = LateralInhibition2d(
                conv.in_channels, zone, sigma, init=init, norm=norm, rectify_input=rectify_input
            )
            made[id(conv)] = _inhibited(conv, inhibition)
    for name, conv in plain.items():
        if id(conv) in made:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made[id(conv)])
    return chosen


def _inhibited(conv: nn.Conv2d, inhibition: LateralInhibition2d) -> LIConv2d:
    with torch.device("meta"):  # no numbers are drawn for weights that are replaced
        new = LIConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
        )
    new.padding_mode, new._reversed_padding_repeated_twice = (  # a non-zero mode comes along
        conv.padding_mode,
        conv._reversed_padding_repeated_twice,
    )
    new.weight, new.bias = conv.weight, conv.bias
    new.inhibition = inhibition.to(conv.weight.device, conv.weight.dtype)
    return new.train(conv.training)


# ------------------------------------------------------------------------------ training


def li_layers(model: nn.Module) -> Iterator[tuple[str, LateralInhibition2d]]:
    """Name and layer of every :class:`LateralInhibition2d`."""
    for name, module in model.named_modules():
        if isinstance(module, LateralInhibition2d):
            yield name, module


def project_li_weights(model: nn.Module) -> int:
    """Put every w back into its interval; how many layers there were."""
    layers = [layer.project_() for _, layer in li_layers(model)]
    return len(layers)


def project_after_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Call :func:`project_li_weights` after every step of `optimizer` from now on.

    It runs in the optimiser's own step: also behind a gradient scaler and in every process.
    """

    def project(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        project_li_weights(model)

    return optimizer.register_step_post_hook(project)


def no_decay_groups(
    model: nn.Module, weight_decay: float, li_lr: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: `weight_decay` for all but w, which has none (P).

    Parameters
    ----------
    li_lr
        Learning rate of w; None: that of the others. (The authors' code can multiply the gradient
        of w instead; for SGD it is the same.)
    """
    ours = {id(layer.li_weight) for _, layer in li_layers(model)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in ours], "weight_decay": weight_decay}
    ]
    li_weights = [p for p in trained if id(p) in ours]
    if li_weights:
        rate = {} if li_lr is None else {"lr": li_lr}
        groups.append({"params": li_weights, "weight_decay": 0.0, **rate})
    return [group for group in groups if group["params"]]


def freeze_all_but_li_weights(model: nn.Module) -> int:
    """Let only w be trained, as in the authors' optional last stage; how many numbers that is.

    Raises
    ------
    FoveateError
        The model has no lateral inhibition.
    """
    ours = {id(layer.li_weight) for layer in _some_layers(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in ours)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class InhibitionReport:
    """What was learned.

    Attributes
    ----------
    mean, largest
        Of w over all channels of all layers.
    zeros
        Share of channels whose w is exactly 0: they are not inhibited.
    silent
        Share of channels in which flat ground falls silent.
    parameters, share
        How many w there are, and as a share of all parameters of the model.
    layers
        Mean w of every layer, by name.
    """

    mean: float
    largest: float
    zeros: float
    silent: float
    parameters: int
    share: float
    layers: dict[str, float]

    @property
    def active(self) -> bool:
        """Whether any channel inhibits at all; if not, the method did nothing."""
        return self.zeros < 1

    def __str__(self) -> str:
        if not self.active:
            return "all w are 0: lateral inhibition is inactive"
        return (
            f"w mean {self.mean:.4f}, largest {self.largest:.4f}, {100 * self.zeros:.0f} % zeros, "
            f"{100 * self.silent:.0f} % silence flat ground; {self.parameters} parameters "
            f"({100 * self.share:.3f} %)"
        )


@torch.no_grad()
def inhibition_report(model: nn.Module) -> InhibitionReport:
    """Look at all w of a model.

    Raises
    ------
    FoveateError
        The model has no lateral inhibition.
    """
    found = _some_layers(model)
    w = torch.cat([layer.li_weight.flatten().double().cpu() for layer in found.values()])
    flat = [layer.li_weight * layer.falloff.sum() >= 1 for layer in found.values()]
    return InhibitionReport(
        mean=float(w.mean()),
        largest=float(w.max()),
        zeros=float((w == 0).double().mean()),
        silent=float(torch.cat([f.flatten().cpu() for f in flat]).double().mean()),
        parameters=w.numel(),
        share=w.numel() / sum(p.numel() for p in model.parameters()),
        layers={name: float(layer.li_weight.mean()) for name, layer in found.items()},
    )


def _some_layers(model: nn.Module) -> dict[str, LateralInhibition2d]:
    found = dict(li_layers(model))
    if not found:
        raise FoveateError(
            f"{type(model).__name__} has no lateral inhibition; put it in with "
            "add_lateral_inhibition first"
        )
    return found
