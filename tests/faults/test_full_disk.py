"""A disk that is full, or that cannot be written, in every step of a run: a file system of its own stands for it."""

import os
import subprocess
from contextlib import contextmanager

import pytest

from tests.chain import files, one_line

ROOM = "64m"  # of the file system; a run takes 36 MB


@contextmanager
def mounted(folder, *arguments):
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, folder], capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip(f"needs root and the right to mount ({done.stderr.strip() if done else 'not root'}); run it as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def only(room, folder):
    """All but `room` bytes of a file system are taken."""
    ballast, state = folder / ".ballast", os.statvfs(folder)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room // state.f_frsize * state.f_frsize)
    yield
    ballast.unlink()


def first_of_each(steps):
    """The first step of every command."""
    return list({step.command: step for step in reversed(steps)}.values())[::-1]


@pytest.mark.timeout(900)  # on a machine that has much else to do
def test_every_step_says_that_the_disk_is_full_and_completes_once_there_is_room(chain, whole):
    folder, told = chain.folder / "full", {}
    with mounted(folder / "results", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs") as results:
        chain.prepare("full")
        for step in chain.steps:
            if step in first_of_each(chain.steps):
                with only(chain.written[step.name] // 2, results):
                    code, said = chain.run(step, folder)
                assert code == 1, f"{step.name}: {said}"
                told[step.command] = one_line(said)
                assert not list(results.rglob(".*.part")), step.name
            chain.succeeds(step, folder)
        assert files(folder) == files(whole)
    assert len(told) == 11
    for command, line in told.items():
        assert "make room" in line and ("results/" in line or str(folder) in line), f"{command}: {line}"


@pytest.mark.timeout(300)
def test_every_step_says_that_results_cannot_be_written(chain, whole):
    folder = chain.folder / "read-only"
    with mounted(folder / "results", "--bind", whole / "results"):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder / "results"], check=True)
        for step in first_of_each(chain.steps):
            code, said = chain.run(step, folder)
            line = one_line(said)
            assert code == 1 and "Read-only file system" in line and "results" in line, f"{step.name}: {line}"
