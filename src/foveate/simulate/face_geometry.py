"""The face as geometry: a canonical plane with depth, 68 landmarks and thirteen action units.

A head lives in canonical coordinates ``q = (u, v)``: u to the right, v down, half the face width
is 1. Depth ``z(q)`` (towards the viewer) lifts the plane to a shallow ellipsoid with a nose
("2.5-D"). An expression is a smooth displacement of the plane,

    D(q) = win(q) * sum_k B_k(q) delta_k,     B = Phi(q, L) (Phi(L, L) + 1e-2 I)^-1,

a regularised Gaussian radial-basis interpolation (sigma 0.20) of the displacements ``delta_k`` that
the action units ask of the points L. Skin *is moved* by D, so a landmark label is L + D(L), the
very same arrays that the picture is made from. Eyelids in a blink (AU5, AU45) and parting inner
lips (AU25, AU26) do not pull skin along, for the plane would fold: these *overlay* points get
exactly the displacement that is asked, and bound the drawn eye opening and mouth cavity.

A pose is a rotation R = Rz(roll) Rx(pitch) Ry(yaw), a scale and a shift. Positive yaw turns the
nose to the right of the picture, positive pitch up, positive roll clockwise.

Everything here is a definition of our own (specification ``synthetic-face-video``, section 1-3);
no scan and no photograph is behind it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "ACTION_UNITS",
    "EXTENT",
    "FIELD",
    "action_unit_displacements",
    "basis",
    "canonical_points",
    "delay_s",
    "depth",
    "field_points",
    "forehead",
    "furrow_maps",
    "perfusion",
    "rotation",
]

Array = npt.NDArray[np.float32]
Positions = npt.NDArray[np.float32] | npt.NDArray[np.float64]

ACTION_UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26, 45)
"""FACS numbers, in the order of every ``(T, 13)`` array; 45 is the blink (5 = closed)."""

EXTENT = 1.5
"""Fields and textures cover [-EXTENT, EXTENT]^2 of the canonical plane."""

FIELD = 64
"""Grid points per side of the fields (displacement, shading, pulse)."""

RBF_SIGMA = 0.20
RBF_RIDGE = 1e-2

PARTING = (25, 26)
"""Action units that part the lips; no skin is tied to the inner lips then."""

INNER_LIPS = np.arange(60, 68)

# Displacement at intensity 5. A pair (left, right) mirrors dx on the right; a single stands alone.
Moves = dict[tuple[int, ...], tuple[float, float]]
SKIN_MOVES: dict[int, Moves] = {
    1: {(21, 22): (0, -0.12), (20, 23): (0, -0.08), (19, 24): (0, -0.03)},
    2: {(17, 26): (0, -0.10), (18, 25): (0, -0.12), (19, 24): (0, -0.07)},
    4: {
        (21, 22): (0.04, 0.09),
        (20, 23): (0.03, 0.07),
        (19, 24): (0.02, 0.04),
        (18, 25): (0, 0.02),
        (72,): (0, 0.04),
    },
    5: {},
    6: {
        (41, 46): (0, -0.035),
        (40, 47): (0, -0.03),
        (68, 69): (0, -0.10),
        (36, 45): (0.01, 0),
        (37, 44): (0, 0.012),
        (38, 43): (0, 0.012),
    },
    9: {
        (31, 35): (0, -0.07),
        (32, 34): (0, -0.06),
        (33,): (0, -0.06),
        (27,): (0, -0.03),
        (28,): (0, -0.03),
        (29,): (0, -0.03),
        (30,): (0, -0.03),
        (21, 22): (0.01, 0.035),
        (50, 52): (0, -0.03),
        (51,): (0, -0.025),
        (68, 69): (0, -0.03),
    },
    12: {
        (48, 54): (-0.10, -0.10),
        (60, 64): (-0.09, -0.095),
        (49, 53): (-0.06, -0.06),
        (59, 55): (-0.06, -0.055),
        (50, 52): (-0.02, -0.015),
        (58, 56): (-0.02, -0.005),
        (68, 69): (0, -0.05),
        (70, 71): (-0.04, -0.05),
    },
    15: {
        (48, 54): (0.01, 0.10),
        (60, 64): (0.01, 0.095),
        (49, 53): (0, 0.045),
        (59, 55): (0, 0.05),
        (70, 71): (0, 0.02),
    },
    17: {
        (57,): (0, -0.065),
        (58, 56): (0, -0.06),
        (59, 55): (0, -0.03),
        (66,): (0, -0.03),
        (67, 65): (0, -0.03),
        (51,): (0, -0.03),
        (62,): (0, -0.025),
        (8,): (0, -0.05),
        (7, 9): (0, -0.04),
        (78,): (0, -0.07),
    },
    20: {
        (48, 54): (-0.12, 0.02),
        (60, 64): (-0.11, 0.02),
        (49, 53): (-0.08, 0.01),
        (59, 55): (-0.08, 0.01),
        (50, 52): (-0.03, 0.01),
        (58, 56): (-0.03, 0),
    },
    25: {(58, 56): (0, 0.04), (57,): (0, 0.045), (50, 52): (0, -0.015), (51,): (0, -0.015)},
    26: {
        (57,): (0, 0.22),
        (58, 56): (0, 0.21),
        (59, 55): (0, 0.15),
        (48, 54): (0.03, 0.05),
        (8,): (0, 0.21),
        (78,): (0, 0.21),
        (7, 9): (0, 0.20),
        (6, 10): (0, 0.18),
        (5, 11): (0, 0.14),
        (4, 12): (0, 0.07),
    },
    45: {},
}
OVERLAY_MOVES: dict[int, Moves] = {
    5: {(37, 44): (0, -0.045), (38, 43): (0, -0.045)},
    25: {(61, 63): (0, -0.03), (62,): (0, -0.03), (67, 65): (0, 0.05), (66,): (0, 0.055)},
    26: {(66,): (0, 0.22), (67, 65): (0, 0.21), (60, 64): (0.03, 0.05)},
    45: {(37, 44): (0, 0.115), (38, 43): (0, 0.115), (41, 46): (0, -0.005), (40, 47): (0, -0.005)},
}


@cache
def _canonical() -> Array:
    angle = np.pi * np.arange(17) / 16
    jaw = np.stack([-np.cos(angle), -0.10 + 1.20 * np.sin(angle)], 1)
    arch = -0.52 - 0.08 * np.sin(np.pi * (np.arange(5) + 0.6) / 5)
    brow = np.stack([np.linspace(-0.80, -0.20, 5), arch], 1)
    bridge = np.stack([np.zeros(4), np.linspace(-0.28, 0.22, 4)], 1)
    base = np.stack([np.linspace(-0.22, 0.22, 5), [0.32, 0.36, 0.38, 0.36, 0.32]], 1)
    eye = np.array(
        [
            (-0.61, -0.27),
            (-0.50, -0.335),
            (-0.38, -0.335),
            (-0.27, -0.27),
            (-0.38, -0.215),
            (-0.50, -0.215),
        ]
    )
    mirror = np.array([-1.0, 1.0])
    lips = [(-0.36, 0.68), (-0.24, 0.62), (-0.10, 0.585), (0, 0.60), (0.10, 0.585), (0.24, 0.62)]
    lips += [(0.36, 0.68), (0.24, 0.755), (0.10, 0.79), (0, 0.795), (-0.10, 0.79), (-0.24, 0.755)]
    lips += [(-0.30, 0.68), (-0.12, 0.665), (0, 0.67), (0.12, 0.665), (0.30, 0.68)]
    lips += [(0.12, 0.70), (0, 0.705), (-0.12, 0.70)]
    helpers = [(-0.50, 0.12), (0.50, 0.12), (-0.62, 0.42), (0.62, 0.42), (0, -0.62)]
    helpers += [(-0.5, -0.85), (0, -0.95), (0.5, -0.85), (-1.05, -0.5), (1.05, -0.5), (0, 0.98)]
    ring = np.radians(np.linspace(-10, 190, 13))
    anchors = np.stack([1.15 * np.cos(ring), -0.05 - 1.40 * np.sin(ring)], 1)
    points = np.concatenate(
        [
            jaw,
            brow,
            (brow * mirror)[::-1],
            bridge,
            base,
            eye,
            (eye * mirror)[[3, 2, 1, 0, 5, 4]],
            np.array(lips),
            np.array(helpers),
            anchors,
        ]
    )
    return points.astype(np.float32)


def canonical_points() -> Array:
    """The mean face: ``(92, 2)``, 68 iBUG points, 11 helpers (68-78) and 13 fixed anchors."""
    return np.array(_canonical())


_ARC = np.linspace(0, np.pi, 15)[1:-1]
_FOREHEAD = np.stack([0.95 * np.cos(_ARC), -0.25 - 0.65 * np.sin(_ARC), np.ones(13)], 1)


def forehead(landmarks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Thirteen points along the hairline of a face, which the 68 landmarks leave out.

    Parameters
    ----------
    landmarks
        ``(..., 68, 2)`` in pixels.

    Returns
    -------
    ndarray
        ``(..., 13, 2)`` from one temple over the top to the other, by an affine fit of the mean
        face.
    """
    mean = np.c_[_canonical()[:68].astype(np.float64), np.ones(68)]
    affine = np.linalg.pinv(mean) @ np.asarray(landmarks, np.float64)  # canonical -> pixels
    return np.asarray(_FOREHEAD @ affine)


