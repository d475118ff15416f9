"""Data and scalar references that the tests of metric learning share."""

from __future__ import annotations

import itertools

import torch
from sklearn.datasets import make_blobs


def draw(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def table(seed: int = 0, n: int = 60, features: int = 4, classes: int = 3):
    x, y = make_blobs(n, features, centers=classes, cluster_std=3.0, random_state=seed)
    return (x - x.mean(0)) / x.std(0), y


def corners(x, found):
    return [torch.from_numpy(x[column]) for column in found.T]


def loss_by_hand(M, x_i, x_j, x_l, tau, eps):
    """J_P in plain loops, in the two cases of the paper."""
    total, width = 0.0, len(M)
    for i, j, f in zip(x_i, x_j, x_l, strict=True):
        g = normal = 0.0
        for a, b in itertools.product(range(width), repeat=2):
            g += (i[a] - f[a]) * M[a][b] * (i[b] - f[b]) - (i[a] - j[a]) * M[a][b] * (i[b] - j[b])
        for a in range(width):
            normal += sum(M[a][b] * (f[b] - j[b]) for b in range(width)) ** 2
        square = g**2 / (4 * (normal + eps))
        total += max(tau**2 - square, 0) if g > 0 else tau**2 + square
    return total / len(x_i)


def mined_by_hand(x, y, k_target, k_impostor):
    found = []
    for i in range(len(x)):

        def near(others, i=i):
            return sorted(others, key=lambda o: (float(((x[i] - x[o]) ** 2).sum()), o))

        mates = near([j for j in range(len(x)) if y[j] == y[i] and j != i])[:k_target]
        foes = near([j for j in range(len(x)) if y[j] != y[i]])[:k_impostor]
        found += [(i, j, f) for j in mates for f in foes]
    return found
