"""Writing one shard: a webdataset tar of what can be used, and a ledger row for every sample seen."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.ledger import Unusable
from pipeline.sources.images import Picture, prepare
from pipeline.sources.sample import Raw
from pipeline.sources.text import clean_caption, clean_field, printable, safe_key


class ShardWriter:
    """A tar of key.jpg or key.png followed by key.json. Equal samples give equal bytes."""

    def __init__(self, path: Path, source: str, min_side: int, store_side: int) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._source, self._min_side, self._store_side = source, min_side, store_side
        self._origins: dict[str, str] = {}  # of the keys that are stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tar.close()

    def store(self, raw: Raw) -> dict[str, Any]:
        """Store a sample if it can be used. Returns its ledger row."""
        captions, notes = _captions(raw)
        row = _row(raw, captioned=bool(captions))
        try:
            picture = self._check(raw, row["key"])
        except Unusable as failure:
            width, height = failure.size or (None, None)
            verdict = {"status": "bad", "reason": failure.reason, "detail": failure.detail, "width": width, "height": height}
            return row | verdict
        self._origins[row["key"]] = row["origin"]
        self._write(f"{row['key']}.{picture.suffix}", picture.data)
        self._write(f"{row['key']}.json", _description(raw, row, captions, picture, self._source))
        width, height = picture.received
        detail = "; ".join(dict.fromkeys((*raw.notes, *notes, *picture.notes))) or None
        return row | {"status": "ok", "detail": detail, "phash": picture.phash, "width": width, "height": height}

    def _check(self, raw: Raw, key: str) -> Picture:
        if isinstance(raw.image, Unusable):
            raise raw.image
        if key in self._origins:
            raise Unusable("duplicate_key", f"the key is that of {self._origins[key]}, which is stored")
        return prepare(raw.image, self._min_side, self._store_side)

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, owner and group are 0
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def _captions(raw: Raw) -> tuple[list[str], list[str]]:
    """Usable captions and the notes on the others."""
    cleaned = [clean_caption(caption) for caption in raw.captions]
    return [text for text, _ in cleaned if text], [note for _, note in cleaned if note]


def _row(raw: Raw, captioned: bool) -> dict[str, Any]:
    return {
        "key": safe_key(raw.name),
        "origin": printable(raw.origin),
        "sha256": hashlib.sha256(raw.image).hexdigest() if isinstance(raw.image, bytes) else None,
        "captioned": captioned,
        "url": clean_field(raw.url),
        "license": clean_field(raw.license),
    }


def _description(raw: Raw, row: dict[str, Any], captions: list[str], picture: Picture, source: str) -> bytes:
    """key.json."""
    value = {"key": row["key"], "caption": captions[0] if captions else None}
    value |= dict(zip(("width", "height", "original_width", "original_height"), picture.size + picture.received, strict=True))
    value |= {"sha256": row["sha256"], "source": source, "url": row["url"], "license": row["license"]}
    if raw.several:
        value["captions"] = captions
    if raw.attributes is not None:
        value["attributes"] = raw.attributes
    return json.dumps(value).encode()
