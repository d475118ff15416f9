"""The recipe end to end at its smallest, its arms, its verdicts, its data."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn.binary_resnet import BinaryResNet
from foveate.nn.staged import StagedModel, layer_outputs
from foveate.quantization.layers import BinaryConv2d
from foveate.recipes import adain_distillation as recipe
from foveate.recipes.adain_distillation import ARMS, AXES, PRESETS, Config, Data, Lesson, Pictures
from foveate.report.evidence import Evidence, Result
from make_miniatures import images as mini

SMOKE = PRESETS["smoke"]
OTHER_JOBS = ["teacher", "tune-l-stat", "tune-adain", "mechanism"]


def a_setup(folder, **changes) -> recipe.Setup:
    config = dataclasses.replace(SMOKE, **changes)
    fabric = Fabric(accelerator="cpu", devices=1)
    return recipe.Setup("base", config, recipe.load_data(config), fabric, folder)


def untrained(setup: recipe.Setup) -> StagedModel:
    return recipe.staged(recipe.teacher_net(setup).eval(), torch.zeros(1, *setup.data.shape))


def quiet(what: str) -> None:
    pass


def results(**arms: list[float]) -> list[Result]:
    """Arm (``_`` for ``-``, ``__`` for ``@``) -> accuracy of each seed."""
    return [
        Result(arm.replace("__", "@").replace("_", "-"), seed, {"accuracy": value})
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        told: list[str] = []
        config = dataclasses.replace(SMOKE, arms=("kd",))
        yield recipe.run(config, lambda what, done, total: told.append(what)), folder, told


def test_smoke_says_that_it_is_simulated_and_decides_nothing(smoke):
    evidence, folder, _ = smoke
    assert isinstance(evidence, Evidence)
    assert [r.arm for r in evidence.results] == [*OTHER_JOBS, "ce", "l-stat", "adain", "kd"]
    assert evidence.simulated
    assert "simulated" in evidence.data
    assert evidence.verdict == "inconclusive"
    assert all(f.verdict == "inconclusive" for f in evidence.findings[:2])
    of = {r.arm: r for r in evidence.results}
    for arm in ("ce", "l-stat", "adain", "kd"):
        assert 0 <= of[arm].metrics["accuracy"] <= 100
        assert ("share" in of[arm].metrics) == (arm in ("l-stat", "adain"))
    # 4 and 8 channels of the two stages
    assert of["mechanism"].items["layer"] == [1] * 4 + [2] * 8
    assert len(evidence.notes) == 4
    read = Evidence.read(evidence.write(folder))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]


def test_finished_work_is_reused_and_more_arms_join_it(smoke):
    evidence, folder, told = smoke
    before = sum("epoch" in what for what in told)
    assert before == 1 + 2 * 2 + 4  # teacher, two grids of two weights, four arms
    (kept,) = (folder / "runs" / "adain-distillation").iterdir()
    teacher = (kept / "teacher-patterns-16.safetensors").read_bytes()
    again = recipe.run(SMOKE, lambda what, done, total: told.append(what))
    assert {r.arm for r in again.results} == {*OTHER_JOBS, *ARMS}
    new = [what for what in told if "epoch" in what][before:]
    assert {what.split(",")[0] for what in new} == set(ARMS) - {"ce", "l-stat", "adain", "kd"}
    assert (kept / "teacher-patterns-16.safetensors").read_bytes() == teacher
    by_arm = {r.arm: r for r in again.results}
    assert all(repr(by_arm[r.arm]) == repr(r) for r in evidence.results)


# --- what the arms share -------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Every arm once under two seeds: its first and last state, and what it read."""
    setup = a_setup(tmp_path_factory.mktemp("arms"), lr=0.02)
    teacher, runs = untrained(setup), {}
    real_fit, real_read = recipe.fit, Pictures.read
    before = copy.deepcopy(teacher.state_dict())
    key: tuple[str, int] = ("", 0)

    def fit(lesson, *rest):
        runs[key] = {"lesson": lesson, "start": copy.deepcopy(lesson.state_dict()), "read": []}
        return real_fit(lesson, *rest)

    def read(self, batches, draw=None):
        for x, y in real_read(self, batches, draw):
            if draw is not None:
                runs[key]["read"].append(x.double().sum().item())
            yield x, y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "fit", fit)
        patch.setattr(Pictures, "read", read)
        for key in [(arm, 0) for arm in ARMS] + [("adain", 1), ("again", 0)]:
            arm = "adain" if key[0] == "again" else key[0]
            runs_metrics = recipe.train_arm(arm, key[1], 0.5, 2, teacher, setup, quiet)
            runs[key]["metrics"] = runs_metrics
    return setup, teacher, before, runs


