"""The local server of `foveate label`: whom it lets in, what it gives away, what it saves."""

from __future__ import annotations

import io
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from foveate.apps import label as app
from foveate.apps import label_store
from foveate.apps.label import Labelling, open_session
from foveate.errors import FoveateError

pytest.importorskip("fastapi", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from foveate.apps import label_server  # noqa: E402
from foveate.apps.label_server import make_app, serve  # noqa: E402

TOKEN, PORT = "a-token-of-the-test", 8123
HOST = f"127.0.0.1:{PORT}"
SECRET = "SECRET-IN-THE-FILE"  # noqa: S105 - what must not leave a picture's file
NASTY = "<img src=x onerror=document.title='hacked'>.png"


def make_photos(folder: Path, count: int = 24) -> Path:
    rng = np.random.default_rng(0)
    for k in range(count):
        shade = [(210, 60, 60), (60, 60, 210)][k % 2]
        pixels = np.uint8(np.clip(rng.normal(shade, 30, (20, 30, 3)), 0, 255))
        note = PngImagePlugin.PngInfo()
        note.add_text("comment", SECRET)
        name = NASTY if k == 0 else f"{'red' if k % 2 == 0 else 'blue'}-{k:02d}.png"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name, pnginfo=note)
    return folder


@pytest.fixture
def labelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Labelling]:
    monkeypatch.setattr(label_store, "SYNCHRONOUS", "OFF")
    photos = make_photos(tmp_path / "photos")
    with open_session(
        photos, tmp_path / "out", budget=10, classes=("red", "blue"), experts=("DFF", "RAND")
    ) as opened:
        yield opened


class Browser:
    """What the page does, as plain requests."""

    def __init__(self, labelling: Labelling) -> None:
        self.stopped: list[bool] = []
        self.app = make_app(labelling, TOKEN, PORT, lambda: self.stopped.append(True))
        self.client = TestClient(self.app, base_url=f"http://{HOST}", raise_server_exceptions=False)

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(f"/{TOKEN}/{path}", follow_redirects=False, **options)

    def post(self, action: str, body: object, **headers: str) -> Any:
        given = {"origin": f"http://{HOST}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.client.post(f"/{TOKEN}/api/{action}", json=body, headers=given)


@pytest.fixture
def browser(labelling: Labelling) -> Browser:
    return Browser(labelling)


def colour(name: str) -> str:
    return "red" if name == NASTY or name.startswith("red") else "blue"


# ------------------------------------------------------------------------------ whom it lets in


@pytest.mark.parametrize("path", ["/", "/x/", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/", "/api/state", "//"])
def test_without_the_token_there_is_nothing(browser, path):
    for answer in (browser.client.get(path), browser.client.post(path, json={})):
        assert answer.status_code == 404
        assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"[::1]:{PORT}", ""],
)
def test_under_another_name_it_does_not_answer(browser, host):
    """DNS rebinding: a name of somebody else's that points to 127.0.0.1."""
    answer = browser.get("", headers={"host": host})
    assert answer.status_code == 421
    assert "red-" not in answer.text
    assert browser.get("", headers={"host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"http://localhost:{PORT}"}, 403),  # not the host that was asked
        ({"origin": f"https://{HOST}"}, 403),
        ({"origin": "null"}, 403),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_length": "x"}, 411),
        ({"content_length": "99999999"}, 413),
    ],
)
def test_only_the_page_itself_may_change_something(browser, labelling, headers, status):
    name = labelling.session.ask()[0].id
    answer = browser.post("label", {"id": name, "label": "red"}, **headers)
    assert answer.status_code == status
    assert labelling.session.labels == {}


def test_no_origin_no_other_method_no_large_body(browser, labelling):
    name = labelling.session.ask()[0].id
    url, body = f"/{TOKEN}/api/label", {"id": name, "label": "red"}
    assert browser.client.post(url, json=body).status_code == 403
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert browser.client.request(method, url).status_code == 405
    answer = browser.post("class", {"name": "x" * (1 << 15)})
    assert answer.status_code == 413
    assert browser.get("api/label").status_code == 405
    assert labelling.session.labels == {}


def test_a_path_without_a_slash_is_turned_away(browser):
    guard = browser.app
    headers = [(b"host", HOST.encode())]
    for path in ("*", ""):  # OPTIONS *, as a client may send
        scope = {"type": "http", "method": "OPTIONS", "path": path, "headers": headers}
        assert guard.refusal(scope).status_code == 404


def test_a_label_as_long_as_a_table_may_have_can_be_given_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(label_store, "SYNCHRONOUS", "OFF")
    long = "\N{GRINNING FACE}" * 500
    photos = make_photos(tmp_path / "photos")
    with open_session(photos, tmp_path / "out", budget=3, classes=(long, "b")) as opened:
        name = opened.session.ask()[0].id
        assert Browser(opened).post("label", {"id": name, "label": long}).status_code == 200
        assert opened.session.labels == {name: long}


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("label", {"id": "x"}),
        ("label", {"id": 3, "label": "red"}),
        ("label", {"id": "x", "label": "red", "more": 1}),
        ("label", ["x"]),
        ("class", {"name": ""}),
        ("class", {"name": "y" * 201}),
        ("budget", {"budget": 0}),
        ("budget", {"budget": "5"}),
        ("undo", {"x": 1}),
    ],
)
def test_requests_that_are_not_understood_do_nothing(browser, labelling, action, body):
    before = list(labelling.session.events)
    answer = browser.post(action, body)
    assert answer.status_code == 422
    assert answer.json() == {"state": None, "message": "that request is not understood"}
    assert labelling.session.events == before


