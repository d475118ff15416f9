"""SSD: matching, loss and detection against plain loops; shapes, surgery, branches, engine."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from box_oracles import iou, some_boxes, suppressed
from foveate.engine import compile as compile_packed
from foveate.errors import FoveateError
from foveate.nn.binary_resnet import BinaryResNet
from foveate.nn.prior_boxes import (
    SSD300_COCO,
    SSD300_VOC,
    PriorGrid,
    decode,
    encode,
    prior_boxes,
    to_centres,
    to_corners,
)
from foveate.nn.resnet import BasicBlock, ResNet, resnet18
from foveate.nn.ssd import SSD, Detected, FeatureMaps, MultiBoxLoss, detect, match
from foveate.quantization.layers import quant_layers
from foveate.quantization.multi_branch import decomposed
from foveate.quantization.quantizers import UniformBipolar, UniformBipolarWeight
from foveate.quantization.surgery import quantize

GRID = PriorGrid(32, (4, 2), (8.0, 16.0), (8, 14, 24), ((2.0,), (2.0,)))
PRIORS = prior_boxes(GRID)


def small(classes: int = 2, activation=nn.ReLU) -> SSD:
    torch.manual_seed(0)
    net = ResNet(BasicBlock, (1, 1), (8, 16), classes=1)
    trunk = FeatureMaps(net, ("layer2",))
    return SSD(trunk, classes, GRID, activation=activation, extra=8)


def few_bits(bits: int) -> SSD:
    net = small(activation=lambda: nn.Hardtanh(0, 1))
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Hardtanh(0, 1))
    quantize(
        net,
        lambda channels: UniformBipolarWeight(bits, "tanh_max"),
        lambda: UniformBipolar(bits, "hrelu"),
        keep=("first", "downsample", "locators.*", "classifiers.*"),
    )
    net.train()(torch.randn(4, 3, 32, 32))
    return net.eval()


# --- matching ------------------------------------------------------------------------------


def some_priors(rng: np.random.Generator) -> torch.Tensor:
    """Of sizes that all differ: those of a grid tie within a large object, up to rounding."""
    return to_centres(torch.from_numpy(some_boxes(rng, 40).astype(np.float32)))


def matched_by_hand(boxes, labels, priors, threshold: float = 0.5):
    """Pairs by falling overlap; then every other prior by its own best object."""
    table = [[iou(box, prior) for prior in priors] for box in boxes]
    pairs = sorted((-table[k][p], k, p) for k in range(len(boxes)) for p in range(len(priors)))
    owner: dict[int, int] = {}
    for _, k, p in pairs:
        if p not in owner and k not in owner.values():
            owner[p] = k
    for p in range(len(priors)):
        if p not in owner and len(boxes):
            best = max(range(len(boxes)), key=lambda k: table[k][p])
            if table[best][p] >= threshold:
                owner[p] = best
    return [labels[owner[p]] + 1 if p in owner else 0 for p in range(len(priors))], owner


@given(seed=st.integers(0, 10**6), count=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_matching_is_that_of_plain_loops(seed, count):
    """Jaccard 0.5, and each truth has a best prior of its own."""
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, count).astype(np.float32)
    labels = rng.integers(0, 3, count)
    priors = some_priors(rng)
    classes, locations = match(torch.from_numpy(boxes), torch.from_numpy(labels), priors)
    corners = to_corners(priors).tolist()
    expected, owner = matched_by_hand(boxes.tolist(), labels.tolist(), corners)
    assert classes.tolist() == expected
    assert set(owner.values()) == set(range(count))
    back = decode(locations, priors).numpy()
    for prior, thing in owner.items():
        np.testing.assert_allclose(back[prior], boxes[thing], atol=1e-5)
    assert not locations[classes == 0].any()


def test_two_objects_at_one_place_have_a_prior_each():
    box = to_corners(PRIORS[5:6]).repeat(2, 1)
    classes, _ = match(box, torch.tensor([0, 1]), PRIORS, threshold=1.0)
    assert sorted(classes[classes > 0].tolist()) == [1, 2]


def test_an_overlap_of_just_the_threshold_is_enough():
    """Box (0, 0, 1/2, 1): its own prior, the whole picture (overlap 1/2), less, and nothing."""
    corners = [[0, 0, 0.5, 1], [0, 0, 1, 1], [0, 0, 1, 0.9], [0.5, 0, 1, 1]]
    priors = to_centres(torch.tensor(corners))
    classes, _ = match(torch.tensor([[0, 0, 0.5, 1]]), torch.tensor([2]), priors)
    assert classes.tolist() == [3, 3, 0, 0]


@pytest.mark.parametrize(
    ("boxes", "labels", "sentence"),
    [
        ([[0.1, 0.1, 0.1, 0.5]], [0], "with an area"),
        ([[0.1, 0.1, math.nan, 0.5]], [0], "finite"),
        ([[0.1, 0.1, 0.2, 0.5]], [0, 1], r"got \(1, 4\) and \(2,\)"),
        ([0.1, 0.1, 0.2, 0.5], [0], r"got \(4,\)"),
    ],
)
def test_boxes_that_cannot_be_matched(boxes, labels, sentence):
    with pytest.raises(FoveateError, match=sentence):
        match(torch.tensor(boxes), torch.tensor(labels), PRIORS)


# --- loss ----------------------------------------------------------------------------------


def loss_by_hand(locations, scores, targets, priors, negatives: int = 3) -> float:
    """Scalar: smooth L1 and cross entropy, hard negatives sorted in every picture."""
    total, positives = 0.0, 0
    corners = to_corners(priors).tolist()
    for place, logits, (boxes, labels) in zip(locations, scores, targets, strict=True):
        classes, owner = matched_by_hand(boxes.tolist(), labels.tolist(), corners)
        positives += len(owner)
        entropy = []
        for row, kind in zip(logits.tolist(), classes, strict=True):
            top = max(row)
            entropy.append(top + math.log(sum(math.exp(v - top) for v in row)) - row[kind])
        for prior, thing in owner.items():
            wanted = encode(boxes[thing][None].double(), priors[prior][None].double())[0]
            for said, true in zip(place[prior].tolist(), wanted.tolist(), strict=True):
                gap = abs(said - true)
                total += gap * gap / 2 if gap < 1 else gap - 0.5
            total += entropy[prior]
        hard = sorted((e for p, e in enumerate(entropy) if p not in owner), reverse=True)
        total += sum(hard[: negatives * len(owner)])
    return total / max(positives, 1)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_loss_is_that_of_plain_loops(seed):
    """Smooth L1 plus cross entropy over positives and three times as many hard negatives."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    priors = some_priors(rng)
    locations = torch.randn(2, len(priors), 4, generator=generator)
    scores = 3 * torch.randn(2, len(priors), 4, generator=generator)
    targets = []
    for count in (int(rng.integers(1, 4)), int(rng.integers(0, 3))):
        boxes = torch.from_numpy(some_boxes(rng, count).astype(np.float32))
        targets.append((boxes, torch.from_numpy(rng.integers(0, 3, count))))
    found = float(MultiBoxLoss(priors)(locations, scores, targets))
    expected = loss_by_hand(locations, scores, targets, priors)
    assert found == pytest.approx(expected, rel=1e-4)


