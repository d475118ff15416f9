"""A labelling session: what was asked and told so far, and what to ask next.

The events in the session's file are the truth; everything here is a fold over them, so that a
session that was killed goes on exactly where it stood. In turn:

1. `ask` draws items and writes them down together with the strategy's state after the draw;
2. `tell` writes a label down, and computes nothing;
3. `learn` rewards the strategy for labels it has not seen, and writes its state down.

Killed between 2 and 3, the label is there and the next start does 3; killed before 1 is written,
the same items are drawn again, because the strategy's random numbers are part of its state.

Until every class has a label (or a fair number of items was asked in vain) there is nothing to fit:
the first items are the most typical ones of the largest groups (k-means) of the pool. After that
DEAL chooses (`foveate.learning.active`). Of large pools it sees a fresh random sample for every
draw: with m candidates of K items drawn uniformly, an item's true probability is p m / K, and the
importance 1 / (K p m / K) = 1 / (m p) is what DEAL computes from the sample alone.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from foveate.apps.label_store import Event, SessionChangedError, SessionFile
from foveate.apps.label_strategy import StrategySettings, cross_validated, first_items
from foveate.errors import FoveateError
from foveate.learning.active import DEAL, Query

__all__ = ["Asked", "LabelSession", "Told"]

UNDO = 20  # answers that can be taken back
_KEPT = 4 * UNDO  # events that keep the strategy's state; an answer makes three

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """An item that a person is asked about, and why this one.

    Attributes
    ----------
    number
        Counted from 1.
    phase
        ``start``: typical of a large group of items; ``chance``: drawn uniformly, because classes
        are still missing; ``deal``: drawn by the experts.
    expert, probability
        Who contributed most, and p when it was drawn; of ``deal`` only.
    candidates
        Items it was drawn from.
    weights, advice, ranks
        For every expert: how much it was trusted, what probability it gave this item, and the
        item's place among the candidates in its eyes, 1 the most wanted.
    gamma
        Share of pure chance in the draw: p = (1 - gamma) sum of weights x advice + gamma / K.
    """

    id: str
    number: int
    phase: Literal["start", "chance", "deal"]
    expert: str = ""
    probability: float = 0.0
    candidates: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    advice: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    gamma: float = 0.0


@dataclass(frozen=True)
class Told:
    """How many labels were answers, came unasked, corrected older ones, or were known already."""

    answers: int = 0
    unasked: int = 0
    corrected: int = 0
    known: int = 0


class LabelSession:
    """One person (or file) and one pool.

    Parameters
    ----------
    file
        An existing session.
    ids, x
        The pool: N ids and ``(N, D)`` finite numbers.
    """

    def __init__(self, file: SessionFile, ids: Sequence[str], x: Array) -> None:
        self.file, self.ids, self.x = file, list(ids), x
        self.place = {name: row for row, name in enumerate(self.ids)}
        self.reload()

    @staticmethod
    def create(
        file: SessionFile,
        facts: Mapping[str, Any],
        ids: Sequence[str],
        x: Array,
        *,
        classes: Sequence[str],
        closed: bool,
        budget: int,
        settings: StrategySettings,
        given: Mapping[str, str],
        features: tuple[int, bytes] | None = None,
    ) -> LabelSession:
        """Begin: written whole or not at all.

        Parameters
        ----------
        facts
            What else is to be remembered of the pool.
        classes, closed
            Classes known now, and whether others are an error.
        given
            Labels that exist already.
        features
            Number of rows and the bytes of features to keep.
        """
        settings.check()
        wanted = min(len(ids), max(10, 3 * len(classes)))
        start = [ids[row] for row in first_items(x, wanted, settings.seed)]
        own = {"classes": list(classes), "closed": closed, "budget": budget, "start": start}
        at = _now()
        events = [
            Event("given", {"id": name, "label": label, "at": at, "by": "file"})
            for name, label in given.items()
        ]
        file.create({**facts, **own, "strategy": asdict(settings)}, events, features)
        return LabelSession(file, ids, x)

    # ------------------------------------------------------------------------------ the fold

    def reload(self) -> None:
        """Read everything anew from the file."""
        self.facts, self.events = self.file.read()
        self._deal: DEAL | None = None
        try:
            kept = self.facts["strategy"]
            self.settings = StrategySettings(**{**kept, "experts": tuple(kept["experts"])})
            self._fold()
            # All that is asked for later; a name that the pool lacks is a KeyError too.
            for name in (*self.facts["start"], *self.asked, *self.labels):
                self.place[name]
            _ = self.budget, self.classes, self.facts["closed"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FoveateError(
                f"the labelling session {self.file.path} is damaged ({error!r}); start a new one "
                "with --out"
            ) from error

    def _fold(self) -> None:
        self.labels: dict[str, str] = {}  # in order of labelling
        self.asked: dict[str, Asked] = {}  # every item that was ever asked about
        self.skipped: list[str] = []
        self.answered: list[str] = []  # asked and told, in order of the answers
        self.learned: dict[str, dict[str, Any]] = {}
        self.times: dict[str, str] = {}
        self._asked_at: dict[str, int] = {}
        for index, event in enumerate(self.events):
            content = event.content
            name = content.get("id", "")
            if event.kind == "asked":
                for item in content["items"]:
                    self.asked[item["id"]] = Asked(**item)
                    self._asked_at[item["id"]] = index
            elif event.kind == "skipped":
                self.skipped.append(name)
            elif event.kind == "learned":
                self.learned[name] = content
            else:
                self.labels[name] = content["label"]
                self.times[name] = content["at"]
                if event.kind == "told":
                    self.answered.append(name)
        gone = {*self.labels, *self.skipped}
        self.open = [item for name, item in self.asked.items() if name not in gone]

    @property
    def budget(self) -> int:
        """Answers that the person is willing to give."""
        return int(self.facts["budget"])

    @property
    def classes(self) -> list[str]:
        """Known classes: those named, in their order, then others in order of appearance."""
        return list(dict.fromkeys([*self.facts["classes"], *self.labels.values()]))

    @property
    def current(self) -> list[Asked]:
        """Items that wait for an answer, as far as the budget reaches."""
        return self.open[: max(0, self.budget - len(self.answered))]

    @property
    def left(self) -> list[int]:
        """Rows of items without a label that were neither skipped nor are being asked."""
        gone = {*self.labels, *self.skipped, *(item.id for item in self.open)}
        return [row for row, name in enumerate(self.ids) if name not in gone]

    @property
    def is_done(self) -> Literal["", "budget", "pool"]:
        """Why nothing more is asked; empty while something is."""
        if len(self.answered) >= self.budget:
            return "budget"
        return "" if self.open or self.left else "pool"

    @property
    def is_warm(self) -> bool:
        """Whether there are labels of enough classes to choose by."""
        seen = set(self.labels.values())
        if len(seen) < 2:
            return False
        wanted = set(self.facts["classes"])
        tried = sum(item.phase != "deal" for item in self.asked.values())
        if wanted:
            return wanted <= seen or tried >= max(10, 3 * len(wanted))
        return tried >= 5 or len(self.labels) >= 10

    # ------------------------------------------------------------------------------ the turn

    def ask(self, size: int = 1) -> list[Asked]:
        """Items that wait for a label: those that were asked already, and new ones up to `size`.

        Fewer when the budget or the pool ends; none when it has ended.
        """
        self.learn()
        room = self.budget - len(self.answered) - len(self.open)
        left = self.left
        wanted = min(size - len(self.open), room, len(left))
        if wanted > 0:
            if self.is_warm:
                self._draw(left, wanted)
            else:
                self._first(left, wanted)
        return self.current

    def _first(self, left: list[int], size: int) -> None:
        """Items to begin with, while classes are missing."""
        free = set(left)
        first = [row for row in map(self.place.__getitem__, self.facts["start"]) if row in free]
        chosen = [(self.ids[row], "start") for row in first[:size]]
        if len(chosen) < size:
            others = sorted(free - set(first))
            random = np.random.default_rng([self.settings.seed, 1, len(self.asked)])
            draw = random.permutation(len(others))[: size - len(chosen)]
            chosen += [(self.ids[others[i]], "chance") for i in draw]
        items = [
            {"id": name, "number": len(self.asked) + k, "phase": phase, "candidates": len(left)}
            for k, (name, phase) in enumerate(chosen, 1)
        ]
        self._add([Event("asked", {"items": items})])

    def _draw(self, left: list[int], size: int) -> None:
        """Items that DEAL chooses."""
        rows = self._candidates(left, size)
        x_labelled, y_labelled = self._labelled()
        deal = self._strategy()
        queries = deal.query_batch(self.x[rows], x_labelled, y_labelled, size)
        advice, names = queries[0].advice, list(deal.experts)
        ranks = rankdata(-advice, axis=1)
        items, places = [], []
        for k, query in enumerate(queries, 1):
            column = query.index
            item = Asked(
                self.ids[rows[column]],
                len(self.asked) + k,
                "deal",
                query.expert,
                query.probability,
                len(rows),
                dict(zip(names, query.weights.tolist(), strict=True)),
                dict(zip(names, advice[:, column].tolist(), strict=True)),
                dict(zip(names, ranks[:, column].tolist(), strict=True)),
                deal.bandit.gamma,
            )
            items.append(asdict(item))
            places.append(column)
        packed = zlib.compress(np.ascontiguousarray(advice, "<f8").tobytes(), 1)
        content = {"items": items, "places": places}
        self._add([Event("asked", content, _state(deal), packed)], deal)

    def _candidates(self, left: list[int], least: int) -> list[int]:
        most = max(self.settings.candidates, least)
        if len(left) <= most:
            return left
        random = np.random.default_rng([self.settings.seed, 2, len(self.asked)])
        return np.sort(random.choice(left, most, replace=False)).tolist()  # type: ignore[no-any-return]

    def tell(self, labels: Mapping[str, str], by: str) -> Told:
        """Write labels down; when this returns they are on the disk. Nothing is computed.

        Parameters
        ----------
        labels
            Of items that were asked about, or of any others of the pool; a label that differs from
            an older one corrects it.
        by
            Where they came from, in a word.

        Raises
        ------
        FoveateError
            An item that the pool does not have, or a class that is not one of the session's.
        """
        if unknown := [name for name in labels if name not in self.place]:
            raise FoveateError(f"the pool has no item {unknown[0]!r}; ids are as in the pool")
        for name, label in labels.items():
            if self.facts["closed"] and label not in self.facts["classes"]:
                raise FoveateError(
                    f"{name} is labelled {label!r}, which is none of the classes "
                    f"{', '.join(self.facts['classes'])}; mend it, or add the class with --classes"
                )
        for name, label in labels.items():
            if not label.strip() or label != label.strip() or not label.isprintable():
                raise FoveateError(f"{label!r} is no label for {name}; expected a word")
        waiting = {item.id for item in self.open}
        at, events, counts = _now(), [], dict.fromkeys(Told.__dataclass_fields__, 0)
        for name, label in labels.items():
            kind, count = (
                ("told", "answers")
                if name in waiting
                else ("given", "unasked")
                if name not in self.labels
                else ("corrected", "corrected")
            )
            if self.labels.get(name) == label:
                counts["known"] += 1
                continue
            counts[count] += 1
            events.append(Event(kind, {"id": name, "label": label, "at": at, "by": by}))
        if events:
            self._add(events)
        return Told(**counts)

    def skip(self, name: str) -> None:
        """Never ask about this item again."""
        if name not in {item.id for item in self.open}:
            raise FoveateError(f"{name} is not being asked about, so it cannot be skipped")
        self._add([Event("skipped", {"id": name, "at": _now()})])

    def undo(self) -> str:
        """Take the last answer, skip or correction back; its item, which is asked again.

        Raises
        ------
        FoveateError
            There is none, it is too long ago, or labels were read from a file since.
        """
        at = self._last_decision()
        if at is None:
            raise FoveateError("there is no answer to undo")
        name = str(self.events[at].content["id"])
        kept = self.events[:at]
        done = {e.content["id"] for e in kept if e.kind in ("learned", "skipped", "given")}
        # What is open or unlearned after the cut needs its advice, and the strategy its state.
        lost = any(
            event.advice is None and any(item["id"] not in done for item in event.content["items"])
            for event in kept
            if "places" in event.content
        )
        changed = [e for e in kept if "places" in e.content or e.content.get("reward") is not None]
        if lost or (changed and changed[-1].state is None):
            raise FoveateError(
                f"only the last {UNDO} answers can be undone; correct the label of {name} instead"
            )
        self._guarded(lambda: self.file.drop_from(at))
        del self.events[at:]
        self._deal = None
        self._fold()
        return name

    @property
    def can_undo(self) -> bool:
        """Whether the last thing that a person did was an answer, a skip or a correction."""
        return self._last_decision() is not None

    def _last_decision(self) -> int | None:
        """Index of the event that `undo` takes back."""
        for index in reversed(range(len(self.events))):
            if self.events[index].kind in ("told", "skipped", "corrected", "given"):
                return None if self.events[index].kind == "given" else index
        return None

    def learn(self) -> None:
        """Reward the strategy for answers that it has not seen, and write down what it learned."""
        waiting = [name for name in self.answered if name not in self.learned]
        for name in waiting:
            item = self.asked[name]
            x_labelled, y_labelled = self._labelled()
            content: dict[str, Any] = {"id": name, "reward": None}
            deal = None
            if item.phase == "deal" and len(set(y_labelled.tolist())) > 1:
                deal = self._strategy()
                content["reward"] = deal.feedback(
                    self._query(name),
                    self.x[self.place[name]],
                    self.labels[name],
                    x_labelled,
                    y_labelled,
                    self.x[self._candidates(self.left, 1)],
                )
                content["restarted"] = deal.history[-1]["restarted"]
            if name == waiting[-1] and (len(y_labelled) <= 60 or len(y_labelled) % 5 == 0):
                content["accuracy"] = cross_validated(x_labelled, y_labelled, self.settings.seed)
            content["labels"] = len(y_labelled)
            self._add([Event("learned", content, _state(deal) if deal else None)], deal)

    def _query(self, name: str) -> Query:
        """The query as it was drawn."""
        event, item = self.events[self._asked_at[name]], self.asked[name]
        experts = len(item.weights)
        raw = zlib.decompressobj().decompress(event.advice or b"", experts * item.candidates * 8)
        advice = np.frombuffer(raw, "<f8").reshape(experts, item.candidates).astype(np.float64)
        number = [entry["id"] for entry in event.content["items"]].index(name)
        weights = np.array(list(item.weights.values()))
        place = int(event.content["places"][number])
        return Query(place, item.probability, advice, weights, item.expert)

    def _strategy(self) -> DEAL:
        """The strategy as it was last written down; `_add` takes it back once it is again."""
        deal, self._deal = self._deal, None
        if deal is not None:
            return deal
        for event in reversed(self.events):
            if event.state is not None:
                return DEAL.from_state(event.state, self.settings.experts, None)
        return self.settings.strategy(self.budget)

    def _labelled(self) -> tuple[Array, npt.NDArray[np.str_]]:
        rows = [self.place[name] for name in self.labels]
        return self.x[rows], np.array(list(self.labels.values()), dtype=np.str_)

    def _add(self, events: list[Event], deal: DEAL | None = None) -> None:
        waiting = [item.id for item in self.open]
        waiting += [name for name in self.answered if name not in self.learned]
        needed = [self._asked_at[name] for name in waiting]
        needed += [i for i, event in enumerate(self.events) if event.state is not None][-1:]
        forget = min([*needed, len(self.events) + len(events) - _KEPT])
        self._guarded(lambda: self.file.add(events, forget if forget > 0 else None))
        self.events += events
        for i in range(max(0, forget)):
            if self.events[i].state is not None:
                self.events[i] = replace(self.events[i], state=None, advice=None)
        self._deal = deal or self._deal
        self._fold()

    # ------------------------------------------------------------------------------ settings

    def set_budget(self, budget: int) -> None:
        """Change how many answers the person is willing to give."""
        if not 1 <= budget <= len(self.ids):
            raise FoveateError(
                f"the budget is {budget}; expected 1 to {len(self.ids)}, the items of the pool"
            )
        self._set("budget", budget)

    def add_classes(self, names: Iterable[str], closed: bool | None = None) -> None:
        """Make further classes known."""
        known = list(dict.fromkeys([*self.facts["classes"], *names]))
        if known != self.facts["classes"]:
            self._set("classes", known)
        if closed is not None and closed != self.facts["closed"]:
            self._set("closed", closed)

    def _set(self, name: str, value: object) -> None:
        self._guarded(lambda: self.file.set_fact(name, value))
        self.facts[name] = value

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except SessionChangedError:
            self.reload()
            raise


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _state(deal: DEAL) -> dict[str, Any]:
    """The strategy's state; its history is in the events already."""
    return {**deal.state(), "history": []}
