"""Taking turns: who is timed, when, and by which clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from foveate.engine.turns import take_turns
from foveate.errors import FoveateError


class Clock:
    """A clock that only moves when a contender works; in a slow minute everything takes longer."""

    def __init__(self, slow: Callable[[int], float] = lambda call: 1.0) -> None:
        self.now, self.calls, self.slow = 0.0, 0, slow
        self.order: list[str] = []

    def contender(self, name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.order.append(name)
            self.now += seconds * self.slow(self.calls)
            self.calls += 1

        return work

    def __call__(self) -> float:
        return self.now


def test_the_figure_is_the_time_of_one_call() -> None:
    clock = Clock()
    contenders = {"a": clock.contender("a", 0.002), "b": clock.contender("b", 0.5)}
    found = take_turns(contenders, rounds=5, clock=clock)
    assert found == pytest.approx({"a": 0.002, "b": 0.5})


def test_contenders_alternate_and_short_ones_are_repeated() -> None:
    clock = Clock()
    contenders = {"a": clock.contender("a", 0.01), "b": clock.contender("b", 0.03)}
    take_turns(contenders, rounds=3, turn_s=0.03, clock=clock)
    # two calls each to begin with, then in every round one that is not timed and 3 or 1 that are
    assert "".join(clock.order) == "aabb" + 3 * ("a" + "aaa" + "b" + "b")


def test_a_slow_minute_touches_nobodys_figure() -> None:
    clock = Clock(lambda call: 50.0 if 40 < call < 80 else 1.0)
    contenders = {"a": clock.contender("a", 0.004), "b": clock.contender("b", 0.008)}
    found = take_turns(contenders, rounds=60, clock=clock)
    assert found == pytest.approx({"a": 0.004, "b": 0.008})


@pytest.mark.parametrize(
    ("contenders", "rounds", "threads"), [({}, 1, 1), ({"a": 1}, 0, 1), ({"a": 1}, 1, 0)]
)
def test_nothing_to_time(contenders, rounds, threads) -> None:
    with pytest.raises(FoveateError, match="at least one"):
        take_turns(contenders, rounds, threads)
