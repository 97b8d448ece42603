import json

import pytest
from PIL import Image

from pipeline.artifacts import write_json
from pipeline.errors import UserError
from pipeline.report.guidance import run


def card(guidance, fid, clip_score, **changes):
    sampler = {"name": "heun", "steps": 12, "guidance": guidance, "seed": 0}
    metrics = {
        "fid": fid,
        "kid": 0.5,
        "kid_std_error": 0.1,
        "clip_score": clip_score,
        "accuracy": {"one_object": {}},
        "dino": None,
    }
    made = {"images": 640, "ids_sha256": "i", "resize": "clean", "weights": {"sha256": "w"}, "clip_score_model": {"ref": "c"}}
    return {"metrics": metrics, "sampler": sampler, "feature_network": {"name": "inception"}, **made, **changes}


@pytest.fixture
def compare(tmp_path):
    def go(*cards):
        files = [tmp_path / f"{number}.json" for number in range(len(cards))]
        for file, content in zip(files, cards, strict=True):
            write_json(file, content)
        run("last", files, tmp_path / "guidance.json")
        return json.loads((tmp_path / "guidance.json").read_text())

    return go


def test_points_by_scale_with_all_scores_that_are_numbers_and_the_best(compare, tmp_path):
    found = compare(card(3.0, 9.5, 30.0), card(1.0, 12.0, 25.0), card(5.0, 8.5, 31.0), card(7.0, 9.0, 31.5))
    assert [point["guidance"] for point in found["points"]] == [1.0, 3.0, 5.0, 7.0]
    assert found["points"][1] == {"guidance": 3.0, "fid": 9.5, "clip_score": 30.0, "kid": 0.5, "kid_std_error": 0.1}
    assert (found["stage"], found["best"], found["by"], found["images"]) == ("last", 5.0, "fid", 640)
    assert found["sampler"] == {"name": "heun", "steps": 12, "seed": 0}
    with Image.open(tmp_path / "guidance.png") as plot:
        assert plot.width > 600 and len(plot.convert("RGB").getcolors(1 << 20)) > 10


def test_the_same_cards_in_another_order_make_the_same_bytes(compare, tmp_path):
    one, two = card(3.0, 9.5, 30.0), card(1.0, 12.0, 25.0)
    made = []
    for cards in ((one, two), (two, one)):
        compare(*cards)
        made.append([(tmp_path / f"guidance.{end}").read_bytes() for end in ("json", "png")])
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"sha256": "other"}}, r"1.json: weights is not that of .*0.json"),
        ({"images": 64}, r"1.json: images is not that of"),
        ({"sampler": {"name": "euler", "steps": 12, "guidance": 2.0, "seed": 0}}, r"1.json: sampler is not that of"),
        ({"metrics": {}}, r"not the card of an evaluation, 'fid' is missing"),
    ],
)
def test_cards_that_differ_in_more_than_guidance_are_refused(compare, changes, message):
    with pytest.raises(UserError, match=message):
        compare(card(3.0, 9.5, 30.0), card(2.0, 9.0, 29.0, **changes))
