"""The training loop: one stage, from its parent's weights to its own. To resume, run the same command.

All state is counted in images. The data order, every random number and the learning rate follow from it, so that a run
that was stopped anywhere ends with the weights of one that never was.
"""

import math
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import Manifest, atomic, write_json
from pipeline.config.steps import Settings, TrainSlice
from pipeline.runtime import StopRequest, pick_precision, progress
from pipeline.train.checkpoint import Checkpoints, State
from pipeline.train.clock import Clock
from pipeline.train.data import Samples, read_ahead
from pipeline.train.learner import Learner
from pipeline.train.metrics import Losses, MetricsFile
from pipeline.train.network import Parent, architecture
from pipeline.train.objective import Objective
from pipeline.train.optimizer import learning_rate
from pipeline.train.order import Order
from pipeline.train.processes import Processes
from pipeline.train.samples import SampleGrid
from pipeline.train.summary import fingerprint_of, summary

STOPS = ("", "SIGTERM", "SIGUSR1", "SIGINT", "deadline")


def run(
    slice_: TrainSlice,
    settings: Settings,
    manifest: Path,
    parent: Path | None,
    work: Path,
    out: Path,
    deadline_minutes: float | None,
) -> None:
    """Train a stage to its end and write OUT: model, ema and optimizer (.safetensors), metrics.jsonl, samples.png and,
    last, summary.json. Checkpoints lie in WORK/{fingerprint}; a run that finds one there goes on from it.

    Raises: UserError for settings and files that do not fit; Ended after a signal, at the deadline, or on divergence.
    """
    stop = StopRequest(deadline_minutes)
    processes = Processes(settings.runtime.device)
    try:
        _repeatable(processes.device)
        Training(slice_, settings, manifest, parent, work, processes).run(stop, out)
    finally:
        processes.end()


def _repeatable(device: torch.device) -> None:
    """On a CPU the same command gives the same bits: some sums of scattered rows would go by the order of threads."""
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False


