"""A run's `log.jsonl`, a line of JSON for each step and for each evaluation, as it is read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpg_zoo.errors import StorageError
from fpg_zoo.files import open_regular

LOG_FILE = "log.jsonl"
_MAX_BYTES = 4 << 30


def read_lines(file: Path) -> list[bytes]:
    """The lines of a log as they are, damaged ones included; none where there is no file.

    Raises:
        StorageError: it is no file, or cannot be read.
    """
    if not os.path.lexists(file):
        return []
    try:
        with open_regular(file, max_bytes=_MAX_BYTES) as stream:
            return stream.readlines()
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror or error}); move it away to go on") from None


def row_of(line: bytes) -> dict[str, Any] | None:
    """What a line says: `step`, and metrics by name. None for a line that was not written whole."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def is_evaluation(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics are of an evaluation; those of a step have a loss."""
    return "loss" not in metrics


def evaluations_of(run: Path) -> list[dict[str, float]]:
    """The metrics of a run's evaluations, the first first.

    Args:
        run: its folder.

    Raises:
        StorageError: the log cannot be read.
    """
    rows = [row for line in read_lines(run / LOG_FILE) if (row := row_of(line)) is not None and is_evaluation(row)]
    return [{name: value for name, value in row.items() if name not in ("step", "memory_gb")} for row in rows]
