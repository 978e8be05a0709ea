"""`metrics.csv`, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fpg_zoo.files import atomic_write, storage_errors
from fpg_zoo.run_log import LOG_FILE, read_lines, row_of
from fpg_zoo.training.loggers.protocol import Logger

CSV_FILE = "metrics.csv"


class CsvLogger(Logger):
    """`metrics.csv`, a row for each line of `log.jsonl`, in UTF-8.

    A metric keeps its column, in the order of first appearance; where it has no value the cell is empty. The whole file
    is made from `log.jsonl`, which is written first, whenever there is a new column or a run goes on.

    Args:
        run: its folder.
    """

    remote = False
    takes_images = False
    takes_curves = False

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file = run / CSV_FILE
        self._columns: list[str] = []

    def open(self, step: int) -> None:
        self._rewrite()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if not metrics.keys() <= set(self._columns):
            self._rewrite()
            return
        with storage_errors(self._run), self._file.open("ab", buffering=0) as stream:
            stream.write(self._text([{"step": step, **metrics}]))

    def _rewrite(self) -> None:
        rows = [row for line in read_lines(self._run / LOG_FILE) if (row := row_of(line)) is not None]
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_write(self._file) as temporary:
            temporary.write_bytes(self._text([{name: name for name in self._columns}, *rows]))

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()
