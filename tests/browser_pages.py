"""A page in a real browser, and what it complains about and asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")


class Opened:
    """A page that is ready; `where` is its file or address."""

    def __init__(self, browser: Any, where: Path | str, **options: Any) -> None:
        settings = {"viewport": {"width": 1400, "height": 900}, "color_scheme": "light"} | options
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.address = where.as_uri() if isinstance(where, Path) else where
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda m: self.complaints.append(m.text) if m.type in {"error", "warning"} else None,
        )
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready=yes]")

    def run(self, script: str, argument: object = None) -> Any:
        return self.page.evaluate(script, argument)
