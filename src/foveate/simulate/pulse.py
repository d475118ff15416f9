"""A heartbeat with a known answer: beat times, the blood volume pulse, and its colour on skin.

Beats come first; every other label follows from them. With instantaneous rate HR(t) and
respiratory, Mayer and white variability, successive beats are

    RR_k = 60 / HR(t_k) * (1 + .03 sin(2 pi .25 t_k + r) + .02 sin(2 pi .1 t_k + m) + .01 N(0, 1)),

breathing and Mayer wave each beginning anywhere in their cycle (phases r and m).

Between beats the phase p runs from 0 to 1 and the blood volume pulse (BVP) is a systolic and a
dicrotic wave, b(p) = exp(-w(p - .25)^2 / (2 .09^2)) + d exp(-w(p - .55)^2 / (2 .11^2)), where w
wraps to [-.5, .5). Its mean over a beat is closed form: "b - mean b" is the same in any excerpt.

More blood absorbs more light: skin reflects rho_c = rho0_c (1 - g m_c (b - mean b)) in *linear*
light, with m = (.43, 1, .69) for R, G, B (the blood volume signature of de Haan & van Leest 2014,
as remembered). The label keeps the sign of a contact sensor, systole up; the picture darkens.

`apply_pulse` puts such a pulse into a *real* photo or video. The result is a picture of a real face
with a simulated pulse: never present it as a measured person. Whoever writes it to a file marks the
container ``simulated_pulse=true`` (`codecs.encode` takes the metadata).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.simulate.face_geometry import canonical_points, delay_s, forehead, perfusion

__all__ = [
    "BLOOD_COLOUR",
    "HeartRate",
    "Pulse",
    "PulseLabels",
    "PulsedFrames",
    "SkinMap",
    "apply_pulse",
    "beat_times",
    "bvp_signal",
    "mean_rate_bpm",
    "pulsed_frames",
    "skin_map",
]

Float64 = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]
Video = npt.NDArray[np.uint8]

BLOOD_COLOUR = (0.33 / 0.77, 1.0, 0.53 / 0.77)
"""Relative modulation of R, G, B by blood volume, G = 1."""

Rhythm = Literal["sinus", "ectopic", "fibrillation"]


@dataclass(frozen=True, slots=True)
class HeartRate:
    """Course of the heart rate over a recording, in bpm.

    Attributes
    ----------
    start, end
        Rate at the first and the last moment, 40 to 180 bpm; `end` None keeps `start`.
    shape
        ``ramp`` goes evenly from `start` to `end`, ``step`` jumps half-way.
    """

    start: float
    end: float | None = None
    shape: Literal["ramp", "step"] = "ramp"

    def __post_init__(self) -> None:
        for rate in (self.start, self.end):
            if rate is not None and not 40 <= rate <= 180:
                raise FoveateError(f"heart rate {rate} bpm cannot be simulated; give 40 to 180")

    def at(self, share: float) -> float:
        """Rate in bpm when `share` (0 to 1) of the recording has passed."""
        if self.end is None:
            return self.start
        share = min(max(share, 0.0), 1.0)
        if self.shape == "step":
            share = float(share >= 0.5)
        return self.start + share * (self.end - self.start)


def beat_times(
    rate: HeartRate | float,
    seconds: float,
    rng: np.random.Generator,
    *,
    variability: float = 1.0,
    rhythm: Rhythm = "sinus",
    breath: float | None = None,
) -> Float64:
    """Moments of the heart beats in seconds, from before 0 to after `seconds`.

    Parameters
    ----------
    rate
        Course of the rate, or one number in bpm (40 to 180).
    variability
        Factor on the three variability terms; 0 is a metronome.
    rhythm
        ``sinus``; ``ectopic`` (one beat in 200 comes early and is followed by a pause);
        ``fibrillation`` (independent intervals with a coefficient of variation of .15).
    breath
        Phase r of the breathing in radians, to share it with `Pulse`; None draws one.
    """
    if not 0 < seconds <= 24 * 3600:
        raise FoveateError(f"a recording of {seconds} s cannot be simulated; give up to 24 h")
    if not isinstance(rate, HeartRate):
        rate = HeartRate(float(rate))
    mayer, drawn = rng.uniform(0, 2 * np.pi, 2)
    breath = drawn if breath is None else breath
    t = -3.0 - rng.uniform(0, 60 / rate.start)
    beats = [t]
    early = False
    while t < seconds + 3.0:
        white = rng.normal()
        if rhythm == "fibrillation":
            factor = 1 + 0.15 * white
        else:
            factor = 1 + variability * (
                0.03 * math.sin(2 * math.pi * 0.25 * t + breath)
                + 0.02 * math.sin(2 * math.pi * 0.1 * t + mayer)
                + 0.01 * white
            )
        if rhythm == "ectopic":
            if early:
                factor, early = 1.35 * factor, False
            elif rng.random() < 0.005:
                factor, early = 0.65 * factor, True
        t += 60 / rate.at(t / seconds) * min(max(factor, 0.5), 1.6)
        beats.append(t)
    return np.array(beats)


def mean_rate_bpm(beats: Float64, start: float, end: float) -> float:
    """Mean heart rate between two moments: beats (with fractions) per minute."""
    number = np.arange(len(beats), dtype=np.float64)
    count = np.interp(end, beats, number) - np.interp(start, beats, number)
    return float(60 * count / (end - start))


@dataclass(frozen=True, slots=True)
class Pulse:
    """The blood volume pulse of known beats.

    Attributes
    ----------
    beats
        Increasing beat times in seconds, reaching beyond every moment that is asked for.
    dicrotic
        Height d of the second wave, .15 to .5.
    breathing
        Share by which breathing (.25 Hz) swings the amplitude, usually 0 or .1.
    breath
        Phase of the breathing in radians, the one of `beat_times`.
    """

    beats: Float64
    dicrotic: float = 0.35
    breathing: float = 0.0
    breath: float = 0.0

    @property
    def mean(self) -> float:
        """Mean of b over a beat: both waves are narrow against the beat, so their areas add."""
        root = math.sqrt(2 * math.pi)
        return root * (
            0.09 * math.erf(0.5 / (0.09 * math.sqrt(2)))
            + 0.11 * self.dicrotic * math.erf(0.5 / (0.11 * math.sqrt(2)))
        )

    def at(self, times: npt.ArrayLike) -> Float64:
        """b(t) - mean b at `times` in seconds, any shape; systole up, unit systolic height."""
        t = np.asarray(times, np.float64)
        p = np.interp(t, self.beats, np.arange(len(self.beats), dtype=np.float64)) % 1.0

        def wave(centre: float, width: float) -> Float64:
            distance = (p - centre + 0.5) % 1.0 - 0.5
            return np.asarray(np.exp(-(distance**2) / (2 * width**2)))

        b = wave(0.25, 0.09) + self.dicrotic * wave(0.55, 0.11) - self.mean
        swing = self.breathing * np.sin(2 * np.pi * 0.25 * t + self.breath)
        return np.asarray(b * (1 + swing))


def bvp_signal(
    rate: HeartRate | float,
    seconds: float,
    fps: float,
    *,
    variability: float = 1.0,
    rhythm: Rhythm = "sinus",
    seed: int = 0,
) -> tuple[Float64, Float64]:
    """A blood volume pulse alone, as a contact sensor would give it.

    Returns
    -------
    bvp, beats
        ``(round(seconds * fps),)`` centred BVP, systole up; and the beat times in seconds.
    """
    beats = beat_times(
        rate, seconds, np.random.default_rng(seed), variability=variability, rhythm=rhythm
    )
    return Pulse(beats).at(np.arange(round(seconds * fps)) / fps), beats


class PulseLabels(TypedDict):
    """What is known about a picture or video that was given a pulse.

    ``times`` (T,) s; ``beat_times`` (K,) s (empty when a BVP was given); ``bvp`` (T,) zero mean,
    unit variance, systole up; ``hr_mean_bpm`` (nan when a BVP was given); ``simulated_pulse`` True.
    """

    times: Float64
    beat_times: Float64
    bvp: npt.NDArray[np.float32]
    hr_mean_bpm: float
    simulated_pulse: bool


@dataclass(frozen=True, slots=True)
class SkinMap:
    """Where a picture pulsates.

    Attributes
    ----------
    weight
        ``(H, W)`` perfusion times skin coverage, with mean 1 over the skin.
    delay
        ``(H, W)`` uint8, arrival of the pulse wave in steps of `DELAY_STEP` seconds.
    """

    weight: npt.NDArray[np.float32]
    delay: npt.NDArray[np.uint8]


DELAY_STEP = 0.002
DELAYS = 21  # 0 to 40 ms


def skin_map(
    image: Picture,
    landmarks: npt.ArrayLike | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> SkinMap:
    """Find the skin of one face and how strongly and how late each pixel pulsates.

    With `landmarks` ``(68, 2)`` in pixels, an affine fit of the mean face says where forehead and
    cheeks are, and skin is the face outline without eyes, brows and mouth, as far as its colour is
    near that of the cheeks. With a face `box` ``(x, y, width, height)`` alone the outline is an
    ellipse and skin a fixed range of chroma. With neither, all skin-coloured pixels pulsate alike.

    Raises
    ------
    FoveateError
        Landmarks of another shape, or no skin where a face was said to be.
    """
    height, width = image.shape[:2]
    weight = np.zeros((height, width), np.float32)
    delay = np.zeros((height, width), np.uint8)
    if landmarks is not None:
        points = np.asarray(landmarks, np.float64)
        if points.shape != (68, 2) or not np.isfinite(points).all():
            raise FoveateError(f"landmarks have shape {points.shape}; give 68 points (x, y)")
        mean = np.c_[canonical_points()[:68], np.ones(68)]
        affine = np.asarray(np.linalg.lstsq(mean, points, rcond=None)[0])  # canonical -> pixels
    elif box is not None:
        left, top, wide, high = box
        if not (wide > 0 and high > 0):
            raise FoveateError(f"face box {box} is empty; give x, y, width, height in pixels")
        affine = np.array([[wide / 2.1, 0], [0, high / 2.1], [left + wide / 2, top + high * 0.45]])
        points = None
    else:
        ycc = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.float32)
        weight = np.asarray(cv2.GaussianBlur(_skin_colour(ycc), (0, 0), 1.5), np.float32)
        return _normalised(weight, delay)

    if abs(np.linalg.det(affine[:2])) < 1e-3:
        raise FoveateError("the landmarks lie on one line; give those of a face")
    # Work on the part of the picture that the head can cover.
    head = np.array([[-1.4, -1.4, 1], [1.4, -1.4, 1], [-1.4, 1.5, 1], [1.4, 1.5, 1]]) @ affine
    x0, y0 = np.clip(np.floor(head.min(0)), 0, [width, height]).astype(int)
    x1, y1 = np.clip(np.ceil(head.max(0)), 0, [width, height]).astype(int)
    if x1 - x0 < 4 or y1 - y0 < 4:
        raise FoveateError("the face lies outside the picture; give its landmarks in pixels")
    ycc = cv2.cvtColor(image[y0:y1, x0:x1], cv2.COLOR_RGB2YCrCb).astype(np.float32)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    q = (np.stack([x, y], -1) - affine[2]) @ np.linalg.inv(affine[:2])
    q = q.astype(np.float32)
    if points is None:
        inside = q[..., 0] ** 2 + ((q[..., 1] - 0.05) / 1.1) ** 2 < 1
        mask = inside.astype(np.float32) * _skin_colour(ycc)
    else:
        corner = np.array([x0, y0])
        shift = np.r_[affine[:2], affine[2:] - corner]
        mask = _face_mask(points - corner, shift, (y1 - y0, x1 - x0)) * _like_cheeks(ycc, q)
    weight[y0:y1, x0:x1] = cv2.GaussianBlur(mask, (0, 0), 3.0) * perfusion(q)
    delay[y0:y1, x0:x1] = np.round(delay_s(q[..., 1]) / DELAY_STEP)
    return _normalised(weight, delay)


def _normalised(weight: npt.NDArray[np.float32], delay: npt.NDArray[np.uint8]) -> SkinMap:
    skin = weight > 0.25
    if skin.sum() < 16:
        raise FoveateError("no skin was found in the picture; give the face's landmarks or box")
    return SkinMap((weight / weight[skin].mean()).astype(np.float32), delay)


def _skin_colour(ycc: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The usual chroma box of skin, with soft sides."""
    luma, cr, cb = ycc[..., 0], ycc[..., 1], ycc[..., 2]
    sides = np.stack([cr - 133, 180 - cr, cb - 77, 130 - cb, (luma - 30) / 3])
    return np.asarray(np.clip(sides.min(0) / 4 + 0.5, 0, 1), np.float32)


