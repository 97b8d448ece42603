"""Whole files from web servers and the Hugging Face hub: fetched once, resumed after a break, checked, renamed."""

import glob
import hashlib
import re
from functools import cached_property
from math import prod
from pathlib import Path
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand

from pipeline.artifacts import sha256_file
from pipeline.config.running import Downloads
from pipeline.download.hub import MAGIC, SCHEME, Hub, Place
from pipeline.download.remote import download
from pipeline.download.retry import PATIENT, Retry
from pipeline.errors import UserError
from pipeline.ledger import Unusable

MAX_FILES = 1_000_000
COUNT = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
MAX_NAME = 100  # letters; the last ones stay, they tell the format


class Files:
    """The files of one source: those on this machine, and those that are fetched into `folder`.

    A reference is a path, `hf://datasets/OWNER/NAME@REVISION/PATH` (also hf://OWNER/NAME@REVISION/… for model
    repositories), or an http(s) URL. Several processes may share the folder: each file is fetched by one of them.
    """

    def __init__(self, folder: Path, downloads: Downloads, retry: Retry = PATIENT) -> None:
        self.folder, self._downloads, self._retry = folder, downloads, retry

    def expand(self, key: str, pattern: str) -> list[str]:
        """References that a FILES pattern stands for, sorted and without duplicates: {000..199} counts, `*` matches here and
        on the hub.

        Raises: UserError naming `key` if nothing matches, or it is no such pattern.
        """
        # Looked at first, because braceexpand makes lists of the numbers.
        if prod(abs(int(last) - int(first)) + 1 for first, last in COUNT.findall(pattern)) > MAX_FILES:
            raise UserError(f"{key}: '{pattern}' stands for more than {MAX_FILES:,} files; give fewer")
        try:
            names = list(braceexpand(pattern))
        except ValueError as error:
            raise UserError(f"{key}: '{pattern}': {error}; {{000..199}} counts, and braces come in pairs") from error
        found = sorted({reference for name in names for reference in self._matches(key, name)})
        if not found or not any("://" in reference or Path(reference).exists() for reference in found):
            raise UserError(f"{key}: '{pattern}' matches no file; check the path")
        return found

    def fetch(self, reference: str, name: str | None = None, sha256: str | None = None) -> Path:
        """The file on this machine; a remote one is downloaded first, as `name` where the reference shows none. What a
        name was given for stays the same file when the query of its URL changes, as that of signed links does.

        Raises: Unusable with the class of the failure, after all attempts; UserError for what only the user can mend:
        a full disk, a dataset whose terms are to be accepted.
        """
        if reference.startswith(SCHEME):
            return _checked(self._hub.fetch(reference), reference, sha256)
        if "://" in reference:
            path = self._path(reference, name)
            download(reference, path, self._downloads, self._retry, sha256)
            return path
        if not Path(reference).is_file():
            raise Unusable("missing_file", f"{reference}: not there, or no plain file")
        return _checked(Path(reference), reference, sha256)

    def commit(self, reference: str) -> str | None:
        """The commit that the revision of a hub file stands for; None for other references."""
        if not reference.startswith(SCHEME):
            return None
        place = Place.parse(reference)
        return self._hub.commit(place.kind, place.repo, place.revision)

    def done_with(self, path: Path) -> None:
        """Delete a fetched file that is needed no more, unless runtime.downloads.keep. Others stay untouched."""
        if not self._downloads.keep and path.is_relative_to(self.folder):
            path.unlink(missing_ok=True)

    @cached_property
    def _hub(self) -> Hub:
        return Hub(self.folder, self._downloads, self._retry)

    def _matches(self, key: str, name: str) -> list[str]:
        scheme = name.partition("://")[0] if "://" in name else None
        if scheme is None:
            return glob.glob(name, recursive=True) if glob.has_magic(name) else [name]
        if scheme == "hf":
            try:
                return self._hub.matches(name) if MAGIC.search(Place.parse(name).path) else [name]
            except (UserError, Unusable) as error:
                raise UserError(f"{key}: {error}") from error
        if scheme not in ("http", "https"):
            raise UserError(f"{key}: '{name}' must be a path, hf://… or https://…")
        if "*" in name:
            raise UserError(f"{key}: '{name}': a web server cannot be asked which files match *; count with {{000..199}}")
        return [name]

    def _path(self, url: str, name: str | None) -> Path:
        """Where a file of a web server is kept. Its folder tells files of one name apart."""
        parts = urlsplit(url)
        which = hashlib.sha256(f"{name}\n{parts.path}".encode() if name else url.encode()).hexdigest()[:12]
        return self.folder / "web" / which / _safe(name or unquote(parts.path).rpartition("/")[2])


def _safe(name: str) -> str:
    """A name of a file, whatever was in it: no folder, not hidden."""
    return re.sub(r"[^\w.-]|^[.-]+", "_", name)[-MAX_NAME:].lstrip(".") or "file"


def _checked(path: Path, reference: str, sha256: str | None) -> Path:
    if sha256 is not None and (found := sha256_file(path)) != sha256.strip().lower():
        raise Unusable("wrong_hash", f"{reference}: sha256 {found}, it should be {sha256}")
    return path
