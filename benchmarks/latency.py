"""How long a model, or an exported file, takes: `python benchmarks/latency.py [PATTERN ...]`.

The model alone, from normalized pixels on the device to detections (masks pasted), and from JPEG files to detections;
and each stage's share of the latter. Rows are written as they come; those of other models, forms, batches, devices and
numbers of threads stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness.models import (
    batch_of,
    described,
    described_file,
    draw_files,
    forms_of,
    scenes_of,
    side_of,
    whose,
)
from harness.options import named, parsed, parser_of, write_rows
from harness.stages import clocked

import fpg_zoo
from fpg_zoo.evaluation.benchmark import time_pass
from fpg_zoo.evaluation.timing import Spread, device_name, measure
from fpg_zoo.inference.open_model import AnyDetector

UNITS = {
    "batch": "images",
    "threads": "threads",
    "detections": "per image",
    "alone": "s a batch",
    "fps": "images/s, of the model alone",
    "from_file": "s a batch",
    "stages": "s a batch",
    "covered": "share of from_file in stages",
}


def from_file(model: AnyDetector, files: list[Path], *, runs: int) -> tuple[Spread, dict[str, float]]:
    """Seconds from the files to detections on the CPU, and of each stage; medians over the same runs.

    On a GPU the stages wait for each other, where they would not without the clock.
    """
    predictor = fpg_zoo.Predictor(model)
    predictor(files, batch_size=len(files))  # the warm-up
    stages: list[dict[str, float]] = []

    def run() -> None:
        with clocked(model) as seconds:
            predictor(files, batch_size=len(files))
        stages.append(seconds)

    spread = measure(run, runs=runs, warmup=0)
    return spread, {stage: statistics.median(one[stage] for one in stages) for stage in stages[0]}


def rows_of(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each form and batch."""
    weights = whose(name)
    rows: list[dict[str, Any]] = []
    for form, model in forms_of(name, weights, options.forms, options.device):
        for batch in options.batch:
            images, _ = batch_of(name, batch)
            files = draw_files(folder, side_of(name), batch)
            seconds, detections = time_pass(model, scenes_of(side_of(name), batch), runs=options.runs)
            whole, stages = from_file(model, files, runs=options.runs)
            rows.append(
                {
                    "model": name,
                    "weights": weights,
                    "form": form,
                    "batch": batch,
                    "device": device_name(options.device),
                    "threads": torch.get_num_threads(),
                    "input": {**described(images.to(model.dtype)), "file": described_file(files[0])},
                    "detections": round(detections, 1),
                    "alone": dataclasses.asdict(seconds),
                    "fps": round(batch / seconds.median, 3),
                    "from_file": dataclasses.asdict(whole),
                    "stages": {stage: round(value, 5) for stage, value in stages.items()},
                    "covered": round(sum(stages.values()) / whole.median, 3),
                }
            )
            print(
                f"{name:28} {form:15} batch {batch}: alone {seconds.median:.3f} s, from file {whole.median:.3f} s",
                flush=True,
            )
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="timings of each (default: 3)")
    options = parsed(parser, exported=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in named(options.patterns):
            rows += rows_of(name, options, Path(folder))
            target = write_rows("latency", rows, options.device, units=UNITS)
    print(target)


if __name__ == "__main__":
    main()
