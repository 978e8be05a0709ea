"""A TrueType font written by hand: each character is a bar of its own, whatever it lacks an empty box."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

EM = 1000
Rectangle = tuple[int, int, int, int]


def write_font(path: Path, characters: str, *, missing: list[Rectangle] | None = None) -> Path:
    """Write a font.

    Args:
        path: of the file.
        characters: that it has, in the basic multilingual plane.
        missing: rectangles (left, bottom, right, top) that any other character is drawn as; an empty box if None.
    """
    box = [(100, 0, 500, 700), (150, 50, 450, 650)]  # the inner one is wound the other way, and is a hole
    glyphs = [_glyph(box if missing is None else missing)]
    glyphs += [_glyph([(100, 0, 200 + 3 * number, 300 + 7 * number)]) for number, _ in enumerate(characters, 1)]
    offsets, glyf = [0], b""
    for glyph in glyphs:
        glyf += glyph
        offsets.append(len(glyf))
    count = len(glyphs)
    tables = {
        b"cmap": _cmap({ord(character): number for number, character in enumerate(characters, 1)}),
        b"glyf": glyf,
        b"head": struct.pack(">4I2H2q4h2H3h", 1 << 16, 0, 0, 0x5F0F3CF5, 0, EM, 0, 0, 0, 0, EM, EM, 0, 8, 2, 1, 0),
        b"hhea": struct.pack(">I3hH11hH", 1 << 16, 800, -200, 0, 600, *[0] * 11, count),
        b"hmtx": struct.pack(">Hh", 600, 100) * count,
        b"loca": struct.pack(f">{count + 1}I", *offsets),
        b"maxp": struct.pack(">I14H", 1 << 16, count, 8, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    directory, body = struct.pack(">I4H", 1 << 16, len(tables), 64, 2, 48), b""
    for tag, table in tables.items():
        place = 12 + 16 * len(tables) + len(body)
        directory += struct.pack(">4s3I", tag, 0, place, len(table))
        body += table + bytes(-len(table) % 4)
    path.write_bytes(directory + body)
    return path


def _glyph(rectangles: list[Rectangle]) -> bytes:
    if not rectangles:
        return b""
    contours = []
    for number, (left, bottom, right, top) in enumerate(rectangles):
        corners = [(left, bottom), (left, top), (right, top), (right, bottom)]
        contours.append(corners[::-1] if number % 2 else corners)
    points = [point for contour in contours for point in contour]
    glyph = struct.pack(">h4h", len(contours), 0, 0, EM, EM)
    glyph += struct.pack(f">{len(contours)}H", *range(3, 4 * len(contours), 4)) + struct.pack(">H", 0)
    glyph += b"\1" * len(points)
    for axis in (0, 1):
        places = [0, *(point[axis] for point in points)]
        glyph += b"".join(struct.pack(">h", after - before) for before, after in itertools.pairwise(places))
    return glyph + bytes(-len(glyph) % 4)


def _cmap(numbers: dict[int, int]) -> bytes:
    """Format 4, a segment for each character."""
    codes = [*sorted(numbers), 0xFFFF]
    shifts = [(numbers.get(code, 0x10000) - code) & 0xFFFF for code in codes]
    segments = len(codes)
    words = [segments * 2, 0, 0, 0, *codes, 0, *codes, *shifts, *[0] * segments]
    table = struct.pack(f">3H{len(words)}H", 4, 6 + 2 * len(words), 0, *words)
    return struct.pack(">4HI", 0, 1, 3, 1, 12) + table
