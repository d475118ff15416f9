"""The native convolution against integers: every format, path, instruction set and border."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("foveate._native", reason="the native engine is not built")


@contextlib.contextmanager
def forced(isa: str):
    native.force_isa(isa)
    try:
        yield
    finally:
        native.force_isa("")


def integers(codes: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """Signed integers of codes, by the definition of the formats."""
    u = codes.astype(np.int64)
    if kind == "bipolar":
        return 2 * u - (2**bits - 1)
    if kind == "twos":
        return np.where(u >= 2 ** (bits - 1), u - 2**bits, u)
    return u


def correlate(x: np.ndarray, w: np.ndarray, stride, padding, dilation, groups, fill) -> np.ndarray:
    """``(H, W, C)`` with ``(Co, C / groups, kh, kw)`` in int64, one tap after the other."""
    co, cg, kh, kw = w.shape
    x = np.pad(x, ((padding[0],) * 2, (padding[1],) * 2, (0, 0)), constant_values=fill)
    ho = (x.shape[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (x.shape[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((ho, wo, co), np.int64)
    for g in range(groups):
        mine = slice(g * co // groups, (g + 1) * co // groups)
        for ky in range(kh):
            for kx in range(kw):
                y0, x0 = ky * dilation[0], kx * dilation[1]
                part = x[
                    y0 : y0 + (ho - 1) * stride[0] + 1 : stride[0],
                    x0 : x0 + (wo - 1) * stride[1] + 1 : stride[1],
                    g * cg : (g + 1) * cg,
                ]
                out[..., mine] += part @ w[mine, :, ky, kx].T
    return out


def check(
    rng,
    *,
    size,
    channels,
    filters,
    kernel,
    kinds,
    bits,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    pad="zero",
    path="bits",
    threads=1,
):
    kind, weight_kind = kinds
    m, k = bits
    x = rng.integers(0, 2**m, (*size, channels), dtype=np.uint8)
    w = rng.integers(0, 2**k, (filters, channels // groups, *kernel), dtype=np.uint8)
    # Real zero, or the integer of the lowest or the highest code.
    fill = {"zero": 0, "low": integers(np.array(0), kind, m), "high": None}[pad]
    if fill is None:
        fill = integers(np.array(2**m - 1), kind, m)
    expected = correlate(
        integers(x, kind, m),
        integers(w, weight_kind, k),
        stride,
        padding,
        dilation,
        groups,
        int(fill),
    )
    found = native.conv2d(
        x, kind, m, w, weight_kind, k, stride, padding, dilation, groups, pad, path, threads
    )
    np.testing.assert_array_equal(found, expected)


KINDS = [(a, w) for a in ("bipolar", "unipolar") for w in ("bipolar", "unipolar", "twos")]


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("path", ["bits", "int8"])
def test_every_product_of_bits(isa, kinds, path):
    rng = np.random.default_rng(0)
    with forced(isa):
        for m in range(1, 9):
            for k in range(1 if kinds[1] != "twos" else 2, 9):
                check(
                    rng,
                    size=(5, 6),
                    channels=70,
                    filters=34,
                    kernel=(3, 3),
                    kinds=kinds,
                    bits=(m, k),
                    padding=(1, 1),
                    path=path,
                )


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("channels", [1, 3, 16, 63, 64, 65, 130])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_widths_and_kernels(isa, channels, kernel):
    rng = np.random.default_rng(channels * 10 + kernel)
    with forced(isa):
        for path in ("bits", "int8"):
            for bits in ((1, 1), (2, 1), (4, 3)):
                for kinds in (KINDS[0], KINDS[3]):
                    check(
                        rng,
                        size=(9, 7),
                        channels=channels,
                        filters=33,
                        kernel=(kernel, kernel),
                        kinds=kinds,
                        bits=bits,
                        padding=(kernel // 2,) * 2,
                        path=path,
                        threads=2,
                    )


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    kernel = draw(st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 3])))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)
    ]
    kinds = draw(st.sampled_from(KINDS))
    fewest = 2 if kinds[1] == "twos" else 1
    return {
        "size": tuple(draw(st.integers(low, low + 12)) for low in least),
        "channels": groups * draw(st.integers(1, 140)),
        "filters": groups * draw(st.integers(1, 70)),
        "kernel": kernel,
        "kinds": kinds,
        "bits": draw(st.tuples(st.integers(1, 8), st.integers(fewest, 8)))
        if draw(st.booleans())
        else (1, draw(st.integers(fewest, 2))),
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pad": draw(st.sampled_from(["zero", "zero", "low", "high"])),
        "threads": draw(st.sampled_from([1, 2, 5])),
    }


@settings(max_examples=120, deadline=None)
@given(cases(), st.sampled_from(["bits", "int8"]), st.integers(0, 2**31))
def test_any_convolution_on_any_instruction_set(case, path, seed):
    if case["groups"] > 1 and case["channels"] == case["filters"] == case["groups"]:
        path = "int8"  # depthwise: bits would waste 63 of 64
    for isa in native.available_isas():
        with forced(isa):
            check(np.random.default_rng(seed), **case, path=path)


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_depthwise(isa, kinds):
    with forced(isa):
        for channels in (1, 5, 40, 96):
            for bits in ((8, 8), (1, 2)):
                check(
                    np.random.default_rng(channels),
                    size=(7, 8),
                    channels=channels,
                    filters=channels,
                    groups=channels,
                    kernel=(3, 3),
                    kinds=kinds,
                    bits=bits,
                    stride=(2, 1),
                    padding=(1, 1),
                    path="int8",
                )


@pytest.mark.parametrize("path", ["bits", "int8"])
def test_largest_sums_do_not_overflow(path):
    """All codes at their largest, the window as long as 32 bits allow at 8 x 8 bits."""
    channels = 33024
    x = np.full((1, 1, channels), 255, np.uint8)
    w = np.full((2, channels, 1, 1), 255, np.uint8)
    w[1] = 0
    for kind in ("bipolar", "unipolar"):
        found = native.conv2d(x, kind, 8, w, kind, 8, path=path)
        low = -255 if kind == "bipolar" else 0
        np.testing.assert_array_equal(found[0, 0], [255 * 255 * channels, 255 * low * channels])
    with pytest.raises(ValueError, match="32-bit"):
        native.conv2d(
            np.zeros((1, 1, 34000), np.uint8), "bipolar", 8, np.zeros((1, 34000, 1, 1), np.uint8),
            "bipolar", 8, path=path,
        )  # fmt: skip


def test_bad_calls_are_refused():
    x, w = np.zeros((4, 4, 8), np.uint8), np.zeros((2, 8, 3, 3), np.uint8)
    for bad, why in (
        ({"stride": (0, 1)}, "out of range"),
        ({"groups": 3}, "do not fit"),
        ({"dilation": (4, 4)}, "larger than its padded input"),
        ({"padding": (-1, 0)}, "do not fit"),
        ({"pad": "Zero"}, "is not zero, low or high"),
        ({"path": "auto"}, "is not bits or int8"),
    ):
        with pytest.raises(ValueError, match=why):
            native.conv2d(x, "bipolar", 1, w, "bipolar", 1, **bad)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        native.conv2d(x, "bipolar", 9, w, "bipolar", 1)
    with pytest.raises(ValueError, match="more bits"):
        native.conv2d(x + 2, "bipolar", 1, w, "bipolar", 1)
    with pytest.raises(RuntimeError, match="available are"):
        native.force_isa("neon-42")
