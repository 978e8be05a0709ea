"""A download under way: the bytes so far, and which state of which remote file they are of."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from fpg_zoo.files import explained, read_regular

_MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True)
class Version:
    """One state of a remote file, as the server tells it.

    Attributes:
        url: as asked for, before redirects.
        etag: quotes and `W/` included; None if the server gives none.
        modified: its Last-Modified, likewise.
        length: in bytes; None if the server does not say.
    """

    url: str
    etag: str | None
    modified: str | None
    length: int | None

    @property
    def condition(self) -> str | None:
        """What If-Range may hold: a strong ETag, or else the date; None if there is neither."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Partial:
    """The file `path` with the first bytes of a download, and `path` + `.json` with the version that they are of.

    The version is written before the first byte. So a process may be killed at any point, and what is found later is
    the beginning of that version or, if the machine went down, is told by the digest at the end. Nothing is written
    through a link: somebody else who may write in the folder could have it lead to a file of the user's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        """Number of bytes there; of a link, a pipe or a file that has another name besides, none is taken."""
        return _size(self.path)

    def version(self) -> Version | None:
        """What the bytes are of; None if there are none, or if it is not known."""
        if not self.size or not _size(self._record):
            return None
        try:
            version = Version(**json.loads(read_regular(self._record, max_bytes=_MAX_RECORD_BYTES)))
        except (OSError, ValueError, TypeError, RecursionError):
            return None  # killed while writing the record: no loss, the download begins again
        kinds = (("url", str), ("etag", (str, type(None))), ("modified", (str, type(None))))
        fits = all(isinstance(getattr(version, name), kind) for name, kind in kinds)
        fits = fits and (version.condition or "").isascii() and (version.condition or "").isprintable()
        return version if fits and isinstance(version.length, (int, type(None))) else None

    def begin(self, version: Version) -> None:
        """Forget what is there, and expect the bytes of `version`.

        Raises:
            StorageError: the folder cannot be written, or a folder is in the way.
        """
        with explained(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path, content in ((self.path, b""), (self._record, json.dumps(asdict(version)).encode())):
                path.unlink(missing_ok=True)
                with path.open("xb") as stream:  # fails if somebody puts a link there meanwhile
                    stream.write(content)

    def appending(self) -> BinaryIO:
        """The file, opened to write after what is there.

        Raises:
            OSError: it cannot be written, or has become a link.
        """
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        # Windows has neither of these; making links is a privilege there.
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        return os.fdopen(os.open(self.path, flags), "ab")

    def discard(self) -> None:
        """Remove both files, the bytes last: what a killed process leaves is then seen as a partial download."""
        with explained(self.path.parent):
            self._record.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
