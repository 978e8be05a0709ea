"""TensorBoard's files, in the run's folder `tensorboard`."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.files import storage_errors
from fpg_zoo.training.loggers.protocol import Logger
from fpg_zoo.training.loggers.tags import CURVES, IMAGES, tagged

_FOLDER = "tensorboard"


class TensorBoardLogger(Logger):
    """Scalars, pictures and precision-recall curves.

    Args:
        run: the folder of `tensorboard`, which `tensorboard --logdir` takes.
    """

    remote = False
    takes_images = True
    takes_curves = True

    def __init__(self, run: Path) -> None:
        self._run = run
        self._writer: Any = None

    def open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Its thread gives its error to whoever calls next, and raises it also to be printed.
        self._hook = threading.excepthook
        threading.excepthook = self._thread_ended
        try:
            with self._errors():
                self._writer = SummaryWriter(str(self._run / _FOLDER), purge_step=step + 1)
        except BaseException:
            threading.excepthook = self._hook
            raise

    def log_config(self, config: Mapping[str, Any]) -> None:
        indented = "\n".join(f"    {line}" for line in json.dumps(config, indent=1).splitlines())  # code in Markdown
        with self._errors():
            self._writer.add_text("config", indented, 0)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._errors():
            for tag, value in tagged(metrics).items():
                self._writer.add_scalar(tag, value, step)

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        with self._errors():
            for name, pixels in images.items():
                self._writer.add_image(f"{IMAGES}/{name}", pixels, step, dataformats="HWC")

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        with self._errors():
            for name, precisions in curves.items():
                count = len(precisions)
                unknown = np.zeros(count)  # numbers of detections, which interpolated curves have none of
                recalls = np.linspace(1.0, 0.0, count)  # in its order, by rising threshold
                self._writer.add_pr_curve_raw(
                    f"{CURVES}/{name}",
                    *(unknown, unknown, unknown, unknown),
                    precisions[::-1],
                    recalls,
                    step,
                    num_thresholds=count,
                )

    def close(self, failed: bool) -> None:
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
        with storage_errors(self._run):
            try:
                yield
            except OSError:
                raise
            except Exception as error:  # TensorFlow, where that is installed, has classes of its own
                raise OSError(errno.EIO, f"TensorBoard: {error}") from error
