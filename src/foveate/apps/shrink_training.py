"""How ``foveate shrink`` gets from a float network to one of few bits.

Four ways, chosen by ``--method``:

``qat``
    learned steps (LSQ) for weights and activations, the kinds chosen by
    `foveate.quantization.surgery.quantize`, calibrated, then trained for a few epochs. Every width
    starts from the float network.
``mbn``
    weights on the grid of multi-branch binary networks, so that every layer is a sum of {-1,+1}
    branches; the widths go from high to low, each starting from the one before.
``real-to-binary``
    1 bit only: gated binary convolutions, taught stage by stage (soft signs, binary activations,
    binary weights), with attention maps where the network names its blocks.
``post-training``
    no training: steps from a few hundred pictures, batch statistics taken anew.

The teacher is always the float network itself: its softened predictions are matched beside the
labels, which is what keeps a network of few bits close to its parent in few epochs.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.datasets.own_pictures import OwnPictures
from foveate.errors import FoveateError
from foveate.learning.distillation import AttentionMatchingLoss, FrozenTeacher, LogitKD
from foveate.quantization.layers import (
    ChannelGate,
    QuantConv2d,
    clip_latent_weights,
    parameter_groups,
    quant_layers,
)
from foveate.quantization.quantizers import (
    QuantAct,
    SignSTE,
    SignWeight,
    UniformBipolarWeight,
    WeightQuantizer,
)
from foveate.quantization.real_to_binary import (
    RealToBinaryConfig,
    block_features,
    real_to_binary_stages,
)
from foveate.quantization.stages import Stage, run_stages
from foveate.quantization.surgery import QuantizeReport, calibrate, quantize

__all__ = ["METHODS", "Augment", "Feed", "Method", "Student", "Width", "make_student", "train"]

Method = Literal["qat", "mbn", "real-to-binary", "post-training"]
Augment = Literal["none", "shift", "mirror"]
METHODS: tuple[Method, ...] = get_args(Method)

CALIBRATION = 512  # pictures that steps and batch statistics come from
_SOFTNESS = 2.0  # temperature of the teacher's predictions
_BESIDE_FLOAT = {"ce": 0.5, "logits": 1.0}  # the labels, and what the float network says
_TELL_S = 0.3

Tell = Callable[[str, float], None]
"""Called with a word about the training and the share of it that is done, 0 to 1."""
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Width(NamedTuple):
    """Bits of weights and activations."""

    weights: int
    activations: int

    @property
    def name(self) -> str:
        """``w2a2``."""
        return f"w{self.weights}a{self.activations}"


@dataclass(frozen=True)
class Feed:
    """Pictures as a network takes them: ``(pixel / 255 - mean) / std`` per channel.

    Attributes
    ----------
    mean, std
        One number per channel, pixels being 0 to 1.
    device
        Where to.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str = "cpu"

    def __call__(self, pictures: Images) -> Tensor:
        """``(N, C, H, W)`` uint8 -> float32 on the device."""
        x = torch.from_numpy(np.ascontiguousarray(pictures)).to(self.device).float() / 255
        mean, std = (
            torch.tensor(values, device=self.device).reshape(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (x - mean) / std

    def batches(self, pictures: Images, size: int = 250) -> Iterator[Tensor]:
        """All pictures in order."""
        for start in range(0, len(pictures), size):
            yield self(pictures[start : start + size])


@dataclass(frozen=True)
class Student:
    """A network of few bits.

    Attributes
    ----------
    model
        The network, trained or not.
    report
        What was quantised, what was kept and why.
    notes
        What a reader of its accuracy should know.
    """

    model: nn.Module
    report: QuantizeReport
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Course:
    """What all training of one run has in common.

    Attributes
    ----------
    pictures, feed
        Only the training part is looked at.
    epochs, batch, lr, seed
        `lr` None: 1e-3 for 1 and 2 bits, 3e-4 for more.
    augment
        ``none``; ``shift`` by up to an eighth of a side; ``mirror``: shift, and left-right in half
        of the pictures.
    """

    pictures: OwnPictures
    feed: Feed
    epochs: int
    batch: int
    lr: float | None
    seed: int
    augment: Augment

    def calibration(self) -> Images:
        """A few hundred training pictures, the same in every run."""
        count = len(self.pictures.train)
        order = np.argsort(np.random.PCG64(self.seed).random_raw(count), kind="stable")
        return self.pictures.train[np.sort(order[:CALIBRATION])]


@dataclass(frozen=True)
class Lesson:
    """One training run of one network: its length, and what the loss is made of.

    Attributes
    ----------
    losses
        Weight of ``ce``, ``logits`` and ``attention``.
    temperature
        Of the softened predictions.
    blocks
        Paths of the blocks whose attention maps are matched.
    """

    epochs: int
    lr: float
    weight_decay: float
    losses: Mapping[str, float]
    temperature: float
    blocks: tuple[str, ...] = ()


# ------------------------------------------------------------------------------ the student


def make_student(
    network: nn.Module,
    method: Method,
    width: Width,
    keep: Sequence[str],
    course: Course,
    start: Mapping[str, Tensor] | None = None,
) -> Student:
    """Copy a float network, swap its layers and set all steps from pictures.

    Parameters
    ----------
    network
        Left as it is.
    keep
        Layers that stay real, as in `foveate.quantization.surgery.quantize`.
    start
        State of a student of another width, whose weights and batch norms this one starts from.

    Raises
    ------
    FoveateError
        Nothing can be quantised, a pattern names no layer, or ``real-to-binary`` with more than
        one bit.
    """
    if method == "real-to-binary" and width != (1, 1):
        raise FoveateError(
            f"--method real-to-binary makes 1-bit networks; asked for {width.name}: use --bits 1"
        )
    model = copy.deepcopy(network).to(course.feed.device).eval()
    if start is not None:
        own = dict(model.state_dict())
        model.load_state_dict({k: start.get(k, v) for k, v in own.items()})
    calibration = course.calibration()
    example = course.feed(calibration[:2])
    weights: int | Callable[[int], WeightQuantizer] = width.weights
    if method == "mbn":
        weights = _on_grid(width.weights)
    elif method == "real-to-binary":
        weights = _plain_sign
    report = quantize(model, weights, width.activations, keep=keep, example=example)
    if not report.quantized:
        raise FoveateError(
            f"nothing of {type(network).__name__} would be quantised: every layer is kept by "
            f"--keep {','.join(keep)}; keep less, or --keep none"
        )
    if method == "real-to-binary":
        _add_gates(model)
    learned = any(
        isinstance(module, (QuantAct, WeightQuantizer)) and module.learned
        for module in model.modules()
    )
    if learned:
        calibrate(model, course.feed.batches(calibration, 64))
    return Student(model, report)


def _on_grid(bits: int) -> Callable[[int], WeightQuantizer]:
    return lambda channels: UniformBipolarWeight(bits, "lsq", channels)


def _plain_sign(channels: int) -> WeightQuantizer:
    return SignWeight()


def _add_gates(model: nn.Module) -> None:
    """Give binary convolutions the learned scale and the gate of real-to-binary.

    They begin where the plain 1-bit layer is: the scale at mean |w| per channel, twice because the
    gate begins at about a half.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _, layer in quant_layers(model):
            size = layer.weight.detach().abs().flatten(1).mean(1)
            conv = isinstance(layer, QuantConv2d) and layer.groups == 1
            layer.channel_scale = nn.Parameter(2 * size if conv else size)
            if isinstance(layer, QuantConv2d) and layer.groups == 1:
                gate = ChannelGate(layer.in_channels, layer.out_channels)
                layer.gate = gate.to(layer.weight.device)


# ------------------------------------------------------------------------------ training


def train(
    student: Student, network: nn.Module, method: Method, width: Width, course: Course, tell: Tell
) -> Student:
    """Train a student, taught by the float network; returns it in eval mode.

    Raises
    ------
    FoveateError
        The loss is no longer a number.
    """
    if method == "post-training" or course.epochs == 0:
        tell("batch statistics", 0.0)
        _renew_statistics(student.model, course)
        return Student(student.model.eval(), student.report, student.notes)
    teacher = FrozenTeacher(copy.deepcopy(network).to(course.feed.device))
    if method == "real-to-binary":
        return _through_stages(student, teacher, course, tell)
    lr = course.lr if course.lr is not None else 1e-3 if min(width) <= 2 else 3e-4
    lesson = Lesson(course.epochs, lr, 0.0, _BESIDE_FLOAT, _SOFTNESS)
    _fit(student.model, teacher, course, lesson, tell)
    return Student(student.model.eval(), student.report, student.notes)


def _through_stages(
    student: Student, teacher: FrozenTeacher, course: Course, tell: Tell
) -> Student:
    """The chain of real-to-binary, as far as the network allows it."""
    notes = list(student.notes)
    blocks = getattr(student.model, "block_names", None)
    if not blocks:
        notes.append("the network names no blocks, so no attention maps were matched")
    soft = all(
        isinstance(layer.act, SignSTE) for _, layer in quant_layers(student.model) if layer.act
    )
    if not soft:
        notes.append(
            "some inputs are never negative and take the codes 0 and 1, which have no soft stage: "
            "training begins with binary activations"
        )
    # A short run: the steps share the epochs, and start from the weights of the float network.
    steps = 3 if soft else 2
    each = max(1, course.epochs // steps)
    config = RealToBinaryConfig(
        attention=bool(blocks),
        progressive=soft,
        epochs=(0, each, each, max(1, course.epochs - (steps - 1) * each)),
    )
    stages = real_to_binary_stages(config)
    order = [stage.name for stage in stages if stage.network == "binary"]
    template = student.model

    def build(stage: Stage) -> nn.Module:
        return teacher if stage.network == "real" else copy.deepcopy(template)

    def train_one(model: nn.Module, stage: Stage, above: nn.Module | None) -> None:
        if stage.network == "real":
            return
        losses, temperature = stage.losses, 1.0
        if above is None:  # the labels alone would forget the float network
            above, losses, temperature = teacher, _BESIDE_FLOAT, _SOFTNESS
        guide = above if isinstance(above, FrozenTeacher) else FrozenTeacher(copy.deepcopy(above))
        lesson = Lesson(
            stage.epochs,
            stage.lr if course.lr is None else course.lr,
            stage.weight_decay,
            losses,
            temperature,
            tuple(blocks) if blocks and "attention" in losses else (),
        )
        place = order.index(stage.name)

        def of_all(what: str, share: float) -> None:
            tell(f"{stage.name}, {what}", (place + share) / len(order))

        _fit(model, guide, course, lesson, of_all)

    final = run_stages(build, stages, train_one)[order[-1]]
    return Student(final.eval(), student.report, tuple(notes))


def _fit(
    model: nn.Module, teacher: FrozenTeacher, course: Course, lesson: Lesson, tell: Tell
) -> None:
    """Adam with a cosine from the lesson's rate to 0; the network ends in eval mode."""
    model.train()
    groups = parameter_groups(model, lesson.weight_decay)
    optimizer = torch.optim.Adam([dict(group) for group in groups if group["params"]], lesson.lr)
    steps = lesson.epochs * math.ceil(len(course.pictures.train) / course.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    logit_loss, attention_loss = LogitKD(lesson.temperature), AttentionMatchingLoss()
    weight = {name: lesson.losses.get(name, 0.0) for name in ("ce", "logits", "attention")}
    draw = torch.Generator().manual_seed(course.seed)
    taken, told, smooth = 0, 0.0, math.nan
    for epoch in range(lesson.epochs):
        for x, y in _drawn_batches(course, draw):
            logits, maps = block_features(model, x, lesson.blocks)
            with torch.no_grad():
                wanted, guides = block_features(teacher.network, x, lesson.blocks)
            loss = weight["ce"] * F.cross_entropy(logits, y)
            loss = loss + weight["logits"] * logit_loss(logits, wanted)
            if maps:
                loss = loss + weight["attention"] * attention_loss(maps, guides)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            clip_latent_weights(model)
            now = float(loss.detach())
            if not math.isfinite(now):
                raise FoveateError(
                    f"training went wrong in epoch {epoch + 1}: the loss is {now}; "
                    f"try a smaller --lr than {lesson.lr:g}"
                )
            taken += 1
            smooth = now if math.isnan(smooth) else 0.95 * smooth + 0.05 * now
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                tell(f"epoch {epoch + 1} of {lesson.epochs}, loss {smooth:.2f}", taken / steps)
    model.eval()


def _drawn_batches(course: Course, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of training batches, shuffled and varied."""
    pictures, labels = course.pictures.train, course.pictures.train_labels
    for chosen in torch.split(torch.randperm(len(labels), generator=draw), course.batch):
        if len(chosen) == 1 and len(labels) > 1:
            continue  # batch norm cannot train on one picture
        index = chosen.numpy()
        x = course.feed(pictures[index])
        if course.augment != "none":
            x = _varied(x, course.augment, draw)
        yield x, torch.from_numpy(labels[index]).to(course.feed.device)


def _varied(x: Tensor, augment: Augment, draw: torch.Generator) -> Tensor:
    """Each picture a little elsewhere, and perhaps mirrored; edges are repeated."""
    height, width = x.shape[-2:]
    reach = max(1, min(height, width) // 8)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    count = len(x)
    down, right = torch.randint(2 * reach + 1, (2, count), generator=draw).to(x.device)
    rows = (torch.arange(height, device=x.device) + down[:, None])[:, None, :, None]
    columns = torch.arange(width, device=x.device) + right[:, None]
    if augment == "mirror":
        flip = (torch.rand(count, generator=draw) < 0.5).to(x.device)
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    samples = torch.arange(count, device=x.device)[:, None, None, None]
    planes = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[samples, planes, rows, columns[:, None, None, :]]


def _renew_statistics(model: nn.Module, course: Course) -> None:
    """Batch-norm statistics of the quantised network, from the calibration pictures."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    with _averaging(norms), torch.no_grad():
        for batch in course.feed.batches(course.calibration(), 64):
            if len(batch) > 1:
                model(batch)


@contextlib.contextmanager
def _averaging(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Batch norms that take the mean over all batches, and are as before afterwards."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()
