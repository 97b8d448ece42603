"""Several real processes against one: the same batches, noise, masks and dropout, hence the same curves and weights."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import Ended, UserError
from pipeline.train import processes as module
from pipeline.train.processes import Processes
from tests.jobs import Patched, run
from tests.training import Trainer, ends, wait_until


def as_one_of(count, rank, sharded=False):
    processes = Processes("cpu")
    processes.count, processes.rank, processes.is_main, processes.sharded = count, rank, rank == 0, sharded
    return processes


@pytest.mark.parametrize(("batch", "count"), [(24, 1), (24, 2), (25, 4), (7, 7)])
def test_shares_are_contiguous_even_and_complete(batch, count):
    shares = [as_one_of(count, rank).share(batch) for rank in range(count)]
    assert [first for first, _ in shares] == [sum(size for _, size in shares[:rank]) for rank in range(count)]
    sizes = [size for _, size in shares]
    assert sum(sizes) == batch and max(sizes) - min(sizes) <= 1


def test_a_batch_that_cannot_be_shared_is_a_user_error():
    with pytest.raises(UserError, match=r"batch_images: 3 images cannot be shared by 4 processes"):
        as_one_of(4, 0).share(3)
    with pytest.raises(UserError, match=r"batch_images: 25 images are no multiple of 4 processes"):
        as_one_of(4, 0, sharded=True).share(25)


def test_only_the_first_process_speaks():
    assert str(as_one_of(2, 0).ended("stopped").code) == "stopped"
    silent = as_one_of(2, 1).ended("stopped")
    assert isinstance(silent, Ended) and silent.code == 1


def test_one_process_agrees_with_itself():
    processes = Processes("cpu")
    assert [processes.agree(code) for code in (0, 3)] == [0, 3]


def test_processes_that_would_train_alone_are_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started, but on mps they cannot train together"):
        module._check_launched(1, torch.device("mps"))
    monkeypatch.delenv("WORLD_SIZE")
    module._check_launched(1, torch.device("cpu"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # both are set by `accelerate launch --cpu --num_processes 2`
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="accelerate launch --cpu starts one process"):
        module._check_launched(1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("shape", "dimension"), [((8, 3), 0), ((8, 4, 5), 0), ((2, 8, 5), 1), ((2, 6, 5), 0), ((6,), 0), ((6, 12), 1)]
)
def test_shards_are_even_where_rows_or_columns_are(shape, dimension):
    assert as_one_of(4, 0)._dimension(torch.empty(shape)).dim == dimension


@pytest.mark.parametrize(
    ("name", "count", "runtime"),
    [
        ("microbatches", 1, {"microbatch": 5}),
        ("ddp2", 2, {"microbatch": 5}),
        ("ddp4", 4, {}),
        ("fsdp2", 2, {"microbatch": 5, "parallel": "fsdp"}),
    ],
)
def test_any_number_of_processes_trains_what_one_trains(warmed, name, count, runtime):
    assert warmed.run(name, count, **runtime) == {}
    made, one = warmed.summary(name), warmed.summary("one")
    assert (made["processes"], made["parallel"]) == (count, runtime.get("parallel", "ddp"))
    assert made["fingerprint"] == one["fingerprint"]
    grids = [np.asarray(Image.open(warmed.out(run, "samples.png")), dtype=int) for run in (name, "one")]
    assert np.abs(grids[0] - grids[1]).max() <= 1  # of 255: a difference in the last bits may round the other way


def zeroed_experts():
    from pipeline.model.experts import ExpertMLP

    whole = ExpertMLP.forward
    ExpertMLP.forward = lambda self, x: 0 * whole(self, x)


def wrong_gradient_scale():
    """As if the step forgot that gradients are averaged over the processes."""
    from pipeline.engine.objective import Objective

    whole = Objective.__call__

    def half(self, *args):
        loss = whole(self, *args)
        return loss._replace(mean=loss.mean / 2)

    Objective.__call__ = half


def swapped_noise():
    """Every image meets the noise of the next."""
    from pipeline.engine.objective import Objective

    whole = Objective.draw

    def draw(self, positions, *size):
        return whole(self, positions, *size)._replace(noise=whole(self, positions + 1, *size).noise)

    Objective.draw = draw


def norm_of_a_shard():
    """Every process clips by the norm of its own part of the gradient."""
    Processes.total_norm = lambda self, norm: norm


@pytest.mark.parametrize(
    ("mutation", "seen_in", "runtime"),
    [  # among others in these
        (zeroed_experts, {"loss", "grad_norm", "validation_loss", "weights"}, {}),
        (wrong_gradient_scale, {"grad_norm", "state"}, {}),
        (swapped_noise, {"loss", "grad_norm", "weights"}, {}),
        (norm_of_a_shard, {"grad_norm"}, {"parallel": "fsdp"}),
    ],
)
def test_the_comparison_notices(warmed, mutation, seen_in, runtime):
    assert seen_in <= set(warmed.run(mutation.__name__, 2, mutation, **runtime))


def no_shards():
    module.fully_shard = lambda *args, **kwargs: None


def test_a_model_that_was_not_sharded_does_not_train(server, vae, tmp_path, slice_of, toy):
    trainer = Trainer(Patched(server, no_shards), vae, tmp_path)
    run(trainer, 2, slice_of(images=24), toy, parallel="fsdp", expect=1)
    assert "AssertionError: not sharded: ['x_embedder.proj.weight'" in trainer.log().read_text()


def test_a_checkpoint_of_shards_is_for_one_process_too(warmed):
    assert warmed.relay("relay", ("fsdp", 2), ("ddp", 1)) == {}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_survivor_ends_at_once_and_says_why(trainer, slice_of, toy, parallel):
    pair = trainer.start_two(slice_of(images=240_000), toy, parallel=parallel, samples_every_images=240_000)
    wait_until(pair[0], lambda: trainer.measured() > 0)
    started = time.monotonic()
    os.kill(pair[0].pid, signal.SIGKILL)
    assert ends(pair) == [-signal.SIGKILL, 1] and time.monotonic() - started < 20
    told = trainer.log().read_text()
    assert "process 1 ends because another one is gone" in told and "Traceback" not in told
