"""``foveate label``: a person labels the items that help most, in any of four ways.

- the page: a local server shows one item after the other (`foveate.apps.label_server`);
- ``--terminal``: the same questions on the command line;
- ``--answers FILE``: a table answers, for scripts and for trying the method on known labels;
- ``--ask N`` and ``--tell FILE``: a batch loop around somebody's own annotation tool.

All four work on one session, a file that survives being killed (`foveate.apps.label_store`), and
can be mixed. What a session was begun with (features, columns, settings) is written in it and need
not be said again.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

import foveate
from foveate.apps.label_answers import (
    Progress,
    Say,
    answer_from,
    answer_in_terminal,
    batch_table,
    quiet,
    shout,
)
from foveate.apps.label_session import LabelSession, Told
from foveate.apps.label_store import SessionFile
from foveate.apps.label_strategy import StrategySettings
from foveate.datasets.pools import Pool, read_labels, read_pool
from foveate.errors import FoveateError
from foveate.files import writable_dir, write_whole
from foveate.learning.pool_features import SIDE, picture_features, standardised
from foveate.report.label import result_lines

__all__ = ["Labelling", "label", "open_session", "session_file"]

SESSION = "label.sqlite"
BUDGET = 50
RECENT = 12  # answers that the page shows


@dataclass
class Labelling:
    """An open session together with its pool.

    Attributes
    ----------
    pool, session
        The items, and what was asked and told.
    folder
        Where the session's file lies.
    """

    pool: Pool
    session: LabelSession
    folder: Path

    def __enter__(self) -> Labelling:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.file.close()

    def table(self) -> str:
        """All labels as CSV: id, label, asked_by, probability, candidates, labelled_at.

        1 / (candidates x probability) is the importance of an item that the experts chose; it is
        empty for items that came otherwise.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["id", "label", "asked_by", "probability", "candidates", "labelled_at"])
        session = self.session
        answered = set(session.answered)
        for name, label in session.labels.items():
            asked = session.asked[name] if name in answered else None
            facts: list[object] = ["given", "", ""]
            if asked is not None:
                by_experts = asked.phase == "deal"
                facts = [asked.expert if by_experts else asked.phase,
                         repr(asked.probability) if by_experts else "",
                         asked.candidates if by_experts else ""]  # fmt: skip
            rows.writerow([name, label, *facts, session.times[name]])
        return text.getvalue()

    def export(self, path: Path | str) -> Path:
        """Write `table`; whole or not at all."""
        with write_whole(Path(path)) as temporary:
            temporary.write_text(self.table(), "utf-8")
        return Path(path)

    def snapshot(self) -> dict[str, Any]:
        """Everything that a page or a summary shows, as plain JSON."""
        session, pool = self.session, self.pool
        counts = dict.fromkeys(session.classes, 0)
        for word in session.labels.values():
            counts[word] += 1
        learned = [session.learned[name] for name in session.answered if name in session.learned]
        trusted = [name for name in session.answered if session.asked[name].phase == "deal"]
        current = next(iter(session.current), None)
        return {
            "pool": pool.source,
            "items": len(pool),
            "pictures": pool.has_pictures,
            "budget": session.budget,
            "answered": len(session.answered),
            "labels": len(session.labels),
            "skipped": len([name for name in session.skipped if name not in session.labels]),
            "left": len(session.left),
            "done": session.is_done,
            "undo": session.can_undo,
            "classes": [{"name": name, "count": count} for name, count in counts.items()],
            "closed": session.facts["closed"],
            "missing": [name for name in session.facts["classes"] if not counts[name]],
            "item": current
            and {
                **dataclasses.asdict(current),
                "row": pool.place(current.id),
                "values": pool.values(pool.place(current.id)),
            },
            "recent": [
                {"id": name, "label": session.labels[name], "row": pool.place(name)}
                for name in reversed(session.answered[-RECENT:])
            ],
            "curve": [
                {"labels": content["labels"], "right": right, "of": of}
                for content in learned
                if content.get("accuracy")
                for right, of in [content["accuracy"]]
            ],
            "trust": [
                {
                    "weights": session.asked[name].weights,
                    "restarted": session.learned.get(name, {}).get("restarted", False),
                }
                for name in trusted
            ],
            "file": str(session.file.path),
        }


