"""Region proposal network (Ren et al., arXiv 1506.01497) and the choice of proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import RPNConfig
from fpg_zoo.modeling.heads.anchors import anchors_like, per_anchor
from fpg_zoo.modeling.layers import init_normal
from fpg_zoo.modeling.parts import Part
from fpg_zoo.structures.boxes import best_first, clip, decode, has_area, moved_apart


class Proposals(NamedTuple):
    """One image's proposals, best first: `boxes` (K, 4) xyxy in input pixels, `scores` (K,) in 0..1."""

    boxes: Tensor
    scores: Tensor


class RPN(Part):
    """The head that runs on every level with the same weights.

    `forward`: maps (N, C, H_l, W_l) to (objectness, deltas), lists of (N, A, H_l, W_l) logits and
    (N, 4A, H_l, W_l) box deltas, anchor-major.
    """

    mmdet_names = mmdet_names.RPN

    def __init__(self, config: RPNConfig, in_channels: int) -> None:
        super().__init__()
        per_cell = config.anchors.per_cell
        self.conv = nn.Conv2d(in_channels, config.width, 3, padding=1)
        self.objectness = nn.Conv2d(config.width, per_cell, 1)
        self.deltas = nn.Conv2d(config.width, per_cell * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            init_normal(layer, std=0.01)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [F.relu(self.conv(level)) for level in pyramid]
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]


class ProposalSelection:
    """From the RPN's outputs to proposals: per level the best candidates, NMS within each level, the best over all."""

    def __init__(self, config: RPNConfig) -> None:
        self.config = config

    def __call__(
        self, objectness: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Proposals]:
        """Choose proposals.

        Args:
            objectness: per level (N, A, H_l, W_l) logits, of `RPN.forward`.
            deltas: per level (N, 4A, H_l, W_l), anchor-major, of `RPN.forward`.
            sizes: N (height, width) in pixels before padding.

        Returns:
            Each image's proposals, best first, at most `config.proposals`. Boxes are float32 in pixels of the padded
            batch, within the image's size there: 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height. Scores are 0..1.
        """
        anchors = anchors_like(objectness, self.config.anchors)
        # In float32 whatever the network computes in: 8 or 11 bits do not tell pixels apart.
        scores = [per_anchor(x.float(), 1).squeeze(-1).sigmoid() for x in objectness]
        moves = [per_anchor(x.float(), 4) for x in deltas]
        return [
            self._one_image([x[i] for x in scores], [x[i] for x in moves], anchors, size)
            for i, size in enumerate(sizes)
        ]

    def _one_image(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> Proposals:
        candidates, kept_scores, levels = [], [], []
        for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors, strict=True)):
            best = best_first(score, self.config.candidates_per_level)
            candidates.append(decode(anchor[best], delta[best]))
            kept_scores.append(score[best])
            levels.append(torch.full_like(best, level))
        boxes, score, group = clip(torch.cat(candidates), size), torch.cat(kept_scores), torch.cat(levels)
        valid = has_area(boxes)
        boxes, score, group = boxes[valid], score[valid], group[valid]
        if not len(boxes):
            return Proposals(boxes, score)
        # One level at a time, since what NMS costs grows with the square of the number of boxes; their coordinates
        # rounded as if all were suppressed together.
        apart = moved_apart(boxes, group)
        kept = []
        for level in range(len(scores)):
            own = (group == level).nonzero().squeeze(1)
            kept.append(own[nms(apart[own], score[own], self.config.nms_iou)])
        keep = torch.cat(kept).sort().values
        keep = keep[best_first(score[keep], self.config.proposals)]
        return Proposals(boxes[keep], score[keep])
