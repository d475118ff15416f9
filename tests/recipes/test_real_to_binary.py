"""The recipe end to end at its smallest, its verdicts, its steps, its data."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from foveate import engine
from foveate.errors import FoveateError
from foveate.quantization.layers import quant_layers, set_stage
from foveate.recipes import real_to_binary as recipe
from foveate.recipes.real_to_binary import ARMS, PRESETS, Data, InMemory
from foveate.report.evidence import Evidence, Result
from make_miniatures import images as mini

SMOKE = PRESETS["smoke"]
SMALL = dataclasses.replace(SMOKE, twin_epochs=1)


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def results(**arms: list[float]) -> list[Result]:
    """Arm (``_`` for ``-``, ``__`` for ``+``) -> accuracy of each seed."""
    return [
        Result(arm.replace("__", "+").replace("_", "-"), seed, {"accuracy": value})
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
        config = dataclasses.replace(SMOKE, arms=("baseline", "real-to-binary"))
        yield recipe.run(config, lambda what, done, total: told.append(what)), folder, told


def test_smoke_says_that_it_is_simulated_and_decides_nothing(smoke):
    evidence, _, _ = smoke
    assert isinstance(evidence, Evidence)
    assert {r.arm for r in evidence.results} == {"real", "baseline", "real-to-binary"}
    assert evidence.simulated
    assert evidence.verdict == "inconclusive"
    assert {finding.verdict for finding in evidence.findings} == {"inconclusive"}
    for result in evidence.results:
        assert all(np.isfinite(value) for value in result.metrics.values())
        assert 0 <= result.metrics["accuracy"] <= 100
    by_arm = {r.arm: r.metrics for r in evidence.results}
    ours = by_arm["real-to-binary"]
    assert {"accuracy_soft", "accuracy_w32a1", "flip_rate", "ste_window"} <= set(ours)
    assert ours["attention_share_soft"] > 0
    assert ours["attention_share_w32a1"] > 0
    assert by_arm["real"]["bops"] == 0
    assert any("Cost of teaching" in note for note in evidence.notes)


def test_cost_of_each_arm_is_that_of_the_closed_form(smoke):
    evidence, _, _ = smoke
    by_arm = {r.arm: r.metrics for r in evidence.results}
    # one block of 4 channels at 16 x 16, one of 8 at 8 x 8: two 3 x 3 convolutions each
    macs = 256 * 9 * (4 * 4 + 4 * 4) + 64 * 9 * (4 * 8 + 8 * 8)
    stem, skip, head = 256 * 27 * 4, 64 * 4 * 8, 8 * 4
    assert by_arm["baseline"]["bops"] == by_arm["real-to-binary"]["bops"] == macs
    for arm in ("baseline", "real-to-binary"):
        assert by_arm[arm]["conv_flops"] == stem + skip + head
    assert by_arm["baseline"]["gate_flops"] == 0
    # hidden width 4: c_in x 4 + 4 x c_out of every binary convolution
    assert by_arm["real-to-binary"]["gate_flops"] == 4 * (8 + 8 + 12 + 16)
    assert by_arm["real"]["conv_flops"] > macs


def test_finished_work_is_reused_and_more_arms_join_it(smoke):
    evidence, _, told = smoke
    epochs = sum("epoch" in what for what in told)
    assert epochs == 2 + 2 + 3  # twin once, two stages, chain
    again = recipe.run(SMOKE, lambda what, done, total: told.append(what))
    assert {r.arm for r in again.results} == set(ARMS)
    new = [what for what in told if "epoch" in what][epochs:]
    assert {what.split(",")[0] for what in new} == {"direct", "baseline+gate", "baseline+matching"}
    assert not any("real, epoch" in what for what in new)  # the twin's weights were kept
    kept = [r for r in again.results if r.arm in ("real", "baseline", "real-to-binary")]
    assert repr(kept) == repr(evidence.results)


def test_packed_network_is_kept_and_says_the_same(smoke):
    evidence, folder, _ = smoke
    (path,) = folder.glob("runs/real-to-binary/*/real-to-binary-0.fvt")
    (ours,) = (r.metrics for r in evidence.results if r.arm == "real-to-binary")
    assert ours["packed_agree"] == 1
    assert ours["packed_bytes"] == path.stat().st_size > ours["bytes"]
    assert engine.PackedModel.load(path).input_shape == (3, 16, 16)


def test_disagreement_of_the_packed_network_is_counted(tmp_path, fabric, monkeypatch):
    class Liar:
        size_bytes = 7

        def save(self, path):
            path.write_bytes(b"1234567")

        def run(self, batch):
            return 1 - truth[: len(batch)]

    net = recipe.binary_net(SMOKE, 0, gate=False, final=False)
    pictures = recipe.load_data(SMOKE).test
    monkeypatch.setattr(recipe.engine, "compile", lambda net, example: Liar())
    truth = F.one_hot(torch.arange(32) % 4, 4).float()
    monkeypatch.setattr(net, "forward", lambda x: truth[: len(x)])
    monkeypatch.setattr(recipe.copy, "deepcopy", lambda net: net)
    found = recipe.compiled(net, pictures, tmp_path / "x.fvt", fabric)
    assert found == {"packed_agree": 0.0, "packed_bytes": 7}


# --- verdicts ------------------------------------------------------------------------------


def test_reproduced_needs_all_three_parts():
    base = {"real": [50.0] * 3, "direct": [30.0] * 3, "baseline": [35.0, 36.0, 37.0]}
    assert recipe.verdict(results(**base, real_to_binary=[40.0, 41.0, 42.0])) == "reproduced"
    # gap 14 -> 11 is less than a quarter, though 3 points are three deviations
    assert recipe.verdict(results(**base, real_to_binary=[38.0, 39.0, 40.0])) == "not reproduced"
    # exactly a quarter: 14 -> 10.5
    assert recipe.verdict(results(**base, real_to_binary=[38.5, 39.5, 40.5])) == "reproduced"
    worse = base | {"direct": [36.5] * 3}
    assert recipe.verdict(results(**worse, real_to_binary=[40.0, 41.0, 42.0])) == "not reproduced"
    noisy = base | {"baseline": [26.0, 36.0, 46.0]}  # deviation of the pair 7.1 > 5
    assert recipe.verdict(results(**noisy, real_to_binary=[40.0, 41.0, 42.0])) == "not reproduced"
    no_gap = base | {"real": [34.0] * 3}
    assert recipe.verdict(results(**no_gap, real_to_binary=[40.0, 41.0, 42.0])) == "not reproduced"
    two = {arm: values[:2] for arm, values in base.items()}
    assert recipe.verdict(results(**two, real_to_binary=[40.0, 41.0])) == "inconclusive"
    without = {arm: values for arm, values in base.items() if arm != "direct"}
    assert recipe.verdict(results(**without, real_to_binary=[40.0, 41.0, 42.0])) == "inconclusive"


def test_each_part_of_the_rule_has_a_verdict_of_its_own():
    found = recipe.criteria(
        results(
            real=[50.0] * 3,
            direct=[37.0] * 3,
            baseline=[35.0, 36.0, 37.0],
            real_to_binary=[38.0, 39.0, 40.0],
        )
    )
    assert [f.verdict for f in found] == ["not reproduced", "reproduced", "not reproduced"]
    assert [f.text[:3] for f in found] == ["(1)", "(2)", "(3)"]


def test_pooled_deviation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(40, 2, 3), rng.normal(50, 1, 3)
    expected = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    found = recipe.pooled_deviation(results(one=list(a), two=list(b)), ("one", "two"))
    assert found == pytest.approx(expected)


def test_long_runs_say_what_does_it():
    found = recipe.findings(
        results(
            real=[50.0] * 3,
            direct=[30.0] * 3,
            baseline=[36.0] * 3,
            baseline__gate=[38.0] * 3,
            baseline__matching=[37.0] * 3,
            real_to_binary=[40.0] * 3,
        )
    )
    four, five = found[3:]
    assert four.verdict == "reproduced"
    assert five.verdict == "not reproduced"  # 2 points are not less than half of 3


def test_the_packed_network_must_say_the_same_of_every_picture():
    def one(agrees: float) -> str:
        rows = results(real_to_binary=[40.0] * 3)
        for row in rows:
            row.metrics["packed_agree"] = 1.0
        rows[1].metrics["packed_agree"] = agrees
        return recipe.findings(rows)[-1].verdict

    assert one(1.0) == "reproduced"
    assert one(0.999) == "not reproduced"


# --- arms and steps ------------------------------------------------------------------------


def test_student_epochs_are_equal_and_every_arm_is_what_it_is_called():
    desk = PRESETS["desk"]
    for arm in ARMS:
        stages = recipe.stages_of(arm, desk)
        assert sum(s.epochs for s in stages if s.network == "binary" or arm == "real") == 18
        assert stages[-1].name == ("real" if arm == "real" else "w1a1")
    (direct,) = recipe.stages_of("direct", desk)
    assert (direct.init_from, direct.teacher, direct.clip_latent) == (None, None, True)
    for arm in ("baseline", "baseline+gate"):
        assert all(s.teacher is None and dict(s.losses) == {"ce": 1} for s in
                   recipe.stages_of(arm, desk))  # fmt: skip
    matching = {s.name: s for s in recipe.stages_of("baseline+matching", desk)}
    assert matching["w32a1"].teacher == matching["w1a1"].teacher == "real"
    assert {"attention", "logits"} <= set(matching["w32a1"].losses)
    chain = recipe.stages_of("real-to-binary", desk)
    assert [s.name for s in chain] == ["real", "soft", "w32a1", "w1a1"]
    assert [s.teacher for s in chain] == [None, "real", "soft", "w32a1"]
    assert [s.init_from for s in chain] == [None, None, "soft", "w32a1"]
    assert [s.epochs for s in chain] == [18, 5, 5, 8]
    assert set(chain[-1].losses) == {"ce", "logits"}  # attention is off in the last step
    for gated in ("baseline+gate", "real-to-binary"):
        net = recipe.binary_net(desk, 0, gated != "baseline", False)
        assert all(layer.gate is not None for _, layer in quant_layers(net))


def test_networks_share_their_first_weights():
    plain = recipe.binary_net(SMALL, 3, gate=False, final=False).state_dict()
    gated = recipe.binary_net(SMALL, 3, gate=True, final=True).state_dict()
    other = recipe.binary_net(SMALL, 4, gate=False, final=False).state_dict()
    assert set(plain) - set(gated) == {"stem.act.weight"}  # ReLU after the final network's stem
    assert all(".gate." in name for name in set(gated) - set(plain))
    for name in set(plain) & set(gated):
        assert torch.equal(plain[name], gated[name])
    assert not torch.equal(plain["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Every arm once, with the state of network and teacher before and after each step."""
    steps, reads = [], {}
    real_train, real_read, real_adam = recipe.train, InMemory.read, torch.optim.Adam
    folder = tmp_path_factory.mktemp("arms")
    fabric = Fabric(accelerator="cpu", devices=1)
    arm = ""

    def state(net):
        return None if net is None else copy.deepcopy(net.state_dict())

    def train(net, stage, teacher, *rest):
        step = {"arm": arm, "stage": stage, "start": state(net), "teacher": state(teacher)}
        steps.append(step)
        found = real_train(net, stage, teacher, *rest)
        step.update(end=state(net), net=net, teacher_end=state(teacher), teaching=teacher)
        return found

    def read(self, batches, draw=None):
        for x, y in real_read(self, batches, draw):
            if draw is not None:
                reads.setdefault(arm, []).append(x.double().sum().item())
            yield x, y

    def adam(groups, lr):
        steps[-1].update(lr=lr, decay={group["weight_decay"] for group in groups if
                                       group["params"]})  # fmt: skip
        return real_adam(groups, lr)

    config = dataclasses.replace(SMALL, epochs=4, chain=(1, 1, 2), final_lr=1.5, lr=1.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "train", train)
        patch.setattr(InMemory, "read", read)
        patch.setattr(torch.optim, "Adam", adam)
        data = recipe.load_data(config)
        for arm in ARMS:
            recipe.train_arm(arm, 0, data, config, fabric, folder, lambda what: None)
    return steps, reads, config


