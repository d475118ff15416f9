"""Real-to-binary convolutions: a gated 1-bit convolution and the chain of teachers that trains it.

The layer is a binary convolution whose output channels are scaled, input by input, by a small net
that reads the *real* input x of the same convolution, before its sign:

    y = s(x) * alpha * ( sign(x) conv sign(W) ),    s(x) = sigmoid( W2 relu( W1 mean_hw(x) ) )

The chain makes the problem harder step by step; every network teaches the next (attention maps of
the block outputs, and logits):

    real     the plain ReLU twin                          labels
    soft     tanh in place of the sign, real weights      taught by real
    w32a1    sign on activations                          taught by soft,  starts from it
    w1a1     sign on both, smaller lr, no weight decay    taught by w32a1, starts from it

Source: Martinez, Yang, Bulat, Tzimiropoulos, "Training binary neural networks with real-to-binary
convolutions", ICLR 2020 (arXiv 2003.11535). The official code was never released; numbers of the
recipe are those of the public larq re-implementation. What is uncertain is a setting of
`RealToBinaryConfig`: attention in the last step (off, as there) and where ``w32a1`` starts (from
``soft``; there it starts anew).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantization.layers import BinarizeConfig, BinaryConv2d, Size
from foveate.quantization.stages import Stage

__all__ = [
    "ABLATIONS",
    "RealToBinaryConfig",
    "RealToBinaryConv2d",
    "block_features",
    "real_to_binary_stages",
]


class RealToBinaryConv2d(BinaryConv2d):
    """`BinaryConv2d` with ``scale="se"``: learned channel scale and data-driven gate."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        r: int = 8,
        min_hidden: int = 4,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            BinarizeConfig(scale="se", gate_reduction=r, gate_min_hidden=min_hidden),
        )


@dataclass(frozen=True)
class RealToBinaryConfig:
    """What of the method is on, and how long each step runs.

    Attributes
    ----------
    gate
        Data-driven scale in every binary convolution; it is a property of the layers, see
        `layers`.
    attention
        Attention maps of a teacher are matched.
    progressive
        The whole chain. Without it there is at most one teacher, the real net.
    attention_weight, attention_weight_final
        Weight of the attention loss before and in the last step. 1000 suits maps normalised to
        length 1 and a mean over positions.
    logits_weight, logits_weight_final
        Weight of the logit matching, likewise.
    soft_init
        Where ``w32a1`` starts in the chain: from ``soft``, or ``fresh``.
    epochs
        Of the steps real, soft, w32a1, w1a1.
    lr, final_lr
        Learning rate of Adam before and in the last step.
    weight_decay
        Before the last step, where it is 0.
    """

    gate: bool = True
    attention: bool = True
    progressive: bool = True
    attention_weight: float = 1000.0
    attention_weight_final: float = 0.0
    logits_weight: float = 3.0
    logits_weight_final: float = 0.8
    soft_init: Literal["soft", "fresh"] = "soft"
    epochs: tuple[int, int, int, int] = (100, 75, 75, 75)
    lr: float = 1e-3
    final_lr: float = 2e-4
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        if self.soft_init not in ("soft", "fresh"):
            raise FoveateError(f"soft_init is 'soft' or 'fresh', got {self.soft_init!r}")
        if len(self.epochs) != 4 or min(self.epochs) < 0:
            raise FoveateError(f"epochs are four numbers, none negative, got {self.epochs}")

    @property
    def layers(self) -> BinarizeConfig:
        """How the binary convolutions of the network are built."""
        return BinarizeConfig(scale="se" if self.gate else "channel")


ABLATIONS: Mapping[str, RealToBinaryConfig] = {
    "sb": RealToBinaryConfig(gate=False, attention=False, progressive=False),
    "sb+attention": RealToBinaryConfig(gate=False, progressive=False),
    "sb+gate": RealToBinaryConfig(attention=False, progressive=False),
    "sb+progressive": RealToBinaryConfig(gate=False, attention=False),
    "full": RealToBinaryConfig(),
}
"""The strong baseline (SB), each part of the method added to it, and all of it."""


def real_to_binary_stages(config: RealToBinaryConfig) -> list[Stage]:
    """The steps of a configuration, for ``run_stages``."""
    taught = config.attention or config.progressive
    real, soft, half, full = config.epochs
    early = _losses(config, config.attention_weight, config.logits_weight)
    late = _losses(config, config.attention_weight_final, config.logits_weight_final)
    lr, decay = config.lr, config.weight_decay
    stages = []
    if taught:
        stages.append(Stage("real", False, False, real, lr, decay, network="real"))
    teacher = "real" if taught else None
    start = None
    if config.progressive:
        stages.append(Stage("soft", False, "soft", soft, lr, decay, None, teacher, early))
        teacher = "soft"
        start = "soft" if config.soft_init == "soft" else None
    stages.append(Stage("w32a1", False, True, half, lr, decay, start, teacher, early))
    if config.progressive:
        teacher = "w32a1"
    stages.append(
        Stage("w1a1", True, True, full, config.final_lr, 0.0, "w32a1", teacher, late, True)
    )
    return stages


def _losses(config: RealToBinaryConfig, attention: float, logits: float) -> Mapping[str, float]:
    losses = {"ce": 1.0}
    if config.attention and attention:
        losses["attention"] = attention
    if (config.attention or config.progressive) and logits:
        losses["logits"] = logits
    return losses


def block_features(
    model: nn.Module, x: Tensor, blocks: Sequence[str] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits and the outputs of some blocks in one forward; the model is left as it was.

    Parameters
    ----------
    model
        Any network.
    x
        Its input.
    blocks
        Paths of the blocks (names of ``model.named_modules()``), in the order wanted. None:
        ``model.block_names``, which the residual nets of ``foveate.nn`` have.

    Returns
    -------
    tuple
        What the model returns, and one tensor per block (of its last call).

    Raises
    ------
    FoveateError
        A path that is not in the model, a block that was not run or gives no tensor.
    """
    if blocks is None:
        blocks = getattr(model, "block_names", None)
        if blocks is None:
            raise FoveateError(
                f"{type(model).__name__} does not say which of its modules are blocks: "
                "give blocks=[paths of modules]"
            )
    modules = dict(model.named_modules())
    unknown = [path for path in blocks if path not in modules]
    if unknown:
        raise FoveateError(f"{type(model).__name__} has no module {unknown[0]!r}")
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise FoveateError(
                    f"block {path!r} gives a {type(output).__name__}, expected a tensor"
                )
            seen[path] = output

        return hook

    handles = [modules[path].register_forward_hook(keep(path)) for path in blocks]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    missing = [path for path in blocks if path not in seen]
    if missing:
        raise FoveateError(f"block {missing[0]!r} was not run in this forward")
    return logits, [seen[path] for path in blocks]
