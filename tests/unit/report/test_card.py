import json

import pytest

from pipeline.config.steps import Settings
from pipeline.errors import UserError
from pipeline.report.card import run


def made(finished, settings=None):
    out = finished.results / "fid_coco.json"
    run(settings or finished.settings, finished.card, finished.stages, finished.records, out)
    return json.loads(out.read_text())


def test_scores_stand_on_top_and_nothing_of_the_evaluation_is_lost(finished):
    card = made(finished)
    assert list(card)[:3] == ["fid", "kid", "clip_score"]
    assert (card["fid"], card["floor"], card["ceiling"]) == (8.314, 0.61, 152.3)
    assert card["accuracy"]["one_object"]["shape"] == 0.81
    evaluation = json.loads(finished.card.read_text())
    assert {**card, **evaluation["metrics"]} == card
    assert all(card[key] == value for key, value in evaluation.items() if key != "metrics")


def test_a_ceiling_that_was_not_measured_is_null(finished):
    evaluation = json.loads(finished.card.read_text())
    evaluation["scale"]["ceiling"] = None
    finished.card.write_text(json.dumps(evaluation))
    assert made(finished)["ceiling"] is None


def test_stages_and_their_cost_add_up(finished):
    card = made(finished)
    first = card["stages"][0]
    assert [stage["name"] for stage in card["stages"]] == ["low_masked", "low_full", "high_full"]
    assert (first["px"], first["mask_ratio"], first["images"], first["images_per_second"]) == (32, 0.75, 64000, 900.0)
    assert first["seconds"] == pytest.approx(64000 / 900 + 5.5, abs=0.1)
    assert first["dollars"] == pytest.approx(0.1 * first["device_hours"], abs=1e-6)
    assert (first["share_of_peak"], first["skipped_steps"], first["best"]) == (
        0.31,
        20,
        {"images": 64000, "validation_loss": 0.4},
    )
    assert first["plan"] == {"share_of_peak": 0.45, "device_hours": pytest.approx(64000 / 900 / 5000, abs=1e-6)}
    for key in ("seconds", "device_hours", "dollars"):
        assert card["cost"][key] == pytest.approx(sum(stage[key] for stage in card["stages"]))
    assert card["cost"]["planned_device_hours"] == pytest.approx(sum(s["plan"]["device_hours"] for s in card["stages"]))
    assert card["cost"]["planned_dollars"] == pytest.approx(0.1 * card["cost"]["planned_device_hours"], abs=1e-6)
    assert card["cost"]["dollars_per_hour"] == 0.1


def test_stages_of_older_programs_have_no_plan(finished):
    summary = json.loads(finished.stages[0].read_text())
    for key in ("share_of_peak", "plan", "skipped_steps", "best"):
        del summary[key]
    finished.stages[0].write_text(json.dumps(summary))
    card = made(finished)
    assert all(card["stages"][0][key] is None for key in ("share_of_peak", "plan", "skipped_steps", "best"))
    assert card["cost"]["planned_device_hours"] is None and card["cost"]["planned_dollars"] is None


def test_the_settings_may_name_the_device(finished):
    card = made(finished, Settings(report={"device_name": "H100"}))
    assert {stage["device"] for stage in card["stages"]} == {"H100"}
    assert card["cost"]["dollars"] == 0


def test_processes_in_the_order_they_started_with_totals(finished):
    card = made(finished)
    assert [process["name"] for process in card["processes"]] == ["scenes-00000", "coco-00000", "scenes-00000"]
    assert card["processes"][0]["step"] == "encode"
    assert card["processes_by_step"]["collect"] == {
        "processes": 2,
        "seconds": 9.3,
        "peak_memory_mb": 300,
        "with_torch": 0,
    }
    assert card["processes_with_torch"] == 1


def test_without_records_there_is_nothing_to_count(finished):
    finished.records = finished.results / "nowhere"
    card = made(finished)
    assert (card["processes"], card["processes_by_step"], card["processes_with_torch"]) == ([], {}, 0)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: f.card.write_text("{"), r"card\.json: not readable JSON"),
        (lambda f: f.card.write_text("[]"), r"card\.json: not the card of an evaluation"),
        (lambda f: f.card.write_text('{"metrics": {"fid": 1}}'), r"card\.json: .* 'scale' is missing"),
        (lambda f: f.stages[1].unlink(), r"low_full/summary\.json: not readable JSON"),
        (
            lambda f: f.stages[1].write_text("{}"),
            r"low_full/summary\.json: not a stage's summary, 'device_hours' is missing",
        ),
        (lambda f: (f.records / "x.json").write_text("{}"), r"processes: holds a file that is no record of a process"),
    ],
)
def test_what_is_broken_is_named(finished, spoil, told):
    spoil(finished)
    with pytest.raises(UserError, match=told):
        made(finished)
    assert not (finished.results / "fid_coco.json").exists()
