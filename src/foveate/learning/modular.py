"""Modular adaptive training: back-propagate only through the parts that learn something now.

At any time some modules of a network (attention heads, groups of hidden units or of filters,
experts) learn what generalises, and the others mostly fit what differs from sample to sample. The
largest eigenvalue lambda^l of a module's own tangent kernel (`foveate.learning.tangent_kernel`)
tells them apart. Every so often, here at the start of an epoch,

    lambda^l(t)      for every module l, on a fixed probe of n training inputs
    A(t) = policy(lambda(t), lambda(t-1), ...)       e.g. { l : lambda^l >= alpha max_j lambda^j }

and until the next decision only the modules in A(t) are back-propagated through. Forward, all
work, in training as in use; a frozen module comes back as soon as it passes the threshold again.

A step of a module is a forward pass F, the gradient of its input ~F and that of its weights ~F. If
a share a of the modules is active and frozen ones skip both (mode ``cut``), a step costs
(1 + 2a) / 3 of a full one; if they skip the weights' only (mode ``exact``), (2 + a) / 3.

    partition = ModulePartition.from_model(model, ModuleSpec())       # then make the optimiser
    mat = MATController(model, partition, RatioThreshold(0.1), probe)
    for epoch in range(epochs):
        mat.on_epoch_start()
        for x, y in batches:
            mat.on_step_start(len(x))
            ...                                                        # the usual step

Paper: Shi et al., "Train Faster, Perform Better: Modular Adaptive Training in Over-Parameterized
Models", NeurIPS 2023 (arXiv 2405.07527). That the threshold is on lambda_max and dynamic, and that
heads are modules, is by its abstract (P); experts and filters, and that on average about 34 % of
the modules are active, are second-hand (R). The formula of its threshold is *not* known: alpha,
beta and the policies (`foveate.learning.modular_policies`) are our decision (D), named after what
we recall of it (M).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.learning.modular_attention import MATMultiheadAttention, MATSelfAttention
from foveate.learning.modular_layers import (
    GroupedConv2d,
    GroupedMLP,
    MATExpert,
    Mode,
    ModularLayer,
    UnitFlops,
)
from foveate.learning.modular_policies import (
    AllOf,
    Policy,
    QuantileThreshold,
    RandomSelection,
    RatioThreshold,
    TemporalStop,
    alpha_for,
)
from foveate.learning.modular_surgery import ModuleSpec, Swaps, swap_modules
from foveate.learning.tangent_kernel import (
    Method,
    Probe,
    Readout,
    Signs,
    evaluating,
    module_lambda,
    module_ntk,
    outputs_of,
)

__all__ = [
    "AllOf",
    "Decision",
    "GroupedConv2d",
    "GroupedMLP",
    "MATController",
    "MATExpert",
    "MATMultiheadAttention",
    "MATSelfAttention",
    "ModulePartition",
    "ModuleSpec",
    "Policy",
    "QuantileThreshold",
    "RandomSelection",
    "RatioThreshold",
    "StepFlops",
    "TemporalStop",
    "alpha_for",
    "module_lambda",
    "module_ntk",
]

# ------------------------------------------------------------------------------ partition


class ModulePartition(Mapping[str, tuple[str, ...]]):
    """The modules of a network: name -> names of its parameters, disjoint.

    Names are paths, such as ``blocks.0.attn.heads.2``. What is in no module (embeddings,
    normalisations, shared biases, the classifier) always learns; a unit that is frozen when the
    partition is made is left out and stays frozen.

    Parameters
    ----------
    model
        A network with layers of `foveate.learning.modular_layers`.

    Attributes
    ----------
    layers
        Path -> layer.
    skipped
        Path -> why `from_model` left something alone.

    Raises
    ------
    FoveateError
        There is no module, or one shares a parameter with anything else.
    """

    def __init__(self, model: nn.Module, swaps: Swaps | None = None) -> None:
        self._swaps = Swaps() if swaps is None else swaps
        self.skipped = dict(self._swaps.skipped)
        self.layers: dict[str, ModularLayer] = {}
        self._units: dict[str, tuple[str, int]] = {}
        self._params: dict[str, tuple[str, ...]] = {}
        self._model = model
        layers = [(path, m) for path, m in model.named_modules() if isinstance(m, ModularLayer)]
        inside_units = {id(m) for _, layer in layers for u in layer.units() for m in u.modules()}
        others = (m for m in model.modules() if id(m) not in inside_units)
        seen = {id(p) for m in others for p in m._parameters.values() if p is not None}
        for path, layer in layers:
            for index, unit in enumerate(layer.units()):
                inside = f"{layer.unit_list}.{index}" if layer.unit_list else ""
                name = ".".join(part for part in (path, inside) if part)
                params = dict(unit.named_parameters(prefix=name))
                if not params or not all(p.requires_grad for p in params.values()):
                    continue
                if seen & {id(p) for p in params.values()}:
                    raise FoveateError(
                        f"module {name} shares parameters with another one; leave one of them out "
                        "with ModuleSpec(exclude=...)"
                    )
                seen |= {id(p) for p in params.values()}
                self._units[name], self._params[name] = (path, index), tuple(params)
                self.layers[path] = layer
        if not self._units:
            reasons = "; ".join(f"{path}: {why}" for path, why in self.skipped.items())
            raise FoveateError(
                "the network has no module to be trained adaptively: ask from_model for heads, "
                "ffn_groups, filter_groups or experts, or build it of "
                f"foveate.learning.modular_layers{f' ({reasons})' if reasons else ''}"
            )

    @classmethod
    def from_model(cls, model: nn.Module, spec: ModuleSpec | None = None) -> ModulePartition:
        """Partition of `model`; with a `spec`, its layers are first swapped in place.

        Outputs stay the same. Make the optimiser afterwards: the parameters are new ones.
        """
        return cls(model, None if spec is None else swap_modules(model, spec))

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def layer_of(self, name: str) -> str:
        """Path of the layer that a module belongs to."""
        return self._units[name][0]

    @property
    def always(self) -> list[str]:
        """Names of the parameters that are in no module."""
        inside = {p for params in self._params.values() for p in params}
        return [name for name, _ in self._model.named_parameters() if name not in inside]

    def apply(self, active: Collection[str], mode: Mode = "cut") -> None:
        """Let the modules named learn and freeze all others, their gradients included."""
        unknown = set(active) - set(self)
        if unknown or mode not in ("cut", "exact"):
            raise FoveateError(
                f"expected modules of the partition and mode cut or exact, got "
                f"{sorted(unknown)[:3] if unknown else repr(mode)}"
            )
        for name, (path, index) in self._units.items():
            layer = self.layers[path]
            layer.mode = mode
            unit = layer.units()[index]
            unit.active = name in active
            unit.requires_grad_(unit.active)
            if not unit.active:
                for p in unit.parameters():
                    p.grad = None  # an optimiser would go on with what is left here

    def restore(self) -> None:
        """Let everything learn, and put the modules back that `from_model` swapped.

        They hold the weights of now. This partition is of no use afterwards.
        """
        self.apply(set(self))
        while self._swaps.undo:
            self._swaps.undo.pop()()


# ------------------------------------------------------------------------------ FLOPs


class StepFlops:
    """FLOPs of a training step per sample, 2 per multiply-add, for any set of active modules.

    The modules' shares are derived from shapes (those of experts counted), all else is what
    `torch.utils.flop_counter` counts of a full step beyond them. Only products of matrices and
    convolutions count, as there.

    Attributes
    ----------
    units
        Module -> its FLOPs per sample.
    rest
        Forward and backward of what is in no module.
    """

    def __init__(
        self,
        model: nn.Module,
        partition: ModulePartition,
        example: tuple[Tensor, ...],
        readout: Readout | None = None,
    ) -> None:
        self._partition = partition
        samples = len(example[0])
        layers = partition.layers.items()
        with evaluating(model), torch.enable_grad():
            for _, layer in layers:
                layer.calls = []
            outputs_of(model, {}, readout, example)
            calls: dict[str, list[UnitFlops]] = {path: layer.calls or [] for path, layer in layers}
            for _, layer in layers:
                layer.calls = None
            with FlopCounterMode(display=False) as counter:
                y = outputs_of(model, {}, readout, example)
                learning = [p for p in model.parameters() if p.requires_grad]
                torch.autograd.grad(y.sum(), learning, allow_unused=True)

        def of(path: str) -> UnitFlops:
            sums = [
                sum(getattr(call, name) for call in calls[path]) / samples
                for name in ("forward", "backward", "input_grad")
            ]
            return UnitFlops(*sums)

        self.units = {name: of(partition.layer_of(name)) for name in partition}
        # A layer's units that are frozen for good are in no module: they count as the rest.
        modules = sum(unit.forward + unit.backward for unit in self.units.values())
        self.rest: float = counter.get_total_flops() / samples - modules

    @property
    def full(self) -> float:
        """All modules active."""
        return self.step(set(self.units), "cut")

    def step(self, active: Collection[str], mode: Mode) -> float:
        """Forward and backward of one sample."""
        in_layer: dict[str, int] = dict.fromkeys(self._partition.layers, 0)
        for name in active:
            in_layer[self._partition.layer_of(name)] += 1
        total = self.rest
        for name, unit in self.units.items():
            path = self._partition.layer_of(name)
            total += unit.forward
            if name in active:
                total += unit.backward
            elif mode == "exact" or not self._partition.layers[path].cuts(in_layer[path]):
                total += unit.input_grad
        return total


# ------------------------------------------------------------------------------ controller


@dataclass(frozen=True)
class Decision:
    """What was decided when.

    Attributes
    ----------
    number, epoch, step
        Of the decision, and epochs and steps before it.
    lam
        Eigenvalue of every module (NaN of policies that do not ask for it).
    active
        Modules that learn from here on.
    estimation_flops, seconds
        Price of `lam`.
    flops
        Of training and of all estimations so far, this one included.
    """

    number: int
    epoch: int
    step: int
    lam: dict[str, float]
    active: frozenset[str]
    estimation_flops: float
    seconds: float
    flops: float


class MATController:
    """Measures, decides, freezes and keeps the account.

    Parameters
    ----------
    model, partition
        The network and its modules.
    policy
        Which modules learn.
    probe
        ``(n, ...)`` training inputs, drawn once with a fixed seed, 32 to 128 of them; a tuple where
        `readout` needs more. On the device of the network.
    interval
        A decision every `interval` epochs, or steps if `every` is ``step`` (for corpora that are
        read once).
    mode
        ``cut`` or ``exact``, see `foveate.learning.modular_layers`.
    warmup
        Decisions at first that let all modules learn.
    method, signs, chunk, seed, per_param, readout
        Of `module_lambda`.

    Attributes
    ----------
    active
        Modules that learn now.
    flops
        Executed so far: forward passes, backward passes as far as they went, estimations.
    step_flops
        `StepFlops`.
    decisions
        All of them.

    Raises
    ------
    FoveateError
        Settings that make no sense, and what `module_lambda` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        partition: ModulePartition,
        policy: Policy,
        probe: Probe,
        interval: int = 1,
        mode: Mode = "cut",
        *,
        every: Literal["epoch", "step"] = "epoch",
        warmup: int = 1,
        method: Method = "pntk",
        signs: Signs = 4,
        chunk: int = 8,
        seed: int = 0,
        per_param: bool = False,
        readout: Readout | None = None,
    ) -> None:
        if interval < 1 or warmup < 0 or every not in ("epoch", "step"):
            raise FoveateError(
                "MATController expects interval >= 1, warmup >= 0 and every epoch or step, got "
                f"{interval}, {warmup} and {every!r}"
            )
        self.model, self.partition, self.policy = model, partition, policy
        self.probe = probe if isinstance(probe, tuple) else (probe,)
        self.interval, self.mode, self.every, self.warmup = interval, mode, every, warmup
        self.method, self.signs, self.chunk, self.seed = method, signs, chunk, seed
        self.per_param, self.readout = per_param, readout
        self.decisions: list[Decision] = []
        self.epoch = self.step = 0
        self.flops = 0.0
        self.active = frozenset(partition)
        partition.apply(self.active, mode)
        example = tuple(t[:2] for t in self.probe)
        self.step_flops = StepFlops(model, partition, example, readout)

    def on_epoch_start(self) -> None:
        """Call it before every epoch."""
        if self.every == "epoch" and self.epoch % self.interval == 0:
            self.decide()
        self.epoch += 1

    def on_step_start(self, samples: int) -> None:
        """Call it before every step on `samples` samples, for the account and for `every` step."""
        if self.every == "step" and self.step % self.interval == 0:
            self.decide()
        self.step += 1
        self.flops += samples * self.step_flops.step(self.active, self.mode)

    def decide(self) -> Decision:
        """Measure now, choose, and freeze what was not chosen; at least one module is active."""
        number, started = len(self.decisions), time.perf_counter()
        lam, spent = dict.fromkeys(self.partition, math.nan), 0.0
        if getattr(self.policy, "uses_lambda", True):
            with FlopCounterMode(display=False) as counter:
                lam = module_lambda(
                    self.model,
                    self.probe,
                    self.partition,
                    self.method,
                    self.signs,
                    self.chunk,
                    seed=self.seed,
                    per_param=self.per_param,
                    readout=self.readout,
                )
            spent = float(counter.get_total_flops())
        seconds = time.perf_counter() - started
        active = frozenset(self.partition)
        if number >= self.warmup:
            history = [decision.lam for decision in self.decisions]
            chosen = frozenset(self.policy(lam, history, number))
            active = chosen or frozenset([max(lam, key=lambda name: lam[name])])
        self.partition.apply(active, self.mode)
        self.active = active
        self.flops += spent
        decision = Decision(
            number, self.epoch, self.step, lam, self.active, spent, seconds, self.flops
        )
        self.decisions.append(decision)
        return decision

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint, in types that JSON has; the policy's own state does not."""
        decisions = [{**asdict(d), "active": sorted(d.active)} for d in self.decisions]
        return {
            "epoch": self.epoch,
            "step": self.step,
            "flops": self.flops,
            "active": sorted(self.active),
            "decisions": decisions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with the modules frozen that were frozen then."""
        try:
            decisions = [
                Decision(**{**d, "active": frozenset(d["active"])}) for d in state["decisions"]
            ]
            counts = int(state["epoch"]), int(state["step"]), float(state["flops"])
            active = frozenset(state["active"])
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(f"this is no state of a MATController ({error!r})") from error
        self.partition.apply(active, self.mode)
        self.epoch, self.step, self.flops = counts
        self.active, self.decisions = active, decisions

    @property
    def estimation_flops(self) -> float:
        """Of all decisions; they are part of `flops`."""
        return sum(decision.estimation_flops for decision in self.decisions)

    def returned(self) -> list[str]:
        """Modules that were frozen at some decision and active at a later one."""
        frozen: set[str] = set()
        back: dict[str, None] = {}
        for decision in self.decisions:
            back |= dict.fromkeys(sorted(frozen & decision.active))
            frozen |= set(self.partition) - decision.active
        return list(back)

    def rows(self) -> list[dict[str, object]]:
        """The log: a row for every decision and module."""
        return [
            {
                "epoch": decision.epoch,
                "step": decision.step,
                "module": name,
                "lambda_max": value,
                "active": name in decision.active,
                "flops": decision.flops,
            }
            for decision in self.decisions
            for name, value in decision.lam.items()
        ]
