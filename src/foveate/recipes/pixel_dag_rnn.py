"""Pixel DAG-RNN: does walking from the corners of a patch to its centre tell what grows there?

Paper: Li, Sun, Li, Ren, Liu, Jiao, "Pixel DAG-Recurrent Neural Network for Spectral-Spatial
Hyperspectral Image Classification", 2019 (arXiv 1906.03607).

Four recurrent walks through the quadrants of a patch, from its corners to the pixel in the middle,

    h(v) = tanh(U x(v) + V sum_p tanh(S h(p) + a) + b),

label that pixel (`foveate.scenes.dag_rnn`). Whether context helps depends on how it is asked:

``random``
    (P) The paper's kind. 15 % of the pixels of every class train, at least 10 and at most half,
    the rest test. The test pixels' own spectra lie inside training patches.
``blocks``
    (B) A checkerboard of 18 x 18 pixels. Training pixels within n // 2 of a labelled test pixel are
    dropped, after which no training patch contains one, and classes with fewer than 30 pixels on a
    side are left out by name. The guard is that of the largest patch, and all arms use the pixels
    that survive it. The seed draws 3,000 test pixels.
``swapped``
    The same board with its colours exchanged: one checkerboard is one geometry.
``wide``
    The same board with the guard of the longest memory compared (m = 7), for the question of m
    alone: fewer pixels train, and fewer classes survive.

Arms of each:

    lda, svm      all bands of one pixel: LDA (Ledoit-Wolf), RBF-SVM with C = 100
    mlp           one pixel, as many weights as the DAG-RNN: this is m = 1
    4nb, 8nb      the DAG-RNN of 4 and of 8 neighbours, m = 5 (patches of 9 x 9)
    8nb-m3 ...    other memory lengths m = n // 2 + 1
    cnn           two 3 x 3 convolutions on the same patches, as many weights again

Nets see 30 whitened principal components of the standardised bands, LDA and SVM the standardised
bands; every mean, deviation and component is that of the training pixels. All settings are fixed
beforehand and the same for all nets; the last epoch's weights count. Seeds redraw the random split
or the test pixels, and the first weights.

``--set scene=flevoland`` and ``sanfrancisco`` are PolSAR scenes (9 channels, 100 pixels of each
class, 10,000 test pixels); ``--set path=FILE`` takes any labelled scene. The smoke scale draws a
scene of its own, which is called simulated.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.svm import SVC
from torch import nn

from foveate.datasets import catalogue
from foveate.datasets.hyperspectral import load_hsi
from foveate.datasets.polsar import load_polsar_npz
from foveate.datasets.scene import Scene
from foveate.datasets.scene_files import open_scene
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
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
from foveate.scenes.accuracy import oa_aa_kappa
from foveate.scenes.dag_rnn import PixelDAGRNN, influence_by_distance
from foveate.scenes.dag_rnn_map import Diverged, train_on_patches
from foveate.scenes.patch_model import SmallPatchCnn
from foveate.scenes.patches import read_patches
from foveate.scenes.scaling import BandScaler, SceneFeatures
from foveate.scenes.splits import (
    checkerboard_split,
    draw_per_class,
    leakage_report,
    random_per_class_split,
)

__all__ = ["CLAIM", "PRESETS", "Config", "run"]

GAIN = {"random": 5.0, "blocks": 2.0, "swapped": 2.0}  # points over one-pixel methods
LEAST_SEEDS = 5

CLAIM = Claim(
    text=(
        "Recurrent walks through the four quadrants of a patch label its centre better than "
        "methods that see one pixel, the better the longer their memory, and diagonal neighbours "
        "help"
    ),
    metric="oa",
    direction="higher",
    method="random-8nb",
    ablation="random-mlp",
    rule=(
        "on random pixels, in the mean over 5 seeds: 4 and 8 neighbours beat the one-pixel MLP and "
        "the SVM by at least 5 points of overall accuracy; accuracy rises from m = 1 over 3 to 5; "
        "8 neighbours are better than 4 (mean paired difference above 0)"
    ),
    published=(
        "Indian Pines, random pixels, OA: 8 neighbours 96.42 %, 4 neighbours 95.13, 3-D CNN 94.93, "
        "RBF-SVM 82.20"
    ),
    certainty="P",
)

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Kind = Literal["lda", "svm", "mlp", "dag", "cnn"]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    scene, data_root
        One of the known scenes, and the folder of data sets (default: foveate's data folder).
    path
        A labelled scene instead: ENVI, MATLAB, npz, GeoTIFF, a PolSAR folder.
    protocols
        Some of ``random``, ``blocks``, ``swapped`` and ``wide``, in the order of the run.
    memory, memories
        m of the compared nets, n = 2 m - 1; other values of m for 8 neighbours.
    components
        Principal components that nets see of a hyperspectral pixel; 0: all bands.
    hidden, fc_hidden, dropout
        Of the DAG-RNN.
    lr, weight_decay, epochs, batch
        Of Adam with cosine decay, for all nets.
    share
        Part of every class that trains on random pixels, at least `least_train` (PolSAR: 100).
    """

    scale: str
    scene: Literal["indian-pines", "flevoland", "sanfrancisco", "simulated"] = "indian-pines"
    path: Path | None = None
    data_root: Path | None = None
    protocols: tuple[str, ...] = ("random", "blocks", "wide", "swapped")
    memory: int = 5
    memories: tuple[int, ...] = (3, 5, 7)
    components: int = 30
    hidden: int = 32
    fc_hidden: int = 64
    dropout: float = 0.4
    lr: float = 3e-3
    weight_decay: float = 1e-4
    epochs: int = 40
    batch: int = 128
    share: float = 0.15
    least_train: int = 10
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.protocols) - {*GAIN, "wide"})
        if unknown or not self.protocols:
            raise FoveateError(
                f"protocols are some of random, blocks, swapped and wide, got {self.protocols}"
            )
        if min(self.memory, *self.memories, self.epochs, self.batch) < 1 or self.memory < 2:
            raise FoveateError(
                "memory is at least 2, memories, epochs and batch at least 1, got "
                f"{self.memory}, {self.memories}, {self.epochs} and {self.batch}"
            )


