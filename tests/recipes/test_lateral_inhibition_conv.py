"""The recipe end to end, that its arms differ in nothing but inhibition, and its verdicts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

from foveate.datasets.scene import Scene
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import li_layers
from foveate.recipes import lateral_inhibition_conv as recipe
from foveate.recipes.lateral_inhibition_conv import ABLATIONS, ARMS, DESK_DATA, PRESETS, Data
from foveate.report.evidence import Evidence, Result
from make_miniatures import scenes as mini

SMOKE = PRESETS["smoke"]
MINI = dataclasses.replace(SMOKE, data="camvid", ablation_seeds=1)


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def silent(what: str) -> None:
    pass


def results(name: str = "camvid", **arms: list[dict[str, float]]) -> list[Result]:
    return [
        Result(f"{name}-{arm}", seed, metrics)
        for arm, row in arms.items()
        for seed, metrics in enumerate(row)
    ]


def measured(
    gains: list[float], edges: list[float], w: float = 0.01, name: str = "camvid"
) -> list[Result]:
    """Plain at 50 and 40 points under every seed, li above it by so much."""
    return results(
        name,
        plain=[{"miou": 50.0, "trimap": 40.0} for _ in gains],
        li=[
            {"miou": 50 + g, "trimap": 40 + e, "w_mean": w, "w_zeros": 0.5}
            for g, e in zip(gains, edges, strict=True)
        ],
        frozen=[{"miou": 50.0} for _ in gains],
    )


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    config = dataclasses.replace(SMOKE, data_root=tmp_path_factory.mktemp("nothing"))
    told: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        yield recipe.run(config, lambda *what: told.append(what)), folder, config, told


def test_smoke_runs_every_arm_on_drawn_pictures_and_says_so(smoke):
    evidence, folder, _, told = smoke
    assert isinstance(evidence, Evidence)
    assert [r.arm for r in evidence.results] == [f"{d}-{a}" for d in DESK_DATA for a in ARMS]
    assert evidence.simulated
    assert evidence.data.count("drawn discs in place of") == 3
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    assert {f.verdict for f in evidence.findings} == {"inconclusive"}
    for r in evidence.results:
        assert 0 <= r.metrics["miou"] <= 100
        assert 0 <= r.metrics["trimap"] <= 100
        assert len(r.items["iou"]) == 4
    assert (told[0][1], told[-1][1], told[-1][2]) == (0, 8, 9)
    assert told[1][0].startswith("camvid-plain, seed 0, step 3 of 3: loss")
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]


def test_costs_are_reported(smoke):
    evidence, _, _, _ = smoke
    of = {r.arm: r.metrics for r in evidence.results}
    assert of["camvid-li"]["parameters"] - of["camvid-plain"]["parameters"] == 96 + 3 * 32
    # nine multiply-adds per channel and pixel of the 8 x 8 map
    more = of["camvid-li"]["mmac"] - of["camvid-plain"]["mmac"]
    assert more == pytest.approx(9 * (96 + 3 * 32) * 8 * 8 / 1e6)
    assert "192 parameters more" in evidence.notes[0]
    assert any("no person painted them" in note for note in evidence.notes)


def test_finished_work_is_reused_and_the_lost_is_the_same_again(smoke, monkeypatch):
    evidence, folder, config, _ = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    trained: list[int] = []
    real = recipe.fit
    monkeypatch.setattr(recipe, "fit", lambda *args: (trained.append(1), real(*args))[1])
    assert recipe.run(config).results == evidence.results
    assert not trained
    (kept,) = (folder / "runs" / "lateral-inhibition-conv").iterdir()
    (kept / "faces-li-0.json").unlink()
    again = recipe.run(config)
    assert len(trained) == 1
    for one, other in zip(again.results, evidence.results, strict=True):
        assert one.metrics == pytest.approx(other.metrics)
    # One data set alone, and with ablations: what is finished counts there, too.
    alone = recipe.run(dataclasses.replace(config, data="faces", ablation_seeds=1))
    assert len(trained) == 1 + len(ABLATIONS)
    assert alone.claim.method == "faces-li"
    assert [r.arm for r in alone.results] == [f"faces-{a}" for a in (*ARMS, *ABLATIONS)]
    assert sum("under the same 1 seeds li" in note for note in alone.notes) == len(ABLATIONS)


def test_arms_share_weights_crops_and_schedule_and_differ_in_inhibition_only(monkeypatch):
    """Checklist: baseline and LI share seed, data order, schedule; only LI differs."""
    data = recipe.drawn("camvid")
    nets = {arm: recipe.network(arm, 3, data, MINI) for arm in (*ARMS, *ABLATIONS)}
    plain = nets["plain"].state_dict()
    assert not list(li_layers(nets["plain"]))
    for arm, net in nets.items():
        state = net.state_dict()
        assert all(torch.equal(state[name], plain[name]) for name in plain), arm
        added = set(state) - set(plain)
        assert all(name.endswith("li_weight") for name in added)
        assert (len(added) == 4) == (arm != "plain")
        w = torch.cat([layer.li_weight.detach().flatten() for _, layer in li_layers(net)] or
                      [torch.zeros(1)])  # fmt: skip
        assert bool((w > 0).any()) == (arm == "init")
        assert float(w.max()) <= 0.15
        assert {layer.zone for _, layer in li_layers(net)} <= {5 if arm == "zone5" else 3}
    assert not torch.equal(
        recipe.network("plain", 4, data, MINI).state_dict()["stem.0.weight"], plain["stem.0.weight"]
    )
    seen: dict[str, list[torch.Tensor]] = {}
    rates: dict[str, list[float]] = {}
    real = torch.optim.AdamW.step
    for arm in ("plain", "li"):
        net, seen[arm], rates[arm] = nets[arm], [], []
        net.register_forward_pre_hook(lambda m, args, arm=arm: seen[arm].append(args[0].clone()))
        monkeypatch.setattr(
            torch.optim.AdamW, "step",
            lambda self, *args, arm=arm, **kw: (
                rates[arm].append(self.param_groups[0]["lr"]), real(self, *args, **kw),
            )[1],
        )  # fmt: skip
        recipe.fit(net, 3, data, MINI, cpu(), silent)
    assert len(seen["plain"]) == 3
    for one, other in zip(seen["plain"], seen["li"], strict=True):
        assert torch.equal(one, other)
    assert rates["plain"] == rates["li"]
    assert rates["li"] == pytest.approx([2e-3 * (1 - k / 3) ** 0.9 for k in range(3)])


def test_frozen_w_stays_0_learned_w_moves_and_does_not_decay():
    data = recipe.drawn("faces")
    w = {}
    for arm in ("frozen", "li"):
        net = recipe.network(arm, 0, data, MINI)
        groups = recipe.no_decay_groups(net, 0.1)
        assert len(groups) == (1 if arm == "frozen" else 2)
        recipe.fit(net, 0, data, MINI, cpu(), silent)
        w[arm] = torch.cat([layer.li_weight.detach().flatten() for _, layer in li_layers(net)])
    assert (w["frozen"] == 0).all()
    assert (w["li"] > 0).any()
    assert (w["li"] >= 0).all()


def test_a_loss_that_diverges_is_nan_and_not_a_crash():
    data = recipe.drawn("faces")
    config = dataclasses.replace(MINI, lr=1e30)
    said: list[str] = []
    metrics, items = recipe.train_and_judge("li", 0, data, config, cpu(), said.append)
    assert np.isnan(metrics["miou"])
    assert not items
    assert "not finite" in said[-1]
    wrong = measured([1.0] * 3, [1.0] * 3)
    wrong[0].metrics["miou"] = float("nan")
    assert recipe.verdict(wrong, "camvid") == "inconclusive"


def test_settings_that_make_no_sense_are_one_sentence():
    for change in ({"steps": 0}, {"crop": 30}, {"scales": (2.0, 1.0)}, {"ablation_seeds": -1}):
        with pytest.raises(FoveateError, match="got"):
            dataclasses.replace(SMOKE, **change)
    with pytest.raises(FoveateError, match="--set net=mobilenet"):
        dataclasses.replace(SMOKE, weights=Path("x"))


# --- judging -------------------------------------------------------------------------------


def test_whole_pictures_are_judged_though_their_sides_are_no_multiples():
    class Says(torch.nn.Module):
        """The class is the first channel's value."""

        def forward(self, x):
            assert not x.shape[2] % 4
            assert not x.shape[3] % 4
            return torch.stack([-((x[:, 0] - k) ** 2) for k in range(3)], 1)

    truth = np.random.default_rng(0).integers(0, 3, (4, 10, 13)).astype(np.uint8)
    pictures = truth[:, None].copy()
    pictures[3] = 0  # all wrong where it is not 0
    source = recipe.PicturesInMemory(pictures, truth)
    data = Data("", source, source, 3, torch.zeros(1), torch.ones(1), groups={"good": [0, 1, 2]})
    found, items = recipe.judge(Says(), data, SMOKE, cpu())
    assert found["miou_good"] == 100
    right = (pictures[:, 0] == truth).mean()
    assert found["accuracy"] == pytest.approx(100 * right)
    both = [((pictures[:, 0] == k) & (truth == k)).sum() for k in range(3)]
    either = [((pictures[:, 0] == k) | (truth == k)).sum() for k in range(3)]
    assert items["iou"] == pytest.approx([100 * b / e for b, e in zip(both, either, strict=True)])
    assert found["miou"] == pytest.approx(np.mean(items["iou"]))


