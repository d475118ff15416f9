"""A scene: one picture of any number of channels, read window by window.

A remote-sensing picture may be larger than memory, so a :class:`Scene` never holds it: it knows
its size and its channels, and calls a reader for the window that is wanted. Readers exist for
hyperspectral cubes, PolSAR matrices, GeoTIFF and plain pictures (`foveate.datasets.scene_files`);
:meth:`Scene.from_array` wraps an array that is already there.

Rows count downwards and columns to the right, both from 0. Pixels are float32 ``(h, w, C)``.

A window may stick out of the scene where a method looks at the surroundings of a pixel near the
edge (:meth:`Scene.read_padded`). The missing pixels are mirrored at the edge without repeating the
edge itself, numpy's ``reflect``: row ``-k`` is row ``k``. In a scene of ``n`` rows the row ``r`` is

    r mod 2(n - 1)                 where that is < n
    2(n - 1) - (r mod 2(n - 1))    elsewhere

which goes on reflecting when the scene is smaller than the padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from foveate.datasets.scene_labels import SceneLabels, plain_name
from foveate.errors import FoveateError

__all__ = ["POLSAR_BANDS", "Georeference", "Scene", "Window", "reflect_index"]

# Order of the real channels of the coherency matrix T3, upper triangle.
POLSAR_BANDS = (
    *("T11", "T22", "T33"),
    *("T12_real", "T12_imag", "T13_real", "T13_imag", "T23_real", "T23_imag"),
)
MAX_SIDE = 1 << 24
MAX_READ_BYTES = 1 << 34  # one window as float32; more is a mistake, windows are for that

Cube = npt.NDArray[np.float32]


class Window(NamedTuple):
    """A rectangle of pixels: upper left corner and extent."""

    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class Georeference:
    """Where on Earth the pixels lie.

    Attributes
    ----------
    crs
        Coordinate reference system as WKT or ``EPSG:n``; empty when unknown.
    transform
        ``(a, b, c, d, e, f)`` of ``x = a*column + b*row + c``, ``y = d*column + e*row + f``, where
        (column, row) = (0, 0) is the upper left *corner* of the first pixel and (0.5, 0.5) its
        centre (GDAL's convention, in the order of the ``affine`` package).

    Raises
    ------
    FoveateError
        The transform is not six finite numbers, or maps all pixels onto a line.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def __post_init__(self) -> None:
        numbers = self.transform
        if len(numbers) != 6 or not all(math.isfinite(number) for number in numbers):
            raise FoveateError(f"a georeference needs six finite numbers, found {numbers}")
        a, b, _, d, e, _ = numbers
        if a * e - b * d == 0:
            raise FoveateError(
                f"the georeference {numbers} puts all pixels on one line; give the pixel's width "
                "and height"
            )

    def to_xy(self, row: Any, column: Any) -> tuple[Any, Any]:
        """Map coordinates ``(x, y)`` of pixel coordinates; numbers or arrays."""
        a, b, c, d, e, f = self.transform
        return a * column + b * row + c, d * column + e * row + f

    def to_pixel(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Pixel coordinates ``(row, column)``, not rounded: floor gives the pixel's number."""
        a, b, c, d, e, f = self.transform
        x, y = x - c, y - f
        scale = a * e - b * d
        return (a * y - d * x) / scale, (e * x - b * y) / scale


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture of any number of channels.

    Attributes
    ----------
    name
        Short name for reports, kept as `plain_name` gives it.
    path
        File or folder it is read from; None for an array.
    kind
        ``rgb``, ``hyperspectral`` or ``polsar``.
    height, width
        Extent in pixels.
    band_names
        One name per channel; a ``polsar`` scene has the nine of `POLSAR_BANDS`.
    reader
        Gives the pixels ``(h, w, C)`` float32 of a window that lies inside; pixels that the file
        marks as empty (no data) hold 0.
    wavelengths_nm
        Centre of each band in nm, or None.
    georeference
        Where the pixels lie on Earth, or None.
    labels
        Labels shipped in the same file, or None.
    valid
        Gives ``(h, w)`` bool for a window: True where the file has data. None: everywhere.

    Raises
    ------
    FoveateError
        The extent is not positive, or the number of names or wavelengths is not that of the
        channels, or the labels belong to a scene of another size.
    """

    name: str
    path: Path | None
    kind: Literal["rgb", "hyperspectral", "polsar"]
    height: int
    width: int
    band_names: tuple[str, ...]
    reader: Callable[[Window], Cube]
    wavelengths_nm: tuple[float, ...] | None = None
    georeference: Georeference | None = None
    labels: SceneLabels | None = None
    valid: Callable[[Window], npt.NDArray[np.bool_]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain_name(self.name).strip("./ ") or "scene")
        if not (0 < self.height <= MAX_SIDE and 0 < self.width <= MAX_SIDE and self.band_names):
            raise FoveateError(
                f"the scene {self.name} has {self.height} x {self.width} pixels and "
                f"{len(self.band_names)} bands where at least one of each, and at most {MAX_SIDE} "
                "pixels a side, were expected"
            )
        if self.kind not in ("rgb", "hyperspectral", "polsar"):
            raise FoveateError(
                f"the scene {self.name} is of kind {self.kind!r}; known are rgb, hyperspectral "
                "and polsar"
            )
        if self.kind == "polsar" and self.channels != len(POLSAR_BANDS):
            raise FoveateError(
                f"the PolSAR scene {self.name} has {self.channels} channels where the 9 of a "
                f"coherency matrix were expected: {' '.join(POLSAR_BANDS)}"
            )
        if self.wavelengths_nm is not None and len(self.wavelengths_nm) != self.channels:
            raise FoveateError(
                f"the scene {self.name} has {self.channels} bands and "
                f"{len(self.wavelengths_nm)} wavelengths; give one for each band"
            )
        if self.labels is not None and self.labels.shape != (self.height, self.width):
            raise FoveateError(
                f"the labels of the scene {self.name} are for {self.labels.shape[0]} x "
                f"{self.labels.shape[1]} pixels, but it has {self.height} x {self.width}"
            )

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return len(self.band_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self.height, self.width, self.channels

    @property
    def whole(self) -> Window:
        """The window of all pixels."""
        return Window(0, 0, self.height, self.width)

    def read(self, window: Window | None = None) -> Cube:
        """Pixels ``(h, w, C)`` float32 of a window inside the scene; of all of it when None.

        Raises
        ------
        FoveateError
            The window is empty or sticks out, or a pixel is NaN or infinite.
        """
        window = self._inside(self.whole if window is None else Window(*window))
        pixels = np.ascontiguousarray(self.reader(window), dtype=np.float32)
        expected = (window.height, window.width, self.channels)
        if pixels.shape != expected:
            raise FoveateError(
                f"the reader of the scene {self.name} gave pixels of shape {pixels.shape} where "
                f"{expected} was expected"
            )
        # The sum is finite unless a pixel is not (or it overflows): one cheap pass.
        with np.errstate(invalid="ignore"):
            total = pixels.sum(dtype=np.float64)
        if not np.isfinite(total):
            bad = np.argwhere(~np.isfinite(pixels))
            if len(bad):
                row, column, band = (int(number) for number in bad[0])
                raise FoveateError(
                    f"the scene {self.name} has the value {pixels[row, column, band]} at row "
                    f"{window.row + row}, column {window.column + column}, band "
                    f"{self.band_names[band]!r} ({len(bad)} such values in this window); fill or "
                    "mask them before labelling"
                )
        return pixels

    def read_padded(self, window: Window) -> Cube:
        """As `read`, but the window may stick out of the scene: mirrored pixels fill it.

        Raises
        ------
        FoveateError
            As `read`, or no pixel of the window lies inside.
        """
        window = Window(*window)
        row, column, height, width = window
        inside = (
            min(height, width) > 0
            and row < self.height
            and row + height > 0
            and column < self.width
            and column + width > 0
        )
        if not inside:
            self._inside(window)
        if (
            row >= 0
            and column >= 0
            and row + height <= self.height
            and column + width <= self.width
        ):
            return self.read(window)
        rows = reflect_index(row, height, self.height)
        columns = reflect_index(column, width, self.width)
        top, left = int(rows.min()), int(columns.min())
        source = Window(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)
        return np.ascontiguousarray(self.read(source)[np.ix_(rows - top, columns - left)])

    def read_valid(self, window: Window | None = None) -> npt.NDArray[np.bool_]:
        """``(h, w)`` bool: True where the file has data.

        Raises
        ------
        FoveateError
            The window is empty or sticks out.
        """
        window = self._inside(self.whole if window is None else Window(*window))
        if self.valid is None:
            return np.ones((window.height, window.width), dtype=np.bool_)
        return self.valid(window)

    def _inside(self, window: Window) -> Window:
        row, column, height, width = window
        fits = (
            row >= 0
            and column >= 0
            and height > 0
            and width > 0
            and row + height <= self.height
            and column + width <= self.width
        )
        if not fits:
            raise FoveateError(
                f"the window of rows {row} to {row + height - 1} and columns {column} to "
                f"{column + width - 1} is empty or outside the scene {self.name} of "
                f"{self.height} x {self.width} pixels"
            )
        if height * width * self.channels * 4 > MAX_READ_BYTES:
            raise FoveateError(
                f"{height} x {width} pixels of the scene {self.name} would take "
                f"{height * width * self.channels * 4 / 2**30:.0f} GiB; read smaller windows"
            )
        return window

    @classmethod
    def from_array(
        cls,
        cube: npt.NDArray[Any],
        kind: Literal["rgb", "hyperspectral", "polsar"],
        name: str = "array",
        band_names: tuple[str, ...] = (),
        labels: SceneLabels | None = None,
    ) -> Scene:
        """Wrap an array ``(H, W, C)`` of real numbers; it is not copied.

        `band_names` are ``band 1``, ``band 2``, ... when none are given (``red green blue`` and
        `POLSAR_BANDS` for the other kinds).

        Raises
        ------
        FoveateError
            The array is not three-dimensional, or not of real numbers, or the names do not fit.
        """
        cube = np.asarray(cube)
        if cube.ndim != 3 or cube.size == 0 or cube.dtype.kind not in "biuf":
            raise FoveateError(
                f"the scene {name} has an array {cube.dtype} of shape {cube.shape} where real "
                "numbers (rows, columns, channels) were expected"
            )
        channels = cube.shape[2]
        if not band_names:
            known: dict[tuple[str, int], tuple[str, ...]] = {
                ("polsar", 9): POLSAR_BANDS,
                ("rgb", 3): ("red", "green", "blue"),
            }
            numbered = tuple(f"band {number}" for number in range(1, channels + 1))
            band_names = known.get((kind, channels), numbered)
        if len(band_names) != channels:
            raise FoveateError(
                f"the scene {name} has {channels} channels and {len(band_names)} band names; give "
                "one for each channel"
            )

        def reader(window: Window) -> Cube:
            row, column, height, width = window
            piece = cube[row : row + height, column : column + width]
            return np.array(piece, dtype=np.float32)  # a copy: nobody writes into the scene

        return cls(
            name, None, kind, cube.shape[0], cube.shape[1], band_names, reader, labels=labels
        )


def reflect_index(start: int, count: int, size: int) -> npt.NDArray[np.int64]:
    """Positions in ``[0, size)`` that `count` positions from `start` on are mirrored to."""
    positions = np.arange(start, start + count, dtype=np.int64)
    if size == 1:
        return np.zeros_like(positions)
    period = 2 * (size - 1)
    positions %= period
    return np.minimum(positions, period - positions)
