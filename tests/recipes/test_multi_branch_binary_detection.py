"""The recipe end to end: simulated shapes, miniatures of VOC and COCO, checks and verdicts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from foveate.datasets.detection import Detections, voc_precision
from foveate.engine import compile as compile_packed
from foveate.errors import FoveateError
from foveate.nn.prior_boxes import SSD300_COCO, SSD300_VOC
from foveate.nn.resnet import BasicBlock, ResNet
from foveate.nn.ssd import Detected
from foveate.quantization import multi_branch
from foveate.quantization.layers import quant_layers
from foveate.recipes import multi_branch_binary_detection as recipe
from foveate.recipes.multi_branch_binary_detection import PRESETS, Config, Stage
from foveate.report.evidence import Evidence, Result
from make_miniatures import scenes as mini

SMOKE = PRESETS["smoke"]
ARMS = ["fp-start", "fp", "chain-8", "chain-5", "chain-2"]
THINGS = {
    "000001": [("dog", (3, 3, 12, 14), 0), ("person", (10, 4, 22, 16), 0)],
    "000002": [("cat", (2, 2, 20, 16), 0)],
}


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def quiet(what: str) -> None:
    """Say nothing."""


@pytest.fixture
def tiny(monkeypatch):
    """A narrow net of ResNet-18's maps in its place."""

    def resnet18() -> ResNet:
        return ResNet(BasicBlock, (1, 1, 1, 1), (4, 8, 8, 8), classes=3)

    monkeypatch.setattr(recipe, "resnet18", resnet18)
    return resnet18


def paper(folder, **other) -> Config:
    """The published setting, shortened to one step a stage."""
    short = {"fp_epochs": 1, "stage_epochs": 1, "batch": 2, "workers": 0, "seeds": (0,),
             "widths": (8,), "accelerator": "cpu", "engine_pictures": 1, "branch_pictures": 1,
             "random_start": True, "data_root": folder}  # fmt: skip
    return dataclasses.replace(PRESETS["paper"], **{**short, **other})


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        yield recipe.run(SMOKE), folder


def test_smoke_trains_every_arm_and_says_that_it_is_simulated(smoke):
    evidence, folder = smoke
    assert isinstance(evidence, Evidence)
    assert [r.arm for r in evidence.results] == ARMS
    assert evidence.simulated
    assert "simulated shapes, 32 training and 8 test pictures" in evidence.data
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    for result in evidence.results:
        assert 0 <= result.metrics["mAP"] <= 100
    of = {r.arm: r.metrics for r in evidence.results}
    for arm in ARMS[2:]:
        assert of[arm]["branches_differ"] == of[arm]["engine_differs"] == 0
    assert of["chain-8"]["weight_bytes"] == pytest.approx(4 * of["chain-2"]["weight_bytes"])
    assert [f.verdict for f in evidence.findings] == ["inconclusive", "reproduced", "reproduced"]
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]


def test_finished_work_is_reused_with_its_weights(smoke, monkeypatch):
    evidence, folder = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    stages: list[str] = []
    real = recipe.train
    monkeypatch.setattr(
        recipe, "train", lambda net, arm, *rest: (stages.append(arm), real(net, arm, *rest))
    )
    assert recipe.run(SMOKE).results == evidence.results
    assert stages == []
    (kept,) = (folder / "runs" / "multi-branch-binary-detection").iterdir()
    for arm in ("chain-5", "chain-2"):
        (kept / f"{arm}-0.json").unlink()
    (kept / "chain-2-0.safetensors").unlink()
    again = recipe.run(SMOKE)
    assert stages == ["chain-2"]
    assert [r.metrics for r in again.results] == [r.metrics for r in evidence.results]


def test_arms_share_their_names_and_start_where_they_say(smoke):
    _, folder = smoke
    (kept,) = (folder / "runs" / "multi-branch-binary-detection").iterdir()
    weights = {arm: load_file(kept / f"{arm}-0.safetensors") for arm in ARMS}
    assert all(set(state) == set(weights["fp"]) for state in weights.values())
    name, steps = "trunk.layer3.0.conv2.weight", 32 // 16
    for arm, stage in recipe.stages_of(SMOKE).items():
        if stage.parent is not None:
            apart = float((weights[arm][name] - weights[stage.parent][name]).abs().max())
            assert 0 < apart < 2 * steps * SMOKE.lr


