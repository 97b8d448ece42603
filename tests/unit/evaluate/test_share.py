"""Pictures drawn by several jobs, of which the evaluation makes use."""

import json

import pytest

from pipeline.artifacts import read_json, sha256_file
from pipeline.config.steps import EvaluateSlice
from pipeline.errors import UserError
from pipeline.evaluate.evaluate import run as evaluate
from pipeline.evaluate.sample import Part
from pipeline.evaluate.share import run


def drawn(folder):
    """All pictures of the work folder by the drawing they belong to and their name."""
    return {f"{file.parents[1].name}/{file.name}": file for file in folder.rglob("*.png")}


@pytest.fixture
def share(tmp_path, shards, stage, settings, slice_of):
    """Draw a part; its record and the drawn files by name."""

    def go(part, work="work", slice_=None, batch=3):
        runtime = settings.runtime.model_copy(update={"sample_batch": batch})
        chosen = settings.model_copy(update={"runtime": runtime})
        out = tmp_path / work / f"{part.number}-of-{part.of}.json"
        run(slice_ or slice_of(untrained_images=0), chosen, *shards, stage, part, tmp_path / work, out)
        return read_json(out), drawn(tmp_path / work)

    return go


@pytest.fixture
def asked(tmp_path, frozen, slice_of):
    """An evaluation that draws four kinds of pictures."""
    (tmp_path / "set.tsv").write_text("Prompt\tCategory\na red circle\tshapes\na blue square\tshapes\n")
    sets, more = {"mine": str(tmp_path / "set.tsv")}, {"preference": ["pickscore"], "pickscore": frozen["clip"]}
    return slice_of(geneval={"limit": 5, "images_a_prompt": 2}, prompt_sets=sets, **more)


def test_two_jobs_draw_what_one_draws_and_say_what_it_hashes_to(share):
    whole, files = share(Part(1, 1), "one")
    records = [share(Part(number, 2), "two")[0] for number in (2, 1)]
    _, shared = share(Part(1, 2), "two")
    assert {name: file.read_bytes() for name, file in files.items()} == {n: f.read_bytes() for n, f in shared.items()}
    assert whole["count"] == 8 == sum(record["count"] for record in records)
    hashes = [record["sha256"]["samples"] for record in (whole, *records)]
    assert hashes[1] | hashes[2] == hashes[0] and not hashes[1].keys() & hashes[2].keys()
    assert hashes[0] == {str(int(name[-10:-4])): sha256_file(file) for name, file in files.items()}
    assert (records[0]["part"], records[0]["of"], records[0]["kind"]) == (2, 2, "samples")


@pytest.mark.parametrize("order", [(1, 2), (3, 1, 2), (2, 5, 1, 4, 3)])
def test_all_that_an_evaluation_draws_is_shared_to_the_bit(share, asked, order):
    whole, files = share(Part(1, 1), "one", asked)
    assert {name: len(found) for name, found in whole["sha256"].items()} == {
        "samples": 8, "untrained": 4, **{name: 10 for name in whole["sha256"] if name.startswith("geneval-")},
        **{name: 2 for name in whole["sha256"] if name.startswith("mine-")},
    }  # fmt: skip
    assert whole["count"] == 24 == len(files) and len(whole["sha256"]) == 4
    records = [share(Part(number, len(order)), "many", asked)[0] for number in order]
    _, shared = share(Part(1, len(order)), "many", asked)
    assert {name: file.read_bytes() for name, file in files.items()} == {n: f.read_bytes() for n, f in shared.items()}
    for name, hashes in whole["sha256"].items():
        parts = [record["sha256"][name] for record in records]
        assert sum(map(len, parts)) == len(hashes) and {i: h for part in parts for i, h in part.items()} == hashes
    batches = [sum(-(-len(found) // 3) for found in record["sha256"].values()) for record in records]
    assert max(batches) - min(batches) <= 1, "short lists of prompts do not all fall to the first job"


def test_a_job_that_is_run_again_writes_the_same_record_and_touches_nothing(share, asked):
    before, files = share(Part(1, 2), slice_=asked)
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert share(Part(1, 2), slice_=asked) == (before, files)
    assert times == {name: file.stat().st_mtime_ns for name, file in files.items()}


def test_more_jobs_than_batches_leave_some_without_work(share):
    record, files = share(Part(4, 4), batch=3)
    assert (record["count"], record["sha256"], files) == (0, {"samples": {}}, {})


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


def test_a_missing_file_of_prompts_stops_it_before_anything_is_drawn(share, slice_of, tmp_path):
    with pytest.raises(UserError, match=r"evaluation.prompt_sets.mine: none.txt"):
        share(Part(1, 2), slice_=slice_of(prompt_sets={"mine": "none.txt"}))
    assert not (tmp_path / "work").exists()


def test_the_evaluation_finds_what_the_jobs_drew(share, asked, tmp_path, shards, stage, settings):
    for number in (1, 2):
        _, files = share(Part(number, 2), slice_=asked)
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    evaluate(asked, settings, *shards, stage, tmp_path / "work", tmp_path / "out", tmp_path / "reference")
    after = {name: file.stat().st_mtime_ns for name, file in drawn(tmp_path / "work").items() if not name.startswith("vae/")}
    assert after == times, "nothing is drawn"
    shared = json.loads((tmp_path / "out/card.json").read_text())
    assert shared["drawn"] == 0
    evaluate(asked, settings, *shards, stage, tmp_path / "alone", tmp_path / "by_one", tmp_path / "reference")
    alone = json.loads((tmp_path / "by_one/card.json").read_text())
    assert alone["drawn"] == 8 and alone["metrics"]["geneval"] == shared["metrics"]["geneval"]
    for name in ("fid", "clip_score"):
        assert alone["metrics"][name] == pytest.approx(shared["metrics"][name], rel=1e-9)
    means = [card["metrics"]["preference"]["pickscore"]["mean"] for card in (alone, shared)]
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    assert (tmp_path / "by_one/prompts/mine.png").read_bytes() == (tmp_path / "out/prompts/mine.png").read_bytes()
