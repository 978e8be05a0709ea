"""What an image is varied by: a random scale, a random crop, a flip as of the published recipe, and more by choice.

All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.augmentations import Part, distort_colors, draw_window, paste, put_together, rotate, whole
from fpg_zoo.data.dataset import Dataset, ImageInfo, Sample
from fpg_zoo.data.masks import Mask, Polygons, RunLengths, decode, rasterize
from fpg_zoo.data.user_transform import AugmentCallable, transformed
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.preprocess import scaled_size
from fpg_zoo.structures.boxes import clip, has_area
from fpg_zoo.text import quoted

# Views of one image that are tried where the crop must hold an object, and images then tried. With the recipe's
# factors a view in two shows the whole image.
_CROPS_TRIED = 16
_IMAGES_TRIED = 16
_MOSAIC_CENTER = (0.25, 0.75)  # of the crop, where the four images of a mosaic meet
_MOSAIC_SCALE = (0.5, 1.0)  # of the recipe's, as a corner has room for a part of an image only


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


def draw_crop(
    size: tuple[int, int],
    config: AugmentConfig,
    generator: np.random.Generator,
    *,
    corner: tuple[int, int] = (0, 0),
    most: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> Crop:
    """A random view of a part of an image: the factor and the place of the crop are uniform.

    Args:
        size: (height, width) of the part.
        config: how it is varied.
        generator: what the view is drawn from.
        corner: (top, left) of the part in the image.
        most: (height, width) of the crop, which is smaller where the scaled part is; the config's square if None.
        scale: another factor on the longest side.
    """
    least, greatest = config.factors
    longest_side = max(int(config.longest_side * scale * generator.uniform(least, greatest)), 1)
    resized = scaled_size(*size, longest_side / max(size))
    height, width = (min(side, limit) for side, limit in zip(resized, most or (config.crop, config.crop), strict=True))
    top, left = (
        int(generator.integers(0, side - part + 1)) for side, part in zip(resized, (height, width), strict=True)
    )
    flipped = bool(generator.random() < config.flip)
    return Crop(
        original=size, resized=resized, corner=(top, left), size=(height, width), flipped=flipped, part_corner=corner
    )


def augmented(
    dataset: Dataset,
    index: int,
    config: AugmentConfig,
    generator: np.random.Generator,
    transform: AugmentCallable | None = None,
) -> Augmented:
    """A random view of an image; of another, where there must be an object and no view of this one has any.

    What is drawn of it, in this order: a mosaic, or a view of a part; what is pasted onto it; a turn; colors.

    Args:
        dataset, index: which image.
        config: how it is varied. With `copy_paste`, the dataset has masks.
        generator: what all randomness comes from.
        transform: what is done in the end.

    Returns:
        The view with what is seen of its objects. An object stays if its box, clipped to the view, has an area.

    Raises:
        ImageError: an image cannot be read.
        ConfigError: no object is in any of many views that must have one, or in none after the transform; or this
            returned something else than it is to.
    """
    for _ in range(_IMAGES_TRIED):
        found = _varied(dataset, index, config, generator)
        if transform is None:
            return found
        image, target = transformed(
            transform, found.image, found.target, generator, crop=config.crop, classes=len(dataset.class_names)
        )
        if config.keep_empty_crops or len(target["boxes"]):
            return Augmented(image, target, found.info)
        index = int(generator.integers(len(dataset)))
    raise ConfigError(
        f"transform={quoted(transform)}: it left no object in {_IMAGES_TRIED} images, the last of them "
        f"{found.info.file.name}; let it keep some, or set keep_empty_crops"
    )


def _varied(dataset: Dataset, index: int, config: AugmentConfig, generator: np.random.Generator) -> Augmented:
    if _happens(config.mosaic, generator):
        found = _mosaic(dataset, index, config, generator)
    else:
        found = _view(dataset, index, config, generator)
    image, target = found.image, found.target
    if _happens(config.copy_paste, generator):
        source = _view(dataset, int(generator.integers(len(dataset))), config, generator)
        chosen = _some(source.target["masks"].any(-1).any(-1), generator)
        image, target = paste(image, target, source.image, source.target, chosen)
    if _happens(config.rotate90, generator):
        image, target = rotate(image, target, int(generator.integers(1, 4)))
    if config.photometric:
        image = distort_colors(image, generator)
    return Augmented(image, target, found.info)


def _happens(probability: float, generator: np.random.Generator) -> bool:
    """Nothing is drawn for what is off, so that the recipe's views are the same with and without the rest."""
    return probability > 0 and generator.random() < probability


def _some(possible: Tensor, generator: np.random.Generator) -> Tensor:
    """Some of (G,) bools that are true, as indices; at least one of them, each number of them as likely."""
    indices = possible.nonzero().flatten()
    if not len(indices):
        return indices
    number = int(generator.integers(1, len(indices) + 1))
    return indices[torch.from_numpy(generator.permutation(len(indices))[:number])]


