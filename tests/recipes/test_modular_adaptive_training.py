"""The recipe end to end on a miniature, its arms, its curves and its verdicts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.learning.modular import AllOf, QuantileThreshold, RatioThreshold
from foveate.recipes import modular_adaptive_training as recipe
from foveate.recipes.modular_adaptive_training import PRESETS, TRAINED, Config
from foveate.report.evidence import Evidence, Result
from make_miniatures import images as mini

SMOKE = PRESETS["smoke"]
INF, NAN = math.inf, math.nan


def write_fashion(folder, train: int = 150, test: int = 40) -> Config:
    mini.write_mnist(
        folder / "fashion-mnist", [k % 10 for k in range(train)], [k % 10 for k in range(test)]
    )
    return dataclasses.replace(SMOKE, data_root=folder)


def quiet(what: str) -> None:
    pass


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    config = write_fashion(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        yield recipe.run(config), folder, config


def by_arm(evidence: Evidence) -> dict[str, Result]:
    return {r.arm: r for r in evidence.results}


def test_smoke_trains_every_arm_on_the_real_layout(smoke):
    evidence, folder, _ = smoke
    assert [r.arm for r in evidence.results] == [*TRAINED, "freeze-one"] == list(evidence.arms)
    assert not evidence.simulated
    assert evidence.data == "Fashion-MNIST, 80 training, 40 validation and 40 test pictures"
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    for arm in TRAINED:
        result = by_arm(evidence)[arm]
        curves = {name: result.items[name] for name in ("tflops", "validation", "loss", "active")}
        assert [len(curve) for curve in curves.values()] == [4, 4, 3, 3]
        assert curves["tflops"] == sorted(set(curves["tflops"]))
        assert curves["tflops"][0] == 0
        assert result.metrics["validation_accuracy"] == curves["validation"][-1]
        assert result.metrics["tflops"] == curves["tflops"][-1]
        assert result.metrics["train_seconds"] > 0, "wall clock stands beside FLOPs"
        assert result.seconds > 0
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]
    assert len(evidence.findings) == 5


def test_arms_share_everything_up_to_the_first_choice(smoke):
    """Weights, pictures, all modules in the warm-up: the first epoch is one and the same."""
    results = by_arm(smoke[0])
    full = results["full"].items
    for arm in TRAINED[1:]:
        other = results[arm].items
        assert other["validation"][:2] == full["validation"][:2]
        assert other["loss"][0] == full["loss"][0]
        assert other["loss"][1] != full["loss"][1]
    assert len({results[arm].items["loss"][2] for arm in TRAINED}) == 4


def test_controls_have_as_many_active_modules(smoke):
    """Checklist 10: equal numbers in every epoch, of other modules."""
    results = by_arm(smoke[0])
    modules = 2 * 4  # one block of 4 heads and 4 groups
    assert results["mat"].items["active"] == [modules, 3, 3]
    for arm in ("random", "smallest"):
        assert results[arm].items["active"] == results["mat"].items["active"]
    assert results["full"].items["active"] == [modules] * 3
    assert results["mat"].metrics["mean_active"] == 3 / 8


def test_flops_are_those_executed_measurements_included(smoke):
    """Checklist 8: full training by torch's counter; `random` and `full` measure nothing."""
    evidence, _, config = smoke
    results = by_arm(evidence)
    net = recipe.network(config, (1, 28, 28))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 28, 28)).sum().backward()
    steps = {arm: np.diff(results[arm].items["tflops"]) for arm in TRAINED}
    assert steps["full"] == pytest.approx([80 * counter.get_total_flops() / 1e12] * 3)
    share = {arm: results[arm].metrics["measuring"] for arm in TRAINED}
    assert share["full"] == share["random"] == 0
    assert share["mat"] > 0
    assert share["smallest"] > 0
    assert steps["random"][0] == pytest.approx(steps["full"][0])
    assert steps["random"][1] < steps["full"][1]
    assert steps["mat"][0] > steps["full"][0], "a measurement, and nothing saved yet"
    measured = steps["mat"][0] - steps["full"][0]
    assert 3 * measured == pytest.approx(share["mat"] * results["mat"].metrics["tflops"])


