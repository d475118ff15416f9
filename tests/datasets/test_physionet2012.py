"""PhysioNet 2012 in both forms against values written down by hand, and against damage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.physionet2012 import (
    MEASURED,
    PhysioNet2012,
    fill_gaps,
    load,
    split,
)
from foveate.errors import FoveateError
from make_miniatures import health as mini

STAYS = mini.some_stays(8)
TRAIN = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    mini.write_set(folder / "physionet2012", "a", STAYS)
    return folder


def test_hourly_means_by_hand(texts):
    data = PhysioNet2012(texts, ("a",))
    assert data.hourly.shape == (8, 48, 37)
    assert data.labels.tolist() == [stay.died for stay in STAYS]
    assert data.records.tolist() == [stay.record for stay in STAYS]
    hr = data.hourly[0, :, MEASURED.index("HR")]
    assert hr[1] == 75  # 70 and 80 within the same hour
    assert hr[47] == 102  # 48:00 belongs to the last hour
    assert np.isnan(np.delete(hr, [1, 47])).all()  # the -5 at 02:00 is no value
    assert np.isnan(data.hourly[0, :, MEASURED.index("Temp")]).all()
    assert np.isnan(data.hourly[0, :, MEASURED.index("Weight")]).all()  # -1
    assert data.hourly[1, 0, MEASURED.index("Weight")] == 80.5
    np.testing.assert_array_equal(data.static[0], [54, math.nan, math.nan, 4])


def by_hand(stays: list[mini.Stay], train: list[int]) -> np.ndarray:
    """The builder again, hour by hour and value by value."""
    x = np.full((len(stays), 48, 44), np.nan)
    for i, stay in enumerate(stays):
        for k, name in enumerate(MEASURED):
            for hour in range(48):
                values = [
                    v
                    for m, n, v in stay.events
                    if n == name and v >= 0 and min(m // 60, 47) == hour
                ]
                if values:
                    x[i, hour, k] = sum(values) / len(values)
    first = [{n: v for _, n, v in reversed(stay.events)} for stay in stays]
    for k in range(37):
        known = [x[i, h, k] for i in train for h in range(48) if not np.isnan(x[i, h, k])]
        mean = sum(known) / len(known) if known else 0.0
        for i in range(len(stays)):
            last = mean
            for hour in range(48):
                last = last if np.isnan(x[i, hour, k]) else x[i, hour, k]
                x[i, hour, k] = last
    for k, name in ((37, "Age"), (38, "Gender"), (39, "Height")):
        known = [first[i][name] for i in train if first[i][name] >= 0]
        mean = sum(known) / len(known)
        instead = float(mean >= 0.5) if name == "Gender" else mean
        for i in range(len(stays)):
            x[i, :, k] = first[i][name] if first[i][name] >= 0 else instead
    for i in range(len(stays)):
        x[i, :, 40:] = [first[i]["ICUType"] == kind for kind in (1, 2, 3, 4)]
    return x


def test_builder_by_hand_and_from_both_forms(texts, tmp_path):
    """The specification's demand: the same X from the text files and from the event list."""
    x, y, names = load(texts, sets=("a",), train=TRAIN)
    assert x.dtype == np.float32
    assert names[:37] == MEASURED
    assert names[37:] == ("Age", "Gender", "Height", *(f"ICUType={k}" for k in (1, 2, 3, 4)))
    np.testing.assert_allclose(x, by_hand(STAYS, TRAIN), rtol=1e-6)
    mini.write_event_list(tmp_path / "health" / "physionet2012_set_a.npz", STAYS[::-1])
    again, labels, _ = load(tmp_path, sets=("a",), train=TRAIN)
    np.testing.assert_array_equal(again, x)
    assert labels.tolist() == y.tolist()


def test_only_training_stays_fill_gaps(texts):
    """Checklist 9: nothing of validation or test enters a statistic."""
    data = PhysioNet2012(texts, ("a",))
    before, _ = data.features(TRAIN)
    for row in set(range(8)) - set(TRAIN):
        data.hourly[row] *= 3
        data.static[row, :3] += 1
    after, _ = data.features(TRAIN)
    np.testing.assert_array_equal(after[TRAIN], before[TRAIN])
    gap = np.isnan(data.hourly[0]).all(0)
    np.testing.assert_array_equal(after[0][:, :37][:, gap], before[0][:, :37][:, gap])


@pytest.mark.parametrize("train", [np.ones(8, bool), [0.5, 1.5], [], [-1], [8], [[0]]])
def test_training_stays_are_indices_and_no_mask(texts, train):
    data = PhysioNet2012(texts, ("a",))
    with pytest.raises(FoveateError, match="train expects indices"):
        data.features(train)
    with pytest.raises(FoveateError, match="train expects indices"):
        fill_gaps(data.hourly, train)


def test_columns_can_be_left_raw(texts):
    data = PhysioNet2012(texts, ("a",))
    raw, names = data.features(TRAIN, static=False, impute="none")
    assert (raw.shape, names) == ((8, 48, 37), MEASURED)
    np.testing.assert_array_equal(raw, data.hourly)
    raw[:] = 0
    assert np.isnan(data.hourly).any()  # a copy


def test_sets_follow_each_other(texts, tmp_path):
    mini.write_set(tmp_path, "a", STAYS)
    mini.write_event_list(tmp_path / "physionet2012_set_b.npz", mini.some_stays(3, 7))
    both = PhysioNet2012(tmp_path)
    assert both.records.tolist() == [s.record for s in STAYS] + [7, 8, 9]
    assert len(both) == 11
    assert PhysioNet2012.card.find(tmp_path).present


