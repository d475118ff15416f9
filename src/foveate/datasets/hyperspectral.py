"""Hyperspectral scenes: an imaging spectrometer's cube and a map of what grows where.

Every pixel of a cube ``(rows, columns, bands)`` is a spectrum of a hundred or more narrow bands.
The scenes that the field compares on are handed out as MATLAB files, one with the cube and one
with the ground truth ``(rows, columns)``, 0 where nobody has been. The names of the variables
differ between copies, so the arrays are found by their form: the only three-dimensional numeric
array is the cube, the only two-dimensional one of the cube's extent the ground truth.

A scene exists in several states: with the bands that water vapour blinds or without them, with an
older ground truth or a newer. :data:`SCENES` holds the published extent, bands and pixels per
class, and a file that differs from them is read with a warning that says in what.

Cubes for spectral unmixing come as a matrix ``Y (bands, pixels)`` whose pixels run down the
columns, as MATLAB counts: pixel ``(r, c)`` is ``Y[:, r + nRow*c]`` (:func:`load_unmixing_mat`).

Sources: Grupo de Inteligencia Computacional, University of the Basque Country, "Hyperspectral
Remote Sensing Scenes", for the files and the bands that are left out; the ground truth files
themselves for the pixels per class of Indian Pines, Pavia University and Salinas (counted), that
page for Salinas-A and KSC; Zhu, "Hyperspectral unmixing: ground truth labeling" (2017) for the
abundances of Jasper Ridge.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.named_arrays import ArrayFile, open_arrays
from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = [
    "CARDS",
    "INDIAN_PINES",
    "KSC",
    "PAVIA_UNIVERSITY",
    "SALINAS",
    "SALINAS_A",
    "SCENES",
    "KnownScene",
    "load_hsi",
    "load_unmixing_mat",
]

_CUBE_KEYS = ("x", "cube", "ori_data", "data")
_TRUTH_KEYS = ("gt", "map", "labels", "label", "y")


@dataclass(frozen=True)
class KnownScene:
    """Published facts of a scene.

    Attributes
    ----------
    name
        As papers call it.
    height, width
        Extent in pixels.
    bands
        Number of bands of the cube that papers use.
    classes
        Class code -> name and labelled pixels.
    acquired
        Number of bands before some were dropped.
    dropped
        Bands that were dropped, as first and last of each run, counted from 1.
    stem
        How the names of its files begin, in lower-case letters and digits.
    """

    name: str
    height: int
    width: int
    bands: int
    classes: Mapping[int, tuple[str, int]]
    acquired: int
    dropped: tuple[tuple[int, int], ...] = ()
    stem: str = ""

    @property
    def counts(self) -> dict[int, int]:
        """Class code -> labelled pixels."""
        return {code: count for code, (_, count) in self.classes.items()}

    @property
    def names(self) -> dict[int, str]:
        """Class code -> name."""
        return {code: name for code, (name, _) in self.classes.items()}

    @property
    def labelled(self) -> int:
        """Number of labelled pixels."""
        return sum(self.counts.values())

    def kept_bands(self) -> npt.NDArray[np.int64]:
        """0-based numbers of the bands that papers keep of the `acquired` ones."""
        keep = np.ones(self.acquired, dtype=np.bool_)
        for first, last in self.dropped:
            keep[first - 1 : last] = False
        return np.flatnonzero(keep)


def _classes(table: str, codes: tuple[int, ...] = ()) -> dict[int, tuple[str, int]]:
    """Class code -> name and pixels, out of ``name pixels; name pixels; ...``."""
    rows = [row.rsplit(" ", 1) for row in " ".join(table.split()).split("; ")]
    numbers = codes or tuple(range(1, len(rows) + 1))
    return {code: (row[0], int(row[1])) for code, row in zip(numbers, rows, strict=True)}


INDIAN_PINES = KnownScene(
    "Indian Pines",
    *(145, 145, 200),
    acquired=220,
    dropped=((104, 108), (150, 163), (220, 220)),
    stem="indianpines",
    classes=_classes(
        """alfalfa 46; corn-notill 1428; corn-mintill 830; corn 237; grass-pasture 483;
        grass-trees 730; grass-pasture-mowed 28; hay-windrowed 478; oats 20;
        soybean-notill 972; soybean-mintill 2455; soybean-clean 593; wheat 205; woods 1265;
        buildings-grass-trees-drives 386; stone-steel-towers 93"""
    ),
)
PAVIA_UNIVERSITY = KnownScene(
    "Pavia University",
    *(610, 340, 103),
    acquired=103,
    stem="paviau",
    classes=_classes(
        """asphalt 6631; meadows 18649; gravel 2099; trees 3064; painted metal sheets 1345;
        bare soil 5029; bitumen 1330; self-blocking bricks 3682; shadows 947"""
    ),
)
SALINAS = KnownScene(
    "Salinas",
    *(512, 217, 204),
    acquired=224,
    dropped=((108, 112), (154, 167), (224, 224)),
    stem="salinas",
    classes=_classes(
        """brocoli_1 2009; brocoli_2 3726; fallow 1976; fallow_rough 1394; fallow_smooth 2678;
        stubble 3959; celery 3579; grapes_untrained 11271; soil_vinyard 6203;
        corn_senesced 3278; lettuce_4wk 1068; lettuce_5wk 1927; lettuce_6wk 916;
        lettuce_7wk 1070; vinyard_untrained 7268; vinyard_vertical 1807"""
    ),
)
SALINAS_A = KnownScene(
    "Salinas-A",
    *(83, 86, 204),
    acquired=224,
    dropped=SALINAS.dropped,
    stem="salinasa",
    classes=_classes(
        """brocoli_1 391; corn_senesced 1343; lettuce_4wk 616; lettuce_5wk 1525;
        lettuce_6wk 674; lettuce_7wk 799""",
        codes=(1, 10, 11, 12, 13, 14),
    ),
)
KSC = KnownScene(
    "Kennedy Space Center",
    *(512, 614, 176),
    acquired=176,
    stem="ksc",
    classes=_classes(
        """scrub 761; willow swamp 243; CP hammock 256; slash pine 252; oak/broadleaf 161;
        hardwood 229; swamp 105; graminoid marsh 431; spartina marsh 520; cattail marsh 404;
        salt marsh 419; mud flats 503; water 927"""
    ),
)
SCENES = (INDIAN_PINES, PAVIA_UNIVERSITY, SALINAS, SALINAS_A, KSC)
_JASPER_RIDGE = {1: "tree", 2: "water", 3: "dirt", 4: "road"}


_UPV_EHU = "http://www.ehu.eus/ccwintco/index.php/Hyperspectral_Remote_Sensing_Scenes"


def _card(
    known: KnownScene, slug: str, files: tuple[str, str], sensor: str, **other: Any
) -> DataCard:
    """Card of a scene whose cube and ground truth are two MATLAB files."""
    cube, truth = files
    entries: dict[str, Any] = {
        "title": f"{known.name} ({sensor})",
        "task": "land cover, every pixel",
        "licence": "none stated at the source (as remembered); cite the sensor's owner",
        "url": _UPV_EHU,
        "citation": "Grupo de Inteligencia Computacional, UPV/EHU, Hyperspectral Remote Sensing "
        "Scenes",
        "layout": f"{cube} and {truth}",
        "kinds": {"cube": (cube,), "ground truth": (truth,)},
        "folders": ("hsi", slug),
    }
    return DataCard(
        name=slug,
        size=f"{known.height} x {known.width} pixels, {known.bands} bands, {known.labelled} "
        f"labelled, {len(known.counts)} classes",
        classes=tuple(known.names.values()),
        loader="foveate.datasets.hyperspectral.load_hsi",
        **(entries | other),
    )


CARDS = (
    _card(
        INDIAN_PINES,
        "indian-pines",
        ("Indian_pines_corrected.mat", "Indian_pines_gt.mat"),
        "AVIRIS, 1992",
        licence="CC BY 3.0 (stated in tensorly's loader)",
        url="https://doi.org/10.4231/R7RX991C",
        citation="M. F. Baumgardner, L. L. Biehl, D. A. Landgrebe, 220 Band AVIRIS Hyperspectral "
        "Image Data Set: June 12, 1992 Indian Pine Test Site 3, 2015",
        layout="hsi/indian_pines.npz (x, gt), or Indian_pines_corrected.mat and "
        "Indian_pines_gt.mat",
        kinds={
            "cube": ("indian_pines.npz", "Indian_pines_corrected.mat"),
            "ground truth": ("indian_pines.npz", "Indian_pines_gt.mat"),
        },
        notes="this ground truth has 10,249 labelled pixels; the older Purdue one has 10,366",
    ),
    _card(PAVIA_UNIVERSITY, "pavia-university", ("PaviaU.mat", "PaviaU_gt.mat"), "ROSIS"),
    _card(SALINAS, "salinas", ("Salinas_corrected.mat", "Salinas_gt.mat"), "AVIRIS"),
    _card(SALINAS_A, "salinas-a", ("SalinasA_corrected.mat", "SalinasA_gt.mat"), "AVIRIS"),
    _card(KSC, "ksc", ("KSC.mat", "KSC_gt.mat"), "AVIRIS"),
    DataCard(
        name="jasper-ridge",
        title="Jasper Ridge sub-scene (AVIRIS)",
        task="spectral unmixing, 4 materials",
        licence="none stated at the source (as remembered)",
        size="100 x 100 pixels, 198 bands, abundances of 4 materials",
        url="https://github.com/MeiShaohui/Spectral-Variability-Augmented-Sparse-Unmixing",
        citation="F. Zhu, Hyperspectral unmixing: ground truth labeling, 2017, arXiv:1708.05125",
        layout="jasperRidge2_R198.mat (Y, nRow, nCol, and A for labels)",
        kinds={"cube": ("jasperRidge2_R198.mat",)},
        folders=("hsi", "jasper-ridge"),
        classes=tuple(_JASPER_RIDGE.values()),
        loader="foveate.datasets.hyperspectral.load_unmixing_mat",
        notes="labels are the largest entry of a published unmixing, not field truth",
    ),
)


def load_hsi(
    path: Path | str,
    gt_path: Path | str | None = None,
    cube_key: str | None = None,
    gt_key: str | None = None,
) -> Scene:
    """Load a cube and its ground truth from ``.mat`` or ``.npz`` into memory.

    Parameters
    ----------
    path
        File with the cube ``(H, W, bands)``; the ground truth may be in it too.
    gt_path
        File with the ground truth. None: `path` itself, else the file beside it that is called
        the same with ``_gt`` (``PaviaU_gt.mat``; a ``_corrected`` is left out), else no labels.
    cube_key, gt_key
        Names of the variables, where their form does not tell.

    Returns
    -------
    Scene
        Of kind ``hyperspectral``, with `labels` when there is a ground truth. The numbers are the
        file's, usually not reflectance: standardise each band.

    Warns
    -----
    UserWarning
        It is one of `SCENES` by name or extent, but differs in extent, bands or pixels per class.

    Raises
    ------
    FoveateError
        A file is damaged, does not tell which array is meant, or the two differ in extent; the
        cube has NaN or infinite numbers; the file is MATLAB 7.3 and h5py is missing.
    """
    path = Path(path)
    file = open_arrays(path)
    if {"Y", "nRow", "nCol"} <= file.forms.keys() and cube_key is None:
        return load_unmixing_mat(path)
    what = "cube (rows, columns, bands)"
    name = file.choose(what, 3, key=cube_key, usual=_CUBE_KEYS, option="cube_key")
    if name is None:
        raise FoveateError(f"{path} has no {what}; its numeric arrays are: {file}")
    cube = file.read(name)
    height, width = cube.shape[:2]
    found = _truth(file, gt_path, gt_key, (height, width))
    known = _recognise(path, height, width)
    labels = None
    if found is not None:
        truth, source = found
        labels = SceneLabels.from_map(truth, source=str(source))
        if known is not None and set(labels.classes) <= set(known.names):
            labels = replace(labels, names=known.names)
    if known is not None:
        _compare(known, cube.shape, labels, path)
    scene = replace(Scene.from_array(cube, "hyperspectral", path.stem, labels=labels), path=path)
    _check_finite(scene, cube)
    return scene


def _truth(
    file: ArrayFile, gt_path: Path | str | None, gt_key: str | None, extent: tuple[int, int]
) -> tuple[npt.NDArray[Any], Path] | None:
    """Ground truth of a cube and the file that it is from."""
    what = "ground truth (rows, columns)"
    options: dict[str, Any] = {"key": gt_key, "usual": _TRUTH_KEYS, "option": "gt_key"}
    if gt_path is None:
        path = file.path
        inside = gt_key is None or gt_key in file.forms
        name = file.choose(what, 2, extent=extent, **options) if inside else None
        if name is None:
            path = path.with_name(path.stem.removesuffix("_corrected") + "_gt" + path.suffix)
            if not path.is_file():
                if gt_key is None:
                    return None
                raise FoveateError(f"{file.path} has no {what} called {gt_key!r}; it has {file}")
            file, name = open_arrays(path), None
    else:
        path, name = Path(gt_path), None
        file = open_arrays(path)
    if name is None:
        name = file.choose(what, 2, **options)
    if name is None:
        raise FoveateError(f"{path} has no {what}; its numeric arrays are: {file}")
    truth = file.read(name)
    if truth.shape != extent:
        raise FoveateError(
            f"the ground truth {name!r} of {path} has {truth.shape[0]} x {truth.shape[1]} pixels, "
            f"but the cube has {extent[0]} x {extent[1]}; give the files of one scene"
        )
    return truth, path


def load_unmixing_mat(path: Path | str, *, minimum: float = 0.5, scale: float = 1.0) -> Scene:
    """Load a cube for spectral unmixing, such as Jasper Ridge, with labels from its abundances.

    Parameters
    ----------
    path
        MATLAB file with ``Y`` (bands, pixels), ``nRow``, ``nCol`` and, for labels, ``A``
        (materials, pixels): how much of each material is in a pixel.
    minimum
        A pixel is labelled with its largest material when that is above this share.
    scale
        The numbers are divided by it; 5000 gives the reflectance of Jasper Ridge.

    Returns
    -------
    Scene
        Of kind ``hyperspectral``. The labels are the largest entry of a *published unmixing*, not
        something seen in the field: accuracy against them is agreement with that unmixing.

    Raises
    ------
    FoveateError
        The file is damaged, or ``Y`` has not nRow x nCol pixels.
    """
    path = Path(path)
    file = open_arrays(path)
    missing = [name for name in ("Y", "nRow", "nCol") if name not in file.forms]
    if missing:
        raise FoveateError(
            f"{path} has no {', '.join(missing)} where Y (bands, pixels), nRow and nCol were "
            f"expected; its numeric arrays are: {file}"
        )
    if not (math.isfinite(scale) and scale > 0):
        raise FoveateError(f"scale is {scale} where a positive number was expected")
    wanted = [name for name in ("Y", "nRow", "nCol", "A") if name in file.forms]
    arrays = {name: file.read(name) for name in wanted}
    matrix = arrays["Y"]
    sizes = [arrays[name].reshape(-1) for name in ("nRow", "nCol")]
    if any(len(size) != 1 or not 1 <= size[0] < 2**24 or size[0] % 1 for size in sizes):
        raise FoveateError(f"{path} has nRow or nCol that is not one whole number")
    rows, columns = (int(size[0]) for size in sizes)
    if matrix.ndim != 2 or matrix.shape[1] != rows * columns:
        raise FoveateError(
            f"{path} has Y of shape {matrix.shape} where (bands, {rows} x {columns} = "
            f"{rows * columns} pixels) was expected"
        )
    # Column-major pixels: (bands, columns, rows) -> (rows, columns, bands)
    cube = matrix.reshape(-1, columns, rows).transpose(2, 1, 0)
    if scale != 1:
        cube = (cube / scale).astype(np.float32)
    labels = None
    if "A" in arrays:
        shares = arrays["A"]
        if shares.ndim != 2 or shares.shape[1] != rows * columns or not np.isfinite(shares).all():
            raise FoveateError(
                f"{path} has A of shape {shares.shape} where finite (materials, {rows * columns} "
                "pixels) was expected"
            )
        largest = np.where(shares.max(axis=0) > minimum, shares.argmax(axis=0) + 1, 0)
        names = _JASPER_RIDGE if len(shares) == 4 and "jasper" in path.stem.lower() else {}
        labels = SceneLabels.from_map(
            largest.reshape(columns, rows).T, names=names, source=f"{path} (unmixing reference)"
        )
    scene = replace(Scene.from_array(cube, "hyperspectral", path.stem, labels=labels), path=path)
    _check_finite(scene, cube)
    return scene


def _check_finite(scene: Scene, cube: npt.NDArray[Any]) -> None:
    """Let the scene say where a number is NaN, row by row: no second copy of the cube."""
    if cube.dtype.kind == "f":
        for row in range(scene.height):
            scene.read(Window(row, 0, 1, scene.width))


def _recognise(path: Path, height: int, width: int) -> KnownScene | None:
    for known in SCENES:
        if (known.height, known.width) == (height, width):
            return known
    letters = re.sub(r"[^a-z0-9]", "", path.stem.lower())
    fitting = [known for known in SCENES if letters.startswith(known.stem)]
    return max(fitting, key=lambda known: len(known.stem), default=None)


def _compare(
    known: KnownScene, shape: tuple[int, ...], labels: SceneLabels | None, path: Path
) -> None:
    differences = []
    if shape[:2] != (known.height, known.width):
        differences.append(
            f"{shape[0]} x {shape[1]} pixels where {known.height} x {known.width} are published"
        )
    if shape[2] != known.bands:
        whole = f" ({known.acquired} as acquired)" if known.acquired != known.bands else ""
        differences.append(f"{shape[2]} bands where papers use {known.bands}{whole}")
    if labels is not None and labels.counts() != known.counts:
        found = labels.counts()
        other = [
            f"class {code} {found.get(code, 0)} instead of {known.counts.get(code, 0)}"
            for code in sorted({*found, *known.counts})
            if found.get(code, 0) != known.counts.get(code, 0)
        ]
        more = f" and {len(other) - 4} more" if len(other) > 4 else ""
        differences.append(
            f"{len(labels)} labelled pixels where {known.labelled} are published "
            f"({', '.join(other[:4])}{more})"
        )
    if differences:
        warnings.warn(
            f"{path} looks like {known.name} but has {'; '.join(differences)}; results on it do "
            "not compare with published ones",
            stacklevel=3,
        )
