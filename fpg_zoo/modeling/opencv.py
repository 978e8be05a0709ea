"""OpenCV's resizer, where it is installed and gives the gray levels that the zoo's own does."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Resizer = Callable[[Pixels, tuple[int, int]], Pixels]  # (H, W, 3) and (height, width) to (height, width, 3)
_LARGEST = 2**15 - 1  # pixels of a side; beyond, OpenCV refuses some images


@functools.cache
def opencv_resizer(reference: Resizer) -> Resizer | None:
    """OpenCV's bilinear resizer; None where it is missing or another one.

    Some builds have resizers of the processor's maker in its place, whose values differ.

    Args:
        reference: that it has to equal, which it is compared with on a few small images.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except (ImportError, OSError):  # it is not there, or a library that it needs is not
        return None

    def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
        resized: Pixels = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        return resized

    random = np.random.default_rng(0)
    for given, wanted in (((37, 53), (64, 91)), ((90, 61), (41, 33)), ((40, 60), (20, 30)), ((5, 3), (33, 80))):
        image = random.integers(0, 256, (*given, 3), dtype=np.uint8)
        if not np.array_equal(resize(image, wanted), reference(image, wanted)):
            return None
    return resize


def is_in_range(*sizes: tuple[int, int]) -> bool:
    """Whether OpenCV takes images of these (height, width)."""
    return all(max(size) <= _LARGEST for size in sizes)
