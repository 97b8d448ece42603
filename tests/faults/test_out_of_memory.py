"""A GPU whose memory runs out in the middle of training. A step that raises torch's error stands in for it."""

import os

import torch

from pipeline.artifacts import read_json
from pipeline.engine.step import TrainStep
from tests.jobs import Patched
from tests.training import Trainer, ends, metrics, weights

ROOM, AFTER = 6, 4  # images that fit at a time, from this microbatch on


def little_memory():
    """In the process that is to train, before anything else."""
    backward, calls = TrainStep.backward, []

    def limited(self, part):
        calls.append(len(part.positions))
        if len(calls) > AFTER and calls[-1] > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of")
        return backward(self, part)

    TrainStep.backward = limited


def little_memory_of_the_second():
    enough = TrainStep.backward
    little_memory()
    little = TrainStep.backward
    TrainStep.backward = lambda self, part: (little if os.environ["RANK"] == "1" else enough)(self, part)


def apart(one, other):
    """Relative difference of all weights."""
    one, other = (torch.cat([value.double().flatten() for _, value in sorted(weights(out).items())]) for out in (one, other))
    return float((one - other).norm() / other.norm())


def test_it_goes_on_with_less_at_a_time_and_the_same_mathematics(trainer, server, vae, slice_of, toy):
    slice_ = slice_of(images=240, mask_ratio=0.5, posthoc_ema=[0.05, 0.1])
    expected = trainer.run(slice_, toy, name="undisturbed")
    small = Trainer(Patched(server, little_memory), vae, trainer.folder)
    out = small.run(slice_, toy)
    assert small.log().read_text().count("out of memory with 24 images at a time; the step is repeated") == 1
    assert "out of memory with 12 images at a time; the step is repeated, and from here on it is 6" in small.log().read_text()
    summaries = [read_json(folder / "summary.json") for folder in (out, expected)]
    assert [summary["microbatch"] for summary in summaries] == [6, 24]
    assert summaries[0]["images_seen"] == summaries[1]["images_seen"] == 240
    assert apart(out, expected) < 1e-4
    assert [line["images"] for line in metrics(out)] == [line["images"] for line in metrics(expected)]


def test_one_of_two_processes_ends_the_job_in_a_line(trainer, server, vae, slice_of, toy):
    trainer = Trainer(Patched(server, little_memory_of_the_second), vae, trainer.folder)
    assert ends(trainer.start_two(slice_of(images=960), toy)) == [1, 1]
    told = trainer.log().read_text()
    assert "error: stages.toy: process 1 ran out of the memory of cpu:0 (CUDA out of memory); set runtime.microbatch" in told
    assert "process 0 ends because another one is gone" in told and "Traceback" not in told
