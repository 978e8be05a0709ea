"""Measuring in turn (`fpg_zoo.evaluation.timing` measures one thing), and a record that says what was measured where.

`benchmarks/schema.json` has a record's form, docs/benchmarks.md how to read one.
"""

from __future__ import annotations

import datetime
import functools
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
import torchvision

from fpg_zoo.evaluation.timing import Spread, device_name, measure, processor, summary, synchronize
from fpg_zoo.files import atomic_write
from fpg_zoo.version import __version__

RESULTS = Path(__file__).resolve().parents[1] / "results"
Row = dict[str, Any]
_NO_FIGURES = ("input", "environment", "command")  # of a row
Key = TypeVar("Key")


def measure_in_turn(
    first: Callable[[], object], second: Callable[[], object], *, runs: int
) -> tuple[Spread, Spread, Spread]:
    """Time two things turn by turn, so that a machine whose speed drifts does not favour one.

    Returns:
        The timing of each, and the ratio first / second taken pair by pair.
    """
    pairs = [(measure(first, runs=3, warmup=1).median, measure(second, runs=3, warmup=1).median) for _ in range(runs)]
    firsts, seconds = zip(*pairs, strict=True)
    return summary(list(firsts)), summary(list(seconds)), summary([a / b for a, b in pairs])


def measure_in_rounds(runs: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each of several things in each round, in which all have their turn; a first round does not count."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            seconds[key].append(time.perf_counter() - start)
    return {key: values[1:] for key, values in seconds.items()}


def environment(device: str) -> dict[str, Any]:
    """What the metrics depend on: versions, machine, the device measured on, threads, commit."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "fpg_zoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "safetensors": safetensors.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def record(command: str, rows: Sequence[Row], *, device: str, inputs: Row, units: Mapping[str, str]) -> Row:
    """What is written of a measurement.

    Args:
        command: that measured it.
        rows: of metrics, numbers or spreads of them, by name.
        device: cpu, cuda or mps, as measured on.
        inputs: the exact input: `what`, and as far as there are such its `shape`, `dtype`, `memory_format`, `seed` and
            `file`. A row whose input differs has an `input` of its own.
        units: of each metric.

    Raises:
        ValueError: a metric has no unit.
    """
    without = sorted(metric_names(rows) - units.keys())
    if without:
        raise ValueError(f"figures without a unit: {', '.join(without)}")
    used = {name: unit for name, unit in units.items() if name in metric_names(rows)}
    return {"command": command, "environment": environment(device), "input": inputs, "units": used, "rows": list(rows)}


def metric_names(rows: Iterable[Row]) -> set[str]:
    """The names of all numbers in rows, of spreads and of groups of numbers."""
    return {
        name
        for row in rows
        for name, value in row.items()
        if name not in _NO_FIGURES and isinstance(value, (int, float, dict)) and not isinstance(value, bool)
    }


def write(
    name: str,
    command: str,
    rows: Sequence[Row],
    *,
    device: str,
    inputs: Row,
    units: Mapping[str, str],
    identified_by: Sequence[str] = (),
    folder: Path | None = None,
) -> Path:
    """Write a record to `benchmarks/results/NAME.json`.

    Args:
        name: the script's, or one that begins with it and an underscore.
        command, rows, device, inputs, units: as of `record`.
        identified_by: fields of a row, of which it may lack some. Rows of the record that is there are kept, with the
            environment and command they are of, unless one of `rows` has the same values in these. None: nothing is
            kept.
        folder: in place of `benchmarks/results`.
    """
    target = (folder or RESULTS) / f"{name}.json"
    content = record(command, rows, device=device, inputs=inputs, units=units)
    if identified_by and target.is_file():
        there = json.loads(target.read_text(encoding="utf-8"))
        new = {tuple(row.get(field) for field in identified_by) for row in rows}
        origin = {field: there[field] for field in _NO_FIGURES if there[field] != content[field]}
        kept = [
            {**origin, **row} for row in there["rows"] if tuple(row.get(field) for field in identified_by) not in new
        ]
        content["units"] = {**there["units"], **content["units"]} if kept else content["units"]
        content["rows"] = [*kept, *content["rows"]]
    save(content, target)
    return target


def save(content: Row, target: Path) -> None:
    """Write a record whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def command_line() -> str:
    """This process's, as it is typed at the top of the repository."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


@functools.cache
def commit() -> str:
    """The commit, marked if the working tree differs from it in more than earlier records.

    Asked once: what a long run measures is what was there when it began, so it asks at its beginning.
    """
    head = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{head}-dirty" if changes else head or "unknown"


def _git(*arguments: str) -> str:
    try:
        asked = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git here
        return ""
    return asked.stdout.strip()
