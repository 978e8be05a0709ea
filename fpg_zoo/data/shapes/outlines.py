"""Outlines of discs and convex polygons, turned and rasterized in whole numbers: the same pixels on every platform.

Frames: an outline's own, in 1/1024 of the radius of its circle, and the image's, in 1/64 pixel from some pixel's
corner. x points right, y down. Bitmaps have 2 x 2 samples in each pixel, which lie 1/4 pixel from its sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FINE = 64  # of a pixel: coordinates are rounded to 1/64
TURNS = 256  # angles in a full turn
_UNIT = 1024  # of an outline's own frame
_PRECISION = 14  # bits of sines and cosines
SINES = tuple(round(math.sin(2 * math.pi * angle / TURNS) * 2**_PRECISION) for angle in range(TURNS))

Point = tuple[int, int]


@dataclass(frozen=True)
class Disc:
    """A center (x, y) and a radius, in whole units of either frame."""

    centre: Point
    radius: int


@dataclass(frozen=True)
class Convex:
    """Corners (x, y) of a convex polygon, clockwise on the screen, in whole units of either frame."""

    corners: tuple[Point, ...]


Part = Disc | Convex


@dataclass(frozen=True)
class Outline:
    """What is in one of `added` and in none of `removed`."""

    added: tuple[Part, ...]
    removed: tuple[Part, ...] = ()


def _rectangle(x1: int, y1: int, x2: int, y2: int) -> Convex:
    return Convex(((x1, y1), (x2, y1), (x2, y2), (x1, y2)))


# Each within the circle of radius 1024 about its origin. The inner corners of the star, at 0.4 of its radius, lie a
# little outside a pentagram's; the tangents from the heart's tip touch its discs at (+-802, -1).
CLASSES: dict[str, Outline] = {
    "circle": Outline((Disc((0, 0), 900),)),
    "square": Outline((_rectangle(-724, -724, 724, 724),)),
    "triangle": Outline((Convex(((0, -1024), (887, 512), (-887, 512))),)),
    "star": Outline(
        (
            Convex(((0, -1024), (241, -331), (-241, -331))),
            Convex(((974, -316), (390, 127), (241, -331))),
            Convex(((602, 828), (0, 410), (390, 127))),
            Convex(((-602, 828), (-390, 127), (0, 410))),
            Convex(((-974, -316), (-241, -331), (-390, 127))),
            Convex(((-241, -331), (241, -331), (390, 127), (0, 410), (-390, 127))),
        )
    ),
    "ring": Outline((Disc((0, 0), 980),), (Disc((0, 0), 540),)),
    "cross": Outline((_rectangle(-970, -310, 970, 310), _rectangle(-310, -970, 310, 970))),
    "heart": Outline(
        (
            Disc((-430, -307), 481),
            Disc((430, -307), 481),
            Convex(((-430, -307), (430, -307), (802, -1), (0, 973), (-802, -1))),
        )
    ),
    "crescent": Outline((Disc((0, 0), 980),), (Disc((430, 0), 770),)),
    "arrow": Outline((_rectangle(-980, -240, 60, 240), Convex(((50, -760), (1010, 0), (50, 760))))),
    "bolt": Outline((Convex(((280, -980), (200, 210), (-640, 210))), Convex(((-280, 980), (-200, -210), (640, -210))))),
}


@dataclass(frozen=True, eq=False)
class Stamp:
    """An outline on pixels.

    Attributes:
        corner: (top, left) of the bitmap in whole pixels of the image.
        inside: (2h, 2w) bool; its outermost pixels hold no sample.
        cover: (h, w) uint8, 0..4 samples of each pixel; 2 and more make the pixel a part of the object's mask.
    """

    corner: tuple[int, int]
    inside: np.ndarray
    cover: np.ndarray


def turn(point: Point, angle: int) -> Point:
    """A point turned clockwise on the screen by `angle` of 256, and multiplied by 2**14."""
    (x, y), sine, cosine = point, SINES[angle % TURNS], SINES[(angle + TURNS // 4) % TURNS]
    return x * cosine - y * sine, x * sine + y * cosine


def placed(outline: Outline, radius: int, angle: int, centre: Point) -> Outline:
    """An outline in the image's frame, of an outline in its own.

    Args:
        outline: in 1/1024 of its radius.
        radius: of its circle, in 1/64 pixel.
        angle: of 256, clockwise on the screen.
        center: (x, y) in 1/64 pixel.
    """
    scale = _UNIT << _PRECISION

    def moved(point: Point) -> Point:
        x, y = turn(point, angle)
        return centre[0] + (x * radius + scale // 2) // scale, centre[1] + (y * radius + scale // 2) // scale

    def move(part: Part) -> Part:
        if isinstance(part, Disc):
            return Disc(moved(part.centre), part.radius * radius // _UNIT)
        return Convex(tuple(map(moved, part.corners)))

    return Outline(tuple(map(move, outline.added)), tuple(map(move, outline.removed)))


def rasterised(outline: Outline) -> Stamp:
    """An outline in the image's frame on its pixels."""
    left, top, right, bottom = _bounds(outline)
    columns = np.arange(2 * left, 2 * right, dtype=np.int32) * (FINE // 2) + FINE // 4
    rows = (np.arange(2 * top, 2 * bottom, dtype=np.int32) * (FINE // 2) + FINE // 4)[:, None]
    inside = _holds(outline.added[0], rows, columns)
    for part in outline.added[1:]:
        inside |= _holds(part, rows, columns)
    for part in outline.removed:
        inside &= ~_holds(part, rows, columns)
    return Stamp((top, left), inside, cover(inside))


def cover(inside: np.ndarray) -> np.ndarray:
    """(h, w) uint8, the number of samples in each pixel of a bitmap (2h, 2w) bool."""
    subpixels = inside.view(np.uint8)
    counted: np.ndarray = subpixels[::2, ::2] + subpixels[1::2, ::2] + subpixels[::2, 1::2] + subpixels[1::2, 1::2]
    return counted


def eroded(inside: np.ndarray, steps: int) -> np.ndarray:
    """A bitmap without what lies within about `steps` samples of its border, by an octagon's measure."""
    kept = inside
    for step in range(steps):
        before, kept = kept, kept.copy()
        kept[1:] &= before[:-1]
        kept[:-1] &= before[1:]
        across = kept.copy() if step % 2 else before  # along both axes at once, or as a square by turns
        kept[:, 1:] &= across[:, :-1]
        kept[:, :-1] &= across[:, 1:]
    return kept


def _bounds(outline: Outline) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in whole pixels, with a pixel to spare on each side."""
    corners = [
        corner
        for part in outline.added
        for corner in (part.corners if isinstance(part, Convex) else _box_corners(part))
    ]
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*corners, strict=True))
    return left // FINE - 1, top // FINE - 1, right // FINE + 2, bottom // FINE + 2


def _box_corners(disc: Disc) -> tuple[Point, Point]:
    (x, y), radius = disc.centre, disc.radius
    return (x - radius, y - radius), (x + radius, y + radius)


def _holds(part: Part, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Which samples are in a part: (R, C) bool of rows (R, 1) and columns (C,) int32, all in 1/64 pixel.

    Each test comes apart into a number of the row and one of the column. With an outline and its bounds below 2**14,
    256 pixels, none overflows; where in the image they are does not matter.
    """
    inside: np.ndarray
    if isinstance(part, Disc):
        (x, y), radius = part.centre, part.radius
        inside = (columns - x) ** 2 <= radius**2 - (rows - y) ** 2
        return inside
    inside = np.ones((len(rows), len(columns)), dtype=bool)
    for (x1, y1), (x2, y2) in zip(part.corners, part.corners[1:] + part.corners[:1], strict=True):
        inside &= (y2 - y1) * (columns - x1) <= (x2 - x1) * (rows - y1)
    return inside
