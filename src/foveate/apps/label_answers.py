"""Ways to answer the questions of ``foveate label`` without its page.

A table answers (for scripts, and to try the method on labels that are known), a person answers on
the command line, or a batch of questions is written down for somebody's own annotation tool.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from foveate.errors import FoveateError
from foveate.report.label import answer_of, question

if TYPE_CHECKING:
    from foveate.apps.label import Labelling

__all__ = ["Progress", "Say", "answer_from", "answer_in_terminal", "batch_table", "quiet", "shout"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""
Say = Callable[[str], None]


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def shout(text: str) -> None:
    """Print at once: a program that waits for the page's address must see it."""
    print(text, flush=True)


def answer_from(
    labelling: Labelling, answers: Mapping[str, str], progress: Progress = quiet
) -> int:
    """Let a table answer until the budget or the pool is used up; items it lacks are skipped.

    Returns
    -------
    int
        Number of items that were skipped.

    Raises
    ------
    FoveateError
        The table answers for no item of the pool.
    """
    if not any(name in labelling.pool for name in answers):
        raise FoveateError(
            f"the answers are for none of the items of {labelling.pool.source}; ids must be "
            f"written as in the pool, for instance {labelling.pool.ids[0]}"
        )
    session, skipped = labelling.session, 0
    while asked := session.ask():
        name = asked[0].id
        if name in answers:
            session.tell({name: answers[name]}, by="file")
        else:
            session.skip(name)
            skipped += 1
        progress("labelling", len(session.answered), session.budget)
    return skipped


def answer_in_terminal(
    labelling: Labelling, read: Callable[[str], str] = input, say: Say = shout
) -> None:
    """Ask on the command line until the budget, the pool or the person's patience ends."""
    session = labelling.session
    while asked := session.ask():
        shown = labelling.snapshot()
        shown["item"]["path"] = labelling.pool.path(shown["item"]["row"])
        say(question(shown))
        while True:
            try:
                kind, word = answer_of(read("> "), [c["name"] for c in shown["classes"]])
            except (EOFError, KeyboardInterrupt):
                return
            if kind == "stop":
                return
            try:
                if kind == "label":
                    session.add_classes([word])
                    session.tell({asked[0].id: word}, by="terminal")
                elif kind == "skip":
                    session.skip(asked[0].id)
                elif kind == "undo":
                    session.undo()
                else:
                    say(word)
                    continue
            except FoveateError as error:
                say(str(error))
                continue
            break


def batch_table(labelling: Labelling, size: int) -> str:
    """CSV ``id,label`` of the next items, labels empty: to be filled in and told."""
    if not 1 <= size <= len(labelling.pool):
        raise FoveateError(
            f"--ask is {size} and {labelling.pool.source} has {len(labelling.pool)} items; "
            f"expected 1 to {len(labelling.pool)}"
        )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "label"])
    rows.writerows([item.id, ""] for item in labelling.session.ask(size))
    return text.getvalue()
