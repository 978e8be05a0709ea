"""GET over http: and https:, for servers that fail or lie: strict lengths, and no response without an end.

urllib finds the proxy and sends the request. The rest is done here, because the standard library's reader is lenient.
It takes chunks of -5 bytes and lengths of "+5" or "1_000". It reads the body of a redirect without a limit and follows
redirects to ftp:. It waits as long as a byte comes now and then.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import re
import socket
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import TYPE_CHECKING, Any, cast

from fpg_zoo.text import printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SLOW_SECONDS = 60.0  # of waiting for the server, in which at least `SLOW_BYTES` must come
SLOW_BYTES = 60 << 10
MAX_HEADER_BYTES = 1 << 20
MAX_REDIRECTS = 10
_MAX_CHUNK_LINE = 1 << 10
_READ_BYTES = 1 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 429, 500, 502, 503, 504)
_KEPT = "%/:?#[]@!$&()*+,;=~"  # what has a meaning in a URL, or is escaped already
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
# What stands before the host's @. A password may hold a slash: what follows a colon and is no port may be one.
_USERINFO = re.compile(r"^([^/]*//|)(?:[^/?#]*:(?![0-9]*(?:[/?#]|$)).*@|[^/?#]*@)")


class FetchError(Exception):
    """Why a response did not come whole. The text is one line without control characters, passwords and the URL.

    Attributes:
        passing: whether it may be gone at the next attempt, as a time-out or a 503.
        status: the server's, of a response that is no file; None where it is not the status that is wrong.
        retry_after: that header of such a response.
    """

    def __init__(
        self, reason: object, *, passing: bool = False, status: int | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(printable(_without_secrets(str(reason))))
        self.passing = passing
        self.status = status
        self.retry_after = retry_after


class Response:
    """A response of status 200 or 206, whose body is read piece by piece.

    Attributes:
        status: 200 or 206.
        headers: as they came; quote them through `printable`.
        length: bytes of the body; None if the server does not say.
    """

    def __init__(self, response: _WatchedResponse) -> None:
        self.status: int = response.status
        self.headers: Message = response.headers
        self._stream = response.stream
        self._watch = response.watch
        codings = ",".join(str(value) for value in self.headers.get_all("Transfer-Encoding", [])).strip().lower()
        if codings not in ("", "identity", "chunked"):
            raise FetchError(f"it is sent in a coding that was not asked for ({printable(codings)})")
        self._chunked = codings == "chunked"
        # Chunks have lengths of their own, and go before that of the whole (RFC 9112, 6.3).
        self.length = None if self._chunked else _announced(self.headers)
        self._left = 0 if self._chunked else self.length  # of the body, or of the chunk; None until the end
        self._started = self._ended = False

    def read(self, size: int = _READ_BYTES) -> bytes:
        """The next bytes of the body, as they come: at most `size`, and none at the end.

        Raises:
            FetchError: the connection failed, ended too early or is too slow, or the chunks are malformed.
        """
        with _failures():
            if self._chunked and not self._left and not self._ended:
                self._left = self._next_chunk()
                self._ended = self._left == 0
            if self._left == 0:
                return b""
            piece = self._stream.read1(size if self._left is None else min(size, self._left))
            self._watch.count(len(piece))
            if self._left is not None:
                if not piece:
                    raise FetchError("closed", passing=True)
                self._left -= len(piece)
            return piece

    def content(self, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            FetchError: as of `read`; or it is longer than `max_bytes`, as announced or as it comes.
        """
        content = bytearray()
        try:
            while (self.length or 0) <= max_bytes and (piece := self.read()):
                content += piece
                if len(content) > max_bytes:
                    break
        except FetchError as error:
            if not error.passing:
                raise
            length = "unknown" if self.length is None else self.length
            raise FetchError(f"{error} after {len(content)} of {length} bytes", passing=True) from None
        if max(len(content), self.length or 0) > max_bytes:
            raise FetchError(f"more than the {max_bytes} bytes that are read")
        return bytes(content)

    def _next_chunk(self) -> int:
        if self._started and (end := self._stream.read(2)) != b"\r\n":
            raise FetchError("closed", passing=True) if len(end) < 2 else FetchError("its chunks are malformed")
        self._started = True
        line = self._stream.readline(_MAX_CHUNK_LINE)
        size = _CHUNK_LINE.fullmatch(line)
        if size is None:
            if len(line) < _MAX_CHUNK_LINE and not line.endswith(b"\n"):
                raise FetchError("closed", passing=True)
            raise FetchError(f"its chunks are malformed ('{printable(line.decode('latin-1'), 40)}' is no size)")
        return int(size.group(1), 16)


