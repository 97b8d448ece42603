"""The ledger: a row for every sample seen, and the classes of why one cannot be used."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import LEDGER, atomic

ROWS_A_BATCH = 1000

# What went wrong: counted against a source's min_yield.
FAILURES = {
    "dns": "the host's name leads to no address",
    "timeout": "no answer, or no further byte, in time",
    "connection": "the connection was refused, reset, or not secure",
    "http_401": "the host asks who you are",
    "http_403": "the host refuses",
    "http_404": "no such page",
    "http_410": "the page is gone for good",
    "http_429": "too many requests, also after waiting",
    "http_4xx": "another refusal of the host",
    "http_5xx": "a fault of the host",
    "redirect": "redirected in a circle, too often, or to nowhere",
    "bad_url": "no http or https address",
    "private_host": "an address of this machine or its network; runtime.downloads.allow_hosts lets single hosts through",
    "wrong_hash": "other bytes than the sha256 in the table",
    "missing_file": "the file that a table names is not there",
    "unreadable_file": "the file is there and cannot be read",
    "bad_row": "a row of a table without what names an image",
    "unsafe_member": "a path that leaves its folder, or a member that is no plain file",
    "no_image": "a sample with a caption or metadata and no image",
    "truncated_archive": "the archive ends before its end mark; what came before is used",
    "damaged_archive": "not an archive, or no longer one from some place on; what came before is used",
    "empty_file": "0 bytes",
    "not_an_image": "no image format that is known here",
    "truncated": "the image, or the answer that holds it, ends before its end",
    "decode_error": "the image is damaged, or of a kind that has no plain RGB form",
    "too_large": "more pixels or bytes than are read",
}
# What was received and is not wanted.
CHOICES = {
    "duplicate_key": "a sample of this key was stored already",
    "too_small": "a shorter side below min_side",
    "opted_out": "the host's X-Robots-Tag asks not to be trained on",
    "nsfw": "a score above the source's max_nsfw",
}
REASONS = FAILURES | CHOICES


class Unusable(Exception):
    """Why a sample cannot be used: a class of REASONS and the words for a person.

    `size` is width and height as received, upright, where known.
    """

    def __init__(self, reason: str, detail: str, size: tuple[int, int] | None = None) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.size = reason, detail, size


class Ledger:
    """The rows of artifacts.LEDGER in the order they were seen, with their counts. Kept as Arrow, 300 bytes a row."""

    def __init__(self) -> None:
        self.rows = self.captioned = 0
        self.bad: Counter[str] = Counter()
        self._pending: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []

    @property
    def stored(self) -> int:
        return self.rows - self.bad.total()

    @property
    def received_share(self) -> float:
        """Of the samples that were wanted, how many were received: 1 - failures / (rows - choices)."""
        failed = sum(count for reason, count in self.bad.items() if reason in FAILURES)
        wanted = self.stored + failed
        return self.stored / wanted if wanted else 1.0

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        if row["status"] == "bad":
            self.bad[row["reason"]] += 1
        else:
            self.captioned += row["captioned"]
        self._pending.append(row)
        if len(self._pending) == ROWS_A_BATCH:
            self._pack()

    def reasons(self) -> dict[str, int]:
        """Bad rows by reason, the most frequent first."""
        return dict(sorted(self.bad.items(), key=lambda item: (-item[1], item[0])))

    def write(self, path: Path) -> None:
        self._pack()
        with atomic(path) as temporary:
            pq.write_table(pa.Table.from_batches(self._batches, LEDGER), temporary)

    def _pack(self) -> None:
        if self._pending:
            self._batches.append(pa.RecordBatch.from_pylist(self._pending, LEDGER))
            self._pending = []
