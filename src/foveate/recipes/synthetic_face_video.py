"""Synthetic faces: how unreal are they? A landmark net trained on drawings meets real faces.

There is no paper; the claim is our own. A simulator is as good as what a network that has seen
nothing else can do with real pictures. One small network finds 68 points on a face crop,

    points = mean shape + W f((x - mean x) / std x),    loss = mean |points - truth|,

and is trained alike (same first weights, steps, order and variations) on three sorts of faces:

    mean-shape         no network: the mean of the real training shapes     <- the ablation
    simulated          drawn faces alone, labels exact by construction      <- the method
    helen              600 real faces, labelled by hand
    simulated+helen    drawn faces first, then, for the last part of the same steps, the real ones

All are tested on the 330 real test crops of HELEN (Le et al., ECCV 2012; 68 points by iBUG,
Sagonas et al., 2013). The error is NME: mean distance over the 68 points in percent of the distance
between the outer eye corners (points 36 and 45). Crops are 1.5 x the square around the points, so
the box is given, and the mean shape knows already where the face is. The ratio of the errors of
``simulated`` and ``helen`` is the measure of how unreal the simulation is.

Settings are to be chosen with ``--set held_out=100``, which trains on the first 500 real training
crops, measures on the other 100, and does not look at the test crops.

HELEN is not shipped: ``--set real_data=FOLDER`` names the folder that holds
``faces/helen68_96.npz``. Only the smoke scale does without it and tests on drawn faces.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import inspect
import itertools
import math
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.files import data_dir, write_whole
from foveate.report.evidence import (
    Claim,
    Evidence,
    Finding,
    Ledger,
    Metrics,
    Result,
    mean,
    paired_verdict,
)
from foveate.simulate.face_geometry import ACTION_UNITS
from foveate.simulate.face_renderer import CAMERAS
from foveate.simulate.faces import SPLITS, VERSION, FaceSim
from foveate.simulate.scripts import EMOTIONS, Background, Motion

__all__ = ["ARMS", "CLAIM", "PRESETS", "Config", "run"]

CLAIM = Claim(
    text=(
        "A landmark network trained on simulated faces alone finds the landmarks of real faces "
        "better than the mean shape of real faces does"
    ),
    metric="nme",
    direction="lower",
    method="simulated",
    ablation="mean-shape",
    rule=(
        "NME on the test crops (percent of the outer eye-corner distance) is lower than that of "
        "the mean shape, in the mean and in at least 2/3 of the seeds"
    ),
)

ARMS = {
    "mean-shape": "the mean of the training shapes on every crop, not trained",
    "simulated": "trained on simulated crops alone",
    "helen": "trained on real crops alone",
    "simulated+helen": "trained on simulated crops, then on real ones; as many steps in all",
}

PARTS = {
    "jaw": range(17),
    "brows": range(17, 27),
    "nose": range(27, 36),
    "eyes": range(36, 48),
    "mouth": range(48, 68),
}

# What left and right are called once the picture is mirrored.
MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
]  # fmt: skip

CROP = 96  # edge of a crop in pixels
BOX = 64  # edge of the square around the landmarks: the crop is 1.5 times as large

Progress = Callable[[str, int, int], None]
Points = npt.NDArray[np.float32]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    real_data
        Folder that holds ``faces/helen68_96.npz``.
    test
        ``helen``, or ``simulation``: drawn test faces, and no arm that needs real ones.
    held_out
        Number of real *training* crops to measure on in place of the test crops; no arm trains on
        them.
    train_people, test_people, frames
        Simulated people, and pictures of each.
    size
        Edge of the picture as the network sees it, pixels.
    width, blocks
        Channels of the first block and number of blocks; each halves the picture and, up to
        8 x `width`, doubles the channels.
    real_share
        Last part of the steps that ``simulated+helen`` spends on real crops.
    """

    scale: str
    real_data: Path | None = None
    test: Literal["helen", "simulation"] = "helen"
    held_out: int = 0
    train_people: int = 1500
    test_people: int = 80
    frames: int = 4
    size: int = 48
    width: int = 24
    blocks: int = 4
    steps: int = 1000
    batch: int = 48
    lr: float = 2e-3
    weight_decay: float = 1e-2
    real_share: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2)
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


