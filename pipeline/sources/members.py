"""Members of tars (plain or compressed) and zips, read as streams with the standard library: nothing is unpacked, and no
name of a member becomes a path here. Folders and hidden members (".x", "._x.jpg") are passed over.
"""

import errno
import gzip
import io
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.sample import IMAGE_SUFFIXES

MB = 2**20
# What an archive may grow to when it is decompressed: text shrinks to a tenth, images not at all, bombs to a thousandth.
MAX_GROWTH = 200
FREE_BYTES = 2**30
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


class Member(NamedTuple):
    """A plain file of an archive. It is read before the next member is asked for, or not at all."""

    name: str
    size: int  # in bytes, as the archive says
    file: IO[bytes] | Unusable  # raises Unusable where the archive breaks off

    def read(self, limit: int) -> bytes | Unusable:
        """All of it, if it has at most `limit` bytes, or why it cannot be read.

        Raises: Unusable where the archive breaks off.
        """
        if isinstance(self.file, Unusable):
            return self.file
        if self.size > limit:
            return Unusable("too_large", f"{self.size} bytes, the limit is {limit}")
        try:
            return self.file.read()
        except Unusable as failure:
            if failure.reason == "unreadable_file":  # this member alone
                return failure
            raise


def is_zip(path: Path) -> bool:
    """Raises: UserError if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(4) in ZIP_MAGIC
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error


def stem(name: str) -> str:
    """A name without its folder and the suffix of an image or its text."""
    last = re.split(r"[/\\]", name)[-1]
    before, dot, suffix = last.rpartition(".")
    return before if dot and suffix.lower() in IMAGE_SUFFIXES | {"txt"} else last


def members(path: Path) -> Iterator[Member]:
    """Members of a tar or zip, by its first bytes, in its order.

    Raises: Unusable where the archive breaks off, or grows beyond all measure; UserError if it cannot be opened.
    """
    if is_zip(path):
        yield from zip_members(path)
    else:
        with path.open("rb") as file:
            yield from tar_members(file)


def tar_members(file: IO[bytes]) -> Iterator[Member]:
    """Members of a tar, which is read from its first byte to its last.

    Raises: Unusable where the archive breaks off, or grows beyond all measure.
    """
    most = _most_bytes(file)
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
        if words := _unsafe(name) or (None if member.isreg() or member.isdir() else "link, device or pipe, no plain file"):
            yield Member(_plain(name), member.size, Unusable("unsafe_member", words))
        elif not member.isdir() and not _is_hidden(name):
            yield Member(_plain(name), member.size, io.BufferedReader(_TarContent(tar, member, most), MB))
        with _breaches(name):
            _skip_rest(tar, most)


def zip_members(path: Path) -> Iterator[Member]:
    """Members of a zip, in the order of its directory, which stands at its end: of a zip that is cut off nothing is left.

    Raises: Unusable if the zip is damaged, or grows beyond all measure.
    """
    with path.open("rb") as file:
        most, grown = _most_bytes(file), 0
        with _zip_breaches():
            archive = zipfile.ZipFile(file)
        for info in archive.infolist():
            if info.filename.endswith("/") or _is_hidden(info.filename):
                continue
            grown += info.file_size
            _check_growth(grown, most)
            if words := _unsafe(info.filename) or _odd(info):
                yield Member(_plain(info.filename), info.file_size, Unusable("unsafe_member", words))
            else:
                yield Member(_plain(info.filename), info.file_size, io.BufferedReader(_ZipContent(archive, info), MB))


def gunzip(file: IO[bytes], size: int) -> IO[bytes]:
    """Content of a gzip file of `size` bytes. Reading it raises Unusable where it is damaged, or grows beyond all measure."""
    return io.BufferedReader(_Gunzip(gzip.GzipFile(fileobj=file), _most(size)), MB)


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") and not _unsafe(name)


def _unsafe(name: str) -> str | None:
    """Why a name is none to follow."""
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", name):
        return "absolute path"
    return "path that leaves its folder" if ".." in re.split(r"[/\\]", name) else None


def _odd(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return None if kind in (0, stat.S_IFREG) else "link, device or pipe, no plain file"


def _most(size: int) -> int:
    return max(FREE_BYTES, MAX_GROWTH * size)


def _most_bytes(file: IO[bytes]) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _most(size)


def _check_growth(bytes_: int, most: int) -> None:
    if bytes_ > most:
        raise Unusable("too_large", f"decompresses to more than {most} bytes, {MAX_GROWTH} times its size; what follows is lost")


class _Gunzip(io.RawIOBase):
    def __init__(self, file: gzip.GzipFile, most: int) -> None:
        self._file, self._most = file, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        _check_growth(self._file.tell(), self._most)
        try:
            return self._file.readinto(buffer)
        except EOFError as error:
            raise Unusable("truncated_archive", "ends before its gzip end mark") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise Unusable("damaged_archive", f"no gzip, or damaged ({error})") from error


class _TarContent(io.RawIOBase):
    """Content of a tar's member."""

    def __init__(self, tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> None:
        self._tar, self._name, self._most = tar, member.name, most
        self._file = tar.extractfile(member)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        _check_growth(self._tar.fileobj.tell(), self._most)
        with _breaches(self._name):
            return self._file.readinto(buffer)

    def readall(self) -> bytes:
        with _breaches(self._name):
            return self._file.read()


class _ZipContent(io.RawIOBase):
    """Content of a zip's member, opened when it is read. A damaged member says nothing of the others."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._archive, self._info = archive, info
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        with self._faults():
            return self._opened().readinto(buffer)

    def readall(self) -> bytes:
        with self._faults():
            return self._opened().read()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _opened(self) -> IO[bytes]:
        self._file = self._file or self._archive.open(self._info)
        return self._file

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # encrypted, of an unknown compression, or damaged in any way
            if _is_of_the_disk(error):
                raise UserError(f"{self._archive.fp.name}: cannot be read ({error.strerror})") from error
            raise Unusable("unreadable_file", f"{type(error).__name__}: {error}"[:200]) from error


def _skip_rest(tar: tarfile.TarFile, most: int) -> None:
    """To the last byte before the next header. tarfile does so too, but goes on at the file's end: a header that
    claims 2^60 bytes would keep it busy for ever."""
    while (gap := tar.offset - 1 - tar.fileobj.tell()) > 0:
        _check_growth(tar.fileobj.tell(), most)
        if not tar.fileobj.read(min(gap, MB)):
            raise EOFError("unexpected end of data")


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
    except Unusable:
        raise
    except OSError as error:  # the disk, not the archive
        raise UserError(f"reading a tar at {name} failed ({error.strerror or error})") from error
    except Exception as error:  # as for images: damaged bytes lead to anything
        if isinstance(error, EOFError) or "unexpected end of data" in str(error):
            raise Unusable("truncated_archive", f"ends in or behind {name}; what follows is lost ({error})") from error
        raise Unusable("damaged_archive", f"no tar from {name} on; what follows is lost ({error})") from error


@contextmanager
def _zip_breaches() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as above
        if _is_of_the_disk(error):
            raise UserError(f"reading a zip failed ({error.strerror})") from error
        raise Unusable("damaged_archive", f"no zip, or one that is cut off ({error})") from error


def _is_of_the_disk(error: Exception) -> bool:
    """Not of the archive: damaged offsets lead to EINVAL, damaged bytes to errors without a number."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
