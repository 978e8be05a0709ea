"""The choice of proposals and detections in tensors of fixed sizes, for whole batches: for graphs, and for GPUs.

No size depends on a value, so that nothing has to wait for one. A place that holds nothing has a score of -1 and a box
of zeros. Otherwise it is the choice of `RPN`, `DenseSelection` and `BoxSelection`, in float32. Legend: N images, A
anchors of a level, C classes, K candidates, G groups of boxes that do not overlap those of other groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from fpg_zoo.config import BoxHeadConfig, RPNConfig
from fpg_zoo.config.heads import DenseHeadConfig
from fpg_zoo.modeling.heads.anchors import anchors_like, per_anchor
from fpg_zoo.structures.boxes import decode, has_area

NOTHING = -1.0  # the score of a place that holds nothing


class Ways(NamedTuple):
    """What is done in another way in each kind of graph.

    Attributes:
        suppress: NMS. (boxes (N, G, K, 4) xyxy, scores (N, G, K) with those below zero left out, IoU beyond which the
            worse of two boxes is dropped, the most that is wanted of a group) to which are kept, (N, G, K) bool.
        best: (scores (N, A), number, at most A) to the greatest, greatest first, and their places, (N, number) each.
    """

    suppress: Callable[[Tensor, Tensor, float, int], Tensor]
    best: Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Chosen(NamedTuple):
    """Of each image `boxes` (N, K, 4) xyxy in pixels of the input, `scores` (N, K), `labels` (N, K) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def proposals(
    objectness: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Tensor, config: RPNConfig, ways: Ways
) -> Tensor:
    """Proposals as `ProposalSelection` chooses them, of outputs of `RPN.forward`, `sizes` (N, 2) int64.

    Returns:
        (N, config.proposals, 4) xyxy in pixels of the input, best first.
    """
    most = config.candidates_per_level
    boxes, scores = [], []
    for logits, moves, anchors in zip(objectness, deltas, anchors_like(objectness, config.anchors), strict=True):
        score, places = _best(ways, per_anchor(logits.float(), 1).squeeze(-1).sigmoid(), most)
        boxes.append(decode(anchors[places], _rows(per_anchor(moves.float(), 4), places)))
        scores.append(score)
    levels = len(boxes)
    box, score = _clipped(torch.stack(boxes, 1), sizes), torch.stack(scores, 1)  # (N, L, K, 4), (N, L, K)
    score = torch.where(has_area(box), score, NOTHING)
    box = torch.where((score >= 0)[..., None], box, 0.0)
    shift = torch.arange(levels, device=box.device)[None, :, None, None] * _beyond(box.flatten(1, 2))[..., None]
    kept = ways.suppress(box + shift, score, config.nms_iou, most)
    score = torch.where(kept, score, NOTHING).flatten(1)
    score, places = _best(ways, score, config.proposals)
    return torch.where((score >= 0)[..., None], _rows(box.flatten(1, 2), places), 0.0)


