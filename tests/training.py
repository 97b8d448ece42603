"""Training for tests: a toy that can be learnt, in real Arrow shards with a real manifest, and whole runs of the command
line in processes of their own, which real signals can end.

Fixtures are for a conftest.py to import. The toy has four captions, each a colour of latent.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from pipeline import artifacts
from pipeline.config.schema import Diffusion, Model, Stage
from pipeline.config.steps import TrainSlice
from pipeline.dataset import Manifest
from pipeline.frozen.models import identity
from pipeline.train.data import Samples

CHANNELS, LENGTH, WIDTH = 4, 3, 8
ROWS = (70, 50, 10)  # of three shards; the last one is held out
TRAINED = 120
EXPERTS = {"depth": 3, "mixer_depth": 2}  # enough blocks for one with experts in the backbone and one in the mixer


def write_arrow(path, schema, columns, block=artifacts.BLOCK_ROWS):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in pa.table(columns, schema=schema).to_batches(max_chunksize=block):
            writer.write_batch(batch)
    return {"path": path.name, "rows": len(columns[0]), "bytes": path.stat().st_size, "sha256": artifacts.sha256_file(path)}


def toy_values(rows, side, seed=0):
    """Latents [N, 4, side, side] and text [N, 3, 8] of which the second tells the first."""
    random = np.random.default_rng(seed)
    colour = random.integers(0, 4, rows)
    latents = 1.6 * np.eye(4)[colour][:, :, None, None] - 0.4 + 0.05 * random.normal(size=(rows, CHANNELS, side, side))
    text = np.eye(WIDTH)[colour][:, None] + 0.01 * random.normal(size=(rows, LENGTH, WIDTH))
    return latents.astype(np.float16), text.astype(np.float16)


def write_manifest(folder: Path, px: int, side: int, latents=None) -> Path:
    folder.mkdir(parents=True)
    shards, starts = [], np.cumsum((0, *ROWS))
    values = toy_values(sum(ROWS), side)
    values = (values[0] if latents is None else latents(values[0]), values[1])
    for number, rows in enumerate(ROWS):
        part = slice(starts[number], starts[number + 1])
        keys = pa.array([f"{number}-{row}" for row in range(rows)])
        latent_columns = [keys, artifacts.fixed_size_list(values[0][part])]
        text_columns = [keys, artifacts.fixed_size_list(values[1][part]), pa.array([LENGTH] * rows, pa.int32())]
        schemas = artifacts.latents_schema((CHANNELS, side, side), {}), artifacts.text_schema((LENGTH, WIDTH), {})
        shards.append(
            {
                "source": "toys",
                "latents": write_arrow(folder / f"latents{number}.arrow", schemas[0], latent_columns),
                "text": write_arrow(folder / f"text{number}.arrow", schemas[1], text_columns),
            }
        )
    index = [(number, row, row, 1, 1) for number, rows in enumerate(ROWS) for row in range(rows)]
    files = {"index": write_index(folder / "index.arrow", index[:TRAINED])}
    files["validation"] = write_index(folder / "validation.arrow", index[TRAINED:])
    manifest = {"kind": "manifest", "info": {}, "stage": "toy", "px": px, "samples": TRAINED, "shards": shards, "counts": {}}
    manifest |= {"latent_shape": [CHANNELS, side, side], "text_shape": [LENGTH, WIDTH], "vae": {}, "text_encoder": {}}
    manifest |= {"files": files, "sources": {"toys": [0, TRAINED]}, "text_padding": "attend"}
    artifacts.write_json(folder / "manifest.json", manifest)
    return folder / "manifest.json"


def encoded_by(manifest, **models):
    """Let the manifest say that these made its latents or text: {"vae" or "text_encoder": folder}."""
    value = artifacts.read_json(manifest)
    known = {name: identity(str(folder)) for name, folder in models.items()}
    if value != value | known:
        artifacts.write_json(manifest, value | known)


def poisoned(values):
    """Latents with some rows replaced by a number, for `write_manifest`: {row of the index: number}."""

    def change(latents):
        for row, value in values.items():
            latents[row] = value
        return latents

    return change


def rows_at(slice_, manifest, start, count):
    """Rows of the index at positions of the sample stream."""
    return Samples(Manifest.read(manifest), slice_.stage, slice_.seed, slice_.name).stream.rows(start, count).tolist()


def keys_of(rows):
    """source/key of rows of the index."""
    return [f"toys/0-{row}" if row < ROWS[0] else f"toys/1-{row - ROWS[0]}" for row in rows]


def write_index(path, rows):
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), artifacts.INDEX, strict=True)]
    return write_arrow(path, artifacts.INDEX, columns)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Path of the manifest of 8 px images, latents of side 4."""
    return write_manifest(tmp_path_factory.mktemp("toy") / "low", 8, 4)


@pytest.fixture
def manifest(toy):
    return Manifest.read(toy)


@pytest.fixture(scope="session")
def toy_high(tmp_path_factory):
    """The same at 16 px."""
    return write_manifest(tmp_path_factory.mktemp("toy") / "high", 16, 8)


