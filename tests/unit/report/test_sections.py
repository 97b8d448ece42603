"""What a run has beyond the least: scores while training, pictures across stages, GenEval, sweep, ablation, earlier runs."""

import json
import re
from importlib.metadata import version

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.config.steps import Settings
from pipeline.errors import UserError
from pipeline.report import benchmarks, cost, curves, environment
from pipeline.report.earlier import comparison
from pipeline.report.page import Further
from pipeline.report.pictures import grid
from tests.unit.report.pages import Page, written
from tests.unit.report.runs import (
    ASKED,
    NASTY,
    STAGES,
    add_scores,
    picture,
    write,
    write_ablation,
    write_benchmarks,
    write_geneval,
    write_grids,
    write_guidance,
)

NAMES = {"scenes", "scenes_synthetic", "coco", *(stage[0] for stage in STAGES)}


def cells_of(html, section, table=0):
    """Text of the cells of a section's table, row by row."""
    part = re.search(rf'<section id="{section}">.*?</section>', html, re.DOTALL)[0]
    rows = re.findall(r"<tr.*?</tr>", re.findall(r"<table.*?</table>", part, re.DOTALL)[table], re.DOTALL)
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows)
    return [[" ".join(Page(cell).text.split()) for cell in row] for row in cells]


def histories(finished):
    add_scores(finished.results)
    return [curves.History.read(file.parent, json.loads(file.read_text())) for file in finished.stages]


def test_scores_while_training_by_images_and_dollars_with_the_best_marked(finished):
    add_scores(finished.results)
    html = written(finished)
    titles = re.findall(r"<figure><h3>(.*?)</h3>", html)
    assert titles[:4] == ["FID while training", "CLIP score while training", "FID by cost", "CLIP score by cost"]
    told = "best FID 12.0, with CLIP score 23.0"
    assert html.count(f"★ {told}.") == 4 and "96 images a point" in html
    assert html.count("dollars, training alone</text>") == 2
    at = {name: i for i, name in enumerate(re.findall(r'aria-label="(FID while|CLIP score while|Loss over)', html))}
    assert at["FID while"] < at["Loss over"]


def test_points_add_up_over_stages_and_leave_out_what_was_scored_otherwise(finished, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "plot", lambda name, found, alt, **how: drawn.update({name: (found, how["mark"])}))
    curves._scores(histories(finished), [1.0, 2.0, 3.0], 10.0)
    by_images, best = drawn["curve_fid-images"]
    assert [curve.x for curve in by_images] == [[32000, 64000], [80000, 96000], [100800, 105600]]
    assert [curve.y for curve in by_images] == [[40.0, 36.0], [28.0, 24.0], [16.0, 12.0]] and best == (105600, 12.0)
    by_cost, best = drawn["curve_clip_score-cost"]
    assert by_cost[2].x == pytest.approx([10 * 3.01, 10 * 3.02]) and best == pytest.approx((30.2, 23.0))


def test_without_a_price_the_axis_is_device_hours(finished):
    assert "device-hours of training" in curves._scores(histories(finished), [1.0, 2.0, 3.0], 0.0)[2].svg


def test_the_same_prompts_across_stages_stand_in_one_row(finished):
    write_grids(finished.results)
    html = written(finished)
    rows = cells_of(html, "training")
    assert [cell.split()[0] for cell in rows[0]] == [stage[0] for stage in STAGES]
    assert [row[0] for row in rows[2::2]] == ["a red circle", " ".join(NASTY.split()), "two squares"]
    pictures = re.findall(r"<tr>((?:<td>.*?</td>){3})</tr>", html)
    sizes = re.findall(r'<img src="data:image/png;base64,([^"]+)"', "".join(pictures))
    assert len(pictures) == 3 and len(sizes) == 9 and len(set(sizes)) == 6  # two stages of one resolution have the same here


def test_prompts_that_differ_stay_with_their_stage(finished):
    write_grids(finished.results)
    other = finished.stages[0].parent / "samples.png"
    other.write_bytes(picture(3, "train", 128))
    html = written(finished)
    assert "The same prompts" not in html and html.count('<div class="cells">') == 2 and "<h3>What each stage draws</h3>" in html


@pytest.mark.parametrize("told", ["[]", "{}", "nonsense", '{"prompts": "abc", "columns": 1}', '{"prompts": [1], "columns": 1}',
                                  '{"prompts": ["a"], "columns": 0}', '{"prompts": ["a", "b", "c"], "columns": 1}'])  # fmt: skip
def test_a_grid_that_says_something_else_is_shown_whole(finished, told):
    file, info = finished.stages[0].parent / "samples.png", PngInfo()
    info.add_text("grid", told)
    Image.new("RGB", (8, 16)).save(file, pnginfo=info)
    found = grid(file, json.loads(finished.stages[0].read_text()))
    assert found.cells == [] and found.whole.startswith("data:image/png;base64,")


