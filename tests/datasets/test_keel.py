"""KEEL/UCI tables against files written here, and the real ones against scikit-learn's copies."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets import keel
from foveate.datasets.keel import Table, load, names
from foveate.errors import FoveateError


def pack(path: Path, **tables: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in tables.items():
            archive.writestr(f"{name}.dat", text)


def write(folder: Path, text: str, name: str = "t.dat") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


MIXED = "b, 3083.5, u, -1, yes\na,.5,v,2e1,no\nb,+7,u,0,no\n"


@pytest.mark.parametrize("packed", [True, False])
def test_numbers_texts_and_classes(tmp_path: Path, packed: bool):
    if packed:
        pack(tmp_path / "tables" / "keel_uci_dat.zip", mixed=MIXED)
    else:
        write(tmp_path / "tables", MIXED, "mixed.csv")
    table = load("mixed", tmp_path)
    assert table.x.dtype == np.float64
    assert table.y.dtype == np.int64
    assert table.features == ("1=a", "1=b", "2", "3=u", "3=v", "4")
    assert table.x.tolist() == [
        [0, 1, 3083.5, 1, 0, -1],
        [1, 0, 0.5, 0, 1, 20],
        [0, 1, 7, 1, 0, 0],
    ]
    assert table.classes == ("no", "yes")
    assert table.y.tolist() == [1, 0, 0]


def test_classes_that_are_numbers_stand_in_their_order(tmp_path: Path):
    table = load("t", write(tmp_path, "0,10\n0,9\n0,-1\n0,9\n"))
    assert table.classes == ("-1", "9", "10")
    assert table.y.tolist() == [2, 1, 0, 1]


def test_keels_own_header_names_the_columns(tmp_path: Path):
    text = (
        "@relation little\n@attribute Age integer [1, 9]\n@attribute 'two words' {a, b}\n"
        "@ATTRIBUTE Class{x,y}\n@inputs Age\n@outputs Class\n@data\n1, a, x\n2, b, y\n"
    )
    table = load("t", write(tmp_path, "\ufeff" + text))
    assert table.features == ("Age", "two words=a", "two words=b")
    wider = text.replace("1, a, x", "1, 1, a, x").replace("2, b, y", "2, 2, b, y")
    with pytest.raises(FoveateError, match="header names 3 columns and its rows have 4"):
        load("t", write(tmp_path, wider))


@pytest.mark.parametrize("place", [".", "tables", "keel-uci", "archive"])
def test_places(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "data"
    folder = root / ("tables" if place == "archive" else place)
    pack(folder / "keel_uci_dat.zip", one="1,a\n2,b\n", two="1,c\n2,d\n")
    asked = folder / "keel_uci_dat.zip" if place == "archive" else root
    assert names(asked) == ("one", "two")
    assert load("two", asked).classes == ("c", "d")
    assert Table.card.find(root).present
    if place != "archive":
        monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
        assert load("one").classes == ("a", "b")
        write(folder, "1,p\n2,q\n", "one.dat")  # a user's own file goes before the archive
        assert load("one").classes == ("p", "q")


def test_a_draw_is_fixed_and_keeps_the_features_of_the_table(tmp_path: Path):
    text = "".join(f"{i},{'rare' if i == 17 else 'common'},{i % 2}\n" for i in range(100))
    write(tmp_path, text)
    whole, draw = load("t", tmp_path), load("t", tmp_path, rows=30)
    rows = draw.x[:, 0].astype(int)
    assert len(set(rows.tolist())) == 30
    assert rows.tolist() == sorted(rows)
    assert np.array_equal(draw.x, whole.x[rows])
    assert np.array_equal(draw.y, whole.y[rows])
    assert draw.features == whole.features
    assert np.array_equal(load("t", tmp_path, rows=30).x, draw.x)
    assert not np.array_equal(load("t", tmp_path, rows=30, seed=1).x, draw.x)
    assert len(load("t", tmp_path, rows=100).y) == len(load("t", tmp_path, rows=101).y) == 100
    # Known raw stream of PCG64: numpy promises to keep it.
    raw = np.random.PCG64(5).random_raw(100)
    smallest = sorted(range(100), key=lambda i: raw[i])[:3]
    assert load("t", tmp_path, rows=3, seed=5).x[:, 0].tolist() == sorted(smallest)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(10**15), 10**15),
            st.sampled_from(["red", "green", "blue"]),
        ),
        min_size=2,
        max_size=12,
    )
)
def test_every_number_comes_back(tmp_path_factory: pytest.TempPathFactory, rows):
    text = "".join(f"{a!r}, {b},{c} ,{i % 2}\r\n" for i, (a, b, c) in enumerate(rows))
    table = load("t", write(tmp_path_factory.mktemp("tables"), text))
    assert table.x[:, 0].tolist() == [a for a, _, _ in rows]
    assert table.x[:, 1].tolist() == [b for _, b, _ in rows]
    words = sorted({c for _, _, c in rows})
    assert [words[k] for k in table.x[:, 2:].argmax(1)] == [c for _, _, c in rows]
    assert (table.x[:, 2:].sum(1) == 1).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it has no row"),
        ("@relation empty\n\n", "it has no row"),
        ("1\n2\n", "first row has no comma"),
        ("1,2,a\n\n1,a\n", "line 3 has 2 cells where 3"),
        ("1,?,a\n1,2,b\n", "line 1 misses the value of column 2"),
        ("1,,a\n1,2,b\n", "line 1 misses the value of column 2"),
        ("1,nan,a\n1,2,b\n", "line 1 misses the value of column 2"),
        ("1,a\n1,a\n", "all rows have the class 'a'"),
        ("width,class\n1,a\n2,b\n", "remove the line of column names"),
        ("1e999,a\n1,b\n", "too large for float64"),
        ("".join(f"w{i},{i % 2}\n" for i in range(70)), "column 1 has 70 different texts"),
        ("".join(f"1,{i}\n" for i in range(100)), "last column has 100 different values"),
        ('1,"a\n2",b\n', "goes over more than one line"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, sentence: str):
    with pytest.raises(FoveateError, match=sentence) as error:
        load("t", write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "'t'" in str(error.value)


def test_absent_tables_and_odd_names(tmp_path: Path):
    pack(tmp_path / "tables" / "keel_uci_dat.zip", wine="1,a\n2,b\n")
    with pytest.raises(FoveateError, match=r"'beer' is not below .*\(there are: wine\)"):
        load("beer", tmp_path)
    with pytest.raises(FoveateError, match="there are: none"):
        load("beer", tmp_path / "nowhere")
    for name in ("../wine", "", "a/b", "wine.dat"):
        with pytest.raises(FoveateError, match="cannot be the name of a table"):
            load(name, tmp_path)
    with pytest.raises(FoveateError, match="rows of at least 1"):
        load("wine", tmp_path, rows=0)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path, monkeypatch):
    """A bomb in the archive, a large file, a lying directory, damage: one sentence each."""
    pack(tmp_path / "keel_uci_dat.zip", t="1,a\n2,b\n" * 100)
    monkeypatch.setattr(keel, "MAX_BYTES", 700)
    with pytest.raises(FoveateError, match=r"t\.dat in .* has 800 bytes, at most 700"):
        load("t", tmp_path)
    write(tmp_path / "tables", "1,a\n2,b\n" * 100)
    with pytest.raises(FoveateError, match="has 800 bytes, at most 700"):
        load("t", tmp_path)
    monkeypatch.undo()

    (tmp_path / "tables" / "t.dat").write_bytes(b"1,\xff\n2,b\n")
    with pytest.raises(FoveateError, match=r"cannot read .* copy it again"):
        load("t", tmp_path)
    (tmp_path / "tables" / "t.dat").unlink()
    whole = (tmp_path / "keel_uci_dat.zip").read_bytes()
    at = whole.rindex(b"PK\x01\x02")  # the directory claims another size than the member has
    lying = bytearray(whole)
    lying[at + 24 : at + 28] = (900).to_bytes(4, "little")
    (tmp_path / "keel_uci_dat.zip").write_bytes(lying)
    with pytest.raises(FoveateError, match="copy it again"):
        load("t", tmp_path)
    (tmp_path / "keel_uci_dat.zip").write_bytes(b"PK nonsense")
    with pytest.raises(FoveateError, match=r"cannot read .* as an archive"):
        load("t", tmp_path)
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for index in range(1001):
            archive.writestr(f"{index}.dat", "")
    (tmp_path / "keel_uci_dat.zip").write_bytes(many.getvalue())
    with pytest.raises(FoveateError, match="it has 1001 members"):
        names(tmp_path)


def test_a_table_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(keel, "MAX_VALUES", 5)
    with pytest.raises(FoveateError, match="it would take 2 x 3 numbers"):
        load("t", write(tmp_path, "1,p,a\n2,q,b\n"))


COUNTS = {  # UCI's pages: rows, columns, rows of each class
    "wine": (178, 13, [59, 71, 48]),
    "wdbc": (569, 30, [357, 212]),
    "sonar": (208, 60, [111, 97]),
    "ionosphere": (351, 33, [126, 225]),  # UCI's 34 less the column that is 0 throughout
    "iris": (150, 4, [50] * 3),
    "heart": (270, 13, [150, 120]),
    "australian": (690, 14, [383, 307]),
    "pima": (768, 8, [500, 268]),
    "vehicle": (846, 18, [218, 212, 217, 199]),
    "segment": (2310, 19, [330] * 7),
    "vowel": (990, 13, [90] * 11),
    "bupa": (345, 6, [145, 200]),
    "german": (1000, 61, [700, 300]),  # 7 numbers and 54 texts
    "saheart": (462, 10, [302, 160]),  # 8 numbers, one column of two texts
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_tables_have_the_published_counts(shared_data: Path, name: str):
    rows, columns, classes = COUNTS[name]
    table = load(name, shared_data)
    assert table.x.shape == (rows, columns)
    assert np.isfinite(table.x).all()
    assert np.bincount(table.y).tolist() == classes
    assert len(table.features) == columns


def test_real_archive_has_24_tables_of_which_13_are_binary(shared_data: Path):
    found = names(shared_data)
    assert len(found) == 24
    small = [name for name in found if name not in {"letter", "optdigits", "penbased", "satimage"}]
    two = [name for name in small if len(load(name, shared_data).classes) == 2]
    assert len(two) == 13


def test_real_wine_iris_and_cancer_are_scikit_learns(shared_data: Path):
    """Another library's copy of the same tables, rows in any order."""
    for name, theirs in (
        ("wine", sklearn.datasets.load_wine()),
        ("iris", sklearn.datasets.load_iris()),
    ):
        ours = load(name, shared_data)
        both = []
        for x, y in ((ours.x, ours.y), (theirs.data, theirs.target)):
            both.append(
                Counter((*map(float, row), int(label)) for row, label in zip(x, y, strict=True))
            )
        assert (both[0] & both[1]).total() >= 0.98 * len(ours.y)  # iris is known in two versions
    ours, theirs = load("wdbc", shared_data), sklearn.datasets.load_breast_cancer()
    assert np.allclose(
        np.sort(ours.x[:, 0]), np.sort(theirs.data[:, 0]), atol=5e-3
    )  # KEEL's are rounded


@pytest.mark.parametrize("cell", ["inf", "-Inf", "Infinity", "1e999"])
def test_infinite_numbers_make_no_category(tmp_path: Path, cell: str):
    with pytest.raises(FoveateError, match=r"too large|infinite"):
        load("t", write(tmp_path, f"1,a\n2,b\n{cell},a\n4,b\n"))


def test_one_number_written_in_two_ways_is_one_class(tmp_path: Path):
    table = load("t", write(tmp_path, "5,1\n6,0\n7,1.0\n8,0\n9,+1\n"))
    assert table.classes == ("0", "1")
    assert table.y.tolist() == [1, 0, 1, 0, 1]