def test_pictures_without_objects_cost_nothing():
    scores = torch.randn(1, len(PRIORS), 3, requires_grad=True)
    nothing = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]
    loss = MultiBoxLoss(PRIORS)(torch.zeros(1, len(PRIORS), 4), scores, nothing)
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_three_negatives_for_each_positive_have_a_gradient():
    box = to_corners(PRIORS[10:11])
    scores = torch.zeros(1, len(PRIORS), 3, requires_grad=True)
    MultiBoxLoss(PRIORS, threshold=1.0)(
        torch.zeros(1, len(PRIORS), 4), scores, [(box, torch.tensor([1]))]
    ).backward()
    assert int(scores.grad.abs().sum(-1).bool().sum()) == 1 + 3


def test_loss_refuses_what_does_not_fit():
    loss = MultiBoxLoss(PRIORS)
    with pytest.raises(FoveateError, match="one target for each picture"):
        loss(torch.zeros(1, 80, 4), torch.zeros(1, 80, 3), [])
    with pytest.raises(FoveateError, match="at least one negative"):
        MultiBoxLoss(PRIORS, negatives=0)


# --- detection -----------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_detection_is_that_of_plain_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    locations = torch.randn(1, len(PRIORS), 4, generator=generator)
    scores = 2 * torch.randn(1, len(PRIORS), 3, generator=generator)
    (found,) = detect(locations, scores, PRIORS, confidence=0.3, keep=9)
    boxes = decode(locations, PRIORS)[0].clamp(0, 1).tolist()
    chances = scores[0].softmax(-1)
    expected = []
    for label in (1, 2):
        sure = [p for p in range(len(PRIORS)) if chances[p, label] > 0.3]
        kept = suppressed([boxes[p] for p in sure], [float(chances[p, label]) for p in sure], 0.45)
        expected += [(float(chances[sure[k], label]), label - 1, boxes[sure[k]]) for k in kept]
    expected.sort(key=lambda one: -one[0])
    expected = expected[:9]
    assert found.labels.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(
        found.boxes, np.array([box for _, _, box in expected]).reshape(-1, 4), rtol=1e-6
    )


