"""What happens in a clip, as plain arrays over time: the script that a renderer plays.

A `Script` holds action units, pose, gaze, heartbeat, light and background of every frame. The
labels of a clip are these same arrays, so picture and label cannot disagree. Every stream is drawn
from its own random generator: identity, expression, pulse, pose and light are independent.

Dynamics. Action units are sums of events (onset, apex, offset with raised-cosine flanks); peaks
1..5 come with probability .30, .28, .22, .14, .06, so that most frames are 0 as in DISFA. Blinks
come 12-20 times a minute. Speech drives lips and jaw with syllables at 3-5 Hz and pauses. Head
motion is a sum of three slow sinusoids, with presets that mirror the PURE data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.simulate.face_geometry import ACTION_UNITS, Array
from foveate.simulate.pulse import Pulse

__all__ = [
    "EMOTIONS",
    "LIGHTS",
    "MOTIONS",
    "Background",
    "Decoy",
    "Light",
    "Motion",
    "Script",
    "au_track",
    "gaze_track",
    "light_track",
    "pose_track",
    "speech_track",
]

EMOTIONS: dict[str, tuple[dict[int, float], dict[int, float]]] = {
    "neutral": ({}, {}),
    "happy": ({6: 3.5, 12: 4.5}, {25: 3.0}),
    "sad": ({1: 4.0, 4: 3.0, 15: 4.0}, {17: 3.0}),
    "surprise": ({1: 4.5, 2: 4.5, 5: 4.0, 25: 3.5, 26: 3.5}, {}),
    "fear": ({1: 4.0, 2: 3.0, 4: 3.5, 5: 4.0, 20: 4.0, 25: 3.0}, {26: 2.0}),
    "anger": ({4: 4.5, 5: 3.0, 17: 3.5}, {}),
    "disgust": ({9: 4.5, 15: 3.0}, {17: 3.0}),
}
"""Action units of each emotion at full intensity: always, and half of the time (EMFACS-like)."""


@dataclass(frozen=True, slots=True)
class Motion:
    """How a head moves; angles in degrees, shifts in half head widths, shaking at `bounce_hz`."""

    yaw: float = 1.0
    pitch: float = 0.8
    roll: float = 0.5
    shift: float = 0.01
    travel: float = 0.0
    travel_speed: float = 0.0
    bounce: float = 0.0
    bounce_hz: float = 2.0
    base_yaw: float = 3.0
    base_pitch: float = 3.0


MOTIONS: dict[str, Motion] = {
    "still": Motion(0, 0, 0, 0, base_yaw=0, base_pitch=0),
    "steady": Motion(),
    "mild": Motion(6, 4, 3, 0.03),
    "talking": Motion(4, 4, 2.5, 0.02),
    "slow_translation": Motion(travel=0.35, travel_speed=0.07 * 2.2),
    "fast_translation": Motion(travel=0.35, travel_speed=0.14 * 2.2),
    "small_rotation": Motion(20, 2, 2, 0.02),
    "medium_rotation": Motion(30, 3, 3, 0.02),
    "moving": Motion(25, 18, 6, 0.05),
    "walking": Motion(5, 4, 3, 0.04, bounce=0.03),
}
"""Named head motions; rotation of 35 degrees (PURE setup 06) is clipped to 30."""


@dataclass(frozen=True, slots=True)
class Light:
    """Illumination of a clip.

    Attributes
    ----------
    ambient, diffuse, specular
        Strengths of the three terms, usually .35-.7, .3-.8 and 0-.12.
    azimuth, elevation
        Where the light stands, degrees (0, 0 = at the camera; positive = right, up).
    colour
        Tint of R, G, B.
    drift
        Slow swing of the whole light, as a share (.1 = +-10 %).
    flicker, flicker_hz
        Mains flicker as it aliases: share (0-.01) and rate (0-2 Hz).
    screen
        Share by which a screen's colour steps tint the light.
    shadow
        Darkness of a vertical shadow bar that crosses the face once, 0-1.
    """

    ambient: float = 0.55
    diffuse: float = 0.5
    specular: float = 0.04
    azimuth: float = 15.0
    elevation: float = 25.0
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    drift: float = 0.0
    flicker: float = 0.0
    flicker_hz: float = 0.3
    screen: float = 0.0
    shadow: float = 0.0


LIGHTS: dict[str, Light] = {
    "soft": Light(),
    "side": Light(ambient=0.38, diffuse=0.75, azimuth=55, elevation=10),
    "low": Light(ambient=0.18, diffuse=0.17, colour=(1.1, 1.0, 0.8), drift=0.03),
    "flat": Light(ambient=0.95, diffuse=0.0, specular=0.0),
    "screen": Light(ambient=0.4, diffuse=0.4, azimuth=0, elevation=0, screen=0.1),
    "flicker": Light(drift=0.05, flicker=0.006, flicker_hz=1.2),
}
"""Named lights; ``random`` draws one from the clip's own generator."""


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the head: ``gradient``, ``noise`` or moving ``stripes``."""

    kind: Literal["gradient", "noise", "stripes"] = "gradient"
    colour: tuple[float, float, float] = (0.25, 0.27, 0.30)
    speed: float = 0.5


@dataclass(frozen=True, slots=True)
class Decoy:
    """A lamp beside the head, on one side only, that flickers: a wrong place to look at.

    Attributes
    ----------
    bpm
        Its own rate in beats per minute; None follows the person's true pulse exactly, which makes
        the lamp a perfect and useless predictor in training.
    side
        ``left`` or ``right`` of the picture; None tosses a coin.
    gain
        Peak share of the flicker.
    across
        Distance from the middle of the picture, in half pictures; nearer than .7 it lies within a
        usual face crop.
    """

    bpm: float | None = None
    side: Literal["left", "right"] | None = None
    gain: float = 0.03
    across: float = 0.82


@dataclass(frozen=True)
class Script:
    """Everything a renderer needs, one row per frame.

    Attributes
    ----------
    times
        ``(T,)`` seconds.
    au
        ``(T, 13)`` intensities 0-5 in the order of `ACTION_UNITS`.
    pose
        ``(T, 6)``: yaw, pitch, roll (degrees), x, y (in half pictures), head scale (half face
        width in half pictures).
    gaze
        ``(T, 2)`` gaze yaw and pitch in degrees relative to the head.
    speaking
        ``(T,)`` bool.
    pulse, gain
        The heartbeat and its peak AC/DC in the green of the lightest skin.
    illumination
        ``(T, 3)`` strength of all light in R, G, B.
    light
        Ambient, diffuse, specular and direction.
    shadow_x
        ``(T,)`` centre of the shadow bar in half pictures.
    background, background_seed
        What is behind.
    decoy, decoy_side, decoy_signal
        The lamp, -1 (left) or 1, and its relative brightness ``(T,)`` around 1; None without.
    """

    times: npt.NDArray[np.float64]
    au: Array
    pose: Array
    gaze: Array
    speaking: npt.NDArray[np.bool_]
    pulse: Pulse
    gain: float
    illumination: Array
    light: Light
    shadow_x: Array
    background: Background = Background()
    background_seed: int = 0
    decoy: Decoy | None = None
    decoy_side: int = 0
    decoy_signal: Array | None = None


def _flanked(t: Array, start: float, onset: float, apex: float, offset: float) -> Array:
    """An event: raised-cosine onset, plateau, raised-cosine offset; 0 to 1."""
    rise = np.clip((t - start) / onset, 0, 1)
    fall = np.clip((t - start - onset - apex) / offset, 0, 1)
    return np.asarray((1 - np.cos(np.pi * rise)) / 2 * (1 + np.cos(np.pi * fall)) / 2)


def _add_events(track: Array, t: Array, rng: np.random.Generator, rate_hz: float) -> None:
    span = t[-1] + 4.0
    for start in rng.uniform(-4, t[-1], rng.poisson(rate_hz * span)):
        peak = rng.choice(5, p=[0.30, 0.28, 0.22, 0.14, 0.06]) + 1
        onset, apex, offset = rng.uniform([0.2, 0.3, 0.3], [0.6, 3.0, 1.5])
        track += peak * _flanked(t, start, onset, apex, offset)


def _add_blinks(track: Array, t: Array, rng: np.random.Generator) -> None:
    gap = 60 / rng.uniform(12, 20)
    moment = rng.uniform(0.2, gap)
    while moment < t[-1]:
        track += 5 * _flanked(t, moment, 0.15, 0.0, 0.2)
        moment += max(0.6, rng.normal(gap, 0.3 * gap))


def au_track(
    times: npt.NDArray[np.float64],
    aus: Mapping[int, float | npt.ArrayLike] | Literal["random"] | None,
    emotion: str | None,
    rng: np.random.Generator,
) -> Array:
    """Intensities of all action units over time: ``(T, 13)`` in [0, 5].

    Parameters
    ----------
    aus
        None: a calm face that blinks. ``random``: events of every unit, and blinks. A mapping from
        FACS number to a constant or a ``(T,)`` course: exactly that, no blinks.
    emotion
        One of `EMOTIONS`, acted out over the clip on top of `aus`.
    """
    t = times.astype(np.float32)
    au = np.zeros((len(t), len(ACTION_UNITS)), np.float32)
    if isinstance(aus, Mapping):
        for unit, course in aus.items():
            if unit not in ACTION_UNITS:
                raise FoveateError(f"AU{unit} is not simulated; known are {ACTION_UNITS}")
            au[:, ACTION_UNITS.index(unit)] = np.asarray(course, np.float32)
        if not np.isfinite(au).all() or au.min() < 0 or au.max() > 5:
            raise FoveateError("action unit intensities must lie between 0 and 5")
    else:
        if aus == "random":
            for unit in ACTION_UNITS[:-1]:
                _add_events(au[:, ACTION_UNITS.index(unit)], t, rng, 0.06)
        elif aus is not None:
            raise FoveateError(f"aus={aus!r}; give None, 'random' or a mapping {{AU: intensity}}")
        _add_blinks(au[:, ACTION_UNITS.index(45)], t, rng)
    if emotion is not None:
        if emotion not in EMOTIONS:
            raise FoveateError(f"emotion {emotion!r} is not known; known are {sorted(EMOTIONS)}")
        always, sometimes = EMOTIONS[emotion]
        strength = rng.uniform(0.6, 1.0)
        start, onset = rng.uniform(-0.4, 0.1 * t[-1] + 0.01), rng.uniform(0.2, 0.5)
        course = _flanked(t, start, onset, max(0.7 * float(t[-1]), 0.3), 0.8)
        chosen = always | {unit: a for unit, a in sometimes.items() if rng.random() < 0.5}
        for unit, intensity in chosen.items():
            au[:, ACTION_UNITS.index(unit)] += strength * intensity * course
    return np.clip(au, 0, 5)


def speech_track(
    times: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Lips and jaw of somebody who talks: intensities ``(T, 13)`` to add, and who-speaks ``(T,)``.

    Syllables are half-sine bursts at 3-5 Hz with random amplitude 0-3; phrases of 1-3 s alternate
    with pauses of .3-1 s; corners and chin jitter a little.
    """
    au = np.zeros((len(times), len(ACTION_UNITS)), np.float32)
    speaking = np.zeros(len(times), bool)
    column = {unit: ACTION_UNITS.index(unit) for unit in (12, 17, 20, 25, 26)}
    t = rng.uniform(-0.5, 0.3)
    while t < times[-1]:
        phrase_end = t + rng.uniform(1, 3)
        speaking |= (times >= t) & (times < phrase_end)
        while t < phrase_end:
            length = 1 / rng.uniform(3, 5)
            burst = np.sin(np.pi * np.clip((times - t) / length, 0, 1)).astype(np.float32)
            opening = rng.uniform(0, 3)
            au[:, column[25]] += np.float32(opening) * burst
            au[:, column[26]] += np.float32(opening * rng.uniform(0.3, 0.8)) * burst
            jitter = (12, 17, 20)[int(rng.integers(3))]
            au[:, column[jitter]] += np.float32(rng.uniform(0, 0.8)) * burst
            t += length
        t += rng.uniform(0.3, 1.0)
    return au, speaking


