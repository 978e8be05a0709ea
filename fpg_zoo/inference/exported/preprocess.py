"""From pixels of any size to the network's input, as a graph.

It is `fpg_zoo.modeling.preprocess` on a canvas of a fixed size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.modeling.preprocess import fixed_point_weights, normalize


def resized_sizes(height: Tensor, width: Tensor, config: PreprocessConfig) -> Tensor:
    """(2,) float64: the height and width that an image of this size, float64 scalars, is resized to."""
    if config.fixed_size is not None:
        return torch.tensor(config.fixed_size, dtype=torch.float64, device=height.device)
    scale = config.longest_side / torch.maximum(height, width)
    if config.shortest_side is not None:
        scale = torch.minimum(scale, config.shortest_side / torch.minimum(height, width))
    return (torch.stack((height, width)) * scale + 0.5).floor().clamp(min=1)


def to_canvas(images: Tensor, canvas: tuple[int, int], config: PreprocessConfig) -> tuple[Tensor, Tensor]:
    """Resize, normalize and lay images on a canvas, zero to the right of and below them.

    Args:
        images: (N, 3, h, w) uint8 RGB.
        canvas: (H, W) of the network's input, at least as large as what images are resized to.
        config: the model's.

    Returns:
        (N, 3, H, W) float32 and the sizes in it, (N, 2) int64.
    """
    number, _, height, width = images.shape
    whole = [torch.full((), side, dtype=torch.float64, device=images.device) for side in (height, width)]
    size = resized_sizes(whole[0], whole[1], config)
    upper, lower, down, below = _neighbours(whole[0], size[0], canvas[0])
    left, right, across, beside = _neighbours(whole[1], size[1], canvas[1])
    # The one pixel at the left and right border gets the whole weight; at the top and bottom the border row is taken
    # twice, each product cut off on its own.
    across = torch.where(left == right, 0.0, across)
    rows = [_between(images.index_select(2, row), left, right, across) for row in (upper, lower)]
    weights = fixed_point_weights(down[:, None])
    parts = [_shifted(row * weight, 16) for row, weight in zip(rows, weights, strict=True)]
    pixels = normalize(_shifted(parts[0] + parts[1] + 2, 2), config)
    return pixels * (below[:, None] & beside).to(pixels.dtype), size.long().expand(number, 2)


def _between(rows: Tensor, left: Tensor, right: Tensor, across: Tensor) -> Tensor:
    """(N, 3, H, W) int32 of rows (N, 3, H, w): between the pixels `left` and `right`, times 128."""
    first, second = fixed_point_weights(across)
    return _shifted(rows.index_select(3, left).int() * first + rows.index_select(3, right).int() * second, 4)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Values >= 0 shifted right; ONNX shifts unsigned integers only."""
    return torch.div(values, 2**bits, rounding_mode="floor")


def _neighbours(in_size: Tensor, out_size: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of `length` pixels of the canvas: the source pixels on either side of its center, the way between them,
    0..1, that its center lies from the first, and whether the resized image reaches it."""
    places = torch.arange(length, dtype=torch.float64, device=in_size.device)
    place = ((places + 0.5) * (1.0 / (out_size / in_size)) - 0.5).float()
    first = place.floor()
    last = (in_size - 1).float()
    ends = [torch.minimum(one.clamp(min=0), last).long() for one in (first, first + 1)]
    return ends[0], ends[1], place - first, places < out_size
