"""The recipe end to end at its smallest, its verdicts, and its data."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from foveate.errors import FoveateError
from foveate.faces import erea
from foveate.faces.erea import EREA, EREAConfig
from foveate.files import sha256_of
from foveate.learning import masked_attention
from foveate.recipes import mar_rppg as recipe
from foveate.recipes.mar_rppg import ARMS, PRESETS, Clip, Data
from foveate.report.evidence import Evidence, Result
from make_miniatures import rppg as mini

SMOKE = PRESETS["smoke"]
NETWORK = EREAConfig(stem=4, stages=(4,), frames=32, size=12)
SMALL = dataclasses.replace(SMOKE, network=NETWORK, train_clips=8)


def pulse_clip(seed: int, hr: float, frames: int = 300, moving: bool = False) -> Clip:
    """A noisy patch whose brightness beats: no simulator involved."""
    rng = np.random.default_rng(seed)
    bvp = np.sin(2 * np.pi * hr / 60 * np.arange(frames) / 30 + rng.uniform(0, 6))
    light = 120 - 3 * bvp[:, None, None, None] + rng.normal(0, 1, (frames, 12, 12, 3))
    skin = np.ones((frames, 6, 6), np.float16)
    return Clip(light.round().astype(np.uint8), bvp.astype(np.float32), moving, skin)


def results(**arms: list[tuple[float, float, float]]) -> list[Result]:
    """Arm (``_`` for ``-``) -> (moving, static, share) of each seed."""
    return [
        Result(
            arm.replace("_", "-"),
            seed,
            {"mae_moving": m, "mae_static": s, "rise": m - s, "skin_share": a, "mae_val": m},
        )
        for arm, rows in arms.items()
        for seed, (m, s, a) in enumerate(rows)
    ]


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        told: list[str] = []
        yield recipe.run(SMOKE, lambda what, done, total: told.append(what)), folder, told


def test_smoke_runs_every_arm_and_says_that_it_is_simulated(smoke):
    evidence, _, _ = smoke
    assert isinstance(evidence, Evidence)
    assert {result.arm for result in evidence.results} == set(recipe.ARMS)
    assert evidence.simulated
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    assert all(finding.verdict == "inconclusive" for finding in evidence.findings)
    assert any("none at hand" in note for note in evidence.notes)
    for result in evidence.results:
        assert np.isfinite(
            [result.metrics[key] for key in ("mae_moving", "mae_static", "rise")]
        ).all()
        trained = result.arm not in recipe.CLASSIC
        assert ("skin_share" in result.metrics) == trained
        if trained:
            assert 0 < result.metrics["skin_share"] < 1


def test_finished_work_is_reused(smoke):
    evidence, _, told = smoke
    epochs = sum("epoch" in what for what in told)
    assert epochs == 4
    again = recipe.run(SMOKE, lambda what, done, total: told.append(what))
    assert sum("epoch" in what for what in told) == epochs
    assert not any("simulating" in what for what in told[len(told) // 2 + 1 :])
    assert repr(again.results) == repr(evidence.results)  # repr: NaN equals itself


def test_exported_weights_are_small_carded_and_load(smoke):
    _, folder, _ = smoke
    (weights,) = folder.glob("runs/mar-rppg/*/export/*.safetensors")
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["sha256"] == sha256_of(weights)
    assert card["simulated"] is True
    assert {"what", "licence", "recipe", "data", "metric"} <= set(card)
    assert erea.load(weights).config == SMOKE.network


# --- data ----------------------------------------------------------------------------------


def test_splits_share_no_person_and_pairs_share_person_and_rate(smoke, monkeypatch):
    asked = []
    original = recipe.FaceSim.clip

    def watched(self, identity, seconds, hr, **options):
        asked.append((identity, hr, options["decoy"], options["motion"]))
        return original(self, identity, 2.0, hr=hr, **options)

    monkeypatch.setattr(recipe.FaceSim, "clip", watched)
    for split, count in (("train", 10), ("val", 2), ("test", 4)):
        for index in range(count):
            recipe.simulate_clip(split, index, SMALL)
    train, val, test = asked[:10], asked[10:12], asked[12:]
    people = [{one[0] for one in part} for part in (train, val, test)]
    assert len(people[0]) == 10
    assert len(set.union(*people)) == sum(len(group) for group in people)
    # 30 % of the training clips have a lamp, which follows the true pulse; no other does.
    assert [one[2] is not None for one in train] == [True] * 3 + [False] * 7
    assert all(one[2].bpm is None for one in train[:3])
    for still, moving in (val, test[:2], test[2:]):
        assert still[:2] == moving[:2]
        assert (still[3], moving[3]) == ("steady", "moving")
        assert still[2] == moving[2]
        assert abs(still[2].bpm - still[1]) > 12
    assert all(50 <= one[1] <= 150 for one in asked)


def test_clips_made_side_by_side_are_those_made_alone():
    config = dataclasses.replace(SMALL, test_seconds=2.0)
    together = dict(recipe.made("test", [0, 1, 2], config))
    for index, clip in together.items():
        alone = recipe.simulate_clip("test", index, config)
        assert np.array_equal(clip.frames, alone.frames)
        assert np.array_equal(clip.skin, alone.skin)
    assert torch.get_num_threads() == 1  # as before


def test_kept_clip_is_the_clip(tmp_path):
    clip = pulse_clip(0, 70)
    recipe.keep(tmp_path / "one", clip)
    back = recipe.kept(tmp_path / "one")
    assert np.array_equal(back.frames, clip.frames)
    assert np.array_equal(back.bvp, clip.bvp)
    assert np.array_equal(back.skin, clip.skin)
    assert back.moving is clip.moving


def test_variations_change_the_rate_of_clip_and_label_alike():
    """Brightness *is* the label in this clip: they must stay together at every speed."""
    bvp = np.sin(2 * np.pi * 1.5 * np.arange(80) / 30).astype(np.float32)
    frames = np.repeat((120 - 50 * bvp)[:, None, None, None], 12, 1).repeat(12, 2).repeat(3, 3)
    clip = Clip(frames.astype(np.float32), bvp, False)
    draw = torch.Generator().manual_seed(0)
    assert recipe.frames_needed(NETWORK) <= 80
    batch, labels = recipe.batch_of([(clip, 0)] * 30, NETWORK, draw)
    assert batch.shape == (30, 3, 32, 12, 12)
    assert torch.allclose(batch.mean((1, 3, 4)), 120 - 50 * labels, atol=1e-3)
    steps = labels.diff(dim=1).abs().mean(1)
    assert steps.max() / steps.min() > 1.2  # different speeds


def test_resampling_keeps_time():
    """25 Hz with a jittered clock to 30 Hz: brightness is a known function of time."""
    times = np.arange(101) / 25 + np.random.default_rng(0).uniform(-0.004, 0.004, 101)
    frames = np.repeat((100 + 20 * times)[:, None, None, None], 3, 3).astype(np.float32)
    clip = recipe.resampled(times, frames, 7 * times, True, SMALL)
    expected = times[0] + np.arange(len(clip.frames)) / 30
    assert np.allclose(clip.frames[:, 0, 0, 0], 100 + 20 * expected, atol=1e-3)
    assert np.allclose(clip.bvp, 7 * expected, atol=1e-4)


def test_absent_public_data_names_source_and_layout(tmp_path):
    config = dataclasses.replace(SMALL, data="PURE", data_root=tmp_path)
    with pytest.raises(FoveateError, match="PURE"):
        recipe.public("train", config, lambda *a: None)


def test_public_data_in_its_official_layout(tmp_path, monkeypatch):
    """A miniature of UBFC-rPPG at 25 Hz becomes crops and label at the network's 30 Hz."""
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "home"))
    times = np.arange(50) / 25
    mini.write_ubfc_2(tmp_path / "UBFC-rPPG" / "subject1", list(mini.pulse(times, 75)), list(times))
    mini.write_ubfc_2(
        tmp_path / "UBFC-rPPG" / "subject40", list(mini.pulse(times, 90)), list(times)
    )
    corners = np.array([[4, 4, 0], [24, 20, 0]], np.float32)  # nobody is in these pictures
    monkeypatch.setattr(recipe, "landmarks_of", lambda frames: np.stack([corners for _ in frames]))
    config = dataclasses.replace(SMALL, data="UBFC-rPPG", data_root=tmp_path)
    (train,) = recipe.public("train", config, lambda *a: None)
    (test,) = recipe.public("test", config, lambda *a: None)
    assert recipe.public("val", config, lambda *a: None) == []
    expected = np.arange(len(train.bvp)) / 30
    assert 57 <= len(expected) <= 60
    assert train.frames.shape == (len(expected), 12, 12, 3)
    assert np.corrcoef(train.bvp, mini.pulse(expected, 75))[0, 1] > 0.98
    assert np.corrcoef(test.bvp, mini.pulse(expected, 90))[0, 1] > 0.98
    assert not train.moving
    assert train.skin is None


