"""``foveate watch``: a face video becomes signals, an annotated video and one page.

Composition only: stream -> tracker -> analysers -> timeline -> page. Everything is written into
a hidden neighbour folder and moved into place when complete; ``summary.json`` comes last and
marks a finished video, which is not computed again unless asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import foveate
from foveate.errors import FoveateError
from foveate.faces.heart_rate import BANDS
from foveate.faces.presence import Presence
from foveate.faces.pulse_analyser import PulseAnalyser, PulseSummary
from foveate.faces.track import Analyser, Track
from foveate.faces.tracker import AdaptiveStride, FaceTracker, FixedRegion
from foveate.files import writable_dir, write_json
from foveate.nn import model_files
from foveate.report.page import person_colour, person_name
from foveate.streams.frame import Frame
from foveate.streams.stream import FrameStream
from foveate.streams.timeline import Timeline, TimelineWriter
from foveate.streams.video import open_stream

__all__ = ["WatchResult", "WatchSettings", "watch"]

PULSE_METHODS = ("pos", "chrom", "green", "pbv", "lgi", "ica", "mar")
_REFUSABLE = {
    "heart_rate": "heart rate",
    "hrv": "heart-rate variability",
    "respiration": "respiration",
}
_DRAIN_EVERY_S = 1.0
_SHORTEST_FRAME_S = 1e-4  # closer than the video's clock can tell apart: a repeated time stamp
_LONGEST_SIDE = 1920  # pixels; a 4K stream would need a gigabyte for its frames in flight
_ANNOTATED_CRF = 24  # for looking at, and small enough to be part of the page
_MIN_SEEN_S = 0.5
_NO_ROOM = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS") if hasattr(errno, name)
)
_RESULT_FILES = ("signals.parquet", "annotated.mp4", "report.html", "summary.json")

Progress = Callable[[float, float | None, str], None]
"""Called with (seconds of video done, seconds in all or None, a word about the result so far)."""


@dataclass(frozen=True)
class WatchSettings:
    """What a person can choose.

    Attributes
    ----------
    pulse
        Method: pos, chrom, green, pbv, lgi, ica, or mar (the network trained by the recipe
        ``mar-rppg``).
    band
        Heart-rate band: ``default`` 0.6-3.3 Hz, ``benchmark`` 0.75-2.5 Hz.
    roi
        Face box ``(x, y, width, height)`` in pixels; None finds faces.
    max_people
        The most faces looked for in a frame.
    every_frame
        Look for faces in every frame instead of key frames only.
    video
        Whether ``annotated.mp4`` is made.
    fps
        Frame rate of a directory of images; None: 30, or the names' own time stamps.
    seconds
        Stop after this much of the stream (cameras); None goes to its end.
    """

    pulse: Literal["pos", "chrom", "green", "pbv", "lgi", "ica", "mar"] = "pos"
    band: Literal["default", "benchmark"] = "default"
    roi: tuple[float, float, float, float] | None = None
    max_people: int = 4
    every_frame: bool = False
    video: bool = True
    fps: float | None = None
    seconds: float | None = None

    def check(self) -> None:
        """Raise FoveateError when a value makes no sense."""
        if self.pulse not in PULSE_METHODS:
            raise FoveateError(
                f"unknown pulse method {self.pulse!r}; there are: {', '.join(PULSE_METHODS)}"
            )
        if self.band not in ("default", "benchmark"):
            raise FoveateError(f"unknown band {self.band!r}; there are: default, benchmark")
        if self.roi is not None:
            finite = all(math.isfinite(v) for v in self.roi)
            if not (finite and self.roi[2] >= 4 and self.roi[3] >= 4):
                raise FoveateError(
                    f"the region {','.join(f'{v:g}' for v in self.roi)} is too small or no box; "
                    "give --roi x,y,width,height of at least 4x4 pixels"
                )
        if not 1 <= self.max_people <= 32:
            raise FoveateError(f"--max-people is {self.max_people}; expected 1 to 32")
        for name in ("fps", "seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise FoveateError(f"--{name} is {value}; expected a number above 0")


@dataclass(frozen=True)
class WatchResult:
    """Where the results of one video lie, and its summary (the content of ``summary.json``)."""

    folder: Path
    summary: dict[str, Any]
    reused: bool = False

    @property
    def timeline(self) -> Timeline:
        """All signals, read from ``signals.parquet``."""
        return Timeline.read(self.folder / "signals.parquet")

    @property
    def heart_rates(self) -> dict[int, float | None]:
        """Person -> heart rate in bpm, None where it was refused."""
        return {p["track"]: p["heart_rate"]["bpm"] for p in self.summary["people"]}


def watch(
    source: str | Path | int,
    out: str | Path | None = None,
    *,
    settings: WatchSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> WatchResult:
    """Watch one video, directory of pictures or camera.

    Parameters
    ----------
    source
        Path of a video file, of a directory of images, or ``camera:0``.
    out
        Folder for the results; default ``foveate-out/<name of the source>``, or, when the result of
        another video of this name lies there, that name with eight letters that stand for the path.
    settings
        All choices at once; or give fields of `WatchSettings` as keyword arguments.
    force
        Compute even when `out` holds a finished result of the same input and settings.
    progress
        Told about every second of video.

    Returns
    -------
    WatchResult
        ``signals.parquet``, ``summary.json``, ``annotated.mp4`` and ``report.html`` in `folder`.

    Raises
    ------
    FoveateError
        The source cannot be read, an option makes no sense, or the folder cannot be written.
    """
    try:
        settings = dataclasses.replace(settings or WatchSettings(), **options)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(WatchSettings))
        raise FoveateError(f"unknown option for watch ({error}); there are: {known}") from None
    settings.check()
    started = time.perf_counter()
    name = source_name(source)
    mark = fingerprint(source, settings)
    folder = Path(out) if out is not None else default_folder(source, mark)
    kept = None if force or mark is None else finished(folder, mark)
    if kept is not None:
        _clear_dead(folder)  # of a run that was killed when all was written
        return WatchResult(folder, kept, reused=True)
    _check_folder(folder, source)
    # Without a given box the picture may be reduced: faces and their mean colour lose nothing.
    side = None if settings.roi is not None else _LONGEST_SIDE
    with open_stream(source, fps=settings.fps or 30.0, max_side=side) as stream:
        tracker, close = _tracker(settings)
        with close, _staging(folder) as staging:
            run = _Run(
                source,
                name,
                stream,
                tracker,
                settings,
                staging,
                progress,
                started,
                live=mark is None,
            )
            summary = run.go(mark)
            _publish(staging, folder, summary)
    return WatchResult(folder, summary)


def _check_folder(folder: Path, source: str | Path | int) -> None:
    """Refuse to overwrite what foveate did not write, above all the input itself."""
    there = [folder / name for name in _RESULT_FILES if (folder / name).exists()]
    given = Path(str(source)).resolve()
    ours = "foveate" in _summary_in(folder)
    for path in there:
        if path.resolve() == given or not ours:
            raise FoveateError(
                f"{path} would be overwritten and is not a result of foveate; "
                "choose another folder with --out"
            )


def _publish(staging: Path, folder: Path, summary: dict[str, Any]) -> None:
    """Move the finished files into place; a kill in between leaves an unfinished result."""
    write_json(folder / "summary.json", {**summary, "fingerprint": None})
    for file in _RESULT_FILES:
        if (staging / file).exists():
            (staging / file).replace(folder / file)
        else:
            (folder / file).unlink(missing_ok=True)  # of an older run with a video


def source_name(source: str | Path | int) -> str:
    """A short name for the results of a source, free of path separators."""
    text = str(source)
    if isinstance(source, int) or re.fullmatch(r"camera:\d+", text):
        return f"camera-{text.rpartition(':')[2]}"
    path = Path(text)
    return path.resolve().name if path.is_dir() else path.stem


def source_id(source: str | Path | int) -> str:
    """Eight letters that stand for where a source lies; they do not say where."""
    path = os.path.realpath(str(source))
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


def default_folder(source: str | Path | int, mark: str | None) -> Path:
    """``foveate-out/NAME``; ``NAME-<source_id>`` when another video's result has that place.

    Parameters
    ----------
    mark
        The `fingerprint`: the same file that has only been moved keeps its place. None for a
        camera, of which there is one of each name.
    """
    name, own_id = source_name(source), source_id(source)
    plain = Path("foveate-out") / name
    own = plain.with_name(f"{name}-{own_id}")
    if own.exists():
        return own
    there = _summary_in(plain)
    of = there.get("source")
    other = isinstance(of, dict) and of.get("id", own_id) != own_id
    return own if mark is not None and other and there.get("fingerprint") != mark else plain


def _summary_in(folder: Path) -> dict[str, Any]:
    """What ``summary.json`` says; empty when there is none that can be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def fingerprint(source: str | Path | int, settings: WatchSettings) -> str | None:
    """Identifies input and settings of a finished result; None for a live camera."""
    path = Path(str(source))
    if not path.exists():
        return None
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [
        foveate.__version__,
        json.dumps(dataclasses.asdict(settings), sort_keys=True),
        *(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files if f.is_file()),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def finished(folder: Path, mark: str) -> dict[str, Any] | None:
    """The summary in `folder` if it belongs to `mark` and its files are there."""
    summary = _summary_in(folder)
    if summary.get("fingerprint") != mark:
        return None
    try:
        wanted = ["signals.parquet", "report.html"]
        if summary["settings"]["video"]:
            wanted.append("annotated.mp4")
    except (TypeError, KeyError):
        return None
    return summary if all((folder / file).is_file() for file in wanted) else None


def _tracker(
    settings: WatchSettings,
) -> tuple[FaceTracker | FixedRegion, contextlib.AbstractContextManager[Any]]:
    if settings.roi is not None:
        return FixedRegion(settings.roi), contextlib.nullcontext()
    from foveate.faces.landmarks import FaceLandmarker

    landmarker = FaceLandmarker(
        model_files.fetch("face_landmarker"), max_people=settings.max_people
    )
    policy = None if settings.every_frame else AdaptiveStride()
    return FaceTracker(landmarker, policy), contextlib.closing(landmarker)


def _partial() -> str:
    """How staging folders of this machine begin; on a shared file system others may work too."""
    return f".partial-{platform.node()}-"


def _clear_dead(folder: Path) -> None:
    """Remove staging folders of processes of this machine that are gone."""
    for old in folder.glob(".partial-*"):
        owner = old.name.removeprefix(_partial())
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder` that vanishes unless its files were moved out."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    writable_dir(folder)
    _clear_dead(folder)
    staging = folder / f"{_partial()}{os.getpid()}"
    staging.mkdir(exist_ok=True)
    try:
        yield staging
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise FoveateError(
            f"cannot write the results to {folder}: {error.strerror}; nothing was kept of this "
            "run; free some space or choose another folder with --out"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # succeeds only when nothing was written


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class _Run:
    """One pass over one stream."""

    def __init__(
        self,
        source: str | Path | int,
        name: str,
        stream: FrameStream,
        tracker: FaceTracker | FixedRegion,
        settings: WatchSettings,
        folder: Path,
        progress: Progress | None,
        started: float,
        live: bool,
    ) -> None:
        self.source = source
        self.name = name
        self.stream = stream
        self.tracker = tracker
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.live = live
        self.presence = Presence(1 / max(stream.info.fps, 1e-3))
        self.pulse = _pulse_analyser(settings)
        self.analysers: list[Analyser] = [self.presence, self.pulse]
        self.latest_bpm: dict[int, float] = {}
        self.first_result_s: float | None = None
        self.poster: npt.NDArray[np.uint8] | None = None
        self.poster_has_face = False
        self.started = started
        self.last_s = 0.0
        self.frames = 0

    def go(self, mark: str | None) -> dict[str, Any]:
        with TimelineWriter(self.folder / "signals.parquet") as writer:
            with _Painter(self) if self.settings.video else contextlib.nullcontext() as painter:
                self._pass(writer, painter)
            if self.frames == 0:
                raise FoveateError(
                    f"{self.name} contains no picture that could be decoded; "
                    "expected a video with at least one intact frame"
                )
            for analyser in self.analysers:
                writer.add(analyser.finish())
            summary = self._summary()
            summary["fingerprint"] = mark
            writer.metadata = {
                key: summary[key] for key in ("foveate", "source", "simulated", "settings")
            }
        write_json(self.folder / "summary.json", summary)
        self._page(summary)
        return summary

    def _pass(self, writer: TimelineWriter, painter: _Painter | None) -> None:
        drained_s = 0.0
        try:
            for frame, tracks in self.tracker.follow(self._limited()):
                self._see(frame, tracks)
                if painter is not None:
                    painter.put(frame, tracks)
                if frame.time_s - drained_s >= _DRAIN_EVERY_S:
                    drained_s = frame.time_s
                    self._drain(writer)
        except KeyboardInterrupt:
            if not self.live:  # Ctrl-C is how one ends a camera; a file would be cut short
                raise

    def _limited(self) -> Iterator[Frame]:
        for frame in self.stream:
            if self.settings.seconds is not None and frame.time_s > self.settings.seconds:
                return
            yield frame

    def _see(self, frame: Frame, tracks: list[Track]) -> None:
        self.frames += 1
        self.last_s = frame.time_s
        for track in tracks:
            for analyser in self.analysers:
                analyser.update(frame, track)
        if self.poster is None or (tracks and not self.poster_has_face):
            self.poster = frame.image.copy()
            self.poster_has_face = bool(tracks)
            _draw(self.poster, tracks, {})

    def _drain(self, writer: TimelineWriter) -> None:
        for analyser in self.analysers:
            part = analyser.drain()
            writer.add(part)
            if analyser is self.pulse and len(part):
                for track in part.tracks:
                    _, bpm, _ = part.select("pulse.hr_bpm", track)
                    if not len(bpm):
                        continue
                    if not math.isfinite(bpm[-1]):
                        self.latest_bpm.pop(track, None)  # refused: no old number goes on
                        continue
                    self.latest_bpm[track] = float(bpm[-1])
                    if self.first_result_s is None:
                        self.first_result_s = time.perf_counter() - self.started
        if self.progress is not None:
            word = ", ".join(f"person {t + 1}: {b:.0f} bpm" for t, b in self.latest_bpm.items())
            self.progress(self.last_s, self.stream.info.duration_s, word)

    def _summary(self) -> dict[str, Any]:
        info = self.stream.info
        count = self.tracker.count
        wall = time.perf_counter() - self.started
        duration = self.last_s
        metadata = {str(k).lower(): str(v) for k, v in info.metadata.items()}
        simulated = metadata.get("simulated_pulse", "").lower() == "true"
        pulses = self.pulse.summaries()
        people: list[dict[str, Any]] = []
        glimpses = 0
        for track, seen in sorted(self.presence.sightings.items()):
            if seen.visible_s < _MIN_SEEN_S:
                glimpses += 1
                continue
            people.append(
                {
                    "track": track,
                    "seen_from_s": round(seen.first_s, 3),
                    "seen_to_s": round(seen.last_s, 3),
                    "visible_s": round(seen.visible_s, 3),
                    **_pulse_facts(pulses[track]),
                }
            )
        refusals = [
            {
                "what": name,
                "track": person["track"],
                "from_s": person["seen_from_s"],
                "to_s": person["seen_to_s"],
                "reason": person[what]["reason"],
            }
            for person in people
            for what, name in _REFUSABLE.items()
            if person.get(what, {}).get("reason")
        ]
        for person in people:
            if person["heart_rate"]["accepted"]:
                refusals += [
                    {
                        "what": "heart rate",
                        "track": person["track"],
                        "from_s": round(stretch.from_s, 3),
                        "to_s": round(stretch.to_s, 3),
                        "reason": stretch.reason,
                    }
                    for stretch in pulses[person["track"]].refused
                ]
        notes = []
        if glimpses:
            notes.append(
                f"{glimpses} face(s) in view for less than {_MIN_SEEN_S:g} s are in the table "
                "but not listed as people."
            )
        if self.stream.damaged:
            notes.append(f"{self.stream.damaged} damaged frame(s) were skipped.")
        looked = isinstance(self.tracker, FaceTracker)
        policy = self.tracker.policy if isinstance(self.tracker, FaceTracker) else None
        summary: dict[str, Any] = _finite(
            {
                "foveate": foveate.__version__,
                "source": {
                    "name": self.name
                    if isinstance(self.source, int)
                    else Path(str(self.source)).name,
                    "id": source_id(self.source),
                    "width": info.width,
                    "height": info.height,
                    "fps": info.fps,
                    "duration_s": round(duration, 3),
                    "frames": self.frames,
                    "damaged_frames": self.stream.damaged,
                    "rotation": info.rotation,
                    "codec": info.codec,
                },
                "simulated": simulated,
                "simulation_note": (
                    "The pulse in this video is simulated: it was added by a program and is not "
                    "the pulse of the person shown."
                    if simulated
                    else None
                ),
                "verdict": "faces" if people else "glimpses" if glimpses else "no face",
                "people": people,
                "refusals": refusals,
                "compute": {
                    "wall_s": round(wall, 3),
                    "frames_per_s": round(self.frames / max(wall, 1e-9), 1),
                    "realtime_factor": round(duration / max(wall, 1e-9), 2),
                    "first_result_s": self.first_result_s and round(self.first_result_s, 3),
                    "frames_decoded": self.frames,
                    "frames_detected": count.detected,
                    "frames_interpolated": count.interpolated,
                    "policy": (
                        str(policy or "every frame") if looked else "face box given by the user"
                    ),
                },
                "settings": dataclasses.asdict(self.settings),
                "notes": notes,
                "medical": "Not a medical device: for research and exploration only.",
            }
        )
        return summary

    def _page(self, summary: dict[str, Any]) -> None:
        from foveate.report.watch import write_watch_page

        annotated = self.folder / "annotated.mp4"
        write_watch_page(
            self.folder / "report.html",
            summary,
            Timeline.read(self.folder / "signals.parquet"),
            video=annotated if annotated.exists() else None,
            poster=_jpeg(self.poster),
        )


def _pulse_analyser(settings: WatchSettings) -> PulseAnalyser:
    if settings.pulse == "mar":
        from foveate.faces import erea
        from foveate.faces.network_pulse import NetworkPulse

        weights = model_files.verify("mar-rppg")
        return NetworkPulse(erea.load(weights), "mar", BANDS[settings.band])
    return PulseAnalyser(settings.pulse, BANDS[settings.band])


def _pulse_facts(pulse: PulseSummary) -> dict[str, Any]:
    """The summary of one person's pulse as plain values."""
    result, breath = pulse.result, pulse.respiration
    return {
        "heart_rate": {
            "bpm": result.bpm,
            "low": result.lo,
            "high": result.hi,
            "confidence": result.confidence,
            "snr_db": result.snr_db,
            "accepted": result.accepted,
            "reason": result.reason or None,
            "method": result.method,
            "windows_accepted": result.windows_accepted,
            "windows_total": result.windows_total,
        },
        "hrv": {"metrics": pulse.hrv, "reason": pulse.hrv_reason or None},
        "respiration": {
            "bpm": breath.rate_bpm,
            "confidence": breath.confidence,
            "reason": breath.reason or None,
        },
    }


def _finite(value: Any) -> Any:
    """Plain JSON values; NaN becomes None."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def _draw(image: npt.NDArray[np.uint8], tracks: list[Track], bpm: dict[int, float]) -> None:
    """Corner brackets and a label for every face, into `image`."""
    import cv2

    thick = max(1, round(min(image.shape[:2]) / 240))
    for track in tracks:
        colour = _rgb(person_colour(track.id)[1])
        x, y, w, h = (round(v) for v in track.box)
        arm = max(4, round(0.18 * min(w, h)))
        for cx, sx in ((x, 1), (x + w, -1)):
            for cy, sy in ((y, 1), (y + h, -1)):
                cv2.line(image, (cx, cy), (cx + sx * arm, cy), colour, thick, cv2.LINE_AA)
                cv2.line(image, (cx, cy), (cx, cy + sy * arm), colour, thick, cv2.LINE_AA)
        text = person_name(track.id)
        if track.id in bpm:
            text += f", {bpm[track.id]:.0f} bpm"
        scale = 0.45 * thick
        (tw, th), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        top = max(0, y - th - 4 * thick)
        cv2.rectangle(image, (x, top), (x + tw + 6, top + th + 6), (20, 20, 20), -1)
        cv2.putText(
            image, text, (x + 3, top + th + 2), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thick,
            cv2.LINE_AA,
        )  # fmt: skip


def _rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _jpeg(image: npt.NDArray[np.uint8] | None) -> bytes | None:
    if image is None:
        return None
    import cv2

    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data) if done else None


class _Painter:
    """Draws and encodes the annotated video in a thread of its own, a few frames behind."""

    _LONGEST_SIDE = 1280

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._queue: queue.Queue[tuple[Frame, list[Track], dict[int, float]] | None] = queue.Queue(
            8
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="annotated.mp4", daemon=True)
        self._abort = False

    def __enter__(self) -> _Painter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._abort = kind is not None
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, frame: Frame, tracks: list[Track]) -> None:
        while self._error is None:
            try:
                self._queue.put((frame, tracks, dict(self._run.latest_bpm)), timeout=0.5)
                return
            except queue.Full:
                continue
        raise self._error

    def _work(self) -> None:
        import cv2

        from foveate.streams.writer import VideoWriter

        writer: VideoWriter | None = None
        try:
            with contextlib.ExitStack() as stack:
                last_s = -1.0
                while (item := self._queue.get()) is not None and not self._abort:
                    frame, tracks, bpm = item
                    if frame.time_s - last_s < _SHORTEST_FRAME_S:
                        continue
                    last_s = frame.time_s
                    image = frame.image.copy()
                    _draw(image, tracks, bpm)
                    scale = self._LONGEST_SIDE / max(image.shape[:2])
                    if scale < 1:
                        size = (round(frame.width * scale), round(frame.height * scale))
                        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                    if writer is None:
                        writer = stack.enter_context(
                            VideoWriter(
                                self._run.folder / "annotated.mp4",
                                image.shape[1],
                                image.shape[0],
                                crf=_ANNOTATED_CRF,
                                metadata=_kept_metadata(self._run.stream.info.metadata),
                            )
                        )
                    writer.write(image, frame.time_s)
        except BaseException as error:  # handed to the main thread
            self._error = error


def _kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A video that carries a simulated pulse stays marked when it is copied."""
    return {k: v for k, v in metadata.items() if k.lower() == "simulated_pulse"}
