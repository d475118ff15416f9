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

__all__ = ["time_watch"]

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
print("FIRST", flush=True)
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
    if out is not None:
        with write_whole(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
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
