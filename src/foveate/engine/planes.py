"""Weight codes as bit planes: what a few-bit weight costs is what its bits cost.

A code of K bits is cut into K planes of one bit; along the input channels 64 bits of a plane
share a word::

    codes (Co, C, kh, kw)  ->  words (Co, K, kh, kw, ceil(C / 64)), uint64
    channel c is bit c & 63 of word c >> 6; bits beyond the last channel are 0

The most significant plane comes first, so the first b planes are the b-bit version of a nested
quantiser: the same words serve several numbers of bits. In a grouped convolution c counts inside
the group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError

__all__ = ["WORD", "pack_codes", "unpack_codes", "unused_bits"]

WORD = 64


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint64]:
    """Pack weight codes into words.

    Parameters
    ----------
    codes
        ``(Co, C, kh, kw)``, values below ``2^bits``.
    bits
        1 to 8.

    Returns
    -------
    NDArray
        ``(Co, bits, kh, kw, ceil(C / 64))``.

    Raises
    ------
    FoveateError
        Another shape or type, or a code that does not fit.
    """
    if codes.dtype != np.uint8 or codes.ndim != 4 or not codes.size:
        raise FoveateError(
            f"weight codes are uint8 of shape (Co, C, kh, kw), got {codes.dtype} {codes.shape}"
        )
    if not 1 <= bits <= 8 or int(codes.max()) >= 1 << bits:
        raise FoveateError(f"weight codes up to {int(codes.max())} do not fit into {bits} bits")
    last = np.moveaxis(codes, 1, 3)  # (Co, kh, kw, C)
    fill = -codes.shape[1] % WORD
    last = np.pad(last, ((0, 0), (0, 0), (0, 0), (0, fill)))
    planes = [
        np.packbits(last >> np.uint8(bit) & np.uint8(1), axis=3, bitorder="little")
        for bit in reversed(range(bits))
    ]
    return np.ascontiguousarray(np.stack(planes, axis=1)).view("<u8")


def unpack_codes(words: NDArray[np.uint64], channels: int, bits: int) -> NDArray[np.uint8]:
    """Codes of the first `bits` planes, the inverse of :func:`pack_codes`.

    Parameters
    ----------
    words
        ``(Co, K, kh, kw, ceil(channels / 64))`` with K >= bits.
    channels
        Input channels of one group.

    Returns
    -------
    NDArray
        uint8, ``(Co, channels, kh, kw)``.
    """
    octets = np.ascontiguousarray(words[:, :bits], dtype="<u8").view(np.uint8)
    digits = np.unpackbits(octets, axis=4, count=channels, bitorder="little")
    codes = np.zeros((words.shape[0], *words.shape[2:4], channels), np.uint8)
    for plane in range(bits):
        codes = codes << np.uint8(1) | digits[:, plane]
    return np.ascontiguousarray(np.moveaxis(codes, 3, 1))


def unused_bits(words: NDArray[np.uint64], channels: int) -> bool:
    """Whether a bit beyond the last channel is set; kernels rely on there being none."""
    used = channels % WORD
    return bool(used) and bool((words[..., -1] >> np.uint64(used)).any())
