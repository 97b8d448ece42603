"""Names and captions from untrusted files, made safe to store."""

import hashlib
import re
import unicodedata
from typing import Any

KEY_CHARACTERS = 80  # with a suffix this fits a plain tar header
NOT_UTF8 = "caption is not UTF-8"
NOT_TEXT = "caption is not text"


def safe_key(name: str) -> str:
    """A key of [A-Za-z0-9_-], at most 80 long: usable as tar member and file name, the dot starts the suffix.

    A name that is one already stays; any other gets a hash, so that two names that differ keep different keys.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if plain == name and 0 < len(name) <= KEY_CHARACTERS:
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{plain[: KEY_CHARACTERS - 11]}-{mark}"


def stable_shard(key: str, shards: int) -> int:
    """The shard of a key: the same whatever else the source holds."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % shards


def clean_caption(raw: Any) -> tuple[str | None, str | None]:
    """A caption of any origin to (caption, note): control characters out, runs of white space to one space.

    The caption is None where there is none: nothing given, nothing left, not text, not UTF-8. The note says which of
    the last two. Length, emoji and right-to-left text are left alone.
    """
    if raw is None:
        return None, None
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        if not isinstance(text, str):
            return None, NOT_TEXT
        text.encode("utf-8")  # a lone surrogate stands for a byte that was not UTF-8
    except UnicodeError:
        return None, NOT_UTF8
    return _plain(text) or None, None


def clean_field(raw: Any) -> str | None:
    """A URL or a licence: as a caption, None if it cannot be used."""
    return clean_caption(raw)[0]


def printable(text: str) -> str:
    """A file name with what is not UTF-8 or not printable in it written as escapes."""
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in escaped)


def _plain(text: str) -> str:
    kept = (c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    return " ".join("".join(kept).split())
