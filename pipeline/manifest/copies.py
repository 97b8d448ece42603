"""What images have in common with each other and with the evaluation set: equal bytes, and nearly equal pictures."""

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd

from pipeline.manifest import reasons
from pipeline.manifest.near import near_any, repeats
from pipeline.manifest.samples import Names, Samples


def leave_out_copies(samples: Samples, evaluated: np.ndarray, bits: int | None, names: Names) -> None:
    """Leave out copies of what was taken down, near ones of the evaluation set's perceptual hashes `evaluated`, and of
    usable copies all but one: of equal bytes the first stays, of near ones the largest, of equally large ones the first.
    So it is the same image at every resolution. `bits`: how many may differ in near ones; None: only equal bytes are
    copies."""
    taken_down = names.number(reasons.TAKEN_DOWN)
    names_one = samples.reason == taken_down
    samples.leave_out(_same_bytes_as(samples, names_one), taken_down)
    if bits is not None:
        if names_one.any():
            _leave_out(samples, lambda hashes: near_any(hashes, samples.phash[names_one], bits), taken_down)
        _leave_out(samples, lambda hashes: near_any(hashes, evaluated, bits), names.number(reasons.NEAR_LEAKED))
    samples.leave_out(_duplicated(samples), names.number(reasons.DUPLICATE))
    if bits is not None:
        _leave_out(samples, lambda hashes: repeats(hashes, bits), names.number(reasons.NEAR_DUPLICATE))


def _leave_out(samples: Samples, choose: Callable[[np.ndarray], np.ndarray], reason: int) -> None:
    """Those usable ones that `choose` picks by their perceptual hashes, which it is given from the largest image on."""
    usable = np.flatnonzero(samples.usable)
    usable = usable[np.argsort(-samples.side[usable], kind="stable")]
    samples.reason[usable[choose(samples.phash[usable])]] = reason


def _same_bytes_as(samples: Samples, chosen: np.ndarray) -> np.ndarray:
    """[N] bool: the chosen and their equals."""
    same = np.isin(samples.sha256_high, samples.sha256_high[chosen])
    same[same] = np.isin(samples.sha256_low[same], samples.sha256_low[chosen])
    return same


def _duplicated(samples: Samples) -> np.ndarray:
    """[N] bool: usable ones with the bytes of an earlier usable one. The second half of the hashes is only compared where
    the first is equal."""
    usable = np.flatnonzero(samples.usable)
    maybe = usable[pd.Series(samples.sha256_high[usable]).duplicated(keep=False).to_numpy()]
    halves = pd.DataFrame({"high": samples.sha256_high[maybe], "low": samples.sha256_low[maybe]})
    found = np.zeros(len(samples.row), dtype=bool)
    found[maybe[halves.duplicated().to_numpy()]] = True
    return found


def hold_out(samples: Samples, share: float, seed: int, names: Names) -> None:
    """Hold a share of the usable samples out of training: those whose mixed hash is below it.

    The choice knows nothing but the image's bytes and the seed, so it is the same in every stage and of every source.
    The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    if not share:
        return
    salt = np.frombuffer(hashlib.blake2b(f"held out {seed}".encode(), digest_size=8).digest(), dtype="<u8")
    mixed = samples.sha256_high ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    samples.leave_out(mixed < np.uint64(int(share * 2**64)), names.number(reasons.HELD_OUT))
