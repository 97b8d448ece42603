import json
import re

import pytest
import yaml

from pipeline.artifacts import sha256_file
from pipeline.errors import UserError
from pipeline.export.trained import run

COUNTS = {
    "photos": {"trained": 12000, "licences": {"CC BY 4.0": 9000, "unknown": 3000}},
    "drawn": {"trained": 500, "licences": {"CC0 | <b>*x*</b>": 400, "CC BY 4.0": 100}},
}


def write_manifest(folder, stage, px, counts):
    shards = [{"source": source, "role": "synthetic" if source == "drawn" else "real"} for source in counts]
    file = folder / f"{stage}.json"
    file.write_text(json.dumps({"kind": "manifest", "stage": stage, "px": px, "shards": shards, "counts": counts}))
    return file


@pytest.fixture
def card(stage_folder, tmp_path):
    """The card of a model whose stages have these manifests."""

    def write(*manifests, evaluation=None):
        run(stage_folder, tmp_path / "model", {"steps": 9, "guidance": 2.0}, manifests=manifests, evaluation=evaluation)
        return (tmp_path / "model" / "README.md").read_text()

    return write


def table(text, head):
    rows = re.search(rf"^\| {head} \|.*?(?:\n\n|\Z)", text, re.M | re.S)[0].strip().splitlines()
    return [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in rows]


def test_it_begins_with_what_the_hub_reads(card):
    _, front, rest = card().split("---\n", 2)
    tags = ["text-to-image", "diffusion", "microdit"]
    assert yaml.safe_load(front) == {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}
    assert rest.startswith("# Text to image, 16 px\n") and "on 1,000 images seen" in rest
    assert "reads the first 12 tokens" in rest and "How good it is" not in rest and "What it cost" not in rest
    assert "| VAE | embedded:vae |" in rest and "Training data" not in rest


def test_sources_and_licences_of_all_stages(card, tmp_path):
    high = {"photos": {"trained": 700, "licences": {"unknown": 700}}}
    text = card(write_manifest(tmp_path, "low", 8, COUNTS), write_manifest(tmp_path, "high", 16, high))
    assert table(text, "source") == [
        ["source", "role", "low, 8 px", "high, 16 px"],
        ["---", "---", "---:", "---:"],
        ["drawn", "synthetic", "500", "0"],
        ["photos", "real", "12,000", "700"],
        ["all", "", "12,500", "700"],
    ]
    assert table(text, "licence")[2:] == [
        ["CC BY 4.0", "9,100", "0"],
        ["unknown", "3,000", "700"],
        [r"CC0 \| \<b\>\*x\*\</b\>", "400", "0"],
    ]


def test_many_licences_and_long_ones_are_cut(card, tmp_path):
    licences = {f"{n:03} {'long ' * 30}": 1 for n in range(60)}
    text = card(write_manifest(tmp_path, "low", 8, {"photos": {"trained": 60, "licences": licences}}))
    rows = table(text, "licence")
    assert len(rows) == 2 + 51 and rows[-1] == ["10 others", "10"] and len(rows[2][0]) == 80


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"kind": "images"}, r"x\.json: not a manifest; delete it and run again"),
        ({"kind": "manifest", "counts": {"a": {"trained": 1}}}, r"x\.json: has no licences of a; delete it and run again"),
    ],
)
def test_what_is_no_manifest_is_named_and_nothing_is_written(stage_folder, tmp_path, content, told):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        run(stage_folder, tmp_path / "model", {"steps": 9, "guidance": 2.0}, manifests=[file])
    assert not (tmp_path / "model").exists()


@pytest.fixture
def evaluation(stage_folder, tmp_path):
    """The card of a run whose last stage this is."""
    high = {"name": "high", "px": 16, "images": 640, "device_hours": 1.5, "device": "A | GPU"}
    facts = {
        "fid": 12.663, "kid": 0.1234, "floor": 3.0, "clip_score": 28.14, "fid_by_resize": {"clean": 12.6}, "precision": None,
        "accuracy": {"two_objects": {"images": 3, "all": 0.5}}, "images": 30000, "why_not": [],
        "sampler": {"name": "heun", "steps": 30, "guidance": 5.0},
        "weights": {"sha256": sha256_file(stage_folder / "ema.safetensors")},
        "stages": [{**high, "name": "low", "px": 8}, high],
        "cost": {"device_hours": 3.0, "dollars": 9.0, "dollars_per_hour": 3.0},
    }  # fmt: skip

    def write(**changes):
        (tmp_path / "fid_coco.json").write_text(json.dumps({**facts, **changes}))
        return tmp_path / "fid_coco.json"

    return write


def test_scores_and_cost_of_these_weights(card, evaluation):
    text = card(evaluation=evaluation())
    assert table(text, "metric")[2:] == [
        ["FID, lower is better", "12.66"],
        ["FID of real images, which a perfect model would have", "3"],
        ["KID, lower is better", "0.1234"],
        ["CLIP score, higher is better", "28.14"],
        ["right in all that the caption says, two objects", "50.0%"],
    ]
    assert "30,000 pictures drawn" in text and "with 30 steps of heun and guidance 5.0" in text
    assert "Comparable with published zero-shot FID-30K." in text
    assert r"3 device-hours of training on A \| GPU, $9 at $3 an hour." in text
    assert table(text, "stage")[2:] == [["low, 8 px", "640", "1.5"], ["high, 16 px", "640", "1.5"]]


def test_why_an_fid_is_not_comparable_and_a_run_without_a_price(card, evaluation):
    free = {"device_hours": 3.0, "dollars": 0.0, "dollars_per_hour": 0.0}
    text = card(evaluation=evaluation(why_not=["640 images, not 30,000"], cost=free))
    assert "Not comparable with published FID: 640 images, not 30,000." in text and "GPU.\n" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"weights": {"sha256": "0" * 64}}, "scores other weights than these"), ({"fid": None}, None), ({"stages": []}, None)],
)
def test_scores_of_other_weights_are_refused(card, evaluation, tmp_path, changes, told):
    file = evaluation(**changes)
    if told is None:  # a card from which a part is gone
        broken = json.loads(file.read_text())
        del broken[next(iter(changes))]
        file.write_text(json.dumps(broken))
    with pytest.raises(UserError, match=told or r"fid_coco\.json: not the evaluation card of a run"):
        card(evaluation=file)
    assert not (tmp_path / "model").exists()