@contextlib.contextmanager
def open_url(
    url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 30.0, total_seconds: float | None = None
) -> Iterator[Response]:
    """Send a GET request, through the proxy that the environment names, and follow its redirects.

    Beside the limits below, a response ends with an error when fewer than `SLOW_BYTES` come in `SLOW_SECONDS` of
    waiting, and when its headers exceed `MAX_HEADER_BYTES`.

    Args:
        url: http: or https:, without credentials.
        headers: of the request; `Accept-Encoding: identity` is sent in any case.
        timeout: seconds without a byte.
        total_seconds: for all of it, from the first connection to the body's end; None for no limit.

    Raises:
        FetchError: the URL cannot be asked for, or there is no response of status 200 or 206, or it leads to another
            scheme. Name the URL beside it, as `masked(url)`.
    """
    deadline = None if total_seconds is None else time.monotonic() + total_seconds
    with _failures():
        response = _get(url, {**(headers or {}), "Accept-Encoding": "identity"}, timeout, deadline)
    with response:
        if response.status not in (200, 206):
            raise FetchError(
                f"{response.status} {response.reason}".strip(),
                passing=response.status in _PASSING,
                status=response.status,
                retry_after=response.headers.get("Retry-After"),
            )
        yield Response(response)


def masked(url: str) -> str:
    """A URL, or what is taken for one, without a user's name and password."""
    return _USERINFO.sub(r"\1***@", url)


def check_letters(url: str) -> None:
    """Refuse a URL with spaces, control characters or letters beyond ASCII, naming what to write instead.

    Raises:
        FetchError: it has any of these.
    """
    odd = next((letter for letter in url if not "!" <= letter <= "~"), None)
    if odd is None:
        return
    remedy = f"percent-encode it, as in {urllib.parse.quote(masked(url), safe=_KEPT)}"
    if odd in url.partition("//")[2].partition("/")[0]:
        remedy = "write the host in ASCII letters (xn--...)"
    raise FetchError(f"{odd!a} cannot be in a URL; {remedy}")


def _check_url(url: str) -> None:
    if masked(url) != url:
        raise FetchError("credentials in a URL are not supported")
    check_letters(url)
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise FetchError("no http: or https: URL with a host, and a port from 1 to 65535 if it names one")


def _get(url: str, headers: dict[str, str], timeout: float, deadline: float | None) -> _WatchedResponse:
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), _Handler(deadline), urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    _check_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        response = cast(_WatchedResponse, opener.open(urllib.request.Request(url, headers=headers), timeout=timeout))
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or not location:
            return response
        response.close()
        url = _target(url, str(location))
    raise FetchError(f"it redirects more than {MAX_REDIRECTS} times")


def _target(url: str, location: str) -> str:
    """Where a redirect leads."""
    try:
        target = urllib.parse.urljoin(url, urllib.parse.quote(location, safe=string.punctuation, encoding="latin-1"))
        _check_url(target)
    except (FetchError, ValueError) as error:
        reason = error if isinstance(error, FetchError) else "no URL"
        raise FetchError(
            f"it redirects to {printable(masked(location), 80)}, which is not followed: {reason}"
        ) from None
    return target


