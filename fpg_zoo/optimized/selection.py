"""The choice of proposals and detections that neither sorts nor decodes what cannot be chosen.

Each class chooses what the one of `fpg_zoo.modeling` that it stands for chooses, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from fpg_zoo.boxes import best_first, clip, decode, has_area, moved_apart, nms_within
from fpg_zoo.modeling.anchors import anchors_like, per_anchor
from fpg_zoo.modeling.retina_head import DenseSelection
from fpg_zoo.modeling.roi_heads import BoxSelection
from fpg_zoo.modeling.rpn import Proposals, ProposalSelection
from fpg_zoo.structures import Instances


class QuickProposalSelection(ProposalSelection):
    """`ProposalSelection`, by the candidates' threshold instead of a sort, and NMS of one level at a time.

    What NMS costs grows with the square of the number of boxes.
    """

    def _one_image(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> Proposals:
        best = [best_first(score, self.config.candidates_per_level) for score in scores]
        score = torch.cat([level[chosen] for level, chosen in zip(scores, best, strict=True)])
        anchor = torch.cat([level[chosen] for level, chosen in zip(anchors, best, strict=True)])
        delta = torch.cat([level[chosen] for level, chosen in zip(deltas, best, strict=True)])
        group = torch.cat([torch.full_like(chosen, level) for level, chosen in enumerate(best)])
        boxes = clip(decode(anchor, delta), size)
        valid = has_area(boxes)
        boxes, score, group = boxes[valid], score[valid], group[valid]
        if not len(boxes):
            return Proposals(boxes, score)
        # Rounded as if all levels were suppressed together.
        apart = moved_apart(boxes, group)
        kept = []
        for level in range(len(best)):
            own = (group == level).nonzero().squeeze(1)
            kept.append(own[nms(apart[own], score[own], self.config.nms_iou)])
        keep = torch.cat(kept).sort().values
        keep = keep[best_first(score[keep], self.config.proposals)]
        return Proposals(boxes[keep], score[keep])


class QuickBoxSelection(BoxSelection):
    """`BoxSelection`, with NMS of as many as are needed."""

    def _one_image(self, scores: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> Instances:
        region, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        candidates = scores[region, label]
        boxes = clip(decode(proposals[region], deltas[region, label], self.config.delta_std), size)
        keep = nms_within(boxes, candidates, label, self.config.nms_iou, self.config.detections)
        return Instances(boxes=boxes[keep], scores=candidates[keep], labels=label[keep])


class QuickDenseSelection(DenseSelection):
    """`DenseSelection`, by the best class of each anchor first.

    The K best of all (anchor, class) pairs are among those of the K anchors with the best best class, and of their
    equals: as many pairs as anchors are at least as good as the last of these. So the classes of no other anchor are
    looked at one by one. (Of maps that hold NaN it may choose others: there is nothing right to choose.)
    """

    def __call__(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        anchors = anchors_like(logits, self.config.anchors)
        of_classes = [per_anchor(x, self.num_classes) for x in logits]
        moves = [per_anchor(x, 4) for x in deltas]
        return [
            self._one_image([x[i] for x in of_classes], [x[i] for x in moves], anchors, size)
            for i, size in enumerate(sizes)
        ]

    def _one_image(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> Instances:
        """As the plain one's, of logits in place of scores."""
        parts = [self._candidates(*level) for level in zip(scores, deltas, anchors, strict=True)]
        score, label, delta, anchor = (torch.cat(part) for part in zip(*parts, strict=True))
        boxes = clip(decode(anchor, delta), size)
        valid = has_area(boxes)
        boxes, score, label = boxes[valid], score[valid], label[valid]
        keep = nms_within(boxes, score, label, self.config.nms_iou, self.config.detections)
        return Instances(boxes=boxes[keep], scores=score[keep], labels=label[keep])

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A level's scores, labels, deltas and anchors, best first."""
        most = self.config.candidates_per_level
        best = logits.amax(1).float().sigmoid()  # of each anchor
        near = best > self.config.score_threshold
        if len(best) > most:
            near &= ~(best < best.topk(most).values[-1])
        anchor = near.nonzero().squeeze(1)
        scores = logits[anchor].float().sigmoid()
        place, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        score = scores[place, label]
        chosen = best_first(score, most)
        anchor = anchor[place[chosen]]
        return score[chosen], label[chosen], deltas[anchor].float(), anchors[anchor]
