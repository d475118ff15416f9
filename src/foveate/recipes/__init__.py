"""One readable file per paper: data, arms, training, claim.

A recipe is a module of this package that a newcomer reads from top to bottom and forks. It has

``CLAIM``
    a :class:`foveate.report.evidence.Claim`;
``Config``
    a frozen dataclass of all settings; `seeds` is a tuple of ints, `devices`, `nodes` and
    `accelerator` (where present) go to Lightning Fabric;
``PRESETS``
    ``{"smoke": Config(...), "desk": Config(...), "paper": Config(...)}``;
``run(config, progress=None) -> Evidence``
    does the work; `progress` is called with (what, done, total).

The file is named after its method: ``mar-rppg`` lives in ``mar_rppg.py``. There is nothing to
register: a module that is here is listed by ``foveate recipes``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import typing
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any

from foveate.errors import FoveateError

__all__ = ["configure", "load", "names"]


def names() -> list[str]:
    """Names of all recipes, e.g. ``mar-rppg``."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import a recipe by its name.

    Raises
    ------
    FoveateError
        There is no recipe of that name.
    """
    if name not in names():
        raise FoveateError(f"no recipe is named {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def configure(
    recipe: ModuleType,
    scale: str,
    seeds: int | None = None,
    overrides: dict[str, str] | None = None,
    **launch: int | str | None,
) -> Any:
    """Make a `Config` from a preset, a number of seeds and ``key=value`` texts.

    Parameters
    ----------
    seeds
        Run seeds 0 .. seeds-1; None keeps the preset's.
    overrides
        Field name -> text, converted to the type of the field.
    launch
        `devices`, `nodes`, `accelerator`; None leaves the preset's.

    Raises
    ------
    FoveateError
        Unknown scale or field, a value that is not of the field's type, or seeds < 1.
    """
    presets: dict[str, Any] = recipe.PRESETS
    if scale not in presets:
        raise FoveateError(f"unknown scale {scale!r}; this recipe has {', '.join(presets)}")
    config = presets[scale]
    hints = typing.get_type_hints(type(config))
    fields = [f.name for f in dataclasses.fields(config)]
    changes: dict[str, Any] = {}
    for key, text in (overrides or {}).items():
        if key not in fields:
            raise FoveateError(f"unknown setting {key!r} in --set; there are: {', '.join(fields)}")
        changes[key] = _convert(key, text, hints[key])
    if seeds is not None:
        if seeds < 1:
            raise FoveateError(f"--seeds is {seeds}; expected a number of at least 1")
        changes["seeds"] = tuple(range(seeds))
    for key, value in launch.items():
        if value is None:
            continue
        if key not in fields:
            raise FoveateError(f"this recipe runs in one process only: it has no setting {key!r}")
        changes[key] = value
    return dataclasses.replace(config, **changes)


def _convert(key: str, text: str, kind: Any) -> Any:
    """Turn the text of ``--set key=text`` into the annotated type of the field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        if text.lower() in ("none", "null") and NoneType in arguments:
            return None
        kind = next(a for a in arguments if a is not NoneType)
        return _convert(key, text, kind)
    if origin is typing.Literal:
        if text not in arguments:
            raise FoveateError(
                f"--set {key}={text}: expected one of {', '.join(map(str, arguments))}"
            )
        return text
    if kind is str:
        return text
    if kind is Path:
        return Path(text).expanduser()
    try:
        if origin in (tuple, list):
            listed = text.strip()  # 1,2,3 or [1, 2, 3]
            if listed.startswith("["):
                values = tuple(_scalar(v, arguments[0]) for v in json.loads(listed))
            else:
                values = tuple(_convert(key, v.strip(), arguments[0]) for v in listed.split(","))
            if arguments[-1] is not Ellipsis and len(values) != len(arguments):
                raise ValueError
            return values
        return _scalar(json.loads(text.lower() if kind is bool else text), kind)
    except (ValueError, TypeError) as error:
        wanted = str(kind) if origin else kind.__name__
        raise FoveateError(f"--set {key}={text}: expected a value of type {wanted}") from error


def _scalar(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError
    return value
