"""One byte that a disk has changed, in every kind of file that a run writes: somebody notices, and names the file."""

import os
import shutil

import pytest

from pipeline.verify.command import faults
from tests.chain import files, one_line

# Every kind of file with data in it, by the folders of artifacts.md.
DATA = [
    "data/scenes/*.tar",
    "data/scenes/*.parquet",
    "captions/scenes/*.parquet",
    "latents/scenes/*/*.arrow",
    "text/scenes/*/*.arrow",
    "manifests/low_masked.arrow",
    "manifests/low_masked.validation.arrow",
    "manifests/low_masked.left_out.parquet",
    "work/train/low_masked/*/000000000032/*.safetensors",
    "train/low_masked/[emo]*.safetensors",
    "work/eval/high_full/*/samples/*/*.png",
    "work/reference/*.safetensors",
    "model/transformer/*.safetensors",
]
# The file, what is deleted so that the step has to read it, the step, and what it says beside the file's name.
CONSUMERS = [
    ("data/scenes/00000.tar", "captions/scenes", "caption captions/scenes/", "content differs from the sha256"),
    ("data/scenes/00000.tar", "latents/scenes", "encode encoded/scenes/", "content differs from the sha256"),
    ("data/coco/00000.tar", "eval", "evaluate", "content differs from the sha256"),
    ("data/scenes/00000.parquet", "manifests", "manifest manifests/low", "content differs from the sha256"),
    ("captions/scenes/00000.parquet", "text/scenes", "encode encoded/scenes/", "content differs from the sha256"),
    ("captions/scenes/00000.parquet", "manifests", "manifest manifests/low", "content differs from the sha256"),
    ("manifests/low_masked.arrow", "work/train/low_masked", "train train/low", "content differs from the sha256"),
]


def flip(file, place=0.5):
    """Replaced, not changed: other folders share it."""
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    temporary = file.with_name(f"{file.name}.flipped")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def test_verify_names_every_kind_of_file(chain, whole, monkeypatch):
    folder = chain.copy(whole, "verified")
    monkeypatch.chdir(folder)
    results = folder / "results"
    assert not faults(results)
    wanted = {min(results.glob(pattern)) for pattern in DATA}
    for file in wanted:
        flip(file)
    named = {fault.claim.file for fault in faults(results)}
    assert {str(file.relative_to(results)) for file in wanted - named} == set() == named - wanted
    (state,) = results.glob("work/train/low_masked/*/000000000032/state.json")
    flip(state)
    assert state in {fault.claim.file for fault in faults(results)}


@pytest.mark.parametrize(("file", "gone", "command", "what"), CONSUMERS, ids=[f"{file}-{step}" for file, _, step, _ in CONSUMERS])
def test_who_reads_a_file_whole_does_not_use_it(chain, whole, tmp_path, file, gone, command, what):
    folder = chain.copy(whole, tmp_path.name)
    flip(folder / "results" / file)
    shutil.rmtree(folder / "results" / gone)
    step = next(step for step in chain.steps if step.name.startswith(command))
    code, told = chain.run(step, folder)
    line = one_line(told)
    assert code == 1 and file in line and what in line and "verify --repair" in line


def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_weights(chain, whole):
    folder = chain.copy(whole, "checkpoint")
    (checkpoint,) = (folder / "results/work/train/low_masked").glob("*/000000000032")
    flip(checkpoint / "model.safetensors")
    step = next(step for step in chain.steps if step.name == "train train/low_masked")
    told = chain.succeeds(step, folder)
    assert f"{checkpoint.name}: model.safetensors is not what was written; set aside" in told
    shutil.rmtree(checkpoint.with_name(f"{checkpoint.name}.damaged"))
    assert files(folder) == files(whole)


def test_damaged_features_of_the_real_images_are_computed_again(chain, whole):
    folder = chain.copy(whole, "features")
    (file, *_) = (folder / "results/work/reference").glob("*.safetensors")
    flip(file, 0.9)
    told = chain.succeeds(next(step for step in chain.steps if step.command == "evaluate"), folder)
    assert f"{file.name}: its content is not what was written; computed again" in told
    assert files(folder) == files(whole)
