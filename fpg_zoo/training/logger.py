"""What a run tells as it goes: a line of JSON a step, a bar on a terminal, and TensorBoard's files if that is there."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from fpg_zoo.errors import StorageError
from fpg_zoo.files import atomic_write, on_terminal, open_regular, storage_errors
from fpg_zoo.training.run_checkpoints import LOG_FILE

_SHOWN = ("loss", "lr", "epoch", "memory_gb", "box_AP")  # beside the bar
_MAX_LOG_BYTES = 4 << 30


class MetricLogger:
    """The log of one run; only the leading process writes, after it has called `open`.

    Args:
        run: the folder of `log.jsonl`.
        is_main: whether this process writes.
        done: steps that were taken before. What the log says of later ones was lost with its process, and goes; so do
            the metrics at this one, which are found again.
        steps: how many there will be.
    """

    def __init__(self, run: Path, is_main: bool, done: int, steps: int) -> None:
        self._is_main = is_main
        self._run = run
        self._file = run / LOG_FILE
        self._done = done
        self._steps = steps

    def open(self) -> None:
        """Take up the log, or begin it.

        Raises:
            StorageError: it cannot be read or written.
        """
        self._forget_after(self._done)
        with storage_errors(self._run):
            # Without a buffer: what could not be written would be tried again when it is closed.
            self._stream = self._file.open("ab", buffering=0)
            self._board = _Board(self._run, self._done)
        self._bar = tqdm(total=self._steps, initial=self._done, unit="step", disable=not on_terminal())

    def _forget_after(self, done: int) -> None:
        lines = _lines_of(self._file)
        rows = [_row_of(line) for line in lines]
        # The last is none where a process was killed while it wrote it.
        if damaged := sum(row is None for row in rows[:-1]):
            warnings.warn(f"{self._file}: {damaged} damaged lines are left out", stacklevel=2)
        kept = [line for line, row in zip(lines, rows, strict=True) if row is not None and _is_before(row, done)]
        with atomic_write(self._file) as temporary:
            temporary.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in kept))

    def note(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write metrics of a step; those that are None are left out.

        Raises:
            StorageError: they cannot be written.
        """
        if not self._is_main:
            return
        known = {name: value for name, value in metrics.items() if value is not None}
        row = {"step": step, **known, "memory_gb": _memory_gb()}
        with storage_errors(self._run):
            line = memoryview(json.dumps(row).encode() + b"\n")
            while line:
                line = line[self._stream.write(line) :]
            self._board.note(step, known)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix({name: f"{row[name]:.3g}" for name in _SHOWN if row.get(name) is not None}, refresh=False)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            self._stream.close()
            self._bar.close()
            # What it still has to write fails for the reason that is being told.
            with contextlib.suppress(OSError) if error is not None else storage_errors(self._run):
                self._board.close()


class _Board:
    """TensorBoard's files, where that is installed; what it cannot write is an OSError."""

    def __init__(self, run: Path, done: int) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        # Its thread gives its error to whoever calls next, and raises it also to be printed.
        self._hook = threading.excepthook
        threading.excepthook = self._thread_ended
        try:
            with self._errors():
                self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)
        except OSError:
            threading.excepthook = self._hook
            raise

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is not None:
            with self._errors():
                for name, value in metrics.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            try:
                with self._errors():
                    self._writer.close()
            finally:
                threading.excepthook = self._hook

    def _thread_ended(self, ending: threading.ExceptHookArgs) -> None:
        if not type(ending.thread).__module__.startswith("tensorboard"):
            self._hook(ending)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # TensorFlow, where that is installed, has classes of its own
            raise OSError(errno.EIO, f"TensorBoard: {error}") from error


def evaluations_of(run: Path) -> list[dict[str, float]]:
    """The metrics of a run's evaluations so far, from its log, the first first; one at a step that was taken again.

    Raises:
        StorageError: the log cannot be read.
    """
    rows = [row for line in _lines_of(run / LOG_FILE) if (row := _row_of(line)) is not None and "loss" not in row]
    by_step = {row.pop("step"): row for row in rows}
    return [{name: value for name, value in row.items() if name != "memory_gb"} for row in by_step.values()]


def _lines_of(file: Path) -> list[bytes]:
    if not os.path.lexists(file):
        return []
    try:
        with open_regular(file, max_bytes=_MAX_LOG_BYTES) as stream:
            return stream.readlines()
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror or error}); move it away to go on") from None


def _row_of(line: bytes) -> dict[str, Any] | None:
    """What a line says; None for one that no journal wrote whole."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _is_before(row: Mapping[str, Any], done: int) -> bool:
    """Whether it is of the steps up to `done`, and no evaluation after the last of them."""
    return bool(row["step"] < done or (row["step"] == done and "loss" in row))


def _memory_gb() -> float | None:
    """Peak memory: of the GPU if there is one, else of this process; None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
