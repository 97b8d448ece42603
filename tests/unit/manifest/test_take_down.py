import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.fingerprint import ROOT
from pipeline.manifest.take_down import add, parse, read


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    words = [sys.executable, "-m", "pipeline", "take-down", *arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_what_is_added_is_read_and_what_was_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "take_down.txt"
    assert read(file) == {} and add(file, [("photos", "a-1"), ("photos", "b_2"), ("photos", "a-1")]) == 2
    written = "# asked for on Monday\r\n\n  photos/c # a remark\nphotos/a-1"
    file.write_bytes(written.encode())
    assert add(file, [("photos", "a-1"), ("photos", "c")]) == 0 and file.read_bytes() == written.encode()
    assert add(file, [("cc12m", "a-1"), ("photos", "c")]) == 1
    assert file.read_bytes() == (written + "\ncc12m/a-1\n").encode()
    assert read(file) == {"photos": {"a-1", "c"}, "cc12m": {"a-1"}}


NO_SAMPLES = ["photos", "photos/", "/a", "photos/a b", "photos/a/b", "Photos/a", "photos/a.jpg", "photos/" + "a" * 81]


@pytest.mark.parametrize("text", NO_SAMPLES)
def test_what_is_no_source_and_key_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^here: not SOURCE/KEY, such as"):
        parse(text, "here")
    file = tmp_path / "take_down.txt"
    file.write_text(f"# remark\nphotos/a\n{text}\n")
    with pytest.raises(UserError, match=r"take_down\.txt:3: '.*': not SOURCE/KEY"):
        read(file)


def test_the_command_says_how_many_were_new_and_what_to_do(tmp_path: Path) -> None:
    done = command(tmp_path, "photos/a", "photos/b")
    assert done.returncode == 0 and done.stdout.startswith("take_down.txt: 2 new, 0 there before\nRun snakemake again")
    (tmp_path / "more.txt").write_text("photos/b\nphotos/c  # with a remark\n")
    done = command(tmp_path, "photos/a", "--from", "more.txt")
    assert done.stdout.startswith("take_down.txt: 1 new, 2 there before\n")
    assert (tmp_path / "take_down.txt").read_text() == "photos/a\nphotos/b\nphotos/c\n"
    done = command(tmp_path, "photos/a", "--file", "take_down.txt")
    assert done.stdout == "take_down.txt: 0 new, 1 there before\n"
    assert read(tmp_path / "take_down.txt") == {"photos": {"a", "b", "c"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "take-down: names no sample"),
        (["photos/a", "a b"], "take-down: 'a b': not SOURCE/KEY"),
        (["photos/a", "--from", "absent.txt"], "absent.txt: cannot be read"),
        (["photos/a", "--from", "latin.txt"], "latin.txt: cannot be read as UTF-8"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pipeline", "take-down", *arguments])
    (tmp_path / "take_down.txt").write_text("photos/z\n")
    (tmp_path / "latin.txt").write_bytes(b"photos/\xe9\n")
    code, told = main(), capsys.readouterr().err
    assert code == 1 and told.startswith("error: ") and message in told
    assert told.count("\n") == 1 and (tmp_path / "take_down.txt").read_text() == "photos/z\n"
