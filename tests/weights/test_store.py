"""The cache under faults: each ends in one clear error or a good file, and never in a bad or half-written one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from serving import HOST, Fault, Mirror, entry_of, publish, serve

import fpg_zoo
from fpg_zoo.checkpoints.safetensors_files import WeightsFile
from fpg_zoo.cli import main
from fpg_zoo.errors import CheckpointError, DigestError, DownloadError, StorageError
from fpg_zoo.models.loading import fetch
from fpg_zoo.weights import download
from fpg_zoo.weights.download import Partial
from fpg_zoo.weights.environment import mirrored
from fpg_zoo.weights.manifest import Published
from fpg_zoo.weights.store import Store, pin_path

NAME = "retinanet_nano_fpg"
CONFIG = fpg_zoo.model_info(NAME).config


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serve() as running:
        monkeypatch.setenv("FPG_ZOO_MIRROR", running.url)
        yield running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = fpg_zoo.create_model(NAME)
    return publish(fpg_zoo.reference_state_dict(model), tmp_path_factory.mktemp("published"), NAME)


@pytest.fixture
def entry(mirror: Mirror, checkpoint: Path) -> Published:
    return entry_of(NAME, mirror.add(checkpoint))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "weights")


def left_behind(store: Store) -> list[str]:
    """All files but the empty ones that locks are."""
    files = store.folder.iterdir() if store.folder.is_dir() else ()
    return sorted(path.name for path in files if path.suffix != ".lock")


def test_a_fetched_file_tells_its_origin_and_is_pinned(entry: Published, store: Store, checkpoint: Path) -> None:
    path = fetch(entry, CONFIG, store)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    pin = json.loads(pin_path(path).read_text())
    whole = subprocess.run(["sha256sum", str(checkpoint), str(path)], capture_output=True, text=True, check=True)
    source, converted = (line.split()[0] for line in whole.stdout.splitlines())
    assert metadata["source_url"] == entry.url
    assert metadata["source_sha256"] == pin["source_sha256"] == source
    description = json.loads(metadata["description"])
    assert (description["schema_version"], description["architecture"]) == (1, NAME)
    assert pin["sha256"] == converted
    assert left_behind(store) == sorted([path.name, pin_path(path).name])


def test_the_second_time_nothing_is_asked_of_the_server(entry: Published, store: Store, mirror: Mirror) -> None:
    first = fetch(entry, CONFIG, store)
    assert fetch(entry, CONFIG, store) == first
    assert len(mirror.requests) == 1


def test_a_folder_serves_as_mirror(
    entry: Published, store: Store, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "copy" / entry.url[len(HOST) + 1 :]
    place.parent.mkdir(parents=True)
    place.write_bytes(checkpoint.read_bytes())
    monkeypatch.setenv("FPG_ZOO_MIRROR", (tmp_path / "copy").as_uri())
    assert fetch(entry, CONFIG, store).is_file()


def test_a_mirrors_own_path_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPG_ZOO_MIRROR", "https://example.org/openmmlab/")
    assert mirrored(f"{HOST}/a/b.pth") == "https://example.org/openmmlab/a/b.pth"
    assert mirrored("https://elsewhere.org/a/b.pth") == "https://elsewhere.org/a/b.pth"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause."""
    monkeypatch.setattr(download, "BACK_OFF_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("cut", r"closed after \d+ of \d+ bytes"),
        ("reset", r"Connection reset by peer after \d+ of \d+ bytes"),
        ("stall", r"timed out after \d+ of \d+ bytes"),
    ],
)
def test_what_came_before_a_failure_is_kept_and_told(
    fault: Fault, text: str, entry: Published, store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    mirror.fault = fault
    with pytest.raises(DownloadError, match=text + r".*; (\d+) bytes are kept") as caught:
        fetch(entry, CONFIG, store)
    kept = store.partial(entry)
    assert f"; {kept.size} bytes are kept" in str(caught.value)
    mirror.fault = "none"
    assert fetch(entry, CONFIG, store).is_file()
    assert mirror.requests[-1].range == f"bytes={kept.size}-" or kept.size == 0
    assert kept.version() is None


def test_a_login_page_in_between_does_not_cost_what_had_come(
    entry: Published, store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    for fault, text in (("cut", "closed after"), ("page", "sent a web page, of a login or an error perhaps")):
        mirror.fault = fault
        with pytest.raises(DownloadError, match=text):
            fetch(entry, CONFIG, store)
    kept = store.partial(entry).size
    assert kept > 1_000_000
    mirror.fault = "none"
    assert fetch(entry, CONFIG, store).is_file()
    assert mirror.requests[-1].range == f"bytes={kept}-"


@pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
def test_offline_without_the_file_asks_no_server(
    value: str, entry: Published, store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        fetch(entry, CONFIG, store)
    assert mirror.requests == []


def test_another_file_than_the_pinned_one_is_refused(entry: Published, store: Store) -> None:
    path = fetch(entry, CONFIG, store)
    path.unlink()
    record = pin_path(path)
    # No second file has these 8 digits, so the pin is moved instead: its first 8 are right, the others not.
    pin = store.pin(path)
    assert pin is not None
    record.write_text(str(dataclasses.replace(pin, source_sha256=pin.source_sha256[:8] + "0" * 56)))
    with pytest.raises(DigestError, match="pinned at the first download"):
        fetch(entry, CONFIG, store)
    assert left_behind(store) == [record.name]


@pytest.mark.parametrize("digest", ['""', "7", '"abc"', "null"])
def test_a_pin_without_a_digest_is_no_way_past_verification(digest: str, entry: Published, store: Store) -> None:
    path = fetch(entry, CONFIG, store)
    path.unlink()
    record = pin_path(path)
    record.write_text(re.sub(r'("source_sha256": )"[0-9a-f]{64}"', rf"\g<1>{digest}", record.read_text()))
    with pytest.raises(StorageError, match="unreadable"):
        fetch(entry, CONFIG, store)
    assert left_behind(store) == [record.name]


def test_a_file_of_another_model_is_not_kept(mirror: Mirror, store: Store, tmp_path: Path) -> None:
    other = fpg_zoo.create_model("faster_rcnn_nano_fpg")
    file = publish(fpg_zoo.reference_state_dict(other), tmp_path, "other")
    with pytest.raises(CheckpointError, match="does not fit the architecture"):
        fetch(entry_of(NAME, mirror.add(file)), CONFIG, store)
    assert left_behind(store) == []


def test_verify_tells_good_altered_and_foreign(
    entry: Published, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FPG_ZOO_CACHE", str(store.folder))
    path = fetch(entry, CONFIG, store)
    assert main(["verify"]) == 0
    assert capsys.readouterr().out.startswith("good ")
    (store.folder / "stranger.safetensors").write_bytes(path.read_bytes())
    assert main(["verify"]) == 1
    assert re.search(r"^foreign +.*stranger", capsys.readouterr().out, re.MULTILINE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 1
    assert re.match(r"altered +.*expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}", capsys.readouterr().out)


def test_a_cut_safetensors_file_is_refused(entry: Published, store: Store) -> None:
    path = fetch(entry, CONFIG, store)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        WeightsFile(path)


def test_changing_a_loaded_model_does_not_touch_the_cache(entry: Published, store: Store) -> None:
    path = fetch(entry, CONFIG, store)
    before = path.read_bytes()
    model = fpg_zoo.create_model(checkpoint=path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_a_cache_below_a_file_cannot_be_written(entry: Published, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write in .*file/weights.*FPG_ZOO_CACHE"):
        fetch(entry, CONFIG, Store(tmp_path / "file" / "weights"))


def test_a_read_only_file_system_cannot_be_written(entry: Published) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc, a file system where nobody may make folders")
    with pytest.raises(StorageError, match=r"cannot write in /proc/fpg_zoo.*FPG_ZOO_CACHE"):
        fetch(entry, CONFIG, Store(Path("/proc/fpg_zoo")))


CHILD = """
import sys, json
sys.path.insert(0, {tests!r})
from pathlib import Path
from serving import entry_of
import fpg_zoo
from fpg_zoo.models.loading import fetch
from fpg_zoo.weights.store import Store
{before}
try:
    fetch(entry_of({name!r}, {url!r}), fpg_zoo.model_info({name!r}).config, Store(Path({folder!r})))
except fpg_zoo.FPGZooError as error:
    print(type(error).__name__, error)
    sys.exit(2)
"""


def child(entry: Published, folder: Path, before: str = "") -> subprocess.Popen[str]:
    script = textwrap.dedent(CHILD).format(
        tests=str(ROOT / "tests" / "support"), name=NAME, url=entry.url, folder=str(folder), before=before
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_an_interrupted_download_leaves_what_it_can_go_on_from(entry: Published, store: Store, mirror: Mirror) -> None:
    mirror.fault = "stall"
    process = child(entry, store.folder)
    assert mirror.half_sent.wait(timeout=60)
    while not store.partial(entry).size:  # what was sent may still be under way
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    kept = store.partial(entry).size
    assert kept > 0
    assert not store.path(entry).exists()
    mirror.fault = "none"
    assert fetch(entry, CONFIG, store).is_file()
    assert mirror.requests[-1].range == f"bytes={kept}-"


@pytest.mark.slow
def test_a_quota_is_told_and_what_came_is_kept(entry: Published, store: Store) -> None:
    # A limit on the size of files acts as a quota does: the write that crosses it fails.
    process = child(
        entry, store.folder, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    )
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert re.match(r"StorageError cannot write in .*too large", output)
    assert store.partial(entry).size == 100_000
    assert fetch(entry, CONFIG, store).is_file()


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system; the argument is its size."""
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# The checkpoint and its converted form take about 7.5 MB each.
@pytest.mark.parametrize("size", ["1m", "12m"], ids=["for neither", "not for both"])
def test_a_disk_too_small_is_told_before_anything_is_fetched(
    size: str, entry: Published, mirror: Mirror, disk_of: Callable[[str], Path]
) -> None:
    store = Store(disk_of(size) / "weights")
    with pytest.raises(StorageError, match=r"MB are needed, \d+\.\d MB are free \(No space left on device\)"):
        fetch(entry, CONFIG, store)
    assert left_behind(store) == []
    assert sum(request.sent for request in mirror.requests) < 7_000_000


@pytest.mark.parametrize("size", ["4m", "12m"], ids=["while downloading", "while converting"])
def test_a_disk_that_fills_up_meanwhile_is_told_and_what_came_is_kept(
    size: str, entry: Published, mirror: Mirror, disk_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others fill the disk once the room has been checked: the check is answered as before they did.
    monkeypatch.setattr(download, "_check_room", lambda *_: None)
    store = Store(disk_of(size) / "weights")
    with pytest.raises(StorageError, match="No space left on device"):
        fetch(entry, CONFIG, store)
    assert not store.path(entry).exists()
    assert left_behind(store) == sorted([store.partial(entry).path.name, store.partial(entry).path.name + ".json"])
    roomy = Store(disk_of("40m"))
    for name in left_behind(store):
        (roomy.folder / name).write_bytes((store.folder / name).read_bytes())
    asked = len(mirror.requests)
    assert fetch(entry, CONFIG, roomy).is_file()
    # The whole file was there already where only the conversion failed.
    assert len(mirror.requests) - asked == (1 if size == "4m" else 0)


def test_a_disk_that_is_full_by_a_few_bytes_is_told(
    mirror: Mirror, disk_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last write is the one that falls short: 100 bytes more than the file system holds.
    monkeypatch.setattr(download, "_check_room", lambda *_: None)
    mirror.files["/big.bin"] = bytes(1536 * 1024 + 100)
    folder = disk_of("1540k")
    with pytest.raises(StorageError, match="No space left on device"):
        download.download(f"{mirror.url}/big.bin", Partial(folder / "part"), description="big")


def test_verify_goes_on_after_a_record_that_cannot_be_read(
    entry: Published, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FPG_ZOO_CACHE", str(store.folder))
    path = fetch(entry, CONFIG, store)
    first = store.folder / "a.safetensors"
    first.write_bytes(path.read_bytes())
    pin_path(first).write_text("{")
    assert main(["verify"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["altered", "good"]


def test_a_file_of_other_settings_beside_a_checkpoint_is_no_pin(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / checkpoint.name
    copy.write_bytes(checkpoint.read_bytes())
    copy.with_suffix(".json").write_text("{}")
    assert main(["verify", str(copy)]) == 0
    assert capsys.readouterr().out.startswith("good ")


def test_temporary_files_are_made_with_the_users_permissions(entry: Published, store: Store) -> None:
    path = fetch(entry, CONFIG, store)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
