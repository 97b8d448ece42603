"""The whole DAG on the smaller overlay, as a user runs it."""

import json
import re

import pandas as pd
import pytest

STAGES = ["low_masked", "low_full", "high_masked", "high_full"]


def test_a_second_run_does_nothing(finished):
    assert not finished.planned()
    assert "Nothing to be done" in finished.snakemake().stdout + finished.snakemake().stderr


def test_the_card_says_what_was_measured_and_with_what(finished):
    card = json.loads((finished.folder / "results/fid_coco.json").read_text())
    assert card["fid"] > 0 and card["images"] == 24 and card["comparable_to_published"] is False
    assert [stage["name"] for stage in card["stages"]] == STAGES
    assert {"kid", "clip_score", "floor", "ceiling", "accuracy", "ids_sha256", "versions", "git_commit"} <= set(card)


def test_at_most_eight_processes_load_torch_for_one_shard_a_source(finished):
    card = json.loads((finished.folder / "results/fid_coco.json").read_text())
    loaded = [p for p in card["processes"] if "torch" in p["imports"]]
    extra = 2  # the smaller overlay has two shards of `scenes`: one more caption job and one more encode job
    assert len(loaded) <= 8 + extra
    assert {p["step"] for p in card["processes"] if "torch" not in p["imports"]} >= {"collect", "manifest"}


def test_a_later_run_keeps_the_records_of_what_it_does_not_repeat(clone):
    records = {file.name for file in (clone.folder / "results/work/processes").iterdir()}
    assert {f"manifest-{stage}.json" for stage in STAGES} <= records
    assert clone.snakemake("--forcerun", "card").returncode == 0
    assert {file.name for file in (clone.folder / "results/work/processes").iterdir()} == records


def test_records_of_another_configuration_go(clone):
    stale = clone.folder / "results/work/processes/train-another_stage.json"
    stale.write_text("{}")
    assert clone.snakemake("--forcerun", "card").returncode == 0
    assert not stale.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_counts_add_up_from_ledger_to_training(finished, stage):
    manifest = json.loads((finished.folder / f"results/manifests/{stage}.json").read_text())
    trained = 0
    for source, counts in manifest["counts"].items():
        ledgers = [pd.read_parquet(p) for p in (finished.folder / f"results/data/{source}").glob("*.parquet")]
        assert counts["seen"] == sum(map(len, ledgers))
        assert counts["seen"] == counts["collected"] + sum(counts["bad"].values())
        assert counts["collected"] == counts["trained"] + sum(counts["left_out"].values())
        trained += counts["trained"]
    assert trained == manifest["samples"] > 0


def test_every_stage_starts_from_its_parent(finished):
    summaries = [json.loads((finished.folder / f"results/train/{s}/summary.json").read_text()) for s in STAGES]
    assert [s["parent"] for s in summaries] == [None] + [s["fingerprint"] for s in summaries[:-1]]
    assert [s["images_seen_total"] for s in summaries] == [64, 96, 128, 160]


def test_the_report_is_one_page_without_requests(finished):
    page = (finished.folder / "results/report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']+", page)
    assert all(stage in page for stage in STAGES)


def test_generate_draws_from_the_trained_model(finished):
    done = finished.pipeline("generate", "a red circle in the top left on a pink background", "-o", "out.png", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert (finished.folder / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_verify_finds_a_flipped_byte_and_names_the_file(clone):
    assert clone.pipeline("verify", "results").returncode == 0
    shard = next((clone.folder / "results/latents").rglob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = clone.pipeline("verify", "results")
    assert done.returncode == 1 and shard.name in done.stdout
