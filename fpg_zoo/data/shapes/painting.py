"""The pixels of a scene: background, clutter, textured objects and noise, all in whole numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fpg_zoo.data.shapes.outlines import (
    FINE,
    SINES,
    TURNS,
    Convex,
    Disc,
    Outline,
    Point,
    cover,
    eroded,
    placed,
    rasterised,
    turn,
)
from fpg_zoo.data.shapes.scenes import Draws, Placed, Scene, crossing

Color = tuple[int, int, int]  # red, green, blue, 0..255

_OPAQUE = 16
_OUTLINED = 35  # of 100 objects
_COLOURS_TRIED = 3  # for an object; the one that stands out most is taken
_CLUTTER = (4, 12)  # pieces in a scene
_NOISE = 14  # greatest change of a channel by a scene's noise, either way


def paint(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    draws = Draws(*scene.key, 1)
    image = _background(draws, scene.owner.shape)
    for _ in range(draws.between(*_CLUTTER)):
        _PIECES[draws.below(len(_PIECES))](draws, image)
    for thing in scene.objects:
        _paint_object(draws, image, thing)
    amplitude = draws.below(_NOISE + 1)
    if amplitude:
        noise = (draws.octets(*image.shape).astype(np.int16) - 128) * amplitude
        noise >>= 7
        noise += image
        image = noise.clip(0, 255).astype(np.uint8)
    return image


# Textures. Each is a map (h, w) int32 of 0..255, from one color to another. Coordinates are in 1/64 pixel, as is the
# period, of those that repeat.


def _soft(distance: np.ndarray) -> np.ndarray:
    """0 on one side of an edge and 255 on the other, a pixel wide; `distance` from it is in 1/64 pixel."""
    blended: np.ndarray = (distance * 4 + 128).clip(0, 255)
    return blended


def _axes(draws: Draws, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (h, w) int32 along two perpendicular axes of random angle, from the middle of the bitmap."""
    y, x = (np.arange(1 - side, side, 2, dtype=np.int32) * (FINE // 2) for side in shape)
    angle = draws.below(TURNS)
    sine, cosine = SINES[angle], SINES[(angle + TURNS // 4) % TURNS]
    return (x * cosine + (y * sine)[:, None]) >> 14, (x * -sine + (y * cosine)[:, None]) >> 14


def _wave(along: np.ndarray, period: int) -> np.ndarray:
    """Stripes across `along`, half of them each way."""
    return _soft(abs(along % period - period // 2) - period // 4)


def _stripes(draws: Draws, shape: tuple[int, ...], period: int) -> np.ndarray:
    return _wave(_axes(draws, shape)[0], period)


def _checks(draws: Draws, shape: tuple[int, ...], period: int) -> np.ndarray:
    across, down = _axes(draws, shape)
    checks: np.ndarray = abs(_wave(across, 2 * period) - _wave(down, 2 * period))
    return checks


def _dots(draws: Draws, shape: tuple[int, ...], period: int) -> np.ndarray:
    across, down = (axis % period - period // 2 for axis in _axes(draws, shape))
    radius = period // 3
    return _soft((radius**2 - across**2 - down**2) // (2 * radius))


def _slope(draws: Draws, shape: tuple[int, ...], period: int) -> np.ndarray:
    slope: np.ndarray = (_axes(draws, shape)[0] * 256 // (max(shape) * FINE) + 128).clip(0, 255)
    return slope


def _grain(draws: Draws, shape: tuple[int, ...], period: int) -> np.ndarray:
    coarse = draws.octets(*(-(-side // 2) for side in shape))
    return coarse.repeat(2, axis=0).repeat(2, axis=1)[: shape[0], : shape[1]].astype(np.int32)


_OF_BACKGROUNDS = (_slope, _stripes, _checks, _grain)  # large dots would be circles
_OF_OBJECTS = (*_OF_BACKGROUNDS, _dots)


def _hills(draws: Draws, shape: tuple[int, ...], cells: int) -> np.ndarray:
    """Random heights at the corners of `cells` x `cells` cells, and between them what they blend to."""
    heights = draws.octets(cells + 1, cells + 1).astype(np.int32)
    for side in shape[::-1]:  # each time along the rows, which then become columns
        place = np.arange(side, dtype=np.int32) * (cells * 256) // side
        cell, rest = place >> 8, (place & 255)[:, None]
        heights = (heights.T[cell] * (256 - rest) + heights.T[cell + 1] * rest) >> 8
    return heights


# Colours


def _color(hue: int, saturation: int, value: int) -> Color:
    """Of hue 0..1535 around the circle from red, saturation and value 0..255."""
    sector, rest = divmod(hue, 256)
    low = value * (255 - saturation) // 255
    falling = value * (255 * 255 - saturation * rest) // (255 * 255)
    rising = value * (255 * 255 - saturation * (255 - rest)) // (255 * 255)
    return (
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    )[sector]


def _toward(color: Color, other: Color, percent: int) -> Color:
    red, green, blue = (a + (b - a) * percent // 100 for a, b in zip(color, other, strict=True))
    return red, green, blue


_BLACK, _WHITE = (16, 16, 24), (250, 250, 244)


def _shade(draws: Draws, color: Color) -> Color:
    """A darker color of a bright one, a brighter one of a dark one."""
    dark = 2 * color[0] + 5 * color[1] + color[2] < 8 * 120
    return _toward(color, _WHITE if dark else _BLACK, draws.between(25, 60))


def _blend(shades: np.ndarray, *colors: Color) -> np.ndarray:
    """(h, w, 3) uint8: shades of 0..255 as colors evenly spread, and blends of neighbors among them."""
    steps, last = np.arange(256, dtype=np.int32)[:, None] * (len(colors) - 1), 255
    table = np.array([*colors, colors[-1]], dtype=np.int32)
    place, rest = steps // last, steps % last
    palette = (table[place[:, 0]] * (last - rest) + table[place[:, 0] + 1] * rest) // last
    blended: np.ndarray = palette.astype(np.uint8).take(shades, axis=0)
    return blended


# What is painted


def _background(draws: Draws, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W, 3) uint8: hills and a texture, in up to three muted colors."""
    hills = _hills(draws, shape, draws.between(1, 4)) * 3 + _hills(draws, shape, draws.between(8, 24))
    texture = _OF_BACKGROUNDS[draws.below(len(_OF_BACKGROUNDS))](draws, shape, draws.between(10, 50) * FINE)
    weight = draws.between(2, 14)  # of the texture, of 16
    shades = (hills * (16 - weight) + texture * (4 * weight)) >> 6
    hue = draws.below(1536)
    colors = []
    for _ in range(3):
        near = (hue + draws.between(-200, 200)) % 1536
        colors.append(_color(near, draws.between(15, 110), draws.between(50, 235)))
    return _blend(shades, *colors)


def _lay(image: np.ndarray, corner: tuple[int, int], color: Color | np.ndarray, weight: np.ndarray) -> None:
    """Put a color, or (h, w, 3) of them, onto an image; `weight` (h, w) is 0..64 of 64."""
    frame, part = crossing(corner, weight.shape, (image.shape[0], image.shape[1]))
    share = weight[part][..., None].astype(np.int16)
    over = color[part] if isinstance(color, np.ndarray) else np.array(color, dtype=np.int16)
    under = image[frame]
    under[...] = (under * (64 - share) + over * share + 32) >> 6


def _paint_object(draws: Draws, image: np.ndarray, thing: Placed) -> None:
    stamp = thing.stamp
    frame, part = crossing(stamp.corner, stamp.cover.shape, (image.shape[0], image.shape[1]))
    under = image[frame][stamp.cover[part] > 0]
    mean = (under.sum(axis=0, dtype=np.int64) // len(under)).tolist()
    tried = [_color(draws.below(1536), draws.between(110, 235), draws.between(110, 250)) for _ in range(_COLOURS_TRIED)]
    main = max(tried, key=lambda color: sum(abs(a - b) for a, b in zip(color, mean, strict=True)))
    other = _shade(draws, main)
    choice = draws.below(len(_OF_OBJECTS) + 1)  # the last is flat
    fill: Color | np.ndarray = main
    if choice < len(_OF_OBJECTS):
        fill = _blend(_OF_OBJECTS[choice](draws, stamp.cover.shape, draws.between(5, 14) * FINE), main, other)
    if not draws.happens(_OUTLINED):
        _lay(image, stamp.corner, fill, stamp.cover * _OPAQUE)
        return
    rim = _toward(main, _BLACK if draws.happens(60) else _WHITE, draws.between(60, 90))
    _lay(image, stamp.corner, rim, stamp.cover * _OPAQUE)
    core = eroded(stamp.inside, max(2, thing.extent // (20 * FINE)))
    _lay(image, stamp.corner, fill, cover(core) * _OPAQUE)


# Clutter, which is of no class. Each piece is painted into the image, in a muted color.


def _somewhere(draws: Draws, image: np.ndarray) -> Point:
    """(x, y) in 1/64 pixel, within the image."""
    height, width, _ = image.shape
    return draws.below(width * FINE), draws.below(height * FINE)


def _muted(draws: Draws) -> Color:
    return _color(draws.below(1536), draws.between(10, 140), draws.between(30, 245))


def _lay_outline(image: np.ndarray, outline: Outline, color: Color, opacity: int) -> None:
    stamp = rasterised(outline)
    _lay(image, stamp.corner, color, stamp.cover * opacity)


def _stroke(start: Point, end: Point, width: int) -> Convex:
    """A straight line of about a width, in 1/64 pixel."""
    (x1, y1), (x2, y2) = start, end
    length = max(abs(x2 - x1), abs(y2 - y1))
    x, y = (x2 - x1) * width // (2 * length), (y2 - y1) * width // (2 * length)
    return Convex(((x1 + y, y1 - x), (x2 + y, y2 - x), (x2 - y, y2 + x), (x1 - y, y1 + x)))


def _zigzag(draws: Draws, image: np.ndarray) -> None:
    """A thin line of one to four strokes."""
    here, angle, width, color = _somewhere(draws, image), draws.below(TURNS), draws.between(64, 240), _muted(draws)
    for _ in range(draws.between(1, 4)):
        x, y = turn((draws.between(20, 70) * FINE, 0), angle)
        there = here[0] + (x >> 14), here[1] + (y >> 14)
        _lay_outline(image, Outline((_stroke(here, there, width),)), color, _OPAQUE)
        here, angle = there, angle + draws.between(-80, 80)


def _arc(draws: Draws, image: np.ndarray) -> None:
    """A thin line along less than half of a circle."""
    radius, width = draws.between(15, 60) * FINE, draws.between(64, 192)
    gone, far = draws.between(100, 700), 2000  # of the circle, all that is left of `gone`
    cut = Convex(((-far, -far), (gone, -far), (gone, far), (-far, far)))
    outline = Outline((Disc((0, 0), 1024),), (Disc((0, 0), 1024 - 1024 * width // radius), cut))
    turned = placed(outline, radius, draws.below(TURNS), _somewhere(draws, image))
    _lay_outline(image, turned, _muted(draws), _OPAQUE)


def _blob(draws: Draws, image: np.ndarray) -> None:
    """Discs that run into each other, hardly to be seen."""
    (x, y), reach = _somewhere(draws, image), draws.between(8, 40) * FINE
    discs = []
    for _ in range(draws.between(3, 5)):
        centre = x + draws.between(-reach, reach), y + draws.between(-reach, reach)
        discs.append(Disc(centre, draws.between(reach // 2, reach)))
    _lay_outline(image, Outline(tuple(discs)), _muted(draws), draws.between(2, 5))


_PIECES: tuple[Callable[[Draws, np.ndarray], None], ...] = (_zigzag, _zigzag, _arc, _blob)
