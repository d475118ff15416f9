"""Draws the face: every pixel asks which point of the canonical plane it sees.

Rendering is inverse. With R the head rotation and s, t its scale and shift, a point q of the plane
appears at x = s (R_2x2 (q + D(q)) + r_z (z(q) - .6)) + t. For each pixel the renderer solves this
for q by six damped fixed-point steps (factor .8) with J^-1 = inv(R_2x2), all frames of a chunk at
once, and looks skin, wrinkles, light and pulse up at q with ``grid_sample``.

Eye openings and the mouth are drawn from the *landmark labels themselves*, in the picture: between
an upper and a lower polyline, with exact vertical coverage per pixel, so that half-closed eyes of
less than a pixel still have the right amount of light. This analytic anti-aliasing replaces
supersampling at a quarter of its cost.

Light is Lambert plus Phong on the normals of the depth map; the pulse modulates diffuse skin
reflectance only, never the specular part, eyes, teeth, hair or brows. All of it is linear light;
`Camera` turns it into 8-bit pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import FoveateError
from foveate.simulate.face_geometry import (
    ACTION_UNITS,
    EXTENT,
    Array,
    delay_s,
    field_points,
    pixel_pitch,
    rotation,
)
from foveate.simulate.face_model import FaceModel
from foveate.simulate.pulse import BLOOD_COLOUR
from foveate.simulate.scripts import Script

__all__ = ["CAMERAS", "PARTS", "Camera", "CameraState", "Projection", "Renderer", "project"]

PARTS = ("background", "skin", "hair", "brows", "eyes", "lips", "mouth", "glasses")
"""Names of the numbers in a part map."""

MIN_JACOBIAN = 0.2
STEPS = 6
DAMPING = 0.8


@dataclass(frozen=True, slots=True)
class Projection:
    """Where the points of a face are in the picture.

    Attributes
    ----------
    points
        ``(T, 92, 2)`` pixels (x, y), pixel centres at integers.
    visible
        ``(T, 92)`` bool: turned to the camera and inside the picture.
    irises
        ``(T, 2, 2)`` pixels, left eye of the picture first.
    iris_radius
        ``(T,)`` pixels.
    """

    points: Array
    visible: npt.NDArray[np.bool_]
    irises: Array
    iris_radius: Array


def project(model: FaceModel, au: Array, pose: Array, gaze: Array, size: int) -> Projection:
    """Landmarks of a person under expression and pose, in pixels of a ``size``-pixel picture."""
    turn = rotation(pose[:, 0], pose[:, 1], pose[:, 2])
    flat = model.landmarks(au)

    def to_pixels(q: Array, z: Array) -> Array:
        x = np.einsum("tij,tpj->tpi", turn[:, :2, :2], q) + turn[:, None, :2, 2] * (
            z[..., None] - 0.6
        )
        return np.asarray(((pose[:, None, 5:6] * x + pose[:, None, 3:5] + 1) * size - 1) / 2)

    z = np.broadcast_to(model.depth(model.points), flat.shape[:2])
    points = to_pixels(flat, z)
    normals = np.einsum("tj,pj->tp", turn[:, 2], model.normals(model.points))
    inside = ((points > -0.5) & (points < size - 0.5)).all(-1)

    # An iris sits at the middle of the resting eye, carried by the skin, shifted by the gaze.
    corners = model.carried(au)[:, [[36, 39], [42, 45]]].mean(2)
    rest = np.stack([model.points[36:42].mean(0), model.points[42:48].mean(0)])
    rest_corners = model.points[[[36, 39], [42, 45]]].mean(1)
    look = np.sin(np.radians(gaze)) * [0.09, -0.05]
    centre = corners + (rest - rest_corners) + look[:, None]
    irises = to_pixels(
        centre.astype(np.float32), np.broadcast_to(model.depth(rest), centre.shape[:2])
    )
    return Projection(
        points=points.astype(np.float32),
        visible=(normals >= 0.1) & inside,
        irises=irises.astype(np.float32),
        iris_radius=(0.075 * model.scale[0] * pose[:, 5] * size / 2).astype(np.float32),
    )


def limit_folds(model: FaceModel, au: Array) -> Array:
    """Scale intensities down, frame by frame, until the skin map has Jacobian > .2 everywhere."""
    au = au.copy()
    units, gradients = model.fold_gradients
    todo = np.nonzero(au[:, units].any(1))[0]
    while len(todo):
        g = (au[np.ix_(todo, units)] @ gradients).reshape(len(todo), 2, 2, -1)
        jacobian = (1 + g[:, 0, 0]) * (1 + g[:, 1, 1]) - g[:, 0, 1] * g[:, 1, 0]
        todo = todo[jacobian.min(1) <= MIN_JACOBIAN]
        au[np.ix_(todo, units)] *= 0.9
    return au


def _between(
    x: Tensor, y: Tensor, upper: Tensor, lower: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coverage of the pixels between two polylines with common ends.

    Parameters
    ----------
    x, y
        ``(H, W)`` pixel coordinates.
    upper, lower
        ``(T, K, 2)`` pixels from the common left end to the common right end.

    Returns
    -------
    coverage ``(T, H, W)`` in [0, 1]; distance below the upper line, distance above the lower one,
    and horizontal coverage, pixels.
    """
    start, end = upper[:, :1], upper[:, -1:]
    along = end - start
    length = along.norm(dim=-1, keepdim=True).clamp_min(1e-3)
    along = along / length
    across = torch.stack([-along[..., 1], along[..., 0]], -1)

    def local(points: Tensor) -> tuple[Tensor, Tensor]:
        relative = points - start
        return (relative * along).sum(-1), (relative * across).sum(-1)

    a, c, s0 = along[:, 0], across[:, 0], start[:, 0]
    px = x * a[:, 0, None, None] + y * a[:, 1, None, None] - (s0 * a).sum(-1)[:, None, None]
    py = x * c[:, 0, None, None] + y * c[:, 1, None, None] - (s0 * c).sum(-1)[:, None, None]

    def height(line: Tensor) -> Tensor:
        lx, ly = local(line)
        result = ly[:, 0, None, None].expand_as(px)
        for k in range(line.shape[1] - 1):
            dx = (lx[:, k + 1] - lx[:, k]).clamp_min(1e-3)
            slope = (ly[:, k + 1] - ly[:, k]) / dx
            ramp = (px - lx[:, k, None, None]).clamp_min(0).minimum(dx[:, None, None])
            result = torch.addcmul(result, ramp, slope[:, None, None])
        return result

    below, above = py - height(upper), height(lower) - py
    inside = (above.clamp(max=0.5) + below.clamp(max=0.5)).clamp(0, 1)
    sides = (px + 0.5).clamp(0, 1) * (length[..., 0, None] - px + 0.5).clamp(0, 1)
    return inside * sides, below, above, sides


