"""The recipe end to end on its stand-in, its pixels, its rule.

Lines of the specification's checklist: "metrics exclude", "Wishart baseline in the same run", "T3
and not S", "disjoint beside random".
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.recipes import configure
from foveate.recipes import polsar_scattering_coding as recipe
from foveate.recipes.polsar_scattering_coding import ARMS, NETS, PRESETS, Config
from foveate.report.evidence import Evidence, Result
from foveate.scenes.polarimetric_map import DivergedError, PcnMap
from foveate.scenes.wishart import WishartClassifier

SMOKE = PRESETS["smoke"]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data, and a place for finished work."""
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def data() -> recipe.Data:
    return recipe.load_data(dataclasses.replace(SMOKE, data_root=recipe.Path("/nowhere")))


def results(**arms: tuple[list[float], list[float]]) -> list[Result]:
    """Arm -> OA and kappa of each seed."""
    return [
        Result(arm, seed, {"oa": oa, "kappa": kappa})
        for arm, pair in arms.items()
        for seed, (oa, kappa) in enumerate(zip(*pair, strict=True))
    ]


def rows(**other: float | tuple[float, float]) -> list[Result]:
    """Three seeds around given means of OA (and kappa, 10 below unless given)."""
    means = {"pcn": 90.0, "echo": 89.0, "coded": 89.0, "amplitude": 80.0, "wishart": 81.0} | other
    both = {
        arm: value if isinstance(value, tuple) else (value, value - 10)
        for arm, value in means.items()
    }
    spread = (-3.0, 1.0, 2.0)
    return results(
        **{a: ([oa + d for d in spread], [k + d for d in spread]) for a, (oa, k) in both.items()}
    )


# --- end to end ----------------------------------------------------------------------------


def test_smoke_runs_every_arm_and_both_splits(nowhere, monkeypatch):
    """Checklist: Wishart baseline in the same run; disjoint result beside the random one."""
    told = []
    evidence = recipe.run(SMOKE, lambda *at: told.append(at))
    assert [r.arm for r in evidence.results] == [*ARMS, "pcn-random", "wishart-random"]
    assert evidence.simulated
    assert "simulated" in evidence.data
    assert evidence.verdict == "inconclusive", "one seed proves nothing"
    assert all(f.verdict == "inconclusive" for f in evidence.findings)
    for result in evidence.results:
        assert 0 <= result.metrics["oa"] <= 100
        assert result.metrics["test_pixels"] == 300
        assert result.items
        aa = np.mean([share for (share,) in result.items.values()])
        assert result.metrics["aa"] == pytest.approx(aa)
    assert "leaking" in evidence.arms["pcn-random"]
    assert any("T3 (k = 3), not S" in note for note in evidence.notes)
    assert any("random" in note for note in evidence.notes)
    assert told[-1][1:] == (6, 7)
    read = Evidence.read(evidence.write(nowhere))
    assert read.to_json() == evidence.to_json()
    # finished work is used again
    monkeypatch.setattr(recipe, "evaluate", None)
    assert recipe.run(SMOKE).results == evidence.results


def test_semi_simulation_codes_s_and_is_called_so(nowhere):
    """Checklist: with multilook data T3 is coded and said; S only of a labelled simulation."""
    config = dataclasses.replace(SMOKE, input="simulated-s2", other_split=False)
    data = recipe.load_data(config)
    assert data.simulated
    assert data.what.startswith("SEMI-SIMULATION")
    assert any("ideal" in note for note in data.notes)
    assert data.scene.channels == 8
    s = data.scene.read().view(np.complex64).reshape(96, 96, 2, 2)
    hh, hv, vh, vv = s.reshape(96, 96, 4).transpose(2, 0, 1)
    assert np.array_equal(hv, vh)
    t = data.coherency.read()  # k k^H of the very same draw
    k1, k2, k3 = (hh + vv) / 2**0.5, (hh - vv) / 2**0.5, 2**0.5 * hv
    for channel, expected in (
        (0, abs(k1) ** 2), (1, abs(k2) ** 2), (2, abs(k3) ** 2),
        (3, (k1 * k2.conj()).real), (6, (k1 * k3.conj()).imag),
    ):  # fmt: skip
        assert np.allclose(t[..., channel], expected, atol=1e-5)
    assert "S" in recipe.descriptions(config)["coded"]
    assert recipe.descriptions(SMOKE)["coded"] == "scattering code of T3, one path"
    assert set(recipe.descriptions(config)) == set(ARMS)
    drawn_again = recipe.load_data(config)
    assert np.array_equal(drawn_again.scene.read(), data.scene.read()), "one draw per run"


