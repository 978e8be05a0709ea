"""From instances in the network's frame to detections in the frame that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fpg_zoo.boxes import clip
from fpg_zoo.structures import Detections, Instances

MASK_THRESHOLD = 0.5


def paste_mask(probabilities: Tensor, box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """One instance's mask in an image.

    The map is stretched over the box and read bilinearly at the pixels' centres, zero outside the map; a pixel belongs
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
    x = (torch.arange(left, right, device=mask.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom, device=mask.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)
    values = F.grid_sample(probabilities[None, None], grid[None].to(probabilities), align_corners=False)
    mask[top:bottom, left:right] = values[0, 0] >= MASK_THRESHOLD
    return mask


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
    boxes = instances.boxes / instances.boxes.new_tensor((scale_x, scale_y, scale_x, scale_y))
    boxes = clip(boxes, output_size)  # dividing may round past the border
    masks = None
    if instances.mask_maps is not None:
        masks = torch.zeros(len(boxes), *output_size, dtype=torch.bool, device=boxes.device)
        for index, box in enumerate(boxes.tolist()):
            masks[index] = paste_mask(instances.mask_maps[index], box, output_size)
    return Detections(
        boxes=boxes,
        scores=instances.scores,
        labels=instances.labels,
        masks=masks,
        class_names=class_names,
        size=output_size,
    )
