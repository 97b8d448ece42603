"""What a change reruns: what depends on it, and nothing else. Dry runs on a finished project.

Each row of the table in docs/how-to/resume-and-rerun.md is a test here, under the same words and with the same jobs.
"""

import json
import os
import re
from collections import Counter

import pandas as pd
import pytest

from pipeline.fingerprint import ROOT

PAGE = ROOT / "docs/how-to/resume-and-rerun.md"
RULES = ["collect", "caption", "encode", "manifest", "train", "sample", "evaluate", "card", "model", "report"]  # in their order
BELOW = {"evaluate": 1, "card": 1, "model": 1, "report": 1}
ALL_TRAINED = {"train": 4, **BELOW}
NEW_DATA = {"manifest": 4, **ALL_TRAINED}
NOTHING = {}

SETTINGS = {  # words of the table -> an overlay and the jobs that it starts
    "`stages.high_masked.learning_rate` (the third of four stages)": (
        "stages: {high_masked: {learning_rate: 0.5}}",
        {"train": 2, **BELOW},
    ),
    "`stages.low_masked.mask_ratio` (the first)": ("stages: {low_masked: {mask_ratio: 0.5}}", ALL_TRAINED),
    "`stages.high_full.written_share` (the last)": ("stages: {high_full: {written_share: 0.5}}", {"train": 1, **BELOW}),
    "`stages.high_full.px` to a new resolution": ("stages: {high_full: {px: 48}}", {"encode": 3, **NEW_DATA}),
    "`model.depth`": ("model: {depth: 5}", ALL_TRAINED),
    "`filters.max_aspect`": ("filters: {max_aspect: 2}", NEW_DATA),
    "`sources.NAME.max_nsfw`, `min_side`, `license`: what is collected of one source": (
        "sources: {scenes: {max_nsfw: 0.1, min_side: 16, license: CC0}}",
        {"collect": 2, "caption": 2, "encode": 2, **NEW_DATA},
    ),
    "`sources.NAME.caption`": (
        "sources: {scenes_synthetic: {caption: write}}",
        {"caption": 1, "encode": 1, **NEW_DATA},
    ),
    "`sources.NAME.role` of a training source": ("sources: {scenes_synthetic: {role: real}}", NEW_DATA),
    "`sources.NAME.min_yield`": ("sources: {scenes: {min_yield: 0.2}}", NOTHING),
    "a new source of one shard": (
        "sources: {more: {kind: synthetic, count: 32, seed: 9, min_side: 32, store_side: 64}}",
        {"collect": 1, "caption": 1, "encode": 1, **NEW_DATA},
    ),
    "`models.captioner`, such as another revision": (
        "models: {captioner: 'hf:owner/name@0123456789012345678901234567890123456789'}",
        {"caption": 2, "encode": 2, **NEW_DATA},  # of the one source that has captions written
    ),
    "`evaluation.guidance`": ("evaluation: {guidance: 4.5}", BELOW),
    "`evaluation.weights`": ("evaluation: {weights: best}", BELOW),
    "`evaluation.curve.images` from or to 0": ("evaluation: {curve: {images: 0}}", ALL_TRAINED),
    "anything else under `evaluation.curve`": ("evaluation: {curve: {steps: 3}}", NOTHING),
    "`runtime.sample_shards` to 3, all of which find every picture and draw none": (
        "runtime: {sample_shards: 3}",
        {"sample": 3, **BELOW},
    ),
    "anything else under `runtime` or `plan`, such as a tracker; `validation.images` and `.sigmas`": (
        """
        runtime: {sample_batch: 7, log_every_images: 32, captioner_mb: 9000, trackers: [tensorboard], tracker_project: mine}
        plan: {train_share: 0.3}
        validation: {images: 7, sigmas: [1.0]}
        """,
        NOTHING,
    ),
    "`report.title`": ("report: {title: Other}", {"report": 1}),
    "`report.dollars_per_hour`": ("report: {dollars_per_hour: 3.0}", {"card": 1, "model": 1, "report": 1}),
    "a key that is given the value it has anyway": ("stages: {high_full: {written_share: null, ema_start_images: 0}}", NOTHING),
}


@pytest.mark.parametrize("row", SETTINGS)
def test_a_change_of_the_configuration(finished, tmp_path, row):
    overlay, expected = SETTINGS[row]
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    assert finished.planned(file) == Counter(expected)


def _append(text):
    return lambda source: source + text


NEW_IMPORT = _append("\nfrom pipeline.added import ADDED  # noqa: E402, F401\n")
REMARK = _append("\n# a remark\n\n\n")


def _with_another_key(neutral):
    """What a release does to the configuration: a key for trainings, one for the run, one for the report."""
    fields = {
        "Stage": f'result(0.0, "new", neutral={neutral})',
        "Runtime": 'runtime(1, "new")',
        "Report": 'report("", "new")',
    }

    def edit(source):
        found = [name for name in fields if f"class {name}(Section):" in source]
        for name in found:
            source = re.sub(rf'class {name}\(Section\):\n    ".*"\n', rf"\g<0>\n    added: object = {fields[name]}\n", source)
        assert 0 < len(found) == source.count("added: object")
        return source

    return edit


