"""What the native engine believes about the processor, against what the kernel says."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from foveate._native import cpu_features

NAMES = {
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_vpopcntdq",
    "avx512_bf16",
    "neon",
}


def test_every_feature_is_a_plain_bool() -> None:
    features = cpu_features()
    assert set(features) == NAMES
    assert all(type(value) is bool for value in features.values())
    assert cpu_features() == features


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"),
    reason="compares with /proc/cpuinfo of Linux on x86-64",
)
@pytest.mark.parametrize("name", sorted(NAMES - {"neon"}))
def test_agrees_with_the_kernels_flags(name: str) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = [set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")]
    assert flags
    # A core without the feature would end the process: all cores count. The kernel lists a
    # feature only when it also saves the registers, which is the engine's condition too.
    assert cpu_features()[name] == all(name in each for each in flags)


@pytest.mark.skipif(sys.platform != "linux", reason="platform.machine() names differ elsewhere")
def test_neon_exactly_on_aarch64() -> None:
    assert cpu_features()["neon"] == (platform.machine() == "aarch64")


def test_wider_registers_never_come_without_their_foundation() -> None:
    features = cpu_features()
    for name in ("avx512bw", "avx512vl", "avx512_vnni", "avx512_vpopcntdq", "avx512_bf16"):
        assert features["avx512f"] or not features[name]
    assert not (features["neon"] and features["avx2"])
