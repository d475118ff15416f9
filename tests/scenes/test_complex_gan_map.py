"""The complex GAN as a map model: scaling, drawing, patches, whole blocks, saved state."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.complex_gan_map import (
    CoherencyScaling,
    ComplexGanMap,
    draw_unlabelled,
    positive_semidefinite_share,
    scaled_patches,
)
from foveate.scenes.map_model import predict_map
from foveate.scenes.splits import test_blocks as blocks_of_test

SMALL = {
    "patch": 8, "widths": (3, 4), "generator_widths": (4, 3), "noise": 3,
    "steps": 3, "batch": 6, "unlabelled": 12,
}  # fmt: skip


def t3(seed: int, *shape: int, looks: int = 4) -> np.ndarray:
    """Channels ``(..., 9)`` of real coherency matrices: mean of k k^H."""
    rng = np.random.default_rng(seed)
    k = (rng.normal(size=(looks, *shape, 3)) + 1j * rng.normal(size=(looks, *shape, 3))) * 0.2
    m = (k[..., :, None] * k[..., None, :].conj()).mean(0)
    parts = [m[..., j, j].real for j in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        parts += [m[..., i, j].real, m[..., i, j].imag]
    return np.stack(parts, -1).astype(np.float32)


def a_scene(height: int = 20, width: int = 24) -> Scene:
    cube = t3(0, height, width)
    cube[:, width // 2 :] *= 6  # class 4 is brighter than class 2
    codes = np.zeros((height, width), int)
    codes[2:-2:3, 1:-1:3] = 2
    codes[:, width // 2 :][codes[:, width // 2 :] > 0] = 4
    return Scene.from_array(cube, "polsar", labels=SceneLabels.from_map(codes))


@pytest.fixture(scope="module")
def fitted() -> tuple[ComplexGanMap, Scene]:
    scene = a_scene()
    return ComplexGanMap(**SMALL).fit(scene, scene.labels, seed=0), scene


# --- scaling ----------------------------------------------------------------------------------


def test_scaling_is_the_stated_formula():
    pixels = t3(1, 500)
    scaling = CoherencyScaling.fit(pixels)
    z = scaling(pixels)
    assert z.shape == (500, 6)
    for channel, full in enumerate(
        [*pixels.T[:3], *(pixels.T[k] + 1j * pixels.T[k + 1] for k in (3, 5, 7))]
    ):
        size = np.abs(full)
        c = np.median(size)
        s = np.percentile(np.log1p(size / c), 99.5)
        expected = full / size * np.minimum(np.log1p(size / c) / s, 1)
        assert np.allclose(z[:, channel], expected, atol=1e-5)
        assert (np.abs(z[:, channel]) > 1 - 1e-6).sum() == 3  # half a percent of 500 is clipped


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), power=st.floats(-4, 4))
def test_scaling_keeps_phase_and_can_be_undone(seed, power):
    pixels = t3(seed, 4, 5) * np.float32(10**power)
    scaling = CoherencyScaling.fit(pixels)
    z = scaling(pixels)
    assert float(np.abs(z).max()) <= 1 + 1e-6
    off = pixels[..., 3] + 1j * pixels[..., 4]
    assert np.allclose(z[..., 3] / np.abs(z[..., 3]), off / np.abs(off), atol=1e-4)
    inside = np.abs(z[..., 3]) < 0.999
    assert np.allclose(scaling.invert(z)[..., 3][inside], off[inside], rtol=1e-3)
    assert not z[..., :3].imag.any()


def test_zero_maps_to_zero_and_an_empty_channel_does_not_divide_by_it():
    pixels = t3(2, 30)
    pixels[:, 3:] = 0
    scaling = CoherencyScaling.fit(pixels)
    z = scaling(pixels)
    assert np.isfinite(z).all()
    assert not z[:, 3:].any()
    assert not scaling(np.zeros((2, 9), np.float32)).any()
    assert not scaling.invert(np.zeros((2, 6), np.complex64)).any()


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((0, 9), np.float32), "no pixels"),
        (np.zeros((4, 8), np.float32), "9 real channels"),
        (np.full((4, 9), np.nan, np.float32), "NaN"),
    ],
)
def test_pixels_that_cannot_be_scaled_are_told(pixels, said):
    with pytest.raises(FoveateError, match=said):
        CoherencyScaling.fit(pixels)
    with pytest.raises(FoveateError, match="6 positive numbers"):
        CoherencyScaling(np.zeros(6, np.float32), np.ones(6, np.float32))


# --- drawing and patches ----------------------------------------------------------------------


def test_the_labelled_pixel_of_an_even_patch_lies_at_half_its_side():
    scene = a_scene()
    scaling = CoherencyScaling.fit(scene.read())
    places = np.array([[9, 11], [0, 0], [19, 23]])
    cut = scaled_patches(scene, places, 16, scaling).numpy()
    assert cut.shape == (3, 6, 16, 16)
    whole = scaling(np.pad(scene.read(), ((8, 8), (8, 8), (0, 0)), mode="reflect"))
    for patch, (row, column) in zip(cut, places, strict=True):
        assert np.allclose(patch[:, 8, 8], scaling(scene.read())[row, column])
        expected = whole[row : row + 16, column : column + 16].transpose(2, 0, 1)
        assert np.allclose(patch, expected)


def test_unlabelled_pixels_keep_their_distance_from_hidden_ones():
    """Checklist: the unlabelled pool is disjoint from the spatial test blocks, patches too."""
    scene = Scene.from_array(t3(3, 48, 48), "polsar")
    hidden = blocks_of_test((48, 48), 24)
    mask = hidden(Window(0, 0, 48, 48))
    places = draw_unlabelled(scene, 200, 4, 0, hidden)
    assert len({tuple(p) for p in places.tolist()}) == len(places)
    for row, column in places:
        around = mask[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5]
        assert not around.any()
    # What is left is found whole: two blocks of 24, less 4 on their inner sides.
    assert len(draw_unlabelled(scene, 5000, 4, 0, hidden)) == 2 * 20 * 20
    again = draw_unlabelled(scene, 200, 4, 0, hidden)
    assert np.array_equal(places, again)
    assert not np.array_equal(places, draw_unlabelled(scene, 200, 4, 1, hidden))
    with pytest.raises(FoveateError, match="hidden ones"):
        draw_unlabelled(scene, 5, 24, 0, hidden)


def test_training_does_not_look_at_hidden_pixels():
    """Other numbers under the test blocks give the very same model."""
    hidden = blocks_of_test((32, 32), 16)
    mask = hidden(Window(0, 0, 32, 32))
    cube, codes = t3(4, 32, 32), np.zeros((32, 32), int)
    codes[5:9, 5:9], codes[22:26, 22:26] = 1, 2
    labels = SceneLabels.from_map(codes)
    other = cube.copy()
    other[mask] *= 50
    made = [
        ComplexGanMap(**SMALL).fit(Scene.from_array(c, "polsar"), labels, seed=3, hidden=hidden)
        for c in (cube, other)
    ]
    first, second = (model.state()[0] for model in made)
    assert all(np.array_equal(value, second[name]) for name, value in first.items())
    seen = ComplexGanMap(**SMALL).fit(Scene.from_array(other, "polsar"), labels, seed=3)
    assert any(not np.array_equal(v, first[name]) for name, v in seen.state()[0].items())


def test_pixels_without_data_are_not_drawn():
    valid = np.zeros((20, 24), bool)
    valid[3:6, 3:6] = True

    def read(window: Window) -> np.ndarray:
        row, column, height, width = window
        return valid[row : row + height, column : column + width]

    scene = a_scene()
    object.__setattr__(scene, "valid", read)
    assert sorted(map(tuple, draw_unlabelled(scene, 99, 2, 0).tolist())) == [
        (r, c) for r in (3, 4, 5) for c in (3, 4, 5)
    ]


# --- maps -------------------------------------------------------------------------------------


def test_a_map_does_not_depend_on_the_tiles(fitted):
    model, scene = fitted
    assert (model.margin, model.stride, model.classes) == (4, 1, (2, 4))
    codes, confidence = predict_map(model, scene, tile=256)
    other, sure = predict_map(model, scene, tile=7)
    assert np.array_equal(codes, other)
    assert np.allclose(confidence, sure, atol=1e-6)
    assert set(np.unique(codes)) <= {2, 4}


def test_a_block_is_its_patches_one_by_one(fitted):
    model, scene = fitted
    block = scene.read_padded(Window(5 - 4, 6 - 4, 3 + 8, 2 + 8))
    found = model.probabilities(block)
    assert found.shape == (3, 2, 2)
    assert np.allclose(found.sum(2), 1, atol=1e-5)
    net, scaling = model._nets[0], model._scaling
    for row in range(3):
        for column in range(2):
            patch = scaled_patches(scene, np.array([[5 + row, 6 + column]]), 8, scaling)
            logits = net(patch).detach().numpy()[0, :2].astype(np.float64)
            expected = np.exp(logits - logits.max())
            assert np.allclose(found[row, column], expected / expected.sum(), atol=1e-5)


def test_saved_and_restored_it_says_the_same(fitted):
    model, scene = fitted
    arrays, facts = model.state()
    twin = ComplexGanMap.restore(arrays, json.loads(json.dumps(facts)))
    block = scene.read_padded(Window(-4, -4, 18, 18))
    assert np.array_equal(model.probabilities(block), twin.probabilities(block))
    assert np.array_equal(model.generate(3, 1), twin.generate(3, 1))
    assert model.generate(3, 1).shape == (3, 8, 8, 6)
    assert twin.state()[1] == facts


def test_saved_state_that_was_tampered_with_is_refused(fitted):
    arrays, facts = fitted[0].state()
    for change in (
        lambda a, f: a.pop("classes"),
        lambda a, f: a.pop("discriminator.body.0.weight_real"),
        lambda a, f: a.update({"generator.dense.weight_real": np.zeros((2, 2), np.float32)}),
        lambda a, f: a["discriminator.head.1.bias"].fill(np.nan),
        lambda a, f: a.update({"scaling.s": np.zeros(6, np.float32)}),
        lambda a, f: f.update(patch=10**9),
        lambda a, f: f.update(widths=[10**9, 4]),
        lambda a, f: f.update(surprise=1),
        lambda a, f: a.update(classes=np.zeros((2, 2), np.int64)),
    ):
        spoilt, told = copy.deepcopy(arrays), copy.deepcopy(facts)
        change(spoilt, told)
        with pytest.raises(FoveateError, match="train it again"):
            ComplexGanMap.restore(spoilt, told)


def test_the_same_seed_gives_the_same_model(fitted):
    model, scene = fitted
    again = ComplexGanMap(**SMALL).fit(scene, scene.labels, seed=0)
    told: list[tuple[int, int]] = []
    other = ComplexGanMap(**SMALL).fit(
        scene, scene.labels, seed=1, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    arrays = model.state()[0]
    assert all(np.array_equal(v, again.state()[0][name]) for name, v in arrays.items())
    name = "discriminator.head.1.weight"
    assert not np.array_equal(arrays[name], other.state()[0][name])


def test_a_rare_class_is_not_lost_among_many_labels():
    scene = a_scene(40, 40)
    codes = np.ones((40, 40), int)
    codes[20, 20], codes[:20] = 7, 3
    labels = SceneLabels.from_map(codes)
    seen = []
    for seed in range(3):
        model = ComplexGanMap(**{**SMALL, "steps": 1}).fit(scene, labels, seed=seed)
        seen.append(model.classes)
    assert seen == [(1, 3, 7)] * 3


def test_without_unlabelled_pixels_it_trains_on_labels_alone():
    scene = a_scene()
    model = ComplexGanMap(**{**SMALL, "unlabelled": 0}).fit(scene, scene.labels, seed=0)
    assert model.probabilities(scene.read_padded(Window(0, 0, 9, 9))).shape == (1, 1, 2)


def test_it_labels_what_is_easy():
    scene = a_scene()
    model = ComplexGanMap(**{**SMALL, "steps": 40, "lr": 5e-3}).fit(scene, scene.labels, seed=0)
    codes, _ = predict_map(model, scene)
    truth = np.where(np.arange(24) < 12, 2, 4)
    assert float((codes == truth)[:, np.r_[0:9, 15:24]].mean()) > 0.9


def test_wrong_input_is_told(fitted):
    model, scene = fitted
    with pytest.raises(FoveateError, match=r"\(h \+ 8, w \+ 8, 9\)"):
        model.probabilities(np.zeros((8, 9, 9), np.float32))
    with pytest.raises(FoveateError, match="call fit"):
        ComplexGanMap().probabilities(np.zeros((30, 30, 9), np.float32))
    with pytest.raises(FoveateError, match="call fit"):
        ComplexGanMap().state()
    grey = Scene.from_array(np.zeros((20, 24, 3)), "rgb")
    with pytest.raises(FoveateError, match="PolSAR"):
        ComplexGanMap().fit(grey, scene.labels, seed=0)
    one = scene.labels.subset(scene.labels.codes == 2)
    with pytest.raises(FoveateError, match="two classes"):
        ComplexGanMap(**SMALL).fit(scene, one, seed=0)
    for wrong in ({"patch": 15}, {"steps": 0}, {"unlabelled": -1}, {"widths": ()}, {"noise": 0}):
        with pytest.raises(FoveateError):
            ComplexGanMap(**wrong)


# --- generated samples ------------------------------------------------------------------------


def test_share_of_positive_semidefinite_matrices_is_counted():
    """Checklist: share of generated pixels whose T is positive semidefinite."""
    good = np.array([2, 1, 1, 1j, 0.1, 0.2], np.complex64)  # T12^2 = 1 < T11 T22
    bad = np.array([1, 1, 1, 1.2, 0, 0], np.complex64)  # |T12|^2 > T11 T22
    negative = np.array([-1, 1, 1, 0, 0, 0], np.complex64)
    edge = np.array([1, 1, 1, 1j, 0, 0], np.complex64)  # determinant 0: a single look
    assert positive_semidefinite_share(np.stack([good, bad, negative, edge])) == 0.5
    single = t3(5, 300, looks=1)
    full = single[:, :3].astype(np.complex64)
    off = single[:, 3::2] + 1j * single[:, 4::2]
    assert positive_semidefinite_share(np.concatenate([full, off], 1).astype(np.complex64)) == 1
    with pytest.raises(FoveateError, match="at least one"):
        positive_semidefinite_share(np.zeros((0, 6), np.complex64))
