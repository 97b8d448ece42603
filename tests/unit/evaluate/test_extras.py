"""GenEval, prompt sets and preference as parts of the whole evaluation."""

import json

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.evaluate.evaluate import run


@pytest.fixture
def evaluate(tmp_path, shards, stage, settings):
    def go(slice_, out="out"):
        run(slice_, settings, *shards, stage, tmp_path / "work", tmp_path / out, tmp_path / "reference")
        return json.loads((tmp_path / out / "card.json").read_text())

    return go


@pytest.fixture
def asked(tmp_path, frozen):
    (tmp_path / "set.tsv").write_text("Prompt\tCategory\na red circle\tshapes\na blue square\tshapes\n")
    return {
        "geneval": {"limit": 6, "images_a_prompt": 1},
        "prompt_sets": {"mine": str(tmp_path / "set.tsv")},
        "preference": ["pickscore"],
        "pickscore": frozen["clip"],
        "untrained_images": 0,
    }


def test_they_come_with_the_scores(evaluate, slice_of, asked, tmp_path):
    plain, card = evaluate(slice_of(untrained_images=0), "plain"), evaluate(slice_of(**asked))
    metrics = card["metrics"]
    assert card["drawn"] == 0, "the samples of the captions are the same ones"
    assert {name: metrics[name] for name in plain["metrics"]} == plain["metrics"]
    assert set(metrics) - set(plain["metrics"]) == {"geneval", "preference"}
    assert metrics["geneval"]["images"] == 6 and metrics["geneval"]["self_test"] > 0.9
    assert metrics["preference"]["pickscore"]["images"] == 8
    assert {"geneval", "prompt_sets", "preference"} == set(card["seconds"]) - set(plain["seconds"])
    made = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {"geneval.json", "prompts/mine.png"} <= made
    assert Image.open(tmp_path / "out/prompts/mine.png").width > 2 * 192


def test_their_noise_is_not_that_of_the_captions(evaluate, slice_of, asked, tmp_path):
    evaluate(slice_of(**asked))
    pictures = {}
    for folder in ("samples", "geneval-", "mine-"):
        (found,) = (tmp_path / "work").glob(f"*/{folder}*/000/000000.png")
        pictures[folder] = found.read_bytes()
    assert len(set(pictures.values())) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"geneval": {"prompts": "none.jsonl"}}, "evaluation.geneval.prompts: none.jsonl"),
        ({"prompt_sets": {"mine": "none.txt"}}, "evaluation.prompt_sets.mine: none.txt"),
        ({"preference": ["hpsv2"]}, "pip install hpsv2"),
        ({"preference": ["pickscore"], "pickscore": "no/such"}, "model 'no/such'"),
    ],
)
def test_a_mistake_stops_before_anything_is_drawn(evaluate, slice_of, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        evaluate(slice_of(**keys))
    assert not list((tmp_path / "work").rglob("*.png"))
