"""Tables and ratios of the engine's bench against hand-made rows."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from foveate.report import terminal
from foveate.report.engine_bench import ratios, tables, write_plot

HOOK = Path(__file__).resolve().parents[2] / "docs" / "evidence_hook.py"


def row(what, kind, milliseconds, own=False, threads=1, workload="conv", gmacs=100.0):
    return {
        "table": "Switching" if workload == "switch" else "In a row",
        "workload": workload,
        "what": what,
        "kind": kind,
        "own": own,
        "threads": threads,
        "milliseconds": milliseconds,
        "gmacs": gmacs,
    }


ROWS = [
    row("ours 1", "1x1 bits", 0.1, own=True),
    row("ours 1, slower", "1x1 bits", 0.2, own=True),
    row("ours 2", "2x2 bits", 0.25, own=True),
    row("ours 8", "int8", 0.01, own=True),
    row("A <fp32>", "fp32", 1.0),
    row("B fp32", "fp32", 2.0),
    row("A int8", "int8", 0.4),
    row("B int8", "int8", 0.3),
    row("A bits", "1x1 bits", 0.11),
    row("ours 1", "1x1 bits", 0.05, own=True, threads=2),
    row("A int8", "int8", 0.2, threads=2),
    row("ours 1", "1x1 bits", 2.0, own=True, workload="net"),
    row("B fp32", "fp32", 20.0, workload="net"),
    row("set_bits", "1x1 bits", 0.0004, own=True, workload="switch", gmacs=0.0),
]


def test_ratios_by_hand():
    found = [(r.workload, r.threads, r.own, r.against, round(r.times, 6)) for r in ratios(ROWS)]
    assert found == [
        ("conv", 1, "1x1 bits", "best fp32: A <fp32>", 10.0),
        ("conv", 1, "1x1 bits", "best int8: B int8", 3.0),
        ("conv", 1, "1x1 bits", "best 1x1 bits: A bits", 1.1),
        ("conv", 1, "2x2 bits", "best int8: B int8", 1.2),
        ("conv", 2, "1x1 bits", "best int8: A int8", 4.0),
        ("conv", 2, "1x1 bits", "itself, 1 thread", 2.0),
        ("net", 1, "1x1 bits", "best fp32: B fp32", 10.0),
    ]


def test_no_ratio_without_a_peer_or_without_us():
    assert ratios([]) == []
    assert ratios([row("ours", "1x1 bits", 1.0, own=True)]) == []
    assert ratios([row("A", "fp32", 1.0), row("ours 8", "int8", 1.0, own=True)]) == []


times = st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(times, times)
def test_the_ratio_is_that_of_the_two_least_times(ours, peers):
    rows = [row(f"o{i}", "1x1 bits", t, own=True) for i, t in enumerate(ours)]
    rows += [row(f"p{i}", "fp32", t) for i, t in enumerate(peers)]
    (only,) = ratios(rows[::-1])
    assert only.times == pytest.approx(min(peers) / min(ours))
    assert only.against == f"best fp32: p{len(peers) - 1 - peers[::-1].index(min(peers))}"


def test_tables_one_for_every_question_and_number_of_threads():
    one, two, switch = tables(ROWS)
    assert one.title == "In a row, 1 thread: CPU milliseconds (GMAC/s)"
    assert two.title == "In a row, 2 threads: wall milliseconds (GMAC/s)"
    assert switch.title == "Switching, 1 thread: CPU milliseconds"
    assert one.workloads == ["conv", "net"]
    assert one.lines[0] == ("ours 1", True, ["0.100 (100)", "2.000 (100)"])
    assert one.lines[6] == ("A int8", False, ["0.400 (100)", ""])
    assert switch.lines == [("set_bits", True, ["0.0004"])]
    assert [line.what for line in two.lines] == ["ours 1", "A int8"]


def test_every_time_and_ratio_is_printed_and_nothing_is_taken_for_markup(monkeypatch):
    console = Console(file=io.StringIO(), width=220)
    monkeypatch.setattr(terminal, "_out", console)
    terminal.print_engine([*ROWS, row("[red]C[/red]", "fp32", 3.0)])
    printed = console.file.getvalue()
    for text in ("[red]C[/red]", "0.0004", "2.000 (100)", "best int8: B int8", "10.00", "1.10"):
        assert text in printed


def test_plot_shows_the_smallest_number_of_threads_and_only_multiplications(tmp_path):
    write_plot([*ROWS, row("only on two", "fp32", 1.0, threads=2)], tmp_path / "plot.html")
    page = (tmp_path / "plot.html").read_text("utf-8")
    data = page[page.rindex("Plotly.newPlot(") :]
    assert "ours 1, slower" in data
    assert "Multiply-adds per second, 1 thread," in data
    assert "only on two" not in data
    assert "set_bits" not in data


@pytest.fixture
def hook(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("evidence_hook", HOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_documentation_takes_the_figures_from_the_file(hook, tmp_path):
    assert "Not measured yet" in hook.on_page_markdown("<!-- bench:engine -->")
    (tmp_path / "docs" / "bench").mkdir(parents=True)
    (tmp_path / "docs" / "bench" / "engine.json").write_text(json.dumps(ROWS), "utf-8")
    lines = hook.on_page_markdown("before\n<!-- bench:engine -->").splitlines()
    assert lines[:6] == [
        "before",
        "**In a row, 1 thread: CPU milliseconds (GMAC/s)**",
        "",
        "| | conv | net |",
        "|---|---:|---:|",
        "| **ours 1** | 0.100 (100) | 2.000 (100) |",
    ]
    assert "| A int8 | 0.400 (100) |  |" in lines
    assert "| **set_bits** | 0.0004 |" in lines
    assert "| conv | 2 | 1x1 bits | itself, 1 thread | 2.00 |" in lines
    widths = {line.count("|") for line in lines[lines.index("|---|---:|---|---|---:|") :]}
    assert widths == {6}
