"""One download: when it tries again and when not, how long it waits, what it says, what it keeps and goes on from."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from serving import HOST, Fault, Mirror, serve

from fpg_zoo.errors import DownloadError, StorageError
from fpg_zoo.weights import download
from fpg_zoo.weights.download import Partial, Version
from fpg_zoo.weights.environment import mirrored

FILE = "/some.pth"
CONTENT = bytes(range(256)) * 4 * 1024  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEBIBYTE = 1_048_576


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        running.files[FILE] = CONTENT
        yield running


@pytest.fixture
def partial(tmp_path: Path) -> Partial:
    return Partial(tmp_path / "some.pth.part")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in seconds; none is."""
    waited: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waited.append))
    return waited


def fetch(mirror: Mirror, partial: Partial) -> tuple[str, bool]:
    return download.download(mirror.url + FILE, partial, description="some file")


def ranges(mirror: Mirror) -> list[str | None]:
    return [request.range for request in mirror.requests]


def test_a_download_gives_the_digest_and_whether_it_was_put_together(mirror: Mirror, partial: Partial) -> None:
    assert fetch(mirror, partial) == (DIGEST, False)
    assert partial.path.read_bytes() == CONTENT
    assert fetch(mirror, partial) == (DIGEST, True)  # nothing is left to ask for
    assert ranges(mirror) == [None]


def test_waits_are_doubled_and_after_five_attempts_it_gives_up(
    mirror: Mirror, partial: Partial, waits: list[float]
) -> None:
    mirror.fault = "503"
    with pytest.raises(DownloadError, match=r"given up after 5 attempts: 503 Service Unavailable \(5 times\); check"):
        fetch(mirror, partial)
    assert waits == [1, 2, 4, 8]
    assert len(mirror.requests) == 5


def test_giving_up_lists_the_failures_and_what_is_kept(mirror: Mirror, partial: Partial) -> None:
    mirror.faults = ["503", "cut", "500", "503", "503"]
    with pytest.raises(DownloadError) as caught:
        fetch(mirror, partial)
    # A partial download of 524288 bytes is less than the mebibyte that counts as progress.
    assert str(caught.value) == (
        f"{mirror.url}{FILE}: given up after 5 attempts: 503 Service Unavailable (3 times), "
        "closed after 524288 of 1048576 bytes, 500 Internal Server Error; 524288 bytes are kept, the next try goes on "
        "from there; check the network, or set FPG_ZOO_MIRROR to a mirror's base URL"
    )
    mirror.requests.clear()
    assert fetch(mirror, partial) == (DIGEST, True)
    assert ranges(mirror) == ["bytes=524288-"]


@pytest.mark.parametrize(
    ("wish", "first", "second"),
    [
        ("0", 1, 2),
        ("0.5", 1, 2),
        ("1.5", 1.5, 2),
        ("7", 7, 7),
        ("60", 60, 60),
        ("3600", 60, 60),
        ("1e400", 1, 2),
        ("nan", 1, 2),
        ("-7", 1, 2),
        ("soon", 1, 2),
        ("Wed, 21 Oct 2037 07:28:00 GMT", 60, 60),
        ("Wed, 21 Oct 2037 07:28:00 -0000", 60, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1, 2),
        ("Wed, 99 Oct 2037 07:28:00 GMT", 1, 2),
    ],
)
def test_the_servers_wish_to_wait_is_heeded_up_to_a_minute(
    wish: str, first: float, second: float, mirror: Mirror, partial: Partial, waits: list[float]
) -> None:
    mirror.retry_after, mirror.faults = wish, ["429", "429"]
    assert fetch(mirror, partial) == (DIGEST, False)
    assert waits == [first, second]


def test_progress_makes_attempts_count_anew(mirror: Mirror, partial: Partial, waits: list[float]) -> None:
    mirror.files[FILE] = bytes(8 * MEBIBYTE)
    mirror.fault = "cut"  # half of what is left, each time
    with pytest.raises(DownloadError, match=r"given up after 7 attempts.*; 8323072 bytes are kept"):
        fetch(mirror, partial)
    # There are 4, 6, 7, 7.5, 7.75, 7.875, 7.9375 MiB: the first three bring at least one, so the fourth is the second.
    assert waits == [1, 1, 1, 2, 4, 8]


