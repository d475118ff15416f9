"""The snippets of docs/scripting.md run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from foveate.nn import model_files

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scripting.md"
SNIPPETS = dict(
    re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL | re.M)
)


def test_the_page_has_the_snippets():
    assert len(SNIPPETS) == 9


@pytest.mark.parametrize("title", SNIPPETS)
def test_snippet(title, tmp_path, monkeypatch):
    if title in ("Watch a video", "An analyser of your own"):
        if model_files.find("face_landmarker") is None:
            pytest.skip("face_landmarker.task is not here; run `foveate models fetch`")
        from foveate.simulate.faces import FaceSim
        from foveate.streams.writer import VideoWriter

        clip = FaceSim(size=160, fps=30, seed=0).clip(identity=3, seconds=2, hr=72)
        with VideoWriter(tmp_path / "interview.mp4", 160, 160, 30.0) as writer:
            for image in clip.frames:
                writer.write(image)
    if title == "Make a network small":
        from foveate.nn.small_cnn import MBNMini

        pictures = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
        np.savez(tmp_path / "pictures.npz", x=pictures, y=np.arange(40) % 10)
        safetensors.torch.save_file(MBNMini().state_dict(), tmp_path / "mini.safetensors")
    t = np.arange(360) / 30
    beat = np.sin(2 * np.pi * 1.2 * t)[:, None] * np.array([0.43, 1.0, 0.69])
    noise = np.random.default_rng(0).normal(0, 2e-3, (360, 3))
    np.savetxt(tmp_path / "trace.csv", 150 * (1 - 0.01 * beat + noise), delimiter=",")
    monkeypatch.chdir(tmp_path)
    code = compile(SNIPPETS[title], f"{PAGE.name}: {title}", "exec")
    names: dict[str, object] = {"__name__": "snippet"}
    exec(code, names)  # noqa: S102 - our own documentation
    if title == "A pulse from your own colour traces":
        assert names["rate"].accepted
        assert names["rate"].bpm == pytest.approx(72, abs=0.5)
    if title == "Make a network small":
        assert names["packed"].input_shape == (1, 28, 28)
    if title == "An analyser of your own":
        assert (tmp_path / "mouth.parquet").is_file()
    if title == "Label every pixel":
        assert (names["codes"] == names["truth"]).mean() > 0.9
