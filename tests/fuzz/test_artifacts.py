"""What a run has written and reads again, once a disk or somebody has damaged it."""

import json
import shutil

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from pipeline.artifacts import LEDGER, file_record, read_sidecar, text_schema, variable_list, write_sidecar
from pipeline.config import load
from pipeline.config.steps import Settings
from pipeline.dataset import ArrowShard, Manifest
from pipeline.encode.decoding import squares
from pipeline.encode.samples import captions_of, image_keys, samples_of
from pipeline.fingerprint import ROOT
from pipeline.metrics.reference import kept
from pipeline.train.checkpoint import Checkpoints, State
from pipeline.trained import Trained
from tests.fuzz.conftest import damaged, spliced
from tests.training import LENGTH, ROWS, WIDTH, write_arrow, write_manifest
from tests.unit.encode.small_shards import describe_again, picture, write_captions, write_shard

IMAGES = {f"k{number}": picture(number, (20, 16)) for number in range(3)}


def test_a_sidecar(fuzz, tmp_path):
    (tmp_path / "0.tar").write_bytes(b"x" * 100)
    write_sidecar(tmp_path / "0.json", "images", {"images": (tmp_path / "0.tar", 3)}, {"source": "mine"})

    def check(data, folder):
        (folder / "0.json").write_bytes(data)
        sidecar = read_sidecar(folder / "0.json", "images")
        for name in sidecar.files:
            assert sidecar.file(name).exists() and sidecar.rows(name) is not None and sidecar.sha256(name) is not None
        sidecar.checked("images")

    fuzz([(tmp_path / "0.json").read_bytes()], check, damaged, spliced)


def test_the_record_of_a_run(fuzz):
    record = load(ROOT / "config.yaml").model_dump(mode="json")

    def check(data, folder):
        (folder / "run.json").write_bytes(data)
        Settings.read(folder / "run.json")

    fuzz([json.dumps(record).encode()], check, spliced)


def test_a_shard_of_images(fuzz, tmp_path):
    """Past its hash, as where the damage came before it."""
    images = write_shard(tmp_path / "data/0.json", IMAGES)
    captions = write_captions(tmp_path / "captions/0.json", dict.fromkeys(IMAGES, "a cat"))

    def check(data, folder):
        (folder / "data/0.tar").write_bytes(data)
        describe_again(images)
        keys = image_keys(captions_of(read_sidecar(captions, "captions"), read_sidecar(images, "images"))[0])
        tar = folder / "data/0.tar"
        squares(str(tar), list(samples_of(tar, keys)), [16])

    fuzz([(tmp_path / "data/0.tar").read_bytes()], check)


def _rows_of(path, column):
    shard = ArrowShard(path, column)
    assert len(shard) >= 0 and shard.keys is not None
    for number in range(min(shard.blocks, 4)):
        block = shard.block(number)
        assert np.asarray(block.values).sum() is not None
        for row in range(len(block.starts) - 1):
            shard.row(row)
    ArrowShard(path, column, "read").block(0)


def test_latents(fuzz, tmp_path):
    manifest = write_manifest(tmp_path / "toy", 8, 4)

    def check(data, folder):
        (folder / "a.arrow").write_bytes(data)
        _rows_of(folder / "a.arrow", "latent")

    fuzz([(manifest.parent / "latents2.arrow").read_bytes()], check)


def test_text_of_its_own_length(fuzz, tmp_path):
    schema = text_schema((LENGTH, WIDTH), {"padding": "drop"})
    values = [np.ones((length, WIDTH), np.float16) for length in (1, 3, 2)]
    columns = [pa.array(["a", "b", "c"]), variable_list(values), pa.array([1, 3, 2], pa.int32())]
    write_arrow(tmp_path / "text.arrow", schema, columns)

    def check(data, folder):
        (folder / "a.arrow").write_bytes(data)
        _rows_of(folder / "a.arrow", "tokens")

    fuzz([(tmp_path / "text.arrow").read_bytes()], check)


