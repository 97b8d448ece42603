"""Whole files from web servers and the Hugging Face hub: fetched once, resumed after a break, checked, renamed."""

from pathlib import Path

from pipeline.config.schema import Downloads


class Files:
    """The files of one source: those on this machine, and those that are fetched into `folder`.

    A reference is a path, `hf://datasets/OWNER/NAME@REVISION/PATH` (also hf://OWNER/NAME@REVISION/… for model
    repositories), or an http(s) URL. Several processes may share the folder: each file is fetched by one of them.
    """

    def __init__(self, folder: Path, downloads: Downloads) -> None:
        self.folder, self._downloads = folder, downloads

    def expand(self, key: str, pattern: str) -> list[str]:
        """References that a FILES pattern stands for, sorted and without duplicates: {000..199} counts, `*` matches here and
        on the hub.

        Raises: UserError naming `key` if nothing matches, or it is no such pattern.
        """
        raise NotImplementedError

    def fetch(self, reference: str, name: str | None = None, sha256: str | None = None) -> Path:
        """The file on this machine; a remote one is downloaded first, as `name` where the reference shows none.

        Raises: Unusable with the class of the failure, after all attempts.
        """
        raise NotImplementedError

    def done_with(self, path: Path) -> None:
        """Delete a fetched file that is needed no more, unless runtime.downloads.keep. Others stay untouched."""
        raise NotImplementedError
