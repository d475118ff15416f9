"""Timelines survive the disk, whatever is in them; damaged files say so."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.streams.timeline import Timeline, TimelineWriter

ROWS = st.lists(
    st.tuples(
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(-(2**31), 2**31 - 1),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
        st.floats(allow_infinity=False),
        st.floats(width=32, allow_infinity=False),
    ),
    max_size=20,
)
COLUMNS = ["time_s", "track", "signal", "value", "quality"]
ONE_ROW = {name: [1.0] for name in COLUMNS}


def table(rows: list[tuple[float, int, str, float, float]]) -> Timeline:
    schema = [pl.Float64, pl.Int32, pl.String, pl.Float64, pl.Float32]
    return Timeline(
        pl.DataFrame(rows, schema=dict(zip(COLUMNS, schema, strict=True)), orient="row"),
        {"source": "é.mp4", "simulated": True, "n": [1, None, 2.5]},
    )


def same(a: object, b: object) -> bool:
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=ROWS)
def test_round_trip(tmp_path: Path, suffix: str, rows: list) -> None:
    path = table(rows).write(tmp_path / f"t{suffix}")
    back = Timeline.read(path)
    assert back.frame.columns == COLUMNS
    got = list(back.frame.iter_rows())
    assert len(got) == len(rows)
    for want, have in zip(rows, got, strict=True):
        want32 = (*want[:4], float(np.float32(want[4])))
        assert all(same(w, h) for w, h in zip(want32, have, strict=True)), (want, have)
    if suffix == ".parquet":
        assert back.metadata == {"source": "é.mp4", "simulated": True, "n": [1, None, 2.5]}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_csv_and_jsonl_are_readable_by_anyone(tmp_path: Path) -> None:
    import csv

    timeline = Timeline.of("pulse.hr_bpm", 2, [0.5, 1.5], [61.25, float("nan")], 0.5)
    with timeline.write(tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "time_s": "0.5",
        "track": "2",
        "signal": "pulse.hr_bpm",
        "value": "61.25",
        "quality": "0.5",
    }
    lines = timeline.write(tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "time_s": 0.5,
        "track": 2,
        "signal": "pulse.hr_bpm",
        "value": 61.25,
        "quality": 0.5,
    }
    assert json.loads(lines[1])["value"] is None


def test_select_sorts_by_time_and_filters() -> None:
    both = Timeline.concat(
        [
            Timeline.of("a", 0, [2.0, 1.0], [20, 10]),
            Timeline.of("a", 1, [1.5], [99]),
            Timeline.of("b", -1, [0.0], [5]),
        ]
    )
    time_s, value, quality = both.select("a", 0)
    assert time_s.tolist() == [1.0, 2.0]
    assert value.tolist() == [10.0, 20.0]
    assert np.isnan(quality).all()
    assert both.select("a")[1].tolist() == [10.0, 99.0, 20.0]
    assert both.tracks == [0, 1]
    assert both.signals == ["a", "b"]
    assert len(Timeline.concat([])) == 0


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"time_s": [1.0]}),
        pl.DataFrame({**ONE_ROW, "extra": [1]}),
        pl.DataFrame({**ONE_ROW, "track": ["x"]}),
        pl.DataFrame({**ONE_ROW, "track": [None]}),
        pl.DataFrame({**ONE_ROW, "time_s": [float("nan")]}),
        pl.DataFrame({**ONE_ROW, "track": [2**40]}),
    ],
)
def test_wrong_tables_are_refused(frame: pl.DataFrame) -> None:
    with pytest.raises(FoveateError):
        Timeline(frame)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(FoveateError, match="equal length"):
        Timeline.of("a", 0, [1.0, 2.0], [1.0])
    with pytest.raises(FoveateError, match="quality"):
        Timeline.of("a", 0, [1.0, 2.0], [1.0, 2.0], [0.1, 0.2, 0.3])


def test_null_value_means_nan() -> None:
    frame = pl.DataFrame({**ONE_ROW, "value": [None], "quality": [None]})
    assert np.isnan(Timeline(frame).select("1.0")[1]).all()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(ROWS, max_size=8), limit=st.integers(1, 30))
def test_writer_equals_concat(tmp_path: Path, parts: list, limit: int) -> None:
    timelines = [table(rows) for rows in parts]
    path = tmp_path / "w.parquet"
    with TimelineWriter(path, rows_in_memory=limit) as writer:
        writer.metadata["who"] = "me"
        for part in timelines:
            writer.add(part)
    back = Timeline.read(path)
    want = [row for rows in parts for row in rows]
    assert writer.rows == len(want)
    assert back.metadata == {"who": "me"}
    got = list(back.frame.iter_rows())
    assert [(r[0], r[1], r[2]) for r in got] == [(r[0], r[1], r[2]) for r in want]
    assert all(same(g[3], w[3]) for g, w in zip(got, want, strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["w.parquet"]


def test_writer_spills_to_disk(tmp_path: Path) -> None:
    with TimelineWriter(tmp_path / "w.parquet", rows_in_memory=10) as writer:
        for i in range(7):
            writer.add(Timeline.of("a", 0, np.arange(5.0) + i, np.arange(5.0)))
            assert writer._pending_rows < 10
        hidden = [p for p in tmp_path.rglob("*.parquet") if p.parent != tmp_path]
        assert len(hidden) == 3
    assert len(Timeline.read(tmp_path / "w.parquet")) == 35


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interrupted_writer_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "w.parquet"

    def run() -> None:
        with TimelineWriter(path, rows_in_memory=2) as writer:
            for i in range(5):
                writer.add(Timeline.of("a", 0, [float(i)], [1.0]))
            raise kind

    with pytest.raises(kind):
        run()
    assert list(tmp_path.iterdir()) == []
    Timeline.of("old", 0, [0.0], [1.0]).write(path)
    with pytest.raises(kind):
        run()
    assert Timeline.read(path).signals == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["w.parquet"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("kind", ["parquet", "csv", "spilled parts", "joined parts"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The system itself says no: whatever polars writes goes to a full device."""
    hundred = Timeline.of("pulse.hr_bpm", 0, np.arange(100.0), np.arange(100.0))

    def to_full_device(owner: type, name: str) -> None:
        usual = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, _, **how: usual(self, "/dev/full", **how))

    def spill_and_join() -> None:
        with TimelineWriter(tmp_path / "t.parquet", rows_in_memory=150) as writer:
            for _ in range(4):
                writer.add(hundred)

    if kind == "joined parts":
        to_full_device(pl.LazyFrame, "sink_parquet")
    else:
        to_full_device(pl.DataFrame, "write_csv" if kind == "csv" else "write_parquet")
    with pytest.raises(FoveateError, match=r"cannot write the timeline .*No space left") as caught:
        hundred.write(tmp_path / f"t.{kind}") if kind in ("parquet", "csv") else spill_and_join()
    assert "os error" not in str(caught.value)
    assert "free some space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    timeline = Timeline.of("a", 0, [0.0], [1.0])
    with pytest.raises(FoveateError):
        timeline.write(tmp_path / "file" / "t.parquet")
    with pytest.raises(FoveateError):
        TimelineWriter(tmp_path / "file" / "t.parquet")
    (tmp_path / "d.parquet").mkdir()
    with pytest.raises(FoveateError, match="folder"):
        timeline.write(tmp_path / "d.parquet")
    with pytest.raises(FoveateError, match=r"\.parquet, \.csv or \.jsonl"):
        timeline.write(tmp_path / "t.xlsx")
    assert not (tmp_path / "t.xlsx").exists()


