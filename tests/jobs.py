"""Several processes that train together, for tests: starting them, changing what they do, comparing what they made."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from pipeline.engine.optimizer import MOMENTS
from pipeline.fingerprint import ROOT
from tests.training import EXPERTS, Trainer, ends, json_lines

AT_ONCE = 30  # seconds, most of which are torchrun's
WITHOUT_END = {"samples_every_images": 240_000, "checkpoint_every_images": 240_000}
BINARIES = Path(sys.executable).parent


def run(trainer, count, *args, name="run", expect=0, **kwargs):
    """The trainer's command by `count` processes, to the end."""
    codes = ends(trainer.start_several(count, *args, name=name, **kwargs))
    assert codes == [expect] * count, trainer.log(name).read_text()


class Patched:
    """A server of processes that call `patch` before anything else; it must be importable by name."""

    def __init__(self, server, patch):
        self._server, self._patch = server, patch

    def Process(self, target, args):
        return self._server.Process(target=_patched, args=(self._patch, target, args))


def _patched(patch, target, args):
    patch()
    target(*args)


class Launcher:
    """Starts the command line by a launcher such as torchrun instead of forking: it stands in for a server."""

    def __init__(self, *launcher, program=("-m", "pipeline"), prefix=(), **environment):
        self._command = [*prefix, BINARIES / launcher[0], *launcher[1:], *program]
        self._environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}

    def Process(self, target, args):
        arguments, environment, folder, log = args
        return Launched([*self._command, *arguments], {**self._environment, **environment}, folder, log)


class Launched:
    """A program, to be handled like a process of multiprocessing."""

    def __init__(self, command, environment, folder, log):
        self._command, self._environment, self._folder, self._log = command, os.environ | environment, folder, log

    def start(self):
        with open(self._log, "a") as log:
            self._program = subprocess.Popen(
                list(map(str, self._command)), cwd=self._folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.pid = self._program.pid

    def join(self, seconds):
        try:
            self._program.wait(seconds)
        except subprocess.TimeoutExpired:
            self._program.terminate()  # a launcher then ends what it started
            self._program.wait(60)

    def is_alive(self):
        return self._program.poll() is None

    @property
    def exitcode(self):
        return self._program.poll()


def workers(launcher):
    """The processes of a torchrun, by rank."""
    found = [child for child in psutil.Process(launcher.pid).children() if "pipeline" in " ".join(child.cmdline())]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


# The largest relative difference to what one process makes: of a curve at any step, of the norm of the weights, and of
# the norms of the rest of a checkpoint (optimiser, averages, guard).
TOLERANCES = {"loss": 1e-5, "grad_norm": 1e-4, "validation_loss": 1e-5, "weights": 1e-4, "state": 1e-4}
IMAGES = 480  # 20 steps


class Warmed:
    """Runs of 20 steps that start from weights of which the experts have learnt: at the start they hardly matter.

    The run "one" is that of one process; the others are compared with it.
    """

    def __init__(self, server, vae, folder, slice_of, manifest):
        self._server, self._vae, self._manifest = server, vae, manifest
        self.trainer = Trainer(server, vae, folder)
        numbers = dict(mask_ratio=0.5, posthoc_ema=[0.05, 0.1])
        warm = slice_of({"name": "warm"}, model=EXPERTS, images=240, **numbers)
        self._settings = {"parent": self.trainer.run(warm, manifest, name="warm"), "log_every_images": 24}
        self._settings |= {"checkpoint_every_images": 240, "snapshot_every_images": 240, "samples_every_images": IMAGES}
        numbers |= dict(images=IMAGES, learning_rate=2e-3, fresh_optimizer=False)
        self.slice = slice_of(model=EXPERTS, **numbers)
        self.run("one", 1)

    def run(self, name, count, patch=None, **runtime):
        """Train to the end; returns which of TOLERANCES that breaks."""
        trainer = Trainer(Patched(self._server, patch), self._vae, self.trainer.folder) if patch else self.trainer
        run(trainer, count, self.slice, self._manifest, name=name, **self._settings, **runtime)
        return self.disagreements(name)

    def launch(self, name, *launchers, **runtime):
        """The same by launchers."""
        trainers = [Trainer(launcher, self._vae, self.trainer.folder) for launcher in launchers]
        job = [trainer.start(self.slice, self._manifest, name=name, **self._settings, **runtime) for trainer in trainers]
        assert ends(job) == [0] * len(job), self.trainer.log(name).read_text()
        return self.disagreements(name)

    def relay(self, name, *legs):
        """One step by each kind and number of processes, the rest by the last; returns as `run` does."""
        *first, (parallel, count) = legs
        for kind, processes in first:
            common = {"name": name, "parallel": kind, "deadline": 0, "expect": 1, **self._settings}
            run(self.trainer, processes, self.slice, self._manifest, **common)
        assert self.trainer.newest(name) == 24 * len(first)
        return self.run(name, count, parallel=parallel)

    def out(self, name, file):
        return self.trainer.folder / name / "out" / file

    def summary(self, name):
        return read_json(self.out(name, "summary.json"))

    def disagreements(self, name):
        return {kind: value for kind, value in self.differences(name).items() if not value <= TOLERANCES[kind]}

    def differences(self, name):
        one, two = self._curves(name), self._curves("one")
        found = {key: max(abs(a - b) / b for a, b in zip(one[key], two[key], strict=True)) for key in one}
        one, two = self._vectors(name), self._vectors("one")
        assert one.keys() == two.keys()
        apart = {key: float((one[key] - two[key]).norm() / two[key].norm()) for key in one}
        return {**found, "weights": apart.pop("model"), "state": max(apart.values())}

    def _curves(self, name):
        lines = json_lines(self.out(name, "metrics.jsonl"))
        return {key: [line[key] for line in lines if key in line] for key in ("loss", "grad_norm", "validation_loss")}

    def _vectors(self, name):
        """The last checkpoint as a few long vectors."""
        folder = self.trainer.checkpoints(name)[-1]
        files = {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
        optimizer = files.pop("optimizer")
        files |= {kind: {key: optimizer[key] for key in optimizer if key.endswith(f".{kind}")} for kind in MOMENTS}
        files["step"] = {"step": optimizer["step"]}
        files["guard"] = {"guard": torch.tensor(read_json(folder / "state.json")["guard"], dtype=torch.float64)}
        return {kind: torch.cat([file[key].double().flatten() for key in sorted(file)]) for kind, file in files.items()}


@pytest.fixture(scope="session")
def warmed(server, vae, slice_of, toy, tmp_path_factory):
    return Warmed(server, vae, tmp_path_factory.mktemp("warmed"), slice_of, toy)
