"""MLflow: the server or the store that its own environment variables name."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.training.loggers.protocol import Logger
from fpg_zoo.training.loggers.run_ids import keep_id, read_ids
from fpg_zoo.training.loggers.tags import CURVES, IMAGES, tagged

_NAME = "mlflow"
_EXPERIMENT = "fpg-zoo"  # where MLFLOW_EXPERIMENT_NAME names no other
# Nothing is sent to its makers, and a server that has gone holds a step up for half a minute, where it would be for
# many. Whoever sets them otherwise has them so.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_MAX_PARAMS = 100  # of a call
_MAX_LENGTH = 500  # characters of a parameter's value, that any of its servers takes
_FORBIDDEN = re.compile(r"[^\w\-. /]", re.ASCII)  # in its names


class MlflowLogger(Logger):
    """Metrics, parameters, pictures, and the precision-recall curves as JSON files among the artifacts.

    The run's id is in `loggers.json`. Steps that were lost with a process are shown twice, with the same values.

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
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        run_id = read_ids(self._folder).get(_NAME)
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._run_id = run_id
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        there = self._client.get_experiment_by_name(experiment)
        experiment_id = self._client.create_experiment(experiment) if there is None else there.experiment_id
        run = self._client.create_run(experiment_id, run_name=self._folder.absolute().name)
        self._run_id = run.info.run_id
        keep_id(self._folder, _NAME, self._run_id)

    def log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params  # which cannot be changed
        params = [
            Param(_FORBIDDEN.sub("_", name), str(value)[:_MAX_LENGTH])
            for name, value in _flat(config)
            if _FORBIDDEN.sub("_", name) not in known
        ]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + _MAX_PARAMS])

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        rows = [Metric(_FORBIDDEN.sub("_", name), value, now, step) for name, value in tagged(metrics).items()]
        self._client.log_batch(self._run_id, metrics=rows)

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, pixels in images.items():
            self._client.log_image(self._run_id, pixels, key=_FORBIDDEN.sub("_", f"{IMAGES}/{name}"), step=step)

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        precisions = {name: curve.tolist() for name, curve in curves.items()}
        self._client.log_dict(self._run_id, precisions, f"{CURVES}/{step:08}.json")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
