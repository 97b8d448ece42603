import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.captions import letters, plain


@pytest.mark.parametrize(
    "other",
    [
        "a red bus, parked",
        "A RED BUS PARKED",
        " a red\tbus\u00a0—\u3000parked!!",
        "a  “red” bus (parked)…",
        "ared busparked",
        "a red buſ parked",
    ],
)
def test_captions_that_are_the_same_but_for_what_does_not_count(other: str) -> None:
    assert plain(other) == plain("A red bus parked.")


@pytest.mark.parametrize("other", ["a red bus parks", "a red bus parked 2", "a réd bus parked", "a red bus parked + a dog"])
def test_captions_that_differ_in_what_counts(other: str) -> None:
    assert plain(other) != plain("A red bus parked.")


def test_the_way_accents_are_coded_does_not_count() -> None:
    for text in ("Ein Café in Zürich", "Ｆｏｏ ﬁsh", "ΌΔΟΣ", "हिन्दी कैप्शन।", "Å K"):
        assert len({plain(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}) == 1
    assert plain("Straße") == plain("STRASSE") and plain("ﬁsh") == plain("fish")
    assert plain("。、！ …") == plain("!?") == b""


# A mark that is cut off its letter is another text.
LETTERS = st.text(st.characters(exclude_categories=["M", "Cs"]), max_size=20)


@given(LETTERS, st.text(alphabet=" .,!?\t—。", max_size=5), st.integers(0, 20))
def test_case_and_punctuation_anywhere_change_nothing(text: str, marks: str, place: int) -> None:
    assert plain(text[:place] + marks + text[place:]) == plain(text) == plain(plain(text).decode())


def test_letters_of_any_script_are_counted() -> None:
    captions = pa.chunked_array([["ab, 12 é!", "日本 語", "🙂🙂"], [None, ""]], pa.string())
    assert letters(captions).tolist() == [3, 3, 0, 0, 0]
