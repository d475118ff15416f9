"""Graphs: JSON there and back, every rule of validation, bit planes, shared arrays."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engine.graph import (
    BlobStore,
    Graph,
    Node,
    Step,
    Tensor,
    conv_macs,
    graph_from_json,
    graph_text,
)
from foveate.engine.planes import pack_codes, unpack_codes, unused_bits
from foveate.engine.validation import pooled_length, validate
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat

BIT = CodeFormat("bipolar", 1)
TWO = CodeFormat("unipolar", 2)


def example() -> tuple[Graph, list[np.ndarray]]:
    """A graph that has a node or step of nearly every sort: image (3, 8, 6)."""
    rng = np.random.default_rng(0)
    store = BlobStore()

    def row(channels: int) -> int:
        return store.add(rng.normal(size=channels).astype(np.float32))

    stem = store.add(rng.normal(size=(8, 3, 3, 3)).astype(np.float32))
    codes = store.add_codes(rng.integers(0, 4, (4, 4, 3, 3), dtype=np.uint8), 2)
    table = store.add(np.sort(rng.integers(-9, 9, (3, 4)).astype(np.int32), axis=0))
    reals = store.add(np.sort(rng.normal(size=(1, 8)).astype(np.float32), axis=0))
    flip4, flip8 = store.add(np.array([0, 1, 0, 1], np.uint8)), store.add(np.zeros(8, np.uint8))
    geometry: dict[str, Any] = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    tensors = [
        Tensor(0, (3, 8, 6)),
        Tensor(1, (8, 8, 6)),
        Tensor(2, (8, 8, 6), BIT),
        Tensor(3, (8, 4, 3), BIT),
        Tensor(4, (4, 4, 3), TWO),
        Tensor(5, (4, 4, 3)),
        Tensor(6, (4, 1, 1)),
        Tensor(7, (4, 4, 3)),
        Tensor(8, (4, 4, 3), TWO),
        Tensor(9, (8, 4, 3), TWO),
        Tensor(10, (96, 1, 1), TWO),
        Tensor(11, (96, 1, 1)),
        Tensor(12, (4, 8, 6)),
        Tensor(13, (4, 8, 6)),
    ]
    nodes = [
        Node(
            "conv",
            "stem",
            [0],
            [1, 2],
            {"kernel": [3, 3], **geometry, "groups": 1, "pad": "zero"},
            {"weight": stem},
            [
                Step("affine", blobs={"alpha": row(8), "beta": row(8)}),
                Step("prelu", blobs={"slope": row(8)}),
                Step("store", output=1),
                Step("thresholds", blobs={"table": reals, "flip": flip8}, output=2),
            ],
        ),
        Node("pool", "pool", [2], [3], pool_attrs([2, 2])),
        Node(
            "conv",
            "layer.conv",
            [3],
            [4, 5],
            {
                "kernel": [3, 3],
                **geometry,
                "groups": 2,
                "pad": "zero",
                "weight_format": {"kind": "twos", "bits": 2},
                "path": "auto",
            },
            {"weight": codes},
            [
                Step("thresholds", blobs={"table": table, "flip": flip4}, output=4),
                Step("affine", blobs={"alpha": row(4)}),
                Step("store", output=5),
            ],
        ),
        Node("global_avg", "se", [5], [6]),
        Node(
            "pointwise",
            "layer.se",
            [5],
            [7, 8],
            steps=[
                Step("gate", input=6),
                Step("add", input=5),
                Step("clip", {"low": 0, "high": 6.5}),
                Step("hswish"),
                Step("store", output=7),
                Step("quantize", {"step": 0.25, "round": "half_up"}, output=8),
            ],
        ),
        Node("concat", "cat", [4, 8], [9]),
        Node("flatten", "flatten", [9], [10]),
        Node(
            "pointwise",
            "decode",
            [10],
            [11],
            steps=[Step("relu"), Step("store", output=11)],
        ),
        Node("upsample", "up", [7], [12], {"scale": 2, "mode": "bilinear"}),
        Node("softmax", "softmax", [12], [13]),
    ]
    return Graph([0], [13, 11], tensors, nodes, {"note": "x", "input_rank": 4}), store.blobs


def pool_attrs(kernel: list[int], kind: str = "max", **changes: Any) -> dict[str, Any]:
    attrs = {
        "kind": kind,
        "kernel": kernel,
        "stride": kernel,
        "padding": [0, 0],
        "ceil_mode": False,
        "count_include_pad": True,
    }
    return {**attrs, **changes}


def test_the_example_passes_and_comes_back_from_json():
    graph, blobs = example()
    validate(graph, blobs)
    back = graph_from_json(json.loads(graph_text(graph)))
    assert back == graph
    validate(back, blobs)


def test_macs_by_hand():
    graph, _ = example()
    assert conv_macs(graph, graph.nodes[0]) == 8 * 8 * 6 * 27
    assert conv_macs(graph, graph.nodes[2]) == 4 * 4 * 3 * 4 * 9  # two groups of four channels
    assert conv_macs(graph, graph.nodes[1]) == 0


@given(value=st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_survive_the_text(value):
    graph = Graph([0], [0], [Tensor(0, (1, 1, 1))], [], {"value": value})
    assert graph_from_json(json.loads(graph_text(graph))).meta["value"] == value


# --- validation ----------------------------------------------------------------------------

Said = dict[str, Any]


def blob_of(said: Said, node: int, role: str, step: int | None = None) -> int:
    owner = said["nodes"][node] if step is None else said["nodes"][node]["steps"][step]
    return owner["blobs"][role]


def quantise(said: Said, output: int) -> None:
    said["nodes"][4]["steps"][4]["output"] = output


def drop(said: Said, key: str) -> None:
    del said[key]


BROKEN: list[tuple[str, Callable[[Said], object]]] = [
    # fields and types
    ("has the fields", lambda g: drop(g, "meta")),
    ("has the fields", lambda g: g.update(extra=1)),
    ("version", lambda g: g.update(version=2)),
    ("version", lambda g: g.update(version=True)),
    ("whole number", lambda g: g["inputs"].__setitem__(0, "0")),
    ("whole number", lambda g: g["inputs"].__setitem__(0, 2**40)),
    (r"\[C, H, W\]", lambda g: g["tensors"][0]["shape"].append(1)),
    ("format is", lambda g: g["tensors"][2].update(format={"kind": "bipolar", "bits": 9})),
    ("format is", lambda g: g["tensors"][2].update(format={"kind": "bipolar", "bits": True})),
    ("format is", lambda g: g["tensors"][2].update(format="f16")),
    ("cannot be", lambda g: g["nodes"][0]["attrs"].update(kernel=None)),
    ("not finite", lambda g: g["nodes"][4]["steps"][2]["attrs"].update(low=float("inf"))),
    ("string", lambda g: g["nodes"][0].update(name=3)),
    ("256 bytes", lambda g: g["nodes"][0].update(name="x" * 257)),
    # ids and order
    ("twice", lambda g: g["tensors"][1].update(id=0)),
    ("channels", lambda g: g["tensors"][0].update(shape=[0, 8, 6])),
    ("channels", lambda g: g["tensors"][0].update(shape=[1 << 17, 8, 6])),
    ("more than", lambda g: g["tensors"][0].update(shape=[1 << 14, 1 << 10, 1 << 10])),
    ("weights only", lambda g: g["tensors"][2].update(format={"kind": "twos", "bits": 2})),
    ("exactly one input", lambda g: g["inputs"].append(1)),
    ("no float32 tensor", lambda g: g.update(inputs=[2])),
    ("no output", lambda g: g.update(outputs=[])),
    ("no float32 tensor", lambda g: g.update(outputs=[4])),
    ("no float32 tensor", lambda g: g.update(outputs=[99])),
    ("not made by an earlier node", lambda g: g["nodes"].reverse()),
    ("made twice", lambda g: g["nodes"].append(copy.deepcopy(g["nodes"][3]))),
    ("no tensor of the graph", lambda g: g["nodes"][3].update(outputs=[77])),
    ("unknown operation", lambda g: g["nodes"][3].update(op="magic")),
    ("one input", lambda g: g["nodes"][3]["inputs"].append(1)),
    # nodes
    ("attributes", lambda g: g["nodes"][0]["attrs"].update(path="auto")),
    ("attributes", lambda g: drop(g["nodes"][2]["attrs"], "path")),
    ("pair", lambda g: g["nodes"][0]["attrs"].update(kernel=[3])),
    ("pair", lambda g: g["nodes"][0]["attrs"].update(stride=[0, 1])),
    ("pair", lambda g: g["nodes"][0]["attrs"].update(dilation=[65, 1])),
    ("groups", lambda g: g["nodes"][0]["attrs"].update(groups=2)),
    ("groups is a whole number", lambda g: g["nodes"][0]["attrs"].update(groups=True)),
    ("pad is one of", lambda g: g["nodes"][0]["attrs"].update(pad="low")),
    ("path is one of", lambda g: g["nodes"][2]["attrs"].update(path="gpu")),
    ("weight_format is f32", lambda g: g["nodes"][2]["attrs"].update(weight_format="f32")),
    (
        "packed codes of 3 bits",
        lambda g: g["nodes"][2]["attrs"].update(weight_format={"kind": "twos", "bits": 3}),
    ),
    ("the shape", lambda g: g["nodes"][0]["attrs"].update(padding=[0, 0])),
    ("kernel reaches", lambda g: g["nodes"][0]["attrs"].update(dilation=[7, 7])),
    ("index", lambda g: g["nodes"][0]["blobs"].update(weight=0)),
    ("index", lambda g: g["nodes"][0]["blobs"].update(weight=999)),
    ("wants the blobs", lambda g: g["nodes"][0]["blobs"].update(bias=1)),
    ("blob 'weight'", lambda g: g["nodes"][0]["blobs"].update(weight=blob_of(g, 0, "slope", 1))),
    ("packed codes", lambda g: g["nodes"][2]["blobs"].update(weight=blob_of(g, 0, "weight"))),
    ("wants float32", lambda g: g["nodes"][1]["attrs"].update(kind="min")),
    ("wants float32", lambda g: g["nodes"][1]["attrs"].update(kind="avg")),
    ("half of the kernel", lambda g: g["nodes"][1]["attrs"].update(padding=[2, 0])),
    ("true or false", lambda g: g["nodes"][1]["attrs"].update(ceil_mode=1)),
    ("different formats", lambda g: g["nodes"][5].update(inputs=[3, 8])),
    ("no steps", lambda g: g["nodes"][3]["steps"].append(copy.deepcopy(RELU))),
    ("scale is a whole", lambda g: g["nodes"][8]["attrs"].update(scale=65)),
    ("mode is one of", lambda g: g["nodes"][8]["attrs"].update(mode="cubic")),
    ("wants float32", lambda g: g["nodes"][8].update(inputs=[9])),
    ("makes the shape", lambda g: g["tensors"][12].update(shape=[4, 8, 7])),
    ("makes", lambda g: g["tensors"][12].update(format={"kind": "bipolar", "bits": 1})),
    # steps
    ("unknown step", lambda g: g["nodes"][4]["steps"][3].update(op="gelu")),
    ("attributes", lambda g: g["nodes"][4]["steps"][3]["attrs"].update(low=1)),
    ("an input belongs", lambda g: g["nodes"][4]["steps"][3].update(input=5)),
    ("an input belongs", lambda g: g["nodes"][4]["steps"][0].update(input=None)),
    ("an output belongs", lambda g: g["nodes"][4]["steps"][3].update(output=8)),
    ("an output belongs", lambda g: g["nodes"][4]["steps"][4].update(output=None)),
    ("written twice", lambda g: g["nodes"][4]["steps"].append(g["nodes"][4]["steps"][5])),
    ("its steps write", lambda g: g["nodes"][4]["steps"].pop()),
    ("not made by an earlier", lambda g: g["nodes"][4]["steps"][0].update(input=7)),
    ("float32 input of shape", lambda g: g["nodes"][4]["steps"][0].update(input=5)),
    ("float32 input of shape", lambda g: g["nodes"][4]["steps"][1].update(input=6)),
    ("float32 input of shape", lambda g: g["nodes"][4]["steps"][1].update(input=4)),
    ("in order", lambda g: g["nodes"][4]["steps"][2]["attrs"].update(low=7)),
    ("in order", lambda g: g["nodes"][4]["steps"][2]["attrs"].update(low=False)),
    ("positive", lambda g: g["nodes"][4]["steps"][5]["attrs"].update(step=0)),
    ("round is", lambda g: g["nodes"][4]["steps"][5]["attrs"].update(round="up")),
    ("writes codes", lambda g: g["nodes"][4]["steps"].pop(4) and quantise(g, 7)),
    ("alpha, beta or both", lambda g: g["nodes"][0]["steps"][0].update(blobs={})),
    ("blob 'table'", lambda g: g["nodes"][2]["steps"].reverse()),
    (
        "blob 'table'",
        lambda g: g["nodes"][2]["steps"][0]["blobs"].update(table=blob_of(g, 0, "table", 3)),
    ),
    ("at most 64", lambda g: g["nodes"][4]["steps"].extend([RELU] * 64)),
]
RELU = {"op": "relu", "attrs": {}, "blobs": {}, "input": None, "output": None}


@pytest.mark.parametrize(("words", "damage"), BROKEN)
def test_what_is_wrong_is_named(words, damage):
    graph, blobs = example()
    said = json.loads(graph_text(graph))
    damage(said)
    with pytest.raises(FoveateError, match=words):
        validate(graph_from_json(said), blobs)


@pytest.mark.parametrize(
    ("node", "role", "step", "change", "words"),
    [
        (0, "weight", None, lambda a: a * np.float32(np.inf), "not finite"),
        (0, "alpha", 0, lambda a: a * np.float32(np.nan), "not finite"),
        (2, "table", 0, lambda a: a[::-1], "ascend"),
        (2, "table", 0, lambda a: a.astype(np.float32), "is int32"),
        (0, "table", 3, lambda a: a * np.float32(np.nan), "ascend"),
        (2, "flip", 0, lambda a: a + np.uint8(1), "flip is 0 or 1"),
        (2, "weight", None, lambda a: a | np.uint64(1 << 60), "beyond the last channel"),
    ],
)
def test_wrong_arrays_are_named(node, role, step, change, words):
    graph, blobs = example()
    owner = graph.nodes[node] if step is None else graph.nodes[node].steps[step]
    index = owner.blobs[role]
    blobs[index] = np.ascontiguousarray(change(blobs[index]))
    with pytest.raises(FoveateError, match=words):
        validate(graph, blobs)


def test_sums_that_leave_32_bits_are_refused():
    def graph(channels: int) -> tuple[Graph, list[np.ndarray]]:
        store = BlobStore()
        weight = store.add_codes(np.zeros((1, channels, 1, 1), np.uint8), 8)
        attrs: dict[str, Any] = {
            "kernel": [1, 1],
            "stride": [1, 1],
            "padding": [0, 0],
            "dilation": [1, 1],
            "groups": 1,
            "pad": "zero",
            "path": "auto",
            "weight_format": {"kind": "bipolar", "bits": 8},
        }
        eight = CodeFormat("bipolar", 8)
        tensors = [
            Tensor(0, (channels, 1, 1)),
            Tensor(1, (channels, 1, 1), eight),
            Tensor(2, (1, 1, 1)),
        ]
        quantize = Step("quantize", {"step": 1.0, "round": "floor"}, output=1)
        nodes = [
            Node("pointwise", "q", [0], [1], steps=[quantize]),
            Node("conv", "c", [1], [2], attrs, {"weight": weight}, [Step("store", output=2)]),
        ]
        return Graph([0], [2], tensors, nodes), store.blobs

    validate(*graph(33025))  # the specification's bound: 255 * 255 * 33025 < 2^31
    with pytest.raises(FoveateError, match="32 bits"):
        validate(*graph(33026))


@given(
    length=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    ceil_mode=st.booleans(),
)
def test_pooled_length_is_torchs(length, kernel, stride, padding, ceil_mode):
    import torch

    padding = min(padding, kernel // 2)
    if length + 2 * padding < kernel:
        return
    pool = torch.nn.MaxPool2d((kernel, 1), (stride, 1), (padding, 0), ceil_mode=ceil_mode)
    said = pooled_length(length, kernel, stride, padding, ceil_mode)
    assert said == pool(torch.zeros(1, 1, length, 1)).shape[2]


# --- planes and shared arrays --------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    channels=st.sampled_from([1, 3, 16, 63, 64, 65, 130]),
    seed=st.integers(0, 999),
)
def test_planes_by_brute_force(bits, channels, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (2, channels, 1, 3), dtype=np.uint8)
    words = pack_codes(codes, bits)
    assert words.shape == (2, bits, 1, 3, -(-channels // 64))
    for out in range(2):
        for tap in range(3):
            for plane in range(bits):
                digit = bits - 1 - plane  # the most significant plane comes first
                for c in range(channels):
                    word = int(words[out, plane, 0, tap, c >> 6])
                    assert word >> (c & 63) & 1 == int(codes[out, c, 0, tap]) >> digit & 1
    assert not unused_bits(words, channels)
    assert np.array_equal(unpack_codes(words, channels, bits), codes)
    for fewer in range(1, bits):  # the leading planes are the nested codes
        assert np.array_equal(unpack_codes(words, channels, fewer), codes >> (bits - fewer))


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(FoveateError, match="do not fit into 2 bits"):
        pack_codes(np.full((1, 1, 1, 1), 4, np.uint8), 2)
    with pytest.raises(FoveateError, match="uint8"):
        pack_codes(np.zeros((1, 1, 1), np.uint8), 2)


def test_equal_arrays_are_kept_once_and_nested_codes_share_planes():
    rng = np.random.default_rng(3)
    store = BlobStore()
    row = rng.normal(size=5).astype(np.float32)
    assert store.add(row) == store.add(row.copy()) == 1
    assert store.add(row.view(np.int32)) == 2  # same bytes, another type
    codes = rng.integers(0, 16, (3, 70, 3, 3), dtype=np.uint8)
    low = store.add_codes(codes >> 2, 2)
    high = store.add_codes(codes, 4)
    assert low == high == store.add_codes(codes >> 1, 3)
    assert store.blobs[low].shape[1] == 4
    assert np.array_equal(unpack_codes(store.blobs[low], 70, 2), codes >> 2)
    other = codes.copy()
    other[0, 0] ^= 1  # the same leading planes, another last one
    assert store.add_codes(other, 4) != high