def test_all_arms_see_the_same_variations_in_the_same_order(watched):
    _, reads, config = watched
    steps = 4 * config.train_per_class // config.batch
    assert len(reads["baseline"]) == config.epochs * steps
    assert len(set(reads["baseline"])) == len(reads["baseline"])
    for arm in ARMS:
        shared = min(len(reads[arm]), len(reads["baseline"]))
        assert reads[arm][:shared] == reads["baseline"][:shared]


def test_teachers_are_frozen_with_their_statistics(watched):
    steps, _, _ = watched
    taught = [step for step in steps if step["teacher"] is not None]
    assert {(s["arm"], s["stage"].name) for s in taught} == {
        ("baseline+matching", "w32a1"), ("baseline+matching", "w1a1"),
        ("real-to-binary", "soft"), ("real-to-binary", "w32a1"), ("real-to-binary", "w1a1"),
    }  # fmt: skip
    for step in taught:
        assert any("running_mean" in name for name in step["teacher"])
        for name, value in step["teacher"].items():
            assert torch.equal(value, step["teacher_end"][name])
        assert not step["teaching"].training
        assert not any(p.requires_grad for p in step["teaching"].parameters())
    # ... and the first one is the trained twin, not an untrained one.
    (twin,) = (s for s in steps if s["arm"] == "real")
    first = next(s for s in taught if s["stage"].name == "soft")
    assert all(torch.equal(first["teacher"][name], value) for name, value in twin["end"].items())


