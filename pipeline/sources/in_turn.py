"""The files of a shard one after the other: while one is read, the next one is fetched."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import MappingProxyType

from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.sample import Inputs

NO_URLS: Mapping[str, str] = MappingProxyType({})


def shown(reference: str) -> str:
    """A reference without the query of a URL: what signs a link is a secret."""
    return reference.partition("?")[0] if "://" in reference else reference


class InTurn:
    """Iterates over (reference, file on this machine, or why there is none). What stands in `urls` is a name, and fetched
    from there."""

    def __init__(self, key: str, references: Iterable[str], inputs: Inputs, urls: Mapping[str, str] = NO_URLS) -> None:
        self._key, self._references, self._inputs, self._urls = key, list(references), inputs, urls
        self._received: list[Path] = []
        self._failed: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._references)

    def __iter__(self) -> Iterator[tuple[str, Path | Unusable]]:
        """Raises: UserError once too few files can be received."""
        ahead = [self._start(reference) for reference in self._references[:1]]
        for place, reference in enumerate(self._references):
            coming = ahead.pop()
            found = self._wait(reference, coming)
            ahead += [self._start(following) for following in self._references[place + 1 : place + 2]]
            yield reference, found

    def count_lost(self, reference: str, breach: Unusable) -> None:
        """A file that was received and breaks off counts as not received. Raises: UserError as above."""
        self._failed[breach.reason] += 1
        self._check(f"{shown(reference)}: {breach.detail}")

    def delete(self) -> None:
        """Once nothing of them is needed any more."""
        for path in self._received:
            self._inputs.files.done_with(path)

    def _start(self, reference: str) -> Future[Path]:
        """In a thread that does not keep a program alive that has failed meanwhile."""
        coming: Future[Path] = Future()
        Thread(target=_settle, args=(coming, self._inputs, reference, self._urls.get(reference)), daemon=True).start()
        return coming

    def _wait(self, reference: str, coming: Future[Path]) -> Path | Unusable:
        try:
            path = coming.result()
        except Unusable as failure:
            self._failed[failure.reason] += 1
            self._check(f"{shown(reference)}: {failure.detail}")
            return failure
        self._received.append(path)
        return path

    def _check(self, last: str) -> None:
        wanted, failed = len(self._references), self._failed.total()
        if (wanted - failed) / wanted < self._inputs.least_yield:
            source, reasons = self._key.rpartition(".")[0], ", ".join(f"{why} {n}" for why, n in self._failed.most_common())
            raise UserError(
                f"{self._key}: {failed} of {wanted} files of the shard cannot be received ({reasons}), which is below min_yield "
                f"{self._inputs.least_yield:g}; the last is {last}; run again, mend the list, or lower {source}.min_yield"
            )


def _settle(coming: Future[Path], inputs: Inputs, reference: str, url: str | None) -> None:
    try:
        coming.set_result(inputs.files.fetch(url, reference) if url else inputs.files.fetch(reference))
    except BaseException as error:  # it is raised where the result is asked for
        coming.set_exception(error)
