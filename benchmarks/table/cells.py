"""The cells of the table: one checkpoint's AP, memory or frames per second, each measured in a process of its own and
kept in a file of its own, whose name tells its settings from any others."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import average_precision
from harness.measure import Row, record, save
from harness.models import FORMS, batch_of, described, model_with, scenes_of, side_of
from inference_memory import UNITS as MEMORY_UNITS
from inference_memory import rows_of as memory_rows
from memory import measured as training_memory

import fpg_zoo
from fpg_zoo.data.open_split import SHAPES
from fpg_zoo.evaluation.benchmark import RANDOM, time_pass
from fpg_zoo.evaluation.timing import device_name, in_a_process, processor
from fpg_zoo.version import __version__
from fpg_zoo.weights.manifest import Published, load_manifest

COLUMNS = ("ap", "memory", "fps")
UNITS = {
    **MEMORY_UNITS,
    "measured": "percent",
    "seconds": "s a pass of the model alone",
    "fps": "images/s, batch 1, of the model alone",
    "detections": "per image",
    "training_gb": "GB, 8 images of 640x640",
}
_KEY_DIGITS = 8


@dataclasses.dataclass(frozen=True)
class Run:
    """What all cells of a run have in common.

    Attributes:
        data, data_digest: a folder laid out as COCO is, and the SHA-256 of its annotation file; None for none.
        limit: the first so many images for AP; None for all.
        device: cpu, cuda or mps.
        output: the folder of the cells' files.
        runs: timings of each model alone.
        command: by which the run was started.
    """

    data: Path | None
    data_digest: str | None
    limit: int | None
    device: str
    output: Path
    runs: int
    command: str


def table_checkpoints() -> list[Published]:
    """The table's rows: all published checkpoints, and an architecture without one as a checkpoint `RANDOM` without
    metrics."""
    manifest = load_manifest()
    checkpoints = list(manifest.checkpoints)
    for name in fpg_zoo.list_models():
        if not manifest.of(name):
            checkpoints.append(_without_weights(name))
    return checkpoints


def first_checkpoint(architecture: str) -> Published:
    """An architecture's first row of the table."""
    return next(entry for entry in table_checkpoints() if entry.architecture == architecture)


def _without_weights(architecture: str) -> Published:
    return Published(
        architecture=architecture,
        tag=RANDOM,
        url="",
        sha256="",
        box_ap=None,
        mask_ap=None,
        memory_gb=None,
        fps=None,
        recipe="",
        license="",
        class_names=fpg_zoo.model_info(architecture).config.class_names,
        config_url=None,
        log_url=None,
        note=None,
    )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A checkpoint's metrics of one column.

    Attributes:
        entry: the checkpoint.
        column: of `COLUMNS`.
        weights: measured with: the checkpoint's tag, or `RANDOM`.
        settings: everything that decides the metrics but chance, and the speed of the same machine.
        file: where they are kept.
    """

    entry: Published
    column: str
    weights: str
    settings: dict[str, Any]
    file: Path

    def known(self) -> Row | None:
        """What was measured with these settings; None if nothing was, or it cannot be read."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stored: Row = json.loads(self.file.read_text(encoding="utf-8"))
            if stored.get("settings") == self.settings:
                return stored
        return None


def cell_of(entry: Published, column: str, weights: str, run: Run) -> Cell:
    """The cell, not yet measured.

    AP is asked for with the published weights alone. It depends on the kind of device; memory and speed on the very
    device, the threads and torch.
    """
    settings: dict[str, Any] = {
        "column": column,
        "model": entry.name,
        "weights": weights if weights == RANDOM else entry.sha256,
        "dtype": "float32",
        "fpg_zoo": __version__,
    }
    kind = torch.device(run.device).type
    if column == "ap":
        settings["device"] = kind
        settings["data"] = str(SHAPES) if entry.packaged else run.data_digest
        settings["pictures"] = "all" if run.limit is None else run.limit
    else:
        settings["device"] = processor() if kind == "cpu" else device_name(run.device)
        settings["threads"] = torch.get_num_threads()
        settings["torch"] = torch.__version__
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]
    return Cell(entry, column, weights, settings, run.output / "cells" / f"{entry.name}.{column}.{kind}.{key}.json")


