"""One picture of a stream and the moment it was taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Frame"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture.

    Attributes
    ----------
    image
        ``(H, W, 3)`` uint8, RGB, upright (rotation metadata already applied).
    time_s
        Seconds since the first frame, from the container's time stamps (never index / fps).
    index
        Position in the stream, counting from 0; a damaged frame keeps its number and is absent.
    """

    image: npt.NDArray[np.uint8]
    time_s: float
    index: int

    @property
    def height(self) -> int:
        """Rows of the picture."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Columns of the picture."""
        return int(self.image.shape[1])
