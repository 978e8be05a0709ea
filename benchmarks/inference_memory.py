"""Peak memory of inference, in a fresh process on the CPU: `python benchmarks/memory.py --inference`."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness.measure import device_name, in_a_process
from harness.models import FORMS, batch_of, described, model_with

import fpg_zoo

UNITS = {
    "batch": "images",
    "threads": "threads",
    "imported_mb": "MB resident before the model is there",
    "before_mb": "MB resident before the first pass",
    "peak_mb": "MB resident at most during a pass",
    "pass_mb": "MB, peak_mb - before_mb",
    "needed_mb": "MB, peak_mb - imported_mb",
}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    architecture = name.partition(".")[0]
    file = folder / "model.safetensors"
    model_with(name, weights).save_pretrained(file)
    rows: list[dict[str, Any]] = []
    for form in forms:
        for batch in batches:
            images = batch_of(architecture, batch)[0]
            dtype = torch.bfloat16 if form == "optimized_bf16" else torch.float32
            threads = torch.get_num_threads()
            peak = in_a_process(peaks, architecture, file, form, batch, device, threads)
            rows.append(
                {
                    "model": name,
                    "weights": weights,
                    "form": form,
                    "batch": batch,
                    "device": device_name(device),
                    "threads": threads,
                    "input": described(images.to(dtype)),
                    **peak,
                    "pass_mb": round(peak["peak_mb"] - peak["before_mb"], 1),
                    "needed_mb": round(peak["peak_mb"] - peak["imported_mb"], 1),
                }
            )
    return rows


def peaks(name: str, weights: Path, form: str, batch: int, device: str, threads: int) -> dict[str, float]:
    """Memory of this process, fresh, in MB: with all imported, with the model there, and at most while it detects.

    Of a GPU, what torch's allocator has given out.
    """
    torch.set_num_threads(threads)
    on_gpu = device.startswith("cuda")
    images, sizes = batch_of(name, batch)
    imported = 0.0 if on_gpu else resident()
    model = FORMS[form](fpg_zoo.create_model(checkpoint=weights, device=device))
    gc.collect()
    images = images.to(model.device, model.dtype)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        with contextlib.suppress(OSError):  # not every system can; the peak of making the model then counts, too
            _RESET.write_text("5")
        before = resident()
    for _ in range(2):
        model.detect(images, sizes)
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else resident(peak=True)
    return {"imported_mb": round(imported, 1), "before_mb": round(before, 1), "peak_mb": round(peak, 1)}


def resident(*, peak: bool = False) -> float:
    """MB of this process in memory, now or at most; at most in either case where there is no /proc.

    Not by getrusage where it can be helped: a process begins with the peak of the one that started it.
    """
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024 / 1e6
