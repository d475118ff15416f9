"""One person: shape of the face, colours and skin texture, all drawn from one identity number.

`FaceModel(identity)` is exact and repeatable: the same number gives the same person in every clip.
The textures are procedural noise and painted strokes on the canonical plane; they tell people
apart, but they are not claimed to look like anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.simulate.face_geometry import (
    ACTION_UNITS,
    EXTENT,
    FIELD,
    INNER_LIPS,
    PARTING,
    Array,
    Positions,
    action_unit_displacements,
    basis,
    canonical_points,
    depth,
    field_points,
    furrow_maps,
    perfusion,
)

__all__ = ["FaceModel", "Textures"]

TEXTURE = 128
"""Texels per side of the skin textures."""

PAINT = 2
"""Painting is done at this multiple of `TEXTURE` and averaged down: anti-aliased edges."""

LIGHTEST = np.array([0.62, 0.42, 0.33])
DARKEST = np.array([0.16, 0.09, 0.06])

_IDENTITY_STREAM = 101  # keeps a person's numbers apart from those of clips with the same seed


@dataclass(frozen=True, slots=True)
class Textures:
    """What covers the canonical plane; ``(n, n)`` float32 each, coverages in [0, 1].

    Attributes
    ----------
    albedo
        ``(3, n, n)`` reflectance in linear light, with brows, lips, beard, moles and hair painted.
    head
        Coverage of the head (skin, brows, lips and hair) against the background.
    hair, brows, lips
        Coverage of each part.
    perfused
        Coverage of skin and lips: what pulsates.
    furrows
        ``(13, n, n)`` wrinkle strokes for each action unit, times the person's furrow strength.
    """

    albedo: Array
    head: Array
    hair: Array
    brows: Array
    lips: Array
    perfused: Array
    furrows: Array


def _noise(rng: np.random.Generator, cells: int, n: int) -> Array:
    """Smooth noise in about [-1, 1]: `cells` random values a side, cubic in between."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (n, n), interpolation=cv2.INTER_CUBIC), np.float32)


