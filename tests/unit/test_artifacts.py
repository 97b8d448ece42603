"""The on-disk contract: atomic writes, sidecars."""

import json
import os

import pytest

from pipeline import artifacts
from pipeline.artifacts import atomic, read_json, read_sidecar, write_sidecar
from pipeline.errors import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.bin"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_full_write_replaces_what_was_there(tmp_path):
    file = tmp_path / "new/a.bin"
    with atomic(file) as temporary:
        assert not file.exists()
        temporary.write_text("whole")
    assert file.read_text() == "whole" and os.listdir(file.parent) == ["a.bin"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_unreadable_json_names_the_file(tmp_path, content):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(file)


@pytest.fixture
def sidecar(tmp_path):
    data = tmp_path / "deep/00000.tar"
    data.parent.mkdir()
    data.write_bytes(b"12345")
    return write_sidecar(tmp_path / "side/00000.json", "images", {"images": (data, 3)}, {"note": 1})


def test_a_sidecar_is_read_back(sidecar):
    found = read_sidecar(sidecar.path, "images")
    assert found.rows("images") == 3 and found.file("images").read_bytes() == b"12345" and found.info == {"note": 1}


def test_a_sidecar_holds_no_times(sidecar):
    first = sidecar.path.read_bytes()
    os.utime(sidecar.file("images"), (1, 1))
    write_sidecar(sidecar.path, "images", {"images": (sidecar.file("images"), 3)}, {"note": 1})
    assert sidecar.path.read_bytes() == first


def test_a_missing_or_shortened_file_is_noticed(sidecar):
    sidecar.file("images").write_bytes(b"123")
    with pytest.raises(UserError, match=r"00000\.tar: missing or changed"):
        read_sidecar(sidecar.path, "images")
    with pytest.raises(UserError, match="not a sidecar of kind 'captions'"):
        read_sidecar(sidecar.path, "captions")


@pytest.mark.parametrize("files", [None, [], {"images": None}, {"images": {"path": "x", "rows": "3", "bytes": 1, "sha256": ""}}])
def test_a_record_that_is_none_is_named(sidecar, files):
    artifacts.write_json(sidecar.path, {"kind": "images", "files": files, "info": {}})
    with pytest.raises(UserError, match=r"00000\.json: damaged, a record of a file is none"):
        read_sidecar(sidecar.path, "images")


def test_a_file_that_a_sidecar_does_not_name(sidecar):
    with pytest.raises(UserError, match=r"00000\.json: names no file 'ledger'"):
        read_sidecar(sidecar.path, "images").file("ledger")


def test_a_changed_byte_is_noticed_by_who_reads_the_file_whole(sidecar):
    assert sidecar.checked("images").read_bytes() == b"12345"
    sidecar.file("images").write_bytes(b"12344")
    with pytest.raises(UserError, match=r"00000\.tar: content differs from the sha256 in .*00000\.json.*verify --repair"):
        read_sidecar(sidecar.path, "images").checked("images")


def test_a_table_that_is_none_is_named(sidecar):
    with pytest.raises(UserError, match=r"00000\.tar: not a readable Parquet file"):
        sidecar.table("images", ["key"])


def test_json_keeps_the_given_order(tmp_path):
    artifacts.write_json(tmp_path / "x.json", {"b": 1, "a": "é"})
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a"]
