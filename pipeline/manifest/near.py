"""Near duplicates: perceptual hashes that differ in a few of 64 bits, found without comparing all with all.

Two words that differ in d bits agree in at least two of d + 2 blocks (Manku, Jain, Das Sarma, "Detecting near-duplicates
for web crawling", WWW 2007). So for each two of the blocks the words are sorted by these, and only those in a run of equal
ones are compared. A run of more than FULL words is not compared pairwise: its words differ in the other bits alone, and the
same is done again with the blocks of those. That ends, since 2^8 different words are no more than FULL; every level takes
(d + 2 choose 2) sorts of the words in full runs. Time is that of sorting, memory some 70 bytes a word.

The median of 64 different frequencies leaves exactly 32 above it, so the hashes of ordinary images differ in an even number
of bits.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

FULL = 256  # about where comparing a run takes as long as sorting it by other blocks
# The hash marks which of 64 frequencies are above their median: 32, unless many are equal to it. On one plain colour, a
# plain gradient, a straight edge or a frame most are 0, and images that have nothing else in common share the few bits left.
LEAST_SET_BITS = 24
PAIRS_AT_ONCE = 1 << 22  # held in memory
PIECE = 1 << 16  # of them as Python's numbers
HASHES_AT_ONCE = 1 << 20
NOTHING = np.uint64(0)

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


def tells_something(hashes: np.ndarray) -> np.ndarray:
    """Which of the perceptual hashes [N] uint64 are those of an image with more on it than a plain area."""
    return np.bitwise_count(hashes) >= LEAST_SET_BITS


def near_any(hashes: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """Which of `hashes` [N] uint64 differ in at most `bits` bits from any of `others`."""
    others, near = np.unique(others[tells_something(others)]), np.zeros(len(hashes), dtype=bool)
    for start in range(0, len(hashes) if len(others) else 0, HASHES_AT_ONCE):
        part = slice(start, start + HASHES_AT_ONCE)
        different, place = np.unique(hashes[part], return_inverse=True)
        near[part] = _near_others(different, others, bits)[place]
    return near


def _near_others(hashes: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """The same for hashes that are all different, and so are the others."""
    near = np.isin(hashes, others)
    rest = np.flatnonzero(~near)
    for i, j in close_pairs(np.concatenate([others, hashes[rest]]), bits):
        across = (i < len(others)) & (j >= len(others))
        near[rest[j[across] - len(others)]] = True
    return near & tells_something(hashes)


def repeats(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Which of `hashes` [N] uint64 differ in at most `bits` bits from an earlier one that is no repeat itself."""
    gone = np.zeros(len(hashes), dtype=bool)
    compared = np.flatnonzero(tells_something(hashes))
    first = np.sort(np.unique(hashes[compared], return_index=True)[1])
    gone[compared] = True  # but the first of equal ones, which the others share their fate with
    gone[compared[first]] = _repeats(hashes[compared[first]], bits)
    return gone


def _repeats(hashes: np.ndarray, bits: int) -> np.ndarray:
    """The same for hashes that are all different.

    One after the other along the pairs. Where these are too many to hold, in rounds: what has no earlier neighbour stays,
    its neighbours go, and the pairs among what is left are looked for again.
    """
    gone, open_ = np.zeros(len(hashes), dtype=bool), np.arange(len(hashes))
    while len(open_):
        late, held, count = np.zeros(len(open_), dtype=bool), [], 0
        for i, j in close_pairs(hashes[open_], bits):
            late[j] = True
            count += len(i)
            if count <= PAIRS_AT_ONCE:
                held.append((i, j))
        if count <= PAIRS_AT_ONCE:
            gone[open_] = _in_turn(held, len(open_))
            break
        near_kept = np.zeros(len(open_), dtype=bool)
        for i, j in close_pairs(hashes[open_], bits):
            near_kept[j[~late[i]]] = True
        gone[open_[near_kept]] = True
        open_ = open_[late & ~near_kept]
    return gone


def _in_turn(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """Who is left out if each of `count`, in turn, leaves out its later neighbours unless it was left out itself."""
    gone = bytearray(count)
    if pairs:
        i, j = (np.concatenate(side) for side in zip(*pairs, strict=True))
        order = np.argsort(j)  # all that may leave out j come before those which j may leave out
        for part in np.split(order, range(PIECE, len(order), PIECE)):
            for first, second in zip(i[part].tolist(), j[part].tolist(), strict=True):
                if not gone[first]:
                    gone[second] = 1
    return np.frombuffer(gone, dtype=bool)


def close_pairs(hashes: np.ndarray, bits: int, equal: np.uint64 = NOTHING) -> Pairs:
    """Places (i, j), i < j, of the pairs in `hashes` [N] uint64, all different, that differ in at most `bits` bits: every
    pair once, in pieces. Of pairs that differ in a bit of `equal` none."""
    blocks = _blocks(~equal, bits + 2)
    for first, second in combinations(range(bits + 2 if bits else 0), 2):
        before = [blocks[n] for n in range(second) if n != first]
        for i, j in _matches(hashes, bits, equal | blocks[first] | blocks[second]):
            differing = hashes[i] ^ hashes[j]
            once = np.ones(len(i), dtype=bool)  # these are the first two blocks in which the pair agrees
            for block in before:
                once &= (differing & block) != 0
            yield i[once], j[once]


def _blocks(free: np.uint64, count: int) -> list[np.uint64]:
    """The bits of a mask dealt out to `count` masks in turn."""
    bits = [np.uint64(1 << n) for n in range(64) if int(free) >> n & 1]
    return [np.bitwise_or.reduce(bits[n::count]) for n in range(count)]


def _matches(hashes: np.ndarray, bits: int, mask: np.uint64) -> Pairs:
    """The close pairs that agree in all bits of a mask."""
    keys = hashes & mask
    order = np.argsort(keys)
    keys = keys[order]
    same = np.concatenate([[False], keys[1:] == keys[:-1], [False]])  # as the one before it
    del keys
    starts, ends = np.flatnonzero(~same[:-1] & same[1:]), np.flatnonzero(same[:-1] & ~same[1:]) + 1
    full = ends - starts > FULL
    yield from _in_runs(hashes, bits, order, starts[~full], ends[~full])
    if full.any():
        rows = order[_places(starts[full], ends[full])]
        for i, j in close_pairs(hashes[rows], bits, mask):
            yield _ascending(rows[i], rows[j])


def _in_runs(hashes: np.ndarray, bits: int, order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Pairs:
    """The close pairs within runs of `order`: each with its successor, then each with the next but one, and so on."""
    places, ends = _places(starts, ends), np.repeat(ends, ends - starts)
    for step in range(1, FULL):
        goes_on = places + step < ends
        places, ends = places[goes_on], ends[goes_on]
        if not len(places):
            return
        i, j = order[places], order[places + step]
        close = np.bitwise_count(hashes[i] ^ hashes[j]) <= bits
        yield _ascending(i[close], j[close])


def _places(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """start … end - 1 of each run, one after another."""
    sizes = ends - starts
    return np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)


def _ascending(i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(i, j), np.maximum(i, j)
