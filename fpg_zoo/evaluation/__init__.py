"""How good detections are: COCO's metrics and the report."""

from fpg_zoo.data.masks import pycocotools_mask

pycocotools_mask()  # every module here needs it

from fpg_zoo.evaluation.coco_metrics import coco_scores  # noqa: E402

__all__ = ["coco_scores"]
