"""Rules in containers. Where there is no engine, a program of its name notes what it is asked for and runs it as it is."""

import json
import os
import sys

import pytest

# Takes `apptainer exec --home FOLDER … IMAGE bash -c COMMAND`; all that a rule does is in COMMAND.
ENGINE = f"""#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
if words == ["--version"]:
    print("apptainer version 1.3.4")
    sys.exit()
with open(os.environ["ASKED"], "a") as file:
    file.write(json.dumps(words) + "\\n")
os.execvp(words[-3], words[-3:])
"""
pytestmark = pytest.mark.timeout(900)  # on a machine that has much else to do

TARGET = "results/data/coco/00000.json"  # by two jobs, each of a rule of its own


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Puts the program first on the path; gives the file of what it is asked for."""
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(ENGINE)
    program.chmod(0o755)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.jsonl"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "asked.jsonl"


def test_rules_run_in_the_image_when_asked_and_those_who_do_not_ask_see_no_rerun(project, engine):
    done = project.snakemake("--sdm", "apptainer", "--apptainer-args=--nv", "--", TARGET)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [json.loads(line) for line in engine.read_text().splitlines()]
    assert len(asked) == 2
    for words in asked:
        assert words[0] == "exec" and "--nv" in words and words[-4:-1] == ["shoestring.sif", "bash", "-c"], words
        assert "python -m pipeline" in words[-1]

    engine.unlink()
    (project.folder / "results/data/coco/00000.json").unlink()
    done = project.snakemake("--", TARGET)
    assert done.returncode == 0 and not engine.exists(), done.stdout + done.stderr
    without = project.folder / "Snakefile"
    text = without.read_text()
    without.write_text("".join(line for line in text.splitlines(True) if not line.startswith("container:")))
    assert without.read_text() != text
    assert not project.planned(target=TARGET)


def test_a_command_that_is_too_long_for_an_argument_runs_in_the_image(project, engine):
    """Linux takes no argument of more than 128 kB, and a container's command is one argument."""
    options = " ".join(f"--encoded=results/encoded/{'a' * 60}/{number:05d}.json" for number in range(2000))
    assert len(options) > 2**17
    (project.folder / "long.smk").write_text(
        f'rule long:\n    output: "long.txt"\n    params: options="{options}"\n    container: "shoestring.sif"\n'
        '    shell: "echo {params.options} | wc --bytes > {output}"\n'
    )
    done = project.snakemake("--snakefile", "long.smk", "--sdm", "apptainer", overlays=())
    assert done.returncode == 0, done.stdout + done.stderr
    assert int((project.folder / "long.txt").read_text()) == len(options) + 1
    assert len(engine.read_text()) < 2**16
