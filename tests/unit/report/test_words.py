import pytest

from pipeline.report import words


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (89.4, "89 s"), (90, "1.5 min"), (5399, "90.0 min"),
     (5400, "1.5 h"), (172_799, "48.0 h"), (224_640, "2.6 days")],
)  # fmt: skip
def test_duration(seconds, told):
    assert words.duration(seconds) == told


@pytest.mark.parametrize(
    ("amount", "told"),
    [
        (0, "$0.00"),
        (0.00001, "under $0.0001"),
        (0.00697, "$0.007"),
        (0.42, "$0.42"),
        (99.5, "$99.50"),
        (1890, "$1,890"),
    ],
)
def test_dollars(amount, told):
    assert words.dollars(amount) == told


@pytest.mark.parametrize(
    ("number", "told"),
    [(9_999, "9,999"), (64_000, "64k"), (1_512_345, "1.51M"), (999_999, "1M"), (1_165_442_320, "1.17B")],
)
def test_count(number, told):
    assert words.count(number) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(1234.6, "1235"), (152.31, "152"), (8.314, "8.31"), (0.61, "0.610"), (0.00213, "0.0021"), (-0.0004, "-0.0004"), (1e-6, "0"),
     (-0.012, "-0.0120")],
)  # fmt: skip
def test_score(value, told):
    assert words.score(value) == told


def test_listed():
    told = [words.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])]
    assert told == ["nothing", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5.1e6, "5.1 MB"), (44e9, "44 GB"), (1.234e12, "1.23 TB")]
)
def test_size(number, told):
    assert words.size(number) == told
