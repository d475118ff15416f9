"""LI-Conv: does a little inhibition in front of dilated convolutions label pixels better?

Paper: Wang, Dong, Shen, Lin, Pantic, "Dilated Convolutions with Lateral Inhibitions for Semantic
Image Segmentation", 2020 (arXiv 2006.03708). Known here are the abstract, which claims a gain on
PASCAL VOC 2012, CelebAMask-HQ and ADE20K, and the authors' TensorFlow code; no figure is known.

The three arms of a data set are one network, with the same first weights, crops and schedule:

    plain    dilated convolutions
    li       each lowers its input by w times its neighbours first; w learned from 0   <- the method
    frozen   as li, but w stays 0: what the additional ReLU does without any inhibition

and, at two seeds and outside every verdict, ``init`` (w starts uniform in [0, 0.15]) and ``zone5``
(neighbours in 5x5). Three data sets stand in for the paper's, each with its own verdict:

    camvid         street scenes, 11 classes, quartered to 120x90; and the test drive Seq05VD alone,
                   because the other test frames are from a drive that also trains
    faces          Helen faces; 7 classes *drawn from 68 landmarks*, not painted by hand
    sanfrancisco   AIRSAR radar, 5 classes; a checkerboard of blocks, crops inside a block only

Nothing is chosen by test data, and nothing is tuned: there is one setting for all. mIoU is counted
over the whole split, and once more over pixels within 3 px of a boundary.

The ``paper`` scales are DeepLabv3+ with MobileNetV2 on the paper's own data and schedules:
``paper`` (VOC 2012), ``paper-celebamask-hq`` and ``paper-ade20k``. They want ImageNet weights
(``--set weights=FILE``, with torchvision's names). The smoke scale draws its own pictures.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from foveate.datasets import catalogue
from foveate.datasets.ade20k import ADE20K
from foveate.datasets.camvid import CamVid
from foveate.datasets.celebamask_hq import CelebAMaskHQ
from foveate.datasets.face_masks import FACE_CLASSES, face_mask
from foveate.datasets.images import mean_pool
from foveate.datasets.npz import read_npz
from foveate.datasets.polsar import load_san_francisco
from foveate.datasets.scene import Scene, Window
from foveate.datasets.segmentation_crops import (
    VOID,
    LabelledPictures,
    PicturesInMemory,
    RandomCrops,
    Renumbered,
)
from foveate.datasets.voc import VOCSegmentation
from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import inhibition_report, no_decay_groups, project_after_step
from foveate.nn.mobilenet import MobileNetV2
from foveate.nn.resnet import load_state
from foveate.report import evidence
from foveate.report.evidence import Claim, Evidence, Finding, Ledger, Result, Verdict, mean
from foveate.scenes.lateral_inhibition import DeepLabV3Plus, MobileNetV2Features, TinyDilated
from foveate.scenes.segmentation_accuracy import SegmentationScore
from foveate.scenes.splits import test_blocks

__all__ = ["CLAIM", "PRESETS", "Config", "run"]

CLAIM = Claim(
    text=(
        "Lateral inhibition in front of dilated convolutions labels pixels better, above all near "
        "boundaries"
    ),
    metric="miou",
    direction="higher",
    method="camvid-li",
    ablation="camvid-plain",
    rule=(
        "for each data set, reproduced if the 95 % interval (t) of the paired differences in mIoU "
        "over seeds lies above 0, the mean difference near boundaries is at least that of all "
        "pixels, and the mean w is above 0; not reproduced if the interval lies below 0 or every w "
        "stays 0; else inconclusive; of all together reproduced if every one is, not reproduced if "
        "any is not"
    ),
    published="the abstract claims a gain on VOC 2012, CelebAMask-HQ, ADE20K; no figure is known",
    certainty="P",
)

ARMS = {
    "plain": "dilated convolutions as they are",
    "li": "lateral inhibition in front of them, w learned from 0",
    "frozen": "as li with w kept at 0: the additional ReLU without inhibition",
}
ABLATIONS = {
    "init": "as li, w starts uniform in [0, 0.15]",
    "zone5": "as li with neighbours in 5x5",
}
DESK_DATA = ("camvid", "faces", "sanfrancisco")
SF_BLOCK = (100, 128)
SF_CHANNELS = ("T22", "T33", "T11")

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Measured = tuple[evidence.Metrics, evidence.Items]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data
        One data set, or ``desk``: all three small ones.
    data_root
        Folder of data sets; None is foveate's own.
    stand_in
        Where a data set is absent, draw discs instead (marked simulated).
    net
        ``tiny``, or DeepLabv3+ with MobileNetV2.
    weights
        ImageNet weights of MobileNetV2, with torchvision's names.
    option
        Which blocks of MobileNetV2 are inhibited.
    steps, batch, crop
        Length of the training, crops in a step, side of a crop.
    optimizer, lr, weight_decay
        AdamW, or SGD with momentum 0.9; the rate falls as (1 - step / steps)^0.9, w does not decay.
    li_init
        Where w of the pyramid starts, in the arm ``li``.
    scales
        Least and greatest enlargement in training, in steps of 0.25.
    trimap
        Width of the band at boundaries, in pixels.
    limit
        Take the first so many pictures of every split only; None: all.
    ablation_seeds
        How many of the seeds the ablations run at.
    workers
        Processes that read pictures.
    """

    scale: str
    data: Literal[
        "desk", "camvid", "faces", "sanfrancisco", "VOC2012", "CelebAMask-HQ", "ADE20K"
    ] = "desk"
    data_root: Path | None = None
    stand_in: bool = False
    net: Literal["tiny", "mobilenet"] = "tiny"
    weights: Path | None = None
    option: str = "f"
    steps: int = 375
    batch: int = 16
    crop: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    li_init: tuple[float, float] = (0.0, 0.0)
    scales: tuple[float, float] = (1.0, 1.0)
    trimap: int = 3
    limit: int | None = None
    ablation_seeds: int = 2
    workers: int = 0
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        whole = self.net != "tiny" or self.crop % 4 == 0
        if min(self.steps, self.batch) < 1 or self.crop < 16 or not whole:
            raise FoveateError(
                "steps and batch are at least 1, crop at least 16 and, for the tiny net, a "
                f"multiple of 4, got {self.steps}, {self.batch} and {self.crop}"
            )
        if not 0 < self.scales[0] <= self.scales[1] or self.ablation_seeds < 0:
            raise FoveateError(
                "scales rise and are above 0, and ablation_seeds is not negative, got "
                f"{self.scales} and {self.ablation_seeds}"
            )
        if self.weights is not None and self.net != "mobilenet":
            raise FoveateError("weights are those of MobileNetV2; --set net=mobilenet too")

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the data sets to run on."""
        return DESK_DATA if self.data == "desk" else (self.data,)


_PAPER = Config(
    scale="paper", data="VOC2012", net="mobilenet", steps=115_440, crop=513, optimizer="sgd",
    lr=0.007, weight_decay=4e-5, scales=(0.5, 2.0), ablation_seeds=0, workers=8,
    seeds=(0, 1, 2), accelerator="auto",
)  # fmt: skip

PRESETS = {
    "smoke": Config(
        scale="smoke", stand_in=True, steps=3, batch=4, crop=32, limit=6, ablation_seeds=0,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "paper": _PAPER,
    "paper-celebamask-hq": dataclasses.replace(
        _PAPER, scale="paper-celebamask-hq", data="CelebAMask-HQ", steps=362_880, lr=0.01
    ),
    "paper-ade20k": dataclasses.replace(
        _PAPER, scale="paper-ade20k", data="ADE20K", steps=316_000, lr=0.01, crop=257, option="e",
        li_init=(0.0, 0.15),
    ),
}  # fmt: skip


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train and judge every arm of every data set under every seed; finished ones are reused.

    Returns None in all processes of a multi-process run but the first.

    Raises
    ------
    FoveateError
        A data set is not there, or is damaged.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        precision=config.precision,
    )
    fabric.launch()
    # What one arm gives does not depend on which others are run.
    alone = dataclasses.replace(config, data="desk", ablation_seeds=0)
    ledger = Ledger("lateral-inhibition-conv", alone, __file__, writer=fabric.is_global_zero)
    sets = {name: load_data(name, config) for name in config.sets}

    jobs = [(name, arm, seed) for name in sets for seed in config.seeds for arm in ARMS]
    few = config.seeds[: config.ablation_seeds]
    jobs += [(name, arm, seed) for name in sets for seed in few for arm in ABLATIONS]
    results = []
    for done, (name, arm, seed) in enumerate(jobs):

        def say(what: str, now: str = f"{name}-{arm}, seed {seed}", done: int = done) -> None:
            tell(f"{now}{what}", done, len(jobs))

        def compute(
            name: str = name, arm: str = arm, seed: int = seed, say: Tell = say
        ) -> Measured:
            return train_and_judge(arm, seed, sets[name], config, fabric, say)

        say("")
        results.append(ledger.result(f"{name}-{arm}", seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    first = config.sets[0]
    described = {**ARMS, **(ABLATIONS if config.ablation_seeds else {})}
    return Evidence(
        recipe="lateral-inhibition-conv",
        claim=dataclasses.replace(CLAIM, method=f"{first}-li", ablation=f"{first}-plain"),
        verdict=together([verdict(results, name) for name in sets]),
        arms={f"{name}-{arm}": what for name in sets for arm, what in described.items()},
        results=results,
        data="; ".join(data.what for data in sets.values()),
        simulated=any(data.simulated for data in sets.values()),
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, config.sets),
        notes=remarks(results, config.sets),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ training


def network(arm: str, seed: int, data: Data, config: Config) -> nn.Module:
    """The network of an arm; all arms of a seed start from the plain network's weights."""
    inhibited = arm != "plain"
    init = {"init": (0.0, 0.15), "frozen": (0.0, 0.0)}.get(arm, config.li_init)
    zone = 5 if arm == "zone5" else 3

    def build(inhibited: bool) -> nn.Module:
        if config.net == "tiny":
            channels = len(data.average)
            return TinyDilated(data.classes, channels, inhibited, zone=zone, init=init)
        if zone != 3:
            raise FoveateError("the ablation of 5x5 neighbours is made for the tiny net only")
        backbone = MobileNetV2Features(option=config.option if inhibited else None)
        if config.weights is not None:
            whole = MobileNetV2()
            load_state(whole, config.weights)
            known = backbone.state_dict()
            state = {name: v for name, v in whole.state_dict().items() if name in known}
            backbone.load_state_dict(state, strict=False)
        return DeepLabV3Plus(backbone, data.classes, inhibited, init=init)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = build(False)
        if not inhibited:
            return plain
        net = build(True)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("li_weight") for name in missing)
    for name, parameter in net.named_parameters():
        if arm == "frozen" and name.endswith("li_weight"):
            parameter.requires_grad_(False)
    return net


