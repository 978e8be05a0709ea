"""From images to detections in their own pixels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import on_terminal
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.merging import merge
from fpg_zoo.inference.prefetch import prefetch
from fpg_zoo.inference.prepare import prepare
from fpg_zoo.inference.views import in_image, scaled, together, views_of
from fpg_zoo.modeling.preprocess import padded_size, preprocess, resized_size
from fpg_zoo.progress import tqdm
from fpg_zoo.structures import Detections, check_score
from fpg_zoo.structures.images import (
    ChannelOrder,
    ImageLike,
    check_channel_order,
    is_upright_rgb,
    read_image,
    to_pixels,
)
from fpg_zoo.text import printable
from fpg_zoo.uploads import prefetch_to_device, to_device

if TYPE_CHECKING:
    from PIL import Image

    from fpg_zoo.inference.open_model import AnyDetector


LEAST_SLICE = 32  # pixels


@dataclass(frozen=True)
class _Manner:
    """How images are looked at; the fields are arguments of calling a predictor."""

    score: float
    max_detections: int | None
    slice: int | None
    overlap: float
    whole_image: bool
    tta: bool

    def __post_init__(self) -> None:
        check_score(self.score)
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"max_detections={self.max_detections}: it takes at least 1")
        if self.slice is not None and self.slice < LEAST_SLICE:
            raise ValueError(f"slice={self.slice}: a tile takes at least {LEAST_SLICE} pixels a side")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap={self.overlap}: the share of a tile that its neighbor covers lies in 0..0.9")


class Predictor:
    """A model with everything before and after it.

    Args:
        model: a detector, in eval mode whenever it is used, of the device and floating-point type to compute in. Or an
            exported one, or its file's path.
        compile: compile the model's network, in place, as of `fpg_zoo.inference.compiled.compile_network`.
        masks_to_cpu: give masks on the CPU, as everything else. If False they stay on the model's device, where
            `Detections.to_coco` makes run lengths of them, and bitmaps need not come over. Not with `slice` or `tta`.

    Raises:
        ExportError: the path is of no exported file, or its runtime is not installed.
        ConfigError: `compile` with an exported file.
    """

    def __init__(self, model: AnyDetector | str | Path, *, compile: bool = False, masks_to_cpu: bool = True) -> None:
        self._masks_to_cpu = masks_to_cpu
        self.model = ExportedDetector(model) if isinstance(model, (str, Path)) else model
        if compile:
            prepare(self.model, compile=True)

    def __repr__(self) -> str:
        """Such as `Predictor(TwoStageDetector(mask_rcnn_nano_fpg, 10 classes, float32 on cpu))`."""
        return f"Predictor({self.model!r})"

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 1,
        *,
        score: float = 0.0,
        max_detections: int | None = None,
        slice: int | None = None,
        overlap: float = 0.2,
        whole_image: bool = True,
        tta: bool = False,
        channel_order: ChannelOrder = "rgb",
    ) -> list[Detections]:
        """Detect objects in images; of more than one, progress is shown on a terminal.

        While the model looks at some images, a thread reads the next ones.

        Args:
            images: one of what `fpg_zoo.structures.images.read_image` takes, or a list or tuple of several.
            batch_size: images taken together; those of equal size after padding share a pass. Results do not depend
                on it but for rounding. Twice as many are in memory at a time. With `slice` or `tta`, it counts views
                of one image.
            score: the least score, 0..1. Masks of what is below it are not made: each takes a byte for every pixel of
                its image.
            max_detections: how many of an image are given at most, the best ones. None for all that the model gives,
                100 of a view unless its config says otherwise.
            slice: side in pixels of the square tiles, at least 32, that a large image is looked at in, each enlarged
                or reduced as an image of its own. None for whole images only.
            overlap: the least share of a tile that its neighbor covers, too, 0..0.9. Objects up to this size are
                whole in some tile. Larger ones are joined of their parts; where tiles do not overlap, they are not.
            whole_image: with `slice`, look at the whole image, too, which finds what is larger than a tile.
            tta: test-time augmentation: look at each image, or tile, six times, at 0.8, 1 and 1.25 times the network's
                usual size, as it is and mirrored. `fpg_zoo.inference.merging` has how views are merged.
            channel_order: of arrays' colors: `rgb`, or `bgr` as `cv2.imread` gives them. Of no effect on others.

        Returns:
            Per image its detections, best score first, on the CPU, boxes and masks in pixels of the image upright:
            (height, width) as `read_image` gives it.

        Raises:
            ImageError: one of them cannot be read as an image.
            ConfigError: `tta` with an exported file that does not take every size.
            ValueError: a number or `channel_order` is not as above, or the model in train mode.
        """
        manner = _Manner(score, max_detections, slice, overlap, whole_image, tta)
        self._check(batch_size, manner, channel_order)
        inputs: list[ImageLike] = list(images) if isinstance(images, (list, tuple)) else [cast(ImageLike, images)]
        batches = [inputs[first : first + batch_size] for first in range(0, len(inputs), batch_size)]
        reading = functools.partial(_read, channel_order=channel_order)
        # A single batch needs no thread.
        read = (coming.result() for coming in prefetch(reading, batches)) if len(batches) > 1 else map(reading, batches)
        # For a single image a bar would tell nothing, and it would stand under the bar of a caller's own loop.
        with tqdm(total=len(inputs), unit="image", disable=len(inputs) == 1 or not on_terminal(), leave=False) as bar:
            results = []
            for detections in self._detect_all(read, batch_size, manner, prefetch_batches=True):
                results.append(detections)
                bar.update()
        return results

    def stream(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 1,
        *,
        score: float = 0.0,
        max_detections: int | None = None,
        slice: int | None = None,
        overlap: float = 0.2,
        whole_image: bool = True,
        tta: bool = False,
        channel_order: ChannelOrder = "rgb",
    ) -> Iterator[Detections]:
        """As calling it, but reads images and gives detections as it goes, so that memory stays that of one batch.

        No image is asked for before those at hand are done. No progress is shown.

        Args:
            images: any iterable of what `fpg_zoo.structures.images.read_image` takes, such as
                `fpg_zoo.inference.video.frames`.
            batch_size, score, max_detections, slice, overlap, whole_image, tta, channel_order: as of calling it.

        Returns:
            An iterator over the images' detections, in their order.

        Raises:
            TypeError: `images` is a single image.
            ImageError: one of them cannot be read as an image; raised when its turn comes.
            ConfigError: as of calling it.
            ValueError: a number or `channel_order` is not as above; or, when the first turn comes, the model is in
                train mode.
        """
        if isinstance(images, get_args(ImageLike)):
            raise TypeError(
                f"images is a single {type(images).__name__}: pass an iterable of images, or call the predictor"
            )
        manner = _Manner(score, max_detections, slice, overlap, whole_image, tta)
        self._check(batch_size, manner, channel_order)
        iterator = iter(images)
        batches = iter(lambda: _read(itertools.islice(iterator, batch_size), channel_order), [])
        return self._detect_all(batches, batch_size, manner, prefetch_batches=False)

    def _check(self, batch_size: int, manner: _Manner, channel_order: ChannelOrder) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it takes at least 1")
        check_channel_order(channel_order)
        model = self.model
        if manner.tta and isinstance(model, ExportedDetector):
            description = model.description
            if description.takes_pixels or description.size is not None:
                raise ConfigError(
                    f"tta: {printable(model.path)} does not take images of several sizes; use the model, or export it "
                    "with --dynamic size"
                )

    def _detect_all(
        self, batches: Iterable[list[Image.Image]], batch_size: int, manner: _Manner, *, prefetch_batches: bool
    ) -> Iterator[Detections]:
        """Each image's detections; with `prefetch_batches`, the next batch may be asked for before they are there."""
        if manner.slice is None and not manner.tta:
            moved: Iterator[list[Tensor]] = map(self._moved, batches)
            if prefetch_batches:
                moved = (pixels for _, pixels in prefetch_to_device(batches, _pixels_of, self._pixel_device))
            found = (self._detect(pixels, manner.score, 1.0) for pixels in moved)
        else:
            found = ([self._detect_views(image, batch_size, manner)] for batch in batches for image in batch)
        for results in found:
            yield from (detections[: manner.max_detections] for detections in results)

    def _detect_views(self, image: Image.Image, batch_size: int, manner: _Manner) -> Detections:
        size = (image.height, image.width)
        views = views_of(
            size, slice=manner.slice, overlap=manner.overlap, whole_image=manner.whole_image, tta=manner.tta
        )
        parts = []
        numbered = iter(enumerate(views))
        for scale, same in itertools.groupby(numbered, key=lambda pair: pair[1].scale):
            while batch := list(itertools.islice(same, batch_size)):
                results = self._detect(self._moved([view.of(image) for _, view in batch]), manner.score, scale)
                for (number, view), detections in zip(batch, results, strict=True):
                    parts.append(in_image(detections.to("cpu"), view, number, size))
        return merge(together(parts), size, self.model.class_names)

    @property
    def _pixel_device(self) -> torch.device:
        """Where images' pixels are to be."""
        model = self.model
        takes_pixels = isinstance(model, ExportedDetector) and model.description.takes_pixels
        return torch.device("cpu") if takes_pixels else model.device

    def _moved(self, images: Sequence[Image.Image]) -> list[Tensor]:
        device = self._pixel_device
        return [to_device(pixels, device) for pixels in _pixels_of(images)]

    def _detect(self, images: Sequence[Tensor], score: float, scale: float) -> list[Detections]:
        # What lies beyond an image is zero in the input but not in the maps, where biases are added: padding beyond
        # the image's own would change its detections. So only images of equal padded size share a pass.
        config = self.model.config.preprocess
        config = config if scale == 1.0 else scaled(config, scale)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            size = resized_size(image.shape[-2], image.shape[-1], config)
            groups.setdefault(padded_size(*size, config.pad_divisor), []).append(index)
        by_index: dict[int, Detections] = {}
        for members in groups.values():
            results = self._detect_batch([images[index] for index in members], score, config)
            by_index.update(zip(members, results, strict=True))
        return [by_index[index] for index in range(len(images))]

    def _detect_batch(self, images: Sequence[Tensor], score: float, config: PreprocessConfig) -> list[Detections]:
        model = self.model
        if isinstance(model, ExportedDetector) and model.description.takes_pixels:
            return model.detect_pixels(images, score=score)
        batch, sizes = preprocess(images, config)
        original_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        results = model.detect(batch, sizes, original_sizes, score=score)
        return [self._fetched(detections) for detections in results]

    def _fetched(self, detections: Detections) -> Detections:
        if self._masks_to_cpu:
            return detections.to("cpu")
        return replace(replace(detections, masks=None).to("cpu"), masks=detections.masks)


def _pixels_of(images: Sequence[Image.Image]) -> list[Tensor]:
    return [to_pixels(image) for image in images]


def _read(images: Iterable[ImageLike], channel_order: ChannelOrder) -> list[Image.Image]:
    return [
        cast("Image.Image", image) if is_upright_rgb(image) else read_image(image, channel_order=channel_order)
        for image in images
    ]
