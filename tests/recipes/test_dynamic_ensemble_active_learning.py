"""The recipe end to end on sets of scikit-learn, its arms, its simulation and its verdicts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.learning.active import ALBL, DEAL, SingleExpert, UniformMixture, pool_task
from foveate.learning.bandits import REXP4
from foveate.recipes import dynamic_ensemble_active_learning as recipe
from foveate.recipes.dynamic_ensemble_active_learning import (
    BUNDLED,
    KEEL,
    PRESETS,
    SINGLES,
    STRATEGIES,
    Config,
)
from foveate.report.evidence import Evidence, Result
from make_miniatures import images as mini

SMOKE = PRESETS["smoke"]
SETS = tuple(f"set-{k}" for k in range(9))


@pytest.fixture(autouse=True)
def no_tables_at_home(monkeypatch, tmp_path_factory):
    """The user's data folder must not change a test either."""
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path_factory.getbasetemp() / "nothing"))


def some_results(seeds: int = 20, sets=SETS, noise: float = 0.5, **means) -> list[Result]:
    """A claim that holds: each single criterion fails on one set, DEAL is 1 above the mixture.

    `means`: arm -> mean ALC, of all sets or set by set.
    """
    rows = {arm: np.full(len(sets), 80.0) for arm in STRATEGIES}
    for k, arm in enumerate(SINGLES):
        rows[arm][k] = 70.0
    rows["uniform"] -= 2
    rows["rexp4"] -= 1
    for arm, value in means.items():
        rows[arm] = np.broadcast_to(np.asarray(value, float), len(sets))
    rng = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        shared = rng.normal(0, 5, len(sets))  # the split: the same for all arms
        for arm in STRATEGIES:
            alc = rows[arm] + shared + rng.normal(0, noise, len(sets))
            metrics = {"alc": alc.mean(), **dict(zip(sets, alc.tolist(), strict=True))}
            items = {f"thirds-{name}": [50.0, 60.0, 70.0, 75.0] for name in sets}
            found.append(Result(arm, seed, metrics, 1.0, items))
    return found


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke scale with pictures of a miniature."""
    data = tmp_path_factory.mktemp("data")
    labels = [0, 6] * 8 + [1, 2]
    mini.write_mnist(data / "fashion-mnist", labels, labels[:9])
    config = dataclasses.replace(
        SMOKE, data_root=data, vision_repetitions=1, vision_pool=10, vision_budget=3
    )
    folder = tmp_path_factory.mktemp("foveate")
    seen: dict[str, list[recipe.Job]] = {}
    play = recipe.session
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        patch.setattr(
            recipe, "session", lambda job: (seen.setdefault(job.arm, []).append(job), play(job))[1]
        )
        evidence = recipe.run(config)
    return evidence, folder, config, seen


def test_smoke_runs_every_arm_and_proves_nothing(smoke):
    evidence, folder, _, _ = smoke
    assert [r.arm for r in evidence.results] == [*STRATEGIES, "simulation", "vision"]
    assert evidence.verdict == "inconclusive"
    assert {f.verdict for f in evidence.findings} == {"inconclusive"}
    assert not evidence.simulated  # the tables are real; the simulated arm says what it is
    assert all(f.text.startswith("Simulated:") for f in evidence.findings)
    assert evidence.data == "2 sets of scikit-learn, 3 labels each (arm simulation: simulated)"
    of = {r.arm: r for r in evidence.results}
    for arm in STRATEGIES:
        metrics = of[arm].metrics
        assert set(metrics) == {"alc", "breast_cancer", "wine"}
        assert metrics["alc"] == pytest.approx((metrics["breast_cancer"] + metrics["wine"]) / 2)
        assert 30 < metrics["alc"] <= 100
    # line 12: the trust in every criterion and the restarts are in the evidence
    trust = [of["rexp4"].items[f"trust-{name}"] for name in SINGLES.values()]
    assert np.sum(trust, axis=0) == pytest.approx(np.ones(3), abs=1e-3)
    assert of["rexp4"].items["restarts"] == [0]
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]


def test_all_arms_have_the_same_splits_first_labels_and_logged_seeds(smoke):
    """Line 10."""
    evidence, _, _, seen = smoke
    assert set(seen) == set(STRATEGIES)
    for arm in STRATEGIES[1:]:
        for job, other in zip(seen[arm], seen["us"], strict=True):
            assert (job.budget, job.seed) == (other.budget, other.seed)
            for field in dataclasses.fields(job.task):
                assert np.array_equal(
                    getattr(job.task, field.name), getattr(other.task, field.name)
                )
    assert {r.seed for r in evidence.results} == {0}
    assert evidence.config["seeds"] == (0,)


def test_finished_work_is_reused(smoke, monkeypatch):
    evidence, folder, config, _ = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    monkeypatch.setattr(recipe, "session", None)
    again = recipe.run(dataclasses.replace(config, workers=3))  # workers change no number
    assert again.results == evidence.results


def test_another_process_plays_what_this_one_plays():
    job = recipe.Job("dff", pool_task(*recipe.bundled_set("wine"), 0), 3, 0.1, 10, "logistic", 0)
    curves = []
    for workers in (1, 2):
        with recipe.sessions(workers) as play:
            curves += play([job])
    assert np.array_equal(curves[0].accuracy, curves[1].accuracy)
    assert np.array_equal(curves[0].queried, curves[1].queried)


def test_arms_are_what_they_are_called():
    x, y = recipe.bundled_set("wine")
    task = pool_task(x, y, 0)
    of = {arm: recipe.strategy(recipe.Job(arm, task, 60, 0.1, 10, "svm", 0)) for arm in STRATEGIES}
    assert all(isinstance(of[arm], SingleExpert) for arm in SINGLES)
    assert isinstance(of["uniform"], UniformMixture)
    assert isinstance(of["albl"], ALBL)
    assert (of["exp4"].bandit.restart, of["rexp4"].bandit.restart) == (None, 10)
    for arm in ("exp4", "rexp4"):
        assert type(of[arm]) is DEAL
        assert (of[arm].bandit.k_eff, of[arm].bandit.gamma, of[arm].reward) == (
            "advised",
            0.1,
            "iwa",
        )
    assert all(list(of[a].experts) == list(SINGLES.values()) for a in ("uniform", "albl", "rexp4"))
    assert all(strategy.estimator.kernel == "linear" for strategy in of.values())


def test_presets_are_those_of_the_experiment():
    desk = PRESETS["desk"]
    assert (desk.budget, desk.gamma, desk.restart, len(desk.seeds)) == (60, 0.1, 10, 20)
    assert (len(KEEL), desk.rounds, desk.vision_budget, desk.vision_repetitions) == (
        13,
        2000,
        100,
        5,
    )


# --- simulation ----------------------------------------------------------------------------


def test_simulated_bandit_restarts_pay_when_the_good_arm_changes():
    runs = [recipe.simulated_bandit(2000, seed) for seed in range(2)]
    at = {name: np.mean([run[name] for run in runs]) for name in recipe.REGRETS}
    assert at["rexp4-switching"] < 0.95 * at["exp4-switching"]
    assert at["rexp4-switching"] < 0.95 * at["exp4-same-gamma-switching"]
    assert at["exp4-still"] < at["rexp4-still"]


def test_regret_by_hand():
    """One expert, always on arm 0: p is known, so are the arms that are drawn."""
    advice, means = np.array([[1.0, 0.0]]), np.array([[0.8, 0.2], [0.1, 0.6], [0.5, 0.4]])
    chance = np.array([0.95, 0.89, 0.999])  # p = 0.9, 0.1
    found = recipe.regret(REXP4(1, 0.2), advice, means, np.ones((3, 2)), chance)
    assert found == pytest.approx((0.8 - 0.2) + (0.1 - 0.1) + (0.5 - 0.4))


def test_simulation_findings():
    def found(rexp4: float, own: float, same: float, seeds: int = 20, still=(500, 200)):
        values = dict(zip(recipe.REGRETS, (rexp4, own, same, *still), strict=True))
        rows = [Result("simulation", seed, values) for seed in range(seeds)]
        return [f.verdict for f in recipe.simulation_findings(rows)]

    assert found(95, 100, 100) == ["reproduced", "reproduced"]
    assert found(96, 100, 110) == ["not reproduced", "reproduced"]
    assert found(95, 110, 99) == ["not reproduced", "reproduced"]
    assert found(95, 100, 100, still=(200, 500)) == ["reproduced", "not reproduced"]
    assert found(95, 100, 100, seeds=19) == ["inconclusive"] * 2


# --- verdicts ------------------------------------------------------------------------------


def verdicts(results, sets=SETS) -> tuple[str, list[str]]:
    return recipe.verdict(results, sets), [f.verdict for f in recipe.findings(results, sets)[:3]]


def test_a_claim_that_holds():
    assert verdicts(some_results()) == ("reproduced", ["reproduced"] * 3)


def test_too_few_repetitions_or_sets_or_a_missing_number_decide_nothing():
    assert verdicts(some_results(seeds=19)) == ("inconclusive", ["inconclusive"] * 3)
    assert verdicts(some_results(sets=SETS[:7]), SETS[:7])[0] == "inconclusive"
    assert verdicts(some_results(sets=SETS[:8]), SETS[:8])[0] == "reproduced"
    results = some_results()
    results[5].metrics["set-3"] = math.nan
    assert recipe.verdict(results, SETS) == "inconclusive"
    lost = [r for r in some_results() if (r.arm, r.seed) != ("albl", 7)]
    assert recipe.verdict(lost, SETS) == "inconclusive"


def test_rule_one_is_a_wilcoxon_test_over_sets():
    mixture = np.full(9, 78.0)
    assert verdicts(some_results(rexp4=77.5))[1][0] == "not reproduced"
    assert verdicts(some_results(rexp4=77.5))[0] == "not reproduced"
    # five up by 2 and four down by 1: the right sign, and no significance
    mixed = mixture + np.array([2, 2, 2, 2, 2, -1, -1, -1, -1])
    assert verdicts(some_results(rexp4=mixed, albl=70.0)) == (
        "inconclusive", ["inconclusive", "reproduced", "reproduced"]
    )  # fmt: skip
    gain, p, wins = recipe.against_uniform(some_results(noise=1e-9), SETS)
    assert (gain, wins) == (pytest.approx(1), 9)
    assert p == pytest.approx(2**-9)  # nine signs up, the rarest of all


def test_rule_two_worst_by_more_than_one_standard_error():
    low = np.full(9, 79.0)
    low[4] = 77.0  # lowest on one set, all others at 78 or more
    assert verdicts(some_results(rexp4=low)) == (
        "not reproduced", ["reproduced", "not reproduced", "reproduced"]
    )  # fmt: skip
    assert recipe.worst_on(some_results(rexp4=low), SETS) == ["set-4"]
    wide = some_results(rexp4=low, noise=30)  # standard error 30 sqrt(2 / 20) = 9.5
    assert "set-4" not in recipe.worst_on(wide, SETS)


def test_rule_three_near_the_best_where_single_criteria_are_not():
    far = np.full(9, 79.0)
    far[8] = 75.0  # five points behind, and not the worst
    lower = np.full(9, 78.0)
    lower[8] = 74.0
    results = some_results(rexp4=far, uniform=lower, albl=70.0)
    assert verdicts(results) == ("not reproduced", ["reproduced", "reproduced", "not reproduced"])
    two = some_results(us=80.0, dens=80.0)  # only DFF and RAND fail anywhere
    assert verdicts(two)[1] == ["reproduced", "reproduced", "not reproduced"]
    three = some_results(us=80.0)
    assert verdicts(three)[0] == "reproduced"
    behind = recipe.behind_best(some_results(noise=1e-9), SETS)
    assert behind["us"] == pytest.approx(10)
    assert behind["rexp4"] == pytest.approx(1)


def test_rule_four_finds_a_best_criterion_that_changes():
    results = some_results()
    rng = np.random.default_rng(1)
    for result in results:
        for k, name in enumerate(SETS):
            gains = rng.normal(5, 0.2, 3)
            if result.arm == "dens":
                gains[0] += 3  # density first
            if result.arm == "us" and k < 5:
                gains[1:] += 3  # doubt later, on five sets of nine
            if result.arm == "dens" and k >= 5:
                gains[1:] += 3
            result.items[f"thirds-{name}"][:] = [50.0, *(50 + np.cumsum(gains))]
    winners, clear = recipe.changes(results, SETS)
    assert winners["set-0"] == ["dens", "us", "us"]
    assert winners["set-8"] == ["dens"] * 3
    assert clear == 5
    found = recipe.findings(results, SETS)[3]
    assert found.verdict == "reproduced"
    assert "on 5 of 9 sets" in found.text
    equal = recipe.findings(some_results(), SETS)[3]  # nobody leads: nothing changes
    assert equal.verdict == "not reproduced"


def test_notes_tell_what_has_no_verdict():
    notes = " ".join(recipe.remarks(some_results(noise=0.01), SETS))
    assert "DEAL minus EXP4 -1.00 points" in notes
    assert "uniform 9/0/0" in notes  # wins, ties, losses
    assert "exp4 0/0/9" in notes
    assert "Mean rank" in notes


# --- data ----------------------------------------------------------------------------------


def test_without_the_tables_desk_says_how_to_get_them(tmp_path):
    config = dataclasses.replace(PRESETS["desk"], data_root=tmp_path)
    with pytest.raises(FoveateError, match="--set data_root=FOLDER") as error:
        recipe.run(config)
    assert "--set data=scikit-learn" in str(error.value)
    assert "\n" not in str(error.value)


def test_scikit_learns_sets_are_eight_and_large_enough():
    tables = recipe.load_tables(Config(scale="desk", data="scikit-learn"))
    assert tuple(tables) == BUNDLED
    assert len(tables) >= recipe.MIN_SETS
    x, y = tables["digits-3-8"]
    assert x.shape == (183 + 174, 64)
    assert np.bincount(y).tolist() == [183, 174]
    with pytest.raises(FoveateError, match="wine has 178 rows"):
        recipe.load_tables(Config(scale="desk", data="scikit-learn", budget=87))


def test_the_thirteen_tables(shared_data):
    """Rows and columns of the sets as UCI counts them, text columns as 0/1 features."""
    if not (shared_data / "tables").is_dir():
        pytest.skip("the KEEL tables are not here")
    tables = recipe.load_tables(dataclasses.replace(PRESETS["desk"], data_root=shared_data))
    assert tuple(tables) == KEEL
    shapes = {name: x.shape for name, (x, _) in tables.items()}
    assert shapes["wdbc"] == (569, 30)
    assert shapes["sonar"] == (208, 60)
    assert shapes["phoneme"] == (1000, 5)  # a fixed draw
    assert shapes["spambase"] == (1000, 57)
    assert shapes["german"][1] > 20  # one-hot
    assert all(set(np.unique(y)) == {0, 1} for _, y in tables.values())


def test_pictures_become_components_of_the_pool_alone(smoke):
    _, _, config, _ = smoke
    pictures = recipe.load_pictures(config)
    assert pictures is not None
    assert pictures.x_train.shape == (16, 784)
    assert pictures.y_train.tolist() == [0, 1] * 8
    task = recipe.picture_task(pictures, 10, seed=3)
    assert sorted(task.y_start.tolist()) == [0, 1]
    assert np.bincount(task.y_pool).tolist() == [4, 4]
    other = dataclasses.replace(pictures, x_test=np.zeros_like(pictures.x_test))
    assert np.array_equal(recipe.picture_task(other, 10, seed=3).x_pool, task.x_pool)
    whole = np.concatenate([task.x_pool, task.x_start])[:, :9]  # ten pictures span nine directions
    assert whole.mean(0) == pytest.approx(np.zeros(9), abs=1e-6)
    assert np.cov(whole.T) == pytest.approx(np.eye(9), abs=1e-6)


def test_without_pictures_it_says_so(tmp_path):
    config = dataclasses.replace(SMOKE, data_root=tmp_path, vision_repetitions=2)
    assert recipe.load_pictures(config) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ("iris",)}, "sets of scikit-learn are"),
        ({"sets": ()}, "sets of"),
        ({"budget": 2}, "budget"),
        ({"workers": 0}, "workers"),
        ({"rounds": 15}, "rounds"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(FoveateError, match=message):
        dataclasses.replace(SMOKE, **change)
