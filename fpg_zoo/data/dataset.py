"""An annotated image: what an annotation file says of it, and its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from fpg_zoo.data.masks import Mask
from fpg_zoo.errors import ImageError
from fpg_zoo.structures.images import read_image, read_stored_image, to_pixels


@dataclass(frozen=True, eq=False)
class Objects:
    """G annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 xyxy in pixels of the image and within it, each with an area.
        labels: (G,) int64, 0-based classes.
        masks: G of them, of the whole image, None for an object without one; None where masks were not asked for.
        ids: G annotation ids, which name objects in messages. They need not be unique.
        bboxes: (G, 4) float64 [x, y, width, height] in pixels, which detections are compared with: as the file has
            them, so that they may reach out of the image.
        areas: (G,) float64 in pixels, which COCO's metrics of small, medium and large objects go by; mostly the mask's.
        places: (G,) int64, where the objects stand in the file, from 0 on; objects and crowds share the numbers.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: tuple[Mask | None, ...] | None
    ids: tuple[int | str, ...]
    bboxes: np.ndarray
    areas: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def no_objects(*, masks: bool) -> Objects:
    """Objects of an image that has none; with an empty tuple of masks, or with None for them."""
    return Objects(
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        masks=() if masks else None,
        ids=(),
        bboxes=np.zeros((0, 4), dtype=np.float64),
        areas=np.zeros(0, dtype=np.float64),
        places=np.zeros(0, dtype=np.int64),
    )


@dataclass(frozen=True, eq=False)
class ImageInfo:
    """What an annotation file says of one image.

    Attributes:
        image_id: of the file, as its results take it.
        file: where the pixels are.
        size: (height, width) in pixels; the frame of the objects.
        objects: the ground truth.
        crowds: regions that hold many objects, which are neither ground truth nor background.
    """

    image_id: int | str
    file: Path
    size: tuple[int, int]
    objects: Objects
    crowds: Objects


@dataclass(frozen=True, eq=False)
class Sample:
    """An annotated image with its pixels.

    Attributes:
        image: (3, H, W) uint8 RGB, of `info.size`.
        info: its annotations.
    """

    image: Tensor
    info: ImageInfo


class Dataset(Protocol):
    """A fixed number of annotated images; `CocoDataset` is one.

    Workers get copies of it by fork or by pickle.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def image_info(self, index: int) -> ImageInfo:
        """The annotations alone, without reading pixels."""
        ...


def read_pixels(file: Path, size: tuple[int, int]) -> Tensor:
    """An image's pixels in the frame of its annotations.

    An image that says how it is to be rotated (EXIF) is taken upright or as it is stored, whichever has the annotated
    size: tools that annotate do either. Upright if both have.

    Args:
        file: the image.
        size: (height, width) as annotated.

    Returns:
        (3, height, width) uint8 RGB.

    Raises:
        ImageError: it cannot be read, or has another size.
    """
    image = read_image(file)
    if (image.height, image.width) == size:
        return to_pixels(image)
    if (image.width, image.height) == size:
        stored = read_stored_image(file)
        if (stored.height, stored.width) == size:
            return to_pixels(stored)
    raise ImageError(
        f"{file}: {image.width}x{image.height} pixels, annotated as {size[1]}x{size[0]}; "
        "bring back the image that was annotated, or correct the annotation file"
    )
