"""Boxes in plain numbers: what tests of detectors hold the code against."""

from __future__ import annotations

import numpy as np


def iou(a, b) -> float:
    """Of two boxes by corners, in plain numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def suppressed(boxes, scores, overlap: float) -> list[int]:
    """Greedy: the best that is left stays, its rivals go."""
    left = sorted(range(len(boxes)), key=lambda k: (-scores[k], k))
    kept = []
    while left:
        best, *left = left
        kept.append(best)
        left = [k for k in left if iou(boxes[best], boxes[k]) <= overlap]
    return kept


def some_boxes(rng: np.random.Generator, count: int, grid: int = 0) -> np.ndarray:
    """Corners within the unit square; on multiples of 1 / grid, ties and touching edges occur."""
    low = rng.uniform(0, 0.7, (count, 2))
    size = rng.uniform(0.05, 0.6, (count, 2))
    boxes = np.concatenate([low, low + size], 1)
    if grid:
        boxes = np.round(boxes * grid) / grid
    return boxes