def dense_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    sizes: Tensor,
    config: DenseHeadConfig,
    num_classes: int,
    ways: Ways,
) -> Chosen:
    """Detections as `DenseSelection` chooses them, of outputs of `DenseHead.forward`, `sizes` (N, 2) int64."""
    most = config.candidates_per_level
    boxes, scores, labels = [], [], []
    for level, moves, anchors in zip(logits, deltas, anchors_like(logits, config.anchors), strict=True):
        classes = per_anchor(level.float(), num_classes)
        # The best pairs of anchor and class are of the anchors with the best best class.
        _, anchor = _best(ways, classes.amax(-1).sigmoid(), most)
        pairs = _rows(classes, anchor).sigmoid().flatten(1)
        there = torch.arange(most * num_classes, device=anchor.device) < classes.shape[1] * num_classes
        score, pair = _best(ways, torch.where(there, pairs, NOTHING), most)
        place = anchor.gather(1, pair // num_classes)
        boxes.append(decode(anchors[place], _rows(per_anchor(moves.float(), 4), place)))
        scores.append(score)
        labels.append(pair % num_classes)
    score = torch.cat(scores, 1)
    box = _clipped(torch.cat(boxes, 1), sizes)
    score = torch.where(has_area(box) & (score > config.score_threshold), score, NOTHING)
    return _suppressed(Chosen(box, score, torch.cat(labels, 1)), config, ways)


def roi_detections(
    logits: Tensor, deltas: Tensor, regions: Tensor, sizes: Tensor, config: BoxHeadConfig, ways: Ways
) -> Chosen:
    """Detections as `BoxSelection` chooses them.

    Args:
        logits: (N * K, C + 1), background last, of `BoxHead.forward`.
        deltas: (N * K, C, 4), of `BoxHead.forward`.
        regions: (N, K, 4) of `proposals`.
        sizes: (N, 2) int64.
        config: of the head.
        ways: of the graph.
    """
    count, classes = regions.shape[1], deltas.shape[1]
    there = has_area(regions)[..., None]
    scores = logits.float().softmax(-1)[:, :-1].view(-1, count, classes)
    scores = torch.where(there & (scores > config.score_threshold), scores, NOTHING)
    # The probabilities of a region sum to 1: no more of its classes can be over the threshold.
    over = min(classes, int(1 / config.score_threshold)) if config.score_threshold > 0 else classes
    score, pair = _best(ways, scores.flatten(1), count * over)
    box = decode(
        _rows(regions, pair // classes),
        _rows(deltas.float().view(-1, count * classes, 4), pair),
        config.delta_std,
    )
    return _suppressed(Chosen(_clipped(box, sizes), score, pair % classes), config, ways)


def _suppressed(found: Chosen, config: BoxHeadConfig | DenseHeadConfig, ways: Ways) -> Chosen:
    boxes = torch.where((found.scores >= 0)[..., None], found.boxes, 0.0)
    apart = boxes
    if not config.class_agnostic_nms:
        apart = boxes + (found.labels.to(boxes)[..., None] * _beyond(boxes))
    kept = ways.suppress(apart[:, None], found.scores[:, None], config.nms_iou, config.detections)[:, 0]
    score, place = _best(ways, torch.where(kept, found.scores, NOTHING), config.detections)
    there = score >= 0
    return Chosen(
        boxes=torch.where(there[..., None], _rows(boxes, place), 0.0),
        scores=score,
        labels=torch.where(there, found.labels.gather(1, place), -1),
    )


def _best(ways: Ways, scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `most` greatest of scores (N, A), greatest first, and their places; NOTHING and any place where A is less."""
    number = scores.shape[1]
    # Filled up in any case, as the number of anchors is not known in a graph for images of several sizes.
    values, places = ways.best(F.pad(scores, (0, most), value=NOTHING), most)
    return values, places.clamp(max=number - 1)


def by_topk(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """`Ways.best` by an operator that runtimes have. The order among equal scores is the runtime's."""
    values, places = scores.topk(most, dim=1)
    return values, places


def by_sort(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """`Ways.best` by a stable sort, so that the order among equal scores is the same everywhere."""
    values, places = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :most], places[:, :most]


def by_kernel(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """`Ways.suppress` by torchvision's kernel, once for each image."""
    kept = []
    for image_boxes, image_scores in zip(boxes.flatten(1, 2), scores.flatten(1), strict=True):
        best = nms(image_boxes, image_scores, iou)[: most * boxes.shape[1]]
        kept.append(torch.zeros_like(image_scores, dtype=torch.bool).index_fill_(0, best, True))
    return torch.stack(kept).view_as(scores)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Of values (N, A, V) those at places (N, K): (N, K, V)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (N, ..., 4) limited to their images."""
    width_height = sizes.to(boxes).flip(1).repeat(1, 2)  # (N, 4)
    return torch.minimum(boxes.clamp(min=0), width_height.view(-1, *(1,) * (boxes.ndim - 2), 4))


def _beyond(boxes: Tensor) -> Tensor:
    """(N, 1, 1): a pixel more than the largest coordinate of each image's boxes (N, K, 4)."""
    return boxes.amax((1, 2), keepdim=True) + 1
