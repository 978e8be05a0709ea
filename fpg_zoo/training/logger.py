"""What a run tells as it goes: its log, a bar on a terminal or lines off it, and the loggers that were chosen."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from fpg_zoo.errors import ConfigError
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm
from fpg_zoo.run_log import is_evaluation
from fpg_zoo.text import printable
from fpg_zoo.training.loggers.group import open_loggers
from fpg_zoo.training.loggers.json_lines import JsonLinesLogger
from fpg_zoo.training.loggers.progress import ProgressLines

_SHOWN = ("loss", "lr", "epoch", "memory_gb", "box_AP")  # beside the bar


class MetricLogger:
    """The log of one run; only the leading process writes, after it has called `open`.

    Args:
        run: the folder of `log.jsonl`.
        is_main: whether this process writes.
        done: steps that were taken before. What the log says of later ones was lost with its process, and goes; so do
            the metrics at this one, which are found again.
        steps: how many there will be.
        loggers: names of `fpg_zoo.training.loggers.names.LOGGERS`.
        log_every: steps from one line to the next where no terminal shows a bar, and from one to the next that remote
            loggers are told of. The last step and evaluations are always among them.
        config: the run's settings, for the loggers; None for none.

    Raises:
        ConfigError: `log_every` is less than 1.
    """

    def __init__(
        self,
        run: Path,
        is_main: bool,
        done: int,
        steps: int,
        *,
        loggers: Sequence[str] = (),
        log_every: int = 50,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if log_every < 1:
            raise ConfigError(f"log_every={log_every}: it takes at least 1")
        self._is_main = is_main
        self._run = run
        self._done = done
        self._steps = steps
        self._names = loggers
        self._log_every = log_every
        self._config = config

    def open(self) -> None:
        """Take up the log, or begin it, and open the loggers.

        Raises:
            ConfigError: a logger is not known, lacks its package, or cannot begin.
            StorageError: the log cannot be read or written, or a logger that stores in the run's folder cannot.
        """
        self._log = JsonLinesLogger(self._run)
        self._log.open(self._done)
        try:
            self._loggers = open_loggers(self._names, self._run, step=self._done, config=self._config)
        except BaseException:
            self._log.close()
            raise
        self._lines = None if on_terminal() else ProgressLines(self._steps)
        self._bar = tqdm(total=self._steps, initial=self._done, unit="step", disable=self._lines is not None)

    @property
    def takes_images(self) -> bool:
        """Whether a logger shows images; never in a process that does not write."""
        return self._is_main and self._loggers.takes_images

    @property
    def takes_curves(self) -> bool:
        """Whether a logger shows curves; never in a process that does not write."""
        return self._is_main and self._loggers.takes_curves

    def note(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write metrics of a step, which have a loss, or of an evaluation; those that are None are left out.

        Raises:
            StorageError: they cannot be written here.
        """
        if not self._is_main:
            return
        known = {name: value for name, value in metrics.items() if value is not None}
        memory = _memory_gb()
        self._log.log_metrics(step, {**known, "memory_gb": memory})
        shown = known if memory is None else {**known, "memory_gb": memory}
        due = is_evaluation(known) or step % self._log_every == 0 or step == self._steps
        self._loggers.log_metrics(step, shown, remote=due)
        if self._lines is not None:
            self._lines.add(step, shown)
            if due:
                _tell(self._lines.line(step, shown))
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix({name: f"{shown[name]:.3g}" for name in _SHOWN if name in shown}, refresh=False)

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images by name, each (H, W, 3) uint8 RGB, in the loggers that take them.

        Raises:
            StorageError: they cannot be written here.
        """
        if self._is_main:
            self._loggers.log_images(step, images)

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        """Show precision over recall by name, each (R,) float64 0..1 at R equal steps of recall from 0 to 1.

        Raises:
            StorageError: they cannot be written here.
        """
        if self._is_main:
            self._loggers.log_curves(step, curves)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            self._log.close()
            self._bar.close()
            self._loggers.close(failed=error is not None)


def _tell(line: str) -> None:
    """Print a line to standard error, if that is there; a reader of it that has gone ends no run."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(printable(line, max_length=None), file=sys.stderr, flush=True)


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