def train_and_judge(
    arm: str, seed: int, data: Data, config: Config, fabric: Fabric, tell: Tell
) -> Measured:
    """Metrics in percent, and IoU of every class; NaN when the loss stopped being finite."""
    net = network(arm, seed, data, config)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, len(data.average), config.crop, config.crop))
    found: evidence.Metrics = {
        "parameters": float(sum(p.numel() for p in net.parameters())),
        "mmac": counter.get_total_flops() / 2e6,
    }
    found["loss"] = fit(net, seed, data, config, fabric, tell)
    if arm != "plain":
        report = inhibition_report(net)
        found |= {"w_mean": report.mean, "w_largest": report.largest, "w_zeros": report.zeros}
    if math.isnan(found["loss"]):
        return {**found, "miou": math.nan, "trimap": math.nan}, {}
    judged, items = judge(net, data, config, fabric)
    return found | judged, items


def fit(net: nn.Module, seed: int, data: Data, config: Config, fabric: Fabric, tell: Tell) -> float:
    """Train in place; the mean loss of the last tenth of the steps, NaN: it diverged."""
    groups = no_decay_groups(net, config.weight_decay)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, config.lr, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, config.lr)
    handle = project_after_step(optimizer, net)
    model, optimizer = fabric.setup(net, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 - min(step, config.steps - 1) / config.steps) ** 0.9
    )
    if config.batch % fabric.world_size:
        raise FoveateError(
            f"a batch of {config.batch} does not divide among {fabric.world_size} processes; "
            "choose another --set batch"
        )
    crops = RandomCrops(
        data.train, config.crop, config.steps * config.batch, seed, data.average, data.spread,
        config.scales, data.mirror,
    )  # fmt: skip
    share = config.batch // fabric.world_size
    loader = fabric.setup_dataloaders(DataLoader(crops, share, num_workers=config.workers))
    with torch.random.fork_rng(devices=[]):  # dropout, equal in all arms
        torch.manual_seed(seed)
        model.train()
        losses: list[float] = []
        for step, (x, labels) in enumerate(loader, 1):
            logits = model(x.to(memory_format=torch.channels_last))
            # A crop may be void throughout; its mean would be 0 / 0.
            total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
            loss = total / (labels != VOID).sum().clamp_min(1)
            value = float(cast(Tensor, fabric.all_reduce(loss.detach())))  # no process stops alone
            if not math.isfinite(value):
                tell(f", step {step}: the loss is not finite any more; stopped")
                handle.remove()
                return math.nan
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(value)
            if step % 100 == 0 or step == config.steps:
                tell(f", step {step} of {config.steps}: loss {value:.2f}")
    handle.remove()
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