# --- training and testing ------------------------------------------------------------------


def test_training_learns_a_plain_pulse():
    """On clips without any difficulty the method's arm finds the rates of unseen clips."""
    rng = np.random.default_rng(1)
    rates = rng.uniform(60, 140, 24)
    train = [pulse_clip(i, hr, 80) for i, hr in enumerate(rates)]
    test = [pulse_clip(100 + i, hr, moving=i % 2 == 1) for i, hr in enumerate((65, 88, 110, 131))]
    config = dataclasses.replace(SMALL, epochs=12, lr=1e-2)
    net = recipe.train("erea-mar", 0, train, config, Fabric(accelerator="cpu", devices=1))
    metrics, items = recipe.evaluate(net, Data("", train, test, test, {}, None, []), config)
    assert metrics["mae_moving"] < 3
    assert metrics["mae_static"] < 3
    assert metrics["skin_share"] == pytest.approx(1, abs=1e-3)  # everything is skin here
    assert 0 <= metrics["gate_entropy"] <= 1
    # Every clip is kept, and the means are those of the kept ones.
    for kind, truth in (("static", (65, 110)), ("moving", (88, 131))):
        np.testing.assert_allclose(items[f"label_bpm_{kind}"], truth, atol=1.5)
        off = np.subtract(items[f"bpm_{kind}"], items[f"label_bpm_{kind}"])
        assert metrics[f"mae_{kind}"] == pytest.approx(np.abs(off).mean())
        assert metrics[f"rmse_{kind}"] == pytest.approx(np.sqrt((off**2).mean()))
        assert metrics[f"macc_{kind}"] > 0.8


