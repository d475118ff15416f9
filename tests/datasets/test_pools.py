"""Pools of items in every layout, and everything that can be wrong with them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.datasets.pools import read_labels, read_pool
from foveate.datasets.tables import read_table
from foveate.errors import FoveateError


def png(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


# ------------------------------------------------------------------------------ folders


def test_a_folder_is_read_with_the_folders_below_it(tmp_path):
    root = tmp_path / "birds"
    png(root / "b.png", (250, 0, 0))
    png(root / "in" / "a.jpg", (0, 0, 250))
    png(root / ".hidden" / "c.png", (0, 0, 0))
    png(root / "._d.png", (0, 0, 0))
    png(root / "e.webp", (0, 0, 0))
    write(root / "notes.txt", "no picture")
    pool = read_pool(root)
    assert pool.ids == ("b.png", "in/a.jpg")
    assert pool.source == "birds"
    assert pool.numbers is None
    assert pool.has_pictures
    assert pool.path(1) == root / "in" / "a.jpg"
    assert pool.notes == ("1 .webp files were left out: .jpg and .png are read",)
    picture = pool.picture(0, 100)
    assert picture.shape == (8, 12, 3)
    assert (picture == (250, 0, 0)).all()
    assert pool.picture(0, 6).shape == (4, 6, 3)
    assert pool.values(0) == []
    with pytest.raises(KeyError):
        pool.place("nobody")


def test_pictures_are_shown_upright_in_eight_bits_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    wide = Image.new("RGB", (40, 20), (0, 0, 0))
    wide.paste((255, 255, 255), (0, 0, 20, 20))
    wide.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    deep = np.linspace(0, 60000, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    pool = read_pool(tmp_path)
    turned = pool.picture(pool.place("turned.jpg"), 100)
    assert turned.shape == (40, 20, 3)
    assert turned[:15].mean() > 240  # what was left is now above
    assert turned[-15:].mean() < 15
    deep_seen = pool.picture(pool.place("deep.png"), 100)
    assert (deep_seen[0, 0, 0], deep_seen[7, 7, 0]) == (0, 255)
    assert abs(int(deep_seen[4, 0, 0]) - 130) < 3
    assert (pool.picture(pool.place("clear.png"), 100) == 255).all()


def test_unreadable_pictures_are_named_all_at_once(tmp_path):
    for k in range(3):
        png(tmp_path / f"good{k}.png", (k, 0, 0))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"<svg onload='alert(1)'/>")
    with pytest.raises(FoveateError, match=r"2 of the 5 pictures .* empty.png, text.jpg; repair"):
        read_pool(tmp_path)


def test_a_picture_that_claims_to_be_gigantic_is_refused(tmp_path):
    png(tmp_path / "good.png", (0, 0, 0))
    whole = bytearray((tmp_path / "good.png").read_bytes())
    whole[16:24] = (1 << 16).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(bytes(whole))
    with pytest.raises(FoveateError, match=r"bomb\.png"):
        read_pool(tmp_path)


def test_a_pipe_is_no_picture_and_a_closed_folder_is_named(tmp_path, monkeypatch):
    root = tmp_path / "birds"
    png(root / "a.png", (1, 2, 3))
    png(root / "in" / "b.png", (1, 2, 3))
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "in":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(FoveateError, match=r"cannot look into .*in: Permission denied"):
            read_pool(root)
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(root / "c.png")  # to open it would wait for a writer
    with pytest.raises(FoveateError, match=r"cannot be read: c\.png"):
        read_pool(root)


def test_the_fingerprint_tells_pools_apart(tmp_path):
    for k in range(3):
        png(tmp_path / "one" / f"{k}.png", (k, 0, 0))
        png(tmp_path / "two" / f"{k}.png", (k, 0, 0))
    one, two = read_pool(tmp_path / "one"), read_pool(tmp_path / "two")
    assert one.fingerprint == two.fingerprint  # wherever it lies
    png(tmp_path / "two" / "3.png", (3, 0, 0))
    assert read_pool(tmp_path / "two").fingerprint != one.fingerprint
    a = read_pool(write(tmp_path / "a.csv", "id,v\nx,1\ny,2\n"))
    b = read_pool(write(tmp_path / "b.csv", "id,v\nx,1\ny,3\n"))
    c = read_pool(write(tmp_path / "c.csv", "id,v\nx,1.0\ny,2.0\n"))
    assert a.fingerprint == c.fingerprint != b.fingerprint


# ------------------------------------------------------------------------------ tables


def test_a_csv_keeps_ids_as_written_and_uses_every_column_of_numbers(tmp_path):
    pool = read_pool(
        write(tmp_path / "t.csv", "id,mass,word,label,flag\n007, 1.5 ,ü,x,1\n8,-2e3,b,y,0\n")
    )
    assert pool.ids == ("007", "8")
    assert pool.numbers.tolist() == [[1.5, 1.0], [-2000.0, 0.0]]
    assert pool.groups == (1, 1)
    assert not pool.has_pictures
    assert pool.picture(0, 10) is None
    assert pool.path(0) is None
    assert ("word", "ü") in pool.values(0)
    # the labels that somebody left in the table are neither shown nor learned from
    assert "label" not in dict(pool.values(0))
    assert any("word" in note for note in pool.notes)
    assert any("column label" in note for note in pool.notes)
    chosen = read_pool(tmp_path / "t.csv", id_column="word", columns=["flag"])
    assert chosen.ids == ("ü", "b")
    assert chosen.numbers.tolist() == [[1.0], [0.0]]
    assert read_pool(tmp_path / "t.csv", id_column="row", columns=["flag"]).ids == ("0", "1")


def test_parquet_with_embeddings_in_one_column(tmp_path):
    frame = pl.DataFrame(
        {
            "id": [11, 12, 13],
            "size": [1, 2, 3],
            "good": [True, False, True],
            "embedding": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            "name": ["a", None, "c"],
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    pool = read_pool(tmp_path / "t.parquet")
    assert pool.ids == ("11", "12", "13")
    assert pool.numbers.tolist() == [[1, 1, 1, 2], [2, 0, 3, 4], [3, 1, 5, 6]]
    assert pool.groups == (1, 1, 2)
    assert pool.values(1) == [("id", "12"), ("size", "2"), ("good", "False"), ("name", "")]
    ragged = frame.with_columns(embedding=pl.Series([[1.0], [1.0, 2.0], [1.0]]))
    ragged.write_parquet(tmp_path / "r.parquet")
    with pytest.raises(FoveateError, match=r"column 'embedding' have 1 to 2 numbers"):
        read_pool(tmp_path / "r.parquet")


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([b"\xff", b"b"]),
        pl.Series([1, 2]).cast(pl.Duration),
        pl.Series([["a"], ["b"]]),
        pl.Series([{"a": 1}, {"a": 2}]),
    ],
)
def test_ids_and_labels_are_words(tmp_path, column):
    path, words = tmp_path / "a.parquet", pl.Series(["a", "b"])
    pl.DataFrame({"id": column, "x": [1.0, 2.0]}).write_parquet(path)
    with pytest.raises(FoveateError, match=r"ids .*are texts or integers"):
        read_pool(path)
    for table in ({"id": column, "label": words}, {"id": words, "label": column}):
        pl.DataFrame(table).write_parquet(path)
        with pytest.raises(FoveateError, match="ids and labels are texts or integers"):
            read_labels(path)


def test_a_tsv(tmp_path):
    assert read_pool(write(tmp_path / "t.tsv", "id\tv\na\t1\nb\t2\n")).numbers.tolist() == [
        [1],
        [2],
    ]


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("id,v\na,1\nb,\nc,NaN\nd,inf\n", {}, r"3 of the 4 items .* infinite: b, c, d; fill"),
        ("id,v\na,1\na,2\nb,1\nb,1\n", {}, r"an id more than once: a, b; give every row"),
        ("id,v\na,1\n,2\n", {}, r"no id in row 2"),
        ("name,v\na,1\nb,2\n", {}, r"no column 'id' \(it has name, v\); say with --id"),
        ("id,v\na,1\nb,2\n", {"id_column": "key"}, r"no column 'key'"),
        ("id,v\na,1\nb,2\n", {"columns": ["v", "w"]}, r"no column w .*see --columns"),
        ("id,v,w\na,1,x\nb,2,y\n", {"columns": ["w"]}, r"column 'w' .* has no numbers"),
        ("id,w\na,x\nb,y\n", {}, r"no column of numbers to choose by"),
        ("id,v\n", {}, r"no column of numbers|has 0 item"),
        ("id,v\na,1\n", {}, r"has 1 item\(s\); a pool of at least 2"),
        ("", {}, r"cannot read .* as a table"),
        ("id,v\na,1,2,3\n", {}, r"cannot read .* as a table"),
        ("id,v\na,1e200\nb,2\n", {}, r"beyond 1e150"),
        ('id,v\n"a\nb",1\nc,2\n', {}, r"cannot be printed"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_in_one_sentence(tmp_path, text, options, sentence):
    with pytest.raises(FoveateError, match=sentence) as error:
        read_pool(write(tmp_path / "t.csv", text), **options)
    assert "\n" not in str(error.value)


def panics(*_: object, **__: object) -> None:
    raise pl.exceptions.PanicException("range end index out of range")


def test_bytes_that_are_no_table(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_bytes(b"id,v\n\xff\xfe,1\n")
    with pytest.raises(FoveateError, match="UTF-8"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(FoveateError, match=r"cannot read .* as a table"):
        read_table(tmp_path / "t.parquet")
    # a damaged file can make polars panic, which is no Exception
    with monkeypatch.context() as patch:
        patch.setattr(pl, "scan_parquet", panics)
        with pytest.raises(FoveateError, match=r"as a table \(range end"):
            read_table(tmp_path / "t.parquet")
    with pytest.raises(FoveateError, match="is no table"):
        read_table(write(tmp_path / "t.json", "{}"))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1),
            st.floats(-1e12, 1e12, allow_nan=False),
        ),
        min_size=2, max_size=12, unique_by=lambda pair: pair[0].strip(),
    )
)  # fmt: skip
def test_ids_and_numbers_survive_a_csv(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    pl.DataFrame(rows, schema={"id": pl.String, "v": pl.Float64}, orient="row").write_csv(path)
    pool = read_pool(path)
    assert list(pool.ids) == [name for name, _ in rows]
    assert pool.numbers[:, 0].tolist() == [value for _, value in rows]


# ------------------------------------------------------------------------------ arrays


def test_an_npz_of_numbers_and_one_of_pictures(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "n.npz", x=x, y=np.arange(4))
    pool = read_pool(tmp_path / "n.npz")
    assert pool.ids == ("0", "1", "2", "3")
    assert pool.numbers.tolist() == x.tolist()
    assert pool.groups == (3,)
    assert pool.values(1) == [("0", "3"), ("1", "4"), ("2", "5")]
    assert pool.notes == ("y is not looked at: labels come from you",)
    grey = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4)
    np.savez(tmp_path / "g.npz", x=grey, ids=np.array(["p", "q"]))
    seen = read_pool(tmp_path / "g.npz")
    assert seen.ids == ("p", "q")
    assert (seen.picture(1, 99) == grey[1][..., None]).all()
    colour = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), np.uint8)
    np.savez(tmp_path / "planes.npz", x=colour)
    np.savez(tmp_path / "last.npz", x=colour.transpose(0, 2, 3, 1))
    for name in ("planes.npz", "last.npz"):
        picture = read_pool(tmp_path / name).picture(0, 99)
        assert (picture == colour[0].transpose(1, 2, 0)).all()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"z": np.zeros((3, 2))}, "holds z where x was expected"),
        ({"x": np.zeros(3)}, r"x .* is float64 \(3,\)"),
        ({"x": np.array([["a"], ["b"]])}, r"x .* is <U1 \(2, 1\)"),
        ({"x": np.array([[1.0], [np.nan]])}, "1 of the 2 items .*: 1; fill"),
        ({"x": np.zeros((2, 3, 4, 5))}, "uint8 pictures of 1 or 3 channels"),
        ({"x": np.zeros((2, 2)), "ids": np.array([5, 5])}, "an id more than once: 5"),
        ({"x": np.zeros((2, 2)), "ids": np.array([0.5, 1])}, "ids .* are float64"),
        ({"x": np.zeros((2, 2)), "ids": np.arange(3)}, r"ids .* \(3,\) .* each of the 2 rows"),
        ({"x": np.array([[{}], [{}]], dtype=object)}, "not of plain numbers"),
    ],
)
def test_bad_archives_are_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(FoveateError, match=sentence):
        read_pool(tmp_path / "bad.npz")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.binary(max_size=6), st.booleans())
def test_a_damaged_archive_is_an_error_and_nothing_else(tmp_path_factory, place, piece, cut):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(20.0).reshape(10, 2), ids=np.arange(10))
    whole = bytearray(buffer.getvalue())
    place %= len(whole)
    whole[place : len(whole) if cut else place + len(piece)] = piece
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    path.write_bytes(bytes(whole))
    try:
        pool = read_pool(path)
    except FoveateError:
        return
    assert len(pool) >= 2


# ------------------------------------------------------------------------------ features, labels


def test_features_of_ones_own_in_order_of_the_ids(tmp_path):
    for name in "abc":
        png(tmp_path / "p" / f"{name}.png", (0, 0, 0))
    x = np.array([[3.0, 3], [1, 1], [2, 2], [9, 9]])
    ids = np.array(["c.png", "a.png", "b.png", "other.png"])
    np.savez(tmp_path / "f.npz", x=x, ids=ids)
    pool = read_pool(tmp_path / "p", features=tmp_path / "f.npz")
    assert pool.numbers.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert pool.groups == (2,)
    assert pool.fingerprint == read_pool(tmp_path / "p").fingerprint
    np.savez(tmp_path / "f.npz", x=x[:3])
    assert read_pool(tmp_path / "p", features=tmp_path / "f.npz").numbers.tolist() == x[:3].tolist()
    for arrays, sentence in (
        ({"x": x}, r"has 4 rows and p 3 items"),
        ({"x": x[:2], "ids": ids[:2]}, r"no features for b.png of p"),
        ({"x": np.zeros((3, 2, 2), np.uint8)}, r"one row of numbers"),
        ({"x": x[:3] * np.nan}, r"3 of the 3 items .*f.npz"),
    ):
        np.savez(tmp_path / "f.npz", **arrays)
        with pytest.raises(FoveateError, match=sentence):
            read_pool(tmp_path / "p", features=tmp_path / "f.npz")
    with pytest.raises(FoveateError, match="there are no features at"):
        read_pool(tmp_path / "p", features=tmp_path / "none.npz")
    # a table of words only may be chosen by features from elsewhere
    np.savez(tmp_path / "f.npz", x=x[:2])
    words = write(tmp_path / "w.csv", "id,w\na,x\nb,y\n")
    assert len(read_pool(words, features=tmp_path / "f.npz").numbers) == 2


def test_nothing_there_and_nothing_that_fits(tmp_path):
    with pytest.raises(FoveateError, match="there is no pool at"):
        read_pool(tmp_path / "none")
    with pytest.raises(FoveateError, match=r"no \.jpg or \.png picture below"):
        read_pool(tmp_path)
    with pytest.raises(FoveateError, match="is no pool: expected a folder"):
        read_pool(write(tmp_path / "t.json", "{}"))
    png(tmp_path / "a.png", (0, 0, 0))
    with pytest.raises(FoveateError, match=r"--id and --columns are for tables"):
        read_pool(tmp_path, id_column="id")


def test_labels_from_a_table(tmp_path):
    pool = read_pool(write(tmp_path / "p.csv", "id,v\n007,1\nb,2\nc,3\n"))
    table = write(tmp_path / "l.csv", "id,when,label\nb,now, cat \n007,then,01\nc,,\nb,,cat\n")
    assert read_labels(table, pool) == {"b": "cat", "007": "01"}
    for text, sentence in (
        ("id,class\na,b\n", "no column 'label'"),
        ("key,label\na,b\n", "no column 'id'"),
        ("id,label\nb,cat\nb,dog\n", "b is 'cat' and that it is 'dog'"),
        ("id,label\nz,cat\n", "labels for z, which p.csv does not hold"),
        ("id,label\n,cat\n", "row 1 .* has a label and no id"),
        ('id,label\nb,"a\nb"\n', "cannot be printed"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            read_labels(write(tmp_path / "bad.csv", text), pool)
    with pytest.raises(FoveateError, match="there are no labels at"):
        read_labels(tmp_path / "none.csv")