EDITS = {  # words of the table -> files, what happens to their text, the jobs
    "a comment, a docstring, the formatting of any code": (
        ["encode/encode.py", "train/stage.py", "model/microdit.py", "artifacts.py"],
        REMARK,
        NOTHING,
    ),
    "what the code of training does, or what it imports": (["train/stage.py"], NEW_IMPORT, NOTHING),
    "what the code of encode does, or what it imports": (["encode/latents.py"], NEW_IMPORT, {"encode": 3, **NEW_DATA}),
    "what the code of a frozen encoder does": (["frozen/vae.py"], _append("\nADDED = 1\n"), {"encode": 3, **NEW_DATA}),
    "what the code of the network or the sampler does, or what it imports": (["model/microdit.py"], NEW_IMPORT, BELOW),
    "a release with new keys: a neutral one of training, one of `runtime`, one of `report`": (
        ["config/schema.py", "config/running.py"],
        _with_another_key(True),
        {"report": 1},
    ),
}


@pytest.mark.parametrize("row", EDITS)
def test_an_edit_of_the_program(clone, row):
    files, edit, expected = EDITS[row]
    (clone.folder / "pipeline/added.py").write_text("ADDED = 1\n")
    for name in files:
        file = clone.folder / "pipeline" / name
        file.write_text(edit(file.read_text()))
    assert clone.planned() == Counter(expected)


def test_a_new_key_that_nobody_marked_as_neutral_would_train_all_again(clone):
    file = clone.folder / "pipeline/config/schema.py"
    file.write_text(_with_another_key(False)(file.read_text()))
    assert clone.planned() == Counter(ALL_TRAINED)


def _touch(folder):
    """Give all results a new time, a shard of more than 1 MB among them: up to that size Snakemake compares content."""
    tar = folder / "results/data/scenes/00000.tar"
    tar.write_bytes(tar.read_bytes() + bytes(2 << 20))
    for file in (folder / "results").rglob("*"):
        if file.is_file() and file.suffix in {".json", ".tar", ".arrow", ".parquet", ".safetensors"}:
            os.utime(file)


def _delete(folder):
    for name in ("data/scenes/00000.tar", "captions/scenes/00000.parquet", "train/low_full/optimizer.safetensors"):
        (folder / "results" / name).unlink()
    next((folder / "results/latents").rglob("*.arrow")).unlink()


def _annotate(folder):
    file = folder / "results/embedded/coco/captions.json"
    file.write_text(file.read_text() + " ")


def _redraw(folder):
    next((folder / "results/embedded/coco/images").glob("*.png")).write_bytes(b"other")


FILES = {  # words of the table -> what happens to the project, the jobs
    "the time stamps of results (`touch`), also of files above 1 MB": (_touch, NOTHING),
    "a shard's data that is deleted or damaged, its sidecar left: see [below](#check-what-is-there)": (_delete, NOTHING),
    "the annotations of the evaluation set": (_annotate, {"collect": 1, "caption": 1, **NEW_DATA}),
    "the images of a `coco` or `folder` source, with the same table: force it, see below": (_redraw, NOTHING),
}


@pytest.mark.parametrize("row", FILES)
def test_a_change_of_files(clone, row):
    change, expected = FILES[row]
    change(clone.folder)
    assert clone.planned() == Counter(expected)


MACHINE = "threads, memory, other resources of the jobs, the profile"


def test_how_jobs_are_run_is_no_reason(finished):
    options = ["--workflow-profile", "workflow/profiles/default", "--set-threads", "train=1", "evaluate=1"]
    assert finished.planned(options=(*options, "--set-resources", "encode:mem_mb=9999")) == Counter(NOTHING)


TAKEN_DOWN = "a sample that is taken down, or is no longer"


def test_a_sample_that_is_taken_down_makes_manifests_anew_and_encodes_nothing(clone):
    key = pd.read_parquet(clone.folder / "results/data/scenes/00000.parquet")["key"][0]
    assert clone.pipeline("take-down", f"scenes/{key}").returncode == 0
    assert clone.planned() == Counter(NEW_DATA)
    done = clone.snakemake("--", "results/manifests/low_full.json")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    counts = json.loads((clone.folder / "results/manifests/low_full.json").read_text())["counts"]
    assert counts["scenes"]["left_out"]["taken_down"] == 1
    (clone.folder / "take_down.txt").unlink()
    assert clone.planned() == Counter({"manifest": 1, "train": 3, **BELOW})


def test_a_new_resolution_computes_only_itself(clone):
    files = [
        file for kind in ("latents", "text") for file in (clone.folder / f"results/{kind}/scenes_synthetic").rglob("*.arrow")
    ]
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    overlay = clone.overlay("overlay.yaml", "stages: {high_full: {px: 48}}")
    target = "results/encoded/scenes_synthetic/00000.json"
    done = clone.snakemake("--", target, overlays=("tests/workflow/smoke.yaml", overlay))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert {"latents-32", "latents-48", "latents-64", "text"} == set(json.loads((clone.folder / target).read_text())["files"])
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files} == before


def _in_words(jobs):
    """The jobs as the table has them."""
    return ", ".join(f"{jobs[rule]} {rule}" if jobs[rule] > 1 else rule for rule in RULES if rule in jobs) or "nothing"


def test_the_table_in_the_docs_is_what_is_tested():
    section = PAGE.read_text().partition("## What a change reruns")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| ([^|]+) \|$", section, re.M)[1:])
    tested = {row: expected for table in (SETTINGS, EDITS, FILES) for row, (*_, expected) in table.items()}
    tested |= {MACHINE: NOTHING, TAKEN_DOWN: NEW_DATA}
    assert rows == {row: _in_words(expected) for row, expected in tested.items()}
