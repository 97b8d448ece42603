"""The plan of a run: what is counted is checked against the paper and by hand, what is assumed against the section `plan`."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from pipeline.architecture import PRESETS, at_resolution, training_flops
from pipeline.config import load, validate
from pipeline.fingerprint import ROOT
from pipeline.plan import estimate, table
from pipeline.plan.rates import rates
from pipeline.plan.rules import Side

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


def sources(chosen):
    return estimate.sources(chosen, rates(chosen))


def stages(chosen):
    return estimate.stages(chosen, rates(chosen))


def test_the_papers_recipe_takes_the_papers_flops_and_hours():
    paper = load(*PAPER)
    flops = sum(stage.flops for stage in stages(paper))
    assert flops == pytest.approx(3.287e20, rel=1e-3)
    assert flops / rates(paper).peak.value / 3600 == pytest.approx(92.3, abs=0.1)  # H100-hours at full peak
    assert sum(stage.hours for stage in stages(paper)) == pytest.approx(499, rel=2e-3)  # 2.6 days on eight H100
    by_stage = [stage.flops for stage in stages(paper)]
    assert by_stage == pytest.approx([1.445e20, 0.439e20, 1.095e20, 0.307e20], rel=3e-3)


def test_all_six_datasets_of_the_paper_are_there_and_add_up():
    planned = {source.name: source for source in sources(load(*PAPER))}
    assert set(planned) == {"cc12m", "sa1b", "textcaps", "journeydb", "diffusiondb", "coco_2014"}
    training = [source for name, source in planned.items() if name != "coco_2014"]
    assert 33e6 < sum(source.usable for source in training) < 40e6
    assert planned["coco_2014"].encode_hours == planned["coco_2014"].latents == planned["coco_2014"].texts == 0
    one = planned["textcaps"]
    assert one.latents / one.usable == 2 * 4 * (32**2 + 64**2) + 2 * 16  # latents at 256 and 512, and their keys
    assert one.texts / one.usable == 2 * 77 * 1024 + 16
    assert one.tars / one.usable == 110_000 + 2048
    assert one.keep == one.tars + one.ledgers + one.captions + one.latents + one.texts


def test_one_percent_is_one_percent():
    whole, part = sources(load(*PAPER)), sources(load(*ONE_PERCENT))
    for one, other in zip(whole, part, strict=True):
        if one.name != "coco_2014":
            assert other.images == pytest.approx(one.images / 100, abs=1)
            assert other.fetch == pytest.approx(one.fetch / 100)
            assert load(*ONE_PERCENT).sources[one.name].shards < load(*PAPER).sources[one.name].shards


@pytest.mark.parametrize("preset", ["paper", "paper_1percent", "one_gpu"])
def test_scores_while_training_take_little_of_it(preset):
    """Of the default run's intervals a large recipe would inherit one score for every few steps."""
    chosen = load(*(ONE_PERCENT if "percent" in preset else (PAPER[0], ROOT / f"workflow/presets/{preset}.yaml")))
    for stage in chosen.schedule:
        steps = chosen.evaluation.curve.every_images / chosen.stages[stage].batch_images
        assert steps >= 500, stage


def test_shapes_are_those_of_models_on_this_machine():
    made = estimate.shapes(config())
    assert (made.channels, made.factor, made.tokens, made.width) == (4, 8, 24, 64) and not made.assumed
    assert made.latent_bytes(64) == 2 * 4 * 8 * 8 and made.text_bytes == 2 * 24 * 64
    assert estimate.shapes(config(models={"text_storage": "int8"})).text_bytes == 24 * (64 + 2)
    away = config(models={"vae": "hf:some/vae@main"}, plan={"latent_channels": 16})
    assert estimate.shapes(away).channels == 16 and estimate.shapes(away).assumed == ("hf:some/vae@main",)


