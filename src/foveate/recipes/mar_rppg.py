"""MAR-rPPG: does tying the attention to its mirror image make a pulse reader robust to motion?

Paper: Zhao, Sun, Tian, Yang, Tao, Cheng, Chen, "Toward Motion Robustness: A Masked Attention
Regularization Framework in Remote Photoplethysmography", CVPR Workshops 2024 (arXiv 2407.06653).
This is a *reconstruction* from the abstract and from the two works it builds on; the paper's code
was not found and its numbers are not reproduced here. What is tested is the shape of its claim.

Four networks, trained alike (same first weights, same order, same epochs), and three methods that
need no training, on the very same crops:

    one-expert       one expert on the whole map (equal MACs), nothing else
    erea             3 x 3 experts                                        <- the ablation
    erea-augmented   ... with erased and mirrored clips as plain augmentation (lam = 0)
    erea-mar         ... and the attention of the two tied together       <- the method
    pos, chrom, green

The smoke and desk scales are *simulated*: drawn heads with a drawn pulse, cropped as real ones are
(1.2 times the hull of the face) from a picture that shows them at twice the resolution of the
36 x 36 crops (H.264 at 36 x 36 leaves no pulse). In 30 % of the training clips a lamp beside the
head flickers at the true heart rate: a wrong place to look that pays off while training. In every
test clip it flickers at a rate of its own, more than 12 bpm away from the true one. Beside the
simulation, networks are tried on real faces when they are at hand (``--set real_data=FOLDER``):
ten talking people with an *added* pulse (GRID), and one person with her own (EVM). No verdict comes
from those.

The paper scale trains the larger network on MMPD, PURE or UBFC-rPPG in their official layout.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import inspect
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from foveate.datasets import catalogue
from foveate.datasets.rppg import MMPD, PURE, PulseClip, UBFCrPPG
from foveate.errors import FoveateError
from foveate.faces import erea
from foveate.faces.erea import EREA, EREAConfig, diff_label, diffnorm, neg_pearson
from foveate.faces.heart_rate import benchmark_metrics, heart_rate, macc, snr_db
from foveate.faces.landmarks import FaceLandmarker, ibug68
from foveate.faces.pulse import chrom, green, pos
from foveate.files import data_dir, sha256_of, write_whole
from foveate.learning.masked_attention import MaskedAttentionRegularizer
from foveate.nn import model_files
from foveate.report.evidence import (
    Claim,
    Evidence,
    Finding,
    Items,
    Ledger,
    Metrics,
    Result,
    Verdict,
    mean,
    paired_verdict,
)
from foveate.simulate.face_geometry import forehead
from foveate.simulate.faces import SPLITS, VERSION, FaceSim
from foveate.simulate.pulse import apply_pulse
from foveate.simulate.scripts import Decoy
from foveate.streams.frame import Frame
from foveate.streams.video import VideoStream

__all__ = ["ARMS", "CLAIM", "PRESETS", "Config", "run"]

CLAIM = Claim(
    text=(
        "Tying the attention on a masked clip to that on its mirror image lowers the heart-rate "
        "error on moving faces and draws the attention to skin"
    ),
    metric="mae_moving",
    direction="lower",
    method="erea-mar",
    ablation="erea",
    rule=(
        "MAE on the moving test clips is lower than without mask and mirror, in the mean and in at "
        "least 2/3 of the seeds, and the share of the attention on skin is higher in the mean"
    ),
    published="MMPD: MAE 0.87 bpm stationary, 2.83 bpm with motion (one secondary source)",
    certainty="R",
)

ARMS = {
    "one-expert": "one expert on the whole map, equal MACs; no mask, no mirror",
    "erea": "3 x 3 experts; no mask, no mirror",
    "erea-augmented": "3 x 3 experts; mask and mirror as plain augmentation (lam = 0)",
    "erea-mar": "3 x 3 experts; masked attention regularisation",
    "pos": "POS on the mean colour of the crop, not trained",
    "chrom": "CHROM, likewise",
    "green": "GREEN, likewise",
    "pos-skin": "POS on exactly the skin pixels, which only a simulator knows",
}
CLASSIC = {"pos": pos, "chrom": chrom, "green": green, "pos-skin": pos}

Array = npt.NDArray[np.floating]
Progress = Callable[[str, int, int], None]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data
        ``simulation``, or a public data set below `data_root` (default: foveate's data folder).
    real_data
        Folder that holds ``faces/grid_talking/*.mpg`` and ``rppg/evm_face.mp4``, or None.
    train_clips, val_people, test_people
        Simulated people; those of val and test are seen twice, sitting still and moving.
    network
        Sizes of the networks; ``one-expert`` has ``grid=1``.
    lam
        Weight of the attention consistency.
    band_hz
        Heart rates that are looked for, the same in prediction and label.
    pulse_gain, lamp_gain, codec
        The simulation: peak AC/DC of the skin, swing of the lamp, compression of moving clips.
    """

    scale: str
    data: Literal["simulation", "MMPD", "PURE", "UBFC-rPPG"] = "simulation"
    data_root: Path | None = None
    real_data: Path | None = None
    train_clips: int = 96
    val_people: int = 16
    test_people: int = 32
    test_seconds: float = 10.0
    network: EREAConfig = erea.DESK
    epochs: int = 8
    batch: int = 4
    lr: float = 1e-3
    weight_decay: float = 1e-4
    lam: float = 0.5
    band_hz: tuple[float, ...] = (0.75, 2.6)
    pulse_gain: float = 0.02
    lamp_gain: float = 0.03
    codec: str = "libx264:8"
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


