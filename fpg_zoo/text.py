"""Text from files and servers, made fit for one line of a message."""

from __future__ import annotations

import reprlib

MAX_LENGTH = 200  # characters that a message quotes

_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def printable(value: object, max_length: int | None = MAX_LENGTH) -> str:
    """What somebody else wrote, safe to print: no control characters, no line breaks, of bounded length.

    Escape sequences in a file name or a server's answer could otherwise move the cursor, or forge a line of ours.

    Args:
        value: anything; its `str` is taken.
        max_length: characters that are kept at most, of which the last three are dots where it was longer. None keeps
            all.

    Returns:
        The text, with each character that is not printable as Python escapes it (`\\x1b`, `\\n`, `\\u202e`).
    """
    text = str(value) if max_length is None else str(value)[: max_length + 1]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if max_length is None or len(text) <= max_length else f"{text[: max_length - 3]}..."


def quoted(value: object) -> str:
    """A value as Python writes it, for a message: long texts, long lists and deep nests are cut in the middle.

    Args:
        value: anything, as a file's JSON or pickle gives it.

    Returns:
        At most `MAX_LENGTH` printable characters.
    """
    try:
        return printable(_REPR.repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} of many digits"
