"""What a journal holds after any end of the process that wrote it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.download.journal import MAGIC, Fetched, Journal
from pipeline.download.retry import PASSING
from pipeline.errors import UserError
from pipeline.ledger import FAILURES, Unusable

DIGEST = bytes(range(32))
COUNT = 8
IMAGES = st.binary(max_size=50) | st.builds(Unusable, st.sampled_from(sorted(FAILURES)), st.text(max_size=10))
RECORDS = st.lists(
    st.tuples(st.integers(0, COUNT - 1), st.builds(Fetched, IMAGES, st.lists(st.text(max_size=9)).map(tuple))), max_size=12
)
BY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def write(path, records):
    """Returns where each record ends."""
    path.unlink(missing_ok=True)
    with Journal(path, DIGEST, COUNT) as journal:
        ends = [path.stat().st_size]
        for index, fetched in records:
            journal.add(index, fetched)
            ends.append(path.stat().st_size)
    return ends


def read(path, digest=DIGEST):
    with Journal(path, digest, COUNT) as journal:
        return {index: plain(journal.read(index)) for index in range(COUNT) if index in journal}


def plain(fetched):
    bad = fetched.image if isinstance(fetched.image, Unusable) else None
    return (bad.reason, bad.detail, fetched.notes) if bad else (fetched.image, fetched.notes)


def last(records):
    return {index: plain(fetched) for index, fetched in records}


@BY_FILE
@given(RECORDS)
def test_what_is_written_is_read(tmp_path, records):
    write(tmp_path / "journal", records)
    assert read(tmp_path / "journal") == last(records)


@BY_FILE
@given(RECORDS, st.integers(0, 2000), RECORDS)
def test_cut_anywhere_it_holds_what_was_whole(tmp_path, records, cut, more):
    path = tmp_path / "journal"
    ends = write(path, records)
    with open(path, "r+b") as file:
        file.truncate(min(cut, ends[-1]))
    whole = records[: max(0, sum(end <= cut for end in ends) - 1)]
    assert read(path) == last(whole)
    with Journal(path, DIGEST, COUNT) as journal:
        for index, fetched in more:
            journal.add(index, fetched)
    assert read(path) == last(whole + more)


@BY_FILE
@given(RECORDS.filter(bool), st.data())
def test_a_changed_byte_ends_it_there(tmp_path, records, data):
    path = tmp_path / "journal"
    ends = write(path, records)
    place = data.draw(st.integers(ends[0], ends[-1] - 1))
    changed = bytearray(path.read_bytes())
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    assert read(path) == last(records[: sum(end <= place for end in ends) - 1])


def test_failures_that_may_pass_are_not_settled(tmp_path):
    with Journal(tmp_path / "journal", DIGEST, len(FAILURES) + 1) as journal:
        assert not journal.is_settled(0)
        for index, reason in enumerate(FAILURES):
            journal.add(index, Fetched(Unusable(reason, "")))
        unsettled = {reason for index, reason in enumerate(FAILURES) if not journal.is_settled(index)}
        journal.add(len(FAILURES), Fetched(b"image"))
        assert journal.is_settled(len(FAILURES))
    assert unsettled == PASSING


@pytest.mark.parametrize("content", [b"", b"something else", MAGIC, MAGIC + DIGEST[:-1]])
def test_what_is_no_journal_is_started_anew(tmp_path, content):
    (tmp_path / "journal").write_bytes(content)
    assert read(tmp_path / "journal") == {}
    assert (tmp_path / "journal").read_bytes() == MAGIC + DIGEST


def test_that_of_another_list_is_started_anew(tmp_path):
    write(tmp_path / "journal", [(0, Fetched(b"image"))])
    assert read(tmp_path / "journal", digest=bytes(32)) == {}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Journal(tmp_path / "file" / "journal", DIGEST, 1):
        pass


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path, full_disk):
    with Journal(tmp_path / "journal", DIGEST, 2) as journal:
        journal.add(0, Fetched(b"image"))
        with full_disk(5000), pytest.raises(UserError, match=f"^{tmp_path}: 100,[0-9]* bytes cannot be written") as caught:
            journal.add(1, Fetched(b"x" * 100_000))
    assert "make room" in str(caught.value)
    assert read_two(tmp_path / "journal") == {0: (b"image", ())}


def read_two(path):
    with Journal(path, DIGEST, 2) as journal:
        return {index: plain(journal.read(index)) for index in range(2) if index in journal}