def test_the_paper_scale_runs_on_a_small_scene(nowhere):
    """One batch is the whole scene, under group norm, from random pixels."""
    config = dataclasses.replace(
        PRESETS["paper"],
        stand_in=True,
        per_class=20,
        widths=SMOKE.widths,
        stem=SMOKE.stem,
        fuse_channels=4,
        steps=2,
        seeds=(0,),
        accelerator="cpu",
    )
    evidence = recipe.run(config)
    assert [r.arm for r in evidence.results] == [*ARMS, "pcn-blocks", "wishart-blocks"]
    assert evidence.results[0].metrics["test_pixels"] == 96 * 96 - 100, "all that do not train"
    sizes = {r.metrics["parameters"] for r in evidence.results if r.arm in ("echo", "pcn")}
    assert len(sizes) == 2, "published widths: single paths are smaller"


def test_without_the_scene_desk_says_in_one_sentence_how_to_get_it(nowhere):
    for scene in ("sanfrancisco", "flevoland"):
        with pytest.raises(FoveateError, match="data_root=FOLDER") as error:
            recipe.load_data(dataclasses.replace(PRESETS["desk"], scene=scene))
        assert "\n" not in str(error.value)


# --- pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["blocks", "random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_train_and_test_pixels(data, split, seed):
    """Checklist: metrics exclude unlabelled and training pixels."""
    chosen = recipe.pixels(data, SMOKE, split, seed)
    assert not set(chosen.train) & set(chosen.test)
    assert len(chosen.test) == 300
    assert set(data.labels.subset(chosen.train).counts().values()) == {20}
    again = recipe.pixels(data, SMOKE, split, seed)
    assert np.array_equal(chosen.train, again.train)
    assert np.array_equal(chosen.test, again.test)
    assert not np.array_equal(chosen.train, recipe.pixels(data, SMOKE, split, seed + 7).train)
    train, test = (data.labels.coordinates[index] for index in (chosen.train, chosen.test))
    if split == "random":
        assert chosen.hidden is None
        return
    parity = ((np.arange(96) // 24)[:, None] + np.arange(96) // 24) % 2
    assert (parity[tuple(train.T)] == 0).all()
    assert (parity[tuple(test.T)] == 1).all()
    assert np.array_equal(chosen.hidden(data.scene.whole), parity == 1)
    for row, column in train:  # the boxcar of a training pixel touches no test block
        around = parity[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        assert not around.any()


def test_a_small_class_gives_half_of_its_pixels(data):
    few = np.flatnonzero(data.labels.codes == 2)[:9]
    keep = np.union1d(np.flatnonzero(data.labels.codes != 2), few)
    labels = data.labels.subset(keep)
    chosen = recipe.pixels(dataclasses.replace(data, labels=labels), SMOKE, "random", 0)
    assert labels.subset(chosen.train).counts()[2] == 4


def test_a_class_without_training_pixels_is_not_tested(data):
    """No arm could find it: its pixels would only lower all accuracies alike."""
    at = data.labels.coordinates // 24
    keep = (data.labels.codes != 3) | (at.sum(1) % 2 == 1)
    labels = data.labels.subset(np.flatnonzero(keep))
    chosen = recipe.pixels(dataclasses.replace(data, labels=labels), SMOKE, "blocks", 0)
    assert set(labels.codes[chosen.train].tolist()) == {1, 2, 4, 5}
    assert set(labels.codes[chosen.test].tolist()) == {1, 2, 4, 5}


def test_all_arms_have_the_same_pixels_and_the_nets_what_is_hidden(data, monkeypatch):
    got = []

    def fit(self, scene, labels, *, seed, hidden, progress):
        got.append((labels.coordinates.tolist(), hidden is None))
        raise DivergedError("no")

    monkeypatch.setattr(PcnMap, "fit", fit)
    real = recipe.WishartMap.fit
    monkeypatch.setattr(
        recipe.WishartMap,
        "fit",
        lambda self, scene, labels, *, seed: (
            got.append((labels.coordinates.tolist(), False)),
            real(self, scene, labels, seed=seed),
        )[1],
    )
    chosen = recipe.pixels(data, SMOKE, "blocks", 0)
    for arm in ARMS:
        metrics, items = recipe.evaluate(
            arm, chosen, data, SMOKE, 0, torch.device("cpu"), lambda at, of: None
        )
        assert math.isnan(metrics["oa"]) == (arm in NETS), "a net that diverges is NaN"
    assert all(one == got[0] for one in got)
    assert len(got) == 5


def test_wishart_and_its_accuracy_pixel_by_pixel(data):
    """Checklist: metrics. Boxcar, means, counts and kappa written out."""
    chosen = recipe.pixels(data, SMOKE, "blocks", 0)
    metrics, _ = recipe.evaluate(
        "wishart", chosen, data, SMOKE, 0, torch.device("cpu"), lambda at, of: None
    )
    wide = np.pad(data.coherency.read().astype(float), ((2, 2), (2, 2), (0, 0)), mode="reflect")

    def boxcar(index):
        at = data.labels.coordinates[index]
        return np.array([wide[r : r + 5, c : c + 5].mean((0, 1)) for r, c in at])

    truth = data.labels.codes[chosen.test]
    judge = WishartClassifier().fit(boxcar(chosen.train), data.labels.codes[chosen.train])
    said = judge.predict(boxcar(chosen.test))
    oa = np.mean(said == truth)
    chance = sum(np.mean(said == c) * np.mean(truth == c) for c in range(1, 6))
    assert metrics["oa"] == pytest.approx(100 * oa, abs=0.4)  # float32: one pixel may flip
    assert metrics["kappa"] == pytest.approx(100 * (oa - chance) / (1 - chance), abs=0.5)
    recall = [np.mean(said[truth == c] == c) for c in np.unique(truth)]
    assert metrics["aa"] == pytest.approx(100 * np.mean(recall), abs=0.5)


# --- arms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["t3", "simulated-s2"])
def test_single_paths_have_as_many_parameters_as_pcn(source):
    config = dataclasses.replace(PRESETS["desk"], input=source)
    size = {
        arm: recipe.parameters(config, paths, recipe.settings(config, arm).widths, 5)
        for arm, paths in NETS.items()
    }
    assert all(abs(n / size["pcn"] - 1) < 0.02 for n in size.values())
    assert 0.2e6 < size["pcn"] < 0.3e6
    plain = dataclasses.replace(config, match_budget=False)
    assert recipe.settings(plain, "echo").widths == config.widths


def test_presets_are_those_of_specification_and_paper():
    desk, paper = PRESETS["desk"], PRESETS["paper"]
    assert (desk.per_class, desk.test_pixels, desk.tile, desk.batch, desk.steps, desk.lr) == (
        300, 20_000, 64, 8, 400, 2e-3,
    )  # fmt: skip
    assert (desk.split, desk.optimizer, len(desk.seeds), desk.kernel) == ("blocks", "adam", 3, 3)
    assert (paper.per_class, paper.split, paper.batch, paper.norm, len(paper.seeds)) == (
        1000, "random", 1, "group", 10,
    )  # fmt: skip
    assert (paper.optimizer, paper.lr, paper.kernel) == ("sgd", 0.01, 5)
    assert recipe.PLACES["sanfrancisco"].block == (100, 128)
    assert recipe.PLACES["flevoland"].block == (48, 48)
    other = configure(recipe, "desk", overrides={"scene": "flevoland", "input": "simulated-s2"})
    assert (other.scene, other.input) == ("flevoland", "simulated-s2")
    for wrong in ({"tile": 30}, {"per_class": 0}, {"seeds": ()}, {"lr": 0.0}):
        with pytest.raises(FoveateError):
            dataclasses.replace(desk, **wrong)


# --- the rule ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, "reproduced"),
        ({"coded": 88.5}, "reproduced"),  # exactly 0.5 below the plain path
        ({"coded": 88.4}, "inconclusive"),
        ({"echo": 90.5, "coded": 90.0}, "reproduced"),  # PCN exactly 0.5 below the better one
        ({"echo": 90.6, "coded": 90.1}, "inconclusive"),
        ({"coded": 90.6}, "inconclusive"),
        ({"wishart": 90.0}, "inconclusive"),  # equal is not above
        ({"wishart": (85.0, 80.0)}, "inconclusive"),  # kappa is equal
        ({"amplitude": 90.0}, "not reproduced"),
        ({"amplitude": 95.0}, "not reproduced"),
        ({"amplitude": (89.0, 81.0)}, "inconclusive"),  # above in OA, below in kappa
        ({"amplitude": math.nan}, "inconclusive"),
    ],
)
def test_the_rule_of_the_specification(other, expected):
    assert recipe.verdict(rows(**other)) == expected


def test_the_rule_needs_three_seeds_and_every_arm():
    full = rows()
    assert recipe.verdict([r for r in full if r.seed < 2]) == "inconclusive"
    assert recipe.verdict([r for r in full if r.arm != "wishart"]) == "inconclusive"
    assert recipe.verdict([r for r in full if (r.arm, r.seed) != ("echo", 1)]) == "inconclusive"
    assert recipe.verdict([]) == "inconclusive"


def test_findings_say_where_the_claim_holds():
    """If the coding is no better than the plain numbers, that is said."""
    found = recipe.findings(rows(coded=89.0, echo=89.0))
    assert [f.verdict for f in found] == [
        "reproduced", "reproduced", "reproduced", "not reproduced", "reproduced",
    ]  # fmt: skip
    found = recipe.findings(rows(coded=89.1, echo=90.7, amplitude=91.0))
    assert [f.verdict for f in found] == [
        "not reproduced", "reproduced", "not reproduced", "not reproduced", "not reproduced",
    ]  # fmt: skip
    assert "echo: 90.00 against 90.70" in found[4].text
    assert all(f.verdict == "inconclusive" for f in recipe.findings(rows(pcn=math.nan))[:2])


# --- the real scenes -----------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["sanfrancisco", "flevoland"])
def test_real_scene_where_present(shared_data, scene):
    config = dataclasses.replace(PRESETS["desk"], scene=scene, data_root=shared_data)
    if not (shared_data / recipe.PLACES[scene].file).is_file():
        pytest.skip(f"{scene} is not below {shared_data}")
    found = recipe.load_data(config)
    assert not found.simulated
    chosen = recipe.pixels(found, config, "blocks", 0)
    assert len(chosen.test) == 20_000
    counts = found.labels.subset(chosen.train).counts()
    assert len(counts) == (5 if scene == "sanfrancisco" else 15)
    assert max(counts.values()) == 300
    assert isinstance(found.labels, SceneLabels)


def test_config_is_a_frozen_dataclass():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(scale="x").steps = 3