def test_eigenvalues_of_every_module_and_epoch_are_kept(smoke):
    items = by_arm(smoke[0])["mat"].items
    curves = [row for name, row in items.items() if name.startswith("lambda blocks.0.")]
    assert len(curves) == 8
    assert all(len(row) == 3 and min(row) > 0 for row in curves)
    assert not any(name.startswith("lambda") for name in by_arm(smoke[0])["random"].items)


def test_finished_work_is_reused(smoke, monkeypatch):
    evidence, folder, config = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    trained: list[str] = []
    real = recipe.train
    monkeypatch.setattr(
        recipe, "train", lambda arm, *rest: (trained.append(arm), real(arm, *rest))[1]
    )
    assert recipe.run(config).results == evidence.results
    assert trained == []
    (kept,) = (folder / "runs" / "modular-adaptive-training").iterdir()
    (kept / "random-0.json").unlink()
    again = recipe.run(config)
    assert trained == ["random"]
    assert by_arm(again)["random"].items == by_arm(evidence)["random"].items


# --- training ------------------------------------------------------------------------------


def a_config(tmp_path, **other) -> Config:
    return dataclasses.replace(write_fashion(tmp_path), **other)


def test_trials_leave_no_trace_in_training(tmp_path):
    """Weights, optimiser, schedule, freezing are put back: later epochs are as without trials."""
    config = a_config(tmp_path, trial_epochs=(0, 2))
    data = recipe.load_data(config)
    metrics, items = recipe.freeze_one(0, data, config, quiet)
    alone = dataclasses.replace(config, trial_epochs=(2,))
    assert recipe.freeze_one(0, data, alone, quiet)[1] == {
        name: row for name, row in items.items() if name.endswith(" 2")
    }
    assert set(metrics) == {"spearman_0", "spearman_2"}
    assert {name: len(row) for name, row in items.items()} == {
        "lambda 0": 4, "missed 0": 4, "lambda 2": 4, "missed 2": 4,
    }  # fmt: skip
    assert all(gap != 0 for gap in items["missed 2"])


def test_missed_loss_is_that_of_the_frozen_head(tmp_path):
    """Two steps by hand, with and without the first head."""
    config = a_config(tmp_path, trial_epochs=(0,))
    data = recipe.load_data(config)
    losses = []
    for freeze in (False, True):
        training = recipe.start(0, data, config)
        head = next(iter(training.partition))
        if freeze:
            training.partition.apply(set(training.partition) - {head})
        order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
        for chosen in (order[:16], order[16:32]):
            training.step(data.prepare(data.train.images[chosen]), data.train.labels[chosen])
        training.net.eval()
        with torch.no_grad():
            y = training.net(data.prepare(data.train.images))
        losses.append(float(F.cross_entropy(y, data.train.labels)))
    _, items = recipe.freeze_one(0, data, config, quiet)
    assert items["missed 0"][0] == pytest.approx(losses[1] - losses[0], rel=1e-3, abs=1e-7)


def test_a_run_that_diverges_is_nan_and_proves_nothing(tmp_path):
    config = a_config(tmp_path, lr=1e20, optimizer="sgd", trial_epochs=())
    metrics, items = recipe.train("full", 0, [], recipe.load_data(config), config, quiet)
    assert math.isnan(metrics["test_accuracy"])
    assert math.isnan(items["validation"][-1])
    rows = [Result(arm, seed, metrics, 0.0, items) for arm in TRAINED for seed in range(3)]
    assert recipe.verdict(recipe.compared(rows)) == "inconclusive"
    assert recipe.findings(rows)[0].verdict == "inconclusive"


def test_convolutional_networks_have_their_modules(tmp_path):
    """Model B: 24 modules of filters; VGG16 has 13 convolutions."""
    config = a_config(tmp_path, network="vgg-mini", optimizer="sgd", epochs=1, trial_epochs=())
    data = recipe.load_data(config)
    assert len(recipe.start(0, data, config).partition) == 24
    metrics, _ = recipe.train("mat", 0, [], data, config, quiet)
    assert metrics["loss"] < 5
    with torch.device("meta"):
        vgg = recipe.network(PRESETS["paper"], (3, 32, 32))
        assert vgg(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in vgg) == 13


