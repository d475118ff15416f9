"""Quantise a network that somebody else wrote: one call swaps its layers.

>>> from foveate.quantization.surgery import calibrate, quantize
>>> report = quantize(model, weights=4, activations=4)  # doctest: +SKIP
>>> print(report)  # what changed, what was kept and why  # doctest: +SKIP
>>> calibrate(model, batches)  # steps of the activations from data  # doctest: +SKIP

Every ``nn.Conv2d`` and ``nn.Linear`` becomes a `QuantConv2d` or `QuantLinear` with the same weight
(the same parameter object, at the same path), so optimisers and checkpoints stay valid. What is
delicate is what a layer is *given*:

* after a ReLU the input is never negative: unsigned codes (`UniformUnipolar`), which rectify by
  themselves, so that the ReLU can go where nobody else needs it;
* a sign after a ReLU would be +1 always: the ReLU goes where nobody else needs it (then the sign
  looks at what came before, usually a batch norm), else 1-bit unsigned codes {0, 1} are taken;
* any other input is signed: `SignSTE` or `UniformBipolar` with a learned limit.

Switched off again, ``set_stage(model, weights=False, activations=False)``, the model is the real
network that it was, ReLUs included.

Who needs what is read from the graph that ``torch.fx`` traces. Where a network cannot be traced,
`example` tells which inputs are never negative, and every ReLU stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from foveate.errors import FoveateError
from foveate.quantization.layers import (
    BinarizeConfig,
    ChannelGate,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    quant_layers,
)
from foveate.quantization.quantizers import (
    QuantAct,
    QuantizerStage,
    SignSTE,
    SignWeight,
    TwosWeight,
    UniformBipolar,
    UniformUnipolar,
    WeightQuantizer,
)

__all__ = [
    "DEFAULT_KEEP",
    "Activations",
    "LayerChange",
    "QuantizeReport",
    "Weights",
    "binarize_model",
    "calibrate",
    "quantize",
]

Weights = int | Callable[[int], WeightQuantizer] | None
"""Bits, or a factory that is given the number of output channels, or None for real weights."""
Activations = int | Callable[[], QuantAct] | None
"""Bits, or a factory, or None for real activations."""

DEFAULT_KEEP = ("first", "last", "downsample", "depthwise")
"""Layers that stay real unless said otherwise."""

_RULES = {
    "first": "first layer",
    "last": "last layer",
    "downsample": "1x1 convolution on a skip",
    "depthwise": "depthwise convolution",
}
_SKIP_NAMES = {"downsample", "shortcut", "skip"}


# --- report --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerChange:
    """What happened to one module.

    Attributes
    ----------
    path
        Of the module in the model.
    before, after
        Classes; equal when it was kept.
    weights, activations
        Bits, 32 for real.
    note
        Why it was kept, or what to know about it.
    """

    path: str
    before: str
    after: str
    weights: int
    activations: int
    note: str


@dataclass(frozen=True)
class QuantizeReport:
    """What a call changed; ``print(report)`` shows a table.

    Attributes
    ----------
    changes
        One per convolution, linear layer and removed ReLU, in the order of registration.
    """

    changes: tuple[LayerChange, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Paths of the layers that are quantised now."""
        return tuple(c.path for c in self.changes if c.after.startswith("Quant"))

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of the layers that stayed."""
        return tuple(c.path for c in self.changes if c.before == c.after)

    def __str__(self) -> str:
        head = ("layer", "was", "is", "W/A", "note")
        rows = [head] + [
            (
                change.path,
                change.before,
                change.after,
                f"{change.weights}/{change.activations}" if change.after != "Identity" else "",
                change.note,
            )
            for change in self.changes
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


# --- reading the network -------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Does not look inside quantised layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (QuantLayer, QuantAct, ChannelGate))
        return own or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph | None:
    """Graph of a forward, or None; what the forward (or fx) leaves on the modules is undone."""
    before = {module: dict(module.__dict__) for module in model.modules()}
    try:
        return _Tracer().trace(model)
    except Exception:  # whatever a user's forward raises on a proxy: it cannot be traced
        return None
    finally:
        for module, attributes in before.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)


_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
_KEEPS_ORDER = (  # what commutes with a ReLU: it may as well stand behind
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.PixelShuffle,
    nn.ChannelShuffle,
)
_KEEPS_SIGN = (*_KEEPS_ORDER, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample)
_RECTIFYING_FUNCTIONS = {F.relu, torch.relu, F.relu6, torch.sigmoid, F.sigmoid, F.softplus}
_ORDER_FUNCTIONS = {torch.flatten, F.max_pool2d, F.dropout, F.pixel_shuffle}
_SIGN_FUNCTIONS = {
    *_ORDER_FUNCTIONS,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.interpolate,
    torch.mean,
    operator.getitem,
}
_SUMS = {operator.add, operator.iadd, torch.add, operator.mul, torch.mul}
_ORDER_METHODS = {"flatten", "view", "reshape", "contiguous", "permute", "transpose"}
_SIGN_METHODS = {*_ORDER_METHODS, "mean", "chunk", "squeeze", "unsqueeze"}


class _Reader:
    """What the traced graph says about the inputs of layers."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls: dict[int, list[fx.Node]] = {}
        self._memory: dict[fx.Node, bool] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.calls.setdefault(id(self.modules[str(node.target)]), []).append(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def never_negative(self, node: fx.Node) -> bool:
        if node not in self._memory:
            self._memory[node] = False  # in case of a loop, which fx graphs do not have
            self._memory[node] = self._never_negative(node)
        return self._memory[node]

    def _never_negative(self, node: fx.Node) -> bool:
        module = self.module(node)
        inputs = node.all_input_nodes
        if "bicubic" in (getattr(module, "mode", ""), *node.args, *node.kwargs.values()):
            return False  # its weights are partly negative
        if module is not None:
            if isinstance(module, _RECTIFIERS):
                return True
            if isinstance(module, nn.Hardtanh):
                return module.min_val >= 0
            keeps = isinstance(module, _KEEPS_SIGN)
        elif node.op == "call_method":
            if node.target in ("relu", "relu_", "sigmoid"):
                return True
            keeps = node.target in _SIGN_METHODS
        else:
            if node.target in _RECTIFYING_FUNCTIONS:
                return True
            keeps = node.target in (_SIGN_FUNCTIONS | _SUMS | {torch.cat})
            given = (*node.args, *node.kwargs.values())  # also ``alpha`` of a sum
            constants = [value for value in given if isinstance(value, (int, float))]
            if node.target in _SUMS and any(constant < 0 for constant in constants):
                return False
        return keeps and bool(inputs) and all(self.never_negative(other) for other in inputs)

    def input_never_negative(self, layer: nn.Module) -> bool:
        """Whether this holds for the input of a layer, in all its calls."""
        calls = self.calls.get(id(layer), [])
        return bool(calls) and all(self.never_negative(c.all_input_nodes[0]) for c in calls)

    def _keeps_order(self, node: fx.Node) -> bool:
        module = self.module(node)
        if module is not None:
            return isinstance(module, _KEEPS_ORDER)
        return node.target in (_ORDER_METHODS if node.op == "call_method" else _ORDER_FUNCTIONS)

    def relus_before(self, layer: nn.Module) -> list[nn.ReLU | None]:
        """The ReLU in front of a layer, or None, for each of its calls."""
        found = []
        for call in self.calls.get(id(layer), []):
            node = call.all_input_nodes[0]
            while self._keeps_order(node):
                node = node.all_input_nodes[0]
            module = self.module(node)
            found.append(module if isinstance(module, nn.ReLU) else None)
        return found

    def only_feeds(self, relu: nn.ReLU, layers: set[int]) -> bool:
        """Whether all that this module gives goes into the given layers and nowhere else."""
        calls = self.calls[id(relu)]
        if relu.inplace and any(len(call.all_input_nodes[0].users) > 1 for call in calls):
            return False  # others read its input, and find it rectified
        waiting = [user for call in calls for user in call.users]
        while waiting:
            node = waiting.pop()
            module = self.module(node)
            if self._keeps_order(node):
                waiting.extend(node.users)
            elif module is None or id(module) not in layers:
                return False
        return True


@contextlib.contextmanager
def _watched(
    hooks: Iterable[tuple[nn.Module, Callable[[nn.Module, tuple[Any, ...]], None]]],
    model: nn.Module,
) -> Iterator[None]:
    """Hooks that see inputs, on a model in eval mode without gradients; all undone afterwards."""
    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _observe(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor | tuple[Any, ...]
) -> dict[str, bool]:
    """Layers in the order they run on an example, and whether their inputs were never negative."""
    positive: dict[str, bool] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            positive[path] = positive.get(path, True) and bool((inputs[0] >= 0).all())

        return hook

    with _watched([(module, watch(path)) for path, module in layers.items()], model):
        try:
            model(*(example if isinstance(example, tuple) else (example,)))
        except Exception as error:  # whatever a user's forward raises
            raise FoveateError(
                f"{type(model).__name__} does not run on the example given "
                f"({str(error).strip().partition(chr(10))[0]}): pass what one forward takes, a "
                "batch, or a tuple if it takes several inputs"
            ) from error
    return positive


# --- choosing ------------------------------------------------------------------------------


def _check_bits(what: str, value: object) -> None:
    """Refuse what is neither bits nor a factory nor None."""
    if isinstance(value, bool) or not (value is None or isinstance(value, int) or callable(value)):
        raise FoveateError(f"{what} is 1 to 8 bits, a factory, or None for real, got {value!r}")


def _left_alone(model: nn.Module, path: str, module: nn.Module) -> str:
    """Why a convolution or linear layer cannot be replaced; empty if it can."""
    parent = path
    while parent:
        parent = parent.rpartition(".")[0]
        if isinstance(
            model.get_submodule(parent), (nn.MultiheadAttention, nn.TransformerEncoderLayer)
        ):
            return "read directly by the attention around it"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is parametrised"
    return "" if type(module) in (nn.Conv2d, nn.Linear) else "of a class of its own"


def _matches(path: str, pattern: str) -> bool:
    """Whether a pattern names the path or a module around it."""
    parts = path.split(".")
    return any(
        fnmatch.fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts))
    )


