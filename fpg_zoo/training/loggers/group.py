"""The loggers of a run, opened together; one that is remote may fail without ending the run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.errors import ConfigError, FPGZooError
from fpg_zoo.text import printable
from fpg_zoo.training.loggers.csv_logger import CsvLogger
from fpg_zoo.training.loggers.mlflow_logger import MlflowLogger
from fpg_zoo.training.loggers.names import check_loggers
from fpg_zoo.training.loggers.protocol import Logger
from fpg_zoo.training.loggers.tensorboard_logger import TensorBoardLogger
from fpg_zoo.training.loggers.trackio_logger import TrackioLogger
from fpg_zoo.training.loggers.wandb_logger import WandbLogger

_CLASSES: dict[str, Callable[[Path], Logger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
    "trackio": TrackioLogger,
}


def open_loggers(names: Sequence[str], run: Path, *, step: int, config: Mapping[str, Any] | None = None) -> LoggerGroup:
    """Open loggers by name.

    Args:
        names: of `fpg_zoo.training.loggers.names.LOGGERS`, each at most once.
        run: the run's folder, with its `log.jsonl`.
        step: steps that were taken before. Loggers go on with the run that they began, as far as it was then.
        config: the run's settings, to be shown; None for none.

    Raises:
        UnknownNameError: no such logger.
        ConfigError: what one needs is not installed, or a remote one cannot begin a new run.
        StorageError: one that stores here cannot.
    """
    check_loggers(names)
    return LoggerGroup({name: _CLASSES[name](run) for name in names}, step=step, config=config)


class LoggerGroup:
    """Several loggers as one.

    A remote one that fails is warned of once and left out from then on.

    Args:
        loggers: by name, to be opened here.
        step, config: as of `open_loggers`.

    Raises:
        ConfigError: a remote one cannot begin a new run.
        StorageError: one that stores here cannot.
    """

    def __init__(self, loggers: Mapping[str, Logger], *, step: int, config: Mapping[str, Any] | None = None) -> None:
        self._loggers: dict[str, Logger] = {}
        try:
            for name, logger in loggers.items():
                self._open(name, logger, step)
            if config is not None:
                self._each(lambda logger: logger.log_config(config))
        except BaseException:
            self.close(failed=True)
            raise

    @property
    def takes_images(self) -> bool:
        """Whether any shows images."""
        return any(logger.takes_images for logger in self._loggers.values())

    @property
    def takes_curves(self) -> bool:
        """Whether any shows curves."""
        return any(logger.takes_curves for logger in self._loggers.values())

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, remote: bool) -> None:
        """Show metrics, in the remote loggers only if `remote`: each call of those takes time.

        Raises:
            StorageError: one that stores here cannot.
        """
        self._each(lambda logger: logger.log_metrics(step, metrics) if remote or not logger.remote else None)

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images, as of `Logger.log_images`.

        Raises:
            StorageError: one that stores here cannot.
        """
        self._each(lambda logger: logger.log_images(step, images))

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        """Show curves, as of `Logger.log_curves`.

        Raises:
            StorageError: one that stores here cannot.
        """
        self._each(lambda logger: logger.log_curves(step, curves))

    def close(self, failed: bool) -> None:
        """Close all of them, whatever happens to one.

        Raises:
            StorageError: one that stores here cannot, and no error is being told already (`failed`).
        """
        with contextlib.ExitStack() as stack:
            for name, logger in self._loggers.items():
                stack.callback(self._close, name, logger, failed)
            self._loggers = {}

    def _open(self, name: str, logger: Logger, step: int) -> None:
        try:
            logger.open(step)
        except Exception as error:
            if not logger.remote or isinstance(error, FPGZooError):
                raise
            if step == 0:  # nothing is lost yet
                raise ConfigError(
                    f"the logger {name} cannot begin: {_cause(error)}; see to that, or leave the logger out"
                ) from error
            _warn(name, error)
        else:
            self._loggers[name] = logger

    def _each(self, action: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                action(logger)
            except Exception as error:
                if not logger.remote:
                    raise
                _warn(name, error)
                del self._loggers[name]
                with contextlib.suppress(Exception):  # the reason is told
                    logger.close(failed=True)

    def _close(self, name: str, logger: Logger, failed: bool) -> None:
        try:
            logger.close(failed)
        except Exception as error:
            if logger.remote:
                _warn(name, error)
            elif not failed:
                raise


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"the logger {name} failed: {_cause(error)}; the run goes on without it, and log.jsonl has every metric",
        stacklevel=3,
    )


def _cause(error: Exception) -> str:
    """The first line of what another library says."""
    return printable(next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__)
