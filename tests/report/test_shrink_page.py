"""The page of `foveate shrink` as a file: what it says, escaping, its snippets, its figures."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.report.shrink import ShrinkReport, cpp_snippet, python_snippet, write_shrink_page
from foveate.report.shrink_plots import milliseconds, pareto_panel, profile_panel

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'\"&"


def row(name: str, what: str, accuracy: float, ms: float, size: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "what": what, "bits": None, "accuracy": accuracy, "bytes": size,
        "packed_bytes": None, "energy_uj": 10 * ms, "file": None, "checked": None,
        "ms": {"1": ms, "2": ms / 1.5}, "points": round(100 * (accuracy - 0.9), 3),
        "times_float": round(2.0 / ms, 3), "times_int8": round(0.4 / ms, 3), "pareto": False,
    } | more  # fmt: skip


def packed(bits: int, accuracy: float, ms: float, size: int, **more: Any) -> dict[str, Any]:
    own = {
        "bits": [bits, bits], "file": f"net-w{bits}a{bits}.fvt", "packed_bytes": size - 1000,
        "checked": {"pictures": 1000, "same": 1000, "largest_difference": 1e-6}, "pareto": True,
    }  # fmt: skip
    return row(f"w{bits}a{bits}", f"foveate {bits}-bit", accuracy, ms, size, **(own | more))


def nodes(scale: float = 1.0) -> list[dict[str, Any]]:
    paths = ["f32", "int8", "bits", "bits", "", "f32"]
    return [
        {"name": f"layer{i}.conv", "op": "conv", "path": path, "us": scale * (10 + 5 * i),
         "macs": 1000, "bytes": 100}
        for i, path in enumerate(paths)
    ]  # fmt: skip


def layers(bits: int) -> list[dict[str, Any]]:
    return [
        {"path": "conv1", "was": "Conv2d", "now": "Conv2d", "bits": [32, 32],
         "note": "kept: first layer"},
        {"path": "relu1", "was": "ReLU", "now": "Identity", "bits": [32, 32],
         "note": "absorbed by the quantisers behind it"},
        {"path": "conv2", "was": "Conv2d", "now": "QuantConv2d", "bits": [bits, bits], "note": ""},
    ]  # fmt: skip


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "foveate": "0.1.0",
        "command": "shrink",
        "network": {
            "name": "net", "source": "nets:net", "weights": "net.pt", "input": [3, 8, 6],
            "classes": 4, "parameters": 270_000, "macs": 41_000_000, "mean": [0.5, 0.4, 0.3],
            "std": [0.25, 0.25, 1.0],
        },
        "data": {"source": "pictures", "train": 4000, "held_out": 1000},
        "machine": {
            "processor": "a processor", "instructions": "avx512", "threads": 2, "torch": "2.13",
            "onnxruntime": "1.31", "trained_on": "cpu",
        },
        "settings": {"bits": ["w4a4", "w2a2"], "method": "qat", "epochs": 5, "rounds": 40,
                     "keep": ["first", "last"], "lr": None},
        "rows": [
            row("float", "PyTorch float32", 0.9, 2.0, 1_080_000),
            row("ort-fp32", "ONNX Runtime float32", 0.9, 1.0, 1_090_000),
            row("ort-int8", "ONNX Runtime int8", 0.899, 0.4, 320_000),
            packed(4, 0.895, 0.3, 180_000),
            packed(2, 0.86, 0.2, 100_000),
        ],
        "layers": {"w4a4": layers(4), "w2a2": layers(2)},
        "profiles": {"w4a4": nodes(), "w2a2": nodes(0.6)},
        "verdict": {"file": "net-w4a4.fvt", "row": "w4a4", "nearest": "w4a4", "tolerance": 3.0,
                    "reason": "the fastest file within 3 points of the float network"},
        "energy": "E = MACs x (multiply + add)",
        "notes": ["a note about the run"],
        "seconds": 12.5,
    } | changes  # fmt: skip


class Tree(HTMLParser):
    """Elements, their attributes, texts and scripts, as an HTML parser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append((dict(attrs), ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif not self._inside:
            self.text.append(data)
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def data(self) -> dict[str, Any]:
        (text,) = (t for a, t in self.scripts if a.get("id") == "page-data")
        loaded: dict[str, Any] = json.loads(text)
        return loaded


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the 4.8 MB of plotly.js."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


def page(tmp_path: Path, content: dict[str, Any]) -> Tree:
    return Tree(write_shrink_page(tmp_path / "report.html", content))


def test_the_page_says_what_the_summary_says(tmp_path: Path) -> None:
    tree = page(tmp_path, summary())
    words = tree.words
    assert (
        "net in 4-bit form: 6.7 times as fast as PyTorch, 6.0 times smaller, "
        "0.5 points less accurate" in words
    )
    assert "0.75 of the time of ONNX Runtime int8 (89.9 %)" in words
    table = {
        cells[0].split("take")[0].split("on the")[0].strip(): cells for cells in tree.rows[1:6]
    }
    assert [c.strip() for c in table["PyTorch float32"][1:4]] == ["90.0", "", "2.00"]
    four = table["foveate 4-bit"]
    assert "take this" in four[0]
    assert "net-w4a4.fvt" in four[0]
    assert [c.strip() for c in four[1:7]] == ["89.5", "−0.5", "0.300", "0.200", "6.7", "1.33"]
    assert four[7].split() == ["180", "kBleast", "179", "kB"]
    assert "take this" not in table["foveate 2-bit"][0]
    for said in (
        "a note about the run", "E = MACs x (multiply + add)", "kept: first layer",
        "absorbed by the quantisers behind it", "1 000 held-out",
        "2 000 of 2 000 predictions", "estimate", "standard error about 0.9",
    ):  # fmt: skip
        assert said in words, said
    assert "medical" not in words


def test_a_slower_or_missing_int8_is_said_as_it_is(tmp_path: Path) -> None:
    slow = summary()
    slow["rows"][3]["times_int8"] = 0.8
    assert "It takes 1.25 times as long as ONNX Runtime int8" in page(tmp_path, slow).words
    without = summary()
    without["rows"] = [r for r in without["rows"] if not r["name"].startswith("ort")]
    for one in without["rows"]:
        one["times_int8"] = None
    tree = page(tmp_path, without)
    assert "ONNX Runtime is not installed" in tree.words
    assert "ORT int8, ×" not in tree.words


def test_when_nothing_is_near_enough_no_file_is_advised(tmp_path: Path) -> None:
    none = summary(
        verdict={"file": None, "row": None, "nearest": "w4a4", "tolerance": 0.2,
                 "reason": "no width stays within 0.2 points of the float network"}
    )  # fmt: skip
    words = page(tmp_path, none).words
    assert "No width of net stays within 0.2 points: 4-bit comes nearest" in words
    assert "not advised" in words
    assert "take this" not in words


def test_one_thread_has_one_column(tmp_path: Path) -> None:
    one = summary()
    one["machine"]["threads"] = 1
    assert len(page(tmp_path, summary()).rows[0]) == 9
    assert len(page(tmp_path, one).rows[0]) == 8
    assert "wall time" not in page(tmp_path, one).words


def test_the_file_refers_to_nothing_outside_and_runs_only_its_own_scripts(tmp_path: Path) -> None:
    tree = page(tmp_path, summary())
    for tag, attributes in tree.elements:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#", "./")), (tag, value)
    (policy,) = (
        str(a["content"]) for t, a in tree.elements
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert "default-src 'none'" in policy
    programs = [text for a, text in tree.scripts if "type" not in a]
    assert len(programs) == 3
    for text in programs:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def poisoned(value: Any) -> Any:
    """Every text of a summary replaced, where no code reads it as a name."""
    content = copy.deepcopy(value)
    content["network"].update(name=HOSTILE, source=HOSTILE, weights=HOSTILE)
    content["data"]["source"] = content["machine"]["processor"] = HOSTILE
    content["notes"] = [HOSTILE]
    content["settings"]["keep"] = [HOSTILE]
    content["verdict"]["reason"] = HOSTILE
    content["rows"][3]["file"] = content["verdict"]["file"] = HOSTILE
    for changes in content["layers"].values():
        for change in changes:
            change["path"] = change["path"] + HOSTILE
            change["note"] = HOSTILE
    for profile in content["profiles"].values():
        for node in profile:
            node["name"] = HOSTILE
    return content


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    clean, dirty = page(tmp_path, summary()), page(tmp_path, poisoned(summary()))
    assert [t for t, _ in dirty.elements] == [t for t, _ in clean.elements]
    assert HOSTILE in "".join(dirty.text)
    for panel in dirty.data["panels"]:
        for trace in panel["figure"]["data"]:
            for text in (*trace.get("customdata", ()), *trace.get("text", ())):
                assert "<img" not in text
    link = next(
        str(a["href"]) for t, a in dirty.elements if t == "a" and "script" in str(a["href"])
    )
    assert re.fullmatch(r"\./[\w%./-]+", link)


def test_figures_are_valid_and_show_the_rows(tmp_path: Path) -> None:
    data = page(tmp_path, summary()).data
    pareto, *profiles = data["panels"]
    for panel in data["panels"]:
        assert panel["own_axes"]
        plain = json.loads(re.sub(r'"@\w+(/[\d.]+)?"', '"#123456"', json.dumps(panel["figure"])))
        go.Figure(plain)  # plotly's own check of every attribute
    points = {
        (round(x, 6), y)
        for trace in pareto["figure"]["data"] if "markers" in trace["mode"]
        for x, y in zip(trace["x"], trace["y"], strict=True)
    }  # fmt: skip
    assert points == {(2.0, 90.0), (1.0, 90.0), (0.4, 89.9), (0.3, 89.5), (0.2, 86.0)}
    dashed = next(t for t in pareto["figure"]["data"] if t.get("line", {}).get("dash") == "dash")
    assert dashed["y"] == [87.0, 87.0]
    dotted = next(t for t in pareto["figure"]["data"] if t.get("line", {}).get("dash") == "dot")
    assert list(zip(dotted["x"], dotted["y"], strict=True)) == [
        (0.2, 86.0), (0.3, 86.0), (0.3, 89.5),
    ]  # fmt: skip
    assert len(profiles) == 2
    ends = {panel["figure"]["layout"]["xaxis"]["range"][1] for panel in profiles}
    assert len(ends) == 1  # bars of different widths can be compared
    for panel, scale in zip(profiles, (1.0, 0.6), strict=True):
        bars = {
            y: x for trace in panel["figure"]["data"]
            for x, y in zip(trace["x"], trace["y"], strict=True)
        }  # fmt: skip
        assert [bars[i] for i in range(6)] == pytest.approx(
            [scale * (10 + 5 * i) for i in range(6)]
        )


def test_colours_tell_how_a_layer_was_computed() -> None:
    panel = profile_panel("4-bit", nodes(), 40.0)
    colours = {
        y: trace["marker"]["color"].split("/")[0]
        for trace in panel.figure["data"] for y in trace["y"]
    }  # fmt: skip
    assert colours == {
        0: "@muted", 1: "@p2", 2: "@accent", 3: "@accent", 4: "@hatch", 5: "@muted",
    }  # fmt: skip
    # 10 + 35 of float, 15 of int8, 20 + 25 of bits, 30 of neither, of 135
    assert panel.note == "bits 33 %, int8 11 %, float 33 %, other 22 %"


def test_a_deep_network_shows_its_longest_layers_in_their_order() -> None:
    many = [nodes()[2] | {"name": f"n{i}", "us": float((i * 37) % 101)} for i in range(100)]
    panel = profile_panel("deep", many, 101.0)
    names = panel.figure["layout"]["yaxis"]["ticktext"]
    assert len(names) == 40
    assert [int(name[1:]) for name in names] == sorted(int(name[1:]) for name in names)
    least = min(many[int(name[1:])]["us"] for name in names)
    assert all(node["us"] <= least for node in many if node["name"] not in names)
    assert "60 shorter ones" in panel.note


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.01, 0.99), st.floats(1e-3, 1e4), st.booleans()),
        min_size=2,
        max_size=12,
    )
)
def test_any_rows_make_a_figure(values: list[tuple[float, float, bool]]) -> None:
    rows = [
        row(f"r{i}", f"row {i}", accuracy, ms, 10, file="x" if own else None, pareto=own,
            bits=[2, 2] if own else None)
        for i, (accuracy, ms, own) in enumerate(values)
    ]  # fmt: skip
    figure = pareto_panel(rows, 3.0).figure
    low, high = figure["layout"]["xaxis"]["range"]
    bottom, top = figure["layout"]["yaxis"]["range"]
    for accuracy, ms, _ in values:
        assert low < math.log10(ms) < high
        assert bottom < 100 * accuracy < top
    labels = [len(t["text"]) for t in figure["data"] if "text" in t]
    assert sum(labels) == len(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2534, "0.253"), (1.9986, "2.00"), (24.83, "24.8"), (130.4, "130"), (0.0123, "0.0123"),
     (None, "–"), (math.nan, "–")],
)  # fmt: skip
def test_milliseconds_have_three_digits(value: float | None, text: str) -> None:
    assert milliseconds(value) == text


