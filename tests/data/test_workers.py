"""Worker processes: what comes of them, how they fail, and that they need neither shared memory nor many files."""

from __future__ import annotations

import errno
import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import annotation, picture, rectangle, write_folder
from command import environment

from fpg_zoo.data import workers
from fpg_zoo.data.workers import parallel_map
from fpg_zoo.errors import FPGZooError, ImageError, WorkerError


def tensors_of(number: int) -> dict[str, Any]:
    """Of every kind that batches have; the mask's pixels are no multiple of eight."""
    generator = torch.Generator().manual_seed(number)
    return {
        "images": torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=generator),
        "targets": [
            {
                "boxes": torch.rand(number, 4, generator=generator),
                "labels": torch.arange(number),
                "masks": torch.rand(number, 5, 7, generator=generator) > 0.5,
            }
        ],
        "ids": [number, str(number)],
        "strided": torch.arange(12).reshape(3, 4).T,
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_results_are_those_of_one_process_in_the_order_of_the_items(count: int) -> None:
    found = list(parallel_map(tensors_of, range(7), count))
    assert len(found) == 7
    for number, result in enumerate(found):  # the first has targets of no objects
        assert same(result, tensors_of(number))
        result["images"].add_(1)  # its own memory, and writable
    assert list(parallel_map(tensors_of, [], count)) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Any:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = parallel_map(str, items(), 3)
    assert [next(results) for _ in range(4)] == ["0", "1", "2", "3"]
    assert len(taken) <= 4 + 3
    results.close()


def killed_by(number: signal.Signals) -> Callable[[int], int]:
    def function(item: int) -> int:
        if item == 2:
            faulthandler.disable()  # pytest's, which would tell of it at length
            os.kill(os.getpid(), number)
        return item

    return function


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (killed_by(signal.SIGKILL), r"has died \(it was killed by SIGKILL, as the system does when memory runs out\)"),
        (killed_by(signal.SIGBUS), r"has died \(it was killed by SIGBUS, .* shared memory is full .*--shm-size"),
        (killed_by(signal.SIGSEGV), r"has died \(it was killed by SIGSEGV\): use smaller batches"),
        (lambda item: os._exit(3) if item == 2 else item, r"has died \(it ended with code 3\): use smaller batches"),
    ],
    ids=["SIGKILL", "SIGBUS", "SIGSEGV", "exit"],
)
def test_a_worker_that_dies_is_told_in_one_line(function: Callable[[int], int], message: str) -> None:
    results = parallel_map(function, range(9), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(WorkerError, match=f"^a process that reads images {message}.*--workers 0$"):
        next(results)


def test_a_worker_killed_while_it_waits_is_told_when_its_turn_comes() -> None:
    results = parallel_map(lambda item: os.getpid(), range(9), 2)
    first = next(results)
    time.sleep(0.2)  # it has answered its second item, which nobody has asked for
    os.kill(first, signal.SIGKILL)
    assert next(results) != first
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        list(results)


def test_a_worker_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(WorkerError, match=r"has not answered for 0\.3 seconds: .*--workers 0$"):
        list(parallel_map(time.sleep, [0, 60], 2))


def raising(error: Exception) -> Callable[[int], int]:
    def function(item: int) -> int:
        if item == 1:
            raise error
        return item

    return function


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        ImageError("1.png: a line\nof two"),
        OSError(errno.EMFILE, "Too many open files", "1.png"),
        PermissionError(errno.EACCES, "Permission denied", "2.png"),
    ],
    ids=["ours", "files", "permission"],
)
def test_what_is_raised_in_a_worker_is_raised_here(error: Exception, count: int) -> None:
    results = parallel_map(raising(error), range(4), count)
    assert next(results) == 0
    with pytest.raises(type(error)) as caught:
        next(results)
    assert (type(caught.value), str(caught.value)) == (type(error), str(error))


def test_other_errors_are_told_with_the_place_where_they_arose() -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)in a process that reads images:.*in function.*KeyError: 'a key'"
    ) as it:
        list(parallel_map(raising(KeyError("a key")), range(4), 1))
    assert not isinstance(it.value, FPGZooError)
    with pytest.raises(WorkerError, match=r"not enough memory for a batch: use smaller batches, or fewer --workers$"):
        list(parallel_map(raising(MemoryError()), range(4), 1))
    with pytest.raises(RuntimeError, match=r"(?s)in a process that reads images:.*pickle"):
        list(parallel_map(lambda item: lambda: item, range(4), 1))