def test_hours_follow_from_the_rates():
    given = {"captions_per_second": 10, "encodes_per_second": 20, "texts_per_second": 50}
    chosen = {
        "mine": {"kind": "synthetic", "count": 7200, "caption": "add", "store_side": 64, "expect": {"usable": 0.5}},
        "held": {"kind": "synthetic", "count": 10, "role": "evaluation"},
    }
    mine = sources(config(plan=given, sources=chosen, captioning={"prompts": ["short", "long"]}))[0]
    assert mine.images == 7200 and mine.usable == 3600 and mine.written == 7200
    assert mine.caption_hours == pytest.approx(3600 * 2 / 10 / 3600)
    assert mine.encode_hours == pytest.approx((3600 * (64 / 256) ** 2 / 20 + 3600 * 3 / 50) / 3600)


def test_of_scenes_only_those_without_a_caption_are_captioned():
    chosen = {"mine": {"kind": "synthetic", "count": 1000, "store_side": 64, "caption": "fill", "uncaptioned": 0.3}}
    held = {"held": {"kind": "synthetic", "count": 10, "role": "evaluation"}}
    assert sources(config(sources={**chosen, **held}))[0].written == 300


def test_training_hours_follow_from_the_share_of_the_peak():
    stage = stages(config(plan={"peak_tflops": 100, "train_share": 0.5}))[0]
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
    held = {
        "kind": "coco",
        "role": "evaluation",
        "images": str(tmp_path),
        "annotations": str(annotations),
        "expect": {"images": 9},
    }
    chosen = {"mine": {"kind": "folder", "path": str(tmp_path)}, "held": held}
    assert {source.name: source.images for source in sources(config(sources=chosen))} == {"mine": 2, "held": 3}
    assert estimate.here(config(sources=chosen))["held"] == (1, annotations.stat().st_size)
    annotations.unlink()
    assert sources(config(sources=chosen))[1].images == 9  # as expected, until it is here


def test_what_is_unknown_is_said_to_be(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = {
        "mine": {"kind": "webdataset", "path": "nowhere/*.tar"},
        "held": {"kind": "synthetic", "count": 1, "role": "evaluation"},
    }
    unknown = config(sources=chosen)
    assert stages(unknown)[0].epochs is None
    table.run(unknown, Side(2, 0))
    printed = capsys.readouterr().out
    assert "images of mine are not known; sources.NAME.expect.images tells them" in printed and "+ ?" in printed


def pipeline(*arguments, cwd=ROOT):
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    )


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with the configuration and nothing that a run made."""
    (tmp_path / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    return tmp_path


def test_the_command_prints_a_table_and_json_without_torch(elsewhere):
    command = ("plan", "--configfile", str(PAPER[1]), "--gpus", "8", "--jobs", "16")
    done = pipeline(*command, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-2000:]
    for expected in ("journeydb", "6.5 TB", "base_masked", "In all", "Not on this machine", "the paper's run", "assumed", "92.3"):
        assert expected in done.stdout
    assert not {"torch", "transformers", "diffusers"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    facts = json.loads(pipeline(*command, "--json", cwd=elsewhere).stdout)
    assert facts["totals"]["training_hours"] == pytest.approx(499, rel=5e-3)
    assert facts["totals"]["training_hours_at_peak"] == pytest.approx(92.3, abs=0.1)
    assert facts["totals"]["dollars"] == pytest.approx(2.6 * facts["totals"]["device_hours"])
    assert facts["totals"]["whole"] == facts["totals"]["left"] and all(not rule["done"] for rule in facts["rules"].values())
    assert facts["side_by_side"] == {"jobs": 16, "gpus": 8, "cluster": False}


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("model: {dim: 30}", "model: dim 30 is not a multiple of head_dim 16; change either; change the section `model`"),
        ("plan: {device: h200}", "plan.device: input should be 'auto', 'cpu_2_cores' or 'h100_paper'"),
        ("runtime: {gpus: 1, device: cpu}", "runtime.gpus: 1, and no GPU was found here"),
    ],
)
def test_a_mistake_is_one_line(elsewhere, overlay, message):
    (elsewhere / "my.yaml").write_text(overlay)
    done = pipeline("plan", "--configfile", "my.yaml", *(["--measure"] if "gpus" in overlay else []), cwd=elsewhere)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 1 and len(errors) == 1 and message in errors[0], done.stderr[-1500:]