def test_arms_start_from_the_same_weights_and_the_ablation_has_one_expert():
    clips = [pulse_clip(i, 80, 80) for i in range(4)]
    config = dataclasses.replace(SMALL, lr=1e-12, weight_decay=0.0)
    fabric = Fabric(accelerator="cpu", devices=1)
    nets = {
        arm: recipe.train(arm, 7, clips, config, fabric)
        for arm in ("one-expert", "erea", "erea-augmented", "erea-mar")
    }
    assert nets["one-expert"].config.grid == 1
    weights = [dict(nets[arm].named_parameters()) for arm in ("erea", "erea-augmented", "erea-mar")]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-6)
        assert torch.allclose(value, weights[2][name], atol=1e-6)
    encoder = nets["one-expert"].stem[0].weight, nets["erea"].stem[0].weight
    assert torch.allclose(*encoder, atol=1e-6)


def test_each_arm_is_trained_as_it_is_called_and_all_see_the_same_clips(monkeypatch):
    """Which regulariser, which weight, which batches: the ablation must differ in nothing else."""
    made, batches = [], []
    real_regularizer, real_batch = recipe.MaskedAttentionRegularizer, recipe.batch_of

    class Spy(real_regularizer):
        def __init__(self, lam):
            super().__init__(lam=lam)
            self.used = 0
            made.append(self)

        def forward(self, *arguments, **options):
            self.used += 1
            return super().forward(*arguments, **options)

    def batch_of(*arguments, **options):
        clip, bvp = real_batch(*arguments, **options)
        batches[-1].append(clip.double().sum().item())
        return clip, bvp

    monkeypatch.setattr(recipe, "MaskedAttentionRegularizer", Spy)
    monkeypatch.setattr(recipe, "batch_of", batch_of)
    clips = [pulse_clip(i, 70 + 5 * i, 80) for i in range(8)]
    config = dataclasses.replace(SMALL, epochs=2, lam=0.7)
    used = {}
    for arm in ("one-expert", "erea", "erea-augmented", "erea-mar"):
        made.clear()
        batches.append([])
        recipe.train(arm, 3, clips, config, Fabric(accelerator="cpu", devices=1))
        used[arm] = sorted((spy.lam, spy.p, spy.masks) for spy in made if spy.used)
    assert used["one-expert"] == used["erea"] == []
    assert used["erea-augmented"] == [(0.0, 0.5, "shared")]
    assert used["erea-mar"] == [(0.7, 0.5, "shared")]
    assert len(batches[0]) > 2
    assert all(one == batches[0] for one in batches)


