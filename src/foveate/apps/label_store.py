"""The one file of a labelling session: a SQLite database that survives being killed.

What happened is a list of events, in order: an item was ``asked``, a person ``told`` its label (or
``skipped`` it, ``corrected`` an older label, or a file had ``given`` one), the strategy ``learned``
from it. Every event is its own transaction with the rollback journal and ``synchronous=EXTRA``:
when `SessionFile.add` returns, the event is on the disk, and a process that is killed, or a machine
that loses power, leaves the file as it was after the last event that returned.

A counter, raised by every transaction, tells a process that another one has written: it then takes
nothing for granted and reads anew.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError

__all__ = ["Event", "SessionChangedError", "SessionFile"]

FORMAT = 1
SYNCHRONOUS = "EXTRA"  # FULL, and the folder after the journal is gone
_MARK = 0x666F7665  # SQLite's application_id: "fove"
_TABLES = (
    "CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE event (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, content TEXT NOT NULL,"
    " state TEXT, advice BLOB)",
    "CREATE TABLE features (rows INTEGER NOT NULL, numbers BLOB NOT NULL)",
)


class SessionChangedError(FoveateError):
    """Another process wrote to the session since it was read."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes
    ----------
    kind
        ``asked``, ``told``, ``skipped``, ``corrected``, ``given`` or ``learned``.
    content
        What about it, as JSON.
    state
        State of the strategy after it, where the event changed it and is recent.
    advice
        Of a recent ``asked``: what the experts advised, in the bytes of `LabelSession`.
    """

    kind: str
    content: dict[str, Any]
    state: dict[str, Any] | None = None
    advice: bytes | None = None


class SessionFile:
    """The database; all methods raise FoveateError where it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.revision = -1
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
            self._db.execute("PRAGMA trusted_schema=OFF")
            mark, version, tables = (
                self._db.execute(query).fetchone()[0]
                for query in (
                    "PRAGMA application_id",
                    "PRAGMA user_version",
                    "SELECT count(*) FROM sqlite_master",
                )
            )
        self.is_new = (mark, version, tables) == (0, 0, 0)
        if not self.is_new and (mark, version) != (_MARK, FORMAT):
            self.close()
            raise FoveateError(
                f"{path} is no labelling session of this version of foveate; choose another folder "
                "with --out"
            )

    def close(self) -> None:
        """Let go of the file; nothing is lost when this is never called."""
        self._db.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise FoveateError(
                f"cannot use the labelling session {self.path}: {error}; labels that were saved "
                "are still in it, unless the file was damaged from outside"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: on the disk when the block is left, or undone."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._revision() != self.revision:
                    raise SessionChangedError(
                        f"another process has written to {self.path} meanwhile; run the command "
                        "again, or reload the page"
                    )
                yield self._db
                self._set("revision", self.revision + 1)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self.revision += 1

    def _revision(self) -> int:
        row = self._db.execute("SELECT value FROM fact WHERE name = 'revision'").fetchone()
        return -1 if row is None else int(row[0])

    def _set(self, name: str, value: object) -> None:
        self._db.execute("REPLACE INTO fact VALUES (?, ?)", (name, json.dumps(value)))

    def create(
        self, facts: dict[str, Any], events: Sequence[Event], features: tuple[int, bytes] | None
    ) -> None:
        """Begin a session: all of this, or nothing."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for statement in _TABLES:
                    self._db.execute(statement)
                for name, value in {**facts, "revision": 0}.items():
                    self._set(name, value)
                if features is not None:
                    self._db.execute("INSERT INTO features VALUES (?, ?)", features)
                for event in events:
                    self._insert(event)
                self._db.execute(f"PRAGMA application_id={_MARK}")
                self._db.execute(f"PRAGMA user_version={FORMAT}")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self.is_new, self.revision = False, 0

    def _insert(self, event: Event) -> None:
        self._db.execute(
            "INSERT INTO event (kind, content, state, advice) VALUES (?, ?, ?, ?)",
            (
                event.kind,
                json.dumps(event.content),
                None if event.state is None else json.dumps(event.state),
                event.advice,
            ),
        )

    def add(self, events: Sequence[Event], forget_before: int | None = None) -> None:
        """Append events; on the disk when this returns.

        Parameters
        ----------
        forget_before
            States and advice of events before the one with this index are let go.
        """
        with self._writing():
            for event in events:
                self._insert(event)
            if forget_before is not None:
                self._db.execute(
                    "UPDATE event SET state = NULL, advice = NULL WHERE state IS NOT NULL AND seq <"
                    " (SELECT seq FROM event ORDER BY seq LIMIT 1 OFFSET ?)",
                    (forget_before,),
                )

    def drop_from(self, index: int) -> None:
        """Take back the event with this index and all later ones."""
        with self._writing():
            self._db.execute(
                "DELETE FROM event WHERE seq >="
                " (SELECT seq FROM event ORDER BY seq LIMIT 1 OFFSET ?)",
                (index,),
            )

    def set_fact(self, name: str, value: object) -> None:
        """Change a fact, such as the budget."""
        with self._writing():
            self._set(name, value)

    def read(self) -> tuple[dict[str, Any], list[Event]]:
        """All facts and all events, as of one moment."""
        with self._told():
            self._db.execute("BEGIN")
            try:
                pairs = self._db.execute("SELECT name, value FROM fact").fetchall()
                rows = self._db.execute(
                    "SELECT kind, content, state, advice FROM event ORDER BY seq"
                ).fetchall()
            finally:
                self._db.execute("COMMIT")
        try:
            facts = {name: json.loads(value) for name, value in pairs}
            events = [
                Event(kind, json.loads(content), None if state is None else json.loads(state), blob)
                for kind, content, state, blob in rows
            ]
            self.revision = int(facts["revision"])
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(
                f"the labelling session {self.path} is damaged ({error!r}); start a new one with "
                "--out"
            ) from error
        return facts, events

    def features(self) -> tuple[int, bytes] | None:
        """Number of rows and the bytes of the features, where the session keeps them."""
        with self._told():
            row = self._db.execute("SELECT rows, numbers FROM features").fetchone()
        return None if row is None else (int(row[0]), bytes(row[1]))
