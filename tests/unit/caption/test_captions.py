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


def captions(images: Path, mode: str, captioner: str | None = None, batch: int = 2) -> list[dict]:
    out = images.parent / f"captions-{mode}.json"
    settings = Settings.model_validate({"runtime": {"caption_batch": batch, "device": "cpu"}})
    run(CaptionSlice(mode=mode, captioner=captioner), settings, images, out)
    table = pq.read_table(read_sidecar(out, "captions").file("captions"))
    assert table.schema.equals(CAPTIONS)
    return table.to_pylist()


def test_keep_gives_a_row_an_image_and_says_where_there_is_none(images: Path) -> None:
    rows = captions(images, "keep")
    assert [row["key"] for row in rows] == list(PICTURES)
    assert [row["caption"] for row in rows] == ["a dog", None, None, "🙂 כלב", "a cat"]
    assert [row["reason"] for row in rows] == [None, "no_caption", "no_caption", None, None]
    assert all(row["captioner"] is None for row in rows)
    info = json.loads((images.parent / "captions-keep.json").read_text())["info"]
    assert info == {"mode": "keep", "captioner": None, "given": 3, "written": 0, "missing": 2}


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
    with pytest.raises(UserError, match=r"2 images are without a caption .* set models\.captioner"):
        captions(images, "fill")


def test_a_tar_that_lost_samples_is_noticed(images: Path) -> None:
    sidecar = json.loads(images.read_text())
    sidecar["files"]["images"]["rows"] = 6
    images.write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match=r"5 samples, but .* says 6"):
        captions(images, "keep")
