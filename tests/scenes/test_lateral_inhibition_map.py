"""Maps that do not depend on how a scene is cut, hidden inputs, and what is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.lateral_inhibition_map import LateralInhibitionMap
from foveate.scenes.map_model import predict_map


def a_scene(height: int = 90, width: int = 118, seed: int = 0) -> tuple[Scene, SceneLabels]:
    """Three stripes of noisy colours; a few labels in each. Codes 2, 5, 9."""
    rng = np.random.default_rng(seed)
    part = (np.arange(width) * 3 // width)[None].repeat(height, 0)
    colours = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200)])
    cube = colours[part] + rng.normal(0, 30, (height, width, 3))
    points = np.stack([rng.integers(0, height, 60), rng.integers(0, width, 60)], 1)
    points = np.unique(points, axis=0)
    codes = np.array([2, 5, 9])[part[points[:, 0], points[:, 1]]]
    labels = SceneLabels.from_points(points, codes, (height, width))
    return Scene.from_array(cube.astype(np.float32), "rgb"), labels


@pytest.fixture(scope="module")
def fitted() -> tuple[Scene, LateralInhibitionMap]:
    scene, labels = a_scene()
    model = LateralInhibitionMap(steps=40, batch=4, side=32)
    return scene, model.fit(scene, labels, seed=0)


def test_margin_is_the_radius_rounded_up_to_the_stride():
    model = LateralInhibitionMap()
    radius = 65  # 1 + 2 + 4 (1 + 2 + 2) + 4 + 4 + 24 at stride 4, and what enlarges again
    assert (model.stride, model.margin) == (4, 68)
    assert radius <= model.margin < radius + 4
    assert LateralInhibitionMap(inhibited=False).margin == 60


@pytest.mark.parametrize("tile", [4, 20, 64, 200])
def test_tiles_cut_anywhere_give_the_same_map(fitted, tile):
    scene, model = fitted
    whole, sure = predict_map(model, scene, tile=1000)
    codes, confidence = predict_map(model, scene, tile=tile) if tile > 4 else _strip(model, scene)
    rows = slice(0, len(codes))
    # Sums in another order differ in the last bits; a class may flip where two are equal.
    np.testing.assert_allclose(confidence, sure[rows], atol=2e-5)
    np.testing.assert_array_equal(codes, whole[rows])


def _strip(model: LateralInhibitionMap, scene: Scene):
    """The first rows in the smallest tiles there are."""
    part = Scene.from_array(scene.read(), "rgb")
    margin = model.margin
    codes, confidence = [], []
    for column in range(0, part.width, 4):
        block = part.read_padded(Window(-margin, column - margin, 4 + 2 * margin, 4 + 2 * margin))
        shares = model.probabilities(block)[:, : part.width - column]
        codes.append(np.array(model.classes)[shares.argmax(2)])
        confidence.append(shares.max(2))
    return np.concatenate(codes, 1), np.concatenate(confidence, 1)


def test_it_learns_the_stripes(fitted):
    scene, model = fitted
    assert model.classes == (2, 5, 9)
    codes, confidence = predict_map(model, scene)
    truth = np.array([2, 5, 9])[(np.arange(118) * 3 // 118)][None].repeat(90, 0)
    assert (codes == truth).mean() > 0.85
    assert (confidence >= 1 / 3 - 1e-6).all()
    assert (confidence <= 1 + 1e-6).all()
    shares = model.probabilities(scene.read_padded(Window(-68, -68, 144, 145)))
    assert shares.shape == (8, 9, 3)
    np.testing.assert_allclose(shares.sum(2), 1, atol=1e-5)
    assert "w mean" in model.learned() or "inactive" in model.learned()


def test_same_seed_same_numbers_and_no_others_are_touched():
    scene, labels = a_scene(40, 44)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    arrays = []
    for seed in (3, 3, 4):
        model = LateralInhibitionMap(steps=2, batch=2, side=32).fit(scene, labels, seed=seed)
        arrays.append(model.state()[0])
    assert torch.equal(torch.rand(1), expected)
    assert all(np.array_equal(arrays[0][k], arrays[1][k]) for k in arrays[0])
    assert not all(np.array_equal(arrays[0][k], arrays[2][k]) for k in arrays[0])


@pytest.mark.parametrize("size", [(24, 100), (90, 118)])  # the first is smaller than a crop
def test_hidden_inputs_have_no_influence(size):
    scene, labels = a_scene(*size)
    keep = labels.subset(labels.coordinates[:, 1] < 44)
    twin = SceneLabels.from_points(keep.coordinates, np.where(keep.codes == 2, 2, 5), keep.shape)

    def hidden(window: Window) -> np.ndarray:
        columns = np.arange(window.column, window.column + window.width)
        return (columns >= 44)[None].repeat(window.height, 0)

    other = scene.read().copy()
    other[:, 44:] = np.random.default_rng(1).normal(0, 1e4, other[:, 44:].shape)
    states = []
    for cube, hide in ((scene.read(), hidden), (other, hidden), (other, None)):
        model = LateralInhibitionMap(steps=2, batch=2, side=32)
        model.fit(Scene.from_array(cube, "rgb"), twin, seed=0, hidden=hide)
        states.append(model.state()[0])
    assert all(np.array_equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(np.array_equal(states[0][k], states[2][k]) for k in states[0])


def test_what_is_kept_gives_the_same_map(fitted):
    scene, model = fitted
    arrays, facts = model.state()
    again = LateralInhibitionMap.restore(arrays, json.loads(json.dumps(facts)))
    np.testing.assert_array_equal(predict_map(again, scene)[1], predict_map(model, scene)[1])
    assert again.classes == model.classes
    spoilt = dict(arrays)
    name = next(k for k in spoilt if k.startswith("network."))
    for value in (np.full_like(spoilt[name], np.nan), np.zeros(3, np.float32)):
        with pytest.raises(FoveateError, match="LateralInhibitionMap is damaged") as error:
            LateralInhibitionMap.restore({**spoilt, name: value}, facts)
        assert "\n" not in str(error.value)
    for lost in facts:
        with pytest.raises(FoveateError, match="is damaged"):
            LateralInhibitionMap.restore(arrays, {k: v for k, v in facts.items() if k != lost})


def test_progress_is_told_and_w_learned():
    scene, labels = a_scene(40, 44)
    seen: list[tuple[int, int]] = []
    model = LateralInhibitionMap(steps=5, batch=2, side=32)
    model.fit(scene, labels, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 5) for k in range(1, 6)]
    w = np.concatenate([a.ravel() for k, a in model.state()[0].items() if k.endswith("li_weight")])
    assert w.size == 192
    assert (w >= 0).all()
    assert (w > 0).any()
    plain = LateralInhibitionMap(steps=1, batch=2, side=32, inhibited=False).fit(scene, labels)
    assert plain.learned() == "no inhibition"


def test_bad_input_is_one_sentence():
    scene, labels = a_scene(40, 44)
    model = LateralInhibitionMap(steps=1, batch=2, side=32)
    with pytest.raises(FoveateError, match="is not fitted"):
        model.probabilities(np.zeros((200, 200, 3), np.float32))
    with pytest.raises(FoveateError, match="at least two classes"):
        model.fit(scene, labels.subset(labels.codes == 2), seed=0)
    with pytest.raises(FoveateError, match="the labels are for"):
        model.fit(a_scene(41, 44)[0], labels, seed=0)
    for settings_ in ({"side": 30}, {"batch": 1}, {"steps": 0}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(FoveateError, match="LateralInhibitionMap expects"):
            LateralInhibitionMap(**settings_)
    with pytest.raises(FoveateError, match="the loss became"):
        LateralInhibitionMap(steps=9, batch=2, side=32, lr=1e30).fit(scene, labels, seed=0)
    model.fit(scene, labels, seed=0)
    with pytest.raises(FoveateError, match=r"expects blocks \(h \+ 136"):
        model.probabilities(np.zeros((136, 200, 3), np.float32))
    with pytest.raises(FoveateError, match="3 bands"):
        model.probabilities(np.zeros((140, 140, 4), np.float32))
