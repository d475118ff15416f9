"""Masked attention regularisation: the mirrored picture must be looked at in the mirrored place.

A network that returns a prediction *and* the map of what it looked at, ``(y, A) = f(X)``, is
trained on pairs: the clip with a random rectangle erased, ``X1 = M(X)``, and its mirror image,
``X2 = F(X1)``. Mirroring changes no label and no meaning, so the attention must mirror too:

    L = L_supervised + lam * mean( (std(A1) - F(std(A2)))^2 )

The erased rectangle keeps the network from resting on one region that happens to correlate with
the label; the consistency term punishes a map that depends on anything that does not mirror with
the content. Each map is standardised per sample, ``std(A) = (A - mean A) / (dev A + 1e-6)``:
otherwise a network whose supervised loss ignores the scale of its features (a correlation loss
does) would make the term vanish by shrinking them.

Sources. Erasing attention consistency: Zhang et al., ECCV 2022. The masked attention of
MAR-rPPG (Zhao et al., CVPR 2024 Workshops) is *reconstructed* from its abstract; no official code
was found. The default ``lam = 0.5`` on standardised maps is our decision.

Everything here works on images ``(B, C, H, W)`` and on clips ``(B, C, T, H, W)``, on any network,
and with any supervised loss.

>>> regularizer = MaskedAttentionRegularizer(lam=0.5)
>>> loss = regularizer(net, clip, bvp, neg_pearson)  # doctest: +SKIP
>>> loss.total.backward()  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = [
    "MaskedAttentionLoss",
    "MaskedAttentionRegularizer",
    "attention_consistency",
    "erase_clip",
    "flip",
    "standardise",
]


def flip(x: Tensor) -> Tensor:
    """Mirror left and right: pictures, clips and maps have their width in the last axis."""
    return torch.flip(x, (-1,))


def erase_clip(
    clip: Tensor,
    area: tuple[float, float] = (0.02, 0.25),
    ratio: tuple[float, float] = (0.3, 3.3),
    p: float = 0.5,
    fill: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Erase one random rectangle of each sample, the same one in every frame.

    A rectangle that moved from frame to frame would itself flicker in the band of the pulse.

    Parameters
    ----------
    clip
        ``(B, ..., H, W)``, *normalised*: `fill` is a value of the normalised range.
    area
        Erased fraction of the picture, drawn uniformly (before rounding to whole pixels).
    ratio
        Height divided by width, drawn log-uniformly.
    p
        Probability that a sample is erased at all.
    generator
        Source of randomness on the CPU; the global one when None.

    Returns
    -------
    Tensor
        A copy of the same shape; `clip` is left as it was.
    """
    if clip.ndim < 4:
        raise FoveateError(f"erase_clip expects (B, C, H, W) or more axes, got {tuple(clip.shape)}")
    height, width = clip.shape[-2:]
    erased = clip.clone()
    for sample in erased:
        if torch.rand((), generator=generator).item() >= p:
            continue
        for _ in range(10):  # a long rectangle may not fit: draw again, as RandomErasing does
            u, v = torch.rand(2, generator=generator).tolist()
            pixels = height * width * (area[0] + u * (area[1] - area[0]))
            aspect = math.exp(math.log(ratio[0]) + v * math.log(ratio[1] / ratio[0]))
            h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < h <= height and 0 < w <= width:
                top = int(torch.randint(height - h + 1, (), generator=generator))
                left = int(torch.randint(width - w + 1, (), generator=generator))
                sample[..., top : top + h, left : left + w] = fill
                break
    return erased


def standardise(attention: Tensor) -> Tensor:
    """Zero mean and unit deviation over all axes but the first (batch)."""
    axes = tuple(range(1, attention.ndim))
    centred = attention - attention.mean(axes, keepdim=True)
    deviation = centred.pow(2).mean(axes, keepdim=True)
    # sqrt has an infinite slope at 0: a dead map must give a zero gradient, not NaN.
    return centred / (deviation.clamp_min(1e-20).sqrt() + 1e-6)