# ------------------------------------------------------------------------------ judging


@torch.no_grad()
def judge(net: nn.Module, data: Data, config: Config, fabric: Fabric) -> Measured:
    """MIoU of whole pictures, counted over the split; of each group of pictures by itself, too."""
    groups = {"": range(len(data.test)), **data.groups}
    scores = {name: SegmentationScore(data.classes, VOID, config.trimap) for name in groups}
    net = cast(nn.Module, fabric.to_device(net)).eval()
    for index in range(fabric.global_rank, len(data.test), fabric.world_size):
        picture, labels = data.test[index]
        x = fabric.to_device(data.normalized(picture)[None])
        height, width = labels.shape
        x = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
        said = net(x.to(memory_format=torch.channels_last))[0, :, :height, :width].argmax(0)
        truth, predicted = labels.numpy(), said.cpu().numpy()
        for name, members in groups.items():
            if index in members:
                scores[name].add(truth, predicted)
    found: evidence.Metrics = {}
    for name, score in scores.items():
        for counts in (score.confusion, score.trimap_confusion):
            total = fabric.all_reduce(torch.from_numpy(counts), reduce_op="sum")
            counts[:] = cast(Tensor, total).cpu().numpy()
        result, suffix = score.result(), f"_{name}" if name else ""
        found[f"miou{suffix}"] = 100 * result.miou
        found[f"trimap{suffix}"] = 100 * result.trimap_miou
        if not name:
            found["accuracy"] = 100 * result.accuracy
            items = {"iou": [100 * float(value) for value in result.iou]}
    return found, items


