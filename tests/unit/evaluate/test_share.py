"""Samples drawn by several jobs, of which the evaluation makes use."""

import json

import pytest

from pipeline.artifacts import read_json, sha256_file
from pipeline.config.steps import EvaluateSlice
from pipeline.errors import UserError
from pipeline.evaluate.sample import Part
from pipeline.evaluate.share import run


@pytest.fixture
def share(tmp_path, shards, stage, settings, slice_of):
    """Draw a part; its record and the drawn files by name."""

    def go(part, work="work", slice_=None, batch=3):
        runtime = settings.runtime.model_copy(update={"sample_batch": batch})
        chosen = settings.model_copy(update={"runtime": runtime})
        out = tmp_path / work / f"{part.number}-of-{part.of}.json"
        run(slice_ or slice_of(), chosen, *shards, stage, part, tmp_path / work, out)
        return read_json(out), {file.name: file for file in (tmp_path / work).rglob("*.png")}

    return go


def test_two_jobs_draw_what_one_draws_and_say_what_it_hashes_to(share):
    whole, files = share(Part(1, 1), "one")
    records = [share(Part(number, 2), "two")[0] for number in (2, 1)]
    _, shared = share(Part(1, 2), "two")
    assert {name: file.read_bytes() for name, file in files.items()} == {n: f.read_bytes() for n, f in shared.items()}
    assert whole["count"] == 8 == sum(record["count"] for record in records)
    assert records[0]["sha256"] | records[1]["sha256"] == whole["sha256"] and not set.intersection(
        *(set(record["sha256"]) for record in records)
    )
    assert whole["sha256"] == {str(int(name[:6])): sha256_file(file) for name, file in files.items()}
    assert (records[0]["part"], records[0]["of"], records[0]["kind"]) == (2, 2, "samples")


def test_a_job_that_is_run_again_writes_the_same_record_and_touches_nothing(share):
    before, files = share(Part(1, 2))
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert share(Part(1, 2)) == (before, files)
    assert times == {name: file.stat().st_mtime_ns for name, file in files.items()}


def test_more_jobs_than_batches_leave_some_without_work(share):
    record, files = share(Part(4, 4), batch=3)
    assert (record["count"], record["sha256"], files) == (0, {}, {})


def test_what_the_scores_depend_on_is_no_part_of_the_folder(share, slice_of, tmp_path):
    """The rule passes a slice without it."""
    share(Part(1, 1))
    slice_ = slice_of(features="inception", resize="legacy_pytorch", untrained_images=0, bootstrap=9)
    share(Part(1, 1), slice_=EvaluateSlice.parse(slice_.to_json()))
    assert len([folder for folder in (tmp_path / "work").iterdir() if folder.is_dir()]) == 1


def test_too_few_captions_stop_it(share, slice_of, tmp_path):
    with pytest.raises(UserError, match=r"evaluation.images: 20, but only 11 of the 12"):
        share(Part(1, 2), slice_=slice_of(images=20))
    assert not (tmp_path / "work").exists()


def test_the_evaluation_finds_what_the_jobs_drew(share, tmp_path, shards, stage, settings, slice_of):
    from pipeline.evaluate.evaluate import run as evaluate

    for number in (1, 2):
        share(Part(number, 2))
    evaluate(slice_of(), settings, *shards, stage, tmp_path / "work", tmp_path / "out", tmp_path / "reference")
    assert json.loads((tmp_path / "out/card.json").read_text())["drawn"] == 0
