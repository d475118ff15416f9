"""Where foveate keeps things, and how it writes them: whole or not at all.

``FOVEATE_DATA`` names the folder for data sets, model files and finished runs; by default it is
the user's data directory of the platform. Everything that is written goes to a temporary
neighbour first and is renamed when complete, so that an interrupted run leaves no half file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError

__all__ = [
    "data_dir",
    "made_folder",
    "read_json",
    "sha256_of",
    "writable_dir",
    "write_json",
    "write_whole",
]


def data_dir() -> Path:
    """Folder of data sets (``data``), model files (``models``) and finished runs (``runs``)."""
    configured = os.environ.get("FOVEATE_DATA")
    if configured:
        return Path(configured).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("foveate"))


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def writable_dir(path: Path, what: str = "output folder") -> Path:
    """Make `path` a folder that can be written to, or say why not.

    Raises
    ------
    FoveateError
        The path is a file, or the system refuses to create or write it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FoveateError(
            f"cannot write to the {what} {path}: {reason}; choose another folder with --out"
        ) from error
    return path


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """A folder that can be written to; nothing is left of it where nothing was written.

    Raises
    ------
    FoveateError
        As `writable_dir`.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    writable_dir(folder)
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # succeeds only when it is empty


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all; every number in it is finite."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the place of `path`.

    The temporary name keeps the suffix (writers choose their format by it). When the block
    raises, the temporary file is removed and an older `path` stays as it was.

    Raises
    ------
    FoveateError
        The folder cannot be made or written to, or `path` is a folder.
    """
    if path.is_dir():
        raise FoveateError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=path.suffix, dir=path.parent)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FoveateError(f"cannot write {path}: {reason}; choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp is private; a result file is not
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
