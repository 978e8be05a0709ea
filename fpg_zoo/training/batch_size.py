"""The batch size that the memory takes: tried on a GPU, predicted on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from fpg_zoo.errors import ConfigError, is_out_of_memory
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.tensor_memory import Ledger
from fpg_zoo.training.criterion import Criterion
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import Recipe

_OBJECTS = 7  # of an image, as COCO's have on average
_SHARE = 0.7  # of the memory that is free: kernels, and images with more objects, take some
_PREDICTED_FROM = 2  # images, and twice as many


def find_batch_size(make_model: Callable[[], Detector], recipe: Recipe, amp: torch.dtype | None, most: int) -> int:
    """The greatest power of two of images whose training step fits.

    Args:
        make_model: gives a model of its own, on its device, for each step that is tried.
        recipe: that it will be trained by.
        amp: the precision that autocast computes in; None for float32.
        most: images.

    Raises:
        ConfigError: not even one image fits.
    """
    device = make_model().device
    fits = _fits_on_gpu if device.type == "cuda" else _predicted_to_fit
    best = fits(make_model, recipe, amp, most)
    if best < 1:
        raise ConfigError(
            f"a training step of one image does not fit in the memory of {device}: choose a smaller model"
        )
    return best


def _fits_on_gpu(make_model: Callable[[], Detector], recipe: Recipe, amp: torch.dtype | None, most: int) -> int:
    best, images = 0, 1
    while images <= most:
        try:
            torch.cuda.empty_cache()
            model = make_model()
            _step(model, recipe, amp, images)
            memory = torch.cuda.get_device_properties(model.device).total_memory
            if torch.cuda.max_memory_reserved(model.device) > 0.95 * memory:
                break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        best, images = images, 2 * images
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return best


def _predicted_to_fit(make_model: Callable[[], Detector], recipe: Recipe, amp: torch.dtype | None, most: int) -> int:
    """A step's bytes grow with the images; two steps say how."""
    peaks = []
    for images in (_PREDICTED_FROM, 2 * _PREDICTED_FROM):
        model = make_model()
        with Ledger() as ledger:
            _step(model, recipe, amp, images)
        peaks.append(ledger.peak)
    of_image = max((peaks[1] - peaks[0]) / _PREDICTED_FROM, 1)
    room = (_SHARE * _free_bytes() - (peaks[0] - _PREDICTED_FROM * of_image)) / of_image
    best = 1
    while 2 * best <= min(room, most):
        best *= 2
    return best if room >= 1 else 0


def _free_bytes() -> float:
    """Of the machine's memory, what can be had now."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(1024.0 * int(line.split()[1]) for line in stream if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _step(model: Detector, recipe: Recipe, amp: torch.dtype | None, images: int) -> None:
    """A training step of random pixels and boxes, as large as an augmented image is at most."""
    config, device = model.config, model.device
    side = recipe.augment(config).crop
    side += -side % config.preprocess.pad_divisor
    corners = torch.rand(_OBJECTS, 2, device=device) * side * 0.6
    boxes = torch.cat((corners, corners + side * 0.3), dim=1)
    target = {"boxes": boxes, "labels": torch.zeros(_OBJECTS, dtype=torch.int64, device=device)}
    if config.has_masks:
        target["masks"] = torch.ones(_OBJECTS, side, side, dtype=torch.bool, device=device)
    criterion = Criterion(model.train(), frozen_stages=recipe.frozen_stages, sampling=recipe.sampling)
    optimizer = build_optimizer(model, recipe.schedule)
    batch = torch.rand(images, 3, side, side, device=device)
    with torch.autocast(device.type, dtype=amp or torch.bfloat16, enabled=amp is not None):
        losses = criterion(batch, [(side, side)] * images, [target] * images)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
