"""The page of `foveate watch` in a real browser, opened from disk."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import browser_pages
from browser_pages import CHROMIUM
from foveate.report.watch import write_watch_page
from foveate.streams.timeline import Timeline

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]

DURATION = 12.0
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


def make_video(path: Path) -> bytes:
    """A grey ramp of 12 s as H.264, and one of its frames as JPEG."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(int(DURATION * 10)):
            picture = np.full((64, 96, 3), 40 + i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    jpeg = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), 120, np.uint8)).save(jpeg, "JPEG")
    return jpeg.getvalue()


def signals(track: int = 0) -> Timeline:
    hops = np.arange(1.0, DURATION, 0.5)
    rate = 55 + hops  # a different value at every moment
    rate[(hops >= 6) & (hops <= 8)] = np.nan
    frames = np.arange(int(DURATION * 30)) / 30
    return Timeline.concat(
        [
            Timeline.of("pulse.hr_bpm", track, hops, rate),
            Timeline.of("pulse.hr_low_bpm", track, hops, rate - 2),
            Timeline.of("pulse.hr_high_bpm", track, hops, rate + 2),
            Timeline.of("pulse.bvp", track, frames, np.sin(6 * frames)),
            Timeline.of("face.visible", track, frames, np.ones(len(frames))),
            Timeline.of("pulse.snr_db", track, hops, np.full(len(hops), 5.0)),
        ]
    )


def summary(name: str = "face.mp4", **changes: Any) -> dict[str, Any]:
    rate = {"bpm": 58.0, "low": 56.0, "high": 60.0, "confidence": 0.9, "accepted": True}
    return {
        "source": {"name": name, "width": 96, "height": 64, "duration_s": DURATION},
        "people": [{"track": 0, "heart_rate": rate}],
        "refusals": [
            {"what": "heart rate", "track": 0, "from_s": 6.0, "to_s": 8.0, "reason": "moved"}
        ],
    } | changes


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    poster = make_video(folder / "annotated.mp4")
    video = folder / "annotated.mp4"
    write_watch_page(folder / "report.html", summary(), signals(), video, poster)
    write_watch_page(folder / "still.html", summary(), signals(), None, None)
    (folder / "broken.mp4").write_bytes(b"this is no video")
    write_watch_page(folder / "broken.html", summary(), signals(), folder / "broken.mp4", None)
    refusal = {"what": HOSTILE, "track": 0, "from_s": 6, "to_s": 8, "reason": HOSTILE}
    person = {"track": 0, "heart_rate": {"bpm": None, "reason": HOSTILE}}
    hostile = summary(
        HOSTILE,
        notes=[HOSTILE],
        people=[person],
        refusals=[refusal, refusal | {"what": "heart rate"}],
        simulated=True,
        simulation_note=HOSTILE,
    )
    odd = Timeline.concat([signals(), Timeline.of(f"{HOSTILE}.{HOSTILE}", 0, [0, 5], [1, 2])])
    write_watch_page(folder / "hostile.html", hostile, odd, video, poster)
    return folder


class Opened(browser_pages.Opened):
    """... with what this page has."""

    def until(self, condition: str) -> None:
        # the page's policy forbids the eval that playwright's own waiting needs
        for _ in range(500):
            if self.run(condition):
                return
            self.page.wait_for_timeout(10)
        pytest.fail(f"did not happen within 5 s: {condition}")

    def seek(self, seconds: float) -> None:
        self.run(
            "t => new Promise(done => { const v = document.getElementById('video');"
            "v.addEventListener('seeked', () => requestAnimationFrame("
            "() => requestAnimationFrame(done)), {once: true}); v.currentTime = t; })",
            seconds,
        )

    def cursors(self) -> list[float]:
        """Time that each cursor points at, measured on the screen against plotly's own axis."""
        return self.run(
            "[...document.querySelectorAll('[data-plot]')].map(box => {"
            " const g = box.querySelector('.graph'), x = g._fullLayout.xaxis;"
            " const c = box.querySelector('.cursor').getBoundingClientRect();"
            " const left = g.querySelector('.nsewdrag').getBoundingClientRect().left;"
            " return x.p2d(c.left + c.width / 2 - left); })"
        )

    def click_plot(self, title: str, seconds: float) -> None:
        figure = self.page.locator("figure.plot", has=self.page.get_by_text(title, exact=False))
        area = figure.first.locator(".nsewdrag").first
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        self.page.mouse.click(
            box["x"] + box["width"] * seconds / DURATION, box["y"] + box["height"] / 2
        )


