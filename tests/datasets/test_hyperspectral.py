"""Hyperspectral scenes: miniatures in the layouts of the published files, and Indian Pines."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from foveate.datasets import hyperspectral as hsi
from foveate.datasets.hyperspectral import load_hsi, load_unmixing_mat
from foveate.datasets.named_arrays import open_arrays
from foveate.datasets.scene_files import open_scene
from foveate.errors import FoveateError

# File and key of the cube, of the ground truth
PUBLISHED = [
    ("Indian_pines_corrected", "indian_pines_corrected", "Indian_pines_gt", "indian_pines_gt"),
    ("PaviaU", "paviaU", "PaviaU_gt", "paviaU_gt"),
    ("Pavia", "pavia", "Pavia_gt", "pavia_gt"),
    ("Salinas_corrected", "salinas_corrected", "Salinas_gt", "salinas_gt"),
    ("SalinasA_corrected", "salinasA_corrected", "SalinasA_gt", "salinasA_gt"),
    ("KSC", "KSC", "KSC_gt", "KSC_gt"),
]


def cube(seed=0):
    return np.random.default_rng(seed).integers(900, 9000, (7, 6, 5)).astype(np.uint16)


def truth(seed=0):
    return np.random.default_rng(seed).integers(0, 4, (7, 6)).astype(np.uint8)


def check(scene, expected=None):
    assert scene.kind == "hyperspectral"
    np.testing.assert_array_equal(scene.read(), cube() if expected is None else expected)
    np.testing.assert_array_equal(scene.labels.to_map(), truth())


@pytest.fixture(autouse=True)
def _miniatures_warn_of_their_size():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*looks like.*")
        yield


@pytest.mark.parametrize(("file", "key", "gt_file", "gt_key"), PUBLISHED)
def test_published_names(tmp_path: Path, file, key, gt_file, gt_key):
    """Miniature .mat (7x6x5 cube, gt 7x6, real key names) loads; the ground truth is found."""
    scipy.io.savemat(tmp_path / f"{file}.mat", {key: cube()})
    scipy.io.savemat(tmp_path / f"{gt_file}.mat", {gt_key: truth()})
    check(load_hsi(tmp_path / f"{file}.mat"))
    check(open_scene(tmp_path / f"{file}.mat"))
    check(load_hsi(tmp_path / f"{file}.mat", tmp_path / f"{gt_file}.mat", key, gt_key))
    (tmp_path / f"{gt_file}.mat").rename(tmp_path / "elsewhere.mat")
    assert load_hsi(tmp_path / f"{file}.mat").labels is None
    check(load_hsi(tmp_path / f"{file}.mat", tmp_path / "elsewhere.mat"))


@pytest.mark.parametrize(
    "content",
    [
        {"gt": cube(), "x": truth()},  # swapped
        {"blue": cube(), "green": truth(), "note": "text", "n": 16},  # unknown
        {"ori_data": cube(), "map": truth()},
        {"data": cube(), "gt": truth()},
        {"data": cube(), "gt": truth().astype(float)},
        {"data": cube(), "gt": truth(), "mean": np.ones((7, 6)), "wave": np.ones((1, 5))},
        {"data": cube(), "other": np.zeros((2, 2, 2)), "gt": truth()},  # a usual name decides
    ],
)
@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_arrays_are_found_by_their_form(tmp_path: Path, content, suffix):
    """Swapped or unknown keys load through the shape rule."""
    path = tmp_path / f"a{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, content, do_compression=True)
    else:
        np.savez(path, **content)
    check(load_hsi(path))


def test_arrays_whose_form_does_not_tell(tmp_path: Path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": cube(1), "b": cube(), "c": truth(), "d": truth(1)})
    with pytest.raises(FoveateError, match=r"2 arrays that may be the cube.* with cube_key"):
        load_hsi(path)
    with pytest.raises(FoveateError, match=r"2 arrays that may be the ground truth.* with gt_key"):
        load_hsi(path, cube_key="b")
    check(load_hsi(path, cube_key="b", gt_key="c"))
    with pytest.raises(FoveateError, match=r"no cube .* called 'e'; it has a uint16"):
        load_hsi(path, cube_key="e")
    with pytest.raises(FoveateError, match=r"no ground truth .* called 'a'"):
        load_hsi(path, cube_key="b", gt_key="a")
    with pytest.raises(FoveateError, match=r"no ground truth .* called 'e'"):
        load_hsi(path, cube_key="b", gt_key="e")


def test_files_without_a_cube(tmp_path: Path):
    scipy.io.savemat(tmp_path / "a.mat", {"gt": truth(), "x": [1.0, 2.0]})
    with pytest.raises(FoveateError, match=r"has no cube .*; its numeric arrays are: gt uint8"):
        load_hsi(tmp_path / "a.mat")
    (tmp_path / "b.mat").write_text("hello")
    with pytest.raises(FoveateError, match="no MATLAB 5 header"):
        load_hsi(tmp_path / "b.mat")
    with pytest.raises(FoveateError, match=r"cannot read .*absent\.mat"):
        load_hsi(tmp_path / "absent.mat")
    np.savez(tmp_path / "c.npz", x=np.array([{}], dtype=object))
    with pytest.raises(FoveateError, match=r"c\.npz"):
        load_hsi(tmp_path / "c.npz")
    scipy.io.savemat(tmp_path / "d.mat", {"x": cube()})
    with pytest.raises(FoveateError, match="has no ground truth"):
        load_hsi(tmp_path / "d.mat", tmp_path / "d.mat")


def test_a_ground_truth_of_another_extent_is_refused(tmp_path: Path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": cube()})
    scipy.io.savemat(tmp_path / "a_gt.mat", {"gt": truth()[:, :5]})
    with pytest.raises(FoveateError, match=r"has 7 x 5 pixels, but the cube has 7 x 6"):
        load_hsi(tmp_path / "a.mat")


def test_types_and_byte_orders(tmp_path: Path):
    for dtype in (np.float16, np.float32, np.float64, np.int16, ">u2"):
        np.savez(tmp_path / "a.npz", x=cube().astype(dtype), gt=truth())
        check(load_hsi(tmp_path / "a.npz"), cube().astype(dtype).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_the_cube(tmp_path: Path, value):
    bad = cube().astype(np.float64)
    bad[4, 3, 2] = value
    np.savez(tmp_path / "a.npz", x=bad, gt=truth())
    with pytest.raises(FoveateError, match=r"row 4, column 3, band 'band 3'"):
        load_hsi(tmp_path / "a.npz")


def test_codes_that_are_none(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=cube(), gt=truth().astype(int) - 1)
    with pytest.raises(FoveateError, match="class code -1"):
        load_hsi(tmp_path / "a.npz")


def write_v73(path: Path, content: dict) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in content.items():
            file.create_dataset(name, data=array.T, compression="gzip")  # MATLAB's axis order
        file["link"] = h5py.ExternalLink("/etc/hostname", "/")
        file["soft"] = h5py.SoftLink("/nowhere")
        file.create_group("#refs#")
        word = file.create_dataset("note", data=np.array([[104, 105]], np.uint16))
        word.attrs["MATLAB_class"] = np.bytes_("char")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def test_version_73_with_h5py(tmp_path: Path):
    write_v73(tmp_path / "a.mat", {"x": cube(), "gt": truth()})
    assert set(open_arrays(tmp_path / "a.mat").forms) == {"x", "gt"}
    check(load_hsi(tmp_path / "a.mat"))
    with pytest.raises(FoveateError, match="no numeric array 'link'"):
        open_arrays(tmp_path / "a.mat").read("link")


def test_version_73_without_h5py(tmp_path: Path, monkeypatch):
    """A v7.3 file gives a clear message when h5py is missing."""
    real = importlib.import_module

    def without(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tmp_path / "a.mat").write_bytes(head.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(100))
    sentence = r"MATLAB 7.3 file, which needs h5py; run pip install h5py, or save it .*'-v7'"
    for act in (load_hsi, open_scene):
        with pytest.raises(FoveateError, match=sentence):
            act(tmp_path / "a.mat")


# Unmixing


def unmixing(path: Path, **changes) -> tuple[np.ndarray, np.ndarray]:
    rows, columns, bands = 4, 3, 6
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 5000, (bands, rows * columns)).astype(np.uint16)
    shares = generator.dirichlet(np.full(4, 0.3), rows * columns).T
    content = {"Y": matrix, "nRow": rows, "nCol": columns, "A": shares, "M": np.ones((bands, 4))}
    content |= {"maxValue": 4999, "names": "tree"} | changes
    scipy.io.savemat(path, {key: value for key, value in content.items() if value is not None})
    return matrix, shares


def test_unmixing_pixels_run_down_the_columns(tmp_path: Path):
    """Unmixing .mat: pixel order column-major (element [r, c] = Y[:, r + nRow*c])."""
    path = tmp_path / "jasperRidge2_R198.mat"
    matrix, shares = unmixing(path)
    for scene in (load_unmixing_mat(path), load_hsi(path), open_scene(path)):
        assert scene.shape == (4, 3, 6)
        pixels, codes = scene.read(), scene.labels.to_map()
        for row in range(4):
            for column in range(3):
                at = row + 4 * column
                assert pixels[row, column].tolist() == matrix[:, at].tolist()
                largest = int(np.argmax(shares[:, at])) + 1
                assert codes[row, column] == (largest if shares[:, at].max() > 0.5 else 0)
        assert scene.labels.names == {1: "tree", 2: "water", 3: "dirt", 4: "road"}
        assert "unmixing reference" in scene.labels.source
    scaled = load_unmixing_mat(path, scale=5000, minimum=0)
    np.testing.assert_allclose(scaled.read(), pixels / 5000, rtol=1e-6)
    assert len(scaled.labels) == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nRow": 5}, r"Y of shape \(6, 12\) where \(bands, 5 x 3 = 15"),
        ({"nCol": None}, "has no nCol"),
        ({"nRow": 2.5}, "not one whole number"),
        ({"nRow": [1, 2]}, "not one whole number"),
        ({"A": np.ones((4, 11))}, r"A of shape \(4, 11\)"),
        ({"A": np.full((4, 12), np.nan)}, "finite"),
        ({"Y": np.full((6, 12), np.nan)}, "row 0, column 0"),
    ],
)
def test_unmixing_files_that_cannot_be(tmp_path: Path, changes, sentence):
    unmixing(tmp_path / "a.mat", **changes)
    with pytest.raises(FoveateError, match=sentence):
        load_unmixing_mat(tmp_path / "a.mat")


def test_unmixing_without_abundances_and_with_a_wrong_scale(tmp_path: Path):
    unmixing(tmp_path / "a.mat", A=None)
    assert load_unmixing_mat(tmp_path / "a.mat").labels is None
    with pytest.raises(FoveateError, match="scale is 0"):
        load_unmixing_mat(tmp_path / "a.mat", scale=0)


# Published facts


@pytest.mark.parametrize(
    ("known", "labelled", "classes"),
    [
        (hsi.INDIAN_PINES, 10_249, 16),
        (hsi.PAVIA_UNIVERSITY, 42_776, 9),
        (hsi.SALINAS, 54_129, 16),
        (hsi.SALINAS_A, 5_348, 6),
        (hsi.KSC, 5_211, 13),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_counts_sum_to_the_published_totals(known, labelled, classes):
    """Scene constants: counts sum to the labelled totals (10,249; 42,776; 54,129; 5,348; 5,211)."""
    assert (known.labelled, len(known.counts)) == (labelled, classes)
    assert len(set(known.names.values())) == classes
    assert len(known.kept_bands()) == known.bands


def test_dropped_bands():
    kept = (hsi.INDIAN_PINES.kept_bands() + 1).tolist()  # 1-based, as they are published
    assert [band for band in range(1, 221) if band not in kept] == [
        *range(104, 109),
        *range(150, 164),
        220,
    ]
    assert hsi.SALINAS_A.names[10] == "corn_senesced"


def published(known, bands=None):
    """A ground truth with exactly the published counts and a flat cube."""
    size = known.height * known.width
    codes = np.repeat(list(known.counts), list(known.counts.values()))
    labels = np.zeros(size, dtype=np.uint8)
    labels[np.random.default_rng(0).choice(size, len(codes), replace=False)] = codes
    shape = (known.height, known.width)
    return np.zeros((*shape, bands or known.bands), np.uint8), labels.reshape(shape)


@pytest.mark.filterwarnings("error")
def test_a_scene_with_the_published_counts_is_named_without_a_warning(tmp_path: Path):
    pixels, labels = published(hsi.SALINAS_A)
    np.savez(tmp_path / "whatever.npz", x=pixels, gt=labels)
    scene = load_hsi(tmp_path / "whatever.npz")
    assert scene.labels.names == hsi.SALINAS_A.names
    assert scene.labels.counts() == hsi.SALINAS_A.counts


def test_differences_from_the_published_counts_are_warned_about(tmp_path: Path):
    warnings.resetwarnings()
    pixels, labels = published(hsi.SALINAS_A, bands=224)
    labels[np.nonzero(labels == 14)[0][:1], np.nonzero(labels == 14)[1][:1]] = 13
    np.savez(tmp_path / "a.npz", x=pixels, gt=labels)
    sentence = (
        r"looks like Salinas-A but has 224 bands where papers use 204 \(224 as acquired\); "
        r"5348 labelled pixels where 5348 are published \(class 13 675 instead of 674, class 14 "
        r"798 instead of 799\)"
    )
    with pytest.warns(UserWarning, match=sentence):
        load_hsi(tmp_path / "a.npz")
    scipy.io.savemat(tmp_path / "PaviaU.mat", {"paviaU": cube()})
    with pytest.warns(UserWarning, match="7 x 6 pixels where 610 x 340 are published; 5 bands"):
        load_hsi(tmp_path / "PaviaU.mat")


def test_names_of_scenes_that_begin_alike():
    assert hsi._recognise(Path("SalinasA_corrected.mat"), 7, 6) is hsi.SALINAS_A
    assert hsi._recognise(Path("Salinas.mat"), 7, 6) is hsi.SALINAS
    assert hsi._recognise(Path("Pavia.mat"), 7, 6) is None  # the Centre, not the University
    assert hsi._recognise(Path("mine.mat"), 145, 145) is hsi.INDIAN_PINES


def test_cards_find_their_files(tmp_path: Path):
    by_name = {card.name: card for card in hsi.CARDS}
    assert len(by_name) == len(hsi.CARDS) == 6
    assert all(str(card.find(tmp_path)) == "absent" for card in hsi.CARDS)
    (tmp_path / "hsi").mkdir()
    (tmp_path / "hsi" / "PaviaU.mat").touch()
    assert str(by_name["pavia-university"].find(tmp_path)).startswith("incomplete")
    (tmp_path / "hsi" / "PaviaU_gt.mat").touch()
    assert by_name["pavia-university"].find(tmp_path).present
    assert "42776 labelled" in by_name["pavia-university"].size
    for card in hsi.CARDS:
        module, _, name = card.loader.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.filterwarnings("error")
def test_indian_pines_itself(shared_data):
    path = shared_data / "hsi" / "indian_pines.npz"
    scene = open_scene(path)
    assert scene.shape == (145, 145, 200)
    pixels = scene.read()
    assert (pixels.min(), pixels.max()) == (955, 9604)
    assert scene.labels.counts() == hsi.INDIAN_PINES.counts
    assert len(scene.labels) == 10_249
    assert scene.labels.name(16) == "stone-steel-towers"
    spread = pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))
    flat = [*range(102, 105), *range(143, 146), *range(198, 200)]  # nearly: 0-based
    assert np.flatnonzero(spread < 120).tolist() == flat
    # Pixels of the 18 x 18 checkerboard, even blocks, classes 1 to 16
    even = np.add.outer(np.arange(145) // 18, np.arange(145) // 18) % 2 == 0
    counts = np.bincount(scene.labels.to_map()[even], minlength=17)[1:].tolist()
    assert counts == [33, 659, 401, 163, 356, 373, 28, 193, 20, 473, 1184, 346, 88, 631, 290, 31]
