"""Non-maximum suppression for graphs: of boxes (R, K, 4) in R rows, which are kept.

What is kept is a mask of the boxes' own shape, so that no size depends on the values. Each runtime has its own way:
ONNX an operator, a torch program its tensor operations, TorchScript torchvision's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torchvision.ops import nms

# (boxes (R, K, 4) xyxy, scores (R, K) with those below zero left out, IoU beyond which the worse of two boxes is
# dropped, the most that is wanted of a row) to (R, K) bool.
Suppression = Callable[[Tensor, Tensor, float, int], Tensor]
_FEW = 4  # a row is gone through box by box where it has this many times as many boxes as are wanted


@torch.library.custom_op("fpg_zoo::kept", mutates_args=())
def by_operator(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """An operator of its own, which `onnx_operators` writes as ONNX's NonMaxSuppression."""
    return by_kernel(boxes, scores, iou, most)


@by_operator.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def by_kernel(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """torchvision's kernel, a row at a time; the number of rows is fixed in a traced graph."""
    rows = []
    for row_boxes, row_scores in zip(boxes.unbind(0), scores.unbind(0), strict=True):
        there = (row_scores >= 0).nonzero().squeeze(1)
        best = there[nms(row_boxes[there], row_scores[there], iou)[:most]]
        rows.append(torch.zeros_like(row_scores).index_fill(0, best, 1.0) > 0)
    return torch.stack(rows)


def by_tensors(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Tensor operations of torch alone."""
    if most * _FEW <= boxes.shape[1]:
        return _box_by_box(boxes, scores, iou, most)
    return _all_at_once(boxes, scores, iou)


def _box_by_box(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """The best box is kept, those that overlap it are dropped, and so on, `most` times."""
    places = torch.arange(boxes.shape[1], device=boxes.device)
    areas = _areas(boxes)

    def condition(count: Tensor, left: Tensor, kept: Tensor) -> Tensor:
        return (count < most) & (left >= 0).any()

    def step(count: Tensor, left: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score, best = left.max(1, keepdim=True)
        here = (places == best) & (score >= 0)
        box = boxes.gather(1, best[..., None].expand(-1, -1, 4))  # (R, 1, 4)
        dropped = here | (_overlaps(box, boxes, areas.gather(1, best)[..., None], areas[:, None], iou)[:, 0])
        return count + 1, torch.where(dropped, -1.0, left), kept | here

    start = (torch.zeros((), dtype=torch.int64, device=boxes.device), scores.clone(), torch.zeros_like(scores > 0))
    kept: Tensor = _loop(condition, step, start)[2]
    return kept


def _all_at_once(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Every box is judged by those kept so far, again and again until nothing changes.

    A box is right from the round on in which all better ones that overlap it are; so the end is greedy suppression.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    there = scores.gather(1, order) >= 0
    areas = _areas(ranked)
    better = torch.ones(boxes.shape[1], boxes.shape[1], dtype=torch.bool, device=boxes.device).triu(1)
    beats = (_overlaps(ranked, ranked, areas[..., None], areas[:, None], iou) & better).float()  # (R, better, worse)

    def condition(kept: Tensor, before: Tensor) -> Tensor:
        return (kept != before).any()

    def step(kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        beaten = (kept.float()[:, None] @ beats)[:, 0] > 0
        return there & ~beaten, kept.clone()

    kept = _loop(condition, step, (there, torch.zeros_like(there) & ~there))[0]
    return torch.zeros_like(kept).scatter(1, order, kept)


def _loop(condition: Callable[..., Tensor], step: Callable[..., Any], start: tuple[Tensor, ...]) -> Any:
    if not torch.compiler.is_compiling():  # while_loop would compile itself for each threshold
        state: Any = start
        while condition(*state):
            state = step(*state)
        return state
    return while_loop(condition, step, start)  # type: ignore[no-untyped-call]


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlaps(first: Tensor, second: Tensor, first_areas: Tensor, second_areas: Tensor, iou: float) -> Tensor:
    """(R, A, B) bool of boxes (R, A, 4) and (R, B, 4), areas (R, A, 1) and (R, 1, B): is their IoU beyond `iou`."""
    corner = torch.maximum(first[:, :, None, :2], second[:, None, :, :2])
    other = torch.minimum(first[:, :, None, 2:], second[:, None, :, 2:])
    sides = (other - corner).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (first_areas + second_areas - shared) > iou