def test_label_maps_of_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    config = dataclasses.replace(SMOKE, task="segmentation", widths=(8,))
    evidence = recipe.run(config)
    assert evidence.claim.metric == "mIoU"
    assert evidence.claim.published is None
    assert [r.arm for r in evidence.results] == ["fp-start", "fp", "chain-8"]
    assert all(0 <= r.metrics["mIoU"] <= 100 for r in evidence.results)
    last = evidence.results[-1].metrics
    assert last["branches_differ"] == last["engine_differs"] == 0


# --- published settings --------------------------------------------------------------------


def test_paper_is_the_published_setting():
    """SSD on ResNet-18, ImageNet's weights, VOC07+12, SGD, HReLU, weights clipped, 8 to 5 bits."""
    config = PRESETS["paper"]
    assert (config.data, config.task, config.weight_norm) == ("VOC", "detection", "clip")
    assert config.widths == (8, 7, 6, 5)
    assert not config.random_start
    # 120,000 steps, a tenth after 80,000 and 100,000; 16,551 pictures.
    assert config.fp_epochs * (16_551 // config.batch) == pytest.approx(120_000, rel=0.01)
    assert (config.optimizer, config.lr, config.batch) == ("sgd", 1e-3, 32)
    with torch.device("meta"):
        net, wide = (recipe.network(config, bits, 20) for bits in (8, None))
        coco = recipe.network(dataclasses.replace(config, data="COCO"), None, 80)
        assert net.gather(net.eval()(torch.empty(1, 3, 300, 300)))[1].shape == (1, 8732, 21)
    assert (net.grid, coco.grid) == (SSD300_VOC, SSD300_COCO)
    assert len(list(quant_layers(net))) == 16 + 6  # inner ones of ResNet-18, and extras
    assert all(layer.bits == (8, 8) for _, layer in quant_layers(net))
    assert all(layer.act.range == "hrelu" for _, layer in quant_layers(net))
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    assert set(net.state_dict()) == set(wide.state_dict())
    real = {name for name, m in net.named_modules() if type(m) is nn.Conv2d}
    assert real == {
        "trunk.conv1", *(f"trunk.layer{k}.0.downsample.0" for k in (2, 3, 4)),
        *(f"{head}.{k}" for head in ("locators", "classifiers") for k in range(6)),
    }  # fmt: skip


def test_all_layers_and_one_bit(monkeypatch):
    config = dataclasses.replace(SMOKE, quantize_all=True)
    net = recipe.network(config, 1, 3)
    bits = {name: layer.bits for name, layer in quant_layers(net)}
    assert bits.pop("trunk.conv1") == (1, 32)
    assert set(bits.values()) == {(1, 1)}
    assert {"locators.0", "classifiers.3"} <= set(bits)
    assert all(layer.act.range == "htanh" for name, layer in quant_layers(net)
               if name != "trunk.conv1")  # fmt: skip
    x = torch.randn(2, 3, 64, 64)
    net.train()(x)
    net.eval()
    for ours, theirs in zip(net(x), recipe.decomposed(net)(x), strict=True):
        assert torch.equal(ours, theirs)


def test_voc_is_trained_on_both_years_and_tested_on_2007(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "own"))
    mini.write_voc(tmp_path, {"000007": THINGS["000002"]}, "2007", "test")
    mini.write_voc(tmp_path, {"000005": THINGS["000001"]}, "2007", "trainval")
    mini.write_voc(tmp_path, {"2008_000001": THINGS["000002"]}, "2012", "trainval")
    evidence = recipe.run(paper(tmp_path))
    assert not evidence.simulated
    assert evidence.data == (
        "VOC2007 and VOC2012 trainval, tested on VOC2007 test, 2 and 1 pictures"
    )
    assert [r.arm for r in evidence.results] == ["fp-start", "fp", "chain-8"]
    last = evidence.results[-1].metrics
    assert last["branches_differ"] == last["engine_differs"] == 0
    data = recipe.load_data(paper(tmp_path))
    assert [data.train.objects(k).labels.tolist() for k in (0, 1)] == [[11, 14], [7]]
    assert [one.labels.tolist() for one in data.truth()] == [[7]]