def student_part(state: dict) -> dict:
    return {k: v for k, v in state.items() if k.startswith("student.")}


def test_students_start_alike_and_read_the_same_pictures_in_every_arm(watched):
    """Checklist 12: same seed, same first weights; and the same variations in the same order."""
    _, _, _, runs = watched
    reference = runs["ce", 0]
    assert len(set(reference["read"])) == len(reference["read"]) == 2 * (32 // 16)
    for arm in ARMS:
        run = runs[arm, 0]
        assert run["read"] == reference["read"]
        for name, value in student_part(reference["start"]).items():
            assert torch.equal(run["start"][name], value), (arm, name)
    other = runs["adain", 1]
    assert other["read"] != reference["read"]
    assert not torch.equal(
        other["start"]["student.conv1.weight"], reference["start"]["student.conv1.weight"]
    )


def test_arms_end_apart_and_are_repeatable(watched):
    _, _, _, runs = watched
    ends = {key: run["lesson"].student.conv1.weight.detach() for key, run in runs.items()}
    for one in ARMS:
        for other in ARMS:
            assert torch.equal(ends[one, 0], ends[other, 0]) == (one == other), (one, other)
    assert torch.equal(ends["again", 0], ends["adain", 0])
    assert runs["again", 0]["metrics"] == runs["adain", 0]["metrics"]


def test_statistics_and_adain_share_layers_connectors_and_grid(watched, tmp_path):
    """Checklist 8: one differs from the other by the loss alone."""
    setup, _, _, runs = watched
    stat, ours = (runs[arm, 0]["lesson"].distiller for arm in ("l-stat", "adain"))
    assert stat.layers == ours.layers == {"layer1": "layer1", "layer2": "layer2"}
    assert (stat.beta, stat.alpha_stat) == (0.0, 0.5)
    assert (ours.beta, ours.alpha_stat) == (0.5, 0.0)
    starts = [runs[arm, 0]["start"] for arm in ("l-stat", "adain")]
    names = [name for name in starts[0] if name.startswith("distiller.connectors.")]
    assert len(names) == 2 * 6
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in names)
    tried = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recipe,
            "train_arm",
            lambda arm, seed, weight, epochs, *rest: (
                tried.append((arm, seed, weight, epochs)) or {"accuracy_val": 1.0, "share": 1.0}
            ),
        )
        for arm in recipe.GRIDS.values():
            recipe.tuned(arm, untrained(setup), setup, quiet)
    one, other = ([row[1:] for row in tried if row[0] == arm] for arm in ("l-stat", "adain"))
    assert one == other == [(0, 0.5, 1), (0, 1.5, 1)]  # seed 0, weight per layer, epochs


def test_teacher_is_the_same_before_and_after_all_arms(watched):
    """Checklist 4."""
    _, teacher, before, _ = watched
    assert any("running_var" in name for name in before)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in teacher.parameters())


def test_the_student_is_tested_alone(watched):
    """Checklist 9: its parameters are those of the plain network, connectors are not counted."""
    setup, _, _, runs = watched
    plain = recipe.student_net(0, setup)
    for arm in ARMS:
        run = runs[arm, 0]
        plain.load_state_dict(run["lesson"].student.state_dict())
        assert run["metrics"]["parameters"] == sum(p.numel() for p in plain.parameters())
        plain.eval()
        with torch.no_grad():
            right = (plain(next(setup.data.test.read([torch.arange(60)]))[0]).argmax(1)
                     == setup.data.test.labels).sum()  # fmt: skip
        assert run["metrics"]["accuracy"] == pytest.approx(100 * int(right) / 60)


