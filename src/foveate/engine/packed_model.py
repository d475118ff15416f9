"""A compiled network: run it, time it, switch its bits, save it.

A :class:`PackedModel` holds one graph per mode and the arrays they share. It runs on the native
engine where that is built, and on :mod:`foveate.engine.reference` otherwise; both give the same
integers and the same codes.

>>> packed = compile_modes({"w1a1": small, "w2a2": large}, example)  # doctest: +SKIP
>>> packed.set_bits("w2a2")  # doctest: +SKIP
>>> logits = packed.run(images, threads=2)  # doctest: +SKIP
>>> packed.save("net.fvt")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.engine import file
from foveate.engine.file import ModelFile
from foveate.engine.graph import Graph, Node, conv_macs, format_from_json
from foveate.engine.reference import reference_dump, reference_nodes, reference_run
from foveate.errors import FoveateError

__all__ = ["Executor", "LayerBits", "NodeTime", "PackedModel"]

Executor = Literal["auto", "native", "reference"]
Images = TypeVar("Images", Tensor, NDArray[np.float32])


@dataclass(frozen=True)
class LayerBits:
    """One convolution or linear layer.

    Attributes
    ----------
    name
        Path of the module.
    weight_bits, act_bits
        32 where they are real.
    weights
        Number of weights.
    bytes
        What they take up in the file.
    macs
        Multiply-adds for one image.
    """

    name: str
    weight_bits: int
    act_bits: int
    weights: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the graph for one image.

    Attributes
    ----------
    name, op
        Path of the module, and what the node does.
    path
        How it was computed: ``bits``, ``int8``, ``f32`` or ``reference``.
    seconds
        The least of the repetitions.
    macs
        Multiply-adds.
    bytes
        Read and written.
    """

    name: str
    op: str
    path: str
    seconds: float
    macs: int
    bytes: int


class _Native(Protocol):
    """The native executor, ``foveate._native.Model``."""

    def set_mode(self, index: int) -> None: ...
    def run(self, x: NDArray[np.float32], threads: int) -> list[NDArray[np.float32]]: ...
    def profile(
        self, x: NDArray[np.float32], threads: int, repeats: int
    ) -> list[dict[str, str | float | int]]: ...
    def dump(self, x: NDArray[np.float32]) -> dict[int, NDArray[np.generic]]: ...


