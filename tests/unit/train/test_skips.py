"""Steps that are not taken, in whole runs on shards with bad samples."""

import pytest

from pipeline.artifacts import read_json
from tests.training import ends, json_lines, keys_of, poisoned, rows_at, same, training_lines, weights, write_manifest

NAN = float("nan")
EVERY_STEP = {"checkpoint_every_images": 24, "log_every_images": 24, "samples_every_images": 960, "keep_checkpoints": 99}


@pytest.fixture
def short(slice_of):
    """Two epochs of five steps."""
    return slice_of(images=240)


@pytest.fixture
def bad_shard(tmp_path, short, toy):
    """A manifest with NaN in the sample at position 44: in step 2, among those of the second of two processes."""
    (row,) = rows_at(short, toy, 44, 1)
    return write_manifest(tmp_path / "bad", 8, 4, poisoned({row: NAN})), *keys_of([row])


def test_a_step_with_a_bad_sample_is_as_if_it_had_not_been(trainer, short, bad_shard):
    manifest, key = bad_shard
    out = trainer.run(short, manifest, **EVERY_STEP)
    skipped = json_lines(trainer.work() / "skipped.jsonl")
    assert [line["not_finite"] for line in skipped] == [[key], [key]] and skipped[0]["images"] == 48
    for line in skipped:
        start = line["images"] - 24
        assert line["keys"] == keys_of(rows_at(short, manifest, start, 24)) and line["grad_norm"] is None
        before, after = (trainer.work() / f"{images:012d}" for images in (start, line["images"]))
        assert same(weights(before, ("model", "optimizer")), weights(after, ("model", "optimizer")))
        assert read_json(before / "state.json")["guard"] == read_json(after / "state.json")["guard"]
    lines = training_lines(out)
    assert [line["skipped_steps"] for line in lines if line["loss"] is None] == [1, 2]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["skipped_steps"] == 2
    assert read_json(out / "summary.json")["skipped_steps"] == 2


def test_a_bad_sample_in_one_process_stops_the_step_of_both(trainer, short, bad_shard):
    manifest, key = bad_shard
    trainer.run(short, manifest, name="alone")
    assert ends(trainer.start_two(short, manifest)) == [0, 0], trainer.log().read_text()
    files = [trainer.work(name) / "skipped.jsonl" for name in ("alone", "run")]
    assert files[0].read_bytes() == files[1].read_bytes() and json_lines(files[1])[0]["not_finite"] == [key]
    state = read_json(trainer.work() / "000000000240/state.json")
    assert (state["skipped"], state["skipped_in_row"]) == (2, 0)


def test_too_many_in_a_row_stop_the_run_and_name_the_samples(trainer, tmp_path, short, toy):
    """Steps 1 and 2 are good; after them every batch holds NaN."""
    manifest = write_manifest(tmp_path / "bad", 8, 4, poisoned(dict.fromkeys(rows_at(short, toy, 48, 72), NAN)))
    last = keys_of(rows_at(short, toy, 120, 24))
    bad = set(keys_of(rows_at(short, toy, 48, 72)))
    named = [key for key in last if key in bad]
    for pair in (False, True):
        name = "two" if pair else "run"
        rules = {"checkpoint_every_images": 24, "keep_checkpoints": 1, "max_skips_in_row": 3, "name": name}
        if pair:
            assert ends(trainer.start_two(short, manifest, **rules)) == [1, 1]
        else:
            trainer.run(short, manifest, expect=1, **rules)
        (told,) = [line for line in trainer.log(name).read_text().splitlines() if line.startswith("stages.toy: ")]
        assert told.startswith(
            "stages.toy: 4 steps in a row up to 144 images had a gradient that was not finite or far too large"
        )
        assert f"samples of the last: {', '.join(named[:5])} and {len(named) - 5} more" in told
        assert f"last good checkpoint: {trainer.work(name)}/000000000048;" in told
        assert [int(path.name) for path in trainer.checkpoints(name)] == [48, 120] and "Traceback" not in trainer.log(
            name
        ).read_text()
        assert len(json_lines(trainer.work(name) / "skipped.jsonl")) == 4


def test_a_step_whose_gradient_is_far_too_large_is_skipped(trainer, tmp_path, slice_of, toy):
    """Two images a step; the last one of the epoch has latents ten thousand times as large, after fifty good steps."""
    slice_ = slice_of(images=120, batch_images=2, learning_rate=1e-3)
    (row,) = rows_at(slice_, toy, 119, 1)
    manifest = write_manifest(tmp_path / "bad", 8, 4, poisoned({row: 6e4}))
    out = trainer.run(slice_, manifest, checkpoint_every_images=118, log_every_images=118)
    (line,) = json_lines(trainer.work() / "skipped.jsonl")
    assert line["images"] == 120 and line["not_finite"] == [] and keys_of([row])[0] in line["keys"]
    assert line["grad_norm"] > 20 * training_lines(out)[0]["grad_norm"]
    before, after = (weights(trainer.work() / f"{images:012d}", ("model", "optimizer")) for images in (118, 120))
    assert same(before, after)
