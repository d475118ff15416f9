"""What the bits of a code mean.

A quantised tensor is stored as unsigned codes ``u`` in ``0 .. 2^b - 1``. Its `CodeFormat` says
which signed integer ``s`` each code stands for; the real value is ``s * step``:

    bipolar    s = 2 u - (2^b - 1)        odd integers, no zero; 1 bit is {-1, +1}
    unipolar   s = u                      what a ReLU leaves: 0 .. 2^b - 1
    twos       s = u - 2^b [top bit]      two's complement: -2^(b-1) .. 2^(b-1) - 1

The sums of a quantised convolution are sums of products of these integers, so they are exact.
Source: the digits {-1, +1} of bipolar codes are those of Sun et al., "Multi-Precision Quantized
Neural Networks via Encoding Decomposition of {-1,+1}", AAAI 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.errors import FoveateError

__all__ = ["CodeFormat", "Kind"]

Kind = Literal["bipolar", "unipolar", "twos"]

Codes = TypeVar("Codes", Tensor, npt.NDArray[np.integer], npt.NDArray[np.floating])


@dataclass(frozen=True)
class CodeFormat:
    """Meaning of unsigned codes of `bits` bits; see the module for the three kinds.

    Attributes
    ----------
    kind
        ``bipolar``, ``unipolar`` or ``twos``.
    bits
        1 to 8.

    Raises
    ------
    FoveateError
        Another kind, or a number of bits outside 1..8.
    """

    kind: Kind
    bits: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise FoveateError(
                f"the kind of a code is one of {', '.join(get_args(Kind))}, got {self.kind!r}"
            )
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise FoveateError(f"a code has 1 to 8 bits (an int), got {self.bits!r}")

    @property
    def top(self) -> int:
        """The largest code, ``2^b - 1``; there are ``top + 1`` codes."""
        return (1 << self.bits) - 1

    @property
    def low(self) -> int:
        """The smallest signed integer, that of code 0 (of code ``2^(b-1)`` for ``twos``)."""
        if self.kind == "unipolar":
            return 0
        return -self.top if self.kind == "bipolar" else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest signed integer."""
        return self.top if self.kind != "twos" else (1 << (self.bits - 1)) - 1

    def integers(self, u: Codes) -> Codes:
        """Signed integers ``s`` of codes ``u``; bytes come back as int16, other dtypes are kept."""
        u = _wide(u)
        if self.kind == "bipolar":
            return 2 * u - self.top
        if self.kind == "unipolar":
            return 1 * u
        half = 1 << (self.bits - 1)
        return (u + half) % (2 * half) - half

    def codes(self, s: Codes) -> Codes:
        """Codes ``u`` of signed integers ``s``: the inverse of `integers`, dtypes likewise."""
        s = _wide(s)
        if self.kind == "bipolar":
            return (s + self.top) // 2
        if self.kind == "unipolar":
            return 1 * s
        return s % (1 << self.bits)


def _wide(x: Codes) -> Codes:
    """Bytes cannot hold -255 to 255: they would wrap around."""
    if isinstance(x, Tensor):
        return x.to(torch.int16) if x.dtype in (torch.uint8, torch.int8) else x
    return x.astype(np.int16) if x.dtype.itemsize == 1 else x
