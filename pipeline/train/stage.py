"""The training loop: one stage, from its parent's weights to its own. To resume, run the same command.

All state is counted in images. The data order, every random number and the learning rate follow from it, so that a run
that was stopped anywhere ends with the weights of one that never was.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.config.steps import Settings, TrainSlice
from pipeline.dataset import Manifest
from pipeline.diffusion import EDM
from pipeline.engine.objective import Objective
from pipeline.engine.optimizer import learning_rate
from pipeline.errors import UserError
from pipeline.runtime import StopRequest, pick_precision, progress
from pipeline.train.best import Best
from pipeline.train.buckets import flops_an_image, never_trained
from pipeline.train.budget import within_budget
from pipeline.train.checkpoint import Checkpoints, State
from pipeline.train.clock import Clock
from pipeline.train.data import Samples, paced, read_ahead
from pipeline.train.learner import Learner, recipe_of
from pipeline.train.metrics import JsonLines, Losses
from pipeline.train.network import Parent, architecture, check_frozen
from pipeline.train.processes import Processes
from pipeline.train.publish import publish
from pipeline.train.samples import SampleGrid
from pipeline.train.scores import EvaluationSet, Scores
from pipeline.train.skips import Skips
from pipeline.train.snapshots import Snapshots
from pipeline.train.speed import Speedometer
from pipeline.train.summary import fingerprint_of
from pipeline.train.trackers import Trackers
from pipeline.train.validation import Validation

NO_SCORES = EvaluationSet()
STOPS = ("", "SIGTERM", "SIGUSR1", "SIGINT", "deadline")


def run(
    slice_: TrainSlice,
    settings: Settings,
    manifest: Path,
    parent: Path | None,
    work: Path,
    out: Path,
    deadline_minutes: float | None,
    evaluation_set: EvaluationSet = NO_SCORES,
) -> None:
    """Train a stage to its end and write OUT: model, ema and optimizer (.safetensors), metrics.jsonl, samples.png and,
    last, summary.json; with an evaluation set that is asked for (`evaluation.curve`) also best.safetensors. Checkpoints
    lie in WORK/{fingerprint}; a run that finds one there goes on from it.

    Raises: UserError for settings and files that do not fit; Ended after a signal, at the deadline, or on divergence.
    """
    stop = StopRequest(deadline_minutes, settings.runtime.signal_lead_seconds)
    with Processes(settings.runtime.device, settings.runtime.parallel) as processes:
        _repeatable(processes.device)
        with _memory_of(slice_.name, processes):
            Training(slice_, settings, manifest, parent, work, processes, evaluation_set).run(stop, out)


@contextmanager
def _memory_of(stage: str, processes: Processes) -> Iterator[None]:
    """Running out of the GPU's memory in one line, where a step could not help itself with a smaller microbatch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = f"stages.{stage}: process {processes.rank} ran out of the memory of {processes.device}"
        advice = "set runtime.microbatch to less than it was (a result does not depend on it), or free the device"
        raise UserError(f"{where} ({str(error).partition('. ')[0]}); {advice}; the same command goes on") from error


def _repeatable(device: torch.device) -> None:
    """On a CPU the same command gives the same bits: some sums of scattered rows would go by the order of threads."""
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False


