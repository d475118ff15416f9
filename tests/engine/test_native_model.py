"""The native executor against `reference_run`: whole graphs, every tensor of every node.

Graphs are drawn at random over all operations, formats and steps; what the native module computes
must have the same codes and, but for exp, the same float32 bits as the numpy reference. The file
is also written here a second time, by hand, so that it can be damaged in every way.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engine.file import Mode, ModelFile, to_bytes
from foveate.engine.graph import BlobStore, Graph, Node, Step, Tensor, conv_macs, graph_to_json
from foveate.engine.reference import reference_dump, reference_run
from foveate.engine.validation import pooled_length
from foveate.quantization.codes import CodeFormat

native = pytest.importorskip("foveate._native", reason="the native engine is not built")

CHANNELS = (1, 3, 5, 16, 33, 64, 65)
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
TASKS = Path("/proc/self/task")  # the threads of a process, where Linux says so


class Sketch:
    """A random graph in the making; `rough` tensors have gone through exp."""

    def __init__(self, seed: int, shape: tuple[int, int, int] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.store = BlobStore()
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self.rough: set[int] = set()
        side = (int(self.rng.integers(1, 8)), int(self.rng.integers(1, 8)))
        self.input = self.tensor(shape or (int(self.rng.choice(CHANNELS[:4])), *side))

    # ---- pieces

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float = 0.5) -> bool:
        return bool(self.rng.random() < share)

    def tensor(self, shape: tuple[int, int, int], code_format: CodeFormat | None = None) -> int:
        self.tensors.append(Tensor(len(self.tensors), shape, code_format))
        return len(self.tensors) - 1

    def activation(self) -> CodeFormat:
        return CodeFormat(self.pick(["bipolar", "unipolar"]), self.pick([1, 1, 2, 3, 4, 8]))

    def weight(self) -> CodeFormat:
        return CodeFormat(self.pick(["bipolar", "unipolar", "twos"]), self.pick([1, 1, 2, 4, 8]))

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def add(self, op: str, inputs: list[int], outputs: list[int], **rest: Any) -> Node:
        node = Node(op, f"net.{op}.{len(self.nodes)}", inputs, outputs, **rest)
        self.nodes.append(node)
        return node

    def usable(self, codes: bool | None = None) -> list[Tensor]:
        return [
            t
            for t in self.tensors
            if t.id not in self.rough and codes in (None, t.format is not None)
        ]

    # ---- steps

    def thresholds(self, output: int, integer: bool, spread: float) -> Step:
        tensor = self.tensors[output]
        assert tensor.format is not None
        shape = (tensor.format.top, tensor.shape[0])
        table = np.sort(self.rng.normal(size=shape) * spread, axis=0)
        blob = np.round(table).astype(np.int32) if integer else table.astype(np.float32)
        low, high = (INT_MIN, INT_MAX) if integer else (-np.inf, np.inf)
        for column in np.flatnonzero(self.rng.random(shape[1]) < 0.1):
            blob[:, column] = self.pick([low, high])
        flip = (self.rng.random(shape[1]) < 0.3).astype(np.uint8)
        blobs = {"table": self.store.add(blob), "flip": self.store.add(flip)}
        return Step("thresholds", blobs=blobs, output=output)

    def steps(
        self, shape: tuple[int, int, int], spread: float, integer: bool
    ) -> tuple[list[Step], list[int]]:
        """Random steps on values of about `spread`, and the tensors that they write."""
        steps: list[Step] = []
        outputs: list[int] = []
        rough = False

        def write(op: str, code_format: CodeFormat | None = None) -> int:
            outputs.append(self.tensor(shape, code_format))
            if rough:
                self.rough.add(outputs[-1])
            return outputs[-1]

        if integer:
            steps += [
                self.thresholds(write("t", self.activation()), True, spread)
                for _ in range(self.pick([0, 1, 1, 2]))
            ]
        known = self.tensors[: len(self.tensors) - len(outputs)]
        if not outputs or self.chance():
            if self.chance(0.8):
                roles = self.pick([("alpha",), ("beta",), ("alpha", "beta"), ("alpha", "beta")])
                row = self.floats(shape[0]) / np.float32(spread if "alpha" in roles else 1)
                row[self.rng.random(shape[0]) < 0.05] = 0
                blobs = {
                    role: self.store.add(row if role == "alpha" else self.floats(shape[0]))
                    for role in roles
                }
                steps.append(Step("affine", blobs=blobs))
            gates = [t for t in known if t.format is None and t.shape == (shape[0], 1, 1)]
            if gates and self.chance():
                gate = self.pick(gates)
                rough = rough or gate.id in self.rough
                steps.append(Step("gate", input=gate.id))
            shortcuts = [
                t for t in known if t.format is None and t.shape == shape and t.id not in self.rough
            ]
            if shortcuts and self.chance():
                steps.append(Step("add", input=self.pick(shortcuts).id))
            for _ in range(self.pick([0, 1, 1, 2])):
                op = self.pick(["relu", "clip", "prelu", "hswish", "store"])
                if op == "clip":
                    steps.append(Step("clip", {"low": -0.75, "high": 1}))
                elif op == "prelu":
                    blob = self.store.add(self.floats(shape[0]))
                    steps.append(Step("prelu", blobs={"slope": blob}))
                elif op == "store":
                    steps.append(Step("store", output=write("store")))
                else:
                    steps.append(Step(op))
            if not rough:
                if self.chance():
                    still = integer and all(step.op == "thresholds" for step in steps)
                    output = write("t", self.activation())
                    steps.append(self.thresholds(output, still, spread if still else 1.0))
                if self.chance():
                    target = self.activation()
                    size = float(np.float32(self.rng.uniform(0.5, 2) / target.top))
                    attrs = {"step": size, "round": self.pick(["half_up", "half_even", "floor"])}
                    steps.append(Step("quantize", attrs, output=write("q", target)))
            if self.chance(0.15):
                steps.append(Step(self.pick(["sigmoid", "silu"])))
                rough = True
                steps.append(Step("store", output=write("store")))
            if not outputs:
                steps.append(Step("store", output=write("store")))
        return steps, outputs

    # ---- nodes

    def conv(self, source: Tensor, path: str = "auto", pad: str | None = None) -> Node:
        channels, height, width = source.shape
        groups = self.pick([g for g in (1, 1, 2, 3, 5, channels) if channels % g == 0])
        filters = groups * self.pick([1, 2, 5, 33] if groups < 4 else [1, 2])
        if groups == channels > 1 and self.chance():
            filters = channels
        kernel: list[int] = []
        stride: list[int] = []
        dilation: list[int] = []
        padding: list[int] = []
        size: list[int] = []
        for side in (height, width):
            k, d, p = self.pick([1, 2, 3, 5]), self.pick([1, 1, 2]), self.pick([0, 1, 2, 3])
            if side + 2 * p <= d * (k - 1):
                k, d, p = 1, 1, 0
            s = self.pick([1, 1, 2, 3])
            for values, value in ((kernel, k), (dilation, d), (padding, p), (stride, s)):
                values.append(value)
            size.append((side + 2 * p - d * (k - 1) - 1) // s + 1)
        depth = channels // groups
        attrs: dict[str, Any] = {
            "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation,
            "groups": groups, "pad": "zero",
        }  # fmt: skip
        terms = depth * kernel[0] * kernel[1]
        if source.format is None:
            blob = self.store.add(self.floats(filters, depth, *kernel))
            spread = float(np.sqrt(terms))
        else:
            weight_format = self.weight()
            codes = self.rng.integers(0, weight_format.top + 1, (filters, depth, *kernel))
            # Now and then more planes are stored than are used.
            planes = min(8, weight_format.bits + self.pick([0, 0, 0, 1, 3]))
            extra = planes - weight_format.bits
            codes = (codes << extra) + self.rng.integers(0, 1 << extra, codes.shape)
            blob = self.store.add_codes(codes.astype(np.uint8), planes)
            attrs["pad"] = pad or self.pick(["zero", "low", "high"])
            attrs["weight_format"] = {"kind": weight_format.kind, "bits": weight_format.bits}
            depthwise = groups > 1 and groups == channels == filters
            attrs["path"] = "int8" if path == "bits" and depthwise else path
            spread = source.format.top * weight_format.top * float(np.sqrt(terms)) / 2
        steps, outputs = self.steps((filters, *size), spread, source.format is not None)
        return self.add("conv", [source.id], outputs, attrs=attrs, blobs={"weight": blob},
                        steps=steps)  # fmt: skip

    def grow(self, path: str = "auto") -> None:
        """Add one random node."""
        source = self.pick(self.usable())
        codes = source.format is not None
        channels, height, width = source.shape
        op = self.pick(
            ["conv"] * 6 + ["pointwise"] * 3 + ["pool"] * 2
            + ["global_avg", "concat", "flatten", "softmax", "upsample", "shuffle", "slice"]
        )  # fmt: skip
        one: tuple[int, int, int] | None = None
        attrs: dict[str, Any] = {}
        inputs = [source.id]
        if op == "conv":
            self.conv(source, path)
        elif op == "pointwise":
            spread = float(source.format.top) if source.format else 1.0
            steps, outputs = self.steps(source.shape, spread, codes)
            self.add("pointwise", inputs, outputs, steps=steps)
        elif op == "pool":
            kernel = [self.pick([1, 2, 3]), self.pick([1, 2, 3])]
            stride = [self.pick([1, 2, 3]), self.pick([1, 2, 3])]
            padding = [self.pick([0, k // 2]) for k in kernel]
            ceil_mode = self.chance()
            size = [
                pooled_length(side, k, s, p, ceil_mode)
                for side, k, s, p in zip((height, width), kernel, stride, padding, strict=True)
            ]
            attrs = {
                "kind": "max" if codes else self.pick(["max", "avg"]),
                "kernel": kernel, "stride": stride, "padding": padding,
                "ceil_mode": ceil_mode, "count_include_pad": self.chance(),
            }  # fmt: skip
            one = (channels, *size) if min(size) > 0 else None
        elif op == "global_avg":
            if codes:
                attrs = {"scale": float(np.float32(self.rng.uniform(0.01, 0.1)))}
            self.add(op, inputs, [self.tensor((channels, 1, 1))], attrs=attrs)
        elif op == "concat":
            same = [
                t
                for t in self.usable()
                if t.shape[1:] == source.shape[1:] and t.format == source.format
            ]
            inputs += [self.pick(same).id for _ in range(self.pick([0, 1, 2]))]
            total = sum(self.tensors[i].shape[0] for i in inputs)
            one = (total, height, width) if total < 300 else None
        elif op == "flatten" and channels * height * width < 1500:
            one = (channels * height * width, 1, 1)
        elif op == "softmax" and not codes:
            self.rough.add(self.tensor(source.shape))
            self.add(op, inputs, [self.tensors[-1].id])
        elif op == "upsample" and max(height, width) < 7:
            attrs = {
                "scale": self.pick([1, 2, 3]),
                "mode": "nearest" if codes else self.pick(["nearest", "bilinear"]),
            }
            one = (channels, height * attrs["scale"], width * attrs["scale"])
        elif op == "shuffle":
            attrs = {"groups": self.pick([g for g in range(1, channels + 1) if channels % g == 0])}
            one = source.shape
        elif op == "slice":
            start = int(self.rng.integers(channels))
            attrs = {"start": start, "stop": int(self.rng.integers(start, channels)) + 1}
            one = (attrs["stop"] - start, height, width)
        if one is not None:
            self.add(op, inputs, [self.tensor(one, source.format)], attrs=attrs)

    def graph(self) -> Graph:
        """The graph, all of whose float tensors without a reader are outputs."""
        used = {i for node in self.nodes for i in node.inputs}
        used |= {step.input for node in self.nodes for step in node.steps if step.input is not None}
        outputs = [t.id for t in self.tensors if t.format is None and t.id not in used]
        return Graph([self.input], outputs or [self.input], self.tensors, self.nodes)

    def picture(self, batch: int = 1) -> np.ndarray:
        return self.floats(batch, *self.tensors[self.input].shape)


def sketched(seed: int, nodes: int = 16, path: str = "auto") -> Sketch:
    sketch = Sketch(seed)
    for _ in range(nodes):
        sketch.grow(path)
    return sketch


def packed(document: Any, arrays: list[np.ndarray]) -> bytes:
    """The container, written from its description and not by the package."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    kinds = {"u1": 0, "i4": 1, "f4": 2, "u8": 3}
    contents = [(0, text, (len(text),))]
    contents += [(kinds[a.dtype.str[1:]], a.tobytes(), a.shape) for a in arrays[1:]]
    table = b""
    body = b""
    start = 64 + 64 * len(contents)
    for kind, data, shape in contents:
        body += b"\0" * (-len(body) % 64)
        sides = list(shape) + [0] * (6 - len(shape))
        table += struct.pack("<QQII6I", start + len(body), len(data), kind, len(shape), *sides)
        table += struct.pack("<I", zlib.crc32(data)) + b"\0" * 12
        body += data
    head = struct.pack("<8sIIQQQQQ", b"FOVEATE\0", 1, 0x01020304, start, len(text), 64,
                       len(contents), start + len(body))  # fmt: skip
    return head + struct.pack("<II", zlib.crc32(head), 0) + table + body


