"""What was found wrong with a set of annotations: what kinds, how often, and of which ids."""

from __future__ import annotations

from collections.abc import Mapping

from fpg_zoo.text import printable

_SHOWN = 5  # ids of a kind that a summary names; all are kept

# Annotations that are left out.
BOX_MALFORMED = "box that is not four numbers"
BOX_NO_SIZE = "box of no size"
BOX_OUTSIDE = "box outside its picture"
ID_MISSING = "annotation without an id"
ID_TWICE = "annotation id used before"
MASK_MALFORMED = "malformed polygons or RLE"
MASK_MISSING = "annotation without polygons or RLE"
UNKNOWN_CATEGORY = "annotation of an unknown category id"
UNKNOWN_PICTURE = "annotation of an unknown image id"
# Annotations that are kept.
BOX_CLIPPED = "box that reaches out of its picture (clipped)"
POLYGON_WITHOUT_AREA = "polygon of fewer than three points (the others kept)"
# Pictures that are left out.
PICTURE_MALFORMED = "picture entry without an id, file name or size"
PICTURE_TWICE = "picture id used before"
PICTURE_MISSING = "picture whose file is not there"
PICTURE_SMALL = "picture too small to train on"
PICTURE_EMPTY = "picture without an object to train on"


class Report:
    """Everything that was refused or repaired, by kind. Falsy while there is nothing."""

    def __init__(self) -> None:
        self._found: dict[str, list[int | str]] = {}

    def add(self, kind: str, identity: int | str) -> None:
        """Count one.

        Args:
            kind: what is wrong, as a phrase in the singular.
            identity: the id, or in place of one where it stands, as `annotations[3]`.
        """
        self._found.setdefault(kind, []).append(identity)

    @property
    def found(self) -> Mapping[str, tuple[int | str, ...]]:
        """Per kind the ids, in the order they were met."""
        return {kind: tuple(ids) for kind, ids in self._found.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Per kind how many."""
        return {kind: len(ids) for kind, ids in self._found.items()}

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> list[str]:
        """A line per kind: how many and the first ids."""
        lines = []
        for kind, ids in self._found.items():
            more = ", ..." if len(ids) > _SHOWN else ""
            lines.append(f"{len(ids)} x {kind}: {', '.join(map(printable, ids[:_SHOWN]))}{more}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