@cache
def action_unit_displacements() -> tuple[Array, Array]:
    """Displacement of every point at intensity 5.

    Returns
    -------
    skin, overlay
        ``(13, 92, 2)`` each, canonical units, in the order of `ACTION_UNITS`.
    """
    tables = []
    for moves in (SKIN_MOVES, OVERLAY_MOVES):
        table = np.zeros((len(ACTION_UNITS), len(_canonical()), 2), np.float32)
        for row, unit in enumerate(ACTION_UNITS):
            for points, (dx, dy) in moves.get(unit, {}).items():
                for side, point in enumerate(points):
                    table[row, point] = (-dx if side else dx, dy)
        table.setflags(write=False)
        tables.append(table)
    return tables[0], tables[1]


def field_points(n: int = FIELD) -> Array:
    """Canonical coordinates of an ``n x n`` grid, rows = v: ``(n, n, 2)``."""
    line = np.linspace(-EXTENT, EXTENT, n, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    return np.stack([u, v], -1)


def _smoothstep(x: npt.NDArray[np.floating]) -> Array:
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x), np.float32)


def window(q: Positions) -> Array:
    """1 on the face, falling to 0 above the forehead and outside the head: ``(...)``.

    Without it, raised inner brows (AU1) bulge the skull.
    """
    u, v = q[..., 0], q[..., 1]
    radius = np.sqrt((u / 1.12) ** 2 + ((v - 0.05) / 1.42) ** 2)
    return np.asarray(_smoothstep((v + 1.05) / 0.30) * _smoothstep((1.15 - radius) / 0.20))


