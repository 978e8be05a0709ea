"""A data set that needs no download: drawn scenes of ten shapes."""

from fpg_zoo.data.shapes.dataset import NUM_IMAGES, SIZE, ShapesDataset, Split, write_coco

__all__ = ["NUM_IMAGES", "SIZE", "ShapesDataset", "Split", "write_coco"]