# ------------------------------------------------------------------------------ opening


def session_file(pool: Path | str, out: Path | str | None = None) -> Path:
    """Where the session of a pool lies, by default in the current folder's ``foveate-out``."""
    where = Path(pool)
    name = where.resolve().name if where.is_dir() else where.stem
    return (Path("foveate-out") / name if out is None else Path(out)) / SESSION


def open_session(
    pool: Path | str,
    out: Path | str | None = None,
    *,
    budget: int | None = None,
    classes: Sequence[str] = (),
    labels: Path | str | None = None,
    features: Path | str | None = None,
    id_column: str | None = None,
    columns: Sequence[str] = (),
    progress: Progress = quiet,
    **strategy: Any,
) -> Labelling:
    """Begin a session of labels, or go on with the one that is there.

    Parameters
    ----------
    pool
        A folder of pictures, a table or an ``.npz`` file (`foveate.datasets.pools`).
    out
        Folder of the session; default ``foveate-out/<name of the pool>``.
    budget
        Answers that the person is willing to give; default 50. Can be changed later.
    classes
        All classes; without them, any label is taken. Later ones are added.
    labels
        A table of labels that exist already.
    features
        An ``.npz`` file with embeddings to choose by.
    id_column, columns
        Of a table: which column names the items, and which ones are features.
    strategy
        Fields of `foveate.apps.label_strategy.StrategySettings`; fixed when a session begins.

    Raises
    ------
    FoveateError
        The pool, its features or the labels cannot be used, an option makes no sense or differs
        from what the session was begun with, or the pool is no longer the same.
    """
    where = Path(pool)
    options = {"id_column": id_column, "columns": list(columns), "features": None}
    if features is not None:
        options["features"] = str(Path(features).resolve())
    for word in classes:
        if not word.strip() or not word.isprintable() or word != word.strip():
            raise FoveateError(f"--classes has {word!r}; expected words, separated by commas")
    known = {field.name for field in dataclasses.fields(StrategySettings)}
    if unknown := set(strategy) - known:
        raise FoveateError(
            f"unknown option for label: {', '.join(sorted(unknown))}; there are: "
            f"{', '.join(sorted(known))}"
        )
    chosen = {key: value for key, value in strategy.items() if value is not None}
    path = session_file(pool, out)
    if path.is_file() and path.stat().st_size:
        file = SessionFile(path)
        if not file.is_new:
            try:
                return _resumed(file, where, options, chosen, budget, classes, labels, progress)
            except BaseException:
                file.close()
                raise
        file.close()
    return _begun(path, where, options, chosen, budget, classes, labels, progress)


def _begun(
    path: Path,
    where: Path,
    options: Mapping[str, Any],
    chosen: Mapping[str, Any],
    budget: int | None,
    classes: Sequence[str],
    labels: Path | str | None,
    progress: Progress,
) -> Labelling:
    settings = StrategySettings(**chosen)
    settings.check()
    read = read_pool(where, **options)
    if budget is not None and not 1 <= budget <= len(read):
        raise FoveateError(
            f"--budget is {budget} and {read.source} has {len(read)} items; expected 1 to "
            f"{len(read)}"
        )
    given = {} if labels is None else read_labels(labels, read)
    _check_classes(given, classes, str(labels))
    numbers, kept = _numbers(read, None, progress)
    facts = {
        "pool": read.source,
        "items": len(read),
        "fingerprint": read.fingerprint,
        "options": dict(options),
        "features_digest": _digest(read, options),
        "foveate": foveate.__version__,
    }
    writable_dir(path.parent)
    session = LabelSession.create(
        SessionFile(path),
        facts,
        read.ids,
        numbers,
        classes=list(dict.fromkeys([*classes, *([] if classes else sorted(set(given.values())))])),
        closed=bool(classes),
        budget=budget or min(BUDGET, len(read)),
        settings=settings,
        given=given,
        features=kept,
    )
    return Labelling(read, session, path.parent)


