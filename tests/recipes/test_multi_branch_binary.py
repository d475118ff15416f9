"""The recipe end to end on a miniature, its arms, its checks and its verdicts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from foveate.engine import compile as compile_packed
from foveate.errors import FoveateError
from foveate.quantization.layers import quant_layers
from foveate.quantization.multi_branch import MBNConv2d
from foveate.recipes import multi_branch_binary as recipe
from foveate.recipes.multi_branch_binary import CHECKS, PRESETS, Config, Data, Pictures
from foveate.report.evidence import Evidence, Result
from make_miniatures import images as mini

SMOKE = PRESETS["smoke"]
MINI = dataclasses.replace(SMOKE, widths=(8, 2, 1), direct=(1,), branch_pictures=2, exact_bits=(2,))
TRAINED = ["fp-start", "fp", "chain-8", "chain-2", "chain-1", "direct-1"]


def results(metric: str = "accuracy", **arms: list[float]) -> list[Result]:
    """Arm (``_`` for ``-``) -> value of each seed."""
    return [
        Result(arm.replace("_", "-"), seed, {metric: value})
        for arm, row in arms.items()
        for seed, value in enumerate(row)
    ]


def a_ladder(**other: list[float]) -> list[Result]:
    """A ladder of three seeds that holds exactly, with other rows in place of its own."""
    rows = {
        "fp": [90.0, 91.0, 92.0],
        "chain_8": [89.3, 90.3, 91.3],  # 0.7 below
        "chain_4": [87.8, 88.8, 89.8],  # 1.5 below
        "chain_3": [87.0] * 3,
        "chain_2": [86.0] * 3,
        "chain_1": [85.9] * 3,
    }
    return results(**{**rows, **other})


def patches(count: int, seed: int) -> Pictures:
    """Class k is a bright column at its own place: any net learns it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = rng.integers(0, 60, (count, 1, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 2 * label : 2 * label + 4] = 255
    return Pictures(torch.from_numpy(images), torch.from_numpy(labels))


def some_data(train: int = 64, test: int = 30) -> Data:
    shape = (1, 1, 1)
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return Data("", patches(train, 1), patches(test, 2), torch.full(shape, 0.2),
                torch.full(shape, 0.3), True, frames, "")  # fmt: skip


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def write_fashion(folder, train: int = 100, test: int = 20):
    mini.write_mnist(
        folder / "fashion-mnist", [k % 10 for k in range(train)], [k % 10 for k in range(test)]
    )
    return dataclasses.replace(MINI, data_root=folder)


# --- end to end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveate")
    config = write_fashion(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_DATA", str(folder))
        yield recipe.run(config), folder, config


def test_smoke_trains_every_arm_on_the_real_layout(smoke):
    evidence, _, _ = smoke
    assert isinstance(evidence, Evidence)
    assert [r.arm for r in evidence.results] == [*TRAINED, *CHECKS]
    assert not evidence.simulated
    assert evidence.data == "Fashion-MNIST, 80 training and 20 test pictures"
    assert evidence.verdict == "inconclusive"  # one seed proves nothing
    of = {r.arm: r.metrics for r in evidence.results}
    assert all(of[arm]["accuracy"] * 20 / 100 == round(of[arm]["accuracy"] * 20 / 100)
               for arm in TRAINED)  # fmt: skip
    assert all(of[arm][name] == 0 for arm in TRAINED[2:]
               for name in ("engine_differs", "branches_differ"))  # fmt: skip
    # 32 -> 64 -> 64 -> 128 channels, 3 x 3; 32 channels take up a word of 64 bits.
    words, weights = (64 + 64 + 128) * 9 * 8, (32 * 64 + 64 * 64 + 64 * 128) * 9
    for arm in TRAINED[2:]:
        assert of[arm]["weight_bytes"] == pytest.approx(int(arm[-1]) * words / weights)
    assert of["exactness"] == {"cases": 8, "branches_off": 0, "engine_off": 0}
    assert of["segmentation"]["branches_differ"] == of["segmentation"]["engine_differs"] == 0
    assert of["speed"]["ratio"] > 0
    exact = [f.verdict for f in evidence.findings if "differ" in f.text]
    assert exact == ["reproduced"] * 3
    read = Evidence.read(evidence.write(smoke[1]))
    assert [(r.arm, r.seed) for r in read.results] == [(r.arm, r.seed) for r in evidence.results]


def test_finished_work_is_reused_with_its_weights(smoke, monkeypatch):
    evidence, folder, config = smoke
    monkeypatch.setenv("FOVEATE_DATA", str(folder))
    stages: list[str] = []
    real = recipe.train
    monkeypatch.setattr(
        recipe, "train", lambda net, arm, *rest: (stages.append(arm), real(net, arm, *rest))
    )
    assert recipe.run(config).results == evidence.results
    assert stages == []
    # An interrupted run: two results are lost, and the weights of one of them.
    (kept,) = (folder / "runs" / "multi-branch-binary").iterdir()
    for arm in ("chain-2", "chain-1"):
        (kept / f"{arm}-0.json").unlink()
    (kept / "chain-1-0.safetensors").unlink()
    again = recipe.run(config)
    assert stages == ["chain-1"]
    assert [r.metrics for r in again.results] == [r.metrics for r in evidence.results]


def test_arms_start_where_they_say_and_end_apart(smoke):
    _, folder, config = smoke
    (kept,) = (folder / "runs" / "multi-branch-binary").iterdir()
    weights = {arm: load_file(kept / f"{arm}-0.safetensors") for arm in TRAINED}
    names = {arm: set(state) for arm, state in weights.items()}
    assert all(found == names["fp"] for found in names.values())  # one set of names at all widths
    for one, other in ((a, b) for a in TRAINED for b in TRAINED if a < b):
        assert not torch.equal(weights[one]["conv3.weight"], weights[other]["conv3.weight"])
    # One epoch of Adam moves a weight by about lr a step: a child is near its parent.
    steps = 80 // 16

    def apart(one: str, other: str) -> float:
        return float((weights[one]["conv3.weight"] - weights[other]["conv3.weight"]).abs().max())

    for arm, stage in recipe.stages_of(config).items():
        if stage.parent is not None:
            assert 0 < apart(arm, stage.parent) < 2 * steps * config.lr
    assert apart("chain-1", "fp-start") > apart("direct-1", "fp-start")


def test_without_the_set_smoke_draws_stripes_and_says_so(tmp_path):
    data = recipe.load_data(dataclasses.replace(SMOKE, data_root=tmp_path))
    assert data.simulated
    assert "drawn stripes" in data.what
    assert "noise" in data.frames_are
    assert data.train.images.shape == (80, 1, 28, 28)
    assert torch.bincount(data.train.labels).tolist() == [8] * 10
    assert not torch.equal(data.train.images[:40], data.test.images)


@pytest.mark.parametrize("name", ["Fashion-MNIST", "CIFAR-10"])
def test_without_the_set_desk_says_in_one_sentence_how_to_get_it(name, tmp_path):
    config = dataclasses.replace(PRESETS["desk"], data=name, data_root=tmp_path)
    with pytest.raises(FoveateError, match="--set data_root=FOLDER") as error:
        recipe.load_data(config)
    assert ("dataset-fashion-mnist" in str(error.value)) == (name == "Fashion-MNIST")
    assert "\n" not in str(error.value)


def test_debians_folder_is_looked_at(tmp_path, installed):
    config = write_fashion(tmp_path / "debian")
    installed(tmp_path / "debian")
    data = recipe.load_data(dataclasses.replace(config, data_root=tmp_path / "mine"))
    assert not data.simulated
    assert len(data.test) == 20


# --- data ----------------------------------------------------------------------------------


def test_training_subset_is_balanced_fixed_and_blind_to_the_test_set(tmp_path):
    config = write_fashion(tmp_path, train=200)
    data = recipe.load_data(config)
    assert torch.bincount(data.train.labels).tolist() == [8] * 10
    assert torch.equal(data.train.images, recipe.load_data(config).train.images)
    values = data.train.images.double() / 255
    assert float(data.mean) == pytest.approx(float(values.mean()), rel=1e-5)
    assert float(data.std) == pytest.approx(float(values.std()), rel=1e-5)
    mini.write_mnist(tmp_path / "fashion-mnist", [k % 10 for k in range(200)], [9, 9, 9])
    other = recipe.load_data(config)
    assert torch.equal(other.train.images, data.train.images)
    assert torch.equal(other.mean, data.mean)
    x = data.prepare(data.train.images)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


@given(height=st.integers(20, 400), width=st.integers(20, 400))
@settings(deadline=None, max_examples=15)
def test_photographs_of_any_size_become_squares(height, width):
    ramp = torch.linspace(0, 255, width).round().to(torch.uint8).expand(3, height, width)
    for view in (recipe.training_view(ramp), recipe.test_view(ramp)):
        assert view.shape == (3, 224, 224)
        assert view.dtype == torch.uint8
    steps = recipe.test_view(ramp).float()[0, 0].diff()
    assert bool((steps >= 0).all())  # not mirrored


def test_imagenet_is_read_and_trained_on(tmp_path):
    """One step at the smallest: the loader, the views, ResNet-18 and its 1-bit form."""
    mini.write_imagenet(tmp_path / "ImageNet", "train", {"n00000001": 1, "n00000002": 1})
    mini.write_imagenet(tmp_path / "ImageNet", "val", {"n00000001": 1, "n00000002": 1})
    config = dataclasses.replace(
        PRESETS["paper"], data_root=tmp_path, batch=2, workers=0, fp_epochs=1, stage_epochs=1
    )
    data = recipe.load_data(config)
    net = recipe.network(config, 1)
    stage = recipe.Stage("", None, 1, 1, 1)
    before = net.layer1[0].conv1.weight.detach().clone()
    recipe.train(net, "chain-1", stage, 0, data, config, cpu(), lambda what: None)
    assert not torch.equal(net.layer1[0].conv1.weight, before)
    assert float(net.layer1[0].conv1.weight.detach().abs().max()) <= 1
    assert data.prepare(data.test[0][0][None]).shape == (1, 3, 224, 224)


# --- networks ------------------------------------------------------------------------------


def config_of(data: str, **other) -> Config:
    return dataclasses.replace(SMOKE, data=data, **other)


@pytest.fixture
def on_meta():
    """Sizes without numbers: the large nets cost nothing."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("data", "shape", "layers", "everything"),
    [
        ("Fashion-MNIST", (1, 28, 28), 3, 5),
        ("CIFAR-10", (3, 32, 32), 7, 9),
        ("ImageNet", (3, 32, 32), 16, 18),
    ],
)
def test_widths_share_their_weights_and_only_inner_layers_are_quantised(
    data, shape, layers, everything, on_meta
):
    config = config_of(data)
    real = recipe.network(config, None)
    assert not list(quant_layers(real))
    for bits in (8, 1):
        net = recipe.network(config, bits)
        net.load_state_dict(real.state_dict())
        assert [layer.bits for _, layer in quant_layers(net)] == [(bits, bits)] * layers
        assert not any(isinstance(m, nn.ReLU) for m in net.modules())
        ranges = {layer.act.range for _, layer in quant_layers(net)}
        assert ranges == {"htanh" if bits == 1 or data == "CIFAR-10" else "hrelu"}
    full = recipe.network(dataclasses.replace(config, quantize_all=True), 2)
    full.load_state_dict(real.state_dict())
    found = [layer.bits for _, layer in quant_layers(full)]
    assert sorted(found) == [(2, 2)] * (everything - 1) + [(2, 32)]
    classes = 1000 if data == "ImageNet" else 10
    assert full.eval()(torch.empty(1, *shape)).shape == (1, classes)


def test_ranges_are_those_of_the_paper():
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    assert recipe.limits(None, "hrelu")()(x).tolist() == [0, 0, 0.5, 2]
    assert recipe.limits(4, "hrelu")()(x).tolist() == [0, 0, 0.5, 1]
    assert recipe.limits(1, "hrelu")()(x).tolist() == [-1, -0.5, 0.5, 1]
    assert recipe.limits(4, "htanh")()(x).tolist() == [-1, -0.5, 0.5, 1]


def test_stages_name_their_parents():
    stages = recipe.stages_of(PRESETS["desk"])
    assert {arm: stage.parent for arm, stage in stages.items()} == {
        "fp-start": None, "fp": "fp-start",
        "chain-8": "fp-start", "chain-4": "chain-8", "chain-3": "chain-4", "chain-2": "chain-3",
        "chain-1": "chain-2", "direct-2": "fp-start", "direct-1": "fp-start",
    }  # fmt: skip
    assert sum(stage.epochs for stage in stages.values()) == 12
    for bits in (1, 2):  # the fair control: as many steps, the same order of pictures
        one, other = stages[f"chain-{bits}"], stages[f"direct-{bits}"]
        assert (one.bits, one.epochs, one.order) == (other.bits, other.epochs, other.order)
    assert (stages["fp"].epochs, stages["fp"].order) == (1, stages["chain-8"].order)


@pytest.mark.parametrize(
    "wrong", [{"widths": (1, 2)}, {"widths": ()}, {"widths": (9, 1)}, {"widths": (4, 4)},
              {"direct": (5,)}, {"fp_epochs": 0}, {"batch": 0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(FoveateError):
        dataclasses.replace(SMOKE, **wrong)


# --- training ------------------------------------------------------------------------------


def test_chain_and_direct_differ_in_their_first_weights_only(tmp_path):
    """From equal weights the two arms end in the very same network; another seed does not."""
    config = dataclasses.replace(SMOKE, widths=(2,), direct=(2,))
    data, nothing = some_data(), (lambda what: None)
    nets = []
    for arm, seed in (("chain-2", 0), ("direct-2", 0), ("direct-2", 1)):
        torch.manual_seed(5)
        net = recipe.network(config, 2)
        stage = recipe.stages_of(config)[arm]
        recipe.train(net, arm, stage, seed, data, config, cpu(), nothing)
        nets.append(net.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())
    assert not torch.equal(nets[0]["fc.weight"], nets[2]["fc.weight"])


def test_training_learns_and_the_checks_can_fail(monkeypatch):
    config = dataclasses.replace(SMOKE, lr=1e-2, branch_pictures=2)
    data = some_data(160, 40)
    torch.manual_seed(0)
    net = recipe.network(config, 2)
    stage = recipe.Stage("", None, 2, 5, 2)
    recipe.train(net, "chain-2", stage, 0, data, config, cpu(), lambda what: None)
    good = recipe.evaluate(net, 2, data, config, cpu())
    assert good["accuracy"] > 60
    assert good["engine_differs"] == good["branches_differ"] == 0
    shifted = Pictures(data.test.images, (data.test.labels + 1) % 10)
    other = recipe.evaluate(net, None, dataclasses.replace(data, test=shifted), config, cpu())
    assert other["accuracy"] < 40

    def spoilt(model: nn.Module, x: torch.Tensor):
        model.fc.weight.data.mul_(-1)
        packed = compile_packed(model, x)
        model.fc.weight.data.mul_(-1)
        return packed

    monkeypatch.setattr(recipe, "compile_packed", spoilt)
    assert recipe.evaluate(net, 2, data, config, cpu())["engine_differs"] > 20


def test_optimiser_is_the_papers_where_asked_and_latent_weights_are_clipped(monkeypatch):
    data, asked = some_data(), []
    real = recipe.chain_optimizer
    monkeypatch.setattr(
        recipe, "chain_optimizer", lambda net, bits: (asked.append(bits), real(net, bits))[1]
    )
    config = dataclasses.replace(SMOKE, optimizer="paper", weight_norm="clip")
    for bits in (None, 3, 1):
        net = recipe.network(config, bits)
        if bits is not None:
            net.conv3.weight.data.mul_(100)
        stage = recipe.Stage("", None, bits, 1, 1)
        recipe.train(net, "x", stage, 0, data, config, cpu(), lambda what: None)
        if bits is not None:
            assert float(net.conv3.weight.detach().abs().max()) <= 1
    assert asked == [32, 3, 1]


def test_latent_weights_are_clipped_after_each_step():
    """Seen from the next forward: steps of 1.5 leave [-1, 1] every time."""
    config = dataclasses.replace(SMOKE, weight_norm="clip", lr=1.5)
    net, sizes = recipe.network(config, 3), []
    net.conv3.register_forward_pre_hook(
        lambda layer, x: sizes.append(float(layer.weight.detach().abs().max()))
    )
    recipe.train(net, "x", recipe.Stage("", None, 3, 1, 1), 0, some_data(), config, cpu(),
                 lambda what: None)  # fmt: skip
    assert len(sizes) == 4
    assert sizes[0] < 0.5
    assert all(0.9 < size <= 1 for size in sizes[1:])


def test_too_few_pictures_are_one_sentence():
    with pytest.raises(FoveateError, match="do not fill one step of 16"):
        recipe.train(recipe.network(SMOKE, None), "fp", recipe.Stage("", None, None, 1, 1), 0,
                     some_data(train=10), SMOKE, cpu(), lambda what: None)  # fmt: skip


# --- checks without training ---------------------------------------------------------------


def test_exactness_notices_one_wrong_weight(monkeypatch):
    config = dataclasses.replace(SMOKE, exact_bits=(2,))
    real = MBNConv2d.decompose

    def spoilt(self):
        branches = real(self)
        branches.weight[0, 0, 0, 0, 0] *= -1
        return branches

    monkeypatch.setattr(MBNConv2d, "decompose", spoilt)
    found = recipe.exactness(config)
    assert found["branches_off"] > 0
    assert found["engine_off"] == 0


def test_segmentation_runs_on_frames_whose_sides_are_no_multiples():
    frames = torch.randint(256, (1, 3, 18, 20), dtype=torch.uint8)
    found = recipe.segmentation(frames)
    assert found == {"branches_differ": 0, "engine_differs": 0, "pixels": 3 * 24 * 24}


@given(power=st.floats(0.2, 2), factor=st.floats(0.1, 10))
def test_slope_of_a_power_is_its_exponent(power, factor):
    x = [0.0, 1.0, 2.5, 4.0]
    assert recipe.slope(x, [factor + power * v for v in x]) == pytest.approx(power)


# --- verdicts ------------------------------------------------------------------------------


def test_verdict_is_the_rule_of_the_specification():
    assert recipe.verdict(a_ladder()) == "reproduced"  # at the very limits
    below_8 = [89.2, 90.3, 91.3]
    below_4 = [87.7, 88.8, 89.8]
    assert recipe.verdict(a_ladder(chain_8=below_8)) == "not reproduced"
    assert recipe.verdict(a_ladder(chain_4=below_4)) == "not reproduced"
    assert recipe.verdict(a_ladder(chain_1=[86.0] * 3)) == "not reproduced"  # not the lowest
    assert recipe.verdict(a_ladder(chain_3=[80.0] * 3)) == "not reproduced"
    # Means of seeds count, not single ones.
    assert recipe.verdict(a_ladder(chain_1=[87.0, 85.0, 85.0])) == "reproduced"


def test_verdict_wants_three_seeds_and_all_widths():
    two = [r for r in a_ladder() if r.seed < 2]
    assert recipe.verdict(two) == "inconclusive"
    for gone in ("fp", "chain-8", "chain-4", "chain-1"):
        assert recipe.verdict([r for r in a_ladder() if r.arm != gone]) == "inconclusive"
    assert recipe.verdict(a_ladder(fp=[90.0, 91.0])) == "inconclusive"
    assert recipe.verdict(a_ladder(chain_2=[float("nan")] * 3)) == "inconclusive"
    assert recipe.verdict([]) == "inconclusive"


def test_chain_must_win_under_every_seed():
    def chain(ours: list[float], theirs: list[float]) -> str:
        return recipe.findings(results(chain_2=ours, direct_2=theirs), "")[0].verdict

    assert chain([80.0, 81.0, 82.0], [79.0, 80.0, 81.0]) == "reproduced"
    assert chain([90.0, 91.0, 80.0], [79.0, 80.0, 80.5]) == "not reproduced"
    assert chain([79.0, 80.0, 81.0], [80.0, 81.0, 82.0]) == "not reproduced"
    assert chain([80.0, 81.0], [79.0, 80.0]) == "inconclusive"


def test_one_difference_refutes_exactness():
    clean = {"cases": 8, "branches_off": 0, "engine_off": 0}
    same = {"engine_differs": 0, "branches_differ": 0}
    seen = {"branches_differ": 0, "engine_differs": 0, "pixels": 9}

    def verdicts(exact: dict, trained: dict, side: dict) -> list[str]:
        rows = [
            Result("chain-2", 0, {"accuracy": 80.0, **trained}),
            Result("exactness", 0, exact),
            Result("segmentation", 0, side),
        ]
        return [f.verdict for f in recipe.findings(rows, "frames")[1:4]]

    assert verdicts(clean, same, seen) == ["reproduced"] * 3
    assert verdicts({**clean, "engine_off": 1}, same, seen)[0] == "not reproduced"
    assert verdicts({**clean, "branches_off": 2}, same, seen)[0] == "not reproduced"
    assert verdicts(clean, {**same, "branches_differ": 1}, seen)[1] == "not reproduced"
    assert verdicts(clean, same, {**seen, "engine_differs": 1})[2] == "not reproduced"
    assert [f.verdict for f in recipe.findings([], "")] == ["inconclusive"] * 6


def test_speed_has_a_verdict_only_where_it_was_measured():
    def verdicts(**metrics: float) -> list[str]:
        return [f.verdict for f in recipe.findings([Result("speed", 0, metrics)], "")[-2:]]

    assert verdicts(ratio=5.0, growth=1.0) == ["reproduced"] * 2
    assert verdicts(ratio=0.5, growth=0.2) == ["not reproduced"] * 2
    assert verdicts() == ["inconclusive"] * 2
    assert recipe.speed(0) == ({}, {})


def test_remarks_name_the_gaps():
    said = recipe.remarks(a_ladder(direct_1=[80.0] * 3))
    assert "chain-8 0.70, chain-4 2.20" in said[0]
    assert "At 1 bit the chain gives 85.90 %, the direct way 80.00 %." in said
