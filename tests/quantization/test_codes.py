"""What the bits of a code mean, against enumeration and two's complement by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat

FORMATS = list(itertools.product(("bipolar", "unipolar", "twos"), range(1, 9)))


def integer(kind: str, bits: int, code: int) -> int:
    """One code, digit by digit."""
    digits = [(code >> i) & 1 for i in range(bits)]
    if kind == "bipolar":
        return sum((1 << i) * (1 if digit else -1) for i, digit in enumerate(digits))
    value = sum((1 << i) * digit for i, digit in enumerate(digits))
    return value - (digits[-1] << bits if kind == "twos" else 0)


@pytest.mark.parametrize(("kind", "bits"), FORMATS)
def test_integers_of_every_code_and_back(kind, bits):
    format = CodeFormat(kind, bits)
    codes = np.arange(2**bits)
    expected = [integer(kind, bits, int(code)) for code in codes]
    assert format.integers(codes).tolist() == expected
    assert format.codes(np.array(expected)).tolist() == codes.tolist()
    assert (format.low, format.high) == (min(expected), max(expected))
    assert format.top == 2**bits - 1
    for stored in (torch.arange(2**bits, dtype=torch.uint8), codes.astype(np.uint8)):
        signed = format.integers(stored)
        assert signed.tolist() == expected, "bytes must not wrap around"
        assert format.codes(signed).tolist() == codes.tolist()
    floats = torch.arange(2**bits, dtype=torch.float32)
    assert format.integers(floats).dtype == torch.float32
    assert format.integers(floats).tolist() == expected
    assert format.codes(format.integers(floats)).tolist() == codes.tolist()


def test_bipolar_codes_are_odd_and_symmetric_without_zero():
    for bits in range(1, 9):
        s = CodeFormat("bipolar", bits).integers(torch.arange(2**bits))
        assert (s % 2 == 1).all()
        assert s.tolist() == (-s.flip(0)).tolist()


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("ternary", 2), ("bipolar", 0), ("twos", 9), ("unipolar", 2.0), ("twos", True)],
)
def test_other_formats_are_refused(kind, bits):
    with pytest.raises(FoveateError):
        CodeFormat(kind, bits)
