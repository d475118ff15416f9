"""Makes a network trainable in parts: swaps its attention, MLPs and convolutions in place.

Recognised, whoever wrote the network:

==================  ==========================================================================
heads               `torch.nn.MultiheadAttention`; any module with linear layers ``qkv`` and
                    ``proj`` and a number ``num_heads`` (timm's name for self-attention)
groups of hidden    `torch.nn.TransformerEncoderLayer` and its decoder twin (``linear1``,
units               ``linear2``); any module with linear layers ``fc1``, ``fc2`` and an ``act``;
                    any `torch.nn.Sequential` of linear, activation, linear with dropout between
                    or behind; all of them only where output and input have one width
groups of filters   `torch.nn.Conv2d` of one group, padded with zeros
experts             the children of a `torch.nn.ModuleList` that is called ``experts``
==================  ==========================================================================

A stranger's module that only looks like attention or an MLP (with relative positions, say) is tried
out on random numbers first and left alone where the swap would change its output. Left alone, too,
is what shares weights with another module (two copies would part in training) or computes them from
others (`torch.nn.utils.weight_norm`).
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.modular_attention import (
    MATMultiheadAttention,
    MATSelfAttention,
)
from foveate.learning.modular_layers import (
    Activation,
    Dense,
    GroupedConv2d,
    GroupedMLP,
    MATExpert,
    ModularLayer,
)
from foveate.learning.tangent_kernel import evaluating

__all__ = ["ModuleSpec", "Swaps", "swap_modules"]

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_TAKEN = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)  # layers whose weights are taken out
_FUSED = "activation_relu_or_gelu"
_QKV = ("query", "key", "value")


@dataclass(frozen=True)
class ModuleSpec:
    """What becomes a unit.

    Attributes
    ----------
    heads
        Attention is swapped.
    ffn_groups
        Groups of hidden units of every MLP; 1: an MLP is one unit; 0: they stay as they are.
    filter_groups
        Groups of filters of every convolution; 0: they stay as they are.
    experts
        Children of lists called ``experts`` are units.
    exclude
        Paths that stay as they are with all below them, such as ``stem`` or ``blocks.0.*``.
    """

    heads: bool = True
    ffn_groups: int = 4
    filter_groups: int = 0
    experts: bool = True
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.ffn_groups, self.filter_groups) < 0 or isinstance(self.exclude, str):
            raise FoveateError(
                "ModuleSpec expects numbers of groups of at least 0 and a tuple of paths to "
                f"exclude, got {self.ffn_groups}, {self.filter_groups} and {self.exclude!r}"
            )


@dataclass
class Swaps:
    """What was done to a network.

    Attributes
    ----------
    swapped
        Paths of the new layers.
    skipped
        Path -> why a module that looked right was left alone.
    undo
        Calls that put the old modules back with the weights of now, to be made in reverse.
    """

    swapped: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    undo: list[Callable[[], None]] = field(default_factory=list)


def swap_modules(model: nn.Module, spec: ModuleSpec) -> Swaps:
    """Swap in place; outputs stay as they were. An optimiser has to be made afterwards."""
    swaps = Swaps()
    _walk(model, "", spec, swaps, {}, _shared(model))
    if swaps.swapped:
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
                module.use_nested_tensor = False  # that path reads dense weights
                swaps.undo.append(lambda module=module: setattr(module, "use_nested_tensor", True))  # type: ignore[misc]
    return swaps


def _shared(model: nn.Module) -> set[int]:
    """Ids of the modules and parameters that stand at more than one place."""
    places: Counter[int] = Counter()
    for module in model.modules():
        for part in (*module._modules.values(), *module._parameters.values()):
            places[id(part)] += part is not None
    return {which for which, count in places.items() if count > 1}


def _must_be_alone(layers: nn.Module, shared: set[int]) -> None:
    """Refuse layers whose weights something else uses or makes; `layers` itself may be shared."""
    for layer in layers.modules():
        if not isinstance(layer, _TAKEN):
            continue
        if (layer is not layers and id(layer) in shared) or any(
            id(p) in shared for p in layer._parameters.values()
        ):
            raise FoveateError("it shares weights with another module")
        if any(isinstance(value, Tensor) for value in vars(layer).values()):
            raise FoveateError("its weights are computed from others (weight_norm, say)")


def _walk(
    parent: nn.Module,
    path: str,
    spec: ModuleSpec,
    swaps: Swaps,
    done: dict[int, nn.Module],
    shared: set[int],
) -> None:
    if isinstance(parent, _LAYERS) and spec.ffn_groups:
        _swap_ffn(parent, f"{path}.linear1".lstrip("."), spec, swaps, shared)
    for name, child in list(parent._modules.items()):  # named_children() leaves out repetitions
        if child is None:
            continue
        where = f"{path}.{name}".lstrip(".")
        if isinstance(child, ModularLayer) or _excluded(where, spec):
            continue
        if name == "experts" and spec.experts and isinstance(child, nn.ModuleList):
            for number, expert in list(child.named_children()):
                if isinstance(expert, ModularLayer):
                    continue
                try:
                    _must_be_alone(expert, shared)
                except FoveateError as reason:
                    swaps.skipped[f"{where}.{number}"] = str(reason)
                    continue
                _put(child, number, MATExpert(expert), f"{where}.{number}", swaps, None)
            continue
        if id(child) in done:  # one module at two places stays one
            _put(parent, name, done[id(child)], where, swaps, None)
            continue
        try:
            made = _adapter(child, spec, shared)
        except FoveateError as reason:
            swaps.skipped[where] = str(reason)
            continue
        if made is None:
            _walk(child, where, spec, swaps, done, shared)
        else:
            done[id(child)] = made[0]
            _put(parent, name, made[0], where, swaps, made[1])


def _excluded(where: str, spec: ModuleSpec) -> bool:
    return any(
        fnmatch.fnmatchcase(where, p) or fnmatch.fnmatchcase(where, f"{p}.*") for p in spec.exclude
    )


def _put(
    parent: nn.Module,
    name: str,
    made: nn.Module,
    where: str,
    swaps: Swaps,
    refill: Callable[[], None] | None,
) -> None:
    old = parent.get_submodule(name)
    made.train(old.training)
    parent.register_module(name, made)

    def undo() -> None:
        old.train(made.training)
        parent.register_module(name, old)
        if refill is not None:
            refill()

    swaps.swapped.append(where)
    swaps.undo.append(undo)


class _Drawer:
    """Parameters that are taken out of a layer while another one has them."""

    def __init__(self, slots: Mapping[str, tuple[nn.Module, str]]) -> None:
        self.slots = dict(slots)
        self.learns: dict[str, bool] = {}
        for key, (module, name) in slots.items():
            value = getattr(module, name)
            self.learns[key] = value is not None and value.requires_grad
            module.register_parameter(name, None)

    def fill(self, dense: Dense) -> None:
        """Put weights back."""
        for key, (module, name) in self.slots.items():
            value = dense[key]
            if value is not None:
                own = nn.Parameter(value.detach().clone(), self.learns[key])
                module.register_parameter(name, own)


Made = tuple[ModularLayer, Callable[[], None]]


def _adapter(child: nn.Module, spec: ModuleSpec, shared: set[int]) -> Made | None:
    """The layer at the place of `child` and how to fill `child` again; None: not one of ours."""
    if spec.heads and type(child) is nn.MultiheadAttention:
        _must_be_alone(child, shared)
        return _attention(child)
    if spec.heads and _linear(child, "qkv", "proj") and isinstance(_get(child, "num_heads"), int):
        _must_be_alone(child, shared)
        return _self_attention(child)
    if spec.filter_groups and type(child) is nn.Conv2d:
        _must_be_alone(child, shared)
        conv = child
        grouped = GroupedConv2d.from_plain(conv, spec.filter_groups)
        taken = _Drawer({"weight": (conv, "weight"), "bias": (conv, "bias")})
        return grouped, lambda: taken.fill(grouped.to_plain())
    mlp = _mlp(child) if spec.ffn_groups else None
    if mlp is None:
        return None
    _must_be_alone(child, shared)
    first, activation, dropout, second, output_dropout = mlp
    layer = _grouped_mlp(first, second, activation, dropout, output_dropout, spec, child)
    slots = _Drawer(_mlp_slots(first, second))
    return layer, lambda: slots.fill(layer.to_plain())


def _get(module: nn.Module, name: str) -> object:
    return getattr(module, name, None)


def _linear(module: nn.Module, *names: str) -> bool:
    """Exactly linear layers: what derives from them may hold its weights in another way."""
    return all(type(_get(module, name)) is nn.Linear for name in names)


def _rate(module: nn.Module, *names: str) -> float:
    """Of the first dropout among these attributes; 0 without one."""
    return next((_rate_of(part) for name in names if (part := _get(module, name))), 0.0)


def _rate_of(layer: object) -> float:
    return layer.p if isinstance(layer, nn.Dropout) else 0.0


def _joint(dense: Dense, name: str) -> Tensor | None:
    parts = [dense[f"{part}{name}"] for part in _QKV]
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _attention(plain: nn.MultiheadAttention) -> Made:
    made = MATMultiheadAttention.from_plain(plain)
    joint = plain.in_proj_weight is not None
    names = ["in_proj_weight"] if joint else [f"{part[0]}_proj_weight" for part in _QKV]
    slots: dict[str, tuple[nn.Module, str]] = {name: (plain, name) for name in names}
    slots["in_proj_bias"] = (plain, "in_proj_bias")
    slots |= {"out": (plain.out_proj, "weight"), "out_bias": (plain.out_proj, "bias")}
    drawer = _Drawer(slots)

    def refill() -> None:
        dense = made.to_plain()
        of_name = {f"{part[0]}_proj_weight": dense[part] for part in _QKV}
        in_proj = {"in_proj_bias": _joint(dense, "_bias")}
        if joint:
            in_proj["in_proj_weight"] = _joint(dense, "")
        drawer.fill({**dense, **of_name, **in_proj})

    return made, refill


def _self_attention(plain: nn.Module) -> Made:
    qkv, proj = plain.get_submodule("qkv"), plain.get_submodule("proj")
    assert isinstance(qkv, nn.Linear)  # noqa: S101 - the caller looked
    assert isinstance(proj, nn.Linear)  # noqa: S101
    heads, scale = int(plain.num_heads), _get(plain, "scale")  # type: ignore[arg-type]
    if heads < 1 or qkv.out_features % (3 * heads) or qkv.out_features != 3 * proj.in_features:
        raise FoveateError("qkv, proj and num_heads are not of the usual sizes")
    dense: Dense = dict(zip(_QKV, qkv.weight.chunk(3), strict=True))
    biases = [None] * 3 if qkv.bias is None else qkv.bias.chunk(3)
    dense |= {f"{name}_bias": b for name, b in zip(_QKV, biases, strict=True)}
    dense |= {"out": proj.weight, "out_bias": proj.bias}
    made = MATSelfAttention(
        dense,
        heads,
        _rate(plain, "attn_drop"),
        _rate(plain, "proj_drop"),
        float(scale) if isinstance(scale, (int, float)) else None,
    )
    _must_equal(plain, made, qkv)
    drawer = _Drawer({
        "qkv": (qkv, "weight"),
        "qkv_bias": (qkv, "bias"),
        "out": (proj, "weight"),
        "out_bias": (proj, "bias"),
    })  # fmt: skip

    def refill() -> None:
        now = made.to_plain()
        drawer.fill({**now, "qkv": _joint(now, ""), "qkv_bias": _joint(now, "_bias")})

    return made, refill


def _mlp(child: nn.Module) -> tuple[nn.Linear, Activation, float, nn.Linear, float] | None:
    """First layer, activation, dropout, second layer, dropout; None: not an MLP."""
    if isinstance(child, nn.Sequential):
        parts = list(child)
        after = _rate_of(parts.pop()) if len(parts) >= 4 and type(parts[-1]) is nn.Dropout else 0.0
        between = (
            _rate_of(parts.pop(2)) if len(parts) == 4 and type(parts[2]) is nn.Dropout else 0.0
        )
        if len(parts) != 3 or type(parts[0]) is not nn.Linear or type(parts[2]) is not nn.Linear:
            return None
        return parts[0], parts[1], between, parts[2], after
    act = _get(child, "act")
    if not _linear(child, "fc1", "fc2") or not callable(act):
        return None
    first, second = child.get_submodule("fc1"), child.get_submodule("fc2")
    assert isinstance(first, nn.Linear)  # noqa: S101 - just looked at
    assert isinstance(second, nn.Linear)  # noqa: S101
    return first, act, _rate(child, "drop1", "drop"), second, _rate(child, "drop2", "drop")


def _mlp_slots(first: nn.Linear, second: nn.Linear) -> dict[str, tuple[nn.Module, str]]:
    return {
        "weight1": (first, "weight"),
        "bias1": (first, "bias"),
        "weight2": (second, "weight"),
        "bias2": (second, "bias"),
    }


def _grouped_mlp(
    first: nn.Linear,
    second: nn.Linear,
    activation: Activation,
    dropout: float,
    output_dropout: float,
    spec: ModuleSpec,
    plain: Callable[[Tensor], Tensor],
) -> GroupedMLP:
    if second.out_features != first.in_features:
        raise FoveateError("its output is not as wide as its input, so there is no skip beside it")
    made = GroupedMLP.from_plain(
        first,
        second,
        spec.ffn_groups,
        activation=activation,
        dropout=dropout,
        output_dropout=output_dropout,
    )
    _must_equal(plain, made, first)
    return made


def _swap_ffn(
    layer: nn.Module, where: str, spec: ModuleSpec, swaps: Swaps, shared: set[int]
) -> None:
    """``linear2(dropout(activation(linear1(x))))`` of PyTorch's own transformer layers."""
    if _excluded(where, spec) or not _linear(layer, "linear1", "linear2"):
        return
    first, second = layer.get_submodule("linear1"), layer.get_submodule("linear2")
    assert isinstance(first, nn.Linear)  # noqa: S101 - just looked at
    assert isinstance(second, nn.Linear)  # noqa: S101
    activation: Activation = layer.activation  # type: ignore[assignment]
    try:
        _must_be_alone(nn.ModuleList((first, second)), shared)
        made = _grouped_mlp(
            first,
            second,
            activation,
            _rate(layer, "dropout"),
            0.0,
            spec,
            lambda x: second(activation(first(x))),
        )
    except FoveateError as reason:
        swaps.skipped[where] = str(reason)
        return
    old = {name: _get(layer, name) for name in ("activation", "dropout", "linear2")}
    fused = _get(layer, _FUSED)
    drawer = _Drawer(_mlp_slots(first, second))
    for name in old:
        delattr(layer, name)
        layer.register_module(name, nn.Identity())
    setattr(layer, _FUSED, 0)  # keeps off the fused path

    def refill() -> None:
        drawer.fill(made.to_plain())
        for name, value in old.items():
            delattr(layer, name)
            setattr(layer, name, value)
        layer.train(layer.training)
        if fused is not None:
            setattr(layer, _FUSED, fused)

    _put(layer, "linear1", made, where, swaps, refill)


@torch.no_grad()
def _must_equal(plain: Callable[[Tensor], Tensor], made: nn.Module, first: nn.Linear) -> None:
    """Compare on random tokens: what has the right names may still do something else."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, first.in_features, generator=draw).to(first.weight)
    tol = max(1e-4, 16 * torch.finfo(x.dtype).eps)
    parts: Sequence[nn.Module] = [m for m in (plain, made) if isinstance(m, nn.Module)]
    with evaluating(nn.ModuleList(parts)):
        try:
            wanted, got = plain(x), made(x)
            same = isinstance(wanted, Tensor) and torch.allclose(wanted, got, tol, tol)
        except Exception:  # a stranger's module raises what it likes
            same = False
    if not same:
        raise FoveateError("it has the usual layers but does something else with them")
