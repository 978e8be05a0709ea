"""What a training run keeps on the disk: one run at a time, damaged and missing records, full disks, many processes."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from command import run
from safetensors.torch import load_file, save_file
from small_disks import fill, small_disk
from test_training_command import torchrun
from training_runs import NAME, checkpoint, data, dataset_of, settings, small_model, start, steps_logged, weights_of

from fpg_zoo import locks
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import CheckpointError, FPGZooError, StorageError
from fpg_zoo.training.logger import MetricLogger
from fpg_zoo.training.run_checkpoints import best_metric, newest_state, read_progress
from fpg_zoo.training.trainer import TrainSettings, train

pytestmark = pytest.mark.usefixtures("one_thread")
STEP = 4  # after which the run of these tests is broken off, of 6


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averages, a best model and a state of 4 of its 6 steps; and beside it the whole run, by name."""
    folder = tmp_path_factory.mktemp("runs")
    resume(data, folder / "whole")
    losses = 0

    def stop(*_: Any, **__: Any) -> None:
        nonlocal losses
        losses += 1
        if losses > STEP:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fpg_zoo.training.trainer._StepAverages.check", stop)
        with pytest.raises(KeyboardInterrupt):
            resume(data, folder / "part", resume=False)
    state = newest_state(folder / "part")
    assert state is not None
    assert state.name == f"state-{STEP:08}"
    return folder / "part"


