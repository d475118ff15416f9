"""The recipe end to end on a simulation, its arms, its data and its verdicts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from foveate.datasets import physionet2012
from foveate.errors import FoveateError
from foveate.learning.condensation import CondensedSet, DistributionMatching, Training
from foveate.learning.privacy import AttackReport
from foveate.nn.timeseries import PAPER_NETS
from foveate.recipes import dataset_condensation_health as recipe
from foveate.recipes.dataset_condensation_health import ARMS, PRESETS
from foveate.report.evidence import Evidence, Result
from make_miniatures import health as mini

SMOKE = PRESETS["smoke"]
DESK = PRESETS["desk"]


def nothing(*_: object) -> None:
    pass


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    config = dataclasses.replace(SMOKE, shadows=4, iterations=3, epochs=2, power_epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        seen: list[str] = []
        evidence = recipe.run(config, lambda what, done, total: seen.append(what))
        (kept,) = (folder / "runs" / "dataset-condensation-health").iterdir()
        yield evidence, kept, config, seen


def test_smoke_runs_every_arm_and_says_that_it_is_simulated(smoke):
    """Checklist 10: random rows, a coreset and all data in the same run."""
    evidence, kept, _, seen = smoke
    assert isinstance(evidence, Evidence)
    assert [r.arm for r in evidence.results] == [
        "condensed", "random", "kmeans", "power", "all", "leave-one-out", "lira",
    ]  # fmt: skip
    assert set(evidence.arms) == set(ARMS)
    assert evidence.simulated
    assert "AR(1)" in evidence.data
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    assert {f.verdict for f in evidence.findings} == {"inconclusive"}
    of = {r.arm: r.metrics for r in evidence.results}
    for arm in ("condensed", "random", "kmeans", "all"):
        names = [of[arm][f"auc_{name}"] for name in SMOKE.nets]
        assert of[arm]["auc"] == pytest.approx(sum(names) / 3)
        assert 0 <= min(names) <= max(names) <= 100
        assert of[arm]["rows"] == (256 if arm == "all" else 4)
        assert of[arm]["bytes"] == of[arm]["rows"] * 48 * 20 * 4
    for arm in ("condensed", "random", "kmeans", "all", "power", "lira"):
        assert 0 <= of[arm]["attack_auc"] <= 1
    assert of["random"]["nearest_train"] == 0  # they are training rows
    assert of["condensed"]["nearest_train"] > 0
    # A row that was never drawn changes nothing at all.
    assert 0 <= of["leave-one-out"]["change"] < of["leave-one-out"]["change_other_seed"]
    read = Evidence.read(evidence.write(kept))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]
    assert "condensed, seed 0: iteration 3 of 3" in seen


def test_checklist_11_four_privacy_items_and_no_claim(smoke):
    evidence = smoke[0]
    of = {r.arm: r.metrics for r in evidence.results}
    assert {"proximity_p", "proximity_p_textbook", "nearest_train"} <= set(of["condensed"])
    assert {"attack_auc", "attack_accuracy", "attack_tpr_at_1_fpr"} <= set(of["condensed"])
    assert {"change", "prediction_change"} <= set(of["leave-one-out"])
    text = " ".join([f.text for f in evidence.findings] + evidence.notes)
    assert "nothing formal is claimed" in text
    assert "Privacy, evidence" in text
    for word in ("guarantee", "differential", "anonym"):
        assert word not in text.lower()


def test_checklist_12_the_condensed_set_is_kept_with_its_provenance(smoke):
    _, kept, config, _ = smoke
    few = CondensedSet.load(kept / "condensed-0.safetensors")
    assert few.x.shape == (4, 48, 20)
    assert few.y.tolist() == [0, 0, 1, 1]
    wanted = {"ipc": 2, "seed": 0, "iterations": config.iterations}
    assert wanted.items() <= few.meta.items()
    assert "AR(1)" in few.meta["data"]
    assert few.normalizer is not None
    assert few.denormalize().shape == few.x.shape


def test_finished_work_is_reused_and_an_interrupted_condensation_goes_on(smoke, monkeypatch):
    evidence, kept, config, _ = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(kept.parents[2]))
    assert recipe.run(config).results == evidence.results
    monkeypatch.setattr(recipe, "train_network", nothing)  # nothing is trained again
    assert recipe.run(config).results == evidence.results
    few = CondensedSet.load(kept / "condensed-0.safetensors")
    (kept / "condensed-0.safetensors").unlink()
    monkeypatch.setattr(DistributionMatching, "_loss", nothing)  # the checkpoint is complete
    data = recipe.load_data(config)
    again = recipe.condensed_set(0, data, config, kept, nothing)
    assert torch.equal(again.x, few.x)


# --- arms ----------------------------------------------------------------------------------


def test_checklist_6_and_8_presets():
    paper = PRESETS["paper"]
    assert (paper.iterations, paper.lr, paper.real_batch) == (24_000, 1e-3, 256)
    assert paper.few == (40, 5e-4, 30)
    published = {"mimic3-ihm": (400, 5e-5, 20), "coswara": (40, 1e-4, 30)}
    for name, few in published.items():
        assert dataclasses.replace(paper, data=name).few == few
    assert (paper.nets, paper.inits, paper.batch) == (PAPER_NETS, 5, 64)
    assert len(set(paper.nets) - set(paper.pool)) == 8
    assert paper.shadows >= 16
    assert (DESK.iterations, DESK.lr, DESK.real_batch, DESK.few) == (
        1500,
        1e-2,
        128,
        (10, 5e-4, 30),
    )
    assert (DESK.seeds, DESK.inits, DESK.full_epochs) == ((0, 1, 2), 3, 6)
    assert set(DESK.nets) - set(DESK.pool) == {"RNN-desk"}
    assert (DESK.members, DESK.power_rows, DESK.power_epochs) == (1280, 200, 100)
    assert (DESK.left_out, DESK.left_out_iterations) == (5, 300)


@pytest.fixture(scope="module")
def data():
    return recipe.load_data(SMOKE)


def test_arms_of_one_seed_share_first_weights_and_random_rows_differ(data, monkeypatch):
    calls = []
    real = recipe.train_network

    def note(net, x, y, **settings):
        first = next(net.parameters()).detach().clone()
        training = real(net, x, y, **{**settings, "epochs": 1})
        calls.append((first, settings["seed"], x))
        return training

    monkeypatch.setattr(recipe, "train_network", note)
    config = dataclasses.replace(SMOKE, inits=2, nets=("LSTM-desk",))
    arms = {}
    for arm in ("random", "kmeans", "all"):
        calls.clear()
        ARMS[arm].measure(0, data, config, None, nothing)
        arms[arm] = list(calls)
    for other in ("kmeans", "all"):
        for one, two in zip(arms["random"], arms[other], strict=True):
            assert torch.equal(one[0], two[0])
            assert one[1] == two[1]
    assert not torch.equal(arms["random"][0][0], arms["random"][1][0])
    rows = [call[2] for call in arms["random"]]
    assert not torch.equal(rows[0], rows[1])  # another draw for every initialisation
    assert torch.equal(arms["kmeans"][0][2], arms["kmeans"][1][2])
    seeds = {recipe.init_seed(*where) for where in itertools.product(range(5), range(5), range(11))}
    assert len(seeds) == 5 * 5 * 11


def test_time_to_come_there_counts_rows_until_95_percent_of_the_own_best(data, monkeypatch):
    """By a curve written down: 0.95 * 0.80 = 0.76 comes third, 0.75 second or never."""
    curves = iter([
        Training([1, 2, 3, 4], [20, 40, 60, 80], [0.1, 0.2, 0.3, 0.4], [0.5, 0.755, 0.77, 0.8], 4),
        Training([1, 2], [20, 40], [0.1, 0.2], [0.6, 0.5], 1),
    ])  # fmt: skip
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48 * 20, 1))
    monkeypatch.setattr(recipe, "trained", lambda *_: (net, next(curves)))
    config = dataclasses.replace(SMOKE, inits=2, nets=("LSTM-desk",))
    sides = data.attack_rows(0)
    rows = (data.train[0][:4], data.train[1][:4])
    found, items = recipe.assess(lambda _: rows, 0, data, config, nothing, lambda _: sides)
    assert found["rows_95"] == (60 + 20) / 2
    assert found["steps_95"] == (3 + 1) / 2
    assert found["seconds_95"] == pytest.approx((0.3 + 0.1) / 2)
    assert (found["rows_75"], found["reached_75"]) == (40, 0.5)
    assert found["epoch_LSTM-desk"] == 2.5
    assert len(items["LSTM-desk"]) == 2
    assert found["auc_std"] == 0


def test_members_are_training_rows_with_the_class_counts_of_the_others(data):
    (inside, y_in), (outside, y_out) = data.attack_rows(0)
    assert len(y_in) == len(y_out) == 40
    assert y_in.sum() == y_out.sum()
    for side, split in ((inside, data.train[0]), (outside, data.test[0])):
        places = [int((split == row).flatten(1).all(1).nonzero()) for row in side]
        assert len(set(places)) == 40


def test_the_attack_must_succeed_on_rows_it_saw_for_long(data, monkeypatch):
    members = []
    real = recipe.membership_inference

    def note(net, inside, outside):
        members.append((inside, outside))
        return real(net, inside, outside)

    monkeypatch.setattr(recipe, "membership_inference", note)
    config = dataclasses.replace(SMOKE, nets=("TCN-desk", "LSTM-desk"), power_epochs=2)
    metrics, items = recipe.power(0, data, config, None, nothing)
    (inside, outside), = members  # fmt: skip
    assert abs(len(inside[1]) - 20) <= 1
    assert float(inside[1].float().mean()) == pytest.approx(
        float(outside[1].float().mean()), abs=0.03
    )
    assert metrics["attack_auc"] == items["attack_auc"][0]
    assert recipe.attack_net(config) == "LSTM-desk"
    blind = AttackReport(0.5, 0.01, 0.6, 0.02, 10, 10)
    able = dataclasses.replace(blind, auc=0.7)
    found = recipe.attack_metrics([blind, able])
    assert (found["attack_auc"], found["attack_accuracy"]) == (pytest.approx(0.6), 0.6)


# --- data ----------------------------------------------------------------------------------


def test_checklist_9_statistics_are_of_the_training_rows(data):
    x, y = recipe.simulated_stays()
    train = physionet2012.split(len(y))[0]
    mean, std = x[train].mean((0, 1)), x[train].std((0, 1))
    np.testing.assert_allclose(data.normalizer.mean, mean, atol=1e-5)
    np.testing.assert_allclose(data.normalizer.std, std, rtol=1e-4)
    expected = ((x[train] - mean) / (std + 1e-9)).clip(-10, 10)
    np.testing.assert_allclose(data.train[0], expected, atol=1e-4)
    assert [len(part[1]) for part in (data.train, data.val, data.test)] == [256, 64, 80]


def test_simulation_is_as_described():
    x, y = recipe.simulated_stays(2000)
    assert y.mean() == 0.14
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    slopes = [np.polyfit(np.arange(48), gap[:, k], 1)[0] for k in range(20)]
    assert min(slopes[:5]) > 0.04  # 3 / 47 per hour, blurred by the gaps
    assert max(map(abs, slopes[5:])) < 0.02
    same = (x[:, 1:] == x[:, :-1]).mean()  # a lost cell repeats the last value
    assert same == pytest.approx(0.8, abs=0.03)


def test_each_set_is_read_in_its_layout(tmp_path):
    mini.write_set(tmp_path / "physionet2012", "a", mini.some_stays(20))
    mini.write_set(tmp_path / "physionet2012", "b", mini.some_stays(20, 9000, seed=1))
    mini.write_mimic(tmp_path / "mimic3-ihm")
    mini.write_coswara(tmp_path / "coswara")
    small = dataclasses.replace(SMOKE, data_root=tmp_path, members=4, power_rows=2)
    for name, shape in (("physionet2012", (25, 48, 44)), ("mimic3-ihm", (12, 48, 60)),
                        ("coswara", (8, 96, 64))):  # fmt: skip
        data = recipe.load_data(dataclasses.replace(small, data=name))
        assert data.train[0].shape == shape
        assert not data.simulated
        assert (data.normalizer is None) == (name == "mimic3-ihm")  # (P): normalised already
        assert data.train[0].dtype == torch.float32
        assert len(data.features) == (44 if name == "physionet2012" else 0)
        if name == "coswara":
            assert abs(float(data.train[0].mean())) < 1e-3


def test_without_the_set_desk_says_in_one_sentence_how_to_get_it(tmp_path):
    with pytest.raises(FoveateError, match="--set data_root=FOLDER") as error:
        recipe.load_data(dataclasses.replace(DESK, data_root=tmp_path))
    assert "physionet.org" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"nets": ()}, {"nets": ("RNN-desk",)}, {"shadows": 3}, {"shadows": 2}, {"inits": 0},
     {"power_rows": 2000}, {"left_out": 0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        dataclasses.replace(DESK, **wrong)


# --- verdicts ------------------------------------------------------------------------------


def some_results(
    condensed=(75.0, 76.0, 77.0), random=(72.0, 73.0, 74.0), kmeans=(70.0, 70.0, 70.0),
    full=80.0, seen=77.0, unseen=73.0, rows=300.0, rows_all=3000.0,
    attack=(0.47, 0.5, 0.53), near=(0.06, 0.5, 0.9), strength=0.61,
) -> list[Result]:  # fmt: skip
    """Results that hold at the very limits of the rule."""
    nets = {"auc_TCN-desk": seen, "auc_LSTM-desk": seen, "auc_RNN-desk": unseen}
    found = [
        Result(
            "condensed",
            s,
            {
                "auc": a,
                "rows_95": rows,
                "attack_auc": b,
                "proximity_p_textbook": p,
                "proximity_p": 0.4,
                **nets,
            },
        )
        for s, (a, b, p) in enumerate(zip(condensed, attack, near, strict=True))
    ]
    found += [Result("random", s, {"auc": a}) for s, a in enumerate(random)]
    found += [Result("kmeans", s, {"auc": a}) for s, a in enumerate(kmeans)]
    found += [Result("power", s, {"attack_auc": strength}) for s in range(3)]
    whole = {"auc": full, "rows_95": rows_all} | dict.fromkeys(nets, full)
    return [*found, Result("all", 0, whole)]


def test_verdict_is_the_rule_of_the_specification():
    assert recipe.verdict(some_results(), DESK) == "reproduced"
    for broken in (
        {"random": (72.0, 73.1, 74.0)},  # 2.9 points under one seed
        {"full": 84.2},  # 75.67 / 84.2 is below 0.9
        {"unseen": 72.9},
        {"rows": 301.0},
    ):
        assert recipe.verdict(some_results(**broken), DESK) == "not reproduced", broken
    assert recipe.verdict(some_results(full=84.0), DESK) == "reproduced"  # 90.08 %
    # Beyond 8 points is another question: the rule does not ask it.
    far = some_results(full=83.9, condensed=(75.8,) * 3, random=(70.0,) * 3)
    assert recipe.verdict(far, DESK) == "reproduced"
    assert recipe.findings(far, DESK)[4].verdict == "not reproduced"


def test_verdict_wants_three_seeds_and_all_arms():
    assert recipe.verdict([r for r in some_results() if r.seed < 2], DESK) == "inconclusive"
    for gone in ("condensed", "random", "all"):
        left = [r for r in some_results() if r.arm != gone]
        assert recipe.verdict(left, DESK) == "inconclusive"
    for nan in ({"rows": math.nan}, {"full": math.nan}, {"condensed": (math.nan, 80.0, 80.0)}):
        assert recipe.verdict(some_results(**nan), DESK) == "inconclusive"
    assert recipe.verdict([], DESK) == "inconclusive"
    assert {f.verdict for f in recipe.findings([], DESK)} == {"inconclusive"}


def test_findings_are_the_parts_of_the_rule_and_more():
    def verdicts(**other) -> list[str]:
        return [f.verdict for f in recipe.findings(some_results(**other), DESK)]

    assert verdicts() == ["reproduced"] * 8
    breaking = (
        {"random": (70.0, 73.5, 70.0)},
        {"full": 85.0, "seen": 76.0},
        {"unseen": 60.0, "full": 74.0},
        {"rows_all": 100.0},
        {"full": 84.1, "seen": 80.0, "unseen": 79.0},
        {"kmeans": (99.0,) * 3},
        {"attack": (0.5, 0.5, 0.56)},
    )
    for place, broken in enumerate(breaking):
        assert verdicts(**broken)[place] == "not reproduced", broken
    assert "3.0 in the worst" in recipe.findings(some_results(), DESK)[0].text


def test_privacy_verdict_needs_an_able_attack_and_every_seed():
    assert recipe.privacy_verdict(some_results()) == "reproduced"
    assert recipe.privacy_verdict(some_results(strength=0.6)) == "inconclusive"
    assert recipe.privacy_verdict(some_results(strength=math.nan)) == "inconclusive"
    assert recipe.privacy_verdict(some_results(attack=(0.5, 0.531, 0.5))) == "not reproduced"
    assert recipe.privacy_verdict(some_results(attack=(0.469, 0.5, 0.5))) == "not reproduced"
    assert recipe.privacy_verdict(some_results(near=(0.5, 0.05, 0.5))) == "not reproduced"
    assert recipe.privacy_verdict(some_results(near=(0.5, math.nan, 0.5))) == "inconclusive"
    assert recipe.privacy_verdict(some_results()[:2]) == "inconclusive"
    # It is no part of the main verdict.
    assert recipe.verdict(some_results(attack=(0.9,) * 3), DESK) == "reproduced"


def test_remarks_tell_volume_control_and_the_unfinished_arm():
    results = some_results()
    results[-1].metrics.update({"bytes": 43e6, "epoch_TCN-desk": 6.0})
    results[0].metrics["bytes"] = 169e3
    said = " ".join(recipe.remarks(results, DESK))
    assert "169 kB in place of 43.0 MB" in said
    assert "of 6: TCN-desk 6.0" in said
    assert "theorem is not known" in said
