"""What a program adds to a training run: code at its steps and evaluations, which may also stop it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.run_log import evaluations_of
from fpg_zoo.training.logger import MetricLogger

Metrics = Mapping[str, float | None]  # None for what has no ground truth


@dataclass
class TrainState:
    """Where a run is.

    Attributes:
        model: that is trained.
        evaluated: that is evaluated and kept: the model, or the average of its weights.
        run: the run's folder.
        logger: that the run is shown by.
        step: steps taken.
        steps: of the whole run.
        epoch: epochs done, 0 in the beginning.
        is_main: whether this process writes. Of several, each calls its own callbacks.
        stop: set it to end the run after this step. It counts in the main process.
    """

    model: Detector
    evaluated: Detector
    run: Path
    logger: MetricLogger
    step: int
    steps: int
    epoch: float
    is_main: bool
    stop: bool = False


class Callback:
    """Does nothing; override what you need. What a method raises ends the run, whose last state is kept."""

    def on_train_begin(self, state: TrainState) -> None:
        """Before the first step, or the first after `resume`."""

    def on_step_end(self, state: TrainState, metrics: Metrics) -> None:
        """After a step; `metrics` are those of `log.jsonl`."""

    def on_evaluate_end(self, state: TrainState, metrics: Metrics) -> None:
        """After an evaluation, in eval mode; `metrics` are empty in all processes but the main one."""

    def on_train_end(self, state: TrainState, metrics: Metrics) -> None:
        """After the last step, with the metrics of the last evaluation."""


class EarlyStopping(Callback):
    """Stops a run whose metric has not been better for so many evaluations.

    Args:
        metric: by name; None for the first.
        patience: evaluations.
    """

    def __init__(self, metric: str | None, patience: int) -> None:
        self._metric = metric
        self._patience = patience
        self._best: float | None = None
        self._since = 0

    def on_train_begin(self, state: TrainState) -> None:
        if state.is_main:
            for metrics in evaluations_of(state.run):  # before a `resume`; the log is of the steps up to there
                self._note(metrics)

    def _note(self, metrics: Metrics) -> None:
        value = metrics.get(self._metric) if self._metric else next(iter(metrics.values()), None)
        if value is not None and (self._best is None or value > self._best):
            self._best, self._since = value, 0
        else:
            self._since += 1

    def on_evaluate_end(self, state: TrainState, metrics: Metrics) -> None:
        if state.is_main:
            self._note(metrics)
            state.stop = state.stop or self._since >= self._patience