def _view(
    dataset: Dataset,
    index: int,
    config: AugmentConfig,
    generator: np.random.Generator,
    *,
    most: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> Augmented:
    """A random view, `most` and `scale` as of `draw_crop`; of another image as of `augmented`."""
    for _ in range(_IMAGES_TRIED):
        info = dataset.image_info(index)
        boxes = info.objects.boxes
        for _ in range(_CROPS_TRIED):
            window = draw_window(info.size, boxes, generator) if config.iou_crop else whole(info.size, len(boxes))
            crop = draw_crop(window.size, config, generator, corner=window.corner, most=most, scale=scale)
            if config.keep_empty_crops or has_area(crop.boxes(boxes[window.seen])).any():
                return apply_crop(dataset[index], crop, window.seen)
        index = int(generator.integers(len(dataset)))
    raise ConfigError(
        f"crop={config.crop}: no object in {_IMAGES_TRIED * _CROPS_TRIED} crops of that size, the last of "
        f"{info.file.name}; make it larger, or set keep_empty_crops"
    )


def _mosaic(dataset: Dataset, index: int, config: AugmentConfig, generator: np.random.Generator) -> Augmented:
    """Four images in the corners of a square, each cut to its corner (Bochkovskiy et al., arXiv 2004.10934).

    They meet at a random point. One that does not fill its corner touches this point, and gray is beyond it.
    """
    config = dataclasses.replace(config, iou_crop=False)  # a corner shows a part anyway; of a part, little is left
    side = config.crop
    middle_y, middle_x = (int(side * share) for share in generator.uniform(*_MOSAIC_CENTER, size=2))
    indices = [index, *generator.integers(len(dataset), size=3).tolist()]
    views, parts = [], []
    for place, image in enumerate(indices):
        below, right = divmod(place, 2)
        room = (side - middle_y if below else middle_y, side - middle_x if right else middle_x)
        if min(room) < 1:  # of a crop of few pixels
            continue
        view = _view(dataset, image, config, generator, most=room, scale=generator.uniform(*_MOSAIC_SCALE))
        height, width = view.image.shape[-2:]
        corner = (middle_y if below else middle_y - height, middle_x if right else middle_x - width)
        views.append(view)
        parts.append(Part(view.image, view.target, corner))
    image, target = put_together(parts, (side, side))
    return Augmented(image, target, views[0].info)


def apply_crop(sample: Sample, crop: Crop, seen: np.ndarray | None = None) -> Augmented:
    """A sample through a view of it.

    Args:
        sample, crop: what is seen.
        seen: (G,) bool, objects that are left out if they are False; None keeps all.
    """
    objects = sample.info.objects
    boxes = crop.boxes(objects.boxes)
    kept = has_area(boxes)
    if seen is not None:
        kept &= torch.from_numpy(seen)
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
        original: (height, width) of the image, or of the part of it that is looked at.
        resized: (height, width) it is scaled to.
        corner: (top, left) of the crop in the resized image.
        size: (height, width) of the crop, which lies within the resized image.
        flipped: the crop is mirrored left to right.
        part_corner: (top, left) in the image of the part that is looked at.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    flipped: bool
    part_corner: tuple[int, int] = (0, 0)

    def image(self, image: Tensor) -> Tensor:
        """The pixels seen.

        Resized bilinearly with half-pixel centers and without antialiasing. torch's own arithmetic differs from
        `modeling.preprocess.resize` by a gray level and takes a twentieth of the time. What is trained on is scaled at
        random anyway.

        Args:
            image: (3, H, W) uint8, all of it.

        Returns:
            (3, height, width) uint8, of `size`.
        """
        (top, left), (height, width) = self.part_corner, self.original
        image = image[:, top : top + height, left : left + width]
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
        moved: np.ndarray = (points - np.array(self.part_corner[::-1])) * scale - np.array(self.corner[::-1])
        if self.flipped:
            moved[..., 0] = self.size[1] - moved[..., 0]
        return moved

    def _drawn(self, mask: Polygons) -> np.ndarray:
        return rasterize(Polygons(tuple(self._points(part) for part in mask.parts)), self.size)

    def _sampled(self, mask: RunLengths) -> np.ndarray:
        """Each pixel of the view takes the mask's pixel under its center."""
        rows, columns = (
            ((np.arange(first, first + number) + 0.5) * (original / resized)).astype(np.int64).clip(max=original - 1)
            + begin
            for begin, first, number, original, resized in zip(
                self.part_corner, self.corner, self.size, self.original, self.resized, strict=True
            )
        )
        if self.flipped:
            columns = columns[::-1]
        sampled: np.ndarray = decode(mask)[rows[:, None], columns]
        return sampled