def test_split_is_the_authors():
    """Sizes as published; drawn by scikit-learn as their code does (P)."""
    from sklearn.model_selection import train_test_split

    parts = split(8000)
    assert [len(part) for part in parts] == [5120, 1280, 1600]
    assert len(set(np.concatenate(parts).tolist())) == 8000
    rest, test = train_test_split(list(range(8000)), test_size=0.2, random_state=42)
    train, val = train_test_split(rest, test_size=0.2, random_state=42)
    assert [part.tolist() for part in parts] == [train, val, test]
    with pytest.raises(FoveateError, match="4 samples cannot be divided"):
        split(4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(1, 4), t=st.integers(1, 6), f=st.integers(1, 3))
def test_gaps_are_filled_forward_then_by_the_mean(seed, n, t, f):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((n, t, f)) < 0.5, np.nan, rng.normal(size=(n, t, f))).astype(np.float32)
    filled = fill_gaps(x, [0])
    for i in range(n):
        for k in range(f):
            known = x[0, :, k][~np.isnan(x[0, :, k])]
            last = known.mean(dtype=np.float64) if known.size else 0.0
            for step in range(t):
                last = last if np.isnan(x[i, step, k]) else x[i, step, k]
                assert filled[i, step, k] == pytest.approx(last, rel=1e-6)


def test_real_files_have_the_counts_of_the_specification(shared_data):
    """8000 stays, 81.3 % of hourly cells missing, 14.0 % died (V)."""
    if not PhysioNet2012.card.find(shared_data).present:
        pytest.skip("physionet2012 is not below the shared data")
    data = PhysioNet2012(shared_data)
    assert data.hourly.shape == (8000, 48, 37)
    assert np.isnan(data.hourly).mean() == pytest.approx(0.813, abs=5e-4)
    assert data.labels.mean() == pytest.approx(0.140, abs=5e-4)


# --- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("set-a/132540.txt", "Time,", "Tim,", "its first line is 'Tim,Parameter,Value'"),
        ("set-a/132540.txt", "00:00,Age", "0:0,Age", "line 3 of .*132540.txt"),
        ("set-a/132540.txt", "Age", "Wisdom", "a parameter of the challenge"),
        ("set-a/132540.txt", "80.5", "heavy", "a number were expected"),
        ("set-a/132540.txt", "80.5", "nan", "no finite numbers"),
        ("set-a/132540.txt", "00:00,Age", "49:00,Age", "times outside of 00:00 to 48:00"),
        ("set-a/132540.txt", "00:00,Age", "9" * 30 + ":00,Age", "line 3 of .*132540.txt"),
        ("set-a/132540.txt", "00:00,Age", "00:75,Age", "line 3 of .*132540.txt"),
        ("Outcomes-a.txt", ",1\n", ",2\n", "labels other than 0 and 1"),
        ("Outcomes-a.txt", "132540,6", "132539,6", "names a stay twice"),
        ("Outcomes-a.txt", "132540,6", "132540,six", "line 3 of .*six integers"),
        ("Outcomes-a.txt", "132540,6", "5,6", "cannot read .*5.txt"),
    ],
)
def test_damaged_texts_are_one_sentence(tmp_path, file, old, new, sentence):
    mini.write_set(tmp_path, "a", STAYS)
    path = tmp_path / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(FoveateError, match=sentence) as error:
        PhysioNet2012(tmp_path, ("a",))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("record", np.zeros(3, np.int32), "no event list"),
        ("value", np.zeros(3, np.int32), "no event list"),
        ("outcome_cols", np.array(["RecordID", "a", "b", "c", "d", "Length"]), "no event list"),
        ("params", np.array(["Wisdom"] * 20), "no event list"),
        ("param", None, "no event list"),
        ("record", None, "events of stays without outcome"),
    ],
)
def test_damaged_event_lists_are_one_sentence(tmp_path, name, value, sentence):
    path = tmp_path / "physionet2012_set_a.npz"
    mini.write_event_list(path, STAYS)
    with np.load(path) as kept:
        arrays = dict(kept)
    arrays[name] = arrays[name] + 100 if value is None else value
    np.savez(path, **arrays)
    with pytest.raises(FoveateError, match=sentence):
        PhysioNet2012(tmp_path, ("a",))


def test_what_is_missing_is_named(tmp_path, texts):
    with pytest.raises(FoveateError, match=r"is not below .* see https://physionet.org"):
        PhysioNet2012(tmp_path)
    with pytest.raises(FoveateError, match=r"neither Outcomes-b.txt .* nor physionet2012_set_b"):
        PhysioNet2012(texts)
    with pytest.raises(FoveateError, match="sets a, b and c, each once"):
        PhysioNet2012(texts, ("a", "a"))
    data = PhysioNet2012(texts, ("a",))
    with pytest.raises(FoveateError, match="impute is 'ffill_mean' or 'none'"):
        data.features(TRAIN, impute="zeros")
    for train in ([], [8], [[1]]):
        with pytest.raises(FoveateError, match=r"indices \(n,\) of samples from 0 to 7"):
            data.features(train)
    with pytest.raises(FoveateError, match="fill_gaps expects"):
        fill_gaps(np.zeros((2, 2)), [0])
