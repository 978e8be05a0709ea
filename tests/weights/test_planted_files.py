"""A cache folder in which others may write: links lead nowhere, pipes and devices are not waited for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import run
from faulty_child import copied
from serving import HOST, Mirror, entry_of, serve

from fpg_zoo.errors import DownloadError, StorageError
from fpg_zoo.weights import manifest
from fpg_zoo.weights.download import Version
from fpg_zoo.weights.manifest import Published
from fpg_zoo.weights.store import Store, pin_path

FILE = "/weights.pth"
CONTENT = bytes(range(256)) * 1000  # 256000 bytes
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PRECIOUS = b"not to be written"
TERABYTE = 1 << 40


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        running.files[FILE] = CONTENT
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "weights"
    folder.mkdir()
    return Store(folder)


@pytest.fixture
def entry(mirror: Mirror) -> Published:
    return entry_of("some_model", mirror.url + FILE, sha256=DIGEST)


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file and a folder of the user's, which stay as they are."""
    (tmp_path / "folder").mkdir()
    files = (tmp_path / "precious", tmp_path / "folder" / "inside")
    for file in files:
        file.write_bytes(PRECIOUS)
    yield files[0]
    assert [file.read_bytes() for file in files] == [PRECIOUS] * 2
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["inside"]


def names(store: Store, entry: Published) -> dict[str, Path]:
    final = store.path(entry)
    return {
        "part": store.partial(entry).path,
        "part's record": store.partial(entry).path.with_name(store.partial(entry).path.name + ".json"),
        "temporary folder": store.folder / f".tmp-{final.stem}.d",
    }


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TERABYTE)


# What may lie at a path, and may be no file to read.
ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terabyte": sparse,
    "socket": lambda path: os.mknod(path, 0o140666),
}


@pytest.mark.parametrize("place", ["part", "part's record", "temporary folder"])
@pytest.mark.parametrize("link", ["file", "folder", "nothing", "hard"])
def test_nothing_is_written_through_a_link(
    link: str, place: str, entry: Published, store: Store, precious: Path, tmp_path: Path
) -> None:
    path = names(store, entry)[place]
    if link == "hard":
        path.hardlink_to(precious)
    else:
        path.symlink_to({"file": precious, "folder": precious.parent / "folder", "nothing": tmp_path / "new"}[link])
    assert store.obtain(entry, copied).read_bytes() == CONTENT
    assert not (tmp_path / "new").exists()
    assert list(store.folder.glob("*.part*")) == []


def test_a_resumed_part_is_not_continued_through_a_link(
    mirror: Mirror, entry: Published, store: Store, tmp_path: Path
) -> None:
    # A link to what would be a right beginning, with the record that fits it.
    partial = store.partial(entry)
    etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    partial.begin(Version(entry.url, etag, None, len(CONTENT)))
    for form in (Path.symlink_to, Path.hardlink_to):
        begun = tmp_path / f"begun by {form.__name__}"
        begun.write_bytes(CONTENT[:1000])
        partial.path.unlink()
        form(partial.path, begun)
        assert (partial.size, partial.version()) == (0, None)
        if begun.name.endswith("symlink_to"):  # which is found out even if it is put there at the last moment
            with pytest.raises(OSError, match=partial.path.name), partial.appending():
                pass
        assert begun.read_bytes() == CONTENT[:1000]
    partial.path.unlink()
    partial.path.write_bytes(CONTENT[:1000])
    assert store.obtain(entry, copied).read_bytes() == CONTENT
    assert [request.range for request in mirror.requests] == ["bytes=1000-"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", ["part", "part's record", "temporary folder"])
def test_what_is_no_file_of_a_download_is_replaced(odd: str, place: str, entry: Published, store: Store) -> None:
    ODD[odd](names(store, entry)[place])
    assert store.obtain(entry, copied).read_bytes() == CONTENT


@pytest.mark.parametrize("odd", ODD)
def test_a_pin_that_is_no_file_is_told_and_not_read(odd: str, entry: Published, store: Store) -> None:
    path = store.path(entry)
    ODD[odd](pin_path(path))
    with pytest.raises(StorageError, match=r"pin\.json: unreadable \((not a regular file|1099511627776 bytes|No )"):
        store.obtain(entry, copied)
    path.write_bytes(CONTENT)
    states = {verdict.path: verdict.state for verdict in store.verify()}
    assert states[path] == ("altered" if odd == "terabyte" else "foreign")


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_is_not_hashed(odd: str, entry: Published, store: Store) -> None:
    path = store.obtain(entry, copied)
    path.unlink()
    ODD[odd](path)
    (verdict,) = store.verify()
    assert (verdict.path, verdict.state) == (path, "altered" if odd == "terabyte" else "foreign")
    ended = run("verify", path)
    assert (ended.code, ended.out + ended.err) != (0, "")
    assert "1099511627776 bytes, more than" in ended.out if odd == "terabyte" else "no regular file" in ended.err


@pytest.mark.parametrize("odd", ODD)
def test_a_mirrors_file_that_is_none_is_told(
    odd: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPG_ZOO_MIRROR", tmp_path.as_uri())
    ODD[odd](tmp_path / "weights.pth")
    with pytest.raises(DownloadError, match=r"weights\.pth: (not a regular file|1099511627776 bytes|No such dev)"):
        store.obtain(entry_of("some_model", HOST + FILE, sha256=DIGEST), copied)
    assert list(store.folder.glob("*.part*")) == []


@pytest.mark.parametrize("odd", ["pipe", "device", "terabyte", "nothing", "text"])
def test_a_manifest_that_cannot_be_read_is_told(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    if odd == "text":
        path.write_text("{")
    elif odd != "nothing":
        ODD[odd](path)
    monkeypatch.setattr(manifest, "manifest_path", lambda: path)
    with pytest.raises(StorageError, match=r"manifest\.json: cannot be read \(.*\); install fpg-zoo again"):
        manifest.load_manifest.__wrapped__()


def test_a_record_without_an_end_costs_no_more_than_a_new_download(
    mirror: Mirror, entry: Published, store: Store
) -> None:
    partial = store.partial(entry)
    partial.begin(Version(entry.url, None, None, len(CONTENT)))
    partial.path.write_bytes(CONTENT[:1000])
    record = partial.path.with_name(partial.path.name + ".json")
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({**fields, "url": "x" * (1 << 21)}))
    assert store.obtain(entry, copied).read_bytes() == CONTENT
    assert [request.range for request in mirror.requests] == [None]
