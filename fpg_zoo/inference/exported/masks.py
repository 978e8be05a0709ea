"""Mask maps pasted into an image, as a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from fpg_zoo.modeling.postprocess import MASK_THRESHOLD


def pasted(maps: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As `fpg_zoo.modeling.postprocess.paste_mask`, of all instances at a time.

    Args:
        maps: (N, K, S, S) float32 probabilities, 0..1.
        boxes: (N, K, 4) xyxy in pixels of the image; one without area has an empty mask.
        height, width: of the image in pixels.

    Returns:
        (N, K, height, width) bool.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = _reading(height, y1, y2, maps)
    columns = _reading(width, x1, x2, maps)
    return rows @ maps @ columns.transpose(-1, -2) >= MASK_THRESHOLD


def _reading(length: int, start: Tensor, end: Tensor, maps: Tensor) -> Tensor:
    """(N, K, length, S): by which factors the pixels of an axis read maps stretched from `start` to `end`, (N, K)."""
    side = maps.shape[-1]
    pixels, cells = (torch.arange(n, dtype=torch.float32, device=maps.device) for n in (length, side))
    extent = end - start
    scale = torch.where(extent > 0, side / extent.clamp(min=1e-6), 0.0)
    place = (pixels + (0.5 - start[..., None])) * scale[..., None] - 0.5
    factors = (1 - (place[..., None] - cells).abs()).clamp(min=0)
    return torch.where((extent > 0)[..., None, None], factors, 0.0)
