"""A network by name: ``module:factory``, or a checkpoint that says which factory it belongs to.

``foveate.nn.resnet:resnet20`` names a function without required arguments that returns an
``nn.Module``. Its module is imported as ``import`` would do it (the current folder counts as well),
nothing is evaluated. A *checkpoint* is a safetensors file whose metadata has, under ``foveate``,

    {"factory": "foveate.nn.resnet:resnet20", "arguments": {"classes": 10},
     "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}

Since a file may come from anywhere, its factory must be a network of this room, ``foveate.nn``, and
is tried without memory first: a file cannot ask for more than its own weights fill.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import math
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.nn.resnet import load_state

__all__ = ["NamedNetwork", "load_network", "save_checkpoint", "state_digest"]

_NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
_ROOM = "foveate.nn."
_METADATA = "foveate"

Constant = bool | int | float | str | list[int] | None


@dataclass(frozen=True)
class NamedNetwork:
    """A network with its weights.

    Attributes
    ----------
    name
        Of the factory, or the file's name without its ending.
    source, weights
        Where the network and its weights come from, in words.
    module
        In eval mode.
    mean, std
        Of each channel of its input, pixels being 0 to 1; None where nobody says.
    """

    name: str
    source: str
    weights: str
    module: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load_network(name: str | Path, weights: Path | str | None = None) -> NamedNetwork:
    """Make the network that a name stands for and fill it.

    Parameters
    ----------
    name
        ``module:factory``, or the path of a checkpoint.
    weights
        File with its weights (safetensors, or a state dict saved by torch); None: a checkpoint's
        own, or whatever the factory fills in.

    Raises
    ------
    FoveateError
        There is no such module, function or file; the function needs arguments, fails or returns
        something else; the weights do not fit.
    """
    text = str(name)
    match = _NAME.fullmatch(text)
    if match is not None:
        module = _made(text, _attribute(_imported(text, match[1], here=True), match[2], text), {})
        if weights is None:
            return NamedNetwork(match[2], text, "as the factory makes them", module.eval())
        load_state(module, _existing(Path(weights)))
        return NamedNetwork(match[2], text, Path(weights).name, module.eval())
    path = Path(text)
    if path.suffix != ".safetensors":
        raise FoveateError(
            f"{text!r} names no network; expected module:function, for instance "
            "foveate.nn.resnet:resnet20, or the .safetensors file of a recipe"
        )
    return _from_checkpoint(_existing(path), weights)


def save_checkpoint(
    path: Path | str,
    module: nn.Module,
    factory: str,
    arguments: Mapping[str, Constant] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Write the weights of a network together with what it takes to make it again.

    Parameters
    ----------
    factory
        ``foveate.nn.<file>:<function or class>``.
    arguments
        Its arguments by name: numbers, texts, lists of integers.
    mean, std
        What the pictures were normalised by, per channel, pixels being 0 to 1.

    Raises
    ------
    FoveateError
        The factory is not one of ``foveate.nn``, or makes a network that these weights do not fit.
    """
    given = dict(arguments or {})
    facts = {"factory": factory, "arguments": given, "mean": mean, "std": std}
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    load_state(_of_room(factory, given, "save_checkpoint", _floats(state.values())), state)
    with write_whole(Path(path)) as temporary:
        safetensors.torch.save_file(state, temporary, {_METADATA: json.dumps(facts)})