class FaceModel:
    """Geometry and appearance of one simulated person.

    Parameters
    ----------
    identity
        Number of the person, 0 or more. Standard splits: train 0-9999, validation 10000-10999,
        test 11000-11999.
    melanin
        Skin tone in [.05, .85]; None draws it from the identity number.

    Attributes
    ----------
    points
        ``(92, 2)`` this person's points on the canonical plane.
    skin_moves, overlay_moves
        ``(13, 92, 2)`` what each action unit does to the points at intensity 5: by moving skin,
        and on top of it for eyelids and inner lips.
    field_moves
        ``(13, n, n, 2)`` how it moves the skin on the field grid.
    """

    def __init__(self, identity: int, melanin: float | None = None) -> None:
        if identity < 0:
            raise FoveateError(f"identity {identity} is negative; people are numbered from 0")
        self.identity = int(identity)
        rng = np.random.default_rng([_IDENTITY_STREAM, self.identity])
        drawn = rng.uniform(0.05, 0.85)
        self.melanin = float(drawn if melanin is None else melanin)
        self._draw_shape(rng)
        self._draw_looks(rng)
        self._texture_seed = int(rng.integers(2**31))

        self._solve_moves()

    def _solve_moves(self) -> None:
        """Interpolate what the action units ask, once: everything is linear in the intensity."""
        asked, overlay = action_unit_displacements()
        self.overlay_moves = overlay.copy()
        # A blink closes *this* person's eye: lids travel the opening they have.
        blink = ACTION_UNITS.index(45)
        for upper, lower in ((37, 41), (38, 40), (44, 46), (43, 47)):
            opening = self.points[lower] - self.points[upper]
            self.overlay_moves[blink, upper] = opening * (0.115 / 0.12)
            self.overlay_moves[blink, lower] = -opening * (0.005 / 0.12)
        grid = field_points()
        parting = np.isin(ACTION_UNITS, PARTING)
        self.skin_moves: Array = np.zeros_like(asked)
        self.field_moves: Array = np.zeros((len(asked), FIELD, FIELD, 2), np.float32)
        for which in (False, True):
            units = np.nonzero(parting == which)[0]
            at_points = basis(self.points, self.points, parting=which)
            on_grid = basis(grid, self.points, parting=which)
            for unit in units:
                self.skin_moves[unit] = at_points @ asked[unit]
                self.field_moves[unit] = on_grid @ asked[unit]
        # Parting lips go exactly where they are asked to, whatever the skin below them does.
        rows = np.ix_(parting, INNER_LIPS)
        self.overlay_moves[rows] = (asked + overlay - self.skin_moves)[rows]

    def _draw_shape(self, rng: np.random.Generator) -> None:
        def around(sd: float, size: int | None = None) -> npt.NDArray[np.float64]:
            return np.asarray(np.clip(rng.normal(0, sd, size), -2 * sd, 2 * sd))

        points = canonical_points().astype(np.float64)
        groups = {  # points, sd of the horizontal scale
            "jaw": ([*range(17), 70, 71, 78], 0.10),
            "brows": ([*range(17, 27)], 0.10),
            "nose": ([*range(27, 36)], 0.10),
            "eyes": ([*range(36, 48)], 0.04),
            "mouth": ([*range(48, 68)], 0.10),
        }
        for name, (members, sd_x) in groups.items():
            part = points[members]
            centre = np.array([0.0, -0.10 if name == "jaw" else part[:, 1].mean()])
            factor = 1 + np.array([around(sd_x), around(0.10)])
            if name == "jaw":  # a jaw narrower than the eyes or shorter than the mouth is no jaw
                factor = 1 + (factor - 1) * 0.5
            if name == "eyes":  # the opening scales about the eye, the spacing about the nose
                factor[1] = 1 + 1.5 * (factor[1] - 1)
            points[members] = centre + (part - centre) * factor + [0, around(0.03)]
        asymmetry = around(0.008, len(points) * 2).reshape(-1, 2)
        asymmetry[79:] = 0
        asymmetry[36:48] *= 0.3  # an eye is small: the same error would close it
        points += asymmetry
        points[78] = points[57] + 0.6 * (points[8] - points[57])  # chin pad: between lip and chin
        self.scale = (float(1 + around(0.06)), float(1 + around(0.06)))
        self.points: Array = (points * self.scale).astype(np.float32)

    def _draw_looks(self, rng: np.random.Generator) -> None:
        m = self.melanin
        self.skin_colour = (1 - m) * LIGHTEST + m * DARKEST
        hair = rng.choice(5, p=[0.34, 0.3, 0.16, 0.1, 0.1])
        colours = [(0.02, 0.015, 0.012), (0.07, 0.04, 0.025), (0.2, 0.11, 0.05)]
        colours += [(0.45, 0.33, 0.17), (0.35, 0.35, 0.36)]
        self.hair_colour = np.array(colours)[hair] * rng.uniform(0.7, 1.3)
        self.brow_colour = 0.7 * self.hair_colour + 0.1 * self.skin_colour
        self.brow_width = rng.uniform(0.028, 0.055)
        self.iris_colour = np.array(
            [(0.09, 0.05, 0.025), (0.16, 0.1, 0.05), (0.12, 0.2, 0.32), (0.14, 0.22, 0.14)]
        )[rng.choice(4, p=[0.5, 0.2, 0.2, 0.1])] * rng.uniform(0.7, 1.2)
        self.lip_colour = self.skin_colour * [
            rng.uniform(0.85, 1.05),
            rng.uniform(0.5, 0.72),
            rng.uniform(0.55, 0.8),
        ]
        self.hairline = rng.uniform(-1.0, -0.80)
        self.hair_length = rng.uniform(-0.3, 0.9) if rng.random() > 0.12 else -9.0
        self.beard = rng.uniform(0.6, 0.9) if rng.random() < 0.25 else 1.0
        self.glasses = bool(rng.random() < 0.15)
        self.glasses_colour = np.array(rng.choice([0.01, 0.03, 0.12]) * np.array([1.0, 0.9, 0.8]))
        self.furrow_strength = float(rng.uniform(0.3, 1))
        self.moles = rng.uniform([-0.8, -0.7], [0.8, 1.0], (int(rng.integers(0, 9)), 2))
        self.cloth_colour = rng.uniform(0.03, 0.35) * rng.uniform(0.6, 1.3, 3)

    def __repr__(self) -> str:
        return f"FaceModel(identity={self.identity}, melanin={self.melanin:.2f})"

    def depth(self, q: Positions) -> Array:
        """Height of this head above the canonical plane at `q` ``(..., 2)``."""
        return depth(q, self.scale)

    def normals(self, q: Positions) -> Array:
        """Outward unit normals (x right, y down, z towards the viewer) at `q`: ``(..., 3)``.

        Beyond the rim of the dome, where its depth is cut off flat, the rim's normal goes on.
        """
        centre = np.array([0, 0.05 * self.scale[1]])
        radius = np.linalg.norm((q - centre) / (np.array([1.12, 1.42]) * self.scale), axis=-1)
        q = centre + (q - centre) * np.minimum(1, 0.96 / np.maximum(radius, 0.1))[..., None]
        right, down = np.array([0.02, 0.0]), np.array([0.0, 0.02])
        du = (self.depth(q + right) - self.depth(q - right)) / 0.04
        dv = (self.depth(q + down) - self.depth(q - down)) / 0.04
        n = np.stack([-du, -dv, np.ones_like(du)], -1)
        return np.asarray(n / np.linalg.norm(n, axis=-1, keepdims=True), np.float32)

    def carried(self, au: Array) -> Array:
        """The 92 points as the skin carries them under intensities `au` ``(T, 13)``."""
        return np.asarray(self.points + np.tensordot(au / 5, self.skin_moves, 1), np.float32)

    def landmarks(self, au: Array) -> Array:
        """The 92 points on the canonical plane under intensities `au`: ``(T, 92, 2)``."""
        overlay = np.tensordot(au / 5, self.overlay_moves, 1)
        return np.asarray(self.carried(au) + overlay, np.float32)

    @cached_property
    def fold_gradients(self) -> tuple[npt.NDArray[np.intp], Array]:
        """Gradient of the displacement field per unit of intensity.

        Returns
        -------
        units, gradients
            Rows of `ACTION_UNITS` that move skin ``(A,)``; ``(A, 2 * 2 * cells)``: derivative
            along u and v of both components in every cell of the field grid.
        """
        units = np.nonzero(self.field_moves.any((1, 2, 3)))[0]
        fields = self.field_moves[units].transpose(0, 3, 1, 2) / 5
        along_u = np.diff(fields, axis=3)[:, :, :-1]
        along_v = np.diff(fields, axis=2)[:, :, :, :-1]
        spacing = 2 * EXTENT / (FIELD - 1)
        gradients = np.stack([along_u, along_v], 1) / spacing
        return units, gradients.reshape(len(units), -1).astype(np.float32)

    def perfusion(self, q: Positions) -> Array:
        """Relative pulse strength at `q`, with mean 1 over this person's skin."""
        grid = field_points(TEXTURE)
        weight = self.textures.perfused
        mean = (perfusion(grid / np.array(self.scale)) * weight).sum() / weight.sum()
        return np.asarray(perfusion(q / np.array(self.scale)) / mean, np.float32)

    @cached_property
    def textures(self) -> Textures:
        """The skin of this person, painted when first asked for."""
        rng = np.random.default_rng([_IDENTITY_STREAM + 1, self._texture_seed])
        n = TEXTURE * PAINT
        q = field_points(n)
        u, v = q[..., 0], q[..., 1]
        sx, sy = self.scale
        p = self.points

        def to_texel(points: npt.ArrayLike) -> npt.NDArray[np.int32]:
            scaled = (np.asarray(points) + EXTENT) / (2 * EXTENT) * (n - 1)
            return np.round(scaled * 16).astype(np.int32)

        def fill(points: npt.ArrayLike) -> Array:
            mask = np.zeros((n, n), np.uint8)
            cv2.fillPoly(mask, [to_texel(points)], 255, shift=4)
            return np.asarray(mask / 255, np.float32)

        def stroke(points: npt.ArrayLike, width: float) -> Array:
            mask = np.zeros((n, n), np.uint8)
            texels = max(1, round(width / (2 * EXTENT) * n))
            cv2.polylines(mask, [to_texel(points)], False, 255, texels, cv2.LINE_8, shift=4)
            return np.asarray(mask / 255, np.float32)

        def blob(cu: float, cv: float, su: float, sv: float) -> Array:
            return np.asarray(np.exp(-(((u - cu) / su) ** 2) / 2 - ((v - cv) / sv) ** 2 / 2))

        def blur(image: Array, sigma: float) -> Array:
            return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma / (2 * EXTENT) * n))

        # Outline: the jaw as drawn by its points, the skull above, ears at the sides.
        jaw = p[:17] * [1.03, 1.0] + [0, 0.02]
        arc = np.linspace(0, np.pi, 41)
        crown = min(1.24 * sy, EXTENT - 0.1 + p[0, 1])
        skull = np.stack([1.03 * sx * np.cos(arc), p[0, 1] - crown * np.sin(arc)], 1)
        head = fill(np.concatenate([jaw, skull]))
        ears = np.zeros_like(head)
        for side in (-1, 1):
            centre = side * 1.05 * sx, -0.06 * sy
            ears += (((u - centre[0]) / 0.11) ** 2 + ((v - centre[1]) / 0.23) ** 2 < 1) * 1.0
        face_and_ears = np.maximum(head, np.minimum(ears, 1))

        # Hair: a cap outside the face oval, down to the person's hair length.
        top = min(1.36 * sy, EXTENT - 0.12)
        cap = ((u / (1.17 * sx)) ** 2 + ((v + 0.06) / top) ** 2 < 1) & (v < 0.25 * sy)
        locks = (abs(u) < 1.17 * sx) & (abs(u) > 0.97 * sx) & (v >= -0.06) & (v < self.hair_length)
        wave = 0.05 * _noise(rng, 9, n) + 0.04 * _noise(rng, 24, n)
        oval = (u / (0.97 * sx)) ** 2 + ((v - 0.2) / (0.2 - self.hairline * sy)) ** 2 < 1 + wave
        bald = self.hair_length < -1
        reach = ~oval & (v < max(self.hair_length, -0.25)) & (not bald)
        hair = blur(((cap & reach) | (locks & (not bald))).astype(np.float32), 0.008)
        # Colour goes on outside the outline, else skin shines through along its soft edge.
        dye = np.maximum(
            hair, blur((reach & ((v < -0.06) | (abs(u) > 0.97 * sx))).astype(np.float32), 0.008)
        )

        # Skin: two octaves of noise, shaded folds, cheeks, lips, brows, beard, moles.
        tone = 1 + 0.03 * _noise(rng, 40, n) + 0.12 * _noise(rng, 7, n) * 0.5
        albedo = self.skin_colour[:, None, None] * tone
        flush = 0.10 * (blob(-0.52 * sx, 0.2, 0.2, 0.17) + blob(0.52 * sx, 0.2, 0.2, 0.17))
        albedo *= 1 - flush * np.array([0.1, 1.0, 0.9])[:, None, None]
        for points, width, amount in (
            (p[31:36], 0.035, 0.35),
            ([p[31] + [-0.03, -0.10], p[31] + [-0.03, 0.0], p[32]], 0.03, 0.25),
            ([p[35] + [0.03, -0.10], p[35] + [0.03, 0.0], p[34]], 0.03, 0.25),
            ([p[57] + [-0.12, 0.08], p[57] + [0.12, 0.08]], 0.05, 0.18),
            ([p[39] + [0.05, -0.02], p[31] + [0.05, -0.2]], 0.05, 0.10),
            ([p[42] + [-0.05, -0.02], p[35] + [-0.05, -0.2]], 0.05, 0.10),
        ):
            albedo *= 1 - amount * blur(stroke(points, width), 0.018)
        for centre in (p[32] + [-0.02, -0.015], p[34] + [0.02, -0.015]):
            albedo *= 1 - 0.75 * blob(centre[0], centre[1], 0.035, 0.02)
        for corner in (slice(36, 42), slice(42, 48)):
            c = p[corner].mean(0)
            albedo *= (
                1
                - 0.22 * blob(c[0], c[1] - 0.06, 0.2, 0.09)
                - 0.1 * blob(c[0], c[1] + 0.11, 0.16, 0.04)
            )
            lid = p[corner][:4] - np.array([0, 0.035])
            albedo *= 1 - 0.35 * blur(stroke(lid, 0.012), 0.008)
        if self.beard < 1:
            area = np.clip((v - 0.45 * sy) / 0.12, 0, 1) * (0.8 + 0.2 * _noise(rng, 64, n))
            cheek = np.clip((abs(u) - 0.55 * sx) / 0.2, 0, 1) * np.clip((v - 0.1) / 0.2, 0, 1)
            albedo *= 1 - (1 - self.beard) * np.clip(np.maximum(area, cheek), 0, 1)
        for cu, cv in self.moles:
            albedo *= 1 - 0.55 * blob(cu * sx, cv * sy, 0.016, 0.016)
        lips = fill(p[48:60])
        texture = blur(lips, 0.006) * (0.92 + 0.08 * _noise(rng, 30, n))
        lower = np.clip((v - p[[62, 66], 1].mean()) / 0.05, 0, 1)
        lip_colour = self.lip_colour[:, None, None] * (0.85 + 0.25 * lower)
        albedo += (lip_colour - albedo) * texture
        brows = np.zeros_like(head)
        for brow in (p[17:22], p[22:27][::-1]):
            upper = brow - [0, self.brow_width] * np.array([[0.2], [0.7], [1.0], [1.05], [1.0]])
            under = brow + [0, self.brow_width] * np.array([[0.2], [0.5], [0.8], [1.0], [1.0]])
            brows = np.maximum(brows, fill(np.concatenate([upper, under[::-1]])))
        hairs = blur(brows, 0.012) * (0.88 + 0.12 * _noise(rng, 90, n))
        albedo += (self.brow_colour[:, None, None] - albedo) * np.clip(hairs, 0, 1)
        streaks = np.asarray(cv2.resize(_noise(rng, 48, 48)[:6], (n, n)), np.float32)
        strands = self.hair_colour[:, None, None] * (1 + 0.35 * streaks + 0.2 * _noise(rng, 40, n))
        albedo += (strands - albedo) * dye

        def down(image: Array) -> Array:
            small = cv2.resize(image, (TEXTURE, TEXTURE), interpolation=cv2.INTER_AREA)
            return np.asarray(np.clip(small, 0, 1), np.float32)

        covered = np.maximum(face_and_ears, hair)
        perfused = face_and_ears * (1 - hair) * (1 - blur(brows, 0.012))
        return Textures(
            albedo=np.stack([down(channel.astype(np.float32)) for channel in albedo]),
            head=down(covered),
            hair=down(hair),
            brows=down(blur(brows, 0.012)),
            lips=down(lips),
            perfused=down(perfused.astype(np.float32)),
            furrows=furrow_maps(TEXTURE) * np.float32(self.furrow_strength),
        )
