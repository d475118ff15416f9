"""Polarimetric SAR scenes with labels: packed copies, and label maps known by their counts.

Label maps of one scene exist in several versions whose codes, counts and even dates differ. The
constants below carry names *with* counts, and names are only given to labels that have exactly
these counts. (San Francisco's map is handed on with its names shifted by one; here they are as
backscatter confirms: class 3 has by far the lowest T33/span, as water must.)

PolSARpro folders are read by `foveate.datasets.polsarpro` and complex MATLAB arrays by
`foveate.datasets.polsar_mat`; their functions are passed on here.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.npz import read_npz
from foveate.datasets.polarimetry import CHANNELS
from foveate.datasets.polsar_mat import load_polsar_mat
from foveate.datasets.polsarpro import (
    PolsarproConfig,
    open_polsar,
    read_c3,
    read_polsarpro_config,
    read_s2,
    read_t3,
    warn_if_indefinite,
    write_t3,
)
from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = [
    "FLEVOLAND_AIRSAR",
    "FLEVOLAND_AIRSAR_14",
    "FLEVOLAND_AIRSAR_750",
    "FLEVOLAND_AIRSAR_CVCNN",
    "FLEVOLAND_CARD",
    "LABEL_MAPS",
    "OBERPFAFFENHOFEN_ESAR",
    "SAN_FRANCISCO_AIRSAR",
    "SAN_FRANCISCO_CARD",
    "LabelMap",
    "PolsarproConfig",
    "load_flevoland",
    "load_polsar_mat",
    "load_polsar_npz",
    "load_san_francisco",
    "name_classes",
    "open_polsar",
    "read_c3",
    "read_polsarpro_config",
    "read_s2",
    "read_t3",
    "write_t3",
]

Channels = npt.NDArray[np.float32]

_MAX_BYTES = 1 << 34  # of one array in memory


@dataclass(frozen=True)
class LabelMap:
    """One version of a scene's label map.

    Attributes
    ----------
    name
        Short identifier.
    title
        Scene, sensor, band.
    shape
        ``(H, W)``.
    classes
        Name, number of labelled pixels, and colour of the codes 1, 2, ...
    key
        Its key in the packed copy (``.npz``), empty when it is not in one.
    """

    name: str
    title: str
    shape: tuple[int, int]
    classes: tuple[tuple[str, int, tuple[int, int, int]], ...]
    key: str = ""

    @property
    def names(self) -> dict[int, str]:
        """Code -> class name."""
        return {code: name for code, (name, _, _) in enumerate(self.classes, 1)}

    @property
    def counts(self) -> dict[int, int]:
        """Code -> number of labelled pixels."""
        return {code: count for code, (_, count, _) in enumerate(self.classes, 1)}

    @property
    def colours(self) -> dict[int, tuple[int, int, int]]:
        """Code -> red, green, blue."""
        return {code: colour for code, (_, _, colour) in enumerate(self.classes, 1)}

    def fits(self, labels: SceneLabels) -> bool:
        """Whether shape and all counts agree."""
        return labels.shape == self.shape and labels.counts() == self.counts

    def check(self, labels: SceneLabels) -> SceneLabels:
        """The same labels with this map's names and colours.

        Raises
        ------
        FoveateError
            They are another version: shape or the count of a class differs.
        """
        if labels.shape != self.shape:
            raise FoveateError(
                f"the labels {labels.source} are for {labels.shape} pixels where {self.name} has "
                f"{self.shape}; take the label map that belongs to this scene"
            )
        counts = labels.counts()
        for code in sorted({*counts, *self.counts}):
            if counts.get(code, 0) != self.counts.get(code, 0):
                raise FoveateError(
                    f"class {code} of the labels {labels.source} has {counts.get(code, 0)} pixels "
                    f"where {self.name} has {self.counts.get(code, 0)} "
                    f"({self.names.get(code, 'no such class')}); it is another version of the "
                    "map, whose names may differ"
                )
        return dataclasses.replace(labels, names=self.names, colours=self.colours)


SAN_FRANCISCO_AIRSAR = LabelMap(
    "sanfrancisco-airsar",
    "San Francisco, AIRSAR, L-band, 1989",
    (900, 1024),
    (
        ("bare soil", 13_701, (0, 255, 255)),
        ("mountain", 62_731, (255, 255, 0)),
        ("water", 329_566, (0, 0, 255)),
        ("urban", 342_795, (255, 0, 0)),
        ("vegetation", 53_509, (0, 255, 0)),
    ),
    "label",
)

_FLEVOLAND = {
    "stem beans": (255, 0, 0),
    "peas": (192, 192, 64),
    "forest": (0, 128, 0),
    "lucerne": (0, 255, 255),
    "wheat": (255, 192, 128),
    "beet": (160, 0, 255),
    "potatoes": (96, 64, 0),
    "bare soil": (160, 120, 80),
    "grasses": (0, 255, 0),
    "rapeseed": (255, 128, 0),
    "barley": (255, 128, 192),
    "wheat 2": (160, 192, 255),
    "wheat 3": (128, 128, 128),
    "water": (0, 0, 255),
    "buildings": (255, 255, 0),
}


def _flevoland(name: str, height: int, key: str, counts: tuple[int, ...]) -> LabelMap:
    rows = zip(_FLEVOLAND, counts, _FLEVOLAND.values(), strict=True)
    return LabelMap(name, "Flevoland, AIRSAR, L-band, 15 classes", (height, 1024), tuple(rows), key)


FLEVOLAND_AIRSAR = _flevoland(
    "flevoland-airsar",
    736,
    "label_png",
    (
        *(7575, 10319, 19374, 10690, 16530, 10977, 17708, 5586),
        *(7646, 15388, 7790, 11196, 22221, 9268, 843),
    ),
)
_CVCNN = (
    *(6103, 9111, 14944, 9477, 17283, 10050, 15292, 3078),
    *(6269, 12690, 7156, 10591, 21300),
)
FLEVOLAND_AIRSAR_750 = _flevoland("flevoland-airsar-750", 750, "", (*_CVCNN, 13476, 476))
FLEVOLAND_AIRSAR_CVCNN = _flevoland(  # rows 8 to 743 of the map above: fewer water pixels
    "flevoland-airsar-cvcnn", 736, "label_cvcnn", (*_CVCNN, 13318, 476)
)
FLEVOLAND_AIRSAR_14 = LabelMap(
    "flevoland-airsar-14",
    "Flevoland, AIRSAR, L-band, 14 classes",
    (1020, 1024),
    (
        ("potatoes", 21_613, (96, 64, 0)),
        ("fruit", 4_352, (255, 0, 0)),
        ("oats", 1_394, (255, 192, 128)),
        ("beet", 10_817, (160, 0, 255)),
        ("barley", 24_543, (255, 128, 192)),
        ("onions", 2_130, (192, 192, 64)),
        ("wheat", 26_277, (128, 128, 128)),
        ("beans", 1_082, (255, 64, 64)),
        ("peas", 2_160, (192, 255, 64)),
        ("maize", 1_290, (255, 255, 0)),
        ("flax", 4_301, (0, 255, 255)),
        ("rapeseed", 28_235, (255, 128, 0)),
        ("grass", 4_204, (0, 255, 0)),
        ("bare soil or lucerne", 2_952, (160, 120, 80)),  # sources differ
    ),
)
OBERPFAFFENHOFEN_ESAR = LabelMap(
    "oberpfaffenhofen-esar",
    "Oberpfaffenhofen, E-SAR, L-band",
    (1300, 1200),
    (
        ("built-up", 328_051, (255, 0, 0)),
        ("woodland", 246_673, (0, 128, 0)),
        ("open area", 736_894, (255, 255, 0)),
    ),
)
LABEL_MAPS = (
    *(SAN_FRANCISCO_AIRSAR, FLEVOLAND_AIRSAR, FLEVOLAND_AIRSAR_CVCNN, FLEVOLAND_AIRSAR_750),
    *(FLEVOLAND_AIRSAR_14, OBERPFAFFENHOFEN_ESAR),
)


def name_classes(labels: SceneLabels) -> SceneLabels:
    """Names and colours for labels that are one of `LABEL_MAPS`, by shape and every count.

    Other labels come back as they are: a guess could attach the wrong names.
    """
    known = next((known for known in LABEL_MAPS if known.fits(labels)), None)
    return labels if known is None else known.check(labels)


@dataclass(frozen=True, eq=False)
class _Packed:
    """T3 held in memory as stored, often in half precision; a window is scaled when it is read."""

    stored: npt.NDArray[Any]  # (9, H, W)
    scale: float

    def __call__(self, window: Window) -> Channels:
        row, column, height, width = window
        part = self.stored[:, row : row + height, column : column + width]
        channels = np.moveaxis(part.astype(np.float32), 0, -1) / np.float32(self.scale)
        return np.ascontiguousarray(channels)


def load_polsar_npz(path: Path | str, label: str | None = "auto") -> Scene:
    """Open a packed T3 scene.

    Parameters
    ----------
    path
        An ``.npz`` file of ``T`` ``(9, H, W)`` floats, T3 times ``scale`` (1 when absent), bands
        in the order of ``names`` (`CHANNELS` when absent), and any number of label maps
        ``label*`` ``(H, W)``, 0 where unlabelled. The bands stay in memory as stored.
    label
        Key of the label map; ``auto`` takes ``label``, else ``label_png``, else the first of
        that form, else none; None takes none.

    Returns
    -------
    Scene
        Its labels carry names and colours when their counts are those of one of `LABEL_MAPS`;
        a scene of a known size with other counts is warned about and keeps plain codes.

    Raises
    ------
    FoveateError
        The file is damaged, has another form, no such label map, or NaN.
    """
    path = Path(path)
    members = _members(path)
    maps = sorted(name for name in members if name.startswith("label"))
    if label == "auto":
        preferred = [key for key in ("label", "label_png") if key in maps]
        label = next(iter(preferred + maps), None)
    if label is not None and label not in maps:
        raise FoveateError(f"{path} has no label map {label!r}; it has {', '.join(maps) or 'none'}")
    wanted = ("T", *(key for key in ("scale", "names", label) if key in members))
    content = read_npz(path, wanted, _MAX_BYTES)
    stored = content["T"]
    scale = content.get("scale", np.ones(()))
    names = content.get("names", np.array(CHANNELS))
    if stored.ndim != 3 or stored.shape[0] != 9 or stored.size == 0 or stored.dtype.kind != "f":
        raise FoveateError(
            f"{path} holds T {stored.dtype} of shape {stored.shape} where floats (9, rows, "
            f"columns) were expected: {' '.join(CHANNELS)}"
        )
    if tuple(names.ravel().tolist()) != CHANNELS:
        raise FoveateError(
            f"{path} names its bands {' '.join(map(str, names.ravel()[:9].tolist()))[:80]!r} where "
            f"{' '.join(CHANNELS)} was expected; reorder them"
        )
    if scale.size != 1 or scale.dtype.kind not in "iuf" or not 0 < scale.item() < math.inf:
        raise FoveateError(f"{path} has the scale {scale} where one number above 0 was expected")
    for name, band in zip(CHANNELS, stored, strict=True):
        if not np.isfinite(band).all():
            row, column = np.argwhere(~np.isfinite(band))[0].tolist()
            raise FoveateError(
                f"{path} holds {band[row, column]} at row {row}, column {column} of {name}; mask "
                "or fill it first"
            )
    reader = _Packed(stored, float(scale.item()))
    sample = np.moveaxis(stored[:, ::4, ::4].astype(np.float32), 0, -1)
    # Half precision makes 0.07 % of real pixels slightly indefinite; more means damage.
    warn_if_indefinite(sample, f"{path} (every 4th row and column)", 0.01)
    rows, columns = int(stored.shape[1]), int(stored.shape[2])
    labels = None
    if label is not None:
        labels = SceneLabels.from_map(content[label], source=f"{path.name}:{label}")
        if labels.shape != (rows, columns):
            raise FoveateError(
                f"{label!r} of {path} is for {labels.shape} pixels where T has {(rows, columns)}"
            )
        labels = name_classes(labels)
        known = [known.name for known in LABEL_MAPS if known.shape == labels.shape]
        if known and not labels.names:
            warnings.warn(
                f"the labels {labels.source} have the size of {' and '.join(known)} but other "
                "counts: it is another version of the map, so its classes are left unnamed",
                stacklevel=2,
            )
    return Scene(path.stem, path, "polsar", rows, columns, CHANNELS, reader, labels=labels)


def _members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name[:-4] for name in archive.namelist()[:1000] if name.endswith(".npy")}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise FoveateError(
            f"cannot read {path} as a NumPy archive ({error}); copy the file again"
        ) from error


_LICENCE = "research use (as remembered), credit NASA/JPL; the copy's repository: "
_FORM = "T float16 (9, H, W) = T3 x scale, names, scale"


SAN_FRANCISCO_CARD = DataCard(
    name="san-francisco",
    title="San Francisco AIRSAR (1989)",
    task="land cover from PolSAR",
    licence=_LICENCE + "MIT (T3), none stated (labels)",
    size="900 x 1024 pixels, 5 classes, 802,302 labelled, 15 MB",
    url="https://github.com/zjxi/PolSAR-Freeman-Algorithm",
    citation="X. Liu et al., PolSF: PolSAR image datasets on San Francisco, 2022 (labels)",
    layout=f"polsar/sanfrancisco_airsar_t3_f16.npz ({_FORM}, label uint8 (H, W), 0 none)",
    kinds={"scene": ("sanfrancisco_airsar_t3_f16.npz",)},
    folders=("polsar",),
    classes=tuple(SAN_FRANCISCO_AIRSAR.names.values()),
    sha256={
        "sanfrancisco_airsar_t3_f16.npz": (
            "f790890bd87b0faf63a4029e9c77f8512531ebb60c6c8f19c2a5a1df03ac3c79"
        )
    },
    loader="foveate.datasets.polsar.load_san_francisco",
    notes=(
        "already averaged: neighbouring rows are correlated, so a split by random pixels leaks; "
        "labels of github.com/liuxuvip/PolSF, whose own names are shifted by one"
    ),
)
FLEVOLAND_CARD = DataCard(
    name="flevoland",
    title="Flevoland AIRSAR (1989 or 1991, sources differ)",
    task="crop types from PolSAR",
    licence=_LICENCE + "Apache-2.0 (T3, label_png), none stated (label_cvcnn)",
    size="736 x 1024 pixels, 15 classes, 173,111 labelled, 12 MB",
    url="https://github.com/wrccrwx/titecls1kde6mc",
    citation="data NASA/JPL AIRSAR, by way of the PolSARpro project",
    layout=(
        f"polsar/flevoland_airsar_t3_f16.npz ({_FORM}, label_png and label_cvcnn uint8 (H, W), "
        "0 none)"
    ),
    kinds={"scene": ("flevoland_airsar_t3_f16.npz",)},
    folders=("polsar",),
    classes=tuple(FLEVOLAND_AIRSAR.names.values()),
    sha256={
        "flevoland_airsar_t3_f16.npz": (
            "24a09937797cddff821da6886c167b084b950045021821b74c77fcfa5ff458b1"
        )
    },
    loader="foveate.datasets.polsar.load_flevoland",
    notes="already averaged (about 25 looks), so a split by random pixels leaks",
)


def load_san_francisco(root: Path | str) -> Scene:
    """The packed San Francisco scene below `root`, its labels checked against the published counts.

    Raises
    ------
    FoveateError
        It is absent, or as `load_polsar_npz`, or its labels are another version.
    """
    return _load_known(SAN_FRANCISCO_CARD, SAN_FRANCISCO_AIRSAR, root)


def load_flevoland(root: Path | str, label: str = "label_png") -> Scene:
    """The packed Flevoland scene; `label` is ``label_png`` or ``label_cvcnn``.

    Both maps use the same codes and agree on 99.997 % of the pixels that both label.

    Raises
    ------
    FoveateError
        As `load_san_francisco`, or another label map is asked for.
    """
    known = {k.key: k for k in (FLEVOLAND_AIRSAR, FLEVOLAND_AIRSAR_CVCNN)}
    if label not in known:
        raise FoveateError(f"Flevoland has no label map {label!r}; choose label_png or label_cvcnn")
    return _load_known(FLEVOLAND_CARD, known[label], root)


def _load_known(card: DataCard, known: LabelMap, root: Path | str) -> Scene:
    found = card.find(root)
    if found.path is None:
        raise FoveateError(
            f"the data set {card.name} is not below {root}; expected {card.layout}; see {card.url}"
        )
    scene = load_polsar_npz(found.path / card.kinds["scene"][0], known.key)
    labels = SceneLabels.from_map(np.zeros((1, 1))) if scene.labels is None else scene.labels
    return dataclasses.replace(scene, name=known.name, labels=known.check(labels))