# --- verdicts ------------------------------------------------------------------------------


@given(gains=st.lists(st.floats(-5, 5), min_size=3, max_size=6, unique=True))
@settings(deadline=None)
def test_interval_is_that_of_the_paired_t_test(gains):
    found = recipe.gain(measured(gains, gains), "camvid-li", "camvid-plain", "miou")
    expected = scipy.stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(gains), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("gains", "edges", "w", "expected"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.2], [2.0] * 5, 0.01, "reproduced"),
        ([1.0, 1.1, 0.9, 1.0, 1.2], [0.5] * 5, 0.01, "inconclusive"),  # not at boundaries
        ([1.0, 1.1, 0.9, 1.0, 1.2], [2.0] * 5, 0.0, "not reproduced"),  # inactive
        ([1.0, -1.0, 0.5, 2.0, -0.2], [2.0] * 5, 0.01, "inconclusive"),  # 0 inside
        ([-1.0, -1.1, -0.9, -1.0, -1.2], [2.0] * 5, 0.01, "not reproduced"),
        ([1.0, 1.1], [2.0] * 2, 0.01, "inconclusive"),  # two seeds
    ],
)
def test_verdict_is_the_rule(gains, edges, w, expected):
    assert recipe.verdict(measured(gains, edges, w), "camvid") == expected
    assert recipe.findings(measured(gains, edges, w), ["camvid"])[0].verdict == expected


