"""The page of `foveate shrink` in a real browser, opened from disk."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from browser_pages import CHROMIUM
from foveate.report.shrink import write_shrink_page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]


def neighbour(name: str) -> ModuleType:
    """The tests of the file beside this one: they know what a summary looks like."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = neighbour("test_shrink_page")
    folder = tmp_path_factory.mktemp("pages")
    write_shrink_page(folder / "report.html", content.summary())
    write_shrink_page(folder / "hostile.html", content.poisoned(content.summary()))
    return folder


def test_opens_from_disk_draws_everything_and_asks_nothing_of_the_network(opened: Any) -> None:
    one = opened()
    assert one.complaints == []
    assert [u[:60] for u in one.requests if not u.startswith(("file:", "data:", "blob:"))] == []
    assert len([u for u in one.requests if u.startswith("file:")]) == 1  # the page itself
    # what plotly really put on the screen: five points with their names, six bars per width
    assert one.run("document.querySelectorAll('[data-plot=\"0\"] .points path').length") == 5
    names = one.run(
        "[...document.querySelectorAll('[data-plot=\"0\"] .textpoint')].map(t => t.textContent)"
    )
    assert sorted(names) == ["2-bit", "4-bit", "ORT fp32", "ORT int8", "PyTorch"]
    for plot in (1, 2):
        bars = f"document.querySelectorAll('[data-plot=\"{plot}\"] .bars .point path').length"
        assert one.run(bars) == 6
    # better is up and to the left: the 2-bit point is left of PyTorch's and below it
    x, y = one.run(
        "(() => { const at = (name) => [...document.querySelectorAll('.textpoint')]"
        ".find(t => t.textContent === name).getBoundingClientRect();"
        " const a = at('2-bit'), b = at('PyTorch'); return [a.left - b.left, a.top - b.top]; })()"
    )
    assert x < 0 < y
    assert one.run("[...document.querySelectorAll('.layers tbody tr')].length") == 3


def test_names_in_the_figures_do_not_lie_on_each_other(opened: Any) -> None:
    boxes = opened().run(
        "[...document.querySelectorAll('[data-plot=\"0\"] .textpoint')].map(t => "
        "{ const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
    )
    for i, (l1, t1, r1, b1) in enumerate(boxes):
        for l2, t2, r2, b2 in boxes[i + 1 :]:
            assert r1 <= l2 + 1 or r2 <= l1 + 1 or b1 <= t2 + 3 or b2 <= t1 + 3


COLOURS = (
    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
    " getComputedStyle(document.querySelector('.verdict')).backgroundColor,"
    " document.querySelector('.bars .point path').style.fill,"
    " document.querySelector('.graph .xtick text').style.fill]"
)


def test_the_button_changes_the_colours_of_page_and_plots(opened: Any) -> None:
    one = opened()
    light = one.run(COLOURS)
    one.page.click("#theme")
    dark = one.run(COLOURS)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    one.page.click("#theme")
    assert one.run(COLOURS) == light
    assert opened(color_scheme="dark").run(COLOURS) == dark


def test_a_figure_keeps_its_own_axes_when_it_is_clicked_and_dragged(opened: Any) -> None:
    one = opened()
    axes = "[...document.querySelectorAll('.graph')].map(g => [...g._fullLayout.xaxis.range])"
    before = one.run(axes)
    area = one.page.locator(".nsewdrag").first.bounding_box()
    one.page.mouse.move(area["x"] + 40, area["y"] + 40)
    one.page.mouse.down()
    one.page.mouse.move(area["x"] + 200, area["y"] + 120, steps=4)
    one.page.mouse.up()
    one.page.mouse.dblclick(area["x"] + 60, area["y"] + 60)
    one.page.wait_for_timeout(50)
    assert one.run(axes) == before
    assert one.complaints == []


def test_paper_is_light_and_holds_everything(opened: Any) -> None:
    one = opened(color_scheme="dark")
    one.page.emulate_media(media="print", color_scheme="dark")
    one.page.wait_for_timeout(200)
    assert not one.page.locator("#theme").is_visible()
    assert one.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert max(one.run("[...document.querySelectorAll('.graph')].map(g => g.layout.width)")) <= 690
    assert one.page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"
    assert one.complaints == []
    # a sheet of A4 is as narrow as a small window, and still shows the table as a table
    sheet = opened(viewport={"width": 690, "height": 1000})
    assert not sheet.page.locator(".contest thead").is_visible()
    sheet.page.emulate_media(media="print")
    assert sheet.page.locator(".contest thead").is_visible()
    assert sheet.run("document.querySelector('.contest table').clientWidth") <= 690


def test_a_phone_shows_everything_without_sideways_scrolling(opened: Any) -> None:
    one = opened(
        viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark"
    )
    assert one.run("document.documentElement.scrollWidth") == 390
    assert (
        max(one.run("[...document.querySelectorAll('.graph .main-svg')].map(s => s.clientWidth)"))
        <= 390
    )
    # a contender is a card there: its figures say what they are
    label = "getComputedStyle(document.querySelector('.chosen td'), '::before').content"
    assert one.run(label) == '"accuracy, %"'
    assert one.complaints == []


def test_hostile_names_do_nothing(opened: Any) -> None:
    one = opened("hostile.html")
    area = one.page.locator("[data-plot='1'] .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    one.page.mouse.move(box["x"] + 8, box["y"] + 9)  # on the first bar
    one.page.wait_for_selector(".hoverlayer .hovertext")
    assert "</script><script>" in one.page.locator("[data-plot='1'] .hoverlayer").text_content()
    assert one.run("window.hacked") is None
    assert one.run("document.querySelectorAll('img').length") == 0
    assert one.run("document.querySelectorAll('script').length") == 4
    assert one.complaints == []