def test_failures_are_folded_with_their_scores(finished):
    html = written(finished)
    folded = re.search(r'<details id="failures">(.*?)</section>', html, re.DOTALL)[1]
    scores = re.findall(r'<p class="why">CLIP score ([\d.]+)', folded)
    assert scores == ["19.2", "19.5", "19.8", "20.0", "20.2", "20.5"] and "the 6 images that fit" in folded


def test_geneval_with_its_self_test_and_failures(finished):
    assert "GenEval" not in written(finished)
    write_geneval(finished.evaluation)
    html = written(finished, geneval=ASKED)
    text = " ".join(Page(html).text.split())
    assert cells_of(html, "geneval")[1:] == [["single object", "100.0 %", "4", "2"], ["color attr", "22.0 %", "8", "4"]]
    assert "on 256 real images it finds 98.4 % of the objects that their attributes name, 99.1 % of those in the right" in text
    assert "1 circle wanted, none <found>" in text and NASTY in Page(html).text and "mean of 2 tasks" in text


def test_a_result_of_geneval_that_is_missing_or_broken_is_named(finished):
    with pytest.raises(UserError, match=r"geneval\.json: not readable"):
        written(finished, geneval=ASKED)
    (finished.evaluation / "geneval.json").write_text("{}")
    with pytest.raises(UserError, match=r"geneval\.json: not a result of GenEval, 'tasks' is missing"):
        written(finished, geneval=ASKED)


def test_further_and_preference_scores(finished):
    scale = {"floor": {"fid": 0.61, "cmmd": 0.02, "images": 640}, "vae": None, "ceiling": {"fid": 152.3, "cmmd": 4.5}}
    more = {"precision": 0.71, "fid_infinity": 7.9, "fid_bias": 0.414, "fid_by_resize": {"clean": 8.3, "legacy_pytorch": 9.9},
            "fid_interval": [8.1, 8.6], "cmmd": 0.31, "cmmd_model": {"ref": "hf:clip"}}  # fmt: skip
    preference = {"pickscore": {"mean": 0.2, "std_error": 0.01, "images": 640, "model": {}}}
    html = written(finished, scale=scale, preference=preference, **more)
    listed = re.search(r'<dl class="further">(.*?)</dl>', html, re.DOTALL)[1]
    rows = {name: " ".join(Page(rest).text.split()) for name, rest in re.findall(r"<dt>(.*?)</dt>(.*?)</div>\n", listed)}
    assert list(rows) == ["FID legacy", "FID∞", "CMMD", "precision", "pickscore"]
    assert rows["CMMD"].startswith("0.310") and rows["CMMD"].endswith("real images 0.0200, untrained 4.50")
    assert rows["FID legacy"].startswith("9.90") and "The FID itself has a bias of 0.414." in rows["FID∞"]
    assert rows["pickscore"].startswith("0.200 ± 0.0100") and "8.10–8.60" in html


def test_rules_are_summed_from_the_benchmarks_of_this_run(finished):
    found = benchmarks.rules(write_benchmarks(finished.results / "benchmarks"), NAMES, 0)
    assert [rule.name for rule in found] == ["embedded_coco", "collect", "train", "evaluate"]
    collect, train, evaluate = found[1:]
    assert collect[1:6] == (2, 36.5, 36.0, 30.5, 210.5)  # jobs, seconds, longest, CPU seconds, memory
    assert train.device_hours == pytest.approx(180 / 3600) and evaluate.cpu_seconds is None
    hours = {rule.name: 3600 * rule.device_hours for rule in benchmarks.rules(finished.results / "benchmarks", NAMES, 8)}
    assert hours == pytest.approx({"embedded_coco": 0, "collect": 0, "train": 8 * 180, "evaluate": 70})


def test_the_table_of_rules_stands_beside_the_plan(finished):
    folder = write_benchmarks(finished.results / "benchmarks")
    planned = {
        "train": (160, 0.0444),
        "collect": (60, 0),
        "sample": (5, 0.001),
        "evaluate": (20, 0.005),
        "evaluate_guidance": (10, 0.002),
    }
    rules = {name: {"seconds": seconds, "device_hours": hours} for name, (seconds, hours) in planned.items()}
    plan = write(finished.results / "plan.json", {"rules": {**rules, "card": {"seconds": 1, "device_hours": 0}}})
    rows = {row[0]: row[1:] for row in cells_of(written(finished, Further(benchmarks=folder, plan=plan)), "cost", 1)}
    assert rows["train"] == ["2", "3.0 min", "2.7 min", "+12 %", "1.8 min", "1,409 MB", "0.05", "0.0444", "$0.005"]
    assert rows["collect"][2:4] == ["60 s", "-39 %"] and rows["collect"][7] == "–"
    assert rows["evaluate"][2:4] == ["30 s", "2.3 times"] and rows["evaluate"][7] == "0.007"
    assert rows["embedded coco"][2:4] == ["–", "–"] and rows["all"][2] == "4.2 min"


