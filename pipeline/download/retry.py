"""When a request is tried again: only for what may pass, further and further apart."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import (
    AsyncRetrying,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from pipeline.ledger import Unusable

# Classes of failures that may pass: asked again now, in a second pass, and when the command is run again.
PASSING = frozenset({"dns", "timeout", "connection", "truncated", "http_429", "http_5xx"})


class Later(Unusable):
    """A failure that may pass: worth another try."""


@dataclass(frozen=True)
class Retry:
    """Waits between tries, in seconds: at most `first`, then twice that and so on up to `longest`, a random part of each,
    so that requests that failed together do not come back together. `longest_asked` bounds what a Retry-After may ask."""

    first: float = 2.0
    longest: float = 60.0
    longest_asked: float = 300.0

    def tries(self, attempts: int) -> AsyncRetrying:
        """`async for attempt in tries(4): with attempt: …` runs the block until it raises no Later, or 4 times."""
        return AsyncRetrying(**self._how(attempts))

    def blocking_tries(self, attempts: int) -> Retrying:
        """The same for code that does not await."""
        return Retrying(**self._how(attempts))

    def _how(self, attempts: int) -> dict[str, Any]:
        return {
            "retry": retry_if_exception_type(Later),
            "stop": stop_after_attempt(attempts),
            "wait": wait_random_exponential(self.first, max=self.longest, min=self.first / 4),
            "reraise": True,
        }

    def pause(self, round_: int) -> float:
        """Seconds a host is left alone after a round of failures: longer from round to round, from 1 on."""
        return min(self.first * 2**round_, self.longest)

    def asked(self, retry_after: str | None) -> float:
        """Seconds that a Retry-After header asks to wait (RFC 9110, 10.2.3: seconds or a date), 0 without one."""
        if retry_after is None:
            return 0.0
        try:
            seconds = float(retry_after) if retry_after.strip().isdecimal() else _until(retry_after)
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return min(max(seconds, 0.0), self.longest_asked)


PATIENT = Retry()


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