class Training:
    """The parts of one stage's training, and the loop that uses them."""

    def __init__(
        self,
        slice_: TrainSlice,
        settings: Settings,
        manifest: Path,
        parent: Path | None,
        work: Path,
        processes: Processes,
        evaluation_set: EvaluationSet = NO_SCORES,
    ) -> None:
        self.manifest, self.parent = Manifest.read(manifest), Parent.read(parent)
        slice_ = within_budget(slice_, self.manifest)
        self.slice, self.stage, self.settings, self.processes = slice_, slice_.stage, settings, processes
        self.clock = Clock(processes.device)
        if processes.is_main:
            check_frozen(self.manifest, "vae", slice_.vae)
        self.objective = self._objective()
        pinned = processes.device.type == "cuda"
        self.samples = Samples(self.manifest, self.stage, slice_.seed, slice_.name, settings.runtime.data_reading, pinned)
        fingerprint = fingerprint_of(slice_, self.manifest, self.parent)
        self.checkpoints = Checkpoints(work / fingerprint, fingerprint, settings.runtime.keep_checkpoints)
        self.learner = Learner(slice_, settings, self.objective, self.parent, processes)
        self.state = self.resume()
        self._observe(fingerprint, evaluation_set)

    def _objective(self) -> Objective:
        stage, config = self.stage, architecture(self.slice, self.manifest)
        edm = EDM(**self.slice.diffusion.model_dump(), p_mean=stage.p_mean, p_std=stage.p_std)
        precision = pick_precision(self.settings.runtime.precision, self.processes.device)
        return Objective(edm, config, recipe_of(self.slice), precision)

    def _observe(self, fingerprint: str, evaluation_set: EvaluationSet) -> None:
        """All that looks on; nothing here changes the weights."""
        slice_, settings, state, device = self.slice, self.settings, self.state, self.processes.device
        folder, is_main, batch = self.checkpoints.folder, self.processes.is_main, self.stage.batch_images
        first, _ = self.processes.share(batch)
        self.losses = Losses(self.objective.edm, state.rows, batch, first)
        self.metrics = JsonLines(folder / "metrics.jsonl", state.images, is_main)
        skipped = folder / "skipped.jsonl"
        self.skips = Skips(skipped, state.images, state.skipped, state.skipped_in_row, self.samples, batch, is_main)
        self.validation = Validation(slice_, settings, self.samples, self.objective, device)
        self.grid = SampleGrid(slice_, settings, self.samples, self.objective, device)
        models = self.manifest, self.objective, device, lambda: self.grid.vae  # loaded once for both, when it is needed
        self.scores = self.grid.scores = Scores(slice_, settings, evaluation_set, *models)
        self.best = Best(folder / "best", self.metrics.lines)
        self.snapshots = Snapshots(folder / "snapshots")
        flops = flops_an_image(self.objective.config, self.manifest, self.stage, slice_.name)
        self.speed = Speedometer(self.objective, settings, self.processes, flops)
        if is_main:
            if self.samples.buckets and (small := never_trained(self.samples.buckets, self.manifest, slice_.name)):
                print(small, file=sys.stderr, flush=True)
            self.snapshots.cut(state.images)
            self.best.prune(self.checkpoints.images())
            reached = self.metrics.reached
            self.trackers = Trackers(settings, slice_.name, fingerprint, folder, slice_.results(), state.images, reached)

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
        """Train to the end and hand over."""
        try:
            self.train(stop)
            if self.processes.is_main:
                publish(self, out)
        finally:
            if self.processes.is_main:
                self.trackers.finish()  # a run that is stopped has lines that were not sent yet

    def train(self, stop: StopRequest) -> None:
        """The loop, in the order things happen."""
        batch, total, settings = self.stage.batch_images, self.stage.images, self.settings.runtime
        first, count = self.processes.share(batch)
        starts = range(self.state.images, total, batch)
        batches = read_ahead(lambda start: self.samples.batch(start + first, count), starts)
        self.score_first()
        if self.state.images == 0:
            self.draw_grid()
        self.clock.switch("training")
        with closing(batches), progress(self.slice.name, total, initial=self.state.images, shown=self.processes.is_main) as bar:
            for data in paced(batches, self.processes.device):
                self.state.images += batch
                self.losses.add(self.learner(data, self.state.images))
                bar.update(batch)
                reason = STOPS[self.processes.agree(STOPS.index(stop.reason() or ""))]
                at_end = self.state.images == total
                if at_end or self.due(settings.log_every_images):
                    bar.set_postfix_str(self.log())
                if not at_end and self.due(settings.samples_every_images):
                    self.draw_grid()
                if at_end or self.due(settings.snapshot_every_images):
                    self.snapshot()
                scheduled = at_end or self.due(settings.checkpoint_every_images)
                if scheduled:
                    self.validate()
                if scheduled or reason:
                    self.save()
                if reason and not at_end:
                    where = f"stopped by {reason} at {self.state.images} images"
                    raise self.processes.ended(f"{where}; run the same command to go on")
                if self.scores.on and (at_end or self.due(self.scores.every_images)):
                    self.score()
        self.draw_grid()

    def due(self, interval: int) -> bool:
        """Whether the last step reached or crossed a multiple of `interval` images."""
        return self.state.images % interval < self.stage.batch_images

    def measure(self) -> None:
        """Read what the last steps left on the device. Raises: Ended if too many in a row were skipped."""
        rows = self.losses.collect(self.processes)
        for place, (row, not_finite) in enumerate(rows):
            images = self.state.images - (len(rows) - 1 - place) * self.stage.batch_images
            self.skips.note(row, images, not_finite)
            if self.skips.in_row > self.settings.runtime.max_skips_in_row:
                raise self.processes.ended(self._diverged(images) if self.processes.is_main else "")

    def _diverged(self, images: int) -> str:
        return (
            f"stages.{self.slice.name}: {self.skips.in_row} steps in a row up to {images} images had a gradient that was not "
            f"finite or far too large, and were skipped; samples of the last: {self.skips.last_keys()} (all: "
            f"{self.skips.file.path}); last good checkpoint: {self.checkpoints.last_good() or 'none'}; look at those samples, "
            "or lower learning_rate or clip_norm, or lengthen warmup_images"
        )

    def log(self) -> str:
        """Add a line to metrics.jsonl; returns it in short."""
        self.measure()
        images, seconds = self.state.images, self.clock.so_far()["training"]
        before = {"images": 0, "seconds": 0.0} | self.metrics.newest("seconds")
        rate = (images - before["images"]) / max(seconds - before["seconds"], 1e-9)
        self.write(
            {
                "images": images,
                "step": images // self.stage.batch_images,
                **self.losses.means(),
                "learning_rate": learning_rate(self.learner.recipe, images),
                "images_per_second": round(rate, 2),
                "share_of_peak": self.speed.share_of_peak(rate),
                "seconds": seconds,
                "ema_decay": self.learner.ema.decay(images),
                "epoch": images / self.samples.epoch_images,
                "skipped_steps": self.skips.total,
            }
        )
        return self.speed.line(self.metrics.lines[-1], self.stage.images - images)

    def write(self, line: dict[str, Any]) -> None:
        self.metrics.write(line)
        if self.processes.is_main:
            self.trackers.log(line)

    def validate(self) -> None:
        """Measure the averaged weights on held-out samples, if there are any, and remember the best."""
        if self.validation.samples == 0:
            return
        model = self.learner.ema_model()
        if self.processes.is_main:
            with self.clock.doing("validation"):
                found = self.validation.measure(model)
            self.write({"images": self.state.images, **found})
            loss, best = found["validation_loss"], self.state.best
            if math.isfinite(loss) and (best is None or loss < best["validation_loss"]):
                self.state.best = {"images": self.state.images, "validation_loss": loss}

    def score_first(self) -> None:
        """What a run before was stopped at, or did without; and what further scores need."""
        images, total = self.state.images, self.stage.images
        if self.scores.on and images and (images == total or self.due(self.scores.every_images)):
            self.score()
        if self.scores.on and images < total and self.processes.is_main:
            with self.clock.doing("scores"):
                self.scores.prepare()

    def score(self) -> None:
        """Measure FID and CLIP score of the averaged weights, unless that is done, and keep those of the best FID."""
        images = self.state.images
        if self.processes.agree(int(self.processes.is_main and self._is_scored(images))):
            return
        model = self.learner.ema_model()
        if self.processes.is_main:
            with self.clock.doing("scores"):
                found = {"images": images, **self.scores.measure(model)}
                self.best.keep(found, model.state_dict())
            self.write({**found, **self.speed.spent(self.clock.so_far())})
            self.best.prune(self.checkpoints.images())

    def _is_scored(self, images: int) -> bool:
        here = [line.get("curve_id") for line in self.metrics.lines if line["images"] == images]
        return any(here) and self.scores.id in here

    def draw_grid(self) -> None:
        model = self.learner.ema_model()
        if self.processes.is_main:
            with self.clock.doing("samples"):
                self.grid.draw(model, self.grid_file())
            self.trackers.log_grid(self.grid_file(), self.state.images)

    def grid_file(self) -> Path:
        return self.checkpoints.folder / "samples" / f"{self.state.images:012d}.png"

    def snapshot(self) -> None:
        """Keep the power-function averages of now."""
        for width in self.learner.power_emas:
            average = self.learner.whole(f"power-{width}")
            if self.processes.is_main:
                with self.clock.doing("checkpoints"):
                    self.snapshots.save(self.state.images, width, average)

    def save(self) -> None:
        """Write a checkpoint."""
        self.measure()
        files = ((name, self.learner.whole(name)) for name in self.learner.files())  # one at a time in memory if sharded
        if not self.processes.is_main:
            deque(files, maxlen=0)
            return
        started, lead = time.monotonic(), self.settings.runtime.signal_lead_seconds
        with self.clock.doing("checkpoints"):
            self.state.rows = [list(row) for row in self.losses.rows]
            self.state.guard = self.learner.guard.state()
            self.state.skipped, self.state.skipped_in_row = self.skips.total, self.skips.in_row
            self.state.seconds = self.clock.so_far()
            self.checkpoints.save(self.state, files, self.learner.checkpoint_bytes())
        if (took := time.monotonic() - started) > lead:
            told = f"saving took {took:.1f} s, longer than runtime.signal_lead_seconds ({lead} s): raise it, or a run that"
            with suppress(BrokenPipeError):  # whoever reads the log may be gone
                print(told, "is told to stop may be killed before it has saved", file=sys.stderr, flush=True)
