"""Peak memory of a training step at 8 images of 640x640: `python benchmarks/memory.py [NAME ...]`.

Measured on a GPU where there is one, and predicted everywhere: a step of few images and one of twice as many run on
the CPU with account kept of every tensor (`ledger.py`), and what an image adds is added for the rest. Weights,
gradients and momenta count; what kernels take for themselves does not. Beside it the published column, of the
reference's training.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import replace
from typing import Any

import torch
from harness import write
from ledger import Ledger

import fpg_zoo
from fpg_zoo.config import DetectorConfig, FPGConfig, RetinaNetConfig
from fpg_zoo.modeling.detectors import Detector, build_detector
from fpg_zoo.training import Criterion
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import RECIPES
from fpg_zoo.training.recomputing import recompute_grid

SIDE, IMAGES = 640, 8
OBJECTS = 7  # of an image, as COCO's have on average
TWO_WIDTHS = "retinanet_r50_fpg_chn128"
SAVED = 0.5  # of the published column, at most, with all that saves memory


def step(model: Detector, images: int, *, bf16: bool) -> None:
    """One step of training, from a batch to moved weights."""
    torch.manual_seed(0)
    device = model.device
    corners = torch.rand(OBJECTS, 2, device=device) * 400
    boxes = torch.cat((corners, corners + 30 + torch.rand(OBJECTS, 2, device=device) * 180), dim=1)
    masks = torch.zeros(OBJECTS, SIDE, SIDE, dtype=torch.bool, device=device)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    truth = {"boxes": boxes, "labels": torch.arange(OBJECTS, device=device), "masks": masks}
    optimizer = build_optimizer(model, RECIPES["crop640_50e"].schedule)
    criterion = Criterion(model)
    batch = torch.randn(images, 3, SIDE, SIDE, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        losses = criterion(batch, [(SIDE, SIDE)] * images, [truth] * images)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def variants(name: str) -> dict[str, DetectorConfig]:
    """An architecture's configs by what to call them; of the row that circulates with two widths of towers, both."""
    config = fpg_zoo.model_info(name).config
    if name != TWO_WIDTHS or not isinstance(config, RetinaNetConfig):
        return {name: config}
    return {
        f"{name}, towers {width} wide": replace(config, head=replace(config.head, width=width)) for width in (256, 128)
    }


def fresh(config: DetectorConfig, *, saving: bool, device: str) -> Detector:
    """A model in train mode; its grid is computed twice if memory is to be saved and it has one."""
    model = build_detector(config).to(device)
    if saving and isinstance(config.neck, FPGConfig):
        recompute_grid(model)
    return model


def predicted(config: DetectorConfig, *, saving: bool) -> float:
    """GB of a step of `IMAGES` images, from steps of few and twice as many.

    Where activations are few, the peak of the smallest step is that of the optimiser's; so those begin with more.
    """
    few = 2 if saving else 1
    peaks: list[float] = []
    for images in (few, 2 * few):
        model = fresh(config, saving=saving, device="cpu")
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        with Ledger() as ledger:
            step(model, images, bf16=saving)
        peaks.append(weights + ledger.peak)
        del model
        gc.collect()
    return (peaks[0] + (IMAGES - few) / few * (peaks[1] - peaks[0])) / 1e9


def measured(config: DetectorConfig, *, saving: bool) -> float:
    """GB that torch's allocator had given out at the peak of a step on the GPU."""
    model = fresh(config, saving=saving, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    step(model, IMAGES, bf16=saving)
    return float(torch.cuda.max_memory_allocated()) / 1e9


def row(label: str, config: DetectorConfig, published: float | None) -> dict[str, Any]:
    """What is recorded of a config."""
    found: dict[str, Any] = {"model": label, "images": IMAGES, "side": SIDE, "published_gb": published}
    for kind, saving in (("fp32", False), ("checkpointed_bf16", True)):
        found[f"predicted_{kind}_gb"] = round(predicted(config, saving=saving), 2)
        found[f"measured_{kind}_gb"] = round(measured(config, saving=saving), 2) if torch.cuda.is_available() else None
    # The grid is what is computed twice; other necks only have bf16 to save with.
    found["within_limit"] = (
        not isinstance(config.neck, FPGConfig)
        or published is None
        or found["predicted_checkpointed_bf16_gb"] <= SAVED * published
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=fpg_zoo.list_models("*_r50_*"))
    rows: list[dict[str, Any]] = []
    for name in parser.parse_args().names:
        published = fpg_zoo.model_info(name).checkpoints[0].memory_gb
        for label, config in variants(name).items():
            rows.append(row(label, config, published))
            print(rows[-1], flush=True)
    print(write("memory", "python benchmarks/memory.py", rows, device="cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
