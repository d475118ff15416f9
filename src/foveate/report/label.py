"""What ``foveate label`` says: why an item is asked, what is known so far, and the page.

Everything here turns the plain facts of a session (`Labelling.snapshot`) into words and places;
:func:`label_page` puts the page together. The page is served, not written: it may fetch from the
address that it came from, and from nowhere else. Its state is JSON, and its script makes text
nodes of it, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from foveate.report.page import PERSON_COLOURS, json_for_script, number

__all__ = ["answer_of", "label_page", "page_state", "question", "reason", "result_lines", "wilson"]

EXPERTS: dict[str, tuple[str, str]] = {
    "US": ("Doubt", "the classifier can hardly tell its two best guesses apart"),
    "DENS": ("Crowd", "it resembles many other items, for which your answer may hold as well"),
    "DFF": ("Distance", "nothing that has a label is like it"),
    "RAND": ("Chance", "it was drawn blindly, so that no corner of the pool is forgotten"),
    "QUIRE": ("Both sides", "it is doubtful and typical of its neighbourhood"),
    "QBC": ("Committee", "several classifiers, trained on parts of the labels, disagree on it"),
    "US*DENS": ("Doubt in the crowd", "it is doubtful and resembles many other items"),
}
"""Name in words, and why that expert would want an item."""

_TEMPLATES = Path(__file__).parent / "templates"
_KEYS = 9


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `of` tries (Wilson, 1927), in [0, 1]."""
    share, square = right / of, z * z / of
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / of + square / of / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


# ------------------------------------------------------------------------------ why this item


def reason(item: Mapping[str, Any], missing: Sequence[str], closed: bool) -> dict[str, Any]:
    """Why an item is asked about.

    Returns
    -------
    dict
        ``title``, ``text``, ``odds``, and ``shares``: of every expert ``name``, ``share`` of the
        item's probability (they sum to 1, with the minimum of every item) and ``note``.
    """
    if item["phase"] != "deal":
        left = f" Not seen yet: {', '.join(missing)}." if closed and missing else ""
        if item["phase"] == "chance":
            text = "Drawn at random, while examples of every class are being looked for."
            return {
                "title": "Looking for the classes",
                "text": text + left,
                "odds": "",
                "shares": [],
            }
        text = (
            "A typical item of one of the larger groups in the pool. The first questions look for "
            "an example of every class; the experts choose from then on."
        )
        return {"title": "Getting to know the pool", "text": text + left, "odds": "", "shares": []}
    name, why = EXPERTS.get(item["expert"], (item["expert"], "this expert wanted it"))
    count, p = int(item["candidates"]), float(item["probability"])
    rank = item["ranks"][item["expert"]]
    place = "" if item["expert"] == "RAND" else f" ({_place(rank, count)})"
    uniform = 1 / count
    all_of = f"the {number(count, 0)} candidates"
    if abs(p / uniform - 1) < 0.05:
        odds = f"It had about the same probability as any of {all_of}, {_percent(p)}."
    else:
        odds = (
            f"It was drawn with a probability of {_percent(p)}; blindly, each of {all_of} has "
            f"{_percent(uniform)}."
        )
    shares = [
        {
            "name": EXPERTS.get(expert, (expert, ""))[0],
            "code": expert,
            "share": (1 - item["gamma"]) * trust * item["advice"][expert] / p,
            "note": f"trust {_percent(trust)}" + _rank(expert, item["ranks"][expert]),
        }
        for expert, trust in item["weights"].items()
    ]
    shares.append(
        {
            "name": "Minimum",
            "code": "floor",
            "share": item["gamma"] / count / p,
            "note": "which every item keeps",
        }
    )
    text = f"{why[0].upper()}{why[1:]}{place}."
    return {"title": f"{name} asked for this one", "text": text, "odds": odds, "shares": shares}


def _place(rank: float, count: int) -> str:
    """A rank in words; ties share a mean rank."""
    whole = math.ceil(rank)
    end = "th" if whole % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(whole % 10, "th")
    about = "" if rank == whole else "about "
    return f"{about}{number(whole, 0)}{end} choice of {number(count, 0)}"


def _rank(expert: str, rank: float) -> str:
    return "" if expert == "RAND" else f" · rank {number(math.ceil(rank), 0)}"


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.1:
        return "less than 0.1 %"
    return f"{number(percent, 0 if percent >= 10 else 1)} %"


# ------------------------------------------------------------------------------ what is known


def accuracy_words(shown: Mapping[str, Any]) -> dict[str, str]:
    """The accuracy so far: ``value``, ``text`` and ``caution``."""
    if not shown["curve"]:
        return {
            "value": "",
            "text": "Shown as soon as two classes have two labels each.",
            "caution": "",
        }
    last = shown["curve"][-1]
    low, high = wilson(last["right"], last["of"])
    return {
        "value": f"{number(100 * last['right'] / last['of'], 0)} %",
        "text": f"{last['right']} of {last['of']} labelled items are predicted right by a "
        f"classifier that did not see them; 95 % interval {number(100 * low, 0)} to "
        f"{number(100 * high, 0)} %.",
        "caution": "These items were picked for being doubtful, typical or unlike others, and are "
        "no random sample: on the rest of the pool the accuracy will differ, and is often higher. "
        "To know it, label a random sample apart.",
    }


