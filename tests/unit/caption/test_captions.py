import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import CAPTIONS, read_sidecar
from pipeline.caption.captions import run
from pipeline.config.schema import Captioning
from pipeline.config.steps import CaptionSlice, Settings
from pipeline.errors import UserError
from tests.unit.encode.small_shards import describe_again, picture, write_shard
from tests.unit.frozen.captioner_models import FAMILIES, save_blip, save_llava, save_pair

PICTURES = {f"k{n}": picture(n) for n in range(5)}
GIVEN = {"k0": "a dog", "k1": None, "k2": "  ", "k3": "🙂 כלב", "k4": "a cat"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "data" / "00000.json", PICTURES, GIVEN)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pair(tmp_path_factory.mktemp("captioner")))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("chatty")))


def captions(
    images: Path, mode: str, captioner: str | None = None, batch: int = 2, all_captions: bool = False, **wanted: object
) -> list[dict]:
    """`wanted` is of the section captioning."""
    out = images.parent / f"captions-{mode}.json"
    settings = Settings.model_validate({"runtime": {"caption_batch": batch, "device": "cpu"}})
    captioning = Captioning(**{"max_tokens": 12} | wanted)
    slice_ = CaptionSlice(mode=mode, captioner=captioner, captioning=captioning, all_captions=all_captions)
    run(slice_, settings, images, images.parent / "work", out)
    assert not list((images.parent / "work").glob("*"))
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
    nothing = {"captioner": None, "captioning": None, "cut": 0}
    assert info_of(images, "keep") == {"mode": "keep", "all_captions": False, **nothing, **counts}


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
run(CaptionSlice(mode={mode!r}, captioner="no such model"), Settings(), Path({images!r}), Path("work"), Path({out!r}))
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batches_of_any_size_give_the_same_captions(tmp_path: Path, family: str, temperature: float) -> None:
    """All families, from the files of a shard to its table."""
    pictures = {f"k{n}": picture(n, (40 + 24 * (n % 3), 48)) for n in range(8)}
    images, model = write_shard(tmp_path / "00000.json", pictures), str(FAMILIES[family](tmp_path / "model"))
    wanted = {"prompts": ["<CAPTION>" if family == "florence-2" else "Describe this image"], "temperature": temperature}
    tables = [captions(images, "write", model, batch=batch, top_p=0.9, **wanted) for batch in (1, 3, 8)]
    assert tables[0] == tables[1] == tables[2]
    assert [row["key"] for row in tables[0]] == list(pictures) and len({row["caption"] for row in tables[0]}) > 3


def test_every_prompt_and_sample_has_its_row(images: Path, chatty: str) -> None:
    prompts = ["Describe this image", "What is in this image"]
    drawn = {"samples": 2, "temperature": 1.0, "seed": 4}
    rows = captions(images, "add", chatty, prompts=prompts, **drawn)
    by_key = {key: [row for row in rows if row["key"] == key] for key in PICTURES}
    assert [row["key"] for row in rows] == [key for key, of_key in by_key.items() for _ in of_key]
    for key, of_key in by_key.items():
        given = [row for row in of_key if row["captioner"] is None]
        assert [row["caption"] for row in given] == ([GIVEN[key]] if GIVEN[key] and GIVEN[key].strip() else [])
        assert [row["prompt"] for row in of_key] == [None] * len(given) + [0, 0, 1, 1]
        assert len({row["caption"] for row in of_key[-4:]}) == 4
    counts = {"images": 5, "given": 3, "written": 20, "missing": 0}
    info = info_of(images, "add")
    assert info.items() >= counts.items() and info["captioning"] == {"prompts": prompts, "max_tokens": 12, **drawn}
    assert info["captioner"]["class"] == "LlavaForConditionalGeneration"
    other_order = captions(images, "add", chatty, prompts=prompts[::-1], **drawn)
    assert [(row["key"], row["caption"]) for row in other_order if row["prompt"] == 0] == [
        (row["key"], row["caption"]) for row in rows if row["prompt"] == 1
    ]


def test_a_model_without_prompts_writes_one_caption(images: Path, tmp_path: Path) -> None:
    rows = captions(images, "write", str(save_blip(tmp_path / "blip")), prompts=["short", "long"])
    assert [row["key"] for row in rows] == list(PICTURES) and all(row["prompt"] is None for row in rows)


def test_cut_captions_are_counted(images: Path, chatty: str) -> None:
    captions(images, "write", chatty, max_tokens=2)
    short = info_of(images, "write")["cut"]
    captions(images, "write", chatty, max_tokens=200)
    assert short == 5 > info_of(images, "write")["cut"]


def test_a_dtype_of_the_slice_is_that_of_the_model(images: Path, chatty: str) -> None:
    """bfloat16 rounds the weights of this model so much that other words come out."""
    tables = []
    for dtype in ("float32", "bfloat16"):
        slice_ = CaptionSlice(mode="write", captioner=chatty, captioning=Captioning(max_tokens=12), dtype=dtype)
        run(slice_, Settings(), images, images.parent / "work", images.parent / "out.json")
        tables.append(pq.read_table(images.parent / "out.parquet"))
    assert tables[0] != tables[1]


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_an_image_that_the_shard_lost_is_named(images: Path, captioner: str, damage: str) -> None:
    tar = images.with_suffix(".tar")
    with tarfile.open(tar) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(tar, "w") as archive:
        for member, data in members:
            lost = member.name == "k3.png"
            if not (lost and damage == "gone"):
                member.size = len(data) // 2 if lost else len(data)
                archive.addfile(member, io.BytesIO(data[: member.size]))
    with pytest.raises(UserError, match=r"00000\.tar: (missing or changed|content differs)"):
        captions(images, "write", captioner)
    describe_again(images)
    with pytest.raises(UserError, match=r"'k3'.* the shard is damaged, collect it again"):
        captions(images, "write", captioner)


def test_remote_code_reaches_the_model(images: Path, tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "there--own.Config"}})
    )
    for allowed, words in ((False, "needs the code that comes with it"), (True, "takes code from there")):
        with pytest.raises(UserError, match=words):
            captions(images, "write", str(folder), remote_code=allowed)
