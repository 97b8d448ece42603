import json
from pathlib import Path

import pytest

from pipeline.caption.journal import Journal, Written
from pipeline.errors import UserError

FIRST = {"k0": [Written(None, "a dog 🙂", False)], "k1": [Written(0, "", False), Written(1, "a cat", True)]}
SECOND = {"k2": [Written(None, "a line\nbreak\u2028", False)]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two batches."""
    with Journal(tmp_path / "work" / "00000.jsonl", "mine") as journal:
        journal.add(FIRST)
        journal.add(SECOND)
    return journal.path


def found(path: Path, fingerprint: str = "mine") -> dict:
    with Journal(path, fingerprint) as journal:
        return journal.written


def test_what_was_written_is_found_again(path: Path) -> None:
    assert found(path) == FIRST | SECOND
    assert all(isinstance(caption, Written) for captions in found(path).values() for caption in captions)


def test_a_batch_is_a_line_behind_the_fingerprint(path: Path) -> None:
    head, *batches = path.read_bytes().split(b"\n")
    assert json.loads(head) == {"fingerprint": "mine"} and len(batches) == 3 and not batches[-1]


def test_wherever_it_is_cut_the_whole_batches_stay_and_it_goes_on(path: Path) -> None:
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 0x0A]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        expected = {**(FIRST if length >= ends[1] else {})}
        with Journal(path, "mine") as journal:
            assert journal.written == expected
            journal.add(SECOND)
        assert found(path) == expected | SECOND


@pytest.mark.parametrize("rest", [b"\0" * 50, b"\0" * 50 + b"\n", b"{]\n", b"\xff\xfe\n"])
def test_what_a_machine_without_power_leaves_is_cut_away(path: Path, rest: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data + rest)
    assert found(path) == FIRST | SECOND and path.read_bytes() == data


def test_the_journal_of_something_else_is_started_anew(path: Path) -> None:
    assert found(path, "other") == {} and found(path, "mine") == {}


def test_two_at_a_time_are_refused(path: Path) -> None:
    with Journal(path, "mine"), pytest.raises(UserError, match="another process writes these captions"):
        found(path)
    assert found(path) == FIRST | SECOND


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(UserError, match=r"work/00000\.jsonl: cannot be written"):
        found(tmp_path / "work" / "00000.jsonl")
