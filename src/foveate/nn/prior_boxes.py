"""Prior boxes of a single-shot detector, and the arithmetic of boxes.

A *prior* (default box, anchor) is a box of fixed size and shape at a cell of a feature map. The
priors of a map with sizes s, s' and ratios a are squares of side s and sqrt(s s'), then for each a
the boxes s sqrt(a) x s / sqrt(a) and s / sqrt(a) x s sqrt(a). A box g near a prior d is told by
what it differs, with the variances v = (0.1, 0.2) as units::

    l = ( (g_cx - d_cx) / (d_w v0), (g_cy - d_cy) / (d_h v0),
          ln(g_w / d_w) / v1,       ln(g_h / d_h) / v1        )

SSD300 (Liu et al., ECCV 2016) has maps of 38, 19, 10, 5, 3, 1 cells with 4, 6, 6, 6, 4, 4 priors:
8,732 (P). Its sizes in pixels are those of the authors' configurations (R): they differ between VOC
(smallest scale 0.1) and COCO (0.07).

Boxes come as *corners* (left, top, right, bottom) or *centres* (centre x, centre y, width, height),
in units of the picture's side.

>>> prior_boxes(SSD300_VOC).shape
torch.Size([8732, 4])
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.errors import FoveateError

__all__ = [
    "SSD300_COCO",
    "SSD300_VOC",
    "PriorGrid",
    "decode",
    "encode",
    "jaccard",
    "nms",
    "prior_boxes",
    "to_centres",
    "to_corners",
]

VARIANCES = (0.1, 0.2)


@dataclass(frozen=True)
class PriorGrid:
    """Where priors lie, one entry per feature map.

    Attributes
    ----------
    side
        Height and width of the input picture in pixels.
    cells
        Cells of each map along a side.
    steps
        Distance of the cells' centres in pixels. It is not quite ``side / cells`` where a
        convolution rounds: the centre of cell i is at ``(i + 0.5) * step``.
    sizes
        Sides s in pixels, one more than maps: the last is only the s' of the last map.
    ratios
        Aspect ratios a of each map besides 1; each is taken upright and lying.
    clip
        Cut priors at the picture's edges.
    """

    side: int
    cells: tuple[int, ...]
    steps: tuple[float, ...]
    sizes: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    clip: bool = False

    def __post_init__(self) -> None:
        maps = len(self.cells)
        lengths = (len(self.steps), len(self.sizes) - 1, len(self.ratios))
        if not maps or any(length != maps for length in lengths):
            raise FoveateError(
                f"PriorGrid of {maps} maps expects as many steps and ratios and one size more, got "
                f"{lengths[0]} steps, {lengths[1] + 1} sizes and {lengths[2]} ratios"
            )
        numbers = (*self.cells, *self.steps, *self.sizes, *(a for r in self.ratios for a in r))
        if not all(math.isfinite(n) and n > 0 for n in (self.side, *numbers)):
            raise FoveateError("PriorGrid expects positive sides, cells, steps, sizes and ratios")

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Priors of a cell, for each map."""
        return tuple(2 + 2 * len(ratios) for ratios in self.ratios)

    def __len__(self) -> int:
        return sum(n * n * k for n, k in zip(self.cells, self.per_cell, strict=True))


_RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
_CELLS, _STEPS = (38, 19, 10, 5, 3, 1), (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)
SSD300_VOC = PriorGrid(300, _CELLS, _STEPS, (30, 60, 111, 162, 213, 264, 315), _RATIOS)
SSD300_COCO = PriorGrid(300, _CELLS, _STEPS, (21, 45, 99, 153, 207, 261, 315), _RATIOS)


def prior_boxes(grid: PriorGrid) -> Tensor:
    """All priors, ``(P, 4)`` float32: centre x, centre y, width, height in units of the side.

    Map after map, row after row, column after column; within a cell the small square, the large
    one, then of each ratio the lying and the upright box.
    """
    boxes = []
    each = zip(grid.cells, grid.steps, itertools.pairwise(grid.sizes), grid.ratios, strict=True)
    for cells, step, (size, next_size), ratios in each:
        large = math.sqrt(size * next_size)
        shapes = [(size, size), (large, large)]
        for ratio in ratios:
            long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        for row, column in itertools.product(range(cells), repeat=2):
            x, y = (column + 0.5) * step, (row + 0.5) * step
            boxes += [(x, y, width, height) for width, height in shapes]
    priors = torch.tensor(boxes, dtype=torch.float64) / grid.side
    if grid.clip:
        priors = to_centres(to_corners(priors).clamp(0, 1))
    return priors.float()


def to_corners(boxes: Tensor) -> Tensor:
    """``(..., 4)`` centre x, centre y, width, height -> left, top, right, bottom."""
    half = boxes[..., 2:] / 2
    return torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), -1)


def to_centres(boxes: Tensor) -> Tensor:
    """``(..., 4)`` left, top, right, bottom -> centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``(N, 4)`` and ``(M, 4)`` given by corners: ``(N, M)``.

    Boxes without area overlap nothing.
    """
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clamp(min=0).prod(-1) for box in (a, b))
    union = area_a[:, None] + area_b[None] - common
    return torch.where(union > 0, common / union.clamp(min=1e-30), torch.zeros_like(union))


def encode(boxes: Tensor, priors: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """What the net should say for boxes ``(P, 4)``, corners, at priors ``(P, 4)``, centres."""
    truth = to_centres(boxes)
    place = (truth[:, :2] - priors[:, :2]) / (priors[:, 2:] * variances[0])
    size = torch.log(truth[:, 2:] / priors[:, 2:]) / variances[1]
    return torch.cat((place, size), 1)


def decode(locations: Tensor, priors: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """The inverse of :func:`encode`: corners ``(..., P, 4)`` of what the net said."""
    place = priors[:, :2] + locations[..., :2] * (priors[:, 2:] * variances[0])
    size = priors[:, 2:] * torch.exp(locations[..., 2:] * variances[1])
    return to_corners(torch.cat((place, size), -1))


def nms(boxes: Tensor, scores: Tensor, overlap: float = 0.45) -> Tensor:
    """Non-maximum suppression: drop what overlaps a better box by more than `overlap`.

    Parameters
    ----------
    boxes
        ``(N, 4)`` corners.
    scores
        ``(N,)``; of equal ones the earlier is the better.

    Returns
    -------
    Tensor
        int64 indices of what is kept, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    hits = (jaccard(boxes[order], boxes[order]) > overlap).cpu().numpy()
    gone = torch.zeros(len(order), dtype=torch.bool).numpy()
    kept = []
    for index in range(len(order)):
        if not gone[index]:
            kept.append(index)
            gone |= hits[index]
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
