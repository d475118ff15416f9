"""A folder of videos: parallel, killed with -9, resumed, on Ray."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foveate.apps.watch import WatchSettings
from foveate.apps.watch_many import _folders, videos_in, watch_many
from foveate.errors import FoveateError
from foveate.streams.writer import VideoWriter

BOX = WatchSettings(roi=(4, 4, 24, 24), video=False)


def clip(path: Path, frames: int = 45) -> Path:
    rng = np.random.default_rng(len(path.name))
    with VideoWriter(path, 32, 32, 30.0) as writer:
        for _ in range(frames):
            writer.write(rng.integers(80, 120, (32, 32, 3)).astype(np.uint8))
    return path


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "b.mkv"):
        clip(source / name)
    (source / "broken.mp4").write_bytes(b"nonsense")
    return source


def finished(out: Path) -> dict[str, float]:
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/summary.json")}


def test_all_videos_are_watched_and_a_broken_one_stops_nobody(folder, tmp_path):
    out = tmp_path / "out"
    told = []
    outcomes = watch_many(
        videos_in(folder), out, settings=BOX, jobs=2, progress=lambda d, n, o: told.append((d, n))
    )
    assert [o.video.name for o in outcomes] == ["a.mp4", "b.mkv", "b.mp4", "broken.mp4", "c.mp4"]
    assert [o.result is None for o in outcomes] == [False, False, False, True, False]
    assert "broken.mp4" in outcomes[3].error
    assert sorted(finished(out)) == ["a", "b-mkv", "b-mp4", "c"]
    assert told == [(i, 5) for i in range(1, 6)]
    with (out / "heart_rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["video"] for r in rows] == [o.video.name for o in outcomes]
    assert all(r["reason"] for r in rows)  # noise and two seconds: nothing was made up
    page = (out / "index.html").read_text()
    assert all(name in page for name in ("a.mp4", "b.mkv", "broken.mp4"))
    # Again: nothing is computed twice, the broken one is tried again.
    before = finished(out)
    again = watch_many(videos_in(folder), out, settings=BOX, jobs=2)
    assert [bool(o.result and o.result.reused) for o in again] == [True, True, True, False, True]
    assert finished(out) == before


def test_kill_9_in_the_middle_and_resume(folder, tmp_path):
    for i in range(6):
        clip(folder / f"long{i}.mp4", 240)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "foveate", "watch", str(folder), "--out", str(out),
               "--roi", "4,4,24,24", "--no-video", "--jobs", "2"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not finished(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "finished before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # workers notice that their parent is gone
    kept = finished(out)
    assert 0 < len(kept) < 10
    for path in out.glob("*/summary.json"):  # what counts as finished is whole
        json.loads(path.read_text())
        assert (path.parent / "signals.parquet").stat().st_size > 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2  # one of the videos is broken, and says so
    assert "1 of 11 videos" in done.stderr
    after = finished(out)
    assert len(after) == 10
    assert {name: after[name] for name in kept} == kept
    assert not list(out.glob("*/.partial*"))


def test_ctrl_c_stops_everything_at_once_and_keeps_what_is_finished(folder, tmp_path):
    for i in range(6):
        clip(folder / f"long{i}.mp4", 900)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "foveate", "watch", str(folder), "--out", str(out),
         "--roi", "4,4,24,24", "--no-video", "--jobs", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not finished(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    kept = len(finished(out))
    assert 0 < kept < 10
    time.sleep(1.5)
    assert len(finished(out)) == kept  # no worker went on


def test_every_video_has_a_folder_of_its_own(tmp_path):
    names = ["a.mp4", "a.mov", "a-mp4.mp4", "index.html.mp4", "b.mkv"]
    folders = _folders([Path(n) for n in names], tmp_path)
    assert len(set(folders)) == len(names)
    assert [f.name for f in folders] == ["a-mp4-2", "a-mov", "a-mp4", "index.html-2", "b"]


def test_workers_leave_when_their_parent_is_killed(folder, tmp_path):
    import psutil

    for i in range(4):
        clip(folder / f"long{i}.mp4", 600)
    process = subprocess.Popen(
        [sys.executable, "-m", "foveate", "watch", str(folder), "--out", str(tmp_path / "o"),
         "--roi", "4,4,24,24", "--no-video", "--jobs", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "o").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.0)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers
    assert not alive


def test_a_worker_that_dies_costs_only_its_video(folder, tmp_path, monkeypatch):
    # The child reads this variable through the module below, put on its path.
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text(
        "import os\n"
        "import multiprocessing.process as p\n"
        "if os.environ.get('FOVEATE_TEST_POISON'):\n"
        "    import foveate.streams.video as v\n"
        "    real = v._check_file\n"
        "    def check(path):\n"
        "        if path.name == 'c.mp4':\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return real(path)\n"
        "    v._check_file = check\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{poison}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FOVEATE_TEST_POISON", "1")
    outcomes = watch_many(videos_in(folder), tmp_path / "out", settings=BOX, jobs=2)
    by_name = {o.video.name: o for o in outcomes}
    assert "died" in by_name["c.mp4"].error
    assert all(by_name[n].result for n in ("a.mp4", "b.mp4", "b.mkv"))


def test_bad_settings_are_refused_before_any_work(folder, tmp_path):
    with pytest.raises(FoveateError, match="--jobs is 0"):
        watch_many(videos_in(folder), tmp_path / "o", settings=BOX, jobs=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FoveateError, match="no video in"):
        videos_in(tmp_path / "empty")


@pytest.mark.ray
def test_the_same_work_on_a_local_ray(folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra: cluster)")
    out = tmp_path / "out"
    outcomes = watch_many(videos_in(folder), out, settings=BOX, ray="local")
    assert [o.result is None for o in outcomes] == [False, False, False, True, False]
    assert "broken.mp4" in outcomes[3].error
    again = watch_many(videos_in(folder), out, settings=BOX, jobs=1)
    assert sum(bool(o.result and o.result.reused) for o in again) == 4


@pytest.mark.ray
def test_a_cluster_that_does_not_answer_is_one_sentence(folder, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (extra: cluster)")
    monkeypatch.setenv("RAY_gcs_rpc_server_connect_timeout_s", "1")
    with pytest.raises(FoveateError, match="no Ray cluster answers at auto"):
        watch_many(videos_in(folder), tmp_path / "o", settings=BOX, ray="auto")