def load(*graphs: Graph, blobs: Any) -> Any:
    modes = [{"name": f"mode {i}", "graph": graph_to_json(g)} for i, g in enumerate(graphs)]
    return native.Model.from_bytes(packed({"version": 1, "modes": modes, "meta": {}}, blobs))


def same(ours: np.ndarray, reference: np.ndarray, rough: bool, where: str) -> None:
    assert ours.dtype == reference.dtype, where
    if rough:
        np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-6, err_msg=where)
    else:
        np.testing.assert_array_equal(ours, reference, err_msg=where)


def same_dump(sketch: Sketch, graph: Graph, model: Any, x: np.ndarray) -> None:
    reference = reference_dump(graph, sketch.store.blobs, x)
    ours = model.dump(x)
    assert sorted(ours) == sorted(reference)
    for number, value in reference.items():
        same(ours[number], value[0], number in sketch.rough, f"tensor {number}")


# ------------------------------------------------------------------------- whole graphs


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["auto", "bits", "int8"]))
def test_every_tensor_of_random_graphs(seed: int, path: str) -> None:
    sketch = sketched(seed, path=path)
    graph = sketch.graph()
    same_dump(sketch, graph, load(graph, blobs=sketch.store.blobs), sketch.picture())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_outputs_do_not_depend_on_threads_batches_or_what_ran_before(seed: int, batch: int) -> None:
    sketch = sketched(seed)
    graph = sketch.graph()
    model = load(graph, blobs=sketch.store.blobs)
    first, x = sketch.picture(2), sketch.picture(batch)
    reference = reference_run(graph, sketch.store.blobs, x)
    for threads in (1, 2, 3):
        model.run(first, threads)
        ours = model.run(x, threads)
        assert len(ours) == len(reference)
        for number, one, other in zip(graph.outputs, ours, reference, strict=True):
            assert one.shape == (batch, *graph.tensor(number).shape)
            same(one, other, number in sketch.rough, f"tensor {number}, {threads} threads")
    shapes = [output.shape for output in model.run(x[:0], 2)]
    assert shapes == [(0, *graph.tensor(number).shape) for number in graph.outputs]


