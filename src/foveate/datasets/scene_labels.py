"""Labels of a scene: which pixels are known to belong to which class.

A person labels a few thousand pixels of a scene that may have millions, so the labels are kept as
a list of points, sorted by row and column, and never as a map of the whole scene. Codes are whole
numbers from 1; 0 is "not labelled" and is what a map holds elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from pathlib import Path

    from foveate.datasets.scene import Georeference, Scene, Window

__all__ = ["MAX_CODE", "SceneLabels", "plain_name", "read_labels"]

MAX_CODE = 32767  # int16
_STEERING = ("Cc", "Cs", "Zl", "Zp")  # Unicode: control, half a character, line and paragraph ends
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

Codes = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class SceneLabels:
    """Labelled pixels of a scene, N of them.

    Attributes
    ----------
    coordinates
        ``(N, 2)`` int32: row and column, sorted by row, then column; no pixel occurs twice.
    codes
        ``(N,)`` int16, at least 1.
    shape
        ``(H, W)`` of the scene.
    names
        Class code -> name, kept as `plain_name` gives it; a code without one is called
        ``class 3``.
    colours
        Class code -> red, green, blue, 0 to 255.
    source
        Where the labels come from, for reports and errors.

    Raises
    ------
    FoveateError
        The arrays do not have this form, or a pixel lies outside the scene.
    """

    coordinates: npt.NDArray[np.int32]
    codes: Codes
    shape: tuple[int, int]
    names: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        coordinates, codes = self.coordinates, self.codes
        names = {code: plain_name(name) for code, name in self.names.items()}
        object.__setattr__(self, "names", {code: name for code, name in names.items() if name})
        if (
            coordinates.ndim != 2
            or coordinates.shape[1:] != (2,)
            or codes.shape != coordinates.shape[:1]
            or coordinates.dtype != np.int32
            or codes.dtype != np.int16
        ):
            raise FoveateError(
                f"{self._what} have coordinates {coordinates.dtype} {coordinates.shape} and codes "
                f"{codes.dtype} {codes.shape} where int32 (N, 2) and int16 (N,) were expected; "
                "use SceneLabels.from_points or SceneLabels.from_map"
            )
        if not len(codes):
            return
        if int(codes.min()) < 1:
            raise FoveateError(
                f"{self._what} have the class code {codes.min()}; codes start at 1 (0 is "
                "unlabelled)"
            )
        outside = ((coordinates < 0) | (coordinates >= np.array(self.shape))).any(axis=1)
        if outside.any():
            row, column = coordinates[int(np.argmax(outside))].tolist()
            raise FoveateError(
                f"{self._what} have a point at row {row}, column {column}, outside the scene of "
                f"{self.shape[0]} x {self.shape[1]} pixels ({int(outside.sum())} points are "
                "outside); rows and columns count from 0"
            )
        if (np.diff(self._flat()) <= 0).any():
            raise FoveateError(
                f"{self._what} are not sorted by row and column, or name a pixel twice; use "
                "SceneLabels.from_points"
            )

    @property
    def _what(self) -> str:
        return f"the labels {self.source}" if self.source else "the labels"

    def _flat(self) -> npt.NDArray[np.int64]:
        rows, columns = self.coordinates.astype(np.int64).T
        return np.asarray(rows * self.shape[1] + columns)

    @classmethod
    def from_map(
        cls,
        labels: npt.NDArray[Any],
        *,
        names: Mapping[int, str] | None = None,
        colours: Mapping[int, tuple[int, int, int]] | None = None,
        source: str = "",
    ) -> SceneLabels:
        """Labels from a map ``(H, W)`` of whole numbers, 0 where nothing is known.

        Raises
        ------
        FoveateError
            The map is not two-dimensional, empty, or has a value that is no code.
        """
        labels = np.asarray(labels)
        what = f"the label map {source}" if source else "the label map"
        if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "biuf":
            raise FoveateError(
                f"{what} is {labels.dtype} of shape {labels.shape} where whole numbers "
                "(rows, columns) were expected"
            )
        coordinates = np.argwhere(labels)  # row-major; NaN counts as labelled and is refused below
        values = labels[coordinates[:, 0], coordinates[:, 1]]
        codes = _codes(values, f"the labels {source}" if source else "the labels")
        shape = (int(labels.shape[0]), int(labels.shape[1]))
        return cls(coordinates.astype(np.int32), codes, shape, names or {}, colours or {}, source)

    @classmethod
    def from_points(
        cls,
        coordinates: npt.ArrayLike,
        codes: npt.ArrayLike,
        shape: tuple[int, int],
        *,
        names: Mapping[int, str] | None = None,
        colours: Mapping[int, tuple[int, int, int]] | None = None,
        source: str = "",
    ) -> SceneLabels:
        """Labels from points in any order.

        Parameters
        ----------
        coordinates
            ``(N, 2)`` whole numbers: row and column.
        codes
            ``(N,)`` whole numbers from 1.
        shape
            ``(H, W)`` of the scene.

        Raises
        ------
        FoveateError
            A point lies outside, is no whole number, or occurs twice with different codes. A
            point that is repeated with the same code counts once.
        """
        what = f"the labels {source}" if source else "the labels"
        places, values = np.asarray(coordinates), np.asarray(codes)
        if places.size == 0 and values.size == 0:
            places, values = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
        if places.ndim != 2 or places.shape[1] != 2 or values.shape != places.shape[:1]:
            raise FoveateError(
                f"{what} have coordinates of shape {places.shape} and codes of shape "
                f"{values.shape} where (N, 2) and (N,) were expected"
            )
        found = _codes(values, what)
        height, width = int(shape[0]), int(shape[1])
        # As floats first: a place of 1e30 must not wrap around into the scene.
        exact = places.astype(np.float64)
        inside = ((exact >= 0) & (exact < np.array([height, width]))).all(axis=1)
        if not inside.all():
            row, column = exact[int(np.argmin(inside))].tolist()
            raise FoveateError(
                f"{what} have a point at row {row:g}, column {column:g}, outside the scene of "
                f"{height} x {width} pixels ({int((~inside).sum())} points are outside); rows and "
                "columns count from 0"
            )
        if (exact != np.floor(exact)).any():
            raise FoveateError(f"{what} have a row or column that is not a whole number")
        whole = places.astype(np.int64)
        flat = whole[:, 0] * width + whole[:, 1]
        order = np.argsort(flat, kind="stable")
        flat, whole, found = flat[order], whole[order], found[order]
        same = np.diff(flat) == 0
        conflict = same & (np.diff(found) != 0)
        if conflict.any():
            at = int(np.argmax(conflict))
            raise FoveateError(
                f"{what} give the pixel at row {whole[at, 0]}, column {whole[at, 1]} two classes, "
                f"{found[at]} and {found[at + 1]}; keep one of them"
            )
        keep = np.concatenate([np.ones(min(1, len(flat)), np.bool_), ~same])
        return cls(
            whole[keep].astype(np.int32),
            found[keep],
            (height, width),
            names or {},
            colours or {},
            source,
        )

    def __len__(self) -> int:
        return int(self.codes.shape[0])

    @property
    def classes(self) -> tuple[int, ...]:
        """Codes that occur, in rising order."""
        return tuple(int(code) for code in np.unique(self.codes))

    def name(self, code: int) -> str:
        """Name of a class."""
        return self.names.get(code, f"class {code}")

    def counts(self) -> dict[int, int]:
        """Number of pixels of each class that occurs."""
        codes, counts = np.unique(self.codes, return_counts=True)
        return {int(code): int(count) for code, count in zip(codes, counts, strict=True)}

    def to_map(self, window: Window | None = None) -> Codes:
        """Map ``(h, w)`` int16 of a window (of the whole scene when None), 0 where unlabelled."""
        row, column, height, width = (0, 0, *self.shape) if window is None else window
        labels = np.zeros((height, width), dtype=np.int16)
        # Sorted by row: only the window's rows are looked at.
        first, last = np.searchsorted(self.coordinates[:, 0], [row, row + height])
        places = self.coordinates[first:last]
        inside = (places[:, 1] >= column) & (places[:, 1] < column + width)
        labels[places[inside, 0] - row, places[inside, 1] - column] = self.codes[first:last][inside]
        return labels

    def subset(self, index: npt.NDArray[np.integer[Any] | np.bool_]) -> SceneLabels:
        """The labels of the pixels at `index` (numbers into them, in any order, or a mask)."""
        index = np.asarray(index)
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        index = np.unique(index.astype(np.int64))  # sorted, each once
        return SceneLabels(
            self.coordinates[index],
            self.codes[index],
            self.shape,
            self.names,
            self.colours,
            self.source,
        )


def plain_name(text: str) -> str:
    """A name on one line, without characters that steer a terminal or turn the text around.

    Names come from files of other people and go to terminals, pages, tables and tags of rasters,
    which cannot all hold every character. At most 200 characters are kept.
    """
    shown = (
        " " if unicodedata.category(one) in _STEERING or one in _TURNING else one
        for one in text[:2000]
    )  # fmt: skip
    return " ".join("".join(shown).split())[:200]


def _codes(values: npt.NDArray[Any], what: str) -> Codes:
    """Class codes 1 to 32767 as int16, or a sentence on the first that is none."""
    if values.dtype.kind not in "biuf":
        raise FoveateError(
            f"{what} have class codes of type {values.dtype} where whole numbers from 1 to "
            f"{MAX_CODE} were expected"
        )
    wrong = ~((values >= 1) & (values <= MAX_CODE))
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        raise FoveateError(
            f"{what} have the class code {values[int(np.argmax(wrong))]} where whole numbers from "
            f"1 to {MAX_CODE} (0: unlabelled) were expected"
        )
    return np.asarray(values, dtype=np.int16)


def read_labels(
    path: Path | str,
    scene: Scene | tuple[int, int],
    georeference: Georeference | None = None,
    *,
    class_property: str | None = None,
    key: str | None = None,
) -> SceneLabels:
    """Read labels from a file; see `foveate.datasets.scene_label_files.read_labels`."""
    from foveate.datasets import scene_label_files

    return scene_label_files.read_labels(
        path, scene, georeference, class_property=class_property, key=key
    )
