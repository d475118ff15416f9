"""Whole blocks against one patch after the other, training, and the method of ``foveate map``."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes import dag_rnn_map
from foveate.scenes.dag_rnn import PixelDAGRNN
from foveate.scenes.dag_rnn_map import DagRnnMap, Diverged, dense_scores, train_on_patches
from foveate.scenes.map_model import predict_map
from foveate.scenes.patch_model import PatchTraining


def loud(net: nn.Module, seed: int = 0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=draw)
    return net.eval()


def one_by_one(net: PixelDAGRNN, block: torch.Tensor) -> torch.Tensor:
    """Cut every patch and walk it by the literal loop."""
    n = net.patch_size
    rows = [
        [block[i : i + n, j : j + n].permute(2, 0, 1) for j in range(block.shape[1] - n + 1)]
        for i in range(block.shape[0] - n + 1)
    ]
    with torch.no_grad():
        return torch.stack([net.forward_naive(torch.stack(row)) for row in rows])


# --- whole blocks --------------------------------------------------------------------------


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), side=st.sampled_from([1, 3, 5, 7]),
    neighbours=st.sampled_from([4, 8]), activation=st.sampled_from(["tanh", "relu"]),
    share=st.booleans(), strip=st.sampled_from([1, 20, 2048]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_whole_block_is_every_patch(
    height, width, side, neighbours, activation, share, strip, seed
):
    """Same numbers (1e-5) as the naive loop over cut patches, whatever the strips."""
    net = loud(
        PixelDAGRNN(
            3, 4, 5, side, neighbours, activation=activation, share_directions=share, fc_hidden=6
        ),
        seed,
    )
    draw = torch.Generator().manual_seed(seed)
    block = torch.randn(height + side - 1, width + side - 1, 3, generator=draw)
    expected = one_by_one(net, block)
    found = dense_scores(net, block, strip)
    assert found.shape == (height, width, 4)
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) < 1e-5 * scale


def test_whole_block_in_the_papers_size_and_in_bands(monkeypatch):
    """h = 128, n = 13; and rows in several bands of U x give what one band gives."""
    torch.manual_seed(0)
    net = PixelDAGRNN(20, 16).eval()
    block = torch.randn(17, 16, 20)
    found = dense_scores(net, block)
    assert float((found - one_by_one(net, block)).abs().max()) < 1e-5
    monkeypatch.setattr(dag_rnn_map, "BAND", 2 * 16)
    torch.testing.assert_close(dense_scores(net, block), found, atol=1e-6, rtol=0)


def test_whole_block_leaves_dropout_out_and_the_net_as_it_was():
    net = PixelDAGRNN(2, 3, 4, 3, dropout=0.9, fc_hidden=5).train()
    block = torch.randn(5, 5, 2)
    assert torch.equal(dense_scores(net, block), dense_scores(net, block))
    assert net.training
    assert not dense_scores(net, block).requires_grad


def test_whole_block_in_double_precision():
    net = loud(PixelDAGRNN(2, 3, 4, 5, fc_hidden=5)).double()
    block = torch.randn(8, 7, 2, dtype=torch.float64)
    assert float((dense_scores(net, block) - one_by_one(net, block)).abs().max()) < 1e-12


@pytest.mark.parametrize("shape", [(4, 9, 2), (9, 4, 2), (9, 9, 3), (9, 9)])
def test_blocks_that_do_not_fit_show_their_shape(shape):
    with pytest.raises(FoveateError, match="takes blocks"):
        dense_scores(PixelDAGRNN(2, 3, 4, 5), torch.zeros(shape))
    with pytest.raises(FoveateError, match="a strip has at least one pixel"):
        dense_scores(PixelDAGRNN(2, 3, 4, 5), torch.zeros(9, 9, 2), 0)


# --- training ------------------------------------------------------------------------------


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def test_first_steps_are_adam_with_clipping_and_cosine():
    """Against Adam written out: one batch an epoch, global norm 1 at most, cosine decay."""
    x, y = 50 * torch.randn(6, 4, 1, 1), torch.tensor([0, 1, 0, 1, 1, 0])
    net = linear()
    w = [p.detach().clone().double() for p in net.parameters()]
    m, v = [torch.zeros_like(p) for p in w], [torch.zeros_like(p) for p in w]
    for t in range(1, 4):
        leaves = [p.clone().requires_grad_(True) for p in w]
        loss = nn.functional.cross_entropy(x.flatten(1).double() @ leaves[0].T + leaves[1], y)
        grads = torch.autograd.grad(loss, leaves)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        rate = 0.01 * (1 + math.cos(math.pi * (t - 1) / 3)) / 2
        for k, g in enumerate(grads):
            full = g / max(1.0, norm + 1e-6) + 0.1 * w[k]
            m[k], v[k] = 0.9 * m[k] + 0.1 * full, 0.999 * v[k] + 0.001 * full**2
            step = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            w[k] = w[k] - rate * step
    train_on_patches(net, x, y, epochs=3, batch=6, lr=0.01, weight_decay=0.1)
    for found, expected in zip(net.parameters(), w, strict=True):
        torch.testing.assert_close(found.detach().double(), expected, atol=1e-6, rtol=1e-5)


def test_seeds_fix_training_and_the_generators_of_the_process_stay():
    x, y = torch.randn(20, 4, 1, 1), torch.arange(20) % 2
    weights = []
    for seed in (1, 1, 2):
        net = nn.Sequential(linear(), nn.Dropout(0.5))
        before = torch.random.get_rng_state()
        train_on_patches(net, x, y, epochs=2, batch=5, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not net.training
        weights.append(net[0][1].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_flips_mirror_patches_and_are_off_by_default():
    x = torch.zeros(64, 1, 3, 3)
    x[:, :, 0, 0] = 1
    seen: list[torch.Tensor] = []
    net = linear()
    net[1] = nn.Linear(9, 2)
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for flips in (False, True):
        seen.clear()
        train_on_patches(net, x, torch.arange(64) % 2, epochs=1, flips=flips)
        corners = {int(k) for k in seen[0].flatten(1).argmax(1)}
        assert corners == ({0, 2, 6, 8} if flips else {0})


def test_a_rest_of_one_patch_does_not_break_batch_statistics():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    losses = train_on_patches(net, torch.randn(9, 4, 1, 1), torch.arange(9) % 2, epochs=1, batch=4)
    assert math.isfinite(losses[0])


def test_bad_training_is_one_sentence():
    x, y = torch.randn(4, 4, 1, 1), torch.arange(4) % 2
    with pytest.raises(FoveateError, match="at least one patch"):
        train_on_patches(linear(), x[:0], y[:0], epochs=1)
    with pytest.raises(FoveateError, match="at least one patch"):
        train_on_patches(linear(), x, y[:3], epochs=1)
    with pytest.raises(Diverged, match="lower the learning rate"):
        train_on_patches(linear(), x * math.inf, y, epochs=1)


# --- foveate map ---------------------------------------------------------------------------

KINDS = [("hyperspectral", 12), ("polsar", 9), ("rgb", 3)]
FAST = PatchTraining(size=5, components=4, epochs=8, weight_decay=1e-4)


def fields(kind: str, channels: int, side: int = 24) -> tuple[Scene, SceneLabels]:
    """Two fields, left and right; a pixel alone is noisy."""
    draw = np.random.default_rng(0)
    truth = np.where(np.arange(side)[None, :] < side // 2, 3, 7) * np.ones((side, 1), int)
    cube = draw.normal(size=(side, side, channels)) + 1.2 * (truth == 7)[..., None]
    if kind == "polsar":
        cube[..., :3] = np.exp(cube[..., :3])
        cube[..., 3:] *= 0.1
    scene = Scene.from_array(cube.astype(np.float32), kind)
    known = draw.random((side, side)) < 0.3
    return scene, SceneLabels.from_map(np.where(known, truth, 0))


def small(**other) -> DagRnnMap:
    return DagRnnMap(hidden=8, fc_hidden=8, training=FAST, **{"least_steps": 40, **other})


@pytest.fixture(scope="module")
def fitted():
    scene, labels = fields("hyperspectral", 12)
    return small().fit(scene, labels, seed=1), scene, labels


@pytest.mark.parametrize(("kind", "channels"), KINDS)
def test_it_learns_two_fields_of_every_kind_of_scene(kind, channels):
    scene, labels = fields(kind, channels)
    model = small(least_steps=100).fit(scene, labels, seed=0)
    assert model.classes == (3, 7)
    assert (model.margin, model.stride) == (2, 1)
    codes, sure = predict_map(model, scene)
    truth = np.where(np.arange(24) < 12, 3, 7)
    assert (codes == truth).mean() > 0.9
    assert float(sure.min()) >= 0.5
    # Nine features of PolSAR and three of RGB stay; spectra become components.
    expected = {"hyperspectral": 4, "polsar": 9, "rgb": 3}[kind]
    assert model.module.in_channels == expected


def test_map_does_not_depend_on_its_tiles(fitted):
    model, scene, _ = fitted
    whole = predict_map(model, scene, 64)
    for tile in (7, 24):
        parts = predict_map(model, scene, tile)
        np.testing.assert_array_equal(parts[0], whole[0])
        np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)


def test_probabilities_are_those_of_the_patches(fitted):
    model, scene, _ = fitted
    block = scene.read_padded(Window(3, 20, 4 + 4, 6 + 4))  # over the right edge: mirrored
    shares = model.probabilities(block)
    assert shares.shape == (4, 6, 2)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    features = model._features.transform(block)
    expected = one_by_one(model.module, torch.from_numpy(features)).softmax(-1)
    np.testing.assert_allclose(shares, expected.numpy(), atol=1e-5)


def test_training_looks_at_labelled_pixels_for_its_scaling_and_at_their_patches(fitted):
    """Checklist: PCA and scaling see training pixels only. Pixels in no patch change nothing."""
    _, scene, labels = fitted
    near = labels.subset(np.flatnonzero(labels.coordinates[:, 1] < 14))
    cube = scene.read()
    other = cube.copy()
    other[:, 18:] = 1e4
    context = cube.copy()
    context[5, 14:16] += 3  # in patches, without a label that is used
    states = [
        small(least_steps=0).fit(Scene.from_array(c, "hyperspectral"), near, seed=0).state()[0]
        for c in (cube, other, context)
    ]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    for name in states[0]:
        same = np.array_equal(states[0][name], states[2][name])
        assert same == name.startswith("features."), name


def test_seeds_fix_the_model(fitted):
    model, scene, labels = fitted
    again, other = (small().fit(scene, labels, seed=seed).state()[0] for seed in (1, 2))
    arrays = model.state()[0]
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["network.fc2.weight"], other["network.fc2.weight"])


def test_state_goes_through_json_and_back(fitted):
    model, scene, _ = fitted
    arrays, facts = model.state()
    made = DagRnnMap.restore(arrays, json.loads(json.dumps(facts)))
    assert made.classes == model.classes
    np.testing.assert_array_equal(predict_map(made, scene)[1], predict_map(model, scene)[1])
    arrays["network.fc2.bias"][:] = 5  # a copy: the model stays
    assert not np.array_equal(model.state()[0]["network.fc2.bias"], arrays["network.fc2.bias"])


def test_damaged_states_are_one_sentence(fitted):
    arrays, facts = fitted[0].state()
    for broken in (
        ({}, facts),
        (arrays, {}),
        (arrays, {**facts, "settings": {"depth": 3}}),
        ({**arrays, "network.fc2.bias": np.zeros(5, np.float32)}, facts),
        ({**arrays, "network.fc2.bias": np.full(2, np.nan, np.float32)}, facts),
    ):
        with pytest.raises(FoveateError, match=r"fit (it|the model) again"):
            DagRnnMap.restore(*broken)


def test_few_labels_get_more_epochs(fitted):
    _, scene, labels = fitted
    told: list[tuple[int, int]] = []
    few = labels.subset(np.arange(0, len(labels), 20))
    small(least_steps=30).fit(scene, few, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (30, 30)


def test_bad_input_is_one_sentence(fitted):
    model, scene, labels = fitted
    with pytest.raises(FoveateError, match="not fitted"):
        small().probabilities(np.zeros((9, 9, 12), np.float32))
    with pytest.raises(FoveateError, match="at least two classes"):
        small().fit(scene, labels.subset(labels.codes == 3))
    with pytest.raises(FoveateError, match="takes blocks"):
        model.probabilities(np.zeros((4, 9, 12), np.float32))
    with pytest.raises(FoveateError, match="12 bands"):
        model.probabilities(np.zeros((9, 9, 11), np.float32))
    for wrong in ({"hidden": 0}, {"neighbours": 5}, {"dropout": 1.5}, {"least_steps": -1}):
        with pytest.raises(FoveateError):
            DagRnnMap(**wrong)
    with pytest.raises(FoveateError, match="odd"):
        DagRnnMap(training=PatchTraining(size=8))
