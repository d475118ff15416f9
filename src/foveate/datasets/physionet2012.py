"""PhysioNet Challenge 2012: 48 hours of intensive care, and whether the stay ended in death.

Silva et al. (2012). Two forms of the same content are read:

- the official one: ``set-a/132539.txt`` and so on, one file per stay with lines
  ``Time,Parameter,Value`` (time ``HH:MM`` from 00:00 to 48:00), and ``Outcomes-a.txt``, whose last
  column is the label,
- an event list per set, ``physionet2012_set_a.npz``: ``record, minute, param, value`` of every
  event, ``params``, ``outcomes`` and ``outcome_cols``.

What is made of them, here `(D)`, for the authors of the condensation paper ship only the result of
their own builder (47 features, recipe unknown):

1. hourly means of the 37 measured parameters; the last hour takes 48:00 too;
2. a value below zero counts as missing (-1 marks unknown weights, heights and genders);
3. forward fill, then the mean of the parameter's hourly values over the *training* stays;
4. Age, Gender, Height and four ICUType columns, repeated over time; missing ones become the
   training mean, or for Gender the commoner value.

That is ``(N, 48, 44)`` in clinical units, not normalised. `split` is the division into 5,120, 1,280
and 1,600 stays that the authors' code draws (P).

>>> x, y, names = load(root)  # doctest: +SKIP
>>> train, val, test = split(len(y))  # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.npz import read_npz
from foveate.errors import FoveateError

__all__ = ["HOURS", "MEASURED", "STATIC", "PhysioNet2012", "fill_gaps", "load", "split"]

HOURS = 48
MEASURED = (
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine"),
    *("DiasABP", "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP"),
    *("MechVent", "Mg", "NIDiasABP", "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2", "Platelets"),
    *("RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC", "Weight"),
    "pH",
)
"""The 37 parameters measured over time."""
STATIC = ("Age", "Gender", "Height", "ICUType")
"""What is known on admission."""

MAX_BYTES = 1 << 30  # of one array of the event list
_MAX_TEXT = 4 << 20  # of one stay or table of outcomes; the largest official ones have 100 kB
_ICU_TYPES = (1, 2, 3, 4)
_LABEL = "In-hospital_death"

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class _Events(NamedTuple):
    """One set: of every event the stay (0 .. N-1), minute, parameter and value; ids and labels."""

    stay: Ints
    minute: Ints
    param: Ints  # index into MEASURED + STATIC
    value: Floats
    records: Ints
    labels: Ints


class PhysioNet2012:
    """The stays of one or more sets, as hourly means and values on admission.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    sets
        Letters of the sets, in this order; within a set stays are in the order of their numbers.

    Attributes
    ----------
    hourly
        ``(N, 48, 37)`` float32, order of `MEASURED`; NaN where nothing was measured.
    static
        ``(N, 4)`` float32, order of `STATIC`; NaN where unknown.
    labels
        ``(N,)`` int64, 1: died in hospital.
    records
        ``(N,)`` int64, RecordID.

    Raises
    ------
    FoveateError
        A wanted set is missing, or a file is damaged.
    """

    card = DataCard(
        name="physionet2012",
        title="PhysioNet Challenge 2012, sets a and b",
        task="hospital mortality from time series",
        licence="ODC-By 1.0 (as remembered)",
        size="4,000 + 4,000 intensive-care stays, 41 parameters",
        url="https://physionet.org/content/challenge-2012/",
        citation="I. Silva et al., Predicting In-Hospital Mortality of ICU Patients, CinC 2012",
        layout=(
            "physionet2012/set-{a,b}/RECORD.txt and Outcomes-{a,b}.txt, or "
            "health/physionet2012_set_{a,b}.npz (record, minute, param, value, params, outcomes, "
            "outcome_cols)"
        ),
        kinds={
            "stays or event lists": (
                "set-[ab]/[0-9]*.txt",
                "physionet2012_set_[ab].npz",
            ),
            "outcomes": ("Outcomes-[ab].txt", "physionet2012_set_[ab].npz"),
        },
        folders=("physionet2012", "challenge-2012", "health"),
        classes=("survived", "died in hospital"),
        splits={"train": "5,120 stays", "val": "1,280 stays", "test": "1,600 stays"},
        loader="foveate.datasets.physionet2012.PhysioNet2012",
    )

    def __init__(self, root: Path | str, sets: Sequence[str] = ("a", "b")) -> None:
        if not sets or not set(sets) <= set("abc") or len(set(sets)) < len(sets):
            raise FoveateError(f"physionet2012 has the sets a, b and c, each once, got {sets}")
        folder = self.card.find(root).path
        if folder is None:
            raise FoveateError(
                f"{self.card.title} is not below {root}; expected {self.card.layout}; see "
                f"{self.card.url}"
            )
        parts = [self._read(folder, letter) for letter in sets]
        self.hourly = np.concatenate([_hourly(part) for part in parts])
        self.static = np.concatenate([_static(part) for part in parts])
        self.labels: Ints = np.concatenate([part.labels for part in parts])
        self.records: Ints = np.concatenate([part.records for part in parts])

    @staticmethod
    def _read(folder: Path, letter: str) -> _Events:
        if (folder / f"Outcomes-{letter}.txt").is_file():
            return _read_texts(folder, letter)
        path = folder / f"physionet2012_set_{letter}.npz"
        if path.is_file():
            return _read_event_list(path)
        raise FoveateError(
            f"there is neither Outcomes-{letter}.txt (with set-{letter}/) nor {path.name} in "
            f"{folder}; get set {letter} from {PhysioNet2012.card.url}"
        )

    def __len__(self) -> int:
        return len(self.labels)

    def features(
        self,
        train: npt.ArrayLike | None = None,
        static: bool = True,
        impute: Literal["ffill_mean", "none"] = "ffill_mean",
    ) -> tuple[Floats, tuple[str, ...]]:
        """``(N, 48, 44)`` float32 in clinical units, or 37 columns, and the columns' names.

        Parameters
        ----------
        train
            Indices of the stays whose means fill the gaps; None: those of `split`.
        static
            Append the seven columns of what is known on admission.
        impute
            ``none`` leaves NaN in the measured columns.
        """
        if impute not in ("ffill_mean", "none"):
            raise FoveateError(f"impute is 'ffill_mean' or 'none', got {impute!r}")
        rows = split(len(self))[0] if train is None else _indices(train, len(self))
        x = self.hourly
        if impute == "ffill_mean":
            x = fill_gaps(x, rows)
        if not static:
            return x.copy() if x is self.hourly else x, MEASURED
        age, gender, height, icu = self.static.T
        known = gender[rows][~np.isnan(gender[rows])]
        columns = [
            np.where(np.isnan(age), _mean(age[rows]), age),
            np.where(np.isnan(gender), float(np.mean(known) >= 0.5) if known.size else 0.0, gender),
            np.where(np.isnan(height), _mean(height[rows]), height),
            *(icu == kind for kind in _ICU_TYPES),
        ]
        constant = np.stack(columns, 1).astype(np.float32)[:, None].repeat(HOURS, 1)
        names = (*MEASURED, *STATIC[:3], *(f"ICUType={kind}" for kind in _ICU_TYPES))
        return np.concatenate([x, constant], 2), names


def load(
    root: Path | str,
    static: bool = True,
    impute: Literal["ffill_mean", "none"] = "ffill_mean",
    sets: Sequence[str] = ("a", "b"),
    train: npt.ArrayLike | None = None,
) -> tuple[Floats, Ints, tuple[str, ...]]:
    """X ``(N, 48, F)`` in clinical units, y ``(N,)`` and F names; see `PhysioNet2012`."""
    stays = PhysioNet2012(root, sets)
    x, names = stays.features(train, static, impute)
    return x, stays.labels, names


def split(count: int, seed: int = 42) -> tuple[Ints, Ints, Ints]:
    """Indices of train, val and test as the authors draw them: 20 % test, of the rest 20 % val (P).

    Raises
    ------
    FoveateError
        Fewer than 5 samples, which leave a part empty.
    """
    if count < 5:
        raise FoveateError(f"{count} samples cannot be divided into train, val and test; give 5")
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(count), test_size=0.2, random_state=seed)
    train, val = train_test_split(rest, test_size=0.2, random_state=seed)
    return train, val, test


def fill_gaps(x: Floats, train: npt.ArrayLike) -> Floats:
    """Fill NaN of ``(N, T, F)``: forward in time, then by the mean of the feature over `train`.

    The mean is that of the values that *were* measured. A feature that no training sample has
    becomes 0.

    Parameters
    ----------
    train
        Indices of the training samples.
    """
    if x.ndim != 3:
        raise FoveateError(f"fill_gaps expects x (N, T, F), got {x.shape}")
    rows = _indices(train, len(x))
    measured = ~np.isnan(x)
    steps = np.arange(x.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(measured, steps, 0), axis=1)
    filled = np.take_along_axis(x, last, 1)
    means = np.array([_mean(x[rows, :, k]) for k in range(x.shape[2])], np.float32)
    return np.where(np.isnan(filled), means, filled)


def _indices(train: npt.ArrayLike, count: int) -> Ints:
    """Indices of training samples; a mask, read as indices, would name the first two alone."""
    rows = np.asarray(train)
    if (
        rows.dtype.kind not in "iu"
        or rows.ndim != 1
        or not rows.size
        or not 0 <= int(rows.min()) <= int(rows.max()) < count
    ):
        raise FoveateError(
            f"train expects indices (n,) of samples from 0 to {count - 1}, got {rows.dtype} "
            f"{rows.shape}; of a mask give np.flatnonzero(mask)"
        )
    return rows.astype(np.int64)


def _mean(values: npt.NDArray[np.floating]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if known.size else 0.0


# ---------------------------------------------------------------------------- events to arrays


def _hourly(events: _Events) -> Floats:
    count = len(events.records)
    used = (events.param < len(MEASURED)) & (events.value >= 0)
    hour = np.minimum(events.minute[used] // 60, HOURS - 1)
    cell = (events.stay[used] * HOURS + hour) * len(MEASURED) + events.param[used]
    size = count * HOURS * len(MEASURED)
    number = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=events.value[used].astype(np.float64), minlength=size)
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return mean.reshape(count, HOURS, len(MEASURED)).astype(np.float32)


def _static(events: _Events) -> Floats:
    found = np.full((len(events.records), len(STATIC)), np.nan, np.float32)
    used = (events.param >= len(MEASURED)) & (events.value >= 0)
    found[events.stay[used], events.param[used] - len(MEASURED)] = events.value[used]
    return found


def _check(events: _Events, where: Path) -> _Events:
    """What both forms must fulfil."""
    problem = ""
    if not len(events.records):
        problem = "holds no stay"
    elif len(np.unique(events.records)) < len(events.records):
        problem = "names a stay twice"
    elif not set(np.unique(events.labels)) <= {0, 1}:
        problem = f"has labels other than 0 and 1 in {_LABEL}"
    elif not np.isfinite(events.value).all():
        problem = "has values that are no finite numbers"
    elif events.minute.size and not 0 <= events.minute.min() <= events.minute.max() <= 60 * HOURS:
        problem = f"has times outside of 00:00 to {HOURS}:00"
    if problem:
        raise FoveateError(f"{where} {problem}; copy it again")
    return events


def _read_event_list(path: Path) -> _Events:
    names = ("record", "minute", "param", "value", "params", "outcomes", "outcome_cols")
    content = read_npz(path, names, MAX_BYTES)
    record, minute, param, value = (content[name] for name in names[:4])
    params, outcomes = [str(p) for p in content["params"].ravel()], content["outcomes"]
    columns = [str(c) for c in content["outcome_cols"].ravel()]
    known = (*MEASURED, *STATIC)
    if (
        any(a.ndim != 1 or a.size != record.size for a in (record, minute, param, value))
        or any(a.dtype.kind not in "iu" for a in (record, minute, param, outcomes))
        or value.dtype.kind != "f"
        or outcomes.ndim != 2
        or outcomes.shape[1] != len(columns)
        or not columns
        or columns[-1] != _LABEL
        or not set(params) <= set(known)
        or (param.size and not 0 <= int(param.min()) <= int(param.max()) < len(params))
    ):
        raise FoveateError(
            f"{path} is no event list: expected record, minute and param of integers, value of "
            f"floats, all of one length, known names in params, and outcomes (N, columns) that "
            f"end with {_LABEL}; make it again"
        )
    order = np.argsort(outcomes[:, 0], kind="stable")
    records: Ints = outcomes[order, 0].astype(np.int64)
    stay = np.searchsorted(records, record)
    if record.size and (
        not records.size or not np.array_equal(records[stay.clip(max=records.size - 1)], record)
    ):
        raise FoveateError(f"{path} has events of stays without outcome; make it again")
    index = np.array([known.index(name) for name in params], np.int64)
    return _check(
        _Events(
            stay.astype(np.int64),
            minute.astype(np.int64),
            index[param.astype(np.int64)] if param.size else param.astype(np.int64),
            value.astype(np.float32),
            records,
            outcomes[order, -1].astype(np.int64),
        ),
        path,
    )


def _lines(path: Path, header: str) -> list[str]:
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise ValueError(f"it has {path.stat().st_size} bytes, at most {_MAX_TEXT} expected")
        lines = path.read_text("ascii").split("\n")
        if lines[0].strip() != header:
            raise ValueError(f"its first line is {lines[0][:60]!r} and not {header!r}")
    except (OSError, ValueError) as error:
        raise FoveateError(f"cannot read {path} ({error}); copy it again") from error
    return lines[1:]


def _read_texts(folder: Path, letter: str) -> _Events:
    path = folder / f"Outcomes-{letter}.txt"
    rows = []
    header = f"RecordID,SAPS-I,SOFA,Length_of_stay,Survival,{_LABEL}"
    for number, line in enumerate(_lines(path, header), 2):
        if not line.strip():
            continue
        words = line.strip().split(",")
        if len(words) != 6 or not all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
            raise FoveateError(
                f"line {number} of {path} is {line[:60]!r} where six integers were expected; "
                "copy it again"
            )
        rows.append((int(words[0]), int(words[-1])))
    rows.sort()
    index = {name: k for k, name in enumerate((*MEASURED, *STATIC))}
    stay: list[int] = []
    minute: list[int] = []
    param: list[int] = []
    value: list[float] = []
    for position, (record, _) in enumerate(rows):
        file = folder / f"set-{letter}" / f"{record}.txt"
        for number, line in enumerate(_lines(file, "Time,Parameter,Value"), 2):
            time, _, rest = line.strip().partition(",")
            name, _, text = rest.partition(",")
            if not line.strip() or name in ("RecordID", ""):  # some stays have nameless lines (M)
                continue
            try:
                if not re.fullmatch(r"[0-9]{2}:[0-5][0-9]", time):
                    raise ValueError
                minute.append(60 * int(time[:2]) + int(time[3:]))
                param.append(index[name])
                value.append(float(text))
            except (ValueError, KeyError) as error:
                raise FoveateError(
                    f"line {number} of {file} is {line[:60]!r} where HH:MM, a parameter of the "
                    "challenge and a number were expected; copy it again"
                ) from error
            stay.append(position)
    return _check(
        _Events(
            np.array(stay, np.int64),
            np.array(minute, np.int64),
            np.array(param, np.int64),
            np.array(value, np.float32),
            np.array([record for record, _ in rows], np.int64),
            np.array([label for _, label in rows], np.int64),
        ),
        path,
    )
