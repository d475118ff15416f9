"""ONNX Runtime as a peer: the float network as it runs there, and its int8 form.

The int8 form is what its users make: static quantisation with QDQ nodes, unsigned 8-bit activations
whose ranges come from calibration pictures, signed 8-bit weights with a step per channel. Both
packages, ``onnx`` and ``onnxruntime``, are optional and imported when they are used.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError

__all__ = ["OnnxNetwork", "onnx_runtime_version", "write_int8"]


def onnx_runtime_version() -> str | None:
    """Version of ONNX Runtime; None where it or ``onnx`` is missing."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return None
    return str(importlib.import_module("onnxruntime").__version__)


class OnnxNetwork:
    """An ONNX file with one input and one output, on the processor.

    Threads wait passively between runs, so that a session which rests takes nothing from the
    contender whose turn it is.

    Raises
    ------
    FoveateError
        ONNX Runtime is missing or refuses the file.
    """

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        if onnx_runtime_version() is None:
            raise FoveateError("ONNX Runtime is not installed: pip install 'foveate[onnx]'")
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exceptions share no class but this
            raise FoveateError(f"ONNX Runtime refuses {path}: {error}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(N, ...)`` float32 -> the first output."""
        output: NDArray[np.float32] = self._session.run(None, {self._input: x})[0]
        return output


def write_int8(source: Path, target: Path, batches: Iterable[NDArray[np.float32]]) -> None:
    """Quantise a float ONNX file statically to 8 bits.

    Parameters
    ----------
    source, target
        The float file, and where the other goes.
    batches
        Inputs ``(N, ...)`` to take the ranges of activations from.

    Raises
    ------
    FoveateError
        ONNX Runtime is missing or cannot quantise the network.
    """
    if onnx_runtime_version() is None:
        raise FoveateError("ONNX Runtime is not installed: pip install 'foveate[onnx]'")
    quantization = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    onnx = importlib.import_module("onnx")
    left = iter(batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self, name: str) -> None:
            self.name = name

        def get_next(self) -> dict[str, Any] | None:
            batch = next(left, None)
            return None if batch is None else {self.name: batch}

    with tempfile.TemporaryDirectory(prefix="foveate-onnx-") as scratch, _quiet():
        optimised = Path(scratch) / "optimised.onnx"
        try:
            shapes.quant_pre_process(str(source), str(optimised))
            name = onnx.load(str(optimised), load_external_data=False).graph.input[0].name
            quantization.quantize_static(
                str(optimised),
                str(target),
                Reader(name),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
            )
        except Exception as error:  # as above
            raise FoveateError(f"ONNX Runtime cannot quantise {source.name}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that its tools log."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
