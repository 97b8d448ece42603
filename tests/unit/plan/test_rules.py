"""The plan by rule, against numbers worked out by hand."""

import pytest

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.plan.jobs import Job
from pipeline.plan.rates import rates
from pipeline.plan.rules import Side, all_jobs, existing, rules, side, sums, total
from pipeline.plan.training import checkpoint_bytes, image_flops
from tests.unit.plan.test_plan import PAPER, config

RATES = {"peak_tflops": 1.0, "train_share": 0.5, "sample_share": 0.25, "captions_per_second": 10, "encodes_per_second": 10,
         "texts_per_second": 100, "collects_per_second": 50, "start_seconds": 4.0, "fetch_mb_per_second": 10}  # fmt: skip


def plans(chosen, beside):
    known = rates(chosen)
    return {plan.name: plan for plan in rules(chosen, all_jobs(chosen, known), known, beside)}


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_small_run_by_hand():
    found = plans(config(plan=RATES, evaluation={"images": 8, "steps": 2, "guidance": 1.0}), Side(4, 0))
    assert {name: plan.jobs for name, plan in found.items()} == {
        "collect": 2, "caption": 2, "encode": 1, "manifest": 1, "train": 1, "evaluate": 1, "card": 1, "model": 1, "report": 1,
    }  # fmt: skip
    assert found["encode"].whole.seconds == pytest.approx(4 + 1000 * (64 / 256) ** 2 / 10 + 1000 / 100)
    assert found["encode"].whole.written == 1000 * (2 * 4 * 8 * 8 + 16 + 2 * 24 * 64 + 16)
    assert found["collect"].whole.seconds == pytest.approx(2 * 0.65 + 1010 / 50)
    assert found["train"].whole.read == 4000 * (2 * 4 * 8 * 8 + 2 * 24 * 64)
    assert found["train"].whole.device_hours == pytest.approx(found["train"].whole.seconds / 3600)


def test_training_counts_flops_scores_and_checkpoints():
    plan = {**RATES, "start_seconds": 5.0}
    once = plans(config(plan=plan, runtime={"checkpoint_every_images": 1000, "keep_checkpoints": 2}), Side(1, 0))["train"].whole
    size = checkpoint_bytes(config())
    assert size == 16 * 1_641_636
    assert once.written == 4 * size
    curve = {"images": 10, "every_images": 1000, "steps": 3}
    scored = plans(config(plan=plan, evaluation={"curve": curve}), Side(1, 0))["train"].whole
    assert scored.seconds - once.seconds == pytest.approx(4 * 10 * image_flops(config(), 64, 3) / 0.25e12)


def test_guidance_and_the_sampler_decide_how_often_the_network_is_asked():
    heun, plain = config(evaluation={"guidance": 2.0}), config(evaluation={"guidance": 1.0})
    euler = config(evaluation={"guidance": 1.0, "sampler": {"name": "euler"}})
    assert image_flops(heun, 64, 10) / image_flops(plain, 64, 10) == pytest.approx(2, rel=0.05)
    assert image_flops(plain, 64, 10) / image_flops(euler, 64, 10) == pytest.approx(1.9, rel=0.05)


def test_device_hours_are_of_the_gpus_that_a_job_holds():
    found = plans(config(plan=RATES, runtime={"gpus": 4}), Side(8, 8))
    train, encode = found["train"].whole, found["encode"].whole
    assert train.device_hours == pytest.approx(4 * train.seconds / 3600)
    assert encode.device_hours == pytest.approx(encode.seconds / 3600)
    assert found["collect"].whole.device_hours == found["manifest"].whole.device_hours == 0


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        (Side(4, 2), 10 * (2 + 30) / 2),  # two GPUs
        (Side(1, 8), 10 * (2 + 30)),  # one after another
        (Side(100, 100), 2 + 30),  # all at once
        (Side(4, 0), 10 * 2 / 4 + 10 * 30),  # one machine: only the starts overlap
        (Side(5, 0, cluster=True), 10 * (2 + 30) / 5),  # five machines
    ],
)
def test_wall_time_at_so_many_jobs_side_by_side(beside, expected):
    chosen = config(runtime={"gpus": min(1, beside.gpus)})
    jobs = [Job("encode", str(number), 2.0, 30.0, 1) for number in range(10)]
    assert sums(chosen, jobs, rates(chosen), beside).wall == pytest.approx(expected)