def _resumed(
    file: SessionFile,
    where: Path,
    options: Mapping[str, Any],
    chosen: Mapping[str, Any],
    budget: int | None,
    classes: Sequence[str],
    labels: Path | str | None,
    progress: Progress,
) -> Labelling:
    facts, _ = file.read()
    shapes = {"options": dict, "strategy": dict, "fingerprint": str, "features_digest": object}
    if bad := [n for n in shapes if n not in facts or not isinstance(facts[n], shapes[n])]:
        raise FoveateError(
            f"the labelling session {file.path} is damaged ({bad[0]}); start a new one with --out"
        )
    begun = {**facts["options"], **facts["strategy"]}
    for name, value in {**options, **chosen}.items():
        given = list(value) if isinstance(value, tuple) else value
        if given not in (None, [], begun[name]):
            raise FoveateError(
                f"this session was begun with {name} {begun[name]!r}, not {given!r}; leave the "
                "option out, or begin another session with --out"
            )
    read = read_pool(where, **facts["options"])
    if read.fingerprint != facts["fingerprint"]:
        raise FoveateError(
            f"{where} is not the pool that the session {file.path} was begun with: "
            f"{facts['items']} items of {facts['pool']} then, {len(read)} of {read.source} now, or "
            "their content changed; begin another with --out, and take the labels along with "
            "--export and --labels"
        )
    if _digest(read, facts["options"]) != facts["features_digest"]:
        raise FoveateError(
            f"{facts['options']['features']} is not what the session {file.path} was begun with; "
            "begin another with --out, and take the labels along with --export and --labels"
        )
    numbers, _ = _numbers(read, file.features(), progress)
    session = LabelSession(file, read.ids, numbers)
    if budget is not None and budget != session.budget:
        session.set_budget(budget)
    if classes:
        session.add_classes(classes)
    if labels is not None:
        session.tell(read_labels(labels, read), by="file")
    return Labelling(read, session, file.path.parent)


def _check_classes(labels: Mapping[str, str], classes: Sequence[str], where: str) -> None:
    for name, word in labels.items():
        if classes and word not in classes:
            raise FoveateError(
                f"{where} says that {name} is {word!r}, which is none of the --classes "
                f"{', '.join(classes)}"
            )


def _digest(pool: Pool, options: Mapping[str, Any]) -> str | None:
    """Of features that came from a file of their own."""
    if options["features"] is None or pool.numbers is None:
        return None
    return hashlib.sha256(np.ascontiguousarray(pool.numbers).data).hexdigest()


def _numbers(
    pool: Pool, kept: tuple[int, bytes] | None, progress: Progress
) -> tuple[npt.NDArray[np.float64], tuple[int, bytes] | None]:
    """Numbers to choose by, and what of them the session keeps."""
    if pool.numbers is not None:
        numbers, groups = pool.numbers, pool.groups
    elif kept is not None:
        flat = np.frombuffer(kept[1], "<f4")
        if kept[0] != len(pool) or flat.size % len(pool):
            raise FoveateError("the features in the session are damaged; begin another with --out")
        numbers, groups = flat.reshape(len(pool), -1).astype(np.float64), ()
    else:
        numbers, groups = _described(pool, progress), ()
        kept = len(pool), np.ascontiguousarray(numbers, "<f4").tobytes()
        numbers = numbers.astype(np.float32).astype(np.float64)
    # Coarser than the last bits, in which two machines may differ.
    return standardised(numbers, groups or None).astype(np.float32).astype(np.float64), kept


def _described(pool: Pool, progress: Progress) -> npt.NDArray[np.float64]:
    """Features of pictures; those that cannot be decoded are named, all at once."""
    bad: list[str] = []

    def pictures() -> Iterator[npt.NDArray[np.uint8]]:
        for row, name in enumerate(pool.ids):
            try:
                picture = pool.picture(row, 2 * SIDE)
            except FoveateError:
                picture = None
                bad.append(name)
            yield np.zeros((1, 1, 3), np.uint8) if picture is None else picture

    def tell(done: int, total: int) -> None:
        progress("looking at the pictures", done, total)

    numbers = picture_features(pictures(), len(pool), tell=tell)
    if bad:
        raise FoveateError(
            f"{len(bad)} of the {len(pool)} pictures of {pool.source} cannot be read: "
            f"{', '.join(bad[:5])}{' and more' if len(bad) > 5 else ''}; repair them or take them "
            "out"
        )
    return numbers


