"""Masks as annotation files hold them, polygons and run lengths: read, checked, and rasterised where they are seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from fpg_zoo.data.report import MASK_MALFORMED, MASK_MISSING, POLYGON_WITHOUT_AREA

_LEAST_NUMBERS = 6  # of a polygon with an area: three points


@dataclass(frozen=True, eq=False)
class Polygons:
    """A mask as the union of polygons.

    Attributes:
        parts: each (P, 2) float64, P >= 3: (x, y) of its corners in pixels of the picture. In float32 corners at tenths
            of a pixel, which rasterising rounds to fifths, would fall to the other side now and then.
    """

    parts: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class RunLengths:
    """A mask as COCO's compressed run lengths, down the columns.

    Attributes:
        size: (height, width) of the picture.
        counts: COCO's text for the lengths.
    """

    size: tuple[int, int]
    counts: bytes


Mask = Polygons | RunLengths


def read_mask(segmentation: object, size: tuple[int, int], complain: Callable[[str], None]) -> Mask | None:
    """Read what stands under `segmentation` in an annotation file.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...] in pixels, or run lengths {"size": [h, w], "counts": ...},
            the counts as COCO's text or as a list of numbers.
        size: (height, width) of the picture.
        complain: is told each kind of `fpg_zoo.data.report` that is wrong with it.

    Returns:
        The mask; None where there is none that can be used.
    """
    if not segmentation:
        complain(MASK_MISSING)
        return None
    try:
        if isinstance(segmentation, dict):
            return _run_lengths(segmentation, size)
        if not isinstance(segmentation, list):
            raise ValueError
        parts = [_polygon(part, size) for part in segmentation]
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


def _polygon(part: object, size: tuple[int, int]) -> np.ndarray:
    """(P, 2) float64. ValueError for anything but an even number of numbers, none of them far from the picture."""
    if not isinstance(part, list):
        raise ValueError
    numbers = np.asarray(part)  # ValueError where the entries are lists of unequal length
    if part and (numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or len(numbers) % 2):
        raise ValueError
    points = numbers.reshape(-1, 2)
    # Rasterising takes memory with the length of the outline, so it must not be anything. NaN fails this, too.
    height, width = size
    if not ((points >= (-width, -height)) & (points <= (2 * width, 2 * height))).all():
        raise ValueError
    return points.astype(np.float64)


def _run_lengths(value: dict[str, object], size: tuple[int, int]) -> RunLengths:
    counts = value.get("counts")
    if value.get("size") != list(size):
        raise ValueError
    if isinstance(counts, list):
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise ValueError
        _check_lengths(lengths, size)
        counts = mask_api.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
    elif isinstance(counts, str):
        counts = counts.encode("ascii")
        _check_lengths(_decoded_lengths(counts), size)
    else:
        raise ValueError
    return RunLengths(size, counts)


def _check_lengths(lengths: np.ndarray, size: tuple[int, int]) -> None:
    # Lengths that do not fill the picture leave memory that pycocotools has not set in what it decodes.
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
    if (ends - starts).max() > 6:  # 35 bits: no picture has as many pixels
        raise ValueError
    place = np.arange(len(groups)) - np.repeat(starts, ends - starts + 1)
    lengths: np.ndarray = np.add.reduceat((groups & 31) << (5 * place), starts)
    lengths -= np.where(groups[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    lengths[1::2] = lengths[1::2].cumsum()
    lengths[2::2] = lengths[2::2].cumsum()
    return lengths


def rasterise(polygons: Polygons, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8, 1 inside; what of the polygons lies out of `size` is cut off."""
    mask: np.ndarray = mask_api.decode(compressed(polygons, size))
    return mask


def decode(mask: RunLengths) -> np.ndarray:
    """(height, width) uint8 of the whole picture, 1 inside."""
    decoded: np.ndarray = mask_api.decode({"size": list(mask.size), "counts": mask.counts})
    return decoded


def compressed(mask: Mask, size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths of a mask as pycocotools takes them; `size` is (height, width) of the picture."""
    if isinstance(mask, Polygons):
        rle: dict[str, Any] = mask_api.merge(
            mask_api.frPyObjects([part.ravel().tolist() for part in mask.parts], *size)
        )
        return rle
    return {"size": list(mask.size), "counts": mask.counts}
