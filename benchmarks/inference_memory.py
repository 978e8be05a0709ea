"""Peak memory of inference, in a fresh process on the CPU: `python benchmarks/memory.py --inference`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness.models import FORM_SETTINGS, architecture_of, batch_of, described, is_own, model_with, side_of

from fpg_zoo.evaluation.benchmark import peak_memory
from fpg_zoo.evaluation.timing import device_name

UNITS = {
    "batch": "images",
    "threads": "threads",
    "imported_mb": "MB resident before the model is there",
    "before_mb": "MB resident before the first pass",
    "peak_mb": "MB resident at most during a pass",
    "pass_mb": "MB, peak_mb - before_mb",
    "needed_mb": "MB, peak_mb - imported_mb",
}


def rows_of(
    name: str, weights: str, forms: Sequence[str], batches: Sequence[int], device: str, folder: Path
) -> list[dict[str, Any]]:
    """A row for each form and batch.

    Args:
        name: an architecture, or one with a tag.
        weights: as `harness.models.whose` gives them.
        forms: of `FORMS`.
        batches: images a pass.
        device: cpu, cuda or mps; MPS counts as the CPU, whose memory it shares.
        folder: for the weights, which the fresh process reads as it would anybody's.
    """
    architecture = name if is_own(name) else architecture_of(name)
    side = side_of(architecture)
    file = folder / "model.safetensors"
    model_with(name, weights).save_pretrained(file)
    rows: list[dict[str, Any]] = []
    for form in forms:
        for batch in batches:
            images = batch_of(architecture, batch)[0]
            dtype = torch.bfloat16 if form == "optimized_bf16" else torch.float32
            threads = torch.get_num_threads()
            memory = peak_memory(file, (side, side), batch, device, **FORM_SETTINGS[form])
            rows.append(
                {
                    "model": name,
                    "weights": weights,
                    "form": form,
                    "batch": batch,
                    "device": device_name(device),
                    "threads": threads,
                    "input": described(images.to(dtype)),
                    "imported_mb": round(memory.imported, 1),
                    "before_mb": round(memory.before, 1),
                    "peak_mb": round(memory.peak, 1),
                    "pass_mb": round(memory.peak - memory.before, 1),
                    "needed_mb": round(memory.needed, 1),
                }
            )
    return rows
