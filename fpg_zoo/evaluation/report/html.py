"""Texts of anybody's making in HTML and JSON, and numbers as the page writes them."""

from __future__ import annotations

import html
import json
import math
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"  # before a wrong detection
_NONE = "\N{EN DASH}"  # in place of a number
_MOST_LETTERS = 80  # of a name
_LONGEST_TEXT = 2000  # letters


def printable(text: str, most: int = _MOST_LETTERS) -> str:
    """A text on one line: what cannot be printed (or turns its direction) replaced, cut if longer than `most`."""
    spaced = (" " if letter.isspace() else letter for letter in text[:most])
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in spaced)
    return line if len(text) <= most else line[:-1] + "…"


def escaped(text: str) -> str:
    """A text that stands for itself in HTML, within quoted attributes too."""
    return html.escape(text, quote=True)


def name_of(text: str) -> str:
    """A name of anybody's making in HTML."""
    return escaped(printable(text))


def text_of(text: str) -> str:
    """A longer text of anybody's making in HTML."""
    return escaped(printable(text, _LONGEST_TEXT))


def embedded(content: Any) -> str:
    """JSON that stands for itself within a `script` element: ASCII, and nothing in it ends the element."""
    dumped = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        dumped = dumped.replace(letter, f"\\u{ord(letter):04x}")
    return dumped


def fraction(value: float | None) -> str:
    """0..1 with three digits; a dash where there is none, which is None or NaN."""
    return _NONE if value is None or math.isnan(value) else f"{value:.3f}"


def coordinate(value: float) -> str:
    """With a tenth, where it is not whole."""
    return f"{value:.1f}".removesuffix(".0")
