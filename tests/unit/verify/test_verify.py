"""Every kind of file: one flipped byte is found and named, and what is set aside is what must be made again."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts import write_json, write_sidecar
from pipeline.errors import UserError
from pipeline.metrics.reference import kept
from pipeline.train.checkpoint import Checkpoints, State
from pipeline.verify.command import faults, run

SHARDS = {  # sidecar -> kind and files
    "tables/urls.json": ("table", {"table": "tables/urls.parquet"}),
    "data/scenes/00000.json": ("images", {"images": "data/scenes/00000.tar", "ledger": "data/scenes/00000.parquet"}),
    "captions/scenes/00000.json": ("captions", {"captions": "captions/scenes/00000.parquet"}),
    "latents/scenes/32-abc/00000.json": ("latents", {"latents": "latents/scenes/32-abc/00000.arrow"}),
    "text/scenes/def/00000.json": ("text", {"text": "text/scenes/def/00000.arrow"}),
    "encoded/scenes/00000.json": (
        "encoded",
        {"latents-32": "latents/scenes/32-abc/00000.arrow", "text": "text/scenes/def/00000.arrow"},
    ),
    "manifests/low.json": ("manifest", {"index": "manifests/low.arrow", "left_out": "manifests/low.left_out.parquet"}),
}
CHECKPOINT = "work/train/low/0123/000000000064"
NETWORK = "model/transformer/diffusion_pytorch_model.safetensors"


def _shards(results):
    for number, (sidecar, (kind, files)) in enumerate(SHARDS.items()):
        for name in files.values():
            (results / name).parent.mkdir(parents=True, exist_ok=True)
            if not (results / name).exists():
                (results / name).write_bytes(f"{number} {name} ".encode() * 20)
        write_sidecar(results / sidecar, kind, {name: (results / file, 3) for name, file in files.items()}, {})


def _trained(results):
    """A stage of two checkpoints, handed over as training does, and a model folder made from it."""
    checkpoints = Checkpoints(results / "work/train/low/0123", "0123", keep=2)
    checkpoints.prepare()
    for images in (32, 64):
        tensors = ((name, {"weight": torch.full((4, 4), float(images))}) for name in ("model", "ema", "optimizer"))
        checkpoints.save(State(images=images), tensors, needed=1000)
    (results / "train/low").mkdir(parents=True)
    for name in ("model", "ema", "optimizer"):
        os.link(results / CHECKPOINT / f"{name}.safetensors", results / f"train/low/{name}.safetensors")
    write_json(results / "train/low/summary.json", {"fingerprint": "0123", "images_seen": 64})
    (results / NETWORK).parent.mkdir(parents=True)
    shutil.copy(results / "train/low/ema.safetensors", results / NETWORK)
    trained = {"stage": "low", "fingerprint": "0123", "weights": "ema"}
    write_json(results / "model/model_index.json", {"trained": trained})


def _evaluated(results):
    for name in ("work/eval/low/ab/samples/000/000000.png", "train/low/samples.png", "eval/low/samples.png"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(results / name)
    write_json(results / "eval/low/card.json", {"fid": 1})
    kept(results / "work/reference", {"images": "ab"}, 4, lambda: np.ones((4, 8), np.float32))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    results = tmp_path_factory.mktemp("whole") / "results"
    _shards(results)
    _trained(results)
    _evaluated(results)
    write_json(results / "run_config.json", {})
    (results / "downloads/urls").mkdir(parents=True)
    (results / "downloads/urls/table.json").write_text('{"a": 1}\n{"a": 2}\n')  # lines of JSON, of others
    (results / "embedded/coco").mkdir(parents=True)
    write_json(results / "embedded/coco/attributes.json", {})
    return results


@pytest.fixture
def results(whole, tmp_path, monkeypatch):
    """A copy, hard links kept, in the folder where the test works."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "results")
    for name in ("model", "ema", "optimizer"):
        file = tmp_path / f"results/train/low/{name}.safetensors"
        file.unlink()
        os.link(tmp_path / "results" / CHECKPOINT / file.name, file)
    return (tmp_path / "results").relative_to(tmp_path)


def _flip(file, place):
    """Change one byte, in place, as a disk does."""
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    with open(file, "r+b") as opened:
        opened.write(content)


def test_what_is_whole_has_no_fault(results, capsys):
    run(results, repair=True)
    assert capsys.readouterr().out == "results: every file is as it was written\n"


BINARY = [
    *{file for _, files in SHARDS.values() for file in files.values()},
    *(f"{CHECKPOINT}/{name}" for name in ("state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors")),
    "work/train/low/0123/000000000032/ema.safetensors",
    "train/low/ema.safetensors",
    NETWORK,
    "work/eval/low/ab/samples/000/000000.png",
    "eval/low/samples.png",
    "work/reference",
]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", sorted(BINARY))
def test_one_flipped_byte_is_found_and_named(results, name, place):
    file = next((results / name).iterdir()) if (results / name).is_dir() else results / name
    _flip(file, place)
    assert file in {fault.claim.file for fault in faults(results)}


@pytest.mark.parametrize("sidecar", sorted(SHARDS))
@pytest.mark.parametrize(
    ("old", "new"), [('"kind"', '"kine"'), ('"sha256": "', '"sha256": "x'), ("{", "("), ('bytes": ', 'bytes": 1')]
)
def test_a_damaged_sidecar_is_found(results, sidecar, old, new):
    path = results / sidecar
    path.write_text(path.read_text().replace(old, new, 1))
    assert path in {fault.claim.record for fault in faults(results)}


