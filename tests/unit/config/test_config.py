"""Configuration: the shipped files, slices, roles, and one line for each mistake."""

import copy
import json

import pytest
import yaml

from pipeline.config import Config, load, slice_for, validate
from pipeline.config.fields import Section, result
from pipeline.config.generated import FILES
from pipeline.config.sources import CocoSource, local_files
from pipeline.config.steps import Settings, Slice, TrainSlice
from pipeline.errors import UserError
from pipeline.fingerprint import ROOT

PRESETS = sorted((ROOT / "workflow/presets").glob("*.yaml"))


@pytest.fixture
def values():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_shipped_preset_is_valid_over_the_default(preset):
    below = {"paper_1percent": [ROOT / "workflow/presets/paper.yaml"]}  # it is laid over another
    assert load(ROOT / "config.yaml", *below.get(preset.stem, []), preset).schedule


def test_presets_are_found():
    assert {path.stem for path in PRESETS} >= {"paper", "one_gpu", "photos"}


@pytest.mark.parametrize("file", FILES)
def test_generated_files_are_in_step(file):
    assert (ROOT / file).read_text(encoding="utf-8") == FILES[file](), "run `make generated`"


def _sections(cls=Section):
    for sub in cls.__subclasses__():
        yield sub
        yield from _sections(sub)


@pytest.mark.parametrize(
    "section", [s for s in _sections() if s.__module__.endswith((".schema", ".evaluation", ".sources"))], ids=lambda s: s.__name__
)
def test_every_key_has_a_role_and_a_meaning(section):
    for name, field in section.model_fields.items():
        assert (field.json_schema_extra or {}).get("role") in {"result", "runtime", "report"}, name
        assert field.description or name == "kind", name


ARMS = {name: {"stage": "low_full", "title": name} for name in "ab"}
ABLATION = {"training_flops": 1, "arms": ARMS}


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("sead", 1, "sead: no such key; did you mean 'seed'?"),
        ("stages.low_masked.mask_ration", 0.5, "stages.low_masked.mask_ration: no such key; did you mean 'mask_ratio'?"),
        ("stages.low_masked.mask_ratio", 1.5, "stages.low_masked.mask_ratio: input should be less than 1, found 1.5"),
        ("stages.low_masked.images", 65, "stages.low_masked.images: 65 is no multiple of batch_images"),
        ("sources.scenes.kind", "synthetik", "sources.scenes.kind: 'synthetik' is not one of"),
        ("sources.scenes.cuont", 3, "sources.scenes.cuont: no such key; did you mean 'count'?"),
        ("sources.coco.expect", {"imges": 3}, "sources.coco.expect.imges: no such key; did you mean 'images'?"),
        ("sources.scenes.count", "many", "sources.scenes.count: input should be a valid integer"),
        ("schedule", ["low_maskd"], "schedule: no 'low_maskd' in stages; did you mean 'low_masked'?"),
        ("models.vae", "hf:owner/name", "models.vae: 'hf:owner/name' must be hf:OWNER/NAME@REVISION"),
        ("evaluation.source", "scenes", "sources.scenes.role: must be evaluation"),
        ("stages.low_masked.sources", ["coco"], "stages.low_masked.sources: coco is the evaluation set"),
        ("sources.scenes.store_side", 32, "sources.scenes.store_side: 32 is below stages.high"),
        ("runtime.devise", "cpu", "runtime.devise: no such key; did you mean 'device'?"),
        ("evaluation.sampler", {"nam": "euler"}, "evaluation.sampler.nam: no such key; did you mean 'name'?"),
        ("evaluation.geneval", {"promts": "x"}, "evaluation.geneval.promts: no such key; did you mean 'prompts'?"),
        ("stages.low_masked.imags", 1, "stages.low_masked.imags: no such key; did you mean 'images'?"),
        (
            "ablation",
            ABLATION | {"arms": {"a": {"stage": "x", "title": "x"}}},
            "ablation.arms: dictionary should have",
        ),
        ("ablation", ABLATION | {"claims": [{"better": "a", "worse": "c", "paper": "x"}]}, "ablation: claims: no 'c' in arms"),
        ("ablation", ABLATION | {"seeds": [1, 1]}, "ablation: seeds: [1, 1] has one twice"),
        (
            "ablation",
            {"training_flops": 1, "arms": ARMS | {"b": {"stage": "no", "title": "b"}}},
            "ablation.arms.b.stage: no",
        ),
        (
            "ablation",
            {"training_flops": 1, "arms": ARMS | {"b": {"stage": "low_full", "title": "b", "model": {"dpth": 3}}}},
            "ablation.arms.b.model.dpth: Extra inputs are not permitted",
        ),
        (
            "ablation",
            {"training_flops": 1, "arms": ARMS | {"b": {"stage": "low_full", "title": "b", "modl": {}}}},
            "ablation.arms.b.modl: no such key; did you mean 'model'?",
        ),
        ("sources", [1], "sources: input should be a valid dictionary"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(values, where, value, message):
    *path, last = where.split(".")
    place = values
    for part in path:
        place = place[part]
    place[last] = value
    with pytest.raises(UserError) as error:
        validate(values, where="config.yaml")
    assert f"config.yaml: {message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2", b"\xff\xfe"])