@pytest.fixture(scope="session")
def slice_of():
    """`slice_of(images=…)`: a stage of a network of 40,000 parameters; keywords change the stage, `slice_` the slice."""

    def make(slice_=None, model=None, **stage):
        numbers = dict(px=8, mask_ratio=0.0, images=960, batch_images=24, learning_rate=1e-2, weight_decay=0.1)
        numbers |= dict(clip_norm=1.0, ema_decay=0.9, p_mean=-0.4) | stage
        network = dict(dim=32, depth=2, head_dim=16, mixer_depth=1, mixer_dim=16, num_experts=2) | (model or {})
        whole = dict(name="toy", base_px=8, vae="embedded:vae", text_encoder="embedded:clip", seed=3) | (slice_ or {})
        return TrainSlice(stage=Stage(**numbers), model=Model(**network), diffusion=Diffusion(sigma_data=0.7), **whole)

    return make


# Runs are forked by a server that has imported torch and diffusers once; each import takes seconds.

PRELOADED = ["pipeline.train.stage", "pipeline.__main__", "tests.training"]
PRELOADED += ["diffusers.models.autoencoders.autoencoder_kl"]
PRELOADED += ["pandas", "pipeline.frozen.vae"]  # pyarrow looks for pandas when it makes its first array


def make_vae(folder):
    from diffusers import AutoencoderKL

    blocks = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[8, 8])
    AutoencoderKL(**blocks, latent_channels=CHANNELS, norm_num_groups=4, layers_per_block=1).save_pretrained(folder)


def command_line(arguments, environment, folder, log):
    """`python -m pipeline ARGUMENTS`, in this process."""
    from pipeline.__main__ import main

    with open(log, "a") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["pipeline", *arguments]
    sys.exit(main())


@pytest.fixture(scope="session")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    threads, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), "1"  # a fork keeps no threads
    yield context
    os.environ.pop("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads


@pytest.fixture(scope="session")
def vae(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    maker = server.Process(target=make_vae, args=(folder,))
    maker.start()
    maker.join()
    return folder


class Trainer:
    """Starts `python -m pipeline train` in processes and folders of their own."""

    def __init__(self, server, vae, folder):
        self._server, self._vae, self.folder = server, vae, folder

    def start(
        self, slice_, manifest, name="run", parent=None, deadline=None, environment=None, sections=None, more=(), **runtime
    ):
        """`sections` are those of the settings beside `runtime`, `more` further arguments."""
        encoded_by(manifest, vae=self._vae)
        work, out = self.folder / name / "work", self.folder / name / "out"
        work.mkdir(parents=True, exist_ok=True)
        settings = self.folder / name / "settings.json"
        intervals = dict(device="cpu", checkpoint_every_images=48, log_every_images=96, samples_every_images=240)
        sections = {"runtime": intervals | runtime, "validation": {}, "report": {}, "evaluation": None, "sources": {}} | (
            sections or {}
        )
        with artifacts.atomic(settings) as temporary:  # another process of the same job may be reading it
            temporary.write_text(json.dumps(sections))
        config = slice_.model_copy(update={"vae": str(self._vae)}).to_json()
        arguments = ["train", "--config", config, "--manifest", manifest, "--work", work, "--out", out, "--settings", settings]
        arguments += ["--parent", parent] if parent else []
        arguments += ["--deadline-minutes", deadline] if deadline is not None else []
        where = ([str(value) for value in (*arguments, *more)], environment or {}, self.folder / name, self.log(name))
        process = self._server.Process(target=command_line, args=where)
        process.start()
        return process

    def start_several(self, count, *args, **kwargs):
        """The same by processes that train together."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        return [self.start(*args, environment=rank if count > 1 else None, **kwargs) for rank in ranks]

    def start_two(self, *args, **kwargs):
        return self.start_several(2, *args, **kwargs)

    def run(self, *args, name="run", expect=0, **kwargs):
        """Run to the end; returns the folder of outputs."""
        process = self.start(*args, name=name, **kwargs)
        process.join(60)
        assert process.exitcode == expect, self.log(name).read_text()
        return self.folder / name / "out"

    def log(self, name="run"):
        return self.folder / name / "log"

    def work(self, name="run"):
        """The folder of the run's checkpoints; of the newest run if there are several."""
        return max((self.folder / name / "work").iterdir(), key=lambda path: path.stat().st_mtime)

    def checkpoints(self, name="run"):
        return sorted(path for path in (self.folder / name / "work").glob("*/0*") if path.name.isdigit())

    def newest(self, name="run"):
        """Images of the newest checkpoint, 0 if there is none."""
        return max((int(path.name) for path in self.checkpoints(name)), default=0)

    def measured(self):
        """Images of the newest whole line of metrics, a sign that the loop runs."""
        lines = [json.loads(line)["images"] for path in self.folder.glob("run/work/*/metrics.jsonl") for line in path.open()]
        return max(lines, default=0)


@pytest.fixture
def trainer(server, vae, tmp_path):
    return Trainer(server, vae, tmp_path)


def ends(processes):
    """Exit codes."""
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def wait_until(process, happened):
    """Or until the process ends."""
    ends = time.monotonic() + 60
    while not happened() and process.is_alive() and time.monotonic() < ends:
        time.sleep(0.002)


WEIGHTS = ("model", "ema", "optimizer")
TIMES = ("seconds", "images_per_second", "share_of_peak")


def weights(folder, names=WEIGHTS):
    """All tensors of a folder of outputs or of a checkpoint."""
    return {f"{name}/{key}": value for name in names for key, value in load_file(folder / f"{name}.safetensors").items()}


def same(one, other):
    """Whether two sets of tensors are equal in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics(folder):
    """Lines of metrics.jsonl without what a clock says."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in json_lines(folder / "metrics.jsonl")]


def json_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def training_lines(folder):
    """Those of the training loss, without those of validation."""
    return [line for line in metrics(folder) if "loss" in line]