class PackedModel:
    """A compiled network; made by :func:`foveate.engine.compile` or :meth:`load`.

    One object may be used from several threads; runs take turns.

    Raises
    ------
    FoveateError
        A graph is not valid.
    """

    def __init__(self, model: ModelFile) -> None:
        self._model = model
        self._bytes = file.to_bytes(model)  # validates
        for mode in model.modes:
            _check_ranks(mode.name, mode.graph)
        self._mode = 0
        self._known_bits = [
            [bits for bits in map(_weight_bits, mode.graph.nodes) if bits < 32]
            for mode in model.modes
        ]
        self._native: _Native | None = None
        self._lock = threading.Lock()

    @property
    def modes(self) -> list[str]:
        """Names of the modes."""
        return [mode.name for mode in self._model.modes]

    @property
    def mode(self) -> str:
        """Name of the mode that runs."""
        return self._model.modes[self._mode].name

    @property
    def graph(self) -> Graph:
        """Graph of the mode that runs."""
        return self._model.modes[self._mode].graph

    @property
    def blobs(self) -> Sequence[NDArray[np.generic]]:
        """Arrays that the graphs of all modes name by index."""
        return self._model.blobs

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return self.graph.tensor(self.graph.inputs[0]).shape

    @property
    def size_bytes(self) -> int:
        """Size of the file, all modes."""
        return len(self._bytes)

    def set_bits(self, choice: str | Sequence[int]) -> None:
        """Choose the mode that runs from now on; takes no time.

        Parameters
        ----------
        choice
            Name of a mode, or the weight bits of every quantised layer in the order of
            :meth:`bits_report`: the first mode that has them.

        Raises
        ------
        FoveateError
            No mode is called so or has these bits.
        """
        if isinstance(choice, str):
            if choice not in self.modes:
                raise FoveateError(
                    f"there is no mode {choice!r}; the modes are {', '.join(self.modes)}"
                )
            self._mode = self.modes.index(choice)
            return
        known = self._known_bits
        wanted = list(choice) if isinstance(choice, Iterable) else choice
        if wanted not in known:
            raise FoveateError(
                f"no mode has the weight bits {wanted!r}; "
                + "; ".join(
                    f"{name} has {bits}" for name, bits in zip(self.modes, known, strict=True)
                )
            )
        self._mode = known.index(wanted)

    def run(
        self, x: Images, threads: int = 1, executor: Executor = "auto"
    ) -> Images | list[Images]:
        """Run the network.

        Parameters
        ----------
        x
            ``(N, C, H, W)`` floats as the network was trained on (``(N, C)`` for one that takes
            vectors), a numpy array or a torch tensor; any N.
        threads
            Threads of the native engine; the result does not depend on it.
        executor
            ``auto``: native where it is built.

        Returns
        -------
        array or list of arrays
            What the network returned, of the sort of `x`, float32.

        Raises
        ------
        FoveateError
            Another shape or type; ``native`` where there is no native engine.
        """
        mode = self._mode
        graph = self._model.modes[mode].graph
        images = _images(x, graph)
        workers = _count("threads", threads)
        native = self._executor(executor)
        if native is None:
            arrays = reference_run(graph, self.blobs, images)
        else:
            with self._lock:
                arrays = _guarded(native, mode, lambda model: model.run(images, workers))
        ranks = cast("list[int]", graph.meta["output_ranks"])
        shaped = [
            array.reshape(array.shape[:rank]) for array, rank in zip(arrays, ranks, strict=True)
        ]
        if isinstance(x, Tensor):
            outputs = cast("list[Images]", [torch.from_numpy(array) for array in shaped])
        else:
            outputs = cast("list[Images]", shaped)
        return outputs[0] if graph.meta["single"] else outputs

    def dump(self, x: Images, executor: Executor = "auto") -> dict[int, NDArray[np.generic]]:
        """Every tensor of the graph for one image, ``(C, H, W)`` by id: float32 or uint8 codes.

        Raises
        ------
        FoveateError
            As for :meth:`run`; or `x` is not one image.
        """
        mode = self._mode
        graph = self._model.modes[mode].graph
        images = _images(x, graph)
        if len(images) != 1:
            raise FoveateError(f"dump takes one image, got {len(images)}")
        native = self._executor(executor)
        if native is None:
            dumped = reference_dump(graph, self.blobs, images)
            return {number: value[0] for number, value in dumped.items()}
        with self._lock:
            return _guarded(native, mode, lambda model: model.dump(images))

    def profile(
        self, x: Images, threads: int = 1, repeats: int = 10, executor: Executor = "auto"
    ) -> list[NodeTime]:
        """Time of every node for the first image of `x`, the least of `repeats`."""
        mode = self._mode
        graph = self._model.modes[mode].graph
        images = _images(x, graph)[:1]
        workers, times = _count("threads", threads), _count("repeats", repeats)
        if not len(images):
            raise FoveateError("profile wants at least one image, got none")
        native = self._executor(executor)
        if native is None:
            return self._profile_reference(graph, images, times)
        with self._lock:
            rows = _guarded(native, mode, lambda model: model.profile(images, workers, times))
        return [
            NodeTime(
                str(row["name"]),
                str(row["op"]),
                str(row["path"]),
                float(row["seconds"]),
                int(row["macs"]),
                int(row["bytes"]),
            )
            for row in rows
        ]

    def _profile_reference(
        self, graph: Graph, images: NDArray[np.float32], repeats: int
    ) -> list[NodeTime]:
        best = [float("inf")] * len(graph.nodes)
        moved = [0] * len(graph.nodes)
        for _ in range(repeats):
            before = time.perf_counter()
            # The first item comes before any node.
            for place, (node, values) in enumerate(
                reference_nodes(graph, self.blobs, images), start=-1
            ):
                now = time.perf_counter()
                if node is not None:
                    best[place] = min(best[place], now - before)
                    moved[place] = sum(
                        values[number].nbytes for number in [*node.inputs, *node.outputs]
                    ) + sum(self.blobs[index].nbytes for index in node.blobs.values())
                before = time.perf_counter()
        return [
            NodeTime(node.name, node.op, "reference", seconds, conv_macs(graph, node), count)
            for node, seconds, count in zip(graph.nodes, best, moved, strict=True)
        ]

    def bits_report(self) -> list[LayerBits]:
        """Bits, weights and cost of every convolution and linear layer of the running mode."""
        graph, rows = self.graph, []
        for node in graph.nodes:
            if node.op != "conv":
                continue
            weight_bits = _weight_bits(node)
            source = graph.tensor(node.inputs[0])
            blob = self.blobs[node.blobs["weight"]]
            height, width = cast("list[int]", node.attrs["kernel"])
            depth = source.shape[0] // cast(int, node.attrs["groups"])
            size = blob.nbytes
            if weight_bits < 32:  # a nested mode reads only the leading planes
                size = size // blob.shape[1] * weight_bits
            rows.append(
                LayerBits(
                    node.name,
                    weight_bits,
                    32 if source.format is None else source.format.bits,
                    blob.shape[0] * depth * height * width,
                    size,
                    conv_macs(graph, node),
                )
            )
        return rows

    def save(self, path: str | Path) -> None:
        """Write the model, all modes, to a file; whole or not at all.

        Raises
        ------
        FoveateError
            The file cannot be written.
        """
        file.write(self._model, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> PackedModel:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        FoveateError
            The file cannot be read, is damaged or makes no sense.
        """
        return cls(file.read(Path(path)))

    def _executor(self, wish: Executor) -> _Native | None:
        """The native model, made at its first use, or None for the reference."""
        if wish not in ("auto", "native", "reference"):
            raise FoveateError(f"executor is auto, native or reference, got {wish!r}")
        if wish == "reference":
            return None
        with self._lock:
            if self._native is None:
                try:
                    Model = importlib.import_module("foveate._native").Model
                except (ImportError, AttributeError) as error:
                    if wish == "native":
                        raise FoveateError(
                            "the native engine is not part of this build; "
                            "install foveate anew or use executor='reference'"
                        ) from error
                    return None
                try:
                    self._native = Model.from_bytes(self._bytes)
                except RuntimeError as error:
                    raise FoveateError(f"the native engine refuses the model: {error}") from error
            return self._native


Result = TypeVar("Result")


def _guarded(native: _Native, mode: int, call: Callable[[_Native], Result]) -> Result:
    """Call the native model in a mode; its errors are ours."""
    try:
        native.set_mode(mode)
        return call(native)
    except RuntimeError as error:
        raise FoveateError(f"the native engine cannot run the model: {error}") from error


def _count(name: str, said: object) -> int:
    """Return a whole number from 1 on, refusing anything else."""
    if not isinstance(said, Integral) or said < 1:
        raise FoveateError(f"{name} is a whole number, at least 1, got {said!r}")
    return int(said)


def _images(x: Tensor | NDArray[np.float32], graph: Graph) -> NDArray[np.float32]:
    """Input as ``(N, C, H, W)`` float32, contiguous."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        array = (x.float() if x.is_floating_point() else x).numpy()  # numpy has no bfloat16
    else:
        array = x
    rank = cast(int, graph.meta["input_rank"])
    shape = graph.tensor(graph.inputs[0]).shape
    wanted = shape[: rank - 1]
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise FoveateError(
            f"the model takes floats of shape (N, {', '.join(map(str, wanted))}) as an array or "
            f"a tensor, got {getattr(array, 'dtype', type(array).__name__)}; scale images first"
        )
    if array.shape[1:] != wanted or array.ndim != rank:
        raise FoveateError(
            f"the model takes arrays of shape (N, {', '.join(map(str, wanted))}), "
            f"got {tuple(array.shape)}"
        )
    return np.ascontiguousarray(array, np.float32).reshape(-1, *shape)


def _weight_bits(node: Node) -> int:
    """Bits of a convolution's weights; 32 of real ones and of nodes that have none."""
    weight_format = format_from_json(node.attrs.get("weight_format", "f32"), node.name)
    return 32 if weight_format is None else weight_format.bits


def _check_ranks(name: str, graph: Graph) -> None:
    """Check what a graph says of the shapes that torch's tensors had."""
    shapes = [graph.tensor(number).shape for number in [*graph.inputs, *graph.outputs]]
    ranks = [graph.meta.get("input_rank")]
    said = graph.meta.get("output_ranks")
    ranks += said if isinstance(said, list) else [None]
    fits = len(ranks) == len(shapes) and all(
        isinstance(rank, int) and 2 <= rank <= 4 and shape[rank - 1 :] == (1,) * (4 - rank)
        for rank, shape in zip(ranks, shapes, strict=True)
    )
    if not fits or not isinstance(graph.meta.get("single"), bool):
        raise FoveateError(
            f"mode {name!r} does not say which shapes its input and outputs have in torch; "
            "compile the model anew"
        )
