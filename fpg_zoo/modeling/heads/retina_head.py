"""RetinaNet's head (Lin et al., arXiv 1708.02002) with shared convolutions and per-level norms, and its detections."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import RetinaHeadConfig
from fpg_zoo.config.heads import DenseHeadConfig
from fpg_zoo.modeling.heads.anchors import anchors_like, per_anchor
from fpg_zoo.modeling.heads.suppression import suppress
from fpg_zoo.modeling.layers import init_normal
from fpg_zoo.modeling.parts import DenseHead
from fpg_zoo.structures import Instances
from fpg_zoo.structures.boxes import best_first, clip, decode, has_area

PRIOR = 0.01  # what every anchor's class scores start from, so that background does not swamp the first steps


class SharedConv(nn.Module):
    """One 3x3 convolution for all levels, a BatchNorm for each: the levels' statistics differ, their features do not.

    `forward`: (N, in, H, W) of level `level` to (N, out, H, W), after ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, levels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(levels))
        init_normal(self.conv, std=0.01)

    def forward(self, x: Tensor, level: int) -> Tensor:
        return F.relu(self.norms[level](self.conv(x)))


class RetinaHead(DenseHead):
    """A tower for classes and one for boxes.

    `forward`: maps (N, W, H_l, W_l) to (logits, deltas), lists of (N, A * C, H_l, W_l) and (N, A * 4, H_l, W_l),
    anchor-major.
    """

    mmdet_names = mmdet_names.RETINA_HEAD

    def __init__(self, config: RetinaHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.levels, per_cell = len(config.anchors.strides), config.anchors.per_cell
        inputs = [in_channels] + [config.width] * (config.depth - 1)
        self.class_tower = nn.ModuleList(SharedConv(channels, config.width, self.levels) for channels in inputs)
        self.box_tower = nn.ModuleList(SharedConv(channels, config.width, self.levels) for channels in inputs)
        self.classes = nn.Conv2d(config.width, per_cell * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(config.width, per_cell * 4, 3, padding=1)
        init_normal(self.deltas, std=0.01)
        self.reset_classes()

    def reset_classes(self) -> None:
        """Initialise the layer whose size is the number of classes."""
        init_normal(self.classes, std=0.01, bias=-math.log((1 - PRIOR) / PRIOR))

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = [], []
        for level, features in enumerate(pyramid):
            x = y = features
            for for_class, for_box in zip(self.class_tower, self.box_tower, strict=True):
                x, y = for_class(x, level), for_box(y, level)
            logits.append(self.classes(x))
            deltas.append(self.deltas(y))
        return logits, deltas


class DenseSelection:
    """From a dense head's outputs to detections: per level the best (anchor, class) pairs, NMS per class, the best."""

    def __init__(self, config: DenseHeadConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes

    def __call__(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Choose instances.

        Args:
            logits: per level (N, A * C, H_l, W_l), anchor-major, of `RetinaHead.forward`.
            deltas: per level (N, A * 4, H_l, W_l), anchor-major, of `RetinaHead.forward`.
            sizes: N (height, width) in pixels before padding.

        Returns:
            Each image's instances, best first, at most `config.detections`, without mask maps. Boxes are float32 in
            pixels of the padded batch, within the image's size there: 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height.
            Scores are over `config.score_threshold`, to 1, if soft-NMS did not lower them; labels 0..C - 1.
        """
        anchors = anchors_like(logits, self.config.anchors)
        classes = [per_anchor(x, self.num_classes) for x in logits]
        moves = [per_anchor(x, 4) for x in deltas]
        return [
            self._one_image([x[i] for x in classes], [x[i] for x in moves], anchors, size)
            for i, size in enumerate(sizes)
        ]

    def _one_image(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> Instances:
        levels = [self._candidates(*level) for level in zip(logits, deltas, anchors, strict=True)]
        score, label, delta, anchor = (torch.cat(parts) for parts in zip(*levels, strict=True))
        boxes = clip(decode(anchor, delta), size)
        valid = has_area(boxes)
        return suppress(boxes[valid], score[valid], label[valid], self.config)

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, labels, deltas and anchors of a level's best pairs of anchor and class, best first."""
        most = self.config.candidates_per_level
        # As many pairs as there are anchors are at least as good as the last of the `most` anchors with the best best
        # class: the best pairs are of these anchors and their equals, and no other's classes are looked at one by one.
        # In float32 whatever the network computes in: 8 or 11 bits do not tell pixels apart.
        best = logits.amax(1).float().sigmoid()
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