PRESETS = {
    "smoke": Config(
        scale="smoke",
        test="simulation",
        train_people=4,
        test_people=2,
        width=4,
        steps=4,
        batch=4,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    "paper": Config(
        scale="paper",
        train_people=10000,
        test_people=330,
        size=96,
        width=64,
        blocks=5,
        steps=30000,
        batch=128,
        lr=1e-3,
        accelerator="auto",
        precision="bf16-mixed",
    ),
}


def run(config: Config, progress: Progress | None = None) -> Evidence | None:
    """Train and test every arm under every seed; finished ones are reused.

    Returns None in all processes of a multi-process run but the first.

    Raises
    ------
    FoveateError
        HELEN is needed and not given, or its file is not what it should be.
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
    ledger = Ledger("synthetic-face-video", config, __file__, writer=fabric.is_global_zero)
    with fabric.rank_zero_first():  # one process draws the faces, the others find them drawn
        data = load_data(config, tell)

    results = []
    jobs = [(arm, seed) for seed in config.seeds for arm in arms_of(config)]
    for done, (arm, seed) in enumerate(jobs):
        tell(f"{arm}, seed {seed}", done, len(jobs))

        def compute(arm: str = arm, seed: int = seed, done: int = done) -> Metrics:
            if arm == "mean-shape":  # nothing is random in it: the same under every seed
                shape = data.train["helen" if data.real else "simulated"].mean_shape()
                return measure(lambda pictures: shape.expand(len(pictures), -1, -1), data)
            net = train(
                arm, seed, data.train, config, fabric, lambda what: tell(what, done, len(jobs))
            )
            return measure(lambda pictures: net(fabric.to_device(pictures)).cpu(), data)

        results.append(ledger.result(arm, seed, compute))
        fabric.barrier()
    if not fabric.is_global_zero:
        return None
    return Evidence(
        recipe="synthetic-face-video",
        claim=CLAIM,
        verdict=paired_verdict(results, "nme", "simulated", "mean-shape", "lower"),
        arms={arm: ARMS[arm] for arm in arms_of(config)},
        results=results,
        data=data.what,
        simulated=not data.real,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results) if data.real else [],
        notes=remarks(results),
        seconds=round(time.perf_counter() - started, 1),
    )


def arms_of(config: Config) -> list[str]:
    """All arms; without real faces only those that can do without."""
    return [arm for arm in ARMS if config.test == "helen" or "helen" not in arm]


# ------------------------------------------------------------------------------ network


class LandmarkNet(nn.Module):
    """Strided 3 x 3 convolutions and one linear layer: ``(B, 3, H, H)``, 0 to 255, to points.

    Every picture is standardised on its own, so overall brightness and contrast are no cue and
    need no variation in training. Points are ``(B, 68, 2)`` in pixels of the crop; an untrained
    network gives nearly `shape`, the mean shape of what it is going to be trained on.
    """

    shape: Tensor

    def __init__(self, shape: Tensor, size: int, width: int, blocks: int) -> None:
        super().__init__()
        self.size = size
        widths = [3, *(width * 2 ** min(block, 3) for block in range(blocks))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            size = (size + 1) // 2
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Linear(widths[-1] * size * size, shape.numel())
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shape", shape.clone())

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures.float(), (self.size, self.size), mode="area")
        std, average = torch.std_mean(x, (1, 2, 3), keepdim=True)
        offset: Tensor = self.head(self.features((x - average) / (std + 1)))
        return self.shape + BOX * offset.float().view(-1, *self.shape.shape)


# ------------------------------------------------------------------------------ training


def train(
    arm: str,
    seed: int,
    crops: dict[str, Crops],
    config: Config,
    fabric: Fabric,
    tell: Callable[[str], None] = lambda what: None,
) -> LandmarkNet:
    """Train one network; `seed` fixes its first weights, the order of crops and the variations.

    Parameters
    ----------
    crops
        Training crops ``simulated`` and, where the arm needs them, ``helen``.
    """
    first, last = (arm.split("+") * 2)[:2]
    # The first batches of simulated+helen are simulated, the others real.
    turn = round((1 - config.real_share) * config.steps) if first != last else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LandmarkNet(crops[first].mean_shape(), config.size, config.width, config.blocks)
        optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
        model, optimizer = fabric.setup(net, optimizer)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps, pct_start=0.1
        )
        # Order and variations are drawn alike in every arm, whatever the number of its crops.
        order = torch.Generator().manual_seed(seed)
        draw = torch.Generator().manual_seed(1000 * (seed + 1) + fabric.global_rank)
        fits = []
        model.train()
        for step in range(config.steps):
            source = crops[first if step < turn else last]
            places = torch.rand(config.batch * fabric.world_size, generator=order)
            places = places[fabric.global_rank * config.batch :][: config.batch]
            chosen = (places * len(source.pictures)).long()
            pictures, points = vary(
                source.pictures[chosen], source.points[chosen], config.size, draw
            )
            pictures, points = fabric.to_device((pictures, points))
            loss = F.l1_loss(model(pictures), points) / BOX
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            fits.append(loss.item())
            if (step + 1) % 100 == 0 or step + 1 == config.steps:
                off = BOX * np.mean(fits[-100:])
                tell(f"{arm}, seed {seed}, step {step + 1} of {config.steps}: {off:.2f} px off")
    return net.eval()


def vary(
    pictures: Tensor, points: Tensor, size: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Turn, mirror, shift, zoom and tint crops, the points with them; alike in every arm.

    Half of the crops are mirrored; all are turned by up to 25 degrees and cropped anew around the
    turned points, as the data are, missing that by up to 3 % of the edge in place and 5 % in size;
    gamma in .6 to 1.6, gains of the colours, three in ten grey; a rectangle of up to half the
    edge is covered in half of them.

    Parameters
    ----------
    pictures, points
        ``(B, 3, 96, 96)`` uint8 and ``(B, 68, 2)`` pixels.

    Returns
    -------
    pictures, points
        ``(B, 3, size, size)`` float, 0 to 255, and ``(B, 68, 2)``, still in pixels of a crop of 96.
    """
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw)

    # Geometry about the middle of the crop: p -> A p with A a mirror, then a turn.
    angle = uniform(-1, 1) * math.radians(25)
    mirrored = uniform(0, 1) < 0.5
    side = torch.where(mirrored, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos * side, -sin, sin * side, cos], 1).view(count, 2, 2)
    turned = (points - CROP / 2) @ turn.mT
    turned = torch.where(mirrored[:, None, None], turned[:, MIRROR], turned)
    low, high = turned.amin(1), turned.amax(1)
    zoom = (high - low).amax(1) / BOX * uniform(0.95, 1.05)
    centre = (low + high) / 2 + CROP * zoom[:, None] * uniform(-0.03, 0.03, 2)
    points = (turned - centre[:, None]) / zoom[:, None, None] + CROP / 2
    # What affine_grid wants is the way back, from the new crop to the old one, in half edges.
    back = torch.cat([zoom[:, None, None] * turn.mT, turn.mT @ centre[..., None] * 2 / CROP], 2)
    grid = F.affine_grid(back, [count, 3, size, size], align_corners=False)
    x = F.grid_sample(pictures.float() / 255, grid, align_corners=False).clamp(1e-4, 1)

    x = x ** torch.exp(uniform(math.log(0.6), math.log(1.6), 1, 1, 1))
    x = x * uniform(0.8, 1.25, 3, 1, 1)
    grey = uniform(0, 1, 1, 1, 1) < 0.3
    x = torch.where(grey, x.mean(1, keepdim=True), x)
    hidden = uniform(0, 1, 1, 1, 1) < 0.5
    for shape in ((1, size, 1), (1, 1, size)):
        place = torch.arange(size).view(shape) / size
        start, length = uniform(0, 1, 1, 1, 1), uniform(0, 0.5, 1, 1, 1)
        hidden = hidden & (place >= start) & (place < start + length)
    x = torch.where(hidden, uniform(0, 1, 3, 1, 1), x)
    return 255 * x.clamp(0, 1), points


