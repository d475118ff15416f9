"""What is drawn against what is labelled: part by part, and beat by beat.

Heads look straight ahead in the pulse tests, so that the renderer's inverse problem is a division:
the pixel at (x, y) of a picture of n pixels sees u = ((2 x + 1) / n - 1) / s, and likewise v.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from foveate.simulate.face_geometry import ACTION_UNITS
from foveate.simulate.face_model import FaceModel
from foveate.simulate.face_renderer import PARTS, Camera, Renderer, limit_folds
from foveate.simulate.faces import FaceSim
from foveate.simulate.pulse import Pulse
from foveate.simulate.scripts import Light, Script

SCALE = 0.6
FLAT = Light(ambient=0.9, diffuse=0.0, specular=0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def script(frames: int = 1, fps: float = 120.0, **changes: Any) -> Script:
    """A head that does nothing, with a heart like a metronome at 75 bpm."""
    values: dict[str, Any] = {
        "times": np.arange(frames) / fps,
        "au": np.zeros((frames, len(ACTION_UNITS)), np.float32),
        "pose": np.tile(np.float32([0, 0, 0, 0, 0, SCALE]), (frames, 1)),
        "gaze": np.zeros((frames, 2), np.float32),
        "speaking": np.zeros(frames, bool),
        "pulse": Pulse(np.arange(-5, 60) * 0.8),
        "gain": 0.0,
        "illumination": np.ones((frames, 3), np.float32),
        "light": FLAT,
        "shadow_x": np.zeros(frames, np.float32),
    }
    return Script(**(values | changes))


def units(frames: int = 1, **levels: float) -> npt.NDArray[np.float32]:
    au = np.zeros((frames, len(ACTION_UNITS)), np.float32)
    for name, level in levels.items():
        au[:, ACTION_UNITS.index(int(name[2:]))] = level
    return au


def render(renderer: Renderer, played: Script) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Linear light ``(T, 3, H, W)`` in double precision, and the part map of the first frame."""
    light, parts, _ = renderer.render(played, 0, len(played.times))
    return light.numpy().astype(np.float64), parts[0].numpy()


def inner(parts: npt.NDArray[Any], name: str, margin: int = 2) -> npt.NDArray[np.bool_]:
    """Pixels of a part, clear of its soft edges."""
    area = (parts == PARTS.index(name)).astype(np.uint8)
    return cv2.erode(area, np.ones((2 * margin + 1,) * 2, np.uint8)).astype(bool)


def canonical(pixel: npt.ArrayLike, size: int, scale: float = SCALE, shift: float = 0.0) -> Any:
    return ((2 * np.asarray(pixel) + 1) / size - 1 - shift) / scale


# ------------------------------------------------------------------- parts where the labels say


def off_by(drawn: npt.NDArray[np.bool_], outline: npt.NDArray[Any]) -> float:
    """How far, in pixels, a pixel on the wrong side of an outline lies from it at most."""
    contour = outline.astype(np.float32)[:, None]
    low, high = outline.min(0).astype(int) - 6, outline.max(0).astype(int) + 7
    wrong = 0.0
    for x, y in np.ndindex(*(high - low)):
        at = x + low[0], y + low[1]
        distance = cv2.pointPolygonTest(contour, (float(at[0]), float(at[1])), True)
        if (distance > 0) != drawn[at[1], at[0]]:
            wrong = max(wrong, abs(distance))
    return wrong


POSES = [(0, 0, 0), (16, -8, 5), (-18, 8, -6)]


@pytest.mark.parametrize("identity", range(8))
def test_parts_end_where_their_landmarks_are(identity: int) -> None:
    """Eyes, mouth, lips, brows and chin; the bound of the specification, half a pixel at 64 x 64,
    is one pixel here. Lids and inner lips are drawn from the labels, lips are painted on skin."""
    model = FaceModel(identity)
    model.glasses = False
    renderer = Renderer(model, 128)
    open_face = limit_folds(model, units(au5=3.0, au25=4.0, au26=3.0))
    for turn in POSES:
        pose = np.float32([[*turn, 0.04, -0.02, SCALE]])
        _, parts, at = renderer.render(script(au=open_face, pose=pose), 0, 1)
        points = at.points[0]
        eyes, mouth, lips, brows = (
            parts[0].numpy() == PARTS.index(name) for name in ("eyes", "mouth", "lips", "brows")
        )
        for eye in (slice(36, 42), slice(42, 48)):
            assert off_by(eyes, points[eye]) < 0.3
        assert off_by(mouth, points[60:68]) < 0.3
        assert off_by(lips | mouth, points[48:60]) < 1.1
        # A brow is a stroke of the person's width along its points.
        width = 1.1 * model.brow_width * SCALE * 64
        line = np.ones_like(brows, np.uint8)
        for brow in (slice(17, 22), slice(22, 27)):
            cv2.polylines(line, [np.rint(points[brow]).astype(np.int32)], False, 0)
        away = cv2.distanceTransform(line, cv2.DIST_L2, 5)
        assert brows.sum() > 20
        assert away[brows].max() < width + 1.5
        # The outline is drawn .02 to .03 (about a pixel) outside the points of the chin.
        head = cv2.distanceTransform((parts[0].numpy() > 0).astype(np.uint8), cv2.DIST_L2, 5)
        chin = np.rint(points[5:12]).astype(int)
        assert ((head[chin[:, 1], chin[:, 0]] > 0.9) & (head[chin[:, 1], chin[:, 0]] < 2.6)).all()


