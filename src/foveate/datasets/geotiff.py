"""GeoTIFF scenes, read window by window, and class maps written as GeoTIFF.

Reading and writing is rasterio's (GDAL); it is imported only when a GeoTIFF is met and comes with
the extra ``remote``. Only the TIFF driver is asked, and by the name of an existing file: GDAL's
other drivers and virtual paths stay shut.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.scene import Georeference, Scene, Window
from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = ["georeference_of", "knows_crs", "open_geotiff", "opened", "write_geotiff"]

_MAX_BLOCK_BYTES = 1 << 31  # GDAL takes memory for whole blocks
_MAX_BANDS = 1 << 16
_TRIAL = 64  # side of the squares in which an alpha band is looked at
_ROWS = 256  # rows written at once


@contextlib.contextmanager
def _quiet(rasterio: Any) -> Iterator[None]:
    """A picture without a georeference is nothing to warn about, and not at every window."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _rasterio() -> Any:
    try:
        return importlib.import_module("rasterio")
    except ImportError as error:
        raise FoveateError(
            "GeoTIFF files need rasterio, which is not installed; run pip install 'foveate[remote]'"
        ) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A rasterio dataset of a TIFF file, checked, for the length of a ``with`` block.

    Raises
    ------
    FoveateError
        rasterio is missing; the file is no TIFF, is damaged, holds complex numbers, or is cut
        into blocks too large for memory.
    """
    rasterio = _rasterio()
    if not path.is_file():
        raise FoveateError(f"there is no file {path}; give the path of a GeoTIFF")
    try:
        with _quiet(rasterio):
            dataset = rasterio.open(path, driver="GTiff")
        with dataset as source:
            kinds = {np.dtype(word).kind for word in source.dtypes}
            itemsize = max(np.dtype(word).itemsize for word in source.dtypes)
            block = max(rows * columns for rows, columns in source.block_shapes)
            if source.count > _MAX_BANDS:
                raise ValueError(f"it claims {source.count} bands")
            if not kinds <= set("iuf"):
                raise ValueError(f"it holds {', '.join(source.dtypes)}, not real numbers")
            # Pixel interleave keeps all bands of a block together.
            if block * itemsize * source.count > _MAX_BLOCK_BYTES:
                raise ValueError(
                    f"it is stored in blocks of {block * itemsize * source.count} bytes; "
                    "rewrite it in tiles (gdal_translate -co TILED=YES)"
                )
            yield source
    except FoveateError:
        raise
    except (ValueError, TypeError, IndexError, OSError, rasterio.errors.RasterioError) as error:
        # IndexError: bands are gone, the file was replaced while it was read
        raise FoveateError(
            f"cannot read {path} as a GeoTIFF ({error}); copy the file again"
        ) from error


def georeference_of(source: Any) -> Georeference | None:
    """Where the pixels of an opened dataset lie; None when it does not say."""
    place = source.transform
    if place.is_identity:  # rasterio's answer for "none"
        return None
    numbers = (place.a, place.b, place.c, place.d, place.e, place.f)
    if source.crs is None:
        return Georeference("", numbers)
    code = source.crs.to_epsg()
    return Georeference(f"EPSG:{code}" if code else source.crs.to_wkt(), numbers)


def knows_crs(crs: str) -> bool:
    """Whether a GeoTIFF can hold this coordinate system (`Georeference.crs`).

    Raises
    ------
    FoveateError
        rasterio is missing.
    """
    rasterio = _rasterio()
    try:
        rasterio.crs.CRS.from_user_input(crs)
    except (ValueError, TypeError, rasterio.errors.RasterioError):
        return False
    return True


def _is_mask(source: Any, band: int) -> bool:
    """Whether a band has no values but clear and opaque, in nine places that are looked at.

    GDAL marks the fourth band of any file of bytes as alpha unless its writer forbids it, and so
    near infrared often bears that mark.
    """
    window = _rasterio().windows.Window
    height, width = min(_TRIAL, source.height), min(_TRIAL, source.width)
    dtype = np.dtype(source.dtypes[band - 1])
    opaque = 1 if dtype.kind == "f" else np.iinfo(dtype).max
    for down in (0.0, 0.5, 1.0):
        for across in (0.0, 0.5, 1.0):
            row = int(down * (source.height - height))
            column = int(across * (source.width - width))
            piece = source.read(band, window=window(column, row, width, height))
            if not np.isin(piece, (0, opaque)).all():
                return False
    return True


def open_geotiff(path: Path | str) -> Scene:
    """Open a GeoTIFF as a scene of kind ``rgb`` (three bands of uint8) or ``hyperspectral``.

    An alpha band that is either clear or opaque is no channel; it, a mask, or the file's no-data
    value say which pixels are not `valid`, and numbers equal to the no-data value are
    read as 0.

    Raises
    ------
    FoveateError
        As `opened`.
    """
    path = Path(path)
    with opened(path) as source:
        alpha = [
            kind.name == "alpha" and _is_mask(source, band)
            for band, kind in enumerate(source.colorinterp, 1)
        ]
        bands = [number for number, hidden in enumerate(alpha, 1) if not hidden]
        if not bands:
            raise FoveateError(f"{path} has nothing but an alpha band; give a file with a picture")
        masked = any(alpha) or any(
            "all_valid" not in (flag.name for flag in flags)
            and ("alpha" not in (flag.name for flag in flags) or any(alpha))
            for flags in source.mask_flag_enums
        )
        picture = len(bands) == 3 and all(source.dtypes[band - 1] == "uint8" for band in bands)
        plain = (
            ("red", "green", "blue") if picture else [f"band {n}" for n in range(1, 1 + len(bands))]
        )
        names = tuple(source.descriptions[band - 1] or plain[at] for at, band in enumerate(bands))
        height, width, georeference = source.height, source.width, georeference_of(source)

    def reader(window: Window) -> npt.NDArray[np.float32]:
        row, column, rows, columns = window
        with opened(path) as again:
            place = _rasterio().windows.Window(column, row, columns, rows)
            pixels = again.read(bands, window=place, masked=masked)
        filled = np.ma.filled(pixels, 0) if masked else pixels
        return np.ascontiguousarray(filled.transpose(1, 2, 0), dtype=np.float32)

    def valid(window: Window) -> npt.NDArray[np.bool_]:
        row, column, rows, columns = window
        with opened(path) as again:
            place = _rasterio().windows.Window(column, row, columns, rows)
            # A pixel is empty when all of its channels are.
            return np.asarray(again.read_masks(bands, window=place).any(axis=0), dtype=np.bool_)

    return Scene(
        name=path.stem,
        path=path,
        kind="rgb" if picture else "hyperspectral",
        height=height,
        width=width,
        band_names=names,
        reader=reader,
        georeference=georeference,
        valid=valid if masked else None,
    )


def write_geotiff(
    path: Path | str,
    codes: npt.NDArray[np.integer[Any]],
    confidence: npt.NDArray[np.floating[Any]] | None = None,
    *,
    georeference: Georeference | None = None,
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> tuple[Path, ...]:
    """Write a class map, and beside it how sure each pixel is.

    The map is one band of uint8 (uint16 when a code is above 255) in compressed tiles, 0 is "no
    data", `colours` become its colour table and `names` its tags ``CLASS_<code>``. The confidence
    is a file of its own, since all bands of a TIFF have one type: ``<name>_confidence.tif``, one
    band of float32. Both files are written whole, or neither is.

    Parameters
    ----------
    codes
        ``(H, W)``, 0 to 65535; may be a memory map.
    confidence
        ``(H, W)`` in [0, 1], or None.

    Returns
    -------
    tuple of Path
        The files written.

    Raises
    ------
    FoveateError
        rasterio is missing, the arrays do not fit, or a file cannot be written.
    """
    rasterio = _rasterio()
    path = Path(path)
    if codes.ndim != 2 or codes.size == 0 or codes.dtype.kind not in "iu":
        raise FoveateError(
            f"cannot write the class map {path}: {codes.dtype} of shape {codes.shape} where whole "
            "numbers (rows, columns) were expected"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high > 65535:
        raise FoveateError(f"cannot write the class map {path}: codes from {low} to {high}")
    if confidence is not None and confidence.shape != codes.shape:
        raise FoveateError(
            f"cannot write the class map {path}: confidence of shape {confidence.shape} for "
            f"codes of {codes.shape}"
        )
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": codes.shape[0],
        "width": codes.shape[1],
        "count": 1,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "bigtiff": "if_safer",
    }
    if georeference is not None:
        profile["transform"] = rasterio.Affine(*georeference.transform)
        if georeference.crs:
            profile["crs"] = georeference.crs

    def fill(target: Path, array: npt.NDArray[Any], dtype: str, *, table: bool) -> None:
        try:
            nodata = 0 if table else None
            with (
                _quiet(rasterio),
                rasterio.open(target, "w", dtype=dtype, nodata=nodata, **profile) as sink,
            ):
                if table:
                    sink.update_tags(1, **{f"CLASS_{code}": word for code, word in words.items()})
                if table and colours:
                    known = {code: (*rgb, 255) for code, rgb in colours.items() if code <= limit}
                    sink.write_colormap(1, {0: (0, 0, 0, 0), **known})
                for row in range(0, len(array), _ROWS):
                    piece = np.ascontiguousarray(array[row : row + _ROWS], dtype=dtype)
                    place = rasterio.windows.Window(0, row, piece.shape[1], piece.shape[0])
                    sink.write(piece, 1, window=place)
        except (OSError, ValueError, rasterio.errors.RasterioError) as error:
            raise FoveateError(f"cannot write the class map {path} ({error})") from error

    words = dict(names or {})
    limit, dtype = (255, "uint8") if high <= 255 else (65535, "uint16")
    second = path.with_name(f"{path.stem}_confidence.tif")
    with contextlib.ExitStack() as stack:
        fill(stack.enter_context(write_whole(path)), codes, dtype, table=True)
        if confidence is None:
            return (path,)
        fill(stack.enter_context(write_whole(second)), confidence, "float32", table=False)
        return path, second