def test_a_manifest(fuzz, tmp_path):
    path = write_manifest(tmp_path / "toy", 8, 4)

    def check(data, folder):
        path.write_bytes(data)
        manifest = Manifest.read(path)
        assert manifest.samples_digest and len(manifest.index.row) >= 0 and len(manifest.validation.row) >= 0
        for number in range(min(len(ROWS), len(manifest.shards))):
            manifest.latents(number), manifest.text(number)

    fuzz([path.read_bytes()], check, damaged, spliced)


def test_the_index_of_a_manifest(fuzz, tmp_path):
    path = write_manifest(tmp_path / "toy", 8, 4)
    value = json.loads(path.read_text())

    def check(data, folder):
        (path.parent / "index.arrow").write_bytes(data)
        value["files"]["index"] = file_record(path.parent / "index.arrow", 120, path.parent)
        path.write_text(json.dumps(value))
        assert len(Manifest.read(path).index.row) >= 0

    fuzz([(path.parent / "index.arrow").read_bytes()], check)


def _checkpoint(folder):
    made = Checkpoints(folder, "abc", 2)
    made.prepare()
    state = State(24, {"training": 1.0}, [[1, 2.0]], [0.1, 0.2, 3.0], 1, 0, {"images": 24, "validation_loss": 0.5})
    made.save(state, [("model", {"w": torch.ones(4, 4)}), ("ema", {"w": torch.zeros(4, 4)})], 1000)
    return made


def test_the_state_of_a_checkpoint(fuzz, tmp_path):
    """A damaged one is named and set aside; what is left is read."""
    made = _checkpoint(tmp_path / "work")
    shutil.copytree(made.path(24), tmp_path / "right")

    def check(data, folder):
        shutil.rmtree(folder / "work")
        shutil.copytree(folder / "right", made.path(24))
        (made.path(24) / "state.json").write_bytes(data)
        if images := made.newest():
            made.state(images), made.load(images, "model")
        made.last_good()

    fuzz([(made.path(24) / "state.json").read_bytes()], check, damaged, spliced)


def test_the_weights_of_a_checkpoint(fuzz, tmp_path):
    made = _checkpoint(tmp_path / "work")

    def check(data, folder):
        (made.path(24) / "model.safetensors").write_bytes(data)
        made.load(24, "model")

    fuzz([(made.path(24) / "model.safetensors").read_bytes()], check)


def test_a_trained_stage(fuzz, tmp_path):
    from pipeline.diffusion import EDM
    from pipeline.model import MicroDiT
    from tests.unit.engine.small_steps import CONFIG

    model = MicroDiT(CONFIG)
    save_file(model.state_dict(), tmp_path / "ema.safetensors")
    summary = {"model": CONFIG.to_dict(), "diffusion": EDM().to_dict(), "vae": "embedded:vae", "text_encoder": "embedded:clip"}
    summary |= {"images_seen_total": 10, "images_seen": 10, "fingerprint": "abc"}

    def check(data, folder):
        (folder / "summary.json").write_bytes(data)
        Trained.read(folder)

    fuzz([json.dumps(summary).encode()], check, damaged, spliced)


def test_features_of_the_real_images(fuzz, tmp_path):
    """A damaged file is computed again, and said so."""
    facts, features = {"a": 1}, np.arange(12, dtype=np.float32).reshape(4, 3)

    def check(data, folder):
        for file in (folder / "reference").glob("*.safetensors"):
            file.write_bytes(data)
        assert np.array_equal(kept(folder / "reference", facts, 4, lambda: features), features)

    kept(tmp_path / "reference", facts, 4, lambda: features)
    (file,) = (tmp_path / "reference").glob("*.safetensors")
    fuzz([file.read_bytes()], check)


def test_ledger_and_captions(fuzz, tmp_path):
    """Past their hashes, as they come to the manifest."""
    images = write_shard(tmp_path / "data/0.json", IMAGES)

    def check(data, folder):
        (folder / "data/0.parquet").write_bytes(data)
        describe_again(images)
        read_sidecar(images, "images").table("ledger", LEDGER.names)

    fuzz([(tmp_path / "data/0.parquet").read_bytes()], check)
