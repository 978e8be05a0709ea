"""A download under way: the bytes so far, and which state of which remote file they are of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fpg_zoo.files import explained


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
    the beginning of that version or, if the machine went down, is told by the digest at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        """Number of bytes there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> Version | None:
        """What the bytes are of; None if there are none, or if it is not known."""
        if not self.size:
            return None
        try:
            version = Version(**json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None  # killed while writing the record: no loss, the download begins again
        kinds = (("url", str), ("etag", (str, type(None))), ("modified", (str, type(None))))
        fits = all(isinstance(getattr(version, name), kind) for name, kind in kinds)
        fits = fits and (version.condition or "").isascii() and (version.condition or "").isprintable()
        return version if fits and isinstance(version.length, (int, type(None))) else None

    def begin(self, version: Version) -> None:
        """Forget what is there, and expect the bytes of `version`.

        Raises:
            StorageError: the folder cannot be written.
        """
        with explained(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            self._record.write_text(json.dumps(asdict(version)), encoding="utf-8")

    def discard(self) -> None:
        """Remove both files, the bytes last: what a killed process leaves is then seen as a partial download."""
        with explained(self.path.parent):
            self._record.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