def test_coco_has_its_own_priors_and_no_crowds(tmp_path, tiny):
    for split in ("train", "val"):
        mini.write_coco(tmp_path / "COCO", mini.coco_annotations(), split)
    config = paper(tmp_path, data="COCO")
    data = recipe.load_data(config)
    assert (len(data.train), len(data.test), data.classes) == (3, 3, 2)
    views = recipe.Views(data.train, config, (0, 0))
    plain = recipe.Views(data.test, config, None)
    assert [len(views[k][1][1]) for k in (0, 1)] == [0, 0]  # a crowd; nothing
    assert [len(plain[k][1][1]) for k in range(3)] == [1, 0, 2]
    boxes, labels = plain[2][1]
    expected = np.array([[2, 3, 10, 8], [2, 3, 20, 17]]) / [24, 18, 24, 18]
    np.testing.assert_allclose(boxes, expected, rtol=1e-5)
    assert labels.tolist() == [1, 0]
    net = recipe.network(config, None, 2)
    recipe.train(net, "fp", Stage("", None, None, 1, 0), 0, data, config, cpu(), quiet)
    found = recipe.evaluate(net, None, data, config, cpu())
    assert set(found) == {"mAP", "AP50"}


def test_voc_segmentation_is_trained_and_tested(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "own"))
    mini.write_voc(tmp_path, {"000003": []}, "2012", "val")
    mini.write_voc(tmp_path, THINGS, "2012", "train")
    evidence = recipe.run(paper(tmp_path, task="segmentation", side=64))
    assert evidence.data == "VOC2012 segmentation, tested on val, 2 and 1 pictures"
    last = evidence.results[-1].metrics
    assert last["branches_differ"] == last["engine_differs"] == 0
    assert 0 <= last["mIoU"] <= 100


def test_training_starts_from_the_weights_named(tmp_path, tiny):
    net = tiny()
    save_file(net.state_dict(), tmp_path / "resnet18.safetensors")
    config = paper(tmp_path, weights=tmp_path / "resnet18.safetensors", random_start=False)
    started = recipe.network(config, None, 20)
    assert torch.equal(started.trunk.layer4[0].conv2.weight, net.layer4[0].conv2.weight)
    with pytest.raises(FoveateError, match="--set weights=FILE"):
        recipe.load_data(dataclasses.replace(config, weights=None))


# --- data and training ---------------------------------------------------------------------


def test_views_of_shapes_keep_boxes_on_their_shapes():
    data = recipe.load_data(SMOKE)
    plain, varied = (recipe.Views(data.train, SMOKE, vary) for vary in (None, (0, 1)))
    mirrored = 0
    for index in range(12):
        (one, (boxes, labels), size), (other, (moved, same), _) = plain[index], varied[index]
        assert size == (64, 64)
        assert labels.tolist() == same.tolist()
        np.testing.assert_allclose(boxes * 64, data.train.objects(index).boxes, rtol=1e-5)
        if not torch.equal(one, other):
            mirrored += 1
            assert torch.equal(one.flip(-1), other)
            np.testing.assert_allclose(moved[:, 0], 1 - boxes[:, 2], atol=1e-6)
    assert 2 <= mirrored <= 10
    again = recipe.Views(data.train, SMOKE, (0, 1))
    assert all(torch.equal(varied[k][0], again[k][0]) for k in range(12))
    other = recipe.Views(data.train, SMOKE, (0, 2))
    assert any(not torch.equal(varied[k][0], other[k][0]) for k in range(12))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_no_test_picture_is_a_training_picture(task):
    data = recipe.load_data(dataclasses.replace(SMOKE, task=task, test_pictures=None))
    assert len(data.test) == 500
    pictures = [{one[k][0].numpy().tobytes() for k in range(len(one))} for one in
                (data.train, data.test)]  # fmt: skip
    assert len(pictures[0]) == len(data.train)
    assert not pictures[0] & pictures[1]


