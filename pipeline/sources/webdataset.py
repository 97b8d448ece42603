"""Tars of samples: members of one stem that follow each other, key.jpg with key.txt and/or key.json.

Tars are sorted by path and dealt out to the shards in turn. They are read as streams with the standard library and
nothing is unpacked; compressed ones work too. Hidden members (".x", "._x.jpg") belong to no sample.
"""

import glob
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.config.sources import WebdatasetSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.sample import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Inputs, Listing, Raw

MB = 2**20


def open_shard(name: str, source: WebdatasetSource, shard: int, inputs: Inputs) -> Listing:
    """Samples of the tars of one shard; progress is in megabytes of them.

    Raises: UserError if no tar is there, or none of them holds a sample.
    """
    tars = sorted(Path(path) for path in glob.glob(source.path, recursive=True))
    if folders := [str(path) for path in tars if path.is_dir()]:
        raise UserError(f"sources.{name}.path: {folders[0]} is a folder; name its tars, as in {folders[0]}/*.tar")
    if not tars:
        raise UserError(f"sources.{name}.path: no tar matches {source.path}; give a tar, or a pattern such as data/*.tar")
    mine = tars[shard :: source.shards]
    total = sum(path.stat().st_size for path in mine) // MB
    return Listing(total, "MB", _samples(name, tars, mine))


def _samples(name: str, tars: list[Path], mine: list[Path]) -> Iterator[tuple[int, Raw]]:
    found, before = False, 0
    for path in mine:
        with _open(path) as file:
            for raw in read_tar(file, path):
                found = True
                yield (before + file.tell()) // MB, raw
        before += path.stat().st_size
    if mine and not found and not any(_holds_samples(path) for path in tars):
        raise UserError(f"sources.{name}.path: no samples in {len(tars)} tars, the first is {tars[0]}")


def _holds_samples(path: Path) -> bool:
    with _open(path) as file:
        return any(True for _ in islice(read_tar(file, path), 1))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
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

    def raw(self) -> Raw:
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


def read_tar(file: Any, path: Path) -> Iterator[Raw]:
    """Samples of a tar in their order, and one for each member that is unsafe. An archive that breaks off gives all
    that came before, then one unusable sample that says where."""
    group: _Group | None = None
    try:
        for member, content in _members(file):
            name = member.name.removeprefix("./")
            if isinstance(content, Unusable) and content.reason == "unsafe_member":
                yield Raw(name, f"{path}:{name}", content)
                continue
            stem, suffix = _split(name)
            if group is None or stem != group.stem or suffix in group.parts:
                if group is not None:
                    yield group.raw()
                group = _Group(stem, f"{path}:{stem}")
            group.parts[suffix] = content
    except Unusable as breach:
        if group is not None and group.images:
            yield group.raw()
        yield Raw(path.name, str(path), breach)
    else:
        if group is not None:
            yield group.raw()


def _split(name: str) -> tuple[str, str]:
    """As webdataset does: the stem ends at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _members(file: Any) -> Iterator[tuple[tarfile.TarInfo, bytes | Unusable | None]]:
    """Members with their content, where a sample needs it. Folders and hidden members are passed over.

    Raises: Unusable where the archive breaks off.
    """
    with _breaches("the first header"):
        tar = tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header)  # noqa: SIM115
    name = "the first header"
    while True:
        with _breaches(name):
            member = tar.next()
        if member is None:
            return
        tar.members.clear()  # or the headers of all members stay in memory
        name = member.name
        if words := _danger(member):
            yield member, Unusable("unsafe_member", words)
        elif not member.isdir() and not name.rpartition("/")[2].startswith("."):
            with _breaches(name):
                content = _content(tar, member)
            yield member, content
        with _breaches(name):
            _skip_rest(tar)


def _skip_rest(tar: tarfile.TarFile) -> None:
    """To the last byte before the next header. tarfile does so too, but goes on at the file's end: a header that
    claims 2^60 bytes would keep it busy for ever."""
    while (gap := tar.offset - 1 - tar.fileobj.tell()) > 0:
        if not tar.fileobj.read(min(gap, MB)):
            raise EOFError("unexpected end of data")


def _danger(member: tarfile.TarInfo) -> str | None:
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", member.name):
        return "absolute path"
    if ".." in re.split(r"[/\\]", member.name):
        return "path that leaves its folder"
    return None if member.isreg() or member.isdir() else "link, device or pipe, no plain file"


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Unusable | None:
    suffix = _split(member.name)[1]
    if suffix not in IMAGE_SUFFIXES and suffix not in ("txt", "json"):
        return None
    limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    if member.size > limit:
        return Unusable("too_large", f"{member.size} bytes, the limit is {limit}")
    return tar.extractfile(member).read()


class _Header(tarfile.TarInfo):
    """tarfile takes a cut or damaged header for the end of the archive; this tells them apart."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:
            raise  # the end mark
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:
            raise EOFError("no end mark") from error
        except tarfile.HeaderError as error:
            raise ValueError(f"no tar header at byte {tarfile_.offset}: {error}") from error


@contextmanager
def _breaches(name: str) -> Iterator[None]:
    """Turn whatever tarfile raises on a broken archive into an Unusable that names the member it was at."""
    try:
        yield
    except OSError as error:  # the disk, not the archive
        raise UserError(f"reading a tar at {name} failed ({error.strerror or error})") from error
    except Exception as error:  # as for images: damaged bytes lead to anything
        if isinstance(error, EOFError) or "unexpected end of data" in str(error):
            raise Unusable("truncated_archive", f"ends in or behind {name}; what follows is lost ({error})") from error
        raise Unusable("damaged_archive", f"no tar from {name} on; what follows is lost ({error})") from error