PRESETS = {
    "smoke": Config("smoke", scene="simulated", memory=3, memories=(2, 3, 4), components=6,
                    hidden=8, fc_hidden=16, epochs=2, batch=64, seeds=(0,)),
    "desk": Config("desk"),
    "paper": Config("paper", memory=7, memories=(5, 6, 7, 8), components=0, hidden=128,
                    fc_hidden=128, lr=5e-3, epochs=200, accelerator="auto"),
}  # fmt: skip


def run(config: Config, progress: Progress | None = None) -> Evidence:
    """Train and test every arm under every seed; finished work is reused.

    Raises
    ------
    FoveateError
        The scene is not there, is damaged, or has no labels.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    device = Fabric(accelerator=config.accelerator, devices=1).device
    ledger = Ledger("pixel-dag-rnn", config, __file__)
    data = load_data(config)
    arms = arms_of(config)
    # Protocol after protocol: whoever stops early has whole comparisons.
    jobs = [
        (name, seed)
        for protocol in config.protocols
        for seed in config.seeds
        for name, arm in arms.items()
        if arm.protocol == protocol
    ]
    results = []
    for done, (name, seed) in enumerate(jobs):
        tell(f"{name}, seed {seed}", done, len(jobs))

        def compute(name: str = name, seed: int = seed, done: int = done) -> Measured:
            def say(what: str) -> None:
                tell(what, done, len(jobs))

            return measure(arms[name], seed, data, config, device, say)

        results.append(ledger.result(name, seed, compute))
    return Evidence(
        recipe="pixel-dag-rnn",
        claim=CLAIM,
        verdict=verdict(results, "random", config),
        arms={name: arm.what for name, arm in arms.items()},
        results=results,
        data=data.what,
        simulated=data.simulated,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, config),
        notes=remarks(results, data, config),
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ arms


@dataclass(frozen=True)
class Arm:
    """A method under a protocol; `memory` is m, 1 for what sees one pixel."""

    what: str
    protocol: str
    kind: Kind
    memory: int = 1
    neighbours: int = 8

    @property
    def patch(self) -> int:
        """Side n of its patches."""
        return 2 * self.memory - 1


def arms_of(config: Config) -> dict[str, Arm]:
    """All arms, in the order in which they are shown."""
    words = {
        "random": "random pixels",
        "blocks": "checkerboard",
        "swapped": "checkerboard, colours exchanged",
        "wide": f"checkerboard, guard {max(config.memories) - 1}",
    }
    m, n = config.memory, 2 * config.memory - 1
    arms = {}
    for protocol in config.protocols:
        table: dict[str, tuple[str, Kind, int, int]] = {"mlp": ("MLP on one pixel", "mlp", 1, 8)}
        others = sorted(set(config.memories))
        if protocol != "wide":
            table["lda"] = ("LDA on one pixel", "lda", 1, 8)
            table["svm"] = ("RBF-SVM on one pixel", "svm", 1, 8)
            table["cnn"] = (f"CNN on patches of {n} x {n}", "cnn", m, 8)
            for near in (4, 8):
                table[f"{near}nb"] = (f"DAG-RNN of {near} neighbours, m = {m}", "dag", m, near)
            # On blocks, what needs a wider guard than these is asked in `wide`.
            others = [k for k in others if k < m or (k > m and protocol == "random")]
        for k in others:
            table[f"8nb-m{k}"] = (f"DAG-RNN of 8 neighbours, m = {k}", "dag", k, 8)
        for name, (what, kind, memory, near) in table.items():
            arms[f"{protocol}-{name}"] = Arm(
                f"{words[protocol]}: {what}", protocol, kind, memory, near
            )
    return arms


def network(arm: Arm, channels: int, classes: int, config: Config) -> nn.Module:
    """The net of an arm; MLP and CNN have about as many weights as the DAG-RNN of any m."""
    sizes = (channels, classes, config.hidden, arm.patch, arm.neighbours, config.dropout)
    net = PixelDAGRNN(*sizes, fc_hidden=config.fc_hidden)
    if arm.kind == "dag":
        return net
    weights = sum(p.numel() for p in net.parameters())
    if arm.kind == "mlp":  # w (channels + w + classes)
        w = root(1, channels + classes, weights)
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(channels, w), nn.ReLU(), nn.Dropout(config.dropout)),
            *(nn.Linear(w, w), nn.ReLU(), nn.Dropout(config.dropout)),
            nn.Linear(w, classes),
        )
    w = root(18, channels + classes, weights)
    return SmallPatchCnn(channels, classes, w, config.dropout)


def root(square: int, line: int, total: int) -> int:
    """Whole w with ``square w^2 + line w`` about `total`, at least 1."""
    return max(1, int((math.sqrt(line**2 + 4 * square * total) - line) / (2 * square)))


# ------------------------------------------------------------------------------ one arm

Measured = tuple[Metrics, Items]


def measure(
    arm: Arm, seed: int, data: Data, config: Config, device: torch.device, say: Tell
) -> Measured:
    """Overall and average accuracy in percent, kappa, and what else belongs to the arm.

    ``covered`` is the share of test pixels inside a training patch, in percent. Items: `recall` of
    the classes in rising order of their codes; `influence` of a DAG-RNN, by distance 0, 1, ...;
    ``influence_ratio`` is that at distance m - 1 over that at 1.
    """
    part = task(arm.protocol, seed, data, config)
    labels, classes = data.labels, part.classes
    both = (part.train, part.test)
    at = [labels.coordinates[index] for index in both]
    truth = [np.searchsorted(classes, labels.codes[index]).astype(np.int64) for index in both]
    seen = data.cube[at[0][:, 0], at[0][:, 1]]
    reduce = arm.kind not in ("lda", "svm") and data.kind == "hyperspectral"
    features = SceneFeatures(data.kind, (config.components or None) if reduce else None)
    features.scaler = BandScaler(data.setting.floor)
    features.fit(seen)
    extra: Metrics = {}
    items: Items = {}
    if arm.kind in ("lda", "svm"):
        there = data.cube[at[1][:, 0], at[1][:, 1]]
        guess = one_pixel(arm.kind, features.transform(seen), truth[0], features.transform(there))
    else:
        cube = features.transform(data.cube)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = network(arm, cube.shape[2], len(classes), config).to(device)

        def epoch(done: int, total: int) -> None:
            if done % 10 == 0:
                say(f"{arm.what}, seed {seed}, epoch {done} of {total}")

        try:
            train_on_patches(
                net,
                torch.from_numpy(read_patches(cube, at[0], arm.patch)),
                torch.from_numpy(truth[0]),
                epochs=config.epochs,
                batch=config.batch,
                lr=config.lr,
                weight_decay=config.weight_decay,
                seed=seed,
                progress=epoch,
            )
        except Diverged:
            return {"oa": math.nan, "aa": math.nan, "kappa": math.nan}, {}
        guess = predicted(net, cube, at[1], arm.patch, device)
        if arm.memory > 1:
            leak = leakage_report(labels, both, arm.patch)
            extra["covered"] = 100 * leak.covered
        if isinstance(net, PixelDAGRNN) and arm.memory > 1:
            some = read_patches(cube, at[1][:: max(1, len(at[1]) // 256)], arm.patch)
            rings = influence_by_distance(net, torch.from_numpy(some).to(device))
            items["influence"] = [float(value) for value in rings]
            if arm.memory > 2:
                extra["influence_ratio"] = items["influence"][-1] / items["influence"][1]
    found = oa_aa_kappa(truth[1], guess, range(len(classes)))
    items["recall"] = [100 * found.recall[k] for k in sorted(found.recall)]
    return {"oa": 100 * found.oa, "aa": 100 * found.aa, "kappa": found.kappa, **extra}, items


def one_pixel(kind: Kind, x: Floats, y: Index, there: Floats) -> Index:
    """LDA with Ledoit and Wolf's shrinkage, or the SVM."""
    model: Any = SVC(C=100.0, gamma="scale")
    if kind == "lda":
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    codes: Index = model.fit(x, y).predict(there).astype(np.int64)
    return codes