def test_the_chain_comes_down_width_by_width():
    """High to low: each width from the one above, `fp` and the first from the same weights."""
    stages = recipe.stages_of(PRESETS["desk"])
    assert {arm: (s.parent, s.bits, s.epochs) for arm, s in stages.items()} == {
        "fp-start": (None, None, 14), "fp": ("fp-start", None, 7),
        "chain-8": ("fp-start", 8, 7), "chain-6": ("chain-8", 6, 7),
        "chain-5": ("chain-6", 5, 7), "chain-2": ("chain-5", 2, 7),
    }  # fmt: skip
    assert stages["fp"].order == stages["chain-8"].order  # the same pictures for the claim's arms


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_rates_and_variations_of_a_stage(monkeypatch, schedule):
    """SSD's: momentum 0.9, decay 5e-4, a tenth after 2/3 and after 5/6; or half a cosine."""
    kind = "sgd" if schedule == "steps" else "adam"
    config = dataclasses.replace(SMOKE, schedule=schedule, optimizer=kind, lr=1e-3)
    data, seen, variations = recipe.load_data(config), [], []
    real = recipe.batches

    def watched(source, order, config, vary):
        variations.append(vary)
        return real(source, order, config, vary)

    def note(optimizer, args, kwargs):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group.get("momentum"), group["weight_decay"]))

    monkeypatch.setattr(recipe, "batches", watched)
    handle = register_optimizer_step_pre_hook(note)
    try:
        net = recipe.network(config, None, 3)
        stage = Stage("", None, None, 3, 8)
        recipe.train(net, "fp", stage, 2, data, config, cpu(), quiet)
    finally:
        handle.remove()
    assert not net.training
    assert variations == [(2008, epoch) for epoch in range(3)]  # new ones in every epoch
    rates = [rate for rate, _, _ in seen]
    if schedule == "steps":
        assert rates == pytest.approx([1e-3] * 4 + [1e-4, 1e-5])
        assert {one[1:] for one in seen} == {(0.9, 5e-4)}
    else:
        assert rates == pytest.approx([5e-4 * (1 + np.cos(np.pi * t / 6)) for t in range(6)])


def test_detections_are_told_in_the_pixels_of_their_picture(tmp_path, tiny, monkeypatch):
    """A detector that always says the truth, in units of the side, has an mAP of 100."""
    mini.write_voc(tmp_path, THINGS, "2007", "test")
    mini.write_voc(tmp_path, THINGS, "2007", "trainval")
    mini.write_voc(tmp_path, THINGS, "2012", "trainval")
    config = paper(tmp_path)
    data = recipe.load_data(config)
    truth = iter(data.truth())

    def oracle(locations, scores, priors):
        answers = []
        for _ in locations:
            one = next(truth)
            boxes = torch.from_numpy(one.boxes / np.array([24, 18, 24, 18], np.float32))
            labels = torch.from_numpy(one.labels)
            answers.append(Detected(boxes, labels, torch.ones(len(one))))
        return answers

    monkeypatch.setattr(recipe, "detect", oracle)
    found = recipe.evaluate(recipe.network(config, None, 20).eval(), None, data, config, cpu())
    assert found == {"mAP": 100.0}
    assert np.nanmean(voc_precision([Detections(t.boxes, t.labels, np.ones(len(t)))
                                     for t in data.truth()], data.truth(), 20)) == 1  # fmt: skip


def test_chain_uses_the_papers_optimisers_and_clips_latent_weights(monkeypatch):
    config = dataclasses.replace(SMOKE, optimizer="sgd", weight_norm="clip", lr=1e-3,
                                 schedule="steps")  # fmt: skip
    data, asked = recipe.load_data(config), []
    real = recipe.chain_optimizer
    monkeypatch.setattr(
        recipe, "chain_optimizer",
        lambda net, bits, lr: (asked.append((bits, lr)), real(net, bits, lr))[1],
    )  # fmt: skip
    for bits in (None, 5, 2):
        net = recipe.network(config, bits, 3)
        weight = net.trunk.layer2[0].conv2.weight
        if bits is not None:
            weight.data.mul_(100)
        recipe.train(net, "x", Stage("", None, bits, 1, 1), 0, data, config, cpu(), quiet)
        if bits is not None:
            assert float(weight.detach().abs().max()) <= 1
    assert asked == [(5, 1e-3), (2, None)]


def test_engine_and_branches_can_be_seen_to_differ(monkeypatch):
    net = recipe.network(SMOKE, 5, 3)
    x = torch.randn(4, 3, 64, 64)
    net.train()(x)
    net.eval()
    for head in net.classifiers:
        head.weight.data.mul_(20)  # sure of something
    data = recipe.load_data(SMOKE)
    assert recipe.compared(net, data, SMOKE)["engine_differs"] == 0

    def spoilt(model: nn.Module, example: torch.Tensor):
        twin = recipe.copy.deepcopy(model)
        for head in twin.classifiers:
            head.weight.data.mul_(-1)
        return compile_packed(twin, example)

    real = multi_branch.decompose

    def wrong(layer):
        branches = real(layer)
        branches.weight.data[0] *= -1
        return branches

    monkeypatch.setattr(recipe, "compile_packed", spoilt)
    monkeypatch.setattr(multi_branch, "decompose", wrong)
    found = recipe.compared(net, data, SMOKE)
    assert found["engine_differs"] > 0
    assert found["branches_differ"] > 0