def test_one_data_set_refutes_all_three():
    yes, no, open_ = "reproduced", "not reproduced", "inconclusive"
    assert recipe.together([yes, yes, yes]) == yes
    assert recipe.together([yes, no, open_]) == no
    assert recipe.together([yes, yes, open_]) == open_


def test_findings_name_each_data_set_the_inhibition_and_the_other_drive():
    rows = measured([1.0, 1.1, 0.9], [2.0, 2.0, 2.1])
    for r in rows:
        r.metrics["miou_Seq05VD"] = r.metrics["miou"] * (-1 if r.arm == "camvid-li" else 1)
    rows += measured([-1.0, -1.1, -0.9], [0.0] * 3, name="faces")
    found = recipe.findings(rows, ["camvid", "faces"])
    assert [f.verdict for f in found] == [
        "reproduced", "reproduced", "not reproduced", "not reproduced", "not reproduced",
    ]  # fmt: skip
    assert found[0].text.startswith("camvid: mIoU of li less plain +1.00 (+0.75 to +1.25) points")
    assert "50 % of them 0" in found[0].text
    assert "Seq05VD" in found[2].text


# --- data ----------------------------------------------------------------------------------


def write_helen(folder: Path, count: int = 4) -> None:
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 68)
    points = 24 + 15 * np.stack([np.cos(angle), np.sin(angle)], 1)
    (folder / "faces").mkdir(parents=True)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 3, 48, 48)).astype(np.uint8)
        arrays[f"lm_{split}"] = np.stack([points] * count).astype(np.float32)
    np.savez(folder / "faces" / "helen68_96.npz", **arrays)