def result_lines(shown: Mapping[str, Any]) -> list[str]:
    """The session in a few lines, for the terminal."""
    counts = ", ".join(f"{c['name']} {c['count']}" for c in shown["classes"]) or "no classes yet"
    end = {"budget": "; the budget is used up", "pool": "; no item is left", "": ""}[shown["done"]]
    given = shown["labels"] - shown["answered"]
    extra = [f"{given} given"] if given else []
    extra += [f"{shown['skipped']} skipped"] if shown["skipped"] else []
    lines = [
        f"{shown['answered']} of {shown['budget']} answers"
        + (f" ({', '.join(extra)})" if extra else "")
        + end,
        counts,
    ]
    words = accuracy_words(shown)
    if words["value"]:
        lines.append(f"cross-validated: {words['text']} No random sample: it may differ elsewhere.")
    lines.append(
        f"session {shown['file']}"
        + (f", labels {shown['exported']}" if "exported" in shown else "")
    )
    return lines


# ------------------------------------------------------------------------------ terminal


def question(shown: Mapping[str, Any]) -> str:
    """One item, why it is asked, and how to answer."""
    item = shown["item"]
    why = reason(item, shown["missing"], shown["closed"])
    lines = ["", f"[{shown['answered'] + 1} of {shown['budget']}] {item.get('path') or item['id']}"]
    values = [(_visible(name), _visible(value)) for name, value in item["values"]]
    width = max((len(name) for name, _ in values), default=0)
    lines += [f"    {name:<{width}}  {value}" for name, value in values]
    lines.append(f"  {why['title']}: {why['text']}")
    classes = "  ".join(f"{k} {c['name']}" for k, c in enumerate(shown["classes"], 1))
    lines.append(f"  {classes or 'type a class'}   |  s skip  u undo  q stop")
    return "\n".join(lines)


def _visible(text: str) -> str:
    """Without characters that a terminal obeys: a cell of a table must not move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def answer_of(
    typed: str, classes: Sequence[str]
) -> tuple[Literal["label", "skip", "undo", "stop", "again"], str]:
    """What a typed line means: a number or a name is a label; with a word for ``again``.

    The name of a class wins over the letters s, u and q. A name that is new must begin with ``+``.
    """
    word = typed.strip()
    if word in classes:
        return "label", word
    if re.fullmatch(r"[0-9]{1,6}", word):
        if 1 <= int(word) <= len(classes):
            return "label", classes[int(word) - 1]
        return "again", f"there are classes 1 to {len(classes)}"
    commands: dict[str, Literal["skip", "undo", "stop"]] = {"s": "skip", "u": "undo", "q": "stop"}
    if word in commands:
        return commands[word], ""
    if word.startswith("+") and word[1:].strip():
        return "label", word[1:].strip()
    if not classes and word:
        return "label", word
    return "again", "a class by number or name, +name for a new one, s skip, u undo, q stop"


# ------------------------------------------------------------------------------ the page


def page_state(shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script draws: words and numbers, no markup."""
    item = shown["item"]
    curve = []
    for point in shown["curve"]:
        low, high = wilson(point["right"], point["of"])
        curve.append([point["labels"], point["right"] / point["of"], low, high])
    largest = max((c["count"] for c in shown["classes"]), default=0)
    experts = list(shown["trust"][-1]["weights"]) if shown["trust"] else []
    done = {
        "": "",
        "budget": f"All {shown['budget']} answers are given.",
        "pool": "No item is left in the pool.",
    }[shown["done"]]
    return {
        "pool": shown["pool"],
        "answered": shown["answered"],
        "budget": shown["budget"],
        "most": shown["answered"] + shown["left"] + (1 if item else 0),
        "facts": [
            f"{number(shown['items'], 0)} items",
            f"{number(shown['left'], 0)} unlabelled",
            *([f"{shown['skipped']} skipped"] if shown["skipped"] else []),
            *(
                [f"{shown['labels'] - shown['answered']} labels given"]
                if shown["labels"] > shown["answered"]
                else []
            ),
        ],
        "undo": shown["undo"],
        "classes": shown["classes"],
        "keys": _KEYS,
        "done": done,
        "item": item
        and {
            "id": item["id"],
            "number": shown["answered"] + 1,
            "picture": f"picture/{item['row']}" if shown["pictures"] else None,
            "values": [pair for pair in item["values"] if pair[1] != item["id"]],
            "reason": reason(item, shown["missing"], shown["closed"]),
        },
        "recent": [
            {**entry, "picture": f"picture/{entry['row']}?small=1" if shown["pictures"] else None}
            for entry in shown["recent"]
        ],
        "accuracy": accuracy_words(shown),
        "curve": curve,
        "commonest": largest / shown["labels"] if shown["labels"] else 0,
        "trust": {
            "experts": [
                {"code": code, "name": EXPERTS.get(code, (code, ""))[0]} for code in experts
            ],
            "rounds": [list(turn["weights"].values()) for turn in shown["trust"]],
            "restarts": [k for k, turn in enumerate(shown["trust"]) if k and turn["restarted"]],
        },
        "file": shown["file"],
    }


def label_page(state: Mapping[str, Any], version: str) -> tuple[str, str]:
    """The page and its Content-Security-Policy.

    Scripts and styles run by their SHA-256 only; the page reads from its own address alone.
    """
    styles = [_colours(), *(_own(name) for name in ("page.css", "label.css"))]
    scripts = [_own(name) for name in ("page.js", "label.js")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("label.html.j2").render(
        pool=state["pool"],
        version=version,
        styles=[Markup(style) for style in styles],  # noqa: S704 - package data, see _own
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - package data, see _own
        data=json_for_script(state),
    )
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return html, policy


def _own(name: str) -> str:
    """Program text of ours, as content of <script> or <style>."""
    # The parser turns CRLF into LF before the browser hashes it, so we do it first.
    text = (_TEMPLATES / name).read_text("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    if re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError(f"{name} would end its element early")
    return text


def _colours() -> str:
    rules = (f"--p{i}:light-dark({a},{b});" for i, (a, b) in enumerate(PERSON_COLOURS))
    return ":root{" + "".join(rules) + "}"


def _hashes(texts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
