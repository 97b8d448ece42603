import gzip
import io
import zipfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources import members as module
from pipeline.sources.members import gunzip, members, stem

FILES = [("a.txt", b"one"), ("deep/b.bin", b"\0" * 70_000), ("c", b""), ("ü d.jpg", b"x" * 5)]


def zip_bytes(files, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def open_bytes(tmp_path):
    """Contents of the members of an archive of these bytes, by name."""

    def go(data, limit=10**6):
        path = tmp_path / "archive"
        path.write_bytes(data)
        return {member.name: member.read(limit) for member in members(path)}

    return go


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(module, "FREE_BYTES", 100_000)


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_of_any_compression(open_bytes, make, kind):
    assert open_bytes(make.tar(FILES, kind)) == dict(FILES)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_any_compression(open_bytes, compression):
    assert open_bytes(zip_bytes(FILES, compression)) == dict(FILES)


@pytest.mark.parametrize("pack", ["tar", "zip"])
def test_folders_and_hidden_members_are_passed_over(open_bytes, make, pack):
    files = [("a/", b""), ("__MACOSX/._b.jpg", b"1"), (".DS_Store", b"1"), ("./b.jpg", b"2")]
    data = zip_bytes(files) if pack == "zip" else make.tar(files[1:])
    assert open_bytes(data) == {"b.jpg": b"2"}


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:\\x.jpg", "../.x"])
@pytest.mark.parametrize("pack", ["tar", "zip"])
def test_names_that_leave_the_folder_are_unsafe_and_others_are_read(open_bytes, make, pack, name):
    found = open_bytes((zip_bytes if pack == "zip" else make.tar)([(name, b"1"), ("ok", b"2")]))
    assert [getattr(content, "reason", content) for content in found.values()] == ["unsafe_member", b"2"]


def test_links_in_zips_are_unsafe(open_bytes):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert open_bytes(buffer.getvalue())["link.jpg"].reason == "unsafe_member"


def test_an_encrypted_or_damaged_member_of_a_zip_costs_no_other(open_bytes):
    data = bytearray(zip_bytes([("locked", b"1" * 100), ("broken", b"2" * 100), ("good", b"3")], zipfile.ZIP_STORED))
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + flags] |= 1
    data[data.index(b"2" * 100)] = 0
    found = open_bytes(bytes(data))
    assert [getattr(content, "reason", content) for content in found.values()] == ["unreadable_file", "unreadable_file", b"3"]
    assert ("encrypted" in found["locked"].detail, "CRC" in found["broken"].detail) == (True, True)


@pytest.mark.parametrize("pack", ["tar", "zip"])
def test_a_member_beyond_the_limit_is_not_read(open_bytes, make, pack):
    found = open_bytes((zip_bytes if pack == "zip" else make.tar)(FILES), limit=1000)
    assert (found["deep/b.bin"].reason, found["a.txt"]) == ("too_large", b"one")


def test_a_zip_member_never_gives_more_than_it_claims(open_bytes):
    data = bytearray(zip_bytes([("bomb", b"\0" * 10**6)]))
    claimed = (1000).to_bytes(4, "little")
    data[data.index(b"PK\x03\x04") + 22 :][:4] = claimed
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = claimed
    content = open_bytes(bytes(data))["bomb"]
    assert isinstance(content, Unusable) or len(content) <= 1000


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
def test_a_tar_bomb_is_stopped(open_bytes, make, small_limits, kind):
    with pytest.raises(Unusable, match=r"^too_large: decompresses to more than"):
        open_bytes(make.tar([(f"{number}", bytes(10**7)) for number in range(30)], kind), limit=1)


def test_a_zip_bomb_is_stopped(open_bytes, small_limits):
    with pytest.raises(Unusable, match=r"^too_large: decompresses to more than"):
        open_bytes(zip_bytes([("one", bytes(10**6)), ("two", bytes(10**7))]))


def test_a_gzip_bomb_is_stopped(small_limits):
    data = gzip.compress(bytes(10**8))
    with pytest.raises(Unusable, match=r"^too_large"):
        gunzip(io.BytesIO(data), len(data)).read()


@pytest.mark.parametrize(("before", "end", "reason"), [(b"", -20, "truncated_archive"), (b"\0", None, "damaged_archive")])
def test_a_broken_gzip_is_told(before, end, reason):
    data = before + gzip.compress(b"some text" * 1000)[:end]
    with pytest.raises(Unusable) as caught:
        gunzip(io.BytesIO(data), len(data)).read()
    assert caught.value.reason == reason


def test_a_cut_zip_is_damaged(open_bytes):
    with pytest.raises(Unusable, match=r"^damaged_archive: no zip, or one that is cut off"):
        open_bytes(zip_bytes(FILES)[:-30])


def test_a_file_that_is_not_there_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        list(members(tmp_path / "none.tar"))


@example(places=[(0.9921875, 1)])  # an offset before the first byte
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_in_a_zip_never_crashes(tmp_path, places):
    whole = bytearray(zip_bytes(FILES))
    for share, value in places:
        whole[int(share * len(whole))] = value
    path = tmp_path / "a.zip"
    path.write_bytes(whole)
    try:
        assert all(isinstance(member.read(10**6), bytes | Unusable) for member in members(path))
    except Unusable as failure:
        assert failure.reason in ("damaged_archive", "truncated_archive", "too_large")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./000/ab-c.jpg", "ab-c"),
        ("sa_1.txt", "sa_1"),
        ("x.y.PNG", "x.y"),
        ("plain", "plain"),
        ("v1.5", "v1.5"),
        ("a\\b.webp", "b"),
    ],
)
def test_a_stem_is_a_name_without_folder_and_suffix_of_an_image(name, expected):
    assert stem(name) == expected


def test_members_of_a_tar_are_read_in_pieces_too(tmp_path, make):
    (tmp_path / "a.tar").write_bytes(make.tar([("a", b"line one\nline two\n"), ("b", b"3")]))
    lines = [list(member.file) for member in members(tmp_path / "a.tar")]
    assert lines == [[b"line one\n", b"line two\n"], [b"3"]]
