"""Near duplicates: perceptual hashes that differ in a few of 64 bits, found without comparing all with all.

Two words that differ in d bits agree in at least two of d + 2 blocks (Manku, Jain, Das Sarma, "Detecting near-duplicates
for web crawling", WWW 2007). So for each two of the blocks the words are sorted by these, and only those in a run of equal
ones are compared. A run of more than FULL words is not compared pairwise: its words differ in the other bits alone, and the
same is done again with the blocks of those. That ends, since 2^8 different words are no more than FULL; every level takes
(d + 2 choose 2) sorts of the words in full runs. Time is that of sorting, memory some 70 bytes a word.

Words that lie close, such as a million that differ in 22 bits alone, have more pairs than could be gone through. They are not
enumerated: what is decided first leaves few words, no two of them close, and the others are compared with those alone, each
until one is found.

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
SHORTER, LONGER = 16, 4  # where there were too many pairs, and from then on
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
        close = np.isin(different, others) | _near_any(different, others, bits)
        near[part] = (close & tells_something(different))[place]
    return near


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

    So many from the front as have no more pairs than can be held are gone through one by one along these, and what is near
    one that stays goes from the rest. Where hashes lie so close that there are many pairs, few of them stay and most go.
    """
    gone, open_, length = np.zeros(len(hashes), dtype=bool), np.arange(len(hashes)), len(hashes)
    while len(open_):
        front, rest = open_[:length], open_[length:]
        pairs = _held(close_pairs(hashes[front], bits))
        if pairs is None:
            length = max(len(front) // SHORTER, 1)
            continue
        goes = _in_turn(pairs, len(front))
        near = _near_any(hashes[rest], hashes[front[~goes]], bits)
        gone[front[goes]] = gone[rest[near]] = True
        open_, length = rest[~near], LONGER * length
    return gone


def _held(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """All pieces of the pairs; None as soon as they are too many."""
    held, count = [], 0
    for i, j in pairs:
        held.append((i, j))
        count += len(i)
        if count > PAIRS_AT_ONCE:
            return None
    return held


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


def _near_any(hashes: np.ndarray, others: np.ndarray, bits: int, equal: np.uint64 = NOTHING) -> np.ndarray:
    """Which of `hashes` [N] uint64 differ in at most `bits` bits, but in one, from one of `others`, all different, that
    agrees with them in `equal`. Each is looked for until it is found once."""
    near, blocks = np.zeros(len(hashes), dtype=bool), _blocks(~equal, bits + 2)
    for first, second in combinations(blocks if bits else [], 2):
        mask, rows = equal | first | second, np.flatnonzero(~near)
        order = np.argsort(others & mask)
        keys, wanted = (others & mask)[order], hashes[rows] & mask
        starts, ends = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        full = ends - starts > FULL
        near[rows[~full]] = _is_in_run(hashes[rows[~full]], others[order], starts[~full], ends[~full], bits)
        if full.any():
            inside = np.zeros(len(others) + 1, dtype=np.int64)  # +1 where a full run begins, -1 behind it
            inside[np.unique(starts[full])] += 1
            inside[np.unique(ends[full])] -= 1
            inner = others[order[np.cumsum(inside[:-1]) > 0]]
            near[rows[full]] = _near_any(hashes[rows[full]], inner, bits, mask)
    return near


def _is_in_run(hashes: np.ndarray, others: np.ndarray, starts: np.ndarray, ends: np.ndarray, bits: int) -> np.ndarray:
    """Whether each of `hashes` is close to one of its run of `others`."""
    found, open_ = np.zeros(len(hashes), dtype=bool), np.flatnonzero(starts < ends)
    for step in range(FULL):
        if not len(open_):
            break
        close = np.bitwise_count(hashes[open_] ^ others[starts[open_] + step]) <= bits
        found[open_[close]] = True
        open_ = open_[~close & (starts[open_] + step + 1 < ends[open_])]
    return found


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
