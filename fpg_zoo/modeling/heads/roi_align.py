"""RoIAlign (arXiv 1703.06870) of RoIs from the pyramid level that suits each.

Legend: R RoIs over the whole batch, P the pooled size. RoIs are (R, 5): (image index, x1, y1, x2, y2) in input
pixels. A bin is one of an RoI's P x P cells; along an axis it has G sample points, and reads T pixels for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

_LONG = 5  # pixels of a bin, beyond which an RoI is long
FINEST_SCALE = 56  # RoIs up to twice this size in pixels, sqrt(w * h), are pooled from the finest level


def boxes_to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Each image's boxes (K_i, 4) as one (R, 5)."""
    return torch.cat([F.pad(image_boxes, (1, 0), value=float(i)) for i, image_boxes in enumerate(boxes)])


class MultiLevelRoIAlign:
    """RoIAlign, half-pixel aligned, adaptive sampling, each RoI from the one level that suits its size."""

    def __init__(self, strides: Sequence[int], pool: int) -> None:
        self.strides = tuple(strides)
        self.pool = pool

    def levels(self, rois: Tensor) -> Tensor:
        """(R,) int64: floor(log2(sqrt(w * h) / 56)), limited to the levels there are."""
        size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        level = torch.floor(torch.log2(size / FINEST_SCALE + 1e-6))
        return level.nan_to_num(0).clamp(0, len(self.strides) - 1).long()

    def __call__(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Maps (N, W, H_l, W_l) of at least these strides and RoIs (R, 5) to (R, W, P, P), channels last."""
        maps = pyramid[0]
        pooled = maps.new_empty(len(rois), self.pool, self.pool, maps.shape[1])
        levels = self.levels(rois)
        for level, stride in enumerate(self.strides):
            here = (levels == level).nonzero().squeeze(1)
            # In float32 whatever the network computes in: 8 or 11 bits do not hold an RoI's coordinates.
            for part, values in _aligned(pyramid[level].float(), rois[here], self.pool, 1 / stride):
                pooled[here[part]] = values.to(pooled.dtype)
        return pooled.permute(0, 3, 1, 2)


def aligned(maps: Tensor, rois: Tensor, pool: int, scale: float) -> Tensor:
    """RoIAlign, half-pixel aligned, adaptive sampling.

    Args:
        maps: (N, C, H, W) float32.
        rois: (R, 5).
        pool: P.
        scale: pixels of the maps to one of the input.

    Returns:
        (R, C, P, P) float32.
    """
    pooled = maps.new_empty(len(rois), pool, pool, maps.shape[1])
    for part, values in _aligned(maps, rois, pool, scale):
        pooled[part] = values
    return pooled.permute(0, 3, 1, 2)


def _aligned(maps: Tensor, rois: Tensor, pool: int, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """`aligned`, in parts: which of the RoIs, and these (R', P, P, C).

    On the CPU, each bin is one weighted sum of the pixels it reads, over all channels at a time. Bilinear sampling is a
    product of a factor along y and a factor along x. So is the mean over a bin's grid of sample points. The factors are
    therefore summed along each axis first, and a pixel that several samples touch is read once.
    """
    if maps.device.type != "cpu":
        yield from by_torchvision(maps, rois, pool, scale)
        return
    table = pixel_table(maps)
    # What is no RoI, for a number that is none, becomes one without an area, which reads nothing.
    corners = rois[:, 1:].to(maps.dtype).masked_fill(~rois.isfinite().all(1, keepdim=True), 0) * scale - 0.5
    sizes = corners[:, 2:] - corners[:, :2]
    # Bins of one sum read equally many pixels; so the few RoIs that are long have sums of their own.
    long = sizes.amax(1) > _LONG * pool
    wide = sizes[:, 0] > sizes[:, 1]
    for kind in (~long, long & wide, long & ~wide):
        part = kind.nonzero().squeeze(1)
        if len(part):
            yield part, bin_sums(table, rois[part, 0], corners[part], pool, (maps.shape[2], maps.shape[3]))


def pixel_table(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as (N * H * W, C): a row of all channels for each pixel, as `bin_sums` reads them."""
    # Contiguous: on a strided view, which it would be of a batch of one, `embedding_bag` is many times as slow.
    return maps.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


def bin_sums(table: Tensor, images: Tensor, corners: Tensor, pool: int, size: tuple[int, int]) -> Tensor:
    """Each bin's weighted sum of the pixels that it reads.

    Args:
        table: (N * H * W, C), of `pixel_table`.
        images: (R,) which image each RoI is in.
        corners: (R, 4) xyxy in pixels of maps whose first pixel's center is 0.
        pool: P.
        size: (H, W).

    Returns:
        (R, P, P, C).
    """
    height, width = size
    x1, y1, x2, y2 = corners.unbind(1)
    rows, row_factors = _taps(y1, y2, pool, height)  # (R, P, T)
    columns, column_factors = _taps(x1, x2, pool, width)
    rows = (images[:, None, None].int() * height + rows) * width
    pixels = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (R, P, P, T, T')
    factors = row_factors[:, :, None, :, None] * column_factors[:, None, :, None, :]
    pixels, factors = (of_bins.flatten(3).flatten(0, 2) for of_bins in (pixels, factors))
    sums = F.embedding_bag(pixels, table, mode="sum", per_sample_weights=factors)
    return sums.view(corners.shape[0], pool, pool, table.shape[1])


def by_torchvision(maps: Tensor, rois: Tensor, pool: int, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """As `_aligned`, by torchvision's kernel."""
    values: Tensor = roi_align(maps, rois, pool, spatial_scale=scale, sampling_ratio=0, aligned=True)
    yield torch.arange(len(rois), device=maps.device), values.permute(0, 2, 3, 1)


def _taps(start: Tensor, end: Tensor, pool: int, size: int) -> tuple[Tensor, Tensor]:
    """Which pixels of an axis the bins of each RoI read, and by which factors.

    Args:
        start, end: (R,) of the RoIs, in pixels of a map whose first pixel's center is 0.
        pool: P.
        size: of the map along the axis.

    Returns:
        Pixels, int32, and factors, each (R, P, T).
    """
    step = (end - start) / pool
    counts = step.ceil().clamp(min=0)  # (R,) G of each RoI: no more than a pixel apart; none in one turned over
    count = counts.clamp(min=1)
    bins, grid = (torch.arange(n, device=start.device, dtype=start.dtype) for n in (pool, count.max().int().item()))
    at = start[:, None, None] + bins[:, None] * step[:, None, None]
    at = at + (grid + 0.5) * (step / count)[:, None, None]  # (R, P, G)
    share = ((grid < counts[:, None, None]) & (at >= -1) & (at <= size)) / count[:, None, None]
    at = at.clamp(0, size - 1)  # the border pixel stands for up to a pixel beyond it; further out is nothing
    first = at[..., 0, None].floor()
    # Rounding may put a sample a trifle past the last pair of pixels that is counted: it stays with that pair.
    place = torch.minimum((at - first).floor().clamp(min=0), (count - 1)[:, None, None])
    beyond = at - first - place
    taps = torch.arange(grid.shape[0] + 1, dtype=torch.int32, device=start.device)
    factors = start.new_zeros(*at.shape[:2], grid.shape[0] + 1)
    factors.scatter_add_(2, place.long(), share * (1 - beyond)).scatter_add_(2, place.long() + 1, share * beyond)
    return (first.int() + taps).clamp(max=size - 1), factors