def _follows_rule(rule: str, path: str, module: nn.Module, order: Sequence[str]) -> bool:
    if rule == "first":
        return path == order[0]
    if rule == "last":
        return path == order[-1]
    if not isinstance(module, nn.Conv2d):
        return False
    if rule == "depthwise":
        return module.groups == module.in_channels > 1
    return tuple(module.kernel_size) == (1, 1) and not _SKIP_NAMES.isdisjoint(path.split("."))


class _Choice(NamedTuple):
    """What a layer shall become."""

    weights: Weights
    activations: Activations
    config: BinarizeConfig | None = None


def _act(activations: Activations, never_negative: bool, relu_goes: bool) -> QuantAct | None:
    """Quantiser of an input: unsigned behind a ReLU, a sign only where there are signs."""
    if activations is None:
        return None
    if not isinstance(activations, int):
        act = activations()
        if not isinstance(act, QuantAct):
            raise FoveateError(
                f"a factory of activations must return a QuantAct, got a {type(act).__name__}"
            )
        return act
    if activations == 1:
        return UniformUnipolar(1) if never_negative and not relu_goes else SignSTE()
    return (
        UniformUnipolar(activations) if never_negative else UniformBipolar(activations, "learned")
    )


def _weight_quantizer(weights: Weights, channels: int) -> WeightQuantizer | None:
    if weights is None:
        return None
    if not isinstance(weights, int):
        quantizer = weights(channels)
        if not isinstance(quantizer, WeightQuantizer):
            raise FoveateError(
                "a factory of weight quantisers must return a WeightQuantizer, "
                f"got a {type(quantizer).__name__}"
            )
        return quantizer
    return SignWeight(xnor="stopped") if weights == 1 else TwosWeight(weights, channels)


