"""The run's own log: `log.jsonl`, a line a step."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpg_zoo.files import atomic_write, storage_errors
from fpg_zoo.run_log import LOG_FILE, is_evaluation, read_lines, row_of


class JsonLinesLogger:
    """`log.jsonl`. It is no choice: a run always has it, and other loggers and the report are made from it.

    Args:
        run: its folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file = run / LOG_FILE

    def open(self, step: int) -> None:
        """Begin the log, or take it up after `step` steps.

        What it says of later ones was lost with its process, and goes; so do the metrics at this one, which are found
        again.

        Raises:
            StorageError: it cannot be read or written.
        """
        self._forget_after(step)
        with storage_errors(self._run):
            # Without a buffer: what could not be written would be tried again when it is closed.
            self._stream = self._file.open("ab", buffering=0)

    def log_metrics(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write a line.

        Raises:
            StorageError: it cannot be written.
        """
        with storage_errors(self._run):
            line = memoryview(json.dumps({"step": step, **metrics}).encode() + b"\n")
            while line:
                line = line[self._stream.write(line) :]

    def close(self) -> None:
        """End it; every line is written already."""
        self._stream.close()

    def _forget_after(self, step: int) -> None:
        lines = read_lines(self._file)
        rows = [row_of(line) for line in lines]
        # The last is none where a process was killed while it wrote it.
        if damaged := sum(row is None for row in rows[:-1]):
            warnings.warn(f"{self._file}: {damaged} damaged lines are left out", stacklevel=2)
        kept = [line for line, row in zip(lines, rows, strict=True) if row is not None and _is_before(row, step)]
        with atomic_write(self._file) as temporary:
            temporary.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in kept))


def _is_before(row: Mapping[str, Any], step: int) -> bool:
    """Whether it is of the steps up to this one, and no evaluation after the last of them."""
    return bool(row["step"] < step or (row["step"] == step and not is_evaluation(row)))
