"""A GPU for each job that takes one, on a machine with several: Snakemake counts them, and hands out no device."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.lock import POLL_SECONDS, Holder, Lock

ANSWER_SECONDS = 120  # the driver may have to wake many GPUs


@contextmanager
def one_gpu(device: str) -> Iterator[None]:
    """Let this process see one GPU alone, which no other job of this user on this machine has. Call it before CUDA starts.

    Nothing is to be done where somebody has chosen (CUDA_VISIBLE_DEVICES, as by SLURM; torchrun), or there is no choice: on
    the CPU, or with one GPU. Waits, with a line, while all are taken.
    """
    chosen = {"CUDA_VISIBLE_DEVICES", "LOCAL_RANK"} & os.environ.keys()
    found = [] if chosen or device not in ("auto", "cuda") else gpus()
    if len(found) < 2:
        yield
        return
    lock, identifier = _free(found)
    os.environ["CUDA_VISIBLE_DEVICES"] = identifier
    try:
        lock.write(Holder())
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        lock.release()


def gpus() -> list[str]:
    """Identifiers of this machine's NVIDIA GPUs, or of the parts that one is divided into. None without nvidia-smi.

    Raises: UserError if it does not answer.
    """
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired:
        raise UserError(
            f"nvidia-smi -L: no answer in {ANSWER_SECONDS} s; look after the GPUs, or choose with CUDA_VISIBLE_DEVICES"
        ) from None
    parts = re.findall(r"\(UUID: (MIG-[\w/-]+)\)", told.stdout)
    return parts or re.findall(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", told.stdout, re.M)


def _free(identifiers: list[str]) -> tuple[Lock, str]:
    """A GPU that nobody has, with its lock."""
    folder, told = _folder(), False
    while True:
        for identifier in identifiers:
            lock = Lock(folder / f"{identifier.replace('/', '-')}.lock")
            if lock.take():
                return lock, identifier
        if not told:
            print(f"all {len(identifiers)} GPUs are taken by other jobs; waiting for one", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _folder() -> Path:
    """Of this machine and user. Raises: UserError if it is another's, who could keep all GPUs from us."""
    folder = Path(tempfile.gettempdir()) / f"shoestring-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or folder.is_symlink() or state.st_mode & 0o022:
        raise UserError(f"{folder}: must be a folder that this user alone can write to; remove it and run again")
    return folder
