"""The numpy executor against torch on integers, rational arithmetic and torch's own layers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engine.graph import BlobStore, Graph, Node, Step, Tensor
from foveate.engine.reference import (
    fused_multiply_add,
    quantized,
    reference_dump,
    reference_nodes,
    reference_run,
)
from foveate.engine.validation import validate
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat
from foveate.quantization.quantizers import UniformBipolar, UniformUnipolar

PRODUCTS = [
    (activation, weight)
    for activation in ("bipolar", "unipolar")
    for weight in ("bipolar", "unipolar", "twos")
]


def run(
    shape: tuple[int, int, int],
    outputs: list[Tensor],
    nodes: list[Node],
    store: BlobStore,
    x: np.ndarray,
    tensors: list[Tensor] | None = None,
) -> dict[int, np.ndarray]:
    """Dump of a graph with input 0; `outputs` are all its tensors but the input."""
    last = [tensor.id for tensor in outputs if tensor.format is None][-1:]
    graph = Graph([0], last, [Tensor(0, shape), *outputs], nodes)
    validate(graph, store.blobs)
    return reference_dump(graph, store.blobs, x)


def plain(op: str, x: np.ndarray, out: tuple[int, int, int], **attrs: Any) -> np.ndarray:
    node = Node(op, op, [0], [1], attrs)
    return run(x.shape[1:], [Tensor(1, out)], [node], BlobStore(), x)[1]


def geometry(kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> dict[str, Any]:
    def pair(n: Any) -> list[int]:
        return list(n) if isinstance(n, tuple) else [n, n]

    names = ("kernel", "stride", "padding", "dilation")
    return dict(zip(names, map(pair, (kernel, stride, padding, dilation)), strict=True))


# --- convolution ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    product=st.sampled_from(PRODUCTS),
    bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    channels=st.sampled_from([1, 3, 16, 63, 64, 65, 130]),
    outputs=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3]),
    kernel=st.sampled_from([1, 3, (1, 3), (2, 5)]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    dilation=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, (0, 2)]),
    pad=st.sampled_from(["zero", "low", "high"]),
    seed=st.integers(0, 9999),
)
def test_sums_over_codes_are_those_of_a_convolution_of_integers(
    product, bits, channels, outputs, groups, kernel, stride, dilation, padding, pad, seed
):
    kinds, rng = product, np.random.default_rng(seed)
    source, weights = CodeFormat(kinds[0], bits[0]), CodeFormat(kinds[1], bits[1])
    shape = (channels * groups, 7, 9)
    store = BlobStore()
    attrs = {
        **geometry(kernel, stride, padding, dilation),
        "groups": groups,
        "pad": pad,
        "path": "auto",
        "weight_format": {"kind": weights.kind, "bits": weights.bits},
    }
    w = rng.integers(0, weights.top + 1, (outputs * groups, channels, *attrs["kernel"]))
    codes = rng.integers(0, source.top + 1, (2, *shape))
    # What the engine never sees: the signed integers, written out.
    signed = {
        "bipolar": lambda u, b: 2 * u - (2**b - 1),
        "unipolar": lambda u, b: u,
        "twos": lambda u, b: np.where(u >= 2 ** (b - 1), u - 2**b, u),
    }
    a = torch.from_numpy(signed[source.kind](codes, source.bits)).double()
    edge = {"zero": 0, "low": source.low, "high": source.high}[pad]
    rows, columns = attrs["padding"]
    a = F.pad(a, (columns, columns, rows, rows), value=float(edge))
    expected = F.conv2d(
        a,
        torch.from_numpy(signed[weights.kind](w, weights.bits)).double(),
        None,
        attrs["stride"],
        0,
        attrs["dilation"],
        groups,
    ).numpy()
    # An input of exact code values; a unipolar format of step 1 quantises to the codes.
    x = source.integers(codes).astype(np.float32)
    quantise = Step("quantize", {"step": 1.0, "round": "half_up"}, output=1)
    nodes = [
        Node("pointwise", "q", [0], [1], steps=[quantise]),
        Node(
            "conv",
            "c",
            [1],
            [2],
            attrs,
            {"weight": store.add_codes(w.astype(np.uint8), weights.bits)},
            [Step("store", output=2)],
        ),
    ]
    made = [Tensor(1, shape, source), Tensor(2, expected.shape[1:])]
    dump = run(shape, made, nodes, store, x)
    assert np.array_equal(dump[1], codes)
    assert np.array_equal(dump[2], expected.astype(np.float32))


def test_sums_beyond_float32_are_exact_until_they_are_stored():
    """S = 2^24 + 1 is no float32: integer thresholds must still tell it from 2^24."""
    store = BlobStore()
    eight = CodeFormat("unipolar", 8)
    channels = 261
    attrs = {
        **geometry(1),
        "groups": 1,
        "pad": "zero",
        "path": "auto",
        "weight_format": {"kind": "unipolar", "bits": 8},
    }
    # 258 * 255 * 255 + 3 * 255 + 1 * 1 + 1 * 1 = 2^24 + 1
    w = np.full((1, channels, 1, 1), 255, np.uint8)
    x = np.full((1, channels, 1, 1), 255, np.float32)
    x[0, 0], x[0, 1:3], w[0, 1:3] = 3, 1, 1
    levels = [2**24, 2**24 + 1, 2**24 + 2]
    table = store.add(np.array(levels, np.int32)[:, None])
    flip = store.add(np.zeros(1, np.uint8))
    nodes = [
        Node(
            "pointwise",
            "q",
            [0],
            [1],
            steps=[Step("quantize", {"step": 1.0, "round": "floor"}, output=1)],
        ),
        Node(
            "conv",
            "c",
            [1],
            [2, 3],
            attrs,
            {"weight": store.add_codes(w, 8)},
            [
                Step("thresholds", {}, {"table": table, "flip": flip}, output=2),
                Step("store", output=3),
            ],
        ),
    ]
    tensors = [
        Tensor(1, (channels, 1, 1), eight),
        Tensor(2, (1, 1, 1), CodeFormat("unipolar", 2)),
        Tensor(3, (1, 1, 1)),
    ]
    dump = run((channels, 1, 1), tensors, nodes, store, x)
    total = int((x[0, :, 0, 0].astype(int) * w[0, :, 0, 0].astype(int)).sum())
    assert total == 2**24 + 1
    assert dump[2].item() == 2
    assert dump[3].item() == 2**24  # rounded to even


def rounded(value: Fraction) -> np.float32:
    """The float32 nearest to a rational number, ties to even."""
    near = np.float32(float(value))
    options = [
        near,
        np.nextafter(near, np.float32(-np.inf)),
        np.nextafter(near, np.float32(np.inf)),
    ]
    return min(
        options,
        key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(np.uint32)) & 1),
    )


FLOATS = st.builds(lambda m, e: m * 2.0**e, st.integers(-(2**24), 2**24), st.integers(-40, 20))


@settings(deadline=None, max_examples=200)
@given(a=FLOATS, b=FLOATS, c=FLOATS)
def test_fused_multiply_add_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    one = fused_multiply_add(*(np.array([v], np.float32) for v in (a, b, c)))
    assert one.dtype == np.float32
    assert one[0] == rounded(exact)


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        # a*b = 2^-24 - 2^-60: just below the middle between 1 + 2^-23 and 1 + 2^-22
        (2**-12 * (1 - 2**-18), 2**-12 * (1 + 2**-18), 1 + 2**-23, 1 + 2**-23),
        # a*b = 2^-24 + 2^-60: just above the middle between 1 and 1 + 2^-23
        (2**-12 * (1 + 2**-12), 2**-12 * (1 - 2**-12 + 2**-24), 1.0, 1 + 2**-23),
    ],
)
def test_fused_multiply_add_where_two_roundings_are_wrong(a, b, c, expected):
    values = [np.array([v], np.float32) for v in (a, b, c)]
    assert [float(v[0]) for v in values] == [a, b, c]
    for sign in (1, -1):
        first, second, third = values[0], sign * values[1], sign * values[2]
        naive = np.float32(first.astype(np.float64) * second + third)[0]
        assert naive != sign * expected
        assert fused_multiply_add(first, second, third)[0] == sign * expected


@settings(deadline=None, max_examples=20)
@given(
    groups=st.sampled_from([1, 2]),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_float_convolution_is_the_stated_chain_of_fused_multiply_adds(
    groups, kernel, stride, dilation, padding, seed
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, 2 * groups, 6, 5)).astype(np.float32)
    w = rng.normal(size=(2 * groups, 2, kernel, kernel)).astype(np.float32)
    expected = F.conv2d(
        torch.from_numpy(x), torch.from_numpy(w), None, stride, padding, dilation, groups
    ).numpy()
    store = BlobStore()
    attrs = {**geometry(kernel, stride, padding, dilation), "groups": groups, "pad": "zero"}
    node = Node("conv", "c", [0], [1], attrs, {"weight": store.add(w)}, [Step("store", output=1)])
    y = run(x.shape[1:], [Tensor(1, expected.shape[1:])], [node], store, x)[1]
    assert np.allclose(y, expected, atol=1e-5)
    # One output by hand, in rational numbers rounded after every tap.
    out, row, column = (int(rng.integers(n)) for n in expected.shape[1:])
    total = np.float32(0)
    for ky in range(kernel):
        for kx in range(kernel):
            for c in range(2):
                v = row * stride + ky * dilation - padding
                u = column * stride + kx * dilation - padding
                if not (0 <= v < 6 and 0 <= u < 5):
                    continue
                seen = x[0, out // 2 * 2 + c, v, u]
                total = rounded(
                    Fraction(float(seen)) * Fraction(float(w[out, c, ky, kx]))
                    + Fraction(float(total))
                )
    assert y[0, out, row, column] == total


# --- steps ---------------------------------------------------------------------------------


def stepped(x: np.ndarray, *steps: Step, store: BlobStore | None = None) -> np.ndarray:
    last = Step("store", output=1)
    node = Node("pointwise", "p", [0], [1], steps=[*steps, last])
    return run(x.shape[1:], [Tensor(1, x.shape[1:])], [node], store or BlobStore(), x)[1]


X = np.random.default_rng(1).normal(size=(2, 5, 3, 4)).astype(np.float32) * 4


def test_steps_are_torchs_functions():
    x = torch.from_numpy(X)
    store = BlobStore()
    rng = np.random.default_rng(2)
    alpha, beta, slope = (rng.normal(size=5).astype(np.float32) for _ in range(3))
    a, b, s = (torch.from_numpy(row)[:, None, None] for row in (alpha, beta, slope))
    blobs = {"alpha": store.add(alpha), "beta": store.add(beta)}
    cases: list[tuple[Step, torch.Tensor]] = [
        (Step("affine", {}, blobs), (x * a) + b),
        (Step("affine", {}, {"alpha": blobs["alpha"]}), x * a),
        (Step("affine", {}, {"beta": blobs["beta"]}), x + b),
        (Step("relu"), F.relu(x)),
        (Step("clip", {"low": -1.5, "high": 2}), x.clamp(-1.5, 2)),
        (Step("prelu", {}, {"slope": store.add(slope)}), F.prelu(x, s.reshape(-1))),
        (Step("hswish"), F.hardswish(x)),
    ]
    for step, expected in cases:
        assert np.array_equal(stepped(X, step, store=store), expected.numpy()), step.op
    for step, expected in ((Step("sigmoid"), x.sigmoid()), (Step("silu"), F.silu(x))):
        assert np.allclose(stepped(X, step), expected.numpy(), rtol=1e-6, atol=1e-7), step.op


def test_gate_and_add_read_other_tensors():
    store = BlobStore()
    pointwise = Node(
        "pointwise",
        "p",
        [0],
        [2],
        steps=[Step("gate", input=1), Step("add", input=0), Step("store", output=2)],
    )
    nodes = [Node("global_avg", "g", [0], [1]), pointwise]
    dump = run(X.shape[1:], [Tensor(1, (5, 1, 1)), Tensor(2, X.shape[1:])], nodes, store, X)
    assert np.allclose(dump[1], X.mean((2, 3), keepdims=True), atol=1e-6)
    assert np.array_equal(dump[2], X * dump[1] + X)


def test_thresholds_count_and_flip():
    store = BlobStore()
    table = np.array([[-1, -1, -np.inf, np.inf], [0, 0, -np.inf, np.inf], [2, 2, 3, np.inf]])
    flip = np.array([0, 1, 0, 1], np.uint8)
    blobs = {"table": store.add(table.astype(np.float32)), "flip": store.add(flip)}
    x = np.array([-1.5, -1, -0.0, 0.5, 2, 2.5, np.nan], np.float32)
    x = np.broadcast_to(x[:, None, None, None], (7, 4, 1, 1))
    node = Node("pointwise", "p", [0], [1], steps=[Step("thresholds", {}, blobs, output=1)])
    other = Node("pointwise", "o", [0], [2], steps=[Step("store", output=2)])
    tensors = [Tensor(1, (4, 1, 1), CodeFormat("unipolar", 2)), Tensor(2, (4, 1, 1))]
    codes = run((4, 1, 1), tensors, [node, other], store, x)[1][..., 0, 0]
    expected = [
        [sum(v >= t for t in (-1, 0, 2)) for v in (-1.5, -1, 0, 0.5, 2, 2.5)] + [0],
        [sum(-v >= t for t in (-1, 0, 2)) for v in (-1.5, -1, 0, 0.5, 2, 2.5)] + [0],
        [2, 2, 2, 2, 2, 2, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert codes.T.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["bipolar", "unipolar"]),
    bits=st.integers(1, 8),
    rounding=st.sampled_from(["half_up", "half_even", "floor"]),
    power=st.integers(-6, 3),
    seed=st.integers(0, 999),
)
def test_quantize_in_rational_numbers(kind, bits, rounding, power, seed):
    """Steps that are powers of two, so that no operation rounds but the last one."""
    target, step = CodeFormat(kind, bits), 2.0**power
    rng = np.random.default_rng(seed)
    top = 2**bits - 1
    y = (rng.integers(-8 * top - 20, 8 * top + 20, 200) / 8 * step).astype(np.float32)
    codes = quantized(y, target, step, rounding)
    for value, code in zip(y, codes, strict=True):
        exact = Fraction(float(value)) / Fraction(step)
        if kind == "bipolar":
            if bits == 1:
                assert code == (value >= 0)
                continue
            exact = (exact / top + 1) * top / 2
            if top & (top + 1) == 0 and Fraction(float(value / np.float32(step * top))) != (
                Fraction(float(value)) / Fraction(step * top)
            ):
                continue  # y / (step * top) itself is rounded
        floor = exact.numerator // exact.denominator
        if rounding == "half_up":
            whole = (exact + Fraction(1, 2)).__floor__()
        else:
            whole = floor if rounding == "floor" else round(exact)
        assert code == min(max(whole, 0), top)


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(1, 8), step=st.floats(0.01, 3), seed=st.integers(0, 999))
def test_quantize_is_the_quantisers(bits, step, seed):
    y = torch.randn(1, 300, generator=torch.Generator().manual_seed(seed)) * 2
    y[0, :4] = torch.tensor([0.0, -0.0, float("nan"), float("inf")])
    unipolar, bipolar = UniformUnipolar(bits), UniformBipolar(bits)
    with torch.no_grad():
        unipolar.step_size.fill_(step)
        for act in (unipolar, bipolar):
            expected = act.format.codes(act.integers(y)).numpy()
            got = quantized(y.numpy(), act.format, float(act.step()), "half_up")
            assert np.array_equal(got, expected)


def test_nan_becomes_code_zero():
    y = np.array([np.nan], np.float32)
    for kind in ("bipolar", "unipolar"):
        for bits in (1, 2, 8):
            assert quantized(y, CodeFormat(kind, bits), 0.5, "half_up")[0] == 0


# --- other nodes ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["max", "avg"]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 2),
    ceil_mode=st.booleans(),
    count=st.booleans(),
)
def test_pools_are_torchs(kind, kernel, stride, padding, ceil_mode, count):
    border = (min(padding, kernel[0] // 2), min(padding, kernel[1] // 2))
    x = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0)) - 3
    pool = (
        torch.nn.MaxPool2d(kernel, stride, border, ceil_mode=ceil_mode)
        if kind == "max"
        else torch.nn.AvgPool2d(kernel, stride, border, ceil_mode, count)
    )
    expected = pool(x).numpy()
    attrs: dict[str, Any] = {
        "kind": kind,
        "kernel": list(kernel),
        "stride": list(stride),
        "padding": list(border),
        "ceil_mode": ceil_mode,
        "count_include_pad": count,
    }
    assert np.array_equal(plain("pool", x.numpy(), expected.shape[1:], **attrs), expected)


def test_reshaping_nodes_are_torchs():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 6, 3, 4)).astype(np.float32))
    cases = [
        ("flatten", {}, x.flatten(1)[:, :, None, None]),
        ("slice", {"start": 1, "stop": 4}, x[:, 1:4]),
        ("shuffle", {"groups": 3}, torch.nn.ChannelShuffle(3)(x)),
        ("upsample", {"scale": 3, "mode": "nearest"}, F.interpolate(x, scale_factor=3)),
    ]
    for op, attrs, expected in cases:
        got = plain(op, x.numpy(), tuple(expected.shape[1:]), **attrs)
        assert np.array_equal(got, expected.numpy()), op
    node = Node("concat", "c", [0, 1, 0], [2])
    first = Node("slice", "s", [0], [1], {"start": 0, "stop": 2})
    outputs = [Tensor(1, (2, 3, 4)), Tensor(2, (14, 3, 4))]
    got = run((6, 3, 4), outputs, [first, node], BlobStore(), x.numpy())[2]
    assert np.array_equal(got, torch.cat([x, x[:, :2], x], 1).numpy())


def test_smooth_nodes_are_torchs():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32))
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    cases = [
        ("softmax", {}, x.softmax(1)),
        ("global_avg", {}, x.mean((2, 3), keepdim=True)),
        ("upsample", {"scale": 2, "mode": "bilinear"}, up),
        (
            "upsample",
            {"scale": 5, "mode": "bilinear"},
            F.interpolate(x, scale_factor=5, mode="bilinear", align_corners=False),
        ),
    ]
    for op, attrs, expected in cases:
        got = plain(op, x.numpy(), tuple(expected.shape[1:]), **attrs)
        assert np.allclose(got, expected.numpy(), atol=1e-6), op


@pytest.mark.parametrize("kind", ["bipolar", "unipolar"])
def test_codes_through_pool_mean_and_pointwise(kind):
    """Nodes that take codes work on their signed integers, or keep the format."""
    source = CodeFormat(kind, 2)
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 4, (2, 3, 4, 6))
    s = source.integers(codes)
    store = BlobStore()
    attrs: dict[str, Any] = {
        "kind": "max",
        "kernel": [2, 3],
        "stride": [2, 3],
        "padding": [1, 1],
        "ceil_mode": False,
        "count_include_pad": True,
    }
    quantise = Step("quantize", {"step": 1.0, "round": "half_up"}, output=1)
    half = store.add(np.full(3, 0.5, np.float32))
    nodes = [
        Node("pointwise", "q", [0], [1], steps=[quantise]),
        Node("pool", "pool", [1], [2], attrs),
        Node("global_avg", "mean", [1], [3], {"scale": 0.25}),
        Node(
            "pointwise",
            "real",
            [1],
            [4],
            steps=[Step("affine", {}, {"alpha": half}), Step("store", output=4)],
        ),
    ]
    pooled = F.max_pool2d(torch.from_numpy(s).float(), (2, 3), (2, 3), 1).numpy()
    tensors = [
        Tensor(1, (3, 4, 6), source),
        Tensor(2, pooled.shape[1:], source),
        Tensor(3, (3, 1, 1)),
        Tensor(4, (3, 4, 6)),
    ]
    dump = run((3, 4, 6), tensors, nodes, store, s.astype(np.float32))
    assert np.array_equal(source.integers(dump[2].astype(int)), pooled)
    assert np.array_equal(dump[3][..., 0, 0], s.sum((2, 3)) * 0.25)
    assert np.array_equal(dump[4], s * 0.5)


def test_results_do_not_depend_on_the_batch_and_wrong_shapes_are_named():
    node = Node("softmax", "s", [0], [1])
    graph = Graph([0], [1, 0], [Tensor(0, (5, 3, 4)), Tensor(1, (5, 3, 4))], [node])
    together = reference_run(graph, [], X)
    apart = [reference_run(graph, [], X[i : i + 1]) for i in range(2)]
    for place in range(2):
        assert np.array_equal(together[place], np.concatenate([one[place] for one in apart]))
    assert [node and node.op for node, _ in reference_nodes(graph, [], X)] == [None, "softmax"]
    with pytest.raises(FoveateError, match=r"\(N, \*\(5, 3, 4\)\).*\(2, 5, 4, 3\)"):
        reference_run(graph, [], X.swapaxes(2, 3))
