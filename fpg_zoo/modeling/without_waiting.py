"""Detectors' forward where the program runs ahead of the device, as on a GPU.

A size that depends on values makes the program wait until the device has come so far. Here the choice of boxes is in
tensors of fixed sizes (`heads.fixed_selection`), and what has to be known is asked for together. A RetinaNet waits once
an image, in NMS, and once at the end. Two-stage detectors wait twice an image, in NMS, once for the levels of all
proposals, and once at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from fpg_zoo.config import DetectorConfig, TwoStageConfig
from fpg_zoo.modeling.heads.fixed_selection import (
    Chosen,
    Ways,
    by_kernel,
    by_sort,
    dense_detections,
    proposals,
    roi_detections,
)
from fpg_zoo.modeling.heads.roi_align import MultiLevelRoIAlign, aligned
from fpg_zoo.modeling.heads.roi_heads import BoxHead, MaskHead, maps_of_class
from fpg_zoo.structures import Instances
from fpg_zoo.uploads import small_to_device

_WAYS = Ways(by_kernel, by_sort)


def suits(config: DetectorConfig, device: torch.device) -> bool:
    """Whether a detector's boxes are to be chosen so: soft-NMS looks at every score it lowers."""
    head = config.box if isinstance(config, TwoStageConfig) else config.head
    return device.type != "cpu" and head.soft_nms is None


def choose_dense(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    config: DetectorConfig,
    flag: Tensor,
) -> tuple[list[Instances], bool]:
    """As `DenseSelection`, and what `flag`, () bool, is."""
    assert not isinstance(config, TwoStageConfig)
    limits = _on_device(sizes, logits[0].device)
    chosen = dense_detections(logits, deltas, limits, config.head, len(config.class_names), _WAYS)
    counts, (is_set,) = _known((chosen.scores >= 0).sum(1), flag[None])
    return _instances(chosen, None, counts), bool(is_set)


def choose_proposals(
    objectness: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[tuple[int, int]], config: TwoStageConfig
) -> Tensor:
    """As `ProposalSelection`: (N, config.rpn.proposals, 4), zeros where there are fewer."""
    return proposals(objectness, deltas, _on_device(sizes, objectness[0].device), config.rpn, _WAYS)


def run_box_head(
    head: BoxHead, pyramid: Sequence[Tensor], regions: Tensor, sizes: Sequence[tuple[int, int]], config: TwoStageConfig
) -> Chosen:
    """Detections of proposals (N, K, 4)."""
    rois = _rois(regions)
    levels = head.pooling.levels(rois)
    (counts,) = _known(_per_level(levels, len(head.pooling.strides)))
    order = levels.sort(stable=True).indices
    logits, moves = head.predict(_pooled(head.pooling, pyramid, rois[order], counts))
    logits, moves = (torch.empty_like(x).index_copy_(0, order, x) for x in (logits, moves))
    return roi_detections(logits, moves, regions, _on_device(sizes, rois.device), config.box, _WAYS)


def finish(
    chosen: Chosen, mask_head: MaskHead | None, pyramid: Sequence[Tensor], flag: Tensor
) -> tuple[list[Instances], bool]:
    """Instances, with their mask maps, and what `flag`, () bool, is."""
    number = (chosen.scores >= 0).sum(1)
    if mask_head is None:
        counts, (is_set,) = _known(number, flag[None])
        return _instances(chosen, None, counts), bool(is_set)
    pooling = mask_head.pooling
    rois = _rois(chosen.boxes)
    there = (chosen.scores >= 0).flatten()
    levels = torch.where(there, pooling.levels(rois), len(pooling.strides))  # the rest comes last
    counts, per_level, (is_set,) = _known(number, _per_level(levels, len(pooling.strides)), flag[None])
    order = levels.sort(stable=True).indices[: sum(per_level)]
    side = 2 * pooling.pool
    maps = chosen.boxes.new_zeros(len(rois), side, side)
    if len(order):  # not every device has convolutions of an empty batch
        logits = mask_head.predict(_pooled(pooling, pyramid, rois[order], per_level))
        maps.index_copy_(0, order, maps_of_class(logits, chosen.labels.flatten()[order]))
    return _instances(chosen, maps.view(*chosen.scores.shape, side, side), counts), bool(is_set)


def _known(*values: Tensor) -> list[list[int]]:
    """Numbers (K_i,), all asked for at once."""
    numbers: list[int] = torch.cat([value.long() for value in values]).tolist()
    ends = itertools.accumulate(map(len, values), initial=0)
    return [numbers[first:last] for first, last in itertools.pairwise(ends)]


def _on_device(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return small_to_device(torch.tensor(list(sizes), dtype=torch.int64, device="cpu"), device)


def _rois(boxes: Tensor) -> Tensor:
    """Boxes (N, K, 4) as (N * K, 5)."""
    number, count = boxes.shape[:2]
    image = torch.arange(number, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(number, count, 1)
    return torch.cat((image, boxes), 2).flatten(0, 1)


def _per_level(levels: Tensor, number: int) -> Tensor:
    """How many there are of each level."""
    return (levels[:, None] == torch.arange(number, device=levels.device)).sum(0)


def _pooled(pooling: MultiLevelRoIAlign, pyramid: Sequence[Tensor], rois: Tensor, counts: Sequence[int]) -> Tensor:
    """RoIs in the order of their levels, so many of each, as (R, C, P, P)."""
    parts = torch.split(rois, list(counts))
    levels = zip(pyramid[: len(counts)], parts, pooling.strides, strict=True)
    pooled = [aligned(maps.float(), part, pooling.pool, 1 / stride).to(maps.dtype) for maps, part, stride in levels]
    return torch.cat(pooled)


def _instances(chosen: Chosen, maps: Tensor | None, counts: Sequence[int]) -> list[Instances]:
    return [
        Instances(
            boxes=chosen.boxes[image, :count],
            scores=chosen.scores[image, :count],
            labels=chosen.labels[image, :count],
            mask_maps=None if maps is None else maps[image, :count],
        )
        for image, count in enumerate(counts)
    ]
