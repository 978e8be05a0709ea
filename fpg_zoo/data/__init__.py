"""From folders of annotated pictures to batches: COCO and Pascal VOC, augmentation, loading."""
