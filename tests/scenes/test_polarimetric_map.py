"""PcnMap: what it is trained on, that its map does not depend on the cut, that it can be kept.

Lines of the specification's checklist: "sparse supervision", "T3 and not S".
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.map_model import MapModel, predict_map
from foveate.scenes.polarimetric_map import (
    SCATTERING_BANDS,
    DivergedError,
    PcnMap,
    PcnSettings,
    PolarimetricScaling,
    scattering_channels,
    sparse_cross_entropy,
)

TINY = PcnSettings(
    widths=(4, 6, 8, 8, 6), stem=(2, 4), fuse_channels=4, tile=16, batch=2, steps=3, lr=5e-3
)
SIGMA = {  # three classes that differ in power and in the phase of T12
    2: np.diag([1.0, 0.2, 0.1]).astype(complex),
    5: np.array([[0.3, 0.2j, 0], [-0.2j, 0.9, 0], [0, 0, 0.3]]),
    7: np.array([[0.3, -0.2j, 0], [0.2j, 0.9, 0], [0, 0, 0.3]]),
}


def vectors(truth: np.ndarray, looks: int, seed: int) -> np.ndarray:
    """Pauli vectors (L, H, W, 3) of the class of every pixel."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(looks, *truth.shape, 3, 2)) @ np.array([1, 1j]) / math.sqrt(2)
    root = np.zeros((*truth.shape, 3, 3), complex)
    for code, sigma in SIGMA.items():
        root[truth == code] = np.linalg.cholesky(sigma)
    return np.einsum("hwij,lhwj->lhwi", root, g)