@pytest.fixture(scope="module")
def shared(chromium: Any, pages: Path) -> Iterator[Opened]:
    one = Opened(chromium, pages / "report.html")
    yield one
    one.context.close()


@pytest.fixture
def report(shared: Opened) -> Iterator[Opened]:
    """The ordinary page, at rest at the beginning; opened once, for it takes a second or two."""
    shared.run("document.getElementById('video').pause()")
    shared.run("document.activeElement.blur(), page.show(null), scrollTo(0, 0)")
    shared.run("document.getElementById('video').currentTime = 0")
    shared.until("!document.getElementById('video').seeking")
    yield shared
    assert shared.complaints == []


def test_opens_from_disk_without_a_complaint_and_without_the_network(report: Opened) -> None:
    one = report
    one.seek(3.0)
    assert one.complaints == []
    assert [u[:40] for u in one.requests if not u.startswith(("file:", "data:", "blob:"))] == []
    assert len([u for u in one.requests if u.startswith("file:")]) == 1  # the page itself
    assert one.run("document.querySelectorAll('.main-svg').length > 0")


def test_curves_hold_the_samples_of_the_timeline(report: Opened) -> None:
    one = report
    drawn = one.run(
        "[...document.querySelectorAll('.graph')].map(g => g.data.map(t => t.x.length))"
    )
    assert [22] in [[n for n in lengths if n == 22] for lengths in drawn]  # heart rate
    assert [360] in drawn  # pulse wave
    # what plotly really put on the screen: the wave is one path of many segments
    path = one.run(
        "[...document.querySelectorAll('.graph')].find(g => g.data[0].x.length === 360)"
        ".querySelector('path.js-line').getAttribute('d').split(/[LM]/).length"
    )
    assert path >= 360


def test_a_click_on_the_heart_rate_seeks_the_video(report: Opened) -> None:
    one = report
    for seconds in (3.0, 9.5, 7.0):  # the last on the hatched, refused part
        one.click_plot("Heart rate", seconds)
        one.until("!document.getElementById('video').seeking")
        assert one.run("document.getElementById('video').currentTime") == pytest.approx(
            seconds, abs=0.2
        )


def test_every_cursor_follows_the_video(report: Opened) -> None:
    one = report
    for seconds in (1.5, 10.2):
        one.seek(seconds)
        places = one.cursors()
        assert len(places) == 4
        assert places == pytest.approx([seconds] * 4, abs=0.06)
    # and while it plays
    one.run("document.getElementById('video').muted = true")
    one.run("document.getElementById('video').currentTime = 2")
    one.run("void document.getElementById('video').play().catch(() => {})")
    one.until("document.getElementById('video').currentTime > 2.6")
    one.run("document.getElementById('video').pause()")
    one.page.wait_for_timeout(100)
    played = one.run("document.getElementById('video').currentTime")
    assert one.cursors() == pytest.approx([played] * 4, abs=0.06)


def test_readouts_tell_the_value_at_the_cursor(report: Opened) -> None:
    one = report
    readout = one.page.locator("figure.plot", has=one.page.get_by_text("Heart rate")).first.locator(
        ".readouts"
    )
    one.seek(4.0)
    assert readout.inner_text() == "59.0 bpm"
    one.seek(7.0)
    assert readout.inner_text() == "– bpm"  # refused there


def test_zooming_one_figure_zooms_all_and_comes_back(report: Opened) -> None:
    one = report
    area = one.page.locator(".nsewdrag").nth(1).bounding_box()
    y = area["y"] + area["height"] / 2
    one.page.mouse.move(area["x"] + area["width"] * 0.25, y)
    one.page.mouse.down()
    one.page.mouse.move(area["x"] + area["width"] * 0.5, y, steps=5)
    one.page.mouse.up()
    one.until("!document.getElementById('zoom-out').hidden")
    ranges = one.run("[...document.querySelectorAll('.graph')].map(g => g._fullLayout.xaxis.range)")
    for span in ranges:
        assert span == pytest.approx([3.0, 6.0], abs=0.1)
    assert one.run("document.getElementById('video').currentTime") == 0  # a drag is no click
    one.seek(4.5)
    assert one.cursors() == pytest.approx([4.5] * 4, abs=0.05)
    one.seek(8.0)
    hidden = "[...document.querySelectorAll('.cursor')].map(c => getComputedStyle(c).visibility)"
    assert set(one.run(hidden)) == {"hidden"}
    one.page.click("#zoom-out")
    ranges = one.run("[...document.querySelectorAll('.graph')].map(g => g._fullLayout.xaxis.range)")
    assert ranges == [[0, DURATION]] * 4


