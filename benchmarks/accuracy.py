"""AP of the models that come with the package, measured again: `python benchmarks/accuracy.py`.

On the 1,000 held-out scenes, a model in a process of its own with one thread. Ends with exit code 1 where a figure is
not the manifest's.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from typing import Any

import torch
from harness import write

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation import evaluate
from fpg_zoo.weights.manifest import load_manifest

TOLERANCE = 0.1  # points of AP in percent


def measured(name: str) -> dict[str, float]:
    """AP in percent by the manifest's names."""
    torch.set_num_threads(1)
    model = fpg_zoo.create_model(name)
    held_out = ShapesDataset("val", masks="mask" in name)
    figures = evaluate(model, held_out, held_out.annotations(), held_out.category_ids, batch_size=8)
    return {kind: 100 * figures[f"{kind}_AP"] for kind in ("box", "mask") if f"{kind}_AP" in figures}


def main() -> int:
    entries = [entry for entry in load_manifest().checkpoints if entry.packaged]
    with concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(), mp_context=multiprocessing.get_context("spawn")
    ) as processes:
        found = list(processes.map(measured, [entry.name for entry in entries]))
    rows: list[dict[str, Any]] = []
    for entry, figures in zip(entries, found, strict=True):
        published = {"box": entry.box_ap, "mask": entry.mask_ap}
        for kind, value in figures.items():
            claimed = published[kind]
            agrees = claimed is not None and abs(value - claimed) <= TOLERANCE
            rows.append(
                {"model": entry.name, "figure": f"{kind} AP", "published": claimed, "measured": round(value, 3)}
                | {"tolerance": TOLERANCE, "within_limit": agrees}
            )
            print(
                entry.name, kind, f"published {claimed}, measured {value:.2f}", "" if agrees else "DIFFERS", flush=True
            )
    print(write("accuracy", "python benchmarks/accuracy.py", rows, device="cpu"))
    return 0 if all(row["within_limit"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
