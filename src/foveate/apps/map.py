"""``foveate map``: every pixel of a scene labelled from some labelled pixels.

A run has four parts. The labels are split twice: into blocks that lie apart (training labels on one
side, test labels on the other, a guard between them) and, beside it, pixel by pixel at random, the
way that most published figures are taken. The method, and a classical baseline, learn from the
training blocks and are counted on the test blocks: that is the accuracy that a new place has.
The same method on the random split shows how much of the usual figure is closeness. Then the
method learns from all labels that it may use and maps the scene tile by tile; a tile is read with
the context that one decision sees, so where the seams lie changes nothing.

Everything that took time is kept in the folder ``unfinished`` of the result until the end: a run
that was stopped goes on from the model and from the tiles that are there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

import foveate
from foveate.apps.map_outputs import FORMATS, Format, TileStore, choose_format, write_outputs
from foveate.apps.torch_threads import torch_threads
from foveate.datasets.polsar import name_classes
from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_files import open_scene
from foveate.datasets.scene_labels import SceneLabels, read_labels
from foveate.errors import FoveateError
from foveate.files import made_folder, read_json, write_json
from foveate.scenes.accuracy import block_bootstrap, confusion, oa_aa_kappa
from foveate.scenes.map_model import MapModel, label_window, predict_points
from foveate.scenes.splits import (
    Split,
    checkerboard_split,
    draw_per_class,
    leakage_report,
    test_blocks,
)

__all__ = ["METHODS", "MapResult", "MapSettings", "Method", "map_scene"]

Codes = npt.NDArray[np.int16]
Indices = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with (what is going on, units done, units in all)."""

_UNFINISHED = "unfinished"
_SUFFIXES = ("tif", "img", "hdr", "png")
_TEST_PIXELS = 50_000
_LOOK = 256  # side of the windows in which labels are held against missing data
_BESIDE = (".hdr", ".aux.xml", ".msk")  # ENVI's header, GDAL's facts and mask
_OUTPUTS = {
    *(f"{stem}.{suffix}" for stem in ("map", "confidence") for suffix in _SUFFIXES),
    *("classes.csv", "summary.json", "report.html"),
}
_LEAST = 30  # labels that a class needs on both sides of the blocks
_UNITS = {"choose": 8, "baseline": 4, "disjoint": 10, "random": 10, "final": 10, "map": 20}


@dataclass(frozen=True)
class Method:
    """One way to label pixels.

    Attributes
    ----------
    title
        In words.
    home, name
        Module and class of the `MapModel`.
    kinds
        Scenes that it reads.
    hides
        Whether it learns from whole tiles, whose test blocks must be blanked; the others learn
        from patches, whose guard keeps them away from test labels.
    """

    title: str
    home: str
    name: str
    kinds: tuple[str, ...]
    hides: bool = False

    def build(self, **options: Any) -> MapModel:
        """A model that has learned nothing."""
        kind = getattr(importlib.import_module(self.home), self.name)
        model: MapModel = kind(**options)
        return model

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> MapModel:
        """A model as `MapModel.state` gave it."""
        kind = getattr(importlib.import_module(self.home), self.name)
        model: MapModel = kind.restore(arrays, facts)
        return model


_ALL = ("rgb", "hyperspectral", "polsar")
METHODS: dict[str, Method] = {
    "dag-rnn": Method(
        "pixel DAG-RNN", "foveate.scenes.dag_rnn_map", "DagRnnMap", ("hyperspectral", "polsar")
    ),
    "pcn": Method(
        "polarimetric convolutional network",
        "foveate.scenes.polarimetric_map", "PcnMap", ("polsar",), hides=True,
    ),
    "complex-gan": Method(
        "complex-valued GAN", "foveate.scenes.complex_gan_map", "ComplexGanMap", ("polsar",)
    ),
    "lateral-inhibition": Method(
        "dilated network with lateral inhibition",
        "foveate.scenes.lateral_inhibition_map", "LateralInhibitionMap", ("rgb",), hides=True,
    ),
    "cnn": Method("patch CNN", "foveate.scenes.patch_model", "PatchCnnMap", _ALL),
    "svm": Method("RBF SVM", "foveate.scenes.pixel_baselines", "SvmMap", _ALL),
    "forest": Method("random forest", "foveate.scenes.pixel_baselines", "ForestMap", _ALL),
    "lda": Method("linear discriminant", "foveate.scenes.pixel_baselines", "LdaMap", _ALL),
    "wishart": Method("Wishart classifier", "foveate.scenes.wishart", "WishartMap", ("polsar",)),
}  # fmt: skip

