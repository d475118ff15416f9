"""EREA against its specification: sizes, wiring, attention, loss, long clips, files."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import safetensors.torch
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.faces import erea
from foveate.faces.erea import DESK, EREA, PAPER, EREAConfig

TINY = EREAConfig(stem=4, stages=(6,), grid=3, temporal_pool=2, frames=16, size=12)


def tiny(seed: int = 0, **changes) -> EREA:
    torch.manual_seed(seed)
    return EREA(dataclasses.replace(TINY, **changes)).eval()


def clip(batch: int = 2, frames: int = 16, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(seed))


# --- sizes ---------------------------------------------------------------------------------


def test_desk_size_is_the_one_of_the_layer_table():
    """Parameters by hand from the table: stem, two blocks, nine experts, gate, fusion."""
    conv = 27 * 16 * 16 + 16
    stem = 3 * 8 * 25 + 2 * 8
    encoder = 27 * 8 * 16 + 27 * 16 * 16 + 8 * 16 + 3 * 32 + 2 * 27 * 16 * 16 + 2 * 32
    expert = 2 * conv + (16 * 8 * 9 + 8) + (8 * 9 + 1) + (16 + 1)
    gate = 2 * conv + (16 * 9 * 3 + 9)
    by_hand = stem + encoder + 9 * expert + gate + 4
    net = EREA(DESK)
    assert sum(p.numel() for p in net.parameters()) == by_hand
    assert round(by_hand / 1000) == 175  # the specification's figure


def test_one_expert_costs_the_same_macs_as_nine():
    macs = []
    for grid in (1, 3):
        config = dataclasses.replace(DESK, grid=grid)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            EREA(config)(torch.empty(1, 3, 128, 36, 36))
        macs.append(counter.get_total_flops() / 2)
    assert macs[0] == pytest.approx(macs[1], rel=1e-3)
    assert 0.9e9 < macs[1] < 1.3e9


def test_paper_size():
    with torch.device("meta"):
        net = EREA(PAPER)
        wave, attention = net(torch.empty(1, 3, 160, 96, 96))
    assert 3e6 < sum(p.numel() for p in net.parameters()) < 5e6
    assert wave.shape == (1, 160)
    assert attention.shape == (1, 160, 48, 48)


@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 3),
    pairs=st.integers(1, 6),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
)
def test_shapes(batch, pairs, rows, columns):
    net = tiny()
    wave, attention = net(torch.randn(batch, 3, 2 * pairs, 6 * rows, 6 * columns))
    assert wave.shape == (batch, 2 * pairs)
    assert attention.shape == (batch, 2 * pairs, 3 * rows, 3 * columns)


# --- wiring --------------------------------------------------------------------------------


def test_attention_is_the_activation_map_of_the_waveform_head():
    """Patch means of the map, summed, plus gated biases = the waveform before the last Conv1d."""
    net = tiny(temporal_pool=1)
    torch.nn.init.normal_(net.head_bias)
    x = clip()
    wave, attention = net(x)
    gates = net.experts(x).gates
    patch = attention.shape[-1] // 3 * attention.shape[-2] // 3
    fused = attention.sum((-2, -1)) / patch + (gates * net.head_bias[:, None]).sum(1)
    assert torch.allclose(net.fuse(fused[:, None])[:, 0], wave, atol=1e-5)


def test_head_weights_are_detached_in_the_map_and_live_in_the_waveform():
    net = tiny()
    wave, attention = net(clip())
    (from_map,) = torch.autograd.grad(
        attention.pow(2).sum(), net.head_weight, allow_unused=True, retain_graph=True
    )
    assert from_map is None
    features = net.specialise[0].weight
    assert torch.autograd.grad(attention.pow(2).sum(), features, retain_graph=True)[0].abs().sum()
    assert torch.autograd.grad(wave.pow(2).sum(), net.head_weight)[0].abs().sum() > 0


def test_experts_have_own_weights_and_see_only_their_patch():
    net = tiny()
    x = clip(1)
    before = net.experts(x)
    features = net.encoder(net.stem(x))
    assert features.shape[-1] == 6
    with torch.no_grad():  # change expert 0 (top left) only: the first 6 of 54 channels
        net.specialise[0].weight[:6] += 1
    after = net.experts(x)
    changed = (before.waves != after.waves).any(-1)[0]
    assert changed.tolist() == [True] + [False] * 8
    moved = (before.maps != after.maps).flatten(2).any(-1)[0]
    assert moved.tolist() == changed.tolist()


def test_experts_equal_nine_separate_networks():
    """The grouped convolutions against a plain loop over patches, expert by expert."""
    net = tiny()
    x = clip(2)
    said = net.experts(x)
    features = net.encoder(net.stem(x))
    c, conv, region = net.width, net.specialise[0], net.specialise[2]
    half = c // 2
    for k in range(9):
        row, column = divmod(k, 3)
        patch = features[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        mine = slice(k * c, (k + 1) * c)
        a = torch.conv3d(patch, conv.weight[mine], conv.bias[mine], padding=1).relu()
        u = torch.conv3d(a, region.transform.weight[mine], region.transform.bias[mine], padding=1)
        first, last = region.mask[0], region.mask[2]
        hidden = slice(k * half, (k + 1) * half)
        m = torch.conv2d(u.mean(2), first.weight[hidden], first.bias[hidden], padding=1).relu()
        m = torch.conv2d(m, last.weight[k : k + 1], last.bias[k : k + 1], padding=1).sigmoid()
        out = u * m[:, :, None] + a
        read = torch.einsum("bct,c->bt", out.mean((-2, -1)), net.head_weight[k])
        assert torch.allclose(said.waves[:, k], read + net.head_bias[k], atol=1e-5)
        cam = torch.einsum("bctij,c->btij", out, net.head_weight[k])
        assert torch.allclose(said.maps[:, k], cam, atol=1e-5)


def test_gate_is_a_softmax_over_experts_at_every_time():
    net = tiny()
    said = net.experts(clip())
    assert said.gates.shape == (2, 9, 8)
    assert torch.allclose(said.gates.sum(1), torch.ones(2, 8), atol=1e-6)
    assert (said.gates > 0).all()
    assert said.gates.std(-1).max() > 0  # it moves with time
    entropy = said.gate_entropy()
    assert ((entropy >= 0) & (entropy <= np.log(9) + 1e-6)).all()
    expected = scipy.stats.entropy(said.gates.detach().numpy(), axis=1).mean(-1)
    assert np.allclose(entropy.detach().numpy(), expected, atol=1e-5)


def test_stitched_map_has_each_expert_at_its_place():
    net = tiny()
    x = clip(1)
    said, (_, attention) = net.experts(x), net(x)
    for k in range(9):
        row, column = divmod(k, 3)
        tile = attention[0, ::2, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.allclose(tile, said.gates[0, k, :, None, None] * said.maps[0, k], atol=1e-6)
    assert torch.equal(attention[:, ::2], attention[:, 1::2])


def test_shapes_that_do_not_fit_are_named():
    net = tiny()
    for wrong in ((2, 1, 16, 12, 12), (2, 3, 15, 12, 12), (2, 3, 16, 10, 12), (3, 16, 12, 12)):
        with pytest.raises(FoveateError, match=", ".join(map(str, wrong))):
            net(torch.zeros(wrong))
    with pytest.raises(FoveateError):
        EREAConfig(size=40)
    with pytest.raises(FoveateError):
        EREAConfig(stem=100_000)


# --- input, label, loss --------------------------------------------------------------------


def test_diffnorm_by_hand():
    generator = np.random.default_rng(0)
    frames = generator.integers(1, 255, (2, 3, 5, 4, 4), dtype=np.uint8)
    out = erea.diffnorm(torch.from_numpy(frames)).numpy()
    for sample, result in zip(frames.astype(np.float64), out, strict=True):
        steps = np.zeros_like(sample)
        for t in range(4):
            steps[:, t] = (sample[:, t + 1] - sample[:, t]) / (
                sample[:, t + 1] + sample[:, t] + 1e-7
            )
        assert np.allclose(result, steps / steps.std(ddof=1), atol=1e-4)
    assert (out[:, :, -1] == 0).all()


def test_diffnorm_of_a_still_clip_is_zero_and_light_cancels():
    still = torch.full((1, 3, 6, 4, 4), 120, dtype=torch.uint8)
    assert (erea.diffnorm(still) == 0).all()
    scene = torch.rand(1, 3, 6, 4, 4) + 0.1
    assert torch.allclose(erea.diffnorm(scene), erea.diffnorm(scene * 7), atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 4),
    length=st.integers(4, 60),
    scale=st.floats(0.1, 50),
    offset=st.floats(-5, 5),
    seed=st.integers(0, 9999),
)
def test_neg_pearson_is_scipys_correlation_and_ignores_scale_and_offset(
    batch, length, scale, offset, seed
):
    generator = np.random.default_rng(seed)
    y, s = generator.normal(size=(2, batch, length))
    expected = np.mean([1 - scipy.stats.pearsonr(a, b)[0] for a, b in zip(y, s, strict=True)])
    for prediction in (y, scale * y + offset):
        loss = erea.neg_pearson(torch.from_numpy(prediction), torch.from_numpy(s))
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    published = np.mean(
        [
            1
            - (length * (a @ b) - a.sum() * b.sum())
            / np.sqrt((length * (a @ a) - a.sum() ** 2) * (length * (b @ b) - b.sum() ** 2) + 1e-8)
            for a, b in zip(y, s, strict=True)
        ]
    )
    loss = erea.neg_pearson(torch.from_numpy(y), torch.from_numpy(s))
    assert loss.item() == pytest.approx(published, abs=1e-9)


def test_diff_label_undoes_to_the_label():
    bvp = np.sin(np.linspace(0, 20, 128))[None]
    steps = erea.diff_label(torch.from_numpy(bvp)).numpy()
    assert steps[0, -1] == 0
    assert steps.std(ddof=1) == pytest.approx(1)
    back = np.cumsum(steps[0, :-1])
    assert np.corrcoef(back, bvp[0, 1:])[0, 1] > 0.9999


# --- long clips ----------------------------------------------------------------------------


def test_passes_of_a_ten_second_clip():
    assert erea.pass_starts(300, 128) == [0, 86, 172]  # the specification's
    assert erea.pass_starts(128, 128) == [0]
    with pytest.raises(FoveateError, match=r"127 frames.*128"):
        erea.pass_starts(127, 128)


@settings(deadline=None, max_examples=50)
@given(length=st.integers(8, 200), extra=st.integers(0, 1000))
def test_passes_cover_everything_and_overlap(length, extra):
    starts = erea.pass_starts(length + extra, length)
    assert starts[0] == 0
    assert starts[-1] == extra
    assert all(0 < b - a <= 0.75 * length + 1 for a, b in itertools.pairwise(starts))


class Ideal(EREA):
    """Stands for a perfect network: the derivative of the mean green, at an arbitrary scale."""

    def forward(self, x):
        scale = 1 + 3 * x.abs().sum((1, 2, 3, 4))[:, None] % 7
        wave = x[:, 1].mean((-2, -1))
        return scale * wave, x[:, 1]


def test_waveform_joins_passes_into_the_pulse():
    seconds = np.arange(300) / 30
    pulse = np.sin(2 * np.pi * 1.3 * seconds) + 0.4 * np.sin(2 * np.pi * 2.6 * seconds + 1)
    frames = np.full((1, 300, 6, 6, 3), 120.0) + 60 * pulse[None, :, None, None, None] / 2
    net = Ideal(dataclasses.replace(TINY, frames=128))
    reading = erea.waveform(net, np.concatenate([frames, frames]).round().astype(np.uint8))
    assert reading.starts == [0, 86, 172]
    assert reading.bvp.shape == (2, 300)
    assert reading.energy.shape == (2, 3, 6, 6)
    assert abs(reading.bvp.mean()) < 1e-9
    assert np.corrcoef(reading.bvp[0], pulse)[0, 1] > 0.98


def test_waveform_does_not_depend_on_the_batch_and_never_erases():
    net = tiny()
    frames = np.random.default_rng(0).integers(0, 255, (5, 40, 12, 12, 3), dtype=np.uint8)
    together, apart = erea.waveform(net, frames), erea.waveform(net.train(), frames, batch=1)
    assert np.abs(together.bvp - apart.bvp).max() < 2e-3 * apart.bvp.std()
    assert not net.training
    with pytest.raises(FoveateError, match="40, 3, 12, 12"):
        erea.waveform(net, frames.transpose(0, 1, 4, 2, 3))


def test_attention_share():
    energy = np.array([[[[1.0, 3.0]], [[0.0, 4.0]]]], np.float32)
    skin = np.array([[[[1.0, 0.0]], [[1.0, 0.5]]]])
    assert erea.attention_share(energy, skin)[0] == pytest.approx((1 + 2) / 8)
    assert np.isnan(erea.attention_share(energy * 0, skin)[0])


# --- crops ---------------------------------------------------------------------------------


def test_face_box_is_the_enlarged_hull_and_ignores_a_slip_of_the_landmarks():
    points = np.array([[10.0, 20.0], [50.0, 30.0], [30.0, 80.0]])
    track = np.repeat(points[None], 40, 0)
    track[20] += 400  # one frame of nonsense
    track[5] = np.nan  # one frame without a face
    boxes = erea.face_boxes(track)
    assert np.allclose(boxes, [30, 50, 1.2 * 60])
    with pytest.raises(FoveateError):
        erea.face_boxes(np.full((4, 3, 2), np.nan))


def test_crop_averages_the_area_inside_the_box():
    generator = np.random.default_rng(1)
    frames = generator.integers(0, 255, (3, 60, 80, 3), dtype=np.uint8)
    # A box of 24 x 24 whose pixels are whole: rows 10..33, columns 30..53.
    boxes = np.repeat([[30 + 11.5, 10 + 11.5, 24.0]], 3, 0)
    crops = erea.crop_faces(frames, boxes, 12)
    expected = frames[:, 10:34, 30:54].reshape(3, 12, 2, 12, 2, 3).mean((2, 4))
    assert crops.dtype == np.float32
    assert np.allclose(crops, expected, atol=1e-3)
    outside = erea.crop_faces(frames[:1], np.array([[0.0, 0.0, 40.0]]), 12)
    assert np.allclose(outside[0, 0, 0], frames[0, 0, 0], atol=1e-3)


# --- files ---------------------------------------------------------------------------------


def test_saved_network_comes_back_the_same(tmp_path):
    net = tiny(3)
    erea.save(net, tmp_path / "net.safetensors", {"data": "simulated"})
    back = erea.load(tmp_path / "net.safetensors")
    assert back.config == net.config
    x = clip()
    assert torch.equal(back(x)[0], net(x)[0])
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["data"] == "simulated"


def test_files_that_are_not_a_network_are_refused(tmp_path):
    net = tiny()
    good, path = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    erea.save(net, good)
    config = json.loads(safetensors.safe_open(good, "pt").metadata()["erea"])
    state = net.state_dict()

    def written(state, **fields):
        safetensors.torch.save_file(state, path, {"erea": json.dumps({**config, **fields})})

    cases = [
        lambda: path.write_bytes(b"no"),
        lambda: path.write_bytes(good.read_bytes()[:-9]),
        lambda: safetensors.torch.save_file(state, path),
        lambda: written(state, stem=10**9),
        lambda: written(state, stem=8),
        lambda: written(state, stages=None),
        lambda: written(state, other=1),
        lambda: written({k: v for k, v in state.items() if k != "head_bias"}),
        lambda: written({**state, "head_bias": torch.zeros(8)}),
    ]
    for make in cases:
        make()
        with pytest.raises(FoveateError):
            erea.load(path)
    with pytest.raises(FoveateError):
        erea.load(tmp_path / "absent.safetensors")
