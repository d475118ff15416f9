"""The graph that every executor runs: what is computed, in which order, on which numbers.

A graph is a list of nodes in the order of their execution. Between nodes flow tensors of two
sorts: float32, or *codes*, small unsigned integers u whose meaning a :class:`CodeFormat` gives
(``bipolar`` 2u - (2^M - 1), ``unipolar`` u). Batches are no part of it: a tensor has the shape
``(C, H, W)`` of one image, a vector ``(C, 1, 1)``.

A convolution ends in *steps*: a small programme on the running value y of each output, so that
what follows it (scale, normalisation, shortcut, activation, the next layer's quantiser) costs no
pass over memory::

    conv over codes   S = sum a*w        exact integer
      thresholds -> codes                reads S, only before any other step
      affine            y = S*alpha + beta
      add               y = y + r
      store -> float32                   y goes on
      thresholds | quantize -> codes     reads y

Node operations and their attributes (every geometry attribute is a pair for height and width):

=============  ==============================================================================
conv           kernel, stride, padding, dilation, groups, pad ("zero" | "low" | "high"); blob
               weight. Over float32 the weight is float32 ``(Co, Ci/groups, kh, kw)`` and pad is
               "zero". Over codes it is packed codes (:mod:`foveate.engine.planes`), uint64
               ``(Co, planes, kh, kw, words)``, with the attributes weight_format (its bits are
               read from the first planes) and path ("auto" | "bits" | "int8"); pad "zero" is the
               real 0 (no code of a bipolar format), "low" and "high" the extreme codes.
pointwise      nothing but its steps; over codes the running value begins as their signed integer
pool           kind ("max" | "avg"), kernel, stride, padding, ceil_mode, count_include_pad;
               codes: max only
global_avg     mean over space; attribute scale where the input is codes
concat, slice  over channels; slice has start and stop
flatten        (C, H, W) -> (C*H*W, 1, 1), channels outermost
softmax        over channels
upsample       scale (a whole number), mode ("nearest" | "bilinear", corners not aligned)
shuffle        groups; channel g*(C/G)+c goes to c*G+g
=============  ==============================================================================

``pool`` (max), ``flatten``, ``concat``, ``slice``, ``shuffle`` and ``upsample`` (nearest) keep the
format of their input; all others want float32. Steps: ``affine`` (blobs alpha, beta or both),
``gate`` (input of shape (C, 1, 1)), ``add`` (input of the same shape), ``relu``, ``clip`` (low,
high), ``prelu`` (blob slope), ``sigmoid``, ``hswish``, ``silu``, ``store``, ``quantize`` (step,
round), ``thresholds`` (blobs table, flip). The order of the float operations is part of the
contract; :mod:`foveate.engine.reference` states it in executable form.

Arrays are kept beside the graph in one list, ``blobs``, which several graphs (the modes of one
model) share; nodes name them by index. Entry 0 is reserved: in a file it is the JSON itself.

A graph may come from an untrusted file: :mod:`foveate.engine.validation` checks it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from foveate.engine.planes import pack_codes
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat

__all__ = [
    "Attribute",
    "BlobStore",
    "Blobs",
    "Graph",
    "Node",
    "Step",
    "Tensor",
    "conv_macs",
    "format_from_json",
    "format_to_json",
    "graph_from_json",
    "graph_text",
    "graph_to_json",
    "shown",
]

VERSION = 1
MAX_ENTRIES = 1 << 16  # of any list in the JSON
MAX_NAME = 1 << 8  # bytes of a string

Attribute: TypeAlias = "str | bool | int | float | list[int] | dict[str, str | int]"
Blobs: TypeAlias = "Sequence[NDArray[np.generic]]"
Json: TypeAlias = "str | bool | int | float | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class Tensor:
    """One value of one image: `shape` (C, H, W); `format` None for float32, else its codes."""

    id: int
    shape: tuple[int, int, int]
    format: CodeFormat | None = None


@dataclass(frozen=True)
class Step:
    """One operation on the running value; `input` and `output` are tensor ids."""

    op: str
    attrs: dict[str, Attribute] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    input: int | None = None
    output: int | None = None


@dataclass(frozen=True)
class Node:
    """One operation; `name` is the path of the module it came from."""

    op: str
    name: str
    inputs: list[int]
    outputs: list[int]
    attrs: dict[str, Attribute] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Graph:
    """A network of one mode.

    Attributes
    ----------
    inputs, outputs
        Ids of float32 tensors; exactly one input.
    tensors
        Every value, in any order.
    nodes
        In the order of execution.
    meta
        Numbers and words for people and for the Python side; executors ignore it.
    """

    inputs: list[int]
    outputs: list[int]
    tensors: list[Tensor]
    nodes: list[Node]
    meta: dict[str, Attribute] = field(default_factory=dict)

    def tensor(self, number: int) -> Tensor:
        """Return the tensor of that id.

        Raises
        ------
        FoveateError
            There is none.
        """
        for tensor in self.tensors:
            if tensor.id == number:
                return tensor
        raise FoveateError(f"the graph has no tensor {number}")


class BlobStore:
    """Arrays in the making: equal arrays are kept once.

    ``blobs[0]`` stands for the JSON of the file and is empty in memory.
    """

    def __init__(self) -> None:
        self.blobs: list[NDArray[np.generic]] = [np.zeros(0, np.uint8)]
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._nested: dict[tuple[tuple[int, ...], bytes], int] = {}

    def add(self, array: NDArray[np.generic]) -> int:
        """Keep an array (uint8, int32 or float32) and return its index."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        index = self._known.get(key)
        if index is None:
            index = self._known[key] = len(self.blobs)
            array.setflags(write=False)
            self.blobs.append(array)
        return index

    def add_codes(self, codes: NDArray[np.uint8], bits: int) -> int:
        """Pack weight codes ``(Co, C, kh, kw)``, keep them and return their index.

        Codes that are the leading planes of others (a nested quantiser at fewer bits) take no
        room of their own.
        """
        words = pack_codes(codes, bits)
        # Nested codes agree in their first plane, so that is what they are looked up by.
        key = (codes.shape, words[:, 0].tobytes())
        index = self._nested.get(key)
        if index is not None:
            kept = self.blobs[index]
            shared = min(bits, kept.shape[1])
            if np.array_equal(kept[:, :shared], words[:, :shared]):
                if bits > kept.shape[1]:
                    self.blobs[index] = words
                return index
        words.setflags(write=False)
        self.blobs.append(words)
        self._nested[key] = len(self.blobs) - 1
        return len(self.blobs) - 1


