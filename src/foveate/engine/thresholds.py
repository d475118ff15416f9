"""Thresholds instead of arithmetic: an epilogue that ends in few-bit codes is a row of comparisons.

Scale, bias, batch normalisation, activation and quantiser map each accumulator v of a channel to
a code, and they are monotone. So the code is a count::

    code = #{ j : v' >= T[j][channel] },   v' = -v where the map falls (flip), else v
    j = 1 .. 2^bits - 1

T is not derived by algebra, which would round otherwise than the modules do. It is *searched*:
the actual modules are evaluated in eval mode on candidate values, all channels and levels at once,
and the smallest v' that reaches each level is found by bisection. Each operation is monotone under
rounding, so the counts equal the modules' codes bit for bit, ties included.

Two sorts of v: the integer sum S of a convolution over codes, and a float32. Floats are searched
in the order of their bits: as sign-and-magnitude integers they are sorted like their values, so
32 halvings find the exact float.

A map that turns out not to be monotone (a PReLU with a negative slope, say) has no such table;
:func:`integer_thresholds` and :func:`float_thresholds` notice and return None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CodeOf", "Thresholds", "float_thresholds", "integer_thresholds"]

CodeOf: TypeAlias = Callable[[Tensor], Tensor]
"""Codes ``(L, C)``, any dtype, of candidate values ``(L, C)``, float32; column c is channel c."""

INT32 = np.iinfo(np.int32)
LARGEST_KEY = int(np.finfo(np.float32).max.view(np.int32))
PROBES = 64  # places at which a table is compared with the map it stands for, beside every jump


@dataclass(frozen=True)
class Thresholds:
    """Table ``(2^bits - 1, C)``, int32 or float32, ascending; flip ``(C,)`` uint8, 0 or 1."""

    table: NDArray[np.int32] | NDArray[np.float32]
    flip: NDArray[np.uint8]


def integer_thresholds(
    code_of: CodeOf, channels: int, levels: int, reach: int
) -> Thresholds | None:
    """Thresholds of integers S with ``|S| <= reach``.

    Parameters
    ----------
    code_of
        The modules; gets S as float32, which is what they get in eval mode.
    levels
        Largest code.
    reach
        Below 2^31 - 1.

    Returns
    -------
    Thresholds or None
        int32; INT32_MIN and INT32_MAX are "always" and "never". None if the map is not monotone.
    """
    found = _search(lambda keys: code_of(keys.to(torch.float32)), channels, levels, reach)
    if found is None:
        return None
    keys, flip = found
    keys = np.where(keys > reach, INT32.max, np.where(keys <= -reach, INT32.min, keys))
    return Thresholds(keys.astype(np.int32), flip)


def float_thresholds(code_of: CodeOf, channels: int, levels: int) -> Thresholds | None:
    """Thresholds of float32 values.

    Returns
    -------
    Thresholds or None
        float32; -inf and +inf are "always" and "never". None if the map is not monotone.
    """
    found = _search(lambda keys: code_of(_floats(keys)), channels, levels, LARGEST_KEY)
    if found is None:
        return None
    keys, flip = found
    values = _floats(torch.from_numpy(keys)).numpy()
    values = np.where(keys > LARGEST_KEY, np.float32(np.inf), values)
    values = np.where(keys <= -LARGEST_KEY, np.float32(-np.inf), values)
    return Thresholds(values.astype(np.float32), flip)


def _floats(keys: Tensor) -> Tensor:
    """Float32 of sign-and-magnitude keys, int64: sorted alike; -0.0 has no key of its own."""
    keys = keys.clamp(-LARGEST_KEY, LARGEST_KEY)
    bits = torch.where(keys >= 0, keys, -keys + INT32.min)
    return bits.to(torch.int32).view(torch.float32)


def _search(
    code_of: CodeOf, channels: int, levels: int, reach: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]] | None:
    """Smallest key in ``-reach .. reach`` of every level, ``reach + 1`` where none; and flip."""

    def codes(keys: Tensor) -> Tensor:
        return code_of(keys).to(torch.int64)

    with torch.no_grad():
        ends = codes(torch.tensor([[-reach], [reach]]).expand(2, channels))
        flip = ends[0] > ends[1]
        turn = torch.where(flip, -1, 1)
        # Invariant: below(low) or low is out of range; above(high) or high is out of range.
        wanted = torch.arange(1, levels + 1)[:, None].expand(levels, channels)
        low = torch.full((levels, channels), -reach - 1)
        high = torch.full((levels, channels), reach + 1)
        while bool((high - low > 1).any()):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            # Where the search is over, middle is low, which may be out of range: harmless.
            reached = codes(turn * middle.clamp(-reach, reach)) >= wanted
            open_ = high - low > 1
            high = torch.where(open_ & reached, middle, high)
            low = torch.where(open_ & ~reached, middle, low)
        # The map is monotone if the table gives its codes: around every jump and in between.
        probes = torch.linspace(-reach, reach, PROBES, dtype=torch.float64).round().long()
        near = torch.linspace(0, 1, PROBES, dtype=torch.float64).pow(8).mul(reach).round().long()
        spread = torch.cat([probes, near, -near])[:, None].expand(-1, channels)
        places = torch.cat([high - 1, high, spread]).clamp(-reach, reach)
        counted = (places[None] >= high[:, None]).sum(0)
        if not torch.equal(codes(turn * places), counted):
            return None
    return high.numpy(), flip.to(torch.uint8).numpy()