def test_progress_on_a_new_file_counts_though_more_of_the_old_one_was_there(
    mirror: Mirror, partial: Partial, waits: list[float]
) -> None:
    mirror.files[FILE] = bytes(8 * MEBIBYTE)
    partial.begin(Version(mirror.url + FILE, '"of the old file"', None, 16 * MEBIBYTE))
    partial.path.write_bytes(bytes(10 * MEBIBYTE))
    mirror.fault = "cut"
    with pytest.raises(DownloadError, match=r"given up after 7 attempts.*; 8323072 bytes are kept"):
        fetch(mirror, partial)
    assert waits == [1, 1, 1, 2, 4, 8]


def test_a_server_that_always_begins_anew_is_given_up(mirror: Mirror, partial: Partial, waits: list[float]) -> None:
    mirror.files[FILE] = bytes(8 * MEBIBYTE)
    mirror.fault = "no ranges cut"  # the first 4 MiB each time: only the first of them are progress
    with pytest.raises(
        DownloadError, match=r"closed after 4194304 of 8388608 bytes \(5 times\); 4194304 bytes are kept"
    ):
        fetch(mirror, partial)
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("status", "text"),
    [("400", "Bad Request"), ("401", "Unauthorized"), ("403", "Forbidden"), ("404", "Not Found"), ("410", "Gone")],
)
def test_a_refusal_is_not_tried_again(
    status: Fault, text: str, mirror: Mirror, partial: Partial, waits: list[float]
) -> None:
    mirror.fault = status
    with pytest.raises(DownloadError, match=rf"some\.pth: the server answered {status} {text}; .*FPG_ZOO_MIRROR"):
        fetch(mirror, partial)
    assert len(mirror.requests) == 1
    assert (waits, partial.size) == ([], 0)


@pytest.mark.parametrize("status", ["408", "429", "500", "502", "503", "504"])
def test_a_passing_status_is_tried_again(status: Fault, mirror: Mirror, partial: Partial, waits: list[float]) -> None:
    mirror.faults = [status]
    assert fetch(mirror, partial) == (DIGEST, False)
    assert waits == [1]


def test_a_refused_connection_and_an_unknown_host_are_not_tried_again(
    partial: Partial, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(DownloadError, match=r"/some\.pth: .*refused; check the network"):
            download.download(f"http://127.0.0.1:{free.getsockname()[1]}/some.pth", partial, description="")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"weights\.invalid/some\.pth: .*Name or service not known; check"):
        download.download("http://weights.invalid/some.pth", partial, description="")
    assert waits == []


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[::1/x", "gopher://127.0.0.1/x", "http://127.0.0.1:x/"])
def test_what_is_no_url_is_told(url: str, partial: Partial, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match=r"^" + url.replace("[", r"\[") + ": .*FPG_ZOO_MIRROR"):
        download.download(url, partial, description="")
    assert waits == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("http://secret@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("http://user:sec/ret@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("http://user:sec@ret@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("http://user:sec ret@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("user:secret@127.0.0.1:9/x", "***@127.0.0.1:9/x"),
    ],
)
def test_credentials_are_refused_and_not_shown(url: str, shown: str, partial: Partial) -> None:
    with pytest.raises(DownloadError) as caught:
        download.download(url, partial, description="")
    assert str(caught.value) == (
        f"{shown}: credentials in a URL are not supported; set FPG_ZOO_MIRROR to a base URL without them, or to a "
        "folder's (file:///...)"
    )


@pytest.mark.parametrize("path", ["/a@b/x", "/a:b@c/x"])
def test_what_is_no_credentials_is_asked_for(path: str, mirror: Mirror, partial: Partial) -> None:
    mirror.files[path] = CONTENT
    assert download.download(mirror.url + path, partial, description="") == (DIGEST, False)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9/a b", "' ' cannot be in a URL; percent-encode it, as in http://127.0.0.1:9/a%20b"),
        (
            "http://127.0.0.1:9/a%20b\u00fc",
            r"'\xfc' cannot .*; percent-encode it, as in http://127.0.0.1:9/a%20b%C3%BC",
        ),
        ("http://m\u00fcnchen.invalid/x", r"'\xfc' cannot be in a URL; write the host in ASCII letters (xn--...)"),
        ("http://127.0.0.1:9/a\nb", r"'\n' cannot be in a URL; percent-encode it, as in http://127.0.0.1:9/a%0Ab"),
    ],
)
def test_letters_that_no_url_has_are_told(url: str, told: str, partial: Partial) -> None:
    with pytest.raises(DownloadError) as caught:
        download.download(url, partial, description="")
    assert str(caught.value) == f"{ascii(url)[1:-1]}: {told.replace('.*', 'be in a URL')}"


def test_a_folder_with_any_letters_serves(tmp_path: Path, partial: Partial) -> None:
    (tmp_path / "a \u00fc").write_bytes(CONTENT)
    assert download.download(f"file://{tmp_path}/a \u00fc", partial, description="") == (DIGEST, False)