@pytest.mark.parametrize("isa", native.available_isas())
def test_every_instruction_set_gives_the_reference(isa: str) -> None:
    native.force_isa(isa)
    try:
        for seed in range(4):
            sketch = sketched(seed)
            graph = sketch.graph()
            model = load(graph, blobs=sketch.store.blobs)
            assert model.isa == isa
            same_dump(sketch, graph, model, sketch.picture())
    finally:
        native.force_isa("")


def test_instruction_sets_and_threads_agree_bit_for_bit_behind_exp_too() -> None:
    """The reference is met to 1e-6 there; the engine's own kernels must not differ at all."""
    rough = 0
    for seed in range(6):
        sketch = sketched(seed, nodes=10)
        source = sketch.tensors[sketch.input]
        for op in ("sigmoid", "silu"):
            output = sketch.tensor(source.shape)
            steps = [Step(op), Step("store", output=output)]
            sketch.add("pointwise", [source.id], [output], steps=steps)
        output = sketch.tensor(source.shape)
        sketch.add("softmax", [source.id], [output])
        rough += len(sketch.rough) + 3
        graph = sketch.graph()
        x = sketch.picture(3) * 8
        found: list[tuple[str, list[np.ndarray]]] = []
        try:
            for isa in native.available_isas():
                native.force_isa(isa)
                model = load(graph, blobs=sketch.store.blobs)
                assert model.isa == isa
                found += [(f"{isa}, {n} threads", model.run(x, n)) for n in (1, 3)]
        finally:
            native.force_isa("")
        for where, outputs in found[1:]:
            for one, other in zip(found[0][1], outputs, strict=True):
                assert one.tobytes() == other.tobytes(), (seed, found[0][0], where)
    assert rough >= 18


