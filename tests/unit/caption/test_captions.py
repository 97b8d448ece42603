import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import CAPTIONS, read_sidecar
from pipeline.caption.captions import run
from pipeline.config.steps import CaptionSlice, Settings
from pipeline.errors import UserError
from tests.unit.encode.small_shards import picture, write_shard
from tests.unit.frozen.small_models import save_pair

PICTURES = {f"k{n}": picture(n) for n in range(5)}
GIVEN = {"k0": "a dog", "k1": None, "k2": "  ", "k3": "🙂 כלב", "k4": "a cat"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "data" / "00000.json", PICTURES, GIVEN)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pair(tmp_path_factory.mktemp("captioner")))


def captions(images: Path, mode: str, captioner: str | None = None, batch: int = 2, all_captions: bool = False) -> list[dict]:
    out = images.parent / f"captions-{mode}.json"
    settings = Settings.model_validate({"runtime": {"caption_batch": batch, "device": "cpu"}})
    run(CaptionSlice(mode=mode, captioner=captioner, all_captions=all_captions), settings, images, out)
    table = pq.read_table(read_sidecar(out, "captions").file("captions"))
    assert table.schema.equals(CAPTIONS)
    return table.to_pylist()


def info_of(images: Path, mode: str) -> dict:
    return read_sidecar(images.parent / f"captions-{mode}.json", "captions").info


def test_keep_gives_a_row_an_image_and_says_where_there_is_none(images: Path) -> None:
    rows = captions(images, "keep")
    assert [row["key"] for row in rows] == list(PICTURES)
    assert [row["caption"] for row in rows] == ["a dog", None, None, "🙂 כלב", "a cat"]
    assert [row["reason"] for row in rows] == [None, "no_caption", "no_caption", None, None]
    assert all(row["captioner"] is None for row in rows)
    counts = {"images": 5, "given": 3, "written": 0, "missing": 2}
    assert info_of(images, "keep") == {"mode": "keep", "all_captions": False, "captioner": None, **counts}


def test_fill_writes_the_missing_ones_alone(images: Path, captioner: str) -> None:
    rows = captions(images, "fill", captioner)
    assert [row["captioner"] is None for row in rows] == [True, False, False, True, True]
    assert rows[0]["caption"] == "a dog" and rows[1]["captioner"].startswith(f"{captioner}@")


def test_write_replaces_all_and_marks_empty_texts(images: Path, captioner: str) -> None:
    rows = captions(images, "write", captioner)
    assert {row["caption"] for row in rows}.isdisjoint(set(GIVEN.values()) - {None})
    for row in rows:
        assert row["captioner"] and row["reason"] == (None if row["caption"] else "empty_caption")
    assert rows == captions(images, "write", captioner, batch=5)
    filled = captions(images, "fill", captioner)
    assert filled[1] == rows[1]


def test_add_writes_one_for_every_image_behind_the_given(images: Path, captioner: str) -> None:
    rows = captions(images, "add", captioner)
    assert [row["key"] for row in rows] == ["k0", "k0", "k1", "k2", "k3", "k3", "k4", "k4"]
    given = [row for row in rows if row["captioner"] is None]
    assert [(row["key"], row["caption"]) for row in given] == [("k0", "a dog"), ("k3", "🙂 כלב"), ("k4", "a cat")]
    assert [row for row in rows if row["captioner"]] == captions(images, "write", captioner)
    assert rows[0] == given[0] and rows[1]["captioner"] and rows[-1]["captioner"]
    info = info_of(images, "add")
    missing = sum(row["caption"] is None for row in rows)
    assert (info["images"], info["given"], info["written"], info["missing"]) == (5, 3, 5 - missing, missing)


def test_all_captions_are_kept_once_each_in_their_order(tmp_path: Path) -> None:
    several = {"k0": ["a dog", " a dog", "", "  ", "one dog", "a dog"], "k1": [], "k3": ["only"]}
    images = write_shard(tmp_path / "00000.json", PICTURES, GIVEN | {"k3": "only"}, several)
    rows = captions(images, "keep", all_captions=True)
    assert [(row["key"], row["caption"], row["reason"]) for row in rows] == [
        ("k0", "a dog", None), ("k0", "one dog", None), ("k1", None, "no_caption"), ("k2", None, "no_caption"),
        ("k3", "only", None), ("k4", "a cat", None),
    ]  # fmt: skip
    info = info_of(images, "keep")
    assert info["all_captions"] and (info["images"], info["given"], info["written"], info["missing"]) == (5, 4, 0, 2)
    assert [row["caption"] for row in captions(images, "keep")] == ["a dog", None, None, "only", "a cat"]


def test_add_to_all_captions_and_fill_beside_them(tmp_path: Path, captioner: str) -> None:
    images = write_shard(tmp_path / "00000.json", PICTURES, GIVEN, {"k0": ["a dog", "one dog"]})
    added, filled = (captions(images, mode, captioner, all_captions=True) for mode in ("add", "fill"))
    assert [row["key"] for row in added] == ["k0", "k0", "k0", "k1", "k2", "k3", "k3", "k4", "k4"]
    assert [row["key"] for row in filled] == ["k0", "k0", "k1", "k2", "k3", "k4"]
    assert [row["captioner"] is None for row in filled] == [True, True, False, False, True, True]


def test_a_captioner_that_says_nothing_leaves_a_reason(images: Path, tmp_path: Path) -> None:
    import torch
    from transformers import VisionEncoderDecoderModel

    folder = save_pair(tmp_path / "mute")
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    with torch.no_grad():
        model.decoder.transformer.ln_f.weight.zero_()
        model.decoder.transformer.ln_f.bias.copy_(100 * model.decoder.transformer.wte.weight[3])  # always the end token
    model.save_pretrained(folder)
    rows = captions(images, "write", str(folder))
    assert {(row["caption"], row["reason"]) for row in rows} == {(None, "empty_caption")}
    beside = captions(images, "add", str(folder))[:2]
    assert [(row["caption"], row["reason"]) for row in beside] == [("a dog", None), (None, "empty_caption")]


@pytest.mark.parametrize("mode", ["keep", "fill"])
def test_no_torch_when_there_is_nothing_to_write(tmp_path: Path, mode: str) -> None:
    given = GIVEN | ({"k1": "x", "k2": "y"} if mode == "fill" else {})
    images = write_shard(tmp_path / "00000.json", PICTURES, given)
    images, out = str(images), str(tmp_path / "out.json")
    code = f"""
import sys
from pathlib import Path
from pipeline.caption.captions import run
from pipeline.config.steps import CaptionSlice, Settings
run(CaptionSlice(mode={mode!r}, captioner="no such model"), Settings(), Path({images!r}), Path({out!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_input_gives_the_same_bytes(images: Path) -> None:
    captions(images, "keep")
    table = (images.parent / "captions-keep.parquet").read_bytes()
    captions(images, "keep")
    assert (images.parent / "captions-keep.parquet").read_bytes() == table


def test_fill_without_a_captioner_names_the_key(images: Path) -> None:
    with pytest.raises(UserError, match=r"2 images are to get a caption .* set models\.captioner"):
        captions(images, "fill")


def test_a_tar_that_lost_samples_is_noticed(images: Path) -> None:
    sidecar = json.loads(images.read_text())
    sidecar["files"]["images"]["rows"] = 6
    images.write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match=r"5 samples, but .* says 6"):
        captions(images, "keep")
