import json
import re

import pytest
import yaml

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

    def write(*manifests):
        run(stage_folder, tmp_path / "model", steps=9, guidance=2.0, manifests=manifests)
        return (tmp_path / "model" / "README.md").read_text()

    return write


def table(text, head):
    rows = re.search(rf"^\| {head} \|.*?(?:\n\n|\Z)", text, re.M | re.S)[0].strip().splitlines()
    return [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in rows]


def test_it_begins_with_what_the_hub_reads(card):
    _, front, rest = card().split("---\n", 2)
    assert yaml.safe_load(front) == {"pipeline_tag": "text-to-image", "tags": ["text-to-image", "diffusion", "microdit"]}
    assert rest.startswith("# Text to image, 16 px\n") and "on 1,000 images seen" in rest
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
        run(stage_folder, tmp_path / "model", steps=9, guidance=2.0, manifests=[file])
    assert not (tmp_path / "model").exists()
