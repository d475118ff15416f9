"""One file that opens from disk: what every report page shares.

A report is a single HTML file: its styles, scripts, figures and (when small enough) its video are
inside it, and a Content-Security-Policy in its head forbids everything else. Scripts are allowed
by their SHA-256 only, so that text which slipped through the escaping would still not run, and
``default-src 'none'`` leaves no way to the network. Strings reach the page by two doors: jinja2
with autoescape for HTML, and :func:`json_for_script` for the figures.

Colours live in one place as pairs (on light, on dark). The CSS reads them through ``light-dark()``
and the figures name them by token (``"@p0"``, ``"@p0/0.2"`` with opacity), which the page's script
resolves when it draws; a change of theme therefore reaches text, plots and boxes alike.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = [
    "EMBEDDED_VIDEO_BYTES",
    "PERSON_COLOURS",
    "PageVideo",
    "clock",
    "image_data_uri",
    "json_for_script",
    "number",
    "page_video",
    "person_colour",
    "person_name",
    "write_page",
]

EMBEDDED_VIDEO_BYTES = 24 * 1024 * 1024
"""Largest video that is put into the page itself; base64 makes it a third larger."""

PERSON_COLOURS: tuple[tuple[str, str], ...] = (
    ("#0a66c2", "#5fb0ff"),
    ("#bf2a5b", "#ff86a9"),
    ("#8f5600", "#f5b454"),
    ("#1f7a43", "#66d391"),
    ("#6a42c4", "#b9a1ff"),
    ("#0b7180", "#55d2df"),
    ("#a83a12", "#ff9a73"),
    ("#5a6b00", "#c3d65a"),
)
"""Accent per person as (on light, on dark); each reaches 4.5:1 on the page's own surfaces."""

_TEMPLATES = Path(__file__).parent / "templates"
_VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}


def person_colour(track: int) -> tuple[str, str]:
    """Accent of a track as hexadecimal (on light, on dark); repeats after eight."""
    return PERSON_COLOURS[track % len(PERSON_COLOURS)]


def person_name(track: int) -> str:
    """What people call a track: counted from 1; -1 is the whole stream."""
    return "Whole video" if track < 0 else f"Person {track + 1}"


def number(value: float | None, digits: int = 1) -> str:
    """A number for reading: fixed digits, thousands set apart, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")


def clock(seconds: float | None) -> str:
    """Seconds as ``m:ss.s`` or ``h:mm:ss``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    tenths = round(abs(seconds) * 10)
    sign = "\u2212" if seconds < 0 and tenths else ""
    whole, tenth = divmod(tenths, 10)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{sign}{hours}:{minute:02d}:{second:02d}"
    return f"{sign}{minute}:{second:02d}.{tenth}"