@torch.no_grad()
def predicted(
    net: nn.Module, cube: Floats, at: npt.NDArray[Any], patch: int, device: torch.device
) -> Index:
    """Class positions of the pixels `at`."""
    codes = np.empty(len(at), np.int64)
    for start in range(0, len(at), 1024):
        x = torch.from_numpy(read_patches(cube, at[start : start + 1024], patch)).to(device)
        codes[start : start + 1024] = net(x).argmax(1).cpu().numpy()
    return codes


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Setting:
    """What a scene asks for."""

    file: str = ""
    block: tuple[int, int] | None = None  # of the checkerboard; None: by the scene's size
    per_class: int = 0  # that train; 0: a share of them on random pixels, all on blocks
    test_random: int = 0  # test pixels drawn; 0: all
    test_blocks: int = 3000
    floor: float | None = None  # smallest deviation of a band
    least: int = 30  # pixels on either side below which blocks leave a class out


SETTINGS = {
    "indian-pines": Setting("hsi/indian_pines.npz", (18, 18), floor=1.0),
    "flevoland": Setting("polsar/flevoland_airsar_t3_f16.npz", (48, 48), 100, 10_000, 10_000),
    "sanfrancisco": Setting(
        "polsar/sanfrancisco_airsar_t3_f16.npz", (100, 128), 100, 10_000, 10_000
    ),
    "simulated": Setting("", (16, 16), test_random=300, test_blocks=300, least=5),
}


