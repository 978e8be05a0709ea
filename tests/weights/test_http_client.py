"""Responses of servers that fail or lie, and redirects: whole files, or one line that says what is wrong."""

from __future__ import annotations

import base64
import contextlib
import itertools
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import saying, sending

from fpg_zoo import http_client
from fpg_zoo.http_client import FetchError, masked, open_url

HEAD = b"HTTP/1.1 200 OK\r\n"
CONTENT = b"0123456789" * 1000  # 10000 bytes, 0x2710


@pytest.fixture(autouse=True)
def _this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No response, mutated as it may be, leads elsewhere."""
    addresses = socket.getaddrinfo

    def known(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return addresses(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def get(url: str, max_bytes: int = 1 << 20, **options: float) -> bytes:
    with open_url(url, **options) as response:
        return response.content(max_bytes)


def failure(url: str, **options: float) -> FetchError:
    """What asking for it ends with."""
    with pytest.raises(FetchError) as caught:
        get(url, **options)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) <= 200
    return caught.value


def chunked(*chunks: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "response",
    [
        HEAD + b"Content-Length: 10000\r\n\r\n" + CONTENT,
        HEAD + b"Content-Length: 00010000 \r\n\r\n" + CONTENT,
        HEAD + b"Content-Length: 10000\r\nContent-Length: 10000\r\n\r\n" + CONTENT,
        HEAD + b"Content-Length: 10000, 10000\r\n\r\n" + CONTENT,
        HEAD + b"Content-Length: 10000\r\n\r\n" + CONTENT + b"more than it announced",
        HEAD + b"\r\n" + CONTENT,
        b"HTTP/1.0 200 \r\n\r\n" + CONTENT,
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + CONTENT,
        chunked(b"2710\r\n", CONTENT, b"\r\n0\r\n\r\n"),
        chunked(b"002710 ; name=value\r\n", CONTENT, b"\r\n0\r\nTrailer: x\r\n\r\n"),
        chunked(b"1\r\n0\r\n270F\r\n", CONTENT[1:], b"\r\n000\r\n"),
        # The chunks go before the length (RFC 9112, 6.3).
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: Chunked\r\n\r\n2710\r\n" + CONTENT + b"\r\n0\r\n\r\n",
    ],
    ids=lambda response: ascii(response[:70]),
)
def test_a_whole_body_comes_whole(response: bytes) -> None:
    with saying(response) as url:
        assert get(url) == CONTENT


@pytest.mark.parametrize("length", [b"\xb2", b"9" * 5000, b"-5", b"+10000", b"1_0000", b"0x2710", b"1e4", b"10000 B"])
def test_a_length_that_is_none_is_refused(length: bytes) -> None:
    with saying(HEAD + b"Content-Length: " + length + b"\r\n\r\n" + CONTENT) as url:
        assert str(failure(url)).startswith("it announces a length that is none ('")


@pytest.mark.parametrize("lengths", [b"1\r\nContent-Length: 10000", b"10000, 1", b"10000,"])
def test_different_lengths_are_refused(lengths: bytes) -> None:
    with saying(HEAD + b"Content-Length: " + lengths + b"\r\n\r\n" + CONTENT) as url:
        assert str(failure(url)).startswith("it announces different lengths (")


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"chunked\r\nTransfer-Encoding: chunked", b"\x1b[2J"])
def test_another_coding_is_refused(coding: bytes) -> None:
    with saying(HEAD + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + CONTENT) as url:
        assert "coding that was not asked for" in str(failure(url))


@pytest.mark.parametrize(
    "size", [b"-5", b"+2710", b"0x2710", b"27_10", b" 2710", b"xyz", b"", b"\xb2", b"f" * 16, b"2710;" + b"x" * 2000]
)
def test_chunks_without_a_size_are_refused(size: bytes) -> None:
    for response in (chunked(size, b"\r\n", CONTENT), chunked(b"1\r\n0\r\n", size, b"\r\n", CONTENT)):
        with saying(response + b"\r\n0\r\n\r\n") as url:
            assert str(failure(url)).startswith("its chunks are malformed ('")


def test_a_chunk_that_does_not_end_where_it_should_is_refused() -> None:
    with saying(chunked(b"5\r\n0123456789\r\n0\r\n\r\n")) as url:
        assert str(failure(url)) == "its chunks are malformed"


@pytest.mark.parametrize(
    ("response", "came"),
    [
        (HEAD + b"Content-Length: 10000\r\n\r\n" + CONTENT[:-1], "9999 of 10000"),
        (HEAD + b"Content-Length: 10000\r\n\r\n", "0 of 10000"),
        (chunked(b"2710\r\n", CONTENT[:50]), "50 of unknown"),
        (chunked(b"5\r\n01234"), "5 of unknown"),
        (chunked(b"5\r\n01234\r\n27"), "5 of unknown"),
        (chunked(b""), "0 of unknown"),
    ],
    ids=lambda value: ascii(value[-60:]),
)
def test_a_body_that_is_cut_short_may_come_at_the_next_attempt(response: bytes, came: str) -> None:
    with saying(response) as url:
        error = failure(url)
    assert (str(error), error.passing) == (f"closed after {came} bytes", True)


def test_a_body_is_read_up_to_its_limit() -> None:
    for head in (HEAD + b"\r\n", HEAD + b"Content-Length: 10000\r\n\r\n"):
        with saying(head + CONTENT) as url:
            assert get(url, 10_000) == CONTENT
            with pytest.raises(FetchError, match=r"^more than the 9999 bytes that are read$"):
                get(url, 9999)


@pytest.mark.parametrize("form", ["body", "chunks", "headers", "lines of 1000 kinds", "informational"])
def test_a_response_without_an_end_is_ended(form: str) -> None:
    def send(write: Callable[[bytes], object]) -> None:
        begin, piece = {
            "body": (HEAD + b"\r\n", b"x" * 10_000),
            "chunks": (chunked(), b"4\r\nabcd\r\n" * 1000),
            "headers": (HEAD + b"X: ", b"x" * 10_000),
            "lines of 1000 kinds": (HEAD, b"X: x\r\n" * 1000),
            "informational": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        }[form]
        write(begin)
        for _ in range(10_000):
            write(piece)

    with sending(send) as url:
        assert "more than" in str(failure(url))


def drip(begin: bytes, piece: bytes) -> Callable[[Callable[[bytes], object]], None]:
    """A server that sends a piece every 5 ms, for 5 seconds."""

    def send(write: Callable[[bytes], object]) -> None:
        write(begin)
        for _ in range(1000):
            time.sleep(0.005)
            write(piece)

    return send


DRIPS = {
    "body": (HEAD + b"Content-Length: 99999\r\n\r\n", b"x"),
    "body without a length": (HEAD + b"\r\n", b"x"),
    "chunks": (chunked(), b"1;" + b"x" * 500 + b"\r\nx\r\n"),  # whose framing does not count
    "headers": (HEAD + b"X: ", b"x"),
    "informational": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("form", DRIPS)
@pytest.mark.slow
def test_a_response_that_drips_is_ended(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(http_client, "SLOW_BYTES", 10_000)
    begin = time.monotonic()
    with sending(drip(*DRIPS[form])) as url:
        error = failure(url)
        assert time.monotonic() - begin < 3
    assert str(error).startswith("too slow, fewer than 10000 bytes in 0 seconds of waiting")
    assert error.passing


def test_a_response_that_is_slow_and_steady_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(http_client, "SLOW_BYTES", 300)

    def send(write: Callable[[bytes], object]) -> None:
        write(HEAD + b"\r\n")
        for place in range(0, 10_000, 500):
            time.sleep(0.02)
            write(CONTENT[place : place + 500])

    with sending(send) as url:
        assert get(url) == CONTENT


@pytest.mark.parametrize("form", [*DRIPS, "silence"])
@pytest.mark.slow
def test_the_whole_may_take_a_limited_time(form: str) -> None:
    begin = time.monotonic()
    with sending(drip(*DRIPS.get(form, (b"", b"")))) as url:
        error = failure(url, total_seconds=0.3)
        assert time.monotonic() - begin < 3
    assert error.passing
    assert str(error).startswith(("not whole in the time that it may take", "timed out"))


def test_redirects_share_the_limited_time() -> None:
    def send(write: Callable[[bytes], object]) -> None:
        time.sleep(0.1)
        write(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n")

    with sending(send) as url:
        error = failure(url, total_seconds=0.35)
    assert str(error).startswith(("not whole in the time that it may take", "timed out"))


def redirect(location: bytes, status: bytes = b"302 Found") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("status", [b"301 Moved Permanently", b"302 Found", b"303 See Other", b"307 T", b"308 P"])
def test_redirects_within_http_are_followed(status: bytes) -> None:
    with saying(HEAD + b"\r\n" + CONTENT) as target:
        for location in (target, target.partition(":")[2] + "/a b?c=\xe9#d"):
            with saying(redirect(location.encode("latin-1"), status)) as url:
                assert get(url) == CONTENT


@pytest.mark.parametrize(
    "location",
    [
        b"ftp://127.0.0.1/x",
        b"FTP://127.0.0.1/x",
        b"file:///etc/passwd",
        b"data:text/plain,abc",
        b"gopher://127.0.0.1/x",
        b"javascript:alert(1)",
        b"https:///x",
        b"http://[::1/x",
        b"http://127.0.0.1:0/x",
        b"http://127.0.0.1:99999/x",
        b"http://127.0.0.1:x/\x1b[2J",
    ],
)
def test_redirects_out_of_http_are_refused(location: bytes) -> None:
    with saying(redirect(location)) as url:
        assert re.match("it redirects to .*, which is not followed: no", str(failure(url)))


@pytest.mark.parametrize(
    "location",
    [b"http://user:secret@127.0.0.1:9/x", b"//user:sec/secret@127.0.0.1/", b"https://user:a secret@127.0.0.1:x/"],
)
def test_a_redirects_password_is_not_shown(location: bytes) -> None:
    with saying(redirect(location)) as url:
        error = str(failure(url))
    assert "***@127.0.0.1" in error
    assert "credentials in a URL are not supported" in error
    assert "secret" not in error


def test_a_redirect_in_a_circle_ends() -> None:
    with saying(redirect(b"/again")) as url:
        assert str(failure(url)) == "it redirects more than 10 times"


def test_the_body_of_a_redirect_is_not_read() -> None:
    def send(write: Callable[[bytes], object]) -> None:
        write(b"HTTP/1.1 302 Found\r\nLocation: " + target.encode() + b"\r\n\r\n")
        for _ in range(10_000):
            write(b"x" * 100_000)

    begin = time.monotonic()
    with saying(HEAD + b"\r\n" + CONTENT) as target, sending(send) as url:
        assert get(url) == CONTENT
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("line", "text", "passing"),
    [
        (b"404 Not Found", "404 Not Found", False),
        (b"404 \x1b]0;title\x07\x9b2J", r"404 \x1b]0;title\x07\x9b2J", False),
        (b"403 a\tb\x0b\x0cc", r"403 a\tb\x0b\x0cc", False),
        (b"503 " + b"x" * 1000, "503 " + "x" * 193 + "...", True),
        (b"204 No Content", "204 No Content", False),
        (b"302 Found", "302 Found", False),
        (b"416", "416", False),
    ],
    ids=lambda value: ascii(value[:30]) if isinstance(value, bytes) else "",
)
def test_a_status_is_told_without_control_characters(line: bytes, text: str, passing: bool) -> None:
    with saying(b"HTTP/1.1 " + line + b"\r\nRetry-After: 7\r\n\r\n") as url:
        error = failure(url)
    assert (str(error), error.passing) == (text, passing)
    assert (error.status, error.retry_after) == (int(line[:3]), "7")


PASSWORDS = ["hunter2", "p%40ss%2Fword", "p/ss:word", "p@ss", "p ss", "#?"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_proxys_password_is_not_shown(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = password.replace("%40", "@").replace("%2F", "/")
    sent = base64.b64encode(f"user:{plain}".encode())
    echo = b"HTTP/1.1 407 Who is user:" + plain.encode() + b" (" + sent + b"), " + password.encode() + b"?\r\n\r\n"
    with saying(echo) as url:
        host = url.removeprefix("http://")
        for proxy in (f"http://user:{password}@{host}", f"user:{password}@{host}", f"http://user:{password}@{host}x"):
            for name in ("http_proxy", "https_proxy"):
                monkeypatch.setenv(name, proxy)
            for target in ("http://weights.invalid/x", "https://weights.invalid/x"):
                error = str(failure(target))
                assert all(secret not in error for secret in (password, plain, sent.decode(), "p/ss", "hunter"))


def test_a_tunnel_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with sending(lambda write: write(b"HTTP/1.1 407 \x1b[2J user:secret\r\n\r\n") and None) as url:
        monkeypatch.setenv("https_proxy", url.replace("//", "//user:secret@"))
        error = str(failure("https://weights.invalid/x"))
    assert "407" in error
    assert r"\x1b[2J user:***" in error


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9", "http://127.0.0.1:port", "http://"])
def test_a_proxy_that_cannot_be_asked_is_told(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert "HTTP_PROXY" in str(failure("http://127.0.0.1:9/x"))


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "x", "", "http://", "http://:80/", "http://127.0.0.1:x/"],
)
def test_what_is_no_http_url_is_refused(url: str) -> None:
    assert str(failure(url)).startswith("no http: or https: URL")


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".invalid"])
def test_a_host_that_cannot_be_asked_for_is_told(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert failure(f"http://{host}/x").passing is False


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://user:secret@host/x", "http://***@host/x"),
        ("https://u:a/b@host:8080/x", "https://***@host:8080/x"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://host/a:b@c", "http://host/a:b@c"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, text: str) -> None:
    assert masked(url) == text


def mutations(count: int) -> Iterator[bytes]:
    """Responses of three kinds in which bytes were altered, removed, repeated or put in."""
    generator = random.Random(0)
    whole = (
        HEAD + b'Content-Length: 200\r\nETag: "x"\r\n\r\n' + CONTENT[:200],
        chunked(b"64\r\n", CONTENT[:100], b"\r\n64\r\n", CONTENT[:100], b"\r\n0\r\n\r\n"),
        redirect(b"http://127.0.0.1:9/x"),
    )
    for response in itertools.islice(itertools.cycle(whole), count):
        altered = bytearray(response)
        for _ in range(generator.randint(1, 4)):
            place, size = generator.randrange(len(altered)), generator.randint(1, 20)
            piece = bytes(altered[place : place + size])
            altered[place : place + size] = generator.choice(
                [b"", piece * generator.randint(2, 50), generator.randbytes(len(piece)), b"\r\n" + piece]
            )
        yield bytes(altered)


@pytest.mark.slow
def test_600_mutated_responses_end_as_a_body_or_one_line() -> None:
    responses = mutations(600)
    outcomes = {"body": 0, "line": 0}
    with sending(lambda write: write(next(responses)) and None) as url:
        for _ in range(600):
            with contextlib.suppress(FetchError):
                assert len(get(url, timeout=5.0)) <= 100_000
                outcomes["body"] += 1
    outcomes["line"] = 600 - outcomes["body"]
    assert min(outcomes.values()) > 50, outcomes
