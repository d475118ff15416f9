"""Files of named arrays (``.mat``, ``.npz``), and which of their arrays is meant.

Copies of a data set name their variables differently, so an array is chosen by its form: the only
one with so many axes, of that extent. A name is needed only where the form does not tell.

MATLAB files up to version 7 are checked and read by `foveate.datasets.matlab`, ``.npz`` by
`foveate.datasets.npz`. MATLAB 7.3 files are HDF5 and need h5py; only plain numeric variables of
such a file are looked at, never its links to other files.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.matlab import mat_headers, read_mat
from foveate.datasets.npz import read_npz
from foveate.errors import FoveateError

__all__ = ["ArrayFile", "open_arrays"]

_MAX_BYTES = 1 << 34
_MAX_ARRAYS = 64
_WHOLE = ("int", "uint", "bool")
_NUMBERS = (*_WHOLE, "float", "double", "single")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ArrayFile:
    """Names and forms of a file's numeric arrays; the numbers are read on demand.

    Attributes
    ----------
    path
        The file.
    forms
        Name -> shape and type, as MATLAB or NumPy call it; arrays of numbers only.
    fetch
        Gives the array of a name.
    """

    path: Path
    forms: Mapping[str, tuple[tuple[int, ...], str]]
    fetch: Callable[[str], Array]

    def read(self, name: str) -> Array:
        """The array called `name`, in the machine's byte order.

        Raises
        ------
        FoveateError
            There is none, or it is damaged or larger than 16 GiB.
        """
        if name not in self.forms:
            raise FoveateError(f"{self.path} has no numeric array {name!r}; it has {self}")
        array = self.fetch(name)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def __str__(self) -> str:
        words = [f"{name} {kind} {shape}" for name, (shape, kind) in list(self.forms.items())[:8]]
        return "; ".join(words) or "none"

    def choose(
        self,
        what: str,
        axes: int,
        *,
        key: str | None = None,
        extent: tuple[int, int] | None = None,
        usual: tuple[str, ...] = (),
        option: str = "key",
    ) -> str | None:
        """Name of the only array of `axes` axes; None when there is none.

        Among several two-dimensional ones those of whole numbers are preferred, and then the
        first one that has a usual name.

        Parameters
        ----------
        what
            What is looked for, for the error.
        key
            The name, where the caller knows it.
        extent
            Only arrays of these ``(rows, columns)``.
        usual
            Usual names, the most usual first.
        option
            How the caller's parameter for `key` is called, for the error.

        Raises
        ------
        FoveateError
            There is none called `key`, or several may be meant.
        """
        if key is not None:
            if key not in self.forms or len(self.forms[key][0]) != axes:
                raise FoveateError(f"{self.path} has no {what} called {key!r}; it has {self}")
            return key
        fitting = [
            name
            for name, (shape, _) in self.forms.items()
            if len(shape) == axes
            and (extent is None or shape[:2] == extent)
            and (axes != 2 or max(shape) > 1)  # MATLAB's scalars are 1 x 1
        ]
        if axes == 2:
            whole = [name for name in fitting if self.forms[name][1].startswith(_WHOLE)]
            fitting = whole or fitting
        if len(fitting) > 1:
            fitting = [name for name in usual if name in fitting][:1] or fitting
        if len(fitting) > 1:
            raise FoveateError(
                f"{self.path} has {len(fitting)} arrays that may be the {what}: {self}; name the "
                f"right one with {option}"
            )
        return fitting[0] if fitting else None


def open_arrays(path: Path | str) -> ArrayFile:
    """Look into a ``.mat`` or ``.npz`` file; its first bytes decide which it is.

    Raises
    ------
    FoveateError
        It cannot be read, is neither, or is MATLAB 7.3 and h5py is missing.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(128)
    except OSError as error:
        raise FoveateError(f"cannot read {path}: {error.strerror or error}") from error
    if start.startswith(b"PK\x03\x04"):
        return _npz(path)
    if start.startswith((b"MATLAB 7.3", b"\x89HDF")):
        with _hdf5(path) as found:
            forms = {name: (array.shape[::-1], array.dtype.name) for name, array in found.items()}

        def fetch(name: str) -> Array:
            with _hdf5(path) as again:
                stored: Array = np.asarray(again[name][()])
            turned: Array = stored.T  # HDF5 counts the axes the other way round
            return turned

        return ArrayFile(path, _numeric(forms), fetch)
    forms = mat_headers(path)
    return ArrayFile(path, _numeric(forms), lambda name: read_mat(path, (name,), _MAX_BYTES)[name])


def _numeric(
    forms: Mapping[str, tuple[tuple[int, ...], str]],
) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        name: (shape, kind)
        for name, (shape, kind) in forms.items()
        if kind.startswith(_NUMBERS) and math.prod(shape) > 0
    }


def _npz(path: Path) -> ArrayFile:
    """All arrays are read at once: NumPy's archives have no list of shapes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FoveateError(f"cannot read {path} ({error}); copy the file again") from error
    if not 0 < len(names) <= _MAX_ARRAYS:
        raise FoveateError(
            f"{path} has {len(names)} arrays where 1 to {_MAX_ARRAYS} were expected; give a file "
            "with the arrays of one scene"
        )
    arrays = read_npz(path, tuple(names), _MAX_BYTES)
    forms = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    return ArrayFile(path, _numeric(forms), arrays.__getitem__)


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[dict[str, Any]]:
    """Plain variables of a MATLAB 7.3 file, open for the length of a ``with`` block."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise FoveateError(
            f"{path} is a MATLAB 7.3 file, which needs h5py; run pip install h5py, or save it in "
            "MATLAB with save(..., '-v7')"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            found = {}
            for name in list(file)[: 16 * _MAX_ARRAYS]:
                # Soft and external links may point anywhere, and so may external storage.
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    continue
                item = file[name]
                plain = isinstance(item, h5py.Dataset) and not (item.is_virtual or item.external)
                words = plain and item.attrs.get("MATLAB_class", b"") in (b"char", b"cell")
                if plain and not words and item.size * item.dtype.itemsize <= _MAX_BYTES:
                    found[str(name)] = item
            yield found
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FoveateError(f"cannot read {path} ({error}); copy the file again") from error
