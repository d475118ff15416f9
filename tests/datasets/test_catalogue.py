"""The cards, what they find on disk, and the table of ``foveate data``."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from foveate.datasets import catalogue
from foveate.datasets.card import DataCard
from foveate.errors import FoveateError
from make_miniatures import rppg as mini

CARD = DataCard(
    name="two-kinds",
    title="Two kinds",
    task="none",
    licence="CC0-1.0",
    size="2 files",
    url="https://example.org/two",
    citation="nobody",
    layout="a/*.bin, b.txt",
    kinds={"files": ("a/*.bin",), "labels": ("b.txt",)},
    folders=("Two", "two-kinds"),
    sha256={"b.txt": hashlib.sha256(b"label").hexdigest()},
)


def lay(folder: Path) -> None:
    (folder / "a").mkdir(parents=True)
    for name in "xyz":
        (folder / "a" / f"{name}.bin").touch()
    (folder / "b.txt").write_bytes(b"label")


@pytest.mark.parametrize("place", ["Two", "two-kinds", "."])
def test_find_counts_each_kind_below_the_root_or_in_the_folder_itself(
    tmp_path: Path, place: str
) -> None:
    lay(tmp_path / place)
    found = CARD.find(tmp_path)
    assert found.present
    assert found.path == tmp_path / place
    assert found.counts == {"files": 3, "labels": 1}
    assert str(found) == "files: 3, labels: 1"


def test_find_tells_absent_from_incomplete(tmp_path: Path) -> None:
    assert str(CARD.find(tmp_path)) == "absent"
    assert str(CARD.find(tmp_path / "nowhere")) == "absent"
    lay(tmp_path / "Two")
    (tmp_path / "Two" / "b.txt").unlink()
    found = CARD.find(tmp_path)
    assert not found.present
    assert str(found) == "incomplete (files: 3, labels: 0)"


def test_verify_compares_hashes(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match=r"two-kinds below .* is absent; get it from https://"):
        CARD.verify(tmp_path)
    lay(tmp_path / "Two")
    assert CARD.verify(tmp_path) == tmp_path / "Two"
    (tmp_path / "Two" / "b.txt").write_bytes(b"other")
    with pytest.raises(FoveateError, match=r"b\.txt has sha256 .* get it anew from"):
        CARD.verify(tmp_path)


def test_every_card_says_what_a_user_must_know() -> None:
    names = [card.name.lower() for card in catalogue.CARDS]
    assert len(set(names)) == len(names)
    for card in catalogue.CARDS:
        for text in (card.title, card.task, card.licence, card.size, card.citation, card.layout):
            assert text.strip()
        assert card.url.startswith(("https://", "http://"))
        assert card.kinds
        for patterns in card.kinds.values():
            for pattern in patterns:  # fixed depth: looking never walks a whole data set
                assert "**" not in pattern
                assert not pattern.startswith("/")
        for digest in card.sha256.values():
            assert len(bytes.fromhex(digest)) == 32


def test_every_gated_set_of_the_design_is_listed() -> None:
    gated = {card.name for card in catalogue.CARDS if card.gated}
    assert gated == {
        "UBFC-rPPG",
        "PURE",
        "MMPD",
        "DISFA",
        "BP4D",
        "300VW",
        "YouTube-VIS",
        "MIMIC-III",
        "Something-Something",
        "ImageNet",
    }


def test_loaders_named_on_cards_exist() -> None:
    import importlib

    for card in catalogue.CARDS:
        if card.loader:
            module, name = card.loader.rsplit(".", 1)
            loader = getattr(importlib.import_module(module), name)
            assert loader.card is card if isinstance(loader, type) else callable(loader)


def test_rows_see_the_miniatures(tmp_path: Path) -> None:
    mini.main(tmp_path)
    rows = {row["name"]: row for row in catalogue.rows(tmp_path)}
    assert rows["UBFC-rPPG"]["status"] == "videos: 3, labels: 3"
    assert rows["PURE"]["status"] == "sequences: 2, labels: 2"
    assert rows["MMPD"]["status"] == "clips: 2"
    assert rows["MMPD"]["path"] == str(tmp_path / "MMPD")
    assert rows["DISFA"]["status"] == "absent"
    assert rows["PURE"]["access"] == "on request"
    assert rows["orl"]["access"] == "open"
    assert all(isinstance(value, str) for row in rows.values() for value in row.values())


def test_default_root_is_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    mini.write_mmpd(tmp_path / "data" / "MMPD", 1, 0, [1, 2, 3], 3)
    rows = {row["name"]: row for row in catalogue.rows()}
    assert rows["MMPD"]["status"] == "clips: 1"


def test_table_prints_every_name_and_takes_no_markup_from_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from foveate.report import terminal

    root = tmp_path / "[red]odd[/red]"
    mini.write_mmpd(root / "MMPD", 1, 0, [1, 2, 3], 3)
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(terminal, "_out", console)
    terminal.print_data(catalogue.rows(root), root)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for card in catalogue.CARDS:
        assert card.name in printed
    assert "clips: 1" in printed
    assert "[red]odd[/red]" in printed.replace("\n", "")


def test_card_by_name() -> None:
    assert catalogue.card("pure").name == "PURE"
    with pytest.raises(FoveateError, match="no data set called 'purr'; the known ones are: UBFC"):
        catalogue.card("purr")


def test_real_sets_are_found_with_their_published_counts(shared_data: Path) -> None:
    rows = {row["name"]: row for row in catalogue.rows(shared_data)}
    assert rows["grid-talking"]["status"] == "videos: 10"
    assert rows["bias-eval-rppg"]["status"] == "traces: 1, videos: 6, labels: 2"
    assert rows["indian-pines"]["status"] == "cube: 1, ground truth: 1"
    catalogue.card("evm-face").verify(shared_data)


def test_a_set_is_located_below_the_root_or_where_a_package_put_it(tmp_path):
    from dataclasses import replace

    from foveate.datasets.images import FashionMNIST

    card = replace(FashionMNIST.card, elsewhere=(tmp_path / "package",))
    mine, packaged = tmp_path / "mine", tmp_path / "package"
    assert card.locate(mine) is None
    for place in (packaged, mine):  # what the user has comes first
        folder = place / "fashion-mnist"
        folder.mkdir(parents=True)
        for part in ("train", "t10k"):
            for what in ("images-idx3", "labels-idx1"):
                (folder / f"{part}-{what}-ubyte").touch()
        assert card.locate(mine) == place
    for path in (packaged / "fashion-mnist").glob("*images*"):
        path.unlink()
    assert card.locate(tmp_path / "nothing") is None  # a part of it is not the set
