import json
import re

import pytest

from pipeline.errors import UserError
from pipeline.report.curves import History
from pipeline.report.page import run
from tests.unit.report.pages import Page, columns, table_below, written


@pytest.fixture(scope="module")
def nasty():
    return '<script>alert("1")</script>'


def test_the_page_is_whole_and_asks_no_server(finished):
    html = written(finished)
    page = Page(html)
    for source in [*page.attributes("src"), *page.attributes("href"), *page.attributes("xlink:href")]:
        assert source.startswith(("data:", "#")), source
    assert "url(http" not in html and "@import" not in html
    targets = {target.removeprefix("#") for target in page.attributes("href") if target.startswith("#")}
    ids = page.attributes("id")
    assert targets <= set(ids)
    assert len(ids) == len(set(ids))
    assert {"samples", "metrics", "accuracy", "training", "data", "cost", "configuration"} <= set(ids)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_text_from_outside_is_escaped(finished, nasty):
    html = written(finished)
    assert "<script" not in html
    assert '<h1 dir="auto">Scenes &lt;1&gt;</h1>' in html
    assert nasty in Page(html).text


def test_numbers_of_the_run_are_on_it(finished):
    text = " ".join(Page(written(finished)).text.split())
    for told in ("1.51M parameters", "64×64 pixel", "learnt from 9,973 captioned images (scenes and scenes_synthetic)",
                 "looked at 106k in 3 stages", "640 captions it had never seen", "8.31 away from the real ones",
                 "a model that never learnt anything is at 152", "92.6 % of what it asked for",
                 "Not comparable with published numbers.", "the features are of embedded:clip, not of Inception; 640 images",
                 "4.2 min on CPU (2 threads)", "python 3.11.7, torch 2.15.0"):  # fmt: skip
        assert told in text, told


def test_the_counts_go_from_the_ledger_to_training(finished):
    html = written(finished)
    tables = re.findall(r"<h3>([^<]*px\))</h3>.*?</table>", html, re.DOTALL)
    assert tables == ["low_masked, low_full (32 px)", "high_full (64 px)"]
    row = re.search(r"below px</th>(.*?)</tr>", html).group(1)
    assert re.findall(r">([^<]+)</td>", row) == ["−310", "0", "−310"]
    assert html.count(">10,000</td>") == 2


def test_licences_of_what_is_trained_on(finished):
    html = written(finished)
    rows = table_below(html, "low_masked", "licences of the images")
    assert rows[:3] == [["CC BY 4.0", "4,454", "0", "4,454"], ["unknown", "0", "3,999", "3,999"],
                        ["CC0 &lt;i&gt;", "1,500", "0", "1,500"]]  # fmt: skip
    assert rows[-2:] == [["11 others", "11", "0", "11"], ["trained on", "5,974", "3,999", "9,973"]] and len(rows) == 14
    assert table_below(html, "high_full", "licences of the images")[-1] == ["trained on", "5,664", "3,999", "9,663"]


def test_captions_and_what_is_left_out_for_the_evaluations_sake(finished):
    html = written(finished)
    assert table_below(html, "low_masked", "captions") == [
        ["of stored images", "7,000", "4,000", "11,000"], ["caption in evaluation set", "−30", "0", "−30"],
        ["image left out", "−20", "−1", "−21"], ["trained on", "6,950", "3,999", "10,949"],
    ]  # fmt: skip
    assert "has the same or nearly the same: 2 images and 30 captions." in Page(html).text


def test_all_pairs_of_the_gallery_are_there_with_their_captions(finished):
    page = Page(written(finished))
    pairs = json.loads((finished.evaluation / "gallery.json").read_text())
    sources = page.attributes("src")
    assert len(pairs) == 16
    assert all(pair[side] in sources for pair in pairs for side in ("generated", "real"))
    assert all(pair["caption"] in page.text for pair in pairs)
    assert len(sources) == 2 * 16 + 2 * 6 + 3  # and the failures, and a grid for each stage


def test_the_model_is_placed_on_the_scale(finished):
    places = [float(x) for x in re.findall(r'<i style="left: ([\d.]+)%"', written(finished))]
    assert places == sorted(places)
    assert places[0] == 0 and places[-1] == 100
    assert places[2] == pytest.approx(100 * (8.314**0.5 - 0.61**0.5) / (152.3**0.5 - 0.61**0.5), abs=0.01)


def test_without_attributes_ceiling_price_and_records(finished):
    scale = {"floor": {"fid": 0.61, "images": 640}, "vae": None, "ceiling": None}
    cost = {"seconds": 250.0, "device_hours": 0.07, "dollars": 0.0, "dollars_per_hour": 0.0, "planned_device_hours": None}
    html = written(finished, accuracy=None, detector_self_test=None, accuracy_vae=None, scale=scale, cost=cost, processes=[])
    page = Page(html)
    assert "accuracy" not in page.attributes("id")
    assert 'class="scale"' not in html
    assert "no price set" in page.text and "$" not in page.text
    assert "Processes" not in page.text