def test_arms_are_what_they_are_called(watched):
    _, _, _, runs = watched
    lessons = {arm: runs[arm, 0]["lesson"] for arm in ARMS}
    assert lessons["adain-last"].distiller.layers == {"layer3": "layer3"}
    kinds = {arm: lesson.distiller.statistics for arm, lesson in lessons.items()
             if lesson.distiller}  # fmt: skip
    assert kinds == {"l-stat": "both", "adain": "both", "adain-mu": "mean", "adain-last": "mean",
                     "adain+kd": "both"}  # fmt: skip


def test_losses_of_the_other_methods_by_hand(tmp_path):
    setup = a_setup(tmp_path)
    teacher = untrained(setup)
    ((x, y),) = setup.data.student.read([torch.arange(8)])
    student = recipe.student_net(3, setup).eval()
    names = ["layer1", "layer2"]
    with torch.no_grad():
        z_s, f_s = layer_outputs(student, x, names)
        z_t, f_t = teacher.outputs(x, names)
        ce = F.cross_entropy(z_s, y).item()
        p, q = (scipy.special.softmax(z.double().numpy() / 4, 1) for z in (z_t, z_s))
        kd = 0.1 * ce + 0.9 * 16 * scipy.special.rel_entr(p, q).sum(1).mean()
        at = 0.0
        for ours, theirs in zip(f_s, f_t, strict=True):
            maps = [f.double().numpy() ** 2 for f in (ours, theirs)]
            maps = [m.sum(1).reshape(8, -1) for m in maps]
            maps = [m / np.sqrt((m**2).sum(1, keepdims=True) + 1e-6) for m in maps]
            at += 1000 * ((maps[0] - maps[1]) ** 2).mean()
        fitnet, found = 0.0, {}
        for arm in ("ce", "kd", "at", "fitnet", "adain", "adain+kd"):
            torch.manual_seed(0)
            lesson = Lesson(arm, student, teacher, 2.0, setup.config, x).eval()
            found[arm] = [value.item() for value in lesson(x, y)]
            if arm == "fitnet":
                pairs = zip(lesson.connectors, f_s, f_t, strict=True)
                fitnet = 100 * sum(float((c(a) - b).square().mean()) for c, a, b in pairs)
    assert found["ce"] == pytest.approx([ce, 0, ce], rel=1e-4)
    assert found["kd"] == pytest.approx([kd, 0, ce], rel=1e-4)
    assert found["at"] == pytest.approx([ce, at, ce], rel=1e-3)
    assert found["fitnet"] == pytest.approx([ce, fitnet, ce], rel=1e-3)
    assert found["adain+kd"] == pytest.approx([kd, found["adain"][1], ce], rel=1e-3)
    assert found["adain"][1] > 0


# --- training ------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Two parameters whose losses are known: labels pull at `a`, features at `b`."""

    def __init__(self, within: float, wild_at: int = -1) -> None:
        super().__init__()
        self.student = nn.Linear(1, 1)
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.within, self.wild_at = within, wild_at
        self.steps: list[float] = []

    def forward(self, x, y):
        self.steps.append(self.b.item())
        ce = (math.nan if len(self.steps) == self.wild_at else 1.0) + 0 * self.a
        return ce, self.within + self.b, ce


@pytest.mark.parametrize(("within", "gentle"), [(9.0, False), (11.0, True)])
def test_a_wild_loss_is_let_in_over_the_first_epoch(within, gentle, tmp_path):
    """Specification's pitfall: above ten times the cross-entropy at the first step."""
    setup = a_setup(tmp_path, batch=8, weight_decay=0.0, lr=1e-3)
    lesson = Fixed(within)
    recipe.fit(lesson, setup.data.student, 2, 0, setup, quiet)
    # 4 steps an epoch; SGD with momentum 0.9 on a gradient of 1, or of 1/4, 2/4 ... at first
    b, speed, expected = 0.0, 0.0, []
    for step in range(8):
        expected.append(b)
        speed = 0.9 * speed + (min(1.0, (step + 1) / 4) if gentle else 1.0)
        b -= 1e-3 * (0.1 ** sum(step >= 8 * drop for drop in (0.625, 0.75, 0.875))) * speed
    assert lesson.steps == pytest.approx(expected, rel=1e-4)