@pytest.mark.parametrize("sidecar", sorted(SHARDS))
def test_a_missing_file_is_found(results, sidecar):
    file = results / next(iter(SHARDS[sidecar][1].values()))
    file.unlink()
    assert [fault for fault in faults(results) if fault.claim.file == file and fault.what.startswith("missing")]


REPAIRS = {  # damaged -> what is set aside, and what Snakemake is to make
    "data/scenes/00000.tar": (["data/scenes/00000.json"], ["data/scenes/00000.json"]),
    "data/scenes/00000.parquet": (["data/scenes/00000.json"], ["data/scenes/00000.json"]),
    "captions/scenes/00000.parquet": (["captions/scenes/00000.json"], ["captions/scenes/00000.json"]),
    "tables/urls.parquet": (["tables/urls.json"], ["tables/urls.json"]),
    "latents/scenes/32-abc/00000.arrow": (
        ["encoded/scenes/00000.json", "latents/scenes/32-abc/00000.json"],
        ["encoded/scenes/00000.json"],
    ),
    "text/scenes/def/00000.arrow": (
        ["encoded/scenes/00000.json", "text/scenes/def/00000.json"],
        ["encoded/scenes/00000.json"],
    ),
    "manifests/low.arrow": (["manifests/low.json"], ["manifests/low.json"]),
    "train/low/ema.safetensors": ([CHECKPOINT, "model/model_index.json", "train/low/summary.json"], None),
    "work/train/low/0123/000000000032/ema.safetensors": (["work/train/low/0123/000000000032"], []),
    NETWORK: (["model/model_index.json"], ["model/model_index.json"]),
    "work/eval/low/ab/samples/000/000000.png": (["work/eval/low/ab/samples/000/000000.png"], []),
    "eval/low/samples.png": (["eval/low/card.json"], ["eval/low/card.json"]),
    "train/low/samples.png": (["train/low/summary.json"], ["train/low/summary.json"]),
    "eval/low/card.json": (["eval/low/card.json"], ["eval/low/card.json"]),
    "run_config.json": (["run_config.json"], []),
    "embedded/coco/attributes.json": ([], ["embedded/coco/captions.json"]),
}


@pytest.mark.parametrize("damaged", sorted(REPAIRS))
def test_repair_sets_aside_what_keeps_it_from_being_made_again_and_no_more(results, damaged, capsys):
    _flip(results / damaged, 0.0)
    before = {path for path in results.rglob("*") if path.is_file()}
    run(results, repair=True)
    aside, targets = REPAIRS[damaged]
    found = {str(path.relative_to(results)).removesuffix(".damaged") for path in results.rglob("*.damaged")}
    assert found == set(aside)
    assert len({path for path in results.rglob("*") if path.is_file()}) == len(before)  # nothing is deleted
    said = capsys.readouterr().out
    assert f"results/{damaged}: " in said
    command = next((line for line in said.splitlines() if line.startswith("  snakemake")), "-- ")
    if targets is not None:
        assert command.partition("-- ")[2].split() == [f"results/{target}" for target in targets]


def test_damaged_weights_are_the_checkpoint_too_and_the_one_before_is_named(results, capsys):
    _flip(results / "train/low/model.safetensors", 0.9)
    run(results, repair=True)
    assert "that stage is trained again from its checkpoint at 32 images, to 64" in capsys.readouterr().out
    assert [fault.claim.file.name for fault in faults(results)] == []  # what was set aside is not looked at again


def test_without_another_checkpoint_it_says_that_training_begins_anew(results, capsys):
    shutil.rmtree(results / "work/train/low/0123/000000000032")
    _flip(results / "train/low/model.safetensors", 0.9)
    run(results, repair=True)
    assert "from its beginning, as there is no other checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0.0, 0.5])
def test_a_checkpoint_whose_own_record_is_damaged_leaves_finished_weights_alone(results, place, capsys):
    _flip(results / CHECKPOINT / "state.json", place)
    run(results, repair=True)
    assert not (results / CHECKPOINT).exists() and (results / "train/low/summary.json").exists()
    assert "nothing vouches for them any more" in capsys.readouterr().out


def test_what_was_set_aside_before_is_kept(results):
    for _ in range(2):
        (results / "eval/low/card.json").write_text("{")
        run(results, repair=True)
    assert sorted(path.name for path in (results / "eval/low").glob("card.json*")) == [
        "card.json.damaged",
        "card.json.damaged~2",
    ]


def test_without_repair_nothing_is_renamed(results):
    _flip(results / "data/scenes/00000.tar", 0.5)
    before = sorted(results.rglob("*"))
    with pytest.raises(UserError, match=r"results: 1 faults; `python -m pipeline verify --repair`"):
        run(results, repair=False)
    assert sorted(results.rglob("*")) == before


def test_sidecars_are_known_wherever_they_lie_but_only_whole_results_are_repaired(results):
    _flip(results / "data/scenes/00000.tar", 0.5)
    part = results / "data"
    assert [fault.claim.file for fault in faults(part)] == [part / "scenes/00000.tar"]
    with pytest.raises(UserError, match="results/data: not the results of a run"):
        run(part, repair=True)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        faults(tmp_path / "nowhere")


def test_hard_links_and_shared_records_are_read_once(results, monkeypatch):
    read = []
    from pipeline.verify import claims

    honest = claims.sha256_file
    monkeypatch.setattr(claims, "sha256_file", lambda path: read.append(path) or honest(path))
    assert faults(results) == []
    files = {os.stat(path).st_ino for path in read}
    assert len(files) == len(read) and json.loads((results / "train/low/summary.json").read_text())
