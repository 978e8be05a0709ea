"""Entries of a docstring that stand for several attributes; an extension of the documentation site (`mkdocs.yml`)."""

from __future__ import annotations

import re
from typing import Any

import griffe

# In `height, width: in pixels.` the parser of Google's style takes `width` for the type of `height,`.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): ", re.MULTILINE)
_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


class SharedEntries(griffe.Extension):  # type: ignore[misc, unused-ignore]  # griffe may not be there
    """Names with no-break spaces between them are one name to the parser, and read the same."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and "Attributes:" in obj.docstring.value:
            before, heading, attributes = obj.docstring.value.partition("Attributes:")
            names = _SHARED.sub(lambda entry: entry[0].rstrip().replace(", ", f",{_NO_BREAK_SPACE}") + " ", attributes)
            obj.docstring.value = before + heading + names
