"""Who is asked when: limits, pauses of hosts that do not answer well, and an end to asking one that stays silent."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from pipeline.download.retry import Retry
from pipeline.ledger import Unusable

ROUNDS = 4  # pauses of a host, each twice as long as the one before
LEAST_ROUND = 4  # failures in a row that are trouble, however few are asked at a time
SILENCE = frozenset({"dns", "timeout", "connection"})  # failures that came without any answer


class _Trouble(NamedTuple):
    """Failures in a row that may pass, and the class of the last."""

    count: int
    reason: str


class Pace:
    """Of one session: requests at a time in all and to one host, and pauses of hosts.

    A round is as many failures in a row as there are requests at a time to one host: one of them is bad luck, a round is
    trouble of the host, or of the way to it. After each of the first `ROUNDS` rounds the host is left alone for a while.
    Where there are `others` to ask for, a host that was silent through all of them is not asked again: each further request
    would cost a whole time-out.
    """

    def __init__(self, parallel: int, per_host: int, retry: Retry, others: bool) -> None:
        self._all = asyncio.Semaphore(parallel)
        self._hosts = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(per_host))
        self._round, self._retry, self._others = max(per_host, LEAST_ROUND), retry, others
        self._until: dict[str, float] = {}  # end of a host's pause, on the monotonic clock
        self._troubles: dict[str, _Trouble] = {}

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn to ask `host`, and for the end of its pause. Who waits for one host holds up no other.

        Raises: Unusable if it is not asked any more.
        """
        async with self._hosts[host]:
            await self._end_of_pause(host)
            async with self._all:
                yield

    def answered(self, host: str) -> None:
        """The host is well."""
        self._troubles.pop(host, None)

    def failed(self, host: str, reason: str, asked: float = 0.0) -> None:
        """A failure that may pass; the host asked to wait for so many seconds."""
        trouble = self._troubles.get(host, _Trouble(0, reason))
        count = trouble.count + 1
        self._troubles[host] = _Trouble(count, reason)
        rounds, rest = divmod(count, self._round)
        pause = self._retry.pause(rounds) if rest == 0 and rounds <= ROUNDS else 0.0
        self._until[host] = max(self._until.get(host, 0.0), time.monotonic() + max(asked, pause))

    async def _end_of_pause(self, host: str) -> None:
        while (seconds := self._until.get(host, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(seconds)
        trouble = self._troubles.get(host)
        if self._others and trouble and trouble.reason in SILENCE and trouble.count > ROUNDS * self._round:
            raise Unusable(trouble.reason, f"not asked: {host} gave no answer to the last {trouble.count} requests")
