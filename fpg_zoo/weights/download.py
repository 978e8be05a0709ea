"""One file over HTTP(S) or from a `file:` mirror: resumed where it was left, tried again after passing failures."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import hashlib
import http.client
import math
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from fpg_zoo.errors import DownloadError, StorageError
from fpg_zoo.files import explained, on_terminal
from fpg_zoo.version import __version__
from fpg_zoo.weights.partial import Partial, Version
from fpg_zoo.weights.settings import masked

TIMEOUT_SECONDS = 30.0  # without a byte
ATTEMPTS = 5  # in a row that bring less than the next figure
_PROGRESS_BYTES = 1 << 20
BACK_OFF_SECONDS = 1.0  # doubled after each of them
_LONGEST_WAIT_SECONDS = 60.0
_CHUNK = 1 << 20
_PASSING = (408, 429, 500, 502, 503, 504)
_REMEDY = "check the network, or set FPG_ZOO_MIRROR to a mirror's base URL"
_KEPT = "%/:?#[]@!$&()*+,;=~"  # what has a meaning in a URL, or is escaped already
_LENGTH = re.compile(r"[0-9]{1,18}")
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
            if partial.version() != held:  # begun anew, of another file
                furthest, held = 0, partial.version()
            advanced = partial.size >= furthest + _PROGRESS_BYTES
            idle, furthest = (1, partial.size) if advanced else (idle + 1, furthest)
            if idle >= ATTEMPTS:
                raise DownloadError(_given_up(url, failures, partial)) from None
            wait = max(failure.wait, BACK_OFF_SECONDS * 2 ** (idle - 1))
            time.sleep(min(wait, _LONGEST_WAIT_SECONDS))


def _check_url(url: str) -> None:
    """Refuse what urllib would take for another host or fail at, before a message shows it."""
    if (shown := masked(url)) != url:
        raise DownloadError(
            f"{shown}: credentials in a URL are not supported; set FPG_ZOO_MIRROR to a base URL without them, or to a "
            "folder's (file:///...)"
        )
    odd = next((letter for letter in url if not "!" <= letter <= "~"), None)
    if odd and not url.lower().startswith("file:"):
        host = url.partition("//")[2].partition("/")[0]
        remedy = f"percent-encode it, as in {urllib.parse.quote(url, safe=_KEPT)}"
        if odd in host:
            remedy = "write the host in ASCII letters (xn--...)"
        raise DownloadError(f"{ascii(url)[1:-1]}: {odd!a} cannot be in a URL; {remedy}")


def _given_up(url: str, failures: list[str], partial: Partial) -> str:
    counts = {reason: failures.count(reason) for reason in failures}
    told = ", ".join(f"{reason} ({count} times)" if count > 1 else reason for reason, count in counts.items())
    kept = f"; {partial.size} bytes are kept, the next try goes on from there" if partial.size else ""
    return f"{url}: given up after {len(failures)} attempts: {told}{kept}; {_REMEDY}"


def _attempt(url: str, partial: Partial, description: str, copies: int) -> tuple[str, bool]:
    """One request, or none if all bytes are there; another, for the whole file, where the rest cannot be had."""
    known, start = partial.version(), partial.size
    if known and known.url != url:
        known = None
    if known and start == known.length:
        return _digest_of(partial).hexdigest(), True
    with _asked(url, known, start) as response:
        version, begins = _told(url, response)
        if begins is not None and response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url}: the server sent a web page, of a login or an error perhaps; {_REMEDY}")
        if known and begins == start and _same(known, version):
            known = dataclasses.replace(known, length=known.length or version.length)
            _check_room(partial, known, copies)
            digest = _digest_of(partial)
            _receive(response, partial, known, digest, description)
            return digest.hexdigest(), True
        if begins == 0:
            _check_room(partial, version, copies)
            partial.begin(version)
            digest = hashlib.sha256()
            _receive(response, partial, version, digest, description)
            return digest.hexdigest(), False
    if not known:
        raise DownloadError(f"{url}: the server answered {response.status}, which is no file; {_REMEDY}")
    # The rest of another file than the one begun, or not the rest that was asked for.
    partial.discard()
    return _attempt(url, partial, description, copies)


@contextlib.contextmanager
def _asked(url: str, known: Version | None, start: int) -> Iterator[Any]:
    headers = {"User-Agent": f"fpg-zoo/{__version__}", "Accept-Encoding": "identity"}
    if known:
        headers["Range"] = f"bytes={start}-"
        if known.condition:
            headers["If-Range"] = known.condition
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and known:
            response = error  # nothing after what is there; `_told` gives it no beginning, so it starts anew
        elif error.code in _PASSING:
            raise _PassingError(f"{error.code} {error.reason}", _wish(error.headers.get("Retry-After"))) from None
        else:
            raise DownloadError(f"{url}: the server answered {error.code} {error.reason}; {_REMEDY}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if _passes(error):
            raise _PassingError(_reason(error)) from None
        raise DownloadError(f"{url}: {_reason(error)}; {_REMEDY}") from None
    with response:
        yield response


def _told(url: str, response: Any) -> tuple[Version, int | None]:
    """The version that an answer is of, and at which byte it begins; None for nowhere of use."""
    headers = response.headers
    length, begins = headers.get("Content-Length", ""), None
    if response.status in (200, None):  # None: of a file: mirror
        begins = 0
    elif response.status == 206 and (span := _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))):
        length, begins = span.group(2), int(span.group(1))
    version = Version(
        url, headers.get("ETag"), headers.get("Last-Modified"), int(length) if _LENGTH.fullmatch(length) else None
    )
    return version, begins


def _same(known: Version, found: Version) -> bool:
    """Whether nothing that both tell speaks against it."""
    pairs = ((known.etag, found.etag), (known.modified, found.modified), (known.length, found.length))
    return all(a == b for a, b in pairs if a is not None and b is not None)


def _check_room(partial: Partial, version: Version, copies: int) -> None:
    if version.length is None:
        return
    with explained(partial.path.parent):
        partial.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.path.parent).free
    needed = copies * version.length - partial.size  # what is there is gone on from, or makes room
    if needed > free:
        raise StorageError(
            f"cannot write in {partial.path.parent}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free "
            "(No space left on device); make room, or choose another folder (FPG_ZOO_CACHE for the cache)"
        )


def _digest_of(partial: Partial) -> hashlib._Hash:
    digest = hashlib.sha256()
    with explained(partial.path.parent), partial.path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest


def _receive(response: Any, partial: Partial, version: Version, digest: hashlib._Hash, description: str) -> None:
    received, total, hidden = partial.size, version.length, not on_terminal()
    with (
        explained(partial.path.parent),
        partial.path.open("ab") as stream,
        tqdm(total=total, initial=received, unit="B", unit_scale=True, desc=description, disable=hidden) as bar,
    ):
        while received != version.length and (piece := _read(response, received, version)):
            stream.write(piece)
            digest.update(piece)
            received += len(piece)
            bar.update(len(piece))
    if version.length is not None and received < version.length:
        raise _PassingError(f"closed after {received} of {version.length} bytes")


def _read(response: Any, received: int, version: Version) -> bytes:
    try:
        piece: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _PassingError(f"{_reason(error)} after {received} of {version.length or 'unknown'} bytes") from None
    return piece


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


def _passes(error: Exception) -> bool:
    """Whether it is a time-out or a broken connection; a wrong name, a refusal or a bad certificate stays."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)) or (
        isinstance(cause, http.client.HTTPException) and not isinstance(cause, http.client.InvalidURL)
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)