def ended(pid: int) -> bool:
    """Whether a process has ended, if perhaps nobody has asked for its code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def await_end(pids: list[int]) -> None:
    patience = time.monotonic() + 20
    while not all(map(ended, pids)):
        assert time.monotonic() < patience, f"{pids} go on"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
def test_workers_end_with_the_generator_whatever_they_are_at() -> None:
    results = parallel_map(lambda item: time.sleep(item % 3 * 60) or os.getpid(), [0, 3, 6, 1, 9], 3)
    pids = [next(results) for _ in range(3)]  # the first is asleep, the third has not been given anything to do since
    assert len(set(pids)) == 3
    results.close()
    await_end(pids)


ORPHANS = """
import os, sys, time
from fpg_zoo.data.workers import parallel_map
results = parallel_map(lambda item: (os.getpid(), bytes(1 << 20)), range(100), 3)
print(*(next(results)[0] for _ in range(3)), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_no_worker_outlives_its_parent(number: signal.Signals) -> None:
    command = [sys.executable, "-c", ORPHANS]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, env=environment()) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(set(pids)) == 3
        parent.send_signal(number)
        parent.wait(timeout=30)
    await_end(pids)


# As little as a container gives

SIDE = 640
LOADERS = """
import itertools, resource, sys
from pathlib import Path
import multiprocessing
import torch
from fpg_zoo.config import PreprocessConfig
from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.loader import evaluation_loader, train_loader
from fpg_zoo.errors import WorkerError

if __name__ == "__main__":
    folder, method, files = sys.argv[1:]
    if method != "default":
        multiprocessing.set_start_method(method)
    if int(files):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
    dataset = CocoDataset.from_folder(Path(folder), "train", masks=True)
    preprocessing, augment = PreprocessConfig(), AugmentConfig(longest_side=640, crop=640)
    try:
        for workers in (0, 2):
            train = train_loader(dataset, augment, preprocessing, batch_size=8, seed=0, workers=workers)
            for batch in itertools.islice(train, 6):
                masks = [int(target["masks"].sum()) for target in batch.targets]
                print(tuple(batch.images.shape), batch.images.sum().item(), masks)
            for batch in evaluation_loader(dataset, preprocessing, batch_size=8, workers=workers):
                print(tuple(batch.images.shape), batch.images.sum().item())
            print("--")
    except WorkerError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of 640x640, with two objects each, and the script."""
    images = [picture(number, SIDE, SIDE) for number in range(8)]
    annotations = [
        annotation(2 * number + k, number, [50, 60 + 200 * k, 300, 150], segmentation=rectangle(50, 60, 350, 410))
        for number in range(8)
        for k in range(2)
    ]
    folder = write_folder(tmp_path_factory.mktemp("set"), images, annotations)
    (folder / "loaders.py").write_text(LOADERS)
    return folder


def loaders(folder: Path, *before: str, method: str = "default", files: int = 0) -> str:
    script = [sys.executable, str(folder / "loaders.py"), str(folder), method, str(files)]
    done = subprocess.run([*before, *script], capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def assert_whole(out: str) -> None:
    """Both loaders came to their end, with the same batches from workers as without."""
    alone, by_workers, rest = out.split("--\n")
    assert alone.splitlines() == by_workers.splitlines()
    assert [line.split(")")[0] for line in alone.splitlines()] == [f"(8, 3, {SIDE}, {SIDE}"] * 7
    assert rest == ""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64m", "4k"])  # docker's, and a page
def test_batches_of_8_images_of_640_need_no_shared_memory(size: str, folder: Path) -> None:
    mounted = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*mounted, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs the right to mount a small tmpfs")
    assert_whole(loaders(folder, *mounted))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_make_the_same_batches(method: str, folder: Path) -> None:
    assert_whole(loaders(folder, method=method))


@pytest.mark.slow
def test_few_open_files_suffice_or_are_told(folder: Path) -> None:
    assert_whole(loaders(folder, files=64))
    told = loaders(folder, files=5).splitlines()[-1]
    assert told.startswith("cannot start a process that reads images (")
    assert told.endswith("or raise the limit (ulimit -n for open files, ulimit -u for processes)")


def test_bool_tensors_take_a_bit_a_pixel() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((10, 100, 100)) > 0.5)
    assert len(workers._pickled(masks)) < 10 * 100 * 100 / 8 + 500
