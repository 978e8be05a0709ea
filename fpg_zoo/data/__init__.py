"""From folders of annotated images to batches: COCO and Pascal VOC, augmentation, loading."""
