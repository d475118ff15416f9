"""foveate: visual perception on a budget.

``foveate.watch``, ``shrink``, ``map_scene``, ``label`` and ``condense`` are the commands as plain
Python calls. Every layer, loss, policy and analyser lives in its room (``foveate.faces``,
``foveate.learning``, ...) and can be used alone. Importing this package costs next to nothing:
names are resolved when first used.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.apps.condense import condense as condense
    from foveate.apps.label import label as label
    from foveate.apps.map import map_scene as map_scene
    from foveate.apps.shrink import shrink as shrink
    from foveate.apps.watch import watch as watch
    from foveate.errors import FoveateError as FoveateError
    from foveate.faces.track import Analyser as Analyser
    from foveate.faces.track import Track as Track
    from foveate.faces.tracker import FaceTracker as FaceTracker
    from foveate.streams.frame import Frame as Frame
    from foveate.streams.timeline import Timeline as Timeline
    from foveate.streams.video import VideoStream as VideoStream

_HOMES = {
    "Analyser": "foveate.faces.track",
    "FaceTracker": "foveate.faces.tracker",
    "FoveateError": "foveate.errors",
    "Frame": "foveate.streams.frame",
    "Timeline": "foveate.streams.timeline",
    "Track": "foveate.faces.track",
    "VideoStream": "foveate.streams.video",
    "condense": "foveate.apps.condense",
    "label": "foveate.apps.label",
    "map_scene": "foveate.apps.map",
    "shrink": "foveate.apps.shrink",
    "watch": "foveate.apps.watch",
}

__all__ = [
    "Analyser",
    "FaceTracker",
    "FoveateError",
    "Frame",
    "Timeline",
    "Track",
    "VideoStream",
    "__version__",
    "condense",
    "label",
    "map_scene",
    "shrink",
    "watch",
]

__version__ = metadata.version("foveate")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
