"""Masks as annotation files hold them, polygons and run lengths: read, checked, and rasterized where they are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpg_zoo.data.annotation_problems import MASK_MALFORMED, MASK_MISSING, MASK_TOO_LARGE, POLYGON_WITHOUT_AREA
from fpg_zoo.errors import ConfigError
from fpg_zoo.structures.run_lengths import compress

# pycocotools counts pixels and places along an outline in 32 bits, and takes memory for each fifth of a pixel of an
# outline before it looks at anything. What lies beyond these bounds ends in a signal there, not in an error.
MAX_SIDE = 1 << 15  # pixels; of an image with masks
MAX_PIXELS = 1 << 28  # of an image with masks; Pillow opens none of as many
MAX_OUTLINE = 100  # of a polygon, in widths and heights of its image together; COCO's own have 4 at most

_LEAST_NUMBERS = 6  # of a polygon with an area: three points


@dataclass(frozen=True, eq=False)
class Polygons:
    """A mask as the union of polygons.

    Attributes:
        parts: each (P, 2) float64, P >= 3: (x, y) of its corners in pixels of the image. In float32 corners at tenths
            of a pixel, which rasterizing rounds to fifths, would fall to the other side now and then.
    """

    parts: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class RunLengths:
    """A mask as COCO's compressed run lengths, down the columns.

    Attributes:
        size: (height, width) of the image.
        counts: COCO's text for the lengths.
    """

    size: tuple[int, int]
    counts: bytes


Mask = Polygons | RunLengths


def pycocotools_mask() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise ConfigError("polygons and evaluation need the package pycocotools: pip install pycocotools") from None
    return mask


def read_mask(segmentation: object, size: tuple[int, int], complain: Callable[[str], None]) -> Mask | None:
    """Read what stands under `segmentation` in an annotation file.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...] in pixels, or run lengths {"size": [h, w], "counts": ...},
            the counts as COCO's text or as a list of whole numbers.
        size: (height, width) of the image.
        complain: is told each kind of `fpg_zoo.data.annotation_problems` that is wrong with it.

    Returns:
        The mask; None where there is none that can be used.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        complain(MASK_MISSING)
        return None
    if not can_have_masks(size):
        complain(MASK_TOO_LARGE)
        return None
    try:
        if isinstance(segmentation, dict):
            return _run_lengths(segmentation, size)
        if not isinstance(segmentation, list):
            raise ValueError
        parts = [_polygon(part, size) for part in segmentation]
    except _OutlineError:
        complain(MASK_TOO_LARGE)
        return None
    except (ValueError, TypeError, OverflowError):
        complain(MASK_MALFORMED)
        return None
    whole = tuple(part for part in parts if 2 * len(part) >= _LEAST_NUMBERS)
    if not whole:
        complain(MASK_MALFORMED)
        return None
    if len(whole) < len(parts):
        complain(POLYGON_WITHOUT_AREA)
    return Polygons(whole)


def can_have_masks(size: tuple[int, int]) -> bool:
    """Whether masks of an image of (height, width) pixels can be worked with, which `MAX_SIDE` and others bound."""
    return max(size) <= MAX_SIDE and size[0] * size[1] <= MAX_PIXELS


class _OutlineError(Exception):
    """A polygon's outline is longer than pycocotools can follow."""


def _polygon(part: object, size: tuple[int, int]) -> np.ndarray:
    """(P, 2) float64. ValueError for anything but an even number of numbers, none of them far from the image."""
    if not isinstance(part, list):
        raise ValueError
    numbers = np.asarray(part)  # ValueError where the entries are lists of unequal length
    if part and (numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or len(numbers) % 2):
        raise ValueError
    points = numbers.reshape(-1, 2).astype(np.float64)
    if not len(points):
        return points
    (height, width), (left, top), (right, bottom) = size, points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if not (-width <= left and -height <= top and right <= 2 * width and bottom <= 2 * height):  # NaN fails this, too
        raise ValueError
    longest = MAX_OUTLINE * (width + height)
    # The sides are added up only where there are enough of them to be too long together.
    if max(right - left, bottom - top) * len(points) > longest and _outline(points) > longest:
        raise _OutlineError
    return points


