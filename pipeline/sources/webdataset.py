"""Tars of samples: members of one stem that follow each other, key.jpg with key.txt and/or key.json.

Tars are sorted by name and dealt out to the shards in turn. They are read as streams, one after the other, and nothing is
unpacked; compressed ones work too. Hidden members (".x", "._x.jpg") belong to no sample.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from pipeline.config.sources import WebdatasetSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.columns import value
from pipeline.sources.fraction import file_shares, takes
from pipeline.sources.in_turn import InTurn, shown
from pipeline.sources.members import Member, tar_members
from pipeline.sources.sample import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Inputs, Listing, Raw

NO_SCORES: Mapping[str, str] = MappingProxyType({})


def open_shard(name: str, source: WebdatasetSource, shard: int, inputs: Inputs) -> Listing:
    """Samples of the tars of one shard.

    Raises: UserError if no tar is there, too few can be fetched, or none of them holds a sample.
    """
    key = f"sources.{name}.path"
    tars = inputs.files.expand(key, source.path)
    if folders := [tar for tar in tars if Path(tar).is_dir()]:
        raise UserError(f"{key}: {folders[0]} is a folder; name its tars, as in {folders[0]}/*.tar")
    shares = file_shares(tars, source.fraction)
    mine = InTurn(key, list(shares)[shard :: source.shards], inputs)
    return Listing(len(mine), "tars", _samples(key, source, mine, shares), mine.delete, len(tars) - len(shares))


def _samples(key: str, source: WebdatasetSource, tars: InTurn, shares: dict[str, float]) -> Iterator[tuple[float, Raw | None]]:
    """None for a sample that the key `fraction` passes over."""
    found = False
    for place, (reference, path) in enumerate(tars):
        if isinstance(path, Unusable):
            found = True
            yield place + 1, Raw(shown(reference), shown(reference), path)
            continue
        with _open(path) as file:
            size = path.stat().st_size
            for raw in read_tar(file, shown(reference), source.scores):
                found = True
                yield place + file.tell() / max(size, 1), raw if takes(raw.name, shares[reference]) else None
    if len(tars) and not found and not any(map(_holds_samples, shares)):
        raise UserError(f"{key}: no samples in {len(shares)} tars, the first is {shown(next(iter(shares)))}")


def _holds_samples(reference: str) -> bool:
    """Of a tar that is on this machine; others are not fetched to look into them."""
    if "://" in reference or not Path(reference).is_file():
        return False
    with _open(Path(reference)) as file:
        return next(read_tar(file, reference), None) is not None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
    with file:
        yield file


@dataclass
class _Group:
    """Members of one stem, by suffix. Of a member that no sample needs the name alone."""

    stem: str
    origin: str
    parts: dict[str, bytes | Unusable | None] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        return [suffix for suffix in self.parts if suffix in IMAGE_SUFFIXES]

    def raw(self, scores: Mapping[str, str]) -> Raw:
        """The sample, with the first of its images and the caption of its .txt before that of its .json."""
        images = self.images
        text, text_notes = _text(self.parts, "txt")
        table, table_notes = _text(self.parts, "json")
        fields, field_notes = _fields(table)
        several = (f"it has {', '.join(images)}, the first is used",) if len(images) > 1 else ()
        return Raw(
            name=self.stem,
            origin=".".join((self.origin, *images[:1])),
            image=self.parts[images[0]] if images else _no_image(self),
            captions=(text, fields.get("caption")),
            url=fields.get("url"),
            license=fields.get("license"),
            scores={score: value(fields, name) for score, name in scores.items()},
            notes=(*several, *text_notes, *table_notes, *field_notes),
        )


def _no_image(group: _Group) -> Unusable:
    found = ", ".join(group.parts)
    return Unusable("no_image", f"only {found}; the members of a sample must follow each other in the tar")


def _text(parts: dict[str, bytes | Unusable | None], suffix: str) -> tuple[bytes | None, tuple[str, ...]]:
    """A .txt or .json member, if it is there, and why it is not used."""
    part = parts.get(suffix)
    if isinstance(part, Unusable):
        return None, (f"its .{suffix} is not used: {part.detail}",)
    return part, ()


def _fields(table: bytes | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of a key.json, and what is wrong with it."""
    if table is None:
        return {}, ()
    try:
        value = json.loads(table)
    except (ValueError, RecursionError):
        return {}, ("its .json is not JSON",)
    return (value, ()) if isinstance(value, dict) else ({}, ("its .json holds no fields",))


def read_tar(file: IO[bytes], where: str, scores: Mapping[str, str] = NO_SCORES) -> Iterator[Raw]:
    """Samples of the tar `where` in their order, and one for each member that is unsafe. An archive that breaks off gives
    all that came before, then one unusable sample that says where. `scores` are names and the fields that hold them."""
    group: _Group | None = None
    try:
        for member in tar_members(file):
            name, content = member.name, _content(member)
            if isinstance(content, Unusable) and content.reason == "unsafe_member":
                yield Raw(name, f"{where}:{name}", content)
                continue
            stem, suffix = _split(name)
            if group is None or stem != group.stem or suffix in group.parts:
                if group is not None:
                    yield group.raw(scores)
                group = _Group(stem, f"{where}:{stem}")
            group.parts[suffix] = content
    except Unusable as breach:
        if group is not None and group.images:
            yield group.raw(scores)
        yield Raw(where, where, breach)
    else:
        if group is not None:
            yield group.raw(scores)


def _split(name: str) -> tuple[str, str]:
    """As webdataset does: the stem ends at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _content(member: Member) -> bytes | Unusable | None:
    """Content of a member, where a sample needs it."""
    if isinstance(member.file, Unusable):
        return member.file
    suffix = _split(member.name)[1]
    if suffix not in IMAGE_SUFFIXES and suffix not in ("txt", "json"):
        return None
    return member.read(MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES)
