"""Numbered simulated clips: split by person, cached whole, rebuilt when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.simulate import faces
from foveate.simulate.face_dataset import SimDataset, load_clip, save_clip
from foveate.simulate.faces import SPLITS, FaceSim
from foveate.simulate.scripts import Decoy


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    return tmp_path / "cache" / "simulate"


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("rppg", (6,)),
        ("au", (6, 13)),
        ("landmarks", (6, 68, 2)),
        ("identity", ()),
        ("gaze", (6, 2)),
        ("emotion", ()),
    ],
)
def test_targets(task: str, shape: tuple[int, ...]) -> None:
    data = SimDataset(task, "test", 3, size=16, seconds=0.2)  # type: ignore[arg-type]
    assert data.is_simulation
    assert len(list(data)) == 3
    assert data.target(data[0]).shape == shape
    assert data[-1].labels["identity"] in SPLITS["test"]


def test_a_clip_comes_back_from_disk_exactly(own_cache: Path) -> None:
    data = SimDataset("rppg", count=2, size=16, seconds=0.5)
    made = data[1]
    (path,) = own_cache.glob("*.npz")
    before = path.stat().st_mtime_ns
    read = data[1]
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(read.frames, made.frames)
    assert read.config == made.config
    for name, value in made.labels.items():
        np.testing.assert_array_equal(read.labels[name], value)  # type: ignore[literal-required]
    assert isinstance(read.labels["hr_mean_bpm"], float)


def test_a_damaged_file_is_made_again(own_cache: Path) -> None:
    data = SimDataset("rppg", count=1, size=16, seconds=0.3)
    made = data[0]
    (path,) = own_cache.glob("*.npz")
    path.write_bytes(path.read_bytes()[:500])
    np.testing.assert_array_equal(data[0].frames, made.frames)
    broken = path.with_name("broken.npz")
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(FoveateError, match="not a simulated clip"):
        load_clip(broken)


def test_the_cache_key_knows_version_seed_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**how: object) -> str:
        data = SimDataset("rppg", count=2, **({"size": 16} | how))  # type: ignore[arg-type]
        return data.key(data.settings(1))

    base = key()
    others = [
        key(seed=1),
        key(size=32),
        key(fps=25),
        key(seconds=3.0),
        key(preset="sim-B"),
        key(decoy=Decoy()),
        key(decoy=Decoy(gain=0.01)),
    ]
    assert len({base, *others}) == 8
    assert key() == base
    monkeypatch.setattr("foveate.simulate.face_dataset.VERSION", faces.VERSION + "x")
    assert key() != base


def test_identities_have_takes() -> None:
    data = SimDataset("identity", "val", 8, size=16, seconds=0.1)
    people = [data.settings(i)["identity"] for i in range(8)]
    assert people == [10000] * 4 + [10001] * 4
    assert len({data.settings(i)["take"] for i in range(4)}) == 4


def test_stored_files_hold_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "clip.npz"
    save_clip(FaceSim(16).clip(0, 0.2), path)
    with np.load(path, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)


def test_bad_requests_are_named() -> None:
    for bad in ({"task": "age"}, {"split": "all"}, {"preset": "sim-Z"}, {"count": 0}):
        with pytest.raises(FoveateError):
            SimDataset(**({"task": "rppg"} | bad))  # type: ignore[arg-type]
