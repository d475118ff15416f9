"""The recipe end to end on a miniature, its arms, its protocol and its verdicts."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np
import pytest
import scipy.special
import torch
from lightning_fabric import Fabric
from torch import nn

from foveate.datasets.images import CIFAR10
from foveate.errors import FoveateError
from foveate.learning.memory_bank import MemoryBank
from foveate.recipes import memory_bank_instance_discrimination as recipe
from foveate.recipes.memory_bank_instance_discrimination import ARMS, PRESETS, Config, Pictures
from foveate.report.evidence import Evidence, Result
from make_miniatures import images as mini

SMOKE = PRESETS["smoke"]
SEEN_ARMS = [arm for arm, what in ARMS.items() if not what.unseen]


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def quiet(what: str) -> None:
    pass


def write_cifar(folder, train: int = 130, test: int = 50) -> None:
    """CIFAR-10's layout, with pictures whose values say their number."""
    place = folder / "cifar-10-batches-bin"
    mini.write_cifar10(place / "data_batch_1.bin", [k % 10 for k in range(train)])
    mini.write_cifar10(place / "test_batch.bin", [k % 10 for k in range(test)], first=1000)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder, root = tmp_path_factory.mktemp("foveate"), tmp_path_factory.mktemp("data")
    write_cifar(root)
    config = dataclasses.replace(SMOKE, data_root=root)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        yield recipe.run(config, lambda what, done, total: told.append(what)), folder, config, told


# --- end to end ----------------------------------------------------------------------------


def test_smoke_runs_every_arm_on_the_real_layout(smoke):
    evidence, folder, _, told = smoke
    assert isinstance(evidence, Evidence)
    assert [r.arm for r in evidence.results] == list(ARMS)
    assert not evidence.simulated
    assert evidence.data == (
        "CIFAR-10, 80 training pictures without labels and 40 test pictures, 16 x 16 pixels"
    )
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    assert {f.verdict for f in evidence.findings} == {"inconclusive"}
    of = {r.arm: r.metrics for r in evidence.results}
    for arm in SEEN_ARMS:
        assert of[arm]["accuracy"] * 40 / 100 == pytest.approx(round(of[arm]["accuracy"] * 0.4))
    for arm in ("bank-unseen", "merging-unseen"):
        assert 0 <= of[arm]["recall_at_1"] <= of[arm]["recall_at_8"] <= 100
        assert "accuracy" not in of[arm]
    # 5 % of the slots at most in each of the rounds before epochs 1, 2 and 3
    assert 80 > of["merging"]["slots"] >= 80 - 4 - 3 - 3
    assert "merging, seed 0, epoch 4 of 4: loss" in " ".join(told)
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, 0) for r in evidence.results]


def test_compute_is_counted_in_pictures_forwarded(smoke):
    """Line 12: at equal epochs K views cost K times as much, and bank-long pays as much."""
    evidence, _, _, told = smoke
    images = {r.arm: r.metrics.get("images") for r in evidence.results}
    assert images["untrained"] is None
    assert images["bank"] == 4 * 80  # epochs x pictures
    for arm in ("bank-long", "views", "consistency", "merging", "in-batch"):
        assert images[arm] == 2 * images["bank"]
    assert any("bank-long, seed 0, epoch 8 of 8" in what for what in told)
    assert "at equal compute, seeds 0:" in evidence.claim.text  # in the sentence of the verdict
    assert "merging 640" in evidence.notes[1]


def test_finished_work_is_reused_and_one_arm_may_run_once(smoke, monkeypatch):
    evidence, folder, config, _ = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    fitted: list[str] = []
    real = recipe.train_arm
    monkeypatch.setattr(
        recipe, "train_arm", lambda arm, *rest: (fitted.append(arm.what), real(arm, *rest))[1]
    )
    assert recipe.run(config).results == evidence.results
    assert fitted == []
    (kept,) = (folder / "runs" / "memory-bank-instance-discrimination").iterdir()
    (kept / "bank-0.json").unlink()
    more = dataclasses.replace(config, arms=("untrained", "bank"), once=("bank",), seeds=(0, 1))
    found = recipe.run(more)
    assert fitted == [ARMS["bank"].what, ARMS["untrained"].what]
    assert [(r.arm, r.seed) for r in found.results] == [
        ("untrained", 0), ("bank", 0), ("untrained", 1)
    ]  # fmt: skip
    before = next(r for r in evidence.results if r.arm == "bank")
    assert found.results[1].metrics == before.metrics