def test_keys_play_and_step(report: Opened) -> None:
    one = report
    one.seek(5.0)
    one.page.keyboard.press("ArrowRight")
    one.until("document.getElementById('video').currentTime === 6")
    one.page.keyboard.press("ArrowLeft")
    one.until("document.getElementById('video').currentTime === 5")
    one.page.keyboard.press("Space")
    one.until("!document.getElementById('video').paused")
    one.page.keyboard.press("Space")
    one.until("document.getElementById('video').paused")


def test_a_refusal_leads_to_its_moment(report: Opened) -> None:
    one = report
    one.page.click("[data-seek='6.0']")
    one.until("document.getElementById('video').currentTime === 6")


COLOURS = (
    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
    " document.querySelector('.js-line').style.stroke,"
    " document.querySelector('.graph .xtick text').style.fill]"
)


def test_the_button_changes_the_colours_of_page_and_plots(report: Opened) -> None:
    one = report
    light = one.run(COLOURS)
    one.page.click("#theme")
    dark = one.run(COLOURS)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    one.page.click("#theme")
    assert one.run(COLOURS) == light


def test_dark_systems_start_dark(opened: Any) -> None:
    one = opened(color_scheme="dark")
    dark = one.run(COLOURS)
    one.page.click("#theme")
    assert all(a != b for a, b in zip(one.run(COLOURS), dark, strict=True))


def test_paper_is_light_and_shows_the_poster_instead_of_the_video(opened: Any) -> None:
    one = opened(color_scheme="dark")
    assert not one.page.locator(".poster").is_visible()
    one.page.emulate_media(media="print", color_scheme="dark")
    one.page.wait_for_timeout(200)
    assert not one.page.locator("video").is_visible()
    assert one.page.locator(".poster").is_visible()
    assert not one.page.locator("#theme").is_visible()
    assert one.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert one.run("getComputedStyle(document.querySelector('.stage')).position") == "static"
    assert max(one.run("[...document.querySelectorAll('.graph')].map(g => g.layout.width)")) <= 690
    assert one.page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"
    assert one.complaints == []


def test_hostile_names_and_reasons_do_nothing(opened: Any) -> None:
    one = opened("hostile.html")
    plot = one.page.locator("figure.plot", has=one.page.get_by_text("Heart rate")).first
    area = plot.locator(".nsewdrag").first
    box = area.bounding_box()
    one.page.mouse.move(box["x"] + box["width"] * 7 / DURATION, box["y"] + box["height"] * 0.7)
    one.page.wait_for_selector(".hoverlayer .hovertext")
    assert "</script><script>" in plot.locator(".hoverlayer").text_content()
    assert one.run("window.hacked") is None
    assert one.run("document.querySelectorAll('img').length") == 1  # the poster
    assert one.run("document.querySelectorAll('script').length") == 4
    assert one.page.locator("h1").inner_text() == HOSTILE
    assert one.complaints == []


def test_works_without_a_video(opened: Any) -> None:
    one = opened("still.html")
    assert one.run("document.getElementById('video')") is None
    one.click_plot("Heart rate", 4.0)
    one.page.wait_for_timeout(100)
    assert one.cursors() == pytest.approx([4.0] * 4, abs=0.1)
    one.page.locator("h1").click()
    one.page.keyboard.press("ArrowRight")
    one.page.wait_for_timeout(100)
    assert one.cursors() == pytest.approx([5.0] * 4, abs=0.1)
    assert one.complaints == []


def test_a_video_that_does_not_play_leaves_the_curves_alive(opened: Any) -> None:
    one = opened("broken.html")
    one.page.wait_for_selector("#video-trouble", state="visible")
    one.click_plot("Heart rate", 4.0)
    one.page.wait_for_timeout(100)
    assert one.cursors() == pytest.approx([4.0] * 4, abs=0.1)


def test_a_phone_shows_everything_without_sideways_scrolling(opened: Any) -> None:
    one = opened(
        viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark"
    )
    assert one.run("document.documentElement.scrollWidth") == 390
    widths = one.run("[...document.querySelectorAll('.graph .main-svg')].map(s => s.clientWidth)")
    assert max(widths) <= 390
    assert one.complaints == []
