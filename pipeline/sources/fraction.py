"""The key `fraction`: which part of a source is used. The same part each time, and every part lies within every larger one.

Of a source of many files whole files are taken, in the order of a hash of their names, and of the last one a part of its
samples: a hundredth of 2,176 tars is 21 tars and three quarters of another, so that little is fetched for nothing.
"""

import hashlib
import re
from collections.abc import Iterable

DIGITS = 9  # 0.1 · 30 is 3.0000000000000004, which is no fourth file


def file_shares(references: Iterable[str], fraction: float) -> dict[str, float]:
    """The files to use, in the order given, and the share of its samples to use of each, in (0, 1]."""
    given = list(references)
    ranks = {file: rank for rank, file in enumerate(sorted(given, key=_place))}
    shares = {file: min(1.0, round(fraction * len(given) - ranks[file], DIGITS)) for file in given}
    return {file: share for file, share in shares.items() if share > 0}


def takes(name: str, share: float) -> bool:
    """Whether a sample of this name is among the share that is used."""
    return share >= 1 or _chance(name) < share


def _place(reference: str) -> tuple[float, str]:
    """By the file's own name: a mirror or another folder changes nothing."""
    return _chance(re.split(r"[/\\]", reference)[-1]), reference


def _chance(name: str) -> float:
    """A number in [0, 1) that nothing else depends on."""
    digest = hashlib.sha256(b"fraction " + name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
