"""Which ground truth a box is to find: matching by overlap, and the random choice of those that count.

Legend: K boxes (anchors or proposals), G ground truths of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

IGNORED = -2
NEGATIVE = -1


@dataclass(frozen=True)
class Matcher:
    """Matching by IoU (Ren et al., arXiv 1506.01497).

    Attributes:
        positive: a box is positive for the ground truth that it overlaps most, from this IoU on.
        negative: and negative if its greatest IoU is below this; between the two it is ignored.
        allow_low_quality: the least IoU of a second rule. A box with a ground truth's best IoU is positive for it, even
            if it overlaps another more. All boxes that tie count. A later ground truth wins over an earlier one. None:
            no such rule.
    """

    positive: float
    negative: float
    allow_low_quality: float | None

    def __call__(self, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """Match boxes.

        Args:
            boxes: (K, 4) xyxy in pixels.
            gt_boxes: (G, 4) xyxy in the same frame, with an area each.

        Returns:
            (K,) int64: the index of the ground truth, `NEGATIVE` or `IGNORED`.
        """
        if not len(gt_boxes):
            return torch.full((len(boxes),), NEGATIVE, dtype=torch.int64, device=boxes.device)
        overlaps = box_iou(gt_boxes, boxes)  # (G, K)
        best, match = overlaps.max(dim=0)
        match = torch.where(best >= self.positive, match, torch.where(best < self.negative, NEGATIVE, IGNORED))
        if self.allow_low_quality is None:
            return match
        best_per_gt = overlaps.amax(dim=1, keepdim=True)
        gt, box = ((overlaps == best_per_gt) & (best_per_gt >= self.allow_low_quality)).nonzero(as_tuple=True)
        low_quality = torch.full_like(match, -1).scatter_reduce(0, box, gt, "amax")
        return torch.where(low_quality >= 0, low_quality, match)


@dataclass(frozen=True)
class Sampler:
    """A random choice among matched boxes, at most so many and of them at most a part positive.

    Attributes:
        number: boxes per image; None takes them all.
        positive_fraction: the greatest part of `number` that may be positive. What is missing of it is made up for by
            negatives.
    """

    number: int | None
    positive_fraction: float

    def __call__(self, match: Tensor) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            match: (K,) of a `Matcher`.

        Returns:
            int64 indices of the positive and of the negative boxes chosen.
        """
        positive = (match >= 0).nonzero().squeeze(1)
        negative = (match == NEGATIVE).nonzero().squeeze(1)
        if self.number is None:
            return positive, negative
        positive = _some_of(positive, int(self.number * self.positive_fraction))
        return positive, _some_of(negative, self.number - len(positive))


def _some_of(indices: Tensor, most: int) -> Tensor:
    if len(indices) <= most:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:most]]