def test_last_step_starts_from_the_one_before_without_decay_and_clips(watched):
    steps, _, config = watched
    for arm in ("baseline", "baseline+gate", "baseline+matching", "real-to-binary"):
        *_, before, last = (s for s in steps if s["arm"] == arm)
        assert (before["stage"].name, last["stage"].name) == ("w32a1", "w1a1")
        assert all(torch.equal(last["start"][name], value) for name, value in before["end"].items())
        assert before["decay"] == {config.weight_decay, 0.0}  # of kernels, of all else
        assert last["decay"] == {0.0}
        assert (before["lr"], last["lr"]) == (config.lr, config.final_lr)
        sizes = [
            [step["end"][f"{path}.weight"].abs().max() for path, _ in quant_layers(step["net"])]
            for step in (before, last)
        ]
        assert max(sizes[0]) > 1  # such a learning rate leaves [-1, 1] ...
        assert max(sizes[1]) < 1  # ... where 1-bit weights are held
    chain = [s for s in steps if s["arm"] == "real-to-binary"]
    soft, half = chain[-3], chain[-2]
    assert soft["stage"].activations == "soft"
    assert all(torch.equal(half["start"][name], value) for name, value in soft["end"].items())


def test_last_step_multiplies_signs_alone_and_clips_after_every_step(fabric, monkeypatch):
    """Checklist 1, 10 and 11, looked at where torch multiplies, all through the training."""
    config = dataclasses.replace(SMALL, final_lr=20.0)
    net = recipe.binary_net(config, 0, gate=True, final=True)
    set_stage(net, weights=True, activations=True)
    stage = recipe.stages_of("real-to-binary", config)[-1]
    layers = dict(quant_layers(net))
    assert list(layers) == [f"layer{i}.0.conv{j}" for i in (1, 2) for j in (1, 2)]
    assert list(net.block_names) == ["layer1.0", "layer2.0"]  # after the sum of the second skip
    seen, sizes, original = [], [], F.conv2d

    def spy(a, w, *rest, **more):
        seen.append((w.shape[-1], a.shape[1], {v.abs().eq(1).all().item() for v in (a, w)}))
        sizes.append(max(layer.weight.detach().abs().max().item() for layer in layers.values()))
        return original(a, w, *rest, **more)

    monkeypatch.setattr(F, "conv2d", spy)
    data = recipe.load_data(config)
    recipe.train(net, stage, None, data.train, config, fabric, recipe.orders(0, fabric))
    steps = len(data.train) // config.batch
    assert len(seen) == steps * (1 + 4 + 1)  # stem, binary convolutions, skip
    for kernel, channels, signs in seen:
        assert signs == ({True} if kernel == 3 and channels > 3 else {False})
    assert sizes[0] < 0.5
    assert all(0.9 < size <= 1 for size in sizes[6:])  # each step leaves [-1, 1] ...


