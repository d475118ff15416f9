"""The peers compute the convolutions that they are timed on."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveate.apps import bench_peers
from foveate.apps.bench_peers import ACT_STEP, float_convolutions


def picture(channels, side, seed=1):
    return np.random.default_rng(seed).normal(size=(1, channels, side, side)).astype(np.float32)


def in_a_row(convs, image):
    with torch.inference_mode():
        return nn.Sequential(*convs)(torch.from_numpy(image)).numpy()


def test_deviation_stays_about_one_in_a_row_of_convolutions():
    convs = float_convolutions(64, 3)
    inner = in_a_row(convs, picture(64, 24))[:, :, 4:-4, 4:-4]
    assert 0.8 < inner.std() < 1.25
    assert not torch.equal(convs[0].weight, convs[1].weight)


# ------------------------------------------------------------------------------ LiteRT


def interpreter(convs, side, *, int8, threads=1):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    made = importlib.import_module("ai_edge_litert.interpreter").Interpreter(
        model_content=bench_peers.tflite(convs, side, int8=int8), num_threads=threads
    )
    made.allocate_tensors()
    return made


def answer(made, x):
    made.set_tensor(made.get_input_details()[0]["index"], x)
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"])


@pytest.mark.parametrize("depth", [1, 3])
def test_litert_fp32_equals_torch(depth):
    convs, image = float_convolutions(24, depth), picture(24, 9)
    out = answer(interpreter(convs, 9, int8=False), image.transpose(0, 2, 3, 1).copy())
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), in_a_row(convs, image), atol=1e-5)


def test_litert_int8_equals_the_integer_sums_of_its_specification():
    (conv,) = float_convolutions(24, 1)
    codes = np.random.default_rng(2).integers(-128, 128, (1, 9, 9, 24)).astype(np.int8)
    made = interpreter([conv], 9, int8=True)
    assert made.get_input_details()[0]["dtype"] is np.int8
    assert made.get_output_details()[0]["dtype"] is np.int8
    out = answer(made, codes)

    weight = conv.weight.double()
    step = weight.abs().amax((1, 2, 3)) / 127
    act = float(ACT_STEP)
    sums = F.conv2d(
        torch.from_numpy(codes.transpose(0, 3, 1, 2).astype(np.float64)),
        (weight / step[:, None, None, None]).round(),
        (conv.bias.double() / (step * act)).round(),
        padding=1,
    )
    exact = (sums * step[:, None, None]).numpy()  # s_x / s_y is 1
    expected = np.clip(exact, -128, 127).transpose(0, 2, 3, 1)
    assert np.abs(out - expected).max() < 0.501  # to the nearest; 0.001 for its float32 scale
    assert (np.abs(expected) < 120).mean() > 0.5  # most codes are not at the end of the range


@pytest.mark.parametrize("int8", [False, True])
def test_litert_runs_on_xnnpack_and_on_any_number_of_threads(int8):
    convs = float_convolutions(16, 2)
    one, two = (interpreter(convs, 6, int8=int8, threads=n) for n in (1, 2))
    assert [op["op_name"] for op in one._get_ops_details()].count("DELEGATE") == 1
    x = picture(16, 6).transpose(0, 2, 3, 1).copy()
    x = np.rint(x / ACT_STEP).clip(-128, 127).astype(np.int8) if int8 else x
    np.testing.assert_array_equal(answer(one, x), answer(two, x))


# ------------------------------------------------------------------------------ the others


def test_torch_peers_compute_the_convolutions():
    convs, image = float_convolutions(16, 2), picture(16, 6)
    expected = in_a_row(convs, image)
    net, x = nn.Sequential(*convs), torch.from_numpy(image)
    contenders = bench_peers.torch_eager(net, x) + bench_peers.torch_compiled(net, x)
    assert [c.kind for c in contenders] == ["fp32"] * len(contenders)
    for contender in contenders:
        np.testing.assert_allclose(contender.call().numpy(), expected, atol=1e-5)


def test_where_torch_cannot_compile_it_is_left_out(monkeypatch):
    def refuse(picture):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda net: refuse)
    net = nn.Sequential(*float_convolutions(8, 1))
    assert bench_peers.torch_compiled(net, torch.zeros(1, 8, 4, 4)) == []


def test_onnx_peers_compute_the_convolutions(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    convs, image = float_convolutions(16, 2), picture(16, 6)
    expected = in_a_row(convs, image)
    assert bench_peers.write_onnx(convs, 6, tmp_path / "row.onnx")
    for contender in bench_peers.onnx_peers(tmp_path / "row.onnx", image, 1):
        out = contender.call()
        out = out if isinstance(out, np.ndarray) else out[0]
        error = np.abs(out - expected).max() / expected.std()
        assert error < (1e-5 if contender.kind == "fp32" else 0.1), contender.what


def test_openvino_binary_is_the_product_of_signs():
    pytest.importorskip("openvino", reason="openvino is not installed")
    image = picture(32, 5)
    (contender,) = bench_peers.openvino_binary(1, image, 1, seed=3)
    assert contender.kind == "1x1 bits"
    bits = np.random.default_rng(3).integers(0, 2, 32 * 32 * 9)
    bits = np.unpackbits(np.packbits(bits), bitorder="little")  # how its kernel reads a byte
    signs = torch.from_numpy(np.where(image > 0, 1.0, -1.0))
    out = np.asarray(contender.call()[0])[:, :, 1:-1, 1:-1]
    expected = F.conv2d(signs, torch.from_numpy(2.0 * bits.reshape(32, 32, 3, 3) - 1))
    np.testing.assert_array_equal(out, expected.numpy())