def measure_cell(cell: Cell, run: Run, *, alone: bool = True) -> Row:
    """Measure a cell in a process of its own, and keep it.

    Args:
        cell, run: what to measure.
        alone: nothing else is measured meanwhile: all cores are its own, and its progress is shown.

    Raises:
        BrokenProcessPool: its process died.
        Exception: whatever it raised.
    """
    start = time.perf_counter()
    threads = torch.get_num_threads() if alone else 1
    if cell.column == "ap":
        parts = cell.file.with_suffix(".parts")
        data = None if cell.entry.packaged else run.data
        rows, inputs = in_a_process(_ap, cell.entry.name, data, run, parts, threads, quiet=not alone)
        shutil.rmtree(parts, ignore_errors=True)
    elif cell.column == "memory":
        rows, inputs = in_a_process(_memory, cell.entry.name, cell.weights, run.device, threads)
    else:
        rows, inputs = in_a_process(_fps, cell.entry.name, cell.weights, run.device, run.runs, threads)
    for row in rows:
        row.update(model=cell.entry.name, weights=cell.weights)
    content = record(run.command, rows, device=run.device, inputs=inputs, units=UNITS)
    content["settings"] = cell.settings
    content["environment"]["threads"] = threads
    content["environment"]["seconds"] = round(time.perf_counter() - start, 1)
    save(content, cell.file)
    return content


def _ap(
    name: str, data: Path | None, run: Run, parts: Path, threads: int, *, quiet: bool
) -> tuple[list[Row], dict[str, Any]]:
    torch.set_num_threads(threads)
    if quiet:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    workers = 0 if quiet else 2
    ap_by_type = average_precision(name, data, device=run.device, limit=run.limit, parts=parts, workers=workers)
    rows: list[Row] = [{"figure": f"{kind} AP", "measured": round(value, 3)} for kind, value in ap_by_type.items()]
    which = "all images" if run.limit is None else f"the first {run.limit} images"
    what = f"{which} of {'fpg_zoo.data.shapes val' if data is None else f'annotations {run.data_digest}'}"
    return rows, {"what": what, "dtype": "float32", "memory_format": "channels first"}


def _memory(name: str, weights: str, device: str, threads: int) -> tuple[list[Row], dict[str, Any]]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = memory_rows(name, weights, ["plain"], [1], device, Path(folder))
    inputs = rows[0].pop("input")
    if device.startswith("cuda"):
        rows[0]["training_gb"] = round(training_memory(fpg_zoo.model_info(name).config, saving=False), 2)
    return rows, inputs


def _fps(name: str, weights: str, device: str, runs: int, threads: int) -> tuple[list[Row], dict[str, Any]]:
    torch.set_num_threads(threads)
    architecture = name.partition(".")[0]
    images, _ = batch_of(architecture, 1)
    plain = model_with(name, weights).to(device)
    rows: list[Row] = []
    for form, make in FORMS.items():
        seconds, detections = time_pass(make(plain), scenes_of(side_of(architecture), 1), runs=runs)
        rows.append(
            {
                "form": form,
                "batch": 1,
                "seconds": dataclasses.asdict(seconds),
                "fps": round(1 / seconds.median, 3),
                "detections": detections,
            }
        )
    return rows, described(images)


def metrics_of(column: str, rows: Sequence[Row]) -> dict[str, float]:
    """A cell's metrics by the names they have in the table."""
    if column == "ap":
        return {row["figure"]: row["measured"] for row in rows}
    if column == "fps":
        return {"fps" if row["form"] == "plain" else f"fps {row['form']}": row["fps"] for row in rows}
    (row,) = rows
    training = {"training memory": row["training_gb"]} if "training_gb" in row else {}
    return {"inference memory": row["needed_mb"], **training}
