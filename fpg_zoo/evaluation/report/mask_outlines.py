"""Masks as outlines that a page can draw: polygons along the border of what is inside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fpg_zoo.data.masks import Mask, Polygons, decode

_GRID = 320  # cells along the longest side that run lengths are traced on
_TOLERANCE = 1.0  # cells that a simplified outline may lie off


def outlines(mask: Mask, size: tuple[int, int]) -> list[np.ndarray]:
    """The borders of a mask, holes included, for a fill by the even-odd rule.

    Args:
        mask: of the whole image.
        size: (height, width) of the image in pixels.

    Returns:
        Closed polygons, each (P, 2) float64 (x, y) in pixels of the image, P >= 3. Given polygons are as they were;
        of run lengths, they lie off by less than a hundredth of the longest side.
    """
    if isinstance(mask, Polygons):
        return list(mask.parts)
    cell = max(1, round(max(size) / _GRID))
    inside = decode(mask)[cell // 2 :: cell, cell // 2 :: cell].astype(bool)
    simplified = (_simplified(loop) for loop in _loops(inside))
    return [points * float(cell) for points in simplified if len(points) >= 3]


def _loops(inside: np.ndarray) -> Iterator[np.ndarray]:
    """Closed borders of (H, W) bool, along the sides of its cells: (P, 2) whole (x, y) each."""
    padded = np.pad(inside, 1)
    here = padded[1:-1, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Each side of a cell that has nothing beyond it, so that what is inside lies to the right of the way.
    for beyond, start, end in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        rows, columns = np.nonzero(here & ~beyond)
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    while following:
        first = next(iter(following))
        loop, point = [first], first
        while (point := _taken(following, point)) != first:
            loop.append(point)
        yield np.array(loop, dtype=np.float64)


def _taken(following: dict[tuple[int, int], list[tuple[int, int]]], point: tuple[int, int]) -> tuple[int, int]:
    """Where the way goes on from a point; taken out."""
    ends = following[point]
    end = ends.pop()
    if not ends:
        del following[point]
    return end


def _simplified(loop: np.ndarray) -> np.ndarray:
    """Fewer points of a closed border, the rest no further off than the tolerance (Douglas and Peucker's way)."""
    far = int(np.square(loop - loop[0]).sum(axis=1).argmax())
    closed = np.concatenate([loop, loop[:1]])
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, far]] = True
    waiting = [(0, far), (far, len(loop))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2:
            continue
        along = closed[end] - closed[start]
        off = closed[start + 1 : end] - closed[start]
        distances = np.abs(along[0] * off[:, 1] - along[1] * off[:, 0]) / max(float(np.hypot(*along)), 1e-9)
        furthest = int(distances.argmax())
        if distances[furthest] > _TOLERANCE:
            middle = start + 1 + furthest
            kept[middle] = True
            waiting += [(start, middle), (middle, end)]
    return loop[kept[:-1]]