def test_fetching_is_shared_by_all_jobs_and_no_rule_is_shorter_than_its_longest_job():
    chosen = config(plan={"fetch_mb_per_second": 1})
    fetching = [Job("collect", str(number), 1.0, 2.0, fetched=5e6) for number in range(10)]
    assert sums(chosen, fetching, rates(chosen), Side(100, 0)).wall == pytest.approx(50)
    uneven = [Job("collect", "a", 1.0, 100.0), *(Job("collect", str(number), 1.0, 1.0) for number in range(3))]
    assert sums(chosen, uneven, rates(chosen), Side(4, 0)).wall == pytest.approx(101)


def test_what_has_its_file_is_done(tmp_path):
    for name in ("results/data/mine/00000.json", "results/manifests/only.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = plans(config(plan=RATES), Side(1, 0))
    assert {name: plan.done for name, plan in found.items() if plan.done} == {"collect": 1, "manifest": 1}
    assert found["manifest"].left.seconds == 0 and found["collect"].left.seconds == pytest.approx(0.65 + 10 / 50)
    assert total(found.values(), "left").seconds < total(found.values(), "whole").seconds


def test_files_are_looked_up_folder_by_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").write_text("")
    assert existing(["a/1", "a/2", "b/1"]) == {"a/1"}


def test_a_sweep_and_shared_drawing_have_jobs_of_their_own():
    asked = config(evaluation={"guidance_sweep": [2.0, 5.0]}, runtime={"gpus": 1, "sample_shards": 3})
    jobs = {name: plan.jobs for name, plan in plans(asked, Side(1, 1)).items()}
    chosen = {"sample": 3, "evaluate": 1, "sample_guidance": 3, "evaluate_guidance": 1, "guidance": 1}
    assert {name: jobs[name] for name in chosen} == chosen  # the evaluation itself is at 5.0


def test_the_papers_jobs_are_at_most_two_thousand_a_rule_and_its_checkpoints_fill_a_disk():
    found = plans(load(*PAPER), Side(200, 16))
    assert max(plan.jobs for plan in found.values()) == found["collect"].jobs == 544 + 500 + 2 + 200 + 700 + 2
    assert checkpoint_bytes(load(*PAPER)) == 16 * 1_165_442_320
    assert found["train"].whole.device_hours == pytest.approx(499 * (1 + 1e-3), rel=2e-2)


def test_a_profile_says_how_many_jobs_run_side_by_side(tmp_path):
    (tmp_path / "profile.yaml").write_text("executor: slurm\njobs: 50\n")
    gpus = config(runtime={"gpus": 4})
    assert side(gpus, None, None, tmp_path) == Side(50, 200, cluster=True)
    assert side(gpus, None, 16, tmp_path) == Side(50, 16, cluster=True)
    assert side(gpus, 3, None, None) == Side(3, 4)
    assert side(config(), 3, 8, None) == Side(3, 0)  # a run without GPUs uses none
    (tmp_path / "profile.yaml").write_text("resources: {gpu: 2}\n")
    assert side(gpus, 6, None, tmp_path) == Side(6, 2)


@pytest.mark.parametrize("text", ["- a\n", "jobs: [", "jobs: unlimited\n"])
def test_a_profile_that_says_nothing_readable_is_named(tmp_path, text):
    (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(UserError, match=r"profile"):
        side(config(), None, None, tmp_path)