def resume(data: Path, folder: Path, chosen: TrainSettings | None = None, **options: Any) -> None:
    """Train on the data, from the newest state on; best/ is of the first evaluation."""
    options = {"resume": True, "save_every": 2, "evaluate": lambda model: {"box_AP": 0.5}} | options
    train(small_model(), dataset_of(data), folder, chosen or settings(), processes=Processes(), **options)


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    """Of every regular file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# Records that are damaged: one line with the file and a remedy, before any work, and nothing of them is touched

OPTIMIZER, AVERAGE, MODEL = "optimizer.safetensors", "average.safetensors", "model.safetensors"
REMEDY = "put back a copy of the state, or begin a new run in another folder"


def without(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(value: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(value) and None


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        kept = load_file(path)
        change(kept)
        save_file(kept, path)

    return damage


def record(**changes: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes)) and None


LAST = "head.classes.weight"
DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("progress.json", without, "No such file"),
    ("progress.json", cut, "no state to go on from"),
    ("progress.json", emptied, "no state to go on from"),
    ("progress.json", fifo, "not a regular file"),
    ("progress.json", a_folder, "no state to go on from"),
    ("progress.json", text("[" * 100_000), "no state to go on from"),
    ("progress.json", text("[1, 2]"), "no state to go on from"),
    ("progress.json", text('"step settings"'), "no state to go on from"),
    ("progress.json", text('{"step": 4, "settings": [[1]]}'), "not as it was written"),
    ("progress.json", text("\x1b[31m\0"), "no state to go on from"),
    ("progress.json", record(step=2), "its step is not that of the folder's name"),
    ("progress.json", record(step=4.0), "its step is not that of the folder's name"),
    ("progress.json", record(step=float("nan")), "its step is not that of the folder's name"),
    ("progress.json", record(step=True), "its step is not that of the folder's name"),
    ("progress.json", record(more=1), "not as it was written"),
    (MODEL, without, "no such file"),
    (MODEL, cut, "not a whole safetensors file"),
    (MODEL, tensors(lambda kept: kept.pop(LAST)), "of another model"),
    (MODEL, tensors(lambda kept: kept.update({LAST: kept[LAST].half()})), "of another model"),
    (OPTIMIZER, without, "no such file"),
    (OPTIMIZER, cut, "not a whole safetensors file"),
    (OPTIMIZER, emptied, "not a whole safetensors file"),
    (OPTIMIZER, tensors(lambda kept: kept.pop(f"exp_avg/{LAST}")), f"'exp_avg/{LAST}' is missing"),
    (OPTIMIZER, tensors(lambda kept: kept.pop(f"step/{LAST}")), f"'step/{LAST}' is missing"),
    (OPTIMIZER, tensors(lambda kept: kept.clear()), "holds nothing"),
    (OPTIMIZER, tensors(lambda kept: kept.update({"exp_avg/x": torch.ones(2)})), "'exp_avg/x' is of no parameter"),
    (OPTIMIZER, tensors(lambda kept: kept.update({f"exp_avg/{LAST}": torch.ones(2)})), "is of no parameter"),
    (AVERAGE, without, "no such file"),
    (AVERAGE, cut, "not a whole safetensors file"),
    (AVERAGE, tensors(lambda kept: kept.pop(LAST)), "not the weights of this model"),
    (AVERAGE, tensors(lambda kept: kept.update({LAST: torch.ones(3)})), "not the weights of this model"),
]


@pytest.mark.parametrize(("name", "damage", "cause"), DAMAGES)
@pytest.mark.slow
def test_a_damaged_state_is_refused_in_one_line(
    name: str, damage: Callable[[Path], None], cause: str, copied: Path, data: Path
) -> None:
    state = copied / f"state-{STEP:08}"
    damage(state / name)
    before = content(copied)
    with pytest.raises(CheckpointError) as caught:
        resume(data, copied)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert message.startswith(str(state))
    assert name in message or cause == "of another model"
    assert cause in message
    assert message.endswith(REMEDY) or cause == "of another model"
    assert content(copied) == before


@pytest.mark.slow
def test_a_run_that_began_without_averages_has_no_use_for_a_file_of_them(data: Path, tmp_path: Path) -> None:
    chosen = settings(average=False)
    resume(data, tmp_path / "run", chosen)
    assert weights_of(tmp_path / "run").keys() == {MODEL, OPTIMIZER}
    state = newest_state(tmp_path / "run")
    assert state is not None
    (state / AVERAGE).write_bytes(b"no tensors")
    resume(data, tmp_path / "run", chosen)


@pytest.mark.slow
def test_a_record_has_the_names_of_earlier_versions(data: Path, tmp_path: Path) -> None:
    resume(data, tmp_path / "run", settings())
    state = newest_state(tmp_path / "run")
    assert state is not None
    recipe = read_progress(state).settings["recipe"]
    assert recipe["schedule"] == {
        "epochs": 2,
        "optimizer": "adamw",
        "decay": "cosine",
        "steps_down": [],
        "learning_rate": 1e-3,
        "reference_batch": 8,
        "warmup_iterations": 200,
        "warmup_factor": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "greatest_gradient": 5.0,
    }
    assert recipe["sampling"] == {"candidates_per_level": 500, "regions": 64}


def figures(value: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(value) and None


@pytest.mark.parametrize(
    "damage",
    [
        without,
        emptied,
        fifo,
        a_folder,
        *map(
            figures, ("{}", "[]", "5", '{"box_AP": NaN}', '{"box_AP": 1e999}', '{"box_AP": "0.5"}', '{"box_AP": true}')
        ),
        figures('{"box_AP": null}'),
        figures("[" * 100_000),
    ],
)
@pytest.mark.slow
def test_a_damaged_record_of_the_best_model_is_known_before_any_work(
    damage: Callable[[Path], None], copied: Path, data: Path, begun: Path
) -> None:
    damage(copied / "best" / "figures.json")
    before = content(copied)
    with pytest.raises(
        CheckpointError, match=rf"figures\.json: unreadable \(.+\); move {copied / 'best'} away to go on$"
    ):
        resume(data, copied)
    assert content(copied) == before
    # The remedy works.
    (copied / "best").rename(copied / "aside")
    resume(data, copied)
    assert weights_of(copied) == weights_of(begun.parent / "whole")
    assert best_metric(copied) == 0.5


# The log


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_damaged_lines_of_the_log_are_left_out_and_counted(copied: Path, data: Path) -> None:
    log = copied / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5  # four steps, and an evaluation after the third
    damaged = [
        *[b"\xff\xfe\x00junk\n", b"\n", b"5\n", b"null\n", b'"step"\n', b"[[[]]]\n", b"[" * 100_000 + b"\n"],
        *[b'{"step": NaN}\n', b'{"step": 1e999}\n', b'{"step": "1"}\n', b'{"step": true}\n', b'{"loss": 1}\n'],
    ]
    log.write_bytes(b"".join([*damaged[:6], *lines[:3], *damaged[6:], *lines[3:], b'{"step": 5, "lo']))
    with pytest.warns(UserWarning, match=rf"^{log}: {len(damaged)} damaged lines are left out$"):
        resume(data, copied)
    assert [(row["step"], "loss" in row) for row in rows_of(copied)] == [
        *[(step, True) for step in (1, 2, 3)],
        *[(3, False), (4, True), (5, True), (6, True), (6, False)],
    ]


@pytest.mark.slow
def test_a_line_that_was_torn_by_a_kill_is_no_damage(
    copied: Path, data: Path, recwarn: pytest.WarningsRecorder
) -> None:
    log = copied / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    resume(data, copied)
    assert [str(one.message) for one in recwarn if "log.jsonl" in str(one.message)] == []
    assert [row["step"] for row in rows_of(copied)] == [1, 2, 3, 3, 5, 6, 6]


@pytest.mark.parametrize("damage", [fifo, a_folder], ids=["FIFO", "folder"])
@pytest.mark.slow
def test_a_log_that_is_no_file_is_refused(damage: Callable[[Path], None], copied: Path, data: Path) -> None:
    damage(copied / "log.jsonl")
    before = content(copied)
    with pytest.raises(StorageError, match=r"log\.jsonl: cannot be read \(.+\); move it away to go on$"):
        resume(data, copied)
    assert content(copied) == before


@pytest.mark.slow
def test_200_flips_in_the_records_are_refused_in_one_line_or_change_nothing(
    copied: Path, data: Path, begun: Path, tmp_path: Path
) -> None:
    """Of text; the tensors' own bits are as good as any others."""
    chance, refused, unchanged = random.Random(0), 0, 0
    progress = copied / f"state-{STEP:08}" / "progress.json"
    good = progress.read_bytes()
    expected = read_progress(progress.parent)
    for _ in range(200):
        altered = bytearray(good)
        altered[chance.randrange(len(good))] ^= chance.randrange(1, 256)
        progress.write_bytes(altered)
        try:
            found: object = read_progress(progress.parent)
        except CheckpointError as error:
            found = str(error)
        if found == expected:
            unchanged += 1
        elif isinstance(found, str):
            refused += "\n" not in found
        else:
            with pytest.raises(FPGZooError, match="begun with other settings"):
                resume(data, copied)
            refused += 1
    print(f"{refused} of 200 flips refused, {unchanged} without a meaning")
    assert refused + unchanged == 200
    assert unchanged < 20


