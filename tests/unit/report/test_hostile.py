"""Text from outside can be anything: it is shown, and does nothing."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config.steps import Settings
from pipeline.errors import UserError
from tests.unit.report.pages import Page, written
from tests.unit.report.runs import ASKED, GENEVAL, picture, uri, write, write_everything, write_grids

TAGS = {"html", "head", "meta", "title", "link", "style", "body", "header", "p", "h1", "h2", "h3", "dl", "div", "dt", "dd", "b",
        "nav", "a", "main", "section", "ul", "li", "figure", "figcaption", "details", "summary", "img", "span", "i", "small",
        "table", "thead", "tbody", "tr", "th", "td", "br", "code", "pre", "footer", "bdi", "svg", "g", "path", "defs", "text",
        "clippath", "rect", "use"}  # fmt: skip
PARTS = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x", "]]>", "-->", "</title>", "</style>",
         "{{ 7 * 7 }}", "{% raw %}", "&lt;b&gt;", "javascript:alert(1)", "\u202e", "\ud800", "\x00", "\x1b[2J", "🙂",
         "$\\frac{1}", "</summary></details></td>", "%(x)s", "_x")  # fmt: skip
hostile = st.lists(st.sampled_from(PARTS) | st.text(max_size=12), min_size=1, max_size=12).map("".join)
IMAGE = uri(picture(2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_everything(tmp_path_factory.mktemp("run"))


def checked(html):
    """The page, if nothing on it is more than text, plots and PNGs in data URIs."""
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for source in [*page.attributes("src"), *page.attributes("href"), *page.attributes("xlink:href")]:
        assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*|data:,|#[\w-]*", source), source[:80]
    assert html.count("<title>") == html.count("<style>") == 1
    return page


def shown(text):
    """As a page's text has it: half a character is none, and line ends are normal."""
    text = text.encode("utf-8", errors="replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\x00", "\ufffd")


@settings(max_examples=4, deadline=None)  # a page takes seconds, most of them for its plots
@example(["".join(PARTS)] * 8)
@given(st.lists(hostile, min_size=8, max_size=8))
def test_whatever_text_comes_it_stays_text(whole, texts):
    finished, further = whole
    title, caption, failed, prompt, reason, grid, licence, device = texts
    pair = {"index": 0, "key": "0", "clip_score": 1.0, "generated": IMAGE, "real": IMAGE}
    (finished.evaluation / "gallery.json").write_text(json.dumps([pair | {"caption": caption}]))
    (finished.evaluation / "failures.json").write_text(json.dumps([pair | {"caption": failed}]))
    wrong = {"task": prompt, "prompt": prompt, "reason": reason, "image": IMAGE}
    write(finished.evaluation / "geneval.json", {**GENEVAL, "failures": []})
    (finished.evaluation / "geneval.json").write_text(json.dumps({**GENEVAL, "failures": [wrong]}))
    write_grids(finished.results, (grid, "b"))
    changed = Settings(report={"title": shown(title), "dollars_per_hour": 0.1})
    html = written(finished, further, changed, geneval=ASKED, device=device, why_not=[reason], warnings=[licence])
    text = checked(html).text
    for told in (title, caption, failed, prompt, reason, grid, licence, device):
        assert shown(told) in text.replace("\x00", "\ufffd"), ascii(told)


@pytest.mark.parametrize("value", ["http://x/y.png", "data:image/svg+xml;base64,AAAA", "data:image/png;base64,AA\" onload=\"x",
                                   "data:image/png;base64,", "data:image/png;base64,AA==\n", None, 3])  # fmt: skip
@pytest.mark.parametrize("file", ["gallery.json", "failures.json"])
def test_a_picture_is_a_png_in_a_data_uri_or_an_error(whole, file, value):
    finished, further = whole
    before = (finished.evaluation / file).read_text()
    rows = json.loads(before)
    (finished.evaluation / file).write_text(json.dumps([{**rows[0], "generated": value}]))
    try:
        with pytest.raises(UserError, match=rf"{file.removesuffix('.json')}\.json: .*generated"):
            written(finished, further)
    finally:
        (finished.evaluation / file).write_text(before)
