"""Tars or zips of images and a table with their captions: SA-1B, JourneyDB, DiffusionDB.

Archives are sorted by name and dealt out to the shards in turn. They are read as streams and nothing is unpacked. An image
is named by its member's name without folder and suffix, and its row in the table is the one of that id.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.sources import ArchivesSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.fraction import file_shares, takes
from pipeline.sources.in_turn import NO_URLS, InTurn
from pipeline.sources.lookup import TableReader
from pipeline.sources.members import Member, members, stem
from pipeline.sources.sample import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, Inputs, Listing, Raw, checked

MAX_LINKS_BYTES = 64 * 2**20
ENOUGH = 100  # images without a row that tell a wrong column from gaps in a table
NO_ROW: Mapping[str, Any] = {"captions": [], "url": None, "license": None, "sha256": None, "scores": {}, "note": None}


def open_shard(name: str, source: ArchivesSource, shard: int, inputs: Inputs) -> Listing:
    """Images of the archives of one shard.

    Raises: UserError if no archive is named, or too few are received whole.
    """
    key = f"sources.{name}.{'links' if source.links else 'files'}"
    urls = _links(key, Path(source.links)) if source.links else NO_URLS
    archives = sorted(urls) or inputs.files.expand(key, source.files)
    shares = file_shares(archives, source.fraction)
    mine = InTurn(key, list(shares)[shard :: source.shards], inputs, urls)
    captions = _Captions(f"sources.{name}.columns.id", inputs.table)
    return Listing(len(mine), "archives", _samples(mine, shares, captions), mine.delete, len(archives) - len(shares))


def _links(key: str, path: Path) -> dict[str, str]:
    """URLs by the archive's name, of a text file with a line each. The first line may name the columns.

    Raises: UserError naming the line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig") if path.stat().st_size <= MAX_LINKS_BYTES else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if text is None:
        raise UserError(f"{key}: {path} has more than {MAX_LINKS_BYTES} bytes; give the file of names and links alone")
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    given = [(number, words) for number, words in lines if words and not words[0].startswith("#")]
    if given and not _is_url(given[0][1][-1]):
        del given[0]
    found: dict[str, str] = {}
    for number, words in given:
        if len(words) != 2 or not _is_url(words[1]):
            raise UserError(f"{key}: {path}:{number}: must be the name of an archive, a tab or space, and its URL")
        if words[0] in found:
            raise UserError(f"{key}: {path}:{number}: {words[0]} is there twice; keep one of its lines")
        found[words[0]] = words[1]
    if not found:
        raise UserError(f"{key}: {path} names no archive; give a line each: its name, a tab, its URL")
    return found


def _is_url(word: str) -> bool:
    return word.startswith(("http://", "https://"))


def _samples(archives: InTurn, shares: dict[str, float], captions: "_Captions") -> Iterator[tuple[float, Raw | None]]:
    """None for an image that the key `fraction` passes over. An archive that breaks off gives all that came before, then one
    unusable sample that says where."""
    for place, (reference, path) in enumerate(archives):
        name = _shown(reference)
        if isinstance(path, Unusable):
            yield place + 1, Raw(name, name, path)
            continue
        found = False
        try:
            for done, member in _images(path):
                found = True
                yield place + done, _sample(name, member, captions) if takes(stem(member.name), shares[reference]) else None
            if not found:
                raise Unusable("no_image", "an archive without an image")
        except Unusable as breach:
            yield place + 1, Raw(name, name, breach)
            archives.count_lost(reference, breach)
    captions.check()


def _images(path: Path) -> Iterator[tuple[float, Member]]:
    """Images of an archive, and members that are unsafe, with the share of it that is done."""
    size, done = max(path.stat().st_size, 1), 0
    for member in members(path):
        done += member.size
        if isinstance(member.file, Unusable) or member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            yield min(done / size, 1.0), member


class _Captions:
    """The rows of the table by the image's name."""

    def __init__(self, key: str, table: Path | None) -> None:
        self._key, self._table = key, TableReader(table) if table else None
        self._first: str | None = None
        self._looked_up = self._found = 0

    def row(self, name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """A row, which is empty if there is none, and the notes on it."""
        if self._table is None:
            return NO_ROW, ()
        row = self._table.find(name)
        self._first, self._looked_up, self._found = self._first or name, self._looked_up + 1, self._found + (row is not None)
        if row is None:
            return NO_ROW, ("no row of its id in the table",)
        return row, (row["note"],) if row["note"] else ()

    def check(self) -> None:
        """Raises: UserError if the ids are of another kind than the names."""
        if self._looked_up >= ENOUGH and not self._found:
            id_ = next(self._table.between(0, 1))["id"]
            raise UserError(
                f"{self._key}: no row for any of {self._looked_up} images; the first image is {self._first}, the first id {id_}: "
                "name the column that holds the images' names"
            )


def _shown(reference: str) -> str:
    """The name of an archive, without where it came from: links may be secrets."""
    return (urlsplit(reference).path if "://" in reference else reference).rpartition("/")[2]


def _sample(archive: str, member: Member, captions: _Captions) -> Raw:
    name = stem(member.name)
    image = member.read(MAX_IMAGE_BYTES)
    row, notes = captions.row(name)
    return Raw(
        name=name,
        origin=f"{archive}:{member.name}",
        image=checked(image, row["sha256"]),
        captions=tuple(row["captions"]),
        several=len(row["captions"]) > 1,
        url=row["url"],
        license=row["license"],
        scores=row["scores"],
        notes=notes,
    )
