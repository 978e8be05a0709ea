"""Where the time of a training step goes: `python benchmarks/training_time.py retinanet_nano_fpg --data bccd`.

Real steps of `fpg_zoo.train` with clocks around their parts, for several numbers of worker processes. What a part calls
is not in the time of the part around it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness.measure import Row, command_line, commit, write
from torch import Tensor

import fpg_zoo
from fpg_zoo.data.workers import usable_workers
from fpg_zoo.evaluation.timing import in_a_process, synchronize
from fpg_zoo.modeling.heads.rpn import ProposalSelection
from fpg_zoo.training.callbacks import Callback, TrainState
from fpg_zoo.training.criterion import Criterion
from fpg_zoo.training.matching import Matcher, Sampler

WARMUP = 3  # steps that do not count
UNITS = {
    "workers": "processes that read images",
    "batch_size": "images",
    "seconds": "s for a step, median",
    "data_wait": "share of the step, mean",
    "images_per_second": "images in a second, median",
    "forward": "share: backbone, neck, heads and losses",
    "selection": "share: proposals, matching, sampling",
    "backward": "share",
    "optimizer": "share: step and clipping",
    "rest": "share: normalizing, log",
}


class Clocks:
    """Seconds of each part; of parts within each other, the inner one's are not the outer one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            self._inner.append(0.0)
            result = function(*args, **kwargs)
            synchronize()
            took = time.perf_counter() - start
            self.seconds[part] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took
            return result

        return run


@contextlib.contextmanager
def clocked(clocks: Clocks) -> Iterator[None]:
    """While this is open, the parts of all training steps are timed."""
    parts = [
        (Criterion, "forward", "forward"),
        (ProposalSelection, "__call__", "selection"),
        (Matcher, "__call__", "selection"),
        (Sampler, "__call__", "selection"),
        (Tensor, "backward", "backward"),
        (torch.optim.AdamW, "step", "optimizer"),
        (torch.optim.SGD, "step", "optimizer"),
        (torch.nn.utils, "clip_grad_norm_", "optimizer"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, clocks.around(part, getattr(owner, name))))
        yield


class Collected(Callback):
    """The metrics of the steps after the first few, and an end after so many."""

    def __init__(self, steps: int, clocks: Clocks) -> None:
        self.rows: list[Mapping[str, float | None]] = []
        self._steps = steps
        self._clocks = clocks

    def on_step_end(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
        if state.step > WARMUP:
            self.rows.append(metrics)
        else:
            self._clocks.seconds.clear()
        state.stop = state.step == WARMUP + self._steps


def figures(name: str, data: str, batch_size: int, workers: int, amp: str | None, steps: int, threads: int) -> Row:
    """Of one setting, in this process."""
    torch.set_num_threads(threads)
    clocks = Clocks()
    collected = Collected(steps, clocks)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "amp": amp, "seed": 0}
    with tempfile.TemporaryDirectory() as folder, clocked(clocks):
        settings = {"training.save_every": 10**6, "training.frozen_stages": 0, "evaluation.every": 10**6}
        fpg_zoo.train(
            name,
            data,
            Path(folder) / "run",
            recipe="scratch",
            epochs=100,
            pretrained_backbone=False,
            settings=settings,
            callbacks=[collected],
            **options,
        )
    seconds = [batch_size / (row["images_per_second"] or 1) for row in collected.rows]
    whole = sum(seconds)
    shares = {part: clocks.seconds[part] / whole for part in ("forward", "selection", "backward", "optimizer")}
    waited = statistics.mean(row["data_wait"] or 0.0 for row in collected.rows)
    return {
        "seconds": statistics.median(seconds),
        "images_per_second": batch_size / statistics.median(seconds),
        "data_wait": waited,
        **shares,
        "rest": 1 - waited - sum(shares.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["retinanet_nano_fpg", "mask_rcnn_nano_fpg"])
    parser.add_argument("--data", default="shapes", metavar="DIR", help="(default: shapes)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--amp", choices=("bf16", "fp16"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    commit()
    rows: list[Row] = []
    for name in options.names:
        for workers in sorted({*options.workers, usable_workers()}):
            given = options.data, options.batch_size, workers, options.amp, options.steps, options.threads
            row = {"model": name, "workers": workers, "auto": workers == usable_workers(), "amp": options.amp or "none"}
            row |= {"batch_size": options.batch_size, **in_a_process(figures, name, *given)}
            rows.append(row)
            shown = {key: round(row[key], 3) for key in ("seconds", *list(UNITS)[3:]) if key in row}
            print(name, f"workers {workers}", shown, flush=True)
    inputs = {"what": f"training on {Path(options.data).name}, batches of {options.batch_size}, recipe scratch"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    told_apart = ("model", "workers", "amp", "batch_size")
    print(
        write(
            "training_time", command_line(), rows, device=device, inputs=inputs, units=UNITS, identified_by=told_apart
        )
    )


if __name__ == "__main__":
    main()
