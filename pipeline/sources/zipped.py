"""Files of a zip, found by name: a folder of images in one file."""

import errno
import zipfile
from pathlib import Path

from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.sample import MAX_IMAGE_BYTES

# bzip2 and LZMA grow without a bound that could be set; nobody packs images with them.
KNOWN = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class ZippedFolder:
    """What `read_named` is for a folder. Nothing is unpacked, and no name of a member becomes a path."""

    def __init__(self, where: str, path: Path) -> None:
        """Raises: UserError if it is no zip."""
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # damaged bytes lead to anything
            raise UserError(f"{where}: no zip, or one that is cut off ({error}); fetch it again") from error
        self._by_path = {info.filename: info for info in self._zip.infolist() if not info.filename.endswith("/")}
        self._by_name: dict[str, zipfile.ZipInfo | None] = {}
        for info in self._by_path.values():
            name = info.filename.rpartition("/")[2]
            self._by_name[name] = None if name in self._by_name else info  # two of one name: neither

    def names(self) -> list[str]:
        return list(self._by_path)

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes | Unusable:
        """Content of the file of this path or, if there is but one, of this name in any folder."""
        info = self._by_path.get(name) or self._by_name.get(name)
        if info is None:
            return Unusable("missing_file", f"{'more than one' if name in self._by_name else 'no'} file of this name in the zip")
        if info.file_size > limit:
            return Unusable("too_large", f"{info.file_size} bytes, the limit is {limit}")
        if info.compress_type not in KNOWN:
            return Unusable("unreadable_file", f"compressed by method {info.compress_type}; pack the zip with deflate")
        try:
            with self._zip.open(info) as file:
                return file.read(info.file_size)  # without the number a bomb is inflated before it is cut
        except Exception as error:  # encrypted, or damaged in any way
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk, not an offset out of range
                raise UserError(f"{self._zip.filename}: cannot be read ({error.strerror})") from error
            return Unusable("unreadable_file", f"{type(error).__name__}: {error}"[:200])