# ------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Gain:
    """Paired differences over seeds: their mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def gain(results: Sequence[Result], method: str, ablation: str, metric: str) -> Gain | None:
    """Student's interval of method - ablation; None: fewer than three seeds, or NaN."""
    of = {
        arm: {r.seed: r.metrics[metric] for r in results if r.arm == arm and metric in r.metrics}
        for arm in (method, ablation)
    }
    shared = sorted(set(of[method]) & set(of[ablation]))
    differences = [of[method][seed] - of[ablation][seed] for seed in shared]
    if len(differences) < 3 or not all(map(math.isfinite, differences)):
        return None
    middle = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(scipy.stats.t.ppf(0.975, len(differences) - 1)) * error
    return Gain(middle, middle - reach, middle + reach)


def verdict(results: Sequence[Result], name: str) -> Verdict:
    """The rule of the specification for one data set (`CLAIM.rule`)."""
    pixels, edges = (gain(results, f"{name}-li", f"{name}-plain", m) for m in ("miou", "trimap"))
    w = [r.metrics.get("w_mean", math.nan) for r in results if r.arm == f"{name}-li"]
    if pixels is None or edges is None or not all(map(math.isfinite, w)):
        return "inconclusive"
    if pixels.high < 0 or max(w) <= 0:
        return "not reproduced"
    held = pixels.low > 0 and edges.mean >= pixels.mean and statistics.fmean(w) > 0
    return "reproduced" if held else "inconclusive"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The claim is about every data set: one that refutes it is enough."""
    if "not reproduced" in verdicts:
        return "not reproduced"
    return "reproduced" if set(verdicts) == {"reproduced"} else "inconclusive"


def _interval(found: Gain | None) -> Verdict:
    if found is None or found.low <= 0 <= found.high:
        return "inconclusive"
    return "reproduced" if found.low > 0 else "not reproduced"


def findings(results: Sequence[Result], sets: Sequence[str]) -> list[Finding]:
    """Each data set's own verdict, and what the inhibition itself is worth."""
    found = []
    for name in sets:
        li, plain, frozen = (f"{name}-{arm}" for arm in ("li", "plain", "frozen"))
        pixels, edges = (gain(results, li, plain, metric) for metric in ("miou", "trimap"))
        w, zeros = (mean(results, li, metric) for metric in ("w_mean", "w_zeros"))
        found.append(
            Finding(
                f"{name}: mIoU of li less plain {pixels or 'unknown'} points (95 % interval), near "
                f"boundaries {edges or 'unknown'}; mean w {w:.4f}, {100 * zeros:.0f} % of them 0.",
                verdict(results, name),
            )
        )
        inhibition = gain(results, li, frozen, "miou")
        found.append(
            Finding(
                f"{name}: the inhibition itself, without the additional ReLU, is worth "
                f"{inhibition or 'unknown'} points (li less frozen).",
                _interval(inhibition),
            )
        )
        if any("miou_Seq05VD" in r.metrics for r in results if r.arm == li):
            other = gain(results, li, plain, "miou_Seq05VD")
            found.append(
                Finding(
                    f"{name}: on the drive Seq05VD alone, which trains nothing, li less plain "
                    f"{other or 'unknown'} points.",
                    _interval(other),
                )
            )
    return found


