"""RoIAlign for graphs; legend as of `fpg_zoo.modeling.heads.roi_align`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from fpg_zoo.modeling.heads.roi_align import MultiLevelRoIAlign, bin_sums, pixel_table

# (maps (N, C, H, W) float32, RoIs (R, 5), P, pixels of the maps to one of the input) to (R, C, P, P).
RoIAlign = Callable[[Tensor, Tensor, int, float], Tensor]


def pooled(pooling: MultiLevelRoIAlign, pyramid: Sequence[Tensor], rois: Tensor, align: RoIAlign) -> Tensor:
    """As calling `pooling`, by another RoIAlign."""
    maps = pyramid[0]
    result = maps.new_zeros(rois.shape[0], maps.shape[1], pooling.pool, pooling.pool)
    levels = pooling.levels(rois)
    for level, stride in enumerate(pooling.strides):
        here = (levels == level).nonzero().squeeze(1)
        values = align(pyramid[level].float(), rois[here], pooling.pool, 1 / stride)
        result = result.index_copy(0, here, values.to(result.dtype))
    return result


def by_operator(maps: Tensor, rois: Tensor, pool: int, scale: float) -> Tensor:
    """torchvision's, which is written as ONNX's RoiAlign."""
    values: Tensor = roi_align(maps, rois, pool, spatial_scale=scale, sampling_ratio=0, aligned=True)
    return values


def by_tensors(maps: Tensor, rois: Tensor, pool: int, scale: float) -> Tensor:
    """Tensor operations of torch alone."""
    rois = F.pad(rois, (0, 0, 0, 1))  # so that there is one at least
    corners = rois[:, 1:] * scale - 0.5
    sums = bin_sums(pixel_table(maps), rois[:, 0], corners, pool, (maps.shape[2], maps.shape[3]))
    return sums.permute(0, 3, 1, 2)[:-1]
