"""Peak memory of a training step at 8 images of 640x640: `python benchmarks/memory.py [NAME ...]`.

Measured on a GPU where there is one, and predicted everywhere: a step of few images and one of twice as many run on
the CPU with account kept of every tensor (`fpg_zoo.modeling.tensor_memory`), and what an image adds is added for the
rest. Weights, gradients and momenta count; what kernels take for themselves does not. Beside it the published column,
of the reference's training.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness.measure import write
from harness.models import config_of, is_own, whose
from harness.options import named, parsed, parser_of, write_rows
from inference_memory import UNITS, rows_of

import fpg_zoo
from fpg_zoo.config import DetectorConfig, FPGConfig, RetinaHeadConfig, RetinaNetConfig
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.tensor_memory import Ledger
from fpg_zoo.training import Criterion
from fpg_zoo.training.activation_checkpointing import apply_activation_checkpointing
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import RECIPES

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
    target = {"boxes": boxes, "labels": torch.arange(OBJECTS, device=device), "masks": masks}
    optimizer = build_optimizer(model, RECIPES["crop640_50e"].schedule)
    criterion = Criterion(model)
    batch = torch.randn(images, 3, SIDE, SIDE, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        losses = criterion(batch, [(SIDE, SIDE)] * images, [target] * images)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def variants(name: str) -> dict[str, DetectorConfig]:
    """An architecture's configs by what to call them; of the row that circulates with two widths of towers, both."""
    config = config_of(name)
    if name != TWO_WIDTHS or not isinstance(config, RetinaNetConfig):
        return {name: config}
    assert isinstance(config.head, RetinaHeadConfig)
    heads = {width: replace(config.head, width=width) for width in (256, 128)}
    return {f"{name}, towers {width} wide": replace(config, head=head) for width, head in heads.items()}


def fresh(config: DetectorConfig, *, saving: bool, device: str) -> Detector:
    """A model in train mode; its grid is computed twice if memory is to be saved and it has one."""
    model = build_detector(config).to(device)
    if saving and isinstance(config.neck, FPGConfig):
        apply_activation_checkpointing(model)
    return model


def predicted(config: DetectorConfig, *, saving: bool) -> float:
    """GB of a step of `IMAGES` images, from steps of few and twice as many.

    Where activations are few, the peak of the smallest step is that of the optimizer's; so those begin with more.
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
    result: dict[str, Any] = {"model": label, "images": IMAGES, "side": SIDE, "published_gb": published}
    for precision, saving in (("fp32", False), ("checkpointed_bf16", True)):
        result[f"predicted_{precision}_gb"] = round(predicted(config, saving=saving), 2)
        result[f"measured_{precision}_gb"] = (
            round(measured(config, saving=saving), 2) if torch.cuda.is_available() else None
        )
    # The grid is what is computed twice; other necks only have bf16 to save with.
    result["within_limit"] = (
        not isinstance(config.neck, FPGConfig)
        or published is None
        or result["predicted_checkpointed_bf16_gb"] <= SAVED * published
    )
    return result


def training(patterns: Sequence[str]) -> Path:
    """Measure, predict and record training."""
    rows: list[dict[str, Any]] = []
    for name in named(patterns):
        checkpoints = () if is_own(name) else fpg_zoo.model_info(name).checkpoints
        published = checkpoints[0].memory_gb if checkpoints else None
        for label, config in variants(name).items():
            rows.append(row(label, config, published))
            print(rows[-1], flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns = [
        f"{how}_{precision}_gb" for how in ("predicted", "measured") for precision in ("fp32", "checkpointed_bf16")
    ]
    units = {"images": "images", "side": "pixels", **dict.fromkeys(["published_gb", *columns], "GB")}
    inputs = {"what": f"noise, {OBJECTS} boxes and masks an image", "shape": [IMAGES, 3, SIDE, SIDE], "seed": 0}
    return write("memory", "python benchmarks/memory.py", rows, device=device, inputs=inputs, units=units)


def inference(options: argparse.Namespace) -> Path:
    """Measure and record inference, row by row."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in named(options.patterns):
            rows += rows_of(name, whose(name), options.forms, options.batch, options.device, Path(folder))
            for result in rows[-len(options.forms) * len(options.batch) :]:
                print(
                    f"{name:28} {result['form']:15} batch {result['batch']}: {result['needed_mb']:.0f} MB", flush=True
                )
            target = write_rows("memory_inference", rows, options.device, units=UNITS)
    return target


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--inference", action="store_true", help="of a pass; all other options are of this")
    options = parsed(parser)
    print(inference(options) if options.inference else training(options.patterns))


if __name__ == "__main__":
    main()
