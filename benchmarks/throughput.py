"""Images per second over many files, of models and exported files: `python benchmarks/throughput.py [PATTERN ...]`.

By calling a `Predictor` with all of them, whose thread reads images ahead; through `Predictor.stream`, which does
not; and through what `fpg-zoo eval` runs, whose workers read ahead; starting the workers counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.models import described_file, draw_files, forms_of, side_of, whose
from harness.options import named, parsed, parser_of, write_rows

import fpg_zoo
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.detect import detect_batches
from fpg_zoo.evaluation.timing import device_name, measure
from fpg_zoo.inference.open_model import AnyDetector

UNITS = {
    "images": "images",
    "batch": "images",
    "workers": "processes",
    "threads": "threads",
    "seconds": "s for all images",
    "images_per_s": "images/s",
}
TOLD_APART_BY = ("model", "form", "path", "batch", "workers", "device", "threads")


def draw_folder(folder: Path, side: int, count: int) -> list[Path]:
    """JPEG files of scenes, laid out as COCO is; returns them."""
    scenes = ShapesDataset("val", count, size=(side * 3 // 4, side))
    (folder / "val").mkdir(exist_ok=True)
    files = draw_files(folder / "val", side, count)
    content = scenes.annotations()
    for image, file in zip(content["images"], files, strict=True):
        image["file_name"] = file.name
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content), encoding="utf-8")
    return files


def ways(model: AnyDetector, folder: Path, files: list[Path], options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Of each way through all files its path, batch, workers, and the function that goes it.

    Calls and streams of each batch; evaluation, whose batches differ in their workers alone, of the greatest.
    """
    dataset = CocoDataset.from_folder(folder, "val", masks=False, training=False)
    predictor = fpg_zoo.Predictor(model)
    ids, most = range(1, len(model.class_names) + 1), max(options.batch)

    def streaming(batch: int) -> Callable[[], object]:
        return lambda: sum(1 for _ in predictor.stream(files, batch))

    def calling(batch: int) -> Callable[[], object]:
        return lambda: len(predictor(list(files), batch))

    def evaluating(batch: int, workers: int) -> Callable[[], object]:
        return lambda: sum(1 for _ in detect_batches(model, dataset, ids, batch_size=batch, workers=workers))

    return [
        *(("call", batch, None, calling(batch)) for batch in options.batch),
        *(("stream", batch, None, streaming(batch)) for batch in options.batch),
        *(("eval", most, workers, evaluating(most, workers)) for workers in options.workers),
    ]


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each form and way."""
    weights = whose(name)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        files = draw_folder(Path(place), side_of(name), options.images)
        for form, model in forms_of(name, weights, options.forms, options.device):
            for path, batch, workers, run in ways(model, Path(place), files, options):
                seconds = measure(run, runs=options.runs, warmup=1)
                rate = len(files) / seconds.median
                rows.append(
                    {
                        "model": name,
                        "weights": weights,
                        "form": form,
                        "path": path,
                        "batch": batch,
                        "workers": workers,
                        "device": device_name(options.device),
                        "threads": torch.get_num_threads(),
                        "images": len(files),
                        "input": {
                            "what": f"scenes 0 to {len(files) - 1} of fpg_zoo.data.shapes val as files",
                            "dtype": str(model.dtype).removeprefix("torch."),
                            "file": described_file(files[0]),
                        },
                        "seconds": dataclasses.asdict(seconds),
                        "images_per_s": round(rate, 3),
                    }
                )
                suffix = "" if workers is None else f", {workers} workers"
                print(f"{name:28} {form:15} {path} batch {batch}{suffix}: {rate:.2f} images/s", flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__, patterns=("mask_rcnn_r50_fpg_chn128", "retinanet_r50_fpg_chn128", "mask_rcnn_nano_fpg"))
    parser.set_defaults(forms=["optimized"], batch=[1, 8])
    parser.add_argument("--images", type=int, default=8, metavar="N", help="files to go through (default: 8)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2], metavar="N", help="of eval (default: 2)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="timings of each (default: 3)")
    options = parsed(parser, exported=True)
    rows: list[dict[str, Any]] = []
    for name in named(options.patterns):
        rows += rows_of(name, options)
        target = write_rows("throughput", rows, options.device, units=UNITS, identified_by=TOLD_APART_BY)
    print(target)


if __name__ == "__main__":
    main()