def test_the_plan_stands_beside_what_training_took(finished):
    html = written(finished)
    text = " ".join(Page(html).text.split())
    assert "Planned were 0.0469 device-hours, $0.0047, at 45.0 % of the device's peak." in text
    cost = columns(html, "cost")
    assert cost["of peak"] == ["31.0 %"] * 3 + [""]
    assert cost["planned"] == ["0.0142", "0.0152", "0.0175", "0.0469"] and cost["skipped steps"] == ["20", "20", "20", "60"]
    assert "60 training steps were skipped" in text


def test_stages_of_older_programs_show_no_plan_and_no_skipped_steps(finished):
    for file in finished.stages:
        value = json.loads(file.read_text())
        file.write_text(
            json.dumps({key: value[key] for key in value.keys() - {"share_of_peak", "plan", "skipped_steps", "best"}})
        )
    html = written(finished)
    cost = columns(html, "cost")
    assert cost["of peak"][:3] == cost["planned"][:3] == ["–"] * 3 and "skipped steps" not in cost
    assert "Planned" not in Page(html).text and "steps were skipped" not in Page(html).text


def test_curves_leave_out_what_was_not_measured(finished):
    for file in finished.stages:
        lines = (file.parent / "metrics.jsonl").read_text().splitlines()
        assert sum('"loss": null' in line for line in lines) == 1 and sum("validation_loss" in line for line in lines) > 0
    titles = re.findall(r"<figure><h3>(.*?)</h3>", written(finished))
    assert titles == [
        "Loss",
        "Loss on held-out samples",
        "Held-out loss by noise level",
        "Loss by noise level",
        "Learning rate",
        "Throughput",
    ]
    histories = [History.read(file.parent, json.loads(file.read_text())) for file in finished.stages]
    x, y = histories[1].points("validation_loss")
    assert x == list(range(64000 + 6400, 64000 + 32001, 6400)) and len(y) == 5
    noisy = histories[0].points("loss_by_noise", 3)
    assert len(noisy[0]) == len(histories[0].curve("loss").y) == 50 and None not in noisy[1]


def test_without_held_out_samples_there_is_no_such_plot(finished):
    for file in finished.stages:
        lines = (file.parent / "metrics.jsonl").read_text().splitlines(keepends=True)
        (file.parent / "metrics.jsonl").write_text("".join(line for line in lines if "validation_loss" not in line))
    assert "held-out samples" not in written(finished)


def test_a_comparable_run_says_so_and_warnings_are_shown(finished):
    text = Page(written(finished, comparable_to_published=True, why_not=[], warnings=["640 images for 2,048 features"])).text
    assert "Comparable with published numbers." in text and "Not comparable" not in text
    assert "640 images for 2,048 features" in text


def test_the_same_run_gives_the_same_page(finished):
    assert written(finished) == written(finished)


def _edit(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f.evaluation / "gallery.json").unlink(), r"gallery\.json: not readable JSON"),
        (lambda f: _edit(f.evaluation / "gallery.json", lambda v: v[0].update(real="http://x")), "real of entry 0 is no PNG"),
        (lambda f: (f.stages[0].parent / "samples.png").write_bytes(b"x"), r"low_masked/samples\.png: not a readable picture"),
        (lambda f: (f.stages[0].parent / "metrics.jsonl").write_text("{}\n"), r"metrics\.jsonl: not the metrics of a stage"),
        (lambda f: (f.stages[0].parent / "metrics.jsonl").write_text(""), r"metrics\.jsonl: not the metrics of a stage"),
        (lambda f: f.manifests[0].write_text('{"kind": "images"}'), r"low_masked\.json: not a manifest"),
        (lambda f: _edit(f.manifests[0], lambda v: v["counts"]["scenes"].update(trained=1)), "counts of scenes do not add up"),
        (
            lambda f: _edit(f.manifests[0], lambda v: v["counts"]["scenes"]["licences"].clear()),
            "counts of scenes do not add up",
        ),
        (
            lambda f: _edit(f.manifests[0], lambda v: v["counts"]["scenes"]["captions"].update(collected=1)),
            "counts of scenes do not add up",
        ),
        (
            lambda f: _edit(f.manifests[0], lambda v: v["counts"]["scenes"].pop("licences")),
            r"low_masked\.json: has no licences of scenes; delete it and run again",
        ),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(finished, spoil, told):
    spoil(finished)
    with pytest.raises(UserError, match=told):
        written(finished)
    assert not (finished.results / "report.html").exists()


def test_a_card_of_something_else(finished):
    out = finished.results / "report.html"
    with pytest.raises(UserError, match=r"card\.json: not .* of a run, it lacks fid, kid, clip_score, stages and cost"):
        run(finished.settings, finished.card, finished.manifests, finished.stages, finished.evaluation, out)
