"""How good detections are: COCO's figures and the report."""
