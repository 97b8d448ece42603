"""The comparison of variants, on trainings with scores made up for the purpose."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pipeline.ablation.compare import interval_margin, run, verdict
from pipeline.artifacts import read_json, write_json
from pipeline.config.evaluation import Ablation
from pipeline.errors import UserError

FIDS = {"deferred": [5.0, 6.0, 5.5], "naive": [16.0, 17.5, 16.2], "plain": [5.6, 5.4, 5.7]}
ABLATION = {
    "training_flops": 1000.0,
    "arms": {name: {"stage": "masked", "title": f"the {name} <one>"} for name in FIDS},
    "claims": [
        {"better": "deferred", "worse": "naive", "paper": "5.03 against 16.5"},
        {"better": "naive", "worse": "plain", "paper": "the other way round"},
        {"better": "deferred", "worse": "plain", "paper": "too near"},
    ],
}


def write_training(folder, fid):
    """1,000 FLOPs pay for 99 images of 10 FLOPs: 9 of 11 a batch."""
    summary = {
        "training_flops": 990.0,
        "images_seen": 99,
        "config": {"stage": {"batch_images": 11, "mask_ratio": 0.75}},
        "model": {"input_size": 8, "patch_size": 1, "mask_mode": "deferred"},
        "parameters": 1_640_000,
        "seconds": {"training": 9.0, "start": 1.0},
        "device": "CPU (2 threads)",
        "versions": {"torch": "2"},
        "git_commit": "abc",
    }
    metrics = {"fid": fid, "kid": fid / 10, "clip_score": 80 - fid}
    made = {name: 1 for name in ("images", "px", "ids_sha256", "captions_sha256", "feature_network", "resize", "sampler")}
    write_json(folder / "summary.json", summary)
    write_json(folder / "evaluation" / "card.json", {"metrics": metrics, **made})


@pytest.fixture
def folder(tmp_path):
    for arm, values in FIDS.items():
        for seed, fid in enumerate(values):
            write_training(tmp_path / "trainings" / f"{arm}-{seed}", fid)
    return tmp_path / "trainings"


def compare(folder, **changed):
    run(Ablation.model_validate(ABLATION | changed), folder, folder.parent / "ablation.json")
    return read_json(folder.parent / "ablation.json")


def test_means_spreads_and_verdicts(folder):
    result = compare(folder)
    for arm, values in FIDS.items():
        found = result["arms"][arm]["fid"]
        assert found == {"mean": pytest.approx(np.mean(values)), "std": pytest.approx(np.std(values, ddof=1)), "values": values}
    assert result["tokens"] == 64 and result["arms"]["naive"]["training_flops_an_image"] == 10
    assert result["arms"]["naive"]["seconds"] == 30.0
    assert [claim["verdict"] for claim in result["claims"]] == ["holds", "does not hold", "not decided by these seeds"]
    first = result["claims"][0]
    paired = stats.ttest_rel(FIDS["naive"], FIDS["deferred"]).confidence_interval(0.95)
    assert first["interval"] == pytest.approx([paired.low, paired.high])


def test_the_table_and_the_plot_say_the_same(folder):
    compare(folder)
    text = folder.parent.joinpath("ablation.md").read_text()
    assert "| the naive <one> | 16.57 ± 0.81 |" in text and "| the deferred <one> | the naive <one> | 5.03 against 16.5 |" in text
    assert all(line.count("|") in (0, 8, 6) for line in text.splitlines())
    with Image.open(folder.parent / "ablation.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_one_seed_has_no_spread_and_decides_nothing(folder):
    result = compare(folder, seeds=[0])
    assert result["arms"]["naive"]["fid"] == {"mean": 16.0, "std": None, "values": [16.0]}
    assert {claim["verdict"] for claim in result["claims"]} == {"one seed decides nothing"}
    assert "±" not in folder.parent.joinpath("ablation.md").read_text().split("claim")[0].splitlines()[4]


def test_verdicts_at_their_bounds():
    assert interval_margin([3.0]) is None and interval_margin([1.0, 1.0]) == 0
    assert [verdict(d, 1.0) for d in (1.1, -1.1, 1.0, 0.0)] == [
        "holds", "does not hold", "not decided by these seeds", "not decided by these seeds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("summary.json", {"training_flops": 1001.0}, r"naive-1/summary\.json: trained for 1001 FLOPs, .* is 1000"),
        ("summary.json", {"training_flops": 880.0}, r"trained for 880 FLOPs"),
        ("summary.json", {"parameters": None, "images_seen": None}, r"naive-1: not a training and its evaluation"),
        ("evaluation/card.json", {"metrics": {"fid": 1.0}}, r"not a training and its evaluation, 'kid' is missing"),
        ("evaluation/card.json", {"ids_sha256": 2}, r"naive-1/evaluation/card\.json: ids_sha256 is not that of .*deferred-0"),
    ],
)
def test_what_does_not_compare_is_named(folder, file, change, words):
    place = folder / "naive-1" / file
    content = copy.deepcopy(read_json(place)) | change
    place.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        compare(folder)
    assert "\n" not in str(caught.value) and not (folder.parent / "ablation.json").exists()


def test_a_missing_training_is_named(folder):
    (folder / "plain-2" / "evaluation" / "card.json").unlink()
    with pytest.raises(UserError, match=r"plain-2/evaluation/card\.json"):
        compare(folder)