# ------------------------------------------------------------------------------ the command


def label(
    pool: Path | str,
    out: Path | str | None = None,
    *,
    answers: Path | str | None = None,
    terminal: bool = False,
    ask: int | None = None,
    tell: Path | str | None = None,
    export: Path | str | None = None,
    port: int = 0,
    browser: bool = True,
    say: Say = shout,
    hint: Say = lambda text: print(text, file=sys.stderr),
    bar: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(quiet),
    **options: Any,
) -> dict[str, Any]:
    """The command: open the session and do what was asked for; by default, serve the page.

    Parameters
    ----------
    answers
        A table that answers instead of a person.
    terminal
        Ask on the command line.
    ask, tell, export
        Say the next items and stop; take labels from a table; write all labels to a CSV file.
        Given together: first told, then asked, then exported.
    port, browser
        Of the page: 0 takes a free port; whether a browser is opened.
    say, hint
        What is for the person or a pipe (stdout), and what is beside the point (stderr).
    bar
        Makes a progress bar for the parts that nobody is asked in.
    options
        Of `open_session`.

    Returns
    -------
    dict
        `Labelling.snapshot` at the end.
    """
    batch = ask is not None or tell is not None
    if sum([answers is not None, terminal, batch]) > 1:
        raise FoveateError(
            "--answers, --terminal and --ask/--tell are different ways to label; give one of them"
        )
    only_export = export is not None and not (answers is not None or terminal or batch)
    page = not (answers is not None or terminal or batch or only_export)
    if page and not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))):
        raise FoveateError(
            "the page needs FastAPI and uvicorn: pip install 'foveate[serve]', or label with "
            "--terminal"
        )
    table: dict[str, str] = {}
    if answers is not None:
        table = read_labels(answers)
        if not table:
            raise FoveateError(f"{answers} has no label in it; expected the columns id and label")
    if only_export and not session_file(pool, out).is_file():
        raise FoveateError(f"there is no session at {session_file(pool, out)} to export from")
    with bar() as progress:
        opened = open_session(pool, out, progress=progress, **options)
    with opened as labelling:
        for note in labelling.pool.notes:
            hint(f"{labelling.pool.source}: {note}")
        if table:
            own = {name: word for name, word in table.items() if name in labelling.pool}
            if labelling.session.facts["closed"]:
                _check_classes(own, labelling.session.facts["classes"], str(answers))
            labelling.session.add_classes(sorted(set(own.values())))
            with bar() as progress:
                skipped = answer_from(labelling, table, progress)
            if skipped:
                hint(f"{answers} has no label for {skipped} of the items asked; they were skipped")
        elif terminal:
            answer_in_terminal(labelling, say=say)
        elif page:
            from foveate.apps.label_server import serve

            serve(labelling, port, browser, say)
        if tell is not None:
            told = labelling.session.tell(read_labels(tell, labelling.pool), by="file")
            labelling.session.learn()
            hint(_told_words(told))
        if ask is not None:
            say(batch_table(labelling, ask).rstrip("\n"))
        if export is not None:
            hint(f"{len(labelling.session.labels)} labels: {labelling.export(export)}")
        shown = labelling.snapshot()
        if table or terminal or page:
            shown["exported"] = str(labelling.export(labelling.folder / "labels.csv"))
            for line in result_lines(shown):
                say(line)
        elif ask is not None and shown["done"]:
            hint(result_lines(shown)[0])
        return shown


def _told_words(told: Told) -> str:
    parts = [(told.answers, "answers"), (told.unasked, "labels of items that were not asked about"),
             (told.corrected, "corrections"), (told.known, "known already")]  # fmt: skip
    return ", ".join(f"{count} {what}" for count, what in parts if count) or "no labels in it yet"
