"""What one forward pass costs: real and binary operations, parameters, bits.

Conventions (BASICS of the binary methods, section 7; Bi-Real Net, ReActNet):

    real multiply-add            1 FLOP
    1-bit multiply-add           1 BOP (xnor and popcount)
    K-bit times M-bit            K M BOPs: that many binary branches
    OPs                          FLOPs + BOPs / 64

``conv_flops`` are the real convolutions, linear layers and matrix products: the number papers
quote, ``conv_only_ops`` with the binary ones. ``flops`` has everything else too: the data-driven
gates (``gate_flops``) and the element-wise work (``elementwise_flops``): 1 per element for an
activation, PReLU, addition of a skip, multiplication, output scale of a quantised layer. Batch
norm counts 0 (it is folded into its neighbour when compiled), so do biases and pooling.

Counted by hooks on one real forward, with the bits that each layer has in its present stage: a
layer with one real operand is a real layer. Parameters: a quantised weight takes its bits, not its
latent copy; every other parameter takes 32.

>>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
>>> count_ops(net, (3, 10, 10)).flops  # 100 pixels x 27 x 8, and 800 of the ReLU
22400
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from foveate.errors import FoveateError
from foveate.quantization.layers import (
    ChannelGate,
    QuantLayer,
    quant_layers,
)
from foveate.quantization.quantizers import QuantAct, SignSTE, SignWeight, WeightQuantizer

__all__ = ["LayerCost", "OpCount", "count_ops"]

_aten = torch.ops.aten

_ELEMENTWISE = {
    _aten.add,
    _aten.add_,
    _aten.sub,
    _aten.sub_,
    _aten.mul,
    _aten.mul_,
    _aten.div,
    _aten.div_,
    _aten.relu,
    _aten.relu_,
    _aten.clamp_min,
    _aten.clamp_min_,
    _aten.hardtanh,
    _aten.hardtanh_,
    _aten._prelu_kernel,
    _aten.leaky_relu,
    _aten.leaky_relu_,
    _aten.elu,
    _aten.elu_,
    _aten.gelu,
    _aten.silu,
    _aten.silu_,
    _aten.hardswish,
    _aten.hardswish_,
    _aten.hardsigmoid,
    _aten.hardsigmoid_,
    _aten.sigmoid,
    _aten.sigmoid_,
    _aten.tanh,
    _aten.tanh_,
}

# What happens inside these is not looked at: they are counted as a whole, or as nothing.
_COUNTED_WHOLE = (
    QuantLayer,
    ChannelGate,
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    QuantAct,
)


@dataclass(frozen=True)
class LayerCost:
    """One convolution, linear layer or gate.

    Attributes
    ----------
    path
        Of the module.
    kind
        Its class.
    bits
        Of (weights, activations); 32 is real.
    output
        Shape without the batch.
    macs
        Multiply-adds of one input.
    """

    path: str
    kind: str
    bits: tuple[int, int]
    output: tuple[int, ...]
    macs: int

    @property
    def binary(self) -> bool:
        """Whether its multiply-adds are BOPs."""
        return max(self.bits) < 32


@dataclass(frozen=True)
class OpCount:
    """Cost of one forward of one input; see the module for what counts as what.

    Attributes
    ----------
    layers
        Convolutions, linear layers and gates, in the order they ran.
    conv_flops, gate_flops, elementwise_flops
        Real operations by kind.
    bops
        Binary operations.
    real_params
        Numbers of 32 bits.
    coded_params
        Weights that are stored as codes.
    coded_bits
        Bits that these codes take.
    """

    layers: tuple[LayerCost, ...]
    conv_flops: int
    gate_flops: int
    elementwise_flops: int
    bops: int
    real_params: int
    coded_params: int
    coded_bits: int

    @property
    def flops(self) -> int:
        """All real operations."""
        return self.conv_flops + self.gate_flops + self.elementwise_flops

    @property
    def ops(self) -> float:
        """``flops + bops / 64``."""
        return self.flops + self.bops / 64

    @property
    def conv_only_ops(self) -> float:
        """``conv_flops + bops / 64``: comparable to what papers quote."""
        return self.conv_flops + self.bops / 64

    @property
    def size_bits(self) -> int:
        """Bits of all parameters at rest."""
        return 32 * self.real_params + self.coded_bits

    def __str__(self) -> str:
        rows = [
            ("layer", "kind", "W/A", "output", "MACs"),
            *(
                (
                    layer.path or "(model)",
                    layer.kind,
                    f"{layer.bits[0]}/{layer.bits[1]}",
                    "x".join(map(str, layer.output)),
                    f"{layer.macs:,}",
                )
                for layer in self.layers
            ),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                cell.rjust(width) if column == 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(
            [
                *lines,
                f"FLOPs {self.flops:,} (convolution and linear {self.conv_flops:,}, gates "
                f"{self.gate_flops:,}, element-wise {self.elementwise_flops:,}; BN folded)",
                f"BOPs {self.bops:,}   OPs {self.ops:,.0f} (convolutions only "
                f"{self.conv_only_ops:,.0f})",
                f"parameters: {self.coded_params:,} as codes, {self.real_params:,} real; "
                f"{self.size_bits / 8e6:.2f} MB",
            ]
        )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what happens outside the modules that are counted as a whole."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = 0
        self.matrix_macs = 0
        self.elements = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.inside == 0:
            packet = func._overloadpacket
            if packet in flop_registry:
                self.matrix_macs += flop_registry[packet](*args, **kwargs, out_val=out) // 2
            elif packet in _ELEMENTWISE and isinstance(out, Tensor) and out.is_floating_point():
                self.elements += out.numel()
        return out


def count_ops(model: nn.Module, input_shape: tuple[int, ...] | Tensor) -> OpCount:
    """Count one forward in eval mode; the model is left as it was.

    Parameters
    ----------
    model
        Any network; quantised layers are recognised, all others are real.
    input_shape
        Shape of one input without the batch, ``(C, H, W)`` or ``(N,)``, or an example batch, of
        which the cost per sample is given.

    Raises
    ------
    FoveateError
        An empty example, sizes that are not positive, or an input that the model does not take.
    """
    example = input_shape
    if not isinstance(example, Tensor):
        sizes = example if isinstance(example, (tuple, list)) else ()
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise FoveateError(
                "count_ops expects the shape of one input without the batch, such as (3, 224, "
                f"224), or an example batch, got {example!r}"
            )
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        example = torch.zeros(1, *example, device=first.device, dtype=first.dtype)
    batch = example.shape[0] if example.ndim else 0
    if batch < 1:
        raise FoveateError(f"count_ops expects at least one sample, got {tuple(example.shape)}")

    operations = _Operations()
    layers: list[LayerCost] = []
    scaled = 0
    handles: list[RemovableHandle] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        operations.inside += 1

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal scaled
            operations.inside -= 1
            if isinstance(module, ChannelGate):
                layers.append(_gate_cost(path, module))
            elif isinstance(module, QuantLayer):
                layers.append(_layer_cost(path, module, module.bits, inputs[0], output, batch))
                scaled += _scales(module) * output.numel()
            elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                layers.append(_layer_cost(path, module, (32, 32), inputs[0], output, batch))

        return hook

    gates = [module for module in model.modules() if isinstance(module, ChannelGate)]
    parts_of_gates = {id(part) for gate in gates for part in (gate.reduce, gate.expand)}
    for path, module in model.named_modules():
        if isinstance(module, _COUNTED_WHOLE) and id(module) not in parts_of_gates:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave(path)))
    modes = {module: module.training for module in model.modules()}
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation, not countable
        with torch.no_grad(), operations:
            model(example)
    except Exception as error:  # whatever a user's forward raises
        what = "an example" if isinstance(input_shape, Tensor) else "one input, batch in front,"
        raise FoveateError(
            f"{type(model).__name__} does not run on {what} of {tuple(example.shape)} "
            f"({str(error).strip().partition(chr(10))[0]}): give the shape of one input without "
            "the batch, such as (3, 224, 224), or an example batch"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training

    real = [layer for layer in layers if not layer.binary and layer.kind != "ChannelGate"]
    reals, coded, bits = _parameters(model)
    return OpCount(
        layers=tuple(layers),
        conv_flops=sum(layer.macs for layer in real) + operations.matrix_macs // batch,
        gate_flops=sum(layer.macs for layer in layers if layer.kind == "ChannelGate"),
        elementwise_flops=(operations.elements + scaled) // batch,
        bops=sum(layer.macs * layer.bits[0] * layer.bits[1] for layer in layers if layer.binary),
        real_params=reals,
        coded_params=coded,
        coded_bits=bits,
    )


def _layer_cost(
    path: str,
    module: nn.Module,
    bits: tuple[int, int],
    given: Tensor,
    output: Tensor,
    batch: int,
) -> LayerCost:
    weight = cast(Tensor, module.weight)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        macs = given.numel() * weight[0].numel()  # every input pixel meets the whole kernel
    else:
        macs = output.numel() * weight[0].numel()
    kind = type(module).__name__
    return LayerCost(path, kind, bits, tuple(output.shape[1:]), macs // batch)


def _gate_cost(path: str, gate: ChannelGate) -> LayerCost:
    outputs = gate.expand.out_features
    macs = gate.reduce.weight.numel() + gate.expand.weight.numel()
    return LayerCost(path, "ChannelGate", (32, 32), (outputs, 1, 1), macs)


def _scales(layer: QuantLayer) -> int:
    """Multiplications per output element."""
    act, quantizer = layer.coded_act, layer.coded_weight
    unit_act = act is None or isinstance(act, SignSTE)
    unit_weight = quantizer is None or (
        isinstance(quantizer, SignWeight) and quantizer.xnor == "none"
    )
    constant = not (unit_act and unit_weight and layer.channel_scale is None)
    return constant + (layer.spatial_scale is not None) + (layer.gate is not None)


def _parameters(model: nn.Module) -> tuple[int, int, int]:
    """Real parameters, coded weights, and the bits of the latter."""
    quantizers: dict[int, tuple[Tensor, WeightQuantizer]] = {
        id(layer.weight): (layer.weight, layer.coded_weight)
        for _, layer in quant_layers(model)
        if layer.coded_weight is not None
    }
    # A weight that another module reads as well (a tied embedding) stays real there.
    owned = {
        id(parameter): parameter.numel()
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not (name == "weight" and isinstance(module, QuantLayer) and module.coded_weight)
    }
    reals = sum(owned.values())
    coded = bits = 0
    for weight, quantizer in quantizers.values():
        coded += weight.numel()
        bits += weight.numel() * quantizer.format.bits
        if not quantizer.learned:  # steps that are computed must be stored in the end
            step = quantizer.step(weight)
            reals += step.numel() if step.ndim else 0
    return reals, coded, bits
