"""Pages opened in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browser_pages import CHROMIUM, Opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    """Opens one of the files of the test module's `pages`; as its own `Opened` if it has one."""
    pages, kept = request.getfixturevalue("pages"), []
    kind = getattr(request.module, "Opened", Opened)

    def open_page(name: str = "report.html", **options: Any) -> Any:
        kept.append(kind(chromium, pages / name, **options))
        return kept[-1]

    yield open_page
    for one in kept:
        one.context.close()
