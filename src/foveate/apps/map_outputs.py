"""Tiles of a map as they are finished, and the files that a map is handed over in.

A :class:`TileStore` keeps class codes and confidence on disk, row by row in the order of the
scene, and a byte for each tile that says whether it is there. A tile counts as there only after
its pixels are: a run that is killed loses the tiles in flight and nothing else. Memory holds one
tile at a time, whatever the scene's size.

Confidence is the probability of the class that was chosen, in percent, 1 to 100; 0 means that the
scene has no data there.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.scenes.map_model import tile_windows

__all__ = ["FORMATS", "Format", "TileStore", "choose_format", "class_colours", "write_outputs"]

Format = Literal["auto", "tif", "png", "envi"]
FORMATS: tuple[Format, ...] = ("auto", "tif", "png", "envi")
_PREVIEW = 1400  # pixels of the longer side
_PNG_PIXELS = 100_000_000
_LEFTOVERS = ("codes-", "confidence-", "tiles-", "measured-", "model-", ".partial-")

# Twenty colours that stay apart side by side, light enough for black text.
_PALETTE = (
    (78, 121, 167), (242, 142, 43), (225, 87, 89), (118, 183, 178), (89, 161, 79),
    (237, 201, 72), (176, 122, 161), (255, 157, 167), (156, 117, 95), (186, 176, 172),
    (31, 119, 140), (200, 82, 0), (140, 30, 60), (150, 206, 180), (30, 110, 40),
    (160, 140, 20), (110, 64, 170), (214, 39, 140), (92, 64, 51), (90, 90, 90),
)  # fmt: skip

Maps = npt.NDArray[np.uint8]


def choose_format(
    wanted: Format, labels: SceneLabels, scene: Scene
) -> Literal["tif", "png", "envi"]:
    """The format to write; ``auto`` is GeoTIFF where rasterio is installed, else ENVI.

    Whatever would keep the files from being written is said here, before hours of work.

    Raises
    ------
    FoveateError
        The format cannot be written here.
    """
    import importlib.util

    if max(labels.classes) > 255:
        raise FoveateError(
            f"the labels go up to code {max(labels.classes)}; a map holds codes 1 to 255, renumber "
            "the classes"
        )
    has_rasterio = importlib.util.find_spec("rasterio") is not None
    if wanted == "auto":
        wanted = "tif" if has_rasterio else "envi"
    elif wanted == "tif" and not has_rasterio:
        raise FoveateError(
            "--format tif needs rasterio, which is not installed; run `pip install "
            "'foveate[remote]'`, or take --format envi"
        )
    place = scene.georeference
    if wanted == "tif" and place is not None and place.crs:
        from foveate.datasets.geotiff import knows_crs

        if not knows_crs(place.crs):
            raise FoveateError(
                f"the scene {scene.name} names the coordinate system {place.crs[:60]!r}, which "
                "cannot be written to a GeoTIFF; correct it, or take --format envi"
            )
    if wanted == "envi" and place is not None:
        a, b, _, d, e, _ = place.transform
        if b or d or a < 0 or e > 0:
            raise FoveateError(
                f"the scene {scene.name} is turned or mirrored on the map, which an ENVI header "
                "cannot say; take --format tif or png"
            )
    if wanted == "png" and scene.height * scene.width > _PNG_PIXELS:
        raise FoveateError(
            f"a PNG of {scene.height} x {scene.width} pixels would have to be held in memory; take "
            "--format tif or envi for scenes of this size"
        )
    return wanted


def class_colours(labels: SceneLabels) -> dict[int, tuple[int, int, int]]:
    """The colour of each class: its own, or one of twenty that stay apart."""
    return {
        code: labels.colours.get(code, _PALETTE[place % len(_PALETTE)])
        for place, code in enumerate(labels.classes)
    }


class TileStore:
    """Codes and confidence of a scene on disk, and which tiles are there.

    Parameters
    ----------
    folder
        Where the two rasters are kept while the map is made.
    mark
        What decides the result; tiles of another mark are never taken.
    scene
        Gives the extent.
    classes
        Codes of the labels.
    tile
        Side of a tile in pixels; raised to a multiple of the model's stride.
    """

    def __init__(
        self, folder: Path, mark: str, scene: Scene, classes: Sequence[int], tile: int
    ) -> None:
        self.folder, self.scene, self.classes = folder, scene, tuple(classes)
        self.tile, self.shape = tile, (scene.height, scene.width)
        self._files = {
            what: folder / f"{what}-{mark[:12]}.u8" for what in ("codes", "confidence", "tiles")
        }

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self._all)

    def missing(self, stride: int) -> list[Window]:
        """Tiles that are not there yet; makes the files."""
        self._all = list(tile_windows(*self.shape, self.tile, stride))
        self._place = {window: place for place, window in enumerate(self._all)}
        self.folder.mkdir(parents=True, exist_ok=True)
        size = self.shape[0] * self.shape[1]
        for what, expected in (("codes", size), ("confidence", size), ("tiles", len(self._all))):
            path = self._files[what]
            if not path.is_file() or path.stat().st_size != expected:
                try:
                    with path.open("wb") as file:
                        # Room on the disk, not a promise: a full disk would end the process
                        # when the mapped file is written to.
                        if hasattr(os, "posix_fallocate"):
                            os.posix_fallocate(file.fileno(), 0, expected)
                        file.truncate(expected)
                except OSError as error:
                    path.unlink(missing_ok=True)
                    raise FoveateError(
                        f"cannot keep the map in {self.folder}: {error.strerror or error}; make "
                        "room, or choose another folder with --out"
                    ) from error
                if what != "tiles":
                    self._files["tiles"].unlink(missing_ok=True)
        there = np.fromfile(self._files["tiles"], dtype=np.uint8)
        return [window for window, is_there in zip(self._all, there, strict=True) if not is_there]

    def put(
        self, window: Window, codes: npt.NDArray[np.int16], sure: npt.NDArray[np.float32]
    ) -> None:
        """Keep one tile: codes ``(h, w)``, and the probability of each."""
        percent = np.clip(np.rint(100 * sure), 1, 100)
        valid = self.scene.read_valid(window)
        codes, percent = np.where(valid, codes, 0), np.where(valid, percent, 0)
        for what, values in (("codes", codes), ("confidence", percent)):
            raster = self._opened(what, "r+")
            rows, columns = _slices(window)
            raster[rows, columns] = values
            raster.flush()
            del raster
        try:
            with self._files["tiles"].open("r+b") as file:
                file.seek(self._place[window])
                file.write(b"\x01")
        except FileNotFoundError:
            self._opened("tiles", "r")  # its sentence

    def raster(self, what: Literal["codes", "confidence"]) -> Maps:
        """All of it, ``(H, W)``, as a memory map that is only read."""
        return self._opened(what, "r")

    def _opened(self, what: str, mode: Literal["r", "r+"]) -> np.memmap[Any, np.dtype[np.uint8]]:
        try:
            return np.memmap(self._files[what], np.uint8, mode, shape=self.shape)
        except (OSError, ValueError) as error:
            raise FoveateError(
                f"the unfinished map in {self.folder} was taken away while it was made; if another "
                "foveate map works on this folder, wait for it, or choose another with --out"
            ) from error

    def read(self, what: Literal["codes", "confidence"], window: Window) -> Maps:
        """Codes (0: no data) or percent of a window, ``(h, w)``."""
        rows, columns = _slices(window)
        return np.array(self.raster(what)[rows, columns])

    def thinned(self, what: Literal["codes", "confidence"], longest: int = _PREVIEW) -> Maps:
        """Every n-th pixel of every n-th row, so that no side is longer than `longest`."""
        step = max(1, -(-max(self.shape) // longest))
        return np.array(self.raster(what)[::step, ::step])

    def bands(self) -> Iterator[tuple[Window, Maps, Maps]]:
        """The map from top to bottom in strips of whole rows: window, codes, confidence."""
        height, width = self.shape
        rows = max(1, min(height, (1 << 24) // width))
        for row in range(0, height, rows):
            window = Window(row, 0, min(rows, height - row), width)
            yield window, self.read("codes", window), self.read("confidence", window)

    def unsure(self) -> dict[str, Any]:
        """Pixels of each class, and how sure they are."""
        pixels = np.zeros(256, dtype=np.int64)
        histogram = np.zeros(101, dtype=np.int64)
        total = np.zeros(256, dtype=np.float64)
        for _, codes, percent in self.bands():
            pixels += np.bincount(codes.ravel(), minlength=256)
            histogram += np.bincount(percent.ravel(), minlength=101)
            total += np.bincount(codes.ravel(), percent.ravel(), minlength=256)
        mapped = int(pixels[1:].sum())
        return {
            "pixels": {int(code): int(pixels[code]) for code in self.classes},
            "confidence": {
                int(code): float(total[code] / pixels[code]) if pixels[code] else None
                for code in self.classes
            },
            "mapped": mapped,
            "empty": int(pixels[0]),
            "below_half": int(histogram[1:50].sum()),
            "histogram": histogram.tolist(),
        }

    def forget(self) -> None:
        """Remove the files of this map."""
        for path in self._files.values():
            path.unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Remove all that runs with these or other settings have left unfinished."""
        for path in list(self.folder.glob("*")):
            if path.name.startswith(_LEFTOVERS):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def write_outputs(
    folder: Path,
    format: Literal["tif", "png", "envi"],
    scene: Scene,
    labels: SceneLabels,
    tiles: TileStore,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Write map, confidence, preview and table of classes; names of the files, and the table.

    Each file is written whole or not at all.
    """
    colours = class_colours(labels)
    about = tiles.unsure()
    table = [
        {
            "code": code,
            "name": labels.name(code),
            "colour": "#{:02x}{:02x}{:02x}".format(*colours[code]),
            "labels": labels.counts()[code],
            "pixels": about["pixels"][code],
            "share": about["pixels"][code] / max(1, about["mapped"]),
            "confidence": about["confidence"][code],
        }
        for code in labels.classes
    ]
    names = {code: labels.name(code) for code in labels.classes}
    codes, sure = tiles.raster("codes"), tiles.raster("confidence")
    if format == "tif":
        from foveate.datasets.geotiff import write_geotiff

        place = scene.georeference
        write_geotiff(folder / "map.tif", codes, georeference=place, colours=colours, names=names)
        write_geotiff(folder / "confidence.tif", sure, georeference=place)
        files = ["map.tif", "confidence.tif"]
    elif format == "envi":
        from foveate.datasets.envi import write_envi

        # By lines, so that no more than one is in memory.
        write_envi(
            folder / "map.img", codes, interleave="bil", georeference=scene.georeference,
            class_names=names, colours=colours,
        )  # fmt: skip
        write_envi(
            folder / "confidence.img", sure, interleave="bil", georeference=scene.georeference,
            band_names=["confidence in percent"],
        )  # fmt: skip
        files = ["map.img", "map.hdr", "confidence.img", "confidence.hdr"]
    else:
        files = _write_pictures(folder, tiles, colours)
    if format != "png":
        _write_png(folder / "map.png", tiles.thinned("codes"), colours)
        files.append("map.png")
    path = folder / "classes.csv"
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        rows.writeheader()
        rows.writerows(table)
    return [*files, "classes.csv"], table


def _write_pictures(
    folder: Path, tiles: TileStore, colours: Mapping[int, tuple[int, int, int]]
) -> list[str]:
    whole = Window(0, 0, *tiles.shape)
    _write_png(folder / "map.png", tiles.read("codes", whole), colours)
    _write_png(folder / "confidence.png", tiles.read("confidence", whole), None)
    return ["map.png", "confidence.png"]


def _write_png(
    path: Path, values: Maps, colours: Mapping[int, tuple[int, int, int]] | None
) -> None:
    """Codes with a palette (pixel values are the codes), or plain grey."""
    from PIL import Image

    picture = Image.fromarray(values)
    if colours is not None:
        picture = picture.copy()
        palette = np.zeros((256, 3), dtype=np.uint8)
        for code, colour in colours.items():
            palette[code] = colour
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(palette.tobytes())
    with write_whole(path) as temporary:
        picture.save(temporary, format="PNG", optimize=False)


def _slices(window: Window) -> tuple[slice, slice]:
    return (
        slice(window.row, window.row + window.height),
        slice(window.column, window.column + window.width),
    )