def test_soft_step_can_be_forgotten(fabric, tmp_path, monkeypatch):
    starts = {}

    def train(net, stage, *rest):
        starts[stage.name] = copy.deepcopy(net.state_dict())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1)
        return {}

    monkeypatch.setattr(recipe, "train", train)
    config = dataclasses.replace(SMALL, soft_init="fresh")
    data = recipe.load_data(config)
    recipe.train_arm("real-to-binary", 0, data, config, fabric, tmp_path, lambda what: None)
    name = "layer1.0.conv1.weight"
    assert torch.equal(starts["w32a1"][name], starts["soft"][name])
    assert torch.equal(starts["w1a1"][name], starts["w32a1"][name] + 1)


def test_channel_scales_take_over_the_size_of_the_weights():
    net = recipe.binary_net(SMALL, 0, gate=False, final=False)
    layer = net.get_submodule("layer1.0.conv1")
    with torch.no_grad():
        layer.channel_scale.uniform_(0.5, 2)
    expected = [
        scale * sum(abs(w) for w in channel.flatten().tolist()) / channel.numel()
        for scale, channel in zip(layer.channel_scale.tolist(), layer.weight, strict=True)
    ]
    recipe.take_over_size(net)
    assert layer.channel_scale.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("how", "changes"), [("mean", True), ("keep", False)])
