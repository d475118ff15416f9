"""``foveate bench map``: pixels per second of the Pixel DAG-RNN over a scene, and of its peers.

One net with random weights labels one drawn block, in several ways that must give the same
scores:

``naive``
    the paper's words: patch by patch, row by row, pixel by pixel (a few patches stand for all);
``patches``
    batches of patches, anti-diagonals at once (:meth:`PixelDAGRNN.forward`);
``whole``
    the block as a whole (:func:`foveate.scenes.dag_rnn_map.dense_scores`).

Beside them two that compute something else, for scale: a small 3-D CNN on the same patches, and the
same CNN over the block as a whole (it has neither padding nor pooling, so its scores are those of
its patches too).

The ways take turns, round after round, and the figure of each is the median of its rounds; ratios
belong to one run and one machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foveate.apps.torch_threads import torch_threads
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.scenes.dag_rnn import PixelDAGRNN
from foveate.scenes.dag_rnn_map import dense_scores

__all__ = ["MapRow", "SmallCnn3d", "time_maps"]

BATCH = 256  # patches at once


@dataclass(frozen=True)
class MapRow:
    """One way over the block.

    Attributes
    ----------
    method
        ``naive``, ``patches``, ``whole``, ``cnn3d-patches``, ``cnn3d-whole``.
    pixels
        Labelled in a round.
    microseconds
        For one pixel, median of the rounds.
    pixels_per_second
        Its inverse.
    times_naive, times_patches
        How many times as fast as ``naive`` and ``patches``.
    difference
        Largest difference of a score from ``patches`` of the same net.
    neighbours, hidden, patch, channels, threads
        Of the run.
    """

    method: str
    pixels: int
    microseconds: float
    pixels_per_second: float
    times_naive: float
    times_patches: float
    difference: float
    neighbours: int
    hidden: int
    patch: int
    channels: int
    threads: int


class SmallCnn3d(nn.Module):
    """Three convolutions over bands, rows and columns, then the scores of the centre pixel.

    The first takes 7 bands and every third place, the second 3 bands and every second; the last
    takes the bands that are left and what is left of the patch. 8 and 16 channels, 32 at the end.

    Parameters
    ----------
    channels
        C, at least 13.
    num_classes
        K.
    patch_size
        n, odd, at least 5.
    """

    def __init__(self, channels: int, num_classes: int, patch_size: int) -> None:
        super().__init__()
        left = ((channels - 7) // 3 + 1 - 3) // 2 + 1
        if channels < 13 or patch_size < 5 or patch_size % 2 == 0:
            raise FoveateError(
                "the 3-D CNN takes at least 13 channels and odd patches of at least 5, got "
                f"{channels} and {patch_size}"
            )
        rest = patch_size - 4
        self.body = nn.Sequential(
            *(nn.Conv3d(1, 8, (7, 3, 3), (3, 1, 1)), nn.ReLU()),
            *(nn.Conv3d(8, 16, (3, 3, 3), (2, 1, 1)), nn.ReLU()),
            *(nn.Conv3d(16, 32, (left, rest, rest)), nn.ReLU()),
            nn.Conv3d(32, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, rows, columns) -> (B, K, rows - n + 1, columns - n + 1)."""
        scores: Tensor = self.body(x[:, None])[:, :, 0]
        return scores


@torch.no_grad()
def time_maps(
    side: int = 96,
    rounds: int = 5,
    *,
    channels: int = 30,
    classes: int = 16,
    hidden: int = 32,
    patch: int = 9,
    neighbours: int = 8,
    naive_pixels: int = 32,
    threads: int = 1,
    out: Path | None = None,
    clock: Callable[[], float] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[MapRow]:
    """Time the ways over one block of `side` x `side` labelled pixels.

    Parameters
    ----------
    side
        Rows and columns that get a label.
    rounds
        Turns of every way.
    channels, classes, hidden, patch, neighbours
        Of the DAG-RNN; the desk setting by default.
    naive_pixels
        Patches of a round of ``naive``, which is slow.
    threads
        Of torch; the number it has is put back.
    out
        JSON file for the rows.
    clock
        Seconds from anywhere; None: CPU time for one thread, else wall time.

    Returns
    -------
    list of MapRow
        In the order of the ways above.

    Raises
    ------
    FoveateError
        A number makes no sense.
    """
    if min(side, rounds, naive_pixels, threads) < 1:
        raise FoveateError(
            "bench map takes side, rounds, naive_pixels and threads of at least 1, got "
            f"{side}, {rounds}, {naive_pixels} and {threads}"
        )
    if side > 4096:
        raise FoveateError(f"bench map takes a side of at most 4096 pixels, got {side}")
    tell = progress or (lambda what, done, total: None)
    clock = clock or (time.process_time if threads == 1 else time.perf_counter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = PixelDAGRNN(channels, classes, hidden, patch, neighbours, fc_hidden=2 * hidden).eval()
        cnn = SmallCnn3d(channels, classes, patch).eval()
        block = torch.randn(side + patch - 1, side + patch - 1, channels)
    windows = block.unfold(0, patch, 1).unfold(1, patch, 1).flatten(0, 1)  # views, not copies
    picture = block.permute(2, 0, 1)[None].contiguous()
    few = np.linspace(0, side * side - 1, min(naive_pixels, side * side)).astype(np.int64).tolist()

    def in_batches(label: nn.Module) -> Tensor:
        starts = range(0, len(windows), BATCH)
        return torch.cat([label(windows[s : s + BATCH].contiguous()).flatten(1) for s in starts])

    ways: dict[str, Callable[[], Tensor]] = {
        "naive": lambda: torch.cat([net.forward_naive(windows[k][None]) for k in few]),
        "patches": lambda: in_batches(net),
        "whole": lambda: dense_scores(net, block).flatten(0, 1),
        "cnn3d-patches": lambda: in_batches(cnn),
        "cnn3d-whole": lambda: cnn(picture)[0].flatten(1).T,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, Tensor] = {}
    with torch_threads(threads):
        for turn in range(-1, rounds):  # the first turn fills caches and does not count
            tell("map", max(turn, 0), rounds)
            for way, label in ways.items():
                started = clock()
                scores[way] = label()
                times[way].append(clock() - started)
    tell("map", rounds, rounds)
    count = {way: len(few) if way == "naive" else side * side for way in ways}
    each = {way: float(np.median(row[1:])) / count[way] for way, row in times.items()}
    rows = []
    for way, seconds in each.items():
        peer = scores["cnn3d-patches" if way.startswith("cnn3d") else "patches"]
        peer = peer[few] if way == "naive" else peer
        rows.append(
            MapRow(
                way,
                count[way],
                round(1e6 * seconds, 3),
                round(1 / max(seconds, 1e-12), 1),
                round(each["naive"] / max(seconds, 1e-12), 3),
                round(each["patches"] / max(seconds, 1e-12), 3),
                float((scores[way] - peer).abs().max()),
                *(neighbours, hidden, patch, channels, threads),
            )
        )
    if out is not None:
        with write_whole(out) as temporary:
            text = json.dumps([asdict(row) for row in rows], indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return rows