def basis(q: Positions, points: Positions, parting: bool = False) -> Array:
    """Rows of win(q) B(q): displacement at `q` is ``basis(q, points) @ delta``.

    Beyond the jaw line there is no skin; the displacement of the jaw line goes on there, so that a
    dropped chin (AU26) does not fold the plane below it.

    Parameters
    ----------
    q
        ``(..., 2)`` canonical positions.
    points
        ``(92, 2)`` points of this person.
    parting
        Leave the inner lips free; their columns are 0.

    Returns
    -------
    ``(..., 92)`` float32.
    """
    centres = points.astype(np.float64)
    if parting:
        centres = np.delete(centres, INNER_LIPS, 0)

    def phi(a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        square = ((a[..., None, :] - centres) ** 2).sum(-1)
        return np.asarray(np.exp(-square / (2 * RBF_SIGMA**2)))

    ear = 0.5 * (points[0] + points[16])
    jaw = np.array([0.5 * (points[16, 0] - points[0, 0]), points[8, 1] - ear[1]])
    reach = np.linalg.norm((q - ear) / jaw, axis=-1)
    inwards = np.where(q[..., 1] > ear[1], np.minimum(1, 1.03 / np.maximum(reach, 0.1)), 1.0)
    q = ear + (q - ear) * inwards[..., None]
    gram = phi(centres) + RBF_RIDGE * np.eye(len(centres))
    weights = np.linalg.solve(gram, phi(q.astype(np.float64)).reshape(-1, len(centres)).T).T
    if parting:
        weights = np.insert(weights, [INNER_LIPS[0]] * len(INNER_LIPS), 0.0, axis=1)
    weights = weights.reshape(*q.shape[:-1], len(points))
    return np.asarray(weights * window(q)[..., None], np.float32)


def depth(q: Positions, scale: tuple[float, float] = (1.0, 1.0)) -> Array:
    """Height z(q) of the head above the canonical plane, towards the viewer: ``(...)``."""
    u, v = q[..., 0] / scale[0], q[..., 1] / scale[1]
    dome = 0.9 * np.sqrt(np.maximum(0.02, 1 - (u / 1.12) ** 2 - ((v - 0.05) / 1.42) ** 2))
    nose = 0.28 * np.exp(-(u**2) / (2 * 0.13**2) - ((v - 0.2) / 0.2) ** 2 / 2)
    sockets = sum(
        np.exp(-((u - side * 0.44) ** 2 + (v + 0.275) ** 2) / (2 * 0.16**2)) for side in (-1, 1)
    )
    return np.asarray(dome + nose - 0.05 * sockets, np.float32)


def perfusion(q: Positions) -> Array:
    """How strongly the skin at `q` pulsates, relative (not yet normalised to mean 1): ``(...)``.

    Cheeks, forehead and nose are perfused best.
    """
    u, v = q[..., 0], q[..., 1]

    def blob(cu: float, cv: float, su: float, sv: float) -> Array:
        return np.asarray(np.exp(-(((u - cu) / su) ** 2) / 2 - ((v - cv) / sv) ** 2 / 2))

    return np.asarray(
        0.55
        + 0.45 * (blob(-0.5, 0.15, 0.25, 0.22) + blob(0.5, 0.15, 0.25, 0.22))
        + 0.45 * blob(0, -0.8, 0.5, 0.18)
        + 0.2 * blob(0, 0.1, 0.12, 0.3),
        np.float32,
    )


def delay_s(v: Positions) -> Array:
    """Arrival of the pulse wave at height `v`, seconds after the forehead: later lower down."""
    return np.asarray(0.020 * np.clip(v + 0.5, 0, 2), np.float32)


def rotation(yaw: Array, pitch: Array, roll: Array) -> Array:
    """Rz(roll) Rx(pitch) Ry(yaw) from angles in degrees ``(T,)``: ``(T, 3, 3)``.

    Axes: x right, y down, z towards the viewer.
    """
    a, b, c = (np.radians(angle.astype(np.float64)) for angle in (yaw, pitch, roll))
    one, zero = np.ones_like(a), np.zeros_like(a)

    def matrix(rows: list[list[npt.NDArray[np.float64]]]) -> npt.NDArray[np.float64]:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    ry = matrix([[np.cos(a), zero, np.sin(a)], [zero, one, zero], [-np.sin(a), zero, np.cos(a)]])
    rx = matrix([[one, zero, zero], [zero, np.cos(b), -np.sin(b)], [zero, np.sin(b), np.cos(b)]])
    rz = matrix([[np.cos(c), -np.sin(c), zero], [np.sin(c), np.cos(c), zero], [zero, zero, one]])
    return np.asarray(rz @ rx @ ry, np.float32)


# Furrows: strokes ((u, v), (u, v), width) of the left side; drawn mirrored as well.
FURROWS: dict[int, list[tuple[tuple[float, float], tuple[float, float], float]]] = {
    1: [((-0.22, -0.76), (0.0, -0.78), 0.022), ((-0.20, -0.88), (0.0, -0.90), 0.020)],
    2: [((-0.75, -0.74), (-0.35, -0.80), 0.020), ((-0.68, -0.84), (-0.35, -0.90), 0.020)],
    4: [((-0.07, -0.58), (-0.06, -0.42), 0.018)],
    6: [
        ((-0.68, -0.30), (-0.84, -0.38), 0.015),
        ((-0.68, -0.26), (-0.86, -0.26), 0.015),
        ((-0.67, -0.21), (-0.83, -0.14), 0.015),
    ],
    9: [((-0.06, -0.20), (-0.15, -0.10), 0.018), ((-0.05, -0.10), (-0.16, 0.02), 0.018)],
    12: [((-0.26, 0.34), (-0.42, 0.50), 0.025), ((-0.42, 0.50), (-0.47, 0.68), 0.025)],
    15: [((-0.40, 0.78), (-0.46, 0.90), 0.025)],
    17: [((-0.12, 0.93), (-0.04, 0.90), 0.025), ((-0.10, 1.02), (-0.03, 1.00), 0.020)],
}


def furrow_maps(n: int) -> Array:
    """Wrinkles that each action unit draws: ``(13, n, n)`` in [0, 1] over the canonical plane."""
    q = field_points(n)
    maps = np.zeros((len(ACTION_UNITS), n, n), np.float32)
    for unit, strokes in FURROWS.items():
        for (u0, v0), (u1, v1), width in strokes:
            for side in (1, -1):
                start = np.array([u0 * side, v0], np.float32)
                along = np.array([u1 * side, v1], np.float32) - start
                t = np.clip(((q - start) @ along) / float(along @ along), 0, 1)
                square = ((q - start - t[..., None] * along) ** 2).sum(-1)
                maps[ACTION_UNITS.index(unit)] += np.exp(-square / (2 * width**2))
    return np.minimum(maps, 1)


def pixel_pitch(size: int, scale: float) -> float:
    """Canonical units per pixel of a ``size``-pixel picture at head scale `scale`."""
    return 2 / (math.fabs(scale) * size)
