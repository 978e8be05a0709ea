"""Fault injection on the cache: processes killed anywhere, bytes flipped anywhere, many at once; prints its counts.

`test_lying_servers.py` has the servers that lie. Everything is real but for the conversion, which copies: processes,
signals, files, locks, and HTTP on loopback.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faulty_child import Job, Lane, copied, lane
from serving import Mirror, entry_of, serve

from fpg_zoo.errors import DigestError
from fpg_zoo.weights import download
from fpg_zoo.weights import listing as cache
from fpg_zoo.weights.download import Version
from fpg_zoo.weights.manifest import Manifest, Published
from fpg_zoo.weights.store import Store, pin_path

FILE = "/weights.pth"
CONTENT = random.Random(0).randbytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SMALL = CONTENT[:50_000]
SMALL_DIGEST = hashlib.sha256(SMALL).hexdigest()
WRITE_BUFFER = 8192  # what Python keeps in memory of a file that is written, and a killed process loses
LANES = 4


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print, whatever pytest captures."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end=" ")

    return say


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause."""
    monkeypatch.setattr(download, "BACK_OFF_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest lists the file."""
    listed = Manifest(host="", recipes={}, checkpoints=(entry_of("some_model", FILE, sha256=DIGEST),))
    monkeypatch.setattr(cache, "load_manifest", lambda: listed)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        running.files[FILE] = CONTENT
        yield running


def entry_at(mirror: Mirror, digest: str = DIGEST) -> Published:
    return entry_of("some_model", mirror.url + FILE, sha256=digest)


def job_at(mirror: Mirror, folder: Path, **more: Any) -> Job:
    return Job(mirror.url + FILE, DIGEST, str(folder), **more)


def left_behind(store: Store) -> set[str]:
    """The endings of all files that lie there, after the name of the weights; locks are left out."""
    stem = f"some_model.test-{DIGEST[:8]}"
    files = store.folder.iterdir() if store.folder.is_dir() else ()
    return {path.name.replace(stem, "") for path in files if path.suffix != ".lock"}


def stage(store: Store) -> str:
    """What a process was about when it was killed, by what it left."""
    kept, left = store.partial(entry_of("some_model", FILE, sha256=DIGEST)).size, left_behind(store)
    if ".safetensors" in left:
        return "after the last rename"
    if ".pin.json" in left:
        return "between the two renames"
    if ".tmp-.d" in left:
        return "while converting"
    if kept:
        return "while receiving" if kept < len(CONTENT) else "with all received"
    return "before a byte was kept"


def finish(mirror: Mirror, folder: Path) -> str:
    """Judge what a killed process left, and let the next call end it; returns the stage of the kill."""
    store, entry = Store(folder), entry_at(mirror)
    final, partial, killed = store.path(entry), store.partial(entry), stage(store)
    done, kept = final.exists(), partial.size if partial.version() else 0
    if done:
        assert final.read_bytes() == CONTENT
        assert store.judge(final).state == "good"
    asked = len(mirror.requests)
    assert store.obtain(entry, copied) == final
    ranges = [request.range for request in mirror.requests[asked:]]
    if done or kept == len(CONTENT):
        assert ranges == []
    elif kept:
        assert ranges == [f"bytes={kept}-"]
    else:  # and what the killed process asked may be noted only now
        assert ranges in ([None], [None, None])
    assert final.read_bytes() == CONTENT
    assert store.judge(final).state == "good"
    if done:  # killed while it cleared away, which nobody does for it but `prune`
        list(cache.prune(store))
    assert left_behind(store) == {".safetensors", ".pin.json"}
    return killed


def kill_at_byte(running: Lane, folder: Path, chance: random.Random) -> str:
    with serve() as mirror:
        mirror.files[FILE] = CONTENT
        mirror.pause_at = chance.randrange(len(CONTENT))
        running.start(job_at(mirror, folder))
        assert mirror.half_sent.wait(timeout=30)
        if chance.random() < 0.9:  # the others are killed with what was sent still on its way
            partial, patience = Store(folder).partial(entry_at(mirror)), time.monotonic() + 5
            while partial.size <= mirror.pause_at - WRITE_BUFFER and time.monotonic() < patience:
                time.sleep(0.001)
        assert running.kill() == [-9]
        mirror.pause_at = None
        return finish(mirror, folder)


def kill_at_time(running: Lane, folder: Path, seconds: float) -> str:
    with serve() as mirror:
        mirror.files[FILE] = CONTENT
        running.start(job_at(mirror, folder, kill_after=seconds))
        assert running.ended() in ([-9], [0])
        return finish(mirror, folder)


def duration(running: Lane, folder: Path) -> float:
    """Seconds that a whole fetch takes."""
    with serve() as mirror:
        mirror.files[FILE] = CONTENT
        begin = time.perf_counter()
        running.start(job_at(mirror, folder))
        assert running.wait() == [0]
        return time.perf_counter() - begin


@pytest.mark.slow
def test_200_downloads_killed_anywhere_leave_no_bad_file_and_finish(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    def work(number: int) -> list[str]:
        chance = random.Random(number)
        with lane() as running:
            whole = sorted(duration(running, tmp_path / f"{number} whole {i}") for i in range(3))[1]
            stages = [kill_at_byte(running, tmp_path / f"byte {i}", chance) for i in range(number, 150, LANES)]
            times = {i: chance.uniform(0, 1.1 * whole) for i in range(number, 50, LANES)}
            return stages + [kill_at_time(running, tmp_path / f"time {i}", times[i]) for i in times]

    with ThreadPoolExecutor(LANES) as pool:
        counts = Counter(stage for stages in pool.map(work, range(LANES)) for stage in stages)
    assert counts.total() == 200
    assert counts["while receiving"] >= 100
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    tell(f"{counts.total()} downloads killed: {told}; 0 bad files, {counts.total()} finished on the next call")


def begun(store: Store, entry: Published, content: bytes) -> None:
    """Leave the first half of a download, of a file with this content as `serving` tells of it."""
    partial = store.partial(entry)
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    partial.begin(Version(entry.url, etag, None, len(content)))
    partial.path.write_bytes(content[: len(content) // 2])


OLDER = random.Random(1).randbytes(300_000)


@pytest.mark.parametrize("before", [None, CONTENT, OLDER], ids=["fresh", "resumed", "begun with an older file"])
@pytest.mark.slow
def test_a_process_killed_before_any_step_of_the_file_system_is_made_up_for(
    before: bytes | None, mirror: Mirror, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    stages = []
    with lane() as running:
        while True:
            folder = tmp_path / f"step {len(stages) + 1}"
            if before:
                begun(Store(folder), entry_at(mirror), before)
            running.start(job_at(mirror, folder, kill_at_step=len(stages) + 1))
            codes = running.wait()
            if codes == [0]:
                break
            assert codes == [-9]
            stages.append(finish(mirror, folder))
    # At least: the lock, the partial and its record, the bytes, the converted file twice, the pin, both renames.
    assert len(stages) >= (8 if before is CONTENT else 10)
    counts = Counter(stages)
    assert counts.keys() >= {
        "with all received",
        "while converting",
        "between the two renames",
        "after the last rename",
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    tell(f"killed before each of {len(stages)} steps of the file system: {told}; 0 bad files")


def flip(content: bytes, chance: random.Random) -> bytes:
    """One byte altered, any and anyhow."""
    altered = bytearray(content)
    altered[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    return bytes(altered)


@pytest.mark.slow
def test_250_flips_in_transit_are_all_found(mirror: Mirror, tmp_path: Path, tell: Callable[[str], None]) -> None:
    chance, found = random.Random(2), Counter[str]()
    mirror.files[FILE] = SMALL
    entry = entry_at(mirror, SMALL_DIGEST)
    for number in range(250):
        store = Store(tmp_path / str(number % 3))
        kind = "the whole" if number < 150 else "a second part" if number < 200 else "each second part"
        first = 0 if kind == "the whole" else len(SMALL) // 2
        mirror.flipped = (chance.randrange(first, len(SMALL)), chance.randrange(1, 256))
        mirror.requests.clear()
        if kind == "a second part":  # fetched whole once more, and then well
            mirror.faults = ["cut", "flip", "none"]
            path = store.obtain(entry, copied)
            assert path.read_bytes() == SMALL
            assert store.judge(path).state == "good"
            path.unlink()
            pin_path(path).unlink()
        else:
            mirror.faults = ["flip"] if kind == "the whole" else ["cut", "flip", "flip"]
            with pytest.raises(DigestError, match="altered on its way"):
                store.obtain(entry, copied)
        resumed = [f"bytes={first}-", None] if first else []
        assert [request.range for request in mirror.requests] == [None, *resumed]
        assert mirror.faults == []
        assert not [path for path in store.folder.iterdir() if path.suffix != ".lock"]
        found[kind] += 1
    told = ", ".join(f"{count} in {kind}" for kind, count in found.items())
    tell(f"{found.total()} of 250 flips in transit found ({told}), 0 kept")


def test_250_flips_in_the_cache_are_all_found(mirror: Mirror, tmp_path: Path, tell: Callable[[str], None]) -> None:
    chance, found = random.Random(3), Counter[str]()
    mirror.files[FILE] = SMALL
    store = Store(tmp_path)
    path = store.obtain(entry_at(mirror, SMALL_DIGEST), copied)
    for number in range(250):
        target = path if number < 200 else pin_path(path)
        good = target.read_bytes()
        target.write_bytes(flip(good, chance))
        (verdict,) = store.verify()
        assert verdict.state == "altered"
        found["weights" if target == path else "pin"] += 1
        target.write_bytes(good)
    (verdict,) = store.verify()
    assert verdict.state == "good"
    told = ", ".join(f"{count} in the {kind}" for kind, count in found.items())
    tell(f"{found.total()} of 250 flips in the cache found ({told})")


def test_no_byte_of_a_pin_can_be_flipped_unnoticed(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files[FILE] = b"x"
    store = Store(tmp_path)
    path = store.obtain(entry_at(mirror, hashlib.sha256(b"x").hexdigest()), copied)
    record = pin_path(path)
    good = record.read_bytes()
    missed = []
    # One bit of each byte; and three, which make a carriage return of the first line feed.
    assert good[:2] == b"{\n"
    for place, bits in [*((place, 1 << place % 8) for place in range(len(good))), (1, 0x0A ^ 0x0D)]:
        altered = bytearray(good)
        altered[place] ^= bits
        record.write_bytes(altered)
        if store.judge(path).state == "good":
            missed.append((place, bits))
    assert missed == []


def test_a_flip_in_what_was_kept_is_found_and_made_up_for(mirror: Mirror, tmp_path: Path) -> None:
    chance, store, entry = random.Random(4), Store(tmp_path), entry_at(mirror)
    for _ in range(20):
        begun(store, entry, CONTENT)
        partial = store.partial(entry)
        partial.path.write_bytes(flip(partial.path.read_bytes(), chance))
        mirror.requests.clear()
        path = store.obtain(entry, copied)
        assert path.read_bytes() == CONTENT
        assert [request.range for request in mirror.requests] == ["bytes=200000-", None]
        path.unlink()


@pytest.mark.parametrize("threads", [False, True], ids=["processes", "threads"])
def test_of_16_that_start_at_once_one_downloads_for_all(
    threads: bool, mirror: Mirror, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    if threads:
        entry, line_up = entry_at(mirror), threading.Barrier(16)

        def fetch(_: int) -> bytes:
            line_up.wait()
            return Store(tmp_path).obtain(entry, copied).read_bytes()

        with ThreadPoolExecutor(16) as pool:
            assert all(content == CONTENT for content in pool.map(fetch, range(16)))
    else:
        with lane() as running:
            running.start(job_at(mirror, tmp_path, processes=16))
            assert running.wait() == [0] * 16
    assert [(request.range, request.sent) for request in mirror.requests] == [(None, len(CONTENT))]
    assert Store(tmp_path).judge(Store(tmp_path).path(entry_at(mirror))).state == "good"
    assert left_behind(Store(tmp_path)) == {".safetensors", ".pin.json"}
    tell(f"16 {'threads' if threads else 'processes'} at once: {len(mirror.requests)} download")


def test_when_the_process_that_downloads_is_killed_another_goes_on(mirror: Mirror, tmp_path: Path) -> None:
    store, entry = Store(tmp_path), entry_at(mirror)
    mirror.pause_at = 300_000
    with lane() as first, lane() as others:
        first.start(job_at(mirror, tmp_path))
        assert mirror.half_sent.wait(timeout=30)
        partial, patience = store.partial(entry), time.monotonic() + 5
        while partial.size <= 300_000 - WRITE_BUFFER and time.monotonic() < patience:
            time.sleep(0.001)
        others.start(job_at(mirror, tmp_path, processes=15))
        time.sleep(0.2)  # long enough for them to find the lock taken
        mirror.pause_at = None
        assert first.kill() == [-9]
        assert others.wait() == [0] * 15
    kept = 400_000 - mirror.requests[1].sent
    assert 300_000 - WRITE_BUFFER < kept <= 300_000
    assert [(request.range, request.sent) for request in mirror.requests] == [
        (None, 300_000),
        (f"bytes={kept}-", 400_000 - kept),
    ]
    assert store.path(entry).read_bytes() == CONTENT
    assert left_behind(store) == {".safetensors", ".pin.json"}