# ------------------------------------------------------------------------------ what it gives away


def test_the_page_stands_alone_and_names_are_text(browser):
    answer = browser.get("")
    assert answer.status_code == 200
    html, headers = answer.text, answer.headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    # nothing is loaded from anywhere; links lead to the page's own folder
    assert {u for u in re.findall(r'(?:src|href)="([^"#][^"]*)"', html) if u[:5] != "data:"} == {
        "labels.csv"
    }
    assert re.findall(r"https?://(?!www\.w3\.org/)[^\s\"']+", html) == []
    assert TOKEN not in html
    assert "<img src=x" not in html
    assert html.count("<script") == 3


def test_a_picture_is_asked_for_by_its_row_and_made_anew(browser, labelling):
    nasty = labelling.pool.place(NASTY)
    answer = browser.get(f"picture/{nasty}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    original = (labelling.pool.path(nasty)).read_bytes()
    assert SECRET.encode() in original
    assert SECRET.encode() not in answer.content
    with Image.open(io.BytesIO(answer.content)) as shown, Image.open(io.BytesIO(original)) as own:
        assert np.array_equal(np.asarray(shown), np.asarray(own))
    small = browser.get(f"picture/{nasty}?small=1")
    assert small.headers["content-type"] == "image/jpeg"
    for path in (
        "picture/24", "picture/-1", "picture/1e3", "picture/x", "picture/99999999999999999999",
        "picture/..%2f..%2fetc%2fpasswd", "picture/../../etc/passwd", "picture/", "nothing",
        "openapi.json", "docs",
    ):  # fmt: skip
        answer = browser.get(path)
        assert answer.status_code in (404, 422), path
        assert answer.json()["state"] is None


def test_a_large_photograph_is_sent_smaller(tmp_path, browser, labelling):
    Image.effect_noise((2400, 1200), 60).save(labelling.pool.path(3))
    answer = browser.get("picture/3")
    with Image.open(io.BytesIO(answer.content)) as shown:
        assert shown.size == (label_server.LARGE, label_server.LARGE // 2)
    assert answer.headers["content-type"] == "image/jpeg"
    labelling.pool.path(3).write_bytes(b"not a picture any more")
    assert browser.get("picture/3").status_code == 404


# ------------------------------------------------------------------------------ what it saves


def test_label_skip_undo_correct_add_and_finish(browser, labelling):
    session = labelling.session
    state = browser.get("api/state").json()["state"]
    assert state["item"]["number"] == 1
    first = state["item"]["id"]
    answer = browser.post("label", {"id": first, "label": colour(first)})
    assert answer.status_code == 200
    second = answer.json()["state"]["item"]["id"]
    assert second != first
    # the same key pressed twice, or a page in another tab that is behind
    late = browser.post("label", {"id": first, "label": "blue"})
    assert late.status_code == 409
    assert late.json()["message"] == f"{first} is not being asked about any more."
    assert late.json()["state"]["item"]["id"] == second
    assert session.labels == {first: colour(first)}
    assert browser.post("skip", {"id": first}).status_code == 409
    third = browser.post("skip", {"id": second}).json()["state"]["item"]["id"]
    assert session.skipped == [second]
    assert browser.post("undo", {}).json()["state"]["item"]["id"] == second
    assert browser.post("skip", {"id": second}).json()["state"]["item"]["id"] == third
    answer = browser.post("correct", {"id": first, "label": "blue"})
    assert answer.json()["state"]["recent"][0]["label"] == "blue"
    assert browser.post("correct", {"id": third, "label": "blue"}).status_code == 400
    assert browser.post("correct", {"id": "nobody", "label": "blue"}).status_code == 400
    answer = browser.post("label", {"id": third, "label": "green"})
    assert answer.status_code == 400
    assert "none of the classes red, blue" in answer.json()["message"]
    state = browser.post("class", {"name": " green "}).json()["state"]
    assert [c["name"] for c in state["classes"]] == ["red", "blue", "green"]
    assert browser.post("class", {"name": "a\nb"}).status_code == 400
    assert browser.post("label", {"id": third, "label": "green"}).status_code == 200
    for _ in range(8):
        name = session.current[0].id
        state = browser.post("label", {"id": name, "label": colour(name)}).json()["state"]
    assert state["done"] == "All 10 answers are given."
    assert state["item"] is None
    assert browser.post("budget", {"budget": 25}).status_code == 400
    state = browser.post("budget", {"budget": 11}).json()["state"]
    assert state["item"]["reason"]["title"]
    table = browser.get("labels.csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert table.text == labelling.table()
    assert browser.stopped == []
    assert browser.post("finish", {}).json()["message"] == "10 labels are saved."
    assert browser.stopped == [True]


def test_the_label_is_saved_even_when_the_next_item_cannot_be_found(
    browser, labelling, monkeypatch
):
    name = labelling.session.ask()[0].id

    def broken() -> None:
        with sqlite3.connect(labelling.session.file.path) as db:
            kinds = [kind for (kind,) in db.execute("SELECT kind FROM event")]
        assert kinds == ["asked", "told"]
        raise FoveateError("the strategy broke")

    monkeypatch.setattr(labelling.session, "learn", broken)
    answer = browser.post("label", {"id": name, "label": "red"})
    assert answer.status_code == 500
    assert answer.json() == {"state": None, "message": "the strategy broke"}
    assert browser.get("").json()["message"] == "the strategy broke"
    monkeypatch.undo()
    assert browser.get("api/state").json()["state"]["answered"] == 1


def test_another_process_at_the_same_session(browser, labelling):
    name = labelling.session.ask()[0].id
    with open_session(labelling.pool.path(1).parent, labelling.folder) as other:
        other.session.tell({name: "red"}, "file")
        other.session.ask()
    answer = browser.post("label", {"id": name, "label": "blue"})
    assert answer.status_code == 409
    assert "it was read anew" in answer.json()["message"]
    assert answer.json()["state"]["answered"] == 1
    assert labelling.session.labels == {name: "red"}


# ------------------------------------------------------------------------------ for real


def test_served_on_the_loopback_until_finished(labelling):
    said: list[str] = []
    there = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        there.set()

    thread = threading.Thread(target=serve, args=(labelling, 0, False, say), daemon=True)
    thread.start()
    assert there.wait(20)
    address = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]{22,})/", said[0])
    assert address is not None
    port = int(address[1])
    with httpx.Client(base_url=address[0], headers={"origin": f"http://127.0.0.1:{port}"}) as page:
        state = page.get("api/state").json()["state"]
        name = state["item"]["id"]
        done = page.post("api/label", json={"id": name, "label": colour(name)})
        assert done.json()["state"]["answered"] == 1
        assert "server" not in done.headers
        with pytest.raises(FoveateError, match=rf"cannot listen on port {port}"):
            serve(labelling, port, False, say)
        # nobody but this computer: the socket is bound to the loopback address
        with socket.socket() as other:
            other.settimeout(2)
            try:
                outside = socket.gethostbyname(socket.gethostname())
            except OSError:
                outside = "127.0.0.1"
            if not outside.startswith("127."):
                assert other.connect_ex((outside, port)) != 0
        assert page.post("api/finish", json={}).status_code == 200
    thread.join(20)
    assert not thread.is_alive()
    assert labelling.session.labels == {name: colour(name)}


def test_the_command_serves_by_default_and_writes_the_labels_at_the_end(
    tmp_path, monkeypatch, labelling
):
    seen: list[Any] = []

    def person(opened: Labelling, port: int, browser: bool, say: Any) -> None:
        seen.append((port, browser))
        item = opened.session.ask()[0]
        opened.session.tell({item.id: "red"}, "page")

    monkeypatch.setattr(label_server, "serve", person)
    said: list[str] = []
    shown = app.label(tmp_path / "photos", tmp_path / "out", port=7, browser=False, say=said.append)
    assert seen == [(7, False)]
    assert shown["answered"] == 1
    assert said[0] == "1 of 10 answers"
    assert len((tmp_path / "out" / "labels.csv").read_text().splitlines()) == 2