def remarks(results: Sequence[Result], sets: Sequence[str]) -> list[str]:
    """Costs, and what has no verdict."""
    said = []
    for name in sets:
        plain, li = (mean(results, f"{name}-{arm}", "parameters") for arm in ("plain", "li"))
        macs = [mean(results, f"{name}-{arm}", "mmac") for arm in ("plain", "li")]
        said.append(
            f"{name}: {li - plain:.0f} parameters more ({100 * (li / plain - 1):.2f} %), "
            f"{macs[1]:.2f} against {macs[0]:.2f} million multiply-adds a crop."
        )
        for arm, what in ABLATIONS.items():
            seeds = {r.seed for r in results if r.arm == f"{name}-{arm}"}
            if not seeds:
                continue
            those = [r for r in results if r.seed in seeds]
            values = {a: mean(those, f"{name}-{a}", "miou") for a in (arm, "li", "plain")}
            said.append(
                f"{name}, {arm} ({what}): mIoU {values[arm]:.2f}, under the same {len(seeds)} "
                f"seeds li {values['li']:.2f} and plain {values['plain']:.2f} %; mean w "
                f"{mean(those, f'{name}-{arm}', 'w_mean'):.4f}."
            )
    if "faces" in sets:
        said.append("The face labels are drawn from 68 landmarks; no person painted them.")
    return said


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Data:
    """One data set; `average` and `spread` of every channel come from training pictures."""

    what: str
    train: LabelledPictures
    test: LabelledPictures
    classes: int
    average: Tensor
    spread: Tensor
    simulated: bool = False
    mirror: bool = True
    groups: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def normalized(self, picture: Tensor) -> Tensor:
        """Mean 0, deviation 1 over the training pictures, ``(C, H, W)`` float32."""
        return (picture.float() - self.average[:, None, None]) / self.spread[:, None, None]


