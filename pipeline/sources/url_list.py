"""A table of image URLs and captions, as CC12M and PD12M are published.

Shard s of S has rows n·s/S to n·(s+1)/S of the n rows that the step `table` kept. A sample is named by its id, or by a hash
of its URL.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.sources import UrlListSource
from pipeline.download.images import Wanted, fetch_images
from pipeline.ledger import Unusable
from pipeline.sources.lookup import TableReader
from pipeline.sources.sample import Inputs, Listing, Raw
from pipeline.sources.shard import check_nsfw
from pipeline.sources.text import safe_key

Row = dict[str, Any]


def open_shard(name: str, source: UrlListSource, shard: int, inputs: Inputs) -> Listing:
    """Rows of one shard. Their images are all fetched when the first is asked for; until the shard is written they are
    kept in a journal, so that a rerun asks for none of them again."""
    table = TableReader(inputs.table)
    rows = range(*(len(table) * place // source.shards for place in (shard, shard + 1)))
    journal = inputs.files.folder / f"{shard:05d}.journal"
    samples = _samples(f"fetch {name} {shard}", source, table, rows, inputs, journal)
    return Listing(len(rows), "images", enumerate(samples, 1), lambda: journal.unlink(missing_ok=True))


def _samples(title: str, source: UrlListSource, table: TableReader, rows: range, inputs: Inputs, journal: Path) -> Iterator[Raw]:
    """The table is read twice: the URLs of a shard are in memory together, its captions are not."""
    verdicts, wanted, keys = [], [], set()
    for row in table.between(rows.start, rows.stop):
        verdicts.append(_verdict(source, row, keys))
        if verdicts[-1] is None:
            wanted.append(Wanted(row["url"], row["sha256"]))
    fetched = fetch_images(wanted, journal, inputs.downloads, source.opt_out, title)
    for number, row, verdict in zip(rows, table.between(rows.start, rows.stop), verdicts, strict=True):
        image, notes = next(fetched) if verdict is None else (verdict, ())
        yield _sample(row, number, image, notes)


def _verdict(source: UrlListSource, row: Row, keys: set[str]) -> Unusable | None:
    """Why an image need not be fetched. `keys` are those of the rows before."""
    if row["fault"]:
        return Unusable("bad_row", row["fault"])
    if (key := safe_key(row["id"])) in keys:
        return Unusable("duplicate_key", "a row before has the same id, or without ids the same URL")
    keys.add(key)
    try:
        check_nsfw(row["scores"], source.max_nsfw)
    except Unusable as failure:
        return failure
    return None


def _sample(row: Row, number: int, image: bytes | Unusable, notes: tuple[str, ...]) -> Raw:
    return Raw(
        name=row["id"] or f"row_{number}",
        origin=row["url"] or f"row {number} of the table",
        image=image,
        captions=tuple(row["captions"]),
        several=len(row["captions"]) > 1,
        url=row["url"],
        license=row["license"],
        scores=row["scores"],
        notes=(*((row["note"],) if row["note"] else ()), *notes),
    )