def test_training_that_leaves_all_bounds_is_not_a_number_and_decides_nothing(tmp_path):
    setup = a_setup(tmp_path, lr=1e30)
    found = recipe.train_arm("adain", 0, 1.0, 2, untrained(setup), setup, quiet)
    assert all(math.isnan(value) for value in found.values())
    late = Fixed(1.0, wild_at=7)  # in the second epoch only
    assert math.isnan(recipe.fit(late, setup.data.student, 2, 0, a_setup(tmp_path, batch=8), quiet))
    rows = results(ce=[50.0] * 3, l_stat=[50.0] * 3, adain=[60.0, 60.0, math.nan])
    assert recipe.verdict(rows) == "inconclusive"
    rows = results(ce=[50.0] * 3, l_stat=[50.0, math.nan, 50.0], adain=[60.0] * 3)
    assert recipe.verdict(rows) == "inconclusive"


def test_share_is_that_of_the_first_epoch(tmp_path):
    setup = a_setup(tmp_path, batch=32, lr=0.0)
    teacher = untrained(setup)
    found = recipe.train_arm("l-stat", 0, 3.0, 1, teacher, setup, quiet)["share"]
    order, draw = (torch.Generator().manual_seed(k) for k in (0, 1000))
    ((x, y),) = setup.data.student.read(torch.randperm(32, generator=order)[None], draw)
    torch.manual_seed(0)
    student = recipe.student_net(0, setup)
    ((example, _),) = setup.data.student.read([torch.arange(8)])
    lesson = Lesson("l-stat", student, teacher, 3.0, setup.config, example).train()
    with torch.no_grad():
        terms = lesson.distiller(x, y)
    assert found == pytest.approx((3 * terms["stat"] / terms["ce"]).item(), rel=1e-4)


def test_weights_are_chosen_on_validation_pictures_only(tmp_path, monkeypatch):
    """Checklist 8: of equals the smallest; what is no number is passed over."""
    setup = a_setup(tmp_path, grid=(1.0, 2.0, 3.0, 4.0))
    on_val = iter([50.0, 60.0, math.nan, 60.0])
    on_test = iter([90.0, 10.0, 10.0, 20.0])
    monkeypatch.setattr(
        recipe,
        "train_arm",
        lambda *rest: {"accuracy": next(on_test), "accuracy_val": next(on_val), "share": 0.1},
    )
    metrics, items = recipe.tuned("adain", untrained(setup), setup, quiet)
    assert metrics == {"weight": 1.0, "accuracy_val": 60.0}
    assert items["weight"] == [0.5, 1.0, 1.5, 2.0]
    # ... and an arm is trained with what was chosen for it.
    used = {}
    monkeypatch.setattr(recipe, "train_arm", lambda arm, seed, weight, *rest: used.update(
        {arm: weight}) or {})  # fmt: skip
    monkeypatch.setattr(recipe, "trained_teacher", lambda *rest: None)
    rows = [Result("tune-l-stat", 0, {"weight": 7.0}), Result("tune-adain", 0, {"weight": 8.0})]
    for arm in ("l-stat", "adain", "adain-mu", "adain-last", "adain+kd"):
        recipe.measure(arm, 1, setup, rows, quiet)
    assert used == {"l-stat": 7.0, "adain": 8.0, "adain-mu": 8.0, "adain-last": 8.0,
                    "adain+kd": 8.0}  # fmt: skip


def test_a_teacher_learns_and_its_student_too(tmp_path):
    setup = a_setup(tmp_path, pictures=120, student_pictures=96, teacher_epochs=8, size=8,
                    validation=0.2, student_widths=(4, 4, 4), teacher_widths=(6, 6, 6))  # fmt: skip
    teacher = recipe.trained_teacher(setup, quiet)
    assert recipe.evaluate(teacher, setup)["accuracy"] > 60  # 25 by chance
    found = recipe.train_arm("adain", 0, 0.5, 12, teacher, setup, quiet)
    assert found["accuracy"] > 50
    again = recipe.trained_teacher(setup, lambda what: pytest.fail("it was trained once"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name])