def _in_memory(what: str, train: PicturesInMemory, test: PicturesInMemory, classes: int) -> Data:
    values = train.pictures.astype(np.float64)
    average, spread = values.mean((0, 2, 3)), values.std((0, 2, 3)).clip(1e-6)
    height, width = test.labels.shape[1:]
    what = f"{what}, {len(train)} training and {len(test)} test pictures {width}x{height}"
    numbers = torch.from_numpy(average).float(), torch.from_numpy(spread).float()
    return Data(what, train, test, classes, *numbers)


def load_data(name: str, config: Config) -> Data:
    """Read a data set, or draw its stand-in."""
    root = config.data_root or catalogue.data_root()
    if name in ("VOC2012", "CelebAMask-HQ", "ADE20K"):
        return _published(name, root, config)
    known = {"camvid": "camvid", "faces": "helen68", "sanfrancisco": "san-francisco"}
    card = catalogue.card(known[name])
    if not card.find(root).present:
        if config.stand_in:
            return drawn(name)
        raise FoveateError(
            f"{card.title} is not below {root}: get it from {card.url}, lay it out as "
            f"{card.layout}, and name the folder with --set data_root=FOLDER"
        )
    if name == "sanfrancisco":
        return in_blocks(load_san_francisco(root), config.limit)
    folder = cast(Path, card.find(root).path)
    return (_camvid if name == "camvid" else _faces)(folder, config.limit)


def _published(name: str, root: Path, config: Config) -> Data:
    train: LabelledPictures
    test: LabelledPictures
    if name == "VOC2012":
        voc = VOCSegmentation(root, "train"), VOCSegmentation(root, "val")
        train, test, classes, shift = *voc, 21, 0
    elif name == "ADE20K":  # "other" is not counted, as in the challenge
        train, test, classes, shift = ADE20K(root, "train"), ADE20K(root, "val"), 150, 1
    else:
        celeba = CelebAMaskHQ(root, "train"), CelebAMaskHQ(root, "test")
        train, test, classes, shift = *celeba, 19, 0
    train, test = (
        Renumbered(part, shift, min(len(part), config.limit or len(part))) for part in (train, test)
    )
    average = 255 * torch.tensor((0.485, 0.456, 0.406))
    spread = 255 * torch.tensor((0.229, 0.224, 0.225))
    what = f"{name}, {len(train)} training and {len(test)} test pictures"
    return Data(what, train, test, classes, average, spread)


