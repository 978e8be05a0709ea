"""What a run tells as it goes: a line of JSON a step, a bar on a terminal, and TensorBoard's files if that is there."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from fpg_zoo.files import aside, explained, on_terminal
from fpg_zoo.training.state import LOG_FILE

_SHOWN = ("loss", "rate", "epoch", "memory_gb", "box_AP")  # beside the bar


class Journal:
    """The log of one run; only the leading process writes.

    Args:
        run: the folder of `log.jsonl`.
        leads: whether this process writes.
        done: steps that were taken before. What the log says of later ones was lost with its process, and goes; so do
            the figures at this one, which are found again.
        steps: how many there will be.
    """

    def __init__(self, run: Path, leads: bool, done: int, steps: int) -> None:
        self._leads = leads
        self._file = run / LOG_FILE
        if not leads:
            return
        self._forget_after(done)
        with explained(run):
            self._stream = self._file.open("a", encoding="utf-8")
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not on_terminal())
        self._board = _board(run, done)

    def _forget_after(self, done: int) -> None:
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        kept = [line for line in lines if _is_before(line, done)]
        with aside(self._file.parent, ".jsonl") as temporary, explained(self._file.parent):
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(self._file)

    def note(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Write figures of a step; those that are None are left out."""
        if not self._leads:
            return
        known = {name: value for name, value in figures.items() if value is not None}
        row = {"step": step, **known, "memory_gb": _memory_gb()}
        with explained(self._file.parent):
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix({name: f"{row[name]:.3g}" for name in _SHOWN if row.get(name) is not None}, refresh=False)
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leads:
            self._stream.close()
            self._bar.close()
            if self._board is not None:
                self._board.close()


def _is_before(line: str, done: int) -> bool:
    """Whether a line is of the steps up to `done`, and no evaluation after the last of them."""
    try:
        row = json.loads(line)
        return int(row["step"]) < done or (row["step"] == done and "loss" in row)
    except (ValueError, TypeError, KeyError):
        return False  # the line that was being written when the process was killed


def _board(run: Path, done: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)


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
