"""What `python -m pipeline plan --measure` measures: each part of a run for some seconds, with the configuration's own models
and sizes, on this machine.

Of several rounds the best counts: other work on the machine only ever slows one down. A part whose models cannot be loaded is
named, and stays assumed.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from pipeline.architecture import MicroDiTConfig, forward_flops, parameters, training_flops
from pipeline.artifacts import write_json
from pipeline.bench.encode import Bench, draw_shard, jpeg
from pipeline.bench.machine import facts
from pipeline.config import Config
from pipeline.diffusion import EDM
from pipeline.embedded.scenes import draw_scene, render
from pipeline.encode.decoding import workers_for
from pipeline.engine.batch import Batch
from pipeline.engine.objective import Objective
from pipeline.engine.peak import peak, wait
from pipeline.engine.recipe import Recipe
from pipeline.engine.step import Speed, TrainStep
from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.model import MicroDiT
from pipeline.plan.estimate import network
from pipeline.plan.rates import MEASURED, TERA, fits
from pipeline.runtime import pick_device, pick_precision
from pipeline.sources.images import prepare

SECONDS = 3.0  # that a part is timed for; there are about ten of them, and each warms up first
STEP_SECONDS = 1.0  # that a batch of training or sampling should take at most
BYTES_A_WEIGHT = 20  # weights, gradients, two moments, average
DISK_BYTES = 2**27
LIGHT = "import pipeline.sources.collect"
HEAVY = "import torch, diffusers, transformers"


def run(config: Config, out: Path = MEASURED) -> None:
    """Measure and write `out`.

    Raises: UserError where the run has GPUs and this machine none: it would not be the one that the run is on.
    """
    device = pick_device(config.runtime.device)
    if config.runtime.gpus and device.type == "cpu":
        raise UserError(
            f"runtime.gpus: {config.runtime.gpus}, and no GPU was found here; measure on a machine that the run will be on, or "
            "plan without --measure"
        )
    write_json(out, Measurement(config, device).all())


@contextmanager
def _one_core() -> Iterator[None]:
    """What a job of a rule without `threads` has: Snakemake runs as many side by side as there are cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Measurement:
    """The parts, and what could not be measured."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.precision = pick_precision(config.runtime.precision, device)
        self.numbers: dict[str, float] = {}
        self.missing: dict[str, str] = {}

    def all(self) -> dict[str, Any]:
        """What `plan.rates` reads."""
        machine = {**facts("", [], self.device), "command": "python -m pipeline plan --measure"}
        top = peak(self.device, self.precision)
        self.numbers["peak_tflops"] = top.flops / TERA
        self._say("starting a job")
        self.numbers |= {"start_seconds": _start(HEAVY, 1), "light_start_seconds": _start(LIGHT, 3)}
        training = {stage: self._training(stage, top.flops) for stage in self.config.schedule}
        training = {stage: flops for stage, flops in training.items() if flops}
        if training:
            self.numbers["train_share"] = min(1.0, max(training.values()) / top.flops)
            self.numbers["sample_share"] = min(1.0, self._sampling(top.flops) / top.flops)
        with _one_core() if self.device.type == "cpu" else nullcontext():
            for part in (self._collecting, self._encoding, self._captioning):
                with self._perhaps(part.__name__.strip("_")):
                    part()
        return {
            "fits": fits(self.config),
            "machine": {**machine, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
            "peak": top.source,
            "numbers": {name: _digits(value) for name, value in self.numbers.items()},
            "training_flops_per_second": {stage: _digits(flops) for stage, flops in training.items()},
            "disk_megabytes_per_second": _disk(MEASURED.parent),
            "not_measured": self.missing,
        }

    def _say(self, what: str) -> None:
        print(f"measuring: {what}", file=sys.stderr, flush=True)

    @contextmanager
    def _perhaps(self, part: str) -> Iterator[None]:
        self._say(part)
        try:
            yield
        except UserError as error:
            self.missing[part] = str(error)
            self._say(f"{part} was not: {error}")

    def _training(self, name: str, flops: float) -> float | None:
        """FLOP/s of the training step; None where this machine has no room for the network."""
        self._say(f"training of {name}")
        stage = self.config.stages[name]
        model = network(self.config, stage.px)
        if self.device.type == "cpu" and BYTES_A_WEIGHT * parameters(model) > psutil.virtual_memory().available:
            self.missing[f"training of {name}"] = "the memory of this machine does not hold the network and its optimiser"
            return None
        cost = training_flops(model, stage.mask_ratio)
        images = _fitting(stage.batch_images // (max(1, self.config.runtime.gpus) * self.config.runtime.nodes), cost, flops)
        recipe = Recipe("measure", images, batch_images=images, mask_ratio=stage.mask_ratio, learning_rate=1e-6)
        objective = Objective(EDM(), model, recipe, self.precision)
        step = TrainStep(MicroDiT(model).to(self.device), objective, images, speed=Speed.of(self.device))
        batch = Batch(torch.arange(images), *(tensor.half() for tensor in _inputs(model, images)))
        return images * cost / self._best(lambda: step(batch, images))

    def _sampling(self, flops: float) -> float:
        """FLOP/s of the network without gradients, at the last stage's resolution."""
        self._say("sampling")
        model = network(self.config, self.config.stages[self.config.schedule[-1]].px)
        images = _fitting(self.config.runtime.sample_batch, forward_flops(model), flops)
        net = MicroDiT(model).to(self.device).eval()
        latents, text = (tensor.to(self.device) for tensor in _inputs(model, images))
        noise = torch.zeros(images, device=self.device)

        @torch.inference_mode()
        def draw() -> None:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                net(latents, noise, text)

        return images * forward_flops(model) / self._best(draw)

    def _side(self) -> int:
        """Of the images that are stored, in pixels."""
        sources = [self.config.sources[name] for name in self.config.training_sources()]
        return max(min(source.store_side, getattr(source, "px", 1024)) for source in sources)

    def _collecting(self) -> None:
        image = jpeg(0, self._side())
        self.numbers["collects_per_second"] = 1 / self._best(lambda: prepare(image, 8, self._side()), seconds=1.0)

    def _encoding(self) -> None:
        """A few images tell how many there is time for."""
        from pipeline.frozen.text import load_text_encoder
        from pipeline.frozen.vae import load_vae

        models, batch = self.config.models, self.config.runtime.encode_batch
        dtype = getattr(torch, models.dtype)
        vae = load_vae(models.vae, self.device, dtype)
        encoder = load_text_encoder(models.text_encoder, models.text_tokens, self.device, dtype=dtype)
        px = sorted({self.config.stages[stage].px for stage in self.config.schedule})
        speeds: dict[str, Any] = {"latents_per_second": 1.0}
        for count in (8, 512):
            images = min(count, max(8, int(SECONDS * speeds["latents_per_second"])))
            with tempfile.TemporaryDirectory(prefix="plan-") as folder:
                shard = draw_shard(Path(folder), images, self._side())
                bench = Bench(Path(folder), vae, encoder, px, min(batch, images), shard)
                speeds = bench.measure(workers_for(self.config.runtime.decode_workers, images))
        pixels = sum((side / 256) ** 2 for side in px)
        self.numbers["encodes_per_second"] = speeds["latents_per_second"] * pixels
        self.numbers["texts_per_second"] = speeds["text_per_second"]

    def _captioning(self) -> None:
        config = self.config
        if all(config.sources[name].caption == "keep" for name in config.training_sources()):
            return
        from pipeline.frozen.captioner import Decoding, load_captioner

        asked = config.captioning
        decoding = Decoding(asked.max_tokens, asked.temperature, asked.top_p, asked.seed)
        dtype = getattr(torch, config.models.dtype)
        captioner = load_captioner(
            config.models.captioner, self.device, asked.prompts, decoding, dtype, remote_code=asked.remote_code
        )
        keys = [str(i) for i in range(config.runtime.caption_batch)]
        images = [self._picture(i) for i in range(len(keys))]
        self.numbers["captions_per_second"] = len(keys) / self._best(lambda: captioner.write(images, keys, captioner.prompts[0]))

    def _picture(self, number: int) -> Image.Image:
        """A scene where the run is about scenes: of anything else its captioner would never stop talking."""
        if all(self.config.sources[name].kind == "synthetic" for name in self.config.training_sources()):
            return render(draw_scene(0, "train", number), self._side())
        return Image.open(io.BytesIO(jpeg(number, self._side()))).convert("RGB")

    def _best(self, work: Callable[[], object], seconds: float = SECONDS) -> float:
        """Seconds of the fastest of as many rounds as there is time for, after one to warm up."""
        best, ends = float("inf"), None
        while ends is None or time.perf_counter() < ends:
            wait(self.device)
            began = time.perf_counter()
            work()
            wait(self.device)
            if ends is None:
                ends = time.perf_counter() + seconds
            else:
                best = min(best, time.perf_counter() - began)
        return best


def _fitting(wanted: int, flops_an_image: float, flops: float) -> int:
    """Images of a batch: as the run has, or fewer where that would take long at a third of the peak."""
    return max(1, min(wanted, int(STEP_SECONDS * flops / 3 / flops_an_image)))


def _inputs(model: MicroDiTConfig, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(images, model.in_channels, model.input_size, model.input_size)
    return latents, torch.randn(images, model.caption_length, model.caption_channels)


def _start(code: str, times: int) -> float:
    """Seconds of a fresh process that runs `code`, the best of some."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        spent.append(time.perf_counter() - began)
    return min(spent)


def _disk(folder: Path) -> dict[str, float]:
    """10^6 bytes a second that one process writes to the disk of `folder`, and reads back from it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        data, began = os.urandom(2**20), time.perf_counter()
        for _ in range(DISK_BYTES // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from memory
        file.seek(0)
        began_reading = time.perf_counter()
        while file.read(2**20):
            pass
        read = time.perf_counter()
    return {"write": _digits(DISK_BYTES / 1e6 / (written - began)), "read": _digits(DISK_BYTES / 1e6 / (read - began_reading))}


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