def test_one_tensor_padded_in_every_way() -> None:
    """Consumers that want different values and widths of border, one after the other."""
    for kind in ("bipolar", "unipolar"):
        sketch = Sketch(5, (70, 5, 6))
        codes = sketch.tensor((70, 5, 6), CodeFormat(kind, 2))  # type: ignore[arg-type]
        step = Step("quantize", {"step": 0.5, "round": "half_up"}, output=codes)
        sketch.add("pointwise", [sketch.input], [codes], steps=[step])
        for path in ("bits", "int8"):
            for pad in ("zero", "high", "low", "high", "zero", "low", "low"):
                sketch.conv(sketch.tensors[codes], path, pad)
        graph = sketch.graph()
        model = load(graph, blobs=sketch.store.blobs)
        for _ in range(2):
            same_dump(sketch, graph, model, sketch.picture())


def test_special_values() -> None:
    """Not-a-number becomes code 0 and passes through max; infinities go to the end codes."""
    sketch = Sketch(0, (3, 2, 2))
    pooled = sketch.tensor((3, 1, 1))
    attrs = {"kind": "max", "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0],
             "ceil_mode": False, "count_include_pad": True}  # fmt: skip
    sketch.add("pool", [0], [pooled], attrs=attrs)
    targets = [CodeFormat("bipolar", 1), CodeFormat("bipolar", 3), CodeFormat("unipolar", 2)]
    outputs = [sketch.tensor((3, 2, 2), target) for target in targets]
    steps = [Step("quantize", {"step": 0.25, "round": "half_up"}, output=o) for o in outputs]
    outputs.append(sketch.tensor((3, 2, 2), CodeFormat("unipolar", 2)))
    steps.append(sketch.thresholds(outputs[-1], False, 1.0))
    sketch.add("pointwise", [0], outputs, steps=steps)
    graph = sketch.graph()
    x = np.array([np.nan, 1, -1, 0, np.inf, -np.inf, 2, 3, -0.0, 0.0, 1e38, -1e38], np.float32)
    model = load(graph, blobs=sketch.store.blobs)
    same_dump(sketch, graph, model, x.reshape(1, 3, 2, 2))
    assert np.isnan(model.run(x.reshape(1, 3, 2, 2))[0][0, 0, 0, 0])


# -------------------------------------------------------------------------------- modes


def nested_modes() -> tuple[Sketch, list[Graph]]:
    """The same 3 x 3 convolution at 4, 2 and 1 bits of one set of stored planes."""
    sketch = Sketch(3, (20, 6, 6))
    codes = sketch.rng.integers(0, 16, (40, 20, 3, 3)).astype(np.uint8)
    blob = sketch.store.add_codes(codes, 4)
    graphs = []
    for bits, path in ((4, "int8"), (2, "int8"), (1, "bits")):
        code_format = CodeFormat("bipolar", bits)
        tensors = [Tensor(0, (20, 6, 6)), Tensor(1, (20, 6, 6), code_format),
                   Tensor(2, (40, 6, 6))]  # fmt: skip
        attrs: dict[str, Any] = {
            "kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
            "groups": 1, "pad": "zero", "path": path,
            "weight_format": {"kind": "bipolar", "bits": bits},
        }  # fmt: skip
        quantize = Step("quantize", {"step": 0.2, "round": "half_up"}, output=1)
        nodes = [
            Node("pointwise", "quantize", [0], [1], steps=[quantize]),
            Node("conv", "conv", [1], [2], attrs, {"weight": blob}, [Step("store", output=2)]),
        ]
        graphs.append(Graph([0], [2], tensors, nodes))
    return sketch, graphs


def test_modes_switch_without_a_trace() -> None:
    sketch, graphs = nested_modes()
    model = load(*graphs, blobs=sketch.store.blobs)
    assert model.modes == ["mode 0", "mode 1", "mode 2"]
    assert model.mode == 0
    x = sketch.picture(2)
    wanted = [reference_run(graph, sketch.store.blobs, x)[0] for graph in graphs]
    assert not np.array_equal(wanted[1], wanted[2])
    for mode in (0, 2, 1, 0, 1, 2):
        model.set_mode(mode)
        assert model.mode == mode
        np.testing.assert_array_equal(model.run(x)[0], wanted[mode])
    for bad in (-1, 3):
        with pytest.raises(RuntimeError, match="mode"):
            model.set_mode(bad)
    np.testing.assert_array_equal(model.run(x)[0], wanted[2])


# ----------------------------------------------------------------- profile, memory, threads


