"""``foveate bench``: how fast, beside what people use today, measured in one run.

Each contender runs in a process of its own on the same file, one after the other, so that start-up
counts and nobody inherits a warm cache. Machines differ and are noisy: compare the ratios of one
run, never figures of two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = ["pulse_accuracy", "time_watch"]

Row = dict[str, Any]

_WATCH = """
import sys
from foveate.apps.watch import watch
told = []
def progress(done_s, total_s, word):
    if word and not told:
        told.append(word)
        print("FIRST", word, flush=True)
result = watch(sys.argv[1], sys.argv[2], video=sys.argv[3] == "video", progress=progress)
print("BPM", result.heart_rates.get(0), flush=True)
"""

_MEDIAPIPE = """
import sys
from foveate.faces.landmarks import FaceLandmarker
from foveate.nn import model_files
from foveate.streams.video import VideoStream
with VideoStream(sys.argv[1]) as stream, \\
        FaceLandmarker(model_files.fetch("face_landmarker"), max_people=1) as landmarker:
    for frame in stream:
        landmarker.detect(frame.image, frame.time_s)
"""

_OPEN_RPPG = """
import sys
import rppg
model = rppg.Model(sys.argv[2])
result = model.process_video(sys.argv[1])
print("BPM", result and result.get("hr"), flush=True)
"""


def time_watch(seconds: float, peer_python: Path | None, out: Path | None) -> list[Row]:
    """Time `foveate watch` (without and with the annotated video) beside its peers.

    Parameters
    ----------
    seconds
        Length of the test video: 640x480, 30 frames/s, a photograph with a simulated pulse.
    peer_python
        Interpreter of an environment with open-rppg; None leaves it out and says so.
    out
        JSON file for the rows.

    Returns
    -------
    list of dict
        `what`, `realtime_factor` (seconds of video per second of wall time, start-up included),
        `frames_per_s`, `cpu_s_per_s` (CPU seconds per second of video), `first_result_s` (from
        the start of the process), `peak_mb`, `bpm`.

    Raises
    ------
    FoveateError
        The length makes no sense or a contender fails.
    """
    if not 10 <= seconds <= 3600:
        raise FoveateError(f"--seconds is {seconds:g}; expected 10 to 3600")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="foveate-bench-") as scratch:
        folder = Path(scratch)
        video = folder / "bench.mp4"
        # In a process of its own: the kernel counts the memory of a process from its parent's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            frames = pool.submit(make_video, video, seconds).result()
        own = [sys.executable, "-c"]
        contenders: list[tuple[str, list[str]]] = [
            ("foveate watch", [*own, _WATCH, str(video), str(folder / "plain"), "plain"]),
            (
                "foveate watch, with annotated video",
                [*own, _WATCH, str(video), str(folder / "full"), "video"],
            ),
            ("MediaPipe landmarks alone, every frame", [*own, _MEDIAPIPE, str(video)]),
        ]
        if peer_python is not None:
            contenders += [
                (f"open-rppg {name}", [str(peer_python), "-c", _OPEN_RPPG, str(video), name])
                for name in ("FacePhys.rlap", "ME-chunk.rlap")
            ]
        for what, command in contenders:
            rows.append({"what": what, **_time(command, what, frames, seconds)})
    _write(rows, out)
    return rows


def make_video(path: Path, seconds: float) -> int:
    """Repeat the example clip to `seconds` at 640x480 and 30 frames/s; returns the frame count."""
    import cv2

    from foveate.apps.demo import DEMO_CRF, demo_video
    from foveate.streams.video import VideoStream
    from foveate.streams.writer import VideoWriter

    pictures = []
    with VideoStream(demo_video(lambda *_: None)) as stream:
        for frame in stream:
            width = round(frame.width * 480 / frame.height)
            small = cv2.resize(frame.image, (width, 480), interpolation=cv2.INTER_AREA)
            side = (640 - width) // 2
            pictures.append(
                cv2.copyMakeBorder(small, 0, 0, side, 640 - width - side, cv2.BORDER_REPLICATE)
            )
    count = round(seconds * 30)
    marked = {"simulated_pulse": "true"}
    with VideoWriter(path, 640, 480, 30.0, crf=DEMO_CRF, metadata=marked) as writer:
        for index in range(count):
            writer.write(pictures[index % len(pictures)])
    return count


def _time(command: Sequence[str], what: str, frames: int, seconds: float) -> Row:
    """Run one contender; its memory and CPU time come from the kernel's account of the process."""
    started = time.perf_counter()
    first: float | None = None
    bpm: str | None = None
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        for line in process.stdout or ():
            if line.startswith("FIRST") and first is None:
                first = time.perf_counter() - started
            if line.startswith("BPM"):
                bpm = line.removeprefix("BPM").strip()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode != 0:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise FoveateError(f"bench: {what} failed: {''.join(last) or status}")
    scale = 1024 if sys.platform != "darwin" else 1024 * 1024  # ru_maxrss: KiB or bytes
    return {
        "realtime_factor": round(seconds / wall, 3),
        "frames_per_s": round(frames / wall, 1),
        "cpu_s_per_s": round((usage.ru_utime + usage.ru_stime) / seconds, 4),
        "first_result_s": None if first is None else round(first, 2),
        "peak_mb": round(usage.ru_maxrss / scale, 1),
        "bpm": bpm,
    }


