"""Exported files beside the model and its forms: `python benchmarks/exported.py '*_nano_*' retinanet_r50_fpg_chn128`.

Each model is exported in each format and precision, and each file opened and run in a process of its own: seconds for
an image, seconds to open it, memory at its peak, size. How many of the model's detections it matches comes from the
export. With `--ap N`, AP on the first N held-out scenes, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness.models import FORMS, PLAIN, SEED, batch_of, described, model_with, scenes_of, side_of, whose
from harness.options import named, parsed, parser_of, write_rows
from numpy.typing import NDArray
from torch import Tensor

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import ExportError
from fpg_zoo.evaluation.benchmark import RANDOM
from fpg_zoo.evaluation.detect import evaluate
from fpg_zoo.evaluation.timing import in_a_process, measure, resident
from fpg_zoo.inference.exported import agreement
from fpg_zoo.inference.exported.agreement import ExportAgreement
from fpg_zoo.inference.exported.formats import Dtype
from fpg_zoo.inference.open_model import AnyDetector, open_model

# By the name of a row, the file's suffix and its precision.
FILES: dict[str, tuple[str, Dtype]] = {
    "onnx": (".onnx", "fp32"),
    "onnx_int8": (".onnx", "int8"),
    "openvino": (".xml", "fp32"),
    "openvino_bf16": (".xml", "bf16"),
    "openvino_int8": (".xml", "int8"),
    "pt2": (".pt2", "fp32"),
}
CALIBRATION = 32  # scenes
CHECKED = 8  # scenes that a file and its model are compared on
UNITS = {
    "threads": "threads",
    "seconds": "s for an image, detect alone",
    "times_plain": "seconds of the plain form by these, in the same run",
    "open_seconds": "s",
    "peak_mb": "MB resident at most",
    "bytes": "bytes of the file or files",
    "matched": "of the model's detections in the images of the export's check",
    "expected": "detections of the model there",
    "box_AP": "share, on held-out scenes",
    "mask_AP": "share, on held-out scenes",
}


def opened(form: str, file: Path) -> AnyDetector:
    """A form of the saved model, or an exported file."""
    if form in FILES:
        return open_model(str(file))
    return FORMS[form](fpg_zoo.create_model(checkpoint=file))


def figures(name: str, form: str, file: Path, threads: int, runs: int, ap: int) -> dict[str, Any]:
    """Of one form in this process, which is fresh."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = opened(form, file)
    open_seconds = time.perf_counter() - start
    images, sizes = batch_of(name, 1)
    images = images.to(model.dtype)
    seconds = measure(lambda: model.detect(images, sizes), runs=runs)
    row: dict[str, Any] = {
        "seconds": dataclasses.asdict(seconds),
        "open_seconds": round(open_seconds, 3),
        "peak_mb": round(resident(peak=True), 1),
    }
    if ap:
        scenes = ShapesDataset("val", ap, masks=model.config.has_masks)
        values = evaluate(model, scenes, scenes.category_ids)
        row |= {key: values[key] for key in ("box_AP", "mask_AP") if key in values}
    return row


def as_array(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) to (H, W, 3)."""
    return image.permute(1, 2, 0).numpy()


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Files are kept whether they agree or not.

    Random weights tell hardly any two boxes apart, so that rounding changes which are found. Their time is the same.
    """

    def compared(*arguments: Any) -> ExportAgreement:
        return dataclasses.replace(agreement.compare(*arguments), agrees=True)

    with mock.patch.object(importlib.import_module("fpg_zoo.inference.export"), "compare", compared):
        yield


def exported(name: str, weights: str, form: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write a file; what the export says of it."""
    suffix, dtype = FILES[form]
    side = side_of(name)
    check = [as_array(scene) for scene in scenes_of(side, CHECKED if weights != RANDOM else 2)]
    calibration = [as_array(scene) for scene in scenes_of(side, CALIBRATION, split="train")] if dtype == "int8" else ()
    model = model_with(name, weights)
    path = folder / f"{form}{suffix}"
    with unchecked() if weights == RANDOM else contextlib.nullcontext():
        done = fpg_zoo.export(model, path, dtype=dtype, dynamic=["size"], check=check, calibration=calibration)
    return path, {"bytes": done.bytes, "matched": done.agreement.matched, "expected": done.agreement.expected}


def rows_of(name: str, forms: Sequence[str], runs: int, ap: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each form; those of files that do not agree with the model have the reason alone."""
    weights, threads = whose(name), torch.get_num_threads()
    saved = folder / "model.safetensors"
    model_with(name, weights).save_pretrained(saved)
    rows: list[dict[str, Any]] = []
    for form in forms:
        row: dict[str, Any] = {"model": name, "weights": weights, "form": form, "threads": threads}
        file, facts = saved, {"bytes": saved.stat().st_size}
        try:
            if form in FILES:
                file, facts = in_a_process(exported, name, weights, form, folder)
            row |= {**facts, **in_a_process(figures, name, form, file, threads, runs, ap)}
            plain = rows[0]["seconds"]["median"] if rows else row["seconds"]["median"]
            row["times_plain"] = round(plain / row["seconds"]["median"], 2)
        except ExportError as error:
            row["refused"] = str(error)
        rows.append({**row, "input": described(batch_of(name, 1)[0])})
        seconds, times = row.get("seconds", {}).get("median", 0.0), row.get("times_plain")
        print(f"{name:28} {form:15} {row.get('refused') or f'{seconds:.3f} s, plain / this {times}'}", flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="timings of each (default: 7)")
    parser.add_argument("--ap", type=int, default=0, metavar="N", help="scenes for AP (default: none)")
    parser.add_argument("--files", nargs="*", default=list(FILES), choices=FILES, help="(default: all)")
    options = parsed(parser)
    forms = [PLAIN, *(form for form in options.forms if form != PLAIN), *options.files]
    rows: list[dict[str, Any]] = []
    for name in named(options.patterns):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(SEED)
            rows += rows_of(name, forms, options.runs, options.ap, Path(folder))
            target = write_rows("exported", rows, "cpu", units=UNITS, identified_by=("model", "form", "threads"))
    print(target)


if __name__ == "__main__":
    main()