def _make(module: nn.Conv2d | nn.Linear, choice: _Choice, act: QuantAct | None) -> QuantLayer:
    if choice.config is not None:
        config = choice.config
        if isinstance(module, nn.Conv2d):
            conv_parts = config.conv_parts(module.in_channels, module.out_channels)
            conv_parts["act"] = act
            return QuantConv2d.from_float(module, **conv_parts)
        if config.scale in ("chw", "se"):  # these have no meaning without a height and a width
            config = dataclasses.replace(config, scale="channel", output_size=None)
        linear_parts = config.linear_parts()
        linear_parts["act"] = act
        return QuantLinear.from_float(module, **linear_parts)
    quantizer = _weight_quantizer(choice.weights, module.weight.shape[0])
    if isinstance(module, nn.Conv2d):
        return QuantConv2d.from_float(module, act=act, weight_quantizer=quantizer)
    return QuantLinear.from_float(module, act=act, weight_quantizer=quantizer)


def _accepts_negative(act: QuantAct | None) -> bool:
    """Whether a ReLU in front of this quantiser is superfluous or in the way."""
    return isinstance(act, SignSTE) or (
        act is not None and (act.format.kind == "unipolar" or getattr(act, "range", "") == "hrelu")
    )


# --- the operation -------------------------------------------------------------------------


