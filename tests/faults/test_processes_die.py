"""One process dies and ends the job at once, with its message: not after the time that a collective may take."""

import os
import shutil
import signal
import time

import psutil
import pytest

from tests.jobs import AT_ONCE, WITHOUT_END, Launcher, workers
from tests.training import Trainer, ends, wait_until

PAIR = ("torchrun", "--standalone", "--nproc-per-node", "2")

# The second process reads another copy of the data, as on a machine with disks of its own.
OWN_COPY = """
import os, runpy, sys
if os.environ["RANK"] == "1":
    sys.argv[sys.argv.index("--manifest") + 1] = {manifest!r}
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_is_killed(vae, tmp_path, slice_of, toy, rank, parallel):
    trainer = Trainer(Launcher(*PAIR), vae, tmp_path)
    job = trainer.start(slice_of(images=240_000), toy, parallel=parallel, **WITHOUT_END)
    wait_until(job, lambda: trainer.measured() > 0)
    both = workers(job)
    started = time.monotonic()
    os.kill(both[rank].pid, signal.SIGKILL)
    assert ends([job]) == [1] and time.monotonic() - started < AT_ONCE
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in both)
    told = trainer.log().read_text()
    assert f"Signal 9 (SIGKILL) received by PID {both[rank].pid}" in told  # torchrun's words for the root cause
    assert f"process {1 - rank} ends because another one is gone" in told
    assert "pipeline/train/stage.py" not in told  # the traceback of the survivor would bury them


def test_one_process_cannot_read_a_shard(vae, tmp_path, slice_of, toy):
    copy = tmp_path / "copy"
    shutil.copytree(toy.parent, copy)
    broken = copy / "text0.arrow"
    os.truncate(broken, broken.stat().st_size // 2)
    program = tmp_path / "own_copy.py"
    program.write_text(OWN_COPY.format(manifest=str(copy / toy.name)))
    trainer = Trainer(Launcher(*PAIR, program=(program,)), vae, tmp_path)
    started = time.monotonic()
    job = trainer.start(slice_of(images=240_000), toy, **WITHOUT_END)
    assert ends([job]) == [1] and time.monotonic() - started < 2 * AT_ONCE  # with the start of torch
    told = trainer.log().read_text()
    assert f"error: {broken}: not a readable Arrow file" in told
    assert "process 0 ends because another one is gone" in told and "pipeline/train/stage.py" not in told
