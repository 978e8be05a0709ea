"""How good detections are: COCO's metrics and the report."""

from fpg_zoo.evaluation.coco_metrics import coco_scores

__all__ = ["coco_scores"]