def test_profile_counts_what_the_graph_says() -> None:
    sketch, graphs = nested_modes()
    model = load(*graphs, blobs=sketch.store.blobs)
    x = sketch.picture()
    for mode, path in ((0, "int8"), (1, "int8"), (2, "bits")):  # as the graphs demand
        model.set_mode(mode)
        rows = model.profile(x, threads=1, repeats=2)
        assert [row["name"] for row in rows] == ["quantize", "conv"]
        assert [row["op"] for row in rows] == ["pointwise", "conv"]
        assert rows[0]["path"] == ""
        assert rows[1]["path"] == path
        assert [row["macs"] for row in rows] == [
            conv_macs(graphs[mode], node) for node in graphs[mode].nodes
        ]
        assert model.macs == 36 * 40 * 20 * 9
        assert all(0 <= row["seconds"] < 10 for row in rows)
        codes = 36 * (20 if path == "int8" else 8)  # a byte a code, or a word a pixel
        assert rows[0]["bytes"] == 36 * 20 * 4 + codes
        assert rows[1]["bytes"] == codes + 36 * 40 * 4 + 40 * 4 * 9 * 8
    with pytest.raises(RuntimeError, match="repeats"):
        model.profile(x, threads=1, repeats=0)


def chain(length: int, shape: tuple[int, int, int]) -> Graph:
    """Store after store, each with the one before added to it."""
    tensors = [Tensor(i, shape) for i in range(length + 1)]
    nodes = [
        Node("pointwise", f"{i}", [i], [i + 1],
             steps=[Step("add", input=i), Step("store", output=i + 1)])
        for i in range(length)
    ]  # fmt: skip
    return Graph([0], [length], tensors, nodes)


def test_memory_is_used_again() -> None:
    graph = chain(30, (8, 10, 10))
    model = load(graph, blobs=BlobStore().blobs)
    one = 8 * 10 * 10 * 4
    assert 2 * one <= model.arena_bytes <= 2 * (one + 1024)
    x = np.random.default_rng(0).normal(size=(1, 8, 10, 10)).astype(np.float32)
    np.testing.assert_array_equal(model.run(x)[0], x * np.float32(2**30))


def test_too_much_memory_is_refused_before_it_is_taken() -> None:
    shape = (16, 4096, 4096)  # 1 GiB
    tensors = [Tensor(i, shape) for i in range(10)]
    nodes = [
        Node("pointwise", f"{i}", [0], [i], steps=[Step("store", output=i)]) for i in range(1, 10)
    ]
    graph = Graph([0], list(range(1, 10)), tensors, nodes)
    with pytest.raises(RuntimeError, match=r"node 6 '7'.*memory"):
        load(graph, blobs=BlobStore().blobs)


def test_runs_from_several_threads_take_turns() -> None:
    sketch = sketched(11)
    graph = sketch.graph()
    model = load(graph, blobs=sketch.store.blobs)
    pictures = [sketch.picture(3) for _ in range(4)]
    wanted = [model.run(x, 1) for x in pictures]
    failures: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            ours = model.run(pictures[i], 1 + i)
            if not all(map(np.array_equal, ours, wanted[i])):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def run_in_child(holder: list[Any], x: np.ndarray, queue: Any) -> None:
    def threads() -> int:
        return sum(1 for _ in TASKS.iterdir()) if TASKS.exists() else 0

    model = holder.pop()
    before = threads()
    result = model.run(x, 2)[0]
    fresh = threads() - before
    del model  # must not wait for threads that only the parent has
    queue.put((result, fresh))


def test_a_forked_child_has_its_own_threads() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    holder = [load(chain(3, (4, 5, 5)), blobs=BlobStore().blobs)]
    x = np.ones((4, 4, 5, 5), np.float32)
    wanted = holder[0].run(x, 2)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=run_in_child, args=(holder, x, queue))
    child.start()
    try:
        result, fresh = queue.get(timeout=20)
    finally:
        child.kill()
        child.join()
    np.testing.assert_array_equal(result, wanted)
    assert fresh == (1 if TASKS.exists() else 0)


def test_wrong_calls() -> None:
    graph = chain(1, (2, 3, 3))
    model = load(graph, blobs=BlobStore().blobs)
    assert model.input_shape == (2, 3, 3)
    x = np.zeros((1, 2, 3, 3), np.float32)
    with pytest.raises(RuntimeError, match=r"\(3, 2, 3\), the model takes \(2, 3, 3\)"):
        model.run(np.zeros((1, 3, 2, 3), np.float32))
    for threads in (0, -1, 257):
        with pytest.raises(RuntimeError, match="threads"):
            model.run(x, threads)
    with pytest.raises(RuntimeError, match="one picture"):
        model.dump(np.zeros((2, 2, 3, 3), np.float32))
    for bad in (x.astype(np.float64), x[0], x.transpose(0, 2, 3, 1)):
        with pytest.raises(TypeError):
            model.run(bad)


# --------------------------------------------------------------------------------- files


def small() -> tuple[dict[str, Any], list[np.ndarray]]:
    """A document with a float convolution, a convolution of codes and most sorts of nodes."""
    sketch = Sketch(1, (3, 4, 4))
    weight = sketch.store.add(sketch.floats(4, 3, 3, 3))
    alpha = sketch.store.add(np.ones(4, np.float32))
    words = sketch.store.add_codes(np.ones((5, 4, 1, 1), np.uint8), 1)
    table = sketch.store.add(np.zeros((1, 5), np.int32))
    flip = sketch.store.add(np.zeros(5, np.uint8))
    codes, thick = CodeFormat("bipolar", 1), (5, 4, 4)
    tensors = [Tensor(0, (3, 4, 4)), Tensor(1, (4, 4, 4)), Tensor(2, (4, 4, 4), codes),
               Tensor(3, thick, codes), Tensor(4, (5, 2, 2), codes), Tensor(5, (5, 1, 1)),
               Tensor(6, (10, 1, 1)), Tensor(7, (10, 1, 1))]  # fmt: skip
    geometry: dict[str, Any] = {"stride": [1, 1], "dilation": [1, 1], "groups": 1, "pad": "zero"}
    pool = {"kind": "max", "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0],
            "ceil_mode": False, "count_include_pad": True}  # fmt: skip
    nodes = [
        Node("conv", "stem", [0], [1, 2], {"kernel": [3, 3], "padding": [1, 1], **geometry},
             {"weight": weight},
             [Step("affine", blobs={"alpha": alpha}), Step("store", output=1),
              Step("quantize", {"step": 1.0, "round": "half_up"}, output=2)]),
        Node("conv", "body", [2], [3],
             {"kernel": [1, 1], "padding": [0, 0], **geometry, "path": "auto",
              "weight_format": {"kind": "bipolar", "bits": 1}}, {"weight": words},
             [Step("thresholds", blobs={"table": table, "flip": flip}, output=3)]),
        Node("pool", "pool", [3], [4], pool),
        Node("global_avg", "mean", [4], [5], {"scale": 0.25}),
        Node("concat", "join", [5, 5], [6]),
        Node("softmax", "head", [6], [7]),
    ]  # fmt: skip
    document = {
        "version": 1,
        "modes": [{"name": "only", "graph": graph_to_json(Graph([0], [7], tensors, nodes))}],
        "meta": {},
    }
    return document, list(sketch.store.blobs)