def test_a_broken_file_is_named(tmp_path, content):
    file = tmp_path / "my.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"my\.yaml"):
        load(file)


def test_overlays_merge_tables_and_replace_lists(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("schedule: [low_full]\nevaluation: {steps: 7}\n")
    config = load(ROOT / "config.yaml", overlay)
    assert config.schedule == ["low_full"] and config.evaluation.steps == 7 and config.evaluation.source == "coco"


def test_a_slice_holds_no_runtime_or_report_key(values):
    before = {step: _slices(validate(values), step) for step in ("collect", "encode", "train", "evaluate")}
    changed = copy.deepcopy(values)
    changed["runtime"] = {"device": "cpu", "sample_batch": 3, "gpus": 4}
    changed["report"] = {"title": "other", "dollars_per_hour": 9.0}
    assert {step: _slices(validate(changed), step) for step in before} == before


def test_a_slice_changes_with_its_own_keys_alone(values):
    changed = copy.deepcopy(values)
    changed["stages"]["high_masked"]["learning_rate"] = 0.5
    old, new = validate(values), validate(changed)
    assert _slices(old, "train")["high_masked"] != _slices(new, "train")["high_masked"]
    assert _slices(old, "train")["low_masked"] == _slices(new, "train")["low_masked"]
    assert _slices(old, "encode") == _slices(new, "encode")


def test_how_a_source_is_used_does_not_collect_it_again(values):
    changed = copy.deepcopy(values)
    changed["sources"]["scenes"].update(role="synthetic", caption="write", upscale=True)
    assert _slices(validate(values), "collect") == _slices(validate(changed), "collect")


def _slices(config: Config, step: str) -> dict[str, str]:
    if step == "evaluate":
        return {"": slice_for(config, step)}
    names = config.schedule if step == "train" else config.training_sources()
    return {name: slice_for(config, step, **{"stage" if step == "train" else "source": name}) for name in names}


def test_a_slice_is_read_back_as_it_was_written(values):
    text = slice_for(validate(values), "train", stage="high_full")
    assert TrainSlice.parse(text).to_json() == text


def test_a_wrong_slice_says_where(values):
    with pytest.raises(UserError, match="--config: name: Field required"):
        TrainSlice.parse("{}")


def test_a_key_at_its_neutral_value_is_left_out():
    class Grown(Slice):
        old: int = result(1, "there from the start")
        new: int = result(0, "added later", neutral=True)

    assert json.loads(Grown().to_json()) == {"old": 1}
    assert json.loads(Grown(new=2).to_json()) == {"old": 1, "new": 2}


def test_settings_come_from_the_record(tmp_path):
    record = tmp_path / "run_config.json"
    record.write_text(json.dumps(load(ROOT / "config.yaml").model_dump(mode="json")))
    assert Settings.read(record).report.title == load(ROOT / "config.yaml").report.title
    record.write_text("{}")
    with pytest.raises(UserError, match="not a run's record"):
        Settings.read(record)


def test_the_arms_of_an_ablation_differ_in_what_they_say_alone(values):
    values["ablation"] = {
        "training_flops": 1e9,
        "arms": ARMS | {"b": {"stage": "high_full", "title": "b", "model": {"depth": 3}}},
    }
    config = validate(values)
    a, b = (json.loads(slice_for(config, "train-arm", arm=arm, seed="7")) for arm in "ab")
    assert a["seed"] == b["seed"] == 7 and a["training_flops"] == b["training_flops"] == 1e9
    assert (a["name"], a["base_px"], b["name"], b["base_px"]) == ("low_full", 32, "high_full", 64)
    assert b["model"] == a["model"] | {"depth": 3} and a["model"]["depth"] is None
    assert config.used_stages() == config.schedule
    values["schedule"] = ["low_masked"]
    shorter = validate(values)
    assert shorter.used_stages() == ["low_masked", "low_full", "high_full"] and shorter.resolutions("scenes") == [32, 64]


def test_a_sweep_of_the_guidance_is_no_part_of_an_evaluation(values):
    before = slice_for(validate(values), "evaluate")
    values["evaluation"]["guidance_sweep"] = [1.5, 3]
    config = validate(values)
    assert slice_for(config, "evaluate") == before
    swept = json.loads(slice_for(config, "evaluate", guidance="1.5"))["evaluation"]
    assert swept["guidance"] == 1.5 and swept["untrained_images"] == 0


def test_best_weights_need_a_curve_and_are_no_reason_to_evaluate_those_at_the_end_again(values):
    config = validate(values)
    assert "weights" not in json.loads(slice_for(config, "evaluate"))["evaluation"]
    assert slice_for(config, "evaluate") == slice_for(config, "evaluate", weights="ema")
    values["evaluation"] |= {"weights": "best", "curve": {"images": 8}}
    best = validate(values)
    for step in ("evaluate", "sample"):
        assert json.loads(slice_for(best, step))["evaluation"]["weights"] == "best"
        assert slice_for(best, step) == slice_for(config, step, weights="best")
        assert slice_for(best, step, weights="ema") == slice_for(config, step)
    values["evaluation"]["curve"] = {"images": 0}
    with pytest.raises(
        UserError, match=r"evaluation\.weights: best is the lowest FID of the curve, which is off; set evaluation"
    ):
        validate(values)


def test_jobs_that_draw_know_what_is_drawn_and_not_what_looks_at_it(values):
    prompts = {"limit": 6, "images_a_prompt": 1}
    values["evaluation"] |= {"geneval": prompts, "prompt_sets": {"mine": "a.txt"}, "prompts_a_set": 3, "untrained_images": 5}
    before = slice_for(validate(values), "sample")
    drawn = json.loads(before)["evaluation"]
    assert drawn["geneval"].items() >= prompts.items() and drawn["prompt_sets"] == {"mine": "a.txt"}
    values["evaluation"]["geneval"] = {**prompts, "detector": "other", "clip": "embedded:clip", "counting_threshold": 0.8}
    values["evaluation"] |= {"bootstrap": 7, "cmmd": "embedded:clip", "preference": ["pickscore"]}
    assert slice_for(validate(values), "sample") == before
    values["evaluation"]["geneval"] = {**prompts, "limit": 7}
    assert slice_for(validate(values), "sample") != before
    assert (
        json.loads(slice_for(validate(values), "sample", guidance="2.0"))["evaluation"]
        .keys()
        .isdisjoint(["geneval", "prompt_sets"])
    )


def test_buckets_reach_encode_and_nothing_else_does_without_them():
    plain = load(ROOT / "config.yaml")
    source = plain.training_sources()[0]
    stepped = plain.model_copy(update={"models": plain.models.model_copy(update={"max_aspect": 3.0, "bucket_step": 16})})
    assert slice_for(stepped, "encode", source=source) == slice_for(plain, "encode", source=source)
    bucketed = stepped.model_copy(update={"models": stepped.models.model_copy(update={"crop": "buckets"})})
    found = json.loads(slice_for(bucketed, "encode", source=source))
    assert found == json.loads(slice_for(plain, "encode", source=source)) | {
        "crop": "buckets", "max_aspect": 3.0, "bucket_step": 16,
    }  # fmt: skip


def test_weights_and_buckets_do_not_go_together(tmp_path):
    plain = load(ROOT / "config.yaml")
    stage = plain.schedule[0]
    shares = ", ".join(f"{name}: 1" for name in plain.stage_sources(stage))
    overlay = tmp_path / "both.yaml"
    overlay.write_text(f"models: {{crop: buckets}}\nstages: {{{stage}: {{weights: {{{shares}}}}}}}\n")
    with pytest.raises(UserError, match=rf"stages\.{stage}\.weights: batches of one bucket have no fixed share"):
        load(ROOT / "config.yaml", overlay)


def test_files_of_a_source_on_this_machine():
    """A folder of images is none, a zip of them is one."""
    keys = {"kind": "coco", "annotations": "a/notes.zip", "ids": "ids.csv"}
    assert local_files(CocoSource(images="a/val.zip", **keys)) == ["a/notes.zip", "a/val.zip", "ids.csv"]
    for elsewhere in ("a/val", "https://host/val.zip", "hf://datasets/owner/name@main/val.zip"):
        assert local_files(CocoSource(images=elsewhere, **keys)) == ["a/notes.zip", "ids.csv"]