def test_without_the_set_smoke_draws_patterns_and_says_so(tmp_path):
    data = recipe.load_data(dataclasses.replace(SMOKE, data_root=tmp_path))
    assert data.simulated
    assert "drawn patterns" in data.what
    assert not torch.equal(data.train.images[:40], data.held.images)
    with pytest.raises(FoveateError, match="--set data_root=FOLDER") as error:
        recipe.load_data(dataclasses.replace(PRESETS["desk"], data_root=tmp_path))
    assert "\n" not in str(error.value)


# --- training ------------------------------------------------------------------------------


def some_data() -> recipe.Data:
    return recipe.load_data(dataclasses.replace(SMOKE, data_root=None, stand_in=True))


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    return some_data()


def trained(arm: str, data: recipe.Data, config: Config = SMOKE) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    net = recipe.Encoder(config)
    return net, recipe.fit(net, ARMS[arm], 0, data, config, cpu(), quiet)


def test_labels_never_enter_training(data):
    """Line 9: with other labels every weight is the same, and only the purity is another."""
    other = dataclasses.replace(
        data, train=Pictures(data.train.images, torch.zeros_like(data.train.labels))
    )
    (net, found), (twin, theirs) = trained("merging", data), trained("merging", other)
    for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert theirs.pop("purity") == 100
    assert found.pop("purity") < 100
    assert found == theirs


def test_arms_differ_by_what_they_are_called(data, monkeypatch):
    """Line 11: K, consistency, merging and the in-batch control can each be switched."""
    made, merged = [], []
    real = recipe.InstanceDiscriminationLoss
    monkeypatch.setattr(
        recipe, "InstanceDiscriminationLoss",
        lambda bank, **settings: (made.append(real(bank, **settings)), made[-1])[1],
    )  # fmt: skip
    monkeypatch.setattr(
        MemoryBank, "merge", lambda self, *a, **k: merged.append(self) or self.history
    )
    seen = {}
    for arm in [arm for arm in SEEN_ARMS if arm != "untrained"]:
        made.clear()
        merged.clear()
        shapes: list[tuple[int, ...]] = []
        monkeypatch.setattr(
            MemoryBank, "update",
            lambda self, idx, v, shapes=shapes: shapes.append(tuple(v.shape)),
        )  # fmt: skip
        trained(arm, data)
        kind = made[0].consistency
        seen[arm] = (shapes[0][1], len(shapes), kind, len(merged))
    assert seen == {
        "bank": (1, 20, None, 0),
        "bank-long": (1, 40, None, 0),
        "views": (2, 20, None, 0),
        "consistency": (2, 20, "kl", 0),
        "merging": (2, 20, "kl", 3),
        "in-batch": (2, 20, recipe.in_batch, 0),
    }


def test_all_arms_start_alike_and_weight_is_ramped(data, monkeypatch):
    nets, banks, weights = [], [], []
    real = recipe.MemoryBank

    def spy(self, views, idx):
        weights.append(self.weight)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        recipe, "MemoryBank", lambda *a, **k: (banks.append(real(*a, **k)), banks[-1])[1]
    )
    monkeypatch.setattr(recipe.InstanceDiscriminationLoss, "forward", spy)
    real_fit = recipe.fit
    monkeypatch.setattr(recipe, "fit", lambda net, *rest: (nets.append(net), real_fit(net, *rest)))
    for arm in ("bank", "merging"):
        with pytest.raises(KeyboardInterrupt):
            recipe.train_arm(ARMS[arm], 5, data, SMOKE, cpu(), quiet)
    assert torch.equal(banks[0].memory, banks[1].memory)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert weights == [0.0, 0.0]
    monkeypatch.undo()

    real_forward = recipe.InstanceDiscriminationLoss.forward
    monkeypatch.setattr(
        recipe.InstanceDiscriminationLoss, "forward",
        lambda self, *a: (weights.append(self.weight), real_forward(self, *a))[1],
    )  # fmt: skip
    trained("consistency", data)
    # 20 steps: the first fifth is 4
    assert weights[2:8] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])
    assert set(weights[6:]) == {0.1}