def pulse_accuracy(clips: int, seconds: float, out: Path | None) -> list[Row]:
    """Heart rates of simulated faces with a pulse, and of the same faces without one.

    Each clip of 64 x 64 pixels goes through the analyser of ``foveate watch``, with the face box of
    the simulation. Rates are spread evenly over 45-180 bpm, one test identity each.

    Parameters
    ----------
    clips
        For each preset, with and without a pulse.
    seconds
        Length of a clip.
    out
        JSON file for the rows.

    Returns
    -------
    list of dict
        `what`, `clips`, `mae_bpm` (of the best guess in every clip, refused or not), `accepted`,
        `mae_accepted_bpm`, `false_accepted` (of as many clips with zero pulse gain),
        `ms_per_frame` (drawing, camera and codec; lower quartile); `simulated` is always True.

    Raises
    ------
    FoveateError
        A number makes no sense.
    """
    import numpy as np

    from foveate.faces.pulse_analyser import PulseAnalyser
    from foveate.faces.track import Track
    from foveate.simulate.faces import PRESETS, SPLITS, FaceSim
    from foveate.streams.frame import Frame

    if not (2 <= clips <= 1000 and 7 <= seconds <= 120):
        raise FoveateError("bench pulse takes 2 to 1000 clips of 7 to 120 seconds")
    sim = FaceSim(size=64, fps=30, seed=0)

    def result(index: int, hr: float, preset: str, **options: Any) -> tuple[Any, float]:
        started = time.perf_counter()
        clip = sim.clip(SPLITS["test"][index], seconds, hr=hr, **PRESETS[preset], **options)
        drawn.append((time.perf_counter() - started) / len(clip.frames))
        analyser = PulseAnalyser("pos")
        points = clip.labels["landmarks"]
        low, high = points.min(axis=1), points.max(axis=1)
        for number, (image, time_s) in enumerate(zip(clip.frames, clip.times, strict=True)):
            box = (*low[number], *(high[number] - low[number]))
            analyser.update(Frame(image, float(time_s), number), Track(0, box))
        analyser.finish()
        return analyser.summaries()[0].result, clip.labels["hr_mean_bpm"]

    rows: list[Row] = []
    drawn: list[float] = []
    for preset in PRESETS:
        drawn.clear()
        rates = np.linspace(45, 180, clips)
        read = [result(i, hr, preset) for i, hr in enumerate(rates)]
        errors = [abs(r.candidate_bpm - truth) for r, truth in read]
        accepted = [abs(r.bpm - truth) for r, truth in read if r.accepted]
        silent = [result(i, hr, preset, pulse_gain=0.0)[0] for i, hr in enumerate(rates)]
        rows.append(
            {
                "what": f"POS on {preset}",
                "simulated": True,
                "clips": clips,
                "mae_bpm": round(float(np.mean(errors)), 3),
                "accepted": len(accepted),
                "mae_accepted_bpm": round(float(np.mean(accepted)), 3) if accepted else None,
                "false_accepted": sum(r.accepted for r in silent),
                "ms_per_frame": round(1000 * float(np.percentile(drawn, 25)), 2),
            }
        )
    _write(rows, out)
    return rows


def _write(rows: list[Row], out: Path | None) -> None:
    if out is not None:
        with write_whole(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
