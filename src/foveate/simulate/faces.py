"""Simulated face videos with labels that are exact by construction.

>>> from foveate.simulate.faces import FaceSim
>>> clip = FaceSim(size=64, fps=30, seed=0).clip(identity=3, seconds=10, hr=72, motion="mild")
>>> clip.frames.shape, clip.labels["hr_mean_bpm"]        # doctest: +SKIP

A clip is a `Script` (what happens), played by a `Renderer` (how it looks in linear light), seen by
a `Camera` and perhaps squeezed by a codec. Labels are taken from the script's own arrays. There is
no scan, photograph or licensed asset in it, and it does not look like a real person: it proves
plumbing and the *shape* of a claim, never accuracy on people. Everything carries
``is_simulation=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from foveate.errors import FoveateError
from foveate.simulate.codecs import Codec, parse_codec, round_trip
from foveate.simulate.face_geometry import Array
from foveate.simulate.face_model import FaceModel
from foveate.simulate.face_renderer import (
    CAMERAS,
    PARTS,
    Camera,
    CameraState,
    Renderer,
    limit_folds,
)
from foveate.simulate.pulse import HeartRate, Pulse, Rhythm, beat_times, mean_rate_bpm
from foveate.simulate.scripts import (
    Background,
    Decoy,
    Light,
    Motion,
    Script,
    au_track,
    gaze_track,
    light_track,
    pose_track,
    speech_track,
)

__all__ = ["PRESETS", "SPLITS", "VERSION", "FaceSim", "SimClip", "SimLabels"]

VERSION = "5"
"""Changes whenever the same seed gives other bytes; part of every cache key."""

SPLITS = {"train": range(10000), "val": range(10000, 11000), "test": range(11000, 12000)}
"""Identity numbers of the standard splits: nobody is in two of them."""

CHUNK = 64

PRESETS: dict[str, dict[str, Any]] = {
    # light skin, static, lossless
    "sim-A": {"melanin": 0.15, "motion": "steady", "light": "soft", "camera": "clean"},
    # mixed skin, motion, H.264
    "sim-B": {
        "motion": "mild",
        "light": "random",
        "camera": "webcam",
        "codec": "libx264:10",
        "background": Background("noise"),
    },
    # phone-like, talking, low light
    "sim-C": {
        "motion": "talking",
        "speaking": True,
        "light": "low",
        "camera": "low light",
        "codec": "libx264:16",
        "background": Background("stripes"),
    },
}
"""Arguments of `FaceSim.clip` for three "data sets" of rising difficulty."""


class SimLabels(TypedDict):
    """Exact labels of a clip of T frames.

    ``beat_times`` (K,) s within the clip; ``bvp`` (T,) zero mean, unit variance, systole up;
    ``bvp_60hz`` and ``times_60hz`` the same pulse as a 60 Hz contact sensor gives it;
    ``hr_mean_bpm`` from the beats; ``hr_bpm`` (T,) instantaneous; ``au`` (T, 13) in the order of
    `face_geometry.ACTION_UNITS`; ``landmarks`` (T, 68, 2) pixels; ``visibility`` (T, 68) bool;
    ``irises`` (T, 2, 2) pixels; ``pose`` (T, 6) yaw, pitch, roll (degrees), x, y, scale; ``gaze``
    (T, 2) degrees; ``speaking`` (T,) bool; ``skin_mask`` (T, H, W) bool, what pulsates (skin and
    lips); ``parts`` (T, H, W) uint8, index into `face_renderer.PARTS`.
    """

    beat_times: npt.NDArray[np.float64]
    bvp: Array
    bvp_60hz: Array
    times_60hz: npt.NDArray[np.float64]
    hr_mean_bpm: float
    hr_bpm: Array
    au: Array
    landmarks: Array
    visibility: npt.NDArray[np.bool_]
    irises: Array
    pose: Array
    gaze: Array
    identity: int
    emotion: str
    speaking: npt.NDArray[np.bool_]
    skin_mask: npt.NDArray[np.bool_]
    parts: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SimClip:
    """A simulated video.

    Attributes
    ----------
    frames
        ``(T, H, W, 3)`` uint8 RGB.
    times
        ``(T,)`` seconds.
    labels
        What is true in every frame.
    config
        Every setting that made it, as plain values.
    """

    frames: npt.NDArray[np.uint8]
    times: npt.NDArray[np.float64]
    labels: SimLabels
    config: dict[str, Any]
    is_simulation: ClassVar[bool] = True

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.config["fps"])

    def __repr__(self) -> str:
        count, height, width = self.frames.shape[:3]
        return (
            f"SimClip(simulated, identity={self.labels['identity']}, {count} frames of "
            f"{width}x{height} at {self.fps:g} fps, {self.labels['hr_mean_bpm']:.1f} bpm)"
        )


@lru_cache(maxsize=256)
def _person(identity: int, melanin: float | None) -> FaceModel:
    return FaceModel(identity, melanin)


@lru_cache(maxsize=64)
def _renderer(identity: int, melanin: float | None, size: int) -> Renderer:
    return Renderer(_person(identity, melanin), size)


class FaceSim:
    """Makes clips of one size, rate and seed.

    Parameters
    ----------
    size
        Picture side in pixels, 16 to 512.
    fps
        Frames per second.
    seed
        Chooses everything that is random in the clips; persons depend on their number alone.
    """

    is_simulation: ClassVar[bool] = True

    def __init__(self, size: int = 64, fps: float = 30, seed: int = 0) -> None:
        if not 1 <= fps <= 240:
            raise FoveateError(f"frame rate {fps} is not possible; give 1 to 240 per second")
        if not 16 <= size <= 512:
            raise FoveateError(f"picture size {size} is not possible; give 16 to 512 pixels")
        if seed < 0:
            raise FoveateError(f"seed {seed} is negative; give 0 or more")
        self.size, self.fps, self.seed = int(size), float(fps), int(seed)

    def clip(
        self,
        identity: int,
        seconds: float,
        hr: HeartRate | float = 72.0,
        aus: Mapping[int, float | npt.ArrayLike] | Literal["random"] | None = None,
        emotion: str | None = None,
        speaking: bool = False,
        motion: Motion | str = "steady",
        light: Light | str = "soft",
        camera: Camera | str = "clean",
        codec: Codec | str | None = None,
        *,
        take: int = 0,
        melanin: float | None = None,
        pulse_gain: float = 0.010,
        variability: float = 1.0,
        rhythm: Rhythm = "sinus",
        breathing: float = 0.0,
        micro_motion: float = 0.0,
        decoy: Decoy | None = None,
        background: Background | None = None,
    ) -> SimClip:
        """One clip of one person.

        Parameters
        ----------
        identity
            Number of the person (see `SPLITS`).
        seconds
            Length; at most 10 minutes in one clip.
        hr
            Heart rate in bpm (40 to 180) or its course.
        aus, emotion
            See `scripts.au_track`: None is a calm face that blinks, ``random`` moves everything, a
            mapping gives exactly those units.
        speaking
            Talk.
        motion, light, camera, codec
            A name (`MOTIONS`, `LIGHTS` or ``random``, `CAMERAS`, ``"libx264:23"``) or an object.
        take
            Number of the recording: other takes of the same person differ in all but the person.
        melanin
            Skin tone in [.05, .85] instead of the person's own.
        pulse_gain
            Peak AC/DC in green on the lightest skin (darker skin gives less); 0: no pulse.
        variability, rhythm, breathing
            See `pulse.beat_times` and `pulse.Pulse`.
        micro_motion
            Vertical head motion with each beat, pixels (.1-.3 in people); 0: none.
        decoy
            A flickering lamp beside the head.

        Raises
        ------
        FoveateError
            A value outside its range, or an unknown name.
        """
        count = round(seconds * self.fps)
        if not 2 <= count <= 600 * self.fps:
            raise FoveateError(f"a clip of {seconds} s is not possible; give up to 600 s")
        if identity < 0 or take < 0:
            raise FoveateError(f"identity {identity} and take {take} must not be negative")
        if not 0 <= pulse_gain <= 0.1:
            raise FoveateError(f"pulse_gain {pulse_gain} is outside 0 to 0.1")
        if isinstance(camera, str):
            if camera not in CAMERAS:
                raise FoveateError(f"camera {camera!r} is not known; known are {sorted(CAMERAS)}")
            camera = CAMERAS[camera]
        codec = parse_codec(codec) if codec is not None else None
        rate = hr if isinstance(hr, HeartRate) else HeartRate(float(hr))
        times = np.arange(count) / self.fps

        def stream(number: int) -> np.random.Generator:
            return np.random.default_rng([self.seed, identity, take, number])

        au = au_track(times, aus, emotion, stream(1))
        talk = np.zeros(count, bool)
        if speaking:
            speech, talk = speech_track(times, stream(2))
            au = np.clip(au + speech, 0, 5)
        model = _person(identity, melanin)
        au = limit_folds(model, au)
        pose = pose_track(times, motion, stream(3))
        gaze = gaze_track(times, stream(4))
        heart = stream(5)
        breath = float(heart.uniform(0, 2 * np.pi))
        beats = beat_times(
            rate, seconds, heart, variability=variability, rhythm=rhythm, breath=breath
        )
        pulse = Pulse(beats, float(heart.uniform(0.15, 0.5)), breathing, breath)
        if micro_motion:
            pose[:, 4] += (2 / self.size * micro_motion * pulse.at(times - 0.08)).astype(np.float32)
        fixed_light, illumination, shadow_x = light_track(times, light, stream(6))
        scene = stream(7)
        if background is None:
            wall = scene.uniform(0.12, 0.5) * scene.uniform(0.75, 1.15, 3)
            background = Background("gradient", tuple(wall.tolist()))
        script = Script(
            times=times,
            au=au,
            pose=pose,
            gaze=gaze,
            speaking=talk,
            pulse=pulse,
            gain=pulse_gain,
            illumination=illumination,
            light=fixed_light,
            shadow_x=shadow_x,
            background=background,
            background_seed=int(scene.integers(2**31)),
        )
        if decoy is not None:
            script = _with_decoy(script, decoy, seconds, stream(8))
        frames, parts, landmarks, visible, irises = self._shoot(
            script, _renderer(identity, melanin, self.size), camera, int(stream(9).integers(2**62))
        )
        if codec is not None:
            frames = round_trip(frames, self.fps, codec)

        sensor_times = np.arange(round(seconds * 60)) / 60
        wave, sensor = pulse.at(times), pulse.at(sensor_times)
        interval = np.interp(times, (beats[1:] + beats[:-1]) / 2, np.diff(beats))
        skin = PARTS.index("skin"), PARTS.index("lips")
        labels: SimLabels = {
            "beat_times": beats[(beats >= 0) & (beats <= seconds)],
            "bvp": ((wave - wave.mean()) / wave.std()).astype(np.float32),
            "bvp_60hz": ((sensor - wave.mean()) / wave.std()).astype(np.float32),
            "times_60hz": sensor_times,
            "hr_mean_bpm": mean_rate_bpm(beats, 0, seconds),
            "hr_bpm": (60 / interval).astype(np.float32),
            "au": au,
            "landmarks": landmarks,
            "visibility": visible,
            "irises": irises,
            "pose": pose,
            "gaze": gaze,
            "identity": identity,
            "emotion": emotion or "neutral",
            "speaking": talk,
            "skin_mask": (parts == skin[0]) | (parts == skin[1]),
            "parts": parts,
        }
        config = {
            "version": VERSION,
            "is_simulation": True,
            "size": self.size,
            "fps": self.fps,
            "seed": self.seed,
            "identity": identity,
            "take": take,
            "seconds": seconds,
            "hr": asdict(rate),
            "melanin": model.melanin,
            "pulse_gain": pulse_gain,
            "motion": motion if isinstance(motion, str) else asdict(motion),
            "light": asdict(fixed_light),
            "camera": asdict(camera),
            "codec": asdict(codec) if codec else None,
            "decoy": asdict(decoy) if decoy else None,
        }
        plain = json.loads(json.dumps(config))  # tuples become lists, as when read from a file
        return SimClip(frames, times, labels, plain)

    def _shoot(
        self, script: Script, renderer: Renderer, camera: Camera, seed: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Array, npt.NDArray[np.bool_], Array]:
        """Render and expose chunk by chunk: frames, parts, landmarks, visibility, irises."""
        generator = torch.Generator().manual_seed(seed)
        state = CameraState()
        pictures, parts, points, visible, irises = [], [], [], [], []
        with torch.inference_mode():
            for start in range(0, len(script.times), CHUNK):
                stop = min(start + CHUNK, len(script.times))
                light, part, at = renderer.render(script, start, stop)
                for k in range(1, camera.motion_blur):
                    later = _shifted(script, k / camera.motion_blur)
                    light = light + renderer.render(later, start, stop)[0]
                light = light / camera.motion_blur
                pictures.append(camera.expose(light, state, self.fps, generator).numpy())
                parts.append(part.numpy())
                points.append(at.points[:, :68])
                visible.append(at.visible[:, :68])
                irises.append(at.irises)
        return (
            np.concatenate(pictures),
            np.concatenate(parts),
            np.concatenate(points),
            np.concatenate(visible),
            np.concatenate(irises),
        )


def _shifted(script: Script, share: float) -> Script:
    """The script `share` of a frame later: expression and pose between two frames."""

    def between(track: Array) -> Array:
        following = np.concatenate([track[1:], track[-1:]])
        return np.asarray(track + np.float32(share) * (following - track))

    return replace(
        script, au=between(script.au), pose=between(script.pose), gaze=between(script.gaze)
    )


def _with_decoy(script: Script, decoy: Decoy, seconds: float, rng: np.random.Generator) -> Script:
    side = {"left": -1, "right": 1}[decoy.side] if decoy.side else int(rng.choice([-1, 1]))
    pulse = script.pulse
    if decoy.bpm is not None:
        pulse = Pulse(beat_times(decoy.bpm, seconds, rng), dicrotic=pulse.dicrotic)
    # Brightness falls with systole, as on skin: in training the lamp is as good a label as skin.
    signal = (1 - decoy.gain * pulse.at(script.times)).astype(np.float32)
    return replace(script, decoy=decoy, decoy_side=side, decoy_signal=signal)
