"""The container: its bytes by the specification, and what happens to damaged or hostile ones."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engine import file
from foveate.engine.file import Mode, ModelFile, from_bytes, to_bytes
from foveate.engine.graph import BlobStore, Graph, Node, Step, Tensor
from foveate.errors import FoveateError
from foveate.quantization.codes import CodeFormat


def model() -> ModelFile:
    """Two modes that share a convolution of 3-bit codes; the second reads two of its planes."""
    rng = np.random.default_rng(0)
    store = BlobStore()
    codes = rng.integers(0, 8, (3, 70, 1, 1), dtype=np.uint8)
    weight = store.add_codes(codes, 3)
    table = store.add(np.array([[-3, 0, 3]], np.int32))
    flip = store.add(np.array([0, 1, 0], np.uint8))
    alpha = store.add(rng.normal(size=3).astype(np.float32))
    tensors = [
        Tensor(0, (70, 2, 2)),
        Tensor(1, (70, 2, 2), CodeFormat("bipolar", 1)),
        Tensor(2, (3, 2, 2), CodeFormat("unipolar", 1)),
        Tensor(3, (3, 2, 2)),
    ]

    def graph(bits: int) -> Graph:
        attrs: dict[str, Any] = {
            "kernel": [1, 1],
            "stride": [1, 1],
            "padding": [0, 0],
            "dilation": [1, 1],
            "groups": 1,
            "pad": "zero",
            "path": "auto",
            "weight_format": {"kind": "twos", "bits": bits},
        }
        steps = [
            Step("thresholds", {}, {"table": table, "flip": flip}, output=2),
            Step("affine", {}, {"alpha": alpha}),
            Step("store", output=3),
        ]
        sign = Step("quantize", {"step": 1.0, "round": "half_up"}, output=1)
        nodes = [
            Node("pointwise", "sign", [0], [1], steps=[sign]),
            Node("conv", "conv", [1], [2, 3], attrs, {"weight": weight}, steps),
        ]
        return Graph([0], [3], tensors, nodes, {"bits": bits})

    return ModelFile([Mode("three", graph(3)), Mode("zwei", graph(2))], store.blobs, {"k": "ü"})


DATA = to_bytes(model())


def same(a: ModelFile, b: ModelFile) -> bool:
    return (
        list(a.modes) == list(b.modes)
        and a.meta == b.meta
        and len(a.blobs) == len(b.blobs)
        and all(
            x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
            for x, y in zip(a.blobs, b.blobs, strict=True)
        )
    )


def test_written_is_read(tmp_path: Path):
    path = tmp_path / "net.fvt"
    file.write(model(), path)
    assert path.read_bytes() == DATA
    assert same(file.read(path), model())
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.fvt"]


def test_bytes_are_those_of_the_specification():
    """The container read by hand."""
    magic, version, tag, json_at, json_size, table_at, count, size, crc, zero = struct.unpack(
        "<8sIIQQQQQII", DATA[:64]
    )
    assert (magic, version, tag, zero) == (b"FOVEATE\0", 1, 0x01020304, 0)
    assert size == len(DATA)
    assert crc == zlib.crc32(DATA[:56])
    assert count == 1 + 4
    kinds, ends = [], 0
    for index in range(count):
        entry = DATA[table_at + 64 * index : table_at + 64 * (index + 1)]
        offset, length, kind, ndim = struct.unpack_from("<QQII", entry)
        shape = struct.unpack_from("<6I", entry, 24)
        (blob_crc,) = struct.unpack_from("<I", entry, 48)
        assert entry[52:] == bytes(12)
        assert offset % 64 == 0
        assert offset >= ends
        ends = offset + length
        assert zlib.crc32(DATA[offset:ends]) == blob_crc
        assert int(np.prod(shape[:ndim])) * (1, 4, 4, 8)[kind] == length
        assert shape[ndim:] == (0,) * (6 - ndim)
        kinds.append(kind)
        if index == 0:
            assert (offset, length) == (json_at, json_size)
    assert kinds == [0, 3, 1, 0, 2]  # JSON, packed weight, table, flip, alpha
    said = json.loads(DATA[json_at : json_at + json_size].decode("utf-8"))
    assert list(said) == ["version", "modes", "meta"]
    assert [mode["name"] for mode in said["modes"]] == ["three", "zwei"]
    conv = said["modes"][0]["graph"]["nodes"][1]
    # Indices in the JSON are places in the table: 1 is the weight, (Co, planes, kh, kw, words).
    assert conv["blobs"] == {"weight": 1}
    entry = DATA[table_at + 64 : table_at + 128]
    assert struct.unpack_from("<I6I", entry, 20) == (5, 3, 3, 1, 1, 2, 0)
    offset = struct.unpack_from("<Q", entry)[0]
    words = np.frombuffer(DATA, "<u8", 18, offset).reshape(3, 3, 2)
    codes = np.random.default_rng(0).integers(0, 8, (3, 70, 1, 1), dtype=np.uint8)
    assert int(words[2, 0, 1]) >> 5 & 1 == codes[2, 69, 0, 0] >> 2  # top plane of channel 69
    assert int(words[1, 2, 0]) >> 7 & 1 == codes[1, 7, 0, 0] & 1


def test_an_older_file_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "net.fvt"
    path.write_bytes(b"old")

    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(FoveateError, match="No space left"):
        file.write(model(), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.fvt"]


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(FoveateError, match=r"no\.fvt: No such file"):
        file.read(tmp_path / "no.fvt")
    with pytest.raises(FoveateError, match="cannot read"):
        file.read(tmp_path)
    path = tmp_path / "text.fvt"
    path.write_text("hello")
    with pytest.raises(FoveateError, match=r"text\.fvt is no model file.*begin"):
        file.read(path)


def test_models_that_cannot_be_written():
    made = model()
    for modes, words in (
        ([], "1 to 4096 modes"),
        ([made.modes[0], made.modes[0]], "different names"),
        ([Mode("x" * 300, made.modes[0].graph)], "256 bytes"),
    ):
        with pytest.raises(FoveateError, match=words):
            to_bytes(ModelFile(modes, made.blobs))
    with pytest.raises(FoveateError, match="mode 'three': node 1"):
        to_bytes(ModelFile(made.modes, made.blobs[:1]))


# --- damage --------------------------------------------------------------------------------


def survives(data: bytes) -> None:
    """Reading gives a model or a FoveateError, and allocates little."""
    tracemalloc.start()
    try:
        with contextlib.suppress(FoveateError):
            from_bytes(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * len(DATA) + 300_000


@settings(deadline=None, max_examples=150)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 7)), max_size=8),
    cut=st.one_of(st.just(0), st.integers(0, len(DATA))),
    extra=st.binary(max_size=80),
)
def test_random_damage_never_crashes(flips, cut, extra):
    data = bytearray(DATA)
    for place, bit in flips:
        data[place] ^= 1 << bit
    survives(bytes(data[: len(data) - cut]) + extra)


def test_every_single_flipped_bit_is_noticed_or_harmless():
    """Whatever is not noticed is in the gaps between the blobs."""
    for place in range(len(DATA)):
        data = bytearray(DATA)
        data[place] ^= 0x10
        try:
            assert same(from_bytes(bytes(data)), model())
        except FoveateError:
            continue


def test_every_truncation_is_noticed():
    for length in range(0, len(DATA), 7):
        with pytest.raises(FoveateError):
            from_bytes(DATA[:length])


def forged(
    header: dict[int, int] | None = None,
    entry: dict[tuple[int, int], int] | None = None,
    text: bytes | None = None,
) -> bytes:
    """A file whose checksums are right: 64-bit words of the header, 32-bit ones of entries, JSON.

    A new JSON is appended, so that nothing else moves.
    """
    data = bytearray(DATA)
    if text is not None:
        data += bytes(-len(data) % 64)
        start = len(data)
        data += text
        struct.pack_into("<QQ", data, 16, start, len(text))
        struct.pack_into("<QQII", data, 64, start, len(text), 0, 1)
        struct.pack_into("<6I", data, 64 + 24, len(text), 0, 0, 0, 0, 0)
        struct.pack_into("<I", data, 64 + 48, zlib.crc32(text))
        struct.pack_into("<Q", data, 48, len(data))
    for place, value in (header or {}).items():
        struct.pack_into("<Q", data, place, value)
    for (index, place), value in (entry or {}).items():
        struct.pack_into("<I", data, 64 + 64 * index + place, value)
    struct.pack_into("<I", data, 56, zlib.crc32(data[:56]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (forged({8: 2 | 0x01020304 << 32}), "version 2"),
        (forged({8: 1 | 0x04030201 << 32}), "version"),
        (forged({48: 2**63}), "were written"),
        (forged({40: 2**60}), "table"),
        (forged({40: 0}), "table"),
        (forged({40: 1 << 19}), "reaches beyond"),
        (forged({32: 2**64 - 64}), "reaches beyond"),
        (forged({32: 68}), "table"),
        (forged({24: 3}), "blob 0"),
        (forged(entry={(1, 0): 1}), "askew"),
        (forged(entry={(1, 4): 1}), "outside"),
        (forged(entry={(1, 12): 1}), "outside"),
        (forged(entry={(1, 16): 9}), "unknown type 9"),
        (forged(entry={(1, 20): 7}), "7 dimensions"),
        (forged(entry={(1, 20): 0}), "0 dimensions"),
        (forged(entry={(1, 24): 2**32 - 1, (1, 28): 2**32 - 1}), "not its size"),
        (forged(entry={(1, 24): 0}), "not its size"),
        (forged(entry={(1, 44): 5}), "dimensions"),
        (forged(entry={(1, 48): 0}), "damaged"),
        (forged(entry={(1, 60): 1}), "reserved"),
        (forged(entry={(2, 0): struct.unpack_from("<I", DATA, 64 + 64)[0]}), "overlap"),
        (forged(text=b"[" * 200_000), "parsed"),
        (forged(text=b'{"version": NaN}'), "NaN"),
        (forged(text=b"\xff"), "parsed"),
        (forged(text=b"7" * 5000), "parsed"),
        (forged(text=b"[]"), "fields"),
        (forged(text=b'{"version":1,"modes":[],"meta":{}}'), "1 to 4096"),
        (forged(text=b'{"version":1,"modes":3,"meta":{}}'), "no list"),
        (forged(text=b'{"version":1,"modes":[3],"meta":{}}'), "name and a graph"),
        (forged(text=b'{"version":1,"modes":[],"meta":{"a":[]}}'), "strings"),
    ],
)
def test_hostile_files_are_refused(data, words):
    with pytest.raises(FoveateError, match=words):
        from_bytes(data)
    survives(data)


JSON_AT, JSON_SIZE = struct.unpack_from("<QQ", DATA, 16)
SAID = DATA[JSON_AT : JSON_AT + JSON_SIZE].decode("utf-8")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["conv", "f32", "thresholds", "store", "pool", "unipolar", [], {}, [1, 1]]),
)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_value_of_the_json_may_be_anything(data):
    """Right checksums around a JSON of which a few values were replaced, removed or repeated."""
    said: Any = json.loads(SAID)
    for _ in range(data.draw(st.integers(1, 3))):
        here = said
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(here[key], (dict, list)) and here[key] and data.draw(st.integers(0, 9)):
                here = here[key]
                continue
            action = data.draw(st.integers(0, 4))
            if action == 0:
                del here[key]
            elif action == 1 and isinstance(here, list):
                here.append(here[key])
            else:
                here[key] = data.draw(VALUES)
            break
    survives(forged(text=json.dumps(said).encode("utf-8", "surrogatepass")))
