"""Labels of a scene from a file: a raster, a table of points, or polygons drawn in a GIS.

Raster (PNG, BMP, TIFF, ``.npy``, ``.npz``, ``.mat``, ENVI): whole numbers of the scene's extent,
0 where nothing is known. Large rasters are read a block of rows at a time.

Table (``.csv``; comma, semicolon or tab): a header with ``row,column,class``, counted from 0, or
``x,y,class`` in the map coordinates of the scene. Classes are codes from 1 or names; with codes a
further column ``name`` names them.

GeoJSON: polygons and points with a property ``class``, ``label`` or ``name``. The coordinates are
in the coordinate system of the scene when that has one, else pixels: x = column, y = row, where
(0, 0) is the upper left corner of the picture and (0.5, 0.5) the centre of its first pixel. A
polygon labels the pixels whose centre is inside by the even-odd rule, so that holes stay empty.

Names without codes are numbered from 1 in alphabetical order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from foveate.datasets.scene import Georeference, Scene
from foveate.datasets.scene_label_shapes import Place, read_geojson, read_table
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = ["read_labels"]

_MAX_PIXELS = 1 << 28  # of a raster that is decoded whole
_BLOCK = 1 << 24  # pixels of a raster looked at together
_TRUTH_KEYS = ("gt", "map", "labels", "label", "y")
_READ = ".png, .bmp, .tif, .npy, .npz, .mat, .hdr (ENVI), .csv or .geojson"


def read_labels(
    path: Path | str,
    scene: Scene | tuple[int, int],
    georeference: Georeference | None = None,
    *,
    class_property: str | None = None,
    key: str | None = None,
) -> SceneLabels:
    """Read the labels of a scene.

    Parameters
    ----------
    path
        Raster, table of points or GeoJSON; see this module's text.
    scene
        The scene, or its ``(H, W)``.
    georeference
        Where its pixels lie; the scene's own when None.
    class_property
        GeoJSON property, or column of a table, that holds the class.
    key
        Name of the array in a ``.npz`` or ``.mat`` file that has several.

    Raises
    ------
    FoveateError
        The file is damaged or of no known kind; a raster has another extent than the scene; a
        label lies outside it; a pixel has two classes; there are fewer than two classes.
    """
    path = Path(path)
    if isinstance(scene, Scene):
        shape: tuple[int, int] = (scene.height, scene.width)
        georeference = georeference or scene.georeference
        names = {} if scene.labels is None else scene.labels.names
    else:
        shape, names = (int(scene[0]), int(scene[1])), {}
    place = Place(path, shape, georeference, names)
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            start = file.read(128)
    except OSError as error:
        raise FoveateError(
            f"cannot read the labels {path}: {error.strerror or error}; expected {_READ}"
        ) from error
    if suffix in (".csv", ".tsv", ".txt"):
        labels = read_table(place, class_property)
    elif suffix in (".geojson", ".json"):
        labels = read_geojson(place, class_property)
    elif suffix in (".hdr", ".img", ".dat"):
        labels = _from_envi(place)
    elif start.startswith(b"\x93NUMPY"):
        labels = _from_npy(place)
    elif suffix in (".npz", ".mat") or start.startswith((b"PK\x03\x04", b"MATLAB")):
        labels = _from_arrays(place, key)
    elif start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        labels = _from_tiff(place)
    elif start.startswith((b"\x89PNG", b"BM")):
        labels = _from_picture(place)
    elif start.startswith(b"\xff\xd8\xff"):
        raise FoveateError(
            f"the labels {path} are a JPEG, which changes class numbers; save them as PNG"
        )
    else:
        raise FoveateError(f"the labels {path} are of no format that is read; expected {_READ}")
    if len(labels.classes) < 2:
        found = ", ".join(labels.name(code) for code in labels.classes) or "none"
        raise FoveateError(
            f"the labels {path} have {len(labels.classes)} class ({found}) where at least two "
            "were expected; label pixels of another class too"
        )
    if not labels.names and set(labels.classes) <= names.keys():
        labels = replace(labels, names=names)
    return labels


# Rasters


def _check_extent(place: Place, shape: Sequence[int]) -> None:
    if tuple(shape) != place.shape:
        raise FoveateError(
            f"the labels {place.path} have {' x '.join(map(str, shape))} pixels, but the scene has "
            f"{place.shape[0]} x {place.shape[1]} (rows x columns); give labels of the same extent"
        )


def _from_rows(
    place: Place,
    read: Callable[[int, int], npt.NDArray[Any]],
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> SceneLabels:
    """Labels of a raster of which `read` gives the rows from one to before another."""
    height, width = place.shape
    rows = max(1, _BLOCK // width)
    places, codes = [], []
    for row in range(0, height, rows):
        found = SceneLabels.from_map(read(row, min(row + rows, height)), source=str(place.path))
        places.append(found.coordinates + np.array([row, 0], dtype=np.int32))
        codes.append(found.codes)
    found_codes = np.concatenate(codes)
    present = {int(code) for code in np.unique(found_codes)}
    return SceneLabels(
        np.concatenate(places),
        found_codes,
        place.shape,
        {code: name for code, name in (names or {}).items() if code in present},
        {code: colour for code, colour in (colours or {}).items() if code in present},
        str(place.path),
    )


def _from_array(place: Place, array: npt.NDArray[Any], **facts: Any) -> SceneLabels:
    _check_extent(place, array.shape)
    if array.dtype.kind not in "biuf":
        raise FoveateError(
            f"the labels {place.path} are {array.dtype} where whole numbers were expected"
        )
    return _from_rows(place, lambda first, last: array[first:last], **facts)


def _from_picture(place: Place) -> SceneLabels:
    path = place.path
    colours: dict[int, tuple[int, int, int]] = {}
    try:
        with Image.open(path, formats=("PNG", "BMP")) as image:
            extent, mode = (image.height, image.width), image.mode
            if extent == place.shape and image.width * image.height <= _MAX_PIXELS:
                array = np.array(image)
                palette = image.getpalette("RGB") or [] if mode == "P" else []
                triples = zip(palette[0::3], palette[1::3], palette[2::3], strict=False)
                colours = dict(enumerate(triples))
    except Exception as error:  # Pillow raises nearly everything on damaged bytes
        raise FoveateError(f"cannot read the labels {path} ({error}); copy it again") from error
    _check_extent(place, extent)
    if extent[0] * extent[1] > _MAX_PIXELS:
        raise FoveateError(
            f"the labels {path} have more than {_MAX_PIXELS} pixels; save them as GeoTIFF or ENVI"
        )
    if mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise FoveateError(
            f"the labels {path} are a picture of mode {mode} where class numbers were expected; "
            "save them as grey or with a palette"
        )
    return _from_array(place, array, colours=colours)


def _from_tiff(place: Place) -> SceneLabels:
    from foveate.datasets import geotiff

    path = place.path
    mine = place.georeference
    with geotiff.opened(path) as source:
        _check_extent(place, (source.height, source.width))
        if source.count != 1:
            raise FoveateError(
                f"the labels {path} have {source.count} bands where one of class numbers was "
                "expected"
            )
        other = geotiff.georeference_of(source)
        if mine is not None and other is not None:
            corners = [(0, 0), place.shape]
            apart = [
                abs(number - wanted)
                for corner in corners
                for number, wanted in zip(mine.to_pixel(*other.to_xy(*corner)), corner, strict=True)
            ]
            named = mine.crs.startswith("EPSG:") and other.crs.startswith("EPSG:")
            if max(apart) > 0.5 or (named and mine.crs != other.crs):
                raise FoveateError(
                    f"the labels {path} lie {max(apart):.1f} pixels away from the scene or in "
                    f"another coordinate system ({other.crs[:40]}, the scene's is "
                    f"{mine.crs[:40]}); warp them to the scene"
                )
        colours: dict[int, tuple[int, int, int]] = {}
        if source.colorinterp[0].name == "palette":
            colours = {code: rgba[:3] for code, rgba in source.colormap(1).items()}
        names = {
            int(tag[6:]): text
            for tag, text in source.tags(1).items()
            if re.fullmatch(r"CLASS_\d{1,5}", tag)
        }

        def read(first: int, last: int) -> npt.NDArray[Any]:
            block = source.read(1, window=((first, last), (0, source.width)), masked=True)
            return np.asarray(np.ma.filled(block, 0))

        return _from_rows(place, read, names, colours)


def _from_npy(place: Place) -> SceneLabels:
    try:
        # A map of the file: a header that promises more than the file has is refused here.
        array = np.load(place.path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, TypeError, OverflowError, EOFError, SyntaxError) as error:
        raise FoveateError(
            f"cannot read the labels {place.path} ({error}); save them with numpy.save as an array "
            "of whole numbers"
        ) from error
    return _from_array(place, array)


def _from_arrays(place: Place, key: str | None) -> SceneLabels:
    from foveate.datasets.named_arrays import open_arrays

    file = open_arrays(place.path)
    what = "label map (rows, columns)"
    # One of the right extent if there is one, else the sentence on the extent.
    name = file.choose(what, 2, key=key, extent=place.shape, usual=_TRUTH_KEYS)
    name = name or file.choose(what, 2, usual=_TRUTH_KEYS)
    if name is None:
        raise FoveateError(f"{place.path} has no {what}; its numeric arrays are: {file}")
    return _from_array(place, file.read(name))


def _from_envi(place: Place) -> SceneLabels:
    from foveate.datasets.envi import envi_pair, map_envi
    from foveate.datasets.envi_header import read_envi_header

    header_path, data_path = envi_pair(place.path)
    header = read_envi_header(header_path)
    _check_extent(place, (header.lines, header.samples))
    if header.bands != 1:
        raise FoveateError(
            f"the labels {place.path} have {header.bands} bands where one of class numbers was "
            "expected"
        )
    band = map_envi(data_path, header)[:, :, 0]

    def read(first: int, last: int) -> npt.NDArray[Any]:
        block = np.array(band[first:last])
        if header.no_data is not None:
            block[block == header.no_data] = 0
        return block

    return _from_rows(place, read, header.class_names, header.colours)