def test_rules_without_a_plan_are_shown_without_one(finished):
    folder = write_benchmarks(finished.results / "benchmarks")
    further = Further(benchmarks=folder, plan=finished.results / "none.json")
    rows = {row[0]: row[1:] for row in cells_of(written(finished, further), "cost", 1)}
    assert rows["train"] == ["2", "3.0 min", "1.8 min", "2.9 min", "1,409 MB", "0.05", "$0.005"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"rules": {"train": {}}}', '{"rules": []}'])
def test_a_file_that_is_no_plan_is_named(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json: not the plan of a run"):
        cost.plan_of(tmp_path / "plan.json")


@pytest.mark.parametrize("content", ["", "s\tcpu_time\n", "time\n1\n", "s\nlong\n", "s\nnan\n"])
def test_a_broken_benchmark_is_named(tmp_path, content):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/low_masked.tsv").write_text(content)
    with pytest.raises(UserError, match=r"low_masked\.tsv: not a benchmark of Snakemake"):
        benchmarks.rules(tmp_path, NAMES, 0)


def test_guidance_and_ablation_where_there_are_any(finished):
    plain = written(finished)
    assert 'id="guidance"' not in plain and 'id="ablation"' not in plain
    further = Further(guidance=write_guidance(finished.results / "guidance.json"),
                      ablation=write_ablation(finished.results / "ablation.json"))  # fmt: skip
    html = written(finished, further)
    assert cells_of(html, "guidance")[1:] == [["1", "12.0", "25.0"], ["3 ★", "8.30", "29.2"]]
    assert cells_of(html, "ablation")[1] == ["variant <a>", "75 %", "1,000", "500", "9.10 ± 0.400", "28.0"]
    claim = cells_of(html, "ablation", 1)[1]
    assert claim == ["variant <a>", "variant <b>", "9.1 < 12 <i>", "1.25", "0.500 to 2.00", "holds"]
    assert {"#guidance", "#ablation"} <= set(Page(html).attributes("href"))


@pytest.mark.parametrize("kind", ["guidance", "ablation"])
def test_a_file_of_something_else_is_named(finished, kind):
    file = finished.results / f"{kind}.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=rf"{kind}\.json: not an? .* is missing"):
        written(finished, Further(**{kind: file}))


def earlier_card(finished, name, **changes):
    """Another run's card, made from this one's."""
    written(finished)
    card = json.loads((finished.results / "fid_coco.json").read_text())
    file = finished.results.parent / name
    file.write_text(json.dumps({**card, **changes}))
    return str(file)


def test_earlier_runs_are_subtracted_only_where_they_may(finished):
    alike = earlier_card(finished, "alike.json", fid=9.5, clip_score=30.0, sampler={"name": "euler", "steps": 9})
    other = earlier_card(finished, "other <b>.json", ids_sha256="00" * 32)
    settings = Settings(report={"title": "x", "earlier": [alike, other]})
    html = written(finished, settings=settings)
    rows = {row[0]: row[1:] for row in cells_of(html, "earlier")}
    assert rows["FID"] == ["8.31", "9.50 −1.19, better now", "8.31 not comparable"]
    assert rows["CLIP score"] == ["29.2", "30.0 −0.750, worse now", "29.2 the same"]
    assert rows["KID"][1] == "0.0021 the same"
    text = " ".join(Page(html).text.split())
    assert "Not compared, FID, KID: ids_sha256 differs (000000000000 and cdcdcdcdcdcd)" in text
    assert "other <b>.json" in text and "sampler.name euler heun" in text


def test_an_earlier_card_that_is_missing_is_one_line(finished):
    card = earlier_card(finished, "now.json")
    with pytest.raises(UserError, match=r"gone/fid_coco\.json: not readable"):
        comparison(finished.results / "fid_coco.json", [card, "gone/fid_coco.json"])


def test_packages_beside_their_lock(tmp_path, finished):
    numpy = version("numpy")
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"numpy=={numpy} \\\n    --hash=sha256:00\npillow==0.0.1\nno-such-package==1.0 ; python_version < '3'\n")
    found = environment.packages(lock)
    assert found.rows == [("numpy", numpy, numpy), ("pillow", "0.0.1", version("pillow")), ("no-such-package", "1.0", None)]
    assert [row[0] for row in found.different] == ["pillow", "no-such-package"]
    assert environment.packages(tmp_path / "gone").rows == []
    text = " ".join(Page(written(finished)).text.split())
    assert "git commit of training " + "34" * 20 in text
    assert re.search(r"lock of the packages sha256 [0-9a-f]{64}, \d+ packages", text)
