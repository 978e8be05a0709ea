"""A run of four steps that is killed after the third and goes on from the second, as its loggers are told of it.

As a program: logger_sessions.py RUN LOGGER [failed]. Without torch, so that it starts in an instant.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fpg_zoo.training.loggers.group import open_loggers
from fpg_zoo.training.loggers.json_lines import JsonLinesLogger

CONFIG = {"recipe": {"lr": 0.01, "steps": [8, 11]}, "seed": 3}


def step_metrics(step: int) -> dict[str, float]:
    return {"epoch": step / 10, "lr": 0.01, "loss": 2.0 / step, "loss_cls": 1.0 / step, "images_per_second": 30.0}


def two_sessions(run: Path, logger: str, *, failed: bool = False) -> None:
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:3] = (250, 20, 30)
    curves = {"box_AP50": np.linspace(1.0, 0.0, 101)}
    for done, last, ending in ((0, 3, True), (2, 4, failed)):
        log = JsonLinesLogger(run)
        log.open(done)
        group = open_loggers((logger,), run, step=done, config=CONFIG)
        rows = [(step, step_metrics(step)) for step in range(done + 1, last + 1)]
        for step, metrics in (*rows, (last, {"box_AP": last / 10})):
            log.log_metrics(step, metrics)
            group.log_metrics(step, metrics, remote=True)
        group.log_images(last, {"7": pixels})
        group.log_curves(last, curves)
        log.close()
        group.close(failed=ending)


if __name__ == "__main__":
    two_sessions(Path(sys.argv[1]), sys.argv[2], failed="failed" in sys.argv[3:])
