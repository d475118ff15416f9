"""The page of `foveate watch` as a file: structure, escaping, tolerance, size, contrast."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.report import page as page_module
from foveate.report.page import (
    EMBEDDED_VIDEO_BYTES,
    PERSON_COLOURS,
    clock,
    image_data_uri,
    json_for_script,
    number,
    page_video,
)
from foveate.report.plots import Refusal, in_view, panel_sections, presence_panel, thin
from foveate.report.watch import WatchReport, write_watch_page
from foveate.streams.timeline import Timeline

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "\"><svg onload=window.hacked=1>' onfocus='window.hacked=1",
    "{{ 7*7 }}{% for x in y %}",
    "javascript:window.hacked=1",
    "<!--<script>",
    "a\u2028b\u2029c & <b>bold</b> %{x} @p0",
    "undecodable \udcff name",
]
POSTER = b"\xff\xd8\xff\xe0 not really a picture"


class Tree(HTMLParser):
    """Elements, attributes, and the text of scripts, as an HTML parser sees them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self._open = tag
            if tag == "script":
                self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._open is None:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def data(self) -> dict[str, Any]:
        (text,) = (t for a, t in self.scripts if a.get("id") == "page-data")
        return json.loads(text)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Tree:
    tree = Tree()
    tree.feed(path.read_text(encoding="utf-8"))
    return tree


def person(track: int, rate: float | None, reason: str | None = None) -> dict[str, Any]:
    return {
        "track": track,
        "seen_from_s": 0.0,
        "seen_to_s": 10.0,
        "visible_s": 10.0,
        "heart_rate": {
            "bpm": rate,
            "low": 51.2,
            "high": 55.4,
            "confidence": 0.93,
            "snr_db": 5.8,
            "accepted": rate is not None,
            "reason": reason,
            "method": "pos",
            "windows_accepted": 3,
            "windows_total": 5,
        },
        "hrv": {"metrics": {"rmssd_ms": 41.3, "strange": 3.5}, "reason": None},
        "respiration": {"bpm": 14.5, "confidence": 0.5, "reason": None},
    }


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "foveate": "0.1.0",
        "source": {
            "name": "face.mp4",
            "width": 640,
            "height": 480,
            "fps": 30.0,
            "duration_s": 10.0,
        },
        "simulated": False,
        "people": [person(0, 53.1)],
        "refusals": [
            {"what": "heart rate", "track": 0, "from_s": 4.0, "to_s": 6.0, "reason": "moved"}
        ],
        "compute": {"wall_s": 4.0, "frames_decoded": 300, "frames_detected": 75},
        "settings": {"window_s": 8.0},
        "notes": ["a note"],
        "medical": "not a medical device",
    } | changes


def timeline(track: int = 0) -> Timeline:
    time_s = np.arange(0.0, 10.0, 0.5)
    rate = 53 + np.sin(time_s)
    rate[(time_s >= 4) & (time_s <= 6)] = np.nan
    frames = np.arange(300) / 30
    return Timeline.concat(
        [
            Timeline.of("pulse.hr_bpm", track, time_s, rate),
            Timeline.of("pulse.hr_low_bpm", track, time_s, rate - 2),
            Timeline.of("pulse.hr_high_bpm", track, time_s, rate + 2),
            Timeline.of("pulse.hr_candidate_bpm", track, time_s, 53 + np.sin(time_s)),
            Timeline.of("pulse.bvp", track, frames, np.sin(2 * np.pi * 0.9 * frames)),
            Timeline.of("face.visible", track, frames, np.ones(300)),
            Timeline.of("respiration.rate_bpm", track, time_s, np.full(20, 14.5)),
            Timeline.of("au.AU12_intensity", track, frames, frames % 1),
        ]
    )


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the 4.8 MB of plotly.js, where a test writes many."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


def finite(values: list[float | None]) -> list[float]:
    return [v for v in values if v is not None]


# --- the file as a whole -------------------------------------------------------------------------


