"""Training in stages, as data: which operands are quantised, from where, taught by whom.

Binary networks are trained in steps of growing hardness. The usual two (BASICS of the binary
methods; Bi-Real Net, ReActNet):

    W32A1   real weights, 1-bit activations, weight decay on
    W1A1    starts from the weights of W32A1, all of them, with a fresh optimiser; no weight decay

A `Stage` says what one step is; `run_stages` builds, initialises and switches the networks in
order. The training loop itself is the caller's ``train_one``.

>>> [stage.name for stage in two_stages(epochs=10)]
['w32a1', 'w1a1']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from torch import nn

from foveate.errors import FoveateError
from foveate.quantization.layers import set_stage

__all__ = ["Stage", "run_stages", "two_stages"]

_ONLY_LABELS: Mapping[str, float] = MappingProxyType({"ce": 1.0})


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes
    ----------
    name
        Unique among the stages.
    weights, activations
        As in ``set_stage``: quantised, real, or ``"soft"`` activations.
    epochs, lr, weight_decay
        For the caller's loop. A weight decay that differs from 0 goes through
        ``parameter_groups``.
    init_from
        Name of an earlier stage whose network this one starts from; None: a new network.
    teacher
        Name of an earlier stage whose network teaches; None: labels only.
    losses
        Weight of each loss by name (``ce``, ``attention``, ``logits``).
    clip_latent
        Whether ``clip_latent_weights`` follows every step.
    network
        ``binary``: the quantised net. ``real``: its plain twin, which has no quantisers.
    """

    name: str
    weights: bool
    activations: bool | Literal["soft"]
    epochs: int
    lr: float
    weight_decay: float
    init_from: str | None = None
    teacher: str | None = None
    losses: Mapping[str, float] = field(default_factory=lambda: _ONLY_LABELS)
    clip_latent: bool = False
    network: Literal["binary", "real"] = "binary"


def two_stages(
    epochs: int, lr: float = 1e-3, final_lr: float = 2e-4, weight_decay: float = 1e-5
) -> list[Stage]:
    """W32A1 then W1A1, `epochs` each: the strong baseline without any teacher."""
    return [
        Stage("w32a1", False, True, epochs, lr, weight_decay),
        Stage("w1a1", True, True, epochs, final_lr, 0.0, init_from="w32a1", clip_latent=True),
    ]


def run_stages(
    build: Callable[[Stage], nn.Module],
    stages: Sequence[Stage],
    train_one: Callable[[nn.Module, Stage, nn.Module | None], None],
) -> dict[str, nn.Module]:
    """Run stages in order.

    Parameters
    ----------
    build
        ``build(stage)`` makes a new network for a stage (the real twin or the quantised net).
    stages
        Each may refer to earlier ones by name.
    train_one
        ``train_one(model, stage, teacher)`` trains in place. The teacher is the network of the
        stage it names, as trained; freezing it is the loop's business
        (``foveate.learning.distillation.FrozenTeacher``).

    Returns
    -------
    dict
        The trained network of each stage, by name.

    Raises
    ------
    FoveateError
        A name is used twice or refers to no earlier stage, or the weights of `init_from` do not
        fit strictly. Names are checked before anything is trained.
    """
    names: list[str] = []
    for stage in stages:
        for role, other in (("init_from", stage.init_from), ("teacher", stage.teacher)):
            if other is not None and other not in names:
                raise FoveateError(
                    f"stage {stage.name!r} has {role}={other!r}, which is not an earlier stage: "
                    f"earlier ones are {', '.join(names) or 'none'}"
                )
        if stage.name in names:
            raise FoveateError(f"two stages are called {stage.name!r}: names must differ")
        names.append(stage.name)
    done: dict[str, nn.Module] = {}
    for stage in stages:
        model = build(stage)
        if stage.init_from is not None:
            try:
                model.load_state_dict(done[stage.init_from].state_dict(), strict=True)
            except RuntimeError as error:
                raise FoveateError(
                    f"stage {stage.name!r} cannot start from {stage.init_from!r}: {error}"
                ) from error
        if stage.network == "binary":
            set_stage(model, weights=stage.weights, activations=stage.activations)
        train_one(model, stage, None if stage.teacher is None else done[stage.teacher])
        done[stage.name] = model
    return done