def attention_consistency(attention: Tensor, attention_of_mirrored: Tensor) -> Tensor:
    """Mean squared difference of two standardised maps, the second one mirrored back.

    Parameters
    ----------
    attention, attention_of_mirrored
        ``(B, ..., h, w)``: the maps of a batch and of the same batch mirrored.

    Returns
    -------
    Tensor
        Scalar in [0, 4]; 0 when the network looks at the same content in both.
    """
    if attention.shape != attention_of_mirrored.shape:
        raise FoveateError(
            "attention_consistency expects two maps of one shape, got "
            f"{tuple(attention.shape)} and {tuple(attention_of_mirrored.shape)}"
        )
    return (standardise(attention) - flip(standardise(attention_of_mirrored))).pow(2).mean()


class MaskedAttentionLoss(NamedTuple):
    """What one step costs; `total` is the one to call ``backward`` on, the rest are its parts."""

    total: Tensor
    supervised: Tensor
    consistency: Tensor
    temporal: Tensor


class MaskedAttentionRegularizer(nn.Module):
    """Loss of a masked and mirrored pair; has no weights and is not used at test time.

    Parameters
    ----------
    lam
        Weight of the consistency term. 0 leaves the same masks and mirrors as plain augmentation,
        which is the ablation of the term.
    erase
        Range of the erased fraction of the picture.
    p
        Probability of erasing.
    masks
        ``shared``: one rectangle per sample, mirrored with it. ``independent``: one for each view,
        the stronger regulariser.
    reg_on
        ``both``: the supervised loss is the mean over both views. ``first``: the unmirrored only.
    temporal
        Weight of ``mean((A[t+1] - A[t])^2)`` on the standardised maps ``(B, T, h, w)``.
    """

    def __init__(
        self,
        lam: float = 0.5,
        erase: tuple[float, float] = (0.02, 0.25),
        p: float = 0.5,
        masks: Literal["shared", "independent"] = "shared",
        reg_on: Literal["both", "first"] = "both",
        temporal: float = 0.0,
    ) -> None:
        super().__init__()
        if not (0 < erase[0] <= erase[1] < 1 and 0 <= p <= 1 and lam >= 0 and temporal >= 0):
            raise FoveateError(
                "MaskedAttentionRegularizer expects lam >= 0, temporal >= 0, 0 <= p <= 1 and "
                f"0 < erase[0] <= erase[1] < 1, got {lam=}, {temporal=}, {p=}, {erase=}"
            )
        if masks not in ("shared", "independent") or reg_on not in ("both", "first"):
            raise FoveateError(
                "masks is 'shared' or 'independent' and reg_on is 'both' or 'first', "
                f"got {masks!r} and {reg_on!r}"
            )
        self.lam, self.erase, self.p = lam, erase, p
        self.masks, self.reg_on, self.temporal = masks, reg_on, temporal

    def views(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Both views in one batch, ``(B, ...) -> (2B, ...)``: erased clips, then mirrored ones."""
        first = erase_clip(clip, self.erase, p=self.p, generator=generator)
        second = first
        if self.masks == "independent":
            second = erase_clip(clip, self.erase, p=self.p, generator=generator)
        return torch.cat((first, flip(second)))

    def forward(
        self,
        net: Callable[[Tensor], tuple[Tensor, Tensor]],
        clip: Tensor,
        target: Tensor,
        supervised: Callable[[Tensor, Tensor], Tensor],
        generator: torch.Generator | None = None,
    ) -> MaskedAttentionLoss:
        """Draw the views, run the network once over both and add up the loss.

        Parameters
        ----------
        net
            ``clip -> (prediction, attention)`` with batch in the first axis of all three. Both
            views share one forward, so that batch normalisation sees both.
        clip
            ``(B, C, ..., H, W)``, normalised.
        target
            ``(B, ...)``, unchanged by mirroring.
        supervised
            ``(prediction, target) -> scalar``, a mean over the batch.
        """
        prediction, attention = net(self.views(clip, generator))
        size = clip.shape[0]
        first, mirrored = attention[:size], attention[size:]
        if self.reg_on == "both":  # the mean over both halves: they are of equal size
            fit = supervised(prediction, torch.cat((target, target)))
        else:
            fit = supervised(prediction[:size], target)
        consistency = attention_consistency(first, mirrored)
        steps = attention.new_zeros(())
        if self.temporal > 0:
            steps = standardise(attention).diff(dim=1).pow(2).mean()
        total = fit + self.lam * consistency + self.temporal * steps
        return MaskedAttentionLoss(total, fit, consistency, steps)