def _wander(t: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Three sinusoids of .05-.5 Hz, largest excursion 1 (over any long time)."""
    weights = rng.uniform(0.4, 1.0, 3)
    rates, phases = rng.uniform(0.05, 0.5, 3), rng.uniform(0, 2 * np.pi, 3)
    waves = weights * np.sin(2 * np.pi * rates * t[:, None] + phases)
    return np.asarray(waves.sum(1) / weights.sum())


def pose_track(
    times: npt.NDArray[np.float64], motion: Motion | str, rng: np.random.Generator
) -> Array:
    """Yaw, pitch, roll, x, y, scale over time: ``(T, 6)``; |yaw| <= 30, |pitch| <= 20 degrees."""
    if isinstance(motion, str):
        if motion not in MOTIONS:
            raise FoveateError(f"motion {motion!r} is not known; known are {sorted(MOTIONS)}")
        motion = MOTIONS[motion]
    scale = rng.uniform(0.55, 0.68)
    yaw = motion.base_yaw * rng.uniform(-1, 1) + motion.yaw * _wander(times, rng)
    pitch = motion.base_pitch * rng.uniform(-1, 1) + motion.pitch * _wander(times, rng)
    roll = motion.roll * _wander(times, rng)
    x = scale * motion.shift * _wander(times, rng)
    y = scale * motion.shift * _wander(times, rng) + 0.04
    if motion.travel:  # to and fro at an even speed: a triangle wave
        phase = rng.uniform(0, 1) + times * motion.travel_speed / (4 * motion.travel)
        x = x + scale * motion.travel * (4 * abs(phase % 1 - 0.5) - 1)
    if motion.bounce:
        step = 2 * np.pi * motion.bounce_hz * times + rng.uniform(0, 2 * np.pi)
        y = y + scale * motion.bounce * np.sin(step)
        roll = roll + 1.5 * np.sin(step / 2)
    zoom = scale * (1 + 0.3 * motion.shift * _wander(times, rng))
    pose = [np.clip(yaw, -30, 30), np.clip(pitch, -20, 20), roll, x, y, zoom]
    return np.stack(pose, 1).astype(np.float32)


def gaze_track(times: npt.NDArray[np.float64], rng: np.random.Generator) -> Array:
    """Fixations of .5-3 s joined by fast saccades: ``(T, 2)`` degrees, within +-25."""
    moments, targets = [times[0] - 1.0], [rng.normal(0, 4, 2)]
    t = times[0] + rng.uniform(0, 2)
    while t < times[-1] + 1:
        target = np.clip(rng.normal(0, [9, 6]), -25, 25)
        moments += [t, t + 0.05]
        targets += [targets[-1], target]
        t += 0.05 + rng.uniform(0.5, 3)
    moments.append(times[-1] + 5)
    targets.append(targets[-1])
    path = np.array(targets)
    return np.stack([np.interp(times, moments, path[:, axis]) for axis in (0, 1)], 1).astype(
        np.float32
    )


def light_track(
    times: npt.NDArray[np.float64], light: Light | str, rng: np.random.Generator
) -> tuple[Light, Array, Array]:
    """The light of a clip: its constants, strength over time ``(T, 3)``, shadow path ``(T,)``."""
    if isinstance(light, str):
        if light == "random":
            light = Light(
                ambient=rng.uniform(0.35, 0.7),
                diffuse=rng.uniform(0.3, 0.8),
                specular=rng.uniform(0, 0.12),
                azimuth=rng.uniform(-60, 60),
                elevation=rng.uniform(-10, 50),
                colour=tuple(rng.uniform([0.9, 0.95, 0.8], [1.1, 1.05, 1.1]).tolist()),
                drift=rng.uniform(0, 0.1),
                flicker=rng.uniform(0, 0.01) * (rng.random() < 0.3),
                flicker_hz=rng.uniform(0, 2),
            )
        elif light in LIGHTS:
            light = LIGHTS[light]
        else:
            known = sorted([*LIGHTS, "random"])
            raise FoveateError(f"light {light!r} is not known; known are {known}")
    phase = rng.uniform(0, 2 * np.pi)
    strength = 1 + light.drift * _wander(times, rng)
    strength *= 1 + light.flicker * np.sin(2 * math.pi * light.flicker_hz * times + phase)
    colour = np.array(light.colour) * np.ones((len(times), 1))
    if light.screen:
        t, tint = 0.0, np.ones((len(times), 3))
        while t < times[-1]:
            until = t + rng.uniform(0.7, 3)
            tint[(times >= t) & (times < until)] += light.screen * rng.uniform(-1, 1, 3)
            t = until
        colour = colour * tint
    shadow_x = np.interp(times, [times[0], times[-1] + 1e-9], rng.permutation([-1.4, 1.4]))
    return light, (strength[:, None] * colour).astype(np.float32), shadow_x.astype(np.float32)
