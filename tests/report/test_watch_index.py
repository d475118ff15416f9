"""The overview of a folder: what it says of each video, and that names cannot break out of it."""

from __future__ import annotations

from html.parser import HTMLParser

from foveate.report.watch_index import write_watch_index

PERSON = {
    "track": 0,
    "heart_rate": {"bpm": 71.84, "low": 70.0, "high": 73.5, "confidence": 0.912, "reason": None},
}
REFUSED = {"track": 1, "heart_rate": {"bpm": None, "reason": "too short: 3.0 s"}}


class Text(HTMLParser):
    """Visible text, links, and the names of all elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.elements: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)
        if tag == "a":
            self.links.append(dict(attrs).get("href"))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.words.append(data)


def page(tmp_path, videos) -> Text:
    return Text(write_watch_index(tmp_path / "index.html", videos).read_text("utf-8"))


def test_every_video_has_its_row(tmp_path):
    summary = {"source": {"duration_s": 65.0}, "people": [PERSON, REFUSED], "simulated": True}
    text = page(
        tmp_path,
        [
            {"video": "a b.mp4", "folder": "a b", "summary": summary, "error": None},
            {"video": "c.mp4", "folder": "c", "summary": None, "error": "c.mp4 is empty"},
            {"video": "d.mp4", "folder": "d", "summary": {"people": []}, "error": None},
        ],
    )
    words = " ".join(" ".join(text.words).split())
    assert "3 videos" in words
    assert "2 read, 1 with a heart rate, 1 that could not be read" in words
    for piece in ("71.8", "70.0 to 73.5", "0.91", "1:05.0", "too short: 3.0 s", "c.mp4 is empty",
                  "no face", "simulated"):  # fmt: skip
        assert piece in words, piece
    assert "./a%20b/report.html" in text.links
    assert not any("c/report" in link for link in text.links)
    assert (tmp_path / "index.html").stat().st_size < 100_000  # no plotting library for a table


def test_names_and_reasons_are_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>.mp4"
    text = page(
        tmp_path,
        [{"video": evil, "folder": "\"><script>x</script>", "summary": {"people": []},
          "error": None},
         {"video": "y", "folder": "y", "summary": None, "error": "<script>alert(2)</script>"}],
    )  # fmt: skip
    assert "img" not in text.elements
    assert text.elements.count("script") == 2  # the data element and the page's own
    assert evil in "".join(text.words)


def test_no_videos(tmp_path):
    assert "0 videos" in " ".join(page(tmp_path, []).words)
