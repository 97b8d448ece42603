"""Steps that were not taken: skipped.jsonl names the samples of each, and many in a row end the run."""

from pathlib import Path

from pipeline.train.data import Samples
from pipeline.train.metrics import JsonLines, Row

NAMED = 5  # keys in an error


class Skips:
    """Counts skipped steps and writes a line for each; `in_row` and `total` are part of a checkpoint's state.

    Only the main process `writes` and knows the keys.
    """

    def __init__(self, path: Path, images: int, total: int, in_row: int, samples: Samples, batch: int, writes: bool) -> None:
        self.file, self.total, self.in_row = JsonLines(path, images, writes), total, in_row
        self._samples, self._batch, self._writes = samples, batch, writes

    def note(self, row: Row, images: int, not_finite: list[int]) -> None:
        """One step, which brought the stage to `images`; `not_finite` are places in its batch."""
        self.in_row = self.in_row + 1 if row.skipped else 0
        self.total += row.skipped
        if row.skipped and self._writes:
            keys = self._samples.keys(images - self._batch, self._batch)
            culprits = [keys[place] for place in not_finite]
            self.file.write({"images": images, "grad_norm": row.grad_norm, "not_finite": culprits, "keys": keys})

    def last_keys(self) -> str:
        """Keys of the last skipped step in words: those whose loss was not finite, or the first of the batch."""
        line = self.file.lines[-1]
        keys = line["not_finite"] or line["keys"]
        return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
