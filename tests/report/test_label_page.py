"""The words of `foveate label`, and what its page is made of."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from foveate.report.label import (
    EXPERTS,
    answer_of,
    label_page,
    page_state,
    question,
    reason,
    result_lines,
    wilson,
)


def item(**changes: Any) -> dict[str, Any]:
    """An item that Doubt asked for, out of 200."""
    weights = {"US": 0.5, "DENS": 0.3, "RAND": 0.2}
    advice = {"US": 0.5, "DENS": 0.001, "RAND": 0.005}
    mixed = sum(weights[e] * advice[e] for e in weights)
    made = {
        "id": "a.png", "number": 9, "phase": "deal", "expert": "US", "candidates": 200,
        "probability": 0.9 * mixed + 0.1 / 200, "gamma": 0.1, "weights": weights, "advice": advice,
        "ranks": {"US": 1.0, "DENS": 60.5, "RAND": 100.5}, "row": 4, "values": [["id", "a.png"]],
    }  # fmt: skip
    return {**made, **changes}


def snapshot(**changes: Any) -> dict[str, Any]:
    made = {
        "pool": "photos", "items": 1234, "pictures": True, "budget": 40, "answered": 8,
        "labels": 10, "skipped": 1, "left": 1222, "done": "", "closed": True, "missing": [],
        "file": "label.sqlite", "undo": True,
        "classes": [{"name": "cat", "count": 6}, {"name": "dog", "count": 4}], "item": item(),
        "recent": [{"id": "b.png", "label": "cat", "row": 2}],
        "curve": [{"labels": 9, "right": 6, "of": 9}, {"labels": 10, "right": 8, "of": 10}],
        "trust": [
            {"weights": {"US": 0.5, "DENS": 0.3, "RAND": 0.2}, "restarted": True},
            {"weights": {"US": 0.4, "DENS": 0.4, "RAND": 0.2}, "restarted": False},
            {"weights": {"US": 1 / 3, "DENS": 1 / 3, "RAND": 1 / 3}, "restarted": True},
        ],
    }  # fmt: skip
    return {**made, **changes}


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(pair):
    wanted = binomtest(*pair).proportion_ci(method="wilson")
    assert wilson(*pair) == pytest.approx((wanted.low, wanted.high), abs=2e-4)


def test_the_reason_names_the_expert_its_place_and_the_odds():
    why = reason(item(), [], True)
    assert why["title"] == "Doubt asked for this one"
    assert why["text"].endswith("guesses apart (1st choice of 200).")
    p = 0.9 * (0.25 + 0.0003 + 0.001) + 0.0005
    assert f"probability of {100 * p:.0f} %; blindly" in why["odds"]
    assert "0.5 %" in why["odds"]
    assert sum(share["share"] for share in why["shares"]) == pytest.approx(1)
    assert [share["name"] for share in why["shares"]] == ["Doubt", "Crowd", "Chance", "Minimum"]
    assert why["shares"][0]["share"] == pytest.approx(0.9 * 0.25 / p)
    assert why["shares"][-1]["share"] == pytest.approx(0.0005 / p)
    assert why["shares"][1]["note"] == "trust 30 % · rank 61"
    even = item(probability=0.005, expert="RAND")
    assert "about the same probability" in reason(even, [], True)["odds"]
    assert "choice" not in reason(even, [], True)["text"]


@pytest.mark.parametrize(
    ("rank", "words"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"),
     (112, "112th"), (1.5, "about 2nd"), (1013, "1\u202f013th")],
)  # fmt: skip
def test_ordinals(rank, words):
    asked = item(ranks={"US": rank, "DENS": 1, "RAND": 1}, candidates=2000)
    assert f"({words} choice of 2\u202f000)" in reason(asked, [], True)["text"]


def test_every_expert_of_the_method_has_words():
    from foveate.learning.active import EXPERTS as METHOD

    assert set(EXPERTS) == set(METHOD)


def test_first_items_say_what_is_looked_for():
    why = reason(item(phase="start"), ["dog", "yeti"], True)
    assert why["text"].endswith("Not seen yet: dog, yeti.")
    assert why["shares"] == []
    assert "random" in reason(item(phase="chance"), [], False)["text"]


def test_the_accuracy_is_said_with_its_interval_and_its_caution():
    lines = result_lines(snapshot())
    assert lines[0] == "8 of 40 answers (2 given, 1 skipped)"
    assert lines[1] == "cat 6, dog 4"
    low, high = wilson(8, 10)
    assert "8 of 10 labelled items are predicted right" in lines[2]
    assert f"{100 * low:.0f} to {100 * high:.0f} %" in lines[2]
    assert "No random sample" in lines[2]
    state = page_state(snapshot())
    assert state["accuracy"]["value"] == "80 %"
    assert "no random sample" in state["accuracy"]["caution"]
    assert state["curve"][1] == [10, 0.8, low, high]
    assert state["commonest"] == 0.6
    assert state["trust"]["restarts"] == [2]  # the first draw is no restart
    empty = page_state(snapshot(curve=[], item=None, trust=[], recent=[], done="pool"))
    assert empty["accuracy"]["value"] == ""
    assert empty["done"] == "No item is left in the pool."
    assert empty["trust"] == {"experts": [], "rounds": [], "restarts": []}


@pytest.mark.parametrize(
    ("typed", "meaning"),
    [("1", ("label", "cat")), (" dog ", ("label", "dog")), ("s", ("label", "s")),
     ("u", ("undo", "")), ("q", ("stop", "")), ("+ yeti", ("label", "yeti")), ("0", "again"),
     ("4", "again"), ("", "again"), ("+", "again"), ("yeti", "again"), ("1" * 400, "again"),
     ("١", "again")],
)  # fmt: skip
def test_what_is_typed(typed, meaning):
    found = answer_of(typed, ["cat", "dog", "s"])
    assert found == meaning or found[0] == meaning
    assert answer_of("s", ["cat"]) == ("skip", "")
    assert answer_of("yeti", []) == ("label", "yeti")


def test_a_question_in_the_terminal():
    shown = snapshot(item={**item(), "path": "photos/a.png", "values": [("mass", "3"), ("x", "1")]})
    text = question(shown)
    assert "[9 of 40] photos/a.png" in text
    assert "    mass  3\n    x     1\n" in text
    assert "1 cat  2 dog   |  s skip  u undo  q stop" in text


def test_a_table_cannot_give_orders_to_the_terminal():
    cells = [("ti\x1b[2Jtle", "\x1b]0;hello\x07"), ("n", "one\ntwo\u202e")]
    text = question(snapshot(item={**item(), "values": cells}))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "ti\\x1b[2Jtle  \\x1b]0;hello\\x07" in text
    assert "one\\ntwo\\u202e" in text


def test_the_page_allows_its_own_scripts_and_styles_and_no_others():
    nasty = "</script><script>alert(1)</script><!--"
    html, policy = label_page(page_state(snapshot(pool=nasty)), "1.2.3")
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes = {
            f"'sha256-{b64encode(hashlib.sha256(b.encode()).digest()).decode()}'" for b in bodies
        }
        allowed = re.search(rf"{directive} ([^;]*)", policy)
        assert allowed is not None
        assert set(allowed[1].split()) == hashes
    assert "alert(1)</script>" not in html
    assert not re.search(r"\sstyle=|\son[a-z]+=", html.partition("<script")[0])
    assert "connect-src 'self'" in policy
