"""When a request is tried again, and how long after."""

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download.retry import PASSING, Later, Retry
from pipeline.ledger import FAILURES, Unusable

RETRY = Retry(first=0.001, longest=0.004)


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 0), ("7", 7), ("0", 0), (" 12 ", 12), ("9999", 300), ("-1", 0), ("soon", 0), ("1.5", 0)]
)
def test_seconds_that_a_host_asks_for(header, seconds):
    assert Retry().asked(header) == seconds


@given(st.integers(-(10**9), 10**9))
def test_dates_that_a_host_asks_for(ahead):
    asked = Retry(longest_asked=100).asked(formatdate(max(time.time() + ahead, 0), usegmt=True))
    assert 0 <= asked <= 100 and abs(asked - min(max(ahead, 0), 100)) < 5


@given(st.text())
def test_any_header_is_read_or_passed_over(header):
    assert 0 <= Retry().asked(header) <= 300


def test_pauses_double_up_to_the_longest():
    assert [Retry(first=2, longest=20).pause(number) for number in (1, 2, 3, 4)] == [4, 8, 16, 20]


@pytest.mark.parametrize(("error", "tries"), [(Later("timeout", ""), 3), (Unusable("http_404", ""), 1)])
def test_only_what_may_pass_is_tried_again(error, tries):
    made = []
    with pytest.raises(Unusable) as caught:
        for attempt in RETRY.blocking_tries(3):
            with attempt:
                made.append(1)
                raise error
    assert caught.value is error and len(made) == tries


def test_classes_that_may_pass_are_failures():
    assert set(FAILURES) > PASSING
