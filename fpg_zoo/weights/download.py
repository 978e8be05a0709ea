"""One file over HTTP(S) or from a `file:` mirror: resumed where it was left, tried again after passing failures."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.message
import email.utils
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from fpg_zoo.errors import DownloadError, StorageError
from fpg_zoo.files import on_terminal, open_regular, read_regular, storage_errors
from fpg_zoo.http_client import FetchError, Response, check_letters, masked, open_url
from fpg_zoo.progress import tqdm
from fpg_zoo.text import printable
from fpg_zoo.version import __version__

TIMEOUT_SECONDS = 30.0  # without a byte
ATTEMPTS = 5  # in a row that bring less than `_PROGRESS_BYTES`
_PROGRESS_BYTES = 1 << 20
BACK_OFF_SECONDS = 1.0  # doubled after each of them
MAX_BYTES = 16 << 30  # of a file; the published ones have less than a gigabyte
ROOM_CHECK_BYTES = 64 << 20  # of a file of unknown length, after which the disk is asked again
_LONGEST_WAIT_SECONDS = 60.0
_MAX_RECORD_BYTES = 1 << 20
_CHUNK = 1 << 20
_REMEDY = "check the network, or set FPG_ZOO_MIRROR to a mirror's base URL"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


class _PassingError(Exception):
    """What may be gone at the next attempt; `wait` is the server's wish, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download(url: str, partial: Partial, *, description: str, copies: int = 1) -> tuple[str, bool]:
    """Fetch `url` into the partial file, from where that ends if the server has still the same file.

    A resumed file is of one version as far as the server tells; only its digest proves it.

    Args:
        url: http:, https: or file:.
        partial: what was fetched before, and where more goes. It stays there when this fails.
        description: for the progress on a terminal.
        copies: how many times the file's size must be free on the disk, this one included.

    Returns:
        The SHA-256 of the whole file in hex, and whether it was put together of more than one answer.

    Raises:
        DownloadError: it is no URL to ask for, the server refuses, or failures go on; the message says which.
        StorageError: the partial file cannot be written, or there is no room for it.
    """
    _check_url(url)
    failures: list[str] = []
    furthest, idle, held = partial.size, 0, partial.version()
    while True:
        try:
            return _attempt(url, partial, description, copies)
        except _PassingError as failure:
            failures.append(str(failure))
            if partial.version() != held:  # started anew, of another file
                furthest, held = 0, partial.version()
            advanced = partial.size >= furthest + _PROGRESS_BYTES
            idle, furthest = (1, partial.size) if advanced else (idle + 1, furthest)
            if idle >= ATTEMPTS:
                raise DownloadError(_failure(url, failures, partial)) from None
            wait = max(failure.wait, BACK_OFF_SECONDS * 2 ** (idle - 1))
            time.sleep(min(wait, _LONGEST_WAIT_SECONDS))


def _check_url(url: str) -> None:
    """Refuse what cannot be asked for, before a message shows it."""
    if (masked_url := masked(url)) != url:
        raise DownloadError(
            f"{masked_url}: credentials in a URL are not supported; set FPG_ZOO_MIRROR to a base URL without them, or "
            "to a folder's (file:///...)"
        )
    if not _is_file(url):
        try:
            check_letters(url)
        except FetchError as error:
            raise DownloadError(f"{ascii(url)[1:-1]}: {error}") from None


def _is_file(url: str) -> bool:
    return url[:5].lower() == "file:"


def _failure(url: str, failures: list[str], partial: Partial) -> str:
    counts = {reason: failures.count(reason) for reason in failures}
    reasons = ", ".join(f"{reason} ({count} times)" if count > 1 else reason for reason, count in counts.items())
    kept = f"; {partial.size} bytes are kept, the next try goes on from there" if partial.size else ""
    return f"{url}: given up after {len(failures)} attempts: {reasons}{kept}; {_REMEDY}"