def test_a_binary_student_learns_from_a_real_teacher(tmp_path):
    """1-bit blocks and AdaIN together: gradients reach the latent weights, which stay clipped."""
    setup = a_setup(tmp_path, student="binary", student_widths=(4, 4, 8), binary_lr=0.05)
    teacher = untrained(setup)
    before = copy.deepcopy(teacher.state_dict())
    student = recipe.student_net(0, setup)
    layers = [m for m in student.modules() if isinstance(m, BinaryConv2d)]
    assert isinstance(student, BinaryResNet)
    assert [layer.bits for layer in layers] == [(1, 1)] * 6
    ((x, y),) = setup.data.student.read([torch.arange(32)])
    lesson = Lesson("adain", student, teacher, 1.0, setup.config, x).train()
    (_, within, _) = lesson(x, y)
    first, *_ = (m.weight for m in layers)
    (gradient,) = torch.autograd.grad(within, first)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    start = lesson(x, y)[1].item()
    recipe.fit(lesson, setup.data.student, 8, 0, setup, quiet)
    assert lesson.train()(x, y)[1].item() < start
    fast = dataclasses.replace(setup, config=dataclasses.replace(setup.config, binary_lr=2.0))
    recipe.fit(lesson, setup.data.student, 1, 0, fast, quiet)
    sizes = [float(layer.weight.detach().abs().max()) for layer in layers]
    assert 0.999 < max(sizes) <= 1  # it was there that such steps were stopped
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_too_few_pictures_are_one_sentence(tmp_path):
    setup = a_setup(tmp_path, batch=33)
    with pytest.raises(FoveateError, match="32 training pictures do not fill one step of 33"):
        recipe.train_arm("ce", 0, 1.0, 1, untrained(setup), setup, quiet)


# --- networks ------------------------------------------------------------------------------


def test_networks_have_the_sizes_of_the_specification(tmp_path):
    """Teacher 74 k weights of convolutions and classifier, 3.0 M multiply-adds; student 5 k."""
    desk = PRESETS["desk"]
    data = Data("", 10, *[Pictures(torch.zeros(1, 3, 16, 16), torch.zeros(1))] * 4)
    setup = recipe.Setup("base", desk, data, Fabric(accelerator="cpu", devices=1), tmp_path)
    teacher, student = recipe.teacher_net(setup), recipe.student_net(0, setup)

    def weights(net):
        return sum(p.numel() for name, p in net.named_parameters() if p.ndim > 1 or "fc" in name)

    assert weights(teacher) == 27 * 16 + 9 * (2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2) + 650
    assert 74_000 < weights(teacher) < 75_000
    assert 4_500 < weights(student) < 5_500
    with FlopCounterMode(display=False) as counter:
        teacher.eval()(torch.zeros(1, 3, 16, 16))
    assert counter.get_total_flops() / 2 == pytest.approx(3.06e6, rel=0.01)
    for changes in ({"student": "vgg"}, {"student": "binary"}):
        other = dataclasses.replace(setup, config=dataclasses.replace(desk, **changes))
        net = recipe.student_net(0, other).eval()
        _, features = layer_outputs(net, torch.zeros(1, 3, 16, 16), ["layer1", "layer2"])
        assert [f.shape[1:] for f in features] == [(4, 16, 16), (8, 8, 8)]


def test_every_axis_is_a_configuration_and_runs_the_required_arms():
    long = PRESETS["long"]
    for changes in AXES.values():
        assert isinstance(dataclasses.replace(long, **changes), Config)
    jobs = recipe.jobs_of(dataclasses.replace(long, seeds=(0, 1)))
    assert len(set(jobs)) == len(jobs)
    for axis, changes in AXES.items():
        here = [(arm, seed) for arm, where, seed in jobs if where == axis]
        trained = {arm for arm, _ in here} & set(ARMS)
        assert trained == (set(ARMS) if axis == "base" else {"ce", "l-stat", "adain"})
        assert ("teacher", 0) in here or "data" not in changes
        assert here.index(("tune-adain", 0)) < here.index(("adain", 0))
        assert [row for row in here if row[0] == "adain"] == [("adain", 0), ("adain", 1)]
    assert {axis for _, axis, _ in recipe.jobs_of(PRESETS["desk"])} == {"base"}


