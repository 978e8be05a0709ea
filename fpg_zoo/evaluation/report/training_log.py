"""What a run's `log.jsonl` tells, as series that a page can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.errors import ConfigError
from fpg_zoo.run_log import is_evaluation, read_lines, row_of

MAX_POINTS = 400  # of a series, more than a chart has pixels for
MAX_SERIES = 24  # of steps and of evaluations each; the first in the log
_MAX_STEP = 1 << 53
_MAX_VALUE = 1e30  # beyond which nothing is drawn


@dataclass(frozen=True, eq=False)
class Series:
    """One metric over the steps.

    Attributes:
        steps, values: (N,) float64 each, by rising steps, N being 1..`MAX_POINTS`: means of neighbors where the log has
            more.
        last, best: the log's last value and the greatest.
        best_step: where the greatest was, for the first time.
    """

    steps: np.ndarray
    values: np.ndarray
    last: float
    best: float
    best_step: int


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """What a log tells.

    Attributes:
        step: the last one.
        epoch: how many of them were done then; None where the log does not say.
        evaluations: how many there were.
        training, evaluated: metrics of steps and of evaluations by name, in the order of the log; those that are
            numbers.
    """

    step: int
    epoch: float | None
    evaluations: int
    training: Mapping[str, Series]
    evaluated: Mapping[str, Series]


def read_training_log(file: Path) -> TrainingLog:
    """Read a log; damaged lines are passed over.

    Raises:
        ConfigError: there is no step in it.
        StorageError: it is no file, or cannot be read.
    """
    training: dict[str, list[tuple[int, float]]] = {}
    evaluated: dict[str, list[tuple[int, float]]] = {}
    last = evaluations = 0
    for line in read_lines(file):
        row = row_of(line)
        if row is None or not 1 <= row["step"] < _MAX_STEP:
            continue
        last = max(last, row["step"])
        evaluations += is_evaluation(row)
        found = evaluated if is_evaluation(row) else training
        for name, value in row.items():
            number = _number(value)
            if name != "step" and number is not None and (name in found or len(found) < MAX_SERIES):
                found.setdefault(name, []).append((row["step"], number))
    if last == 0:
        raise ConfigError(f"{file}: no step of a training in it; name the folder of a run")
    epochs = training.get("epoch")
    return TrainingLog(
        step=last,
        epoch=epochs[-1][1] if epochs else None,
        evaluations=evaluations,
        training={name: _series(points) for name, points in training.items()},
        evaluated={name: _series(points) for name, points in evaluated.items()},
    )


def _number(value: Any) -> float | None:
    """A finite number that can be drawn; None for everything else."""
    if type(value) not in (int, float) or not -_MAX_VALUE <= value <= _MAX_VALUE:  # as NaN is not
        return None
    return float(value)


def _series(points: Sequence[tuple[int, float]]) -> Series:
    ordered = sorted(points, key=lambda point: point[0])
    best_step, best = max(ordered, key=lambda point: point[1])
    pieces = np.array_split(np.array(ordered, dtype=np.float64), min(len(ordered), MAX_POINTS))
    means = np.array([piece.mean(axis=0) for piece in pieces])
    return Series(means[:, 0], means[:, 1], ordered[-1][1], best, best_step)
