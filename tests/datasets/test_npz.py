"""Reader of NumPy archives: what numpy wrote comes back, and nothing hostile gets memory."""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from foveate.datasets.npz import read_npz
from foveate.errors import FoveateError


def member(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An npy file with a header of our own."""
    text = header.encode("latin-1")
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


def archive(path: Path, content: bytes, **settings_: object) -> Path:
    with zipfile.ZipFile(path, "w", **settings_) as file:  # type: ignore[call-overload]
        file.writestr("x.npy", content)
    return path


@settings(deadline=None, max_examples=60)
@given(
    array=stn.arrays(
        st.one_of(
            stn.integer_dtypes(),
            stn.floating_dtypes(),
            stn.boolean_dtypes(),
            st.just(np.dtype("U5")),
        ),
        stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    fortran=st.booleans(),
    packing=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
)
def test_what_numpy_wrote_comes_back(array, fortran, packing):
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array) if fortran else array)
    with tempfile.TemporaryDirectory() as scratch:
        path = archive(Path(scratch) / "a.npz", buffer.getvalue(), compression=packing)
        found = read_npz(path, ("x",), 1 << 20)["x"]
    assert found.dtype == array.dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_several_arrays_of_savez(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(5), y=np.array(["a", "bc"]), z=np.ones(2))
    found = read_npz(tmp_path / "a.npz", ("y", "x"), 1000)
    assert list(found) == ["y", "x"]
    assert found["y"].tolist() == ["a", "bc"]


def test_pickled_objects_are_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FoveateError, match=r"not of plain numbers or texts.*; save it as plain"):
        read_npz(tmp_path / "a.npz", ("x",), 1000)


@pytest.mark.parametrize(
    ("header", "data", "sentence"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (5,)}\n", b"1234", "claims 5 bytes of"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}\n", b"1234", "claims 3 bytes of"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,)}\n", b"", "at most"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}\n", b"", "cannot read x"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", bytes(8), "not of plain"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}\n", bytes(8), "not of plain"),
        (
            "{'descr': [('a', '<u1')], 'fortran_order': False, 'shape': (1,)}\n",
            b"1",
            "not of plain",
        ),
        ("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}\n", bytes(8), "not of plain"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1" * 900 + "x)}", b"", "not of"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1, " * 33 + ")}", b"", "33 axes"),
        ("__import__('os')", b"", "cannot read x"),
        ("{'shape': (1,)}\n", b"", "cannot read x"),
        ("(" * 9000, b"", "cannot read x"),
        ("{" + " " * 60000 + "}", b"", "cannot read x"),
    ],
)
def test_hostile_headers(tmp_path: Path, header, data, sentence):
    path = archive(tmp_path / "a.npz", member(header, data))
    with pytest.raises(FoveateError, match=sentence) as caught:
        read_npz(path, ("x",), 1 << 20)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no array of format"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header of 4294967295 bytes"),
        (b"\x93NUMPY\x03\x00\x00\x00\x00\x00", "no array of format 1.0 or 2.0"),
        (b"not numpy at all", "no array of format"),
    ],
)
def test_members_that_are_no_arrays(tmp_path: Path, content, sentence):
    with pytest.raises(FoveateError, match=sentence):
        read_npz(archive(tmp_path / "a.npz", content), ("x",), 1000)


def test_size_limit_missing_array_and_damage(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1001, np.uint8))
    with pytest.raises(FoveateError, match="'x' claims 1001 bytes, at most 1000"):
        read_npz(path, ("x",), 1000)
    with pytest.raises(FoveateError, match="it has no array 'y'"):
        read_npz(path, ("x", "y"), 2000)
    with pytest.raises(FoveateError, match=r"cannot read x of .*b\.npz"):
        read_npz(tmp_path / "b.npz", ("x",), 1000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # within the numbers: only the CRC can tell
    path.write_bytes(data)
    with pytest.raises(FoveateError, match="CRC"):
        read_npz(path, ("x",), 2000)


def test_archive_of_very_many_members(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for n in range(1001):
            file.writestr(f"{n}.npy", b"")
    with pytest.raises(FoveateError, match="it has 1001 members"):
        read_npz(tmp_path / "a.npz", ("x",), 1000)


@pytest.mark.parametrize("order", "<>")
def test_texts_of_what_is_no_letter(tmp_path: Path, order):
    for letter, fits in ((0x10FFFF, True), (0x110000, False)):
        text = np.array([0x41, letter], f"{order}u4").view(f"{order}U1")
        np.savez(tmp_path / "a.npz", x=text)
        if fits:
            assert read_npz(tmp_path / "a.npz", ("x",), 1000)["x"].tolist() == ["A", chr(letter)]
        else:
            with pytest.raises(FoveateError, match="no letters"):
                read_npz(tmp_path / "a.npz", ("x",), 1000)


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 400), flip=st.integers(1, 255), packed=st.booleans())
def test_any_flipped_byte_is_an_error_or_unseen(at, flip, packed):
    array = np.arange(64, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.npz"
        (np.savez_compressed if packed else np.savez)(path, x=array)
        data = bytearray(path.read_bytes())
        data[at % len(data)] ^= flip
        path.write_bytes(data)
        try:
            found = read_npz(path, ("x",), 1000)["x"]
        except FoveateError:
            return
    assert found.tobytes() == array.tobytes()