@pytest.mark.parametrize(
    ("mirror", "shown", "uri"),
    [
        ("/mnt/some mirror", "/mnt/some mirror", "file:///mnt/some%20mirror"),
        ("~/mirror", "~/mirror", f"file://{Path.home()}/mirror"),
        ("//user:secret@host/x", "//***@host/x", "file:///..."),
    ],
)
def test_a_mirror_that_is_no_url_is_told_with_the_one_it_may_mean(
    mirror: str, shown: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPG_ZOO_MIRROR", mirror)
    with pytest.raises(DownloadError) as caught:
        mirrored(f"{HOST}/x.pth")
    assert str(caught.value) == (
        f"FPG_ZOO_MIRROR={shown}: no URL; for a folder set it to {uri}, for a server to what begins with https://"
    )


def test_a_server_that_takes_the_question_and_is_silent_is_given_up(
    partial: Partial, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.05)
    given_up = r"given up after 5 attempts: timed out \(5 times\); check"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match=given_up):
        download.download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", partial, description="")
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("held", "copies", "free", "needed"),
    [
        (0, 1, 999_999, "1.0 MB"),
        (0, 2, 1_999_999, "2.0 MB"),
        (500_000, 2, 1_499_999, "1.5 MB"),
        (0, 2, 2_000_000, None),
        (500_000, 2, 1_500_000, None),
    ],
)
def test_room_is_asked_for_what_is_yet_to_be_written(
    held: int,
    copies: int,
    free: int,
    needed: str | None,
    mirror: Mirror,
    partial: Partial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = bytes(1_000_000)
    mirror.files[FILE] = content
    if held:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        partial.begin(Version(mirror.url + FILE, etag, None, len(content)))
        partial.path.write_bytes(content[:held])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if needed is None:
        download.download(mirror.url + FILE, partial, description="", copies=copies)
        assert partial.path.read_bytes() == content
        return
    with pytest.raises(StorageError, match=rf"{needed} are needed, .* MB are free \(No space left on device\)"):
        download.download(mirror.url + FILE, partial, description="", copies=copies)
    assert partial.size == held


def test_bytes_that_are_overwritten_count_as_room(
    mirror: Mirror, partial: Partial, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial.begin(Version(mirror.url + FILE, '"of an older file"', None, MEBIBYTE))
    partial.path.write_bytes(bytes(800_000))
    # 1048576 bytes are to be written, of which the 800000 that go make room.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    assert fetch(mirror, partial) == (DIGEST, False)


def test_the_folder_is_made(mirror: Mirror, tmp_path: Path) -> None:
    assert fetch(mirror, Partial(tmp_path / "new" / "folder" / "part")) == (DIGEST, False)


class Case(NamedTuple):
    etag: str | None
    modified: str | None
    condition: str | None


DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    "case",
    [
        Case('"strong"', None, '"strong"'),
        Case('"strong"', DATE, '"strong"'),
        Case('W/"weak"', DATE, DATE),  # RFC 9110, 13.1.5: a weak one may not be sent
        Case('W/"weak"', None, None),
        Case(None, DATE, DATE),
        Case("", DATE, DATE),
        Case(None, None, None),
    ],
)
def test_a_range_is_asked_for_under_the_strongest_condition(case: Case, mirror: Mirror, partial: Partial) -> None:
    version = Version(mirror.url + FILE, case.etag, case.modified, MEBIBYTE)
    assert version.condition == case.condition
    partial.begin(version)
    partial.path.write_bytes(CONTENT[:1000])
    mirror.validators = "none"
    fetch(mirror, partial)
    assert (mirror.requests[0].range, mirror.requests[0].if_range) == ("bytes=1000-", case.condition)


def test_a_partial_file_knows_its_version_once_it_has_bytes(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "new" / "x.part")
    version = Version("http://127.0.0.1/x", '"a"', None, None)
    assert (partial.size, partial.version()) == (0, None)
    partial.begin(version)
    assert sorted(path.name for path in partial.path.parent.iterdir()) == ["x.part", "x.part.json"]
    assert (partial.size, partial.version()) == (0, None)
    partial.path.write_bytes(b"12345")
    assert (partial.size, partial.version()) == (5, version)
    other = Version("http://127.0.0.1/x", None, DATE, 9)
    partial.begin(other)
    assert partial.size == 0
    partial.path.write_bytes(b"1")
    assert partial.version() == other
    partial.discard()
    partial.discard()
    assert list(partial.path.parent.iterdir()) == []
