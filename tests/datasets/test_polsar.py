"""PolSARpro folders by a second writer, packed scenes, and the real files when they are there."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets import polarimetry, polsar
from foveate.datasets.polarimetry import CHANNELS
from foveate.datasets.scene import Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

ROWS, COLUMNS = 12, 10
C3_NAMES = tuple(name.replace("T", "C") for name in CHANNELS)
S2_NAMES = ("s11", "s12", "s21", "s22")
CONFIG = (
    "Nrow\n{0}\n---------\nNcol\n{1}\n---------\n"
    "PolarCase\nmonostatic\n---------\nPolarType\nfull\n"
)


def random_t3(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(rows, columns, 5, 3)) + 1j * rng.normal(size=(rows, columns, 5, 3))
    t3 = np.einsum("hwli,hwlj->hwij", k, k.conj()) / 5
    return ((t3 + t3.conj().swapaxes(-1, -2)) / 2).astype(np.complex64)


def planes_of(t3: np.ndarray) -> list[list[list[float]]]:
    """Nine planes in PolSARpro's order, by hand."""
    return [
        *(t3[..., i, i].real.tolist() for i in range(3)),
        *(
            part.tolist()
            for i, j in ((0, 1), (0, 2), (1, 2))
            for part in (t3[..., i, j].real, t3[..., i, j].imag)
        ),
    ]


