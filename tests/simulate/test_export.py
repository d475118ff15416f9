"""Exports are read back with other libraries, by the published description of each layout."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import scipy.io

from foveate.errors import FoveateError
from foveate.simulate.export import LAYOUTS, export
from foveate.simulate.face_geometry import ACTION_UNITS
from foveate.simulate.faces import FaceSim, SimClip


@pytest.fixture(scope="module")
def clip() -> SimClip:
    return FaceSim(32, seed=1).clip(3, 1.0, hr=80, aus="random", speaking=True)


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_ubfc(clip: SimClip, tmp_path: Path) -> None:
    export(clip, "UBFC-rPPG", tmp_path, subject=8)
    np.testing.assert_array_equal(decode(tmp_path / "subject8" / "vid.avi"), clip.frames)
    truth = np.loadtxt(tmp_path / "subject8" / "ground_truth.txt")
    assert truth.shape == (3, 30)
    np.testing.assert_allclose(truth[0], clip.labels["bvp"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(truth[1], clip.labels["hr_bpm"], rtol=1e-6)
    np.testing.assert_allclose(truth[2], clip.times, atol=1e-7)


def test_pure(clip: SimClip, tmp_path: Path) -> None:
    export(clip, "PURE", tmp_path, subject=3, take=2)
    record = json.loads((tmp_path / "03-02" / "03-02.json").read_text())
    stamps = [entry["Timestamp"] for entry in record["/Image"]]
    pictures = sorted((tmp_path / "03-02" / "03-02").glob("Image*.png"))
    assert [int(path.stem[5:]) for path in pictures] == stamps
    first = cv2.imread(str(pictures[0]))[:, :, ::-1]
    np.testing.assert_array_equal(first, clip.frames[0])
    package = record["/FullPackage"]
    times = np.array([entry["Timestamp"] - stamps[0] for entry in package]) / 1e9
    np.testing.assert_allclose(np.diff(times), 1 / 60, atol=1e-6)
    wave = np.interp(clip.times, times, [entry["Value"]["waveform"] for entry in package])
    assert np.corrcoef(wave, clip.labels["bvp"])[0, 1] > 0.97
    assert record["simulated"] is True


def test_mmpd(clip: SimClip, tmp_path: Path) -> None:
    path = export(clip, "MMPD", tmp_path, subject=5, take=0)
    assert path == tmp_path / "subject5" / "p5_0.mat"
    record = scipy.io.loadmat(path)
    np.testing.assert_array_equal(np.rint(record["video"] * 255).astype(np.uint8), clip.frames)
    np.testing.assert_allclose(record["GT_ppg"][0], clip.labels["bvp"], rtol=1e-6)
    assert record["motion"][0] == "Talking"
    assert 3 <= int(record["skin_color"].item()) <= 6


def test_disfa(clip: SimClip, tmp_path: Path) -> None:
    export(clip, "DISFA", tmp_path)
    folder = tmp_path / "ActionUnit_Labels" / "SN001"
    assert len(list(folder.iterdir())) == 12
    for unit in (1, 12, 26):
        rows = np.loadtxt(folder / f"SN001_au{unit}.txt", delimiter=",", dtype=int)
        np.testing.assert_array_equal(rows[:, 0], np.arange(1, 31))
        exact = clip.labels["au"][:, ACTION_UNITS.index(unit)]
        assert abs(rows[:, 1] - exact).max() <= 0.5
    lm = tmp_path / "Landmark_Points" / "SN001" / "tmp_frame_lm" / "SN001_0007_lm.mat"
    assert scipy.io.loadmat(lm)["pts"].shape == (66, 2)
    video = decode(tmp_path / "Videos_LeftCamera" / "LeftVideoSN001_comp.avi")
    np.testing.assert_array_equal(video, clip.frames)


def test_300vw(clip: SimClip, tmp_path: Path) -> None:
    export(clip, "300VW", tmp_path, subject=1)
    lines = (tmp_path / "001" / "annot" / "000003.pts").read_text().split("\n")
    assert lines[:3] == ["version: 1", "n_points: 68", "{"]
    points = np.array([[float(v) for v in line.split()] for line in lines[3:71]])
    assert lines[71] == "}"
    np.testing.assert_allclose(points - 1, clip.labels["landmarks"][2], atol=6e-4)
    assert len(list((tmp_path / "001" / "annot").iterdir())) == 30
    np.testing.assert_array_equal(decode(tmp_path / "001" / "vid.avi"), clip.frames)


def test_tracks(clip: SimClip, tmp_path: Path) -> None:
    folder = export(clip, "tracks", tmp_path, subject=7, take=2)
    assert len(list(folder.glob("*.png"))) == 30


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_export_says_that_it_is_simulated(clip: SimClip, tmp_path: Path, layout: str) -> None:
    export(clip, layout, tmp_path)
    assert "Simulated" in (tmp_path / "SIMULATED.txt").read_text()
    assert not list(tmp_path.rglob(".partial-*"))


def test_bad_requests_are_named(clip: SimClip, tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="layout"):
        export(clip, "VHS", tmp_path)
    with pytest.raises(FoveateError, match="subject"):
        export(clip, "PURE", tmp_path, subject=0)


@pytest.mark.parametrize("layout", ["UBFC-rPPG", "PURE", "MMPD"])
def test_the_loaders_of_the_public_sets_read_it(clip: SimClip, tmp_path: Path, layout: str) -> None:
    rppg = pytest.importorskip("foveate.datasets.rppg")
    loader = {"UBFC-rPPG": rppg.UBFCrPPG, "PURE": rppg.PURE, "MMPD": rppg.MMPD}[layout]
    export(clip, layout, tmp_path, subject=4)
    read = loader(tmp_path).clip(0)
    np.testing.assert_array_equal(read.frames, clip.frames)
    assert np.corrcoef(read.bvp, clip.labels["bvp"])[0, 1] > 0.97
    assert read.fps == pytest.approx(30, rel=1e-3)


@pytest.mark.parametrize("layout", ["ubfc", "disfa", "300vw"])
def test_an_exported_video_is_marked_where_watch_looks(
    clip: SimClip, tmp_path: Path, layout: str
) -> None:
    from foveate.streams.video import VideoStream

    known = next(name for name in LAYOUTS if name.lower().replace("-", "").startswith(layout))
    export(clip, known, tmp_path, 1, 1)
    videos = list(tmp_path.rglob("*.avi"))
    assert videos
    for video in videos:
        with VideoStream(video) as stream:
            assert stream.info.metadata["simulated_pulse"] == "true"
