"""Who is faster? Contenders that take turns, round after round, in one run.

Machines are shared and change their clock, so two figures taken one after the other differ for
reasons that have nothing to do with what was timed. Here every contender has its turn in every
round, so a slow minute meets all of them, and the figure of each is a low percentile of its
rounds: what it takes when nobody is in the way. One thread is measured in CPU seconds of the
process, which waiting for a core does not lengthen; several threads in wall seconds.

>>> seconds = take_turns({"add": lambda: 1 + 1, "sum": lambda: sum(range(1000))}, rounds=5)
>>> seconds["add"] < seconds["sum"]
True
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from foveate.errors import FoveateError

__all__ = ["take_turns"]

LOW = 10.0
"""Percentile of the rounds."""

SETTLE = 0.05
"""Seconds before a turn of several threads: pools spin for a while when their work is done, and the
next contender would have to share the cores with those of the one before."""


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    threads: int = 1,
    turn_s: float = 2e-2,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Seconds that one call of each contender takes.

    Parameters
    ----------
    contenders
        Calls without arguments, by name.
    rounds
        Turns of each.
    threads
        How many the contenders use: it chooses the clock.
    turn_s
        A call that is shorter is repeated within a turn until it takes about this long. Before
        that come a quarter as many calls, at least one, that are not timed, so that nobody pays for
        caches that the one before filled.
    clock
        Seconds from anywhere; None: CPU time for one thread, else wall time.

    Raises
    ------
    FoveateError
        Nobody to time, or fewer than one round.
    """
    if not contenders or rounds < 1 or threads < 1:
        raise FoveateError(
            "take_turns wants at least one contender, round and thread, got "
            f"{len(contenders)}, {rounds} and {threads}"
        )
    if clock is None:
        clock = time.process_time if threads == 1 else time.perf_counter
    repeats = {}
    for name, call in contenders.items():
        call()
        started = clock()
        call()
        repeats[name] = max(1, min(10_000, round(turn_s / max(clock() - started, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            if threads > 1:
                time.sleep(SETTLE)
            for _ in range(max(1, repeats[name] // 4)):
                call()
            started = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - started) / repeats[name])
    return {name: float(np.percentile(values, LOW)) for name, values in times.items()}