@pytest.mark.parametrize(
    "wrong",
    [{"arms": ("nothing",)}, {"axes": ("nothing",)}, {"layers": ()}, {"layers": (4,)},
     {"layers": (0,)}, {"student_blocks": (1, 1)}, {"grid": ()}, {"grid": (0.0, 1.0)},
     {"grid": (3.0, 1.0)}, {"validation": 0.0}, {"validation": 1.0}, {"epochs": 0},
     {"batch": 0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError) as error:
        dataclasses.replace(SMOKE, **wrong)
    assert "\n" not in str(error.value)


# --- verdicts ------------------------------------------------------------------------------


def test_the_verdict_is_the_rule_of_the_specification():
    ce = [50.0, 51.0, 52.0]

    def said(stat: list[float], ours: list[float]) -> str:
        return recipe.verdict(results(ce=ce, l_stat=stat, adain=ours))

    assert said([51.0, 51.5, 52.5], [52.0, 53.0, 54.0]) == "reproduced"
    # one seed loses, and the mean of 2.0 points is below two standard errors of 1.6
    assert said([50.0] * 3, [55.0, 50.9, 53.0]) == "not reproduced"
    # likewise 3.9 points and 2.0
    assert said([50.0] * 3, [56.0, 50.9, 57.9]) == "not reproduced"
    assert said([50.0] * 3, [55.0, 55.0, 55.0]) == "reproduced"
    # below labels only in the mean
    assert said([40.0] * 3, [49.0, 50.0, 51.0]) == "not reproduced"
    # above l-stat by less than a standard error: +3, -2, +0.5
    assert said([51.0, 56.0, 53.5], [54.0, 54.0, 54.0]) == "inconclusive"
    # below l-stat by more than one
    assert said([56.0, 56.5, 57.0], [54.0, 54.0, 54.0]) == "not reproduced"
    # a failed half decides, whatever the other says
    assert said([49.5, 49.0, 52.0], [49.0, 50.0, 51.0]) == "not reproduced"
    rows = results(ce=ce, l_stat=ce, adain=[v + 1 for v in ce])
    assert recipe.verdict([r for r in rows if r.seed < 2]) == "inconclusive"
    assert recipe.verdict([r for r in rows if r.arm != "l-stat"]) == "inconclusive"
    assert recipe.verdict([]) == "inconclusive"


def test_two_standard_errors_make_up_for_a_lost_seed():
    gains = [-0.1, 2.0, 2.1, 2.2, 1.9, 2.0]
    error = np.std(gains, ddof=1) / math.sqrt(6)
    assert min(gains) < 0 < np.mean(gains) - 2 * error
    assert recipe.beats(gains) == "reproduced"
    assert recipe.beats([-1.0, 2.0, 2.0]) == "not reproduced"
    assert recipe.summary(gains) == pytest.approx((np.mean(gains), error))


def test_findings_answer_one_question_each():
    rows = results(
        ce=[50.0] * 3, l_stat=[51.0] * 3, adain=[53.0] * 3, adain_mu=[53.5] * 3,
        adain_last=[50.0, 53.0, 56.0], kd=[54.0] * 3, at=[52.0] * 3,
        ce__vgg=[40.0] * 3, l_stat__vgg=[41.0] * 3, adain__vgg=[42.0] * 3,
    )  # fmt: skip
    rows.append(Result("mechanism", 0, {"rank_ada": 0.6, "rank_stat": 0.4, "rank_beyond": 0.3}))
    found = {f.text.split(":")[0]: f.verdict for f in recipe.findings(rows)}
    assert found == {
        "(1) AdaIN beats labels only": "reproduced",
        "(2) AdaIN beats the squared loss on the statistics": "reproduced",
        "Means and deviations beat means only": "not reproduced",
        "The chosen stages beat the last stage alone": "inconclusive",
        "AdaIN beats the teacher's logits (no part of the rule)": "not reproduced",
        "AdaIN beats attention maps (no part of the rule)": "reproduced",
        "L_ada holds on to the channels that the teacher needs": "reproduced",
        "The claim holds on the axis vgg": "reproduced",
    }
    for value, said in ((0.5, "not reproduced"), (math.nan, "inconclusive")):
        rows[-1] = Result("mechanism", 0, {"rank_ada": value})
        assert [f.verdict for f in recipe.findings(rows) if "holds on to" in f.text] == [said]


def test_ranks_of_the_mechanism_are_scipys(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    drop, stat = draw.normal(size=9), draw.uniform(size=9)
    ada = drop + stat + draw.normal(size=9)
    rows = iter([slice(0, 4), slice(4, 9)])

    def fake(teacher, pictures, layer):
        part = next(rows)
        return {"shift": stat[part].tolist(), "ada": ada[part].tolist(),
                "stat": stat[part].tolist(), "drop": drop[part].tolist()}  # fmt: skip

    monkeypatch.setattr(recipe, "channel_sensitivity", fake)
    metrics, items = recipe.mechanism(None, a_setup(tmp_path))
    assert metrics["rank_ada"] == pytest.approx(scipy.stats.spearmanr(ada, drop).statistic)
    assert metrics["rank_stat"] == pytest.approx(scipy.stats.spearmanr(stat, drop).statistic)
    # partial correlation: of what is left of both ranks after a straight line in the third
    a, d, s = (scipy.stats.rankdata(v) for v in (ada, drop, stat))
    left = [v - np.polyval(np.polyfit(s, v, 1), s) for v in (a, d)]
    assert metrics["rank_beyond"] == pytest.approx(np.corrcoef(*left)[0, 1])
    assert items["layer"] == [1] * 4 + [2] * 5
    assert math.isnan(recipe.rank([1.0, 2.0], [0.0, 0.0]))


# --- data ----------------------------------------------------------------------------------


def write_cifar(folder, train: int = 60) -> Config:
    labels = [number % 10 for number in range(train)]
    mini.write_cifar10_npz(folder / "images" / "cifar10_data_batch_1.npz", labels)
    mini.write_cifar10_npz(folder / "images" / "cifar10_test_batch.npz", [1, 2, 3], first=100)
    return dataclasses.replace(PRESETS["desk"], data_root=folder, student_pictures=20)


def test_validation_and_test_pictures_are_never_trained_on(tmp_path):
    config = write_cifar(tmp_path)
    data = recipe.load_data(config)
    assert [len(p) for p in (data.train, data.student, data.val, data.test)] == [54, 20, 6, 3]
    assert data.shape == (3, 16, 16)
    assert "54 training pictures of the teacher, 20 of the students, 6 for validation" in data.what

    def pooled(number: int) -> bytes:
        squares = mini.cifar_picture(number).reshape(3, 16, 2, 16, 2).astype(int)
        return ((squares.sum((2, 4)) + 2) // 4).astype(np.uint8).tobytes()

    train, student, val, test = (
        {image.numpy().tobytes(): int(y) for image, y in zip(p.images, p.labels, strict=True)}
        for p in (data.train, data.student, data.val, data.test)
    )
    assert {**train, **val} == {pooled(number): number % 10 for number in range(60)}
    assert not set(train) & set(val)
    assert set(student) < set(train)
    assert test == {pooled(100 + k): k + 1 for k in range(3)}
    again = recipe.load_data(dataclasses.replace(config, student_pictures=0))
    assert torch.equal(again.val.images, data.val.images)
    assert len(again.student) == len(again.train)
    with pytest.raises(FoveateError, match=r"student_pictures is 55.*has 54 training pictures"):
        recipe.load_data(dataclasses.replace(config, student_pictures=55))
    with pytest.raises(FoveateError, match=r"size is 5, .*edge of 32"):
        recipe.load_data(dataclasses.replace(config, size=5))


def test_fashion_faces_and_cifar100_have_the_shapes_of_the_axes(tmp_path):
    mini.write_mnist(tmp_path / "fashion-mnist", [k % 10 for k in range(20)], [3, 1])
    for split in ("train", "test"):
        pairs = [(n % 20, n % 100) for n in range(100)]
        mini.write_cifar100(tmp_path / "cifar-100-binary" / f"{split}.bin", pairs)
    faces = np.arange(30 * 48 * 48).reshape(30, 48, 48).astype(np.uint8)
    labels = (np.arange(30) % 7).astype(np.uint8)
    (tmp_path / "faces").mkdir()
    path = tmp_path / "faces" / "fer2013_subset.npz"
    np.savez(path, x_train=faces, y_train=labels, x_test=faces[:7], y_test=labels[:7])
    base = dataclasses.replace(PRESETS["desk"], data_root=tmp_path, student_pictures=0)

    fashion = recipe.load_data(dataclasses.replace(base, data="fashion-mnist"))
    assert (fashion.classes, fashion.shape, len(fashion.train)) == (10, (1, 16, 16), 18)
    padded = np.pad(mini.grey_picture(0), 2).reshape(16, 2, 16, 2).astype(int).sum((1, 3))
    assert np.array_equal(fashion.test.images[0, 0], (padded + 2) // 4)
    fer = recipe.load_data(dataclasses.replace(base, data="fer2013"))
    assert (fer.classes, fer.shape, len(fer.train)) == (7, (1, 16, 16), 27)
    pooled = faces[0].reshape(16, 3, 16, 3).astype(int).sum((1, 3))
    assert np.array_equal(fer.test.images[0, 0], (2 * pooled + 9) // 18)
    assert fer.test.labels.tolist() == labels[:7].tolist()
    whole = recipe.load_data(dataclasses.replace(base, data="cifar100", size=32))
    assert (whole.classes, whole.shape) == (100, (3, 32, 32))

    np.savez(path, x_train=faces, y_train=labels + 1, x_test=faces[:7], y_test=labels[:7])
    with pytest.raises(FoveateError, match="0 to 6"):
        recipe.load_data(dataclasses.replace(base, data="fer2013"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist", "fer2013"])
def test_absent_data_are_one_sentence(name, tmp_path):
    config = dataclasses.replace(PRESETS["desk"], data=name, data_root=tmp_path)
    with pytest.raises(FoveateError, match=r"expected|copy") as error:
        recipe.load_data(config)
    assert "\n" not in str(error.value)


def test_pictures_are_shifted_by_an_eighth_and_mirrored():
    x = torch.rand(40, 2, 16, 16)
    varied = recipe.shifted(x, torch.Generator().manual_seed(0))
    seen = set()
    for one, out in zip(x, varied, strict=True):
        padded = np.pad(one.numpy(), ((0, 0), (2, 2), (2, 2)))
        found = [
            (down, right, flip)
            for down in range(5)
            for right in range(5)
            for flip in (False, True)
            if np.array_equal(
                padded[:, down : down + 16, right : right + 16][:, :, :: -1 if flip else 1],
                out.numpy(),
            )
        ]
        assert len(found) == 1
        seen.update(found)
    assert {down for down, _, _ in seen} == {right for _, right, _ in seen} == set(range(5))
    assert {flip for *_, flip in seen} == {False, True}


def test_teacher_and_student_see_the_same_variation(tmp_path, monkeypatch):
    setup = a_setup(tmp_path)
    teacher, seen = untrained(setup), {"teacher": [], "student": []}
    real = Lesson.forward

    def forward(self, x, y):
        handles = [
            part.register_forward_pre_hook(lambda m, i, n=name: seen[n].append(i[0].clone()))
            for name, part in (("teacher", teacher.stages[0]), ("student", self.student))
        ]
        try:
            return real(self, x, y)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(Lesson, "forward", forward)
    recipe.train_arm("adain", 0, 1.0, 1, teacher, setup, quiet)
    assert len(seen["teacher"]) == len(seen["student"]) == 2
    assert all(map(torch.equal, seen["teacher"], seen["student"]))
