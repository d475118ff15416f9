"""Simulated pictures for detectors: squares, discs and triangles on coloured noise, exact labels.

Every picture has 64 x 64 pixels, a background that shades into another colour, noise, and one to
four objects of 10 to 36 pixels whose bounding squares do not overlap. An object's colour differs
from the background's by 40 to 90 in every channel, up or down, so that colour does not tell the
class: shape does.

Nothing here is real data; whoever reports a number from it says *simulated*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.datasets.pictures import Objects
from foveate.errors import FoveateError

__all__ = ["KINDS", "SIDE", "Shapes", "drawn_shapes"]

KINDS = ("square", "disc", "triangle")
SIDE = 64
SMALLEST, LARGEST, MOST = 10, 36, 4
MAX_PICTURES = 200_000  # 2.4 GB


class Shapes:
    """A set of such pictures, held in memory.

    Parameters
    ----------
    count
        Number of pictures.
    seed
        Picture k of a seed is the same whatever the count.
    maps
        Items have label maps in place of boxes.

    Notes
    -----
    An item is ``(picture uint8 (3, 64, 64), Objects)``, or with `maps` ``(picture, labels int64
    (64, 64))`` with 0 for the background and 1 + kind.
    """

    classes = KINDS

    def __init__(self, count: int, seed: int = 0, maps: bool = False) -> None:
        if not 1 <= count <= MAX_PICTURES:
            raise FoveateError(f"Shapes draws 1 to {MAX_PICTURES} pictures, asked for {count}")
        self.as_maps = maps
        drawn = [drawn_shapes(np.random.default_rng((seed, index))) for index in range(count)]
        self.pictures = torch.from_numpy(np.stack([picture for picture, _, _ in drawn]))
        self.maps = torch.from_numpy(np.stack([labels for _, _, labels in drawn]))
        self.marked = [objects for _, objects, _ in drawn]

    def __len__(self) -> int:
        return len(self.marked)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        truth = self.maps[index].long() if self.as_maps else self.marked[index]
        return self.pictures[index], truth

    def objects(self, index: int) -> Objects:
        """Boxes of picture `index`: the squares that the shapes were drawn into."""
        return self.marked[index]


def drawn_shapes(
    generator: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], Objects, npt.NDArray[np.uint8]]:
    """One picture ``(3, 64, 64)``, its objects, and its label map ``(64, 64)``."""
    row, column = np.mgrid[:SIDE, :SIDE] + 0.5
    image = generator.normal(0, 14, (3, SIDE, SIDE)) + generator.uniform(60, 200, (3, 1, 1))
    image += generator.uniform(-0.8, 0.8, (3, 1, 1)) * row
    image += generator.uniform(-0.8, 0.8, (3, 1, 1)) * column
    labels = np.zeros((SIDE, SIDE), np.uint8)
    free = np.ones((SIDE, SIDE), dtype=bool)
    boxes, kinds = [], []
    for _ in range(int(generator.integers(1, MOST + 1))):
        for _ in range(20):
            size = int(generator.integers(SMALLEST, LARGEST + 1))
            top, left = (int(v) for v in generator.integers(0, SIDE - size + 1, 2))
            if free[top : top + size, left : left + size].all():
                break
        else:
            continue  # no room
        kind = int(generator.integers(len(KINDS)))
        y, x = row - top, column - left
        inside = (y > 0) & (y < size) & (x > 0) & (x < size)
        if KINDS[kind] == "disc":
            inside &= (y - size / 2) ** 2 + (x - size / 2) ** 2 <= (size / 2) ** 2
        elif KINDS[kind] == "triangle":
            inside &= np.abs(x - size / 2) <= y / 2
        colour = image[:, inside].mean(1)
        colour += generator.choice((-1, 1), 3) * generator.uniform(40, 90, 3)
        noise = generator.normal(0, 10, (3, int(inside.sum())))
        image[:, inside] = colour[:, None] + noise
        labels[inside] = kind + 1
        free[top : top + size, left : left + size] = False
        boxes.append((left, top, left + size, top + size))
        kinds.append(kind)
    objects = Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(kinds, np.int64),
        np.zeros(len(kinds), dtype=bool),
    )
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), objects, labels
