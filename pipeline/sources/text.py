"""Names and captions from untrusted files, made safe to store and captions cleaned, in any language.

Nothing here knows words: what is taken out of a caption is markup, addresses, file names, what is invisible, and
punctuation that repeats itself. `a < b`, `<3`, `C++`, the <PERSON> of CC12M, joined emoji and joined letters stay.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from html import unescape
from html.entities import html5
from typing import Any

KEY_CHARACTERS = 80  # with a suffix this fits a plain tar header
NOT_UTF8 = "caption is not UTF-8"
NOT_TEXT = "caption is not text"
NESTED = "caption is markup within markup"
PASSES = 8  # of the rules: what one takes out may leave work for another

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # but for white space
# Soft hyphens, zero-width and bidirectional marks.
_INVISIBLE = re.compile(r"[\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
# Joiners shape Indic and Arabic letters and emoji: they stay between two characters of such a kind.
_LOOSE_JOINER = re.compile(r"(?<![^\x00-\x7f\s\u200c\u200d])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f\s\u200c\u200d])")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Elements of HTML alone, and what follows must look like attributes. The dots stop at the next start, so that the time
# grows with the length and no faster.
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup|"
    "tt|u|var|wbr"
)
_BLOCK = (
    "address|article|aside|audio|blockquote|body|br|button|caption|center|col|colgroup|dd|details|div|dl|dt|embed|fieldset|"
    "figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|label|legend|li|link|main|map|meta|nav|"
    "noscript|object|ol|option|p|param|picture|pre|script|section|select|source|style|summary|svg|table|tbody|td|textarea|"
    "tfoot|th|thead|time|title|tr|track|ul|video"
)
_ATTRIBUTE = r"""\s+[A-Za-z_:][\w:.-]*\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s"'<>]+)"""
_TAG = re.compile(
    rf"(?P<gone><!--(?:(?!<!--).)*?-->|<(?P<kind>script|style)\b[^<>]*>(?:(?!<(?:script|style)\b).)*?</(?P=kind)\s*>)|"
    rf"</?(?:(?P<inline>{_INLINE})|{_BLOCK})(?:{_ATTRIBUTE})*\s*/?>",
    re.IGNORECASE | re.DOTALL,
)
_URL = re.compile(r" ?(?:\b[a-z][a-z0-9+.-]{1,9}://|\bwww\.)[\w.~:/?#\[\]@!$&'()*+,;=%-]*[\w~/#=&%-]", re.IGNORECASE | re.ASCII)
_EMAIL = re.compile(r" ?(?:mailto:)?\b[\w.%+-]{1,64}@(?:[a-z0-9-]{1,63}\.)+[a-z]{2,24}\b", re.IGNORECASE | re.ASCII)
_FILE = re.compile(
    r"(?P<stem>.*)\.(?:jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|heic|heif|svg|psd|raw|cr2|nef|arw|dng|mp4|mov)", re.IGNORECASE
)
_CAMERA = re.compile(r"(?:IMG|DSC[FN]?|PICT|PXL|GOPR|MVI|SAM|VID|CIMG|HPIM)[-_ ]?[0-9][0-9_ -]{2,}", re.IGNORECASE)
_ENDS = "!?！？؟,，،;；"  # one of these is enough, even of two
_MARKS = r"""."#$%&'()*+\-/:<=>@\[\\\]^_`{|}~¡¿«»·•…‥–—―‘’“”„、。〃「」『』【】《》〈〉（）［］｛｝：．・～｡۔।॥"""
_REPEATED = re.compile(rf"([{_ENDS}])(?: ?\1)+|([{_ENDS}]{{2}})\2+|([{_MARKS}])(?: ?\3){{2,}}")


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
    """A caption of any origin to (caption, note), both None where there is none.

    A caption that is not text, or that cleaning leaves nothing of, is None with a note that says why. Length is left
    alone, and a clean caption is its own clean form.
    """
    text, note = plain_text(raw)
    for _ in range(PASSES if text else 0):
        before = text
        for what, rule in _RULES:
            changed = rule(text)
            if changed != text:
                text = _plain(changed)
            if not text:
                return None, f"caption is {what} only"
        if text == before:
            return text, None
    return (None, NESTED) if text else (None, note)


def clean_field(raw: Any) -> str | None:
    """A URL or a licence: without control characters, None if it cannot be used."""
    return plain_text(raw)[0]


def printable(text: str) -> str:
    """A file name with what is not UTF-8 or not printable in it written as escapes."""
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in escaped)


def plain_text(raw: Any) -> tuple[str | None, str | None]:
    """Plain text, and why there is none: not text, or not UTF-8."""
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


def _plain(text: str) -> str:
    """Control characters out, runs of white space to one space."""
    return " ".join((text if text.isprintable() else _CONTROL.sub("", text)).split())


def _visible(text: str) -> str:
    """NFC, without what takes no room and shapes nothing."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _LOOSE_JOINER.sub("", _INVISIBLE.sub("", text)))


def _without_entities(text: str) -> str:
    """`&eacute;` to é. Names without a semicolon are no entities here: rock&parade is no paragraph sign."""
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    return unescape(entity[0]) if entity[0][1] == "#" else html5.get(entity[0][1:], entity[0])


def _without_tags(text: str) -> str:
    """Tags of HTML, and scripts with what is in them; H<sub>2</sub>O is one word, what <br> parts are two."""
    return _TAG.sub(lambda tag: "" if tag["inline"] else " ", text) if "<" in text else text


def _without_addresses(text: str) -> str:
    if "://" in text or "www." in text.lower():
        text = _URL.sub("", text)
    return _EMAIL.sub("", text) if "@" in text else text


def _without_file_name(text: str) -> str:
    """Nothing of IMG_1234.JPG; of `a red bicycle.jpg`, which says something, all but the suffix."""
    if file := _FILE.fullmatch(text):
        stem = file["stem"]
        return stem if " " in stem.strip() or not stem.isascii() else ""
    return "" if _CAMERA.fullmatch(text) else text


def _once(text: str) -> str:
    """!!!!!! to !, ?!?!?! to ?!, ------ to -; dots to an ellipsis. Two of what comes in twos, as in C++, stay."""
    return _REPEATED.sub(lambda run: "..." if run[3] == "." else run[1] or run[2] or run[3], text)


_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("invisible characters", _visible),
    ("markup", _without_entities),
    ("markup", _without_tags),
    ("an address", _without_addresses),
    ("a file name", _without_file_name),
    ("punctuation", _once),
)