def json_for_script(value: object) -> Markup:
    r"""JSON that cannot leave its ``<script type="application/json">`` element.

    ``<``, ``>``, ``&`` and the line separators U+2028 and U+2029 become ``\uXXXX``, which is the
    same JSON. Not-a-number has no place in JSON: callers write None.

    Raises
    ------
    ValueError
        The value holds NaN or infinity.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate (an undecodable file name) cannot be written as UTF-8.
    return Markup(text.encode("utf-8", "replace").decode())  # noqa: S704 - escaped just above


def image_data_uri(image: bytes) -> str:
    """A JPEG, PNG or WebP image as data URI.

    Raises
    ------
    FoveateError
        The bytes are none of the three.
    """
    if image.startswith(b"\xff\xd8\xff"):
        kind = "image/jpeg"
    elif image.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "image/png"
    elif image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "image/webp"
    else:
        raise FoveateError("the picture for the report is not a JPEG, PNG or WebP file")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


@dataclass(frozen=True, slots=True)
class PageVideo:
    """A video as a page shows it.

    Attributes
    ----------
    source
        Path relative to the page; or, inside the page, a data URI whose content is a mark that
        :func:`write_page` replaces by the file, piece by piece.
    embedded
        The file that becomes part of the page; None when it stays beside it.
    name
        File name, for the caption.
    megabytes
        Size of the file in units of 10^6 bytes.
    """

    source: str
    embedded: Path | None
    name: str
    megabytes: float


def page_video(video: Path, page: Path, limit: int = EMBEDDED_VIDEO_BYTES) -> PageVideo:
    """Put a video of at most `limit` bytes into the page, else refer to it relative to the page.

    Raises
    ------
    FoveateError
        The file is missing, or not of a kind that browsers play (mp4, webm).
    """
    kind = _VIDEO_TYPES.get(video.suffix.lower())
    if kind is None:
        raise FoveateError(
            f"cannot show {video} in a report: browsers play .mp4 and .webm, "
            f"this name ends in {video.suffix or 'nothing'}"
        )
    try:
        size = video.stat().st_size
        with video.open("rb"):
            pass  # refused now rather than with half a page written
        if size <= limit:
            source = f"data:{kind};base64,{secrets.token_hex(16)}"
        else:
            relative = os.path.relpath(video.resolve(), page.parent.resolve())
            # "./" keeps a name with a colon from being read as a scheme
            source = "./" + quote(Path(relative).as_posix())
    except OSError as error:
        raise FoveateError(f"cannot read the video {video}: {error.strerror}") from error
    return PageVideo(source, video if size <= limit else None, video.name, size / 1e6)


def _text_of(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _inline(text: str, element: str) -> Markup:
    """Program text of ours (or plotly's) as content of <script> or <style>."""
    # The parser turns CRLF into LF before the browser hashes the script, so we do it first.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if re.search(rf"</{element}|<!--", text, re.IGNORECASE):
        raise ValueError(f"text for <{element}> would end the element early")
    return Markup(text)  # noqa: S704 - package data, checked just above


def _colour_rules() -> Markup:
    pairs = enumerate(PERSON_COLOURS)
    rules = "".join(f"--p{i}:light-dark({light},{dark});" for i, (light, dark) in pairs)
    return Markup(":root{" + rules + "}")  # noqa: S704 - constants of this file


def _policy(scripts: Sequence[str], linked_media: bool) -> str:
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # A page from disk has no origin that 'self' could match, hence also the scheme.
    media = "data: blob: 'self' file:" if linked_media else "data: blob:"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        f"img-src data: blob:; media-src {media}; base-uri 'none'; form-action 'none'"
    )


def write_page(
    path: Path,
    template: str,
    context: Mapping[str, object],
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: object = None,
    video: PageVideo | None = None,
    plots: bool = True,
) -> Path:
    """Render `template` (which extends ``page.html.j2``) into one self-contained file.

    Parameters
    ----------
    path
        File to write; whole or not at all.
    template, styles, scripts
        Names in the folder ``templates``; ``page.css``, ``page.js`` and plotly.js come by
        themselves.
    context
        Variables of the template; strings are escaped.
    data
        JSON value that the scripts read from the element ``#page-data``.
    video
        The video that the page shows, if any.
    plots
        False for a page without figures: plotly.js (some 5 MB) stays out.
    """
    programs = []
    if plots:
        from plotly.offline import get_plotlyjs  # loads slowly, and only such a page needs it

        programs.append(_inline(get_plotlyjs(), "script"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, clock=clock)
    programs += [_inline(_text_of(name), "script") for name in ("page.js", *scripts)]
    html = environment.get_template(template).render(
        context,
        policy=_policy(programs, video is not None and video.embedded is None),
        colour_rules=_colour_rules(),
        page_styles=[_inline(_text_of(name), "style") for name in ("page.css", *styles)],
        page_scripts=programs,
        page_data=json_for_script(data),
    )
    before, after = html, ""
    if video is not None and video.embedded is not None:
        before, _, after = html.partition(video.source.rpartition(",")[2])
    with write_whole(Path(path)) as temporary, temporary.open("wb") as page:
        page.write(before.encode("utf-8", "replace"))
        if video is not None and video.embedded is not None:
            # Never the whole video in memory, let alone four times as text.
            with video.embedded.open("rb") as film:
                while piece := film.read(3 << 18):  # a multiple of 3: base64 joins without seams
                    page.write(base64.b64encode(piece))
        page.write(after.encode("utf-8", "replace"))
    return Path(path)
