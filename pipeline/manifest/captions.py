"""Which captions can be trained on: those that are there, that could be embedded, and that the filters let through."""

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import read_sidecar
from pipeline.config.schema import Filters
from pipeline.manifest import reasons
from pipeline.manifest.samples import Names

MOST_TEXTS = np.iinfo(np.int16).max


class Texts(NamedTuple):
    """The captions of a shard's images, [images] each, and an account of them."""

    text: np.ndarray  # int32, first row to choose among
    texts: np.ndarray  # int16, how many; 0 if none is usable
    given: np.ndarray  # int16, how many of these came with the image
    reason: np.ndarray  # int32, that of the image's first caption if none is usable, else 0
    captions: int  # rows with a caption
    left_out: Counter[str]  # of these, unusable ones by reason


def judge_captions(
    table: pa.Table, keys: pa.Array, unusable: dict[str, str], filters: Filters, leaked: frozenset[bytes], names: Names
) -> Texts:
    """Of captions as in artifacts.CAPTIONS of images with these `keys`; `unusable` are rows whose embedding is, and its
    class."""
    first = _first_of_each(table["key"])
    assert table["key"].filter(pa.array(first)).combine_chunks().equals(keys), "captions of other images than the ledger has"
    image = np.cumsum(first) - 1
    fault = names.numbers(table["reason"])
    captioned = fault == 0
    for row, kind in unusable.items():
        fault[int(row)] = fault[int(row)] or names.number(reasons.TEXT.format(kind))
    for reason, where in _filtered(table, filters, leaked):
        fault[where & (fault == 0)] = names.number(reason)
    text, texts = longest_runs(image, fault == 0, int(first.sum()))
    given = np.concatenate([[0], np.cumsum(_is_given(table, first))])
    found = names.counted(fault[captioned])
    left_out = Counter({reason: count for reason, count in found.items() if reason is not None})
    left_out["apart"] = int((fault == 0).sum() - texts.sum(dtype=np.int64))
    reason = np.where(texts == 0, fault[first], 0)
    return Texts(text, texts, (given[text + texts] - given[text]).astype(np.int16), reason, int(captioned.sum()), left_out)


def _first_of_each(keys: pa.ChunkedArray) -> np.ndarray:
    """[rows] bool: where an image's captions begin."""
    keys = keys.combine_chunks()
    changes = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([np.ones(min(1, len(keys)), dtype=bool), changes])


def _is_given(table: pa.Table, first: np.ndarray) -> np.ndarray:
    """[rows] bool: captions that came with the image. They are before those that were written."""
    given = table["captioner"].is_null().to_numpy()
    assert not (given[1:] & ~given[:-1] & ~first[1:]).any(), "a given caption stands behind a written one"
    return given


def _filtered(table: pa.Table, filters: Filters, leaked: frozenset[bytes]) -> list[tuple[str, np.ndarray]]:
    """Reasons, and the rows [rows] bool they hold for. The captions themselves are looked at only if a filter asks."""
    found = []
    if filters.min_caption or filters.max_caption is not None:
        count = letters(table["caption"])
        found = [(reasons.TOO_SHORT, count < filters.min_caption)]
        if filters.max_caption is not None:
            found.append((reasons.TOO_LONG, count > filters.max_caption))
    if leaked:
        same = (text is not None and plain(text) in leaked for text in table["caption"].to_pylist())
        found.append((reasons.LEAKED_CAPTION, np.fromiter(same, dtype=bool, count=len(table))))
    return found


def letters(captions: pa.ChunkedArray) -> np.ndarray:
    """How many letters of any script each has, [N]; 0 where there is no caption."""
    alone = pc.replace_substring_regex(captions, r"\P{L}+", "")
    return pc.fill_null(pc.utf8_length(alone), 0).to_numpy()


def longest_runs(image: np.ndarray, usable: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `images` the first row (int32) and the length (int16) of its longest run of usable rows, the first of
    equal ones; length 0 if no row is usable. `image` [rows] is the ascending number of each row's image.

    A run, and not all usable rows, so that an index names them by two numbers; an unusable row among usable ones is rare.
    """
    rows = np.flatnonzero(usable)
    goes_on = (np.diff(rows) == 1) & (np.diff(image[rows]) == 0)
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(rows)), dtype=bool), ~goes_on]))
    lengths = np.diff(np.append(starts, len(rows)))
    owners = image[rows[starts]]
    order = np.lexsort((-lengths, owners))
    found, place = np.unique(owners[order], return_index=True)
    longest = order[place]
    first, count = np.zeros(images, dtype=np.int32), np.zeros(images, dtype=np.int16)
    first[found] = rows[starts[longest]]
    count[found] = np.minimum(lengths[longest], MOST_TEXTS)
    return first, count


def evaluation_captions(sidecars: list[Path]) -> frozenset[bytes]:
    """All captions of the evaluation set in their plain form; those that consist of punctuation alone tell nothing."""
    tables: Any = (read_sidecar(path, "captions").table("captions", ["caption"]) for path in sidecars)
    return frozenset(plain(text) for table in tables for text in table["caption"].to_pylist() if text is not None) - {b""}


class _Dropped(dict):
    """For str.translate: takes out punctuation and white space."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        drops = character.isspace() or unicodedata.category(character).startswith("P")
        return self.setdefault(code, None if drops else code)


_DROPPED = _Dropped()
_DROPPED_ASCII = bytes(code for code in range(128) if _DROPPED[code] is None)


def plain(caption: str) -> bytes:
    """A caption without what does not make it another one: case, the way accents are coded (NFC), punctuation, white
    space."""
    if caption.isascii():  # most are, and this takes a tenth of the time
        return caption.lower().encode().translate(None, _DROPPED_ASCII)
    folded = unicodedata.normalize("NFC", caption).casefold().translate(_DROPPED)
    return unicodedata.normalize("NFC", folded).encode()
