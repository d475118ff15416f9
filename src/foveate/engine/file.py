r"""The model file ``.fvt``: every mode of a packed model in one container.

::

    header      64 bytes: magic "FOVEATE\0", u32 version, u32 0x01020304, u64 offset and u64 size
                of the JSON, u64 offset and u64 count of the blob table, u64 size of the file,
                u32 CRC-32 of the 56 bytes before it, u32 0
    blob table  64 bytes a blob: u64 offset, u64 size, u32 type, u32 dimensions, u32 shape[6],
                u32 CRC-32, zeros; entry 0 is the JSON itself
    blobs       each begins at a multiple of 64 bytes, so that arrays are aligned

    JSON        {"version": 1, "modes": [{"name": ..., "graph": ...}, ...], "meta": {...}}

All numbers are little-endian; types are 0 uint8, 1 int32, 2 float32, 3 packed bits (uint64 words,
:mod:`foveate.engine.planes`). Several modes share the blobs. Nothing but numbers and words is in
a file, so reading one runs nothing.

The reader trusts no byte: sizes and offsets are compared with the size of the file before
anything is made of them, checksums before contents, and every graph is validated. What it builds
is bounded by a small multiple of the file's size.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.engine.graph import Blobs, Graph, Json, graph_from_json, graph_to_json, shown
from foveate.engine.validation import validate
from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = ["Mode", "ModelFile", "from_bytes", "read", "to_bytes", "write"]

MAGIC = b"FOVEATE\0"
VERSION = 1
ENDIAN_TAG = 0x01020304
ALIGNMENT = 64
HEADER = struct.Struct("<8sIIQQQQQII")
ENTRY = struct.Struct("<QQII6II12x")
TYPES = (np.dtype("u1"), np.dtype("<i4"), np.dtype("<f4"), np.dtype("<u8"))
MAX_FILE_BYTES = 8 << 30
MAX_JSON_BYTES = 64 << 20
MAX_BLOBS = 1 << 20
MAX_MODES = 1 << 12
MAX_NAME = 1 << 8


@dataclass(frozen=True)
class Mode:
    """One way to run a model, for instance at a certain number of bits."""

    name: str
    graph: Graph


@dataclass(frozen=True)
class ModelFile:
    """What a file holds: modes, the arrays they share, and words about them."""

    modes: Sequence[Mode]
    blobs: Blobs
    meta: dict[str, str] = field(default_factory=dict)


def to_bytes(model: ModelFile) -> bytes:
    """Bytes of the file.

    Raises
    ------
    FoveateError
        A graph does not pass validation, or modes are missing or share a name.
    """
    _check_modes(model)
    said: dict[str, Json] = {
        "version": VERSION,
        "modes": [{"name": mode.name, "graph": graph_to_json(mode.graph)} for mode in model.modes],
        "meta": dict(model.meta),
    }
    text = json.dumps(said, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    contents: list[NDArray[np.generic]] = [np.frombuffer(text.encode("utf-8"), np.uint8)]
    contents += list(model.blobs)[1:]
    count = len(contents)
    end = HEADER.size + count * ENTRY.size
    entries, places = [], []
    for array in contents:
        kind = TYPES.index(array.dtype)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        data = array.tobytes()
        shape = (*array.shape, *[0] * (6 - array.ndim))
        entries.append(ENTRY.pack(offset, len(data), kind, array.ndim, *shape, zlib.crc32(data)))
        places.append((offset, data))
        end = offset + len(data)
    start, first = places[0]
    header = HEADER.pack(
        MAGIC, VERSION, ENDIAN_TAG, start, len(first), HEADER.size, count, end, 0, 0
    )
    header = header[:56] + struct.pack("<II", zlib.crc32(header[:56]), 0)
    file = bytearray(end)
    file[: len(header)] = header
    table = b"".join(entries)
    file[HEADER.size : HEADER.size + len(table)] = table
    for offset, data in places:
        file[offset : offset + len(data)] = data
    return bytes(file)


def write(model: ModelFile, path: Path) -> None:
    """Write a file, whole or not at all.

    Raises
    ------
    FoveateError
        The model is not valid, or the file cannot be written.
    """
    data = to_bytes(model)
    try:
        with write_whole(path) as whole:
            whole.write_bytes(data)
    except OSError as error:
        raise FoveateError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def read(path: Path) -> ModelFile:
    """Read a file.

    Raises
    ------
    FoveateError
        It cannot be read, or is no whole and valid model file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise FoveateError(f"{path} has {size} bytes; model files have at most 8 GiB")
        data = path.read_bytes()
    except OSError as error:
        raise FoveateError(
            f"cannot read the model file {path}: {error.strerror or error}; check the path"
        ) from error
    try:
        return from_bytes(data)
    except FoveateError as error:
        raise FoveateError(f"{path} is no model file that can be used: {error}") from error


