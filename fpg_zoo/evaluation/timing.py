"""Measuring: warm-up, synchronize, repeat, median and quartiles; and memory, in a process of its own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Spread:
    """The median of several runs and the quartiles around it; seconds, or a ratio."""

    median: float
    lower: float
    upper: float
    runs: int


def measure(run: Callable[[], object], *, runs: int, warmup: int = 2) -> Spread:
    """Time `run`, after `warmup` runs that do not count, with the device synchronized at both ends.

    Args:
        run: what is timed.
        runs: how often, at least 2, which is what quartiles take.
        warmup: how often before.
    """
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(runs):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def summary(values: list[float]) -> Spread:
    """The median and quartiles of two values or more."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return Spread(median, lower, upper, len(values))


def synchronize() -> None:
    """Wait until the device, of several GPUs torch's current one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def in_a_process(function: Callable[_Params, _Result], *args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
    """What the function gives in a process of its own, which ends with it.

    Raises:
        BrokenProcessPool: the process was killed, or died; for want of memory, say.
        Exception: what the function raised.
    """
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args, **kwargs).result()


def resident(*, peak: bool = False) -> float:
    """MB of this process in memory, now or at most; at most in either case where there is no /proc.

    Not by getrusage where it can be helped: a process begins with the peak of the one that started it.
    """
    try:
        return resident_of("self", peak=peak)
    except (OSError, KeyError):  # some sandboxes have the file without these rows
        import resource  # which Windows has not

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def resident_of(process: int | str, *, peak: bool = False) -> float:
    """MB of a process in memory, now or at most.

    Args:
        process: its id, or `self`.
        peak: at most.

    Raises:
        OSError: there is no /proc, or the process has ended.
        KeyError: the process is about to end, or its memory is not shown.
    """
    status = Path("/proc", str(process), "status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024 / 1e6


def device_name(device: str) -> str:
    """What tells a device from others: a GPU's name, else its kind."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
