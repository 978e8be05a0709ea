"""Weights & Biases, online or offline as its own environment variables say."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.training.loggers.protocol import Logger
from fpg_zoo.training.loggers.run_ids import keep_id, read_ids
from fpg_zoo.training.loggers.tags import CURVES, IMAGES, tagged

_NAME = "wandb"
_PROJECT = "fpg-zoo"  # where WANDB_PROJECT names no other
# What would be sent besides what is logged, and how long the end of a run waits for a server that has gone. Whoever
# sets them otherwise has them so.
_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false", "WANDB_X_DISABLE_STATS": "true", "WANDB_FINISH_TIMEOUT": "120"}


class WandbLogger(Logger):
    """Metrics, pictures, and a chart of the precision-recall curves.

    The run's files are in `wandb`, its id is in `loggers.json`. Charts are over `step`. Steps that were lost with a
    process are shown twice, with the same values.

    Args:
        run: its folder, whose name the run has.
    """

    remote = True
    takes_images = True
    takes_curves = True

    def __init__(self, run: Path) -> None:
        self._folder = run

    def open(self, step: int) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import wandb

        run_id = read_ids(self._folder).get(_NAME)
        self._run: Any = wandb.init(
            id=run_id or uuid.uuid4().hex[:16],
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self._folder.absolute().name,
            dir=str(self._folder),
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )
        keep_id(self._folder, _NAME, self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **tagged(metrics)})

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import wandb

        self._run.log({"step": step, **{f"{IMAGES}/{name}": wandb.Image(pixels) for name, pixels in images.items()}})

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        import wandb

        recalls = [np.linspace(0.0, 1.0, len(precisions)).tolist() for precisions in curves.values()]
        chart = wandb.plot.line_series(
            recalls,
            [precisions.tolist() for precisions in curves.values()],
            keys=list(curves),
            title="Precision over recall",
            xname="recall",
        )
        self._run.log({"step": step, CURVES: chart})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