@dataclass(frozen=True)
class Data:
    """A labelled scene in memory: `cube` (H, W, C) as its file has it."""

    what: str
    simulated: bool
    kind: str
    cube: Floats
    labels: SceneLabels
    setting: Setting


@dataclass(frozen=True)
class Task:
    """Training and test pixels of a protocol, and the classes among them."""

    train: Index
    test: Index
    classes: tuple[int, ...]
    left_out: dict[int, str]


def task(protocol: str, seed: int, data: Data, config: Config) -> Task:
    """Draw a protocol's pixels; on blocks all arms share them, and the seed draws the test."""
    labels, setting = data.labels, data.setting
    if protocol == "random":
        wanted = setting.per_class or config.share
        least = 1 if setting.per_class else config.least_train
        split = random_per_class_split(labels, wanted, minimum=least, at_most=0.5, seed=seed)
        count = setting.test_random
    else:
        m = max(config.memories) if protocol == "wide" else config.memory
        side = max(2 * (2 * m - 1), min(labels.shape) // 7)
        split = checkerboard_split(
            labels,
            setting.block or (side, side),
            guard=m - 1,
            even_is_train=protocol != "swapped",
            least=setting.least,
        )
        count = setting.test_blocks
    train, test = split.train, split.test
    if setting.per_class and len(train):
        train = draw_per_class(labels, train, setting.per_class, seed)
    if count and len(test) > count:
        test = np.sort(np.random.default_rng((seed, 1)).choice(test, count, replace=False))
    classes = tuple(int(code) for code in np.unique(labels.codes[train]))
    if len(classes) < 2 or not len(test):
        raise FoveateError(
            f"{protocol}: {len(classes)} class(es) keep enough pixels on both sides; choose "
            "other --set protocols, or a scene with more labels"
        )
    return Task(train, test, classes, dict(split.left_out))


def load_data(config: Config) -> Data:
    """Read the scene that `config` names."""
    setting = Setting() if config.path else SETTINGS[config.scene]
    simulated = config.path is None and config.scene == "simulated"
    if config.path is not None:
        scene = open_scene(config.path)
    elif simulated:
        scene = drawn_scene()
    else:
        path = (config.data_root or catalogue.data_root()) / setting.file
        if not path.is_file():
            raise FoveateError(
                f"the scene {config.scene} is not at {path}; put it there (`foveate data` says "
                "where it comes from), or name the folder with --set data_root=FOLDER"
            )
        scene = load_hsi(path) if setting.file.startswith("hsi") else load_polsar_npz(path)
    labels = scene.labels
    if labels is None or not len(labels):
        raise FoveateError(
            f"the scene {scene.name} has no labels; give a file that holds some beside the pixels"
        )
    what = "simulated scene" if simulated else scene.name
    return Data(
        f"{what}, {scene.height} x {scene.width} pixels, {scene.channels} channels "
        f"({scene.kind}), {len(labels)} labelled pixels of {len(labels.classes)} classes",
        simulated,
        scene.kind,
        scene.read(),
        labels,
        setting,
    )


def drawn_scene(side: int = 64, bands: int = 12, classes: int = 4, seed: int = 0) -> Scene:
    """Fields of a few classes whose single pixels are noisier than the classes are apart."""
    draw = np.random.default_rng(seed)
    seeds = draw.uniform(0, side, (6 * classes, 2))
    grid = np.moveaxis(np.mgrid[:side, :side], 0, -1) + 0.5
    nearest = ((grid[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
    truth = (nearest % classes + 1).astype(np.int16)
    spectra = draw.normal(size=(classes + 1, bands))
    cube = spectra[truth] + 1.5 * draw.normal(size=(side, side, bands))
    known = draw.random(truth.shape) < 0.5
    labels = SceneLabels.from_map(np.where(known, truth, 0), source="simulated")
    return Scene.from_array(cube.astype(np.float32), "hyperspectral", "simulated", labels=labels)


# ------------------------------------------------------------------------------ verdicts


class Parts(NamedTuple):
    """The three parts of the rule."""

    context: bool
    rise: bool
    diagonal: bool


def parts(results: list[Result], protocol: str, config: Config) -> Parts | None:
    """What of the rule holds under a protocol; None where arms or seeds are missing."""
    lengths = sorted({m for m in config.memories if 1 < m < config.memory} | {config.memory})
    ladder = [f"{protocol}-mlp", *(dag(protocol, m, config) for m in lengths)]
    arms = {f"{protocol}-{name}" for name in ("svm", "4nb", "8nb")} | set(ladder)
    oa = {arm: {r.seed: r.metrics["oa"] for r in results if r.arm == arm} for arm in arms}
    seeds = set(oa[f"{protocol}-8nb"])
    if len(seeds) < LEAST_SEEDS or any(set(of_arm) != seeds for of_arm in oa.values()):
        return None
    if any(math.isnan(value) for of_arm in oa.values() for value in of_arm.values()):
        return None
    top = {arm: sum(of_arm.values()) / len(seeds) for arm, of_arm in oa.items()}
    four, eight, *single = (top[f"{protocol}-{name}"] for name in ("4nb", "8nb", "mlp", "svm"))
    return Parts(
        min(four, eight) - max(single) >= GAIN[protocol] - 1e-9,  # rounding
        all(top[a] < top[b] for a, b in itertools.pairwise(ladder)),
        eight > four,
    )


def dag(protocol: str, m: int, config: Config) -> str:
    """Name of the 8-neighbour arm with memory m."""
    plain = m == config.memory and protocol != "wide"
    return f"{protocol}-8nb" if plain else f"{protocol}-8nb-m{m}"


def verdict(results: list[Result], protocol: str, config: Config) -> Verdict:
    """The rule of the specification (`CLAIM.rule`), with 2 points instead of 5 on blocks."""
    return of(parts(results, protocol, config), all)


def of(held: Parts | None, rule: Callable[[Parts], bool]) -> Verdict:
    """A verdict on parts of the rule."""
    return said(held is not None, held is not None and rule(held))


def said(known: bool, true: bool) -> Verdict:
    """Of what was measured or not, and is so or not."""
    if not known:
        return "inconclusive"
    return "reproduced" if true else "not reproduced"


def findings(results: list[Result], config: Config) -> list[Finding]:
    """The disjoint protocol, the parts of the rule, memory, the CNN and influence."""

    def oa(arm: str) -> str:
        return f"{mean(results, arm, 'oa'):.1f}"

    def beside(protocol: str) -> str:
        names = ("8nb", "4nb", "mlp", "svm", "lda", "cnn")
        return "OA " + ", ".join(f"{name} {oa(f'{protocol}-{name}')}" for name in names)

    words = {
        "blocks": "Disjoint blocks, the same rule with 2 points: context helps where no training "
        "patch contains a test pixel",
        "swapped": "The same with the checkerboard's colours exchanged",
    }
    found = [
        Finding(f"{text} ({beside(protocol)}).", verdict(results, protocol, config))
        for protocol, text in words.items()
        if protocol in config.protocols
    ]
    if "random" not in config.protocols:
        return found
    held = parts(results, "random", config)
    both = f"{oa('random-8nb')} against"
    return [
        *found,
        Finding(
            "Random pixels, context alone: both neighbourhoods beat MLP and SVM by 5 points, and "
            f"accuracy rises with m ({beside('random')}).",
            of(held, lambda p: p.context and p.rise),
        ),
        Finding(
            "Random pixels, the diagonal alone: 8 neighbours are better than 4 in the mean "
            f"({both} {oa('random-4nb')} %).",
            of(held, lambda p: p.diagonal),
        ),
        Finding(
            "Random pixels: the DAG-RNN of 8 neighbours beats a small CNN "
            f"({both} {oa('random-cnn')} %), as it beats the 3-D CNN in the paper.",
            paired_verdict(results, "oa", "random-8nb", "random-cnn", "higher"),
        ),
        memory_finding(results, config),
        influence_finding(results, config),
    ]


def memory_finding(results: list[Result], config: Config) -> Finding:
    """An interior optimum of m, as the paper has one between 5 and 8."""
    lengths = sorted({*config.memories, config.memory})
    top = [mean(results, dag("random", m, config), "oa") for m in lengths]
    text = ", ".join(f"m = {m}: {value:.1f}" for m, value in zip(lengths, top, strict=True))
    seeds = {r.seed for r in results if r.arm == "random-8nb"}
    known = len(seeds) >= LEAST_SEEDS and len(top) >= 3 and not any(map(math.isnan, top))
    best = max(range(len(top)), key=lambda k: top[k])
    return Finding(
        f"Random pixels: the best memory length is neither the shortest nor the longest ({text}).",
        said(known, best not in (0, len(top) - 1)),
    )


def influence_finding(results: list[Result], config: Config) -> Finding:
    """Near pixels weigh more: asked of every DAG-RNN of the main memory length."""
    arms = {f"{protocol}-{near}nb" for protocol in config.protocols for near in (4, 8)}
    arms.add(dag("wide", config.memory, config))
    ratios = [r.metrics.get("influence_ratio", math.nan) for r in results if r.arm in arms]
    known = bool(ratios) and not any(map(math.isnan, ratios))
    return Finding(
        f"Influence decays with distance: in every DAG-RNN with m = {config.memory} a pixel at "
        "distance m - 1 moves the scores less than one at distance 1 (at most "
        f"{max(ratios, default=math.nan):.2f} times as much).",
        said(known, known and max(ratios) < 1),
    )


def remarks(results: list[Result], data: Data, config: Config) -> list[str]:
    """What a reader must know beside the verdicts."""

    def listed(arms: dict[int, str], metric: str) -> str:
        rows = {m: mean(results, arm, metric) for m, arm in sorted(arms.items())}
        return ", ".join(f"m = {m}: {v:.2f}" for m, v in rows.items() if not math.isnan(v))

    notes = []
    held = parts(results, "random", config) if "random" in config.protocols else None
    if held is not None and held.context and held.rise and not held.diagonal:
        notes.append("Context reproduced, 8- over 4-neighbour not.")
    for protocol in config.protocols:
        part = task(protocol, config.seeds[0], data, config)
        names = ", ".join(data.labels.name(code) for code in sorted(part.left_out))
        mine = [r.metrics for r in results if r.arm.startswith(f"{protocol}-")]
        leaks = [metrics["covered"] for metrics in mine if "covered" in metrics]
        notes.append(
            f"{protocol}: {len(part.train)} training and {len(part.test)} test pixels of "
            f"{len(part.classes)} classes; left out: {names or 'none'}; test pixels inside a "
            f"training patch: at most {max(leaks, default=math.nan):.0f} %."
        )
    arms = {m: dag("wide", m, config) for m in config.memories} | {1: "wide-mlp"}
    if "wide" in config.protocols:
        notes.append(
            f"Disjoint, all with the guard of the longest memory: OA with {listed(arms, 'oa')}."
        )
    rings = [r.items["influence"] for r in results if r.arm == "random-8nb" and r.items]
    if rings:
        near = np.mean([np.array(row) / row[0] for row in rings], axis=0)
        arms = {m: dag("random", m, config) for m in config.memories}
        notes += [
            "Influence of a pixel by its distance 0, 1, ... from the centre (random pixels, 8 "
            f"neighbours; centre = 1): {', '.join(f'{value:.3f}' for value in near)}.",
            "Influence at distance m - 1 over that at 1 (random pixels, 8 neighbours): "
            f"{listed(arms, 'influence_ratio')}.",
        ]
    if data.kind == "polsar":
        notes.append("A PolSAR scene: 9 channels, not hyperspectral.")
    return notes
