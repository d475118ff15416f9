"""MATLAB 5 files (``.mat``) from strangers, checked before scipy reads them.

Many data sets of this field are handed out as ``.mat`` files, and scipy's reader trusts the type
codes and lengths that it finds: a damaged or hostile file can end the process. Here a file reaches
it only when its headers agree with each other.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["mat_headers", "mat_word", "read_mat"]

_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
_MAT_HEADER_BYTES = 4096
_MAT_CLASSES = {4: "char", 6: "double", 7: "single"} | dict(
    enumerate(("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"), 8)
)
_MAT_NUMBERS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # type -> bytes
_MAT_TEXT = frozenset({1, 2, 4, 16, 17, 18})  # 8 and 16 bit, UTF-8, UTF-16, UTF-32


def mat_headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and class of every variable of a MATLAB 5 file, from its first bytes alone.

    scipy's reader trusts the type codes and lengths that it finds (an unknown code ends the
    process), so a file reaches it only when these agree with each other: every variable that is
    a plain array must hold as many bytes as its shape and type say.

    Format: MAT-File Format, The MathWorks, chapter 1 (Level 5). Variables of other classes (cell,
    struct, sparse, ...) are listed as such and never read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(128)
            order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
            if order is None or 0 in head[:4]:
                raise ValueError("it has no MATLAB 5 header")
            if struct.unpack(f"{order}H", head[124:126])[0] != 0x0100:
                raise ValueError("it is of MATLAB 7.3 or later, save it as version 7")
            size = path.stat().st_size
            found: dict[str, tuple[tuple[int, ...], str]] = {}
            while (start := file.tell()) < size:
                code, length = struct.unpack(f"{order}II", file.read(8))
                if start + 8 + length > size or len(found) > 1000:
                    raise ValueError("it is cut short or damaged")
                piece = file.read(min(length, _MAT_HEADER_BYTES))
                file.seek(start + 8 + length)
                if code == _MAT_COMPRESSED:
                    piece = zlib.decompressobj().decompress(piece, _MAT_HEADER_BYTES)
                    code, length = struct.unpack_from(f"{order}II", piece)
                    piece = piece[8:]
                if code != _MAT_MATRIX:
                    raise ValueError(f"it has an element of type {code} among its variables")
                name, shape, kind = _mat_variable(piece[:length], order)
                if name in found:
                    raise ValueError(f"it has two variables called {name[:40]!r}")
                found[name] = shape, kind
            return found
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise FoveateError(
            f"cannot read {path} as a MATLAB file ({error}); copy the file again"
        ) from error


def _mat_variable(data: bytes, order: str) -> tuple[str, tuple[int, ...], str]:
    """Name, shape and class of one variable from the first bytes of its matrix element."""
    code, flags, at = _mat_element(data, 0, order)
    if code != 6 or len(flags) != 8:
        raise ValueError("a variable has no array flags")
    word = struct.unpack(f"{order}I", flags[:4])[0]
    code, sizes, at = _mat_element(data, at, order)
    if code not in (5, 6) or not 8 <= len(sizes) <= 128 or len(sizes) % 4:
        raise ValueError("a variable has no dimensions")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    code, letters, at = _mat_element(data, at, order)
    name = letters.decode("latin-1").rstrip("\0")
    if code not in (1, 16) or min(shape) < 0:
        raise ValueError(f"its variable {name[:40]!r} has no name or a negative dimension")
    kind = _MAT_CLASSES.get(word & 0xFF, "other")
    if kind == "other" or word & 0x0800:  # complex numbers are none of this layout's
        return name, shape, "other"
    code, length, _ = _mat_tag(data, at, order)
    count = math.prod(shape)
    if kind == "char":
        agrees = code in _MAT_TEXT and length <= 4 * count
    else:
        agrees = code in _MAT_NUMBERS and length == count * _MAT_NUMBERS[code]
    if not agrees:
        raise ValueError(
            f"its variable {name[:40]!r} of shape {shape} claims {length} bytes of type {code}"
        )
    return name, shape, kind


def _mat_tag(data: bytes, at: int, order: str) -> tuple[int, int, int]:
    """Type code, length and start of the data of the element at `at`."""
    code, length = struct.unpack_from(f"{order}II", data, at)
    if code >> 16:  # up to four bytes are kept inside the tag
        code, length = code & 0xFFFF, code >> 16
        if length > 4:
            raise ValueError("an element is damaged")
        return code, length, at + 4
    return code, length, at + 8


def _mat_element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Type code and data of the element at `at`, and where the next one begins."""
    code, length, start = _mat_tag(data, at, order)
    if start + length > len(data):
        raise ValueError("a variable's header is damaged")
    return code, data[start : start + length], start + length + -(start + length) % 8


def read_mat(path: Path, names: tuple[str, ...], max_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Read the named variables.

    Parameters
    ----------
    max_bytes
        The largest size that a variable may claim (counted at 8 bytes a value).

    Raises
    ------
    FoveateError
        A variable is missing, no plain array, too large or damaged.
    """
    import scipy.io

    headers = mat_headers(path)
    for name in names:
        shape, kind = headers.get(name, ((), "none"))
        large = math.prod(shape) * 8 > max_bytes
        if kind not in _MAT_CLASSES.values() or large:
            raise FoveateError(
                f"{path} has no usable variable {name} (found {kind} {shape}); copy the file again"
            )
    try:
        content: dict[str, npt.NDArray[Any]] = scipy.io.loadmat(path, variable_names=list(names))
        return {name: content[name] for name in names}
    except Exception as error:  # scipy's reader raises whatever its parser stumbles on
        raise FoveateError(
            f"cannot read {', '.join(names)} of {path} ({error}); copy the file again"
        ) from error


def mat_word(
    path: Path, content: dict[str, npt.NDArray[Any]], field: str, known: tuple[str, ...]
) -> str:
    """Value of a one-word field that must be one of `known`; whole numbers are spelled out."""
    array = np.asarray(content[field])
    value = array.reshape(-1)[0] if array.size == 1 else None
    if isinstance(value, np.number) and np.isfinite(value) and value == int(value):
        value = int(value)
    word = str(value).strip()
    if word not in known:
        raise FoveateError(
            f"{field} in {path} is {word[:40]!r} where one of {', '.join(known)} was expected; "
            "copy the file again"
        )
    return word
