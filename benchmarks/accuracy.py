"""AP of the models that come with the package, measured again: `python benchmarks/accuracy.py`.

On the 1,000 held-out scenes, a model in a process of its own with one thread. Ends with exit code 1 where a metric is
not the manifest's. `reproduce_table.py` measures AP by the same code, of all models.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from harness.measure import Row, write
from harness.models import FORMS, PLAIN

import fpg_zoo
from fpg_zoo.data.open_split import held_out_scenes, open_held_out
from fpg_zoo.evaluation.coco_metrics import IOU_TYPES
from fpg_zoo.evaluation.detect import categories_of, detect_all, iou_types_of, metrics_of, parts_of
from fpg_zoo.weights.manifest import Published, load_manifest

TOLERANCE = 0.1  # points of AP in percent
BATCH = 8


def average_precision(
    name: str,
    data: Path | None,
    *,
    device: str,
    limit: int | None,
    parts: Path | None,
    workers: int,
    form: str = PLAIN,
) -> dict[str, float]:
    """AP in percent of published weights, `box` and, of a model and data with masks, `mask`; as `fpg-zoo eval` has it.

    Args:
        name: with the tag.
        data: a folder laid out as COCO is; None for the held-out drawn scenes.
        device: cpu, cuda or mps.
        limit: the first so many images; None for all.
        parts: a folder for detections as they come, from which a run that was killed goes on; None: nowhere.
        workers: processes that read images.
        form: of `harness.models.FORMS`.

    Raises:
        ConfigError: the data cannot be used, have nothing to evaluate, or are of other classes.
        WeightsError: the weights cannot be had.
    """
    model = FORMS[form](fpg_zoo.create_model(name, device=device))
    iou_types = iou_types_of(model)
    masks = "segm" in iou_types
    if data is None:
        held_out = held_out_scenes(limit=limit, masks=masks)
    else:
        held_out = open_held_out(data, None, limit=limit, masks=masks)
    rows = detect_all(
        model,
        held_out.dataset,
        categories_of(model, held_out),
        batch_size=BATCH,
        workers=workers,
        parts=None if parts is None else parts_of(parts / "detections.json", model, held_out),
    )
    metrics = metrics_of(model, rows, held_out.annotations)
    ap_by_type = {IOU_TYPES[iou_type]: metrics.get(f"{IOU_TYPES[iou_type]}_AP") for iou_type in iou_types}
    return {label: 100 * value for label, value in ap_by_type.items() if value is not None}


def agrees(measured: float, published: float) -> bool:
    """Whether AP in percent is that which was published, to the tolerance."""
    return round(abs(measured - published), 6) <= TOLERANCE


def of_scenes(pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    """AP on all held-out scenes of each (name, form), in a process of its own with one thread, several at a time."""
    with concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(), mp_context=multiprocessing.get_context("spawn")
    ) as processes:
        return list(processes.map(_of_scenes, *zip(*pairs, strict=True)))


def _of_scenes(name: str, form: str) -> dict[str, float]:
    torch.set_num_threads(1)  # maps this small are slower on more
    return average_precision(name, None, device="cpu", limit=None, parts=None, workers=0, form=form)


def _rows(entry: Published, metrics: dict[str, float]) -> list[Row]:
    published = {"box": entry.box_ap, "mask": entry.mask_ap}
    return [
        {
            "model": entry.name,
            "figure": f"{label} AP",
            "published": published[label],
            "measured": round(value, 3),
            "tolerance": TOLERANCE,
            "within_limit": (claimed := published[label]) is not None and agrees(value, claimed),
        }
        for label, value in metrics.items()
    ]


def main() -> int:
    checkpoints = [entry for entry in load_manifest().checkpoints if entry.packaged]
    ap_of_each = of_scenes([(entry.name, PLAIN) for entry in checkpoints])
    rows = [row for entry, metrics in zip(checkpoints, ap_of_each, strict=True) for row in _rows(entry, metrics)]
    for row in rows:
        print(
            row["model"],
            row["figure"],
            f"published {row['published']}, measured {row['measured']:.2f}",
            "" if row["within_limit"] else "DIFFERS",
        )
    inputs = {"what": "the 1,000 held-out scenes, fpg_zoo.data.shapes val, of 240x320 pixels", "dtype": "float32"}
    units = dict.fromkeys(("published", "measured", "tolerance"), "percent")
    print(write("accuracy", "python benchmarks/accuracy.py", rows, device="cpu", inputs=inputs, units=units))
    return 0 if all(row["within_limit"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