# ------------------------------------------------------------------------------ testing


def measure(read: Callable[[Tensor], Tensor], data: Data) -> Metrics:
    """NME of all points and of each part of the face, in percent of the outer eye distance.

    Parameters
    ----------
    read
        ``(B, 3, 96, 96)`` uint8 to ``(B, 68, 2)`` pixels.
    """
    errors = point_errors(read, data.test)
    metrics = {"nme": errors.mean().item()}
    metrics |= {part: errors[:, list(points)].mean().item() for part, points in PARTS.items()}
    if data.real:
        metrics["nme_simulated"] = point_errors(read, data.simulated_test).mean().item()
    return metrics


def point_errors(read: Callable[[Tensor], Tensor], crops: Crops) -> Tensor:
    """Distance of every point from the truth over the distance 36-45: ``(N, 68)`` percent."""
    with torch.inference_mode():
        found = torch.cat([read(pictures) for pictures in torch.split(crops.pictures, 64)])
    scale = (crops.points[:, 36] - crops.points[:, 45]).norm(dim=1)
    errors: Tensor = 100 * (found - crops.points).norm(dim=2) / scale[:, None]
    return errors


# ------------------------------------------------------------------------------ verdicts


def findings(results: list[Result]) -> list[Finding]:
    """What real faces have that drawn ones lack, and what drawn ones add."""

    def compare(text: str, arm: str, other: str) -> Finding:
        return Finding(text, paired_verdict(results, "nme", arm, other, "lower"))

    return [
        compare("real crops teach more than simulated ones", "helen", "simulated"),
        compare(
            "simulated crops first: lower NME than real crops alone in as many steps",
            *("simulated+helen", "helen"),
        ),
    ]