def conv_macs(graph: Graph, node: Node) -> int:
    """Multiply-adds of a convolution for one image; 0 for every other node."""
    if node.op != "conv":
        return 0
    shapes = {tensor.id: tensor.shape for tensor in graph.tensors}
    channels = shapes[node.inputs[0]][0]
    out_channels, height, width = shapes[node.outputs[0]]
    kernel = cast("list[int]", node.attrs["kernel"])
    groups = cast(int, node.attrs["groups"])
    return out_channels * height * width * channels // groups * kernel[0] * kernel[1]


# ------------------------------------------------------------------------------------ JSON


def format_to_json(code_format: CodeFormat | None) -> str | dict[str, str | int]:
    """``"f32"`` or ``{"kind": ..., "bits": ...}``."""
    if code_format is None:
        return "f32"
    return {"kind": code_format.kind, "bits": code_format.bits}


def format_from_json(said: object, where: str) -> CodeFormat | None:
    """Undo :func:`format_to_json`, refusing anything else."""
    if said == "f32":
        return None
    if isinstance(said, dict) and set(said) == {"kind", "bits"}:
        kind, bits = said["kind"], said["bits"]
        if kind in ("bipolar", "unipolar", "twos") and _is_int(bits) and 1 <= bits <= 8:
            return CodeFormat(cast(Literal["bipolar", "unipolar", "twos"], kind), bits)
    raise FoveateError(
        f'{where}: the format is "f32" or {{"kind": bipolar, unipolar or twos, "bits": 1 to 8}}, '
        f"got {shown(said)}"
    )


def graph_to_json(graph: Graph) -> dict[str, Json]:
    """Return the graph as what ``json.dumps`` takes."""
    said = {
        "version": VERSION,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "tensors": [
            {"id": t.id, "shape": list(t.shape), "format": format_to_json(t.format)}
            for t in graph.tensors
        ],
        "nodes": [
            {
                "op": node.op,
                "name": node.name,
                "inputs": node.inputs,
                "outputs": node.outputs,
                "attrs": node.attrs,
                "blobs": node.blobs,
                "steps": [
                    {
                        "op": step.op,
                        "attrs": step.attrs,
                        "blobs": step.blobs,
                        "input": step.input,
                        "output": step.output,
                    }
                    for step in node.steps
                ],
            }
            for node in graph.nodes
        ],
        "meta": graph.meta,
    }
    return cast("dict[str, Json]", said)