def test_a_diverged_arm_is_nan_and_not_a_crash(data, monkeypatch):
    told: list[str] = []
    config = dataclasses.replace(SMOKE, lr=float("inf"))
    for arm, metric in (("views", "accuracy"), ("bank-unseen", "recall_at_1")):
        found = recipe.train_arm(ARMS[arm], 0, data, config, cpu(), told.append)
        assert math.isnan(found[metric])
        assert math.isnan(found["loss"])
    assert any("not finite" in what for what in told)


def test_unseen_arms_train_on_one_half_of_the_classes_and_search_the_other(data, monkeypatch):
    seen = {}
    monkeypatch.setattr(recipe, "fit", lambda *a: seen.update(train=a[3].train) or {"loss": 0.0})
    monkeypatch.setattr(recipe, "judge", lambda *a: seen.update(held=a[2].held) or {})
    recipe.train_arm(ARMS["merging-unseen"], 0, data, SMOKE, cpu(), quiet)
    assert set(seen["train"].labels.tolist()) == {0, 1, 2, 3, 4}
    assert set(seen["held"].labels.tolist()) == {5, 6, 7, 8, 9}
    assert len(seen["train"]) == 40


def test_in_batch_control_is_the_formula_and_has_negatives():
    """Line 11: Ye et al. by hand; it is not 0 where views agree, as consistency is."""
    v = nn.functional.normalize(
        torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)), dim=2
    )
    x, total, pairs = v.double().numpy(), 0.0, 0
    for k in range(3):
        for other in range(3):
            if k == other:
                continue
            for i in range(4):
                p = scipy.special.softmax(x[:, k] @ x[i, other] / 0.5)
                total -= np.log(p[i])
                for j in range(4):
                    if j != i:
                        p = scipy.special.softmax(x[:, k] @ x[j, k] / 0.5)
                        total -= np.log(1 - p[i])
                pairs += 1
    assert recipe.in_batch(v, 0.5).item() == pytest.approx(total / pairs, rel=1e-4)
    assert recipe.in_batch(v[:, :1].expand(4, 2, 5), 0.5).item() > 0.1
    v = torch.ones(2, 2, 1, requires_grad=True)
    recipe.in_batch(v, 1e-3).backward()
    assert bool(torch.isfinite(v.grad).all())


def test_learning_rates_are_those_of_the_baselines_and_a_cosine():
    steps = recipe.lr_factor("steps", 200)
    assert [steps(e) for e in (0, 79, 80, 119, 120, 160, 199)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.001, 0.001]
    )
    cosine = recipe.lr_factor("cosine", 100)
    assert [cosine(s) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])


def test_networks_have_the_sizes_of_the_specification():
    from torch.utils.flop_counter import FlopCounterMode

    desk = recipe.Encoder(PRESETS["desk"]).eval()
    with torch.device("meta"):
        paper = recipe.Encoder(PRESETS["paper"])
    with FlopCounterMode(display=False) as counter:
        y = desk(torch.rand(1, 3, 16, 16)).detach()
    assert counter.get_total_flops() / 2 == pytest.approx(0.8e6, rel=0.05)
    assert y.shape == (1, 64)
    assert float(y.norm()) == pytest.approx(1, rel=1e-5)
    resnet18 = 11_173_962  # with 10 classes, 3x3 stem
    count = sum(p.numel() for p in paper.parameters())
    assert count == resnet18 + (128 - 10) * 513


# --- judging and data ----------------------------------------------------------------------