def _attempt(url: str, partial: Partial, description: str, copies: int) -> tuple[str, bool]:
    """One request, or none if all bytes are there; another, for the whole file, where the rest cannot be had."""
    known, start = partial.version(), partial.size
    if known and (known.url != url or start > MAX_BYTES):
        known = None
    if known and start == known.length:
        return _digest_of(partial).hexdigest(), True
    with _asked(url, known, start) as response:
        if response is not None:
            version, begins = _version_of(url, response)
            if begins is not None and response.headers.get_content_type() == "text/html":
                raise DownloadError(f"{url}: the server sent a web page, of a login or an error perhaps; {_REMEDY}")
            if known and begins == start and _same(known, version):
                known = dataclasses.replace(known, length=known.length or version.length)
                _check_size(url, partial, known, copies)
                digest = _digest_of(partial)
                _receive(response, partial, known, digest, description, copies)
                return digest.hexdigest(), True
            if begins == 0:
                _check_size(url, partial, version, copies)
                partial.begin(version)
                digest = hashlib.sha256()
                _receive(response, partial, version, digest, description, copies)
                return digest.hexdigest(), False
    if not known:
        raise DownloadError(f"{url}: the server answered with a part that was not asked for; {_REMEDY}")
    # The rest of another file than the one started, or not the rest that was asked for.
    partial.discard()
    return _attempt(url, partial, description, copies)


class _LocalFile:
    """A `file:` mirror's file, as a response."""

    status = 200

    def __init__(self, stream: BinaryIO) -> None:
        status = os.fstat(stream.fileno())
        self._stream = stream
        self.length: int | None = status.st_size
        self.headers = email.message.Message()
        self.headers["Last-Modified"] = email.utils.formatdate(status.st_mtime, usegmt=True)
        self.headers["Content-Type"] = "application/octet-stream"

    def read(self, size: int) -> bytes:
        return self._stream.read(size)


@contextlib.contextmanager
def _asked(url: str, known: Version | None, start: int) -> Iterator[Response | _LocalFile | None]:
    """The response; None if the server has nothing after what is there."""
    headers = {"User-Agent": f"fpg-zoo/{__version__}"}
    if known:
        headers["Range"] = f"bytes={start}-"
        if known.condition:
            headers["If-Range"] = known.condition
    with contextlib.ExitStack() as stack:
        response: Response | _LocalFile | None = None
        try:
            if _is_file(url):
                response = _LocalFile(stack.enter_context(open_regular(_local_path(url))))
            else:
                response = stack.enter_context(open_url(url, headers=headers, timeout=TIMEOUT_SECONDS))
        except OSError as error:
            raise DownloadError(f"{url}: {error.strerror or error}; {_REMEDY}") from None
        except FetchError as error:
            if error.passing:
                raise _PassingError(str(error), _wish(error.retry_after)) from None
            if not (error.status == 416 and known):
                said = f"the server answered {error}" if error.status else error
                raise DownloadError(f"{url}: {said}; {_REMEDY}") from None
        yield response


def _local_path(url: str) -> str:
    parts = urllib.parse.urlsplit(url, allow_fragments=False)
    if parts.netloc not in ("", "localhost"):
        raise DownloadError(f"{url}: a file: URL of another machine, {printable(parts.netloc)}; write file:///...")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if "\0" in (local_path := urllib.request.url2pathname(path)):
        raise DownloadError(f"{printable(url)}: a path cannot hold a null character; {_REMEDY}")
    return local_path


def _version_of(url: str, response: Response | _LocalFile) -> tuple[Version, int | None]:
    """The version that a response is of, and at which byte it begins; None for nowhere of use."""
    headers, length, begins = response.headers, response.length, None
    if response.status == 200:
        begins = 0
    elif span := _CONTENT_RANGE.fullmatch(str(headers.get("Content-Range", ""))):
        begins, length = int(span.group(1)), int(span.group(2))
    return Version(url, headers.get("ETag"), headers.get("Last-Modified"), length), begins