def test_divergence_and_too_few_pictures_are_one_sentence():
    data = recipe.load_data(SMOKE)
    net = recipe.network(SMOKE, None, 3)
    stage = Stage("", None, None, 1, 0)
    config = dataclasses.replace(SMOKE, batch=64)
    with pytest.raises(FoveateError, match="do not fill one step of 64"):
        recipe.train(net, "fp", stage, 0, data, config, cpu(), quiet)
    net.locators[0].bias.data[:] = float("nan")
    with pytest.raises(FoveateError, match="diverged in epoch 1"):
        recipe.train(net, "fp", stage, 0, data, SMOKE, cpu(), quiet)


@pytest.mark.parametrize(
    "wrong", [{"widths": (1, 2)}, {"widths": ()}, {"widths": (9,)}, {"fp_epochs": 0}, {"batch": 0},
              {"test_pictures": 0}, {"task": "segmentation", "data": "COCO"},
              {"task": "segmentation", "side": 50}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        dataclasses.replace(SMOKE, **wrong)


# --- verdicts ------------------------------------------------------------------------------


def a_ladder(**other: list[float]) -> list[Result]:
    """Three seeds at the very limits of the rule, with other rows in place of its own."""
    rows = {"fp": [80.0, 81.0, 82.0], "chain_8": [78.5, 79.5, 80.5], "chain_6": [78.0] * 3,
            "chain_5": [70.0, 71.0, 72.0], "chain_2": [60.0] * 3}  # fmt: skip
    return [
        Result(arm.replace("_", "-"), seed, {"mAP": value})
        for arm, row in {**rows, **other}.items()
        for seed, value in enumerate(row)
    ]


def test_verdict_is_the_rule():
    assert recipe.verdict(a_ladder()) == "reproduced"
    assert recipe.verdict(a_ladder(chain_8=[78.4, 79.5, 80.5])) == "not reproduced"
    assert recipe.verdict(a_ladder(chain_5=[69.9, 71.0, 72.0])) == "not reproduced"
    # Means of seeds count, not single ones; other widths do not.
    assert recipe.verdict(a_ladder(chain_8=[76.5, 80.5, 81.5], chain_2=[90.0] * 3)) == "reproduced"
    for gone in ("fp", "chain-8", "chain-5"):
        assert recipe.verdict([r for r in a_ladder() if r.arm != gone]) == "inconclusive"
    assert recipe.verdict([r for r in a_ladder() if r.seed < 2]) == "inconclusive"
    assert recipe.verdict(a_ladder(chain_6=[float("nan")] * 3)) == "inconclusive"
    assert recipe.verdict(a_ladder(chain_6=[1.0, 2.0])) == "inconclusive"
    assert recipe.verdict([]) == "inconclusive"


def test_one_difference_refutes_exactness():
    def verdicts(branches: float, engine: float) -> list[str]:
        metrics = {"branches_differ": branches, "engine_differs": engine}
        rows = [Result("chain-8", 0, dict.fromkeys(metrics, 0.0)), Result("chain-5", 0, metrics)]
        return [f.verdict for f in recipe.findings(rows)[1:]]

    assert verdicts(0, 0) == ["reproduced", "reproduced"]
    assert verdicts(1, 0) == ["not reproduced", "reproduced"]
    assert verdicts(0, 1) == ["reproduced", "not reproduced"]
    assert [f.verdict for f in recipe.findings([])] == ["inconclusive"] * 3


def test_the_fewest_bits_must_cost_under_most_seeds():
    def cost(**rows: list[float]) -> str:
        return recipe.findings(a_ladder(**rows))[0].verdict

    assert cost() == "reproduced"
    assert cost(chain_2=[79.0, 82.0, 79.0]) == "reproduced"
    assert cost(chain_2=[81.0, 82.0, 60.0]) == "not reproduced"
    assert cost(chain_2=[60.0, 60.0]) == "inconclusive"


def test_remarks_name_the_gaps():
    (said,) = recipe.remarks(a_ladder(), "mAP")
    assert "chain-8 1.50, chain-6 3.00, chain-5 10.00, chain-2 21.00" in said