def test_scales_change_only_when_weights_become_one_bit_and_it_is_wanted(fabric, how, changes):
    config = dataclasses.replace(SMALL, scale_init=how, lr=0.0, final_lr=0.0)
    data = recipe.load_data(config)
    for stage in recipe.stages_of("baseline", config):
        net = recipe.binary_net(config, 0, gate=False, final=False)
        set_stage(net, weights=stage.weights, activations=stage.activations)
        streams = recipe.orders(0, fabric)
        recipe.train(net, stage, None, data.train, config, fabric, streams)
        scale = net.get_submodule("layer1.0.conv1").channel_scale
        ones = torch.ones_like(scale)
        assert torch.equal(scale, ones) != (changes and stage.weights)


def test_attention_share_is_measured_on_training_pictures_of_the_first_epoch(fabric):
    """One step: what was recorded is what numpy finds before it."""
    config = dataclasses.replace(SMALL, batch=64, attention_weight=7.0)
    data = recipe.load_data(config)
    soft = recipe.stages_of("real-to-binary", config)[1]
    net = recipe.binary_net(config, 0, gate=True, final=True)
    set_stage(net, weights=False, activations="soft")
    twin = recipe.twin_net(config, 0).eval()
    order, draw = recipe.orders(0, fabric)
    chosen = torch.randperm(64, generator=order)[None]
    ((x, y),) = data.train.read(chosen, draw)
    maps, losses = [], []
    for one in (copy.deepcopy(net).train(), twin):
        found = []
        hooks = [
            one.get_submodule(name).register_forward_hook(lambda m, i, o, f=found: f.append(o))
            for name in net.block_names
        ]
        with torch.no_grad():
            losses.append(F.cross_entropy(one(x), y).item())
        for hook in hooks:
            hook.remove()
        energy = [(o.double().numpy() ** 2).sum(1).reshape(len(x), -1) for o in found]
        maps.append([e / np.linalg.norm(e, axis=1, keepdims=True) for e in energy])
    attention = sum(((a - b) ** 2).mean() for a, b in zip(*maps, strict=True))
    found = recipe.train(net, soft, twin, data.train, config, fabric, recipe.orders(0, fabric))
    assert found["attention_share_soft"] == pytest.approx(7 * attention / losses[0], rel=1e-3)


def test_learning_rates_follow_the_published_steps():
    assert recipe.staircase(2.5 / 75) == pytest.approx(0.5)  # warm-up of 5 epochs
    for epoch, height in ((6, 1), (39, 1), (41, 0.3), (59, 0.3), (61, 0.09), (71, 0.027)):
        assert recipe.staircase(epoch / 75) == pytest.approx(height)
    assert recipe.cosine(2.5 / 75) == pytest.approx(0.5)
    assert recipe.cosine(5 / 75) == pytest.approx(1)
    assert recipe.cosine(40 / 75) == pytest.approx(0.5)
    assert recipe.cosine(1.0) == pytest.approx(0, abs=1e-12)


def test_training_learns(fabric, tmp_path):
    config = dataclasses.replace(SMALL, train_per_class=48, epochs=10, lr=1e-2, final_lr=5e-3)
    data = recipe.load_data(config)
    found = recipe.train_arm("baseline", 0, data, config, fabric, tmp_path, lambda what: None)
    assert found["accuracy"] > 60  # 25 by chance
    assert 0 <= found["flip_rate"] < 0.5
    assert 0 < found["ste_window"] < 1


# --- data ----------------------------------------------------------------------------------


