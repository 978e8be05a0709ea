"""Which shapes a scene shows, and where: all that annotations say, without pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fpg_zoo.data.shapes.outlines import CLASSES, FINE, TURNS, Stamp, placed, rasterised

MOST_OBJECTS = 12  # in a scene
# How many of 100 objects have a circle (`Outline`'s) of a diameter from .. to so many pixels, uniform in between.
SIZES = ((6, 18, 22), (18, 22, 32), (34, 32, 56), (28, 56, 88), (14, 88, 120))
# What of an object stays visible, within the image and not behind others: so many of 100 pixels, and so many pixels.
LEAST_SHARE = 50
LEAST_PIXELS = 48
_PLACES_TRIED = 8  # for an object, before another is taken in its stead
_NEAR = 30  # of 100 objects are put near another, so that they overlap
_RANGES = tuple((least, greatest) for share, least, greatest in SIZES for _ in range(share))
_EDITION = 1  # another number gives other scenes
_BLOCK = 256  # numbers that are drawn ahead, to be quick
_NOBODY = -1


class Draws:
    """Random whole numbers that depend on a key only.

    They are made of PCG64's raw output, which numpy promises to keep; the methods of its `Generator` may change.
    """

    def __init__(self, *key: int) -> None:
        self._source = np.random.PCG64(np.random.SeedSequence(_EDITION, spawn_key=key))
        self._words: list[int] = []

    def below(self, number: int) -> int:
        """Uniform from 0 to `number` - 1."""
        if not self._words:
            self._words = self._source.random_raw(_BLOCK).tolist()
        return self._words.pop() * number >> 64

    def between(self, least: int, greatest: int) -> int:
        """Uniform, both ends included."""
        return least + self.below(greatest - least + 1)

    def happens(self, percent: int) -> bool:
        """True in so many of 100 cases."""
        return self.below(100) < percent

    def octets(self, *shape: int) -> np.ndarray:
        """(*shape) uint8, uniform from 0 to 255."""
        number = math.prod(shape)
        words = self._source.random_raw(-(-number // 8))
        return words.astype("<u8").view(np.uint8)[:number].reshape(shape)


@dataclass(frozen=True, eq=False)
class Placed:
    """An object of a scene.

    Attributes:
        label: index into `CLASSES`.
        extent: diameter of its circle, in 1/64 pixel.
        stamp: where it is, whole; parts may be hidden or out of the image.
    """

    label: int
    extent: int
    stamp: Stamp


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects of one image, at least one, from back to front.

    Attributes:
        key: that its random numbers depend on.
        objects: G of them.
        owner: (H, W) int8 in columns (Fortran order): the object that is seen at each pixel, -1 for the background.
    """

    key: tuple[int, ...]
    objects: tuple[Placed, ...]
    owner: np.ndarray

    def visible(self, index: int) -> np.ndarray:
        """(H, W) bool in columns: the pixels of an object that are seen."""
        seen: np.ndarray = self.owner == index
        return seen

    def boxes(self) -> np.ndarray:
        """(G, 4) float32 xyxy in pixels, tight around what is seen of each object."""
        boxes = np.empty((len(self.objects), 4), dtype=np.float32)
        for index, (box, thing) in enumerate(zip(boxes, self.objects, strict=True)):
            frame, _ = crossing(thing.stamp.corner, thing.stamp.cover.shape, self.owner.shape)
            seen = self.owner[frame] == index
            rows, columns = (
                np.flatnonzero(seen.any(axis=axis)) + part.start for axis, part in zip((1, 0), frame, strict=True)
            )
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


# An image's annotations are asked for before its pixels, and again with them.
@functools.lru_cache(maxsize=2)
def scene(key: tuple[int, ...], size: tuple[int, int]) -> Scene:
    """The scene of a key, of `size` (height, width) in pixels."""
    draws = Draws(*key, 0)
    owner = np.full(size, _NOBODY, dtype=np.int8, order="F")
    objects: list[Placed] = []
    visible = np.zeros(MOST_OBJECTS, dtype=np.int64)  # pixels of each object, by now
    needed = np.zeros(MOST_OBJECTS, dtype=np.int64)
    attempts = draws.between(1, MOST_OBJECTS)
    while attempts > 0 or not objects:
        attempts -= 1
        item = _placed(draws, size)
        mask = item.stamp.cover >= 2
        need = max(LEAST_PIXELS, -(-int(np.count_nonzero(mask)) * LEAST_SHARE // 100))
        for _ in range(_PLACES_TRIED):
            corner = _place(draws, mask.shape, size, objects)
            frame, part = crossing(corner, mask.shape, size)
            under = owner[frame]
            seen = mask[part]
            hidden = np.bincount(under[seen] + 1, minlength=MOST_OBJECTS + 1)  # the background's pixels come first
            left = visible - hidden[1:]
            if hidden.sum() >= need and (left >= needed).all():
                under[seen] = len(objects)
                visible = left
                visible[len(objects)], needed[len(objects)] = hidden.sum(), need
                objects.append(replace(item, stamp=replace(item.stamp, corner=corner)))
                break
    owner.setflags(write=False)
    return Scene(key, tuple(objects), owner)


def crossing(
    corner: tuple[int, int], shape: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a bitmap meets an image: rows and columns of the image, and those of the bitmap.

    Args:
        corner: (top, left) of the bitmap in the image, negative if it sticks out.
        shape: (height, width) of the bitmap.
        size: (height, width) of the image.
    """
    (top, left), (height, width) = corner, shape
    y1, x1 = max(top, 0), max(left, 0)
    y2, x2 = max(min(top + height, size[0]), y1), max(min(left + width, size[1]), x1)
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def _placed(draws: Draws, size: tuple[int, int]) -> Placed:
    """An object of random class, size and angle, around the origin."""
    label = draws.below(len(CLASSES))
    least, greatest = _RANGES[draws.below(len(_RANGES))]
    extent = min(draws.between(least * FINE, greatest * FINE), min(size) * FINE // 2)
    centre = draws.below(FINE), draws.below(FINE)
    outline = placed(tuple(CLASSES.values())[label], extent // 2, draws.below(TURNS), centre)
    return Placed(label, extent, rasterised(outline))


def _place(draws: Draws, shape: tuple[int, ...], size: tuple[int, int], objects: Sequence[Placed]) -> tuple[int, int]:
    """A random corner (top, left) for a bitmap that sticks out of the image by a quarter of its sides at most."""
    other = objects[draws.below(len(objects))].stamp if objects and draws.happens(_NEAR) else None
    corner = []
    for axis in (0, 1):
        least, greatest = -(shape[axis] // 4), size[axis] - shape[axis] + shape[axis] // 4
        if other is None:
            corner.append(draws.between(least, greatest))
        else:
            near = other.corner[axis] + (other.cover.shape[axis] - shape[axis]) // 2
            reach = (other.cover.shape[axis] + shape[axis]) // 3
            corner.append(min(max(draws.between(near - reach, near + reach), least), greatest))
    return corner[0], corner[1]
