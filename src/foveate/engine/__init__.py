"""The packed model: trace, compile, save, load, run; binding to the native engine."""

from foveate.engine.compile import compile, compile_modes
from foveate.engine.packed_model import LayerBits, NodeTime, PackedModel
from foveate.engine.to_onnx import export_onnx

__all__ = ["LayerBits", "NodeTime", "PackedModel", "compile", "compile_modes", "export_onnx"]