class FirstPixel(nn.Module):
    """A feature that says the picture's number: neighbours are known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        angle = x[:, 0, 0, 0]
        return torch.stack((angle.cos(), angle.sin()), 1)


def test_knn_uses_fresh_features_of_the_test_transform(data):
    """Line 10: whole pictures in their order, normalised only; k and tau as configured."""
    numbers = torch.arange(80)
    images = torch.zeros(80, 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = numbers.to(torch.uint8)
    labels = numbers // 8
    plain = recipe.augmentation.Normalize((0.0,) * 3, (1.0,) * 3)
    same = Pictures(images, labels)
    given = dataclasses.replace(data, train=same, held=same, normalize=plain)
    config = dataclasses.replace(SMOKE, k=1)
    assert recipe.judge(FirstPixel().eval(), False, given, config, cpu()) == {"accuracy": 100.0}
    wrong = dataclasses.replace(given, held=Pictures(images, (labels + 1) % 10))
    assert recipe.judge(FirstPixel().eval(), False, wrong, config, cpu())["accuracy"] == 0
    found = recipe.judge(FirstPixel().eval(), True, given, SMOKE, cpu())
    assert found["recall_at_2"] == 100
    assert found["recall_at_1"] >= 80


def test_the_tuning_pictures_are_unused_ones_and_the_test_set_stays_closed(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    config = dataclasses.replace(SMOKE, data_root=tmp_path, shrink=1)
    test = recipe.load_data(config)
    # picture n has n mod 256 in its corner
    assert test.train.images[:, 0, 0, 0].tolist() == list(range(80))
    assert test.held.images[:, 0, 0, 0].tolist() == [(1000 + k) % 256 for k in range(40)]
    values = test.train.images.double() / 255
    assert test.normalize.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert test.normalize.std == pytest.approx(values.std((0, 2, 3)).tolist())
    opened = []
    real = CIFAR10.__init__
    monkeypatch.setattr(
        CIFAR10, "__init__", lambda self, *a: (opened.append(a[1]), real(self, *a))[1]
    )
    tuning = recipe.load_data(dataclasses.replace(config, held_out="tuning"))
    assert opened == ["train"]
    assert tuning.held.images[:, 0, 0, 0].tolist() == list(range(80, 120))
    assert "tuning pictures" in tuning.what
    assert torch.equal(tuning.train.images, test.train.images)
    for wrong in ({"train_pictures": 131}, {"train_pictures": 130, "held_out": "tuning"}):
        with pytest.raises(FoveateError, match="too few"):
            recipe.load_data(dataclasses.replace(config, **wrong))


@pytest.mark.parametrize(
    "wrong", [{"arms": ("nobody",)}, {"once": ("nobody",)}, {"views": 1}, {"epochs": 0},
              {"batch": 0}, {"shrink": 0}, {"k": 0}, {"k": 81}, {"merge_at": (0.5, 1.0)}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        dataclasses.replace(SMOKE, **wrong)


def test_presets_are_those_of_the_specification():
    desk, paper = PRESETS["desk"], PRESETS["paper"]
    assert (desk.views, desk.epochs, desk.batch, desk.k, desk.weight) == (2, 30, 64, 50, 0.1)
    assert (desk.train_pictures, desk.test_pictures, desk.shrink) == (5000, 5000, 2)
    assert set(desk.arms) == {"untrained", "bank", "bank-long", "views", "merging"}
    assert desk.once == ("bank-long",)
    assert (paper.lr, paper.weight_decay, paper.batch, paper.tau) == (0.03, 5e-4, 128, 0.1)
    assert (paper.epochs, paper.schedule, paper.k, paper.dim) == (200, "steps", 200, 128)
    assert {int(share * 30) for share in desk.merge_at} == {12, 16, 21, 25}


# --- verdicts ------------------------------------------------------------------------------


def results(purity: float = 30.0, **arms: list[float]) -> list[Result]:
    """Arm (``_`` for ``-``) -> accuracy of each seed."""
    return [
        Result(arm.replace("_", "-"), seed, {"accuracy": value, "purity": purity})
        for arm, row in arms.items()
        for seed, value in enumerate(row)
    ]


HELD = {"bank": [30.0, 31.0, 32.0], "views": [33.0, 34.0, 35.0], "merging": [34.0, 35.0, 36.0]}


def test_verdict_is_the_rule_of_the_specification():
    def said(purity: float = 30.0, **other: list[float]) -> str:
        return recipe.verdict(results(purity, **{**HELD, **other}))

    assert said() == "reproduced"
    std = statistics.stdev(HELD["bank"])  # 1, that of every arm, so the pooled one, too
    assert std == 1
    assert said(bank=[33.1, 34.1, 35.1]) == "not reproduced"  # 0.9 below merging
    assert said(bank=[32.9, 33.9, 34.9]) == "reproduced"  # 1.1
    assert said(bank=[20.0, 34.0, 45.0]) == "not reproduced"  # far apart: pooled 8.9
    assert said(views=[34.9, 35.9, 36.9]) == "reproduced"  # 0.9 above merging is forgiven
    assert said(views=[35.1, 36.1, 37.1]) == "not reproduced"
    assert said(purity=20.0) == "not reproduced"
    assert said(purity=20.1) == "reproduced"
    assert said(bank=[34.0, 35.0, 36.0]) == "not reproduced"
    same = [30.0] * 3
    assert said(bank=same, views=same, merging=same) == "not reproduced"  # no gain at all


def test_verdict_wants_three_seeds_and_all_arms():
    assert recipe.verdict([]) == "inconclusive"
    for arm in HELD:
        rest = {name: row for name, row in HELD.items() if name != arm}
        assert recipe.verdict(results(**rest)) == "inconclusive"
        assert recipe.verdict(results(**rest, **{arm: HELD[arm][:2]})) == "inconclusive"
        assert recipe.verdict(results(**rest, **{arm: [math.nan, 1, 2]})) == "inconclusive"
    assert recipe.verdict(results(math.nan, **HELD)) == "inconclusive"  # nothing was merged
    assert recipe.verdict([r for r in results(**HELD) if r.seed < 2]) == "inconclusive"


def test_equal_compute_is_compared_under_shared_seeds_only():
    said = recipe.equal_compute(results(**HELD, bank_long=[35.0]))
    assert "seeds 0: 34.00 against 35.00 %" in said
    assert "per epoch, not per operation" in said
    said = recipe.equal_compute(results(**HELD, bank_long=[33.0, 34.0, 35.0]))
    assert "seeds 0, 1, 2: 35.00 against 34.00 %" in said
    assert "per operation, too" in said
    assert recipe.equal_compute(results(**HELD)) == "not compared at equal compute"
    assert "not compared" in recipe.equal_compute(results(**HELD, bank_long=[math.nan]))


def test_findings_are_those_whose_arms_were_run():
    found = recipe.findings(results(**HELD, bank_long=[40.0]))
    assert [f.verdict for f in found] == ["inconclusive", "reproduced", "reproduced"]
    everything = results(
        **HELD, bank_long=[40.0] * 3, consistency=[33.5, 34.5, 35.5], in_batch=[33.0, 34.0, 35.0]
    )
    everything += [
        Result(arm, seed, {"recall_at_1": value})
        for arm, value in (("bank-unseen", 50.0), ("merging-unseen", 49.0))
        for seed in range(3)
    ]
    found = recipe.findings(everything)
    assert [f.verdict for f in found] == [
        "not reproduced", "reproduced", "reproduced", "reproduced", "reproduced", "not reproduced"
    ]  # fmt: skip
    assert all("nan" not in f.text for f in found)
    assert recipe.findings([]) == []


def test_the_chain_may_break_once_and_by_less_than_a_deviation():
    def chain(bank: float, views: float, consistency: float, merging: float) -> str:
        means = zip(("bank", "views", "consistency", "merging"),
                    (bank, views, consistency, merging), strict=True)  # fmt: skip
        return recipe.chain(results(**{arm: [m - 1, m, m + 1] for arm, m in means}))

    assert chain(30, 31, 32, 33) == "reproduced"
    assert chain(30, 31, 31, 31) == "reproduced"
    assert chain(30, 31, 30.5, 31) == "reproduced"
    assert chain(30, 29.5, 31, 32) == "reproduced"
    assert chain(30, 31, 29.9, 32) == "not reproduced"  # by more than one
    assert chain(30, 31, 30.5, 30) == "not reproduced"  # twice
    assert recipe.chain(results(**HELD)) == "inconclusive"


def test_remarks_state_k_and_the_share_of_the_consistency():
    row = {"accuracy": 1.0, "images": 640.0, "cons_share": 0.04}
    said = recipe.remarks([Result("merging", 0, row)], SMOKE)
    assert "k = 5, weights exp(similarity / 0.1)" in said[0]
    assert "merging 640" in said[1]
    assert "4 % of the instance loss" in said[2]