# One run at a time


def lines_of(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("fpg-zoo:")]


LONG = ("--recipe", "scratch", "--epochs", "500", "--batch-size", "2", "--save-every", "1")


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    first = start(data, tmp_path / "run", checkpoint, *LONG, "--workers", "2")
    try:
        while steps_logged(tmp_path / "run") < 2:
            assert first.poll() is None
            time.sleep(0.01)
        (tmp_path / "link").symlink_to(tmp_path / "run")
        for folder, more in (
            (tmp_path / "run", ["--resume"]),
            (tmp_path / "run", []),
            (tmp_path / "link", ["--resume"]),
        ):
            options = [*LONG, "--workers", 0, "--device", "cpu", "--checkpoint", checkpoint, *more]
            second = run("train", "--model", NAME, "--data", data, "--output", folder, *options)
            assert second.code == 2
            assert lines_of(second.err) == [
                f"fpg-zoo: the run {folder}: another process writes it and holds {folder / '.lock'}; wait until that "
                "has ended, or choose another place"
            ]
        steps = steps_logged(tmp_path / "run")
    finally:
        first.kill()
    # Its workers may live a moment longer, and have what they inherited.
    again = start(data, tmp_path / "run", checkpoint, *LONG, "--workers", "0", "--resume")
    while steps_logged(tmp_path / "run") < steps + 2:
        assert again.poll() is None, again.communicate()
        time.sleep(0.01)
    first.communicate()
    again.kill()
    again.communicate()


