import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.text import NOT_TEXT, NOT_UTF8, clean_caption, clean_field, printable, safe_key, stable_shard

ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # with surrogates and control characters


@given(ANY_TEXT)
def test_every_key_is_safe_and_stays_what_it_is(name):
    key = safe_key(name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key)
    assert safe_key(name) == safe_key(key) == key


@given(ANY_TEXT, ANY_TEXT)
def test_different_names_have_different_keys(one, other):
    assert (safe_key(one) == safe_key(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [("a b", "a.b"), ("a/b", "a_b"), ("../a", "a"), ("é", "è"), ("x" * 90, "x" * 91), ("", "_")]
)
def test_names_that_look_alike_have_different_keys(one, other):
    assert safe_key(one) != safe_key(other)


def test_the_name_of_an_ordinary_sample_is_its_key():
    assert safe_key("000000003") == "000000003"
    assert safe_key("cats_01-b") == "cats_01-b"


@given(st.text(), st.integers(1, 50))
def test_a_shard_is_one_of_the_shards_and_does_not_change(key, shards):
    assert stable_shard(key, shards) == stable_shard(key, shards) in range(shards)


def test_keys_spread_over_the_shards():
    counts = [0] * 4
    for number in range(4000):
        counts[stable_shard(f"{number:08d}", 4)] += 1
    assert min(counts) > 900


@given(ANY_TEXT | st.binary() | st.none() | st.integers() | st.lists(st.text()))
def test_a_clean_caption_can_be_stored_and_is_clean(raw):
    text, note = clean_caption(raw)
    if text is None:
        assert note in (None, NOT_UTF8, NOT_TEXT)
    else:
        assert note is None
        assert text.encode("utf-8").decode("utf-8") == " ".join(text.split())
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
        assert clean_caption(text) == (text, None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"  a\tcat\r\n on  a mat ", "a cat on a mat"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("a\0 c\x07at\x1b", "a cat"),
        ("👩‍👩‍👧 family 🏳️‍🌈", "👩‍👩‍👧 family 🏳️‍🌈"),
        ("قطة على سجادة \u200f!", "قطة على سجادة \u200f!"),
        ("x" * 10_000, "x" * 10_000),
        (b" \n\0", None),
        ("", None),
        (None, None),
    ],
)
def test_captions(raw, expected):
    assert clean_caption(raw) == (expected, None)


@pytest.mark.parametrize(
    ("raw", "note"),
    [(b"caf\xe9", NOT_UTF8), ("caf\udce9", NOT_UTF8), ("\ud83d half an emoji", NOT_UTF8), (7, NOT_TEXT), (["a"], NOT_TEXT)],
)
def test_what_is_no_caption_says_why(raw, note):
    assert clean_caption(raw) == (None, note)
    assert clean_field(raw) is None


@given(ANY_TEXT)
def test_names_can_be_shown(name):
    assert printable(name).isprintable()
    printable(name).encode("utf-8")


def test_a_plain_name_is_shown_as_it_is():
    assert printable("data/Ünï 猫.jpg") == "data/Ünï 猫.jpg"
    assert printable("a\nb\udcff") == "a\\nb\\udcff"
