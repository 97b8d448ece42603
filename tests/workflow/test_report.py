"""The report page of a run, what makes it anew, and Snakemake's own report."""

import json
import zipfile
from collections import Counter

REPORT = Counter({"report": 1})
SMOKE = "tests/workflow/smoke.yaml"


def test_the_page_has_what_snakemake_measured_and_the_same_prompts_in_every_stage(finished):
    page = (finished.folder / "results/report.html").read_text()
    rules = page[page.index('<table id="rules">') :].partition("</table>")[0]
    assert all(f'<th scope="row">{rule}</th>' in rules for rule in ("embedded coco", "collect", "encode", "train", "evaluate"))
    assert "FID while training" in page and "FID by cost" in page and 'id="geneval"' in page
    pairs = json.loads((finished.folder / "results/eval/high_full/gallery.json").read_text())
    stages = page[page.index('<div class="stages') :].partition("</section>")[0]
    assert all(pair["caption"] in stages for pair in pairs[:8]) and stages.count("<img") == 4 * 8


def test_an_earlier_run_is_compared_and_read_again_when_it_changes(clone):
    card = clone.folder / "earlier.json"
    card.write_bytes((clone.folder / "results/fid_coco.json").read_bytes())
    overlay = clone.overlay("earlier.yaml", "report: {earlier: [earlier.json]}")
    assert clone.planned(overlay) == REPORT
    assert clone.snakemake(overlays=(SMOKE, overlay)).returncode == 0
    assert "Beside earlier runs" in (clone.folder / "results/report.html").read_text() and not clone.planned(overlay)
    card.write_text(json.dumps({**json.loads(card.read_text()), "fid": 1.0}))
    assert clone.planned(overlay) == REPORT
    card.unlink()
    done = clone.snakemake(overlays=(SMOKE, overlay))
    assert done.returncode != 0 and "earlier.json: not readable" in done.stdout + done.stderr


def test_an_ablation_is_shown_where_it_was_made_and_never_started_for_the_page(clone):
    arms = "{a: {stage: low_masked, title: a}, b: {stage: low_full, title: b}}"
    overlay = clone.overlay("ablation.yaml", f"ablation: {{training_flops: 3.0e+9, arms: {arms}}}")
    assert not clone.planned(overlay)
    for name in ("ablation.json", "ablation.png"):
        (clone.folder / "results" / name).write_text("{}")
    assert clone.planned(overlay) == REPORT and not clone.planned()


def test_snakemake_makes_its_own_report(finished, tmp_path):
    file = tmp_path / "report.zip"
    done = finished.snakemake("--report", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    assert "report/report.html" in names
    assert sum(name.endswith("/samples.png") for name in names) == 5 and any(name.endswith("/fid_coco.json") for name in names)
