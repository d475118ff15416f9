"""The recipe end to end at its smallest; crops, variations and errors against closed forms."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

from foveate.errors import FoveateError
from foveate.recipes import synthetic_face_video as recipe
from foveate.recipes.synthetic_face_video import ARMS, MIRROR, PRESETS, Crops, Data
from foveate.report.evidence import Evidence, Result
from foveate.simulate.face_geometry import canonical_points

SMOKE = PRESETS["smoke"]
REAL = dataclasses.replace(SMOKE, test="helen")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One data folder for all runs, so that the few faces are drawn once."""
    folder = tmp_path_factory.mktemp("foveate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        yield folder


def shapes(count: int, seed: int = 0, tilt: float = 30.0) -> torch.Tensor:
    """A plain drawn face, turned at random and boxed as HELEN's crops are: ``(N, 68, 2)``."""
    rng = np.random.default_rng(seed)
    angle = np.radians(rng.uniform(-tilt, tilt, count))
    turn = np.stack([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.einsum("ijn,pj->npi", turn, canonical_points()[:68])
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    boxed = (points - (low + high) / 2) / (high - low).max(2, keepdims=True) * 64 + 48
    return torch.from_numpy(boxed.astype(np.float32))


def dotted(points: torch.Tensor, sigma: float = 2.0, edge: int = 96) -> torch.Tensor:
    """White blobs at points ``(N, P, 2)`` on black: ``(N, 3, edge, edge)`` uint8."""
    at = torch.arange(edge) + 0.5  # middles of the pixels
    dx, dy = (at - points[..., axis, None] for axis in (0, 1))
    blobs = torch.exp(-(dy[..., :, None] ** 2 + dx[..., None, :] ** 2) / (2 * sigma**2))
    return (255 * blobs.amax(1)).to(torch.uint8)[:, None].repeat(1, 3, 1, 1)


def faces(count: int, seed: int = 0) -> Crops:
    points = shapes(count, seed)
    return Crops(dotted(points), points)


def write_helen(folder, train: int = 12, test: int = 6):
    """A miniature in the layout of the real file; nobody is in these pictures."""
    one, two = faces(train, 1), faces(test, 2)
    (folder / "faces").mkdir(parents=True)
    np.savez(
        folder / "faces" / "helen68_96.npz",
        x_train=one.pictures.numpy(),
        lm_train=one.points.numpy(),
        x_test=two.pictures.numpy(),
        lm_test=two.points.numpy(),
    )
    return dataclasses.replace(REAL, real_data=folder)


def results(**arms: list[float]) -> list[Result]:
    """Arm (``_`` for ``-``, ``X`` for ``+``) -> NME of each seed."""
    return [
        Result(arm.replace("_", "-").replace("X", "+"), seed, {"nme": nme})
        for arm, row in arms.items()
        for seed, nme in enumerate(row)
    ]


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


# --- end to end ----------------------------------------------------------------------------


def test_smoke_needs_nothing_and_says_that_it_is_simulated(home):
    told: list[str] = []
    evidence = recipe.run(SMOKE, lambda what, done, total: told.append(what))
    assert isinstance(evidence, Evidence)
    assert {r.arm for r in evidence.results} == {"mean-shape", "simulated"}
    assert evidence.simulated
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    assert evidence.findings == []
    assert "drawn faces" in evidence.data
    assert any("Real faces were not tried" in note for note in evidence.notes)
    assert all(np.isfinite(list(r.metrics.values())).all() for r in evidence.results)
    assert any("step" in what for what in told)
    told.clear()
    assert recipe.run(SMOKE, lambda what, done, total: told.append(what)).results == (
        evidence.results
    )  # finished work is reused
    assert not any("step" in what or "drawing" in what for what in told)


def test_real_faces_give_every_arm_and_are_not_called_simulated(home, tmp_path):
    evidence = recipe.run(write_helen(tmp_path))
    assert {r.arm for r in evidence.results} == set(ARMS)
    assert not evidence.simulated
    assert "6 real test crops" in evidence.data
    assert "16 simulated crops, 12 real ones" in evidence.data
    assert all("nme_simulated" in r.metrics for r in evidence.results)
    assert len(evidence.findings) == 2
    # The mean shape is that of the real training crops, measured on the real test crops.
    (constant,) = (r for r in evidence.results if r.arm == "mean-shape")
    train, test = shapes(12, 1).numpy().astype(float), shapes(6, 2).numpy().astype(float)
    nmes = [
        np.mean(np.hypot(*(one - train.mean(0)).T)) / np.hypot(*(one[36] - one[45])) for one in test
    ]
    assert constant.metrics["nme"] == pytest.approx(100 * np.mean(nmes), rel=1e-4)


def test_held_out_crops_are_trained_on_by_nobody_and_the_test_crops_stay_closed(tmp_path):
    config = dataclasses.replace(write_helen(tmp_path), held_out=5)
    path = tmp_path / "faces" / "helen68_96.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in ("x_train", "lm_train")}
    np.savez(path, **arrays)  # without test crops it must still work
    train, test = recipe.helen(config)
    assert torch.equal(train.points, shapes(12, 1)[:7])
    assert torch.equal(test.points, shapes(12, 1)[7:])
    for wrong in (12, 13, -1):
        with pytest.raises(FoveateError, match=f"held_out is {wrong}"):
            recipe.helen(dataclasses.replace(config, held_out=wrong))


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_without_real_faces_one_sentence_and_nothing_drawn(scale, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "none"))
    config = dataclasses.replace(PRESETS[scale], precision="32-true", accelerator="cpu")
    with pytest.raises(FoveateError, match="--set real_data=FOLDER"):
        recipe.run(config)
    assert not (tmp_path / "none").exists()


def test_two_processes_train_together_and_one_writes(tmp_path):
    environment = {**os.environ, "FOVEATE_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "foveate", "run", "synthetic-face-video", "--scale", "smoke",
         "--devices", "2", "--out", str(tmp_path / "evidence")],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    written = Evidence.read(tmp_path / "evidence" / "synthetic-face-video.json")
    assert written.config["devices"] == 2
    assert len(list((tmp_path / "evidence").iterdir())) == 1


# --- data ----------------------------------------------------------------------------------


def test_files_that_are_not_helen_are_refused(tmp_path):
    config = dataclasses.replace(REAL, real_data=tmp_path)
    with pytest.raises(FoveateError, match=r"there is no .*helen68_96\.npz"):
        recipe.helen(config)
    write_helen(tmp_path)
    path = tmp_path / "faces" / "helen68_96.npz"
    good = path.read_bytes()
    with np.load(path) as stored:
        arrays = dict(stored)
    bad = [
        arrays | {"x_test": arrays["x_test"].astype(np.float32)},
        arrays | {"x_train": arrays["x_train"][..., :90]},
        arrays | {"lm_train": arrays["lm_train"][:, :51]},
        arrays | {"lm_train": arrays["lm_train"][:-1]},
        {name: arrays[name] for name in ("x_train", "x_test", "lm_train")},
        arrays | {"lm_test": arrays["lm_test"] * np.nan},
        arrays | {"x_train": np.array([{}], object)},
    ]
    for wrong in bad:
        np.savez(path, **wrong)
        with pytest.raises(FoveateError, match="not a file of face crops"):
            recipe.helen(config)
    for text in (b"", b"hello", good[: len(good) // 2]):
        path.write_bytes(text)
        with pytest.raises(FoveateError, match="not a file of face crops"):
            recipe.helen(config)


def test_number_of_people_is_checked():
    with pytest.raises(FoveateError, match="train_people is 0"):
        recipe.simulated("train", dataclasses.replace(SMOKE, train_people=0), lambda *a: None)


def test_simulated_crops_follow_the_rule_of_real_ones_and_share_no_person(monkeypatch):
    asked = []
    original = recipe.FaceSim.clip

    def watched(self, identity, *args, **options):
        asked.append(identity)
        return original(self, identity, *args, **options)

    monkeypatch.setattr(recipe.FaceSim, "clip", watched)
    for split in ("train", "test"):
        for index in range(2):
            pictures, points = recipe.draw_person(split, index, 3)
            assert pictures.shape == (3, 3, 96, 96)
            low, high = points.min(1), points.max(1)
            assert np.allclose((low + high) / 2, 48, atol=1e-3)
            assert np.allclose((high - low).max(1), 64, atol=1e-3)
            assert np.abs(points[0] - points[1]).max() > 1  # another face, another pose
    assert len(set(asked)) == 4
    again = recipe.draw_person("test", 1, 3)
    assert np.array_equal(again[0], pictures)
    assert np.array_equal(again[1], points)


def test_real_crops_are_boxed_as_the_recipe_assumes(shared_data):
    """600 and 330 crops; the square around the points is the middle 64 of 96 pixels."""
    if not (shared_data / "faces" / "helen68_96.npz").is_file():
        pytest.skip("HELEN crops not present")
    sets = recipe.helen(dataclasses.replace(REAL, real_data=shared_data))
    assert [len(part.pictures) for part in sets] == [600, 330]
    for part in sets:
        low, high = part.points.amin(1), part.points.amax(1)
        assert torch.allclose((low + high) / 2, torch.tensor(48.0), atol=0.01)
        assert torch.allclose((high - low).amax(1), torch.tensor(64.0), atol=0.01)


@given(side=st.floats(30, 90), x=st.floats(40, 88), y=st.floats(40, 88))
@settings(deadline=None, max_examples=15)
def test_crop_moves_picture_and_points_alike(side, x, y):
    """A blob drawn in the frame lies at the point's new place in the crop."""
    points = (shapes(1) - 48) * (side / 64) + torch.tensor([x, y])
    frame = dotted(points[:, [30]], sigma=3, edge=128)
    pictures, moved = recipe.cropped(frame.permute(0, 2, 3, 1).numpy(), points.numpy())
    low, high = moved.min(1), moved.max(1)
    assert np.allclose((low + high) / 2, 48, atol=1e-3)
    assert (high - low).max() == pytest.approx(64, abs=1e-3)
    assert np.allclose(centre_of(torch.from_numpy(pictures[0]).float()), moved[0, 30], atol=0.25)


def centre_of(picture: torch.Tensor) -> np.ndarray:
    """Centre of gravity of what is bright in ``(3, H, H)``, in units of pixel edges."""
    weight = picture.mean(0)
    weight = (weight - 0.3 * weight.max()).clamp(min=0)
    at = torch.arange(len(weight)) + 0.5
    x, y = (weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()
    return (torch.stack([x, y]) / weight.sum()).numpy()


# --- variations ----------------------------------------------------------------------------


def test_mirror_is_that_of_a_symmetric_face():
    canonical = canonical_points()[:68]
    assert np.allclose(canonical[MIRROR] * [-1, 1], canonical, atol=1e-6)
    assert [MIRROR[i] for i in MIRROR] == list(range(68))


@pytest.mark.parametrize("size", [48, 96])
def test_variations_move_picture_and_points_alike(size):
    """A blob at one outer eye corner is at that corner, or at the other one if mirrored."""
    points = shapes(200, seed=3)
    pictures = dotted(points[:, [36]], sigma=3)
    varied, moved = recipe.vary(pictures, points, size, torch.Generator().manual_seed(0))
    assert varied.shape == (200, 3, size, size)
    assert 0 <= varied.min() <= varied.max() <= 255
    low, high = moved.amin(1), moved.amax(1)
    assert ((low + high) / 2 - 48).abs().max() <= 0.03 * 96 + 1e-3
    assert 64 / 1.06 < (high - low).amax(1).min() <= (high - low).amax(1).max() < 64 / 0.94
    where = np.stack([centre_of(one) for one in varied]) * 96 / size
    gaps = np.stack([np.hypot(*(where - moved[:, corner].numpy()).T) for corner in (36, 45)])
    nearest = gaps.min(0)
    assert np.median(nearest) < 0.5  # covered and cropped ones aside
    found = nearest < 1
    assert found.mean() > 0.5
    assert 0.3 < (gaps[1] < gaps[0])[found].mean() < 0.7  # half are mirrored
    eyes = moved[:, 45] - moved[:, 36]
    assert (eyes[:, 0] > 0).all()  # turned by 55 degrees at most; point 36 stays left


def test_variations_are_the_same_for_the_same_draw():
    crops = faces(6)
    one, two = (
        recipe.vary(crops.pictures, crops.points, 48, torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


# --- training and testing ------------------------------------------------------------------


def test_arms_are_trained_alike():
    """Given the same crops under both names, every arm ends with the very same network."""
    crops = {"simulated": faces(9), "helen": faces(9)}
    nets = [
        recipe.train(arm, 3, crops, SMOKE, cpu())
        for arm in ("simulated", "helen", "simulated+helen")
    ]
    weights = [net.state_dict() for net in nets]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
        assert torch.equal(value, weights[2][name])
    other = recipe.train("simulated", 4, crops, SMOKE, cpu()).state_dict()
    assert not torch.equal(other["head.weight"], weights[0]["head.weight"])


def test_first_weights_are_those_of_the_seed_whatever_is_trained_on():
    config = dataclasses.replace(SMOKE, lr=1e-12, weight_decay=0.0)
    crops = {"simulated": faces(9, 1), "helen": faces(5, 2)}
    one, two = (
        dict(recipe.train(arm, 7, crops, config, cpu()).named_parameters()) for arm in crops
    )
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-9)


def test_real_crops_come_last(monkeypatch):
    """Of 8 steps with real_share .25 the last 2 see real crops; each batch is of one sort."""
    crops = {"simulated": faces(9, 1), "helen": faces(5, 2)}
    crops["helen"].pictures[:] = 200
    crops["simulated"].pictures[:] = 10
    seen = []
    original = recipe.vary

    def watched(pictures, *rest):
        seen.append(set(pictures.unique().tolist()))
        return original(pictures, *rest)

    monkeypatch.setattr(recipe, "vary", watched)
    config = dataclasses.replace(SMOKE, steps=8, real_share=0.25)
    recipe.train("simulated+helen", 0, crops, config, cpu())
    assert seen == [{10}] * 6 + [{200}] * 2


def test_untrained_network_gives_the_mean_shape():
    shape = shapes(1)[0]
    net = recipe.LandmarkNet(shape, size=48, width=8, blocks=4).eval()
    found = net(faces(3).pictures)
    assert found.shape == (3, 68, 2)
    assert (found - shape).abs().max() < 1


@given(gain=st.floats(0.3, 1.0), offset=st.floats(0, 50))
@settings(deadline=None, max_examples=10)
def test_brightness_and_contrast_are_no_cue(gain, offset):
    torch.manual_seed(0)
    net = recipe.LandmarkNet(shapes(1)[0], size=48, width=8, blocks=4).eval()
    pictures = faces(2).pictures.float()
    assert torch.allclose(net(pictures), net(gain * pictures + offset), atol=0.05)


def test_training_learns_a_plain_face():
    """Dots that show where the points are: the network finds the turn that no mean shape knows."""
    config = dataclasses.replace(SMOKE, size=24, width=8, steps=250, batch=32, lr=1e-2)
    crops = {"simulated": faces(64, 1)}
    test = faces(40, 2)
    data = Data("", crops, test, test, False)
    net = recipe.train("simulated", 0, crops, config, cpu())
    shape = crops["simulated"].mean_shape()
    constant = recipe.measure(lambda x: shape.expand(len(x), -1, -1), data)
    assert recipe.measure(net, data)["nme"] < 0.5 * constant["nme"]


def test_nme_is_in_percent_of_the_outer_eye_distance():
    points = shapes(5)
    points[:, 36], points[:, 45] = torch.tensor([30.0, 40.0]), torch.tensor([60.0, 80.0])  # 50 px
    crops = Crops(dotted(points), points)
    data = Data("", {}, crops, Crops(crops.pictures, points + 1), True)

    def off(pictures: torch.Tensor) -> torch.Tensor:
        """The mouth (20 points) is 5 px off, the rest is right."""
        found = points[: len(pictures)].clone()
        found[:, 48:] += torch.tensor([3.0, 4.0])
        return found

    metrics = recipe.measure(off, data)
    assert metrics["mouth"] == pytest.approx(10, rel=1e-5)
    assert metrics["nme"] == pytest.approx(10 * 20 / 68, rel=1e-5)
    assert all(metrics[part] == 0 for part in ("jaw", "brows", "nose", "eyes"))
    simulated = 100 / 50 * (48 * np.hypot(1, 1) + 20 * np.hypot(2, 3)) / 68
    assert metrics["nme_simulated"] == pytest.approx(simulated, rel=1e-5)
    assert sorted(i for part in recipe.PARTS.values() for i in part) == list(range(68))


# --- verdicts ------------------------------------------------------------------------------


def test_gap_is_the_ratio_of_the_paired_errors():
    notes = recipe.remarks(results(mean_shape=[18.0] * 3, simulated=[9, 12, 15], helen=[6, 6, 6]))
    assert "is 2.00 (1.50 to 2.50 over the seeds)" in notes[0]
    assert "12.0 % against 6.0 %" in notes[0]
    assert "18.0 % off" in notes[0]


def test_findings_compare_the_right_arms():
    real_wins = recipe.findings(
        results(simulated=[9.0] * 3, helen=[6.0] * 3, simulatedXhelen=[7.0] * 3)
    )
    assert [f.verdict for f in real_wins] == ["reproduced", "not reproduced"]
    drawn_helps = recipe.findings(
        results(simulated=[5.0] * 3, helen=[6.0] * 3, simulatedXhelen=[5.5] * 3)
    )
    assert [f.verdict for f in drawn_helps] == ["not reproduced", "reproduced"]