def write_folder(
    folder: Path,
    names: tuple[str, ...],
    planes: list[list[list[float]]],
    *,
    order: str = "<",
    config: str | None = CONFIG,
    header: str | None = "{name}.bin.hdr",
    offset: int = 0,
) -> Path:
    """The layout as PolSARpro writes it, number by number."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = len(planes[0]), len(planes[0][0])
    if config is not None:
        (folder / "config.txt").write_text(config.format(rows, columns))
    for name, plane in zip(names, planes, strict=True):
        kind = 4
        data = bytes(offset)
        for row in plane:
            for number in row:
                if isinstance(number, complex):
                    kind = 6
                    data += struct.pack(f"{order}ff", number.real, number.imag)
                else:
                    data += struct.pack(f"{order}f", number)
        (folder / f"{name}.bin").write_bytes(data)
        if header is not None:
            (folder / header.format(name=name)).write_text(
                f"ENVI\ndescription = {{\nPolSARpro File Imported to ENVI}}\nsamples = {columns}\n"
                f"lines   = {rows}\nbands   = 1\nheader offset = {offset}\n"
                f"file type = ENVI Standard\ndata type = {kind}\ninterleave = bsq\n"
                f"byte order = {int(order == '>')}\nband names = {{ {name}.bin }}\n"
            )
    return folder


def write_s2(folder: Path, s2: np.ndarray, **settings_: object) -> Path:
    planes = [s2[..., i, j].tolist() for i in range(2) for j in range(2)]
    return write_folder(folder, S2_NAMES, planes, **settings_)  # type: ignore[arg-type]


def test_write_t3_then_read_t3_is_bit_exact(tmp_path: Path):
    """Checklist: write_t3 miniature (12 x 10) -> read_t3 bit-exact."""
    t3 = random_t3()
    polsar.write_t3(tmp_path / "T3", t3)
    np.testing.assert_array_equal(polsar.read_t3(tmp_path / "T3"), t3)
    polsar.write_t3(tmp_path / "again", polarimetry.t3_channels(t3))
    np.testing.assert_array_equal(polsar.read_t3(tmp_path / "again"), t3)
    second = write_folder(tmp_path / "second", CHANNELS, planes_of(t3))
    for name in CHANNELS:
        one, two = (f / f"{name}.bin" for f in (tmp_path / "T3", second))
        assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "T3" / "config.txt").read_text() == CONFIG.format(ROWS, COLUMNS)
    assert {p.name for p in (tmp_path / "T3").iterdir()} == {
        "config.txt",
        *(f"{name}.bin{end}" for name in CHANNELS for end in ("", ".hdr")),
    }
    for bad in (t3[0], np.zeros((0, 3, 9), np.float32), np.ones((2, 2, 4))):
        with pytest.raises(FoveateError, match="expect"):
            polsar.write_t3(tmp_path / "bad", bad)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("header", ["{name}.bin.hdr", "{name}.hdr", None])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CONFIG + "---------\n",  # the closing dashed line that some writers add
        CONFIG.replace("\n", "\r\n") + "\r\n\r\n",
        CONFIG.replace("---------\n", ""),
        None,
    ],
)
def test_headers_of_both_names_and_configs_of_all_kinds(tmp_path: Path, header, config):
    """Checklist: `.bin.hdr` and `.hdr`; config.txt with and without the closing dashed line."""
    t3 = random_t3()
    folder = write_folder(tmp_path / "T3", CHANNELS, planes_of(t3), config=config, header=header)
    if config is not None:
        found = polsar.read_polsarpro_config(folder)
        assert found == polsar.PolsarproConfig(ROWS, COLUMNS, "monostatic", "full")
    if config is None and header is None:
        with pytest.raises(FoveateError, match=r"neither config.txt nor T11.bin.hdr nor T11.hdr"):
            polsar.read_t3(folder)
    else:
        np.testing.assert_array_equal(polsar.read_t3(folder), t3)


@pytest.mark.parametrize("change", [-4, 4, -ROWS * COLUMNS * 4])
def test_wrong_file_size_raises(tmp_path: Path, change):
    """Checklist: wrong file size raises."""
    folder = write_folder(tmp_path / "T3", CHANNELS, planes_of(random_t3()))
    path = folder / "T13_imag.bin"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(FoveateError, match=r"T13_imag.bin has \d+ bytes where 12 rows of 10"):
        polsar.read_t3(folder)
    path.unlink()
    with pytest.raises(FoveateError, match="needs all of its files"):
        polsar.open_polsar(folder)


def test_a_file_cut_short_after_opening_is_said(tmp_path: Path):
    scene = polsar.open_polsar(write_folder(tmp_path / "T3", CHANNELS, planes_of(random_t3())))
    (tmp_path / "T3" / "T22.bin").write_bytes(b"1234")
    with pytest.raises(FoveateError, match=r"T22.bin has 4 bytes"):
        scene.read()


@pytest.mark.parametrize("header", ["{name}.bin.hdr", "{name}.hdr"])
@pytest.mark.parametrize("offset", [0, 7])
def test_big_endian_header_is_honoured(tmp_path: Path, header, offset):
    """Checklist: byte order = 1 in the header (and a header offset)."""
    t3 = random_t3()
    folder = write_folder(
        tmp_path / "T3", CHANNELS, planes_of(t3), order=">", header=header, offset=offset
    )
    found = polsar.read_t3(folder)
    assert found.dtype == np.complex64
    np.testing.assert_array_equal(found, t3)
    pixels = polsar.open_polsar(folder).read()
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, polarimetry.t3_channels(t3))


@pytest.mark.parametrize("header", ["{name}.bin.hdr", None])
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_of_the_other_byte_order_are_refused(tmp_path: Path, header, order):
    """The bytes are turned and the header is not, or there is none (which means little endian)."""
    folder = write_folder(
        tmp_path / "T3", CHANNELS, planes_of(random_t3()), order=order, header=header
    )
    said = order if header is not None else "<"
    for path in folder.glob("*.bin"):
        stored = np.frombuffer(path.read_bytes(), f"{order}f4")
        path.write_bytes(stored.astype(">f4" if said == "<" else "<f4").tobytes())
    with pytest.raises(
        FoveateError, match=f"other byte order: .*'byte order = {int(said == '<')}'"
    ):
        polsar.open_polsar(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    t3 = random_t3()
    write_folder(root / "t" / "T3", CHANNELS, planes_of(t3))
    write_folder(root / "c" / "C3", C3_NAMES, planes_of(polarimetry.t3_to_c3(t3)))
    rng = np.random.default_rng(1)
    s2 = rng.normal(size=(ROWS, COLUMNS, 2, 2)) + 1j * rng.normal(size=(ROWS, COLUMNS, 2, 2))
    write_s2(root / "s" / "S2", s2.astype(np.complex64))
    return root


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_window_and_step_equal_slices_of_the_full_read(folders, data):
    """Checklist: window and step reading equal slicing of the full read."""
    name, read = data.draw(
        st.sampled_from(
            [("t/T3", polsar.read_t3), ("c/C3", polsar.read_c3), ("s/S2", polsar.read_s2)]
        )
    )
    row, column = data.draw(st.integers(0, ROWS - 1)), data.draw(st.integers(0, COLUMNS - 1))
    height = data.draw(st.integers(1, ROWS - row))
    width = data.draw(st.integers(1, COLUMNS - column))
    step = data.draw(st.integers(1, 13))
    whole = read(folders / name)
    found = read(folders / name, (row, column, height, width), step)
    expected = whole[row : row + height, column : column + width][::step, ::step]
    np.testing.assert_array_equal(found, expected)
    scene = polsar.open_polsar(folders / name)
    window = Window(row, column, height, width)
    np.testing.assert_array_equal(
        scene.read(window), scene.read()[row : row + height, column : column + width]
    )


@pytest.mark.parametrize(
    ("window", "step"),
    [((0, 0, 13, 1), 1), ((-1, 0, 2, 2), 1), ((0, 9, 1, 2), 1), ((0, 0, 0, 3), 1), (None, 0)],
)
def test_windows_outside_are_refused(folders, window, step):
    with pytest.raises(FoveateError, match="is empty or outside the 12 rows and 10 columns"):
        polsar.read_t3(folders / "t" / "T3", window, step)


def test_every_kind_becomes_channels_of_t3(folders, tmp_path: Path):
    t3 = random_t3()
    scene = polsar.open_polsar(folders / "t")
    assert (scene.kind, scene.band_names, scene.shape) == ("polsar", CHANNELS, (12, 10, 9))
    assert (scene.name, scene.path) == ("t", folders / "t" / "T3")
    np.testing.assert_array_equal(scene.read(), polarimetry.t3_channels(t3))
    np.testing.assert_allclose(
        polsar.open_polsar(folders / "c").read(), polarimetry.t3_channels(t3), atol=1e-6
    )
    s2 = polsar.read_s2(folders / "s" / "S2")
    single = polsar.open_polsar(folders / "s").read()
    power = (np.abs(s2[..., 0, 0]) ** 2 + np.abs(s2[..., 1, 1]) ** 2) + np.abs(
        s2[..., 0, 1] + s2[..., 1, 0]
    ) ** 2 / 2
    np.testing.assert_allclose(polarimetry.span(single), power, rtol=1e-5)
    np.testing.assert_allclose(
        single[..., 0], np.abs(s2[..., 0, 0] + s2[..., 1, 1]) ** 2 / 2, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(FoveateError, match=r"T11.bin, C11.bin nor s11.bin"):
        polsar.open_polsar(tmp_path)
    with pytest.raises(FoveateError, match="is no PolSARpro folder C3"):
        polsar.read_c3(folders / "t" / "T3")


def test_upper_left_of_t6_is_the_masters_t3(tmp_path: Path):
    t3 = random_t3()
    folder = write_folder(tmp_path / "T6", CHANNELS, planes_of(t3))
    for name in ("T44", "T55", "T66", "T14_real", "T14_imag"):
        write_folder(folder, (name,), [np.full((ROWS, COLUMNS), 5.0).tolist()])
    np.testing.assert_array_equal(polsar.read_t3(folder), t3)
    np.testing.assert_array_equal(polsar.open_polsar(tmp_path).read(), polarimetry.t3_channels(t3))


def test_dual_polarisation_is_refused(tmp_path: Path):
    planes = planes_of(random_t3())
    write_folder(tmp_path / "C2", C3_NAMES[:2] + C3_NAMES[3:5], planes[:2] + planes[3:5])
    with pytest.raises(FoveateError, match=r"C33.bin cannot be read .* fully polarimetric"):
        polsar.open_polsar(tmp_path / "C2")


def test_big_endian_scattering_matrices(tmp_path: Path):
    rng = np.random.default_rng(2)
    s2 = (rng.normal(size=(4, 3, 2, 2)) + 1j * rng.normal(size=(4, 3, 2, 2))).astype(np.complex64)
    for order in "<>":
        folder = write_s2(tmp_path / order, s2, order=order)
        np.testing.assert_array_equal(polsar.read_s2(folder), s2)
    (folder / "s21.bin.hdr").write_text(
        (folder / "s21.bin.hdr").read_text().replace("data type = 6", "data type = 4")
    )
    with pytest.raises(FoveateError, match=r"data type 4 .* 6 \(complex, single"):
        polsar.read_s2(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_unless_masked(tmp_path: Path, value):
    t3 = random_t3()
    planes = planes_of(t3)
    planes[4][7][3] = value
    folder = write_folder(tmp_path / "T3", CHANNELS, planes)
    sentence = r"T12_imag.bin holds (nan|inf) at row 7, column 3 \(1 such"
    with pytest.raises(FoveateError, match=sentence):
        polsar.read_t3(folder)
    with pytest.raises(FoveateError, match=sentence):
        polsar.read_t3(folder, (5, 1, 4, 6), 2)
    np.testing.assert_array_equal(polsar.read_t3(folder, (0, 0, 7, 10)), t3[:7])
    mask = np.ones((ROWS, COLUMNS))
    mask[7, 3] = 0
    write_folder(folder, ("mask_valid_pixels",), [mask.tolist()], config=None, header=None)
    expected = t3.copy()
    expected[7, 3] = 0
    np.testing.assert_array_equal(polsar.read_t3(folder), expected)
    scene = polsar.open_polsar(folder)
    np.testing.assert_array_equal(scene.read(), polarimetry.t3_channels(expected))
    np.testing.assert_array_equal(scene.read_valid(Window(6, 2, 3, 3)), mask[6:9, 2:5] == 1)


def test_negative_eigenvalues_are_warned_about(tmp_path: Path):
    """min eigenvalue < -1e-6 * trace; rounding of a single look is not taken for it."""
    rng = np.random.default_rng(3)
    k = rng.normal(size=(40, 40, 3)) + 1j * rng.normal(size=(40, 40, 3))
    polsar.write_t3(tmp_path / "single", polarimetry.t3_from_k(k))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polsar.read_t3(tmp_path / "single")
        polsar.open_polsar(tmp_path / "single")
    damaged = random_t3()
    damaged[2, 3] -= 2 * np.trace(damaged[2, 3]).real * np.eye(3)
    damaged[5, :] = -damaged[5, :]
    polsar.write_t3(tmp_path / "damaged", damaged)
    with pytest.warns(UserWarning, match="11 of 120 matrices have a negative eigenvalue"):
        polsar.read_t3(tmp_path / "damaged")
    with pytest.warns(UserWarning, match="11 of 120"):
        polsar.open_polsar(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("config.txt", "Nrow", "Rows", "Nrow = ''"),
        ("config.txt", "12", "0", "Nrow = '0'"),
        ("config.txt", "10", "1e1", "Ncol = '1e1'"),
        ("config.txt", "12", "99999999", "Nrow = '99999999'"),
        ("config.txt", "12", "11", r"says 12 lines of 10 samples where config.txt says 11 of 10"),
        ("T11.bin.hdr", "data type = 4", "data type = 5", "data type 5 and 1 bands where 4"),
        ("T22.bin.hdr", "bands   = 1", "bands   = 2", "data type 4 and 2 bands"),
        ("T33.bin.hdr", "lines   = 12", "lines   = -3", "lines = '-3'"),
        ("T33.bin.hdr", "header offset = 0", "header offset = 4", "need 484"),
    ],
)
def test_contradictions_are_one_sentence(tmp_path: Path, file, old, new, sentence):
    folder = write_folder(tmp_path / "T3", CHANNELS, planes_of(random_t3()))
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(FoveateError, match=sentence):
        polsar.read_t3(folder)


def test_headers_that_disagree_among_themselves(tmp_path: Path):
    folder = write_folder(tmp_path / "T3", CHANNELS, planes_of(random_t3()), config=None)
    header = folder / "T12_real.bin.hdr"
    text = header.read_text().replace("lines   = 12", "lines   = 10")
    header.write_text(text.replace("samples = 10", "samples = 12"))
    with pytest.raises(FoveateError, match=r"disagree on the size: \[\(10, 12\), \(12, 10\)\]"):
        polsar.read_t3(folder)
    (folder / "config.txt").write_bytes(b"-" * (1 << 17))
    with pytest.raises(FoveateError, match="no text header"):
        polsar.read_t3(folder)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=200), name=st.sampled_from(["config.txt", "T22.bin.hdr"]))
def test_any_bytes_in_a_text_file_give_a_result_or_a_sentence(folders, data, name):
    path = folders / "t" / "T3" / name
    original = path.read_bytes()
    try:
        path.write_bytes(original[: len(data)] + data)
        read = polsar.read_t3(path.parent).shape
    except FoveateError as error:
        read = str(error)
    finally:
        path.write_bytes(original)
    assert read == (ROWS, COLUMNS, 3, 3) or str(path.parent) in read


def packed(path: Path, **changes: object) -> Path:
    t3 = np.moveaxis(polarimetry.t3_channels(random_t3()), -1, 0)
    content: dict[str, object] = {
        "T": (t3 * 64).astype(np.float16),
        "scale": np.float32(64),
        "names": np.array(CHANNELS),
        "label_png": (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 4).astype(np.uint8),
        "label_cvcnn": np.ones((ROWS, COLUMNS), np.uint8),
    }
    content.update(changes)
    kept = {key: value for key, value in content.items() if value is not None}
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]
    return path


def test_packed_scene_and_its_label_maps(tmp_path: Path):
    path = packed(tmp_path / "a.npz")
    scene = polsar.load_polsar_npz(path)
    stored = np.load(path)["T"]
    assert (scene.name, scene.kind, scene.shape) == ("a", "polsar", (12, 10, 9))
    expected = np.moveaxis(stored.astype(np.float32) / 64, 0, -1)
    np.testing.assert_array_equal(scene.read(), expected)
    np.testing.assert_array_equal(scene.read(Window(3, 2, 5, 4)), expected[3:8, 2:6])
    assert scene.labels is not None
    np.testing.assert_array_equal(scene.labels.to_map(), np.load(path)["label_png"])
    assert scene.labels.names == {}
    chosen = polsar.load_polsar_npz(path, "label_cvcnn").labels
    assert chosen is not None
    assert chosen.counts() == {1: 120}
    assert chosen.source == "a.npz:label_cvcnn"
    assert polsar.load_polsar_npz(path, None).labels is None
    with pytest.raises(FoveateError, match="no label map 'label'; it has label_cvcnn, label_png"):
        polsar.load_polsar_npz(path, "label")
    bare = packed(tmp_path / "b.npz", scale=None, names=None, label_png=None, label_cvcnn=None)
    scene = polsar.load_polsar_npz(bare)
    assert scene.labels is None
    np.testing.assert_array_equal(scene.read(), 64 * expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"T": np.ones((8, 12, 10), np.float16)}, r"floats \(9, rows, columns\)"),
        ({"T": np.ones((9, 12, 10), np.int16)}, r"floats \(9, rows, columns\)"),
        ({"T": np.ones((9, 0, 10), np.float16)}, r"floats \(9, rows, columns\)"),
        ({"T": np.full((9, 12, 10), np.nan, np.float16)}, "holds nan at row 0, column 0 of T11"),
        ({"names": np.array(C3_NAMES)}, "names its bands 'C11 C22"),
        ({"scale": np.float32(0)}, "has the scale 0"),
        ({"scale": np.array([1.0, 2.0])}, "one number above 0"),
        ({"label_png": np.ones((10, 12), np.uint8)}, r"is for \(10, 12\) pixels where T has"),
        ({"label_png": np.full((12, 10), 0.5)}, "class code 0.5"),
    ],
)
def test_packed_scene_of_another_form(tmp_path: Path, changes, sentence):
    with pytest.raises(FoveateError, match=sentence):
        polsar.load_polsar_npz(packed(tmp_path / "a.npz", **changes))


def test_packed_scene_that_is_no_archive_or_is_damaged(tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(FoveateError, match="as a NumPy archive"):
        polsar.load_polsar_npz(tmp_path / "a.npz")
    with pytest.raises(FoveateError, match="as a NumPy archive"):
        polsar.load_polsar_npz(tmp_path / "none.npz")
    path = packed(tmp_path / "b.npz", T=-np.ones((9, ROWS, COLUMNS), np.float16))
    with pytest.warns(UserWarning, match="9 of 9 matrices have a negative eigenvalue"):
        polsar.load_polsar_npz(path)


def mat_forms(t3: np.ndarray) -> dict[str, np.ndarray]:
    upper = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    sorted_ = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    return {
        "upper": np.stack([t3[..., i, j] for i, j in upper], -1),
        "diagonal first": np.stack([t3[..., i, j] for i, j in sorted_], -1),
        "all nine": t3.reshape(*t3.shape[:2], 9),
    }


@pytest.mark.parametrize("form", ["upper", "diagonal first", "all nine"])
@pytest.mark.parametrize("packed_", [False, True])
@pytest.mark.parametrize("number", [np.complex64, np.complex128])
def test_mat_files_of_complex_matrices(tmp_path: Path, form, packed_, number):
    """The .mat forms (H, W, 6) and (H, W, 9), written by scipy, with `label` uint8 or without."""
    t3 = random_t3()
    label = (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 3).astype(np.uint8)
    content = {"note": "x", "T": mat_forms(t3)[form].astype(number), "label": label}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=packed_)
    scene = polsar.load_polsar_mat(tmp_path / "a.mat")
    np.testing.assert_array_equal(scene.read(), polarimetry.t3_channels(t3))
    assert scene.labels is not None
    np.testing.assert_array_equal(scene.labels.to_map(), label)
    content = {"C": mat_forms(polarimetry.t3_to_c3(t3))["all nine"], "other": content["T"]}
    scipy.io.savemat(tmp_path / "b.mat", content, do_compression=packed_)
    scene = polsar.load_polsar_mat(tmp_path / "b.mat", "C", "C3")
    np.testing.assert_allclose(scene.read(), polarimetry.t3_channels(t3), atol=1e-5)
    assert scene.labels is None
    with pytest.raises(FoveateError, match=r"needs a complex variable .* name the right one"):
        polsar.load_polsar_mat(tmp_path / "b.mat")


def test_mat_files_of_another_form(tmp_path: Path):
    forms, path = mat_forms(random_t3()), tmp_path / "a.mat"
    nan = forms["upper"].copy()
    nan[0, 0, 1] = np.nan
    skew = forms["all nine"].copy()
    skew[..., 1] *= 2
    for array, sentence in (
        (nan, "NaN or infinity"),
        (skew, "not Hermitian"),
        (1j * forms["upper"], "no real diagonal"),
        (forms["upper"].real, "needs a complex variable"),
        (forms["upper"][..., :5], "needs a complex variable"),
    ):
        scipy.io.savemat(path, {"T": array})
        with pytest.raises(FoveateError, match=sentence):
            polsar.load_polsar_mat(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), packed_=st.booleans())
def test_damaged_mat_files_give_a_result_or_a_sentence(tmp_path_factory, data, packed_):
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    content = {"T": mat_forms(random_t3(3, 2))["upper"], "z": np.ones((2, 2))}
    scipy.io.savemat(path, content, do_compression=packed_)
    stored = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(stored[: data.draw(st.sampled_from([len(stored), at]))])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overflow: an exponent was hit
            read = polsar.load_polsar_mat(path).channels
    except FoveateError as error:
        read = str(error)
    assert read == 9 or str(path) in read


def labels_with(counts: dict[int, int], shape: tuple[int, int]) -> SceneLabels:
    codes = np.repeat(list(counts), list(counts.values()))
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    flat[: len(codes)] = codes
    return SceneLabels.from_map(flat.reshape(shape), source="test")


@pytest.mark.parametrize("known", polsar.LABEL_MAPS, ids=lambda known: known.name)
def test_label_maps_are_known_by_their_counts(known):
    labels = labels_with(known.counts, known.shape)
    named = polsar.name_classes(labels)
    assert named.names == known.names
    assert named.colours == known.colours
    assert len(set(named.colours.values())) == len(known.classes)
    counts = dict(known.counts)
    counts[1], counts[2] = counts[1] + 1, counts[2] - 1
    other = labels_with(counts, known.shape)
    assert polsar.name_classes(other).names == {}
    with pytest.raises(FoveateError, match=rf"class 1 .* {known.counts[1]} \({known.names[1]}\)"):
        known.check(other)
    with pytest.raises(FoveateError, match=r"are for \(3, 50\) pixels"):
        known.check(labels_with({1: 5}, (3, 50)))


def test_published_counts():
    """The totals that the sources of the maps state."""
    totals = {known.name: sum(known.counts.values()) for known in polsar.LABEL_MAPS}
    assert totals == {
        "sanfrancisco-airsar": 802_302,
        "flevoland-airsar": 173_111,
        "flevoland-airsar-cvcnn": 157_138,
        "flevoland-airsar-750": 157_296,
        "flevoland-airsar-14": 135_350,
        "oberpfaffenhofen-esar": 328_051 + 246_673 + 736_894,
    }
    names = polsar.SAN_FRANCISCO_AIRSAR.names
    assert list(names) == [1, 2, 3, 4, 5]
    assert list(names.values()) == ["bare soil", "mountain", "water", "urban", "vegetation"]
    assert polsar.SAN_FRANCISCO_AIRSAR.colours[3] == (0, 0, 255)


def test_another_version_of_a_known_map_is_not_named(tmp_path: Path):
    shape = polsar.FLEVOLAND_AIRSAR.shape
    counts = {**polsar.FLEVOLAND_AIRSAR.counts, 14: 9000}
    stored = np.zeros((9, *shape), np.float16)
    stored[:3] = 1
    path = packed(tmp_path / "a.npz", T=stored, label_png=labels_with(counts, shape).to_map())
    with pytest.warns(UserWarning, match="flevoland-airsar and flevoland-airsar-cvcnn"):
        labels = polsar.load_polsar_npz(path).labels
    assert labels is not None
    assert labels.names == {}
    assert labels.name(14) == "class 14"


def test_loaders_say_what_is_absent(tmp_path: Path):
    for load in (polsar.load_san_francisco, polsar.load_flevoland):
        with pytest.raises(FoveateError, match=r"is not below .* expected polsar/"):
            load(tmp_path)
    with pytest.raises(FoveateError, match="choose label_png or label_cvcnn"):
        polsar.load_flevoland(tmp_path, "label")


@pytest.fixture(scope="module")
def polsar_data(shared_data: Path) -> Path:
    if not (shared_data / "polsar").is_dir():
        pytest.skip(f"no PolSAR scenes below {shared_data}")
    return shared_data


def test_real_san_francisco(polsar_data: Path):
    """Checklist: counts per class; class 3 has the lowest median T33/span, class 4 most pixels."""
    scene = polsar.load_san_francisco(polsar_data)
    labels = scene.labels
    assert scene.shape == (900, 1024, 9)
    assert labels is not None
    assert labels.counts() == {1: 13701, 2: 62731, 3: 329566, 4: 342795, 5: 53509}
    assert max(labels.counts(), key=labels.counts().__getitem__) == 4
    pixels = scene.read()
    span = polarimetry.span(pixels)
    share, at = pixels[..., 2] / span, tuple(labels.coordinates.T)
    medians = {c: float(np.median(share[at][labels.codes == c])) for c in labels.classes}
    assert min(medians, key=medians.__getitem__) == 3
    assert labels.name(3) == "water"
    assert medians[3] == pytest.approx(0.02, abs=0.006)
    spans = [round(float(np.median(span[at][labels.codes == c])), 4) for c in labels.classes]
    np.testing.assert_allclose(spans, [0.0311, 0.0864, 0.0475, 0.2538, 0.1304], rtol=5e-3)
    # The full-precision product is positive definite; half precision breaks 4 pixels (M).
    assert (~polarimetry.eigenvalues_reach(pixels, 0.0)).sum() < 10


@pytest.mark.parametrize("key", ["label_png", "label_cvcnn"])
def test_real_flevoland(polsar_data: Path, key):
    """Counts, and the physics of the names: water, bare soil, forest, buildings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 0.07 % of slightly indefinite pixels are no alarm
        scene = polsar.load_flevoland(polsar_data, key)
    labels = scene.labels
    assert labels is not None
    assert len(labels) == {"label_png": 173_111, "label_cvcnn": 157_138}[key]
    pixels = scene.read()[tuple(labels.coordinates.T)]
    share = pixels[:, :3] / polarimetry.span(pixels)[:, None]
    medians = {labels.name(c): np.median(share[labels.codes == c], 0) for c in labels.classes}
    assert medians["water"][2] == pytest.approx(0.01, abs=0.01)
    power = polarimetry.span(pixels)
    spans = {labels.name(c): np.median(power[labels.codes == c]) for c in labels.classes}
    assert spans["bare soil"] == pytest.approx(0.003, abs=0.0006)
    volume, double = ({name: m[n] for name, m in medians.items()} for n in (2, 1))
    assert sorted(volume, key=volume.__getitem__)[:2] == ["water", "bare soil"]
    assert max(volume, key=volume.__getitem__) == "forest"
    assert max(double, key=double.__getitem__) == "buildings"
    assert medians["forest"][2] == pytest.approx(0.23, abs=0.02)
    assert medians["buildings"][1] == pytest.approx(0.60, abs=0.03)
    indefinite = ~polarimetry.eigenvalues_reach(scene.read(), -1e-6)
    assert indefinite.mean() == pytest.approx(7e-4, abs=2e-4)
    assert polarimetry.eigenvalues_reach(polarimetry.clip_eigenvalues(scene.read()), 9e-4).all()


def test_cards_describe_the_files(polsar_data: Path):
    for card in (polsar.SAN_FRANCISCO_CARD, polsar.FLEVOLAND_CARD):
        assert card.verify(polsar_data) == polsar_data / "polsar"


def test_an_old_mask_does_not_blank_what_is_written(tmp_path: Path):
    folder = tmp_path / "T3"
    first = np.tile(np.eye(3, dtype=np.complex64), (4, 5, 1, 1))
    polsar.write_t3(folder, first)
    np.zeros((4, 5), dtype="<f4").tofile(folder / "mask_valid_pixels.bin")
    polsar.write_t3(folder, 2 * first)
    assert np.array_equal(polsar.read_t3(folder), 2 * first)