def test_reads_a_file_written_by_hand(tmp_path: Path) -> None:
    document, blobs = small()
    data = packed(document, blobs)
    path = tmp_path / "small.fvt"
    path.write_bytes(data)
    model = native.Model(str(path))
    path.write_bytes(b"")  # nothing of the file is needed after it has been read
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.run(x)[0], native.Model.from_bytes(data).run(x)[0])
    np.testing.assert_allclose(model.run(x)[0].sum(1), 1, rtol=1e-6)
    assert model.modes == ["only"]


def test_reads_what_the_package_writes() -> None:
    sketch, graphs = nested_modes()
    modes = [Mode(f"{bits} bits", graph) for bits, graph in zip((4, 2, 1), graphs, strict=True)]
    model = native.Model.from_bytes(to_bytes(ModelFile(modes, sketch.store.blobs, {"a": "ä"})))
    assert model.modes == ["4 bits", "2 bits", "1 bits"]
    x = sketch.picture()
    wanted = reference_run(graphs[0], sketch.store.blobs, x)[0]
    np.testing.assert_array_equal(model.run(x)[0], wanted)


def test_missing_or_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be opened"):
        native.Model(str(tmp_path / "absent.fvt"))
    with pytest.raises(RuntimeError, match="not a regular file"):
        native.Model(str(tmp_path))
    (tmp_path / "empty.fvt").write_bytes(b"")
    with pytest.raises(RuntimeError, match="too short"):
        native.Model(str(tmp_path / "empty.fvt"))
    (tmp_path / "text.fvt").write_bytes(b"once upon a time " * 10)
    with pytest.raises(RuntimeError, match="magic"):
        native.Model(str(tmp_path / "text.fvt"))


def test_every_truncation_is_refused() -> None:
    data = packed(*small())
    for length in [*range(130), *range(130, len(data), 37), len(data) - 1]:
        with pytest.raises(RuntimeError):
            native.Model.from_bytes(data[:length])
    with pytest.raises(RuntimeError, match="bytes where its header says"):
        native.Model.from_bytes(data + b"\0")


