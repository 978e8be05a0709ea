"""trackio: a store on this machine, or the server or Space that its own environment variables name."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.training.loggers.protocol import Logger
from fpg_zoo.training.loggers.run_ids import keep_id, read_ids
from fpg_zoo.training.loggers.tags import IMAGES, tagged

_NAME = "trackio"
_PROJECT = "fpg-zoo"  # where TRACKIO_PROJECT names no other
_MOST_OF_A_NAME = 64  # characters


class TrackioLogger(Logger):
    """Metrics and pictures.

    The run's name is the folder's with a few digits, as trackio goes on with runs by name; `loggers.json` has it. Steps
    that were lost with a process are shown twice, with the same values.

    Args:
        run: its folder.
    """

    remote = True
    takes_images = True
    takes_curves = False

    def __init__(self, run: Path) -> None:
        self._folder = run

    def open(self, step: int) -> None:
        import trackio

        name = read_ids(self._folder).get(_NAME)
        if name is None:
            stem = re.sub(r"[^\w-]+", "-", self._folder.absolute().name, flags=re.ASCII)[:_MOST_OF_A_NAME]
            name = f"{stem}-{uuid.uuid4().hex[:8]}"
        with _stdout_to_stderr():
            self._run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
                name=name,
                resume="allow",
                private=True,  # of a Space that is made
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        keep_id(self._folder, _NAME, name)

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(config)  # which goes with the first metrics

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(tagged(metrics), step=step)

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import trackio

        self._run.log({f"{IMAGES}/{name}": trackio.Image(pixels) for name, pixels in images.items()}, step=step)

    def close(self, failed: bool) -> None:
        import trackio

        with _stdout_to_stderr():
            trackio.finish()  # not the run's own, which would be called once more as Python ends


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What is printed within goes to standard error: standard output has the command's answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
