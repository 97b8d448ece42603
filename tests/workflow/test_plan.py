"""The plan of a run against the run: its jobs, its bytes, what is left, and what the report says of it."""

import json
from collections import Counter
from pathlib import Path

import pytest

SMOKE = "tests/workflow/smoke.yaml"
WIDER = """
evaluation: {guidance_sweep: [1.5, 2.0], prompt_sets: {mine: prompts.txt}}
runtime: {gpus: 1, sample_shards: 3}
"""


def facts(project, *overlays):
    files = [word for file in (SMOKE, *overlays) for word in ("--configfile", str(file))]
    done = project.pipeline("plan", *files, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_rule(plan, name):
    return Counter({rule: numbers["jobs"] - numbers[name] for rule, numbers in plan["rules"].items()})


@pytest.mark.parametrize("text", ["{}", WIDER], ids=["plain", "wider"])
def test_its_jobs_are_those_that_snakemake_counts(project, text):
    overlay = project.overlay("my.yaml", text)
    plan = facts(project, overlay)
    assert Counter({rule: numbers["jobs"] for rule, numbers in plan["rules"].items()}) == project.planned(overlay)
    assert plan["totals"]["whole"] == plan["totals"]["left"]


def test_of_a_finished_run_nothing_is_left(finished):
    plan = facts(finished)
    assert all(rule["done"] == rule["jobs"] for rule in plan["rules"].values())
    assert set(plan["totals"]["left"].values()) == {0} and plan["totals"]["dollars_left"] == 0
    assert [disk["needed"] for disk in plan["disks"]] == []
    assert {"collect", "train", "evaluate"} <= set(plan["took"])
    printed = finished.pipeline("plan", "--configfile", SMOKE).stdout
    jobs = sum(rule["jobs"] for rule in plan["rules"].values())
    assert f"{jobs} of {jobs} jobs have their file already" in printed and "took h" in printed


def test_what_is_gone_is_left_to_do(clone):
    (clone.folder / "results/encoded/scenes/00001.json").unlink()
    (clone.folder / "results/train/high_full/summary.json").unlink()
    left = {rule: jobs["jobs"] - jobs["done"] for rule, jobs in facts(clone)["rules"].items()}
    assert {rule: count for rule, count in left.items() if count} == {"encode": 1, "train": 1}


def real_bytes(folder, *patterns):
    files = {file.stat().st_ino: file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files.values())


# Latents, text and checkpoints are counted to the byte but for tables of contents, which small files are half of; images,
# tables and pictures are reckoned by the pixels and rows of photos, and may differ by the factor that stands here.
@pytest.mark.parametrize(
    ("planned", "patterns", "factor"),
    [
        ("results/latents/", ["latents/*/*/*.arrow"], 1.35),
        ("results/text/", ["text/*/*/*.arrow"], 1.05),
        ("results/work/train/", ["work/train/*/*/*/*.safetensors"], 1.15),
        ("results/data/", ["data/*/*.tar", "data/*/*.parquet"], 1.7),
        ("results/work/eval/", ["work/eval/**/*.png"], 3),
        ("results/model", ["model/**/*.safetensors"], 1.3),
    ],
)
def test_its_bytes_are_those_on_the_disk(finished, planned, patterns, factor):
    folders = facts(finished)["peak_disk_bytes"]["by_folder"]
    reckoned = sum(size for folder, size in folders.items() if folder.startswith(planned))
    real = real_bytes(finished.folder / "results", *patterns)
    assert real > 0 and 1 / factor < reckoned / real < factor, (reckoned, real)


def test_the_room_that_is_asked_for_is_enough_and_not_many_times_too_much(finished):
    """A run takes more than its artifacts: logs, records, tables of contents, none of which grows with the data. Handed over
    weights are links to the last checkpoint, which only the copy of the run that tests are given holds twice."""
    peak, results = facts(finished)["peak_disk_bytes"]["all"], finished.folder / "results"
    real = real_bytes(results, "**/*") - real_bytes(results, "train/*/*.safetensors")
    assert 0.7 * real < peak < 2 * real, (peak, real)


def test_the_report_shows_what_was_planned_beside_what_it_took(finished):
    plan = json.loads((finished.folder / "results/work/plan/plan.json").read_text())
    assert plan["device"] == "cpu_2_cores" and plan["rules"]["train"]["jobs"] == 4
    page = (finished.folder / "results/report.html").read_text()
    rules = page[page.index('<table id="rules">') :].partition("</table>")[0]
    assert "planned time" in rules and "difference" in rules


def test_the_plan_reruns_nothing(clone):
    overlay = clone.overlay("plan.yaml", "plan: {train_share: 0.9, device: h100_paper}\nruntime: {check_disk: false}\n")
    Path(clone.folder / "results/work/plan/plan.json").unlink()
    assert not clone.planned(overlay)