def quantize(
    model: nn.Module,
    weights: Weights = 4,
    activations: Activations = 4,
    keep: Sequence[str] = DEFAULT_KEEP,
    example: Tensor | tuple[Any, ...] | None = None,
    by_name: Mapping[str, tuple[Weights, Activations]] | None = None,
) -> QuantizeReport:
    """Replace the convolutions and linear layers of a model in place.

    Parameters
    ----------
    model
        Any ``nn.Module``. Exactly ``nn.Conv2d`` and ``nn.Linear`` are replaced; subclasses,
        parametrised layers and the inside of ``nn.MultiheadAttention`` stay (and are reported).
        Hooks of a replaced layer do not move along.
    weights
        Bits: 1 (`SignWeight` times mean |w| per channel) or 2 to 8 (`TwosWeight`). Or a factory
        ``channels -> WeightQuantizer``. None: real.
    activations
        Bits, 1 to 8, the kind chosen as the module says. Or a factory ``() -> QuantAct``. None:
        real.
    keep
        What stays real: the rules ``first`` and ``last`` (in the order of execution, of
        registration where that is not known), ``downsample`` (1x1 convolutions below a module
        called downsample, shortcut or skip), ``depthwise``; and patterns of paths such as
        ``"head.*"``.
    example
        Input, or tuple of inputs, of one forward: needed only for networks that ``torch.fx``
        cannot trace, to see the order of layers and which inputs are never negative.
    by_name
        Pattern of paths -> (weights, activations) for these layers, also for kept ones
        (``{"conv1": (8, 8)}``); the first that matches holds.

    Returns
    -------
    QuantizeReport
        What changed and what stayed, with the reason; print it.

    Raises
    ------
    FoveateError
        No convolution or linear layer in the model, a model that is itself a single layer, a
        pattern that names no layer, or a number of bits outside 1..8. The model is then unchanged.
    """
    patterns = {}
    for pattern, pair in (by_name or {}).items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise FoveateError(
                f"by_name[{pattern!r}] is a pair (weights, activations) such as (8, 8), "
                f"got {pair!r}"
            )
        patterns[pattern] = _Choice(*pair)
    usual = _Choice(weights, activations)
    for choice in (usual, *patterns.values()):
        _check_bits("weights", choice.weights)
        _check_bits("activations", choice.activations)
    return _replace(model, usual, patterns, keep, example)


def binarize_model(
    model: nn.Module,
    config: BinarizeConfig | None = None,
    keep: Sequence[str] = DEFAULT_KEEP,
    example: Tensor | tuple[Any, ...] | None = None,
    by_name: Mapping[str, BinarizeConfig] | None = None,
) -> QuantizeReport:
    """Replace layers by binary ones of a `BinarizeConfig`; everything else as in `quantize`.

    A sign behind a ReLU that others need as well is kept as asked and noted in the report: its
    input is never negative, so it says +1 always. `quantize` with 1 bit takes {0, 1} codes there.
    Scales ``se`` and ``chw`` become ``channel`` in linear layers.
    """

    def choice(config: BinarizeConfig) -> _Choice:
        estimator = config.activation
        return _Choice(None, None if estimator is None else lambda: SignSTE(estimator), config)

    patterns = {pattern: choice(config) for pattern, config in (by_name or {}).items()}
    return _replace(model, choice(config or BinarizeConfig()), patterns, keep, example)


