"""The built-in example: made once, marked as simulated, and read right."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from foveate.apps.demo import DEMO_BPM, demo_video
from foveate.cli import main
from foveate.nn import model_files
from foveate.streams.video import VideoStream


@pytest.fixture
def own_data_folder(tmp_path, monkeypatch):
    """A fresh FOVEATE_DATA with the face model in it."""
    model = model_files.find("face_landmarker")
    if model is None:
        pytest.skip("face_landmarker.task is not here; run `foveate models fetch`")
    (tmp_path / "data" / "models").mkdir(parents=True)
    (tmp_path / "data" / "models" / model.name).symlink_to(model)
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "data"))
    return tmp_path


def test_the_example_beats_at_72_and_says_that_it_is_simulated(own_data_folder, capsys):
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra: demo)")
    out = own_data_folder / "out"
    main(["watch", "--demo", "--out", str(out)])
    assert "simulated" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    (person,) = summary["people"]
    assert person["heart_rate"]["bpm"] == pytest.approx(DEMO_BPM, abs=1.5)
    assert summary["simulated"] is True
    assert summary["source"]["duration_s"] == pytest.approx(20, abs=0.1)
    video = demo_video(lambda *_: pytest.fail("made again"))
    with VideoStream(video) as stream:
        assert stream.info.metadata["simulated_pulse"] == "true"
        frames = [frame.image for frame in stream][::100]
    # It moves a little: neighbours differ, by no more than a few pixels' worth.
    assert all(np.abs(a.astype(int) - b).mean() > 0.5 for a, b in itertools.pairwise(frames))
