"""``foveate doctor``: what this machine can do, and what to run where something is missing."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from typing import Any

import foveate
from foveate.errors import FoveateError
from foveate.files import data_dir, writable_dir

__all__ = ["examine"]

Check = dict[str, Any]


def _check(what: str, look: Callable[[], str], optional: bool, mend: str = "") -> Check:
    try:
        return {"what": what, "state": "ok", "detail": look()}
    except Exception as error:  # whatever is wrong with a machine is a finding, not a crash
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        detail = f"{reason}; {mend}" if mend else reason
        return {"what": what, "state": "missing" if optional else "broken", "detail": detail}


def _package(module: str, package: str) -> str:
    importlib.import_module(module)
    return metadata.version(package)


def _engine() -> str:
    from foveate import _native

    features = [name for name, present in _native.cpu_features().items() if present]
    return ", ".join(features) or "no vector extensions"


def _video() -> str:
    import av
    from av.codec import Codec

    encoders = []
    for name in ("libx264", "mpeg4", "ffv1"):
        try:
            Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        encoders.append(name)
    if not encoders:
        raise FoveateError("no video encoder; reinstall with `pip install --force-reinstall av`")
    return f"PyAV {av.__version__}, encoders {', '.join(encoders)}"


def _landmarker() -> str:
    from foveate.faces.landmarks import FaceLandmarker
    from foveate.nn import model_files

    path = model_files.find("face_landmarker")
    if path is None:
        raise FoveateError("the model file is not here; run `foveate models fetch`")
    FaceLandmarker(path).close()
    return f"mediapipe {metadata.version('mediapipe')}, model verified"


def examine() -> list[Check]:
    """Look at everything that a command may need.

    Returns
    -------
    list of dict
        `what`, `state` (ok; missing: optional and absent; broken: foveate cannot work) and
        `detail` with the remedy.
    """
    root = data_dir()
    return [
        {"what": "foveate", "state": "ok", "detail": foveate.__version__},
        {
            "what": "python",
            "state": "ok",
            "detail": f"{platform.python_version()} on {platform.system()} {platform.machine()}, "
            f"{os.cpu_count()} cores",
        },
        _check("native engine", _engine, False, "reinstall foveate"),
        _check("torch", lambda: _package("torch", "torch"), False),
        _check(
            "image operations",
            lambda: "OpenCV " + importlib.import_module("cv2").__version__,
            False,
            "`pip install --force-reinstall opencv-python-headless`",
        ),
        _check("video", _video, False),
        _check("face landmarks", _landmarker, True, "`pip install 'foveate[faces]'`, or use --roi"),
        _check(
            "heart-rate variability",
            lambda: _package("neurokit2", "neurokit2"),
            True,
            "`pip install 'foveate[faces]'`",
        ),
        _check(
            "cluster",
            lambda: "Ray " + _package("ray", "ray"),
            True,
            "`pip install 'foveate[cluster]'`",
        ),
        _check(
            "data folder",
            lambda: (
                f"{writable_dir(root)} (FOVEATE_DATA), "
                f"{shutil.disk_usage(root).free / 2**30:.0f} GiB free"
            ),
            False,
        ),
    ]
