"""What was found wrong with a set of annotations: what kinds, how often, and of which ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fpg_zoo.text import printable

_SHOWN = 5  # ids of a kind that a summary names; all are kept

# Annotations that are left out.
BOX_MALFORMED = "box that is not four numbers"
BOX_NO_SIZE = "box of no size"
BOX_OUTSIDE = "box outside its picture"
CROWD_UNCLEAR = "iscrowd that is neither 0 nor 1"
UNKNOWN_CATEGORY = "annotation of an unknown category id"
UNKNOWN_PICTURE = "annotation of an unknown image id"
LEFT_OUT = (BOX_MALFORMED, BOX_NO_SIZE, BOX_OUTSIDE, CROWD_UNCLEAR, UNKNOWN_CATEGORY, UNKNOWN_PICTURE)
# Annotations that are kept.
AREA_WRONG = "area that is no number from 0 to 1e10 (the box's taken)"
BOX_CLIPPED = "box that reaches out of its picture (clipped)"
BOX_OF_MASK = "annotation without a box (the mask's taken)"
CATEGORY_ID_TYPE = "category id as a text in one place and a number in the other (read as the same)"
CROWD_NULL = "iscrowd that is null (read as 0)"
CROWD_TEXT = "iscrowd that is a text (read as 0 or 1)"
IMAGE_ID_TYPE = "image id as a text in one place and a number in the other (read as the same)"
MASK_MALFORMED = "malformed polygons or RLE (kept, without a mask)"
MASK_MISSING = "annotation without polygons or RLE (kept, without a mask)"
MASK_TOO_LARGE = "mask of too large a picture, or too long an outline (kept, without a mask)"
POLYGON_WITHOUT_AREA = "polygon of fewer than three points (the others kept)"
# Images that are kept.
IMAGE_FOUND = "image found under a corrected file name"
SIZE_READ = "image without a usable size (read from its file)"
# Categories.
CATEGORY_TEXT = "category id that is a text (read as a number)"
CATEGORY_ROOT = "root category that no annotation uses (left out)"
# Pictures that are left out.
IMAGE_AMBIGUOUS = "image whose file name, as corrected, is that of another image"
IMAGE_UNREADABLE = "picture that cannot be read"
PICTURE_MALFORMED = "picture entry without an id or file name"
PICTURE_TWICE = "picture id used before"
PICTURE_MISSING = "picture whose file is not there"
PICTURE_SMALL = "picture too small to train on"
PICTURE_EMPTY = "picture without an object to train on"


class Report:
    """Everything that was refused or repaired, by kind. Falsy while there is nothing."""

    def __init__(self) -> None:
        self._found: dict[str, list[int | str]] = {}
        self._examples: dict[str, str] = {}

    def add(self, kind: str, identity: int | str, example: str | None = None) -> None:
        """Count one.

        Args:
            kind: what is wrong, as a phrase in the singular.
            identity: the id, or in place of one where it stands, as `annotations[3]`.
            example: more about it. The first of a kind is told.
        """
        self._found.setdefault(kind, []).append(identity)
        if example is not None:
            self._examples.setdefault(kind, example)

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

    def lines(self, kinds: Collection[str] | None = None) -> list[str]:
        """A line per kind, or per one of `kinds`: how many, the first ids, and the first example."""
        lines = []
        for kind, ids in self._found.items():
            if kinds is not None and kind not in kinds:
                continue
            more = ", ..." if len(ids) > _SHOWN else ""
            example = f" ({printable(self._examples[kind])})" if kind in self._examples else ""
            lines.append(f"{len(ids)} x {kind}: {', '.join(map(printable, ids[:_SHOWN]))}{more}{example}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
