"""The energy estimate against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.engine import compile
from foveate.engine.energy import ENERGY_FORMULA, energy_estimate, mac_energy
from foveate.errors import FoveateError
from foveate.quantization.layers import QuantConv2d
from foveate.quantization.quantizers import SignSTE, SignWeight, TwosWeight, UniformUnipolar


def test_multiply_adds_by_the_published_figures() -> None:
    assert mac_energy(32, 32) == pytest.approx(3.7 + 0.9)
    assert mac_energy(8, 8) == pytest.approx(0.2 + 0.1)
    assert mac_energy(1, 1) == pytest.approx(0.2 / 64 + 0.1 * 2 / 16)
    assert mac_energy(1, 32) == mac_energy(32, 8) == mac_energy(32, 32)
    energies = [mac_energy(bits, bits) for bits in range(1, 9)]
    assert energies == sorted(energies)
    for part in ("3.7 + 0.9", "0.2 k m / 64", "12.5 pJ", "Horowitz"):
        assert part in ENERGY_FORMULA


def test_a_float_convolution_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False))
    estimate = energy_estimate(compile(net, torch.zeros(1, 3, 8, 6)))
    macs = 8 * 6 * 5 * 27
    moved = 4 * (3 * 48 + 5 * 48 + 5 * 27)
    assert estimate.compute_uj == pytest.approx(macs * 4.6e-6)
    assert estimate.memory_uj == pytest.approx(moved * 12.5e-6)
    assert estimate.total_uj == pytest.approx(estimate.compute_uj + estimate.memory_uj)
    as_int8 = energy_estimate(compile(net, torch.zeros(1, 3, 8, 6)), bits=8)
    assert as_int8.compute_uj == pytest.approx(macs * 0.3e-6)
    assert as_int8.memory_uj == pytest.approx(estimate.memory_uj / 4)


@pytest.mark.parametrize(("bits", "channels"), [(1, 3), (1, 64), (2, 16), (4, 7)])
def test_codes_count_their_bits_and_no_filler(bits: int, channels: int) -> None:
    act = SignSTE() if bits == 1 else UniformUnipolar(bits)
    weight = SignWeight() if bits == 1 else TwosWeight(bits, 4)
    conv = QuantConv2d(channels, 4, 3, bias=False, act=act, weight_quantizer=weight)
    packed = compile(nn.Sequential(conv).eval(), torch.zeros(1, channels, 6, 6))
    estimate = energy_estimate(packed)
    macs = 16 * 4 * 9 * channels
    assert estimate.compute_uj == pytest.approx(macs * mac_energy(bits, bits) * 1e-6)
    source = channels * 36
    # read as floats and written as codes by the quantiser, read again by the convolution
    least = 4 * source + 2 * source * bits / 8 + 4 * channels * 9 * bits / 8 + 4 * 4 * 16
    rows = sum(
        packed.blobs[index].nbytes
        for node in packed.graph.nodes
        for step in node.steps
        for index in step.blobs.values()
    )
    assert estimate.memory_uj == pytest.approx((least + rows) * 12.5e-6)


def test_a_number_of_bits_that_is_none() -> None:
    packed = compile(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))
    with pytest.raises(FoveateError, match="1 to 8 bits"):
        energy_estimate(packed, bits=9)
