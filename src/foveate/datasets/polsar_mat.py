"""PolSAR matrices as complex arrays in MATLAB 5 files.

Many label repositories of this field hand their scenes out like this: one variable ``(H, W, 6)``,
the upper triangle, or ``(H, W, 9)``, the whole matrix, of complex numbers. Two orders of the six
are in use; the diagonal, which must be real, tells them apart:

    T11 T12 T13 T22 T23 T33    or    T11 T22 T33 T12 T13 T23.

The nine are taken row by row (T11 T12 T13 T21 ...) and must be Hermitian; column by column would be
the complex conjugate, which nothing in the file can tell (D).

`foveate.datasets.matlab` checks the file and its headers. Complex numbers are two elements, one
after the other, and are unpacked here: no more bytes than the shape promises, plain numbers only.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foveate.datasets.matlab import mat_headers, read_mat
from foveate.datasets.polarimetry import c3_to_t3, t3_channels
from foveate.datasets.scene import Scene
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = ["load_polsar_mat"]

_MAX_BYTES = 1 << 34
_HEAD_BYTES = 4096  # flags, shape and name of a variable
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_COMPLEX_FLAG = 0x0800
_ROW_BY_ROW = (0, 3, 5)  # where the diagonal lies among six, and what the others are
_ORDERS = {_ROW_BY_ROW: (1, 2, 4), (0, 1, 2): (3, 4, 5)}


def load_polsar_mat(
    path: Path | str, key: str | None = None, kind: Literal["T3", "C3"] = "T3"
) -> Scene:
    """Open a scene of complex matrices.

    Parameters
    ----------
    path
        A MATLAB file up to version 7.
    key
        The variable; None takes the only one that has the form.
    kind
        What it holds. C3 is converted.

    Returns
    -------
    Scene
        In memory; labelled when the file also has whole numbers ``label`` ``(H, W)``.

    Raises
    ------
    FoveateError
        The file is damaged or has no such variable, a diagonal is not real, the nine are not
        Hermitian, or a number is not finite.
    """
    path = Path(path)
    headers = mat_headers(path)
    fitting = [
        name
        for name, (shape, what) in headers.items()
        if what == "other" and len(shape) == 3 and shape[2] in (6, 9) and min(shape) > 0
    ]
    if key is None and len(fitting) == 1:
        key = fitting[0]
    if key is None or key not in fitting:
        raise FoveateError(
            f"{path} needs a complex variable (rows, columns, 6 or 9)"
            f"{'' if key is None else f' called {key!r}'}; it has "
            f"{', '.join(f'{name} {shape}' for name, (shape, _) in headers.items()) or 'nothing'}; "
            "name the right one as key"
        )
    stored = _complex_variable(path, key, headers[key][0])
    if not np.isfinite(stored).all():
        raise FoveateError(f"{key} of {path} holds NaN or infinity; mask or fill it first")
    matrices = _matrices(stored, f"{key} of {path}")
    channels = t3_channels(matrices if kind == "T3" else c3_to_t3(matrices))
    labels = None
    shape, what = headers.get("label", ((), ""))
    if shape == channels.shape[:2] and what not in ("", "other", "char"):
        label_map = read_mat(path, ("label",), _MAX_BYTES)["label"]
        labels = SceneLabels.from_map(label_map, source=f"{path.name}:label")
    return Scene.from_array(channels, "polsar", path.stem, labels=labels)


def _matrices(stored: npt.NDArray[np.complex64], what: str) -> npt.NDArray[np.complex64]:
    matrices = np.empty((*stored.shape[:2], 3, 3), np.complex64)
    if stored.shape[2] == 9:
        matrices[...] = stored.reshape(*stored.shape[:2], 3, 3)
        mirrored = matrices.conj().swapaxes(-1, -2)
        slack = 1e-4 * np.abs(matrices).max((-1, -2), keepdims=True)
        if not (np.abs(matrices - mirrored) <= slack).all():
            raise FoveateError(
                f"{what} is not Hermitian; its nine numbers must be T11 T12 T13 T21 ... T33"
            )
        return matrices
    real = np.asarray(~stored.imag.any((0, 1)))
    diagonal = next((order for order in _ORDERS if real[list(order)].all()), None)
    if diagonal is None:
        raise FoveateError(
            f"{what} has no real diagonal where T11 T12 T13 T22 T23 T33 or T11 T22 T33 T12 T13 "
            "T23 has it; reorder its six numbers"
        )
    for i, at in enumerate(diagonal):
        matrices[..., i, i] = stored[..., at]
    for (i, j), at in zip(((0, 1), (0, 2), (1, 2)), _ORDERS[diagonal], strict=True):
        matrices[..., i, j], matrices[..., j, i] = stored[..., at], stored[..., at].conj()
    return matrices


def _complex_variable(path: Path, key: str, shape: tuple[int, ...]) -> npt.NDArray[np.complex64]:
    limit = 16 * math.prod(shape) + _HEAD_BYTES
    try:
        if limit > _MAX_BYTES:
            raise ValueError(f"{key!r} claims {limit} bytes")
        with path.open("rb") as file:
            order = "<" if file.read(128)[126:] == b"IM" else ">"
            while len(tag := file.read(8)) == 8:
                code, length = struct.unpack(f"{order}II", tag)
                start = file.tell()
                data = file.read(min(length, limit))
                if code == 15:  # compressed: an element inside a zlib stream
                    data = zlib.decompressobj().decompress(data, limit)[8:]
                parts = _Elements(data, order)
                flags, _, name = (parts.next() for _ in range(3))
                if name[1].decode("latin-1").rstrip("\0") == key:
                    if not struct.unpack(f"{order}I", flags[1][:4])[0] & _COMPLEX_FLAG:
                        raise ValueError(f"{key!r} is not complex")
                    real, imag = (_numbers(*parts.next(), order, shape) for _ in range(2))
                    return np.asarray(real + 1j * imag, np.complex64)
                file.seek(start + length)
        raise ValueError(f"it has no variable {key!r}")
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise FoveateError(f"cannot read {key} of {path} ({error}); copy the file again") from error


class _Elements:
    """The elements of a variable, one after the other: type code and data."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order, self.at = data, order, 0

    def next(self) -> tuple[int, bytes]:
        code, length = struct.unpack_from(f"{self.order}II", self.data, self.at)
        start = self.at + 8
        if code >> 16:  # up to four bytes lie inside the tag
            code, length, start = code & 0xFFFF, min(code >> 16, 4), self.at + 4
            self.at += 8
        else:
            self.at = start + length + -length % 8
        if start + length > len(self.data):
            raise ValueError("a variable is cut short")
        return code, self.data[start : start + length]


def _numbers(code: int, data: bytes, order: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if code not in _NUMBERS:
        raise ValueError(f"numbers of the unknown type {code}")
    dtype = np.dtype(order + _NUMBERS[code])
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes where {shape} of {dtype} were expected")
    return np.frombuffer(data, dtype).reshape(shape, order="F").astype(np.float32)