# --------------------------------------------------------------------- the pulse, where and when


def late_by(trace: npt.NDArray[Any], reference: npt.NDArray[Any], fps: float) -> float:
    """Seconds by which a periodic trace lags behind another: peak of the cross-correlation.

    Both hold one beat, so the correlation is circular; its spectrum is padded 64-fold.
    """
    spectrum = np.fft.rfft(trace - trace.mean()) * np.conj(np.fft.rfft(reference))
    spectrum[0] = 0
    fine = np.fft.irfft(spectrum, 64 * len(trace))
    lag = int(fine.argmax())
    return (lag if lag < len(fine) / 2 else lag - len(fine)) / (64 * fps)


def expected_delay(v: float) -> float:
    return 0.020 * min(max(v + 0.5, 0.0), 2.0)


@pytest.mark.parametrize("identity", [0, 1, 3])
def test_lower_rows_of_the_picture_pulsate_later(identity: int) -> None:
    """One beat in linear light, against the first row of the forehead."""
    model = FaceModel(identity, melanin=0.05)
    light, parts = render(Renderer(model, 96), script(96, gain=0.3))
    skin = inner(parts, "skin")
    rows = [y for y in range(96) if skin[y].sum() >= 6]
    reference = light[:, 1, rows[0]][:, skin[rows[0]]].mean(1)
    assert canonical(rows[0], 96) < -0.5
    assert canonical(rows[-1], 96) > 0.9
    for y in rows:
        lag = late_by(light[:, 1, y][:, skin[y]].mean(1), reference, 120.0)
        assert lag == pytest.approx(expected_delay(canonical(y, 96)), abs=2e-4), y