def channels(t: np.ndarray) -> np.ndarray:
    upper = [t[..., i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    diagonal = [t[..., i, i].real for i in range(3)]
    return np.stack([*diagonal, *(p for z in upper for p in (z.real, z.imag))], -1).astype("f4")


def a_scene(height: int = 40, width: int = 48, k: int = 3, seed: int = 0):
    """A scene of three vertical stripes, and the class of every pixel."""
    truth = np.repeat(np.array([2, 5, 7]), -(-width // 3))[:width] * np.ones((height, 1), int)
    vector = vectors(truth, 9 if k == 3 else 1, seed)
    if k == 3:
        t = np.einsum("lhwi,lhwj->hwij", vector, vector.conj()) / len(vector)
        return Scene.from_array(channels(t), "polsar"), truth
    k1, k2, k3 = np.moveaxis(vector[0], -1, 0) / math.sqrt(2)
    s = np.stack([k1 + k2, k3, k3, k1 - k2], -1).reshape(height, width, 2, 2)
    cube = scattering_channels(s)
    return Scene.from_array(cube, "hyperspectral", band_names=SCATTERING_BANDS), truth


def some_labels(truth: np.ndarray, each: int = 8, seed: int = 0) -> SceneLabels:
    rng = np.random.default_rng(seed)
    sparse = np.zeros_like(truth)
    for code in np.unique(truth):
        rows, columns = (truth == code).nonzero()
        chosen = rng.permutation(len(rows))[:each]
        sparse[rows[chosen], columns[chosen]] = code
    return SceneLabels.from_map(sparse)


@pytest.fixture(scope="module", params=[2, 3])
def fitted(request) -> tuple[PcnMap, Scene]:
    """Briefly trained, with the norms' statistics far from those of one tile."""
    scene, truth = a_scene(41, 50, request.param)
    return PcnMap(TINY).fit(scene, some_labels(truth), seed=0), scene


# --- scaling -------------------------------------------------------------------------------


def test_t3_is_scaled_by_medians_and_keeps_signs_and_phases():
    scene, _ = a_scene()
    pixels = scene.read().reshape(-1, 9)
    scaling = PolarimetricScaling.fit(pixels, 3)
    m1, m2, m3 = (sorted(pixels[:, c].tolist()) for c in range(3))
    middle = len(pixels) // 2
    assert scaling.scale == pytest.approx(
        tuple((m[middle - 1] + m[middle]) / 2 for m in (m1, m2, m3))
    )
    t = scaling(torch.from_numpy(pixels))
    assert t.shape == (len(pixels), 3, 3)
    assert torch.allclose(t, t.mH)
    for at in (0, 17, 400):
        p = pixels[at].astype(float)
        full = np.array([[p[0], p[3] + 1j * p[4], p[5] + 1j * p[6]],
                         [p[3] - 1j * p[4], p[1], p[7] + 1j * p[8]],
                         [p[5] - 1j * p[6], p[7] - 1j * p[8], p[2]]])  # fmt: skip
        for i, j in np.ndindex(3, 3):
            z = full[i, j] / math.sqrt(scaling.scale[i] * scaling.scale[j])
            expected = z / abs(z) * math.log1p(abs(z))
            assert complex(t[at, i, j]) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(scaling(torch.zeros(2, 9)), torch.zeros(2, 3, 3, dtype=torch.complex64))


def test_s_is_divided_by_its_rms_and_cut():
    rng = np.random.default_rng(0)
    s = (rng.normal(size=(20, 30, 2, 2)) + 1j * rng.normal(size=(20, 30, 2, 2))).astype("c8") * 7
    pixels = scattering_channels(s).reshape(-1, 8)
    scaling = PolarimetricScaling.fit(pixels, 2)
    assert scaling.scale[0] == pytest.approx(math.sqrt(np.mean(np.abs(s) ** 2)), rel=1e-5)
    z = scaling(torch.from_numpy(pixels)).numpy().reshape(s.shape)
    assert np.allclose(z, s / scaling.scale[0], atol=1e-5)
    large = scaling(torch.full((1, 8), 1e5)).numpy()
    assert np.allclose(large, 10 + 10j)


# --- training ------------------------------------------------------------------------------


def test_loss_and_gradient_come_from_labelled_pixels_only():
    """Checklist: loss masks everything except the sampled training pixels."""
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    labels = torch.full((2, 4, 5), -1)
    places = {(0, 1, 2): 0, (1, 3, 4): 2, (1, 0, 0): 1}
    for at, y in places.items():
        labels[at] = y
    loss = sparse_cross_entropy(logits, labels)
    expected = 0.0
    for (b, r, c), y in places.items():
        row = logits[b, :, r, c].tolist()
        expected -= (row[y] - math.log(sum(math.exp(v) for v in row))) / len(places)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    touched = {tuple(at) for at in logits.grad.abs().sum(1).nonzero().tolist()}
    assert touched == set(places)
    nothing = sparse_cross_entropy(logits, torch.full((2, 4, 5), -1))
    assert nothing.item() == 0


def spied(monkeypatch, scene: Scene, labels: SceneLabels, hidden=None, **changes):
    """The inputs and targets of every step."""
    seen = []
    real = PolarimetricScaling.__call__

    def look(self, values):
        seen.append(values.clone())
        return real(self, values)

    targets = []
    from foveate.scenes import polarimetric_map as module

    loss = module.sparse_cross_entropy
    monkeypatch.setattr(PolarimetricScaling, "__call__", look)
    monkeypatch.setattr(
        module, "sparse_cross_entropy", lambda x, y: (targets.append(y.clone()), loss(x, y))[1]
    )
    PcnMap(dataclasses.replace(TINY, **changes)).fit(scene, labels, seed=0, hidden=hidden)
    return torch.cat(seen), torch.cat(targets)


def test_hidden_input_is_zero_and_hidden_labels_are_not_used(monkeypatch):
    """Checklist: sparse supervision; what is hidden reaches the net neither as input nor label."""
    scene, truth = a_scene()
    whole = np.zeros(truth.shape, bool)
    whole[:, ::2] = True
    labels = SceneLabels.from_map(truth)  # all are labelled, hidden ones too

    def hidden(w: Window) -> np.ndarray:
        assert w.row >= 0
        assert w.row + w.height <= scene.height
        return whole[w.row : w.row + w.height, w.column : w.column + w.width]

    inputs, targets = spied(monkeypatch, scene, labels, hidden)
    dark = (inputs == 0).all(-1)
    assert torch.equal(dark, targets == -1)
    assert dark.float().mean() == 0.5
    columns = dark.reshape(-1, dark.shape[-1]).float()
    assert torch.equal(columns, columns[:, :1] + (torch.arange(16) % 2) * (1 - 2 * columns[:, :1]))


def test_hidden_pixels_change_nothing_that_is_learned():
    scene, truth = a_scene()
    labels = some_labels(truth, 60)

    def hidden(w: Window) -> np.ndarray:
        return np.broadcast_to(np.arange(w.row, w.row + w.height)[:, None] >= 20, w[2:]).copy()

    spoilt = scene.read()
    spoilt[20:] *= 1000
    other_labels = SceneLabels.from_map(
        np.where(np.arange(40)[:, None] >= 20, 2, labels.to_map()).astype(np.int16)
    )
    one = PcnMap(TINY).fit(scene, labels, seed=0, hidden=hidden)
    two = PcnMap(TINY).fit(Scene.from_array(spoilt, "polsar"), other_labels, seed=0, hidden=hidden)
    assert one.state()[1] == two.state()[1]
    for name, value in one.state()[0].items():
        assert np.array_equal(value, two.state()[0][name]), name


def test_pixels_without_data_count_as_hidden(monkeypatch):
    scene, truth = a_scene()
    empty = np.zeros(truth.shape, bool)
    empty[:, ::2] = True
    scene = dataclasses.replace(
        scene, valid=lambda w: ~empty[w.row : w.row + w.height, w.column : w.column + w.width]
    )
    inputs, targets = spied(monkeypatch, scene, SceneLabels.from_map(truth))
    assert torch.equal((inputs == 0).all(-1), targets == -1)


def test_every_tile_holds_a_label_and_tiles_differ(monkeypatch):
    scene, truth = a_scene()
    one = np.zeros_like(truth)
    one[0, 0], one[39, 47] = 2, 7  # in the corners
    inputs, targets = spied(monkeypatch, scene, SceneLabels.from_map(one), steps=8)
    assert ((targets >= 0).sum((1, 2)) == 1).all()
    assert set(targets[targets >= 0].tolist()) == {0, 1}
    assert inputs.shape[1:] == (16, 16, 9)


def test_a_label_lies_anywhere_in_its_tile(monkeypatch):
    scene, truth = a_scene()
    one = np.zeros_like(truth)
    one[20, 20], one[20, 21] = 2, 7  # no tile has to be moved in
    _, targets = spied(monkeypatch, scene, SceneLabels.from_map(one), steps=40, batch=4)
    places = (targets >= 0).nonzero()[:, 1:]
    assert set(places.flatten().tolist()) >= {0, 1, 7, 8, 14, 15}
    assert 5 < float(places[:, 0].float().mean()) < 10


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_rate_falls_along_half_a_cosine(optimizer):
    """SGD with the paper's momentum of 0.9."""
    scene, truth = a_scene()
    seen = []

    def note(stepper, args, kwargs):
        seen.append((stepper.param_groups[0]["lr"], stepper.param_groups[0].get("momentum")))

    handle = register_optimizer_step_pre_hook(note)
    try:
        settings = dataclasses.replace(TINY, optimizer=optimizer, steps=5, lr=1e-3)
        PcnMap(settings).fit(scene, some_labels(truth), seed=0)
    finally:
        handle.remove()
    rates = [rate for rate, _ in seen]
    assert rates == pytest.approx([5e-4 * (1 + math.cos(math.pi * t / 5)) for t in range(5)])
    assert {momentum for _, momentum in seen} == {0.9 if optimizer == "sgd" else None}


def test_the_same_seed_gives_the_same_net_and_another_does_not():
    scene, truth = a_scene()
    labels = some_labels(truth)
    state = torch.random.get_rng_state()
    nets = [PcnMap(TINY).fit(scene, labels, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(state, torch.random.get_rng_state()), "no global state"
    weights = [net.state()[0]["head.weight"] for net in nets]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("k", [2, 3])
def test_it_learns_classes_and_counts_steps(k):
    """k = 2 codes S, k = 3 codes T3: told by the bands. Checklist: T3 and not S."""
    scene, truth = a_scene(48, 48, k)
    told = []
    learner = dataclasses.replace(
        TINY, widths=(8, 12, 16, 16, 12), fuse_channels=8, tile=24, batch=4, steps=60, lr=1e-2
    )
    model = PcnMap(learner).fit(
        scene, some_labels(truth, 60), seed=0, progress=lambda *at: told.append(at)
    )
    assert model.k == k
    assert model.classes == (2, 5, 7)
    assert told == [(n, 60) for n in range(1, 61)]
    codes, confidence = predict_map(model, scene)
    assert float((codes == truth).mean()) > (
        0.8 if k == 3 else 0.45
    )  # chance: 0.33; one look is hard
    assert set(np.unique(codes)) <= {2, 5, 7}
    assert float(confidence.min()) >= 1 / 3 - 1e-6


# --- maps ----------------------------------------------------------------------------------


@given(tile=st.integers(4, 15).map(lambda n: 4 * n), other=st.sampled_from([12, 36, 200]))
@settings(deadline=None, max_examples=4)
def test_tiles_cut_anywhere_give_the_same_map(fitted, tile, other):
    model, scene = fitted
    codes, confidence = predict_map(model, scene, tile=tile)
    again, sure = predict_map(model, scene, tile=other)
    assert codes.shape == (41, 50)
    assert np.array_equal(codes, again)
    assert np.allclose(confidence, sure, atol=1e-5)


def test_a_map_is_that_of_the_whole_scene_at_once(fitted):
    """Beside the tiles: one forward pass over the mirrored scene, softmax by hand."""
    model, scene = fitted
    m = model.margin
    cube = np.pad(scene.read(), ((m, m + 3), (m, m + 2), (0, 0)), mode="reflect")
    with torch.no_grad():
        logits = model.net(model._scaling(torch.from_numpy(cube))[None])[0].double().numpy()
    logits = logits[:, m : m + 41, m : m + 50]
    shares = np.exp(logits) / np.exp(logits).sum(0)
    codes, confidence = predict_map(model, scene, tile=12)
    assert np.array_equal(codes, np.array(model.classes)[shares.argmax(0)])
    assert np.allclose(confidence, shares.max(0), atol=1e-5)


def test_blocks_of_any_size_are_labelled(fitted):
    model, scene = fitted
    m = model.margin
    whole = model.probabilities(scene.read_padded(Window(8 - m, 4 - m, 12 + 2 * m, 16 + 2 * m)))
    part = model.probabilities(scene.read_padded(Window(8 - m, 4 - m, 5 + 2 * m, 3 + 2 * m)))
    assert whole.shape == (12, 16, 3)
    assert np.allclose(whole.sum(2), 1, atol=1e-6)
    assert np.allclose(part, whole[:5, :3], atol=1e-5)


def test_group_norm_takes_whole_scenes_only():
    scene, truth = a_scene(41, 50)
    model = PcnMap(dataclasses.replace(TINY, norm="group")).fit(scene, some_labels(truth), seed=0)
    codes, _ = predict_map(model, scene, tile=64)
    assert codes.shape == (41, 50)
    with pytest.raises(FoveateError, match="whole scene"):
        predict_map(model, scene, tile=20)


# --- keeping -------------------------------------------------------------------------------


def test_a_restored_model_says_the_same(fitted):
    model, scene = fitted
    arrays, facts = model.state()
    again: MapModel = PcnMap.restore(arrays, json.loads(json.dumps(facts)))
    assert again.classes == model.classes
    assert again.margin == model.margin == 32
    assert again.stride == 4
    block = scene.read_padded(Window(-32, -32, 80, 72))
    assert np.array_equal(again.probabilities(block), model.probabilities(block))
    first = next(iter(arrays))
    for arrays_, facts_ in (
        ({**arrays, first: arrays[first][:1, :, :1]}, facts),
        ({k: v for k, v in arrays.items() if k != first}, facts),
        ({**arrays, first: arrays[first] * np.nan}, facts),
        (arrays, {k: v for k, v in facts.items() if k != "scale"}),
        (arrays, {**facts, "scale": [0.0, 1.0, 1.0]}),
        (arrays, {**facts, "classes": [2, 2, 5]}),
        (arrays, {**facts, "k": 7}),
    ):
        with pytest.raises(FoveateError, match="not the state of a PcnMap"):
            PcnMap.restore(arrays_, facts_)


def test_bad_input_is_named(fitted):
    model, scene = fitted
    polsar, truth = a_scene()
    labels = some_labels(truth)
    one = SceneLabels.from_map((truth == 2).astype(np.int16))
    small, small_truth = a_scene(3, 40)
    rgb = Scene.from_array(np.ones((40, 48, 3), np.float32), "rgb")
    dark = Scene.from_array(np.zeros((40, 48, 9), np.float32), "polsar")

    def all_of(w: Window) -> np.ndarray:
        return np.ones(w[2:], bool)

    nan = np.full((65, 65, scene.channels), np.nan, np.float32)
    for call, word in (
        (lambda: PcnMap().state(), "not trained"),
        (lambda: PcnMap().probabilities(np.zeros((80, 80, 9))), "not trained"),
        (lambda: PcnMap(TINY).fit(rgb, labels, seed=0), "nine channels"),
        (lambda: PcnMap(TINY).fit(polsar, one, seed=0), "two classes"),
        (lambda: PcnMap(TINY).fit(polsar, labels, seed=0, hidden=all_of), "hidden part"),
        (lambda: PcnMap(TINY).fit(a_scene(48, 48)[0], labels, seed=0), "40 x 48"),
        (lambda: PcnMap(TINY).fit(dark, labels, seed=0), "positive numbers"),
        (lambda: PcnMap(TINY).fit(small, some_labels(small_truth), seed=0), "smaller than 4"),
        (lambda: model.probabilities(np.zeros((64, 80, scene.channels))), "h, w >= 1"),
        (lambda: model.probabilities(np.zeros((80, 80, 5))), "blocks"),
        (lambda: model.probabilities(nan), "NaN"),
        (lambda: PcnSettings(tile=30), "multiple of 4"),
        (lambda: PcnSettings(steps=0), "step"),
        (lambda: PcnSettings(lr=math.nan), "lr"),
        (lambda: PolarimetricScaling.fit(np.zeros((0, 9), "f4"), 3), "at least one"),
        (lambda: scattering_channels(np.zeros((3, 3, 2, 2))), "complex"),
    ):
        with pytest.raises(FoveateError, match=word) as error:
            call()
        assert "\n" not in str(error.value)


def test_divergence_is_said():
    scene, truth = a_scene()
    wild = dataclasses.replace(TINY, optimizer="sgd", lr=1e30, steps=20)
    with pytest.raises(DivergedError, match="lower lr"):
        PcnMap(wild).fit(scene, some_labels(truth), seed=0)