@pytest.mark.parametrize(
    "metadata", ["[1, 2]", '"text"', "{", "[" * 100_000, '{"a": 1', "\N{GREEK SMALL LETTER PI}"]
)
def test_hostile_metadata(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "t.parquet"
    Timeline().frame.write_parquet(path, metadata={"foveate": metadata})
    with pytest.raises(FoveateError):
        Timeline.read(path)


def test_reading_what_is_not_there_or_no_timeline(tmp_path: Path) -> None:
    for name in ("none.parquet", ".", "t.txt"):
        (tmp_path / "t.txt").write_text("x")
        with pytest.raises(FoveateError):
            Timeline.read(tmp_path / name)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(FoveateError, match="columns"):
        Timeline.read(tmp_path / "other.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_hostile_bytes(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(5)
    whole = table([(i / 7, i % 3, f"s.{i % 4}", i * 1.5, 0.5) for i in range(60)])
    good = whole.write(tmp_path / f"good{suffix}").read_bytes()
    bad = tmp_path / f"bad{suffix}"
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            change = rng.randrange(4)
            if change == 0:
                data[at] = rng.randrange(256)
            elif change == 1:
                del data[at : at + rng.randrange(1, 60)]
            elif change == 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            else:
                data[at : at + 30] = bytes(30)
            data = data or bytearray(b"\0")
        bad.write_bytes(data)
        try:
            Timeline.read(bad)
        except FoveateError:
            refused += 1
    assert refused > 0
    bad.write_bytes(os.urandom(1000))
    with pytest.raises(FoveateError):
        Timeline.read(bad)
