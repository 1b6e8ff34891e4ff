"""The report is one file that needs nothing else, shows what it was given, and nothing as markup."""

import base64
import io
import os
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from unstir.evaluate import Report, Score, error_plot, grid

EVIL = """<script>alert(1)</script> & "quoted" 'text' <img src=https://example.org/x.png>"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags, attributes and text of a file; fails on tags that are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def full():
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    report = Report(EVIL).text(f"# {EVIL}\n\n- {EVIL}\n\n{EVIL} `{EVIL}` **{EVIL}**")
    report.table([{EVIL: EVIL, "error": 1.0}, [EVIL, 2.0]], [EVIL, "error"], best={"error": "min"}, caption=EVIL)
    report.picture(grid(torch.zeros(4, 1, 8, 8)), EVIL).plot({EVIL: [(5, 0.1), (10, 0.01)]}, EVIL, title=EVIL)
    return report.code(EVIL)


def test_file_is_self_contained_and_escaped():
    html = full().html()
    page = Page(html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    links = [(tag, value) for tag, key, value in page.attributes if key in ("src", "href", "srcset", "data", "action")]
    assert [tag for tag, _ in links] == ["img", "img"]
    assert all(value.startswith("data:image/") for _, value in links)
    assert "url(" not in html
    assert "@import" not in html
    # The evil text is still there, as text: title, h1, h2, li, p, code, strong, th, td, td, caption, 2 figcaptions, pre.
    assert "".join(page.words).count("alert(1)") == 14
    assert not any(key.startswith("on") for _, key, _ in page.attributes)


def test_file_adapts_to_the_reader():
    html = full().html()
    page = Page(html)
    assert "prefers-color-scheme: dark" in html
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes
    assert html.startswith("<!DOCTYPE html>")


def test_pictures_arrive_unchanged():
    image = pytest.importorskip("PIL.Image")
    sheet = grid(torch.rand(4, 3, 8, 8))
    plot = error_plot({"ddim": [(5, 0.1), (10, 0.01)]})
    page = Page(Report("r").picture(sheet, "<b>").plot(plot).html())
    first, second = [base64.b64decode(v.split(",", 1)[1]) for _, key, v in page.attributes if key == "src"]
    assert (np.asarray(image.open(io.BytesIO(first))) == np.asarray(sheet)).all()
    assert second == plot
    assert [v for _, key, v in page.attributes if key == "alt"] == ["<b>", "picture"]


def rows(html):
    """The cells of each body row as (class, text)."""
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    found = []
    for row in body.split("<tr")[1:]:
        cells = [cell.split("</td>")[0] for cell in row.split("<td")[1:]]
        found.append([(c.split(">")[0].replace(' class="', "").rstrip('"'), c.split(">", 1)[1]) for c in cells])
    return found


def test_table_marks_best_and_failed():
    nan = float("nan")
    data = [["a", 5, 0.25, 1.0], ["b", 10, nan, 3.0], ["c", 20, 0.125, 3.0], ["d", 50, None, True]]
    html = Report("r").table(data, ["plan", "NFE", "error", "score"], best={"error": "min", "score": "max"}, failed=[1]).html()
    table = rows(html)
    assert table[0] == [("", "a"), ("number", "5"), ("number", "0.25"), ("number", "1")]
    assert table[1] == [("", "b (failed)"), ("number", "10"), ("number", "nan"), ("number best", "3")]
    assert table[2] == [("", "c"), ("number", "20"), ("number best", "0.125"), ("number best", "3")]
    assert table[3] == [("", "d"), ("number", "50"), ("number", "–"), ("number", "yes")]
    assert html.count('<tr class="failed">') == 1
    assert html.split('<tr class="failed">')[1].startswith("<td>b (failed)")


@pytest.mark.parametrize(("rule", "winner"), [("min", "1"), ("max", "2")])
def test_only_finite_numbers_can_be_best(rule, winner):
    data = [[float("nan")], [2.0], [float("inf")], [1.0], [-float("inf")]]
    table = rows(Report("r").table(data, ["error"], best={"error": rule}).html())
    assert [text for ((kind, text),) in table if kind == "number best"] == [winner]


def test_table_of_scores_shows_the_floor():
    scores = [Score(0.123456, "FD[pixel]", 10, 10, floor, 0) for floor in (0.05, None)]
    better = Score(0.01, "FD[pixel]", 10, 10, 0.02, 0)
    table = rows(Report("r").table([{"FD": s} for s in [*scores, better]], ["FD"], best={"FD": "min"}).html())
    assert [text for ((_, text),) in table] == ["0.1235 (floor 0.05)", "0.1235", "0.01 (floor 0.02)"]
    assert [kind for ((kind, _),) in table] == ["number", "number", "number best"]


def test_text_is_a_little_markdown():
    html = Report("r").text("# One\nTwo **three** `4 < 5`\nsix\n- a\n- b\n\nseven * eight").html()
    inside = html.split("</h1>")[1].split("<footer>")[0].replace("\n", "")
    first = "<h2>One</h2><p>Two <strong>three</strong> <code>4 &lt; 5</code> six</p>"
    assert inside == first + "<ul><li>a</li><li>b</li></ul><p>seven * eight</p>"


def test_save_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "out" / "report.html"
    Report("old").save(path)
    assert "<title>old</title>" in path.read_text(encoding="utf-8")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Report("new").save(path)
    assert "<title>old</title>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


BAD = {
    "title": (lambda: Report(" "), "title=' '"),
    "row": (lambda: Report("r").table([[1, 2]], ["a"]), r"rows\[0\] is \[1, 2\]; .* 1 entries"),
    "best": (lambda: Report("r").table([[1]], ["a"], best={"b": "min"}), "best={'b': 'min'}"),
    "rule": (lambda: Report("r").table([[1]], ["a"], best={"a": "least"}), "'min' or 'max'"),
    "failed": (lambda: Report("r").table([[1]], ["a"], failed=[1]), "failed contains 1"),
    "bytes": (lambda: Report("r").picture(b"GIF89a"), "PNG or SVG"),
    "folder": (lambda: Report("r").save("."), "path='.' is a folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
