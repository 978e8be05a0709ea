"""Arithmetic on boxes: (x1, y1, x2, y2) in pixels, x to the right, y down, width = x2 - x1 (no added pixel)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

# exp() of a predicted log-size beyond this would blow a 16-pixel anchor up past 1000 pixels, or shrink it likewise.
MAX_LOG_SCALE = abs(math.log(16 / 1000))
_TRIED = 2  # boxes for each that NMS is to keep, to begin with


def decode(anchors: Tensor, deltas: Tensor, std: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Apply predicted deltas to boxes (R-CNN's parametrisation, Girshick et al., arXiv 1311.2524).

    Args:
        anchors: (..., 4) xyxy.
        deltas: (..., 4) as (dx, dy, dw, dh): center shifts in units of the anchor's size, logarithms of size ratios.
        std: the deltas are multiplied by these first.

    Returns:
        (..., 4) xyxy in the frame of `anchors`, not clipped.
    """
    # By numbers, not by a tensor of them, which a GPU would have to wait for.
    dx, dy, dw, dh = (delta * factor for delta, factor in zip(deltas.unbind(-1), std, strict=True))
    x1, y1, x2, y2 = anchors.unbind(-1)
    width, height = x2 - x1, y2 - y1
    centre_x = (x1 + x2) * 0.5 + width * dx
    centre_y = (y1 + y2) * 0.5 + height * dy
    half_width = width * dw.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() * 0.5
    half_height = height * dh.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() * 0.5
    return torch.stack(
        (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height), dim=-1
    )


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) limited to an image of `size` (height, width): 0 <= x <= width, 0 <= y <= height."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def has_area(boxes: Tensor) -> Tensor:
    """(...,) bool: width and height are both positive."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def best_first(scores: Tensor, most: int) -> Tensor:
    """Indices of the `most` greatest of (K,) scores, greatest first, in the order of a stable sort of all of them.

    Stable, so that the order among equal scores does not depend on the device.
    """
    if len(scores) <= most:
        return scores.sort(descending=True, stable=True).indices
    least = scores.topk(most).values[-1]
    enough = (~(scores < least)).nonzero().squeeze(1)  # equals of the least one, too; NaN counts as greatest
    return enough[scores[enough].sort(descending=True, stable=True).indices[:most]]


def moved_apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Boxes (K, 4), at least one, with coordinates >= 0, of which those of different groups (K,) do not overlap."""
    shift = groups.to(boxes) * (boxes.max() + 1)
    return boxes + shift[:, None]


def nms_within(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, most: int | None = None) -> Tensor:
    """Non-maximum suppression among boxes of the same group.

    Groups are moved apart by `group * (largest coordinate + 1)` and suppressed together, as in the published models.
    The shift rounds the coordinates, so a loop over groups would not always give the same.

    Args:
        boxes: (K, 4) xyxy, coordinates >= 0.
        scores: (K,).
        groups: (K,) int64, a class or a level.
        iou: a box is dropped when its IoU with a kept, better one is greater than this.
        most: how many are wanted. Which boxes are kept depends on better ones only, so that the worst need not be
            looked at.

    Returns:
        (M,) int64 indices of the kept boxes, best score first, at most `most`.
    """
    if boxes.numel() == 0:
        return groups.new_zeros(0)
    apart = moved_apart(boxes, groups)
    most = len(boxes) if most is None else most
    taken = _TRIED * most
    while taken < len(boxes):
        best = best_first(scores, taken)
        kept: Tensor = best[nms(apart[best], scores[best], iou)]
        if len(kept) >= most:
            return kept[:most]
        taken *= 4
    kept = nms(apart, scores, iou)
    return kept[:most]


def soft_nms_within(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    iou: float,
    method: Literal["linear", "gaussian"],
    sigma: float,
    min_score: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al., arXiv 1704.04503) among boxes of the same group.

    The best box is taken and the scores of those that overlap it are lowered, as often as boxes are wanted.

    Args:
        boxes: (K, 4) xyxy, coordinates >= 0.
        scores: (K,).
        groups: (K,) int64.
        iou: the IoU from which on `linear` lowers a score.
        method, sigma, min_score: as of `fpg_zoo.config.SoftNMSConfig`.
        most: how many are wanted.

    Returns:
        (M,) int64 indices in the order in which they were taken, at most `most`, and their lowered scores (M,).
    """
    if boxes.numel() == 0:
        return groups.new_zeros(0), scores
    apart, left, places = moved_apart(boxes, groups), scores.clone(), torch.arange(len(boxes), device=boxes.device)
    taken: list[Tensor] = []
    values: list[Tensor] = []
    while len(taken) < most and len(places):
        best = left.argmax()
        taken.append(places[best])
        values.append(left[best])
        overlap = box_iou(apart[best][None], apart)[0]
        if method == "linear":
            lowered = left * torch.where(overlap >= iou, 1 - overlap, 1.0)
        else:
            lowered = left * torch.exp(-(overlap**2) / sigma)
        stays = lowered >= min_score
        stays[best] = False
        apart, left, places = apart[stays], lowered[stays], places[stays]
    return torch.stack(taken), torch.stack(values)