def chances(*wanted: float) -> torch.Tensor:
    """Logits (1, N, 2) of one class with these probabilities."""
    p = torch.tensor(wanted, dtype=torch.float64)
    return torch.stack((torch.zeros_like(p), (p / (1 - p)).log()), -1)[None].float()


def test_published_limits_of_detection():
    """Scores from 0.01, the best 400 of a class into the suppression, the best 200 kept."""
    lattice = torch.stack(torch.meshgrid(*[torch.arange(30) / 30 + 1 / 60] * 2, indexing="xy"), -1)
    apart = torch.cat((lattice.reshape(-1, 2), torch.full((900, 2), 1 / 40)), 1)
    nothing = torch.zeros(1, 900, 4)
    (found,) = detect(nothing[:, :3], chances(0.011, 0.0099, 0.5), apart[:3])
    np.testing.assert_allclose(found.scores, [0.5, 0.011], rtol=1e-5)
    falling = np.linspace(0.9, 0.1, 900).tolist()
    (found,) = detect(nothing, chances(*falling), apart)
    np.testing.assert_allclose(found.scores, falling[:200], rtol=1e-5)
    # 400 surer ones at one place stand for one object, and leave no room for the others.
    crowded = torch.cat((apart[:1].expand(400, 4), apart[1:51]))
    (found,) = detect(nothing[:, :450], chances(*falling[:450]), crowded)
    assert len(found) == 1
    (found,) = detect(nothing[:, :450], chances(*falling[:450]), crowded, candidates=401)
    assert len(found) == 2


def test_what_the_net_should_say_is_what_is_found():
    truth = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.4, 0.9, 0.95]])
    classes, locations = match(truth, torch.tensor([1, 0]), PRIORS)
    scores = 20 * nn.functional.one_hot(classes, 3).float()
    (found,) = detect(locations[None], scores[None], PRIORS)
    assert sorted(found.labels.tolist()) == [0, 1]
    torch.testing.assert_close(found.boxes[found.labels.argsort()], truth.flip(0))


def test_nothing_found_and_nothing_finite():
    scores = torch.zeros(2, len(PRIORS), 3)
    scores[..., 0] = 30
    found = detect(torch.zeros(2, len(PRIORS), 4), scores, PRIORS)
    assert [len(one) for one in found] == [0, 0]
    assert found[0].boxes.shape == (0, 4)
    scores[1, 3, 0] = math.nan
    with pytest.raises(FoveateError, match="diverged"):
        detect(torch.zeros(2, len(PRIORS), 4), scores, PRIORS)


