"""``foveate bench optimizers``: the time of one step beside torch's Adam, in one run.

All contenders move the same parameters by the same gradients, so that memory is that of one network
and what differs is their own state. Layers are 512 x 512 weights and 512 biases, with a smaller one
at the end to make up the number. Gradients are normal with a standard deviation of 1e-3: the
threshold 5e-4 lets 62 % of the coordinates through, in no order that a processor could guess. Who
has his turn when, and which clock it is: :mod:`foveate.engine.turns`. Compare ratios of one run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.turns import take_turns
from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.learning.signadam import SignAdam, SignAdamPP, SignSGD, Signum

__all__ = ["time_steps"]

Row = dict[str, Any]

ADAM = "torch Adam, foreach"
WIDTH = 512
MOST = 1_000_000_000  # parameters; with gradients and all state, 44 bytes each

CONTENDERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    ADAM: lambda p: torch.optim.Adam(p, foreach=True),
    "torch Adam, one tensor after the other": lambda p: torch.optim.Adam(p, foreach=False),
    "SignAdamPP, foreach": lambda p: SignAdamPP(p, foreach=True),
    "SignAdamPP, one tensor after the other": lambda p: SignAdamPP(p, foreach=False),
    "SignAdamPP, adaptive, foreach": lambda p: SignAdamPP(p, adaptive=True, foreach=True),
    "SignAdam": SignAdam,
    "Signum": Signum,
    "SignSGD": SignSGD,
}


def layers(parameters: int) -> list[Tensor]:
    """Zeros in the shapes of a plain network with exactly this number of parameters."""
    shapes: list[tuple[int, ...]] = []
    whole, rest = divmod(parameters, WIDTH * WIDTH + WIDTH)
    for _ in range(whole):
        shapes += [(WIDTH, WIDTH), (WIDTH,)]
    shapes += [(rest,)] if rest else []
    return [torch.zeros(shape) for shape in shapes]


def time_steps(
    parameters: int = 10_000_000,
    rounds: int = 30,
    threads: int = 1,
    out: Path | None = None,
) -> list[Row]:
    """Time one step of every optimizer on the CPU, in float32.

    Parameters
    ----------
    parameters
        Number of weights, 1 to 1e9.
    rounds
        Turns of every contender; a low percentile counts.
    threads
        Of torch.
    out
        JSON file for the rows.

    Returns
    -------
    list of dict
        ``name``, ``ms`` (milliseconds of a step) and ``ratio`` (to the step of torch's Adam with
        ``foreach=True``; below 1 is faster).

    Raises
    ------
    FoveateError
        A number makes no sense.
    """
    if not (1 <= parameters <= MOST and 1 <= rounds <= 10_000 and 1 <= threads <= 1024):
        raise FoveateError(
            f"bench optimizers takes 1 to {MOST:,} parameters, 1 to 10,000 rounds and 1 or more "
            f"threads, got {parameters}, {rounds} and {threads}"
        )
    draw = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(zeros) for zeros in layers(parameters)]
    for p in weights:
        p.grad = 1e-3 * torch.randn(p.shape, generator=draw)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = take_turns(
            {name: make(weights).step for name, make in CONTENDERS.items()}, rounds, threads
        )
    finally:
        torch.set_num_threads(before)
    rows = [
        {
            "name": name,
            "ms": float(f"{1e3 * taken:.4g}"),
            "ratio": float(f"{taken / seconds[ADAM]:.3g}"),
        }
        for name, taken in seconds.items()
    ]
    if out is not None:
        with write_whole(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return rows
