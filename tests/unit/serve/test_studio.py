import json
import shutil

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.serve.order import Order
from pipeline.serve.studio import FINAL, Studio

ORDER = Order("a red circle", seed=1, steps=2, guidance=2.0, count=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": " \n"}, "The prompt is empty: say what to draw."),
        ({"prompt": "x" * 1001}, "The prompt has 1,001 characters: write at most 1,000."),
        ({"seed": None}, "The seed must be a whole number from 0 to 2147483647."),
        ({"seed": -1}, "The seed must be"),
        ({"steps": 1}, "Steps must be a whole number from 2 to 200."),
        ({"steps": 2.5}, "Steps must be a whole number"),
        ({"guidance": float("nan")}, "Guidance must be a number from 0 to 20."),
        ({"guidance": 21}, "Guidance must be"),
        ({"count": 17}, "Pictures must be a whole number from 1 to 16."),
    ],
)
def test_a_field_that_is_wrong_is_told(change, told):
    fields = {"prompt": "one", "seed": 0, "steps": 2, "guidance": 1, "count": 1}
    assert Order.of(**fields) == Order("one", 0, 2, 1.0, 1)
    with pytest.raises(UserError, match=told):
        Order.of(**{**fields, **change})


def test_stages_in_the_order_of_training_without_the_final_one(results, tmp_path, write_stage):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    write_stage(tmp_path / "train" / "a_last", 4, 12)
    (tmp_path / "train" / "unfinished").mkdir()
    found = Studio(tmp_path / "model", tmp_path, "cpu").stages()
    assert [(stage.name, stage.px, stage.images) for stage in found] == [("low", 16, 640), ("a_last", 32, 7680)]


def test_a_model_of_other_weights_is_compared_with_its_own_stage(results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["trained"]["weights"] = "ema of relative width 0.1"
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    assert [stage.name for stage in Studio(tmp_path / "model", tmp_path, "cpu").stages()] == ["low", "high"]


def test_a_stage_draws_with_its_own_weights_at_its_own_size(results):
    studio = Studio(results / "model", results, "cpu")
    low, final = studio.draw(ORDER, "low"), studio.draw(ORDER, FINAL)
    assert (low.px, final.px) == (16, 32) and low.seconds > 0
    assert [picture.size for picture in low.pictures + final.pictures] == [(16, 16)] * 2 + [(32, 32)] * 2
    assert studio.load("low") is studio.load("low") and studio.load("low").vae is studio.load(FINAL).vae
    of_final, of_stage = studio.load(FINAL).network.state_dict(), studio.load("low").network.state_dict()
    assert not np.array_equal(of_final["final_layer.linear.weight"], of_stage["final_layer.linear.weight"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"vae": "embedded:other"},
            "other: was trained with other frozen models than the final model; name its run",
        ),
        ({"model": None}, r"other/summary\.json: not a stage's summary"),
    ],
)
def test_a_stage_that_does_not_fit_is_named(results, tmp_path, write_stage, changes, told):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    write_stage(tmp_path / "train" / "other", 4, 3, **changes)
    with pytest.raises(UserError, match=told):
        Studio(tmp_path / "model", tmp_path, "cpu").draw(ORDER, "other")


def test_a_stage_that_went_away(results):
    with pytest.raises(UserError, match=r"The stage gone is not there any more: load the page again\."):
        Studio(results / "model", results, "cpu").draw(ORDER, "gone")
