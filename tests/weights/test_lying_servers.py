"""The cache and servers that fail, lie or change their minds: one clear error or the published file, never a mixture.

Requests are told by their Range headers. The file has 400000 bytes, so a transfer cut in half leaves 200000.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_child import Job, copied, lane
from serving import HOST, Fault, Mirror, Validators, entry_of, proxy, saying, serve

from fpg_zoo.errors import DigestError, DownloadError, StorageError, WeightsError
from fpg_zoo.weights import download
from fpg_zoo.weights.manifest import Published
from fpg_zoo.weights.store import Store

FILE = "/weights.pth"
CONTENT = random.Random(0).randbytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{hashlib.md5(CONTENT).hexdigest()}"'  # as `serving` makes them
DATE = f"Mon, 01 Jan 2024 00:00:{int(ETAG[1:-1], 16) % 60:02} GMT"
HALF = "bytes=200000-"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause, and silence is not borne for long."""
    monkeypatch.setattr(download, "BACK_OFF_SECONDS", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        running.files[FILE] = CONTENT
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "weights")


@pytest.fixture
def entry(mirror: Mirror) -> Published:
    return entry_of("some_model", mirror.url + FILE, sha256=DIGEST)


def left_behind(store: Store) -> list[str]:
    """The endings of all files but locks."""
    files = store.folder.iterdir() if store.folder.is_dir() else ()
    return sorted(path.name.partition(f"-{DIGEST[:8]}")[2] for path in files if path.suffix != ".lock")


def assert_good(path: Path, store: Store, content: bytes = CONTENT) -> None:
    """It is the published file, and nothing else is there."""
    assert path.read_bytes() == content
    assert store.judge(path).state == "good"
    assert sum(1 for file in store.folder.iterdir() if file.suffix != ".lock") == 2  # it and its pin


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["503", "500"], [None, None, None]),
        (["429"], [None, None]),
        (["cut"], [None, HALF]),
        (["cut", "cut"], [None, HALF, "bytes=300000-"]),
        (["cut", "503"], [None, HALF, HALF]),
        (["stall"], [None, HALF]),
        (["redirect"], [None, None]),
        (["redirect", "cut", "redirect"], [None, None, HALF, HALF]),
        (["chunked"], [None]),
        (["chunked cut"], [None, HALF]),
        (["chunked cut", "chunked"], [None, HALF]),
        (["no length"], [None]),
        (["cut", "no length"], [None, HALF]),
        (["cut", "no ranges"], [None, HALF]),
        (["cut", "from the start"], [None, HALF]),
        (["cut", "from elsewhere"], [None, HALF, None]),
        (["cut", "wrong rest"], [None, HALF, None]),
        # All came, and more was announced: nothing is after that, so it is fetched anew.
        (["too long"], [None, "bytes=400000-", None]),
        (["cut", "too long"], [None, HALF]),
        # 199000 of the 200000 bytes left are announced.
        (["cut", "too short"], [None, HALF, "bytes=399000-"]),
    ],
    ids=lambda value: " ".join(value) if value[0] else "",
)
def test_what_passes_is_overcome(
    faults: list[Fault], ranges: list[str | None], mirror: Mirror, store: Store, entry: Published
) -> None:
    mirror.faults = list(faults)
    assert_good(store.obtain(entry, copied), store)
    assert [request.range for request in mirror.requests] == ranges


def test_a_reset_connection_goes_on_from_what_came(mirror: Mirror, store: Store, entry: Published) -> None:
    mirror.faults = ["reset"]
    assert_good(store.obtain(entry, copied), store)
    first, second = mirror.requests
    # A reset throws away what the reader had not taken yet.
    kept = len(CONTENT) - second.sent
    assert 0 <= kept <= first.sent == 200_000
    assert second.range == (f"bytes={kept}-" if kept else None)


