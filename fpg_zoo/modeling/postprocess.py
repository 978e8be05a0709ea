"""From instances in the network's frame to detections in the frame that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fpg_zoo.structures import Detections, Instances
from fpg_zoo.structures.boxes import clip

MASK_THRESHOLD = 0.5
_PASTED_AT_ONCE = 2**26  # pixels


def paste_mask(probabilities: Tensor, box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """One instance's mask in an image.

    The map is stretched over the box and read bilinearly at the pixels' centers, zero outside the map; a pixel belongs
    to the mask from 0.5 on. A value outside the box is always below 0.5, so that only pixels inside it are computed.

    Args:
        probabilities: (S, S) floating point in 0..1.
        box: x1, y1, x2, y2 in pixels of the image; it may reach beyond it, and one without area has an empty mask.
        size: height and width of the image in pixels.

    Returns:
        (height, width) bool, on the device of `probabilities`.
    """
    height, width = size
    mask = torch.zeros(height, width, dtype=torch.bool, device=probabilities.device)
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        return mask
    left, top = max(math.floor(x1 - 0.5), 0), max(math.floor(y1 - 0.5), 0)
    right, bottom = min(math.ceil(x2 + 0.5), width), min(math.ceil(y2 + 0.5), height)
    if right <= left or bottom <= top:
        return mask
    # Bilinear reading is a product of one factor along y and one along x.
    rows = _reading(top, bottom, y1, y2, probabilities)
    columns = _reading(left, right, x1, x2, probabilities)
    with torch.autocast(mask.device.type, enabled=False):  # in float32 whatever the network computes in
        values = rows @ probabilities.float() @ columns.T
    mask[top:bottom, left:right] = values >= MASK_THRESHOLD
    return mask


def _reading(first: int, last: int, start: float, end: float, probabilities: Tensor) -> Tensor:
    """(last - first, S) float32: by which factors these pixels read a map stretched from `start` to `end`."""
    size = len(probabilities)
    pixels, cells = (
        torch.arange(*limits, dtype=torch.float32, device=probabilities.device) for limits in ((first, last), (0, size))
    )
    place = (pixels + (0.5 - start)) * (size / (end - start)) - 0.5
    return (1 - (place[:, None] - cells).abs()).clamp_(min=0)


def _paste_one_by_one(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask maps (K, S, S) on boxes (K, 4) as (K, height, width) bool. Only pixels within the boxes are computed."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for index, box in enumerate(boxes.tolist()):
        masks[index] = paste_mask(maps[index], box, size)
    return masks


def _paste_some_at_a_time(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """As `_paste_one_by_one`, without knowing a box: all pixels of some masks, which take four bytes each."""
    some = max(_PASTED_AT_ONCE // (size[0] * size[1]), 1)
    masks = torch.empty(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for first in range(0, len(boxes), some):
        part = slice(first, first + some)
        masks[part] = paste_masks(maps[part], boxes[part], size)
    return masks


def paste_masks(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """As `paste_mask`, of all instances at a time, so that no box has to be known to the program.

    Args:
        maps: (..., K, S, S) floating point, probabilities, 0..1.
        boxes: (..., K, 4) xyxy in pixels of the image; one without area has an empty mask.
        size: height and width of the image in pixels.

    Returns:
        (..., K, height, width) bool.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.float()
        rows, columns = _readings(size[0], y1, y2, maps), _readings(size[1], x1, x2, maps)
        return rows @ maps @ columns.transpose(-1, -2) >= MASK_THRESHOLD


def _readings(length: int, start: Tensor, end: Tensor, maps: Tensor) -> Tensor:
    """(..., K, length, S): by which factors the pixels of an axis read maps stretched from `start` to `end`."""
    side = maps.shape[-1]
    pixels, cells = (torch.arange(n, dtype=torch.float32, device=maps.device) for n in (length, side))
    extent = end - start
    scale = torch.where(extent > 0, side / extent.clamp(min=1e-6), 0.0)
    place = (pixels + (0.5 - start[..., None])) * scale[..., None] - 0.5
    factors = (1 - (place[..., None] - cells).abs()).clamp(min=0)
    return torch.where((extent > 0)[..., None, None], factors, 0.0)


def to_detections(
    instances: Instances, size: tuple[int, int], output_size: tuple[int, int], class_names: tuple[str, ...]
) -> Detections:
    """Take one image's instances to another frame, and paste their masks there.

    Args:
        instances: K instances, boxes in pixels of the network's frame.
        size: (height, width) of the image in the network's frame, before padding.
        output_size: (height, width) of the frame that is wanted, in pixels.
        class_names: what labels stand for.

    Returns:
        K detections in the same order, on the same device; boxes within `output_size`, masks (K, height, width) of it.
    """
    scale_y, scale_x = size[0] / output_size[0], size[1] / output_size[1]
    x1, y1, x2, y2 = instances.boxes.unbind(-1)
    boxes = torch.stack((x1 / scale_x, y1 / scale_y, x2 / scale_x, y2 / scale_y), dim=-1)
    boxes = clip(boxes, output_size)  # dividing may round past the border
    masks = None
    if instances.mask_maps is not None:
        paste = _paste_one_by_one if boxes.device.type == "cpu" else _paste_some_at_a_time
        masks = paste(instances.mask_maps, boxes, output_size)
    return Detections(
        boxes=boxes,
        scores=instances.scores,
        labels=instances.labels,
        masks=masks,
        class_names=class_names,
        size=output_size,
    )
