"""ONNX Runtime as a peer: the same answers in float, close ones in int8."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foveate.engine import export_onnx, onnx_runtime
from foveate.engine.onnx_runtime import OnnxNetwork, onnx_runtime_version, write_int8
from foveate.errors import FoveateError

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, 2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip


def test_float_and_int8_files(net: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    export_onnx(net, x[:1], tmp_path / "f.onnx")
    level = logging.getLogger().level
    write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", (b.numpy() for b in x.split(16)))
    assert logging.getLogger().level == level
    with torch.no_grad():
        wanted = net(x).numpy()
    for threads in (1, 2):
        answer = OnnxNetwork(tmp_path / "f.onnx", threads).run(x.numpy())
        np.testing.assert_allclose(answer, wanted, atol=1e-5)
    rough = OnnxNetwork(tmp_path / "q.onnx").run(x.numpy())
    assert 0 < np.abs(rough - wanted).max() < 0.1 * np.ptp(wanted)
    content = (tmp_path / "q.onnx").read_bytes()
    assert b"QuantizeLinear" in content
    assert b"DequantizeLinear" in content


def test_what_is_refused(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_runtime_version()
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(FoveateError, match=r"refuses .*junk\.onnx"):
        OnnxNetwork(tmp_path / "junk.onnx")
    export_onnx(net, torch.zeros(1, 3, 8, 8), tmp_path / "f.onnx")
    with pytest.raises(FoveateError, match="cannot quantise"):
        write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", iter(()))
    monkeypatch.setattr(onnx_runtime.importlib.util, "find_spec", lambda name: None)
    assert onnx_runtime_version() is None
    with pytest.raises(FoveateError, match="pip install"):
        OnnxNetwork(tmp_path / "f.onnx")
    with pytest.raises(FoveateError, match="pip install"):
        write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", iter(()))