def test_classic_methods_read_the_mean_colour_of_the_very_crops_the_network_sees(monkeypatch):
    seen = {}
    monkeypatch.setitem(recipe.CLASSIC, "pos", lambda rgb, fs: seen.setdefault(fs, rgb)[:, 1])
    clip = pulse_clip(0, 80)
    recipe.read_classic("pos", clip, SMALL)
    np.testing.assert_allclose(seen[30.0], clip.frames.mean((1, 2)), atol=1e-6)


def test_label_and_prediction_are_searched_in_one_band(monkeypatch):
    bands = []
    real = recipe.heart_rate

    def spy(bvp, fs, band, *rest, **options):
        bands.append(tuple(band))
        return real(bvp, fs, band, *rest, **options)

    monkeypatch.setattr(recipe, "heart_rate", spy)
    recipe.measure_clips(lambda clip: clip.bvp, [pulse_clip(0, 80)], SMALL)
    assert bands == [tuple(SMALL.band_hz)] * 2


def test_nothing_is_erased_or_mirrored_when_a_clip_is_read(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("masks and mirrors belong to training")

    monkeypatch.setattr(masked_attention, "erase_clip", never)
    monkeypatch.setattr(masked_attention, "flip", never)
    clips = [pulse_clip(i, 80, moving=bool(i)) for i in range(2)]
    metrics, _ = recipe.evaluate(EREA(NETWORK), Data("", clips, clips, clips, {}, None, []), SMALL)
    assert np.isfinite(metrics["mae_moving"])
    # The guard works: training does call them.
    with pytest.raises(AssertionError, match="belong to training"):
        recipe.train("erea-mar", 0, clips, SMALL, Fabric(accelerator="cpu", devices=1))


def test_too_few_clips_for_a_step_is_said():
    with pytest.raises(FoveateError, match="--set batch"):
        recipe.train("erea", 0, [pulse_clip(0, 70, 80)], SMALL, Fabric(accelerator="cpu"))


def test_label_and_prediction_pass_the_same_procedure():
    clips = [pulse_clip(i, hr) for i, hr in enumerate((60.0, 95.0, 140.0))]

    def mean_error(read):
        found = recipe.measure_clips(read, clips, SMALL)
        return np.abs(np.subtract(found["bpm"], found["label"])).mean()

    assert mean_error(lambda clip: -3 * clip.bvp + 5) < 1e-6
    for arm in recipe.CLASSIC:
        assert mean_error(lambda clip, arm=arm: recipe.read_classic(arm, clip, SMALL)) < 40
    # A waveform without rhythm is wrong, not skipped.
    assert mean_error(lambda clip: np.zeros(300)) == pytest.approx(55.5)


def test_untrained_network_of_the_wrong_length_is_refused():
    with pytest.raises(FoveateError, match="31 frames"):
        erea.waveform(EREA(NETWORK), np.zeros((1, 31, 12, 12, 3), np.uint8))


# --- verdicts ------------------------------------------------------------------------------


def test_reproduced_needs_error_and_attention():
    base = [(10.0, 5.0, 0.4)] * 3
    better = [(8.0, 5.0, 0.5)] * 3
    assert recipe.verdict(results(erea=base, erea_mar=better)) == "reproduced"
    looks_away = [(8.0, 5.0, 0.3)] * 3
    assert recipe.verdict(results(erea=base, erea_mar=looks_away)) == "not reproduced"
    worse = [(11.0, 5.0, 0.6)] * 3
    assert recipe.verdict(results(erea=base, erea_mar=worse)) == "not reproduced"
    one_seed_wins = [(1.0, 5.0, 0.6), (10.5, 5.0, 0.6), (10.5, 5.0, 0.6)]
    assert recipe.verdict(results(erea=base, erea_mar=one_seed_wins)) == "not reproduced"
    two_seeds_win = [(1.0, 5.0, 0.6), (9.0, 5.0, 0.6), (10.5, 5.0, 0.6)]
    assert recipe.verdict(results(erea=base, erea_mar=two_seeds_win)) == "reproduced"
    assert recipe.verdict(results(erea=base[:2], erea_mar=better[:2])) == "inconclusive"


def test_separate_verdicts():
    found = recipe.findings(
        results(
            one_expert=[(9.0, 5.0, 0.4)] * 3,
            erea=[(10.0, 5.0, 0.4)] * 3,
            erea_augmented=[(7.0, 5.0, 0.4)] * 3,
            erea_mar=[(8.0, 4.0, 0.5)] * 3,
        )
    )
    consistency, experts, motion = (finding.verdict for finding in found)
    assert consistency == "not reproduced"  # 8 is not below 7
    assert experts == "not reproduced"  # 10 is not below 9
    assert motion == "reproduced"  # a rise of 4 is below one of 5


# --- real faces ----------------------------------------------------------------------------


def test_real_person_is_read_by_the_classic_methods(shared_data, tmp_path, monkeypatch):
    """EVM face: 51 to 55 bpm by POS, CHROM and GREEN on the MediaPipe crop."""
    pytest.importorskip("mediapipe")
    model = shared_data / "models" / "face_landmarker.task"
    if not (model.is_file() and (shared_data / "rppg" / "evm_face.mp4").is_file()):
        pytest.skip("EVM clip or face model not present")
    monkeypatch.setattr(recipe.model_files, "fetch", lambda name: model)
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    (tmp_path / "rppg").mkdir()
    (tmp_path / "rppg" / "evm_face.mp4").symlink_to(shared_data / "rppg" / "evm_face.mp4")
    config = dataclasses.replace(PRESETS["desk"], real_data=tmp_path)
    grid, clip, notes = recipe.real_faces(config, lambda *a: None)
    assert grid == {}
    assert clip is not None
    assert clip.frames.shape[1:] == (36, 36, 3)
    for arm in ("pos", "chrom", "green"):
        assert 51 <= recipe.rate(recipe.read_classic(arm, clip, config), config) <= 55
    assert any("real person" in note for note in notes)


def test_two_processes_train_together_and_one_writes(tmp_path):
    environment = {**os.environ, "FOVEATE_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "foveate", "run", "mar-rppg", "--scale", "smoke",
         "--set", "batch=2", "--devices", "2", "--out", str(tmp_path / "evidence")],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    written = Evidence.read(tmp_path / "evidence" / "mar-rppg.json")
    assert written.config["devices"] == 2
    assert {r.arm for r in written.results} == set(ARMS)
    assert len(list((tmp_path / "evidence").iterdir())) == 1
