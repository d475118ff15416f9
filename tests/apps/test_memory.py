"""Memory does not grow with the length of the video."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foveate.streams.writer import VideoWriter

WATCH = """
import sys
from foveate.apps.watch import watch
watch(sys.argv[1], sys.argv[2], roi=(20, 16, 40, 40))
print(open("/proc/self/status").read())
"""


def video(path: Path, seconds: int) -> Path:
    rng = np.random.default_rng(0)
    pictures = rng.integers(90, 110, (30, 80, 96, 3)).astype(np.uint8)
    with VideoWriter(path, 96, 80, 30.0) as writer:
        for i in range(seconds * 30):
            writer.write(pictures[i % 30])
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_ten_minutes_peak_at_most_15_percent_above_one_minute_and_below_1_gb(tmp_path):
    peaks = {}
    for minutes in (1, 10):
        clip = video(tmp_path / f"{minutes}.mp4", 60 * minutes)
        done = subprocess.run(
            [sys.executable, "-c", WATCH, str(clip), str(tmp_path / f"out{minutes}")],
            capture_output=True, text=True, timeout=400, check=True,
        )  # fmt: skip
        # The high-water mark of the process itself; ru_maxrss would start from its parent's.
        peaks[minutes] = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024
    assert peaks[10] <= 1.15 * peaks[1], peaks
    assert peaks[10] < 1000, peaks
