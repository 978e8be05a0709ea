"""What lies in the cache, what of it may go, and caches that cannot be locked or written."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import python, run
from conftest import ROOT
from faulty_child import Job, copied, lane
from serving import Mirror, entry_of, publish, serve

import fpg_zoo
from fpg_zoo import files
from fpg_zoo.errors import CheckpointError, StorageError
from fpg_zoo.models.loading import fetch
from fpg_zoo.weights import listing as cache
from fpg_zoo.weights.listing import contents, prune
from fpg_zoo.weights.store import Pin, Store, pin_path, verify_file

FILE = "/weights.pth"
CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
# The manifest lists the first, by hand; the zoo never had the second.
LISTED = "faster_rcnn_r50_fpg.coco_2022-74109f42"
OLD = "faster_rcnn_r50_fpg.coco_2019-0123abcd"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        running.files[FILE] = CONTENT
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "weights")


def put(folder: Path, name: str, size: int = 3) -> Path:
    """A file; weights get a pin beside them, unless they are a stranger's."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(size))
    if name in (f"{LISTED}.safetensors", f"{OLD}.safetensors"):
        pin = Pin("http://127.0.0.1/x", "0" * 64, hashlib.sha256(bytes(size)).hexdigest())
        pin_path(path).write_text(str(pin))
    return path


def names(store: Store) -> list[str]:
    """All files but locks."""
    return sorted(path.name for path in store.folder.iterdir() if path.suffix != ".lock")


FILES = {
    f".tmp-{LISTED}.d": ("temporary", 12),
    f".tmp-{LISTED}.json": ("temporary", 5),
    f".tmp-{LISTED}.safetensors": ("temporary", 6),
    f"{LISTED}.pth.part": ("partial", 7),
    f"{LISTED}.safetensors": ("weights", 8),
    f"{OLD}.pth.part": ("partial", 9),
    f"{OLD}.safetensors": ("superseded", 10),
    "dangling.safetensors": ("foreign", len("nowhere")),
    "evil.pth": ("foreign", 13),
    "folder.safetensors": ("foreign", 0),
    "mine.safetensors": ("foreign", 11),
    "notes.txt": ("foreign", 3),
}


def fill(store: Store) -> None:
    for name in ("folder.safetensors", f".tmp-{LISTED}.d", "hub", "somebody's"):
        (store.folder / name).mkdir(parents=True)
    (store.folder / "dangling.safetensors").symlink_to("nowhere")
    for name, (_, size) in FILES.items():
        if name.endswith(".d"):
            put(store.folder / name, ".tmpAbC123", size - 2)
            put(store.folder / name, f"{LISTED}.pin.json", 2)
        elif not name.startswith(("folder", "dangling")):
            put(store.folder, name, size)
    put(store.folder, f"{LISTED}.pth.part.json")
    put(store.folder, f".{LISTED}.lock", 0)
    put(store.folder, "former-01234567.pin.json")
    put(store.folder / "hub", "any.txt")


def test_contents_tells_each_file_by_its_kind_and_size(store: Store) -> None:
    assert contents(store) == []
    assert not store.folder.exists()
    fill(store)
    assert {item.path.name: (item.kind, item.size) for item in contents(store)} == FILES
    assert [item.path.name for item in contents(store)] == sorted(FILES)


def test_prune_removes_what_no_one_needs_and_tells_it(store: Store) -> None:
    assert list(prune(store)) == []
    assert not store.folder.exists()
    fill(store)
    gone = {item.path.name: (item.kind, item.size) for item in prune(store)}
    assert gone == {name: told for name, told in FILES.items() if told[0] not in ("weights", "foreign")}
    foreign = [name for name, (kind, _) in FILES.items() if kind == "foreign"]
    kept = [f"{LISTED}.pin.json", f"{LISTED}.safetensors", "former-01234567.pin.json", "hub", "somebody's"]
    assert names(store) == sorted(kept + foreign)
    assert list(prune(store)) == []


def test_contents_passes_over_a_file_that_goes_away_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    kind_of = cache._kind

    def and_finish(path: Path, listed: bool) -> cache.Kind | None:
        """Another process ends its download once the file has been seen."""
        kind = kind_of(path, listed)
        if kind == "partial":
            path.unlink()
        return kind

    monkeypatch.setattr(cache, "_kind", and_finish)
    assert {item.path.name for item in contents(store)} == {
        name for name, (kind, _) in FILES.items() if kind != "partial"
    }


