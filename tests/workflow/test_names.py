"""Names that a shell would take for commands: of folders, files, captions and values of the configuration."""

import json
import re
import subprocess

import pandas as pd
import pytest

from tests.pictures import jpeg
from tests.workflow.conftest import Project

FOLDER = 'it\'s a "q" ü $(touch made) `touch made` ; & |'  # no braces: Snakemake takes those of its own folder for fields
FILES = ["a b", "it's", '"q"', "$(touch made)", "`touch made`", "ü\u202e", "new\nline", "-rf", "{x}", "*", ";touch made;"]
TEXT = 'it\'s "q" $(touch made) `touch made` {x} ; touch made\n| touch made ü \\'
COMMAND = re.compile(r"^Shell command: (python .*)$", re.M)
SHELL = 'set -euo pipefail; python() { for word in "$@"; do printf "%s\\0" "$word"; done; }; '


@pytest.fixture
def hostile(tmp_path):
    """A project in such a folder, whose source has such files and one that points outside, and its overlay."""
    project = Project(tmp_path / FOLDER)
    photos = project.folder / f"photos {FOLDER}"
    photos.mkdir()
    for number, name in enumerate(FILES):
        (photos / f"{name}.jpg").write_bytes(jpeg(number, width=64, height=64))
        (photos / f"{name}.txt").write_text(TEXT)
    (tmp_path / "outside.jpg").write_bytes(jpeg(99, width=64, height=64))
    (photos / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    source = {"kind": "folder", "path": str(photos), "caption": "keep", "min_side": 16, "license": TEXT}
    values = {"sources": {"mine": source}, "filters": {"take_down": f"{TEXT}.txt", "licences": [TEXT]}}
    values |= {"report": {"title": TEXT, "device_name": TEXT}, "captioning": {"prompts": [TEXT]}}
    return project, project.overlay("my.yaml", json.dumps(values))


def overlays(overlay):
    return ("tests/workflow/smoke.yaml", overlay)


def test_every_command_of_the_run_reaches_its_step_word_for_word(hostile, tmp_path):
    """The shell runs them all, with a `python` that prints its words."""
    project, overlay = hostile
    done = project.snakemake("--dry-run", "--printshellcmds", "--", "all", overlays=overlays(overlay))
    commands = COMMAND.findall(done.stdout)
    assert len(commands) > 20, done.stdout + done.stderr
    words = []
    for command in commands:
        alone = command.partition(" 2>&1 | tee ")
        shell = subprocess.run(["bash", "-c", SHELL + alone[0]], cwd=tmp_path, capture_output=True, check=True)
        words.append(shell.stdout.decode().split("\0")[2:-1])
        assert subprocess.run(["bash", "-nc", command], capture_output=True).returncode == 0
    configs = [json.loads(one[one.index("--config") + 1]) for one in words if "--config" in one]
    assert {text for one in configs for text in strings(one)} >= {TEXT, f"{TEXT}.txt"}
    assert not list(tmp_path.rglob("made"))


def strings(value):
    if isinstance(value, dict | list):
        return {text for item in (value.values() if isinstance(value, dict) else value) for text in strings(item)}
    return {value} if isinstance(value, str) else set()


def test_such_files_are_collected_captioned_and_encoded(hostile, tmp_path):
    project, overlay = hostile
    done = project.snakemake("--", "results/encoded/mine/00000.json", overlays=overlays(overlay))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ledger = pd.read_parquet(project.folder / "results/data/mine/00000.parquet")
    captions = pd.read_parquet(project.folder / "results/captions/mine/00000.parquet")
    assert len(ledger) == len(FILES) + 1
    assert set(ledger["status"]) == {"ok"}, ledger[["origin", "detail"]]  # a user may link to pictures of their own
    assert set(captions["caption"].dropna()) == {" ".join(TEXT.split())} and len(captions) == len(FILES) + 1
    assert not list(tmp_path.rglob("made"))
