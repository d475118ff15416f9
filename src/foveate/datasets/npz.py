"""NumPy archives (``.npz``) from strangers, checked before any memory is taken.

An ``.npz`` file is a zip of ``.npy`` files, each a short header (type, shape, order) and the plain
numbers. A header may promise more than any machine has, and a type may hold pickled objects; here
an array is read only when its header, the archive's size of that member and the caller's limit
agree, and only plain numbers and texts are read at all. The header, a Python literal, is matched
as text and not evaluated.

Format: NEP 1, "A Simple File Format for NumPy Arrays", versions 1.0 and 2.0.
"""

from __future__ import annotations

import lzma
import math
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["read_npz"]

_MAX_MEMBERS = 1000
_MAX_HEADER = 10_000
_MAX_AXES = 32
_HEADER = re.compile(
    r"\{'descr': '([<>|=][biufU]\d{1,6})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\),? ?\}\s*"
)


class _NotPlainError(ValueError):
    """An array of something else: the file is as it was written, and a copy mends nothing."""


def read_npz(path: Path, names: tuple[str, ...], max_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays.

    Parameters
    ----------
    max_bytes
        The largest size that one array may have.

    Raises
    ------
    FoveateError
        An array is missing, damaged, too large or not made of plain numbers or texts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.filelist) > _MAX_MEMBERS:
                raise ValueError(f"it has {len(archive.filelist)} members")
            return {name: _array(archive, name, max_bytes) for name in names}
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,  # zipfile: encrypted member
        NotImplementedError,  # zipfile: unknown compression
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        mend = (
            "save it as plain ones" if isinstance(error, _NotPlainError) else "copy the file again"
        )
        raise FoveateError(f"cannot read {', '.join(names)} of {path} ({error}); {mend}") from error


def _array(archive: zipfile.ZipFile, name: str, max_bytes: int) -> npt.NDArray[Any]:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"it has no array {name!r}") from None
    with archive.open(member) as file:
        fortran, shape, dtype = _header(file, name)
        size = math.prod(shape) * dtype.itemsize
        if size > max_bytes:
            raise ValueError(f"{name!r} claims {size} bytes, at most {max_bytes} were expected")
        if file.tell() + size != member.file_size:
            raise ValueError(f"{name!r} claims {size} bytes of {member.file_size} in the archive")
        data = file.read(size + 1)  # one more: reaching the end checks the CRC
    if len(data) != size:
        raise ValueError(f"{name!r} ends after {len(data)} of {size} bytes")
    if dtype.kind == "U" and size:
        letters = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if int(letters.max()) > sys.maxunicode:  # Python itself stumbles over these
            raise ValueError(f"{name!r} holds numbers that are no letters")
    # A bytearray owns memory that may be written to, which torch wants.
    array = np.frombuffer(bytearray(data), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], name: str) -> tuple[bool, tuple[int, ...], np.dtype[Any]]:
    """Order, shape and type of the array that begins where `file` stands."""
    start = file.read(8)
    length_bytes = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(start)
    if length_bytes is None:
        raise ValueError(f"{name!r} is no array of format 1.0 or 2.0")
    length = int.from_bytes(file.read(length_bytes), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"{name!r} has a header of {length} bytes")
    text = file.read(length).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if match is None:
        raise _NotPlainError(
            f"{name!r} is not of plain numbers or texts, its header is {text[:60]!r}"
        )
    try:
        dtype = np.dtype(match[1])
    except TypeError as error:
        raise ValueError(f"{name!r} is of the unknown type {match[1]!r}") from error
    shape = tuple(int(word) for word in re.findall(r"\d+", match[3]))
    if len(shape) > _MAX_AXES:
        raise ValueError(f"{name!r} has {len(shape)} axes")
    return match[2] == "True", shape, dtype