def test_prune_leaves_a_running_download_alone(mirror: Mirror, store: Store) -> None:
    put(store.folder, f"{OLD}.pth.part")
    mirror.pause_at = 100_000
    entry = entry_of("some_model", mirror.url + FILE, sha256=DIGEST)
    with lane() as process:
        process.start(Job(entry.url, DIGEST, str(store.folder)))
        assert mirror.half_sent.wait(timeout=30)
        put(store.folder / f".tmp-{store.path(entry).stem}.d", "file")
        assert [item.path.name for item in prune(store)] == [f"{OLD}.pth.part"]
        mirror.go_on.set()
        assert process.wait() == [0]
    assert [(request.range, request.sent) for request in mirror.requests] == [(None, len(CONTENT))]
    assert store.judge(store.path(entry)).state == "good"
    assert names(store) == [pin_path(store.path(entry)).name, store.path(entry).name]


WITHOUT_LOCKS = """
import errno, fcntl, sys
from pathlib import Path

def refuse(*_):
    raise OSError(getattr(errno, sys.argv[1]), "refused by the test")

fcntl.flock = refuse
from fpg_zoo.errors import StorageError
from fpg_zoo.weights.store import Store
sys.path.insert(0, sys.argv[2])
from serving import entry_of
try:
    Store(Path(sys.argv[3])).obtain(entry_of("some_model", "http://127.0.0.1:9/x.pth", sha256="0" * 64), print)
except StorageError as error:
    print("StorageError", error)
"""


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EIO", "ENOSYS", "EINVAL"])
def test_a_file_system_without_locks_is_told(code: str, tmp_path: Path) -> None:
    ended = python("-c", WITHOUT_LOCKS, code, str(ROOT / "tests" / "support"), str(tmp_path / "weights"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(
        f"StorageError cannot write in {tmp_path / 'weights'}, or its file system has no locks"
    )
    assert "Set FPG_ZOO_CACHE to a folder on a local disk" in ended.stdout
    assert ended.stderr == ""
    assert os.listdir(tmp_path / "weights") == [f".some_model.test-{'0' * 8}.lock"]  # which says nothing


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_cache_is_read_and_not_written(
    mirror: Mirror, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "retinanet_nano_fpg"
    config = fpg_zoo.model_info(name).config
    published = publish(fpg_zoo.reference_state_dict(fpg_zoo.create_model(name)), tmp_path, name)
    entry, store = entry_of(name, mirror.add(published)), Store(disk / "weights")
    monkeypatch.setenv("FPG_ZOO_MIRROR", mirror.url)
    path = fetch(entry, config, store)
    other = entry_of("other", mirror.url + FILE, sha256=DIGEST)
    put(store.folder, f"{OLD}.pth.part")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before, asked = sorted(disk.rglob("*")), len(mirror.requests)
    assert fetch(entry, config, store) == path
    assert fpg_zoo.create_model(checkpoint=path).class_names[0] == "thing 0"
    assert [verdict.state for verdict in store.verify()] == ["good"]
    for attempt in (lambda: store.obtain(other, copied), lambda: list(prune(store))):
        with pytest.raises(StorageError, match=r"cannot write in .*Read-only file system.*FPG_ZOO_CACHE"):
            attempt()
    assert (sorted(disk.rglob("*")), len(mirror.requests)) == (before, asked)


def test_prune_removes_what_a_killed_process_left_beside_the_hubs_pins(store: Store) -> None:
    pins = store.folder / "hub" / "owner--repo"
    pins.mkdir(parents=True)
    for name in (".tmp-old.json", ".tmp-new.json", "0123.json"):
        put(pins, name)
        if "new" not in name:
            os.utime(pins / name, (time.time() - 3700,) * 2)
    assert [(item.path.name, item.kind, item.size) for item in prune(store)] == [(".tmp-old.json", "temporary", 3)]
    assert sorted(path.name for path in pins.iterdir()) == [".tmp-new.json", "0123.json"]


def test_verify_reports_what_the_zoo_has_not_put_there_and_reads_nothing_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    hashed = []
    monkeypatch.setattr(
        "fpg_zoo.weights.store.sha256_of", lambda path, **_: hashed.append(path.name) or files.sha256_of(path)
    )
    found = {verdict.path.name: verdict.state for verdict in store.verify()}
    foreign = {name: "foreign" for name, (kind, _) in FILES.items() if kind == "foreign"}
    assert found == {f"{LISTED}.safetensors": "good", f"{OLD}.safetensors": "good"} | foreign
    assert sorted(hashed) == [f"{OLD}.safetensors", f"{LISTED}.safetensors"]


def _failing(path: Path, error: OSError) -> Callable[..., str]:
    """In place of hashing; for root, which runs these tests, every file is readable."""

    def hashed(asked: Path, **_: object) -> str:
        if asked == path:
            raise error
        return files.sha256_of(asked)

    return hashed


def test_verify_goes_on_after_a_file_that_cannot_be_read_or_has_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store.folder, f"{OLD}.safetensors")
    path = put(store.folder, f"{LISTED}.safetensors")
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr("fpg_zoo.weights.store.sha256_of", _failing(path, error))
    told = {verdict.path.name: (verdict.state, verdict.detail) for verdict in store.verify()}
    unreadable = ("altered", "cannot be read (Permission denied); make it readable, or delete it")
    assert told[path.name] == unreadable
    assert told[f"{OLD}.safetensors"][0] == "good"
    assert (verify_file(path).state, verify_file(path).detail) == unreadable
    gone = FileNotFoundError(2, "No such file")
    monkeypatch.setattr("fpg_zoo.weights.store.sha256_of", _failing(path, gone))
    assert [verdict.path.name for verdict in store.verify()] == [f"{OLD}.safetensors"]
    with pytest.raises(CheckpointError, match=r"74109f42\.safetensors: no such file any more"):
        verify_file(path)


@pytest.mark.parametrize("command", [("verify",), ("cache", "list"), ("cache", "prune")])
@pytest.mark.parametrize("inner", ["", "weights"])
def test_a_cache_that_is_a_file_is_told(
    command: tuple[str, ...], inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / inner
    monkeypatch.setenv("FPG_ZOO_CACHE", str(folder))
    what = "below a file" if inner else "a file, not a folder"
    assert run(*command) == (2, "", f"fpg-zoo: {folder}: {what}; set FPG_ZOO_CACHE to a folder\n")


def test_without_standard_error_files_are_fetched_awaited_and_verified(
    mirror: Mirror, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw, in services, and with 2>&-
    assert not files.on_terminal()
    entry = entry_of("some_model", mirror.url + FILE, sha256=DIGEST)
    fetched: list[Path] = []
    thread = threading.Thread(target=lambda: fetched.append(store.obtain(entry, copied)))
    with store.alone(store.path(entry), waiting=None):
        thread.start()
        time.sleep(0.2)  # long enough for it to find the lock taken
    thread.join()
    assert fetched == [store.path(entry)]
    assert [verdict.state for verdict in store.verify()] == ["good"]


# A conversion that is killed: by the kernel where the file being written would grow beyond a limit, or by itself.
KILLED = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from serving import entry_of
import fpg_zoo
from fpg_zoo.checkpoints import safetensors_files
from fpg_zoo.models.loading import fetch
from fpg_zoo.weights.store import Store

write, limit = safetensors_files.save_file, int(sys.argv[2])

def killed(*arguments):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

safetensors_files.save_file = killed
name = sys.argv[3]
fetch(entry_of(name, sys.argv[4]), fpg_zoo.model_info(name).config, Store(Path(sys.argv[5])))
"""


@pytest.mark.parametrize(("limit", "death"), [(1, "SIGXFSZ"), (3_000_000, "SIGXFSZ"), (0, "SIGKILL")])
@pytest.mark.slow
def test_nothing_is_left_of_a_real_conversion_that_was_killed(
    limit: int, death: str, mirror: Mirror, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "retinanet_nano_fpg"
    published = publish(fpg_zoo.reference_state_dict(fpg_zoo.create_model(name)), tmp_path, name)
    entry = entry_of(name, mirror.add(published))
    monkeypatch.setenv("FPG_ZOO_MIRROR", mirror.url)
    ended = python("-c", KILLED, str(ROOT / "tests" / "support"), str(limit), name, entry.url, str(store.folder))
    assert ended.returncode == -getattr(signal, death), ended.stderr
    final = store.path(entry)
    kept = {item.path.name: item.kind for item in contents(store)}
    assert kept == {f".tmp-{final.stem}.d": "temporary", f"{final.stem}.pth.part": "partial"}
    size = next(item.size for item in contents(store) if item.kind == "temporary")
    assert size > 7_000_000 if not limit else size <= limit
    assert list(store.verify()) == []
    if limit == 1:  # the next call makes up for it ...
        assert fetch(entry, fpg_zoo.model_info(name).config, store) == final
        assert sorted(os.listdir(store.folder)) == [f".{final.stem}.lock", pin_path(final).name, final.name]
    else:  # ... and so does clearing up
        assert {item.path.name: item.kind for item in prune(store)} == kept
        assert os.listdir(store.folder) == [f".{final.stem}.lock"]