def _replace(
    model: nn.Module,
    usual: _Choice,
    by_name: Mapping[str, _Choice],
    keep: Sequence[str],
    example: Tensor | tuple[Any, ...] | None,
) -> QuantizeReport:
    if isinstance(keep, str):
        raise FoveateError(f"keep is a sequence of rules and patterns, give ({keep!r},)")
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not isinstance(module, QuantLayer)
    }
    if not layers or "" in layers:
        raise FoveateError(
            f"{type(model).__name__} has no convolution or linear layer inside that could be "
            "replaced: quantize() changes the layers of a network; a single layer is made by "
            "QuantConv2d.from_float or QuantLinear.from_float"
        )
    for pattern in (*by_name, *(rule for rule in keep if rule not in _RULES)):
        if not any(_matches(path, pattern) for path in layers):
            raise FoveateError(
                f"{pattern!r} names no convolution or linear layer of {type(model).__name__}: "
                f"rules are {', '.join(_RULES)}; paths look like {next(iter(layers))!r}"
            )
    graph = _trace(model)
    reader = None if graph is None else _Reader(model, graph)
    observed = None if example is None else _observe(model, layers, example)
    order = _order(layers, reader, observed)

    choices: dict[str, _Choice] = {}
    reasons: dict[str, str] = {}
    for path, module in layers.items():
        why = _left_alone(model, path, module)
        special = next((by_name[p] for p in by_name if _matches(path, p)), None)
        if not why and special is None:
            why = next(
                (
                    _RULES.get(rule, f"matches {rule!r}")
                    for rule in keep
                    if (
                        _follows_rule(rule, path, module, order)
                        if rule in _RULES
                        else _matches(path, rule)
                    )
                ),
                "",
            )
        choice = special or usual
        if not why and choice.config is None and choice.weights is choice.activations is None:
            why = "as asked"
        if why:
            reasons[path] = why
        else:
            choices[path] = choice

    positive = {
        path: (reader is not None and reader.input_never_negative(layers[path]))
        or (observed is not None and observed.get(path, False))
        for path in choices
    }
    # A first guess, as if every ReLU could go, tells which of them are superfluous.
    absorbing = {
        id(layers[path])
        for path, choice in choices.items()
        if _accepts_negative(_act(choice.activations, positive[path], relu_goes=True))
    }
    going: set[int] = set()
    goes: dict[str, bool] = {}
    if reader is not None:
        fronts = {path: reader.relus_before(layers[path]) for path in choices}
        # A layer with several calls has one real stage for all of them, rectified or not.
        absorbing -= {
            id(layers[path])
            for path, relus in fronts.items()
            if None in relus and not positive[path]
        }
        for path, relus in fronts.items():
            gone = [relu is not None and reader.only_feeds(relu, absorbing) for relu in relus]
            going |= {id(relu) for relu, go in zip(relus, gone, strict=True) if go}
            goes[path] = bool(gone) and all(gone)

    made: dict[int, QuantLayer] = {}
    notes: dict[str, str] = {}
    for path, choice in choices.items():
        relu_goes = goes.get(path, False)
        act = _act(choice.activations, positive[path], relu_goes)
        if isinstance(act, SignSTE):
            act.replaces_relu = relu_goes
        made[id(layers[path])] = _make(layers[path], choice, act)
        if isinstance(act, SignSTE) and positive[path] and not relu_goes:
            notes[path] = "input is never negative: its sign is always +1"
        elif reader is None and observed is None and act is not None:
            notes[path] = "not traceable, taken as signed: pass example="
    changes = []
    # All paths, not only the first of a module that has several.
    for path, module in list(model.named_modules(remove_duplicate=False)):
        parent, _, name = path.rpartition(".")
        if id(module) in made:
            layer = made[id(module)]
            setattr(model.get_submodule(parent), name, layer)
            note = notes.get(path, "")
            changes.append(_change(path, module, layer, layer.bits, note))
        elif id(module) in going:
            setattr(model.get_submodule(parent), name, nn.Identity())
            note = "absorbed by the quantisers behind it"
            changes.append(_change(path, module, nn.Identity(), (32, 32), note))
        elif path in reasons:
            changes.append(_change(path, module, module, (32, 32), f"kept: {reasons[path]}"))
    return QuantizeReport(tuple(changes))