def test_no_damaged_byte_goes_unnoticed() -> None:
    document, blobs = small()
    data = bytearray(packed(document, blobs))
    entries = 64 + 64 * len(blobs)
    spans = [range(entries)]  # header and table
    for i in range(len(blobs)):
        offset, size = struct.unpack_from("<QQ", data, 64 + 64 * i)
        spans.append(range(offset, offset + size))
    for span in spans:
        for at in span if len(span) < 1000 else span[:: len(span) // 500]:
            data[at] ^= 1 << (at % 8)
            try:
                native.Model.from_bytes(bytes(data))
                unnoticed = True
            except RuntimeError:
                unnoticed = False
            # A shape says 0 or 1 behind its last dimension.
            behind = 64 <= at < entries and 24 <= (at - 64) % 64 < 48
            assert not unnoticed or behind, at
            data[at] ^= 1 << (at % 8)


def test_table_entries_that_lie() -> None:
    document, blobs = small()
    good = packed(document, blobs)
    count = len(blobs)

    def patched(at: int, layout: str, value: int) -> bytes:
        data = bytearray(good)
        struct.pack_into(layout, data, at, value)
        struct.pack_into("<I", data, 56, zlib.crc32(data[:56]))
        return bytes(data)

    entry = 64 + 64 * 2
    huge = 2**64 - 64
    cases = [
        (8, "<I", 2, "version"), (12, "<I", 0x04030201, "byte order"),
        (16, "<Q", 0, "JSON"), (24, "<Q", 1, "JSON"), (60, "<I", 1, "reserved"),
        (32, "<Q", huge, "table"), (32, "<Q", 1, "table"), (40, "<Q", 0, "blobs"),
        (40, "<Q", 2**58, "blobs"), (40, "<Q", 2**20, "table"), (48, "<Q", 1, "bytes"),
        (entry, "<Q", huge, "end of the file"), (entry, "<Q", 1, "multiple of 64"),
        (entry + 8, "<Q", huge, "end of the file"), (entry + 8, "<Q", 0, "shape"),
        (entry + 16, "<I", 4, "type"), (entry + 20, "<I", 0, "dimensions"),
        (entry + 20, "<I", 7, "dimensions"), (entry + 24, "<I", 0, "shape"),
        (entry + 24, "<I", 2**32 - 1, "shape"), (entry + 44, "<I", 2, "dimension"),
        (entry + 48, "<I", 0, "checksum"), (entry + 60, "<I", 1, "reserved"),
    ]  # fmt: skip
    for at, layout, value, message in cases:
        with pytest.raises(RuntimeError, match=message):
            native.Model.from_bytes(patched(at, layout, value))
    twin = bytearray(good)  # blob 2 begins where blob 1 does
    twin[entry : entry + 8] = twin[entry - 64 : entry - 56]
    with pytest.raises(RuntimeError, match="overlap"):
        native.Model.from_bytes(bytes(twin))
    assert count > 3


def node(document: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = document["modes"][0]["graph"]["nodes"][index]
    return found


def tensor(document: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = document["modes"][0]["graph"]["tensors"][index]
    return found


def put(place: str, value: Any, index: int | None = None) -> Callable[[dict[str, Any]], None]:
    """Set ``graph.place`` or, with `index`, ``nodes[index].place``; dots go down."""

    def change(document: dict[str, Any]) -> None:
        at: Any = document["modes"][0]["graph"] if index is None else node(document, index)
        *way, last = place.split(".")
        for key in way:
            at = at[int(key) if isinstance(at, list) else key]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def step(op: str, source: int | None = None, **attrs: float) -> dict[str, Any]:
    return {"op": op, "attrs": attrs, "blobs": {}, "input": source, "output": None}


LIES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: d.update(version=2), "version"),
    (lambda d: d.update(extra=1), "extra"),
    (lambda d: d.update(modes=[]), "no modes"),
    (lambda d: d.update(modes=d["modes"] * 2), "taken twice"),
    (lambda d: d["modes"][0].update(name=3), "name"),
    (lambda d: d["modes"][0].update(name="x" * 300), "name"),
    (lambda d: d["modes"][0].update(graph=[]), "expected an object"),
    (put("version", 7), "version"),
    (put("inputs", []), "0 inputs"),
    (put("inputs", [0, 1]), "2 inputs"),
    (put("inputs", [99]), "tensor 99"),
    (put("inputs", [2]), "not f32"),
    (put("outputs", []), "no outputs"),
    (put("outputs", [3]), "not f32"),
    (put("outputs", [True]), "tensor id"),
    (put("tensors.1.id", 0), "taken twice"),
    (put("tensors.1.id", -1), "tensor id"),
    (put("tensors.1.shape", [4, 4]), "shape"),
    (put("tensors.1.shape", [4, 0, 4]), "shape"),
    (put("tensors.1.shape", [4, 4, 16385]), "shape"),
    (put("tensors.1.shape", [65537, 1, 1]), "shape"),
    (put("tensors.1.shape", [65536, 16384, 16384]), "2.28 elements"),
    (put("tensors.1.shape", [4, 4.0, 4]), "shape"),
    (put("tensors.2.format", "f64"), "format"),
    (put("tensors.2.format", {"kind": "bipolar", "bits": 9}), "bits"),
    (put("tensors.2.format", {"kind": "ternary", "bits": 2}), "kind"),
    (put("tensors.2.format", {"kind": "twos", "bits": 2}), "two's complement"),
    (put("op", "magic", 0), "node 0: the operation 'magic'"),
    (put("name", None, 0), "name"),
    (put("inputs", [], 0), "node 0 'stem' .conv.: has no input"),
    (put("inputs", [3], 0), "no earlier node has written"),
    (put("inputs", [0, 0], 0), "2 inputs"),
    (put("outputs", [1, 1], 0), "second time"),
    (put("outputs", [0, 2], 0), "second time"),
    (put("outputs", [1, 2, 6], 0), "no step writes its output tensor 6"),
    (put("attrs.kernel", [0, 3], 0), "kernel"),
    (put("attrs.kernel", [65, 3], 0), "kernel"),
    (put("attrs.kernel", [3], 0), "kernel"),
    (put("attrs.stride", [0, 1], 0), "stride"),
    (put("attrs.dilation", [9, 1], 0), "window is larger"),
    (put("attrs.padding", [5000, 1], 0), "padding"),
    (put("attrs.padding", [2, 1], 0), "writes shape"),
    (put("attrs.groups", 2, 0), "groups"),
    (put("attrs.groups", 3, 0), "weights"),
    (put("attrs.pad", "high", 0), "padded with zero"),
    (put("attrs.pad", "mirror", 0), "pad"),
    (put("attrs.path", "bits", 0), "path"),
    (put("attrs.speed", 11, 0), "speed"),
    (put("attrs", 3, 0), "expected an object"),
    (put("blobs.weight", 0, 0), "weight"),
    (put("blobs.weight", 6, 0), "weight"),
    (put("blobs.weight", 2, 0), "weights"),
    (put("blobs", {}, 0), "lacks the blob"),
    (put("blobs.bias", 2, 0), "bias"),
    (put("attrs.path", "fast", 1), "path"),
    (put("attrs.weight_format", "f32", 1), "float weights"),
    (put("attrs.weight_format.bits", 2, 1), "packed codes"),
    (put("attrs.kernel", [2, 1], 1), "packed codes"),
    (put("steps.0.op", "magic", 0), "step 0: the step 'magic'"),
    (put("steps.0.blobs.alpha", 1, 0), "'alpha' is not f32 of shape 4"),
    (put("steps.0.blobs", {}, 0), "neither"),
    (put("steps.1.output", 2, 0), "cannot write tensor 2"),
    (put("steps.1.output", 7, 0), "no output of the node"),
    (put("steps.2.output", 1, 0), "has been written"),
    (put("steps.2.attrs.step", 0, 0), "step"),
    (put("steps.2.attrs.step", 1e39, 0), "float32"),
    (put("steps.2.attrs.step", "1", 0), "not a number"),
    (put("steps.2.attrs.round", "up", 0), "round"),
    (put("steps.0", step("gate", 0), 0), "expected .4, 1, 1."),
    (put("steps.0", step("add", 0), 0), "expected .4, 4, 4."),
    (put("steps.0", step("add", 1), 0), "own node"),
    (put("steps.0", step("add"), 0), "input belongs to"),
    (put("steps.0", step("relu", 0), 0), "input belongs to"),
    (put("steps.0", step("store"), 0), "output belongs to"),
    (put("steps.0", step("clip", low=1, high=0), 0), "low"),
    (put("steps.0", step("clip", low=1), 0), "lacks 'high'"),
    (put("steps.0", step("relu", low=1), 0), "does not know 'low'"),
    (put("steps", [step("relu")] * 65, 0), "more than 64"),
    (put("steps.0.blobs.table", 2, 1), "'table' is not i32 of shape 1 x 5"),
    (put("steps.0.blobs.flip", 1, 1), "flip"),
    (put("steps", [], 1), "no step writes"),
    (put("attrs.kernel", [9, 9], 2), "window is larger"),
    (put("attrs.padding", [2, 0], 2), "half the kernel"),
    (put("attrs.kind", "avg", 2), "not f32"),
    (put("attrs.ceil_mode", 0, 2), "true or false"),
    (put("attrs.stride", [256, 1], 2), "stride"),
    (put("outputs", [4, 5], 2), "more than one output"),
    (put("steps", [{}], 2), "only conv and pointwise"),
    (put("attrs", {}, 3), "scale"),
    (put("attrs.scale", -1, 3), "scale"),
    (put("inputs", [5, 2], 4), "different sizes"),
    (put("inputs", [5], 4), "writes shape"),
    (put("inputs", [4], 5), "not f32"),
]


def test_what_the_document_says_is_checked_before_use() -> None:
    document, blobs = small()
    native.Model.from_bytes(packed(document, blobs))
    for number, (lie, message) in enumerate(LIES):
        changed = copy.deepcopy(document)
        lie(changed)
        with pytest.raises(RuntimeError, match=message) as caught:
            native.Model.from_bytes(packed(changed, blobs))
        assert "\n" not in str(caught.value), number


def test_what_the_arrays_hold_is_checked_before_use() -> None:
    document, blobs = small()
    for index, at, value, message in [
        (1, (0, 0, 0, 0), np.nan, "not finite"),
        (2, 0, np.inf, "not finite"),
        (3, (0, 0, 0, 0, 0), np.uint64(16), "behind the last channel"),
        (5, 0, 2, "flip"),
    ]:
        changed = [blob.copy() for blob in blobs]
        changed[index][at] = value
        with pytest.raises(RuntimeError, match=message):
            native.Model.from_bytes(packed(document, changed))
    deeper = copy.deepcopy(document)
    tensor(deeper, 3)["format"] = tensor(deeper, 4)["format"] = {"kind": "bipolar", "bits": 2}
    table = np.array([[1] * 5, [0] * 5, [2] * 5], np.int32)
    with pytest.raises(RuntimeError, match="ascend"):
        native.Model.from_bytes(packed(deeper, [*blobs[:4], table, *blobs[5:]]))
    table.sort(axis=0)
    native.Model.from_bytes(packed(deeper, [*blobs[:4], table, *blobs[5:]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "too early|shape"),
        (b"{}", "lacks 'version'"),
        (b"[" * 100 + b"]" * 100, "deeper than 32"),
        (b'{"version": 1, "version": 1}', "twice"),
        (b'{"version": NaN}', "malformed|unknown"),
        (b'{"version": 1} x', "after its end"),
        (b'{"version": 1e999}', "out of range"),
        (b'{"a": "\xff"}', "UTF-8"),
    ],
)
def test_bad_json(text: bytes, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        native.Model.from_bytes(packed(text, [np.zeros(0, np.uint8)]))


def test_sums_that_could_leave_32_bits_are_refused() -> None:
    channels = 4200  # 255 * 255 * 4200 * 9 > 2^31
    words = np.zeros((1, 8, 3, 3, (channels + 63) // 64), np.uint64)
    codes = {"kind": "unipolar", "bits": 8}
    graph = {
        "version": 1, "inputs": [0], "outputs": [2], "meta": {},
        "tensors": [
            {"id": 0, "shape": [channels, 3, 3], "format": "f32"},
            {"id": 1, "shape": [channels, 3, 3], "format": codes},
            {"id": 2, "shape": [1, 1, 1], "format": "f32"},
        ],
        "nodes": [
            {"op": "pointwise", "name": "q", "inputs": [0], "outputs": [1], "attrs": {},
             "blobs": {}, "steps": [{"op": "quantize", "attrs": {"step": 1, "round": "floor"},
                                     "blobs": {}, "input": None, "output": 1}]},
            {"op": "conv", "name": "long", "inputs": [1], "outputs": [2],
             "attrs": {"kernel": [3, 3], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
                       "groups": 1, "pad": "zero", "path": "int8", "weight_format": codes},
             "blobs": {"weight": 1},
             "steps": [{"op": "store", "attrs": {}, "blobs": {}, "input": None, "output": 2}]},
        ],
    }  # fmt: skip
    document = {"version": 1, "modes": [{"name": "m", "graph": graph}], "meta": {}}
    with pytest.raises(RuntimeError, match=r"node 1 'long'.*32 bits"):
        native.Model.from_bytes(packed(document, [np.zeros(0, np.uint8), words]))