# ------------------------------------------------------------------------------ snippets


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    from foveate.engine import compile as compile_network

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    compile_network(net, torch.zeros(1, 3, 8, 6)).save(tmp_path / "it's.fvt")
    monkeypatch.chdir(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6), np.uint8)
    names: dict[str, Any] = {"pictures": pictures}
    network = summary()["network"]
    exec(python_snippet("it's.fvt", network, 2), names)  # noqa: S102 - our own page
    mean, std = (torch.tensor(network[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        wanted = net((torch.from_numpy(pictures).float() / 255 - mean) / std).argmax(1)
    assert names["labels"].tolist() == wanted.tolist()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_the_cpp_snippet_compiles(tmp_path: Path) -> None:
    (tmp_path / "snippet.cpp").write_text(cpp_snippet('we"ird\\.fvt', summary()["network"]))
    done = subprocess.run(
        ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
         f"-I{ROOT / 'native'}", str(tmp_path / "snippet.cpp")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_layers_are_listed_once_with_their_bits_in_every_width() -> None:
    report = ShrinkReport.of(summary())
    assert report.widths == ["w4a4", "w2a2"]
    assert [(x.path, x.bits, x.kept) for x in report.layers] == [
        ("conv1", ["float", "float"], True),
        ("relu1", ["", ""], False),
        ("conv2", ["4/4", "2/2"], False),
    ]
