"""Time of a training step: `python benchmarks/training_step.py [NAME ...]`.

The loop's step (channels-last maps, RoIAlign rearranged) against the plain one (rows of channels, as torch makes
models, torchvision's RoIAlign), both in float32, in turn in one run; and what bfloat16 and computing the grid twice
cost or save beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from harness.measure import command_line, commit, measure_in_turn, write

import fpg_zoo
from fpg_zoo.modeling.heads import roi_align as pooling
from fpg_zoo.training import Criterion
from fpg_zoo.training.activation_checkpointing import apply_activation_checkpointing
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import RECIPES

IMAGES = 2
OBJECTS = 7  # of an image, as COCO's have on average
FORMS = {
    "rearranged": {},
    "bf16": {"bf16": True},
    "checkpointed": {"twice": True},
    "checkpointed_bf16": {"bf16": True, "twice": True},
}


def stepper(
    name: str, *, plain: bool = False, bf16: bool = False, twice: bool = False, number: int = IMAGES
) -> Callable[[], None]:
    """A step of training on one batch of that many images, to be repeated."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = fpg_zoo.create_model(name, device=device).train()
    form = torch.contiguous_format if plain else torch.channels_last
    model.to(memory_format=form)
    if twice:
        apply_activation_checkpointing(model)
    side = model.config.preprocess.longest_side
    side += -side % model.config.preprocess.pad_divisor
    recipe = RECIPES["scratch" if "nano" in name else "crop640_50e"]
    criterion = Criterion(model, frozen_stages=recipe.frozen_stages, sampling=recipe.sampling)
    optimizer = build_optimizer(model, recipe.schedule)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay, so that every step does the same
    corners = torch.rand(OBJECTS, 2, device=device) * side * 0.6
    boxes = torch.cat((corners, corners + side * (0.05 + 0.3 * torch.rand(OBJECTS, 2, device=device))), dim=1)
    masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool, device=device)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    target = {"boxes": boxes, "labels": torch.arange(OBJECTS, device=device), "masks": masks}
    images = torch.randn(number, 3, side, side, device=device).contiguous(memory_format=form)

    def step() -> None:
        torch.manual_seed(0)
        optimizer.zero_grad()
        arranged = mock.patch.object(pooling, "_aligned", pooling.by_torchvision) if plain else contextlib.nullcontext()
        with arranged, torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            losses = criterion(images, [(side, side)] * number, [target] * number)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["retinanet_r50_fpg_chn128", "mask_rcnn_nano_fpg"])
    parser.add_argument("--runs", type=int, default=3, help="pairs of timings")
    options = parser.parse_args()
    commit()
    rows: list[dict[str, Any]] = []
    for name in options.names:
        plain = stepper(name, plain=True)
        for form, settings in FORMS.items():
            before, after, ratio = measure_in_turn(plain, stepper(name, **settings), runs=options.runs)
            rows.append(
                {
                    "model": name,
                    "images": IMAGES,
                    "form": form,
                    "baseline": "plain: float32, rows of channels, torchvision's RoIAlign, in the same run",
                    "plain_seconds": dataclasses.asdict(before),
                    "seconds": dataclasses.asdict(after),
                    "plain_over_this": dataclasses.asdict(ratio),
                }
            )
            print(
                name,
                form,
                f"{before.median:.2f} s plain, {after.median:.2f} s, {ratio.median:.2f} times as fast",
                flush=True,
            )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = {"what": f"noise of the model's padded size, {OBJECTS} boxes and masks an image", "seed": 0}
    units = {"images": "images", "plain_seconds": "s", "seconds": "s", "plain_over_this": "plain_seconds / seconds"}
    print(write("training_step", command_line(), rows, device=device, inputs=inputs, units=units))


if __name__ == "__main__":
    main()
