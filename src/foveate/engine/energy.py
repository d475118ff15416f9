"""What one image costs in energy: an estimate from counted operations, not a measurement.

    E = sum over convolutions and linear layers of MACs * (multiply + add)
        + bytes moved * 12.5 pJ

with the figures that M. Horowitz gave for a 45 nm process ("Computing's energy problem", ISSCC
2014, figure 1.1.9), in pJ:

    float32   multiply 3.7, add 0.9
    8 bits    multiply 0.2, add to a 32-bit sum 0.1
    memory    100 for 64 bits out of a 1 MB memory on the chip, that is 12.5 a byte

Between 1 and 8 bits there is no published figure; the 8-bit one is scaled here by the number of
1-bit products for the multiplication, k m / 64 for k-bit weights and m-bit activations (an xnor is
what remains at 1 x 1), and by the bits that a product has for the addition, (k + m) / 16.

Bytes moved: every tensor of the graph once when it is written and once by each reader, and every
weight once, in the number of bits of its format. Element-wise work is not counted. The estimate
says how networks compare on a chip made for them; the processor at hand spends far more.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.engine.graph import Graph, Node, conv_macs, format_from_json
from foveate.engine.packed_model import PackedModel
from foveate.errors import FoveateError

__all__ = ["ENERGY_FORMULA", "EnergyEstimate", "energy_estimate"]

FLOAT_MAC = 3.7 + 0.9
INT8_MULTIPLY = 0.2
INT32_ADD = 0.1
MEMORY_BYTE = 100 / 8

ENERGY_FORMULA = (
    "E = MACs x (multiply + add) + bytes moved x 12.5 pJ; float32: 3.7 + 0.9 pJ; k-bit weights and "
    "m-bit activations: 0.2 k m / 64 + 0.1 (k + m) / 16 pJ. Figures of a 45 nm chip (Horowitz, "
    "ISSCC 2014), scaled below 8 bits by foveate."
)
"""The formula in one paragraph, for reports."""


@dataclass(frozen=True)
class EnergyEstimate:
    """Estimated energy of one image.

    Attributes
    ----------
    compute_uj, memory_uj
        Microjoules for multiply-adds and for moving bytes.
    """

    compute_uj: float
    memory_uj: float

    @property
    def total_uj(self) -> float:
        """Both."""
        return self.compute_uj + self.memory_uj


def mac_energy(weight_bits: int, act_bits: int) -> float:
    """Picojoules of one multiply-add; 32 bits are float32, and so is a mixed product."""
    if max(weight_bits, act_bits) > 8:
        return FLOAT_MAC
    product = INT8_MULTIPLY * weight_bits * act_bits / 64
    return product + INT32_ADD * (weight_bits + act_bits) / 16


def energy_estimate(packed: PackedModel, bits: int | None = None) -> EnergyEstimate:
    """Estimate the energy of the running mode of a model.

    Parameters
    ----------
    packed
        A compiled network; a float one is fine.
    bits
        Pretend that every convolution and linear layer, and every tensor, has this many bits: what
        an int8 runtime makes of a float network. None: as they are.

    Raises
    ------
    FoveateError
        `bits` outside 1..8.
    """
    if bits is not None and not 1 <= bits <= 8:
        raise FoveateError(f"energy_estimate takes 1 to 8 bits, got {bits}")
    graph = packed.graph
    compute = moved = 0.0
    for node in graph.nodes:
        if node.op == "conv":
            weight, act = (bits, bits) if bits else _formats(graph, node)
            compute += conv_macs(graph, node) * mac_energy(weight, act)
        for number in [*node.inputs, *node.outputs, *_added(node)]:
            moved += _tensor_bytes(graph, number, bits)
        for role, index in node.blobs.items():
            blob = packed.blobs[index]
            moved += _weight_bytes(graph, node, bits) if role == "weight" else blob.nbytes
        for step in node.steps:
            moved += sum(packed.blobs[index].nbytes for index in step.blobs.values())
    return EnergyEstimate(compute * 1e-6, moved * MEMORY_BYTE * 1e-6)


def _formats(graph: Graph, node: Node) -> tuple[int, int]:
    weight = format_from_json(node.attrs.get("weight_format", "f32"), node.name)
    act = graph.tensor(node.inputs[0]).format
    return 32 if weight is None else weight.bits, 32 if act is None else act.bits


def _added(node: Node) -> list[int]:
    """Tensors that steps read."""
    return [step.input for step in node.steps if step.input is not None]


def _tensor_bytes(graph: Graph, number: int, bits: int | None) -> float:
    tensor = graph.tensor(number)
    channels, height, width = tensor.shape
    own = 32 if tensor.format is None else tensor.format.bits
    return channels * height * width * (bits or own) / 8


def _weight_bytes(graph: Graph, node: Node, bits: int | None) -> float:
    """Weights without the filler of the packed form: as many as products per output position."""
    _, height, width = graph.tensor(node.outputs[0]).shape
    return conv_macs(graph, node) / (height * width) * (bits or _formats(graph, node)[0]) / 8
