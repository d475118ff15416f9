"""`foveate label`: sessions that survive everything, and four ways to answer."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression

from foveate.apps import label as app
from foveate.apps import label_session, label_store
from foveate.apps.label import Labelling, label, open_session
from foveate.apps.label_answers import answer_from, answer_in_terminal
from foveate.apps.label_store import SessionChangedError, SessionFile
from foveate.apps.label_strategy import cross_validated, first_items
from foveate.errors import FoveateError
from foveate.learning.active import DEAL
from foveate.learning.pool_features import standardised

QUICK = ("DENS", "DFF", "RAND")  # experts that need no further library
WORDS = ("ant", "bee", "cat")


def points(count: int = 60, seed: int = 0, spread: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in the plane; whose class is which is the cloud."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    centres = np.array([[0.0, 0], [4, 0], [0, 4]])
    return centres[y] + rng.normal(0, spread, (count, 2)), y


class World:
    """A folder with one pool in four layouts, and the labels of all items."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.x, self.y = points()
        self.ids = [f"item-{k:02d}" for k in range(60)]
        self.truth = {name: WORDS[k] for name, k in zip(self.ids, self.y.tolist(), strict=True)}
        table = pl.DataFrame({"id": self.ids, "east": self.x[:, 0], "north": self.x[:, 1]})
        table.write_csv(folder / "pool.csv")
        table.write_parquet(folder / "pool.parquet")
        np.savez(folder / "pool.npz", x=self.x, ids=np.array(self.ids))
        self.labels(self.truth, "answers.csv")
        rng = np.random.default_rng(0)
        shades = [(200, 60, 60), (60, 200, 60), (60, 60, 200)]
        for name, k in zip(self.ids, self.y.tolist(), strict=True):
            noise = rng.normal(shades[k], 25, (12, 16, 3))
            (folder / "photos" / name[-1]).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.uint8(np.clip(noise, 0, 255)))
            picture.save(folder / "photos" / name[-1] / f"{name}.png")
        photos = {f"{name[-1]}/{name}.png": word for name, word in self.truth.items()}
        self.labels(photos, "photo-answers.csv")

    def labels(self, labels: dict[str, str], name: str) -> Path:
        frame = pl.DataFrame({"id": list(labels), "label": list(labels.values())})
        frame.write_csv(self.folder / name)
        return self.folder / name

    def open(self, out: Path, **options: Any) -> Labelling:
        given = {"budget": 12, "classes": WORDS, "experts": QUICK}
        return open_session(self.folder / "pool.csv", out, **{**given, **options})

    def again(self, out: Path) -> Labelling:
        return open_session(self.folder / "pool.csv", out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    """Whether the disk is waited for is tested by itself; a killed process does not need it."""
    if "syncs" not in request.node.name:
        monkeypatch.setattr(label_store, "SYNCHRONOUS", "OFF")


def rows_of(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def on_disk(path: Path) -> dict[str, str]:
    """Labels in the file, read by nothing of ours."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        events = db.execute("SELECT kind, content FROM event ORDER BY seq").fetchall()
    found = [json.loads(content) for kind, content in events if kind in ("told", "given")]
    return {content["id"]: content["label"] for content in found}


def trace(labelling: Labelling) -> list[Any]:
    """All that a session decided, without the time of day."""
    return [
        (event.kind, {k: v for k, v in event.content.items() if k != "at"})
        for event in labelling.session.events
    ]


# ------------------------------------------------------------------------------ the turn


def test_until_every_class_was_seen_typical_items_are_asked_then_deal_chooses(world, tmp_path):
    with world.open(tmp_path, budget=30) as labelling:
        session = labelling.session
        seen: list[str] = []
        while not session.is_warm:
            item = session.ask()[0]
            assert item.phase == "start"
            assert item.id in session.facts["start"]
            session.tell({item.id: world.truth[item.id]}, "test")
            seen.append(world.truth[item.id])
        # not one more question than were needed to see the three classes
        assert set(seen) == set(WORDS)
        assert set(seen[:-1]) != set(WORDS)
        answer_from(labelling, world.truth)
        asked = list(session.asked.values())
        assert [item.number for item in asked] == list(range(1, 31))
        assert {item.phase for item in asked[len(seen) :]} == {"deal"}
        assert len({item.id for item in asked}) == 30
        for item in asked[len(seen) :]:
            assert item.candidates == 60 - (item.number - 1)
            assert sum(item.weights.values()) == pytest.approx(1)
            mixed = sum(item.weights[e] * item.advice[e] for e in QUICK)
            wanted = (1 - item.gamma) * mixed + item.gamma / item.candidates
            assert item.probability == pytest.approx(wanted)
            assert item.expert == max(QUICK, key=lambda e: item.weights[e] * item.advice[e])
        assert session.is_done == "budget"
        assert session.ask() == []


def test_it_is_deal_that_chooses_and_learns(world, tmp_path):
    """The same queries and rewards as DEAL driven by hand on the standardised numbers."""
    pytest.importorskip("skactiveml", reason="the expert US needs scikit-activeml")
    with world.open(tmp_path, budget=20, experts=None) as labelling:
        answer_from(labelling, world.truth)
        session = labelling.session
    x = standardised(world.x, [1, 1]).astype(np.float32).astype(np.float64)
    start = [item for item in session.asked.values() if item.phase == "start"]
    order = [world.ids.index(item.id) for item in start]
    deal = DEAL(None, None, 20, gamma=0.1, restart=10, random_state=0)
    for item in list(session.asked.values())[len(start) :]:
        left = [k for k in range(60) if k not in order]
        words = np.array([world.truth[world.ids[k]] for k in order])
        query = deal.query(x[left], x[order], words)
        assert world.ids[left[query.index]] == item.id
        assert query.probability == pytest.approx(item.probability)
        order.append(left[query.index])
        words = np.array([world.truth[world.ids[k]] for k in order])
        rest = [k for k in left if k != order[-1]]
        reward = deal.feedback(query, x[order[-1]], words[-1], x[order], words, x[rest])
        assert session.learned[item.id]["reward"] == pytest.approx(reward)
    assert session.learned[world.ids[order[-1]]]["labels"] == 20


def test_a_rare_class_does_not_keep_the_experts_waiting_for_ever(world, tmp_path):
    with world.open(tmp_path, budget=30, classes=(*WORDS, "yeti")) as labelling:
        answer_from(labelling, world.truth)
        phases = [item.phase for item in labelling.session.asked.values()]
    assert phases == ["start"] * 12 + ["deal"] * 18


def test_with_one_class_only_it_goes_on_looking(world, tmp_path):
    with world.open(tmp_path, budget=16, classes=("ant", "bee")) as labelling:
        answer_from(labelling, dict.fromkeys(world.ids, "ant"))
        phases = [item.phase for item in labelling.session.asked.values()]
        assert phases == ["start"] * 10 + ["chance"] * 6
        # nothing could be fitted, so nothing is claimed
        assert labelling.snapshot()["curve"] == []


@pytest.mark.parametrize("reward", ["iwa", "iwa_gain", "cem"])
def test_the_whole_pool_can_be_labelled_even_when_all_items_are_alike(tmp_path, reward):
    np.savez(tmp_path / "alike.npz", x=np.ones((9, 3)))
    words = {str(k): WORDS[k % 2] for k in range(9)}
    with open_session(
        tmp_path / "alike.npz", tmp_path, classes=WORDS[:2], reward=reward, experts=QUICK
    ) as labelling:
        answer_from(labelling, words)
        assert labelling.session.labels == {n: words[n] for n in labelling.session.labels}
        assert len(labelling.session.labels) == labelling.session.budget == 9
        rewards = [labelling.session.learned[n]["reward"] for n in labelling.session.answered]
        assert all(r is None or 0 <= r <= 1 for r in rewards)
        assert sum(r is not None for r in rewards) >= 3
        labelling.session.set_budget(5)
        assert labelling.session.ask() == []


def test_without_a_budget_fifty_answers_or_the_whole_pool(world, tmp_path):
    with world.open(tmp_path / "a", budget=None) as labelling:
        assert labelling.session.budget == 50
    np.savez(tmp_path / "two.npz", x=np.eye(2))
    with open_session(tmp_path / "two.npz", tmp_path / "b", experts=QUICK) as labelling:
        assert labelling.session.budget == 2
        answer_from(labelling, {"0": "a", "1": "b"})
        assert labelling.session.is_done == "budget"
    with open_session(tmp_path / "two.npz", tmp_path / "c", experts=QUICK) as labelling:
        labelling.session.ask(2)
        for name in ("0", "1"):
            labelling.session.skip(name)
        assert labelling.session.is_done == "pool"
        assert labelling.session.ask() == []


def test_first_items_are_the_most_typical_of_each_cloud():
    x, y = points(90, seed=3, spread=0.3)
    first = first_items(x, 3, seed=0)
    assert set(y[first]) == {0, 1, 2}
    centres = np.array([x[y == k].mean(0) for k in range(3)])
    for row in first:
        cloud = np.flatnonzero(y == y[row])
        distances = np.linalg.norm(x[cloud] - centres[y[row]], axis=1)
        assert row == cloud[distances.argmin()]
    assert first_items(np.zeros((5, 2)), 4, seed=0) != []  # all alike


def test_large_pools_are_sampled_afresh_for_every_draw(world, tmp_path):
    with world.open(tmp_path, budget=20, candidates=15) as labelling:
        answer_from(labelling, world.truth)
        asked = [item for item in labelling.session.asked.values() if item.phase == "deal"]
        assert {item.candidates for item in asked} == {15}
        rows = rows_of(labelling.table())
    assert {row["candidates"] for row in rows if row["asked_by"] in QUICK} == {"15"}


# ------------------------------------------------------------------------------ nothing is lost


def test_the_file_syncs_every_transaction(world, tmp_path):
    with world.open(tmp_path) as labelling:
        db = labelling.session.file._db
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA: journal and folder too
        assert db.isolation_level is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["label.sqlite"]


def test_every_label_is_on_disk_before_the_strategy_computes_anything(world, tmp_path, monkeypatch):
    told: dict[str, str] = {}
    looked = []

    def spy(name: str) -> None:
        real = getattr(DEAL, name)

        def watched(self: DEAL, *arguments: Any) -> Any:
            assert on_disk(tmp_path / "label.sqlite") == told
            looked.append(name)
            return real(self, *arguments)

        monkeypatch.setattr(DEAL, name, watched)

    spy("query_batch")
    spy("feedback")
    with world.open(tmp_path) as labelling:
        while item := labelling.session.ask():
            told[item[0].id] = world.truth[item[0].id]
            labelling.session.tell({item[0].id: told[item[0].id]}, "test")
    assert looked.count("feedback") == looked.count("query_batch") > 3


def test_a_strategy_that_crashes_loses_no_label(world, tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("the strategy broke")

    with world.open(tmp_path / "whole") as labelling:
        answer_from(labelling, world.truth)
        whole = trace(labelling)
    for method in ("feedback", "query_batch"):
        out = tmp_path / method
        with monkeypatch.context() as patch:
            patch.setattr(DEAL, method, broken)
            with world.open(out) as labelling, pytest.raises(RuntimeError, match="broke"):
                answer_from(labelling, world.truth)
            answered = list(labelling.session.answered)
            assert on_disk(out / "label.sqlite") == {n: world.truth[n] for n in answered}
            assert len(answered) >= 3
        with world.again(out) as labelling:
            answer_from(labelling, world.truth)
            assert trace(labelling) == whole


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_killed_after_any_write_it_goes_on_exactly_where_it_stood(world, tmp_path, monkeypatch):
    """After every single write (which is before the next one): nothing lost, the same choices."""
    real = SessionFile.add
    count, end = 0, -1

    def cut(self: SessionFile, *arguments: Any) -> None:
        nonlocal count
        real(self, *arguments)
        count += 1
        if count == end:
            raise KilledError

    monkeypatch.setattr(SessionFile, "add", cut)
    with world.open(tmp_path / "whole", budget=8, experts=("DFF", "RAND")) as labelling:
        answer_from(labelling, world.truth)
        whole = trace(labelling)
    writes = count
    assert writes == 3 * 8  # asked, told, learned
    for at in range(1, writes + 1):
        count, end = 0, at
        first = world.open(tmp_path / str(at), budget=8, experts=("DFF", "RAND"))
        with pytest.raises(KilledError):
            answer_from(first, world.truth)
        first.session.file.close()
        end = -1
        with world.again(tmp_path / str(at)) as labelling:
            assert len(labelling.session.answered) == (at + 1) // 3  # the second of three writes
            answer_from(labelling, world.truth)
            assert trace(labelling) == whole


def test_a_beginning_that_was_cut_off_is_no_beginning(world, tmp_path, monkeypatch):
    real = SessionFile._insert

    def cut(self: SessionFile, event: Any) -> None:
        real(self, event)
        raise KilledError

    labels = world.labels({"item-00": "ant"}, "one.csv")
    with monkeypatch.context() as patch:
        patch.setattr(SessionFile, "_insert", cut)
        with pytest.raises(KilledError):
            world.open(tmp_path, labels=labels)
    with world.open(tmp_path, budget=7) as labelling:
        assert labelling.session.budget == 7
        assert labelling.session.labels == {}


OPERATION = st.sampled_from(
    ["right", "wrong", "right", "skip", "undo", "correct", "again", "batch"]
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATION, min_size=5, max_size=25), st.integers(0, 99))
def test_any_order_of_answers_against_a_simple_model(world, tmp_path_factory, operations, seed):
    out = tmp_path_factory.mktemp("session")
    labelling = world.open(out, budget=40, seed=seed, experts=("DFF", "RAND"))
    session = labelling.session
    labels: dict[str, str] = {}
    skipped: set[str] = set()
    done: list[tuple[str, str, str | None]] = []
    for operation in operations:
        items = session.ask(3 if operation == "batch" else 1)
        for item in items:
            assert item.id not in labels
            assert item.id not in skipped
        name = items[0].id
        if operation in ("right", "wrong", "batch"):
            word = world.truth[name] if operation != "wrong" else "bee"
            session.tell({name: word}, "test")
            labels[name] = word
            done.append(("told", name, None))
        elif operation == "skip":
            session.skip(name)
            skipped.add(name)
            done.append(("skip", name, None))
        elif operation == "correct" and labels:
            old = next(iter(labels))
            if labels[old] != "cat":
                done.append(("correct", old, labels[old]))
            labels[old] = "cat"
            session.tell({old: "cat"}, "test")
        elif operation == "undo":
            if not done:
                with pytest.raises(FoveateError, match="no answer to undo"):
                    session.undo()
                continue
            kind, name, word = done.pop()
            assert session.undo() == name
            if kind == "told":
                del labels[name]
            elif kind == "skip":
                skipped.remove(name)
            else:
                assert word is not None
                labels[name] = word
            if kind != "correct":
                assert name in {item.id for item in session.open}
        elif operation == "again":
            session.file.close()
            before = trace(labelling)
            labelling = world.again(out)
            session = labelling.session
            assert trace(labelling) == before
        assert dict(sorted(session.labels.items())) == dict(sorted(labels.items()))
        assert set(session.skipped) == skipped
    session.file.close()


def test_an_answer_taken_back_and_given_again_changes_nothing(world, tmp_path):
    with world.open(tmp_path / "a") as straight, world.open(tmp_path / "b") as wavering:
        while items := straight.session.ask():
            name = items[0].id
            straight.session.tell({name: world.truth[name]}, "test")
            assert wavering.session.ask()[0].id == name
            wavering.session.tell({name: "bee"}, "test")
            wavering.session.ask()
            assert wavering.session.undo() == name
            assert wavering.session.ask()[0].id == name
            wavering.session.tell({name: world.truth[name]}, "test")
        wavering.session.ask()
        assert trace(straight) == trace(wavering)


def test_long_sessions_stay_small_and_the_last_twenty_answers_can_be_undone(world, tmp_path):
    with world.open(tmp_path, budget=55) as labelling:
        session = labelling.session
        answer_from(labelling, world.truth)
        states = [event for event in session.events if event.state is not None]
        assert len(states) <= label_session._KEPT
        with world.again(tmp_path) as other:
            assert [e.state for e in other.session.events] == [e.state for e in session.events]
        latest = session.answered[: -label_session.UNDO - 1 : -1]
        assert [session.undo() for _ in range(label_session.UNDO)] == latest
        assert len(session.answered) == 35

        def undo_more() -> None:
            for _ in range(10):  # it keeps somewhat more than it promises
                session.undo()

        with pytest.raises(FoveateError, match="only the last 20 answers can be undone; correct"):
            undo_more()
        # and from there it goes on, to the end it had come to before
        answer_from(labelling, world.truth)
        assert len(session.answered) == 55
        assert (tmp_path / "label.sqlite").stat().st_size < 500_000


def test_labels_from_a_file_are_never_undone(world, tmp_path):
    with world.open(tmp_path) as labelling:
        session = labelling.session
        name = session.ask()[0].id
        session.tell({name: "ant"}, "test")
        other = next(n for n in world.ids if n not in session.asked)
        session.tell({other: "bee"}, "file")
        with pytest.raises(FoveateError, match="no answer to undo"):
            session.undo()
        assert session.labels == {name: "ant", other: "bee"}


def test_two_processes_notice_each_other(world, tmp_path):
    with world.open(tmp_path) as one, world.again(tmp_path) as two:
        name = one.session.ask()[0].id
        with pytest.raises(SessionChangedError, match="another process has written"):
            two.session.tell({name: "ant"}, "test")
        # it has read what the other wrote, and can go on from there
        two.session.tell({name: "ant"}, "test")
        with pytest.raises(SessionChangedError):
            one.session.tell({name: "bee"}, "test")
        assert one.session.labels == {name: "ant"}


def test_corrections_count_from_the_next_item_on(world, tmp_path):
    with world.open(tmp_path) as labelling:
        session = labelling.session
        wrong = session.ask()[0].id
        session.tell({wrong: next(w for w in WORDS if w != world.truth[wrong])}, "test")
        answer_from(labelling, world.truth)
        told = session.tell({wrong: world.truth[wrong]}, "test")
        assert told.corrected == 1
        assert session.tell({wrong: world.truth[wrong]}, "test").known == 1
        assert session.labels[wrong] == world.truth[wrong]
        assert next(iter(session.labels)) == wrong  # it keeps its place
        assert rows_of(labelling.table())[0]["label"] == world.truth[wrong]


def test_the_accuracy_is_that_of_classifiers_that_did_not_see_the_item():
    # one class per half-plane, and a single item of a third class
    x, y = points(40, seed=1, spread=2.0)
    words = np.array([WORDS[k] for k in y])
    words[y == 2] = "ant"
    words[0], x[0] = "yeti", (99, 99)
    found = cross_validated(x, words, seed=0)
    assert found is not None
    assert found[1] == 39  # the single one cannot be predicted without having been seen
    alone = 0
    for k in range(1, 40):
        rest = np.arange(40) != k
        model = LogisticRegression(max_iter=1000).fit(x[rest], words[rest])
        alone += int(model.predict(x[k : k + 1])[0] == words[k])
    assert abs(found[0] - alone) <= 3  # leaving one out, by hand
    shuffled = np.random.default_rng(0).permutation(np.repeat(["a", "b"], 20))
    chance = cross_validated(np.random.default_rng(1).normal(size=(40, 15)), shuffled, 0)
    assert chance is not None
    assert chance[0] < 29  # seen items would give 40 of 40
    assert cross_validated(x[:2], np.array(["a", "b"]), 0) is None
    assert cross_validated(x[:3], np.array(["a", "a", "b"]), 0) is None


# ------------------------------------------------------------------------------ sessions


def test_a_session_remembers_how_it_was_begun(world, tmp_path):
    options = {"id_column": "id", "columns": ("east",), "gamma": 0.2, "candidates": 30}
    with world.open(tmp_path, **options):
        pass
    with world.again(tmp_path) as labelling:
        assert labelling.session.x.shape == (60, 1)
        assert labelling.session.settings.gamma == 0.2
        assert labelling.session.settings.experts == QUICK
        assert labelling.session.budget == 12
    with world.open(tmp_path, **options, budget=20) as labelling:
        assert labelling.session.budget == 20
    for changed, sentence in (
        ({"gamma": 0.3}, "begun with gamma 0.2, not 0.3"),
        ({"columns": ("north",)}, r"begun with columns \['east'\], not \['north'\]"),
        ({"experts": ("DFF",)}, r"begun with experts"),
        ({"seed": 1}, "begun with seed 0, not 1"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            open_session(world.folder / "pool.csv", tmp_path, **changed)
    with world.open(tmp_path, classes=("dodo",)) as labelling:
        assert labelling.session.classes == [*WORDS, "dodo"]


def test_another_pool_or_other_features_are_noticed(world, tmp_path):
    pool = tmp_path / "pool.csv"
    pool.write_text((world.folder / "pool.csv").read_text())
    np.savez(tmp_path / "f.npz", x=world.x)
    for name, options in (("plain", {}), ("own", {"features": tmp_path / "f.npz"})):
        with open_session(pool, tmp_path / name, budget=4, experts=QUICK, **options) as labelling:
            answer_from(labelling, world.truth)
    np.savez(tmp_path / "f.npz", x=world.x + 1)
    with pytest.raises(FoveateError, match=r"f\.npz is not what the session"):
        open_session(pool, tmp_path / "own")
    lines = pool.read_text().splitlines()
    pool.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(FoveateError, match=r"60 items of pool.csv then, 59 of pool.csv now.*--exp"):
        open_session(pool, tmp_path / "plain")


def test_labels_that_exist_already_end_the_cold_start(world, tmp_path):
    given_ = {name: world.truth[name] for name in world.ids[:6]}
    table = world.labels(given_, "given.csv")
    with world.open(tmp_path / "a", labels=table) as labelling:
        assert labelling.session.is_warm
        item = labelling.session.ask()[0]
        assert item.phase == "deal"
        assert item.id not in given_
        answer_from(labelling, world.truth)
        assert len(labelling.session.labels) == 18  # the budget is for answers
        rows = rows_of(labelling.table())
        assert [row["asked_by"] for row in rows[:6]] == ["given"] * 6
    bad = world.labels({"item-00": "dodo"}, "bad.csv")
    with pytest.raises(FoveateError, match="item-00 is 'dodo', which is none of the --classes"):
        world.open(tmp_path / "b", labels=bad)
    assert not (tmp_path / "b").exists()


def test_classes_may_turn_up_on_the_way(world, tmp_path):
    with world.open(tmp_path, classes=()) as labelling:
        session = labelling.session
        name = session.ask()[0].id
        session.tell({name: "dodo"}, "test")
        assert session.classes == ["dodo"]
    with world.open(tmp_path / "closed") as labelling:
        name = labelling.session.ask()[0].id
        for word, sentence in (("dodo", "none of the classes ant, bee, cat"), (" ", "is no label")):
            labelling.session.facts["closed"] = word == "dodo"
            with pytest.raises(FoveateError, match=sentence):
                labelling.session.tell({name: word}, "test")
        assert labelling.session.labels == {}


def test_features_of_pictures_are_made_once(world, tmp_path, monkeypatch):
    photos = world.folder / "photos"
    with open_session(photos, tmp_path, experts=QUICK, budget=15, classes=WORDS) as labelling:
        numbers = labelling.session.x
        assert numbers.var(0).mean() == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(app, "_described", lambda *_: pytest.fail("pictures were looked at again"))
    with open_session(photos, tmp_path) as labelling:
        assert np.array_equal(labelling.session.x, numbers)
        assert labelling.pool.path(0) == photos / "0" / "item-00.png"


def test_a_picture_that_ends_early_is_named_before_anybody_is_asked(world, tmp_path):
    for k in range(3):
        Image.effect_noise((64, 64), 80).save(tmp_path / f"{k}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FoveateError, match=r"1 of the 3 pictures of .* cannot be read: 1.png"):
        open_session(tmp_path, tmp_path / "out", experts=QUICK)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 61}, r"--budget is 61 and pool.csv has 60 items"),
        ({"budget": 0}, r"--budget is 0"),
        ({"classes": ("a", " ")}, r"--classes has ' '"),
        ({"experts": ("US", "ORACLE")}, r"no expert 'ORACLE'; --experts are some of US, DENS"),
        ({"experts": ("RAND", "RAND")}, "an expert twice"),
        ({"gamma": 1.5}, r"--gamma is 1.5; expected 1e-06 to 1"),
        ({"reward": "money"}, r"--reward is 'money'"),
        ({"speed": 3}, "unknown option for label: speed; there are: candidates, experts"),
        ({"id_column": "key"}, "no column 'key'"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(world, tmp_path, options, sentence):
    with pytest.raises(FoveateError, match=sentence):
        world.open(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_session(world, tmp_path):
    (tmp_path / "label.sqlite").write_bytes(b"something else entirely, and long enough" * 20)
    with pytest.raises(FoveateError, match=r"cannot use the labelling session .* not a database"):
        world.open(tmp_path)
    (tmp_path / "label.sqlite").unlink()
    with sqlite3.connect(tmp_path / "label.sqlite") as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(FoveateError, match="is no labelling session"):
        world.open(tmp_path)
    (tmp_path / "label.sqlite").unlink()
    with world.open(tmp_path) as labelling:
        labelling.session.file._db.execute("UPDATE fact SET value = '{' WHERE name = 'classes'")
    with pytest.raises(FoveateError, match=r"session .* is damaged"):
        world.again(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM fact WHERE name = 'budget'",
        "DELETE FROM fact WHERE name = 'options'",
        "DELETE FROM fact WHERE name = 'features_digest'",
        "UPDATE fact SET value = '3' WHERE name = 'strategy'",
        "UPDATE fact SET value = '[\"nobody\"]' WHERE name = 'start'",
        "UPDATE event SET content = '7'",
        'UPDATE event SET content = \'{"items": [{"id": 1}]}\'',
        "UPDATE event SET kind = 'told'",
    ],
)
def test_a_session_with_nonsense_in_it_is_one_sentence(world, tmp_path, damage):
    with world.open(tmp_path) as labelling:
        labelling.session.ask()
        labelling.session.file._db.execute(damage)
    with pytest.raises(FoveateError, match=r"session .* is damaged"):
        world.again(tmp_path)


def test_without_the_library_of_an_expert_the_sentence_says_what_to_do(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FoveateError, match=r"US needs scikit-activeml: pip install 'foveate\[act"):
        world.open(tmp_path, experts=("DENS", "US"))
    with world.open(tmp_path) as labelling:
        assert labelling.session.ask()


# ------------------------------------------------------------------------------ ways to answer


def test_a_table_answers_and_items_that_it_lacks_are_skipped(world, tmp_path):
    half = {name: word for name, word in world.truth.items() if int(name[-2:]) % 2}
    hints: list[str] = []
    shown = label(
        world.folder / "pool.csv", tmp_path, answers=world.labels(half, "half.csv"),
        budget=12, experts=QUICK, say=lambda text: None, hint=hints.append,
    )  # fmt: skip
    assert shown["answered"] == 12
    assert shown["skipped"] > 0
    assert any(f"no label for {shown['skipped']} of the items" in hint for hint in hints)
    exported = rows_of((tmp_path / "labels.csv").read_text())
    assert {row["id"]: row["label"] for row in exported}.items() <= half.items()
    strange = world.labels({"nobody": "ant"}, "strange.csv")
    with pytest.raises(FoveateError, match=r"none of the items of pool.csv; ids .* item-00"):
        label(world.folder / "pool.csv", tmp_path / "b", answers=strange, experts=QUICK)


class Typist:
    """Somebody at a keyboard who types what is planned, and otherwise the truth."""

    def __init__(self, world: World, planned: dict[int, str]) -> None:
        self.world, self.planned, self.turn, self.screen = world, planned, 0, [""]

    def read(self, prompt: str) -> str:
        self.turn += 1
        name = re.findall(r"item-\d\d", "\n".join(self.screen))[-1]
        word = self.planned.get(self.turn, str(1 + WORDS.index(self.world.truth[name])))
        if word == "EOF":
            raise EOFError
        return word


def test_the_terminal(world, tmp_path):
    typist = Typist(world, {1: "?", 2: "9", 3: "s", 4: "u", 5: "cat", 6: "u", 9: "u", 20: "q"})
    with world.open(tmp_path, budget=40) as labelling:
        answer_in_terminal(labelling, typist.read, typist.screen.append)
        session = labelling.session
        screen = "\n".join(typist.screen)
        assert typist.turn == 20
        assert "[1 of 40] item-" in screen
        assert "east" in screen
        assert "1 ant  2 bee  3 cat   |  s skip  u undo  q stop" in screen
        assert "a class by number or name" in screen
        assert "there are classes 1 to 3" in screen
        assert all(session.labels[name] == world.truth[name] for name in session.labels)
        # 20 lines: two were nothing, three undid one line each, one stopped
        assert len(session.answered) == 20 - 2 - 3 * 2 - 1
        assert "asked for this one" in screen
        leaving = Typist(world, {1: "+ yeti", 2: "EOF"})
        answer_in_terminal(labelling, leaving.read, leaving.screen.append)
        assert leaving.turn == 2
        assert session.classes == [*WORDS, "yeti"]
        assert list(session.labels.values()).count("yeti") == 1


def test_a_batch_is_asked_again_until_it_is_told(world, tmp_path):
    pool, out = world.folder / "pool.csv", tmp_path / "s"
    printed: list[str] = []

    def run(**options: Any) -> dict[str, Any]:
        printed.clear()
        quiet = {"say": printed.append, "hint": lambda text: None}
        return label(pool, out, experts=QUICK, budget=11, **quiet, **options)

    run(ask=4)
    first = [row["id"] for row in rows_of(printed[0])]
    assert printed[0].splitlines()[0] == "id,label"
    assert len(first) == 4
    run(ask=4)
    assert [row["id"] for row in rows_of(printed[0])] == first
    # two of four come back, and one that was never asked
    other = next(name for name in world.ids if name not in first)
    answers = {name: world.truth[name] for name in (*first[:2], other)}
    with open(tmp_path / "back.csv", "w") as back:
        back.write("id,label,remark\n" + f"{first[2]},,not sure\n")
        back.writelines(f"{name},{word},\n" for name, word in answers.items())
    shown = run(tell=tmp_path / "back.csv", ask=4)
    second = [row["id"] for row in rows_of(printed[0])]
    assert second[:2] == first[2:]
    assert len(set(second) - set(first)) == 2
    assert (shown["answered"], shown["labels"]) == (2, 3)
    while names := [row["id"] for row in rows_of(printed[0])]:
        told = world.labels({name: world.truth[name] for name in names}, "told.csv")
        shown = run(tell=told, ask=4)
    assert shown["answered"] == 11
    assert shown["done"] == "budget"
    run(export=tmp_path / "all.csv")
    exported = rows_of((tmp_path / "all.csv").read_text())
    assert {row["id"]: row["label"] for row in exported} == {
        row["id"]: world.truth[row["id"]] for row in exported
    }
    assert [row["asked_by"] for row in exported].count("given") == 1
    by_experts = [row for row in exported if row["asked_by"] in QUICK]
    assert len(by_experts) >= 4
    for row in by_experts:
        assert 0 < float(row["probability"]) <= 1
        assert int(row["candidates"]) > 40
    with pytest.raises(FoveateError, match=r"--ask is 61 and pool.csv has 60 items"):
        run(ask=61)
    with pytest.raises(FoveateError, match=r"labels for x, which pool\.csv does not hold"):
        run(tell=world.labels({"x": "ant"}, "x.csv"))


def test_ways_that_exclude_each_other(world, tmp_path, monkeypatch):
    pool = world.folder / "pool.csv"
    with pytest.raises(FoveateError, match="are different ways to label; give one of them"):
        label(pool, tmp_path, terminal=True, ask=3)
    with pytest.raises(FoveateError, match=r"there is no session at .* to export from"):
        label(pool, tmp_path / "none", export=tmp_path / "l.csv")
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[serve\]', or .* --terminal"):
        label(pool, tmp_path / "none")


# ------------------------------------------------------------------------------ the shell


def shell(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foveate", "label", *words],
        capture_output=True, text=True, timeout=120, check=False, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pool", "answers"),
    [("photos", "photo-answers.csv"), ("pool.parquet", "answers.csv"), ("pool.npz", "answers.csv")],
)
def test_from_a_bare_shell(world, tmp_path, pool, answers):
    words = f"{pool} --answers {answers} --budget 9 --experts DENS,DFF,RAND --out {tmp_path}"
    done = shell(world.folder, *words.split())
    assert done.returncode == 0, done.stderr
    assert "9 of 9 answers; the budget is used up" in done.stdout
    rows = rows_of((tmp_path / "labels.csv").read_text())
    truth = {row["id"]: row["label"] for row in rows_of((world.folder / answers).read_text())}
    assert len(rows) == 9
    assert all(truth[row["id"]] == row["label"] for row in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["label.sqlite", "labels.csv"]


def questions(process: subprocess.Popen[str]) -> Iterator[str]:
    """Ids as a real terminal session asks about them."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.match(r"\[\d+ of \d+\] (\S+)", line):
            yield match[1]


def test_kill_9_in_the_middle_loses_nothing_and_asks_nothing_twice(world, tmp_path):
    """A CSV from a bare shell; what goes on chooses what an uninterrupted session does."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "foveate", "label", "pool.csv", "--terminal", "--budget", "14",
             "--classes", "ant,bee,cat", "--experts", "DENS,DFF,RAND",
             "--out", str(tmp_path / "killed")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=world.folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def answer(process: subprocess.Popen[str], name: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{world.truth[name]}\n")
        process.stdin.flush()

    process, order = start(), []
    for name in questions(process):
        order.append(name)
        if len(order) == 9:  # asked about, and not answered
            os.kill(process.pid, signal.SIGKILL)
            break
        answer(process, name)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    path = tmp_path / "killed" / "label.sqlite"
    assert on_disk(path) == {name: world.truth[name] for name in order[:8]}
    process = start()
    again = []
    for name in questions(process):
        again.append(name)
        answer(process, name)
    rest, _ = process.communicate()
    assert process.returncode == 0
    assert again[0] == order[8]
    whole = order[:8] + again
    assert len(set(whole)) == len(whole) == 14
    with world.open(tmp_path / "whole", budget=14) as labelling:
        answer_from(labelling, world.truth)
        assert labelling.session.answered == whole
        straight = [kind for kind, _ in trace(labelling)]
    with world.again(tmp_path / "killed") as labelling:
        assert [kind for kind, _ in trace(labelling)] == straight
    # a mistake is one sentence and exit code 2
    done = shell(world.folder, "pool.csv", "--seed", "3", "--out", str(tmp_path / "killed"))
    assert done.returncode == 2
    assert "foveate: this session was begun with seed 0, not 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_store_says_when_the_disk_refuses(world, tmp_path, monkeypatch):
    with world.open(tmp_path) as labelling:
        name = labelling.session.ask()[0].id

        def full(self: SessionFile, event: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(label_store.SessionFile, "_insert", full)
            with pytest.raises(FoveateError, match="disk is full; labels that were saved"):
                labelling.session.tell({name: "ant"}, "test")
        assert labelling.session.labels == {}
        labelling.session.tell({name: "ant"}, "test")
    assert on_disk(tmp_path / "label.sqlite") == {name: "ant"}