def _camvid(folder: Path, limit: int | None) -> Data:
    """Halved again to 120x90: pictures by the mean, labels by the upper left of four pixels."""
    parts, names = {}, {}
    for split in ("train", "test"):
        dataset = CamVid(folder, split)
        pictures, labels = dataset.arrays()
        factor = max(1, pictures.shape[-1] // 120)
        height, width = (side // factor * factor for side in labels.shape[1:])
        labels = np.where(labels == CamVid.VOID, VOID, labels)[:limit, :height, :width]
        small = mean_pool(pictures[:limit, :, :height, :width], factor)
        parts[split] = PicturesInMemory(small, np.ascontiguousarray(labels[:, ::factor, ::factor]))
        names[split] = dataset.names[:limit]
    data = _in_memory("CamVid", parts["train"], parts["test"], 11)
    other = [k for k, name in enumerate(names["test"]) if name.startswith("Seq05VD")]
    return dataclasses.replace(data, groups={"Seq05VD": other} if other else {})


def _faces(folder: Path, limit: int | None) -> Data:
    path = folder / "faces" / "helen68_96.npz"
    keys = ("x_train", "lm_train", "x_test", "lm_test")
    arrays = read_npz(path, keys, 1 << 28)
    parts = []
    for split in ("train", "test"):
        x, points = arrays[f"x_{split}"][:limit], arrays[f"lm_{split}"][:limit]
        fits = x.ndim == 4 and x.dtype == np.uint8 and points.shape == (len(x), 68, 2)
        if not fits or points.dtype.kind != "f" or not np.isfinite(points).all():
            raise FoveateError(
                f"{path} holds {x.dtype} {x.shape} and landmarks {points.dtype} {points.shape} "
                "where uint8 (N, 3, H, W) and finite (N, 68, 2) were expected; copy it again"
            )
        masks = np.stack([face_mask(p, *x.shape[2:]) for p in points])
        parts.append(PicturesInMemory(x, masks))
    what = "Helen faces with labels drawn from 68 landmarks"
    return _in_memory(what, parts[0], parts[1], len(FACE_CLASSES))


def in_blocks(scene: Scene, limit: int | None) -> Data:
    """Log intensities of radar; whole blocks of a checkerboard train, the others test."""
    (rows, columns), (height, width) = SF_BLOCK, (scene.height, scene.width)
    down, along = height // rows, width // columns
    if scene.labels is None or down * along < 2:
        raise FoveateError(
            f"the scene {scene.name} of {height} x {width} pixels has no labels, or no two blocks "
            f"of {rows} x {columns}; copy the file again"
        )
    cube = scene.read()[..., [scene.band_names.index(name) for name in SF_CHANNELS]]
    codes = scene.labels.to_map()  # from 1; 0 is no label
    maps = np.where(codes == 0, VOID, codes - 1).astype(np.uint8)

    def blocks(whole: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """``(H, W, C)`` -> ``(N, C, rows, columns)``, by rows of blocks."""
        whole = whole[: down * rows, : along * columns]
        parts = whole.reshape(down, rows, along, columns, -1).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(parts).reshape(-1, parts.shape[2], rows, columns)

    hidden = test_blocks((height, width), SF_BLOCK)(Window(0, 0, height, width))
    is_test = blocks(hidden[..., None])[:, 0, 0, 0]
    x, y = blocks(np.log10(np.maximum(cube, 1e-6))), blocks(maps[..., None])[:, 0]
    train, test = (
        PicturesInMemory(x[role][:limit], y[role][:limit]) for role in (~is_test, is_test)
    )
    what = "San Francisco, AIRSAR, blocks of a checkerboard"
    data = _in_memory(what, train, test, max(scene.labels.classes))
    return dataclasses.replace(data, mirror=False)  # range is no direction like the other


def drawn(name: str) -> Data:
    """Noisy discs of three classes on a dark ground, ``(3, 48, 48)``: simulated."""
    rng = np.random.default_rng(len(name))
    row, column = np.mgrid[0:48, 0:48]
    pictures, labels = [], []
    for _ in range(18):
        mask = np.zeros((48, 48), np.uint8)
        for number in (1, 2, 3):
            y, x, radius = rng.uniform(8, 40), rng.uniform(8, 40), rng.uniform(5, 10)
            mask[(row - y) ** 2 + (column - x) ** 2 < radius**2] = number
        colours = np.array([(30, 30, 30), (200, 60, 60), (60, 200, 60), (60, 60, 200)])
        noisy = colours[mask].transpose(2, 0, 1) + rng.normal(0, 25, (3, 48, 48))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
        labels.append(mask)
    train = PicturesInMemory(np.stack(pictures[:12]), np.stack(labels[:12]))
    test = PicturesInMemory(np.stack(pictures[12:]), np.stack(labels[12:]))
    data = _in_memory(f"drawn discs in place of {name}", train, test, 4)
    return dataclasses.replace(data, simulated=True)
