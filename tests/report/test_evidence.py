"""Verdict rules against hand-counted cases; evidence survives the disk; finished work is kept."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.report.evidence import (
    Claim,
    Evidence,
    Finding,
    Ledger,
    Result,
    evidence_table,
    markdown_table,
    paired_verdict,
    read_all,
)

CLAIM = Claim("a beats b", "mae", "lower", "a", "b", "mean and 2/3 of seeds", "0.87 bpm", "R")


def results(a, b, metric="mae"):
    return [
        *(Result("a", i, {metric: v}) for i, v in enumerate(a)),
        *(Result("b", i, {metric: v}) for i, v in enumerate(b)),
    ]


@pytest.mark.parametrize(
    ("a", "b", "direction", "verdict"),
    [
        ([1, 1, 1], [2, 2, 2], "lower", "reproduced"),
        ([1, 1, 1], [2, 2, 2], "higher", "not reproduced"),
        ([1, 1, 3], [2, 2, 2], "lower", "reproduced"),  # two of three seeds, mean 1.67 < 2
        ([1, 3, 3], [4, 2, 2], "lower", "not reproduced"),  # better mean, one seed of three
        ([1, 1, 9], [2, 2, 2], "lower", "not reproduced"),  # two seeds, worse mean
        ([2, 2, 2], [2, 2, 2], "lower", "not reproduced"),  # a tie is no win
        ([1, 1], [2, 2], "lower", "inconclusive"),  # too few seeds
        ([1, 1, math.nan], [2, 2, 2], "lower", "inconclusive"),
    ],
)
def test_the_paired_rule(a, b, direction, verdict):
    assert paired_verdict(results(a, b), "mae", "a", "b", direction) == verdict


def test_seeds_are_paired_not_pooled():
    lonely = [*results([1, 1, 1], [2, 2]), Result("b", 7, {"mae": 9.0})]
    assert paired_verdict(lonely, "mae", "a", "b", "lower") == "inconclusive"


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=9), st.floats(0.01, 100))
def test_a_uniform_gain_is_always_found_and_its_mirror_never(values, gain):
    better = [v - gain - abs(v) * 1e-6 for v in values]
    assert paired_verdict(results(better, values), "mae", "a", "b", "lower") == "reproduced"
    assert paired_verdict(results(better, values), "mae", "b", "a", "lower") == "not reproduced"


def make(**changes):
    base = Evidence(
        recipe="toy",
        claim=CLAIM,
        verdict="reproduced",
        arms={"a": "the method", "b": "its ablation"},
        results=results([1.0, 1.5, math.nan], [2.0, 2.5, 3.0]),
        data="dice",
        simulated=True,
        scale="smoke",
        config={"lr": 0.1, "seeds": (0, 1, 2)},
        findings=[Finding("and faster", "inconclusive")],
        seconds=1.25,
    )
    return dataclasses.replace(base, **changes)


def test_evidence_round_trip_and_plain_json(tmp_path):
    item = make()
    path = item.write(tmp_path)
    assert path.name == "toy.json"
    raw = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    assert raw["results"][2]["metrics"]["mae"] is None
    back = Evidence.read(path)
    assert back.claim == item.claim
    assert back.findings == item.findings
    assert back.seeds == [0, 1, 2]
    assert math.isnan(back.results[2].metrics["mae"])
    assert [r.metrics["mae"] for r in back.results[3:]] == [2.0, 2.5, 3.0]
    for key in ("python", "torch", "foveate"):
        assert key in back.versions
    assert back.machine["cores"] >= 1
    assert read_all(tmp_path)[0].recipe == "toy"


def test_the_table_says_simulated_and_the_verdict():
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evidence_table([make()]))
    text = console.export_text()
    assert "is better, simulated" in text
    assert "reproduced" in text


def test_markdown_has_a_row_for_every_arm_with_mean_and_range():
    lines = markdown_table(make()).splitlines()
    assert lines[2] == "| a | 1.25 (1 to 1.5) |"
    assert lines[3] == "| b | 2.5 (2 to 3) |"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"claim": 3}', '{"claim": {"text": "x"}}', "\x00\xff"]
)
def test_damaged_evidence_is_one_sentence(tmp_path, text):
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(FoveateError, match="not readable evidence"):
        read_all(tmp_path)


def test_a_missing_folder_and_wrong_contents_are_refused(tmp_path):
    with pytest.raises(FoveateError, match="no evidence folder"):
        read_all(tmp_path / "nowhere")
    with pytest.raises(FoveateError, match="unknown verdict 'maybe'"):
        make(verdict="maybe")
    with pytest.raises(FoveateError, match="not described: c"):
        make(results=[Result("c", 0, {})])


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.1
    seeds: tuple[int, ...] = (0,)
    devices: int = 1


def test_the_ledger_keeps_finished_work_through_an_interruption(tmp_path):
    source = tmp_path / "recipe.py"
    source.write_text("x = 1\n")
    calls = []

    def work(arm, seed):
        def compute():
            if seed == 2:
                raise KeyboardInterrupt
            calls.append((arm, seed))
            return {"mae": seed}

        return compute

    ledger = Ledger("toy", Config(), source, tmp_path / "runs")
    for seed in (0, 1):
        ledger.result("a", seed, work("a", seed))
    with pytest.raises(KeyboardInterrupt):
        ledger.result("a", 2, work("a", 2))
    assert not list(tmp_path.glob("runs/**/.partial*"))
    # Started again, with more seeds and devices: what is done is not done twice.
    again = Ledger("toy", Config(seeds=(0, 1, 2), devices=2), source, tmp_path / "runs")
    assert again.result("a", 1, work("a", 1)).metrics == {"mae": 1.0}
    assert again.reused == 1
    assert calls == [("a", 0), ("a", 1)]
    # A damaged entry is computed again; other settings or another recipe text start afresh.
    (again.folder / "a-0.json").write_text("{")
    assert Ledger("toy", Config(), source, tmp_path / "runs").result("a", 0, work("a", 0))
    assert Ledger("toy", Config(lr=0.2), source, tmp_path / "runs").folder != again.folder
    source.write_text("x = 2\n")
    assert Ledger("toy", Config(), source, tmp_path / "runs").folder != again.folder


def test_editing_a_room_below_starts_afresh(tmp_path, monkeypatch):
    from foveate.report import evidence

    source, room = tmp_path / "recipe.py", tmp_path / "erea.py"
    source.write_text("")
    room.write_text("x = 1")
    assert any(path.name == "erea.py" for path in evidence._sources())
    assert not any(path.parent.name in ("apps", "report") for path in evidence._sources())
    monkeypatch.setattr(evidence, "_sources", lambda: [room])
    before = Ledger("toy", Config(), source, tmp_path / "runs").folder
    room.write_text("x = 2")
    assert Ledger("toy", Config(), source, tmp_path / "runs").folder != before


def test_only_the_first_process_writes(tmp_path):
    source = tmp_path / "recipe.py"
    source.write_text("")
    ledger = Ledger("toy", Config(), source, tmp_path / "runs", writer=False)
    ledger.result("a", 0, lambda: {"mae": 1.0})
    assert not ledger.folder.exists()
