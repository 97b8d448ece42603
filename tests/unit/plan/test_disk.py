"""The room on the disks."""

import json
import os
import shutil

import pytest

from pipeline.errors import UserError
from pipeline.plan import disk
from pipeline.plan.jobs import Job
from pipeline.plan.rates import rates
from pipeline.plan.rules import Side, all_jobs
from tests.unit.plan.test_plan import config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs_of(chosen):
    return all_jobs(chosen, rates(chosen))


def test_the_peak_is_what_stays_and_what_runs_side_by_side():
    jobs = [Job("collect", str(n), 1.0, kept={"a": 10.0}, scratch={"downloads": size}) for n, size in enumerate((5.0, 7.0, 6.0))]
    assert disk.peak(config(), jobs, Side(2, 0)) == {"a": 30.0, "downloads": 13.0}
    assert disk.peak(config(), jobs, Side(9, 0)) == {"a": 30.0, "downloads": 18.0}


def test_downloads_go_with_their_shard_unless_they_are_kept_or_shared():
    files = {
        "kind": "hf_parquet",
        "files": "hf://datasets/a/b@c/*.parquet",
        "shards": 4,
        "expect": {"images": 400, "gigabytes": 2},
    }
    held = {"kind": "coco", "role": "evaluation", "images": "https://a/b.zip", "annotations": "https://a/c.zip",
            "shards": 2, "expect": {"images": 10, "gigabytes": 1}}  # fmt: skip
    chosen = {"mine": {**files, "store_side": 64}, "held": held}
    peak = disk.peak(config(sources=chosen), jobs_of(config(sources=chosen)), Side(3, 0))
    assert peak["results/downloads/mine"] == 1.5e9 and peak["results/downloads/held"] == 1e9
    kept = config(sources=chosen, runtime={"downloads": {"keep": True}})
    assert disk.peak(kept, jobs_of(kept), Side(3, 0))["results/downloads/mine"] == 2e9


def test_a_stage_keeps_the_last_checkpoints_the_best_and_one_that_is_being_written():
    size = 16 * 1_641_636
    runtime = {"checkpoint_every_images": 500, "keep_checkpoints": 2}
    for sections, expected in (
        ({}, 2 + 1),
        ({"validation": {"share": 0.1}}, 2 + 1 + 1),
        ({"runtime": {"checkpoint_every_images": 4000}}, 1),
    ):
        chosen = config(**{"runtime": runtime, **sections})
        assert disk.peak(chosen, jobs_of(chosen), Side(1, 0))["results/work/train/only"] == expected * size


def test_what_training_has_there_is_not_needed_again(here):
    job = Job("train", "summary.json", 1.0, kept={"results/work/train/only": 1000.0})
    folder = here / "results/work/train/only/abc/000000001000"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(300))
    os.link(folder / "model.safetensors", folder / "the_same.safetensors")
    assert disk.disks(config(), [job], Side(1, 0))[0].needed == 700
    (folder / "optimizer.safetensors").write_bytes(bytes(5000))
    assert disk.disks(config(), [job], Side(1, 0))[0].needed == 0


def test_a_run_that_does_not_fit_is_refused_in_one_line(here):
    free = shutil.disk_usage(here).free
    small, large = Job("a", "a", 1.0, kept={"results/data": 1e5}), Job("b", "b", 1.0, kept={"results/text": 10.0 * free})
    disk.check(config(), [small], Side(1, 0))
    with pytest.raises(UserError) as error:
        disk.check(config(), [small, large], Side(1, 0))
    told = str(error.value)
    assert told.startswith("results/text: this run needs about ") and "runtime.check_disk: false" in told and "\n" not in told


def test_only_jobs_that_run_count_and_the_plan_is_kept_for_the_report(here):
    chosen = config(sources={"mine": {"kind": "synthetic", "count": 10**12, "store_side": 64},
                             "held": {"kind": "synthetic", "count": 10, "role": "evaluation"}})  # fmt: skip
    started = {job.output for job in jobs_of(chosen)}
    with pytest.raises(UserError, match=r"runtime\.check_disk"):
        disk.before_run(chosen, started, 2)
    assert not (here / "results").exists()
    disk.before_run(chosen, {"results/report.html"}, 2)
    first = (here / disk.PLAN).read_bytes()
    disk.before_run(chosen.model_copy(update={"runtime": chosen.runtime.model_copy(update={"check_disk": False})}), started, 2)
    assert (here / disk.PLAN).read_bytes() == first
    rules = json.loads(first)["rules"]
    assert rules["collect"]["jobs"] == 2 and set(rules["train"]) == {
        "jobs", "seconds", "device_hours", "known", "read_bytes", "written_bytes"}  # fmt: skip