@pytest.mark.slow
def test_nothing_is_left_of_a_lock(data: Path, tmp_path: Path) -> None:
    resume(data, tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.slow
def test_without_locks_a_run_goes_on_with_a_warning(
    number: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "_taken", refuse)
    with pytest.warns(
        UserWarning, match=rf"{tmp_path / 'run'}: its file system has no locks \(.+\); see to it that no"
    ):
        resume(data, tmp_path / "run")
    assert weights_of(tmp_path / "run").keys() == {MODEL, OPTIMIZER, AVERAGE}
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("thing", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_file_is_refused(thing: str, data: Path, tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    if thing == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    elif thing == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(StorageError, match=rf"cannot write in {tmp_path / 'run'}: "):
        resume(data, tmp_path / "run")
    assert not (tmp_path / "elsewhere").exists()
    assert [path.name for path in lock.parent.iterdir()] in (["."], [".lock"])


# Many processes: all of them end, each with a line that says why


def torchrun_train(data: Path, checkpoint: Path, folder: Path, *more: Any) -> tuple[int, list[str]]:
    arguments = ["-m", "fpg_zoo.cli", "train", "--model", NAME, "--checkpoint", checkpoint, "--data", data]
    arguments += ["--recipe", "scratch", "--epochs", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    began = time.monotonic()
    done = torchrun(2, *map(str, [*arguments, "--output", folder, *more]))
    assert time.monotonic() - began < 60
    return done.returncode, lines_of(done.stderr)


@pytest.mark.slow
def test_all_processes_end_on_what_the_first_finds(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert torchrun_train(data, checkpoint, folder, "--ema")[0] == 0
    state = newest_state(folder)
    assert state is not None
    good = content(folder)
    with locks.file_lock(folder / ".lock", wait=False):
        code, lines = torchrun_train(data, checkpoint, folder, "--ema", "--resume")
        assert code != 0
        assert {line.split(";")[0] for line in lines} == {
            f"fpg-zoo: the run {folder}: another process writes it and holds {folder / '.lock'}"
        }
    for damage, cause in (
        (lambda: without(state / AVERAGE), f"{state / AVERAGE}: no such file; {REMEDY}"),
        (
            lambda: fifo(folder / "log.jsonl"),
            f"{folder / 'log.jsonl'}: cannot be read (not a regular file); move it away",
        ),
    ):
        damage()
        code, lines = torchrun_train(data, checkpoint, folder, "--ema", "--resume")
        assert code != 0
        assert lines
        assert all(line.startswith(f"fpg-zoo: {cause}") for line in lines), lines
        for name, kept in good.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(kept)


# Full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 96) as folder:
        yield folder


@pytest.mark.slow
def test_a_full_disk_while_a_state_is_saved_keeps_the_one_before(
    data: Path, begun: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(begun, disk / "run"))
    before = weights_of(folder)
    size = sum(map(len, before.values()))
    # Each is written in turn: model, optimizer, average, and the record.
    for leave in (size // 4, size // 2, size - 8192, size + 4096):
        filler = fill(disk, leave)
        with pytest.raises(StorageError, match=rf"^cannot write in {folder}: .*; make room") as caught:
            resume(data, folder, save_every=1)
        assert "\n" not in str(caught.value)
        assert weights_of(folder) == before
        assert {path.name for path in folder.iterdir()} == {"best", "log.jsonl", f"state-{STEP:08}"}
        filler.unlink()
    resume(data, folder)
    assert weights_of(folder) == weights_of(begun.parent / "whole")


@pytest.mark.slow
def test_a_full_disk_while_the_log_is_written(data: Path, begun: Path, disk: Path) -> None:
    folder = Path(shutil.copytree(begun, disk / "run"))
    for leave in (0, 4096):  # at the beginning; when the log's page is full
        log = folder / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        if leave:
            row = json.dumps({"step": 1, "loss": 1.0, "note": "x" * (4000 - log.stat().st_size)}) + "\n"
            log.write_bytes(row.encode() + b"".join(lines))
            os.link(log, disk / "kept")  # so that the page of the one that is replaced stays taken
        before = weights_of(folder)
        filler = fill(disk, leave)
        with pytest.raises(StorageError, match=rf"^cannot write in {folder}: No space left on device; make room"):
            resume(data, folder)
        assert weights_of(folder) == before
        filler.unlink()
        log.write_bytes(b"".join(lines))
    resume(data, folder)
    assert weights_of(folder) == weights_of(begun.parent / "whole")


def test_a_full_disk_ends_the_command_in_one_line(data: Path, checkpoint: Path, disk: Path) -> None:
    fill(disk, 1 << 20)
    ended = run(
        *[
            "train",
            "--model",
            NAME,
            "--checkpoint",
            checkpoint,
            "--data",
            data,
            "--output",
            disk / "run",
            "--workers",
            0,
        ],
        *["--recipe", "scratch", "--epochs", 1, "--batch-size", 2, "--device", "cpu"],
    )
    assert (ended.code, ended.out) == (2, "")
    (line,) = lines_of(ended.err)
    assert line.startswith(f"fpg-zoo: cannot write in {disk / 'run'}")
    assert "make room" in line


# TensorBoard, in its place a module that behaves as its writer does: a thread that ends with its error


class Writer:
    """As tensorboard's: its thread raises, and the next call raises the same."""

    error: Exception = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __init__(self, folder: str, purge_step: int) -> None:
        self.calls = 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.calls += 1
        if self.calls == 5:
            thread = _thread_of_tensorboard(self.error)
            thread.start()
            thread.join()
            raise self.error

    def close(self) -> None:
        if self.calls >= 5:
            raise self.error


def _thread_of_tensorboard(error: Exception) -> Any:
    def run(self: Any) -> None:
        raise error

    return type("AsyncThread", (threading.Thread,), {"run": run, "__module__": "tensorboard.summary.writer"})()


@pytest.mark.parametrize("error", [Writer.error, ValueError("RESOURCE_EXHAUSTED")], ids=["its own", "TensorFlow's"])
def test_what_tensorboard_cannot_write_ends_the_run_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=name))
    monkeypatch.setattr(Writer, "error", error)
    hook = threading.excepthook
    journal = MetricLogger(tmp_path, True, 0, 3, loggers=("tensorboard",))
    journal.open()

    def note() -> None:
        with journal:
            for step in range(1, 4):
                journal.note(step, {"loss": 1.0})

    with pytest.raises(StorageError, match=rf"^cannot write in {tmp_path}: .*; make room"):
        note()
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]