def graph_from_json(said: object) -> Graph:
    """Read a graph from parsed JSON. Types are checked here, sense by :func:`validate`.

    Raises
    ------
    FoveateError
        A field is missing, unknown or of another type.
    """
    fields = _fields(
        said, ("version", "inputs", "outputs", "tensors", "nodes", "meta"), "the graph"
    )
    if fields["version"] != VERSION or isinstance(fields["version"], bool):
        raise FoveateError(
            f"the graph has version {shown(fields['version'])}, this foveate reads {VERSION}; "
            "compile the model anew"
        )
    tensors = []
    for number, entry in enumerate(_list(fields["tensors"], "tensors of the graph")):
        where = f"tensor {number} of the graph"
        one = _fields(entry, ("id", "shape", "format"), where)
        shape = _ints(one["shape"], f"shape of {where}")
        if len(shape) != 3:
            raise FoveateError(f"{where}: the shape is [C, H, W], got {shown(shape)}")
        code_format = format_from_json(one["format"], where)
        tensors.append(
            Tensor(_int(one["id"], f"id of {where}"), (shape[0], shape[1], shape[2]), code_format)
        )
    nodes = []
    for number, entry in enumerate(_list(fields["nodes"], "nodes of the graph")):
        where = f"node {number} of the graph"
        one = _fields(entry, ("op", "name", "inputs", "outputs", "attrs", "blobs", "steps"), where)
        steps = []
        for place, said_step in enumerate(_list(one["steps"], f"steps of {where}")):
            here = f"step {place} of {where}"
            inner = _fields(said_step, ("op", "attrs", "blobs", "input", "output"), here)
            steps.append(
                Step(
                    _text(inner["op"], f"op of {here}"),
                    _attributes(inner["attrs"], here),
                    _blob_indices(inner["blobs"], here),
                    None if inner["input"] is None else _int(inner["input"], f"input of {here}"),
                    None if inner["output"] is None else _int(inner["output"], f"output of {here}"),
                )
            )
        nodes.append(
            Node(
                _text(one["op"], f"op of {where}"),
                _text(one["name"], f"name of {where}"),
                _ints(one["inputs"], f"inputs of {where}"),
                _ints(one["outputs"], f"outputs of {where}"),
                _attributes(one["attrs"], where),
                _blob_indices(one["blobs"], where),
                steps,
            )
        )
    return Graph(
        _ints(fields["inputs"], "inputs of the graph"),
        _ints(fields["outputs"], "outputs of the graph"),
        tensors,
        nodes,
        _attributes(fields["meta"], "meta of the graph"),
    )


def shown(value: object) -> str:
    """Value as it stands in a message: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _int(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise FoveateError(f"the {where} is a whole number below 2^31, got {shown(value)}")
    return value


def _text(value: object, where: str) -> str:
    # A lone surrogate has no UTF-8 form: JSON can spell it, a file cannot hold it.
    if isinstance(value, str) and len(value.encode("utf-8", "replace")) <= MAX_NAME:
        return value
    raise FoveateError(f"the {where} is a string of at most {MAX_NAME} bytes, got {shown(value)}")


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise FoveateError(
            f"the {where} are a list of at most {MAX_ENTRIES} entries, got {shown(value)}"
        )
    return value


def _ints(value: object, where: str) -> list[int]:
    return [_int(entry, where) for entry in _list(value, where)]


def _fields(value: object, names: tuple[str, ...], where: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise FoveateError(f"{where} has the fields {', '.join(names)}, got {shown(value)}")
    return value


def _attributes(value: object, where: str) -> dict[str, Attribute]:
    if not isinstance(value, dict):
        raise FoveateError(f"the attributes of {where} are an object, got {shown(value)}")
    attributes: dict[str, Attribute] = {}
    for name, entry in value.items():
        if isinstance(entry, list):
            attributes[name] = _ints(entry, f"attribute {name!r} of {where}")
        elif isinstance(entry, dict):
            # The only objects are formats: two short fields of text and number.
            if not all(isinstance(v, (str, int)) for v in entry.values()):
                raise FoveateError(f"attribute {name!r} of {where} cannot be {shown(entry)}")
            attributes[name] = entry
        elif isinstance(entry, (str, bool, int, float)):
            if isinstance(entry, float) and not math.isfinite(entry):
                raise FoveateError(f"attribute {name!r} of {where} is not finite")
            attributes[name] = entry
        else:
            raise FoveateError(f"attribute {name!r} of {where} cannot be {shown(entry)}")
    return attributes


def _blob_indices(value: object, where: str) -> dict[str, int]:
    if not isinstance(value, dict):
        raise FoveateError(f"the blobs of {where} are an object, got {shown(value)}")
    return {name: _int(entry, f"blob {name!r} of {where}") for name, entry in value.items()}


def graph_text(graph: Graph) -> str:
    """Compact JSON text of a graph; numbers keep every digit of their float64 value."""
    return json.dumps(graph_to_json(graph), separators=(",", ":"), allow_nan=False)
