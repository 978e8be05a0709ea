"""From images to detections in their own pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from tqdm import tqdm

from fpg_zoo.files import on_terminal
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.prefetch import prefetch
from fpg_zoo.modeling.preprocess import padded_size, preprocess, resized_size
from fpg_zoo.structures import Detections, check_score
from fpg_zoo.structures.images import ImageLike, is_upright_rgb, read_image, to_pixels

if TYPE_CHECKING:
    from PIL import Image

    from fpg_zoo.inference.open_model import AnyDetector


class Predictor:
    """A model with everything before and after it.

    Args:
        model: a detector, in eval mode whenever it is used, of the device and floating-point type to compute in. Or an
            exported one, or its file's path.

    Raises:
        ExportError: the path is of no exported file, or its runtime is not installed.
    """

    def __init__(self, model: AnyDetector | str | Path) -> None:
        self.model = ExportedDetector(model) if isinstance(model, (str, Path)) else model

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 1, *, score: float = 0.0
    ) -> list[Detections]:
        """Detect objects in images; of more than one, progress is shown on a terminal.

        While the model looks at some images, a thread reads the next ones.

        Args:
            images: one of what `fpg_zoo.structures.images.read_image` takes, or a list or tuple of several.
            batch_size: images taken together; those of equal size after padding share a pass. Results do not depend
                on it but for rounding. Twice as many are in memory at a time.
            score: the least score, 0..1. Masks of what is below it are not made: each takes a byte for every pixel of
                its image.

        Returns:
            Per image its detections, best score first, on the CPU, boxes and masks in pixels of the image upright:
            (height, width) as `read_image` gives it.

        Raises:
            ImageError: one of them cannot be read as an image.
            ValueError: `batch_size` is less than 1, `score` outside 0..1, or the model in train mode.
        """
        _check(batch_size, score)
        inputs: list[ImageLike] = list(images) if isinstance(images, (list, tuple)) else [cast(ImageLike, images)]
        batches = [inputs[first : first + batch_size] for first in range(0, len(inputs), batch_size)]
        # A single batch needs no thread.
        read = (coming.result() for coming in prefetch(_read, batches)) if len(batches) > 1 else map(_read, batches)
        # For a single image a bar would tell nothing, and it would stand under the bar of a caller's own loop.
        with tqdm(total=len(inputs), unit="image", disable=len(inputs) == 1 or not on_terminal(), leave=False) as bar:
            results = []
            for detections in self._detect_all(read, score):
                results.append(detections)
                bar.update()
        return results

    def stream(self, images: Iterable[ImageLike], batch_size: int = 1, *, score: float = 0.0) -> Iterator[Detections]:
        """As calling it, but reads images and gives detections as it goes, so that memory stays that of one batch.

        No image is asked for before those at hand are done. No progress is shown.

        Args:
            images: any iterable of what `fpg_zoo.structures.images.read_image` takes.
            batch_size, score: as of calling it.

        Returns:
            An iterator over the images' detections, in their order.

        Raises:
            TypeError: `images` is a single image.
            ImageError: one of them cannot be read as an image; raised when its turn comes.
            ValueError: `batch_size` is less than 1 or `score` outside 0..1; or, when the first turn comes, the model
                is in train mode.
        """
        if isinstance(images, get_args(ImageLike)):
            raise TypeError(
                f"images is a single {type(images).__name__}: pass an iterable of images, or call the predictor"
            )
        _check(batch_size, score)
        iterator = iter(images)
        return self._detect_all(iter(lambda: _read(itertools.islice(iterator, batch_size)), []), score)

    def _detect_all(self, batches: Iterable[list[Image.Image]], score: float) -> Iterator[Detections]:
        for batch in batches:
            yield from self._detect(batch, score)

    def _detect(self, images: Sequence[Image.Image], score: float) -> list[Detections]:
        # What lies beyond an image is zero in the input but not in the maps, where biases are added: padding beyond
        # the image's own would change its detections. So only images of equal padded size share a pass.
        config = self.model.config.preprocess
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            size = resized_size(image.height, image.width, config)
            groups.setdefault(padded_size(*size, config.pad_divisor), []).append(index)
        by_index: dict[int, Detections] = {}
        for members in groups.values():
            by_index.update(zip(members, self._detect_batch([images[index] for index in members], score), strict=True))
        return [by_index[index] for index in range(len(images))]

    def _detect_batch(self, images: Sequence[Image.Image], score: float) -> list[Detections]:
        model = self.model
        if isinstance(model, ExportedDetector) and model.description.takes_pixels:
            return model.detect_pixels([to_pixels(image) for image in images], score=score)
        batch, sizes = preprocess([to_pixels(image).to(model.device) for image in images], model.config.preprocess)
        original_sizes = [(image.height, image.width) for image in images]
        results = model.detect(batch, sizes, original_sizes, score=score)
        return [detections.to("cpu") for detections in results]


def _read(images: Iterable[ImageLike]) -> list[Image.Image]:
    return [cast("Image.Image", image) if is_upright_rgb(image) else read_image(image) for image in images]


def _check(batch_size: int, score: float) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it takes at least 1")
    check_score(score)