def test_policies_of_the_arms():
    desk, paper = PRESETS["desk"], PRESETS["paper"]
    lam = {str(i): float(i) for i in range(32)}
    mat = recipe.policy_of("mat", [], 32, 0, desk)
    assert isinstance(mat, QuantileThreshold)
    assert mat(lam, [], 1) == {str(i) for i in range(19, 32)}, "13 of 32, 0.4"
    assert recipe.policy_of("full", [], 32, 0, desk)(lam, [], 1) == set(lam)
    counts = [32, 5, 7]
    for step in (1, 2):
        smallest = recipe.policy_of("smallest", counts, 32, 0, desk)(lam, [], step)
        assert smallest == {str(i) for i in range(counts[step])}
        random = [recipe.policy_of("random", counts, 32, s, desk)(lam, [], step) for s in (0, 1)]
        assert [len(r) for r in random] == [counts[step]] * 2
        assert random[0] != random[1]
    both = recipe.policy_of("mat", [], 32, 0, paper)
    assert isinstance(both, AllOf)
    assert both.policies[0].alpha == 0.2
    ratio = recipe.policy_of("mat", [], 32, 0, dataclasses.replace(paper, beta=0.0))
    assert isinstance(ratio, RatioThreshold)


def test_varied_pictures_are_shifted_and_half_of_them_mirrored():
    x = torch.randn(64, 2, 6, 6)
    y = recipe.varied(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    mirrored, shifts = 0, set()
    for before, after in zip(x, y, strict=True):
        found = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.equal(
                F.pad(before.flip(-1) if flip else before, (4,) * 4)[
                    :, top : top + 6, left : left + 6
                ],
                after,
            )
        ]
        assert found
        mirrored += found[0][0]
        shifts.add(found[0][1:])
    assert 16 < mirrored < 48
    assert len(shifts) > 20


# --- data ----------------------------------------------------------------------------------


def test_split_is_balanced_disjoint_fixed_and_blind_to_the_test_set(tmp_path):
    config = write_fashion(tmp_path, train=200)
    data = recipe.load_data(config)
    for part, per_class in ((data.train, 8), (data.validation, 4)):
        assert torch.bincount(part.labels).tolist() == [per_class] * 10
    pictures = [
        {p.numpy().tobytes() for p in part.images} for part in (data.train, data.validation)
    ]
    assert len(pictures[0]) == 80
    assert not pictures[0] & pictures[1]
    mini.write_mnist(tmp_path / "fashion-mnist", [k % 10 for k in range(200)], [9, 9, 9])
    other = recipe.load_data(config)
    assert torch.equal(other.train.images, data.train.images)
    assert torch.equal(other.mean, data.mean)
    x = data.prepare(data.train.images)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    probe = data.probe(6)
    assert torch.equal(probe, data.probe(6)), "checklist 9: one probe, of training pictures"
    assert {p.numpy().tobytes() for p in probe} <= {p.numpy().tobytes() for p in x}
    everything = recipe.load_data(dataclasses.replace(config, per_class=0))
    assert len(everything.train) == 200 - 40


def test_cifar_is_taken_where_fashion_mnist_is_absent(tmp_path):
    folder = tmp_path / "images"
    mini.write_cifar10_npz(folder / "cifar10_data_batch_1.npz", [k % 10 for k in range(120)])
    mini.write_cifar10_npz(folder / "cifar10_test_batch.npz", [k % 10 for k in range(20)])
    data = recipe.load_data(dataclasses.replace(SMOKE, data_root=tmp_path))
    assert data.what == "CIFAR-10, 80 training, 40 validation and 20 test pictures"
    assert recipe.network(SMOKE, data.train.images.shape[1:])(
        data.prepare(data.test.images)
    ).shape == (20, 10)


