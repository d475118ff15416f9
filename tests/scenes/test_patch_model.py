"""Nets of patches as map models: alignment, training, keeping, against plain references."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from foveate.datasets.scene import Scene
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes import patch_model
from foveate.scenes.map_model import predict_map
from foveate.scenes.patch_model import (
    PatchCnnMap,
    PatchMap,
    PatchTraining,
    SmallPatchCnn,
    training_from,
)
from foveate.scenes.pixel_baselines import LdaMap
from foveate.scenes.scaling import SceneFeatures

QUICK = PatchTraining(size=5, epochs=3, batch=32, least_steps=0)


class Peek(nn.Module):
    """The first K features at one place of the patch; one weight that stays 1."""

    def __init__(self, classes: int, row: int, column: int) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.place = (slice(None), slice(classes), row, column)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.one * patches[self.place]


class Linear(nn.Sequential):
    """A linear net with dropout: something to train."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * 25, classes))


def striped(noise: float = 1.0, seed: int = 0) -> tuple[Scene, SceneLabels, np.ndarray]:
    """Three stripes; pixels of the upper half are labelled, the truth is known for all."""
    rng = np.random.default_rng(seed)
    truth = np.broadcast_to(4 * (np.arange(30) // 10) + 3, (24, 30))
    means = rng.normal(0, 1, (12, 6))
    cube = 50 + 9 * (means[truth] + noise * rng.normal(size=(24, 30, 6)))
    codes = np.where(np.arange(24)[:, None] < 12, truth, 0)
    return (
        Scene.from_array(cube.astype(np.float32), "hyperspectral"),
        SceneLabels.from_map(codes),
        truth,
    )


@pytest.mark.parametrize(
    ("size", "shift"), [(1, 0), *((size, shift) for size in (4, 5, 8) for shift in (-1, 0, 1))]
)
def test_every_pixel_gets_the_patch_around_it(size, shift):
    """The net looks at one place of the patch: the map is the scaled scene, shifted."""
    scene, labels, _ = striped()
    at = size // 2 + shift
    model = PatchMap(
        lambda channels, classes: Peek(classes, at, size // 2),
        PatchTraining(size=size, epochs=1, lr=1e-30, least_steps=0),
    ).fit(scene, labels, seed=0)
    seen = SceneFeatures("hyperspectral").fit(scene.read()[tuple(labels.coordinates.T)])
    padded = np.pad(seen.transform(scene.read()), ((2, 2), (0, 0), (0, 0)), mode="reflect")
    logits = padded[2 + shift : 26 + shift, :, :3].astype(float)
    expected = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    m = model.margin
    block = np.pad(scene.read(), ((m, m), (m, m), (0, 0)), mode="reflect")
    shares = model.probabilities(block)
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert shares.dtype == np.float32
    codes, confidence = predict_map(model, scene, 7)
    assert np.array_equal(codes, np.array(labels.classes)[expected.argmax(2)])
    np.testing.assert_allclose(confidence, expected.max(2), atol=1e-5)


def test_context_helps_where_pixels_are_noisy():
    scene, labels, truth = striped(noise=4.0)
    lower = np.s_[14:]
    accuracy = {}
    for name, model in {
        "pixel": LdaMap(),
        "patch": PatchCnnMap(8, training=PatchTraining(size=7, epochs=8, least_steps=0)),
    }.items():
        codes = predict_map(model.fit(scene, labels, seed=0), scene)[0]
        accuracy[name] = (codes == truth)[lower].mean()
    assert accuracy["patch"] > accuracy["pixel"] + 0.1


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generators_alone():
    scene, labels, _ = striped()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    fitted = [PatchMap(Linear, QUICK).fit(scene, labels, seed=s).state()[0] for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(fitted[0][name], fitted[1][name]) for name in fitted[0])
    assert not np.array_equal(fitted[0]["network.2.weight"], fitted[2]["network.2.weight"])


def test_only_training_patches_count():
    """Pixels outside every training patch changed -> nothing changes; scaling sees labels only."""
    scene, labels, _ = striped()
    first = PatchMap(Linear, QUICK).fit(scene, labels, seed=0).state()[0]
    changed = scene.read()
    changed[12 + 2 :] = 1e5  # labels end at row 11, patches reach two rows further
    far = PatchMap(Linear, QUICK).fit(Scene.from_array(changed, scene.kind), labels, seed=0)
    assert all(np.array_equal(first[name], array) for name, array in far.state()[0].items())
    changed[12:] = 1e5  # context of the last rows
    near = PatchMap(Linear, QUICK).fit(Scene.from_array(changed, scene.kind), labels, seed=0)
    for name, array in near.state()[0].items():
        assert np.array_equal(first[name], array) == name.startswith("features.")


def test_rate_falls_along_half_a_cosine_and_steps_are_counted(monkeypatch):
    scene, labels, _ = striped()
    rates, told = [], []
    step = torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    training = PatchTraining(size=5, epochs=3, batch=100, lr=0.02, least_steps=0)
    PatchMap(Linear, training).fit(scene, labels, seed=0, progress=lambda *now: told.append(now))
    total = 3 * 4  # 360 pixels in batches of 100
    assert told == [(i + 1, total) for i in range(total)]
    cosine = [0.01 * (1 + math.cos(math.pi * t / total)) for t in range(total)]
    assert rates == pytest.approx(cosine)

    told.clear()
    training = PatchTraining(size=5, epochs=1, batch=119, least_steps=7, most_per_class=40)
    PatchMap(Linear, training).fit(scene, labels, seed=0, progress=lambda *now: told.append(now))
    assert told[-1] == (7, 7)  # 120 pixels: a rest of one is left out, then one step an epoch


def test_kept_in_safetensors_and_back():
    scene, labels, _ = striped()
    training = PatchTraining(size=5, components=3, epochs=2, batch=64, least_steps=0)
    model = PatchCnnMap(6, 0.1, training).fit(scene, labels, seed=3)
    arrays, facts = model.state()
    arrays = safetensors.numpy.load(safetensors.numpy.save(arrays))
    facts = json.loads(json.dumps(facts))
    back = PatchCnnMap.restore(arrays, facts)
    block = scene.read()
    assert np.array_equal(back.probabilities(block), model.probabilities(block))
    assert back.training == training == training_from(facts)
    assert (back.classes, back.margin, back.stride) == ((3, 7, 11), 2, 1)
    assert (back.width, back.dropout) == (6, 0.1)

    plain = PatchMap(Linear, QUICK).fit(scene, labels, seed=0)
    again = PatchMap.restore(*plain.state(), network=Linear)
    assert np.array_equal(again.probabilities(block), plain.probabilities(block))


def test_flips_are_the_eight_symmetries_of_a_square():
    patch = torch.arange(9.0).reshape(1, 1, 3, 3)
    square = patch[0, 0].numpy()
    expected = {
        tuple(np.rot90(form, k).ravel().tolist()) for form in (square, square.T) for k in range(4)
    }
    torch.manual_seed(0)
    seen = {tuple(patch_model._turned(patch).flatten().tolist()) for _ in range(120)}
    assert seen == expected
    assert len(seen) == 8


@pytest.mark.parametrize("size", [1, 2, 9])
def test_small_cnn_maps_patches_to_logits(size):
    net = SmallPatchCnn(4, 3, width=8)
    x = torch.randn(5, 4, size, size, generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (5, 3)
    net.eval()
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2])
    net(x).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


def test_bad_input_is_said_in_one_sentence(monkeypatch):
    scene, labels, _ = striped()
    model = PatchCnnMap(4, training=QUICK).fit(scene, labels, seed=0)
    arrays, facts = model.state()
    one = labels.subset(np.flatnonzero(labels.codes == 3))
    lost = {**arrays, "network.last.bias": arrays["network.last.bias"] * np.nan}
    fewer = {name: array for name, array in arrays.items() if name != "network.last.bias"}

    class Nothing(Linear):
        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return super().forward(patches) * torch.nan

    def too_many():
        monkeypatch.setattr(patch_model, "_MOST_BYTES", 1000)
        model.fit(scene, labels, seed=0)

    for wrong in (
        lambda: PatchCnnMap().probabilities(scene.read()),
        lambda: PatchCnnMap().state(),
        lambda: model.probabilities(scene.read()[:4]),
        lambda: model.fit(scene, one, seed=0),
        lambda: PatchMap(Nothing, QUICK).fit(scene, labels, seed=0),
        lambda: PatchMap.restore(arrays, facts),
        lambda: PatchMap.restore(arrays, facts, network=Linear),
        lambda: PatchCnnMap.restore(lost, facts),
        lambda: PatchCnnMap.restore(fewer, facts),
        lambda: PatchCnnMap.restore(arrays, {**facts, "width": 5}),
        lambda: PatchCnnMap.restore(arrays, {**facts, "width": 10**9}),
        lambda: PatchCnnMap.restore(arrays, {**facts, "training": {"size": "x"}}),
        lambda: PatchCnnMap.restore(arrays, {**facts, "training": {"unknown": 1}}),
        lambda: PatchCnnMap.restore(arrays, {**facts, "classes": None}),
        lambda: PatchCnnMap.restore(arrays, {}),
        lambda: PatchTraining(size=0),
        lambda: PatchTraining(batch=1),
        lambda: PatchTraining(components=0),
        lambda: PatchTraining(lr=0),
        lambda: PatchTraining(weight_decay=-1),
        lambda: PatchTraining(least_steps=-1),
        lambda: SmallPatchCnn(3, 2, dropout=1),
        too_many,
    ):
        with pytest.raises(FoveateError):
            wrong()