def test_the_delay_is_in_the_finished_frames() -> None:
    """20 ms per unit of height, seen through camera noise and 8 bits."""
    clip = FaceSim(96, fps=120).clip(
        3, 4.8, hr=75, aus={}, motion="still", light=FLAT, variability=0, melanin=0.05,
        pulse_gain=0.1,
    )  # fmt: skip
    skin = inner(clip.labels["parts"][0], "skin")
    _, _, _, _, shift, scale = clip.labels["pose"][0]
    code = clip.frames[..., 1].astype(float) / 255
    green = np.where(code > 0.04045, ((code + 0.055) / 1.055) ** 2.4, code / 12.92)

    def one_beat(trace: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(trace.astype(float).reshape(6, 96).mean(0))

    reference = one_beat(-clip.labels["bvp"])  # blood darkens
    heights, lags = [], []
    for top in range(0, 96, 4):
        band = skin.copy()
        band[:top], band[top + 4 :] = False, False
        if band.sum() >= 60:
            heights.append(canonical(np.nonzero(band)[0].mean(), 96, scale, shift))
            lags.append(late_by(one_beat(green[:, band].mean(1)), reference, 120.0))
    expected = [expected_delay(v) for v in heights]
    assert np.ptp(heights) > 0.8
    np.testing.assert_allclose(lags, expected, atol=2.5e-3)
    slope, offset = np.polyfit(expected, lags, 1)
    assert slope == pytest.approx(1, abs=0.08)
    assert abs(offset) < 1e-3


def perfusion_by_hand(u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Section 4 of the specification, before it is divided by its mean over the face."""
    cheeks = np.exp(-((abs(u) - 0.5) ** 2) / (2 * 0.25**2)) + np.exp(
        -((abs(u) + 0.5) ** 2) / (2 * 0.25**2)
    )
    forehead = np.exp(-(u**2) / (2 * 0.5**2) - (v + 0.8) ** 2 / (2 * 0.18**2))
    nose = np.exp(-(u**2) / (2 * 0.12**2) - (v - 0.1) ** 2 / (2 * 0.3**2))
    return np.asarray(
        0.55
        + 0.45 * cheeks * np.exp(-((v - 0.15) ** 2) / (2 * 0.22**2))
        + 0.45 * forehead
        + 0.2 * nose
    )


def fundamental(dicrotic: float) -> float:
    """Amplitude of the first harmonic of b(p): two Gaussians have Gaussian spectra."""
    waves = [(1.0, 0.25, 0.09), (dicrotic, 0.55, 0.11)]
    c1 = sum(
        a * w * math.sqrt(2 * math.pi) * math.exp(-2 * (math.pi * w) ** 2)
        * np.exp(-2j * math.pi * p)
        for a, p, w in waves
    )  # fmt: skip
    return 2 * abs(c1)


@pytest.mark.parametrize("identity", [0, 1, 3])
def test_every_pixel_pulsates_as_strongly_as_its_skin_is_perfused(identity: int) -> None:
    model = FaceModel(identity, melanin=0.3)
    model.glasses = False
    light, parts = render(Renderer(model, 96), script(96, gain=0.1))
    green = light[:, 1]
    first = abs(np.fft.rfft(green, axis=0)[1]) * 2 / len(green)
    relative = first / green.mean(0) / (0.1 * (1 - 0.7 * 0.3) * fundamental(0.35))
    y, x = np.nonzero(inner(parts, "skin", 3))
    sx, sy = model.scale
    expected = perfusion_by_hand(canonical(x, 96) / sx, canonical(y, 96) / sy)
    got = relative[y, x]
    assert np.ptp(expected) / expected.mean() > 0.5
    np.testing.assert_allclose(got / got.mean(), expected / expected.mean(), rtol=0.02)
    pulsates = np.isin(parts, [PARTS.index("skin"), PARTS.index("lips")])
    assert relative[pulsates].mean() == pytest.approx(1, abs=0.04)  # mean 1 over the face


@pytest.mark.parametrize("identity", range(6))
def test_highlights_eyes_and_the_inside_of_the_mouth_do_not_pulsate(identity: int) -> None:
    model = FaceModel(identity, melanin=0.1)
    model.glasses = False
    renderer = Renderer(model, 160)
    face = np.repeat(limit_folds(model, units(au5=4.0, au25=5.0, au26=3.0)), 24, 0)
    shining = Light(ambient=0.5, diffuse=0.4, specular=0.12)
    dull = Light(ambient=0.5, diffuse=0.4, specular=0.0)
    played = script(24, fps=30.0, au=face, gain=0.05, light=shining)
    light, parts, at = renderer.render(played, 0, 24)
    image = light.numpy().astype(np.float64)
    swing = np.ptp(image, axis=0) / image.mean(0)
    # What the shine adds is the same in every frame, on skin that changes by percents.
    shine = image - render(renderer, script(24, fps=30.0, au=face, gain=0.05, light=dull))[0]
    skin = inner(parts[0].numpy(), "skin")
    assert np.median(swing[1, skin]) > 0.02
    assert shine.mean(0)[:, skin].max() > 0.03
    assert np.ptp(shine, axis=0)[:, skin].max() < 2e-6
    # Eyes and mouth: not by the part map, but inside the landmarks.
    for part in (slice(36, 42), slice(42, 48), slice(60, 68)):
        area = np.zeros((160, 160), np.uint8)
        cv2.fillPoly(area, [np.rint(at.points[0, part]).astype(np.int32)], 1)
        inside = cv2.erode(area, np.ones((5, 5), np.uint8)).astype(bool)
        assert inside.sum() > 10
        assert np.ptp(image, axis=0)[:, inside].max() < 2e-6, part


def test_shine_is_what_makes_a_pulse_look_weaker() -> None:
    """AC/DC falls by the share of the light that is shine: it adds to DC alone."""
    model = FaceModel(2, melanin=0.1)
    renderer = Renderer(model, 96)
    images = {
        specular: render(
            renderer,
            script(96, gain=0.05, light=Light(ambient=0.5, diffuse=0.3, specular=specular)),
        )
        for specular in (0.0, 0.12)
    }
    (dull, parts), (shining, _) = images[0.0], images[0.12]
    skin = inner(parts, "skin")

    def strength(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(np.ptp(image[:, 1][:, skin], axis=0) / image[:, 1][:, skin].mean(0))

    share = dull[:, 1][:, skin].mean(0) / shining[:, 1][:, skin].mean(0)
    assert share.min() < 0.9
    np.testing.assert_allclose(strength(shining), strength(dull) * share, rtol=1e-3)


def test_a_dark_picture_keeps_its_pulse_by_the_noise_of_the_camera() -> None:
    """Without noise a weak pulse on dark skin stays below one code in most pixels."""
    swings = []
    for noise in (0.0, 4e-3):
        camera = Camera(exposure=0.6, shot_noise=0.0, read_noise=noise)
        clip = FaceSim(48, seed=1).clip(
            0, 6.4, hr=75, aus={}, motion="still", light=FLAT, variability=0, melanin=0.85,
            pulse_gain=0.01, camera=camera,
        )  # fmt: skip
        green = clip.frames[:, inner(clip.labels["parts"][0], "skin"), 1].astype(float)
        swings.append(np.mean(np.ptp(green, axis=0) == 0))
    still, dithered = swings
    assert still > 0.5
    assert dithered < 0.05
