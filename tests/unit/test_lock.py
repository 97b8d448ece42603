"""Locks that processes hold: they end with their holder, and say who that is."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.lock import Holder, Lock, alone_at, be_alone

HOLDS = """
import sys, time, pathlib, subprocess
from pipeline.lock import *
lock = Lock(pathlib.Path(sys.argv[1]))
print(lock.take(wait=True), flush=True)
lock.write(Holder(command="mine"))
{more}
print("written", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "locks" / "x.lock"


class Other:
    """A process that holds a lock until it is told to end."""

    def __init__(self, path, more=""):
        command = [sys.executable, "-c", HOLDS.format(more=more), path]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "True\n" and self.process.stdout.readline() == "written\n"

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close(), self.process.stdout.close()


@pytest.fixture
def hold():
    others = []

    def start(*arguments):
        others.append(Other(*arguments))
        return others[-1]

    yield start
    for other in others:
        other.kill()


def test_a_lock_names_its_holder_and_goes_with_it(path, hold):
    lock = Lock(path)
    assert lock.read() is None
    other = hold(path)
    assert not lock.take()
    holder = lock.read()
    assert holder.pid == other.pid and holder.command == "mine" and not holder.ended
    assert str(holder).startswith(f"process {other.pid} on ")
    other.kill()
    assert lock.take() and lock.read() == holder  # until the new one writes
    lock.write(Holder(pid=7))
    assert lock.read().pid == 7
    lock.release()


def test_programs_that_the_holder_starts_do_not_hold_it(path, hold):
    more = "child = subprocess.Popen(['sleep', '60'])\nprint(child.pid, flush=True) if 0 else None"
    other = hold(path, more + f"\npathlib.Path({str(path)!r} + '.child').write_text(str(child.pid))")
    child = int((path.parent / "x.lock.child").read_text())
    other.kill()
    try:
        os.kill(child, 0)
        assert Lock(path).take()
    finally:
        os.kill(child, signal.SIGKILL)


def test_processes_that_the_holder_forks_do_not_hold_it(path):
    def sleep():
        time.sleep(60)

    lock = Lock(path)
    assert lock.take()
    child = multiprocessing.get_context("fork").Process(target=sleep)
    child.start()
    try:
        lock.release()
        assert Lock(path).take() and child.is_alive()
    finally:
        child.kill()
        child.join()


def test_whoever_waits_gets_it(path, hold):
    other = hold(path)
    waiting = subprocess.Popen([sys.executable, "-c", HOLDS.format(more=""), path], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    other.kill()
    out, _ = waiting.communicate("end\n", 30)
    assert out.startswith("True") and Lock(path).read().pid == waiting.pid


def test_a_note_that_is_read_half_is_read_again(path, monkeypatch):
    lock, read, seen = Lock(path), type(path).read_bytes, []
    assert lock.take()
    lock.write(Holder(pid=7))

    def torn(self):
        seen.append(self)
        return read(self)[: 20 if len(seen) < 3 else None]

    monkeypatch.setattr(type(path), "read_bytes", torn)
    assert lock.read().pid == 7 and len(seen) == 3
    lock.release()


def test_a_note_is_read_whole_while_it_is_written(path):
    """Every read finds one of two notes of very different lengths."""
    lock, notes = Lock(path), (Holder(pid=1), Holder(pid=2, wrote=tuple(f"results/{n}" for n in range(100))))
    assert lock.take()
    lock.write(notes[0])
    reads = f"import pathlib; from pipeline.lock import *; lock = Lock(pathlib.Path({str(path)!r}))\n"
    reads += "print(sorted({str(getattr(lock.read(), 'pid', None)) for _ in range(4000)}))"
    reader = subprocess.Popen([sys.executable, "-c", reads], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while reader.poll() is None:
        for note in notes:
            lock.write(note)
    assert set(json.loads(reader.communicate()[0].replace("'", '"'))) <= {"1", "2"}
    lock.release()


def test_a_place_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file/x.lock: cannot be locked"):
        Lock(tmp_path / "file" / "x.lock").take()
    (tmp_path / "folder.lock").mkdir()
    with pytest.raises(UserError, match=r"cannot be locked .* flock"):
        Lock(tmp_path / "folder.lock").take()


def test_what_another_process_fetches_is_waited_for(tmp_path, hold, capfd):
    other = hold(tmp_path / ".file.tar.lock")
    alone = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import pathlib; from pipeline.lock import *\nwith alone_at(pathlib.Path({str(tmp_path / 'file.tar')!r})): pass",
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = alone.stderr.readline()
    assert line.startswith(f"{tmp_path}/file.tar: process {other.pid} on ") and line.endswith("fetches it; waiting for that\n")
    other.kill()
    assert alone.wait(30) == 0
    alone.stderr.close()
    with alone_at(tmp_path / "file.tar"):
        assert not Lock(tmp_path / ".file.tar.lock").take()
    assert Lock(tmp_path / ".file.tar.lock").take()


def test_the_second_driver_is_told_who_the_first_is(path, hold):
    other = hold(path)
    with pytest.raises(UserError, match=f"another run is going on here: process {other.pid} on .* since 20"):
        be_alone(path, None)
    noted = Lock(path).read()
    other.kill()
    with pytest.raises(UserError, match=f"has ended here while this one was planned .process {other.pid} on "):
        be_alone(path, None)
    drives = f"import pathlib; from pipeline.lock import *; path = pathlib.Path({str(path)!r}); be_alone(path, Lock(path).read())"
    assert subprocess.run([sys.executable, "-c", drives], cwd=ROOT).returncode == 0
    assert Lock(path).read().ended and Lock(path).read() != noted