def test_page_is_one_file_that_refers_to_nothing_outside(tmp_path: Path) -> None:
    video = tmp_path / "annotated.mp4"
    video.write_bytes(b"some video bytes")
    path = write_watch_page(tmp_path / "report.html", summary(), timeline(), video, POSTER)
    tree = read(path)
    for tag, attributes in tree.elements:
        for name in ("src", "href", "poster", "action", "srcset"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("data:", "#", "./")), (tag, name, value[:60])
    assert (
        tree.of("video")[0]["src"]
        == "data:video/mp4;base64," + base64.b64encode(b"some video bytes").decode()
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_policy_forbids_the_network_and_allows_exactly_the_scripts_inside(tmp_path: Path) -> None:
    path = write_watch_page(tmp_path / "report.html", summary(), timeline(), None, None)
    tree = read(path)
    (policy,) = (
        m["content"] for m in tree.of("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "http" not in policy
    assert "connect-src" not in rules
    programs = [text for attributes, text in tree.scripts if "type" not in attributes]
    digests = {
        "'sha256-" + base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() + "'"
        for t in programs
    }
    assert set(rules["script-src"].split()) == digests
    assert len(programs) == 3
    # no attribute handlers, which such a policy would silence anyway
    assert not [a for _, attrs in tree.elements for a in attrs if a.startswith("on")]


def test_words_of_the_summary_are_on_the_page(tmp_path: Path, light: None) -> None:
    words = read(write_watch_page(tmp_path / "r.html", summary(), timeline(), None, None)).words
    for expected in (
        "face.mp4",
        "640 × 480",
        "Person 1",
        "53",
        "between 51.2 and 55.4",
        "high confidence",
        "3 of 5",
        "5.8 dB",
        "RMSSD 41.3 ms",
        "strange 3.5",
        "14.5 per minute",
        "moved",
        "a note",
        "looked for faces 75 25 %",
        "not a medical device",
    ):
        assert expected in words, expected
    assert "Simulated" not in words


def test_simulated_runs_say_so(tmp_path: Path, light: None) -> None:
    report = summary(simulated=True, simulation_note="drawn by a program")
    words = read(write_watch_page(tmp_path / "r.html", report, timeline(), None, None)).words
    assert "Simulated. drawn by a program" in words
    report = summary(simulated=True)
    words = read(write_watch_page(tmp_path / "r.html", report, timeline(), None, None)).words
    assert "Simulated. What this page shows was generated" in words


def test_a_refused_heart_rate_shows_its_reason_and_no_number(tmp_path: Path, light: None) -> None:
    refused = person(0, 87.0, "too little light")
    refused["heart_rate"]["accepted"] = False
    tree = read(
        write_watch_page(tmp_path / "r.html", summary(people=[refused]), Timeline(), None, None)
    )
    assert "too little light" in tree.words
    assert "not reported" in tree.words
    assert "87" not in tree.words
    assert "51.2" not in tree.words


def test_nobody_found_is_said_kindly(tmp_path: Path, light: None) -> None:
    report = summary(people=[], refusals=[])
    tree = read(write_watch_page(tmp_path / "r.html", report, Timeline(), None, POSTER))
    assert "No face was found in this video" in tree.words
    assert "a curve to go there" not in tree.words
    assert tree.data["panels"] == []


def test_an_empty_summary_still_gives_a_page(tmp_path: Path, light: None) -> None:
    tree = read(write_watch_page(tmp_path / "r.html", {}, Timeline(), None, None))
    assert "Untitled video" in tree.words
    tree = read(write_watch_page(tmp_path / "r.html", {}, timeline(), None, None))
    assert "Person 1" in tree.words  # known from the timeline alone


def test_numbers_of_numpy_are_numbers(tmp_path: Path, light: None) -> None:
    guest = person(0, None)
    guest["heart_rate"] |= {"bpm": np.float32(61.0), "low": np.float64(59.0), "accepted": np.True_}
    report = summary(people=[guest], settings={"hop_s": np.float32(0.5), "huge": 10**400})
    words = read(write_watch_page(tmp_path / "r.html", report, Timeline(), None, None)).words
    assert "61 bpm" in words
    assert "hop s 0.5" in words
    guest["heart_rate"]["accepted"] = np.False_
    words = read(write_watch_page(tmp_path / "r.html", report, Timeline(), None, None)).words
    assert "61 bpm" not in words


def test_people_of_the_timeline_and_of_the_summary_are_joined() -> None:
    report = WatchReport.of(summary(people=[person(2, 60.0)]), timeline(track=0))
    assert [p.track for p in report.people] == [0, 2]
    assert report.people[0].heart_rate.value is None
    assert report.people[1].heart_rate.value == 60.0


KEYS = [
    "source",
    "people",
    "refusals",
    "compute",
    "settings",
    "notes",
    "track",
    "heart_rate",
    "bpm",
    "low",
    "high",
    "hrv",
    "metrics",
    "reason",
    "what",
    "from_s",
    "to_s",
    "confidence",
    "duration_s",
    "name",
    "respiration",
    "windows_total",
    "frames_decoded",
    "frames_detected",
    "simulated",
    "simulation_note",
]
JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(HOSTILE),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=40,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(odd=st.dictionaries(st.sampled_from(sorted(summary())), JSON_LIKE))
def test_no_summary_breaks_the_page(tmp_path: Path, light: None, odd: dict[str, Any]) -> None:
    tree = read(write_watch_page(tmp_path / "r.html", odd, timeline(), None, None))
    assert len(tree.scripts) == 4
    assert tree.data["duration_s"] > 0


# --- hostile text --------------------------------------------------------------------------------


def everywhere(text: str) -> tuple[dict[str, Any], Timeline]:
    """A report that holds `text` in every place where text can stand."""
    guest = person(0, None, text)
    guest["heart_rate"]["method"] = text
    guest["hrv"] = {"metrics": {text: 1.5}, "reason": text}
    guest["respiration"] = {"bpm": None, "reason": text}
    other = person(1, 60.0)
    other["hrv"] = {"metrics": None, "reason": text}
    report = summary(
        foveate=text,
        source={"name": text, "path": text, "codec": text, text: text},
        simulated=True,
        simulation_note=text,
        people=[guest, other],
        refusals=[{"what": "heart rate " + text, "track": 0, "from_s": 1, "reason": text}],
        compute={"policy": text, "frames_decoded": 9, "frames_detected": 3},
        settings={text: text, "list": [text], "map": {text: text}},
        notes=[text],
        medical=text,
    )
    signals = [timeline()]
    if text.isprintable() and "\udcff" not in text:
        signals.append(Timeline.of(text, 0, [0, 1], [0, 1]))
        signals.append(Timeline.of(f"{text}.{text}_ms", 0, [0, 1], [0, 1]))
    return report, Timeline.concat(signals)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_and_no_attribute(
    tmp_path: Path, light: None, text: str
) -> None:
    def shape(words: str) -> Counter[tuple[str, tuple[str, ...]]]:
        report, signals = everywhere(words)
        tree = read(write_watch_page(tmp_path / "r.html", report, signals, None, POSTER))
        return Counter((tag, tuple(attributes)) for tag, attributes in tree.elements)

    benign = "harmless" if text.isprintable() and "\udcff" not in text else "harm\u2028less"
    assert shape(text) == shape(benign)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_reasons_reach_the_plots_as_text(text: str) -> None:
    # plotly.js reads <b>, <a href> ... in its labels: nothing of the reason may survive as a tag
    sections = panel_sections(timeline(), 10.0, [Refusal("heart rate", 0, 4, 6, text)])
    labels = [t["text"] for t in sections[0].panels[0].figure["data"] if "text" in t]
    assert labels
    for label in labels:
        foreign = label.split("</b><br>", 1)[1].replace("<br>", "")
        assert "<" not in foreign
        assert ">" not in foreign


@given(st.text() | st.sampled_from(HOSTILE))
@settings(max_examples=80, deadline=None)
def test_json_in_a_script_is_the_same_json_and_cannot_leave(text: str) -> None:
    written = json_for_script({"a": [text, 1.5, None]})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {"a": [text.encode("utf-8", "replace").decode(), 1.5, None]}


def test_json_refuses_what_json_has_no_word_for() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_for_script([float("nan")])


def test_program_text_that_would_end_its_element_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "x = '</script>'")
    with pytest.raises(ValueError, match="script"):
        write_watch_page(tmp_path / "r.html", summary(), timeline(), None, None)
    assert list(tmp_path.iterdir()) == []


# --- video and poster ----------------------------------------------------------------------------


def test_a_large_video_is_linked_beside_the_page(tmp_path: Path, light: None) -> None:
    video = tmp_path / "an odd: name #1.mp4"
    with video.open("wb") as file:
        file.truncate(EMBEDDED_VIDEO_BYTES + 1)
    path = write_watch_page(tmp_path / "r.html", summary(), timeline(), video, None)
    tree = read(path)
    assert tree.of("video")[0]["src"] == "./an%20odd%3A%20name%20%231.mp4"
    assert "too large to be part of this page" in tree.words
    assert path.stat().st_size < 1e6
    with video.open("wb") as file:
        file.truncate(EMBEDDED_VIDEO_BYTES)
    assert page_video(video, path).embedded == video


def test_a_small_video_is_in_the_page_byte_for_byte(tmp_path: Path, light: None) -> None:
    video = tmp_path / "film.mp4"
    content = np.random.default_rng(0).bytes((3 << 18) * 2 + 1)  # ends inside a piece
    video.write_bytes(content)
    path = write_watch_page(tmp_path / "r.html", summary(), timeline(), video, None)
    source = read(path).of("video")[0]["src"]
    assert source.startswith("data:video/mp4;base64,")
    assert base64.b64decode(source.partition(",")[2], validate=True) == content


def test_what_cannot_be_shown_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    with pytest.raises(FoveateError, match="cannot read the video"):
        write_watch_page(page, summary(), timeline(), tmp_path / "gone.mp4", None)
    (tmp_path / "film.avi").write_bytes(b"")
    with pytest.raises(FoveateError, match=r"browsers play \.mp4"):
        write_watch_page(page, summary(), timeline(), tmp_path / "film.avi", None)
    with pytest.raises(FoveateError, match="JPEG, PNG or WebP"):
        write_watch_page(page, summary(), timeline(), None, b"<svg onload=...>")
    assert not page.exists()


def test_poster_kinds() -> None:
    assert image_data_uri(b"\xff\xd8\xff").startswith("data:image/jpeg;base64,")
    assert image_data_uri(b"\x89PNG\r\n\x1a\n").startswith("data:image/png;base64,")
    assert image_data_uri(b"RIFF\0\0\0\0WEBP").startswith("data:image/webp;base64,")


# --- figures -------------------------------------------------------------------------------------


def resolved(value: Any, key: str = "") -> Any:
    """The figure with real colours for tokens, as the page's script draws it."""
    if isinstance(value, dict):
        return {k: resolved(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [resolved(v) for v in value]
    if isinstance(value, str) and key.endswith("color") and value.startswith("@"):
        return "rgba(1,2,3,0.5)"
    return value


def test_every_figure_obeys_the_schema_of_plotly(tmp_path: Path, light: None) -> None:
    two = Timeline.concat([timeline(0), timeline(1)])
    tree = read(write_watch_page(tmp_path / "r.html", summary(), two, None, None))
    panels = tree.data["panels"]
    assert len(panels) == 6  # rate, two waves, breathing, action unit, presence
    for panel in panels:
        figure = resolved(panel["figure"])
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises on an unknown property
        for readout in panel["readouts"]:
            assert panel["figure"]["data"][readout["trace"]]["mode"].startswith("lines")


def test_heart_rate_has_its_band_its_gaps_and_its_refusals() -> None:
    signals = timeline()
    times, rate, _ = signals.select("pulse.hr_bpm", 0)
    panel = panel_sections(signals, 10.0, [Refusal("heart rate", 0, 4.0, 6.0, "moved")])[0].panels[
        0
    ]
    curve = panel.figure["data"][panel.readouts[0]["trace"]]
    assert curve["x"] == times.tolist()
    assert [v is None for v in curve["y"]] == np.isnan(rate).tolist()
    np.testing.assert_allclose(finite(curve["y"]), rate[np.isfinite(rate)], rtol=1e-5)
    band = next(t for t in panel.figure["data"] if t.get("fill") == "toself" and "text" not in t)
    assert band["x"].count(None) == 1  # two pieces, before and after the refusal
    assert max(finite(band["y"])) == pytest.approx(np.nanmax(rate) + 2, rel=1e-5)
    hatched = [t for t in panel.figure["data"] if "fillpattern" in t]
    assert len(hatched) == 1
    assert set(hatched[0]["x"]) == {4.0, 6.0}
    assert "moved" in hatched[0]["text"]
    hollow = next(t for t in panel.figure["data"] if t["mode"] == "markers")
    assert hollow["x"] == times[np.isnan(rate)].tolist()


def test_a_gap_that_no_refusal_explains_is_hatched_too() -> None:
    panel = panel_sections(timeline(), 10.0, [])[0].panels[0]
    (hatched,) = (t for t in panel.figure["data"] if "fillpattern" in t)
    assert (min(hatched["x"]), max(hatched["x"])) == (3.75, 6.25)
    assert "no reason recorded" in hatched["text"]


def test_refusals_of_other_readings_stay_out_of_the_heart_rate() -> None:
    odd = [
        Refusal("heart-rate variability", 0, 0, 10, "too short"),
        Refusal("respiration", 0, 1, 2, "too short"),
        Refusal("heart rate", 7, 0, 10, "somebody else"),
    ]
    sections = {s.title: s.panels[0] for s in panel_sections(timeline(), 10.0, odd)}
    hatched = [t for t in sections["Heart rate"].figure["data"] if "fillpattern" in t]
    assert [t["text"].count("no reason") for t in hatched] == [1]
    hatched = [t for t in sections["Breathing"].figure["data"] if "fillpattern" in t]
    assert [set(t["x"]) for t in hatched] == [{1, 2}]


def test_several_people_have_lanes_for_their_refusals() -> None:
    two = Timeline.concat([timeline(0), timeline(1)])
    refusals = [Refusal("heart rate", track, 4.0, 6.0, f"reason {track}") for track in (0, 1)]
    panel = panel_sections(two, 10.0, refusals)[0].panels[0]
    hatched = [t for t in panel.figure["data"] if "fillpattern" in t]
    spans = sorted((min(t["y"]), max(t["y"])) for t in hatched)
    assert spans[0][1] < spans[1][0]  # one above the other
    assert {t["yaxis"] for t in hatched} == {"y2"}


def test_thousands_of_reasons_stay_a_bounded_number_of_traces() -> None:
    refusals = [Refusal("heart rate", 0, i / 200, (i + 1) / 200, f"no {i}") for i in range(2000)]
    panel = panel_sections(timeline(), 10.0, refusals)[0].panels[0]
    assert len(panel.figure["data"]) < 150


def test_unknown_signals_show_up_by_themselves() -> None:
    signals = Timeline.concat(
        [
            Timeline.of("gaze.speed_deg", 0, [0, 1], [3, 4]),
            Timeline.of("gaze.speed_deg", -1, [0, 1], [3, 4]),
            Timeline.of("plain", 1, [0, 1], [float("inf"), 4]),
        ]
    )
    sections = {s.title: s.panels for s in panel_sections(signals, 1.0, [])}
    assert sections["Gaze"][0].title == "Speed"
    assert sections["Gaze"][0].unit == "°"
    assert [r["name"] for r in sections["Gaze"][0].readouts] == ["Whole video", "Person 1"]
    assert sections["Plain"][0].figure["data"][0]["y"] == [None, 4.0]


def test_lines_do_not_bridge_time_without_samples() -> None:
    time_s = np.concatenate([np.arange(0, 3, 0.1), np.arange(6, 9, 0.1)])
    signals = Timeline.of("pulse.bvp", 0, time_s, np.ones(len(time_s)))
    curve = panel_sections(signals, 9.0, [])[0].panels[0].figure["data"][0]
    (hole,) = (i for i, v in enumerate(curve["y"]) if v is None)
    assert 2.9 < curve["x"][hole] < 6


def test_long_curves_are_thinned_and_the_page_stays_small(tmp_path: Path, light: None) -> None:
    time_s = np.arange(200_000) / 30
    wave = np.sin(time_s)
    wave[123_456] = 9.0
    signals = Timeline.concat(
        Timeline.of(name, 0, time_s, wave)
        for name in ("pulse.bvp", "pulse.hr_bpm", "pulse.skin_g", "face.visible")
    )
    path = write_watch_page(tmp_path / "r.html", summary(), signals, None, None)
    tree = read(path)
    for panel in tree.data["panels"]:
        for trace in panel["figure"]["data"]:
            assert len(trace["x"]) <= 4000
    waves = [t for p in tree.data["panels"] for t in p["figure"]["data"] if 9.0 in t.get("y", [])]
    assert len(waves) == 3  # the one spike is in every curve
    assert path.stat().st_size < 600_000
    assert "thinned" in tree.words


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 700),
    rows=st.integers(1, 3),
    limit=st.integers(11, 200),
    holes=st.floats(0, 1),
)
def test_thinning_keeps_extremes_ends_and_gaps(
    seed: int, count: int, rows: int, limit: int, holes: float
) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, count))
    start = int(random.integers(0, count))
    values[:, start : start + int(holes * count)] = np.nan
    kept = thin(values, limit)
    assert len(kept) <= max(limit, 0)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == count - 1
    if count <= limit:
        assert len(kept) == count
    for row in values:
        if np.isfinite(row).any():
            assert np.nanmin(row[kept]) == np.nanmin(row)
            assert np.nanmax(row[kept]) == np.nanmax(row)
        # a drawn line never crosses a gap unless the gap lies within one bucket
        if np.isnan(row).any():
            assert np.isnan(row[kept]).any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), max_size=40))
