"""Text on images in a font that has its characters, or with escapes in their place; never as empty boxes.

Pillow's own font has little more than ASCII. A font of the system is looked for where a name needs one.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from fpg_zoo.text import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_MOST_FILES = 2000  # that are looked at
_STYLED = re.compile("bold|italic|oblique|light|thin|black|heavy|medium|mono|condensed", re.IGNORECASE)
_ASCII = frozenset(map(chr, range(ord("!"), ord("~") + 1)))
_PROBE_SIZE = 16
# No font has these: a noncharacter, and one of a plane that is empty. A font that draws them differently draws
# stand-ins for whatever it lacks, as the "last resort" font of macOS does.
_NONCHARACTER, _UNASSIGNED = "\U0010ffff", "\U0005fff0"


class Lettering(NamedTuple):
    """How to write a name.

    Attributes:
        text: the name on one line, with escapes such as `\\u81ea` for characters that the font lacks.
        font_file: a font of the system; None for Pillow's own.
    """

    text: str
    font_file: Path | None

    def font(self, size: int) -> Font:
        """The font in a size in pixels."""
        return ImageFont.load_default(size) if self.font_file is None else ImageFont.truetype(str(self.font_file), size)


def lettering(name: str, names: tuple[str, ...]) -> Lettering:
    """How to write one of several names.

    Args:
        name: one of `names`.
        names: all that may be written: fonts are looked for once for all of them.
    """
    text = _one_line(name)
    return _letterings(names)[name] if _default_lacks(text) else Lettering(text, None)


@functools.lru_cache(maxsize=16)
def _letterings(names: tuple[str, ...]) -> dict[str, Lettering]:
    lines = {name: _one_line(name) for name in names}
    lacking = {name: _default_lacks(line) for name, line in lines.items()}
    files: dict[str, Path | None] = dict.fromkeys(names)
    for file in font_files():
        unfinished = [name for name, characters in lacking.items() if characters]
        if not unfinished:
            break
        probe = _Probe.of_file(file)
        if probe is None:
            continue
        for name in unfinished:
            lacks = probe.lacks(lines[name])
            if len(lacks) < len(lacking[name]) and not probe.lacks(_ASCII):
                lacking[name], files[name] = lacks, file
    return {name: Lettering(_escaped(line, lacking[name]), files[name]) for name, line in lines.items()}


def _one_line(name: str) -> str:
    return printable(" ".join(name.split()))


def _escaped(line: str, characters: frozenset[str]) -> str:
    return "".join(ascii(character)[1:-1] if character in characters else character for character in line)


@functools.lru_cache(maxsize=4096)
def _default_lacks(line: str) -> frozenset[str]:
    return frozenset() if line.isascii() else _default_probe().lacks(line)


@functools.cache
def _default_probe() -> _Probe:
    return _Probe(ImageFont.load_default(_PROBE_SIZE))


class _Probe:
    """Which characters a font has, found by drawing them: Pillow gives no access to a font's own table."""

    def __init__(self, font: Font) -> None:
        self._font = font
        self._stand_in = self._drawn(_NONCHARACTER)
        self._has = {" ": True}

    @classmethod
    def of_file(cls, file: Path) -> _Probe | None:
        """None if it cannot be read, or has stand-ins of several kinds."""
        try:
            # Without shaping, which would put a sign that combines with another on a circle.
            font = ImageFont.FreeTypeFont(str(file), _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
            probe = cls(font)
        except Exception:  # a damaged font, or one of pixels in other sizes
            return None
        return probe if probe.lacks(_UNASSIGNED) else None

    def lacks(self, characters: Iterable[str]) -> frozenset[str]:
        """Those that it draws as nothing, or as it draws what no font has."""
        for character in set(characters) - self._has.keys():
            try:
                drawn = self._drawn(character)
            except (OSError, ValueError):
                self._has[character] = False  # a damaged glyph, or a font of Latin-1 alone
            else:
                self._has[character] = any(drawn) and drawn != self._stand_in
        return frozenset(character for character in characters if not self._has[character])

    def _drawn(self, character: str) -> bytes:
        canvas = Image.new("L", (3 * _PROBE_SIZE, 3 * _PROBE_SIZE))
        ImageDraw.Draw(canvas).text((_PROBE_SIZE, _PROBE_SIZE), character, fill=255, font=self._font)
        return canvas.tobytes()


def font_files() -> list[Path]:
    """The system's and the user's font files, plain styles first, then short names, which are of whole families."""
    files = []
    for folder in _font_folders():
        for parent, _, names in os.walk(folder):
            files += [Path(parent, name) for name in names if name.lower().endswith(_SUFFIXES)]
    files.sort(key=lambda file: (bool(_STYLED.search(file.name)), len(file.name), file.name))
    return files[:_MOST_FILES]


def _font_folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        users = [Path(local, "Microsoft/Windows/Fonts")] if local else []
        return [*users, Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
    data_dirs = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    users_own = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    return [Path(folder, "fonts") for folder in (users_own, *data_dirs.split(":")) if folder]