def from_bytes(data: bytes) -> ModelFile:
    """Read what :func:`to_bytes` wrote.

    Raises
    ------
    FoveateError
        The bytes are damaged, cut short, made by another version, or make no sense.
    """
    contents = _contents(data)
    try:
        said = json.loads(contents[0].tobytes().decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FoveateError(
            f"its JSON cannot be parsed ({error}); compile the model anew"
        ) from error
    if not isinstance(said, dict) or set(said) != {"version", "modes", "meta"}:
        raise FoveateError("its JSON has the fields version, modes and meta; compile it anew")
    if said["version"] != VERSION or isinstance(said["version"], bool):
        raise FoveateError(f"its JSON has the version {shown(said['version'])}, expected {VERSION}")
    meta, entries = said["meta"], said["modes"]
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise FoveateError("its meta is no object of strings; compile the model anew")
    if not isinstance(entries, list) or len(entries) > MAX_MODES:
        raise FoveateError(f"its modes are no list of at most {MAX_MODES}; compile the model anew")
    modes = []
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or set(entry) != {"name", "graph"}
            or not isinstance(entry["name"], str)
        ):
            raise FoveateError(f"a mode has a name and a graph, got {shown(entry)}")
        modes.append(Mode(entry["name"], graph_from_json(entry["graph"])))
    contents[0] = np.zeros(0, np.uint8)
    model = ModelFile(modes, contents, meta)
    _check_modes(model)
    return model


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _check_modes(model: ModelFile) -> None:
    names = [mode.name for mode in model.modes]
    if not names or len(names) > MAX_MODES or len(set(names)) != len(names):
        raise FoveateError(f"a model has 1 to {MAX_MODES} modes of different names, got {names}")
    if len(model.blobs) > MAX_BLOBS:
        raise FoveateError(f"a model has at most {MAX_BLOBS} blobs, got {len(model.blobs)}")
    for mode in model.modes:
        if len(mode.name.encode("utf-8", "replace")) > MAX_NAME:
            raise FoveateError(f"the name of a mode has at most {MAX_NAME} bytes")
        try:
            validate(mode.graph, model.blobs)
        except FoveateError as error:
            raise FoveateError(f"mode {mode.name!r}: {error}") from error


def _contents(data: bytes) -> list[NDArray[np.generic]]:
    """Every blob of a file, the JSON first, after all checks of the container."""
    size = len(data)
    if size < HEADER.size or not data.startswith(MAGIC):
        raise FoveateError("it does not begin as a model file of foveate does")
    (_, version, tag, json_offset, json_size, table, count, said_size, crc, zero) = (
        HEADER.unpack_from(data)
    )
    if crc != zlib.crc32(data[:56]):
        raise FoveateError("its header is damaged; get the file anew")
    if version != VERSION or tag != ENDIAN_TAG or zero:
        raise FoveateError(f"it has version {version}, this foveate reads {VERSION}")
    if said_size != size:
        raise FoveateError(f"it has {size} bytes where {said_size} were written; get it anew")
    if not 1 <= count <= MAX_BLOBS or table % 8 or table < HEADER.size:
        raise FoveateError(f"its table of {count} blobs at {table} makes no sense")
    if table + count * ENTRY.size > size:
        raise FoveateError(f"its table of {count} blobs reaches beyond its end")
    spans = []
    for index in range(count):
        place = table + index * ENTRY.size
        offset, length, kind, ndim, *shape, crc = ENTRY.unpack_from(data, place)
        if any(data[place + 52 : place + ENTRY.size]):
            raise FoveateError(f"blob {index} has reserved bytes that are not zero")
        if offset % ALIGNMENT or offset + length > size or offset < HEADER.size:
            raise FoveateError(f"blob {index} lies outside the file or askew")
        if kind >= len(TYPES) or not 1 <= ndim <= 6 or any(side > 1 for side in shape[ndim:]):
            raise FoveateError(f"blob {index} has the unknown type {kind} or {ndim} dimensions")
        # At most 6 sides of 32 bits: Python's integers do not overflow.
        if not all(shape[:ndim]) or math.prod(shape[:ndim]) * TYPES[kind].itemsize != length:
            raise FoveateError(f"blob {index} has a shape {shape[:ndim]} that is not its size")
        spans.append((offset, length, kind, tuple(shape[:ndim]), crc, index))
    if spans[0][:2] != (json_offset, json_size) or spans[0][2] != 0 or len(spans[0][3]) != 1:
        raise FoveateError("blob 0 is not the JSON that the header names")
    if json_size > MAX_JSON_BYTES:
        raise FoveateError(f"its JSON has {json_size} bytes, at most {MAX_JSON_BYTES} are read")
    order = sorted(spans)
    for before, after in itertools.pairwise(order):
        if before[0] + before[1] > after[0]:
            raise FoveateError(f"blobs {before[5]} and {after[5]} overlap")
    contents: list[NDArray[np.generic]] = []
    view = memoryview(data)
    for offset, length, kind, sides, crc, index in spans:
        part = view[offset : offset + length]
        if zlib.crc32(part) != crc:
            raise FoveateError(f"blob {index} is damaged; get the file anew")
        contents.append(np.frombuffer(part, TYPES[kind]).reshape(sides))
    return contents
