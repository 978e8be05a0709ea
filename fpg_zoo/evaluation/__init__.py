"""How good detections are, by COCO's metrics and the report, and what a pass costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpg_zoo.evaluation.coco_metrics import coco_scores

__all__ = ["coco_scores"]


def __getattr__(name: str) -> Any:
    if name != "coco_scores":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fpg_zoo.evaluation.coco_metrics import coco_scores  # takes pycocotools, which benchmarks do without

    return coco_scores
