"""Measuring: warm-up, synchronise, repeat, median and quartiles; and a record that says what was measured where."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision

from fpg_zoo.version import __version__

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of several runs and the quartiles around it; seconds, or a ratio."""

    median: float
    lower: float
    upper: float
    runs: int


def measure(run: Callable[[], object], *, runs: int, warmup: int = 2) -> Spread:
    """Time `run`, after `warmup` runs that do not count, with the device synchronised at both ends."""
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(runs):
        _synchronise()
        start = time.perf_counter()
        run()
        _synchronise()
        seconds.append(time.perf_counter() - start)
    lower, median, upper = statistics.quantiles(seconds, n=4)
    return Spread(median, lower, upper, runs)


def measure_in_turn(
    first: Callable[[], object], second: Callable[[], object], *, runs: int
) -> tuple[Spread, Spread, Spread]:
    """Time two things turn by turn, so that a machine whose speed drifts does not favour one.

    Returns:
        The timing of each, and the ratio first / second taken pair by pair.
    """
    pairs = [(measure(first, runs=3, warmup=1).median, measure(second, runs=3, warmup=1).median) for _ in range(runs)]
    firsts, seconds = zip(*pairs, strict=True)
    return _summary(list(firsts)), _summary(list(seconds)), _summary([a / b for a, b in pairs])


def _summary(values: list[float]) -> Spread:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Spread(median, lower, upper, len(values))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on: versions, machine, the device measured on, threads, commit."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "fpg_zoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "safetensors": safetensors.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
    }


def write(name: str, command: str, rows: list[dict[str, Any]], *, device: str) -> Path:
    """Write a record to `benchmarks/results/NAME.json`; `device` is cpu, cuda or mps, as measured on."""
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    record = {"command": command, "environment": environment(device), "rows": rows}
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return target


def _commit() -> str:
    """The commit, marked if the working tree differs from it in more than earlier records."""
    commit = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{commit}-dirty" if changes else commit or "unknown"


def _git(*arguments: str) -> str:
    asked = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    return asked.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
