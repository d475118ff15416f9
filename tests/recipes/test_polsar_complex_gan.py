"""The recipe end to end on a simulation, its draws, its rule."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from foveate.datasets.scene import Window
from foveate.errors import FoveateError
from foveate.recipes import polsar_complex_gan as recipe
from foveate.recipes.polsar_complex_gan import ARMS, CLAIM, PRESETS, Config
from foveate.report.evidence import Evidence, Result, Verdict
from foveate.scenes.complex_gan import (
    ComplexDiscriminator,
    ComplexGenerator,
    RealDiscriminator,
    RealGenerator,
)
from foveate.scenes.splits import leakage_report

SMOKE = PRESETS["smoke"]
ONE = dataclasses.replace(PRESETS["desk"], scenes=("flevoland",), labels=(10, 100))
BOTH = dataclasses.replace(ONE, scenes=("flevoland", "sanfrancisco"))


def results(scene: str = "flevoland", **arms: list[float]) -> list[Result]:
    """``cv_gan_10=[...]``: overall accuracy of each seed."""
    return [
        Result(f"{scene}-{arm.replace('_', '-')}", seed, {"oa": value, "smallest": value})
        for arm, row in arms.items()
        for seed, value in enumerate(row)
    ]


# --- end to end -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        told: list[tuple[str, int, int]] = []
        yield recipe.run(SMOKE, lambda *what: told.append(what)), folder, told


def test_smoke_runs_every_arm_and_says_that_it_is_simulated(smoke):
    evidence, folder, told = smoke
    assert evidence.simulated
    assert "SIMULATION" in evidence.data
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    arms = [f"simulated-{arm}-3" for arm in ARMS]
    arms += [f"simulated-{arm}-6" for arm in ("cv-gan", "cc", "wishart")]
    arms += ["leaking-simulated-cv-gan-3", "leaking-simulated-cc-3"]
    assert [r.arm for r in evidence.results] == arms == list(evidence.arms)
    for result in evidence.results:
        m = result.metrics
        assert 0 <= m["smallest"] <= 100
        assert m["kappa"] <= m["oa"] + 1e-9
        assert 0 <= m["aa"] <= 100
        assert ("psd_fake" in m) == ("-cv-gan-" in result.arm and "alone" not in result.arm)
    # Checklist: generated samples are compared with real ones.
    first = evidence.results[0].metrics
    assert {f"w_t1{k}_{p}" for k in (1, 2) for p in ("real", "imag")} <= set(first)
    assert 0 <= first["psd_fake"] <= 100
    assert first["psd_real"] > 90
    assert evidence.claim.method == "simulated-cv-gan-3"
    assert evidence.claim.ablation == "simulated-cc-3"
    assert [what[2] for what in told] == [len(arms)] * len(told)
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]
    assert np.isfinite(evidence.seconds)


def test_finished_work_is_reused_and_lost_work_repeated(smoke, monkeypatch):
    evidence, folder, _ = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    (kept,) = (folder / "runs" / "polsar-complex-gan").iterdir()
    (kept / "simulated-cc-3-0.json").unlink()
    made = []
    real = recipe.measure
    monkeypatch.setattr(recipe, "measure", lambda *a: (made.append(a[0]), real(*a))[1])
    again = recipe.run(SMOKE)
    assert made == ["cc"]
    assert [r.metrics for r in again.results] == [r.metrics for r in evidence.results]


def test_the_leak_is_marked_and_has_no_say(smoke):
    evidence, _, _ = smoke
    of = {r.arm: r.metrics for r in evidence.results}
    assert of["simulated-cc-3"]["covered"] == 0
    assert of["leaking-simulated-cc-3"]["covered"] > 0
    assert "leak" in evidence.arms["leaking-simulated-cc-3"]
    assert any("leak" in note for note in evidence.notes)
    seen = results(cv_gan_10=[70] * 3, cc_10=[80] * 3, cv_gan_100=[70] * 3, cc_100=[70] * 3)
    lured = [
        Result(f"leaking-flevoland-{arm}-10", seed, {"oa": value})
        for arm, value in (("cv-gan", 99.0), ("cc", 1.0))
        for seed in range(3)
    ]
    assert recipe.verdict(seen + lured, ONE) == "not reproduced"


# --- draws ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground():
    return recipe.load_ground("simulated", SMOKE)


def test_labels_are_counted_and_test_pixels_never_train(ground):
    """Checklist: label budget stated; test pixels never labelled; pool away from test blocks."""
    config = dataclasses.replace(SMOKE, test_pixels=0)
    material = recipe.load_material(ground, "", 6, 0, config)
    codes = ground.labels.codes
    assert np.bincount(codes[material.train])[1:].tolist() == [6] * 5
    assert material.labelled.shape == (30, 6, 16, 16)
    assert [material.classes[k] for k in material.target] == codes[material.train].tolist()
    assert not set(material.train) & set(material.test)
    test_map = np.zeros(ground.labels.shape, bool)
    test_map[tuple(ground.labels.coordinates[material.test].T)] = True
    # every pixel of the simulation has a label: blocks of 32 in a checkerboard
    rows, columns = np.indices(test_map.shape) // 32
    assert np.array_equal(test_map, (rows + columns) % 2 == 1)
    for row, column in ground.labels.coordinates[material.train]:
        assert not test_map[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9].any()
    assert material.covered == 0
    assert leakage_report(ground.labels, (material.train, material.test), 16).distance > 8


def test_unlabelled_patches_come_from_train_blocks_alone(ground, monkeypatch):
    asked = []
    real = recipe.draw_unlabelled

    def spy(*given):
        asked.append((given, real(*given)))
        return asked[-1][1]

    monkeypatch.setattr(recipe, "draw_unlabelled", spy)
    recipe.load_material(ground, "", 3, 4, SMOKE)
    recipe.load_material(ground, "leaking-", 3, 4, SMOKE)
    (given, places), (leaking, _) = asked
    assert given[1:4] == (30, 8, 4)
    inside = given[4](Window(0, 0, 160, 160))
    for row, column in places:
        assert not inside[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9].any()
    assert leaking[4] is None  # the published protocol hides nothing


def test_seeds_draw_other_labels_and_the_same_test_pixels(ground):
    one, two, same = (recipe.load_material(ground, "", 3, seed, SMOKE) for seed in (0, 1, 0))
    assert np.array_equal(one.test, two.test)
    assert len(one.test) == SMOKE.test_pixels
    assert not np.array_equal(one.train, two.train)
    assert np.array_equal(one.train, same.train)
    assert torch.equal(one.unlabelled, same.unlabelled)


def test_arms_are_what_they_are_called(ground, monkeypatch):
    """Checklist: RC/CC use the same body, labels, seeds and steps; the ablations are run."""
    material = recipe.load_material(ground, "", 3, 0, SMOKE)
    calls: dict[str, tuple] = {}
    for name in ("fit_classifier", "fit_ssgan"):
        real = getattr(recipe, name)

        def spy(*given, real=real, **settings):
            calls[arm] = (given, settings)
            return real(*given, **settings)

        monkeypatch.setattr(recipe, name, spy)
    for arm in ARMS:
        recipe.measure(arm, 5, material, SMOKE, torch.device("cpu"), lambda done, total: None)
    assert set(calls) == set(ARMS) - {"wishart"}
    common = {"steps": 3, "batch": 8, "lr": 5e-4, "seed": 5}
    assert all(common.items() <= settings.items() for _, settings in calls.values())
    kinds = {arm: tuple(type(part) for part in given[:2]) for arm, (given, _) in calls.items()}
    assert kinds["cv-gan"] == kinds["cv-gan-alone"] == (ComplexDiscriminator, ComplexGenerator)
    assert kinds["rv-gan"] == (RealDiscriminator, RealGenerator)
    assert kinds["cc"][0] is ComplexDiscriminator
    assert kinds["rc"][0] is RealDiscriminator
    assert torch.equal(calls["cc"][0][1], calls["cv-gan"][0][2])  # the same labelled patches
    assert torch.equal(calls["rc"][0][1], calls["rv-gan"][0][2])
    assert calls["cv-gan-alone"][0][4] is None
    assert len(calls["cv-gan"][0][4]) == len(calls["rv-gan"][0][4]) == 30
    assert [calls[arm][0][0].head[1].out_features for arm in ("cc", "rc")] == [5, 5]
    assert [calls[arm][0][0].head[1].out_features for arm in ("cv-gan", "rv-gan")] == [6, 6]


def test_wishart_is_the_nearest_class_mean_after_a_boxcar(ground):
    material = recipe.load_material(ground, "", 6, 0, SMOKE)
    found = recipe.measure("wishart", 0, material, SMOKE, torch.device("cpu"), lambda a, b: None)
    cube = np.pad(ground.scene.read().astype(np.float64), ((2, 2), (2, 2), (0, 0)), "reflect")

    def matrix(index):
        row, column = ground.labels.coordinates[index]
        v = cube[row : row + 5, column : column + 5].mean((0, 1))
        m = np.diag(v[:3]).astype(complex)
        for (i, j), k in zip(((0, 1), (0, 2), (1, 2)), (3, 5, 7), strict=True):
            m[i, j], m[j, i] = v[k] + 1j * v[k + 1], v[k] - 1j * v[k + 1]
        return m

    codes = ground.labels.codes
    sigma = {}
    for code in range(1, 6):
        mean = np.mean([matrix(i) for i in material.train if codes[i] == code], 0)
        sigma[code] = mean + 1e-6 * np.trace(mean).real / 3 * np.eye(3)
    right = 0
    for index in material.test:
        d = {
            code: np.linalg.slogdet(s)[1] + np.trace(np.linalg.solve(s, matrix(index))).real
            for code, s in sigma.items()
        }
        right += min(d, key=d.get) == codes[index]
    assert found["oa"] == pytest.approx(100 * right / len(material.test), abs=1.01)


# --- the rule ---------------------------------------------------------------------------------


def test_interval_is_the_bootstrap_of_the_mean():
    values = [3.0, -1.0, 4.0, 1.5, 2.0]
    means = sorted(np.mean(pick) for pick in itertools.product(values, repeat=5))
    low, high = recipe.bootstrap_interval(values)
    assert sum(m < low - 1e-9 for m in means) <= 0.05 * len(means)
    assert sum(m <= low + 1e-9 for m in means) >= 0.05 * len(means)
    assert low == pytest.approx(np.percentile(means, 5))
    assert high == pytest.approx(np.percentile(means, 95))
    many = np.random.default_rng(1).normal(size=12)
    theirs = scipy.stats.bootstrap(
        (many,), np.mean, confidence_level=0.9, method="percentile", rng=0
    ).confidence_interval
    assert recipe.bootstrap_interval(list(many)) == pytest.approx(tuple(theirs), abs=0.03)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        # above CC at 10, and by less at 100
        (results(cv_gan_10=[80, 82, 81, 83, 80], cc_10=[70, 71, 75, 74, 72],
              cv_gan_100=[90, 90, 90], cc_100=[89, 89, 89]), "reproduced"),
        # above at 10, but by more at 100
        (results(cv_gan_10=[80] * 5, cc_10=[79] * 5,
              cv_gan_100=[90] * 3, cc_100=[80] * 3), "not reproduced"),
        # the interval contains 0
        (results(cv_gan_10=[80, 70, 80, 70, 80], cc_10=[75] * 5,
              cv_gan_100=[90] * 3, cc_100=[91] * 3), "inconclusive"),
        # below
        (results(cv_gan_10=[70, 71, 72, 70, 71], cc_10=[75] * 5,
              cv_gan_100=[90] * 3, cc_100=[95] * 3), "not reproduced"),
        # two seeds prove nothing, nor does a missing count or NaN
        (results(cv_gan_10=[80] * 2, cc_10=[70] * 2,
              cv_gan_100=[90] * 3, cc_100=[90] * 3), "inconclusive"),
        (results(cv_gan_10=[80] * 3, cc_10=[70] * 3), "inconclusive"),
        (results(cv_gan_10=[80, 80, float("nan")], cc_10=[70] * 3,
              cv_gan_100=[90] * 3, cc_100=[90] * 3), "inconclusive"),
    ],
)  # fmt: skip
def test_rule(arms: list[Result], expected: Verdict):
    assert recipe.verdict(arms, ONE) == expected


def test_one_scene_is_enough():
    rows = {"good": [80.0] * 3, "bad": [60.0] * 3, "open": [60.0, 80.0, 70.0]}

    def one(scene: str, how: str) -> list[Result]:
        return results(
            scene, cv_gan_10=rows[how], cc_10=[70] * 3, cv_gan_100=[90] * 3, cc_100=[89] * 3
        )

    for first, second, expected in (
        ("good", "bad", "reproduced"),
        ("bad", "good", "reproduced"),
        ("bad", "open", "inconclusive"),
        ("bad", "bad", "not reproduced"),
    ):
        both = one("flevoland", first) + one("sanfrancisco", second)
        assert recipe.verdict(both, BOTH) == expected


def test_differences_are_paired_by_seed():
    found = [Result("flevoland-cv-gan-10", s, {"oa": 10.0 * s + 1}) for s in (2, 0, 1, 5)]
    found += [Result("flevoland-cc-10", s, {"oa": 10.0 * s}) for s in (0, 1, 2, 3)]
    assert recipe.gains(found, "flevoland", ("cv-gan", "cc"), 10) == [1, 1, 1]


def test_secondary_questions_have_their_own_verdicts():
    seen = results(
        cv_gan_10=[80] * 3, cc_10=[70] * 3, rc_10=[75] * 3, rv_gan_10=[80, 79, 81],
        cv_gan_alone_10=[78] * 3, wishart_10=[85] * 3, cv_gan_100=[90] * 3, cc_100=[89] * 3,
    )  # fmt: skip
    for seed, result in enumerate(r for r in seen if r.arm == "flevoland-cv-gan-10"):
        far = 0.3 if seed == 1 else 0.02
        result.metrics.update(w_t11_real=0.01, w_t11_imag=0.02, w_t12_real=far, w_t12_imag=0.05)
    verdicts = {f.text.split(": ")[1]: f.verdict for f in recipe.findings(seen, ONE)}
    assert [*verdicts.values()] == [
        "reproduced",  # the rule
        "reproduced",  # smallest class
        "not reproduced",  # CC below RC
        "inconclusive",  # real-valued GAN
        "reproduced",  # unlabelled
        "not reproduced",  # Wishart wins, and it is said
        "not reproduced",  # histograms: 0.113 on average
    ]


# --- settings and data ------------------------------------------------------------------------


def test_presets_are_what_the_experiment_fixes():
    desk, paper = PRESETS["desk"], PRESETS["paper"]
    assert (desk.labels, len(desk.seeds), desk.more_seeds) == ((10, 30, 100), 5, 3)
    assert (desk.patch, desk.widths, desk.generator_widths, desk.noise) == (
        16, (12, 24), (24, 12), 32,
    )  # fmt: skip
    assert (desk.batch, desk.lr, desk.unlabelled, desk.test_pixels) == (32, 5e-4, 5000, 10_000)
    assert (paper.patch, paper.widths, paper.noise, paper.lr) == (32, (32, 64, 128), 64, 5e-4)
    assert paper.split == "random"
    assert recipe.arms_of(paper, "", 100) == recipe.arms_of(desk, "", 10) == tuple(ARMS)
    assert recipe.seeds_of(desk, 10) == (0, 1, 2, 3, 4)
    assert recipe.seeds_of(desk, 100) == (0, 1, 2)
    assert CLAIM.method == "flevoland-cv-gan-10"


@pytest.mark.parametrize(
    "wrong", [{"scenes": ()}, {"scenes": ("flevoland",) * 2}, {"labels": ()}, {"labels": (30, 10)},
              {"labels": (0, 10)}, {"patch": 15}, {"steps": 0}, {"seeds": ()}, {"test_pixels": -1}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        dataclasses.replace(SMOKE, **wrong)


def test_without_the_scene_one_sentence_says_what_is_expected(tmp_path):
    config = Config(scale="desk", data_root=tmp_path)
    with pytest.raises(FoveateError, match="flevoland") as error:
        recipe.run(config)
    assert "\n" not in str(error.value)


def test_flevoland_keeps_all_classes_after_the_guard(shared_data):
    if not (shared_data / "polsar" / "flevoland_airsar_t3_f16.npz").is_file():
        pytest.skip(f"AIRSAR Flevoland is not below {shared_data}")
    config = dataclasses.replace(PRESETS["desk"], data_root=shared_data)
    ground = recipe.load_ground("flevoland", config)
    assert not ground.split.left_out
    assert ground.smallest == 15
    kept = ground.split.counts(ground.labels)
    # Test pixels of each class as counted from the label map beside this code.
    assert [kept[code][2] for code in range(1, 16)] == [
        3558, 4686, 10708, 6053, 8444, 6176, 7995, 2763, 3581, 8061, 3830, 5765, 10920, 5055, 498,
    ]  # fmt: skip
    assert min(kept[code][0] for code in kept) >= 100


def test_generated_patches_are_compared_channel_by_channel(ground, monkeypatch):
    """Distances by hand: the mean gap between sorted values of equal number, and the shares.

    The generator gives the real patches, T11 moved by 0.25 and Im T12 mirrored about 0.1.
    """
    import dataclasses

    config = dataclasses.replace(SMOKE, test_pixels=50)
    material = recipe.load_material(ground, "", 3, 0, config)
    real = material.unlabelled[: recipe.SAMPLES]

    class Given(torch.nn.Module):
        def noise(self, count, generator):
            return torch.zeros(count, 1, dtype=torch.complex64)

        def forward(self, z):
            fake = real.clone()
            fake[:, 0] += 0.25
            fake[:, 3] = torch.complex(real[:, 3].real, 0.1 - real[:, 3].imag)
            return fake

    found = recipe.generated(Given(), material, 0, torch.device("cpu"))
    imag = real[:, 3].imag.flatten().double()
    mirrored = float((imag.sort().values - (0.1 - imag).sort().values).abs().mean())
    assert found["w_t11_real"] == pytest.approx(0.25, abs=1e-5)
    assert found["w_t11_imag"] == pytest.approx(0, abs=1e-6)
    assert found["w_t12_real"] == pytest.approx(0, abs=1e-6)
    assert found["w_t12_imag"] == pytest.approx(mirrored, rel=1e-4)
    assert found["psd_real"] > 90
    assert found["psd_fake"] != found["psd_real"]
