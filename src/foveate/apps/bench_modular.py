"""``foveate bench modular``: does skipped back-propagation save seconds, or FLOPs on paper only?

A plain vision transformer is trained for single steps on random pictures with a share of its
modules active (heads and groups of hidden units, evenly spread), the rest cut off as
:mod:`foveate.learning.modular` does it. What the clock sees, apart:

* the forward pass, with the loss: all modules work, but what is frozen keeps nothing for later;
* the backward pass;
* one measurement of all eigenvalues on `probe` pictures, divided by the number of steps between two
  of them. Training with all modules needs none, and pays none.

Their sum is the bill of a step, without the optimiser's part. Shares take turns, round after round,
and the figure of each is a low percentile of its rounds (CPU time of one thread, wall time of
several): compare the ratios of one run, never the milliseconds of two.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.learning.modular import MATController, ModulePartition, ModuleSpec, RandomSelection
from foveate.learning.modular_layers import Mode
from foveate.learning.tangent_kernel import module_lambda
from foveate.nn.vision_transformer import VisionTransformer

__all__ = ["BackwardRow", "time_backward"]

LOW = 10.0  # percentile of the rounds
HEADS = 8
DEPTH = 4
MEASURED = 3  # rounds in which eigenvalues are measured too: it is long, and so varies little


@dataclass(frozen=True)
class BackwardRow:
    """One share of active modules.

    Attributes
    ----------
    fraction
        Share of the modules that are active.
    modules
        Their number.
    width, threads
        Of a token; of the run.
    forward_ms, backward_ms
        Of one step.
    measuring_ms
        Of one measurement, over the steps between two.
    bill_ms
        Sum of the three.
    backward_ratio, bill_ratio, flops_ratio
        Over those of full training; the FLOPs with those of the measurements.
    """

    fraction: float
    modules: int
    width: int
    threads: int
    forward_ms: float
    backward_ms: float
    measuring_ms: float
    bill_ms: float
    backward_ratio: float
    bill_ratio: float
    flops_ratio: float


def time_backward(
    fractions: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    width: int = 256,
    rounds: int = 10,
    *,
    batch: int = 32,
    probe: int = 64,
    interval: int = 400,
    mode: Mode = "cut",
    threads: int = 1,
    out: Path | None = None,
    clock: Callable[[], float] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[BackwardRow]:
    """Time single steps; full training is always among them, and first.

    Parameters
    ----------
    fractions
        Shares of active modules, in (0, 1].
    width
        Of a token, a multiple of 8; below about 128 small matrices eat up what is saved.
    rounds
        Turns of every share.
    batch
        Pictures of 28 x 28 pixels in a step: 49 tokens each.
    probe, interval
        Pictures of a measurement, and steps between two: an epoch of 12,800 pictures by default.
    mode
        What frozen modules skip: ``cut`` or ``exact``.
    threads
        Of torch; the number it has is put back.
    out
        JSON file for the rows.
    clock
        Seconds from anywhere; None: CPU time for one thread, else wall time.

    Raises
    ------
    FoveateError
        A number makes no sense.
    """
    if not fractions or not all(0 < f <= 1 for f in fractions):
        raise FoveateError(f"bench modular takes shares in (0, 1], got {tuple(fractions)}")
    if min(rounds, batch, probe, interval, threads) < 1 or width < HEADS or width % HEADS:
        raise FoveateError(
            f"bench modular takes a width that is a multiple of {HEADS} and rounds, batch, probe, "
            f"interval and threads of at least 1, got {width=}, {rounds=}, {batch=}, {probe=}, "
            f"{interval=}, {threads=}"
        )
    tell = progress or (lambda what, done, total: None)
    clock = clock or (time.process_time if threads == 1 else time.perf_counter)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = VisionTransformer(width=width, depth=DEPTH, heads=HEADS, hidden=4 * width)
            pictures = torch.randn(max(batch, probe), 1, 28, 28)
        partition = ModulePartition.from_model(net, ModuleSpec(ffn_groups=HEADS))
        mat = MATController(net, partition, RandomSelection(0.0), pictures[:probe], mode=mode)
        x, y = pictures[:batch], torch.arange(batch) % 10
        shares = {1.0: list(partition)} | {f: spread(list(partition), f) for f in fractions}
        times: dict[float, list[tuple[float, float]]] = {f: [] for f in shares}
        measured = []
        for turn in range(-1, rounds):  # the first turn fills caches and does not count
            tell("modular", max(turn, 0), rounds)
            for fraction, active in shares.items():
                partition.apply(active, mode)
                net.zero_grad(set_to_none=True)
                started = clock()
                loss = F.cross_entropy(net(x), y)
                forward = clock()
                loss.backward()  # type: ignore[no-untyped-call]
                times[fraction].append((forward - started, clock() - forward))
            if turn < MEASURED:
                started = clock()
                module_lambda(net, pictures[:probe], partition)
                measured.append(clock() - started)
    finally:
        torch.set_num_threads(before)
    mat.policy = _Measured()
    price = mat.decide().estimation_flops
    low = {f: np.percentile(np.array(rows[1:]), LOW, axis=0) for f, rows in times.items()}
    measuring = float(np.percentile(measured[1:], LOW)) / interval

    def bill(fraction: float) -> tuple[float, float]:
        """Seconds and FLOPs of a step."""
        pays = fraction < 1
        flops = batch * mat.step_flops.step(shares[fraction], mode) + pays * price / interval
        return float(low[fraction].sum()) + pays * measuring, flops

    (full_s, full_flops), full_backward = bill(1.0), float(low[1.0][1])
    rows = []
    for fraction, active in shares.items():
        seconds, flops = bill(fraction)
        forward, backward = (float(value) for value in low[fraction])
        rows.append(
            BackwardRow(
                fraction,
                len(active),
                width,
                threads,
                round(1e3 * forward, 3),
                round(1e3 * backward, 3),
                round(1e3 * (seconds - forward - backward), 3),
                round(1e3 * seconds, 3),
                round(backward / full_backward, 4),
                round(seconds / full_s, 4),
                round(flops / full_flops, 4),
            )
        )
    if out is not None:
        with write_whole(out) as temporary:
            text = json.dumps([asdict(row) for row in rows], indent=1)
            temporary.write_text(text + "\n", "utf-8")
    return rows


class _Measured(RandomSelection):
    """All modules, measured nevertheless: what a measurement costs."""

    uses_lambda = True

    def __init__(self) -> None:
        super().__init__(0.0)


def spread(names: Sequence[str], fraction: float) -> list[str]:
    """A share of the names, evenly spread, at least one."""
    count = max(1, round(fraction * len(names)))
    return [names[i * len(names) // count] for i in range(count)]