def remarks(results: list[Result]) -> list[str]:
    """The gap: how many times the error of real training is that of simulated training."""
    pairs = {
        arm: {r.seed: r.metrics["nme"] for r in results if r.arm == arm}
        for arm in ("simulated", "helen")
    }
    gaps = [pairs["simulated"][seed] / nme for seed, nme in pairs["helen"].items()]
    if not gaps:
        return ["Real faces were not tried (--set test=helen --set real_data=FOLDER)."]
    drawn, real, constant = (mean(results, a, "nme") for a in ("simulated", "helen", "mean-shape"))
    return [
        f"The gap, NME(simulated) / NME(helen), is {np.mean(gaps):.2f} ({min(gaps):.2f} to "
        f"{max(gaps):.2f} over the seeds): {drawn:.1f} % against {real:.1f} %; the mean shape is "
        f"{constant:.1f} % off.",
        "nme_simulated: the same networks on drawn faces of people that no arm has seen.",
    ]


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Crops:
    """Face crops ``(N, 3, 96, 96)`` uint8 RGB and their points ``(N, 68, 2)`` in pixels.

    Coordinates are those of edges: the crop spans 0 to 96, the middle of its first pixel is .5.
    """

    pictures: Tensor
    points: Tensor

    def mean_shape(self) -> Tensor:
        """Mean of the points, ``(68, 2)``."""
        return self.points.mean(0)


@dataclass(frozen=True)
class Data:
    """Crops to train on (``simulated``, ``helen``) and to test on; `real`: tested on real faces."""

    what: str
    train: dict[str, Crops]
    test: Crops
    simulated_test: Crops
    real: bool


def load_data(config: Config, tell: Progress) -> Data:
    """Read HELEN, if it is asked for, and draw the simulated crops or find them drawn."""
    real = helen(config) if config.test == "helen" else None  # first: complain before drawing
    drawn, unseen = simulated("train", config, tell), simulated("test", config, tell)
    if real is None:
        what = f"{len(unseen.pictures)} drawn faces; trained on {len(drawn.pictures)} others"
        return Data(what, {"simulated": drawn}, unseen, unseen, False)
    train, test = real
    kind = "validation crops (held out of the training set)" if config.held_out else "test crops"
    what = (
        f"HELEN, {len(test.pictures)} real {kind}; trained on {len(drawn.pictures)} simulated "
        f"crops, {len(train.pictures)} real ones, or both"
    )
    return Data(what, {"simulated": drawn, "helen": train}, test, unseen, True)


