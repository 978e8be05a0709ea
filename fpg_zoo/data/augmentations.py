"""What an image can be varied by beside the recipe's scale, crop and flip.

Legend: an image is (3, h, w) uint8 RGB, a target what `fpg_zoo.data.augment.Augmented` has. Neither is changed in
place. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from fpg_zoo.data.random_state import seeded
from fpg_zoo.structures.boxes import clip, has_area

Target = dict[str, Tensor]

_GRAY = 114  # of what no image covers in a mosaic; near the mean of photographs
_LEAST_SIDE = 4  # pixels; RandomIoUCrop divides by three tenths of a side, rounded down
_iou_crop, _photometric = v2.RandomIoUCrop(), v2.RandomPhotometricDistort()


class Window(NamedTuple):
    """A part of an image.

    Attributes:
        corner: (top, left) in pixels.
        size: (height, width) in pixels.
        seen: (G,) bool, the objects that count as being in it.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    seen: np.ndarray


def whole(size: tuple[int, int], objects: int) -> Window:
    """All of an image of `size` (height, width), with so many objects."""
    return Window((0, 0), size, np.ones(objects, dtype=np.bool_))


def draw_window(size: tuple[int, int], boxes: np.ndarray, generator: np.random.Generator) -> Window:
    """A part that overlaps an object by a random IoU at least, or all of the image: torchvision's `RandomIoUCrop`.

    Args:
        size: (height, width) of the image.
        boxes: (G, 4) float32 xyxy. Without one, all of the image is taken.
        generator: what the part is drawn from.

    Returns:
        The part. Objects are seen whose center is in it, at least one.
    """
    if not len(boxes) or min(size) < _LEAST_SIDE:
        return whole(size, len(boxes))
    image = torch.zeros(1, 1, 1, dtype=torch.uint8, device="cpu").expand(3, *size)  # only its size is looked at
    annotated = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)
    with seeded(generator):
        drawn = _iou_crop.make_params([tv_tensors.Image(image), annotated])
    if not drawn:
        return whole(size, len(boxes))
    seen = drawn["is_within_crop_area"].numpy()
    return Window((drawn["top"], drawn["left"]), (drawn["height"], drawn["width"]), seen)


def distort_colors(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Other brightness, contrast, saturation, hue and order of channels: torchvision's `RandomPhotometricDistort`."""
    with seeded(generator):
        distorted: Tensor = _photometric(image)
    return distorted


def rotate(image: Tensor, target: Target, turns: int) -> tuple[Tensor, Target]:
    """A turn to the left by `turns` times 90 degrees."""
    boxes, width = target["boxes"], image.shape[-1]
    for turn in range(turns):
        x1, y1, x2, y2 = boxes.unbind(1)
        side = width if turn % 2 == 0 else image.shape[-2]  # the width before this turn
        boxes = torch.stack((y1, side - x2, y2, side - x1), dim=1)
    turned = target | {"boxes": boxes}
    if "masks" in target:
        turned["masks"] = target["masks"].rot90(turns, (-2, -1)).contiguous()
    return image.rot90(turns, (-2, -1)).contiguous(), turned


def paste(
    image: Tensor, target: Target, source: Tensor, source_target: Target, chosen: Tensor
) -> tuple[Tensor, Target]:
    """Objects of another image pasted onto this one, at the same place (Ghiasi et al., arXiv 2012.07177).

    Their pixels cover what is there, without blending, which the paper found no worse. A mask keeps what is not
    covered. Where some is covered, the box becomes that around the rest. An object is left out when nothing of its mask
    remains, or, if it has none, of its box.

    Args:
        image, target: what is pasted onto.
        source, source_target: an image of any size, with masks.
        chosen: (K,) int64, which of its objects. Of those, what reaches out of `image` is cut off, and what lies out of
            it left out.

    Returns:
        The image and its target: what was there first, then what was pasted.
    """
    height, width = image.shape[-2:]
    beyond = (0, width - source.shape[-1], 0, height - source.shape[-2])  # negative where `source` is larger
    pixels = functional.pad(source, beyond)
    masks = functional.pad(source_target["masks"][chosen], beyond)
    boxes = clip(source_target["boxes"][chosen], (height, width))
    kept = masks.any(-1).any(-1) & has_area(boxes)
    boxes, masks = boxes[kept], masks[kept]
    pasted = {"boxes": boxes, "labels": source_target["labels"][chosen][kept], "masks": masks}
    cover = masks.any(0)
    return torch.where(cover, pixels, image), joined_targets([_uncovered(target, cover), pasted])


def _uncovered(target: Target, cover: Tensor) -> Target:
    """What remains to be seen of objects under `cover`, (h, w) bool."""
    boxes, masks = target["boxes"].clone(), target["masks"]
    rest = masks & ~cover
    has_pixels, remains = masks.any(-1).any(-1), rest.any(-1).any(-1)
    for index in (~has_pixels).nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        remains[index] = not cover[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)].all()
    changed = has_pixels & remains & (masks & cover).any(-1).any(-1)
    if changed.any():
        around = masks_to_boxes(rest[changed])
        boxes[changed] = around + around.new_tensor((0, 0, 1, 1))  # to the far edge of the last pixel
    return {name: value[remains] for name, value in (target | {"boxes": boxes, "masks": rest}).items()}


class Part(NamedTuple):
    """An image in its place in a larger one.

    Attributes:
        image, target: the image, all of which is in the larger one.
        corner: (top, left) of its place.
    """

    image: Tensor
    target: Target
    corner: tuple[int, int]


def put_together(parts: Sequence[Part], size: tuple[int, int]) -> tuple[Tensor, Target]:
    """Images, each in its place, on a gray one of `size` (height, width)."""
    image = torch.full((3, *size), _GRAY, dtype=torch.uint8, device="cpu")
    targets = []
    for part in parts:
        (top, left), (height, width) = part.corner, part.image.shape[-2:]
        image[:, top : top + height, left : left + width] = part.image
        target = part.target | {"boxes": part.target["boxes"] + torch.tensor([left, top, left, top])}
        if "masks" in target:
            around = (left, size[1] - left - width, top, size[0] - top - height)
            target["masks"] = functional.pad(target["masks"], around)
        targets.append(target)
    return image, joined_targets(targets)


def joined_targets(targets: Sequence[Target]) -> Target:
    """One target of several that have masks of one size, or all none."""
    merged = {name: torch.cat([target[name] for target in targets]) for name in targets[0] if name != "has_mask"}
    if any("has_mask" in target for target in targets):
        have = [target.get("has_mask", torch.ones_like(target["labels"], dtype=torch.bool)) for target in targets]
        merged["has_mask"] = torch.cat(have)
    return merged
