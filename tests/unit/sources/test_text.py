import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.text import NESTED, NOT_TEXT, NOT_UTF8, clean_caption, clean_field, printable, safe_key, stable_shard

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


# Pieces that cleaning takes out, and that come to be when it does.
PIECES = [
    "<",
    ">",
    "<b>",
    "</p>",
    "<!--",
    "-->",
    "<script>",
    "&amp;",
    "&",
    "lt;",
    "#38;",
    "http://",
    "www.",
    "x.org",
    "@",
    "..",
    "!?",
]
PIECES += [
    " ",
    "a",
    "é",
    "\u0301",
    "\u200d",
    "\u200c",
    "\u200b",
    "\u212a",
    "🎉",
    ".jpg",
    "IMG_",
    "12",
    "='",
    "'",
    "/",
    "-",
    "\xa0",
]
TRICKY = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(ANY_TEXT | TRICKY | st.binary() | st.none() | st.integers() | st.lists(st.text()))
@settings(max_examples=600)
def test_a_clean_caption_can_be_stored_and_is_clean(raw):
    text, note = clean_caption(raw)
    if text is None:
        assert note or not (isinstance(raw, str | bytes) and clean_field(raw))
    else:
        assert note is None
        assert text.encode("utf-8").decode("utf-8") == " ".join(text.split())
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b\u202e]", text)
        assert unicodedata.is_normalized("NFC", text)
        assert clean_caption(text) == (text, None)


@given(st.text(st.characters(categories=["L", "Nd"], exclude_characters="ʹ"), min_size=1, max_size=8), st.integers(1, 6))
def test_words_of_any_script_stay_as_they_are(word, count):
    text = unicodedata.normalize("NFC", " ".join([word] * count))
    assert clean_caption(text) == (text, None) or re.fullmatch("(?i:img|dsc).*", text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<script>",
        "<a b=",
        "<a b='",
        "<b ",
        "&amp;",
        "amp;&",
        "<",
        "a@",
        "@a.",
        "!?",
        "http://",
        "www.",
        "\u200c",
        "( ",
        "<a b=c ",
    ],
)
def test_hostile_captions_take_no_longer_than_long_ones(piece):
    text, _ = clean_caption(piece * (2**20 // len(piece)))
    assert text is None or clean_caption(text) == (text, None)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        ("<br/><p> </p>", "markup"),
        ("&nbsp;&#32;", "markup"),
        ("https://example.org/cat.jpg", "an address"),
        ("me@example.org www.example.org", "an address"),
        ("IMG_1234.JPG", "a file name"),
        ("photo-of-a-cat.png", "a file name"),
        ("DSC_0042", "a file name"),
        ("\u200b\u2060", "invisible characters"),
    ],
)
def test_a_caption_that_cleaning_empties_says_so(raw, what):
    assert clean_caption(raw) == (None, f"caption is {what} only")


def test_markup_without_end_is_no_caption():
    assert clean_caption("&" + "amp;" * 20) == (None, NESTED)


def test_fields_are_not_cleaned_as_captions_are():
    assert clean_field(" http://x.org/a.jpg?b=1&amp;c=2\0 ") == "http://x.org/a.jpg?b=1&amp;c=2"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"  a\tcat\r\n on  a mat ", "a cat on a mat"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("a\0 c\x07at\x1b", "a cat"),
        ("👩‍👩‍👧 family 🏳️‍🌈", "👩‍👩‍👧 family 🏳️‍🌈"),
        ("قطة على سجادة \u200f!", "قطة على سجادة !"),
        ("שלום \u202eעולם", "שלום עולם"),
        ("ca\u00adt\u200b on \ufeffa\u2060 mat", "cat on a mat"),
        ("cafe\u0301", "caf\u00e9"),
        ("می‌خواهم", "می‌خواهم"),
        ("क्‍ष और बिल्ली", "क्‍ष और बिल्ली"),
        ("a\u200d cat\u200c", "a cat"),
        ("🏴󠁧󠁢󠁳󠁣󠁴󠁿 🎉🎉🎉🎉", "🏴󠁧󠁢󠁳󠁣󠁴󠁿 🎉🎉🎉🎉"),
        ("一只猫在垫子上！！！", "一只猫在垫子上！"),
        ("Fish &amp; chips &#233; caf&eacute; &amp;lt;3", "Fish & chips é café <3"),
        ("AT&T, R&D, rock&parade, &nothing;", "AT&T, R&D, rock&parade, &nothing;"),
        ("<p>one</p><p>two</p><br/>three", "one two three"),
        ("H<sub>2</sub>O and <a href='x' title=\"y\">a link</a>", "H2O and a link"),
        ("<script>alert('x')</script><!-- no --><STYLE type='a'>b{}</STYLE>a cat", "a cat"),
        ("a < b, a<b and b>c, <3, C++, x <b and c> y", "a < b, a<b and b>c, <3, C++, x <b and c> y"),
        ("<PERSON> and <PERSON> at the beach", "<PERSON> and <PERSON> at the beach"),
        ("a cat https://x.org/a.jpg?b=1&c=2, on a mat", "a cat, on a mat"),
        ("a cat (http://x.org/a.jpg)", "a cat ()"),
        ("看http://x.com/a的图片 www.example.com", "看的图片"),
        ("mail me@mail.example.org or mailto:you@x.org @home 5@6", "mail or @home 5@6"),
        ("a red bicycle.JPG", "a red bicycle"),
        ("猫.png", "猫"),
        ("made with Node.js and a .jpg in the middle", "made with Node.js and a .jpg in the middle"),
        ("wow!!!!!! really???? yes,, ?!?!?!", "wow! really? yes, ?!"),
        ("wait..... what -------- no ! ! ! (((art)))", "wait... what - no ! (art)"),
        ("C++ -- 'quoted' \"\" (()) 10:30, 3.5", "C++ -- 'quoted' \"\" (()) 10:30, 3.5"),
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