def _outline(points: np.ndarray) -> float:
    """The length of a closed outline of (P, 2) corners, each side as long as it reaches across or down."""
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def _run_lengths(value: dict[str, object], size: tuple[int, int]) -> RunLengths:
    counts = value.get("counts")
    if value.get("size") != list(size):
        raise ValueError
    if isinstance(counts, list):
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iuf" or (lengths != np.floor(lengths)).any():
            raise ValueError
        _check_lengths(lengths, size)
        counts = compress(lengths.astype(np.int64)).encode("ascii")
    elif isinstance(counts, str):
        counts = counts.encode("ascii")
        _check_lengths(_decoded_lengths(counts), size)
    else:
        raise ValueError
    return RunLengths(size, counts)


def _check_lengths(lengths: np.ndarray, size: tuple[int, int]) -> None:
    # Lengths that do not fill the image leave memory that pycocotools has not set in what it decodes.
    if (lengths < 0).any() or lengths.max() > size[0] * size[1] or lengths.sum() != size[0] * size[1]:
        raise ValueError


def _decoded_lengths(counts: bytes) -> np.ndarray:
    """The run lengths, int64, that COCO's text stands for.

    A length is written in groups of 5 bits, lowest first, 48 added to each; 32 marks that more follow, and 16 in the
    last is the sign. From the fourth length on, the text has the difference to the one before the previous.
    """
    groups = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups < 32)
    if (groups < 0).any() or (groups > 63).any() or not len(ends) or ends[-1] != len(groups) - 1:
        raise ValueError
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() > 6:  # 35 bits: no image has as many pixels
        raise ValueError
    place = np.arange(len(groups)) - np.repeat(starts, ends - starts + 1)
    lengths: np.ndarray = np.add.reduceat((groups & 31) << (5 * place), starts)
    lengths -= np.where(groups[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    lengths[1::2] = lengths[1::2].cumsum()
    lengths[2::2] = lengths[2::2].cumsum()
    return lengths


def is_empty(mask: Mask) -> bool:
    """Whether a mask has no pixel by its form: polygons of one point each, or run lengths of the background alone."""
    if isinstance(mask, Polygons):
        return all((part == part[0]).all() for part in mask.parts)
    return not _decoded_lengths(mask.counts)[1::2].any()


def rasterize(polygons: Polygons, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8, 1 inside; what of the polygons lies out of `size` is cut off."""
    mask: np.ndarray = pycocotools_mask().decode(compressed(polygons, size))
    return mask


def decode(mask: RunLengths) -> np.ndarray:
    """(height, width) uint8 of the whole image, 1 inside."""
    lengths = _decoded_lengths(mask.counts)
    values = np.arange(len(lengths), dtype=np.uint8) & 1
    pixels: np.ndarray = values.repeat(lengths).reshape(mask.size[::-1]).T
    return pixels


def compressed(mask: Mask, size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths of a mask as pycocotools takes them; `size` is (height, width) of the image."""
    if isinstance(mask, Polygons):
        mask_api = pycocotools_mask()
        rle: dict[str, Any] = mask_api.merge(
            mask_api.frPyObjects([part.ravel().tolist() for part in mask.parts], *size)
        )
        return rle
    return {"size": list(mask.size), "counts": mask.counts}


def box_around(mask: Mask, size: tuple[int, int]) -> list[float]:
    """[x, y, width, height] in pixels around a mask in an image of `size` (height, width); zeros for an empty one."""
    box: list[float] = pycocotools_mask().toBbox(compressed(mask, size)).tolist()
    return box


def filled(bbox: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths, as pycocotools takes them, of [x, y, width, height] in an image of `size` (height, width)."""
    x, y, across, down = bbox
    left, top = max(x, 0.0), max(y, 0.0)  # pycocotools takes memory for what lies outside, too
    clipped = [left, top, min(x + across, size[1]) - left, min(y + down, size[0]) - top]
    rle: dict[str, Any] = pycocotools_mask().frPyObjects(np.array([clipped], dtype=np.float64), *size)[0]
    return rle


def as_coco(mask: Mask) -> list[list[float]] | dict[str, Any]:
    """A mask as `segmentation` of an annotation, the counts of run lengths as bytes; `from_coco` is the way back."""
    if isinstance(mask, Polygons):
        return [part.ravel().tolist() for part in mask.parts]
    return {"size": list(mask.size), "counts": mask.counts}


def from_coco(segmentation: list[list[float]] | dict[str, Any]) -> Mask:
    """The mask of a `segmentation` that was checked before: of `as_coco`, or compressed run lengths of a detection."""
    if isinstance(segmentation, list):
        return Polygons(tuple(np.array(part, dtype=np.float64).reshape(-1, 2) for part in segmentation))
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    return RunLengths((height, width), counts.encode("ascii") if isinstance(counts, str) else counts)
