"""`foveate map` from the outside: files, figures, resuming, and what it says about bad input."""

from __future__ import annotations

import csv
import dataclasses
import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.apps import map as app
from foveate.apps.many import folders_for
from foveate.apps.map import METHODS, MapSettings, map_scene
from foveate.apps.map_many import map_many, scenes_in
from foveate.datasets.envi import open_envi
from foveate.datasets.scene import Georeference, Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.report.map import false_colour, result_lines
from foveate.scenes.map_model import label_window, predict_map

LDA = MapSettings(method="lda", format="png", threads=2)
HEIGHT, WIDTH = 70, 83


def fields(seed: int = 0) -> tuple[Scene, np.ndarray]:
    """A simulated scene: stripes of fields of three classes, spectra with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    truth = ((rows // 7 + columns // 9) % 3 + 1).astype(np.int16)
    spectra = np.array([[0, 0, 0, 0], [1, 2, 0, 1], [2, 0, 1, 1], [0, 1, 2, 1]], dtype=np.float32)
    cube = spectra[truth] + rng.normal(0, 0.5, (HEIGHT, WIDTH, 4)).astype(np.float32)
    labels = np.where(rng.random(truth.shape) < 0.5, truth, 0)
    return Scene.from_array(
        cube, "hyperspectral", name="fields",
        labels=SceneLabels.from_map(
            labels, names={1: "corn", 2: "<b>oats</b>", 3: "woods"}, source="fields.png"
        ),
    ), truth  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Scene:
    return fields()[0]


@pytest.fixture(scope="module")
def mapped(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> app.MapResult:
    return map_scene(scene, out=tmp_path_factory.mktemp("map"), settings=LDA)


def codes_of(folder: Path) -> np.ndarray:
    return np.array(Image.open(folder / "map.png"))


def test_every_pixel_is_what_the_model_says(scene, mapped):
    """The map is that of the method trained on all labels, made here in one piece."""
    model = METHODS["lda"].build().fit(scene, scene.labels, seed=0)
    codes, sure = predict_map(model, scene, tile=4096)
    assert np.array_equal(codes_of(mapped.folder), codes)
    percent = np.array(Image.open(mapped.folder / "confidence.png"))
    assert np.abs(percent - 100 * sure).max() <= 0.5 + 1e-3
    truth = fields()[1]
    assert (codes == truth).mean() > 0.8


def test_files_and_classes(scene, mapped):
    names = {path.name for path in mapped.folder.iterdir()}
    assert names == {
        *("map.png", "confidence.png", "classes.csv", "summary.json", "report.html"),
    }  # nothing unfinished is left
    with (mapped.folder / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes, counts = np.unique(codes_of(mapped.folder), return_counts=True)
    assert {int(row["code"]): int(row["pixels"]) for row in rows} == dict(
        zip(codes.tolist(), counts.tolist(), strict=True)
    )
    assert [row["name"] for row in rows] == ["corn", "<b>oats</b>", "woods"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("tile", [16, 33, 500])
def test_seams_change_nothing(scene, mapped, tile, tmp_path):
    other = map_scene(
        scene, out=tmp_path, settings=dataclasses.replace(LDA, tile=tile, estimate=False)
    )
    assert np.array_equal(codes_of(tmp_path), codes_of(mapped.folder))
    assert other.summary["unsure"] == mapped.summary["unsure"]


def test_estimate_is_the_confusion_counted_on_other_blocks(scene, mapped):
    found, blocks = mapped.summary["estimate"], mapped.summary["blocks"]
    apart = found["disjoint"]
    table = np.array(apart["confusion"])
    assert apart["oa"] == pytest.approx(np.trace(table) / table.sum())
    assert apart["aa"] == pytest.approx(np.mean(np.diag(table) / table.sum(1)))
    # Training and test blocks by hand: the colours of a checkerboard.
    side = blocks["side"]
    rows, columns = scene.labels.coordinates.T
    even = (rows // side + columns // side) % 2 == 0
    assert apart["test"] == (~even).sum()
    assert apart["train"] <= even.sum()
    assert found["random"]["train"] == apart["train"]  # the same number of labels
    low, high = apart["intervals"]["oa"]
    assert low <= apart["oa"] <= high


def test_no_test_pixel_is_learned_from(scene, monkeypatch, tmp_path):
    """Blocks apart: training labels keep the guard from every labelled test pixel."""
    seen: list[tuple[set[Any], int]] = []
    real = app._Run.count

    def spy(self, name, labels, train, test, hidden, part, begin):
        learned = labels.coordinates[train].astype(int)
        counted = labels.coordinates[test].astype(int)
        reach = np.abs(learned[:, None] - counted[None]).max(-1).min()
        seen.append((part, int(reach)))
        return real(self, name, labels, train, test, hidden, part, begin)

    monkeypatch.setattr(app._Run, "count", spy)
    monkeypatch.setattr(app._Run, "guard", lambda self, names: 3)
    result = map_scene(scene, out=tmp_path, settings=LDA)
    assert result.summary["blocks"]["guard"] == 3
    assert {part: reach > 3 for part, reach in seen} == {
        "baseline": True, "disjoint": True, "random": False
    }  # fmt: skip


def test_budget_is_kept(scene, tmp_path):
    counts = scene.labels.counts()
    for train, wanted in (("5", dict.fromkeys(counts, 5)), ("10%", {
        code: round(0.1 * count) for code, count in counts.items()
    })):  # fmt: skip
        result = map_scene(
            scene, out=tmp_path / train.strip("%"), settings=dataclasses.replace(LDA, train=train)
        )
        assert result.summary["labels"]["used"] == sum(wanted.values())
        found = result.summary["estimate"]
        assert found["random"]["train"] == sum(wanted.values())
        assert found["random"]["test"] == len(scene.labels) - sum(wanted.values())
        assert found["disjoint"]["train"] <= sum(wanted.values())
        # the map itself is what was counted on random pixels
        codes, table = codes_of(tmp_path / train.strip("%")), np.array(found["random"]["confusion"])
        rows, columns = scene.labels.coordinates.T
        right = (codes[rows, columns] == scene.labels.codes).sum()
        assert 0 <= right - np.trace(table) <= sum(wanted.values())


def test_a_killed_run_goes_on_where_it_was(scene, mapped, monkeypatch, tmp_path):
    small = dataclasses.replace(LDA, tile=16, threads=1)
    done: list[Window] = []

    def dies(model, scene, window):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(window)
        return label_window(model, scene, window)

    with monkeypatch.context() as patch:
        patch.setattr(app, "label_window", dies)
        with pytest.raises(KeyboardInterrupt):
            map_scene(scene, out=tmp_path, settings=small)
    assert not (tmp_path / "summary.json").exists()
    again: list[Window] = []

    def notes(model, scene, window):
        again.append(window)
        return label_window(model, scene, window)

    def never(*arguments, **options):
        raise AssertionError("it learned again")

    monkeypatch.setattr(app, "label_window", notes)
    lda = type(METHODS["lda"].build())
    monkeypatch.setattr(lda, "fit", never)
    result = map_scene(scene, out=tmp_path, settings=small)
    assert len(again) >= 5 * 6 - 7
    assert len(set(again) & set(done)) <= 2  # what was in flight
    assert np.array_equal(codes_of(tmp_path), codes_of(mapped.folder))
    kept = map_scene(scene, out=tmp_path, settings=small)
    assert kept.reused
    assert kept.summary == result.summary


def test_damaged_leftovers_are_made_again(scene, mapped, monkeypatch, tmp_path):
    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(app, "write_outputs", dies)
        with pytest.raises(KeyboardInterrupt):
            map_scene(scene, out=tmp_path, settings=LDA)
    work = tmp_path / "unfinished"
    for path in work.iterdir():
        path.write_bytes(b"\0\1\2")
    map_scene(scene, out=tmp_path, settings=LDA)
    assert np.array_equal(codes_of(tmp_path), codes_of(mapped.folder))
    assert not work.exists()


def test_pixels_without_data_are_in_no_class(tmp_path):
    scene = fields()[0]
    empty = np.zeros((HEIGHT, WIDTH), dtype=bool)
    empty[:9, 20:] = True

    def valid(window: Window) -> np.ndarray:
        row, column, height, width = window
        return ~empty[row : row + height, column : column + width]

    keep = ~empty[tuple(scene.labels.coordinates.T)]
    holed = dataclasses.replace(
        scene, valid=valid, labels=scene.labels.subset(np.flatnonzero(keep))
    )
    result = map_scene(holed, out=tmp_path, settings=dataclasses.replace(LDA, estimate=False))
    assert np.array_equal(codes_of(tmp_path) == 0, empty)
    assert result.summary["unsure"]["empty"] == empty.sum()


def test_auto_takes_the_best_on_validation_blocks(scene, monkeypatch, tmp_path):
    """Candidates with a fixed score: the one with the highest is taken, test labels unseen."""
    monkeypatch.setitem(app._CANDIDATES, "hyperspectral", ("lda", "forest"))
    scores = {"lda": 0.3, "forest": 0.6}
    real = app._Run.count

    def fake(self, name, labels, train, test, hidden, part, begin):
        if part != "choose":
            return real(self, name, labels, train, test, hidden, part, begin)
        rows, columns = labels.coordinates[np.concatenate([train, test])].T
        assert ((rows // self.side + columns // self.side) % 2 == 0).all()  # training blocks
        return {"oa": scores[name]}

    monkeypatch.setattr(app._Run, "count", fake)
    result = map_scene(scene, out=tmp_path, settings=dataclasses.replace(LDA, method="auto"))
    assert result.summary["method"] == "forest"
    assert result.summary["chosen"]["scores"] == scores


def test_geotiff_keeps_place_names_and_colours(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra: remote)")
    place = Georeference("EPSG:32616", (20.0, 0.0, 500_000.0, 0.0, -20.0, 4_480_000.0))
    scene = dataclasses.replace(fields()[0], georeference=place)
    settings = dataclasses.replace(LDA, format="tif", estimate=False)
    map_scene(scene, out=tmp_path, settings=settings)
    model = METHODS["lda"].build().fit(scene, scene.labels, seed=0)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert np.array_equal(found.read(1), predict_map(model, scene)[0])
        assert found.crs.to_epsg() == 32616
        assert tuple(found.transform)[:6] == place.transform
        assert found.colormap(1)[1][:3] != found.colormap(1)[2][:3]
    with rasterio.open(tmp_path / "confidence.tif") as sure:
        assert sure.crs.to_epsg() == 32616
        assert 1 <= sure.read(1).min() <= sure.read(1).max() <= 100


def test_envi_map_is_read_back(scene, mapped, tmp_path):
    map_scene(scene, out=tmp_path, settings=dataclasses.replace(LDA, format="envi", estimate=False))
    assert np.array_equal(open_envi(tmp_path / "map.hdr").read()[..., 0], codes_of(mapped.folder))


def test_page_shows_names_as_text_and_the_honest_figure_first(mapped):
    page = (mapped.folder / "report.html").read_text("utf-8")
    assert "<b>oats</b>" not in page
    assert "&lt;b&gt;oats&lt;/b&gt;" in page
    found = mapped.summary["estimate"]
    headline = page[page.index("<h1") : page.index("</h1>")]
    assert f"{100 * found['disjoint']['oa']:.0f} %" in headline
    # On a narrow screen the heads of the columns are hidden: every number bears its own.
    body = page[page.index("<tbody>") : page.rindex("</table>")]
    assert all("data-label" in cell for cell in re.findall(r'<td class="n(?: speed)?"[^>]*>', body))
    assert "the nearest is 1 pixel away" in page
    lines = "\n".join(result_lines(mapped.summary))
    assert f"{100 * found['disjoint']['oa']:5.1f} %" in lines
    higher = found["random"]["oa"] > found["disjoint"]["oa"]
    assert ("optimistic" in lines) == higher
    optimistic = {**mapped.summary, "estimate": {**found, "random": {**found["random"], "oa": 2.0}}}
    assert "optimistic: test pixels lie beside training pixels" in "\n".join(
        result_lines(optimistic)
    )


def test_false_colours_take_bands_by_wavelength():
    cube = np.zeros((4, 5, 3), dtype=np.float32)
    cube[..., 2] = np.arange(20).reshape(4, 5)  # red is the last band here
    scene = dataclasses.replace(
        Scene.from_array(cube, "hyperspectral"), wavelengths_nm=(450.0, 550.0, 650.0)
    )
    scene = dataclasses.replace(scene, kind="hyperspectral")
    picture = false_colour(dataclasses.replace(scene))
    assert picture.shape == (4, 5, 3)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"method": "pcn"}, "the method pcn reads polsar scenes, and this one is hyperspectral"),
        ({"train": "many"}, "--train is 'many'; expected labels per class"),
        ({"train": "0"}, "--train is '0'"),
        ({"train": "120%"}, "--train is '120%'"),
        ({"block": 1}, "--block is 1; expected at least 2"),
        ({"tile": 3}, "--tile is 3; expected 16 to 4096"),
        ({"threads": -1}, "--threads is -1"),
        ({"seed": -1}, "--seed is -1; expected 0 to 4294967295"),
        ({"seed": 1 << 32}, "--seed is 4294967296; expected 0 to"),
        ({"block": 90}, "the labels lie too close together for blocks of 90 pixels"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(scene, change, sentence, tmp_path):
    with pytest.raises(FoveateError, match="^" + sentence) as error:
        map_scene(scene, out=tmp_path / "o", settings=dataclasses.replace(LDA, **change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


def test_labels_that_do_not_fit(scene, tmp_path):
    bare = dataclasses.replace(scene, labels=None)
    with pytest.raises(FoveateError, match="carries no labels; name a raster"):
        map_scene(bare, out=tmp_path, settings=LDA)
    small = SceneLabels.from_map(np.ones((5, 5), dtype=int))
    with pytest.raises(FoveateError, match="of 5 x 5 pixels and the scene fields has 70 x 83"):
        map_scene(bare, small, tmp_path, settings=LDA)
    one = np.zeros((HEIGHT, WIDTH), dtype=int)
    one[3, 4] = 7
    with pytest.raises(FoveateError, match=r"1 class \(class 7\); a map needs at least two"):
        map_scene(bare, SceneLabels.from_map(one), tmp_path, settings=LDA)
    one[5, 5] = 300
    with pytest.raises(FoveateError, match="up to code 300; a map holds codes 1 to 255"):
        map_scene(bare, SceneLabels.from_map(one), tmp_path, settings=LDA)


def test_a_folder_of_something_else_is_not_overwritten(scene, tmp_path):
    (tmp_path / "summary.json").write_text('{"command": "watch"}')
    with pytest.raises(FoveateError, match="is not a result of foveate map"):
        map_scene(scene, out=tmp_path, settings=LDA)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"command": "watch"}


@pytest.mark.parametrize("name", ["map.png", "classes.csv"])
def test_the_scene_and_its_labels_are_not_overwritten(tmp_path, name):
    rng = np.random.default_rng(0)
    picture = tmp_path / ("map.png" if name == "map.png" else "scene.png")
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(picture)
    points = tmp_path / "classes.csv" if name == "classes.csv" else tmp_path / "points.csv"
    points.write_text("row,column,class\n1,1,1\n30,30,2\n")
    before = (picture.read_bytes(), points.read_bytes())
    settings = dataclasses.replace(LDA, estimate=False)
    with pytest.raises(FoveateError, match=f"{name} would be overwritten by the map of it; choose"):
        map_scene(picture, points, tmp_path, settings=settings)
    assert (picture.read_bytes(), points.read_bytes()) == before
    assert {path.name for path in tmp_path.iterdir()} == {picture.name, points.name}


def test_a_file_in_the_place_of_the_unfinished_tiles(scene, tmp_path):
    (tmp_path / "unfinished").write_text("mine")
    with pytest.raises(FoveateError, match="unfinished is a file where foveate map keeps"):
        map_scene(scene, out=tmp_path, settings=LDA)
    assert (tmp_path / "unfinished").read_text() == "mine"


def test_what_cannot_be_written_is_said_before_the_work(scene, monkeypatch, tmp_path):
    def never(*arguments, **options):
        raise AssertionError("it learned")

    monkeypatch.setattr(type(METHODS["lda"].build()), "fit", never)
    turned = Georeference("EPSG:32632", (1.0, 1.0, 0.0, 1.0, -1.0, 0.0))
    odd = Georeference("GARBAGE[1]", (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    monkeypatch.setattr("foveate.apps.map_outputs._PNG_PIXELS", 99)
    cases = [("envi", turned, "is turned or mirrored"), ("png", None, "a PNG of 70 x 83 pixels")]
    if importlib.util.find_spec("rasterio"):
        cases.append(("tif", odd, r"coordinate system 'GARBAGE\[1\]', which cannot be written"))
    for form, place, sentence in cases:
        placed = dataclasses.replace(scene, georeference=place)
        with pytest.raises(FoveateError, match=sentence):
            map_scene(placed, out=tmp_path / "o", settings=dataclasses.replace(LDA, format=form))
    assert not (tmp_path / "o").exists()


def test_a_full_disk_is_said_before_tiles_are_made(scene, monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(FoveateError, match="No space left on device; make room"):
        map_scene(scene, out=tmp_path, settings=dataclasses.replace(LDA, estimate=False))


def test_tiles_that_another_run_took_away(scene, monkeypatch, tmp_path):
    def thief(model, scene, window):
        for path in (tmp_path / "unfinished").glob("*.u8"):
            path.unlink()
        return label_window(model, scene, window)

    monkeypatch.setattr(app, "label_window", thief)
    with pytest.raises(FoveateError, match="was taken away while it was made; if another"):
        map_scene(scene, out=tmp_path, settings=dataclasses.replace(LDA, estimate=False))


def test_a_scene_that_changes_while_it_is_mapped(monkeypatch, tmp_path):
    written(tmp_path, 5)
    path = tmp_path / "s5.npz"

    def other(model, scene, window):
        path.write_bytes(path.read_bytes() + b" ")
        return label_window(model, scene, window)

    settings = dataclasses.replace(LDA, estimate=False)
    with monkeypatch.context() as patch:
        patch.setattr(app, "label_window", other)
        with pytest.raises(FoveateError, match=r"s5\.npz changed while it was mapped, so this map"):
            map_scene(path, out=tmp_path / "o", settings=settings)
    assert {one.name for one in (tmp_path / "o").iterdir()} == {"unfinished"}
    map_scene(path, out=tmp_path / "o", settings=settings)
    assert not (tmp_path / "o" / "unfinished").exists()  # nor what the first run had left


def test_other_files_beside_the_scene_may_come_and_go(tmp_path):
    written(tmp_path, 5)
    settings = dataclasses.replace(LDA, estimate=False)
    map_scene(tmp_path / "s5.npz", out=tmp_path / "o", settings=settings)
    (tmp_path / "s5.log").write_text("what foveate map said")
    assert map_scene(tmp_path / "s5.npz", out=tmp_path / "o", settings=settings).reused


def test_a_damaged_model_is_trained_again(scene, mapped, monkeypatch, tmp_path):
    from safetensors.numpy import load_file, save_file

    real = app._save_model

    def damaged(model, file, mark):
        real(model, file, mark)
        arrays = {key: value[:0] for key, value in load_file(file).items()}
        save_file(arrays, file, metadata={"mark": mark, "facts": json.dumps(model.state()[1])})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(app, "_save_model", damaged)
        with pytest.raises(KeyboardInterrupt):
            map_scene(scene, out=tmp_path, settings=LDA)
    map_scene(scene, out=tmp_path, settings=LDA)
    assert np.array_equal(codes_of(tmp_path), codes_of(mapped.folder))


# ------------------------------------------------------------------------------ few labels


def test_auto_without_enough_labels_to_choose_by(scene, monkeypatch, tmp_path):
    """Two labels of each class: all test labels of the choice in one block, and a note says so."""
    monkeypatch.setitem(app._CANDIDATES, "hyperspectral", ("forest", "lda"))
    rows = np.array([[0, 0], [1, 1], [40, 2], [41, 3], [3, 60], [2, 61], [50, 60], [51, 61]])
    codes = np.array([1, 2, 1, 2, 1, 2, 1, 2])
    few = SceneLabels.from_points(rows, codes, (HEIGHT, WIDTH))
    settings = dataclasses.replace(LDA, method="auto", estimate=False, block=30)

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(app, "write_outputs", dies)
        with pytest.raises(KeyboardInterrupt):
            map_scene(scene, few, tmp_path, settings=settings)
    result = map_scene(scene, few, tmp_path, settings=settings)  # resumed: the note is there
    assert result.summary["method"] == "lda"
    assert result.summary["notes"] == [
        "too few labels to choose a method by: one of the usual ones was taken"
    ]


def test_test_labels_in_one_block_give_no_estimate(scene, tmp_path):
    """One block has no spread between blocks: refused for the estimate, left out beside it."""
    place = np.argwhere(np.ones((20, 40), dtype=bool))
    labels = SceneLabels.from_points(place, 1 + (place.sum(1) % 2), (HEIGHT, WIDTH))
    with pytest.raises(FoveateError, match=r"^the labels lie too close together for blocks of 20"):
        map_scene(scene, labels, tmp_path / "a", settings=dataclasses.replace(LDA, block=20))
    counts = scene.labels.counts()
    least = min(counts.values())
    codes, where = scene.labels.codes, []
    for code, take in zip(sorted(counts), (least, least, least - 1), strict=True):
        where.append(np.flatnonzero(codes == code)[:take])
    almost = scene.labels.subset(np.concatenate(where))
    result = map_scene(
        scene, almost, tmp_path / "b", settings=dataclasses.replace(LDA, train=str(least - 1))
    )  # two labels are left for the random split
    assert result.summary["estimate"]["disjoint"]["oa"] > 0
    if "random" not in result.summary["estimate"]:
        assert result.summary["estimate"]["leakage"]["random"] is None
    one = scene.labels.subset(np.concatenate([w[: least - 1] for w in where[1:]] + [where[0]]))
    result = map_scene(
        scene, one, tmp_path / "c", settings=dataclasses.replace(LDA, train=str(least - 1))
    )  # and here a single one
    assert "random" not in result.summary["estimate"]
    assert (tmp_path / "c" / "report.html").is_file()


def test_labels_without_data_teach_nothing(tmp_path):
    scene = fields()[0]
    empty = np.zeros((HEIGHT, WIDTH), dtype=bool)
    empty[:30] = True

    def valid(window: Window) -> np.ndarray:
        row, column, height, width = window
        return ~empty[row : row + height, column : column + width]

    holed = dataclasses.replace(scene, valid=valid)
    keep = ~empty[tuple(scene.labels.coordinates.T)]
    result = map_scene(holed, out=tmp_path / "a", settings=dataclasses.replace(LDA, estimate=False))
    assert result.summary["labels"]["pixels"] == keep.sum()
    assert result.summary["notes"] == [
        f"{(~keep).sum():,} labelled pixels have no data in the scene and were left out"
    ]
    empty[:] = True
    with pytest.raises(FoveateError, match=r"where the scene fields has data, .* name 0 class"):
        map_scene(holed, out=tmp_path / "b", settings=LDA)


# ------------------------------------------------------------------------------ many, and the shell


def written(folder: Path, seed: int) -> None:
    """A scene with labels inside, as npz of the staged kind."""
    scene, _ = fields(seed)
    cube = np.clip(1000 + 300 * scene.read(), 0, 60000).astype(np.uint16)
    np.savez(folder / f"s{seed}.npz", x=cube, gt=scene.labels.to_map().astype(np.uint8))


def test_every_scene_has_a_folder_inside_the_output():
    sources = [Path("a/.."), Path(".."), Path("."), Path("b.npz"), Path("c/b.hdr")]
    folders = folders_for(sources, Path("out"), {"maps.csv"})
    assert len(set(folders)) == len(sources)
    assert all(one.parent == Path("out") and one.name.strip(".") for one in folders)


def test_a_table_of_scenes(tmp_path):
    for seed in (1, 2):
        written(tmp_path, seed)
    labels = fields(2)[0].labels
    with (tmp_path / "points.csv").open("w") as file:
        file.write("row,column,class\n")
        for (row, column), code in zip(labels.coordinates, labels.codes, strict=True):
            file.write(f"{row},{column},{code}\n")
    table = tmp_path / "scenes.csv"
    table.write_text("scene,labels\ns1.npz,\ns2.npz,points.csv\nnone.npz,\n")
    pairs = scenes_in(table)
    assert [pair.labels for pair in pairs] == [None, tmp_path / "points.csv", None]
    outcomes = map_many(pairs, tmp_path / "out", settings=LDA, jobs=2)
    assert [one.result is None for one in outcomes] == [False, False, True]
    with (tmp_path / "out" / "maps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == ["s1", "s2", "none"]
    assert float(rows[0]["oa"]) == outcomes[0].result.summary["estimate"]["disjoint"]["oa"]
    assert "none.npz" in rows[2]["error"]
    for text, sentence in (
        ("picture\na\n", "has the columns picture"),
        ("scene,labels\n", "names no scene"),
        ("scene,labels\n,x\n", "line 2: no scene is named"),
    ):
        table.write_text(text)
        with pytest.raises(FoveateError, match=sentence):
            scenes_in(table)
    with pytest.raises(FoveateError, match="cannot read the table of scenes"):
        scenes_in(tmp_path / "nothing.csv")


def shell(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foveate", "map", *words],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_from_a_bare_shell(tmp_path):
    written(tmp_path, 3)
    done = shell("s3.npz", "--method", "lda", "--train", "20", "--format", "png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "blocks apart" in done.stdout
    assert "Traceback" not in done.stderr
    folder = tmp_path / "foveate-out" / "s3"
    assert (folder / "report.html").is_file()
    again = shell("s3.npz", "--method", "lda", "--train", "20", "--format", "png", cwd=tmp_path)
    assert "already done" in again.stdout
    bad = shell("s3.npz", "--labels", "nowhere.tif", cwd=tmp_path)
    assert bad.returncode == 2
    assert "nowhere.tif" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.ray
def test_a_table_of_scenes_on_a_local_ray(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra: cluster)")
    written(tmp_path, 4)
    table = tmp_path / "scenes.csv"
    table.write_text("scene,labels\ns4.npz,\nnone.npz,\n")
    settings = dataclasses.replace(LDA, estimate=False)
    outcomes = map_many(scenes_in(table), tmp_path / "out", settings=settings, ray="local")
    assert [one.result is None for one in outcomes] == [False, True]
    here = map_scene(tmp_path / "s4.npz", out=tmp_path / "here", settings=settings)
    assert np.array_equal(codes_of(tmp_path / "out" / "s4"), codes_of(here.folder))


def test_processes_are_for_tables(tmp_path):
    written(tmp_path, 5)
    bad = shell("s5.npz", "--jobs", "2", cwd=tmp_path)
    assert bad.returncode == 2
    assert "share out the scenes of a table, and s5.npz is one scene" in bad.stderr