PRESETS = {
    "smoke": Config(
        scale="smoke",
        train_clips=4,
        val_people=1,
        test_people=1,
        test_seconds=8.0,
        network=EREAConfig(stem=4, stages=(8,)),
        epochs=1,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "paper": Config(
        scale="paper",
        data="MMPD",
        network=erea.PAPER,
        epochs=30,
        lr=1e-4,
        accelerator="auto",
        precision="bf16-mixed",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train and test every arm under every seed; finished ones are reused.

    Returns None in all processes of a multi-process run but the first.
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
    ledger = Ledger("mar-rppg", config, __file__, writer=fabric.is_global_zero)
    with fabric.rank_zero_first():  # one process makes the clips, the others find them made
        data = load_data(config, tell)

    results = []
    jobs = [(arm, seed) for seed in config.seeds for arm in arms_of(config)]
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))
        if arm in CLASSIC and seed != config.seeds[0]:
            continue  # nothing is random in these

        def compute(arm: str = arm, seed: int = seed, done: int = done) -> Measured:
            if arm in CLASSIC:
                # Nobody knows the exact skin of a real face.
                seen = dataclasses.replace(data, grid={}, evm=None) if arm == "pos-skin" else data
                return measure(lambda clip: read_classic(arm, clip, config), seen, config)
            net = train(
                arm, seed, data.train, config, fabric, lambda what: tell(what, done, len(jobs))
            )
            if fabric.is_global_zero:
                erea.save(net, weights_file(ledger, arm, seed))
            return evaluate(net, data, config)

        results.append(ledger.result(arm, seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    return Evidence(
        recipe="mar-rppg",
        claim=CLAIM,
        verdict=verdict(results),
        arms={arm: ARMS[arm] for arm in arms_of(config)},
        results=results,
        data=data.what,
        simulated=config.data == "simulation",
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results),
        notes=[*data.notes, *remarks(results), export(ledger, results, config)],
        seconds=round(time.perf_counter() - started, 1),
    )


def arms_of(config: Config) -> list[str]:
    """All arms; the one that needs an exact skin mask only where there is one."""
    return [arm for arm in ARMS if arm != "pos-skin" or config.data == "simulation"]


# ------------------------------------------------------------------------------ training


def train(
    arm: str,
    seed: int,
    clips: list[Clip],
    config: Config,
    fabric: Fabric,
    tell: Callable[[str], None] = lambda what: None,
) -> EREA:
    """Train one network; `seed` fixes its first weights, the order of the clips and the masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grid = 1 if arm == "one-expert" else config.network.grid
        net = EREA(dataclasses.replace(config.network, grid=grid))
    regularizer = {
        "erea-augmented": MaskedAttentionRegularizer(lam=0.0),
        "erea-mar": MaskedAttentionRegularizer(lam=config.lam),
    }.get(arm)
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    model, optimizer = fabric.setup(net, optimizer)

    length = frames_needed(config.network)
    windows = [
        (clip, start) for clip in clips for start in range(0, len(clip.frames) - length + 1, length)
    ]
    share = config.batch * fabric.world_size  # every process takes its part of each step
    steps = len(windows) // share
    if not steps:
        raise FoveateError(
            f"{len(windows)} training windows of {length} frames do not fill one step of "
            f"{share}; give more clips, a smaller --set batch or fewer devices"
        )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * steps
    )
    # Order and variations are the same in every arm; only the masks are drawn on their own.
    order = torch.Generator().manual_seed(seed)
    draw, masks = (
        torch.Generator().manual_seed(1000 * (2 * seed + kind) + fabric.global_rank)
        for kind in (1, 2)
    )
    for epoch in range(config.epochs):
        shuffled = torch.randperm(len(windows), generator=order).tolist()
        fits = []
        for step in range(steps):
            first = step * share + fabric.global_rank * config.batch
            chosen = [windows[i] for i in shuffled[first : first + config.batch]]
            clip, bvp = batch_of(chosen, config.network, draw)
            clip, bvp = diffnorm(fabric.to_device(clip)), diff_label(fabric.to_device(bvp))
            if regularizer is None:
                fit = loss = neg_pearson(model(clip)[0], bvp)
            else:
                parts = regularizer(model, clip, bvp, neg_pearson, masks)
                fit, loss = parts.supervised, parts.total
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            fits.append(fit.item())
        tell(f"{arm}, seed {seed}, epoch {epoch + 1}: 1 - r = {np.mean(fits):.2f}")
    return net.eval()


def batch_of(
    windows: list[tuple[Clip, int]], network: EREAConfig, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Windows to ``(B, 3, T, H, W)`` and ``(B, T)``, each at another speed and a little shifted.

    Every arm sees these variations: played at .8 to 1.25 times its speed, a clip has another heart
    rate, and so has its label; the crop moves by up to 5 % of its edge.
    """
    clips, labels = [], []
    reach = round(0.05 * network.size)
    for clip, start in windows:
        speed = 0.8 + (1.25 - 0.8) * torch.rand((), generator=draw).item()
        spare = frames_needed(network) - 1 - speed * (network.frames - 1)
        offset = spare * torch.rand((), generator=draw).item()
        moments = start + offset + speed * np.arange(network.frames)
        whole = np.floor(moments).astype(int)
        part = (moments - whole).astype(np.float32)
        source = clip.frames[whole[0] : whole[-1] + 2].astype(np.float32)
        before, after = source[whole - whole[0]], source[whole - whole[0] + 1]
        frames = before + part[:, None, None, None] * (after - before)
        down, right = torch.randint(2 * reach + 1, (2,), generator=draw).tolist()
        padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
        clips.append(padded[:, down : down + network.size, right : right + network.size])
        labels.append(np.interp(moments, np.arange(len(clip.bvp)), clip.bvp))
    frames = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)
    return frames, torch.from_numpy(np.stack(labels)).float()


def frames_needed(network: EREAConfig) -> int:
    """Frames of a training window: enough to be played at 1.25 times its speed."""
    return math.ceil(1.25 * network.frames) + 1


# ------------------------------------------------------------------------------ testing


def rate(bvp: Array, config: Config) -> float:
    """Heart rate in bpm, by the same procedure and band for predictions and labels."""
    low, high = config.band_hz
    return heart_rate(np.asarray(bvp, np.float64), config.network.fps, (low, high)).bpm


Measured = tuple[Metrics, Items]


def measure_clips(
    read: Callable[[Clip], Array], clips: Iterable[Clip], config: Config
) -> dict[str, list[float]]:
    """Rates (bpm) and waveform quality of every clip, as ``bpm``, ``label``, ``snr``, ``macc``.

    A waveform without any rhythm counts as wrong by half the band: silence must not pay.
    """
    low, high = (60 * edge for edge in config.band_hz)
    found: dict[str, list[float]] = {"bpm": [], "label": [], "snr": [], "macc": []}
    for clip in clips:
        bvp, label = read(clip), rate(clip.bvp, config)
        bpm = rate(bvp, config)
        if math.isnan(bpm):
            bpm = label + math.copysign((high - low) / 2, (low + high) / 2 - label)
        quality = (
            snr_db(bvp, config.network.fps, label, (low / 60, high / 60)),
            macc(bvp, clip.bvp),
        )
        for values, value in zip(found.values(), (bpm, label, *quality), strict=True):
            values.append(value)
    return found


def measure(read: Callable[[Clip], Array], data: Data, config: Config) -> Measured:
    """Heart-rate errors of one way to read a pulse, and those of every test clip."""
    metrics: Metrics = {}
    items: Items = {}
    for kind in ("moving", "static"):
        of_kind = [clip for clip in data.test if clip.moving == (kind == "moving")]
        if not of_kind:
            metrics |= {f"mae_{kind}": math.nan}
            continue
        found = measure_clips(read, of_kind, config)
        scores = benchmark_metrics(found["bpm"], found["label"])
        metrics |= {
            f"mae_{kind}": scores.mae,
            f"rmse_{kind}": scores.rmse,
            f"mape_{kind}": scores.mape,
            f"rho_{kind}": scores.pearson,
            f"snr_db_{kind}": float(np.mean(found["snr"])),
            f"macc_{kind}": float(np.mean(found["macc"])),
        }
        items |= {f"bpm_{kind}": found["bpm"], f"label_bpm_{kind}": found["label"]}
    metrics["rise"] = metrics["mae_moving"] - metrics["mae_static"]
    for name, clips in {"mae_val": data.val, **data.grid}.items():
        found = measure_clips(read, clips, config)
        errors = np.abs(np.subtract(found["bpm"], found["label"]))
        metrics[name] = float(errors.mean()) if len(errors) else math.nan
    if data.evm is not None:
        metrics["evm_bpm"] = rate(read(data.evm), config)
    return metrics, items


def read_classic(arm: str, clip: Clip, config: Config) -> Array:
    """POS, CHROM or GREEN on the very same crops."""
    if arm == "pos-skin":
        if clip.skin is None:
            return np.zeros(len(clip.frames))
        cells = block_mean(clip.frames, clip.frames.shape[1] // clip.skin.shape[1])
        weight = np.where(clip.skin > 0.9, 1.0, 1e-9)[..., None]
        colour: Array = (cells * weight).sum((1, 2)) / weight.sum((1, 2))
    else:
        colour = clip.frames.mean((1, 2), dtype=np.float64)
    return np.asarray(CLASSIC[arm](colour, config.network.fps))


def evaluate(net: EREA, data: Data, config: Config) -> Measured:
    """Heart-rate errors of a network, and where it looks.

    ``skin_share`` is the share of its attention on skin, ``gate_entropy`` how evenly its experts
    count on the test clips (0: one decides, 1: all alike).
    """
    shares, entropies = [], []

    def read(clip: Clip) -> Array:
        reading = erea.waveform(net, clip.frames[None])
        if net.count > 1 and any(clip is one for one in data.test):
            first = torch.from_numpy(np.array(clip.frames[None, : net.config.frames]))
            with torch.no_grad():
                said = net.experts(
                    diffnorm(first.to(net.head_weight.device).permute(0, 4, 1, 2, 3))
                )
            entropies.append(said.gate_entropy().item() / math.log(net.count))
        if clip.skin is not None and any(clip is one for one in data.test):
            passes = [clip.skin[start : start + net.config.frames] for start in reading.starts]
            skin = np.stack([one.mean(0, dtype=np.float64) for one in passes])
            shares.append(erea.attention_share(reading.energy, skin[None])[0])
        return np.asarray(reading.bvp[0])

    metrics, items = measure(read, data, config)
    if shares:
        metrics["skin_share"] = float(np.mean(shares))
    if entropies:
        metrics["gate_entropy"] = float(np.mean(entropies))
    return metrics, items


# ------------------------------------------------------------------------------ verdicts


def verdict(results: list[Result]) -> Verdict:
    """The rule of the specification (`CLAIM.rule`)."""
    lower = paired_verdict(results, "mae_moving", "erea-mar", "erea", "lower")
    if lower == "inconclusive":
        return lower
    ours, theirs = (mean(results, arm, "skin_share") for arm in ("erea-mar", "erea"))
    if math.isnan(ours - theirs):
        return "inconclusive"
    return "reproduced" if lower == "reproduced" and ours > theirs else "not reproduced"


def findings(results: list[Result]) -> list[Finding]:
    """Which part of the method does it, each part with a verdict of its own."""

    def compare(text: str, metric: str, arm: str, other: str) -> Finding:
        ours, theirs = mean(results, arm, metric), mean(results, other, metric)
        return Finding(
            f"{text}, in the mean and in 2/3 of the seeds: {ours:.1f} ({arm}) against "
            f"{theirs:.1f} bpm ({other})",
            paired_verdict(results, metric, arm, other, "lower"),
        )

    return [
        compare(
            "consistency itself: lower moving MAE than the same masks and mirrors without it",
            *("mae_moving", "erea-mar", "erea-augmented"),
        ),
        compare(
            "experts: 3 x 3 experts have a lower moving MAE than one of equal MACs",
            *("mae_moving", "erea", "one-expert"),
        ),
        compare(
            "motion: the error rises less from still to moving faces",
            *("rise", "erea-mar", "erea"),
        ),
    ]


def remarks(results: list[Result]) -> list[str]:
    """What a reader must not miss: how the untrained methods did."""
    best = min((mean(results, arm, "mae_moving"), arm) for arm in ("pos", "chrom", "green"))
    ours = mean(results, "erea-mar", "mae_moving")
    if math.isnan(best[0] - ours):
        return ["The test set has no moving faces, so the claim is not decided."]
    relation = "lower" if best[0] < ours else "higher"
    said = [
        f"On moving faces the best untrained method on the whole crop, {best[1]}, is "
        f"{best[0]:.1f} bpm off, {relation} than erea-mar with {ours:.1f} bpm."
    ]
    on_skin = mean(results, "pos-skin", "mae_moving")
    if not math.isnan(on_skin):
        said.append(
            f"POS on exactly the skin, which needs no training either, is {on_skin:.1f} bpm off: "
            "where the skin is matters more here than what reads it."
        )
    return said


# ------------------------------------------------------------------------------ weights


def weights_file(ledger: Ledger, arm: str, seed: int) -> Path:
    """Weights of a trained arm, beside its result."""
    return ledger.folder / f"{arm}-{seed}.safetensors"


def export(ledger: Ledger, results: list[Result], config: Config) -> str:
    """Copy the method's network that read *validation* clips best, with its card; says where."""
    trained = [r for r in results if r.arm == "erea-mar" and not math.isnan(r.metrics["mae_val"])]
    if not trained:
        return "No weights were exported: there are no validation clips."
    best = min(trained, key=lambda r: r.metrics["mae_val"])
    target = ledger.folder / "export" / "mar-rppg.safetensors"
    with write_whole(target) as temporary:
        shutil.copyfile(weights_file(ledger, best.arm, best.seed), temporary)
    card = {
        "what": (
            f"EREA pulse reader ({config.network.frames} frames of {config.network.size} x "
            f"{config.network.size}), trained on {config.data}; reconstruction of MAR-rPPG"
        ),
        "licence": "Apache-2.0",
        "sha256": sha256_of(target),
        "recipe": f"mar-rppg --scale {config.scale}, arm {best.arm}, seed {best.seed}",
        "data": config.data,
        "simulated": config.data == "simulation",
        "metric": {name: round(value, 2) for name, value in best.metrics.items()},
        "limits": "Research only; not a medical device. Not validated on people.",
    }
    with write_whole(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return (
        f"Exported weights: seed {best.seed}, chosen by its error on validation clips "
        f"({best.metrics['mae_val']:.1f} bpm)."
    )


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Clip:
    """One face crop over time.

    Attributes
    ----------
    frames
        ``(T, S, S, 3)`` uint8 or float32, 0 to 255, at the network's frame rate.
    bvp
        ``(T,)`` label at the frame times; empty when there is none.
    moving
        Whether the person moves or talks.
    skin
        ``(T, h, w)`` share of skin in each cell of the attention map, when known exactly.
    """

    frames: npt.NDArray[np.uint8 | np.float32]
    bvp: npt.NDArray[np.float32]
    moving: bool
    skin: npt.NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Data:
    """Everything that is trained and tested on; people are in one of train, val, test only."""

    what: str
    train: list[Clip]
    val: list[Clip]
    test: list[Clip]
    grid: dict[str, list[Clip]]
    evm: Clip | None
    notes: list[str]


def load_data(config: Config, tell: Progress) -> Data:
    """Simulate or read all clips; each is made once and kept under ``FOVEATE_DATA/cache``."""
    splits = {
        split: simulated(split, config, tell)
        if config.data == "simulation"
        else public(split, config, tell)
        for split in ("train", "val", "test")
    }
    grid, evm, notes = real_faces(config, tell)
    what = f"{config.data}, subject-exclusive test split"
    if config.data == "simulation":
        size = config.network.size
        what = (
            f"drawn heads with a drawn pulse of peak AC/DC {config.pulse_gain:g}, {size} x {size} "
            f"crops; moving clips through {config.codec}"
        )
        cells = [
            float(clip.skin.mean(dtype=np.float64))
            for clip in splits["test"]
            if clip.skin is not None
        ]
        notes = [
            f"Skin covers {np.mean(cells):.2f} of the test crops: a skin_share above that means "
            "attention that prefers skin.",
            *notes,
        ]
    return Data(what, splits["train"], splits["val"], splits["test"], grid, evm, notes)


def block_mean(frames: npt.NDArray[Any], k: int) -> npt.NDArray[np.float32]:
    """Average ``k x k`` pixels: ``(T, H, W, ...) -> (T, H/k, W/k, ...)``."""
    time, height, width, *rest = frames.shape
    blocks = frames.reshape(time, height // k, k, width // k, k, *rest)
    return np.asarray(blocks.mean((2, 4), dtype=np.float32))


SEEN_AT = 2.8  # edge of the camera's picture over that of the crop: compression acts before it
LAMP_ACROSS = 0.6  # half pictures: at the edge of the face crop


def simulate_clip(split: Split, index: int, config: Config) -> Clip:
    """Clip number `index` of a split, always the same: random light, webcam noise.

    Training: mild motion; the first 3 of every 10 have a lamp that flickers with the true pulse.
    Validation and test: person ``index // 2``, first still, then turning by up to 25 degrees,
    talking and compressed; a lamp flickers more than 12 bpm away from the true rate.
    """
    size, fps = config.network.size, config.network.fps
    sim = FaceSim(2 * round(SEEN_AT / 2 * size), fps)  # even, for the codec
    person = index if split == "train" else index // 2
    rng = np.random.default_rng([("train", "val", "test").index(split), person])
    hr, other = rng.uniform(50, 150, 2)
    while abs(other - hr) <= 12:
        other = rng.uniform(50, 150)
    moving = split != "train" and index % 2 == 1
    lamp: Decoy | None = None
    if split != "train" or index % 10 < 3:
        follows = None if split == "train" else other
        lamp = Decoy(follows, gain=config.lamp_gain, across=LAMP_ACROSS)
    clip = sim.clip(
        SPLITS[split][person],
        frames_needed(config.network) / fps if split == "train" else config.test_seconds,
        hr=hr,
        take=index,
        motion="moving" if moving else "mild" if split == "train" else "steady",
        speaking=moving,
        light="random",
        camera="webcam",
        codec=config.codec if moving else None,
        pulse_gain=config.pulse_gain,
        decoy=lamp,
    )
    points = clip.labels["landmarks"]
    boxes = erea.face_boxes(np.concatenate([points, forehead(points)], 1))
    frames = erea.crop_faces(clip.frames, boxes, size).round().astype(np.uint8)
    covered = 255 * clip.labels["skin_mask"][..., None].repeat(3, -1).astype(np.uint8)
    skin = erea.crop_faces(covered, boxes, size // 2)[..., 0] / 255
    return Clip(frames, clip.labels["bvp"], moving, skin.astype(np.float16))


def simulated(split: Split, config: Config, tell: Progress) -> list[Clip]:
    """All clips of a split, made by one process per core."""
    people = {"train": config.train_clips, "val": config.val_people, "test": config.test_people}
    count = people[split] * (1 if split == "train" else 2)
    settings = (
        *(VERSION, inspect.getsource(simulate_clip), SEEN_AT, LAMP_ACROSS),
        *(config.network, config.test_seconds),
        *(config.pulse_gain, config.lamp_gain, config.codec),
    )
    folder = cache_folder(split, *settings)
    todo = [i for i in range(count) if not (folder / f"{i:05d}.npz").is_file()]
    for done, (index, clip) in enumerate(made(split, todo, config), count - len(todo) + 1):
        keep(folder / f"{index:05d}", clip)
        tell(f"simulating clips for {split}", done, count)
    return [kept(folder / f"{i:05d}") for i in range(count)]


def made(split: Split, indices: list[int], config: Config) -> Iterator[tuple[int, Clip]]:
    """Simulate clips as they become ready, one thread per core, each with a torch of its own."""
    threads = torch.get_num_threads()
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "sim", torch.set_num_threads, (1,))
    with pool:
        waiting = {pool.submit(simulate_clip, split, index, config): index for index in indices}
        try:
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def public(split: Split, config: Config, tell: Progress) -> list[Clip]:
    """Face crops of a public data set at the network's frame rate."""
    root = config.data_root or catalogue.data_root()
    loader: Any = {"MMPD": MMPD, "PURE": PURE, "UBFC-rPPG": UBFCrPPG}[config.data]
    place = loader.card.find(root).path
    if place is None:
        raise FoveateError(
            f"{loader.card.title} is not below {root}; get it from {loader.card.url} and lay it "
            f"out as {loader.card.layout}, or name its folder with --set data_root=FOLDER"
        )
    if split == "val" and "val" not in loader.card.splits:
        return []
    clips = loader(place, split)
    folder = cache_folder(split, config.data, str(place.resolve()), config.network.size)
    for index in range(len(clips)):
        tell(f"cropping faces of {config.data}, {split}", index, len(clips))
        if not (folder / f"{index:05d}.npz").is_file():
            clip = clips.clip(index)
            frames = face_crops(clip, config)
            keep(
                folder / f"{index:05d}",
                resampled(clip.times_s, frames, clip.bvp, moves(clip), config),
            )
    return [kept(folder / f"{index:05d}") for index in range(len(clips))]


def moves(clip: PulseClip) -> bool:
    """Whether the data set says that the person moves or talks."""
    if "motion" in clip.meta:
        return not str(clip.meta["motion"]).startswith("Stationary")
    return clip.meta.get("setup", 1) != 1  # PURE; people in UBFC-rPPG sit still


def landmarks_of(frames: Iterable[Frame]) -> npt.NDArray[np.float32]:
    """MediaPipe mesh of one person in every frame, ``(T, 478, 3)`` pixels; NaN without a face."""
    detector = FaceLandmarker(model_files.fetch("face_landmarker"), max_people=1)
    try:
        found = [detector.detect(frame.image, frame.time_s) for frame in frames]
    finally:
        detector.close()
    nobody = np.full((478, 3), np.nan, np.float32)
    return np.stack([faces[0].landmarks if faces else nobody for faces in found])


def face_crops(frames: Iterable[Frame], config: Config) -> npt.NDArray[np.float32]:
    """Square crops around the landmarks; `frames` is iterated twice."""
    boxes = erea.face_boxes(landmarks_of(frames))
    return erea.crop_faces((frame.image for frame in frames), boxes, config.network.size)


def resampled(times: Array, frames: Array, bvp: Array, moving: bool, config: Config) -> Clip:
    """Bring crops and label from their own time stamps to the network's frame rate."""
    fps = config.network.fps
    grid = np.arange(math.floor((times[-1] - times[0]) * fps + 1e-6) + 1) / fps + times[0]
    after = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
    part = (grid - times[after - 1]) / (times[after] - times[after - 1])
    part = part.astype(np.float32)[:, None, None, None]
    even = frames[after - 1] * (1 - part) + frames[after] * part
    label = np.interp(grid, times, bvp) if len(bvp) else np.empty(0)
    return Clip(even, label.astype(np.float32), moving)


def cache_folder(split: str, *settings: object) -> Path:
    """Folder of the clips that these settings make."""
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    return data_dir() / "cache" / "mar-rppg" / key / split


def keep(path: Path, clip: Clip) -> None:
    """Write a clip; the labels come last and say that it is whole."""
    with write_whole(path.with_suffix(".npy")) as temporary:
        np.save(temporary, clip.frames.round().astype(np.uint8), allow_pickle=False)
    skin = np.empty(0, np.float16) if clip.skin is None else clip.skin
    with write_whole(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, bvp=clip.bvp, moving=clip.moving, skin=skin)


def kept(path: Path) -> Clip:
    """Read a clip; pictures stay on disk until they are used."""
    frames = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as labels:
        skin = labels["skin"]
        return Clip(frames, labels["bvp"], bool(labels["moving"]), skin if skin.size else None)


# ------------------------------------------------------------------------------ real faces


def real_faces(
    config: Config, tell: Progress
) -> tuple[dict[str, list[Clip]], Clip | None, list[str]]:
    """Real faces to try everything on without any training: metric name -> clips, one, notes.

    Reported, never judged: ten people with an added pulse, and one with her own.
    """
    root = config.real_data or Path()
    films = sorted((root / "faces" / "grid_talking").glob("*.mpg"))
    evm_film = root / "rppg" / "evm_face.mp4"
    if config.real_data is None or not (films or evm_film.is_file()):
        return {}, None, ["Real faces were not tried: none at hand (--set real_data=FOLDER)."]
    notes, grid = [], {}
    for gain in (0.020, 0.010) if films else ():
        name = f"grid_{1000 * gain:02.0f}"
        folder = cache_folder(name, inspect.getsource(pulsed_talker), config.network, len(films))
        for index, film in enumerate(films):
            tell(f"adding a pulse to talking faces, gain {gain}", index, len(films))
            if not (folder / f"{index:05d}.npz").is_file():
                keep(folder / f"{index:05d}", pulsed_talker(film, index, gain, config))
        grid[f"mae_{name}"] = [kept(folder / f"{index:05d}") for index in range(len(films))]
    if grid:
        notes.append(
            f"mae_grid_*: {len(films)} real talking faces with a *simulated* pulse of peak AC/DC "
            ".020 and .010, not trained on; too few for a verdict."
        )
    evm = None
    if evm_film.is_file():
        tell("cropping the EVM face", 0, 1)
        with VideoStream(evm_film) as stream:
            frames = list(stream)
        times = np.array([frame.time_s for frame in frames])
        evm = resampled(times, face_crops(frames, config), np.empty(0), False, config)
        notes.append("evm_bpm: one real person; about 53 bpm by two independent sources.")
    return grid, evm, notes


def pulsed_talker(film: Path, index: int, gain: float, config: Config) -> Clip:
    """A GRID clip played forward, backward, forward (9 s), its own pulse taken out, one added.

    The loop itself makes lines at multiples of 10 bpm, so the rates are 65, 75, ... 135 bpm.
    """
    with VideoStream(film) as stream:
        once = list(stream)
    fps = (len(once) - 1) / (once[-1].time_s - once[0].time_s)
    there_and_back = [*once, *once[::-1], *once]
    pictures = np.stack([frame.image for frame in there_and_back])
    landmarks = landmarks_of(once)
    mesh = np.concatenate([landmarks, landmarks[::-1], landmarks])
    points = np.stack([ibug68(one) for one in mesh])
    pulsed, labels = apply_pulse(
        pictures, 65.0 + 10 * (index % 8), fps, landmarks=points, gain=gain, seed=index
    )
    crops = erea.crop_faces(pulsed, erea.face_boxes(mesh), config.network.size)
    return resampled(labels["times"], crops, labels["bvp"], True, config)