def test_without_a_set_smoke_draws_stripes_and_desk_says_how_to_get_one(tmp_path):
    data = recipe.load_data(dataclasses.replace(SMOKE, data_root=tmp_path))
    assert data.simulated
    assert data.what.startswith("drawn stripes, 80 training")
    assert torch.bincount(data.train.labels).tolist() == [8] * 10
    with pytest.raises(FoveateError, match="--set data_root=FOLDER") as error:
        recipe.load_data(dataclasses.replace(PRESETS["desk"], data_root=tmp_path))
    assert "dataset-fashion-mnist" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"active": 0.0}, {"active": 1.1}, {"probe": 0}, {"per_class": -1},
              {"trial_epochs": (4,)}, {"trial_epochs": (-1,)}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        dataclasses.replace(SMOKE, **wrong)


# --- curves --------------------------------------------------------------------------------


def test_curves_are_linear_between_epochs():
    flops, accuracy = [0.0, 2.0, 3.0, 7.0], [10.0, 50.0, 40.0, 80.0]
    for target, at in (
        (5, 0),
        (10, 0),
        (30, 1),
        (50, 2),
        (51, 4.1),
        (80, 7),
        (81, INF),
        (NAN, INF),
    ):
        assert recipe.first_reached(flops, accuracy, target) == pytest.approx(at)
    # Trapezia: 60, 45, then 40 -> 50 over one unit.
    assert recipe.area(flops, accuracy, 4.0) == pytest.approx((60 + 45 + 45) / 4)
    assert recipe.area(flops, accuracy, 7.0) == pytest.approx((60 + 45 + 240) / 7)
    assert math.isnan(recipe.area([0.0], [1.0], 0.0))


@given(steps=st.lists(st.floats(0.1, 5), min_size=1, max_size=8), share=st.floats(0.05, 1))
def test_area_of_a_straight_line_is_half_its_end(steps, share):
    flops = [0.0, *np.cumsum(steps).tolist()]
    limit = share * flops[-1]
    assert recipe.area(flops, [3 * f for f in flops], limit) == pytest.approx(1.5 * limit)
    assert recipe.area(flops, [7.0] * len(flops), limit) == pytest.approx(7)


def curve(arm: str, seed: int, flops: list[float], accuracy: list[float]) -> Result:
    metrics = {"validation_accuracy": accuracy[-1], "test_accuracy": accuracy[-1] - 2}
    return Result(arm, seed, metrics, 0.0, {"tflops": flops, "validation": accuracy})


def test_arms_are_compared_within_their_seed_over_common_flops():
    rows = [
        curve("full", 0, [0, 10, 20], [10, 70, 81]),  # target 80: at 10 + 10 * 10 / 11
        curve("mat", 0, [0, 5, 10], [10, 70, 80]),
        curve("random", 0, [0, 5, 9], [10, 60, 79]),
        curve("full", 1, [0, 10], [0, 50]),
        Result("freeze-one", 0, {"spearman_1": 0.5}),
    ]
    of = {(r.arm, r.seed): r.metrics for r in recipe.compared(rows)}
    assert of["full", 0]["tflops_to_target"] == pytest.approx(10 + 100 / 11)
    assert of["full", 0]["cost"] == 1
    assert of["mat", 0]["cost"] == pytest.approx(10 / (10 + 100 / 11))
    assert of["random", 0]["cost"] == INF
    # All areas end where the cheapest arm does, at 9: of `mat` 5 * 40 + 4 * (70 + 78) / 2.
    assert of["mat", 0]["area"] == pytest.approx((200 + 296) / 9)
    assert of["full", 0]["area"] == pytest.approx((10 + 64) / 2)
    assert of["full", 1]["tflops_to_target"] == pytest.approx(9.8)
    assert of["freeze-one", 0] == {"spearman_1": 0.5}


# --- verdicts ------------------------------------------------------------------------------


def results(**metrics: dict[str, list[float]]) -> list[Result]:
    """Arm -> metric -> value of each seed; what is not given holds exactly at its limit."""
    rows: dict[str, dict[str, list[float]]] = {
        "full": {"cost": [1.0] * 3, "area": [60.0] * 3, "test_accuracy": [80.0, 81.0, 82.0]},
        "mat": {"cost": [0.6, 0.7, 0.8], "area": [61.0, 62.0, 63.0],
                "test_accuracy": [81.0, 81.0, 81.0], "returned": [3.0, 1.0, 2.0]},
        "random": {"cost": [0.8] * 3, "area": [62.0, 62.0, 62.0]},
        "smallest": {"cost": [0.9] * 3, "area": [60.9, 61.9, 62.9]},
    }  # fmt: skip
    for arm, own in metrics.items():
        rows[arm] = {**rows[arm], **own}
    return [
        Result(arm, seed, {name: row[seed] for name, row in own.items() if seed < len(row)})
        for arm, own in rows.items()
        for seed in range(3)
    ]