def helen(config: Config) -> tuple[Crops, Crops]:
    """Real crops to train and to test on; with `held_out` the latter are training crops, too."""
    if config.real_data is None:
        raise FoveateError(
            "this recipe is tested on real faces: name the folder that holds faces/helen68_96.npz "
            "with --set real_data=FOLDER"
        )
    path = config.real_data / "faces" / "helen68_96.npz"
    if not path.is_file():
        raise FoveateError(
            f"there is no {path}; name the folder that holds faces/helen68_96.npz with "
            "--set real_data=FOLDER"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            sets = {
                part: checked(stored[f"x_{part}"], stored[f"lm_{part}"])
                for part in (("train",) if config.held_out else ("train", "test"))
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FoveateError(
            f"{path} is not a file of face crops ({error}); expected x_train, x_test (N, 3, 96, "
            "96) uint8 and lm_train, lm_test (N, 68, 2) float32"
        ) from error
    train = sets["train"]
    if not config.held_out:
        return train, sets["test"]
    kept = len(train.pictures) - config.held_out
    if kept < 1 or config.held_out < 0:
        raise FoveateError(
            f"held_out is {config.held_out}, but there are {len(train.pictures)} training crops; "
            "give fewer, and not less than 0"
        )
    return (
        Crops(train.pictures[:kept], train.points[:kept]),
        Crops(train.pictures[kept:], train.points[kept:]),
    )


def checked(pictures: npt.NDArray[np.uint8], points: Points) -> Crops:
    """Crops, if the arrays are such."""
    count = len(pictures)
    if pictures.dtype != np.uint8 or pictures.shape != (count, 3, CROP, CROP) or not count:
        raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}")
    if points.shape != (count, 68, 2) or not np.isfinite(points).all():
        raise ValueError(f"points are {points.shape}, or not finite")
    return Crops(torch.from_numpy(pictures), torch.from_numpy(points.astype(np.float32)))


def draw_person(split: Split, index: int, frames: int) -> tuple[npt.NDArray[np.uint8], Points]:
    """Crops of person number `index` of a split, always the same, each another face and pose.

    The expression is new in every picture (a posed emotion in half of the people, and each action
    unit with probability .25); head and eyes move for a second in between; light, camera and
    background are those of the person.
    """
    rng = np.random.default_rng([("train", "test").index(split), index])
    active = rng.random((len(ACTION_UNITS), frames)) < 0.25
    aus = active * rng.uniform(0, 5, active.shape)
    clip = FaceSim(128, fps=1).clip(
        SPLITS[split][index],
        seconds=frames,
        aus=dict(zip(ACTION_UNITS, aus, strict=True)),
        emotion=str(rng.choice(list(EMOTIONS))) if rng.random() < 0.5 else None,
        motion=Motion(yaw=40, pitch=20, roll=20, shift=0.02),
        light="random",
        camera=str(rng.choice(sorted(CAMERAS))),
        background=Background(
            rng.choice(["gradient", "noise", "stripes"]), tuple(rng.uniform(0.02, 0.9, 3).tolist())
        ),
    )
    return cropped(clip.frames, clip.labels["landmarks"])


def cropped(frames: npt.NDArray[np.uint8], points: Points) -> tuple[npt.NDArray[np.uint8], Points]:
    """Crops as HELEN's are: the square around the points in the middle, 64 of 96 pixels.

    Parameters
    ----------
    frames, points
        ``(T, S, S, 3)`` uint8 and ``(T, 68, 2)`` pixels.

    Returns
    -------
    pictures, points
        ``(T, 3, 96, 96)`` uint8 and ``(T, 68, 2)`` pixels of the crop.
    """
    edge = frames.shape[1]
    low, high = points.min(1), points.max(1)
    centre, zoom = (low + high) / 2, (high - low).max(1) / BOX
    back = np.zeros((len(frames), 2, 3), np.float32)
    back[:, 0, 0] = back[:, 1, 1] = zoom * CROP / edge
    back[:, :, 2] = 2 * centre / edge - 1
    grid = F.affine_grid(torch.from_numpy(back), [len(frames), 3, CROP, CROP], align_corners=False)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    moved = (points - centre[:, None]) / zoom[:, None, None] + CROP / 2
    return x.round().to(torch.uint8).numpy(), moved.astype(np.float32)


def simulated(split: Split, config: Config, tell: Progress) -> Crops:
    """Crops of all people of a split, drawn by one thread per core and kept for the next run."""
    count = {"train": config.train_people, "test": config.test_people}[split]
    if not 1 <= count <= len(SPLITS[split]):
        raise FoveateError(
            f"{split}_people is {count}; the simulator has 1 to {len(SPLITS[split])} people there"
        )
    settings = VERSION, inspect.getsource(draw_person), inspect.getsource(cropped), config.frames
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    folder = data_dir() / "cache" / "synthetic-face-video" / key / split
    files = [folder / f"{index:05d}.npz" for index in range(count)]
    todo = [index for index in range(count) if not files[index].is_file()]
    threads = torch.get_num_threads()
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "sim", torch.set_num_threads, (1,))
    with pool:
        waiting = {pool.submit(draw_person, split, index, config.frames): index for index in todo}
        try:
            finished = concurrent.futures.as_completed(waiting)
            for done, future in enumerate(finished, count - len(todo) + 1):
                drawn, labels = future.result()
                with write_whole(files[waiting[future]]) as temporary:
                    np.savez(temporary, pictures=drawn, points=labels)
                tell(f"drawing faces for {split}", done, count)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    pictures = np.empty((count, config.frames, 3, CROP, CROP), np.uint8)
    points = np.empty((count, config.frames, 68, 2), np.float32)
    for index, file in enumerate(files):
        with np.load(file, allow_pickle=False) as stored:
            pictures[index], points[index] = stored["pictures"], stored["points"]
    return checked(pictures.reshape(-1, 3, CROP, CROP), points.reshape(-1, 68, 2))