_CANDIDATES = {
    "hyperspectral": ("svm", "dag-rnn", "cnn"),
    "polsar": ("wishart", "dag-rnn", "pcn"),
    "rgb": ("svm", "cnn", "lateral-inhibition"),
}
BASELINES = {"hyperspectral": ("svm", "lda"), "polsar": ("wishart", "svm"), "rgb": ("svm", "lda")}


@dataclass(frozen=True)
class MapSettings:
    """How a scene is mapped.

    Attributes
    ----------
    method
        A name of `METHODS`, or ``auto``: the best of a few on validation blocks that are cut out
        of the training blocks.
    train
        Labels that the method may learn from: a number of each class (``"100"``), a share of each
        class (``"10%"``), or None for all. What is left is used to test.
    block
        Side of the blocks of the disjoint split in pixels; None chooses it by geometry alone.
    seed
        Of the draws and of the weights.
    tile
        Side of a tile in pixels.
    threads
        Tiles at a time, and threads of a training.
    format
        Of the map: ``tif``, ``png``, ``envi``; ``auto`` is GeoTIFF where rasterio is installed.
    estimate
        False skips the estimate of accuracy and only maps.
    """

    method: str = "auto"
    train: str | None = None
    block: int | None = None
    seed: int = 0
    tile: int = 256
    threads: int = 0
    format: Format = "auto"
    estimate: bool = True

    def check(self, kind: str | None = None) -> None:
        """One sentence for each value that cannot be.

        Raises
        ------
        FoveateError
            A value is out of range, or the method does not read scenes of this kind.
        """
        known = ["auto", *METHODS]
        if self.method not in known:
            raise FoveateError(
                f"there is no method {self.method!r}; --method is one of {', '.join(known)}"
            )
        if kind is not None and self.method != "auto" and kind not in METHODS[self.method].kinds:
            fit = ", ".join(name for name, one in METHODS.items() if kind in one.kinds)
            raise FoveateError(
                f"the method {self.method} reads {' and '.join(METHODS[self.method].kinds)} "
                f"scenes, and this one is {kind}; choose one of {fit}"
            )
        self.budget({1: 1})
        if self.block is not None and self.block < 2:
            raise FoveateError(f"--block is {self.block}; expected at least 2 pixels")
        if not 16 <= self.tile <= 4096:
            raise FoveateError(f"--tile is {self.tile}; expected 16 to 4096 pixels")
        if not 0 <= self.seed < 1 << 32:
            raise FoveateError(f"--seed is {self.seed}; expected 0 to {(1 << 32) - 1}")
        if self.threads < 0:
            raise FoveateError(f"--threads is {self.threads}; expected at least 1")
        if self.format not in FORMATS:
            raise FoveateError(
                f"there is no format {self.format!r}; --format is one of {', '.join(FORMATS)}"
            )

    def budget(self, counts: Mapping[int, int]) -> dict[int, int] | None:
        """Labels of each class that may be learned from; None where all may.

        Raises
        ------
        FoveateError
            `train` is neither a number nor a share.
        """
        if self.train is None:
            return None
        text = self.train.strip()
        try:
            if text.endswith("%"):
                share = float(text[:-1]) / 100
                if not 0 < share < 1:
                    raise ValueError
                return {code: max(1, round(share * count)) for code, count in counts.items()}
            number = int(text)
            if number < 1:
                raise ValueError
        except ValueError:
            raise FoveateError(
                f"--train is {self.train!r}; expected labels per class (100) or a share (10%)"
            ) from None
        return {code: min(number, count) for code, count in counts.items()}

    @property
    def workers(self) -> int:
        """Threads, at least one."""
        return self.threads or os.cpu_count() or 1