def test_verdict_is_the_rule_of_the_specification():
    """Cost at most 0.7 in the mean; above the smallest always; not below random in the mean."""
    assert recipe.verdict(results()) == "reproduced"  # at the very limits
    for arm, row in (
        ("mat", {"cost": [0.6, 0.7, 0.81]}),
        ("mat", {"cost": [0.1, 0.1, INF]}),  # one that never gets there fails
        ("smallest", {"area": [50.0, 50.0, 63.0]}),  # a tie under one seed
        ("random", {"area": [61.0, 62.0, 63.1]}),
    ):
        assert recipe.verdict(results(**{arm: row})) == "not reproduced", (arm, row)
    assert recipe.verdict(results(random={"area": [70.0, 58.0, 58.0]})) == "reproduced"


def test_verdict_wants_three_seeds_and_all_arms():
    assert recipe.verdict([]) == "inconclusive"
    assert recipe.verdict([r for r in results() if r.seed < 2]) == "inconclusive"
    for gone in TRAINED[1:]:
        assert recipe.verdict([r for r in results() if r.arm != gone]) == "inconclusive"
    assert recipe.verdict(results(random={"area": [NAN, 1.0, 1.0]})) == "inconclusive"
    assert recipe.verdict(results(mat={"cost": [0.1, NAN, 0.1]})) == "inconclusive"


def test_accuracy_must_not_be_lower_however_little():
    def finding(**row: list[float]) -> str:
        return recipe.findings(results(mat={"test_accuracy": row["mat"]}))[0].verdict

    assert finding(mat=[81.0, 81.0, 81.0]) == "reproduced"  # equal in the mean
    assert finding(mat=[90.0, 81.0, 73.0]) == "reproduced"
    assert finding(mat=[81.0, 81.0, 80.99]) == "not reproduced"
    assert finding(mat=[81.0, 81.0]) == "inconclusive"


def test_a_tie_with_random_is_a_negative_result():
    tie = results(random={"area": [61.0, 62.0, 63.0]})
    assert recipe.findings(tie)[1].verdict == "not reproduced"
    assert recipe.findings(results(random={"area": [60.0] * 3}))[1].verdict == "reproduced"


def test_third_number_spread_and_re_entry_have_their_verdicts():
    def verdicts(ranks: list[float], rows: list[list[float]], back: list[float]) -> list[str]:
        items = {f"lambda blocks.0.attn.heads.{i}": row for i, row in enumerate(rows)}
        items["lambda blocks.0.mlp.groups.0"] = [1e9] * len(rows[0])
        found = [Result("freeze-one", 0, {f"spearman_{i}": r for i, r in enumerate(ranks)})]
        found += [Result("mat", s, {"returned": n}, 0.0, items) for s, n in enumerate(back)]
        return [finding.verdict for finding in recipe.findings(found)[2:]]

    wide = [[1.0, 100.0], [10.0, 1.0], [20.0, 50.0]]
    assert verdicts([0.5, 0.4, 0.5], wide, [1, 2, 1]) == ["reproduced"] * 3
    assert verdicts([0.5, 0.3, 0.4], [[1.0, 1.0], [2.0, 2.0]], [1, 0, 1]) == ["not reproduced"] * 3
    assert verdicts([NAN], [[1.0, 1.0], [1.0, 1.0]], [1, 1]) == ["inconclusive"] * 3
    assert [f.verdict for f in recipe.findings([])] == ["inconclusive"] * 5
    assert recipe.remarks([]) == []


def test_published_figures_are_marked_as_second_hand():
    """Checklist 12: what is unknown is not presented as published."""
    assert recipe.CLAIM.certainty == "R"
    assert "not known to us" in recipe.__doc__
    assert "not built" in recipe.__doc__