def state_digest(module: nn.Module) -> str:
    """Hexadecimal hash of names and values of all parameters and buffers of a network."""
    total = hashlib.sha256()
    for key, value in module.state_dict().items():
        array: Tensor = value.detach().cpu().contiguous()
        total.update(f"{key} {tuple(array.shape)} {array.dtype}".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _from_checkpoint(path: Path, weights: Path | str | None) -> NamedNetwork:
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(_METADATA, "null"))
            names = list(file.keys())
            floats = sum(
                math.prod(part.get_shape())
                for part in map(file.get_slice, names)
                if part.get_dtype() in ("F64", "F32", "F16", "BF16")
            )
        if facts is None:
            raise FoveateError(
                f"{path} does not say which network its weights belong to; give the network as "
                f"module:function and this file with --weights {path.name}"
            )
        factory, arguments = str(facts["factory"]), dict(facts["arguments"])
        mean, std = (_numbers(facts.get(key)) for key in ("mean", "std"))
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise FoveateError(
            f"cannot read {path} as a checkpoint of foveate ({error}); expected a safetensors "
            "file written by save_checkpoint"
        ) from error
    module = _of_room(factory, arguments, str(path), floats)
    load_state(module, path if weights is None else _existing(Path(weights)))
    said = path.name if weights is None else Path(weights).name
    return NamedNetwork(path.stem, factory, said, module.eval(), mean, std)


def _numbers(value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= 64:
        raise ValueError(f"{value!r} is no list of numbers")
    return tuple(float(number) for number in value)


def _floats(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())


def _of_room(factory: str, arguments: Mapping[str, object], where: str, floats: int) -> nn.Module:
    """A network of this room with so many numbers; a file may name no other."""
    match = _NAME.fullmatch(factory)
    refused = FoveateError(
        f"{where} names the factory {factory!r}; the network of a checkpoint is one of foveate.nn"
    )
    if match is None or not match[1].startswith(_ROOM):
        raise refused
    function = _attribute(_imported(factory, match[1], here=False), match[2], factory)
    made = function if isinstance(function, type) else _returned(function)
    own = getattr(function, "__module__", "") == match[1]
    if not (own and isinstance(made, type) and issubclass(made, nn.Module)):
        raise refused
    for value in arguments.values():
        many = value if isinstance(value, list) else [value]
        if len(many) > 64 or any(isinstance(one, int) and abs(one) > 1 << 16 for one in many):
            raise FoveateError(f"{where} asks for a network of unlikely sizes: {value!r}")
    with torch.device("meta"):
        planned = _floats(_made(factory, function, arguments).state_dict().values())
    if planned != floats:
        raise FoveateError(
            f"{where} has {floats:,} weights where {factory} with its arguments has {planned:,}; "
            "the file is damaged or was put together wrongly"
        )
    return _made(factory, function, arguments)


def _returned(function: object) -> object:
    """What a function says that it returns."""
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def _imported(name: str, module: str, *, here: bool) -> ModuleType:
    """The module of a name; with `here`, modules in the current folder are found as well."""
    place = str(Path.cwd())
    added = here and place not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, place)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise FoveateError(
                f"there is no module {error.name!r} for {name}; it must be installed, on "
                "PYTHONPATH or in the current folder"
            ) from error
        raise FoveateError(f"importing {module} failed: {error}; install what it needs") from error
    except (Exception, SystemExit) as error:  # whatever a user's own module raises, or exits
        raise FoveateError(
            f"importing {module} failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        if added:
            sys.path.remove(place)


def _attribute(module: ModuleType, name: str, whole: str) -> object:
    if not hasattr(module, name):
        public = [known for known, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(name, public, 3, 0.5)
        raise FoveateError(
            f"{module.__name__} has no {name!r} for {whole}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return getattr(module, name)


def _made(name: str, factory: object, arguments: Mapping[str, object]) -> nn.Module:
    """Call a factory; every seed is as good as another, since weights are filled in."""
    if isinstance(factory, nn.Module) or not callable(factory):
        raise FoveateError(
            f"{name} is a {type(factory).__name__}; expected a function or class that makes the "
            "network when it is called"
        )
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise FoveateError(
            f"{name} cannot be called without arguments ({error}); write a function that returns "
            "the network and needs none, and name that one"
            if not arguments
            else f"{name} does not take these arguments ({error})"
        ) from error
    except ValueError:  # no signature to be had, of a builtin
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = factory(**arguments)
    except FoveateError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's own function raises, or exits
        raise FoveateError(f"{name} failed with {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise FoveateError(f"{name} returned a {type(made).__name__}; expected a torch.nn.Module")
    return made


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FoveateError(f"there are no weights at {path}: no such file")
    return path
