"""`Timeline`: what was perceived, when, of whom, and how far to trust it.

The one table that every analyser writes and every report reads, in long form:

========== ======== =================================================================
column     type     meaning
========== ======== =================================================================
time_s     float64  seconds since the first frame
track      int32    person in view; -1 for a statement about the whole stream
signal     string   dotted name with the unit where one exists, e.g. ``pulse.hr_bpm``
value      float64  the value; NaN when the signal was looked for and refused
quality    float32  0 (worthless) .. 1 (sure); NaN when the analyser cannot say
========== ======== =================================================================

Parquet is the file format (with a metadata map beside the columns); CSV and JSON lines are sinks
for other programs: they carry the rows without the metadata, and JSON knows neither NaN nor
infinity (a value that is not finite comes back as NaN).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import polars as pl

from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = ["Timeline", "TimelineWriter"]

_SCHEMA: dict[str, pl.DataType] = {
    "time_s": pl.Float64(),
    "track": pl.Int32(),
    "signal": pl.String(),
    "value": pl.Float64(),
    "quality": pl.Float32(),
}
_META_KEY = "foveate"
# Damaged parquet makes polars panic, which is no `Exception`; metadata nested too deep recurses.
_UNREADABLE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,
    RecursionError,
)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Say in one sentence that the system refuses to write `path`, above all on a full disk."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        # polars wraps what the system says: "...: No space left on device (os error 28)"
        said = getattr(error, "strerror", None) or str(error)
        system = re.search(r"([^:]+) \(os error \d+\)", said)
        raise FoveateError(
            f"cannot write the timeline {path}: {system[1].strip() if system else said}; "
            "free some space or choose another place"
        ) from error


class Timeline:
    """Rows of (time, track, signal, value, quality) over a polars data frame.

    Parameters
    ----------
    frame
        A data frame with exactly the five columns; types are cast. None gives an empty timeline.
    metadata
        Facts about the whole timeline (source, simulated or not, versions): JSON values only.

    Raises
    ------
    FoveateError
        A column is missing, unknown or not convertible.
    """

    def __init__(
        self, frame: pl.DataFrame | None = None, metadata: Mapping[str, object] | None = None
    ) -> None:
        if frame is None:
            frame = pl.DataFrame(schema=_SCHEMA)
        if set(frame.columns) != set(_SCHEMA):
            raise FoveateError(
                f"a timeline has the columns {', '.join(_SCHEMA)}, "
                f"this table has {', '.join(frame.columns) or 'none'}"
            )
        try:
            frame = frame.select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())
        except pl.exceptions.PolarsError as error:
            raise FoveateError(f"a timeline column has the wrong type: {error}") from error
        # JSON has no NaN and writes null; in a timeline the two mean the same: refused, unknown.
        self.frame = frame.with_columns(pl.col("value", "quality").fill_null(float("nan")))
        for name in ("time_s", "track", "signal"):
            if self.frame[name].null_count():
                raise FoveateError(f"a timeline has a row without {name}; every row needs one")
        if not self.frame["time_s"].is_finite().all():
            raise FoveateError("a timeline has a time_s that is not finite; expected seconds")
        self.metadata: dict[str, object] = dict(metadata or {})

    @classmethod
    def of(
        cls,
        signal: str,
        track: int,
        time_s: npt.ArrayLike,
        value: npt.ArrayLike,
        quality: npt.ArrayLike | float = float("nan"),
    ) -> Timeline:
        """One signal of one track: arrays of equal length; `quality` may be one number for all."""
        times = np.atleast_1d(np.asarray(time_s, dtype=np.float64))
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if times.shape != values.shape or times.ndim != 1:
            raise FoveateError(
                f"signal {signal}: time has shape {times.shape}, value has shape {values.shape}; "
                "expected two vectors of equal length"
            )
        qualities = np.asarray(quality, dtype=np.float32)
        if qualities.ndim and qualities.shape != times.shape:
            raise FoveateError(
                f"signal {signal}: quality has shape {qualities.shape}, expected one number or "
                f"{times.shape} as time"
            )
        qualities = np.broadcast_to(qualities, times.shape)
        return cls(
            pl.DataFrame(
                {
                    "time_s": times,
                    "track": np.full(times.shape, track, dtype=np.int32),
                    "signal": pl.repeat(signal, len(times), dtype=pl.String(), eager=True),
                    "value": values,
                    "quality": np.ascontiguousarray(qualities),
                }
            )
        )

    @classmethod
    def concat(cls, parts: Iterable[Timeline]) -> Timeline:
        """All rows of `parts`; later metadata wins."""
        parts = list(parts)
        metadata: dict[str, object] = {}
        for part in parts:
            metadata.update(part.metadata)
        return cls(pl.concat([p.frame for p in parts]) if parts else None, metadata)

    def __len__(self) -> int:
        return self.frame.height

    @property
    def tracks(self) -> list[int]:
        """Numbers of the persons seen, ascending, without -1."""
        return sorted(t for t in self.frame["track"].unique().to_list() if t >= 0)

    @property
    def signals(self) -> list[str]:
        """Names of the signals present, in alphabetical order."""
        return sorted(self.frame["signal"].unique().to_list())

    def select(
        self, signal: str, track: int | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """``(time_s, value, quality)`` of one signal, in order of time."""
        rows = self.frame.filter(pl.col("signal") == signal)
        if track is not None:
            rows = rows.filter(pl.col("track") == track)
        rows = rows.sort("time_s")
        return rows["time_s"].to_numpy(), rows["value"].to_numpy(), rows["quality"].to_numpy()

    def write(self, path: str | Path) -> Path:
        """Write ``.parquet``, ``.csv`` or ``.jsonl`` by the suffix; whole or not at all.

        Raises
        ------
        FoveateError
            The suffix is unknown, or the system refuses (a full disk).
        """
        path = Path(path)
        with _one_sentence(path), write_whole(path) as temporary:
            if path.suffix == ".parquet":
                self.frame.write_parquet(temporary, metadata={_META_KEY: json.dumps(self.metadata)})
            elif path.suffix == ".csv":
                self.frame.write_csv(temporary)
            elif path.suffix == ".jsonl":
                self.frame.write_ndjson(temporary)
            else:
                raise FoveateError(
                    f"cannot write a timeline to {path}: the name must end in "
                    ".parquet, .csv or .jsonl"
                )
        return path

    @classmethod
    def read(cls, path: str | Path) -> Timeline:
        """Read what :meth:`write` wrote.

        Raises
        ------
        FoveateError
            The file is missing, damaged or not a timeline.
        """
        path = Path(path)
        if not path.is_file():
            raise FoveateError(f"no timeline at {path}")
        metadata: dict[str, object] = {}
        try:
            if path.suffix == ".parquet":
                frame = pl.read_parquet(path)
                raw = pl.read_parquet_metadata(path).get(_META_KEY)
                metadata = json.loads(raw) if raw else {}
                if not isinstance(metadata, dict):
                    raise ValueError("its metadata is not a map")
            elif path.suffix == ".csv":
                frame = pl.read_csv(path, schema_overrides=_SCHEMA)
            elif path.suffix == ".jsonl":
                frame = pl.read_ndjson(path, schema=_SCHEMA)
            else:
                raise FoveateError(f"{path} is not a timeline: expected .parquet, .csv or .jsonl")
        except _UNREADABLE as error:
            raise FoveateError(f"{path} is not a readable timeline: {error}") from error
        return cls(frame, metadata)


class TimelineWriter:
    """Writes a timeline of any length in bounded memory.

    Rows are collected to about `rows_in_memory`, spilled as numbered parts into a temporary
    folder beside the target, and streamed into one parquet file by :meth:`close`. Leaving the
    ``with`` block by an exception removes the parts and writes nothing.
    """

    def __init__(self, path: str | Path, rows_in_memory: int = 100_000) -> None:
        self.path = Path(path)
        self.metadata: dict[str, object] = {}
        self.rows = 0
        self._limit = rows_in_memory
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._parts = Path(tempfile.mkdtemp(prefix=".partial-timeline-", dir=self.path.parent))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FoveateError(
                f"cannot write the timeline {self.path}: {reason}; choose another place"
            ) from error
        self._count = 0

    def __enter__(self) -> TimelineWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            shutil.rmtree(self._parts, ignore_errors=True)

    def add(self, part: Timeline) -> None:
        """Append rows."""
        if len(part) == 0:
            return
        self._pending.append(part.frame)
        self._pending_rows += len(part)
        self.rows += len(part)
        if self._pending_rows >= self._limit:
            self._spill()

    def _spill(self) -> None:
        if self._pending:
            target = self._parts / f"{self._count:06d}.parquet"
            with _one_sentence(self.path):
                pl.concat(self._pending).write_parquet(target, compression="lz4")
            self._count += 1
            self._pending, self._pending_rows = [], 0

    def close(self) -> Path:
        """Write the file; the writer is spent afterwards.

        Raises
        ------
        FoveateError
            The system refuses (a full disk); then there is no file.
        """
        metadata = {_META_KEY: json.dumps(self.metadata)}
        parts: Sequence[Path] = sorted(self._parts.glob("*.parquet"))
        with _one_sentence(self.path), write_whole(self.path) as temporary:
            if parts:
                self._spill()
                parts = sorted(self._parts.glob("*.parquet"))
                pl.scan_parquet(parts).sink_parquet(temporary, metadata=metadata)
            else:
                frame = pl.concat(self._pending) if self._pending else pl.DataFrame(schema=_SCHEMA)
                frame.write_parquet(temporary, metadata=metadata)
        shutil.rmtree(self._parts, ignore_errors=True)
        return self.path
