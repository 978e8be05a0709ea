"""A data set that needs no download: drawn scenes of ten shapes."""

from fpg_zoo.data.shapes.dataset import PICTURES, SIZE, ShapesDataset, Split, write_coco

__all__ = ["PICTURES", "SIZE", "ShapesDataset", "Split", "write_coco"]
