"""Open a scene, whatever it is stored as.

| what | how it is recognised | read by |
|---|---|---|
| PolSAR | folder T3, C3 or S2; ``.npz`` with ``T``; complex ``.mat`` | `foveate.datasets.polsar` |
| hyperspectral cube | MATLAB ``.mat``, ``.npz`` | `foveate.datasets.hyperspectral` |
| ENVI raster | ``.hdr``, or a file with an ENVI header beside it | `foveate.datasets.envi` |
| GeoTIFF | TIFF's first bytes | `foveate.datasets.geotiff` |
| picture | first bytes of PNG, JPEG or BMP | Pillow |

The first bytes decide before the name does, so that a file with a wrong suffix opens all the same.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from foveate.datasets.scene import Scene
from foveate.errors import FoveateError

__all__ = ["open_scene"]

_MAX_PIXELS = 1 << 27  # a picture is decoded whole: 400 MB
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "picture"),
    (b"\xff\xd8\xff", "picture"),
    (b"BM", "picture"),
    *((magic, "tiff") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (b"PK\x03\x04", "npz"),
    (b"MATLAB ", "mat"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
)
_READ = "a folder T3, C3 or S2, or a file .mat, .npz, .hdr, .img, .dat, .tif, .png, .jpg or .bmp"


def open_scene(path: Path | str) -> Scene:
    """Open a scene of any kind that foveate reads; see the table above.

    Raises
    ------
    FoveateError
        There is nothing at `path`, or nothing that is known, or its reader refuses it.
    """
    path = Path(path)
    if path.is_dir():
        from foveate.datasets.polsar import open_polsar

        return open_polsar(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise FoveateError(
            f"cannot open the scene {path}: {error.strerror or error}; expected {_READ}"
        ) from error
    suffix = path.suffix.lower()
    # A raw file may begin with any bytes, also with those of another format: the header wins.
    if suffix == ".hdr" or (suffix in (".img", ".dat", ".raw", ".bin") and _has_header(path)):
        from foveate.datasets.envi import open_envi

        return open_envi(path)
    kind = next((kind for magic, kind in _KINDS if start.startswith(magic)), "")
    if kind == "picture":
        return _open_picture(path)
    if kind == "tiff":
        from foveate.datasets.geotiff import open_geotiff

        return open_geotiff(path)
    if kind == "npz":
        return _open_npz(path)
    if kind == "mat" or suffix == ".mat":
        return _open_mat(path)
    if suffix in (".img", ".dat", ".raw", ".bin", ".bsq", ".bil", ".bip", "") and start:
        from foveate.datasets.envi import open_envi

        return open_envi(path)  # or its sentence on the missing header
    raise FoveateError(f"{path} is of no format that foveate reads; expected {_READ}")


def _has_header(path: Path) -> bool:
    from foveate.datasets.envi import envi_pair

    try:
        envi_pair(path)
    except FoveateError:
        return False
    return True


def _open_mat(path: Path) -> Scene:
    from foveate.datasets.hyperspectral import load_hsi
    from foveate.datasets.polsar import load_polsar_mat

    try:
        return load_hsi(path)
    except FoveateError as error:
        try:
            return load_polsar_mat(path)
        except FoveateError:
            raise error from None  # cubes are what such files mostly hold


def _open_npz(path: Path) -> Scene:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FoveateError(f"cannot read {path} ({error}); copy the file again") from error
    if "T" in names:
        from foveate.datasets.polsar import load_polsar_npz

        return load_polsar_npz(path)
    from foveate.datasets.hyperspectral import load_hsi

    return load_hsi(path)


def _open_picture(path: Path) -> Scene:
    """Decode a picture whole; how a camera was held (EXIF) is honoured, transparency ignored."""
    try:
        # Formats by name: Pillow's other readers include ones that start programs.
        with Image.open(path, formats=("JPEG", "PNG", "BMP")) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"it claims {image.width} x {image.height} pixels")
            if image.mode not in ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, not 8 bits; save it as GeoTIFF"
                )
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
    except Exception as error:  # Pillow raises nearly everything on damaged bytes
        raise FoveateError(f"cannot read the picture {path} ({error}); copy it again") from error
    return replace(Scene.from_array(pixels, "rgb", path.stem), path=path)
