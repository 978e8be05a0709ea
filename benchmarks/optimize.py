"""What `fpg_zoo.optimize` gains, costs and changes: `python benchmarks/optimize.py [PATTERN ...]`.

Each model's plain form (float32, channels first) and its inference forms on drawn scenes of 640 x 640 pixels (the nano
models': 384), in turn in rounds; of each round the ratio. Beside it what postprocessing takes (selecting
detections and pasting masks), how much of the machine's own rate of matrix products is reached, and what making the
form takes. Weights are random (`harness.models.at_random`). That the forms compute the same is for
`tests/inference/test_optimized.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness.measure import measure_in_rounds
from harness.models import FORMS, PLAIN, at_random, batch_of, described, draw_files, side_of
from harness.options import named, parsed, parser_of, write_rows
from harness.stages import clocked
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fpg_zoo
from fpg_zoo.evaluation.timing import device_name, measure, summary, synchronize
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.tensor_memory import Ledger

# How many times as fast as the plain form, by form: of the two heaviest models, and of the others.
AIMS = {"optimized": (2.0, 1.6), "optimized_bf16": (6.0, 4.0)}
HEAVIEST = ("faster_rcnn_r50_fpg", "mask_rcnn_r50_fpg")
POSTPROCESSING = ("selection", "pasting")
UNITS = {
    "batch": "images",
    "threads": "threads",
    "seconds": "s a batch",
    "times_as_fast": "the plain form's seconds over these, of each round",
    "aim": "times as fast",
    "postprocessing": "share of the time from file to detections",
    "of_matrix_rate": "share of the rate of a product of 2048 x 2048 matrices, operations counted as the plain form's",
    "making_seconds": "s",
    "making_memory": "peak of what is allocated beside the model, as a multiple of its size",
}
SIDE = 2048


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a product of square matrices, a multiplication and an addition counted as two."""
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / measure(lambda: left @ right, runs=7).median


def operations(model: Detector, images: Tensor, sizes: list[tuple[int, int]]) -> int:
    """Of the plain form's convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with counter:
        model.detect(images, sizes)
    return int(counter.get_total_flops())


def making(plain: Detector, form: str) -> tuple[float, float]:
    """Seconds of making a form, and the peak of what is allocated for it over the model's size."""
    gc.collect()
    start = time.perf_counter()
    FORMS[form](plain)
    synchronize()
    seconds = time.perf_counter() - start
    with Ledger() as ledger:
        FORMS[form](plain)
    size = sum(tensor.nbytes for tensor in plain.state_dict().values())
    return seconds, ledger.peak / size - 1  # the weights that are read count there, too


def postprocessing(model: Detector, file: Path, *, runs: int) -> float:
    """The share of choosing detections and of pasting masks, of the time from a file to detections; the median."""
    predictor = fpg_zoo.Predictor(model)
    predictor([file])
    shares = []
    for _ in range(runs):
        start = time.perf_counter()
        with clocked(model) as seconds:
            predictor([file])
        shares.append(sum(seconds.get(stage, 0.0) for stage in POSTPROCESSING) / (time.perf_counter() - start))
    return statistics.median(shares)


def rows_of(
    name: str, batch: int, options: argparse.Namespace, rates: dict[torch.dtype, float], file: Path
) -> list[dict[str, Any]]:
    """A row for each form."""
    device = options.device
    plain = at_random(name).to(device)
    images, sizes = batch_of(name, batch, device=device)
    models = {form: make(plain) for form, make in FORMS.items() if form in (PLAIN, *options.forms)}
    inputs = {form: images.to(model.dtype) for form, model in models.items()}
    runs = {form: functools.partial(model.detect, inputs[form], sizes) for form, model in models.items()}
    seconds = measure_in_rounds(runs, options.runs)
    counted = operations(plain, images, sizes)
    rows = []
    for form, model in models.items():
        spread = summary(seconds[form])
        ratio = summary([before / after for before, after in zip(seconds[PLAIN], seconds[form], strict=True)])
        row: dict[str, Any] = {
            "model": name,
            "form": form,
            "batch": batch,
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "weights": "random",
            "input": described(inputs[form]),
            "seconds": dataclasses.asdict(spread),
            "times_as_fast": dataclasses.asdict(ratio),
            "postprocessing": round(postprocessing(model, file, runs=options.runs), 4),
            "of_matrix_rate": round(counted / spread.median / rates[model.dtype], 3),
        }
        if form != PLAIN:
            row["aim"] = AIMS[form][0 if name in HEAVIEST else 1]
            row["aim_met"] = ratio.median >= row["aim"]
            row["making_seconds"], row["making_memory"] = (round(value, 3) for value in making(plain, form))
        rows.append(row)
        print(f"{name:28} {form:15} batch {batch}: {spread.median:.3f} s, {ratio.median:.2f} times as fast", flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds that count (default: 5)")
    options = parsed(parser)
    rates = {dtype: matrix_rate(dtype, options.device) for dtype in (torch.float32, torch.bfloat16)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in named(options.patterns):
            (file,) = draw_files(Path(folder), side_of(name), 1)
            for batch in options.batch:
                rows += rows_of(name, batch, options, rates, file)
            target = write_rows(
                "optimize",
                rows,
                options.device,
                units=UNITS,
                matrix_rate={str(dtype): round(rate / 1e9) for dtype, rate in rates.items()},
            )
    print(target)


if __name__ == "__main__":
    main()
