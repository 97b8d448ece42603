"""Writing one shard: a webdataset tar of what can be used, and a ledger row for every sample seen."""

import hashlib
import io
import json
import math
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.config.sources import Source
from pipeline.ledger import Unusable
from pipeline.sources.images import Picture, prepare
from pipeline.sources.sample import Raw
from pipeline.sources.text import clean_caption, clean_field, printable, safe_key

MAX_SCORES = 32
MAX_SCORE_NAME = 64  # letters
LARGEST_SCORE = 3.4e38  # of float32
MAX_LICENCE = 200  # letters


class ShardWriter:
    """A tar of key.jpg or key.png followed by key.json. Equal samples give equal bytes."""

    def __init__(self, path: Path, name: str, source: Source) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._name, self._source = name, source
        self._origins: dict[str, str] = {}  # of the keys that are stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tar.close()

    def store(self, raw: Raw) -> dict[str, Any]:
        """Store a sample if it can be used. Returns its ledger row."""
        captions, caption_notes = _captions(raw)
        scores, score_notes = clean_scores(raw.scores)
        row = _row(raw, bool(captions), scores) | {"license": _licence(raw) or self._source.license}
        try:
            picture = self._check(raw, row["key"], scores)
        except Unusable as failure:
            width, height = failure.size or (None, None)
            verdict = {"status": "bad", "reason": failure.reason, "detail": failure.detail, "width": width, "height": height}
            return row | verdict
        self._origins[row["key"]] = row["origin"]
        self._write(f"{row['key']}.{picture.suffix}", picture.data)
        self._write(f"{row['key']}.json", _description(raw, row, captions, picture, self._name))
        width, height = picture.received
        notes = (*raw.notes, *caption_notes, *score_notes, *picture.notes)
        detail = "; ".join(dict.fromkeys(notes)) or None
        return row | {"status": "ok", "detail": detail, "phash": picture.phash, "width": width, "height": height}

    def _check(self, raw: Raw, key: str, scores: dict[str, float]) -> Picture:
        if isinstance(raw.image, Unusable):
            raise raw.image
        check_nsfw(scores, self._source.max_nsfw)
        if key in self._origins:
            raise Unusable("duplicate_key", f"the key is that of {self._origins[key]}, which is stored")
        return prepare(raw.image, self._source.min_side, self._source.store_side)

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, owner and group are 0
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def clean_scores(raw: Any) -> tuple[dict[str, float], tuple[str, ...]]:
    """Scores by name, finite float32 numbers, and the notes on those that are none. A score that is null is not there."""
    given = raw.items() if isinstance(raw, dict) else ()
    named = [(name, value) for name, value in given if isinstance(name, str) and value is not None]
    scores, notes = {}, []
    for name, value in named[:MAX_SCORES]:
        name = (clean_field(name) or "")[:MAX_SCORE_NAME]
        number = _number(value)
        if name and number is not None:
            scores[name] = number
        else:
            notes.append(f"score {printable(name)} is no number")
    if len(named) > MAX_SCORES:
        notes.append(f"{len(named)} scores, the first {MAX_SCORES} are kept")
    return scores, tuple(notes)


def check_nsfw(scores: dict[str, float], most: float | None) -> None:
    """Raises: Unusable if a score whose name has `nsfw` in it is above `most`."""
    for name, value in scores.items():
        if most is not None and "nsfw" in name.lower() and value > most:
            raise Unusable("nsfw", f"{name} score {value:.4g} above {most:g}")


def _number(value: Any) -> float | None:
    """Tables without types hold numbers as text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST_SCORE else None


def _captions(raw: Raw) -> tuple[list[str], list[str]]:
    """Usable captions and the notes on the others."""
    cleaned = [clean_caption(caption) for caption in raw.captions]
    return [text for text, _ in cleaned if text], [note for _, note in cleaned if note]


def _licence(raw: Raw) -> str | None:
    given = clean_field(raw.license)
    return given and given[:MAX_LICENCE]


def _row(raw: Raw, captioned: bool, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "key": safe_key(raw.name),
        "origin": printable(raw.origin),
        "sha256": hashlib.sha256(raw.image).hexdigest() if isinstance(raw.image, bytes) else None,
        "captioned": captioned,
        "url": clean_field(raw.url),
        "scores": scores or None,
    }


def _description(raw: Raw, row: dict[str, Any], captions: list[str], picture: Picture, source: str) -> bytes:
    """key.json."""
    value = {"key": row["key"], "caption": captions[0] if captions else None}
    value |= dict(zip(("width", "height", "original_width", "original_height"), picture.size + picture.received, strict=True))
    value |= {"sha256": row["sha256"], "source": source, "url": row["url"], "license": row["license"]}
    if row["scores"]:
        value["scores"] = row["scores"]
    if raw.several:
        value["captions"] = captions
    if raw.attributes is not None:
        value["attributes"] = raw.attributes
    return json.dumps(value).encode()