class _Watch(io.RawIOBase):
    """What a connection receives, bounded: its headers in length, and all of it in time."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, deadline: float | None) -> None:
        self._raw = raw
        self._connection = connection
        self._timeout = connection.gettimeout()
        self._deadline = deadline
        self._in_headers = True
        self._header_bytes = 0
        self._counted, self._waited = 0, 0.0  # since the window began

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        begin = time.monotonic()
        if self._deadline is not None:
            if begin >= self._deadline:
                raise FetchError("not whole in the time that it may take", passing=True)
            self._connection.settimeout(min(self._timeout or self._deadline - begin, self._deadline - begin))
        try:
            received = self._raw.readinto(buffer)
        except TimeoutError:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise FetchError("not whole in the time that it may take", passing=True) from None
            raise
        self._waited += time.monotonic() - begin
        if self._in_headers:
            self._header_bytes += received or 0
            if self._header_bytes > MAX_HEADER_BYTES:
                raise FetchError(f"its headers have more than {MAX_HEADER_BYTES} bytes")
        if received and self._waited >= SLOW_SECONDS:
            # What was received now is not counted yet, which makes no odds.
            if self._counted < SLOW_BYTES:
                raise FetchError(
                    f"too slow, fewer than {SLOW_BYTES} bytes in {SLOW_SECONDS:.0f} seconds of waiting", passing=True
                )
            self._counted, self._waited = 0, 0.0
        return received

    def begin_body(self) -> None:
        """From now on, `readinto` reads no headers."""
        self._in_headers = False

    def count(self, size: int) -> None:
        """Count bytes of the body, and not of its framing, which a server can make as long as it likes."""
        self._counted += size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _WatchedResponse(http.client.HTTPResponse):
    """Status line and headers as http.client reads them, from a connection that is watched.

    Attributes:
        stream: what follows the headers.
        watch: over `stream`.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float | None, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.watch = _Watch(self.fp.detach(), sock, deadline)
        self.stream = self.fp = io.BufferedReader(self.watch)

    def begin(self) -> None:
        super().begin()
        self.watch.begin_body()


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http: and https: for urllib."""

    def __init__(self, deadline: float | None) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._connection, http.client.HTTPSConnection), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _connection(self, kind: type[http.client.HTTPConnection], host: str, **options: Any) -> Any:
        if self._deadline is not None:
            options["timeout"] = max(0.001, min(options["timeout"], self._deadline - time.monotonic()))
        connection: Any = kind(host, **options)
        connection.response_class = functools.partial(_WatchedResponse, deadline=self._deadline)
        return connection


def _announced(headers: Message) -> int | None:
    """The body's length in bytes; None if none is given."""
    values = {part.strip(" \t") for value in headers.get_all("Content-Length", []) for part in str(value).split(",")}
    if not values:
        return None
    if len(values) > 1:
        raise FetchError(f"it announces different lengths ({printable(', '.join(sorted(values)), 80)})")
    (value,) = values
    if not _LENGTH.fullmatch(value):
        raise FetchError(f"it announces a length that is none ('{printable(value, 80)}')")
    return int(value)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn what urllib, http.client and sockets raise into a FetchError."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, (http.client.InvalidURL, str)):
            # The URL itself was checked, so it is the proxy's. The text may hold a part of its password.
            raise FetchError("HTTP_PROXY or HTTPS_PROXY is no http: URL with a host and a port") from None
        if isinstance(cause, UnicodeError):
            raise FetchError("the host's name, or the proxy's, cannot be asked for") from None
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        passing = isinstance(cause, (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError))
        raise FetchError(reason, passing=passing or isinstance(cause, http.client.HTTPException)) from None


def _without_secrets(text: str) -> str:
    """A text in which a proxy, say, repeats what it was sent, without the password in the proxy's URL."""
    for proxy in urllib.request.getproxies().values():
        user, _, password = proxy.rpartition("@")[0].split("://", 1)[-1].partition(":")
        plain = urllib.parse.unquote(password)
        sent = base64.b64encode(f"{urllib.parse.unquote(user)}:{plain}".encode()).decode()
        for secret in (sent, password, plain) if password else ():
            text = text.replace(secret, "***")
    return text