@dataclass(frozen=True)
class MapResult:
    """A finished map.

    Attributes
    ----------
    folder
        Map, confidence, ``classes.csv``, ``summary.json`` and ``report.html``.
    summary
        Content of ``summary.json``.
    reused
        Whether it was there already.
    """

    folder: Path
    summary: dict[str, Any]
    reused: bool = False


def map_scene(
    scene: Path | str | Scene,
    labels: Path | str | SceneLabels | None = None,
    out: Path | str | None = None,
    *,
    settings: MapSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> MapResult:
    """Label every pixel of a scene.

    Parameters
    ----------
    scene
        A file or folder that `open_scene` reads (ENVI, ``.mat``, GeoTIFF, PolSARpro folder,
        ``.npz``, picture), or a `Scene`.
    labels
        A raster, a CSV of points or a GeoJSON of polygons (`read_labels`), or `SceneLabels`; None
        takes those inside the scene's file.
    out
        Folder for the results (default: ``foveate-out/NAME``).
    settings
        How.
    force
        Compute again what is there.
    progress
        Told what is going on.

    Returns
    -------
    MapResult

    Raises
    ------
    FoveateError
        The scene or the labels cannot be read, do not fit each other, or name one class only.
    """
    settings = settings or MapSettings()
    settings.check()
    opened = scene if isinstance(scene, Scene) else open_scene(Path(scene))
    settings.check(opened.kind)
    known, notes = _with_data(opened, _labels(opened, labels))
    folder = Path(out) if out is not None else Path("foveate-out") / opened.name
    run = _Run(opened, known, settings, folder, progress or (lambda what, done, total: None))
    run.notes += notes
    kept = None if force else run.finished()
    if kept is not None:
        return MapResult(folder, kept, reused=True)
    run.check_folder(labels)
    with made_folder(folder):
        return MapResult(folder, run.go(force))


def _labels(scene: Scene, labels: Path | str | SceneLabels | None) -> SceneLabels:
    if labels is None:
        if scene.labels is None:
            raise FoveateError(
                f"{scene.name} carries no labels; name a raster, a CSV of points or a GeoJSON of "
                "polygons with --labels"
            )
        found = scene.labels
    elif isinstance(labels, SceneLabels):
        found = labels
    else:
        found = name_classes(read_labels(Path(labels), scene))
    if found.shape != (scene.height, scene.width):
        raise FoveateError(
            f"the labels are of {found.shape[0]} x {found.shape[1]} pixels and the scene "
            f"{scene.name} has {scene.height} x {scene.width}; give labels of the same grid"
        )
    return _of_two_classes(found, found.source or "the labels")


def _of_two_classes(labels: SceneLabels, what: str) -> SceneLabels:
    if len(labels.classes) < 2:
        named = ", ".join(labels.name(code) for code in labels.classes) or "none"
        raise FoveateError(
            f"{what} name {len(labels.classes)} class ({named}); a map needs at least two, label "
            "some pixels of another"
        )
    return labels


def _with_data(scene: Scene, labels: SceneLabels) -> tuple[SceneLabels, list[str]]:
    """The labels of pixels that have data: nothing is to be learned from the others."""
    if scene.valid is None:
        return labels, []
    rows, columns = labels.coordinates.T
    tile = rows.astype(np.int64) // _LOOK * (scene.width // _LOOK + 1) + columns // _LOOK
    order = np.argsort(tile, kind="stable")
    keep = np.ones(len(labels), dtype=np.bool_)
    for group in np.split(order, np.flatnonzero(np.diff(tile[order])) + 1):
        row, column = (int(rows[group].min()), int(columns[group].min()))
        height, width = int(rows[group].max()) - row + 1, int(columns[group].max()) - column + 1
        valid = scene.read_valid(Window(row, column, height, width))
        keep[group] = valid[rows[group] - row, columns[group] - column]
    if keep.all():
        return labels, []
    left = int((~keep).sum())
    what = f"where the scene {scene.name} has data, {labels.source or 'the labels'}"
    kept = _of_two_classes(labels.subset(keep), what)
    return kept, [f"{left:,} labelled pixels have no data in the scene and were left out"]


# ------------------------------------------------------------------------------ the run


class _Run:
    """One scene on its way to a map."""

    def __init__(
        self,
        scene: Scene,
        labels: SceneLabels,
        settings: MapSettings,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.scene, self.labels, self.settings = scene, labels, settings
        self.folder, self.progress = folder, progress
        self.started = time.perf_counter()
        self.format: Literal["tif", "png", "envi"] = choose_format(settings.format, labels, scene)
        self.notes: list[str] = []
        self.budget = settings.budget(labels.counts())
        self.mark = self.fingerprint()
        self.work = folder / _UNFINISHED
        self.ledger = self.work / f"measured-{self.mark[:12]}.json"
        self.pieces: dict[str, Any] = {}
        parts = [*(["choose"] if settings.method == "auto" else []), "final", "map"]
        if settings.estimate:
            parts += ["disjoint", "random"]
            parts += ["baseline"] * len(self.baselines(settings.method))
        self.units, self.done = sum(_UNITS[part] for part in parts), 0

    def fingerprint(self) -> str:
        """Of everything that decides the result; of large files only size and time."""
        labels = hashlib.sha256()
        for array in (self.labels.coordinates, self.labels.codes):
            labels.update(np.ascontiguousarray(array).tobytes())
        one = dataclasses.asdict(self.settings)
        files: list[Any] = []
        if self.scene.path is not None:
            for file in _files_of(self.scene.path):
                about = file.stat()
                files.append((file.name, about.st_size, about.st_mtime_ns))
        else:
            files.append(hashlib.sha256(self.scene.read().tobytes()).hexdigest())
        parts = (
            *(foveate.__version__, torch.__version__, self.scene.shape, files),
            *(labels.hexdigest(), sorted(self.labels.names.items()), sorted(one.items())),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def finished(self) -> dict[str, Any] | None:
        summary = read_json(self.folder / "summary.json")
        if summary.get("fingerprint") != self.mark:
            return None
        files = [*summary["files"], "report.html"]
        return summary if all((self.folder / name).is_file() for name in files) else None

    def check_folder(self, labels: object) -> None:
        """Refuse to overwrite what is not ours, the scene and its labels before all."""
        given = [] if self.scene.path is None else _files_of(self.scene.path)
        given += [Path(labels)] if isinstance(labels, (str, Path)) else []
        for path in given:
            if path.name in _OUTPUTS and path.resolve().parent == self.folder.resolve():
                raise FoveateError(
                    f"{path} would be overwritten by the map of it; choose another folder with "
                    "--out"
                )
        if self.work.exists() and not self.work.is_dir():
            raise FoveateError(
                f"{self.work} is a file where foveate map keeps its unfinished tiles; choose "
                "another folder with --out"
            )
        summary = self.folder / "summary.json"
        if summary.exists() and read_json(summary).get("command") != "map":
            raise FoveateError(
                f"{summary} would be overwritten and is not a result of foveate map; choose "
                "another folder with --out"
            )

    def tell(self, what: str, part: str = "", share: float = 0.0) -> None:
        more = round(share * _UNITS[part] * 10) if part else 0
        self.progress(what, min(self.done * 10 + more, self.units * 10), self.units * 10)

    # -- the way through

    def go(self, force: bool) -> dict[str, Any]:
        tiles = TileStore(self.work, self.mark, self.scene, self.labels.classes, self.settings.tile)
        model_file = self.work / f"model-{self.mark[:12]}.safetensors"
        if force:
            for path in (self.ledger, model_file):
                path.unlink(missing_ok=True)
            tiles.forget()
        kept = read_json(self.ledger)
        self.pieces = kept if kept.get("mark") == self.mark else {"mark": self.mark}
        with torch_threads(self.settings.workers):
            name = self.method()
            split = self.blocks(name)
            chosen = self.final_labels()
            model = self.final(name, chosen, model_file)
            found = self.estimate(name, split, model) if self.settings.estimate else None
        with torch_threads(1):
            self.map(model, tiles)
        self.check_unchanged()
        self.tell("writing the map")
        files, classes = write_outputs(self.folder, self.format, self.scene, self.labels, tiles)
        summary: dict[str, Any] = json.loads(
            json.dumps(
                self.summary(name, split, found, chosen, files, classes, tiles), allow_nan=False
            )
        )
        from foveate.report.map import write_map_page

        write_map_page(self.folder / "report.html", summary, self.scene, self.labels, tiles)
        write_json(self.folder / "summary.json", summary)
        tiles.forget_all()
        return summary

    def check_unchanged(self) -> None:
        """Say so where the scene's files are no longer those that the work began with."""
        if self.scene.path is None:
            return
        try:
            same = self.fingerprint() == self.mark
        except OSError:
            same = False
        if not same:
            raise FoveateError(
                f"the scene {self.scene.path} changed while it was mapped, so this map was not "
                "written; start again when the file is at rest"
            )

    def piece(self, name: str, part: str, what: str, measure: Callable[[], Any]) -> Any:
        """One measurement, from the ledger where it is there already."""
        self.tell(what)
        if name not in self.pieces:
            self.pieces[name] = json.loads(json.dumps(measure(), allow_nan=False))
            self.work.mkdir(parents=True, exist_ok=True)
            write_json(self.ledger, self.pieces)
        self.done += _UNITS[part]
        return self.pieces[name]

    # -- the splits

    def guard(self, names: Sequence[str]) -> int:
        """Largest context that any of the methods sees around a training pixel."""
        margins = [METHODS[name].build().margin for name in names if not METHODS[name].hides]
        return max([0, *margins])

    def compared(self, name: str) -> list[str]:
        """The methods that are counted on the same training labels."""
        named = [name, *BASELINES[self.scene.kind]]
        if self.settings.method == "auto":
            named += _CANDIDATES[self.scene.kind]
        return list(dict.fromkeys(named))

    def baselines(self, name: str) -> list[str]:
        """Classical methods to stand beside this one."""
        return [one for one in BASELINES[self.scene.kind] if one != name]

    def blocks(self, name: str) -> Split:
        """The disjoint split; the side of the blocks is chosen by geometry, never by accuracy."""
        guard, short = self.guard(self.compared(name)), min(self.scene.height, self.scene.width)
        if self.settings.block is not None:
            sides = [self.settings.block]
        else:
            least = 2 * guard + 2
            sides = sorted(
                {max(least, round(short / part)) for part in (6, 8, 10, 12, 16)}, reverse=True
            )
        tries: dict[int, Split] = {}
        for side in sides:
            with contextlib.suppress(FoveateError):  # no class has labels on both sides
                one = checkerboard_split(self.labels, side, guard, least=self.least())
                if _blocks(self.labels, one.test, side) > 1:  # else there is no interval
                    tries[side] = one
        # The largest blocks that keep the most classes: `sides` falls, and max takes the first.
        kept = {side: len(_classes(self.labels, one.train)) for side, one in tries.items()}
        if max(kept.values(), default=0) >= 2:
            self.side = max(tries, key=lambda side: kept[side])
            return tries[self.side]
        if not self.settings.estimate:
            self.side = sides[0]
            none = np.zeros(0, dtype=np.int64)
            return Split(none, none, none, kind="none")
        raise FoveateError(
            f"the labels lie too close together for blocks of {sides[-1]} pixels with a guard of "
            f"{guard}: fewer than two classes have {self.least()} labels on both sides; give "
            "labels in more places, a smaller --block, or --no-estimate for a map alone"
        )

    def least(self) -> int:
        """Labels that a class needs on both sides: fewer where few are given at all."""
        counts = sorted(self.labels.counts().values())
        return max(2, min(_LEAST, counts[len(counts) // 2] // 6))

    def training(self, split: Split) -> Indices:
        """Training labels of the disjoint split, within the budget."""
        if self.budget is None:
            return split.train
        return _drawn(self.labels, split.train, self.budget, self.settings.seed)

    def final_labels(self) -> Indices:
        """Labels that the map itself learns from."""
        every = np.arange(len(self.labels), dtype=np.int64)
        if self.budget is None:
            return every
        return _drawn(self.labels, every, self.budget, self.settings.seed)

    # -- what is measured

    def method(self) -> str:
        """The method by name; `auto` asks validation blocks inside the training blocks."""
        if self.settings.method != "auto":
            return self.settings.method
        chosen = self.piece("choose", "choose", "choosing a method", self.choose)
        if not chosen["scores"]:
            self.notes.append(
                "too few labels to choose a method by: one of the usual ones was taken"
            )
        return str(chosen["method"])

    def choose(self) -> dict[str, Any]:
        names = _CANDIDATES[self.scene.kind]
        split = self.blocks(names[0])
        mine = self.labels.subset(self.training(split))
        # Every other row of training blocks: such blocks meet at corners only.
        held = mine.coordinates[:, 0] // self.side % 2 == 1
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
        if len(train) and len(test):
            near = cKDTree(mine.coordinates[test]).query(mine.coordinates[train], p=np.inf)[0]
            train = train[near > self.guard(names)]
        test = test[np.isin(mine.codes[test], mine.codes[train])]
        if len(_classes(mine, train)) < 2 or _blocks(mine, test, self.side) < 2:
            return {"method": names[1], "scores": {}}
        apart = test_blocks(mine.shape, self.side)

        def unseen(window: Window) -> npt.NDArray[np.bool_]:
            rows = np.arange(window.row, window.row + window.height) // self.side % 2 == 1
            mask: npt.NDArray[np.bool_] = apart(window) | rows[:, None]
            return mask

        scores = {}
        for place, name in enumerate(names):
            self.tell(f"trying {METHODS[name].title}", "choose", place / len(names))
            hidden = unseen if METHODS[name].hides else None
            counted = self.count(name, mine, train, test, hidden, "choose", place / len(names))
            scores[name] = counted["oa"]
        return {"method": max(scores, key=lambda name: scores[name]), "scores": scores}

    def count(
        self,
        name: str,
        labels: SceneLabels,
        train: Indices,
        test: Indices,
        hidden: Callable[[Window], npt.NDArray[np.bool_]] | None,
        part: str,
        begin: float,
    ) -> dict[str, Any]:
        """Train on some labels, count on others."""
        began = time.perf_counter()
        model = METHODS[name].build()
        title = METHODS[name].title
        self.tell(f"{title}: learning", part, begin)
        model.fit(
            self.scene, labels.subset(train), seed=self.settings.seed, hidden=hidden,
            progress=lambda done, total: self.tell(f"{title}: learning", part, 0.8 * done / total),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        return self.scored(name, model, labels, train, test, part, seconds)

    def scored(
        self,
        name: str,
        model: MapModel,
        labels: SceneLabels,
        train: Indices,
        test: Indices,
        part: str,
        seconds: float,
    ) -> dict[str, Any]:
        """Count a model that has learned from `train`."""
        began, title = time.perf_counter(), METHODS[name].title
        if len(test) > _TEST_PIXELS:
            some = np.random.default_rng(self.settings.seed).choice(
                len(test), _TEST_PIXELS, replace=False
            )
            test = test[np.sort(some)]
        self.tell(f"{title}: counting", part, 0.8)
        truth, where = labels.codes[test], labels.coordinates[test]
        codes, sure = predict_points(model, self.scene, where, tile=self.settings.tile)
        accuracy = oa_aa_kappa(truth, codes)
        classes = sorted(set(labels.codes[train].tolist()) | set(truth.tolist()))
        spread = block_bootstrap(truth, codes, where, block=self.side, seed=self.settings.seed)
        right = codes == truth
        return {
            "method": name,
            "title": title,
            "train": len(train),
            "test": len(test),
            "oa": accuracy.oa,
            "aa": accuracy.aa,
            "kappa": accuracy.kappa,
            "intervals": {key: list(getattr(spread, key)) for key in ("oa", "aa", "kappa")},
            "test_blocks": spread.blocks,
            "classes": classes,
            "confusion": confusion(truth, codes, classes).tolist(),
            "sure_right": float(sure[right].mean()) if right.any() else None,
            "sure_wrong": float(sure[~right].mean()) if (~right).any() else None,
            "seconds_learning": seconds,
            "seconds_counting": time.perf_counter() - began,
        }

    def estimate(self, name: str, split: Split, final: MapModel) -> dict[str, Any]:
        """Accuracy on blocks apart, of the method and of baselines, and on random pixels.

        Within a budget, the labels of the random split are those of the map: its model is counted.
        """
        train, seed = self.training(split), self.settings.seed
        apart = test_blocks(self.labels.shape, self.side)

        def counted(part: str, one: str) -> Any:
            hidden = apart if METHODS[one].hides else None
            count = functools.partial(
                self.count, one, self.labels, train, split.test, hidden, part, 0.0
            )
            return self.piece(f"{part}-{one}", part, METHODS[one].title, count)

        found: dict[str, Any] = {
            "baselines": [counted("baseline", one) for one in self.baselines(name)],
            "disjoint": counted("disjoint", name),
        }
        per_class = _counts(self.labels, train)
        some = _drawn(
            self.labels, np.arange(len(self.labels), dtype=np.int64),
            self.budget or per_class, seed,
        )  # fmt: skip
        rest = np.setdiff1d(np.arange(len(self.labels)), some)
        if _blocks(self.labels, rest, self.side) > 1:
            count = functools.partial(
                self.count, name, self.labels, some, rest, None, "random", 0.0
            )
            if self.budget is not None:
                count = functools.partial(
                    self.scored, name, final, self.labels, some, rest, "random", 0.0
                )
            found["random"] = self.piece("random", "random", METHODS[name].title, count)
        else:
            rest = rest[:0]
            self.done += _UNITS["random"]
        patch = 2 * METHODS[name].build().margin + 1
        found["leakage"] = {
            "patch": patch,
            "disjoint": _leak(self.labels, train, split.test, patch, METHODS[name].hides),
            "random": _leak(self.labels, some, rest, patch, False) if len(rest) else None,
        }
        return found

    def final(self, name: str, chosen: Indices, file: Path) -> MapModel:
        """The model of the map, from its file where it is there."""
        method = METHODS[name]
        kept = _load_model(method, file, self.mark)
        if kept is None:
            self.tell(f"{method.title}: learning from {len(chosen):,} labels")
            kept = method.build()
            kept.fit(
                self.scene, self.labels.subset(chosen), seed=self.settings.seed, hidden=None,
                progress=lambda done, total: self.tell(
                    f"{method.title}: learning from {len(chosen):,} labels", "final", done / total
                ),
            )  # fmt: skip
            self.work.mkdir(parents=True, exist_ok=True)
            _save_model(kept, file, self.mark)
        self.done += _UNITS["final"]
        return kept

    def map(self, model: MapModel, tiles: TileStore) -> None:
        """Every tile that is not there yet, several at a time."""
        todo = tiles.missing(model.stride)
        total = tiles.count
        workers = self.settings.workers

        def one(window: Window) -> tuple[Window, Codes, npt.NDArray[np.float32]]:
            return window, *label_window(model, self.scene, window)

        done = total - len(todo)
        with ThreadPoolExecutor(workers) as pool:
            waiting: Iterator[Window] = iter(todo)
            running: set[Future[tuple[Window, Codes, npt.NDArray[np.float32]]]] = set()
            try:
                while True:
                    for window in waiting:  # never more in memory than are worked on
                        running.add(pool.submit(one, window))
                        if len(running) > workers:
                            break
                    if not running:
                        break
                    ready, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        tiles.put(*future.result())
                        done += 1
                        self.tell(f"mapping, tile {done:,} of {total:,}", "map", done / total)
            finally:
                for future in running:
                    future.cancel()
        self.done += _UNITS["map"]

    # -- what is told

    def summary(
        self,
        name: str,
        split: Split,
        found: dict[str, Any] | None,
        chosen: Indices,
        files: Sequence[str],
        classes: Sequence[Mapping[str, Any]],
        tiles: TileStore,
    ) -> dict[str, Any]:
        left_out = {self.labels.name(code): why for code, why in split.left_out.items()}
        if found is not None and left_out:
            named = ", ".join(left_out)
            self.notes.append(
                f"not in the estimate, because they have too few labels in one half of the blocks: "
                f"{named}"
            )
        counts = self.labels.counts()
        return {
            "command": "map",
            "foveate": foveate.__version__,
            "fingerprint": self.mark,
            "scene": {
                "name": self.scene.name,
                "kind": self.scene.kind,
                "height": self.scene.height,
                "width": self.scene.width,
                "bands": list(self.scene.band_names),
                "crs": self.scene.georeference.crs if self.scene.georeference else None,
            },
            "labels": {
                "source": self.labels.source,
                "pixels": len(self.labels),
                "counts": {self.labels.name(code): count for code, count in counts.items()},
                "used": len(chosen),
            },
            "method": name,
            "title": METHODS[name].title,
            "chosen": self.pieces.get("choose"),
            "blocks": {"side": self.side, "guard": split.guard, "left_out": left_out},
            "estimate": found,
            "classes": list(classes),
            "unsure": tiles.unsure(),
            "files": list(files),
            "format": self.format,
            "notes": self.notes,
            "settings": dataclasses.asdict(self.settings),
            "seconds": time.perf_counter() - self.started,
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }


# ------------------------------------------------------------------------------ small things


def _files_of(path: Path) -> list[Path]:
    """The files that a scene is read from; others beside them may come and go."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    beside = (path.with_suffix(".hdr"), *(path.with_name(path.name + s) for s in _BESIDE))
    return [path, *(file for file in beside if file.is_file() and file != path)]


def _blocks(labels: SceneLabels, index: Indices, side: int) -> int:
    """Number of blocks in which these labels lie."""
    return len(np.unique(labels.coordinates[index] // side, axis=0))


def _classes(labels: SceneLabels, index: Indices) -> set[int]:
    return set(labels.codes[index].tolist())


def _counts(labels: SceneLabels, index: Indices) -> dict[int, int]:
    codes, counts = np.unique(labels.codes[index], return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))


def _drawn(labels: SceneLabels, index: Indices, wanted: Mapping[int, int], seed: int) -> Indices:
    """So many of each class, or all that there are."""
    parts = []
    for code, count in sorted(wanted.items()):
        mine = index[labels.codes[index] == code]
        if len(mine):
            parts.append(draw_per_class(labels, mine, min(count, len(mine)), seed))
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _leak(
    labels: SceneLabels, train: Indices, test: Indices, patch: int, hides: bool
) -> dict[str, Any]:
    found = dataclasses.asdict(leakage_report(labels, (train, test), patch))
    return {**found, "hidden": hides}


def _save_model(model: MapModel, file: Path, mark: str) -> None:
    from safetensors.numpy import save_file

    from foveate.files import write_whole

    arrays, facts = model.state()
    with write_whole(file) as temporary:
        save_file(
            {key: np.ascontiguousarray(value) for key, value in arrays.items()},
            temporary,
            metadata={"mark": mark, "facts": json.dumps(facts)},
        )


def _load_model(method: Method, file: Path, mark: str) -> MapModel | None:
    """The model of this very run, or None."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, "numpy") as content:
            about = content.metadata() or {}
            if about.get("mark") != mark:
                return None
            arrays = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            return method.restore(arrays, json.loads(about["facts"]))
    except (SafetensorError, FoveateError, OSError, ValueError, KeyError, TypeError):
        return None  # damaged: it is trained again
