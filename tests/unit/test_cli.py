"""The command line: what a mistake prints, and that every step is listed."""

import json
import subprocess
import sys

import pytest

from pipeline.fingerprint import ROOT


def _pipeline(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_lists_the_steps_in_order():
    text = _pipeline("--help").stdout
    places = [
        text.index(f"│ {step} ") for step in ("collect", "caption", "encode", "manifest", "train", "evaluate", "card", "report")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "Missing option '--config'"),
        (["trian"], 2, "No such command 'trian'"),
        (["collect", "0", "--config", "{}", "--downloads", "x", "--out", "x.json"], 1, "--config: name: Field required"),
        (["config", "trian"], 1, "config: no step 'trian'"),
        (["config", "train"], 1, "give --source or --stage as the step needs"),
        (["config", "train", "--stage", "nowhere"], 1, "a name that exists"),
        (["config", "train", "--configfile", "none.yaml"], 1, "none.yaml"),
        (["show", "none.json"], 1, "none.json"),
        (["embedded", "nothing", "--out", "x"], 1, "embedded: no 'nothing'"),
        (["verify", "nowhere"], 1, "nowhere"),
        (["status", "--configfile", "none.yaml"], 1, "none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(arguments, code, message):
    done = _pipeline(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == code and len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ") and message in lines[0]


def test_config_prints_what_a_step_takes():
    done = _pipeline("config", "train", "--stage", "high_full")
    assert json.loads(done.stdout)["name"] == "high_full"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("OSError(28, 'No space left on device', 'a/b')", "error: a/b: cannot be written (No space left on device); make room"),
        ("OSError(30, 'Read-only file system', 'a/b')", "error: a/b: cannot be written (Read-only file system)"),
        ("MemoryError()", "error: out of memory (of this machine); lower the step's batch or workers"),
        ("RuntimeError('[enforce fail at x] DefaultCPUAllocator: not enough')", "error: out of memory ([enforce fail"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, said):
    harm = f"import sys, pipeline.cli as cli\ndef load(*files): raise {error}\ncli.running.load = load"
    code = f"{harm}\nsys.argv = ['x', 'config', 'train']\nsys.exit(cli.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_defect_keeps_its_traceback(tmp_path):
    harm = "import sys, pipeline.cli as cli; cli.running.load = lambda *files: 1 / 0"
    code = f"{harm}; sys.argv = ['x', 'config', 'train']; sys.exit(cli.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr


def test_ctrl_c_is_no_success_and_no_traceback():
    stopped = (
        "import os, signal, sys, time, pipeline.cli as cli; cli.running.load = lambda *files: os.kill(os.getpid(), signal.SIGINT)"
    )
    code = f"{stopped}; sys.argv = ['x', 'config', 'train']; sys.exit(cli.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == ""