@pytest.mark.parametrize(
    ("faults", "error", "text", "left"),
    [
        (["too short"], DigestError, "expected SHA-256", []),
        (["html"], DigestError, "it is a web page", []),
        (["cut", "html"], DigestError, "it is a web page", []),
        (
            ["flip"],
            DigestError,
            r"SHA-256 [0-9a-f]{64} \(as published\), found [0-9a-f]{64}; .*altered",
            [],
        ),
        (["cut", "wrong rest", "flip"], DigestError, "altered on its way", []),
        (["too long"] * 9, DownloadError, r"closed after 400000 of 401000 bytes \(5 times\)", [".part", ".part.json"]),
        (["stall"] * 5, DownloadError, "timed out after 200000 of 400000 bytes, ", [".part", ".part.json"]),
        (["404"], DownloadError, "answered 404", []),
        (["500"] * 5, DownloadError, r"after 5 attempts: 500 Internal Server Error \(5 times\); check the network", []),
        (["cut", "404"], DownloadError, "answered 404", [".part", ".part.json"]),
        (["cut"] + ["503"] * 4, DownloadError, r"Unavailable \(4 times\); 200000 bytes", [".part", ".part.json"]),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) and value and value[0][0] != "." else "",
)
@pytest.mark.slow
def test_what_stays_is_told_and_the_next_call_repairs_it(
    faults: list[Fault],
    error: type[Exception],
    text: str,
    left: list[str],
    mirror: Mirror,
    store: Store,
    entry: Published,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    mirror.faults = list(faults)
    with pytest.raises(error, match=text):
        store.obtain(entry, copied)
    assert left_behind(store) == [f".pth{name}" for name in left]
    mirror.faults.clear()
    assert_good(store.obtain(entry, copied), store)


@pytest.mark.parametrize("length", [400_000, 300_000, 500_000], ids=["as long", "shorter", "longer"])
@pytest.mark.parametrize("fault", ["none", "any range"])
@pytest.mark.parametrize("validators", ["etag", "weak etag", "date", "none"])
@pytest.mark.parametrize("published", ["new", "old"])
@pytest.mark.slow
def test_a_file_that_changes_between_two_ranges_is_never_mixed(
    published: str, validators: Validators, fault: Fault, length: int, mirror: Mirror, store: Store
) -> None:
    new = random.Random(length).randbytes(length)
    digest = hashlib.sha256(new).hexdigest() if published == "new" else DIGEST
    entry = entry_of("some_model", mirror.url + FILE, sha256=digest)
    mirror.validators = validators
    mirror.faults = ["cut", "404"]
    with pytest.raises(DownloadError, match="404"):
        store.obtain(entry, copied)
    assert store.partial(entry).size == 200_000
    mirror.requests.clear()
    mirror.files[FILE] = new
    mirror.fault = fault
    if published == "new":
        assert_good(store.obtain(entry, copied), store, new)
    else:
        with pytest.raises(DigestError, match="altered on its way"):
            store.obtain(entry, copied)
        assert left_behind(store) == []
    first, *others = mirror.requests
    assert (first.range, first.if_range) == (HALF, {"etag": ETAG, "date": DATE}.get(validators))
    # A server that heeds If-Range sends the new file at once; any other has to be asked again for the whole.
    heeded = fault == "none" and validators in ("etag", "date")
    assert [request.range for request in others] == ([] if heeded else [None])


STATE = {"url": "URL", "etag": ETAG, "modified": None, "length": 400_000}


@pytest.mark.parametrize(
    ("record", "size", "ranges"),
    [
        (STATE, 200_000, [HALF]),
        (None, 200_000, [None]),
        ("", 200_000, [None]),
        ("{", 200_000, [None]),
        ("[]", 200_000, [None]),
        ("null", 200_000, [None]),
        ("\udcff", 200_000, [None]),
        ("[" * 100_000, 200_000, [None]),
        ({**STATE, "more": 1}, 200_000, [None]),
        ({**STATE, "etag": 7}, 200_000, [None]),
        ({**STATE, "length": "many"}, 200_000, [None]),
        ({**STATE, "url": "http://127.0.0.1/other.pth"}, 200_000, [None]),
        # The server does not know this ETag, and sends the whole.
        ({**STATE, "etag": '"other"'}, 200_000, [HALF]),
        # One flipped bit in the record makes a quote's escape that of a line feed.
        ({**STATE, "etag": "\n" + ETAG[1:]}, 200_000, [None]),
        ({**STATE, "etag": "\u2603"}, 200_000, [None]),
        # Complete, as the record has it.
        ({**STATE, "length": 200_000}, 200_000, [None]),
        ({**STATE, "length": 500_000}, 500_000, [None]),
        # Of another length than the server's.
        ({**STATE, "length": 1000}, 200_000, [HALF, None]),
        ({**STATE, "length": 600_000}, 500_000, ["bytes=500000-", None]),
        ({**STATE, "length": None}, 200_000, [HALF]),
        ({**STATE, "length": None}, 400_000, ["bytes=400000-", None]),
        (STATE, 400_000, []),
        (STATE, 500_000, ["bytes=500000-", None]),
        (STATE, 0, [None]),
    ],
    ids=lambda value: str(value)[:80],
)
@pytest.mark.slow
def test_a_damaged_state_record_costs_no_more_than_a_new_download(
    record: dict[str, object] | str | None,
    size: int,
    ranges: list[str | None],
    mirror: Mirror,
    store: Store,
    entry: Published,
) -> None:
    partial = store.partial(entry)
    store.folder.mkdir()
    partial.path.write_bytes((CONTENT + CONTENT)[:size])
    if record is not None:
        text = record if isinstance(record, str) else json.dumps(record).replace("URL", entry.url)
        state = partial.path.with_name(partial.path.name + ".json")
        state.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert_good(store.obtain(entry, copied), store)
    assert [request.range for request in mirror.requests] == ranges


@pytest.mark.slow
def test_a_download_cut_by_a_proxy_goes_on_through_it(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults = ["cut"]
    address = f"http://weights.invalid{FILE}"
    with proxy(mirror) as url, lane(http_proxy=url, no_proxy="", NO_PROXY="") as process:
        process.start(Job(address, DIGEST, str(tmp_path)))
        assert process.wait() == [0]
    assert [(request.path, request.range) for request in mirror.requests] == [(address, None), (address, HALF)]
    assert mirror.requests[1].if_range == ETAG


def test_what_came_from_a_server_is_no_beginning_of_a_folders_file(
    mirror: Mirror, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entry_of("some_model", HOST + FILE, sha256=DIGEST)
    monkeypatch.setenv("FPG_ZOO_MIRROR", mirror.url)
    mirror.faults = ["cut", "404"]
    with pytest.raises(DownloadError, match="404"):
        store.obtain(entry, copied)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / FILE[1:]).write_bytes(CONTENT)
    monkeypatch.setenv("FPG_ZOO_MIRROR", (tmp_path / "copy").as_uri())
    assert_good(store.obtain(entry, copied), store)


def test_a_folders_file_is_read_anew_after_an_interruption(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(CONTENT)
    entry = entry_of("some_model", (tmp_path / "weights.pth").as_uri(), sha256=DIGEST)
    partial = store.partial(entry)
    store.folder.mkdir()
    partial.path.write_bytes(CONTENT[:200_000])
    state = {**STATE, "url": entry.url, "etag": None}
    partial.path.with_name(partial.path.name + ".json").write_text(json.dumps(state))
    assert_good(store.obtain(entry, copied), store)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 1000,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        HEAD + b"Content-Length: 999999999999999999\r\n\r\nabc",
        HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        HEAD + b"X: x\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 7-9/10\r\n\r\nabc",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-" + b"9" * 5000 + b"/10\r\n\r\nabc",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/" + b"9" * 5000 + b"\r\n\r\nabc",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n",
        b"HTTP/1.1 999 \r\n\r\n",
    ],
    ids=lambda answer: ascii(answer[:60]),
)
@pytest.mark.slow
def test_any_nonsense_ends_in_a_clear_error(answer: bytes, store: Store, entry: Published) -> None:
    with saying(answer) as url:
        bad = entry_of("some_model", url + FILE, sha256=DIGEST)
        with pytest.raises((WeightsError, StorageError)):
            store.obtain(bad, copied)
        assert not store.path(bad).exists()
    assert_good(store.obtain(entry, copied), store)  # and it hinders no other
