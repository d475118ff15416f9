"""Pictures, label maps and marked objects: what the picture data sets of this room share.

A file's own header says how large its picture is before a pixel is decoded; larger ones than any
of these data sets holds are refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from foveate.errors import FoveateError

__all__ = ["Objects", "read_label_map", "read_picture"]

MAX_PIXELS = 1 << 26  # ImageNet's largest picture has about 40 million
MAX_FILE_BYTES = 1 << 28

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Objects:
    """Objects marked in one picture, N of them.

    Attributes
    ----------
    boxes
        ``(N, 4)`` float32: left, top, right, bottom in pixels from the picture's upper left
        corner; right and bottom are exclusive, so that the width is right - left.
    labels
        ``(N,)`` int64, index into the data set's classes.
    ignore
        ``(N,)`` bool: neither a hit nor a miss in the official evaluation ("difficult" in VOC,
        "iscrowd" in COCO).
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.labels.shape[0])


def read_picture(source: Path | bytes, name: str = "") -> Picture:
    """Decode a JPEG or PNG picture.

    Parameters
    ----------
    source
        A file, or the bytes of one that errors then call `name`.

    Returns
    -------
    ndarray
        ``(3, H, W)`` uint8 RGB, contiguous.

    Raises
    ------
    FoveateError
        It cannot be decoded, or claims more than 2^26 pixels.
    """
    return np.ascontiguousarray(_decoded(source, name, labels=False).transpose(2, 0, 1))


def read_label_map(source: Path | bytes, name: str = "") -> Picture:
    """Decode a PNG whose pixels are class numbers: grey, or indices into a palette.

    Returns
    -------
    ndarray
        ``(H, W)`` uint8, the stored numbers; a palette's colours are not looked at.

    Raises
    ------
    FoveateError
        It cannot be decoded, is a picture of another kind, or claims more than 2^26 pixels.
    """
    return _decoded(source, name, labels=True)


def _decoded(source: Path | bytes, name: str, labels: bool) -> Picture:
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it has {size} bytes")
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        # Formats by name: Pillow's other readers include ones that start programs.
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it claims {image.width}x{image.height} pixels")
            if not labels:
                return np.array(image.convert("RGB"), dtype=np.uint8)
            if image.mode not in ("L", "P"):
                raise ValueError(f"class numbers (grey or palette) expected, mode is {image.mode}")
            return np.array(image, dtype=np.uint8)
    except Exception as error:  # Pillow raises nearly everything on damaged bytes
        where = name if isinstance(source, bytes) else str(source)
        raise FoveateError(f"cannot read the picture {where} ({error}); unpack it again") from error
