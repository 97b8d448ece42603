import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.manifest import near
from pipeline.manifest.near import close_pairs, near_any, repeats, tells_something

WORDS = st.integers(0, 2**64 - 1)
BITS = st.integers(0, 3)


def hashes_of(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def brute_pairs(hashes: np.ndarray, bits: int) -> set[tuple[int, int]]:
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return set(zip(*(side.tolist() for side in np.nonzero(np.triu(distance <= bits, 1))), strict=True))


def brute_repeats(hashes: np.ndarray, bits: int) -> list[bool]:
    kept: list[int] = []
    for value in hashes.tolist():
        near_one = value.bit_count() >= 24 and any((value ^ other).bit_count() <= bits for other in kept)
        kept += [] if near_one else [value] * (value.bit_count() >= 24)
        yield near_one


@st.composite
def clustered(draw: st.DrawFn) -> list[int]:
    """A few words, and others that differ from one of them in up to six bits, which several share."""
    centres = draw(st.lists(WORDS, min_size=1, max_size=3))
    places = draw(st.lists(st.integers(0, 63), min_size=1, max_size=8))
    flips = st.lists(st.sampled_from(places), max_size=6)
    members = draw(st.lists(st.tuples(st.sampled_from(centres), flips), max_size=40))
    for centre, bits in members:
        for bit in bits:
            centre ^= 1 << bit
        centres.append(centre)
    return draw(st.permutations(centres))


def cube(random: np.random.Generator, count: int, free: int) -> np.ndarray:
    """Different words that differ in `free` bits alone."""
    values = random.choice(2**free, count, replace=False).astype(np.uint64)
    hashes = np.full(count, 0x5A5A_5A5A_5A5A_5A5A, dtype=np.uint64)
    for n, place in enumerate(random.choice(64, free, replace=False).tolist()):
        hashes ^= ((values >> np.uint64(n)) & np.uint64(1)) << np.uint64(place)
    return hashes


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred words fill runs."""
    monkeypatch.setattr(near, "FULL", 16)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=30) | clustered(), BITS)
def test_exactly_the_close_pairs_are_found_each_once(values: list[int], bits: int) -> None:
    hashes = np.unique(hashes_of(values))
    np.random.default_rng(0).shuffle(hashes)
    found = [pair for i, j in close_pairs(hashes, bits) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert len(found) == len(set(found)) and set(found) == (brute_pairs(hashes, bits) if bits else set())


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("free", [10, 12, 14])
def test_exactly_the_close_pairs_are_found_in_runs_that_are_full(small_runs: None, bits: int, free: int) -> None:
    hashes = cube(np.random.default_rng(bits), 700, free)
    found = [pair for i, j in close_pairs(hashes, bits) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert len(found) == len(set(found)) and set(found) == brute_pairs(hashes, bits)
    assert len(found) > 100


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=30) | clustered(), BITS)
def test_repeats_are_those_of_going_through_one_by_one(values: list[int], bits: int) -> None:
    hashes = hashes_of(values)
    assert repeats(hashes, bits).tolist() == list(brute_repeats(hashes, bits))


@pytest.mark.parametrize("held", [0, 50, 10**6])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_repeats_are_the_same_however_many_pairs_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, small_runs: None, bits: int, held: int
) -> None:
    monkeypatch.setattr(near, "PAIRS_AT_ONCE", held)
    monkeypatch.setattr(near, "PIECE", 7)
    random = np.random.default_rng(bits)
    plain = hashes_of([2**63 + n for n in range(9)])
    hashes = random.permutation(np.concatenate([cube(random, 400, 10), cube(random, 200, 20), plain]))
    expected = list(brute_repeats(hashes, bits))
    assert repeats(hashes, bits).tolist() == expected and 0 < sum(expected) < len(hashes)


@settings(max_examples=100, deadline=None)
@given(clustered(), clustered(), BITS)
def test_near_to_any_are_those_found_by_comparing_all(values: list[int], others: list[int], bits: int) -> None:
    others += values[:2]
    told = [other for other in others if other.bit_count() >= 24]
    expected = [v.bit_count() >= 24 and any((v ^ other).bit_count() <= bits for other in told) for v in values]
    assert near_any(hashes_of(values), hashes_of(others), bits).tolist() == expected


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
@pytest.mark.parametrize("free", [11, 14, 18])
def test_near_to_any_is_found_in_runs_that_are_full(small_runs: None, bits: int, free: int) -> None:
    hashes = cube(np.random.default_rng(bits), 1200, free)
    hashes, others = hashes[:800], np.concatenate([hashes[800:], hashes[:5]])
    expected = (np.bitwise_count(hashes[:, None] ^ others[None]) <= bits).any(axis=1)
    assert (near_any(hashes, others, bits) == expected).all() and 5 <= expected.sum() <= 800


def test_near_to_any_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hashes = random.permutation(np.concatenate([cube(random, 400, 12)] * 2))
    whole = near_any(hashes, hashes[:20], 2)
    monkeypatch.setattr(near, "HASHES_AT_ONCE", 37)
    assert (near_any(hashes, hashes[:20], 2) == whole).all() and 20 < whole.sum() < 800
    assert not near_any(hashes, hashes[:0], 2).any() and not len(near_any(hashes[:0], hashes, 2))


def test_only_hashes_with_enough_bits_tell_something() -> None:
    assert tells_something(hashes_of([0, 1 << 63, 2**23 - 1, 2**24 - 1, 2**64 - 1])).tolist() == [False, False, False, True, True]
    assert not repeats(hashes_of([1 << 63] * 3), 3).any()


def phash(pixels: np.ndarray) -> int:
    return int(str(imagehash.phash(Image.fromarray(pixels.astype(np.uint8)))), 16)


def test_plain_images_tell_nothing_and_others_do() -> None:
    """The former share a hash although they have nothing in common."""
    ramp = np.tile(np.linspace(0, 1, 256), (256, 1))
    frame = np.full((256, 256), 250)
    frame[40:-40, 40:-40] = 90
    colours = [np.full((256, 256), value) for value in (0, 1, 128, 255)]
    edges = [np.where(ramp < 0.5, 20, 200), np.where(ramp.T < 0.3, 20, 200)]
    plain = [phash(pixels) for pixels in (*colours, 255 * ramp, 30 + 100 * ramp.T, *edges, frame)]
    assert not tells_something(hashes_of(plain)).any()
    random = np.random.default_rng(0)
    rich = [np.asarray(Image.fromarray(random.integers(0, 255, (6, 6), np.uint8)).resize((256, 256))) for _ in range(20)]
    rich += [np.clip(128 + random.normal(0, 2, (256, 256)), 0, 255) for _ in range(20)]  # a plain area with grain
    hashes = hashes_of([phash(pixels) for pixels in rich])
    assert tells_something(hashes).all() and not repeats(hashes, 3).any()
