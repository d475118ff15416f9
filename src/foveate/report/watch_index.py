"""The overview of a folder of videos: one row for each, with a link to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from foveate.report.page import number, person_name, write_page

__all__ = ["write_watch_index"]


def write_watch_index(path: Path, videos: Sequence[Mapping[str, Any]]) -> Path:
    """Write the overview page.

    Parameters
    ----------
    videos
        One mapping for each: `video` (file name), `folder` (name of the folder beside `path` that
        holds its ``report.html``), `summary` (content of ``summary.json``, or None) and `error`
        (the sentence, when there is no summary).
    """
    rows = []
    for item in videos:
        summary = item["summary"]
        people = []
        for person in (summary or {}).get("people", []):
            rate = person.get("heart_rate", {})
            bpm = rate.get("bpm")
            people.append(
                {
                    "name": person_name(person["track"]),
                    "bpm": None if bpm is None else number(bpm),
                    "interval": (
                        f"{number(rate.get('low'))} to {number(rate.get('high'))}"
                        if bpm is not None
                        else ""
                    ),
                    "confidence": rate.get("confidence"),
                    "reason": rate.get("reason"),
                }
            )
        rows.append(
            {
                "video": item["video"],
                "link": f"./{quote(item['folder'])}/report.html" if summary else None,
                "error": item["error"],
                "seconds": (summary or {}).get("source", {}).get("duration_s"),
                "simulated": bool((summary or {}).get("simulated")),
                "people": people,
            }
        )
    first: Mapping[str, Any] = next((v["summary"] for v in videos if v["summary"]), {})
    return write_page(
        path,
        "watch_index.html.j2",
        {
            "page_title": "foveate watch: overview",
            "command": "watch",
            "version": first.get("foveate", ""),
            "medical": first.get("medical", "Not a medical device."),
            "rows": rows,
            "read": sum(row["error"] is None for row in rows),
            "measured": sum(any(p["bpm"] for p in row["people"]) for row in rows),
        },
        styles=("watch_index.css",),
        plots=False,
    )
