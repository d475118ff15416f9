"""The page of `foveate condense` in a real browser, opened from disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import browser_pages
from browser_pages import CHROMIUM
from foveate.report.condense import write_condense_page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]

NETS = ["TCN", "LSTM", "ViT", "RNN"]
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"


def arm(name: str, what: str, rows: int, level: float) -> dict[str, Any]:
    nets = {}
    for i, net in enumerate(NETS):
        scores = [level + 0.01 * i - 0.01, level + 0.01 * i, level + 0.01 * i + 0.01]
        nets[net] = {"mean": scores[1], "std": 0.0082, "scores": scores, "trials": []}
    return {
        "name": name, "what": what, "rows": rows, "bytes": rows * 8448, "nets": nets,
        "mean": level + 0.015,
    }  # fmt: skip


def attack(auc: float) -> dict[str, Any]:
    return {
        "auc": auc, "auc_error": 0.011, "balanced_accuracy": 0.52, "tpr_at_1_fpr": 0.009,
        "members": 1280, "nonmembers": 1280,
    }  # fmt: skip


def summary() -> dict[str, Any]:
    """What a run on intensive-care stays leaves behind, written by hand."""
    curve = {
        "steps": list(range(48)),
        "classes": [
            {
                "name": name,
                "mean": [12 + i + 0.02 * t for t in range(48)],
                "std": [3.0] * 48,
                "synthetic": [[12 + i + (t * 7 + k) % 5 - 2 for t in range(48)] for k in range(4)],
            }
            for i, name in enumerate(("survived", "died in hospital"))
        ],
    }
    return {
        "foveate": "0.1.0",
        "command": "condense",
        "data": {
            "source": "stays.npz", "kind": "series", "shape": [48, 44],
            "classes": ["survived", "died in hospital"], "features": ["GCS", "BUN", "Lactate"],
            "counts": {"train": [4417, 703], "val": [1083, 197], "test": [1378, 222]},
        },
        "settings": {
            "per_class": 10, "iterations": 1500, "init": "noise", "selection": "best_val",
            "real_batch": 128, "image": None, "nets": ["TCN", "LSTM", "ViT"],
        },
        "plan": {"iterations": 1500, "inits": 3, "epochs": 30, "full_epochs": 6},
        "set": {
            "file": "condensed.safetensors", "rows": 20, "bytes": 171_000, "sha256": "0",
            "real_bytes": 43_253_760,
        },
        "metric": "auc",
        "nets": [{"name": name, "pool": name != "RNN"} for name in NETS],
        "validated_on": 1280,
        "arms": [
            arm("condensed", "condensed rows", 20, 0.76),
            arm("random", "as many random real rows", 20, 0.65),
            arm("kmeans", "as many real rows, by k-means", 20, 0.68),
            arm("all", "all training rows", 5120, 0.83),
        ],
        "privacy": {
            "proximity": {
                "to_train": [50.0] * 20, "to_holdout": [49.0] * 20, "nearer_to_train": 0.0,
                "p_value": 0.76, "p_textbook": 0.9, "passed": True, "rows": 1280,
                "control_p": 0.001,
            },
            "attacks": {
                "condensed": attack(0.502), "random": attack(0.81), "all": attack(0.521),
                "power": attack(0.66),
            },
            "one_row_less": {
                "rows": 3, "change": [0.0007, 0.0004, 0.0002], "other_seed": 1.42,
                "prediction_change": [0.0004, 0.0001, 0.0002], "iterations": 100,
            },
            "formal": None,
            "attacker": "LSTM",
            "signs": {
                "proximity": "none", "attack": "none", "one_row_less": "number",
                "formal": "none claimed",
            },
            "lines": [],
        },
        "curves": [{"feature": name, **curve} for name in ("GCS", "BUN", "Lactate")],
        "pictures": [],
        "machine": {"processor": "x86_64", "threads": 1},
        "notes": ["a note"],
        "seconds": 300.0,
        "made_from": "0",
        "fingerprint": "0",
    }  # fmt: skip


def poisoned(value: Any) -> Any:
    """The same with a hostile text for every name that comes from data."""
    found = copy.deepcopy(value)
    found["data"]["source"] = EVIL
    found["notes"] = [EVIL]
    found["nets"][0]["name"] = EVIL
    for one in found["arms"]:
        one["nets"] = {EVIL if net == "TCN" else net: v for net, v in one["nets"].items()}
    for curve in found["curves"]:
        curve["feature"] = EVIL
        curve["classes"][0]["name"] = EVIL
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_condense_page(folder / "report.html", summary())
    write_condense_page(folder / "hostile.html", poisoned(summary()))
    leaks = summary()
    leaks["privacy"]["signs"]["attack"] = "sign"
    write_condense_page(folder / "leaks.html", leaks)
    write_condense_page(folder / "unasked.html", summary() | {"privacy": None})
    return folder


class Opened(browser_pages.Opened):
    """... with what this page has."""

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())


def test_opens_from_disk_draws_everything_and_asks_nothing_of_the_network(opened: Any) -> None:
    one = opened()
    assert one.complaints == []
    assert [u[:60] for u in one.requests if not u.startswith(("file:", "data:", "blob:"))] == []
    assert len([u for u in one.requests if u.startswith("file:")]) == 1  # the page itself
    # four arms on four networks, and three trainings of each
    assert one.run("document.querySelectorAll('[data-plot=\"0\"] .points path').length") == 16 * 4
    for plot in (1, 2, 3):  # two means, two bands, four synthetic rows of each class
        lines = f"document.querySelectorAll('[data-plot=\"{plot}\"] .scatterlayer .trace').length"
        assert one.run(lines) == 2 + 2 + 8
    assert one.run("document.querySelectorAll('.look').length") == 4


def test_what_it_says(opened: Any) -> None:
    one = opened()
    assert "77.5 % where all real rows give 84.5 %" in one.text("h1")
    assert one.text("#verdict") == "No trace of single rows found"
    assert "not a guarantee" in one.text(".verdict .why")
    assert "are no patients" in one.text(".banner")
    assert [e.inner_text() for e in one.page.locator(".look .tag").all()] == [
        "no sign found", "no sign found", "a number, no verdict", "none claimed",
    ]  # fmt: skip
    assert [e.inner_text().split()[0] for e in one.page.locator(".look .amount").all()] == [
        "0.76", "0.50", "0.070", "none",
    ]  # fmt: skip
    said = one.text("main").lower()
    for word in ("guaranteed", "anonymous", "safe to share"):
        assert word not in said
    assert opened("leaks.html").text("#verdict") == "Think before you share it"
    assert opened("unasked.html").text("#verdict") == "Privacy was not looked at"


COLOURS = (
    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
    " getComputedStyle(document.querySelector('.verdict')).backgroundColor,"
    " document.querySelector('.graph .xtick text').style.fill]"
)


def test_the_button_changes_the_colours_of_page_and_plots(opened: Any) -> None:
    one = opened()
    light = one.run(COLOURS)
    one.page.click("#theme")
    dark = one.run(COLOURS)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert opened(color_scheme="dark").run(COLOURS) == dark


# The contrast of every text with the ground below it, WCAG 2.
CONTRAST = """
(() => {
  const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (c) => {
    probe.clearRect(0, 0, 1, 1); probe.fillStyle = c; probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const [r, g, b] = c.map(v => v / 255).map(v =>
    v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b; };
  const ground = (e) => { const layers = []; for (; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor); layers.push(c); if (c[3] === 255) break; }
    let out = layers.pop(); while (layers.length) { const c = layers.pop(), a = c[3] / 255;
      out = out.map((v, i) => i < 3 ? c[i] * a + v * (1 - a) : 255); } return out; };
  const found = [];
  for (const e of document.querySelectorAll('main *')) {
    if (e.closest('svg') || e.closest('.unseen')) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const a = light(rgba(getComputedStyle(e).color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push([e.className, e.textContent.trim().slice(0, 30), ratio]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report.html", "leaks.html"])
def test_every_text_can_be_read(opened: Any, scheme: str, name: str) -> None:
    assert opened(name, color_scheme=scheme).run(CONTRAST) == []


def test_paper_is_light_and_holds_everything(opened: Any) -> None:
    one = opened(color_scheme="dark")
    one.page.emulate_media(media="print", color_scheme="dark")
    one.page.wait_for_timeout(200)
    assert not one.page.locator("#theme").is_visible()
    assert one.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert one.page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"
    assert one.complaints == []


@pytest.mark.parametrize("width", [360, 390, 768, 1024])
def test_no_width_needs_sideways_scrolling(opened: Any, width: int) -> None:
    one = opened(viewport={"width": width, "height": 844}, color_scheme="dark")
    assert one.run("document.documentElement.scrollWidth") == width
    widest = (
        "Math.max(...[...document.querySelectorAll('.graph .main-svg')].map(s => s.clientWidth))"
    )
    assert one.run(widest) <= width
    if width < 720:  # an arm is a card there: its figures say what they are
        label = "getComputedStyle(document.querySelector('.chosen td'), '::before').content"
        assert one.run(label) == '"rows"'
    assert one.complaints == []


def test_hostile_names_do_nothing(opened: Any) -> None:
    one = opened("hostile.html")
    area = one.page.locator("[data-plot='1'] .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    for step in range(12):  # along the curve until the first mean says its name
        one.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + step * box["height"] / 12)
        one.page.wait_for_timeout(30)
    assert one.run("window.hacked") is None
    assert one.run("document.querySelectorAll('img').length") == 0
    assert one.run("document.querySelectorAll('script').length") == 4
    assert one.complaints == []
