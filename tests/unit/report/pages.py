"""A page that was made from a run, and what stands on it."""

import json
import re
from html.parser import HTMLParser

from pipeline.report import card as card_step
from pipeline.report.page import NOTHING_FURTHER, run

VOID = {"meta", "link", "img", "br"}
APART = {"th", "td", "br", "dt", "dd", "p", "h2", "h3"}  # words around them are not one word


class Page(HTMLParser):
    """Text, tags and attributes of a page whose tags must be closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.text += " " * (tag in APART)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def written(finished, further=NOTHING_FURTHER, settings=None, **changes):
    """The card, changed, and the page made from it."""
    card = finished.results / "fid_coco.json"
    card_step.run(finished.settings, finished.card, finished.stages, finished.records, card)
    if changes:
        card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))
    out = finished.results / "report.html"
    run(settings or finished.settings, card, finished.manifests, finished.stages, finished.evaluation, out, further)
    return out.read_text(encoding="utf-8")


def table_below(html, title, what):
    """Label and cells of the rows of a table of the data section: the one headed `what` behind the title."""
    table = re.search(rf"<h3>{re.escape(title)}.*?<th scope=\"col\">{what}</th>.*?</table>", html, re.DOTALL)[0]
    rows = re.findall(r"<tr class.*?</tr>", table[table.rindex("<thead>") :], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def columns(html, section):
    table = re.search(rf'<section id="{section}">.*?</table>', html, re.DOTALL)[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
    assert len({len(row) for row in rows}) == 1  # a cell for every column
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}