class Training:
    """The parts of one stage's training, and the loop that uses them."""

    def __init__(
        self, slice_: TrainSlice, settings: Settings, manifest: Path, parent: Path | None, work: Path, processes: Processes
    ) -> None:
        self.slice, self.stage, self.settings, self.processes = slice_, slice_.stage, settings.runtime, processes
        self.clock = Clock(processes.device)
        self.manifest, self.parent = Manifest.read(manifest), Parent.read(parent)
        self.objective = Objective.of(
            slice_, architecture(slice_, self.manifest), pick_precision(settings.runtime.precision, processes.device)
        )
        order = Order(self.manifest.samples, slice_.seed, slice_.name)
        self.samples = Samples(self.manifest, order, pinned=processes.device.type == "cuda")
        self.learner = Learner(slice_, self.objective, self.parent, processes, settings.runtime.microbatch)
        self.grid = SampleGrid(slice_, settings, self.samples, self.objective, processes.device)
        fingerprint = fingerprint_of(slice_, self.manifest, self.parent)
        self.checkpoints = Checkpoints(work / fingerprint, fingerprint, settings.runtime.keep_checkpoints)
        self.state = self.resume()
        self.losses = Losses(self.objective.edm, self.state.rows)
        self.metrics = MetricsFile(self.checkpoints.folder / "metrics.jsonl", self.state.images, processes.is_main)

    def resume(self) -> State:
        """Go on from the newest whole checkpoint, the same on all processes."""
        if self.processes.is_main:
            self.checkpoints.prepare()
        images = self.processes.agree(self.checkpoints.newest() if self.processes.is_main else 0)
        if images:
            self.learner.load(self.checkpoints, images)
        state = self.checkpoints.state(images)
        self.clock.go_on_from(state.seconds)
        return state

    def run(self, stop: StopRequest, out: Path) -> None:
        """The loop, in the order things happen."""
        batch, total, first_step = self.stage.batch_images, self.stage.images, self.state.images
        first, count = self.processes.share(batch)
        starts = range(self.state.images, total, batch)
        batches = read_ahead(lambda start: self.samples.batch(start + first, count), starts)
        if self.state.images == 0:
            self.draw_grid()
        self.clock.switch("training")
        with closing(batches), progress(self.slice.name, total, initial=first_step, shown=self.processes.is_main) as bar:
            for data in batches:
                self.state.images += batch
                self.losses.add(*self.learner.step(data, self.state.images))
                bar.update(batch)
                reason = STOPS[self.processes.agree(STOPS.index(stop.reason() or ""))]
                at_end = self.state.images == total
                if at_end or self.due(self.settings.log_every_images):
                    bar.set_postfix_str(self.log())
                if not at_end and self.due(self.settings.samples_every_images):
                    self.draw_grid()
                if at_end or reason or self.due(self.settings.checkpoint_every_images):
                    self.save()
                if reason and not at_end:
                    where = f"stopped by {reason} at {self.state.images} images"
                    raise self.processes.ended(f"{where}; run the same command to go on")
        self.draw_grid()
        if self.processes.is_main:
            self.publish(out)

    def due(self, interval: int) -> bool:
        """Whether the last step reached or crossed a multiple of `interval` images."""
        return self.state.images % interval < self.stage.batch_images

    def measure(self) -> None:
        """Read the losses of the last steps from the device. Raises: Ended if one is no finite number."""
        rows = self.losses.collect(self.processes)
        for place, row in enumerate(rows):
            if not all(map(math.isfinite, row)):
                images = self.state.images - (len(rows) - 1 - place) * self.stage.batch_images
                raise self.processes.ended(
                    f"stages.{self.slice.name}: loss or gradient was not finite in the step to {images} images; last good "
                    f"checkpoint: {self.checkpoints.last()}; lower learning_rate or clip_norm, or lengthen warmup_images"
                )

    def log(self) -> str:
        """Add a line to metrics.jsonl; returns it in short."""
        self.measure()
        images, seconds = self.state.images, self.clock.so_far()["training"]
        rate = (images - self.metrics.last("images")) / max(seconds - self.metrics.last("seconds"), 1e-9)
        line: dict[str, Any] = {"images": images, "step": images // self.stage.batch_images, **self.losses.means()}
        line |= {
            "learning_rate": learning_rate(self.stage, images),
            "images_per_second": round(rate, 2),
            "seconds": seconds,
            "ema_decay": self.learner.ema.decay(images),
            "epoch": images / self.manifest.samples,
        }
        self.metrics.write(line)
        return f"loss {line['loss']:.4f}, {rate:.0f} images/s"

    def draw_grid(self) -> None:
        if self.processes.is_main:
            with self.clock.doing("samples"):
                self.grid.draw(self.learner.ema.model, self.grid_file())

    def grid_file(self) -> Path:
        return self.checkpoints.folder / "samples" / f"{self.state.images:012d}.png"

    def save(self) -> None:
        """Write a checkpoint, unless the losses since the last one show that it is not worth keeping."""
        self.measure()
        if self.processes.is_main:
            with self.clock.doing("checkpoints"):
                self.state.rows = self.losses.rows
                self.state.seconds = self.clock.so_far()
                self.checkpoints.save(self.state, self.learner.tensors())

    def publish(self, out: Path) -> None:
        """Hand over the finished stage; the summary comes last, so that one that is there is true."""
        (out / "summary.json").unlink(missing_ok=True)
        last = self.checkpoints.path(self.state.images)
        for name in ("model", "ema", "optimizer"):
            _hand_over(last / f"{name}.safetensors", out / f"{name}.safetensors")
        _hand_over(self.metrics.path, out / "metrics.jsonl")
        _hand_over(self.grid_file(), out / "samples.png")
        facts = summary(
            self.slice, self.manifest, self.parent, self.objective, self.processes, self.clock.so_far(), self.metrics.lines
        )
        write_json(out / "summary.json", facts)


def _hand_over(file: Path, to: Path) -> None:
    """The same file under a second name, or a copy on another file system. Neither is ever written to again."""
    with atomic(to) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)