def _same(known: Version, other: Version) -> bool:
    """Whether nothing that both tell speaks against it."""
    pairs = ((known.etag, other.etag), (known.modified, other.modified), (known.length, other.length))
    return all(a == b for a, b in pairs if a is not None and b is not None)


def _check_size(url: str, partial: Partial, version: Version, copies: int) -> None:
    if version.length is not None and version.length > MAX_BYTES:
        raise DownloadError(f"{url}: {_too_long(version.length)}; {_REMEDY}")
    _check_room(partial, version.length or 0, copies)


def _too_long(length: int) -> str:
    return f"{length} bytes, more than the {MAX_BYTES} that a file may have"


def _check_room(partial: Partial, length: int, copies: int) -> None:
    with storage_errors(partial.path.parent):
        partial.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.path.parent).free
    needed = copies * length - partial.size  # what is there is gone on from, or makes room
    if needed > free:
        raise StorageError(
            f"cannot write in {partial.path.parent}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free "
            "(No space left on device); make room, or choose another folder (FPG_ZOO_CACHE for the cache)"
        )


def _digest_of(partial: Partial) -> hashlib._Hash:
    digest = hashlib.sha256()
    with storage_errors(partial.path.parent), open_regular(partial.path) as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest


def _receive(
    response: Response | _LocalFile,
    partial: Partial,
    version: Version,
    digest: hashlib._Hash,
    description: str,
    copies: int,
) -> None:
    received, total, hidden = partial.size, version.length, not on_terminal()
    limit, checked = MAX_BYTES if total is None else total, received
    with (
        storage_errors(partial.path.parent),
        partial.appending() as stream,
        tqdm(total=total, initial=received, unit="B", unit_scale=True, desc=description, disable=hidden) as bar,
    ):
        # Never beyond the length that was announced, whatever comes.
        while piece := _read(response, min(_CHUNK, limit - received + (total is None)), received, version):
            stream.write(piece)
            digest.update(piece)
            received += len(piece)
            bar.update(len(piece))
            if received > limit:
                break
            if total is None and received - checked >= ROOM_CHECK_BYTES:
                stream.flush()
                _check_room(partial, received + ROOM_CHECK_BYTES, copies)
                checked = received
    if total is not None and received < total:
        raise _PassingError(f"closed after {received} of {total} bytes")
    if received > limit:
        partial.discard()
        raise DownloadError(f"{version.url}: {_too_long(received)}, without an end; {_REMEDY}")


def _read(response: Response | _LocalFile, size: int, received: int, version: Version) -> bytes:
    """The next bytes, at most `size`; none at the end, and if none are asked for."""
    try:
        return response.read(size) if size else b""
    except FetchError as error:
        if not error.passing:
            raise DownloadError(f"{version.url}: {error}; {_REMEDY}") from None
        raise _PassingError(f"{error} after {received} of {version.length or 'unknown'} bytes") from None


def _wish(text: str | None) -> float:
    """Seconds of a Retry-After header, which gives them or a date; 0 for none, or a past or senseless one."""
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = _seconds_until(text or "")
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _seconds_until(date: str) -> float:
    try:
        moment = email.utils.parsedate_to_datetime(date)
        if moment.tzinfo is None:  # how -0000 is read, which means Greenwich too
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


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

    The version is written before the first byte. So a process may be killed at any point: what is there later is the
    beginning of that version. If the machine went down it may not be, and the digest at the end tells. Nothing is
    written through a link: somebody else who may write in the folder could have it lead to a file of the user's.
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
        types = (("url", str), ("etag", (str, type(None))), ("modified", (str, type(None))))
        fits = all(isinstance(getattr(version, name), kind) for name, kind in types)
        fits = fits and (version.condition or "").isascii() and (version.condition or "").isprintable()
        return version if fits and isinstance(version.length, (int, type(None))) else None

    def begin(self, version: Version) -> None:
        """Forget what is there, and expect the bytes of `version`.

        Raises:
            StorageError: the folder cannot be written, or a folder is in the way.
        """
        with storage_errors(self.path.parent):
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
        with storage_errors(self.path.parent):
            self._record.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