def _face_mask(points: Float64, affine: Float64, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Face outline up to the hairline, without eyes, brows and mouth."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(np.r_[points[:17], forehead(points)]).astype(np.int32)], 255)
    for part, grow in ((slice(36, 42), 1.5), (slice(42, 48), 1.5), (slice(48, 60), 1.15)):
        centre = points[part].mean(0)
        hole = np.round(centre + grow * (points[part] - centre)).astype(np.int32)
        cv2.fillPoly(mask, [hole], 0)
    thick = max(2, round(0.12 * abs(float(np.linalg.det(affine[:2]))) ** 0.5))
    for part in (slice(17, 22), slice(22, 27)):
        cv2.polylines(mask, [np.round(points[part]).astype(np.int32)], False, 0, thick)
    return np.asarray(mask / 255, np.float32)


def _like_cheeks(
    ycc: npt.NDArray[np.float32], q: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """1 where the colour is near that of this face's own cheeks."""
    cheeks = ((abs(q[..., 0]) - 0.5) ** 2 + (q[..., 1] - 0.15) ** 2) < 0.15**2
    if cheeks.sum() < 8:
        raise FoveateError("the face is outside the picture or too small to find its skin")
    sample = ycc[cheeks]
    middle = np.median(sample, 0)
    spread = np.maximum(sample.std(0), [40, 6, 6])
    distance = (((ycc - middle) / spread) ** 2).sum(-1)
    return np.asarray(np.exp(-0.5 * np.maximum(distance - 4, 0)), np.float32)


def _own_pulse(frames: Video, fps: float, cell: int) -> npt.NDArray[np.float32]:
    """Relative colour swing of .6-3.3 Hz in cells of the picture: ``(T, h, w, 3)``."""
    height, width = frames.shape[1:3]
    shape = max(width // cell, 2), max(height // cell, 2)
    small = []
    for frame in frames:
        linear = cv2.LUT(frame, _LINEAR)
        coarse = cv2.resize(linear, shape, interpolation=cv2.INTER_AREA)
        small.append(cv2.GaussianBlur(coarse, (0, 0), 1.0))
    colour = np.stack(small)
    count = len(colour)
    mirrored = np.concatenate([colour, colour[::-1]])  # no jump at the ends
    spectrum = np.fft.rfft(mirrored, axis=0)
    rate = np.fft.rfftfreq(2 * count, 1 / fps)
    spectrum[(rate < 0.6) | (rate > 3.3)] = 0
    swing = np.fft.irfft(spectrum, 2 * count, axis=0)[:count]
    return np.asarray(np.clip(swing / np.maximum(colour, 1e-3), -0.2, 0.2), np.float32)


class PulsedFrames(Iterator[Picture]):
    """Frames ``(H, W, 3)`` uint8 of a picture with a simulated pulse, made one at a time.

    Attributes
    ----------
    labels
        The truth, known before the first frame is made.
    skin
        Where the first frame pulsates.
    """

    def __init__(self, labels: PulseLabels, skin: SkinMap, frames: Iterator[Picture]) -> None:
        self.labels = labels
        self.skin = skin
        self._frames = frames

    def __len__(self) -> int:
        return len(self.labels["times"])

    def __next__(self) -> Picture:
        return next(self._frames)


def pulsed_frames(
    picture: npt.NDArray[np.uint8],
    pulse: HeartRate | float | npt.NDArray[np.floating],
    fps: float = 30.0,
    seconds: float | None = None,
    *,
    landmarks: npt.ArrayLike | None = None,
    box: tuple[float, float, float, float] | None = None,
    gain: float = 0.010,
    micro_motion: bool | float = False,
    sway: float = 0.0,
    remove_own: bool = True,
    seed: int = 0,
) -> PulsedFrames:
    """Give a photo or a video a pulse, one frame at a time.

    The change is made in linear light, to first order: for a code c in [0, 1] the sRGB curve gives
    dc = -(c + .055) / 2.4 * g m_c w (b - mean b), exact to .05 of an 8-bit step at g = .02. Dither
    of half a code is added before rounding, else a pulse of less than a code would vanish.

    Parameters
    ----------
    picture
        A photo ``(H, W, 3)`` or a video ``(T, H, W, 3)``, uint8 RGB.
    pulse
        Heart rate in bpm, its course, or a blood volume pulse ``(T,)`` (systole up, one value per
        frame; centred and scaled to the variance of the simulated one).
    fps, seconds
        Frame rate, and length for a photo (default 20 s, or that of the BVP).
    landmarks
        ``(68, 2)`` or, for a video, ``(T, 68, 2)`` iBUG points in pixels.
    box
        Face box (x, y, width, height) when there are no landmarks.
    gain
        Peak AC/DC in green, .002-.02 on people.
    micro_motion
        Vertical shift of the whole picture with each beat, in pixels; True is .2.
    sway
        Slow motion of the whole picture, as of somebody who sits: amplitude in pixels.
    remove_own
        Take out a video's own swing between .6 and 3.3 Hz first (a residue may remain).
    seed
        Of the beats and the dither.

    Returns
    -------
    An iterator of ``(H, W, 3)`` uint8 frames that knows its `labels` at once.

    Raises
    ------
    FoveateError
        Wrong shapes, a rate outside 40-180 bpm, or no skin.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (3, 4) or picture.shape[-1] != 3:
        raise FoveateError(
            f"picture has shape {picture.shape} and type {picture.dtype}; "
            "give uint8 RGB, (H, W, 3) or (T, H, W, 3)"
        )
    if not 1 <= fps <= 1000 or not 0 <= gain <= 0.1:
        raise FoveateError(f"fps {fps} or gain {gain} is outside 1-1000 and 0-0.1")
    if micro_motion is True:
        micro_motion = 0.2
    is_video = picture.ndim == 4
    rng = np.random.default_rng(seed)
    given = pulse if isinstance(pulse, np.ndarray) and pulse.ndim == 1 else None
    if is_video:
        count = len(picture)
    elif given is not None:
        count = len(given)
    else:
        count = round((20.0 if seconds is None else seconds) * fps)
    if count < 2 or (given is not None and len(given) != count):
        raise FoveateError(f"a pulse for {count} frames cannot be made of what was given")
    times = np.arange(count) / fps
    if given is None:
        rate = pulse if isinstance(pulse, HeartRate) else HeartRate(float(pulse))  # type: ignore[arg-type]
        beats = beat_times(rate, count / fps, rng)
        heart = Pulse(beats)
        blood = heart.at(times[:, None] - DELAY_STEP * np.arange(DELAYS))
        mean_bpm = mean_rate_bpm(beats, 0, count / fps)
        beats = beats[(beats >= 0) & (beats <= count / fps)]
    else:
        spread = float(given.std())
        if not np.isfinite(given).all() or spread == 0:
            raise FoveateError("the given BVP is constant or not finite")
        scaled = (given - given.mean()) * (_BEAT_SD / spread)
        blood = np.interp(times[:, None] - DELAY_STEP * np.arange(DELAYS), times, scaled)
        beats, mean_bpm = np.empty(0), math.nan
    wave = blood[:, 0]
    labels: PulseLabels = {
        "times": times,
        "beat_times": beats,
        "bvp": ((wave - wave.mean()) / wave.std()).astype(np.float32),
        "hr_mean_bpm": mean_bpm,
        "simulated_pulse": True,
    }
    where = None if landmarks is None else np.asarray(landmarks, np.float64)
    if where is not None and where.ndim == 3 and len(where) != count:
        raise FoveateError(f"{len(where)} sets of landmarks for {count} frames; give one for each")
    moving = where is not None and where.ndim == 3
    first = picture[0] if is_video else picture
    skin = skin_map(first, where[0] if moving and where is not None else where, box)

    def make() -> Iterator[Picture]:
        nonlocal skin
        absorb = np.float32(gain) * np.asarray(BLOOD_COLOUR, np.float32)
        swing = None
        if is_video and remove_own:
            face = np.sqrt(float((skin.weight > 0.25).sum()))
            swing = _own_pulse(picture, fps, max(2, round(face / 8)))
        slope = cv2.LUT(first, _SLOPE) * absorb
        base = first.astype(np.float32)
        for index in range(count):
            if is_video:
                frame = picture[index]
                if moving and index and where is not None:
                    skin = skin_map(frame, where[index])
                base, steepness = frame.astype(np.float32), cv2.LUT(frame, _SLOPE)
                if swing is not None:
                    size = frame.shape[1], frame.shape[0]
                    own = cv2.resize(swing[index], size, interpolation=cv2.INTER_LINEAR)
                    base -= steepness * own * np.minimum(skin.weight, 1)[..., None]
                slope = steepness * absorb
            change = skin.weight * np.take(blood[index].astype(np.float32), skin.delay)
            out = base - slope * change[..., None]
            if micro_motion or sway:
                right = sway * math.sin(2 * math.pi * 0.13 * times[index])
                down = 0.6 * sway * math.sin(2 * math.pi * 0.21 * times[index])
                down += float(micro_motion * wave[index])
                shift = np.array([[1, 0, right], [0, 1, down]], np.float32)
                size = out.shape[1], out.shape[0]
                out = cv2.warpAffine(out, shift, size, borderMode=cv2.BORDER_REPLICATE)
            out += np.float32(0.5) * rng.standard_normal(out.shape, np.float32)
            yield np.clip(np.rint(out), 0, 255).astype(np.uint8)

    return PulsedFrames(labels, skin, make())


def apply_pulse(
    picture: npt.NDArray[np.uint8],
    pulse: HeartRate | float | npt.NDArray[np.floating],
    fps: float = 30.0,
    seconds: float | None = None,
    **options: Any,
) -> tuple[Video, PulseLabels]:
    """`pulsed_frames`, all at once: ``(T, H, W, 3)`` uint8 and the labels."""
    frames = pulsed_frames(picture, pulse, fps, seconds, **options)
    return np.stack(list(frames)), frames.labels


_CODES = np.arange(256) / 255
_LINEAR = np.where(_CODES > 0.04045, ((_CODES + 0.055) / 1.055) ** 2.4, _CODES / 12.92).astype(
    np.float32
)
_SLOPE = (255 * np.where(_CODES > 0.04045, (_CODES + 0.055) / 2.4, _CODES)).astype(np.float32)
_BEAT_SD = float(Pulse(np.arange(3.0)).at(np.arange(1000) / 1000).std())
