"""``foveate bench shrink``: a ResNet-8 trained here, made small, and what that costs and gains.

A residual network of 16, 32 and 64 channels, one block each, learns CIFAR-10 in a few minutes on a
CPU; ``foveate shrink`` then makes it 8, 4, 2 and 1 bits wide and measures every width beside
PyTorch and ONNX Runtime, in turns. The table of the command's docs page comes from here.

Accuracies are of the 10,000 test pictures. Training: SGD with momentum 0.9, one cycle up to a rate
of 0.2, weight decay 5e-4, batches of 128, shifts by up to 4 pixels and mirroring.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.apps.shrink import ShrinkSettings, shrink
from foveate.apps.torch_threads import torch_threads
from foveate.datasets.own_pictures import OwnPictures, read_own_pictures
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.nn.resnet import BasicBlock, ResNet

__all__ = ["ShrinkRow", "resnet8", "shrink_resnet8", "train_resnet8"]

Progress = Callable[[str, int, int], None]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training pictures, per channel, pixels being 0 to 1."""


@dataclass(frozen=True)
class ShrinkRow:
    """One contender.

    Attributes
    ----------
    name, what
        As on the page of ``foveate shrink``.
    accuracy
        Share of the test pictures that are named right, 0 to 1.
    points
        Accuracy less that of the float network, in percentage points.
    ms
        Milliseconds for a picture on one thread.
    speed
        ONNX Runtime int8's time over this one's, of the same run; None without that contender.
    kilobytes
        Of the file.
    """

    name: str
    what: str
    accuracy: float
    points: float
    ms: float
    speed: float | None
    kilobytes: float


def resnet8(classes: int = 10) -> ResNet:
    """Three blocks of 16, 32 and 64 channels."""
    return ResNet(BasicBlock, (1, 1, 1), (16, 32, 64), classes=classes, stem="cifar")


def train_resnet8(
    pictures: OwnPictures, epochs: int, seed: int, progress: Progress | None = None
) -> ResNet:
    """Train on ``pictures.train`` as the module's text says; it never sees the held-out ones."""
    tell = progress or (lambda what, done, total: None)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = resnet8(len(pictures.classes))
    x, y = torch.from_numpy(pictures.train), torch.from_numpy(pictures.train_labels)
    steps = math.ceil(len(x) / 128)
    optimizer = torch.optim.SGD(net.parameters(), 0.2, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * steps)
    net.train()
    for epoch in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(128):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(net(normalised(varied(x[some], generator))), y[some])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        tell(f"epoch {epoch + 1} of {epochs}", epoch + 1, epochs)
    return net.eval()


def normalised(x: Tensor) -> Tensor:
    """uint8 ``(N, 3, H, W)`` as float, by `MEAN` and `STD`."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return (x.float() / 255 - mean[:, None, None]) / std[:, None, None]


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 4 pixels either way, mirror every other picture."""
    count, _, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    row, column = torch.randint(0, 9, (2, count), generator=generator)
    rows = row[:, None] + torch.arange(height)
    columns = column[:, None] + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    every = torch.arange(count)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None]]
    return moved.permute(0, 3, 1, 2)


def shrink_resnet8(
    data: Path,
    work: Path,
    *,
    epochs: int = 16,
    shrink_epochs: int = 4,
    bits: str = "8,4,2,1",
    rounds: int = 40,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[ShrinkRow]:
    """Train, shrink, and give a row for each contender.

    Parameters
    ----------
    data
        Labelled pictures as ``foveate shrink`` reads them; the published table is of CIFAR-10.
    work
        Folder for the trained network and the result of ``foveate shrink``, which are reused.
    epochs, shrink_epochs
        Passes of the training; of every width.
    rounds
        Turns of every contender when times are taken.
    out
        JSON file for the rows.

    Raises
    ------
    FoveateError
        The pictures cannot be read, or a number makes no sense.
    """
    if min(epochs, shrink_epochs, rounds, threads) < 1:
        raise FoveateError(
            "epochs, rounds and threads of bench shrink are at least 1, got "
            f"{epochs}, {shrink_epochs}, {rounds} and {threads}"
        )
    tell = progress or (lambda what, done, total: None)
    pictures = read_own_pictures(data)
    if pictures.shape[0] != 3:
        raise FoveateError(
            f"bench shrink is about colour pictures, and those of {data} have "
            f"{pictures.shape[0]} channel(s); give CIFAR-10"
        )
    net = resnet8(len(pictures.classes))
    kept = work / f"resnet8-{len(pictures.train)}-{epochs}-{seed}.safetensors"
    with torch_threads(threads):
        if not _load(net, kept):
            net = train_resnet8(pictures, epochs, seed, tell)
            _save(net, kept)
        settings = ShrinkSettings(
            bits=bits, epochs=shrink_epochs, augment="mirror", mean=MEAN, std=STD, seed=seed,
            threads=threads, rounds=rounds,
        )  # fmt: skip
        result = shrink(net.eval(), work / "shrink", data=pictures, settings=settings,
                        progress=tell)  # fmt: skip
    rows = _rows(result.rows)
    if out is not None:
        with write_whole(out) as temporary:
            text = json.dumps([asdict(row) for row in rows], indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return rows


def _rows(found: list[dict[str, object]]) -> list[ShrinkRow]:
    times = {str(row["name"]): float(row["ms"]["1"]) for row in found}  # type: ignore[index]
    peer = times.get("ort-int8")
    return [
        ShrinkRow(
            name=str(row["name"]),
            what=str(row["what"]),
            accuracy=float(row["accuracy"]),  # type: ignore[arg-type]
            points=float(row["points"]),  # type: ignore[arg-type]
            ms=times[str(row["name"])],
            speed=peer / times[str(row["name"])] if peer else None,
            kilobytes=round(float(row["bytes"]) / 1024, 1),  # type: ignore[arg-type]
        )
        for row in found
    ]


def _save(net: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        save_file(net.state_dict(), temporary)


def _load(net: nn.Module, path: Path) -> bool:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        net.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError):
        return False
    return True
