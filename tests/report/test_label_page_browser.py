"""The page of `foveate label` in a real browser, with the real server behind it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import browser_pages
from browser_pages import CHROMIUM
from foveate.apps import label_store
from foveate.apps.label import Labelling, open_session

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]
NASTY = "<img src=x onerror='window.hacked=1'>"
CLASSES = ("red", "green", "blue")


def colour(name: str) -> str:
    return next(word for word in CLASSES if word in name)


def photos(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(45):
        shade = np.full(3, 60)
        shade[k % 3] = 200
        pixels = np.uint8(np.clip(rng.normal(shade, 35, (24, 36, 3)), 0, 255))
        Image.fromarray(pixels).save(folder / f"{CLASSES[k % 3]}-{k:02d}.png")
    return folder


def table(path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [f"{CLASSES[k % 3]} {NASTY}{k}" for k in range(30)]
    long = ["a long remark that does not fit on one line of a small card"] * 30
    columns = {"id": words, "<b>size</b>": rng.normal(0, 1, 30) + np.arange(30) % 3 * 4}
    pl.DataFrame({**columns, "remark": long}).write_csv(path)
    return path


class Served:
    """A session behind its real server, in a thread of this process."""

    def __init__(self, labelling: Labelling) -> None:
        from foveate.apps.label_server import serve

        self.labelling, self.said, there = labelling, list[str](), threading.Event()

        def say(text: str) -> None:
            self.said.append(text)
            there.set()

        self.thread = threading.Thread(target=serve, args=(labelling, 0, False, say), daemon=True)
        self.thread.start()
        assert there.wait(20)
        found = re.search(r"http://\S+", self.said[0])
        assert found is not None
        self.address = found[0]


class Opened(browser_pages.Opened):
    """... with what this page has."""

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector))

    @property
    def turn(self) -> int:
        return int(self.run("document.documentElement.dataset.turn"))

    def after(self, action: Any) -> None:
        """Do something, and wait until the page shows the state that follows."""
        turn = self.turn
        action()
        self.page.wait_for_selector(f"html[data-turn='{turn + 1}']", timeout=20_000)

    def press(self, key: str) -> None:
        self.after(lambda: self.page.keyboard.press(key))

    def answer(self) -> str:
        name = self.text("#name")
        self.press(str(1 + CLASSES.index(colour(name))))
        return name


@pytest.fixture
def opened(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(label_store, "SYNCHRONOUS", "OFF")
    kept: list[tuple[Opened, Served]] = []

    def open_page(pool: Path | Served, budget: int = 20, **options: Any) -> tuple[Opened, Served]:
        served = pool
        if isinstance(served, Path):
            served = Served(
                open_session(
                    served, tmp_path / "out", budget=budget, classes=CLASSES,
                    experts=("DENS", "DFF", "RAND"),
                )
            )  # fmt: skip
        kept.append((Opened(chromium, served.address, **options), served))
        return kept[-1]

    yield open_page
    for page, served in kept:
        if served.thread.is_alive():
            page.run("fetch('api/finish', {method: 'POST', body: '{}',"
                     " headers: {'content-type': 'application/json'}})")  # fmt: skip
        page.context.close()
        served.thread.join(20)
        served.labelling.session.file.close()


def test_labelling_with_the_keyboard_from_the_first_item_to_the_last(opened, tmp_path):
    one, served = opened(photos(tmp_path / "photos"), budget=14)
    session = served.labelling.session
    assert one.text("#why-title") == "Getting to know the pool"
    assert "Not seen yet: red, green, blue." in one.text("#why-text")
    assert not one.page.locator("#trust-card").is_visible()
    assert one.page.locator("#undo").is_disabled()
    names = [one.answer() for _ in range(5)]
    assert session.labels == {name: colour(name) for name in names}
    assert "Saved: " + colour(names[-1]) in one.text("#saved")
    one.press("s")
    assert len(session.skipped) == 1
    one.press("u")
    assert session.skipped == []
    one.press("Control+z")
    assert list(session.labels) == names[:4]
    assert one.text("#name") == names[4]
    for _ in range(8):
        one.answer()
    # the picture is there, as large as its place allows
    one.page.wait_for_selector("#picture.tiny")
    assert one.run("document.getElementById('picture').naturalWidth") == 36
    assert one.run("document.getElementById('picture').clientHeight") > 300
    assert "asked for this one" in one.text("#why-title")
    assert one.run("document.querySelectorAll('#shares li').length") == 4
    widths = one.run("[...document.querySelectorAll('#stack i')].map(i => i.clientWidth)")
    assert 300 < sum(widths) < 360
    assert one.text("#accuracy").endswith("%")
    points = one.run("document.querySelector('#curve .line').points.length")
    assert points == len(served.labelling.snapshot()["curve"]) > 5
    assert one.run("document.querySelectorAll('#trust .area').length") == 3
    assert one.text("#answered") == "12"
    one.answer()
    one.answer()
    assert one.page.locator("#done").is_visible()
    assert one.text("#done-title") == "All 14 answers are given."
    assert not one.page.locator("#picture").is_visible()
    one.after(lambda: one.page.click("#more"))
    assert session.budget == 24
    one.answer()
    with one.page.expect_download() as download:
        one.page.click(".tools a")
    assert Path(download.value.path()).read_text() == served.labelling.table()
    one.page.click("#finish")
    served.thread.join(20)
    assert not served.thread.is_alive()
    assert one.text("#done-title") == "15 answers are saved."
    assert one.complaints == []
    own = served.address
    assert [u for u in one.requests if not u.startswith((own, "data:"))] == []


def test_the_mouse_correcting_and_a_class_of_ones_own(opened, tmp_path):
    one, served = opened(photos(tmp_path / "photos"))
    session = served.labelling.session
    first = one.text("#name")
    one.after(lambda: one.page.click("#classes button:nth-child(2)"))
    assert session.labels == {first: "green"}
    one.page.click("#recent li:first-child button")
    assert one.text("#correct-name") == first
    assert one.text("#correct-was") == "was called green"
    one.page.keyboard.press("s")  # no skipping behind an open dialog
    assert session.skipped == []
    one.press("3")
    assert session.labels == {first: "blue"}
    assert not one.page.locator("#correct").is_visible()
    one.page.fill("#class-name", "purple <i>2</i>")
    one.after(lambda: one.page.keyboard.press("Enter"))
    assert session.classes[-1] == "purple <i>2</i>"
    assert one.text("#classes button:last-child span") == "purple <i>2</i>"
    one.press("4")
    assert list(session.labels.values()) == ["blue", "purple <i>2</i>"]
    # keys typed into the field are letters, not answers
    one.page.fill("#class-name", "")
    one.page.type("#class-name", "s1u")
    assert len(session.labels) == 2
    # two tabs: the one that is behind is told so, and shows the item of now
    two, _ = opened(served)
    two.answer()
    assert one.text("#name") != two.text("#name")
    one.page.click("#main h1")
    one.press("1")
    assert "is not being asked about any more" in one.text("#trouble")
    assert one.text("#name") == two.text("#name")
    assert len(session.labels) == 3
    one.complaints = [text for text in one.complaints if "409" not in text]
    assert one.complaints == two.complaints == []


def test_when_the_command_has_stopped_the_page_says_so(opened, tmp_path):
    one, served = opened(photos(tmp_path / "photos"))
    one.answer()
    one.page.route("**/api/**", lambda route: route.abort())
    one.page.keyboard.press("1")
    one.page.wait_for_selector("#trouble:not([hidden])")
    assert "Answers that this page called saved are kept" in one.text("#trouble")
    one.page.unroute("**/api/**")
    one.answer()
    assert not one.page.locator("#trouble").is_visible()


def test_a_table_and_hostile_names_do_nothing(opened, tmp_path):
    one, served = opened(table(tmp_path / "t.csv"))
    for _ in range(7):
        one.answer()
    assert NASTY in one.text("#name")
    assert one.run("window.hacked") is None
    assert one.run("document.querySelectorAll('main img[src=x]').length") == 0
    assert "<b>size</b>" in one.text("#values")
    assert one.run("document.querySelectorAll('#values b').length") == 0
    assert one.page.locator("#values .wide").count() == 1  # the remark takes two columns
    assert not one.page.locator("#picture").is_visible()
    one.page.click("#recent li:first-child button")
    assert one.run("document.querySelectorAll('dialog img:not([hidden])').length") == 0
    assert one.run("window.hacked") is None
    assert one.complaints == []


COLOURS = (
    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
    " getComputedStyle(document.querySelector('.stage')).backgroundColor,"
    " getComputedStyle(document.querySelector('#curve .line')).stroke,"
    " getComputedStyle(document.querySelector('#trust .area')).fill]"
)


def test_light_dark_and_a_phone(opened, tmp_path):
    one, served = opened(photos(tmp_path / "photos"))
    for _ in range(8):
        one.answer()
    light = one.run(COLOURS)
    one.page.click("#theme")
    dark = one.run(COLOURS)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    two, _ = opened(served, color_scheme="dark")
    assert two.run(COLOURS) == dark
    # everything that is needed to answer is on the first screen, on a desk and in a hand
    bottom = "document.querySelector('.actions').getBoundingClientRect().bottom"
    assert one.run(bottom) <= 900
    phone, _ = opened(
        served, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True
    )
    assert phone.run("document.documentElement.scrollWidth") == 390
    assert phone.run(bottom) <= 844
    boxes = phone.run(
        "[...document.querySelectorAll('#classes button')].map(b => b.getBoundingClientRect())"
        ".map(b => [b.width, b.height])"
    )
    assert min(width for width, _ in boxes) > 150
    assert min(height for _, height in boxes) >= 48
    turn = phone.turn
    phone.page.tap("#classes button:first-child")
    phone.page.wait_for_selector(f"html[data-turn='{turn + 1}']")
    assert one.complaints == two.complaints == phone.complaints == []


def test_it_can_be_used_without_seeing_it(opened, tmp_path):
    one, _ = opened(photos(tmp_path / "photos"))
    one.answer()
    assert one.page.get_by_role("progressbar").get_attribute("aria-valuenow") == "1"
    assert one.page.get_by_role("group", name="Which class is it?").count() == 1
    assert one.page.get_by_role("status").text_content()
    shown = "[...document.querySelectorAll('button')].filter(b => b.checkVisibility())"
    names = one.run(f"{shown}.map(b => b.ariaLabel || b.textContent)")
    assert len(names) > 6
    assert all(name.strip() for name in names)
    assert one.page.get_attribute("#picture", "alt")
    # every button can be reached by tab, in the order of the page
    one.page.focus("#classes button:first-child")
    one.page.keyboard.press("Tab")
    assert one.run("document.activeElement.textContent").startswith("2green")
    turn = one.turn
    one.page.keyboard.press("Enter")
    one.page.wait_for_selector(f"html[data-turn='{turn + 1}']")
