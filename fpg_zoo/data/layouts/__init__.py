"""The layouts that data sets are found in: each gives its splits in COCO's terms."""