def test_agreement_is_about_sure_objects_in_both_directions():
    box = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9]])
    one = Detected(box, torch.tensor([0, 1]), torch.tensor([0.9, 0.2]))
    assert one.agrees(Detected(box, torch.tensor([0, 2]), torch.tensor([0.905, 0.3])))
    assert not one.agrees(Detected(box, torch.tensor([1, 1]), torch.tensor([0.9, 0.2])))
    assert not one.agrees(Detected(box + 0.05, torch.tensor([0, 1]), torch.tensor([0.9, 0.2])))
    assert not one.agrees(Detected(box, torch.tensor([0, 1]), torch.tensor([0.8, 0.2])))
    more = Detected(box, torch.tensor([0, 1]), torch.tensor([0.9, 0.6]))
    assert not one.agrees(more)
    assert not more.agrees(one)
    nothing = Detected(box[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert nothing.agrees(nothing)
    assert not nothing.agrees(one)


# --- network -------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "classes"), [(SSD300_VOC, 20), (SSD300_COCO, 80)])
def test_ssd300_on_resnet18_has_8732_priors(grid, classes):
    with torch.device("meta"):
        trunk = FeatureMaps(resnet18(), ("layer2", "layer3", "layer4"))
        net = SSD(trunk, classes, grid)
        said = net(torch.empty(2, 3, 300, 300))
    assert trunk.channels == (128, 256, 512)
    assert [tuple(part.shape[1:]) for part in said[::2]] == [
        (16, 38, 38), (24, 19, 19), (24, 10, 10), (24, 5, 5), (16, 3, 3), (16, 1, 1)
    ]  # fmt: skip
    locations, scores = net.gather(said)
    assert locations.shape == (2, 8732, 4)
    assert scores.shape == (2, 8732, 1 + classes)


def test_extra_layers_are_those_of_the_published_net():
    """10 cells to 5 by halving, 5 to 3 and 3 to 1 without padding, behind a 1x1 convolution."""
    net = SSD(FeatureMaps(resnet18(), ("layer2", "layer3", "layer4")), 20)
    ways = [
        [(m.kernel_size[0], m.stride[0], m.padding[0], m.out_channels) for m in layer
         if isinstance(m, nn.Conv2d)]
        for layer in net.extras
    ]  # fmt: skip
    assert ways == [[(1, 1, 0, 128), (3, *way, 256)] for way in ((2, 1), (1, 0), (1, 0))]
    for head in (*net.locators, *net.classifiers):  # Xavier's uniform rule
        limit = math.sqrt(6 / (9 * (head.in_channels + head.out_channels)))
        assert 0.95 * limit < float(head.weight.detach().abs().max()) <= limit
        assert not head.bias.detach().any()


def test_tables_are_in_the_order_of_the_priors():
    """Each head says its own place: what is gathered must be where its prior lies."""
    net = small()
    said = []
    for cells, step, count in zip(GRID.cells, GRID.steps, GRID.per_cell, strict=True):
        at = (torch.arange(cells) + 0.5) * step / GRID.side
        place = torch.stack(torch.meshgrid(at, at, indexing="xy"))  # x, y
        numbers = torch.zeros(count, 4, cells, cells)
        numbers[:, :2] = place
        numbers[:, 2] = torch.arange(count)[:, None, None]
        said += [numbers.reshape(1, -1, cells, cells), torch.zeros(1, 3 * count, cells, cells)]
    locations, _ = net.gather(said)
    torch.testing.assert_close(locations[0, :, :2], PRIORS[:, :2])
    assert locations[0, :, 2].tolist() == [0, 1, 2, 3] * (16 + 4)


def test_feature_maps_are_those_of_the_net():
    torch.manual_seed(0)
    net = ResNet(BasicBlock, (1, 1, 1), (8, 8, 16), classes=2).eval()
    twin = copy.deepcopy(net)
    trunk = FeatureMaps(net, ("layer1", "layer3")).eval()
    x = torch.randn(1, 3, 32, 32)
    seen = []
    for name in ("layer1", "layer3"):
        twin.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(o))
    twin(x)
    assert trunk.channels == (8, 16)
    assert all(torch.equal(one, other) for one, other in zip(trunk(x), seen, strict=True))
    own = {name for name in net.state_dict() if not name.startswith("fc")}
    assert set(trunk.state_dict()) == own  # published weights keep their names
    assert trunk.train()(x)[0].requires_grad


def test_any_trunk_of_children_in_a_row():
    net = BinaryResNet(widths=(8, 8), blocks=(1, 1), classes=2, stem="cifar")
    assert FeatureMaps(net, ("layer1", "layer2")).channels == (8, 8)
    with pytest.raises(FoveateError, match="has the children stem, layer1, layer2"):
        FeatureMaps(net, ("layer2", "layer1"))
    with pytest.raises(FoveateError, match="got none"):
        FeatureMaps(net, ())


def test_wrong_sizes_are_one_sentence():
    net = small()
    with pytest.raises(FoveateError, match="give pictures of 32x32 pixels"):
        net.gather(net(torch.zeros(1, 3, 64, 64)))
    with pytest.raises(FoveateError, match="expects a trunk with `channels`"):
        SSD(nn.Conv2d(3, 8, 3), 2, GRID)
    grid = PriorGrid(32, (8, 3), (4.0, 11.0), (8, 14, 24), ((2.0,), (2.0,)))
    with pytest.raises(FoveateError, match="from 8 to 3 cells"):
        SSD(FeatureMaps(ResNet(BasicBlock, (1,), (8,), classes=1), ("layer1",)), 2, grid)


def test_a_small_detector_learns():
    """One bright square on black: found after some steps, by place and class."""
    net, loss_of = small(), MultiBoxLoss(PRIORS)
    boxes = torch.tensor([[4, 4, 14, 14], [16, 14, 30, 28], [2, 18, 12, 28]]) / 32
    labels = torch.tensor([0, 1, 0])
    x = torch.zeros(3, 3, 32, 32)
    for picture, box, label in zip(x, (boxes * 32).int().tolist(), labels, strict=True):
        left, top, right, bottom = box
        picture[int(label), top:bottom, left:right] = 2
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        loss = loss_of(
            *net.gather(net(x)), [(b[None], k[None]) for b, k in zip(boxes, labels, strict=True)]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = detect(*net.gather(net(x)), PRIORS, confidence=0.5)
    for answer, box, label in zip(found, boxes, labels, strict=True):
        assert int(answer.labels[0]) == int(label)
        assert iou(answer.boxes[0].tolist(), box.tolist()) > 0.7


# --- few bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@torch.no_grad()
def test_decomposed_detector_gives_the_same_detections(bits):
    """Decomposed output equals the quantised one, bit for bit: maps, boxes, labels, scores."""
    net = few_bits(bits)
    twin = decomposed(net)
    layers = [name for name, layer in quant_layers(net) if layer.coded_act is not None]
    assert len(layers) == 2 + 2 + 2  # blocks of two stages, one extra layer of two
    assert [name for name, _ in twin.named_modules() if name in layers] == layers
    assert not list(quant_layers(twin))
    x = torch.randn(3, 3, 32, 32)
    ours, theirs = net(x), twin(x)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert sum(float(part.abs().sum()) for part in ours) > 0
    for one, other in zip(
        detect(*net.gather(ours), PRIORS), detect(*net.gather(theirs), PRIORS), strict=True
    ):
        assert len(one) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("bits", [1, 4, 8])
@torch.no_grad()
def test_compiled_detector_says_the_same(bits):
    net = few_bits(bits)
    x = torch.randn(3, 3, 32, 32)
    packed = compile_packed(net, x[:1])
    said = packed.run(x)
    for ours, theirs in zip(net(x), said, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        detect(*net.gather(net(x)), PRIORS), detect(*net.gather(said), PRIORS), strict=True
    ):
        assert one.agrees(other, sure=0.3)


@torch.no_grad()
def test_quantised_detector_differs_from_the_real_one():
    """So that equality above is no equality of empty things."""
    one, other = few_bits(2), few_bits(8)
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(one(x)[0], other(x)[0])
