"""Files of the Hugging Face hub, by huggingface_hub: what it downloads is whole or not there."""

import os
import re
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from huggingface_hub import DryRunFileInfo, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.artifacts import check_room
from pipeline.config.running import Downloads
from pipeline.download.hosts import line
from pipeline.download.retry import Later, Retry
from pipeline.download.room import writing
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.lock import alone_at
from pipeline.runtime import progress

SCHEME = "hf://"
# A revision has no slash but in the names of the hub's own: refs/convert/parquet, refs/pr/1.
REFERENCE = re.compile(
    r"hf://(?P<datasets>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>refs/\w+/[\w.-]+|[\w.-]+)/(?P<path>.+)"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
MAGIC = re.compile(r"[*?[]")
MB = 10**6


class Place(NamedTuple):
    """Where a file is on the hub."""

    kind: str  # dataset | model
    repo: str  # OWNER/NAME
    revision: str
    path: str

    @classmethod
    def parse(cls, reference: str) -> Self:
        """Raises: UserError if it is no reference to a file on the hub."""
        found = REFERENCE.fullmatch(reference)
        if not found or any(part in ("", ".", "..") for part in found["path"].split("/")):
            raise UserError(
                f"{reference}: must be hf://datasets/OWNER/NAME@REVISION/PATH, without datasets/ for a model; a commit hash "
                "is a revision that stays"
            )
        return cls("dataset" if found["datasets"] else "model", found["repo"], found["revision"], found["path"])

    @property
    def page(self) -> str:
        return f"{_endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def __str__(self) -> str:
        return f"{SCHEME}{'datasets/' if self.kind == 'dataset' else ''}{self.repo}@{self.revision}/{self.path}"


class Hub:
    """Asks the hub, as often as downloads.attempts says."""

    def __init__(self, folder: Path, downloads: Downloads, retry: Retry) -> None:
        self._folder, self._downloads, self._retry = folder, downloads, retry
        self._api = HfApi(endpoint=_endpoint())
        self.commit = cache(self._commit)

    def matches(self, reference: str) -> list[str]:
        """References to the files that a pattern with * ? [] or ** matches, sorted.

        Raises: UserError if the repository is not there or is closed to us, Unusable if the hub does not answer.
        """
        place = Place.parse(reference)
        parts = place.path.split("/")
        fixed = next(number for number, part in enumerate(parts) if MAGIC.search(part))
        try:
            paths = self._ask(place, self._list, place, "/".join(parts[:fixed]), len(parts) > fixed + 1)
        except Unusable as error:
            if error.reason == "missing_file":  # the fixed part of the path
                return []
            raise
        return sorted(str(place._replace(path=path)) for path in paths if matches(path.split("/"), parts))

    def fetch(self, reference: str) -> Path:
        """The file in the folder, downloaded unless it is there.

        Raises: as `matches`; Unusable (missing_file) if the repository has no such file.
        """
        place = Place.parse(reference)
        commit = self.commit(place.kind, place.repo, place.revision)
        folder = self._folder / "hub" / f"{place.kind}s--{place.repo.replace('/', '--')}" / commit
        with writing(folder, 0):
            folder.mkdir(parents=True, exist_ok=True)
        with alone_at(folder / place.path.replace("/", "--")):
            return self._ask(place, self._download, place._replace(revision=commit), folder)

    def _commit(self, kind: str, repo: str, revision: str) -> str:
        """The commit that a revision stands for, asked for once a process."""
        if COMMIT.fullmatch(revision):
            return revision
        place = Place(kind, repo, revision, "")
        return self._ask(place, lambda: self._api.repo_info(repo, repo_type=kind, revision=revision).sha)

    def _list(self, place: Place, prefix: str, deep: bool) -> list[str]:
        commit = self.commit(place.kind, place.repo, place.revision)
        where = {"path_in_repo": prefix or None, "recursive": deep, "revision": commit, "repo_type": place.kind}
        return [entry.path for entry in self._api.list_repo_tree(place.repo, **where) if hasattr(entry, "blob_id")]

    def _download(self, place: Place, folder: Path) -> Path:
        asked: dict[str, Any] = {"repo_type": place.kind, "revision": place.revision, "local_dir": folder}
        asked |= {"endpoint": _endpoint(), "tqdm_class": _Bar}
        found = hf_hub_download(place.repo, place.path, dry_run=True, **asked)
        assert isinstance(found, DryRunFileInfo)
        if not found.will_download:
            return Path(found.local_path)
        for leftover in (folder / ".cache").rglob(f"{Path(place.path).name}.*.incomplete"):
            leftover.unlink()  # of a process that was killed: this one has the lock
        needed = found.file_size or 0
        check_room(folder, needed)
        with writing(folder, needed):
            return Path(hf_hub_download(place.repo, place.path, **asked))

    def _ask(self, place: Place, question: Any, *args: Any) -> Any:
        for attempt in self._retry.blocking_tries(self._downloads.attempts):
            with attempt:
                try:
                    return question(*args)
                # hf_xet raises RuntimeErrors for what goes wrong on its way.
                except (HTTPError, OSError, HFValidationError, RuntimeError) as error:
                    raise _fault(error, place) from error
        raise AssertionError("tenacity returns or raises")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def matches(path: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` stands for any number of folders, `*` for no slash."""
    if not pattern or not path:
        return pattern == path or pattern == ["**"]
    if pattern[0] == "**":
        return matches(path, pattern[1:]) or matches(path[1:], pattern)
    return fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


def _fault(error: Exception, place: Place) -> Exception:
    """What huggingface_hub raises, by the classes of this program."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _fault(error.__cause__, place)  # no network, and so it looked for the file here
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) or status == 403:
        return UserError(
            f"{place}: its owners ask you to accept their terms: do so at {place.page} and set HF_TOKEN to a token of that "
            "account (https://huggingface.co/settings/tokens)"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        hint = f"check the name; if it is private or gated, ask for access at {place.page} and set HF_TOKEN"
        return UserError(f"{place}: the hub shows no such {place.kind}; {hint}")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{place}: {place.page} has no revision '{place.revision}'; see its history for commits")
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{place}: not here yet, and HF_HUB_OFFLINE forbids to ask the hub; unset it")
    if isinstance(error, HFValidationError):
        return UserError(f"{place}: {error}")
    if isinstance(error, RemoteEntryNotFoundError):
        return Unusable("missing_file", f"{place}: the {place.kind} has no such file at that revision")
    return _network_fault(error, place, status)


def _network_fault(error: Exception, place: Place, status: int | None) -> Exception:
    words = f"{place}: {line(error)}"
    if status is not None:
        passing = status >= 500 or status == 429
        return Later("http_429" if status == 429 else "http_5xx", words) if passing else Unusable("http_4xx", words)
    if isinstance(error, HTTPError | RuntimeError):
        return Later("timeout" if "Timeout" in type(error).__name__ else "connection", words)
    # huggingface_hub's own OSErrors, which have no number, say that bytes are missing.
    return error if getattr(error, "errno", None) else Later("truncated", words)


class _Bar:
    """The progress bar of all downloads, in the form that huggingface_hub asks for; bytes in, MB shown."""

    def __init__(self, desc: str = "", total: float | None = None, initial: float = 0, **_: Any) -> None:
        self._stack, self._bytes = ExitStack(), initial
        name = desc.removesuffix(": reconstructing file").rpartition("/")[2]
        self._bar = self._stack.enter_context(progress(f"fetch {name}", 0, "MB", initial=int(initial // MB)))
        self.total = total

    @property
    def total(self) -> float | None:
        return self._bar.total

    @total.setter
    def total(self, value: float | None) -> None:
        self._bar.total = None if value is None else -(-int(value) // MB)

    def update(self, count: float = 1) -> None:
        self._bytes += count
        self._bar.update(int(self._bytes // MB) - self._bar.n)

    def update_transfer(self, count: float) -> None:
        """Bytes on the wire, which compression makes fewer than those of the file."""

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        """The bar shows its own rate."""

    set_transfer_postfix_str = set_postfix_str

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
