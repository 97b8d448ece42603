"""A disk that fills up while a run saves. A limit on the size of the process's files stands in for it."""

import os
import resource
import signal

import pytest

from tests.training import ends, metrics, same, wait_until, weights


@pytest.mark.parametrize("full", ["checkpoint", "snapshot"])
def test_the_old_checkpoint_stays_usable(trainer, slice_of, toy, full):
    """Stopped just after its first checkpoint, the run may then write no file of more than 100,000 bytes."""
    slice_ = slice_of(images=240, posthoc_ema=[0.05, 0.1])
    rules = {"snapshot_every_images": 72 if full == "snapshot" else 240}
    reference = trainer.run(slice_, toy, name="undisturbed", **rules)

    process = trainer.start(slice_, toy, **rules)
    wait_until(process, lambda: trainer.newest() > 0)
    os.kill(process.pid, signal.SIGSTOP)
    before = trainer.newest()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    os.kill(process.pid, signal.SIGCONT)
    assert ends([process]) == [1] and trainer.newest() == before == 48
    told = trainer.log().read_text()
    final = trainer.work() / ("000000000096" if full == "checkpoint" else "snapshots/000000000072-0.05.safetensors")
    assert told.splitlines()[-1].startswith(f"error: {final}: ") and "make room" in told and "Traceback" not in told
    if full == "checkpoint":
        size = sum(path.stat().st_size for path in (trainer.work() / "000000000048").glob("*.safetensors"))
        needed = int(told.splitlines()[-1].split(" bytes ")[0].rsplit(" ", 1)[1].replace(",", ""))
        assert 0.9 * size < needed < size  # the tensors, without the tables of contents
    assert not list(trainer.work().rglob(".*")) and not (trainer.folder / "run/out").exists()

    out = trainer.run(slice_, toy, **rules)
    assert same(weights(out), weights(reference)) and metrics(out) == metrics(reference)


def test_of_two_processes_both_end(trainer, slice_of, toy):
    pair = trainer.start_two(slice_of(images=960), toy)
    wait_until(pair[0], lambda: trainer.newest() > 0)
    resource.prlimit(pair[0].pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    assert 0 not in ends(pair)
    assert " bytes cannot be written (" in trainer.log().read_text() and 48 <= trainer.newest() < 960
