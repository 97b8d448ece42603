"""The page in a real browser: it shows what it should on a desk and on a phone, in light and dark, and asks nobody."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config.steps import Settings
from tests.browser import DESKTOP, PHONE, open_page
from tests.unit.report.pages import written
from tests.unit.report.runs import ASKED, NASTY, write_everything

HEADINGS = ["Samples", "Metrics and their scale", "Prompt accuracy", "GenEval", "Beside earlier runs", "Training",
            "Guidance scales", "Ablation", "Data, from ledger to training", "Time and cost",
            "Configuration and versions"]  # fmt: skip
HEIGHT = {DESKTOP: (5_000, 16_000), PHONE: (8_000, 26_000)}  # of the whole page, in px


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page with everything that there can be on one, and hostile text in it."""
    finished, further = write_everything(tmp_path_factory.mktemp("run"))
    written(finished)
    earlier = finished.results.parent / "earlier <b>.json"
    earlier.write_bytes((finished.results / "fid_coco.json").read_bytes())
    settings = Settings(report={"title": NASTY, "dollars_per_hour": 0.1, "earlier": [str(earlier)]})
    written(finished, further, settings, geneval=ASKED)
    return finished.results / "report.html"


def screenshot(page):
    """The whole page, [H, W, 3] uint8."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desk", "phone"])
def test_the_page_is_whole_and_asks_nobody(page_file, size):
    with open_page(size) as visit:
        page = visit.page
        page.goto(page_file.as_uri())
        assert page.locator("h2").all_inner_texts() == HEADINGS
        widths = page.eval_on_selector_all("img", "found => found.map(image => image.naturalWidth)")
        assert len(widths) == 2 * 16 + 2 * 6 + 3 * 3 + 1 + 1 and min(widths) > 0  # pairs, failures, stages, GenEval, ablation
        assert page.locator(".plots svg").count() == 12
        assert not visit.scrolls_sideways()
        looks = {}
        for look in ("light", "dark"):
            page.emulate_media(color_scheme=look)
            looks[look] = screenshot(page)
        assert visit.requests == [page_file.as_uri()] and visit.errors == []
    for look, picture in looks.items():
        low, high = HEIGHT[size]
        assert picture.shape[1] == size[0] and low < picture.shape[0] < high
        few = picture[::3, ::3].reshape(-1, 3).astype(np.int32)
        assert len(np.unique(few @ [65536, 256, 1])) > 1_000  # text, plots and pictures, not one plain colour
        paper = np.median(few, axis=0).mean()
        assert paper < 60 if look == "dark" else paper > 220
        assert all(part.std() > 1 for part in np.array_split(picture[::3, ::3], 12))  # nothing of it is blank


def test_hostile_text_is_text(page_file):
    with open_page() as visit:
        visit.page.goto(page_file.as_uri())
        assert visit.page.locator("script").count() == 0
        assert visit.page.title() == NASTY
        assert visit.page.evaluate("document.querySelector('h1').textContent") == NASTY
        captions = visit.page.eval_on_selector_all(".prompt", "found => found.map(one => one.textContent)")
        assert captions.count(NASTY) == 4  # gallery, failures, GenEval, stages
        assert visit.errors == []


def test_a_click_enlarges_a_picture_and_another_one_closes_it(page_file):
    with open_page(PHONE) as visit:
        page = visit.page
        page.goto(page_file.as_uri())
        image = page.locator(".pair img").first
        image.scroll_into_view_if_needed()
        small, at = image.bounding_box(), page.evaluate("scrollY")
        image.click()
        large = image.bounding_box()
        assert large["width"] > 2 * small["width"] and large["width"] <= PHONE[0]
        assert page.locator(".zoom[open] .caption").inner_text() and not visit.scrolls_sideways()
        image.click()
        assert image.bounding_box() == small and page.evaluate("scrollY") == at


def test_folded_parts_open(page_file):
    with open_page(PHONE) as visit:
        page = visit.page
        page.goto(page_file.as_uri())
        assert not page.locator("#failures .why").first.is_visible()
        for fold in page.locator("details:not(.zoom) > summary").all():
            fold.click()
        assert page.locator("#failures .why").first.is_visible()
        assert not visit.scrolls_sideways()