def test_spans_in_view_are_the_runs_of_visible_frames(seen: list[float]) -> None:
    time_s = np.arange(len(seen)) * 0.5
    covered = np.zeros(len(seen), bool)
    spans = in_view(time_s, np.array(seen))
    for start, stop in spans:
        covered |= (time_s >= start) & (time_s < stop - 1e-6)
    if sum(v == 1 for v in seen) > 1 and all(
        b - a == 1 for a, b in zip(*[[i for i, v in enumerate(seen) if v == 1]] * 2, strict=True)
    ):
        assert covered.tolist() == [v == 1 for v in seen]
    runs = sum(v == 1 and (i == 0 or seen[i - 1] != 1) for i, v in enumerate(seen))
    assert len(spans) == runs


def test_missing_rows_end_a_span_and_a_damaged_frame_does_not() -> None:
    frames = [i for i in range(300) if i not in {50, 51} and not 100 <= i < 160]
    spans = in_view(np.array(frames) / 30, np.ones(len(frames)))
    np.testing.assert_allclose(spans, [(0, 100 / 30), (160 / 30, 10)], atol=1e-6)


def test_presence_has_one_lane_per_person() -> None:
    panel = presence_panel({0: [(0.0, 2.0), (3.0, 4.0)], 3: [(1.0, 4.0)]}, 4.0)
    assert panel.figure["layout"]["yaxis"]["ticktext"] == ["P4", "P1"]  # from below
    assert panel.figure["data"][1]["base"] == [0.0, 3.0]
    assert panel.figure["data"][1]["x"] == [2.0, 1.0]
    assert panel.description == "Person 1: 3.0 s in view. Person 4: 3.0 s in view."


# --- words, numbers, colours ---------------------------------------------------------------------


def test_numbers_and_times_as_people_read_them() -> None:
    assert number(1234.56, 1) == "1\u202f234.6"
    assert number(-2.0) == "\u22122.0"
    assert number(float("nan")) == number(None) == "–"
    assert [clock(s) for s in (0, 9.96, 59.96, 61.25, 3661.2)] == [
        "0:00.0",
        "0:10.0",
        "1:00.0",
        "1:01.2",
        "1:01:01",
    ]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_reaches_contrast_aa_on_light_and_dark() -> None:
    css = (Path(page_module.__file__).parent / "templates" / "page.css").read_text()
    pairs = {
        name: colours
        for name, *colours in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", css)
    }
    assert {"ground", "surface", "ink", "muted", "accent"} <= set(pairs)
    for mode in (0, 1):
        for text in (pairs["ink"], pairs["muted"], pairs["accent"], *PERSON_COLOURS):
            for below in ("ground", "surface"):
                assert contrast(text[mode], pairs[below][mode]) >= 4.5, (text, below, mode)
        assert contrast(pairs["warn"][mode], pairs["warn-ground"][mode]) >= 4.5
        assert contrast(pairs["ink"][mode], pairs["sunken"][mode]) >= 4.5