def a_radar_scene(height: int = 200, width: int = 260) -> Scene:
    """T11 is that of the block of 100 x 128 pixels; labels are the number of the block, and 0."""
    block = (np.arange(height)[:, None] // 100 * 2 + np.arange(width) // 128).clip(0, 4)
    cube = np.zeros((height, width, 9), np.float32)
    cube[..., 0] = 10.0 ** (block - 2)
    cube[..., 1:3] = 0.01
    codes = block + 1
    codes[:, :5] = 0
    return Scene.from_array(cube, "polsar", labels=SceneLabels.from_map(codes))


def test_radar_blocks_are_a_checkerboard_and_crops_stay_inside():
    data = recipe.in_blocks(a_radar_scene(), None)
    assert not data.simulated
    assert not data.mirror
    for part, numbers in ((data.train, (0, 3)), (data.test, (1, 2))):  # even and odd blocks
        assert part.pictures.shape == (2, 3, 100, 128)
        for picture, labels, number in zip(part.pictures, part.labels, numbers, strict=True):
            assert set(np.unique(labels)) <= {number, 255}
            assert (labels == 255).any() == (number % 2 == 0)  # unlabelled columns on the left
            np.testing.assert_allclose(picture[2], number - 2, atol=1e-2)  # log10 of T11, last
            np.testing.assert_allclose(picture[:2], -2, atol=1e-2)
    # standardised by training blocks: T11 is -2 and 1 there
    assert float(data.average[2]) == pytest.approx(-0.5, abs=1e-2)
    assert float(data.spread[2]) == pytest.approx(1.5, abs=1e-2)
    crops = recipe.RandomCrops(data.train, 64, 20, 0, data.average, data.spread)
    for k in range(20):
        assert float(crops[k][0][2].std()) < 1e-3  # one block: no crop crosses its border


def test_faces_get_drawn_labels_and_camvid_void(tmp_path):
    write_helen(tmp_path)
    names = {"train": ["0001TP_006690", "0006R0_f00930"], "val": [],
             "test": ["0001TP_008550", "Seq05VD_f00000", "Seq05VD_f00030"]}  # fmt: skip
    mini.write_camvid_segnet(tmp_path / "CamVid", names)
    config = dataclasses.replace(MINI, data_root=tmp_path, limit=None)
    faces = recipe.load_data("faces", config)
    assert faces.classes == 7
    assert "drawn from 68 landmarks" in faces.what
    assert faces.train.labels.max() < 7
    camvid = recipe.load_data("camvid", config)
    assert camvid.classes == 11
    assert camvid.groups == {"Seq05VD": [1, 2]}
    truth = mini.label_map(1).astype(int)
    np.testing.assert_array_equal(camvid.test.labels[1], np.where(truth == 11, 255, truth))
    values = camvid.train.pictures.astype(float)
    assert camvid.average.numpy() == pytest.approx(values.mean((0, 2, 3)), rel=1e-5)
    assert camvid.spread.numpy() == pytest.approx(values.std((0, 2, 3)).clip(1e-6), rel=1e-4)
    evidence, _ = recipe.train_and_judge("li", 0, camvid, config, cpu(), silent)
    assert {"miou", "miou_Seq05VD", "trimap_Seq05VD", "w_mean"} <= set(evidence)


def test_absent_or_damaged_sets_are_one_sentence(tmp_path):
    for name in DESK_DATA:
        config = dataclasses.replace(PRESETS["desk"], data=name, data_root=tmp_path)
        with pytest.raises(FoveateError, match="--set data_root=FOLDER") as error:
            recipe.load_data(name, config)
        assert "\n" not in str(error.value)
    write_helen(tmp_path)
    path = tmp_path / "faces" / "helen68_96.npz"
    held = dict(np.load(path))
    held["lm_test"][0, 0] = np.nan
    np.savez(path, **held)
    with pytest.raises(FoveateError, match=r"finite \(N, 68, 2\) were expected"):
        recipe.load_data("faces", dataclasses.replace(SMOKE, data_root=tmp_path))
    with pytest.raises(FoveateError, match="no two blocks"):
        recipe.in_blocks(a_radar_scene(99, 300), None)


def test_real_sets_have_the_published_sizes(shared_data):
    config = dataclasses.replace(PRESETS["desk"], data_root=shared_data)
    data = recipe.load_data("sanfrancisco", config)
    counts = {"train": [6360, 32318, 166895, 172456, 25691],
              "test": [7341, 30413, 162671, 170339, 27818]}  # fmt: skip
    for split, expected in counts.items():
        labels = getattr(data, split).labels
        assert np.bincount(labels[labels < 255]).tolist() == expected
    limited = dataclasses.replace(config, limit=3)
    faces = recipe.load_data("faces", limited)
    assert faces.train.pictures.shape == (3, 3, 96, 96)
    camvid = recipe.load_data("camvid", limited)
    assert camvid.test.labels.shape == (3, 90, 120)


def test_paper_scales_have_the_published_schedules_and_read_the_official_layouts(tmp_path):
    table = {"paper": ("VOC2012", 0.007, 115_440, 513, (0.0, 0.0), "f"),
             "paper-celebamask-hq": ("CelebAMask-HQ", 0.01, 362_880, 513, (0.0, 0.0), "f"),
             "paper-ade20k": ("ADE20K", 0.01, 316_000, 257, (0.0, 0.15), "e")}  # fmt: skip
    for scale, row in table.items():
        c = PRESETS[scale]
        assert (c.data, c.lr, c.steps, c.crop, c.li_init, c.option) == row
        assert (c.scale, c.optimizer, c.batch, c.weight_decay) == (scale, "sgd", 16, 4e-5)
        assert c.scales == (0.5, 2.0)
    things = [("dog", (3, 4, 10, 12), 0)]
    for split in ("train", "val"):
        mini.write_voc(tmp_path, {"2008_000001": things, "2008_000002": things}, split=split)
    config = dataclasses.replace(
        PRESETS["paper"], data_root=tmp_path, steps=1, batch=2, crop=33, workers=0,
        accelerator="cpu",
    )  # fmt: skip
    data = recipe.load_data("VOC2012", config)
    assert data.classes == 21
    whole = recipe.MobileNetV2()
    torch.nn.init.constant_(whole.features[3].conv[0][0].weight, 0.25)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    config = dataclasses.replace(config, weights=tmp_path / "weights.pt")
    net = recipe.network("li", 0, data, config)
    assert (net.backbone.features[3].conv[0][0].weight == 0.25).all()
    assert len(list(li_layers(net))) == 6
    loss = recipe.fit(net, 0, data, config, cpu(), silent)
    assert np.isfinite(loss)
    found, _ = recipe.judge(net, data, config, cpu())
    assert 0 <= found["miou"] <= 100
    for name in ("CelebAMask-HQ", "ADE20K"):
        with pytest.raises(FoveateError, match=name):
            recipe.load_data(name, dataclasses.replace(config, data=name))
