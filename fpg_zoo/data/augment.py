"""The augmentation of the published recipe: a random scale, a random crop, a flip.

All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.dataset import Dataset, ImageInfo, Sample
from fpg_zoo.data.masks import Mask, Polygons, RunLengths, decode, rasterize
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.preprocess import scaled_size
from fpg_zoo.structures.boxes import clip, has_area

# Views of one image that are tried where the crop must hold an object, and images then tried. With the recipe's
# factors a view in two shows the whole image.
_CROPS_TRIED = 16
_IMAGES_TRIED = 16


@dataclass(frozen=True, eq=False)
class Augmented:
    """An image as it is trained on.

    Attributes:
        image: (3, h, w) uint8 RGB.
        target: `boxes` (G, 4) float32 xyxy in pixels of `image`, each with an area, and `labels` (G,) int64. Where the
            dataset has masks, also `masks` (G, h, w) bool. If an object has none, `has_mask` (G,) bool says which do.
        info: what it was made of.
    """

    image: Tensor
    target: dict[str, Tensor]
    info: ImageInfo


def draw_crop(size: tuple[int, int], config: AugmentConfig, generator: np.random.Generator) -> Crop:
    """A random view of an image of `size` (height, width): the factor and the place of the crop are uniform."""
    least, greatest = config.factors
    longest_side = max(int(config.longest_side * generator.uniform(least, greatest)), 1)
    resized = scaled_size(*size, longest_side / max(size))
    height, width = (min(side, config.crop) for side in resized)
    top, left = (
        int(generator.integers(0, whole - part + 1)) for whole, part in zip(resized, (height, width), strict=True)
    )
    flipped = bool(generator.random() < config.flip)
    return Crop(original=size, resized=resized, corner=(top, left), size=(height, width), flipped=flipped)


def augmented(dataset: Dataset, index: int, config: AugmentConfig, generator: np.random.Generator) -> Augmented:
    """A random view of an image; of another, where the crop must hold an object and no view of this one does.

    Args:
        dataset, index: which image.
        config: how it is varied.
        generator: what its randomness comes from.

    Returns:
        The view with what is seen of its objects. An object stays if its box, clipped to the view, has an area.

    Raises:
        ImageError: an image cannot be read.
        ConfigError: no object is in any of many crops that must hold one.
    """
    for _ in range(_IMAGES_TRIED):
        info = dataset.image_info(index)
        for _ in range(_CROPS_TRIED):
            crop = draw_crop(info.size, config, generator)
            if config.keep_empty_crops or has_area(crop.boxes(info.objects.boxes)).any():
                return apply_crop(dataset[index], crop)
        index = int(generator.integers(len(dataset)))
    raise ConfigError(
        f"crop={config.crop}: no object in {_IMAGES_TRIED * _CROPS_TRIED} crops of that size, the last of "
        f"{info.file.name}; make it larger, or set keep_empty_crops"
    )


def apply_crop(sample: Sample, crop: Crop) -> Augmented:
    """A sample through a view of it."""
    objects = sample.info.objects
    boxes = crop.boxes(objects.boxes)
    kept = has_area(boxes)
    target = {"boxes": boxes[kept], "labels": torch.from_numpy(objects.labels)[kept]}
    if objects.masks is not None:
        masks = [mask for mask, keep in zip(objects.masks, kept.tolist(), strict=True) if keep]
        target["masks"] = crop.masks(masks)
        if any(mask is None for mask in masks):
            target["has_mask"] = torch.tensor([mask is not None for mask in masks])
    return Augmented(crop.image(sample.image), target, sample.info)


@dataclass(frozen=True)
class Crop:
    """One way of seeing an image.

    Attributes:
        original: (height, width) of the image.
        resized: (height, width) it is scaled to.
        corner: (top, left) of the crop in the resized image.
        size: (height, width) of the crop, which lies within the resized image.
        flipped: the crop is mirrored left to right.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    flipped: bool

    def image(self, image: Tensor) -> Tensor:
        """The pixels seen.

        Resized bilinearly with half-pixel centers and without antialiasing. torch's own arithmetic differs from
        `modeling.preprocess.resize` by a gray level and takes a twentieth of the time. What is trained on is scaled at
        random anyway.

        Args:
            image: (3, H, W) uint8, of size `original`.

        Returns:
            (3, height, width) uint8, of `size`.
        """
        (top, left), (height, width) = self.corner, self.size
        if self.resized != self.original:
            image = functional.interpolate(image[None], self.resized, mode="bilinear", align_corners=False)[0]
        cropped = image[:, top : top + height, left : left + width]
        return cropped.flip(-1) if self.flipped else cropped.contiguous()

    def boxes(self, boxes: np.ndarray) -> Tensor:
        """(G, 4) float32 xyxy in pixels of the image to those of the view, clipped to it; some may have no area."""
        moved = torch.from_numpy(self._points(boxes.reshape(-1, 2, 2)).reshape(-1, 4).astype(np.float32))
        if self.flipped:
            moved = moved[:, [2, 1, 0, 3]]
        return clip(moved, self.size)

    def masks(self, masks: Sequence[Mask | None]) -> Tensor:
        """G masks of the image as (G, height, width) bool, of `size`: made inside the view only; nothing for None."""
        cropped = torch.zeros(len(masks), *self.size, dtype=torch.bool, device="cpu")
        for bitmap, mask in zip(cropped, masks, strict=True):
            if mask is None:
                continue
            drawn = self._drawn(mask) if isinstance(mask, Polygons) else self._sampled(mask)
            bitmap.copy_(torch.from_numpy(drawn))
        return cropped

    def _points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) float64 (x, y) in the view, of such in the image."""
        scale = np.array([self.resized[1] / self.original[1], self.resized[0] / self.original[0]])
        moved: np.ndarray = points * scale - np.array(self.corner[::-1])
        if self.flipped:
            moved[..., 0] = self.size[1] - moved[..., 0]
        return moved

    def _drawn(self, mask: Polygons) -> np.ndarray:
        return rasterize(Polygons(tuple(self._points(part) for part in mask.parts)), self.size)

    def _sampled(self, mask: RunLengths) -> np.ndarray:
        """Each pixel of the view takes the mask's pixel under its center."""
        rows, columns = (
            ((np.arange(first, first + number) + 0.5) * (original / resized)).astype(np.int64).clip(max=original - 1)
            for first, number, original, resized in zip(
                self.corner, self.size, self.original, self.resized, strict=True
            )
        )
        if self.flipped:
            columns = columns[::-1]
        sampled: np.ndarray = decode(mask)[rows[:, None], columns]
        return sampled