def _change(
    path: str, before: nn.Module, after: nn.Module, bits: tuple[int, int], note: str
) -> LayerChange:
    return LayerChange(path, type(before).__name__, type(after).__name__, *bits, note)


def _order(
    layers: Mapping[str, nn.Module],
    reader: _Reader | None,
    observed: Mapping[str, bool] | None,
) -> list[str]:
    """Paths in the order of execution, as far as it is known."""
    if observed:
        return list(observed)
    if reader is not None:
        paths = {id(module): path for path, module in layers.items()}
        called = [paths[key] for key in reader.calls if key in paths]
        if called:
            return called
    return list(layers)


# --- steps from data -----------------------------------------------------------------------


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    percentile: float | None = None,
    samples: int = 1 << 16,
) -> dict[str, float]:
    """Set the learned steps of activations and weights from data.

    Inputs of every quantiser are watched while the *real* network runs (in eval mode; quantisers
    without a learned step stay as they are), then each step is set to the least squared error.

    Parameters
    ----------
    model
        With quantised layers.
    batches
        Inputs, or tuples whose first item is the input, as data loaders give them.
    percentile
        End the range of activations at this percentile (0..100) of the magnitudes instead.
    samples
        Numbers kept of each quantiser's inputs, drawn at random with a fixed seed.

    Returns
    -------
    dict
        New step of each activation quantiser by path.

    Raises
    ------
    FoveateError
        No batch, batches that are no tensors, no learned step in the model, or a percentile
        outside (0, 100].
    """
    if isinstance(batches, (Tensor, Mapping)):
        raise FoveateError(
            "calibrate expects an iterable of batches: give [images] for a single one"
        )
    if percentile is not None and not 0 < percentile <= 100:
        raise FoveateError(f"percentile lies in (0, 100], got {percentile}")
    watched: dict[str, tuple[nn.Module, QuantAct]] = {}
    inner = set()
    for path, layer in quant_layers(model):
        if layer.act is not None and layer.act.learned:
            watched[path] = (layer, layer.act)
            inner.add(id(layer.act))
    for path, module in model.named_modules():
        if isinstance(module, QuantAct) and module.learned and id(module) not in inner:
            watched[path] = (module, module)
    weights = [
        (layer.weight_quantizer, layer.weight)
        for _, layer in quant_layers(model)
        if layer.weight_quantizer is not None and layer.weight_quantizer.learned
    ]
    if not watched and not weights:
        raise FoveateError(f"{type(model).__name__} has no quantiser with a learned step")

    generator = torch.Generator().manual_seed(0)
    seen: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            values = inputs[0].detach().flatten().float()
            if values.numel() > samples:  # a permutation of all of them would cost more
                picked = torch.randint(values.numel(), (samples,), generator=generator)
                values = values[picked.to(values.device)]
            values = values.cpu()
            both = torch.cat((seen[path], values)) if path in seen else values
            if both.numel() > samples:
                both = both[torch.randperm(both.numel(), generator=generator)[:samples]]
            seen[path] = both

        return hook

    switched: list[QuantAct | WeightQuantizer] = [act for _, act in watched.values()]
    switched.extend(quantizer for quantizer, _ in weights)
    stages: list[QuantizerStage] = [quantizer.stage for quantizer in switched]
    count = 0
    try:
        for quantizer in switched:
            quantizer.stage = "real"
        with _watched([(module, watch(path)) for path, (module, _) in watched.items()], model):
            for batch in batches:
                images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
                if not isinstance(images, Tensor):
                    raise FoveateError(
                        "a batch of calibrate is a tensor or a tuple that begins with one, "
                        f"got a {type(images).__name__}"
                    )
                model(images)
                count += 1
    finally:
        for quantizer, stage in zip(switched, stages, strict=True):
            quantizer.stage = stage
    if not count:
        raise FoveateError("calibrate got no batch: give at least one")
    for path, values in seen.items():
        act = watched[path][1]
        act.fit(values.to(act.step().device), percentile)
    for weight_quantizer, weight in weights:
        weight_quantizer.fit(weight)
    return {path: float(watched[path][1].step().detach()) for path in seen}
