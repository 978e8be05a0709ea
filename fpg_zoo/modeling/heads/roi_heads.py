"""Heads on pooled RoIs: box classification and regression (Fast R-CNN), masks (Mask R-CNN, arXiv 1703.06870).

Legend: R RoIs over the whole batch, C classes without background, P the pooled size. RoIs are (R, 5):
(image index, x1, y1, x2, y2) in input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import BoxHeadConfig, MaskHeadConfig
from fpg_zoo.modeling.heads.roi_align import MultiLevelRoIAlign
from fpg_zoo.modeling.heads.suppression import suppress
from fpg_zoo.modeling.layers import ConvNorm, init_kaiming, init_normal
from fpg_zoo.modeling.parts import Part
from fpg_zoo.structures import Instances
from fpg_zoo.structures.boxes import clip, decode


class BoxHead(Part):
    """Two fully connected layers on pooled RoIs.

    `forward`: pyramid and RoIs (R, 5) to (logits (R, C + 1), background last; deltas (R, C, 4)).
    """

    mmdet_names = mmdet_names.BOX_HEAD

    def __init__(self, config: BoxHeadConfig, in_channels: int, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.pooling = MultiLevelRoIAlign(strides, config.pool)
        self.fc1 = nn.Linear(in_channels * config.pool**2, config.width)
        self.fc2 = nn.Linear(config.width, config.width)
        self.classes = nn.Linear(config.width, num_classes + 1)
        self.deltas = nn.Linear(config.width, num_classes * 4)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.reset_classes()

    def reset_classes(self) -> None:
        """Initialise the layers whose size is the number of classes."""
        init_normal(self.classes, std=0.01)
        init_normal(self.deltas, std=0.001)

    def forward(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(self.pooling(pyramid, rois))

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of pooled maps (R, channels, pool, pool)."""
        x = pooled.flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.classes(x), self.deltas(x).unflatten(1, (-1, 4))


class BoxSelection:
    """From the box head's outputs to detections: per class the boxes over the threshold, NMS, the best over classes."""

    def __init__(self, config: BoxHeadConfig) -> None:
        self.config = config

    def __call__(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Choose instances.

        Args:
            logits: (R, C + 1), background last, of `BoxHead.forward`.
            deltas: (R, C, 4), of `BoxHead.forward`.
            proposals: N (K_i, 4) xyxy in pixels of the padded batch, the RoIs that the R rows are of, in order.
            sizes: N (height, width) in pixels before padding.

        Returns:
            Each image's instances, best first, at most `config.detections`, without mask maps. Boxes are float32 in
            pixels of the padded batch, within the image's size there: 0 <= x1 <= x2 <= width, 0 <= y1 <= y2 <= height.
            Scores are over `config.score_threshold`, to 1, if soft-NMS did not lower them; labels 0..C - 1.
        """
        counts = [len(boxes) for boxes in proposals]
        scores = torch.split(logits.float().softmax(dim=-1)[:, :-1], counts)
        per_image = zip(scores, torch.split(deltas.float(), counts), proposals, sizes, strict=True)
        return [self._one_image(*image) for image in per_image]

    def _one_image(self, scores: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> Instances:
        region, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        candidates = scores[region, label]
        boxes = clip(decode(proposals[region], deltas[region, label], self.config.delta_std), size)
        return suppress(boxes, candidates, label, self.config)


class MaskHead(Part):
    """Convolutions and one transposed convolution on pooled RoIs.

    `forward`: pyramid and RoIs (R, 5) to mask logits (R, C, 2P, 2P).
    """

    mmdet_names = mmdet_names.MASK_HEAD

    def __init__(self, config: MaskHeadConfig, in_channels: int, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.pooling = MultiLevelRoIAlign(strides, config.pool)
        inputs = [in_channels] + [config.width] * (config.depth - 1)
        blocks = [ConvNorm(channels, config.width, 3) for channels in inputs]
        self.convs = nn.ModuleList(blocks)
        self.upsample = nn.ConvTranspose2d(config.width, config.width, 2, stride=2)
        self.classes = nn.Conv2d(config.width, num_classes, 1)
        for block in blocks:
            init_kaiming(block.conv)
        init_kaiming(self.upsample)
        self.reset_classes()

    def reset_classes(self) -> None:
        """Initialise the layer whose size is the number of classes."""
        init_kaiming(self.classes)

    def forward(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        return self.predict(self.pooling(pyramid, rois))

    def predict(self, pooled: Tensor) -> Tensor:
        """As `forward`, of pooled maps (R, channels, pool, pool)."""
        x = pooled
        for block in self.convs:
            x = F.relu(block(x))
        x = F.relu(self.upsample(x))
        logits: Tensor = self.classes(x)
        return logits


def maps_of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Of mask logits (R, C, S, S) the map of each RoI's class, as probabilities (R, S, S)."""
    return logits[torch.arange(len(labels), device=labels.device), labels].float().sigmoid()
