"""From a trained PyTorch network to a packed one that the native engine runs.

:func:`foveate.engine.trace.trace` gives a list of operations; here they become the nodes and
steps of a graph, in five passes:

1. *Sink*: what only quantises the result of a max-pool or a flatten moves in front of it, so that
   codes are pooled instead of floats (maximum and rounding commute where nothing falls).
2. *Average first*: a mean over the picture moves in front of the batch normalisation whose result
   it averages, so that this result need not be written for it (equal up to rounding).
3. *Absorb*: scale, bias, batch normalisation and activation in front of a quantiser of at most 3
   bits vanish into its threshold table (:mod:`foveate.engine.thresholds`): back to the integer
   sums of a convolution where nothing but monotone per-channel operations lies between, else back
   to the float that they start from. The tables are searched with the modules themselves, so the
   codes are those of PyTorch bit for bit.
4. *Prune* what nobody reads any more.
5. *Fuse*: a convolution takes the element-wise operations behind it as its steps, as far as one
   chain of them goes; a value with several readers is stored on the way. Operations that no
   convolution takes become ``pointwise`` nodes.

Batch normalisation is not multiplied into float weights: the product would be rounded otherwise
than torch's two steps, and as a step it costs no pass over memory.

>>> packed = compile(model, torch.zeros(1, 3, 32, 32))  # doctest: +SKIP
>>> packed.run(images)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.engine.file import Mode, ModelFile
from foveate.engine.graph import Attribute, BlobStore, Graph, Node, Step, format_to_json
from foveate.engine.graph import Tensor as GraphTensor
from foveate.engine.operations import POINTWISE, Operation, Trace
from foveate.engine.packed_model import PackedModel
from foveate.engine.reference import quantized
from foveate.engine.thresholds import Thresholds, float_thresholds, integer_thresholds
from foveate.engine.trace import trace
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat
from foveate.quantization.quantizers import QuantAct, UniformBipolar

__all__ = ["compile", "compile_modes"]

Path = Literal["auto", "bits", "int8"]

TABLE_BITS = 3  # quantisers of more bits are computed, a table would be longer than the sum
ABSORBED = frozenset(["affine", "relu", "clip", "prelu", "sigmoid", "tanh"])
INTEGER = frozenset(["conv", "decode"])
MAX_CHAIN = 48  # steps of one node, of the 64 that the engine takes
MAX_NAME = 200  # bytes


def compile(model: nn.Module, example: Tensor, *, path: Path = "auto") -> PackedModel:
    """Compile a network.

    Parameters
    ----------
    model
        Left as it is; a copy in eval mode is compiled.
    example
        Input ``(N, C, H, W)`` or ``(N, C)``. Its size is the one the packed model takes; the batch
        size is free.
    path
        How convolutions over codes are computed: popcounts on ``bits``, ``int8`` products, or
        whichever is faster here. All give the same integers.

    Returns
    -------
    PackedModel
        With the one mode "default".

    Raises
    ------
    FoveateError
        Something in the model has no counterpart in the engine; the operation and the path of the
        module are named.
    """
    return compile_modes({"default": model}, example, path=path)


def compile_modes(
    models: Mapping[str, nn.Module], example: Tensor, *, path: Path = "auto"
) -> PackedModel:
    """Compile several versions of a network into one packed model that can switch between them.

    Equal arrays are kept once, and weights of a nested quantiser share their bit planes.

    Parameters
    ----------
    models
        Network of each mode, in the order of the modes; the first is the one that runs at first.
    example, path
        As for :func:`compile`.
    """
    if path not in ("auto", "bits", "int8"):
        raise FoveateError(f"path is auto, bits or int8, got {path!r}")
    if not models:
        raise FoveateError("compile_modes wants at least one model")
    store = BlobStore()
    modes = [
        Mode(name, _Builder(trace(model, example), store, path).build())
        for name, model in models.items()
    ]
    return PackedModel(ModelFile(modes, store.blobs, {"made by": "foveate"}))


class _Builder:
    """The passes over one trace."""

    def __init__(self, traced: Trace, store: BlobStore, path: Path) -> None:
        self.trace, self.store, self.path = traced, store, path
        self.operations = traced.operations
        self.chains: dict[int, list[Operation]] = {}  # absorbed by a quantiser, by its output
        self.tables: dict[int, Thresholds] = {}
        self.tensors: list[GraphTensor] = []
        self.nodes: list[Node] = []
        self.placed: dict[int, int] = {}  # value -> tensor
        self.formats: dict[int, CodeFormat | None] = {}  # of placed values
        self.readers: dict[int, list[Operation]] = {}
        self.done: set[int] = set()  # outputs of operations that are in the graph

    def build(self) -> Graph:
        self.sink()
        self.average_first()
        self.absorb()
        self.prune()
        self.readers = self.count_readers()
        self.place(self.trace.input, None)
        for operation in self.operations:
            if operation.output not in self.done:
                self.emit(operation)
        outputs = [self.output(value) for value in self.trace.outputs]
        return Graph(
            [self.placed[self.trace.input]],
            outputs,
            self.tensors,
            self.nodes,
            {
                "input_rank": self.trace.input_rank,
                "output_ranks": self.trace.output_ranks,
                "single": self.trace.single,
            },
        )

    # -- passes

    def count_readers(self) -> dict[int, list[Operation]]:
        readers: dict[int, list[Operation]] = {value: [] for value in self.trace.shapes}
        for operation in self.operations:
            for value in dict.fromkeys(operation.inputs):
                readers[value].append(operation)
        return readers

    def makers(self) -> dict[int, Operation]:
        return {operation.output: operation for operation in self.operations}

    def sink(self) -> None:
        """Move quantisers in front of max-pools and flattens."""
        for quantiser in [one for one in self.operations if one.kind == "quant"]:
            while self.sink_one(quantiser):
                pass

    def sink_one(self, quantiser: Operation) -> bool:
        makers, readers = self.makers(), self.count_readers()
        chain = [quantiser]
        while True:
            value = chain[-1].inputs[0]
            above = makers.get(value)
            if above is None or len(readers[value]) != 1 or value in self.trace.outputs:
                return False
            if above.kind == "flatten" or (above.kind == "pool" and above.attrs["kind"] == "max"):
                break
            if above.kind not in ABSORBED or above.direction != "rising":
                return False
            chain.append(above)
        if above.kind == "flatten" and any(one.arrays for one in chain):
            return False  # numbers per channel: behind a flatten there are other channels
        # above -> chain -> codes becomes chain -> codes before -> above -> codes
        shape = self.trace.shapes[above.inputs[0]]
        codes = len(self.trace.shapes)
        self.trace.shapes[codes] = shape
        chain[-1].inputs[0] = above.inputs[0]
        for one in chain:
            one.rank = 4 if above.kind == "flatten" else one.rank
        for one in chain[1:]:
            self.trace.shapes[one.output] = shape
        above.inputs, above.output, quantiser.output = [codes], quantiser.output, codes
        self.operations.remove(above)
        self.operations.insert(self.operations.index(quantiser) + 1, above)
        return True

    def average_first(self) -> None:
        """Exchange a scale and shift per channel with the global average behind it."""
        makers = self.makers()
        for average in [one for one in self.operations if one.kind == "global_avg"]:
            while (above := makers.get(average.inputs[0])) is not None and above.kind == "affine":
                mean = len(self.trace.shapes)
                self.trace.shapes[mean] = self.trace.shapes[average.output]
                moved = replace(above, inputs=[mean], output=average.output)
                average.inputs, average.output = [above.inputs[0]], mean
                self.operations.insert(self.operations.index(average) + 1, moved)

    def absorb(self) -> None:
        """Give quantisers of few bits their tables."""
        makers = self.makers()
        for quantiser in self.operations:
            act = quantiser.quantizer
            if act is None:
                continue
            value = quantiser.inputs[0]
            chain: list[Operation] = []
            while (above := makers.get(value)) is not None:
                if above.kind not in ABSORBED or above.direction == "other":
                    break
                chain.insert(0, above)
                value = above.inputs[0]
            if act.format.bits <= TABLE_BITS:
                integer = above is not None and is_integer(above)
                if integer or chain or not computes(act):
                    table = self.table(quantiser, chain, above if integer else None, value)
                    if table is not None:
                        self.tables[quantiser.output] = table
                        quantiser.inputs = [value]
                        continue
            if not computes(act):
                raise FoveateError(
                    f"cannot compile {quantiser.name!r}: {type(act).__name__} of "
                    f"{act.format.bits} bits rounds otherwise than the engine does"
                )

    def table(
        self, quantiser: Operation, chain: list[Operation], source: Operation | None, value: int
    ) -> Thresholds | None:
        """Thresholds for `value`, which `source` makes if it is a sum of integers."""
        channels = self.trace.shapes[value][0]
        act = cast(QuantAct, quantiser.quantizer)

        def code_of(v: Tensor) -> Tensor:
            for one in [*chain, quantiser]:
                v = v.reshape(v.shape[0], channels, *[1] * (one.rank - 2))
                v = act.integers(v) if one is quantiser else cast(_Apply, one.apply)(v)
            return act.format.codes(v.reshape(-1, channels))

        if source is None:
            return float_thresholds(code_of, channels, act.format.top)
        return integer_thresholds(code_of, channels, act.format.top, self.reach(source))

    def reach(self, source: Operation) -> int:
        """Largest |S| of a convolution over codes, or of the integers of codes."""
        codes = self.code_format(source.inputs[0])
        largest = max(abs(codes.low), abs(codes.high))
        if source.kind == "decode":
            return largest
        weights = cast(CodeFormat, source.weight_format).integers(
            source.arrays["weight"].astype(np.int64)
        )
        return largest * int(np.abs(weights).sum((1, 2, 3)).max())

    def code_format(self, value: int) -> CodeFormat:
        """Format of a value that is codes: that of the quantiser it comes from."""
        maker = self.makers()[value]
        if maker.quantizer is not None:
            return maker.quantizer.format
        return self.code_format(maker.inputs[0])

    def prune(self) -> None:
        wanted = set(self.trace.outputs)
        kept = []
        for operation in reversed(self.operations):
            if operation.output in wanted:
                wanted.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]

    # -- emission

    def place(self, value: int, code_format: CodeFormat | None) -> int:
        tensor = len(self.tensors)
        self.tensors.append(GraphTensor(tensor, self.trace.shapes[value], code_format))
        self.placed[value] = tensor
        self.formats[value] = code_format
        return tensor

    def output(self, value: int) -> int:
        """Tensor of an output of the graph; the input itself is copied."""
        if value != self.trace.input:
            return self.placed[value]
        tensor = len(self.tensors)
        self.tensors.append(GraphTensor(tensor, self.trace.shapes[value]))
        step = Step("store", output=tensor)
        self.nodes.append(Node("pointwise", "output", [self.placed[value]], [tensor], steps=[step]))
        return tensor

    def emit(self, operation: Operation) -> None:
        """Append the node that begins with an operation."""
        if operation.kind in POINTWISE or operation.kind == "quant":
            self.append("pointwise", operation, operation.inputs[0], operation.inputs[0])
        elif operation.kind in INTEGER:
            op = "conv" if operation.kind == "conv" else "pointwise"
            self.done.add(operation.output)
            self.append(op, operation, operation.inputs[0], operation.output)
        else:
            self.done.add(operation.output)
            inputs = [self.placed[value] for value in operation.inputs]
            code_format = self.formats[operation.inputs[0]]
            output = self.place(operation.output, code_format)
            name = operation.name[:MAX_NAME]
            self.nodes.append(Node(operation.kind, name, inputs, [output], operation.attrs))

    def append(self, op: str, operation: Operation, source: int, start: int) -> None:
        """Append a node with steps: its running value begins as the value `start`."""
        attrs: dict[str, Attribute] = {}
        blobs: dict[str, int] = {}
        if op == "conv":
            attrs = dict(operation.attrs)
            weight = operation.arrays["weight"]
            if operation.weight_format is None:
                blobs["weight"] = self.store.add(weight)
            else:
                codes = cast("NDArray[np.uint8]", weight)
                blobs["weight"] = self.store.add_codes(codes, operation.weight_format.bits)
                attrs["weight_format"] = cast(
                    "dict[str, str | int]", format_to_json(operation.weight_format)
                )
                # The bit kernels have no depthwise form.
                depthwise = codes.shape[:2] == (attrs["groups"], 1)
                attrs["path"] = "auto" if depthwise and self.path == "bits" else self.path
        steps, outputs = self.chain(start)
        name = operation.name[:MAX_NAME]
        self.nodes.append(Node(op, name, [self.placed[source]], outputs, attrs, blobs, steps))

    def chain(self, value: int) -> tuple[list[Step], list[int]]:
        """Steps from a running value on, as far as one chain goes; and the tensors they write."""
        steps: list[Step] = []
        outputs: list[int] = []
        while True:
            readers = [one for one in self.readers[value] if one.output not in self.done]
            made: list[Step] = []
            for quantiser in [one for one in readers if one.kind == "quant"]:
                self.quantise(quantiser, made)
            steps += made
            outputs += [cast(int, step.output) for step in made]
            readers = [one for one in readers if one.kind != "quant"]
            following = next((one for one in readers if self.continues(one, value, outputs)), None)
            if len(steps) >= MAX_CHAIN:
                following = None
            kept = value in self.trace.outputs or any(one is not following for one in readers)
            if kept and value not in self.placed:
                outputs.append(self.place(value, None))
                steps.append(Step("store", output=outputs[-1]))
            if following is None:
                return steps, outputs
            self.done.add(following.output)
            step = self.step(following, value)
            last = steps[-1] if steps else None
            if (
                last is not None
                and last.op == step.op == "affine"
                and set(last.blobs) == {"alpha"}
                and set(step.blobs) == {"beta"}
            ):
                steps[-1] = replace(last, blobs={**last.blobs, **step.blobs})
            else:
                steps.append(step)
            value = following.output

    def continues(self, operation: Operation, value: int, written: list[int]) -> bool:
        """Whether an operation can be the next step behind the running `value`.

        What it reads besides must be there before the node begins: not among the tensors that the
        node itself has `written`.
        """
        if operation.kind not in POINTWISE:
            return False
        if operation.kind == "gate" and operation.inputs[0] != value:
            return False
        if operation.kind in ("add", "gate"):
            other = self.placed.get(self.other(operation, value))
            return other is not None and other not in written
        return True

    def other(self, operation: Operation, value: int) -> int:
        """The operand of `add` or `gate` that is not the running value."""
        first, second = operation.inputs
        return first if second == value else second

    def step(self, operation: Operation, value: int) -> Step:
        if operation.kind == "tanh":
            raise FoveateError(
                f"cannot compile {operation.name!r}: the engine has tanh only in front of a "
                f"quantiser of at most {TABLE_BITS} bits"
            )
        other = None
        if operation.kind in ("add", "gate"):
            other = self.placed[self.other(operation, value)]
        blobs = {role: self.store.add(row) for role, row in operation.arrays.items()}
        return Step(operation.kind, operation.attrs, blobs, other)

    def quantise(self, quantiser: Operation, made: list[Step]) -> None:
        """Append the step of a quantiser to `made`, unless one there gives the same codes."""
        self.done.add(quantiser.output)
        act = cast(QuantAct, quantiser.quantizer)
        table = self.tables.get(quantiser.output)
        attrs: dict[str, Attribute] = {}
        blobs: dict[str, int] = {}
        if table is None:
            attrs = {"step": float(act.step().detach()), "round": "half_up"}
        else:
            blobs = {"table": self.store.add(table.table), "flip": self.store.add(table.flip)}
        for step in made:
            output = cast(int, step.output)
            same_format = self.tensors[output].format == act.format
            if same_format and (step.attrs, step.blobs) == (attrs, blobs):
                self.placed[quantiser.output] = output
                self.formats[quantiser.output] = act.format
                return
        output = self.place(quantiser.output, act.format)
        made.append(
            Step("quantize" if table is None else "thresholds", attrs, blobs, output=output)
        )


_Apply = Callable[[Tensor], Tensor]


def is_integer(operation: Operation) -> bool:
    """Whether an operation makes exact integers: sums over codes, or the integers of codes."""
    return operation.kind == "decode" or operation.weight_format is not None


def computes(act: QuantAct) -> bool:
    """Whether the engine's ``quantize`` gives the codes of a quantiser, compared where it jumps."""
    step = float(act.step().detach())
    levels = np.arange(-act.format.top - 1, act.format.top + 2, dtype=np.float64) * step
    jumps = np.concatenate([levels, levels + step / 2]).astype(np.float32)
    near = [jumps]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        place = jumps
        for _ in range(4):
            place = np.nextafter(place, direction)
            near.append(place)
    values = np.concatenate([*near, np.linspace(-3, 3, 1001, dtype=np.float32)])
    if isinstance(act, UniformBipolar) and act.range == "hrelu":
        values = values.clip(0, 1)  # a step of its own goes before
    with torch.no_grad():
        said = act.format.codes(act.integers(torch.from_numpy(values)[None, :, None, None]))
    ours = quantized(values, act.format, step, "half_up")
    return bool((said.reshape(-1).numpy() == ours).all())
