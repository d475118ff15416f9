"""What lies between a PyTorch module and a packed graph: operations on values ``(C, H, W)``.

:mod:`foveate.engine.lowering` makes them, :mod:`foveate.engine.compile` turns them into nodes and
steps. They are those of :mod:`foveate.engine.graph` and three more: ``quant`` (real to codes),
``decode`` (codes to their integers, as floats) and ``tanh``, which only a threshold table can
replace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foveate.engine.graph import Attribute
from foveate.quantization.codes import CodeFormat
from foveate.quantization.quantizers import QuantAct

__all__ = [
    "POINTWISE",
    "Array",
    "Direction",
    "Entry",
    "Operation",
    "Pair",
    "Ref",
    "Shape",
    "Trace",
    "pair_of",
    "row_of",
]

Shape: TypeAlias = "tuple[int, int, int]"
Pair: TypeAlias = "tuple[int, int]"
Direction: TypeAlias = Literal["rising", "monotone", "other"]
Array: TypeAlias = "NDArray[np.float32] | NDArray[np.uint8]"

POINTWISE = frozenset(
    ["affine", "relu", "clip", "prelu", "sigmoid", "tanh", "hswish", "silu", "add", "gate"]
)


@dataclass
class Operation:
    """One lowered operation.

    Attributes
    ----------
    kind
        An operation or step of :mod:`foveate.engine.graph`; or ``quant`` (real to codes),
        ``decode`` (codes to their integers) or ``tanh`` (which only thresholds can replace).
    name
        Path of the module it came from.
    inputs, output
        Values; `inputs[0]` is the running value of a pointwise operation.
    attrs, arrays
        As the node or step has them; weight codes are unpacked.
    apply
        Pointwise operations of one input: the torch function on ``(L, C)`` or ``(L, C, 1, 1)``.
    rank
        Of the tensor `apply` wants: 2 or 4.
    direction
        ``rising``: no channel ever falls; ``monotone``: each channel rises or falls.
    quantizer
        Of ``quant``.
    weight_format
        Of ``conv`` over codes.
    """

    kind: str
    name: str
    inputs: list[int]
    output: int
    attrs: dict[str, Attribute] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    apply: Callable[[Tensor], Tensor] | None = None
    rank: int = 4
    direction: Direction = "other"
    quantizer: QuantAct | None = None
    weight_format: CodeFormat | None = None


@dataclass
class Trace:
    """A lowered model: operations in order, the shape of every value, and its two ends."""

    operations: list[Operation]
    shapes: dict[int, Shape]
    input: int
    outputs: list[int]
    input_rank: int
    output_ranks: list[int]
    single: bool  # the model returns a tensor, not a sequence of them


@dataclass(frozen=True)
class Ref:
    """A torch tensor that is a value, maybe in another shape of the same order."""

    value: int
    rank: int  # 4; fewer where the last axes are 1 and left out
    split: int = 0  # groups: the tensor is (N, groups, C / groups, H, W)
    swapped: bool = False  # ... with both group axes exchanged
    flat: bool = False  # the tensor is (N, C, H * W)


Entry: TypeAlias = "Ref | tuple[Ref, ...]"


def row_of(tensor: Tensor) -> NDArray[np.float32]:
    """Contiguous float32 array of a tensor."""
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)


def pair_of(said: object) -> Pair:
    """What torch takes for height and width: a number for both, or two."""
    if isinstance(said, (tuple, list)):
        return (int(said[0]), int(said[-1]))
    return int(cast(int, said)), int(cast(int, said))
