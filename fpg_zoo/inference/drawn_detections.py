"""What a model finds in a few images of a data set, drawn on them: to watch a training by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fpg_zoo.data.dataset import Dataset
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.structures.drawing import draw_detections
from fpg_zoo.text import printable

_SCORE = 0.3  # from which on detections are drawn
_LONGEST_SIDE = 800  # pixels of a drawn image


def drawn_detections(model: AnyDetector, dataset: Dataset, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Detections drawn on images of a data set.

    Args:
        model: in eval mode.
        dataset: its annotations are not looked at.
        indices: of the images, 0..len(dataset) - 1, each once; taken one after the other.

    Returns:
        Images by their ids, in the order of `indices`, each (H, W, 3) uint8 RGB of at most 800 pixels a side, with what
        is detected by a score of at least 0.3.

    Raises:
        ImageError: an image cannot be read.
    """
    predictor = Predictor(model)
    drawn: dict[str, np.ndarray] = {}
    for index in indices:
        sample = dataset[index]
        image = Image.fromarray(np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()))
        (detections,) = predictor(image, score=_SCORE)
        canvas = draw_detections(detections, image)
        canvas.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        drawn[printable(sample.info.image_id)] = np.asarray(canvas)
    return drawn
