"""What became of every image and caption, by source: the numbers add up from those seen to those trained on."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.manifest.judge import Judge, Seen, Shard
from pipeline.manifest.samples import Samples

UNKNOWN, OTHER = "unknown", "other"
MOST_LICENCES = 100  # named apart; a table may give every image one of its own

Counts = dict[str, Any]


def account(sources: Iterable[str], shards: list[Shard], seen: list[Seen], samples: Samples, judge: Judge) -> dict[str, Counts]:
    """For each source: seen = bad + collected, collected = left_out + trained; of captions collected = left_out + trained;
    and of the images trained on, how many have which licence."""
    counts, end = {}, 0
    for source in sorted(sources):
        mine = [n for n, shard in enumerate(shards) if shard.source == source]
        start, end = end, end + sum(shards[n].rows for n in mine)  # the lines of a source lie together
        part = Samples(*(column[start:end] for column in samples))
        counts[source] = _images([seen[n] for n in mine], part, judge) | {
            "captions": _captions([seen[n] for n in mine], part),
            "licences": _licences(judge.licences.counted(part.licence[part.usable])),
        }
    return counts


def _images(seen: list[Seen], samples: Samples, judge: Judge) -> Counts:
    bad = sum((one.bad for one in seen), Counter())
    left_out = {reason: count for reason, count in judge.reasons.counted(samples.reason).items() if reason is not None}
    count = {
        "seen": sum(one.samples for one in seen),
        "bad": dict(sorted(bad.items())),
        "collected": len(samples.row),
        "left_out": dict(sorted(left_out.items())),
        "trained": int(samples.usable.sum()),
    }
    assert count["seen"] == bad.total() + count["collected"], f"the ledger does not add up: {count}"
    assert count["collected"] == sum(left_out.values()) + count["trained"], f"the samples do not add up: {count}"
    return count


def _captions(seen: list[Seen], samples: Samples) -> Counts:
    """`image_left_out` counts usable captions of images that are not trained on."""
    left_out = sum((one.captions_left_out for one in seen), Counter())
    left_out["image_left_out"] = int(samples.texts[~samples.usable].sum(dtype=np.int64))
    count = {
        "collected": sum(one.captions for one in seen),
        "left_out": {reason: number for reason, number in sorted(left_out.items()) if number},
        "trained": int(samples.texts[samples.usable].sum(dtype=np.int64)),
    }
    assert count["collected"] == left_out.total() + count["trained"], f"the captions do not add up: {count}"
    return count


def _licences(found: dict[str | None, int]) -> dict[str, int]:
    """The most frequent ones, and the others together."""
    total: Counter[str] = Counter()
    for place, (licence, count) in enumerate(found.items()):
        total[UNKNOWN if licence is None else licence if place < MOST_LICENCES else OTHER] += count
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def ranges(counts: dict[str, Counts]) -> dict[str, list[int]]:
    """First row and end of each source in the index."""
    ends = np.cumsum([0] + [count["trained"] for count in counts.values()]).tolist()
    return {source: ends[n : n + 2] for n, source in enumerate(counts)}


def in_words(counts: dict[str, Counts]) -> str:
    def reasons(table: dict[str, int]) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in table.items()) or "none"

    return "; ".join(
        f"{source}: {count['seen']} seen, bad: {reasons(count['bad'])}, left out: {reasons(count['left_out'])}"
        for source, count in counts.items()
    )
