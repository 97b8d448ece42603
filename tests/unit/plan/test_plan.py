"""The plan of a run: what is counted is checked against the paper, what is assumed against the section `plan`."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from pipeline.config import load, validate
from pipeline.fingerprint import ROOT
from pipeline.model import PRESETS, at_resolution, training_flops
from pipeline.plan import estimate, table

PAPER = (ROOT / "config.yaml", ROOT / "workflow/presets/paper.yaml")
ONE_PERCENT = (*PAPER, ROOT / "workflow/presets/paper_1percent.yaml")


def config(**sections):
    values = {
        "sources": {
            "mine": {"kind": "synthetic", "count": 1000, "store_side": 64},
            "held": {"kind": "synthetic", "count": 10, "role": "evaluation"},
        },
        "stages": {"only": {"px": 64, "mask_ratio": 0.5, "images": 4000, "batch_images": 100}},
        "schedule": ["only"],
        "evaluation": {"source": "held"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return validate(values)


def test_the_papers_recipe_takes_the_papers_flops_and_hours():
    stages = estimate.stages(load(*PAPER))
    assert sum(stage.flops for stage in stages) == pytest.approx(3.287e20, rel=2e-3)
    assert sum(stage.hours for stage in stages) == pytest.approx(499, rel=5e-3)  # 2.6 days on eight H100


def test_all_six_datasets_of_the_paper_are_there_and_add_up():
    planned = {source.name: source for source in estimate.sources(load(*PAPER))}
    assert set(planned) == {"cc12m", "sa1b", "textcaps", "journeydb", "diffusiondb", "coco_2014"}
    training = [source for name, source in planned.items() if name != "coco_2014"]
    assert 33e6 < sum(source.usable for source in training) < 40e6
    assert planned["coco_2014"].encode_hours == 0
    per_image = planned["textcaps"].keep / planned["textcaps"].usable
    assert per_image == 1e3 * 110 + 2 * 4 * (32**2 + 64**2) + 2 * 77 * 1024  # image, latents at 256 and 512, text


def test_one_percent_is_one_percent():
    whole, part = estimate.sources(load(*PAPER)), estimate.sources(load(*ONE_PERCENT))
    for one, other in zip(whole, part, strict=True):
        if one.name != "coco_2014":
            assert other.images == pytest.approx(one.images / 100, abs=1)
            assert other.fetch == pytest.approx(one.fetch / 100)
            assert load(*ONE_PERCENT).sources[one.name].shards < load(*PAPER).sources[one.name].shards


def test_shapes_are_those_of_models_on_this_machine():
    made = estimate.shapes(config())
    assert (made.channels, made.factor, made.tokens, made.width) == (4, 8, 24, 64) and not made.assumed
    assert made.latent_bytes(64) == 2 * 4 * 8 * 8 and made.text_bytes == 2 * 24 * 64
    assert estimate.shapes(config(models={"text_storage": "int8"})).text_bytes == 24 * (64 + 2)
    away = config(models={"vae": "hf:some/vae@main"}, plan={"latent_channels": 16})
    assert estimate.shapes(away).channels == 16 and estimate.shapes(away).assumed == ("hf:some/vae@main",)


def test_hours_follow_from_the_rates():
    rates = {"captions_per_second": 10, "encodes_per_second": 20, "texts_per_second": 50}
    sources = {
        "mine": {"kind": "synthetic", "count": 7200, "caption": "add", "store_side": 64, "expect": {"usable": 0.5}},
        "held": {"kind": "synthetic", "count": 10, "role": "evaluation"},
    }
    mine = estimate.sources(config(plan=rates, sources=sources, captioning={"prompts": ["short", "long"]}))[0]
    assert mine.images == 7200 and mine.usable == 3600
    assert mine.caption_hours == pytest.approx(3600 * 2 / 10 / 3600)
    assert mine.encode_hours == pytest.approx((3600 * (64 / 256) ** 2 / 20 + 3600 * 3 / 50) / 3600)


def test_training_hours_follow_from_the_share_of_the_peak():
    stage = estimate.stages(config(plan={"peak_tflops": 100, "train_share": 0.5}))[0]
    network = at_resolution(PRESETS["small"], 8)
    assert network.num_tokens == 64 and stage.epochs == 4
    assert stage.hours == pytest.approx(stage.flops / 50e12 / 3600)
    assert stage.flops == pytest.approx(
        4000 * training_flops(PRESETS["small"].__class__(**{**vars(network), "pos_interp_scale": 1.0}), 0.5)
    )


def test_files_on_this_machine_are_counted(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps({"images": [{"id": 1}, {"id": 2}, {"id": 3}], "annotations": []}))
    sources = {
        "mine": {"kind": "folder", "path": str(tmp_path)},
        "held": {"kind": "coco", "role": "evaluation", "images": str(tmp_path), "annotations": str(annotations)},
    }
    planned = {source.name: source.images for source in estimate.sources(config(sources=sources))}
    assert planned == {"mine": 2, "held": 3}
    assert estimate.here(config(sources=sources))["held"] == (1, annotations.stat().st_size)


def test_what_is_unknown_is_said_to_be(capsys):
    sources = {
        "mine": {"kind": "webdataset", "path": "nowhere/*.tar"},
        "held": {"kind": "synthetic", "count": 1, "role": "evaluation"},
    }
    unknown = config(sources=sources)
    assert estimate.stages(unknown)[0].epochs is None
    table.run(unknown)
    printed = capsys.readouterr().out
    assert "images of mine are not known; sources.NAME.expect.images tells them" in printed


def test_the_command_prints_a_table_and_json():
    command = [sys.executable, "-m", "pipeline", "plan", "--configfile", "workflow/presets/paper.yaml"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for expected in ("journeydb", "6.5 TB", "base_masked", "In all", "Fetching takes", "Not on this machine"):
        assert expected in printed
    facts = json.loads(subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert facts["totals"]["training_hours"] == pytest.approx(499, rel=5e-3)
    hours = facts["totals"]["training_hours"] + facts["totals"]["encode_hours"] + facts["totals"]["caption_hours"]
    assert facts["totals"]["dollars"] == pytest.approx(2.6 * hours)
