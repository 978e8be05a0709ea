"""The choice among overlapping boxes, as a head's config has it."""

from __future__ import annotations

import torch
from torch import Tensor

from fpg_zoo.config import BoxHeadConfig
from fpg_zoo.config.heads import DenseHeadConfig
from fpg_zoo.structures import Instances
from fpg_zoo.structures.boxes import nms_within, soft_nms_within


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, config: BoxHeadConfig | DenseHeadConfig) -> Instances:
    """An image's detections of its candidates: plain or soft NMS, in each class or over all.

    Args:
        boxes: (K, 4) xyxy float32, coordinates >= 0.
        scores: (K,) float32.
        labels: (K,) int64.
        config: of the head.

    Returns:
        At most `config.detections` instances, best first.
    """
    groups = torch.zeros_like(labels) if config.class_agnostic_nms else labels
    if config.soft_nms is None:
        keep = nms_within(boxes, scores, groups, config.nms_iou, config.detections)
        return Instances(boxes=boxes[keep], scores=scores[keep], labels=labels[keep])
    soft = config.soft_nms
    keep, lowered = soft_nms_within(
        boxes,
        scores,
        groups,
        iou=config.nms_iou,
        method=soft.method,
        sigma=soft.sigma,
        min_score=soft.min_score,
        most=config.detections,
    )
    return Instances(boxes=boxes[keep], scores=lowered, labels=labels[keep])
