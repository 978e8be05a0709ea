"""Anchors: the boxes that dense heads refine, centered on the cells' top-left corners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fpg_zoo.config import AnchorConfig
from fpg_zoo.uploads import small_to_device


def cell_anchors(stride: int, config: AnchorConfig) -> Tensor:
    """(A, 4) float32 xyxy around the origin, in pixels; ratio h/w outer, scale inner."""
    sizes = [
        (stride * scale * math.sqrt(1 / ratio), stride * scale * math.sqrt(ratio))
        for ratio in config.ratios
        for scale in config.scales
    ]
    corners = [(-w / 2, -h / 2, w / 2, h / 2) for w, h in sizes]
    return torch.tensor(corners, dtype=torch.float32, device="cpu")


def level_anchors(height: int, width: int, stride: int, config: AnchorConfig, device: torch.device) -> Tensor:
    """All anchors of a map of `height` x `width` cells.

    Returns:
        (height * width * A, 4) float32 xyxy in input pixels; rows outermost, then columns, then the cell's anchors.
        The cell in row i and column j is centered at (j * stride, i * stride).
    """
    x = torch.arange(width, device=device) * stride
    y = torch.arange(height, device=device) * stride
    centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack((centre_x, centre_y, centre_x, centre_y), dim=-1)
    return (centres[:, :, None] + small_to_device(cell_anchors(stride, config), device)).reshape(-1, 4)


def anchors_like(maps: Sequence[Tensor], config: AnchorConfig) -> list[Tensor]:
    """Anchors of each level for head outputs `maps` of (N, C, H_l, W_l); see `level_anchors`."""
    return [
        level_anchors(level.shape[-2], level.shape[-1], stride, config, level.device)
        for level, stride in zip(maps, config.strides, strict=True)
    ]


def anchors_within(maps: Sequence[Tensor], config: AnchorConfig, size: tuple[int, int]) -> Tensor | slice:
    """Which anchors of `anchors_like` are of the cells that begin within the first (height, width) pixels.

    Returns:
        (A,) bool over all levels, or a slice of all where all are.
    """
    cells = [
        (min(-(-size[0] // stride), level.shape[-2]), min(-(-size[1] // stride), level.shape[-1]))
        for level, stride in zip(maps, config.strides, strict=True)
    ]
    if all(cell == level.shape[-2:] for cell, level in zip(cells, maps, strict=True)):
        return slice(None)
    flags = []
    for (rows, columns), level in zip(cells, maps, strict=True):
        flag = torch.zeros(*level.shape[-2:], config.per_cell, dtype=torch.bool, device=level.device)
        flag[:rows, :columns] = True
        flags.append(flag.flatten())
    return torch.cat(flags)


def per_anchor(x: Tensor, values: int) -> Tensor:
    """A head's output (N, A * values, H, W) as (N, H * W * A, values), in the order of `level_anchors`."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