def test_desk_data_are_balanced_shrunk_and_apart(tmp_path):
    labels = [number % 10 for number in range(60)]
    mini.write_cifar10_npz(tmp_path / "images" / "cifar10_data_batch_1.npz", labels)
    mini.write_cifar10_npz(tmp_path / "images" / "cifar10_test_batch.npz", labels, first=60)
    config = dataclasses.replace(
        PRESETS["desk"], data_root=tmp_path, train_per_class=4, test_per_class=3
    )
    data = recipe.load_data(config)
    assert data.shape == (3, 16, 16)
    assert (len(data.train), len(data.val), len(data.test)) == (40, 20, 30)
    assert data.train.labels.bincount().tolist() == [4] * 10
    assert data.test.labels.bincount().tolist() == [3] * 10
    assert "CIFAR-10" in data.what

    def pooled(number):
        squares = mini.cifar_picture(number).reshape(3, 16, 2, 16, 2).astype(int)
        return ((squares.sum((2, 4)) + 2) // 4).astype(np.uint8).tobytes()

    all_train = {pooled(number) for number in range(60)}
    train, val, test = (
        {picture.numpy().tobytes() for picture in split.images}
        for split in (data.train, data.val, data.test)
    )
    assert train | val == all_train
    assert not train & val
    assert test <= {pooled(number) for number in range(60, 120)}
    again = recipe.load_data(config)
    assert torch.equal(again.train.images, data.train.images)


def test_cifar100_is_read_whole(tmp_path):
    for split in ("train", "test"):
        rows = [(n % 20, n % 100) for n in range(100)]
        mini.write_cifar100(tmp_path / "cifar-100-binary" / f"{split}.bin", rows)
    config = dataclasses.replace(PRESETS["long"], data="cifar100", data_root=tmp_path)
    data = recipe.load_data(config)
    assert (len(data.train), data.val, len(data.test)) == (100, None, 100)
    assert data.shape == (3, 32, 32)
    assert data.test.classes == 100


def test_absent_data_name_their_source(tmp_path):
    for name in ("cifar10", "cifar100", "imagenet"):
        config = dataclasses.replace(PRESETS["desk"], data=name, data_root=tmp_path)
        with pytest.raises(FoveateError, match=r"http|expected"):
            recipe.load_data(config)


def test_pictures_are_shifted_by_an_eighth_and_mirrored():
    x = torch.rand(40, 3, 16, 16)
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


def test_imagenet_pictures_are_cropped_and_read_from_disk(tmp_path):
    for split in ("train", "val"):
        mini.write_imagenet(tmp_path / "ImageNet", split, {"n01440764": 2, "n01443537": 1})
    config = dataclasses.replace(PRESETS["paper"], data_root=tmp_path, workers=0, shrink=7)
    data = recipe.load_data(config)
    assert data.shape == (3, 32, 32)
    draw = torch.Generator().manual_seed(0)
    ((x, y),) = data.train.read(torch.arange(len(data.train))[None], draw)
    assert x.shape == (len(data.train), 3, 32, 32)
    assert torch.equal(y, torch.from_numpy(data.train.test.labels))
    ((x, _),) = data.test.read(torch.arange(len(data.test))[None])
    assert x.shape == (len(data.test), 3, 32, 32)


@pytest.mark.parametrize("crop", [recipe.CentreCrop(14), recipe.RandomCrop(14)])
@pytest.mark.parametrize("shape", [(3, 40, 20), (3, 9, 31), (3, 1, 1)])
def test_crops_of_any_picture_have_the_size_asked_for(crop, shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.full(shape, 51, dtype=torch.uint8)
        for _ in range(5):
            out = crop(picture)
            assert out.shape == (3, 14, 14)
            assert torch.allclose(out, torch.tensor((51 / 255 - 0.45) / 0.25), atol=1e-5)


def test_the_middle_of_the_picture_is_the_centre_crop():
    x = torch.arange(32, dtype=torch.uint8).expand(3, 16, 32)
    out = recipe.CentreCrop(14)(x)  # the shorter edge is 16 already
    expected = ((torch.arange(9, 23) / 255) - 0.45) / 0.25
    assert torch.allclose(out, expected.expand(3, 14, 14), atol=1e-6)


# --- bad input -----------------------------------------------------------------------------


def test_wrong_settings_are_one_sentence(fabric):
    with pytest.raises(FoveateError, match="no arm 'chain'; there are: real, direct"):
        dataclasses.replace(SMALL, arms=("chain",))
    with pytest.raises(FoveateError, match="three of them in chain"):
        dataclasses.replace(SMALL, chain=(1, 2))
    data = recipe.load_data(SMALL)
    few = Data("", data.shape, InMemory(torch.zeros(3, 3, 16, 16, dtype=torch.uint8),
               torch.zeros(3, dtype=torch.int64), 4), None, data.test)  # fmt: skip
    with pytest.raises(FoveateError, match="--set batch"):
        recipe.train_arm("direct", 0, few, SMALL, fabric, None, lambda what: None)
