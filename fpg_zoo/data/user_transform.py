"""A user's own augmentation: called with a sample, made repeatable, and what it returns checked."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from fpg_zoo.data.random_state import seeded
from fpg_zoo.errors import ConfigError
from fpg_zoo.structures.boxes import has_area
from fpg_zoo.text import printable, quoted

AugmentCallable = Callable[[Tensor, dict[str, Tensor], np.random.Generator], tuple[Tensor, dict[str, Tensor]]]
"""A function of an image, its target and a generator, which returns an image and a target.

The image is (3, h, w) uint8 RGB, a `tv_tensors.Image`. The target has `boxes` (G, 4) float32 xyxy in pixels of the
image, a `tv_tensors.BoundingBoxes`, and `labels` (G,) int64. With a dataset that has masks it has `masks` (G, h, w)
bool, a `tv_tensors.Mask`, and `has_mask` (G,) bool where an object has none. So transforms of
`torchvision.transforms.v2` take both. What is returned has the same names, types and frame, as plain tensors or not: an
image of 1 to `crop` pixels a side, boxes within it, each with an area. It may have other objects, or none. What is
given may be changed in place.

The generator depends on seed, epoch and image alone, and so do torch's (on the CPU), numpy's and Python's own random
numbers while the function runs.
"""

_NAMES = ("boxes", "labels", "masks", "has_mask")


def check_transform(transform: AugmentCallable, workers: int) -> None:
    """Whether a transform can be called, and be handed to so many workers.

    Raises:
        ConfigError: it is no function, or worker processes are not forked, and it cannot be pickled.
    """
    if not callable(transform):
        raise ConfigError(f"transform={quoted(transform)}: give a function of an image, a target and a generator")
    if not workers or multiprocessing.get_start_method() == "fork":
        return
    try:
        ForkingPickler.dumps(transform)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"transform={quoted(transform)}: worker processes are started anew here, and it cannot be handed to them "
            f"({printable(error)}); define it at the top of a module that can be imported, or use workers=0"
        ) from None


def transformed(
    transform: AugmentCallable,
    image: Tensor,
    target: dict[str, Tensor],
    generator: np.random.Generator,
    *,
    crop: int,
    classes: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a transform makes of a sample.

    Args:
        transform: the user's.
        image, target: as of `fpg_zoo.data.augment.Augmented`.
        generator: what its randomness comes from.
        crop: pixels; the greatest side that it may return.
        classes: of the data set.

    Returns:
        Image and target, plain tensors.

    Raises:
        ConfigError: it returned something else than it is to.
    """
    size = (image.shape[-2], image.shape[-1])
    given: dict[str, Tensor] = dict(target)
    given["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    if "masks" in target:
        given["masks"] = tv_tensors.Mask(target["masks"])
    with seeded(generator):
        # A copy, as the pixels may be those that a dataset keeps.
        returned = transform(tv_tensors.Image(image.clone()), given, generator)
    if problem := _problem(returned, "masks" in target, crop, classes):
        raise ConfigError(f"transform={quoted(transform)}: it returned {problem}")
    other, changed = returned
    return _plain(other), {name: _plain(value) for name, value in changed.items()}


def _plain(value: Tensor) -> Tensor:
    return value.detach().as_subclass(Tensor).contiguous()


def _problem(returned: Any, has_masks: bool, crop: int, classes: int) -> str | None:
    """What is wrong with what a transform returned; None if nothing is."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        return f"{quoted(type(returned))}, and is to return an image and a target"
    image, target = returned
    if not isinstance(target, dict) or not all(isinstance(value, Tensor) for value in target.values()):
        return f"the target {quoted(target)}, which is to be a dict of tensors"
    expected = {*_NAMES[:2], *(_NAMES[2:3] if has_masks else ())}
    if not expected <= target.keys() <= {*expected, *(_NAMES[3:] if has_masks else ())}:
        return f"a target of {quoted(sorted(map(str, target)))}, which is to have {', '.join(sorted(expected))}"
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        return f"an image {_kind(image)}, which is to be (3, h, w) uint8"
    height, width = image.shape[-2:]
    if not (1 <= height <= crop and 1 <= width <= crop):
        return f"an image of {width}x{height} pixels, which is to have 1 to {crop} a side"
    for value in (image, *target.values()):
        if value.device.type != "cpu":
            return f"a tensor on {value.device}, which is to be on the CPU"
    boxes, count = target["boxes"], len(target["boxes"]) if target["boxes"].ndim else 0
    kinds = {
        "boxes": ((count, 4), torch.float32),
        "labels": ((count,), torch.int64),
        "masks": ((count, height, width), torch.bool),
        "has_mask": ((count,), torch.bool),
    }
    for name, value in target.items():
        shape, dtype = kinds[name]
        if tuple(value.shape) != shape or value.dtype != dtype:
            return f"{name} {_kind(value)}, which are to be {shape} {str(dtype).removeprefix('torch.')}"
    if isinstance(boxes, tv_tensors.BoundingBoxes) and boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
        return f"boxes as {printable(boxes.format)}, which are to be xyxy"
    plain = boxes.detach().as_subclass(Tensor)
    inside = has_area(plain) & (plain >= 0).all(1) & (plain <= plain.new_tensor([width, height, width, height])).all(1)
    for index in (~inside).nonzero().flatten().tolist():
        return f"the box {plain[index].tolist()}, which is to lie in the image of {width}x{height} and to have an area"
    labels = target["labels"]
    for label in labels[(labels < 0) | (labels >= classes)].tolist():
        return f"the label {label}, which is to be in 0..{classes - 1}"
    return None


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return quoted(type(value))