class Renderer:
    """Renders one person at one picture size.

    Parameters
    ----------
    model
        The person.
    size
        Picture side in pixels, 16 to 512.
    scale
        Head scale that the textures are filtered for.
    """

    def __init__(self, model: FaceModel, size: int, scale: float = 0.6) -> None:
        if not 16 <= size <= 512:
            raise FoveateError(f"picture size {size} is not possible; give 16 to 512 pixels")
        self.model = model
        self.size = size
        textures = model.textures
        texel = 2 * EXTENT / (textures.head.shape[0] - 1)
        sigma = 0.35 * pixel_pitch(size, scale) / texel

        def filtered(image: Array) -> Tensor:
            if sigma > 0.4:
                image = cv2.GaussianBlur(image, (0, 0), sigma)
            return torch.from_numpy(np.ascontiguousarray(image))

        looks = [*textures.albedo, textures.head, textures.hair, textures.brows, textures.lips]
        looks.append(textures.perfused)
        self.looks = torch.stack([filtered(image) for image in looks])[None]
        self.furrows = torch.stack([filtered(image) for image in textures.furrows])

        q = field_points()
        self.height = torch.from_numpy(model.depth(q))
        self.normals = torch.from_numpy(model.normals(q))
        self.blood = torch.from_numpy(model.perfusion(q))
        self.delays = delay_s(q[:, 0, 1])
        self.moves = torch.from_numpy(
            model.field_moves.transpose(0, 3, 1, 2).reshape(len(ACTION_UNITS), -1)
        )

        centres = torch.arange(size, dtype=torch.float32)
        self.y, self.x = torch.meshgrid(centres, centres, indexing="ij")
        self.screen = torch.stack([(2 * self.x + 1) / size - 1, (2 * self.y + 1) / size - 1], -1)

    def render(self, script: Script, start: int, stop: int) -> tuple[Tensor, Tensor, Projection]:
        """Frames `start` to `stop` of a script.

        Returns
        -------
        image
            ``(T, 3, H, W)`` linear light.
        parts
            ``(T, H, W)`` uint8, index into `PARTS`: what covers most of the pixel.
        projection
            Landmarks in the picture.
        """
        span = slice(start, stop)
        au, pose, gaze = script.au[span], script.pose[span], script.gaze[span]
        projection = project(self.model, au, pose, gaze, self.size)
        turn = torch.from_numpy(rotation(pose[:, 0], pose[:, 1], pose[:, 2]))
        q = self._solve(torch.from_numpy(au), turn, torch.from_numpy(pose))
        frames = len(au)
        looks = F.grid_sample(
            self.looks.expand(frames, -1, -1, -1), q, padding_mode="border", align_corners=True
        )
        albedo, head, hair = looks[:, :3], looks[:, 3], looks[:, 4]
        brows, lips, perfused = looks[:, 5], looks[:, 6], looks[:, 7]

        shade, gloss, blood = self._fields(script, span, turn, q)
        if au.any():
            weights = torch.from_numpy(au) * (0.25 / 5)
            furrows = (weights @ self.furrows.flatten(1)).view(frames, 1, *self.furrows.shape[1:])
            wrinkle = F.grid_sample(furrows, q, padding_mode="border", align_corners=True)
            albedo = albedo * (1 - wrinkle.clamp(0, 0.6))
        gain = script.gain * (1 - 0.7 * self.model.melanin)
        if gain:
            absorbed = (gain * blood * perfused)[:, None]
            colour = torch.tensor(BLOOD_COLOUR, dtype=torch.float32)[:, None, None]
            albedo = albedo * (1 - absorbed * colour)

        albedo, eyes, mouth = self._features(albedo, projection)
        face = albedo * shade[:, None] + (gloss * (1 - 0.9 * mouth) * perfused)[:, None]
        behind = self._background(script, span, pose)
        image = behind + (face - behind) * head[:, None]
        glasses = torch.zeros_like(head)
        if self.model.glasses:
            glasses = self._glasses(pose, turn)
            frame = torch.tensor(self.model.glasses_colour, dtype=torch.float32)[:, None, None]
            image = image + (frame * 0.8 - image) * glasses[:, None]
        if script.light.shadow:
            bar = self.screen[..., 0] - torch.from_numpy(script.shadow_x[span])[:, None, None]
            image = image * (1 - script.light.shadow * torch.exp(-((bar / 0.25) ** 2)))[:, None]
        image = image * torch.from_numpy(script.illumination[span])[:, :, None, None]

        part = torch.zeros_like(head, dtype=torch.uint8)
        most = 1 - head
        bare = head * (1 - glasses)
        skin = perfused * (1 - lips) * (1 - eyes) * (1 - mouth)
        covers = (skin, hair, brows, eyes, lips * (1 - mouth), mouth)
        for number, cover in enumerate([*(bare * c for c in covers), glasses], start=1):
            part.masked_fill_(cover > most, number)
            most = torch.maximum(most, cover)
        return image, part, projection

    def _solve(self, au: Tensor, turn: Tensor, pose: Tensor) -> Tensor:
        """Canonical point seen by each pixel, as ``grid_sample`` wants it: ``(T, H, W, 2)``."""
        # With J^-1 applied once and for all, a step is q += .8 (target - q - E(q)), where
        # E = D + J^-1 r_z (z - .6).
        inverse = torch.linalg.inv(turn[:, :2, :2])
        lift = inverse @ turn[:, :2, 2:]
        field = (au / 5 @ self.moves).view(len(pose), 2, -1) + lift * (self.height.flatten() - 0.6)
        field = field.view(len(pose), 2, *self.height.shape) / EXTENT
        x = (self.screen[..., 0] - pose[:, 3, None, None]) / (EXTENT * pose[:, 5, None, None])
        y = (self.screen[..., 1] - pose[:, 4, None, None]) / (EXTENT * pose[:, 5, None, None])
        (a, b), (c, d) = (row.unbind(1) for row in inverse[..., None, None].unbind(1))
        target = torch.stack([a * x + b * y, c * x + d * y], -1)
        q = target
        for _ in range(STEPS):
            error = F.grid_sample(field, q, padding_mode="border", align_corners=True)
            q = q + DAMPING * (target - q - error.permute(0, 2, 3, 1))
        return q

    def _fields(
        self, script: Script, span: slice, turn: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Diffuse light, specular light and blood volume at each pixel."""
        light = script.light
        azimuth, elevation = np.radians([light.azimuth, light.elevation])
        direction = torch.tensor(
            [
                np.sin(azimuth) * np.cos(elevation),
                -np.sin(elevation),
                np.cos(azimuth) * np.cos(elevation),
            ],
            dtype=torch.float32,
        )
        halfway = F.normalize(direction + torch.tensor([0.0, 0.0, 1.0]), dim=0)
        # Rotate the light into the head instead of every normal out of it.
        normals = self.normals.flatten(0, 1).T

        def facing(towards: Tensor) -> Tensor:
            return ((towards @ turn) @ normals).clamp_min(0).view(-1, *self.height.shape)

        lambert, phong = facing(direction), facing(halfway) ** 20
        moments = script.times[span][:, None] - self.delays
        beat = torch.from_numpy(script.pulse.at(moments).astype(np.float32))
        fields = torch.stack(
            [
                light.ambient + light.diffuse * lambert,
                light.specular * phong,
                self.blood * beat[:, :, None],
            ],
            1,
        )
        sampled = F.grid_sample(fields, q, padding_mode="border", align_corners=True)
        return sampled[:, 0], sampled[:, 1], sampled[:, 2]

    def _features(self, albedo: Tensor, at: Projection) -> tuple[Tensor, Tensor, Tensor]:
        """Draw eyes and mouth over the skin; returns albedo and both coverages."""
        points = torch.from_numpy(at.points)
        irises = torch.from_numpy(at.irises)
        radius = torch.from_numpy(at.iris_radius)[:, None, None]
        unit = radius / 0.075  # pixels per canonical unit

        def colour(rgb: npt.ArrayLike) -> Tensor:
            return torch.tensor(np.asarray(rgb, np.float32))[:, None, None]

        def around(corners: Tensor) -> tuple[slice, slice]:
            """Rows and columns that these points touch in any frame: all the rest is skipped."""
            low = (corners.amin((0, 1)) - 3).clamp(0, self.size - 1).int().tolist()
            high = (corners.amax((0, 1)) + 4).clamp(1, self.size).int().tolist()
            return slice(low[1], max(high[1], low[1] + 1)), slice(low[0], max(high[0], low[0] + 1))

        albedo = albedo.clone()
        eyes, mouth = torch.zeros_like(albedo[:, 0]), torch.zeros_like(albedo[:, 0])
        for side, first in enumerate((36, 42)):
            up, low = [first + k for k in (0, 1, 2, 3)], [first + k for k in (0, 5, 4, 3)]
            rows, columns = around(points[:, first : first + 6])
            x, y = self.x[rows, columns], self.y[rows, columns]
            opening, below, _, sides = _between(x, y, points[:, up], points[:, low])
            dx, dy = x - irises[:, side, 0, None, None], y - irises[:, side, 1, None, None]
            distance = (dx * dx + dy * dy).sqrt()
            iris = (radius - distance + 0.5).clamp(0, 1)[:, None]
            pupil = (radius * (0.035 / 0.075) - distance + 0.5).clamp(0, 1)[:, None]
            under_lid = 0.75 + 0.25 * (below / (0.06 * unit)).clamp(0, 1)
            eye = colour([0.70, 0.66, 0.63]) * under_lid[:, None]
            eye = eye + (colour(self.model.iris_colour) - eye) * iris
            eye = eye + (0.01 - eye) * pupil
            skin = albedo[:, :, rows, columns]
            drawn = skin + (eye - skin) * opening[:, None]
            width = 0.016 * unit
            lash = (1.2 * width - (below + 0.3 * width).abs() + 0.5).clamp(0, 1)
            lash = lash * (2 * width).clamp(max=1) * sides
            albedo[:, :, rows, columns] = drawn * (1 - 0.8 * lash)[:, None]
            eyes[:, rows, columns] = opening

        rows, columns = around(points[:, 60:68])
        opening, below, above, _ = _between(
            self.x[rows, columns],
            self.y[rows, columns],
            points[:, [60, 61, 62, 63, 64]],
            points[:, [60, 67, 66, 65, 64]],
        )
        gap = (below + above).clamp_min(0) / unit
        teeth = (0.075 * unit - below + 0.5).clamp(0, 1) * ((gap - 0.045) / 0.04).clamp(0, 1)
        inside = colour([0.035, 0.008, 0.008]) + colour([0.52, 0.49, 0.41]) * teeth[:, None]
        skin = albedo[:, :, rows, columns]
        albedo[:, :, rows, columns] = skin + (inside - skin) * opening[:, None]
        mouth[:, rows, columns] = opening
        return albedo, eyes, mouth

    def _background(self, script: Script, span: slice, pose: Array) -> Tensor:
        """What the head does not cover: wall, lamp and clothes."""
        ground = script.background
        base = torch.tensor(ground.colour, dtype=torch.float32)[:, None, None]
        x, y = self.screen[..., 0], self.screen[..., 1]
        frames = len(pose)
        rng = np.random.default_rng(script.background_seed)
        slope = rng.uniform(-0.35, 0.35, 2)
        wall = base * (1 + slope[0] * x + slope[1] * y)
        if ground.kind == "noise":
            coarse = rng.uniform(0.5, 1.5, (9, 9, 3)).astype(np.float32)
            pattern = cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
            wall = wall * torch.from_numpy(pattern).permute(2, 0, 1).clamp_min(0.1)
        image = wall[None].expand(frames, -1, -1, -1)
        if ground.kind == "stripes":
            angle = rng.uniform(0, np.pi)
            along = 9 * (float(np.cos(angle)) * x + float(np.sin(angle)) * y)
            t = torch.from_numpy(script.times[span].astype(np.float32))[:, None, None]
            image = image * (1 + 0.4 * torch.sin(along - 2 * np.pi * ground.speed * t))[:, None]
        if script.decoy is not None and script.decoy_signal is not None:
            lamp = torch.exp(
                -(((x - script.decoy.across * script.decoy_side) / 0.16) ** 4)
                - ((y + 0.45) / 0.35) ** 4
            )
            signal = torch.from_numpy(script.decoy_signal[span])[:, None, None, None]
            glow = torch.tensor([0.75, 0.68, 0.5])[:, None, None] * signal
            image = image + (glow - image) * lamp
        px, py, s = (torch.from_numpy(pose[:, k])[:, None, None] for k in (3, 4, 5))
        edge = self.size / 2
        neck = (0.50 * s - (x - px).abs()) * edge
        neck = neck.minimum((y - py - 0.4 * s) * edge)
        across, down = (x - px) / (1.9 * s), (y - py - 2.35 * s) / (1.0 * s)
        shoulders = (1 - (across**2 + down**2).sqrt()) * s * edge
        cloth = (torch.maximum(neck, shoulders) + 0.5).clamp(0, 1)[:, None]
        fold = 0.75 + 0.25 * torch.cos(2.2 * (x - px) / s)
        dress = torch.tensor(self.model.cloth_colour, dtype=torch.float32)[:, None, None]
        image = image + (dress * fold[:, None] * 0.7 - image) * cloth
        light: Tensor = image * (script.light.ambient + 0.5 * script.light.diffuse)
        return light

    def _glasses(self, pose: Array, turn: Tensor) -> Tensor:
        """Coverage of the glasses' frame; it sits on the head and ignores expressions."""
        model = self.model
        eyes = np.stack([model.points[36:42].mean(0), model.points[42:48].mean(0)])
        half = 0.5 * (eyes[1, 0] - eyes[0, 0])
        radius_x, radius_y = 0.62 * half, 0.5 * half
        places = np.concatenate([eyes, eyes.mean(0, keepdims=True)])
        z = torch.from_numpy(np.append(model.depth(eyes), 0.95).astype(np.float32)) + 0.05 - 0.6
        flat = torch.einsum("tij,pj->tpi", turn[:, :2, :2], torch.from_numpy(places).float())
        centre = flat + turn[:, None, :2, 2] * z[:, None]
        at = torch.from_numpy(pose)
        x = (self.screen[..., 0] - at[:, 3, None, None]) / at[:, 5, None, None]
        y = (self.screen[..., 1] - at[:, 4, None, None]) / at[:, 5, None, None]
        inverse = torch.linalg.inv(turn[:, :2, :2])[:, :, :, None, None]
        pitch = pixel_pitch(self.size, 1.0) / at[:, 5, None, None]
        cover = torch.zeros_like(x)
        for k, (rx, ry, lowest) in enumerate(
            [(radius_x, radius_y, 9.0), (radius_x, radius_y, 9.0), (0.4 * half, 0.12 * half, 0.0)]
        ):
            dx, dy = x - centre[:, k, 0, None, None], y - centre[:, k, 1, None, None]
            u = inverse[:, 0, 0] * dx + inverse[:, 0, 1] * dy
            v = inverse[:, 1, 0] * dx + inverse[:, 1, 1] * dy
            off = ((u / rx) ** 2 + (v / ry) ** 2).sqrt()
            rim = (0.028 - (off - 1).abs() * min(rx, ry)) / pitch + 0.5
            cover = torch.maximum(cover, rim.clamp(0, 1) * (v <= lowest))
        return cover


@dataclass(frozen=True, slots=True)
class Camera:
    """From linear light to 8-bit pictures.

    Attributes
    ----------
    exposure
        Gain on all light.
    white_balance
        Gains of R, G, B.
    blur
        Sigma of the point spread in pixels, 0-.8.
    motion_blur
        Sub-frames averaged into a frame, 1-3 (1: none); each costs a rendering.
    shot_noise
        k in var = k I, 1e-4 to 1e-3.
    read_noise
        Sigma in units of full scale.
    auto_exposure
        Follow the mean brightness with a first-order lag of one second.
    """

    exposure: float = 1.0
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    motion_blur: int = 1
    shot_noise: float = 4e-4
    read_noise: float = 1e-3
    auto_exposure: bool = False

    def expose(
        self, light: Tensor, state: CameraState, fps: float, generator: torch.Generator
    ) -> Tensor:
        """Take pictures of linear light ``(T, 3, H, W)``: uint8 ``(T, H, W, 3)``."""
        balance = torch.tensor(self.white_balance, dtype=torch.float32) * self.exposure
        image = light * balance[:, None, None]
        if self.blur:
            image = _gaussian(image, self.blur)
        if self.auto_exposure:
            image = image * state.follow(image.mean((1, 2, 3)), fps)[:, None, None, None]
        if self.shot_noise or self.read_noise:
            sigma = (image.clamp_min(0) * self.shot_noise + self.read_noise**2).sqrt()
            image = image + sigma * torch.randn(image.shape, generator=generator)
        image = image.clamp(0, 1)
        srgb = torch.where(
            image <= 0.0031308, 12.92 * image, 1.055 * image.clamp_min(1e-8) ** (1 / 2.4) - 0.055
        )
        return (srgb * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class CameraState:
    """What a camera remembers from frame to frame: its auto-exposure gain."""

    TARGET = 0.22
    TIME_S = 1.0

    def __init__(self) -> None:
        self.gain: float | None = None

    def follow(self, brightness: Tensor, fps: float) -> Tensor:
        """Gains for frames of the given mean brightness ``(T,)``."""
        rate = 1 - float(np.exp(-1 / (self.TIME_S * fps)))
        gains = []
        for level in brightness.tolist():
            wanted = min(max(self.TARGET / max(level, 1e-3), 0.25), 4.0)
            self.gain = wanted if self.gain is None else self.gain + rate * (wanted - self.gain)
            gains.append(self.gain)
        return torch.tensor(gains, dtype=torch.float32)


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, int(3 * sigma + 0.5))
    line = torch.exp(
        -(torch.arange(-radius, radius + 1, dtype=torch.float32) ** 2) / (2 * sigma**2)
    )
    line = (line / line.sum()).repeat(3, 1)
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, line[:, None, :, None], groups=3)
    return F.conv2d(rows, line[:, None, None, :], groups=3)


CAMERAS: dict[str, Camera] = {
    "clean": Camera(),
    "webcam": Camera(blur=0.4, shot_noise=6e-4, read_noise=2e-3),
    "phone": Camera(
        exposure=1.1,
        white_balance=(1.05, 1.0, 0.94),
        blur=0.5,
        shot_noise=8e-4,
        read_noise=3e-3,
        auto_exposure=True,
    ),
    "low light": Camera(exposure=1.8, blur=0.5, shot_noise=1e-3, read_noise=4e-3),
}
"""Named cameras."""
